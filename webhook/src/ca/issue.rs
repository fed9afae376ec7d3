//! Issues a certificate from an entitlement: subject, names, usages, validity and serial number are decided here.
//!
//! **Invariant.** Only the public key of a request reaches the certificate, and every certificate is verified as a peer
//! verifies it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr,
    identity::Entitlement,
    key::KeyAlgorithm,
    life::BACKDATE,
    role::Role,
    san::Sans,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo,
};

use crate::ca::{
    authority::Authority,
    der::{BIT_STRING, SEQUENCE, SET, UTF8_STRING, date, elements, tlv},
};

/// The content of a leaf.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// Its role, which decides the extended key usages.
    pub role: Role,
    /// The subject's O values, in order; pods' certificates have [`Role::organization`] alone.
    pub organizations: Vec<&'a str>,
    /// The subject's CN.
    pub common_name: &'a str,
    /// The subject alternative names.
    pub sans: &'a Sans,
    /// The only bytes of a request: DER SubjectPublicKeyInfo.
    pub public_key: &'a [u8],
    /// Counted from the issue; cut to the authority's own end.
    pub lifetime: Duration,
}

impl<'a> Leaf<'a> {
    /// The leaf of an entitlement. `asked` is the lifetime the request asks for; the shorter one counts.
    pub fn entitled(entitlement: &'a Entitlement, public_key: &'a [u8], asked: Option<Duration>) -> Self {
        Leaf {
            role: entitlement.role,
            organizations: vec![entitlement.role.organization()],
            common_name: &entitlement.common_name,
            sans: &entitlement.sans,
            public_key,
            lifetime: asked.map_or(entitlement.lifetime, |a| a.min(entitlement.lifetime)),
        }
    }
}

/// Why nothing was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The authority has expired, or is not valid yet.
    #[error("the CA is not valid at this time; a rollover to a new CA is due")]
    AuthorityNotValid,
    /// A leaf with the CA's own key would pass for the CA where keys are pinned, and the other way round.
    #[error("the request's public key is the CA's own; make a key for it")]
    KeyOfAuthority,
    /// The crypto library failed, or the leaf's values cannot be encoded.
    #[error("the certificate could not be made: {0}")]
    Encoding(String),
    /// The certificate was made, but would be refused.
    #[error("the certificate would not be accepted by its peers: {0}")]
    Refused(String),
}

impl IssueError {
    pub(super) fn encoding(e: impl std::fmt::Display) -> Self {
        Self::Encoding(e.to_string())
    }
}

/// Issues `leaf` and verifies it as its peers will; gives its chain up to, and without, the anchor.
///
/// `serial` is 128 random bits, of which 126 are used: the number is positive and its length always the same.
///
/// # Errors
/// See [`IssueError`]; none of them but [`IssueError::KeyOfAuthority`] is the requester's to mend.
pub fn issue(authority: &Authority, leaf: &Leaf<'_>, now: SystemTime, serial: [u8; 16]) -> Result<Chain, IssueError> {
    issue_from(authority, leaf, now, BACKDATE, serial)
}

/// [`issue`] with notBefore `backdate` ago.
///
/// # Errors
/// See [`issue`].
pub(crate) fn issue_from(
    authority: &Authority,
    leaf: &Leaf<'_>,
    now: SystemTime,
    backdate: Duration,
    mut serial: [u8; 16],
) -> Result<Chain, IssueError> {
    if now < authority.not_before() || authority.not_after() <= now {
        return Err(IssueError::AuthorityNotValid);
    }
    if authority.has_key(leaf.public_key) {
        return Err(IssueError::KeyOfAuthority);
    }
    let end = authority.not_after();
    let not_after = now.checked_add(leaf.lifetime).map_or(end, |t| t.min(end));
    serial[0] = (serial[0] & 0x7f) | 0x40;

    let mut params = CertificateParams::default();
    params.not_before = date((now - backdate).max(authority.not_before())).ok_or(IssueError::AuthorityNotValid)?;
    params.not_after = date(not_after).ok_or(IssueError::AuthorityNotValid)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.subject_alt_names = san_types(leaf.sans)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = extended_key_usages(leaf.role);
    params.use_authority_key_identifier_extension = true;

    let pair = authority.pair().map_err(IssueError::encoding)?;
    let parts = authority.parts().map_err(IssueError::encoding)?;
    let mut issuer = CertificateParams::default();
    if let Some(id) = &parts.key_identifier {
        issuer.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
    }
    let public_key = SubjectPublicKeyInfo::from_der(leaf.public_key).map_err(IssueError::encoding)?;
    // Both names of the draft are replaced below. The subject is not left empty, or rcgen would mark the SANs critical.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, leaf.common_name);
    let draft = params.signed_by(&public_key, &Issuer::new(issuer, Unsigned(&pair))).map_err(IssueError::encoding)?;
    // version, serialNumber, signature, issuer, validity, subject …
    let names = [(3, parts.subject.as_slice()), (5, &subject_name(leaf)?)];
    let der = sign_draft(draft.der(), &names, &pair)?;

    let mut certificates = vec![der];
    certificates.extend_from_slice(authority.intermediates());
    let chain = Chain::from_der(certificates).map_err(|e| IssueError::Refused(e.to_string()))?;
    chain
        .verify(leaf.role, authority.bundle(), leaf.public_key, leaf.sans, now)
        .map_err(|e| IssueError::Refused(e.to_string()))?;
    Ok(chain)
}

/// Issues a throw-away leaf for each set of usages, to learn what verification thinks of `authority`.
pub(crate) fn trial(authority: &Authority, now: SystemTime) -> Result<(), IssueError> {
    trial_by(authority, authority.bundle(), now)
}

/// True if those who know `bundle` alone accept what `authority` issues.
pub(crate) fn accepted_by(authority: &Authority, bundle: &Bundle, now: SystemTime) -> bool {
    trial_by(authority, bundle, now).is_ok()
}

fn trial_by(authority: &Authority, bundle: &Bundle, now: SystemTime) -> Result<(), IssueError> {
    let pair = csr::generate_pair(KeyAlgorithm::EcdsaP256).map_err(IssueError::encoding)?;
    let public_key = pair.subject_public_key_info();
    let sans =
        Sans { dns: BTreeSet::from(["localhost".to_owned()]), ips: BTreeSet::from([IpAddr::V4(Ipv4Addr::LOCALHOST)]) };
    for role in [Role::Peer, Role::Metrics] {
        let leaf = Leaf {
            role,
            organizations: vec!["etcd-tls"],
            common_name: "trial",
            sans: &sans,
            public_key: &public_key,
            lifetime: Duration::from_secs(60),
        };
        issue(authority, &leaf, now, [0; 16])?
            .verify(role, bundle, &public_key, &sans, now)
            .map_err(|e| IssueError::Refused(e.to_string()))?;
    }
    Ok(())
}

/// A CA key that leaves the signature empty: rcgen writes the certificate, [`sign_draft`] signs it.
pub(super) struct Unsigned<'a>(pub(super) &'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![0])
    }
}

/// Puts `names`, each a DER Name with its place among the fields, into the draft of a certificate or a revocation list, and signs
/// it: the CA's own subject for the issuer, and a leaf's subject.
///
/// rcgen encodes an issuer again, and keeps one value of each attribute type: of `DC=example, DC=com`, or of a name in
/// PrintableString, it makes another name, and no verifier finds the CA again.
pub(super) fn sign_draft(draft: &[u8], names: &[(usize, &[u8])], pair: &KeyPair) -> Result<Vec<u8>, IssueError> {
    let outer = elements(draft).map_err(IssueError::encoding)?;
    let [tbs, algorithm, _signature] = outer.as_slice() else {
        return Err(IssueError::Encoding("the draft is nothing that is signed".to_owned()));
    };
    let mut fields = elements(tbs).map_err(IssueError::encoding)?;
    for (place, name) in names {
        *fields.get_mut(*place).ok_or_else(|| IssueError::Encoding("the draft lacks a name".to_owned()))? = name;
    }
    let tbs = tlv(SEQUENCE, &fields.concat());
    let signature = pair.sign(&tbs).map_err(IssueError::encoding)?;
    let signature = tlv(BIT_STRING, &[&[0], signature.as_slice()].concat());
    Ok(tlv(SEQUENCE, &[&tbs, *algorithm, &signature].concat()))
}

/// DER of 2.5.4.10, organizationName.
const ORGANIZATION: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0a];
/// DER of 2.5.4.3, commonName.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

/// The subject: one O for each organization, then the CN, one attribute to an RDN.
fn subject_name(leaf: &Leaf<'_>) -> Result<Vec<u8>, IssueError> {
    let organizations = leaf.organizations.iter().map(|o| (ORGANIZATION, *o));
    let mut rdns = Vec::new();
    for (oid, value) in organizations.chain([(COMMON_NAME, leaf.common_name)]) {
        // RFC 5280, ub-organization-name and ub-common-name.
        if !(1..=64).contains(&value.chars().count()) {
            return Err(IssueError::Encoding(format!("{value:?} is not of 1 to 64 characters")));
        }
        let attribute = tlv(SEQUENCE, &[oid, &tlv(UTF8_STRING, value.as_bytes())].concat());
        rdns.extend_from_slice(&tlv(SET, &attribute));
    }
    Ok(tlv(SEQUENCE, &rdns))
}

fn san_types(sans: &Sans) -> Result<Vec<SanType>, IssueError> {
    let dns = sans.dns.iter().map(|name| {
        rcgen::string::Ia5String::try_from(name.as_str()).map(SanType::DnsName).map_err(IssueError::encoding)
    });
    dns.chain(sans.ips.iter().map(|ip| Ok(SanType::IpAddress(*ip)))).collect()
}

fn extended_key_usages(role: Role) -> Vec<ExtendedKeyUsagePurpose> {
    etcd_tls_contract::identity::usages(role)
        .iter()
        .filter_map(|usage| match *usage {
            "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
            "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
