//! One store, on a directory of its own.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{path::PathBuf, time::Duration};

use etcd_tls_contract::encoding;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::certificates::v1::CertificateSigningRequestCondition, apimachinery::pkg::apis::meta::v1::Time,
};

use super::*;
use crate::ca::der;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("etcd-tls-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn csr(name: &str, user: &str) -> CertificateSigningRequest {
    let mut csr = CertificateSigningRequest::default();
    csr.metadata.name = Some(name.to_owned());
    csr.metadata.creation_timestamp = Some(Time(Timestamp::now()));
    csr.spec.username = Some(user.to_owned());
    csr
}

fn denied(name: &str, user: &str, age: Duration) -> CertificateSigningRequest {
    let mut csr = csr(name, user);
    let at = Time(Timestamp::now() - jiff::SignedDuration::try_from(age).unwrap());
    csr.metadata.creation_timestamp = Some(at.clone());
    status_mut(&mut csr).conditions = Some(vec![CertificateSigningRequestCondition {
        type_: "Denied".to_owned(),
        last_update_time: Some(at),
        ..Default::default()
    }]);
    csr
}

fn names(store: &Store) -> Vec<String> {
    store.with(|index, _| index.iter().map(|r| r.name().to_owned()).collect())
}

/// The store after its last handle was dropped: its writer ends a moment later.
fn reopened(dir: &Dir) -> Store {
    loop {
        match Store::open(&dir.0, Limits::default()) {
            Ok(store) => break store,
            Err(OpenError::InUse(_)) => thread::sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test]
async fn one_of_two_requests_of_one_name_wins() {
    let dir = Dir::new("name");
    let store = Store::open(&dir.0, Limits::default()).unwrap();
    let (a, b) = tokio::join!(store.create(csr("x", "a")), store.create(csr("x", "b")));
    assert!(a.is_ok() != b.is_ok());
    assert!(a.and(b).is_err_and(|e| e == ApiError::AlreadyExists("x".to_owned())));
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_repeats_no_revision() {
    let dir = Dir::new("restart");
    let store = Store::open(&dir.0, Limits::default()).unwrap();
    let first = store.create(csr("a", "u")).await.unwrap().revision;
    store.create(csr("b", "u")).await.unwrap();
    store.change(|_| Ok(Mutation::Delete("a".to_owned()))).await.unwrap();
    let last = store.with(|_, revision| revision);
    drop(store);
    let store = reopened(&dir);
    assert_eq!(names(&store), ["b"]);
    let new = store.create(csr("c", "u")).await.unwrap().revision;
    assert!(first < last && last < new, "{first} {last} {new}");
    assert!(matches!(store.since(last, 100), Since::Gone), "a watch of the old process begins anew");
}

/// Also one that the reader of requests would refuse today.
#[tokio::test]
async fn a_journal_gives_back_each_request_in_the_form_that_its_pem_has() {
    let dir = Dir::new("forms");
    let store = Store::open(&dir.0, Limits::default()).unwrap();
    let common = |label: &str| encoding::pem(label, &der::tlv(der::SEQUENCE, &[7; 300])).to_string();
    let forms = |label: &str| {
        let common = common(label);
        let last = common.find("-----END").unwrap();
        [
            common.replace('\n', "\r\n"),
            common.replacen("BwcHBwcH", "BwcH\nBwcH", 1),
            common.replacen('\n', "\nComment: a\n\n", 1),
            format!("text\n{common}text\n"),
            format!("{common}\n"),
            common.trim_end().to_owned(),
            common[..last].to_owned(),
            format!("{}====\n{}", &common[..last], &common[last..]),
            common.repeat(2),
            String::new(),
            common,
        ]
    };
    let mut stored = Vec::new();
    for (i, request) in forms("CERTIFICATE REQUEST").into_iter().enumerate() {
        for (j, certificate) in forms("CERTIFICATE").into_iter().enumerate() {
            let mut csr = denied(&format!("{i:02}-{j:02}"), &format!("u{i}"), Duration::ZERO);
            csr.spec.request.0 = request.clone().into_bytes();
            status_mut(&mut csr).certificate = Some(ByteString(certificate.into_bytes()));
            let revision = store.create(csr.clone()).await.unwrap().revision;
            csr.metadata.resource_version = Some(revision.to_string());
            stored.push(serde_json::to_string(&csr).unwrap());
        }
    }
    let read = |store: &Store| -> Vec<String> {
        store.with(|index, _| index.iter().map(|r| String::from_utf8(r.json()).unwrap()).collect())
    };
    assert_eq!(read(&store), stored);
    drop(store);
    assert_eq!(read(&reopened(&dir)), stored);
}

/// Ten times as many bytes as it may have before it is written anew.
#[tokio::test]
async fn a_journal_of_requests_that_are_gone_stays_small() {
    const ALLOWED: u64 = 4 << 20;
    let dir = Dir::new("small");
    let store = Store::open(&dir.0, Limits::default()).unwrap();
    store.create(csr("stays", "u")).await.unwrap();
    let padding = "x".repeat(16 * 1024);
    let (mut written, mut round) = (0, 0);
    while written < 10 * ALLOWED {
        let names: Vec<_> = (0..BATCH / 2).map(|n| format!("gone-{round}-{n}")).collect();
        futures::future::join_all(names.iter().map(async |name| {
            let mut csr = csr(name, "u");
            csr.metadata.annotations = Some([("a".to_owned(), padding.clone())].into());
            store.create(csr).await.unwrap();
        }))
        .await;
        futures::future::join_all(names.iter().map(async |name| {
            let name = name.clone();
            store.change(move |_| Ok(Mutation::Delete(name))).await.unwrap();
        }))
        .await;
        written += (padding.len() * names.len()) as u64;
        round += 1;
        let files = std::fs::read_dir(&dir.0).unwrap();
        let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        // A round of requests beyond it, and the new file beside the old one.
        assert!(bytes <= 3 * ALLOWED, "{bytes} bytes after {written}");
    }
    drop(store);
    assert_eq!(names(&reopened(&dir)), ["stays"]);
}

#[tokio::test]
async fn limits_hold_and_what_waits_is_never_removed() {
    let dir = Dir::new("limits");
    let limits = Limits { requests: 4, pending_per_user: 2, ..Limits::default() };
    let store = Store::open(&dir.0, limits).unwrap();
    store.create(csr("a1", "a")).await.unwrap();
    store.create(csr("a2", "a")).await.unwrap();
    let third = store.create(csr("a3", "a")).await.unwrap_err();
    assert!(matches!(&third, ApiError::TooManyRequests { message, .. } if message.contains("2 requests")), "{third}");
    store.create(csr("b1", "b")).await.unwrap();
    store.create(denied("old", "c", Duration::from_secs(600))).await.unwrap();
    store.create(csr("b2", "b")).await.unwrap();
    assert_eq!(names(&store), ["a1", "a2", "b1", "b2"], "the decided one made place");
    let full = store.create(csr("c1", "c")).await.unwrap_err();
    assert!(matches!(&full, ApiError::TooManyRequests { message, .. } if message.contains("4 requests")), "{full}");
    store.change(|_| Ok(Mutation::Delete("a1".to_owned()))).await.unwrap();
    store.create(csr("a3", "a")).await.unwrap();
}

/// Its own oldest decided requests make place for a user's next; nobody else's are removed, and none that waits.
#[tokio::test]
async fn a_user_makes_place_by_its_own_requests_alone() {
    let dir = Dir::new("user");
    let limits = Limits { requests: 100, per_user: 10, pending_per_user: 5, ..Limits::default() };
    let store = Store::open(&dir.0, limits).unwrap();
    store.create(denied("other", "b", Duration::from_secs(900))).await.unwrap();
    store.create(csr("waits", "a")).await.unwrap();
    for i in 0..30 {
        store.create(denied(&format!("a{i:02}"), "a", Duration::from_secs(600 - i))).await.unwrap();
    }
    let kept = names(&store);
    assert!(kept.len() <= 11 && kept.contains(&"other".to_owned()) && kept.contains(&"waits".to_owned()), "{kept:?}");
    assert!(kept.contains(&"a29".to_owned()) && !kept.contains(&"a00".to_owned()), "{kept:?}");
    // A request decided a moment ago is about to be read.
    for i in 0..10 {
        let fresh = store.create(denied(&format!("c{i}"), "c", Duration::ZERO)).await;
        assert!(fresh.is_ok(), "{i}");
    }
    let eleventh = store.create(denied("c10", "c", Duration::ZERO)).await.unwrap_err();
    assert!(matches!(&eleventh, ApiError::TooManyRequests { message, .. } if message.contains("10 requests stored")));
}

#[tokio::test]
async fn a_watcher_gets_every_change_or_is_told_to_list_again() {
    let dir = Dir::new("watch");
    let store = Store::open(&dir.0, Limits::default()).unwrap();
    let start = store.with(|_, revision| revision);
    for i in 0..5 {
        store.create(csr(&format!("r{i}"), "u")).await.unwrap();
    }
    store.change(|_| Ok(Mutation::Delete("r0".to_owned()))).await.unwrap();
    let Since::Events(events, end) = store.since(start, 100) else { panic!("gone") };
    assert_eq!(events.len(), 6);
    assert_eq!((events[5].kind, events[5].request.name()), (Kind::Deleted, "r0"));
    assert!(matches!(store.since(end, 100), Since::Events(none, _) if none.is_empty()));
    // In pieces, to the same end.
    let (mut at, mut seen) = (start, 0);
    while at < end {
        let Since::Events(events, next) = store.since(at, 4) else { panic!("gone") };
        (at, seen) = (next, seen + events.len());
    }
    assert_eq!(seen, 6);
    assert!(matches!(store.since(end + 1, 100), Since::Gone), "a revision of the future");
    assert!(matches!(store.since(0, 100), Since::Gone));
}

#[test]
fn lives_are_counted_from_the_decision() {
    let limits = Limits::default();
    let now = Timestamp::now();
    let expired = |csr| Index::expired(&StoredRequest::new(&csr), &limits, now);
    assert!(!expired(csr("a", "u")));
    assert!(!expired(denied("a", "u", Duration::from_secs(3500))));
    assert!(expired(denied("a", "u", Duration::from_secs(3601))));
}
