//! Tier 2: admission as users see it: warnings at `kubectl apply` of a workload, and the marks of an injected pod.

use std::{
    fmt::Write as _,
    process::Output,
    time::{Duration, Instant},
};

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{Installation, LIMIT, Options},
    temp::TempDir,
};

/// The second of a webhook that does not answer, and as much for a difference between two runs of kubectl.
const IN_TIME: Duration = Duration::from_millis(2000);

/// A member that speaks plain HTTP.
fn plain() -> Value {
    json!([{
        "name": "etcd", "image": "etcd",
        "command": ["etcd", "--listen-client-urls=http://0.0.0.0:2379", "--listen-peer-urls=https://0.0.0.0:2380"],
    }])
}

/// A workload of one pod template.
fn workload(kind: &str, name: &str, labels: &Value, containers: &Value) -> Value {
    let mut labels = labels.clone();
    labels["app"] = name.into();
    let restart = if matches!(kind, "Job" | "CronJob") { "OnFailure" } else { "Always" };
    let template = json!({
        "metadata": {"labels": labels},
        "spec": {"containers": containers, "restartPolicy": restart},
    });
    let selector = json!({"matchLabels": {"app": name}});
    let (version, spec) = match kind {
        "Job" => ("batch/v1", json!({"template": template})),
        "CronJob" => ("batch/v1", json!({"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": template}}})),
        "StatefulSet" => ("apps/v1", json!({"selector": selector, "serviceName": name, "template": template})),
        _ => ("apps/v1", json!({"selector": selector, "template": template})),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// `kubectl apply` in `namespace`; returns its standard error.
fn apply(installation: &Installation, namespace: &str, object: &Value) -> (bool, String) {
    let file = TempDir::new("workload");
    let path = file.write("workload.json", object.to_string());
    let mut command = installation.api.kubectl_command(&["apply", "-n", namespace, "-f", &path.display().to_string()]);
    let Output { status, stderr, .. } = command.output().expect("run kubectl");
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_the_warnings_of_a_workload() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let configurations = Api::<ValidatingWebhookConfiguration>::all(installation.api.client.clone());
    eventually("caBundle of the warnings", LIMIT, || async {
        let webhooks = configurations.get("etcd-tls").await.map_err(|e| e.to_string())?.webhooks.unwrap_or_default();
        let written = webhooks.len() == 2 && webhooks.iter().all(|w| w.client_config.ca_bundle.is_some());
        if written { Ok(()) } else { Err("not written yet".to_owned()) }
    })
    .await;
    installation.api.namespace("opted-in", &[("etcd-tls", "dynamic")]).await;
    installation.api.namespace("other", &[]).await;
    let dynamic = json!({"etcd-tls": "dynamic"});
    let plain_url = "Warning: etcd-tls: container etcd: --listen-client-urls still says http://0.0.0.0:2379";

    // The API server needs a moment to take the configuration in.
    eventually("a warning", LIMIT, || async {
        let object = workload("StatefulSet", "first", &json!({}), &plain());
        let (_, said) = apply(&installation, "opted-in", &object);
        installation.api.kubectl(&["delete", "-n", "opted-in", "statefulset", "first", "--ignore-not-found"]);
        if said.contains(plain_url) { Ok(()) } else { Err(said) }
    })
    .await;
    let mut problems = String::new();
    let mut expect = |what: &str, (applied, said): (bool, String), wanted: &[&str], not: &[&str]| {
        let long = said.lines().any(|line| line.starts_with("Warning: ") && line.chars().count() > 256 + 9);
        let fine = applied && !long && wanted.iter().all(|w| said.contains(w)) && not.iter().all(|w| !said.contains(w));
        if !fine {
            let _ = writeln!(problems, "{what}: applied {applied}: {said}");
        }
    };
    for kind in ["StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob"] {
        let name = kind.to_lowercase();
        // By the namespace's label, and by the template's.
        let by_namespace = workload(kind, &name, &json!({}), &plain());
        expect(kind, apply(&installation, "opted-in", &by_namespace), &[plain_url], &[]);
        let by_template = workload(kind, &name, &dynamic, &plain());
        expect(kind, apply(&installation, "other", &by_template), &[plain_url], &[]);
        if kind == "Job" {
            continue;
        }
        // An update that leaves the template alone says nothing; one that changes it does.
        let mut labelled = by_template.clone();
        labelled["metadata"]["labels"] = json!({"x": "y"});
        expect(kind, apply(&installation, "other", &labelled), &[], &["Warning: etcd-tls"]);
        let changed = labelled.to_string().replace("http://0.0.0.0:2379", "http://0.0.0.0:12379");
        let changed: Value = serde_json::from_str(&changed).expect("JSON");
        expect(kind, apply(&installation, "other", &changed), &["still says http://0.0.0.0:12379"], &[]);
    }
    // The pods of a StatefulSet have their names below its serviceName.
    let flag = "--advertise-client-urls=https://named-0.other.opted-in.svc:2379";
    let object = workload(
        "StatefulSet",
        "named",
        &json!({}),
        &json!([{"name": "etcd", "image": "etcd", "command": ["etcd", flag]}]),
    );
    let said = ["names named-0.other.opted-in.svc, which no certificate will hold; write named-0.named.opted-in.svc"];
    expect("serviceName", apply(&installation, "opted-in", &object), &said, &[]);
    // Not opted in, or opted out.
    let object = workload("Deployment", "a", &json!({}), &plain());
    expect("not opted in", apply(&installation, "other", &object), &[], &["Warning: etcd-tls"]);
    let object = workload("Deployment", "b", &json!({"etcd-tls": "disabled"}), &plain());
    expect("opted out", apply(&installation, "opted-in", &object), &[], &["Warning: etcd-tls"]);
    // Reasons to refuse a pod appear as complete warnings, and refuse nothing.
    let refused = json!([{"name": "etcd", "image": "etcd", "command": ["etcd"], "ports": [{"containerPort": 9179}]}]);
    let object = workload("StatefulSet", "c", &json!({}), &refused);
    let wanted = [
        "etcd-tls: a pod of this template will be refused: port 9179 is etcd-tls-sidecar's",
        "etcd-tls.dev/admin-port",
    ];
    expect("refused", apply(&installation, "opted-in", &object), &wanted, &[]);
    assert!(problems.is_empty(), "{problems}");

    marks(&installation).await;

    // Without an answer of admission, a workload is applied all the same, after the second that each entry is given.
    for webhook in configurations.get("etcd-tls").await.expect("the configuration").webhooks.unwrap_or_default() {
        assert_eq!(
            (webhook.timeout_seconds, webhook.failure_policy.as_deref()),
            (Some(1), Some("Ignore")),
            "{}",
            webhook.name
        );
    }
    installation.admit.signal(Signal::SIGSTOP);
    applied_in_time(&installation, "hangs", "other", &dynamic);
    applied_in_time(&installation, "hangs", "opted-in", &json!({}));
    installation.admit.kill();
    applied_in_time(&installation, "away", "other", &dynamic);
}

/// Applies workloads while admission does not answer, and each time one in a namespace that is not opted in; of five, for a machine that is
/// busy with others' work, one must take no longer than the other and the webhook's time.
fn applied_in_time(installation: &Installation, case: &str, namespace: &str, labels: &Value) {
    let mut took = Vec::new();
    for attempt in 0..5 {
        let bare = workload("Deployment", &format!("{case}-bare-{attempt}"), &json!({}), &plain());
        let began = Instant::now();
        assert!(apply(installation, "other", &bare).0);
        let alone = began.elapsed();
        let object = workload("Deployment", &format!("{case}-{attempt}"), labels, &plain());
        let began = Instant::now();
        let (applied, said) = apply(installation, namespace, &object);
        took.push((began.elapsed(), alone));
        assert!(applied && !said.contains("Warning: etcd-tls"), "{case} in {namespace}: {said}");
        if took.last().is_some_and(|(took, alone)| *took < *alone + IN_TIME) {
            return;
        }
    }
    panic!("{case} in {namespace}: took {took:?}");
}

/// An injected pod carries the label and the annotation; its creator's forgeries are replaced.
async fn marks(installation: &Installation) {
    let pod = json!({
        "metadata": {"name": "marked", "annotations": {"etcd-tls.dev/warnings": "[\"all is well\"]"}},
        "spec": {"containers": plain()},
    });
    let made = installation.api.pod("opted-in", pod).await.expect("create a pod");
    let metadata = made.metadata;
    assert_eq!(metadata.labels.unwrap_or_default()["etcd-tls.dev/injected"], "true");
    let said: Vec<String> =
        serde_json::from_str(&metadata.annotations.unwrap_or_default()["etcd-tls.dev/warnings"]).expect("a JSON list");
    assert!(said.iter().any(|w| w.contains("still says http://0.0.0.0:2379")), "{said:?}");
    let listed = installation.api.kubectl(&["get", "pods", "-A", "-l", "etcd-tls.dev/injected=true", "-o", "name"]);
    assert!(listed.contains("pod/marked"), "{listed}");
}
