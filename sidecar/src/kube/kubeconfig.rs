//! The API server as a host finds it: a kubeconfig, and a bootstrap kubeconfig for as long as there is no valid
//! certificate of one's own.
//!
//! Everything is read again for each connection: the kubeconfig names the certificate's files, which each renewal replaces.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    ApiError,
    http::{Access, Credentials},
};
use etcd_tls_contract::{certificate::Chain, crl::Crl, names};

use crate::os::replace::replace;

/// The name of cluster, context and user in a kubeconfig that is written here. One that has another is not written over.
const OURS: &str = "etcd-tls";

/// The supported part of a kubeconfig. Unsupported fields that change the server or the identity are refused.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<NamedCluster>,
    contexts: Vec<NamedContext>,
    users: Vec<NamedUser>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedUser {
    name: String,
    user: User,
}

/// A field that is wiped when dropped, and never printed.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Secret(Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<Secret>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

/// A kubeconfig's current cluster and user, its files not read yet.
struct Current {
    path: PathBuf,
    cluster: Cluster,
    user: User,
}

impl Current {
    fn read(path: &Path) -> Result<Self, ApiError> {
        let error = |message: String| ApiError::Access(format!("kubeconfig {}: {message}", path.display()));
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| error(e.to_string()))?);
        // The parser's own words could quote a token.
        let config: Kubeconfig =
            serde_saphyr::from_str(&text).map_err(|_| error("cannot be read as a kubeconfig".to_owned()))?;
        let name = config.current_context;
        let context = config.contexts.into_iter().find(|c| c.name == name).map(|c| c.context);
        let context = context.ok_or_else(|| error(format!("has no context {name:?}, which current-context names")))?;
        let cluster = config.clusters.into_iter().find(|c| c.name == context.cluster).map(|c| c.cluster);
        let cluster = cluster.ok_or_else(|| error(format!("has no cluster {:?}", context.cluster)))?;
        let user = config.users.into_iter().find(|u| u.name == context.user).map(|u| u.user);
        let user = user.ok_or_else(|| error(format!("has no user {:?}", context.user)))?;
        for (is_there, field) in [
            (cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify"),
            (cluster.proxy_url.is_some(), "proxy-url"),
            (user.exec.is_some(), "exec"),
            (user.auth_provider.is_some(), "auth-provider"),
            (user.username.is_some() || user.password.is_some(), "username"),
            (user.impersonate.is_some(), "as"),
        ] {
            if is_there {
                return Err(error(format!(
                    "{field} is not supported; use a token or a client certificate, and the CA of the server"
                )));
            }
        }
        Ok(Self { path: path.to_owned(), cluster, user })
    }

    fn error(&self, message: impl std::fmt::Display) -> ApiError {
        ApiError::Access(format!("kubeconfig {}: {message}", self.path.display()))
    }

    /// A file's or a field's bytes; the field wins, as with client-go.
    fn bytes(&self, data: Option<&str>, file: Option<&Path>) -> Result<Option<Vec<u8>>, ApiError> {
        if let Some(data) = data.filter(|d| !d.is_empty()) {
            return STANDARD.decode(data).map(Some).map_err(|_| self.error("a -data field is no base64"));
        }
        let Some(file) = file.filter(|f| !f.as_os_str().is_empty()) else { return Ok(None) };
        let file = match self.path.parent() {
            Some(dir) => dir.join(file),
            None => file.to_owned(),
        };
        fs::read(&file).map(Some).map_err(|e| self.error(format!("{}: {e}", file.display())))
    }

    fn roots(&self) -> Result<Vec<u8>, ApiError> {
        let cluster = &self.cluster;
        let roots =
            self.bytes(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref())?;
        roots.ok_or_else(|| self.error("names no certificate-authority; the server's certificate could not be proven"))
    }

    fn client_certificate(&self) -> Result<Option<Vec<u8>>, ApiError> {
        self.bytes(self.user.client_certificate_data.as_deref(), self.user.client_certificate.as_deref())
    }

    /// True if the list beside the certificate's file revokes it: no signer of ours takes it any more.
    fn has_revoked(&self, chain: &Chain) -> bool {
        let Some(file) = &self.user.client_certificate else { return false };
        let list = self.path.parent().unwrap_or_else(|| Path::new("")).join(file).with_file_name(names::CRL_FILE);
        let list = fs::read(list).ok().and_then(|der| Crl::parse(&der).ok());
        list.is_some_and(|list| list.entries().contains_key(&chain.serial))
    }

    fn access(&self) -> Result<Access, ApiError> {
        let (host, port, prefix) = server(&self.cluster.server).ok_or_else(|| {
            self.error(format!("the server {:?} is not https://<host>[:<port>][/<path>]", self.cluster.server))
        })?;
        let user = &self.user;
        let key = self.bytes(user.client_key_data.as_ref().map(|d| d.0.as_str()), user.client_key.as_deref())?;
        let identity = match (self.client_certificate()?, key) {
            (Some(chain), Some(key)) => Some((chain, Zeroizing::new(key))),
            (None, None) => None,
            _ => return Err(self.error("has a client certificate without its key, or a key without its certificate")),
        };
        let token = match (&user.token, &user.token_file) {
            (Some(Secret(token)), _) if !token.is_empty() => Some(Zeroizing::new(token.trim().to_owned())),
            (_, Some(file)) => {
                let bytes = Zeroizing::new(self.bytes(None, Some(file))?.unwrap_or_default());
                let text = std::str::from_utf8(&bytes).map_err(|_| self.error("the token file is no text"))?;
                Some(Zeroizing::new(text.trim().to_owned()))
            }
            _ => None,
        };
        Ok(Access {
            other: None,
            host,
            port,
            prefix,
            roots: self.roots()?,
            token,
            identity,
            server_name: self.cluster.tls_server_name.clone().filter(|n| !n.is_empty()),
        })
    }
}

/// Host, port and path of `https://…`.
fn server(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
    if authority.contains('@') || prefix.contains(['?', '#']) {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']')?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("443"))?)
        }
        None => authority.rsplit_once(':').unwrap_or((authority, "443")),
    };
    (!host.is_empty()).then_some(())?;
    Some((host.to_owned(), port.parse().ok()?, prefix))
}

/// A host's credentials: those of `kubeconfig` while they are there and valid, else those of `bootstrap`.
#[derive(Clone, Debug)]
pub struct HostCredentials {
    kubeconfig: PathBuf,
    bootstrap: Option<PathBuf>,
}

/// A kubeconfig that is to be written around a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Written, or rewritten.
    Now,
    /// It says so already.
    Before,
    /// Somebody else's stands there.
    NotOurs,
}

impl HostCredentials {
    /// `kubeconfig` need not be there if there is a `bootstrap` one.
    pub fn new(kubeconfig: &Path, bootstrap: Option<&Path>) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), bootstrap: bootstrap.map(Path::to_owned) }
    }

    /// The kubeconfig in force at `now`: the bootstrap one where the other is missing, or its certificate has expired or is
    /// revoked.
    fn current(&self, now: SystemTime) -> Result<Current, ApiError> {
        let Some(bootstrap) = &self.bootstrap else { return Current::read(&self.kubeconfig) };
        match Current::read(&self.kubeconfig) {
            Ok(current) if usable(&current, now) => Ok(current),
            Ok(_) => Current::read(bootstrap),
            // A kubeconfig that is no more than begun, or whose files are gone, is one to be bootstrapped again.
            Err(error) => Current::read(bootstrap).map_err(|e| ApiError::Access(format!("{e}; and {error}"))),
        }
    }

    /// Writes the kubeconfig around the certificate in `dir` (`tls.crt`, `tls.key`): the server is the bootstrap
    /// kubeconfig's. Mode 0600, whole or not at all. Without a bootstrap kubeconfig nothing is written.
    ///
    /// # Errors
    /// The bootstrap kubeconfig cannot be read, or the new one not written.
    pub fn write(&self, dir: &Path) -> Result<Written, ApiError> {
        let Some(bootstrap) = &self.bootstrap else { return Ok(Written::NotOurs) };
        let text = render(&Current::read(bootstrap)?, dir)?;
        match fs::read_to_string(&self.kubeconfig) {
            Ok(present) if present == text => return Ok(Written::Before),
            Ok(present) if !is_ours(&present) => return Ok(Written::NotOurs),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ApiError::Access(format!("kubeconfig {}: {e}", self.kubeconfig.display()))),
        }
        replace(&self.kubeconfig, 0o600, &mut text.as_bytes()).map_err(|e| {
            ApiError::Access(format!("kubeconfig {} cannot be written: {e}", self.kubeconfig.display()))
        })?;
        Ok(Written::Now)
    }
}

impl Credentials for HostCredentials {
    fn access(&self) -> Result<Access, ApiError> {
        self.current(SystemTime::now())?.access()
    }
}

/// True if a kubeconfig has usable credentials at `now`, as far as its files show.
fn usable(current: &Current, now: SystemTime) -> bool {
    match current.client_certificate() {
        Ok(Some(pem)) => Chain::parse(&pem).is_ok_and(|chain| now < chain.not_after && !current.has_revoked(&chain)),
        Ok(None) => current.user.token.is_some() || current.user.token_file.is_some(),
        Err(_) => false,
    }
}

fn is_ours(text: &str) -> bool {
    serde_saphyr::from_str::<Kubeconfig>(text).is_ok_and(|config| config.current_context == OURS)
}

/// Every JSON string is a valid YAML scalar.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn render(bootstrap: &Current, dir: &Path) -> Result<String, ApiError> {
    let dir = std::path::absolute(dir).map_err(|e| bootstrap.error(e))?;
    let file = |name: &str| quoted(&dir.join(name).to_string_lossy());
    let mut text = String::from("apiVersion: v1\nkind: Config\n");
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "clusters:\n- name: {OURS}\n  cluster:\n    server: {}\n    certificate-authority-data: {}\n",
        quoted(&bootstrap.cluster.server),
        STANDARD.encode(bootstrap.roots()?),
    );
    if let Some(name) = &bootstrap.cluster.tls_server_name {
        let _ = writeln!(text, "    tls-server-name: {}", quoted(name));
    }
    let _ = write!(
        text,
        "users:\n- name: {OURS}\n  user:\n    client-certificate: {}\n    client-key: {}\n\
         contexts:\n- name: {OURS}\n  context:\n    cluster: {OURS}\n    user: {OURS}\n\
         current-context: {OURS}\n",
        file(names::CERT_FILE),
        file(names::KEY_FILE),
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("etcd-tls-kubeconfig-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\npreferences: {{}}\n\
             clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u, namespace: n}}}}]\n"
        )
    }

    fn access(text: &str) -> Result<Access, String> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = Dir::new(&format!("access-{n}"));
        dir.write("ca.crt", "CA");
        dir.write("token", "from-file\n");
        let path = dir.write("config", text);
        HostCredentials::new(&path, None).access().map_err(|e| e.to_string())
    }

    #[test]
    fn a_token_is_read_from_field_or_file() {
        let cluster = "server: 'https://[2001:db8::1]:6443/prefix/', certificate-authority: ca.crt, tls-server-name: k";
        let a = access(&config(cluster, "token: abc")).unwrap();
        assert_eq!((a.host.as_str(), a.port, a.prefix.as_str()), ("2001:db8::1", 6443, "/prefix"));
        assert_eq!((a.roots.as_slice(), a.server_name.as_deref()), (&b"CA"[..], Some("k")));
        assert_eq!(a.token.unwrap().as_str(), "abc");
        assert_eq!(access(&config(cluster, "tokenFile: token")).unwrap().token.unwrap().as_str(), "from-file");
        let data = "server: 'https://h', certificate-authority-data: Q0E=";
        let a = access(&config(data, "client-certificate-data: Q0E=, client-key-data: Q0E=")).unwrap();
        assert_eq!((a.port, a.identity.unwrap().0.as_slice()), (443, &b"CA"[..]));
    }

    #[test]
    fn unknown_kubeconfigs_are_refused_without_quoting_secrets() {
        let good = "server: 'https://h', certificate-authority: ca.crt";
        for (cluster, user, word) in [
            ("server: 'http://h', certificate-authority: ca.crt", "token: secret", "https"),
            ("server: 'https://u@h', certificate-authority: ca.crt", "token: secret", "https"),
            ("server: 'https://h:99999', certificate-authority: ca.crt", "token: secret", "https"),
            ("server: 'https://h'", "token: secret", "certificate-authority"),
            ("server: 'https://h', insecure-skip-tls-verify: true", "token: secret", "insecure-skip-tls-verify"),
            (&format!("{good}, proxy-url: 'http://p'"), "token: secret", "proxy-url"),
            (good, "exec: {command: secret}", "exec"),
            (good, "username: u, password: secret", "username"),
            (good, "token: secret, as: other", "as"),
            (good, "client-certificate-data: Q0E=", "without its key"),
            (good, "client-key-data: '%secret'", "base64"),
            (good, "token: [secret", "cannot be read"),
        ] {
            let error = access(&config(cluster, user)).err().unwrap();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
        assert!(access("").is_err());
    }

    fn certificate(valid: bool) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["m1.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:etcd-peer:m1");
        let now = time::OffsetDateTime::from(SystemTime::now());
        params.not_before = now - time::Duration::hours(2);
        params.not_after = if valid { now + time::Duration::hours(1) } else { now - time::Duration::hours(1) };
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn the_bootstrap_kubeconfig_is_used_until_there_is_a_certificate_and_after_it_has_expired() {
        let dir = Dir::new("bootstrap");
        dir.write("ca.crt", "CA");
        let bootstrap = dir.write(
            "bootstrap",
            &config("server: 'https://h:1', certificate-authority: ca.crt, tls-server-name: n", "token: boot"),
        );
        let kubeconfig = dir.0.join("kubeconfig");
        let credentials = HostCredentials::new(&kubeconfig, Some(&bootstrap));
        let token = |c: &HostCredentials| c.access().unwrap().token.map(|t| t.as_str().to_owned());
        assert_eq!(token(&credentials).as_deref(), Some("boot"));

        let (chain, key) = certificate(true);
        dir.write(names::CERT_FILE, &chain);
        dir.write(names::KEY_FILE, &key);
        assert_eq!(credentials.write(&dir.0).unwrap(), Written::Now);
        assert_eq!(credentials.write(&dir.0).unwrap(), Written::Before);
        assert_eq!(fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
        let access = credentials.access().unwrap();
        assert!(access.token.is_none() && access.identity.is_some());
        assert_eq!((access.host.as_str(), access.port, access.server_name.as_deref()), ("h", 1, Some("n")));

        let (chain, key) = certificate(false);
        dir.write(names::CERT_FILE, &chain);
        dir.write(names::KEY_FILE, &key);
        assert_eq!(token(&credentials).as_deref(), Some("boot"), "expired");
        fs::remove_file(dir.0.join(names::CERT_FILE)).unwrap();
        assert_eq!(token(&credentials).as_deref(), Some("boot"), "its file is gone");
    }

    #[test]
    fn somebody_elses_kubeconfig_is_left_alone() {
        let dir = Dir::new("other");
        dir.write("ca.crt", "CA");
        let cluster = "server: 'https://h', certificate-authority: ca.crt";
        let bootstrap = dir.write("bootstrap", &config(cluster, "token: boot"));
        let other = dir.write("kubeconfig", &config(cluster, "token: other"));
        let credentials = HostCredentials::new(&other, Some(&bootstrap));
        assert_eq!(credentials.write(&dir.0).unwrap(), Written::NotOurs);
        assert_eq!(credentials.access().unwrap().token.unwrap().as_str(), "other");
    }
}
