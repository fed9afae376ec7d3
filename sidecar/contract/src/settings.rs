//! The settings of a pod: the `etcd-tls.dev/…` annotations, parsed into types that have no invalid values.

mod issuer;
mod kubelet;
mod options;
mod reload;
mod resources;
#[cfg(test)]
mod tests;
mod trust;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::values::{container, label, lifetime, listener, log_level, mount_path, port, switch};
pub use self::{
    issuer::{Issuer, IssuerRef},
    kubelet::{key_type, max_expiration},
    options::OptionsMode,
    reload::{Reload, SIGNALS},
    resources::{Quantity, Resources},
    trust::{Condition, Requirement, Trust},
    values::{CLOSED_DIRECTORIES, FILES, LOG_LEVELS, OUR_DIRECTORIES, SHARED_DIRECTORIES, SYSTEM_DIRECTORIES, user},
};
use crate::{
    endpoint::Endpoint,
    invalid_value::InvalidValue,
    key::{KeyAlgorithm, KeyRotation},
    names::{self, ClusterName, SignerName},
    role::Role,
    san::Sans,
    text::list,
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
    /// `…/resources` of the injected containers; unnamed ones have the webhook's default.
    pub resources: Resources,
    /// `…/log-level` of the injected containers; `None` means their default.
    pub log_level: Option<String>,
    /// `…/options`: how etcd and etcdctl get the paths of their files.
    pub options: OptionsMode,
    /// `…/client-url`: where the sidecar reaches its own etcd's client port; `None` means as the pod's manifest says.
    pub client_url: Option<Endpoint>,
    /// `…/peer-url`: the same of the peer port.
    pub peer_url: Option<Endpoint>,
    /// `…/revocation`: whether etcd gets the options of the revocation lists.
    pub revocation: bool,
    /// `…/trust`: the bundle of an issuer of others; `None` means the trust ConfigMap.
    pub trust: Option<Trust>,
}

/// An error in a pod's annotations: which annotation, what is wrong, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {message}")]
pub struct Problem {
    /// The annotation's full key.
    pub annotation: String,
    /// The fault and a valid form.
    pub message: String,
}

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
                problems.push(Problem { annotation: annotation.clone(), message: message.to_string() });
            }
        }
        settings.combinations(&mut problems);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    /// One annotation's value, by its key without the prefix.
    fn set(&mut self, key: &str, value: &str) -> Result<(), InvalidValue> {
        // Anything may stand there, also after admission: it must deny no request.
        if value.len() > MAX_VALUE && key != "renew" {
            return Err(format!("is {} bytes long; at most {MAX_VALUE} are taken", value.len()).into());
        }
        match key {
            "roles" => {
                self.roles =
                    list(value, |word| word.parse::<Role>().map_err(|e| e.to_string().into()))?.into_iter().collect();
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
            "resources" => self.resources = value.parse()?,
            "log-level" => self.log_level = Some(log_level(value)?),
            // Admission's warnings, its place in a trace, and a value that may change while the pod runs: not settings.
            "warnings" | "traceparent" | "renew" => {}
            "options" => self.options = value.parse()?,
            "client-url" => self.client_url = Some(listener(value)?),
            "peer-url" => self.peer_url = Some(listener(value)?),
            "revocation" => self.revocation = switch(value)?,
            "trust" => self.trust = Some(value.parse()?),
            "trusts" => {
                return Err(
                    "belongs on a CertificateSigningRequest, where the sidecar writes it; remove it from the pod"
                        .into(),
                );
            }
            _ => return Err(format!("is not known; known are {}", KEYS.join(", ")).into()),
        }
        Ok(())
    }

    /// Checks the combinations of values.
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
        if matches!(&self.issuer, Issuer::Foreign(signer) if signer == issuer::KUBE_CLIENT) && self.runs_etcd() {
            problem(
                "issuer",
                format!(
                    "{} signs certificates of clients alone; a member needs another issuer. Its clients may have roles client \
                     and metrics of it",
                    issuer::KUBE_CLIENT
                ),
            );
        }
        if self.trust.is_some() && self.is_ours() {
            problem(
                "trust",
                format!(
                    "is for the issuers of others; those of {} publish their bundle and say with each certificate which \
                     one is in force; remove the annotation",
                    self.issuer
                ),
            );
        }
        if self.trust == Some(Trust::Issuer)
            && let Issuer::Foreign(signer) = &self.issuer
        {
            problem(
                "trust",
                format!(
                    "issuer is the CA in the issuer's answer, and a CertificateSigningRequest to {signer} is answered \
                     without one; write configmap/<name>, clustertrustbundle/<name> or clustertrustbundle-signer/{signer}"
                ),
            );
        }
        if self.is_of_kubelet() {
            for (key, message) in kubelet::obstacles(self) {
                problem(key, message);
            }
        }
        if self.user.is_some() && !self.roles.contains(&Role::Client) {
            problem("user", "is the CN of a client certificate, but the pod's roles do not hold client".to_owned());
        }
    }

    /// True if the pod runs an etcd member: it has the peer or the server role.
    pub fn runs_etcd(&self) -> bool {
        self.roles.contains(&Role::Peer) || self.roles.contains(&Role::Server)
    }

    /// `spec.signerName` of the request, or the name of cert-manager's issuer, for `role` of a pod in `namespace`.
    pub fn signer_name(&self, role: Role, namespace: &str) -> String {
        match &self.issuer {
            Issuer::Foreign(signer) => signer.clone(),
            Issuer::CertManager(issuer) => issuer.signer_name(namespace),
            Issuer::Csr | Issuer::Ours(_) | Issuer::PodCertificate => {
                self.home(namespace).signer(role.domain()).to_string()
            }
        }
    }

    /// Our signer of `role`, or `None` where the issuer is another project's.
    pub fn our_signer(&self, role: Role, namespace: &str) -> Option<SignerName> {
        self.is_ours().then(|| self.home(namespace).signer(role.domain()))
    }

    /// True if approver and signer of ours serve this pod.
    pub const fn is_ours(&self) -> bool {
        matches!(self.issuer, Issuer::Csr | Issuer::Ours(_) | Issuer::PodCertificate)
    }

    /// True if kubelet requests and renews the certificates, and the sidecar only watches them.
    pub const fn is_of_kubelet(&self) -> bool {
        matches!(self.issuer, Issuer::PodCertificate)
    }

    /// The etcd cluster that a pod in `namespace` belongs to.
    pub fn home(&self, namespace: &str) -> ClusterName {
        match &self.issuer {
            Issuer::Ours(signer) => signer.cluster_name(),
            Issuer::Csr | Issuer::Foreign(_) | Issuer::CertManager(_) | Issuer::PodCertificate => {
                ClusterName { namespace: namespace.to_owned(), name: self.cluster.clone() }
            }
        }
    }

    /// The trust ConfigMap in the pod's own `namespace`.
    pub fn trust_config_map(&self, namespace: &str) -> String {
        self.home(namespace).trust_config_map(namespace)
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
            resources: Resources::default(),
            log_level: None,
            options: OptionsMode::Auto,
            client_url: None,
            peer_url: None,
            trust: None,
            revocation: true,
        }
    }
}

/// Every key under our prefix that a pod may carry.
pub const KEYS: [&str; 20] = [
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
    "resources",
    "log-level",
    "options",
    "client-url",
    "peer-url",
    "revocation",
    "trust",
    "renew",
];
