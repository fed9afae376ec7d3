//! The subresources by which a user can act as a pod or change it, each as a user who has that right alone.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tests::apiserver::NODE;

use super::scene::{CSRS, Call, LIMIT, RBAC, Scene, impersonating, request, send};

/// The threat model states their reach: the keys and the requests of that pod. The pod's identity stays.
pub async fn reach_one_pod_and_do_not_change_what_it_is(scene: &Scene) {
    let pod = json!({
        "metadata": {"name": "injected", "labels": {"etcd-tls.dev/injected": "true"},
            "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {
            "containers": [{"name": "c", "image": "c", "resources": {"requests": {"cpu": "1m"}}}],
            "volumes": [{"name": "etcd-tls", "emptyDir": {"medium": "Memory"}}],
        },
    });
    let pod: Pod = scene.api.pod("prod", pod).await.expect("a pod");
    let uid = pod.metadata.uid.clone().expect("a uid");
    let one = "/api/v1/namespaces/prod/pods/injected";
    let user = async |name: &str, resource: &str| {
        let role = json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["create", "patch"]}]});
        scene.admin(Call::post(format!("{RBAC}/namespaces/prod/roles"), role)).await;
        let binding = json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"}});
        scene.admin(Call::post(format!("{RBAC}/namespaces/prod/rolebindings"), binding)).await;
        impersonating(&scene.api, name, &["system:authenticated"]).await
    };
    let strategic = |path: &str, body: Value| Call {
        method: "PATCH",
        path: format!("{one}/{path}"),
        content: "application/strategic-merge-patch+json",
        body,
    };

    let debugger = user("debugger", "pods/ephemeralcontainers").await;
    let container = json!({"ephemeralContainers": [{"name": "debug", "image": "x", "volumeMounts": [{"name": "etcd-tls", "mountPath": "/keys"}]}]});
    let mounts = strategic("ephemeralcontainers", json!({"spec": container}));
    tests::eventually("a container that mounts the keys", LIMIT, || send(&debugger, mounts.clone().dry())).await;
    // Without a kubelet, a node has no room for a larger pod.
    let room = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
    let status = json!({"status": {"capacity": room, "allocatable": room}});
    scene.admin(Call::merge(format!("/api/v1/nodes/{NODE}/status"), status)).await;
    let resizer = user("resizer", "pods/resize").await;
    let containers = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2m"}}}]});
    let larger = strategic("resize", json!({"spec": containers}));
    tests::eventually("another size", LIMIT, || send(&resizer, larger.clone().dry())).await;
    for (client, path, spec) in [(&debugger, "ephemeralcontainers", container), (&resizer, "resize", containers)] {
        for metadata in [
            json!({"annotations": {"etcd-tls.dev/roles": "peer,server"}}),
            json!({"annotations": {"etcd-tls.dev/cluster": "other"}}),
            json!({"labels": {"etcd-tls": "dynamic"}}),
        ] {
            // Refused, or done without the metadata.
            let _ = send(client, strategic(path, json!({"metadata": metadata, "spec": spec}))).await;
            let after = scene.admin(Call::get(one)).await;
            assert_eq!(after["metadata"]["annotations"], json!({"etcd-tls.dev/roles": "client"}), "{path}");
            assert_eq!(after["metadata"]["labels"], json!({"etcd-tls.dev/injected": "true"}), "{path}");
        }
    }

    let maker = user("token-maker", "serviceaccounts/token").await;
    let token = async |bound: Option<Value>| {
        let body = json!({"spec": {"audiences": [], "expirationSeconds": 600, "boundObjectRef": bound}});
        let call = Call::post("/api/v1/namespaces/prod/serviceaccounts/default/token", body);
        let (_, made) = tests::eventually("a token", LIMIT, || send(&maker, call.clone())).await;
        scene.api.client_with_token(made["status"]["token"].as_str().expect("a token")).await
    };
    let asks = |uid: &str| {
        let name = format!("etcd-tls-{uid}-peer-0");
        Call::post(CSRS, request(&name, "peer.etcd-tls.dev/prod.etcd")).dry()
    };
    let as_pod = token(Some(json!({"kind": "Pod", "apiVersion": "v1", "name": "injected", "uid": uid}))).await;
    send(&as_pod, asks(&uid)).await.expect("a request of that pod");
    let other = send(&as_pod, asks(&scene.uid)).await.expect_err("a request of another pod");
    let as_account = token(None).await;
    let unbound = send(&as_account, asks(&uid)).await.expect_err("a request by a token of no pod");
    for refused in [other, unbound] {
        assert!(refused.contains("ValidatingAdmissionPolicy 'etcd-tls-requests'"), "{refused}");
    }
}
