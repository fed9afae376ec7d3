//! kube-controller-manager's own signer: kubernetes.io/kube-apiserver-client, which signs for clients alone, with our approver.

use std::{process::Command, time::Duration};

use etcd_tls_contract::{
    certificate::Chain,
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
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    etcd_client::EtcdClient as Http,
    eventually,
    pki::Ca,
    ports,
    process::{Process, binary},
    temp::TempDir,
};

use crate::{
    approving::{self, address},
    scene::{LIMIT, Lab},
};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const NAMESPACE: &str = "csr";

/// kube-controller-manager that signs with `ca`, and does nothing else.
fn signer(lab: &Lab, ca: &Ca, more: &[&str]) -> Process {
    let directory = lab.api.directory();
    let files = [("cert", &ca.pem), ("key", &ca.key_pem)]
        .map(|(kind, pem)| (kind, directory.write(format!("etcd-clients.{kind}"), pem)));
    let files = files.map(|(kind, path)| format!("--cluster-signing-{kind}-file={}", path.display()));
    let more = more.iter().map(|argument| (*argument).to_owned());
    let alone = "--controllers=certificatesigningrequest-signing-controller".to_owned();
    let arguments: Vec<String> = files.into_iter().chain([alone]).chain(more).collect();
    lab.api.start_controller_manager(&arguments).expect("kube-controller-manager")
}

/// Lets the service accounts of the namespace request from the signer.
fn grant(lab: &Lab) {
    let (rbac, name) = ("rbac.authorization.k8s.io", "request-kube-client");
    let rule = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [SIGNER], "verbs": ["request"]});
    let group = json!({"kind": "Group", "apiGroup": rbac, "name": format!("system:serviceaccounts:{NAMESPACE}")});
    let items = json!([
        {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]},
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name}, "subjects": [group],
        },
    ]);
    lab.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

/// A pod and its directory.
struct EtcdClient {
    pod: Pod,
    dir: TempDir,
    environment: Vec<(String, String)>,
}

impl EtcdClient {
    async fn new(lab: &Lab, name: &str, annotations: &[(&str, &str)], ca: &Ca) -> Self {
        let pod = approving::pod(lab, NAMESPACE, name, annotations).await;
        let (dir, mut environment) = lab.mounted(NAMESPACE, &pod).await;
        environment.push(("POD_IPS".to_owned(), address(NAMESPACE, name)));
        dir.write(format!("token/{}", names::RENEW_FILE), "");
        let client = Self { pod, dir, environment };
        client.publish(&ca.pem);
        client
    }

    /// Writes the bundle where admission's projection would bring it.
    fn publish(&self, pem: &str) {
        self.dir.dir("trust");
        self.dir.write("trust/.new", pem);
        std::fs::rename(self.dir.join("trust/.new"), self.dir.join("trust/client.crt")).expect("rename");
    }

    fn start(&self, subcommand: &str, more: &[&str]) -> Process {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args([subcommand, "--roles=client", "--log-level=info", &format!("--issuer=csr:{SIGNER}")]);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log")).args(more);
        command.envs(self.environment.iter().cloned());
        Process::spawn(subcommand, &mut command, self.dir.path())
    }

    fn chain(&self) -> Option<Chain> {
        let pem = std::fs::read(self.dir.join("certs/client/tls.crt")).ok()?;
        Some(Chain::parse(&pem).expect("a chain"))
    }

    /// Writes a value of the annotation `renew` where kubelet brings it.
    fn write_renew(&self, value: &str) {
        self.dir.write("token/.renew", value);
        std::fs::rename(self.dir.join("token/.renew"), self.dir.join("token").join(names::RENEW_FILE)).expect("rename");
    }

    /// Starts `run`, until it is ready: it has read the annotation `renew` by then, and the next value asks.
    async fn run(&self, port: u16) -> Process {
        let run = self.start("run", &[&format!("--admin-port={port}")]);
        let url = format!("http://127.0.0.1:{port}");
        eventually("run to be ready", LIMIT, || async {
            let ready = async { Http::plain().connect(&url).await?.get("/ready").await };
            ready.await.map_err(|error| format!("{error}: {}", run.log_end()))
        })
        .await;
        run
    }

    /// Asks for another certificate, and waits for it.
    async fn renew(&self, value: &str, run: &Process) -> Chain {
        let before = self.chain().map(|chain| chain.serial);
        self.write_renew(value);
        eventually("another certificate", LIMIT, || async {
            let other = self.chain().filter(|chain| Some(&chain.serial) != before.as_ref());
            other.ok_or_else(|| run.log_end())
        })
        .await
    }

    /// Requests by hand with the pod's token; the request's name.
    async fn ask(&self, client: Client, common_name: &str, signer: &str) -> Result<String, String> {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
        let pem = key.request(Role::Client.organization(), common_name, &Sans::default()).expect("make a request");
        let name = names::csr_name(&self.pod.uid().expect("a uid"), Role::Client, &key_digest(&key.public_key()));
        let object = json!({
            "metadata": {"name": name},
            "spec": {
                "request": ByteString(pem.into_bytes()), "expirationSeconds": 86_400,
                "usages": identity::usages(Role::Client), "signerName": signer,
            },
        });
        let all: Api<CertificateSigningRequest> = Api::all(client);
        let made = all.create(&PostParams::default(), &from_json(object)).await;
        made.map(|request| request.name_any()).map_err(|error| error.to_string())
    }
}

async fn metrics(port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}");
    let mut http = Http::plain().connect(&url).await.expect("the admin port");
    http.get("/metrics").await.expect("metrics")
}

async fn shows(port: u16, line: &str) {
    eventually("a metric", LIMIT, || async {
        let metrics = metrics(port).await;
        if metrics.contains(line) { Ok(()) } else { Err(format!("no {line}: {metrics}")) }
    })
    .await;
}

async fn status(lab: &Lab, name: &str) -> Value {
    let all: Api<CertificateSigningRequest> = Api::all(lab.api.client.clone());
    serde_json::to_value(all.get(name).await.expect("the request").status).expect("JSON")
}

fn condition(status: &Value, type_: &str) -> Option<Value> {
    status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == type_).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_of_kube_controller_manager_issues_renews_and_is_held_to_the_same_identity() {
    let Some(lab) = Lab::without_kube_signer().await else { return };
    approving::install(&lab);
    approving::let_approve(&lab, "certificates.k8s.io", SIGNER);
    grant(&lab);
    let ca = Ca::new("etcd clients");
    let mut kube_signer = signer(&lab, &ca, &["--cluster-signing-duration=20m"]);
    let mut approve = approving::approve(&lab, &[format!("--approve-signer={SIGNER}")]).await;
    let issuer = format!("csr:{SIGNER}");
    let annotations = [("issuer", issuer.as_str()), ("roles", "client")];

    // Issue.
    let client = EtcdClient::new(&lab, "client-0", &annotations, &ca).await;
    let mut init = client.start("init", &[]);
    assert!(init.wait(LIMIT).await.success(), "{}\n{}\n{}", init.log(), approve.log_end(), kube_signer.log_end());
    let chain = client.chain().expect("a certificate");
    assert_eq!(chain.authority(), "CN=etcd clients");
    // A shorter life than the day that is asked for.
    let life = chain.not_after.duration_since(chain.not_before).expect("a life");
    assert!(life <= Duration::from_secs(26 * 60), "{life:?}\n{}", kube_signer.log_end());
    assert!(init.log().contains("the issuer gave a life of"), "{}", init.log());

    // Renew.
    let port = ports::loopback();
    let run = client.run(port).await;
    client.renew("first", &run).await;
    kube_signer.kill();
    kube_signer = signer(&lab, &ca, &[]);
    let longer = client.renew("longer", &run).await;
    assert!(longer.not_after > chain.not_after + Duration::from_secs(3600), "{}", run.log());

    // Nobody decides, then an administrator denies; the metric says which, until there is a certificate.
    approve.kill();
    let outcome = |outcome: &str| format!("etcd_tls_request_outcome{{role=\"client\",outcome=\"{outcome}\"}} 1");
    assert!(!metrics(port).await.contains("etcd_tls_request_outcome{"));
    client.write_renew("nobody");
    shows(port, &outcome("not_yet")).await;
    let signing: Api<CertificateSigningRequest> = Api::all(lab.api.client.clone());
    let denied =
        json!({"status": {"conditions": [{"type": "Denied", "status": "True", "reason": "Test", "message": "no"}]}});
    let open = eventually("the request", LIMIT, || async {
        let undecided = |request: &CertificateSigningRequest| {
            let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_none_or(Vec::is_empty)
        };
        let mut open = signing.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        open.retain(undecided);
        if let [one] = &*open { Ok(one.name_any()) } else { Err(format!("{open:?}\n{}", run.log_end())) }
    })
    .await;
    signing.patch_approval(&open, &PatchParams::default(), &Patch::Merge(&denied)).await.expect("deny");
    shows(port, &outcome("denied")).await;
    approve = approving::approve(&lab, &[format!("--approve-signer={SIGNER}")]).await;
    client.renew("again", &run).await;
    eventually("no outcome", LIMIT, || async {
        let metrics = metrics(port).await;
        if metrics.contains("etcd_tls_request_outcome{") { Err(metrics) } else { Ok(()) }
    })
    .await;

    // Away, and back with another CA, of which the bundle learns later.
    kube_signer.kill();
    let before = client.chain().expect("a certificate").serial;
    client.write_renew("away");
    shows(port, &outcome("not_yet")).await;
    let next = Ca::new("next etcd clients");
    let _kube_signer = signer(&lab, &next, &[]);
    let waits = "etcd_tls_certificate_waits{role=\"client\",ca=\"CN=next etcd clients\"} 1";
    shows(port, waits).await;
    assert_eq!(client.chain().expect("a certificate").serial, before, "the old one stays");
    client.publish(&format!("{}{}", ca.pem, next.pem));
    eventually("a certificate of the next CA", LIMIT, || async {
        let authority = client.chain().expect("a certificate").authority();
        if authority == "CN=next etcd clients" { Ok(()) } else { Err(run.log_end()) }
    })
    .await;

    // Deny: the annotations of the pod name another issuer.
    let member = EtcdClient::new(&lab, "member-0", &[("issuer", "csr")], &ca).await;
    let mut init = member.start("init", &[]);
    init.logged("was denied", LIMIT).await;
    assert!(init.log().contains("WrongSigner"), "{}", init.log());
    init.kill();

    // The wrong pod: with its own token, the name of another.
    let other = EtcdClient::new(&lab, "client-1", &annotations, &ca).await;
    let token = lab.api.token(NAMESPACE, "default", Some(&other.pod)).await;
    let theirs = lab.api.client_with_token(&token).await;
    for common_name in ["root", "system:masters", "system:kube-controller-manager"] {
        let name = other.ask(theirs.clone(), common_name, SIGNER).await.expect("a request");
        let denied = eventually("a denial", LIMIT, || async {
            condition(&status(&lab, &name).await, "Denied").ok_or_else(|| approve.log_end())
        })
        .await;
        assert!(denied["message"].as_str().is_some_and(|message| message.contains("WrongSubject")), "{denied}");
        assert!(status(&lab, &name).await["certificate"].is_null());
    }
}

/// Of the names of signers, kube-controller-manager signs its own, and each for its own subjects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_controller_manager_signs_for_no_name_of_others() {
    let Some(lab) = Lab::without_kube_signer().await else { return };
    let ca = Ca::new("etcd clients");
    let kube_signer = signer(&lab, &ca, &[]);
    let client = EtcdClient::new(&lab, "client-0", &[], &ca).await;
    let all: Api<CertificateSigningRequest> = Api::all(lab.api.client.clone());
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}});
    let ask = async |signer: &str| {
        let name = client.ask(lab.api.client.clone(), "default.csr", signer).await?;
        all.patch_approval(&name, &PatchParams::default(), &Patch::Merge(&approved)).await.expect("approve");
        Ok::<String, String>(name)
    };
    let legacy = ask("kubernetes.io/legacy-unknown").await.expect_err("not in v1");
    assert!(legacy.contains("legacy-unknown"), "{legacy}");
    let custom = ask("example.com/ca").await.expect("a request");
    let mut refused = Vec::new();
    for signer in ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"] {
        refused.push(ask(signer).await.expect("a request"));
    }
    let signed = ask(SIGNER).await.expect("a request");
    eventually("a certificate", LIMIT, || async {
        let status = status(&lab, &signed).await;
        if status["certificate"].is_string() { Ok(()) } else { Err(format!("{status}: {}", kube_signer.log_end())) }
    })
    .await;
    for name in refused {
        eventually("its refusal", LIMIT, || async {
            condition(&status(&lab, &name).await, "Failed").ok_or_else(|| kube_signer.log_end())
        })
        .await;
    }
    assert!(status(&lab, &custom).await["certificate"].is_null());
}
