#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::UNIX_EPOCH;

use etcd_tls_contract::{certificate::to_pem, role::Role, san::Sans};
use rcgen::{GeneralSubtree, Issuer, PublicKeyData as _};
use x509_cert::ext::pkix;

use super::*;
use crate::ca::issue::{Leaf, issue};

const DAY: Duration = Duration::from_secs(86400);

fn now() -> SystemTime {
    UNIX_EPOCH + DAY * 20_000
}

/// A good CA; each test turns one thing of it.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = time_of(now() - DAY).unwrap();
    params.not_after = time_of(now() + DAY * 100).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn pair() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn load(certificates: &[&[u8]], key: &KeyPair) -> Result<Authority, AuthorityError> {
    let pem: String = certificates.iter().map(|der| to_pem(der)).collect();
    Authority::load(pem.as_bytes(), key.serialize_pem().as_bytes(), now())
}

fn with(turn: impl FnOnce(&mut CertificateParams)) -> Result<Authority, AuthorityError> {
    let key = pair();
    let mut params = params("ca");
    turn(&mut params);
    load(&[params.self_signed(&key).unwrap().der()], &key)
}

#[test]
fn a_good_ca_is_taken() {
    let authority = with(|_| {}).unwrap();
    assert_eq!(authority.not_after(), now() + DAY * 100);
    with(|p| p.key_usages = vec![]).expect("no keyUsage extension means any use");
    with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))).expect("a leaf is no CA below");
}

#[test]
fn each_deviation_is_told_apart() {
    let expired = with(|p| p.not_after = time_of(now()).unwrap());
    assert!(matches!(expired, Err(AuthorityError::Expired { .. })), "{expired:?}");
    let early = with(|p| p.not_before = time_of(now() + Duration::from_secs(1)).unwrap());
    assert!(matches!(early, Err(AuthorityError::TooEarly { .. })), "{early:?}");
    for no in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let not = with(|p| p.is_ca = no);
        assert!(matches!(not, Err(AuthorityError::NotCa(_))), "{not:?}");
    }
    let usage = with(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(matches!(usage, Err(AuthorityError::NotForSigning(_))), "{usage:?}");
    let constrained = with(|p| {
        p.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    assert!(matches!(constrained, Err(AuthorityError::NameConstraints(_))), "{constrained:?}");
    let narrow = with(|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(narrow, Err(AuthorityError::Narrow(_))), "{narrow:?}");
}

#[test]
fn mismatched_and_unreadable_pairs_are_refused() {
    let key = pair();
    let certificate = params("ca").self_signed(&key).unwrap();
    assert!(matches!(load(&[certificate.der()], &pair()), Err(AuthorityError::KeyMismatch { hint: "", .. })));
    assert!(matches!(load(&[], &key), Err(AuthorityError::Certificate(_))));
    let pem = to_pem(certificate.der());
    for bad in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &pem] {
        assert_eq!(Authority::load(pem.as_bytes(), bad.as_bytes(), now()).unwrap_err(), AuthorityError::Key);
    }
    for bad in [&pem[..pem.len() - 40], "garbage", &key.serialize_pem(), ""] {
        let error = Authority::load(bad.as_bytes(), key.serialize_pem().as_bytes(), now()).unwrap_err();
        assert!(matches!(error, AuthorityError::Certificate(_)), "{error}");
        assert!(!error.to_string().contains("PRIVATE"), "{error}");
    }
}

#[test]
fn intermediates_are_sent_and_the_topmost_is_the_anchor() {
    let (root_key, key, leaf_key) = (pair(), pair(), pair());
    let root_params = params("root");
    let root = root_params.self_signed(&root_key).unwrap();
    let below = params("issuing").signed_by(&key, &Issuer::from_params(&root_params, &root_key)).unwrap();

    let public_key = leaf_key.subject_public_key_info();
    let leaf = Leaf {
        role: Role::Server,
        organizations: vec!["o"],
        common_name: "c",
        sans: &Sans::default(),
        public_key: &public_key,
        lifetime: DAY,
    };
    let with_root = load(&[below.der(), root.der()], &key).unwrap();
    assert_eq!(with_root.bundle().certificates(), [root.der().to_vec()]);
    let chain = issue(&with_root, &leaf, now(), [1; 16]).unwrap();
    assert_eq!(chain.certificates[1..], [below.der().to_vec()]);

    let without = load(&[below.der()], &key).unwrap();
    assert_eq!(without.bundle().certificates(), [below.der().to_vec()]);
    assert_eq!(issue(&without, &leaf, now(), [1; 16]).unwrap().certificates.len(), 1);
    // Said twice, meant once.
    assert_eq!(load(&[below.der(), below.der(), root.der()], &key).unwrap().intermediates().len(), 1);
}

#[test]
fn a_chain_that_is_no_chain_is_refused() {
    let (root_key, key) = (pair(), pair());
    let mut root_params = params("root");
    let root = root_params.self_signed(&root_key).unwrap();
    let below = params("issuing").signed_by(&key, &Issuer::from_params(&root_params, &root_key)).unwrap();
    let stranger = params("stranger").self_signed(&pair()).unwrap();

    let turned = load(&[root.der(), below.der()], &key);
    assert!(matches!(&turned, Err(AuthorityError::KeyMismatch { hint, .. }) if !hint.is_empty()), "{turned:?}");
    let order = load(&[below.der(), stranger.der()], &key);
    assert!(matches!(order, Err(AuthorityError::Order { .. })), "{order:?}");
    // The right name and another key: only verification finds this out.
    let impostor = params("root").self_signed(&pair()).unwrap();
    let forged = load(&[below.der(), impostor.der()], &key);
    assert!(matches!(forged, Err(AuthorityError::Trial(_))), "{forged:?}");

    root_params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let narrow = root_params.self_signed(&root_key).unwrap();
    let length = load(&[below.der(), narrow.der()], &key);
    assert!(matches!(length, Err(AuthorityError::PathLength { allowed: 0, below: 1, .. })), "{length:?}");
}

#[test]
fn a_generated_ca_signs_leaves_alone_and_its_key_does_not_print() {
    let authority = Authority::generate("etcd-tls peer 1", KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap();
    assert_eq!((authority.not_before(), authority.not_after()), (now() - DAY, now() + DAY * 365));
    let read =
        Certificate::from_der(&Chain::parse(authority.certificate_pem().as_bytes()).unwrap().certificates[0]).unwrap();
    let (critical, constraints) = read.tbs_certificate().get_extension::<pkix::BasicConstraints>().unwrap().unwrap();
    assert!(critical && constraints.ca && constraints.path_len_constraint == Some(0));
    let printed = format!("{authority:?}");
    let key = authority.key_pem();
    let secret = key.lines().nth(1).unwrap();
    assert!(!printed.contains(secret) && printed.contains(&authority.generation()), "{printed}");
    let other = Authority::generate("etcd-tls peer 2", KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap();
    assert_ne!(authority.generation(), other.generation());
}

#[test]
fn a_generated_ca_is_backdated_as_far_as_its_leaves_unless_it_is_short() {
    let minute = Duration::from_secs(60);
    for (lifetime, backdate) in [(1, 5), (60, 30), (130, 65), (600, 65), (660, 66), (14_400, 1440), (525_600, 1440)]
        .map(|(l, b)| (minute * l, minute * b))
    {
        let authority = Authority::generate("young", KeyAlgorithm::EcdsaP256, lifetime, now()).unwrap();
        assert_eq!(authority.not_before(), now() - backdate, "{lifetime:?}");
        assert_eq!(authority.not_after(), now() + lifetime);
    }
}

#[test]
fn an_expired_ca_is_read_back_but_signs_no_more() {
    let short = Authority::generate("short", KeyAlgorithm::EcdsaP256, DAY, now()).unwrap();
    let (certificate, key) = (short.certificate_pem(), short.key_pem());
    let later = now() + DAY * 9;
    let load = Authority::load(certificate.as_bytes(), key.as_bytes(), later);
    assert!(matches!(load, Err(AuthorityError::Expired { .. })), "{load:?}");
    for at in [now() - DAY * 9, now(), later] {
        let read = Authority::reload(certificate.as_bytes(), key.as_bytes(), at).unwrap();
        assert_eq!(read.generation(), short.generation());
    }
}

#[test]
fn a_life_beyond_the_calendar_is_an_error() {
    let far = Authority::generate("far", KeyAlgorithm::EcdsaP256, Duration::from_secs(u64::MAX / 4), now());
    assert!(matches!(far, Err(AuthorityError::Crypto(_))), "{far:?}");
}
