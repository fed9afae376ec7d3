//! The operator's policy: ConfigMap `etcd-tls-policy`, key `policy.yaml`, strictly parsed.

/// What is allowed beyond the grammar, and within which bounds. [`Default`] is the policy of an empty file.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// The cluster's DNS domain, `cluster.local` by default.
    pub cluster_domain: String,
    // H3 designs the rest.
}

impl Policy {
    /// Parses the policy file; an empty one is the default policy.
    ///
    /// # Errors
    /// Unknown fields, wrong types, values out of bounds: what and where, for the operator.
    pub fn parse(yaml: &str) -> Result<Self, PolicyError> {
        let _ = yaml;
        todo!()
    }
}

impl Default for Policy {
    fn default() -> Self {
        todo!()
    }
}

/// A policy that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy.yaml: {0}")]
pub struct PolicyError(pub String);
