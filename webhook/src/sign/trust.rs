//! The trust ConfigMaps: what stands in one. Pure. [`super::repair`] makes one what it shall be.

use std::collections::BTreeMap;

use etcd_tls_contract::{names, role::Domain};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{
    ClusterName,
    authorities::{MANAGED_LABEL, UID_ANNOTATION},
};
use crate::rollover::{Report, status_annotation};

/// What a ConfigMap shall say; what is not in here stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Desired {
    /// PEM, by key.
    pub(super) data: BTreeMap<&'static str, String>,
    /// JSON, by annotation.
    pub(super) annotations: BTreeMap<String, String>,
}

/// The name of the ConfigMap of `cluster` in `namespace`, as [`etcd_tls_contract::settings::Settings::trust_config_map`]
/// has it.
pub(super) fn config_map_name(namespace: &str, cluster: &ClusterName) -> String {
    if cluster.namespace == namespace {
        names::trust_config_map(&cluster.name)
    } else {
        names::trust_config_map(&format!("{}.{}", cluster.namespace, cluster.name))
    }
}

/// The cluster whose trust the ConfigMap of this name in `namespace` holds; `None`: it is none of ours.
pub(super) fn cluster_of(namespace: &str, config_map: &str) -> Option<ClusterName> {
    let rest = config_map.strip_prefix(&names::trust_config_map(""))?;
    let (home, name) = rest.split_once('.').unwrap_or((namespace, rest));
    (names::is_dns_label(home) && names::is_dns_label(name))
        .then(|| ClusterName { namespace: home.to_owned(), name: name.to_owned() })
}

impl Desired {
    /// For the namespace of this uid.
    pub(super) fn new(namespace_uid: &str) -> Self {
        Self {
            data: BTreeMap::new(),
            annotations: BTreeMap::from([(UID_ANNOTATION.to_owned(), namespace_uid.to_owned())]),
        }
    }

    /// Publishes a bundle.
    pub(super) fn publish(&mut self, domain: Domain, pem: String) {
        self.data.insert(domain.trust_key(), pem);
    }

    /// Says how an authority stands.
    pub(super) fn say(&mut self, domain: Domain, report: &Report) {
        if let Ok(text) = serde_json::to_string(report) {
            self.annotations.insert(status_annotation(domain), text);
        }
    }

    /// A new ConfigMap.
    pub(super) fn object(&self, name: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([(MANAGED_LABEL.0.to_owned(), MANAGED_LABEL.1.to_owned())])),
                annotations: Some(self.annotations.clone()),
                ..ObjectMeta::default()
            },
            data: Some(self.data.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()),
            ..ConfigMap::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_are_read_back() {
        let here = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        assert_eq!(config_map_name("prod", &here), "etcd-tls-trust-etcd");
        assert_eq!(config_map_name("web", &here), "etcd-tls-trust-prod.etcd");
        for namespace in ["prod", "web"] {
            assert_eq!(cluster_of(namespace, &config_map_name(namespace, &here)), Some(here.clone()));
        }
        for other in
            ["kube-root-ca.crt", "etcd-tls-trust-", "etcd-tls-trust-a.b.c", "etcd-tls-trust-A", "etcd-tls-trust"]
        {
            assert_eq!(cluster_of("prod", other), None, "{other}");
        }
    }
}
