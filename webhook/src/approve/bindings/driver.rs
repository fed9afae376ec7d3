//! Watches what the bindings depend on and the bindings themselves, and writes the difference, while this replica leads.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{
    Change, KUBE_SYSTEM, Observed, Pods, RBAC, REQUESTER_ROLE, REQUESTERS_BINDING, SIGN_BINDING, changes, lean_binding,
    opted_in, sign_subject, trust_role,
};
use crate::{
    controller::{
        client::{RequestError, within},
        listed::{Event, Events, Metadata, Object, Source},
        namespaces, policy,
    },
    platform::shutdown::until,
};
use etcd_tls_contract::names::{DYNAMIC, LABEL, MIRROR_ANNOTATION};

const FIELD_MANAGER: &str = "etcd-tls-approve";
/// The longest wait after writes that failed.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// What is compared of a binding.
const BINDING: &[&[&str]] =
    &[&["metadata", "name"], &["metadata", "namespace"], &["metadata", "uid"], &["subjects"], &["roleRef"]];

impl Object for RoleBinding {}
impl Object for ClusterRoleBinding {}

/// Keeps the bindings while `leader` says so. Ends never; dropped, it stops.
pub(in crate::approve) async fn run(
    client: Client,
    mut namespaces: namespaces::Current,
    mut policy: policy::Current,
    mut leader: watch::Receiver<bool>,
    writes: Counter,
) {
    loop {
        until(&mut leader, true).await;
        let term = Term { client: &client, writes: &writes };
        tokio::select! {
            never = term.keep(&mut namespaces, &mut policy) => match never {},
            () = until(&mut leader, false) => {}
        }
    }
}

struct Term<'a> {
    client: &'a Client,
    writes: &'a Counter,
}

/// What the three watches of a term have brought.
#[derive(Default)]
struct Seen {
    pods: Listed<Pods>,
    sign: Listed<BTreeMap<String, RoleBinding>>,
    requesters: Listed<Option<ClusterRoleBinding>>,
}

/// A collection that is replaced as a whole by each list.
#[derive(Default)]
struct Listed<T> {
    current: Option<T>,
    listing: T,
}

impl<T: Default> Listed<T> {
    /// Applies a watch's event; `set` and `unset` put an object in and take it out.
    fn apply<K>(&mut self, event: Event<K>, set: impl Fn(&mut T, K), unset: impl Fn(&mut T, K)) {
        match event {
            Event::Begins => self.listing = T::default(),
            Event::Listed(object) => set(&mut self.listing, object),
            Event::Complete => self.current = Some(std::mem::take(&mut self.listing)),
            Event::Progress => {}
            Event::Applied(object) => {
                if let Some(current) = &mut self.current {
                    set(current, object);
                }
            }
            Event::Deleted(object) => {
                if let Some(current) = &mut self.current {
                    unset(current, object);
                }
            }
        }
    }
}

impl Term<'_> {
    async fn keep(&self, namespaces: &mut namespaces::Current, policy: &mut policy::Current) -> Infallible {
        let pods = Source {
            path: "/api/v1/pods".to_owned(),
            labels: Some(format!("{LABEL}={DYNAMIC}")),
            metadata_alone: true,
            wanted: &[
                &["metadata", "namespace"],
                &["metadata", "uid"],
                &["metadata", "annotations", MIRROR_ANNOTATION],
            ],
            limit: 4096,
            ..Source::default()
        };
        let bindings = |kind: &str, name: &str| Source {
            path: format!("/apis/{RBAC}/v1/{kind}"),
            fields: Some(format!("metadata.name={name}")),
            wanted: BINDING,
            limit: 4 << 20,
            ..Source::default()
        };
        let mut pods = Events::<Metadata>::new(self.client.clone(), pods);
        let mut sign = Events::<RoleBinding>::new(self.client.clone(), bindings("rolebindings", SIGN_BINDING));
        let requesters = bindings("clusterrolebindings", REQUESTERS_BINDING);
        let mut requesters = Events::<ClusterRoleBinding>::new(self.client.clone(), requesters);
        let mut seen = Seen::default();
        let mut wait = None;
        loop {
            tokio::select! {
                event = pods.next() => match event {
                    Ok(event) => seen.pods.apply(event, pod_seen, pod_gone),
                    Err(error) => tracing::warn!(%error, "cannot watch labelled pods; trying again"),
                },
                event = sign.next() => match event {
                    Ok(event) => seen.sign.apply(
                        event,
                        |map, binding| { map.extend([lean_binding(binding)]); },
                        |map, binding| { map.remove(&binding.namespace().unwrap_or_default()); },
                    ),
                    Err(error) => tracing::warn!(%error, "cannot watch RoleBindings; trying again"),
                },
                event = requesters.next() => match event {
                    Ok(event) => seen.requesters.apply(event, |one, binding| *one = Some(binding), |one, _| *one = None),
                    Err(error) => tracing::warn!(%error, "cannot watch the ClusterRoleBinding; trying again"),
                },
                Ok(()) = namespaces.changed() => {}
                Ok(()) = policy.changed() => {}
                () = async { match wait { Some(wait) => sleep(wait).await, None => std::future::pending().await } } => {}
            }
            wait = self.mend(&mut seen, namespaces, policy, wait).await;
        }
    }

    /// Writes what differs; after a failure, how long to wait before the next try.
    async fn mend(
        &self,
        seen: &mut Seen,
        namespaces: &namespaces::Current,
        policy: &policy::Current,
        waited: Option<Duration>,
    ) -> Option<Duration> {
        let (namespaces, policy) = (namespaces.borrow().clone()?, policy.borrow().clone()?);
        let pods = seen.pods.current.as_ref()?;
        let asks = |name: &str| pods.get(name).is_some_and(|pods| pods.values().any(|asks| *asks));
        let mut asking = opted_in(&namespaces, asks);
        asking.remove(KUBE_SYSTEM);
        // A cluster of hosts alone has no pod whose label would say where its trust is published: policy says so.
        let opted_in = opted_in(&namespaces, |name| asks(name) || policy.has_hosts_in(name));
        let mut observed = Observed { requesters: seen.requesters.current.clone()?, sign: seen.sign.current.take()? };
        let mut failed = false;
        for change in changes(&opted_in, &asking, &policy, &observed) {
            match self.write(&change, &mut observed).await {
                Ok(()) => {
                    self.writes.inc();
                    tracing::info!(%change, "binding written");
                }
                Err(error) => {
                    failed = true;
                    tracing::warn!(%change, %error, "cannot keep a binding; trying again");
                }
            }
        }
        seen.sign.current = Some(observed.sign);
        seen.requesters.current = Some(observed.requesters);
        failed.then(|| waited.map_or(Duration::from_millis(500), |waited| (waited * 2).min(MAX_WAIT)))
    }

    async fn write(&self, change: &Change, observed: &mut Observed) -> Result<(), RequestError> {
        // Apply names its object even where it makes it, so that the right to do so is bound to the name.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match change {
            Change::Requesters(subjects) => {
                let api: Api<ClusterRoleBinding> = Api::all(self.client.clone());
                let binding = json!({
                    "apiVersion": format!("{RBAC}/v1"),
                    "kind": "ClusterRoleBinding",
                    "metadata": {"name": REQUESTERS_BINDING},
                    "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": REQUESTER_ROLE},
                    "subjects": subjects,
                });
                let written = within(api.patch(REQUESTERS_BINDING, &params, &Patch::Apply(&binding))).await?;
                observed.requesters = Some(written);
            }
            Change::Bind(namespace) => {
                let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                let binding = json!({
                    "apiVersion": format!("{RBAC}/v1"),
                    "kind": "RoleBinding",
                    "metadata": {"name": SIGN_BINDING, "labels": {"app.kubernetes.io/name": "etcd-tls"}},
                    "roleRef": trust_role(),
                    "subjects": [sign_subject()],
                });
                let written = within(api.patch(SIGN_BINDING, &params, &Patch::Apply(&binding))).await?;
                observed.sign.extend([lean_binding(written)]);
            }
            Change::Unbind(namespace) => {
                let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                let uid = observed.sign.get(namespace).and_then(|binding| binding.metadata.uid.clone());
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid, resource_version: None }),
                    ..DeleteParams::default()
                };
                match within(api.delete(SIGN_BINDING, &params)).await {
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
                observed.sign.remove(namespace);
            }
        }
        Ok(())
    }
}

fn pod_seen(pods: &mut Pods, Metadata { metadata: pod }: Metadata) {
    let asks = pod.annotations.is_none_or(|annotations| !annotations.contains_key(MIRROR_ANNOTATION));
    pods.entry(pod.namespace.unwrap_or_default()).or_default().insert(pod.uid.unwrap_or_default(), asks);
}

fn pod_gone(pods: &mut Pods, Metadata { metadata: pod }: Metadata) {
    let namespace = pod.namespace.unwrap_or_default();
    if let Some(uids) = pods.get_mut(&namespace) {
        uids.remove(pod.uid.unwrap_or_default().as_str());
        if uids.is_empty() {
            pods.remove(&namespace);
        }
    }
}
