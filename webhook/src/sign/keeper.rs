//! Keeps authorities and trust as they shall be, for as long as this replica leads: makes CAs for clusters whose first pod
//! is seen, publishes their trust, takes the steps of rollovers, and deletes the CAs of namespaces that are gone.
//!
//! One round looks at everything that is known and does what is due. Whatever changes rings for another round; a clock
//! does, too. A round that was cut off is made good by the next one, of whichever signer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_sidecar::{
    names::{self, SignerName},
    policy::Policy,
    role::{Domain, Role},
};
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{ConfigMap, ObjectReference},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    ClusterName,
    authorities::{
        Authorities, CA_LABEL, Held, MANAGED_LABEL, SIGNER_ANNOTATION, UID_ANNOTATION, Unavailable, generate,
    },
    metrics::Metrics,
    objects::Objects,
    pods::Pods,
    state::{Stored, life},
    trust::{Desired, cluster_of, config_map_name},
    watches::Watches,
};
use crate::{
    authority::Authority,
    client::{RequestError, within},
    events::{Notice, Recorder},
    namespace_watch::{self, NamespaceFacts},
    policy_watch,
    rollover::{ChangeOver, LivePod, Report, Request, Situation, Step, decide, request_annotation, rfc3339},
};

/// A round without anything having changed: for the clock, and for rights that came.
const EVERY: Duration = Duration::from_secs(2);
/// What rings within this time rings once.
const SETTLE: Duration = Duration::from_millis(10);
/// Authorities and ConfigMaps that are worked on at once.
const AT_ONCE: usize = 8;
/// How often a lasting trouble is said again in the log.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The reasons of an authority's lasting troubles.
const LOST: &str = "AuthorityLost";
const UNUSABLE: &str = "AuthorityUnusable";
/// The user's CA cannot be used; the one in use stays.
const GIVEN_UNUSABLE: &str = "GivenAuthorityUnusable";

/// The phase of an authority that could not be looked at just now.
const UNKNOWN: &str = "unknown";

type Namespaces = BTreeMap<String, NamespaceFacts>;

/// What a signer shares between its parts.
pub(super) struct Keeper {
    pub(super) client: Client,
    pub(super) system: String,
    pub(super) policy: policy_watch::Current,
    pub(super) namespaces: namespace_watch::Current,
    pub(super) authorities: Arc<Authorities>,
    pub(super) pods: Pods,
    pub(super) secrets: Objects,
    pub(super) config_maps: Objects,
    pub(super) changed: Arc<Notify>,
    pub(super) recorder: Recorder,
    pub(super) metrics: Metrics,
    /// The user's CAs, by Secret and its resourceVersion.
    pub(super) given: HashMap<String, (String, Arc<Authority>)>,
    pub(super) said: HashMap<(SignerName, &'static str), (String, Instant)>,
    /// Content that was seen to be as it shall be, by ConfigMap and its resourceVersion.
    pub(super) settled: HashMap<(String, String), (String, Desired)>,
}

/// What a round found out about an authority.
struct Standing {
    name: SignerName,
    report: Report,
    waiting: usize,
    not_after: Option<SystemTime>,
    trouble: Option<String>,
    done: Option<(Step, Stored)>,
}

impl Keeper {
    /// Works until it is dropped.
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        let mut pod_watches = Watches::default();
        let mut config_map_watches = Watches::default();
        let mut always = Watches::default();
        always.keep(&BTreeSet::from([String::new()]), |_| self.pods.watch_labelled(&self.client, &self.changed));
        let mut system = Watches::default();
        let (secrets, client, changed) = (self.secrets.clone(), self.client.clone(), Arc::clone(&self.changed));
        system.keep(&BTreeSet::from([self.system.clone()]), |ns| secrets.watch_secrets(&client, ns, &changed));
        loop {
            let namespaces = self.namespaces.borrow_and_update().clone();
            let policy = self.policy.borrow_and_update().clone();
            if let (Some(namespaces), Some(policy)) = (namespaces, policy) {
                let opted_in: BTreeSet<String> = namespaces
                    .iter()
                    .filter(|(_, facts)| facts.opted_in && !facts.deleting)
                    .map(|(name, _)| name.clone())
                    .collect();
                self.pods.watch_namespaces(&self.client, &opted_in, &mut pod_watches, &self.changed);
                let mut watched = self.pods.labelled_namespaces();
                watched.extend(policy.hosts.iter().map(|host| host.cluster.namespace.clone()));
                watched.retain(|namespace| namespaces.contains_key(namespace));
                watched.extend(opted_in.iter().cloned());
                self.config_maps.watch_config_maps(&self.client, &watched, &mut config_map_watches, &self.changed);
                self.round(&namespaces, &opted_in, &policy).await;
            }
            let rung = async {
                tokio::select! {
                    () = self.changed.notified() => {}
                    result = self.namespaces.changed() => if result.is_err() { std::future::pending::<()>().await },
                    result = self.policy.changed() => if result.is_err() { std::future::pending::<()>().await },
                }
            };
            if timeout(EVERY, rung).await.is_ok() {
                sleep(SETTLE).await;
            }
        }
    }

    async fn round(&mut self, namespaces: &Namespaces, opted_in: &BTreeSet<String>, policy: &Policy) {
        // Until the Secrets are listed, what a Secret's absence would mean is not known.
        let Some(secrets) = self.secrets.of(&self.system) else { return };
        self.sweep(&secrets, namespaces).await;
        let wanted = self.wanted(namespaces, policy);
        let names = self.authority_names(&secrets, &wanted, namespaces, policy);
        self.look_outside(&secrets).await;
        self.refresh_given(&names, policy).await;
        // A pod that was not seen yet is waited for like any other: no step before all are listed.
        let complete = self.pods.complete(opted_in);
        let mut pods = self.pods.by_authority(policy);
        let work = names.into_iter().map(|name| (complete.then(|| pods.remove(&name).unwrap_or_default()), name));
        let this = &*self;
        let standings: Vec<Standing> = stream::iter(work)
            .map(|(live, name)| async move { this.look_at(name, live.as_deref(), policy).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut reports = HashMap::new();
        for standing in standings {
            self.metrics.report(&standing.name, &standing.report, standing.waiting, standing.not_after);
            self.say(&standing).await;
            // What is not known is not said.
            if standing.report.phase != UNKNOWN {
                reports.insert(standing.name, standing.report);
            }
        }
        self.publish(&wanted, &reports, namespaces, policy).await;
    }

    /// The clusters whose trust each namespace shall have: those of its pods and hosts, and those that it has already.
    fn wanted(&self, namespaces: &Namespaces, policy: &Policy) -> BTreeSet<(String, ClusterName)> {
        let mut wanted = BTreeSet::new();
        for (namespace, clusters) in self.pods.clusters(policy) {
            wanted.extend(clusters.into_iter().map(|cluster| (namespace.clone(), cluster)));
        }
        for (namespace, name) in self.config_maps.names() {
            // Whoever may make a ConfigMap may give it any name: of another namespace's cluster it counts as far as pods do.
            let allowed = |cluster: &ClusterName| {
                Role::ALL.iter().any(|role| policy.allows_cluster(&namespace, &cluster.signer(role.domain()), *role))
            };
            wanted.extend(cluster_of(&namespace, &name).filter(allowed).map(|cluster| (namespace.clone(), cluster)));
        }
        // A pod may name a cluster of a namespace that is not there (yet).
        wanted.retain(|(namespace, cluster)| {
            let there = |name: &str| namespaces.get(name).is_some_and(|facts| !facts.deleting);
            there(namespace) && there(&cluster.namespace)
        });
        wanted
    }

    fn authority_names(
        &self,
        secrets: &BTreeMap<String, ObjectMeta>,
        wanted: &BTreeSet<(String, ClusterName)>,
        namespaces: &Namespaces,
        policy: &Policy,
    ) -> BTreeSet<SignerName> {
        let mut names: BTreeSet<SignerName> = wanted
            .iter()
            .flat_map(|(_, cluster)| Domain::ALL.map(|domain| policy.authority(&cluster.signer(domain))))
            .collect();
        names.extend(
            secrets
                .values()
                .filter_map(authority_of)
                .filter(|(name, uid)| {
                    namespaces.get(&name.namespace).is_some_and(|facts| facts.uid == *uid && !facts.deleting)
                })
                .map(|(name, _)| name),
        );
        names.extend(self.authorities.slots().iter().map(|slot| slot.name.clone()));
        names.retain(|name| namespaces.contains_key(&name.namespace));
        names
    }

    /// Has what changed outside read anew.
    async fn look_outside(&self, secrets: &BTreeMap<String, ObjectMeta>) {
        let by_name: HashMap<SignerName, &ObjectMeta> =
            secrets.values().filter_map(|secret| Some((authority_of(secret)?.0, secret))).collect();
        for slot in self.authorities.slots() {
            slot.changed_outside(by_name.get(&slot.name).copied()).await;
        }
    }

    /// Deletes the CAs of namespaces that are gone: of a name that came back, too, since its uid is another one.
    async fn sweep(&mut self, secrets: &BTreeMap<String, ObjectMeta>, namespaces: &Namespaces) {
        for secret in secrets.values() {
            let Some((name, uid)) = authority_of(secret) else { continue };
            if namespaces.get(&name.namespace).is_some_and(|facts| facts.uid == uid) {
                continue;
            }
            // What a watch says is not enough to destroy a key.
            match namespace_watch::live(&self.client, &name.namespace).await {
                Ok(live) if live.as_ref().is_none_or(|facts| facts.uid != uid) => {}
                _ => continue,
            }
            if let Err(error) = self.authorities.delete(secret).await
                && !error.is_not_found()
                && !error.is_stale()
            {
                tracing::warn!(authority = %name, %error, "cannot delete the CA of a namespace that is gone");
            }
            self.authorities.forget(&name);
            self.metrics.forget(&name);
        }
    }

    /// Reads the user's CAs whose Secrets changed.
    async fn refresh_given(&mut self, names: &BTreeSet<SignerName>, policy: &Policy) {
        let now = SystemTime::now();
        for name in names {
            let Some(secret) = policy.given_secret(name) else { continue };
            let version = self.secrets.get(&self.system, secret).and_then(|m| m.resource_version).unwrap_or_default();
            if self.given.get(secret).is_some_and(|(seen, _)| *seen == version) {
                continue;
            }
            match self.authorities.given(policy, name, now).await {
                Ok(Some(authority)) => {
                    self.said.remove(&(name.clone(), GIVEN_UNUSABLE));
                    self.given.insert(secret.to_owned(), (version, Arc::new(authority)));
                }
                Ok(None) => {}
                // The one in use stays in use.
                Err(error) => {
                    self.given.remove(secret);
                    let trouble = error.to_string();
                    self.complain(name, GIVEN_UNUSABLE, &trouble).await;
                }
            }
        }
    }

    /// Looks at one authority and takes the step that is due. `live`: its pods; `None`: they are not known yet.
    async fn look_at(&self, name: SignerName, live: Option<&[LivePod]>, policy: &Policy) -> Standing {
        let now = SystemTime::now();
        let slot = self.authorities.slot(&name);
        let (mut held, error) = self.authorities.look(&slot, now).await;
        let standing = |report, waiting, not_after, trouble, done| Standing {
            name: name.clone(),
            report,
            waiting,
            not_after,
            trouble,
            done,
        };
        let stored = match (&*held, error) {
            (Held::Ready(ready), None) => ready.stored.clone(),
            (_, error) => {
                let phase = match &*held {
                    Held::Lost => "lost",
                    Held::Unusable => "unusable",
                    Held::Ready(_) | Held::Unknown => UNKNOWN,
                };
                let mut report = Report::new(None, &[], None);
                phase.clone_into(&mut report.phase);
                let error = error.map(|e| e.to_string()).unwrap_or_default();
                report.waiting = vec![error.clone()];
                return standing(report, 1, None, Some(error), None);
            }
        };
        let Some(live) = live else {
            let mut report = report_of(&stored, &[]);
            report.waiting.push("the list of pods".to_owned());
            return standing(report, 1, Some(stored.active.not_after()), None, None);
        };
        let (active, next) = (life(&stored.active), stored.next.as_deref().map(life));
        let given_secret = policy.given_secret(&name);
        let given = given_secret.and_then(|secret| self.given.get(secret)).map(|(_, authority)| authority);
        let given_life = given.map(|given| life(given));
        let request = self.request(&name, &stored);
        let situation = Situation {
            now,
            active: &active,
            next: next.as_ref(),
            given: given_life.as_ref(),
            user_owned: given_secret.is_some(),
            outside_clients: outside_clients(&name, policy),
            client_overlap: policy.rollover.client_overlap,
            pods: live,
            leaves_until: stored.state.leaves_until,
            request: request.as_ref(),
        };
        let decision = decide(stored.state.rollover.as_ref(), &situation);
        let mut after = match &decision.step {
            Some(step) => match self.next_ca(&name, step, given_secret, policy, now).await {
                Ok(next) => stored.after(step, next, now),
                Err(error) => return standing(report_of(&stored, &[]), 0, None, Some(error.to_string()), None),
            },
            None => stored.clone(),
        };
        if decision.answer.is_some() {
            after.state.answer.clone_from(&decision.answer);
        }
        let done = decision.step.clone().map(|step| (step, after.clone()));
        if done.is_some() || after.state != stored.state {
            if let Some(rollover) = &mut after.state.rollover {
                rollover.forget_all_but(live);
            }
            if let Err(error) = self.authorities.persist(&name, &mut held, after.clone()).await {
                // Another round reads what is there and decides again.
                return standing(report_of(&stored, &[]), 0, None, Some(error.to_string()), None);
            }
            // There may be a next step at once.
            self.changed.notify_one();
        }
        let until = after.active.not_after();
        let waiting = decision.waiting.len();
        standing(report_of(&after, &decision.waiting), waiting, Some(until), None, done)
    }

    /// The CA that a step publishes.
    async fn next_ca(
        &self,
        name: &SignerName,
        step: &Step,
        given_secret: Option<&str>,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<Option<Authority>, Unavailable> {
        match (step, given_secret) {
            (Step::Publish(_), Some(_)) => self.authorities.given(policy, name, now).await,
            (Step::Publish(_), None) => generate(name, policy, now).map(Some),
            _ => Ok(None),
        }
    }

    /// An operator's request that has no answer yet.
    fn request(&self, name: &SignerName, stored: &Stored) -> Option<Request> {
        let config_map = self.config_maps.get(&name.namespace, &names::trust_config_map(&name.cluster))?;
        let text = config_map.annotations?.remove(&request_annotation(name.domain))?;
        let request: Request = text.parse().ok()?;
        (stored.state.answer.as_ref().map(|a| &a.id) != Some(&request.id)).then_some(request)
    }

    async fn publish(
        &mut self,
        wanted: &BTreeSet<(String, ClusterName)>,
        reports: &HashMap<SignerName, Report>,
        namespaces: &Namespaces,
        policy: &Policy,
    ) {
        let mut due = Vec::new();
        for (namespace, cluster) in wanted {
            let Some(facts) = namespaces.get(namespace) else { continue };
            let desired = self.desired(namespace, cluster, &facts.uid, reports, policy).await;
            let name = config_map_name(namespace, cluster);
            let version = self.config_maps.get(namespace, &name).and_then(|m| m.resource_version);
            let key = (namespace.clone(), name);
            let settled = self
                .settled
                .get(&key)
                .is_some_and(|(seen, content)| version.as_ref() == Some(seen) && *content == desired);
            if !settled && !desired.data.is_empty() {
                due.push((key, desired));
            }
        }
        let this = &*self;
        let written: Vec<_> = stream::iter(due)
            .map(|(key, desired)| async move {
                let result = this.mend(&key.0, &key.1, &desired).await;
                (key, desired, result)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (key, desired, result) in written {
            match result {
                Ok(version) => {
                    self.settled.insert(key, (version, desired));
                }
                Err(error) if error.code() == Some(403) => {
                    tracing::debug!(namespace = key.0, "no right to publish trust yet: approve gives it");
                }
                // Changed since it was looked at, or the namespace is going.
                Err(error) if error.is_stale() || error.is_not_found() => self.changed.notify_one(),
                Err(error) => {
                    tracing::warn!(namespace = key.0, config_map = key.1, %error, "cannot publish trust; trying again");
                }
            }
        }
    }

    async fn desired(
        &self,
        namespace: &str,
        cluster: &ClusterName,
        uid: &str,
        reports: &HashMap<SignerName, Report>,
        policy: &Policy,
    ) -> Desired {
        let mut desired = Desired::new(uid);
        for domain in Domain::ALL {
            let signer = cluster.signer(domain);
            let authority = policy.authority(&signer);
            if let Some(bundle) = self.authorities.bundle(&authority).await {
                desired.publish(domain, bundle.to_pem());
            }
            if authority == signer
                && namespace == cluster.namespace
                && let Some(report) = reports.get(&signer)
            {
                desired.say(domain, report);
            }
        }
        desired
    }

    /// Makes a ConfigMap what it shall be; gives its resourceVersion.
    async fn mend(&self, namespace: &str, name: &str, desired: &Desired) -> Result<String, RequestError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let written = match within(api.get_opt(name)).await? {
            None => within(api.create(&PostParams::default(), &desired.object(name))).await?,
            Some(object) => match desired.patch(&object) {
                None => return Ok(object.metadata.resource_version.unwrap_or_default()),
                Some(patch) => within(api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?,
            },
        };
        self.metrics.trust_writes.inc();
        tracing::info!(namespace, config_map = name, "published trust");
        Ok(written.metadata.resource_version.unwrap_or_default())
    }

    /// Says a step once, and a trouble again and again.
    async fn say(&mut self, standing: &Standing) {
        let name = &standing.name;
        if let Some((step, after)) = &standing.done {
            let (reason, note) = describe(name, step, after, &standing.report);
            tracing::info!(authority = %name, ?step, note, "rollover");
            self.recorder.warn(Notice { regarding: reference(name), reason, note }).await;
        }
        match (&standing.trouble, standing.report.phase.as_str()) {
            (Some(trouble), "lost") => self.complain(name, LOST, &trouble.clone()).await,
            (Some(trouble), "unusable") => self.complain(name, UNUSABLE, &trouble.clone()).await,
            (Some(trouble), _) => tracing::debug!(authority = %name, trouble, "not yet"),
            (None, _) => {
                self.said.remove(&(name.clone(), LOST));
                self.said.remove(&(name.clone(), UNUSABLE));
            }
        }
    }

    async fn complain(&mut self, name: &SignerName, reason: &'static str, trouble: &str) {
        let key = (name.clone(), reason);
        let said = self.said.get(&key);
        if said.is_some_and(|(last, at)| last == trouble && at.elapsed() < SAY_AGAIN) {
            return;
        }
        self.said.insert(key, (trouble.to_owned(), Instant::now()));
        tracing::error!(authority = %name, "{trouble}");
        self.recorder.warn(Notice { regarding: reference(name), reason, note: trouble.to_owned() }).await;
    }
}

/// Whether others than pods may hold leaves of an authority: it signs clients.
fn outside_clients(name: &SignerName, policy: &Policy) -> bool {
    let mapped = policy.shared.iter().filter(|shared| shared.authority == *name).flat_map(|shared| &shared.signers);
    mapped.chain([name]).any(|signer| signer.domain != Domain::Peer)
}

/// The authority and the namespace's uid that a Secret says it is for.
fn authority_of(secret: &ObjectMeta) -> Option<(SignerName, String)> {
    let labels = secret.labels.as_ref()?;
    if [MANAGED_LABEL, CA_LABEL].iter().any(|(key, value)| labels.get(*key).is_none_or(|v| v != value)) {
        return None;
    }
    let annotations = secret.annotations.as_ref()?;
    let name = annotations.get(SIGNER_ANNOTATION)?.parse().ok()?;
    Some((name, annotations.get(UID_ANNOTATION)?.clone()))
}

fn report_of(stored: &Stored, waiting: &[crate::rollover::Waiting]) -> Report {
    let mut report = Report::new(stored.state.rollover.as_ref(), waiting, stored.state.answer.clone());
    report.active = Some(stored.active.generation());
    report.active_until = Some(rfc3339::text(stored.active.not_after()));
    report
}

fn reference(name: &SignerName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some(name.namespace.clone()),
        name: Some(names::trust_config_map(&name.cluster)),
        ..ObjectReference::default()
    }
}

/// A step, for people.
fn describe(name: &SignerName, step: &Step, after: &Stored, report: &Report) -> (&'static str, String) {
    let active = after.active.generation();
    match step {
        Step::Publish(trigger) => {
            let next = after.next.as_ref().map(|next| next.generation()).unwrap_or_default();
            ("RolloverPublished", format!("{name}: CA {next} is published beside {active} ({trigger:?})"))
        }
        Step::ChangeOver(ChangeOver::Trusted) => {
            ("RolloverChangedOver", format!("{name}: all pods trust CA {active}, which signs from now on"))
        }
        Step::ChangeOver(ChangeOver::Expiring) => (
            "RolloverForced",
            format!(
                "{name}: the old CA is about to expire, so CA {active} signs from now on, though not everybody trusts it: {}",
                report.waiting.join("; ")
            ),
        ),
        Step::Retire => {
            ("RolloverDone", format!("{name}: the old CA's last leaf has gone, and so has the CA; {active} is left"))
        }
        Step::Abort(why) => {
            ("RolloverAborted", format!("{name}: the next CA was taken back ({why:?}); {active} goes on"))
        }
        Step::ConfirmClients => {
            ("RolloverClientsConfirmed", format!("{name}: an operator says that the clients outside trust the new CA"))
        }
    }
}
