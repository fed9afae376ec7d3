//! A whole cluster with a node: the manifests install, and the example becomes a healthy etcd cluster, TLS throughout,
//! whose certificates are renewed, and which outlives a container's and a pod's restart; a member that is restarted by its
//! liveness probe.
//!
//! `KUBECONFIG` names the cluster. It has the images `etcd-tls-webhook` and `etcd-tls-sidecar` in the tag of the manifests,
//! and an etcd image with a shell that `ETCD_TLS_TEST_ETCD_IMAGE` names (default `localhost/etcd:3.5`).

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

#[path = "cluster/kubelet.rs"]
mod kubelet;
#[path = "cluster/probe.rs"]
mod probe;

use serde_json::{Value, json};
use tests::{process::which, repository, temp::TempDir, tier};

/// How long a cluster may take to do what it is asked.
const LIMIT: Duration = Duration::from_secs(240);
/// The life of a certificate here.
const LIFE: &str = "60s";
/// The storage class, and the name of what makes its disks.
const DISKS: &str = "etcd-tls-test-disks";

struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Cluster {
    fn find() -> Option<Self> {
        let kubeconfig = tier::cluster()?;
        let assets = env::var_os("KUBEBUILDER_ASSETS").unwrap_or_else(|| "/usr/local/kubebuilder/bin".into());
        let beside = Path::new(&assets).join("kubectl");
        let kubectl = if beside.is_file() { beside } else { which("kubectl").expect("kubectl in PATH") };
        Some(Self { kubectl, kubeconfig })
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).output();
        let output = output.map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|e| panic!("kubectl {arguments:?}: {e}"))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["-o", "json"]].concat())).expect("JSON")
    }

    /// Tries until it holds; on failure what the namespace looks like is in the message.
    fn eventually(&self, what: &str, namespace: &str, mut attempt: impl FnMut() -> Result<(), String>) {
        let start = Instant::now();
        loop {
            match attempt() {
                Ok(()) => return,
                Err(e) if start.elapsed() > LIMIT => panic!("{what}: {e}\n{}", self.state(namespace)),
                Err(_) => std::thread::sleep(Duration::from_secs(1)),
            }
        }
    }

    fn state(&self, namespace: &str) -> String {
        let ask = |arguments: &[&str]| self.try_run(arguments).unwrap_or_else(|e| e);
        let pods = ask(&["-n", namespace, "get", "pods", "-o", "name"]);
        // Of each pod, as any may be the one that does not come up; of containers that have not started, there is no log.
        let logs = pods.lines().map(|pod| {
            let log =
                ask(&["-n", namespace, "logs", pod, "--all-containers", "--ignore-errors", "--prefix", "--tail=20"]);
            format!("{pod}\n{log}")
        });
        let logs: Vec<String> = logs.collect();
        [
            ask(&["get", "pods", "-A", "-o", "wide"]),
            ask(&["get", "csr"]),
            ask(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]),
            ask(&["-n", "etcd-tls-system", "get", "events", "--sort-by=.lastTimestamp"]),
            logs.join("\n"),
            ask(&["-n", "etcd-tls-system", "logs", "deploy/etcd-tls-approve", "--tail=20"]),
            ask(&["-n", "etcd-tls-system", "logs", "deploy/etcd-tls-sign", "--tail=20"]),
        ]
        .join("\n")
    }

    /// `manifests/` with short lives.
    fn install(&self) -> Installed<'_> {
        let overlay = TempDir::new("install");
        let path = "/spec/template/spec/containers/0/args/-";
        let patch = json!([{"op": "add", "path": path, "value": format!("--max-lifetime={LIFE}")}]);
        let kustomization = json!({
            "resources": [relative(&overlay, "manifests")],
            "patches": [{"target": {"kind": "Deployment", "name": "etcd-tls-sign"}, "patch": patch.to_string()}],
        });
        overlay.write("kustomization.yaml", kustomization.to_string());
        self.applied(&overlay)
    }

    /// `manifests/` with a component.
    fn install_with(&self, component: &str) -> Installed<'_> {
        let overlay = TempDir::new("install");
        let component = relative(&overlay, &format!("manifests/components/{component}"));
        let kustomization = json!({"resources": [relative(&overlay, "manifests")], "components": [component]});
        overlay.write("kustomization.yaml", kustomization.to_string());
        self.applied(&overlay)
    }

    fn applied(&self, overlay: &TempDir) -> Installed<'_> {
        let installed = Installed(self);
        self.run(&["apply", "-k", &overlay.path().display().to_string()]);
        for name in ["etcd-tls-approve", "etcd-tls-sign", "etcd-tls-admit"] {
            let target = format!("deployment/{name}");
            self.eventually(name, "etcd-tls-system", || {
                let status = ["-n", "etcd-tls-system", "rollout", "status", &target, "--timeout=10s"];
                self.try_run(&status).map(|_| ())
            });
        }
        installed
    }

    /// Three disks that outlive a pod, of a directory of the node that everybody may write.
    fn disks(&self, image: &str) {
        let make = "rm -rf /disks/*; for i in 0 1 2; do mkdir -p /disks/$i; chmod 0777 /disks/$i; done";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": DISKS, "namespace": "default"},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "make", "image": image, "command": ["/bin/sh", "-c", make], "securityContext": {"runAsUser": 0},
                    "volumeMounts": [{"name": "disks", "mountPath": "/disks"}],
                }],
                "volumes": [{"name": "disks", "hostPath": {"path": format!("/var/tmp/{DISKS}"), "type": "DirectoryOrCreate"}}],
            },
        });
        let _ = self.try_run(&["-n", "default", "delete", "pod", DISKS, "--wait=true", "--ignore-not-found"]);
        let files = TempDir::new("disks");
        self.run(&["apply", "-f", &files.write("pod.json", pod.to_string()).display().to_string()]);
        self.eventually("disks", "default", || {
            let phase = self.run(&["-n", "default", "get", "pod", DISKS, "-o", "jsonpath={.status.phase}"]);
            if phase == "Succeeded" { Ok(()) } else { Err(phase) }
        });
        self.run(&["-n", "default", "delete", "pod", DISKS, "--wait=false"]);
        for i in 0..3 {
            let name = format!("{DISKS}-{i}");
            let _ = self.try_run(&["delete", "pv", &name, "--wait=true", "--ignore-not-found"]);
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "8Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": DISKS,
                    "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": format!("/var/tmp/{DISKS}/{i}")},
                },
            });
            self.run(&["apply", "-f", &files.write("volume.json", volume.to_string()).display().to_string()]);
        }
    }

    /// `manifests/examples/cluster` in a namespace of its own.
    fn example(&self, namespace: &str, labels: &[&str]) -> Deleted<'_> {
        let _ = self.try_run(&["delete", "namespace", namespace, "--wait=true"]);
        self.run(&["create", "namespace", namespace]);
        self.run(&[&["label", "namespace", namespace, "etcd-tls=dynamic"], labels].concat());
        let deleted = Deleted { cluster: self, namespace: namespace.to_owned() };
        let image = etcd_image();
        let (name, tag) = image.rsplit_once(':').expect("an image with a tag");
        let overlay = TempDir::new("example");
        self.disks(&image);
        let path = "/spec/volumeClaimTemplates/0/spec/storageClassName";
        let patch = json!([{"op": "add", "path": path, "value": DISKS}]);
        let kustomization = json!({
            "namespace": namespace,
            "resources": [relative(&overlay, "manifests/examples/cluster")],
            "images": [{"name": "etcd", "newName": name, "newTag": tag}],
            "patches": [{"target": {"kind": "StatefulSet"}, "patch": patch.to_string()}],
        });
        overlay.write("kustomization.yaml", kustomization.to_string());
        self.eventually("the webhook takes pods", namespace, || {
            self.try_run(&["apply", "-k", &overlay.path().display().to_string()]).map(|_| ())
        });
        deleted
    }

    fn pods_ready(&self, namespace: &str) {
        self.eventually("three members and a client are ready", namespace, || {
            let pods = self.json(&["-n", namespace, "get", "pods"]);
            let ready = pods["items"].as_array().into_iter().flatten().filter(|p| is_ready(p)).count();
            if ready >= 4 { Ok(()) } else { Err(format!("{ready} of 4 pods are ready")) }
        });
    }

    /// etcdctl in the client's pod, with nothing but what the pod's environment says.
    fn etcdctl(&self, namespace: &str, arguments: &[&str]) -> Result<String, String> {
        self.try_run(&[&["-n", namespace, "exec", "etcd-client", "-c", "client", "--", "etcdctl"], arguments].concat())
    }

    fn write(&self, namespace: &str, key: &str) {
        self.eventually(&format!("write {key}"), namespace, || {
            self.etcdctl(namespace, &["put", key, "value"]).map(|_| ())
        });
        self.eventually(&format!("read {key}"), namespace, || {
            let read = self.etcdctl(namespace, &["get", key, "--print-value-only"])?;
            if read.trim() == "value" { Ok(()) } else { Err(read) }
        });
    }

    /// The certificate in a container's mount.
    fn certificate(&self, namespace: &str, pod: &str, role: &str) -> Result<String, String> {
        let path = format!("/etc/etcd/tls/{role}/tls.crt");
        self.try_run(&["-n", namespace, "exec", pod, "-c", "etcd", "--", "cat", &path])
    }

    fn restarts(&self, namespace: &str, pod: &str) -> i64 {
        let pod = self.json(&["-n", namespace, "get", "pod", pod]);
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().filter(|s| s["name"] == "etcd").filter_map(|s| s["restartCount"].as_i64()).sum()
    }
}

/// An installation that is taken away at the end.
struct Installed<'a>(&'a Cluster);

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if env::var_os("ETCD_TLS_TEST_KEEP").is_none() {
            let path = repository().join("manifests").display().to_string();
            let _ = self.0.try_run(&["delete", "-k", &path, "--ignore-not-found", "--wait=true"]);
        }
    }
}

/// A namespace that is deleted at the end.
struct Deleted<'a> {
    cluster: &'a Cluster,
    namespace: String,
}

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        if env::var_os("ETCD_TLS_TEST_KEEP").is_none() {
            let _ = self.cluster.try_run(&["delete", "namespace", &self.namespace, "--wait=false"]);
        }
    }
}

/// The image of etcd, with a shell.
fn etcd_image() -> String {
    env::var("ETCD_TLS_TEST_ETCD_IMAGE").unwrap_or_else(|_| "localhost/etcd:3.5".into())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A path of the repository as kustomize takes it.
fn relative(from: &TempDir, path: &str) -> String {
    let up = "../".repeat(from.path().components().count());
    format!("{up}{}", repository().join(path).display().to_string().trim_start_matches('/'))
}

/// Held by the test whose installation is there.
static INSTALLATION: Mutex<()> = Mutex::new(());

#[test]
fn a_member_has_its_certificates_by_a_real_kubelet() {
    let Some(cluster) = Cluster::find().filter(kubelet::is_served) else { return };
    let _alone = INSTALLATION.lock();
    let _installed = cluster.install_with("pod-certificates");
    kubelet::a_member_has_its_certificates_by_kubelet(&cluster);
}

/// One test, since the installation is one. `ETCD_TLS_TEST_PROBE_ALONE` leaves out all but the member with a probe.
#[test]
fn the_example_becomes_a_cluster_and_stays_one() {
    let Some(cluster) = Cluster::find() else { return };
    let _alone = INSTALLATION.lock();
    let _installed = cluster.install();
    if env::var_os("ETCD_TLS_TEST_PROBE_ALONE").is_some() {
        return probe::a_sidecar_that_is_away_takes_no_etcd_down(&cluster);
    }
    let namespace = "etcd-tls-test";
    let deleted = cluster.example(namespace, &["pod-security.kubernetes.io/enforce=restricted"]);
    cluster.pods_ready(namespace);
    cluster.write(namespace, "first");

    let before: Vec<_> = ["peer", "server"]
        .map(|role| cluster.certificate(namespace, "etcd-0", role).expect("a certificate").trim().to_owned())
        .into();
    for (role, before) in ["peer", "server"].iter().zip(&before) {
        cluster.eventually(&format!("{role} renewed"), namespace, || {
            let now = cluster.certificate(namespace, "etcd-0", role)?;
            if now.trim() == before.as_str() { Err("not yet".into()) } else { Ok(()) }
        });
    }
    assert_eq!(cluster.restarts(namespace, "etcd-0"), 0, "a leaf needs no restart");
    cluster.write(namespace, "renewed");

    // etcd alone, by its own exit.
    cluster.run(&["-n", namespace, "exec", "etcd-1", "-c", "etcd", "--", "/bin/sh", "-c", "kill $(pidof etcd)"]);
    cluster.eventually("etcd-1 restarted", namespace, || {
        if cluster.restarts(namespace, "etcd-1") > 0 { Ok(()) } else { Err("not yet".into()) }
    });
    cluster.pods_ready(namespace);
    cluster.write(namespace, "container");

    // A pod, by its deletion: a new uid, a new address, its old disk.
    let of =
        |what: &str| cluster.run(&["-n", namespace, "get", "pod", "etcd-2", "-o", &format!("jsonpath={{{what}}}")]);
    let uid = of(".metadata.uid");
    cluster.run(&["-n", namespace, "delete", "pod", "etcd-2", "--wait=true"]);
    cluster.eventually("etcd-2 is made again", namespace, || {
        match cluster.try_run(&["-n", namespace, "get", "pod", "etcd-2"]) {
            Ok(_) if of(".metadata.uid") != uid => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.pods_ready(namespace);
    cluster.write(namespace, "pod");

    // A backup, which ends although a sidecar runs beside it.
    cluster.run(&["-n", namespace, "create", "job", "backup", "--from=cronjob/etcd-backup"]);
    cluster.eventually("the backup is made", namespace, || {
        let done = cluster.run(&["-n", namespace, "get", "job", "backup", "-o", "jsonpath={.status.succeeded}"]);
        if done == "1" { Ok(()) } else { Err(done) }
    });
    drop(deleted);

    probe::a_sidecar_that_is_away_takes_no_etcd_down(&cluster);
}
