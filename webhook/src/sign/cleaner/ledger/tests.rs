#![allow(clippy::unwrap_used)]

use etcd_tls_contract::identity::POD_UID;
use k8s_openapi::{
    api::certificates::v1::CertificateSigningRequestCondition as Condition, apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::*;

const TIMES: Times =
    Times { issued: Duration::from_secs(300), refused: Duration::from_secs(3600), open: Duration::from_secs(60) };
const SECOND: Duration = Duration::from_secs(1);

/// A ledger, and the time by both clocks.
struct Scene {
    ledger: Ledger,
    start: (SystemTime, Instant),
    after: Duration,
    version: u64,
}

impl Scene {
    fn new() -> Self {
        let start = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), Instant::now());
        Self { ledger: Ledger::new(TIMES), start, after: Duration::ZERO, version: 0 }
    }

    fn now(&self) -> Instant {
        self.start.1 + self.after
    }

    fn wall(&self) -> SystemTime {
        self.start.0 + self.after
    }

    fn csr(&self, name: &str, pod: &str) -> Csr {
        let mut csr = Csr::default();
        csr.metadata.name = Some(name.to_owned());
        csr.metadata.uid = Some(format!("uid of {name}"));
        csr.metadata.creation_timestamp = Some(time(self.wall()));
        csr.spec.signer_name = "peer.etcd-tls.dev/a.b".to_owned();
        csr.spec.username = "system:serviceaccount:a:b".to_owned();
        csr.spec.extra.insert(POD_UID.to_owned(), vec![pod.to_owned()]);
        csr
    }

    fn seen(&mut self, csr: &mut Csr) {
        self.version += 1;
        csr.metadata.resource_version = Some(self.version.to_string());
        self.ledger.observe(csr, self.wall(), self.now());
    }

    /// Passes by open, then decided.
    fn asked(&mut self, name: &str, pod: &str, decisions: &[&str]) -> Csr {
        let mut csr = self.csr(name, pod);
        self.seen(&mut csr);
        for decision in decisions {
            self.decided(&mut csr, decision);
        }
        csr
    }

    fn decided(&mut self, csr: &mut Csr, decision: &str) {
        if decision == "issued" {
            csr.status.has_certificate = true;
        } else {
            let at = Some(time(self.wall()));
            let condition = Condition { type_: decision.to_owned(), last_update_time: at, ..Condition::default() };
            csr.status.conditions.push(condition);
        }
        self.seen(csr);
    }

    /// The requests that are due now, each deleted.
    fn deleted(&mut self) -> Vec<(String, Why)> {
        let mut deleted = Vec::new();
        while let Some(order) = self.ledger.take(self.now()) {
            match order.step {
                Step::Delete(why) => {
                    deleted.push((order.name.to_string(), why));
                    self.ledger.finish(&order, Ended::Gone, self.now());
                }
                Step::Look => self.ledger.finish(&order, Ended::Stays, self.now()),
            }
        }
        deleted
    }

    fn deleted_after(&mut self, wait: Duration) -> Vec<(String, Why)> {
        self.after += wait;
        self.deleted()
    }
}

fn time(at: SystemTime) -> Time {
    Time(Timestamp::try_from(at).unwrap())
}

fn one(name: &str, why: Why) -> Vec<(String, Why)> {
    vec![(name.to_owned(), why)]
}

#[test]
fn each_goes_at_its_time() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    scene.asked("etcd-tls-p-server-1", "p", &["Denied"]);
    scene.asked("etcd-tls-p-client-1", "p", &["Approved", "Failed"]);
    scene.asked("etcd-tls-q-peer-1", "q", &["Approved"]);
    assert_eq!(scene.deleted_after(TIMES.issued - SECOND), []);
    assert_eq!(scene.deleted_after(SECOND), one("etcd-tls-p-peer-1", Why::Issued));
    assert_eq!(scene.deleted_after(TIMES.refused - TIMES.issued - SECOND), []);
    let mut refused = scene.deleted_after(SECOND);
    refused.sort_by(|a, b| a.0.cmp(&b.0));
    let both = ["etcd-tls-p-client-1", "etcd-tls-p-server-1"].map(|name| (name.to_owned(), Why::Refused));
    assert_eq!(refused, both);
    assert_eq!(scene.deleted_after(TIMES.refused * 24), [], "an open one whose pod is there stays");
    assert_eq!(scene.ledger.len(), 1);
}

#[test]
fn a_certificate_on_a_denied_request_makes_it_no_issued_one() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Denied", "issued"]);
    assert_eq!(scene.deleted_after(TIMES.issued * 2), []);
    assert_eq!(scene.deleted_after(TIMES.refused), one("etcd-tls-p-peer-1", Why::Refused));
}

#[test]
fn a_later_one_takes_the_place_of_an_earlier_one_when_it_is_issued() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    scene.asked("etcd-tls-p-server-1", "p", &["Approved", "issued"]);
    scene.asked("etcd-tls-q-peer-1", "q", &["Approved", "issued"]);
    let mut second = scene.asked("etcd-tls-p-peer-2", "p", &["Approved"]);
    assert_eq!(scene.deleted(), [], "not before it is issued");
    scene.decided(&mut second, "issued");
    assert_eq!(scene.deleted_after(SUPERSEDED_STAYS - SECOND), [], "its certificate may not be recorded yet");
    assert_eq!(scene.deleted_after(SECOND), one("etcd-tls-p-peer-1", Why::Superseded));
    // An open one that was made before goes with it; one that was made after does not.
    let mut third = scene.csr("etcd-tls-p-peer-3", "p");
    scene.after += SECOND;
    scene.asked("etcd-tls-p-peer-4", "p", &["Approved", "issued"]);
    assert_eq!(scene.deleted_after(SUPERSEDED_STAYS), one("etcd-tls-p-peer-2", Why::Superseded));
    scene.seen(&mut third);
    assert_eq!(scene.deleted(), one("etcd-tls-p-peer-3", Why::Superseded));
}

#[test]
fn one_to_anothers_signer_that_is_superseded_goes_at_once_as_its_certificate_is_recorded_nowhere() {
    let mut scene = Scene::new();
    for n in 1..=2 {
        let mut csr = scene.csr(&format!("etcd-tls-p-peer-{n}"), "p");
        csr.spec.signer_name = "example.com/etcd".to_owned();
        scene.seen(&mut csr);
        scene.decided(&mut csr, "Approved");
        scene.decided(&mut csr, "issued");
        scene.after += SECOND;
    }
    assert_eq!(scene.deleted(), one("etcd-tls-p-peer-1", Why::Superseded));
}

#[test]
fn issued_ones_of_ours_stay_while_a_new_leader_looks_for_certificates_in_them() {
    let mut scene = Scene::new();
    scene.ledger.spare(true);
    scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    scene.after += SECOND;
    scene.asked("etcd-tls-p-peer-2", "p", &["Approved", "issued"]);
    scene.asked("etcd-tls-p-server-1", "p", &["Denied"]);
    let mut other = scene.csr("etcd-tls-q-peer-1", "q");
    other.spec.signer_name = "example.com/etcd".to_owned();
    other.status.has_certificate = true;
    scene.seen(&mut other);
    assert_eq!(scene.deleted_after(TIMES.issued * 2), one("etcd-tls-q-peer-1", Why::Issued));
    assert_eq!(scene.deleted_after(TIMES.refused), one("etcd-tls-p-server-1", Why::Refused));
    scene.ledger.spare(false);
    let mut deleted = scene.deleted_after(SPARED);
    deleted.sort_by(|a, b| a.0.cmp(&b.0));
    let both = [("etcd-tls-p-peer-1", Why::Superseded), ("etcd-tls-p-peer-2", Why::Issued)];
    assert_eq!(deleted, both.map(|(name, why)| (name.to_owned(), why)));
}

#[test]
fn nobody_takes_the_place_of_anothers_request() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    let mut other = scene.csr("etcd-tls-p-peer-2", "p");
    other.spec.username = "host-b".to_owned();
    scene.seen(&mut other);
    scene.decided(&mut other, "Approved");
    scene.decided(&mut other, "issued");
    assert_eq!(scene.deleted(), []);
}

#[test]
fn a_successor_knows_after_its_list() {
    let mut scene = Scene::new();
    let mut first = scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    scene.after += SECOND;
    let mut second = scene.asked("etcd-tls-p-peer-2", "p", &["Approved", "issued"]);
    let mut denied = scene.asked("etcd-tls-p-server-1", "p", &["Denied"]);
    scene.after += Duration::from_secs(100);
    // In the order of their names, or another one.
    for turned in [false, true] {
        scene.ledger = Ledger::new(TIMES);
        scene.ledger.list_begins();
        let mut listed = [&mut first, &mut second, &mut denied];
        if turned {
            listed.reverse();
        }
        for csr in listed {
            scene.seen(csr);
        }
        scene.ledger.list_ends();
        assert_eq!(scene.deleted(), []);
        assert_eq!(scene.deleted_after(SUPERSEDED_STAYS), one("etcd-tls-p-peer-1", Why::Superseded));
    }
    // Its age counts, but not for less than the time to fetch it.
    let left = Duration::from_secs(200) - SUPERSEDED_STAYS * 2;
    assert_eq!(scene.deleted_after(left - SECOND), []);
    assert_eq!(scene.deleted_after(SECOND), one("etcd-tls-p-peer-2", Why::Issued));
    assert_eq!(scene.deleted_after(TIMES.refused - Duration::from_secs(300)), one("etcd-tls-p-server-1", Why::Refused));
    // Long over at a list: at once, and what can still be fetched a minute later.
    scene.ledger = Ledger::new(TIMES);
    scene.after += TIMES.refused;
    scene.ledger.list_begins();
    scene.seen(&mut denied);
    scene.seen(&mut second);
    scene.ledger.list_ends();
    assert_eq!(scene.deleted(), one("etcd-tls-p-server-1", Why::Refused));
    assert_eq!(scene.deleted_after(TO_FETCH), one("etcd-tls-p-peer-2", Why::Issued));
}

#[test]
fn requests_missing_from_a_list_are_gone() {
    let mut scene = Scene::new();
    let gone = scene.asked("etcd-tls-p-peer-1", "p", &["Denied"]);
    let mut left = scene.asked("etcd-tls-p-server-1", "p", &["Denied"]);
    scene.ledger.list_begins();
    scene.seen(&mut left);
    scene.ledger.list_ends();
    assert_eq!(scene.ledger.len(), 1);
    assert_eq!(scene.deleted_after(TIMES.refused), one("etcd-tls-p-server-1", Why::Refused));
    scene.ledger.gone(&gone);
    assert!(scene.ledger.entries.is_empty() && scene.ledger.pods.is_empty());
}

#[test]
fn refused_ones_beyond_a_few_go_at_once_and_open_ones_are_looked_at() {
    let mut scene = Scene::new();
    let mut kept = 0;
    for n in 0..100 {
        scene.asked(&format!("etcd-tls-p-peer-{n}"), "p", &["Denied"]);
        kept += usize::from(scene.deleted().is_empty());
    }
    assert_eq!(scene.ledger.len(), kept);
    assert!((3..=20).contains(&kept), "{kept}");
    let open = scene.asked("etcd-tls-p-server-1", "p", &[]);
    let order = scene.ledger.take(scene.now()).unwrap();
    assert_eq!((&*order.name, &order.step), ("etcd-tls-p-server-1", &Step::Look), "at once");
    let made = open.created().unwrap();
    assert!(scene.ledger.goes_unanswered(&open, made));
    scene.ledger.finish(&order, Ended::Delete(Why::Unanswered), scene.now());
    assert_eq!(scene.deleted(), one("etcd-tls-p-server-1", Why::Unanswered));
    // Another pod's is nobody's business, and room comes back with time.
    scene.asked("etcd-tls-q-peer-1", "q", &[]);
    assert!(scene.ledger.take(scene.now()).is_none());
    assert_eq!(scene.deleted_after(TIMES.refused).len(), kept);
    assert!(!scene.ledger.goes_unanswered(&open, made));
    // A request once left to us is never answered.
    assert!(!scene.ledger.goes_unanswered(&open, made + TIMES.refused - Duration::from_secs(1)));
    assert!(scene.ledger.goes_unanswered(&open, made + TIMES.refused));
}

#[test]
fn a_pod_leaves_few_open_ones() {
    let mut scene = Scene::new();
    for n in 0..1000 {
        scene.asked(&format!("etcd-tls-p-peer-{n}"), "p", &[]);
    }
    let superseded = scene.deleted();
    assert_eq!((scene.ledger.len(), superseded.len()), (OPEN_PER_ROLE, 1000 - OPEN_PER_ROLE));
    assert_eq!(superseded[0], ("etcd-tls-p-peer-0".to_owned(), Why::Superseded), "the oldest");
    for n in 0..1000 {
        scene.asked(&format!("etcd-tls-p-role{n}-x"), "p", &[]);
    }
    scene.deleted();
    assert!(scene.ledger.len() <= OPEN_PER_POD, "{}", scene.ledger.len());
    // Gone, nothing is left of it.
    scene.ledger.list_begins();
    scene.ledger.list_ends();
    assert!(scene.ledger.pods.is_empty() && scene.ledger.entries.is_empty());
}

#[test]
fn failed_deletions_are_tried_again_and_held_requests_are_not() {
    let mut scene = Scene::new();
    let mut csr = scene.asked("etcd-tls-p-peer-1", "p", &["Denied"]);
    scene.after += TIMES.refused;
    let mut waits = Vec::new();
    for _ in 0..20 {
        let order = scene.ledger.take(scene.now()).unwrap();
        scene.ledger.finish(&order, Ended::Failed, scene.now());
        let wait = scene.ledger.next_due().unwrap() - scene.now();
        waits.push(wait);
        scene.after += wait;
    }
    assert_eq!((waits[0], waits[19]), RETRY);
    // Another version: as soon as the watch brings it.
    let order = scene.ledger.take(scene.now()).unwrap();
    scene.seen(&mut csr);
    scene.ledger.finish(&order, Ended::Changed, scene.now());
    let order = scene.ledger.take(scene.now() + CHANGED).unwrap();
    assert_eq!(order.version.to_string(), csr.resource_version());
    scene.ledger.finish(&order, Ended::Held, scene.now());
    assert!(scene.ledger.take(scene.now() + TIMES.refused).is_none());
    csr.metadata.deletion_timestamp = Some(time(scene.wall()));
    csr.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    scene.seen(&mut csr);
    assert_eq!(scene.ledger.held(), 1);
    scene.after += TIMES.refused * 24;
    assert!(scene.ledger.take(scene.now()).is_none());
    scene.ledger.gone(&csr);
    assert_eq!((scene.ledger.held(), scene.ledger.len()), (0, 0));
}

#[test]
fn an_interrupted_deletion_is_resumed() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Denied"]);
    scene.after += TIMES.refused;
    assert!(scene.ledger.take(scene.now()).is_some());
    assert!(scene.ledger.take(scene.now()).is_none());
    scene.ledger.release(scene.now());
    assert_eq!(scene.deleted(), one("etcd-tls-p-peer-1", Why::Refused));
}

#[test]
fn a_name_that_comes_again_is_another_request() {
    let mut scene = Scene::new();
    let mut csr = scene.asked("etcd-tls-p-peer-1", "p", &["Denied"]);
    csr.metadata.uid = Some("another".to_owned());
    csr.status.conditions.clear();
    scene.seen(&mut csr);
    assert_eq!(scene.deleted_after(TIMES.refused), []);
    scene.decided(&mut csr, "Denied");
    assert_eq!(scene.deleted_after(TIMES.refused), one("etcd-tls-p-peer-1", Why::Refused));
}

/// The Secret of its authority cannot be written, so the request alone tells of the certificate.
#[test]
fn one_whose_certificate_is_not_recorded_stays_until_it_is() {
    let mut scene = Scene::new();
    scene.asked("etcd-tls-p-peer-1", "p", &["Approved", "issued"]);
    scene.asked("etcd-tls-q-peer-1", "q", &["Denied"]);
    scene.after = TIMES.issued;
    let order = scene.ledger.take(scene.now()).unwrap();
    assert!(order.recorded && order.step == Step::Delete(Why::Issued));
    scene.ledger.finish(&order, Ended::Unrecorded, scene.now());
    assert_eq!(scene.deleted_after(UNRECORDED - SECOND), []);
    assert_eq!(scene.deleted_after(SECOND), one("etcd-tls-p-peer-1", Why::Issued));
    scene.after = TIMES.refused;
    assert!(!scene.ledger.take(scene.now()).unwrap().recorded);
}
