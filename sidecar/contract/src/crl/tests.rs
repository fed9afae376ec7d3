#![allow(clippy::unwrap_used)]

use std::time::UNIX_EPOCH;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

fn ca(name: &str, usages: &[KeyUsagePurpose]) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages.to_vec();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    params.key_usages = Vec::new();
    Ca { issuer: Issuer::new(params, key), der }
}

fn good(name: &str) -> Ca {
    ca(name, &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign])
}

fn params(number: u64, serials: &[&[u8]]) -> CertificateRevocationListParams {
    let revoked = |serial: &&[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: date_time_ymd(2023, 11, 14),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: date_time_ymd(2023, 11, 14),
        next_update: date_time_ymd(2027, 1, 15),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn list(ca: &Ca, number: u64, serials: &[&[u8]]) -> Crl {
    Crl::parse(params(number, serials).signed_by(&ca.issuer).unwrap().der()).unwrap()
}

#[test]
fn a_list_is_read_as_it_was_written() {
    let ca = good("a");
    let crl = list(&ca, 0x0102_0304_0506, &[&[0x00, 0x9f, 1], &[7]]);
    assert_eq!(crl.number(), 0x0102_0304_0506);
    assert_eq!(crl.entries().keys().collect::<Vec<_>>(), ["7", "9f01"]);
    let entry = crl.entries()["7"];
    assert_eq!((entry.reason, entry.at), (Reason::KeyCompromise, UNIX_EPOCH + Duration::from_secs(1_699_920_000)));
    assert!(list(&ca, 1, &[]).entries().is_empty());
}

#[test]
fn the_stand_in_is_an_empty_list_of_nobody() {
    let crl = Crl::parse(stand_in()).unwrap();
    assert_eq!((crl.number(), crl.entries().len()), (0, 0));
    assert_eq!(crl.verify([good("a").der.as_slice()]), Err(CrlError::Foreign));
}

#[test]
fn only_its_issuer_verifies_it() {
    let (a, namesake, b) = (good("a"), good("a"), good("b"));
    let crl = list(&a, 1, &[&[1]]);
    assert_eq!(crl.verify([b.der.as_slice(), a.der.as_slice()]), Ok(()));
    assert_eq!(crl.verify([b.der.as_slice(), namesake.der.as_slice()]), Err(CrlError::Foreign), "another key");
    let cert_only = ca("a", &[KeyUsagePurpose::KeyCertSign]);
    let crl = list(&cert_only, 1, &[]);
    assert_eq!(crl.verify([cert_only.der.as_slice()]), Err(CrlError::Foreign), "without cRLSign");
    // Every byte is signed, or no list any more.
    let whole = params(1, &[&[1]]).signed_by(&a.issuer).unwrap().der().to_vec();
    for index in 0..whole.len() {
        let mut changed = whole.clone();
        changed[index] ^= 1;
        let taken = Crl::parse(&changed).is_ok_and(|crl| crl.verify([a.der.as_slice()]).is_ok());
        assert!(!taken, "byte {index}");
    }
}

#[test]
fn the_number_does_not_go_back() {
    let ca = good("a");
    let (first, second) = (list(&ca, 1, &[]), list(&ca, 2, &[&[1]]));
    assert_eq!(second.replaces(&first), Ok(true));
    assert_eq!(second.replaces(&second), Ok(false));
    assert_eq!(first.replaces(&second), Err(CrlError::Old { offered: 1, held: 2 }));
    assert!(list(&ca, 2, &[]).replaces(&second).is_err(), "another list with the same number");
}

#[test]
fn incomplete_lists_are_refused() {
    let ca = good("a");
    let der = params(1, &[&[1]]).signed_by(&ca.issuer).unwrap().der().to_vec();
    for cut in 0..der.len() {
        assert!(Crl::parse(&der[..cut]).is_err(), "{cut}");
    }
    assert!(Crl::parse(&[der.clone(), vec![0]].concat()).is_err(), "something after it");
    assert_eq!(Crl::parse(&vec![0x30; MAX_CRL + 1]), Err(CrlError::TooLarge));
    let twice = params(1, &[&[1], &[1]]).signed_by(&ca.issuer).unwrap();
    assert!(Crl::parse(twice.der()).unwrap_err().to_string().contains("twice"));
    let part = CertificateRevocationListParams {
        issuing_distribution_point: Some(rcgen::CrlIssuingDistributionPoint {
            distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://a/".to_owned()] },
            scope: None,
        }),
        ..params(1, &[])
    };
    assert!(Crl::parse(part.signed_by(&ca.issuer).unwrap().der()).unwrap_err().to_string().contains("critical"));
    let long = CertificateRevocationListParams { crl_number: SerialNumber::from_slice(&[1; 9]), ..params(1, &[]) };
    assert!(Crl::parse(long.signed_by(&ca.issuer).unwrap().der()).unwrap_err().to_string().contains("64 bits"));
}

#[test]
fn ten_thousand_entries_fit() {
    let serials: Vec<[u8; 16]> = (0..10_000_u128).map(|n| ((0x40 << 120) + n).to_be_bytes()).collect();
    let serials: Vec<&[u8]> = serials.iter().map(<[u8; 16]>::as_slice).collect();
    assert_eq!(list(&good("a"), 1, &serials).entries().len(), 10_000);
}

#[test]
fn serial_numbers_are_taken_as_tools_print_them() {
    for text in ["4f0a", "4F:0A", "0x4F0A", "serial=4F0A", "004f0a", " 4f0a\n"] {
        assert_eq!(serial(text).as_deref(), Ok("4f0a"), "{text}");
    }
    for text in ["", "0", "0x", "4g", "-1", &"f".repeat(41), "4f 0a"] {
        assert_eq!(serial(text), Err(NoSerial), "{text}");
    }
    assert_eq!("keycompromise".parse(), Ok(Reason::KeyCompromise));
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(reason));
    }
}
