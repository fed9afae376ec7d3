//! What goes wrong in and around pods.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::names;
use k8s_openapi::ByteString;
use serde_json::json;
use tests::{
    eventually,
    installation::{Installation, LIMIT, SIDECAR_IMAGE, client_pod},
    local_pod::LocalPod,
    pki::{Ca, LeafOptions},
    ports,
    process::{binary, run},
    repository,
    secret_agent::{NAME, agent_pod},
    temp::TempDir,
};

use crate::scrape;

/// The namespace of the Secret, and that of a cluster whose trust ConfigMap the pods have no right to watch.
const SECRETS: &str = "secrets";
const HELD: &str = "held";

/// Makes it possible to [`ask`] a pod that is not started yet: the first value that a sidecar finds is an old one.
pub fn may_be_asked(pod: &LocalPod) {
    ask(pod, 0);
}

/// Has a pod renew, as the annotation `renew` does.
pub fn ask(pod: &LocalPod, value: u32) {
    let token = pod.volume("etcd-tls-token");
    fs::write(token.join(".renew"), value.to_string()).expect("write a value");
    fs::rename(token.join(".renew"), token.join(names::RENEW_FILE)).expect("write a value");
}

/// An entry point of etcd that can have it serve copies of its files.
pub struct EntryPoint(PathBuf);

impl EntryPoint {
    pub fn new(directory: &TempDir, etcd: &Path) -> Self {
        let files = "ETCD_CERT_FILE ETCD_KEY_FILE ETCD_PEER_CERT_FILE ETCD_PEER_KEY_FILE";
        let script = format!(
            "#!/bin/sh\nset -e\nif [ -e \"$0.copies\" ]; then\n  for name in {files}; do\n    \
             eval \"cp \\\"\\$$name\\\" \\\"$0.$name\\\"; export $name=\\\"$0.$name\\\"\"\n  done\nfi\nexec {} \"$@\"\n",
            etcd.display()
        );
        let path = directory.write("entry-point", script);
        run(std::process::Command::new("chmod").arg("+x").arg(&path));
        Self(path)
    }

    pub fn program(&self) -> &Path {
        &self.0
    }

    /// Starts etcd again, with copies of its files or with the files.
    pub async fn copy(&self, pod: &mut LocalPod, copies: bool) {
        let flag = self.0.with_file_name("entry-point.copies");
        if copies {
            fs::write(&flag, "").expect("write a file");
        } else {
            fs::remove_file(&flag).expect("remove a file");
        }
        pod.process("etcd").terminate(LIMIT).await;
        pod.start_container("etcd");
    }
}

/// A client whose node can stop to mount the trust, and the agent of a Secret.
pub struct Causes {
    held: LocalPod,
    held_at: String,
    _agent: LocalPod,
}

impl Causes {
    /// Starts both, with all well; gives the addresses to scrape, in this order.
    pub async fn start(installation: &mut Installation) -> (Self, [String; 2]) {
        let example = repository().join("manifests/examples/secret");
        let apply = |file: &Path| {
            let flag = if file.is_dir() { "-k" } else { "-f" };
            installation.api.kubectl(&["apply", "-n", SECRETS, flag, &file.display().to_string()]);
        };
        for namespace in [HELD, SECRETS] {
            installation.api.namespace(namespace, &[]).await;
        }
        // Somebody else's binding keeps the right to watch from this one.
        let reader = ["create", "rolebinding", "etcd-tls-trust-reader", "--clusterrole=view", "--user=emil"];
        installation.api.kubectl(&[&["-n", HELD][..], &reader].concat());
        apply(&example.join("secret.yaml"));
        apply(&example);

        let programs = [
            ("app", PathBuf::from("/bin/true")),
            ("etcd-tls-sidecar", binary("etcd-tls-sidecar")),
            (SIDECAR_IMAGE, binary("etcd-tls-sidecar")),
        ];
        let mut manifest = client_pod("app-0", "client");
        manifest["metadata"]["annotations"]["etcd-tls.dev/cluster"] = HELD.into();
        let port = manifest["metadata"]["annotations"]["etcd-tls.dev/admin-port"].as_str().expect("a port");
        let held_at = format!("127.0.0.1:{port}");
        let mut held = installation.local_pod(HELD, manifest, &[[10, 7, 0, 5].into()], &programs).await.expect("a pod");
        may_be_asked(&held);
        held.start(LIMIT).await.expect("a client");

        let port = ports::loopback();
        let mut manifest = agent_pod("agent", NAME, port);
        // Policy allows its own name to any service account.
        manifest["metadata"]["annotations"].as_object_mut().expect("annotations").remove("etcd-tls.dev/user");
        let mut agent =
            installation.local_pod(SECRETS, manifest, &[[10, 7, 0, 6].into()], &programs).await.expect("a pod");
        agent.start(LIMIT).await.expect("an agent");
        let agent_at = format!("127.0.0.1:{port}");
        shows(&agent_at, "etcd_tls_secret_current 1").await;
        (Self { held, held_at: held_at.clone(), _agent: agent }, [held_at, agent_at])
    }

    /// The Secret is deleted. Nodes mount no change any more, and the next CA signs without waiting for them.
    pub async fn begin(&mut self, installation: &Installation) {
        installation.api.kubectl(&["-n", SECRETS, "delete", "secret", NAME]);
        installation.hold_mounts(true);
        let mut rollover = std::process::Command::new(binary("etcd-tls-webhook"));
        rollover.args(["rollover", &format!("{HELD}/{HELD}"), "--domain=client", "--force", "--yes"]);
        run(rollover.env("KUBECONFIG", &installation.api.kubeconfig));
        let mut asked = 0;
        eventually("a certificate of the next CA", LIMIT, || {
            asked += 1;
            ask(&self.held, asked);
            let address = &self.held_at;
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let shown = scrape(address);
                if shown.contains("\netcd_tls_certificate_waits{") { Ok(()) } else { Err(shown) }
            }
        })
        .await;
    }

    /// Nodes mount changes again.
    pub fn end(&self, installation: &Installation) {
        installation.hold_mounts(false);
    }
}

async fn shows(address: &str, line: &str) {
    eventually(line, LIMIT, || async {
        let shown = scrape(address);
        if shown.lines().any(|l| l == line) { Ok(()) } else { Err(shown) }
    })
    .await;
}

/// A patch of the serving pair's Secret: one that ends in an hour.
pub fn ending_pair() -> String {
    let leaf = Ca::new("an operator's CA").leaf(&LeafOptions {
        dns: vec!["etcd-tls-admit.etcd-tls-system.svc".to_owned()],
        not_after: SystemTime::now() + Duration::from_secs(3600),
        ..LeafOptions::default()
    });
    json!({"data": {"tls.crt": ByteString(leaf.cert.into()), "tls.key": ByteString(leaf.key.into())}}).to_string()
}
