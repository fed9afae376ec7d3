//! The `resourceNames` of the rules, as they are meant. The suite fails for a rule that has others, or none.

use super::{MUTATING, Rule, VALIDATING};
use crate::rights::shipped::Rules;

const SIGNERS: [&str; 3] = ["peer.etcd-tls.dev/*", "client.etcd-tls.dev/*", "metrics.etcd-tls.dev/*"];
const REQUESTERS: [&str; 8] = [
    "etcd-tls-requesters",
    "etcd-tls-requesters-1",
    "etcd-tls-requesters-2",
    "etcd-tls-requesters-3",
    "etcd-tls-requesters-4",
    "etcd-tls-requesters-5",
    "etcd-tls-requesters-6",
    "etcd-tls-requesters-7",
];
const READ: [&str; 3] = ["get", "list", "watch"];
const APPROVE: &str = "ClusterRole/etcd-tls-approve";
const SIGN: &str = "ClusterRole/etcd-tls-sign";

/// A set of rules with names.
#[derive(Default)]
struct Named(Rules);

impl Named {
    fn add(&mut self, role: &str, resources: &[&str], verbs: &[&str], names: &[&str]) {
        for resource in resources {
            for verb in verbs {
                let names = names.iter().map(|&name| name.to_owned()).collect();
                self.0.entry(Rule::new(role, resource, verb)).or_default().insert(names);
            }
        }
    }

    /// The policies that a process compares.
    fn policies(&mut self, role: &str, policies: &[&str]) {
        let names: Vec<_> = policies.iter().map(|policy| format!("etcd-tls-{policy}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        for kind in ["validatingadmissionpolicies", "validatingadmissionpolicybindings"] {
            self.add(role, &[&format!("admissionregistration.k8s.io/{kind}")], &["get"], &names);
        }
    }
}

/// Of the rules that components add.
pub(super) fn of_components() -> Rules {
    let mut of = Named::default();
    of.policies(APPROVE, &["certificate-requests"]);
    of.policies(APPROVE, &["certificate-request-approvals", "certificate-request-identities"]);
    of.policies(SIGN, &["certificate-request-deletes"]);
    of.policies(SIGN, &["pod-certificates"]);
    of.policies(SIGN, &["cluster-trust-bundles"]);
    of.add(SIGN, &["certificates.k8s.io/signers"], &["attest"], &SIGNERS);
    of.0
}

/// For each rule with names, its sets of them; a rule that is not here has none.
pub(super) fn all() -> Rules {
    let mut of = Named::default();
    let rbac = |resource: &str| format!("rbac.authorization.k8s.io/{resource}");
    let signers = "certificates.k8s.io/signers";
    let leases = "coordination.k8s.io/leases";
    of.policies(APPROVE, &["requests", "request-writes", "bindings", "pods", "leases", "events"]);
    of.policies(SIGN, &["requests", "request-writes", "secrets", "trust", "webhooks", "leases", "events"]);
    of.add(APPROVE, &[signers], &["approve"], &[SIGNERS.as_slice(), &["etcd-tls.dev/*"]].concat());
    of.add(APPROVE, &[&rbac("clusterrolebindings")], &["get", "list", "watch", "create", "patch"], &REQUESTERS);
    let bindings = ["get", "list", "watch", "create", "patch", "delete"];
    of.add(APPROVE, &[&rbac("rolebindings")], &bindings, &["etcd-tls-sign", "etcd-tls-trust-reader"]);
    let roles = [bindings.as_slice(), &["escalate", "bind"]].concat();
    of.add(APPROVE, &[&rbac("roles")], &roles, &["etcd-tls-trust-reader"]);
    of.add(APPROVE, &[&rbac("clusterroles")], &["bind"], &["etcd-tls-requester", "etcd-tls-trust"]);
    of.add(SIGN, &[signers], &["sign"], &SIGNERS);
    of.add(SIGN, &[MUTATING, VALIDATING], &["get", "patch"], &["etcd-tls"]);
    for process in ["approve", "sign"] {
        let (role, lease) = (format!("Role/etcd-tls-{process}"), format!("etcd-tls-{process}"));
        of.add(&role, &["configmaps"], &READ, &["etcd-tls-policy"]);
        of.add(&role, &[leases], &["get", "update"], &[&lease]);
    }
    of.add("Role/etcd-tls-lease-lock", &[leases], &["get", "update"], &["etcd-tls-restart-etcd"]);
    of.add("Role/etcd-client-tls", &["secrets"], &["get", "update"], &["etcd-client-tls"]);
    of.add("Role/etcd-tls-hosts", &["configmaps"], &["get", "watch"], &["etcd-tls-trust-etcd"]);
    of.0
}
