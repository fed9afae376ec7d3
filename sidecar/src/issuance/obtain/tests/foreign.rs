//! Answers of an issuer of another project.

use std::cell::Cell;

use etcd_tls_contract::{certificate::Chain, role::Role};
use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::*;
use crate::issuance::others::DistrustingMembers;

fn foreign() -> Scene {
    let mut scene = Scene::new();
    scene.template.signer = "example.com/ca".to_owned();
    scene
}

/// Answers with what `change` makes of a right certificate.
fn answer(scene: &Scene, change: impl Fn(&mut CertificateParams) + 'static) {
    let (authority, clock) = (Rc::clone(&scene.authority), scene.clock.clone());
    scene.judge(move |_, object| {
        if object.status.is_none() {
            let request = Request::parse(&object.spec.request.0).unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "test");
            params.subject_alt_names = request.sans.ips.iter().map(|ip| SanType::IpAddress(*ip)).collect();
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let now = clock.now();
            (params.not_before, params.not_after) = ((now - HOUR).into(), (now + 24 * HOUR).into());
            change(&mut params);
            put(object, "Approved", "", Some(authority.sign_as(&request.public_key, params)));
        }
    });
}

#[test]
fn additions_of_a_foreign_issuer_are_refused_and_the_files_stay() {
    type Change = fn(&mut CertificateParams);
    let changes: [(&str, Change); 7] = [
        ("1.3.6.1.5.5.7.3.3", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
        ("usages that were not asked for: any", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
        ("cert sign", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("crl sign", |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
        ("CA:TRUE", |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        ("critical extension", |p| {
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            p.custom_extensions.push(unknown);
        }),
        ("does not hold 10.0.0.1", |p| p.subject_alt_names = vec![SanType::IpAddress("10.0.0.2".parse().unwrap())]),
    ];
    for (said, change) in changes {
        let mut scene = foreign();
        scene.current = Some(scene.authority.entry_at(Role::Peer, scene.clock.now(), HOUR));
        answer(&scene, change);
        let failure = scene.obtain().unwrap_err();
        assert!(failure.is_verdict() && failure.to_string().contains(said), "{said}: {failure}");
        assert!(scene.clock.elapsed() < Duration::from_secs(60), "{said}: refused at once");
        assert!(!scene.pending(), "{said}");
    }
    // A certificate with exactly the requested content is accepted, and so are the usages of key encipherment.
    let scene = foreign();
    answer(&scene, |p| p.key_usages.push(KeyUsagePurpose::KeyEncipherment));
    scene.obtain().unwrap();
}

#[test]
fn a_shorter_life_is_taken_unless_the_certificate_in_use_lasts_longer() {
    let mut scene = foreign();
    answer(&scene, |p| p.not_after = p.not_before + 2 * HOUR);
    let entry = scene.obtain().unwrap();
    let (chain, template) = (entry.chain(), &scene.template);
    let said = changes::judge(template, chain, None, scene.clock.now()).unwrap().unwrap();
    assert!(said.contains("24h was asked for"), "{said}");
    scene.current = Some(scene.authority.entry_at(Role::Peer, scene.clock.now(), 6 * HOUR));
    let failure = scene.obtain().unwrap_err();
    assert!(failure.to_string().contains("before the certificate in use"), "{failure}");
    // An expired certificate keeps no new one out; and our own signer shortens lives by policy.
    let ended = Some(scene.clock.now() - HOUR);
    assert!(changes::judge(&scene.template, entry.chain(), ended, scene.clock.now()).unwrap().is_some());
    scene.template.signer = "peer.etcd-tls.dev/prod.etcd".to_owned();
    let later = Some(scene.clock.now() + 24 * HOUR);
    assert_eq!(changes::judge(&scene.template, entry.chain(), later, scene.clock.now()), Ok(None));
}

#[test]
fn a_leaf_of_an_unknown_ca_waits_for_the_bundle_and_names_it() {
    let mut scene = foreign();
    scene.bundles = vec![Authority::named("the CA of before").bundle()];
    let failure = scene.obtain().unwrap_err().to_string();
    assert!(failure.contains("the certificate is of CN=test CA"), "{failure}");
    assert!(scene.clock.elapsed() > Duration::from_secs(500), "it waited: {:?}", scene.clock.elapsed());
}

#[test]
fn a_chain_with_intermediates_is_kept_whole() {
    let mut scene = foreign();
    let root = Authority::named("root");
    let middle = Rc::new(root.below("middle"));
    let (authority, clock) = (Rc::clone(&middle), scene.clock.clone());
    scene.judge(move |_, object| {
        let request = Request::parse(&object.spec.request.0).unwrap();
        let now = clock.now();
        let leaf = authority.sign(&request.public_key, &request.sans, now - HOUR, now + 24 * HOUR);
        put(object, "Approved", "", Some(format!("{leaf}{}", authority.pem())));
    });
    scene.bundles = vec![root.bundle()];
    let entry = scene.obtain().unwrap();
    assert_eq!(Chain::parse(entry.chain_pem().as_bytes()).unwrap().certificates.len(), 2);
}

/// `trust: issuer`, and the CA was changed with no overlap.
fn swapped(life: Duration) -> (Scene, Rc<Authority>) {
    swapped_from("the CA of before", life)
}

fn swapped_from(name: &str, life: Duration) -> (Scene, Rc<Authority>) {
    let mut scene = foreign();
    let old = Rc::new(Authority::named(name));
    scene.template.sans = Sans::default();
    scene.current = Some(old.entry_at(Role::Peer, scene.clock.now(), life));
    scene.bundles = vec![old.bundle().union(&scene.authority.bundle())];
    (scene, old)
}

#[test]
fn a_leaf_of_a_ca_with_no_overlap_waits_until_the_members_trust_it() {
    let (mut scene, old) = swapped(24 * HOUR);
    // A member that was made anew trusts the new CA alone, so the question is about that one.
    let (clock, bundle) = (scene.clock.clone(), scene.authority.bundle());
    scene.others = Some(Box::new(move |domain, asked| {
        assert_eq!((domain, asked), (Role::Peer.domain(), &bundle));
        match clock.elapsed() {
            elapsed if elapsed < HOUR => DistrustingMembers::unseen("etcd is away"),
            elapsed if elapsed < 3 * HOUR => DistrustingMembers { members: vec!["etcd-1".to_owned()], unknown: None },
            _ => DistrustingMembers::default(),
        }
    }));
    let entry = scene.obtain().unwrap();
    assert_eq!(entry.bundle(), &scene.bundles[0]);
    let elapsed = scene.clock.elapsed();
    assert!(elapsed >= 3 * HOUR && elapsed < 3 * HOUR + Duration::from_secs(60), "{elapsed:?}");
    assert!(scene.awaited.all().is_empty(), "it waits no more");
    assert_eq!(scene.created(), 1);
    let heard: Vec<bool> = scene.heard.borrow().iter().map(|answer| answer.authority.is_some()).collect();
    assert!(heard.len() > 100 && heard[0], "looked at again and again: {}", heard.len());
    assert_eq!(heard.iter().filter(|told| **told).count(), 1, "the issuer has named its CA once");
    // A leaf of the CA in use waits for nobody, and without a certificate in use there is nothing to go on with.
    scene.others = Some(Box::new(|_, _| DistrustingMembers::unseen("never")));
    let begun = scene.clock.elapsed();
    let installed = |scene: &Scene| scene.store.borrow().forget_pending(Role::Peer).unwrap();
    installed(&scene);
    scene.current = Some(scene.authority.entry_at(Role::Peer, scene.clock.now(), 24 * HOUR));
    scene.obtain().unwrap();
    installed(&scene);
    scene.current = None;
    scene.obtain().unwrap();
    installed(&scene);
    // One that lacks a name of the pod's is of no use either.
    scene.current = Some(old.entry_at(Role::Peer, scene.clock.now(), 24 * HOUR));
    scene.template.sans = "10.0.0.1".parse().unwrap();
    scene.obtain().unwrap();
    assert!(scene.clock.elapsed() - begun < Duration::from_secs(60));
}

/// etcd shows the subjects of its CAs alone: one that has the old CA shows as much of the new one as one that has that.
#[test]
fn where_the_new_ca_has_the_old_ones_subject_the_question_is_about_both() {
    let (mut scene, old) = swapped_from("test CA", 24 * HOUR);
    let both = old.bundle().union(&scene.authority.bundle());
    assert_eq!(old.bundle().subjects(), scene.authority.bundle().subjects());
    let asked = Rc::new(Cell::new(0));
    let count = Rc::clone(&asked);
    scene.others = Some(Box::new(move |_, bundle| {
        assert_eq!(bundle, &both);
        count.set(count.get() + 1);
        DistrustingMembers::default()
    }));
    scene.obtain().unwrap();
    assert!(asked.get() > 0);
}

#[test]
fn a_leaf_of_a_ca_with_no_overlap_is_used_before_the_one_in_use_ends() {
    let (mut scene, _) = swapped(HOUR);
    scene.others = Some(Box::new(|_, _| DistrustingMembers::unseen("etcd is away")));
    scene.obtain().unwrap();
    let elapsed = scene.clock.elapsed();
    assert!(elapsed >= HOUR * 4 / 5 && elapsed < HOUR * 4 / 5 + Duration::from_secs(60), "{elapsed:?}");
    assert_eq!(scene.created(), 2, "the issuer may have gone back to its CA: it is asked once more");
    // Members that are seen to refuse it keep it out for longer.
    let (mut scene, _) = swapped(HOUR);
    scene.others = Some(Box::new(|_, _| DistrustingMembers { members: vec!["etcd-1".to_owned()], unknown: None }));
    scene.obtain().unwrap();
    let elapsed = scene.clock.elapsed();
    assert!(elapsed >= HOUR * 19 / 20 && elapsed < HOUR * 19 / 20 + Duration::from_secs(60), "{elapsed:?}");
    assert_eq!(scene.created(), 2);
    // Whom it waits for is shown.
    let (mut scene, _) = swapped(HOUR);
    scene.limit = Some(Duration::from_secs(60));
    scene.others = Some(Box::new(|_, _| DistrustingMembers { members: vec!["etcd-1".to_owned()], unknown: None }));
    let failure = scene.obtain().unwrap_err().to_string();
    assert!(failure.contains("of CN=test CA, not trusted yet by etcd of etcd-1"), "{failure}");
}

/// The annotation `renew` while a certificate waits: the issuer has gone back to its CA, so another one waits for nobody.
#[test]
fn another_one_is_requested_instead_of_one_that_waits() {
    let (mut scene, old) = swapped(24 * HOUR);
    let awaited = Rc::clone(&scene.awaited);
    assert!(!awaited.ask_again(Role::Peer), "none waits");
    let (clock, server) = (scene.clock.clone(), Rc::clone(&scene.server));
    let asked = Cell::new(false);
    scene.others = Some(Box::new(move |_, _| {
        if clock.elapsed() > HOUR && !asked.replace(true) {
            server.borrow_mut().judge = signer(&old, &clock, 24 * HOUR);
            assert!(awaited.ask_again(Role::Peer));
        }
        DistrustingMembers { members: vec!["etcd-1".to_owned()], unknown: None }
    }));
    let entry = scene.obtain().unwrap();
    assert_eq!(entry.chain().authority(), "CN=the CA of before");
    assert_eq!(scene.created(), 2);
    let elapsed = scene.clock.elapsed();
    assert!(elapsed > HOUR && elapsed < HOUR + Duration::from_secs(60), "{elapsed:?}");
}
