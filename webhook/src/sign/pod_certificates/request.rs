//! A PodCertificateRequest, read leanly, and the answers to it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    csr,
    identity::{BoundPod, Denial},
    names::SignerName,
};
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    controller::{
        case,
        listed::{Key, Object, Source, key},
    },
    rollover::rfc3339,
};

/// See the module. Absent fields are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodCertificateRequest {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Spec,
    status: Status,
    /// True if it was larger than the limit, so that this is only a part of it.
    #[serde(skip)]
    pub(super) cut: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) signer_name: String,
    pod_name: String,
    #[serde(rename = "podUID")]
    pod_uid: String,
    service_account_name: String,
    #[serde(rename = "serviceAccountUID")]
    pub(super) service_account_uid: String,
    pub(super) node_name: String,
    max_expiration_seconds: u32,
    #[serde(rename = "pkixPublicKey")]
    pkix_public_key: ByteString,
    #[serde(rename = "stubPKCS10Request")]
    stub_pkcs10_request: ByteString,
    pub(super) unverified_user_annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
}

/// Where v1 shows the key of a request that was made in v1beta1 with `pkixPublicKey`, which v1 lacks (`pkg/apis/certificates/v1/conversion.go` of
/// Kubernetes). The API server reads the annotation back into that field and compares the certificate with it.
const KEY_ANNOTATION: &str = "certificates.k8s.io/initial-pkix-public-key";

const WANTED: &[&[&str]] = &[
    &["metadata", "annotations", KEY_ANNOTATION],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["spec", "signerName"],
    &["spec", "podName"],
    &["spec", "podUID"],
    &["spec", "serviceAccountName"],
    &["spec", "serviceAccountUID"],
    &["spec", "nodeName"],
    &["spec", "maxExpirationSeconds"],
    &["spec", "pkixPublicKey"],
    &["spec", "stubPKCS10Request"],
    &["spec", "unverifiedUserAnnotations"],
    &["status", "conditions"],
];

impl Object for PodCertificateRequest {
    fn cut(&mut self) {
        self.cut = true;
    }
}

/// Those of the cluster in a version of their API, or those of one namespace.
pub(super) fn source(api_version: &str, namespace: Option<&str>) -> Source {
    let within = namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    Source {
        path: format!("/apis/{api_version}/{within}podcertificaterequests"),
        wanted: WANTED,
        limit: 32 * 1024,
        ..Source::default()
    }
}

impl PodCertificateRequest {
    pub(super) fn key(&self) -> Key {
        key(self.metadata.namespace.as_deref(), self.metadata.name.as_deref())
    }

    pub(super) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// True if it waits for an answer of ours: its whole status is final once it has one of the three conditions.
    pub(super) fn concerns_us(&self) -> bool {
        let decided = self.status.conditions.iter().any(|c| matches!(c.kind.as_str(), "Issued" | "Denied" | "Failed"));
        !decided && self.metadata.deletion_timestamp.is_none() && self.signer().is_some()
    }

    /// When it was created.
    pub(super) fn created(&self) -> Option<SystemTime> {
        self.metadata.creation_timestamp.as_ref().map(|time| time.0.into())
    }

    /// The signer, if it is one of ours; the API server knows who may write for a name.
    pub(super) fn signer(&self) -> Option<SignerName> {
        self.spec.signer_name.parse().ok()
    }

    /// The pod that kubelet asks for. NodeRestriction has compared it with the pod, and the service account's uid and the
    /// node's with the objects.
    pub(super) fn bound(&self) -> BoundPod {
        BoundPod {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            service_account: self.spec.service_account_name.clone(),
            pod: self.spec.pod_name.clone(),
            pod_uid: self.spec.pod_uid.clone(),
            node: self.spec.node_name.clone(),
        }
    }

    pub(super) fn max_expiration(&self) -> Duration {
        Duration::from_secs(self.spec.max_expiration_seconds.into())
    }

    /// DER SubjectPublicKeyInfo: of `stubPKCS10Request` where that is set, else `pkixPublicKey`, which v1 shows as an annotation.
    /// kube-apiserver has verified the proof of the private key: the signature of the one, `proofOfPossession` of the other.
    pub(super) fn public_key(&self) -> Option<Vec<u8>> {
        let Spec { stub_pkcs10_request: ByteString(stub), pkix_public_key: ByteString(pkix), .. } = &self.spec;
        if !stub.is_empty() {
            return csr::public_key_of_stub(stub);
        }
        let of_v1 = || STANDARD.decode(self.metadata.annotations.as_ref()?.get(KEY_ANNOTATION)?).ok();
        let key = if pkix.is_empty() { of_v1()? } else { pkix.clone() };
        (!key.is_empty()).then_some(key)
    }

    /// The patch of a refusal, of exactly this request as it was looked at.
    pub(super) fn refusal(&self, kind: &str, denials: &[Denial], now: SystemTime) -> Value {
        let reason = denials.first().map_or("Refused", |denial| denial.reason);
        self.patch(json!({"conditions": [condition(kind, reason, &case::message(denials), now)]}))
    }

    /// The patch of a certificate.
    pub(super) fn issue(&self, chain: &str, times: &Times, now: SystemTime) -> Value {
        self.patch(json!({
            "conditions": [condition("Issued", "EtcdTlsIssued", "issued from the live pod", now)],
            "certificateChain": chain,
            "notBefore": rfc3339::text(times.not_before),
            "notAfter": rfc3339::text(times.not_after),
            "beginRefreshAt": rfc3339::text(times.begin_refresh_at),
        }))
    }

    fn patch(&self, status: Value) -> Value {
        let metadata = json!({"uid": self.metadata.uid, "resourceVersion": self.version()});
        json!({"metadata": metadata, "status": status})
    }
}

/// The certificate in the status.
pub(super) struct Times {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) begin_refresh_at: SystemTime,
}

fn condition(kind: &str, reason: &str, message: &str, now: SystemTime) -> Value {
    json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": rfc3339::text(now),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request(change: impl FnOnce(&mut Value)) -> PodCertificateRequest {
        let mut object = json!({
            "metadata": {"namespace": "prod", "name": "r", "uid": "u", "resourceVersion": "7"},
            "spec": {"signerName": "peer.etcd-tls.dev/prod.etcd", "podName": "etcd-0", "podUID": "p", "nodeName": "n",
                "serviceAccountName": "etcd", "maxExpirationSeconds": 86400, "pkixPublicKey": "YWJj"},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn answered_and_foreign_requests_are_left_alone() {
        assert!(request(|_| {}).concerns_us());
        for kind in ["Issued", "Denied", "Failed"] {
            let answered = request(|r| r["status"]["conditions"] = json!([{"type": kind, "status": "True"}]));
            assert!(!answered.concerns_us(), "{kind}");
        }
        for signer in ["example.com/ca", "x.etcd-tls.dev/prod.etcd", "peer.etcd-tls.dev/prod", ""] {
            assert!(!request(|r| r["spec"]["signerName"] = signer.into()).concerns_us(), "{signer}");
        }
        assert!(!request(|r| r["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()).concerns_us());
        assert!(!serde_json::from_value::<PodCertificateRequest>(json!({})).unwrap().concerns_us());
    }

    #[test]
    fn the_key_is_the_stubs_where_there_is_one() {
        assert_eq!(request(|_| {}).public_key().unwrap(), b"abc");
        assert_eq!(request(|r| r["spec"]["stubPKCS10Request"] = "YWJj".into()).public_key(), None, "no request");
        assert_eq!(request(|r| r["spec"]["pkixPublicKey"] = "".into()).public_key(), None);
        // As v1 shows it.
        let annotated = |key: &str, value: &str| {
            request(|r| {
                r["spec"]["pkixPublicKey"] = key.into();
                r["metadata"]["annotations"] = json!({KEY_ANNOTATION: value});
            })
        };
        assert_eq!(annotated("", "ZGVm").public_key().unwrap(), b"def");
        assert_eq!(annotated("YWJj", "ZGVm").public_key().unwrap(), b"abc");
        for nothing in ["", "*"] {
            assert_eq!(annotated("", nothing).public_key(), None);
        }
    }
}
