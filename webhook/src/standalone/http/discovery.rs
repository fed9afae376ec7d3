//! What the server says of itself, so that kubectl and client-go find their way: groups, resources, version, OpenAPI.

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
            { "name": "configmaps", "singularName": "configmap", "namespaced": true, "kind": "ConfigMap", "verbs": ["get"],
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

/// `/openapi/v3`: which documents there are.
pub fn openapi_index() -> Value {
    let path = |v: Version| {
        let group = format!("apis/{}", v.api_version());
        (group.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{group}?hash=1") }))
    };
    json!({ "paths": Value::Object([path(Version::V1), path(Version::V1beta1)].into_iter().collect()) })
}

/// `/openapi/v3/apis/certificates.k8s.io/<version>`: as much as kubectl needs to know that the server validates fields
/// itself.
pub fn openapi(version: Version) -> Value {
    let kind = json!([{ "group": GROUP, "kind": "CertificateSigningRequest", "version": version.as_str() }]);
    let parameter =
        |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let path = format!("/apis/{}/{RESOURCE}", version.api_version());
    let approval = format!("{path}/{{name}}/approval");
    let schema = format!("io.k8s.api.certificates.{}.CertificateSigningRequest", version.as_str());
    json!({
        "openapi": "3.0.0",
        "info": { "title": "etcd-tls", "version": env!("CARGO_PKG_VERSION") },
        "paths": {
            path: {
                "post": {
                    "operationId": format!("createCertificates{}CertificateSigningRequest", version.as_str()),
                    "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
                    "responses": { "201": { "description": "Created" } },
                    "x-kubernetes-action": "post",
                    "x-kubernetes-group-version-kind": kind[0],
                },
            },
            // kubectl looks for a PATCH of the kind, and there for the parameters, whatever it is about to do.
            approval: {
                "patch": {
                    "operationId": format!("patchCertificates{}CertificateSigningRequestApproval", version.as_str()),
                    "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
                    "responses": { "200": { "description": "OK" } },
                    "x-kubernetes-action": "patch",
                    "x-kubernetes-group-version-kind": kind[0],
                },
            },
        },
        "components": {
            "schemas": {
                schema: {
                    "type": "object",
                    "description": "A request for a certificate.",
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": { "type": "object" },
                        "status": { "type": "object" },
                    },
                    "x-kubernetes-group-version-kind": kind,
                },
            },
        },
    })
}
