//! A watch of every pod of the cluster. Names and addresses are kept of the pods that may request.
//!
//! A request is judged by its pod in a state no older than the request. The watch has that state when its newest event or
//! bookmark has a resourceVersion at or above the request's; else the pod is read, once for its requests of a moment ([`recent`]).
//! A read at the request's resourceVersion (`?resourceVersion=`) would spare etcd, but the API server holds it until its cache of
//! pods is new enough: where no pod changes that takes a tenth of a second, and three where etcd cannot be asked for its progress
//! (before 3.4.31).
//!
//! Of a pod a few facts are kept, within a budget. Of a pod beyond it, uid, node and addresses are kept, and the rest is read when
//! it matters.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::SystemTime,
};

use etcd_tls_contract::{
    identity::{BoundPod, Claim, Claimant, PodFacts, opted_in},
    names,
};
use kube::Client;

use super::{
    client::ApiServerError,
    facts::{self, Csr, LeanPod, POD_WANTED},
    ids::Uid,
    listed::{Event, Events, Key, Listed, Source, key},
    tasks::Tasks,
};

use packed::Packed;
use recent::Recent;

mod packed;
mod recent;

/// Bytes of one pod's labels, annotations and names that are read.
const READ: usize = 32 * 1024;
/// Bytes of one pod's facts that are kept.
const KEPT: usize = 8 * 1024;
/// Bytes of all pods' facts that are kept.
const BUDGET: usize = 24 << 20;

/// Addresses of one pod that are followed. A pod has one for each family.
const MAX_CLAIMS: usize = 16;

/// A pod, as far as it can be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is none of that name.
    Gone,
    /// Its labels and annotations are more than is read of a pod.
    TooLarge,
    /// Its facts. Whether its namespace opted in is not among them.
    There(Arc<PodFacts>),
}

/// The kept facts of a pod.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    uid: Uid,
    node: Arc<Node>,
    host_network: bool,
    finished: bool,
    deleting: bool,
    ips: Box<[IpAddr]>,
    /// `None`: to be read when it matters.
    facts: Option<Packed>,
}

/// A node, as its pods tell.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Node {
    /// Empty: the pod is on none.
    name: Box<str>,
    /// `status.hostIPs`, but those that every node has.
    ips: Box<[IpAddr]>,
}

/// The nodes of pods, each once.
#[derive(Debug, Default)]
struct Nodes(HashSet<Arc<Node>>);

impl Nodes {
    fn of(&mut self, node: Node) -> Arc<Node> {
        if let Some(known) = self.0.get(&node) {
            return Arc::clone(known);
        }
        if self.0.len() == self.0.capacity() {
            self.0.retain(|node| Arc::strong_count(node) > 1);
        }
        let node = Arc::new(node);
        self.0.insert(Arc::clone(&node));
        node
    }
}

#[derive(Debug, Default)]
struct State {
    /// In boxes: a tree that grows at its end is half empty.
    pods: Listed<Box<Seen>>,
    by_ip: HashMap<IpAddr, Vec<Key>>,
    all_nodes: Nodes,
    /// The nodes that have an address, and how many of their live pods say so.
    nodes: HashMap<IpAddr, HashMap<Box<str>, usize>>,
    /// Until when certificates of live pods hold an address, by the pods' uids: those that were seen or made here.
    held: HashMap<Uid, Vec<(IpAddr, SystemTime)>>,
    /// The uids of those that have not finished.
    live: HashSet<Uid>,
    /// Bytes of the facts that are kept.
    bytes: usize,
    version: u64,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Pods {
    client: Client,
    state: Arc<RwLock<State>>,
    recent: Arc<Recent>,
    /// Where resources are kept in several etcds, their resourceVersions say nothing of each other.
    live_reads: bool,
}

/// Sees every event of the watch before it is applied. All users of pods in a process share one watch.
pub(crate) type Observer = Arc<dyn Fn(&Event<LeanPod>) + Send + Sync>;

impl Pods {
    /// Watches the pods for as long as the process lives. Admission's warnings, of which a pod may have 4 KiB, are not kept: they are
    /// the `observer`'s to see.
    pub(crate) fn spawn(client: &Client, live_reads: bool, tasks: &Tasks, observer: Option<Observer>) -> Self {
        let state = State::default();
        let state = Arc::new(RwLock::new(state));
        let pods = Self { client: client.clone(), state, recent: Arc::default(), live_reads };
        let follower = pods.clone();
        tasks.keep("pods", move || follower.clone().follow(observer.clone()));
        pods
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if every pod was seen once.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().pods.is_complete()
    }

    /// The other holders of the pod's addresses that the watch knows: live pods on other nodes, and other nodes.
    pub(crate) fn claims(&self, pod: &PodFacts) -> Vec<Claim> {
        self.state().claims(pod)
    }

    /// The pod's certificate holds these addresses until then. Forgotten when the pod is gone.
    pub(crate) fn hold(&self, uid: &str, ips: impl IntoIterator<Item = IpAddr>, until: SystemTime) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).hold(uid, ips, until);
    }

    /// The addresses that a still valid certificate of the pod holds.
    pub(crate) fn held(&self, uid: &str, now: SystemTime) -> BTreeSet<IpAddr> {
        let state = self.state();
        let held = state.held.get(&Uid::from(uid)).into_iter().flatten();
        held.filter(|(_, until)| *until > now).map(|(ip, _)| *ip).collect()
    }

    /// Keeps those of `uids` whose pods are there and have not finished, as far as the watch says; all while it says nothing.
    pub(crate) fn retain_live<V>(&self, uids: &mut BTreeMap<String, V>, also: &dyn Fn(&str) -> bool) {
        let state = self.state();
        if state.pods.is_complete() {
            uids.retain(|uid, _| also(uid) || state.live.contains(&Uid::from(uid.as_str())));
        }
    }

    /// True if the watch shows a pod of this uid that has not finished, or shows nothing yet.
    pub(crate) fn shows(&self, uid: &str) -> bool {
        let state = self.state();
        !state.pods.is_complete() || state.live.contains(&Uid::from(uid))
    }

    /// The pod that a request's token is bound to, in a state no older than the request's resourceVersion.
    ///
    /// # Errors
    /// The API server's, of a read.
    pub(crate) async fn no_older_than(&self, bound: &BoundPod, version: &str) -> Result<Found, ApiServerError> {
        if !self.live_reads
            && let Some(found) = self.state().watched(bound, version)
        {
            return Ok(found);
        }
        self.now(bound, version).await
    }

    /// The pod as it is now: for what is final. The watch of an API server whose datastore was restored from a backup shows what was
    /// before, and lacks pods that there are.
    ///
    /// # Errors
    /// The API server's.
    pub(crate) async fn now(&self, bound: &BoundPod, version: &str) -> Result<Found, ApiServerError> {
        match version.parse() {
            Ok(version) if !self.live_reads => self.recent.no_older_than(bound, version, self.read(bound)).await,
            _ => self.read(bound).await,
        }
    }

    /// Requests are listed anew: their resourceVersions may be smaller ones than before.
    pub(crate) fn saw_none(&self) {
        self.recent.saw_none();
    }

    /// A request was seen: reads that begin from now on show a state no older than it.
    pub(crate) fn saw(&self, csr: &Csr) {
        if let Ok(version) = csr.resource_version().parse() {
            self.recent.saw(version);
        }
    }

    /// The pod as the watch has it, however old that is: not to judge by.
    pub(crate) fn facts(&self, bound: &BoundPod) -> Option<Arc<PodFacts>> {
        match self.state().watched(bound, "0") {
            Some(Found::There(facts)) if facts.uid == bound.pod_uid => Some(facts),
            _ => None,
        }
    }

    async fn read(&self, bound: &BoundPod) -> Result<Found, ApiServerError> {
        let source = Source { path: format!("/api/v1/namespaces/{}/pods", bound.namespace), ..source() };
        Ok(match source.get::<LeanPod>(&self.client, &bound.pod).await? {
            None => Found::Gone,
            Some(pod) if pod.is_cut() => Found::TooLarge,
            Some(pod) => Found::There(Arc::new(facts::pod(&pod, false))),
        })
    }

    async fn follow(self, observer: Option<Observer>) {
        let mut events = Events::<LeanPod>::new(self.client.clone(), source());
        loop {
            match events.next().await {
                Ok(event) => {
                    if let Some(see) = &observer {
                        see(&event);
                    }
                    let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                    state.take(event);
                    state.version = events.version();
                }
                Err(error) => tracing::warn!(%error, "cannot watch pods; trying again"),
            }
        }
    }
}

fn source() -> Source {
    Source { path: "/api/v1/pods".to_owned(), wanted: POD_WANTED, limit: READ, ..Source::default() }
}

impl State {
    fn claims(&self, pod: &PodFacts) -> Vec<Claim> {
        let mut claims = Vec::new();
        for ip in &pod.ips {
            // No more than anybody reads, however many pods a kubelet makes up.
            let others = self.by_ip.get(ip).into_iter().flatten();
            for (namespace, name) in others {
                if claims.len() >= MAX_CLAIMS {
                    return claims;
                }
                let Some(other) = self.pods.get(namespace, name).filter(|other| *other.node.name != *pod.node) else {
                    continue;
                };
                let by = Claimant::Pod {
                    namespace: namespace.to_string(),
                    name: name.to_string(),
                    uid: other.uid.to_string(),
                    node: other.node.name.to_string(),
                };
                claims.push(Claim { ip: *ip, by });
            }
            let nodes = self.nodes.get(ip).into_iter().flat_map(HashMap::keys).filter(|node| ***node != *pod.node);
            claims.extend(nodes.map(|node| Claim { ip: *ip, by: Claimant::Node(node.to_string()) }));
        }
        claims
    }

    fn hold(&mut self, uid: &str, ips: impl IntoIterator<Item = IpAddr>, until: SystemTime) {
        // Requests may be listed before the pods.
        let uid = Uid::from(uid);
        if self.live.contains(&uid) || !self.pods.is_complete() {
            let held = self.held.entry(uid).or_default();
            for ip in ips.into_iter().take(MAX_CLAIMS) {
                match held.iter_mut().find(|(known, _)| *known == ip) {
                    Some((_, end)) => *end = until.max(*end),
                    None => {
                        // A pod has one or two.
                        held.reserve_exact(1);
                        held.push((ip, until));
                    }
                }
            }
            while held.len() > MAX_CLAIMS {
                let Some(soonest) = (0..held.len()).min_by_key(|place| held[*place].1) else { break };
                held.swap_remove(soonest);
            }
        }
    }

    /// A pod as the watch has it, if that is no older than `version`.
    fn watched(&self, bound: &BoundPod, version: &str) -> Option<Found> {
        let version: u64 = version.parse().ok()?;
        if self.version < version {
            return None;
        }
        match self.pods.get(&bound.namespace, &bound.pod) {
            None => Some(Found::Gone),
            Some(seen) => {
                let rest = seen.facts.as_ref()?.rest()?;
                let facts = PodFacts {
                    namespace: bound.namespace.clone(),
                    name: bound.pod.clone(),
                    uid: seen.uid.to_string(),
                    node: seen.node.name.to_string(),
                    host_network: seen.host_network,
                    ips: seen.ips.to_vec(),
                    finished: seen.finished,
                    deleting: seen.deleting,
                    ..rest
                };
                Some(Found::There(Arc::new(facts)))
            }
        }
    }

    fn take(&mut self, event: Event<LeanPod>) {
        let Self { pods, by_ip, all_nodes, nodes, held, live, bytes, .. } = self;
        let room = BUDGET.saturating_sub(*bytes);
        let complete = matches!(event, Event::Complete);
        let keep = |pod: LeanPod| {
            let metadata = &pod.metadata;
            (key(metadata.namespace.as_deref(), metadata.name.as_deref()), Some(Box::new(seen(&pod, room, all_nodes))))
        };
        pods.take(event, keep, |key, before, after| {
            let (before, after) = (before.map(|seen| &**seen), after.map(|seen| &**seen));
            *bytes = (*bytes + after.map_or(0, Seen::size)).saturating_sub(before.map_or(0, Seen::size));
            if let Some(before) = before {
                live.remove(&before.uid);
            }
            if let Some(after) = after.filter(|after| !after.finished) {
                live.insert(after.uid.clone());
            }
            if let Some(before) = before.filter(|before| !live.contains(&before.uid)) {
                held.remove(&before.uid);
            }
            for (ip, node) in before.into_iter().flat_map(Seen::live_node_ips) {
                if let Some(of_ip) = nodes.get_mut(ip)
                    && let Some(count) = of_ip.get_mut(node)
                {
                    *count -= 1;
                    if *count == 0 {
                        of_ip.remove(node);
                    }
                    if of_ip.is_empty() {
                        nodes.remove(ip);
                    }
                }
            }
            for (ip, node) in after.into_iter().flat_map(Seen::live_node_ips) {
                *nodes.entry(*ip).or_default().entry(node.clone()).or_default() += 1;
            }
            for ip in before.into_iter().flat_map(Seen::live_ips) {
                if let Some(keys) = by_ip.get_mut(ip) {
                    keys.retain(|other| other != key);
                    if keys.is_empty() {
                        by_ip.remove(ip);
                    }
                }
            }
            for ip in after.into_iter().flat_map(Seen::live_ips) {
                by_ip.entry(*ip).or_insert_with(|| Vec::with_capacity(1)).push(key.clone());
            }
        });
        if complete {
            held.retain(|uid, _| live.contains(uid));
        }
    }
}

impl Seen {
    fn size(&self) -> usize {
        self.facts.as_ref().map_or(0, Packed::size)
    }

    fn live_node_ips(&self) -> impl Iterator<Item = (&IpAddr, &Box<str>)> {
        self.node.ips.iter().filter(|_| !self.finished).map(|ip| (ip, &self.node.name))
    }

    fn live_ips(&self) -> &[IpAddr] {
        if self.finished { &[] } else { &self.ips }
    }
}

/// The addresses of a pod's node, but those that every node has.
fn node_ips(pod: &LeanPod) -> Box<[IpAddr]> {
    let all = pod.status.as_ref().and_then(|status| status.host_ips.as_deref()).unwrap_or_default();
    let all = all.iter().filter_map(|host| host.ip.parse::<IpAddr>().ok());
    all.filter(|ip| names::is_san_ip(*ip) && !ip.is_loopback()).take(MAX_CLAIMS).collect()
}

fn seen(pod: &LeanPod, room: usize, nodes: &mut Nodes) -> Seen {
    let mut facts = facts::pod(pod, false);
    facts.annotations.remove(names::WARNINGS_ANNOTATION);
    let containers: Vec<&str> = facts.containers.iter().map(String::as_str).collect();
    // Its namespace may opt in at any time.
    let may_ask = opted_in(true, &facts.labels, &facts.annotations, &containers);
    let kept = may_ask && !pod.is_cut() && facts.ips.len() <= MAX_CLAIMS;
    Seen {
        uid: facts.uid.as_str().into(),
        node: nodes.of(Node {
            name: facts.node.as_str().into(),
            ips: if facts.node.is_empty() { Box::default() } else { node_ips(pod) },
        }),
        host_network: facts.host_network,
        finished: facts.finished,
        deleting: facts.deleting,
        ips: facts.ips.iter().copied().take(MAX_CLAIMS).collect(),
        facts: if kept { Packed::of(facts).filter(|packed| packed.size() <= KEPT.min(room)) } else { None },
    }
}

#[cfg(test)]
mod tests;
