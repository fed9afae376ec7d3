//! The warnings that the author of a workload sees when applying it: all warnings for the pods of its template, and the reasons
//! why they would be refused. Nothing is refused or changed here.

use crate::injection::{Config, Origin, PodDecision, decide, json::Json};

/// Where a workload of this API group and resource has its pod template.
pub(super) fn template_path(group: &str, resource: &str) -> Option<&'static [&'static str]> {
    match (group, resource) {
        ("apps", "statefulsets" | "deployments" | "daemonsets") | ("batch", "jobs") => Some(&["spec", "template"]),
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// The warnings for a workload whose template is at `path` of `object`; `old` is the object before an update. Pure.
pub(super) fn warnings(
    path: &[&str],
    object: &Json<'_>,
    old: &Json<'_>,
    namespace: &str,
    config: &Config,
) -> Vec<String> {
    let template = |object| path.iter().try_fold(object, |value: &Json<'_>, field| value.as_object()?.get(field));
    let Some(new) = template(object) else { return Vec::new() };
    if template(old) == Some(new) {
        return Vec::new();
    }
    match decide(new, config, Origin { namespace, namespace_opted_in: true, label: false, trace: None }) {
        PodDecision::Leave(warnings) | PodDecision::Inject { warnings, .. } => warnings,
        PodDecision::Refuse(problems) => {
            let refused = |problem| format!("a pod of this template will be refused: {problem}");
            problems.into_iter().map(refused).collect()
        }
    }
}
