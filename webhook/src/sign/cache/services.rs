//! The Services of the cluster, watched: of each, what a certificate may say of it.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, RwLock},
};

use etcd_tls_contract::identity::ServiceFacts;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};

use crate::controller::{
    client::{WATCH_SECONDS, WatchBackoff},
    facts,
};

/// Services in one page of a list.
const PAGE: u32 = 50;

type ByName = HashMap<String, ServiceFacts>;

/// See the module.
#[derive(Clone, Default)]
pub(in crate::sign) struct Services {
    by_namespace: Arc<RwLock<Option<HashMap<String, ByName>>>>,
}

impl Services {
    /// Those of a namespace; `None` until the first list is complete.
    pub(in crate::sign) fn of(&self, namespace: &str) -> Option<Vec<ServiceFacts>> {
        let all = self.by_namespace.read().ok()?;
        let services = all.as_ref()?.get(namespace);
        Some(services.into_iter().flat_map(HashMap::values).cloned().collect())
    }

    /// Forgets everything: at the end of a term.
    pub(in crate::sign) fn clear(&self) {
        if let Ok(mut all) = self.by_namespace.write() {
            *all = None;
        }
    }

    /// Watches until it is dropped.
    pub(in crate::sign) async fn watch(self, client: Client) {
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        let stream = watcher(Api::<Service>::all(client), config).backoff(WatchBackoff::default());
        let mut stream = pin!(stream);
        let mut listing: HashMap<String, ByName> = HashMap::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => self.take(event, &mut listing),
                Err(error) => tracing::warn!(%error, "cannot watch Services; trying again"),
            }
        }
    }

    fn take(&self, event: watcher::Event<Service>, listing: &mut HashMap<String, ByName>) {
        let Ok(mut all) = self.by_namespace.write() else { return };
        let namespace = |service: &Service| service.metadata.namespace.clone().unwrap_or_default();
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(service) => {
                let facts = facts::service(&service);
                listing.entry(namespace(&service)).or_default().insert(facts.name.clone(), facts);
            }
            watcher::Event::InitDone => *all = Some(std::mem::take(listing)),
            watcher::Event::Apply(service) => {
                let facts = facts::service(&service);
                if let Some(all) = all.as_mut() {
                    all.entry(namespace(&service)).or_default().insert(facts.name.clone(), facts);
                }
            }
            watcher::Event::Delete(service) => {
                if let Some(here) = all.as_mut().and_then(|all| all.get_mut(&namespace(&service))) {
                    here.remove(service.metadata.name.as_deref().unwrap_or_default());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str) -> Service {
        serde_json::from_value(
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"selector": {"a": "b"}}}),
        )
        .unwrap()
    }

    #[test]
    fn nothing_is_known_before_the_list_is_complete() {
        let services = Services::default();
        let mut listing = HashMap::new();
        services.take(watcher::Event::Init, &mut listing);
        services.take(watcher::Event::InitApply(service("a", "x")), &mut listing);
        assert_eq!(services.of("a"), None);
        services.take(watcher::Event::InitDone, &mut listing);
        assert_eq!(services.of("a").unwrap().len(), 1);
        assert_eq!(services.of("b").unwrap().len(), 0);
        services.take(watcher::Event::Apply(service("a", "y")), &mut listing);
        services.take(watcher::Event::Delete(service("a", "x")), &mut listing);
        assert_eq!(services.of("a").unwrap()[0].name, "y");
        services.clear();
        assert_eq!(services.of("a"), None);
    }
}
