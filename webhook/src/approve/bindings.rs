//! Two bindings that `approve` keeps, so that labelling is all a user does.
//!
//! * Who may request: the shipped ClusterRoleBinding `etcd-tls-requesters`. Its subjects are the service accounts of each
//!   labelled namespace, the service account of each labelled pod elsewhere ([`accounts`]), and the hosts that policy lists.
//! * Where `sign` may publish trust: a RoleBinding `etcd-tls-sign` in each opted-in namespace, and in those of the clusters
//!   that the policy's hosts are of.
//!
//! What should be is computed from what is watched, compared with what is, and only the difference is written, each binding
//! at its own pace ([`pace`]). Nothing is written before everything was listed once, so that ignorance takes nobody's rights
//! away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use etcd_tls_contract::{names::SYSTEM_NAMESPACE, policy::Policy};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use kube::ResourceExt;
use serde::Deserialize;

use crate::controller::namespaces::{self, NamespaceFacts};

pub(super) use self::driver::{BindingArgs, Keeper};

mod accounts;
mod driver;
mod pace;

/// The shipped ClusterRoleBinding.
pub const REQUESTERS_BINDING: &str = "etcd-tls-requesters";
/// The ClusterRole of whoever requests.
pub const REQUESTER_ROLE: &str = "etcd-tls-requester";
/// The RoleBinding in each opted-in namespace, and the service account that it is for.
pub const SIGN_BINDING: &str = "etcd-tls-sign";
/// The ClusterRole that the RoleBinding gives in its namespace.
pub const TRUST_ROLE: &str = "etcd-tls-trust";

const RBAC: &str = "rbac.authorization.k8s.io";
/// The group of a namespace's service accounts begins so.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts:";

/// What is, as far as it was watched.
#[derive(Debug, Default)]
struct Observed {
    requesters: Option<ClusterRoleBinding>,
    /// `etcd-tls-sign` by namespace.
    sign: BTreeMap<String, SignBinding>,
}

/// What is kept of a RoleBinding `etcd-tls-sign`. Whoever may make RoleBindings may make a large one of that name.
#[derive(Clone, Debug, PartialEq)]
struct SignBinding {
    uid: Option<String>,
    /// `None`: it is larger than any of ours, so that not all of it was read.
    role: Option<RoleRef>,
    /// Whether its one subject is the signer.
    for_sign: bool,
}

impl SignBinding {
    fn is_of(&self, role: &RoleRef) -> bool {
        self.role.as_ref() == Some(role)
    }
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// Give the ClusterRoleBinding these subjects.
    Requesters(Vec<Subject>),
    /// Make or mend a namespace's RoleBinding.
    Bind(String),
    /// Remove a namespace's RoleBinding: nobody there is opted in any more.
    Unbind(String),
}

impl Change {
    /// The binding that it is of.
    fn binding(&self) -> String {
        match self {
            Self::Requesters(_) => REQUESTERS_BINDING.to_owned(),
            Self::Bind(namespace) | Self::Unbind(namespace) => format!("{namespace}/{SIGN_BINDING}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requesters(subjects) => write!(f, "{REQUESTERS_BINDING}: {} subjects", subjects.len()),
            Self::Bind(namespace) => write!(f, "{namespace}/{SIGN_BINDING}: made or mended"),
            Self::Unbind(namespace) => write!(f, "{namespace}/{SIGN_BINDING}: removed"),
        }
    }
}

/// Subjects of the ClusterRoleBinding; the admission policy lets no more through.
const MAX_SUBJECTS: usize = 5000;
/// Bytes of all subjects as JSON. An API server's etcd takes 1.5 MiB by default.
const MAX_SUBJECT_BYTES: usize = 1 << 20;

/// The namespace of Kubernetes' own components.
const KUBE_SYSTEM: &str = "kube-system";

/// The namespaces that are opted in: by their own label, or because of pods that are (`by_pods`). Not those that are being
/// deleted, where nothing can be made any more, not our own, and not `kube-system` without the label for hosts.
fn opted_in(namespaces: &namespaces::Map, by_pods: impl Fn(&str) -> bool) -> BTreeSet<String> {
    namespaces
        .iter()
        .filter(|(name, facts)| !facts.deleting && *name != SYSTEM_NAMESPACE && (*name != KUBE_SYSTEM || facts.hosts))
        .filter(|(name, facts)| facts.opted_in || by_pods(name))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Whether service accounts of the namespace may request at all: it is there, and neither ours nor Kubernetes' own.
fn may_ask(name: &str, facts: &NamespaceFacts) -> bool {
    !facts.deleting && name != SYSTEM_NAMESPACE && name != KUBE_SYSTEM
}

/// The namespaces whose label gives the right to all their service accounts.
fn labelled(namespaces: &namespaces::Map) -> BTreeSet<&str> {
    let all = namespaces.iter().filter(|(name, facts)| facts.opted_in && may_ask(name, facts));
    all.map(|(name, _)| name.as_str()).collect()
}

/// Who may request.
#[derive(Debug, Default, PartialEq)]
struct Requesters {
    /// Groups, users, service accounts; each sorted, so that the same set is the same list.
    subjects: Vec<Subject>,
    /// Those for whom the binding has no room.
    left_out: usize,
}

/// Who may request: the policy's hosts, the groups of the labelled namespaces' service accounts, then single accounts in
/// their order, as many as the binding holds.
fn requesters(labelled: &BTreeSet<&str>, accounts: &[accounts::Name<'_>], policy: &Policy) -> Requesters {
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
    let mut requesters = Requesters::default();
    let mut bytes = 0;
    for subject in hosts.chain(groups).chain(accounts) {
        // Braces, quotes, keys and the group, which is longer than a namespace's key.
        bytes += 96 + subject.name.len() + subject.namespace.as_ref().map_or(0, String::len);
        if requesters.subjects.len() < MAX_SUBJECTS && bytes <= MAX_SUBJECT_BYTES {
            requesters.subjects.push(subject);
        } else {
            requesters.left_out += 1;
        }
    }
    requesters.subjects.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
    requesters
}

/// The service accounts among the subjects of a binding.
fn accounts_of(binding: &ClusterRoleBinding) -> impl Iterator<Item = accounts::Name<'_>> {
    let subjects = binding.subjects.iter().flatten().filter(|subject| subject.kind == "ServiceAccount");
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

/// The difference between what should be and what is. A RoleBinding of our name with another role is somebody else's
/// ([`foreign`]): it is left alone.
fn changes(namespaces: &BTreeSet<String>, requesters: Vec<Subject>, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    // First, since every requester waits for it.
    let subjects = observed.requesters.as_ref().map(|b| b.subjects.clone().unwrap_or_default());
    if subjects.as_ref() != Some(&requesters) {
        changes.push(Change::Requesters(requesters));
    }
    for namespace in namespaces {
        match observed.sign.get(namespace) {
            Some(binding) if binding.role.is_some() && !binding.is_of(&trust_role()) => {}
            Some(binding) if binding.is_of(&trust_role()) && binding.for_sign => {}
            _ => changes.push(Change::Bind(namespace.clone())),
        }
    }
    for (namespace, binding) in &observed.sign {
        // That of our own namespace holds `sign`'s Role there.
        if !namespaces.contains(namespace) && binding.is_of(&trust_role()) && namespace != SYSTEM_NAMESPACE {
            changes.push(Change::Unbind(namespace.clone()));
        }
    }
    changes
}

/// The opted-in namespaces that have a RoleBinding of our name with another role, so that `sign` cannot publish trust there.
fn foreign<'a>(
    namespaces: &'a BTreeSet<String>,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a str, &'a SignBinding, &'a RoleRef)> {
    let bindings = namespaces.iter().filter_map(|namespace| {
        let binding = observed.sign.get(namespace)?;
        Some((namespace.as_str(), binding, binding.role.as_ref()?))
    });
    bindings.filter(|(_, _, role)| **role != trust_role())
}

/// A RoleBinding, and whether it is larger than what is read of one.
#[derive(Debug, Deserialize)]
#[serde(from = "RoleBinding")]
struct LeanBinding(RoleBinding, bool);

impl From<RoleBinding> for LeanBinding {
    fn from(binding: RoleBinding) -> Self {
        Self(binding, false)
    }
}

/// Keeps what [`changes`] compares, and no more; with its namespace.
fn lean_binding(LeanBinding(binding, cut): &LeanBinding) -> (String, SignBinding) {
    let kept = SignBinding {
        uid: binding.metadata.uid.clone(),
        role: (!cut).then(|| binding.role_ref.clone()),
        for_sign: !cut && binding.subjects.as_deref() == Some(&[sign_subject()]),
    };
    (binding.namespace().unwrap_or_default(), kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(opted_in: bool, deleting: bool) -> NamespaceFacts {
        NamespaceFacts { uid: "u".to_owned(), opted_in, deleting, hosts: false }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    fn good() -> SignBinding {
        SignBinding { uid: None, role: Some(trust_role()), for_sign: true }
    }

    fn with_subjects(subjects: Vec<Subject>) -> ClusterRoleBinding {
        ClusterRoleBinding { subjects: Some(subjects), ..ClusterRoleBinding::default() }
    }

    #[test]
    fn a_namespace_opts_in_by_its_label_or_by_a_pods() {
        let namespaces = BTreeMap::from([
            ("labelled".to_owned(), namespace(true, false)),
            ("by-pod".to_owned(), namespace(false, false)),
            ("neither".to_owned(), namespace(false, false)),
            ("going".to_owned(), namespace(true, true)),
            (SYSTEM_NAMESPACE.to_owned(), namespace(true, false)),
        ]);
        let pods = set(&["by-pod", "gone"]);
        assert_eq!(opted_in(&namespaces, |name| pods.contains(name)), set(&["by-pod", "labelled"]));
    }

    fn groups(namespaces: &[&str]) -> Vec<Subject> {
        requesters(&namespaces.iter().copied().collect(), &[], &Policy::default()).subjects
    }

    fn names(requesters: &Requesters) -> Vec<String> {
        let name = |s: &Subject| match &s.namespace {
            Some(namespace) => format!("{} {namespace}/{}", s.kind, s.name),
            None => format!("{} {}", s.kind, s.name),
        };
        requesters.subjects.iter().map(name).collect()
    }

    #[test]
    fn a_label_gives_the_right_to_what_carries_it() {
        let policy = Policy::parse(
            "hosts:\n- {username: 'system:node:cp', cluster: kube-system/etcd, roles: [peer], commonName: cp}\n",
        )
        .unwrap_or_default();
        assert_eq!(policy.hosts.len(), 1);
        let map = BTreeMap::from([
            ("a".to_owned(), namespace(true, false)),
            ("b".to_owned(), namespace(true, false)),
            ("by-pod".to_owned(), namespace(false, false)),
            ("going".to_owned(), namespace(true, true)),
            ("kube-system".to_owned(), NamespaceFacts { hosts: true, ..namespace(true, false) }),
            (SYSTEM_NAMESPACE.to_owned(), namespace(true, false)),
        ]);
        let all = requesters(&labelled(&map), &[("by-pod", "z"), ("by-pod", "etcd")], &policy);
        assert_eq!(
            names(&all),
            [
                "Group system:serviceaccounts:a",
                "Group system:serviceaccounts:b",
                "ServiceAccount by-pod/etcd",
                "ServiceAccount by-pod/z",
                "User system:node:cp"
            ]
        );
        let binding = with_subjects(all.subjects);
        assert_eq!(accounts_of(&binding).collect::<Vec<_>>(), [("by-pod", "etcd"), ("by-pod", "z")]);
    }

    #[test]
    fn the_binding_holds_so_many_and_the_first_come_first() {
        let long = "n".repeat(253);
        let accounts: Vec<String> = (0..10 * MAX_SUBJECTS).map(|n| format!("a{n}")).collect();
        let short: Vec<accounts::Name<'_>> = accounts.iter().map(|name| ("ns", name.as_str())).collect();
        let few = requesters(&BTreeSet::from(["labelled"]), &short, &Policy::default());
        assert_eq!((few.subjects.len(), few.left_out), (MAX_SUBJECTS, 10 * MAX_SUBJECTS + 1 - MAX_SUBJECTS));
        assert!(names(&few).contains(&"Group system:serviceaccounts:labelled".to_owned()));
        assert!(names(&few).contains(&"ServiceAccount ns/a0".to_owned()));
        let long: Vec<accounts::Name<'_>> = (0..10 * MAX_SUBJECTS).map(|_| ("ns", long.as_str())).collect();
        let large = requesters(&BTreeSet::new(), &long, &Policy::default());
        let bytes = serde_json::to_vec(&large.subjects).map_or(0, |json| json.len());
        assert!((MAX_SUBJECT_BYTES / 2..=MAX_SUBJECT_BYTES).contains(&bytes), "{bytes}");
        let small = serde_json::to_vec(&few.subjects).map_or(0, |json| json.len());
        assert!(small <= MAX_SUBJECT_BYTES, "{small}");
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let namespaces = set(&["b", "a"]);
        let wanted = || groups(&["a", "b"]);
        let mut observed = Observed {
            requesters: Some(with_subjects(wanted())),
            sign: BTreeMap::from([("a".to_owned(), good()), ("b".to_owned(), good())]),
        };
        assert_eq!(changes(&namespaces, wanted(), &observed), []);

        // Drift of each kind.
        observed.sign.remove("a");
        assert_eq!(changes(&namespaces, wanted(), &observed), [Change::Bind("a".to_owned())]);
        for subjects in [None, Some(vec![]), Some(vec![sign_subject(), sign_subject()])] {
            let binding = RoleBinding { role_ref: trust_role(), subjects, ..RoleBinding::default() };
            observed.sign.extend([lean_binding(&LeanBinding(binding, false))]);
            let binding = observed.sign.remove("").unwrap_or_else(good);
            observed.sign.insert("a".to_owned(), binding);
            assert_eq!(changes(&namespaces, wanted(), &observed), [Change::Bind("a".to_owned())]);
        }
        observed.sign.insert("a".to_owned(), good());
        for requesters in [Some(with_subjects(vec![sign_subject()])), None] {
            observed.requesters = requesters;
            assert_eq!(changes(&namespaces, wanted(), &observed), [Change::Requesters(wanted())]);
        }
    }

    #[test]
    fn a_binding_of_another_role_is_said_and_left_alone() {
        let other = RoleRef { name: "cluster-admin".to_owned(), ..trust_role() };
        let observed = Observed {
            requesters: Some(with_subjects(vec![])),
            sign: BTreeMap::from([
                ("a".to_owned(), SignBinding { role: Some(other), ..good() }),
                ("large".to_owned(), SignBinding { role: None, for_sign: false, uid: None }),
                ("out".to_owned(), SignBinding { role: Some(RoleRef::default()), ..good() }),
                ("out-large".to_owned(), SignBinding { role: None, for_sign: false, uid: None }),
            ]),
        };
        let namespaces = set(&["a", "b", "large"]);
        let wanted = ["b", "large"].map(|namespace| Change::Bind(namespace.to_owned()));
        assert_eq!(changes(&namespaces, vec![], &observed), wanted, "others go on");
        assert_eq!(foreign(&namespaces, &observed).map(|(ns, ..)| ns).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn trust_is_published_where_nobody_may_ask() {
        let observed = Observed { requesters: Some(with_subjects(vec![])), sign: BTreeMap::new() };
        let wanted = changes(&set(&["kube-system"]), vec![], &observed);
        assert_eq!(wanted, [Change::Bind("kube-system".to_owned())]);
    }

    #[test]
    fn who_opts_out_loses_the_binding_and_others_keep_theirs() {
        let other = RoleRef { name: "view".to_owned(), ..trust_role() };
        let observed = Observed {
            requesters: Some(with_subjects(groups(&["a"]))),
            sign: BTreeMap::from([
                ("a".to_owned(), good()),
                ("not-ours".to_owned(), SignBinding { role: Some(other), ..good() }),
                (SYSTEM_NAMESPACE.to_owned(), good()),
            ]),
        };
        assert_eq!(changes(&set(&[]), vec![], &observed), [Change::Requesters(vec![]), Change::Unbind("a".to_owned())]);
    }
}
