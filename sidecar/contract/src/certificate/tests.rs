//! Bundles and chains: good ones, and every single deviation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData as _, SanType, SerialNumber,
};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// Noon of the tests; no clock is asked.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now() - 100 * DAY).into();
    params.not_after = (now() + 100 * DAY).into();
    params
}

fn ca_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = ca_params(name);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Ca { issuer: Issuer::new(params, key), der }
}

fn ca(name: &str) -> Ca {
    ca_with(name, |_| ())
}

impl Ca {
    fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params("intermediate");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:etcd-peer:etcd-0");
        params.subject_alt_names = vec![
            SanType::DnsName("etcd-0.etcd.prod.svc".try_into().unwrap()),
            SanType::IpAddress("10.0.0.7".parse().unwrap()),
        ];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = (now() - DAY).into();
        params.not_after = (now() + DAY).into();
        params.serial_number = Some(SerialNumber::from_slice(&[0, 0, 0x0a, 0xbc]));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().to_vec(), key)
    }

    fn bundle(&self) -> Bundle {
        Bundle::from_der(vec![self.der.clone()]).unwrap()
    }
}

fn critical() -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
    extension.set_criticality(true);
    extension
}

fn asked() -> Sans {
    Sans { dns: ["etcd-0.etcd.prod.svc".to_owned()].into(), ips: ["10.0.0.7".parse().unwrap()].into() }
}

/// Verifies a leaf of `ca`, changed, with `others` behind it, against `bundle`.
fn verify(
    role: Role,
    ca: &Ca,
    change: impl FnOnce(&mut CertificateParams),
    others: &[&Ca],
    bundle: &Bundle,
) -> Result<(), CertificateError> {
    let (leaf, key) = ca.leaf(change);
    let chain = [leaf].into_iter().chain(others.iter().map(|ca| ca.der.clone())).collect();
    Chain::from_der(chain)?.verify(role, bundle, &key.subject_public_key_info(), &asked(), now())
}

#[test]
fn a_bundle_is_a_set() {
    let (a, b) = (to_pem(&ca("a").der), to_pem(&ca("b").der));
    let bundle = Bundle::parse(format!("{a}{b}").as_bytes()).unwrap();
    assert_eq!(bundle.certificates().len(), 2);
    let many = [
        format!("{b}{a}"),
        format!("{a}{b}{a}"),
        format!("# the old one\n{a}\n\nand the new one:\n{b}bye"),
        format!("{a}{b}").replace('\n', "\r\n"),
        format!("{a}{b}").trim_end().to_owned(),
    ];
    for same in many {
        let same = Bundle::parse(same.as_bytes()).unwrap();
        assert_eq!((same.digest(), same.to_pem()), (bundle.digest(), bundle.to_pem()));
    }
    assert_eq!(Bundle::parse(bundle.to_pem().as_bytes()).unwrap(), bundle);
    let only_a = Bundle::parse(a.as_bytes()).unwrap();
    let only_b = Bundle::parse(b.as_bytes()).unwrap();
    assert_ne!(only_a.digest(), bundle.digest());
    assert_eq!(bundle.digest().len(), 32);
    assert!(bundle.contains(&only_a) && !only_a.contains(&bundle) && !only_a.contains(&only_b));
    assert_eq!(only_a.union(&only_b), bundle);
    assert_eq!(bundle.subjects().len(), 2);
    assert_eq!(only_a.subjects()[0], [&[0x30, 12, 0x31, 10, 0x30, 8, 6, 3, 0x55, 4, 3, 12, 1][..], b"a"].concat());
}

#[test]
fn a_bundle_that_etcd_would_die_of_is_refused() {
    let good = ca("a");
    let pem = to_pem(&good.der);
    let key = KeyPair::generate().unwrap().serialize_pem();
    let (leaf, _) = good.leaf(|_| ());
    let no_sign = ca_with("b", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let not_ca = ca_with("b", |params| params.is_ca = IsCa::ExplicitNoCa);
    let odd = ca_with("b", |params| params.custom_extensions = vec![critical()]);
    let cut: String = pem.lines().take(3).map(|line| format!("{line}\n")).collect();
    let body = pem.lines().nth(1).unwrap();
    for (what, text) in [
        ("empty", String::new()),
        ("garbage", "hello".to_owned()),
        ("a key", key.clone()),
        ("a key behind", format!("{pem}{key}")),
        ("a key before", format!("{key}{pem}")),
        ("a request", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_owned()),
        ("OpenSSL's own label", pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        ("a leaf", to_pem(&leaf)),
        ("a leaf behind", format!("{pem}{}", to_pem(&leaf))),
        ("no CA", to_pem(&not_ca.der)),
        ("a CA that may not sign", to_pem(&no_sign.der)),
        ("a CA with a critical extension that Go does not handle", to_pem(&odd.der)),
        ("truncated", cut.clone()),
        ("truncated, then whole", format!("{cut}{pem}")),
        ("no base64", pem.replacen(body, "!", 1)),
        ("no DER", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
        ("nothing in it", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
        ("an END alone", format!("-----END CERTIFICATE-----\n{pem}")),
        ("trailing bytes", to_pem(&[&good.der[..], &[0]].concat())),
        ("headers", pem.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1)),
        ("1 MiB and more", format!("{}{pem}", "x".repeat(MAX_PEM))),
    ] {
        let error = Bundle::parse(text.as_bytes()).expect_err(what);
        assert!(error.0.len() < 300 && !error.0.contains(body), "{what}: {error}");
    }
    assert!(Bundle::parse(&good.der).is_err(), "DER");
    assert!(Bundle::parse(&[0xff, 0xfe, b'-', 0]).is_err(), "UTF-16");
    for length in 0..pem.len() - 2 {
        assert!(Bundle::parse(&pem.as_bytes()[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn a_chain_is_read() {
    let ca = ca("a");
    let (leaf, key) = ca.leaf(|_| ());
    let chain = Chain::from_der(vec![leaf, ca.der.clone()]).unwrap();
    assert_eq!(chain.serial, "abc");
    assert_eq!((chain.not_before, chain.not_after), (now() - DAY, now() + DAY));
    assert_eq!(chain.common_name, "system:etcd-peer:etcd-0");
    assert_eq!(chain.sans, asked());
    assert_eq!(chain.public_key, key.subject_public_key_info());
    assert_eq!(Chain::parse(chain.to_pem().as_bytes()).unwrap(), chain);
    for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Chain::parse(bad.as_bytes()).is_err());
    }
    assert!(Chain::parse(format!("{}{}", chain.to_pem(), key.serialize_pem()).as_bytes()).is_err(), "a key in it");
    assert!(Chain::from_der(vec![]).is_err());
}

#[test]
fn a_good_chain_is_verified() {
    let (root, other) = (ca("root"), ca("other"));
    let bundle = root.bundle().union(&other.bundle());
    for role in Role::ALL {
        verify(role, &root, |_| (), &[], &bundle).unwrap();
        verify(role, &root, |_| (), &[&root], &bundle).unwrap();
        let intermediate = root.intermediate(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        verify(role, &intermediate, |_| (), &[&intermediate], &bundle).unwrap();
        verify(role, &intermediate, |_| (), &[&other, &intermediate, &root], &bundle).unwrap();
        verify(role, &root, |params| params.extended_key_usages.clear(), &[], &bundle).unwrap();
    }
    for role in [Role::Client, Role::Metrics] {
        verify(role, &root, |params| params.extended_key_usages = vec![Eku::ClientAuth], &[], &bundle).unwrap();
    }
}

#[test]
fn chains_that_peers_would_refuse_are_refused() {
    let root = ca("root");
    let bundle = root.bundle();
    let refused = |what: &str, ca: &Ca, change: fn(&mut CertificateParams), others: &[&Ca], bundle: &Bundle| {
        for role in [Role::Peer, Role::Server] {
            let error = verify(role, ca, change, others, bundle).expect_err(what);
            assert!(!error.0.contains(['{', '(']), "{what}: a sentence, not a debugger's text: {error}");
        }
    };
    refused("expired", &root, |params| params.not_after = (now() - Duration::from_secs(1)).into(), &[], &bundle);
    refused(
        "not yet valid",
        &root,
        |params| params.not_before = (now() + Duration::from_secs(120)).into(),
        &[],
        &bundle,
    );
    refused("for servers alone", &root, |params| params.extended_key_usages = vec![Eku::ServerAuth], &[], &bundle);
    refused("for clients alone", &root, |params| params.extended_key_usages = vec![Eku::ClientAuth], &[], &bundle);
    refused("for code", &root, |params| params.extended_key_usages = vec![Eku::CodeSigning], &[], &bundle);
    refused("no names", &root, |params| params.subject_alt_names.clear(), &[], &bundle);
    refused("one name missing", &root, |params| params.subject_alt_names.truncate(1), &[], &bundle);
    refused("a CA", &root, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), &[], &bundle);
    refused("an unknown critical extension", &root, |params| params.custom_extensions = vec![critical()], &[], &bundle);
    let odd = root.intermediate(|params| params.custom_extensions = vec![critical()]);
    refused("an intermediate with an unknown critical extension", &odd, |_| (), &[&odd], &bundle);
    refused("of another authority", &ca("other"), |_| (), &[], &bundle);
    refused("of another authority of the same name", &ca("root"), |_| (), &[], &bundle);

    let intermediate = root.intermediate(|_| ());
    refused("intermediate missing", &intermediate, |_| (), &[], &bundle);
    let constrained = |length| ca_with("root", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length)));
    let (none, one) = (constrained(0), constrained(1));
    let (under_none, under_one) = (none.intermediate(|_| ()), one.intermediate(|_| ()));
    refused("an intermediate too many for the anchor", &under_none, |_| (), &[&under_none], &none.bundle());
    verify(Role::Peer, &under_one, |_| (), &[&under_one], &one.bundle()).unwrap();
    let no_ca = root.intermediate(|params| params.is_ca = IsCa::ExplicitNoCa);
    refused("an intermediate that is no CA", &no_ca, |_| (), &[&no_ca], &bundle);
    let no_sign = root.intermediate(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    refused("an intermediate that may not sign", &no_sign, |_| (), &[&no_sign], &bundle);
    let old = root.intermediate(|params| params.not_after = (now() - DAY).into());
    refused("an intermediate that has expired", &old, |_| (), &[&old], &bundle);

    let expired = ca_with("root", |params| params.not_after = (now() - Duration::from_secs(1)).into());
    refused("an authority that has expired", &expired, |_| (), &[], &expired.bundle());
    let early = ca_with("root", |params| params.not_before = (now() + DAY).into());
    refused("an authority that is not valid yet", &early, |_| (), &[], &early.bundle());
    let servers = ca_with("root", |params| params.extended_key_usages = vec![Eku::ServerAuth]);
    refused("an authority for servers alone", &servers, |_| (), &[], &servers.bundle());
    let elsewhere = ca_with("root", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: vec![],
        });
    });
    refused("an authority for other names", &elsewhere, |_| (), &[], &elsewhere.bundle());
}

#[test]
fn order_and_key_matter() {
    let root = ca("root");
    let (leaf, key) = root.leaf(|_| ());
    let key = key.subject_public_key_info();
    let backwards = Chain::from_der(vec![root.der.clone(), leaf.clone()]).unwrap();
    assert!(backwards.verify(Role::Peer, &root.bundle(), &key, &Sans::default(), now()).is_err());
    let chain = Chain::from_der(vec![leaf]).unwrap();
    chain.verify(Role::Peer, &root.bundle(), &key, &asked(), now()).unwrap();
    let (_, other) = root.leaf(|_| ());
    let error =
        chain.verify(Role::Peer, &root.bundle(), &other.subject_public_key_info(), &asked(), now()).unwrap_err();
    assert!(error.0.contains("another key"), "{error}");
    let mut more = asked();
    more.dns.insert("etcd-1.etcd.prod.svc".to_owned());
    let error = chain.verify(Role::Peer, &root.bundle(), &key, &more, now()).unwrap_err();
    assert!(error.0.contains("does not hold etcd-1.etcd.prod.svc"), "{error}");
    assert!(
        chain.verify(Role::Peer, &root.bundle(), &key, &asked(), UNIX_EPOCH).is_err(),
        "a clock that was never set"
    );
}

#[test]
fn a_bundle_knows_whether_it_holds_a_chains_authority() {
    let (old, new) = (ca("ca 1"), ca("ca 2"));
    let (leaf, _) = old.leaf(|params| params.not_after = (now() - DAY / 2).into());
    let chain = Chain::from_der(vec![leaf]).unwrap();
    assert!(old.bundle().contains_issuer_of(&chain), "expired or not");
    assert!(old.bundle().union(&new.bundle()).contains_issuer_of(&chain));
    assert!(!new.bundle().contains_issuer_of(&chain));
    let intermediate = new.intermediate(|_| ());
    let (leaf, _) = intermediate.leaf(|_| ());
    let chain = Chain::from_der(vec![leaf, intermediate.der.clone()]).unwrap();
    assert!(new.bundle().contains_issuer_of(&chain) && !old.bundle().contains_issuer_of(&chain));
}

/// Across an upgrade: a reader of before the statement (this very reader of PEM) takes an answer with one, and an answer
/// without one, as signers of before give it, states nothing.
#[test]
fn a_statement_before_the_chain_changes_nothing_for_its_readers() {
    use crate::{in_force::BundlesInForce, role::Domain};

    let ca = ca("ca");
    let (leaf, _) = ca.leaf(|_| ());
    let pem = to_pem(&leaf);
    let bundle = Bundle::from_der(vec![ca.der.clone()]).unwrap();
    let in_force = BundlesInForce::new([(Domain::Peer, bundle.digest()), (Domain::Client, bundle.digest())].into());
    let answer = in_force.before(&pem);
    assert!(answer.starts_with(&format!("etcd-tls trust: peer={0} client={0}\n-----BEGIN", bundle.digest())));
    assert_eq!(Chain::parse(answer.as_bytes()).unwrap(), Chain::parse(pem.as_bytes()).unwrap());
    assert_eq!(Chain::parse(answer.as_bytes()).unwrap().to_pem(), pem);
    assert_eq!(BundlesInForce::parse(&answer).unwrap(), Some(in_force));
    assert_eq!(BundlesInForce::parse(&pem), Ok(None));
}
