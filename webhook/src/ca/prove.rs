//! Makes authorities: generated, or read from files of the user. Each is tried by a trial issue before it signs.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::{certificate::Chain, csr::generate_pair, key::KeyAlgorithm, life::BACKDATE};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;
use time::OffsetDateTime;
use x509_cert::{Certificate, der::Decode as _};
use zeroize::Zeroizing;

use crate::ca::{
    authority::{Authority, AuthorityError, pair_of, read_key},
    der,
    issue::trial,
};

/// How far a CA's notBefore lies before its making at the least, for verifiers whose clock is late.
const CA_BACKDATE: Duration = Duration::from_secs(5 * 60);

const SECOND: Duration = Duration::from_secs(1);
/// See [`Authority::generate`].
const MAX_CA_BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

impl Authority {
    /// Makes a self-signed CA, valid for `lifetime` from `now`, and a tenth of it or a day before: a signer's clock that is
    /// set back must not be left without a valid CA. It is [`BACKDATE`] at least, since a leaf is not valid before its CA;
    /// but no more than half of `lifetime`, or the CA would be replaced, at half of its validity, as soon as it is made.
    /// `common_name` must be unlike that of any other generation: etcd names
    /// the CAs that it trusts by their subjects alone.
    ///
    /// # Errors
    /// [`AuthorityError::Crypto`].
    pub fn generate(
        common_name: &str,
        key: KeyAlgorithm,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let crypto = |e: rcgen::Error| AuthorityError::Crypto(e.to_string());
        let pair = generate_pair(key).map_err(crypto)?;
        let mut params = CertificateParams::default();
        let backdate = CA_BACKDATE.max(lifetime / 10).max(BACKDATE.min(lifetime / 2)).min(MAX_CA_BACKDATE);
        params.not_before = time_of(now - backdate)?;
        params.not_after = time_of(
            now.checked_add(lifetime).ok_or_else(|| AuthorityError::Crypto("its life is too long".to_owned()))?,
        )?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        // It signs leaves and nothing between.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&pair).map_err(crypto)?;
        let key = Zeroizing::new(PrivateKeyDer::Pkcs8(pair.serialize_der().into()));
        proven(vec![certificate.der().to_vec()], pair, &key, now)
    }

    /// Reads a user's CA: `cert_pem` holds the issuing certificate, then the intermediates above it and, if the user wants
    /// it for the anchor, the root; `key_pem` the issuing certificate's key.
    ///
    /// The topmost certificate given is the anchor. A root as the anchor also makes trusted everything else that it has signed.
    /// To avoid that, leave the root out: the intermediate is then the anchor.
    ///
    /// # Errors
    /// The first fault found, for the person who supplied it.
    pub fn load(cert_pem: &[u8], key_pem: &[u8], now: SystemTime) -> Result<Self, AuthorityError> {
        let mut chain: Vec<Vec<u8>> = Vec::new();
        for der in Chain::parse(cert_pem).map_err(|e| AuthorityError::Certificate(e.to_string()))?.certificates {
            if !chain.contains(&der) {
                chain.push(der);
            }
        }
        let key = read_key(key_pem)?;
        proven(chain, pair_of(&key)?, &key, now)
    }

    /// Reads an authority that was in use before: as [`Self::load`], at a time when it was valid. One that has expired is
    /// still what a rollover starts from; [`crate::ca::issue::issue`] takes it no more.
    ///
    /// # Errors
    /// The first fault found.
    pub fn reload(cert_pem: &[u8], key_pem: &[u8], now: SystemTime) -> Result<Self, AuthorityError> {
        let chain = Chain::parse(cert_pem).map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let mut at = now;
        for der in &chain.certificates {
            let certificate = Certificate::from_der(der).map_err(|e| AuthorityError::Certificate(e.to_string()))?;
            let validity = certificate.tbs_certificate().validity();
            at = at.max(validity.not_before.to_system_time()).min(validity.not_after.to_system_time() - SECOND);
        }
        Self::load(cert_pem, key_pem, at)
    }
}

/// Judges the parts and issues a trial leaf, so that a failing verification shows here and not in a pod.
fn proven(
    chain: Vec<Vec<u8>>,
    pair: KeyPair,
    key: &PrivateKeyDer<'static>,
    now: SystemTime,
) -> Result<Authority, AuthorityError> {
    let authority = Authority::assemble(chain, pair, key, now)?;
    trial(&authority, now).map_err(|e| AuthorityError::Trial(e.to_string()))?;
    Ok(authority)
}

fn time_of(t: SystemTime) -> Result<OffsetDateTime, AuthorityError> {
    der::date(t).ok_or_else(|| AuthorityError::Crypto("the time is out of X.509's range".to_owned()))
}

#[cfg(test)]
mod tests;
