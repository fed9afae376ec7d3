//! From a chart of the repository's history to today's, and back, on a real API server: nothing is made anew, and no certificate is
//! issued anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use etcd_tls_contract::names;
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    eventually,
    installation::{self, Installation, LIMIT, Options, SIDECAR_IMAGE},
    process::{binary, run},
    repository,
    temp::TempDir,
    tier,
};

use super::{chart, cluster::SYSTEM, helms};

/// The first chart, and one of 29 November 2026.
const OLDER: [&str; 2] = ["9f6deef", "31445c7"];

/// The chart of a commit; says so where git finds no such commit: unpacked from an archive, a shallow clone, or another history.
///
/// # Panics
/// The commit has no chart.
fn older(commit: &str) -> Option<TempDir> {
    let mut look = Command::new("git");
    look.arg("-C").arg(repository()).args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
    if !look.output().is_ok_and(|output| output.status.success()) {
        tier::skip_special(&format!("no history with {commit}"), "a clone with its history");
        return None;
    }
    let dir = TempDir::new("older-chart");
    let script = r#"git -C "$1" archive "$2" manifests/chart | tar -x -C "$3""#;
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", script, "bash"]).arg(repository()).arg(commit);
    run(command.arg(dir.path()));
    assert!(dir.join("manifests/chart/Chart.yaml").is_file(), "{commit} has no chart");
    Some(dir)
}

/// A release of the chart on an API server.
struct Release<'a> {
    api: &'a ApiServer,
    helm: &'a Path,
}

impl Release<'_> {
    fn helm(&self, arguments: &[&str], chart: Option<&Path>) -> String {
        let mut command = Command::new(self.helm);
        command.args(arguments).args(["-n", SYSTEM]).args(chart).env("KUBECONFIG", &self.api.kubeconfig);
        run(command.env("HOME", self.api.directory().path()))
    }

    fn install(&self, older: &Path) {
        self.helm(&["install", "etcd-tls"], Some(older));
    }

    fn upgrade(&self) {
        self.helm(&["upgrade", "etcd-tls"], Some(&chart()));
    }

    /// Each object of the release, by kind and name: its uid, and the selector of a Deployment.
    fn objects(&self) -> BTreeMap<String, (Value, Value)> {
        let manifest = self.helm(&["get", "manifest", "etcd-tls"], None);
        let file = self.api.directory().write("release.yaml", manifest).display().to_string();
        let list: Value = serde_json::from_str(&self.api.kubectl(&["get", "-f", &file, "-o", "json"])).expect("JSON");
        let of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let items = list["items"].as_array().expect("a list").iter();
        items
            .map(|object| {
                let (meta, selector) = (&object["metadata"], &object["spec"]["selector"]);
                let kind = of(&object["kind"]);
                let selector = if kind == "Deployment" { selector.clone() } else { Value::Null };
                (format!("{kind} {}/{}", of(&meta["namespace"]), of(&meta["name"])), (meta["uid"].clone(), selector))
            })
            .collect()
    }
}

/// What both have is the same object.
fn same_objects(before: &BTreeMap<String, (Value, Value)>, after: &BTreeMap<String, (Value, Value)>, what: &str) {
    let both: Vec<_> = before.keys().filter(|key| after.contains_key(*key)).collect();
    assert!(both.len() > 40, "{what}: {both:?}");
    assert_eq!(both.iter().filter(|key| key.starts_with("Deployment ")).count(), 3, "{what}: {both:?}");
    for key in both {
        assert_eq!(before[key], after[key], "{what}: {key} was made anew, or its selector is another");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_of_the_history_is_upgraded_and_rolled_back() {
    let charts: Vec<_> = OLDER.into_iter().filter_map(|commit| Some((commit, older(commit)?))).collect();
    for helm in helms() {
        for (commit, older) in &charts {
            let Some(api) = ApiServer::start().await else { return };
            let what = format!("{commit}, {}", helm.display());
            api.namespace(SYSTEM, &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
            let release = Release { api: &api, helm: &helm };
            release.install(&older.join("manifests/chart"));
            // A policy that was written by hand, a CA, and what `approve` and `sign` write into shipped objects.
            let policy = r#"{"data": {"policy.yaml": "clusterDomain: own.test\n"}}"#;
            api.kubectl(&["-n", SYSTEM, "patch", "configmap", "etcd-tls-policy", "--type=merge", "--patch", policy]);
            let secret = "kube-system-etcd-peer";
            api.kubectl(&["-n", SYSTEM, "create", "secret", "generic", secret, "--from-literal=tls.key=k"]);
            let subject = r#"{"subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:prod"}]}"#;
            let binding = ["clusterrolebinding", "etcd-tls-requesters"];
            api.kubectl(&["patch", binding[0], binding[1], "--type=merge", "--patch", subject]);
            let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &api.ca.pem);
            let add = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": pem}]).to_string();
            api.kubectl(&["patch", "mutatingwebhookconfiguration", "etcd-tls", "--type=json", "--patch", &add]);
            let kept = |step: &str| {
                let get = |arguments: &[&str]| api.kubectl(&[&["get"], arguments].concat());
                let policy =
                    get(&["-n", SYSTEM, "configmap", "etcd-tls-policy", "-o", r"jsonpath={.data.policy\.yaml}"]);
                assert_eq!(policy, "clusterDomain: own.test\n", "{what}: {step}");
                get(&["-n", SYSTEM, "secret", secret]);
                let subjects = get(&[binding[0], binding[1], "-o", "jsonpath={.subjects[*].name}"]);
                assert_eq!(subjects, "system:serviceaccounts:prod", "{what}: {step}");
                let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
                assert_eq!(get(&["mutatingwebhookconfiguration", "etcd-tls", "-o", path]), pem, "{what}: {step}");
            };
            let first = release.objects();
            release.upgrade();
            kept("upgrade");
            let second = release.objects();
            same_objects(&first, &second, &what);
            // helm takes away what the newer one no longer ships.
            for gone in first.keys().filter(|key| !second.contains_key(*key)) {
                let (kind, name) = gone.split_once(' ').expect("a key");
                let (namespace, name) = name.split_once('/').expect("a name");
                let mut arguments = vec!["get", kind, name, "--ignore-not-found", "-o", "name"];
                arguments.extend(["-n", namespace].into_iter().filter(|_| !namespace.is_empty()));
                assert_eq!(api.kubectl(&arguments), "", "{what}: {gone}");
            }
            release.helm(&["rollback", "etcd-tls", "1"], None);
            kept("rollback");
            let third = release.objects();
            assert_eq!(first.keys().collect::<Vec<_>>(), third.keys().collect::<Vec<_>>(), "{what}");
            same_objects(&second, &third, &what);
            release.upgrade();
            kept("the second upgrade");
            same_objects(&first, &release.objects(), &what);
        }
    }
}

/// A pod runs under an install that came from the first chart. The rollback to that and the next upgrade change none of its files. After
/// them, a new pod gets its certificates, and this one renews its own when it is asked to. Nothing is asked while the first chart is in
/// force again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_and_a_rollback_issue_nothing_anew() {
    let Some(older) = older(OLDER[0]) else { return };
    let Some(helm) = super::helm() else { return };
    if !installation::can_start() {
        return;
    }
    let Some(api) = ApiServer::start().await else { return };
    api.namespace(SYSTEM, &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
    let release = Release { api: &api, helm: &helm };
    release.install(&older.join("manifests/chart"));
    release.upgrade();
    let mut installation = Installation::start_on(api, &Options::default()).await;
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"etcd-tls": "dynamic"}}, "spec": {"containers": [{
            "name": "etcd", "image": "etcd", "command": ["etcd"],
            "args": ["--listen-client-urls=https://0.0.0.0:2379", "--advertise-client-urls=https://127.0.0.1:2379"],
        }]}})
    };
    let programs: [(&str, PathBuf); 1] = [(SIDECAR_IMAGE, binary("etcd-tls-sidecar"))];
    let ip = |last: u8| [[10, 0, 0, last].into()];
    let mut etcd = installation.local_pod("prod", pod("etcd-0"), &ip(7), &programs).await.expect("a pod");
    assert!(etcd.run_to_end("etcd-tls-init", LIMIT).await.success(), "{}", etcd.log("etcd-tls-init"));
    // As kubelet projects the annotation `renew`, which is not set yet: a sidecar takes the first value that it finds for an old one.
    let token = etcd.volume("etcd-tls-token");
    fs::write(token.join(names::RENEW_FILE), "").expect("write no value");
    etcd.start_container("etcd-tls-sidecar");
    let read = |directory: &Path| -> BTreeMap<String, Vec<u8>> {
        let files =
            ["peer", "server"].into_iter().flat_map(|role| ["tls.crt", "tls.key"].map(|f| format!("{role}/{f}")));
        files.map(|file| (file.clone(), fs::read(directory.join(&file)).expect("a file"))).collect()
    };
    let files = etcd.volume("etcd-tls");
    let first = read(&files);
    let requests = |api: &ApiServer| -> BTreeSet<String> {
        api.kubectl(&["get", "csr", "-o", "name"]).lines().map(str::to_owned).collect()
    };
    let before = requests(&installation.api);
    let of_pod = |api: &ApiServer| {
        let shown = "jsonpath={.metadata.uid} {.metadata.labels}";
        api.kubectl(&["-n", "prod", "get", "pod", "etcd-0", "-o", shown])
    };
    let pods = of_pod(&installation.api);

    let release = Release { api: &installation.api, helm: &helm };
    release.helm(&["rollback", "etcd-tls", "1"], None);
    release.upgrade();
    let mut second = installation.local_pod("prod", pod("etcd-1"), &ip(8), &programs).await.expect("a pod");
    assert!(second.run_to_end("etcd-tls-init", LIMIT).await.success(), "{}", second.log("etcd-tls-init"));
    assert!(etcd.process("etcd-tls-sidecar").running(), "{}", etcd.log("etcd-tls-sidecar"));
    assert!(read(&files) == first, "a certificate was issued anew: {}", etcd.log("etcd-tls-sidecar"));
    // Two roles of one pod. Those of the first one may be deleted by now.
    let new: Vec<_> = requests(&installation.api).difference(&before).cloned().collect();
    assert_eq!(new.len(), 2, "{new:?}, before {before:?}");
    assert_eq!(of_pod(&installation.api), pods);
    for process in [&mut installation.admit, &mut installation.approve, &mut installation.sign] {
        assert!(process.running(), "{}", process.log_end());
    }

    fs::write(token.join(".renew"), "now").expect("write a value");
    fs::rename(token.join(".renew"), token.join(names::RENEW_FILE)).expect("write a value");
    eventually("the first pod to renew", LIMIT, || async {
        let now = read(&files);
        let left: Vec<_> = first.keys().filter(|file| now[*file] == first[*file]).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}: {}", etcd.log("etcd-tls-sidecar"))) }
    })
    .await;
}
