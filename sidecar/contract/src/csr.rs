//! PKCS#10 requests: built from an entitlement's values, and read so strictly that what we accept, Go accepts too and
//! reads the same.
//!
//! A kube-apiserver is no filter for a custom signer: it stores two PEM blocks, text around them, SHA-1, `CA:TRUE` and
//! more. So the reader here takes exactly what [`PrivateKey::request`] writes and its like, and nothing else.

mod key;
mod read;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest;

pub use self::key::{PrivateKey, generate_pair};
use crate::{encoding::hex, key::KeyAlgorithm, san::Sans};

/// The longest request that is read, in bytes of PEM. An RSA-4096 request with a dozen names is half of it; the API
/// server itself takes 1.3 MB.
pub const MAX_REQUEST: usize = 4096;

/// A certificate signing request, strictly read: one PEM block, strict DER, its self-signature verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The subject's O.
    pub organization: String,
    /// The subject's CN.
    pub common_name: String,
    /// The subject alternative names.
    pub sans: Sans,
    /// The key's algorithm and size.
    pub key: KeyAlgorithm,
    /// The key: DER SubjectPublicKeyInfo. The only bytes of a request that ever reach a certificate.
    pub public_key: Vec<u8>,
}

/// Why a request is refused; one bounded word and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CsrError {
    /// One CamelCase word of a fixed set.
    pub reason: &'static str,
    /// The fault.
    pub message: String,
}

impl Request {
    /// Reads `spec.request`: the PEM text of one CERTIFICATE REQUEST of at most [`MAX_REQUEST`] bytes.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, CsrError> {
        read::request(pem)
    }

    /// The digest of the public key that [`crate::names::csr_name`] takes: the first 128 bits of the SHA-256 of
    /// [`Self::public_key`], as 32 lower-case hexadecimal digits.
    pub fn key_digest(&self) -> String {
        key_digest(&self.public_key)
    }
}

/// The algorithm of a DER SubjectPublicKeyInfo, if it is one that policy can allow.
pub fn key_algorithm(public_key: &[u8]) -> Option<KeyAlgorithm> {
    read::key_algorithm(public_key)
}

/// The DER SubjectPublicKeyInfo of a PKCS#10 request in DER. Nothing else of the request is read, and its signature is not
/// verified: kube-apiserver does both before it stores a PodCertificateRequest. `None`: it is no such request.
pub fn public_key_of_stub(der: &[u8]) -> Option<Vec<u8>> {
    read::public_key(der)
}

/// See [`Request::key_digest`].
pub fn key_digest(public_key: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, public_key).as_ref()[..16])
}
