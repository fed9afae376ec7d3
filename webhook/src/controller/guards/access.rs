//! Which policies guard a call of the API. Pure: by method and path, as in the API's own conventions.

use super::Guard;

/// A call, as far as a policy guards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A read, a dry run, or a write that is not held back.
    Free,
    /// Approval, status or deletion of a request.
    Request,
    /// Where `sign` may publish, and who may watch trust: RoleBindings and Roles.
    RoleBinding,
    /// The right to request.
    ClusterRoleBinding,
    /// A CA or the serving pair.
    Secret,
    /// A trust bundle.
    ConfigMap,
    /// caBundle.
    WebhookConfiguration,
    /// Status of a request of kubelet's.
    PodCertificateRequest,
    /// A bundle for workloads that are not injected.
    ClusterTrustBundle,
    /// A finished request to an issuer of cert-manager.
    CertificateRequest,
    /// The decision on such a request.
    CertificateRequestStatus,
}

impl Access {
    /// The call of this method, path and query.
    pub(crate) fn of(method: &str, path: &str, query: Option<&str>) -> Self {
        if matches!(method, "GET" | "HEAD" | "OPTIONS")
            || query.is_some_and(|query| query.split('&').any(|parameter| parameter == "dryRun=All"))
        {
            return Self::Free;
        }
        match resource(path) {
            Some("certificatesigningrequests") => Self::Request,
            Some("podcertificaterequests") => Self::PodCertificateRequest,
            Some("clustertrustbundles") => Self::ClusterTrustBundle,
            Some("certificaterequests") if path.ends_with("/status") && method == "PATCH" => {
                Self::CertificateRequestStatus
            }
            Some("certificaterequests") => Self::CertificateRequest,
            Some("rolebindings" | "roles") => Self::RoleBinding,
            Some("clusterrolebindings") => Self::ClusterRoleBinding,
            Some("secrets") => Self::Secret,
            Some("configmaps") => Self::ConfigMap,
            Some("mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => Self::WebhookConfiguration,
            _ => Self::Free,
        }
    }

    /// The policies without which it is not sent.
    pub(super) const fn guards(self) -> &'static [Guard] {
        match self {
            Self::Free => &[],
            // There may be no request of ours among those that are looked at: see `PodCertificateRequest`.
            Self::Request => &[Guard::RequestWrites, Guard::Leases],
            Self::RoleBinding => &[Guard::Bindings],
            // The right to request is given only where what is requested is bounded.
            Self::ClusterRoleBinding => &[Guard::Bindings, Guard::Requests, Guard::CertificateRequests],
            Self::Secret => &[Guard::Secrets],
            Self::ConfigMap => &[Guard::Trust],
            Self::WebhookConfiguration => &[Guard::Webhooks],
            // No write of ours is there to try the first with; the second, which is tried, proves that policies are enforced.
            Self::PodCertificateRequest => &[Guard::PodCertificates, Guard::Secrets],
            Self::ClusterTrustBundle => &[Guard::ClusterTrustBundles],
            // There may be no request of others to try it with: see `PodCertificateRequest`.
            Self::CertificateRequest => &[Guard::CertificateRequestDeletes, Guard::Secrets],
            // `RequestWrites` is tried where there is a request, and the bindings always.
            Self::CertificateRequestStatus => {
                &[Guard::CertificateRequestApprovals, Guard::CertificateRequestIdentities, Guard::Bindings]
            }
        }
    }
}

/// The resource of `/api/v1/…` or `/apis/<group>/<version>/…`, in a namespace or not.
fn resource(path: &str) -> Option<&str> {
    let mut parts = path.trim_matches('/').split('/');
    match parts.next()? {
        "api" => parts.next()?,
        "apis" => parts.nth(1)?,
        _ => return None,
    };
    let first = parts.next()?;
    if first != "namespaces" {
        return Some(first);
    }
    // A namespace itself, or what is in it.
    parts.next();
    Some(parts.next().unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_of_ours_is_told_by_its_path() {
        let cases = [
            ("PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", Access::Request),
            ("PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/status", Access::Request),
            ("DELETE", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x", Access::Request),
            ("GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x", Access::Free),
            (
                "PATCH",
                "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings/etcd-tls-sign",
                Access::RoleBinding,
            ),
            (
                "DELETE",
                "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings/etcd-tls-sign",
                Access::RoleBinding,
            ),
            (
                "PATCH",
                "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles/etcd-tls-trust-reader",
                Access::RoleBinding,
            ),
            ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/x", Access::ClusterRoleBinding),
            ("POST", "/api/v1/namespaces/etcd-tls-system/secrets", Access::Secret),
            ("PUT", "/api/v1/namespaces/etcd-tls-system/secrets/x", Access::Secret),
            ("PATCH", "/api/v1/namespaces/a/configmaps/etcd-tls-trust-etcd", Access::ConfigMap),
            ("POST", "/api/v1/namespaces/configmaps/configmaps", Access::ConfigMap),
            (
                "PATCH",
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/etcd-tls",
                Access::WebhookConfiguration,
            ),
            (
                "PATCH",
                "/apis/certificates.k8s.io/v1beta1/namespaces/a/podcertificaterequests/x/status",
                Access::PodCertificateRequest,
            ),
            ("DELETE", "/apis/cert-manager.io/v1/namespaces/a/certificaterequests/x", Access::CertificateRequest),
            ("DELETE", "/apis/cert-manager.io/v1/namespaces/a/certificaterequests/status", Access::CertificateRequest),
            (
                "PATCH",
                "/apis/cert-manager.io/v1/namespaces/a/certificaterequests/x/status",
                Access::CertificateRequestStatus,
            ),
            ("POST", "/apis/events.k8s.io/v1/namespaces/secrets/events", Access::Free),
            ("PUT", "/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases/x", Access::Free),
            ("PATCH", "/api/v1/namespaces/secrets", Access::Free),
            ("POST", "/readyz", Access::Free),
        ];
        for (method, path, access) in cases {
            assert_eq!(Access::of(method, path, None), access, "{method} {path}");
        }
        let secret = "/api/v1/namespaces/etcd-tls-system/secrets/x";
        assert_eq!(Access::of("PUT", secret, Some("fieldManager=x&dryRun=All")), Access::Free);
        assert_eq!(Access::of("PUT", secret, Some("fieldManager=dryRun")), Access::Secret);
    }
}
