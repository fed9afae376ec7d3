//! Certificate authorities and leaves for tests that need certificates from somewhere else than from what is tested.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, SubjectPublicKeyInfo,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// A certificate authority.
pub struct Ca {
    name: String,
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
    /// Its key, PKCS#8 PEM.
    pub key_pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub cert: String,
    /// The PKCS#8 key.
    pub key: String,
}

/// The content of a leaf; by default 127.0.0.1 and localhost, server and client, an hour.
#[derive(Clone, Debug)]
pub struct LeafOptions {
    /// The subject's O values.
    pub organizations: Vec<String>,
    /// The subject's CN.
    pub common_name: String,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// serverAuth.
    pub server: bool,
    /// clientAuth.
    pub client: bool,
    /// notBefore.
    pub not_before: SystemTime,
    /// notAfter.
    pub not_after: SystemTime,
}

impl Default for LeafOptions {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            organizations: Vec::new(),
            common_name: "test".into(),
            dns: vec!["localhost".into()],
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            server: true,
            client: true,
            not_before: now - Duration::from_secs(300),
            not_after: now + Duration::from_secs(3600),
        }
    }
}

impl Ca {
    /// A self-signed CA of ten years.
    pub fn new(common_name: &str) -> Self {
        let key = KeyPair::generate().expect("make a key");
        let params = parameters(common_name);
        let pem = params.self_signed(&key).expect("sign a CA").pem();
        Self::of(common_name, params, key, pem)
    }

    /// An intermediate CA that this one has signed.
    pub fn below(&self, common_name: &str) -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut params = parameters(common_name);
        params.use_authority_key_identifier_extension = true;
        let pem = params.signed_by(&key, &self.issuer).expect("sign a CA").pem();
        Self::of(common_name, params, key, pem)
    }

    fn of(common_name: &str, params: CertificateParams, key: KeyPair, pem: String) -> Self {
        let key_pem = key.serialize_pem();
        Self { name: common_name.to_owned(), issuer: Issuer::new(params, key), pem, key_pem }
    }

    /// Another certificate for the same name and key, as a CA that is renewed has it: PEM.
    pub fn renewed(&self) -> String {
        let mut params = parameters(&self.name);
        params.not_after = (SystemTime::now() + Duration::from_secs(11 * 365 * 24 * 3600)).into();
        params.self_signed(self.issuer.key()).expect("sign a CA").pem()
    }

    /// Issues a leaf with a new key.
    pub fn leaf(&self, options: &LeafOptions) -> Leaf {
        let key = KeyPair::generate().expect("make a key");
        let cert = self.sign(&key.subject_public_key_info(), options);
        Leaf { cert, key: key.serialize_pem() }
    }

    /// Issues a leaf, PEM, for the key of a DER SubjectPublicKeyInfo.
    pub fn sign(&self, public_key: &[u8], options: &LeafOptions) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for o in &options.organizations {
            params.distinguished_name.push(DnType::OrganizationName, o);
        }
        params.distinguished_name.push(DnType::CommonName, &options.common_name);
        let dns = options.dns.iter().map(|d| SanType::DnsName(d.as_str().try_into().expect("a DNS name")));
        params.subject_alt_names = dns.chain(options.ips.iter().map(|ip| SanType::IpAddress(*ip))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if options.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if options.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.not_before = options.not_before.into();
        params.not_after = options.not_after.into();
        let key = SubjectPublicKeyInfo::from_der(public_key).expect("a public key");
        params.signed_by(&key, &self.issuer).expect("sign a leaf").pem()
    }

    /// Issues a leaf and writes `tls.crt`, `tls.key` and `ca.crt` into `dir`, as etcd-tls lays a role out.
    pub fn write_role(&self, dir: &Path, options: &LeafOptions) -> Leaf {
        let leaf = self.leaf(options);
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        for (name, content) in [("tls.crt", &leaf.cert), ("tls.key", &leaf.key), ("ca.crt", &self.pem)] {
            let temporary = dir.join(format!(".{name}"));
            fs::write(&temporary, content).unwrap_or_else(|e| panic!("write {name} in {}: {e}", dir.display()));
            fs::rename(&temporary, dir.join(name)).unwrap_or_else(|e| panic!("rename {name}: {e}"));
        }
        leaf
    }
}

/// A CA of ten years.
fn parameters(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    // Before any clock that a test sets back.
    params.not_before = (now - Duration::from_secs(86_400)).into();
    params.not_after = (now + Duration::from_secs(10 * 365 * 24 * 3600)).into();
    params
}

/// A rustls client that trusts `ca` (PEM) and presents `leaf` (chain and key, PEM). It resumes no session: a resumed one
/// would show the old certificate.
///
/// # Errors
/// PEM that is none, or a key that does not fit its certificate.
pub fn try_client_config(ca: &str, leaf: Option<(&str, &str)>) -> Result<Arc<rustls::ClientConfig>, String> {
    crate::install_crypto();
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        store.add(cert.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    let builder = rustls::ClientConfig::builder().with_root_certificates(store);
    let mut config = match leaf {
        Some((cert, key)) => {
            let chain: Result<_, _> = CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| e.to_string())?;
            builder.with_client_auth_cert(chain.map_err(|e| e.to_string())?, key).map_err(|e| e.to_string())?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// [`try_client_config`], where failure is a broken test.
pub fn client_config(ca: &str, leaf: Option<(&str, &str)>) -> Arc<rustls::ClientConfig> {
    try_client_config(ca, leaf).unwrap_or_else(|e| panic!("a client's TLS files: {e}"))
}

/// [`try_client_config`] of a role directory's `tls.crt`, `tls.key` and `ca.crt`, as they are now. Links are resolved
/// once, so that the three are of one generation.
///
/// # Errors
/// Files missing or broken.
pub fn client_config_of(dir: &Path) -> Result<Arc<rustls::ClientConfig>, String> {
    let generation = fs::canonicalize(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let read = |name| {
        let path = generation.join(name);
        fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    try_client_config(&read("ca.crt")?, Some((&read("tls.crt")?, &read("tls.key")?)))
}
