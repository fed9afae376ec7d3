//! The name of an etcd cluster, as people write it.

use std::{fmt, str::FromStr};

use crate::{
    invalid_value::InvalidValue,
    names::{self, SignerName},
    role::Domain,
    text::quoted,
};

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
            names::trust_config_map(&self.name)
        } else {
            names::trust_config_map(&format!("{}.{}", self.namespace, self.name))
        }
    }

    /// The cluster whose trust bundles the ConfigMap `config_map` in `namespace` holds; `None`: it is no trust ConfigMap.
    pub fn of_trust_config_map(namespace: &str, config_map: &str) -> Option<Self> {
        let rest = config_map.strip_prefix(&names::trust_config_map(""))?;
        let (home, name) = rest.split_once('.').unwrap_or((namespace, rest));
        (names::is_dns_label(home) && names::is_dns_label(name))
            .then(|| Self { namespace: home.to_owned(), name: name.to_owned() })
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
            Some((namespace, name)) if names::is_dns_label(namespace) && names::is_dns_label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{} is not of the form <namespace>/<cluster>", quoted(s)).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
