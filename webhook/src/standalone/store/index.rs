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
    stored::{Stored, older},
};
use crate::standalone::error::ApiError;

/// How much is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in all.
    pub requests: usize,
    /// Requests of one user, decided on or not.
    pub per_user: usize,
    /// Requests of one user that nobody decided on yet.
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
    requests: BTreeMap<Arc<str>, Arc<Stored>>,
    counts: HashMap<String, Count>,
    holders: Holders,
    ledger: Ledger,
}

impl Index {
    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Stored>> {
        self.requests.get(name)
    }

    /// All requests after `name`, in the order of their names.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<Stored>> {
        self.requests.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, r)| r)
    }

    /// All requests.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.requests.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
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

    /// Whether there is place for a new request of `user`, decided on or not.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: which limit is reached.
    pub fn room_for(&self, user: &str, decided: bool, limits: &Limits) -> Result<(), ApiError> {
        let count = self.counts.get(user).copied().unwrap_or_default();
        let message = if !decided && count.pending >= limits.pending_per_user {
            format!(
                "{user} has {} requests waiting for approval, which is the limit; have them approved or deleted",
                limits.pending_per_user
            )
        } else if count.all >= limits.per_user {
            format!(
                "{user} has {} requests stored, which is the limit; delete some or try again later",
                limits.per_user
            )
        } else if self.len() >= limits.requests {
            format!(
                "{} requests are stored, which is the limit; have them approved, denied or deleted",
                limits.requests
            )
        } else {
            return Ok(());
        };
        Err(ApiError::TooManyRequests { message, retry_after_seconds: 60 })
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

    /// Whether a request has been there for long enough.
    pub(super) fn expired(request: &Stored, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now)
    }

    /// Stores `new` under `name`, or removes the present request. The names of a certificate are held from now on, even without
    /// its request, and the certificate is in the record, which has `room`.
    pub(super) fn set(&mut self, name: &str, new: Option<Arc<Stored>>, room: usize, now: SystemTime) {
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
