//! One stored request: its JSON, as it is sent, in few bytes, and the facts that lists and limits need.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use etcd_tls_contract::certificate::Chain;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};
use serde::Deserialize;

use super::{
    holders::Holding,
    ledger::Recorded,
    packed::{Label, Packed},
};
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
    json: Packed,
    /// Name, uid, owner, signer, and the certificate's serial number, one after the other.
    texts: Box<str>,
    /// Where each of them ends, but the last.
    ends: [usize; 4],
    labels: BTreeMap<String, String>,
    decided: bool,
    touched: Timestamp,
    /// The end of the certificate, where one was issued.
    until: Option<SystemTime>,
    waiter: Option<Box<Waiter>>,
}

/// The certificate of a request, for the records of names and of certificates.
#[derive(Debug)]
pub(super) struct Issuance {
    pub(super) holding: Holding,
    pub(super) recorded: Recorded,
}

impl Issuance {
    /// The certificate in this request, where one was issued.
    pub(super) fn of(csr: &CertificateSigningRequest) -> Option<Self> {
        let chain = Chain::parse(&csr.status.as_ref()?.certificate.as_ref()?.0).ok()?;
        let granted = approved_by(csr) != Some(AUTO_APPROVED);
        let principal = User::of(csr).principal();
        let recorded = Recorded::of(csr, &chain, principal.clone(), touched(csr), granted);
        let holding = Holding {
            common_name: chain.common_name,
            principal,
            dns: chain.sans.dns.into_iter().collect(),
            ips: chain.sans.ips.into_iter().collect(),
            until: chain.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            given: granted,
            subject: true,
        };
        Some(Self { holding, recorded })
    }
}

/// A request that is to be stored, and what its certificate says: read before the writer has it.
#[derive(Debug)]
pub struct Proposal {
    pub(super) csr: CertificateSigningRequest,
    pub(super) issuance: Option<Issuance>,
}

impl From<CertificateSigningRequest> for Proposal {
    fn from(csr: CertificateSigningRequest) -> Self {
        Self { issuance: Issuance::of(&csr), csr }
    }
}

/// A condition, as far as people are told of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its message.
    pub message: Option<String>,
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
        Self::issued(csr, Issuance::of(csr).as_ref())
    }

    /// [`Self::new`], with the certificate that is in it.
    pub(super) fn issued(csr: &CertificateSigningRequest, issuance: Option<&Issuance>) -> Self {
        let recorded = issuance.map(|issuance| &issuance.recorded);
        let text = |text: &'_ Option<String>| text.as_deref().unwrap_or_default().to_owned();
        let parts = [
            text(&csr.metadata.name),
            text(&csr.metadata.uid),
            text(&csr.spec.username),
            csr.spec.signer_name.clone(),
            recorded.map_or_else(String::new, |recorded| recorded.serial().to_owned()),
        ];
        let mut end = 0;
        let ends = [0, 1, 2, 3].map(|part: usize| {
            end += parts[part].len();
            end
        });
        let decided = csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).next().is_some();
        // Nothing in the type can fail to be JSON.
        let json = serde_json::to_string(csr).unwrap_or_default();
        let certificate = csr.status.as_ref().and_then(|status| status.certificate.as_ref());
        let certificate = certificate.map_or(&[][..], |certificate| &certificate.0);
        Self {
            revision: csr.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default(),
            json: Packed::new(&json, [(&csr.spec.request.0, Label::Request), (certificate, Label::Certificate)]),
            texts: parts.concat().into_boxed_str(),
            ends,
            labels: csr.metadata.labels.clone().unwrap_or_default(),
            decided,
            touched: touched(csr),
            until: recorded.map(Recorded::until),
            waiter: (!decided).then(|| Box::new(Waiter::of(csr))),
        }
    }

    /// The object. It was written here, so it can be read.
    pub fn csr(&self) -> CertificateSigningRequest {
        serde_json::from_slice(&self.json()).unwrap_or_default()
    }

    /// The object's JSON in the words of v1.
    pub fn json(&self) -> Vec<u8> {
        self.json.json()
    }

    /// The object's JSON in the words of `version`, in two parts.
    pub fn parts(&self, version: Version) -> [Bytes; 2] {
        let json = Bytes::from(self.json());
        match version {
            Version::V1beta1 if json.starts_with(HEAD) => [Bytes::from_static(BETA_HEAD), json.slice(HEAD.len()..)],
            _ => [json, Bytes::new()],
        }
    }

    /// Bytes of the object's JSON in the words of `version`.
    pub fn size(&self, version: Version) -> usize {
        match version {
            Version::V1beta1 if self.json.without_values().as_bytes().starts_with(HEAD) => {
                self.json.len() - HEAD.len() + BETA_HEAD.len()
            }
            _ => self.json.len(),
        }
    }

    /// `status.conditions`.
    pub fn conditions(&self) -> Vec<Condition> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Decided {
            status: Conditions,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Conditions {
            conditions: Vec<Condition>,
        }
        serde_json::from_str(self.json.without_values()).map(|Decided { status }| status.conditions).unwrap_or_default()
    }

    fn text(&self, from: usize, to: usize) -> &str {
        self.texts.get(from..to).unwrap_or_default()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.text(0, self.ends[0])
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.text(self.ends[0], self.ends[1])
    }

    /// `spec.username`: its owner.
    pub fn owner(&self) -> &str {
        self.text(self.ends[1], self.ends[2])
    }

    /// `spec.signerName`.
    pub fn signer(&self) -> &str {
        self.text(self.ends[2], self.ends[3])
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

    /// Serial number and end of the certificate, where one was issued.
    pub fn certificate(&self) -> Option<(&str, SystemTime)> {
        Some((self.text(self.ends[3], self.texts.len()), self.until?))
    }
}

/// When it was made, or last decided on.
fn touched(csr: &CertificateSigningRequest) -> Timestamp {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let created = csr.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let changed = conditions.filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0);
    changed.chain(created).max().unwrap_or(Timestamp::MIN)
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
            assert_eq!(json.len(), stored.size(version));
        }
    }
}
