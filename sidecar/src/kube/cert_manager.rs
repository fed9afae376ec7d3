//! CertificateRequests of cert-manager, in the place of CertificateSigningRequests: written and read as those, so that one
//! flow serves both.

use std::collections::BTreeMap;

use etcd_tls_contract::{duration::format_duration, identity::PodFacts, names, settings::IssuerRef};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Api, ApiError, Version,
    http::{Credentials, Kube},
    objects::{
        ByteString, CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
        CertificateSigningRequestStatus, ObjectMeta,
    },
};

/// The requests of a pod, of the kind that its issuer takes.
pub enum Requests<C> {
    /// CertificateSigningRequests.
    Signing(Kube<C>),
    /// CertificateRequests.
    CertManager(CertificateRequests<C>),
}

/// CertificateRequests of one pod to one issuer.
pub struct CertificateRequests<C> {
    kube: Kube<C>,
    issuer: IssuerRef,
    namespace: String,
    pod_name: String,
    pod_uid: String,
}

/// A CertificateRequest, with the fields that are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CertificateRequest {
    metadata: ObjectMeta,
    spec: Spec,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    request: ByteString,
    issuer_ref: Reference,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    kind: Option<String>,
    name: String,
    group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    certificate: Option<ByteString>,
    ca: Option<ByteString>,
    conditions: Option<Vec<CertificateSigningRequestCondition>>,
}

impl<C: Credentials> CertificateRequests<C> {
    /// Requests of `pod` to `issuer`.
    pub fn new(kube: Kube<C>, issuer: IssuerRef, pod: &PodFacts) -> Self {
        Self { kube, issuer, namespace: pod.namespace.clone(), pod_name: pod.name.clone(), pod_uid: pod.uid.clone() }
    }

    fn path(&self) -> String {
        format!("/apis/cert-manager.io/v1/namespaces/{}/certificaterequests", self.namespace)
    }

    /// The object to create. The pod owns it, so that it goes with the pod.
    fn object(&self, request: &CertificateSigningRequest) -> Value {
        let IssuerRef { kind, name, group } = &self.issuer;
        let seconds =
            request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
        let annotations = BTreeMap::from([(names::POD_ANNOTATION, self.pod_name.as_str())]);
        json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {
                "name": request.metadata.name,
                "annotations": annotations,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": self.pod_name, "uid": self.pod_uid},
                ],
            },
            "spec": {
                "request": request.spec.request,
                "duration": format_duration(std::time::Duration::from_secs(seconds)),
                "issuerRef": {"kind": kind, "name": name, "group": group},
                "usages": request.spec.usages,
            },
        })
    }

    fn read(&self, object: CertificateRequest) -> CertificateSigningRequest {
        let Reference { kind, name, group } = object.spec.issuer_ref;
        // cert-manager's own defaults.
        let issuer = IssuerRef::new(kind.as_deref().unwrap_or("Issuer"), &name, group.as_deref());
        CertificateSigningRequest {
            metadata: object.metadata,
            spec: CertificateSigningRequestSpec {
                request: object.spec.request,
                signer_name: issuer.signer_name(&self.namespace),
                ..CertificateSigningRequestSpec::default()
            },
            status: object.status.map(status),
        }
    }
}

/// The conditions in the terms of a CertificateSigningRequest. `Ready` is one verdict or another by its status and reason.
fn status(status: Status) -> CertificateSigningRequestStatus {
    let Status { certificate, ca, conditions } = status;
    let ca = ca.filter(|ca| !ca.0.is_empty());
    let certificate = certificate.filter(|certificate| !certificate.0.is_empty());
    let verdict = |condition: CertificateSigningRequestCondition| {
        let type_ = match (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_deref()) {
            ("Ready", "False", Some("Failed")) => "Failed",
            ("Ready", "False", Some("Denied")) => "Denied",
            // Not even waiting would bring the certificate.
            ("Ready", "True", _) if certificate.is_none() => "Failed",
            ("Denied" | "InvalidRequest", ..) => return Some(condition),
            _ => return None,
        };
        let reason = match (type_, condition.reason) {
            ("Failed", Some(reason)) if condition.status == "True" => {
                Some(format!("Ready ({reason}) without a certificate"))
            }
            (_, reason) => reason,
        };
        let (type_, status) = (type_.to_owned(), "True".to_owned());
        Some(CertificateSigningRequestCondition { type_, status, reason, ..condition })
    };
    // Until it is ready, what stands in the status may be half of it.
    let ready = conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let conditions = conditions.into_iter().flatten().filter_map(verdict).collect();
    CertificateSigningRequestStatus {
        certificate: certificate.filter(|_| ready),
        conditions: Some(conditions),
        ca: ca.filter(|_| ready),
    }
}

impl<C: Credentials> Api for CertificateRequests<C> {
    async fn connect(&mut self) -> Result<(), ApiError> {
        self.kube.connect().await
    }

    async fn create(&mut self, request: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
        let (path, body) = (self.path(), self.object(request));
        let answer = self.kube.call(Method::POST, &path, Some(&body)).await;
        let object = answer.map_err(|error| match error.code() {
            Some(404) => ApiError::Access(
                "the API server serves no CertificateRequests of cert-manager.io/v1, or the namespace is gone; is \
                 cert-manager installed?"
                    .to_owned(),
            ),
            _ => error,
        })?;
        Ok(self.read(object))
    }

    async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
        let query = match version {
            Version::MostRecent => "",
            Version::Any => "?resourceVersion=0",
        };
        let path = format!("{}/{name}{query}", self.path());
        let object = self.kube.call(Method::GET, &path, None).await?;
        Ok(self.read(object))
    }

    fn rest(&mut self) {
        self.kube.rest();
    }
}

impl<C: Credentials> Api for Requests<C> {
    async fn connect(&mut self) -> Result<(), ApiError> {
        match self {
            Self::Signing(api) => api.connect().await,
            Self::CertManager(api) => api.connect().await,
        }
    }

    async fn create(&mut self, request: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
        match self {
            Self::Signing(api) => api.create(request).await,
            Self::CertManager(api) => api.create(request).await,
        }
    }

    async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
        match self {
            Self::Signing(api) => api.get(name, version).await,
            Self::CertManager(api) => api.get(name, version).await,
        }
    }

    fn rest(&mut self) {
        match self {
            Self::Signing(api) => api.rest(),
            Self::CertManager(api) => api.rest(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn verdicts(status: Value) -> (Option<Vec<u8>>, Vec<String>) {
        let status = super::status(serde_json::from_value(status).unwrap());
        let types = status.conditions.unwrap().into_iter().map(|c| c.type_).collect();
        (status.certificate.map(|c| c.0), types)
    }

    #[test]
    fn conditions_are_told_apart() {
        let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let approved = condition("Approved", "True", "cert-manager.io");
        let none = (None, Vec::new());
        assert_eq!(verdicts(json!({})), none);
        assert_eq!(verdicts(json!({"conditions": null})), none);
        let pending = condition("Ready", "False", "Pending");
        assert_eq!(verdicts(json!({"conditions": [approved, pending], "certificate": "eHl6"})), none);
        let issued = condition("Ready", "True", "Issued");
        assert_eq!(
            verdicts(json!({"conditions": [approved, issued], "certificate": "eHl6", "ca": "YWJj"})),
            (Some(b"xyz".to_vec()), Vec::new())
        );
        let ca = |status: Value| super::status(serde_json::from_value(status).unwrap()).ca.map(|ca| ca.0);
        let answer = |conditions: Value, ca: &str| json!({"conditions": conditions, "certificate": "eHl6", "ca": ca});
        assert_eq!(ca(answer(json!([approved, issued]), "YWJj")), Some(b"abc".to_vec()));
        assert_eq!(ca(answer(json!([approved, pending]), "YWJj")), None, "it may be half of it");
        assert_eq!(ca(answer(json!([approved, issued]), "")), None);
        assert_eq!(verdicts(json!({"conditions": [issued]})).1, ["Failed"], "ready, and nothing there");
        assert_eq!(verdicts(json!({"conditions": [issued], "certificate": ""})).1, ["Failed"]);
        for (conditions, expected) in [
            (
                json!([condition("Denied", "True", "Policy"), condition("Ready", "False", "Denied")]),
                vec!["Denied", "Denied"],
            ),
            (json!([condition("Ready", "False", "Failed")]), vec!["Failed"]),
            (
                json!([condition("InvalidRequest", "True", "X"), condition("Ready", "False", "Failed")]),
                vec!["InvalidRequest", "Failed"],
            ),
        ] {
            assert_eq!(
                verdicts(json!({"conditions": conditions})),
                (None, expected.into_iter().map(str::to_owned).collect())
            );
        }
    }
}
