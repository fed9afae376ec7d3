//! PodCertificateRequests of v1, which Kubernetes 1.37 serves. No API server here is of that version: this shows v1beta1 as v1, by the
//! rules of Kubernetes' own conversion (`pkg/apis/certificates/v1/conversion.go`). In v1, a request has no `pkixPublicKey` and no
//! `proofOfPossession`; of one that was made in v1beta1, they are annotations.

use etcd_tls_contract::names::SYSTEM_NAMESPACE;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use tests::faults::{FaultProxy, Translation};

use super::{LIMIT, Lab, controller_at, of_older_kubelet, sign, signer};

const GROUP: &str = "/apis/certificates.k8s.io";
const RESOURCE: &str = "podcertificaterequests";

/// An API server that serves v1 and no v1beta1, as 1.37 does by default.
struct V1;

impl Translation for V1 {
    fn path(&self, asked: &str) -> Option<String> {
        let after = asked.strip_prefix(GROUP)?;
        if matches!(after, "/v1" | "/v1beta1") {
            return Some(asked.to_owned());
        }
        let (version, after) = after.strip_prefix('/')?.split_once('/')?;
        let of = if version == "v1" { "v1beta1" } else { "not-served" };
        after.contains(RESOURCE).then(|| format!("{GROUP}/{of}/{after}"))
    }

    fn answer(&self, asked: &str, mut value: Value) -> Value {
        let Some(resources) = value.get_mut("resources").and_then(Value::as_array_mut) else { return to_v1(value) };
        resources.retain(|resource| !resource["name"].as_str().unwrap_or_default().starts_with(RESOURCE));
        if asked.ends_with("/v1") {
            for name in [RESOURCE.to_owned(), format!("{RESOURCE}/status")] {
                let verbs = ["get", "list", "patch", "watch"];
                resources.push(json!({
                    "name": name, "singularName": "", "namespaced": true, "kind": "PodCertificateRequest", "verbs": verbs,
                }));
            }
        }
        value
    }
}

/// An object, the objects of a list, or the object of an event.
fn to_v1(mut value: Value) -> Value {
    if let Some(object) = value.get_mut("object") {
        *object = to_v1(object.take());
        return value;
    }
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        *item = to_v1(item.take());
    }
    if value["apiVersion"] == "certificates.k8s.io/v1beta1" {
        value["apiVersion"] = "certificates.k8s.io/v1".into();
    }
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return value };
    let moved = [("pkixPublicKey", "pkix-public-key"), ("proofOfPossession", "proof-of-possession")]
        .map(|(field, annotation)| (annotation, spec.remove(field)));
    for (annotation, field) in moved {
        if let Some(field) = field.filter(Value::is_string) {
            value["metadata"]["annotations"][format!("certificates.k8s.io/initial-{annotation}")] = field;
        }
    }
    value
}

/// `sign` finds v1 by discovery and answers requests in it, also those that an older kubelet has made.
pub async fn is_found_by_discovery(lab: &mut Lab, pod: &Pod) {
    lab.sign.kill();
    let proxy = FaultProxy::start(&lab.api, 0).await;
    proxy.translate(V1);
    let waiting = lab.request(pod, &signer("peer"), |_| {}).await;
    lab.ask(&waiting).await;
    let token = lab.api.token(SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    lab.sign = controller_at(&lab.api, &proxy.url, "sign", &token, &["--pod-certificates"]);
    lab.sign.logged("PodCertificateRequests are answered version=\"certificates.k8s.io/v1\"", LIMIT).await;
    lab.issued_to(&waiting).await;
    lab.issued(&lab.request(pod, &signer("client"), |_| {}).await).await;

    let key = KeyPair::generate().expect("make a key");
    let (chain, _) = lab.issued(&lab.request(pod, &signer("peer"), of_older_kubelet(pod, &key)).await).await;
    assert_eq!(chain.public_key, key.subject_public_key_info());
    let unknown = |request: &mut Value| request["spec"]["unverifiedUserAnnotations"] = json!({"example.com/x": "y"});
    lab.denied(&lab.request(pod, &signer("peer"), unknown).await).await;
    lab.sign.kill();
    lab.sign = sign(&lab.api).await;
}
