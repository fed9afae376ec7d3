//! The Kubernetes objects that the sidecar reads and writes, with the fields it uses. Fields have the API's names.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes, base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteString(pub Vec<u8>);

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(|_| D::Error::custom("not base64"))
    }
}

/// The metadata of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uid, set by the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its version, set by the API server: a number that grows (Kubernetes API Concepts, Resource versions).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Its annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A `certificates.k8s.io/v1` CertificateSigningRequest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateSigningRequest {
    /// Name and annotations.
    pub metadata: ObjectMeta,
    /// The request.
    pub spec: CertificateSigningRequestSpec,
    /// The answer of approver and signer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<CertificateSigningRequestStatus>,
}

/// The spec of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateSigningRequestSpec {
    /// A PKCS#10 request in PEM.
    pub request: ByteString,
    /// The signer.
    pub signer_name: String,
    /// The life asked for, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration_seconds: Option<i32>,
    /// The key usages asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usages: Option<Vec<String>>,
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateSigningRequestStatus {
    /// The chain in PEM, leaf first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ByteString>,
    /// The verdicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<CertificateSigningRequestCondition>>,
    /// The issuer's CA in PEM, of a CertificateRequest; a CertificateSigningRequest has none.
    #[serde(skip)]
    pub ca: Option<ByteString>,
}

/// A verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateSigningRequestCondition {
    /// `Approved`, `Denied` or `Failed`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, for a verdict that holds.
    pub status: String,
    /// One word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigMap {
    /// Name, uid and version.
    pub metadata: ObjectMeta,
    /// Its texts by key.
    pub data: Option<BTreeMap<String, String>>,
    /// Its other contents by key.
    pub binary_data: Option<BTreeMap<String, ByteString>>,
}

/// The body of an answer that is no success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The explanation.
    pub message: Option<String>,
    /// The object that it is about.
    pub details: Option<StatusDetails>,
}

/// The object that a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatusDetails {
    /// The resource, in the plural.
    pub kind: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    /// As an API server 1.36 writes one: unknown fields, and null where a list is empty.
    #[test]
    fn a_request_is_read_as_an_api_server_writes_it() {
        let object: CertificateSigningRequest = serde_json::from_value(json!({
            "kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1",
            "metadata": {"name": "x", "uid": "u", "creationTimestamp": null, "managedFields": [{"manager": "m"}]},
            "spec": {"request": "YWJj", "signerName": "s/x", "usages": null, "username": "u", "extra": {"a": ["b"]}},
            "status": {
                "conditions": [{"type": "Approved", "status": "True", "reason": "R", "lastUpdateTime": "2026-01-01T00:00:00Z"}],
                "certificate": "eHl6",
            },
        }))
        .unwrap();
        assert_eq!((object.spec.request.0.as_slice(), object.metadata.uid.as_deref()), (&b"abc"[..], Some("u")));
        let status = object.status.unwrap();
        assert_eq!(status.certificate.unwrap().0, b"xyz");
        assert_eq!(status.conditions.unwrap()[0].type_, "Approved");
        assert!(serde_json::from_value::<CertificateSigningRequest>(json!({"spec": {"request": "!"}})).is_err());
        assert_eq!(serde_json::from_value::<ConfigMap>(json!({"data": null})).unwrap(), ConfigMap::default());
    }

    #[test]
    fn a_request_is_written_without_what_is_not_set() {
        let mut object = CertificateSigningRequest::default();
        object.spec.request = ByteString(b"abc".to_vec());
        let written = serde_json::to_value(object).unwrap();
        assert_eq!(written, json!({"metadata": {}, "spec": {"request": "YWJj", "signerName": ""}}));
    }
}
