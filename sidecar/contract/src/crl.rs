//! Certificate revocation lists (RFC 5280, section 5) as values: read strictly, bounded, verified by their issuer's key.
//!
//! etcd compares serial numbers alone: neither signature nor issuer nor dates. They are judged here, before etcd reads a list.

pub mod dialled;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert};
use x509_cert::{
    Version,
    crl::{CertificateList, RevokedCert},
    der::{Decode as _, Encode as _, asn1::ObjectIdentifier, oid::AssociatedOid as _},
    ext::{
        Extensions,
        pkix::{AuthorityKeyIdentifier, CrlNumber, CrlReason},
    },
};

use crate::{certificate, encoding::hex};

/// The longest list that is read, in bytes: about ten thousand entries.
pub const MAX_CRL: usize = 512 * 1024;
/// Entries of a list that is read, at most.
pub const MAX_ENTRIES: usize = 16 * 1024;

/// See [`stand_in`]. Its issuer's key exists nowhere any more.
const STAND_IN: &[u8] = include_bytes!("crl/none.der");

/// An empty list of no issuer, number 0. etcd refuses every connection while its configured file is missing, so this list
/// stands in until the cluster has its own.
pub const fn stand_in() -> &'static [u8] {
    STAND_IN
}

/// A certificate revocation list.
#[derive(Clone, PartialEq, Eq)]
pub struct Crl {
    der: Arc<[u8]>,
    number: u64,
    entries: BTreeMap<String, Revocation>,
    /// Where the issuer's name is in `der`.
    issuer: Part,
    /// … and what is signed, the AlgorithmIdentifier without its header, and the signature.
    signed: Part,
    algorithm: Part,
    signature: Part,
}

/// A part of a list's bytes, from … to; they are [`MAX_CRL`] at most. A signer holds thousands of lists.
type Part = [u32; 2];

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// When it was revoked.
    pub at: SystemTime,
    /// Why.
    pub reason: Reason,
}

/// Why a certificate was revoked, in the words of RFC 5280, section 5.3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Nothing was said, or another reason.
    #[default]
    Unspecified,
    /// The private key is, or may be, known to somebody else.
    KeyCompromise,
    /// Its holder or its names changed.
    AffiliationChanged,
    /// Another certificate has replaced it.
    Superseded,
    /// It is not needed any more.
    CessationOfOperation,
    /// Its holder may not have it any more.
    PrivilegeWithdrawn,
}

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Larger than [`MAX_CRL`], or more than [`MAX_ENTRIES`] entries.
    #[error("the revocation list is too large: at most {MAX_CRL} bytes and {MAX_ENTRIES} entries are read")]
    TooLarge,
    /// Not strict DER of version 2, or with parts that are not understood.
    #[error("the revocation list cannot be read: {0}")]
    Unreadable(String),
    /// Signed by no certificate of the bundle.
    #[error("the revocation list is signed by no CA of the bundle")]
    Foreign,
    /// Older than the one in use, or another one with the same number.
    #[error("the revocation list has number {offered}, but number {held} is in use: the number does not go back")]
    Old {
        /// The number of the list on offer.
        offered: u64,
        /// The number of the list in use.
        held: u64,
    },
}

fn unreadable(why: impl fmt::Display) -> CrlError {
    CrlError::Unreadable(why.to_string())
}

impl Crl {
    /// Reads a list in strict DER. Nothing is verified.
    ///
    /// # Errors
    /// The first fault found.
    pub fn parse(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL {
            return Err(CrlError::TooLarge);
        }
        let list = CertificateList::<x509_cert::certificate::Rfc5280>::from_der(der).map_err(unreadable)?;
        // The reader accepts some BER. Input that does not encode to the same bytes again is not DER.
        if list.to_der().map_err(unreadable)? != der {
            return Err(unreadable("it is not in canonical DER"));
        }
        let tbs = &list.tbs_cert_list;
        if tbs.version != Version::V2 {
            return Err(unreadable("it is not of version 2"));
        }
        if tbs.signature != list.signature_algorithm {
            return Err(unreadable("it names two signature algorithms"));
        }
        let number = number(tbs.crl_extensions.as_ref())?;
        let revoked = tbs.revoked_certificates.as_deref().unwrap_or_default();
        if revoked.len() > MAX_ENTRIES {
            return Err(CrlError::TooLarge);
        }
        let mut entries = BTreeMap::new();
        for entry in revoked {
            let (serial, revocation) = entry_of(entry)?;
            if entries.insert(serial, revocation).is_some() {
                return Err(unreadable("a serial number stands in it twice"));
            }
        }
        let signature = list.signature.as_bytes().ok_or_else(|| unreadable("its signature is not of whole bytes"))?;
        let algorithm = list.signature_algorithm.to_der().map_err(unreadable)?;
        // In canonical DER, a part is encoded in the whole as it is encoded alone.
        let place = |part: &[u8]| {
            let at = if part.is_empty() { None } else { der.windows(part.len()).position(|bytes| bytes == part) };
            let ends = at.map(|at| [at, at + part.len()].map(|end| u32::try_from(end).unwrap_or(u32::MAX)));
            ends.ok_or_else(|| unreadable("it lacks a part"))
        };
        Ok(Self {
            der: der.into(),
            number,
            entries,
            issuer: place(&tbs.issuer.to_der().map_err(unreadable)?)?,
            signed: place(&tbs.to_der().map_err(unreadable)?)?,
            // A SEQUENCE of fewer than 128 bytes has a header of two.
            algorithm: place(algorithm.get(2..).unwrap_or_default())?,
            signature: place(signature)?,
        })
    }

    /// Verifies the signature by one of `issuers`, DER certificates that may sign lists. The list's dates are not looked at: an
    /// old list is better than none, and its number says which of two is newer.
    ///
    /// # Errors
    /// [`CrlError::Foreign`].
    pub fn verify<'a>(&self, issuers: impl IntoIterator<Item = &'a [u8]>) -> Result<(), CrlError> {
        let signed = |der: &[u8]| {
            certificate::crl_signer(der).is_some_and(|subject| subject == self.issuer()) && self.is_signed_by(der)
        };
        if issuers.into_iter().any(signed) { Ok(()) } else { Err(CrlError::Foreign) }
    }

    fn part(&self, part: Part) -> &[u8] {
        let [from, to] = part.map(|end| usize::try_from(end).unwrap_or(usize::MAX));
        self.der.get(from..to).unwrap_or_default()
    }

    fn is_signed_by(&self, der: &[u8]) -> bool {
        let der = der.into();
        let Ok(certificate) = EndEntityCert::try_from(&der) else { return false };
        let mut algorithms =
            ALL_VERIFICATION_ALGS.iter().filter(|known| known.signature_alg_id().as_ref() == self.part(self.algorithm));
        let (signed, signature) = (self.part(self.signed), self.part(self.signature));
        algorithms.any(|known| certificate.verify_signature(*known, signed, signature).is_ok())
    }

    /// True if it may take the place of `held`; not where it is the same.
    ///
    /// # Errors
    /// [`CrlError::Old`].
    pub fn replaces(&self, held: &Self) -> Result<bool, CrlError> {
        if self.der == held.der {
            return Ok(false);
        }
        if self.number <= held.number {
            return Err(CrlError::Old { offered: self.number, held: held.number });
        }
        Ok(true)
    }

    /// The very bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The CRL number: a later list of the same authority has a greater one.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The issuer's name, DER.
    pub fn issuer(&self) -> &[u8] {
        self.part(self.issuer)
    }

    /// The entries, by serial number in the form of [`certificate::serial`].
    pub const fn entries(&self) -> &BTreeMap<String, Revocation> {
        &self.entries
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("number", &self.number)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

/// The CRL number. Critical extensions that are not understood change what a list means: a delta, a part, others' certificates.
fn number(extensions: Option<&Extensions>) -> Result<u64, CrlError> {
    let extensions = extensions.map(Vec::as_slice).unwrap_or_default();
    let known = |id: ObjectIdentifier| id == CrlNumber::OID || id == AuthorityKeyIdentifier::OID;
    if let Some(odd) = extensions.iter().find(|e| e.critical && !known(e.extn_id)) {
        return Err(unreadable(format!("it has the critical extension {}", odd.extn_id)));
    }
    let mut numbers = extensions.iter().filter(|extension| extension.extn_id == CrlNumber::OID);
    let (Some(extension), None) = (numbers.next(), numbers.next()) else {
        return Err(unreadable("it has no CRL number, or more than one"));
    };
    let number = CrlNumber::from_der(extension.extn_value.as_bytes()).map_err(unreadable)?;
    let bytes = number.0.as_bytes();
    if bytes.len() > 8 {
        return Err(unreadable("its CRL number is longer than 64 bits"));
    }
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn entry_of(entry: &RevokedCert) -> Result<(String, Revocation), CrlError> {
    let extensions = entry.crl_entry_extensions.as_deref().unwrap_or_default();
    if let Some(odd) = extensions.iter().find(|e| e.critical && e.extn_id != CrlReason::OID) {
        return Err(unreadable(format!("an entry has the critical extension {}", odd.extn_id)));
    }
    let reason = extensions.iter().find(|e| e.extn_id == CrlReason::OID);
    let reason = reason.map(|e| CrlReason::from_der(e.extn_value.as_bytes())).transpose().map_err(unreadable)?;
    if reason == Some(CrlReason::RemoveFromCRL) {
        return Err(unreadable("an entry takes another one back, as in a delta list"));
    }
    let digits = hex(entry.serial_number.as_bytes());
    let revocation = Revocation {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(entry.revocation_date.to_unix_duration().as_secs()),
        reason: reason.map_or(Reason::Unspecified, |reason| Reason::of_code(reason as u8)),
    };
    Ok((digits.trim_start_matches('0').to_owned(), revocation))
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::PrivilegeWithdrawn,
    ];

    /// Its number in RFC 5280.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::PrivilegeWithdrawn => 9,
        }
    }

    /// The reason of this number; those without a word of their own are [`Self::Unspecified`].
    pub fn of_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|reason| reason.code() == code).unwrap_or_default()
    }

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "none of unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation and privilegeWithdrawn"
)]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(s: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str().eq_ignore_ascii_case(s)).ok_or(UnknownReason)
    }
}

/// A serial number that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a serial number: write it in hexadecimal digits, 20 bytes at most, as `openssl x509 -noout -serial` prints it"
)]
pub struct NoSerial;

/// A serial number as people write it (`4F:0A…`, `0x4f0a…`, `serial=4F0A…`), in the form of [`certificate::serial`].
///
/// # Errors
/// It is none.
pub fn serial(text: &str) -> Result<String, NoSerial> {
    let text = text.trim();
    let text = text.strip_prefix("serial=").unwrap_or(text);
    let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let digits = digits.trim_start_matches('0');
    let good = (1..=40).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if good { Ok(digits.to_owned()) } else { Err(NoSerial) }
}
