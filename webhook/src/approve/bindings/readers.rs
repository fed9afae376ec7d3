//! Who may watch the trust ConfigMaps of a namespace: a Role `etcd-tls-trust-reader` with their names in each opted-in namespace, and
//! a RoleBinding of that name for those who may request there. Pure.
//!
//! The names are those of cluster `etcd` and of the clusters that injected pods of the namespace name; a name stays for a grace after
//! its last pod, and a namespace has so many at once ([`Graced`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use etcd_tls_contract::{
    names::{self, DEFAULT_CLUSTER, SYSTEM_NAMESPACE},
    settings::Settings,
};
use k8s_openapi::{
    api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::{
    RBAC, SERVICE_ACCOUNTS,
    graced::Graced,
    lean::{Lean, OUR_LABEL},
};
use crate::controller::{
    facts::{LeanPod, has_finished},
    listed::{Event, Key, Listed, key},
};

/// The Role, and the RoleBinding that gives it.
pub(super) const READER: &str = "etcd-tls-trust-reader";

/// Changes of one look: a label that is set meanwhile waits for no more of them.
const AT_A_LOOK: usize = 256;

/// One of the two objects of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Role,
    Binding,
}

impl Part {
    /// The one of a namespace, for its pace.
    pub(super) fn of(self, namespace: &str) -> String {
        format!("{namespace}/{READER} ({})", self.kind())
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Role => "Role",
            Self::Binding => "RoleBinding",
        }
    }
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) part: Part,
    pub(super) namespace: String,
    /// The object to apply; `None`: it goes.
    pub(super) object: Option<Value>,
    /// Of the object that goes.
    pub(super) uid: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.object.is_some() { "made or mended" } else { "removed" };
        write!(f, "{}: {done}", self.part.of(&self.namespace))
    }
}

/// The kept facts of one of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    uid: Option<String>,
    /// It has our label. A Role that a person made in a namespace that has not opted in is left alone.
    ours: bool,
    /// A RoleBinding of another role, which cannot be changed.
    foreign: bool,
    /// Of its rules or its subjects.
    digest: u64,
    /// The ConfigMaps that a Role names, but that of cluster `etcd`.
    names: Box<[Box<str>]>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Readers {
    /// The ConfigMaps that injected pods watch, by their namespaces.
    pub(super) names: Graced,
    pub(super) roles: Listed<Kept>,
    pub(super) bindings: Listed<Kept>,
    /// The names of before the term are among [`Self::names`].
    began: bool,
}

impl Readers {
    /// Nothing is listed yet. A name will stay for `grace` after its last pod.
    pub(super) fn new(grace: Duration) -> Self {
        Self { names: Graced::new(grace), roles: Listed::default(), bindings: Listed::default(), began: false }
    }

    /// The object of a namespace.
    pub(super) fn of(&self, part: Part, namespace: &str) -> Option<&Kept> {
        match part {
            Part::Role => self.roles.get(namespace, READER),
            Part::Binding => self.bindings.get(namespace, READER),
        }
    }

    /// When a name will next go.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.names.next_end().filter(|_| self.began)
    }

    /// The difference to what should be, as far as it is due and fits into a look, and whether there is more. `requesters`: those who
    /// may request. `is_due`: whether the object of this name may be written.
    ///
    /// Nothing before every list is complete: without the right to one of them, new trust comes with the mounted ConfigMap.
    pub(super) fn changes(
        &mut self,
        requesters: &[Subject],
        now: Instant,
        exists: impl Fn(&str) -> bool,
        mut is_due: impl FnMut(&str) -> bool,
    ) -> (Vec<super::Change>, bool) {
        if !self.names.is_complete() || !self.roles.is_complete() || !self.bindings.is_complete() {
            return (Vec::new(), false);
        }
        if !std::mem::replace(&mut self.began, true) {
            let had = self.roles.iter().filter(|((namespace, _), kept)| kept.ours && exists(namespace));
            let had = had.flat_map(|((namespace, _), kept)| kept.names.iter().map(|name| (&**namespace, &**name)));
            self.names.had_it(had, now);
        }
        self.names.settle(now, exists);

        let wanted = by_namespace(requesters);
        let mut changes = Vec::new();
        // Whether there is room for one more.
        let mut has_room = |part: Part, namespace: &str, changes: &[super::Change]| {
            is_due(&part.of(namespace)).then_some(changes.len() < AT_A_LOOK)
        };
        let mut more = false;
        for (namespace, subjects) in &wanted {
            let rules = [rule(self.names.of(namespace))];
            for (part, digest) in [(Part::Role, digest(&rules)), (Part::Binding, digest(subjects))] {
                let well = |kept: &Kept| kept.foreign || (kept.ours && kept.digest == digest);
                if self.of(part, namespace).is_some_and(well) {
                    continue;
                }
                match has_room(part, namespace, &changes) {
                    Some(true) => {
                        let object = Some(match part {
                            Part::Role => role(&rules),
                            Part::Binding => binding(subjects),
                        });
                        let change = Change { part, namespace: (*namespace).to_owned(), object, uid: None };
                        changes.push(super::Change::Reader(change));
                    }
                    room => more |= room.is_some(),
                }
            }
        }
        for (part, listed) in [(Part::Binding, &self.bindings), (Part::Role, &self.roles)] {
            for ((namespace, _), kept) in listed.iter() {
                if !kept.ours || wanted.contains_key(&**namespace) || **namespace == *SYSTEM_NAMESPACE {
                    continue;
                }
                match has_room(part, namespace, &changes) {
                    Some(true) => {
                        let (namespace, uid) = (namespace.to_string(), kept.uid.clone());
                        changes.push(super::Change::Reader(Change { part, namespace, object: None, uid }));
                    }
                    room => more |= room.is_some(),
                }
            }
        }
        (changes, more)
    }

    /// The namespaces in which somebody else's RoleBinding has our name, with its uid.
    pub(super) fn foreign(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let foreign = self.bindings.iter().filter(|(_, kept)| kept.foreign);
        foreign.map(|((namespace, _), kept)| (&**namespace, kept.uid.as_deref()))
    }

    /// Takes what was written.
    pub(super) fn take(&mut self, part: Part, namespace: &str, kept: Option<Kept>) {
        let listed = match part {
            Part::Role => &mut self.roles,
            Part::Binding => &mut self.bindings,
        };
        listed.take(Event::Applied(kept), |kept| (key(Some(namespace), Some(READER)), kept), |_, _, _| {});
    }
}

/// Those who may request, by their namespaces, in one order. Hosts are of none: they have a Role of their own.
fn by_namespace(requesters: &[Subject]) -> BTreeMap<&str, Vec<&Subject>> {
    let mut all: BTreeMap<&str, Vec<&Subject>> = BTreeMap::new();
    for subject in requesters {
        let namespace = match subject.kind.as_str() {
            "Group" => subject.name.strip_prefix(SERVICE_ACCOUNTS),
            "ServiceAccount" => subject.namespace.as_deref(),
            _ => None,
        };
        if let Some(namespace) = namespace {
            all.entry(namespace).or_default().push(subject);
        }
    }
    for subjects in all.values_mut() {
        subjects.sort_by_key(|subject| &subject.name);
    }
    all
}

fn default_name() -> String {
    names::trust_config_map(DEFAULT_CLUSTER)
}

fn rule<'a>(names: impl Iterator<Item = &'a str>) -> PolicyRule {
    let names: BTreeSet<String> = names.map(str::to_owned).chain([default_name()]).collect();
    PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["configmaps".to_owned()]),
        resource_names: Some(names.into_iter().collect()),
        verbs: vec!["get".to_owned(), "watch".to_owned()],
        ..PolicyRule::default()
    }
}

fn metadata() -> Value {
    json!({"name": READER, "labels": {OUR_LABEL.0: OUR_LABEL.1}})
}

fn role(rules: &[PolicyRule]) -> Value {
    json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata(), "rules": rules})
}

fn binding(subjects: &[&Subject]) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": metadata(),
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": READER}, "subjects": subjects,
    })
}

fn digest(content: &impl Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(content).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

fn kept(metadata: &ObjectMeta, digest: Option<u64>) -> Kept {
    let ours = |labels: &BTreeMap<String, String>| labels.get(OUR_LABEL.0).is_some_and(|value| value == OUR_LABEL.1);
    Kept {
        uid: metadata.uid.clone(),
        ours: metadata.labels.as_ref().is_some_and(ours),
        foreign: false,
        digest: digest.unwrap_or_default(),
        names: Box::default(),
    }
}

/// The kept facts of a Role. One that is larger than ours is as one without rules.
pub(super) fn kept_role(Lean(role, cut): &Lean<Role>) -> (Key, Option<Kept>) {
    let rules = role.rules.as_deref().unwrap_or_default();
    let named = rules.iter().flat_map(|rule| rule.resource_names.iter().flatten());
    let default = default_name();
    let others = named.filter(|name| name.starts_with(&names::trust_config_map("")) && **name != default);
    let names = others.map(|name| name.as_str().into()).collect();
    let kept = Kept { names, ..kept(&role.metadata, (!cut).then(|| digest(&rules))) };
    (key(role.metadata.namespace.as_deref(), Some(READER)), Some(kept))
}

/// The kept facts of a RoleBinding.
pub(super) fn kept_binding(Lean(binding, cut): &Lean<RoleBinding>) -> (Key, Option<Kept>) {
    let RoleRef { kind, name, .. } = &binding.role_ref;
    let subjects = binding.subjects.as_deref().unwrap_or_default();
    let foreign = !cut && (kind != "Role" || name != READER);
    let kept = Kept { foreign, ..kept(&binding.metadata, (!cut).then(|| digest(&subjects))) };
    (key(binding.metadata.namespace.as_deref(), Some(READER)), Some(kept))
}

/// The trust ConfigMap that an injected pod watches, if that is not the one of cluster `etcd`, which every namespace has.
pub(super) fn name_of(pod: LeanPod) -> (Key, Option<Box<str>>) {
    let metadata = &pod.metadata;
    let of_pod = key(metadata.namespace.as_deref(), metadata.name.as_deref());
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let settings = Settings::parse(&annotations)
        .ok()
        .filter(|settings| settings.is_ours() && !pod.is_cut() && !has_finished(&pod));
    let name = settings.map(|settings| settings.trust_config_map(&of_pod.0));
    let name = name.filter(|name| *name != default_name()).map(Into::into);
    (of_pod, name)
}
