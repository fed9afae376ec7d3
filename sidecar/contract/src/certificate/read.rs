//! One certificate, strictly read.

use std::{net::IpAddr, time::SystemTime};

use webpki::{ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    der::{
        Decode as _, Encode as _,
        asn1::{ObjectIdentifier, PrintableStringRef, Utf8StringRef},
        oid::AssociatedOid as _,
    },
    ext::pkix::{
        BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension, NameConstraints, SubjectAltName,
        name::GeneralName,
    },
};

use super::{CertificateError, error};
use crate::san::Sans;

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
/// Extensions that both Go and webpki handle where they are critical: key usage, subjectAltName, basic constraints, name
/// constraints, extended key usage.
const HANDLED: [ObjectIdentifier; 5] =
    [KeyUsageExtension::OID, SubjectAltName::OID, BasicConstraints::OID, NameConstraints::OID, ExtendedKeyUsage::OID];
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// An end of a TLS connection, in which a certificate is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Server,
    Client,
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    fn usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }
}

/// The ends that a certificate must be good for, all of them: by having no extended key usages, or each end's among them.
pub(super) struct Usages<'a>(pub(super) &'a [End]);

impl ExtendedKeyUsageValidator for Usages<'_> {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let present = usages.map(|usage| usage.map(|id| id.to_decoded_oid())).collect::<Result<Vec<_>, _>>()?;
        let lacks = |end: &&End| !present.iter().any(|id| end.usage().oid_values().eq(id.iter().copied()));
        match self.0.iter().find(lacks) {
            Some(end) if !present.is_empty() => {
                Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext {
                    required: end.usage(),
                    present,
                }))
            }
            _ => Ok(()),
        }
    }
}

/// webpki's refusals as sentences; its own text is that of a debugger.
pub(super) fn sentence(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => "it, or one between it and its authority, has expired".to_owned(),
        webpki::Error::CertNotValidYet { .. } => "it, or one between it and its authority, is not valid yet".to_owned(),
        webpki::Error::UnknownIssuer => {
            "no authority of the bundle signed it, nor an intermediate that came with it".to_owned()
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "its extended key usages, or its authority's, do not allow that".to_owned()
        }
        webpki::Error::CaUsedAsEndEntity => "it is a CA's".to_owned(),
        webpki::Error::PathLenConstraintViolated => "there are more intermediates than its authority allows".to_owned(),
        webpki::Error::NameConstraintViolation => {
            "its names are not among those that its authority may sign".to_owned()
        }
        webpki::Error::UnsupportedCriticalExtension => "it has a critical extension that nobody handles".to_owned(),
        webpki::Error::InvalidSignatureForPublicKey => "its signature is not that of its authority's key".to_owned(),
        other => format!("{other:?}"),
    }
}

/// A fault of a certificate. The text continues a sentence that names the certificate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Defect(String);

impl From<String> for Defect {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Defect {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Reads one certificate in strict DER.
pub(super) fn certificate(der: &[u8]) -> Result<Certificate, Defect> {
    let certificate = Certificate::from_der(der).map_err(|e| format!("is no certificate in DER: {e}"))?;
    if certificate.to_der().ok().as_deref() != Some(der) {
        return Err("is not in canonical DER".into());
    }
    if certificate.tbs_certificate().version() != Version::V3 {
        return Err("is not of X.509 version 3".into());
    }
    Ok(certificate)
}

/// The DER subject of a CA's certificate that may sign revocation lists: one without key usages, or with cRLSign.
pub(crate) fn crl_signer(der: &[u8]) -> Option<Vec<u8>> {
    let authority = Authority::read(der).ok()?;
    let certificate = certificate(der).ok()?;
    let usage = certificate.tbs_certificate().get_extension::<KeyUsageExtension>().ok()?;
    usage.is_none_or(|(_, usage)| usage.crl_sign()).then_some(authority.subject)
}

/// A certificate that may sign others, with what webpki does not look at in a trust anchor, though Go does.
pub(super) struct Authority {
    pub(super) subject: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
    path_length: Option<usize>,
    usages: Vec<ObjectIdentifier>,
}

impl Authority {
    /// Reads a certificate of a CA.
    pub(super) fn read(der: &[u8]) -> Result<Self, Defect> {
        let certificate = certificate(der)?;
        let tbs = certificate.tbs_certificate();
        let unreadable = |e: x509_cert::der::Error| format!("has an extension that cannot be read: {e}");
        let constraints =
            tbs.get_extension::<BasicConstraints>().map_err(unreadable)?.map(|(_, constraints)| constraints);
        let key_usage = tbs.get_extension::<KeyUsageExtension>().map_err(unreadable)?;
        let may_sign = key_usage.is_none_or(|(_, usage)| usage.key_cert_sign());
        let Some(constraints) = constraints.filter(|constraints| constraints.ca && may_sign) else {
            return Err("is no CA: it must have CA:TRUE and, where it has a key usage, keyCertSign".into());
        };
        if let Some(oid) = unhandled(tbs).map_err(unreadable)? {
            return Err(format!("has the critical extension {oid}, which etcd does not handle and so refuses").into());
        }
        let usages = tbs.get_extension::<ExtendedKeyUsage>().map_err(unreadable)?;
        Ok(Self {
            subject: tbs.subject().to_der().map_err(|e| format!("has a subject that cannot be written: {e}"))?,
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
            path_length: constraints.path_len_constraint.map(usize::from),
            usages: usages.map(|(_, usages)| usages.0).unwrap_or_default(),
        })
    }

    pub(super) fn valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// True if it may stand above `intermediates` certificates and a leaf that is presented as `end`.
    pub(super) fn takes(&self, intermediates: usize, end: End) -> bool {
        let wanted = match end {
            End::Server => SERVER_AUTH,
            End::Client => CLIENT_AUTH,
        };
        self.path_length.is_none_or(|most| intermediates <= most)
            && (self.usages.is_empty() || self.usages.iter().any(|usage| *usage == wanted || *usage == ANY_USAGE))
    }
}

/// A critical extension that Go's verifier refuses in any certificate of a chain, the trust anchor included.
pub(super) fn unhandled(tbs: &TbsCertificate) -> Result<Option<ObjectIdentifier>, x509_cert::der::Error> {
    let mut critical = tbs.extensions().into_iter().flatten().filter(|extension| extension.critical);
    if let Some(extension) = critical.find(|extension| !HANDLED.contains(&extension.extn_id)) {
        return Ok(Some(extension.extn_id));
    }
    // Of name constraints Go handles four kinds; webpki's others would hold for one end of a connection only.
    let Some((true, constraints)) = tbs.get_extension::<NameConstraints>()? else { return Ok(None) };
    let lists = [constraints.permitted_subtrees, constraints.excluded_subtrees];
    let odd = lists.into_iter().flatten().flatten().any(|subtree| {
        !matches!(
            subtree.base,
            GeneralName::DnsName(_)
                | GeneralName::IpAddress(_)
                | GeneralName::Rfc822Name(_)
                | GeneralName::UniformResourceIdentifier(_)
        )
    });
    Ok(odd.then_some(NameConstraints::OID))
}

/// The subject's CN; empty where there is none.
pub(super) fn common_name(certificate: &Certificate) -> String {
    let subject = certificate.tbs_certificate().subject();
    let Some(attribute) = subject.iter().find(|attribute| attribute.oid == COMMON_NAME) else { return String::new() };
    let utf8 = attribute.value.decode_as::<Utf8StringRef<'_>>().map(|s| s.as_str().to_owned());
    let text = utf8.or_else(|_| attribute.value.decode_as::<PrintableStringRef<'_>>().map(|s| s.as_str().to_owned()));
    text.unwrap_or_default()
}

/// See [`super::Chain::added_usages`].
pub(super) fn added_usages(certificate: &Certificate, asked: &[&str]) -> Result<Vec<String>, CertificateError> {
    let tbs = certificate.tbs_certificate();
    let unreadable = |e: x509_cert::der::Error| error(format!("the leaf has an extension that cannot be read: {e}"));
    let mut added = Vec::new();
    if tbs.get_extension::<BasicConstraints>().map_err(unreadable)?.is_some_and(|(_, constraints)| constraints.ca) {
        added.push("CA:TRUE".to_owned());
    }
    if let Some((_, usage)) = tbs.get_extension::<KeyUsageExtension>().map_err(unreadable)? {
        let signing = [(usage.key_cert_sign(), "cert sign"), (usage.crl_sign(), "crl sign")];
        added.extend(signing.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_owned()));
    }
    let extended = tbs.get_extension::<ExtendedKeyUsage>().map_err(unreadable)?.map(|(_, usages)| usages.0);
    for usage in extended.unwrap_or_default() {
        let name = match usage {
            SERVER_AUTH => "server auth".to_owned(),
            CLIENT_AUTH => "client auth".to_owned(),
            ANY_USAGE => "any".to_owned(),
            other => other.to_string(),
        };
        if !asked.contains(&name.as_str()) {
            added.push(name);
        }
    }
    Ok(added)
}

/// The DNS names and IP addresses; names of other kinds are passed over.
pub(super) fn sans(certificate: &Certificate) -> Result<Sans, CertificateError> {
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
