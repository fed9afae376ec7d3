//! Requests that are left undecided and unsigned while a policy cannot be relied on.

use std::time::Duration;

use etcd_tls_contract::{names, role::Role};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tests::{eventually, installation, process::Process};

use crate::lab::{Approver, Asking, LIMIT, Lab};

/// Two requests of an administrator: the one would be denied at once, and the other, which is approved, fail.
struct Two {
    open: Asking,
    approved: Asking,
}

impl Two {
    async fn create(lab: &Lab, pod: &Pod) -> Self {
        let (open, approved) = (Asking::of(pod, Role::Peer), Asking::of(pod, Role::Server));
        open.create(&lab.api.client).await;
        approved.create(&lab.api.client).await;
        lab.approve_by_hand(&approved.name).await;
        Self { open, approved }
    }

    /// They stay as they are for some seconds.
    async fn stay(&self, lab: &Lab, why: &str) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(lab.verdict(&self.open.name).await, None, "{why}");
        let approved = lab.verdict(&self.approved.name).await.map(|(approved, _)| approved);
        assert_eq!(approved, Some(true), "{why}: no second condition");
        let status = lab.csr(&self.approved.name).await.status.unwrap_or_default();
        assert!(status.certificate.is_none(), "{why}: {status:?}");
    }

    /// Both are refused, now that they are looked at.
    async fn are_refused(&self, lab: &Lab, approver: &Approver, why: &str) {
        lab.ready(approver).await;
        let message = lab.denied(&self.open.name).await;
        assert!(message.contains("BadRequester"), "{why}: {message}");
        eventually("the signer's refusal", LIMIT, || async {
            let conditions = lab.csr(&self.approved.name).await.status.and_then(|s| s.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Failed") { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await;
    }
}

async fn signer(lab: &Lab) -> Process {
    let token = lab.api.token(names::SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    lab.api.token_kubeconfig("sign", &token);
    installation::controller_again(&lab.api, "sign")
}

/// Processes that start with a policy that cannot be parsed have none: they decide no request until it is corrected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_with_an_unreadable_policy_decide_no_request() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("unread", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("unread", "etcd-0", json!({}), Some("10.1.0.1")).await;
    lab.set_policy("extraSans: [{nonsense").await;
    let two = Two::create(&lab, &pod).await;
    let approver = lab.approver("approve-a", &[]);
    let signer = signer(&lab).await;
    lab.unready(&approver, "no policy could be read yet").await;
    signer.logged("policy unreadable", LIMIT).await;
    signer.logged("leading", LIMIT).await;
    two.stay(&lab, "unreadable").await;
    lab.set_policy("").await;
    two.are_refused(&lab, &approver, "readable").await;
}

/// Without the policy on writes of requests, or where it only warns, none is decided and none is signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_decided_while_the_policy_on_its_writes_is_not_in_force() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("held", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("held", "etcd-0", json!({}), Some("10.1.0.1")).await;
    let approver = lab.approver("approve-a", &[]);
    lab.ready(&approver).await;
    let signer = signer(&lab).await;
    let (what, policy) = ("validatingadmissionpolicybinding", "etcd-tls-request-writes");
    for fault in ["missing", "not Deny"] {
        let said = || {
            let log = signer.log();
            log.lines().filter(|line| line.contains("policy is not enforced") && line.contains(policy)).count()
        };
        let before = said();
        match fault {
            "missing" => lab.api.kubectl(&["delete", what, policy]),
            _ => lab.api.kubectl(&["patch", what, policy, "-p", r#"{"spec": {"validationActions": ["Warn"]}}"#]),
        };
        lab.unready(&approver, policy).await;
        eventually("the signer to notice", LIMIT, || async {
            if said() > before { Ok(()) } else { Err(signer.log_end()) }
        })
        .await;
        let two = Two::create(&lab, &pod).await;
        two.stay(&lab, fault).await;
        lab.install();
        two.are_refused(&lab, &approver, fault).await;
    }
}
