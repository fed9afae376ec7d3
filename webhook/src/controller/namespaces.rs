//! The namespaces, watched by their metadata alone: the opt-in label and the uid of each.
//!
//! A cache may be behind. It is enough to approve, since a label removed a moment ago is as good as one removed a moment later;
//! a denial is made only after a live look ([`live`]).

use std::{collections::BTreeMap, sync::Arc};

use etcd_tls_contract::names;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client};
use tokio::sync::watch;

use super::{
    client::{ApiServerError, within},
    facts,
    listed::{Event, Events, Listed, Metadata, Source, key},
    tasks::Tasks,
};

/// The label by which an administrator lets trust be published in `kube-system`, for hosts and static pods.
pub const HOSTS_LABEL: &str = "etcd-tls.dev/hosts";

/// The known facts of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// `metadata.uid`; authorities are kept by it, so that a namespace made again inherits nothing.
    pub uid: String,
    /// True if it carries `etcd-tls=dynamic`.
    pub opted_in: bool,
    /// True if it is being deleted; nothing can be created in it any more.
    pub deleting: bool,
    /// True if it carries `etcd-tls.dev/hosts=true`: an administrator lets trust of hosts be published there.
    pub hosts: bool,
}

/// Every namespace by its name; `None` until the first list is complete.
pub type Current = watch::Receiver<Option<Arc<Map>>>;

/// Namespaces by name. Both are shared with the one before, as each change makes another one.
pub type Map = BTreeMap<Arc<str>, Arc<NamespaceFacts>>;

const SOURCE: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "uid"],
    &["metadata", "labels", names::LABEL],
    &["metadata", "labels", HOSTS_LABEL],
    &["metadata", "deletionTimestamp"],
];

/// Watches the namespaces for as long as the process lives.
pub(crate) fn spawn(client: &Client, tasks: &Tasks) -> Current {
    let (sender, receiver) = watch::channel::<Option<Arc<Map>>>(None);
    let client = client.clone();
    tasks.keep("namespaces", move || follow(client.clone(), sender.clone()));
    receiver
}

async fn follow(client: Client, sender: watch::Sender<Option<Arc<Map>>>) {
    let source = Source {
        path: "/api/v1/namespaces".to_owned(),
        metadata_alone: true,
        wanted: SOURCE,
        limit: 4096,
        ..Source::default()
    };
    let mut events = Events::<Metadata>::new(client, source);
    let mut listed = Listed::default();
    // Of a list, one map is made when it is complete; else each change makes another one.
    let mut stale = false;
    loop {
        let event = match events.next().await {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "cannot watch namespaces; trying again");
                continue;
            }
        };
        let of_list = matches!(event, Event::Begins | Event::Listed(_));
        let keep = |Metadata { metadata }: Metadata| {
            (key(None, metadata.name.as_deref()), Some(Arc::new(namespace(&metadata))))
        };
        listed.take(event, keep, |_, _, _| stale = true);
        if listed.is_complete() && !of_list && (stale || sender.borrow().is_none()) {
            stale = false;
            let map: Map = listed.iter().map(|((_, name), facts)| (Arc::clone(name), Arc::clone(facts))).collect();
            sender.send_replace(Some(Arc::new(map)));
        }
    }
}

/// A namespace as it is now, not as a watch saw it; `None`: there is none.
///
/// # Errors
/// The request's.
pub async fn live(client: &Client, name: &str) -> Result<Option<NamespaceFacts>, ApiServerError> {
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
