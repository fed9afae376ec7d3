#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::UNIX_EPOCH;

use etcd_tls_contract::key::KeyAlgorithm;
use x509_cert::{
    Certificate,
    der::{Decode as _, Encode as _},
    ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier},
};

use super::*;

const DAY: Duration = Duration::from_secs(86400);

fn now() -> SystemTime {
    UNIX_EPOCH + DAY * 20_000
}

fn sans() -> Sans {
    Sans {
        dns: BTreeSet::from(["etcd-0.etcd.prod.svc".to_owned(), "localhost".to_owned()]),
        ips: BTreeSet::from(["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()]),
    }
}

fn leaf<'a>(role: Role, sans: &'a Sans, public_key: &'a [u8]) -> Leaf<'a> {
    Leaf {
        role,
        organizations: vec![role.organization()],
        common_name: "system:etcd-peer:etcd-0",
        sans,
        public_key,
        lifetime: DAY,
    }
}

fn authority() -> Authority {
    Authority::generate("etcd-tls peer 1", KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap()
}

fn key() -> Vec<u8> {
    KeyPair::generate().unwrap().subject_public_key_info()
}

fn read(chain: &Chain) -> Certificate {
    Certificate::from_der(&chain.certificates[0]).unwrap()
}

#[test]
fn a_leaf_says_what_policy_says() {
    let (authority, sans, key) = (authority(), sans(), key());
    let chain = issue(&authority, &leaf(Role::Peer, &sans, &key), now(), [0xff; 16]).unwrap();
    assert_eq!(chain.certificates.len(), 1, "the anchor is not sent");
    assert_eq!((chain.not_before, chain.not_after), (now() - BACKDATE, now() + DAY));
    assert_eq!((&chain.sans, &chain.public_key), (&sans, &key));

    let certificate = read(&chain);
    let tbs = certificate.tbs_certificate();
    assert_eq!(tbs.subject().to_string(), "CN=system:etcd-peer:etcd-0,O=system:etcd-peers");
    assert_eq!(tbs.issuer().to_der().unwrap(), authority.parts().unwrap().subject);
    let (_, constraints) = tbs.get_extension::<BasicConstraints>().unwrap().unwrap();
    assert!(!constraints.ca && constraints.path_len_constraint.is_none());
    let (_, usage) = tbs.get_extension::<KeyUsage>().unwrap().unwrap();
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign() && !usage.key_encipherment());
    let (_, extended) = tbs.get_extension::<ExtendedKeyUsage>().unwrap().unwrap();
    assert_eq!(extended.0.len(), 2);
    let (_, aki) = tbs.get_extension::<AuthorityKeyIdentifier>().unwrap().unwrap();
    let aki = aki.key_identifier.unwrap();
    assert_eq!(Some(aki.as_bytes()), authority.parts().unwrap().key_identifier.as_deref());
    assert!(tbs.get_extension::<SubjectKeyIdentifier>().unwrap().is_some());
    // AKI, SANs, KU, EKU, SKI, basicConstraints: nothing else can have come in.
    assert_eq!(tbs.extensions().unwrap().len(), 6);
}

#[test]
fn the_cas_own_key_gets_no_leaf() {
    let (authority, sans) = (authority(), sans());
    let own = authority.pair().unwrap().subject_public_key_info();
    let refused = issue(&authority, &leaf(Role::Peer, &sans, &own), now(), [1; 16]);
    assert_eq!(refused, Err(IssueError::KeyOfAuthority));
}

#[test]
fn clients_are_no_servers() {
    let (authority, key) = (authority(), key());
    for role in [Role::Client, Role::Metrics] {
        let sans = Sans::default();
        let chain = issue(&authority, &leaf(role, &sans, &key), now(), [1; 16]).unwrap();
        let certificate = read(&chain);
        let tbs = certificate.tbs_certificate();
        assert_eq!(tbs.get_extension::<ExtendedKeyUsage>().unwrap().unwrap().1.0.len(), 1);
        let issued = chain.verify(Role::Server, authority.bundle(), &key, &sans, now());
        assert!(issued.unwrap_err().to_string().contains("server"));
    }
}

#[test]
fn serials_are_positive_of_one_length_and_the_callers() {
    let (authority, sans, key) = (authority(), sans(), key());
    let serial = |bytes| issue(&authority, &leaf(Role::Peer, &sans, &key), now(), bytes).unwrap().serial;
    assert_eq!(serial([0; 16]), format!("40{}", "00".repeat(15)));
    assert_eq!(serial([0xff; 16]), format!("7f{}", "ff".repeat(15)));
    assert_ne!(serial([1; 16]), serial([2; 16]));
}

#[test]
fn no_leaf_outlives_its_authority() {
    let (sans, key) = (sans(), key());
    let authority = Authority::generate("short", KeyAlgorithm::EcdsaP256, DAY * 2, now()).unwrap();
    let mut long = leaf(Role::Peer, &sans, &key);
    for lifetime in [DAY * 30, Duration::MAX] {
        long.lifetime = lifetime;
        assert_eq!(issue(&authority, &long, now(), [1; 16]).unwrap().not_after, now() + DAY * 2);
    }
    assert_eq!(issue(&authority, &long, now() + DAY * 2, [1; 16]), Err(IssueError::AuthorityNotValid));
    assert_eq!(issue(&authority, &long, now() - DAY, [1; 16]), Err(IssueError::AuthorityNotValid));
}

#[test]
fn lives_of_seconds_are_counted_from_the_issue() {
    let (authority, sans, key) = (authority(), sans(), key());
    let mut short = leaf(Role::Peer, &sans, &key);
    short.lifetime = Duration::from_secs(5);
    let chain = issue(&authority, &short, now(), [1; 16]).unwrap();
    assert_eq!(chain.not_after, now() + Duration::from_secs(5));
}

#[test]
fn every_kind_of_authority_signs_every_kind_of_key() {
    let sans = sans();
    let keys = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
    ];
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Ed25519, KeyAlgorithm::Rsa2048] {
        let authority = Authority::generate("kinds", algorithm, DAY * 2, now()).unwrap();
        let read =
            Authority::load(authority.certificate_pem().as_bytes(), authority.key_pem().as_bytes(), now()).unwrap();
        assert_eq!(read.generation(), authority.generation());
        for key in &keys {
            let key = key.subject_public_key_info();
            issue(&read, &leaf(Role::Server, &sans, &key), now(), [3; 16]).unwrap();
        }
    }
}

/// A CA whose subject rcgen cannot write: `DC=com, DC=example, OU=… + CN=…` in three string types.
fn odd_subject() -> Vec<u8> {
    const DC: &[u8] = &[0x06, 0x0a, 0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19];
    const OU: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x0b];
    let attribute = |oid: &[u8], tag, value: &str| tlv(SEQUENCE, &[oid, &tlv(tag, value.as_bytes())].concat());
    let rdns = [
        tlv(SET, &attribute(DC, 0x16, "com")),
        tlv(SET, &attribute(DC, 0x16, "example")),
        tlv(SET, &[attribute(OU, 0x0c, "Ⅹ"), attribute(COMMON_NAME, 0x13, "Issuing CA 1")].concat()),
    ];
    tlv(SEQUENCE, &rdns.concat())
}

#[test]
fn the_issuer_is_the_cas_subject_to_the_byte() {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = date(now() + DAY * 400).unwrap();
    let draft = params.self_signed(&pair).unwrap();
    let subject = odd_subject();
    let der = sign_draft(draft.der(), &[(3, &subject), (5, &subject)], &pair).unwrap();
    let pem = etcd_tls_contract::certificate::to_pem(&der);
    let authority = Authority::load(pem.as_bytes(), pair.serialize_pem().as_bytes(), now()).unwrap();
    let (sans, key) = (sans(), key());
    let chain = issue(&authority, &leaf(Role::Peer, &sans, &key), now(), [1; 16]).unwrap();
    assert_eq!(read(&chain).tbs_certificate().issuer().to_der().unwrap(), subject);
}

#[test]
fn names_that_no_certificate_holds_are_errors() {
    let (authority, key) = (authority(), key());
    let many = Sans { dns: BTreeSet::from(["é".to_owned()]), ips: BTreeSet::new() };
    assert!(matches!(issue(&authority, &leaf(Role::Peer, &many, &key), now(), [1; 16]), Err(IssueError::Encoding(_))));
    let sans = sans();
    for name in [String::new(), "x".repeat(65)] {
        let mut bad = leaf(Role::Peer, &sans, &key);
        bad.common_name = &name;
        assert!(matches!(issue(&authority, &bad, now(), [1; 16]), Err(IssueError::Encoding(_))));
    }
    for bad in [&b""[..], &b"garbage"[..], &key[..key.len() - 1], &[&key[..], b"x"].concat()] {
        issue(&authority, &leaf(Role::Peer, &sans, bad), now(), [1; 16]).unwrap_err();
    }
}

#[test]
fn several_organizations_keep_their_order() {
    let (authority, sans, key) = (authority(), sans(), key());
    let mut two = leaf(Role::Client, &sans, &key);
    two.organizations = vec!["b", "a"];
    let chain = issue(&authority, &two, now(), [1; 16]).unwrap();
    assert_eq!(read(&chain).tbs_certificate().subject().to_string(), "CN=system:etcd-peer:etcd-0,O=a,O=b");
}

#[test]
fn lengths_are_written_as_der_writes_them() {
    assert_eq!(tlv(0x04, &[]), [0x04, 0x00]);
    assert_eq!(tlv(0x04, &[7; 0x7f])[..2], [0x04, 0x7f]);
    assert_eq!(tlv(0x04, &[7; 0x80])[..3], [0x04, 0x81, 0x80]);
    assert_eq!(tlv(0x04, &[7; 0x1234])[..4], [0x04, 0x82, 0x12, 0x34]);
}
