//! A member with a real etcd, seen by `status`, `check pod` and `check namespace`: well, with a restart due, and by somebody with
//! few rights; and `status --watch` while the API server is away.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{self, Installation, LIMIT, Options, own_address},
    ports,
    process::{Process, binary},
    tier,
};

use super::{status, text};

fn command(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(arguments).env("KUBECONFIG", kubeconfig).output().expect("run etcd-tls-webhook")
}

/// The findings by subject, each with its state and reason, and the exit code. Each that is not ok has a next step.
fn check(kubeconfig: &Path, arguments: &[&str]) -> (BTreeMap<String, (String, String)>, Option<i32>) {
    let output = command(kubeconfig, &[&["check"], arguments, &["-o", "json"]].concat());
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let word = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    for finding in &list {
        assert!(finding["state"] == "ok" || !word(finding, "next").is_empty(), "no next step: {finding}");
    }
    let by_subject = list.iter().map(|f| (word(f, "subject"), (word(f, "state"), word(f, "reason")))).collect();
    (by_subject, output.status.code())
}

/// Waits until the finding on `subject` is in `state` and says `words`.
async fn found(kubeconfig: &Path, arguments: &[&str], subject: &str, state: &str, words: &str) {
    eventually(&format!("{arguments:?}: {subject} is {state}"), LIMIT, || async {
        let (all, _) = check(kubeconfig, arguments);
        let (is, reason) = all.get(subject).cloned().unwrap_or_default();
        if is == state && reason.contains(words) { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_seen_from_all_sides() {
    let Some(etcd) = tier::etcd() else { return };
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let kubeconfig = installation.api.kubeconfig.clone();
    let ip = own_address().expect("the installation has one");
    let [client, peer] = [ip, ip].map(ports::free);
    let programs = [("etcd", etcd.etcd.clone())];
    let mut pod = installation
        .local_pod("prod", installation::member_pod("etcd-0", ip, client, peer), &[ip], &programs)
        .await
        .expect("a member");
    pod.start(LIMIT).await.expect("init, sidecar and etcd");
    eventually("the member is well", LIMIT, || async {
        let output = status(&kubeconfig, &["-n", "prod"]);
        let trusts = text(&output.stdout).contains("loaded");
        if output.status.success() && trusts { Ok(()) } else { Err(format!("{output:?}\n{}", pod.log("etcd"))) }
    })
    .await;

    of_a_member_that_is_well(&kubeconfig);
    of_ports_that_others_have(&installation, ip).await;
    of_its_namespace(&mut installation).await;
    of_a_restart_that_is_due(&installation).await;
    watched_while_the_api_server_is_away(&mut installation).await;
}

/// Its options, a handshake with each port, its requests and certificates.
fn of_a_member_that_is_well(kubeconfig: &Path) {
    let (all, _) = check(kubeconfig, &["pod", "etcd-0", "-n", "prod"]);
    // Admission warns that the members of the test have addresses for names.
    let others = all.iter().filter(|(subject, _)| *subject != "pod prod/etcd-0");
    assert!(others.clone().count() > 8 && others.clone().all(|(_, (state, _))| state == "ok"), "{all:#?}");
    for (subject, words) in [
        ("etcd's options (peer)", "its files, client certificates demanded, and https:// alone"),
        ("etcd's options (server)", "its files, client certificates demanded, and https:// alone"),
        ("peer port", "it speaks TLS, and refuses a caller without a client certificate"),
        ("client port", "it speaks TLS, and refuses a caller without a client certificate"),
        ("certificate peer", "served by etcd: yes"),
        ("certificate server", "served by etcd: yes"),
    ] {
        assert!(
            all.get(subject).is_some_and(|(state, reason)| state == "ok" && reason.contains(words)),
            "{subject}: {all:#?}"
        );
    }
    let requests: Vec<_> = all.iter().filter(|(subject, _)| subject.starts_with("request ")).collect();
    assert!(
        requests.len() == 2 && requests.iter().all(|(_, (_, reason))| reason.starts_with("issued")),
        "{requests:?}"
    );
}

/// A pod that states other options, whose ports are of a server of plain HTTP, and of nobody.
async fn of_ports_that_others_have(installation: &Installation, ip: IpAddr) {
    let listener = std::net::TcpListener::bind((ip, 0)).expect("a port");
    let plain = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let mut other = installation::member_pod("etcd-9", ip, plain, ports::free(ip));
    other["metadata"]["annotations"]["etcd-tls.dev/options"] = "none".into();
    other["spec"]["containers"][0]["args"].as_array_mut().expect("arguments").push("--cert-file=/mine.crt".into());
    installation.api.pod("prod", other).await.expect("a pod");
    installation.api.set_pod_ips("prod", "etcd-9", &[ip]).await;
    let (all, code) = check(&installation.api.kubeconfig, &["pod", "etcd-9", "-n", "prod"]);
    assert_eq!(code, Some(3), "{all:#?}");
    for (subject, state, words) in [
        ("etcd's options (server)", "attention", "--cert-file is /mine.crt, not /etc/etcd/tls/server/tls.crt"),
        ("etcd's options (peer)", "attention", "--peer-cert-file is not set"),
        ("client port", "failing", "it does not speak TLS"),
        ("peer port", "attention", "nothing listens there"),
    ] {
        assert!(
            all.get(subject).is_some_and(|(is, reason)| is == state && reason.contains(words)),
            "{subject}: {all:#?}"
        );
    }
    installation.api.delete_pod("prod", "etcd-9").await;
}

/// All that the namespace needs is there; then one thing after the other is not.
async fn of_its_namespace(installation: &mut Installation) {
    let kubeconfig = installation.api.kubeconfig.clone();
    let arguments = ["namespace", "prod"];
    eventually("the namespace is well", LIMIT, || async {
        let (all, code) = check(&kubeconfig, &arguments);
        if code == Some(0) { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    let (all, _) = check(&kubeconfig, &arguments);
    for subject in [
        "namespace prod",
        "requesters",
        "rolebinding etcd-tls-sign",
        "rolebinding etcd-tls-trust-reader",
        "configmap etcd-tls-trust-etcd",
        "authority prod/etcd peer",
        "authority prod/etcd client",
        "admission policy etcd-tls-requests",
        "workloads",
        "requests",
        "pods",
    ] {
        assert!(all.get(subject).is_some_and(|(state, _)| state == "ok"), "{subject}: {all:#?}");
    }
    // A workload that admission would refuse, and one that a quota would.
    let set = |name: &str, annotations: Value, resources: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": "prod"},
            "spec": {
                "serviceName": name, "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}, "annotations": annotations},
                    "spec": {"containers": [{
                        "name": "etcd", "image": "etcd", "command": ["etcd"], "resources": resources,
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }]},
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }],
            },
        })
    };
    installation.api.apply(&set("good", json!({}), json!({})).to_string());
    installation.api.apply(&set("bad", json!({"etcd-tls.dev/duration": "a day"}), json!({})).to_string());
    let (all, code) = check(&kubeconfig, &arguments);
    let bad = all.get("StatefulSet bad").cloned().unwrap_or_default();
    assert!(bad.0 == "failing" && bad.1.contains("etcd-tls.dev/duration") && code == Some(3), "{all:#?}");
    assert!(!all.contains_key("StatefulSet good"), "{all:#?}");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": "prod"},
        "spec": {"hard": {"pods": "0"}},
    });
    installation.api.apply(&quota.to_string());
    // Its controller does not run here.
    let counted = json!({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}).to_string();
    let patch = ["patch", "resourcequota", "full", "-n", "prod", "--subresource=status", "--type=merge", "-p"];
    installation.api.kubectl(&[&patch[..], &[&counted]].concat());
    found(&kubeconfig, &arguments, "StatefulSet good", "attention", "exceeded quota").await;
    installation.api.kubectl(&["-n", "prod", "delete", "resourcequota/full", "statefulset/bad", "statefulset/good"]);
    // Of many, fifty are tried.
    let many = |n: u32| {
        let mut one = set(&format!("many-{n}"), json!({}), json!({}));
        one["metadata"]["labels"] = json!({"many": "true"});
        one
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": (0..52).map(many).collect::<Vec<_>>()});
    installation.api.apply(&list.to_string());
    let (all, code) = check(&kubeconfig, &arguments);
    assert_eq!(all["workloads"], ("unknown".to_owned(), "2 more were not tried".to_owned()), "{all:#?}");
    assert!(code == Some(4) && all.keys().all(|subject| !subject.starts_with("StatefulSet")), "{all:#?}");
    installation.api.kubectl(&["-n", "prod", "delete", "statefulset", "-l", "many=true"]);

    // A policy that is not enforced, and a binding that is away while nobody makes it again.
    let deny = |action: &str| {
        let patch = json!({"spec": {"validationActions": [action]}}).to_string();
        let name = "etcd-tls-requests";
        installation.api.kubectl(&["patch", "validatingadmissionpolicybinding", name, "--type=merge", "-p", &patch]);
    };
    deny("Audit");
    found(&kubeconfig, &arguments, "admission policy etcd-tls-requests", "failing", "does not deny").await;
    deny("Deny");
    installation.approve.signal(nix::sys::signal::Signal::SIGSTOP);
    installation.api.kubectl(&["-n", "prod", "delete", "rolebinding", "etcd-tls-sign", "etcd-tls-trust-reader"]);
    found(&kubeconfig, &arguments, "rolebinding etcd-tls-sign", "failing", "there is none").await;
    let readers = "rolebinding etcd-tls-trust-reader";
    found(&kubeconfig, &arguments, readers, "attention", "default etcd-tls-trust-etcd").await;
    // Somebody who cannot see whether that is chosen is told so. It is no fault where it is.
    let rules = json!([{"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list"]}]);
    let viewer = installation.api.account("prod", "asks", rules).await;
    let of = ["--verb=create", "--resource=subjectaccessreviews.authorization.k8s.io"];
    installation.api.kubectl(&[&["create", "clusterrole", "asks"][..], &of].concat());
    installation.api.kubectl(&[
        "create",
        "clusterrolebinding",
        "asks",
        "--clusterrole=asks",
        "--serviceaccount=prod:asks",
    ]);
    found(&viewer, &arguments, readers, "unknown", "cannot get deployments.apps").await;
    let flag = |op: &str| {
        let first = "/spec/template/spec/containers/0/args/0";
        let patch = json!([{"op": op, "path": first, "value": "--no-trust-watch"}]);
        let deployment = ["-n", "etcd-tls-system", "patch", "deployment", "etcd-tls-approve", "--type=json", "-p"];
        installation.api.kubectl(&[&deployment[..], &[&patch.to_string()]].concat());
    };
    flag("add");
    found(&kubeconfig, &arguments, readers, "ok", "approve runs with --no-trust-watch").await;
    flag("remove");
    installation.approve.signal(nix::sys::signal::Signal::SIGCONT);
    found(&kubeconfig, &arguments, "rolebinding etcd-tls-sign", "ok", "sign may publish").await;
    found(&kubeconfig, &arguments, readers, "ok", "may watch their trust").await;

    // Namespaces that are not it.
    let (all, code) = check(&kubeconfig, &["namespace", "none"]);
    assert!(code == Some(3) && all["namespace none"].1.contains("no such namespace"), "{all:?}");
    installation.api.namespace("plain", &[]).await;
    let (all, code) = check(&kubeconfig, &["namespace", "plain"]);
    assert!(code == Some(3) && all["namespace plain"].1.contains("neither it nor any pod"), "{all:?}");
    // Without rights: which.
    let nobody = installation.api.account("prod", "nobody", json!([])).await;
    let output = command(&nobody, &["check", "namespace", "prod"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(77) && said.contains("cannot get namespaces"), "{output:?}");
}

/// The next CA is published. The member's etcd has to be restarted, and its sidecar may not. Somebody who may not ask the sidecar
/// sees that by what the signer reports.
async fn of_a_restart_that_is_due(installation: &Installation) {
    let kubeconfig = installation.api.kubeconfig.clone();
    let rules = json!([{"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list"]}]);
    let viewer = installation.api.account("prod", "viewer", rules).await;
    let peer = |kubeconfig: &Path| {
        let output = status(kubeconfig, &["-n", "prod", "-o", "json"]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let trust = shown["pods"][0]["trust"].as_array().expect("trust").clone();
        trust.into_iter().find(|trust| trust["domain"] == "peer").expect("of peers")
    };
    assert_eq!(peer(&viewer)["state"], "unknown");
    let output = command(&kubeconfig, &["rollover", "prod/etcd", "--domain=peer"]);
    assert!(output.status.success(), "{output:?}");
    eventually("the restart is shown with its reason", LIMIT, || async {
        let shown = text(&status(&kubeconfig, &["-n", "prod"]).stdout);
        let due = "etcd must be restarted to load the new trust bundle (peer); that waits: you restart it: the sidecar may not";
        let next = "restart etcd's container, one member at a time: docs/operations.md, Restarts";
        if shown.contains(due) && shown.contains(next) && shown.contains("rollover of peer: published") { Ok(()) } else { Err(shown) }
    })
    .await;
    eventually("the signer's report shows it, too", LIMIT, || async {
        let trust = peer(&viewer);
        if trust["state"] == "due" && trust["reported"] == true { Ok(()) } else { Err(trust.to_string()) }
    })
    .await;
    assert!(peer(&kubeconfig)["reported"].is_null());
}

/// It goes on where it was, and says what it waits for.
async fn watched_while_the_api_server_is_away(installation: &mut Installation) {
    let directory = installation.api.directory().dir("watch");
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["status", "-n", "prod", "-o", "name", "--watch", "--interval=1s"]);
    command.env("KUBECONFIG", &installation.api.kubeconfig);
    let mut watch = Process::spawn("watch", &mut command, &directory);
    let shown = |watch: &Process| watch.log().matches("pod/etcd-0\n").count();
    watch.logged("pod/etcd-0", LIMIT).await;
    installation.api.restart(Duration::from_secs(3)).await;
    watch.logged("trying again", LIMIT).await;
    let before = shown(&watch);
    eventually("it is shown again", LIMIT, || async {
        if shown(&watch) > before { Ok(()) } else { Err(watch.log_end()) }
    })
    .await;
    assert!(watch.running(), "{}", watch.log());
}
