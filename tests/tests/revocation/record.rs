//! The record of valid certificates when a leader ends or is killed, and when it is lost.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Bundle,
    names::{self, SYSTEM_NAMESPACE},
    role::Role,
};
use k8s_openapi::{
    ByteString,
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Pod, Secret},
    },
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tests::{
    eventually,
    pki::Ca,
    revocation::{published, revoke, said},
    say,
};
use tokio::time::{Instant, sleep};

use crate::{
    lab::{Asking, LIMIT, Lab},
    signer::{self, issue, issued, member, sign, trust},
};

const LEASE: &str = "etcd-tls-sign";

/// The records of the authorities of `prod/etcd`.
pub(super) struct Records {
    pub(super) secrets: Api<Secret>,
    /// Of the peer and of the client authority.
    pub(super) names: [String; 2],
}

impl Records {
    pub(super) async fn of(lab: &Lab) -> Self {
        let namespaces: Api<Namespace> = Api::all(lab.api.client.clone());
        let uid = namespaces.get("prod").await.expect("a namespace").metadata.uid.expect("a uid");
        let names = ["peer", "client"].map(|domain| format!("etcd-tls-ca-{uid}-etcd-{domain}"));
        Self { secrets: Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE), names }
    }

    /// The serial numbers in them.
    pub(super) async fn serials(&self) -> BTreeSet<String> {
        let mut serials = BTreeSet::new();
        for name in &self.names {
            let data = self.secrets.get(name).await.expect("a Secret").data.unwrap_or_default();
            // One that was lost is not there until it is written again.
            let Some(record) = data.get("issued.json") else { continue };
            let record: serde_json::Value = serde_json::from_slice(&record.0).expect("JSON");
            serials.extend(record["leaves"].as_object().into_iter().flatten().map(|(serial, _)| serial.clone()));
        }
        serials
    }

    /// The entry of a certificate.
    async fn entry(&self, serial: &str) -> Option<serde_json::Value> {
        for name in &self.names {
            let data = self.secrets.get(name).await.expect("a Secret").data.unwrap_or_default();
            // One that was lost is not there until it is written again.
            let Some(record) = data.get("issued.json") else { continue };
            let record: serde_json::Value = serde_json::from_slice(&record.0).expect("JSON");
            if let Some(leaf) = record["leaves"].get(serial) {
                return Some(leaf.clone());
            }
        }
        None
    }

    pub(super) async fn have(&self, wanted: &BTreeSet<String>) {
        eventually("all certificates in the record", LIMIT, || async {
            let there = self.serials().await;
            let missing: Vec<_> = wanted.difference(&there).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} of {}", wanted.len())) }
        })
        .await;
    }
}

async fn begin(lab: &Lab) -> (Pod, Records) {
    lab.api.namespace("prod", &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = member(lab, "prod", "etcd-0", Some("10.2.0.1")).await;
    trust(lab, "prod", "etcd").await;
    (pod, Records::of(lab).await)
}

/// Whoever leads next finds what was issued in the last moment before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_the_last_second_of_a_term_is_found_by_the_next_leader() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let mut first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let (pod, records) = begin(&lab).await;
    first.logged("leading", LIMIT).await;
    let second = sign(&lab, "sign-b", &[]).await;
    let admin = lab.api.kubeconfig.clone();

    // One that is not written yet when the leader is told to end.
    let mut last = None;
    for _ in 0..20 {
        let (_, chain) = issue(&lab, &pod, Role::Server, None).await;
        if !records.serials().await.contains(&chain.serial) {
            last = Some(chain);
            break;
        }
    }
    let last = last.expect("a certificate is recorded some time after it was issued");
    assert!(first.terminate(LIMIT).await.success(), "{}", first.log());
    // It is written before the successor can lead.
    assert!(records.serials().await.contains(&last.serial), "{}", first.log());
    second.logged("leading", LIMIT).await;
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let said = eventually("an answer", LIMIT, || async {
        // It fails: the pod is no injected one, and reads no list.
        let said = self::said(&admin, &["prod/etcd", "--user", &last.common_name, "--at-once"]).await;
        let list = published(&maps).await?["client"].clone();
        if list.entries().contains_key(&last.serial) { Ok(said) } else { Err(format!("{said}: {list:?}")) }
    })
    .await;
    assert!(said.contains("the record holds what was issued since 20"), "{said}");
    // Whose they are, the first leader has written.
    let names: BTreeSet<String> = last.sans.texts().into_iter().collect();
    let tells = |text: &str, before: &str| {
        let whose = format!("{before}pod prod/etcd-0, user {}, names ", last.common_name);
        let told =
            text.split_once(&whose).map(|(_, told)| told.split([')', '\n']).next().unwrap_or_default().to_owned());
        told.is_some_and(|told| told.split(", ").map(str::to_owned).collect::<BTreeSet<_>>() == names)
    };
    assert!(names.len() > 1 && tells(&said, "("), "{said}: {names:?}");
    let listed = revoke(&admin, &["prod/etcd", "--list"]).await.expect("lists");
    assert!(tells(&listed, " unspecified "), "{listed}: {names:?}");

    // The record is lost. Which certificates cannot be named any more is said, and each can be revoked by its number.
    let (_, old) = issue(&lab, &pod, Role::Server, None).await;
    records.have(&BTreeSet::from([old.serial.clone()])).await;
    let lost = Patch::Merge(json!({"data": {"issued.json": null}}));
    records.secrets.patch(&records.names[1], &PatchParams::default(), &lost).await.expect("lose the record");
    let lacks = "the record lacks certificates that were issued before 20";
    eventually("the loss is said by --list", LIMIT, || async {
        let said = revoke(&admin, &["prod/etcd", "--list"]).await?;
        if said.contains(&format!("prod/etcd client: {lacks}")) { Ok(()) } else { Err(said) }
    })
    .await;
    let listed = revoke(&admin, &["prod/etcd", "--list"]).await.expect("lists");
    assert!(!listed.contains(&format!("prod/etcd peer: {lacks}")), "the other one is whole: {listed}");
    let said = self::said(&admin, &["prod/etcd", "--user", &old.common_name, "--at-once"]).await;
    assert!(said.contains(&format!("client: there is no certificate of user {} ({lacks}", old.common_name)), "{said}");
    assert!(!published(&maps).await.expect("lists")["client"].entries().contains_key(&old.serial));
    let said = self::said(&admin, &["prod/etcd", "--serial", &old.serial, "--at-once", "--force"]).await;
    assert!(published(&maps).await.expect("lists")["client"].entries().contains_key(&old.serial), "{said}");
    // What is issued from now on can be named, also by the next leader, which still says what it cannot name.
    let (_, new) = issue(&lab, &pod, Role::Server, None).await;
    records.have(&BTreeSet::from([new.serial.clone()])).await;
    drop(second);
    let mut third = sign(&lab, "sign-c", &[]).await;
    third.logged("leading", LIMIT).await;
    let said = self::said(&admin, &["prod/etcd", "--user", &new.common_name, "--at-once"]).await;
    assert!(published(&maps).await.expect("lists")["client"].entries().contains_key(&new.serial), "{said}");
    assert!(said.contains(lacks), "{said}");

    // A version that knows no names writes the record without them.
    third.kill();
    let data = records.secrets.get(&records.names[1]).await.expect("a Secret").data.expect("data");
    let mut record: serde_json::Value = serde_json::from_slice(&data["issued.json"].0).expect("JSON");
    assert!(record.as_object_mut().expect("a record").remove("names").is_some(), "{record}");
    for (_, leaf) in record["leaves"].as_object_mut().expect("certificates") {
        leaf.as_object_mut().expect("a certificate").retain(|field, _| field != "names" && field != "addresses");
    }
    let older = Patch::Merge(json!({"data": {"issued.json": ByteString(record.to_string().into_bytes())}}));
    records.secrets.patch(&records.names[1], &PatchParams::default(), &older).await.expect("an older record");
    let fourth = sign(&lab, "sign-c", &[]).await;
    fourth.logged("leading", LIMIT).await;
    let said = revoke(&admin, &["prod/etcd", "--serial", &new.serial, "--undo"]).await.expect("taken back");
    assert!(said.contains(&format!("1 certificate (pod prod/etcd-0, user {})", new.common_name)), "{said}");
    // The next certificate has its names again, beside those that have none.
    let (_, next) = issue(&lab, &pod, Role::Server, None).await;
    let said = self::said(&admin, &["prod/etcd", "--serial", &next.serial, "--at-once"]).await;
    assert!(said.contains(&format!("(pod prod/etcd-0, user {}, names ", next.common_name)), "{said}");
}

/// The Lease goes to and fro while certificates are issued, so that the leader of before has some that it has not written, and the
/// next one writes the same Secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_loses_its_lease_leaves_no_certificate_out_of_the_record() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let (pod, records) = begin(&lab).await;
    first.logged("leading", LIMIT).await;
    let second = sign(&lab, "sign-b", &[]).await;
    let leases: Api<Lease> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);

    let (mut all, mut next) = (BTreeSet::new(), Instant::now() + Duration::from_secs(2));
    let mut takers = ["sign-b", "sign-a", "sign-b"].into_iter();
    let mut taken = 0;
    loop {
        for role in [Role::Peer, Role::Server] {
            let (_, chain) = issue(&lab, &pod, role, None).await;
            all.insert(chain.serial);
        }
        if Instant::now() >= next {
            let Some(taker) = takers.next() else { break };
            let holder = Patch::Merge(json!({"spec": {"holderIdentity": taker}}));
            leases.patch(LEASE, &PatchParams::default(), &holder).await.expect("take the Lease");
            taken += 1;
            next = Instant::now() + Duration::from_secs(8);
        }
        // A pod may hold a bounded number of certificates.
        sleep(Duration::from_millis(200)).await;
    }
    let lost = [&first, &second].map(|process| process.log().matches("lost leadership").count());
    assert!(lost[0] >= 1 && lost[1] >= 1, "{lost:?}");
    records.have(&all).await;
    say(&format!("{} certificates while the Lease was taken {taken} times: all are in the record", all.len()));
}

/// A killed signer records nothing more. Its successor finds what it issued in the requests, also one that another one superseded, before
/// it does what an operator asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_signer_did_not_record_is_revoked_by_its_pod_all_the_same() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let mut first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let (pod, records) = begin(&lab).await;
    let (_, recorded) = issue(&lab, &pod, Role::Server, None).await;
    records.have(&BTreeSet::from([recorded.serial.clone()])).await;
    let usual = records.entry(&recorded.serial).await.expect("an entry");

    // Two that are not written when it dies, which a slow machine may need more than one attempt for.
    let (mut killed, mut issued_by) = (None, SystemTime::now());
    for _ in 0..20 {
        let (_, earlier) = issue(&lab, &pod, Role::Server, None).await;
        let (_, last) = issue(&lab, &pod, Role::Server, None).await;
        issued_by = SystemTime::now();
        first.kill();
        let written = records.serials().await;
        if !written.contains(&earlier.serial) && !written.contains(&last.serial) {
            killed = Some([earlier, last]);
            break;
        }
        first = sign(&lab, "sign-a", &[]).await;
        first.logged("leading", LIMIT).await;
    }
    let killed = killed.expect("a certificate is recorded some time after it was issued");

    // Asked before anybody leads.
    let admin = lab.api.kubeconfig.clone();
    let asked = tokio::spawn(async move { revoke(&admin, &["prod/etcd", "--pod", "etcd-0", "--force"]).await });
    sleep(Duration::from_secs(1)).await;
    let second = sign(&lab, "sign-b", &[]).await;
    second.logged("recorded what the leader before had issued and not recorded", LIMIT).await;
    let said = asked.await.expect("a command").unwrap_or_else(|error| error);
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let list = published(&maps).await.expect("lists")["client"].clone();
    for chain in killed.iter().chain([&recorded]) {
        assert!(list.entries().contains_key(&chain.serial), "{said}: {:?}", list.entries());
    }
    assert!(!said.contains("the record lacks"), "{said}");
    // The record of each is the same as if it had been written in time.
    records.have(&killed.iter().map(|chain| chain.serial.clone()).collect()).await;
    for chain in &killed {
        let found = records.entry(&chain.serial).await.expect("an entry");
        assert!(usual.get("names").is_some() || usual.get("addresses").is_some(), "{usual}");
        for field in ["holder", "pod", "user", "peer", "names", "addresses"] {
            assert_eq!(found.get(field), usual.get(field), "{field}");
        }
        assert_eq!(found["key"], etcd_tls_contract::csr::key_digest(&chain.public_key));
        let (at, until) = (found["at"].as_u64().expect("a time"), found["until"].as_u64().expect("a time"));
        let before = usual["at"].as_u64().expect("a time");
        let after = issued_by.duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
        assert!(before <= at && at <= after && at < until, "{before} {after} {found}");
    }
}

/// The namespace's binding is gone, and no approver repairs it: a signer that begins issues all the same. It publishes and signs no list
/// before it has compared the published one, as somebody may have restored an older Secret meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_cannot_read_the_published_list_yet_issues_and_loses_no_revocation() {
    let Some(lab) = Lab::new().await else { return };
    let mut approver = lab.approver("approve-a", &[]);
    let mut first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let (pod, records) = begin(&lab).await;
    let (_, recorded) = issue(&lab, &pod, Role::Server, None).await;
    records.have(&BTreeSet::from([recorded.serial.clone()])).await;
    let admin = lab.api.kubeconfig.clone();
    let older = records.secrets.get(&records.names[1]).await.expect("a Secret");
    let said = revoke(&admin, &["prod/etcd", "--serial", &recorded.serial, "--at-once", "--force"]).await;
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let revoked = published(&maps).await.expect("lists")["client"].clone();
    assert!(revoked.entries().contains_key(&recorded.serial), "{said:?}");

    // A request is approved while nobody signs.
    first.kill();
    let asking = Asking::of(&pod, Role::Server);
    asking.create_when_allowed(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;
    approver.process.kill();
    lab.api.kubectl(&["-n", "prod", "delete", "rolebinding", "etcd-tls-sign"]);
    eventually("the right is gone", LIMIT, || async {
        let answer = lab.can_i("etcd-tls-sign", "get", "configmaps", "prod");
        if answer == "no" { Ok(()) } else { Err(answer) }
    })
    .await;
    let mut restored = records.secrets.get(&records.names[1]).await.expect("a Secret");
    restored.data.clone_from(&older.data);
    records.secrets.replace(&records.names[1], &PostParams::default(), &restored).await.expect("restored");

    // Of the same name, so that it does not wait for the Lease.
    let second = sign(&lab, "sign-a", &[]).await;
    let chain = issued(&lab, &asking.name).await;
    assert!(!second.log().contains("the list is taken over"), "{}", second.log());
    records.have(&BTreeSet::from([chain.serial.clone()])).await;
    // The right comes, and with it the published list.
    let approver = lab.approver("approve-b", &[]);
    lab.sign_binding("prod", true).await;
    second.logged("the Secret is older than the published revocation list: the list is taken over", LIMIT).await;
    let said = revoke(&admin, &["prod/etcd", "--serial", &chain.serial, "--at-once", "--force"]).await;
    let list = published(&maps).await.expect("lists")["client"].clone();
    for serial in [&recorded.serial, &chain.serial] {
        assert!(list.entries().contains_key(serial), "{said:?}: {:?}", list.entries());
    }
    assert_eq!(list.replaces(&revoked), Ok(true));
    drop(approver);
}

/// The Secret of a CA that policy gives is made again when it is lost. The published list is the only record of revocations then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_given_ca_whose_secret_is_lost_loses_no_revocation() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &[]).await;
    let given = Ca::new("given");
    signer::give(&lab, "own-client-ca", &given.pem, &given.key_pem).await;
    lab.set_policy("authorities: [{signer: client.etcd-tls.dev/prod.etcd, secretName: own-client-ca}]\n").await;
    lab.ready(&approver).await;
    let (pod, records) = begin(&lab).await;
    let (_, chain) = issue(&lab, &pod, Role::Server, None).await;
    let bundle = Bundle::parse(given.pem.as_bytes()).expect("a bundle");
    assert!(bundle.contains_issuer_of(&chain), "of the given CA");
    records.have(&BTreeSet::from([chain.serial.clone()])).await;
    let admin = lab.api.kubeconfig.clone();
    let said = revoke(&admin, &["prod/etcd", "--serial", &chain.serial, "--at-once", "--force"]).await;
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let revoked = published(&maps).await.expect("lists")["client"].clone();
    assert!(revoked.entries().contains_key(&chain.serial), "{said:?}");

    records.secrets.delete(&records.names[1], &DeleteParams::default()).await.expect("lose the Secret");
    signer
        .logged("the Secret of a CA that policy gives is made again, with the published revocation list", LIMIT)
        .await;
    // Another revocation has another list signed and published.
    let (_, other) = issue(&lab, &pod, Role::Server, None).await;
    let said = revoke(&admin, &["prod/etcd", "--serial", &other.serial, "--at-once", "--force"]).await;
    let list = published(&maps).await.expect("lists")["client"].clone();
    for serial in [&chain.serial, &other.serial] {
        assert!(list.entries().contains_key(serial), "{said:?}: {:?}", list.entries());
    }
    assert_eq!(list.replaces(&revoked), Ok(true));
}
