//! The chart on a real API server: installed, upgraded, rolled back.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::{Value, json};
use tests::{apiserver::ApiServer, process::run};

use super::{chart, helms, template};

pub(super) const SYSTEM: &str = "etcd-tls-system";

/// Of each object of the chart by kind and name: its uid and generation. An object that is created again has another uid, one whose
/// spec is changed another generation.
fn state(api: &ApiServer, manifest: &str) -> BTreeMap<String, (String, Value)> {
    let list: Value = serde_json::from_str(&api.kubectl(&["get", "-f", manifest, "-o", "json"])).expect("JSON");
    let of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().expect("a list").iter();
    items
        .map(|object| {
            let meta = &object["metadata"];
            let key = format!("{} {}", of(&object["kind"]), of(&meta["name"]));
            (key, (of(&meta["uid"]), meta["generation"].clone()))
        })
        .collect()
}

fn changed(before: &BTreeMap<String, (String, Value)>, after: &BTreeMap<String, (String, Value)>) -> Vec<String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let mut changed = Vec::new();
    for (key, (uid, generation)) in before {
        assert_eq!(*uid, after[key].0, "{key} was made anew");
        if *generation != after[key].1 {
            changed.push(key.clone());
        }
    }
    changed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_makes_nothing_anew_and_wipes_nothing() {
    for helm in helms() {
        let Some(api) = ApiServer::start().await else { return };
        upgrades(&api, &helm).await;
    }
}

async fn upgrades(api: &ApiServer, helm: &Path) {
    api.namespace(SYSTEM, &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
    let run_helm = |arguments: &[&str], values: &Value| {
        let values = api.directory().write("values.yaml", values.to_string());
        let mut command = Command::new(helm);
        command.args(arguments).args(["-n", SYSTEM]).env("KUBECONFIG", &api.kubeconfig);
        if !["rollback", "uninstall"].contains(&arguments[0]) {
            command.arg(chart()).arg("-f").arg(values);
        }
        run(command.env("HOME", api.directory().path()))
    };
    let first = json!({"policy": {"clusterDomain": "example.test"}, "sign": {"flags": {"max-lifetime": "1h"}}});
    run_helm(&["install", "etcd-tls"], &first);

    // The fields that `approve` and `sign` write into shipped objects.
    let subject = r#"{"subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:prod"}]}"#;
    api.kubectl(&["patch", "clusterrolebinding", "etcd-tls-requesters", "--type=merge", "--patch", subject]);
    let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &api.ca.pem);
    for (kind, entries) in [("mutatingwebhookconfiguration", 3), ("validatingwebhookconfiguration", 2)] {
        let add = |i| json!({"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": pem});
        let patch = Value::from((0..entries).map(add).collect::<Vec<_>>()).to_string();
        api.kubectl(&["patch", kind, "etcd-tls", "--type=json", "--patch", &patch]);
    }
    let kept = || {
        let binding =
            api.kubectl(&["get", "clusterrolebinding", "etcd-tls-requesters", "-o", "jsonpath={.subjects[*].name}"]);
        assert_eq!(binding, "system:serviceaccounts:prod");
        for (kind, entries) in [("mutatingwebhookconfiguration", 3), ("validatingwebhookconfiguration", 2)] {
            let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
            let bundles = api.kubectl(&["get", kind, "etcd-tls", "-o", path]);
            assert_eq!(bundles.split(' ').filter(|bundle| *bundle == pem).count(), entries, "{kind}: {bundles}");
        }
    };
    let output = template(helm, SYSTEM, &first);
    let manifest = api.directory().write("chart.yaml", &output.stdout).display().to_string();
    let before = state(api, &manifest);
    assert!(before.len() > 40, "{before:?}");

    run_helm(&["upgrade", "etcd-tls"], &first);
    assert_eq!(changed(&before, &state(api, &manifest)), [""; 0], "an upgrade to the same changes nothing");
    kept();

    // Without the policy: the key goes, and what is then written by hand stays.
    let second = json!({"images": {"webhook": {"tag": "v9"}}, "sign": {"replicas": 3}});
    run_helm(&["upgrade", "etcd-tls"], &second);
    let after = state(api, &manifest);
    assert_eq!(
        changed(&before, &after),
        ["Deployment etcd-tls-admit", "Deployment etcd-tls-approve", "Deployment etcd-tls-sign"]
    );
    kept();
    let policy =
        || api.kubectl(&["-n", SYSTEM, "get", "configmap", "etcd-tls-policy", "-o", r"jsonpath={.data.policy\.yaml}"]);
    assert_eq!(policy(), "");
    let own = r#"{"data": {"policy.yaml": "clusterDomain: own.test\n"}}"#;
    api.kubectl(&["-n", SYSTEM, "patch", "configmap", "etcd-tls-policy", "--type=merge", "--patch", own]);
    run_helm(&["upgrade", "etcd-tls"], &second);
    assert_eq!(changed(&after, &state(api, &manifest)), [""; 0]);
    assert_eq!(policy(), "clusterDomain: own.test\n");

    // Helm 4 writes no policy over one that was written by hand, helm 3 does.
    let none = r#"[{"op": "remove", "path": "/data/policy.yaml"}]"#;
    api.kubectl(&["-n", SYSTEM, "patch", "configmap", "etcd-tls-policy", "--type=json", "--patch", none]);
    // A rollback gives back what the first one said.
    run_helm(&["rollback", "etcd-tls", "1"], &json!({}));
    assert_eq!(changed(&after, &state(api, &manifest)).len(), 3);
    kept();
    assert_eq!(policy(), "clusterDomain: example.test\n");
    let sign = api.kubectl(&["-n", SYSTEM, "get", "deployment", "etcd-tls-sign", "-o", "json"]);
    let sign: Value = serde_json::from_str(&sign).expect("JSON");
    assert_eq!(sign["spec"]["replicas"], 2);
    let container = &sign["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "etcd-tls-webhook:0.1.0");
    assert_eq!(container["args"], json!(["sign", "--max-lifetime=1h"]));

    // An uninstall leaves the namespace and the Secrets in it, which hold the CAs, and nothing of the chart.
    api.kubectl(&["-n", SYSTEM, "create", "secret", "generic", "kube-system-etcd-peer", "--from-literal=tls.key=k"]);
    run_helm(&["uninstall", "etcd-tls"], &json!({}));
    let left = api.kubectl(&["get", "-f", &manifest, "--ignore-not-found", "-o", "name"]);
    assert_eq!(left, "");
    let left = api.kubectl(&["-n", SYSTEM, "get", "secrets", "-o", "name"]);
    assert!(left.contains("secret/kube-system-etcd-peer") && !left.contains("sh.helm.release"), "{left}");
}
