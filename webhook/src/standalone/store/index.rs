//! The requests by name, with what is asked of all of them at once: how many each user has, who holds which name, which have
//! been there for long enough.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use super::{
    holders::Holders,
    ledger::{Bounds, Ledger},
    stored::{StoredRequest, Waiter, older},
};
use crate::standalone::error::ApiError;

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
/// A user's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    all: usize,
    pending: usize,
}

/// The requests by name, how many each user has, and the holders of names.
#[derive(Clone, Debug, Default)]
pub struct Index {
    requests: BTreeMap<Arc<str>, Arc<StoredRequest>>,
    counts: HashMap<String, Count>,
    /// The requests that wait, by name, each with the caller that it is charged to; and how many each has.
    charged: BTreeMap<Arc<str>, Arc<str>>,
    waiting: HashMap<Arc<str>, usize>,
    holders: Holders,
    ledger: Ledger,
}

impl Index {
    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<StoredRequest>> {
        self.requests.get(name)
    }

    /// All requests after `name`, in the order of their names.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<StoredRequest>> {
        self.requests.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, r)| r)
    }

    /// All requests.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StoredRequest>> {
        self.requests.values()
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

    /// The valid certificates, and the revoked ones.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) const fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Checks that there is place for a new request of `user`, decided on or not; `waiter` tells to whom one that waits is charged.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: which limit is reached.
    pub(super) fn room_for(&self, user: &str, waiter: Option<&Waiter>, limits: &Limits) -> Result<(), ApiError> {
        let count = self.counts.get(user).copied().unwrap_or_default();
        let most = limits.pending_per_user;
        let charged = waiter.map(|waiter| self.charged_to(waiter));
        let of_charged = charged.and_then(|charged| self.waiting.get(charged)).copied().unwrap_or_default();
        let all = if waiter.is_some() { limits.requests } else { limits.requests.saturating_add(limits.requests / 4) };
        let message = if waiter.is_some() && count.pending >= most {
            format!(
                "{user} has {most} requests waiting for approval, which is the limit; have them approved or deleted"
            )
        } else if let Some(charged) = charged.filter(|_| of_charged >= most) {
            format!(
                "{charged} and the hosts that have their certificates by it have {most} requests waiting for approval, which is \
                 the limit (--max-pending-per-user); have them approved or deleted"
            )
        } else if count.all >= limits.per_user {
            format!(
                "{user} has {} requests stored, which is the limit; delete some or try again later",
                limits.per_user
            )
        } else if self.len() >= all {
            format!("{all} requests are stored, which is the limit; have them approved, denied or deleted")
        } else {
            return Ok(());
        };
        Err(ApiError::TooManyRequests { message, retry_after_seconds: 60 })
    }

    /// To whom a request that waits is charged: a host invented by a bootstrap token to that token.
    fn charged_to<'a>(&'a self, waiter: &'a Waiter) -> &'a str {
        self.ledger.origin_of(&waiter.presented).unwrap_or(&waiter.principal)
    }

    /// Charges the requests that wait anew: a journal has them before the record of certificates.
    pub(super) fn charge_all(&mut self) {
        (self.charged, self.waiting) = (BTreeMap::new(), HashMap::new());
        let waiting: Vec<Arc<StoredRequest>> =
            self.iter().filter(|request| request.waiter().is_some()).cloned().collect();
        waiting.iter().for_each(|request| self.charge(request));
    }

    fn charge(&mut self, request: &StoredRequest) {
        let Some(waiter) = request.waiter() else { return };
        let charged: Arc<str> = Arc::from(self.charged_to(waiter));
        *self.waiting.entry(Arc::clone(&charged)).or_default() += 1;
        self.charged.insert(Arc::from(request.name()), charged);
    }

    /// The request of this name waits no more.
    fn discharge(&mut self, name: &str) {
        let Some(charged) = self.charged.remove(name) else { return };
        if let Some(count) = self.waiting.get_mut(&charged) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&charged);
            }
        }
    }

    /// The users who have no place for `wanted` requests more.
    pub(super) fn full_users(&self, limits: &Limits, wanted: usize) -> Vec<String> {
        let full = self.counts.iter().filter(|(_, count)| count.all + wanted > limits.per_user);
        full.map(|(user, _)| user.clone()).collect()
    }

    /// How many requests `user` has.
    pub(super) fn count_of(&self, user: &str) -> usize {
        self.counts.get(user).map_or(0, |count| count.all)
    }

    /// True if a request has been there for long enough.
    pub(super) fn expired(request: &StoredRequest, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now)
    }

    /// Stores `new` under `name`, or removes the present request. The names of a certificate are held from now on, even without
    /// its request, and the certificate is in the record, which has `room`.
    pub(super) fn set(&mut self, name: &str, new: Option<Arc<StoredRequest>>, room: usize, now: SystemTime) {
        self.discharge(name);
        if let Some(new) = &new {
            let count = self.counts.entry(new.owner().to_owned()).or_default();
            count.all += 1;
            count.pending += usize::from(!new.decided());
            if let Some(holding) = new.issued() {
                self.holders.take(holding, now);
            }
            if let Some(recorded) = new.recorded() {
                self.ledger.note(recorded, room, now);
            }
            self.charge(new);
        }
        let old = match new {
            Some(new) => self.requests.insert(Arc::from(name), new),
            None => self.requests.remove(name),
        };
        if let Some(old) = old
            && let Some(count) = self.counts.get_mut(old.owner())
        {
            count.all -= 1;
            count.pending -= usize::from(!old.decided());
            if count.all == 0 {
                self.counts.remove(old.owner());
            }
        }
    }
}
