//! The bindings that `approve` keeps, so that labelling is all a user does.
//!
//! * Who may request: the ClusterRoleBindings `etcd-tls-requesters`, one shipped and, where there are many, more of bounded
//!   size ([`spread`]). Their subjects are the service accounts of each labelled namespace, the service account of each labelled
//!   pod elsewhere ([`graced`]), and the hosts that policy lists.
//! * Where `sign` may publish trust: a RoleBinding `etcd-tls-sign` in each opted-in namespace, and in those of the clusters
//!   that the policy's hosts are of.
//! * Who may watch trust: a Role and a RoleBinding `etcd-tls-trust-reader` in each opted-in namespace ([`readers`]).
//!
//! The wanted bindings are computed from watched state and compared with the existing ones. Only the difference is written,
//! each binding at its own pace ([`pace`]). Nothing is written before every list is complete, so that missing knowledge takes
//! nobody's rights away.

use std::{collections::BTreeSet, fmt};

use etcd_tls_contract::{names::SYSTEM_NAMESPACE, policy::Policy};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kube::ResourceExt;

use self::lean::Lean;
use crate::controller::{
    ids::Uid,
    listed::Listed,
    namespaces::{self, NamespaceFacts},
};

pub(super) use self::driver::{BindingArgs, Reconciler};
pub(crate) use self::graced::MAX_OF_NAMESPACE;

mod driver;
mod graced;
mod lean;
mod notices;
mod pace;
mod readers;
mod spread;

/// The shipped ClusterRoleBinding.
pub const REQUESTERS_BINDING: &str = "etcd-tls-requesters";
/// The ClusterRole of requesters.
pub const REQUESTER_ROLE: &str = "etcd-tls-requester";
/// The RoleBinding in each opted-in namespace, and the service account that it is for.
pub const SIGN_BINDING: &str = "etcd-tls-sign";
/// The ClusterRole that the RoleBinding gives in its namespace.
pub const TRUST_ROLE: &str = "etcd-tls-trust";

const RBAC: &str = "rbac.authorization.k8s.io";
/// The group of a namespace's service accounts begins so.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts:";

/// The watched state.
#[derive(Debug, Default)]
struct Observed {
    /// The subjects of the ClusterRoleBindings, by number; each list has one or none.
    requesters: Vec<Listed<Vec<Subject>>>,
    /// `etcd-tls-sign` of each namespace.
    sign: Listed<SignBinding>,
}

impl Observed {
    /// Of this many ClusterRoleBindings; nothing is listed yet.
    fn new(requesters: usize) -> Self {
        Self { requesters: (0..requesters).map(|_| Listed::default()).collect(), ..Self::default() }
    }

    /// The subjects of a ClusterRoleBinding; `None`: there is none.
    fn subjects_of(&self, number: usize) -> Option<&Vec<Subject>> {
        self.requesters.get(number)?.iter().next().map(|(_, subjects)| subjects)
    }

    /// The RoleBinding of a namespace.
    fn sign_of(&self, namespace: &str) -> Option<&SignBinding> {
        self.sign.get(namespace, SIGN_BINDING)
    }

    /// The subjects of the first ClusterRoleBindings, as far as those are listed.
    fn present(&self) -> Vec<&[Subject]> {
        let listed = self.requesters.iter().take_while(|listed| listed.is_complete()).count();
        (0..listed).map(|number| self.subjects_of(number).map_or(&[][..], Vec::as_slice)).collect()
    }
}

/// The kept facts of a RoleBinding `etcd-tls-sign`. Anybody with the right to create RoleBindings can create a large one of
/// that name.
#[derive(Clone, Debug, PartialEq)]
struct SignBinding {
    uid: Option<Uid>,
    role: Role,
    /// True if its one subject is the signer.
    for_sign: bool,
}

/// The role of a RoleBinding. Thousands are of ours.
#[derive(Clone, Debug, PartialEq)]
enum Role {
    Trust,
    Other(Box<RoleRef>),
    /// It is larger than any of ours, so that not all of it was read.
    Unread,
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// Give the ClusterRoleBinding of this number these subjects.
    Requesters(usize, Vec<Subject>),
    /// Make or mend a namespace's RoleBinding.
    Bind(String),
    /// Remove a namespace's RoleBinding: nobody there is opted in any more.
    Unbind(String),
    /// Make, mend or remove what lets a namespace watch its trust.
    Reader(readers::Change),
}

impl Change {
    /// True if it takes a right away.
    const fn withdraws(&self) -> bool {
        matches!(self, Self::Unbind(_) | Self::Reader(readers::Change { object: None, .. }))
    }

    /// The binding that it is of.
    fn binding(&self) -> String {
        match self {
            Self::Requesters(number, _) => spread::name(*number),
            Self::Bind(namespace) | Self::Unbind(namespace) => format!("{namespace}/{SIGN_BINDING}"),
            Self::Reader(change) => change.part.of(&change.namespace),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requesters(number, subjects) => write!(f, "{}: {} subjects", spread::name(*number), subjects.len()),
            Self::Bind(namespace) => write!(f, "{namespace}/{SIGN_BINDING}: made or mended"),
            Self::Unbind(namespace) => write!(f, "{namespace}/{SIGN_BINDING}: removed"),
            Self::Reader(change) => change.fmt(f),
        }
    }
}

/// The namespace of Kubernetes' own components.
const KUBE_SYSTEM: &str = "kube-system";

/// The namespaces that are opted in: by their own label, or because of pods that are (`by_pods`). Not those that are being
/// deleted, where nothing can be made any more, not our own, and not `kube-system` without the label for hosts.
fn opted_in(namespaces: &namespaces::Map, by_pods: impl Fn(&str) -> bool) -> BTreeSet<String> {
    namespaces
        .iter()
        .filter(|(name, facts)| {
            !facts.deleting && ***name != *SYSTEM_NAMESPACE && (***name != *KUBE_SYSTEM || facts.hosts)
        })
        .filter(|(name, facts)| facts.opted_in || by_pods(name))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// True if service accounts of the namespace may request at all: it is there, and neither ours nor Kubernetes' own.
fn may_ask(name: &str, facts: &NamespaceFacts) -> bool {
    !facts.deleting && name != SYSTEM_NAMESPACE && name != KUBE_SYSTEM
}

/// The namespaces whose label gives the right to all their service accounts.
fn labelled(namespaces: &namespaces::Map) -> BTreeSet<&str> {
    let all = namespaces.iter().filter(|(name, facts)| facts.opted_in && may_ask(name, facts));
    all.map(|(name, _)| &**name).collect()
}

/// The subjects that may request: the policy's hosts, the groups of the labelled namespaces' service accounts, then single
/// accounts in their order.
fn requesters(labelled: &BTreeSet<&str>, accounts: &[graced::Name<'_>], policy: &Policy) -> Vec<Subject> {
    let rbac = |kind: &str, name: String| Subject {
        api_group: Some(RBAC.to_owned()),
        kind: kind.to_owned(),
        name,
        namespace: None,
    };
    let hosts: BTreeSet<&String> = policy.hosts.iter().map(|host| &host.username).collect();
    let hosts = hosts.into_iter().map(|user| rbac("User", user.clone()));
    let groups = labelled.iter().map(|ns| rbac("Group", format!("{SERVICE_ACCOUNTS}{ns}")));
    let accounts = accounts.iter().map(|(namespace, name)| Subject {
        api_group: None,
        kind: "ServiceAccount".to_owned(),
        name: (*name).to_owned(),
        namespace: Some((*namespace).to_owned()),
    });
    hosts.chain(groups).chain(accounts).collect()
}

/// The service accounts among the subjects of a binding.
fn accounts_of(subjects: &[Subject]) -> impl Iterator<Item = graced::Name<'_>> {
    let subjects = subjects.iter().filter(|subject| subject.kind == "ServiceAccount");
    subjects.filter_map(|subject| Some((subject.namespace.as_deref()?, subject.name.as_str())))
}

fn trust_role() -> RoleRef {
    RoleRef { api_group: RBAC.to_owned(), kind: "ClusterRole".to_owned(), name: TRUST_ROLE.to_owned() }
}

fn sign_subject() -> Subject {
    Subject {
        api_group: None,
        kind: "ServiceAccount".to_owned(),
        name: SIGN_BINDING.to_owned(),
        namespace: Some(SYSTEM_NAMESPACE.to_owned()),
    }
}

/// The difference between what should be and what is. `requesters`: the subjects of each ClusterRoleBinding. A RoleBinding of
/// our name with another role is somebody else's ([`foreign`]): it is left alone.
fn changes(namespaces: &BTreeSet<String>, requesters: Vec<Vec<Subject>>, observed: &Observed) -> Vec<Change> {
    // First, since every requester waits for it.
    let mut changes: Vec<Change> = requesters
        .into_iter()
        .enumerate()
        .filter(|(number, subjects)| match observed.subjects_of(*number) {
            Some(present) => present != subjects,
            // The first is shipped; another is made when somebody comes into it.
            None => *number == 0 || !subjects.is_empty(),
        })
        .map(|(number, subjects)| Change::Requesters(number, subjects))
        .collect();
    // Additions come before removals, so that a subject that moves keeps the right.
    changes.sort_by_key(|change| match change {
        Change::Requesters(number, subjects) => {
            let present = observed.subjects_of(*number);
            present.is_some_and(|present| subjects.iter().all(|subject| present.contains(subject)))
        }
        Change::Bind(_) | Change::Unbind(_) | Change::Reader(_) => true,
    });
    for namespace in namespaces {
        match observed.sign_of(namespace) {
            Some(SignBinding { role: Role::Other(_), .. }) => {}
            Some(SignBinding { role: Role::Trust, for_sign: true, .. }) => {}
            _ => changes.push(Change::Bind(namespace.clone())),
        }
    }
    for ((namespace, _), binding) in observed.sign.iter() {
        // That of our own namespace holds `sign`'s Role there.
        if !namespaces.contains(&**namespace) && binding.role == Role::Trust && **namespace != *SYSTEM_NAMESPACE {
            changes.push(Change::Unbind(namespace.to_string()));
        }
    }
    changes
}

/// The opted-in namespaces that have a RoleBinding of our name with another role, so that `sign` cannot publish trust there.
fn foreign<'a>(
    namespaces: &'a BTreeSet<String>,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a str, &'a SignBinding, &'a RoleRef)> {
    namespaces.iter().filter_map(|namespace| {
        let binding = observed.sign_of(namespace)?;
        let Role::Other(role) = &binding.role else { return None };
        Some((namespace.as_str(), binding, &**role))
    })
}

/// Keeps what [`changes`] compares, and no more; with its namespace.
fn lean_binding(Lean(binding, cut): &Lean<RoleBinding>) -> (String, SignBinding) {
    let kept = SignBinding {
        uid: binding.metadata.uid.as_deref().map(Uid::from),
        role: match &binding.role_ref {
            _ if *cut => Role::Unread,
            role if *role == trust_role() => Role::Trust,
            other => Role::Other(Box::new(other.clone())),
        },
        for_sign: !cut && binding.subjects.as_deref() == Some(&[sign_subject()]),
    };
    (binding.namespace().unwrap_or_default(), kept)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::controller::listed::{Event, key};

    fn namespace(opted_in: bool, deleting: bool) -> Arc<NamespaceFacts> {
        Arc::new(NamespaceFacts { uid: "u".to_owned(), opted_in, deleting, hosts: false })
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    fn good() -> SignBinding {
        SignBinding { uid: None, role: Role::Trust, for_sign: true }
    }

    fn set_sign(observed: &mut Observed, namespace: &str, binding: Option<SignBinding>) {
        let of = key(Some(namespace), Some(SIGN_BINDING));
        observed.sign.take(Event::Applied(binding), |binding| (of, binding), |_, _, _| {});
    }

    /// The first ClusterRoleBinding, and the RoleBindings by namespace; both lists are complete.
    fn observed<const N: usize>(subjects: Option<Vec<Subject>>, sign: [(&str, SignBinding); N]) -> Observed {
        let mut observed = Observed::new(1);
        let of = key(None, Some(REQUESTERS_BINDING));
        observed.requesters[0].take(Event::Listed(subjects), |subjects| (of, subjects), |_, _, _| {});
        observed.requesters[0].take(Event::<()>::Complete, |()| (key(None, None), None), |_, _, _| {});
        for (namespace, binding) in sign {
            set_sign(&mut observed, namespace, Some(binding));
        }
        observed
    }

    #[test]
    fn a_namespace_opts_in_by_its_label_or_by_a_pods() {
        let namespaces = BTreeMap::from([
            ("labelled".into(), namespace(true, false)),
            ("by-pod".into(), namespace(false, false)),
            ("neither".into(), namespace(false, false)),
            ("going".into(), namespace(true, true)),
            (SYSTEM_NAMESPACE.into(), namespace(true, false)),
        ]);
        let pods = set(&["by-pod", "gone"]);
        assert_eq!(opted_in(&namespaces, |name| pods.contains(name)), set(&["by-pod", "labelled"]));
    }

    fn groups(namespaces: &[&str]) -> Vec<Subject> {
        requesters(&namespaces.iter().copied().collect(), &[], &Policy::default())
    }

    fn names(subjects: &[Subject]) -> Vec<String> {
        let name = |s: &Subject| match &s.namespace {
            Some(namespace) => format!("{} {namespace}/{}", s.kind, s.name),
            None => format!("{} {}", s.kind, s.name),
        };
        subjects.iter().map(name).collect()
    }

    #[test]
    fn a_label_gives_the_right_to_what_carries_it() {
        let policy = Policy::parse(
            "hosts:\n- {username: 'system:node:cp', cluster: kube-system/etcd, roles: [peer], commonName: cp}\n",
        )
        .unwrap_or_default();
        assert_eq!(policy.hosts.len(), 1);
        let map = BTreeMap::from([
            ("a".into(), namespace(true, false)),
            ("b".into(), namespace(true, false)),
            ("by-pod".into(), namespace(false, false)),
            ("going".into(), namespace(true, true)),
            (
                "kube-system".into(),
                Arc::new(NamespaceFacts { hosts: true, ..NamespaceFacts::clone(&namespace(true, false)) }),
            ),
            (SYSTEM_NAMESPACE.into(), namespace(true, false)),
        ]);
        let all = requesters(&labelled(&map), &[("by-pod", "z"), ("by-pod", "etcd")], &policy);
        assert_eq!(
            names(&all),
            [
                "User system:node:cp",
                "Group system:serviceaccounts:a",
                "Group system:serviceaccounts:b",
                "ServiceAccount by-pod/z",
                "ServiceAccount by-pod/etcd",
            ]
        );
        assert_eq!(accounts_of(&all).collect::<Vec<_>>(), [("by-pod", "z"), ("by-pod", "etcd")]);
    }

    #[test]
    fn correct_bindings_are_not_written() {
        let namespaces = set(&["b", "a"]);
        let wanted = || groups(&["a", "b"]);
        let mut seen = observed(Some(wanted()), [("a", good()), ("b", good())]);
        assert_eq!(changes(&namespaces, vec![wanted()], &seen), []);

        // Drift of each kind.
        set_sign(&mut seen, "a", None);
        assert_eq!(changes(&namespaces, vec![wanted()], &seen), [Change::Bind("a".to_owned())]);
        for subjects in [None, Some(vec![]), Some(vec![sign_subject(), sign_subject()])] {
            let binding = RoleBinding { role_ref: trust_role(), subjects, ..RoleBinding::default() };
            set_sign(&mut seen, "a", Some(lean_binding(&Lean(binding, false)).1));
            assert_eq!(changes(&namespaces, vec![wanted()], &seen), [Change::Bind("a".to_owned())]);
        }
        for subjects in [Some(vec![sign_subject()]), None] {
            let seen = observed(subjects, [("a", good()), ("b", good())]);
            assert_eq!(changes(&namespaces, vec![wanted()], &seen), [Change::Requesters(0, wanted())]);
        }
        // A further binding is created for its first subject. A subject that moves there keeps the right throughout.
        let seen = observed(Some(wanted()), [("a", good()), ("b", good())]);
        assert_eq!(changes(&namespaces, vec![wanted(), vec![]], &seen), []);
        let moved = vec![groups(&["a"]), groups(&["b"])];
        let moves = [Change::Requesters(1, groups(&["b"])), Change::Requesters(0, groups(&["a"]))];
        assert_eq!(changes(&namespaces, moved, &seen), moves);
    }

    #[test]
    fn a_binding_of_another_role_is_said_and_left_alone() {
        let other = RoleRef { name: "cluster-admin".to_owned(), ..trust_role() };
        let seen = observed(
            Some(vec![]),
            [
                ("a", SignBinding { role: Role::Other(Box::new(other)), ..good() }),
                ("large", SignBinding { role: Role::Unread, for_sign: false, uid: None }),
                ("out", SignBinding { role: Role::Other(Box::default()), ..good() }),
                ("out-large", SignBinding { role: Role::Unread, for_sign: false, uid: None }),
            ],
        );
        let namespaces = set(&["a", "b", "large"]);
        let wanted = ["b", "large"].map(|namespace| Change::Bind(namespace.to_owned()));
        assert_eq!(changes(&namespaces, vec![vec![]], &seen), wanted, "others go on");
        assert_eq!(foreign(&namespaces, &seen).map(|(ns, ..)| ns).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn trust_is_published_where_nobody_may_ask() {
        let wanted = changes(&set(&["kube-system"]), vec![vec![]], &observed(Some(vec![]), []));
        assert_eq!(wanted, [Change::Bind("kube-system".to_owned())]);
    }

    #[test]
    fn who_opts_out_loses_the_binding_and_others_keep_theirs() {
        let other = RoleRef { name: "view".to_owned(), ..trust_role() };
        let not_ours = SignBinding { role: Role::Other(Box::new(other)), ..good() };
        let seen = observed(Some(groups(&["a"])), [("a", good()), ("not-ours", not_ours), (SYSTEM_NAMESPACE, good())]);
        let wanted = [Change::Requesters(0, vec![]), Change::Unbind("a".to_owned())];
        assert_eq!(changes(&set(&[]), vec![vec![]], &seen), wanted);
    }
}
