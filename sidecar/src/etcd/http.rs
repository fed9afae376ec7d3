//! One request, one connection: a rotated leaf is then always the one presented, and a resumed session never hides
//! which certificate was. A server whose certificate is on the revocation list beside our own is not spoken to.

use std::{fmt::Display, fs, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_tls_contract::{
    crl::{Crl, dialled::refuse_revoked},
    endpoint::Endpoint,
    names,
};
use http_body_util::Full;
use hyper::Request;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::http;

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
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// No answer: no connection, a TLS failure, or too late.
    #[error("{url}: no answer: {reason}")]
    Unreachable {
        /// The URL that was called.
        url: String,
        /// Why.
        reason: String,
    },
    /// The gateway is off, or does not let us in (etcd's auth, allowed hostnames). Trying again changes nothing.
    #[error("{url}: the JSON gateway does not serve us: {reason}")]
    Forbidden {
        /// The URL that was called.
        url: String,
        /// Why.
        reason: String,
    },
    /// An answer that says no.
    #[error("{url}: {status}: {reason}")]
    Refused {
        /// The URL that was called.
        url: String,
        /// The HTTP status.
        status: u16,
        /// etcd's message.
        reason: String,
    },
    /// An answer that cannot be read.
    #[error("{url}: an answer that cannot be read: {reason}")]
    Answer {
        /// The URL that was called.
        url: String,
        /// Why.
        reason: String,
    },
}

impl Client {
    /// Presents `<dir>/tls.crt` and trusts `<dir>/ca.crt`, but for the certificates on `<dir>/ca.crl` where that is there, as they
    /// are now. As etcd judges its clients, a server is judged by serial number alone.
    ///
    /// # Errors
    /// [`EtcdError::Files`]; a list that cannot be read is one, as etcd, too, accepts nobody then.
    pub fn from_dir(dir: &Path) -> Result<Self, EtcdError> {
        // By way of the links once, so that the files are of one generation. One that is swept meanwhile has a successor: what
        // it lacked may be there.
        let resolved = || fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        let generation = resolved();
        match Self::from_generation(&generation) {
            Ok(client) if resolved() == generation => Ok(client),
            _ => Self::from_generation(&resolved()),
        }
    }

    fn from_generation(dir: &Path) -> Result<Self, EtcdError> {
        let failed = |name: &str, e: &dyn Display| EtcdError::Files {
            path: dir.join(name).display().to_string(),
            reason: e.to_string(),
        };
        let read = |name: &str| fs::read(dir.join(name)).map_err(|e| failed(name, &e));
        let (cert, key, ca) = (read("tls.crt")?, zeroize::Zeroizing::new(read("tls.key")?), read("ca.crt")?);
        let list = match fs::read(dir.join(names::CRL_FILE)) {
            Ok(der) => Some(Crl::parse(&der).map_err(|e| failed(names::CRL_FILE, &e))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(names::CRL_FILE, &error)),
        };
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(&ca) {
            roots.add(anchor.map_err(|e| failed("ca.crt", &e))?).map_err(|e| failed("ca.crt", &e))?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>().map_err(|e| failed("tls.crt", &e))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| failed("tls.key", &e))?;
        let config = http::tls(aws_lc_rs::default_provider(), roots.clone(), Some((chain, key)));
        let mut config = config.map_err(|e| failed("tls.crt", &e))?;
        if let Some(list) = list {
            refuse_revoked(&mut config, roots, list).map_err(|e| failed("ca.crt", &e))?;
        }
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
    pub async fn get(&self, endpoint: &Endpoint, path: &str) -> Result<(u16, Bytes), EtcdError> {
        self.send(endpoint, Request::get(path), Bytes::new()).await
    }

    /// GET of `path`, for as long as the caller waits, with the error as it came.
    ///
    /// # Errors
    /// The connection's, TLS's or HTTP's; the last are a [`hyper::Error`] inside.
    pub async fn ask(&self, endpoint: &Endpoint, path: &str) -> io::Result<(u16, Bytes)> {
        self.attempt(endpoint, Request::get(path), Bytes::new()).await
    }

    /// POST of a JSON body to the gateway; its answer.
    ///
    /// # Errors
    /// The failure.
    pub async fn call(&self, endpoint: &Endpoint, path: &str, body: &Value) -> Result<Value, EtcdError> {
        let (status, answer) = self.send(endpoint, Request::post(path), Bytes::from(body.to_string())).await?;
        if status != 200 {
            return Err(EtcdError::refused(endpoint, status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|e| EtcdError::answer(endpoint, e))
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(u16, Bytes), EtcdError> {
        let failed = |reason: String| EtcdError::Unreachable { url: endpoint.to_string(), reason };
        match timeout(LIMIT, self.attempt(endpoint, request, body)).await {
            Ok(answer) => answer.map_err(|e| failed(http::with_causes(&e))),
            Err(_) => Err(failed(format!("none within {} s", LIMIT.as_secs()))),
        }
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> io::Result<(u16, Bytes)> {
        let request = request
            .header("host", endpoint.authority())
            .header("connection", "close")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let Endpoint { host, port, .. } = endpoint;
        if !endpoint.tls {
            return once(http::dial(host, *port).await?, request).await;
        }
        let Some(config) = &self.tls else { return Err(io::Error::other("no certificate to present")) };
        once(http::dial_tls(host, *port, host, Arc::clone(config)).await?, request).await
    }
}

/// One request on a connection of its own.
async fn once<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<(u16, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http::begin(stream).await?;
    let answer = http::exchange(&mut sender, request, MAX_ANSWER);
    tokio::pin!(answer, connection);
    let (head, body) = tokio::select! {
        answer = &mut answer => answer?,
        // The connection may end before its last answer is taken; its own error says more than the answer's.
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            answer.await?
        }
    };
    Ok((head.status.as_u16(), body))
}

impl EtcdError {
    pub(super) fn refused(endpoint: &Endpoint, status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|v| ["message", "error", "reason"].iter().find_map(|k| v[*k].as_str().map(str::to_owned)))
            .filter(|m| !m.is_empty())
            .unwrap_or_else(|| text.trim().to_owned());
        let reason: String = message.chars().take(QUOTED).collect();
        let url = endpoint.to_string();
        if forbids(status, &reason) { Self::Forbidden { url, reason } } else { Self::Refused { url, status, reason } }
    }

    pub(super) fn answer(endpoint: &Endpoint, error: impl Display) -> Self {
        Self::Answer { url: endpoint.to_string(), reason: error.to_string() }
    }
}

/// True if an answer means that the gateway is not for us, now or later.
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
            let error = EtcdError::refused(&"https://x".parse().unwrap(), status, body.as_bytes());
            assert_eq!(matches!(error, EtcdError::Forbidden { .. }), forbidden, "{error}");
        }
    }

    #[test]
    fn an_error_quotes_little_of_an_answer() {
        let error = EtcdError::refused(&"https://x".parse().unwrap(), 500, "x".repeat(1 << 20).as_bytes());
        assert!(error.to_string().len() < 2 * QUOTED);
    }
}
