//! Removal of finished requests through the queue, on a real API server, with the shipped rights and shortened times.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{
    collections::BTreeSet,
    ops::Range,
    time::{Duration, Instant},
};

use etcd_tls_contract::role::Role;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use lab::{Asking, LIMIT, Lab};
use nix::sys::signal::Signal;
use serde_json::json;
use signer::{issue, issued, member, sign};
use tests::{eventually, process::Process};

/// Long enough to see that a request is still there before its time.
const ISSUED: Duration = Duration::from_secs(16);
const REFUSED: Duration = Duration::from_secs(12);
const SHORT: [&str; 6] =
    ["--delete-issued-after", "16s", "--delete-refused-after", "12s", "--check-pending-every", "2s"];
/// Times of objects are in whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// A delete and its way to us.
const SOON: Duration = Duration::from_secs(4);
/// How much later than its time a delete may be seen where the machine has other work. By default requests stay longer than this.
const LATE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_goes_at_its_time() {
    let Some(mut lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let mut signer = sign(&lab, "sign-a", &SHORT).await;
    lab.ready(&approver).await;
    lab.api.namespace("clean", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "clean", "etcd-0", Some("10.1.0.1")).await;
    let requester = lab.requester(&pod).await;

    // Issued.
    let before = Instant::now();
    let (server, _) = issue(&lab, &pod, Role::Server, None).await;
    gone_between(&lab, &server, before..Instant::now(), ISSUED - SECOND, ISSUED + LATE).await;

    // Refused, by the approver and by the signer.
    let denied = Asking::of(&pod, Role::Peer).organization("system:masters");
    let before = Instant::now();
    denied.create(&requester).await;
    lab.denied(&denied.name).await;
    gone_between(&lab, &denied.name, before..Instant::now(), REFUSED - SECOND, REFUSED + LATE).await;

    // Nobody fetches what a pod that is gone has asked for.
    let waiting = member(&lab, "clean", "etcd-1", None).await;
    let orphan = Asking::of(&waiting, Role::Peer);
    orphan.create(&lab.requester(&waiting).await).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(there(&lab, &orphan.name).await, "a pod that waits for its address has time");
    lab.api.delete_pod("clean", "etcd-1").await;
    gone(&lab, &orphan.name).await;

    // Others' requests are others'.
    let foreign = Asking::of(&pod, Role::Peer).signer("etcd-tls.example.com/x").named("foreign");
    foreign.create(&lab.api.client).await;

    held_by_a_finalizer(&lab, &signer).await;
    through_an_outage(&mut lab, &mut signer).await;
}

/// A request whose pod and role have a later certificate goes within a minute or so, not at the time of issued ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_request_goes_before_its_time() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &["--delete-issued-after", "1h"]).await;
    lab.ready(&approver).await;
    lab.api.namespace("clean", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "clean", "etcd-0", Some("10.1.0.1")).await;
    let (first, _) = issue(&lab, &pod, Role::Peer, None).await;
    let (server, _) = issue(&lab, &pod, Role::Server, None).await;
    let (second, _) = issue(&lab, &pod, Role::Peer, None).await;
    gone(&lab, &first).await;
    assert!(there(&lab, &server).await, "one of another role is no successor");
    assert!(there(&lab, &second).await, "the last one stays");
}

/// However short the time of issued ones is: a superseded one stays no longer than any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_request_stays_no_longer_than_others() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &["--delete-issued-after", "3s"]).await;
    lab.ready(&approver).await;
    lab.api.namespace("clean", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "clean", "etcd-0", Some("10.1.0.1")).await;
    let (first, _) = issue(&lab, &pod, Role::Peer, None).await;
    let (second, _) = issue(&lab, &pod, Role::Peer, None).await;
    let at = Instant::now();
    gone(&lab, &first).await;
    gone(&lab, &second).await;
    let took = at.elapsed();
    assert!(took < Duration::from_secs(3) + LATE, "{took:?}");
}

async fn held_by_a_finalizer(lab: &Lab, signer: &Process) {
    let pod = member(lab, "clean", "etcd-2", Some("10.1.0.2")).await;
    let (held, _) = issue(lab, &pod, Role::Peer, None).await;
    let csrs: Api<Csr> = Api::all(lab.api.client.clone());
    let finalizers = |list: &[&str]| Patch::Merge(json!({"metadata": {"finalizers": list}}));
    csrs.patch(&held, &PatchParams::default(), &finalizers(&["example.com/hold"])).await.expect("hold a request");
    eventually("a request that a finalizer holds to be deleted", LIMIT, || async {
        let csr = csrs.get(&held).await.map_err(|e| e.to_string())?;
        csr.metadata.deletion_timestamp.map(|_| ()).ok_or_else(|| "not deleted".to_owned())
    })
    .await;
    let calls = calls(lab).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let more = self::calls(lab).await - calls;
    assert!(more <= 3, "{more} calls for a request that nobody can delete");
    assert_eq!(signer.log().matches("is held by finalizers").count(), 1, "said once");
    csrs.patch(&held, &PatchParams::default(), &finalizers(&[])).await.expect("let a request go");
    gone(lab, &held).await;
}

/// Of what is due while the signer or the API server is away, nothing stays.
async fn through_an_outage(lab: &mut Lab, signer: &mut Process) {
    let pod = member(lab, "clean", "etcd-3", Some("10.1.0.3")).await;
    let (during_outage, _) = issue(lab, &pod, Role::Peer, None).await;
    lab.api.process().signal(Signal::SIGSTOP);
    tokio::time::sleep(ISSUED + SOON).await;
    lab.api.process().signal(Signal::SIGCONT);
    gone(lab, &during_outage).await;

    let (of_the_last, _) = issue(lab, &pod, Role::Server, None).await;
    signer.kill();
    tokio::time::sleep(ISSUED).await;
    assert!(there(lab, &of_the_last).await, "nobody is there to delete it");
    let mut again = sign(lab, "sign-b", &SHORT).await;
    gone(lab, &of_the_last).await;

    // A leader that is frozen, and its successor.
    let (handed_over, _) = issue(lab, &pod, Role::Peer, None).await;
    let _successor = sign(lab, "sign-c", &SHORT).await;
    again.signal(Signal::SIGSTOP);
    gone(lab, &handed_over).await;
    again.signal(Signal::SIGCONT);
    issue(lab, &pod, Role::Server, None).await;

    eventually("nothing of ours to be left", LIMIT, || async {
        let left: Vec<_> = signer::csrs(lab).await.iter().map(ResourceExt::name_any).collect();
        if left == ["foreign"] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_requester_leaves_a_few() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("flood", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "flood", "etcd-0", Some("10.2.0.1")).await;
    let requester = lab.requester(&pod).await;
    let bad = |n: usize| Asking::of(&pod, Role::Peer).organization(&format!("system:masters-{n}"));
    bad(0).create_when_allowed(&requester).await;
    // Each of the first ones has its answer.
    for n in 1..20 {
        let asking = bad(n);
        if n >= 16 {
            asking.create(&requester).await;
            gone(&lab, &asking.name).await;
            continue;
        }
        asking.create(&requester).await;
        lab.denied(&asking.name).await;
    }
    for chunk in 0..30 {
        let asks: Vec<_> = (0..10).map(|n| bad(chunk * 10 + n)).collect();
        futures::future::join_all(asks.iter().map(|asking| asking.create(&requester))).await;
    }
    let few = eventually("all but a few to be gone", LIMIT, || async {
        let left = signer::csrs(&lab).await;
        if left.len() <= 20 && left.iter().all(|csr| signer::has(csr, "Denied")) {
            Ok(left.len())
        } else {
            Err(left.len())
        }
    })
    .await;
    assert!(few >= 15, "{few}: the first ones are answered and stay");
    // Beyond them there is no answer, and a good request gets its certificate all the same.
    let unanswered = bad(1000);
    unanswered.create(&requester).await;
    gone(&lab, &unanswered.name).await;
    let good = Asking::of(&pod, Role::Peer);
    good.create(&requester).await;
    issued(&lab, &good.name).await;

    // Open ones: a pod without an address.
    let stuck = member(&lab, "flood", "etcd-1", None).await;
    let requester = lab.requester(&stuck).await;
    let mut last = BTreeSet::new();
    for _ in 0..40 {
        let asking = Asking::of(&stuck, Role::Server);
        asking.create(&requester).await;
        last.insert(asking.name);
    }
    eventually("all but a few open ones to be gone", LIMIT, || async {
        let left = signer::csrs(&lab).await.into_iter().filter(|csr| last.contains(&csr.name_any())).count();
        if (1..=5).contains(&left) { Ok(()) } else { Err(left) }
    })
    .await;
    lab.api.set_pod_ips("flood", "etcd-1", &["10.2.0.2".parse().expect("an address")]).await;
    issue(&lab, &stuck, Role::Server, None).await;
    assert!(signer.log().lines().count() < 2000, "a flood fills no log");
}

/// Kubernetes itself deletes those to other signers after an hour or a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_2_a_pods_requests_to_another_signer_are_deleted_too() {
    const SIGNER: &str = "example.com/company";
    let Some(lab) = Lab::new().await else { return };
    // The policy on requests counts here.
    lab.api.kubectl(&["delete", "clusterrolebinding", "request-anything"]);
    lab.api.namespace("flood", &[("etcd-tls", "dynamic")]).await;
    let rbac = "rbac.authorization.k8s.io";
    lab.api.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "request-company"}, "rules": [
                {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [SIGNER], "verbs": ["request"]},
            ]},
            {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "request-company"},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "request-company"},
                "subjects": [{"kind": "Group", "apiGroup": rbac, "name": "system:serviceaccounts:flood"}]},
        ]})
        .to_string(),
    );
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &SHORT).await;
    lab.ready(&approver).await;
    let pod = member(&lab, "flood", "etcd-0", Some("10.4.0.1")).await;
    let requester = lab.requester(&pod).await;
    let foreign = |role| Asking::of(&pod, role).signer(SIGNER);
    foreign(Role::Peer).create_when_allowed(&requester).await;
    // A name that says nothing of pod and role is refused, since nobody would delete it.
    let uid = pod.uid().expect("a uid");
    let free = foreign(Role::Peer).named(&format!("etcd-tls-{uid}-x1"));
    let refused = free.try_create(&requester, &[]).await.expect_err("taken").to_string();
    assert!(refused.contains("to another signer must be etcd-tls-"), "{refused}");

    // Open ones: a few of them stay, and a few refused ones.
    let asks: Vec<_> = (0..120).map(|n| foreign(if n % 2 == 0 { Role::Peer } else { Role::Server })).collect();
    for chunk in asks.chunks(10) {
        futures::future::join_all(chunk.iter().map(|asking| asking.create(&requester))).await;
    }
    let open = |csr: &&Csr| csr.spec.signer_name == SIGNER;
    eventually("all but a few to be gone", LIMIT, || async {
        let left = signer::csrs(&lab).await.iter().filter(open).count();
        if (1..=8).contains(&left) { Ok(()) } else { Err(format!("{left}: {}", signer.log())) }
    })
    .await;
    // The last of them is answered: the certificate can be fetched, and goes at its time, as the earlier ones do at once.
    let last = foreign(Role::Peer);
    last.create(&requester).await;
    lab.approve_by_hand(&last.name).await;
    let csrs: Api<Csr> = Api::all(lab.api.client.clone());
    let chain = tests::pki::Ca::new("company").leaf(&tests::pki::LeafOptions::default()).cert;
    let chain = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, chain);
    let before = Instant::now();
    let certificate = Patch::Merge(json!({"status": {"certificate": chain}}));
    csrs.patch_status(&last.name, &PatchParams::default(), &certificate).await.expect("its certificate");
    gone_between(&lab, &last.name, before..Instant::now(), ISSUED - SECOND, ISSUED + LATE).await;
    // Denied ones stay for people to read, for their time.
    let denied = foreign(Role::Server);
    denied.create(&requester).await;
    let before = Instant::now();
    lab.api.kubectl(&["certificate", "deny", &denied.name]);
    gone_between(&lab, &denied.name, before..Instant::now(), REFUSED - SECOND, REFUSED + LATE).await;
    // A request of another, under the name of a pod, is another's: here an administrator's.
    let of_another = foreign(Role::Peer);
    of_another.create(&lab.api.client).await;
    lab.api.kubectl(&["certificate", "deny", &of_another.name]);
    // The open ones go with their pod.
    lab.api.delete_pod("flood", "etcd-0").await;
    eventually("only the administrator's to be left", LIMIT, || async {
        let left: Vec<_> = signer::csrs(&lab).await.iter().map(ResourceExt::name_any).collect();
        if left == [of_another.name.clone()] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    tokio::time::sleep(REFUSED + SOON).await;
    assert!(there(&lab, &of_another.name).await, "not ours to delete");
    // Nor has the account the right to.
    let token = lab.api.token("etcd-tls-system", "etcd-tls-sign", None).await;
    let stolen: Api<Csr> = Api::all(lab.api.client_with_token(&token).await);
    let refused = stolen.delete(&of_another.name, &kube::api::DeleteParams::default()).await;
    let refused = refused.expect_err("deleted").to_string();
    assert!(refused.contains("only requests of our signers"), "{refused}");
}

/// So the record of what is valid holds all certificates of a pod, and `revoke --pod` finds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_requester_holds_a_few_valid_certificates_and_its_neighbour_its_own() {
    const LIFE: Duration = Duration::from_secs(30);
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &["--certificates-per-pod=2", "--max-lifetime=30s"]).await;
    lab.ready(&approver).await;
    lab.api.namespace("greedy", &[("etcd-tls", "dynamic")]).await;
    let greedy = member(&lab, "greedy", "etcd-0", Some("10.3.0.1")).await;
    let neighbour = member(&lab, "greedy", "etcd-1", Some("10.3.0.2")).await;
    let (_, first) = issue(&lab, &greedy, Role::Peer, None).await;
    issue(&lab, &greedy, Role::Peer, None).await;
    let third = Asking::of(&greedy, Role::Peer);
    third.create(&lab.requester(&greedy).await).await;
    lab.event_of("greedy", "etcd-0", "has 2 valid certificates of peer.etcd-tls.dev/greedy.etcd").await;

    // A neighbour is served meanwhile, and the pod by another authority.
    let (_, beside) = issue(&lab, &neighbour, Role::Peer, None).await;
    issue(&lab, &greedy, Role::Server, None).await;
    let third = issued(&lab, &third.name).await;
    let after = third.not_after.duration_since(first.not_after).expect("a later one");
    assert!(after >= LIFE - Duration::from_secs(1), "it was issued {:?} before the first one ended", LIFE - after);
    assert!(beside.not_after < third.not_after, "the neighbour did not wait");
}

async fn there(lab: &Lab, name: &str) -> bool {
    let csrs: Api<Csr> = Api::all(lab.api.client.clone());
    csrs.get_opt(name).await.expect("look for a request").is_some()
}

async fn gone(lab: &Lab, name: &str) {
    eventually(&format!("{name} to be gone"), LIMIT, || async {
        if there(lab, name).await { Err("still there") } else { Ok(()) }
    })
    .await;
}

/// `since`: the verdict came in this time.
async fn gone_between(lab: &Lab, name: &str, since: Range<Instant>, earliest: Duration, latest: Duration) {
    gone(lab, name).await;
    let (most, least) = (since.start.elapsed(), since.end.elapsed());
    assert!(most >= earliest && least <= latest, "{name} was gone after {most:?}, not {earliest:?} to {latest:?}");
}

/// Calls for single requests that the API server has answered.
async fn calls(lab: &Lab) -> u64 {
    let request = hyper::Request::get("/metrics").body(Vec::new()).expect("a request");
    let text = lab.api.client.request_text(request).await.expect("the API server's metrics");
    let of = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"certificatesigningrequests\"")
            && (line.contains("verb=\"DELETE\"") || line.contains("verb=\"GET\""))
    };
    text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}
