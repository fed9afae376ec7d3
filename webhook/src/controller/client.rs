//! The client of the API server that `approve` and `sign` share the making of.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{InferConfigError, KubeconfigError},
    runtime::utils::Backoff,
};
use tokio::time::Instant;

use crate::error::with_causes;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take before it is tried again; watches are not bound by it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// There is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account's files.
    #[error("the kubeconfig ({}) cannot be used: {}; and no files of a pod's service account are here", place(), of_inferred(.0))]
    Config(InferConfigError),
    /// The kubeconfig has no such context, or cannot be read.
    #[error("context {context:?} of the kubeconfig ({}) cannot be used: {}", place(), of_kubeconfig(.error))]
    Context {
        /// The name of the context.
        context: String,
        /// Why not.
        error: KubeconfigError,
    },
    /// The configuration does not make a client.
    #[error("the API server's configuration makes no client: {0}")]
    Client(#[from] kube::Error),
}

impl From<InferConfigError> for ClientError {
    fn from(error: InferConfigError) -> Self {
        Self::Config(error)
    }
}

/// Where the kubeconfig was looked for.
fn place() -> String {
    match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        Some(value) => format!("KUBECONFIG={}", value.display()),
        None => "~/.kube/config".to_owned(),
    }
}

/// What is wrong with the kubeconfig. A mistake of the caller's is there more likely than in a pod's files.
fn of_inferred(error: &InferConfigError) -> String {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<KubeconfigError>());
    source.map_or_else(|| error.to_string(), of_kubeconfig)
}

fn of_kubeconfig(error: &KubeconfigError) -> String {
    match error {
        // Its own words quote what it stumbled over and the lines around, in which there may be a key.
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!("line {}, column {} is no YAML of a kubeconfig", at.line(), at.column()),
            None => "it is no YAML of a kubeconfig".to_owned(),
        },
        other => other.to_string(),
    }
}

/// Connects as `KUBECONFIG` says, or as the pod's service account. There is no rate limit of our own; concurrent requests
/// are as many connections, kept open for the next ones.
///
/// # Errors
/// No configuration, or one that makes no client. That the API server is away is no error here.
pub async fn connect() -> Result<Client, ClientError> {
    Ok(Client::try_from(configuration().await?)?)
}

/// The configuration of the client that [`connect`] makes.
///
/// # Errors
/// No configuration.
pub(crate) async fn configuration() -> Result<Config, ClientError> {
    let mut config = Config::infer().await?;
    bound(&mut config);
    Ok(config)
}

/// Bounds how long one connection or call may take.
pub(crate) fn bound(config: &mut Config) {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // kube's own repeats of 429, 503 and 504 double up to 1000 s inside one call. Each caller here has a backoff of its
    // own with a cap of a minute, which is how soon a recovered API server must be noticed.
    config.default_retry = false;
}

/// Bounds one request (not a watch) by [`REQUEST_TIMEOUT`].
///
/// # Errors
/// The request's, or that it took too long.
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiServerError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ApiServerError::Timeout),
    }
}

/// A request to the API server that failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    /// No answer within [`REQUEST_TIMEOUT`].
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// A success whose body ends before the object does.
    #[error("the API server's answer ended too soon")]
    Incomplete,
    /// A success that does not name the object that was to be written.
    #[error("the answer to a write does not name the object; is a proxy before the API server?")]
    NotWritten,
    /// Any other error of the client, or an error status of the API server.
    // Its own words: those of the client repeat a status in the form of a debugger.
    #[error("{}", words(.0))]
    Api(kube::Error),
}

fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => format!("status {} {}", status.code, status.reason),
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Service(error) => with_causes(&**error),
        other => with_causes(other),
    }
}

impl From<kube::Error> for ApiServerError {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

impl ApiServerError {
    /// The HTTP status of the API server's answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// There is no answer at all: a question to the same API server would get none either.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Timeout | Self::Api(kube::Error::Service(_) | kube::Error::HyperError(_)))
    }

    /// The caller is not known to the API server, or lacks the right.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.code(), Some(401 | 403))
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

/// Seconds after which a watch is opened again: a connection that died silently is noticed within this.
pub const WATCH_SECONDS: u32 = 50;

/// The waits between a watch's attempts: from half a second, doubling, to 20 s, so that rights that were taken away and
/// given back are noticed within a minute. They start again after a minute without an error: a watcher says that it begins
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
