//! The actors of docs/security.md and what a stolen account reads, against the rules of the manifests and of the components.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use tests::repository;

use crate::shipped::{Names, Rule, documents, rules, rules_of_components};

fn page() -> String {
    fs::read_to_string(repository().join("docs/security.md")).expect("the page")
}

/// The rights of an actor, as its row says them.
fn rights_of(page: &str, actor: &str) -> String {
    let row = page.lines().find(|line| line.starts_with(&format!("| {actor} | "))).unwrap_or_else(|| panic!("{actor}"));
    row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell").to_owned()
}

/// The roles that the manifests bind to a service account of ours.
fn bound_to(account: &str) -> BTreeSet<String> {
    let ours = |binding: &Value| {
        let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
        subjects.iter().any(|subject| subject["kind"] == "ServiceAccount" && subject["name"] == account)
    };
    let bindings = documents().into_iter().filter(|document| {
        document["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding")) && ours(document)
    });
    bindings.map(|binding| binding["roleRef"]["name"].as_str().expect("a role").to_owned()).collect()
}

/// Every rule, of the components too, with the names of its objects.
fn all() -> impl Iterator<Item = (Rule, BTreeSet<Names>)> {
    rules().into_iter().chain(rules_of_components())
}

#[test]
fn the_actors_have_the_rights_of_the_manifests() {
    let page = page();
    let requester = rights_of(&page, "a container in an opted-in namespace");
    for (rule, names) in all().filter(|(rule, _)| rule.role == "ClusterRole/etcd-tls-requester") {
        let said = match (rule.resource.as_str(), rule.verb.as_str()) {
            ("certificates.k8s.io/certificatesigningrequests", "create") => "create CSRs",
            ("certificates.k8s.io/certificatesigningrequests", "get") => "get every CSR by its name",
            // The policies on requests ask for it; no API has the resource.
            ("etcd-tls.dev/signers", "request") => "the pod's bound token",
            ("cert-manager.io/certificaterequests", "create" | "get") => {
                "with the component `cert-manager`, create CertificateRequests and get every one by its name"
            }
            _ => panic!("{rule} {names:?} is not said of a container"),
        };
        assert!(requester.contains(said), "{rule}: {said:?} is not in: {requester}");
    }
    for (actor, account) in [("a stolen approver", "etcd-tls-approve"), ("a stolen signer", "etcd-tls-sign")] {
        let said = rights_of(&page, actor);
        for role in bound_to(account) {
            assert!(said.contains(&format!("`{role}`")), "{role} of {account} is not in: {said}");
        }
    }
    assert_eq!(rights_of(&page, "a stolen admission process"), "none in the API; it answers reviews");
    assert_eq!(bound_to("etcd-tls-admit"), BTreeSet::new());
}

/// What an account of ours reads without a name, beside the list of attacks that are not stopped.
#[test]
fn what_a_stolen_account_reads_is_said() {
    let page = page();
    let (_, open) = page.split_once("## Attacks that are not stopped\n").expect("the section");
    for (actor, roles) in [
        ("A stolen approver", ["ClusterRole/etcd-tls-approve", "Role/etcd-tls-approve"]),
        ("A stolen signer", ["ClusterRole/etcd-tls-sign", "Role/etcd-tls-sign"]),
    ] {
        let said = open.split("\n* ").find(|bullet| bullet.trim_start_matches("* ").starts_with(actor));
        let said = said.unwrap_or_else(|| panic!("{actor}"));
        let shipped = all().filter(|(rule, names)| {
            let all = names.iter().any(BTreeSet::is_empty);
            all && roles.contains(&rule.role.as_str()) && ["get", "list", "watch"].contains(&rule.verb.as_str())
        });
        for (rule, _) in shipped {
            let word = match rule.resource.rsplit('/').next().expect("a resource") {
                "certificatesigningrequests" => "CSR",
                "pods" => "pod",
                "services" => "Service",
                "namespaces" => "namespace",
                "configmaps" => "ConfigMap",
                "secrets" => "Secret",
                "certificaterequests" => "CertificateRequest",
                "podcertificaterequests" => "PodCertificateRequest",
                "clustertrustbundles" => "ClusterTrustBundle",
                other => panic!("{rule}: say of {other} that {actor} reads it"),
            };
            let whole =
                |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(|w| w == word || w == format!("{word}s"));
            assert!(whole(said), "{rule}: no {word:?} in: {said}");
        }
    }
}
