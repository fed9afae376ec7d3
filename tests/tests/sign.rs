//! The signer on a real API server, with the rights as shipped: certificates and refusals, its authorities and their loss, the
//! trust it publishes, the webhook's serving pair, its clean-up, and rollovers with the signer killed between.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/manual.rs"]
mod manual;
#[path = "approve/proxy.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod proxy;
#[path = "sign/signer.rs"]
mod signer;
#[path = "sign/stale.rs"]
mod stale;

use std::{collections::BTreeSet, time::Duration};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    life::BACKDATE,
    names::{self, SYSTEM_NAMESPACE},
    role::Role,
};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{ConfigMap, Secret, Service},
    events::v1::Event,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lab::{Asking, LIMIT, Lab};
use serde_json::json;
use signer::{bundle, cas, issue, issued, member, sign, sign_at, sign_with, trust, write_trust};
use tests::{apiserver::from_json, eventually, faults::FaultProxy, pki, ports};

/// The state of the cluster, which the leading signer shows.
const OF_THE_LEADER: [&str; 3] =
    ["etcd_tls_sign_requests_known ", "etcd_tls_sign_requests_held ", "etcd_tls_sign_trust_unrepaired "];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issues_what_the_pod_is_and_no_more() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;

    issues_the_whole_grammar(&lab).await;
    refuses_what_was_approved_wrongly(&lab).await;
    follows_the_namespace(&lab).await;
    keeps_published_trust(&lab).await;
    stops_for_a_lost_ca(&lab).await;
    makes_no_authorities_without_end(&lab).await;
    manual::a_person_decides(&lab).await;
    cleans_up(&lab).await;

    let log = signer.log();
    assert!(!log.contains("PRIVATE KEY") && !log.contains("BEGIN CERTIFICATE"), "no key and no request in the log");
}

async fn issues_the_whole_grammar(lab: &Lab) {
    lab.api.namespace("good", &[("etcd-tls", "dynamic")]).await;
    // Trust is there because of the pod alone, before anything is asked for: the pod waits for it.
    let pod = member(lab, "good", "etcd-0", Some("10.2.0.1")).await;
    let [peer, client, metrics] = trust(lab, "good", "etcd").await;
    assert_ne!(peer, client, "peers are apart from clients");
    assert_eq!(client, metrics, "etcd's metrics port takes the client CA");
    assert_eq!(cas(lab, "good").await.len(), 2);

    let service = json!({"metadata": {"name": "db"}, "spec": {"selector": {"app": "etcd"}, "ports": [{"port": 2379}]}});
    let services: Api<Service> = Api::namespaced(lab.api.client.clone(), "good");
    let service = services.create(&PostParams::default(), &from_json(service)).await.expect("create a service");
    let cluster_ip = service.spec.and_then(|s| s.cluster_ip).expect("a cluster IP");

    let mut serials = BTreeSet::new();
    for role in [Role::Peer, Role::Server] {
        let asking = Asking::of(&pod, role);
        asking.create_when_allowed(&lab.requester(&pod).await).await;
        let chain = issued(lab, &asking.name).await;
        let bundle = if role == Role::Peer { &peer } else { &client };
        let now = std::time::SystemTime::now();
        chain.verify(role, bundle, &chain.public_key, &chain.sans, now).expect("a chain that its peers take");
        // The request did not ask for the Service's names; the signer knows them.
        assert!(chain.sans.dns.contains("db.good.svc.cluster.local"), "{:?}", chain.sans);
        assert!(chain.sans.ips.contains(&"10.2.0.1".parse().expect("an address")), "{:?}", chain.sans);
        let has_cluster_ip = chain.sans.ips.contains(&cluster_ip.parse().expect("an address"));
        assert_eq!(has_cluster_ip, role == Role::Server, "{:?}", chain.sans);
        assert!(chain.sans.dns.iter().all(|name| name == "localhost" || name.contains(".good")), "{:?}", chain.sans);
        let life = chain.not_after.duration_since(chain.not_before).expect("a life");
        assert_eq!(life, Duration::from_secs(86_400) + BACKDATE, "a day from the issue");
        assert!(serials.insert(chain.serial), "serials are random");
    }
    lab.event_of("good", "etcd-0", "the first certificate is issued").await;
}

/// The Events with this reason, as type and name of the object.
async fn told(lab: &Lab, namespace: &str, reason: &str) -> Vec<String> {
    let api: Api<Event> = Api::namespaced(lab.api.client.clone(), namespace);
    let all = api.list(&ListParams::default()).await.expect("list events").items;
    let of = |event: &Event| {
        let object = event.regarding.as_ref().and_then(|regarding| regarding.name.clone()).unwrap_or_default();
        format!("{} {object}", event.type_.clone().unwrap_or_default())
    };
    all.iter().filter(|event| event.reason.as_deref() == Some(reason)).map(of).collect()
}

async fn refuses_what_was_approved_wrongly(lab: &Lab) {
    lab.api.namespace("wrong", &[("etcd-tls", "dynamic")]).await;
    let pod = member(lab, "wrong", "etcd-0", Some("10.3.0.1")).await;
    let requester = lab.requester(&pod).await;
    Asking::of(&pod, Role::Peer).create_when_allowed(&requester).await;
    // An administrator asks under the pod's name and approves at once, so that only the signer stands between.
    for (what, asking, reason) in [
        ("another IP", Asking::of(&pod, Role::Peer).sans(|s| s.ips = [[10, 9, 9, 9].into()].into()), "NameNotAllowed"),
        ("masters", Asking::of(&pod, Role::Server).organization("system:masters"), "WrongSubject"),
        ("another's signer", Asking::of(&pod, Role::Peer).signer("peer.etcd-tls.dev/good.etcd"), "WrongSigner"),
        ("two requests", Asking::of(&pod, Role::Peer).twice(), ""),
    ] {
        asking.create(&requester).await;
        // The approver may be faster with its denial; then there is nothing to sign anyway.
        signer::approve_if_pending(lab, &asking.name).await;
        let (condition, message) = signer::refused(lab, &asking.name).await;
        assert!(message.contains(reason), "{what}: {condition}: {message}");
    }
    // A plain administrator, approved by hand: no pod, no certificate.
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&lab.api.client).await;
    signer::approve_if_pending(lab, &asking.name).await;
    let (_, message) = signer::refused(lab, &asking.name).await;
    assert!(message.contains("BadRequester"), "{message}");
    // The API server takes a certificate on a denied request; the signer gives none.
    let all = signer::csrs(lab).await;
    for csr in all.iter().filter(|csr| signer::has(csr, "Denied") || signer::has(csr, "Failed")) {
        assert!(csr.status.as_ref().is_some_and(|s| s.certificate.is_none()), "{}", csr.name_any());
    }
}

async fn follows_the_namespace(lab: &Lab) {
    lab.api.namespace("again", &[("etcd-tls", "dynamic")]).await;
    let pod = member(lab, "again", "etcd-0", Some("10.4.0.1")).await;
    let first = trust(lab, "again", "etcd").await;
    issue(lab, &pod, Role::Peer, None).await;
    lab.api.delete_pod("again", "etcd-0").await;
    // A backup program holds one of its Secrets.
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let of_peers = |names: Vec<String>| names.into_iter().find(|name| name.ends_with("-etcd-peer"));
    let held = of_peers(cas(lab, "again").await).expect("a CA of peers");
    let finalizers = |list: &[&str]| Patch::Merge(json!({"metadata": {"finalizers": list}}));
    secrets.patch(&held, &PatchParams::default(), &finalizers(&["example.com/hold"])).await.expect("hold a Secret");
    signer::delete_namespace(lab, "again").await;
    eventually("the CAs of a namespace that is gone to be gone", LIMIT, || async {
        let left = cas(lab, "again").await;
        let deleted = secrets.get(&held).await.map_err(|e| e.to_string())?.metadata.deletion_timestamp.is_some();
        if left == [held.clone()] && deleted { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    signer::namespace_again(lab, "again").await;
    let pod = member(lab, "again", "etcd-0", Some("10.4.0.1")).await;
    let second = trust(lab, "again", "etcd").await;
    assert_ne!(first, second, "a namespace made again inherits nothing");
    // The Secret of before is swept in each round, and the record of now is written all the same.
    let (_, chain) = issue(lab, &pod, Role::Peer, None).await;
    eventually("the certificate's record", LIMIT, || async {
        let names = cas(lab, "again").await.into_iter().filter(|name| *name != held).collect();
        let name = of_peers(names).ok_or("no CA")?;
        let data = secrets.get(&name).await.map_err(|e| e.to_string())?.data.unwrap_or_default();
        let record = data.get("issued.json").map(|json| String::from_utf8_lossy(&json.0).into_owned());
        let record = record.unwrap_or_default();
        if record.contains(&chain.serial) { Ok(()) } else { Err(record) }
    })
    .await;
    secrets.patch(&held, &PatchParams::default(), &finalizers(&[])).await.expect("let a Secret go");
}

async fn keeps_published_trust(lab: &Lab) {
    let [peer, ..] = trust(lab, "good", "etcd").await;
    let api: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "good");
    write_trust(lab, "good", "etcd", json!({"data": {"peer.crt": "tampered"}})).await;
    eventually("an altered bundle to be restored", LIMIT, || bundle(lab, "good", "etcd", "peer.crt", &peer)).await;
    write_trust(lab, "good", "etcd", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}})).await;
    write_trust(lab, "good", "etcd", json!({"data": {"peer.crt": null}})).await;
    eventually("a bundle without a label to be restored", LIMIT, || bundle(lab, "good", "etcd", "peer.crt", &peer))
        .await;
    api.delete(&names::trust_config_map("etcd"), &DeleteParams::default()).await.expect("delete a ConfigMap");
    eventually("a deleted bundle to be restored", LIMIT, || bundle(lab, "good", "etcd", "peer.crt", &peer)).await;
}

async fn stops_for_a_lost_ca(lab: &Lab) {
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let name = cas(lab, "good").await.into_iter().find(|n| n.ends_with("-peer")).expect("the peers' CA");
    let backup = secrets.get(&name).await.expect("read a Secret");
    let before = trust(lab, "good", "etcd").await;
    secrets.delete(&name, &DeleteParams::default()).await.expect("delete a Secret");
    lab.event_of("good", &names::trust_config_map("etcd"), "is lost").await;

    let pod = lab_pod(lab, "good", "etcd-0").await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(signer::certificate(lab, &asking.name).await.is_none(), "nothing is issued by a lost CA");
    assert!(secrets.get_opt(&name).await.expect("look for a Secret").is_none(), "no new one is made");
    assert_eq!(trust(lab, "good", "etcd").await, before, "the trust in it stays");
    // The other domain's goes on.
    issue(lab, &pod, Role::Server, None).await;

    let mut restored = backup;
    restored.metadata.resource_version = None;
    restored.metadata.uid = None;
    secrets.create(&PostParams::default(), &restored).await.expect("restore a Secret");
    issued(lab, &asking.name).await;
}

async fn makes_no_authorities_without_end(lab: &Lab) {
    lab.set_policy("authoritiesPerNamespace: 2").await;
    lab.api.namespace("crowded", &[("etcd-tls", "dynamic")]).await;
    member(lab, "crowded", "etcd-0", Some("10.0.0.40")).await;
    trust(lab, "crowded", "etcd").await;
    let other = json!({"etcd-tls.dev/cluster": "other"});
    let pod = lab.pod_with("crowded", "other-0", json!({}), other, Some("10.0.0.41")).await;
    lab.event_of("crowded", &names::trust_config_map("other"), "authoritiesPerNamespace").await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;
    lab.event_of("crowded", "other-0", "authoritiesPerNamespace").await;
    assert_eq!(cas(lab, "crowded").await.len(), 2, "peers and clients of the first cluster");
    assert!(signer::certificate(lab, &asking.name).await.is_none(), "nothing is issued without an authority");

    // It was no refusal for ever.
    lab.set_policy("authoritiesPerNamespace: 4").await;
    trust(lab, "crowded", "other").await;
    issued(lab, &asking.name).await;
    assert_eq!(cas(lab, "crowded").await.len(), 4);
    lab.set_policy("").await;
}

async fn cleans_up(lab: &Lab) {
    let pod = lab_pod(lab, "good", "etcd-0").await;
    let first = issue(lab, &pod, Role::Peer, None).await;
    issue(lab, &pod, Role::Peer, None).await;
    eventually("the superseded request to be gone", LIMIT, || async {
        let all = signer::csrs(lab).await;
        if all.iter().any(|csr| csr.name_any() == first.0) { Err("still there") } else { Ok(()) }
    })
    .await;
    // Of five certificates of two authorities, one.
    assert_eq!(told(lab, "good", "CertificateIssued").await, ["Normal etcd-0"]);
    assert_eq!(told(lab, "good", "CertificateNearExpiry").await, [""; 0]);
}

async fn lab_pod(lab: &Lab, namespace: &str, name: &str) -> k8s_openapi::api::core::v1::Pod {
    Api::namespaced(lab.api.client.clone(), namespace).get(name).await.expect("a pod")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_ca_signs_with_its_intermediates() {
    let Some(lab) = Lab::new().await else { return };
    let _approver = lab.approver("approve-a", &[]);
    let proxy = FaultProxy::start(&lab.api, 0).await;
    let _signer = sign_at(&lab, "sign-a", &proxy.url, &[]).await;
    // For now, the API server takes no Event about a certificate.
    proxy.refuse(&["CertificateIssued", "NotRevocable"]);
    lab.set_policy("authorities: [{signer: peer.etcd-tls.dev/own.etcd, secretName: own-peer-ca}]\n").await;
    lab.api.namespace("own", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "own", "etcd-0", Some("10.5.0.1")).await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create_when_allowed(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(signer::certificate(&lab, &asking.name).await.is_none(), "no CA is made in the place of a user's");

    let given = signer::chain("given");
    signer::give(&lab, "own-peer-ca", &given.pem, &given.key_pem).await;
    let chain = issued(&lab, &asking.name).await;
    assert_eq!(chain.certificates.len(), 2, "the intermediate is sent, the root is not");
    eventually("the root to be published", LIMIT, || bundle(&lab, "own", "etcd", "peer.crt", &given.root)).await;
    // That of the first certificate is written when it is tried again.
    let refused = |n: u64, texts: &'static [&'static str]| {
        let proxy = &proxy;
        eventually("Events to be refused", LIMIT, move || async move {
            let counts = proxy.counts();
            if texts.iter().all(|text| counts.get(text) >= Some(&n)) { Ok(()) } else { Err(format!("{counts:?}")) }
        })
    };
    refused(1, &["CertificateIssued", "NotRevocable"]).await;
    proxy.refuse(&["NotRevocable"]);
    lab.event_of("own", "etcd-0", "the first certificate is issued").await;
    refused(4, &["NotRevocable"]).await;
    proxy.refuse(&[]);

    // Replaced by garbage, the one in use stays; replaced by another, it is rolled over to.
    signer::give(&lab, "own-peer-ca", &pki::Ca::new("x").pem, &given.key_pem).await;
    lab.event_of("own", &names::trust_config_map("etcd"), "does not belong").await;
    issue(&lab, &pod, Role::Peer, None).await;
    let other = signer::chain("other");
    signer::give(&lab, "own-peer-ca", &other.pem, &other.key_pem).await;
    let both = given.root.union(&other.root);
    eventually("both to be published", LIMIT, || bundle(&lab, "own", "etcd", "peer.crt", &both)).await;
    let (_, chain) = issue(&lab, &pod, Role::Peer, None).await;
    assert!(given.root.contains_issuer_of(&chain), "bundle before leaf");
    let (_, chain) = issue(&lab, &pod, Role::Peer, Some(&both.digest())).await;
    let now_signs = |chain: &Chain| other.root.contains_issuer_of(chain);
    if !now_signs(&chain) {
        eventually("the new CA to sign", LIMIT, || async {
            let (_, chain) = issue(&lab, &pod, Role::Peer, Some(&both.digest())).await;
            if now_signs(&chain) { Ok(()) } else { Err("the old one still does") }
        })
        .await;
    }
    // It was given up with the first certificate, and said with a later one: members are told that nobody can revoke theirs.
    lab.event_of("own", "etcd-0", "peer certificates of this cluster cannot be revoked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollover_survives_a_killed_signer_in_each_phase() {
    let Some(lab) = Lab::new().await else { return };
    let _approver = lab.approver("approve-a", &[]);
    let short = ["--max-lifetime", "8s"];
    let mut killed = 0;
    let mut signer = sign(&lab, "sign-0", &short).await;
    let mut again = async |signer: &mut tests::process::Process| {
        killed += 1;
        signer.kill();
        *signer = sign(&lab, &format!("sign-{killed}"), &short).await;
    };
    lab.api.namespace("roll", &[("etcd-tls", "dynamic")]).await;
    let mut pods = Vec::new();
    for n in 0..3 {
        pods.push(member(&lab, "roll", &format!("etcd-{n}"), Some(&format!("10.6.0.1{n}"))).await);
    }
    let [old, ..] = trust(&lab, "roll", "etcd").await;
    for pod in &pods {
        issue(&lab, pod, Role::Peer, None).await;
    }
    assert!(signer::rollover(&lab, &["--abort"]).is_err(), "there is none to abort");
    let said = signer::rollover(&lab, &[]).expect("begin a rollover");
    assert!(said.contains("published"), "{said}");
    assert!(signer::rollover(&lab, &[]).expect_err("a second one").contains("under way"));
    let mut watch = signer::watch_rollover(&lab);
    again(&mut signer).await;

    let both = eventually("both CAs to be published", LIMIT, || async {
        let [peer, ..] = trust(&lab, "roll", "etcd").await;
        if peer.certificates().len() == 2 { Ok(peer) } else { Err("one") }
    })
    .await;
    assert!(both.contains(&old));
    // Two state that they have loaded it; the third does not: the old CA goes on.
    for pod in &pods[..2] {
        issue(&lab, pod, Role::Peer, Some(&both.digest())).await;
    }
    let (_, chain) = issue(&lab, &pods[2], Role::Peer, Some(&old.digest())).await;
    assert!(old.contains_issuer_of(&chain), "not everybody trusts the new CA");
    signer::waits_for(&lab, "roll/etcd-2").await;
    // An unknown state is shown with its reason and the next step.
    issue(&lab, &pods[2], Role::Peer, Some("unknown:listeners")).await;
    eventually("the reason", LIMIT, || async {
        let said = signer::rollover(&lab, &["--status"])?;
        let all = ["roll/etcd-2", "does not know where etcd listens", "etcd-tls.dev/client-url"];
        if all.iter().all(|text| said.contains(text)) { Ok(()) } else { Err(said) }
    })
    .await;
    again(&mut signer).await;
    signer::waits_for(&lab, "roll/etcd-2").await;
    issue(&lab, &pods[2], Role::Peer, Some(&both.digest())).await;
    signer::phase(&lab, "signing").await;
    again(&mut signer).await;
    assert!(signer::rollover(&lab, &["--abort"]).expect_err("too late").contains("signs already"));

    for pod in &pods[..2] {
        let (_, chain) = issue(&lab, pod, Role::Peer, Some(&both.digest())).await;
        assert!(!old.contains_issuer_of(&chain), "the new CA signs");
    }
    assert_eq!(trust(&lab, "roll", "etcd").await[0], both, "a leaf of the old CA may be about");
    again(&mut signer).await;
    signer::waits_for(&lab, "roll/etcd-2").await;
    issue(&lab, &pods[2], Role::Peer, Some(&both.digest())).await;
    // The last old leaf lives for eight seconds; then its CA goes.
    signer::phase(&lab, "stable").await;
    eventually("the old CA to be gone", LIMIT, || async {
        let [peer, ..] = trust(&lab, "roll", "etcd").await;
        if peer.certificates().len() == 1 && !peer.contains(&old) { Ok(()) } else { Err("still there") }
    })
    .await;
    // Regular steps are no warnings.
    let path = r#"jsonpath={range .items[*]}{.reason}={.type}{"\n"}{end}"#;
    let events = lab.api.kubectl(&["get", "events", "-A", "-o", path]);
    let steps: Vec<&str> = events
        .lines()
        .filter(|l| ["RolloverPublished=", "RolloverChangedOver=", "RolloverDone="].iter().any(|r| l.starts_with(r)))
        .collect();
    assert!(!steps.is_empty() && steps.iter().all(|line| line.ends_with("=Normal")), "{events}");
    // The last certificates have ended, and nobody renewed them.
    eventually("a warning of a certificate that is not renewed", LIMIT, || async {
        let all = told(&lab, "roll", "CertificateNearExpiry").await;
        if all.iter().any(|event| event == "Warning etcd-2") { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    let text = signer::secrets_text(&lab, &cas(&lab, "roll").await).await;
    assert_eq!(text.matches("BEGIN PRIVATE KEY").count(), 2, "one key each: the old one is gone");

    // `--watch` has shown each phase, and reports the end.
    eventually("--watch to end", LIMIT, || std::future::ready(watch.exited().ok_or("it goes on"))).await;
    let (status, log) = (watch.exited().expect("it has ended"), watch.log());
    assert!(status.success(), "{status}: {log}");
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    let lines =
        [at(" published: "), at("; 1 pod not seen to have loaded the new CA"), at(" signing: "), at(" stable: ")];
    assert!(lines.is_sorted(), "{log}");

    // Without --domain, a step is for each CA of the cluster that can take it.
    let each =
        |said: &str, phase: &str| ["peer", "client"].iter().all(|d| said.contains(&format!("roll/etcd {d}: {phase}")));
    let said = signer::rollover_of_all(&lab, &["--status"]).expect("the status");
    assert!(each(&said, "stable"), "{said}");
    let said = signer::rollover_of_all(&lab, &["--abort"]).expect_err("there is none to abort");
    assert!(said.contains("peer is stable, client is stable"), "{said}");
    let said = signer::rollover_of_all(&lab, &[]).expect("both begin");
    assert!(each(&said, "published"), "{said}");
    let said = signer::rollover_of_all(&lab, &[]).expect_err("both have begun");
    assert!(said.contains("peer is published, client is published"), "{said}");
    let said = signer::rollover_of_all(&lab, &["--abort"]).expect("both are taken back");
    assert!(each(&said, "stable"), "{said}");
    // An outage is never begun in more CAs than one.
    let said = signer::rollover_of_all(&lab, &["--force", "--yes"]).expect_err("which CA?");
    assert!(said.contains("--domain"), "{said}");
    // Another cluster's context.
    let said = signer::rollover_of_all(&lab, &["--status", "--context", "elsewhere"]).expect_err("no such context");
    assert!(said.contains("elsewhere"), "{said}");
    signer::rollover_of_all(&lab, &["--status", "--context", "test"]).expect("the kubeconfig's own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signers_make_one_ca_and_a_killed_leader_is_succeeded() {
    let Some(lab) = Lab::new().await else { return };
    let _approver = lab.approver("approve-a", &[]);
    let admin = [(); 2].map(|()| ports::loopback());
    let mut first = sign_with(&lab, "sign-a", &lab.api.url, admin[0], &[]).await;
    let shown = |port: u16| async move {
        let text = lab::get(&format!("127.0.0.1:{port}"), "/metrics").await?;
        let names = OF_THE_LEADER.iter().filter(|name| text.lines().any(|line| line.starts_with(*name)));
        Ok::<_, String>((names.count(), text))
    };
    eventually("the leader's metrics", LIMIT, || async {
        match shown(admin[0]).await? {
            (count, _) if count == OF_THE_LEADER.len() => Ok(()),
            (_, text) => Err(text),
        }
    })
    .await;
    let mut second = sign_with(&lab, "sign-b", &lab.api.url, admin[1], &[]).await;
    let (count, text) = eventually("metrics of the one that does not lead", LIMIT, || shown(admin[1])).await;
    assert!(count == 0 && !text.contains("webhook_certificate_expiry"), "absent, and no 0: {text}");
    assert!(text.contains("\netcd_tls_panics_total 0\n"), "{text}");
    lab.api.namespace("pair", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "pair", "etcd-0", Some("10.7.0.1")).await;
    let before = trust(&lab, "pair", "etcd").await;
    issue(&lab, &pod, Role::Peer, None).await;
    first.kill();
    issue(&lab, &pod, Role::Peer, None).await;
    assert_eq!(trust(&lab, "pair", "etcd").await, before);
    assert_eq!(cas(&lab, "pair").await.len(), 2);
    assert!(second.running());
    // The right to publish trust in a namespace comes a moment after its label: not yet is no warning.
    for log in [first.log(), second.log()] {
        let warns = |line: &&str| line.contains(" WARN ") && (line.contains("403") || line.contains("orbidden"));
        assert_eq!(log.lines().filter(warns).collect::<Vec<_>>(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhooks_pair_is_renewed_and_its_bundle_is_always_ahead() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/webhook.yaml").display().to_string()]);
    let _signer = sign(&lab, "sign-a", &["--serving-lifetime", "10s", "--serving-ca-lifetime", "40s"]).await;
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(lab.api.client.clone());
    let look = || async {
        // The bundle is read after the pair, so it must verify the pair.
        let secret = secrets.get_opt("etcd-tls-admit-serving").await.map_err(|e| e.to_string())?.ok_or("no pair")?;
        let chain = Chain::parse(&secret.data.ok_or("no data")?["tls.crt"].0).map_err(|e| e.to_string())?;
        let webhooks = webhooks.get("etcd-tls").await.map_err(|e| e.to_string())?.webhooks.unwrap_or_default();
        let bundles: Option<Vec<_>> = webhooks.into_iter().map(|w| w.client_config.ca_bundle).collect();
        Ok::<_, String>((chain, bundles.ok_or("an entry has no caBundle")?))
    };
    let (mut serials, mut generations) = (BTreeSet::new(), BTreeSet::new());
    eventually("a first pair", LIMIT, look).await;
    let end = tokio::time::Instant::now() + LIMIT;
    while (serials.len() < 5 || generations.len() < 2) && tokio::time::Instant::now() < end {
        let (chain, bundles) = look().await.expect("pair and bundle stay");
        let bundle = Bundle::parse(&bundles[0].0).expect("a bundle");
        let now = std::time::SystemTime::now();
        chain.verify(Role::Server, &bundle, &chain.public_key, &chain.sans, now).expect("checked at any time");
        assert!(chain.sans.dns.contains("etcd-tls-admit.etcd-tls-system.svc"), "{:?}", chain.sans);
        serials.insert(chain.serial.clone());
        generations.insert(signer::issuer(&chain));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(serials.len() >= 5 && generations.len() >= 2, "{serials:?} {generations:?}");
    // A caBundle that somebody takes out comes back.
    let nothing = json!({"webhooks": [{"name": "pod.etcd-tls.dev", "clientConfig": {"caBundle": null}}]});
    webhooks.patch("etcd-tls", &PatchParams::default(), &Patch::Strategic(nothing)).await.expect("take caBundle out");
    eventually("caBundle to come back", LIMIT, look).await;
}

/// Where another keeps admission's serving pair, `sign` does the rest of its work and neither makes the pair nor writes the
/// caBundle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serving_pair_that_another_keeps_is_left_alone() {
    let Some(lab) = Lab::new().await else { return };
    let _approver = lab.approver("approve-a", &[]);
    let mut signer = sign(&lab, "sign-a", &["--external-serving-pair"]).await;
    lab.api.namespace("external", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "external", "etcd-0", Some("10.8.0.1")).await;
    // Nobody answers it here, so the pod comes first.
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/webhook.yaml").display().to_string()]);
    for _ in 0..3 {
        issue(&lab, &pod, Role::Peer, None).await;
    }
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    for name in ["etcd-tls-admit-serving", "etcd-tls-admit-ca"] {
        assert!(secrets.get_opt(name).await.expect("get").is_none(), "{name}");
    }
    let bundles = || {
        let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
        lab.api.kubectl(&["get", "mutatingwebhookconfiguration", "etcd-tls", "-o", path])
    };
    assert_eq!(bundles(), "");
    // The same process without the flag makes both.
    signer.kill();
    let _signer = sign(&lab, "sign-b", &[]).await;
    eventually("the pair", LIMIT, || async {
        let pair = secrets.get_opt("etcd-tls-admit-serving").await.map_err(|e| e.to_string())?;
        if pair.is_some() && !bundles().is_empty() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}
