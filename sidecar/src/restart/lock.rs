//! One restart at a time: a lock that several sidecars of a cluster take turns in.
//!
//! etcd's own comes first: a key on a lease, created by a transaction in the very cluster that is restarted, so whoever
//! cannot reach quorum cannot get it. Where etcd's gateway does not serve us (etcd's auth is on, the gateway is off, or there
//! is no client certificate), a Kubernetes Lease stands in. That one says nothing of quorum; but neither is believed
//! alone: the restarter looks at every other member with the lock in its hand.
//!
//! **Invariant.** Where the pods have the right to the Lease, every holder has it, those too whom etcd serves, who take
//! it after etcd's: what serves one member and not another never makes two holders of two kinds.

mod etcd;
mod kubernetes;

pub use etcd::{EtcdLock, KEY, TTL};
pub use kubernetes::{LeaseLock, Observed};

/// How an attempt to take a lock ended.
#[derive(Debug)]
pub enum Attempt<G> {
    /// It is ours.
    Held(G),
    /// Another one has it.
    HeldBy(String),
    /// This kind of lock is not to be had here, now or later; why.
    Unavailable(String),
}

/// A lock in hand: of one kind, or of both. Dropped without [`Self::release`], it lapses by itself.
#[derive(Debug)]
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

    /// The Lease, with etcd's lock where that was to be had.
    pub fn lease(lock: LeaseLock, etcd: Option<EtcdLock>) -> Self {
        Self { etcd, lease: Some(Box::new(lock)) }
    }

    /// Asks whether all of the lock is still ours, and makes it last longer. To be called right before what it protects, and
    /// every third of [`TTL`] while it is held.
    ///
    /// # Errors
    /// A part of it is lost, or nobody can tell.
    pub async fn confirm(&mut self, client_urls: &[String]) -> Result<(), LockLost> {
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
    pub async fn release(self, client_urls: &[String]) -> Result<(), LockLost> {
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
