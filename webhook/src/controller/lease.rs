//! Leader election by a Lease: of several replicas one writes, the others wait.
//!
//! A candidate never compares its clock with another's. It notes when *it* saw the Lease change last, and takes it over
//! when it has not changed for the Lease's duration. A leader counts from the moment at which it *sent* its last successful
//! renewal, and stops well before anybody may take over. Every write to the Lease carries its resourceVersion.
//!
//! Leadership only keeps replicas from doing work twice. A late write is harmless because each write carries the uid and the
//! resourceVersion of the object that was read.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::platform::essential::essential;

/// How long a Lease holds without renewal. A killed leader's successor takes over after this, plus the successor's two
/// polls at most.
pub const DURATION: Duration = Duration::from_secs(12);
/// How long a leader that cannot renew stays one.
const RENEW_DEADLINE: Duration = Duration::from_secs(8);
/// How often a leader renews.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often a candidate looks.
const POLL: Duration = Duration::from_secs(1);
/// How long releasing may take when the process ends.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// A replica that wants to lead.
pub struct Candidate {
    leader: watch::Receiver<bool>,
    release: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Candidate {
    /// Runs for the Lease `name` in `namespace` as `identity` (the pod's name), from now until [`Self::release`].
    pub fn spawn(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let (sender, leader) = watch::channel(false);
        let (release, released) = oneshot::channel();
        let campaign = Campaign {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            leader: sender,
            held: None,
            seen: None,
            failures: 0,
        };
        let task = tokio::spawn(essential("lease", campaign.run(released)));
        Self { leader, release, task }
    }

    /// True if this replica leads; writes stop as soon as it does not.
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.leader.clone()
    }

    /// Stops running, and gives the Lease back if it is held, so that a successor need not wait.
    pub async fn release(self) {
        let _ = self.release.send(());
        let _ = tokio::time::timeout(RELEASE_TIMEOUT, self.task).await;
    }
}

struct Campaign {
    api: Api<Lease>,
    name: String,
    identity: String,
    leader: watch::Sender<bool>,
    /// The Lease as this replica wrote it last, and when it began to write it.
    held: Option<(Lease, Instant)>,
    /// The resourceVersion of somebody else's Lease, and when it was first seen here.
    seen: Option<(String, Instant)>,
    /// Looks that failed in a row.
    failures: u32,
}

impl Drop for Campaign {
    /// A replica that is no candidate any more does not lead.
    fn drop(&mut self) {
        self.leader.send_replace(false);
    }
}

/// The action that the state of the Lease calls for.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is free, ours from before a restart, or its holder is gone.
    Take,
    /// Somebody holds it.
    Wait,
}

/// `unchanged`: for how long this replica has seen the Lease as it is.
fn decide(lease: Option<&Lease>, identity: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    if holder.is_empty() || holder == identity || unchanged >= seconds.map_or(DURATION, Duration::from_secs) {
        Step::Take
    } else {
        Step::Wait
    }
}

/// The Lease as `identity` writes it at `now`; an empty one gives it back.
fn written(old: Option<&Lease>, name: &str, identity: &str, now: Timestamp) -> Lease {
    let old_spec = old.and_then(|l| l.spec.clone()).unwrap_or_default();
    let changes_hands = old_spec.holder_identity.as_deref() != Some(identity);
    let transitions = old_spec.lease_transitions.unwrap_or_default();
    let taken = i32::from(changes_hands && old.is_some() && !identity.is_empty());
    let kept =
        old.map_or_else(|| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, |l| l.metadata.clone());
    Lease {
        // The admission policy refuses the first two, also those of somebody else, and managedFields that have grown. One that is empty
        // has the API server write them anew.
        metadata: ObjectMeta {
            finalizers: None,
            owner_references: None,
            managed_fields: old.map(|_| vec![ManagedFieldsEntry::default()]),
            ..kept
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if changes_hands { Some(MicroTime(now)) } else { old_spec.acquire_time },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions.saturating_add(taken)),
            ..old_spec
        }),
    }
}

impl Campaign {
    async fn run(mut self, mut released: oneshot::Receiver<()>) {
        loop {
            // Bounded, so that a request that hangs cannot keep leadership past its deadline.
            let round = async {
                self.round().await;
                sleep(if self.held.is_some() { RENEW_EVERY } else { POLL }).await;
            };
            tokio::select! {
                () = round => {}
                _ = &mut released => break,
            }
        }
        self.leader.send_replace(false);
        if self.held.is_some() {
            match self.give_back().await {
                Ok(()) => tracing::info!(lease = self.name, "gave leadership back"),
                Err(error) => tracing::info!(lease = self.name, %error, "could not give leadership back"),
            }
        }
    }

    /// Reads the Lease again: a renewal may have been in flight at the shutdown signal.
    async fn give_back(&self) -> Result<(), kube::Error> {
        let lease = self.api.get(&self.name).await?;
        if holder(&lease) == self.identity {
            let free = written(Some(&lease), &self.name, "", Timestamp::now());
            self.api.replace(&self.name, &PostParams::default(), &free).await?;
        }
        Ok(())
    }

    /// One renewal, or one look and what it calls for.
    async fn round(&mut self) {
        if let Some((lease, since)) = self.held.clone() {
            self.renew(lease, since).await;
        } else if let Err(error) = self.look().await {
            self.failures += 1;
            // Once a second is too often for the log.
            if self.failures.is_power_of_two() {
                tracing::warn!(lease = self.name, %error, times = self.failures, "cannot stand for leader; trying again");
            }
        } else {
            self.failures = 0;
        }
    }

    /// Renews until it succeeds, the Lease turns out to be another's, or the deadline passes.
    async fn renew(&mut self, mut lease: Lease, since: Instant) {
        let deadline = since + RENEW_DEADLINE;
        loop {
            let sent = Instant::now();
            let next = written(Some(&lease), &self.name, &self.identity, Timestamp::now());
            let result = timeout_at(deadline, self.api.replace(&self.name, &PostParams::default(), &next)).await;
            match result {
                Ok(Ok(lease)) => {
                    self.held = Some((lease, sent));
                    return;
                }
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                    // Somebody wrote it: this replica, if its answer was lost, or the current leader.
                    match timeout_at(deadline, self.api.get(&self.name)).await {
                        Ok(Ok(now)) if holder(&now) == self.identity => lease = now,
                        Ok(Ok(now)) => return self.lost(&format!("{:?} holds it now", holder(&now))),
                        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return self.lost("it was deleted"),
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "could not renew; trying again"),
                Err(_) => {}
            }
            if timeout_at(deadline, sleep(POLL)).await.is_err() || Instant::now() >= deadline {
                return self.lost("it could not be renewed in time");
            }
        }
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let sent = Instant::now();
        let give_up = sent + RENEW_DEADLINE;
        let Ok(lease) = timeout_at(give_up, self.api.get_opt(&self.name)).await else { return Ok(()) };
        let lease = lease?;
        let now = Instant::now();
        let version = lease.as_ref().and_then(|l| l.metadata.resource_version.clone()).unwrap_or_default();
        let unchanged = match &self.seen {
            Some((seen, since)) if *seen == version => now - *since,
            _ => {
                self.seen = Some((version, now));
                Duration::ZERO
            }
        };
        let step = decide(lease.as_ref(), &self.identity, unchanged);
        let next = written(lease.as_ref(), &self.name, &self.identity, Timestamp::now());
        let sent = Instant::now();
        let params = PostParams::default();
        let result = match step {
            Step::Create => timeout_at(sent + RENEW_DEADLINE, self.api.create(&params, &next)).await,
            Step::Take => timeout_at(sent + RENEW_DEADLINE, self.api.replace(&self.name, &params, &next)).await,
            Step::Wait => return Ok(()),
        };
        match result {
            Ok(Ok(lease)) => {
                tracing::info!(lease = self.name, identity = self.identity, "leading");
                self.held = Some((lease, sent));
                self.leader.send_replace(true);
                Ok(())
            }
            // Another candidate was faster.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn lost(&mut self, why: &str) {
        tracing::warn!(lease = self.name, why, "lost leadership");
        self.held = None;
        self.seen = None;
        self.leader.send_replace(false);
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default()
}

// A leader stops before another may start, and a successor starts within 15 s.
const _: () = assert!(RENEW_DEADLINE.as_millis() + RENEW_EVERY.as_millis() < DURATION.as_millis());
const _: () = assert!(DURATION.as_millis() + 2 * POLL.as_millis() < 15_000);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn held_by(identity: &str) -> Lease {
        let mut lease = written(None, "l", identity, Timestamp::UNIX_EPOCH);
        lease.metadata.resource_version = Some("1".to_owned());
        lease
    }

    #[test]
    fn a_free_an_own_or_an_abandoned_lease_is_taken() {
        assert_eq!(decide(None, "a", Duration::ZERO), Step::Create);
        assert_eq!(decide(Some(&held_by("")), "a", Duration::ZERO), Step::Take);
        assert_eq!(decide(Some(&held_by("a")), "a", Duration::ZERO), Step::Take);
        assert_eq!(decide(Some(&held_by("b")), "a", Duration::ZERO), Step::Wait);
        assert_eq!(decide(Some(&held_by("b")), "a", DURATION - Duration::from_millis(1)), Step::Wait);
        assert_eq!(decide(Some(&held_by("b")), "a", DURATION), Step::Take);
        assert_eq!(decide(Some(&Lease::default()), "a", Duration::ZERO), Step::Take);
    }

    #[test]
    fn the_holders_own_duration_is_respected() {
        let mut lease = held_by("b");
        lease.spec.as_mut().unwrap().lease_duration_seconds = Some(60);
        assert_eq!(decide(Some(&lease), "a", Duration::from_secs(59)), Step::Wait);
        assert_eq!(decide(Some(&lease), "a", Duration::from_secs(60)), Step::Take);
    }

    #[test]
    fn a_renewal_keeps_the_acquire_time_and_a_takeover_counts() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = written(None, "l", "a", at(1));
        let renewed = written(Some(&first), "l", "a", at(5)).spec.unwrap();
        assert_eq!(renewed.acquire_time, Some(MicroTime(at(1))));
        assert_eq!((renewed.renew_time, renewed.lease_transitions), (Some(MicroTime(at(5))), Some(0)));
        let freed = written(Some(&first), "l", "", at(6));
        assert_eq!(holder(&freed), "");
        let taken = written(Some(&freed), "l", "b", at(7)).spec.unwrap();
        assert_eq!((taken.acquire_time, taken.lease_transitions), (Some(MicroTime(at(7))), Some(1)));
    }

    #[test]
    fn a_lease_that_somebody_spoiled_can_be_taken() {
        let mut spoiled = held_by("b");
        spoiled.metadata.finalizers = Some(vec!["example.com/f".to_owned()]);
        spoiled.metadata.owner_references = Some(Vec::new());
        spoiled.metadata.managed_fields =
            Some(vec![ManagedFieldsEntry { manager: Some("x".repeat(200)), ..ManagedFieldsEntry::default() }; 30]);
        spoiled.spec.as_mut().unwrap().lease_transitions = Some(i32::MAX);
        let taken = written(Some(&spoiled), "l", "a", Timestamp::UNIX_EPOCH);
        assert_eq!((taken.metadata.finalizers, taken.metadata.owner_references), (None, None));
        assert_eq!(taken.metadata.managed_fields, Some(vec![ManagedFieldsEntry::default()]));
        assert_eq!(taken.spec.unwrap().lease_transitions, Some(i32::MAX));
    }
}
