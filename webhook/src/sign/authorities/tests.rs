#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future,
    task::{Context, Poll},
};

use super::*;
use etcd_tls_contract::{crl::Reason, key::KeyAlgorithm, names};
use http_body_util::Full;
use hyper::{Response, body::Bytes};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    revoke::{Action, Request, Selector},
    rollover::Trigger,
};

/// With no API server.
fn authorities(policy: &Arc<Policy>) -> Authorities {
    authorities_of(policy, tokio::sync::watch::channel(None).1)
}

fn authorities_of(policy: &Arc<Policy>, namespaces: namespaces::Current) -> Authorities {
    let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    authorities_at(Client::try_from(config).unwrap(), policy, namespaces)
}

fn authorities_at(client: Client, policy: &Arc<Policy>, namespaces: namespaces::Current) -> Authorities {
    let tasks = crate::controller::tasks::Tasks::register(&mut prometheus_client::registry::Registry::default());
    let authorities = Authorities::new(
        client.clone(),
        names::SYSTEM_NAMESPACE,
        tokio::sync::watch::channel(Some(Arc::clone(policy))).1,
        namespaces,
        Pods::spawn(&client, false, &tasks, None),
        (issued::MOST, Arc::new(Records::new(usize::MAX))),
        Arc::default(),
    );
    authorities.listed(&BTreeSet::new());
    authorities
}

/// A revocation that came after the grant and before the certificate was recorded.
#[tokio::test]
async fn a_key_that_is_revoked_between_grant_and_record_gets_no_certificate() {
    let now = SystemTime::now();
    let policy = Arc::new(Policy::default());
    let authorities = authorities(&policy);
    let signer: SignerName = "client.etcd-tls.dev/prod.etcd".parse().unwrap();
    let entry = authorities.entry(&policy.authority(&signer)).unwrap();
    let end = now + Duration::from_secs(86_400);
    let leaf = |key: &[u8]| Leaf::new("uid", "prod/app-0".to_owned(), "app", end, now).for_key(key);
    let mut issued = issued::Issued::default();
    issued.note("1", leaf(b"key"));
    let known = revoked::Known {
        issued: &issued,
        namespace: "prod",
        signs_lists: true,
        live: &[],
        voters: &[],
        by_record: None,
        leaves_end: end,
        authority_end: end,
    };
    let mut revoked = revoked::Revoked::default();
    let request = Request {
        action: Action::Add,
        id: "1".to_owned(),
        selector: Selector::Serial("1".to_owned()),
        reason: Reason::KeyCompromise,
        until: None,
    };
    revoked.take(&request, &known, now);
    let ca = Authority::generate("ca", KeyAlgorithm::EcdsaP256, Duration::from_secs(86_400), now).unwrap();
    let stored = Stored { revoked: Arc::new(revoked), ..Stored::new(ca) };
    let issuer = Arc::clone(&stored.active);
    let secret = quota::SecretMetadata::of(ObjectMeta::default(), &signer).unwrap();
    *entry.held.lock().await =
        Held::Ready(Box::new(Ready { namespace: "u".into(), stored, secret, type_: None, compared: true }));
    let refused = authorities.note_issued(&entry, &issuer, "2", leaf(b"key")).await.unwrap_err();
    assert!(matches!(&refused, Unavailable::Barred(message) if message.contains("compromised")), "{refused}");
    authorities.note_issued(&entry, &issuer, "3", leaf(b"another")).await.unwrap();
}

/// As in a job that goes on while the leader's tasks are started again after a panic.
#[tokio::test]
async fn a_place_that_was_given_up_takes_no_record() {
    let (now, policy) = (SystemTime::now(), Arc::new(Policy::default()));
    let authorities = authorities(&policy);
    let signer: SignerName = "client.etcd-tls.dev/prod.etcd".parse().unwrap();
    let leaf = |serial: &str| Leaf::new("uid", "prod/app-0".to_owned(), serial, now + Duration::from_secs(600), now);
    let ca = Authority::generate("ca", KeyAlgorithm::EcdsaP256, Duration::from_secs(86_400), now).unwrap();
    let stored = Stored::new(ca);
    let issuer = Arc::clone(&stored.active);
    let ready = || {
        let secret = quota::SecretMetadata::of(ObjectMeta::default(), &signer).unwrap();
        let stored = stored.clone();
        Held::Ready(Box::new(Ready { namespace: "u".into(), stored, secret, type_: None, compared: true }))
    };
    let before = authorities.entry(&policy.authority(&signer)).unwrap();
    *before.held.lock().await = ready();
    authorities.note_issued(&before, &issuer, "1", leaf("1")).await.unwrap();
    authorities.clear();
    authorities.listed(&BTreeSet::new());
    let refused = authorities.note_issued(&before, &issuer, "2", leaf("2")).await.unwrap_err();
    assert!(matches!(refused, Unavailable::NotYet(_)), "{refused}");
    let after = authorities.entry(&policy.authority(&signer)).unwrap();
    *after.held.lock().await = ready();
    let refused = authorities.note_issued(&before, &issuer, "2", leaf("2")).await.unwrap_err();
    assert!(matches!(refused, Unavailable::NotYet(_)), "{refused}");
    authorities.note_issued(&after, &issuer, "2", leaf("2")).await.unwrap();
}

/// An API server with this Secret, or that fails, and with nothing else.
#[derive(Clone, Default)]
struct Holds(Arc<StdMutex<Option<Secret>>>);

impl tower::Service<hyper::Request<kube::client::Body>> for Holds {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<kube::client::Body>) -> Self::Future {
        let secret = self.0.lock().unwrap().clone();
        let failure =
            |code| (code, serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}));
        let (code, body) = match secret {
            None => failure(500),
            Some(secret) if request.uri().path().contains("/secrets/") => (200, serde_json::to_value(secret).unwrap()),
            Some(_) => failure(404),
        };
        future::ready(Ok(Response::builder().status(code).body(Full::new(body.to_string().into())).unwrap()))
    }
}

/// Between grant and record another write has failed, whose answer may be lost: that of a revocation, say.
#[tokio::test]
async fn a_certificate_of_an_authority_that_is_to_be_read_again_is_recorded_by_what_is_read() {
    let now = SystemTime::now();
    let policy = Arc::new(Policy::default());
    let facts = namespaces::NamespaceFacts { uid: "u".to_owned(), opted_in: true, deleting: false, hosts: false };
    let namespaces = Some(Arc::new(BTreeMap::from([("prod".into(), Arc::new(facts))])));
    let (server, (_sender, receiver)) = (Holds::default(), tokio::sync::watch::channel(namespaces));
    let authorities = authorities_at(Client::new(server.clone(), "default"), &policy, receiver);
    let signer: SignerName = "client.etcd-tls.dev/prod.etcd".parse().unwrap();
    let entry = authorities.entry(&signer).unwrap();
    let life = Duration::from_secs(86_400);
    let ca = |name: &str| Authority::generate(name, KeyAlgorithm::EcdsaP256, life, now).unwrap();
    let leaf = |holder: &str| Leaf::new(holder, format!("prod/{holder}"), "app", now + life, now);
    let mut stored = Stored::new(ca("ca"));
    let issuer = Arc::clone(&stored.active);
    Arc::make_mut(&mut stored.issued).note("1", leaf("barred"));
    let holds = |stored: &Stored| {
        let secret = state::secret("u", &signer, stored.data().unwrap());
        *server.0.lock().unwrap() = Some(secret);
    };

    let unreadable = authorities.note_issued(&entry, &issuer, "2", leaf("app")).await.unwrap_err();
    assert!(matches!(unreadable, Unavailable::Api(_)), "{unreadable}");
    assert!(entry.unwritten().is_empty(), "nothing is recorded that is not issued");
    holds(&stored);
    authorities.note_issued(&entry, &issuer, "2", leaf("barred")).await.unwrap();
    assert!(entry.unwritten().issued().has("2"));

    *entry.held.lock().await = Held::Unknown;
    let request = Request {
        action: Action::Add,
        id: "1".to_owned(),
        selector: Selector::Pod("barred".to_owned()),
        reason: Reason::Unspecified,
        until: None,
    };
    stored.revoke(Some(&request), "prod", (&[], &[]), now);
    holds(&stored);
    let refused = authorities.note_issued(&entry, &issuer, "3", leaf("barred")).await.unwrap_err();
    assert!(matches!(refused, Unavailable::Barred(_)), "{refused}");
    authorities.note_issued(&entry, &issuer, "4", leaf("app")).await.unwrap();

    *entry.held.lock().await = Held::Unknown;
    holds(&Stored::new(ca("another")));
    let waits = authorities.note_issued(&entry, &issuer, "5", leaf("app")).await.unwrap_err();
    assert!(matches!(&waits, Unavailable::NotYet(message) if message.contains("another CA")), "{waits}");
    let unwritten = entry.unwritten();
    assert!(["2", "4"].iter().all(|serial| unwritten.issued().has(serial)) && unwritten.issued().len() == 2);
}

/// The watch has shown that the namespace was made again, and no round has looked at the authority since.
#[tokio::test]
async fn an_authority_of_a_namespace_that_was_made_again_issues_and_publishes_nothing() {
    let now = SystemTime::now();
    let policy = Arc::new(Policy::default());
    let facts =
        |uid: &str| namespaces::NamespaceFacts { uid: uid.to_owned(), opted_in: true, deleting: false, hosts: false };
    let map = |uid| Some(Arc::new(BTreeMap::from([("prod".into(), Arc::new(facts(uid)))])));
    let (sender, receiver) = tokio::sync::watch::channel(map("old"));
    let authorities = authorities_of(&policy, receiver);
    let signer: SignerName = "client.etcd-tls.dev/prod.etcd".parse().unwrap();
    let entry = authorities.entry(&signer).unwrap();
    let life = Duration::from_secs(86_400);
    let ca = Authority::generate("ca", KeyAlgorithm::EcdsaP256, life, now).unwrap();
    let secret = quota::SecretMetadata::of(ObjectMeta::default(), &signer).unwrap();
    // The state is written as one that this leaf does not move: there is no API server to write it to.
    let mut stored = Stored::new(ca);
    let issuer = Arc::clone(&stored.active);
    stored.note_leaf(now + life, life);
    *entry.held.lock().await =
        Held::Ready(Box::new(Ready { namespace: "old".into(), stored, secret, type_: None, compared: true }));
    let grant = Grant { holder: "uid", role: Role::Client, key: "", trusts: None, lifetime: Duration::from_secs(600) };
    let leaf = || Leaf::new("uid", "prod/app-0".to_owned(), "app", now + life, now);
    authorities.grant(&entry, &grant, now).await.unwrap();
    authorities.note_issued(&entry, &issuer, "1", leaf()).await.unwrap();
    assert!(authorities.bundle(&signer).await.is_some() && authorities.published_of(&signer).await.is_some());

    sender.send_replace(map("new"));
    let refused = authorities.note_issued(&entry, &issuer, "2", leaf()).await.unwrap_err();
    assert!(matches!(&refused, Unavailable::NotYet(message) if message.contains("made again")), "{refused}");
    assert!(authorities.bundle(&signer).await.is_none() && authorities.published_of(&signer).await.is_none());
    // It is looked up anew, of the new namespace; the records of the old one are not the new one's.
    assert!(matches!(authorities.grant(&entry, &grant, now).await, Err(Unavailable::Api(_))));
    assert!(matches!(*entry.held.lock().await, Held::Unknown) && entry.unwritten().is_empty());
}

/// A requester with no bundle yet can verify its certificate only by this statement, and asks once.
#[tokio::test]
async fn an_answer_states_the_bundle_of_its_own_authority_while_that_is_written() {
    let policy = Arc::new(Policy::default());
    let authorities = authorities(&policy);
    let signer: SignerName = "peer.etcd-tls.dev/prod.etcd".parse().unwrap();
    let entry = authorities.entry(&policy.authority(&signer)).unwrap();
    let digest = "0123456789abcdef0123456789abcdef";
    let writing = entry.held.lock().await;
    let stated = authorities.in_force(&signer, &policy, &entry.name, digest).await;
    drop(writing);
    assert_eq!((stated.digest(Domain::Peer), stated.digest(Domain::Client)), (Some(digest), None));
}

/// Ten times as many as once filled the Secret, which has room for a mebibyte.
#[test]
fn short_lived_pods_do_not_fill_the_secret() {
    let now = SystemTime::UNIX_EPOCH;
    let mut rollover = Rollover::publish(Trigger::Command, "old", "new", BTreeSet::new(), now).change_over(None, now);
    let mut largest = 0;
    for n in 0..100_000 {
        let holder = format!("00000000-0000-4000-8000-{n:012}");
        let grant = Grant { holder: &holder, role: Role::Client, key: "", trusts: None, lifetime: Duration::ZERO };
        let live = |uid: &str| (99_000..).contains(&uid.rsplit('-').next().unwrap().parse::<u32>().unwrap());
        assert!(note(&mut rollover, &grant, |pods, stays| pods.retain(|uid, _| stays(uid) || live(uid))));
        assert!(rollover.pods.contains_key(&holder), "the one that is served stays");
        largest = largest.max(rollover.pods.len());
        if n == 98_999 {
            assert!(largest <= FEW + 1, "{largest}");
        }
    }
    assert!((1000..=1001 + FEW).contains(&rollover.pods.len()), "those that live stay: {}", rollover.pods.len());
    assert!(serde_json::to_string_pretty(&rollover).unwrap().len() < 256 * 1024);
    let grant = Grant { holder: "host:cp", role: Role::Peer, key: "", trusts: None, lifetime: Duration::ZERO };
    note(&mut rollover, &grant, |pods, stays| pods.retain(|uid, _| stays(uid)));
    assert_eq!(rollover.pods.len(), 1);
}

/// The first rounds of a leader that cannot list requests.
#[tokio::test]
async fn until_all_is_recollected_answers_say_that_the_record_may_lack_certificates_and_nothing_of_it_is_kept() {
    let now = SystemTime::now();
    let authorities = authorities(&Arc::new(Policy::default()));
    let ca = Authority::generate("one", KeyAlgorithm::EcdsaP256, Duration::from_secs(86_400 * 365), now).unwrap();
    let mut stored = Stored::new(ca);
    let end = now + Duration::from_secs(86_400);
    stored.note_leaf(end, Duration::from_secs(86_400));
    Arc::make_mut(&mut stored.issued).note("1", Leaf::new("uid", "prod/app-0".to_owned(), "app", end, now));
    let lacks = |authorities: &Authorities| {
        authorities.report(&stored, now).is_some_and(|report| report.lacks_before.is_some())
    };
    let told = |authorities: &Authorities| {
        let mut noted = stored.clone();
        authorities.note_gap(&mut noted);
        noted.issued.told(now)
    };
    authorities.begin();
    assert!(lacks(&authorities));
    assert!(told(&authorities).contains("the record lacks certificates"), "{}", told(&authorities));
    authorities.all_recollected();
    assert!(!lacks(&authorities));
    assert!(told(&authorities).contains("the record holds what was issued since"), "{}", told(&authorities));
    authorities.begin();
    assert!(lacks(&authorities), "the next term");
}
