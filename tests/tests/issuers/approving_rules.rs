//! The identity rules for requests to other issuers, through our approver.

use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;
use tests::{
    cert_manager::CertManager,
    eventually,
    process::{Process, binary},
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

/// Runs the sidecar's `init` of a pod, whose bundle is of `issuer`.
pub async fn init(lab: &Lab, namespace: &str, pod: &Pod, issuer: &CertManager, argument: &str) -> Result<(), String> {
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
