//! Kubernetes objects as the rules of identity take them: a CertificateSigningRequest read leanly, and the pod, the Services and the
//! requester turned into [`etcd_tls_contract::identity`]'s values.
//!
//! Nothing here decides, and nothing here fails on an object: one object that cannot be decoded would stop a whole list. Stored
//! values are taken as they are; the rules of identity judge odd ones.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    identity::{POD_UID, PodFacts, Requester, ServiceFacts},
    names,
    settings::IssuerRef,
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::{Namespace, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::listed::{Object, Source};
pub(crate) use certificate_request::{CertificateRequest, collection};
pub use lean_pod::LeanPod;
pub(crate) use lean_pod::WANTED as POD_WANTED;

mod certificate_request;
mod lean_pod;

/// A kind of request: CertificateSigningRequests, or what is read as those.
pub(crate) trait Kind: Object {
    /// The kind in the plural, for people.
    const WHAT: &str;
    /// What to do where the API server does not know the kind, for people; `None`: each one knows it.
    const UNKNOWN: Option<&str>;

    /// All of them.
    fn all() -> Source;

    /// Where the one of this [`Csr::key`] is, and its name there.
    fn one(key: &str) -> (Source, &str);

    /// The request, as it is judged.
    fn into_csr(self) -> Csr;
}

/// A CertificateSigningRequest with what approver and signer look at, and nothing else: no managed fields, no
/// certificate bytes. Thousands pass through a process in a minute.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Csr {
    /// Namespace, name, uid, resourceVersion, timestamps, finalizers and annotations; all else is left out.
    #[serde(default, deserialize_with = "lean_metadata")]
    pub metadata: ObjectMeta,
    /// The request and the requester.
    #[serde(default)]
    pub spec: CsrSpec,
    /// The decisions so far.
    #[serde(default)]
    pub status: CsrStatus,
    /// True if the request was larger than the limit, so that this is only a part of it.
    #[serde(skip)]
    pub cut: bool,
}

/// The fields of a CSR that are read, as the API server names them.
pub(crate) const CSR_WANTED: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "uid"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "finalizers"],
    &["metadata", "annotations", names::TRUSTS_ANNOTATION],
    &["spec", "request"],
    &["spec", "signerName"],
    &["spec", "expirationSeconds"],
    &["spec", "usages"],
    &["spec", "username"],
    &["spec", "uid"],
    &["spec", "groups"],
    &["spec", "extra"],
    &["status", "conditions"],
    &["status", "certificate", "?"],
];

/// Every CSR of the cluster. Admission policy lets through much less for our signers than the limit.
pub(crate) fn csrs() -> Source {
    Source {
        path: "/apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned(),
        wanted: CSR_WANTED,
        limit: 32 * 1024,
        ..Source::default()
    }
}

impl Object for Csr {
    fn cut(&mut self) {
        self.cut = true;
    }
}

impl Kind for Csr {
    const WHAT: &str = "CertificateSigningRequests";
    const UNKNOWN: Option<&str> = None;

    fn all() -> Source {
        csrs()
    }

    fn one(key: &str) -> (Source, &str) {
        (csrs(), key)
    }

    fn into_csr(self) -> Csr {
        self
    }
}

/// See [`Csr::spec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CsrSpec {
    /// `spec.request`: PEM, unread.
    pub request: ByteString,
    /// `spec.signerName`.
    pub signer_name: String,
    /// `spec.expirationSeconds`.
    pub expiration_seconds: Option<i64>,
    /// `spec.usages`.
    pub usages: Vec<String>,
    /// `spec.username`.
    pub username: String,
    /// `spec.uid`.
    pub uid: String,
    /// `spec.groups`.
    pub groups: Vec<String>,
    /// `spec.extra`.
    pub extra: BTreeMap<String, Vec<String>>,
    /// `spec.issuerRef` of a CertificateRequest of cert-manager; `None`: it is a CertificateSigningRequest.
    #[serde(skip)]
    pub issuer: Option<IssuerRef>,
    /// `spec.isCA` of a CertificateRequest.
    #[serde(skip)]
    pub is_ca: bool,
}

/// See [`Csr::status`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CsrStatus {
    /// `status.conditions`.
    pub conditions: Vec<CertificateSigningRequestCondition>,
    /// True if `status.certificate` is there.
    #[serde(rename = "certificate", deserialize_with = "is_there")]
    pub has_certificate: bool,
}

impl Csr {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The name among all of its kind: with its namespace, where it is of one.
    pub fn key(&self) -> Cow<'_, str> {
        match self.metadata.namespace.as_deref() {
            Some(namespace) if self.spec.issuer.is_some() => Cow::Owned(format!("{namespace}/{}", self.name())),
            _ => Cow::Borrowed(self.name()),
        }
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// `metadata.creationTimestamp`.
    pub fn created(&self) -> Option<SystemTime> {
        self.metadata.creation_timestamp.as_ref().map(|t| t.0.into())
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// True if there is a condition of this type; the API server lets the three of its own only be `True`.
    pub fn has_condition(&self, type_: &str) -> bool {
        self.status.conditions.iter().any(|c| c.type_ == type_)
    }

    /// True if it was approved, by whomever.
    pub fn approved(&self) -> bool {
        self.has_condition("Approved")
    }

    /// True if it was denied.
    pub fn denied(&self) -> bool {
        self.has_condition("Denied")
    }

    /// True if a signer gave it up.
    pub fn failed(&self) -> bool {
        self.has_condition("Failed")
    }

    /// The uid of the pod that asks, as far as the API server says one.
    pub fn pod_uid(&self) -> Option<&str> {
        self.spec.extra.get(POD_UID)?.first().map(String::as_str)
    }

    /// The requester, as the API server authenticated it.
    pub fn requester(&self) -> Requester {
        Requester {
            username: self.spec.username.clone(),
            uid: self.spec.uid.clone(),
            groups: self.spec.groups.clone(),
            extra: self.spec.extra.clone(),
        }
    }

    /// `spec.expirationSeconds`; a negative one, which the API server does not take, is none.
    pub fn expiration(&self) -> Option<Duration> {
        self.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
    }
}

/// The pod as the rules of identity take it. `namespace_opted_in` is [`namespace_opted_in`] of its namespace.
pub fn pod(pod: &Pod, namespace_opted_in: bool) -> PodFacts {
    let metadata = &pod.metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or_default();
    let pod_ips = || status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default().iter().map(|ip| ip.ip.as_str());
    let host_ips = || status.and_then(|s| s.host_ips.as_deref()).unwrap_or_default().iter().map(|ip| ip.ip.as_str());
    let ips = if host_network {
        host_ips().filter_map(|ip| ip.parse().ok()).collect()
    } else {
        pod_ips().filter_map(|ip| ip.parse().ok()).collect()
    };
    PodFacts {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        service_account: spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        host_network,
        ips,
        hostname: hostname(spec.and_then(|s| s.hostname.as_deref()), &name),
        subdomain: spec.and_then(|s| s.subdomain.clone()).filter(|s| !s.is_empty()),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        containers: running(pod).map(str::to_owned).collect(),
        finished: has_finished(pod),
        deleting: metadata.deletion_timestamp.is_some(),
        namespace_opted_in,
        name,
    }
}

/// The names of the containers that keep running: the main ones, and init containers with `restartPolicy: Always`.
pub fn running(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = pod.spec.iter();
    let init = spec.clone().flat_map(|s| s.init_containers.iter().flatten());
    let sidecars = init.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.flat_map(|s| &s.containers).chain(sidecars).map(|c| c.name.as_str())
}

/// True if a pod has ended, for good.
pub fn has_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// The host name that kubelet gives a pod: `spec.hostname`, else the pod's name cut to 63 characters, without a hyphen or
/// a dot at the end.
pub fn hostname(spec_hostname: Option<&str>, pod_name: &str) -> String {
    match spec_hostname {
        Some(hostname) if !hostname.is_empty() => hostname.to_owned(),
        _ => pod_name.get(..63).unwrap_or(pod_name).trim_end_matches(['-', '.']).to_owned(),
    }
}

/// The Service as the rules of identity take it.
pub fn service(service: &Service) -> ServiceFacts {
    let spec = service.spec.as_ref();
    // An ExternalName service's selector is not looked at by Kubernetes either; its name leads elsewhere.
    let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    ServiceFacts {
        name: service.metadata.name.clone().unwrap_or_default(),
        cluster_ips: spec
            .and_then(|s| s.cluster_ips.as_deref())
            .unwrap_or_default()
            .iter()
            .filter_map(|ip| ip.parse().ok()) // "None" is no address
            .collect(),
        selector: if external { BTreeMap::new() } else { spec.and_then(|s| s.selector.clone()).unwrap_or_default() },
    }
}

/// True if a namespace carries `etcd-tls=dynamic`.
pub fn namespace_opted_in(namespace: &Namespace) -> bool {
    labelled_dynamic(&namespace.metadata)
}

/// True if an object carries `etcd-tls=dynamic`.
pub fn labelled_dynamic(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|l| l.get(names::LABEL)).is_some_and(|v| v == names::DYNAMIC)
}

impl Resource for Csr {
    type DynamicType = ();
    type Scope = <CertificateSigningRequest as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        CertificateSigningRequest::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        CertificateSigningRequest::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        CertificateSigningRequest::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        CertificateSigningRequest::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn lean_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Lean {
        namespace: Option<String>,
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        finalizers: Option<Vec<String>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let Lean {
        namespace,
        name,
        uid,
        resource_version,
        creation_timestamp,
        deletion_timestamp,
        finalizers,
        annotations,
    } = Lean::deserialize(deserializer)?;
    Ok(ObjectMeta {
        namespace,
        name,
        uid,
        resource_version,
        creation_timestamp,
        deletion_timestamp,
        finalizers,
        annotations,
        ..ObjectMeta::default()
    })
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_csr_is_read_without_its_ballast() {
        let csr: Csr = serde_json::from_value(json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-02T03:04:05Z",
                "annotations": {"x": "y"}, "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"request": "TU0=", "signerName": "peer.etcd-tls.dev/a.b", "usages": ["client auth"],
                "expirationSeconds": 600, "username": "u", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}},
            "status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R", "message": "m"}],
                "certificate": "TU0="}
        }))
        .unwrap();
        assert_eq!((csr.name(), csr.uid(), csr.resource_version()), ("a", "u", "7"));
        assert_eq!(csr.metadata.managed_fields, None);
        assert_eq!(csr.annotation("x"), Some("y"));
        assert_eq!(csr.spec.request.0, b"MM");
        assert_eq!(csr.expiration(), Some(Duration::from_secs(600)));
        assert!(csr.approved() && !csr.denied() && csr.status.has_certificate);
        assert_eq!(csr.created().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_767_323_045);
    }

    #[test]
    fn a_csr_with_nothing_in_it_does_not_stop_a_list() {
        let csr: Csr = serde_json::from_value(json!({"metadata": {}, "status": {"certificate": null}})).unwrap();
        assert_eq!((csr.name(), csr.status.has_certificate), ("", false));
        assert!(serde_json::from_value::<Csr>(json!({})).is_ok());
    }

    #[test]
    fn a_pod_on_the_hosts_network_has_the_hosts_addresses() {
        let object: Pod = serde_json::from_value(json!({
            "metadata": {"name": "etcd-0", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
            "spec": {"hostNetwork": true, "serviceAccountName": "sa", "nodeName": "n", "subdomain": "etcd",
                "containers": [{"name": "app"}],
                "initContainers": [{"name": "setup"}, {"name": "etcd", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}]}
        }))
        .unwrap();
        let facts = pod(&object, true);
        assert_eq!(facts.ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!((facts.hostname.as_str(), facts.subdomain.as_deref()), ("etcd-0", Some("etcd")));
        assert!(facts.namespace_opted_in && !facts.finished && !facts.deleting);
        assert_eq!(facts.containers, ["app", "etcd"]);

        let mut object = object;
        object.spec.as_mut().unwrap().host_network = None;
        assert_eq!(pod(&object, false).ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn a_long_pod_name_is_cut_as_kubelet_cuts_it() {
        assert_eq!(hostname(None, "etcd-0"), "etcd-0");
        assert_eq!(hostname(Some("h"), "etcd-0"), "h");
        let name = format!("{}-.x{}", "a".repeat(61), "b".repeat(30));
        assert_eq!(hostname(None, &name), "a".repeat(61));
    }

    #[test]
    fn services_keep_what_selects_and_where_it_leads() {
        let of = |spec| service(&serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap());
        let headless = of(json!({"clusterIPs": ["None"], "selector": {"a": "b"}}));
        assert!(headless.cluster_ips.is_empty() && headless.selector["a"] == "b");
        assert_eq!(of(json!({"clusterIPs": ["10.96.0.9", "fd00::9"]})).cluster_ips.len(), 2);
        let external = of(json!({"type": "ExternalName", "externalName": "x.test", "selector": {"a": "b"}}));
        assert!(external.selector.is_empty());
    }
}
