//! Two bindings that `approve` keeps, so that labelling is all a user does.
//!
//! * Who may request: the shipped ClusterRoleBinding `etcd-tls-requesters`, whose subjects are the service accounts of each
//!   opted-in namespace, and the hosts that policy lists.
//! * Where `sign` may publish trust: a RoleBinding `etcd-tls-sign` in each opted-in namespace, and in those of the clusters
//!   that the policy's hosts are of.
//!
//! What should be is computed from what is watched, compared with what is, and only the difference is written. Nothing is
//! written before everything was listed once, so that ignorance takes nobody's rights away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use etcd_tls_contract::{names::SYSTEM_NAMESPACE, policy::Policy};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use kube::ResourceExt;

use crate::controller::namespaces;

pub(super) use self::driver::run;

mod driver;

/// The shipped ClusterRoleBinding.
pub const REQUESTERS_BINDING: &str = "etcd-tls-requesters";
/// The ClusterRole of whoever requests.
pub const REQUESTER_ROLE: &str = "etcd-tls-requester";
/// The RoleBinding in each opted-in namespace, and the service account that it is for.
pub const SIGN_BINDING: &str = "etcd-tls-sign";
/// The ClusterRole that the RoleBinding gives in its namespace.
pub const TRUST_ROLE: &str = "etcd-tls-trust";

const RBAC: &str = "rbac.authorization.k8s.io";

/// What is, as far as it was watched.
#[derive(Debug, Default)]
struct Observed {
    requesters: Option<ClusterRoleBinding>,
    /// `etcd-tls-sign` by namespace.
    sign: BTreeMap<String, RoleBinding>,
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// Give the ClusterRoleBinding these subjects.
    Requesters(Vec<Subject>),
    /// Make or mend a namespace's RoleBinding.
    Bind(String),
    /// Remove a namespace's RoleBinding: nobody there is opted in any more, or it binds another role, which cannot be
    /// changed.
    Unbind(String),
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

/// Labelled pods: by namespace and uid, whether each asks with a token of its own. A static pod asks as its host; were its
/// mirror to count, every service account of kube-system would get the right to request, and be held by what goes with it.
type Pods = BTreeMap<String, BTreeMap<String, bool>>;

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

/// Who may request: the groups of the namespaces' service accounts, then the hosts; each sorted, so that the same set is
/// the same list.
fn requesters(namespaces: &BTreeSet<String>, policy: &Policy) -> Vec<Subject> {
    let subject = |kind: &str, name: String| Subject {
        api_group: Some(RBAC.to_owned()),
        kind: kind.to_owned(),
        name,
        namespace: None,
    };
    let hosts: BTreeSet<&String> = policy.hosts.iter().map(|host| &host.username).collect();
    let groups = namespaces.iter().map(|ns| subject("Group", format!("system:serviceaccounts:{ns}")));
    groups.chain(hosts.into_iter().map(|user| subject("User", user.clone()))).collect()
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

/// The difference between what should be and what is; `asking`: those of `namespaces` whose service accounts may request.
fn changes(
    namespaces: &BTreeSet<String>,
    asking: &BTreeSet<String>,
    policy: &Policy,
    observed: &Observed,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for namespace in namespaces {
        match observed.sign.get(namespace) {
            Some(binding) if binding.role_ref != trust_role() => {
                changes.push(Change::Unbind(namespace.clone()));
                changes.push(Change::Bind(namespace.clone()));
            }
            Some(binding) if binding.subjects.as_deref() == Some(&[sign_subject()]) => {}
            _ => changes.push(Change::Bind(namespace.clone())),
        }
    }
    for (namespace, binding) in &observed.sign {
        // A binding of that name to another role is somebody else's where nobody opted in; so is the one of our own
        // namespace, which holds `sign`'s Role there.
        if !namespaces.contains(namespace) && binding.role_ref == trust_role() && namespace != SYSTEM_NAMESPACE {
            changes.push(Change::Unbind(namespace.clone()));
        }
    }
    let wanted = requesters(asking, policy);
    let subjects = observed.requesters.as_ref().map(|b| b.subjects.clone().unwrap_or_default());
    if subjects.as_ref() != Some(&wanted) {
        changes.push(Change::Requesters(wanted));
    }
    changes
}

/// Keeps what [`changes`] compares, and no more.
fn lean_binding(mut binding: RoleBinding) -> (String, RoleBinding) {
    binding.managed_fields_mut().clear();
    (binding.namespace().unwrap_or_default(), binding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::namespaces::NamespaceFacts;

    fn namespace(opted_in: bool, deleting: bool) -> NamespaceFacts {
        NamespaceFacts { uid: "u".to_owned(), opted_in, deleting, hosts: false }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    fn good() -> RoleBinding {
        RoleBinding { role_ref: trust_role(), subjects: Some(vec![sign_subject()]), ..RoleBinding::default() }
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

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let namespaces = set(&["b", "a"]);
        let policy = Policy::parse(
            "hosts:\n- {username: 'system:node:cp', cluster: kube-system/etcd, roles: [peer], commonName: cp}\n",
        )
        .unwrap_or_default();
        assert_eq!(policy.hosts.len(), 1);
        let wanted = requesters(&namespaces, &policy);
        let names: Vec<&str> = wanted.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["system:serviceaccounts:a", "system:serviceaccounts:b", "system:node:cp"]);
        let mut observed = Observed {
            requesters: Some(with_subjects(wanted)),
            sign: BTreeMap::from([("a".to_owned(), good()), ("b".to_owned(), good())]),
        };
        assert_eq!(changes(&namespaces, &namespaces, &policy, &observed), []);

        // Drift of each kind.
        observed.sign.remove("a");
        assert_eq!(changes(&namespaces, &namespaces, &policy, &observed), [Change::Bind("a".to_owned())]);
        let other = RoleRef { name: "cluster-admin".to_owned(), ..trust_role() };
        observed.sign.insert("a".to_owned(), RoleBinding { role_ref: other.clone(), ..good() });
        assert_eq!(
            changes(&namespaces, &namespaces, &policy, &observed),
            [Change::Unbind("a".to_owned()), Change::Bind("a".to_owned())]
        );
        observed.sign.insert("a".to_owned(), RoleBinding { subjects: None, ..good() });
        assert_eq!(changes(&namespaces, &namespaces, &policy, &observed), [Change::Bind("a".to_owned())]);
        observed.sign.insert("a".to_owned(), good());
        observed.requesters = Some(with_subjects(vec![sign_subject()]));
        assert!(matches!(changes(&namespaces, &namespaces, &policy, &observed).as_slice(), [Change::Requesters(_)]));
        observed.requesters = None;
        assert!(matches!(changes(&namespaces, &namespaces, &policy, &observed).as_slice(), [Change::Requesters(_)]));
    }

    #[test]
    fn trust_is_published_where_nobody_may_ask() {
        let observed = Observed { requesters: Some(with_subjects(vec![])), sign: BTreeMap::new() };
        let wanted = changes(&set(&["kube-system"]), &set(&[]), &Policy::default(), &observed);
        assert_eq!(wanted, [Change::Bind("kube-system".to_owned())]);
    }

    #[test]
    fn who_opts_out_loses_the_binding_and_others_keep_theirs() {
        let policy = Policy::default();
        let other = RoleRef { name: "view".to_owned(), ..trust_role() };
        let observed = Observed {
            requesters: Some(with_subjects(requesters(&set(&["a"]), &policy))),
            sign: BTreeMap::from([
                ("a".to_owned(), good()),
                ("not-ours".to_owned(), RoleBinding { role_ref: other, ..good() }),
                (SYSTEM_NAMESPACE.to_owned(), good()),
            ]),
        };
        assert_eq!(
            changes(&set(&[]), &set(&[]), &policy, &observed),
            [Change::Unbind("a".to_owned()), Change::Requesters(vec![])]
        );
    }
}
