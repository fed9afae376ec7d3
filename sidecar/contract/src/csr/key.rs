//! A pod's private key, and the requests it signs.

use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, RsaKeySize, SanType};
use zeroize::{Zeroize as _, Zeroizing};

use super::read;
use crate::{encoding, key::KeyAlgorithm, san::Sans};

/// A private key that never prints. Made in the pod; leaves it only into its own memory-backed volume.
pub struct PrivateKey {
    pair: KeyPair,
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Makes a key pair of `algorithm`, from the operating system's randomness.
///
/// # Errors
/// The crypto library's.
pub fn generate_pair(algorithm: KeyAlgorithm) -> Result<KeyPair, rcgen::Error> {
    match algorithm {
        KeyAlgorithm::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyAlgorithm::Ed25519 => ed25519(),
        KeyAlgorithm::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyAlgorithm::Rsa3072 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        KeyAlgorithm::Rsa4096 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
    }
}

/// As PKCS#8 of version 1 (RFC 5208): OpenSSL 3.0 reads no version 2 (RFC 5958), which [`KeyPair::generate_for`] writes.
fn ed25519() -> Result<KeyPair, rcgen::Error> {
    let pair = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1());
    KeyPair::try_from(pair.map_err(|_| rcgen::Error::RingUnspecified)?.as_ref())
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The crypto library's.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, rcgen::Error> {
        Ok(Self { pair: generate_pair(algorithm)? })
    }

    /// Reads a PKCS#8 PEM key.
    ///
    /// # Errors
    /// Not such a key.
    pub fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        Ok(Self { pair: KeyPair::from_pem(pem)? })
    }

    /// The PKCS#8 PEM text, for the store alone.
    pub fn to_pem(&self) -> Zeroizing<String> {
        // Not rcgen's serialize_pem, which leaves copies behind that nobody wipes.
        encoding::pem("PRIVATE KEY", self.pair.serialized_der())
    }

    /// The PKCS#8 DER bytes, for the TLS library alone.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.serialize_der())
    }

    /// DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// The key's algorithm; `None` for one that we make no requests with (a P-521 key given by a user).
    pub fn algorithm(&self) -> Option<KeyAlgorithm> {
        read::key_algorithm(&self.public_key())
    }

    /// A PEM CERTIFICATE REQUEST for this key.
    ///
    /// # Errors
    /// The crypto library's, and names that are not ASCII.
    pub fn request(&self, organization: &str, common_name: &str, sans: &Sans) -> Result<String, rcgen::Error> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, organization);
        subject.push(DnType::CommonName, common_name);
        let names = sans.dns.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
        let ips = sans.ips.iter().map(|ip| Ok(SanType::IpAddress(*ip)));
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.subject_alt_names = names.chain(ips).collect::<Result<_, rcgen::Error>>()?;
        params.serialize_request(&self.pair)?.pem()
    }
}
