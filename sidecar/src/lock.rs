//! One restart at a time: a lock that several sidecars of a cluster take turns in.
//!
//! etcd's own comes first: a key on a lease, created by a transaction in the very cluster that is restarted, so whoever
//! cannot reach quorum cannot get it. Where etcd's gateway does not serve us (etcd's auth is on, the gateway is off, or there
//! is no client certificate), a Kubernetes Lease stands in. That one says nothing of quorum; but neither is believed
//! alone: the restarter looks at every other member with the lock in its hand.

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

/// A lock in hand. Dropped without [`Self::release`], it lapses by itself.
#[derive(Debug)]
pub enum Guard {
    /// A key in etcd.
    Etcd(EtcdLock),
    /// A Kubernetes Lease.
    Lease(Box<LeaseLock>),
}

/// A lock that is no longer ours, or that may be no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the restart lock is lost: {0}")]
pub struct LockLost(pub String);

impl Guard {
    /// Asks whether the lock is still ours, and makes it last longer. To be called right before what it protects, and every
    /// third of [`TTL`] while it is held.
    ///
    /// # Errors
    /// It is lost, or nobody can tell.
    pub async fn confirm(&mut self, client_urls: &[String]) -> Result<(), LockLost> {
        match self {
            Self::Etcd(lock) => lock.confirm(client_urls).await,
            Self::Lease(lock) => lock.confirm().await,
        }
    }

    /// Gives the lock to the next one.
    ///
    /// # Errors
    /// It could not be given back, and lapses by itself within [`TTL`].
    pub async fn release(self, client_urls: &[String]) -> Result<(), LockLost> {
        match self {
            Self::Etcd(lock) => lock.release(client_urls).await,
            Self::Lease(lock) => lock.release().await,
        }
    }
}
