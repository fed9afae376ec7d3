//! Reconciles authorities and trust while this replica leads: generates a CA for each new cluster, publishes trust bundles,
//! takes the steps of rollovers, and deletes the CAs of deleted namespaces.
//!
//! ```text
//! pace      when the next round is due
//! secrets   which authority a Secret belongs to
//! idle      retires the authorities that nobody uses
//! step      one authority's rollover
//! publish   the trust ConfigMaps
//! ```
//!
//! Each round evaluates the whole state and does what is due. A change triggers the next round, and so does a timer. The next
//! round, of this signer or of its successor, completes an interrupted one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::{
    names::{ClusterName, SignerName},
    policy::Policy,
    role::{Domain, Role},
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    authorities::{Authorities, Unavailable, quota::Entry, recollected::Recollected},
    cache::{objects::Objects, pods::Pods},
    metrics::Metrics,
    repair::Upkeep,
};
use crate::{
    ca::authority::Authority,
    controller::{
        events::{
            Notice, Reason, Recorder,
            reasons::{AUTHORITY_LOST, AUTHORITY_UNUSABLE, ROLLOVER_WAITS, TOO_MANY_AUTHORITIES},
        },
        namespaces, policy,
        tasks::Tasks,
    },
};
use idle::{Attempts, Retired};
use pace::{Cost, Pending, settle};
use said::Said;
use step::{LivePods, RoundResult, STABLE, UNKNOWN, describe};

pub(super) mod idle;
mod pace;
mod publish;
pub(super) mod said;
mod secrets;
mod step;

/// Authorities and ConfigMaps that are worked on at once.
const AT_ONCE: usize = 8;
/// Authorities whose results are held at a time, and ConfigMaps whose contents are.
const TOGETHER: usize = 256;
/// How long the first round waits for the certificates that the leader before did not record.
const RECOLLECTED_WITHIN: Duration = Duration::from_secs(30);
/// How often a lasting trouble is said again in the log.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How often it is said whom a rollover waits for.
const REMIND_AGAIN: Duration = Duration::from_secs(60 * 60);

type Namespaces = namespaces::Map;

/// The shared state of a signer's parts.
pub(super) struct Reconciler {
    pub(super) client: Client,
    pub(super) system: String,
    pub(super) policy: policy::Current,
    pub(super) namespaces: namespaces::Current,
    pub(super) authorities: Arc<Authorities>,
    pub(super) pods: Pods,
    pub(super) secrets: Objects,
    pub(super) config_maps: Objects,
    pub(super) changed: Arc<Notify>,
    pub(super) tasks: Tasks,
    pub(super) recorder: Recorder,
    pub(super) metrics: Metrics,
    /// The user's CAs, by Secret and its resourceVersion.
    pub(super) given: HashMap<String, (String, Arc<Authority>)>,
    pub(super) said: Said,
    /// The known state of each trust ConfigMap, by namespace and name.
    pub(super) upkeep: HashMap<(String, String), Upkeep>,
    /// The clusters of pods and hosts; `None`: not every pod was seen yet.
    pub(super) in_use: Option<BTreeSet<Arc<ClusterName>>>,
    /// Those of which a Secret is marked to be kept.
    pub(super) kept_clusters: BTreeSet<ClusterName>,
    pub(super) retired: Retired,
    pub(super) retirements: Attempts,
    /// True if a round has waited for the records to be complete.
    pub(super) waited: bool,
}

impl Reconciler {
    /// Works until it is dropped.
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        let tasks = self.tasks.clone();
        let _secrets = self.secrets.watch_secrets(&self.client, &tasks, &self.system, &self.changed);
        let _config_maps = self.config_maps.watch_config_maps(&self.client, &tasks, &self.changed);
        let mut cost = Cost::default();
        loop {
            let namespaces = self.namespaces.borrow_and_update().clone();
            let policy = self.policy.borrow_and_update().clone();
            let began = Instant::now();
            let mut pending = Pending::Something;
            if let (Some(namespaces), Some(policy)) = (namespaces, policy) {
                pending = self.round(&namespaces, &policy).await;
            }
            cost = cost.after(began.elapsed());
            let rung = async {
                tokio::select! {
                    () = self.changed.notified() => {}
                    result = self.namespaces.changed() => if result.is_err() { std::future::pending::<()>().await },
                    result = self.policy.changed() => if result.is_err() { std::future::pending::<()>().await },
                }
            };
            if timeout(pending.next_round(cost.0), rung).await.is_ok() {
                sleep(settle(cost.0)).await;
            }
        }
    }

    async fn round(&mut self, namespaces: &Namespaces, policy: &Policy) -> Pending {
        // Until they are listed, what the absence of one would mean is not known.
        let Some(secrets) = self.secrets.of(&self.system) else { return Pending::Something };
        let kept = secrets::kept(&secrets, namespaces, &self.retired);
        self.authorities.listed(&kept);
        if !self.config_maps.complete() {
            return Pending::Something;
        }
        // A request to revoke names certificates by the record.
        if !self.waited {
            let mut recollected = self.authorities.recollected();
            let all = recollected.wait_for(|recollected| *recollected == Recollected::All);
            if timeout(RECOLLECTED_WITHIN, all).await.is_err() {
                tracing::warn!(
                    "what the leader before issued is not recorded yet: until then, answers to revoke say that records may lack some"
                );
            }
            self.waited = true;
        }
        self.sweep(&secrets, namespaces).await;
        let wanted = self.wanted(namespaces, policy);
        // A pod that was not seen yet is one that uses a cluster.
        self.in_use = self.pods.complete().then(|| self.pods.clusters_in_use(policy));
        self.kept_clusters = secrets::marked(&secrets);
        let (entries, full) = self.entries(kept, &wanted, namespaces, policy).await;
        self.look_outside(&secrets, namespaces).await;
        self.refresh_given(&entries, policy).await;
        // A pod that was not seen yet is waited for like any other: no step before all are listed.
        let complete = self.pods.complete();
        let (mut reports, mut idle) = (HashMap::new(), HashMap::new());
        let mut pending = if complete { Pending::Nothing } else { Pending::Something };
        for entries in entries.chunks(TOGETHER) {
            for result in self.look_at_all(entries, complete, namespaces, policy).await {
                idle.insert(Arc::clone(&result.name), idle::since(&result));
                if result.trouble.is_some() || result.report.phase != STABLE {
                    pending = Pending::Something;
                }
                self.metrics.report(&result.name, &result.report, result.waiting, result.not_after);
                self.metrics.waits_since(&result.name, result.waiting_since);
                self.say(&result);
                // An unknown phase is not reported.
                if result.report.phase != UNKNOWN
                    && let Ok(text) = serde_json::to_string(&result.report)
                {
                    reports.insert(result.name, text.into());
                }
            }
        }
        let pending_trust = self.publish(&wanted, &reports, namespaces, policy).await;
        let pending_retirement = if complete {
            self.retire(idle::of_results(&entries, &idle), &full, policy).await
        } else {
            Pending::Nothing
        };
        match (pending_trust, pending_retirement) {
            (Pending::Nothing, Pending::Nothing) => pending,
            _ => Pending::Something,
        }
    }

    /// Looks at some authorities. `complete`: all pods were seen.
    async fn look_at_all(
        &self,
        entries: &[Arc<Entry>],
        complete: bool,
        namespaces: &Namespaces,
        policy: &Policy,
    ) -> Vec<RoundResult> {
        let moving: HashSet<&SignerName> =
            entries.iter().filter(|entry| self.may_move(entry)).map(|entry| &*entry.name).collect();
        let mut pods = if complete && !moving.is_empty() {
            self.pods.by_authority(namespaces, policy, |name| moving.contains(name))
        } else {
            HashMap::new()
        };
        let mut with_pods = |entry: &Arc<Entry>| {
            let live = match (complete, moving.contains(&*entry.name)) {
                (false, _) => LivePods::NotListed,
                (true, false) => LivePods::NotGathered,
                (true, true) => LivePods::These(pods.remove(&*entry.name).unwrap_or_default()),
            };
            (Arc::clone(entry), live)
        };
        let work: Vec<(Arc<Entry>, LivePods)> = entries.iter().map(&mut with_pods).collect();
        stream::iter(work)
            .map(|(entry, live)| async move { self.look_at(&entry, &live, policy).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// The clusters whose trust each namespace shall have: those of its pods and hosts, and those that it has already.
    fn wanted(&self, namespaces: &Namespaces, policy: &Policy) -> BTreeSet<(Arc<str>, Arc<ClusterName>)> {
        let mut wanted = self.pods.clusters(namespaces, policy);
        // Elsewhere there is no right to write one.
        let labelled = self.pods.labelled_namespaces();
        let open = |namespace: &str| {
            labelled.contains(namespace)
                || policy.has_hosts_in(namespace)
                || namespaces.get(namespace).is_some_and(|facts| facts.opted_in)
        };
        let gone = |namespace: &str, name: &str| {
            !self.retired.is_empty()
                && self.config_maps.get(namespace, name).is_some_and(|object| self.retired.has(&object.uid))
        };
        let names = self.config_maps.names().into_iter();
        for (namespace, name) in names.filter(|(namespace, name)| open(namespace) && !gone(namespace, name)) {
            // A ConfigMap can have any name. One of a cluster in another namespace counts only where the policy allows pods.
            let allowed = |cluster: &ClusterName| {
                Role::ALL.iter().any(|role| policy.allows_cluster(&namespace, &cluster.signer(role.domain()), *role))
            };
            wanted.extend(
                ClusterName::of_trust_config_map(&namespace, &name)
                    .filter(allowed)
                    .map(|cluster| (Arc::clone(&namespace), Arc::new(cluster))),
            );
        }
        // A pod may name a cluster of a namespace that is not there (yet).
        wanted.retain(|(namespace, cluster)| {
            let there = |name: &str| namespaces.get(name).is_some_and(|facts| !facts.deleting);
            there(namespace) && there(&cluster.namespace)
        });
        wanted
    }

    /// The places of the authorities to look at: those that have a Secret, those that are wanted as far as their namespaces
    /// have room, and those that were asked for otherwise. And the namespaces that have no room.
    async fn entries(
        &mut self,
        kept: BTreeSet<Arc<SignerName>>,
        wanted: &BTreeSet<(Arc<str>, Arc<ClusterName>)>,
        namespaces: &Namespaces,
        policy: &Policy,
    ) -> (Vec<Arc<Entry>>, BTreeSet<String>) {
        let mut names = kept;
        let of_clusters = wanted
            .iter()
            .flat_map(|(_, cluster)| Domain::ALL.map(|domain| policy.authority(&cluster.signer(domain))))
            .filter(|name| namespaces.contains_key(&*name.namespace));
        for name in of_clusters {
            if !names.contains(&name) {
                names.insert(Arc::new(name));
            }
        }
        for name in self.authorities.forget_idle(&names) {
            self.metrics.forget(&name);
        }
        names.extend(self.authorities.entries().iter().map(|entry| Arc::clone(&entry.name)));
        names.retain(|name| namespaces.contains_key(&*name.namespace));
        let mut entries = Vec::new();
        let mut refused: BTreeMap<String, (u32, Arc<SignerName>, String)> = BTreeMap::new();
        for name in names {
            match self.authorities.entry(&name) {
                Ok(entry) => entries.push(entry),
                Err(Unavailable::Full(why)) => {
                    refused.entry(name.namespace.clone()).or_insert((0, name, why)).0 += 1;
                }
                Err(error) => tracing::debug!(authority = %name, %error, "not yet"),
            }
        }
        self.metrics.refused(refused.iter().map(|(namespace, (count, ..))| (namespace.as_str(), *count)));
        let full = refused.keys().cloned().collect();
        for (namespace, (_, first, why)) in refused {
            // One line for each namespace, so that a tenant who names many clusters cannot fill the log.
            self.complain(&namespace, &first, TOO_MANY_AUTHORITIES, &why);
        }
        (entries, full)
    }

    /// Says a step once, and a trouble again and again.
    fn say(&mut self, result: &RoundResult) {
        let name = &result.name;
        if let Some((step, after)) = &result.done {
            let (reason, note) = describe(name, step, after, &result.report);
            tracing::info!(authority = %name, ?step, note, "rollover");
            self.recorder.say_beside(Notice { regarding: reference(name), reason, note });
        }
        if let Some(overdue) = &result.overdue {
            self.remind(name, &format!("{name}: {overdue}"));
        } else {
            self.said.forget(&name.to_string(), ROLLOVER_WAITS.name());
        }
        match (&result.trouble, result.report.phase.as_str()) {
            (Some(trouble), "lost") => self.complain(&name.to_string(), name, AUTHORITY_LOST, &trouble.clone()),
            (Some(trouble), "unusable") => {
                self.complain(&name.to_string(), name, AUTHORITY_UNUSABLE, &trouble.clone());
            }
            (Some(trouble), _) => tracing::debug!(authority = %name, trouble, "not yet"),
            (None, _) => {
                self.said.forget(&name.to_string(), AUTHORITY_LOST.name());
                self.said.forget(&name.to_string(), AUTHORITY_UNUSABLE.name());
            }
        }
    }

    /// Says once an hour whom a rollover waits for.
    fn remind(&mut self, name: &SignerName, text: &str) {
        if !self.said.is_due(&name.to_string(), ROLLOVER_WAITS.name(), text, REMIND_AGAIN, Instant::now()) {
            return;
        }
        tracing::warn!(authority = %name, "{text}");
        self.recorder.say_beside(Notice { regarding: reference(name), reason: ROLLOVER_WAITS, note: text.to_owned() });
    }

    /// Says a trouble of `subject` now and then, beside the trust of an authority.
    fn complain(&mut self, subject: &str, name: &SignerName, reason: &'static Reason, trouble: &str) {
        tracing::debug!(authority = %name, reason = reason.name(), "trouble");
        self.complain_of(subject, reference(name), reason, trouble);
    }

    /// [`Self::complain`], beside any object.
    fn complain_of(&mut self, subject: &str, regarding: ObjectReference, reason: &'static Reason, trouble: &str) {
        if !self.said.is_due(subject, reason.name(), trouble, SAY_AGAIN, Instant::now()) {
            return;
        }
        tracing::error!(subject, reason = reason.name(), "{trouble}");
        self.recorder.say_beside(Notice { regarding, reason, note: trouble.to_owned() });
    }
}

fn reference(name: &SignerName) -> ObjectReference {
    config_map(&name.namespace, &name.cluster_name().trust_config_map(&name.namespace))
}

fn config_map(namespace: &str, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}
