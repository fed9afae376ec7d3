//! `run --secret` as its example ships it, on a real API server with the shipped rights: one Secret follows the certificate
//! of its pod over renewals and a change of the CA, and everything that is wrong with the Secret is said.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use etcd_tls_contract::certificate::{Bundle, Chain};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::{
    etcd_client::EtcdClient,
    eventually,
    installation::{Installation, LIMIT, Options, SIDECAR_IMAGE},
    local_pod::LocalPod,
    pages, ports,
    process::{Process, binary, run},
    repository,
    secret_agent::{NAME, agent_pod},
    temp::TempDir,
};

const NAMESPACE: &str = "prod";

/// The Secret's three files as a chart would mount them.
struct Files(TempDir);

impl Files {
    async fn read(secrets: &Api<Secret>) -> Result<Self, String> {
        let data = secrets.get(NAME).await.map_err(|e| e.to_string())?.data.unwrap_or_default();
        let files = TempDir::new("secret");
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            let value = data.get(name).filter(|v| !v.0.is_empty()).ok_or_else(|| format!("no {name}"))?;
            files.write(name, &value.0);
        }
        Ok(Self(files))
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).expect("a file")
    }

    fn chain(&self) -> Chain {
        Chain::parse(self.text("tls.crt").as_bytes()).expect("a chain")
    }

    fn bundle(&self) -> Bundle {
        Bundle::parse(self.text("ca.crt").as_bytes()).expect("a bundle")
    }

    /// A client's checks, by OpenSSL: the chain leads to a CA of the bundle, and the key matches. Expiry is not checked, since
    /// it depends on how busy the machine is.
    fn verified(&self) {
        let path = |name: &str| self.0.join(name);
        let openssl = |arguments: &[&str], file: PathBuf| run(Command::new("openssl").args(arguments).arg(file));
        let ca = path("ca.crt").display().to_string();
        openssl(&["verify", "-no_check_time", "-purpose", "sslclient", "-CAfile", &ca], path("tls.crt"));
        let of_certificate = openssl(&["x509", "-noout", "-pubkey", "-in"], path("tls.crt"));
        assert_eq!(of_certificate, openssl(&["pkey", "-pubout", "-in"], path("tls.key")));
    }
}

fn free_port() -> u16 {
    ports::free(Ipv4Addr::UNSPECIFIED)
}

async fn webhook(installation: &Installation, arguments: &[&str]) -> String {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(arguments).env("KUBECONFIG", &installation.api.kubeconfig);
    tokio::task::spawn_blocking(move || run(&mut command)).await.expect("run")
}

/// Makes the process look at once, as a renewal does.
fn nudge(pod: &LocalPod) {
    let file = pod.volume("etcd-tls").join("look");
    std::fs::write(&file, "").expect("write");
    std::fs::remove_file(&file).expect("remove");
}

/// Waits until the container has logged `text` after `position` of its log.
async fn logged(pod: &LocalPod, position: usize, text: &str) {
    eventually(text, LIMIT, || async {
        nudge(pod);
        let log = pod.log("secret");
        if log[position..].contains(text) { Ok(()) } else { Err(log[position..].to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_follows_the_certificate_of_its_pod() {
    let options = Options { sign: vec!["--max-lifetime".into(), "20s".into()], ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    installation.api.namespace(NAMESPACE, &[]).await;
    let policy = format!("users:\n- {{namespace: {NAMESPACE}, serviceAccounts: [{NAME}], users: [app]}}\n");
    let patch = json!({"data": {"policy.yaml": policy}}).to_string();
    let configured =
        ["-n", "etcd-tls-system", "patch", "configmap", "etcd-tls-policy", "--type=merge", "--patch", &patch];
    installation.api.kubectl(&configured);
    let example = repository().join("manifests/examples/secret");
    let create =
        ["create", "-n", NAMESPACE, "-f", &example.join("secret.yaml").display().to_string()].map(str::to_owned);
    let create = create.each_ref().map(String::as_str);
    installation.api.kubectl(&create);
    installation.api.kubectl(&["apply", "-n", NAMESPACE, "-k", &example.display().to_string()]);
    // docs/secret.md: one of another name, for the chart.
    installation.api.namespace("batch", &[]).await;
    let path = pages::path(&[installation.api.kubectl_path().parent().expect("a directory")]);
    let command = pages::blocks("secret.md", "With helm").pop().expect("a command");
    pages::bash(&repository(), &path, Some(&installation.api.kubeconfig), &command).expect("a Secret of another name");
    let made = installation.api.kubectl(&["-n", "batch", "get", "secret", "jobs-etcd", "-o", "json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let is = (made["type"].as_str(), made["metadata"]["labels"]["etcd-tls.dev/secret"].as_str());
    assert_eq!(is, (Some("kubernetes.io/tls"), Some("true")), "{made}");

    let programs = [("etcd-tls-sidecar", binary("etcd-tls-sidecar")), (SIDECAR_IMAGE, binary("etcd-tls-sidecar"))];
    let ip = [[10, 7, 0, 5].into()];
    let admin_port = free_port();
    let mut pod =
        installation.local_pod(NAMESPACE, agent_pod("agent", NAME, admin_port), &ip, &programs).await.expect("a pod");
    pod.start(LIMIT).await.expect("init, sidecar and container");
    let secrets = Api::<Secret>::namespaced(installation.api.client.clone(), NAMESPACE);
    let read = || Files::read(&secrets);
    let first = eventually("the Secret is filled", LIMIT, read).await;
    first.verified();
    assert_eq!(first.chain().common_name, "app");

    // It is renewed, and what somebody empties is written again.
    let renewed = eventually("a renewal", LIMIT, || async {
        let files = read().await?;
        if files.chain().serial == first.chain().serial { Err("the first one".to_owned()) } else { Ok(files) }
    })
    .await;
    renewed.verified();
    assert_ne!(renewed.text("tls.key"), first.text("tls.key"), "a fresh key");
    installation.api.kubectl(&["apply", "-n", NAMESPACE, "-f", &example.join("secret.yaml").display().to_string()]);
    eventually("filled again", LIMIT, || {
        nudge(&pod);
        read()
    })
    .await
    .verified();

    follows_the_ca(&installation, &read).await;
    says_what_is_wrong(&installation, &pod, &secrets, &create, admin_port).await;
    others_get_nothing(&mut installation, &pod, &programs).await;

    // No key is in a log.
    let keys = [first.text("tls.key"), renewed.text("tls.key"), read().await.expect("files").text("tls.key")];
    let log = ["secret", "etcd-tls-init", "etcd-tls-sidecar"].map(|c| pod.log(c)).concat();
    for key in keys {
        let line = key.lines().nth(1).expect("a line of base64");
        assert!(!log.contains(line) && !log.contains("PRIVATE KEY"));
    }
}

/// A rollover: both CAs first, then a certificate of the new one; the Secret's content verifies at every look.
async fn follows_the_ca<F: Future<Output = Result<Files, String>>>(installation: &Installation, read: &impl Fn() -> F) {
    let old = read().await.expect("files").bundle();
    let cluster = format!("{NAMESPACE}/etcd");
    webhook(installation, &["rollover", &cluster, "--domain", "client"]).await;
    let both = eventually("both CAs", LIMIT, || async {
        let files = read().await?;
        files.verified();
        if files.bundle() == old { Err("the old bundle".to_owned()) } else { Ok(files) }
    })
    .await;
    assert!(
        both.bundle().contains(&old) && both.chain().authority() == read().await.expect("files").chain().authority()
    );
    webhook(installation, &["rollover", &cluster, "--domain", "client", "--confirm-clients"]).await;
    eventually("a certificate of the new CA", LIMIT, || async {
        let files = read().await?;
        files.verified();
        let of_old = old.contains_issuer_of(&files.chain());
        if of_old { Err(files.chain().authority()) } else { Ok(()) }
    })
    .await;
}

/// The admin port: `/ready`, and `etcd_tls_secret_current`.
async fn shown(port: u16) -> (bool, bool) {
    let mut http = EtcdClient::plain().connect(&format!("http://127.0.0.1:{port}")).await.expect("the admin port");
    let metrics = http.get("/metrics").await.expect("metrics");
    let current = metrics.contains("\netcd_tls_secret_current 1\n");
    assert!(current || metrics.contains("\netcd_tls_secret_current 0\n"), "{metrics}");
    (http.get("/ready").await.is_ok(), current)
}

async fn says_what_is_wrong(
    installation: &Installation,
    pod: &LocalPod,
    secrets: &Api<Secret>,
    create: &[&str],
    admin_port: u16,
) {
    let current = "the Secret is current";
    let merge = async |patch: Value| {
        secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await.expect("change the Secret");
    };
    // Apparently somebody else's.
    let at = pod.log("secret").len();
    merge(json!({"metadata": {"labels": {"etcd-tls.dev/secret": null}}, "data": {"tls.key": "eA=="}})).await;
    logged(pod, at, "lacks the label etcd-tls.dev/secret=true").await;
    let data = secrets.get(NAME).await.expect("the Secret").data.expect("data");
    assert_eq!(data["tls.key"].0, b"x", "it is left alone");
    assert_eq!(shown(admin_port).await, (false, false));
    merge(json!({"metadata": {"labels": {"etcd-tls.dev/secret": "true"}}})).await;
    logged(pod, at, current).await;
    assert_eq!(shown(admin_port).await, (true, true));

    // Immutable while it would have to change, deleted, of another type, and made again.
    let at = pod.log("secret").len();
    merge(json!({"immutable": true, "data": {"tls.key": "eA=="}})).await;
    logged(pod, at, "it is immutable").await;
    secrets.delete(NAME, &DeleteParams::default()).await.expect("delete");
    logged(pod, at, "create it, of type kubernetes.io/tls").await;
    let opaque = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"etcd-tls.dev/secret": "true"}},
    });
    installation.api.apply(&opaque.to_string());
    logged(pod, at, "not kubernetes.io/tls, and a type cannot be changed").await;
    secrets.delete(NAME, &DeleteParams::default()).await.expect("delete");
    installation.api.kubectl(create);
    logged(pod, at, current).await;

    // Without the right.
    let at = pod.log("secret").len();
    let role = ["-n", NAMESPACE, "patch", "role", NAME, "--type=json", "--patch"];
    let verbs = |verbs: &str| format!(r#"[{{"op": "replace", "path": "/rules/0/verbs", "value": {verbs}}}]"#);
    installation.api.kubectl(&[&role[..], &[&verbs(r#"["update"]"#)]].concat());
    logged(pod, at, "a Role with resourceNames: [etcd-client-tls]").await;
    installation.api.kubectl(&[&role[..], &[&verbs(r#"["get", "update"]"#)]].concat());
    logged(pod, at, current).await;
    Files::read(secrets).await.expect("files").verified();
}

/// Another Secret of the namespace is out of the agent's reach, and another service account gets no certificate of that name.
async fn others_get_nothing(installation: &mut Installation, pod: &LocalPod, programs: &[(&str, PathBuf)]) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""},
        "metadata": {"name": "another", "namespace": NAMESPACE, "labels": {"etcd-tls.dev/secret": "true"}},
    });
    installation.api.apply(&secret.to_string());
    let tokens: &Path = &pod.path("secret", "/var/run/secrets/kubernetes.io/serviceaccount");
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["run", "--secret=another", "--roles=client"]).arg("--token-dir").arg(tokens);
    command
        .arg("--dir")
        .arg(pod.volume("etcd-tls"))
        .arg(format!("--admin-port={}", ports::free(Ipv4Addr::UNSPECIFIED)));
    let mut another = Process::spawn(
        "another",
        command.envs(installation.api.pod_environment()),
        installation.api.directory().path(),
    );
    another.logged("resourceNames: [another]", LIMIT).await;
    another.kill();

    let wrong = agent_pod("wrong", "default", free_port());
    let mut wrong = installation.local_pod(NAMESPACE, wrong, &[[10, 7, 0, 6].into()], programs).await.expect("a pod");
    let refused = wrong.initialise(LIMIT).await.expect_err("no certificate");
    assert!(refused.contains("was denied") && refused.contains("app"), "{refused}");
}
