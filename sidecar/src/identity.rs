//! The whole law of who may be called what. Pure: values in, verdict out.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    csr::Request,
    names::SignerName,
    policy::Policy,
    role::Role,
    settings::{Sans, Settings},
};

/// Who asks, as the API server says it: `spec.username`, `uid`, `groups`, `extra` of the CertificateSigningRequest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    /// `spec.username`.
    pub username: String,
    /// `spec.uid`.
    pub uid: String,
    /// `spec.groups`.
    pub groups: Vec<String>,
    /// `spec.extra`.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A service-account token bound to a pod, recognised in a [`Requester`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// The service account's namespace, which is the pod's.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// `authentication.kubernetes.io/pod-name`.
    pub pod: String,
    /// `authentication.kubernetes.io/pod-uid`.
    pub pod_uid: String,
    /// `authentication.kubernetes.io/node-name`.
    pub node: String,
}

/// A pod as the law sees it: read live by approver and signer, known from the downward API by the requester.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// `spec.nodeName`.
    pub node: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`, or on the host's network `status.hostIPs`; empty while not reported.
    pub ips: Vec<IpAddr>,
    /// `spec.hostname`, else the pod's name (without dots' tail, as kubelet makes it).
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Names of `spec.containers`.
    pub containers: Vec<String>,
    /// Phase Succeeded or Failed.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Whether the pod's namespace carries `etcd-tls=dynamic`.
    pub namespace_opted_in: bool,
}

/// A Service of the pod's namespace as the law sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs`; empty for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.selector`; an empty one selects nothing.
    pub selector: BTreeMap<String, String>,
}

/// All that one role of one pod is entitled to. The signer issues this, whole; a request may ask for less of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The role.
    pub role: Role,
    /// The authority that signs it.
    pub signer: SignerName,
    /// The subject's CN.
    pub common_name: String,
    /// The names and addresses.
    pub sans: Sans,
    /// The longest life that policy and the pod's settings allow.
    pub lifetime: Duration,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says no more than its pod is.
    Approve(Entitlement),
    /// Terminal: every reason, for what waiting cannot change.
    Deny(Vec<Denial>),
    /// Waiting may change it (no pod IP yet, policy unreadable): left pending, looked at again.
    NotYet(String),
}

/// One reason to deny; [`Denial::reason`] is its bounded word for metrics and conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// One CamelCase word of a fixed set.
    pub reason: &'static str,
    /// What is wrong, with the values, and what to do; no PEM, no token.
    pub message: String,
}

/// Whether a pod has opted in: its own label, or its namespace's unless the pod opted out; in a labelled namespace only a
/// pod with a container `etcd` or an `etcd-tls.dev/roles` annotation.
pub fn opted_in(
    namespace_opted_in: bool,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    containers: &[&str],
) -> bool {
    let _ = (namespace_opted_in, labels, annotations, containers);
    todo!()
}

/// Recognises a pod-bound service-account token in what the API server says of the requester.
///
/// # Errors
/// Every reason why it is none.
pub fn bound_pod(requester: &Requester) -> Result<BoundPod, Vec<Denial>> {
    let _ = requester;
    todo!()
}

/// The subject's CN for `role`: at most 64 characters (RFC 5280, ub-common-name); a longer pod name is cut and ended by a
/// digest of the whole.
pub fn common_name(role: Role, pod_name: &str) -> String {
    let _ = (role, pod_name);
    todo!()
}

/// What the requester itself knows to ask for: its IPs, its hostname, `localhost`. Always a subset of [`entitlement`].
pub fn requested_sans(role: Role, pod: &PodFacts, settings: &Settings) -> Sans {
    let _ = (role, pod, settings);
    todo!()
}

/// The whole grammar: what `role` of `pod` is entitled to.
///
/// # Errors
/// A denial verdict's reasons, or not yet.
pub fn entitlement(
    role: Role,
    pod: &PodFacts,
    services: &[ServiceFacts],
    settings: &Settings,
    policy: &Policy,
) -> Result<Entitlement, Verdict> {
    let _ = (role, pod, services, settings, policy);
    todo!()
}

/// What a CertificateSigningRequest of ours asks, everything but the pod.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// `metadata.name`.
    pub name: &'a str,
    /// The signer, already recognised as ours.
    pub signer: &'a SignerName,
    /// Who asks.
    pub requester: &'a Requester,
    /// `spec.usages`.
    pub usages: &'a [String],
    /// `spec.expirationSeconds`.
    pub expiration: Option<Duration>,
    /// `spec.request`, strictly read.
    pub request: &'a Request,
}

/// The verdict, from the live pod (`None`: there is none of that name) and the Services of its namespace.
pub fn judge(asked: &Asked<'_>, pod: Option<&PodFacts>, services: &[ServiceFacts], policy: &Policy) -> Verdict {
    let _ = (asked, pod, services, policy);
    todo!()
}

/// `spec.usages` that `role` needs, in Kubernetes' words.
pub const fn usages(role: Role) -> &'static [&'static str] {
    match role {
        // A peer is both ends of a connection; etcd's gateway presents the server's certificate as a client.
        Role::Peer | Role::Server => &["digital signature", "server auth", "client auth"],
        Role::Client | Role::Metrics => &["digital signature", "client auth"],
    }
}
