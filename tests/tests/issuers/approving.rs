//! Our approver for the issuers of others: off by default; where it is told to, the same identity rules for CertificateRequests and
//! CertificateSigningRequests; and what its account cannot do.

use std::{collections::BTreeMap, net::IpAddr, process::Command};

use etcd_tls_contract::{
    csr::{PrivateKey, key_digest},
    identity,
    key::KeyAlgorithm,
    names,
    role::Role,
    san::Sans,
};
use k8s_openapi::{
    ByteString,
    api::{certificates::v1::CertificateSigningRequest, core::v1::Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    cert_manager::{CertManager, resource},
    eventually, ports,
    process::{Process, binary},
};

use crate::scene::{Kind, LIMIT, Lab};

const SYSTEM: &str = "etcd-tls-system";

/// The address of a pod: no two have the same.
pub fn address(namespace: &str, pod: &str) -> String {
    let byte = |text: &str| text.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    format!("10.9.{}.{}", byte(namespace), byte(pod) | 1)
}

/// Installs the component, and has the namespaces opt in. There is no webhook: pods are made as they would be admitted.
pub fn install(lab: &Lab) {
    lab.api.apply_components(&["cert-manager", "approve-others"]);
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        lab.api.kubectl(&["delete", kind, "etcd-tls", "--ignore-not-found"]);
    }
    lab.api.kubectl(&["label", "namespace", "cm", "csr", "etcd-tls=dynamic", "--overwrite"]);
}

/// Gives `approve` the verb of the same name, as the page says.
pub fn let_approve(lab: &Lab, group: &str, signer: &str) {
    let rule = json!({"apiGroups": [group], "resources": ["signers"], "resourceNames": [signer], "verbs": ["approve"]});
    let patch = json!([{"op": "add", "path": "/rules/-", "value": rule}]).to_string();
    lab.api.kubectl(&["patch", "clusterrole", "etcd-tls-approve", "--type=json", "--patch", &patch]);
}

/// Starts `approve` with the rights of its account.
pub async fn approve(lab: &Lab, arguments: &[String]) -> Process {
    let kubeconfig = lab.api.token_kubeconfig("approve", &lab.api.token(SYSTEM, "etcd-tls-approve", None).await);
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["approve", "--cert-manager"]).args(arguments);
    command.arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    Process::spawn("approve", &mut command, lab.api.directory().path())
}

/// A running pod with these annotations.
pub async fn pod(lab: &Lab, namespace: &str, name: &str, annotations: &[(&str, &str)]) -> Pod {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(key, value)| (format!("etcd-tls.dev/{key}"), *value)).collect();
    let pod = json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "etcd", "image": "etcd"}]},
    });
    let pod = eventually("a pod", LIMIT, || lab.api.pod(namespace, pod.clone())).await;
    let ip: IpAddr = address(namespace, name).parse().expect("an address");
    lab.api.set_pod_ips(namespace, name, &[ip]).await;
    pod
}

/// Runs the sidecar's `init` of a pod, whose bundle is of `issuer`.
async fn init(lab: &Lab, namespace: &str, pod: &Pod, issuer: &CertManager, argument: &str) -> Result<(), String> {
    let (dir, environment) = lab.mounted(namespace, pod).await;
    dir.dir("trust");
    for domain in ["peer", "client"] {
        dir.write(format!("trust/{domain}.crt"), issuer.ca());
    }
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["init", "--roles=peer,server", "--log-level=info", argument]);
    for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
        command.arg(flag).arg(dir.join(name));
    }
    command.arg("--termination-log").arg(dir.join("termination-log"));
    command.envs(environment).env("POD_IPS", address(namespace, &pod.name_any()));
    let mut init = Process::spawn("init", &mut command, dir.path());
    if init.wait(LIMIT).await.success() { Ok(()) } else { Err(init.log()) }
}

/// A request by hand, with the pod's own token.
struct Asked {
    common_name: String,
    sans: Sans,
    usages: Vec<String>,
}

impl Asked {
    /// What a pod is.
    fn of(namespace: &str, pod: &str) -> Self {
        let usages = identity::usages(Role::Peer).iter().map(|usage| (*usage).to_owned()).collect();
        let sans = address(namespace, pod).parse().expect("an address");
        Self { common_name: format!("system:etcd-peer:{pod}"), sans, usages }
    }
}

struct Way<'a> {
    lab: &'a Lab,
    kind: Kind,
    namespace: &'static str,
    signer: String,
}

impl Way<'_> {
    fn client(&self, client: Client) -> (Api<DynamicObject>, Api<CertificateSigningRequest>) {
        (Api::namespaced_with(client.clone(), self.namespace, &resource()), Api::all(client))
    }

    fn object(&self, pod: &Pod, asked: &Asked, name: Option<&str>) -> (String, Value) {
        let (pod_name, uid) = (pod.name_any(), pod.uid().expect("a uid"));
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
        let pem = key.request(Role::Peer.organization(), &asked.common_name, &asked.sans).expect("make a request");
        let own = || names::csr_name(&uid, Role::Peer, &key_digest(&key.public_key()));
        let name = name.map_or_else(own, str::to_owned);
        let request = ByteString(pem.into_bytes());
        let object = match self.kind {
            Kind::CertManager => json!({
                "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
                "metadata": {
                    "name": name,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": uid}],
                },
                "spec": {
                    "request": request, "duration": "24h", "usages": asked.usages, "issuerRef": {"name": "company"},
                },
            }),
            Kind::Signer => json!({
                "metadata": {"name": name},
                "spec": {
                    "request": request, "expirationSeconds": 86_400, "usages": asked.usages, "signerName": self.signer,
                },
            }),
        };
        (name, object)
    }

    /// Creates a request as the owner of `client`; its name.
    async fn create(&self, client: Client, pod: &Pod, asked: &Asked, name: Option<&str>) -> String {
        let (name, object) = self.object(pod, asked, name);
        let (requests, signing) = self.client(client);
        eventually("a request", LIMIT, || async {
            let params = PostParams::default();
            match self.kind {
                Kind::CertManager => requests.create(&params, &from_json(object.clone())).await.map(drop),
                Kind::Signer => signing.create(&params, &from_json(object.clone())).await.map(drop),
            }
        })
        .await;
        name
    }

    /// The same with the token of the pod.
    async fn ask(&self, pod: &Pod, asked: &Asked) -> String {
        let token = self.lab.api.token(self.namespace, "default", Some(pod)).await;
        self.create(self.lab.api.client_with_token(&token).await, pod, asked, None).await
    }

    async fn status(&self, name: &str) -> Value {
        let (requests, signing) = self.client(self.lab.api.client.clone());
        match self.kind {
            Kind::CertManager => requests.get(name).await.expect("the request").data["status"].clone(),
            Kind::Signer => {
                let request = signing.get(name).await.expect("the request");
                serde_json::to_value(request.status).expect("JSON")
            }
        }
    }

    async fn condition(&self, name: &str, type_: &str) -> Option<Value> {
        let status = self.status(name).await;
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == type_).cloned()
    }

    /// Waits for the denial; its message.
    async fn denied(&self, name: &str, approve: &Process) -> String {
        let denied = eventually("a denial", LIMIT, || async {
            self.condition(name, "Denied").await.ok_or_else(|| approve.log_end())
        })
        .await;
        assert_eq!(denied["reason"], "EtcdTlsDenied");
        let status = self.status(name).await;
        assert!(status["certificate"].is_null(), "{status}");
        denied["message"].as_str().unwrap_or_default().to_owned()
    }

    async fn is_open(&self, name: &str) {
        for type_ in ["Approved", "Denied"] {
            assert_eq!(self.condition(name, type_).await, None, "{name}");
        }
    }
}

/// Both ways, of the issuer that leaves the approval to others.
fn ways(lab: &Lab) -> [Way<'_>; 2] {
    let way = |kind, namespace| {
        lab.grant(namespace, kind);
        Way { lab, kind, namespace, signer: lab.signer(namespace) }
    };
    [way(Kind::CertManager, "cm"), way(Kind::Signer, "csr")]
}

/// The arguments that name both issuers.
fn arguments(ways: &[Way<'_>]) -> Vec<String> {
    let of = |way: &Way<'_>| match way.kind {
        Kind::CertManager => format!("--approve-issuer=issuers.cert-manager.io/{}.company", way.namespace),
        Kind::Signer => format!("--approve-signer={}", way.signer),
    };
    ways.iter().map(of).collect()
}

fn let_approve_all(lab: &Lab, ways: &[Way<'_>]) {
    for way in ways {
        match way.kind {
            Kind::CertManager => {
                let_approve(lab, "cert-manager.io", &format!("issuers.cert-manager.io/{}.company", way.namespace));
            }
            Kind::Signer => let_approve(lab, "certificates.k8s.io", &way.signer),
        }
    }
}

async fn lab() -> Option<Lab> {
    let lab = Lab::new().await?;
    if !CertManager::write_who_asks(&lab.api).await {
        tests::tier::skip_special(
            "the API server has no v1 MutatingAdmissionPolicy",
            "KUBEBUILDER_ASSETS=<Kubernetes 1.36 or later>",
        );
        return None;
    }
    Some(lab)
}

fn issuer_of(way: &Way<'_>) -> String {
    match way.kind {
        Kind::CertManager => "cert-manager:Issuer/company".to_owned(),
        Kind::Signer => format!("csr:{}", way.signer),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_other_issuers_are_decided_by_the_same_rules() {
    let Some(lab) = lab().await else { return };
    scenario(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_cert_manager_itself_are_decided_by_the_same_rules() {
    let Some(lab) = Lab::of_cert_manager_itself().await else { return };
    lab.grant_reference("csr");
    scenario(&lab).await;
}

async fn scenario(lab: &Lab) {
    install(lab);
    let ways = ways(lab);
    let issuers: Vec<CertManager> = ways.iter().map(|way| lab.issuer(way.namespace)).collect();
    issuers.iter().for_each(CertManager::leave_approval_to_others);
    off_by_default(lab, &ways).await;
    let_approve_all(lab, &ways);
    let approve = approve(lab, &arguments(&ways)).await;
    for (way, issuer) in ways.iter().zip(&issuers) {
        let named = issuer_of(way);
        let pod = pod(lab, way.namespace, "etcd-0", &[("issuer", &named), ("roles", "peer,server")]).await;
        init(lab, way.namespace, &pod, issuer, &format!("--issuer={named}"))
            .await
            .unwrap_or_else(|log| panic!("{log}\n{}", approve.log_end()));
        let good = way.ask(&pod, &Asked::of(way.namespace, "etcd-0")).await;
        let approved = eventually("an approval", LIMIT, || async {
            way.condition(&good, "Approved").await.ok_or_else(|| approve.log_end())
        })
        .await;
        assert_eq!(approved["reason"], "EtcdTlsApproved", "{approved}");
        eventually("the certificate", LIMIT, || async {
            let status = way.status(&good).await;
            if status["certificate"].is_string() { Ok(()) } else { Err(status) }
        })
        .await;
        refusals(way, &pod, &approve).await;
    }
}

/// Without the arguments nobody of ours decides.
async fn off_by_default(lab: &Lab, ways: &[Way<'_>]) {
    let mut approve = approve(lab, &[]).await;
    for way in ways {
        let named = issuer_of(way);
        let pod = pod(lab, way.namespace, "first", &[("issuer", &named)]).await;
        let open = way.ask(&pod, &Asked::of(way.namespace, "first")).await;
        // One of ours, made later, is decided.
        let ours = Way { kind: Kind::Signer, signer: format!("peer.etcd-tls.dev/{}.etcd", way.namespace), ..*way };
        let later = ours.ask(&pod, &Asked::of(way.namespace, "first")).await;
        assert!(ours.denied(&later, &approve).await.contains("WrongSigner"));
        way.is_open(&open).await;
        lab.api.delete_pod(way.namespace, "first").await;
    }
    approve.kill();
}

async fn refusals(way: &Way<'_>, pod_0: &Pod, approve: &Process) {
    let asked = Asked::of(way.namespace, "etcd-0");
    let other = |change: &dyn Fn(&mut Asked)| {
        let mut asked = Asked::of(way.namespace, "etcd-0");
        change(&mut asked);
        asked
    };
    for (what, asked, reason) in [
        ("another pod's name", other(&|a| a.common_name = "system:etcd-peer:etcd-1".to_owned()), "WrongSubject"),
        ("a name of no pod", other(&|a| a.common_name = "root".to_owned()), "WrongSubject"),
        ("another's address", other(&|a| a.sans = "10.0.0.2".parse().expect("an address")), "NameNotAllowed"),
        ("another's DNS name", other(&|a| a.sans = "etcd.example.com".parse().expect("a name")), "NameNotAllowed"),
        ("a usage less", other(&|a| a.usages.truncate(1)), "WrongUsages"),
    ] {
        let name = way.ask(pod_0, &asked).await;
        let message = way.denied(&name, approve).await;
        assert!(message.starts_with(reason), "{what}: {message}");
    }
    // The wrong pod: its annotation names our own signer, so the right to request is not for it.
    let wrong = pod(way.lab, way.namespace, "etcd-1", &[]).await;
    let name = way.ask(&wrong, &Asked::of(way.namespace, "etcd-1")).await;
    let message = way.denied(&name, approve).await;
    assert!(message.contains("WrongSigner: the pod's issuer is csr, not "), "{message}");
    // And one that has not opted in.
    let out = json!({"metadata": {"name": "out", "labels": {"etcd-tls": "disabled"}}, "spec": {"containers": [{"name": "etcd", "image": "etcd"}]}});
    let out = eventually("a pod", LIMIT, || way.lab.api.pod(way.namespace, out.clone())).await;
    let name = way.ask(&out, &Asked::of(way.namespace, "out")).await;
    let message = way.denied(&name, approve).await;
    assert!(message.contains("NotOptedIn"), "{message}");
    // Requests of others to the same issuer are left to others.
    let theirs = way.create(way.lab.api.client.clone(), pod_0, &asked, Some("of-others")).await;
    let good = way.ask(pod_0, &asked).await;
    eventually("an approval", LIMIT, || async {
        way.condition(&good, "Approved").await.ok_or_else(|| approve.log_end())
    })
    .await;
    way.is_open(&theirs).await;
}

/// What a stolen token of `approve` can write to requests to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_of_approve_decides_what_is_listed_and_nothing_else() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    let ways = ways(&lab);
    let approve = approve(&lab, &[]).await;
    let token = lab.api.token(SYSTEM, "etcd-tls-approve", None).await;
    let stolen = lab.api.client_with_token(&token).await;
    for way in &ways {
        let pod = pod(&lab, way.namespace, "etcd-0", &[("issuer", &issuer_of(way))]).await;
        let asked = Asked::of(way.namespace, "etcd-0");
        let name = way.ask(&pod, &asked).await;
        let theirs = way.create(lab.api.client.clone(), &pod, &asked, Some("of-others")).await;
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let approved = json!({"conditions": [condition("Approved", "True")]});
        // A policy that was just installed takes a moment.
        let refused = eventually("a refusal of what is not listed", LIMIT, || async {
            write(way, &stolen, &name, &approved).await.err().ok_or("written")
        })
        .await;
        assert!(refused.contains("approve") && refused.contains("etcd-tls"), "{refused}");
        let_approve_all(&lab, std::slice::from_ref(way));
        eventually("the right to approve", LIMIT, || write(way, &stolen, &name, &approved)).await;
        write(way, &stolen, &name, &json!({"conditions": [condition("Denied", "True")]})).await.expect("deny");
        write(way, &stolen, &theirs, &approved).await.expect_err("of others");
        let (requests, signing) = way.client(stolen.clone());
        match way.kind {
            Kind::CertManager => {
                for status in [
                    json!({"conditions": [condition("Approved", "True"), condition("Ready", "True")]}),
                    json!({"conditions": [condition("Ready", "True")]}),
                    json!({"conditions": [condition("Approved", "False")]}),
                    json!({"certificate": "YWJj"}),
                    json!({"ca": "YWJj"}),
                    json!({"failureTime": "2026-01-01T00:00:00Z"}),
                ] {
                    let refused = write(way, &stolen, &name, &status).await.expect_err("refused");
                    assert!(refused.contains("etcd-tls: approve"), "{status}: {refused}");
                }
                let dry = PatchParams { dry_run: true, ..PatchParams::default() };
                let label = json!({"metadata": {"labels": {"a": "b"}}});
                requests.patch(&name, &dry, &Patch::Merge(label)).await.expect_err("no right to the request itself");
                requests.delete(&name, &Default::default()).await.expect_err("no right to delete");
                // A decision stays.
                let admin = way.client(lab.api.client.clone()).0;
                let denied = Patch::Merge(json!({"status": {"conditions": [condition("Denied", "True")]}}));
                admin.patch_status(&name, &PatchParams::default(), &denied).await.expect("denied by an administrator");
                for conditions in [
                    json!([condition("Approved", "True")]),
                    json!([condition("Denied", "True"), condition("Approved", "True")]),
                    json!([]),
                ] {
                    write(way, &stolen, &name, &json!({"conditions": conditions})).await.expect_err("it is denied");
                }
            }
            Kind::Signer => {
                let patch = Patch::Merge(json!({"status": {"certificate": "YWJj"}}));
                signing.patch_status(&name, &PatchParams::default(), &patch).await.expect_err("no right to sign");
                signing.delete(&name, &Default::default()).await.expect_err("no right to delete");
            }
        }
    }
    drop(approve);
    nobody_else_says_who_asks(&lab, &ways[0]).await;
}

/// A decision as a dry run.
async fn write(way: &Way<'_>, client: &Client, name: &str, status: &Value) -> Result<(), String> {
    let (requests, signing) = way.client(client.clone());
    let (dry, patch) =
        (PatchParams { dry_run: true, ..PatchParams::default() }, Patch::Merge(json!({"status": status})));
    let result = match way.kind {
        Kind::CertManager => requests.patch_status(name, &dry, &patch).await.map(drop),
        Kind::Signer => signing.patch_approval(name, &dry, &patch).await.map(drop),
    };
    result.map_err(|error| error.to_string())
}

/// Where cert-manager's webhook is away, an account that no policy of pods holds could write another's name.
async fn nobody_else_says_who_asks(lab: &Lab, way: &Way<'_>) {
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        lab.api.kubectl(&["delete", kind, "cert-manager-webhook"]);
    }
    let pod = pod(lab, way.namespace, "etcd-2", &[("issuer", &issuer_of(way))]).await;
    let (_, mut object) = way.object(&pod, &Asked::of(way.namespace, "etcd-2"), None);
    object["spec"]["username"] = format!("system:serviceaccount:{}:default", way.namespace).into();
    let requests = way.client(lab.api.client.clone()).0;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("who asks to be refused", LIMIT, || async {
        match requests.create(&dry, &from_json(object.clone())).await {
            Err(error) if error.to_string().contains("those of the account that asks") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let good = way.ask(&pod, &Asked::of(way.namespace, "etcd-2")).await;
    let forged = Patch::Merge(json!({"spec": {"username": "system:admin"}}));
    let refused = requests.patch(&good, &PatchParams::default(), &forged).await.expect_err("another name").to_string();
    assert!(refused.contains("does not change"), "{refused}");
}

/// `check` sees whether cert-manager's own approver is off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_whether_the_approver_of_cert_manager_is_off() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    let ways = ways(&lab);
    let way = &ways[0];
    let (subject, check) = ("approver of cert-manager", |lab: &Lab| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let output =
            command.args(["check", "-o", "json"]).env("KUBECONFIG", &lab.api.kubeconfig).output().expect("run check");
        serde_json::from_slice::<Vec<Value>>(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    });
    let state = |lab: &Lab| {
        let findings = check(lab);
        let found = findings.into_iter().find(|finding| finding["subject"] == subject);
        found.map(|finding| (finding["state"].as_str().unwrap_or_default().to_owned(), finding))
    };
    assert!(state(&lab).is_none(), "nothing is decided for issuers of cert-manager");
    let argument = json!([{
        "op": "add", "path": "/spec/template/spec/containers/0/args/-",
        "value": "--approve-issuer=issuers.cert-manager.io/cm.company",
    }]);
    let argument = argument.to_string();
    lab.api.kubectl(&["patch", "-n", SYSTEM, "deployment", "etcd-tls-approve", "--type=json", "--patch", &argument]);
    let of = |expected: &str| {
        let (state, finding) = state(&lab).expect("a finding");
        assert_eq!(state, expected, "{finding}");
        finding
    };
    assert!(of("unknown")["next"].as_str().is_some_and(|next| next.starts_with("kubectl ")));
    let controller = |arguments: &[&str]| {
        let labels = json!({"app.kubernetes.io/name": "cert-manager", "app.kubernetes.io/component": "controller"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "cert-manager", "namespace": "default", "labels": labels},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "c", "image": "c", "args": arguments}]},
                },
            },
        });
        lab.api.apply(&deployment.to_string());
    };
    controller(&["--v=2"]);
    assert!(of("failing")["next"].as_str().is_some_and(|next| next.contains("disableAutoApproval")));
    controller(&["--v=2", "--controllers=*,-certificaterequests-approver"]);
    of("ok");
    // What is seen counts before what an argument says.
    let approve = approve(&lab, &[]).await;
    let _issuer = lab.issuer(way.namespace);
    let pod = pod(&lab, way.namespace, "etcd-0", &[("issuer", &issuer_of(way))]).await;
    let name = way.ask(&pod, &Asked::of(way.namespace, "etcd-0")).await;
    eventually("an approval", LIMIT, || async {
        way.condition(&name, "Approved").await.ok_or_else(|| approve.log_end())
    })
    .await;
    assert!(of("failing")["reason"].as_str().is_some_and(|reason| reason.contains(&name)));
}
