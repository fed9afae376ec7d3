//! The policy on CertificateRequests: the requests that it permits for a pod's own token, and each deviation that it refuses.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{csr::PrivateKey, key::KeyAlgorithm, role::Role, san::Sans};
use k8s_openapi::{ByteString, api::core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, PostParams},
};
use serde_json::{Value, json};
use tests::{apiserver::from_json, cert_manager::resource, eventually};

use crate::scene::{Kind, LIMIT, Lab, Scene};

/// Of a key.
const DIGEST: &str = "0123456789abcdef0123456789abcdef";

fn pkcs10() -> ByteString {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
    let sans: Sans = "10.0.0.1".parse().expect("an address");
    let pem = key.request(Role::Peer.organization(), "system:etcd-peer:etcd-1", &sans).expect("make a request");
    ByteString(pem.into_bytes())
}

fn request(pod: &Pod) -> Value {
    let (name, uid) = (pod.name_any(), pod.uid().expect("a uid"));
    json!({
        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
        "metadata": {
            "name": format!("etcd-tls-{uid}-peer-{DIGEST}"), "annotations": {"etcd-tls.dev/pod": name},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}],
        },
        "spec": {
            "request": pkcs10(), "duration": "24h", "usages": ["digital signature", "server auth", "client auth"],
            "issuerRef": {"kind": "Issuer", "name": "company", "group": "cert-manager.io"},
        },
    })
}

async fn create(client: &Client, namespace: &str, object: &Value) -> kube::Result<DynamicObject> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource());
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry_run, &from_json(object.clone())).await
}

type Change = fn(&mut Value);

fn rename(request: &mut Value, change: impl Fn(&str) -> String) {
    let name = change(request["metadata"]["name"].as_str().expect("a name"));
    request["metadata"]["name"] = name.into();
}

const DEVIATIONS: [(&str, Change); 27] = [
    ("another issuer", |r| r["spec"]["issuerRef"]["name"] = json!("board")),
    ("a ClusterIssuer of the same name", |r| r["spec"]["issuerRef"]["kind"] = json!("ClusterIssuer")),
    ("another group", |r| r["spec"]["issuerRef"]["group"] = json!("issuers.example.com")),
    ("an issuer's path", |r| r["spec"]["issuerRef"]["name"] = json!("../company")),
    ("a CA", |r| r["spec"]["isCA"] = json!(true)),
    ("another's name", |r| {
        r["metadata"]["name"] = json!(format!("etcd-tls-00000000-0000-0000-0000-000000000000-peer-{DIGEST}"))
    }),
    ("a name without role and digest", |r| rename(r, |name| name.replace(&format!("peer-{DIGEST}"), "x1"))),
    ("a name of no role", |r| rename(r, |name| name.replace("-peer-", "-root-"))),
    ("a name with a short digest", |r| rename(r, |name| name[..name.len() - 1].to_owned())),
    ("a name with a long digest", |r| rename(r, |name| format!("{name}0"))),
    ("a free name", |r| r["metadata"]["name"] = json!("company")),
    ("a generated name", |r| {
        let owners = r["metadata"]["ownerReferences"].take();
        r["metadata"] = json!({"generateName": "etcd-tls-", "ownerReferences": owners});
    }),
    ("no owner", |r| r["metadata"]["ownerReferences"] = json!([])),
    ("another owner", |r| r["metadata"]["ownerReferences"][0]["uid"] = json!("00000000-0000-0000-0000-000000000000")),
    ("an owner of another kind", |r| r["metadata"]["ownerReferences"][0]["kind"] = json!("Node")),
    ("a controller", |r| r["metadata"]["ownerReferences"][0]["controller"] = json!(true)),
    ("a second owner", |r| {
        let second = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"});
        r["metadata"]["ownerReferences"].as_array_mut().expect("owners").push(second);
    }),
    ("a finalizer", |r| r["metadata"]["finalizers"] = json!(["example.com/stay"])),
    ("a large request", |r| r["spec"]["request"] = json!("AAAA".repeat(1400))),
    ("a long life", |r| r["spec"]["duration"] = json!("8785h")),
    ("a short life", |r| r["spec"]["duration"] = json!("9m59s")),
    ("no life", |r| drop(r["spec"].as_object_mut().expect("a spec").remove("duration"))),
    ("a usage", |r| r["spec"]["usages"] = json!(["cert sign"])),
    ("another pod's annotation", |r| r["metadata"]["annotations"]["etcd-tls.dev/pod"] = json!("etcd-9")),
    ("an annotation of cert-manager", |r| {
        r["metadata"]["annotations"]["cert-manager.io/private-key-secret-name"] = json!("admin");
    }),
    ("a label of ours", |r| r["metadata"]["labels"] = json!({"etcd-tls.dev/x": "y"})),
    ("a long annotation", |r| r["metadata"]["annotations"]["x"] = json!("y".repeat(1100))),
];

/// cert-manager's own webhook refuses the first and writes the others anew, before the policy looks.
const DEVIATIONS_WITHOUT_WEBHOOK: [(&str, Change); 7] = [
    ("no duration", |r| r["spec"]["duration"] = json!("x")),
    ("a duration of many digits", |r| r["spec"]["duration"] = json!(format!("{}24h", "0".repeat(30)))),
    ("a group twice, and so large", |r| r["spec"]["groups"] = json!(["system:authenticated"].repeat(20_000))),
    ("the pod's extra twice", |r| {
        r["spec"]["extra"] = json!({"authentication.kubernetes.io/pod-name": ["etcd-1", "etcd-1"]});
    }),
    ("another requester", |r| r["spec"]["username"] = json!("system:serviceaccount:kube-system:admin")),
    ("groups of others", |r| r["spec"]["groups"] = json!(["system:serviceaccounts", "system:masters"])),
    ("another pod's extra", |r| {
        r["spec"]["extra"] = json!({"authentication.kubernetes.io/pod-name": ["etcd-9"]});
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_request_is_held_to_the_pod_that_asks() {
    let Some(lab) = Lab::new().await else { return };
    held_to_the_pod_that_asks(&lab, &[&DEVIATIONS[..], &DEVIATIONS_WITHOUT_WEBHOOK].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_cert_manager_itself_is_held_to_the_pod_that_asks() {
    let Some(lab) = Lab::of_cert_manager_itself().await else { return };
    held_to_the_pod_that_asks(&lab, &DEVIATIONS).await;
}

async fn held_to_the_pod_that_asks(lab: &Lab, deviations: &[(&str, Change)]) {
    let scene = Scene::new(lab, "cm", Kind::CertManager).await;
    scene.issuer.behave(tests::cert_manager::Behaviour::Away);
    let pod = lab.pod("cm", "etcd-1").await;
    let client = lab.api.client_with_token(&lab.api.token("cm", "default", Some(&pod)).await).await;
    let good = request(&pod);
    eventually("the right to request in force", LIMIT, || create(&client, "cm", &good)).await;
    // The policy comes into force a moment after it was created.
    let mut another = good.clone();
    DEVIATIONS[0].1(&mut another);
    eventually("the policy in force", LIMIT, || async {
        create(&client, "cm", &another).await.map_or(Ok(()), |_| Err("taken"))
    })
    .await;
    create(&client, "cm", &good).await.expect("a request as the sidecar writes it");
    // Names are not judged: docs/issuers.md warns of it.
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let root = key.request("system:masters", "root", &Sans::default()).expect("a request for the name of another");
    let mut named = good.clone();
    named["spec"]["request"] = STANDARD.encode(root).into();
    create(&client, "cm", &named).await.expect("any name");
    // cert-manager's own webhook writes these.
    let mut written = good.clone();
    written["spec"]["groups"] = json!(["system:serviceaccounts", "system:serviceaccounts:cm", "system:authenticated"]);
    written["spec"]["extra"] = json!({"authentication.kubernetes.io/pod-name": ["etcd-1"]});
    written["spec"]["username"] = json!("system:serviceaccount:cm:default");
    create(&client, "cm", &written).await.expect("a request as cert-manager's webhook completes it");
    takes_no_more_than_the_requesters_share(lab, &client, &good).await;
    for (what, change) in deviations {
        let mut object = good.clone();
        change(&mut object);
        match create(&client, "cm", &object).await {
            Ok(_) => panic!("{what} was taken"),
            Err(error) => assert!(error.to_string().contains("etcd-tls"), "{what}: {error}"),
        }
    }
    // The pod of another namespace, which may request from no issuer here, and of nowhere but its own.
    let refused = |answer: kube::Result<DynamicObject>| answer.expect_err("taken").to_string();
    let stranger = lab.pod("csr", "etcd-1").await;
    let theirs = lab.api.client_with_token(&lab.api.token("csr", "default", Some(&stranger)).await).await;
    let asked = request(&stranger);
    assert!(refused(create(&theirs, "cm", &asked).await).contains("its own namespace"));
    assert!(
        refused(create(&theirs, "csr", &asked).await).contains("may not request from issuers.cert-manager.io/company")
    );
    assert!(refused(create(&theirs, "cm", &good).await).contains("its own namespace"));
    // A token without a pod, of the very service account.
    let unbound = lab.api.client_with_token(&lab.api.token("cm", "default", None).await).await;
    assert!(refused(create(&unbound, "cm", &good).await).contains("not bound to a pod"));
    // And nothing but creating and reading.
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "cm", &resource());
    api.list(&kube::api::ListParams::default()).await.expect_err("listed");
    api.delete("x", &kube::api::DeleteParams::default()).await.expect_err("deleted");
    create(&lab.api.client, "cm", &json!({"apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
        "metadata": {"name": "of-cert-manager"}, "spec": {"request": pkcs10(), "isCA": true, "issuerRef": {"name": "x"}}}))
    .await
    .expect("requests of others are not concerned");
    another_program_requests_freely_where_it_may(lab, &unbound).await;
}

/// An operator of the namespace, by the verb `request-freely` on one issuer.
async fn another_program_requests_freely_where_it_may(lab: &Lab, client: &Client) {
    let of_operator = |issuer: &str| {
        json!({"apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "metadata": {"name": "operators"},
            "spec": {"request": pkcs10(), "isCA": true, "issuerRef": {"name": issuer}}})
    };
    create(client, "cm", &of_operator("free")).await.expect_err("without the right");
    let rbac = "rbac.authorization.k8s.io";
    let role = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": {"name": "freely", "namespace": "cm"},
        "rules": [{"apiGroups": ["cert-manager.io"], "resources": ["signers"], "verbs": ["request-freely"],
                   "resourceNames": ["issuers.cert-manager.io/free"]}],
    });
    let binding = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": {"name": "freely", "namespace": "cm"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "freely"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "cm", "name": "default"}],
    });
    lab.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string());
    let free = of_operator("free");
    eventually("the right to request freely", LIMIT, || create(client, "cm", &free)).await;
    create(client, "cm", &of_operator("company")).await.expect_err("another issuer");
}

/// The API server counts the request among those of etcd-tls-requesters, however many there are.
async fn takes_no_more_than_the_requesters_share(lab: &Lab, client: &Client, request: &Value) {
    let of = |kind: &str, name: &str| lab.api.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.uid}"]);
    let schema = of("flowschema", "etcd-tls-certificate-requests");
    let level = of("prioritylevelconfiguration", "etcd-tls-requesters");
    let path = "/apis/cert-manager.io/v1/namespaces/cm/certificaterequests";
    let name = request["metadata"]["name"].as_str().expect("a name");
    let calls =
        [("POST", format!("{path}?dryRun=All"), request.to_string()), ("GET", format!("{path}/{name}"), String::new())];
    for (method, path, body) in calls {
        eventually(&format!("{method} at the requesters' level"), LIMIT, || async {
            let call = hyper::Request::builder().method(method).uri(&path).header("Content-Type", "application/json");
            let call = call.body(body.clone().into_bytes()).expect("a request");
            let answer = client.send(call.map(Into::into)).await.map_err(|e| e.to_string())?;
            let header =
                |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            let seen = (header("x-kubernetes-pf-flowschema-uid"), header("x-kubernetes-pf-prioritylevel-uid"));
            if seen == (schema.clone(), level.clone()) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}
