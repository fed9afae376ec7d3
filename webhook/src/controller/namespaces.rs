//! The namespaces, watched by their metadata alone: who opted in, and each one's uid.
//!
//! A cache may be behind. What it says may approve, since a label removed a moment ago is as good as one removed a moment
//! later; a denial is made only after a live look ([`live`]).

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, pin_mut};
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

use crate::controller::{
    client::{RequestError, WATCH_SECONDS, WatchBackoff, within},
    facts,
};

/// The label by which an administrator lets trust be published in `kube-system`, for hosts and static pods.
pub const HOSTS_LABEL: &str = "etcd-tls.dev/hosts";

/// What we know of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// `metadata.uid`; authorities are kept by it, so that a namespace made again inherits nothing.
    pub uid: String,
    /// Whether it carries `etcd-tls=dynamic`.
    pub opted_in: bool,
    /// Whether it is being deleted; nothing can be created in it any more.
    pub deleting: bool,
    /// Whether it carries `etcd-tls.dev/hosts=true`: an administrator lets trust of hosts be published there.
    pub hosts: bool,
}

/// Every namespace by its name; `None` until the first list is complete.
pub type Current = watch::Receiver<Option<Arc<Map>>>;

/// Namespaces by name.
pub type Map = BTreeMap<String, NamespaceFacts>;

/// Watches the namespaces for as long as the process lives.
pub fn spawn(client: Client) -> Current {
    let (sender, receiver) = watch::channel::<Option<Arc<Map>>>(None);
    tokio::spawn(async move {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
        let stream = watcher(api, watcher::Config::default().any_semantic().timeout(WATCH_SECONDS))
            .backoff(WatchBackoff::default());
        pin_mut!(stream);
        let mut listing = Map::new();
        let update = |change: &dyn Fn(&mut Map)| {
            sender.send_if_modified(|current| {
                let Some(map) = current.as_mut() else { return false };
                let mut next = Map::clone(map);
                change(&mut next);
                let changed = next != **map;
                if changed {
                    *map = Arc::new(next);
                }
                changed
            });
        };
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => listing = Map::new(),
                Ok(watcher::Event::InitApply(object)) => {
                    listing.insert(object.metadata.name.clone().unwrap_or_default(), namespace(&object.metadata));
                }
                Ok(watcher::Event::InitDone) => {
                    let complete = Some(Arc::new(std::mem::take(&mut listing)));
                    sender.send_if_modified(|current| {
                        let changed = *current != complete;
                        if changed {
                            *current = complete;
                        }
                        changed
                    });
                }
                Ok(watcher::Event::Apply(object)) => update(&|map| {
                    map.insert(object.metadata.name.clone().unwrap_or_default(), namespace(&object.metadata));
                }),
                Ok(watcher::Event::Delete(object)) => update(&|map| {
                    map.remove(object.metadata.name.as_deref().unwrap_or_default());
                }),
                Err(error) => tracing::warn!(%error, "cannot watch namespaces; trying again"),
            }
        }
    });
    receiver
}

/// A namespace as it is now, not as a watch saw it; `None`: there is none.
///
/// # Errors
/// The request's.
pub async fn live(client: &Client, name: &str) -> Result<Option<NamespaceFacts>, RequestError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let object = within(api.get_metadata_opt(name)).await?;
    Ok(object.map(|object| namespace(&object.metadata)))
}

fn namespace(metadata: &ObjectMeta) -> NamespaceFacts {
    NamespaceFacts {
        uid: metadata.uid.clone().unwrap_or_default(),
        opted_in: facts::labelled_dynamic(metadata),
        deleting: metadata.deletion_timestamp.is_some(),
        hosts: metadata.labels.as_ref().and_then(|labels| labels.get(HOSTS_LABEL)).is_some_and(|value| value == "true"),
    }
}
