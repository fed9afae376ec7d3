//! When a CertificateSigningRequest may go. Pure; the API server's own cleaner is slower by hours.

use std::time::{Duration, SystemTime};

use crate::controller::facts::Csr;

/// An issued one: its certificate was fetched long ago.
pub(super) const ISSUED: Duration = Duration::from_secs(5 * 60);
/// What is left for the fetching at least, however old the request is.
const TO_FETCH: Duration = Duration::from_secs(60);
/// A denied or failed one: for people to read.
pub(super) const REFUSED: Duration = Duration::from_secs(60 * 60);
/// A pending one whose pod may be gone is looked at this often.
pub(super) const PENDING: Duration = Duration::from_secs(10 * 60);

/// What may become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Delete it, in this time.
    Delete(Duration),
    /// Issue, now.
    Issue,
    /// Look whether its pod is still there, in this time.
    Orphan(Duration),
}

/// What is to become of a request of ours.
pub(super) fn fate(csr: &Csr, now: SystemTime) -> Fate {
    let age = csr.created().and_then(|created| now.duration_since(created).ok()).unwrap_or_default();
    // The API server takes a certificate on a request that was denied. What was refused stays refused.
    if csr.denied() || csr.failed() {
        Fate::Delete(REFUSED.saturating_sub(age))
    } else if csr.status.has_certificate {
        Fate::Delete(ISSUED.saturating_sub(age).max(TO_FETCH))
    } else if csr.approved() {
        Fate::Issue
    } else {
        Fate::Orphan(PENDING.saturating_sub(age).max(TO_FETCH))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition as Condition;

    use super::*;

    fn csr(conditions: &[&str], has_certificate: bool) -> Csr {
        let mut csr = Csr::default();
        csr.status.has_certificate = has_certificate;
        csr.status.conditions =
            conditions.iter().map(|c| Condition { type_: (*c).to_owned(), ..Condition::default() }).collect();
        csr
    }

    #[test]
    fn only_what_was_approved_and_not_refused_is_issued() {
        let now = SystemTime::now();
        assert_eq!(fate(&csr(&["Approved"], false), now), Fate::Issue);
        assert_eq!(fate(&csr(&[], false), now), Fate::Orphan(PENDING));
        for refused in
            [&["Denied"][..], &["Failed"], &["Approved", "Denied"], &["Approved", "Failed"], &["Denied", "Failed"]]
        {
            for certificate in [false, true] {
                assert_eq!(fate(&csr(refused, certificate), now), Fate::Delete(REFUSED), "{refused:?}");
            }
        }
        assert_eq!(fate(&csr(&["Approved"], true), now), Fate::Delete(ISSUED));
        assert_eq!(fate(&csr(&[], true), now), Fate::Delete(ISSUED));
    }

    #[test]
    fn an_old_request_that_was_issued_just_now_can_be_fetched() {
        let mut old = csr(&["Approved"], true);
        let now = SystemTime::now();
        let created = k8s_openapi::jiff::Timestamp::try_from(now - Duration::from_secs(3600));
        old.metadata.creation_timestamp = created.ok().map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
        assert!(old.created().is_some());
        assert_eq!(fate(&old, now), Fate::Delete(TO_FETCH));
        old.status.has_certificate = false;
        old.status.conditions[0].type_ = "Denied".to_owned();
        assert_eq!(fate(&old, now), Fate::Delete(Duration::ZERO));
    }
}
