//! The input of the rules of identity as plain values: the requester, the pod, the Services.

use std::{collections::BTreeMap, net::IpAddr};

/// The requester, as the API server authenticated it: `spec.username`, `uid`, `groups`, `extra` of the
/// CertificateSigningRequest.
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

/// A pod as the rules of identity take it: read live by approver and signer, known from the downward API by the requester.
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
    /// Names of `spec.containers`, and of the native sidecars among `spec.initContainers`.
    pub containers: Vec<String>,
    /// Phase Succeeded or Failed.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// True if the pod's namespace carries `etcd-tls=dynamic`.
    pub namespace_opted_in: bool,
}

/// A Service of the pod's namespace as the rules of identity take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs`; empty for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.selector`; an empty one selects nothing.
    pub selector: BTreeMap<String, String>,
}
