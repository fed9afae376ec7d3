//! The Secrets of the system namespace and the ConfigMaps of opted-in ones, watched by their metadata alone: that
//! something changed is seen here; what it is, is read when it matters. No key passes through a watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::AbortHandle};

use super::watches::Watches;
use crate::controller::client::{WATCH_SECONDS, WatchBackoff};
use crate::sign::authorities::MANAGED_LABEL;

const PAGE: u32 = 50;

/// A namespace's objects of one kind, by name; `None` until the first list is complete.
type Here = Option<BTreeMap<String, ObjectMeta>>;

/// Objects of one kind, by namespace.
#[derive(Clone, Default)]
pub(in crate::sign) struct Objects {
    seen: Arc<Mutex<BTreeMap<String, Here>>>,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Here>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's; `None`: not listed yet.
    pub(in crate::sign) fn of(&self, namespace: &str) -> Option<BTreeMap<String, ObjectMeta>> {
        self.lock().get(namespace).cloned().flatten()
    }

    /// One of them.
    pub(in crate::sign) fn get(&self, namespace: &str, name: &str) -> Option<ObjectMeta> {
        self.lock().get(namespace)?.as_ref()?.get(name).cloned()
    }

    /// Every name, with its namespace.
    pub(in crate::sign) fn names(&self) -> Vec<(String, String)> {
        let seen = self.lock();
        let names = seen.iter().flat_map(|(namespace, here)| {
            here.iter().flat_map(BTreeMap::keys).map(|name| (namespace.clone(), name.clone()))
        });
        names.collect()
    }

    /// Watches the Secrets of a namespace.
    pub(in crate::sign) fn watch_secrets(
        &self,
        client: &Client,
        namespace: &str,
        changed: &Arc<Notify>,
    ) -> AbortHandle {
        self.watch::<Secret>(client, namespace, watcher::Config::default(), changed)
    }

    /// Watches our ConfigMaps of exactly these namespaces, as far as there is a right to.
    pub(in crate::sign) fn watch_config_maps(
        &self,
        client: &Client,
        namespaces: &BTreeSet<String>,
        watches: &mut Watches,
        changed: &Arc<Notify>,
    ) {
        let gone = watches.keep(namespaces, |namespace| {
            let ours = watcher::Config::default().labels(&format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1));
            self.watch::<ConfigMap>(client, namespace, ours, changed)
        });
        for namespace in gone {
            self.lock().remove(&namespace);
        }
    }

    fn watch<K>(&self, client: &Client, namespace: &str, config: watcher::Config, changed: &Arc<Notify>) -> AbortHandle
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let (objects, changed, namespace) = (self.clone(), Arc::clone(changed), namespace.to_owned());
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(client.clone(), &namespace);
        let stream = watcher(api, config.page_size(PAGE).timeout(WATCH_SECONDS)).backoff(WatchBackoff::default());
        let task = tokio::spawn(async move {
            let mut stream = pin!(stream);
            let mut listing = BTreeMap::new();
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        objects.take(&namespace, event, &mut listing);
                        changed.notify_one();
                    }
                    Err(error) => {
                        // Before `approve` has given the right: not yet.
                        tracing::debug!(%error, namespace, kind = %K::kind(&()), "cannot watch; trying again");
                    }
                }
            }
        });
        task.abort_handle()
    }

    fn take<O: Resource>(&self, namespace: &str, event: watcher::Event<O>, listing: &mut BTreeMap<String, ObjectMeta>) {
        let mut seen = self.lock();
        let here = seen.entry(namespace.to_owned()).or_default();
        let named = |object: &O| (object.meta().name.clone().unwrap_or_default(), lean(object.meta()));
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => listing.extend([named(&object)]),
            watcher::Event::InitDone => *here = Some(std::mem::take(listing)),
            watcher::Event::Apply(object) => {
                if let Some(here) = here {
                    here.extend([named(&object)]);
                }
            }
            watcher::Event::Delete(object) => {
                if let Some(here) = here {
                    here.remove(object.meta().name.as_deref().unwrap_or_default());
                }
            }
        }
    }
}

fn lean(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    }
}
