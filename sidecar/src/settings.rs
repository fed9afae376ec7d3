//! What a user says of a pod: the `etcd-tls.dev/…` annotations, parsed into types whose invalid states do not exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::{
    names::{self, SignerName, SignerNameError},
    role::Role,
};

/// A pod's settings, every annotation resolved to its value or its documented default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `…/roles`; never empty.
    pub roles: BTreeSet<Role>,
    /// `…/cluster`; a DNS label.
    pub cluster: String,
    /// `…/containers`; empty means: the one named `etcd`, else the only one.
    pub containers: Vec<String>,
    /// `…/issuer`.
    pub issuer: Issuer,
    /// `…/duration`: the leaf's lifetime, counted from the issue.
    pub duration: Duration,
    /// `…/key`.
    pub key: KeyAlgorithm,
    /// `…/key-rotation`.
    pub key_rotation: KeyRotation,
    /// `…/extra-sans`.
    pub extra_sans: Sans,
    /// `…/user`: the CN of a client certificate; `None` means `<serviceaccount>.<namespace>`.
    pub user: Option<String>,
    /// `…/mount-path`: absolute, normalised.
    pub mount_path: String,
    /// `…/admin-port`.
    pub admin_port: u16,
    /// `…/reload`.
    pub reload: Reload,
}

/// Who signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// `csr`: our signer of the pod's own cluster.
    Csr,
    /// `csr:<signerName>` under our domain: a cluster elsewhere, where policy allows it.
    Ours(SignerName),
    /// `csr:<signerName>` of another project; approved and signed by others.
    Foreign(String),
    /// `cert-manager:<Kind>/<name>`: Issuer or ClusterIssuer, by way of cert-manager's CSR signers.
    CertManager {
        /// Whether the kind is ClusterIssuer.
        cluster_scoped: bool,
        /// The issuer's name.
        name: String,
    },
}

/// A key's algorithm and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum KeyAlgorithm {
    /// `ecdsa-p256`, the default.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// `ecdsa-p384`.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// `ed25519`.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// `rsa-2048`: only where policy lists it.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// `rsa-3072`.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// `rsa-4096`.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

/// When a new key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRotation {
    /// `always`: for each certificate.
    Always,
    /// `on-ca-change`: kept until the trust bundle changes; no handshake can then meet half a pair.
    OnCaChange,
}

/// How etcd is told of what it does not notice by itself: a changed trust bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// `auto`: SIGTERM in a shared process namespace where that is safe; else the need is shown.
    Auto,
    /// `signal:<SIG>`: that signal, and a refusal at admission where it cannot be delivered. Never SIGHUP for etcd.
    Signal(String),
    /// `probe`: through the etcd container's liveness probe.
    Probe,
    /// `none`: never; the need is shown.
    None,
}

/// Subject alternative names of the two kinds that we issue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sans {
    /// DNS names, lower case.
    pub dns: BTreeSet<String>,
    /// IP addresses.
    pub ips: BTreeSet<IpAddr>,
}

/// One thing wrong with a pod's annotations, for the person who wrote them: which, what, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {message}")]
pub struct Problem {
    /// The annotation's full key.
    pub annotation: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The shortest life that may be asked for: the API server refuses `expirationSeconds` under 600.
pub const MIN_DURATION: Duration = Duration::from_secs(600);
/// The longest life that can be written at all: a year. Policy's bound is far lower; this one keeps arithmetic safe.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
/// The most entries of one list (`extra-sans`, `containers`): a request stays under 4 KiB and a message readable.
pub const MAX_ENTRIES: usize = 64;
/// The longest value of one annotation of ours, in bytes: [`MAX_ENTRIES`] names of full length.
pub const MAX_VALUE: usize = 16 * 1024;

impl Settings {
    /// Reads every `etcd-tls.dev/…` annotation; annotations of others are not looked at.
    ///
    /// # Errors
    /// Every problem at once: unknown keys under our prefix, values that do not parse, combinations that cannot be.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        for (annotation, value) in annotations {
            let Some(key) = annotation.strip_prefix(names::ANNOTATION_PREFIX) else { continue };
            if let Err(message) = settings.set(key, value) {
                problems.push(Problem { annotation: annotation.clone(), message });
            }
        }
        settings.combinations(&mut problems);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    /// One annotation's value, by its key without the prefix.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.len() > MAX_VALUE {
            return Err(format!("is {} bytes long; at most {MAX_VALUE} are taken", value.len()));
        }
        match key {
            "roles" => {
                self.roles = list(value, |word| word.parse::<Role>().map_err(|e| e.to_string()))?.into_iter().collect()
            }
            "cluster" => self.cluster = label(value, "a cluster's name")?,
            "containers" => self.containers = list(value, container)?,
            "issuer" => self.issuer = value.parse()?,
            "duration" => self.duration = lifetime(value)?,
            "key" => self.key = value.parse()?,
            "key-rotation" => self.key_rotation = value.parse()?,
            "extra-sans" => self.extra_sans = value.parse()?,
            "user" => self.user = Some(user(value)?),
            "mount-path" => self.mount_path = mount_path(value)?,
            "admin-port" => self.admin_port = port(value)?,
            "reload" => self.reload = value.parse()?,
            "trusts" => {
                return Err(
                    "belongs on a CertificateSigningRequest, where the sidecar writes it; remove it from the pod"
                        .to_owned(),
                );
            }
            _ => return Err(format!("is not known; known are {}", KEYS.join(", "))),
        }
        Ok(())
    }

    /// What no single value shows.
    fn combinations(&self, problems: &mut Vec<Problem>) {
        let mut problem = |key: &str, message: String| {
            problems.push(Problem { annotation: format!("{}{key}", names::ANNOTATION_PREFIX), message });
        };
        if let Reload::Signal(signal) = &self.reload
            && self.runs_etcd()
            && matches!(signal.as_str(), "SIGHUP" | "SIGQUIT")
        {
            problem(
                "reload",
                format!("{signal} kills etcd at once, without a shutdown; use auto, probe, none or signal:SIGTERM"),
            );
        }
        if let Issuer::Ours(signer) = &self.issuer
            && !self.roles.iter().any(|role| role.domain() == signer.domain)
        {
            problem(
                "issuer",
                format!(
                    "{signer} signs none of the pod's roles; name the signer of one of them, the others follow from it"
                ),
            );
        }
        if self.user.is_some() && !self.roles.contains(&Role::Client) {
            problem("user", "is the CN of a client certificate, but the pod's roles do not hold client".to_owned());
        }
    }

    /// Whether the pod runs an etcd member: it has the peer or the server role.
    pub fn runs_etcd(&self) -> bool {
        self.roles.contains(&Role::Peer) || self.roles.contains(&Role::Server)
    }

    /// `spec.signerName` of the request for `role` of a pod in `namespace`.
    pub fn signer_name(&self, role: Role, namespace: &str) -> String {
        match &self.issuer {
            Issuer::Foreign(signer) => signer.clone(),
            Issuer::CertManager { cluster_scoped: true, name } => format!("clusterissuers.cert-manager.io/{name}"),
            Issuer::CertManager { cluster_scoped: false, name } => {
                format!("issuers.cert-manager.io/{namespace}.{name}")
            }
            Issuer::Csr | Issuer::Ours(_) => {
                let (namespace, cluster) = self.home(namespace);
                SignerName { domain: role.domain(), namespace: namespace.to_owned(), cluster: cluster.to_owned() }
                    .to_string()
            }
        }
    }

    /// Our signer of `role`, or `None` where the issuer is another project's.
    pub fn our_signer(&self, role: Role, namespace: &str) -> Option<SignerName> {
        if !self.is_ours() {
            return None;
        }
        let (namespace, cluster) = self.home(namespace);
        Some(SignerName { domain: role.domain(), namespace: namespace.to_owned(), cluster: cluster.to_owned() })
    }

    /// Whether approver and signer of ours serve this pod.
    pub const fn is_ours(&self) -> bool {
        matches!(self.issuer, Issuer::Csr | Issuer::Ours(_))
    }

    /// The namespace and name of the etcd cluster that a pod in `namespace` belongs to.
    pub fn home<'a>(&'a self, namespace: &'a str) -> (&'a str, &'a str) {
        match &self.issuer {
            Issuer::Ours(signer) => (&signer.namespace, &signer.cluster),
            Issuer::Csr | Issuer::Foreign(_) | Issuer::CertManager { .. } => (namespace, &self.cluster),
        }
    }

    /// The trust ConfigMap in the pod's own `namespace`. For a cluster elsewhere it carries that namespace's name and a
    /// dot, which no cluster's name has, so that it never is the one of a cluster here.
    pub fn trust_config_map(&self, namespace: &str) -> String {
        let (home, cluster) = self.home(namespace);
        if home == namespace {
            names::trust_config_map(cluster)
        } else {
            names::trust_config_map(&format!("{home}.{cluster}"))
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            roles: BTreeSet::from([Role::Peer, Role::Server]),
            cluster: names::DEFAULT_CLUSTER.to_owned(),
            containers: Vec::new(),
            issuer: Issuer::Csr,
            duration: Duration::from_secs(24 * 3600),
            key: KeyAlgorithm::EcdsaP256,
            key_rotation: KeyRotation::Always,
            extra_sans: Sans::default(),
            user: None,
            mount_path: names::DEFAULT_MOUNT_PATH.to_owned(),
            admin_port: names::DEFAULT_ADMIN_PORT,
            reload: Reload::Auto,
        }
    }
}

/// Every key under our prefix that a pod may carry.
const KEYS: [&str; 12] = [
    "roles",
    "cluster",
    "containers",
    "issuer",
    "duration",
    "key",
    "key-rotation",
    "extra-sans",
    "user",
    "mount-path",
    "admin-port",
    "reload",
];

/// A comma-separated list: no spaces, no empty entry, no entry twice.
fn list<T: PartialEq>(value: &str, entry: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    if value.is_empty() {
        return Err("is empty; remove the annotation for the default".to_owned());
    }
    let mut entries = Vec::new();
    for word in value.split(',') {
        if entries.len() == MAX_ENTRIES {
            return Err(format!("has more than {MAX_ENTRIES} entries"));
        }
        if word.is_empty() {
            return Err("has an empty entry; write entries with one comma between them".to_owned());
        }
        if word.trim() != word {
            return Err(format!(
                "has white space around {:?}; write entries with a comma alone between them",
                word.trim()
            ));
        }
        let entry = entry(word)?;
        if entries.contains(&entry) {
            return Err(format!("has {} twice", quoted(word)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// A user's text in a message: escaped, and cut where it is long.
fn quoted(s: &str) -> String {
    match s.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &s[..end]),
        None => format!("{s:?}"),
    }
}

fn label(s: &str, what: &str) -> Result<String, String> {
    if names::is_dns_label(s) {
        Ok(s.to_owned())
    } else {
        Err(format!(
            "{} is not {what}: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
            quoted(s)
        ))
    }
}

fn container(s: &str) -> Result<String, String> {
    if s == names::INIT_CONTAINER || s == names::SIDECAR_CONTAINER {
        return Err(format!("{s} is an injected container; name those that are to use the certificates"));
    }
    label(s, "a container's name")
}

fn lifetime(s: &str) -> Result<Duration, String> {
    let duration = parse_duration(s)?;
    if duration < MIN_DURATION {
        return Err(format!(
            "{s} is too short: the API server takes no request under {}",
            format_duration(MIN_DURATION)
        ));
    }
    if duration > MAX_DURATION {
        return Err(format!("{s} is too long: at most {}, and policy allows less", format_duration(MAX_DURATION)));
    }
    Ok(duration)
}

/// A user of etcd, as the CN of a client certificate.
///
/// # Errors
/// Not 1 to 64 characters of a set without meaning in a distinguished name, or under `system:`, which is ours.
pub(crate) fn user(s: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._:@/-".contains(&b);
    if s.is_empty() || s.len() > 64 || !s.bytes().all(fine) {
        return Err(format!(
            "{} is not a user: 1 to 64 of letters, digits and . _ : @ / - (a CN has no more)",
            quoted(s)
        ));
    }
    if s.starts_with("system:") {
        return Err(format!("{} is reserved: names under system: are those of members", quoted(s)));
    }
    Ok(s.to_owned())
}

/// Directories that a mount would take away from the container.
const SYSTEM_DIRECTORIES: [&str; 17] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/etcd",
    "/home",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
];
/// Nothing is mounted at or under these.
const KERNEL_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Where the injected containers have their own mounts, and where every container may have Kubernetes' own.
const OUR_DIRECTORIES: [&str; 4] = ["/var/run/etcd-tls", "/run/etcd-tls", "/var/run/secrets", "/run/secrets"];

fn mount_path(s: &str) -> Result<String, String> {
    let under = |path: &str, directory: &str| {
        path == directory || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if s.len() > 512 || !s.bytes().all(fine) {
        return Err(format!("{} is not a path of at most 512 letters, digits and . _ - /", quoted(s)));
    }
    let Some(rest) = s.strip_prefix('/') else { return Err(format!("{} is not absolute: begin it with /", quoted(s))) };
    if rest.is_empty() {
        return Err("/ is the container's whole file system; name a directory".to_owned());
    }
    if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{} is not normalised: no //, no . or .., no / at the end", quoted(s)));
    }
    if KERNEL_DIRECTORIES.iter().any(|directory| under(s, directory)) || SYSTEM_DIRECTORIES.contains(&s) {
        return Err(format!("{s} is the system's; name a directory of its own, such as {}", names::DEFAULT_MOUNT_PATH));
    }
    if OUR_DIRECTORIES.iter().any(|directory| under(s, directory) || under(directory, s)) {
        return Err(format!(
            "{s} clashes with what Kubernetes or the sidecar mounts; name a directory such as {}",
            names::DEFAULT_MOUNT_PATH
        ));
    }
    Ok(s.to_owned())
}

fn port(s: &str) -> Result<u16, String> {
    let canonical = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && !s.starts_with('0');
    match s.parse::<u16>() {
        Ok(port) if canonical && port >= 1024 => Ok(port),
        _ => Err(format!("{} is not a port from 1024 to 65535 (the sidecar has no right to lower ones)", quoted(s))),
    }
}

/// Reads a duration: whole numbers with the units h, m, s in that order (`24h`, `1h30m`, `90s`), nothing else. More than
/// zero.
///
/// # Errors
/// What is wrong with it.
pub fn parse_duration(s: &str) -> Result<Duration, String> {
    let bad = || {
        format!(
            "{} is not a duration: write whole numbers with the units h, m, s in that order, such as 24h or 1h30m",
            quoted(s)
        )
    };
    let mut units = [('h', 3600), ('m', 60), ('s', 1)].into_iter();
    let mut rest = s;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let unit = rest[end..].chars().next().ok_or_else(bad)?;
        let (_, factor) = units.find(|(u, _)| *u == unit).ok_or_else(bad)?;
        let number: u64 = rest[..end].parse().map_err(|_| bad())?;
        seconds = number.checked_mul(factor).and_then(|n| seconds.checked_add(n)).ok_or_else(bad)?;
        rest = &rest[end + 1..];
    }
    if seconds == 0 {
        return Err(bad());
    }
    Ok(Duration::from_secs(seconds))
}

/// Writes a duration in [`parse_duration`]'s grammar; fractions of a second are cut.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = String::new();
    for (number, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
        if number > 0 {
            text.push_str(&number.to_string());
            text.push(unit);
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

impl std::str::FromStr for Issuer {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{} is not an issuer: csr, csr:<signerName>, cert-manager:Issuer/<name> or cert-manager:ClusterIssuer/<name>",
                quoted(s)
            )
        };
        if s == "csr" {
            return Ok(Self::Csr);
        }
        if let Some(signer) = s.strip_prefix("csr:") {
            return match signer.parse::<SignerName>() {
                Ok(name) => Ok(Self::Ours(name)),
                Err(e @ SignerNameError::Malformed(_)) => Err(e.to_string()),
                Err(SignerNameError::Foreign(_)) => foreign(signer).ok_or_else(bad),
            };
        }
        let (kind, name) = s.strip_prefix("cert-manager:").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        let cluster_scoped = match kind {
            "Issuer" => false,
            "ClusterIssuer" => true,
            _ => return Err(bad()),
        };
        if !names::is_dns_subdomain(name) {
            return Err(bad());
        }
        Ok(Self::CertManager { cluster_scoped, name: name.to_owned() })
    }
}

/// A signer name as Kubernetes takes it: a domain of two labels or more, a slash, a path of DNS subdomains. Those of
/// `kubernetes.io` sign nothing for pods.
fn foreign(signer: &str) -> Option<Issuer> {
    let (domain, path) = signer.split_once('/')?;
    let fine = signer.len() <= 571
        && domain.contains('.')
        && domain != "kubernetes.io"
        && names::is_dns_subdomain(domain)
        && path.split('/').all(names::is_dns_subdomain);
    fine.then(|| Issuer::Foreign(signer.to_owned()))
}

impl std::fmt::Display for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Csr => f.write_str("csr"),
            Self::Ours(signer) => write!(f, "csr:{signer}"),
            Self::Foreign(signer) => write!(f, "csr:{signer}"),
            Self::CertManager { cluster_scoped: true, name } => write!(f, "cert-manager:ClusterIssuer/{name}"),
            Self::CertManager { cluster_scoped: false, name } => write!(f, "cert-manager:Issuer/{name}"),
        }
    }
}

impl KeyAlgorithm {
    /// Every algorithm, weakest last.
    pub const ALL: [Self; 6] =
        [Self::EcdsaP256, Self::EcdsaP384, Self::Ed25519, Self::Rsa4096, Self::Rsa3072, Self::Rsa2048];

    /// Its word in annotations and policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Ed25519 => "ed25519",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }
}

impl std::str::FromStr for KeyAlgorithm {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|key| key.as_str() == s).ok_or_else(|| {
            format!("{} is not a key: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072, rsa-4096, or where policy lists it rsa-2048", quoted(s))
        })
    }
}

impl std::fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for KeyRotation {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "always" => Ok(Self::Always),
            "on-ca-change" => Ok(Self::OnCaChange),
            _ => Err(format!("{} is neither always nor on-ca-change", quoted(s))),
        }
    }
}

impl std::fmt::Display for KeyRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::OnCaChange => "on-ca-change",
        })
    }
}

/// The signals that `signal:<SIG>` takes: those by which servers are told to reload or to stop.
const SIGNALS: [&str; 7] = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"];

impl std::str::FromStr for Reload {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "probe" => Ok(Self::Probe),
            "none" => Ok(Self::None),
            _ => match s.strip_prefix("signal:") {
                Some(signal) if SIGNALS.contains(&signal) => Ok(Self::Signal(signal.to_owned())),
                _ => Err(format!(
                    "{} is none of auto, probe, none and signal:<SIG> with one of {}",
                    quoted(s),
                    SIGNALS.join(", ")
                )),
            },
        }
    }
}

impl std::fmt::Display for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Signal(signal) => write!(f, "signal:{signal}"),
            Self::Probe => f.write_str("probe"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Sans {
    /// Whether there is neither a name nor an address.
    pub fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty()
    }

    /// Whether every name and address is among `other`'s.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.dns.is_subset(&other.dns) && self.ips.is_subset(&other.ips)
    }

    /// What of it is not among `other`'s, as text.
    pub fn beyond(&self, other: &Self) -> Vec<String> {
        let names = self.dns.difference(&other.dns).cloned();
        names.chain(self.ips.difference(&other.ips).map(ToString::to_string)).collect()
    }

    /// Every name and address as text, names first.
    pub fn texts(&self) -> Vec<String> {
        self.beyond(&Self::default())
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.dns.extend(other.dns.iter().cloned());
        self.ips.extend(other.ips.iter().copied());
    }
}

/// Reads a comma-separated list of DNS names (lower case, a wildcard only as the whole first label) and IP addresses in
/// their canonical form; the grammar of `…/extra-sans`.
impl std::str::FromStr for Sans {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut sans = Self::default();
        for san in list(s, San::parse)? {
            match san {
                San::Dns(name) => sans.dns.insert(name),
                San::Ip(ip) => sans.ips.insert(ip),
            };
        }
        Ok(sans)
    }
}

#[derive(PartialEq)]
enum San {
    Dns(String),
    Ip(IpAddr),
}

impl San {
    fn parse(s: &str) -> Result<Self, String> {
        if let Ok(ip) = s.parse::<IpAddr>() {
            return match ip.to_string() {
                text if text != s => Err(format!("{} is to be written {text}", quoted(s))),
                _ if !names::is_san_ip(ip) => Err(format!("{s} is no address of one host")),
                _ => Ok(Self::Ip(ip)),
            };
        }
        let bare = s.strip_prefix("*.").unwrap_or(s);
        if !names::is_san_dns_name(bare) || (bare != s && !bare.contains('.')) {
            return Err(format!("{} is neither an IP address nor a DNS name of a-z, 0-9, - and dots", quoted(s)));
        }
        Ok(Self::Dns(s.to_owned()))
    }
}
