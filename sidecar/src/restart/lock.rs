//! One restart at a time: a lock that several sidecars of a cluster take turns in.
//!
//! etcd's own comes first: a key on a lease, created by a transaction in the cluster that is being restarted, so a member
//! without quorum cannot take it. Where etcd's gateway does not serve us (etcd's auth is on, the gateway is off, or there is no
//! client certificate), a Kubernetes Lease stands in. A Lease says nothing about quorum. The restarter does not rely on the
//! lock alone: it checks every other member while it holds the lock.
//!
//! **Invariant.** If the pods have the right to the Lease, every holder takes it, after etcd's lock if there is one. So two members cannot hold locks of two kinds at once.

mod etcd;
mod kubernetes;

use std::time::Duration;

use etcd_tls_contract::endpoint::Endpoint;
use tokio::time::Instant;

pub use self::{
    etcd::{EtcdLock, KEY},
    kubernetes::{LeaseError, LeaseLock},
};

/// Seconds after which a holder that is gone no longer holds the lock.
pub const TTL: u32 = 30;
/// A record that promises to last longer than this, or for ever, is not ours: no version of ours asks for more than [`TTL`].
/// Once it has been seen unchanged for so long, its holder is taken for gone.
pub const LONGEST: Duration = Duration::from_secs(2 * TTL as u64);

/// Another holder's record as it was last seen, and since when it has been seen so.
#[derive(Clone, Debug)]
pub struct Observed {
    record: String,
    since: Instant,
}

impl Observed {
    /// How long `record` has been unchanged at `now`. `observed` keeps the last record.
    fn unchanged(observed: &mut Option<Self>, record: String, now: Instant) -> Duration {
        let since = observed.as_ref().filter(|o| o.record == record).map_or(now, |o| o.since);
        *observed = Some(Self { record, since });
        now.duration_since(since)
    }
}

/// How an attempt to take a lock ended.
#[derive(Debug)]
pub enum Attempt<G> {
    /// It is ours.
    Held(G),
    /// Another one has it.
    HeldBy(String),
    /// This kind of lock is not available here, now or later; the reason.
    Unavailable(String),
}

/// A lock in hand: of one kind, or of both. Dropped without [`Self::release`], it lapses by itself.
pub struct Guard {
    /// A key in etcd.
    etcd: Option<EtcdLock>,
    /// A Kubernetes Lease.
    lease: Option<Box<LeaseLock>>,
}

/// A lock that is no longer ours, or that may be no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the restart lock is lost: {0}")]
pub struct LockLost(pub String);

impl Guard {
    /// A key in etcd alone: nobody in this namespace has the right to the Lease.
    pub const fn etcd(lock: EtcdLock) -> Self {
        Self { etcd: Some(lock), lease: None }
    }

    /// The Lease, with etcd's lock if that is available.
    pub fn lease(lock: LeaseLock, etcd: Option<EtcdLock>) -> Self {
        Self { etcd, lease: Some(Box::new(lock)) }
    }

    /// Asks whether all of the lock is still ours, and makes it last longer. To be called right before what it protects, and
    /// every third of [`TTL`] while it is held.
    ///
    /// # Errors
    /// A part of it is lost, or nobody can tell.
    pub async fn confirm(&mut self, client_urls: &[Endpoint]) -> Result<(), LockLost> {
        if let Some(lock) = &mut self.etcd {
            lock.confirm(client_urls).await?;
        }
        match &mut self.lease {
            Some(lock) => lock.confirm().await,
            None => Ok(()),
        }
    }

    /// Gives the lock to the next one.
    ///
    /// # Errors
    /// Not all of it could be given back; the rest lapses by itself within [`TTL`].
    pub async fn release(self, client_urls: &[Endpoint]) -> Result<(), LockLost> {
        let lease = match self.lease {
            Some(lock) => lock.release().await,
            None => Ok(()),
        };
        let etcd = match self.etcd {
            Some(lock) => lock.release(client_urls).await,
            None => Ok(()),
        };
        lease.and(etcd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_timed_from_when_it_was_first_seen_as_it_is() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut observed = None;
        let mut unchanged =
            |record: &str, seconds| Observed::unchanged(&mut observed, record.to_owned(), at(seconds)).as_secs();
        assert_eq!((unchanged("a", 0), unchanged("a", 10), unchanged("a", 20)), (0, 10, 20));
        assert_eq!((unchanged("b", 30), unchanged("b", 40)), (0, 10), "it has changed");
        assert_eq!((unchanged("a", 50), unchanged("a", 51)), (0, 1), "and changed back");
    }
}
