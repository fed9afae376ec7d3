//! The requests as they are once the current batch is durable, and all that a new one is judged by: how many each user has, to
//! whom those that wait are charged, and the record of the certificates. The writer alone has it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use super::{
    index::{Index, Limits},
    ledger::Ledger,
    stored::{Issuance, StoredRequest, Waiter},
};
use crate::standalone::error::ApiError;

/// A user's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    all: usize,
    pending: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Draft {
    index: Index,
    counts: HashMap<String, Count>,
    /// The requests that wait, by name, each with the caller that it is charged to; and how many each has.
    charged: BTreeMap<Arc<str>, Arc<str>>,
    waiting: HashMap<Arc<str>, usize>,
    ledger: Ledger,
}

impl Draft {
    /// That of a signer with this record.
    pub(super) fn of(ledger: Ledger) -> Self {
        Self { ledger, ..Self::default() }
    }

    /// The requests, the holders of names, and the revocations.
    pub(super) const fn index(&self) -> &Index {
        &self.index
    }

    pub(super) const fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// The valid certificates, and the revoked ones.
    pub(super) const fn ledger(&self) -> &Ledger {
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
        } else if self.index.len() >= all {
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
            self.index.iter().filter(|request| request.waiter().is_some()).cloned().collect();
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

    /// Stores `new` under `name`, or removes the present request. The names of its certificate are held from now on, even without
    /// its request, and the certificate is in the record, which has `room`.
    pub(super) fn set(
        &mut self,
        name: &str,
        new: Option<Arc<StoredRequest>>,
        issuance: Option<&Issuance>,
        room: usize,
        now: SystemTime,
    ) {
        self.discharge(name);
        if let Some(issuance) = issuance {
            self.ledger.note(&issuance.recorded, room, now);
        }
        if let Some(new) = &new {
            let count = self.counts.entry(new.owner().to_owned()).or_default();
            count.all += 1;
            count.pending += usize::from(!new.decided());
            self.charge(new);
        }
        if let Some(old) = self.index.set(name, new, issuance.map(|issuance| &issuance.holding), now)
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
