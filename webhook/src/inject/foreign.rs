//! Documents that are none of Kubernetes' own workloads: those that pass unread, and pod templates of other kinds, which get a
//! warning.

use etcd_tls_contract::invalid_value::InvalidValue;
use serde_json::Value;

/// How deep a template is looked for.
const MAX_DEPTH: usize = 12;
/// How many templates of one object are named.
const MAX_FOUND: usize = 5;
/// Kinds with pods, which must be read.
const KINDS: [&str; 9] = [
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "StatefulSet",
    "Deployment",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
];

/// `--pod-template-path`: where objects of a kind have a pod template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatePath {
    /// The object's kind.
    pub kind: String,
    /// Field names; `*` is each item of a list.
    pub path: Vec<String>,
}

impl std::str::FromStr for TemplatePath {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let (kind, path) = s.split_once('=').unwrap_or_default();
        let path: Vec<String> = path.trim_start_matches('.').split('.').map(str::to_owned).collect();
        if kind.is_empty() || path.iter().any(String::is_empty) {
            return Err(
                "write KIND=PATH, such as DeploymentConfig=spec.template or Template=objects.*.spec.template".into()
            );
        }
        Ok(Self { kind: kind.to_owned(), path })
    }
}

/// True if a YAML document that cannot be read is surely none with a pod: its kind is written plainly, and is no workload's.
/// kubectl is less strict than a strict reader, and nothing is to be changed in it.
pub(super) fn passes_unread(raw: &str) -> bool {
    let raw = raw.trim_start_matches('\u{feff}');
    let mut kinds = Vec::new();
    for line in raw.lines() {
        let line = line.strip_prefix("---").map_or(line, str::trim_start);
        // A document in flow style, an explicit key, or keys from elsewhere.
        if line.starts_with(['{', '[', '?', '*', '&', '!', '-', '|', '>']) || line.starts_with("<<") {
            return false;
        }
        for key in ["kind", "\"kind\"", "'kind'"] {
            let value = line.strip_prefix(key).map(str::trim_start).and_then(|rest| rest.strip_prefix(':'));
            kinds.extend(value.map(|value| value.split(" #").next().unwrap_or_default().trim()));
        }
    }
    let plain = |kind: &str| {
        let kind = kind.trim_matches(['"', '\'']);
        !kind.is_empty()
            && kind.chars().all(|c| c.is_ascii_alphanumeric())
            && !KINDS.contains(&kind)
            && !kind.ends_with("List")
            && kind != "Template"
    };
    !kinds.is_empty() && kinds.iter().all(|kind| plain(kind))
}

/// The paths of the pod templates in an object of an unknown kind: everything with `spec.containers`.
pub(super) fn templates(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(object, &mut Vec::new(), &mut found);
    found
}

fn look(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    if path.len() > MAX_DEPTH || found.len() >= MAX_FOUND {
        return;
    }
    let containers = value.get("spec").and_then(|spec| spec.get("containers")).and_then(Value::as_array);
    if !path.is_empty() && containers.is_some_and(|all| all.iter().any(|c| c.get("image").is_some())) {
        found.push(path.join("."));
        return;
    }
    let mut into = |name: String, inner: &Value| {
        path.push(name);
        look(inner, path, found);
        path.pop();
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, inner)| into(name.clone(), inner)),
        Value::Array(list) => list.iter().for_each(|inner| into("*".to_owned(), inner)),
        _ => {}
    }
    found.dedup();
}

/// Calls `each` with what is at `path`.
pub(super) fn at(value: &mut Value, path: &[String], each: &mut dyn FnMut(&mut Value)) {
    match path.split_first() {
        None => each(value),
        Some((star, rest)) if star == "*" => {
            value.as_array_mut().into_iter().flatten().for_each(|item| at(item, rest, each));
        }
        Some((field, rest)) => value.get_mut(field.as_str()).into_iter().for_each(|inner| at(inner, rest, each)),
    }
}
