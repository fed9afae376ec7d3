//! The parts of the policy, each with its bounds.

use std::str::FromStr;

use serde::{Deserializer, de};

use super::{BTreeSet, Deserialize, Duration, IpAddr, Issuer, KeyAlgorithm, Role, Sans, SignerName, names, settings};
use crate::{
    duration::{MAX_DURATION, MIN_DURATION, parse_duration},
    invalid_value::InvalidValue,
    names::ClusterName,
};

/// Reads a value by its own grammar.
fn text<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn texts<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    words.iter().map(|word| word.parse().map_err(de::Error::custom)).collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// A duration, or `never`.
pub(super) fn duration_or_never<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "never" {
        return Ok(None);
    }
    parse_duration(&text).map(Some).map_err(de::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// The key algorithms that are signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AllowedKeys(BTreeSet<KeyAlgorithm>);

impl AllowedKeys {
    /// True if `key` is among them.
    pub fn allow(&self, key: KeyAlgorithm) -> bool {
        self.0.contains(&key)
    }
}

impl Default for AllowedKeys {
    fn default() -> Self {
        Self(KeyAlgorithm::ALL.into_iter().filter(|key| *key != KeyAlgorithm::Rsa2048).collect())
    }
}

/// The bounds of a leaf's life. The grammar is that of `etcd-tls.dev/duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lifetime {
    /// A request for less is denied. Default 10m, which is also the API server's.
    #[serde(deserialize_with = "duration")]
    pub min: Duration,
    /// A request for more is denied. Default 168h, a week.
    #[serde(deserialize_with = "duration")]
    pub max: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { min: MIN_DURATION, max: Duration::from_secs(168 * 3600) }
    }
}

impl Lifetime {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        if self.min > self.max || self.max > MAX_DURATION {
            return Err("lifetime: min must not be above max, nor max above a year".into());
        }
        Ok(())
    }
}

/// A list of names, or all names (`"*"`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NameList(Vec<String>);

impl NameList {
    /// True if `word` is listed, or all are.
    pub fn takes(&self, word: &str) -> bool {
        self.0.iter().any(|listed| listed == "*" || listed == word)
    }

    /// True if `word` itself is listed.
    pub(super) fn names(&self, word: &str) -> bool {
        self.0.iter().any(|listed| listed == word)
    }

    /// Leaves these words out; whether any is left.
    pub(super) fn retain(&mut self, stays: impl Fn(&str) -> bool) -> bool {
        self.0.retain(|word| word == "*" || stays(word));
        !self.0.is_empty()
    }

    fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    fn check(&self, what: &str, fine: fn(&str) -> bool) -> Result<(), InvalidValue> {
        match self.0.iter().find(|word| *word != "*" && !fine(word)) {
            _ if self.0.is_empty() => Err(format!("{what}: name at least one, or \"*\"").into()),
            Some(word) => Err(format!("{what}: {word:?} is no name that Kubernetes takes").into()),
            None => Ok(()),
        }
    }
}

/// Names and addresses that pods may have beyond the grammar.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExtraSans {
    /// The pods' namespaces.
    pub namespaces: NameList,
    /// The clusters they belong to; default all.
    #[serde(default = "NameList::all")]
    pub clusters: NameList,
    /// DNS names. `*.example.com` takes every name under `example.com`, at any depth, and the wildcard itself, as written;
    /// no other wildcard.
    #[serde(default, deserialize_with = "texts")]
    pub dns_names: Vec<DnsPattern>,
    /// CIDR blocks.
    #[serde(default, deserialize_with = "texts")]
    pub ip_blocks: Vec<CidrBlock>,
}

impl ExtraSans {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        self.namespaces.check("namespaces", names::is_dns_label)?;
        self.clusters.check("clusters", names::is_dns_label)
    }

    pub(super) fn takes_name(&self, name: &str) -> bool {
        self.dns_names.iter().any(|pattern| pattern.takes(name))
    }

    /// True if the name itself is listed.
    pub(super) fn lists_name(&self, name: &str) -> bool {
        self.dns_names.iter().any(|pattern| pattern.0 == name)
    }

    /// True if the address alone is a block that is listed.
    pub(super) fn lists_ip(&self, ip: IpAddr) -> bool {
        let (_, width) = bits(ip);
        self.ip_blocks.iter().any(|block| block.prefix == width && block.contains(ip))
    }

    pub(super) fn takes_ip(&self, ip: IpAddr) -> bool {
        self.ip_blocks.iter().any(|block| block.contains(ip))
    }
}

/// A DNS name, or `*.` and one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPattern(String);

impl DnsPattern {
    /// True if `name` is this name, or under it.
    pub fn takes(&self, name: &str) -> bool {
        let under = |suffix: &str| !name.starts_with('*') && name.ends_with(suffix) && name.len() > suffix.len();
        name == self.0 || self.0.strip_prefix('*').is_some_and(under)
    }
}

impl FromStr for DnsPattern {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let bare = s.strip_prefix("*.").unwrap_or(s);
        if !names::is_san_dns_name(bare) || (bare != s && !bare.contains('.')) {
            return Err(format!("{s:?} is not a DNS name, nor *. and one of two labels or more").into());
        }
        Ok(Self(s.to_owned()))
    }
}

/// A block of addresses, `192.0.2.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CidrBlock {
    address: IpAddr,
    prefix: u8,
}

/// An address as a number, with its family's width.
fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl CidrBlock {
    /// True if `ip` is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ((address, width), (ip, ip_width)) = (bits(self.address), bits(ip));
        // The shift is the width itself for /0, which checked_shr answers with None for IPv6: everything.
        let host = u32::from(width - self.prefix);
        width == ip_width && address.checked_shr(host) == ip.checked_shr(host)
    }
}

impl FromStr for CidrBlock {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let bad = || format!("{s:?} is not a CIDR block such as 192.0.2.0/24, with no bits beyond its prefix");
        let (address, prefix) = s.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let (number, width) = bits(address);
        if prefix > width || number.trailing_zeros().min(u32::from(width)) < u32::from(width - prefix) {
            return Err(bad().into());
        }
        Ok(Self { address, prefix })
    }
}

/// Which service accounts may be which users of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UserRule {
    /// The pods' namespace.
    pub namespace: String,
    /// Their service accounts.
    pub service_accounts: NameList,
    /// The users, each written out: there is no pattern, so that `root` is never included by accident.
    pub users: Vec<String>,
}

impl UserRule {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        label("namespace", &self.namespace)?;
        self.service_accounts.check("serviceAccounts", names::is_dns_subdomain)?;
        self.users.iter().try_for_each(|user| settings::user(user).map(|_| ()).map_err(|e| e.at("users")))
    }
}

/// A namespace.
fn label(what: &str, s: &str) -> Result<(), InvalidValue> {
    if names::is_dns_label(s) { Ok(()) } else { Err(format!("{what}: {s:?} is no name of a namespace").into()) }
}

/// Pods of one namespace in a cluster of another.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossNamespace {
    /// The pods' namespace.
    pub from: String,
    /// The cluster.
    #[serde(deserialize_with = "text")]
    pub to: ClusterName,
    /// The roles that they may have there.
    pub roles: BTreeSet<Role>,
}

impl CrossNamespace {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        label("from", &self.from)
    }
}

/// A host or static pod, which has no service account: its identity and everything that it may request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HostRule {
    /// The name it authenticates with, exactly; never a service account's.
    pub username: String,
    /// Groups that it must have, all of them.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The cluster it is a member or client of.
    #[serde(deserialize_with = "text")]
    pub cluster: ClusterName,
    /// Its roles.
    pub roles: BTreeSet<Role>,
    /// Its DNS names.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its name in a CN, behind the role's prefix; a client's whole CN, its etcd user.
    pub common_name: String,
}

impl HostRule {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        if self.username.is_empty()
            || self.username.starts_with("system:serviceaccount:")
            || self.username == "system:anonymous"
        {
            return Err(format!(
                "username {:?}: a name of a certificate or token, no service account's",
                self.username
            )
            .into());
        }
        if self.roles.is_empty() {
            return Err("roles: name at least one".into());
        }
        settings::user(&self.common_name).map_err(|e| e.at("commonName"))?;
        if let Some(name) = self.dns_names.iter().find(|name| !names::is_san_dns_name(name)) {
            return Err(format!("dnsNames: {name:?} is not a DNS name").into());
        }
        if let Some(ip) = self.ips.iter().find(|ip| !names::is_san_ip(**ip)) {
            return Err(format!("ips: {ip} is no address of one host").into());
        }
        Ok(())
    }

    /// Its names and addresses.
    pub fn sans(&self) -> Sans {
        Sans { dns: self.dns_names.iter().cloned().collect(), ips: self.ips.iter().copied().collect() }
    }
}

/// The callers that may revoke certificates of a standalone signer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoker {
    /// The name that the caller authenticates with, exactly; without it, any caller of the groups.
    #[serde(default)]
    pub username: Option<String>,
    /// Groups that the caller must have, all of them.
    #[serde(default)]
    pub groups: Vec<String>,
}

impl Revoker {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        if self.username.as_ref().is_none_or(String::is_empty) && self.groups.is_empty() {
            return Err("give a username, groups or both: everybody could revoke".into());
        }
        let everybody = |name: &str| name.is_empty() || name == "system:anonymous" || name == "system:authenticated";
        let unauthenticated = |name: &str| everybody(name) || name == "system:unauthenticated";
        match self.groups.iter().chain(&self.username).find(|name| unauthenticated(name)) {
            Some(name) => Err(format!("{name:?} is everybody: name people, or a group of them").into()),
            None => Ok(()),
        }
    }

    /// True if a caller is one.
    pub(super) fn is(&self, username: &str, groups: &[String]) -> bool {
        self.username.as_ref().is_none_or(|name| name == username)
            && self.groups.iter().all(|group| groups.contains(group))
    }
}

/// Where metrics certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MetricsAuthority {
    /// The client authority.
    Client,
    /// One of their own.
    Own,
}

/// Several signer names, one authority.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedAuthority {
    /// The signer name whose authority it is.
    #[serde(deserialize_with = "text")]
    pub authority: SignerName,
    /// The others that it signs for.
    #[serde(deserialize_with = "texts")]
    pub signers: Vec<SignerName>,
}

/// An authority whose key the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthoritySecret {
    /// The authority.
    #[serde(deserialize_with = "text")]
    pub signer: SignerName,
    /// A `kubernetes.io/tls` Secret in the system namespace; intermediates follow the CA in `tls.crt`.
    pub secret_name: String,
}

impl AuthoritySecret {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        if names::is_dns_subdomain(&self.secret_name) {
            Ok(())
        } else {
            Err(format!("secretName: {:?} is no name of a Secret", self.secret_name).into())
        }
    }
}

/// The issuers that the pods of some namespaces may name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerRule {
    /// The pods' namespaces. `*` is for those that no other rule names.
    pub namespaces: NameList,
    /// Values of the annotation `etcd-tls.dev/issuer`, `csr` for none.
    #[serde(deserialize_with = "texts")]
    pub allow: Vec<Issuer>,
}

impl IssuerRule {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        self.namespaces.check("namespaces", names::is_dns_label)?;
        if self.allow.is_empty() { Err("allow: name at least one issuer".into()) } else { Ok(()) }
    }
}

/// Requests that a person decides about, when `approve` has found nothing against them: all those to the CAs of the roles.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManualApproval {
    /// The namespaces: of the pod that asks, or of the cluster that it asks for.
    pub namespaces: NameList,
    /// The clusters; default all.
    #[serde(default = "NameList::all")]
    pub clusters: NameList,
    /// The roles; default all.
    #[serde(default = "ManualApproval::all_roles")]
    pub roles: BTreeSet<Role>,
}

impl ManualApproval {
    fn all_roles() -> BTreeSet<Role> {
        Role::ALL.into_iter().collect()
    }

    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        self.namespaces.check("namespaces", names::is_dns_label)?;
        self.clusters.check("clusters", names::is_dns_label)?;
        if self.roles.is_empty() { Err("roles: name at least one".into()) } else { Ok(()) }
    }
}

/// How an authority's key is replaced. The next CA is published at half of the life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Rollover {
    /// The life of a CA that is made; default 8760h, a year.
    #[serde(deserialize_with = "duration")]
    pub ca_lifetime: Duration,
    /// How long both CAs are published before the client authority changes over without an operator's word; by default
    /// it waits for the word.
    #[serde(deserialize_with = "optional_duration")]
    pub client_overlap: Option<Duration>,
}

impl Default for Rollover {
    fn default() -> Self {
        Self { ca_lifetime: Duration::from_secs(8760 * 3600), client_overlap: None }
    }
}

impl Rollover {
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        if self.ca_lifetime < Duration::from_secs(3600) {
            return Err("rollover.caLifetime: at least 1h".into());
        }
        if self.ca_lifetime > Duration::from_secs(20 * 366 * 24 * 3600) {
            return Err("rollover.caLifetime: at most twenty years".into());
        }
        if self.client_overlap.is_some_and(|overlap| overlap > self.ca_lifetime / 2) {
            return Err("rollover.clientOverlap: at most half of caLifetime, when the next CA is published".into());
        }
        Ok(())
    }
}
