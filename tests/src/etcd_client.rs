//! A small etcd client over its JSON gateway: HTTP/1.1 on one kept connection or a new one each time, TLS with files read
//! anew at each connection. It shows every failure: nothing is tried again.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::pki;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError(pub String);

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ClientError {}

fn failed(what: &str, e: impl fmt::Display) -> ClientError {
    ClientError(format!("{what}: {e}"))
}

/// The client's identity: none over plain http, or that of a role directory.
#[derive(Clone, Debug)]
pub struct EtcdClient {
    files: Option<PathBuf>,
}

/// One connection to one member.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    /// The serial number of the certificate that the server showed, lower-case hexadecimal; empty over plain http.
    pub serial: String,
}

impl EtcdClient {
    /// For http URLs.
    pub fn plain() -> Self {
        Self { files: None }
    }

    /// Presents `dir`'s `tls.crt` and `tls.key` and trusts its `ca.crt`, read again for each connection.
    pub fn with_files(dir: &Path) -> Self {
        Self { files: Some(dir.to_owned()) }
    }

    /// Connects to `http(s)://<ip>:<port>`.
    ///
    /// # Errors
    /// The failure.
    pub async fn connect(&self, url: &str) -> Result<Connection, ClientError> {
        let config = match &self.files {
            Some(dir) if url.starts_with("https:") => Some(read_config(dir)?),
            _ => None,
        };
        Connection::open(url, config).await
    }

    /// Whether `/health` at `url` says that the member reaches quorum.
    ///
    /// # Errors
    /// etcd's reason.
    pub async fn healthy(&self, url: &str) -> Result<(), ClientError> {
        let body = self.connect(url).await?.get("/health").await?;
        if body.contains(r#""health":"true""#) { Ok(()) } else { Err(ClientError(body)) }
    }

    /// Writes a key over a new connection.
    ///
    /// # Errors
    /// The failure.
    pub async fn put(&self, url: &str, key: &str, value: &str) -> Result<(), ClientError> {
        self.connect(url).await?.put(key, value).await.map(|_| ())
    }

    /// Reads a key, linearizably, over a new connection.
    ///
    /// # Errors
    /// The failure.
    pub async fn get(&self, url: &str, key: &str) -> Result<Option<String>, ClientError> {
        self.connect(url).await?.range(key).await
    }
}

impl Connection {
    /// Connects to `http(s)://<ip>:<port>`, over TLS with `config`.
    ///
    /// # Errors
    /// The failure.
    pub async fn open(url: &str, config: Option<Arc<rustls::ClientConfig>>) -> Result<Self, ClientError> {
        timeout(REQUEST_LIMIT, Self::open_unbounded(url, config)).await.map_err(|e| failed(url, e))?
    }

    async fn open_unbounded(url: &str, config: Option<Arc<rustls::ClientConfig>>) -> Result<Self, ClientError> {
        let (scheme, authority) = url.split_once("://").ok_or_else(|| failed(url, "no URL"))?;
        let address: SocketAddr = authority.parse().map_err(|e| failed(url, e))?;
        let tcp = TcpStream::connect(address).await.map_err(|e| failed(&format!("connect {url}"), e))?;
        tcp.set_nodelay(true).map_err(|e| failed("nodelay", e))?;
        let authority = authority.to_owned();
        if scheme == "http" {
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| failed(url, e))?;
            tokio::spawn(connection);
            return Ok(Self { sender, authority, serial: String::new() });
        }
        let config = config.ok_or_else(|| failed(url, "https needs files"))?;
        let name = ServerName::IpAddress(address.ip().into());
        let tls = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|e| failed(&format!("TLS handshake with {url}"), e))?;
        let serial = tls.get_ref().1.peer_certificates().and_then(|c| c.first()).map(serial_of).unwrap_or_default();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| failed(url, e))?;
        tokio::spawn(connection);
        Ok(Self { sender, authority, serial })
    }

    /// GET of a path.
    ///
    /// # Errors
    /// The failure; a status other than 200 is one.
    pub async fn get(&mut self, path: &str) -> Result<String, ClientError> {
        self.send(Request::get(path), Bytes::new()).await
    }

    /// Writes a key; the revision of the write.
    ///
    /// # Errors
    /// The failure.
    pub async fn put(&mut self, key: &str, value: &str) -> Result<u64, ClientError> {
        let body = json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)});
        let answer = self.post("/v3/kv/put", &body).await?;
        revision(&answer["header"]["revision"]).ok_or_else(|| ClientError(format!("no revision: {answer}")))
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// The failure.
    pub async fn range(&mut self, key: &str) -> Result<Option<String>, ClientError> {
        let answer = self.post("/v3/kv/range", &json!({"key": STANDARD.encode(key)})).await?;
        let Some(value) = answer["kvs"][0]["value"].as_str() else { return Ok(None) };
        let bytes = STANDARD.decode(value).map_err(|e| failed("base64", e))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Every key with `prefix`, and its value.
    ///
    /// # Errors
    /// The failure.
    pub async fn list(&mut self, prefix: &str) -> Result<BTreeMap<String, String>, ClientError> {
        let body = json!({"key": STANDARD.encode(prefix), "range_end": STANDARD.encode(after(prefix))});
        let answer = self.post("/v3/kv/range", &body).await?;
        let all = answer["kvs"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().map(|kv| (decoded(&kv["key"]), decoded(&kv["value"]))).collect())
    }

    /// Starts a watch of all keys with `prefix` from `revision` on; each item is one event's key, value and revision.
    ///
    /// # Errors
    /// The failure.
    pub async fn watch(mut self, prefix: &str, start_revision: u64) -> Result<Watch, ClientError> {
        let body = json!({"create_request": {
            "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(after(prefix)), "start_revision": start_revision.to_string(),
        }});
        let request = Request::post("/v3/watch")
            .header("host", &self.authority)
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|e| failed("watch", e))?;
        let response = self.sender.send_request(request).await.map_err(|e| failed("watch", e))?;
        Ok(Watch { _sender: self.sender, body: response.into_body(), buffer: Vec::new() })
    }

    /// POST of a JSON body.
    ///
    /// # Errors
    /// The failure.
    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let text = self.send(Request::post(path), Bytes::from(body.to_string())).await?;
        serde_json::from_str(&text).map_err(|e| failed(&text, e))
    }

    async fn send(&mut self, request: hyper::http::request::Builder, body: Bytes) -> Result<String, ClientError> {
        let request = request
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| failed("request", e))?;
        let answer = async {
            // The end of the answer before may have reached us, and not yet the connection's own task.
            self.sender.ready().await.map_err(|e| failed("connection", e))?;
            let response = self.sender.send_request(request).await.map_err(|e| failed("request", e))?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(|e| failed("answer", e))?.to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if status.is_success() { Ok(text) } else { Err(ClientError(format!("{status}: {text}"))) }
        };
        timeout(REQUEST_LIMIT, answer).await.map_err(|e| failed("request", e))?
    }
}

/// One watched change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The revision of the change.
    pub revision: u64,
}

/// A watch stream that ends only with an error.
pub struct Watch {
    _sender: SendRequest<Full<Bytes>>,
    body: hyper::body::Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next events.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn next(&mut self) -> Result<Vec<Event>, ClientError> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                let answer: Value = serde_json::from_slice(&line).map_err(|e| failed("watch", e))?;
                if !answer["error"].is_null() {
                    return Err(ClientError(answer.to_string()));
                }
                let events = answer["result"]["events"].as_array().cloned().unwrap_or_default();
                return Ok(events
                    .iter()
                    .map(|e| Event {
                        key: decoded(&e["kv"]["key"]),
                        value: decoded(&e["kv"]["value"]),
                        revision: revision(&e["kv"]["mod_revision"]).unwrap_or_default(),
                    })
                    .collect());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d.as_ref())),
                Some(Err(e)) => return Err(failed("watch", e)),
                None => return Err(ClientError("the watch stream ended".into())),
            }
        }
    }
}

/// Handshakes with `url` and gives the serial number of the certificate shown, without a certificate of its own where
/// `files` is none (the handshake then still gets as far as the server's certificate under TLS 1.3).
///
/// # Errors
/// The failure.
pub async fn served_serial(url: &str, files: &Path) -> Result<String, ClientError> {
    EtcdClient::with_files(files).connect(url).await.map(|c| c.serial)
}

/// The answer of etcd's client or peer port to a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answers a request.
    Taken,
    /// It ends the handshake with an alert of TLS, or the connection right after the handshake, as etcd does where a list refuses the
    /// certificate (etcd `tlsListener.check`).
    Refused,
    /// Neither, and why: a busy etcd, or one that has ended, refuses no certificate.
    Unknown(String),
}

/// The answer of etcd's client or peer port at `url` to the certificate in `files`. Under TLS 1.3 a server refuses one when the
/// handshake is over for its client, so something is asked.
pub async fn answer(url: &str, files: &Path) -> Answer {
    match timeout(REQUEST_LIMIT, first_bytes(url, files)).await {
        Ok(Ok(bytes)) if bytes.starts_with(b"HTTP/1.1 200") => Answer::Taken,
        Ok(Ok(bytes)) => Answer::Unknown(format!("{:?}", String::from_utf8_lossy(&bytes))),
        Ok(Err((shaken, error))) => {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            let alert = matches!(cause, Some(rustls::Error::AlertReceived(_)));
            let ended = matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            );
            if alert || (shaken && ended) { Answer::Refused } else { Answer::Unknown(error.to_string()) }
        }
        Err(_) => Answer::Unknown(format!("no answer within {REQUEST_LIMIT:?}")),
    }
}

/// Whether [`answer`] is [`Answer::Taken`].
pub async fn takes(url: &str, files: &Path) -> bool {
    answer(url, files).await == Answer::Taken
}

/// How the answer to a request begins.
///
/// # Errors
/// Whether the handshake was over, and what failed.
async fn first_bytes(url: &str, files: &Path) -> Result<Vec<u8>, (bool, io::Error)> {
    let before = |error: io::Error| (false, error);
    let config = read_config(files).map_err(|error| before(io::Error::other(error)))?;
    let authority =
        url.strip_prefix("https://").ok_or_else(|| before(io::Error::other(format!("{url} is not https"))))?;
    let address: SocketAddr = authority.parse().map_err(|error| before(io::Error::other(error)))?;
    let tcp = TcpStream::connect(address).await.map_err(before)?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut tls = TlsConnector::from(config).connect(name, tcp).await.map_err(before)?;
    let request = format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    // An alert may be there already, and the connection be closed: the answer is read in any case.
    let written = match tls.write_all(request.as_bytes()).await {
        Ok(()) => tls.flush().await,
        Err(error) => Err(error),
    };
    let mut bytes = vec![0; 64];
    let read = tls.read(&mut bytes).await.map_err(|error| (true, error))?;
    bytes.truncate(read);
    if read > 0 {
        return Ok(bytes);
    }
    Err((true, written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())))
}

/// A DER certificate's serial number, lower-case hexadecimal without leading zeros.
pub fn serial_of(cert: &CertificateDer<'_>) -> String {
    use x509_cert::der::Decode;
    let Ok(certificate) = x509_cert::Certificate::from_der(cert) else { return String::new() };
    let hex: String =
        certificate.tbs_certificate().serial_number().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    hex.trim_start_matches('0').to_owned()
}

/// The end of the range of all keys with `prefix`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A base64 text of etcd's JSON; nothing where there is none, since it leaves empty fields out.
fn decoded(value: &Value) -> String {
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn revision(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

/// A generation may be swapped out and removed while it is read; the next one is there then.
fn read_config(dir: &Path) -> Result<Arc<rustls::ClientConfig>, ClientError> {
    pki::client_config_of(dir).or_else(|_| pki::client_config_of(dir)).map_err(ClientError)
}
