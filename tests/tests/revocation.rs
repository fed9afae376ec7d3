//! Revocation on a real API server with the shipped manifests: the signer's lists, the operator's command, and who may use it.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use etcd_tls_contract::{
    certificate::Bundle,
    crl::{Crl, Reason},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::{
    eventually,
    process::binary,
    stack::{LIMIT, Options, Stack},
};

const TRUST: &str = "etcd-tls-trust-etcd";

/// A service account that may read and patch ConfigMaps of `namespace`, and `more`: its kubeconfig.
async fn operator(stack: &Stack, namespace: &str, name: &str, more: Option<Value>) -> PathBuf {
    stack.api.service_account(namespace, name).await;
    let metadata = json!({"name": name, "namespace": namespace});
    let mut rules = vec![json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]})];
    rules.extend(more);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]},
    ]});
    stack.api.apply(&objects.to_string());
    let token = stack.api.token(namespace, name, None).await;
    stack.api.token_kubeconfig(name, &token)
}

fn marker(verb: &str) -> Option<Value> {
    Some(
        json!({"apiGroups": ["etcd-tls.dev"], "resources": ["authorities"], "resourceNames": ["etcd"], "verbs": [verb]}),
    )
}

/// Runs `etcd-tls-webhook revoke`.
async fn revoke(kubeconfig: &PathBuf, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.arg("revoke").args(arguments).env("KUBECONFIG", kubeconfig);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The lists that are published, each verified by the bundle beside it.
async fn published(maps: &Api<ConfigMap>) -> Result<BTreeMap<String, Crl>, String> {
    let object = maps.get(TRUST).await.map_err(|e| e.to_string())?;
    let (data, binary) = (object.data.unwrap_or_default(), object.binary_data.unwrap_or_default());
    let mut lists = BTreeMap::new();
    for domain in ["peer", "client"] {
        let pem = data.get(&format!("{domain}.crt")).ok_or("no bundle")?;
        let bundle = Bundle::parse(pem.as_bytes()).map_err(|e| e.to_string())?;
        let der = binary.get(&format!("{domain}.crl")).ok_or(format!("no {domain}.crl"))?;
        let list = Crl::parse(&der.0).map_err(|e| e.to_string())?;
        list.verify(bundle.certificates().iter().map(Vec::as_slice)).map_err(|e| e.to_string())?;
        lists.insert(domain.to_owned(), list);
    }
    Ok(lists)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_lists_what_holders_of_the_right_revoke() {
    let Some(mut stack) = Stack::start(&Options::default()).await else { return };
    stack.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let pod = json!({
        "metadata": {"name": "client", "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    stack.api.pod("prod", pod).await.expect("a pod");
    let maps: Api<ConfigMap> = Api::namespaced(stack.api.client.clone(), "prod");
    let first = eventually("empty lists from the start", LIMIT, || published(&maps)).await;
    assert!(first.values().all(|list| list.entries().is_empty() && list.number() > 0), "{first:?}");

    // Whoever changes them, and whichever signer leads: the same lists stay.
    let admin = stack.api.kubeconfig.clone();
    for damage in [json!({"binaryData": null}), json!({"binaryData": {"peer.crl": "AAAA"}})] {
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(damage)).await.expect("damage");
        eventually("repaired", LIMIT, || async {
            let now = published(&maps).await?;
            if now == first { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    let arguments: [String; 0] = [];
    stack.restart_sign(&arguments).await;

    let anna = operator(&stack, "prod", "anna", marker("revoke")).await;
    let emil = operator(&stack, "prod", "emil", marker("rollover")).await;
    let done = eventually("revoked", LIMIT, || {
        revoke(&anna, &["prod/etcd", "--serial", "4F:0A:11", "--reason", "keyCompromise"])
    })
    .await;
    assert!(done.contains("4f0a11 is revoked until"), "{done}");
    let second = published(&maps).await.expect("lists");
    for (domain, list) in &second {
        assert_eq!(list.replaces(&first[domain]), Ok(true), "{domain}");
        assert_eq!(list.entries().len(), 1);
        assert_eq!(list.entries()["4f0a11"].reason, Reason::KeyCompromise);
    }
    let listed = revoke(&anna, &["prod/etcd", "--list"]).await.expect("a list");
    assert_eq!(listed.lines().filter(|line| line.starts_with("4f0a11 20")).count(), 2, "{listed}");

    let refused = revoke(&emil, &["prod/etcd", "--serial", "4f0b"]).await.expect_err("without the right");
    assert!(refused.contains("verb rollover, revoke or adopt"), "{refused}");
    for (arguments, expected) in [
        (&["prod/etcd", "--serial", "4f0b", "--undo"][..], "4f0b is not revoked"),
        (&["prod/other", "--serial", "4f0b"], "no ConfigMap etcd-tls-trust-other"),
        (&["prod/etcd", "--serial", "xyz"], "not a serial number"),
    ] {
        let refused = revoke(&admin, arguments).await.expect_err("refused");
        assert!(refused.contains(expected), "{arguments:?}: {refused}");
    }
    assert_eq!(published(&maps).await.as_ref(), Ok(&second), "nothing was revoked");

    revoke(&anna, &["prod/etcd", "--serial", "serial=4F0A11", "--undo"]).await.expect("taken back");
    let third = published(&maps).await.expect("lists");
    assert!(third.values().all(|list| list.entries().is_empty()), "{third:?}");
}
