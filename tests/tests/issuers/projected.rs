//! Tier 3: a real kubelet projects our ClusterTrustBundle into the pod of another program, which names the signer, and follows a rollover.

use std::{fs, process::Command, time::Duration};

use etcd_tls_contract::certificate::Bundle;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    eventually,
    installation::{Installation, own_address},
    node::Node,
    process::{binary, run},
    say, tier,
};

use crate::bundles::{OURS, options, published};

const NODE: &str = "node-of-bundles";
/// kubelet looks at a volume when it looks at the pod.
const SYNCED: Duration = Duration::from_secs(240);

/// The bundle in a projected volume.
fn read(node: &Node, pod: &Pod, volume: &str, file: &str) -> Result<Bundle, String> {
    let path = node.projected(&pod.uid().unwrap_or_default(), volume).join(file);
    let pem = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Bundle::parse(&pem).map_err(|e| e.to_string())
}

fn same(one: &Bundle, other: &Bundle) -> bool {
    one.contains(other) && other.contains(one)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kubelet_projects_our_cluster_trust_bundles_and_follows_a_rollover() {
    let Some(runtime) = tier::runtime() else { return };
    let options = options();
    let Some(mut installation) = Installation::start(&options).await else { return };
    let address = own_address().expect("the installation has one");
    installation.api.apply_components(&["cluster-trust-bundles"]);
    installation.restart_sign(&options.sign).await;
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let member = json!({
        "metadata": {"name": "app", "labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    });
    installation.api.pod("prod", member).await.expect("a pod");
    let first = eventually("a ClusterTrustBundle", SYNCED, || published(&installation, OURS)).await;

    let image = runtime.etcd_image.clone();
    let mut node = Node::new(runtime, NODE, address);
    node.turn_on(&["ClusterTrustBundle", "ClusterTrustBundleProjection"]);
    node.kubeconfig = Some(installation.api.kubeconfig.clone());
    node.power_on().await;

    // Of another program: it names the signer, as any pod may.
    installation.api.namespace("web", &[]).await;
    let pods: Api<Pod> = Api::namespaced(installation.api.client.clone(), "web");
    let container = |name: &str, mounts: Value| json!({"name": name, "image": image, "imagePullPolicy": "Never", "command": ["sleep", "3600"], "volumeMounts": mounts});
    let projection = json!({"clusterTrustBundle": {
        "signerName": "client.etcd-tls.dev/prod.etcd", "labelSelector": {}, "path": "client.crt",
    }});
    let reader = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"},
        "spec": {
            "nodeName": NODE, "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "containers": [container("c", json!([{"name": "trust", "mountPath": "/trust"}]))],
            "volumes": [{"name": "trust", "projected": {"sources": [projection]}}],
        },
    });
    let (params, reader): (_, Pod) = (PostParams::default(), from_json(reader));
    let reader = eventually("a pod", SYNCED, || pods.create(&params, &reader)).await;
    let shows = |what: &'static str, wanted: Bundle| {
        let (node, reader) = (&node, &reader);
        async move {
            eventually(what, SYNCED, || async {
                let there = read(node, reader, "trust", "client.crt")?;
                if same(&there, &wanted) { Ok(()) } else { Err("another bundle".to_owned()) }
            })
            .await;
        }
    };
    shows("kubelet projects the bundle", first.clone()).await;
    eventually("the pod runs with it", SYNCED, || async {
        let pod = pods.get("reader").await.map_err(|e| e.to_string())?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Running" { Ok(()) } else { Err(format!("{phase}: {}", node.state())) }
    })
    .await;

    // Both CAs while a rollover is under way.
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["rollover", "prod/etcd", "--domain", "client"]).env("KUBECONFIG", &installation.api.kubeconfig);
    tokio::task::spawn_blocking(move || run(&mut command)).await.expect("run");
    let both = eventually("both CAs", SYNCED, || async {
        let now = published(&installation, OURS).await?;
        if now.contains(&first) && !same(&now, &first) { Ok(now) } else { Err("not both".to_owned()) }
    })
    .await;
    shows("kubelet follows the rollover", both).await;
    say("a kubelet projected our bundle, and both CAs of a rollover");
}
