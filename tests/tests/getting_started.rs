//! docs/getting-started.md: its commands as they stand there, on a real API server with the installed system, and on this
//! machine as a host. What needs kind, a container engine or running nodes is listed here, so that nothing else stays untried.

use std::{fs, os::unix::fs::symlink, path::Path};

use tests::{
    pages, ports,
    process::which,
    repository,
    stack::{Options, Stack},
    temp::TempDir,
    tier,
};

/// What cannot be typed here, by its beginning.
const NOT_HERE: [&str; 7] = [
    "make images",
    "make dist",
    "kind ",
    "ctr ",
    // No controller makes pods of Deployments and StatefulSets.
    "kubectl -n etcd-tls-system rollout",
    "kubectl -n my-namespace rollout",
    "oc -n etcd-tls-system rollout",
];

/// The commands of a section, in its order, several lines as one where the shell reads them so.
fn commands(section: &str) -> Vec<String> {
    let page = fs::read_to_string(repository().join("docs/getting-started.md")).expect("the page");
    let text = page.split(&format!("\n## {section}\n")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
    let text = text.split("\n## ").next().expect("a text");
    let mut found: Vec<String> = Vec::new();
    let (mut open, mut document) = (false, false);
    for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        match found.last_mut().filter(|_| open || document) {
            Some(last) => *last = format!("{last}\n{line}"),
            None => found.push(line.to_owned()),
        }
        document = if document { line != "EOF" } else { line.contains("<<") };
        open = line.ends_with('\\');
    }
    assert!(found.len() >= 3, "{section}: {found:?}");
    found
}

/// Whether it can be typed here.
fn is_here(command: &str) -> bool {
    !NOT_HERE.iter().any(|beginning| command.starts_with(beginning))
}

/// Runs a script of bash in `directory`; what it prints.
fn bash(directory: &Path, path: &str, kubeconfig: Option<&Path>, script: &str) -> String {
    pages::bash(directory, path, kubeconfig, script).unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_for_clusters_do_what_the_page_says() {
    let Some(stack) = Stack::start(&Options::default()).await else { return };
    // As a cluster's controllers make it.
    stack.api.service_account("default", "default").await;
    // A checkout, in which an overlay may be written; and OpenShift's client, which is kubectl with more commands.
    let directory = TempDir::new("getting-started");
    for name in ["manifests", "webhook"] {
        symlink(repository().join(name), directory.join(name)).expect("link");
    }
    let kubectl = stack.api.kubectl_path();
    let programs = directory.dir("programs");
    symlink(&kubectl, programs.join("oc")).expect("link");
    let path = pages::path(&[&programs, kubectl.parent().expect("a directory")]);
    let mut said = String::new();
    for section in ["kind", "kubeadm", "OpenShift"] {
        for command in commands(section).iter().filter(|command| is_here(command)) {
            if command.starts_with("oc create namespace") {
                // The same name as on kind.
                stack.api.kubectl(&["delete", "namespace", "my-namespace", "--wait=false"]);
                continue;
            }
            if command.starts_with("oc label namespace") {
                continue;
            }
            // Right after an install, policies come into force and leaders begin.
            let patient = format!("for i in $(seq 60); do {command} && exit; sleep 1; done; exit 1");
            // No kubelet starts the example's client, so its state is not known, or there is no certificate: exit code 4 or 3.
            let unknown = format!("{command}; code=$?; [ $code = 4 ] || [ $code = 3 ]");
            let line = match command.as_str() {
                "etcd-tls-webhook check" => &patient,
                "etcd-tls-webhook status -n my-namespace" => &unknown,
                _ => command,
            };
            said += &bash(directory.path(), &path, Some(&stack.api.kubeconfig), line);
            if command.starts_with("kubectl create namespace") {
                // As a cluster's controllers make it.
                stack.api.service_account("my-namespace", "default").await;
            }
        }
    }
    for text in [
        "namespace/my-namespace labeled",
        "statefulset.apps/etcd created",
        "etcd-client ",
        "deployment.apps/etcd-tls-sign configured",
        "name: etcd-tls-sidecar",
        "mutatingwebhookconfiguration.admissionregistration.k8s.io/etcd-tls",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let sign = stack.api.kubectl(&["-n", "etcd-tls-system", "get", "deployment", "etcd-tls-sign", "-o", "yaml"]);
    assert!(sign.contains("image: registry.example.com/etcd-tls-webhook:0.1.0"), "{sign}");
    assert!(!sign.contains("runAsUser"), "{sign}");
}

#[test]
fn the_commands_for_hosts_end_with_a_healthy_etcd() {
    if tier::etcd().is_none() {
        return;
    }
    for program in ["etcd", "etcdctl", "openssl"] {
        if which(program).is_none() {
            return tier::skip_special(&format!("no {program} in PATH"), "install it");
        }
    }
    let commands = commands("Hosts");
    assert!(commands.iter().all(|command| is_here(command)), "{commands:?}");
    let mut script = commands.join("\n");
    for port in ["6444", "2379", "2380", "9179"] {
        assert!(script.contains(port));
        script = script.replace(port, &format!("@{port}@"));
    }
    for port in ["6444", "2379", "2380", "9179"] {
        script = script.replace(&format!("@{port}@"), &ports::loopback().to_string());
    }
    let directory = TempDir::new("getting-started-hosts");
    // Everything that it starts ends with it.
    let script = format!("set -e\ntrap 'kill $(jobs -p); wait' EXIT\n{script}\necho healthy; ls pki/peer");
    let said = bash(directory.path(), &pages::path(&[]), None, &script);
    assert!(said.contains("healthy\nca.crl\nca.crt\ntls.crt\ntls.key\n"), "{said}");
}
