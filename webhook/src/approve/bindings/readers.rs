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
    names::{self, ClusterName, DEFAULT_CLUSTER, SYSTEM_NAMESPACE},
    settings::Settings,
};
use k8s_openapi::{
    api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::{
    RBAC, SERVICE_ACCOUNTS,
    graced::Graced,
    lean::{Lean, OUR_LABEL},
};
use crate::controller::{
    facts::{LeanPod, has_finished},
    ids::Uid,
    listed::{Event, Key, Listed, key},
};

/// The Role, and the RoleBinding that gives it.
pub(super) const READER: &str = "etcd-tls-trust-reader";

/// Changes of one look: a label that is set meanwhile waits for no more of them.
pub(super) const AT_A_LOOK: usize = 256;

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
    pub(super) uid: Option<Uid>,
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
    uid: Option<Uid>,
    /// It has our label. A Role that a person made in a namespace that has not opted in is left alone.
    ours: bool,
    /// A RoleBinding of another role, which cannot be changed.
    foreign: bool,
    /// Of the names or the subjects; 0 where more or something else is in it.
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
    /// The namespaces in which somebody else's RoleBinding has our name and keeps accounts from the right, with its uid.
    foreign: Vec<(String, Option<Uid>)>,
}

impl Readers {
    /// Nothing is listed yet. A name will stay for `grace` after its last pod.
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            names: Graced::new(grace),
            roles: Listed::default(),
            bindings: Listed::default(),
            began: false,
            foreign: Vec::new(),
        }
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

        let (wanted, default) = (by_namespace(requesters), default_name());
        let mut changes = Vec::new();
        // Whether there is room for one more.
        let mut has_room = |part: Part, namespace: &str, changes: &[super::Change]| {
            is_due(&part.of(namespace)).then_some(changes.len() < AT_A_LOOK)
        };
        let (mut more, mut foreign) = (false, Vec::new());
        for (namespace, subjects) in &wanted {
            let names: BTreeSet<&str> = self.names.of(namespace).chain([&*default]).collect();
            let of_subjects = digest_of_subjects(subjects.iter().copied());
            for (part, digest) in [(Part::Role, digest(names.iter().copied())), (Part::Binding, of_subjects)] {
                let well = |kept: &Kept| kept.foreign || (kept.ours && kept.digest == digest);
                let kept = self.of(part, namespace);
                foreign
                    .extend(kept.filter(|kept| kept.foreign).map(|kept| ((*namespace).to_owned(), kept.uid.clone())));
                if kept.is_some_and(well) {
                    continue;
                }
                match has_room(part, namespace, &changes) {
                    Some(true) => {
                        // Nobody is bound to a Role that is not ours yet: somebody may have made one with other rights.
                        more |= part == Part::Role;
                        let object = Some(match part {
                            Part::Role => role(names.iter().copied()),
                            Part::Binding => binding(subjects),
                        });
                        let change = Change { part, namespace: (*namespace).to_owned(), object, uid: None };
                        changes.push(super::Change::Reader(change));
                    }
                    room => more |= room.is_some(),
                }
                if part == Part::Role {
                    break;
                }
            }
        }
        for (part, listed) in [(Part::Binding, &self.bindings), (Part::Role, &self.roles)] {
            for ((namespace, _), kept) in listed.iter() {
                if !kept.ours || kept.foreign || wanted.contains_key(&**namespace) || **namespace == *SYSTEM_NAMESPACE {
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
        self.foreign = foreign;
        (changes, more)
    }

    /// The namespaces in which somebody else's RoleBinding has our name, with its uid.
    pub(super) fn foreign(&self) -> impl Iterator<Item = (&str, Option<&Uid>)> {
        self.foreign.iter().map(|(namespace, uid)| (namespace.as_str(), uid.as_ref()))
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
    PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["configmaps".to_owned()]),
        resource_names: Some(names.map(str::to_owned).collect()),
        verbs: vec!["get".to_owned(), "watch".to_owned()],
        ..PolicyRule::default()
    }
}

fn metadata() -> Value {
    json!({"name": READER, "labels": {OUR_LABEL.0: OUR_LABEL.1}})
}

fn role<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata(), "rules": [rule(names)]})
}

fn binding(subjects: &[&Subject]) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": metadata(),
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": READER}, "subjects": subjects,
    })
}

fn digest<'a>(parts: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

fn digest_of_subjects<'a>(subjects: impl Iterator<Item = &'a Subject>) -> u64 {
    let parts = |Subject { api_group, kind, name, namespace }: &'a Subject| {
        [api_group.as_deref().unwrap_or_default(), kind, name, namespace.as_deref().unwrap_or_default()]
    };
    digest(subjects.flat_map(parts))
}

fn kept(metadata: &ObjectMeta, digest: u64) -> Kept {
    let ours = |labels: &BTreeMap<String, String>| labels.get(OUR_LABEL.0).is_some_and(|value| value == OUR_LABEL.1);
    Kept {
        uid: metadata.uid.as_deref().map(Uid::from),
        ours: metadata.labels.as_ref().is_some_and(ours),
        foreign: false,
        digest,
        names: Box::default(),
    }
}

/// Takes an event of one of the lists. True if anything has changed by it.
pub(super) fn sees<T>(
    listed: &mut Listed<Kept>,
    event: Event<T>,
    keep: impl FnOnce(&T) -> (Key, Option<Kept>),
) -> bool {
    let mut changed = matches!(event, Event::Complete);
    listed.take(event, |object| keep(&object), |_, _, _| changed = true);
    changed
}

/// The kept facts of a Role. One that is larger than ours is as one without rules.
pub(super) fn kept_role(Lean(role, cut): &Lean<Role>) -> (Key, Option<Kept>) {
    let named = || {
        let rules = role.rules.iter().flatten();
        rules.flat_map(|rule| rule.resource_names.iter().flatten()).map(String::as_str)
    };
    let well = !cut && role.rules.as_ref().is_some_and(|rules| *rules == [rule(named())]);
    let default = default_name();
    let of = role.metadata.namespace.as_deref().unwrap_or_default();
    let is_trust = |name: &&str| ClusterName::of_trust_config_map(of, name).is_some() && *name != default;
    let names = named().filter(is_trust).map(Into::into).collect();
    let kept = Kept { names, ..kept(&role.metadata, if well { digest(named()) } else { 0 }) };
    (key(role.metadata.namespace.as_deref(), Some(READER)), Some(kept))
}

/// The kept facts of a RoleBinding.
pub(super) fn kept_binding(Lean(binding, cut): &Lean<RoleBinding>) -> (Key, Option<Kept>) {
    let RoleRef { kind, name, .. } = &binding.role_ref;
    let subjects = binding.subjects.as_deref().unwrap_or_default();
    // One that is larger than ours is somebody else's, whatever it binds.
    let foreign = *cut || kind != "Role" || name != READER;
    let digest = if *cut { 0 } else { digest_of_subjects(subjects.iter()) };
    let kept = Kept { foreign, ..kept(&binding.metadata, digest) };
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    /// Every list is complete, and empty.
    fn lab() -> Readers {
        let mut readers = Readers::new(GRACE);
        let complete = || Event::<()>::Complete;
        readers.roles.take(complete(), |()| (key(None, None), None), |_, _, _| {});
        readers.bindings.take(complete(), |()| (key(None, None), None), |_, _, _| {});
        readers.names.take(complete(), Instant::now(), |()| (key(None, None), None));
        readers
    }

    fn runs(readers: &mut Readers, namespace: &str, pod: &str, name: Option<&str>, now: Instant) {
        let of = key(Some(namespace), Some(pod));
        readers.names.take(Event::Applied(()), now, |()| (of, name.map(Into::into)));
    }

    fn group(namespace: &str) -> Subject {
        Subject {
            api_group: Some(RBAC.to_owned()),
            kind: "Group".to_owned(),
            name: format!("{SERVICE_ACCOUNTS}{namespace}"),
            namespace: None,
        }
    }

    fn account(namespace: &str, name: &str) -> Subject {
        Subject {
            api_group: None,
            kind: "ServiceAccount".to_owned(),
            name: name.to_owned(),
            namespace: Some(namespace.to_owned()),
        }
    }

    /// The changes at `now`, as they are written.
    fn settle(readers: &mut Readers, requesters: &[Subject], now: Instant) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let (changes, more) = readers.changes(requesters, now, |_| true, |_| true);
            for change in changes {
                let super::super::Change::Reader(change) = change else { panic!("{change}") };
                all.push(change.to_string());
                let mut object = change.object;
                if let Some(object) = &mut object {
                    object["metadata"]["namespace"] = change.namespace.clone().into();
                }
                let kept = object.map(|object| match change.part {
                    Part::Role => kept_role(&serde_json::from_value::<Role>(object).unwrap().into()).1.unwrap(),
                    Part::Binding => {
                        kept_binding(&serde_json::from_value::<RoleBinding>(object).unwrap().into()).1.unwrap()
                    }
                });
                readers.take(change.part, &change.namespace, kept);
            }
            if !more {
                return all;
            }
        }
    }

    fn named(readers: &Readers, namespace: &str) -> Vec<String> {
        readers.of(Part::Role, namespace).unwrap().names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_namespace_has_both_objects_for_as_long_as_somebody_there_may_request() {
        let (mut readers, now) = (lab(), Instant::now());
        let user = Subject { kind: "User".to_owned(), name: "system:node:cp".to_owned(), ..Subject::default() };
        let all = [user.clone(), group("a"), account("b", "z"), account("b", "etcd")];
        let made = settle(&mut readers, &all, now);
        assert_eq!(made.len(), 4, "{made:?}");
        assert_eq!(made[0], "a/etcd-tls-trust-reader (Role): made or mended");
        let other_order = [account("b", "etcd"), user, account("b", "z"), group("a")];
        assert_eq!(settle(&mut readers, &other_order, now), [""; 0], "nothing is written when nothing changes");
        let removed = settle(&mut readers, &[group("a")], now);
        assert_eq!(removed.len(), 2, "{removed:?}");
        assert!(removed.iter().all(|text| text.starts_with("b/") && text.ends_with("removed")), "{removed:?}");
        assert!(readers.of(Part::Role, "b").is_none() && readers.of(Part::Role, "a").is_some());
    }

    #[test]
    fn the_names_are_those_of_its_pods_for_a_grace_and_so_many() {
        let (mut readers, now, all) = (lab(), Instant::now(), [group("a"), group("b")]);
        runs(&mut readers, "a", "p", Some("etcd-tls-trust-events"), now);
        settle(&mut readers, &all, now);
        assert_eq!((named(&readers, "a"), named(&readers, "b").len()), (vec!["etcd-tls-trust-events".to_owned()], 0));
        runs(&mut readers, "a", "p", None, now);
        assert_eq!(settle(&mut readers, &all, now), [""; 0], "within the grace");
        assert_eq!(readers.next_end(), Some(now + GRACE));
        assert_eq!(settle(&mut readers, &all, now + GRACE).len(), 1);
        assert!(named(&readers, "a").is_empty() && readers.next_end().is_none());
        for n in 0..100 {
            runs(&mut readers, "b", &format!("p{n}"), Some(&format!("etcd-tls-trust-c{n}")), now);
        }
        settle(&mut readers, &all, now + GRACE);
        assert_eq!(named(&readers, "b").len(), 50);
    }

    #[test]
    fn a_successor_keeps_the_names_for_a_grace() {
        let (mut first, now, all) = (lab(), Instant::now(), [group("a")]);
        runs(&mut first, "a", "p", Some("etcd-tls-trust-events"), now);
        settle(&mut first, &all, now);
        let mut next = lab();
        for part in [Part::Role, Part::Binding] {
            next.take(part, "a", first.of(part, "a").cloned());
        }
        assert_eq!(settle(&mut next, &all, now), [""; 0]);
        assert_eq!(settle(&mut next, &all, now + GRACE).len(), 1);
    }

    #[test]
    fn what_is_not_ours_is_left_alone_where_nobody_opted_in() {
        let (mut readers, now) = (lab(), Instant::now());
        let by_hand: Role = serde_json::from_value(json!({"metadata": {"name": READER, "namespace": "a"}})).unwrap();
        readers.take(Part::Role, "a", kept_role(&Lean(by_hand, false)).1);
        let mut theirs = binding(&[&group("a")]);
        theirs["metadata"] = json!({"name": READER, "namespace": "a", "labels": {OUR_LABEL.0: OUR_LABEL.1}});
        theirs["roleRef"]["name"] = "view".into();
        let theirs = serde_json::from_value(theirs).unwrap();
        readers.take(Part::Binding, "a", kept_binding(&Lean(theirs, false)).1);
        assert_eq!(settle(&mut readers, &[], now), [""; 0]);
        let foreign =
            |readers: &Readers| readers.foreign().map(|(namespace, _)| namespace.to_owned()).collect::<Vec<_>>();
        assert_eq!(foreign(&readers), [""; 0]);
        // Where the namespace opts in, the Role is taken over; what another binding gives is not ours to say.
        assert_eq!(settle(&mut readers, &[group("a")], now), ["a/etcd-tls-trust-reader (Role): made or mended"]);
        assert_eq!(foreign(&readers), ["a"]);
    }

    #[test]
    fn nobody_is_bound_to_a_role_of_somebody_else() {
        let (mut readers, now, all) = (lab(), Instant::now(), [group("a")]);
        let by_hand: Role = serde_json::from_value(json!({
            "metadata": {"name": READER, "namespace": "a"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
        }))
        .unwrap();
        readers.take(Part::Role, "a", kept_role(&Lean(by_hand, false)).1);
        for wait in [false, true] {
            let (changes, more) = readers.changes(&all, now, |_| true, |_| !wait);
            let made: Vec<_> = changes.iter().map(ToString::to_string).collect();
            let role = ["a/etcd-tls-trust-reader (Role): made or mended".to_owned()];
            assert_eq!((made, more), if wait { (Vec::new(), false) } else { (role.to_vec(), true) });
        }
        assert_eq!(settle(&mut readers, &all, now).len(), 2);
    }

    #[test]
    fn a_look_writes_so_many_and_one_that_waits_keeps_no_other() {
        let (mut readers, now) = (lab(), Instant::now());
        let all: Vec<Subject> = (0..1000).map(|n| group(&format!("ns-{n:04}"))).collect();
        let (changes, more) = readers.changes(&all, now, |_| true, |name| !name.starts_with("ns-00"));
        assert!(more && changes.len() == AT_A_LOOK);
        assert!(changes[0].to_string().starts_with("ns-0100/"), "{}", changes[0]);
        assert_eq!(settle(&mut readers, &all, now).len(), 2000);
        // Without the right to one of the lists nothing is written, and nothing is waited for.
        let mut blind = Readers::new(GRACE);
        runs(&mut blind, "a", "p", Some("etcd-tls-trust-events"), now);
        runs(&mut blind, "a", "p", None, now);
        assert_eq!(blind.changes(&all, now, |_| true, |_| true), (Vec::new(), false));
        assert_eq!(blind.next_end(), None);
    }
}
