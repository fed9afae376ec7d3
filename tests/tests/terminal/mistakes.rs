//! What an operator gets who has no kubeconfig, the wrong one, a server that is away or is none, too few rights, or a name with a
//! mistake: a reason that says what to correct, the exit code of docs/exit-codes.md, and no panic.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tests::{pki::Ca, ports, process::binary, temp::TempDir};

use super::{kubeconfig, labelled, run, serve};

/// Each of an operator's commands that asks the API server.
const COMMANDS: [&[&str]; 13] = [
    &["status"],
    &["status", "-A", "-o", "json"],
    &["check"],
    &["check", "--pre"],
    &["check", "pod", "etcd-0"],
    &["check", "namespace", "prod"],
    &["renew", "prod/etcd-0"],
    &["renew", "prod/etcd-0", "--wait", "--timeout=1s"],
    &["revoke", "prod/etcd", "--list"],
    &["revoke", "prod/etcd", "--serial=4f0a", "--at-once"],
    &["rollover", "prod/etcd"],
    &["rollover", "prod/etcd", "--status"],
    &["adopt", "prod/etcd", "-f", "BACKUP"],
];

/// The command, where a file stands for `BACKUP`.
fn words<'a>(command: &[&'a str], backup: &'a str) -> Vec<&'a str> {
    command.iter().map(|word| if *word == "BACKUP" { backup } else { *word }).collect()
}

#[test]
fn a_server_that_cannot_be_used_is_named() {
    let dir = TempDir::new("mistakes");
    let file = usable_backup(&dir);
    let closed = format!("http://127.0.0.1:{}", ports::loopback());
    let hangs_up = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{\"kind\":",
                );
            }
        });
        url
    };
    for (what, url) in [("closed", closed), ("hangs up", hangs_up)] {
        let config = kubeconfig(&dir, "kubeconfig", &url);
        for command in COMMANDS {
            let output = run(&config, &words(command, &file));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let all = format!("{what}: {command:?}: {output:?}");
            // Where answers break off, each check says what it could not see.
            let wanted: &[i32] = if what == "hangs up" && command[0] == "check" { &[4, 69] } else { &[69] };
            assert!(output.status.code().is_some_and(|code| wanted.contains(&code)), "{all}");
            assert!(!said.contains("panicked") && said.starts_with("etcd-tls-webhook: "), "{all}");
            if what == "closed" {
                let text = said + &String::from_utf8_lossy(&output.stdout);
                assert!(text.contains(url.trim_start_matches("http://")), "which server: {all}");
            }
        }
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let dir = TempDir::new("mistakes");
    let file = usable_backup(&dir);
    let of = |name: &str, value: serde_json::Value| dir.write(name, value.to_string());
    let cluster = json!([{"name": "t", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/nonexistent/ca.crt"}}]);
    let context = json!([{"name": "t", "context": {"cluster": "t", "user": "t"}}]);
    let no_authority = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "t", "clusters": cluster,
        "users": [{"name": "t", "user": {}}], "contexts": context,
    });
    let mut dangling = no_authority.clone();
    dangling["current-context"] = "gone".into();
    let cases = [
        (dir.join("none"), "none"),
        // A token that is no YAML, and one in a wrong place.
        (dir.write("broken", "users:\n- name: t\n  user: {token: TOP-SECRET]\n"), "line 3"),
        (dir.write("misplaced", "users:\n- name: t\n  user: TOP-SECRET\n"), "misplaced"),
        (of("no-authority", no_authority), "/nonexistent/ca.crt"),
        (of("dangling", dangling), "gone"),
    ];
    for (config, named) in cases {
        for command in COMMANDS {
            let output = run(&config, &words(command, &file));
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{command:?}: {output:?}");
            assert!(said.contains(named) && said.contains("kubeconfig"), "{named}: {command:?}: {output:?}");
            assert!(!said.contains("TOP-SECRET"), "{command:?}: {output:?}");
        }
    }
    let config = kubeconfig(&dir, "kubeconfig", "http://127.0.0.1:1");
    for command in COMMANDS {
        let output = run(&config, &[&words(command, &file)[..], &["--context=production"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{command:?}: {output:?}");
        assert!(said.contains("production"), "{command:?}: {output:?}");
    }
}

/// [`labelled`], a namespace that has opted in, and what an authorizer says.
fn answer(method: &str, path: &str) -> (u16, String) {
    let resource = path.split('?').next().unwrap_or(path);
    if resource.ends_with("accessreviews") {
        return (201, json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {}, "status": {"allowed": true}}).to_string());
    }
    if resource == "/api/v1/namespaces/prod" {
        let metadata = json!({"name": "prod", "uid": "u", "resourceVersion": "1", "labels": {"etcd-tls": "dynamic"}});
        return (200, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string());
    }
    if resource.ends_with("/configmaps/etcd-tls-trust-etcd") {
        let annotations = json!({"etcd-tls.dev/rollover-peer": json!({"phase": "stable"}).to_string()});
        let metadata = json!({"name": "etcd-tls-trust-etcd", "namespace": "prod", "resourceVersion": "1", "annotations": annotations});
        return (200, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}).to_string());
    }
    match (method, resource.ends_with("/secrets")) {
        ("GET", true) => {
            (200, json!({"apiVersion": "v1", "kind": "SecretList", "metadata": {}, "items": []}).to_string())
        }
        ("POST", true) => (201, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca"}}).to_string()),
        _ => labelled(method, path),
    }
}

/// A backup with a CA of the cluster, with which `adopt` gets as far as the API server.
fn usable_backup(dir: &TempDir) -> String {
    let ca = Ca::new("peers");
    let annotations =
        json!({"etcd-tls.dev/signer": "peer.etcd-tls.dev/prod.etcd", "etcd-tls.dev/namespace-uid": "before"});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "annotations": annotations},
        "data": {"tls.crt": STANDARD.encode(&ca.pem), "tls.key": STANDARD.encode(&ca.key_pem)},
    });
    dir.write("backup.json", secret.to_string()).display().to_string()
}

/// docs/exit-codes.md: only a kubeconfig and, of the sidecar, an argument have the code 78.
#[test]
fn a_policy_that_cannot_be_used_has_the_code_of_the_page() {
    let dir = TempDir::new("mistakes");
    let policy = dir.write("policy.yaml", "clusterDomian: x\n").display().to_string();
    let config = kubeconfig(&dir, "kubeconfig", "http://127.0.0.1:1");
    let checked = run(&config, &["check", "policy", "-f", &policy]);
    assert_eq!(checked.status.code(), Some(3), "{checked:?}");

    // The policy is read before any of the other files.
    let tokens = dir.write("tokens.csv", format!("{},x,1\n", "a".repeat(40))).display().to_string();
    let none = dir.join("none").display().to_string();
    let files = [("policy", &policy), ("token-auth-file", &tokens)];
    let files = files.into_iter().chain(["cacrt", "cakey", "servcrt", "servkey", "csrdir"].map(|name| (name, &none)));
    let files: Vec<String> = files.map(|(name, file)| format!("--{name}={file}")).collect();
    let standalone = ["standalone", "--address=127.0.0.1:0"].into_iter().chain(files.iter().map(String::as_str));
    let signer = run(&config, &standalone.collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&signer.stderr);
    assert!(signer.status.code() == Some(1) && said.contains("clusterDomian"), "{signer:?}");

    let mut sidecar = Command::new(binary("etcd-tls-sidecar"));
    let sidecar = sidecar.args(["request", "--name=m1", "--roles=peer", "--assetsdir", &none]).output().expect("run");
    assert_eq!(sidecar.status.code(), Some(78), "{sidecar:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = TempDir::new("mistakes");
    let none = dir.join("none.yaml").display().to_string();
    let folder = dir.path().display().to_string();
    dir.write("file", "");
    let below = dir.join("file/below").display().to_string();
    let config = kubeconfig(&dir, "kubeconfig", "http://127.0.0.1:1");
    let issue = ["issue", "--cluster=etcd", "--member=etcd-0", "--cacrt", &none, "--cakey", &none];
    for (named, command) in [
        (&none, &["inject", "-f", &none][..]),
        (&folder, &["inject", "-f", &folder]),
        (&none, &["inject", "--dry-run", "-f", &none]),
        (&none, &["uninject", "-f", &none]),
        (&none, &["check", "policy", "-f", &none]),
        (&folder, &["check", "policy", "-f", &folder]),
        (&none, &["adopt", "prod/etcd", "-f", &none]),
        (&none, &issue),
        (&below, &["issue", "--cluster=etcd", "--member=etcd-0", "--ca-dir", &below]),
        (&below, &["man", &below]),
    ] {
        let output = run(&config, command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{command:?}: {output:?}");
        assert!(said.contains(named.as_str()), "{command:?}: {output:?}");
    }
    // Not text.
    fs::write(dir.join("binary"), b"\xff\xfe").expect("write");
    let binary = dir.join("binary").display().to_string();
    let output = run(&config, &["inject", "-f", &binary]);
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("{binary}: not UTF-8")), "{output:?}");
}

#[test]
fn a_name_with_a_mistake_is_a_mistake_of_the_command_line() {
    let dir = TempDir::new("mistakes");
    let config = kubeconfig(&dir, "kubeconfig", "http://127.0.0.1:1");
    for command in [
        &["status", "-n", "my_namespace"] as &[&str],
        &["status", "-n", "prod/etcd"],
        &["check", "-n", "Prod"],
        &["check", "pod", "Etcd-0"],
        &["check", "pod", "etcd-0?watch=true"],
        &["check", "namespace", "prod/"],
        &["renew", "etcd-0"],
        &["renew", "prod/etcd_0"],
        &["renew", "prod/etcd-0/x"],
        &["revoke", "etcd", "--list"],
        &["revoke", "prod/etcd", "--serial=xyz"],
        &["revoke", "prod/etcd", "--pod=a/b/c"],
        &["rollover", "prod"],
        &["rollover", "prod/etcd", "--domain=peers"],
        &["status", "--interval=0s"],
        &["status", "-o", "xml"],
        &["renew", "prod/etcd-0", "--timeout=1m"],
        &["stauts"],
    ] {
        let output = run(&config, command);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
        assert!(output.stdout.is_empty() && output.stderr.starts_with(b"error: "), "{command:?}: {output:?}");
    }
    let output = run(&config, &["check", "pod", "prod/etcd-0", "-n", "web"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("two namespaces"), "{output:?}");
}

/// As behind `head`, which has read enough.
#[test]
fn a_closed_output_is_no_panic() {
    let dir = TempDir::new("mistakes");
    let file = usable_backup(&dir);
    let config = kubeconfig(&dir, "kubeconfig", &serve(answer));
    let manifest = tests::repository().join("manifests/examples/cluster/etcd.yaml").display().to_string();
    let offline: [&[&str]; 4] =
        [&["completion", "bash"], &["inject", "-f", &manifest], &["inject", "--policy"], &["--help"]];
    let asking = COMMANDS.into_iter().filter(|command| !["rollover", "revoke"].contains(&command[0]));
    for command in asking.chain(offline) {
        for both in [false, true] {
            let mut child = Command::new(binary("etcd-tls-webhook"));
            child.args(words(command, &file)).env_clear().env("KUBECONFIG", &config).env("HOME", "/nonexistent");
            child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = child.spawn().expect("run");
            drop(child.stdout.take());
            if both {
                drop(child.stderr.take());
            }
            let output = child.wait_with_output().expect("its end");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked") && !said.contains("roken pipe"), "{command:?}: {output:?}");
            assert!(output.status.code().is_some_and(|code| code != 101), "{command:?}: {output:?}");
        }
    }
}
