//! The names that others depend on: labels, annotations, signer names, objects, files.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::{
    invalid_value::InvalidValue,
    role::{Domain, Role},
    text::quoted,
};

/// The label that opts a namespace or a pod in or out.
pub const LABEL: &str = "etcd-tls";
/// [`LABEL`]'s value for in.
pub const DYNAMIC: &str = "dynamic";
/// [`LABEL`]'s value for out, on a pod in a labelled namespace.
pub const DISABLED: &str = "disabled";

/// The prefix of every annotation of ours.
pub const ANNOTATION_PREFIX: &str = "etcd-tls.dev/";
/// The label that marks an injected pod, with the value `true`. It is for selectors: people's, that of the PodMonitor for sidecars, and
/// that of `status` and the commands which list pods as it does. What decides on certificates does not select by it or believe it.
pub const INJECTED_LABEL: &str = "etcd-tls.dev/injected";
/// Admission's warnings about an injected pod: a JSON list of strings.
pub const WARNINGS_ANNOTATION: &str = "etcd-tls.dev/warnings";
/// The annotation with the original of a JSON object, from `inject` for `uninject`. It is large and no setting, so
/// it has a prefix of its own, of which controllers keep nothing.
pub const ORIGINAL_ANNOTATION: &str = "inject.etcd-tls.dev/original";
/// The annotation of which each new value asks for new certificates; see [`crate::renew::Renew`].
pub const RENEW_ANNOTATION: &str = "etcd-tls.dev/renew";
/// CSR annotation: the digest of the bundle that etcd was seen to have loaded.
pub const TRUSTS_ANNOTATION: &str = "etcd-tls.dev/trusts";
/// On an injected pod: the place of its admission in a trace, a `traceparent` of W3C Trace Context. Admission writes it where traces are
/// exported.
pub const TRACE_ANNOTATION: &str = "etcd-tls.dev/traceparent";
/// On a CertificateRequest of cert-manager: the name of the pod that asks.
pub const POD_ANNOTATION: &str = "etcd-tls.dev/pod";

/// The annotation of a static pod's mirror, which stands in the API for what kubelet runs from a file.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The condition by which `approve` says that nothing speaks against a request that policy leaves to a person.
pub const REVIEWED_CONDITION: &str = "EtcdTlsReviewed";

/// The domain that ends our signer names' first part.
pub const SIGNER_DOMAIN: &str = "etcd-tls.dev";

/// The injected init container.
pub const INIT_CONTAINER: &str = "etcd-tls-init";
/// The injected native sidecar.
pub const SIDECAR_CONTAINER: &str = "etcd-tls-sidecar";
/// The container that a pod's settings speak of when they name none.
pub const ETCD_CONTAINER: &str = "etcd";
/// The in-memory emptyDir with keys and certificates.
pub const VOLUME: &str = "etcd-tls";
/// With the issuer `pod-certificate`, [`VOLUME`] is projected by kubelet, and this in-memory emptyDir holds the sidecar's own state.
pub const STATE_VOLUME: &str = "etcd-tls-state";
/// The volume with the trust ConfigMap.
pub const TRUST_VOLUME: &str = "etcd-tls-trust";
/// The volume with the injected containers' own projected token.
pub const TOKEN_VOLUME: &str = "etcd-tls-token";

/// Where the etcd container finds its files unless the pod says otherwise.
pub const DEFAULT_MOUNT_PATH: &str = "/etc/etcd/tls";
/// The mount path of [`VOLUME`] in the injected containers, independent of the etcd container's.
pub const CERTS_MOUNT_PATH: &str = "/var/run/etcd-tls/certs";
/// Where the sidecar sees [`VOLUME`] with the issuer `pod-certificate`; its own state is then at [`CERTS_MOUNT_PATH`].
pub const PROJECTED_MOUNT_PATH: &str = "/var/run/etcd-tls/projected";
/// Where the injected containers see [`TRUST_VOLUME`].
pub const TRUST_MOUNT_PATH: &str = "/var/run/etcd-tls/trust";
/// Where a pod's token, namespace and the API server's CA are; Kubernetes' own default.
pub const TOKEN_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// In [`TOKEN_MOUNT_PATH`]: the value of [`RENEW_ANNOTATION`], by the downward API.
pub const RENEW_FILE: &str = "renew";
/// The sidecar's `/live`, `/ready` and `/metrics` unless the pod says otherwise.
pub const DEFAULT_ADMIN_PORT: u16 = 9179;
/// The etcd cluster's name unless the pod says otherwise.
pub const DEFAULT_CLUSTER: &str = "etcd";

/// The group that owns the keys; the injected containers run as it and the pod gets it in `supplementalGroups`.
pub const FILES_GID: u32 = 52379;
/// The user of the injected containers where etcd's own user is unknown or root.
pub const DEFAULT_UID: u32 = 65532;

/// A role's certificate chain, leaf first.
pub const CERT_FILE: &str = "tls.crt";
/// A role's private key, PKCS#8 PEM.
pub const KEY_FILE: &str = "tls.key";
/// The bundle a role's peers are verified against.
pub const CA_FILE: &str = "ca.crt";
/// The revocation list a role's peers are looked up in; always there, since etcd refuses everybody without it.
pub const CRL_FILE: &str = "ca.crl";

/// Beside the roles' directories: what `reload: probe` needs, see [`etcd_tls_sidecar::probe`].
pub const PROBE_DIR: &str = "probe";
/// The program in [`PROBE_DIR`] that is etcd's liveness probe.
pub const PROBE_PROGRAM: &str = "etcd-tls-probe";

/// The namespace of approver, signer, webhook, policy and CA Secrets.
pub const SYSTEM_NAMESPACE: &str = "etcd-tls-system";
/// The policy ConfigMap in [`SYSTEM_NAMESPACE`].
pub const POLICY_CONFIG_MAP: &str = "etcd-tls-policy";
/// The key of the policy ConfigMap.
pub const POLICY_KEY: &str = "policy.yaml";

/// The trust ConfigMap of `cluster`, in the pod's namespace.
pub fn trust_config_map(cluster: &str) -> String {
    format!("etcd-tls-trust-{cluster}")
}

/// The name of a CertificateSigningRequest: `etcd-tls-<pod uid>-<role>-<digest of the public key>`, so that a restarted
/// sidecar finds its own request again.
pub fn csr_name(uid: &str, role: Role, key_digest: &str) -> String {
    format!("etcd-tls-{uid}-{role}-{key_digest}")
}

/// `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName {
    /// The cluster's namespace; a DNS label.
    pub namespace: String,
    /// Its name within the namespace; a DNS label.
    pub name: String,
}

impl ClusterName {
    /// The signer name of the cluster's authority for `domain`.
    pub fn signer(&self, domain: Domain) -> SignerName {
        SignerName { domain, namespace: self.namespace.clone(), cluster: self.name.clone() }
    }

    /// The name of the ConfigMap in `namespace` that holds the cluster's trust bundles. For a cluster in another namespace
    /// it has that namespace's name and a dot, which no cluster's name has.
    pub fn trust_config_map(&self, namespace: &str) -> String {
        if self.namespace == namespace {
            trust_config_map(&self.name)
        } else {
            trust_config_map(&format!("{}.{}", self.namespace, self.name))
        }
    }

    /// The cluster whose trust bundles the ConfigMap `config_map` in `namespace` holds; `None`: it is no trust ConfigMap.
    pub fn of_trust_config_map(namespace: &str, config_map: &str) -> Option<Self> {
        let rest = config_map.strip_prefix(&trust_config_map(""))?;
        let (home, name) = rest.split_once('.').unwrap_or((namespace, rest));
        (is_dns_label(home) && is_dns_label(name)).then(|| Self { namespace: home.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ClusterName {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        match s.split_once('/') {
            Some((namespace, name)) if is_dns_label(namespace) && is_dns_label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{} is not of the form <namespace>/<cluster>", quoted(s)).into()),
        }
    }
}

/// `<domain>.etcd-tls.dev/<namespace>.<cluster>`: the certificate authority that a request is for.
///
/// A namespace is a DNS label (RFC 1123) and has no dot, so the first dot ends it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignerName {
    /// The field of trust.
    pub domain: Domain,
    /// The cluster's namespace.
    pub namespace: String,
    /// The etcd cluster's name within the namespace; a DNS label.
    pub cluster: String,
}

impl SignerName {
    /// The cluster whose authority it is.
    pub fn cluster_name(&self) -> ClusterName {
        ClusterName { namespace: self.namespace.clone(), name: self.cluster.clone() }
    }
}

/// Why a string is no signer name of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerNameError {
    /// Another project's signer: to be left alone.
    #[error("{0:?} is not a signer of etcd-tls")]
    Foreign(String),
    /// Under our domain, but not of our form.
    #[error("{0:?} is not of the form <peer|client|metrics>.etcd-tls.dev/<namespace>.<cluster>")]
    Malformed(String),
}

impl FromStr for SignerName {
    type Err = SignerNameError;

    fn from_str(s: &str) -> Result<Self, SignerNameError> {
        let foreign = || SignerNameError::Foreign(s.to_owned());
        let malformed = || SignerNameError::Malformed(s.to_owned());
        let (host, path) = s.split_once('/').ok_or_else(foreign)?;
        if host != SIGNER_DOMAIN && !host.ends_with(".etcd-tls.dev") {
            return Err(foreign());
        }
        let (word, rest) = host.split_once('.').ok_or_else(malformed)?;
        let domain: Domain = word.parse().map_err(|_| malformed())?;
        let (namespace, cluster) = path.split_once('.').ok_or_else(malformed)?;
        if rest != SIGNER_DOMAIN || !is_dns_label(namespace) || !is_dns_label(cluster) {
            return Err(malformed());
        }
        Ok(Self { domain, namespace: namespace.to_owned(), cluster: cluster.to_owned() })
    }
}

impl fmt::Display for SignerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{SIGNER_DOMAIN}/{}.{}", self.domain, self.namespace, self.cluster)
    }
}

/// Hexadecimal digits of the digest that ends a name which was cut to fit into a CN: 96 bits, so that nobody finds a second name of
/// the same CN.
pub const CUT_DIGITS: usize = 24;

/// True if a name ends as one that was cut does: with a hyphen and [`CUT_DIGITS`] digits.
pub fn is_cut(name: &str) -> bool {
    let digest = name.rsplit_once('-').map(|(_, digest)| digest.as_bytes()).unwrap_or_default();
    digest.len() == CUT_DIGITS && digest.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// True if `s` is a DNS label as Kubernetes means it (RFC 1123: at most 63 of `a-z 0-9 -`, no hyphen at either end).
pub fn is_dns_label(s: &str) -> bool {
    let bytes = s.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// True if `s` is a DNS subdomain as Kubernetes means it (RFC 1123: labels joined by dots, at most 253 characters).
pub fn is_dns_subdomain(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(is_dns_label)
}

/// True if `s` may stand in a certificate as a dNSName: a DNS subdomain whose last label is not a number, so that nobody
/// takes it for an IP address.
pub fn is_san_dns_name(s: &str) -> bool {
    is_dns_subdomain(s) && s.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()))
}

/// True if `ip` may stand in a certificate: neither unspecified, multicast nor broadcast, and no IPv4 address in IPv6's
/// clothes, which Go reads as the IPv4 address.
pub fn is_san_ip(ip: IpAddr) -> bool {
    let odd = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !(odd || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signer_names_are_read_back() {
        let name: SignerName = "peer.etcd-tls.dev/prod.etcd".parse().unwrap();
        assert_eq!((name.domain, name.namespace.as_str(), name.cluster.as_str()), (Domain::Peer, "prod", "etcd"));
        assert_eq!(name.to_string(), "peer.etcd-tls.dev/prod.etcd");
    }

    #[test]
    fn siblings_and_near_misses_are_not_ours() {
        for foreign in ["etcd-tls.example.com/pod2", "kubernetes.io/kubelet-serving", "x", "peer.xetcd-tls.dev/a.b"] {
            assert!(matches!(foreign.parse::<SignerName>(), Err(SignerNameError::Foreign(_))), "{foreign}");
        }
        for malformed in [
            "etcd-tls.dev/a.b",
            "peer.x.etcd-tls.dev/a.b",
            "other.etcd-tls.dev/a.b",
            "peer.etcd-tls.dev/a",
            "peer.etcd-tls.dev/a.b.c",
            "peer.etcd-tls.dev/A.b",
            "peer.etcd-tls.dev/.b",
        ] {
            assert!(matches!(malformed.parse::<SignerName>(), Err(SignerNameError::Malformed(_))), "{malformed}");
        }
    }

    fn etcd() -> ClusterName {
        ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() }
    }

    #[test]
    fn a_cluster_is_a_namespace_and_a_name() {
        assert_eq!("prod/etcd".parse(), Ok(etcd()));
        assert_eq!(etcd().to_string(), "prod/etcd");
        for bad in ["", "prod", "prod/", "/etcd", "prod/etcd/x", "Prod/etcd", "prod/a.b", "prod/etcd "] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_name_of_a_trust_config_map_is_read_back() {
        assert_eq!(etcd().trust_config_map("prod"), "etcd-tls-trust-etcd");
        assert_eq!(etcd().trust_config_map("web"), "etcd-tls-trust-prod.etcd");
        for namespace in ["prod", "web"] {
            let name = etcd().trust_config_map(namespace);
            assert_eq!(ClusterName::of_trust_config_map(namespace, &name), Some(etcd()));
        }
        for other in
            ["kube-root-ca.crt", "etcd-tls-trust-", "etcd-tls-trust-a.b.c", "etcd-tls-trust-A", "etcd-tls-trust"]
        {
            assert_eq!(ClusterName::of_trust_config_map("prod", other), None, "{other}");
        }
    }
}
