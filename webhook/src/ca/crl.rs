//! Signs revocation lists. rcgen writes them; the issuer is the CA's own subject, byte for byte, as in what [`super::issue`]
//! signs.

use std::time::SystemTime;

use etcd_tls_contract::crl::{Crl, Reason};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, RevocationReason, RevokedCertParams,
    SerialNumber,
};

use super::{
    authority::Authority,
    der::date,
    issue::{IssueError, Unsigned, sign_draft},
};

/// One certificate on a list.
#[derive(Clone, Copy, Debug)]
pub struct Revoked<'a> {
    /// Its serial number, in the form of [`etcd_tls_contract::certificate::serial`].
    pub serial: &'a str,
    /// When it was revoked.
    pub at: SystemTime,
    /// Why.
    pub reason: Reason,
}

/// Signs list `number` of `authority`, and verifies it as the sidecars do. It is valid as long as the CA: etcd looks at no
/// dates, and the number tells which of two lists is newer.
///
/// # Errors
/// [`IssueError::Encoding`] or [`IssueError::Refused`]; [`IssueError::AuthorityNotValid`] for a CA that has expired.
pub fn sign<'a>(
    authority: &Authority,
    number: u64,
    revoked: impl Iterator<Item = Revoked<'a>>,
    now: SystemTime,
) -> Result<Crl, IssueError> {
    let this_update = now.max(authority.not_before());
    if authority.not_after() <= this_update {
        return Err(IssueError::AuthorityNotValid);
    }
    let on_date = |at| date(at).ok_or(IssueError::AuthorityNotValid);
    let pair = authority.pair().map_err(IssueError::encoding)?;
    let parts = authority.parts().map_err(IssueError::encoding)?;
    let key_identifier = match &parts.key_identifier {
        Some(id) => KeyIdMethod::PreSpecified(id.clone()),
        None => KeyIdMethod::Sha256,
    };
    let revoked_certs = revoked.map(|one| {
        Ok(RevokedCertParams {
            serial_number: serial_number(one.serial)?,
            revocation_time: on_date(one.at)?,
            reason_code: reason(one.reason),
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update: on_date(this_update)?,
        next_update: on_date(authority.not_after())?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect::<Result<_, IssueError>>()?,
        key_identifier_method: key_identifier,
    };
    let issuer = Issuer::new(CertificateParams::default(), Unsigned(&pair));
    let draft = params.signed_by(&issuer).map_err(|e| IssueError::Encoding(e.to_string()))?;
    // version, signature, issuer, thisUpdate …
    let der = sign_draft(draft.der(), &[(2, &parts.subject)], &pair)?;
    let list = Crl::parse(&der).map_err(|e| IssueError::Refused(e.to_string()))?;
    list.verify(authority.chain()).map_err(|e| IssueError::Refused(e.to_string()))?;
    Ok(list)
}

fn serial_number(serial: &str) -> Result<SerialNumber, IssueError> {
    let even = if serial.len() % 2 == 1 { format!("0{serial}") } else { serial.to_owned() };
    let byte = |at| even.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let bytes: Option<Vec<u8>> = (0..even.len()).step_by(2).map(byte).collect();
    let bytes = bytes.ok_or_else(|| IssueError::Encoding(format!("{serial:?} is no serial number")))?;
    Ok(SerialNumber::from_slice(&bytes))
}

const fn reason(reason: Reason) -> Option<RevocationReason> {
    match reason {
        Reason::Unspecified => None,
        Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
        Reason::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
        Reason::Superseded => Some(RevocationReason::Superseded),
        Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
        Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, UNIX_EPOCH};

    use etcd_tls_contract::key::KeyAlgorithm;

    use super::*;

    const DAY: Duration = Duration::from_secs(86400);

    #[test]
    fn a_list_of_each_kind_of_key_says_what_was_revoked() {
        let now = UNIX_EPOCH + DAY * 20_000;
        for key in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Ed25519] {
            let authority = Authority::generate("a", key, DAY * 365, now).unwrap();
            assert!(sign(&authority, 1, std::iter::empty(), now).unwrap().entries().is_empty());
            let serials = ["4f0a", "f0a", "ff00000000000000000000000000000a"];
            let revoked = serials.map(|serial| Revoked { serial, at: now - DAY, reason: Reason::Superseded });
            let list = sign(&authority, 7, revoked.into_iter(), now).unwrap();
            assert_eq!(list.number(), 7);
            assert!(serials.iter().all(|serial| list.entries()[*serial].at == now - DAY), "{:?}", list.entries());
            let expired = sign(&authority, 8, std::iter::empty(), authority.not_after());
            assert_eq!(expired, Err(IssueError::AuthorityNotValid));
        }
    }
}
