//! docs/getting-started.md: its commands as they stand there, on a real API server with the installed system, and on this
//! machine as a host. What needs kind, a container engine or running nodes is listed here, so that nothing else stays untried.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{Installation, LIMIT, Options},
    pages, ports,
    process::{run, which},
    repository,
    temp::TempDir,
    tier,
};

/// The commands that cannot run here, by their beginnings.
const NOT_HERE: [&str; 9] = [
    "make images",
    "make dist",
    "kind ",
    "scp ",
    "ssh ",
    // No controller makes pods of Deployments and StatefulSets.
    "kubectl -n etcd-tls-system rollout",
    "kubectl -n my-namespace rollout",
    "oc -n etcd-tls-system rollout",
    "oc -n my-project rollout",
];

/// The rules of OpenShift, as a policy for namespaces that are labelled so.
const RESTRICTED_V2: &str = include_str!("../fixtures/restricted-v2.yaml");

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

/// The command in the steps of a page that begins so.
fn step(page: &str, beginning: &str) -> String {
    let text = fs::read_to_string(repository().join("docs").join(page)).expect("the page");
    let found = text.lines().map(str::trim).find(|line| line.starts_with(beginning));
    found.unwrap_or_else(|| panic!("{page} has no command {beginning}")).to_owned()
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
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    // As a cluster's controllers make it.
    installation.api.service_account("default", "default").await;
    // A checkout, in which an overlay may be written; and OpenShift's client, which is kubectl with more commands.
    let directory = TempDir::new("getting-started");
    for name in ["manifests", "webhook"] {
        symlink(repository().join(name), directory.join(name)).expect("link");
    }
    let kubectl = installation.api.kubectl_path();
    let programs = directory.dir("programs");
    symlink(&kubectl, programs.join("oc")).expect("link");
    let path = pages::path(&[&programs, kubectl.parent().expect("a directory")]);
    let mut said = String::new();
    for section in ["kind", "kubeadm", "OpenShift"] {
        for command in commands(section).iter().filter(|command| is_here(command)) {
            // Right after an install, policies come into force and leaders begin.
            let patient = format!("for i in $(seq 60); do {command} && exit; sleep 1; done; exit 1");
            // No kubelet starts the example's client, so its state is not known, or there is no certificate: exit code 4 or 3.
            let unknown = format!("{command}; code=$?; [ $code = 4 ] || [ $code = 3 ]");
            let line = match command.as_str() {
                "etcd-tls-webhook check" => &patient,
                "etcd-tls-webhook status -n my-namespace" | "etcd-tls-webhook status -n my-project" => &unknown,
                _ => command,
            };
            said += &bash(directory.path(), &path, Some(&installation.api.kubeconfig), line);
            // As a cluster's controllers make it.
            for (beginning, namespace) in [("kubectl create ", "my-namespace"), ("oc create ", "my-project")] {
                if command.starts_with(&format!("{beginning}namespace")) {
                    installation.api.service_account(namespace, "default").await;
                }
            }
        }
    }
    // docs/upgrade.md, step 3, as far as nobody has to make pods.
    let restart = step("upgrade.md", "kubectl -n my-namespace rollout restart");
    said += &bash(directory.path(), &path, Some(&installation.api.kubeconfig), &restart);
    for text in [
        "statefulset.apps/etcd restarted",
        "namespace/my-namespace labeled",
        "statefulset.apps/etcd created",
        "etcd-client ",
        "deployment.apps/etcd-tls-sign configured",
        "name: etcd-tls-sidecar",
        "mutatingwebhookconfiguration.admissionregistration.k8s.io/etcd-tls",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let sign = installation.api.kubectl(&["-n", "etcd-tls-system", "get", "deployment", "etcd-tls-sign", "-o", "yaml"]);
    assert!(sign.contains("image: registry.example.com/etcd-tls-webhook:0.1.0"), "{sign}");
    assert!(!sign.contains("runAsUser"), "{sign}");
    openshift_takes_the_members(&installation).await;
    // docs/upgrade.md: `manifests` itself resets the overlay.
    bash(directory.path(), &path, Some(&installation.api.kubeconfig), "kubectl apply -k manifests");
    let sign = installation.api.kubectl(&["-n", "etcd-tls-system", "get", "deployment", "etcd-tls-sign", "-o", "yaml"]);
    assert!(sign.contains("image: etcd-tls-webhook:0.1.0") && sign.contains("runAsUser"), "{sign}");
}

/// The members of both namespaces, in the one with OpenShift's rules.
async fn openshift_takes_the_members(installation: &Installation) {
    installation.api.apply(RESTRICTED_V2);
    installation.api.kubectl(&["label", "namespace", "my-project", "scc=restricted-v2"]);
    let pod_of = |namespace: &str| -> Value {
        let set = installation.api.kubectl(&["-n", namespace, "get", "statefulset", "etcd", "-o", "json"]);
        let set: Value = serde_json::from_str(&set).expect("JSON");
        let mut pod = set["spec"]["template"].clone();
        pod["metadata"]["generateName"] = "etcd-".into();
        (pod["spec"]["hostname"], pod["spec"]["subdomain"]) = ("etcd-0".into(), "etcd".into());
        // Of the claim's template.
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        pod
    };
    let plain = pod_of("my-namespace");
    let image = plain["spec"]["containers"][0]["image"].as_str().expect("an image");
    assert!(image.starts_with("etcd:"), "{image}");
    eventually("the rules are in force", LIMIT, || async {
        match installation.api.pod("my-project", plain.clone()).await {
            Err(error) if error.to_string().contains("restricted-v2") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let pod = installation.api.pod("my-project", pod_of("my-project")).await.expect("a pod that meets the rules");
    let pod = serde_json::to_value(pod).expect("JSON");
    let sidecar = &pod["spec"]["initContainers"][1];
    assert!(sidecar["args"].as_array().expect("arguments").contains(&json!("--reload=probe")), "{sidecar}");
}

#[test]
fn the_path_of_the_page_is_where_make_build_writes() {
    let page = fs::read_to_string(repository().join("docs/getting-started.md")).expect("the page");
    let mut make = Command::new("make");
    make.args(["--dry-run", "build"]).current_dir(repository()).env_remove("CARGO_TARGET_DIR");
    let said = run(&mut make);
    for program in ["etcd-tls-webhook", "etcd-tls-sidecar"] {
        let line = said.lines().find(|line| line.contains(&format!("-p {program}"))).expect("it is built");
        let profile = line.split("--profile ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("release");
        assert!(
            page.contains(&format!("PATH=$PWD/target/{profile}:"))
                || page.contains(&format!(":$PWD/target/{profile}:")),
            "{line}"
        );
    }
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
