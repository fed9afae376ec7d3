//! Certificates and bundles as values: read strictly, compared, verified as a peer would.
//!
//! The peers are etcd and its clients, so Go's `crypto/x509` is the reference. webpki is more lenient: it does not check a
//! trust anchor's validity and constraints. They are checked here.

mod pem;
mod read;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, anchor_from_trusted_cert};
use x509_cert::{Certificate, der::Encode as _};

pub(crate) use self::read::crl_signer;
use self::{
    pem::blocks,
    read::{Authority, End, Usages},
};
use crate::{
    encoding::{self, hex},
    role::Role,
    san::Sans,
};

/// The longest bundle or chain that is read: the size limit of a ConfigMap.
pub const MAX_PEM: usize = 1024 * 1024;

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
    /// The leaf's [`serial`].
    pub serial: String,
    /// The leaf's notBefore.
    pub not_before: SystemTime,
    /// The leaf's notAfter.
    pub not_after: SystemTime,
    /// The leaf's subject CN; empty where it has none.
    pub common_name: String,
    /// The leaf's DNS names and IP addresses; names of other kinds are passed over.
    pub sans: Sans,
    /// The leaf's DER SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

/// Why a certificate, chain or bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub String);

/// A certificate's serial number, as lower-case hexadecimal digits without leading zeros.
pub fn serial(certificate: &Certificate) -> String {
    let digits = hex(certificate.tbs_certificate().serial_number().as_bytes());
    digits.trim_start_matches('0').to_owned()
}

fn error(message: impl Into<String>) -> CertificateError {
    CertificateError(message.into())
}

impl Bundle {
    /// Reads PEM certificates; other text between blocks is passed over, other PEM blocks are refused (etcd exits on
    /// them), and so are an empty bundle, one over 1 MiB, and certificates that are no CA.
    ///
    /// # Errors
    /// The first fault found.
    pub fn parse(pem: &[u8]) -> Result<Self, CertificateError> {
        Self::from_der(blocks(pem, "bundle")?)
    }

    /// A bundle of DER certificates.
    ///
    /// # Errors
    /// There is none, or one is no CA.
    pub fn from_der(certificates: Vec<Vec<u8>>) -> Result<Self, CertificateError> {
        if certificates.is_empty() {
            return Err(error("the bundle holds no certificate; etcd would start on it and trust nobody"));
        }
        let mut by_digest = BTreeMap::new();
        for (index, der) in certificates.into_iter().enumerate() {
            Authority::read(&der).map_err(|e| error(format!("certificate {} of the bundle {e}", index + 1)))?;
            by_digest.insert(sha256(&der), der);
        }
        // A signer holds thousands of bundles of one certificate: neither has room to spare.
        let mut certificates: Vec<Vec<u8>> = by_digest.into_values().collect();
        certificates.iter_mut().for_each(Vec::shrink_to_fit);
        certificates.shrink_to_fit();
        Ok(Self { certificates })
    }

    /// The canonical PEM text.
    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(|der| to_pem(der)).collect()
    }

    /// The bundle's digest, the value of [`crate::names::TRUSTS_ANNOTATION`]: 32 lower-case hexadecimal digits, the same
    /// for the same set of certificates.
    pub fn digest(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for der in &self.certificates {
            context.update(&sha256(der));
        }
        hex(&context.finish().as_ref()[..16])
    }

    /// Each certificate's DER subject, for comparison with what a TLS server's CertificateRequest names.
    pub fn subjects(&self) -> Vec<Vec<u8>> {
        self.authorities().map(|(_, authority)| authority.subject).collect()
    }

    /// DER certificates.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }

    /// True if one of its authorities may sign revocation lists: its certificate has no key usages, or cRLSign among them.
    pub fn may_sign_lists(&self) -> bool {
        self.certificates.iter().any(|der| crl_signer(der).is_some())
    }

    /// True if every certificate of `other` is in it.
    pub fn contains(&self, other: &Self) -> bool {
        other.certificates.iter().all(|der| self.certificates.contains(der))
    }

    /// Both bundles' certificates.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let all = self.certificates.iter().chain(&other.certificates);
        Self {
            certificates: all.map(|der| (sha256(der), der.clone())).collect::<BTreeMap<_, _>>().into_values().collect(),
        }
    }

    /// True if it holds the authority that `chain` leads to, at any time: without it, a peer with this bundle always refuses
    /// the chain.
    pub fn contains_issuer_of(&self, chain: &Chain) -> bool {
        // The last instant of the leaf: authorities live longer than what they sign.
        self.authorities()
            .any(|(der, authority)| chain.leads_to(der, &authority, chain.not_after, &[End::Client]).is_ok())
    }

    /// True if one authority of it is that of both chains. `None`: it lacks the authority of one of them.
    pub fn same_issuer(&self, one: &Chain, other: &Chain) -> Option<bool> {
        let (one, other) = (self.issuers_of(one)?, self.issuers_of(other)?);
        Some(one.certificates.iter().any(|der| other.certificates.contains(der)))
    }

    /// The part of it that `chain` leads to, as [`Self::contains_issuer_of`] finds it; `None`: nothing.
    pub fn issuers_of(&self, chain: &Chain) -> Option<Self> {
        let leads = |(der, authority): &(&[u8], Authority)| {
            chain.leads_to(der, authority, chain.not_after, &[End::Client]).is_ok()
        };
        let certificates: Vec<_> = self.authorities().filter(leads).map(|(der, _)| der.to_vec()).collect();
        (!certificates.is_empty()).then_some(Self { certificates })
    }

    /// The part of it with the subjects of `others`. Certificates of one subject are told apart by their number alone where only subjects
    /// are shown.
    #[must_use]
    pub fn named_like(&self, others: &Self) -> Self {
        let subjects = others.subjects();
        let same = self.authorities().filter(|(_, authority)| subjects.contains(&authority.subject));
        Self { certificates: same.map(|(der, _)| der.to_vec()).collect() }
    }

    /// The part of it of which `keep` is true; `None`: nothing.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&[u8]) -> bool) -> Option<Self> {
        let certificates: Vec<_> = self.certificates.iter().filter(|der| keep(der)).cloned().collect();
        (!certificates.is_empty()).then_some(Self { certificates })
    }

    /// Each certificate with what there is to know of it.
    fn authorities(&self) -> impl Iterator<Item = (&[u8], Authority)> {
        // Every certificate was parsed when the bundle was made.
        self.certificates.iter().filter_map(|der| Some((der.as_slice(), Authority::read(der).ok()?)))
    }
}

impl Chain {
    /// Reads a PEM chain, leaf first.
    ///
    /// # Errors
    /// The first fault found.
    pub fn parse(pem: &[u8]) -> Result<Self, CertificateError> {
        Self::from_der(blocks(pem, "chain")?)
    }

    /// A chain of DER certificates, leaf first.
    ///
    /// # Errors
    /// There is none, or one cannot be read.
    pub fn from_der(certificates: Vec<Vec<u8>>) -> Result<Self, CertificateError> {
        let Some((leaf, rest)) = certificates.split_first() else {
            return Err(error("the chain holds no certificate"));
        };
        let leaf = read::certificate(leaf).map_err(|e| error(format!("the leaf {e}")))?;
        for (index, der) in rest.iter().enumerate() {
            read::certificate(der).map_err(|e| error(format!("certificate {} of the chain {e}", index + 2)))?;
        }
        let tbs = leaf.tbs_certificate();
        let public_key = tbs.subject_public_key_info().to_der().map_err(|e| error(format!("the leaf's key: {e}")))?;
        Ok(Self {
            serial: serial(&leaf),
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
            common_name: read::common_name(&leaf),
            sans: read::sans(&leaf)?,
            public_key,
            certificates,
        })
    }

    /// The PEM text, leaf first.
    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(|der| to_pem(der)).collect()
    }

    /// The issuer of the chain's last certificate, as RFC 4514 writes names: the authority that a bundle has to hold. A
    /// root at the end names itself.
    pub fn authority(&self) -> String {
        let last = self.certificates.last().and_then(|der| read::certificate(der).ok());
        last.map_or_else(String::new, |last| last.tbs_certificate().issuer().to_string())
    }

    /// The rights of the leaf beyond the `asked` usages, in the API's terms: an authority's rights, and extended key usages. A
    /// leaf without extended key usages is not restricted, and passes.
    ///
    /// # Errors
    /// An extension cannot be read.
    pub fn added_usages(&self, asked: &[&str]) -> Result<Vec<String>, CertificateError> {
        let leaf = self.certificates.first().ok_or_else(|| error("the chain holds no certificate"))?;
        let leaf = read::certificate(leaf).map_err(|e| error(format!("the leaf {e}")))?;
        read::added_usages(&leaf, asked)
    }

    /// A critical extension of the leaf that etcd does not handle, and so refuses: its object identifier.
    ///
    /// # Errors
    /// An extension cannot be read.
    pub fn unhandled_extension(&self) -> Result<Option<String>, CertificateError> {
        let leaf = self.certificates.first().ok_or_else(|| error("the chain holds no certificate"))?;
        let leaf = read::certificate(leaf).map_err(|e| error(format!("the leaf {e}")))?;
        let found = read::unhandled(leaf.tbs_certificate());
        found
            .map(|oid| oid.map(|oid| oid.to_string()))
            .map_err(|e| error(format!("the leaf has an extension that cannot be read: {e}")))
    }

    /// Verifies the chain against `bundle` at `now` as the role's peers would (webpki; serverAuth and clientAuth for peer
    /// and server, clientAuth for client and metrics), that it is for `public_key`, and that its names hold all of
    /// `asked`.
    ///
    /// # Errors
    /// The reason why a peer would refuse it.
    pub fn verify(
        &self,
        role: Role,
        bundle: &Bundle,
        public_key: &[u8],
        asked: &Sans,
        now: SystemTime,
    ) -> Result<(), CertificateError> {
        if self.public_key != public_key {
            return Err(error("the certificate is for another key than ours"));
        }
        let missing = asked.beyond(&self.sans);
        if !missing.is_empty() {
            return Err(error(format!("the certificate does not hold {}", missing.join(", "))));
        }
        let ends: &[End] = match role {
            Role::Peer | Role::Server => &[End::Server, End::Client],
            Role::Client | Role::Metrics => &[End::Client],
        };
        // One verification for both ends, a signature costing what it does; which end refuses, and why, is asked apart.
        let by_all = |(der, authority): (&[u8], Authority)| {
            authority.valid_at(now) && self.leads_to(der, &authority, now, ends).is_ok()
        };
        if bundle.authorities().any(by_all) {
            return Ok(());
        }
        for end in ends {
            let refused =
                |e: String| error(format!("a peer would refuse the certificate of this {}: {e}", end.as_str()));
            let mut last = "no certificate of the bundle is valid now".to_owned();
            let mut valid = bundle.authorities().filter(|(_, authority)| authority.valid_at(now));
            let found = valid.any(|(der, authority)| match self.leads_to(der, &authority, now, &[*end]) {
                Ok(()) => true,
                Err(e) => {
                    // "Signed by none of them" is the least that can be said; any other reason says more.
                    if e != webpki::Error::UnknownIssuer || last.starts_with("no ") {
                        last = read::sentence(&e);
                    }
                    false
                }
            });
            if !found {
                return Err(refused(last));
            }
        }
        Ok(())
    }

    /// Verifies the leaf, presented as each of `ends` at `at`, over the chain's other certificates up to one authority.
    fn leads_to(
        &self,
        anchor: &[u8],
        authority: &Authority,
        at: SystemTime,
        ends: &[End],
    ) -> Result<(), webpki::Error> {
        let der: Vec<CertificateDer<'_>> =
            self.certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let (leaf, rest) = der.split_first().ok_or(webpki::Error::BadDer)?;
        let intermediates: Vec<CertificateDer<'_>> =
            rest.iter().filter(|der| Authority::read(der).is_ok()).cloned().collect();
        let anchor = CertificateDer::from(anchor);
        let anchors = [anchor_from_trusted_cert(&anchor)?];
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        let bounds = |path: &webpki::VerifiedPath<'_>| {
            let intermediates = path.intermediate_certificates().count();
            let bounded = ends.iter().all(|end| authority.takes(intermediates, *end));
            if bounded { Ok(()) } else { Err(webpki::Error::PathLenConstraintViolated) }
        };
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &intermediates, at, Usages(ends), None, Some(&bounds))
            .map(|_| ())
    }
}

/// One DER certificate as PEM text.
pub fn to_pem(der: &[u8]) -> String {
    encoding::pem("CERTIFICATE", der).to_string()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}
