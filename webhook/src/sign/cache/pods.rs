//! The pods that have opted in, watched: which trust they need, and who must have loaded a new CA.
//!
//! Pods of labelled namespaces are watched namespace by namespace, those with a label of their own by that label: the
//! other pods of a cluster, by far the most, never pass by. Of a pod a few words are kept.
//!
//! A cache may be behind, so nothing is issued by it. It decides what is published, which is no secret, and whom a
//! rollover waits for: there, a pod that it does not know yet starts with what is published already.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::{
    identity::opted_in,
    names::{self, ClusterName},
    policy::Policy,
    role::Role,
    settings::Settings,
};
use kube::Client;
use tokio::{sync::Notify, task::AbortHandle};

use super::watches::Watches;
use crate::{
    controller::{
        facts::{self, LeanPod, POD_WANTED},
        listed::{self, Event, Events},
        tasks::Tasks,
    },
    rollover::LivePod,
};

/// Bytes of one pod's labels, annotations and names that are read.
const READ: usize = 32 * 1024;

/// Where a pod was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Labelled,
    Namespace(String),
}

/// What is kept of a pod that has opted in, has not finished and is not being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sign) struct Member {
    /// `metadata.namespace`.
    pub(in crate::sign) namespace: String,
    /// `metadata.name`.
    pub(in crate::sign) name: String,
    /// Whose certificates it holds.
    pub(in crate::sign) cluster: ClusterName,
    /// In which roles.
    pub(in crate::sign) roles: BTreeSet<Role>,
    /// Whether it is on a node, with the sidecar that tells what its etcd has loaded. A pod that is on no node yet will
    /// load what is published then.
    pub(in crate::sign) running: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub(in crate::sign) struct Pods {
    seen: Arc<Mutex<HashMap<Source, HashMap<String, Member>>>>,
    listed: Arc<Mutex<HashSet<Source>>>,
}

impl Pods {
    fn lock(&self) -> MutexGuard<'_, HashMap<Source, HashMap<String, Member>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> MutexGuard<'_, HashSet<Source>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every pod of these labelled namespaces, and every labelled one, was seen. Until then nobody knows whom a
    /// rollover waits for.
    pub(in crate::sign) fn complete(&self, namespaces: &BTreeSet<String>) -> bool {
        let listed = self.listed();
        listed.contains(&Source::Labelled)
            && namespaces.iter().all(|namespace| listed.contains(&Source::Namespace(namespace.clone())))
    }

    /// The clusters that pods need the trust of, by the pods' namespace; hosts read it in their cluster's.
    pub(in crate::sign) fn clusters(&self, policy: &Policy) -> BTreeMap<String, BTreeSet<ClusterName>> {
        let mut clusters: BTreeMap<String, BTreeSet<ClusterName>> = BTreeMap::new();
        let seen = self.lock();
        for member in seen.values().flat_map(HashMap::values).filter(|m| m.allowed(policy).next().is_some()) {
            clusters.entry(member.namespace.clone()).or_default().insert(member.cluster.clone());
        }
        for host in &policy.hosts {
            clusters.entry(host.cluster.namespace.clone()).or_default().insert(host.cluster.clone());
        }
        clusters
    }

    /// Namespaces of pods that have opted in by a label of their own.
    pub(in crate::sign) fn labelled_namespaces(&self) -> BTreeSet<String> {
        let seen = self.lock();
        seen.get(&Source::Labelled).into_iter().flatten().map(|(_, member)| member.namespace.clone()).collect()
    }

    /// The running pods of each authority, and the hosts that policy lists: a member on a host, too, must have loaded a new
    /// CA before anybody presents a leaf of it.
    pub(in crate::sign) fn by_authority(
        &self,
        policy: &Policy,
    ) -> HashMap<etcd_tls_contract::names::SignerName, Vec<LivePod>> {
        let mut by_uid: BTreeMap<String, Member> = BTreeMap::new();
        for (uid, member) in self.lock().values().flatten() {
            by_uid.insert(uid.clone(), member.clone());
        }
        let mut authorities: HashMap<_, Vec<LivePod>> = HashMap::new();
        for (uid, member) in by_uid.into_iter().filter(|(_, member)| member.running) {
            let mut roles: BTreeMap<_, BTreeSet<Role>> = BTreeMap::new();
            for role in member.allowed(policy) {
                roles.entry(policy.authority(&member.cluster.signer(role.domain()))).or_default().insert(role);
            }
            for (authority, roles) in roles {
                let name = format!("{}/{}", member.namespace, member.name);
                authorities.entry(authority).or_default().push(LivePod { uid: uid.clone(), name, roles });
            }
        }
        for host in &policy.hosts {
            let mut roles: BTreeMap<_, BTreeSet<Role>> = BTreeMap::new();
            // A client on a host is one of the clients outside, for whom an operator speaks.
            for role in host.roles.iter().filter(|role| matches!(role, Role::Peer | Role::Server)) {
                roles.entry(policy.authority(&host.cluster.signer(role.domain()))).or_default().insert(*role);
            }
            for (authority, roles) in roles {
                let (uid, name) = (host_holder(&host.username), format!("of host {}", host.username));
                authorities.entry(authority).or_default().push(LivePod { uid, name, roles });
            }
        }
        authorities
    }

    /// Watches the labelled pods, until the task is aborted; says so on `changed` whenever something did.
    pub(in crate::sign) fn watch_labelled(&self, client: &Client, tasks: &Tasks, changed: &Arc<Notify>) -> AbortHandle {
        let labelled = Some(format!("{}={}", names::LABEL, names::DYNAMIC));
        self.watch(client, tasks, pods_of("/api/v1/pods".to_owned(), labelled), Source::Labelled, changed)
    }

    /// Watches the pods of exactly these namespaces, which are labelled.
    pub(in crate::sign) fn watch_namespaces(
        &self,
        client: &Client,
        tasks: &Tasks,
        namespaces: &BTreeSet<String>,
        watches: &mut Watches,
        changed: &Arc<Notify>,
    ) {
        let gone = watches.keep(namespaces, |namespace| {
            let list = pods_of(format!("/api/v1/namespaces/{namespace}/pods"), None);
            self.watch(client, tasks, list, Source::Namespace(namespace.to_owned()), changed)
        });
        for namespace in gone {
            let source = Source::Namespace(namespace);
            self.listed().remove(&source);
            self.lock().remove(&source);
        }
    }

    fn watch(
        &self,
        client: &Client,
        tasks: &Tasks,
        list: listed::Source,
        source: Source,
        changed: &Arc<Notify>,
    ) -> AbortHandle {
        let (pods, client, changed) = (self.clone(), client.clone(), Arc::clone(changed));
        tasks.keep("members", move || {
            let events = Events::<LeanPod>::new(client.clone(), list.clone());
            pods.clone().follow(events, source.clone(), Arc::clone(&changed))
        })
    }

    async fn follow(self, mut events: Events<LeanPod>, source: Source, changed: Arc<Notify>) {
        let mut listing = HashMap::new();
        loop {
            match events.next().await {
                Ok(event) => {
                    if self.take(&source, event, &mut listing) {
                        changed.notify_one();
                    }
                }
                Err(error) => tracing::warn!(%error, ?source, "cannot watch pods; trying again"),
            }
        }
    }

    /// Whether something changed.
    fn take(&self, source: &Source, event: Event<LeanPod>, listing: &mut HashMap<String, Member>) -> bool {
        let namespace_opted_in = matches!(source, Source::Namespace(_));
        let of = |pod: &LeanPod| pod.metadata.uid.clone().zip(member(pod, namespace_opted_in));
        match event {
            Event::Progress => false,
            Event::Begins => {
                listing.clear();
                false
            }
            Event::Listed(pod) => {
                listing.extend(of(&pod));
                // Pods that are new here are served before the list is complete.
                match of(&pod) {
                    Some((uid, member)) => self.put(source, uid, member),
                    None => false,
                }
            }
            Event::Complete => {
                let listed = std::mem::take(listing);
                let mut seen = self.lock();
                let before = seen.entry(source.clone()).or_default();
                let changed = *before != listed;
                *before = listed;
                drop(seen);
                self.listed().insert(source.clone()) || changed
            }
            Event::Applied(pod) => match of(&pod) {
                Some((uid, member)) => self.put(source, uid, member),
                None => self.remove(source, &pod),
            },
            Event::Deleted(pod) => self.remove(source, &pod),
        }
    }

    fn put(&self, source: &Source, uid: String, member: Member) -> bool {
        let mut seen = self.lock();
        let here = seen.entry(source.clone()).or_default();
        if here.get(&uid) == Some(&member) {
            return false;
        }
        here.insert(uid, member);
        true
    }

    fn remove(&self, source: &Source, pod: &LeanPod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.lock().get_mut(source).is_some_and(|here| here.remove(uid).is_some())
    }
}

fn pods_of(path: String, labels: Option<String>) -> listed::Source {
    listed::Source { path, labels, wanted: POD_WANTED, limit: READ, ..listed::Source::default() }
}

/// What stands for a host where a pod's uid stands for a pod; no uid has a colon.
pub(in crate::sign) fn host_holder(username: &str) -> String {
    format!("host:{username}")
}

/// Whether [`host_holder`] made this.
pub(in crate::sign) fn is_host(holder: &str) -> bool {
    holder.starts_with("host:")
}

impl Member {
    /// The roles that policy lets it have. Who only claims to belong to another namespace's cluster gets no certificate of
    /// it; nothing is made for it, and no rollover waits for it.
    fn allowed<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = Role> + 'a {
        let takes =
            move |role: &Role| policy.allows_cluster(&self.namespace, &self.cluster.signer(role.domain()), *role);
        self.roles.iter().copied().filter(takes)
    }
}

/// What is kept of `pod`; `None`: nothing.
fn member(pod: &LeanPod, namespace_opted_in: bool) -> Option<Member> {
    // Nothing is issued to a pod that is not read whole, so no rollover waits for it.
    if pod.is_cut() {
        return None;
    }
    let facts = facts::pod(pod, namespace_opted_in);
    let containers: Vec<&str> = facts.containers.iter().map(String::as_str).collect();
    if facts.finished || facts.deleting || !opted_in(namespace_opted_in, &facts.labels, &facts.annotations, &containers)
    {
        return None;
    }
    // A static pod asks as its host, which policy lists and which is waited for by that name; its mirror never asks. Were
    // it to count, a CA of ours would be made and published for a cluster that has another one, which policy is yet to name.
    if facts.annotations.contains_key(names::MIRROR_ANNOTATION) {
        return None;
    }
    let settings = Settings::parse(&facts.annotations).ok().filter(Settings::is_ours)?;
    let cluster = settings.home(&facts.namespace);
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let injected = init.map(|c| c.name.as_str()).chain(containers).any(|name| name == names::SIDECAR_CONTAINER);
    Some(Member {
        running: injected && !facts.node.is_empty(),
        cluster,
        roles: settings.roles,
        namespace: facts.namespace,
        name: facts.name,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::role::Domain;
    use serde_json::json;

    use super::*;

    fn pod(turn: impl FnOnce(&mut serde_json::Value)) -> LeanPod {
        let mut value = json!({
            "metadata": {"name": "etcd-0", "namespace": "prod", "uid": "u0", "annotations": {}, "labels": {}},
            "spec": {"nodeName": "n", "containers": [{"name": "etcd"}], "initContainers": [{"name": "etcd-tls-sidecar"}]},
            "status": {"phase": "Pending"}
        });
        turn(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_counts_from_its_creation_to_its_end() {
        let good = member(&pod(|_| {}), true).unwrap();
        assert_eq!(good.cluster, ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() });
        assert!(good.running);
        assert!(!member(&pod(|p| p["spec"]["nodeName"] = "".into()), true).unwrap().running);
        assert!(!member(&pod(|p| p["spec"]["initContainers"] = json!([])), true).unwrap().running);
        for gone in [
            pod(|p| p["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "digest".into()),
            pod(|p| p["status"]["phase"] = "Succeeded".into()),
            pod(|p| p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()),
            pod(|p| p["metadata"]["labels"]["etcd-tls"] = "disabled".into()),
            pod(|p| p["spec"]["containers"][0]["name"] = "web".into()),
            pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/issuer"] = "csr:example.com/ca".into()),
            pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/roles"] = "everything".into()),
        ] {
            assert_eq!(member(&gone, true), None);
        }
        assert_eq!(member(&pod(|_| {}), false), None);
        assert!(member(&pod(|p| p["metadata"]["labels"]["etcd-tls"] = "dynamic".into()), false).is_some());
    }

    #[test]
    fn a_pod_seen_twice_is_one() {
        let pods = Pods::default();
        let labelled = pod(|p| p["metadata"]["labels"]["etcd-tls"] = "dynamic".into());
        let mut listing = HashMap::new();
        let prod = Source::Namespace("prod".to_owned());
        assert!(pods.take(&prod, Event::Applied(labelled.clone()), &mut listing));
        assert!(pods.take(&Source::Labelled, Event::Applied(labelled.clone()), &mut listing));
        assert!(!pods.take(&Source::Labelled, Event::Applied(labelled.clone()), &mut listing));
        let policy = Policy::default();
        let authorities = pods.by_authority(&policy);
        let cluster = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        assert_eq!(authorities[&cluster.signer(Domain::Peer)].len(), 1);
        assert_eq!(authorities[&cluster.signer(Domain::Client)].len(), 1);
        assert!(pods.take(&prod, Event::Deleted(labelled), &mut listing));
        assert_eq!(pods.clusters(&policy).len(), 1, "the label still holds it");
    }

    #[test]
    fn a_cluster_of_hosts_alone_needs_its_trust_published() {
        let policy = Policy::parse(
            "hosts:\n- {username: 'system:etcd-peer:cp', cluster: kube-system/etcd, roles: [peer], commonName: cp}\n",
        );
        let cluster = ClusterName { namespace: "kube-system".to_owned(), name: "etcd".to_owned() };
        let clusters = Pods::default().clusters(&policy.unwrap());
        assert_eq!(clusters, BTreeMap::from([("kube-system".to_owned(), BTreeSet::from([cluster]))]));
    }

    #[test]
    fn metrics_are_the_client_authoritys_by_default() {
        let pods = Pods::default();
        let scraper = pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/roles"] = "server,metrics".into());
        pods.take(&Source::Namespace("prod".to_owned()), Event::Applied(scraper), &mut HashMap::new());
        let authorities = pods.by_authority(&Policy::default());
        assert_eq!(authorities.len(), 1);
        let own = Policy::parse("metricsAuthority: own").unwrap();
        assert_eq!(pods.by_authority(&own).len(), 2);
    }

    #[test]
    fn who_only_claims_to_belong_to_a_cluster_is_waited_for_by_nobody() {
        let pods = Pods::default();
        let web = Source::Namespace("web".to_owned());
        let claims = pod(|p| {
            p["metadata"]["namespace"] = "web".into();
            p["metadata"]["annotations"] =
                json!({"etcd-tls.dev/roles": "client", "etcd-tls.dev/issuer": "csr:client.etcd-tls.dev/prod.etcd"});
        });
        assert!(pods.take(&web, Event::Applied(claims), &mut HashMap::new()));
        assert!(pods.by_authority(&Policy::default()).is_empty());
        assert!(pods.clusters(&Policy::default()).is_empty());
        let allowed = "crossNamespace: [{from: web, to: prod/etcd, roles: [client]}]";
        let allowed = Policy::parse(allowed).unwrap();
        assert_eq!(pods.by_authority(&allowed).len(), 1);
        assert_eq!(pods.clusters(&allowed)["web"].len(), 1);
    }

    #[test]
    fn a_listed_host_is_waited_for_like_a_pod() {
        let policy = "hosts:
- {username: 'system:node:cp', cluster: kube-system/etcd, roles: [peer, server], commonName: cp}
- {username: backup, cluster: kube-system/etcd, roles: [client], commonName: backup}
";
        let authorities = Pods::default().by_authority(&Policy::parse(policy).unwrap());
        assert_eq!(authorities.len(), 2);
        let cluster = ClusterName { namespace: "kube-system".to_owned(), name: "etcd".to_owned() };
        let peer = &authorities[&cluster.signer(Domain::Peer)];
        assert_eq!(peer[0].uid, host_holder("system:node:cp"));
        assert_eq!(peer[0].roles, BTreeSet::from([Role::Peer]));
        assert_eq!(authorities[&cluster.signer(Domain::Client)].len(), 1, "a client on a host is a client outside");
    }

    #[test]
    fn a_list_replaces_what_was_there() {
        let pods = Pods::default();
        let prod = Source::Namespace("prod".to_owned());
        let mut listing = HashMap::new();
        pods.take(&prod, Event::Applied(pod(|_| {})), &mut listing);
        pods.take(&prod, Event::Begins, &mut listing);
        assert!(pods.take(&prod, Event::Listed(pod(|p| p["metadata"]["uid"] = "u1".into())), &mut listing));
        let prod_alone = BTreeSet::from(["prod".to_owned()]);
        pods.take(&Source::Labelled, Event::Complete, &mut HashMap::new());
        assert!(!pods.complete(&prod_alone), "an event is no list");
        assert!(pods.take(&prod, Event::Complete, &mut listing));
        assert!(pods.complete(&prod_alone));
        assert!(!pods.complete(&BTreeSet::from(["prod".to_owned(), "new".to_owned()])));
        assert_eq!(pods.lock()[&prod].keys().collect::<Vec<_>>(), ["u1"]);
    }
}
