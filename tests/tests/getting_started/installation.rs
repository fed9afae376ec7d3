//! The commands of README's *Install*, and of docs/chart.md, install.md, secret.md and without-webhook.md, typed at one API server. No
//! process runs, so it is looked at what is there afterwards.

use std::{fs, path::Path};

use etcd_tls_contract::names;
use tests::{apiserver::ApiServer, pages, process::which, tier};

use super::{bash, checkout, is_here};

/// The blocks of a section, as they can be typed here.
fn typed(page: &str, section: &str) -> Vec<String> {
    let mut found = Vec::new();
    for block in pages::blocks(page, section) {
        // A list of single commands; one of several lines stays whole.
        let lines: Vec<&str> = block.lines().map(str::trim_start).collect();
        let whole = lines.iter().any(|line| line.ends_with('\\'));
        let commands = if whole { vec![lines.join("\n")] } else { lines.iter().map(|l| (*l).to_owned()).collect() };
        found.extend(commands.into_iter().filter(|command| is_here(command)));
    }
    assert!(!found.is_empty(), "{page}: {section}");
    found
}

/// Applies the overlay of a section.
fn overlay(page: &str, section: &str, checkout: &Path, type_: &dyn Fn(&str) -> String) {
    let block = pages::blocks(page, section).into_iter().find(|block| block.starts_with("resources:"));
    let directory = checkout.join("overlay");
    fs::create_dir_all(&directory).expect("a directory");
    let block = block.unwrap_or_else(|| panic!("{page} has no overlay under {section}"));
    fs::write(directory.join("kustomization.yaml"), block.replace("<here>", "..")).expect("write an overlay");
    type_("kubectl apply -k overlay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_on_installation_can_be_typed() {
    let Some(api) = ApiServer::start().await else { return };
    let checkout = checkout();
    let kubectl = api.kubectl_path();
    let path = pages::path(&[kubectl.parent().expect("a directory")]);
    let type_ = |line: &str| bash(checkout.path(), &path, Some(&api.kubeconfig), line);
    let deployment =
        |name: &str| type_(&format!("kubectl -n {} get deployment {name} -o yaml", names::SYSTEM_NAMESPACE));

    // With helm, whose objects are its own: first.
    if which("helm").is_none() {
        tier::skip_special("no helm in PATH: docs/chart.md", "install it");
    } else {
        type_(&pages::blocks("chart.md", "Helm chart").remove(0));
        let sign = deployment("etcd-tls-sign");
        assert!(sign.contains("image: registry.example.com/etcd-tls-webhook:"), "{sign}");
        type_("helm uninstall -n etcd-tls-system etcd-tls");
    }

    for command in typed("../README.md", "Install") {
        type_(&command);
        if command.starts_with("kubectl create namespace my-namespace") {
            api.service_account("my-namespace", "default").await;
        }
    }
    let labels = type_("kubectl get namespace my-namespace -o jsonpath='{.metadata.labels}'");
    assert!(labels.contains(r#""etcd-tls":"dynamic""#), "{labels}");
    assert!(type_("kubectl -n my-namespace get statefulset -o name").contains("statefulset.apps/etcd"));

    overlay("install.md", "From a registry of your own", checkout.path(), &type_);
    let admit = deployment("etcd-tls-admit");
    assert!(admit.contains("imagePullSecrets") && admit.contains("SIDECAR_PULL_SECRETS"), "{admit}");
    type_(&format!("HOME=$PWD; mkdir -p .local/share/man/man1; {}", pages::blocks("install.md", "After it")[1]));
    let manuals = type_("ls .local/share/man/man1");
    assert!(manuals.contains("etcd-tls-webhook-status.1"), "{manuals}");

    typed("secret.md", "Create it").iter().for_each(|command| drop(type_(command)));
    let secret = type_("kubectl -n my-namespace get secret etcd-client-tls -o jsonpath='{.type}'");
    assert_eq!(secret, "kubernetes.io/tls");

    if !type_("kubectl api-resources -o name").contains("mutatingadmissionpolicies") {
        return tier::skip_special("no MutatingAdmissionPolicies: docs/without-webhook.md", "Kubernetes 1.36 or later");
    }
    overlay("without-webhook.md", "Install", checkout.path(), &type_);
    for block in pages::blocks("without-webhook.md", "Install").iter().filter(|block| !block.starts_with("resources:"))
    {
        type_(block);
    }
    let left = type_(
        "kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations,mutatingadmissionpolicies -o name",
    );
    assert_eq!(left.trim(), "mutatingadmissionpolicy.admissionregistration.k8s.io/etcd-tls-injection");
    assert!(!type_("kubectl -n etcd-tls-system get deployments -o name").contains("etcd-tls-admit"));
}
