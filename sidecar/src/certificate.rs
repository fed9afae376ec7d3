//! Certificates and bundles as values: read strictly, compared, verified as a peer would.

use std::time::SystemTime;

use crate::{role::Role, settings::Sans};

/// A trust bundle: CA certificates, without duplicates, in the order of their digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// DER certificates.
    certificates: Vec<Vec<u8>>,
}

/// A certificate chain, leaf first, with what we need to know of the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// DER certificates, leaf first.
    pub certificates: Vec<Vec<u8>>,
    /// The leaf's serial number, as lower-case hexadecimal digits without leading zeros.
    pub serial: String,
    /// The leaf's notBefore.
    pub not_before: SystemTime,
    /// The leaf's notAfter.
    pub not_after: SystemTime,
    /// The leaf's subject CN.
    pub common_name: String,
    /// The leaf's names.
    pub sans: Sans,
    /// The leaf's DER SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

/// Why a certificate, chain or bundle is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub String);

impl Bundle {
    /// Reads PEM certificates; other text between blocks is passed over, other PEM blocks are refused (etcd exits on
    /// them), and so are an empty bundle, one over 1 MiB, and certificates that are no CA.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(pem: &[u8]) -> Result<Self, CertificateError> {
        let _ = pem;
        todo!()
    }

    /// The canonical PEM text.
    pub fn to_pem(&self) -> String {
        todo!()
    }

    /// The bundle's digest, the value of [`crate::names::TRUSTS_ANNOTATION`]: 32 lower-case hexadecimal digits, the same
    /// for the same set of certificates.
    pub fn digest(&self) -> String {
        let _ = &self.certificates;
        todo!()
    }

    /// Each certificate's DER subject, for comparison with what a TLS server's CertificateRequest names.
    pub fn subjects(&self) -> Vec<Vec<u8>> {
        todo!()
    }

    /// DER certificates.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }
}

impl Chain {
    /// Reads a PEM chain, leaf first.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(pem: &[u8]) -> Result<Self, CertificateError> {
        let _ = pem;
        todo!()
    }

    /// Verifies the chain against `bundle` at `now` as the role's peers would (webpki; serverAuth and clientAuth for peer
    /// and server, clientAuth for client and metrics), that it is for `public_key`, and that its names hold all of
    /// `asked`.
    ///
    /// # Errors
    /// What a peer would refuse.
    pub fn verify(
        &self,
        role: Role,
        bundle: &Bundle,
        public_key: &[u8],
        asked: &Sans,
        now: SystemTime,
    ) -> Result<(), CertificateError> {
        let _ = (role, bundle, public_key, asked, now);
        todo!()
    }
}
