//! The trust ConfigMaps of a namespace's pods, and the authorities of their clusters.

use std::collections::{BTreeMap, BTreeSet};

use etcd_tls_contract::{certificate::Bundle, names::ClusterName, role::Domain, settings::Settings};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use super::super::finding::{Finding, unseen};
use crate::{
    controller::client::within,
    operator::Right,
    rollover::{Report, status_annotation},
    status::State,
};

const SEE: &str = "docs/check.md#trust";

/// Looks at the trust of every cluster of `pods`.
pub(super) async fn look(client: &Client, namespace: &str, pods: impl Iterator<Item = &Settings>) -> Vec<Finding> {
    let mut wanted: BTreeMap<String, (ClusterName, BTreeSet<Domain>)> = BTreeMap::new();
    for settings in pods.filter(|settings| settings.is_ours()) {
        let home = settings.home(namespace);
        let domains = settings.roles.iter().map(|role| role.domain());
        wanted.entry(home.trust_config_map(namespace)).or_insert_with(|| (home, BTreeSet::new())).1.extend(domains);
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut findings = Vec::new();
    for (name, (home, domains)) in wanted {
        match within(api.get_opt(&name)).await {
            Ok(found) => findings.extend(judge(namespace, &name, &home, &domains, found.as_ref())),
            Err(error) => {
                let right = Right::new("get", "configmaps", Some(namespace));
                findings.push(unseen(&format!("configmap {name}"), right, error, SEE));
            }
        }
    }
    findings
}

fn judge(
    namespace: &str,
    name: &str,
    home: &ClusterName,
    domains: &BTreeSet<Domain>,
    found: Option<&ConfigMap>,
) -> Vec<Finding> {
    let subject = format!("configmap {name}");
    let log = super::log_of("sign");
    let Some(found) = found else {
        let reason = "there is none, so pods of its cluster wait: sign publishes it, unless it has lost the CA";
        return vec![Finding::bad(State::Failing, subject, reason, log, SEE)];
    };
    let bundle = |domain: &Domain| {
        let text = found.data.as_ref()?.get(domain.trust_key())?;
        Bundle::parse(text.as_bytes()).ok()
    };
    let mut findings = Vec::new();
    let unreadable: Vec<&str> =
        domains.iter().filter(|domain| bundle(domain).is_none()).map(|domain| domain.trust_key()).collect();
    findings.push(if unreadable.is_empty() {
        Finding::ok(&subject, format!("it has a bundle for {}", list(domains)), SEE)
    } else {
        let reason =
            format!("its keys {} are missing or hold no certificates; sign writes them again", unreadable.join(", "));
        Finding::bad(State::Failing, &subject, reason, &log, SEE)
    });
    let annotations = found.metadata.annotations.as_ref();
    for domain in domains {
        // By policy it may be another domain's authority, of which the report is elsewhere.
        let Some(text) = annotations.and_then(|all| all.get(&status_annotation(*domain))) else { continue };
        findings.push(of_authority(namespace, home, *domain, text));
    }
    findings
}

fn of_authority(namespace: &str, home: &ClusterName, domain: Domain, report: &str) -> Finding {
    let subject = format!("authority {home} {domain}");
    let Ok(report) = serde_json::from_str::<Report>(report) else {
        let next = "use the etcd-tls-webhook of the signer's version";
        return Finding::bad(
            State::Unknown,
            subject,
            format!("the signer's report in {namespace} cannot be read"),
            next,
            SEE,
        );
    };
    let until = report.active_until.map(|until| format!("; its CA ends {until}")).unwrap_or_default();
    match report.phase.as_str() {
        phase @ ("lost" | "unusable") => {
            let reason = format!("its CA is {phase}: nothing is issued");
            Finding::bad(State::Failing, subject, reason, super::log_of("sign"), SEE)
        }
        phase if report.waiting.is_empty() => Finding::ok(subject, format!("{phase}{until}"), SEE),
        phase => {
            let reason = format!("{phase}{until}; its rollover waits for {}", report.waiting.join("; "));
            let next = format!("etcd-tls-webhook rollover {home} --domain={domain} --status");
            Finding::bad(State::Attention, subject, reason, next, SEE)
        }
    }
}

fn list(domains: &BTreeSet<Domain>) -> String {
    domains.iter().map(|domain| domain.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn judged(found: Option<Value>) -> Vec<(String, State)> {
        let home = ClusterName { namespace: "web".to_owned(), name: "etcd".to_owned() };
        let found: Option<ConfigMap> = found.map(|found| serde_json::from_value(found).unwrap());
        let all = judge("web", "etcd-tls-trust-etcd", &home, &[Domain::Peer].into(), found.as_ref());
        all.into_iter().map(|finding| (finding.subject, finding.state)).collect()
    }

    #[test]
    fn missing_trust_and_a_lost_authority_are_failures() {
        let map = "configmap etcd-tls-trust-etcd".to_owned();
        assert_eq!(judged(None), [(map.clone(), State::Failing)]);
        let with = |report: &str| json!({"metadata": {"annotations": {"etcd-tls.dev/rollover-peer": report}}, "data": {"peer.crt": "x"}});
        let authority = "authority web/etcd peer".to_owned();
        for (report, state) in [
            ("{\"phase\": \"stable\"}", State::Ok),
            ("{\"phase\": \"published\", \"waiting\": [\"pod web/etcd-0\"]}", State::Attention),
            ("{\"phase\": \"lost\"}", State::Failing),
            ("?", State::Unknown),
        ] {
            assert_eq!(
                judged(Some(with(report))),
                [(map.clone(), State::Failing), (authority.clone(), state)],
                "{report}"
            );
        }
    }
}
