//! Checks of the CAs of all clusters, by their trust ConfigMaps: those that may sign no revocation list, since their certificates
//! cannot be revoked, and how many there are.

use etcd_tls_contract::{
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::ListParams};

use super::finding::{Finding, unseen};
use crate::{
    controller::client::{ApiServerError, within},
    operator::Right,
    rollover::status_annotation,
    sign::marks::MANAGED_LABEL,
    status::{State, unlisted},
};

const SEE: &str = "docs/check.md#revocation-lists";
const SEE_ROOM: &str = "docs/check.md#authorities";
const SUBJECT: &str = "revocation lists";
/// Trust ConfigMaps of one answer: each may hold two full lists.
const PAGE: u32 = 50;

/// What the trust ConfigMaps show.
#[derive(Default)]
struct All {
    clusters: usize,
    authorities: usize,
    /// One for each cluster that has no list.
    unlisted: Vec<Finding>,
}

/// Looks at the trust ConfigMap of each cluster. `bound`: how many CAs the policy allows, where it could be read.
pub(super) async fn look(client: &Client, bound: Option<u32>) -> Vec<Finding> {
    match each(client).await {
        Ok(All { clusters: 0, .. }) => Vec::new(),
        Ok(All { clusters, authorities, mut unlisted }) => {
            if unlisted.is_empty() {
                let reason = format!("every CA of {clusters} clusters may sign one");
                unlisted.push(Finding::ok(SUBJECT, reason, SEE));
            }
            unlisted.extend(bound.map(|bound| room(authorities, bound)));
            unlisted
        }
        Err(error) => vec![unseen(SUBJECT, Right::new("list", "configmaps", None), error, SEE)],
    }
}

/// Whether there is room for more CAs.
fn room(authorities: usize, bound: u32) -> Finding {
    let allowed = usize::try_from(bound).unwrap_or(usize::MAX);
    let count = format!("there are {authorities} CAs of clusters; the policy allows {bound} in all namespaces");
    if authorities <= allowed / 4 * 3 {
        return Finding::ok("authorities", count, SEE_ROOM);
    }
    let lack = if authorities < allowed { "a namespace gets fewer than else" } else { "a new cluster gets none" };
    let next = format!(
        "kubectl -n {} edit configmap {}   # raise authoritiesInAll, and with it the memory limit of etcd-tls-sign",
        names::SYSTEM_NAMESPACE,
        names::POLICY_CONFIG_MAP
    );
    Finding::bad(State::Attention, "authorities", format!("{count}: {lack}"), next, SEE_ROOM)
}

/// All of them, page by page.
async fn each(client: &Client) -> Result<All, ApiServerError> {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let mut params = ListParams::default().labels(&format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1)).limit(PAGE);
    let mut all = All::default();
    loop {
        let page = within(api.list(&params)).await?;
        for trust in &page.items {
            let Some(cluster) = home(trust) else { continue };
            all.clusters += 1;
            // Where it is another domain's by policy, its report is there.
            let reports = |domain: &Domain| {
                trust.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(&status_annotation(*domain)))
            };
            all.authorities += Domain::ALL.iter().filter(|domain| reports(domain)).count();
            all.unlisted.extend(judge(&cluster, trust));
        }
        let Some(more) = page.metadata.continue_.filter(|token| !token.is_empty()) else { return Ok(all) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_three_quarters_are_taken() {
        let of = |authorities, bound| {
            let finding = room(authorities, bound);
            (finding.state, finding.reason)
        };
        assert_eq!(of(9_000, 12_000).0, State::Ok);
        let (state, reason) = of(9_001, 12_000);
        assert!(
            state == State::Attention && reason.contains("there are 9001 CAs") && reason.contains("fewer"),
            "{reason}"
        );
        // Existing CAs stay, as after a change of the bound.
        assert!(of(9_001, 8_000).1.ends_with("a new cluster gets none"), "{:?}", of(9_001, 8_000));
    }
}
