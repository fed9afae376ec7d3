//! The signer's statements in its answers, and certificates that wait for their bundle.

use std::rc::Rc;

use etcd_tls_contract::role::Role;

use super::{
    scene::{FakeApi, HOUR, Scene, block_on, signer},
    *,
};

/// The answer's statement of the bundles in force reaches the caller, the record keeps it, and the file has none of it. An
/// answer with two statements is refused with any certificate.
#[test]
fn an_answer_states_the_bundles_in_force() {
    let digest = "0123456789abcdef0123456789abcdef";
    let line = format!("etcd-tls trust: peer={digest} client={digest}\n");
    for (text, taken) in [(line.clone(), true), (String::new(), true), (format!("{line}{line}"), false)] {
        let scene = Scene::new();
        let sign = signer(&scene.authority, &scene.clock, 24 * HOUR);
        let before = text.clone();
        scene.judge(move |now, object| {
            sign(now, object);
            let certificate = &mut object.status.as_mut().unwrap().certificate.as_mut().unwrap().0;
            if !certificate.starts_with(b"etcd-tls") {
                certificate.splice(0..0, before.bytes());
            }
        });
        let obtained = scene.obtain();
        let heard = scene.heard.borrow();
        if taken {
            let entry = obtained.unwrap();
            assert!(entry.chain_pem().starts_with("-----BEGIN"), "{}", entry.chain_pem());
            let stated =
                heard.last().unwrap().in_force.as_ref().and_then(|f| f.digest(Role::Peer.domain()).map(str::to_owned));
            assert_eq!(stated.as_deref(), (!text.is_empty()).then_some(digest));
        } else {
            assert!(matches!(obtained, Err(Failure::Rejected { .. })), "{text}");
            assert!(heard.is_empty());
        }
    }
}

/// A pod that starts with a bundle on offer, under a signer that states `digests` in turn, the last one for ever. Returns what
/// came of it and how many requests it took.
fn with_statements(scene: &Scene, digests: &[&str]) -> (Result<Entry, Failure>, usize) {
    let sign = signer(&scene.authority, &scene.clock, 24 * HOUR);
    let answers: Vec<String> = digests.iter().map(|digest| format!("etcd-tls trust: {digest}\n")).collect();
    let signed = std::cell::Cell::new(0);
    scene.judge(move |now, object| {
        if object.status.is_none() {
            sign(now, object);
            let certificate = &mut object.status.as_mut().unwrap().certificate.as_mut().unwrap().0;
            certificate.splice(0..0, answers[signed.get().min(answers.len() - 1)].bytes());
            signed.set(signed.get() + 1);
        }
    });
    let offered = scene.authority.bundle();
    let result = block_on(obtain(Issuance {
        template: &scene.template,
        api: FakeApi(Rc::clone(&scene.server)),
        clock: &scene.clock,
        store: &scene.store,
        current: None,
        bundles: &|domain, answer| {
            let stated = answer.and_then(|a| a.in_force.as_ref()).and_then(|s| s.digest(domain)).map(str::to_owned);
            let believed = stated.as_deref() == Some(offered.digest().as_str());
            Bundles {
                bundles: believed.then(|| offered.clone()).into_iter().collect(),
                unconfirmed: (!believed).then(|| offered.clone()),
                in_force: stated,
                ..Bundles::default()
            }
        },
        others: None,
        awaited: &Awaited::default(),
        trusts: None,
        limit: None,
    }));
    (result, scene.created())
}

/// An answer is of one moment: another is asked for where it leaves the bundle on offer out, or states one of before.
#[test]
fn an_answer_that_does_not_confirm_the_bundle_on_offer_is_asked_for_again() {
    const OTHER: &str = "0123456789abcdef0123456789abcdef";
    let left_out = format!("client={OTHER}");
    let before = format!("peer={OTHER} client={OTHER}");
    for (first, within) in [(&left_out, 5), (&before, 40)] {
        let scene = Scene::new();
        let good = format!("peer={}", scene.authority.bundle().digest());
        let (entry, created) = with_statements(&scene, &[first, &good]);
        entry.unwrap();
        assert_eq!(created, 2, "{first}");
        assert!(scene.clock.elapsed() < Duration::from_secs(within), "{first}: {:?}", scene.clock.elapsed());
    }
    // One that is never confirmed makes a few requests, and is refused in the end.
    for never in [&left_out, &before] {
        let scene = Scene::new();
        let (entry, created) = with_statements(&scene, &[never]);
        assert!(matches!(entry, Err(Failure::Rejected { .. })), "{never}");
        assert!((3..=9).contains(&created), "{never}: {created}");
    }
}

/// kubelet brings the bundle after the certificate has expired.
#[test]
fn a_certificate_that_expires_while_it_waits_for_its_bundle_is_replaced() {
    let scene = Scene::new();
    scene.judge(signer(&scene.authority, &scene.clock, Duration::from_secs(60)));
    let entry = block_on(obtain(Issuance {
        template: &scene.template,
        api: FakeApi(Rc::clone(&scene.server)),
        clock: &scene.clock,
        store: &scene.store,
        current: None,
        bundles: &|_, _| Bundles {
            bundles: (scene.clock.elapsed() > Duration::from_secs(200))
                .then(|| scene.authority.bundle())
                .into_iter()
                .collect(),
            ..Bundles::default()
        },
        others: None,
        awaited: &Awaited::default(),
        trusts: None,
        limit: None,
    }));
    assert!(!life(&entry.unwrap(), scene.clock.now()).left(scene.clock.now()).is_zero());
    assert!((2..=5).contains(&scene.created()), "{}", scene.created());
}
