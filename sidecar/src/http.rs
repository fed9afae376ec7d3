//! HTTP/1.1 over one connection, shared by the client of the API server and the client of etcd.

use std::{error::Error, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The buffer of a connection; it also bounds a response's head.
const MAX_BUFFER: usize = 64 * 1024;

/// Sends the requests of one connection.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// A client certificate: its chain and key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// TLS that trusts `roots` and presents `identity`. No session is resumed: a resumed one would hide which certificate is
/// in use now.
///
/// # Errors
/// Key and certificate do not belong together.
pub(crate) fn tls(
    provider: CryptoProvider,
    roots: RootCertStore,
    identity: Option<Identity>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The silence after which the peer is probed, the time between probes, and the probes without an answer after which the
/// connection is dead: a minute and a half in all.
const SILENCE: Duration = Duration::from_secs(30);
const BETWEEN_PROBES: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// Opens a TCP connection to a name or an address (without brackets).
///
/// # Errors
/// The system's.
pub(crate) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    Ok(stream)
}

/// Has the kernel find out whether the peer is still there: a watch is silent for minutes.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(SILENCE).with_interval(BETWEEN_PROBES).with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Opens a TLS connection to a server whose certificate must hold `name`.
///
/// # Errors
/// `name` is neither a DNS name nor an address; the system's; the handshake's.
pub(crate) async fn dial_tls(
    host: &str,
    port: u16,
    name: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    TlsConnector::from(config).connect(name, dial(host, port).await?).await
}

/// Begins HTTP on a connection. The second value must be polled for the connection to work; it ends when the server closes
/// it or the sender is dropped.
///
/// # Errors
/// hyper's, inside an [`io::Error`].
pub(crate) async fn begin<S>(
    stream: S,
) -> io::Result<(Sender, impl Future<Output = hyper::Result<()>> + Send + 'static)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
}

/// Sends a request, and reads its response to the end, which is at most `most` bytes of body away.
///
/// # Errors
/// The connection's; the last are a [`hyper::Error`] inside.
pub(crate) async fn exchange(
    sender: &mut Sender,
    request: Request<Full<Bytes>>,
    most: usize,
) -> io::Result<(Parts, Bytes)> {
    let (head, body) = open(sender, request).await?;
    Ok((head, whole(body, most).await?))
}

/// Sends a request, and reads the head of its response.
///
/// # Errors
/// The connection's; the last are a [`hyper::Error`] inside.
pub(crate) async fn open(sender: &mut Sender, request: Request<Full<Bytes>>) -> io::Result<(Parts, Incoming)> {
    sender.ready().await.map_err(io::Error::other)?;
    Ok(sender.send_request(request).await.map_err(io::Error::other)?.into_parts())
}

/// Reads a body to the end, which is at most `most` bytes away.
///
/// # Errors
/// The connection's; the last are a [`hyper::Error`] inside.
pub(crate) async fn whole(body: Incoming, most: usize) -> io::Result<Bytes> {
    Ok(Limited::new(body, most).collect().await.map_err(io::Error::other)?.to_bytes())
}

/// An error with its causes: hyper's own text alone says little.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
