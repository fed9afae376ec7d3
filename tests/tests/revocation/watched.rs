//! Lists that come by the watch of the trust ConfigMap.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use etcd_tls_contract::names;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::{
    eventually,
    installation::{Installation, LIMIT, Options},
    local_pod::LocalPod,
    ports,
    process::{binary, run, which},
    relay::Relay,
    revocation::{TRUST, on_disk, revoke},
};

/// The lists on disk of a running client, and what its sidecar shows of them.
pub(super) struct Client {
    pod: LocalPod,
    files: PathBuf,
    admin_port: u16,
}

impl Client {
    pub(super) async fn start(installation: &mut Installation, namespace: &str, cluster: &str) -> Self {
        let admin_port = ports::loopback();
        let name = format!("of-{cluster}");
        let pod = json!({
            "metadata": {"name": name, "annotations": {
                "etcd-tls.dev/roles": "client", "etcd-tls.dev/cluster": cluster, "etcd-tls.dev/admin-port": admin_port.to_string(),
            }},
            "spec": {"serviceAccountName": "app", "containers": [{"name": "app", "image": "app", "command": ["app"]}]},
        });
        let programs = [("app", which("true").expect("true"))];
        let ip = [10, 7, u8::from(namespace == "prod"), if cluster == "etcd" { 11 } else { 12 }].into();
        let mut pod = installation.local_pod(namespace, pod, &[ip], &programs).await.expect("a client");
        pod.initialise(LIMIT).await.expect("init and sidecar");
        let files = pod.path("app", names::DEFAULT_MOUNT_PATH).join("client");
        Self { pod, files, admin_port }
    }

    /// Waits until the list on disk has these serial numbers.
    pub(super) async fn has(&self, what: &str, serials: &[&str]) {
        eventually(what, LIMIT, || async {
            let list = on_disk(&self.files);
            if list.entries().keys().eq(serials) { Ok(()) } else { Err(format!("{list:?}\n{}", self.log())) }
        })
        .await;
    }

    /// The directory with the list.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    pub(super) async fn shows(&self, metric: &str) {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin_port);
        eventually(metric, LIMIT, || async {
            let mut curl = Command::new("curl");
            let output = tokio::task::spawn_blocking({
                let url = url.clone();
                move || curl.args(["-sS", &url]).output()
            });
            let output = output.await.expect("run").expect("curl").stdout;
            let text = String::from_utf8_lossy(&output).into_owned();
            if text.lines().any(|line| line == metric) { Ok(()) } else { Err(format!("{text}\n{}", self.log())) }
        })
        .await;
    }

    fn log(&self) -> String {
        self.pod.log(names::SIDECAR_CONTAINER)
    }
}

/// kubelet's next sync is far away: the API server brings lists and bundles to whom it lets watch them, whatever the cluster's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_comes_without_kubelet_where_the_trust_config_map_may_be_watched() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    installation.api.service_account("prod", "app").await;
    // Somebody else's binding keeps the right from this namespace.
    let reader = ["-n", "held", "create", "rolebinding", "etcd-tls-trust-reader", "--clusterrole=view", "--user=emil"];
    installation.api.namespace("held", &[]).await;
    installation.api.kubectl(&reader);
    installation.api.kubectl(&["label", "namespace", "held", "etcd-tls=dynamic"]);
    installation.api.service_account("held", "app").await;
    let admin = installation.api.kubeconfig.clone();
    let mut watching = Client::start(&mut installation, "prod", "etcd").await;
    let relay = Relay::to(installation.api.port()).await;
    installation.pods_reach_it_by = Some(relay.port);
    let named = Client::start(&mut installation, "prod", "other").await;
    installation.pods_reach_it_by = None;
    let mut other = Client::start(&mut installation, "held", "etcd").await;
    for client in [&watching, &named] {
        client.shows("etcd_tls_trust_watched 1").await;
    }
    other.shows("etcd_tls_trust_watched 0").await;
    other.has("an empty list", &[]).await;
    installation.hold_mounts(true);
    let first = on_disk(&watching.files);
    for cluster in ["prod/etcd", "prod/other", "held/etcd"] {
        revoke(&admin, &[cluster, "--serial", "4f0a"]).await.expect("revoked");
    }
    let answered = Instant::now();
    watching.has("the new list", &["4f0a"]).await;
    named.has("the new list of a cluster of another name", &["4f0a"]).await;
    println!("the lists were seen on disk {:?} after the signer's last answer", answered.elapsed());
    assert!(on_disk(&other.files).entries().is_empty(), "without the right nothing comes but the mounted list");
    eventually("the warning", LIMIT, || async {
        match other.log().matches("the trust ConfigMap is not watched").count() {
            1 => Ok(()),
            count => Err(format!("{count}: {}", other.log())),
        }
    })
    .await;
    assert!(!watching.log().contains("the trust ConfigMap is not watched"), "{}", watching.log());

    // A bundle comes in the same way.
    let cas = |client: &Client| {
        let bundle = fs::read_to_string(client.files.join(names::CA_FILE)).expect("a bundle");
        bundle.matches("BEGIN CERTIFICATE").count()
    };
    for cluster in ["prod/etcd", "prod/other", "held/etcd"] {
        let mut rollover = Command::new(binary("etcd-tls-webhook"));
        rollover.args(["rollover", cluster, "--domain", "client"]).env("KUBECONFIG", &admin);
        tokio::task::spawn_blocking(move || run(&mut rollover)).await.expect("run");
    }
    for client in [&watching, &named] {
        eventually("the next CA", LIMIT, || async { if cas(client) == 2 { Ok(()) } else { Err(client.log()) } }).await;
    }
    assert_eq!(cas(&other), 1, "without the right nothing comes but the mounted bundle");

    // The API server goes away for a while, for one of them alone.
    relay.open(false);
    named.shows("etcd_tls_trust_watched 0").await;
    revoke(&admin, &["prod/other", "--serial", "4f0b"]).await.expect("revoked");

    // Watched content is checked like mounted content. Nobody repairs it now.
    installation.sign.kill();
    let maps: Api<ConfigMap> = Api::namespaced(installation.api.client.clone(), "prod");
    let good = maps.get(TRUST).await.expect("there").binary_data.expect("lists");
    let kept = on_disk(&watching.files);
    let huge = vec![0x30; 700 * 1024];
    let cut = &good["client.crl"].0[..good["client.crl"].0.len() - 1];
    for (what, der) in [
        ("garbage", b"garbage".as_slice()),
        ("nothing", b""),
        ("cut short", cut),
        ("a huge one", &huge),
        ("an older one", first.der()),
        ("another CA's", &good["peer.crl"].0),
    ] {
        let bad = json!({"binaryData": {"client.crl": ByteString(der.to_vec())}});
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(bad)).await.expect("damage");
        watching.shows("etcd_tls_revocation_list_refused{domain=\"client\"} 1").await;
        assert_eq!(on_disk(&watching.files), kept, "{what}");
        let mended = json!({"binaryData": {"client.crl": good["client.crl"]}});
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(mended)).await.expect("mend");
        watching.shows("etcd_tls_revocation_list_refused{domain=\"client\"} 0").await;
    }

    // One that is not there replaces nothing, also for a sidecar that starts anew.
    let none = json!({"binaryData": null});
    maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(none)).await.expect("remove");
    watching.pod.process(names::SIDECAR_CONTAINER).kill();
    watching.pod.start_container(names::SIDECAR_CONTAINER);
    watching.shows("etcd_tls_trust_watched 1").await;
    watching.shows("etcd_tls_revocation_list_entries{domain=\"client\"} 1").await;
    assert_eq!(on_disk(&watching.files), kept);
    let mended = json!({"binaryData": good});
    maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(mended)).await.expect("mend");

    // However long it was away, its next attempt is not far away.
    assert!(!on_disk(&named.files).entries().contains_key("4f0b"), "it came without the API server");
    eventually("six attempts", LIMIT, || async {
        let attempts = relay.refused();
        if attempts >= 6 { Ok(()) } else { Err(format!("{attempts}: {}", named.log())) }
    })
    .await;
    relay.open(true);
    let back = Instant::now();
    named.has("the list of meanwhile", &["4f0a", "4f0b"]).await;
    println!("the list was seen on disk {:?} after the API server was back", back.elapsed());
    named.shows("etcd_tls_trust_watched 1").await;

    // kubelet brings it to the one that may not watch, and an older one to nobody.
    installation.hold_mounts(false);
    other.has("kubelet's", &["4f0a"]).await;
    assert_eq!(on_disk(&watching.files), kept);

    // Without that binding, `approve` gives the right. A sidecar that starts anew asks at once.
    installation.api.kubectl(&["-n", "held", "delete", "rolebinding", "etcd-tls-trust-reader"]);
    let given = [
        "-n",
        "held",
        "auth",
        "can-i",
        "watch",
        "configmaps/etcd-tls-trust-etcd",
        "--as=system:serviceaccount:held:app",
    ];
    let groups = ["--as-group=system:serviceaccounts:held", "--as-group=system:serviceaccounts"];
    eventually("the right", LIMIT, || async {
        let output = installation.api.kubectl_command(&[&given[..], &groups].concat()).output().expect("run kubectl");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.trim() == "yes" { Ok(()) } else { Err(said) }
    })
    .await;
    other.pod.process(names::SIDECAR_CONTAINER).kill();
    other.pod.start_container(names::SIDECAR_CONTAINER);
    other.shows("etcd_tls_trust_watched 1").await;
}
