//! The approver on a real API server, with the rights as shipped and tokens bound to pods: approvals, every refusal, requests
//! that it leaves alone, the bindings that it keeps, and its replicas.

#[path = "approve/bindings.rs"]
mod bindings;
#[path = "approve/held.rs"]
mod held;
#[path = "approve/lab.rs"]
mod lab;
#[path = "approve/proxy.rs"]
mod proxy;
#[path = "approve/readers.rs"]
mod readers;

use std::{net::IpAddr, time::Duration};

use etcd_tls_contract::{names, role::Role};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest, coordination::v1::Lease, core::v1::Service, events::v1::Event,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lab::{Asking, LIMIT, Lab, impersonated};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{apiserver::from_json, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decides_by_what_the_pod_is() {
    let Some(lab) = Lab::new().await else { return };
    // Left by others before the approver starts; none of it may change.
    lab.api.namespace("early", &[("etcd-tls", "dynamic")]).await;
    let early = lab.pod("early", "etcd-0", json!({}), Some("10.1.0.1")).await;
    let by_hand = Asking::of(&early, Role::Peer)
        .sans(|sans| sans.ips.extend(["10.9.9.9".parse::<IpAddr>().ok()].into_iter().flatten()));
    by_hand.create(&lab.api.client).await;
    lab.approve_by_hand(&by_hand.name).await;
    let foreign = Asking::of(&early, Role::Server).signer("etcd-tls.example.com/pod2").named("foreign");
    let nobodys = Asking::of(&early, Role::Server).signer("x.etcd-tls.dev/early.etcd").named("nobodys");
    foreign.create(&lab.api.client).await;
    nobodys.create(&lab.api.client).await;

    let approver = lab.approver("approve-a", &[]);
    lab.ready(&approver).await;

    approves(&lab).await;
    refuses(&lab).await;
    waits(&lab).await;
    listens_to_policy(&lab).await;

    let by_hand = lab.csr(&by_hand.name).await;
    let conditions = by_hand.status.and_then(|s| s.conditions).unwrap_or_default();
    assert_eq!(conditions.iter().map(|c| c.reason.as_deref()).collect::<Vec<_>>(), [Some("ByHand")]);
    for name in ["foreign", "nobodys"] {
        assert_eq!(lab.verdict(name).await, None, "{name} is not ours to decide");
    }

    let metrics = lab.metrics(&approver).await;
    assert!(metrics.contains("\netcd_tls_panics_total 0\n"), "{metrics}");
    assert!(
        metrics.contains("etcd_tls_approve_decisions_total{verdict=\"deny\",reason=\"NameNotAllowed\"}"),
        "{metrics}"
    );
    assert!(metrics.contains("etcd_tls_approve_leader 1"), "{metrics}");
    let log = approver.process.log();
    assert!(!log.contains("BEGIN CERTIFICATE"), "no request's bytes in the log");
    assert!(log.contains("denied") && log.contains("NameNotAllowed"), "each decision is in the log with its reasons");
}

async fn approves(lab: &Lab) {
    lab.api.namespace("good", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("good", "etcd-0", json!({"app": "etcd"}), Some("10.2.0.1")).await;
    let requester = lab.requester(&pod).await;
    for role in [Role::Peer, Role::Server] {
        let asking = Asking::of(&pod, role);
        // The right to ask comes with the namespace's label; until then a 403 is "not yet".
        asking.create_when_allowed(&requester).await;
        lab.approved(&asking.name).await;
    }
    // A name that only a Service gives.
    let service =
        json!({"metadata": {"name": "etcd"}, "spec": {"selector": {"app": "etcd"}, "ports": [{"port": 2379}]}});
    let services: Api<Service> = Api::namespaced(lab.api.client.clone(), "good");
    services.create(&PostParams::default(), &from_json(service)).await.expect("create a service");
    let asking = Asking::of(&pod, Role::Server).sans(|sans| {
        sans.dns.insert("etcd.good.svc".to_owned());
    });
    asking.create(&requester).await;
    lab.approved(&asking.name).await;

    // By the pod's own label, in a namespace without one; and by a namespace's label given a moment before.
    lab.api.namespace("bare", &[]).await;
    let labelled = lab.pod("bare", "etcd-0", json!({"etcd-tls": "dynamic"}), Some("10.2.1.1")).await;
    let asking = Asking::of(&labelled, Role::Peer);
    asking.create_when_allowed(&lab.requester(&labelled).await).await;
    lab.approved(&asking.name).await;
    let unlabelled = lab.pod("bare", "etcd-1", json!({}), Some("10.2.1.2")).await;
    let requester = lab.requester(&unlabelled).await;
    lab.label_namespace("bare", json!("dynamic")).await;
    let asking = Asking::of(&unlabelled, Role::Peer);
    asking.create(&requester).await;
    lab.approved(&asking.name).await;
}

async fn refuses(lab: &Lab) {
    lab.api.namespace("bad", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("bad", "etcd-0", json!({}), Some("10.3.0.1")).await;
    let other = lab.pod("bad", "etcd-1", json!({}), Some("10.3.0.2")).await;
    let out = lab.pod("bad", "etcd-2", json!({"etcd-tls": "disabled"}), Some("10.3.0.3")).await;
    let gone = lab.pod("bad", "etcd-3", json!({}), Some("10.3.0.4")).await;
    let again = lab.pod("bad", "etcd-4", json!({}), Some("10.3.0.5")).await;
    let requester = lab.requester(&pod).await;
    let admin = &lab.api.client;
    let mine = || Asking::of(&pod, Role::Peer);
    mine().create_when_allowed(&requester).await;

    for (what, asking, reason) in [
        ("another pod's uid", mine().uid(other.uid().as_deref().unwrap_or_default()), "WrongName"),
        (
            "another pod's IP",
            mine().sans(|s| s.ips = ["10.3.0.2".parse().expect("an address")].into()),
            "NameNotAllowed",
        ),
        (
            "the API server's name",
            mine().sans(|s| s.dns = ["kubernetes.default.svc".to_owned()].into()),
            "NameNotAllowed",
        ),
        ("another namespace's signer", mine().signer("peer.etcd-tls.dev/good.etcd"), "WrongSigner"),
        ("another cluster's signer", mine().signer("peer.etcd-tls.dev/bad.other"), "WrongSigner"),
        ("the clients' signer for a peer", mine().signer("client.etcd-tls.dev/bad.etcd"), "WrongSigner"),
        ("a signer name that is none", mine().signer("peer.etcd-tls.dev/bad.etcd.x"), "WrongSigner"),
        ("a parent's signer name", mine().signer("etcd-tls.dev/bad.etcd"), "WrongSigner"),
        ("another pod's CN", mine().common_name("system:etcd-peer:etcd-1"), "WrongSubject"),
        ("masters", mine().organization("system:masters"), "WrongSubject"),
        ("too few usages", mine().usages(&["digital signature", "client auth"]), "WrongUsages"),
        ("two requests in one", mine().twice(), ""),
    ] {
        asking.create(&requester).await;
        let message = lab.denied(&asking.name).await;
        assert!(message.contains(reason), "{what}: {message}");
        lab.event("bad", "etcd-0", &message).await;
    }

    let asking = Asking::of(&out, Role::Peer);
    asking.create(&lab.requester(&out).await).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("NotOptedIn"), "{message}");

    // Gone before its request is judged; and made again under its name.
    lab.api.delete_pod("bad", "etcd-3").await;
    let asking = Asking::of(&gone, Role::Peer);
    asking.create_as(admin, &impersonated(&gone)).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("PodGone"), "{message}");
    lab.api.delete_pod("bad", "etcd-4").await;
    lab.pod("bad", "etcd-4", json!({}), Some("10.3.0.5")).await;
    let asking = Asking::of(&again, Role::Peer);
    asking.create_as(admin, &impersonated(&again)).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("WrongPod"), "{message}");

    // Requesters that are no pod: a user, an unbound token, and one that may impersonate only a part of it.
    let asking = mine();
    asking.create(admin).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("BadRequester"), "{message}");
    let unbound = lab.api.client_with_token(&lab.api.token("bad", "default", None).await).await;
    let asking = mine();
    asking.create(&unbound).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("not bound to a pod"), "{message}");
    let whole = impersonated(&pod);
    for left_out in ["uid", "pod-name", "pod-uid", "node-name", "credential-id"] {
        let partly: Vec<_> = whole.iter().filter(|(key, _)| !key.to_lowercase().ends_with(left_out)).cloned().collect();
        assert!(partly.len() < whole.len(), "{left_out}");
        let asking = mine();
        asking.create_as(admin, &partly).await;
        let message = lab.denied(&asking.name).await;
        assert!(message.contains("BadRequester"), "without {left_out}: {message}");
    }
    // A requester that may impersonate all of it is that pod, as the threat model says: the table above tests its refusals.
    let asking = mine();
    asking.create_as(admin, &whole).await;
    lab.approved(&asking.name).await;
}

async fn waits(lab: &Lab) {
    lab.api.namespace("wait", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("wait", "etcd-0", json!({}), None).await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create_when_allowed(&lab.requester(&pod).await).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.verdict(&asking.name).await, None, "a pod without an address is not yet, never no");
    lab.api.set_pod_ips("wait", "etcd-0", &["10.4.0.1".parse().expect("an address")]).await;
    lab.approved(&asking.name).await;
}

async fn listens_to_policy(lab: &Lab) {
    lab.api.namespace("policy", &[("etcd-tls", "dynamic")]).await;
    let annotations = json!({"etcd-tls.dev/extra-sans": "etcd.example.com"});
    let pod = lab.pod_with("policy", "etcd-0", json!({}), annotations, Some("10.5.0.1")).await;
    let requester = lab.requester(&pod).await;
    let extra = || {
        Asking::of(&pod, Role::Server).sans(|sans| {
            sans.dns.insert("etcd.example.com".to_owned());
        })
    };
    let asking = extra();
    asking.create_when_allowed(&requester).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("etcd.example.com"), "{message}");

    let policy = "extraSans: [{namespaces: [policy], clusters: ['*'], dnsNames: [etcd.example.com]}]\n\
                  hosts: [{username: host-1, cluster: policy/etcd, roles: [peer], commonName: host-1, ips: [192.0.2.7]}]\n";
    // A request right after a change of the policy is not denied by the earlier policy, which a watch may still have.
    for _ in 0..5 {
        let asking = extra();
        lab.set_policy(policy).await;
        asking.create(&requester).await;
        lab.approved(&asking.name).await;
        // The other way round a watch may approve a moment longer, as would a change that came a moment later.
        lab.set_policy("").await;
        eventually("the policy to be gone", LIMIT, || async {
            let asking = extra();
            asking.create(&requester).await;
            match lab.decision(&asking.name).await {
                (false, _) => Ok(()),
                (true, message) => Err(message),
            }
        })
        .await;
    }
    lab.set_policy(policy).await;
    lab.subjects(|subjects| subjects.iter().any(|s| s == "User host-1")).await;

    // An unreadable one leaves the last good one in force, and says so.
    lab.set_policy("extraSans: [{nonsense").await;
    lab.event_of(names::SYSTEM_NAMESPACE, names::POLICY_CONFIG_MAP, "stays in force").await;
    let asking = extra();
    asking.create(&requester).await;
    lab.approved(&asking.name).await;

    // A host that policy lists, by the name it authenticates with.
    let host = [("Impersonate-User".to_owned(), "host-1".to_owned())];
    let asking = Asking::of(&pod, Role::Peer).uid("host-1").common_name("system:etcd-peer:host-1");
    let asking = asking.sans(|sans| {
        sans.dns.clear();
        sans.ips = ["192.0.2.7".parse().expect("an address")].into();
    });
    // Asked with an administrator's rights and the host's name; the binding's subject is looked at below.
    lab.subjects(|subjects| subjects.iter().any(|s| s == "User host-1")).await;
    asking.create_as(&lab.api.client, &host).await;
    lab.approved(&asking.name).await;
}

/// A CSR that is deleted and made again under its name, with other content, between the approver's look and its write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_lands_on_nothing_but_what_was_looked_at() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("race", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("race", "etcd-0", json!({}), Some("10.1.0.1")).await;
    let good = Asking::of(&pod, Role::Peer);
    // The same name, since it is of the same key and pod; but it is an administrator who asks, for another address.
    let mut evil = good.again().sans(|sans| sans.ips = ["10.9.9.9".parse().expect("an address")].into());
    evil.name.clone_from(&good.name);

    let (admin, name) = (lab.api.client.clone(), good.name.clone());
    let proxy = proxy::Proxy::start(lab.approve_client().await, &format!("{name}/approval"), move || {
        let (admin, name, evil) = (admin.clone(), name.clone(), evil.clone());
        async move {
            let csrs: Api<CertificateSigningRequest> = Api::all(admin.clone());
            csrs.delete(&name, &DeleteParams::default()).await.expect("delete");
            evil.create(&admin).await;
        }
    })
    .await;
    let approver = lab.approver_at("approve-a", &proxy.url, &[]);
    lab.ready(&approver).await;
    good.create_when_allowed(&lab.requester(&pod).await).await;
    let message = lab.denied(&good.name).await;
    assert!(message.contains("BadRequester"), "{message}");
    assert!(proxy.fired(), "the CSR was made again before the first write");
    let metrics = lab.metrics(&approver).await;
    assert!(metrics.contains("etcd_tls_approve_conflicts_total 1"), "{metrics}");
    assert!(!metrics.contains("verdict=\"approve\""), "{metrics}");
}

/// The watch of pods stands still, and later has much to catch up with: pods are judged as they are all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_judged_by_a_state_no_older_than_its_request() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("stale", &[("etcd-tls", "dynamic")]).await;
    let before = lab.pod("stale", "etcd-0", json!({}), Some("10.1.0.1")).await;
    let leaves = lab.pod("stale", "etcd-1", json!({}), Some("10.1.0.2")).await;
    let (hold, held) = tokio::sync::watch::channel(false);
    let proxy = proxy::Proxy::holding(lab.approve_client().await, "/api/v1/pods", held).await;
    let mut approver = lab.approver_at("approve-a", &proxy.url, &[]);
    lab.ready(&approver).await;
    let asking = Asking::of(&before, Role::Peer);
    asking.create_when_allowed(&lab.requester(&before).await).await;
    lab.approved(&asking.name).await;

    hold.send(true).expect("the proxy listens");
    // Made again under its name, elsewhere; opted out; gone; new.
    lab.api.delete_pod("stale", "etcd-0").await;
    let after = lab.pod("stale", "etcd-0", json!({}), Some("10.1.0.9")).await;
    let old = Asking::of(&before, Role::Peer);
    old.create_as(&lab.api.client, &impersonated(&before)).await;
    let message = lab.denied(&old.name).await;
    assert!(message.contains("WrongPod"), "{message}");
    let asking = Asking::of(&after, Role::Peer);
    asking.create(&lab.requester(&after).await).await;
    lab.approved(&asking.name).await;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(lab.api.client.clone(), "stale");
    lab.api.delete_pod("stale", "etcd-1").await;
    let out = lab.pod("stale", "etcd-1", json!({"etcd-tls": "disabled"}), Some("10.1.0.2")).await;
    let asking = Asking::of(&out, Role::Peer);
    asking.create(&lab.requester(&out).await).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("NotOptedIn"), "{message}");
    lab.api.delete_pod("stale", "etcd-1").await;
    let asking = Asking::of(&leaves, Role::Server);
    asking.create_as(&lab.api.client, &impersonated(&leaves)).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("PodGone"), "{message}");
    let new = lab.pod("stale", "etcd-2", json!({}), Some("10.1.0.3")).await;
    let asking = Asking::of(&new, Role::Server);
    asking.create(&lab.requester(&new).await).await;
    lab.approved(&asking.name).await;

    // A backlog, with requests between.
    for n in 0..200 {
        let annotation = json!({"metadata": {"annotations": {"backlog": format!("{n}")}}});
        pods.patch("etcd-2", &PatchParams::default(), &Patch::Merge(annotation)).await.expect("change a pod");
    }
    lab.api.set_pod_ips("stale", "etcd-2", &["10.1.0.4".parse().expect("an address")]).await;
    hold.send(false).expect("the proxy listens");
    let moved = pods.get("etcd-2").await.expect("a pod");
    for (pod, is_so) in [(&moved, true), (&new, false)] {
        let asking = Asking::of(pod, Role::Peer);
        asking.create(&lab.requester(&moved).await).await;
        let (approved, message) = lab.decision(&asking.name).await;
        assert_eq!(approved, is_so, "{message}");
    }

    // What the watch shows is of before the datastore was restored, and it brings nothing more: nobody is denied by that.
    assert!(approver.process.terminate(LIMIT).await.success(), "{}", approver.process.log());
    let proxy = proxy::Proxy::ahead(lab.approve_client().await, "/api/v1/pods").await;
    let approver = lab.approver_at("approve-b", &proxy.url, &[]);
    lab.ready(&approver).await;
    let restored = lab.pod("stale", "etcd-5", json!({}), Some("10.1.0.5")).await;
    let asking = Asking::of(&restored, Role::Peer);
    asking.create(&lab.requester(&restored).await).await;
    let (approved, message) = lab.decision(&asking.name).await;
    assert!(approved, "{message}");
    // One that is gone is denied as ever.
    lab.api.delete_pod("stale", "etcd-5").await;
    let asking = Asking::of(&restored, Role::Server);
    asking.create_as(&lab.api.client, &impersonated(&restored)).await;
    let message = lab.denied(&asking.name).await;
    assert!(message.contains("PodGone"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_take_over_and_faults_pass() {
    let Some(lab) = Lab::new().await else { return };
    let leases: Api<Lease> = Api::namespaced(lab.api.client.clone(), names::SYSTEM_NAMESPACE);
    let holder = || async {
        let lease = leases.get("etcd-tls-approve").await.map_err(|e| e.to_string())?;
        lease.spec.and_then(|s| s.holder_identity).ok_or_else(|| "nobody".to_owned())
    };
    let holds = |who: &'static str| async move {
        eventually(&format!("{who:?} to hold the lease"), LIMIT, || async {
            let holder = holder().await?;
            if holder == who { Ok(()) } else { Err(holder) }
        })
        .await;
    };
    // Left behind by somebody who could write it once, and is gone: it is taken all the same.
    let spoiled = json!({
        "metadata": {"name": "etcd-tls-approve", "finalizers": ["example.com/held"]},
        "spec": {"holderIdentity": "ghost", "leaseDurationSeconds": 1, "leaseTransitions": i32::MAX},
    });
    leases.create(&PostParams::default(), &from_json(spoiled)).await.expect("create a Lease");
    let mut first = lab.approver("approve-a", &[]);
    lab.ready(&first).await;
    holds("approve-a").await;
    let mut second = lab.approver("approve-b", &[]);
    lab.ready(&second).await;
    // The leader shows the state of the cluster.
    const OF_THE_LEADER: [&str; 2] = ["etcd_tls_approve_foreign_bindings ", "etcd_tls_approve_requesters_left_out "];
    let shows = |text: &str| OF_THE_LEADER.iter().filter(|name| text.lines().any(|l| l.starts_with(*name))).count();
    eventually("the leader's metrics", LIMIT, || async {
        let text = lab.metrics(&first).await;
        if shows(&text) == OF_THE_LEADER.len() { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(shows(&lab.metrics(&second).await), 0, "one that does not lead shows none, and no 0");

    lab.api.namespace("many", &[("etcd-tls", "dynamic")]).await;
    let pod = lab.pod("many", "etcd-0", json!({}), Some("10.1.0.1")).await;
    let requester = lab.requester(&pod).await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create_when_allowed(&requester).await;
    lab.approved(&asking.name).await;

    // Frozen: the other one goes on with what is left, and the one that wakes up knows that it leads no more.
    first.process.signal(Signal::SIGSTOP);
    let left = Asking::of(&pod, Role::Peer);
    left.create(&requester).await;
    holds("approve-b").await;
    lab.approved(&left.name).await;
    first.process.signal(Signal::SIGCONT);
    first.process.logged("lost leadership", LIMIT).await;
    eventually("no metrics of the leader", LIMIT, || async {
        let text = lab.metrics(&first).await;
        if shows(&text) == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&requester).await;
    lab.approved(&asking.name).await;
    assert!(!first.process.log().contains(&asking.name), "one that does not lead does not look at requests");
    first.process.kill();

    // Told to end: the lease is given back at once.
    let first = lab.approver("approve-c", &[]);
    lab.ready(&first).await;
    let status = second.process.terminate(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}");
    assert!(second.process.log().contains("gave leadership back"));
    holds("approve-c").await;

    // Rights removed and restored: requests from in between are decided without a restart.
    lab.api.kubectl(&["delete", "clusterrolebinding", "etcd-tls-approve"]);
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&requester).await;
    first.process.logged("trying again", LIMIT).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(lab.verdict(&asking.name).await, None, "an error of ours is no reason to deny");
    lab.install();
    lab.approved(&asking.name).await;

    // A flood of one account that has to wait for ever starves nobody.
    lab.api.namespace("flood", &[("etcd-tls", "dynamic")]).await;
    let stuck = lab.pod("flood", "etcd-0", json!({}), None).await;
    let flooder = lab.requester(&stuck).await;
    Asking::of(&stuck, Role::Peer).create_when_allowed(&flooder).await;
    let flood: Vec<_> = (0..200).map(|_| Asking::of(&stuck, Role::Peer)).collect();
    futures::future::join_all(flood.iter().map(|asking| asking.create(&flooder))).await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&requester).await;
    lab.approved(&asking.name).await;
    lab.api.set_pod_ips("flood", "etcd-0", &["10.2.0.1".parse().expect("an address")]).await;
    for asking in &flood {
        lab.approved(&asking.name).await;
    }

    let mut first = first;
    first.process.signal(Signal::SIGTERM);
    first.process.wait(Duration::from_secs(30)).await;
    let events: Api<Event> = Api::all(lab.api.client.clone());
    let events = events.list(&ListParams::default()).await.expect("list events");
    let ours = events.items.iter().filter(|e| e.reporting_controller.as_deref() == Some("etcd-tls.dev/approve"));
    assert_eq!(ours.count(), 0, "no events on success");
}
