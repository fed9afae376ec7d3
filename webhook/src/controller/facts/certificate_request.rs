//! A CertificateRequest of cert-manager, read as a CertificateSigningRequest to its issuer: one judge for both.

use std::collections::BTreeMap;

use etcd_tls_contract::{duration::parse_duration, settings::IssuerRef};
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::{Csr, CsrSpec, CsrStatus, Kind, lean_metadata};
use crate::controller::listed::{Object, Source};

/// See the module.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "Read")]
pub(crate) struct CertificateRequest(pub(crate) Csr);

/// The fields that are read, as the API server names them.
const WANTED: &[&[&str]] = &[
    &["metadata", "namespace"],
    &["metadata", "name"],
    &["metadata", "uid"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["spec", "request"],
    &["spec", "issuerRef"],
    &["spec", "duration"],
    &["spec", "isCA"],
    &["spec", "usages"],
    &["spec", "username"],
    &["spec", "uid"],
    &["spec", "groups"],
    &["spec", "extra"],
    &["status", "conditions"],
    &["status", "certificate", "?"],
];
/// Bytes of the wanted fields of one.
const LIMIT: usize = 32 * 1024;
const GROUP: &str = "/apis/cert-manager.io/v1";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Read {
    #[serde(deserialize_with = "lean_metadata")]
    metadata: ObjectMeta,
    spec: Spec,
    status: CsrStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    request: ByteString,
    issuer_ref: Reference,
    duration: Option<String>,
    #[serde(rename = "isCA")]
    is_ca: bool,
    usages: Vec<String>,
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    kind: String,
    name: String,
    group: String,
}

impl From<Read> for CertificateRequest {
    fn from(Read { metadata, spec, status }: Read) -> Self {
        let Spec { request, issuer_ref, duration, is_ca, usages, username, uid, groups, extra } = spec;
        let Reference { kind, name, group } = issuer_ref;
        // cert-manager's own defaults.
        let kind = if kind.is_empty() { "Issuer" } else { &kind };
        let issuer = IssuerRef::new(kind, &name, Some(group.as_str()).filter(|group| !group.is_empty()));
        // cert-manager reads more than we do, such as `87600.5h`: one that cannot be read here is too long for every policy.
        let life = duration.map(|text| {
            parse_duration(&text).map_or(i64::MAX, |life| i64::try_from(life.as_secs()).unwrap_or(i64::MAX))
        });
        let spec = CsrSpec {
            request,
            signer_name: issuer.signer_name(metadata.namespace.as_deref().unwrap_or_default()),
            expiration_seconds: life,
            usages,
            username,
            uid,
            groups,
            extra,
            issuer: Some(issuer),
            is_ca,
        };
        Self(Csr { metadata, spec, status, cut: false })
    }
}

impl Object for CertificateRequest {
    fn cut(&mut self) {
        self.0.cut = true;
    }
}

impl Kind for CertificateRequest {
    const WHAT: &str = "CertificateRequests";
    const UNKNOWN: Option<&str> = Some(
        "there are no CertificateRequests of cert-manager.io/v1: install cert-manager, or remove --approve-issuer",
    );

    fn all() -> Source {
        Source { path: format!("{GROUP}/certificaterequests"), wanted: WANTED, limit: LIMIT, ..Source::default() }
    }

    fn one(key: &str) -> (Source, &str) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        (Source { path: collection(namespace), ..Self::all() }, name)
    }

    fn into_csr(self) -> Csr {
        self.0
    }
}

/// The path of the CertificateRequests of a namespace.
pub(crate) fn collection(namespace: &str) -> String {
    format!("{GROUP}/namespaces/{namespace}/certificaterequests")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use etcd_tls_contract::duration::MAX_DURATION;
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value) -> Csr {
        let object = json!({"metadata": {"namespace": "prod", "name": "a", "uid": "u"}, "spec": spec, "status": {}});
        serde_json::from_value::<CertificateRequest>(object).unwrap().0
    }

    #[test]
    fn it_is_a_request_to_its_issuer() {
        let csr = read(json!({
            "request": "TU0=", "issuerRef": {"name": "company"}, "duration": "24h0m0s", "isCA": true,
            "usages": ["client auth"], "username": "u", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]},
        }));
        assert_eq!(
            (&*csr.key(), csr.name(), &*csr.spec.signer_name),
            ("prod/a", "a", "issuers.cert-manager.io/prod.company")
        );
        assert_eq!((csr.spec.request.0.as_slice(), csr.expiration()), (&b"MM"[..], Some(Duration::from_secs(86_400))));
        assert!(csr.spec.is_ca && csr.spec.extra["k"] == ["v"] && csr.spec.username == "u");
        assert_eq!(csr.spec.issuer.map(|issuer| (issuer.kind, issuer.group)).unwrap().0, "Issuer");
        assert_eq!(CertificateRequest::one("prod/a").0.path, collection("prod"));
        let csr = read(json!({"issuerRef": {"kind": "ClusterIssuer", "name": "a", "group": ""}}));
        assert_eq!((&*csr.spec.signer_name, csr.expiration()), ("clusterissuers.cert-manager.io/a", None));
        assert!(serde_json::from_value::<CertificateRequest>(json!({})).is_ok());
    }

    #[test]
    fn a_life_that_cannot_be_read_is_the_longest() {
        for text in ["87600.5h", "87600h0m0.0s", "0s", "-1h", "soon", "", "99999999999999h"] {
            let life = read(json!({"duration": text})).expiration();
            assert!(life.is_some_and(|life| life > MAX_DURATION), "{text}: {life:?}");
        }
        assert_eq!(read(json!({"duration": null})).expiration(), None);
    }
}
