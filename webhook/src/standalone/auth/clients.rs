//! Client certificates: verified against a CA file that may change under the running server.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::platform::tls::client_verifier;

/// Why a client CA file is not taken.
#[derive(Debug, thiserror::Error)]
#[error("client CA file {path}: {message}")]
pub struct ClientCaError {
    path: String,
    message: String,
}

/// Verifies the certificates of clients that have one, against the file as it was last read.
#[derive(Debug)]
pub struct ClientCas {
    path: PathBuf,
    current: RwLock<Arc<dyn ClientCertVerifier>>,
    schemes: Vec<SignatureScheme>,
}

impl ClientCas {
    /// Reads the file.
    ///
    /// # Errors
    /// It holds no CA.
    pub fn read(path: PathBuf) -> Result<Arc<Self>, ClientCaError> {
        let verifier = verifier(&path)?;
        let schemes = verifier.supported_verify_schemes();
        Ok(Arc::new(Self { path, current: RwLock::new(verifier), schemes }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again; one that cannot be taken leaves the last good one in force, and says so. A connection keeps
    /// the identity it was made with.
    pub fn reload(&self) {
        match verifier(&self.path) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(file = %self.path.display(), "client CA file read again");
            }
            Err(error) => {
                tracing::error!(%error, "the client CA file cannot be taken; the last good one stays in force");
            }
        }
    }

    fn current(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let error = |message: String| ClientCaError { path: path.display().to_string(), message };
    let pem = std::fs::read(path).map_err(|e| error(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| error(e.to_string()))?;
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    client_verifier(roots, false).map_err(|e| error(e.to_string()))
}

impl ClientCertVerifier for ClientCas {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a client then sends the certificate it has, whichever CAs are trusted by now.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
