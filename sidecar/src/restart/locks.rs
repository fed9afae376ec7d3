//! The locks that a restart holds: etcd's own first, then the Lease, each if available.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    time::Duration,
};

use etcd_tls_contract::endpoint::Endpoint;
use tokio::time::Instant;

use super::{AGAIN, IDLE, Wait, options::LeaseOptions};
use crate::restart::lock::{Attempt, EtcdLock, Guard, KEY, LeaseLock, Observed};

/// No restart of ours takes so long: half an hour of failing probes and a few minutes around it.
const TOO_LONG: Duration = Duration::from_secs(40 * 60);
/// A holder that was not asked about for so long may have given the lock back and taken it again.
const UNWATCHED: Duration = Duration::from_secs(60);

/// The locks of one cluster's restarts, as one of those who take turns sees them.
pub(super) struct Locks {
    holder: String,
    lease: Option<LeaseOptions>,
    /// The Lease as another one holds it.
    observed: Option<Observed>,
    /// The same, of the lock in etcd.
    observed_in_etcd: Option<Observed>,
    /// The holder that is waited for.
    waiting: Option<Waiting>,
    /// True if the pod has the right to the Lease, once the API server has said so.
    lease_granted: Option<bool>,
}

/// A holder that is waited for.
struct Waiting {
    holder: String,
    since: Instant,
    last: Instant,
}

impl Locks {
    /// For `holder`; with the Lease, where one is configured.
    pub(super) const fn new(holder: String, lease: Option<LeaseOptions>) -> Self {
        Self { holder, lease, observed: None, observed_in_etcd: None, waiting: None, lease_granted: None }
    }

    /// Takes the available locks. `identity` is the directory of the client certificate for etcd.
    pub(super) async fn acquire(&mut self, identity: Option<&Path>, client_urls: &[Endpoint]) -> Result<Guard, Wait> {
        let (etcd, refused) = match identity {
            None => (None, "the pod has no certificate to present to etcd (roles server or client)".to_owned()),
            Some(dir) => match EtcdLock::acquire(dir, client_urls, &self.holder, &mut self.observed_in_etcd).await {
                Ok(Attempt::Held(lock)) => (Some(lock), String::new()),
                Ok(Attempt::HeldBy(other)) => return Err(self.held_by(&other, &format!("the key {KEY} in etcd"))),
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
        let Some(LeaseOptions { credentials, namespace, name }) = self.lease.clone() else { return Ok(None) };
        match LeaseLock::acquire(credentials, &namespace, &name, &self.holder, &mut self.observed).await {
            Ok(Attempt::Held(lock)) => {
                self.lease_granted = Some(true);
                Ok(Some(lock))
            }
            Ok(Attempt::HeldBy(other)) => {
                self.lease_granted = Some(true);
                Err(self.held_by(&other, &format!("Lease {name}")))
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
        let Some(LeaseOptions { credentials, namespace, name }) = self.lease.clone() else { return };
        if self.lease_granted.is_some() {
            return;
        }
        match LeaseLock::granted(credentials, &namespace, &name).await {
            Ok(granted) => self.lease_granted = Some(granted),
            Err(error) => tracing::debug!(%error, name, "cannot determine whether the Lease is permitted"),
        }
    }

    /// Those who wait for the same lock ask at different times.
    fn held_by(&mut self, other: &str, place: &str) -> Wait {
        let mut hasher = DefaultHasher::new();
        self.holder.hash(&mut hasher);
        let spread = Duration::from_millis(hasher.finish() % 1000);
        let held = Waiting::go_on(&mut self.waiting, other, Instant::now());
        let text = if held < TOO_LONG {
            format!("{other} is being restarted")
        } else {
            let minutes = held.as_secs() / 60;
            format!(
                "{other} has held the restart lock for {minutes} minutes, longer than a restart takes: see its log; if it is \
                 gone, delete {place}"
            )
        };
        Wait::new("locked", text, AGAIN / 2 + spread)
    }
}

impl Waiting {
    /// For how long `holder` has been waited for until `now`.
    fn go_on(waiting: &mut Option<Self>, holder: &str, now: Instant) -> Duration {
        let known = waiting.as_ref().filter(|w| w.holder == holder && now.duration_since(w.last) < UNWATCHED);
        let since = known.map_or(now, |w| w.since);
        *waiting = Some(Self { holder: holder.to_owned(), since, last: now });
        now.duration_since(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_for_too_long_is_said_to_be() {
        let begin = Instant::now();
        let mut locks = Locks::new("me".to_owned(), None);
        assert_eq!(locks.held_by("a", "it").text, "a is being restarted");
        let age = |locks: &mut Locks, minutes: u64| {
            if let Some(waiting) = &mut locks.waiting {
                waiting.since = waiting.since.checked_sub(Duration::from_secs(60 * minutes)).unwrap_or(begin);
            }
        };
        age(&mut locks, 41);
        let text = locks.held_by("a", "Lease x").text;
        assert!(
            text.starts_with("a has held the restart lock for 41 minutes") && text.ends_with("delete Lease x"),
            "{text}"
        );
        assert_eq!(locks.held_by("b", "it").text, "b is being restarted", "another one");
    }

    #[test]
    fn a_holder_is_timed_for_as_long_as_it_is_asked_about() {
        let begin = Instant::now();
        let mut waiting = None;
        let mut at = |holder: &str, seconds| {
            Waiting::go_on(&mut waiting, holder, begin + Duration::from_secs(seconds)).as_secs()
        };
        assert_eq!((at("a", 0), at("a", 30), at("a", 80)), (0, 30, 80));
        assert_eq!((at("a", 200), at("a", 210)), (0, 10), "it was not asked about in between");
        assert_eq!((at("b", 220), at("a", 230)), (0, 0));
    }
}
