//! The log: a line about one request, one review or one renewal has the fields of its span, in every process.

use std::process::Command;

use etcd_tls_telemetry::span;
use serde_json::{Value, json};
use tests::{
    installation::{Installation, Options},
    process::{Process, binary},
    repository,
    signer::{BOOTSTRAP, HOSTS, LIMIT, Signer},
};

/// The first line of a JSON log with this message, once it is there.
async fn line(process: &Process, message: &str) -> Value {
    process.logged(&format!("\"message\":\"{message}\""), LIMIT).await;
    of(&process.log(), message)
}

fn of(log: &str, message: &str) -> Value {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .find(|line| line["message"] == message && !line["span"].is_null())
        .unwrap_or_else(|| panic!("{message}: {log}"))
}

/// The line's span is `name`, has no other fields than those, and `values` among them.
fn has(line: &Value, name: &str, fields: &[&str], values: &Value) {
    let span = line["span"].as_object().expect("a span");
    assert_eq!(span["name"], name, "{line}");
    assert!(span.keys().all(|key| key == "name" || fields.contains(&key.as_str())), "{line}");
    for (field, value) in values.as_object().expect("fields") {
        assert!(fields.contains(&field.as_str()), "{field}");
        let logged = span.get(field).and_then(Value::as_str).unwrap_or_default();
        // One that ends with a dash is the beginning of a generated one.
        let expected = value.as_str().expect("text");
        let is = logged == expected || (expected.ends_with('-') && logged.starts_with(expected));
        assert!(is && !logged.is_empty(), "{field} is {logged:?}, not {expected:?}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_and_its_request_are_told_by_the_same_fields() {
    let mut signer = Signer::started(&HOSTS.iter().chain(&["--log-format=json"]).copied().collect::<Vec<_>>()).await;
    let kubeconfig = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--log-format=json", "--name=m1", "--roles=peer", "--ipaddrs=127.0.0.2", "--timeout=60s"]);
    command.arg("--cacrt").arg(signer.dir.join("ca.crt")).arg("--assetsdir").arg(signer.dir.join("m1"));
    command.arg("--kubeconfig").arg(&kubeconfig);
    let output = command.output().expect("run");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let renewal = of(&log, "certificate received and verified");
    let ours = json!({"role": "peer", "pod_uid": "m1", "signer": "peer.etcd-tls.dev/kube-system.etcd", "csr": "etcd-tls-m1-peer-"});
    has(&renewal, "renewal", &span::RENEWAL, &ours);
    assert!(renewal["serial"].is_string(), "{renewal}");
    let decided = line(signer.process(), "request decided on").await;
    let theirs = json!({"csr": renewal["span"]["csr"], "signer": ours["signer"], "requester": "bootstrap"});
    has(&decided, "csr", &span::CSR, &theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approver_signer_and_admission_name_the_pod() {
    let all = ["--log-format=json", "--log-level=info,etcd_tls_webhook::admit=debug"].map(str::to_owned).to_vec();
    let Some(mut installation) = Installation::start(&Options { all, ..Options::default() }).await else { return };
    installation.api.namespace("prod", &[]).await;
    let manifest = json!({
        "metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "peer"}},
        "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
    });
    let ips = ["10.0.0.7".parse().expect("an address")];
    let mut pod = installation.local_pod("prod", manifest, &ips, &[]).await.expect("a pod");
    pod.initialise(LIMIT).await.expect("certificates");
    let pod = json!({"pod": "prod/etcd-0"});
    let reviews = installation.admit.log();
    let review = reviews
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == "review" && line["span"]["pod"] == "prod/etcd-0")
        .unwrap_or_else(|| panic!("{reviews}"));
    has(&review, "review", &span::REVIEW, &pod);
    assert!(review["span"]["review_uid"].is_string(), "{review}");
    for (process, message) in [(&installation.approve, "approved"), (&installation.sign, "issued")] {
        let line = line(process, message).await;
        let signer = json!({"pod": "prod/etcd-0", "signer": "peer.etcd-tls.dev/prod.etcd", "csr": "etcd-tls-",
            "requester": "system:serviceaccount:prod:default"});
        has(&line, "csr", &span::CSR, &signer);
    }
}

/// docs/operations.md lists the spans and their fields, and no others.
#[test]
fn every_field_is_documented() {
    let page = std::fs::read_to_string(repository().join("docs/operations.md")).expect("docs/operations.md");
    for (name, fields) in [("csr", &span::CSR[..]), ("review", &span::REVIEW), ("renewal", &span::RENEWAL)] {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).expect(name);
        let column = row.split('|').nth(3).expect("three columns");
        let documented: Vec<&str> =
            column.split('`').skip(1).step_by(2).filter(|word| !word.starts_with('<')).collect();
        assert_eq!(documented, fields, "{name}");
    }
}
