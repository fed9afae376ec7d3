//! The API server over HTTP/1.1: one connection for one request's life, closed at rest.
//!
//! Hand-made on hyper, because a sidecar that stands beside every etcd member should weigh nothing between two renewals:
//! no connection pool, no background task, no cache. Where and with what to ask is read again for each connection, the
//! token for each call, since kubelet replaces both under us.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
    http::response::Parts,
};
use rustls::{
    ClientConfig, NamedGroup, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time;
use zeroize::Zeroizing;

use super::{
    Api, ApiError, Version,
    objects::{CertificateSigningRequest, ConfigMap, Status},
};
use crate::http::{self, Sender};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without a connection, the other address is tried beside the first.
const HEAD_START: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The API server stores no object over 1.5 MiB.
pub(super) const MAX_BODY: usize = 2 * 1024 * 1024;
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const USER_AGENT_VALUE: &str = concat!("etcd-tls-sidecar/", env!("CARGO_PKG_VERSION"));

/// The API server's address, the CAs that verify it, and our credentials for it.
pub struct Access {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The prefix of the API's path, usually empty.
    pub prefix: String,
    /// PEM certificates of the CAs that the server's certificate may come of.
    pub roots: Vec<u8>,
    /// A bearer token.
    pub token: Option<Zeroizing<String>>,
    /// A client certificate's chain and key, PEM.
    pub identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    /// The name in the server's certificate, where it is not the host's.
    pub server_name: Option<String>,
    /// Where else the same server is, if this address leads elsewhere.
    pub other: Option<OtherAddress>,
}

/// Another address of the API server.
#[derive(Clone, Debug)]
pub struct OtherAddress {
    /// Its host name, which is in the server's certificate.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// True if it was the one that served last: it is tried first then.
    pub serves: Arc<AtomicBool>,
}

impl Access {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

fn unreachable(access: &Access, message: String) -> ApiError {
    ApiError::Unreachable { address: access.address(), message }
}

/// Where [`Access`] comes from: files that others replace.
pub trait Credentials {
    /// Reads it anew.
    ///
    /// # Errors
    /// [`ApiError::Access`] names the missing part.
    fn access(&self) -> Result<Access, ApiError>;
}

/// Credentials that may be missing: the reason is the answer to every call.
impl<C: Credentials> Credentials for Result<C, ApiError> {
    fn access(&self) -> Result<Access, ApiError> {
        self.as_ref().map_err(ApiError::clone)?.access()
    }
}

/// The API server.
pub struct Kube<C> {
    credentials: C,
    connection: Option<Sender>,
}

impl<C: Credentials> Kube<C> {
    /// Connects when first asked.
    pub const fn new(credentials: C) -> Self {
        Self { credentials, connection: None }
    }

    /// Nothing is asked for some time: closes the connection.
    pub(crate) fn close(&mut self) {
        self.connection = None;
    }

    /// A ConfigMap by name; the trust bundles are published in one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn config_map(&mut self, namespace: &str, name: &str) -> Result<ConfigMap, ApiError> {
        self.call(Method::GET, &format!("/api/v1/namespaces/{namespace}/configmaps/{name}"), None).await
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, ApiError> {
        self.exchange(method, path, body).await?.object()
    }

    /// One call and its answer of any status.
    ///
    /// # Errors
    /// There is no answer, or nobody to ask: see [`ApiError`].
    pub(crate) async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ApiError> {
        let access = self.credentials.access()?;
        let unreachable = |message: String| unreachable(&access, message);
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let kept = self.connection.take().filter(|c| !c.is_closed());
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(&access).await.map_err(unreachable)?,
        };
        let mut answer = send(&mut connection, request(&access, &method, path, body.clone())?).await;
        if answer.is_err() && was_kept {
            // The server may close a connection just as we use it. To ask twice is harmless: a name is taken once, a
            // resourceVersion replaced once.
            connection = connect(&access).await.map_err(unreachable)?;
            answer = send(&mut connection, request(&access, &method, path, body)?).await;
        }
        let (head, body) = answer.map_err(unreachable)?;
        self.connection = Some(connection);
        Ok(Answer { address: access.address(), status: head.status, headers: head.headers, body })
    }
}

impl<C: Credentials> Kube<C> {
    /// A GET whose answer goes on, over a connection of its own: where, the connection, and the body.
    ///
    /// # Errors
    /// See [`ApiError`]; also for an answer that is no success.
    pub(super) async fn open(&self, path: &str) -> Result<(String, Sender, Incoming), ApiError> {
        let access = self.credentials.access()?;
        let unreachable = |message: String| unreachable(&access, message);
        let mut connection = connect(&access).await.map_err(unreachable)?;
        let asked = http::open(&mut connection, request(&access, &Method::GET, path, Bytes::new())?);
        let (head, body) = match time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(|e| unreachable(http::with_causes(&e)))?,
            Err(_) => return Err(unreachable(format!("no answer within {ANSWER_TIMEOUT:?}"))),
        };
        if head.status.is_success() {
            return Ok((access.address(), connection, body));
        }
        let body = time::timeout(ANSWER_TIMEOUT, http::whole(body, MAX_BODY)).await;
        let body = body.unwrap_or_else(|_| Ok(Bytes::new())).unwrap_or_default();
        let retry_after = retry_after(&head.headers);
        Err(ApiError::Status { code: head.status.as_u16(), message: message_of(&body), retry_after })
    }
}

/// The API server's answer to one call.
pub(crate) struct Answer {
    address: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The HTTP status.
    pub(crate) fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// The message of a Status object, or the beginning of the body.
    pub(crate) fn message(&self) -> String {
        message_of(&self.body)
    }

    /// The resource that a Status object is about, in the plural.
    pub(crate) fn resource(&self) -> Option<String> {
        serde_json::from_slice::<Status>(&self.body).ok()?.details?.kind
    }

    /// The object, of a success.
    ///
    /// # Errors
    /// [`ApiError::Status`] for another status; [`ApiError::Malformed`].
    pub(crate) fn object<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        if !self.status.is_success() {
            let retry_after = retry_after(&self.headers);
            return Err(ApiError::Status { code: self.code(), message: self.message(), retry_after });
        }
        serde_json::from_slice(&self.body).map_err(|e| ApiError::Malformed {
            address: self.address.clone(),
            message: format!("the body is no object: {e}"),
        })
    }
}

impl<C: Credentials> Api for Kube<C> {
    async fn connect(&mut self) -> Result<(), ApiError> {
        if self.connection.as_ref().is_none_or(Sender::is_closed) {
            let access = self.credentials.access()?;
            self.connection = Some(connect(&access).await.map_err(|message| unreachable(&access, message))?);
        }
        Ok(())
    }

    async fn create(&mut self, request: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
        let body = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": request.metadata, "spec": request.spec,
        });
        self.call(Method::POST, PATH, Some(&body)).await
    }

    async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
        let query = match version {
            Version::MostRecent => "",
            Version::Any => "?resourceVersion=0",
        };
        // A name of ours is a DNS subdomain: nothing in it needs escaping.
        self.call(Method::GET, &format!("{PATH}/{name}{query}"), None).await
    }

    fn rest(&mut self) {
        self.connection = None;
    }
}

async fn send(connection: &mut Sender, request: Request<Full<Bytes>>) -> Result<(Parts, Bytes), String> {
    match time::timeout(ANSWER_TIMEOUT, http::exchange(connection, request, MAX_BODY)).await {
        Ok(answer) => answer.map_err(|e| http::with_causes(&e)),
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
    }
}

fn request(access: &Access, method: &Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ApiError> {
    let uri = format!("{}{path}", access.prefix);
    let host = if access.host.contains(':') {
        format!("[{}]:{}", access.host, access.port)
    } else {
        format!("{}:{}", access.host, access.port)
    };
    let mut builder = Request::builder()
        .method(method)
        .uri(uri)
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, USER_AGENT_VALUE);
    if !body.is_empty() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    if let Some(token) = &access.token {
        let text = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| ApiError::Access("the token holds characters that no token holds".to_owned()))?;
        value.set_sensitive(true);
        builder = builder.header(AUTHORIZATION, value);
    }
    builder.body(Full::new(body)).map_err(|e| ApiError::Access(format!("the request cannot be written: {e}")))
}

/// Connects to the address, or to the other one where there is one and the first is not the API server's: it refuses, its certificate
/// is of another CA, or it is silent.
async fn connect(access: &Access) -> Result<Sender, String> {
    let config = Arc::new(tls(access)?);
    let name = access.server_name.as_ref().unwrap_or(&access.host);
    let named = pin!(connect_to(&access.host, access.port, name, Arc::clone(&config)));
    let Some(other) = &access.other else { return named.await };
    let beside = async {
        let connection = connect_to(&other.host, other.port, &other.host, config).await;
        connection.map_err(|error| format!("nor as {}: {error}", other.host))
    };
    let beside = pin!(beside);
    let served = other.serves.load(Ordering::Relaxed);
    let (connection, second) = if served { first_of(beside, named).await } else { first_of(named, beside).await };
    let (connection, failed) = connection;
    let Some(connection) = connection else { return Err(failed) };
    let by_other = served != second;
    if by_other && !served {
        tracing::warn!(
            address = access.address(),
            error = failed,
            "the API server did not answer at the address that the environment names; it is reached as {}. If there is a Service named \
             kubernetes in this pod's namespace, it changes that address: delete it",
            other.host
        );
    }
    other.serves.store(by_other, Ordering::Relaxed);
    Ok(connection)
}

/// The connection that comes first, with the errors of those that failed, and whether it is the second's. The second begins
/// when the first has failed, or is silent.
async fn first_of(
    first: impl Future<Output = Result<Sender, String>> + Unpin,
    second: impl Future<Output = Result<Sender, String>> + Unpin,
) -> ((Option<Sender>, String), bool) {
    let mut first = first;
    let both = |one: String, other: &str| format!("{one}; {other}");
    match time::timeout(HEAD_START, &mut first).await {
        Ok(Ok(connection)) => ((Some(connection), String::new()), false),
        Ok(Err(one)) => match second.await {
            Ok(connection) => ((Some(connection), one), true),
            Err(other) => ((None, both(one, &other)), false),
        },
        Err(_) => match select(first, second).await {
            Either::Left((Ok(connection), _)) => ((Some(connection), String::new()), false),
            Either::Right((Ok(connection), _)) => {
                ((Some(connection), format!("no connection within {HEAD_START:?}")), true)
            }
            Either::Left((Err(one), second)) => match second.await {
                Ok(connection) => ((Some(connection), one), true),
                Err(other) => ((None, both(one, &other)), false),
            },
            Either::Right((Err(other), first)) => match first.await {
                Ok(connection) => ((Some(connection), String::new()), false),
                Err(one) => ((None, both(one, &other)), false),
            },
        },
    }
}

async fn connect_to(host: &str, port: u16, name: &str, config: Arc<ClientConfig>) -> Result<Sender, String> {
    match time::timeout(CONNECT_TIMEOUT, dial(host, port, name, config)).await {
        Ok(connection) => connection.map_err(|e| http::with_causes(&e)),
        Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
}

fn tls(access: &Access) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&access.roots).flatten());
    if added == 0 {
        return Err("the CA file holds no certificate".to_owned());
    }
    let mut provider = aws_lc_rs::default_provider();
    // Go's servers choose the hybrid wherever it is on offer. One that is on offer without its key share costs a round trip.
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    let identity = match &access.identity {
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("own certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "own key: cannot be read".to_owned())?;
            Some((chain, key))
        }
        None => None,
    };
    http::tls(provider, roots, identity).map_err(|e| format!("own certificate: {e}"))
}

async fn dial(host: &str, port: u16, name: &str, config: Arc<ClientConfig>) -> io::Result<Sender> {
    let stream = http::dial_tls(host, port, name, config).await?;
    let (sender, connection) = http::begin(stream).await?;
    // Ends when the sender is dropped or the server closes.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the API server ended");
        }
    });
    Ok(sender)
}

/// The message of a Status object, or the start of another body.
fn message_of(body: &[u8]) -> String {
    let status: Option<Status> = serde_json::from_slice(body).ok();
    let text = match status.and_then(|s| s.message) {
        Some(message) => message,
        None => String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned(),
    };
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(400).collect()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
