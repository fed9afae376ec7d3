//! docs/issuers.md: its commands and manifests, as they stand there.

use std::{fs, os::unix::fs::symlink, process::Command};

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    eventually, pages,
    process::{binary, run},
    repository,
    temp::TempDir,
};

use crate::scene::LIMIT;

const PAGE: &str = "issuers.md";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_and_manifests_of_the_page_are_taken() {
    let Some(api) = ApiServer::start().await else { return };
    let directory = TempDir::new("issuers-page");
    symlink(repository().join("manifests"), directory.join("manifests")).expect("link");
    directory.write("ca.crt", &api.ca.pem);
    let kubectl = api.kubectl_path();
    let path = pages::path(&[kubectl.parent().expect("a directory")]);
    let shell = |line: &str| {
        pages::bash(directory.path(), &path, Some(&api.kubeconfig), line).unwrap_or_else(|error| panic!("{error}"))
    };
    api.namespace("my-namespace", &[]).await;

    // The component, under each of the names that the page has.
    let [overlay] = &pages::blocks(PAGE, "Components")[..] else { panic!("one block") };
    for (component, policy) in [
        ("cert-manager", "etcd-tls-certificate-requests"),
        ("approve-others", "etcd-tls-certificate-request-approvals"),
        ("cluster-trust-bundles", "etcd-tls-cluster-trust-bundles"),
        ("pod-certificates", "etcd-tls-pod-certificates"),
    ] {
        shell(&overlay.replace("components/cert-manager", &format!("components/{component}")));
        let found = api.kubectl(&["get", "validatingadmissionpolicies", "-o", "name"]);
        assert!(found.contains(policy), "{component}: {found}");
    }
    let values = fs::read_to_string(repository().join("manifests/chart/values.yaml")).expect("the chart's values");
    let values: Value = serde_saphyr::from_str(&values).expect("YAML");
    for value in
        ["certManager.issuers", "approveOthers.enabled", "clusterTrustBundles.enabled", "podCertificates.enabled"]
    {
        assert_eq!(pages::inline(PAGE, value), value);
        assert_eq!(values.pointer(&format!("/{}", value.replace('.', "/"))), Some(&Value::Bool(false)), "{value}");
    }

    // The overlay names each signer as an argument and as a right.
    let [others] = &pages::blocks(PAGE, "Approve for other issuers")[..] else { panic!("one block") };
    shell(others);
    let of = |kind: &[&str]| api.kubectl(&[&["get"], kind, &["etcd-tls-approve", "-o", "json"]].concat());
    let (role, deployment) = (of(&["clusterrole"]), of(&["-n", "etcd-tls-system", "deployment"]));
    for (argument, name) in [("signer", "example.com/ca"), ("issuer", "clusterissuers.cert-manager.io/company-ca")] {
        assert!(role.contains(&format!("\"{name}\"")), "{role}");
        assert!(deployment.contains(&format!("\"--approve-{argument}={name}\"")), "{deployment}");
    }

    // Both roles give the right that they are for, and to nobody else.
    let rights = pages::blocks(PAGE, "Rights");
    let [of_signer, of_cert_manager, to_reference] = &rights[..] else { panic!("{rights:?}") };
    let reviews: Api<SubjectAccessReview> = Api::all(api.client.clone());
    let may = async |namespace: &str, group: &str, signer: &str| {
        let review = json!({"spec": {
            "user": format!("system:serviceaccount:{namespace}:default"), "groups": [format!("system:serviceaccounts:{namespace}")],
            "resourceAttributes": {
                "namespace": "my-namespace", "verb": "request", "group": group, "resource": "signers", "name": signer,
            },
        }});
        let answer = reviews.create(&PostParams::default(), &from_json(review)).await.expect("an answer");
        answer.status.expect("a status").allowed
    };
    for (manifest, group, signer) in [
        (of_signer, "certificates.k8s.io", "example.com/ca"),
        (of_cert_manager, "cert-manager.io", "clusterissuers.cert-manager.io/company-ca"),
    ] {
        assert!(!may("my-namespace", group, signer).await, "{signer}: not before");
        api.apply(manifest);
        // The authorizer learns of it a moment later.
        eventually("the right to request", LIMIT, || async {
            if may("my-namespace", group, signer).await { Ok(()) } else { Err("no") }
        })
        .await;
        assert!(!may("default", group, signer).await, "{signer}: another namespace");
    }
    api.apply(to_reference);

    // The annotations in the example's StatefulSet.
    let example = pages::blocks(PAGE, "An example");
    let [template, config_map] = &example[..] else { panic!("{example:?}") };
    let template: Value = serde_saphyr::from_str(template).expect("YAML");
    let cluster = fs::read_to_string(repository().join("manifests/examples/cluster/etcd.yaml")).expect("the example");
    let mut set: Value = serde_saphyr::from_str(cluster.split("\n---\n").next().expect("a StatefulSet")).expect("YAML");
    set["spec"]["template"]["metadata"]["annotations"] =
        template["spec"]["template"]["metadata"]["annotations"].clone();
    let file = directory.write("etcd.yaml", set.to_string());
    let mut inject = Command::new(binary("etcd-tls-webhook"));
    let injected = run(inject.args(["inject", "-n", "my-namespace", "-f"]).arg(file));
    for part in ["--issuer=cert-manager:ClusterIssuer/company-ca", "company-ca", "ca.crt"] {
        assert!(injected.contains(part), "{part}: {injected}");
    }
    shell(config_map);
    shell(&pages::blocks(PAGE, "Trust")[0]);
    for (name, keys) in [("company-ca", &["ca.crt"][..]), ("etcd-tls-trust-etcd", &["client.crt", "peer.crt"])] {
        let found = api.kubectl(&["-n", "my-namespace", "get", "configmap", name, "-o", "json"]);
        let found: Value = serde_json::from_str(&found).expect("JSON");
        let data = found["data"].as_object().expect("data");
        assert_eq!(data.keys().collect::<Vec<_>>(), keys);
        assert!(data.values().all(|value| *value == *api.ca.pem));
    }
}
