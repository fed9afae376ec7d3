//! Watches what the bindings depend on and the bindings themselves, and writes the difference, while this replica leads.

use std::{collections::BTreeSet, convert::Infallible, fmt, time::Duration};

use etcd_tls_contract::{
    duration::parse_duration,
    names::{DYNAMIC, INJECTED_LABEL, LABEL, MIRROR_ANNOTATION},
};
use futures::{FutureExt, StreamExt, future::select_all, stream};
use k8s_openapi::api::{
    core::v1::{ObjectReference, Pod},
    rbac::v1::{ClusterRoleBinding, Role, RoleBinding, Subject},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Change, Observed, RBAC, REQUESTER_ROLE, SIGN_BINDING, SignBinding, accounts_of, changes, foreign,
    graced::Graced,
    labelled,
    lean::{self, Lean, OUR_LABEL},
    lean_binding, may_ask,
    notices::{foreign_binding, foreign_reader, too_many_accounts},
    opted_in,
    pace::Paces,
    readers::{self, AT_A_LOOK, Part, READER, Readers},
    requesters, sign_subject,
    spread::{self, BINDINGS},
    trust_role,
};
use crate::{
    approve::metrics::Metrics,
    controller::{
        client::{ApiServerError, within},
        events::{Recorder, reasons::FOREIGN_BINDING},
        facts::LeanPod,
        ids::Uid,
        listed::{Event, Events, Key, Object, Source, WatchError, key},
        namespaces, policy,
    },
    platform::shutdown::until,
};

const FIELD_MANAGER: &str = "etcd-tls-approve";
/// RoleBindings that are written at once.
const AT_ONCE: usize = 8;
/// How long changes are gathered: as long as it took to mend the last ones, within these bounds.
const GATHER: Duration = Duration::from_millis(10);
const LONGEST_GATHER: Duration = Duration::from_secs(1);

/// How long rights last.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(in crate::approve) struct BindingArgs {
    /// How long a service account keeps the right to request after its last labelled pod is gone.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    withdraw_after: Duration,
    /// Let no pod watch trust ConfigMaps: new bundles and revocation lists come with the mounted ConfigMap, within two minutes.
    #[arg(long)]
    no_trust_watch: bool,
}

/// Bytes that are read of a Role or a RoleBinding of those who watch trust: more than the names of ours take.
const MOST_OF_A_READER: usize = 32 * 1024;

/// The fields read of an injected pod.
const INJECTED_POD: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "annotations", "etcd-tls.dev/*"],
    &["status", "phase"],
];

/// The fields read of a labelled pod.
const LABELLED_POD: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "annotations", MIRROR_ANNOTATION],
    &["spec", "serviceAccountName"],
    &["status", "phase"],
];

impl Object for ClusterRoleBinding {}

/// Keeps the bindings.
pub(in crate::approve) struct Reconciler {
    pub(in crate::approve) client: Client,
    pub(in crate::approve) namespaces: namespaces::Current,
    pub(in crate::approve) policy: policy::Current,
    pub(in crate::approve) recorder: Recorder,
    pub(in crate::approve) metrics: Metrics,
    pub(in crate::approve) args: BindingArgs,
}

/// The state of a term: the objects of its watches and its recent writes.
struct Term {
    accounts: Graced,
    /// The accounts that had the right when the term began are among [`Self::accounts`].
    began: bool,
    observed: Observed,
    /// The ClusterRoleBindings, by number, that could not be listed once.
    failed: BTreeSet<usize>,
    readers: Readers,
    paces: Paces,
}

/// A ClusterRoleBinding to apply. As a JSON value, its subjects would take three times the memory of the text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestersBinding<'a> {
    api_version: String,
    kind: &'static str,
    metadata: Value,
    role_ref: Value,
    subjects: &'a [Subject],
}

/// The result of a change.
enum Written {
    Requesters(usize, Vec<Subject>),
    Bound(String, SignBinding),
    Unbound(String),
    Reader(Part, String, Option<readers::Kept>),
}

impl Reconciler {
    /// Keeps the bindings while `leader` says so. Ends never; dropped, it stops.
    pub(in crate::approve) async fn run(mut self, mut leader: watch::Receiver<bool>) {
        loop {
            until(&mut leader, true).await;
            tokio::select! {
                never = self.keep() => match never {},
                () = until(&mut leader, false) => {}
            }
            self.metrics.forget_all();
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
            wanted: lean::WANTED,
            limit,
            ..Source::default()
        };
        let injected = Source {
            path: "/api/v1/pods".to_owned(),
            labels: Some(format!("{INJECTED_LABEL}=true")),
            wanted: INJECTED_POD,
            limit: 32 * 1024,
            ..Source::default()
        };
        let mut pods = Events::<LeanPod>::new(self.client.clone(), pods);
        let mut injected = Events::<LeanPod>::new(self.client.clone(), injected);
        let mut sign =
            Events::<Lean<RoleBinding>>::new(self.client.clone(), bindings("rolebindings", SIGN_BINDING, 4096));
        let mut reader_roles =
            Events::<Lean<Role>>::new(self.client.clone(), bindings("roles", READER, MOST_OF_A_READER));
        let mut reader_bindings =
            Events::<Lean<RoleBinding>>::new(self.client.clone(), bindings("rolebindings", READER, MOST_OF_A_READER));
        let mut requesters: Vec<Events<ClusterRoleBinding>> = (0..BINDINGS)
            .map(|number| bindings("clusterrolebindings", &spread::name(number), 4 << 20))
            .map(|source| Events::new(self.client.clone(), source))
            .collect();
        let mut term = Term {
            accounts: Graced::new(self.args.withdraw_after),
            began: false,
            observed: Observed::new(BINDINGS),
            failed: BTreeSet::new(),
            readers: Readers::new(self.args.withdraw_after),
            paces: Paces::default(),
        };
        let mut next: Option<Instant> = None;
        let mut took = Duration::ZERO;
        loop {
            let of_requesters = select_all(requesters.iter_mut().map(|events| events.next().boxed()));
            let changed = tokio::select! {
                event = pods.next() => match event {
                    Ok(event) => term.accounts.take(event, Instant::now(), account),
                    Err(error) => failed_to_watch("labelled pods", &error),
                },
                event = sign.next() => match event {
                    Ok(event) => {
                        term.observed.sign.take(event, sign_binding, |_, _, _| {});
                        true
                    }
                    Err(error) => failed_to_watch("RoleBindings", &error),
                },
                event = injected.next() => match event {
                    Ok(event) => term.readers.names.take(event, Instant::now(), readers::name_of),
                    Err(error) => failed_to_watch("injected pods", &error),
                },
                event = reader_roles.next() => match event {
                    Ok(event) => readers::sees(&mut term.readers.roles, event, readers::kept_role),
                    Err(error) => failed_to_watch("Roles", &error),
                },
                event = reader_bindings.next() => match event {
                    Ok(event) => readers::sees(&mut term.readers.bindings, event, readers::kept_binding),
                    Err(error) => failed_to_watch("RoleBindings", &error),
                },
                (event, number, _) = of_requesters => match event {
                    Ok(event) => {
                        term.observed.requesters[number].take(event, subjects, |_, _, _| {});
                        true
                    }
                    Err(error) => {
                        term.failed.insert(number);
                        failed_to_watch("a ClusterRoleBinding", &error);
                        true
                    }
                },
                Ok(()) = self.namespaces.changed() => true,
                Ok(()) = self.policy.changed() => true,
                () = async { match next { Some(next) => sleep_until(next).await, None => std::future::pending().await } } => {
                    let began = Instant::now();
                    next = self.mend(&mut term).await;
                    took = began.elapsed();
                    false
                }
            };
            if !changed {
                continue;
            }
            // Changes are gathered for a short time: many namespaces then cost few writes.
            let soon = Instant::now() + took.clamp(GATHER, LONGEST_GATHER);
            next = Some(next.map_or(soon, |next| next.min(soon)));
        }
    }

    /// Writes what differs. When to look again, if nothing else happens.
    async fn mend(&self, term: &mut Term) -> Option<Instant> {
        let (namespaces, policy) = (self.namespaces.borrow().clone()?, self.policy.borrow().clone()?);
        let Term { accounts, began, observed, failed, readers, paces } = term;
        let mut unseen = observed.requesters.iter().enumerate().filter(|(_, listed)| !listed.is_complete());
        if !accounts.is_complete()
            || !observed.sign.is_complete()
            || unseen.any(|(number, _)| !failed.contains(&number))
        {
            return None;
        }
        // With the rights of an older installation, the first is the only one.
        let present = observed.present();
        if present.is_empty() {
            return None;
        }
        let now = Instant::now();
        paces.forget_quiet(now);
        if !std::mem::replace(began, true) {
            let had = present.iter().flat_map(|subjects| accounts_of(subjects));
            let had =
                had.filter(|(namespace, _)| namespaces.get(*namespace).is_some_and(|facts| may_ask(namespace, facts)));
            accounts.had_it(had, now);
        }
        let exists = |namespace: &str| namespaces.get(namespace).is_some_and(|facts| !facts.deleting);
        accounts.settle(now, exists);
        // A labelled namespace's group holds its accounts.
        let by_pod = |name: &str| namespaces.get(name).is_some_and(|facts| !facts.opted_in && may_ask(name, facts));
        let wanted = requesters(&labelled(&namespaces), &accounts.in_turn(by_pod), &policy);
        let watching: &[Subject] = if self.args.no_trust_watch { &[] } else { &wanted };
        let mut waits = BTreeSet::new();
        let mut is_due = |binding: &str| match paces.not_before(binding, now) {
            Some(at) => {
                waits.insert(at);
                false
            }
            None => true,
        };
        let (of_readers, more) = readers.changes(watching, now, exists, &mut is_due);
        let wanted = spread::spread(&wanted, &present);
        self.metrics.requesters_left_out(wanted.left_out);
        // A cluster of hosts alone has no pod whose label would say where its trust is published: policy says so.
        let opted_in = opted_in(&namespaces, |name| accounts.any_of(name) || policy.has_hosts_in(name));

        let mut due = changes(&opted_in, wanted.bindings, observed);
        due.retain(|change| is_due(&change.binding()));
        due.extend(of_readers);
        waits.extend(more.then_some(now));
        let mut next = [accounts.next_end(), readers.next_end(), waits.first().copied()].into_iter().flatten().min();
        let mut later = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let (requesters, mut others): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|change| matches!(change, Change::Requesters(..)));
        if others.len() > AT_A_LOOK {
            // Withdrawals come first, and changes that failed come last: many that fail slowly do not delay the others.
            others.sort_by_key(|change| (!change.withdraws(), paces.failed_until(&change.binding())));
            others.truncate(AT_A_LOOK);
            later(now);
        }
        // Those who may request one after the other, as they are ordered; the namespaces' own beside each other.
        for (changes, at_once, in_order) in [(requesters, 1, true), (others, AT_ONCE, false)] {
            let uid_of = |change: &Change| match change {
                Change::Unbind(namespace) => observed.sign_of(namespace).and_then(|binding| binding.uid.clone()),
                Change::Reader(change) => change.uid.clone(),
                Change::Bind(_) | Change::Requesters(..) => None,
            };
            let changes: Vec<_> = changes.into_iter().map(|change| (uid_of(&change), change)).collect();
            let mut written = stream::iter(changes)
                .map(|(uid, change)| async move { (self.write(&change, uid).await, change) })
                .buffered(at_once);
            while let Some((result, change)) = written.next().await {
                let binding = change.binding();
                match result {
                    Ok(written) => {
                        take(written, observed, readers);
                        paces.written(&binding, now);
                        self.metrics.binding_writes.inc();
                        tracing::info!(%change, "binding written");
                    }
                    Err(error) => {
                        paces.failed(&binding, Instant::now());
                        tracing::warn!(%change, %error, "cannot keep a binding; trying again");
                        if in_order {
                            // A subject that moves is removed from one binding only after it is in another.
                            later(paces.not_before(&binding, now).unwrap_or(now));
                            break;
                        }
                    }
                }
                if let Some(at) = paces.not_before(&binding, now) {
                    later(at);
                }
            }
        }
        if let Some(at) = self.tell(term, &opted_in, by_pod).await {
            later(at);
        }
        // Then all of them take no room any more.
        term.paces.all_quiet_at(Instant::now()).into_iter().for_each(later);
        next
    }

    /// Says what keeps a namespace from what it opted in to, again and again at longer and longer intervals. When to say it
    /// again.
    async fn tell(
        &self,
        term: &mut Term,
        opted_in: &BTreeSet<String>,
        by_pod: impl Fn(&str) -> bool,
    ) -> Option<Instant> {
        let mut notices = Vec::new();
        for (namespace, binding, role) in foreign(opted_in, &term.observed) {
            notices.push(foreign_binding(namespace, binding, role));
        }
        self.metrics.foreign_bindings(notices.len());
        notices.extend(term.readers.foreign().map(|(namespace, uid)| foreign_reader(namespace, uid)));
        let crowded = term.accounts.crowded().filter(|((namespace, _), _)| by_pod(namespace));
        notices.extend(crowded.map(|((namespace, name), without)| too_many_accounts(namespace, name, without)));
        let mut next = None;
        for notice in notices {
            let ObjectReference { namespace, name, .. } = &notice.regarding;
            let [namespace, name] = [namespace, name].map(|part| part.as_deref().unwrap_or_default());
            // An account of another name is no news.
            let name = if notice.reason == FOREIGN_BINDING { name } else { "" };
            let about = format!("{namespace}: {} {name}", notice.reason.name());
            if term.paces.not_before(&about, Instant::now()).is_none() {
                tracing::warn!(
                    namespace = notice.regarding.namespace,
                    object = notice.regarding.name,
                    reason = notice.reason.name(),
                    "{}",
                    notice.note
                );
                self.recorder.say_beside(notice);
                term.paces.failed(&about, Instant::now());
            }
            let at = term.paces.not_before(&about, Instant::now());
            next = [next, at].into_iter().flatten().min();
        }
        next
    }

    /// Writes a change. `uid`: of the binding that goes.
    async fn write(&self, change: &Change, uid: Option<Uid>) -> Result<Written, ApiServerError> {
        // Apply names its object even where it makes it, so that the right to do so is bound to the name.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match change {
            Change::Requesters(number, subjects) => {
                let api: Api<ClusterRoleBinding> = Api::all(self.client.clone());
                let name = spread::name(*number);
                let binding = RequestersBinding {
                    api_version: format!("{RBAC}/v1"),
                    kind: "ClusterRoleBinding",
                    metadata: json!({"name": name}),
                    role_ref: json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": REQUESTER_ROLE}),
                    subjects,
                };
                let written = within(api.patch(&name, &params, &Patch::Apply(&binding))).await?;
                Ok(Written::Requesters(*number, written.subjects.unwrap_or_default()))
            }
            Change::Bind(namespace) => {
                let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                let binding = json!({
                    "apiVersion": format!("{RBAC}/v1"),
                    "kind": "RoleBinding",
                    "metadata": {"name": SIGN_BINDING, "labels": {OUR_LABEL.0: OUR_LABEL.1}},
                    "roleRef": trust_role(),
                    "subjects": [sign_subject()],
                });
                let written = within(api.patch(SIGN_BINDING, &params, &Patch::Apply(&binding))).await?;
                Ok(Written::Bound(namespace.clone(), lean_binding(&written.into()).1))
            }
            Change::Unbind(namespace) => {
                let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                delete(&api, SIGN_BINDING, uid).await?;
                Ok(Written::Unbound(namespace.clone()))
            }
            Change::Reader(readers::Change { part, namespace, object, .. }) => {
                let roles: Api<Role> = Api::namespaced(self.client.clone(), namespace);
                let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
                let kept = match (part, object) {
                    (Part::Role, Some(role)) => {
                        let written = within(roles.patch(READER, &params, &Patch::Apply(role))).await?;
                        readers::kept_role(&written.into()).1
                    }
                    (Part::Binding, Some(binding)) => {
                        let written = within(bindings.patch(READER, &params, &Patch::Apply(binding))).await?;
                        readers::kept_binding(&written.into()).1
                    }
                    (Part::Role, None) => delete(&roles, READER, uid).await.map(|()| None)?,
                    (Part::Binding, None) => delete(&bindings, READER, uid).await.map(|()| None)?,
                };
                Ok(Written::Reader(*part, namespace.clone(), kept))
            }
        }
    }
}

/// Deletes the object of that uid, if it is there.
async fn delete<K>(api: &Api<K>, name: &str, uid: Option<Uid>) -> Result<(), ApiServerError>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    let uid = uid.map(|uid| uid.to_string());
    let params =
        DeleteParams { preconditions: Some(Preconditions { uid, resource_version: None }), ..DeleteParams::default() };
    match within(api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says it; nothing has changed by it.
fn failed_to_watch(what: &str, error: &WatchError) -> bool {
    tracing::warn!(%error, "cannot watch {what}; trying again");
    false
}

/// Takes what was written as if the watches had brought it.
fn take(written: Written, observed: &mut Observed, readers: &mut Readers) {
    match written {
        Written::Requesters(number, subjects) => {
            let of = key(None, Some(&spread::name(number)));
            observed.requesters[number].take(Event::Applied(subjects), |subjects| (of, Some(subjects)), |_, _, _| {});
        }
        Written::Bound(namespace, binding) => {
            let of = key(Some(&namespace), Some(SIGN_BINDING));
            observed.sign.take(Event::Applied(binding), |binding| (of, Some(binding)), |_, _, _| {});
        }
        Written::Unbound(namespace) => {
            let of = key(Some(&namespace), Some(SIGN_BINDING));
            observed.sign.take(Event::Deleted(()), |()| (of, None), |_, _, _| {});
        }
        Written::Reader(part, namespace, kept) => readers.take(part, &namespace, kept),
    }
}

/// The kept facts of a RoleBinding `etcd-tls-sign`.
fn sign_binding(binding: Lean<RoleBinding>) -> (Key, Option<SignBinding>) {
    let (namespace, kept) = lean_binding(&binding);
    (key(Some(&namespace), Some(SIGN_BINDING)), Some(kept))
}

/// The subjects of a ClusterRoleBinding.
fn subjects(binding: ClusterRoleBinding) -> (Key, Option<Vec<Subject>>) {
    (key(None, binding.metadata.name.as_deref()), Some(binding.subjects.unwrap_or_default()))
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
