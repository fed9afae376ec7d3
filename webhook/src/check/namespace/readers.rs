//! The right of the namespace's service accounts to watch their trust ConfigMaps.

use std::collections::{BTreeMap, BTreeSet};

use etcd_tls_contract::{
    names::{self, DEFAULT_CLUSTER},
    settings::Settings,
};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::Client;

use super::super::{
    accounts,
    finding::{Finding, unseen},
};
use crate::{operator::Right, status::State};

const SEE: &str = "docs/revocation.md#the-right-to-watch";
const SUBJECT: &str = "rolebinding etcd-tls-trust-reader";

/// Asks for each service account and the ConfigMap of its pods' cluster; `opted_in`: the namespace has, so that its account `default`
/// and cluster `etcd` are among them.
pub(super) async fn look(client: &Client, name: &str, opted_in: bool, pods: &[(Settings, String)]) -> Option<Finding> {
    let of_pods = pods.iter().filter(|(settings, _)| settings.is_ours());
    let mut wanted: BTreeSet<(&str, String)> =
        of_pods.map(|(settings, account)| (account.as_str(), settings.trust_config_map(name))).collect();
    if opted_in {
        wanted.insert(("default", names::trust_config_map(DEFAULT_CLUSTER)));
    }
    let mut lacking: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
    for (account, config_map) in &wanted {
        let attributes = ResourceAttributes {
            namespace: Some(name.to_owned()),
            verb: Some("watch".to_owned()),
            resource: Some("configmaps".to_owned()),
            name: Some(config_map.clone()),
            ..ResourceAttributes::default()
        };
        match accounts::allowed(client, name, account, attributes).await {
            Ok(true) => {}
            Ok(false) => lacking.entry(config_map).or_default().push(account),
            Err(error) => {
                let right = Right::new("create", "subjectaccessreviews.authorization.k8s.io", None);
                return Some(unseen(SUBJECT, right, error, SEE));
            }
        }
    }
    (!wanted.is_empty()).then(|| judge(name, wanted.len(), &lacking))
}

fn judge(name: &str, wanted: usize, lacking: &BTreeMap<&String, Vec<&str>>) -> Finding {
    if lacking.is_empty() {
        let reason = format!("its service accounts may watch their trust ConfigMaps ({wanted} tried)");
        return Finding::ok(SUBJECT, reason, SEE);
    }
    let of = |(config_map, accounts): (&&String, &Vec<&str>)| format!("{} {config_map}", accounts.join(", "));
    let reason = format!(
        "service accounts may not watch their trust ConfigMap, so new bundles and revocation lists take two minutes: {}. approve gives the \
         right, unless another role is bound by that name, or its flag --no-trust-watch is set",
        lacking.iter().map(of).collect::<Vec<_>>().join("; ")
    );
    let next = format!(
        "kubectl -n {name} get roles,rolebindings --field-selector metadata.name=etcd-tls-trust-reader -o wide"
    );
    Finding::bad(State::Attention, SUBJECT, reason, next, SEE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_watch_is_named_with_the_config_map() {
        let none = judge("web", 2, &BTreeMap::new());
        assert_eq!(none.state, State::Ok);
        let map = "etcd-tls-trust-etcd".to_owned();
        let bad = judge("web", 2, &BTreeMap::from([(&map, vec!["default", "app"])]));
        assert_eq!(bad.state, State::Attention);
        assert!(bad.reason.contains("two minutes: default, app etcd-tls-trust-etcd."), "{bad:?}");
        assert!(bad.next.is_some_and(|next| next.starts_with("kubectl -n web get roles,rolebindings")));
    }
}
