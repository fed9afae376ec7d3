//! The unexpired certificates of an authority, so that a certificate can be named by its pod or its user. Pure.
//!
//! The record is in the authority's Secret. It is written two seconds after a certificate, with others, and at the end of a
//! term. What a signer that is killed issued since, its successor finds in the requests ([`crate::sign::recollection`]).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use etcd_tls_contract::{csr, duration::MAX_DURATION, role::Role};
use serde::{Deserialize, Serialize};

use super::{
    epoch::{seconds, time},
    lean::Lean,
};
use crate::{
    revoke::{self, Selector},
    rollover::rfc3339,
};

/// Certificates at most: those that end last. Each takes some 250 bytes of the Secret.
pub(crate) const MOST: u16 = 1024;

/// Seconds after which a certificate is on its pod's disk and in use, as far as the signer can tell.
const SETTLES: u64 = 5;
/// The same of a certificate of kubelet: it writes a volume when it looks at the pod, every one or two minutes.
const VOLUME_SETTLES: u64 = 180;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Issued {
    /// By serial number.
    leaves: Lean<Leaf>,
    /// Seconds of the Unix epoch since which it is complete; 0: nothing was recorded yet.
    since: u64,
    /// Seconds of the Unix epoch when the last valid certificate ends that it lacks; 0: it lacks none.
    #[serde(skip_serializing_if = "is_zero")]
    lacking_until: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    /// When it was issued, and when it ends; seconds of the Unix epoch.
    pub(crate) at: u64,
    pub(crate) until: u64,
    /// The uid of the pod, or [`super::super::cache::pods::host_holder`].
    pub(crate) holder: String,
    /// `<namespace>/<name>` of the pod; empty for a host.
    pub(crate) pod: String,
    /// The subject's CN.
    pub(crate) user: String,
    /// True if it is a peer's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) peer: bool,
    /// True if kubelet asked for it, for a volume of `podCertificate`. The sidecar's is another one, and neither replaces the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) kubelet: bool,
    /// The cluster, as `<namespace>/<name>`, of a standalone signer's peer: nothing else tells it there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) cluster: String,
    /// To whom a standalone signer issued it. Several callers may share the name of one host or client there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) principal: String,
    /// [`csr::key_digest`] of its public key; empty in records of earlier versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) key: String,
    /// How a standalone signer's caller came to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<Box<Line>>,
}

/// The certificates by which a caller of a standalone signer came to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Line {
    /// The serial number of the certificate that was presented; empty: another credential.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) presented: String,
    /// The serial number of the first certificate of its branch: of renewals, each by the one before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) branch: String,
    /// The branch that is charged for its branch: that of the certificate that was presented a second time, as after a lost
    /// answer. Empty: its branch is charged itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) root: String,
    /// To whom it is charged: the caller that the presented certificates lead back to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) origin: String,
    /// True if its branch began in the record of another domain, where it is charged.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) elsewhere: bool,
}

impl Leaf {
    /// A certificate of now.
    pub(crate) fn new(holder: &str, pod: String, user: &str, not_after: SystemTime, now: SystemTime) -> Self {
        // Every pod's peer has such a CN; a host has the one that policy gives it.
        let peer = user.starts_with(Role::Peer.common_name_prefix());
        let (holder, user) = (holder.to_owned(), user.to_owned());
        Self {
            at: seconds(now),
            until: seconds(not_after),
            holder,
            pod,
            user,
            peer,
            kubelet: false,
            cluster: String::new(),
            principal: String::new(),
            key: String::new(),
            line: None,
        }
    }

    /// To whom it is charged. Records of earlier versions lack that.
    pub(crate) fn origin(&self) -> &str {
        self.line.as_ref().map_or(self.principal.as_str(), |line| line.origin.as_str())
    }

    /// True if its branch began in the record of another domain.
    pub(crate) fn began_elsewhere(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.elsewhere)
    }

    /// The branch of this certificate, whose own serial number is `serial`.
    pub(crate) fn branch<'a>(&'a self, serial: &'a str) -> &'a str {
        self.line.as_ref().map_or(serial, |line| line.branch.as_str())
    }

    /// The branch that is charged for this certificate, whose own serial number is `serial`.
    pub(crate) fn root<'a>(&'a self, serial: &'a str) -> &'a str {
        let root = self.line.as_ref().map(|line| line.root.as_str()).filter(|root| !root.is_empty());
        root.unwrap_or_else(|| self.branch(serial))
    }

    /// One for this public key, DER.
    pub(crate) fn for_key(self, public_key: &[u8]) -> Self {
        Self { key: csr::key_digest(public_key), ..self }
    }

    /// One of a host of `cluster`, for a standalone signer.
    pub(crate) fn of_cluster(self, cluster: String) -> Self {
        Self { cluster, ..self }
    }

    /// One that a standalone signer issued to `principal`.
    pub(crate) fn to(self, principal: String) -> Self {
        Self { principal, ..self }
    }

    /// One that kubelet asked for.
    pub(crate) fn of_kubelet(self) -> Self {
        Self { kubelet: true, ..self }
    }

    /// True if `other` is for the same user and comes by the same way.
    fn alike(&self, other: &Self) -> bool {
        self.user == other.user && self.kubelet == other.kubelet
    }

    /// One of this role.
    pub(crate) fn of_role(self, role: Role) -> Self {
        Self { peer: role == Role::Peer, ..self }
    }

    /// Records of earlier versions lack the role.
    fn is_peer(&self) -> bool {
        self.peer || self.user.starts_with(Role::Peer.common_name_prefix())
    }
}

impl Issued {
    /// Records a certificate. Expired ones are removed; beyond the limit, those that expire first.
    pub(crate) fn note(&mut self, serial: &str, leaf: Leaf) {
        if self.since == 0 {
            self.since = leaf.at;
        }
        self.leaves.retain(|other| leaf.at < other.until);
        while self.leaves.len() >= usize::from(MOST) && self.leaves.get(serial).is_none() {
            // From the pod or user with the most, so that no requester displaces the certificates of others.
            let mut counts: HashMap<&str, usize> = HashMap::new();
            self.leaves.values().for_each(|leaf| *counts.entry(&leaf.holder).or_default() += 1);
            let rank =
                |leaf: &Leaf| (Reverse(counts.get(leaf.holder.as_str()).copied().unwrap_or_default()), leaf.until);
            let first = self.leaves.iter().min_by_key(|(_, leaf)| rank(leaf)).map(|(serial, _)| serial.to_owned());
            let Some(gone) = first.and_then(|serial| self.leaves.remove(&serial)) else { break };
            self.since = self.since.max(gone.at + 1);
            self.lacking_until = self.lacking_until.max(gone.until);
        }
        self.leaves.insert(serial, leaf);
    }

    /// It is not known what was issued before `now`; that ends at `end` at the latest. However long its CA is, no certificate is longer
    /// than [`MAX_DURATION`].
    pub(super) fn lost(&mut self, now: SystemTime, end: SystemTime) {
        self.since = self.since.max(seconds(now));
        self.lacking_until = self.lacking_until.max(seconds(end.min(now + MAX_DURATION)));
    }

    /// Records what `other` has, and lacks what it lacks.
    pub(super) fn take_in(&mut self, other: &Self) {
        if other.lacking_until > 0 {
            self.since = self.since.max(other.since);
            self.lacking_until = self.lacking_until.max(other.lacking_until);
        }
        other.leaves.iter().for_each(|(serial, leaf)| self.note(serial, leaf.clone()));
    }

    /// Since when it is complete, in seconds of the Unix epoch, where it lacks a certificate that is valid at `now`.
    pub(super) fn lacks_before(&self, now: SystemTime) -> Option<u64> {
        (seconds(now) < self.lacking_until).then_some(self.since)
    }

    /// What it says of itself, without the certificates.
    pub(crate) fn emptied(&self) -> Self {
        Self { leaves: Lean::default(), ..*self }
    }

    /// The certificate of this serial number.
    pub(crate) fn get(&self, serial: &str) -> Option<&Leaf> {
        self.leaves.get(serial)
    }

    /// Puts a certificate in the place of the one of this serial number, and removes no other one.
    pub(crate) fn put(&mut self, serial: &str, leaf: Leaf) {
        if self.since == 0 {
            self.since = leaf.at;
        }
        self.leaves.insert(serial, leaf);
    }

    /// Removes the certificate of this serial number.
    pub(crate) fn remove(&mut self, serial: &str) -> Option<Leaf> {
        self.leaves.remove(serial)
    }

    /// All certificates, in the order of their serial numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Leaf)> {
        self.leaves.iter()
    }

    /// How many certificates it holds.
    pub(crate) fn len(&self) -> usize {
        self.leaves.len()
    }

    /// True if it holds this serial number.
    pub(crate) fn has(&self, serial: &str) -> bool {
        self.leaves.get(serial).is_some()
    }

    /// When the first certificate of the holder of `new` ends, if it has `most` others that are valid when `new` is issued; `None`:
    /// it may get this one.
    pub(super) fn full_until(&self, serial: &str, new: &Leaf, most: usize) -> Option<SystemTime> {
        let held = || {
            let own = self.leaves.iter().filter(|(other, leaf)| *other != serial && leaf.holder == new.holder);
            own.filter(|(_, leaf)| new.at < leaf.until).map(|(_, leaf)| leaf)
        };
        let first = held().map(|leaf| leaf.until).min()?;
        (held().count() >= most).then(|| time(first))
    }

    /// The certificates that `selector` names, each with its end where that is known.
    pub(super) fn named(&self, selector: &Selector, namespace: &str) -> BTreeMap<String, Option<SystemTime>> {
        let all = |wanted: &dyn Fn(&Leaf) -> bool| {
            let found = self.leaves.iter().filter(|(_, leaf)| wanted(leaf));
            found.map(|(serial, leaf)| (serial.to_owned(), Some(time(leaf.until)))).collect()
        };
        match selector {
            Selector::Serial(serial) => {
                let end = self.leaves.get(serial).map(|leaf| time(leaf.until));
                BTreeMap::from([(serial.clone(), end)])
            }
            Selector::Pod(pod) => {
                let whole = whole(pod, namespace);
                all(&|leaf| leaf.pod == whole)
            }
            Selector::User(user) => all(&|leaf| leaf.user == *user),
        }
    }

    /// The serial numbers of the newest peer certificates of each holder and cluster ([`Leaf::cluster`]): one, or those of one
    /// second. etcd uses the sidecar's: kubelet's count where there are no others.
    pub(super) fn newest_of_peers(&self) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut newest: BTreeMap<_, ((bool, u64), Vec<&str>)> = BTreeMap::new();
        for (serial, leaf) in self.leaves.iter().filter(|(_, leaf)| leaf.is_peer()) {
            let (best, serials) = newest.entry((leaf.holder.as_str(), leaf.cluster.as_str())).or_default();
            let rank = (!leaf.kubelet, leaf.at);
            if rank > *best {
                serials.clear();
            }
            if rank >= *best {
                *best = rank;
                serials.push(serial);
            }
        }
        newest.into_iter().map(|(of, (_, serials))| (of, serials)).collect()
    }

    /// The keys of these certificates, as far as they are known.
    pub(super) fn keys<'a>(&self, serials: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        serials
            .filter_map(|serial| self.leaves.get(serial))
            .map(|leaf| leaf.key.to_string())
            .filter(|key| !key.is_empty())
            .collect()
    }

    /// How many of these certificates have a key that is not known: the record lacks the certificate, or an earlier version
    /// recorded it.
    pub(super) fn without_key<'a>(&self, serials: impl Iterator<Item = &'a String>) -> usize {
        serials.filter(|serial| self.leaves.get(serial).is_none_or(|leaf| leaf.key.is_empty())).count()
    }

    /// All certificates of these keys, each with its end.
    pub(super) fn of_keys(&self, keys: &BTreeSet<String>) -> BTreeMap<String, Option<SystemTime>> {
        let of = self.leaves.iter().filter(|(_, leaf)| keys.contains(leaf.key.as_str()));
        of.map(|(serial, leaf)| (serial.to_string(), Some(time(leaf.until)))).collect()
    }

    /// The certificates of the key of this one that were issued later than `at` (seconds of the Unix epoch), each with its end.
    pub(super) fn of_its_key_since(&self, serial: &str, at: u64) -> impl Iterator<Item = (&str, u64)> {
        let key = self.leaves.get(serial).map(|leaf| leaf.key.as_str()).filter(|key| !key.is_empty());
        let of_key = move |leaf: &Leaf| at < leaf.at && key == Some(leaf.key.as_str());
        self.leaves.iter().filter(move |(_, leaf)| of_key(leaf)).map(|(serial, leaf)| (serial, leaf.until))
    }

    /// The holders of peer certificates that are valid at `now`, each with its cluster.
    pub(crate) fn peers(&self, now: SystemTime) -> BTreeSet<(&str, &str)> {
        let valid = self.leaves.values().filter(|leaf| leaf.is_peer() && seconds(now) < leaf.until);
        valid.map(|leaf| (leaf.holder.as_str(), leaf.cluster.as_str())).collect()
    }

    /// When the last certificate of the record ends.
    pub(crate) fn last_end(&self) -> Option<SystemTime> {
        self.leaves.values().map(|leaf| leaf.until).max().map(time)
    }

    /// The pods that have no newer certificate of the same user than one of these.
    pub(super) fn without_newer<'a>(&self, serials: impl Iterator<Item = &'a String>) -> BTreeSet<&str> {
        let named = serials.filter_map(|serial| self.leaves.get(serial)).filter(|leaf| !leaf.pod.is_empty());
        let newer = |than: &Leaf| {
            self.leaves.values().any(|leaf| leaf.pod == than.pod && leaf.alike(than) && leaf.at > than.at)
        };
        named.filter(|leaf| !newer(leaf)).map(|leaf| leaf.pod.as_str()).collect()
    }

    /// Which of these certificates a pod that is `live` uses, by its uid: it has no newer one of the same user that
    /// came by the same way. What was issued less than [`SETTLES`] or [`VOLUME_SETTLES`] before `now` may not be on its disk yet.
    pub(super) fn in_use<'a>(
        &'a self,
        serials: impl Iterator<Item = &'a String>,
        live: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let replaced = |than: &Leaf| {
            let settled = seconds(now).saturating_sub(if than.kubelet { VOLUME_SETTLES } else { SETTLES });
            let mut others = self.leaves.values().filter(|leaf| leaf.holder == than.holder && leaf.alike(than));
            others.any(|leaf| leaf.at > than.at && leaf.at <= settled)
        };
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for serial in serials {
            if let Some(leaf) = self.leaves.get(serial).filter(|leaf| live(&leaf.holder) && !replaced(leaf)) {
                found.entry(&leaf.holder).or_default().insert(serial);
            }
        }
        found
    }

    /// True if kubelet asked for a certificate.
    pub(super) fn is_of_kubelet(&self, serial: &str) -> bool {
        self.leaves.get(serial).is_some_and(|leaf| leaf.kubelet)
    }

    /// When a certificate was issued, in seconds of the Unix epoch.
    pub(super) fn at(&self, serial: &str) -> Option<u64> {
        self.leaves.get(serial).map(|leaf| leaf.at)
    }

    /// The holders of these certificates.
    pub(super) fn holders<'a>(&self, serials: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        serials.filter_map(|serial| Some(self.leaves.get(serial)?.holder.clone())).collect()
    }

    /// Which certificates can be named by their pod or user at `now`, for people.
    pub(super) fn told(&self, now: SystemTime) -> String {
        match self.lacks_before(now) {
            Some(since) => revoke::lacks(since),
            None if self.since == 0 => "the record is empty: nothing was issued".to_owned(),
            None => format!("the record holds what was issued since {}", rfc3339::text(time(self.since))),
        }
    }
}

/// A pod's namespace and name; one without a namespace is in `namespace`.
pub(super) fn whole(pod: &str, namespace: &str) -> String {
    if pod.contains('/') { pod.to_owned() } else { format!("{namespace}/{pod}") }
}

#[cfg(test)]
mod tests;
