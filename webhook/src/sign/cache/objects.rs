//! The Secrets of the system namespace and the trust ConfigMaps of the cluster, each by one watch of their metadata alone. The
//! watch shows that an object changed; its content is read when needed. No key passes through a watch. A few words of each
//! object are kept.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::names::{self, SignerName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::sync::Notify;

use super::watch::Watch;
use crate::{
    controller::{
        ids::{Uid, Version},
        listed::{Event, Events, Key, Listed, Metadata, Source, key},
        tasks::Tasks,
    },
    sign::marks::{CA_LABEL, KEEP_ANNOTATION, MANAGED_LABEL, SIGNER_ANNOTATION, UID_ANNOTATION},
};

const CONFIG_MAPS: &str = "configmaps";
/// The annotations that are requests to the signer.
const REQUESTS: [&str; 5] = [
    "etcd-tls.dev/revoke-peer-request",
    "etcd-tls.dev/revoke-client-request",
    "etcd-tls.dev/rollover-peer-request",
    "etcd-tls.dev/rollover-client-request",
    "etcd-tls.dev/rollover-metrics-request",
];
/// Bytes of one object's labels and annotations that are read.
const READ: usize = 16 * 1024;
/// Bytes of one object's requests that are kept.
const KEPT: usize = 4 * 1024;
/// Bytes of all objects' requests that are kept.
const BUDGET: usize = 16 << 20;
/// Bytes of the requests of one namespace's ConfigMaps that are kept: an administrator of a namespace can make any number of them.
const KEPT_OF_NAMESPACE: usize = 256 << 10;
/// ConfigMaps of one namespace that are known: more than clusters whose clients can be there.
const MOST_OF_NAMESPACE: usize = 16 * 1024;
/// The longest uid.
const LONGEST_UID: usize = 64;

/// The kept facts of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::sign) struct Facts {
    /// `metadata.uid`.
    pub(in crate::sign) uid: Uid,
    /// `metadata.resourceVersion`.
    pub(in crate::sign) resource_version: Version,
    /// Of the Secret of a CA: the authority, and the uid of its namespace.
    pub(in crate::sign) authority: Option<(Arc<SignerName>, Uid)>,
    /// True if it is kept though nobody uses it.
    pub(in crate::sign) kept: bool,
    /// Its [`REQUESTS`].
    pub(in crate::sign) requests: BTreeMap<String, String>,
}

/// Objects of one kind, by namespace and name.
#[derive(Clone, Default)]
pub(in crate::sign) struct Objects {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    objects: Listed<Arc<Facts>>,
    /// Bytes of the requests that are kept.
    bytes: usize,
    /// By namespace: how many objects are known, and the bytes of their requests.
    of_namespace: HashMap<Arc<str>, (usize, usize)>,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's, each with its name; `None`: not listed yet.
    pub(in crate::sign) fn of(&self, namespace: &str) -> Option<Vec<(Arc<str>, Arc<Facts>)>> {
        let seen = self.lock();
        let here = || seen.objects.iter().filter(|((of, _), _)| **of == *namespace);
        let all = || here().map(|((_, name), facts)| (Arc::clone(name), Arc::clone(facts))).collect();
        seen.objects.is_complete().then(all)
    }

    /// True if they are listed.
    pub(in crate::sign) fn complete(&self) -> bool {
        self.lock().objects.is_complete()
    }

    /// One of them, if they are listed.
    pub(in crate::sign) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Facts>> {
        let seen = self.lock();
        if seen.objects.is_complete() { seen.objects.get(namespace, name).cloned() } else { None }
    }

    /// Every namespace and name, if they are listed.
    pub(in crate::sign) fn names(&self) -> Vec<Key> {
        let seen = self.lock();
        if seen.objects.is_complete() { seen.objects.iter().map(|(key, _)| key.clone()).collect() } else { Vec::new() }
    }

    /// Watches the Secrets of a namespace, until what is returned is dropped.
    pub(in crate::sign) fn watch_secrets(
        &self,
        client: &Client,
        tasks: &Tasks,
        namespace: &str,
        changed: &Arc<Notify>,
    ) -> Watch {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        self.watch(client, tasks, "secrets", Source { path, ..source() }, changed)
    }

    /// Watches our ConfigMaps, wherever they are, until what is returned is dropped. One that loses our label goes from here.
    pub(in crate::sign) fn watch_config_maps(&self, client: &Client, tasks: &Tasks, changed: &Arc<Notify>) -> Watch {
        let labels = Some(format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1));
        let source = Source { path: "/api/v1/configmaps".to_owned(), labels, ..source() };
        self.watch(client, tasks, CONFIG_MAPS, source, changed)
    }

    fn watch(
        &self,
        client: &Client,
        tasks: &Tasks,
        kind: &'static str,
        source: Source,
        changed: &Arc<Notify>,
    ) -> Watch {
        let (objects, client, changed) = (self.clone(), client.clone(), Arc::clone(changed));
        Watch(tasks.keep(kind, move || {
            let events = Events::<Metadata>::new(client.clone(), source.clone());
            objects.clone().follow(events, kind, Arc::clone(&changed))
        }))
    }

    async fn follow(self, mut events: Events<Metadata>, kind: &'static str, changed: Arc<Notify>) {
        loop {
            match events.next().await {
                Ok(Event::Progress) => {}
                Ok(event) => {
                    self.lock().take(event, kind);
                    changed.notify_one();
                }
                Err(error) => tracing::warn!(%error, kind, "cannot watch; trying again"),
            }
        }
    }
}

fn source() -> Source {
    Source {
        metadata_alone: true,
        wanted: &[
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "uid"],
            &["metadata", "labels", "app.kubernetes.io/*"],
            &["metadata", "annotations", SIGNER_ANNOTATION],
            &["metadata", "annotations", UID_ANNOTATION],
            &["metadata", "annotations", KEEP_ANNOTATION],
            // Our reports beside them can be longer than what is read of an object.
            &["metadata", "annotations", REQUESTS[0]],
            &["metadata", "annotations", REQUESTS[1]],
            &["metadata", "annotations", REQUESTS[2]],
            &["metadata", "annotations", REQUESTS[3]],
            &["metadata", "annotations", REQUESTS[4]],
        ],
        limit: READ,
        ..Source::default()
    }
}

impl Seen {
    fn take(&mut self, event: Event<Metadata>, kind: &str) {
        let room = match &event {
            Event::Listed(object) | Event::Applied(object) => self.room_for(&object.metadata, kind),
            _ => None,
        };
        let Self { objects, bytes, of_namespace } = self;
        let keep = |Metadata { metadata }: Metadata| {
            let key = key(metadata.namespace.as_deref(), metadata.name.as_deref());
            (key, room.map(|room| Arc::new(facts(metadata, room))))
        };
        objects.take(event, keep, |(namespace, _), before, after| {
            let of = |facts: Option<&Arc<Facts>>| facts.map_or((0, 0), |facts| (1, size(&facts.requests)));
            let (before, after) = (of(before), of(after));
            *bytes = (*bytes + after.1).saturating_sub(before.1);
            let (known, kept) = of_namespace.entry(Arc::clone(namespace)).or_default();
            *known = (*known + after.0).saturating_sub(before.0);
            *kept = (*kept + after.1).saturating_sub(before.1);
            if *known == 0 {
                of_namespace.remove(namespace);
            }
        });
    }

    /// How many bytes of an object's requests may be kept; `None`: the object is none of ours, or one more than its namespace may have.
    fn room_for(&self, metadata: &ObjectMeta, kind: &str) -> Option<usize> {
        let (namespace, name) = (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref()?);
        let known = self.objects.get(namespace, name);
        let before = known.map_or(0, |facts| size(&facts.requests));
        let all = (BUDGET + before).saturating_sub(self.bytes).min(KEPT);
        if kind != CONFIG_MAPS {
            return Some(all);
        }
        // Anybody can label a ConfigMap. Names of this form are guarded by an admission policy.
        let (others, kept) = self.of_namespace.get(namespace).copied().unwrap_or_default();
        let ours = name.starts_with(&names::trust_config_map("")) && (known.is_some() || others < MOST_OF_NAMESPACE);
        ours.then(|| all.min((KEPT_OF_NAMESPACE + before).saturating_sub(kept)))
    }
}

/// The kept facts of an object. Its requests are kept if they fit into `room`; its existence and version always are.
fn facts(metadata: ObjectMeta, room: usize) -> Facts {
    let authority = authority_of(&metadata);
    let kept = metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(KEEP_ANNOTATION));
    let mut requests = metadata.annotations.unwrap_or_default();
    requests.retain(|key, _| REQUESTS.contains(&key.as_str()));
    if size(&requests) > room {
        tracing::warn!(
            config_map = metadata.name,
            namespace = metadata.namespace,
            "its requests to the signer are too long, or too many wait; they are not read"
        );
        requests.clear();
    }
    // An empty map that was filled keeps the room for eleven.
    if requests.is_empty() {
        requests = BTreeMap::new();
    }
    Facts {
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        resource_version: metadata.resource_version.as_deref().unwrap_or_default().into(),
        authority,
        kept,
        requests,
    }
}

/// The authority and the namespace's uid that a Secret says it is for.
fn authority_of(secret: &ObjectMeta) -> Option<(Arc<SignerName>, Uid)> {
    let labels = secret.labels.as_ref()?;
    if [MANAGED_LABEL, CA_LABEL].iter().any(|(key, value)| labels.get(*key).is_none_or(|v| v != value)) {
        return None;
    }
    let annotations = secret.annotations.as_ref()?;
    let name: SignerName = annotations.get(SIGNER_ANNOTATION)?.parse().ok()?;
    let uid = annotations.get(UID_ANNOTATION).filter(|uid| uid.len() <= LONGEST_UID)?;
    Some((Arc::new(name), uid.as_str().into()))
}

/// The memory that annotations take, about.
fn size(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| 96 + key.len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::role::Domain;
    use serde_json::{Value, json};

    use super::*;
    use crate::{revoke, rollover};

    const KIND: &str = CONFIG_MAPS;

    fn object(metadata: Value) -> Metadata {
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn every_request_is_read() {
        let revocations = Domain::WITH_LISTS.map(revoke::request_annotation);
        let rollovers = Domain::ALL.map(rollover::request_annotation);
        assert_eq!(revocations.into_iter().chain(rollovers).collect::<Vec<_>>(), REQUESTS);
    }

    #[test]
    fn of_an_object_a_few_words_are_kept() {
        let mut seen = Seen::default();
        seen.take(Event::Begins, KIND);
        seen.take(Event::Listed(object(json!({
            "namespace": "prod", "name": "etcd-tls-trust-etcd", "uid": "u", "resourceVersion": "7",
            "labels": {"app.kubernetes.io/managed-by": "etcd-tls"},
            "annotations": {"etcd-tls.dev/rollover-peer-request": "start 1", "etcd-tls.dev/rollover-peer": "x".repeat(900)},
        }))), KIND);
        seen.take(
            Event::Listed(object(json!({
                "namespace": "prod", "name": "anybodys", "labels": {"app.kubernetes.io/managed-by": "etcd-tls"},
                "annotations": {"etcd-tls.dev/rollover-peer-request": "start 1"},
            }))),
            KIND,
        );
        seen.take(Event::Listed(object(json!({
            "namespace": "system", "name": "etcd-tls-ca-1", "uid": "v", "resourceVersion": "8",
            "labels": {"app.kubernetes.io/managed-by": "etcd-tls", "app.kubernetes.io/component": "certificate-authority"},
            "annotations": {"etcd-tls.dev/signer": "peer.etcd-tls.dev/prod.etcd", "etcd-tls.dev/namespace-uid": "n"},
        }))), "secrets");
        seen.take(Event::Complete, KIND);
        assert!(seen.objects.get("prod", "anybodys").is_none(), "a label makes no trust ConfigMap");
        let trust = seen.objects.get("prod", "etcd-tls-trust-etcd").unwrap();
        assert_eq!(
            (&trust.uid, &trust.resource_version, &trust.authority),
            (&Uid::from("u"), &Version::from("7"), &None)
        );
        assert_eq!(trust.requests.values().collect::<Vec<_>>(), ["start 1"]);
        let secret = seen.objects.get("system", "etcd-tls-ca-1").unwrap();
        let (name, uid) = secret.authority.as_ref().unwrap();
        assert_eq!((name.to_string().as_str(), uid), ("peer.etcd-tls.dev/prod.etcd", &Uid::from("n")));
        assert!(secret.requests.is_empty());
    }

    /// As many as an administrator of a namespace makes, each as long as it is read; and the requests of other namespaces beside them.
    #[test]
    fn the_requests_of_one_namespace_leave_room_for_those_of_others() {
        let mut seen = Seen::default();
        let request = |namespace: &str, n: usize, bytes: usize| {
            let key = "etcd-tls.dev/revoke-peer-request";
            object(json!({
                "namespace": namespace, "name": format!("etcd-tls-trust-{n}"), "annotations": {key: "x".repeat(bytes)},
            }))
        };
        seen.take(Event::Applied(request("a", 0, 2 * KEPT)), KIND);
        assert_eq!(seen.bytes, 0);
        for n in 0..20_000 {
            seen.take(Event::Applied(request("a", n, KEPT - 500)), KIND);
        }
        assert!((KEPT_OF_NAMESPACE - KEPT..=KEPT_OF_NAMESPACE).contains(&seen.bytes), "{}", seen.bytes);
        assert_eq!(seen.objects.iter().count(), MOST_OF_NAMESPACE);
        seen.take(Event::Applied(request("b", 0, 400)), KIND);
        assert_eq!(seen.objects.get("b", "etcd-tls-trust-0").map(|facts| facts.requests.len()), Some(1));
        // One that is there may change, and one that is gone makes room.
        seen.take(Event::Applied(request("a", 1, KEPT - 400)), KIND);
        assert_eq!(seen.objects.get("a", "etcd-tls-trust-1").map(|facts| facts.requests.len()), Some(1));
        seen.take(Event::Deleted(request("a", 2, 0)), KIND);
        seen.take(Event::Applied(request("a", 30_000, 10)), KIND);
        assert_eq!(seen.objects.get("a", "etcd-tls-trust-30000").map(|facts| facts.requests.len()), Some(1));
        // All together have a bound, too.
        for n in 0..200 {
            for of in 0..80 {
                seen.take(Event::Applied(request(&format!("n{n}"), of, KEPT - 500)), KIND);
            }
        }
        assert!((BUDGET - 2 * KEPT..=BUDGET).contains(&seen.bytes), "{}", seen.bytes);
        seen.take(Event::Begins, KIND);
        seen.take(Event::Complete, KIND);
        assert!(seen.bytes == 0 && seen.of_namespace.is_empty());
    }
}
