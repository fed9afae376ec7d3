//! The members of a cluster, also those outside of its namespace.

use std::collections::BTreeSet;

use etcd_tls_contract::names::ClusterName;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

use crate::{
    controller::client::within,
    operator::{Refused, Right},
    status,
};

/// Pods that may be members, and what of the cluster cannot be seen.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// The pods of the cluster's namespace that have opted in, and those that the signer named.
    pub(super) pods: Vec<Pod>,
    /// Members in other namespaces that cannot be read, and why.
    pub(super) unread: Vec<String>,
    /// The members on hosts, of which no pod tells.
    pub(super) hosts: Vec<String>,
}

/// Looks at the pods of `cluster`: those of its namespace, and those `elsewhere` that the signer named
/// ([`super::Report::elsewhere`]). A pod that only says that it is of the cluster is none.
///
/// # Errors
/// The pods of the namespace cannot be listed.
pub(super) async fn look(
    client: &Client,
    cluster: &ClusterName,
    elsewhere: &BTreeSet<String>,
) -> Result<Around, Refused> {
    let mut around = Around { pods: status::opted_in(client, Some(&cluster.namespace)).await?, ..Around::default() };
    for member in elsewhere {
        let Some((namespace, name)) = member.strip_prefix("pod ").and_then(|pod| pod.split_once('/')) else {
            around.hosts.push(member.clone());
            continue;
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        match within(api.get_opt(name)).await {
            Ok(pod) => around.pods.extend(pod),
            Err(error) => {
                let refused = Right::new("get", "pods", Some(namespace)).refused(error);
                around.unread.push(format!("{member}: {refused}; {}", refused.right.question()));
            }
        }
    }
    Ok(around)
}
