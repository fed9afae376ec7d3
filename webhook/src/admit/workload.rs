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
    let is_set = object.get("kind").as_str() == Some("StatefulSet");
    let subdomain = is_set.then(|| object.get("spec").get("serviceName").as_str().unwrap_or_default());
    match decide(new, config, Origin { namespace, namespace_opted_in: true, label: false, subdomain, trace: None }) {
        PodDecision::Leave(warnings) | PodDecision::Inject { warnings, .. } => warnings,
        PodDecision::Refuse(problems) => {
            let refused = |problem| format!("a pod of this template will be refused: {problem}");
            problems.into_iter().map(refused).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::injection::json;

    #[test]
    fn a_stateful_set_gives_its_pods_their_subdomain() {
        let urls = ["listen-client-urls", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls"];
        let command: Vec<String> = std::iter::once("etcd".to_owned())
            .chain(urls.map(|o| format!("--{o}=https://etcd-0.etcd.prod.svc:2379")))
            .collect();
        let said = |kind: &str, service: Option<&str>| {
            let container =
                json!({"name": "etcd", "image": "etcd", "command": command, "securityContext": {"runAsUser": 1000}});
            let template = json!({"metadata": {}, "spec": {"containers": [container]}});
            let object = json!({"kind": kind, "spec": {"serviceName": service, "template": template}});
            let (object, old) = (json::borrowed(&object), crate::injection::json::Json::Null);
            let said = warnings(&["spec", "template"], &object, &old, "prod", &Config::default());
            said.into_iter().filter(|warning| warning.contains("advertise-client-urls")).collect::<Vec<_>>()
        };
        assert_eq!(said("StatefulSet", Some("etcd")), [""; 0]);
        assert!(said("StatefulSet", Some("etcd-headless"))[0].ends_with("write etcd-0.etcd-headless.prod.svc"));
        assert!(said("StatefulSet", None)[0].contains("serviceName of a StatefulSet"));
        assert_eq!(said("Deployment", None), [""; 0]);
    }
}
