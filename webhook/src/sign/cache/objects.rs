//! The Secrets of the system namespace and the ConfigMaps of opted-in ones, watched by their metadata alone: that
//! something changed is seen here; what it is, is read when it matters. No key passes through a watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::{sync::Notify, task::AbortHandle};

use super::watches::Watches;
use crate::{
    controller::{
        listed::{Event, Events, Listed, Metadata, Source, key},
        tasks::Tasks,
    },
    sign::authorities::MANAGED_LABEL,
};

/// Bytes of one object's labels and annotations that are read.
const READ: usize = 16 * 1024;
/// Bytes of all objects' labels and annotations that are kept.
const BUDGET: usize = 16 << 20;

/// A kind of object, and which of its objects are watched.
struct Kind {
    plural: &'static str,
    labels: Option<String>,
}

/// Objects of one kind, by namespace.
#[derive(Clone, Default)]
pub(in crate::sign) struct Objects {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    namespaces: BTreeMap<String, Listed<ObjectMeta>>,
    /// Bytes of the labels and annotations that are kept.
    bytes: usize,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's; `None`: not listed yet.
    pub(in crate::sign) fn of(&self, namespace: &str) -> Option<BTreeMap<String, ObjectMeta>> {
        let seen = self.lock();
        let here = seen.namespaces.get(namespace).filter(|here| here.is_complete())?;
        Some(here.iter().map(|((_, name), metadata)| (name.to_string(), metadata.clone())).collect())
    }

    /// One of them, if they are listed.
    pub(in crate::sign) fn get(&self, namespace: &str, name: &str) -> Option<ObjectMeta> {
        let seen = self.lock();
        seen.namespaces.get(namespace).filter(|here| here.is_complete())?.get("", name).cloned()
    }

    /// Every name, with its namespace, where they are listed.
    pub(in crate::sign) fn names(&self) -> Vec<(String, String)> {
        let seen = self.lock();
        let listed = seen.namespaces.iter().filter(|(_, here)| here.is_complete());
        listed.flat_map(|(ns, here)| here.iter().map(|((_, name), _)| (ns.clone(), name.to_string()))).collect()
    }

    /// Watches the Secrets of a namespace.
    pub(in crate::sign) fn watch_secrets(
        &self,
        client: &Client,
        tasks: &Tasks,
        namespace: &str,
        changed: &Arc<Notify>,
    ) -> AbortHandle {
        self.watch(client, tasks, namespace, Kind { plural: "secrets", labels: None }, changed)
    }

    /// Watches our ConfigMaps of exactly these namespaces, as far as there is a right to.
    pub(in crate::sign) fn watch_config_maps(
        &self,
        client: &Client,
        tasks: &Tasks,
        namespaces: &BTreeSet<String>,
        watches: &mut Watches,
        changed: &Arc<Notify>,
    ) {
        let gone = watches.keep(namespaces, |namespace| {
            let ours = Some(format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1));
            self.watch(client, tasks, namespace, Kind { plural: "configmaps", labels: ours }, changed)
        });
        for namespace in gone {
            self.forget(&namespace);
        }
    }

    fn watch(&self, client: &Client, tasks: &Tasks, namespace: &str, kind: Kind, changed: &Arc<Notify>) -> AbortHandle {
        let Kind { plural: kind, labels } = kind;
        let source = Source {
            path: format!("/api/v1/namespaces/{namespace}/{kind}"),
            labels,
            metadata_alone: true,
            wanted: &[
                &["metadata", "name"],
                &["metadata", "uid"],
                &["metadata", "labels", "app.kubernetes.io/*"],
                &["metadata", "annotations", "etcd-tls.dev/*"],
            ],
            limit: READ,
            ..Source::default()
        };
        let (objects, client, changed) = (self.clone(), client.clone(), Arc::clone(changed));
        let namespace = namespace.to_owned();
        tasks.keep(kind, move || {
            let events = Events::<Metadata>::new(client.clone(), source.clone());
            objects.clone().follow(events, namespace.clone(), kind, Arc::clone(&changed))
        })
    }

    async fn follow(self, mut events: Events<Metadata>, namespace: String, kind: &'static str, changed: Arc<Notify>) {
        loop {
            match events.next().await {
                Ok(Event::Progress) => {}
                Ok(event) => {
                    self.lock().take(&namespace, event);
                    changed.notify_one();
                }
                // Before `approve` has given the right: not yet.
                Err(error) => tracing::debug!(%error, namespace, kind, "cannot watch; trying again"),
            }
        }
    }

    fn forget(&self, namespace: &str) {
        let mut seen = self.lock();
        if let Some(here) = seen.namespaces.remove(namespace) {
            let bytes: usize = here.iter().map(|(_, metadata)| size(metadata)).sum();
            seen.bytes = seen.bytes.saturating_sub(bytes);
        }
    }
}

impl Seen {
    fn take(&mut self, namespace: &str, event: Event<Metadata>) {
        let Self { namespaces, bytes } = self;
        let room = BUDGET.saturating_sub(*bytes);
        let keep = |Metadata { mut metadata }: Metadata| {
            if size(&metadata) > room {
                // That it is there, and its version, is known; what it says is not.
                (metadata.labels, metadata.annotations) = (None, None);
            }
            (key(None, metadata.name.as_deref()), Some(metadata))
        };
        namespaces.entry(namespace.to_owned()).or_default().take(event, keep, |_, before, after| {
            *bytes = (*bytes + after.map_or(0, size)).saturating_sub(before.map_or(0, size));
        });
    }
}

/// The memory that labels and annotations take, about.
fn size(metadata: &ObjectMeta) -> usize {
    let maps = metadata.labels.iter().chain(&metadata.annotations);
    maps.flatten().map(|(key, value)| 96 + key.len() + value.len()).sum()
}
