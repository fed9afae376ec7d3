//! `issuer: pod-certificate` with a real kubelet: it requests the certificates of the injected volume, and etcd starts with them.

use serde_json::{Value, json};
use tests::{temp::TempDir, tier};

use super::{Cluster, Deleted, etcd_image, is_ready};

const NAMESPACE: &str = "etcd-tls-test-kubelet";
const POD: &str = "etcd-0";

/// Whether the API server serves PodCertificateRequests. Whether kubelet makes them cannot be asked.
pub fn is_served(cluster: &Cluster) -> bool {
    let version = cluster.try_run(&["get", "--raw", "/apis/certificates.k8s.io/v1beta1"]).unwrap_or_default();
    let served = version.contains("podcertificaterequests");
    if !served {
        tier::skip_special(
            "the cluster's API server serves no podcertificaterequests",
            "the gate PodCertificateRequest in kube-apiserver and kubelet, and \
             --runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true",
        );
    }
    served
}

fn member() -> Value {
    let name = format!("{POD}.etcd.{NAMESPACE}.svc");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": POD, "namespace": NAMESPACE, "labels": {"app": "etcd"},
            "annotations": {
                "etcd-tls.dev/issuer": "pod-certificate", "etcd-tls.dev/revocation": "off", "etcd-tls.dev/duration": "1h",
                "etcd-tls.dev/roles": "peer,server,client",
            },
        },
        "spec": {
            "hostname": POD, "subdomain": "etcd",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "etcd", "image": etcd_image(), "imagePullPolicy": "IfNotPresent",
                "command": [
                    "etcd", "--name=etcd-0", "--data-dir=/data/etcd",
                    "--listen-client-urls=https://0.0.0.0:2379", format!("--advertise-client-urls=https://{name}:2379"),
                    "--listen-peer-urls=https://0.0.0.0:2380", format!("--initial-advertise-peer-urls=https://{name}:2380"),
                    format!("--initial-cluster=etcd-0=https://{name}:2380"), "--listen-metrics-urls=http://0.0.0.0:2381",
                ],
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

/// The volume's certificates come by kubelet, etcd serves them, and the pod requests nothing itself.
pub fn a_member_has_its_certificates_by_kubelet(cluster: &Cluster) {
    let _ = cluster.try_run(&["delete", "namespace", NAMESPACE, "--wait=true"]);
    cluster.run(&["create", "namespace", NAMESPACE]);
    let labels = ["etcd-tls=dynamic", "pod-security.kubernetes.io/enforce=restricted"];
    cluster.run(&[&["label", "namespace", NAMESPACE], &labels[..]].concat());
    let _deleted = Deleted { cluster, namespace: NAMESPACE.to_owned() };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "etcd", "namespace": NAMESPACE},
        "spec": {
            "clusterIP": "None", "publishNotReadyAddresses": true, "selector": {"app": "etcd"}, "ports": [{"port": 2379}],
        },
    });
    let files = TempDir::new("member-by-kubelet");
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [service, member()]});
    let path = files.write("member.json", both.to_string()).display().to_string();
    cluster.eventually("the member is made", NAMESPACE, || cluster.try_run(&["apply", "-f", &path]).map(|_| ()));
    cluster.eventually("the member is ready", NAMESPACE, || {
        let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", POD]);
        if is_ready(&pod) { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    let etcdctl = ["-n", NAMESPACE, "exec", POD, "-c", "etcd", "--", "etcdctl", "--endpoints=https://127.0.0.1:2379"];
    cluster.eventually("a key is written", NAMESPACE, || {
        cluster.try_run(&[&etcdctl[..], &["put", "key", "value"]].concat()).map(|_| ())
    });
    let requests = cluster.json(&["-n", NAMESPACE, "get", "podcertificaterequests"]);
    let issued = requests["items"].as_array().into_iter().flatten();
    let issued = issued.filter(|request| request["status"]["conditions"][0]["type"] == "Issued").count();
    assert_eq!(issued, 3, "one for each role: {requests}");
    let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", POD]);
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let own = cluster.run(&["get", "csr", "-o", "name"]);
    assert!(!own.contains(uid), "the pod has made a request itself: {own}");
    assert_eq!(cluster.restarts(NAMESPACE, POD), 0);
}
