//! The table of requests: good ones, and every single deviation from them.
//!
//! `fixtures/*.pem` are requests by `openssl req` with `O=system:etcd-peers, CN=system:etcd-peer:etcd-0`, one DNS name and one
//! IP; the file's name names the peculiarity of each. [`Forge`] makes those that openssl cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod encoding;
mod forge;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use self::forge::*;
use super::*;

fn good() -> Request {
    Request::parse(Forge::good().pem().as_bytes()).unwrap()
}

/// The one reason for which it is refused.
#[track_caller]
fn reason(text: impl AsRef<[u8]>) -> &'static str {
    match Request::parse(text.as_ref()) {
        Ok(request) => panic!("was taken: {request:?}\n{}", String::from_utf8_lossy(text.as_ref())),
        Err(error) => {
            assert!(!error.message.is_empty() && error.message.len() < 500, "{error:?}");
            assert!(!error.message.contains("BEGIN CERTIFICATE REQUEST-----\n"), "no PEM in an error");
            error.reason
        }
    }
}

#[test]
fn a_good_request_is_read() {
    let request = good();
    assert_eq!(request.organization, "system:etcd-peers");
    assert_eq!(request.common_name, "system:etcd-peer:etcd-0");
    assert_eq!(request.sans.texts(), ["etcd-0.etcd.prod.svc", "10.0.0.7"]);
    assert_eq!(request.key, KeyAlgorithm::EcdsaP256);
}

#[test]
fn equivalent_encodings_are_read_the_same() {
    let critical = seq(&[tlv(OID, OID_SAN), vec![1, 1, 0xff], tlv(4, &seq(&Forge::names()))]);
    let mut same = vec![
        Forge::with(|forge| forge.subject.reverse()),
        Forge::with(|forge| forge.subject[0] = rdn(OID_O, PRINTABLE, b"system:etcd-peers")),
        Forge::with_common_name(PRINTABLE, b"system:etcd-peer:etcd-0"),
        Forge::with_extensions(&[critical]),
        Forge::with_names(&[Forge::names()[1].clone(), Forge::names()[0].clone()]),
    ];
    for forge in same.drain(..) {
        let request = Request::parse(forge.pem().as_bytes()).unwrap();
        let public_key = request.public_key.clone();
        assert_eq!(request, Request { public_key, ..good() });
    }
    let pem = Forge::good().pem();
    assert_eq!(
        Request::parse(pem.trim_end().as_bytes()).unwrap().common_name,
        good().common_name,
        "no newline at the end"
    );
    let bare = Request::parse(Forge::with(|forge| forge.attributes.clear()).pem().as_bytes()).unwrap();
    assert!(bare.sans.is_empty());
}

#[test]
fn each_key_that_we_make_is_read_back() {
    let sans = Sans {
        dns: ["etcd-0.etcd.prod.svc".to_owned(), "localhost".to_owned(), "*.etcd.example.com".to_owned()].into(),
        ips: ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap(), "127.0.0.1".parse().unwrap()].into(),
    };
    for algorithm in KeyAlgorithm::ALL {
        let key = PrivateKey::generate(algorithm).unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!((again.public_key(), again.algorithm()), (key.public_key(), Some(algorithm)));
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        for sans in [&sans, &Sans::default()] {
            let pem = again.request("system:etcd-servers", "system:etcd-server:etcd-0", sans).unwrap();
            assert!(pem.len() < MAX_REQUEST / 2, "{algorithm}: {} bytes", pem.len());
            let request = Request::parse(pem.as_bytes()).unwrap();
            assert_eq!(request.organization, "system:etcd-servers");
            assert_eq!(request.common_name, "system:etcd-server:etcd-0");
            assert_eq!((&request.sans, request.key, &request.public_key), (sans, algorithm, &key.public_key()));
            assert_eq!(request.key_digest(), key_digest(&key.public_key()));
            assert_eq!(request.key_digest().len(), 32);
        }
    }
}

#[test]
fn the_keys_digest_is_the_first_half_of_its_sha_256() {
    // SHA-256 of nothing is in every textbook; CSR names and their comparison depend on this form.
    assert_eq!(key_digest(b""), "e3b0c44298fc1c149afbf4c8996fb924");
}

#[test]
fn keys_of_others_are_read_or_refused() {
    for not_a_key in ["", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &Forge::good().pem()] {
        assert!(PrivateKey::from_pem(not_a_key).is_err());
    }
}

macro_rules! fixtures {
    ($($name:literal => $expected:expr,)*) => {
        [$(($name, include_str!(concat!("fixtures/", $name, ".pem")), $expected),)*]
    };
}

#[test]
fn requests_by_openssl() {
    use KeyAlgorithm as K;
    for (name, pem, expected) in fixtures! {
        "p256" => Ok(K::EcdsaP256),
        "p256-sha512" => Ok(K::EcdsaP256),
        "p384" => Ok(K::EcdsaP384),
        "ed25519" => Ok(K::Ed25519),
        "rsa2048" => Ok(K::Rsa2048),
        "rsa3072" => Ok(K::Rsa3072),
        "rsa4096" => Ok(K::Rsa4096),
        "p224" => Err("BadKey"),
        "p521" => Err("BadKey"),
        "k1" => Err("BadKey"),
        "bp" => Err("BadKey"),
        "explicit" => Err("BadKey"),
        "compressed" => Err("BadKey"),
        "ed448" => Err("BadKey"),
        "rsa512" => Err("BadKey"),
        "rsa1024" => Err("BadKey"),
        "rsa2047" => Err("BadKey"),
        "rsa2048e3" => Err("BadKey"),
        "rsapss" => Err("BadKey"),
        "p256-sha1" => Err("BadSignatureAlgorithm"),
        "p256-sha224" => Err("BadSignatureAlgorithm"),
        "p256-sha3" => Err("BadSignatureAlgorithm"),
        "rsa2048-sha1" => Err("BadSignatureAlgorithm"),
        "rsa2048-md5" => Err("BadSignatureAlgorithm"),
        "rsa2048-pss-signature" => Err("BadSignatureAlgorithm"),
        "ca-true" => Err("BadExtension"),
        "new" => Err("NotPem"),
    } {
        match expected {
            Ok(key) => {
                let request = Request::parse(pem.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(request, Request { key, public_key: request.public_key.clone(), ..good() }, "{name}");
            }
            Err(expected) => assert_eq!(reason(pem), expected, "{name}"),
        }
    }
}

#[test]
fn keys_that_openssl_does_not_make() {
    let point = Forge::good().key.public_key_raw().to_vec();
    let ec = |curve: Vec<u8>, point: &[u8]| seq(&[seq(&[tlv(OID, OID_EC), curve]), tlv(3, &[&[0], point].concat())]);
    let rsa = |parameters: Vec<u8>, modulus: &[u8], exponent: &[u8]| {
        let key = seq(&[tlv(2, modulus), tlv(2, exponent)]);
        seq(&[seq(&[tlv(OID, OID_RSA), parameters]), tlv(3, &[&[0][..], &key].concat())])
    };
    let modulus = |bytes: usize| [vec![0], vec![0xff; bytes]].concat();
    let null = || vec![5, 0];
    let other = |oid: &[u8]| seq(&[seq(&[tlv(OID, oid)]), tlv(3, &[0; 1313])]);
    let mut off_curve = point.clone();
    off_curve[64] ^= 1;
    let hybrid = [&[6 + (point[64] & 1)][..], &point[1..]].concat();
    for (what, public_key, expected) in [
        ("RSA-16384", rsa(null(), &modulus(2048), &[1, 0, 1]), "BadKey"),
        ("RSA-8192", rsa(null(), &modulus(1024), &[1, 0, 1]), "BadKey"),
        ("RSA-2056", rsa(null(), &modulus(257), &[1, 0, 1]), "BadKey"),
        ("RSA, exponent 1", rsa(null(), &modulus(256), &[1]), "BadKey"),
        ("RSA, exponent huge", rsa(null(), &modulus(256), &[1, 0, 0, 0, 1]), "BadKey"),
        ("RSA, exponent with a leading zero", rsa(null(), &modulus(256), &[0, 1, 0, 1]), "BadKey"),
        ("RSA, negative modulus", rsa(null(), &vec![0xff; 256], &[1, 0, 1]), "BadKey"),
        ("RSA without NULL", rsa(vec![], &modulus(256), &[1, 0, 1]), "BadKey"),
        ("RSA with parameters", rsa(vec![5, 1, 0], &modulus(256), &[1, 0, 1]), "BadKey"),
        ("ML-DSA", other(OID_ML_DSA_44), "BadKey"),
        ("DSA", other(OID_DSA), "BadKey"),
        ("EC without a curve", seq(&[seq(&[tlv(OID, OID_EC)]), tlv(3, &[&[0][..], &point].concat())]), "BadKey"),
        ("EC with a NULL curve", ec(null(), &point), "BadKey"),
        ("point off the curve", ec(tlv(OID, OID_P256), &off_curve), "BadSignature"),
        ("point at infinity", ec(tlv(OID, OID_P256), &[0]), "BadKey"),
        ("point zero", ec(tlv(OID, OID_P256), &[&[4][..], &[0; 64]].concat()), "BadSignature"),
        ("hybrid point", ec(tlv(OID, OID_P256), &hybrid), "BadKey"),
        ("point too long", ec(tlv(OID, OID_P256), &[&point[..], &[0]].concat()), "BadKey"),
        (
            "unused bits",
            seq(&[seq(&[tlv(OID, OID_EC), tlv(OID, OID_P256)]), tlv(3, &[&[1][..], &point].concat())]),
            "BadKey",
        ),
    ] {
        let found = reason(Forge::with(|forge| forge.public_key = public_key).pem());
        assert!(found == expected || (found == "NotDer" && expected == "BadKey"), "{what}: {found}");
    }
    let another = Forge::with(|forge| forge.public_key = Forge::good().public_key);
    assert_eq!(reason(another.pem()), "BadSignature", "a key whose private half the requester has not");
}

#[test]
fn the_subject_is_one_organization_and_one_common_name() {
    let o = || rdn(OID_O, UTF8, b"system:etcd-peers");
    let cn = || rdn(OID_CN, UTF8, b"system:etcd-peer:etcd-0");
    let both = |parts: &[Vec<u8>]| tlv(SET, &parts.concat());
    for (what, subject) in [
        ("empty", vec![]),
        ("no CN", vec![o()]),
        ("no O", vec![cn()]),
        ("two CNs", vec![o(), cn(), rdn(OID_CN, UTF8, b"root")]),
        ("two Os", vec![o(), rdn(OID_O, UTF8, b"system:masters"), cn()]),
        ("an OU too", vec![o(), rdn(&[0x55, 4, 11], UTF8, b"x"), cn()]),
        ("a serialNumber too", vec![o(), cn(), rdn(&[0x55, 4, 5], PRINTABLE, b"1")]),
        ("an e-mail address too", vec![o(), cn(), rdn(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], 22, b"a@b")]),
        (
            "a multi-valued RDN",
            vec![both(&[atv(OID_CN, UTF8, b"system:etcd-peer:etcd-0"), atv(OID_O, UTF8, b"system:etcd-peers")])],
        ),
        ("a multi-valued CN", vec![o(), both(&[atv(OID_CN, UTF8, b"a"), atv(OID_CN, UTF8, b"b")])]),
        ("an empty RDN", vec![o(), cn(), both(&[])]),
    ] {
        let found = reason(Forge::with(|forge| forge.subject = subject).pem());
        assert!(matches!(found, "BadSubject" | "NotDer"), "{what}: {found}");
    }
    let long = [b'a'; 65];
    let utf16: Vec<u8> = "system:etcd-peer:etcd-0".bytes().flat_map(|b| [0, b]).collect();
    for (what, tag, value) in [
        ("NUL", UTF8, &b"root\0.example.com"[..]),
        ("a newline", UTF8, b"a\nb"),
        ("DEL", UTF8, b"a\x7f"),
        ("non-ASCII", UTF8, "réseau".as_bytes()),
        ("bad UTF-8", UTF8, &[0x61, 0xff]),
        ("nothing", UTF8, b""),
        ("65 characters", UTF8, &long),
        ("a PrintableString with a character that is none", PRINTABLE, b"a@b"),
        ("a PrintableString with an asterisk", PRINTABLE, b"*"),
        ("BMPString", 30, &utf16),
        ("TeletexString", 20, b"system:etcd-peer:etcd-0"),
        ("UniversalString", 28, &[0, 0, 0, 0x61]),
        ("IA5String", 22, b"system:etcd-peer:etcd-0"),
        ("OCTET STRING", 4, b"system:etcd-peer:etcd-0"),
        ("a SEQUENCE", 0x30, b""),
    ] {
        let found = reason(Forge::with_common_name(tag, value).pem());
        assert!(matches!(found, "BadSubject" | "NotDer"), "{what}: {found}");
    }
    assert_eq!(reason(Forge::with_common_name(UTF8, &[b'a'; 65536 / 2]).pem()), "TooLong", "a CN of 32 KiB");
    let commas = Request::parse(Forge::with_common_name(UTF8, b"x,O=system:masters").pem().as_bytes()).unwrap();
    assert_eq!(commas.common_name, "x,O=system:masters", "text is text; the policy compares it whole");
}

#[test]
fn one_extension_request_with_one_extension() {
    let request = || attribute(OID_EXTENSION_REQUEST, &[seq(&[san(&Forge::names())])]);
    let names = || san(&Forge::names());
    for (what, attributes) in [
        (
            "two extension requests",
            vec![request(), attribute(OID_EXTENSION_REQUEST, &[seq(&[san(&[tlv(DNS, b"b.prod.svc")])])])],
        ),
        (
            "one with two values",
            vec![attribute(OID_EXTENSION_REQUEST, &[seq(&[names()]), seq(&[san(&[tlv(DNS, b"b.prod.svc")])])])],
        ),
        ("one with no value", vec![attribute(OID_EXTENSION_REQUEST, &[])]),
        ("one with no extension", vec![attribute(OID_EXTENSION_REQUEST, &[seq(&[])])]),
        ("trailing bytes in the list", vec![attribute(OID_EXTENSION_REQUEST, &[seq(&[names(), vec![5, 0]])])]),
        ("a SET for the list", vec![attribute(OID_EXTENSION_REQUEST, &[tlv(SET, &names())])]),
        ("Microsoft's", vec![attribute(OID_MICROSOFT_EXTENSIONS, &[seq(&[names()])])]),
        ("Microsoft's too", vec![request(), attribute(OID_MICROSOFT_EXTENSIONS, &[seq(&[names()])])]),
        ("a challenge password", vec![attribute(OID_CHALLENGE_PASSWORD, &[tlv(UTF8, b"x")])]),
        ("a challenge password too", vec![attribute(OID_CHALLENGE_PASSWORD, &[tlv(UTF8, b"x")]), request()]),
        ("an unknown attribute too", vec![attribute(&[0x2a, 3, 4], &[tlv(UTF8, b"x")]), request()]),
    ] {
        let found = reason(Forge::with(|forge| forge.attributes = attributes).pem());
        assert!(matches!(found, "BadExtension" | "NotDer"), "{what}: {found}");
    }
    let ca = || extension(OID_BASIC_CONSTRAINTS, &seq(&[vec![1, 1, 0xff]]));
    for (what, extensions) in [
        ("SAN twice", vec![names(), names()]),
        ("CA:TRUE", vec![names(), ca()]),
        ("CA:TRUE alone", vec![ca()]),
        (
            "CA:TRUE with a path length",
            vec![names(), extension(OID_BASIC_CONSTRAINTS, &seq(&[vec![1, 1, 0xff], vec![2, 1, 0]]))],
        ),
        ("keyCertSign", vec![names(), extension(&[0x55, 0x1d, 15], &[3, 2, 1, 6])]),
        (
            "any extended key usage",
            vec![names(), extension(&[0x55, 0x1d, 37], &seq(&[tlv(OID, &[0x55, 0x1d, 37, 0])]))],
        ),
        ("name constraints", vec![names(), extension(&[0x55, 0x1d, 30], &seq(&[]))]),
        ("a subject key identifier", vec![names(), extension(&[0x55, 0x1d, 14], &tlv(4, b"x"))]),
        ("an authority key identifier", vec![names(), extension(&[0x55, 0x1d, 35], &seq(&[]))]),
        ("SCTs", vec![names(), extension(&[0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 2], &tlv(4, b"x"))]),
        ("an unknown critical one", vec![names(), seq(&[tlv(OID, &[0x2a, 3, 4]), vec![1, 1, 0xff], tlv(4, b"x")])]),
        ("issuerAltName", vec![extension(&[0x55, 0x1d, 18], &seq(&Forge::names()))]),
    ] {
        assert_eq!(reason(Forge::with_extensions(&extensions).pem()), "BadExtension", "{what}");
    }
}

#[test]
fn names_are_dns_names_and_addresses() {
    let v6 = |address: &str| tlv(IP, &address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let dns = |name: &str| tlv(DNS, name.as_bytes());
    let long = format!("{}.svc", "a".repeat(64));
    let longer = ["a".repeat(60).as_str(); 5].join(".");
    for (what, name) in [
        ("an empty name", dns("")),
        ("*", dns("*")),
        ("*.", dns("*.")),
        ("*.*.svc", dns("*.*.svc")),
        ("a.*.svc", dns("a.*.svc")),
        ("a*.svc", dns("a*.svc")),
        ("mixed case", dns("Etcd-0.etcd.prod.svc")),
        ("an underscore", dns("etcd_0.prod.svc")),
        ("a space", dns("etcd 0.prod.svc")),
        ("non-ASCII", dns("étcd.prod.svc")),
        ("NUL", dns("etcd-0.prod.svc\0.example.com")),
        ("a newline", dns("etcd-0\n.prod.svc")),
        ("an IPv4 address as a name", dns("10.0.0.7")),
        ("an IPv6 address as a name", dns("fd00::7")),
        ("a number at the end", dns("a.b.7")),
        ("a leading dot", dns(".prod.svc")),
        ("a trailing dot", dns("prod.svc.")),
        ("an empty label", dns("a..svc")),
        ("a hyphen first", dns("-a.svc")),
        ("a hyphen last", dns("a-.svc")),
        ("a label too long", dns(&long)),
        ("a name too long", dns(&longer)),
        ("a port", dns("a.svc:2379")),
        ("a scheme", dns("https://a.svc")),
        ("an address of no bytes", tlv(IP, &[])),
        ("of three", tlv(IP, &[10, 0, 0])),
        ("of five", tlv(IP, &[10, 0, 0, 7, 0])),
        ("of eight (an address and a mask)", tlv(IP, &[10, 0, 0, 0, 255, 0, 0, 0])),
        ("of fifteen", tlv(IP, &[0xfd; 15])),
        ("of thirty-two", tlv(IP, &[0xfd; 32])),
        ("0.0.0.0", tlv(IP, &[0, 0, 0, 0])),
        ("::", v6("::")),
        ("multicast", tlv(IP, &[224, 0, 0, 1])),
        ("IPv6 multicast", v6("ff02::1")),
        ("broadcast", tlv(IP, &[255, 255, 255, 255])),
        ("IPv4 in IPv6's clothes", v6("::ffff:10.0.0.7")),
        ("e-mail", tlv(0x81, b"a@example.com")),
        ("URI", tlv(0x86, b"spiffe://cluster.local/ns/prod/sa/other")),
        ("otherName", tlv(0xa0, &[tlv(OID, &[0x2a, 3, 4]), tlv(0xa0, &tlv(UTF8, b"x"))].concat())),
        ("directoryName", tlv(0xa4, &seq(&[rdn(OID_CN, UTF8, b"root")]))),
        ("registeredID", tlv(0x88, &[0x2a, 3, 4])),
        ("x400Address", tlv(0xa3, &[])),
        ("an unknown tag", tlv(0x89, b"x")),
        ("a constructed dNSName", tlv(0xa2, &tlv(22, b"a.svc"))),
        ("an IA5String without its tag", tlv(22, b"a.svc")),
    ] {
        // Alone, and behind a good one.
        assert_eq!(reason(Forge::with_names(std::slice::from_ref(&name)).pem()), "BadName", "{what}");
        assert_eq!(reason(Forge::with_names(&[Forge::names(), vec![name]].concat()).pem()), "BadName", "{what}");
    }
    assert_eq!(reason(Forge::with_names(&[]).pem()), "BadName", "an empty list");
    assert_eq!(reason(Forge::with_names(&[Forge::names(), Forge::names()].concat()).pem()), "BadName", "each twice");
    assert_eq!(reason(Forge::with_names(&[dns("a.svc"), dns("b.svc"), dns("a.svc")]).pem()), "BadName", "one twice");
    let trailing = extension(OID_SAN, &[seq(&Forge::names()), vec![0]].concat());
    assert_eq!(reason(Forge::with_extensions(&[trailing]).pem()), "BadName", "bytes behind the list");
    let odd_length = extension(OID_SAN, &[&[0x30, 0x81, 7, DNS][..], &[5], b"a.svc"].concat());
    assert_eq!(reason(Forge::with_extensions(&[odd_length]).pem()), "BadName", "a length that is not minimal");
    // A wildcard, a homograph and loopback are names; the policy decides over them.
    for name in ["*.etcd.prod.svc", "xn--tcd-9la.prod.svc", "localhost", "kubernetes.default.svc"] {
        assert!(Request::parse(Forge::with_names(&[dns(name)]).pem().as_bytes()).unwrap().sans.dns.contains(name));
    }
}
