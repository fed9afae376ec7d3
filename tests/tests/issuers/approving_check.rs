//! `check` for an approver of cert-manager's requests.

use std::process::Command;

use serde_json::{Value, json};
use tests::{eventually, process::binary};

use crate::{
    approving::{Asked, SYSTEM, approve, install, issuer_of, lab, pod, ways},
    scene::{LIMIT, Lab},
};

/// `check` sees whether cert-manager's own approver is off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_whether_the_approver_of_cert_manager_is_off() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    let ways = ways(&lab);
    let way = &ways[0];
    let (subject, check) = ("approver of cert-manager", |lab: &Lab| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let output =
            command.args(["check", "-o", "json"]).env("KUBECONFIG", &lab.api.kubeconfig).output().expect("run check");
        serde_json::from_slice::<Vec<Value>>(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    });
    let state = |lab: &Lab| {
        let findings = check(lab);
        let found = findings.into_iter().find(|finding| finding["subject"] == subject);
        found.map(|finding| (finding["state"].as_str().unwrap_or_default().to_owned(), finding))
    };
    assert!(state(&lab).is_none(), "nothing is decided for issuers of cert-manager");
    let argument = json!([{
        "op": "add", "path": "/spec/template/spec/containers/0/args/-",
        "value": "--approve-issuer=issuers.cert-manager.io/cm.company",
    }]);
    let argument = argument.to_string();
    lab.api.kubectl(&["patch", "-n", SYSTEM, "deployment", "etcd-tls-approve", "--type=json", "--patch", &argument]);
    let of = |expected: &str| {
        let (state, finding) = state(&lab).expect("a finding");
        assert_eq!(state, expected, "{finding}");
        finding
    };
    assert!(of("unknown")["next"].as_str().is_some_and(|next| next.starts_with("kubectl ")));
    let controller = |arguments: &[&str]| {
        let labels = json!({"app.kubernetes.io/name": "cert-manager", "app.kubernetes.io/component": "controller"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "cert-manager", "namespace": "default", "labels": labels},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "c", "image": "c", "args": arguments}]},
                },
            },
        });
        lab.api.apply(&deployment.to_string());
    };
    controller(&["--v=2"]);
    assert!(of("failing")["next"].as_str().is_some_and(|next| next.contains("disableAutoApproval")));
    controller(&["--v=2", "--controllers=*,-certificaterequests-approver"]);
    of("ok");
    // What is seen counts before what an argument says.
    let approve = approve(&lab, &[]).await;
    let _issuer = lab.issuer(way.namespace);
    let pod = pod(&lab, way.namespace, "etcd-0", &[("issuer", &issuer_of(way))]).await;
    let name = way.ask(&pod, &Asked::of(way.namespace, "etcd-0")).await;
    eventually("an approval", LIMIT, || async {
        way.condition(&name, "Approved").await.ok_or_else(|| approve.log_end())
    })
    .await;
    assert!(of("failing")["reason"].as_str().is_some_and(|reason| reason.contains(&name)));
}
