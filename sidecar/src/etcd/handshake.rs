//! The certificate that a TLS port serves, read from its handshake.
//!
//! etcd reads its leaf anew at each handshake and its trust bundle never again, so whether a renewal arrived shows in
//! the certificate it sends, and which CAs it has loaded in the CertificateRequest it sends. Both come before the
//! client's own certificate is judged; it is sent all the same, so that etcd's log shows no rejected connection.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_tls_contract::{certificate::serial, endpoint::Endpoint};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::{io::AsyncWriteExt, time};
use tokio_rustls::TlsConnector;
use x509_cert::{Certificate, der::Decode as _};

use crate::http::dial;

/// The result of a handshake with the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The leaf's serial number, as in [`etcd_tls_contract::certificate::Chain::serial`].
    pub serial: String,
    /// The leaf's DER.
    pub leaf: Vec<u8>,
    /// DER subjects of the CAs that the port takes client certificates of, in its order; `None` where it asks for no
    /// client certificate.
    pub trusted: Option<Vec<Vec<u8>>>,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Our own pair cannot be used.
    #[error("own certificate: {0}")]
    Identity(String),
    /// No connection.
    #[error("connect to {host} port {port}: {source}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// A connection, but no certificate.
    #[error("handshake with {host} port {port}: {source}")]
    Handshake {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// Neither within the time given.
    #[error("no handshake with {host} port {port} within {timeout:?}")]
    Timeout {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The time given.
        timeout: Duration,
    },
}

/// Makes a TLS handshake with `endpoint` once, without resumption (a resumed session shows the old leaf), and says what it showed.
/// Nothing is verified but that the port holds its leaf's key: judging is the caller's.
///
/// `identity` is a chain and a key in PEM for a port that asks for a client certificate.
///
/// # Errors
/// No connection, no TLS, or not within `timeout`.
pub async fn probe(
    endpoint: &Endpoint,
    identity: Option<(&str, &str)>,
    timeout: Duration,
) -> Result<Served, HandshakeError> {
    let Endpoint { host, port, .. } = endpoint.clone();
    match time::timeout(timeout, shake(endpoint, identity)).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeError::Timeout { host, port, timeout }),
    }
}

async fn shake(endpoint: &Endpoint, identity: Option<(&str, &str)>) -> Result<Served, HandshakeError> {
    let Endpoint { host, port, .. } = endpoint.clone();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let seen = Arc::new(Recorder {
        provider: Arc::clone(&provider),
        identity: identity.map(certified_key).transpose()?,
        leaf: Mutex::default(),
        trusted: Mutex::default(),
    });
    let handshake = |source| HandshakeError::Handshake { host: host.clone(), port, source };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| handshake(std::io::Error::other(e)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&seen) as Arc<dyn ResolvesClientCert>);
    config.resumption = Resumption::disabled();
    let name = ServerName::try_from(host.clone()).map_err(|e| handshake(std::io::Error::other(e)))?;
    let connect = |source| HandshakeError::Connect { host: host.clone(), port, source };
    let stream = dial(&host, port).await.map_err(connect)?;
    let finished = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let leaf = take(&seen.leaf);
    // With TLS 1.2 the server refuses a client certificate before the handshake ends; its own certificate was read before.
    match (finished, leaf) {
        (Ok(mut stream), Some(leaf)) => {
            let _ = stream.shutdown().await;
            served(leaf, &seen).map_err(handshake)
        }
        (Err(_), Some(leaf)) => served(leaf, &seen).map_err(handshake),
        (Err(source), None) => Err(handshake(source)),
        (Ok(_), None) => Err(handshake(std::io::Error::other("no certificate was sent"))),
    }
}

fn served(leaf: Vec<u8>, seen: &Recorder) -> Result<Served, std::io::Error> {
    let certificate = Certificate::from_der(&leaf).map_err(std::io::Error::other)?;
    let serial = serial(&certificate);
    Ok(Served { serial, leaf, trusted: take(&seen.trusted) })
}

fn certified_key((chain, key): (&str, &str)) -> Result<Arc<CertifiedKey>, HandshakeError> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| HandshakeError::Identity(e.to_string()))?;
    // The error is not shown: it could quote the key.
    let unreadable = || HandshakeError::Identity("the key cannot be used".to_owned());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| unreadable())?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| unreadable())?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put<T>(slot: &Mutex<Option<T>>, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
}

/// Takes any certificate and remembers it, and what CAs the server names.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    identity: Option<Arc<CertifiedKey>>,
    leaf: Mutex<Option<Vec<u8>>>,
    trusted: Mutex<Option<Vec<Vec<u8>>>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        put(&self.leaf, end_entity.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

impl ResolvesClientCert for Recorder {
    fn resolve(&self, root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        put(&self.trusted, root_hint_subjects.iter().map(|s| s.to_vec()).collect());
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        // Asked before the handshake begins: with false the CA names would never be shown to us.
        true
    }
}
