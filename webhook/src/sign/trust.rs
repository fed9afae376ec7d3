//! The content of a trust ConfigMap. Pure. [`super::repair`] restores it.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use etcd_tls_contract::{crl::Crl, role::Domain};
use k8s_openapi::{ByteString, api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::marks::{MANAGED_LABEL, UID_ANNOTATION};
use crate::{revoke, rollover::status_annotation};

/// The wanted content of a ConfigMap; other fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Desired {
    /// PEM, by key.
    pub(super) data: BTreeMap<&'static str, String>,
    /// Revocation lists, DER, by key.
    pub(super) lists: BTreeMap<&'static str, Vec<u8>>,
    /// JSON, by annotation.
    pub(super) annotations: BTreeMap<String, String>,
}

impl Desired {
    /// For the namespace of this uid.
    pub(super) fn new(namespace_uid: &str) -> Self {
        Self {
            data: BTreeMap::new(),
            lists: BTreeMap::new(),
            annotations: BTreeMap::from([(UID_ANNOTATION.to_owned(), namespace_uid.to_owned())]),
        }
    }

    /// The digest that is kept in its place: the whole is some KiB for each cluster.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Publishes a bundle.
    pub(super) fn publish(&mut self, domain: Domain, pem: String) {
        self.data.insert(domain.trust_key(), pem);
    }

    /// Publishes a revocation list, where the domain has one.
    pub(super) fn publish_list(&mut self, domain: Domain, list: &Crl) {
        if let Some(key) = domain.crl_key() {
            self.lists.insert(key, list.der().to_vec());
        }
    }

    /// Answers a request to revoke.
    pub(super) fn answer(&mut self, domain: Domain, report: &revoke::Report) {
        if let Ok(text) = serde_json::to_string(report) {
            self.annotations.insert(revoke::status_annotation(domain), text);
        }
    }

    /// Says how an authority stands: JSON of a [`Report`](crate::rollover::Report).
    pub(super) fn say(&mut self, domain: Domain, report: &str) {
        self.annotations.insert(status_annotation(domain), report.to_owned());
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
            binary_data: (!self.lists.is_empty())
                .then(|| self.lists.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.clone()))).collect()),
            ..ConfigMap::default()
        }
    }
}
