//! The right of the namespace's service accounts to watch their trust ConfigMaps.

use std::collections::{BTreeMap, BTreeSet};

use etcd_tls_contract::{
    names::{self, DEFAULT_CLUSTER, SYSTEM_NAMESPACE},
    settings::Settings,
};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::Client;

use super::super::{
    accounts,
    finding::{Finding, unseen},
    install,
};
use crate::{approve::bindings::MAX_OF_NAMESPACE, controller::client::ApiServerError, operator::Right, status::State};

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
    let mut watched = Watched::default();
    for (account, config_map) in &wanted {
        let attributes = ResourceAttributes {
            namespace: Some(name.to_owned()),
            verb: Some("watch".to_owned()),
            resource: Some("configmaps".to_owned()),
            name: Some(config_map.clone()),
            ..ResourceAttributes::default()
        };
        match accounts::allowed(client, name, account, attributes).await {
            Ok(true) => {
                watched.allowed.insert(config_map);
            }
            Ok(false) => watched.lacking.entry(config_map).or_default().push(account),
            Err(error) => {
                let right = Right::new("create", "subjectaccessreviews.authorization.k8s.io", None);
                return Some(unseen(SUBJECT, right, error, SEE));
            }
        }
    }
    if wanted.is_empty() {
        return None;
    }
    let switched_off = if watched.lacking.is_empty() {
        Ok(false)
    } else {
        install::runs_with(client, "approve", "--no-trust-watch").await
    };
    Some(judge(name, wanted.len(), &watched, switched_off))
}

/// What was answered.
#[derive(Default)]
struct Watched<'a> {
    /// ConfigMaps that an account may watch.
    allowed: BTreeSet<&'a String>,
    /// Those that accounts may not watch, with the accounts.
    lacking: BTreeMap<&'a String, Vec<&'a str>>,
}

/// `switched_off`: whether `approve` is told to give nobody the right, where that matters.
fn judge(name: &str, wanted: usize, watched: &Watched<'_>, switched_off: Result<bool, ApiServerError>) -> Finding {
    let Watched { allowed, lacking } = watched;
    if lacking.is_empty() {
        let reason = format!("its service accounts may watch their trust ConfigMaps ({wanted} tried)");
        return Finding::ok(SUBJECT, reason, SEE);
    }
    let default = names::trust_config_map(DEFAULT_CLUSTER);
    let given = allowed.iter().filter(|config_map| ***config_map != default).count();
    let is_fault = |config_map: &&String| **config_map == default || allowed.contains(config_map);
    if given >= MAX_OF_NAMESPACE && !lacking.keys().any(is_fault) {
        let reason = format!(
            "approve gives the right to watch {MAX_OF_NAMESPACE} trust ConfigMaps of a namespace, and here are {} more: bundles and \
             revocation lists of their clusters take up to two minutes",
            lacking.len()
        );
        return Finding::ok(SUBJECT, reason, SEE);
    }
    let of = |(config_map, accounts): (&&String, &Vec<&str>)| format!("{} {config_map}", accounts.join(", "));
    let who = lacking.iter().map(of).collect::<Vec<_>>().join("; ");
    let lack =
        "service accounts may not watch their trust ConfigMap, so new bundles and revocation lists take two minutes";
    match switched_off {
        Ok(true) => Finding::ok(SUBJECT, format!("approve runs with --no-trust-watch: {lack}"), SEE),
        Ok(false) => {
            let reason = format!("{lack}: {who}. approve gives the right, unless another role is bound by that name");
            let next = format!(
                "kubectl -n {name} get roles,rolebindings --field-selector metadata.name=etcd-tls-trust-reader -o wide"
            );
            Finding::bad(State::Attention, SUBJECT, reason, next, SEE)
        }
        Err(error) => {
            let right = Right::new("get", "deployments.apps", Some(SYSTEM_NAMESPACE));
            let next = right.question();
            let reason = format!("{lack}: {who}. Whether approve runs with --no-trust-watch: {}", right.refused(error));
            Finding::bad(State::Unknown, SUBJECT, reason, next, SEE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_watch_is_named_with_the_config_map_and_what_was_chosen_is_said() {
        let map = names::trust_config_map(DEFAULT_CLUSTER);
        let all = Watched { allowed: BTreeSet::from([&map]), ..Watched::default() };
        assert_eq!(judge("web", 2, &all, Ok(false)).state, State::Ok);
        let lacking = || Watched { lacking: BTreeMap::from([(&map, vec!["default", "app"])]), ..Watched::default() };
        let bad = judge("web", 2, &lacking(), Ok(false));
        assert_eq!(bad.state, State::Attention);
        assert!(bad.reason.contains("two minutes: default, app etcd-tls-trust-etcd."), "{bad:?}");
        assert!(bad.next.is_some_and(|next| next.starts_with("kubectl -n web get roles,rolebindings")));
        let chosen = judge("web", 2, &lacking(), Ok(true));
        assert!(
            chosen.state == State::Ok && chosen.reason.contains("--no-trust-watch: service accounts may not"),
            "{chosen:?}"
        );
    }

    #[test]
    fn more_clusters_than_approve_gives_the_right_to_are_no_fault() {
        let maps: Vec<String> = (0..=MAX_OF_NAMESPACE).map(|n| names::trust_config_map(&format!("c{n}"))).collect();
        let state = |given: usize, also: Option<&String>| {
            let lacking = maps[given..].iter().chain(also).map(|map| (map, vec!["app"])).collect();
            judge("web", maps.len(), &Watched { allowed: maps[..given].iter().collect(), lacking }, Ok(false)).state
        };
        assert_eq!(state(MAX_OF_NAMESPACE, None), State::Ok);
        assert_eq!(state(MAX_OF_NAMESPACE - 1, None), State::Attention, "there is room for one more");
        assert_eq!(state(MAX_OF_NAMESPACE, maps.first()), State::Attention, "one account of several");
        let default = names::trust_config_map(DEFAULT_CLUSTER);
        assert_eq!(state(MAX_OF_NAMESPACE, Some(&default)), State::Attention, "that of cluster etcd is always given");
    }
}
