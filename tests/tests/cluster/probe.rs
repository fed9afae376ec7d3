//! `reload: probe` on a real kubelet: it runs our program in etcd's container, restarts etcd by it when the CA is another
//! one, and leaves etcd alone while the sidecar crashes.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    process::{binary, run},
    temp::TempDir,
};

use super::{Cluster, Deleted, etcd_image, is_ready};

const NAMESPACE: &str = "etcd-tls-test-probe";
const POD: &str = "etcd-0";
/// Many times what its probe takes to fail for good.
const AWAY: Duration = Duration::from_secs(45);

/// One member on its own, whose probe fails for good within seconds.
fn member() -> Value {
    let listen = |scheme: &str, port: u16| format!("{scheme}://0.0.0.0:{port}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": POD, "namespace": NAMESPACE,
            "annotations": {"etcd-tls.dev/reload": "probe", "etcd-tls.dev/mount-path": "/tls"},
        },
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "etcd", "image": etcd_image(), "imagePullPolicy": "IfNotPresent",
                "command": [
                    "etcd", "--name=etcd-0", "--data-dir=/data/etcd",
                    format!("--listen-client-urls={}", listen("https", 2379)), "--advertise-client-urls=https://$(POD_IP):2379",
                    format!("--listen-peer-urls={}", listen("https", 2380)),
                    "--initial-advertise-peer-urls=https://$(POD_IP):2380", "--initial-cluster=etcd-0=https://$(POD_IP):2380",
                    format!("--listen-metrics-urls={}", listen("http", 2381)),
                ],
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "livenessProbe": {
                    "httpGet": {"path": "/health", "port": 2381}, "initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 2,
                },
                "readinessProbe": {"httpGet": {"path": "/health", "port": 2381}, "periodSeconds": 2},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

impl Cluster {
    fn probed_member(&self) -> Deleted<'_> {
        let _ = self.try_run(&["delete", "namespace", NAMESPACE, "--wait=true"]);
        self.run(&["create", "namespace", NAMESPACE]);
        self.run(&[
            "label",
            "namespace",
            NAMESPACE,
            "etcd-tls=dynamic",
            "pod-security.kubernetes.io/enforce=restricted",
        ]);
        let deleted = Deleted { cluster: self, namespace: NAMESPACE.to_owned() };
        let files = TempDir::new("probed-member");
        let path = files.write("pod.json", member().to_string()).display().to_string();
        self.eventually("the member is made", NAMESPACE, || self.try_run(&["apply", "-f", &path]).map(|_| ()));
        self.member_ready();
        deleted
    }

    fn member_ready(&self) {
        self.eventually("the member is ready", NAMESPACE, || {
            let pod = self.json(&["-n", NAMESPACE, "get", "pod", POD]);
            if is_ready(&pod) { Ok(()) } else { Err(pod["status"].to_string()) }
        });
    }

    /// The sidecar's image, which is the n-th init container's.
    fn sidecar_image(&self) -> (String, String) {
        let pod = self.json(&["-n", NAMESPACE, "get", "pod", POD]);
        let containers = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let at = containers.iter().position(|c| c["name"] == "etcd-tls-sidecar").expect("a sidecar");
        let image = containers[at]["image"].as_str().expect("an image").to_owned();
        (format!("/spec/initContainers/{at}/image"), image)
    }

    fn set_image(&self, path: &str, image: &str) {
        let patch = json!([{"op": "replace", "path": path, "value": image}]).to_string();
        self.run(&["-n", NAMESPACE, "patch", "pod", POD, "--type=json", "-p", &patch]);
    }

    /// The state of the sidecar.
    fn sidecar_state(&self) -> Value {
        let pod = self.json(&["-n", NAMESPACE, "get", "pod", POD]);
        let statuses = pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.into_iter().find(|s| s["name"] == "etcd-tls-sidecar").unwrap_or_default()
    }
}

pub(super) fn a_sidecar_that_is_away_takes_no_etcd_down(cluster: &Cluster) {
    let deleted = cluster.probed_member();
    let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", POD]);
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["exec"]["command"][0], "/tls/probe/etcd-tls-probe");
    assert_eq!(cluster.restarts(NAMESPACE, POD), 0);

    let mut rollover = Command::new(binary("etcd-tls-webhook"));
    rollover.arg("rollover").arg(format!("{NAMESPACE}/etcd")).args(["--domain", "peer"]);
    run(rollover.env("KUBECONFIG", &cluster.kubeconfig));
    cluster.eventually("kubelet restarts etcd by its probe", NAMESPACE, || match cluster.restarts(NAMESPACE, POD) {
        0 => Err("not yet".into()),
        _ => Ok(()),
    });
    cluster.member_ready();
    let events = cluster.run(&["-n", NAMESPACE, "get", "events", "-o", "jsonpath={.items[*].message}"]);
    assert!(events.contains("etcd is to be restarted: the peer trust bundle has changed"), "{events}");

    // Its program is etcd now, which its arguments make no sense to.
    let (path, image) = cluster.sidecar_image();
    cluster.set_image(&path, &etcd_image());
    cluster.eventually("the sidecar crashes", NAMESPACE, || {
        let state = cluster.sidecar_state();
        let crashed = state["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        if crashed && state["ready"] != true { Ok(()) } else { Err(state.to_string()) }
    });
    let start = Instant::now();
    while start.elapsed() < AWAY {
        assert_eq!(cluster.restarts(NAMESPACE, POD), 1, "{}", cluster.state(NAMESPACE));
        std::thread::sleep(Duration::from_secs(1));
    }
    cluster.set_image(&path, &image);
    cluster.eventually("the sidecar is back", NAMESPACE, || {
        let state = cluster.sidecar_state();
        if state["state"]["running"].is_object() && state["ready"] == true { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.member_ready();
    assert_eq!(cluster.restarts(NAMESPACE, POD), 1, "the rollover's, and no other");
    drop(deleted);
}
