//! Tier 2: an operator's commands on the installed system, with the real command, the real sidecar and a real API server.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    process::Output,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::certificate::Chain;
use k8s_openapi::{ByteString, api::core::v1::Pod};
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    downward::downward,
    eventually,
    installation::{self, Installation, LIMIT, Options, own_address},
    local_pod::LocalPod,
    pki::{Ca, LeafOptions},
    process::{binary, which},
    tier,
};
use tokio::process::Command;

/// A pod whose sidecar holds two certificates and has no etcd.
fn client_pod(name: &str) -> Value {
    installation::client_pod(name, "client,metrics")
}

async fn webhook(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(arguments).env("KUBECONFIG", kubeconfig).kill_on_drop(true);
    command.output().await.expect("run etcd-tls-webhook")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The serial number of each certificate on disk.
fn serials(pod: &LocalPod) -> BTreeMap<String, String> {
    let directory = pod.volume("etcd-tls");
    let serial = |role: &str| {
        let pem = std::fs::read(directory.join(role).join("tls.crt")).expect("a certificate");
        (role.to_owned(), Chain::parse(&pem).expect("a chain").serial)
    };
    ["client", "metrics"].map(serial).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renew_gives_new_certificates_at_once_and_once() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("web", &[]).await;
    let kubeconfig = installation.api.kubeconfig.clone();
    // The API server's proxy dials no loopback address.
    let ip: IpAddr = own_address().expect("the installation has one");
    let programs = [("app", which("true").expect("true"))];
    let mut pod = installation.local_pod("web", client_pod("app-0"), &[ip], &programs).await.expect("create a pod");
    let pods = Api::<Pod>::namespaced(installation.api.client.clone(), "web");
    let created = pods.get("app-0").await.expect("the pod");
    let kubelet = downward(&created, pod.volume("etcd-tls-token"), pods.clone());
    pod.initialise(LIMIT).await.expect("init and sidecar");
    let wait = format!("--timeout={}s", LIMIT.as_secs());
    let renew = async |target: &str, more: &[&str]| {
        webhook(&kubeconfig, &[&["renew", target, "--wait", wait.as_str()], more].concat()).await
    };

    // One role of a pod.
    let first = serials(&pod);
    let output = renew("web/app-0", &["--role=client"]).await;
    let second = serials(&pod);
    assert!(output.status.success(), "{output:?}\n{}", pod.log("etcd-tls-sidecar"));
    assert!(second["client"] != first["client"] && second["metrics"] == first["metrics"], "{first:?} {second:?}");
    assert!(
        text(&output.stdout).contains(&format!("pod app-0 client: renewed, serial {}", second["client"])),
        "{output:?}"
    );

    // All roles of a cluster.
    let output = renew("web/etcd", &[]).await;
    let third = serials(&pod);
    assert!(output.status.success(), "{output:?}");
    assert!(third["client"] != second["client"] && third["metrics"] != second["metrics"], "{second:?} {third:?}");

    // By everybody with the right to edit pods, with any value, even one longer than other annotations may be.
    let editor = installation
        .api
        .account(
            "web",
            "editor",
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch"]}]),
        )
        .await;
    let value = format!("etcd-tls.dev/renew={}", "x".repeat(20_000));
    let mut annotate = Command::new(installation.api.kubectl_path());
    annotate.args(["annotate", "pod", "app-0", "-n", "web", "--overwrite", &value]).env("KUBECONFIG", &editor);
    let output = annotate.output().await.expect("run kubectl");
    assert!(output.status.success(), "{output:?}");
    let renewed = || async {
        let now = serials(&pod);
        if now.iter().all(|(role, serial)| third[role] != *serial) { Ok(()) } else { Err(format!("{now:?}")) }
    };
    eventually("a renewal by any value", LIMIT, renewed).await;

    // The value that a sidecar finds at its start has no effect; only the next value causes a renewal.
    let fourth = serials(&pod);
    pod.process("etcd-tls-sidecar").terminate(LIMIT).await;
    pod.start_container("etcd-tls-sidecar");
    eventually("the sidecar is back", LIMIT, || async {
        let output = webhook(&kubeconfig, &["status", "-n", "web"]).await;
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    let output = renew("web/app-0", &["--role=metrics"]).await;
    let fifth = serials(&pod);
    assert!(output.status.success(), "{output:?}\n{}", pod.log("etcd-tls-sidecar"));
    assert!(fifth["client"] == fourth["client"] && fifth["metrics"] != fourth["metrics"], "{fourth:?} {fifth:?}");

    // An impossible renewal is reported, with an exit code of its own.
    let viewer = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]);
    let viewer = installation.api.account("web", "viewer", viewer).await;
    let output = webhook(&viewer, &["renew", "web/app-0"]).await;
    assert_eq!(output.status.code(), Some(77), "{output:?}");
    assert!(
        text(&output.stderr).contains("cannot patch pods in namespace web: your account lacks this right"),
        "{output:?}"
    );
    for (target, more, words) in [
        ("web/none", "--role=client", "no pod of namespace web that has opted in and has not ended is named none"),
        ("web/app-0", "--role=peer", "web/app-0 holds no certificate of role peer"),
    ] {
        let output = webhook(&kubeconfig, &["renew", target, more]).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(words), "{output:?}");
    }
    kubelet.abort();
    let output = webhook(&kubeconfig, &["renew", "web/app-0", "--wait", "--timeout=2s"]).await;
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(text(&output.stderr).contains("pod app-0 client: still the certificate of before"), "{output:?}");
    assert_eq!(serials(&pod), fifth);
}

/// The findings of `check`, by subject: state and reason.
async fn findings(kubeconfig: &Path, arguments: &[&str]) -> (BTreeMap<String, (String, String)>, Option<i32>) {
    let output = webhook(kubeconfig, &[&["check"], arguments, &["-o", "json"]].concat()).await;
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let word = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    for finding in &list {
        assert!(finding["state"] == "ok" || !word(finding, "next").is_empty(), "no next step: {finding}");
        assert!(word(finding, "see").starts_with("docs/check.md#"), "{finding}");
    }
    let by_subject = list.iter().map(|f| (word(f, "subject"), (word(f, "state"), word(f, "reason")))).collect();
    (by_subject, output.status.code())
}

/// Waits until the finding on `subject` is in `state` and says `words`, and nothing else is wrong but what is in `also`.
async fn found(kubeconfig: &Path, subject: &str, state: &str, words: &str, also: &[&str]) {
    eventually(&format!("{subject} is {state}"), LIMIT, || async {
        let (all, code) = findings(kubeconfig, &["-n", "web"]).await;
        let (is, reason) = all.get(subject).cloned().unwrap_or_default();
        let others = all.iter().filter(|(other, (state, _))| {
            state != "ok" && *other != subject && !also.iter().any(|also| other.starts_with(also))
        });
        if is == state && reason.contains(words) && code == Some(3) && others.count() == 0 {
            Ok(())
        } else {
            Err(format!("{code:?}: {all:#?}"))
        }
    })
    .await;
}

/// A pod that needs admission is refused with the reason, and not left to hang: `admit` stands still, and `admit` has an expired pair.
async fn admission_that_is_ill(installation: &mut Installation) {
    let pod = json!({
        "metadata": {
            "generateName": "ill-", "labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "client"},
        },
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    });
    installation.admit.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let said = installation.api.pod("web", pod.clone()).await.expect_err("nobody answers").to_string();
    // The API server gives the time that it has waited for, and calls once.
    let timeout = said.contains("pod.etcd-tls.dev") && said.contains("timeout=5s");
    assert!(timeout && said.contains("deadline exceeded") && began.elapsed() < LIMIT, "{said}");
    installation.admit.signal(Signal::SIGCONT);
    eventually("admission again", LIMIT, || installation.api.pod("web", pod.clone())).await;

    // `sign` is away, or it would renew the pair.
    installation.sign.kill();
    let ca = Ca::new("admit");
    let now = SystemTime::now();
    let expired = ca.leaf(&LeafOptions {
        dns: vec!["etcd-tls-admit.etcd-tls-system.svc".to_owned()],
        not_before: now - Duration::from_secs(7200),
        not_after: now - Duration::from_secs(3600),
        ..LeafOptions::default()
    });
    let data = json!({"data": {"tls.crt": ByteString(expired.cert.into()), "tls.key": ByteString(expired.key.into())}});
    let data = data.to_string();
    installation.api.kubectl(&["-n", "etcd-tls-system", "patch", "secret", "etcd-tls-admit-serving", "-p", &data]);
    let json = installation.api.kubectl(&["get", "mutatingwebhookconfiguration", "etcd-tls", "-o", "json"]);
    let mut configuration: Value = serde_json::from_str(&json).expect("JSON");
    for webhook in configuration["webhooks"].as_array_mut().expect("webhooks") {
        webhook["clientConfig"]["caBundle"] = json!(ByteString(ca.pem.clone().into()));
    }
    installation.api.apply(&configuration.to_string());
    eventually("a refusal that says why", LIMIT, || async {
        match installation.api.pod("web", pod.clone()).await {
            Ok(_) => Err("taken".to_owned()),
            Err(error) if error.to_string().contains("certificate has expired") => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    let output = webhook(&installation.api.kubeconfig, &["check", "-n", "web"]).await;
    let said = text(&output.stdout);
    let named = "failing   admission: the API server does not take the certificate of admit: ";
    let next = "next: kubectl -n etcd-tls-system logs deploy/etcd-tls-sign";
    let lines = said.split_once(named).map(|(_, rest)| rest.lines().take(2).collect::<Vec<_>>()).unwrap_or_default();
    assert!(lines.len() == 2 && lines[0].contains("expired") && lines[1].trim() == next, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_finds_what_is_broken_one_thing_at_a_time() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let kubeconfig = installation.api.kubeconfig.clone();
    installation.api.namespace("web", &[]).await;
    eventually("all is well", LIMIT, || async {
        let (all, code) = findings(&kubeconfig, &["-n", "web"]).await;
        if code == Some(0) && all.len() > 12 { Ok(()) } else { Err(format!("{code:?}: {all:#?}")) }
    })
    .await;

    // This machine's clock, more than 20 s from the API server's.
    if let Some(library) = tier::faketime() {
        for clock in ["+40s", "-40s"] {
            let mut command = Command::new(binary("etcd-tls-webhook"));
            command.args(["check", "-n", "web", "-o", "json"]).env("KUBECONFIG", &kubeconfig).kill_on_drop(true);
            command.env("LD_PRELOAD", &library).env("FAKETIME", clock).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            let output = command.output().await.expect("run check");
            let list: Vec<Value> = serde_json::from_slice(&output.stdout).expect("findings");
            let of_clock = list.iter().find(|finding| finding["subject"] == "clock").expect("a finding");
            assert!(of_clock["state"] == "attention" && output.status.code() == Some(3), "{clock}: {list:#?}");
        }
    }

    // A policy that is not read.
    let policy = |text: &str| {
        let data = json!({"data": {"policy.yaml": text}}).to_string();
        installation.api.kubectl(&[
            "-n",
            "etcd-tls-system",
            "patch",
            "configmap",
            "etcd-tls-policy",
            "--type=merge",
            "-p",
            &data,
        ]);
    };
    policy("nonsense: 1");
    found(&kubeconfig, "policy", "failing", "nonsense", &[]).await;
    // One by which there are too many CAs.
    policy("authoritiesInAll: 1");
    let words = "the policy allows 1 in all namespaces: a new cluster gets none";
    found(&kubeconfig, "authorities", "attention", words, &[]).await;
    policy("");

    // A binding that denies no more.
    let deny = |name: &str, action: &str| {
        let patch = json!({"spec": {"validationActions": [action]}}).to_string();
        let binding = ["patch", "validatingadmissionpolicybinding", name, "--type=merge", "-p", &patch];
        installation.api.kubectl(&binding);
    };
    deny("etcd-tls-secrets", "Audit");
    found(&kubeconfig, "admission policy etcd-tls-secrets", "failing", "does not deny", &[]).await;
    deny("etcd-tls-secrets", "Deny");

    // An entry of the webhook that somebody edited: admission is tried in a namespace that it still takes.
    let edit = |team: Value| {
        let selector = json!({"matchLabels": {"team": team}});
        let patch = json!({"webhooks": [{"name": "namespace.etcd-tls.dev", "objectSelector": selector}]}).to_string();
        installation.api.kubectl(&[
            "patch",
            "mutatingwebhookconfiguration",
            "etcd-tls",
            "--type=strategic",
            "-p",
            &patch,
        ]);
    };
    edit("a".into());
    let words = "namespace.etcd-tls.dev has another objectSelector than shipped";
    found(&kubeconfig, "webhook configuration", "attention", words, &[]).await;
    edit(Value::Null);

    // The policies of components, where they are installed: by the argument of `sign` too.
    let of_components = [
        "etcd-tls-certificate-requests",
        "etcd-tls-certificate-request-deletes",
        "etcd-tls-pod-certificates",
        "etcd-tls-cluster-trust-bundles",
    ];
    let subject = |name: &str| format!("admission policy {name}");
    let (all, _) = findings(&kubeconfig, &["-n", "web"]).await;
    assert!(of_components.iter().all(|name| !all.contains_key(&subject(name))), "{all:#?}");
    installation.api.apply_components(&["cert-manager", "pod-certificates", "cluster-trust-bundles"]);
    for name in of_components {
        deny(name, "Audit");
        found(&kubeconfig, &subject(name), "failing", "does not deny", &[]).await;
        deny(name, "Deny");
    }
    let (all, _) = findings(&kubeconfig, &["-n", "web"]).await;
    assert!(of_components.iter().all(|name| all[&subject(name)].0 == "ok"), "{all:#?}");
    let both = "validatingadmissionpolicy,validatingadmissionpolicybinding";
    for name in of_components {
        installation.api.kubectl(&["delete", both, name]);
        // Of cert-manager's two, one is looked for where the other one is.
        let also: Vec<String> = of_components.iter().map(|name| subject(name)).collect();
        let also: Vec<&str> = also.iter().map(String::as_str).collect();
        found(&kubeconfig, &subject(name), "failing", "the policy is missing", &also).await;
    }
    installation.api.apply_kustomization("manifests");

    // A right that is taken away.
    installation.api.kubectl(&["-n", "etcd-tls-system", "delete", "rolebinding", "etcd-tls-sign"]);
    let also = ["admission policy", "lease etcd-tls-sign"];
    found(&kubeconfig, "rights of etcd-tls-sign", "failing", "create secrets", &also).await;
    installation.api.apply_kustomization("manifests");

    admission_that_is_ill(&mut installation).await;
    // Admission that is away, and a leader that is.
    installation.admit.kill();
    found(&kubeconfig, "admission", "failing", "does not reach admit", &["lease"]).await;
    installation.approve.kill();
    found(&kubeconfig, "lease etcd-tls-approve", "failing", "has not renewed it", &["admission", "lease"]).await;

    // Without rights everything is unknown, and each right is named.
    let nobody = installation.api.account("web", "nobody", json!([])).await;
    let (all, code) = findings(&nobody, &["-n", "web"]).await;
    assert_eq!(code, Some(4), "{all:#?}");
    for (subject, words) in [
        ("webhook configuration", "cannot get mutatingwebhookconfigurations"),
        ("admission", "cannot create pods in namespace"),
        ("lease etcd-tls-sign", "cannot get leases"),
        ("admission policy etcd-tls-trust", "cannot get validatingadmissionpolicies"),
        ("rights of etcd-tls-sign", "cannot create subjectaccessreviews"),
        ("policy", "cannot get configmaps"),
    ] {
        let (state, reason) = all.get(subject).cloned().unwrap_or_default();
        assert!(state == "unknown" && reason.contains(words), "{subject}: {state}: {reason}");
    }

    // A policy file, and pods that have no sidecar.
    let directory = installation.api.directory().dir("policies");
    for (text, code) in [("clusterDomain: k8s.example", 0), ("clusterDomian: x", 3)] {
        let file = directory.join("policy.yaml");
        std::fs::write(&file, text).expect("write a policy");
        let output = webhook(&kubeconfig, &["check", "policy", "-f", &file.display().to_string()]).await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    let plain = json!({"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "app", "image": "app"}]}});
    installation.api.pod("web", plain).await.expect("create a pod");
    let (all, code) = findings(&kubeconfig, &["pod", "plain", "-n", "web"]).await;
    assert!(code == Some(3) && all["pod web/plain"].1.contains("neither it nor its namespace has opted in"), "{all:?}");
    let (all, code) = findings(&kubeconfig, &["pod", "none", "-n", "web"]).await;
    assert!(code == Some(3) && all["pod web/none"].1.contains("there is no such pod"), "{all:?}");
}
