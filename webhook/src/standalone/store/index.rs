//! The requests by name, the holders of names, and the revocations: all that readers see.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::BTreeSet,
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use super::{
    holders::{Holders, Holding},
    ledger::Bounds,
    revocations::Revocations,
    stored::{StoredRequest, older},
};

/// How much is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in all. Those that are decided on at once have a quarter of it more, so that no requests of others that wait
    /// keep a host from its renewal.
    pub requests: usize,
    /// Requests of one user, decided on or not.
    pub per_user: usize,
    /// Requests that nobody decided on yet: of one user, and of the hosts that are charged to one (`Leaf::origin`).
    pub pending_per_user: usize,
    /// Names that a user's automatically approved certificates may hold.
    pub names_per_user: usize,
    /// Valid certificates.
    pub certificates: Bounds,
    /// How long a request waits for somebody to decide on it.
    pub pending_life: Duration,
    /// How long a decided one stays.
    pub decided_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 10_000,
            per_user: 2_000,
            pending_per_user: 1_000,
            names_per_user: 10_000,
            certificates: Bounds::default(),
            pending_life: Duration::from_secs(24 * 3600),
            decided_life: Duration::from_secs(3600),
        }
    }
}
/// A request in a set of them, in the order of their names.
#[derive(Clone, Debug)]
struct ByName(Arc<StoredRequest>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name().cmp(other.0.name())
    }
}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ByName {}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Index {
    requests: BTreeSet<ByName>,
    holders: Holders,
    revocations: Revocations,
}

impl Index {
    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<StoredRequest>> {
        self.requests.get(name).map(|found| &found.0)
    }

    /// All requests after `name`, in the order of their names.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<StoredRequest>> {
        self.requests.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|found| &found.0)
    }

    /// All requests.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StoredRequest>> {
        self.requests.iter().map(|found| &found.0)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The holders of names.
    pub const fn holders(&self) -> &Holders {
        &self.holders
    }

    pub(super) const fn holders_mut(&mut self) -> &mut Holders {
        &mut self.holders
    }

    /// The revocations.
    pub const fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) const fn revocations_mut(&mut self) -> &mut Revocations {
        &mut self.revocations
    }

    /// True if a request has been there for long enough.
    pub(super) fn expired(request: &StoredRequest, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now)
    }

    /// Stores `new` under its name, which is `name`, or removes the present request. The names of a certificate are held from
    /// now on, even without its request. Gives the request that was there.
    pub(super) fn set(
        &mut self,
        name: &str,
        new: Option<Arc<StoredRequest>>,
        holding: Option<&Holding>,
        now: SystemTime,
    ) -> Option<Arc<StoredRequest>> {
        if let Some(holding) = holding {
            self.holders.take(holding, now);
        }
        let old = match new {
            Some(new) => self.requests.replace(ByName(new)),
            None => self.requests.take(name),
        };
        old.map(|old| old.0)
    }
}
