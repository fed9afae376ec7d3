//! Watches what the bindings depend on and the bindings themselves, and writes the difference, while this replica leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};

use etcd_tls_contract::{
    duration::parse_duration,
    names::{DYNAMIC, LABEL, MIRROR_ANNOTATION},
};
use k8s_openapi::api::{
    core::v1::{ObjectReference, Pod},
    rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Change, LeanBinding, Observed, RBAC, REQUESTER_ROLE, REQUESTERS_BINDING, SIGN_BINDING, SignBinding, TRUST_ROLE,
    accounts::{Accounts, MAX_OF_NAMESPACE},
    accounts_of, changes, foreign, labelled, lean_binding, may_ask, opted_in,
    pace::Paces,
    requesters, sign_subject, trust_role,
};
use crate::{
    approve::metrics::Metrics,
    controller::{
        client::{RequestError, within},
        events::{Notice, Recorder},
        facts::LeanPod,
        listed::{Event, Events, Key, Object, Source, key},
        namespaces, policy,
    },
    platform::shutdown::until,
};

const FIELD_MANAGER: &str = "etcd-tls-approve";

/// How long rights last.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(in crate::approve) struct BindingArgs {
    /// How long the service account of a labelled pod may request after its last pod.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    withdraw_after: Duration,
}

/// What is compared of a binding.
const BINDING: &[&[&str]] =
    &[&["metadata", "name"], &["metadata", "namespace"], &["metadata", "uid"], &["subjects"], &["roleRef"]];

/// What is read of a labelled pod.
const LABELLED_POD: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "annotations", MIRROR_ANNOTATION],
    &["spec", "serviceAccountName"],
    &["status", "phase"],
];

impl Object for LeanBinding {
    fn cut(&mut self) {
        self.1 = true;
    }
}
impl Object for ClusterRoleBinding {}

/// Keeps the bindings.
pub(in crate::approve) struct Keeper {
    pub(in crate::approve) client: Client,
    pub(in crate::approve) namespaces: namespaces::Current,
    pub(in crate::approve) policy: policy::Current,
    pub(in crate::approve) recorder: Recorder,
    pub(in crate::approve) metrics: Metrics,
    pub(in crate::approve) args: BindingArgs,
}

/// What a term knows: what its watches have brought, and what it wrote of late.
struct Term {
    accounts: Accounts,
    /// The accounts that had the right when the term began are among [`Self::accounts`].
    began: bool,
    sign: Listed<BTreeMap<String, SignBinding>>,
    requesters: Listed<Option<ClusterRoleBinding>>,
    paces: Paces,
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

impl Keeper {
    /// Keeps the bindings while `leader` says so. Ends never; dropped, it stops.
    pub(in crate::approve) async fn run(mut self, mut leader: watch::Receiver<bool>) {
        loop {
            until(&mut leader, true).await;
            tokio::select! {
                never = self.keep() => match never {},
                () = until(&mut leader, false) => {}
            }
        }
    }

    async fn keep(&mut self) -> Infallible {
        let pods = Source {
            path: "/api/v1/pods".to_owned(),
            labels: Some(format!("{LABEL}={DYNAMIC}")),
            wanted: LABELLED_POD,
            limit: 4096,
            ..Source::default()
        };
        let bindings = |kind: &str, name: &str, limit: usize| Source {
            path: format!("/apis/{RBAC}/v1/{kind}"),
            fields: Some(format!("metadata.name={name}")),
            wanted: BINDING,
            limit,
            ..Source::default()
        };
        let mut pods = Events::<LeanPod>::new(self.client.clone(), pods);
        let mut sign = Events::<LeanBinding>::new(self.client.clone(), bindings("rolebindings", SIGN_BINDING, 4096));
        let requesters = bindings("clusterrolebindings", REQUESTERS_BINDING, 4 << 20);
        let mut requesters = Events::<ClusterRoleBinding>::new(self.client.clone(), requesters);
        let mut term = Term {
            accounts: Accounts::new(self.args.withdraw_after),
            began: false,
            sign: Listed::default(),
            requesters: Listed::default(),
            paces: Paces::default(),
        };
        let mut next: Option<Instant> = None;
        loop {
            tokio::select! {
                event = pods.next() => match event {
                    Ok(event) => term.accounts.take(event, Instant::now(), account),
                    Err(error) => tracing::warn!(%error, "cannot watch labelled pods; trying again"),
                },
                event = sign.next() => match event {
                    Ok(event) => term.sign.apply(
                        event,
                        |map, binding| { map.extend([lean_binding(&binding)]); },
                        |map, binding| { map.remove(&lean_binding(&binding).0); },
                    ),
                    Err(error) => tracing::warn!(%error, "cannot watch RoleBindings; trying again"),
                },
                event = requesters.next() => match event {
                    Ok(event) => term.requesters.apply(event, |one, binding| *one = Some(binding), |one, _| *one = None),
                    Err(error) => tracing::warn!(%error, "cannot watch the ClusterRoleBinding; trying again"),
                },
                Ok(()) = self.namespaces.changed() => {}
                Ok(()) = self.policy.changed() => {}
                () = async { match next { Some(next) => sleep_until(next).await, None => std::future::pending().await } } => {}
            }
            next = self.mend(&mut term).await;
        }
    }

    /// Writes what differs. When to look again, if nothing else happens.
    async fn mend(&self, term: &mut Term) -> Option<Instant> {
        let (namespaces, policy) = (self.namespaces.borrow().clone()?, self.policy.borrow().clone()?);
        if !term.accounts.is_complete() {
            return None;
        }
        let mut observed = Observed { requesters: term.requesters.current.clone()?, sign: term.sign.current.take()? };
        let now = Instant::now();
        if !std::mem::replace(&mut term.began, true) {
            let had = observed.requesters.iter().flat_map(accounts_of);
            let had =
                had.filter(|(namespace, _)| namespaces.get(*namespace).is_some_and(|facts| may_ask(namespace, facts)));
            term.accounts.had_the_right(had, now);
        }
        term.accounts.settle(now, |namespace| namespaces.get(namespace).is_some_and(|facts| !facts.deleting));
        // A labelled namespace's group holds its accounts.
        let by_pod = |name: &str| namespaces.get(name).is_some_and(|facts| !facts.opted_in && may_ask(name, facts));
        let wanted = requesters(&labelled(&namespaces), &term.accounts.in_turn(by_pod), &policy);
        self.metrics.requesters_left_out(wanted.left_out);
        // A cluster of hosts alone has no pod whose label would say where its trust is published: policy says so.
        let opted_in = opted_in(&namespaces, |name| term.accounts.any_of(name) || policy.has_hosts_in(name));

        let mut next = term.accounts.next_end();
        let mut later = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for change in changes(&opted_in, wanted.subjects, &observed) {
            let binding = change.binding();
            if let Some(at) = term.paces.not_before(&binding, now) {
                later(at);
                continue;
            }
            match self.write(&change, &mut observed).await {
                Ok(()) => {
                    term.paces.written(&binding, now);
                    self.metrics.binding_writes.inc();
                    tracing::info!(%change, "binding written");
                }
                Err(error) => {
                    term.paces.failed(&binding, Instant::now());
                    tracing::warn!(%change, %error, "cannot keep a binding; trying again");
                }
            }
            if let Some(at) = term.paces.not_before(&binding, now) {
                later(at);
            }
        }
        if let Some(at) = self.tell(term, &opted_in, &observed, by_pod).await {
            later(at);
        }
        term.sign.current = Some(observed.sign);
        term.requesters.current = Some(observed.requesters);
        next
    }

    /// Says what keeps a namespace from what it opted in to, again and again at longer and longer intervals. When to say it
    /// again.
    async fn tell(
        &self,
        term: &mut Term,
        opted_in: &BTreeSet<String>,
        observed: &Observed,
        by_pod: impl Fn(&str) -> bool,
    ) -> Option<Instant> {
        let mut notices = Vec::new();
        for (namespace, binding, role) in foreign(opted_in, observed) {
            notices.push(foreign_binding(namespace, binding, role));
        }
        self.metrics.foreign_bindings(notices.len());
        let crowded = term.accounts.crowded().filter(|((namespace, _), _)| by_pod(namespace));
        notices.extend(crowded.map(|((namespace, name), without)| too_many_accounts(namespace, name, without)));
        let mut next = None;
        for notice in notices {
            let about = notice.regarding.namespace.clone().unwrap_or_default();
            let about = format!("{about}: {}", notice.reason);
            if term.paces.not_before(&about, Instant::now()).is_none() {
                tracing::warn!(
                    namespace = notice.regarding.namespace,
                    object = notice.regarding.name,
                    reason = notice.reason,
                    "{}",
                    notice.note
                );
                self.recorder.warn(notice).await;
                term.paces.failed(&about, Instant::now());
            }
            let at = term.paces.not_before(&about, Instant::now());
            next = [next, at].into_iter().flatten().min();
        }
        next
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
                observed.sign.extend([lean_binding(&written.into())]);
            }
            Change::Unbind(namespace) => {
                let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                let uid = observed.sign.get(namespace).and_then(|binding| binding.uid.clone());
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

/// The service account of a labelled pod that can ask: it has not finished, and asks with a token of its own. A static pod asks as
/// its host; were its mirror to count, an account of its namespace would get the right, and be held by what goes with it.
fn account(pod: LeanPod) -> (Key, Option<Box<str>>) {
    let Pod { metadata, spec, status } = &*pod;
    let mirror = metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR_ANNOTATION));
    let finished = matches!(status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    let name = spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
    (
        key(metadata.namespace.as_deref(), metadata.name.as_deref()),
        name.filter(|_| !mirror && !finished).map(Into::into),
    )
}

fn foreign_binding(namespace: &str, binding: &SignBinding, role: &RoleRef) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some(format!("{RBAC}/v1")),
            kind: Some("RoleBinding".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(SIGN_BINDING.to_owned()),
            uid: binding.uid.clone(),
            ..ObjectReference::default()
        },
        reason: "ForeignBinding",
        note: format!(
            "RoleBinding {SIGN_BINDING} binds {} {}, not ClusterRole {TRUST_ROLE}: the trust of this namespace's clusters cannot be \
             published. Delete it: kubectl -n {namespace} delete rolebinding {SIGN_BINDING}",
            role.kind, role.name
        ),
    }
}

fn too_many_accounts(namespace: &str, name: &str, without: usize) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ServiceAccount".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        },
        reason: "TooManyAccounts",
        note: format!(
            "{without} service accounts of this namespace have a labelled pod and may not request certificates: {MAX_OF_NAMESPACE} \
             may, until ten minutes after their last pods. Use fewer service accounts, or label the namespace {LABEL}={DYNAMIC}"
        ),
    }
}
