//! The client of the API server that `approve` and `sign` share the making of.

use std::time::Duration;

use bytes::Bytes;
use etcd_tls_sidecar::api::answer::{self, Encoding, ReadError};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Request,
    header::{ACCEPT, HeaderValue},
};
use kube::{Client, Config, client::Body, config::InferConfigError, core::Status, runtime::utils::Backoff};
use tokio::time::Instant;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take before it is tried again; watches are not bound by it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// More than any answer of one object: the API server stores none over 1.5 MiB.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// The Accept of a request whose answer nobody looks at: without spec and status.
pub const METADATA_ALONE: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, \
                                  application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The API server cannot be reached from here.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account's files.
    #[error("found neither a kubeconfig (KUBECONFIG) nor a pod's service account: {0}")]
    Config(#[from] InferConfigError),
    /// The configuration does not make a client.
    #[error("the API server's configuration makes no client: {0}")]
    Client(#[from] kube::Error),
}

/// Connects as `KUBECONFIG` says, or as the pod's service account. There is no rate limit of our own; concurrent requests
/// are as many connections, kept open for the next ones.
///
/// # Errors
/// No configuration, or one that makes no client. That the API server is away is no error here.
pub async fn connect() -> Result<Client, ClientError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // kube's own repeats of 429, 503 and 504 double up to 1000 s inside one call. Each caller here has a backoff of its
    // own with a cap of a minute, which is how soon a recovered API server must be noticed.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Bounds one request (not a watch) by [`REQUEST_TIMEOUT`].
///
/// # Errors
/// The request's, or that it took too long.
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(RequestError::Timeout),
    }
}

/// Sends a request within [`REQUEST_TIMEOUT`], and takes an answer in one of the media types of `accept`: its body, and
/// what that is written in.
///
/// # Errors
/// The request's, that it took too long, or what the API server says instead of success.
pub async fn ask(
    client: &Client,
    mut request: Request<Vec<u8>>,
    accept: &'static str,
) -> Result<(Encoding, Bytes), RequestError> {
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
    let answer = async {
        let (head, body) = client.send(request.map(Body::from)).await?.into_parts();
        // Read to its end, whatever it is: a connection is kept for the next request only then.
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| e.downcast().map_or_else(kube::Error::Service, |e| *e))?.to_bytes();
        Ok((head.status, Encoding::of(&head.headers), body))
    };
    let (status, encoding, body) = within(answer).await?;
    if status.is_success() {
        return Ok((encoding, body));
    }
    let said = match answer::status(encoding, &body) {
        Some(said) => Status::failure(&said.message.unwrap_or_default(), &said.reason.unwrap_or_default()),
        None => Status::failure(&answer::message(encoding, &body), "no Status"),
    };
    Err(kube::Error::Api(said.with_code(status.as_u16()).boxed()).into())
}

/// A request to the API server that failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No answer within [`REQUEST_TIMEOUT`].
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// An answer that is none.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// An answer that is another thing than was asked for.
    #[error("the API server's answer cannot be read: {0}")]
    Answer(#[from] ReadError),
}

impl RequestError {
    /// The HTTP status of the API server's answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Nothing of that name (any more).
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The object is not the one that was looked at: resourceVersion (409) or uid (409 or 422) differ.
    pub fn is_stale(&self) -> bool {
        matches!(self.code(), Some(409 | 422))
    }
}

/// Seconds after which a watch is opened anew: a connection that died silently is noticed within this.
pub const WATCH_SECONDS: u32 = 50;

/// The waits between a watch's attempts: from half a second, doubling, to 20 s, so that rights that were taken away and
/// given back are noticed within a minute. They begin anew after a minute without an error: a watcher says that it begins
/// a list before the list fails, which is no success.
#[derive(Debug, Default)]
pub struct WatchBackoff {
    attempts: u32,
    last: Option<Instant>,
}

impl WatchBackoff {
    fn wait(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now - last > Duration::from_secs(60)) {
            self.attempts = 0;
        }
        self.last = Some(now);
        let wait = Duration::from_millis(500) * (1 << self.attempts.min(6));
        self.attempts += 1;
        wait.min(Duration::from_secs(20))
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.wait(Instant::now()))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_fails_is_tried_less_and_less_but_within_a_minute() {
        let mut now = Instant::now();
        let mut backoff = WatchBackoff::default();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait = backoff.wait(now);
            waits.push(wait);
            now += wait;
            // The beginning of a list is no success.
            backoff.reset();
        }
        assert_eq!(waits[..3], [500, 1000, 2000].map(Duration::from_millis));
        assert_eq!(waits.iter().max(), Some(&Duration::from_secs(20)));
        assert_eq!(waits.last(), Some(&Duration::from_secs(20)));
        assert_eq!(backoff.wait(now + Duration::from_secs(61)), Duration::from_millis(500));
    }
}
