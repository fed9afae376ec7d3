//! The name of an etcd cluster, as people write it.

use std::str::FromStr;

use crate::names;

/// `<namespace>/<cluster>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName {
    /// The cluster's namespace.
    pub namespace: String,
    /// Its name within the namespace.
    pub cluster: String,
}

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((namespace, cluster)) if names::is_dns_label(namespace) && names::is_dns_label(cluster) => {
                Ok(Self { namespace: namespace.to_owned(), cluster: cluster.to_owned() })
            }
            _ => Err(format!("{s:?} is not <namespace>/<cluster>")),
        }
    }
}
