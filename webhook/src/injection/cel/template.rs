//! The injected parts as CEL, from a real injection into a pod whose settings are placeholders.

use std::collections::BTreeMap;

use etcd_tls_contract::names;
use serde_json::{Map, Value, json};

use super::{
    CelError,
    text::{literal, only_if},
};
use crate::injection::{Config, Origin, PodDecision, decide, json};

/// Placeholders: values that their settings may have, and that stand nowhere else.
const MOUNT: &str = "/zz-mount";
const CLUSTER: &str = "zz-cluster";
const LEVEL: &str = "zz=trace";
/// The image, where a parameter has it.
pub(super) const IMAGE: &str = "zz-image";
const ADMIN_PORT: u16 = 64_999;
const USER: u32 = 64_998;
/// Resources, and the variables that hold what they are.
const RESOURCES: [(&str, &str, &str); 6] = [
    ("requests.cpu", "1001m", "requestCpu"),
    ("requests.memory", "1002Mi", "requestMemory"),
    ("requests.ephemeral-storage", "1003Mi", "requestStorage"),
    ("limits.cpu", "2001m", "limitCpu"),
    ("limits.memory", "2002Mi", "limitMemory"),
    ("limits.ephemeral-storage", "2003Mi", "limitStorage"),
];
/// The arguments: the flag, when it is given, and its value. Values that are the default's are not written.
const ARGUMENTS: [(&str, &str, &str); 15] = [
    ("--roles", "true", "variables.roles.join(',')"),
    ("--cluster", "variables.cluster != 'etcd'", "variables.cluster"),
    ("--duration", "variables.lifetime != '24h'", "variables.lifetime"),
    ("--key", "variables.key != 'ecdsa-p256'", "variables.key"),
    ("--key-rotation", "variables.keyRotation != 'always'", "variables.keyRotation"),
    ("--extra-sans", "size(variables.sans) > 0", "variables.sans.join(',')"),
    ("--reload", "variables.reload != 'auto'", "variables.reload"),
    ("--admin-port", "variables.adminPort != 9179", "string(variables.adminPort)"),
    ("--can-signal", "variables.canSignal", ""),
    ("--revocation-lists", "variables.lists", ""),
    ("--user", "variables.client && variables.user != ''", "variables.user"),
    ("--client-url", "variables.server", "variables.clientUrl"),
    ("--peer-url", "variables.peer", "variables.peerUrl"),
    // Not here: --issuer, --metrics-url and --liveness-url, whose pods are refused.
    ("--dir", "false", "''"),
    ("--restart-pace", "false", "''"),
];

/// A variable that etcd or etcdctl gets.
pub(super) struct Option {
    pub(super) name: String,
    /// CEL.
    pub(super) value: String,
    /// As it stands in the template.
    pub(super) is_true: bool,
}

/// A role's word, and variables that are set together or not at all.
pub(super) type Unit = (&'static str, Vec<Option>);

/// An injected pod with placeholders.
pub(super) struct Template {
    pod: Value,
    probed: Value,
    pub(super) units: Vec<Unit>,
}

impl Template {
    /// Injects with the settings of `config`.
    pub(super) fn of(config: &Config) -> Result<Self, CelError> {
        let pod = inject(config, "peer,server,client,metrics", "auto")?;
        let probed = inject(config, "peer,server,client,metrics", "probe")?;
        let mut units = Vec::new();
        for role in ["peer", "server", "client"] {
            units.extend(units_of(&inject(config, role, "none")?)?.into_iter().map(|unit| (role, unit)));
        }
        // As they are ordered where a pod has all roles.
        let order: Vec<&str> = pod["spec"]["containers"][0]["env"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|variable| variable["name"].as_str())
            .collect();
        let place = |unit: &[Option]| order.iter().position(|name| unit.iter().any(|option| option.name == *name));
        units.sort_by_key(|(_, unit)| place(unit));
        Ok(Self { pod, probed, units })
    }

    /// The three volumes.
    pub(super) fn volumes(&self) -> Result<Vec<String>, CelError> {
        let volumes = self.pod["spec"]["volumes"].as_array().ok_or(CelError::Form("volumes"))?;
        Ok(volumes.iter().map(cel).collect())
    }

    /// Their names.
    pub(super) fn volume_names(&self) -> Vec<&str> {
        let volumes = self.pod["spec"]["volumes"].as_array();
        volumes.into_iter().flatten().filter_map(|v| v["name"].as_str()).collect()
    }

    /// The init container and the sidecar.
    pub(super) fn containers(&self) -> Result<Vec<String>, CelError> {
        let containers = self.pod["spec"]["initContainers"].as_array().ok_or(CelError::Form("initContainers"))?;
        Ok(containers.iter().map(cel).collect())
    }

    /// The mount of etcd's container.
    pub(super) fn mount(&self) -> String {
        cel(&self.pod["spec"]["containers"][0]["volumeMounts"][0])
    }

    /// The liveness probe by which the sidecar has etcd restarted.
    pub(super) fn probe(&self) -> String {
        cel(&self.probed["spec"]["containers"][0]["livenessProbe"])
    }

    /// The arguments behind the subcommand, as a list.
    pub(super) fn words(&self) -> Result<String, CelError> {
        let words = self.pod["spec"]["initContainers"][0]["args"].as_array().ok_or(CelError::Form("arguments"))?;
        let mut parts = Vec::new();
        for word in words.iter().skip(1).filter_map(Value::as_str) {
            let flag = word.split('=').next().unwrap_or(word);
            let (_, condition, value) = ARGUMENTS
                .into_iter()
                .find(|(known, ..)| *known == flag)
                .ok_or_else(|| CelError::Argument(flag.to_owned()))?;
            let word = match value {
                "" => literal(flag),
                value => format!("{} + {value}", literal(&format!("{flag}="))),
            };
            parts.push(only_if(condition, &word));
        }
        Ok(parts.join("\n+ "))
    }
}

fn inject(config: &Config, roles: &str, reload: &str) -> Result<Value, CelError> {
    let resources = RESOURCES.map(|(name, quantity, _)| format!("{name}={quantity}")).join(",");
    let url = "https://127.0.0.1:64997";
    let mut annotations = Map::new();
    for (key, value) in [
        ("roles", roles),
        ("cluster", CLUSTER),
        ("duration", "90m"),
        ("key", "ed25519"),
        ("key-rotation", "on-ca-change"),
        ("extra-sans", "zz.example.com"),
        ("mount-path", MOUNT),
        ("admin-port", &ADMIN_PORT.to_string()),
        ("reload", if reload == "auto" { "signal:SIGTERM" } else { reload }),
        ("resources", &resources),
        ("log-level", LEVEL),
        ("options", "env"),
        ("client-url", url),
        ("peer-url", url),
    ] {
        annotations.insert(format!("{}{key}", names::ANNOTATION_PREFIX), value.into());
    }
    if roles.contains("client") {
        annotations.insert(format!("{}user", names::ANNOTATION_PREFIX), "zz-user".into());
    }
    let mut pod = json!({
        "metadata": {"annotations": annotations, "labels": {names::LABEL: names::DYNAMIC}},
        "spec": {"containers": [{
            "name": names::ETCD_CONTAINER, "image": "etcd", "command": ["etcd"], "securityContext": {"runAsUser": USER},
        }]},
    });
    let origin = Origin { namespace: "default", namespace_opted_in: true, label: true, subdomain: None, trace: None };
    let decision = decide(&json::borrowed(&pod), config, origin);
    match decision {
        PodDecision::Inject { patch, .. } => patch.apply(&mut pod)?,
        PodDecision::Refuse(problems) => return Err(CelError::Refused(problems.join("; "))),
        PodDecision::Leave(_) => return Err(CelError::Refused("it is left alone".to_owned())),
    }
    Ok(pod)
}

/// A key and the certificate of the same name are one unit.
fn units_of(pod: &Value) -> Result<Vec<Vec<Option>>, CelError> {
    let variables = pod["spec"]["containers"][0]["env"].as_array().ok_or(CelError::Form("env"))?;
    let mut units: BTreeMap<String, Vec<Option>> = BTreeMap::new();
    let mut order = Vec::new();
    for variable in variables {
        let (Some(name), Some(value)) = (variable["name"].as_str(), variable["value"].as_str()) else {
            return Err(CelError::Form("plain variables"));
        };
        let unit = name.replace("_KEY", "_CERT");
        if !order.contains(&unit) {
            order.push(unit.clone());
        }
        let option = Option { name: name.to_owned(), value: cel(&variable["value"]), is_true: value == "true" };
        units.entry(unit).or_default().push(option);
    }
    Ok(order.into_iter().filter_map(|unit| units.remove(&unit)).collect())
}

/// The variable with a resource that stands for a placeholder.
fn resource(text: &str) -> std::option::Option<&'static str> {
    RESOURCES.into_iter().find(|(_, quantity, _)| *quantity == text).map(|(.., variable)| variable)
}

/// A value that may be missing.
fn optional(value: &Value) -> std::option::Option<String> {
    let given =
        |condition: String, value: String| Some(format!("{condition} ? optional.of(dyn({value})) : optional.none()"));
    match value {
        Value::String(text) => {
            let variable = resource(text)?;
            given(format!("variables.{variable} != 'none'"), format!("variables.{variable}"))
        }
        Value::Number(number) if number.as_u64() == Some(USER.into()) => {
            given("variables.runAsUser > 0".to_owned(), "variables.runAsUser".to_owned())
        }
        _ => None,
    }
}

/// A value of the template as CEL, placeholders replaced by their variables. What stands in one map or list of JSON may be of
/// several types, so each is a `dyn`.
fn cel(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) if number.as_u64() == Some(ADMIN_PORT.into()) => "variables.adminPort".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text == LEVEL => "variables.logLevel".to_owned(),
        Value::String(text) if text == IMAGE => "params.template.spec.containers[0].image".to_owned(),
        Value::String(text) => placed(text),
        Value::Array(items) => {
            let item = |item: &Value| match item.as_object() {
                Some(map) if map.values().any(|v| v == LEVEL) => {
                    format!("?(variables.logLevel != '' ? optional.of(dyn({})) : optional.none())", cel(item))
                }
                _ => format!("dyn({})", cel(item)),
            };
            format!("[{}]", items.iter().map(item).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| match (key.as_str(), optional(value)) {
                ("args", _) => {
                    format!("'args': dyn([{}] + variables.words)", literal(value[0].as_str().unwrap_or_default()))
                }
                (key, Some(value)) => format!("?{}: {value}", literal(key)),
                (key, None) => format!("{}: dyn({})", literal(key), cel(value)),
            };
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

fn placed(text: &str) -> String {
    for (placeholder, variable) in [(MOUNT, "variables.mountPath"), (CLUSTER, "variables.cluster")] {
        if let Some((before, after)) = text.split_once(placeholder) {
            let parts = [literal(before), variable.to_owned(), literal(after)];
            return parts.into_iter().filter(|part| part != "''").collect::<Vec<_>>().join(" + ");
        }
    }
    literal(text)
}

/// The variables with the resources, by their names in the annotation.
pub(super) fn resources() -> impl Iterator<Item = (&'static str, &'static str)> {
    RESOURCES.into_iter().map(|(name, _, variable)| (name, variable))
}
