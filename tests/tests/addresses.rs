//! Addresses with two claimants: a kubelet can report any address for its own pods. A claim does not stop a pod that has a
//! certificate, and gets none itself.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::time::Duration;

use etcd_tls_contract::role::Role;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use lab::{Asking, LIMIT, Lab};
use serde_json::{Value, json};
use signer::{certificate, issue, issued, member, sign};
use tests::{apiserver::from_json, eventually};

const ELSEWHERE: &str = "node-2";
/// How long a request that has to wait is looked at; an honest one is decided in less than a second.
const WAITS: Duration = Duration::from_secs(4);

/// A member that is scheduled to the other node.
async fn elsewhere(lab: &Lab, namespace: &str, name: &str, host_network: bool) -> Pod {
    let pod: Pod = from_json(json!({
        "metadata": {"name": name, "labels": {"app": "etcd"}},
        "spec": {
            "nodeName": ELSEWHERE, "hostNetwork": host_network,
            "containers": [{"name": "etcd", "image": "etcd"}],
        },
    }));
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), namespace);
    eventually("a pod", LIMIT, || async { pods.create(&PostParams::default(), &pod).await }).await
}

/// The kubelet of the other node, with the rights that Kubernetes gives kubelets, says a pod's status.
async fn kubelet_says(lab: &Lab, namespace: &str, name: &str, status: Value) -> Pod {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    eventually("the kubelet's right", LIMIT, || async {
        let request = hyper::Request::patch(&path)
            .header("Content-Type", "application/strategic-merge-patch+json")
            .header("Impersonate-User", format!("system:node:{ELSEWHERE}"))
            .header("Impersonate-Group", "system:nodes")
            .body(json!({"status": status}).to_string().into_bytes())
            .expect("a request");
        lab.api.client.request::<Pod>(request).await
    })
    .await
}

async fn reports(lab: &Lab, namespace: &str, name: &str, ip: &str) -> Pod {
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    kubelet_says(lab, namespace, name, status).await
}

/// A request that has to wait: neither approved nor denied, and no certificate.
async fn waits(lab: &Lab, asking: &Asking) {
    tokio::time::sleep(WAITS).await;
    assert_eq!(lab.verdict(&asking.name).await, None, "{} is to wait", asking.name);
    assert!(certificate(lab, &asking.name).await.is_none());
}

async fn asks(lab: &Lab, pod: &Pod, role: Role) -> Asking {
    let asking = Asking::of(pod, role);
    asking.create_when_allowed(&lab.requester(pod).await).await;
    asking
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_10_an_address_of_another_pod_is_not_issued_and_its_holder_goes_on() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let client = || lab.api.client.clone();
    let node: Node = from_json(json!({"metadata": {"name": ELSEWHERE}}));
    Api::all(client()).create(&PostParams::default(), &node).await.expect("a node");
    let kubelets: ClusterRoleBinding = from_json(json!({
        "metadata": {"name": "kubelets"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
    }));
    Api::all(client()).create(&PostParams::default(), &kubelets).await.expect("a binding");
    lab.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    lab.api.namespace("web", &[("etcd-tls", "dynamic")]).await;

    // The honest one has its certificates, then another node's pod reports its address.
    let honest = member(&lab, "prod", "etcd-0", Some("10.1.0.1")).await;
    issue(&lab, &honest, Role::Server, None).await;
    elsewhere(&lab, "web", "thief", false).await;
    let thief = reports(&lab, "web", "thief", "10.1.0.1").await;
    let stolen = asks(&lab, &thief, Role::Server).await;
    waits(&lab, &stolen).await;
    lab.event_of("web", "thief", "10.1.0.1 is reported by pod prod/etcd-0 on node node-1 too").await;
    lab.event_of("prod", "etcd-0", "pod web/thief on node node-2 reports the address 10.1.0.1").await;
    issue(&lab, &honest, Role::Server, None).await;
    issue(&lab, &honest, Role::Peer, None).await;
    // An approval by a person does not help: the signer judges by the same.
    lab.approve_by_hand(&stolen.name).await;
    tokio::time::sleep(WAITS).await;
    let status = lab.csr(&stolen.name).await.status.expect("a status");
    assert!(status.certificate.is_none(), "the signer issues nothing");
    assert_eq!(status.conditions.map(|c| c.len()), Some(1), "and gives nothing up");

    // Of two that have none yet, each waits; the honest one gets its certificate when the other is gone.
    let late = member(&lab, "prod", "etcd-1", Some("10.1.0.2")).await;
    elsewhere(&lab, "web", "early", false).await;
    let early = reports(&lab, "web", "early", "10.1.0.2").await;
    let (first, second) = (asks(&lab, &late, Role::Peer).await, asks(&lab, &early, Role::Peer).await);
    waits(&lab, &first).await;
    waits(&lab, &second).await;
    lab.api.delete_pod("web", "early").await;
    issued(&lab, &first.name).await;

    // The address of a node, a Service, and the link.
    elsewhere(&lab, "web", "proxy", true).await;
    kubelet_says(
        &lab,
        "web",
        "proxy",
        json!({"phase": "Running", "hostIPs": [{"ip": "192.0.2.2"}], "hostIP": "192.0.2.2"}),
    )
    .await;
    let services: Api<Service> = Api::namespaced(client(), "web");
    let service = json!({"metadata": {"name": "api"}, "spec": {"ports": [{"port": 443}], "selector": {"app": "api"}}});
    let service = services.create(&PostParams::default(), &from_json(service)).await.expect("a Service");
    let cluster_ip = service.spec.and_then(|s| s.cluster_ip).expect("a cluster IP");
    for (n, ip) in ["192.0.2.2", &cluster_ip].into_iter().enumerate() {
        let pod = member(&lab, "prod", &format!("claims-{n}"), Some(ip)).await;
        let asking = asks(&lab, &pod, Role::Server).await;
        waits(&lab, &asking).await;
        lab.event_of("prod", &pod.name_any(), &format!("{ip} is an address of")).await;
    }
    for ip in ["169.254.7.7", "fe80::7", "224.0.0.7"] {
        let name = format!("link-{}", ip.len());
        let pod = member(&lab, "prod", &name, Some(ip)).await;
        let asking = asks(&lab, &pod, Role::Peer).await;
        waits(&lab, &asking).await;
    }
    // When the Service is gone, so is what spoke against it.
    services.delete("api", &DeleteParams::default()).await.expect("delete");
    let pods: Api<Pod> = Api::namespaced(client(), "prod");
    issue(&lab, &pods.get("claims-1").await.expect("a pod"), Role::Peer, None).await;
}
