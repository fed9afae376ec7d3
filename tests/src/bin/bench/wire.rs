//! HTTP/1.1 over TLS on kept connections, one request at a time each: the load on both sides of a comparison.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Handshakes at once while connections are opened ahead of a measurement.
const HANDSHAKES: usize = 16;

/// The content of a call.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) content_type: &'static str,
    pub(crate) token: Option<Arc<str>>,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        let path = path.into();
        Self { method: Method::GET, path, content_type: "application/json", token: None, body: Bytes::new() }
    }

    pub(crate) fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, body: body.into(), ..Self::get(path) }
    }

    /// A merge patch.
    pub(crate) fn patch(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::PATCH, content_type: "application/merge-patch+json", ..Self::post(path, body) }
    }

    pub(crate) fn token(mut self, token: &Arc<str>) -> Self {
        self.token = Some(Arc::clone(token));
        self
    }
}

/// A kept connection, made again when the server has closed it.
pub(crate) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Wire {
    pub(crate) async fn open(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Self, String> {
        let sender = connect(address, Arc::clone(&config)).await?;
        Ok(Self { sender, address, config })
    }

    /// Tries until the server listens.
    pub(crate) async fn open_when_up(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<Self, String> {
        let began = Instant::now();
        loop {
            match Self::open(address, Arc::clone(config)).await {
                Ok(wire) => return Ok(wire),
                Err(e) if began.elapsed() > START_LIMIT => return Err(format!("{address}: {e}")),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// `count` of them.
    pub(crate) async fn open_many(
        count: usize,
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> Result<Vec<Self>, String> {
        let mut wires = Vec::with_capacity(count);
        while wires.len() < count {
            let some = HANDSHAKES.min(count - wires.len());
            let opened = join_all((0..some).map(|_| Self::open(address, Arc::clone(config)))).await;
            for wire in opened {
                wires.push(wire?);
            }
        }
        Ok(wires)
    }

    /// One call, with its answer whole.
    pub(crate) async fn call(&mut self, call: &Call) -> Result<(StatusCode, Bytes), String> {
        let answer = async {
            if self.sender.ready().await.is_err() {
                self.sender = connect(self.address, Arc::clone(&self.config)).await?;
            }
            match self.sender.send_request(self.request(call)?).await {
                Ok(answer) => read(answer).await,
                // The server closes a connection just as it is used, now and then.
                Err(e) if e.is_canceled() || e.is_closed() || e.is_incomplete_message() => {
                    self.sender = connect(self.address, Arc::clone(&self.config)).await?;
                    read(self.sender.send_request(self.request(call)?).await.map_err(|e| e.to_string())?).await
                }
                Err(e) => Err(e.to_string()),
            }
        };
        timeout(CALL_LIMIT, answer).await.map_err(|_| format!("no answer within {CALL_LIMIT:?}"))?
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, String> {
        let host = self.address.to_string();
        let mut request = Request::builder().method(&call.method).uri(&call.path).header("host", host);
        if !call.body.is_empty() {
            request = request.header("content-type", call.content_type);
        }
        if let Some(token) = &call.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::new(call.body.clone())).map_err(|e| e.to_string())
    }

    /// One call whose answer must be a success; its body.
    pub(crate) async fn succeed(&mut self, call: &Call) -> Result<Bytes, String> {
        let (status, body) = self.call(call).await?;
        if status.is_success() {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        Err(format!("{} {}: {status}: {}", call.method, call.path, text.chars().take(300).collect::<String>()))
    }
}

async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn read(answer: Response<Incoming>) -> Result<(StatusCode, Bytes), String> {
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok((status, body))
}

/// Calls again and again on every wire for `time`; the answers of `expected` status a second.
pub(crate) async fn throughput(
    wires: &mut [Wire],
    call: &Call,
    expected: StatusCode,
    time: Duration,
) -> Result<f64, String> {
    let began = Instant::now();
    let counts = join_all(wires.iter_mut().map(|wire| async move {
        let mut count = 0_u64;
        while began.elapsed() < time {
            let (status, body) = wire.call(call).await?;
            if status != expected {
                return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            count += 1;
        }
        Ok(count)
    }))
    .await;
    let took = began.elapsed().as_secs_f64();
    let total: u64 = counts.into_iter().sum::<Result<u64, String>>()?;
    Ok(total as f64 / took)
}
