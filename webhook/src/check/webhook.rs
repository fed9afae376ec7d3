//! The webhook configuration: whether its entries are those of the manifests.

use etcd_tls_contract::names::SYSTEM_NAMESPACE;
use k8s_openapi::{
    api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Api, Client};

use super::{
    finding::{APPLY, Finding, unseen},
    without_webhook,
};
use crate::{controller::client::within, operator::Right, status::State};

const SEE: &str = "docs/check.md#webhook";

/// The webhook configuration, as it stands; where there is none, the policies that inject instead.
pub(super) async fn look(client: &Client) -> Vec<Finding> {
    let subject = "webhook configuration";
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let live = match within(api.get_opt("etcd-tls")).await {
        Ok(live) => live,
        Err(error) => {
            let right = Right::new("get", "mutatingwebhookconfigurations.admissionregistration.k8s.io", None);
            return vec![unseen(subject, right, error, SEE)];
        }
    };
    if live.is_none()
        && let Some(findings) = without_webhook::look(client).await
    {
        return findings;
    }
    let live = live.map(|live| live.webhooks.unwrap_or_default());
    judge(subject, live.as_deref(), &shipped())
}

/// The entries of the manifests.
fn shipped() -> Vec<MutatingWebhook> {
    let shipped: Option<MutatingWebhookConfiguration> = include_str!("../../../manifests/webhook.yaml")
        .split("\n---\n")
        .next()
        .and_then(|document| serde_saphyr::from_str(document).ok());
    shipped.and_then(|configuration| configuration.webhooks).unwrap_or_default()
}

fn judge(subject: &str, live: Option<&[MutatingWebhook]>, shipped: &[MutatingWebhook]) -> Vec<Finding> {
    let bad = |state, reason: String, next: String| Finding::bad(state, subject, reason, next, SEE);
    let Some(live) = live else {
        let reason = "there is no MutatingWebhookConfiguration etcd-tls: nothing is injected".to_owned();
        return vec![bad(State::Failing, reason, APPLY.to_owned())];
    };
    let mut findings = Vec::new();
    for webhook in shipped {
        let name = &webhook.name;
        let Some(found) = live.iter().find(|live| live.name == *name) else {
            findings.push(bad(State::Failing, format!("{name} is missing"), APPLY.to_owned()));
            continue;
        };
        if found.client_config.ca_bundle.as_ref().is_none_or(|bundle| bundle.0.is_empty()) {
            findings.push(bad(
                State::Failing,
                format!("{name} has no caBundle, so the API server trusts no certificate of admit: sign writes it"),
                format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/etcd-tls-sign"),
            ));
        }
        let policy = |webhook: &MutatingWebhook| webhook.failure_policy.clone().unwrap_or_else(|| "Fail".to_owned());
        if policy(found) != policy(webhook) {
            findings.push(bad(
                State::Attention,
                format!("{name} has failurePolicy {}, shipped is {}", policy(found), policy(webhook)),
                APPLY.to_owned(),
            ));
        }
        let changed = changed(found, webhook);
        if !changed.is_empty() {
            let reason = format!(
                "{name} has another {} than shipped: other pods than yours may wait for admit, or yours get no sidecar",
                changed.join(" and ")
            );
            // `kubectl apply` leaves a field that the manifests never had.
            let next = "kubectl edit mutatingwebhookconfiguration etcd-tls   # as in manifests/webhook.yaml: apply leaves what was added";
            findings.push(bad(State::Attention, reason, next.to_owned()));
        }
    }
    let bundles = live.iter().filter(|live| shipped.iter().any(|webhook| webhook.name == live.name));
    let bundles: Vec<_> = bundles.filter_map(|webhook| webhook.client_config.ca_bundle.as_ref()).collect();
    if bundles.windows(2).any(|two| two[0] != two[1]) {
        let reason = "its entries have different caBundles: sign writes the same one into each".to_owned();
        findings.push(bad(
            State::Attention,
            reason,
            format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/etcd-tls-sign"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(subject, format!("{} entries as shipped, with their caBundle", shipped.len()), SEE));
    }
    findings
}

/// The fields by which the API server chooses whom it asks about which pod, where they are not the shipped ones.
fn changed(live: &MutatingWebhook, shipped: &MutatingWebhook) -> Vec<&'static str> {
    // Azure adds conditions of its own to each webhook, for its own namespaces.
    let is_azures = |key: &str| key == "control-plane" || key.contains("azure.com/");
    let selector = |of: &Option<LabelSelector>| {
        let LabelSelector { match_expressions, match_labels } = of.clone().unwrap_or_default();
        let mut expressions = match_expressions.unwrap_or_default();
        expressions.retain(|expression| !is_azures(&expression.key));
        (match_labels.unwrap_or_default(), expressions)
    };
    let same = |of: fn(&MutatingWebhook) -> &Option<LabelSelector>| selector(of(live)) == selector(of(shipped));
    let fields = [
        // Who gives a URL runs `admit` elsewhere.
        (
            "clientConfig",
            live.client_config.url.is_some() || live.client_config.service == shipped.client_config.service,
        ),
        ("rules", live.rules == shipped.rules),
        ("namespaceSelector", same(|webhook| &webhook.namespace_selector)),
        ("objectSelector", same(|webhook| &webhook.object_selector)),
        ("matchConditions", live.match_conditions == shipped.match_conditions),
        ("matchPolicy", live.match_policy == shipped.match_policy),
        ("reinvocationPolicy", live.reinvocation_policy == shipped.reinvocation_policy),
    ];
    fields.into_iter().filter(|(_, same)| !same).map(|(field, _)| field).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn webhook(name: &str, policy: &str, bundle: Option<&str>) -> MutatingWebhook {
        serde_json::from_value(json!({
            "name": name, "failurePolicy": policy, "clientConfig": {"caBundle": bundle}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }))
        .unwrap()
    }

    #[test]
    fn a_webhook_configuration_lacks_nothing_that_is_shipped() {
        let shipped = [webhook("a", "Fail", None), webhook("b", "Ignore", None)];
        let judge = |live: Option<&[MutatingWebhook]>| {
            super::judge("w", live, &shipped).into_iter().map(|f| (f.state, f.reason)).collect::<Vec<_>>()
        };
        let good = [webhook("a", "Fail", Some("eA==")), webhook("b", "Ignore", Some("eA=="))];
        assert_eq!(judge(Some(&good)).first().map(|(state, _)| *state), Some(State::Ok));
        assert!(judge(None)[0].1.contains("nothing is injected"));
        assert!(judge(Some(&good[..1]))[0].1.contains("b is missing"));
        assert!(judge(Some(&[good[0].clone(), webhook("b", "Ignore", None)]))[0].1.contains("b has no caBundle"));
        let weak = [webhook("a", "Ignore", Some("eA==")), good[1].clone()];
        assert_eq!(judge(Some(&weak))[0].0, State::Attention);
        let other_bundle = [good[0].clone(), webhook("b", "Ignore", Some("eQ=="))];
        assert!(judge(Some(&other_bundle))[0].1.contains("different caBundles"));
        let selected = |key: &str| {
            let mut one = good[0].clone();
            let expression = json!({"matchExpressions": [{"key": key, "operator": "DoesNotExist"}]});
            one.namespace_selector = Some(serde_json::from_value(expression).unwrap());
            judge(Some(&[one, good[1].clone()]))[0].clone()
        };
        let (state, reason) = selected("team");
        assert!(state == State::Attention && reason.contains("a has another namespaceSelector"), "{reason}");
        assert_eq!(selected("kubernetes.azure.com/managedby").0, State::Ok);
    }

    /// The dry run tries one entry; of the others, only what they select tells whether they are asked.
    #[test]
    fn an_entry_that_selects_other_pods_is_told_by_the_field() {
        type Change = fn(&mut MutatingWebhook);
        let shipped = shipped();
        let with = |change: Change| {
            let mut live = shipped.clone();
            for webhook in &mut live {
                webhook.client_config.ca_bundle = Some(k8s_openapi::ByteString(b"x".to_vec()));
            }
            change(&mut live[0]);
            let findings = super::judge("w", Some(&live), &shipped);
            findings.into_iter().map(|finding| (finding.state, finding.reason)).collect::<Vec<_>>()
        };
        assert_eq!(with(|_| ())[0].0, State::Ok);
        let changes: [(&str, Change); 5] = [
            ("namespaceSelector", |webhook| {
                let selector = webhook.namespace_selector.get_or_insert_default();
                selector.match_labels.get_or_insert_default().insert("team".to_owned(), "a".to_owned());
            }),
            ("objectSelector", |webhook| webhook.object_selector = None),
            ("rules", |webhook| webhook.rules = None),
            ("matchConditions", |webhook| webhook.match_conditions.get_or_insert_default().truncate(1)),
            ("clientConfig", |webhook| {
                webhook.client_config.service.get_or_insert_default().name = "other".to_owned();
            }),
        ];
        for (field, change) in changes {
            let said = with(change);
            assert!(
                said.len() == 1
                    && said[0].0 == State::Attention
                    && said[0].1.contains(&format!("another {field} than")),
                "{field}: {said:?}"
            );
        }
    }
}
