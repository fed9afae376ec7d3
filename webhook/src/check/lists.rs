//! Checks for CAs that may sign no revocation list: certificates of such a CA cannot be revoked.

use etcd_tls_contract::names::ClusterName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::ListParams};

use super::finding::{Finding, unseen};
use crate::{
    controller::client::{ApiServerError, within},
    operator::Right,
    sign::marks::MANAGED_LABEL,
    status::{State, unlisted},
};

const SEE: &str = "docs/check.md#revocation-lists";
const SUBJECT: &str = "revocation lists";
/// Trust ConfigMaps of one answer: each may hold two full lists.
const PAGE: u32 = 50;

/// Looks at the trust ConfigMap of each cluster.
pub(super) async fn look(client: &Client) -> Vec<Finding> {
    match each(client).await {
        Ok((0, _)) => Vec::new(),
        Ok((clusters, findings)) if findings.is_empty() => {
            vec![Finding::ok(SUBJECT, format!("every CA of {clusters} clusters may sign one"), SEE)]
        }
        Ok((_, findings)) => findings,
        Err(error) => vec![unseen(SUBJECT, Right::new("list", "configmaps", None), error, SEE)],
    }
}

/// How many clusters there are, and a finding for each that has no list.
async fn each(client: &Client) -> Result<(usize, Vec<Finding>), ApiServerError> {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let mut params = ListParams::default().labels(&format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1)).limit(PAGE);
    let (mut clusters, mut findings) = (0, Vec::new());
    loop {
        let page = within(api.list(&params)).await?;
        for trust in &page.items {
            let Some(cluster) = home(trust) else { continue };
            clusters += 1;
            findings.extend(judge(&cluster, trust));
        }
        let Some(more) = page.metadata.continue_.filter(|token| !token.is_empty()) else {
            return Ok((clusters, findings));
        };
        params = params.continue_token(&more);
    }
}

/// The cluster of a trust ConfigMap in the cluster's own namespace: those in others say the same.
fn home(trust: &ConfigMap) -> Option<ClusterName> {
    let (namespace, name) = (trust.metadata.namespace.as_deref()?, trust.metadata.name.as_deref()?);
    ClusterName::of_trust_config_map(namespace, name).filter(|cluster| cluster.namespace == namespace)
}

fn judge(cluster: &ClusterName, trust: &ConfigMap) -> Option<Finding> {
    let domains: Vec<String> = unlisted(trust).into_iter().map(|domain| domain.to_string()).collect();
    let what = domains.join(" and ");
    (!domains.is_empty()).then(|| {
        Finding::bad(
            State::Attention,
            SUBJECT,
            format!(
                "{what} certificates of {}/{} cannot be revoked: the CA may not sign a list, as its certificate has key usages \
                 without cRLSign",
                cluster.namespace, cluster.name
            ),
            "give the signer a CA that has cRLSign, or one without key usages",
            SEE,
        )
    })
}
