//! What is said of a workload when it is applied, where its author sees it: all that would be said of the pods that its
//! template makes, and what they would be refused for. Nothing is ever refused or changed here.

use serde_json::Value;

use crate::injection::{Config, Decision, Origin, decide};

/// Where a workload of this API group and resource has its pod template.
pub(super) fn template_path(group: &str, resource: &str) -> Option<&'static [&'static str]> {
    match (group, resource) {
        ("apps", "statefulsets" | "deployments" | "daemonsets") | ("batch", "jobs") => Some(&["spec", "template"]),
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// What to say of a workload whose template is at `path` of `object`; `old` is what it was before, of an update. Pure.
pub(super) fn warnings(
    path: &[&str],
    object: &Value,
    old: Option<&Value>,
    namespace: &str,
    config: &Config,
) -> Vec<String> {
    let template = |object| path.iter().try_fold(object, |value: &Value, field| value.get(field));
    let Some(new) = template(object) else { return Vec::new() };
    if old.and_then(template) == Some(new) {
        return Vec::new();
    }
    match decide(new, config, Origin { namespace, namespace_opted_in: true, label: false }) {
        Decision::Leave(warnings) | Decision::Inject { warnings, .. } => warnings,
        Decision::Refuse(problems) => {
            let refused = |problem| format!("a pod of this template will be refused: {problem}");
            problems.into_iter().map(refused).collect()
        }
    }
}
