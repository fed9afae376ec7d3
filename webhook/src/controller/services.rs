//! Every Service of the cluster, watched: its cluster IPs, and which pods it selects.
//!
//! The facts are kept within a budget. The Services of a namespace where one is beyond it are listed when they matter.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use etcd_tls_contract::identity::{PodFacts, ServiceFacts};
use kube::Client;
use serde::Deserialize;

use super::{
    listed::{Event, Events, Key, Listed, Object, Source, WatchError, key},
    tasks::Tasks,
};

/// Bytes of one Service's selector that are read. A pod's labels that are read are no more.
const READ: usize = 32 * 1024;
/// Bytes of one Service's facts that are kept.
const KEPT: usize = 4 * 1024;
/// Bytes of all Services' facts that are kept.
const BUDGET: usize = 16 << 20;
/// External addresses of one Service that are kept.
const MAX_OUTSIDE: usize = 16;
/// Services that select one pod and are looked at.
const MAX_SELECTING: usize = 256;

/// A Service, read as far as it matters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LeanService {
    metadata: Metadata,
    spec: Spec,
    status: Status,
    #[serde(skip)]
    cut: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    selector: Option<BTreeMap<String, String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: Option<String>,
}

impl Object for LeanService {
    fn cut(&mut self) {
        self.cut = true;
    }
}

impl LeanService {
    /// The addresses at which it is reached from outside.
    fn outside(&self) -> Box<[IpAddr]> {
        let balanced = self.status.load_balancer.ingress.iter().flatten().filter_map(|ingress| ingress.ip.as_ref());
        let all = balanced.chain(self.spec.external_ips.iter().flatten());
        all.filter_map(|ip| ip.parse().ok()).take(MAX_OUTSIDE).collect()
    }

    /// As the rules of identity take it. One whose selector is more than is read selects no pod that is read whole.
    fn facts(self) -> ServiceFacts {
        let Spec { kind, cluster_ips, selector, .. } = self.spec;
        // An ExternalName service's selector is not looked at by Kubernetes either; its name leads elsewhere.
        let external = kind.as_deref() == Some("ExternalName");
        ServiceFacts {
            name: self.metadata.name,
            // "None" is no address.
            cluster_ips: cluster_ips.unwrap_or_default().iter().filter_map(|ip| ip.parse().ok()).collect(),
            selector: if external || self.cut { BTreeMap::new() } else { selector.unwrap_or_default() },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    cluster_ips: Box<[IpAddr]>,
    outside: Box<[IpAddr]>,
    /// `None`: to be read when it matters.
    facts: Option<Arc<ServiceFacts>>,
}

#[derive(Debug, Default)]
struct State {
    services: Listed<Seen>,
    by_ip: HashMap<IpAddr, Key>,
    /// Services of a namespace whose facts are not kept.
    beyond: HashMap<Arc<str>, usize>,
    bytes: usize,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Services {
    client: Client,
    state: Arc<RwLock<State>>,
}

/// The Services that select a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    /// They are not listed yet.
    #[error("Services not listed yet")]
    NotListed,
    /// They could not be listed.
    #[error("the Services of the pod's namespace cannot be listed: {0}")]
    Failed(#[from] WatchError),
}

impl Services {
    /// Watches the Services for as long as the process lives.
    pub(crate) fn spawn(client: &Client, tasks: &Tasks) -> Self {
        let services = Self { client: client.clone(), state: Arc::default() };
        let follower = services.clone();
        tasks.keep("services", move || follower.clone().follow());
        services
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if every Service was seen once.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().services.is_complete()
    }

    /// Namespace and name of the Service that has this cluster IP.
    pub(crate) fn with_cluster_ip(&self, ip: IpAddr) -> Option<(String, String)> {
        self.state().by_ip.get(&ip).map(|(namespace, name)| (namespace.to_string(), name.to_string()))
    }

    /// The Service of this namespace that is reached from outside by this address. Those of other namespaces do not count: whoever
    /// may create a Service can name any external address.
    pub(crate) fn with_outside_ip(&self, namespace: &str, ip: IpAddr) -> Option<String> {
        let state = self.state();
        let mut here = state.services.of_namespace(namespace);
        here.find(|(_, seen)| seen.outside.contains(&ip)).map(|(name, _)| name.to_owned())
    }

    /// The Services that select a pod, as far as the watch says.
    ///
    /// # Errors
    /// Nobody knows now.
    pub(crate) async fn selecting(&self, pod: &PodFacts) -> Result<Vec<ServiceFacts>, Unknown> {
        {
            let state = self.state();
            if !state.services.is_complete() {
                return Err(Unknown::NotListed);
            }
            if !state.beyond.contains_key(pod.namespace.as_str()) {
                let here = state.services.of_namespace(&pod.namespace).filter_map(|(_, seen)| seen.facts.as_deref());
                return Ok(here.filter(|service| selects(service, pod)).take(MAX_SELECTING).cloned().collect());
            }
        }
        Ok(self.now(pod).await?)
    }

    /// The Services that select a pod, as they are now.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(crate) async fn now(&self, pod: &PodFacts) -> Result<Vec<ServiceFacts>, WatchError> {
        let source = Source { path: format!("/api/v1/namespaces/{}/services", pod.namespace), ..source() };
        let mut selecting = Vec::new();
        source
            .each(&self.client, |service: LeanService| {
                let facts = service.facts();
                if selecting.len() < MAX_SELECTING && selects(&facts, pod) {
                    selecting.push(facts);
                }
            })
            .await?;
        Ok(selecting)
    }

    async fn follow(self) {
        let mut events = Events::<LeanService>::new(self.client.clone(), source());
        loop {
            match events.next().await {
                Ok(event) => self.state.write().unwrap_or_else(PoisonError::into_inner).take(event),
                Err(error) => tracing::warn!(%error, "cannot watch Services; trying again"),
            }
        }
    }
}

fn source() -> Source {
    Source {
        path: "/api/v1/services".to_owned(),
        wanted: &[
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["spec", "type"],
            &["spec", "clusterIPs"],
            &["spec", "selector"],
            &["spec", "externalIPs"],
            &["status", "loadBalancer", "ingress", "[]", "ip"],
        ],
        limit: READ,
        ..Source::default()
    }
}

fn selects(service: &ServiceFacts, pod: &PodFacts) -> bool {
    !service.selector.is_empty()
        && service.selector.iter().all(|(key, value)| pod.labels.get(key).is_some_and(|label| label == value))
}

impl State {
    fn take(&mut self, event: Event<LeanService>) {
        let Self { services, by_ip, beyond, bytes } = self;
        let room = BUDGET.saturating_sub(*bytes);
        let keep = |service: LeanService| {
            let key = key(Some(&service.metadata.namespace), Some(&service.metadata.name));
            let outside = service.outside();
            let facts = service.facts();
            let cluster_ips = facts.cluster_ips.as_slice().into();
            let kept = size(&facts) <= KEPT.min(room);
            (key, Some(Seen { cluster_ips, outside, facts: kept.then(|| Arc::new(facts)) }))
        };
        services.take(event, keep, |key, before, after| {
            let size = |seen: Option<&Seen>| seen.and_then(|seen| seen.facts.as_deref()).map_or(0, size);
            *bytes = (*bytes + size(after)).saturating_sub(size(before));
            for ip in before.into_iter().flat_map(|seen| &seen.cluster_ips) {
                if by_ip.get(ip) == Some(key) {
                    by_ip.remove(ip);
                }
            }
            for ip in after.into_iter().flat_map(|seen| &seen.cluster_ips) {
                by_ip.insert(*ip, key.clone());
            }
            if before.is_some_and(|seen| seen.facts.is_none())
                && let Some(count) = beyond.get_mut(&*key.0)
            {
                *count -= 1;
                if *count == 0 {
                    beyond.remove(&*key.0);
                }
            }
            if after.is_some_and(|seen| seen.facts.is_none()) {
                *beyond.entry(key.0.clone()).or_default() += 1;
            }
        });
    }
}

/// The memory that facts take, about.
fn size(facts: &ServiceFacts) -> usize {
    256 + facts.name.len() + facts.selector.iter().map(|(key, value)| 96 + key.len() + value.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> LeanService {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn services_keep_what_selects_and_where_it_leads() {
        let of = |spec| service("s", spec).facts();
        let headless = of(json!({"clusterIPs": ["None"], "selector": {"a": "b"}}));
        assert!(headless.cluster_ips.is_empty() && headless.selector["a"] == "b");
        assert_eq!(of(json!({"clusterIPs": ["10.96.0.9", "fd00::9"]})).cluster_ips.len(), 2);
        let external = of(json!({"type": "ExternalName", "externalName": "x.test", "selector": {"a": "b"}}));
        assert!(external.selector.is_empty());
        let pod = PodFacts { labels: [("a".to_owned(), "b".to_owned())].into(), ..PodFacts::default() };
        assert!(selects(&headless, &pod) && !selects(&external, &pod));
        assert!(!selects(&of(json!({"selector": {"a": "b", "c": "d"}})), &pod));
    }

    #[test]
    fn external_addresses_are_kept() {
        let mut external = service("s", json!({"externalIPs": ["192.0.2.1", "x"]}));
        assert_eq!(*external.outside(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        external.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "x.test"}]}}))
                .unwrap();
        assert_eq!(*external.outside(), ["192.0.2.2".parse::<IpAddr>().unwrap(), "192.0.2.1".parse().unwrap()]);
        assert!(external.facts().cluster_ips.is_empty());
    }

    #[test]
    fn a_large_one_is_read_when_it_matters() {
        let mut state = State::default();
        let large: BTreeMap<String, String> = (0..100).map(|n| (format!("key-{n}"), "value".to_owned())).collect();
        state.take(Event::Applied(service("large", json!({"selector": large, "clusterIPs": ["10.96.0.9"]}))));
        assert_eq!((state.bytes, state.beyond.get("ns")), (0, Some(&1)));
        assert!(state.by_ip.contains_key(&"10.96.0.9".parse().unwrap()));
        state.take(Event::Applied(service("large", json!({"selector": {"a": "b"}, "clusterIPs": ["10.96.0.8"]}))));
        assert!(state.bytes > 0 && state.beyond.is_empty() && state.by_ip.len() == 1);
        state.take(Event::Deleted(service("large", json!({}))));
        assert!(state.bytes == 0 && state.by_ip.is_empty());
        for n in 0..100_000 {
            state.take(Event::Applied(service(&n.to_string(), json!({"selector": {"a": "x".repeat(3000)}}))));
        }
        assert!(state.bytes <= BUDGET && state.beyond["ns"] > 90_000);
    }
}
