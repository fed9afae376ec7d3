//! An install without the webhook: the policies of the API server that inject (docs/without-webhook.md).

use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

use super::finding::{Finding, unseen};
use crate::{
    controller::client::{ApiServerError, within},
    injection::cel::POLICY,
    operator::Right,
    status::State,
};

const SUBJECT: &str = "injection policies";
const SEE: &str = "docs/check.md#without-the-webhook";
const APPLY: &str = "kubectl apply -k OVERLAY   # yours, with the component without-webhook";

/// Kind, resource with its group, and name of each object.
fn objects() -> Vec<(&'static str, &'static str, String)> {
    let mut objects = Vec::new();
    for (policy, policies, binding, bindings) in [
        (
            "MutatingAdmissionPolicy",
            "mutatingadmissionpolicies.admissionregistration.k8s.io",
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
        ),
        (
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies.admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        ),
    ] {
        objects.push((policy, policies, POLICY.to_owned()));
        objects.extend(["namespaces", "pods"].map(|of| (binding, bindings, format!("{POLICY}-{of}"))));
    }
    objects
}

/// The findings where the policies inject; `None` where there is none of them.
pub(super) async fn look(client: &Client) -> Option<Vec<Finding>> {
    let mut live = Vec::new();
    for (kind, resource, name) in objects() {
        let (plural, group) = resource.split_once('.').unwrap_or_default();
        let kinds = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        let api = Api::<DynamicObject>::all_with(client.clone(), &kinds);
        let found = match within(api.get_opt(&name)).await {
            Ok(found) => found.map(|object| object.data),
            // Before Kubernetes 1.36 there is no such kind.
            Err(ApiServerError::Api(kube::Error::Api(status))) if status.code == 404 => None,
            Err(error) => {
                let right = Right::new("get", resource, None);
                return Some(vec![unseen(SUBJECT, right, error, SEE)]);
            }
        };
        live.push((kind, name, found));
    }
    judge(&live)
}

fn judge(live: &[(&str, String, Option<Value>)]) -> Option<Vec<Finding>> {
    if live.iter().all(|(.., found)| found.is_none()) {
        return None;
    }
    let bad = |reason: String| Finding::bad(State::Failing, SUBJECT, reason, APPLY, SEE);
    let mut findings = Vec::new();
    for (kind, name, found) in live {
        let Some(found) = found else {
            findings.push(bad(format!("{kind} {name} is missing")));
            continue;
        };
        let spec = &found["spec"];
        if !kind.ends_with("Binding") && spec["failurePolicy"].as_str().is_some_and(|policy| policy != "Fail") {
            findings.push(bad(format!("{kind} {name} does not have failurePolicy Fail")));
        }
        if kind.ends_with("Binding") && spec["policyName"] != POLICY {
            findings.push(bad(format!("{kind} {name} binds another policy")));
        }
        let actions = spec["validationActions"].as_array();
        if *kind == "ValidatingAdmissionPolicyBinding" && !actions.is_some_and(|all| all.iter().any(|a| a == "Deny")) {
            findings.push(bad(format!("{kind} {name} does not deny")));
        }
    }
    if findings.is_empty() {
        let reason = "the API server injects without the webhook, by both policies and their bindings";
        findings.push(Finding::ok(SUBJECT, reason, SEE));
    }
    Some(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_of_the_policies_must_be_there_and_deny() {
        let with = |change: &dyn Fn(&str, &str, Value) -> Option<Value>| {
            let live: Vec<_> = objects()
                .into_iter()
                .map(|(kind, _, name)| {
                    let spec = match kind {
                        "ValidatingAdmissionPolicyBinding" => {
                            json!({"policyName": POLICY, "validationActions": ["Deny"]})
                        }
                        "MutatingAdmissionPolicyBinding" => json!({"policyName": POLICY}),
                        _ => json!({"failurePolicy": "Fail"}),
                    };
                    let found = change(kind, &name, json!({"spec": spec}));
                    (kind, name, found)
                })
                .collect();
            judge(&live).map(|findings| findings.into_iter().map(|f| (f.state, f.reason)).collect::<Vec<_>>())
        };
        assert_eq!(with(&|_, _, _| None), None);
        assert_eq!(with(&|_, _, object| Some(object)).map(|f| f[0].0), Some(State::Ok));
        for (kind, name, spec, reason) in [
            ("MutatingAdmissionPolicy", POLICY, json!(null), "is missing"),
            ("ValidatingAdmissionPolicy", POLICY, json!({"failurePolicy": "Ignore"}), "failurePolicy Fail"),
            ("MutatingAdmissionPolicyBinding", "etcd-tls-injection-pods", json!({"policyName": "a"}), "another policy"),
            (
                "ValidatingAdmissionPolicyBinding",
                "etcd-tls-injection-namespaces",
                json!({"policyName": POLICY, "validationActions": ["Audit"]}),
                "does not deny",
            ),
        ] {
            let findings = with(&|of, called, object| match () {
                () if (of, called) != (kind, name) => Some(object),
                () if spec.is_null() => None,
                () => Some(json!({"spec": spec})),
            });
            let findings = findings.unwrap_or_default();
            assert!(findings.len() == 1 && findings[0].0 == State::Failing, "{findings:?}");
            assert!(findings[0].1.contains(reason), "{findings:?}");
        }
    }
}
