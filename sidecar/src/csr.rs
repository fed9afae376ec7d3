//! PKCS#10 requests: built from an entitlement's values, and read so strictly that what we accept, Go accepts too and
//! reads the same.

use crate::settings::{KeyAlgorithm, Sans};

/// A certificate signing request, strictly read: one PEM block, strict DER, its self-signature verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The subject's O values, in order.
    pub organizations: Vec<String>,
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
pub struct RequestError {
    /// One CamelCase word of a fixed set.
    pub reason: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl Request {
    /// Reads `spec.request`: the PEM text of one CERTIFICATE REQUEST.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let _ = pem;
        todo!()
    }

    /// The digest of the public key that [`crate::names::csr_name`] takes: the first 128 bits of the SHA-256 of
    /// [`Self::public_key`], as 32 lower-case hexadecimal digits.
    pub fn key_digest(&self) -> String {
        key_digest(&self.public_key)
    }
}

/// See [`Request::key_digest`].
pub fn key_digest(public_key: &[u8]) -> String {
    let _ = public_key;
    todo!()
}

/// A private key that never prints. Made in the pod; leaves it only into its own memory-backed volume.
pub struct PrivateKey {
    pair: rcgen::KeyPair,
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The crypto library's.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, rcgen::Error> {
        let _ = algorithm;
        todo!()
    }

    /// Reads a PKCS#8 PEM key.
    ///
    /// # Errors
    /// Not such a key.
    pub fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        let _ = pem;
        todo!()
    }

    /// The PKCS#8 PEM text, for the store alone.
    pub fn to_pem(&self) -> zeroize::Zeroizing<String> {
        let _ = &self.pair;
        todo!()
    }

    /// DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        todo!()
    }

    /// A PEM CERTIFICATE REQUEST for this key.
    ///
    /// # Errors
    /// The crypto library's.
    pub fn request(&self, organization: &str, common_name: &str, sans: &Sans) -> Result<String, rcgen::Error> {
        let _ = (organization, common_name, sans);
        todo!()
    }
}
