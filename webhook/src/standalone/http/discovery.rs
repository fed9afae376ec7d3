//! API discovery for kubectl and client-go: groups, resources, version.

use serde_json::{Value, json};

use crate::standalone::{
    error::{GROUP, RESOURCE},
    version::Version,
};

/// `/version`. kubectl warns of a server far from its own version; this is the oldest vocabulary that is spoken here.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": concat!("v1.33.0-etcd-tls.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": concat!("linux/", "any"),
    })
}

/// `/api`: the core group's versions.
pub fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/api/v1`: of the core group, only the trust ConfigMaps are here, and those are read by name.
pub fn core_resources() -> Value {
    json!({
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            { "name": "configmaps", "singularName": "configmap", "namespaced": true, "kind": "ConfigMap", "verbs": ["get", "patch", "watch"],
              "shortNames": ["cm"] },
        ],
    })
}

/// `/apis`.
pub fn groups() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group_fields()] })
}

/// `/apis/certificates.k8s.io`.
pub fn group() -> Value {
    let mut group = group_fields();
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    group
}

fn group_fields() -> Value {
    let version = |v: Version| json!({ "groupVersion": v.api_version(), "version": v.as_str() });
    json!({
        "name": GROUP,
        "versions": [version(Version::V1), version(Version::V1beta1)],
        "preferredVersion": version(Version::V1),
    })
}

/// `/apis/certificates.k8s.io/<version>`.
pub fn resources(version: Version) -> Value {
    let resource = |name: String, verbs: Value| json!({ "name": name, "singularName": "", "namespaced": false, "kind": "CertificateSigningRequest", "verbs": verbs });
    let mut requests = resource(RESOURCE.to_owned(), json!(["create", "delete", "get", "list", "watch"]));
    requests["singularName"] = json!("certificatesigningrequest");
    requests["shortNames"] = json!(["csr"]);
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version.api_version(),
        "resources": [
            requests,
            resource(format!("{RESOURCE}/approval"), json!(["get", "patch", "update"])),
            resource(format!("{RESOURCE}/status"), json!(["get"])),
        ],
    })
}
