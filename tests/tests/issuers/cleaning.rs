//! `sign` deletes the CertificateRequests that are done with, and no others.

use std::{process::Command, time::Duration};

use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    cert_manager::{Behaviour, resource},
    eventually, ports,
    process::{Process, binary},
};

use crate::scene::{Kind, LIMIT, Lab, Scene};

const SYSTEM: &str = "etcd-tls-system";

/// `sign` with the rights of its service account, which deletes after seconds instead of minutes.
pub async fn sign(lab: &Lab) -> Process {
    let kubeconfig = lab.api.token_kubeconfig("sign", &lab.api.token(SYSTEM, "etcd-tls-sign", None).await);
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args([
        "sign",
        "--cert-manager",
        "--cluster-trust-bundles",
        "--pod-certificates",
        "--check-pending-every=1s",
        "--delete-issued-after=4s",
    ]);
    command.args(["--delete-refused-after=4s", "--admin-address", &format!("127.0.0.1:{}", ports::loopback())]);
    command.env_clear().env("KUBECONFIG", kubeconfig);
    Process::spawn("sign", &mut command, lab.api.directory().path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_certificate_requests_are_deleted_and_no_others() {
    let Some(lab) = Lab::new().await else { return };
    let mut scene = Scene::new(&lab, "cm", Kind::CertManager).await;
    // Of others: a request with its certificate, under a name that is no pod's.
    let api: Api<DynamicObject> = Api::namespaced_with(lab.api.client.clone(), "csr", &resource());
    let others: Value = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "metadata": {"name": "etcd-tls-web"},
        "spec": {"request": "YWJj", "issuerRef": {"name": "x"}},
    });
    api.create(&PostParams::default(), &from_json(others)).await.expect("a request of others");
    let ready = json!({"status": {"certificate": "YWJj", "conditions": [
        {"type": "Ready", "status": "True", "reason": "Issued", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]}});
    let patch = kube::api::Patch::Merge(ready);
    api.patch_status("etcd-tls-web", &kube::api::PatchParams::default(), &patch).await.expect("a status");

    scene.init().await.expect("certificates");
    scene.issuer.behave(Behaviour::Deny("no".to_owned()));
    scene.move_to("10.0.0.2");
    // With its files, it would wait for an answer of the API server for half a second alone.
    scene.forget_files();
    scene.init().await.expect_err("denied");
    // Left open, and superseded: the pod has another address after its restart.
    scene.issuer.behave(Behaviour::Away);
    for (address, count) in [("10.0.0.3", 6), ("10.0.0.4", 8)] {
        scene.move_to(address);
        let mut init = scene.start("init", &[]);
        scene.requested(count).await;
        init.kill();
        // Times of objects are in whole seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let mut sign = sign(&lab).await;
    // A missing API is logged once and delays nothing else.
    sign.logged("the API server serves no ClusterTrustBundles", LIMIT).await;
    eventually("finished requests to be deleted", LIMIT, || async {
        let left = scene.requests().await.len();
        if left == 2 { Ok(()) } else { Err(format!("{left} requests are left: {}", sign.log())) }
    })
    .await;
    scene.issuer.behave(Behaviour::Sign);
    scene.init().await.expect("certificates by the requests that were open");
    scene.gone().await;
    api.get("etcd-tls-web").await.expect("the request of others");
    assert!(sign.running(), "{}", sign.log());
    sign.logged("the API server serves no PodCertificateRequests", LIMIT).await;
    for kind in ["ClusterTrustBundles", "PodCertificateRequests"] {
        assert_eq!(sign.log().matches(&format!("serves no {kind}")).count(), 1, "{kind}");
    }
    sign.kill();

    // Its right reaches no request of others.
    let client: Client = lab.api.client_with_token(&lab.api.token(SYSTEM, "etcd-tls-sign", None).await).await;
    let theirs: Api<DynamicObject> = Api::namespaced_with(client, "csr", &resource());
    let refused = theirs.delete("etcd-tls-web", &DeleteParams::default()).await.expect_err("deleted").to_string();
    assert!(refused.contains("sign deletes only"), "{refused}");
}

/// A pod that goes while its requests wait for a decision, or for their certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_of_a_pod_that_is_deleted_midway_are_all_deleted() {
    let Some(lab) = Lab::new().await else { return };
    let mut sign = sign(&lab).await;
    for (namespace, kind) in [("cm", Kind::CertManager), ("csr", Kind::Signer)] {
        for behaviour in [Behaviour::Away, Behaviour::Pending] {
            let scene = Scene::new(&lab, namespace, kind).await;
            scene.issuer.behave(behaviour.clone());
            let mut init = scene.start("init", &[]);
            scene.requested(2).await;
            if behaviour == Behaviour::Pending {
                eventually("approved requests", LIMIT, || async {
                    let requests = scene.requests().await;
                    let approved =
                        requests.iter().filter(|r| r["status"]["conditions"][0]["type"] == "Approved").count();
                    if approved == 2 { Ok(()) } else { Err(format!("{requests:?}")) }
                })
                .await;
            }
            scene.delete_pod().await;
            init.kill();
            scene.gone().await;
        }
    }
    assert!(sign.running(), "{}", sign.log());
}

/// As attack 2, with CertificateRequests: the pod's own token, good names, and an issuer that answers none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_2_a_flood_of_certificate_requests_leaves_a_few() {
    const MANY: usize = 400;
    let Some(lab) = Lab::new().await else { return };
    let scene = Scene::new(&lab, "cm", Kind::CertManager).await;
    scene.issuer.behave(Behaviour::Away);
    let pod = lab.pod("cm", "etcd-1").await;
    let (name, uid) = (pod.name_any(), pod.uid().expect("a uid"));
    let client = lab.api.client_with_token(&lab.api.token("cm", "default", Some(&pod)).await).await;
    let requests: Api<DynamicObject> = Api::namespaced_with(client, "cm", &resource());
    let create = async |n: usize| {
        let role = ["peer", "server"][n % 2];
        let request = json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
            "metadata": {
                "name": format!("etcd-tls-{uid}-{role}-{n:032x}"),
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}],
            },
            "spec": {"request": "AAAA".repeat(1300), "duration": "24h", "issuerRef": {"name": "company"}},
        });
        requests.create(&PostParams::default(), &from_json(request)).await.map_err(|e| e.to_string())
    };
    eventually("the right to request", LIMIT, || create(0)).await;
    let sign = sign(&lab).await;
    for n in 1..MANY {
        create(n).await.unwrap_or_else(|e| panic!("request {n}: {e}"));
    }
    let all: Api<DynamicObject> = Api::namespaced_with(lab.api.client.clone(), "cm", &resource());
    eventually("a few to be left", LIMIT, || async {
        let left = all.list_metadata(&Default::default()).await.map_err(|e| e.to_string())?.items.len();
        if (1..=8).contains(&left) { Ok(()) } else { Err(format!("{left} of {MANY}: {}", sign.log())) }
    })
    .await;
    // The newest ones are those that stay.
    all.get(&format!("etcd-tls-{uid}-peer-{:032x}", MANY - 2)).await.expect("the newest one");
}
