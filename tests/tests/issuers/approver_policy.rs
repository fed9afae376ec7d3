//! cert-manager's approver-policy itself in place of its default approver. `APPROVER_POLICY_BIN` names a directory with the program
//! `approver-policy`, and its CustomResourceDefinition in `crds`.

use std::{path::Path, process::Command};

use serde_json::Value;
use tests::{
    cert_manager::{itself::Programs, programs},
    eventually, pages, ports,
    process::Process,
};

use crate::{
    approving::{Asked, Way, lab, pod},
    approving_rules::Sidecar,
    scene::{Kind, LIMIT, Lab},
};

const NAMESPACE: &str = "cm";
/// Its own.
const SYSTEM: &str = "approver-policy";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approver_policy_itself_approves_by_the_requesters_rights() {
    let Some(programs) =
        programs::directory("APPROVER_POLICY_BIN", "approver-policy", "approver-policy, and its CRD in crds")
    else {
        return;
    };
    let itself = Programs::named().is_some();
    let Some(lab) = (if itself { Lab::of_cert_manager_itself().await } else { lab().await }) else { return };
    let issuer = lab.issuer(NAMESPACE);
    issuer.leave_approval_to_others();
    lab.grant(NAMESPACE, Kind::CertManager);
    let approver = start(&lab, &programs).await;

    let member = pod(&lab, NAMESPACE, "etcd-0", &[]).await;
    let mut sidecar =
        Sidecar::new(&lab, NAMESPACE, &member, "peer,server", &issuer.ca(), "--issuer=cert-manager:Issuer/company")
            .await;
    let way = Way { lab: &lab, kind: Kind::CertManager, namespace: NAMESPACE, signer: String::new() };
    let [page] = &pages::blocks("issuers.md", "approver-policy")[..] else { panic!("one block") };
    let page = page.replace("my-namespace", NAMESPACE).replace("company-ca", "company");
    let (policy, right) = page.split_once("---\n").expect("a policy and its right");
    // A policy that the requester may not use decides nothing, whatever it allows.
    lab.api.apply(policy);
    let open = way.ask(&member, &Asked::of(NAMESPACE, "etcd-0")).await;
    ready(&lab, &approver).await;
    way.is_open(&open).await;
    lab.api.apply(right);
    let approved = eventually("an approval", LIMIT, || async {
        way.condition(&open, "Approved").await.ok_or_else(|| approver.log_end())
    })
    .await;
    assert_eq!(approved["reason"], "policy.cert-manager.io", "{approved}");
    sidecar.init().await.unwrap_or_else(|log| panic!("{log}\n{}", approver.log_end()));
    let serial = sidecar.chain("peer").serial;

    // A name that the policy does not allow, asked for by the same pod.
    let mut asked = Asked::of(NAMESPACE, "etcd-0");
    asked.common_name = "root".to_owned();
    let root = way.ask(&member, &asked).await;
    let denied = eventually("a denial", LIMIT, || async {
        way.condition(&root, "Denied").await.ok_or_else(|| approver.log_end())
    })
    .await;
    assert!(denied["message"].as_str().expect("a message").contains("commonName"), "{denied}");
    assert!(way.status(&root).await["certificate"].is_null());

    // Its denial of the sidecar's own request is said with its reason, and the files stay.
    lab.api.apply(&policy.replace(r#"ipAddresses: {values: ["*"]}"#, r#"ipAddresses: {values: ["10.0.0.1"]}"#));
    ready(&lab, &approver).await;
    sidecar.move_to(&lab, NAMESPACE, &member, "10.9.9.9").await;
    sidecar.says("was denied", "No policy approved this request").await;
    assert_eq!(sidecar.chain("peer").serial, serial, "the files stay");
}

async fn start(lab: &Lab, programs: &Path) -> Process {
    programs::install_definitions(&lab.api, &programs.join("crds")).await;
    lab.api.namespace(SYSTEM, &[]).await;
    let directory = lab.api.directory().dir("approver-policy");
    let mut command = Command::new(programs.join("approver-policy"));
    command.arg("--kubeconfig").arg(&lab.api.kubeconfig).arg("--log-level=2");
    command.arg(format!("--leader-election-namespace={SYSTEM}")).arg(format!("--webhook-ca-secret-namespace={SYSTEM}"));
    command.arg("--webhook-host=127.0.0.1").arg(format!("--webhook-port={}", ports::loopback()));
    command.arg("--webhook-certificate-dir").arg(&directory).arg("--metrics-bind-address=0");
    command.arg(format!("--readiness-probe-bind-address=127.0.0.1:{}", ports::loopback()));
    Process::spawn("approver-policy", &mut command, &directory)
}

/// Waits until the approver has taken the policy as it is now.
async fn ready(lab: &Lab, approver: &Process) {
    eventually("the policy to be ready", LIMIT, || async {
        let text = lab.api.kubectl(&["get", "certificaterequestpolicy", "etcd-members", "-o", "json"]);
        let policy: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = |c: &Value| {
            c["type"] == "Ready" && c["status"] == "True" && c["observedGeneration"] == policy["metadata"]["generation"]
        };
        if conditions.iter().any(ready) { Ok(()) } else { Err(format!("{policy}: {}", approver.log_end())) }
    })
    .await;
}
