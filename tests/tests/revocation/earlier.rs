//! Members that a version without revocation lists injected.

use std::process::Command;

use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{Installation, LIMIT},
    process::binary,
    repository,
    revocation::ended,
};

/// With the label of its own, and without any: its namespace has opted in, and that version labelled no pod.
const MEMBERS: [(&str, bool); 2] = [("etcd-0", true), ("etcd-1", false)];

/// `revoke` ends with 1 and their names, and `status` and `check namespace` show them.
pub async fn members_that_an_earlier_version_injected_are_named(installation: &Installation) {
    let api = &installation.api;
    // Today's admission does not see the one without the label.
    api.namespace("before", &[]).await;
    let golden = std::fs::read_to_string(repository().join("tests/fixtures/injected-without-lists.yaml"));
    let golden: Value = serde_saphyr::from_str(&golden.expect("the fixture")).expect("a pod");
    for (name, labelled) in MEMBERS {
        let mut pod = golden.clone();
        let labels = if labelled { json!({"etcd-tls": "dynamic"}) } else { json!({}) };
        pod["metadata"] = json!({"name": name, "labels": labels});
        let made = api.pod("before", pod).await.expect("a pod");
        let told = format!("{:?}", made.spec).contains("CRL_FILE");
        assert!(!told, "admission leaves what is injected as it is: {made:?}");
    }
    api.kubectl(&["label", "namespace", "before", "etcd-tls=dynamic"]);

    let (code, said) = eventually("revoked", LIMIT, || async {
        let ended = ended(&api.kubeconfig, &["before/etcd", "--serial", "4f0a", "--force"]).await;
        // Until the signer has its CA.
        let (code, said) = ended.expect_err("members without a list");
        if said.contains("takes revoked certificates") { Ok((code, said)) } else { Err(format!("{code:?}: {said}")) }
    })
    .await;
    assert_eq!(code, Some(1), "{said}");
    let shown = |arguments: &[&str]| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let output = command.args(arguments).env("KUBECONFIG", &api.kubeconfig).output().expect("run the command");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (status, check) = (shown(&["status", "-n", "before"]), shown(&["check", "namespace", "before"]));
    for (name, _) in MEMBERS {
        let takes = "takes revoked certificates on its peer and client port: an earlier version injected into it";
        assert!(said.contains(&format!("pod {name} {takes}")), "{name}: {said}");
        assert!(
            status.lines().any(|line| line.starts_with(name)) && status.contains("recreate it"),
            "{name}: {status}"
        );
        assert!(check.contains(&format!("pod before/{name}")), "{name}: {check}");
    }
}
