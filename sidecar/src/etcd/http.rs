//! One request, one connection: a rotated leaf is then always the one presented, and a resumed session never hides
//! which certificate was.

use std::{fmt::Display, fs, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Endpoint;

/// How long one request may take, its connection included. etcd itself gives up on a read after 7 s.
const LIMIT: Duration = Duration::from_secs(8);
/// The largest answer read; `/metrics` of a large member has some hundred kilobytes.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How much of an answer is quoted in an error.
const QUOTED: usize = 200;

/// Speaks to etcd with one role's identity.
#[derive(Clone)]
pub struct Client {
    tls: Option<Arc<ClientConfig>>,
}

/// Why etcd did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// The role's files cannot be used.
    #[error("{path}: {reason}")]
    Files {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// No answer: no connection, a TLS failure, or too late.
    #[error("{url}: no answer: {reason}")]
    Unreachable {
        /// Whom.
        url: String,
        /// Why.
        reason: String,
    },
    /// The gateway is off, or does not let us in (etcd's auth, allowed hostnames). Trying again changes nothing.
    #[error("{url}: the JSON gateway does not serve us: {reason}")]
    Forbidden {
        /// Whom.
        url: String,
        /// Why.
        reason: String,
    },
    /// An answer that says no.
    #[error("{url}: {status}: {reason}")]
    Refused {
        /// Whom.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// An answer that cannot be read.
    #[error("{url}: an answer that cannot be read: {reason}")]
    Answer {
        /// Whom.
        url: String,
        /// Why.
        reason: String,
    },
}

impl Client {
    /// Presents `<dir>/tls.crt` and trusts `<dir>/ca.crt`, as they are now.
    ///
    /// # Errors
    /// [`EtcdError::Files`].
    pub fn from_dir(dir: &Path) -> Result<Self, EtcdError> {
        // By way of the links once, so that the three files are of one generation. One that is swept meanwhile has a
        // successor.
        let resolved = || fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        Self::from_generation(&resolved()).or_else(|_| Self::from_generation(&resolved()))
    }

    fn from_generation(dir: &Path) -> Result<Self, EtcdError> {
        let failed = |name: &str, e: &dyn Display| EtcdError::Files {
            path: dir.join(name).display().to_string(),
            reason: e.to_string(),
        };
        let read = |name: &str| fs::read(dir.join(name)).map_err(|e| failed(name, &e));
        let (cert, key, ca) = (read("tls.crt")?, zeroize::Zeroizing::new(read("tls.key")?), read("ca.crt")?);
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(&ca) {
            roots.add(anchor.map_err(|e| failed("ca.crt", &e))?).map_err(|e| failed("ca.crt", &e))?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>().map_err(|e| failed("tls.crt", &e))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| failed("tls.key", &e))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("tls.crt", &e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| failed("tls.crt", &e))?;
        config.resumption = Resumption::disabled();
        // Without ALPN: HTTP/1.1 is what etcd's peer port serves its plain paths in.
        Ok(Self { tls: Some(Arc::new(config)) })
    }

    /// For `http://` URLs alone.
    pub fn plain() -> Self {
        Self { tls: None }
    }

    /// GET of `path`: status and body.
    ///
    /// # Errors
    /// [`EtcdError::Unreachable`].
    pub async fn get(&self, url: &str, path: &str) -> Result<(u16, Bytes), EtcdError> {
        self.send(url, Request::get(path), Bytes::new()).await
    }

    /// GET of `path`, for as long as the caller waits, with the error as it came.
    ///
    /// # Errors
    /// The connection's, TLS's or HTTP's; the last are a [`hyper::Error`] inside.
    pub async fn ask(&self, url: &str, path: &str) -> io::Result<(u16, Bytes)> {
        self.attempt(url, Request::get(path), Bytes::new()).await
    }

    /// POST of a JSON body to the gateway; its answer.
    ///
    /// # Errors
    /// What failed.
    pub async fn call(&self, url: &str, path: &str, body: &Value) -> Result<Value, EtcdError> {
        let (status, answer) = self.send(url, Request::post(path), Bytes::from(body.to_string())).await?;
        if status != 200 {
            return Err(EtcdError::refused(url, status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|e| EtcdError::answer(url, e))
    }

    async fn send(
        &self,
        url: &str,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(u16, Bytes), EtcdError> {
        let failed = |reason: String| EtcdError::Unreachable { url: url.to_owned(), reason };
        match timeout(LIMIT, self.attempt(url, request, body)).await {
            Ok(answer) => answer.map_err(|e| failed(whole(&e))),
            Err(_) => Err(failed(format!("none within {} s", LIMIT.as_secs()))),
        }
    }

    async fn attempt(
        &self,
        url: &str,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> io::Result<(u16, Bytes)> {
        let endpoint = Endpoint::parse(url)?;
        let request = request
            .header("host", endpoint.authority())
            .header("connection", "close")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let stream = endpoint.connect().await?;
        if !endpoint.tls {
            return exchange(stream, request).await;
        }
        let Some(config) = &self.tls else { return Err(io::Error::other("no certificate to present")) };
        let stream = TlsConnector::from(Arc::clone(config)).connect(endpoint.server_name()?, stream).await?;
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<(u16, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end before its last answer is taken; its own error says more than the answer's.
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            answer.await
        }
    }
}

/// An error with its causes: hyper's own text alone says little.
pub(crate) fn whole(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.get_ref().and_then(std::error::Error::source);
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

impl EtcdError {
    pub(super) fn refused(url: &str, status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|v| ["message", "error", "reason"].iter().find_map(|k| v[*k].as_str().map(str::to_owned)))
            .filter(|m| !m.is_empty())
            .unwrap_or_else(|| text.trim().to_owned());
        let reason: String = message.chars().take(QUOTED).collect();
        let url = url.to_owned();
        if forbids(status, &reason) { Self::Forbidden { url, reason } } else { Self::Refused { url, status, reason } }
    }

    pub(super) fn answer(url: &str, error: impl Display) -> Self {
        Self::Answer { url: url.to_owned(), reason: error.to_string() }
    }
}

/// Whether an answer means that the gateway is not for us, now or later.
fn forbids(status: u16, reason: &str) -> bool {
    const WORDS: [&str; 5] = [
        // With auth on, a certificate's name is no user here: it would be the gateway's own.
        "CommonName of client sending a request against gateway will be ignored",
        "user name is empty",
        "permission denied",
        "invalid auth token",
        "client certificate authentication failed",
    ];
    (status == 404 && matches!(reason, "Not Found" | "404 page not found")) || WORDS.iter().any(|w| reason.contains(w))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_gateway_that_is_not_for_us_is_told_from_one_that_says_no() {
        // Answers of 3.4.23, 3.5.30 and 3.6.14.
        for (status, body, forbidden) in [
            (
                400,
                r#"{"error":"etcdserver: user name is empty","message":"etcdserver: user name is empty","code":3}"#,
                true,
            ),
            (400, r#"{"code":3, "message":"etcdserver: user name is empty"}"#, true),
            (
                400,
                r#"{"code":3, "message":"CommonName of client sending a request against gateway will be ignored and not used as expected"}"#,
                true,
            ),
            (404, "Not Found\n", true),
            (404, r#"{"code":5, "message":"Not Found"}"#, true),
            (404, "404 page not found\n", true),
            (404, r#"{"code":5,"message":"etcdserver: requested lease not found"}"#, false),
            (412, r#"{"error":"etcdserver: bad leader transferee","code":9}"#, false),
            (503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#, false),
        ] {
            let error = EtcdError::refused("https://x", status, body.as_bytes());
            assert_eq!(matches!(error, EtcdError::Forbidden { .. }), forbidden, "{error}");
        }
    }

    #[test]
    fn an_error_quotes_little_of_an_answer() {
        let error = EtcdError::refused("https://x", 500, "x".repeat(1 << 20).as_bytes());
        assert!(error.to_string().len() < 2 * QUOTED);
    }
}
