//! The change from one CA to the next, as a pure state machine: from the situation to the next step.
//!
//! ```text
//! stable ──publish──▶ published ──change over──▶ signing ──retire──▶ stable
//!                        │ abort
//!                        └──────▶ stable
//! ```
//!
//! Each arrow but *abort* may be forced by an operator.
//!
//! *published*: the next CA stands beside the present one in the trust bundle, and signs nothing. *signing*: the next CA
//! signs; the old one is still trusted, its key is gone. Each step is one write of the authority's Secret, so that a
//! signer killed at any point is followed by one that goes on from there.
//!
//! **Invariant.** Bundle before leaf, loaded before signed: no leaf of a CA is issued before every live pod of the
//! authority was seen to have loaded it. The exceptions: a CA about to expire, where keeping to the old one loses
//! every pod instead of those that did not load the new one, and an operator's order after a leak; they are named
//! [`ChangeOver::Expiring`] and [`ChangeOver::Forced`] and said loudly.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    role::{Domain, Role},
    trusts::{TrustStatement, Unknown},
};
use serde::{Deserialize, Serialize};

mod command;
mod decide;
mod request;
pub mod rfc3339;
#[cfg(test)]
mod tests;
mod unreported;
mod watch;

pub use command::Args;
pub use decide::decide;
pub use request::{Action, Answer, InvalidRequest, Report, Request, request_annotation, status_annotation};

/// Pods whose progress is kept. Each takes some 70 bytes of a Secret, which holds 1 MiB: with more, those beyond are waited
/// for by time alone, but certificates are issued all the same.
const MAX_PODS: usize = 10_000;
/// Records of pods that are gone are removed when there are so many.
const MAX_GONE: usize = 64;
/// A pod that has not reported for so long is said to be waited for.
const OVERDUE: Duration = Duration::from_secs(15 * 60);

/// A rollover under way, as it is persisted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollover {
    /// How far it is.
    pub phase: Phase,
    /// Why it began.
    pub trigger: Trigger,
    /// The generation that is being left.
    pub old: String,
    /// The generation that takes over.
    pub new: String,
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: SystemTime,
    /// When its phase began.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// Digests of published bundles that hold the new CA: a pod that states one of them trusts it.
    pub accepted: BTreeSet<String>,
    /// An operator said that the clients outside trust the new CA.
    #[serde(default)]
    pub clients_confirmed: bool,
    /// An operator forces it: nobody is waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// When the last leaf of the old CA ends; set at the changeover.
    #[serde(default, with = "rfc3339::option")]
    pub old_leaves_until: Option<SystemTime>,
    /// The observed progress of each pod, by uid.
    #[serde(default)]
    pub pods: BTreeMap<String, PodProgress>,
}

/// See [`Rollover::phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Both are trusted, the old one signs.
    Published,
    /// Both are trusted, the new one signs.
    Signing,
}

/// Why a rollover began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// By command.
    Command,
    /// The user gave another CA.
    Replaced,
    /// Half of the CA's life is over.
    Schedule,
}

/// The observed progress of a pod. It only grows: etcd does not forget a CA that it has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodProgress {
    /// Domains whose bundle with the new CA the pod's etcd was seen to have loaded.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub trusts: BTreeSet<Domain>,
    /// Domains of which the pod cannot see what etcd has loaded, with the reason's word.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unknown: BTreeMap<Domain, String>,
    /// Roles that have a leaf of the new CA.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub renewed: BTreeSet<Role>,
}

/// A pod that holds, or will ask for, certificates of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivePod {
    /// `metadata.uid`.
    pub uid: String,
    /// `<namespace>/<name>`, for people.
    pub name: String,
    /// Its roles that this authority signs.
    pub roles: BTreeSet<Role>,
    /// True if kubelet requests its certificates, so that no request states what it has loaded.
    pub of_kubelet: bool,
    /// True if it is known to belong to the authority's own cluster. By policy, the authority may sign for others, too.
    pub own: bool,
}

/// A CA's generation and its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its digest.
    pub generation: String,
    /// From when.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Life {
    /// Why a CA of this life cannot sign now; `None`: it can.
    pub(crate) fn unfit(&self, now: SystemTime) -> Option<Abort> {
        if self.not_after <= now {
            return Some(Abort::Expired);
        }
        (now < self.not_before).then_some(Abort::NotValidYet)
    }
}

/// All that a decision depends on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The time.
    pub now: SystemTime,
    /// The CA that signs.
    pub active: &'a Life,
    /// The next CA, while one is published.
    pub next: Option<&'a Life>,
    /// The user's CA, where policy names one and it can be read. Without one, CAs are made here.
    pub given: Option<&'a Life>,
    /// Policy says that the CA is the user's, whether it can be read or not: none is made here.
    pub user_owned: bool,
    /// True if others than pods may hold leaves of this authority: clients outside.
    pub outside_clients: bool,
    /// After how long a published CA is taken to have reached the clients outside.
    pub client_overlap: Option<Duration>,
    /// The live pods of the authority.
    pub pods: &'a [LivePod],
    /// Every leaf issued by the active CA ends before this time.
    pub leaves_until: Option<SystemTime>,
    /// The operator's request.
    pub request: Option<&'a Request>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The step; `None`: stay.
    pub step: Option<Step>,
    /// The conditions that it waits for, for people.
    pub waiting: Vec<Waiting>,
    /// The answer to the operator's request, if there was one.
    pub answer: Option<Answer>,
}

/// One write of the authority's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take the next CA back out of the bundle.
    Abort(Abort),
    /// Let the next CA sign.
    ChangeOver(ChangeOver),
    /// Note that the clients outside trust the new CA.
    ConfirmClients,
    /// Publish a next CA that signs at once, by an operator's order.
    Force,
    /// Take the old CA out of the bundle at once, by an operator's order.
    ForceRetire,
    /// Publish a next CA: the user's where there is one, else one made now.
    Publish(Trigger),
    /// Take the old CA out of the bundle.
    Retire,
}

/// Why a published CA is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// By command.
    Command,
    /// It expired before everybody trusted it.
    Expired,
    /// It is not valid yet: a signer made it while its clock was ahead. It could issue nothing.
    NotValidYet,
    /// The user gave yet another one, or the old one again.
    Replaced,
}

/// With what justification the next CA takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOver {
    /// Everybody trusts it.
    Trusted,
    /// The old one is about to expire.
    Expiring,
    /// An operator's order.
    Forced,
}

/// A condition that a rollover waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// An operator's word, or the overlap's end.
    ClientsOutside {
        /// When the overlap ends, where policy states one.
        until: Option<SystemTime>,
    },
    /// The last leaf of the old CA.
    OldLeaves {
        /// When it ends at the latest.
        until: SystemTime,
    },
    /// A pod whose etcd was not yet seen to have loaded the new CA.
    Pod {
        /// `<namespace>/<name>`.
        name: String,
        /// Since when it is waited for.
        since: SystemTime,
        /// Why the pod's sidecar cannot see it, where it says so.
        unknown: Option<Unknown>,
    },
    /// A pod that has no leaf of the new CA yet.
    Renewal(String),
    /// The user's new CA: half of the present one's life is over, and none is made here.
    UserCa {
        /// When the present one ends.
        until: SystemTime,
    },
}

impl Rollover {
    /// The state after [`Step::Publish`]. `accepted` is the digest of the bundle with both.
    pub fn publish(trigger: Trigger, old: &str, new: &str, accepted: BTreeSet<String>, now: SystemTime) -> Self {
        Self {
            phase: Phase::Published,
            trigger,
            old: old.to_owned(),
            new: new.to_owned(),
            started: now,
            since: now,
            accepted,
            clients_confirmed: false,
            forced: false,
            old_leaves_until: None,
            pods: BTreeMap::new(),
        }
    }

    /// The state after [`Step::ChangeOver`].
    #[must_use]
    pub fn change_over(mut self, leaves_until: Option<SystemTime>, now: SystemTime) -> Self {
        self.phase = Phase::Signing;
        self.since = now;
        self.old_leaves_until = Some(leaves_until.unwrap_or(now));
        // Their trust no longer matters, and none has a leaf of the new CA yet.
        self.pods.clear();
        self.forced = false;
        self
    }

    /// Notes what a pod states of its etcd's bundle ([`etcd_tls_contract::names::TRUSTS_ANNOTATION`]). True if anything is
    /// new, and must be persisted.
    pub fn note_trusts(&mut self, uid: &str, domain: Domain, stated: &str) -> bool {
        if self.phase != Phase::Published {
            return false;
        }
        let loaded = self.accepted.contains(stated);
        let unknown = match stated.parse() {
            Ok(TrustStatement::Unknown(reason)) if !loaded => Some(reason),
            _ => None,
        };
        if !loaded && unknown.is_none() {
            return false;
        }
        let Some(pod) = self.progress(uid) else { return false };
        match unknown {
            Some(reason) if !pod.trusts.contains(&domain) => {
                // The first word is persisted. Another one goes with the next write: a pod that states one after the other has none
                // written.
                pod.unknown.insert(domain, reason.as_str().to_owned()).is_none()
            }
            Some(_) => false,
            None => {
                let known = pod.unknown.remove(&domain).is_some();
                pod.trusts.insert(domain) || known
            }
        }
    }

    /// The record of a pod; `None`: there are too many.
    fn progress(&mut self, uid: &str) -> Option<&mut PodProgress> {
        if self.pods.len() >= MAX_PODS && !self.pods.contains_key(uid) {
            return None;
        }
        Some(self.pods.entry(uid.to_owned()).or_default())
    }

    /// Notes that a pod gets a leaf of the new CA. Returns true if anything is new, and must be persisted.
    pub fn note_renewed(&mut self, uid: &str, role: Role) -> bool {
        self.phase == Phase::Signing && self.progress(uid).is_some_and(|pod| pod.renewed.insert(role))
    }

    /// Forgets pods that are not `there` any more, if there are many: short-lived pods without end must not fill the Secret.
    pub fn prune(&mut self, there: impl Fn(&str) -> bool) {
        if self.pods.len() >= MAX_GONE && self.pods.keys().filter(|uid| !there(uid)).count() >= MAX_GONE {
            self.forget_gone(there);
        }
    }

    /// Forgets pods that are not `there` any more. Nothing waits for them, so this alone is no reason to write. A pod that is there stays,
    /// also where it does not count just now: it states once what it has loaded.
    pub fn forget_gone(&mut self, there: impl Fn(&str) -> bool) {
        self.pods.retain(|uid, _| there(uid));
    }
}

/// The message about pods that the rollover has waited for too long; `None`: there are none. It stays the same while the same
/// pods are missing.
pub fn overdue(waiting: &[Waiting], now: SystemTime) -> Option<String> {
    let late = |w: &&Waiting| matches!(w, Waiting::Pod { since, .. } if now.duration_since(*since).unwrap_or_default() >= OVERDUE);
    let pods: Vec<String> = waiting.iter().filter(late).map(ToString::to_string).collect();
    let (first, more) = (pods.first()?, pods.len() - 1);
    let more = if more == 0 { String::new() } else { format!(", and for {more} more pods") };
    Some(format!(
        "the rollover waits for {first}{more}. It goes on when they have reported or are gone; rollover --force goes on \
         without them, at the price of their connections"
    ))
}

impl Phase {
    /// The phase's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Signing => "signing",
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientsOutside { until: None } => {
                f.write_str("clients outside: an operator's --confirm-clients, once they trust the new CA")
            }
            Self::ClientsOutside { until: Some(until) } => {
                write!(f, "clients outside: an operator's --confirm-clients, or {}", rfc3339::text(*until))
            }
            Self::OldLeaves { until } => {
                write!(f, "the old CA's last leaf, which ends by {}", rfc3339::text(*until))
            }
            Self::Pod { name, since, unknown } => {
                let since = rfc3339::text(*since);
                write!(f, "pod {name}: since {since} its process was not seen to have loaded the new CA")?;
                match unknown {
                    Some(reason) => write!(f, "; unknown ({}): {}", reason.as_str(), reason.advice()),
                    None => Ok(()),
                }
            }
            Self::Renewal(name) => write!(f, "pod {name}: no certificate of the new CA yet"),
            Self::UserCa { until } => {
                write!(
                    f,
                    "another CA in the Secret that policy names; the present one ends at {}",
                    rfc3339::text(*until)
                )
            }
        }
    }
}
