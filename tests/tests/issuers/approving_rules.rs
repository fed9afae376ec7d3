//! The identity rules for requests to other issuers, through our approver.

use std::{fs, process::Command};

use etcd_tls_contract::certificate::Chain;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;
use tests::{
    cert_manager::CertManager,
    eventually,
    process::{Process, binary, run},
    temp::TempDir,
};

use crate::{
    approving::{Asked, Way, address, approve, arguments, install, issuer_of, lab, let_approve_all, pod, ways},
    scene::{Kind, LIMIT, Lab},
};

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
        init(lab, way.namespace, &pod, &issuer.ca(), &format!("--issuer={named}"))
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

/// Runs the sidecar's `init` of a pod, whose bundle is `ca`.
pub async fn init(lab: &Lab, namespace: &str, pod: &Pod, ca: &str, argument: &str) -> Result<(), String> {
    Sidecar::new(lab, namespace, pod, "peer,server", ca, argument).await.init().await
}

/// The sidecar's program in a pod.
pub struct Sidecar {
    dir: TempDir,
    environment: Vec<(String, String)>,
    address: String,
    arguments: [String; 2],
}

impl Sidecar {
    /// Of these roles, with this bundle and this argument.
    pub async fn new(lab: &Lab, namespace: &str, pod: &Pod, roles: &str, ca: &str, argument: &str) -> Self {
        let (dir, environment) = lab.mounted(namespace, pod).await;
        dir.dir("trust");
        for domain in ["peer", "client", "metrics"] {
            dir.write(format!("trust/{domain}.crt"), ca);
        }
        let address = address(namespace, &pod.name_any());
        let arguments = [format!("--roles={roles}"), argument.to_owned()];
        Self { dir, environment, address, arguments }
    }

    /// Gives the pod another address, so that its certificates lack a name.
    pub async fn move_to(&mut self, lab: &Lab, namespace: &str, pod: &Pod, address: &str) {
        lab.api.set_pod_ips(namespace, &pod.name_any(), &[address.parse().expect("an address")]).await;
        address.clone_into(&mut self.address);
    }

    /// Starts `init`.
    pub fn start(&self) -> Process {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(["init", "--log-level=info"]).args(&self.arguments);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        command.envs(self.environment.iter().map(|(k, v)| (k, v))).env("POD_IPS", &self.address);
        Process::spawn("init", &mut command, self.dir.path())
    }

    /// Runs `init` to its end.
    ///
    /// # Errors
    /// It failed: its log.
    pub async fn init(&self) -> Result<(), String> {
        let mut init = self.start();
        if init.wait(LIMIT).await.success() { Ok(()) } else { Err(init.log()) }
    }

    /// Runs `init` until the certificate of its peer holds the pod's address.
    pub async fn obtain(&self) {
        let address = self.address.parse().expect("an address");
        eventually("a certificate with the pod's address", LIMIT, || async {
            self.init().await?;
            if self.chain("peer").sans.ips.contains(&address) { Ok(()) } else { Err("it lacks it".to_owned()) }
        })
        .await;
    }

    /// The subject of a role's certificate, by OpenSSL.
    pub fn subject(&self, role: &str) -> String {
        let path = self.dir.join("certs").join(role).join("tls.crt");
        run(Command::new("openssl").args(["x509", "-noout", "-subject", "-in"]).arg(path))
    }

    /// Has it say in one line what became of a request of its peer, and why, beside a certificate that stays in use.
    pub async fn says(&self, verdict: &str, reason: &str) {
        eventually("the issuer's answer to be said", LIMIT, || async {
            // An API server that needs half a second for an answer is taken for none.
            let mut init = self.start();
            assert!(init.wait(LIMIT).await.success(), "{}", init.log());
            let said = |line: &str| {
                [verdict, reason, "the certificate on disk stays in use"].iter().all(|words| line.contains(words))
            };
            if init.log().lines().any(said) { Ok(()) } else { Err(init.log_end()) }
        })
        .await;
    }

    /// The chain of a role on disk.
    pub fn chain(&self, role: &str) -> Chain {
        let pem = fs::read(self.dir.join("certs").join(role).join("tls.crt")).expect("a certificate");
        Chain::parse(&pem).expect("a chain")
    }
}
