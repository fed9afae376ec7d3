//! What a real API server answers in protobuf, against what it answers in JSON: objects, errors, and what is in neither.

use bytes::Bytes;
use etcd_tls_sidecar::{
    api::answer::{self, ACCEPT, ACCEPT_JSON, Encoding},
    csr::PrivateKey,
    role::Role,
    settings::{KeyAlgorithm, Sans},
};
use etcd_tls_webhook::{
    client::{self, METADATA_ALONE},
    facts::LeanPod,
};
use http_body_util::BodyExt;
use hyper::Request;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    pki::{Ca, LeafOptions},
};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// Who may do nothing.
const NOBODY: &str = "nobody";

/// A call by cluster-admin, or by [`NOBODY`].
struct Call {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Vec<u8>,
    user: Option<&'static str>,
}

impl Call {
    fn new(
        method: &'static str,
        path: impl Into<String>,
        content_type: &'static str,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self { method, path: path.into(), content_type, body: body.into(), user: None }
    }

    fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path, "application/json", "")
    }

    fn request(&self, accept: &str) -> Request<Vec<u8>> {
        let mut request = Request::builder().method(self.method).uri(&self.path).header("accept", accept);
        if !self.body.is_empty() {
            request = request.header("content-type", self.content_type);
        }
        if let Some(user) = self.user {
            request = request.header("impersonate-user", user);
        }
        request.body(self.body.clone()).expect("a request")
    }

    async fn send(&self, client: &Client, accept: &str) -> (u16, Encoding, Bytes) {
        let answer = client.send(self.request(accept).map(Body::from)).await.expect("an answer");
        let (status, encoding) = (answer.status().as_u16(), Encoding::of(answer.headers()));
        (status, encoding, answer.into_body().collect().await.expect("a body").to_bytes())
    }

    async fn succeed(&self, client: &Client, accept: &str) -> (Encoding, Bytes) {
        let (status, encoding, body) = self.send(client, accept).await;
        assert!((200..300).contains(&status), "{} {}: {status}: {body:?}", self.method, self.path);
        (encoding, body)
    }
}

/// The pod as it is read in JSON; checked to be read in protobuf as the same.
async fn pod_in_either(client: &Client, path: &str) -> LeanPod {
    let (encoding, body) = Call::get(path).succeed(client, ACCEPT).await;
    assert_eq!(encoding, Encoding::Protobuf, "{path}");
    let of_protobuf = LeanPod::read(encoding, body).expect("a pod");
    let (encoding, body) = Call::get(path).succeed(client, ACCEPT_JSON).await;
    assert_eq!(encoding, Encoding::Json, "{path}");
    let of_json = LeanPod::read(encoding, body).expect("a pod");
    assert_eq!(*of_protobuf, *of_json, "{path}");
    of_json
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_the_same_in_either_encoding() {
    let Some(api) = ApiServer::shared().await else { return };
    let client = &api.client;
    api.namespace("encoding", &[]).await;
    let pods = "/api/v1/namespaces/encoding/pods";
    let containers =
        json!([{"name": "etcd", "image": "etcd", "env": [{"name": "A", "value": "B"}]}, {"name": "b", "image": "b"}]);
    for (name, labels, spec) in [
        ("plain", json!({}), json!({"containers": containers})),
        (
            "much",
            json!({"a": "b", "empty": ""}),
            json!({
                "containers": containers, "initContainers": [{"name": "init", "image": "i"}], "hostNetwork": true,
                "hostname": "h", "subdomain": "s", "volumes": [{"name": "v", "emptyDir": {}}],
            }),
        ),
    ] {
        let metadata = json!({"name": name, "labels": labels, "annotations": {"x": "\u{e4}marker", "empty": ""}});
        api.pod("encoding", json!({"metadata": metadata, "spec": spec})).await.expect("make a pod");
        let path = format!("{pods}/{name}");
        assert!(pod_in_either(client, &path).await.spec.as_ref().is_some_and(|spec| spec.containers.len() == 2));
        let ips = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().expect("an address"));
        api.set_pod_ips("encoding", name, &ips).await;
        let pod = pod_in_either(client, &path).await;
        let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        assert!(ips.is_some_and(|ips| ips.len() == 2), "{name}");

        // A writer of protobuf can store what is no UTF-8.
        let (_, body) = Call::get(&path).succeed(client, PROTOBUF).await;
        let at = body.windows(6).position(|bytes| bytes == b"marker").expect("the annotation");
        let mut body = body.to_vec();
        body[at..at + 6].copy_from_slice(b"\xff\xe2\x82r\xc3\xf0");
        Call::new("PUT", &path, PROTOBUF, body).succeed(client, PROTOBUF).await;
        let pod = pod_in_either(client, &path).await;
        let annotation = &pod.metadata.annotations.as_ref().expect("annotations")["x"];
        assert_eq!(annotation, "\u{e4}\u{fffd}\u{fffd}\u{fffd}r\u{fffd}\u{fffd}");

        Call::new("DELETE", &path, "application/json", "").succeed(client, ACCEPT).await;
        assert!(pod_in_either(client, &path).await.metadata.deletion_timestamp.is_some(), "{name} is being deleted");
    }
}

/// What a requester looks at.
fn looked_at(object: CertificateSigningRequest) -> CertificateSigningRequest {
    let mut lean = CertificateSigningRequest::default();
    lean.metadata.name = object.metadata.name;
    lean.metadata.uid = object.metadata.uid;
    lean.metadata.resource_version = object.metadata.resource_version;
    lean.spec.request = object.spec.request;
    lean.spec.signer_name = object.spec.signer_name;
    lean.spec.usages = object.spec.usages;
    lean.spec.expiration_seconds = object.spec.expiration_seconds;
    lean.status = object.status;
    for condition in lean.status.iter_mut().filter_map(|status| status.conditions.as_mut()).flatten() {
        let CertificateSigningRequestCondition { type_, status, reason, message, .. } = condition.clone();
        let none = CertificateSigningRequestCondition::default();
        *condition = CertificateSigningRequestCondition { type_, status, reason, message, ..none };
    }
    lean
}

async fn request_in_either(client: &Client, path: &str) -> CertificateSigningRequest {
    let (encoding, body) = Call::get(path).succeed(client, ACCEPT).await;
    assert_eq!(encoding, Encoding::Protobuf);
    let of_protobuf = answer::request(encoding, body).expect("a request");
    let (encoding, body) = Call::get(path).succeed(client, ACCEPT_JSON).await;
    assert_eq!(encoding, Encoding::Json);
    assert_eq!(of_protobuf, looked_at(answer::request(encoding, body).expect("a request")));
    of_protobuf
}

fn csr(name: &str) -> Value {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
    let pem = key.request(Role::Peer.organization(), "system:etcd-peer:x", &Sans::default()).expect("make a request");
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": ByteString(pem.into()), "signerName": "test.example.com/encoding", "expirationSeconds": 3600,
            "usages": ["digital signature", "client auth"],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_the_same_in_either_encoding() {
    let Some(api) = ApiServer::shared().await else { return };
    let client = &api.client;
    let create = Call::new("POST", CSRS, "application/json", csr("same").to_string());
    let (encoding, body) = create.succeed(client, ACCEPT).await;
    assert_eq!(encoding, Encoding::Protobuf);
    let path = format!("{CSRS}/same");
    let made = answer::request(encoding, body).expect("a request");
    let uid = made.metadata.uid.clone();
    assert!(uid.is_some());
    assert_eq!(request_in_either(client, &path).await, made);

    let condition = json!({"type": "Approved", "status": "True", "reason": "Test", "message": "\u{e4}"});
    let approval = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}}).to_string();
    let approve = Call::new("PATCH", format!("{path}/approval"), MERGE_PATCH, approval);
    let (encoding, body) = approve.succeed(client, METADATA_ALONE).await;
    assert_eq!(encoding, Encoding::Protobuf);
    assert!(!body.windows(8).any(|bytes| bytes == b"Approved"), "the metadata alone");
    let certificate = ByteString(Ca::new("test").leaf(&LeafOptions::default()).cert.into());
    let status = json!({"status": {"certificate": certificate}}).to_string();
    Call::new("PATCH", format!("{path}/status"), MERGE_PATCH, status).succeed(client, METADATA_ALONE).await;
    let signed = request_in_either(client, &path).await.status.expect("a status");
    assert_eq!(signed.certificate, Some(certificate));
    assert_eq!(signed.conditions.expect("conditions")[0].message.as_deref(), Some("\u{e4}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_is_the_same_in_either_encoding() {
    let Some(api) = ApiServer::shared().await else { return };
    let client = &api.client;
    let object = csr("taken");
    let create = |object: &Value| Call::new("POST", CSRS, "application/json", object.to_string());
    create(&object).succeed(client, ACCEPT).await;
    let mut unreadable = csr("unreadable");
    unreadable["spec"]["request"] = json!("TU0=");
    let patch = |metadata: Value| {
        let patch = json!({"metadata": metadata, "status": {"conditions": []}}).to_string();
        Call::new("PATCH", format!("{CSRS}/taken/status"), MERGE_PATCH, patch)
    };
    let no_pod = "/api/v1/namespaces/default/pods/none";
    for (code, accept, call) in [
        (404, ACCEPT, Call::get(no_pod)),
        (404, ACCEPT, Call::get(format!("{CSRS}/none?resourceVersion=0"))),
        (409, ACCEPT, create(&object)),
        (422, ACCEPT, create(&unreadable)),
        (403, ACCEPT, Call { user: Some(NOBODY), ..create(&csr("forbidden")) }),
        (403, ACCEPT, Call { user: Some(NOBODY), ..Call::get(no_pod) }),
        (403, METADATA_ALONE, Call { user: Some(NOBODY), ..patch(json!({})) }),
        (404, METADATA_ALONE, Call::new("PATCH", format!("{CSRS}/none/status"), MERGE_PATCH, "{}")),
        (409, METADATA_ALONE, patch(json!({"resourceVersion": "1"}))),
        (422, METADATA_ALONE, patch(json!({"uid": "another"}))),
    ] {
        let what = format!("{code} of {} {}", call.method, call.path);
        let (of_json, encoding, body) = call.send(client, ACCEPT_JSON).await;
        assert_eq!((of_json, encoding), (code, Encoding::Json), "{what}: {body:?}");
        let said = answer::status(encoding, &body).expect("a Status");
        let (of_protobuf, encoding, body) = call.send(client, accept).await;
        assert_eq!(of_protobuf, code, "{what}");
        // Where metadata alone is asked for, this API server says its errors in JSON.
        if accept == ACCEPT {
            assert_eq!(encoding, Encoding::Protobuf, "{what}");
        }
        let status = answer::status(encoding, &body).expect("a Status");
        assert_eq!((&status.message, &status.reason, status.code), (&said.message, &said.reason, said.code), "{what}");
        assert_eq!(status.code, Some(code.into()), "{what}");

        let error = client::ask(client, call.request(accept), accept).await.expect_err("an error");
        assert_eq!(error.code(), Some(code), "{what}");
        assert!(error.to_string().contains(&said.message.expect("a message")), "{what}: {error}");
    }
}
