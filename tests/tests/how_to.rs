//! The commands of docs/authorities.md, as they stand there, typed by an administrator.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{env, fs, path::Path, process::Command};

use etcd_tls_contract::{names, role::Role};
use lab::{Asking, Lab};
use signer::{cas, issue, issued, issuer, member, sign, trust};
use tests::{repository, temp::TempDir};

/// The command of the page that begins so.
fn command(beginning: &str) -> String {
    let page = fs::read_to_string(repository().join("docs/authorities.md")).expect("docs/authorities.md");
    let found = page.lines().filter_map(|line| line.strip_prefix("    ")).find(|line| line.starts_with(beginning));
    found.unwrap_or_else(|| panic!("no command {beginning}")).to_owned()
}

/// Runs a command line in `directory`, as cluster-admin.
fn shell(lab: &Lab, directory: &Path, line: &str) -> Result<String, String> {
    let kubectl = lab.api.kubectl_path();
    let path = format!("{}:{}", kubectl.parent().expect("a directory").display(), env::var("PATH").expect("PATH"));
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(directory).env("PATH", path).env("KUBECONFIG", &lab.api.kubeconfig);
    let output = command.output().expect("run a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ca_is_restored_from_the_backup_or_begun_anew() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let namespace = "my-namespace";
    lab.api.namespace(namespace, &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = member(&lab, namespace, "etcd-0", Some("10.6.0.1")).await;
    let (_, first) = issue(&lab, &pod, Role::Peer, None).await;
    let before = trust(&lab, namespace, "etcd").await;

    let dir = TempDir::new("how-to");
    shell(&lab, dir.path(), &command("kubectl -n etcd-tls-system get secrets")).expect("a backup");
    let peers = cas(&lab, namespace).await.into_iter().find(|n| n.ends_with("-peer")).expect("the peers' CA");
    let lose = format!("kubectl -n etcd-tls-system delete secret {peers}");
    shell(&lab, dir.path(), &lose).expect("lose a CA");
    lab.event_of(namespace, &names::trust_config_map("etcd"), "is lost").await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;

    // The other authority's Secret is still there, so the command ends with an error, having restored the one.
    let said = shell(&lab, dir.path(), &command("kubectl create -f authorities.yaml")).expect_err("one is there");
    assert!(said.contains("AlreadyExists") && !said.contains(&peers), "{said}");
    let restored = issued(&lab, &asking.name).await;
    assert_eq!(issuer(&restored), issuer(&first), "the same CA");
    assert_eq!(trust(&lab, namespace, "etcd").await, before);

    shell(&lab, dir.path(), &lose).expect("lose it again");
    lab.event_of(namespace, &names::trust_config_map("etcd"), "is lost").await;
    shell(&lab, dir.path(), &command("kubectl -n my-namespace delete configmap")).expect("begin anew");
    // No kubelet ends them here.
    let restart = format!("{} --grace-period=0 --force", command("kubectl -n my-namespace delete pod"));
    shell(&lab, dir.path(), &restart).expect("restart the pods");
    let pod = member(&lab, namespace, "etcd-0", Some("10.6.0.1")).await;
    let [peer, client, _] = trust(&lab, namespace, "etcd").await;
    assert!(peer != before[0] && client == before[1], "another CA for the peers alone");
    let (_, anew) = issue(&lab, &pod, Role::Peer, None).await;
    assert_ne!(issuer(&anew), issuer(&first), "of the new CA");
}
