//! The pods that have opted in: which trust they need, and who must have loaded a new CA.
//!
//! The one watch of all pods, by which requests are judged, brings them ([`crate::controller::pods`]). Of a pod a few words are
//! kept. Whether the namespace of a pod without a label of its own has opted in is looked at when it matters, so that no
//! namespace needs a watch.
//!
//! A cache may be behind, so nothing is issued by it. It decides what is published, which is no secret, and whom a
//! rollover waits for: there, a pod that it does not know yet starts with what is published already.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::{
    identity::opted_in,
    names::{self, ClusterName, SignerName},
    policy::Policy,
    role::Role,
    settings::Settings,
};
use tokio::sync::Notify;

use crate::{
    controller::{
        facts::{self, LeanPod},
        ids::Uid,
        listed::{Event, Listed, key},
        namespaces, pods,
    },
    rollover::LivePod,
};

/// Pods of a namespace among which one of the same cluster is looked for.
const BESIDE: usize = 64;

/// The kept facts of a live pod that has opted in, or would have if its namespace had; neither finished nor being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// `metadata.uid`.
    uid: Uid,
    /// The cluster of its certificates. Pods of a namespace share it.
    cluster: Arc<ClusterName>,
    /// In which roles: for each of [`Role::ALL`].
    roles: [bool; Role::ALL.len()],
    /// True if it has opted in by a label of its own.
    by_label: bool,
    /// True if it is on a node, with the sidecar that tells what its etcd has loaded. A pod that is on no node yet will
    /// load what is published then.
    running: bool,
    /// True if kubelet requests its certificates.
    of_kubelet: bool,
}

/// A member of an etcd cluster: it votes, whether it runs or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Voter {
    /// The uid of the pod, or [`host_holder`].
    pub(crate) holder: String,
    /// The cluster. Several may share an authority.
    pub(crate) cluster: ClusterName,
    /// True if it is on a node and injected. A host is taken for one that runs.
    pub(crate) running: bool,
}

/// See the module.
#[derive(Clone)]
pub(in crate::sign) struct Pods {
    seen: Arc<Mutex<Listed<Member>>>,
    /// Rung when something changed.
    changed: Arc<Notify>,
}

impl Pods {
    /// None yet; `changed` is rung whenever something changed.
    pub(in crate::sign) fn new(changed: Arc<Notify>) -> Self {
        Self { seen: Arc::default(), changed }
    }

    /// Takes what the watch of pods brings.
    pub(in crate::sign) fn observer(&self) -> pods::Observer {
        let pods = self.clone();
        Arc::new(move |event| {
            if pods.take(event) {
                pods.changed.notify_one();
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Listed<Member>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if every pod was seen. Until then nobody knows whom a rollover waits for.
    pub(in crate::sign) fn complete(&self) -> bool {
        self.lock().is_complete()
    }

    /// True if the pod of this name has this uid.
    pub(in crate::sign) fn is_there(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.lock().get(namespace, name).is_some_and(|member| member.uid == *uid)
    }

    /// The clusters that pods need the trust of, each with the pods' namespace; hosts read it in their cluster's.
    pub(in crate::sign) fn clusters(
        &self,
        namespaces: &namespaces::Map,
        policy: &Policy,
    ) -> BTreeSet<(Arc<str>, Arc<ClusterName>)> {
        let mut clusters = BTreeSet::new();
        let seen = self.lock();
        for ((namespace, _), member) in seen.iter().filter(|((ns, _), member)| member.counts(ns, namespaces)) {
            if member.allowed(namespace, policy).next().is_some() {
                clusters.insert((Arc::clone(namespace), Arc::clone(&member.cluster)));
            }
        }
        for host in &policy.hosts {
            clusters.insert((host.cluster.namespace.as_str().into(), Arc::new(host.cluster.clone())));
        }
        clusters
    }

    /// The clusters that a pod belongs to or may join, and those of hosts. Whether the pod's namespace has opted in does not matter:
    /// its label may come back.
    pub(in crate::sign) fn clusters_in_use(&self, policy: &Policy) -> BTreeSet<Arc<ClusterName>> {
        let seen = self.lock();
        let pods = seen.iter().filter(|((namespace, _), member)| member.allowed(namespace, policy).next().is_some());
        let mut clusters: BTreeSet<_> = pods.map(|(_, member)| Arc::clone(&member.cluster)).collect();
        clusters.extend(policy.hosts.iter().map(|host| Arc::new(host.cluster.clone())));
        clusters
    }

    /// Namespaces of pods that have opted in by a label of their own.
    pub(in crate::sign) fn labelled_namespaces(&self) -> BTreeSet<String> {
        let seen = self.lock();
        seen.iter().filter(|(_, member)| member.by_label).map(|((namespace, _), _)| namespace.to_string()).collect()
    }

    /// The running pods of each `wanted` authority, and the hosts that policy lists: a member on a host, too, must have loaded a new
    /// CA before anybody presents a leaf of it.
    pub(in crate::sign) fn by_authority(
        &self,
        namespaces: &namespaces::Map,
        policy: &Policy,
        wanted: impl Fn(&SignerName) -> bool,
    ) -> HashMap<SignerName, Vec<LivePod>> {
        let mut authorities: HashMap<_, Vec<LivePod>> = HashMap::new();
        let seen = self.lock();
        let running = seen.iter().filter(|((ns, _), member)| member.running && member.counts(ns, namespaces));
        for ((namespace, name), member) in running {
            let mut roles: BTreeMap<_, BTreeSet<Role>> = BTreeMap::new();
            for role in member.allowed(namespace, policy) {
                roles.entry(policy.authority(&member.cluster.signer(role.domain()))).or_default().insert(role);
            }
            for (authority, roles) in roles.into_iter().filter(|(authority, _)| wanted(authority)) {
                let (uid, name) = (member.uid.to_string(), format!("{namespace}/{name}"));
                let (of_kubelet, own) = (member.of_kubelet, authority.cluster_name() == *member.cluster);
                authorities.entry(authority).or_default().push(LivePod { uid, name, roles, of_kubelet, own });
            }
        }
        drop(seen);
        for host in &policy.hosts {
            let mut roles: BTreeMap<_, BTreeSet<Role>> = BTreeMap::new();
            // A client on a host is one of the clients outside, for whom an operator speaks.
            for role in host.roles.iter().filter(|role| matches!(role, Role::Peer | Role::Server)) {
                roles.entry(policy.authority(&host.cluster.signer(role.domain()))).or_default().insert(*role);
            }
            for (authority, roles) in roles.into_iter().filter(|(authority, _)| wanted(authority)) {
                let (uid, name) = (host_holder(&host.username), format!("of host {}", host.username));
                let own = authority.cluster_name() == host.cluster;
                authorities.entry(authority).or_default().push(LivePod { uid, name, roles, of_kubelet: false, own });
            }
        }
        authorities
    }

    /// The members whose peer certificates `authority` signs.
    pub(in crate::sign) fn voters(
        &self,
        authority: &SignerName,
        namespaces: &namespaces::Map,
        policy: &Policy,
    ) -> Vec<Voter> {
        let signs = |cluster: &ClusterName| policy.authority(&cluster.signer(Role::Peer.domain())) == *authority;
        let seen = self.lock();
        let pods = seen.iter().filter(|((namespace, _), member)| {
            member.counts(namespace, namespaces)
                && member.allowed(namespace, policy).any(|role| role == Role::Peer)
                && signs(&member.cluster)
        });
        let of_pod = |member: &Member| Voter {
            holder: member.uid.to_string(),
            cluster: ClusterName::clone(&member.cluster),
            running: member.running,
        };
        let mut voters: Vec<Voter> = pods.map(|(_, member)| of_pod(member)).collect();
        drop(seen);
        let hosts = policy.hosts.iter().filter(|host| host.roles.contains(&Role::Peer) && signs(&host.cluster));
        voters.extend(hosts.map(|host| Voter {
            holder: host_holder(&host.username),
            cluster: host.cluster.clone(),
            running: true,
        }));
        voters
    }

    /// True if something changed.
    fn take(&self, event: &Event<LeanPod>) -> bool {
        let mut seen = self.lock();
        let listed_before = seen.is_complete();
        let mut changed = false;
        let mut kept = match event {
            Event::Listed(pod) | Event::Applied(pod) => Some(pod).zip(member(pod)),
            _ => None,
        };
        if let Some((pod, member)) = &mut kept {
            let mut beside = seen.of_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()).take(BESIDE);
            if let Some((_, other)) = beside.find(|(_, other)| other.cluster == member.cluster) {
                member.cluster = Arc::clone(&other.cluster);
            }
        }
        let keep = |pod: &LeanPod| {
            let metadata = &pod.metadata;
            (key(metadata.namespace.as_deref(), metadata.name.as_deref()), kept.map(|(_, member)| member))
        };
        seen.take(event.as_ref(), keep, |_, _, _| changed = true);
        changed || seen.is_complete() != listed_before
    }
}

/// The key of a host where a pod's key is its uid; no uid has a colon.
pub(crate) fn host_holder(username: &str) -> String {
    format!("host:{username}")
}

/// True if [`host_holder`] made this.
pub(in crate::sign) fn is_host(holder: &str) -> bool {
    holder.starts_with("host:")
}

impl Member {
    /// True if it has opted in: by its own label, or because its namespace has.
    fn counts(&self, namespace: &str, namespaces: &namespaces::Map) -> bool {
        self.by_label || namespaces.get(namespace).is_some_and(|facts| facts.opted_in && !facts.deleting)
    }

    /// The roles that policy lets it have. A pod that only claims to belong to another namespace's cluster gets no certificate
    /// of it; no authority is made for it, and no rollover waits for it.
    fn allowed<'a>(&'a self, namespace: &'a str, policy: &'a Policy) -> impl Iterator<Item = Role> + 'a {
        let takes = move |role: &Role| policy.allows_cluster(namespace, &self.cluster.signer(role.domain()), *role);
        let has = Role::ALL.into_iter().zip(self.roles).filter(|(_, has)| *has);
        has.map(|(role, _)| role).filter(takes)
    }
}

/// The kept facts of `pod`; `None`: none.
fn member(pod: &LeanPod) -> Option<Member> {
    // Nothing is issued to a pod that is not read whole, so no rollover waits for it.
    if pod.is_cut() {
        return None;
    }
    let nothing = BTreeMap::new();
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref());
    let annotations = metadata.annotations.as_ref().unwrap_or(&nothing);
    let labels = metadata.labels.as_ref().unwrap_or(&nothing);
    let containers: Vec<&str> = facts::running(pod).collect();
    let opted_in = |by_namespace| opted_in(by_namespace, labels, annotations, &containers);
    if !opted_in(true) || facts::has_finished(pod) || metadata.deletion_timestamp.is_some() {
        return None;
    }
    // A static pod asks as its host, which policy lists and which is waited for by that name; its mirror never asks. Were
    // it to count, a CA of ours would be made and published for a cluster that has another one, which policy is yet to name.
    if annotations.contains_key(names::MIRROR_ANNOTATION) {
        return None;
    }
    let settings = Settings::parse(annotations).ok().filter(Settings::is_ours)?;
    let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).map(|c| c.name.as_str());
    let injected = init.chain(containers.iter().copied()).any(|name| name == names::SIDECAR_CONTAINER);
    let on_a_node = spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    Some(Member {
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        cluster: Arc::new(settings.home(metadata.namespace.as_deref().unwrap_or_default())),
        by_label: opted_in(false),
        running: injected && on_a_node,
        of_kubelet: settings.is_of_kubelet(),
        roles: Role::ALL.map(|role| settings.roles.contains(&role)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::role::Domain;
    use serde_json::json;

    use super::*;
    use crate::controller::namespaces::NamespaceFacts;

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
        let good = member(&pod(|_| {})).unwrap();
        assert_eq!(*good.cluster, ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() });
        assert!(good.running && !good.by_label && !good.of_kubelet);
        let by_kubelet = pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/issuer"] = "pod-certificate".into());
        assert!(member(&by_kubelet).unwrap().of_kubelet);
        assert!(!member(&pod(|p| p["spec"]["nodeName"] = "".into())).unwrap().running);
        assert!(!member(&pod(|p| p["spec"]["initContainers"] = json!([]))).unwrap().running);
        for gone in [
            pod(|p| p["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "digest".into()),
            pod(|p| p["status"]["phase"] = "Succeeded".into()),
            pod(|p| p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()),
            pod(|p| p["metadata"]["labels"]["etcd-tls"] = "disabled".into()),
            pod(|p| p["spec"]["containers"][0]["name"] = "web".into()),
            pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/issuer"] = "csr:example.com/ca".into()),
            pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/roles"] = "everything".into()),
        ] {
            assert_eq!(member(&gone), None);
        }
        assert!(member(&pod(|p| p["metadata"]["labels"]["etcd-tls"] = "dynamic".into())).unwrap().by_label);
    }

    fn none() -> Pods {
        Pods::new(Arc::default())
    }

    /// These are there and have opted in.
    fn opted_in(names: &[&str]) -> namespaces::Map {
        let facts = NamespaceFacts { uid: "u".to_owned(), opted_in: true, deleting: false, hosts: false };
        let facts = Arc::new(facts);
        names.iter().map(|name| ((*name).into(), Arc::clone(&facts))).collect()
    }

    #[test]
    fn a_pod_counts_by_its_own_label_or_its_namespaces() {
        let (pods, policy, prod) = (none(), Policy::default(), opted_in(&["prod"]));
        assert!(pods.take(&Event::Applied(pod(|_| {}))));
        let authorities = pods.by_authority(&prod, &policy, |_| true);
        let cluster = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        assert_eq!(authorities[&cluster.signer(Domain::Peer)].len(), 1);
        assert_eq!(authorities[&cluster.signer(Domain::Client)].len(), 1);
        // The label of the namespace comes and goes with no event of the pod.
        assert!(
            pods.by_authority(&opted_in(&[]), &policy, |_| true).is_empty()
                && pods.clusters(&opted_in(&[]), &policy).is_empty()
        );
        assert!(pods.labelled_namespaces().is_empty());
        let labelled = pod(|p| p["metadata"]["labels"]["etcd-tls"] = "dynamic".into());
        assert!(pods.take(&Event::Applied(labelled.clone())));
        assert!(!pods.take(&Event::Applied(labelled.clone())), "nothing new");
        assert_eq!(pods.clusters(&opted_in(&[]), &policy).len(), 1, "the label still holds it");
        assert_eq!(pods.labelled_namespaces(), BTreeSet::from(["prod".to_owned()]));
        assert!(pods.take(&Event::Deleted(labelled)));
        assert!(pods.clusters(&prod, &policy).is_empty());
    }

    #[test]
    fn a_cluster_of_hosts_alone_needs_its_trust_published() {
        let policy = Policy::parse(
            "hosts:\n- {username: 'system:etcd-peer:cp', cluster: kube-system/etcd, roles: [peer], commonName: cp}\n",
        );
        let cluster = ClusterName { namespace: "kube-system".to_owned(), name: "etcd".to_owned() };
        let clusters = none().clusters(&opted_in(&[]), &policy.unwrap());
        assert_eq!(clusters, BTreeSet::from([("kube-system".into(), Arc::new(cluster))]));
    }

    #[test]
    fn metrics_are_the_client_authoritys_by_default() {
        let (pods, prod) = (none(), opted_in(&["prod"]));
        let scraper = pod(|p| p["metadata"]["annotations"]["etcd-tls.dev/roles"] = "server,metrics".into());
        pods.take(&Event::Applied(scraper));
        let authorities = pods.by_authority(&prod, &Policy::default(), |_| true);
        assert_eq!(authorities.len(), 1);
        let own = Policy::parse("metricsAuthority: own").unwrap();
        assert_eq!(pods.by_authority(&prod, &own, |_| true).len(), 2);
    }

    #[test]
    fn who_only_claims_to_belong_to_a_cluster_is_waited_for_by_nobody() {
        let (pods, web) = (none(), opted_in(&["web"]));
        let claims = pod(|p| {
            p["metadata"]["namespace"] = "web".into();
            p["metadata"]["annotations"] =
                json!({"etcd-tls.dev/roles": "client", "etcd-tls.dev/issuer": "csr:client.etcd-tls.dev/prod.etcd"});
        });
        assert!(pods.take(&Event::Applied(claims)));
        assert!(pods.by_authority(&web, &Policy::default(), |_| true).is_empty());
        assert!(pods.clusters(&web, &Policy::default()).is_empty());
        let allowed = "crossNamespace: [{from: web, to: prod/etcd, roles: [client]}]";
        let allowed = Policy::parse(allowed).unwrap();
        assert_eq!(pods.by_authority(&web, &allowed, |_| true).len(), 1);
        assert_eq!(pods.clusters(&web, &allowed).iter().map(|(of, _)| &**of).collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn a_listed_host_is_waited_for_like_a_pod() {
        let policy = "hosts:
- {username: 'system:node:cp', cluster: kube-system/etcd, roles: [peer, server], commonName: cp}
- {username: backup, cluster: kube-system/etcd, roles: [client], commonName: backup}
";
        let authorities = none().by_authority(&opted_in(&[]), &Policy::parse(policy).unwrap(), |_| true);
        assert_eq!(authorities.len(), 2);
        let cluster = ClusterName { namespace: "kube-system".to_owned(), name: "etcd".to_owned() };
        let peer = &authorities[&cluster.signer(Domain::Peer)];
        assert_eq!(peer[0].uid, host_holder("system:node:cp"));
        assert_eq!(peer[0].roles, BTreeSet::from([Role::Peer]));
        assert_eq!(authorities[&cluster.signer(Domain::Client)].len(), 1, "a client on a host is a client outside");
    }

    #[test]
    fn members_vote_in_their_cluster_whether_they_run_or_not() {
        let policy = "shared: [{authority: peer.etcd-tls.dev/prod.etcd, signers: [peer.etcd-tls.dev/prod.other]}]\n\
            hosts: [{username: cp, cluster: prod/etcd, roles: [peer, server], commonName: cp}]\n";
        let (pods, policy, prod) = (none(), Policy::parse(policy).unwrap(), opted_in(&["prod"]));
        let named = |name: &'static str, turn: fn(&mut serde_json::Value)| {
            pods.take(&Event::Applied(pod(|p| {
                (p["metadata"]["name"], p["metadata"]["uid"]) = (name.into(), name.into());
                turn(p);
            })));
        };
        named("runs", |_| {});
        named("waits", |p| p["spec"]["nodeName"] = "".into());
        named("shares", |p| p["metadata"]["annotations"]["etcd-tls.dev/cluster"] = "other".into());
        named("client", |p| p["metadata"]["annotations"]["etcd-tls.dev/roles"] = "client".into());
        let seen = |authority: &str| -> BTreeSet<(String, String, bool)> {
            let voters = pods.voters(&authority.parse().unwrap(), &prod, &policy);
            voters.into_iter().map(|voter| (voter.holder, voter.cluster.name, voter.running)).collect()
        };
        let expected =
            [("runs", "etcd", true), ("waits", "etcd", false), ("shares", "other", true), ("host:cp", "etcd", true)];
        let expected =
            expected.into_iter().map(|(holder, cluster, runs)| (holder.to_owned(), cluster.to_owned(), runs));
        assert_eq!(seen("peer.etcd-tls.dev/prod.etcd"), expected.collect());
        assert!(seen("client.etcd-tls.dev/prod.etcd").is_empty() && seen("peer.etcd-tls.dev/prod.other").is_empty());
        assert!(
            pods.voters(&"peer.etcd-tls.dev/prod.etcd".parse().unwrap(), &opted_in(&[]), &Policy::default()).is_empty()
        );
    }

    #[test]
    fn a_pod_of_another_cluster_that_shares_an_authority_is_none_of_its_own() {
        let policy = "shared: [{authority: peer.etcd-tls.dev/prod.etcd, signers: [peer.etcd-tls.dev/prod.other]}]\n\
            hosts:\n\
            - {username: cp, cluster: prod/etcd, roles: [peer], commonName: cp}\n\
            - {username: m1, cluster: prod/other, roles: [peer], commonName: m1}\n";
        let (pods, policy) = (none(), Policy::parse(policy).unwrap());
        for (name, cluster) in [("a", "etcd"), ("b", "other")] {
            pods.take(&Event::Applied(pod(|p| {
                (p["metadata"]["name"], p["metadata"]["uid"]) = (name.into(), name.into());
                p["metadata"]["annotations"]["etcd-tls.dev/cluster"] = cluster.into();
            })));
        }
        let all = pods.by_authority(&opted_in(&["prod"]), &policy, |_| true);
        let own = |authority: &str| -> BTreeSet<(&str, bool)> {
            all[&authority.parse().unwrap()].iter().map(|pod| (&*pod.name, pod.own)).collect()
        };
        assert_eq!(
            own("peer.etcd-tls.dev/prod.etcd"),
            BTreeSet::from([("prod/a", true), ("prod/b", false), ("of host cp", true), ("of host m1", false)])
        );
        assert_eq!(own("client.etcd-tls.dev/prod.other"), BTreeSet::from([("prod/b", true)]));
    }

    #[test]
    fn a_list_replaces_what_was_there() {
        let (pods, prod) = (none(), opted_in(&["prod"]));
        let of = |name: &'static str| {
            pod(move |p| (p["metadata"]["name"], p["metadata"]["uid"]) = (name.into(), name.into()))
        };
        pods.take(&Event::Applied(of("etcd-0")));
        pods.take(&Event::Begins);
        assert!(pods.take(&Event::Listed(of("etcd-1"))), "served before the list is complete");
        assert!(!pods.complete(), "an event is no list");
        assert!(pods.take(&Event::Complete));
        assert!(pods.complete());
        let live = pods.by_authority(&prod, &Policy::default(), |_| true).into_values().next().unwrap();
        assert_eq!(live.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["etcd-1"]);
        // Created again under its name.
        let anew = pod(|p| (p["metadata"]["name"], p["metadata"]["uid"]) = ("etcd-1".into(), "u9".into()));
        assert!(pods.take(&Event::Applied(anew)));
        assert_eq!(pods.by_authority(&prod, &Policy::default(), |_| true).into_values().next().unwrap()[0].uid, "u9");
    }
}
