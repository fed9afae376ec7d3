//! The shipped policies that hold `approve` and `sign`, and which of them a process depends on.

/// A shipped policy; its binding has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Guard {
    /// The policies on requests.
    Requests,
    /// The policies on writes to requests and on their deletion.
    RequestWrites,
    /// The bindings of `approve`.
    Bindings,
    /// The Secrets of `sign`.
    Secrets,
    /// Trust bundles.
    Trust,
    /// Webhook configurations.
    Webhooks,
    /// Pods keep what they were admitted with.
    Pods,
    /// Leases.
    Leases,
    /// Events.
    Events,
    /// PodCertificateRequests to our signers; of the component pod-certificates.
    PodCertificates,
    /// ClusterTrustBundles of our signers; of the component cluster-trust-bundles.
    ClusterTrustBundles,
    /// Pods' CertificateRequests to issuers of cert-manager; of the component cert-manager.
    CertificateRequests,
    /// The deletion of CertificateRequests; of the component cert-manager.
    CertificateRequestDeletes,
    /// The decisions on CertificateRequests; of the component approve-others.
    CertificateRequestApprovals,
    /// The user fields in a pod's CertificateRequest; of the component approve-others.
    CertificateRequestIdentities,
}

/// The components of the manifests that a process works for, by its arguments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Components {
    /// Finished CertificateRequests are deleted, and requesters may create some.
    pub(crate) cert_manager: bool,
    /// ClusterTrustBundles are published.
    pub(crate) cluster_trust_bundles: bool,
    /// PodCertificateRequests are answered.
    pub(crate) pod_certificates: bool,
    /// CertificateRequests are decided.
    pub(crate) approvals_of_cert_manager: bool,
}

impl Guard {
    /// The policy's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Requests => "etcd-tls-requests",
            Self::RequestWrites => "etcd-tls-request-writes",
            Self::Bindings => "etcd-tls-bindings",
            Self::Secrets => "etcd-tls-secrets",
            Self::Trust => "etcd-tls-trust",
            Self::Webhooks => "etcd-tls-webhooks",
            Self::Pods => "etcd-tls-pods",
            Self::Leases => "etcd-tls-leases",
            Self::Events => "etcd-tls-events",
            Self::PodCertificates => "etcd-tls-pod-certificates",
            Self::ClusterTrustBundles => "etcd-tls-cluster-trust-bundles",
            Self::CertificateRequests => "etcd-tls-certificate-requests",
            Self::CertificateRequestDeletes => "etcd-tls-certificate-request-deletes",
            Self::CertificateRequestApprovals => "etcd-tls-certificate-request-approvals",
            Self::CertificateRequestIdentities => "etcd-tls-certificate-request-identities",
        }
    }

    /// What follows while it is not in force, as docs/security.md says it.
    pub(super) const fn consequence(self) -> &'static str {
        match self {
            Self::Requests => "no service account is given the right to request",
            Self::RequestWrites => "no request is approved, signed or deleted",
            Self::Bindings => "no binding and no Role is written",
            Self::Secrets => "no Secret is written, no CA is made and no serving pair renewed",
            Self::Trust => "no trust bundle is written",
            Self::Webhooks => "caBundle is not written",
            Self::Pods => "who may update a pod can change which certificates it gets",
            Self::Leases => {
                "a stolen token can keep the next replica from leading, and no request is approved, signed or deleted"
            }
            Self::Events => "a stolen token can write Events under other names",
            Self::PodCertificates => "no PodCertificateRequest is answered",
            Self::ClusterTrustBundles => "no ClusterTrustBundle is written or deleted",
            Self::CertificateRequests => "no service account is given the right to request",
            Self::CertificateRequestDeletes => "no CertificateRequest is deleted",
            Self::CertificateRequestApprovals | Self::CertificateRequestIdentities => {
                "no CertificateRequest is decided"
            }
        }
    }
}

/// Those that a process depends on, whatever the components.
const APPROVE: &[Guard] =
    &[Guard::Requests, Guard::RequestWrites, Guard::Bindings, Guard::Pods, Guard::Leases, Guard::Events];
/// See [`APPROVE`].
const SIGN: &[Guard] = &[
    Guard::Requests,
    Guard::RequestWrites,
    Guard::Secrets,
    Guard::Trust,
    Guard::Webhooks,
    Guard::Leases,
    Guard::Events,
];

/// Those that `approve` depends on.
pub(crate) fn of_approve(components: Components) -> Vec<Guard> {
    let decides = components.approvals_of_cert_manager;
    let more = [
        components.cert_manager.then_some(Guard::CertificateRequests),
        decides.then_some(Guard::CertificateRequestApprovals),
        decides.then_some(Guard::CertificateRequestIdentities),
    ];
    APPROVE.iter().copied().chain(more.into_iter().flatten()).collect()
}

/// Those that `sign` depends on.
pub(crate) fn of_sign(components: Components) -> Vec<Guard> {
    let more = [
        components.pod_certificates.then_some(Guard::PodCertificates),
        components.cluster_trust_bundles.then_some(Guard::ClusterTrustBundles),
        components.cert_manager.then_some(Guard::CertificateRequestDeletes),
    ];
    SIGN.iter().copied().chain(more.into_iter().flatten()).collect()
}
