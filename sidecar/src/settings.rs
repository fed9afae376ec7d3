//! What a user says of a pod: the `etcd-tls.dev/…` annotations, parsed into types whose invalid states do not exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::{names::SignerName, role::Role};

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

impl Settings {
    /// Reads every `etcd-tls.dev/…` annotation; annotations of others are not looked at.
    ///
    /// # Errors
    /// Every problem at once: unknown keys under our prefix, values that do not parse, combinations that cannot be.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let _ = annotations;
        todo!()
    }
}

/// Reads a duration: whole numbers with the units h, m, s in that order (`24h`, `1h30m`, `90s`), nothing else.
///
/// # Errors
/// What is wrong with it.
pub fn parse_duration(s: &str) -> Result<Duration, String> {
    let _ = s;
    todo!()
}

impl std::str::FromStr for Issuer {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let _ = s;
        todo!()
    }
}

impl std::fmt::Display for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        todo!()
    }
}

impl std::str::FromStr for KeyAlgorithm {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let _ = s;
        todo!()
    }
}

impl std::fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        todo!()
    }
}

impl std::str::FromStr for KeyRotation {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let _ = s;
        todo!()
    }
}

impl std::fmt::Display for KeyRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        todo!()
    }
}

impl std::str::FromStr for Reload {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let _ = s;
        todo!()
    }
}

impl std::fmt::Display for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        todo!()
    }
}
