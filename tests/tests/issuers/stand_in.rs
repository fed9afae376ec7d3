//! The stand-in for cert-manager against cert-manager itself: both get the same requests, and answer the same field by field.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, duration::parse_duration};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use tests::{
    cert_manager::{Behaviour, CertManager},
    eventually,
};

use crate::{
    approving::{self, Asked, Way, pod},
    scene::{Kind, LIMIT, Lab},
};

const NAMESPACE: &str = "cm";
/// What cert-manager says of a CA with another key.
const FAILURE: &str = "Error signing certificate: error creating x509 certificate: x509: provided PrivateKey doesn't match parent's \
    PublicKey";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stand_in_answers_as_cert_manager_itself() {
    let Some(itself) = Lab::of_cert_manager_itself().await else { return };
    let expected = answers(&itself).await;
    drop(itself);
    let Some(lab) = approving::lab().await else { return };
    let answers = answers(&lab).await;
    for (what, expected) in expected {
        assert_eq!(answers[what], expected, "{what}");
    }
}

/// What becomes of a request by each behaviour of its issuer.
async fn answers(lab: &Lab) -> BTreeMap<&'static str, Value> {
    lab.grant(NAMESPACE, Kind::CertManager);
    let way = Way { lab, kind: Kind::CertManager, namespace: NAMESPACE, signer: String::new() };
    let issuer = lab.issuer(NAMESPACE);
    let asking = pod(lab, NAMESPACE, "etcd-0", &[]).await;
    let mut answers = BTreeMap::new();
    for (what, behaviour, ready) in [
        ("issued", Behaviour::Sign, "Issued"),
        ("issued by an intermediate", Behaviour::Sign, "Issued"),
        ("pending", Behaviour::Pending, "Pending"),
        ("denied", Behaviour::Deny("not this pod".to_owned()), "Denied"),
        ("failed", Behaviour::Fail(FAILURE.to_owned()), "Failed"),
    ] {
        if what.ends_with("intermediate") {
            issuer.replace_ca_by_intermediate("root CA");
        }
        issuer.behave(behaviour);
        let name = way.ask(&asking, &Asked::of(NAMESPACE, "etcd-0")).await;
        let answered = eventually(what, LIMIT, || async {
            let request = way.client(lab.api.client.clone()).0.get(&name).await.map_err(|e| e.to_string())?;
            let conditions = request.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let there = conditions.iter().any(|c| c["type"] == "Ready" && c["reason"] == ready);
            if there { Ok(request) } else { Err(request.data.to_string()) }
        })
        .await;
        answers.insert(what, comparable(&answered, &issuer));
    }
    answers
}

/// A request without what differs from one to the next.
fn comparable(request: &DynamicObject, issuer: &CertManager) -> Value {
    let mut data = request.data.clone();
    let spec = &mut data["spec"];
    for field in ["request", "uid"] {
        assert!(spec[field].take().is_string(), "{field}");
    }
    let extra = spec["extra"].as_object_mut().expect("who asks");
    extra.values_mut().for_each(|value| assert_eq!(value.take().as_array().map(Vec::len), Some(1)));
    let life = parse_duration(spec["duration"].as_str().expect("a duration")).expect("a duration");
    spec["duration"] = life.as_secs().into();

    let status = &mut data["status"];
    for condition in status["conditions"].as_array_mut().expect("conditions") {
        time(&mut condition["lastTransitionTime"]);
    }
    if let Some(failed) = status.get_mut("failureTime") {
        time(failed);
    }
    let decoded = |value: &Value| STANDARD.decode(value.as_str().expect("text")).expect("base64");
    if let Some(ca) = status.get_mut("ca") {
        assert_eq!(String::from_utf8_lossy(&decoded(ca)), issuer.ca());
        *ca = "the CA, or the root above it".into();
    }
    if let Some(certificate) = status.get_mut("certificate") {
        let pem = decoded(certificate);
        let chain = Chain::parse(&pem).expect("a chain");
        let asked = ["digital signature", "key encipherment", "server auth", "client auth"];
        *certificate = json!({
            "ends with a line": pem.ends_with(b"\n"), "certificates": chain.certificates.len(),
            "authority": chain.authority(), "common name": chain.common_name, "names": format!("{:?}", chain.sans),
            "life": chain.not_after.duration_since(chain.not_before).expect("a life").as_secs(),
            "added usages": chain.added_usages(&asked).expect("usages"),
        });
    }
    // Of the metadata, what cert-manager would add.
    data["annotations"] = json!(request.metadata.annotations.as_ref().map(|all| all.keys().collect::<Vec<_>>()));
    data["labels"] = json!(request.metadata.labels);
    data["finalizers"] = json!(request.metadata.finalizers);
    data["owners"] = json!(request.metadata.owner_references.as_ref().map(Vec::len));
    data
}

fn time(value: &mut Value) {
    assert!(value.as_str().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{value}");
    *value = "a time".into();
}
