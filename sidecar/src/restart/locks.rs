//! Which locks a restart is to hold: etcd's own first, then the Lease, each where it is to be had.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    time::Duration,
};

use super::{AGAIN, IDLE, Wait, options::LeaseOptions};
use crate::restart::lock::{Attempt, EtcdLock, Guard, LeaseLock, Observed};

/// The locks of one cluster's restarts, as one of those who take turns sees them.
pub(super) struct Locks {
    holder: String,
    lease: Option<LeaseOptions>,
    observed: Option<Observed>,
    /// Whether the pod has the right to the Lease, once the API server has said so.
    lease_granted: Option<bool>,
}

impl Locks {
    /// For `holder`; with the Lease, where one is configured.
    pub(super) const fn new(holder: String, lease: Option<LeaseOptions>) -> Self {
        Self { holder, lease, observed: None, lease_granted: None }
    }

    /// Takes what is to be had. `identity` is the directory of what is presented to etcd.
    pub(super) async fn acquire(&mut self, identity: Option<&Path>, client_urls: &[String]) -> Result<Guard, Wait> {
        let (etcd, refused) = match identity {
            None => (None, "the pod has no certificate to present to etcd (roles server or client)".to_owned()),
            Some(dir) => match EtcdLock::acquire(dir, client_urls, &self.holder).await {
                Ok(Attempt::Held(lock)) => (Some(lock), String::new()),
                Ok(Attempt::HeldBy(other)) => return Err(self.held_by(&other)),
                Ok(Attempt::Unavailable(why)) => (None, why),
                Err(error) => return Err(Wait::new("no_lock", error.to_string(), AGAIN)),
            },
        };
        let lease = self.lease(&refused, etcd.is_some()).await;
        match (lease, etcd) {
            (Ok(Some(lease)), etcd) => Ok(Guard::lease(lease, etcd)),
            (Ok(None), Some(etcd)) => Ok(Guard::etcd(etcd)),
            (Ok(None), None) => Err(Wait::new("no_lock", format!("etcd gives no lock: {refused}"), IDLE)),
            (Err(wait), None) => Err(wait),
            (Err(wait), Some(etcd)) => {
                if let Err(error) = etcd.release(client_urls).await {
                    tracing::warn!(%error, "etcd's restart lock was not given back; it lapses by itself");
                }
                Err(wait)
            }
        }
    }

    /// The Lease. Whom etcd does not serve has nothing else to hold, so whom it serves takes the Lease as well, and goes
    /// without it (`None`) only where nobody here can have it: the pods were not given the right to it.
    async fn lease(&mut self, refused: &str, with_etcd: bool) -> Result<Option<LeaseLock>, Wait> {
        let Some(LeaseOptions { client, namespace, name }) = self.lease.clone() else { return Ok(None) };
        match LeaseLock::acquire(client, &namespace, &name, &self.holder, &mut self.observed).await {
            Ok(Attempt::Held(lock)) => {
                self.lease_granted = Some(true);
                Ok(Some(lock))
            }
            Ok(Attempt::HeldBy(other)) => {
                self.lease_granted = Some(true);
                Err(self.held_by(&other))
            }
            Ok(Attempt::Unavailable(why)) => {
                self.lease_granted = Some(false);
                if with_etcd {
                    return Ok(None);
                }
                let text = format!("etcd gives no lock ({refused}), and Kubernetes no Lease ({why})");
                Err(Wait::new("no_lock", text, IDLE))
            }
            // The API server is away, and with it nobody's right to the Lease comes or goes.
            Err(_) if with_etcd && self.lease_granted == Some(false) => Ok(None),
            Err(error) => Err(Wait::new("no_lock", format!("Lease {name}: {error}"), AGAIN)),
        }
    }

    /// Learns, as soon as a restart is due, whether the pod has the right to the Lease: when it may be restarted, the API
    /// server may be away.
    pub(super) async fn ask_for_the_right(&mut self) {
        let Some(LeaseOptions { client, namespace, name }) = self.lease.clone() else { return };
        if self.lease_granted.is_some() {
            return;
        }
        match LeaseLock::granted(client, &namespace, &name).await {
            Ok(granted) => self.lease_granted = Some(granted),
            Err(error) => tracing::debug!(%error, name, "whether the Lease is to be had is not known"),
        }
    }

    /// Those who wait for the same lock ask at different times.
    fn held_by(&self, other: &str) -> Wait {
        let mut hasher = DefaultHasher::new();
        self.holder.hash(&mut hasher);
        let spread = Duration::from_millis(hasher.finish() % 1000);
        Wait::new("locked", format!("{other} is being restarted"), AGAIN / 2 + spread)
    }
}
