//! Certificates and clocks for this crate's own tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{certificate::Bundle, csr::PrivateKey, key::KeyAlgorithm, role::Role, san::Sans};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SubjectPublicKeyInfo,
};

use crate::{
    os::clock::Clock,
    store::{Entry, Record},
};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("test CA")
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = time(SystemTime::UNIX_EPOCH);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// An authority that this one has signed.
    pub(crate) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = time(SystemTime::UNIX_EPOCH);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::parse(self.pem.as_bytes()).unwrap()
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A chain in PEM for `public_key`.
    pub(crate) fn sign(&self, public_key: &[u8], sans: &Sans, not_before: SystemTime, not_after: SystemTime) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        let names = sans.dns.iter().map(|d| SanType::DnsName(d.as_str().try_into().unwrap()));
        params.subject_alt_names = names.chain(sans.ips.iter().map(|ip| SanType::IpAddress(*ip))).collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (time(not_before), time(not_after));
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).unwrap();
        serial[0] &= 0x7f;
        params.serial_number = Some(serial.to_vec().into());
        let key = SubjectPublicKeyInfo::from_der(public_key).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().pem()
    }

    /// A chain in PEM for `public_key` with what `params` say.
    pub(crate) fn sign_as(&self, public_key: &[u8], params: CertificateParams) -> String {
        params.signed_by(&SubjectPublicKeyInfo::from_der(public_key).unwrap(), &self.issuer).unwrap().pem()
    }

    /// A revocation list of these serial numbers, DER. A serial number may have any number of digits: its first byte may be small.
    pub(crate) fn list(&self, number: u64, serials: &[&str]) -> Vec<u8> {
        let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
        let revoked = |serial: &&str| {
            let serial = format!("{}{serial}", if serial.len().is_multiple_of(2) { "" } else { "0" });
            let bytes: Vec<u8> = (0..serial.len()).step_by(2).map(|at| byte(&serial[at..at + 2])).collect();
            RevokedCertParams {
                serial_number: bytes.into(),
                revocation_time: time(SystemTime::now()),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: time(SystemTime::now()),
            next_update: time(SystemTime::now() + Duration::from_secs(3600)),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    /// A proven entry with a key of its own, good for an hour from now.
    pub(crate) fn entry(&self, role: Role) -> Entry {
        let now = SystemTime::now();
        self.entry_at(role, now, Duration::from_secs(3600))
    }

    /// A proven entry with a key of its own, good from `now` for `life`.
    pub(crate) fn entry_at(&self, role: Role, now: SystemTime, life: Duration) -> Entry {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let chain = self.sign(&key.public_key(), &Sans::default(), now, now + life);
        let received = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let record = Record { received, key_bundle: self.bundle().digest(), trusts: None, in_force: None };
        Entry::prove(role, &chain, &key, &self.bundle(), &Sans::default(), record, now).unwrap()
    }
}

fn time(at: SystemTime) -> ::time::OffsetDateTime {
    at.into()
}

/// A clock on which a sleep passes at once.
#[derive(Clone)]
pub(crate) struct Fake {
    elapsed: Rc<Cell<Duration>>,
    /// The difference between the wall clock and a correct one.
    pub(crate) began: Rc<Cell<SystemTime>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        // Whole seconds, as certificates have them.
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self { elapsed: Rc::default(), began: Rc::new(Cell::new(began)) }
    }

    pub(crate) fn pass(&self, duration: Duration) {
        self.elapsed.set(self.elapsed.get() + duration);
    }
}

impl Clock for Fake {
    fn now(&self) -> SystemTime {
        self.began.get() + self.elapsed.get()
    }

    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    fn chance(&self) -> f64 {
        0.5
    }

    async fn sleep(&self, duration: Duration) {
        self.pass(duration);
    }
}
