//! The certificates of servers that are dialled, compared with a revocation list: by serial number alone, each certificate that
//! is shown, as etcd compares those of its clients. etcd itself compares no certificate of a server.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use webpki::EndEntityCert;

use super::Crl;
use crate::encoding::hex;

/// A server shows a certificate that is on the list.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate is revoked: serial number {serial} is on revocation list {number}")]
pub struct RevokedServer {
    /// The serial number, in the form of [`crate::certificate::serial`].
    pub serial: String,
    /// [`Crl::number`] of the list.
    pub number: u64,
}

/// As the message: rustls shows the errors of others by their `Debug` alone.
impl fmt::Debug for RevokedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Has connections by `config`, which trusts `roots`, refuse servers that show a certificate on `list`. The handshake then fails
/// with a [`RevokedServer`].
///
/// # Errors
/// `roots` is empty.
pub fn refuse_revoked(config: &mut ClientConfig, roots: RootCertStore, list: Crl) -> Result<(), Error> {
    let provider = Arc::clone(config.crypto_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let inner = inner.map_err(|error| Error::General(error.to_string()))?;
    config.dangerous().set_certificate_verifier(Arc::new(Verifier { inner, list }));
    Ok(())
}

/// Accepts the certificates that `inner` verifies, unless they are on the list.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    list: Crl,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        for shown in [end_entity].into_iter().chain(intermediates) {
            let certificate = EndEntityCert::try_from(shown).map_err(|_| CertificateError::BadEncoding)?;
            let digits = hex(certificate.serial());
            let serial = digits.trim_start_matches('0');
            if self.list.entries().contains_key(serial) {
                let revoked = RevokedServer { serial: serial.to_owned(), number: self.list.number() };
                return Err(CertificateError::Other(OtherError(Arc::new(revoked))).into());
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
