//! One stored request: its JSON, which is stored once and sent as it is, and the facts that lists and limits need.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use etcd_tls_contract::certificate::Chain;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};

use super::{holders::Holding, ledger::Recorded};
use crate::standalone::{
    auth::{PRESENTED, User},
    version::Version,
};

/// The condition's reason where a rule of `--approve-group` approved.
pub const AUTO_APPROVED: &str = "AutoApproved";
/// The condition's reason where policy approved.
pub const ENTITLED: &str = "Entitled";
/// How the JSON of each request begins.
const HEAD: &[u8] = b"{\"apiVersion\":\"certificates.k8s.io/v1\"";
/// How it begins in v1beta1.
const BETA_HEAD: &[u8] = b"{\"apiVersion\":\"certificates.k8s.io/v1beta1\"";

/// See the module.
#[derive(Debug)]
pub struct StoredRequest {
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    json: Bytes,
    name: Box<str>,
    uid: Box<str>,
    owner: Box<str>,
    signer: Box<str>,
    labels: BTreeMap<String, String>,
    decided: bool,
    touched: Timestamp,
    issued: Option<Box<Holding>>,
    recorded: Option<Box<Recorded>>,
    waiter: Option<Box<Waiter>>,
}

/// The caller of a request that nobody decided on yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    /// [`User::principal`].
    pub(super) principal: String,
    /// The serial number of the certificate that it presented; empty: another credential.
    pub(super) presented: String,
}

impl Waiter {
    pub(super) fn of(csr: &CertificateSigningRequest) -> Self {
        let presented = csr.spec.extra.as_ref().and_then(|extra| extra.get(PRESENTED)?.first()).cloned();
        Self { principal: User::of(csr).principal(), presented: presented.unwrap_or_default() }
    }
}

impl StoredRequest {
    /// The request, as it is to be stored.
    pub fn new(csr: &CertificateSigningRequest) -> Self {
        let text = |text: &Option<String>| Box::from(text.as_deref().unwrap_or_default());
        let conditions = || csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let created = csr.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let changed = conditions().filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0);
        let touched = changed.chain(created).max().unwrap_or(Timestamp::MIN);
        let certificate = csr.status.as_ref().and_then(|status| status.certificate.as_ref());
        let chain = certificate.and_then(|certificate| Chain::parse(&certificate.0).ok());
        let granted = approved_by(csr) != Some(AUTO_APPROVED);
        let recorded =
            chain.as_ref().map(|chain| Box::new(Recorded::of(csr, chain, User::of(csr).principal(), touched, granted)));
        let decided = conditions().next().is_some();
        Self {
            revision: csr.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default(),
            // Nothing in the type can fail to be JSON.
            json: Bytes::from(serde_json::to_vec(csr).unwrap_or_default()),
            name: text(&csr.metadata.name),
            uid: text(&csr.metadata.uid),
            owner: text(&csr.spec.username),
            signer: Box::from(csr.spec.signer_name.as_str()),
            labels: csr.metadata.labels.clone().unwrap_or_default(),
            decided,
            touched,
            issued: chain.map(|chain| Box::new(holding(csr, chain))),
            recorded,
            waiter: (!decided).then(|| Box::new(Waiter::of(csr))),
        }
    }

    /// The object. It was written here, so it can be read.
    pub fn csr(&self) -> CertificateSigningRequest {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The object's JSON in the words of v1.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The object's JSON in the words of `version`, in two parts.
    pub fn parts(&self, version: Version) -> [Bytes; 2] {
        match version {
            Version::V1beta1 if self.json.starts_with(HEAD) => {
                [Bytes::from_static(BETA_HEAD), self.json.slice(HEAD.len()..)]
            }
            _ => [self.json.clone(), Bytes::new()],
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// `spec.username`: its owner.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// `spec.signerName`.
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// `metadata.labels`: the value of `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// True if it is approved, denied or failed.
    pub const fn decided(&self) -> bool {
        self.decided
    }

    /// Its caller, while nobody has decided on it.
    pub(super) fn waiter(&self) -> Option<&Waiter> {
        self.waiter.as_deref()
    }

    /// When it was made, or last decided on.
    pub(super) const fn touched(&self) -> Timestamp {
        self.touched
    }

    /// The names of the certificate, where one was issued.
    pub(super) fn issued(&self) -> Option<&Holding> {
        self.issued.as_deref()
    }

    /// Serial number and end of the certificate, where one was issued.
    pub fn certificate(&self) -> Option<(&str, SystemTime)> {
        self.recorded().map(|recorded| (recorded.serial(), recorded.until()))
    }

    /// The certificate for the record, where one was issued.
    pub(super) fn recorded(&self) -> Option<&Recorded> {
        self.recorded.as_deref()
    }
}

/// The names of the certificate in a request.
fn holding(csr: &CertificateSigningRequest, chain: Chain) -> Holding {
    Holding {
        common_name: chain.common_name,
        principal: User::of(csr).principal(),
        dns: chain.sans.dns.into_iter().collect(),
        ips: chain.sans.ips.into_iter().collect(),
        until: chain.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        given: approved_by(csr) != Some(AUTO_APPROVED),
        subject: true,
    }
}

/// The reason of the approval, where there is one.
pub fn approved_by(csr: &CertificateSigningRequest) -> Option<&str> {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == "Approved").find_map(|c| c.reason.as_deref().or(Some("")))
}

/// `status`, made where it is missing.
pub fn status_mut(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}

pub(super) fn older(t: Timestamp, life: Duration, now: Timestamp) -> bool {
    i64::try_from(life.as_secs()).is_ok_and(|life| now.as_second().saturating_sub(t.as_second()) >= life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_one_json() {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some("a".to_owned());
        csr.metadata.resource_version = Some("7".to_owned());
        let stored = StoredRequest::new(&csr);
        assert_eq!((stored.name(), stored.revision, &stored.csr()), ("a", 7, &csr));
        for version in [Version::V1, Version::V1beta1] {
            let json = stored.parts(version).concat();
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(value, version.object(&csr));
        }
    }
}
