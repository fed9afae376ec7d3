//! Addresses with two claimants: a kubelet can report any address for its own pods. A claim does not stop a pod that has a
//! certificate, and gets none itself.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{process::Command, time::Duration};

use etcd_tls_contract::role::Role;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use lab::{Asking, LIMIT, Lab};
use serde_json::{Value, json};
use signer::{certificate, issue, issued, member, sign};
use tests::{apiserver::from_json, eventually};
use tokio::net::TcpListener;

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
    undecided(lab, asking).await;
}

async fn undecided(lab: &Lab, asking: &Asking) {
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
    let signer = sign(&lab, "sign-a", &[]).await;
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
    // The policy's host of the cluster has this address; one of another cluster does not count.
    lab.set_policy(
        "hosts: [{username: cp-1, cluster: prod/etcd, roles: [peer, server], ips: [192.0.2.11], commonName: cp-1}, \
         {username: cp-2, cluster: other/etcd, roles: [peer, server], ips: [192.0.2.12], commonName: cp-2}]\n",
    )
    .await;
    eventually("the policy in force", LIMIT, || async {
        let logs = [approver.process.log(), signer.log()];
        if logs.iter().all(|log| log.contains("192.0.2.11")) { Ok(()) } else { Err("not yet") }
    })
    .await;
    member(&lab, "prod", "like-cp-1", Some("192.0.2.11")).await;
    let of_host = Api::<Pod>::namespaced(client(), "prod").get("like-cp-1").await.expect("a pod");
    let claimed = asks(&lab, &of_host, Role::Server).await;
    waits(&lab, &claimed).await;
    lab.event_of("prod", "like-cp-1", "192.0.2.11 is an address of the policy's host cp-1").await;
    let free = member(&lab, "prod", "like-cp-2", Some("192.0.2.12")).await;
    issue(&lab, &free, Role::Server, None).await;
    lab.set_policy("").await;
    issued(&lab, &claimed.name).await;
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
    // By which a Service is reached from outside.
    let here: Api<Service> = Api::namespaced(client(), "prod");
    let front = json!({"metadata": {"name": "front"}, "spec": {
        "type": "LoadBalancer", "ports": [{"port": 2379}], "selector": {"app": "front"}, "externalIPs": ["192.0.2.40"],
    }});
    here.create(&PostParams::default(), &from_json(front)).await.expect("a Service");
    let balanced = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.41"}]}}});
    here.patch_status("front", &PatchParams::default(), &Patch::Merge(balanced)).await.expect("a status");
    let mut claimed = Vec::new();
    for (n, ip) in ["192.0.2.2", &cluster_ip, "192.0.2.40", "192.0.2.41"].into_iter().enumerate() {
        let pod = member(&lab, "prod", &format!("claims-{n}"), Some(ip)).await;
        claimed.push(asks(&lab, &pod, Role::Server).await);
        lab.event_of("prod", &pod.name_any(), &format!("{ip} is an address of")).await;
    }
    tokio::time::sleep(WAITS).await;
    for asking in &claimed {
        undecided(&lab, asking).await;
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

/// A Service of this name in a pod's namespace changes the address of the API server that kubelet gives the pod. The sidecar's own
/// program, with such an address and with the API server behind its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_a_service_named_kubernetes_keeps_no_pod_from_its_first_certificates() {
    let can = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|o| o.status.success());
    if !can {
        tests::tier::skip(2, "no mount namespaces", "root, and util-linux' unshare");
        return;
    }
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "prod", "etcd-0", Some("10.1.0.1")).await;
    let trust = signer::trust(&lab, "prod", "etcd").await;
    // The right to request is there.
    issue(&lab, &pod, Role::Peer, None).await;
    let token = lab.api.token("prod", "default", Some(&pod)).await;
    let tokens = lab.api.token_directory("attacked", "prod", &token);

    // `kubernetes.default.svc` is an address of loopback of which nothing but this test makes use, at the port of that Service.
    let address: std::net::SocketAddr = "127.83.17.21:443".parse().expect("an address");
    let listener = TcpListener::bind(address).await.expect("bind");
    let port: u16 = lab.api.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let forwards = tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    let dir = tests::temp::TempDir::new("attacked");
    let hosts = dir.write("hosts", "127.0.0.1 localhost\n127.83.17.21 kubernetes.default.svc\n");
    let trust_dir = dir.dir("trust");
    for (key, bundle) in [("peer.crt", &trust[0]), ("client.crt", &trust[1])] {
        std::fs::write(trust_dir.join(key), bundle.to_pem()).expect("write a bundle");
    }
    // Nobody is there; somebody accepts and is silent; somebody answers with a certificate of another CA.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let closed = tests::ports::loopback();
    let foreign = tests::csr_server::CsrServer::start(Duration::from_secs(3600)).await;
    for (case, port) in
        [("closed", closed), ("silent", silent.local_addr().expect("an address").port()), ("foreign", foreign.port)]
    {
        let mut command = Command::new("unshare");
        let setup = format!("mount --bind {} /etc/hosts\nexec \"$@\"", hosts.display());
        command.args(["--mount", "--propagation=private", "sh", "-ec", &setup, "sh"]);
        command.arg(tests::process::binary("etcd-tls-sidecar")).args(["init", "--roles=peer,server", "--timeout=60s"]);
        command.arg("--dir").arg(dir.dir(case)).arg("--trust-dir").arg(&trust_dir).arg("--token-dir").arg(&tokens);
        command.arg("--termination-log").arg(dir.join("termination-log"));
        let uid = pod.metadata.uid.clone().expect("a uid");
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &port.to_string()),
            ("POD_NAME", "etcd-0"),
            ("POD_NAMESPACE", "prod"),
            ("POD_UID", &uid),
            ("POD_SERVICE_ACCOUNT", "default"),
            ("NODE_NAME", tests::apiserver::NODE),
            ("POD_IPS", "10.1.0.1"),
        ] {
            command.env(name, value);
        }
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("a task").expect("run");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{case}: {}: {text}", output.status);
        assert!(text.contains("a Service named kubernetes in this pod's namespace"), "{case}: {text}");
        assert!(dir.join(case).join("server/tls.crt").exists(), "{case}: {text}");
    }
    forwards.abort();
}
