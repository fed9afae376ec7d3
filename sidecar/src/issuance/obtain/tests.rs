//! Requests through every trouble, on a clock that passes at once: an outage of hours, a signer that never signs, verdicts,
//! deletions, broken answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{rc::Rc, sync::Arc};

use etcd_tls_contract::{crl::Crl, key::KeyAlgorithm, role::Role, san::Sans};
use scene::{FakeApi, HOUR, Scene, block_on, put, signer, status};

use super::*;
use crate::{
    issuance::renewal::{Reason, Renewal, renewal},
    kube::{ApiError, Version},
    store::Set,
    testing::Authority,
};

mod foreign;
mod scene;
mod statements;

#[test]
fn a_good_day() {
    let scene = Scene::new();
    let entry = scene.obtain().unwrap();
    assert_eq!(entry.record().received_at() + scene.clock.elapsed(), scene.clock.now(), "in whole seconds");
    assert_eq!(entry.record().trusts.as_deref(), Some("digest"));
    assert!(scene.clock.elapsed() < Duration::from_millis(20), "one create, one get: no needless pause");
    let server = scene.server.borrow();
    assert_eq!((server.created, server.calls), (1, 2));
    let (name, object) = server.requests.first_key_value().unwrap();
    assert!(name.starts_with("etcd-tls-0d5f2e0c-peer-"), "{name}");
    assert_eq!(object.metadata.annotations.as_ref().unwrap()[names::TRUSTS_ANNOTATION], "digest");
    assert_eq!(object.spec.expiration_seconds, Some(86_400));
    drop(server);
    assert!(scene.pending(), "kept until the caller has installed the certificate");
}

#[test]
fn an_api_server_that_is_away_for_twelve_hours() {
    for (name, trouble) in [
        ("reset", ApiError::Unreachable { address: "x".into(), message: "connection reset by peer".into() }),
        ("500", status(500)),
        ("410", status(410)),
        ("429", status(429)),
        ("401", status(401)),
        ("truncated JSON", ApiError::Malformed { address: "x".into(), message: "EOF while parsing".into() }),
        ("no token", ApiError::Access("token is empty".into())),
    ] {
        let mut scene = Scene::new();
        scene.current = Some(scene.authority.entry_at(Role::Peer, scene.clock.now(), 24 * HOUR));
        scene.trouble(move |now, _| (now < 12 * HOUR).then(|| trouble.clone()));
        scene.obtain().unwrap();
        let server = scene.server.borrow();
        assert_eq!((server.created, server.most_pending), (1, 1), "{name}");
        // Half of five minutes, on average and with this chance.
        assert!(server.calls < 12 * 60 * 60 / 150 + 12, "{name}: {} calls", server.calls);
        let late = scene.clock.elapsed() - 12 * HOUR;
        assert!(late <= Duration::from_secs(300), "{name}: recovered after {late:?}");
    }
}

#[test]
fn a_busy_api_server_says_when_to_come_again() {
    let scene = Scene::new();
    scene.trouble(|_, call| {
        let retry_after = Some(Duration::from_secs(40));
        (call == 1).then(|| ApiError::Status { code: 429, message: "too many requests".into(), retry_after })
    });
    scene.obtain().unwrap();
    let elapsed = scene.clock.elapsed();
    assert!(elapsed >= Duration::from_secs(40) && elapsed < Duration::from_secs(41), "{elapsed:?}");
}

#[test]
fn a_first_403_is_not_yet() {
    let scene = Scene::new();
    scene.trouble(|now, _| (now < Duration::from_millis(400)).then(|| status(403)));
    scene.obtain().unwrap();
    assert!(scene.clock.elapsed() < Duration::from_millis(600), "{:?}", scene.clock.elapsed());
}

#[test]
fn a_cache_that_lags_neither_deletes_nor_replaces_a_request() {
    let another = || {
        let mut object = CertificateSigningRequest::default();
        object.metadata.uid = Some("uid-of-the-one-before".to_owned());
        object
    };
    for cached in [None, Some(another())] {
        let scene = Scene::new();
        {
            let mut server = scene.server.borrow_mut();
            (server.lag, server.cached) = (Duration::from_secs(30), cached);
            server.judge = signer(&scene.authority, &scene.clock, 24 * HOUR);
        }
        scene.obtain().unwrap();
        assert_eq!(scene.created(), 1);
    }
    // A deleted request is noticed at once, however old the answers of the cache are.
    let scene = Scene::new();
    scene.judge(|_, _| {});
    scene.server.borrow_mut().lag = HOUR;
    scene.server.borrow_mut().collect_after = Some(Duration::from_secs(1));
    let failure = scene.obtain().unwrap_err();
    assert!(matches!(failure, Failure::Deleted { .. }), "{failure}");
    assert!(scene.clock.elapsed() < Duration::from_secs(3), "{:?}", scene.clock.elapsed());
}

#[test]
fn an_answer_that_is_lost_makes_no_second_request() {
    let scene = Scene::new();
    // Created, but the answer never came.
    let lost = Rc::clone(&scene.server);
    scene.trouble(|_, _| None);
    let api = FakeApi(lost);
    struct Lossy(FakeApi, bool);
    impl Api for Lossy {
        async fn create(&mut self, r: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
            let answer = self.0.create(r).await;
            if std::mem::replace(&mut self.1, true) {
                return answer;
            }
            Err(ApiError::Unreachable { address: "x".into(), message: "reset".into() })
        }
        async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
            self.0.get(name, version).await
        }
    }
    block_on(obtain(Issuance {
        template: &scene.template,
        api: Lossy(api, false),
        clock: &scene.clock,
        store: &scene.store,
        current: None,
        bundles: &|_, _| Bundles { bundles: scene.bundles.clone(), ..Bundles::default() },
        others: None,
        awaited: &Awaited::default(),
        trusts: None,
        limit: None,
    }))
    .unwrap();
    assert_eq!(scene.created(), 1);
}

#[test]
fn a_signer_that_never_signs_costs_one_request_a_day() {
    let mut scene = Scene::new();
    scene.limit = Some(25 * HOUR);
    scene.judge(|_, _| {});
    scene.server.borrow_mut().collect_after = Some(24 * HOUR);
    // The controller manager collects it after a day; told as such, and made again by the next attempt.
    let failure = scene.obtain().unwrap_err();
    assert!(matches!(failure, Failure::Deleted { .. }), "{failure}");
    assert!(scene.pending(), "the same key asks again");
    let failure = scene.obtain().unwrap_err();
    assert!(matches!(failure, Failure::Timeout { .. }), "{failure}");
    let server = scene.server.borrow();
    assert_eq!((server.created, server.most_pending), (2, 1));
    assert!(server.calls < 3_500, "{} calls in 25 hours", server.calls);
}

#[test]
fn verdicts_are_told_apart_and_the_next_request_is_a_new_one() {
    for (condition, word) in [("Denied", "denied"), ("Failed", "failed")] {
        let scene = Scene::new();
        // The API server stores a certificate on a denied request as well.
        let authority = Rc::clone(&scene.authority);
        let now = scene.clock.now();
        scene.judge(move |_, object| {
            let request = Request::parse(&object.spec.request.0).unwrap();
            let pem = authority.sign(&request.public_key, &request.sans, now, now + HOUR);
            put(object, condition, "not an address of this pod", Some(pem));
        });
        let failure = scene.obtain().unwrap_err();
        assert_eq!(failure.as_str(), word);
        assert!(failure.is_verdict() && failure.to_string().contains("not an address of this pod"), "{failure}");
        assert!(!scene.pending(), "the key of a request that came to nothing is forgotten");
        // The policy is mended.
        scene.server.borrow_mut().judge = signer(&scene.authority, &scene.clock, HOUR);
        scene.obtain().unwrap();
        assert_eq!(scene.created(), 2);
    }
}

#[test]
fn a_request_that_was_made_again_by_somebody_else_is_not_taken() {
    let scene = Scene::new();
    let authority = Rc::clone(&scene.authority);
    let now = scene.clock.now();
    scene.judge(move |elapsed, object| {
        if elapsed > Duration::from_millis(100) {
            object.metadata.uid = Some("another".to_owned());
            let request = Request::parse(&object.spec.request.0).unwrap();
            put(object, "Approved", "", Some(authority.sign(&request.public_key, &request.sans, now, now + HOUR)));
        }
    });
    let failure = scene.obtain().unwrap_err();
    assert!(matches!(failure, Failure::Replaced { .. }), "{failure}");
    assert!(failure.to_string().contains("its uid was uid-1 and is now another"), "{failure}");
}

#[test]
fn a_request_that_is_deleted_is_told() {
    let scene = Scene::new();
    scene.judge(|_, _| {});
    scene.server.borrow_mut().collect_after = Some(Duration::from_secs(1));
    assert!(matches!(scene.obtain().unwrap_err(), Failure::Deleted { .. }));
}

#[test]
fn a_restart_finds_its_request_and_one_for_other_addresses_is_given_up() {
    let mut scene = Scene::new();
    scene.limit = Some(Duration::from_secs(1));
    scene.judge(|_, _| {});
    assert!(matches!(scene.obtain().unwrap_err(), Failure::Timeout { .. }));
    scene.limit = None;
    scene.server.borrow_mut().judge = signer(&scene.authority, &scene.clock, HOUR);
    scene.obtain().unwrap();
    assert_eq!(scene.created(), 1);

    scene.judge(|_, _| {});
    scene.store.borrow().forget_pending(Role::Peer).unwrap();
    scene.limit = Some(scene.clock.elapsed() + Duration::from_secs(1));
    assert!(matches!(scene.obtain().unwrap_err(), Failure::Timeout { .. }));
    scene.limit = None;
    scene.template.sans = "10.0.0.2".parse().unwrap();
    scene.server.borrow_mut().judge = signer(&scene.authority, &scene.clock, HOUR);
    assert!(scene.obtain().unwrap().chain().sans.ips.contains(&"10.0.0.2".parse().unwrap()));
    assert_eq!(scene.created(), 3);
}

#[test]
fn a_certificate_that_peers_would_reject_is_never_taken() {
    let stranger = Rc::new(Authority::named("another CA"));
    let other_key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap().public_key();
    type Sign = Box<dyn Fn(&Authority, &Request, SystemTime) -> String>;
    let day = 24 * HOUR;
    let bad: Vec<(&str, Sign)> = vec![
        ("another CA", {
            let stranger = Rc::clone(&stranger);
            Box::new(move |_, r, now| stranger.sign(&r.public_key, &r.sans, now, now + HOUR))
        }),
        ("another key", Box::new(move |a, r, now| a.sign(&other_key, &r.sans, now, now + HOUR))),
        ("fewer names", Box::new(|a, r, now| a.sign(&r.public_key, &Sans::default(), now, now + HOUR))),
        ("expired", Box::new(move |a, r, now| a.sign(&r.public_key, &r.sans, now - day, now - HOUR))),
        ("far in the future", Box::new(move |a, r, now| a.sign(&r.public_key, &r.sans, now + day, now + 2 * day))),
        ("chain in the wrong order", {
            Box::new(move |a, r, now| format!("{}{}", a.pem(), a.sign(&r.public_key, &r.sans, now, now + HOUR)))
        }),
        ("no PEM", Box::new(|_, _, _| "garbage".to_owned())),
        ("half a PEM", Box::new(|a, r, now| a.sign(&r.public_key, &r.sans, now, now + HOUR)[..200].to_owned())),
    ];
    for (name, sign) in bad {
        let scene = Scene::new();
        let (authority, clock) = (Rc::clone(&scene.authority), scene.clock.clone());
        scene.judge(move |_, object| {
            if object.status.is_none() {
                let request = Request::parse(&object.spec.request.0).unwrap();
                put(object, "Approved", "", Some(sign(&authority, &request, clock.now())));
            }
        });
        let failure = scene.obtain().unwrap_err();
        assert!(matches!(failure, Failure::Rejected { .. }), "{name}: {failure}");
        assert!(failure.is_verdict() && !scene.pending(), "{name}");
    }
}

#[test]
fn a_certificate_of_a_clock_two_minutes_ahead_is_waited_for() {
    let scene = Scene::new();
    let (authority, clock) = (Rc::clone(&scene.authority), scene.clock.clone());
    let ahead = Duration::from_secs(120);
    scene.judge(move |_, object| {
        if object.status.is_none() {
            let request = Request::parse(&object.spec.request.0).unwrap();
            let now = clock.now() + ahead;
            put(object, "Approved", "", Some(authority.sign(&request.public_key, &request.sans, now, now + HOUR)));
        }
    });
    scene.obtain().unwrap();
    let elapsed = scene.clock.elapsed();
    assert!(elapsed >= ahead && elapsed < ahead + Duration::from_secs(5), "{elapsed:?}");
    assert_eq!(scene.created(), 1);
}

#[test]
fn a_shorter_life_than_asked_is_what_counts() {
    let scene = Scene::new();
    scene.server.borrow_mut().judge = signer(&scene.authority, &scene.clock, HOUR);
    let entry = scene.obtain().unwrap();
    let now = scene.clock.now();
    assert_eq!(life(&entry, now).whole(), HOUR);
    // A clock that was ahead when it was received.
    assert_eq!(life(&entry, now - Duration::from_secs(240)).whole(), HOUR, "a little");
    let guess = Life::of(entry.chain().not_before, entry.chain().not_after, None);
    assert_eq!(life(&entry, now - Duration::from_secs(1000)), guess, "the receipt counts for nothing");
    let Renewal::At(at) = renewal(&scene.template, Some(&entry), None, scene.clock.now()) else {
        panic!("not due at once")
    };
    assert!(at <= scene.clock.now() + HOUR.mul_f64(0.6));
}

#[test]
fn a_kept_key_waits_for_its_old_request_to_go() {
    let mut scene = Scene::new();
    scene.template.key_rotation = KeyRotation::OnCaChange;
    let first = scene.obtain().unwrap();
    scene.store.borrow().forget_pending(Role::Peer).unwrap();
    scene.current = Some(first);
    scene.clock.pass(12 * HOUR);
    let cleaner = Rc::clone(&scene.server);
    // The signer deletes finished requests; this one goes after a minute and a half.
    struct Cleaned(FakeApi);
    impl Api for Cleaned {
        async fn create(&mut self, r: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
            self.0.create(r).await
        }
        async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
            let late = self.0.0.borrow().clock.elapsed() > 12 * HOUR + Duration::from_secs(90);
            if late && self.0.0.borrow().created == 1 {
                self.0.0.borrow_mut().requests.clear();
            }
            self.0.get(name, version).await
        }
    }
    let entry = block_on(obtain(Issuance {
        template: &scene.template,
        api: Cleaned(FakeApi(cleaner)),
        clock: &scene.clock,
        store: &scene.store,
        current: scene.current.as_ref(),
        bundles: &|_, _| Bundles { bundles: scene.bundles.clone(), ..Bundles::default() },
        others: None,
        awaited: &Awaited::default(),
        trusts: None,
        limit: None,
    }))
    .unwrap();
    let before = scene.current.as_ref().unwrap();
    assert_eq!(entry.chain().public_key, before.chain().public_key, "the key is kept");
    assert_ne!(entry.chain().serial, before.chain().serial);
    assert_eq!(scene.created(), 2);
}

#[test]
fn a_kept_key_is_given_up_when_the_life_gets_short() {
    let mut scene = Scene::new();
    scene.template.key_rotation = KeyRotation::OnCaChange;
    let first = scene.obtain().unwrap();
    scene.store.borrow().forget_pending(Role::Peer).unwrap();
    scene.clock.pass(12 * HOUR);
    scene.current = Some(first);
    let entry = scene.obtain().unwrap();
    assert_ne!(entry.chain().public_key, scene.current.as_ref().unwrap().chain().public_key);
    assert!(scene.clock.elapsed() < 20 * HOUR, "well before the end of the life");
}

/// A thief with a revoked key could use the next certificate of it.
#[test]
fn a_revoked_certificate_ends_a_kept_key() {
    for revoked in [false, true] {
        let mut scene = Scene::new();
        scene.template.key_rotation = KeyRotation::OnCaChange;
        let first = scene.obtain().unwrap();
        let serial = if revoked { first.chain().serial.as_str() } else { "4f0a" };
        let list = Crl::parse(&scene.authority.list(2, &[serial])).unwrap();
        let copy = first.with_bundle(Role::Peer, first.bundle(), scene.clock.now()).unwrap();
        let mut set = Set::default().with(Role::Peer, copy);
        set.lists.insert(Domain::Peer, Arc::new(list));
        scene.store.borrow().install(&set).unwrap();
        // The pending key of the request before is the kept one.
        scene.server.borrow_mut().requests.clear();
        scene.clock.pass(HOUR);
        scene.current = Some(first);
        let entry = scene.obtain().unwrap();
        let same = entry.chain().public_key == scene.current.as_ref().unwrap().chain().public_key;
        assert_eq!(same, !revoked);
    }
}

#[test]
fn a_changed_bundle_ends_a_kept_key() {
    let mut scene = Scene::new();
    scene.template.key_rotation = KeyRotation::OnCaChange;
    let first = scene.obtain().unwrap();
    scene.store.borrow().forget_pending(Role::Peer).unwrap();
    let both = scene.authority.bundle().union(&Authority::named("next").bundle());
    scene.current = Some(first.with_bundle(Role::Peer, &both, scene.clock.now()).unwrap());
    scene.bundles = vec![both.clone()];
    let entry = scene.obtain().unwrap();
    assert_ne!(entry.chain().public_key, first.chain().public_key);
    assert_eq!(entry.record().key_bundle, both.digest());
}

/// The old request of a kept key is still there, and an outdated certificate is not to wait for it to go.
#[test]
fn a_bundle_on_offer_that_lacks_the_ca_in_use_ends_a_kept_key() {
    let mut scene = Scene::new();
    scene.template.key_rotation = KeyRotation::OnCaChange;
    let first = scene.obtain().unwrap();
    scene.store.borrow().forget_pending(Role::Peer).unwrap();
    scene.clock.pass(HOUR);
    let next = Rc::new(Authority::named("next"));
    scene.server.borrow_mut().judge = signer(&next, &scene.clock, 24 * HOUR);
    scene.bundles.push(next.bundle());
    scene.current = Some(first);
    let entry = scene.obtain().unwrap();
    assert_ne!(entry.chain().public_key, scene.current.as_ref().unwrap().chain().public_key);
    assert_eq!(entry.record().key_bundle, next.bundle().digest());
    assert!(scene.clock.elapsed() < HOUR + Duration::from_secs(60), "{:?}", scene.clock.elapsed());
}

#[test]
fn the_need_for_a_certificate_is_read_from_the_files() {
    let scene = Scene::new();
    let (template, clock) = (&scene.template, &scene.clock);
    let entry = scene.obtain().unwrap();
    let renewal = |loaded, now| renewal(template, Some(&entry), loaded, now);
    assert_eq!(crate::issuance::renewal::renewal(template, None, None, clock.now()), Renewal::Due(Reason::Missing));
    let Renewal::At(renew) = renewal(None, clock.now()) else { panic!("due at once") };
    // Suspended, stepped ahead, stepped back, daylight saving (which a wall clock in UTC does not have).
    assert_eq!(renewal(None, renew), Renewal::Due(Reason::Due));
    assert_eq!(renewal(None, clock.now() + 25 * HOUR), Renewal::Due(Reason::Due));
    assert_eq!(renewal(None, clock.now() + 13 * HOUR + 2 * HOUR), Renewal::Due(Reason::Due));
    let not_before = entry.chain().not_before;
    assert_eq!(
        renewal(None, not_before),
        Renewal::At(renew),
        "a clock that was set back makes nothing due that peers still take"
    );
    assert_eq!(renewal(None, not_before - Duration::from_secs(1)), Renewal::Due(Reason::Early));
    assert_eq!(renewal(None, clock.now() - 25 * HOUR), Renewal::Due(Reason::Early));
    assert_eq!(renewal(Some("digest"), clock.now()), Renewal::At(renew));
    assert_eq!(renewal(Some("other"), clock.now()), Renewal::Due(Reason::Trusts));
    let moved = Template { sans: "10.0.0.1,10.0.0.9".parse().unwrap(), ..template.clone() };
    assert_eq!(
        crate::issuance::renewal::renewal(&moved, Some(&entry), None, clock.now()),
        Renewal::Due(Reason::Names(vec!["10.0.0.9".to_owned()]))
    );
}
