//! The rights of the processes' service accounts: the API server is asked for each right that the manifests grant.

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use kube::{Api, Client, api::PostParams};
use serde_json::Value;

use super::finding::{APPLY, Finding, unseen};
use crate::{
    controller::client::{ApiServerError, within},
    operator::Right,
    status::State,
};

const SEE: &str = "docs/check.md#rights";
const SHIPPED: [(&str, &str); 2] = [
    ("approve", include_str!("../../../manifests/rbac-approve.yaml")),
    ("sign", include_str!("../../../manifests/rbac-sign.yaml")),
];
/// Questions at once.
const AT_ONCE: usize = 8;
/// Missing rights that are named.
const NAMED: usize = 4;

/// A right that the manifests grant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Granted {
    process: &'static str,
    namespace: Option<String>,
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    name: String,
}

impl std::fmt::Display for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        for (before, part) in [("/", &self.subresource), (".", &self.group), (" ", &self.name)] {
            if !part.is_empty() {
                write!(f, "{before}{part}")?;
            }
        }
        Ok(())
    }
}

/// The rights that the manifests grant. Unreadable manifests are a fault of the build.
///
/// # Errors
/// Which.
fn granted() -> Result<Vec<Granted>, serde_saphyr::Error> {
    let mut all = Vec::new();
    for (process, text) in SHIPPED {
        for document in text.split("\n---\n") {
            let value: Value = serde_saphyr::from_str(document)?;
            let (namespace, rules) = match value["kind"].as_str() {
                Some("ClusterRole") => (None, serde_json::from_value::<ClusterRole>(value).ok().and_then(|r| r.rules)),
                Some("Role") => {
                    let namespace = value["metadata"]["namespace"].as_str().map(str::to_owned);
                    (namespace, serde_json::from_value::<Role>(value).ok().and_then(|r| r.rules))
                }
                _ => continue,
            };
            for rule in rules.into_iter().flatten() {
                all.extend(of_rule(process, namespace.as_ref(), &rule));
            }
        }
    }
    Ok(all)
}

fn of_rule(process: &'static str, namespace: Option<&String>, rule: &PolicyRule) -> Vec<Granted> {
    let mut all = Vec::new();
    let any = vec![String::new()];
    let names = rule.resource_names.as_ref().filter(|names| !names.is_empty()).unwrap_or(&any);
    for (group, resource) in rule.api_groups.iter().flatten().zip(std::iter::repeat(&rule.resources)) {
        for resource in resource.iter().flatten() {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            for (verb, name) in rule.verbs.iter().flat_map(|verb| names.iter().map(move |name| (verb, name))) {
                all.push(Granted {
                    process,
                    namespace: namespace.cloned(),
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.to_owned(),
                    subresource: subresource.to_owned(),
                    name: name.clone(),
                });
            }
        }
    }
    all
}

/// Asks whether both accounts have the rights that they are shipped with.
pub(super) async fn look(client: &Client, system: &str) -> Vec<Finding> {
    let subject = |process: &str| format!("rights of etcd-tls-{process}");
    let all = match granted() {
        Ok(all) => all,
        Err(error) => {
            let reason = format!("the shipped manifests cannot be read: {error}");
            return vec![Finding::bad(State::Unknown, "rights", reason, "use a released etcd-tls-webhook", SEE)];
        }
    };
    let asked = all.into_iter().map(|right| async move { (has(client, system, &right).await, right) });
    let mut answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut findings = Vec::new();
    for (process, _) in SHIPPED {
        let failed = answers.iter().position(|(answer, right)| right.process == process && answer.is_err());
        if let Some((Err(error), _)) = failed.map(|at| answers.swap_remove(at)) {
            let right = Right::new("create", "subjectaccessreviews.authorization.k8s.io", None);
            findings.push(unseen(&subject(process), right, error, SEE));
            continue;
        }
        let of_process = || answers.iter().filter(|(_, right)| right.process == process);
        let missing: Vec<String> = of_process()
            .filter(|(answer, _)| matches!(answer, Ok(false)))
            .map(|(_, right)| right.to_string())
            .collect();
        findings.push(if missing.is_empty() {
            Finding::ok(subject(process), format!("all {} that it is shipped with", of_process().count()), SEE)
        } else {
            let more = missing.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let named = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let next = APPLY;
            Finding::bad(State::Failing, subject(process), format!("it lacks {named}{more}"), next, SEE)
        });
    }
    findings
}

async fn has(client: &Client, system: &str, right: &Granted) -> Result<bool, ApiServerError> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let attributes = ResourceAttributes {
        namespace: right.namespace.clone(),
        verb: Some(right.verb.clone()),
        group: text(&right.group),
        resource: Some(right.resource.clone()),
        subresource: text(&right.subresource),
        name: text(&right.name),
        ..ResourceAttributes::default()
    };
    let account = format!("etcd-tls-{}", right.process);
    allowed(client, system, &account, attributes).await
}

/// Asks whether a service account has a right.
///
/// # Errors
/// The API server's.
pub(super) async fn allowed(
    client: &Client,
    namespace: &str,
    account: &str,
    attributes: ResourceAttributes,
) -> Result<bool, ApiServerError> {
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{account}")),
            groups: Some(groups.to_vec()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = within(reviews.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_shipped_right_is_asked_for() {
        let all: Vec<String> = granted().unwrap().iter().map(|right| format!("{}: {right}", right.process)).collect();
        for right in [
            "sign: create secrets",
            "sign: patch certificatesigningrequests/status.certificates.k8s.io",
            "sign: sign signers.certificates.k8s.io peer.etcd-tls.dev/*",
            "approve: update leases.coordination.k8s.io etcd-tls-approve",
        ] {
            assert!(all.iter().any(|granted| granted == right), "{right}: {all:?}");
        }
    }
}
