//! The operator's commands print text that others wrote: the API server's answers, a pod's annotations, labels of its metrics,
//! its command line. None of it reaches the terminal as a control sequence. The API server here is a stand-in that says the
//! worst there is.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tests::{process::binary, temp::TempDir};

/// The title of a window, a cleared screen by C0 and by C1, a deletion, text from right to left and apart, and a line of its own.
const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}2J\u{7f}\u{8}\u{202e}\u{2066}\u{2069}\u{200b}HOSTILE\r\nforged";

#[path = "terminal/interrupted.rs"]
mod interrupted;
#[path = "terminal/mistakes.rs"]
mod mistakes;

/// Answers every request of one command line after the other, until the test's process ends.
fn serve(answer: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static) -> String {
    let answer = Arc::new(answer);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || exchange(stream, &*answer));
        }
    });
    url
}

/// One request and its answer. A command that has gone is no failure.
fn exchange(mut stream: TcpStream, answer: &dyn Fn(&str, &str) -> (u16, String)) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => bytes.extend_from_slice(&part[..n]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    while bytes.len() < head + length.unwrap_or(0) {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => bytes.extend_from_slice(&part[..n]),
        }
    }
    let line = String::from_utf8_lossy(&bytes[..head]);
    let mut words = line.split(' ');
    let (code, body) = answer(words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn kubeconfig(dir: &TempDir, name: &str, url: &str) -> std::path::PathBuf {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {"server": url}}], "users": [{"name": "t", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", "namespace": "prod"}}],
    });
    dir.write(name, config.to_string())
}

fn run(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(arguments).env_clear().env("KUBECONFIG", kubeconfig).env("HOME", "/nonexistent");
    command.output().expect("run")
}

/// Neither stream holds a control character but line ends, or one that changes how others are shown; and the text was there.
fn is_plain(what: &str, output: &Output, said: &str) {
    let mut all = String::new();
    for bytes in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what}: {e}: {output:?}"));
        let turns = |c: &char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
        let bad = text.chars().find(|c| *c != '\n' && c.is_control() || turns(c));
        assert_eq!(bad, None, "{what}: {output:?}");
        all += text;
    }
    assert!(all.contains(said), "{what}: {output:?}");
}

fn status(code: u16) -> (u16, String) {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": HOSTILE, "message": HOSTILE,
    });
    (code, status.to_string())
}

/// A Secret of a backup that names an authority that nobody asks for.
fn backup(dir: &TempDir) -> String {
    // YAML has no such characters, and JSON does not escape them.
    let signer = HOSTILE.replace(['\u{9b}', '\u{7f}'], "");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "ca", "annotations": {"etcd-tls.dev/signer": signer}},
    });
    dir.write("backup.json", secret.to_string()).display().to_string()
}

#[test]
fn no_answer_of_the_api_server_reaches_the_terminal_as_it_is() {
    let dir = TempDir::new("terminal");
    let config = kubeconfig(&dir, "kubeconfig", &serve(|_, _| status(500)));
    for arguments in [
        &["status", "-A"] as &[&str],
        &["check"],
        &["check", "--pre"],
        &["check", "pod", "etcd-0"],
        &["renew", "prod/etcd-0", "--wait", "--timeout=1s"],
        &["revoke", "prod/etcd", "--serial=4f0a"],
        &["revoke", "prod/etcd", "--list"],
        &["rollover", "prod/etcd", "--domain=peer"],
        &["rollover", "prod/etcd", "--domain=peer", "--status"],
    ] {
        is_plain(&arguments.join(" "), &run(&config, arguments), "HOSTILE");
    }
    is_plain("adopt", &run(&config, &["adopt", "prod/etcd", "-f", &backup(&dir)]), "HOSTILE");
}

/// A pod whose sidecar and whose every text is a tenant's.
fn pod() -> Value {
    let container = |name: &str| json!({"name": name, "image": HOSTILE});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "etcd-0", "namespace": "prod", "uid": "u", "resourceVersion": "1",
            "labels": {"etcd-tls": "dynamic", "etcd-tls.dev/injected": "true"},
            "annotations": {
                "etcd-tls.dev/roles": "peer", "etcd-tls.dev/warnings": json!([HOSTILE]).to_string(),
            },
        },
        "spec": {
            "nodeName": HOSTILE, "serviceAccountName": HOSTILE,
            "volumes": [{"name": "etcd-tls-token", "projected": {"sources": [{"downwardAPI": {"items": [
                {"path": "renew", "fieldRef": {"fieldPath": "metadata.annotations['etcd-tls.dev/renew']"}},
            ]}}]}}],
            "initContainers": [container("etcd-tls-init"), container("etcd-tls-sidecar")], "containers": [container("etcd")],
        },
        "status": {"phase": "Running", "reason": HOSTILE, "message": HOSTILE, "conditions": [
            {"type": "Ready", "status": "False", "reason": HOSTILE, "message": HOSTILE},
        ]},
    })
}

/// The pod's own answer is an error, and the trust ConfigMap is written by the namespace's admin.
fn tenant(method: &str, path: &str) -> (u16, String) {
    if path.contains("/proxy/") {
        return status(500);
    }
    labelled(method, path)
}

/// The pod's metrics have labels of its own choice.
fn labelled(_method: &str, path: &str) -> (u16, String) {
    let (resource, query) = path.split_once('?').unwrap_or((path, ""));
    let list = |kind: &str, items: Value| {
        let version = if kind == "PodList" { "v1" } else { "certificates.k8s.io/v1" };
        (
            200,
            json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})
                .to_string(),
        )
    };
    if resource.contains("/proxy/") {
        let label = HOSTILE.replace("\r\n", " ");
        let metrics = format!(
            "etcd_tls_certificate_info{{role=\"peer\",serial=\"{label}\"}} 1\n\
             etcd_tls_request_failing{{role=\"peer\",result=\"{label}\"}} 1\n\
             etcd_tls_trust_state{{domain=\"peer\",state=\"unknown\",reason=\"{label}\"}} 1\n\
             etcd_tls_bundle_info{{domain=\"peer\",digest=\"{label}\"}} 1\n\
             etcd_tls_restart_due{{domain=\"peer\"}} 1\n\
             etcd_tls_restart_waits{{reason=\"{label}\"}} 1\n"
        );
        return (200, metrics);
    }
    if resource.ends_with("/pods") && !query.contains("watch") {
        return list("PodList", json!([pod()]));
    }
    if resource.ends_with("/pods/etcd-0") {
        return (200, pod().to_string());
    }
    if resource.ends_with("/certificatesigningrequests") {
        return list("CertificateSigningRequestList", json!([]));
    }
    if resource.ends_with("/configmaps/etcd-tls-trust-etcd") {
        let report = json!({"phase": HOSTILE, "waiting": [HOSTILE], "since": HOSTILE, "answer": HOSTILE}).to_string();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"peer.crt": HOSTILE},
            "metadata": {"name": "etcd-tls-trust-etcd", "namespace": "prod", "uid": "u", "resourceVersion": "1", "annotations": {
                "etcd-tls.dev/rollover-peer": report, "etcd-tls.dev/revoke-peer": HOSTILE,
            }},
        });
        return (200, map.to_string());
    }
    status(404)
}

#[test]
fn no_text_of_a_pod_or_of_its_namespace_reaches_the_terminal_as_it_is() {
    let dir = TempDir::new("terminal");
    for (name, answer) in [("tenant", tenant as fn(&str, &str) -> (u16, String)), ("labelled", labelled)] {
        let config = kubeconfig(&dir, name, &serve(answer));
        for arguments in [
            &["status"] as &[&str],
            &["status", "-o", "wide"],
            &["status", "-o", "json"],
            &["status", "-o", "yaml"],
            &["check", "pod", "etcd-0"],
            &["check", "pod", "etcd-0", "-o", "json"],
            &["renew", "prod/etcd-0", "--wait", "--timeout=1s"],
            &["rollover", "prod/etcd", "--domain=peer", "--status"],
        ] {
            is_plain(&format!("{name}: {}", arguments.join(" ")), &run(&config, arguments), "HOSTILE");
        }
    }
}

/// A pod of such a name, as no API server has one.
fn named(_method: &str, path: &str) -> (u16, String) {
    let resource = path.split('?').next().unwrap_or(path);
    if !resource.ends_with("/pods") {
        return status(404);
    }
    let mut pod = pod();
    pod["metadata"]["name"] = HOSTILE.into();
    let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [pod]});
    (200, list.to_string())
}

#[test]
fn no_name_reaches_the_terminal_as_it_is() {
    let dir = TempDir::new("terminal");
    let config = kubeconfig(&dir, "named", &serve(named));
    for output in ["name", "yaml", "json", "wide"] {
        is_plain(&format!("-o {output}"), &run(&config, &["status", "-o", output]), "HOSTILE");
    }
}

#[test]
fn no_text_of_a_manifest_reaches_the_terminal_as_it_is() {
    let dir = TempDir::new("terminal");
    let config = dir.join("none");
    let etcd = json!({"name": "etcd", "image": "etcd", "command": ["sh", format!("-{HOSTILE}"), "-c", "etcd"]});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": HOSTILE, "labels": {"etcd-tls": "dynamic"}},
        "spec": {"containers": [etcd]},
    });
    let refused = dir.write("refused.json", pod.to_string()).display().to_string();
    is_plain("inject", &run(&config, &["inject", "-f", &refused]), "HOSTILE");
    let judged = run(&config, &["inject", "--dry-run", "-f", &refused]);
    assert_eq!(judged.status.code(), Some(1), "docs/exit-codes.md: a pod would be refused");
    is_plain("inject --dry-run", &judged, "HOSTILE");
    // Another kind with a template: a warning.
    let other = json!({
        "apiVersion": "example.com/v1", "kind": "Etcd", "metadata": {"name": HOSTILE},
        "spec": {"template": {"spec": {"containers": [{"name": "etcd", "image": "etcd"}]}}},
    });
    let other = dir.write("other.json", other.to_string()).display().to_string();
    let output = run(&config, &["inject", "-f", &other]);
    is_plain("a warning of inject", &Output { stdout: Vec::new(), ..output }, "HOSTILE");
    let ours = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": HOSTILE},
        "spec": {"initContainers": [{"name": "etcd-tls-init"}], "containers": []},
    });
    let ours = dir.write("ours.json", ours.to_string()).display().to_string();
    is_plain("uninject", &run(&config, &["uninject", "-f", &ours]), "HOSTILE");
}
