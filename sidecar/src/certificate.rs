//! Certificates and bundles as values: read strictly, compared, verified as a peer would.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::{
    Certificate, Version,
    der::{
        Decode as _, Encode as _,
        asn1::{PrintableStringRef, Utf8StringRef},
    },
    ext::pkix::{BasicConstraints, KeyUsage as KeyUsageExtension, SubjectAltName, name::GeneralName},
};

use crate::{csr::hex, role::Role, settings::Sans};

/// The longest bundle or chain that is read: what a ConfigMap holds.
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
    /// The leaf's serial number, as lower-case hexadecimal digits without leading zeros.
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

/// Why a certificate, chain or bundle is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub String);

fn error(message: impl Into<String>) -> CertificateError {
    CertificateError(message.into())
}

impl Bundle {
    /// Reads PEM certificates; other text between blocks is passed over, other PEM blocks are refused (etcd exits on
    /// them), and so are an empty bundle, one over 1 MiB, and certificates that are no CA.
    ///
    /// # Errors
    /// What is wrong.
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
            authority(&der).map_err(|e| error(format!("certificate {} of the bundle {e}", index + 1)))?;
            by_digest.insert(sha256(&der), der);
        }
        Ok(Self { certificates: by_digest.into_values().collect() })
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
        let subject = |der: &Vec<u8>| Certificate::from_der(der).ok()?.tbs_certificate().subject().to_der().ok();
        self.certificates.iter().filter_map(subject).collect()
    }

    /// DER certificates.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }

    /// Whether every certificate of `other` is in it.
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

    /// Whether it holds the authority that `chain` leads to, whatever the time: where it does not, a peer with this bundle
    /// refuses the chain for ever.
    pub fn contains_issuer_of(&self, chain: &Chain) -> bool {
        // The last instant of the leaf: authorities live longer than what they sign.
        chain.path(self.certificates.iter(), chain.not_after, KeyUsage::client_auth()).is_ok()
    }

    /// Those of its certificates that are valid at `now`. webpki takes a trust anchor for valid for ever; Go does not.
    fn valid_at(&self, now: SystemTime) -> impl Iterator<Item = &Vec<u8>> {
        self.certificates.iter().filter(move |der| validity(der).is_some_and(|(from, to)| from <= now && now <= to))
    }
}

impl Chain {
    /// Reads a PEM chain, leaf first.
    ///
    /// # Errors
    /// What is wrong.
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
        let leaf = read(leaf).map_err(|e| error(format!("the leaf {e}")))?;
        for (index, der) in rest.iter().enumerate() {
            read(der).map_err(|e| error(format!("certificate {} of the chain {e}", index + 2)))?;
        }
        let tbs = leaf.tbs_certificate();
        let serial = hex(tbs.serial_number().as_bytes());
        let public_key = tbs.subject_public_key_info().to_der().map_err(|e| error(format!("the leaf's key: {e}")))?;
        Ok(Self {
            serial: serial.trim_start_matches('0').to_owned(),
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
            common_name: common_name(&leaf),
            sans: sans(&leaf)?,
            public_key,
            certificates,
        })
    }

    /// The PEM text, leaf first.
    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(|der| to_pem(der)).collect()
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
        if self.public_key != public_key {
            return Err(error("the certificate is for another key than ours"));
        }
        let missing = asked.beyond(&self.sans);
        if !missing.is_empty() {
            return Err(error(format!("the certificate does not hold {}", missing.join(", "))));
        }
        let client: &[(&str, KeyUsage)] = &[("client", KeyUsage::client_auth())];
        let both: &[(&str, KeyUsage)] = &[("server", KeyUsage::server_auth()), ("client", KeyUsage::client_auth())];
        let ends = match role {
            Role::Peer | Role::Server => both,
            Role::Client | Role::Metrics => client,
        };
        for (end, usage) in ends {
            self.path(bundle.valid_at(now), now, *usage)
                .map_err(|e| error(format!("a peer would refuse the certificate of this {end}: {e}")))?;
        }
        Ok(())
    }

    /// Whether there is a path from the leaf over the chain's certificates to one of `anchors`.
    fn path<'a>(
        &self,
        anchors: impl Iterator<Item = &'a Vec<u8>>,
        at: SystemTime,
        usage: KeyUsage,
    ) -> Result<(), webpki::Error> {
        let der: Vec<CertificateDer<'_>> =
            self.certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<CertificateDer<'_>> = anchors.map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors = anchors.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
        let (leaf, intermediates) = der.split_first().ok_or(webpki::Error::BadDer)?;
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, intermediates, at, usage, None, None)
            .map(|_| ())
    }
}

/// The DER of each CERTIFICATE block. Text between blocks is passed over; a block of another kind, or one that does not
/// end, is an error: etcd exits on the one, and Go's reader silently drops the other.
fn blocks(pem: &[u8], what: &str) -> Result<Vec<Vec<u8>>, CertificateError> {
    if pem.len() > MAX_PEM {
        return Err(error(format!("the {what} is {} bytes long; at most {MAX_PEM} are read", pem.len())));
    }
    let text = std::str::from_utf8(pem).map_err(|_| error(format!("the {what} is not PEM text")))?;
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let at = |problem: &str| error(format!("line {} of the {what}: {problem}", index + 1));
        match (&mut block, line) {
            (None, "-----BEGIN CERTIFICATE-----") => block = Some(String::new()),
            (Some(body), "-----END CERTIFICATE-----") => {
                found.push(STANDARD.decode(body.as_bytes()).map_err(|_| at("the block that ends here is not base64"))?);
                block = None;
            }
            (None, line) if line.contains("-----BEGIN") => return Err(at("a PEM block that is no CERTIFICATE")),
            (None, line) if line.contains("-----END") => return Err(at("an END without its BEGIN")),
            (None, _) => {}
            (Some(_), line) if line.contains("-----") => return Err(at("a CERTIFICATE block that does not end")),
            (Some(body), line) => body.push_str(line),
        }
    }
    if block.is_some() {
        return Err(error(format!("the {what} ends within a CERTIFICATE block: it is truncated")));
    }
    Ok(found)
}

fn to_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, c) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(c);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

/// One certificate in strict DER. The errors continue a sentence that names it.
fn read(der: &[u8]) -> Result<Certificate, String> {
    let certificate = Certificate::from_der(der).map_err(|e| format!("is no certificate in DER: {e}"))?;
    if certificate.to_der().ok().as_deref() != Some(der) {
        return Err("is not in canonical DER".to_owned());
    }
    if certificate.tbs_certificate().version() != Version::V3 {
        return Err("is not of X.509 version 3".to_owned());
    }
    Ok(certificate)
}

/// A certificate that may sign others.
fn authority(der: &[u8]) -> Result<(), String> {
    let certificate = read(der)?;
    let tbs = certificate.tbs_certificate();
    let unreadable = |e: x509_cert::der::Error| format!("has an extension that cannot be read: {e}");
    let is_ca =
        tbs.get_extension::<BasicConstraints>().map_err(unreadable)?.is_some_and(|(_, constraints)| constraints.ca);
    let may_sign =
        tbs.get_extension::<KeyUsageExtension>().map_err(unreadable)?.is_none_or(|(_, usage)| usage.key_cert_sign());
    if !(is_ca && may_sign) {
        return Err("is no CA: it must have CA:TRUE and, where it has a key usage, keyCertSign".to_owned());
    }
    Ok(())
}

fn validity(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let certificate = Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    Some((validity.not_before.to_system_time(), validity.not_after.to_system_time()))
}

fn common_name(certificate: &Certificate) -> String {
    const COMMON_NAME: x509_cert::der::asn1::ObjectIdentifier =
        x509_cert::der::asn1::ObjectIdentifier::new_unwrap("2.5.4.3");
    let subject = certificate.tbs_certificate().subject();
    let Some(attribute) = subject.iter().find(|attribute| attribute.oid == COMMON_NAME) else { return String::new() };
    let utf8 = attribute.value.decode_as::<Utf8StringRef<'_>>().map(|s| s.as_str().to_owned());
    let text = utf8.or_else(|_| attribute.value.decode_as::<PrintableStringRef<'_>>().map(|s| s.as_str().to_owned()));
    text.unwrap_or_default()
}

fn sans(certificate: &Certificate) -> Result<Sans, CertificateError> {
    let extension = certificate.tbs_certificate().get_extension::<SubjectAltName>();
    let extension = extension.map_err(|e| error(format!("the leaf's subjectAltName cannot be read: {e}")))?;
    let mut sans = Sans::default();
    for name in extension.into_iter().flat_map(|(_, names)| names.0) {
        match name {
            GeneralName::DnsName(name) => {
                sans.dns.insert(name.as_str().to_ascii_lowercase());
            }
            GeneralName::IpAddress(bytes) => {
                let bytes = bytes.as_bytes();
                let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                let ip = ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
                sans.ips.insert(ip.map_err(|_| error("the leaf has an IP address of odd length"))?);
            }
            _ => {}
        }
    }
    Ok(sans)
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}
