//! The signer's watch of pods stands still, and later has much to catch up with: pods are judged as they are all the same.

use etcd_tls_contract::{names::SYSTEM_NAMESPACE, role::Role};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::eventually;

use crate::{
    lab::{Asking, LIMIT, Lab, impersonated},
    proxy::Proxy,
    signer::{approve_if_pending, issue, issued, member, phase, refused, rollover, sign_at, trust, waits_for},
};

/// Asks as `requester`, approved by hand: the signer alone judges.
async fn ask(lab: &Lab, requester: &Client, asking: Asking) -> String {
    asking.create(requester).await;
    approve_if_pending(lab, &asking.name).await;
    asking.name
}

/// The same with an administrator's rights, as a pod that may be gone.
async fn ask_as(lab: &Lab, pod: &Pod, role: Role) -> String {
    ask_for(lab, pod, Asking::of(pod, role)).await
}

async fn ask_for(lab: &Lab, pod: &Pod, asking: Asking) -> String {
    asking.create_as(&lab.api.client, &impersonated(pod)).await;
    approve_if_pending(lab, &asking.name).await;
    asking.name
}

/// The signer gives nothing, for this reason.
async fn fails(lab: &Lab, name: &str, reason: &str) {
    let (condition, message) = refused(lab, name).await;
    assert!(condition == "Failed" && message.contains(reason), "{condition}: {message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_judged_by_a_state_no_older_than_its_request() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("stale", &[("etcd-tls", "dynamic")]).await;
    let (hold, held) = tokio::sync::watch::channel(false);
    let token = lab.api.token(SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    let proxy = Proxy::holding(lab.api.client_with_token(&token).await, "/api/v1/pods", held).await;
    let mut approver = lab.approver("approve-a", &[]);
    let _signer = sign_at(&lab, "sign-a", &proxy.url, &[]).await;
    let before = member(&lab, "stale", "etcd-0", Some("10.1.0.1")).await;
    let leaves = member(&lab, "stale", "etcd-1", Some("10.1.0.2")).await;
    for role in [Role::Peer, Role::Server] {
        issue(&lab, &before, role, None).await;
    }
    lab.api.namespace("roll", &[("etcd-tls", "dynamic")]).await;
    let first = member(&lab, "roll", "etcd-0", Some("10.1.0.20")).await;
    issue(&lab, &first, Role::Peer, None).await;
    approver.process.kill();

    hold.send(true).expect("the proxy listens");
    // Made again under its name, elsewhere.
    lab.api.delete_pod("stale", "etcd-0").await;
    let after = member(&lab, "stale", "etcd-0", Some("10.1.0.9")).await;
    fails(&lab, &ask_as(&lab, &before, Role::Peer).await, "WrongPod").await;
    let name = ask(&lab, &lab.requester(&after).await, Asking::of(&after, Role::Peer)).await;
    let chain = issued(&lab, &name).await;
    assert_eq!(chain.sans.ips, ["10.1.0.9".parse().expect("an address")].into(), "its address of now, alone");
    // Opted out, then gone.
    lab.api.delete_pod("stale", "etcd-1").await;
    let out = lab.pod("stale", "etcd-1", json!({"etcd-tls": "disabled"}), Some("10.1.0.2")).await;
    let name = ask(&lab, &lab.requester(&out).await, Asking::of(&out, Role::Peer)).await;
    fails(&lab, &name, "NotOptedIn").await;
    lab.api.delete_pod("stale", "etcd-1").await;
    fails(&lab, &ask_as(&lab, &leaves, Role::Server).await, "PodGone").await;
    // New.
    let new = member(&lab, "stale", "etcd-2", Some("10.1.0.3")).await;
    let requester = lab.requester(&new).await;
    issued(&lab, &ask(&lab, &requester, Asking::of(&new, Role::Server)).await).await;

    // A backlog, with requests between.
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), "stale");
    for n in 0..200 {
        let annotation = json!({"metadata": {"annotations": {"backlog": format!("{n}")}}});
        pods.patch("etcd-2", &PatchParams::default(), &Patch::Merge(annotation)).await.expect("change a pod");
    }
    lab.api.set_pod_ips("stale", "etcd-2", &["10.1.0.4".parse().expect("an address")]).await;
    hold.send(false).expect("the proxy listens");
    let moved = pods.get("etcd-2").await.expect("a pod");
    let chain = issued(&lab, &ask(&lab, &requester, Asking::of(&moved, Role::Peer)).await).await;
    assert_eq!(chain.sans.ips, ["10.1.0.4".parse().expect("an address")].into(), "its address of now, alone");
    fails(&lab, &ask(&lab, &requester, Asking::of(&new, Role::Peer)).await, "NameNotAllowed").await;
    // A rollover, while the watch stands still again: whoever has a certificate is waited for, though the watch does not show it.
    let [old, ..] = trust(&lab, "roll", "etcd").await;
    rollover(&lab, &[]).expect("begin a rollover");
    let both = eventually("both CAs to be published", LIMIT, || async {
        let [peer, ..] = trust(&lab, "roll", "etcd").await;
        if peer.certificates().len() == 2 { Ok(peer) } else { Err("one") }
    })
    .await;
    hold.send(true).expect("the proxy listens");
    let unseen = member(&lab, "roll", "etcd-1", Some("10.1.0.21")).await;
    let states = async |pod: &Pod, digest: &str| {
        issued(&lab, &ask_for(&lab, pod, Asking::of(pod, Role::Peer).trusts(digest)).await).await;
    };
    states(&unseen, &old.digest()).await;
    states(&first, &both.digest()).await;
    waits_for(&lab, &format!("of uid {}", unseen.metadata.uid.as_deref().expect("a uid"))).await;
    hold.send(false).expect("the proxy listens");
    waits_for(&lab, "roll/etcd-1").await;
    states(&unseen, &both.digest()).await;
    phase(&lab, "signing").await;
}
