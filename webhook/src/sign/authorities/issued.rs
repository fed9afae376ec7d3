//! The unexpired certificates of an authority, so that a certificate can be named by its pod or its user. Pure.
//!
//! The record is in the authority's Secret. It is written seconds after a certificate, with others, and at the end of a
//! term. What a signer that is killed issued since, its successor finds in the requests ([`crate::sign::recollection`]).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::duration::MAX_DURATION;

pub(crate) use super::leaf::{Leaf, Line, Place};
use super::{
    epoch::{seconds, time},
    lean::Lean,
    names::Names,
};
use crate::{
    revoke::{self, Selector},
    rollover::rfc3339,
};

/// Certificates at most: those that end last. Each takes some 280 bytes of the Secret.
pub(crate) const MOST: u16 = 1024;

/// Bytes of different lists of names at most. Beyond it, the pod or user with the most has its certificates recorded without names.
const MOST_NAMES: usize = 64 << 10;

/// Seconds for which a certificate that has ended stays in a record to which none is added, and a revoked one on the list: a clock
/// that is set forward by an hour, and back, loses none.
pub(super) const CLOCK: u64 = 65 * 60;

/// Certificates that a text for people describes, at most.
const DESCRIBED: usize = 3;

/// When a certificate ends, and its serial number.
type Ends<'a> = (u64, &'a str);

/// Seconds after which a certificate is on its pod's disk and in use, as far as the signer can tell.
const SETTLES: u64 = 5;
/// The same of a certificate of kubelet: it writes a volume when it looks at the pod, every one or two minutes.
const VOLUME_SETTLES: u64 = 180;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Issued {
    /// By serial number.
    leaves: Lean<Leaf>,
    /// Seconds of the Unix epoch since which it is complete; 0: nothing was recorded yet.
    since: u64,
    /// Seconds of the Unix epoch when the last valid certificate ends that it lacks; 0: it lacks none.
    lacking_until: u64,
}

impl Issued {
    /// Of no certificate.
    pub(super) const fn none() -> Self {
        Self { leaves: Lean::none(), since: 0, lacking_until: 0 }
    }

    /// Records a certificate. Expired ones are removed; beyond the limit, those that expire first.
    pub(crate) fn note(&mut self, serial: &str, mut leaf: Leaf) {
        if self.since == 0 {
            self.since = leaf.at;
        }
        self.leaves.retain(|other| leaf.at < other.until);
        if self.leaves.get(serial).is_none() {
            self.evict((self.leaves.len() + 1).saturating_sub(usize::from(MOST)));
        }
        let is_known = self.share(&mut leaf);
        self.leaves.insert(serial, leaf);
        if !is_known {
            self.bound_names();
        }
    }

    /// Removes so many certificates and notes that it lacks them: each of the pod or user with the most, so that no requester
    /// displaces the certificates of others, the one that ends first.
    fn evict(&mut self, how_many: usize) {
        if how_many == 0 {
            return;
        }
        let mut by_holder: HashMap<&str, Vec<Ends<'_>>> = HashMap::new();
        for (serial, leaf) in self.leaves.iter() {
            by_holder.entry(leaf.holder()).or_default().push((leaf.until, serial));
        }
        // In each: what ends first is last.
        by_holder.values_mut().for_each(|own| own.sort_unstable_by(|one, other| other.cmp(one)));
        let ranked = by_holder.into_values().filter_map(|own| Some((own.len(), Reverse(*own.last()?), own)));
        let mut holders: BinaryHeap<(usize, Reverse<Ends<'_>>, Vec<Ends<'_>>)> = ranked.collect();
        let mut gone = Vec::with_capacity(how_many.min(self.leaves.len()));
        while gone.len() < how_many
            && let Some((_, Reverse((_, first)), mut own)) = holders.pop()
        {
            gone.push(first.to_owned());
            own.pop();
            if let Some(&next) = own.last() {
                holders.push((own.len(), Reverse(next), own));
            }
        }
        for leaf in gone.iter().filter_map(|serial| self.leaves.remove(serial)) {
            self.since = self.since.max(leaf.at + 1);
            self.lacking_until = self.lacking_until.max(leaf.until);
        }
    }

    /// Has a certificate share the texts of others; true if it has no names of its own. Of thousands, as only a standalone signer has
    /// them, each keeps its own texts.
    fn share(&self, leaf: &mut Leaf) -> bool {
        if self.leaves.len() > usize::from(MOST) {
            return false;
        }
        let (mut text, mut names) = (false, false);
        for other in self.leaves.values() {
            text = text || leaf.share(other);
            names = names || leaf.share_names(other);
            if text && names {
                break;
            }
        }
        names
    }

    /// Leaves out names until their lists take no more than [`MOST_NAMES`]: those of the holder with the most, so that it leaves the
    /// names of others alone.
    fn bound_names(&mut self) {
        let left_out = Arc::new(Names::left_out());
        while let Some(holder) = self.too_many_names() {
            let own = self.leaves.values_mut().filter(|leaf| leaf.holder() == holder);
            own.for_each(|leaf| leaf.leave_out_names(&left_out));
        }
    }

    /// The holder with the most names, where the lists take more than [`MOST_NAMES`].
    fn too_many_names(&self) -> Option<String> {
        let (mut lists, mut of_holders) = (HashSet::new(), HashSet::new());
        let (mut all, mut by_holder): (usize, HashMap<&str, usize>) = (0, HashMap::new());
        for leaf in self.leaves.values() {
            let Some(names) = leaf.names() else { continue };
            let (list, bytes) = (Arc::as_ptr(names), names.text().len());
            if lists.insert(list) {
                all += bytes;
            }
            if of_holders.insert((leaf.holder(), list)) {
                *by_holder.entry(leaf.holder()).or_default() += bytes;
            }
        }
        let most = by_holder.into_iter().max_by_key(|(holder, bytes)| (*bytes, *holder));
        most.filter(|_| all > MOST_NAMES).map(|(holder, _)| holder.to_owned())
    }

    /// True if it holds certificates that ended [a while](CLOCK) before `now`.
    pub(super) fn has_ended(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        self.leaves.values().any(|leaf| leaf.until.saturating_add(CLOCK) <= now)
    }

    /// Removes the certificates that ended [a while](CLOCK) before `now`.
    pub(super) fn forget_ended(&mut self, now: SystemTime) {
        let now = seconds(now);
        self.leaves.retain(|leaf| now < leaf.until.saturating_add(CLOCK));
    }

    /// Removes certificates until it takes at most so many bytes of memory, as [`Self::note`] does beyond the limit.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let mut taken = self.bytes();
        while taken > bytes {
            let before = self.leaves.len();
            // An equal text is freed with the last of its certificates, so that the sum is made anew: few times.
            self.evict(before.div_ceil(16));
            self.leaves.retain(|_| true);
            if self.leaves.len() == before {
                break;
            }
            taken = self.bytes();
        }
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.leaves.bytes() + self.leaves.values().map(Leaf::heap).sum::<usize>()
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

    /// Since when it is complete, in seconds of the Unix epoch, where it lacks a certificate that is valid at `now`, or was [a while](CLOCK)
    /// ago: the clock may be ahead.
    pub(super) fn lacks_before(&self, now: SystemTime) -> Option<u64> {
        let lacks = self.lacking_until > 0 && seconds(now) < self.lacking_until.saturating_add(CLOCK);
        lacks.then_some(self.since)
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

    /// True if it has another certificate of this holder.
    pub(super) fn knows(&self, holder: &str, serial: &str) -> bool {
        self.leaves.iter().any(|(other, leaf)| leaf.holder() == holder && other != serial)
    }

    /// Leaves out those in whose place it has a newer one.
    pub(super) fn leave_out_renewed(&self, ending: &mut HashMap<Place, (String, Leaf)>) {
        for leaf in self.leaves.values() {
            let place = leaf.place();
            if ending.get(&place).is_some_and(|(_, old)| old.at < leaf.at) {
                ending.remove(&place);
            }
        }
    }

    /// The newest certificate of each pod and user, where less than a quarter of its life is left: it is renewed at 40 to 60 %.
    pub(super) fn ending(&self, now: SystemTime) -> Vec<(String, Leaf)> {
        let now = seconds(now);
        let mut newest: HashMap<(&str, &str, bool), (&str, &Leaf)> = HashMap::new();
        for (serial, leaf) in self.leaves.iter().filter(|(_, leaf)| !leaf.pod().is_empty()) {
            let key = (leaf.holder(), leaf.user(), leaf.kubelet);
            let best = newest.entry(key).or_insert((serial, leaf));
            if leaf.at > best.1.at {
                *best = (serial, leaf);
            }
        }
        let ends = |leaf: &Leaf| now + leaf.until.saturating_sub(leaf.at) / 4 > leaf.until;
        let ending = newest.into_values().filter(|(_, leaf)| ends(leaf));
        ending.map(|(serial, leaf)| (serial.to_owned(), leaf.clone())).collect()
    }

    /// True if it holds this serial number.
    pub(crate) fn has(&self, serial: &str) -> bool {
        self.leaves.get(serial).is_some()
    }

    /// When the first certificate of the holder of `new` ends, if it has `most` others that are valid when `new` is issued; `None`:
    /// it may get this one.
    pub(super) fn full_until(&self, serial: &str, new: &Leaf, most: usize) -> Option<SystemTime> {
        let held = || {
            let own = self.leaves.iter().filter(|(other, leaf)| *other != serial && leaf.holder() == new.holder());
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
                all(&|leaf| leaf.pod() == whole)
            }
            Selector::User(user) => all(&|leaf| leaf.user() == *user),
        }
    }

    /// The serial numbers of the newest peer certificates of each holder and cluster ([`Leaf::cluster`]): one, or those of one
    /// second. etcd uses the sidecar's: kubelet's count where there are no others.
    pub(super) fn newest_of_peers(&self) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut newest: BTreeMap<_, ((bool, u64), Vec<&str>)> = BTreeMap::new();
        for (serial, leaf) in self.leaves.iter().filter(|(_, leaf)| leaf.is_peer()) {
            let (best, serials) = newest.entry((leaf.holder(), leaf.cluster())).or_default();
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

    /// Whose certificate this is, for people.
    pub(super) fn whose(&self, serial: &str) -> Option<String> {
        Some(self.leaves.get(serial)?.described())
    }

    /// Whose certificates these are, for people: of some of many.
    pub(super) fn described<'a>(&self, serials: impl Iterator<Item = &'a String>) -> String {
        let mut all: Vec<String> = serials.filter_map(|serial| self.whose(serial)).collect();
        all.sort_unstable();
        all.dedup();
        let more = all.len().saturating_sub(DESCRIBED);
        all.truncate(DESCRIBED);
        match (all.is_empty(), more) {
            (true, _) => String::new(),
            (false, 0) => format!(" ({})", all.join("; ")),
            (false, more) => format!(" ({}; and {more} more)", all.join("; ")),
        }
    }

    /// The keys of these certificates, as far as they are known.
    pub(super) fn keys<'a>(&self, serials: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
        serials
            .filter_map(|serial| self.leaves.get(serial))
            .map(|leaf| leaf.key().into_owned())
            .filter(|key| !key.is_empty())
            .collect()
    }

    /// How many of these certificates have a key that is not known: the record lacks the certificate, or an earlier version
    /// recorded it.
    pub(super) fn without_key<'a>(&self, serials: impl Iterator<Item = &'a String>) -> usize {
        serials.filter(|serial| self.leaves.get(serial).is_none_or(Leaf::lacks_key)).count()
    }

    /// All certificates of these keys, each with its end.
    pub(super) fn of_keys(&self, keys: &BTreeSet<String>) -> BTreeMap<String, Option<SystemTime>> {
        let of = self.leaves.iter().filter(|(_, leaf)| keys.contains(&*leaf.key()));
        of.map(|(serial, leaf)| (serial.to_string(), Some(time(leaf.until)))).collect()
    }

    /// The certificates of the key of this one that were issued later than `at` (seconds of the Unix epoch), each with its end.
    pub(super) fn of_its_key_since(&self, serial: &str, at: u64) -> impl Iterator<Item = (&str, u64)> {
        let this = self.leaves.get(serial);
        let of_key = move |leaf: &Leaf| at < leaf.at && this.is_some_and(|this| leaf.has_key_of(this));
        self.leaves.iter().filter(move |(_, leaf)| of_key(leaf)).map(|(serial, leaf)| (serial, leaf.until))
    }

    /// The holders of peer certificates that are valid at `now`, each with its cluster.
    pub(crate) fn peers(&self, now: SystemTime) -> BTreeSet<(&str, &str)> {
        let valid = self.leaves.values().filter(|leaf| leaf.is_peer() && seconds(now) < leaf.until);
        valid.map(|leaf| (leaf.holder(), leaf.cluster())).collect()
    }

    /// When the last certificate of the record ends.
    pub(crate) fn last_end(&self) -> Option<SystemTime> {
        self.leaves.values().map(|leaf| leaf.until).max().map(time)
    }

    /// The pods that have no newer certificate of the same user than one of these.
    pub(super) fn without_newer<'a>(&self, serials: impl Iterator<Item = &'a String>) -> BTreeSet<&str> {
        let named = serials.filter_map(|serial| self.leaves.get(serial)).filter(|leaf| !leaf.pod().is_empty());
        let newer = |than: &Leaf| {
            self.leaves.values().any(|leaf| leaf.pod() == than.pod() && leaf.alike(than) && leaf.at > than.at)
        };
        named.filter(|leaf| !newer(leaf)).map(Leaf::pod).collect()
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
            let mut others = self.leaves.values().filter(|leaf| leaf.holder() == than.holder() && leaf.alike(than));
            others.any(|leaf| leaf.at > than.at && leaf.at <= settled)
        };
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for serial in serials {
            if let Some(leaf) = self.leaves.get(serial).filter(|leaf| live(leaf.holder()) && !replaced(leaf)) {
                found.entry(leaf.holder()).or_default().insert(serial);
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
        serials.filter_map(|serial| Some(self.leaves.get(serial)?.holder().to_owned())).collect()
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

mod text;

pub(super) use text::WithoutNames;

#[cfg(test)]
mod tests;
