//! `inject --dry-run` over live workloads: which pod templates that have opted in would be refused. A pod that an older
//! version let through runs on, but would not come back once it is rescheduled.

use std::collections::BTreeMap;

use etcd_tls_contract::names;
use serde_json::Value;

use super::{InjectError, Options, documents, foreign, inject, visit::MAX_LISTS};

/// Never asked about by the webhook configuration.
const EXCLUDED: [&str; 2] = ["kube-system", names::SYSTEM_NAMESPACE];

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Workloads that have opted in.
    pub(crate) judged: usize,
    /// A line for each refusal.
    pub(crate) refused: Vec<String>,
}

/// Judges the workloads of `text`, such as `kubectl get namespaces,statefulsets,pods -A -o yaml`. Where it holds Namespaces,
/// their labels say who has opted in; else every workload has.
///
/// # Errors
/// Documents that cannot be read.
pub(super) fn judge(text: &str, options: &Options) -> Result<Report, InjectError> {
    let mut objects = Vec::new();
    for (index, document) in documents::split(text).into_iter().enumerate() {
        match document.read() {
            Ok(Some(value)) => flatten(value, 0, &mut objects),
            Ok(None) => {}
            Err(_) if foreign::passes_unread(document.raw) => {}
            Err(error) => return Err(InjectError(vec![format!("document {}: {error}", index + 1)])),
        }
    }
    Ok(judge_objects(&objects, options))
}

/// Judges objects, none of them a List.
pub(super) fn judge_objects(objects: &[Value], options: &Options) -> Report {
    let namespaces: BTreeMap<String, Option<String>> = objects
        .iter()
        .filter(|o| o["kind"] == "Namespace")
        .map(|o| {
            (text_of(&o["metadata"]["name"]).to_owned(), o["metadata"]["labels"][names::LABEL].as_str().map(Into::into))
        })
        .collect();
    let mut report = Report::default();
    for object in objects {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or(&options.namespace);
        if EXCLUDED.contains(&namespace) || is_controlled(metadata) || !has_opted_in(object, namespace, &namespaces) {
            continue;
        }
        let text = object.to_string();
        let problems = match inject(&text, options) {
            // Nothing of it is injected into: no workload, or none of etcd's.
            Ok(injected) if injected.text == text => continue,
            Ok(_) => Vec::new(),
            Err(InjectError(problems)) => problems,
        };
        report.judged += 1;
        report.refused.extend(problems.iter().map(|problem| format!("{namespace}: {problem}")));
    }
    report
}

fn flatten(value: Value, depth: usize, objects: &mut Vec<Value>) {
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match value {
        Value::Object(mut map) if is_list && depth < MAX_LISTS => {
            if let Some(Value::Array(items)) = map.remove("items") {
                items.into_iter().for_each(|item| flatten(item, depth + 1, objects));
            }
        }
        value => objects.push(value),
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// True if a controller makes the object: its own template is what counts.
fn is_controlled(metadata: &Value) -> bool {
    metadata["ownerReferences"].as_array().is_some_and(|owners| owners.iter().any(|o| o["controller"] == true))
}

fn has_opted_in(object: &Value, namespace: &str, namespaces: &BTreeMap<String, Option<String>>) -> bool {
    let template = match text_of(&object["kind"]) {
        "Pod" => object,
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => &object["spec"]["template"],
    };
    match template["metadata"]["labels"][names::LABEL].as_str() {
        Some(word) => word == names::DYNAMIC,
        None if namespaces.is_empty() => true,
        None => namespaces.get(namespace).is_some_and(|label| label.as_deref() == Some(names::DYNAMIC)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::inject::unflagged;

    fn workload(kind: &str, namespace: &str, name: &str, command: &Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": {
            "template": {"spec": {"containers": [{"name": "etcd", "image": "etcd", "command": command, "args": []}]}},
        }})
    }

    #[test]
    fn the_templates_that_would_be_refused_are_named() {
        let plain = json!(["etcd", "--listen-client-urls=https://0.0.0.0:2379", "--cert-file=/mine"]);
        let fine = json!(["etcd", "--listen-client-urls=https://0.0.0.0:2379"]);
        let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let mut owned = workload("ReplicaSet", "prod", "owned", &plain);
        owned["metadata"]["ownerReferences"] = json!([{"controller": true, "kind": "Deployment", "name": "d"}]);
        let mut annotated = workload("StatefulSet", "prod", "refused", &fine);
        annotated["spec"]["template"]["metadata"] = json!({"annotations": {"etcd-tls.dev/duration": "a day"}});
        let mut labelled = annotated.clone();
        labelled["metadata"] = json!({"namespace": "other", "name": "labelled"});
        labelled["spec"]["template"]["metadata"]["labels"] = json!({"etcd-tls": "dynamic"});
        let mut disabled = annotated.clone();
        disabled["metadata"]["name"] = "disabled".into();
        disabled["spec"]["template"]["metadata"]["labels"] = json!({"etcd-tls": "disabled"});
        let mut elsewhere = annotated.clone();
        elsewhere["metadata"]["namespace"] = "other".into();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            namespace("prod", json!({"etcd-tls": "dynamic"})), namespace("other", json!({})),
            workload("StatefulSet", "prod", "fine", &fine), annotated, labelled, disabled, elsewhere, owned,
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "prod", "name": "c"}},
        ]});
        let report = judge(&list.to_string(), &unflagged()).unwrap();
        assert_eq!(report.judged, 3, "{report:?}");
        assert_eq!(report.refused.len(), 2, "{report:?}");
        assert!(report.refused[0].starts_with("prod: StatefulSet refused: "), "{report:?}");
        assert!(report.refused[1].starts_with("other: StatefulSet labelled: "), "{report:?}");
    }
}
