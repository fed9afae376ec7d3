//! Retires the authorities that nobody uses: whoever creates pods can name any number of clusters, and each would count for as long
//! as its namespace.
//!
//! A cluster's authorities are idle while no pod and no host is of it, every certificate has ended, and no rollover is under way.
//! Since when is in the Secret, so that a new leader goes on. After [`Policy::idle_authorities`] the trust ConfigMaps are deleted
//! first, then the Secrets: a signer that is killed between goes on, and no trust is left of a CA whose Secret is gone.
//!
//! **Invariant.** A CA is not deleted by what a watch shows alone: its own state, written and read in its Secret, says that every
//! certificate has ended, and the deletion is of exactly that state. That its time has come was said in a round before.
//!
//! A round retires a few clusters ([`attempts::AT_ONCE`]); one that cannot be retired is left alone for a while, and for longer each time.

mod attempts;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    names::{self, ClusterName, SignerName},
    policy::Policy,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use tokio::time::Instant;

pub(in crate::sign) use attempts::Attempts;

use super::{Pending, Reconciler, config_map, step::RoundResult};
use crate::{
    controller::{
        client::{ApiServerError, within},
        events::{
            Notice,
            reasons::{AUTHORITY_IDLE, AUTHORITY_RETIRED},
        },
        ids::Uid,
        listed::{Key, key},
    },
    rollover::rfc3339,
    sign::authorities::{quota::Entry, state::Stored},
};

/// Where another cluster wants the place, an authority is retired after this.
const SOON: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is said that an authority is to be retired.
const SAY_IDLE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a watch may show what was deleted.
const LAG: Duration = Duration::from_secs(10 * 60);

/// The reason of a line of the log.
const NOT_RETIRED: &str = "NotRetired";

/// The uids of objects that were deleted here, which the watches may show still: they are not wanted for them.
#[derive(Debug, Default)]
pub(in crate::sign) struct Retired(HashMap<Uid, Instant>);

impl Retired {
    fn add(&mut self, uid: Uid, now: Instant) {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < LAG);
        self.0.insert(uid, now);
    }

    /// True if an object was deleted.
    pub(super) fn has(&self, uid: &Uid) -> bool {
        self.0.contains_key(uid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The idle authorities of a cluster.
struct Cluster {
    entries: Vec<Arc<Entry>>,
    /// Since when all are idle; `None`: one is not.
    since: Option<SystemTime>,
}

impl Reconciler {
    /// Since when an authority is idle, in the state that is to be written. `asked`: an operator's request waits for it.
    pub(super) fn idle_since(
        &self,
        name: &SignerName,
        stored: &Stored,
        asked: bool,
        policy: &Policy,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let before = stored.state.idle_since;
        let Some(in_use) = &self.in_use else { return before };
        let used = asked || in_use.contains(&name.cluster_name()) || is_named(name, policy) || self.is_kept(name);
        match (used || !stored.rests(now), before) {
            (true, _) => None,
            // A clock that was set back begins anew.
            (false, before) => Some(before.filter(|since| *since <= now).unwrap_or(now)),
        }
    }

    /// True if somebody has marked a Secret of the cluster to be kept.
    fn is_kept(&self, name: &SignerName) -> bool {
        self.kept_clusters.contains(&name.cluster_name())
    }

    /// Says which clusters are idle, and retires some of those whose time has come. `full`: namespaces that want more authorities
    /// than they may have. Returns the work for another round.
    pub(super) async fn retire(
        &mut self,
        idle: Vec<(Arc<Entry>, Option<SystemTime>)>,
        full: &BTreeSet<String>,
        policy: &Policy,
    ) -> Pending {
        let (now, mut clusters) = (SystemTime::now(), BTreeMap::<ClusterName, Cluster>::new());
        for (entry, since) in idle {
            let new = || Cluster { entries: Vec::new(), since };
            let cluster = clusters.entry(entry.name.cluster_name()).or_insert_with(new);
            // Idle as a whole since the last of them is.
            cluster.since = cluster.since.zip(since).map(|(one, other)| one.max(other));
            cluster.entries.push(entry);
        }
        let mut due = BTreeMap::new();
        for (cluster, Cluster { entries, since }) in clusters {
            let soon = full.contains(&cluster.namespace);
            let at = since.zip(policy.idle_authorities).map(|(since, after)| {
                let after = if soon { after.min(SOON) } else { after };
                since + after
            });
            for entry in &entries {
                self.metrics.retires(&entry.name, at);
            }
            let Some(at) = at else {
                self.said.forget(&cluster.to_string(), AUTHORITY_IDLE.name());
                continue;
            };
            self.say_idle(&cluster, at).await;
            if at <= now {
                due.insert(cluster, entries);
            }
        }
        let these = self.retirements.these(due.keys(), Instant::now());
        for cluster in &these.now {
            let Some(entries) = due.get(cluster) else { continue };
            match self.retire_cluster(cluster, entries, now).await {
                Ok(()) => {
                    self.retirements.succeeded(cluster);
                    self.said.forget(&cluster.to_string(), NOT_RETIRED);
                }
                Err(error) => {
                    self.retirements.failed(cluster, Instant::now());
                    let (subject, text) = (cluster.to_string(), error.to_string());
                    if self.said.is_due(&subject, NOT_RETIRED, &text, SAY_IDLE, Instant::now()) {
                        tracing::warn!(%cluster, %error, "idle authorities cannot be deleted now, so they stay; tried again");
                    }
                }
            }
        }
        these.pending
    }

    async fn say_idle(&mut self, cluster: &ClusterName, at: SystemTime) {
        let note = format!(
            "no pod and no host uses the certificate authorities of {cluster}, and no certificate of theirs is valid. They are deleted \
             at {} with their trust, and a pod that comes later gets new ones. To keep them, annotate a Secret of theirs in {}: {}=true",
            rfc3339::text(at),
            self.system,
            crate::sign::marks::KEEP_ANNOTATION
        );
        if self.said.is_due(&cluster.to_string(), AUTHORITY_IDLE.name(), &note, SAY_IDLE, Instant::now()) {
            tracing::info!(%cluster, at = rfc3339::text(at), "idle authorities");
            self.recorder.say_beside(Notice { regarding: home_of(cluster), reason: AUTHORITY_IDLE, note });
        }
    }

    async fn retire_cluster(
        &mut self,
        cluster: &ClusterName,
        entries: &[Arc<Entry>],
        now: SystemTime,
    ) -> Result<(), RetireError> {
        self.delete_trust(cluster).await?;
        for entry in entries {
            let Some(uid) = self.authorities.retire(entry, now).await? else {
                // In use again: the next round publishes its trust again.
                return Ok(());
            };
            self.retired.add(uid, Instant::now());
            self.metrics.forget(&entry.name);
            tracing::info!(authority = %entry.name, "retired: nobody used it");
        }
        self.said.forget(&cluster.to_string(), AUTHORITY_IDLE.name());
        self.changed.notify_one();
        let note = format!(
            "the certificate authorities of {cluster} were deleted: for long no pod and no host used them, and no certificate of theirs \
             was valid. A pod that comes gets new ones"
        );
        self.recorder.say_beside(Notice { regarding: home_of(cluster), reason: AUTHORITY_RETIRED, note });
        Ok(())
    }

    /// Deletes the ConfigMaps of a cluster's trust: its own, and those of other namespaces.
    async fn delete_trust(&mut self, cluster: &ClusterName) -> Result<(), RetireError> {
        let of = |(namespace, name): &Key| ClusterName::of_trust_config_map(namespace, name).as_ref() == Some(cluster);
        let mut all: BTreeSet<Key> = self.config_maps.names().into_iter().filter(of).collect();
        // Its own is looked for in any case: one that lost its label is not watched, and would make the CA a lost one.
        let own = key(Some(&cluster.namespace), Some(&cluster.trust_config_map(&cluster.namespace)));
        all.insert(own.clone());
        for (namespace, name) in all {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
            let there = match within(api.get_opt(&name)).await {
                Ok(Some(there)) => there.metadata,
                Ok(None) => continue,
                // Where `sign` has no right any more, a leftover of another namespace does no harm: it is written anew when it is wanted.
                Err(error) if error.code() == Some(403) && namespace != own.0 => continue,
                Err(error) => return Err(error.into()),
            };
            let preconditions = Preconditions { uid: there.uid.clone(), resource_version: there.resource_version };
            within(api.delete(&name, &DeleteParams::default().preconditions(preconditions))).await?;
            if within(api.get_opt(&name)).await?.is_some_and(|left| left.metadata.uid == there.uid) {
                return Err(RetireError::Held(format!("{namespace}/{name}")));
            }
            self.retired.add(there.uid.unwrap_or_default().as_str().into(), Instant::now());
        }
        Ok(())
    }
}

/// Why the authorities of a cluster, or their trust, are not gone.
#[derive(Debug, thiserror::Error)]
enum RetireError {
    #[error(transparent)]
    Request(#[from] ApiServerError),
    #[error("ConfigMap {0} is held by a finalizer")]
    Held(String),
}

/// The idle authority of each result; those that are not known are in use.
pub(super) fn of_results(
    entries: &[Arc<Entry>],
    idle_since: &HashMap<Arc<SignerName>, Option<SystemTime>>,
) -> Vec<(Arc<Entry>, Option<SystemTime>)> {
    let since = |entry: &Arc<Entry>| idle_since.get(&entry.name).copied().flatten();
    entries.iter().map(|entry| (Arc::clone(entry), since(entry))).collect()
}

/// Since when the authority of a result is idle.
pub(super) fn since(result: &RoundResult) -> Option<SystemTime> {
    result.idle_since.filter(|_| result.trouble.is_none())
}

/// True if policy names an authority: its key is the operator's, or it signs for others, or others for it.
fn is_named(name: &SignerName, policy: &Policy) -> bool {
    policy.given_secret(name).is_some()
        || policy.shared.iter().any(|shared| shared.authority == *name || shared.signers.contains(name))
}

/// The trust ConfigMap of a cluster in its own namespace, beside which its Events are.
fn home_of(cluster: &ClusterName) -> k8s_openapi::api::core::v1::ObjectReference {
    config_map(&cluster.namespace, &names::trust_config_map(&cluster.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_authority_that_policy_names_is_never_idle() {
        let policy = Policy::parse(
            "authorities: [{signer: peer.etcd-tls.dev/a.given, secretName: s}]\n\
             shared: [{authority: peer.etcd-tls.dev/a.one, signers: [peer.etcd-tls.dev/a.two]}]",
        )
        .unwrap();
        let named = |cluster: &str| is_named(&format!("peer.etcd-tls.dev/a.{cluster}").parse().unwrap(), &policy);
        assert_eq!(["given", "one", "two", "other"].map(named), [true, true, true, false]);
    }

    #[test]
    fn what_was_deleted_is_remembered_for_as_long_as_a_watch_may_lag() {
        let (mut retired, now) = (Retired::default(), Instant::now());
        assert!(retired.is_empty());
        retired.add("a".into(), now);
        retired.add("b".into(), now + LAG / 2);
        assert!(retired.has(&"a".into()) && retired.has(&"b".into()));
        retired.add("c".into(), now + LAG);
        assert!(!retired.has(&"a".into()) && retired.has(&"b".into()) && retired.has(&"c".into()));
    }
}
