//! OpenAPI, as much as kubectl needs to know that the server validates fields itself: which resource takes the parameter
//! `fieldValidation`.
//!
//! kubectl asks `/openapi/v3` first. Built with Go 1.27, it loses the extension that names the kind (in kube-openapi's
//! reading of an operation) and then asks `/openapi/v2`, which it takes in protobuf alone.

use serde_json::{Value, json};

use crate::standalone::{
    error::{GROUP, RESOURCE},
    version::Version,
};

/// The media types of a `/openapi/v2` document in protobuf: as client-go asks for it, and its older name.
const V2_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];
const KIND: &str = "CertificateSigningRequest";
const PARAMETERS: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

/// A document in the encoding that the caller accepts.
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// `/openapi/v3`: which documents there are.
pub fn index() -> Value {
    let path = |v: Version| {
        let group = format!("apis/{}", v.api_version());
        (group.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{group}?hash=1") }))
    };
    json!({ "paths": Value::Object([path(Version::V1), path(Version::V1beta1)].into_iter().collect()) })
}

/// `/openapi/v3/apis/certificates.k8s.io/<version>`.
pub fn v3(version: Version) -> Value {
    let parameter =
        |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths(version, &PARAMETERS.map(parameter)),
        "components": { "schemas": schema(version) },
    })
}

/// `/openapi/v2`, in protobuf where `accept` names it, else in JSON; `None` where it names neither.
pub fn v2(accept: &str) -> Option<Document> {
    let mut ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim()).peekable();
    let json = || Document { media_type: "application/json", bytes: v2_json().to_string().into_bytes() };
    if ranges.peek().is_none_or(|first| first.is_empty()) {
        return Some(json());
    }
    ranges.find_map(|range| match range {
        "application/json" | "application/*" | "*/*" => Some(json()),
        _ => {
            let media_type = V2_PROTOBUF.into_iter().find(|known| *known == range)?;
            Some(Document { media_type, bytes: v2_protobuf() })
        }
    })
}

fn info() -> Value {
    json!({ "title": "etcd-tls", "version": env!("CARGO_PKG_VERSION") })
}

fn paths(version: Version, parameters: &[Value]) -> Value {
    let operation = |action: &str, what: &str, code: &str| {
        json!({
            "operationId": format!("{action}Certificates{}{KIND}{what}", version.as_str()),
            "parameters": parameters,
            "responses": { code: { "description": "OK" } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": { "group": GROUP, "kind": KIND, "version": version.as_str() },
        })
    };
    json!({
        collection(version): { "post": operation("post", "", "201") },
        // For every operation kubectl looks for a PATCH of the kind, and there for the parameters.
        approval(version): { "patch": operation("patch", "Approval", "200") },
    })
}

fn collection(version: Version) -> String {
    format!("/apis/{}/{RESOURCE}", version.api_version())
}

fn approval(version: Version) -> String {
    format!("{}/{{name}}/approval", collection(version))
}

fn schema(version: Version) -> Value {
    json!({
        format!("io.k8s.api.certificates.{}.{KIND}", version.as_str()): {
            "type": "object",
            "description": "A request for a certificate.",
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": { "type": "object" },
                "spec": { "type": "object" },
                "status": { "type": "object" },
            },
            "x-kubernetes-group-version-kind": [{ "group": GROUP, "kind": KIND, "version": version.as_str() }],
        },
    })
}

fn v2_json() -> Value {
    let parameter = |name: &str| json!({ "name": name, "in": "query", "type": "string", "uniqueItems": true });
    let merged = |of: &dyn Fn(Version) -> Value| -> Value {
        let objects = [Version::V1, Version::V1beta1].map(of);
        let entries = objects.into_iter().filter_map(|object| match object {
            Value::Object(entries) => Some(entries),
            _ => None,
        });
        Value::Object(entries.flatten().collect())
    };
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": merged(&|version| paths(version, &PARAMETERS.map(parameter))),
        "definitions": merged(&schema),
    })
}

/// The PATCH operations of [`v2_json`] in the protobuf of gnostic's `openapi.v2.Document`.
fn v2_protobuf() -> Vec<u8> {
    // Document: swagger 1, info 2, paths 8. Info: title 1, version 2. Paths: path 2. NamedPathItem: name 1, value 2.
    let info = [field(1, b"etcd-tls"), field(2, env!("CARGO_PKG_VERSION").as_bytes())].concat();
    let paths = [Version::V1, Version::V1beta1].map(|version| {
        // PathItem: patch 7.
        let item = field(7, &v2_operation(version));
        field(2, &[field(1, approval(version).as_bytes()), field(2, &item)].concat())
    });
    [field(1, b"2.0"), field(2, &info), field(8, &paths.concat())].concat()
}

/// Operation: operation_id 5, parameters 8, responses 9, vendor_extension 13.
fn v2_operation(version: Version) -> Vec<u8> {
    let parameters = PARAMETERS.map(|name| {
        // QueryParameterSubSchema: in 2, name 4, type 6; in NonBodyParameter 3, Parameter 2, ParametersItem 1.
        let schema = [field(2, b"query"), field(4, name.as_bytes()), field(6, b"string")].concat();
        field(8, &field(1, &field(2, &field(3, &schema))))
    });
    // NamedResponseValue: name 1, value 2; ResponseValue: response 1; Response: description 1.
    let response = [field(1, b"200"), field(2, &field(1, &field(1, b"OK")))].concat();
    // NamedAny: name 1, value 2; Any: yaml 2.
    let extension =
        |name: &str, yaml: &str| field(13, &[field(1, name.as_bytes()), field(2, &field(2, yaml.as_bytes()))].concat());
    let kind = format!("group: {GROUP}\nkind: {KIND}\nversion: {}\n", version.as_str());
    [
        field(5, format!("patchCertificates{}{KIND}Approval", version.as_str()).as_bytes()),
        parameters.concat(),
        field(9, &field(1, &response)),
        extension("x-kubernetes-action", "patch\n"),
        extension("x-kubernetes-group-version-kind", &kind),
    ]
    .concat()
}

/// One field of bytes, text or a message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}
