//! Revocation: the requests of operators, which stand as annotations of the trust ConfigMap in the cluster's own namespace, and
//! the signer's answers beside them.

mod command;
mod cut;
mod elsewhere;
mod renewed;
mod signer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use etcd_tls_contract::{
    crl::{self, Reason},
    invalid_value::InvalidValue,
    names,
    role::Domain,
};
use serde::{Deserialize, Serialize};

pub use self::command::Args;
use crate::rollover::{Answer, rfc3339};

/// The end of the signer's answer about certificates that are all in use.
pub const NOT_YET: &str = "is not revoked yet";

/// Pods in the report of a domain at most: an object's annotations hold 256 KiB.
pub const MOST_IN_USE: usize = 100;

/// Revoked certificates of a domain of which a report says whose they are, at most, for the same reason.
pub const MOST_WHOSE: usize = 32;

/// The annotation of a trust ConfigMap that a standalone signer answers from: its members are hosts, and no pods.
pub const STANDALONE_ANNOTATION: &str = "etcd-tls.dev/standalone";

/// The annotation with an operator's [`Request`].
pub fn request_annotation(domain: Domain) -> String {
    format!("{}revoke-{domain}-request", names::ANNOTATION_PREFIX)
}

/// The annotation with the signer's [`Report`].
pub fn status_annotation(domain: Domain) -> String {
    format!("{}revoke-{domain}", names::ANNOTATION_PREFIX)
}

/// An operator's request: `<add|renewed|force|undo>[@<until>] <id> <reason> <selector>`, the id making each request one of its
/// own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The action.
    pub action: Action,
    /// Letters, digits and hyphens; at most 64.
    pub id: String,
    /// The certificates.
    pub selector: Selector,
    /// The reason in the revocation list.
    pub reason: Reason,
    /// Only what was issued until then, in seconds of the Unix epoch by the signer's clock ([`Report::at`]): a user's new
    /// certificates are none of those that an operator names.
    pub until: Option<u64>,
}

/// Certificates: `serial:<number>`, `pod:<name>` or `user:<CN>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one of this serial number.
    Serial(String),
    /// Those of a pod of the cluster's namespace, or of `<namespace>/<name>`.
    Pod(String),
    /// Those of this CN.
    User(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => f.write_str(serial),
            Self::Pod(pod) => write!(f, "pod {pod}"),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

impl Selector {
    /// The pod of this name.
    ///
    /// # Errors
    /// No pod has such a name.
    pub fn pod(text: &str) -> Result<Self, InvalidValue> {
        let (namespace, name) = text.split_once('/').unwrap_or(("x", text));
        if names::is_dns_label(namespace) && names::is_dns_subdomain(name) {
            Ok(Self::Pod(text.to_owned()))
        } else {
            Err(format!("{text:?} is neither the name of a pod nor <namespace>/<name>").into())
        }
    }

    /// The user of this CN.
    ///
    /// # Errors
    /// No certificate has such a CN.
    pub fn user(text: &str) -> Result<Self, InvalidValue> {
        if (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control) && text.trim() == text {
            Ok(Self::User(text.to_owned()))
        } else {
            Err(format!("{text:?} is no CN of a certificate: 1 to 64 characters").into())
        }
    }
}

/// See [`Request::action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Revoke it, unless that takes a quorum of peers away.
    Add,
    /// The same for what no live pod uses any more; the pods that use the rest are in the [`Report`].
    Renewed,
    /// Revoke it in any case.
    Force,
    /// Accept it again.
    Undo,
}

/// The text is not a revocation request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <add|renewed|force|undo>[@<until>] <id> <reason> <serial|pod|user>:<which>")]
pub struct InvalidRevocation;

impl Request {
    /// That it was done.
    pub fn accepted(&self, message: &str) -> Answer {
        Answer { id: self.id.clone(), accepted: true, message: message.to_owned() }
    }

    /// That it was not.
    pub fn refused(&self, message: &str) -> Answer {
        Answer { id: self.id.clone(), accepted: false, message: message.to_owned() }
    }
}

impl std::str::FromStr for Request {
    type Err = InvalidRevocation;

    fn from_str(s: &str) -> Result<Self, InvalidRevocation> {
        let words: Vec<&str> = s.splitn(4, ' ').collect();
        let [action, id, reason, selector] = words[..] else { return Err(InvalidRevocation) };
        let (action, until) = match action.split_once('@') {
            Some((action, until)) => (action, Some(until.parse().map_err(|_| InvalidRevocation)?)),
            None => (action, None),
        };
        let action = match action {
            "add" => Action::Add,
            "renewed" => Action::Renewed,
            "force" => Action::Force,
            "undo" => Action::Undo,
            _ => return Err(InvalidRevocation),
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(InvalidRevocation);
        }
        let selector = match selector.split_once(':') {
            Some(("serial", serial)) => crl::serial(serial).map(Selector::Serial).map_err(|_| InvalidRevocation)?,
            Some(("pod", pod)) => Selector::pod(pod).map_err(|_| InvalidRevocation)?,
            Some(("user", user)) => Selector::user(user).map_err(|_| InvalidRevocation)?,
            _ => return Err(InvalidRevocation),
        };
        let reason = reason.parse().map_err(|_| InvalidRevocation)?;
        Ok(Self { action, id: id.to_owned(), selector, reason, until })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Add => "add",
            Action::Renewed => "renewed",
            Action::Force => "force",
            Action::Undo => "undo",
        };
        let (kind, which) = match &self.selector {
            Selector::Serial(serial) => ("serial", serial),
            Selector::Pod(pod) => ("pod", pod),
            Selector::User(user) => ("user", user),
        };
        let until = self.until.map(|until| format!("@{until}")).unwrap_or_default();
        write!(f, "{action}{until} {} {} {kind}:{which}", self.id, self.reason)
    }
}

/// The signer's report on an authority's revocation list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The answer to the last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Certificates that it was about.
    #[serde(default)]
    pub count: usize,
    /// True if it bars a pod, be there certificates of it or not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bars: bool,
    /// When it was answered, in seconds of the Unix epoch. `None`: by nobody who knows certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Pods that use certificates that it named and left as they are; some of them where there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_use: Vec<InUse>,
    /// Members of the cluster outside of its namespace, as `pod <namespace>/<name>` or `host <username>`; the first ones where there
    /// are many ([`MOST_IN_USE`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<String>,
    /// Set where the record lacked valid certificates when it was answered: those that were issued before then, in seconds of the
    /// Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacked_before: Option<u64>,
    /// The same of now. What a new leader finds is not lacking any more, but the answer was not about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks_before: Option<u64>,
    /// Whose the certificates are that were revoked last ([`MOST_WHOSE`]), by serial number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub whose: BTreeMap<String, String>,
}

/// That a record lacks certificates that were issued before a time, in seconds of the Unix epoch.
pub(crate) fn lacks(before: u64) -> String {
    format!(
        "the record lacks certificates that were issued before {}: only --serial revokes those",
        rfc3339::text(UNIX_EPOCH + Duration::from_secs(before))
    )
}

/// A live pod that uses certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InUse {
    /// `<namespace>/<name>`.
    pub pod: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The certificates' serial numbers.
    pub serials: BTreeSet<String>,
    /// Those of them that kubelet asked for, for a volume: nobody else can renew them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kubelet: BTreeSet<String>,
}

impl InUse {
    /// True if its sidecar can renew one of them.
    fn can_renew(&self) -> bool {
        !self.serials.is_subset(&self.kubelet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back_and_near_misses_are_not() {
        for text in [
            "add 12-ab keyCompromise serial:4f0a",
            "undo 1 unspecified serial:4f0a",
            "force 1 unspecified pod:etcd-0",
            "add 1 unspecified pod:etcd-0",
            "renewed 1 unspecified user:app",
            "renewed@1795886258 1 unspecified user:app",
            "add 1 unspecified pod:web/etcd-0",
            "add 1 unspecified user:app of the shop: 1",
        ] {
            assert_eq!(text.parse::<Request>().map(|r| r.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "add",
            "add 1 unspecified",
            "add 1 unspecified 4f0a",
            "add  unspecified serial:4f0a",
            "add 1 unspecified serial:xyz",
            "add 1 because serial:4f0a",
            "add@ 1 unspecified serial:4f0a",
            "add@-1 1 unspecified serial:4f0a",
            "add 1 unspecified pod:A/b/c",
            "add 1 unspecified user:",
            "add 1 unspecified user: x",
            "add 1 unspecified name:x",
            "start 1 unspecified serial:4f0a",
            &format!("add {} unspecified serial:4f0a", "i".repeat(65)),
        ] {
            assert_eq!(text.parse::<Request>(), Err(InvalidRevocation), "{text}");
        }
    }
}
