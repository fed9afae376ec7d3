//! Differences between a request and the certificate of a foreign issuer. Pure.

use std::time::SystemTime;

use etcd_tls_contract::{
    certificate::{CertificateError, Chain},
    duration::format_duration,
    identity,
    names::SignerName,
};

use super::renewal::Template;

/// A life is shorter than asked for if it lacks more than this part of it. Issuers count from a backdated notBefore, or
/// round.
const TOLERATED: u32 = 10;

/// Compares a certificate of a foreign issuer with its request; returns the warning, if any. Our own signers decide by policy,
/// so their certificates pass.
///
/// # Errors
/// The certificate may not be used; the one in use stays: it has a critical extension that nobody handles or usages that were not asked for, or it ends before `current`,
/// the end of the one in use.
pub fn judge(
    template: &Template,
    chain: &Chain,
    current: Option<SystemTime>,
    now: SystemTime,
) -> Result<Option<String>, CertificateError> {
    if template.signer.parse::<SignerName>().is_ok() {
        return Ok(None);
    }
    if let Some(oid) = chain.unhandled_extension()? {
        return Err(CertificateError(format!(
            "it has the critical extension {oid}, which etcd does not handle; see the issuer's profile or template"
        )));
    }
    let added = chain.added_usages(identity::usages(template.role))?;
    if !added.is_empty() {
        return Err(CertificateError(format!(
            "the issuer added usages that were not asked for: {}; see its profile or template for {}",
            added.join(", "),
            template.role
        )));
    }
    let left = chain.not_after.duration_since(now).unwrap_or_default();
    if current.is_some_and(|current| current > now && chain.not_after < current) {
        return Err(CertificateError(format!(
            "it ends in {}, before the certificate in use; does the issuer's CA end, or was its longest life changed?",
            format_duration(left)
        )));
    }
    let short = left + template.lifetime / TOLERATED < template.lifetime;
    Ok(short.then(|| {
        format!(
            "the issuer gave a life of {}, and {} was asked for; the renewal follows the life given",
            format_duration(left),
            format_duration(template.lifetime)
        )
    }))
}
