//! `approve` and `sign` prove that the admission policies which hold them are enforced, and use no right without: each
//! policy is deleted, unbound, set to warn, narrowed and put back on a real API server while they run.

use std::{collections::BTreeSet, process::Command, time::Duration};

use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    cert_manager::{CertManager, resource},
    eventually, ports,
    process::{Process, binary},
};

const WARN: &str = r#"{"spec": {"validationActions": ["Warn"]}}"#;
const SYSTEM: &str = "etcd-tls-system";
/// A proof is created again each 30 s.
const LIMIT: Duration = Duration::from_secs(90);

struct Running {
    _process: Process,
    admin: String,
}

async fn start(api: &ApiServer, name: &str, arguments: &[&str]) -> Running {
    let token = api.token(SYSTEM, &format!("etcd-tls-{name}"), None).await;
    let kubeconfig = api.token_kubeconfig(name, &token);
    let admin = format!("127.0.0.1:{}", ports::loopback());
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command
        .args([name, "--admin-address", &admin])
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env("POD_NAME", format!("{name}-0"));
    Running { _process: Process::spawn(name, &mut command, api.directory().path()), admin }
}

impl Running {
    async fn get(&self, path: &str) -> Result<String, String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let fail = |e: std::io::Error| e.to_string();
        let mut stream = tokio::net::TcpStream::connect(&self.admin).await.map_err(fail)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.map_err(fail)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(fail)?;
        Ok(answer)
    }

    async fn ready(&self) {
        eventually("ready", LIMIT, || async {
            let answer = self.get("/ready").await?;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        })
        .await;
    }

    /// Says in `/ready` and in its metrics that `policy` is not enforced, in these words.
    async fn complains(&self, process: &str, policy: &str, fault: &str) {
        eventually(&format!("{process}: {policy}: {fault}"), LIMIT, || async {
            let answer = self.get("/ready").await?;
            let said = answer.starts_with("HTTP/1.1 503") && answer.contains(policy) && answer.contains(fault);
            let metrics = self.get("/metrics").await?;
            let gauge = format!("etcd_tls_{process}_admission_policy_enforced{{policy=\"{policy}\"}} 0");
            if said && metrics.contains(&gauge) { Ok(()) } else { Err(answer) }
        })
        .await;
    }
}

/// The policies of each process, as its RBAC rule names them.
const APPROVE: [&str; 9] = [
    "requests",
    "request-writes",
    "bindings",
    "pods",
    "leases",
    "events",
    "certificate-requests",
    "certificate-request-approvals",
    "certificate-request-identities",
];
const SIGN: [&str; 10] = [
    "requests",
    "request-writes",
    "secrets",
    "trust",
    "webhooks",
    "leases",
    "events",
    "certificate-request-deletes",
    "pod-certificates",
    "cluster-trust-bundles",
];
/// The components with policies of their own, and what they add to `sign` and to `approve`.
const COMPONENTS: [&str; 4] = ["cert-manager", "approve-others", "pod-certificates", "cluster-trust-bundles"];
const OF_COMPONENTS: [&str; 3] = ["--cert-manager", "--pod-certificates", "--cluster-trust-bundles"];
const OF_APPROVE: [&str; 2] = ["--cert-manager", "--approve-issuer=clusterissuers.cert-manager.io/company"];

async fn exists(api: &ApiServer, path: &str) -> bool {
    let request = hyper::Request::get(path).body(Vec::new()).expect("a request");
    api.client.request::<Value>(request).await.is_ok()
}

async fn comes(api: &ApiServer, path: &str) {
    eventually(path, LIMIT, || async { if exists(api, path).await { Ok(()) } else { Err("not there") } }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_is_used_only_while_its_policy_is_enforced() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let (approve, sign) = (start(&api, "approve", &[]).await, start(&api, "sign", &[]).await);
    approve.ready().await;
    sign.ready().await;
    let binding = |namespace: &str| {
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/etcd-tls-sign")
    };
    comes(&api, &binding("prod")).await;
    let secret = "/api/v1/namespaces/etcd-tls-system/secrets/etcd-tls-admit-serving";
    comes(&api, secret).await;

    // Gone are the policies; so is what would be written again.
    api.kubectl(&["delete", "validatingadmissionpolicy", "etcd-tls-bindings", "etcd-tls-secrets"]);
    api.kubectl(&["delete", "validatingadmissionpolicybinding", "etcd-tls-webhooks"]);
    approve.complains("approve", "etcd-tls-bindings", "the policy is missing").await;
    sign.complains("sign", "etcd-tls-secrets", "the policy is missing").await;
    sign.complains("sign", "etcd-tls-webhooks", "its binding is missing").await;
    api.namespace("late", &[("etcd-tls", "dynamic")]).await;
    api.kubectl(&["-n", SYSTEM, "delete", "secret", "etcd-tls-admit-serving"]);
    let remove = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    api.kubectl(&["patch", "mutatingwebhookconfiguration", "etcd-tls", "--type=json", "--patch", remove]);
    // Longer than their own work takes to come round: ten seconds for the pair, half a second for a binding.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(!exists(&api, &binding("late")).await, "a binding was written without its policy");
    assert!(!exists(&api, secret).await, "a Secret was written without its policy");
    let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    let bundle = || api.kubectl(&["get", "mutatingwebhookconfiguration", "etcd-tls", "-o", path]);
    assert_eq!(bundle(), "", "caBundle was written without its policy");
    // Events report it to people.
    let events = api.kubectl(&["-n", SYSTEM, "get", "events", "-o", "jsonpath={.items[*].message}"]);
    for name in ["etcd-tls-bindings", "etcd-tls-secrets", "etcd-tls-webhooks"] {
        assert!(events.contains(&format!("ValidatingAdmissionPolicy {name} is not enforced")), "{events}");
    }
    // Somebody with the account of `approve` would use it: without the policy it gives itself any right, as the threat model says.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "etcd-tls-trust-reader", "namespace": "kube-system"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
    });
    let role = api.directory().write("role.json", role.to_string());
    let account = format!("--as=system:serviceaccount:{SYSTEM}:etcd-tls-approve");
    let role = role.to_str().expect("a path");
    api.kubectl(&["apply", "--server-side", "--dry-run=server", &account, "-f", role]);
    api.apply_kustomization("manifests");
    comes(&api, &binding("late")).await;
    comes(&api, secret).await;
    eventually("caBundle", LIMIT, || async { if bundle().is_empty() { Err("not there") } else { Ok(()) } }).await;
    approve.ready().await;
    sign.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_loosen_each_policy_is_noticed() {
    let Some(api) = ApiServer::start().await else { return };
    CertManager::install(&api).await;
    api.apply_components(&COMPONENTS);
    let (approve, sign) = (start(&api, "approve", &OF_APPROVE).await, start(&api, "sign", &OF_COMPONENTS).await);
    let processes = [("approve", &approve, APPROVE.as_slice()), ("sign", &sign, SIGN.as_slice())];
    let (vap, vapb) = ("validatingadmissionpolicy", "validatingadmissionpolicybinding");
    let patch = |kind: &str, name: &str, path: &str, value: Value| {
        let patch = json!([{"op": "add", "path": path, "value": value}]).to_string();
        api.kubectl(&["patch", kind, name, "--type=json", "--patch", &patch]);
    };
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"guarded": "true"}}});
    let never = json!({"name": "never", "expression": "false"});
    type Loosen<'a> = &'a dyn Fn(&str);
    let ways: [(&str, Loosen<'_>); 6] = [
        ("does not deny", &|name| patch(vapb, name, "/spec/validationActions", json!(["Warn", "Audit"]))),
        ("narrowed (matchConditions)", &|name| match name {
            // It has none.
            "etcd-tls-certificate-request-identities" => patch(vap, name, "/spec/matchConditions", json!([never])),
            _ => patch(vap, name, "/spec/matchConditions/-", never.clone()),
        }),
        ("its binding is narrowed", &|name| patch(vapb, name, "/spec/matchResources", elsewhere.clone())),
        ("validation 0 is missing", &|name| patch(vap, name, "/spec/validations/0/expression", "true".into())),
        ("failurePolicy", &|name| patch(vap, name, "/spec/failurePolicy", "Ignore".into())),
        ("its binding is missing", &|name| drop(api.kubectl(&["delete", vapb, name]))),
    ];
    for (fault, loosen) in ways {
        approve.ready().await;
        sign.ready().await;
        for name in APPROVE.iter().chain(&SIGN).collect::<BTreeSet<_>>() {
            loosen(&format!("etcd-tls-{name}"));
        }
        for (process, running, names) in &processes {
            for name in *names {
                running.complains(process, &format!("etcd-tls-{name}"), fault).await;
            }
        }
        api.kubectl(&["delete", &format!("{vap},{vapb}"), "-l", "app.kubernetes.io/name=etcd-tls"]);
        api.apply_components(&COMPONENTS);
    }
    approve.ready().await;
    sign.ready().await;
}

/// CertificateRequests of cert-manager: `sign` deletes none, and `approve` lets nobody request, while the policy of that is not
/// enforced. That it is enforced is tried on a request of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_of_the_component_for_cert_manager_wait_for_its_policies() {
    let Some(api) = ApiServer::start().await else { return };
    CertManager::install(&api).await;
    api.apply_components(&["cert-manager"]);
    let (deletes, requests) = ("etcd-tls-certificate-request-deletes", "etcd-tls-certificate-requests");
    api.kubectl(&["patch", "validatingadmissionpolicybinding", deletes, "--type=merge", "--patch", WARN]);
    api.kubectl(&["delete", "validatingadmissionpolicybinding", requests]);
    api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let objects: Api<DynamicObject> = Api::namespaced_with(api.client.clone(), "prod", &resource());
    for name in ["company", "etcd-tls-0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11-peer-0123456789abcdef0123456789abcdef"] {
        let request = json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "metadata": {"name": name},
            "spec": {"request": "YWJj", "issuerRef": {"name": "company"}},
        });
        objects.create(&PostParams::default(), &from_json(request)).await.expect("a request");
        let ready = json!({"status": {"certificate": "YWJj", "conditions": [
            {"type": "Ready", "status": "True", "reason": "Issued", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}});
        objects.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await.expect("its end");
    }
    let soon = ["--cert-manager", "--check-pending-every=1s", "--delete-issued-after=1s"];
    let approve = start(&api, "approve", &["--cert-manager"]).await;
    let sign = start(&api, "sign", &soon).await;
    approve.complains("approve", requests, "its binding is missing").await;
    sign.complains("sign", deletes, "does not deny").await;
    sign.complains("sign", deletes, "let through the deletion of a CertificateRequest of others").await;
    // Some rounds of each. `approve` is at work where the right is another's.
    comes(&api, "/apis/rbac.authorization.k8s.io/v1/namespaces/prod/rolebindings/etcd-tls-sign").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let names = async || -> BTreeSet<String> {
        let list = objects.list(&ListParams::default()).await.expect("a list").items;
        list.iter().map(ResourceExt::name_any).collect()
    };
    assert_eq!(names().await.len(), 2, "one was deleted without the policy");
    let path = "jsonpath={.subjects}";
    let subjects = || api.kubectl(&["get", "clusterrolebinding", "etcd-tls-requesters", "-o", path]);
    assert!(!subjects().contains("system:serviceaccounts:prod"), "{}", subjects());

    api.apply_components(&["cert-manager"]);
    let others = BTreeSet::from(["company".to_owned()]);
    eventually("the finished one to go", LIMIT, || async {
        let names = names().await;
        if names == others { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    eventually("the right to request", LIMIT, || async {
        let subjects = subjects();
        if subjects.contains("system:serviceaccounts:prod") { Ok(()) } else { Err(subjects) }
    })
    .await;
    approve.ready().await;
    sign.ready().await;
}
