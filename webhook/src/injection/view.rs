//! A pod as the decision reads it: borrowed from the raw object, whose unknown fields nobody has to know.
//!
//! A missing list and a null list are both empty, as the API server reads them; a field of a wrong type is a problem.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use etcd_tls_contract::names;

use super::json::{Json, Object};

/// The longest list that is looked at. A pod whose lists are longer does not fit into what the API server stores, or no node
/// can run it.
const MAX_LIST: usize = 10_000;

/// Bytes of text that the scripts of one container may put together, however short they are, and those of all containers of a pod.
pub(super) const ROOM: usize = 256 * 1024;
const ROOM_OF_ALL: usize = 4 * ROOM;

/// The longest name of a container, hostname and subdomain: a DNS label. A longer name of a pod is no hostname as it is.
pub(super) const MAX_LABEL: usize = 63;

/// A pod, or the template of one.
pub(super) struct Pod<'a> {
    /// True if `metadata` is an object.
    pub(super) has_metadata: bool,
    /// `metadata`, or an empty one.
    pub(super) metadata: &'a Object<'a>,
    /// Our labels alone.
    pub(super) labels: BTreeMap<String, String>,
    /// Our annotations alone.
    pub(super) annotations: BTreeMap<String, String>,
    /// Made by a kubelet of a file on its node.
    pub(super) mirror: bool,
    /// `metadata.namespace`.
    pub(super) namespace: Option<&'a str>,
    /// `spec`.
    pub(super) spec: &'a Object<'a>,
    /// The hostname, empty where it is not known yet, and `spec.subdomain`, empty where there is none; `None` of a template, whose
    /// pods get both from their controller.
    pub(super) dns: Option<(&'a str, &'a str)>,
    /// `spec.initContainers`, then `spec.containers`.
    pub(super) containers: Vec<Container<'a>>,
    /// `spec.volumes`.
    pub(super) volumes: &'a [Json<'a>],
    /// The volumes by their names; the first of a name.
    volumes_by_name: HashMap<&'a str, &'a Json<'a>>,
}

/// A container of either list.
#[derive(Clone, Copy)]
pub(super) struct Container<'a> {
    /// `name`.
    pub(super) name: &'a str,
    /// Which list.
    pub(super) list: List,
    /// Where in its list.
    pub(super) index: usize,
    /// The whole object.
    pub(super) object: &'a Object<'a>,
    /// How much text its scripts may put together, in bytes, beside what their length allows.
    pub(super) room: usize,
}

/// One of a pod's lists of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Init,
    Main,
}

impl List {
    /// The list's field in the spec.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Main => "containers",
        }
    }
}

/// A pod whose fields are not of their types.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub(super) struct InvalidPod {
    /// One sentence for each field.
    pub(super) problems: Vec<String>,
}

impl<'a> Pod<'a> {
    /// Reads `pod`.
    ///
    /// # Errors
    /// Every field that is not of its type.
    pub(super) fn read(pod: &'a Json<'a>) -> Result<Self, InvalidPod> {
        let mut problems = Vec::new();
        let Some(root) = pod.as_object() else {
            return Err(InvalidPod { problems: vec!["the object is no JSON object".to_owned()] });
        };
        let empty = empty();
        let metadata = object(root, "metadata", "", &mut problems).unwrap_or(empty);
        let mirror = metadata.get("annotations").is_some_and(|a| !a.get("kubernetes.io/config.mirror").is_null());
        let labels =
            strings(metadata, "labels", |key| key == names::LABEL || key == names::INJECTED_LABEL, &mut problems);
        let annotations =
            strings(metadata, "annotations", |key| key.starts_with(names::ANNOTATION_PREFIX), &mut problems);
        let namespace = metadata.get("namespace").and_then(Json::as_str).filter(|n| !n.is_empty());
        let Some(spec) = object(root, "spec", "", &mut problems) else {
            problems.push("spec is missing".to_owned());
            return Err(InvalidPod { problems });
        };
        let mut containers = Vec::new();
        for list in [List::Init, List::Main] {
            let field = list.field();
            for (index, value) in array(spec, field, "spec.", &mut problems).iter().enumerate() {
                match (value.as_object(), value.get("name").as_str()) {
                    // A name that no API server takes would stand in every sentence about the container.
                    (Some(_), Some(name)) if name.len() > MAX_LABEL => {
                        problems.push(format!("spec.{field}[{index}].name is longer than {MAX_LABEL} characters"));
                    }
                    (Some(object), Some(name)) if !name.is_empty() => {
                        check_container(object, name, &mut problems);
                        containers.push(Container { name, list, index, object, room: ROOM });
                    }
                    (Some(_), _) => problems.push(format!("spec.{field}[{index}] has no name")),
                    (None, _) => problems.push(format!("spec.{field}[{index}] is no object")),
                }
            }
        }
        if !containers.iter().any(|c| c.list == List::Main) {
            problems.push("spec.containers is empty".to_owned());
        }
        let room = ROOM.min(ROOM_OF_ALL / containers.len().max(1));
        containers.iter_mut().for_each(|container| container.room = room);
        for field in ["hostname", "subdomain"] {
            if spec.get(field).and_then(Json::as_str).is_some_and(|name| name.len() > MAX_LABEL) {
                problems.push(format!("spec.{field} is longer than {MAX_LABEL} characters"));
            }
        }
        object(spec, "securityContext", "spec.", &mut problems);
        let volumes = array(spec, "volumes", "spec.", &mut problems);
        if containers.len() > MAX_LIST {
            problems.push(format!("the pod has {} containers; at most {MAX_LIST} are looked at", containers.len()));
        }
        let mut volumes_by_name = HashMap::with_capacity(volumes.len());
        for volume in volumes {
            if let Some(name) = volume.get("name").as_str() {
                volumes_by_name.entry(name).or_insert(volume);
            }
        }
        if problems.is_empty() {
            let has_metadata = root.get("metadata").is_some_and(Json::is_object);
            let text = |of: &'a Object<'a>, field| of.get(field).and_then(Json::as_str).filter(|text| !text.is_empty());
            let name = text(metadata, "name").filter(|name| name.len() <= MAX_LABEL);
            let hostname = text(spec, "hostname").or(name).unwrap_or_default();
            let is_pod = text(root, "kind") == Some("Pod");
            let dns = is_pod.then(|| (hostname, text(spec, "subdomain").unwrap_or_default()));
            Ok(Self {
                has_metadata,
                metadata,
                labels,
                annotations,
                mirror,
                namespace,
                spec,
                dns,
                containers,
                volumes,
                volumes_by_name,
            })
        } else {
            Err(InvalidPod { problems })
        }
    }

    /// A field of the pod's security context.
    pub(super) fn security(&self, field: &str) -> Option<&'a Json<'a>> {
        self.spec.get("securityContext")?.as_object()?.get(field).filter(|v| !v.is_null())
    }

    /// A field of the spec that is `true`.
    pub(super) fn flag(&self, field: &str) -> bool {
        self.spec.get(field).and_then(Json::as_bool).unwrap_or(false)
    }

    /// The volume of this name.
    pub(super) fn volume(&self, name: &str) -> Option<&'a Json<'a>> {
        self.volumes_by_name.get(name).copied()
    }

    /// The container of this name, in whichever list.
    pub(super) fn container(&self, name: &str) -> Option<Container<'a>> {
        self.containers.iter().find(|c| c.name == name).copied()
    }

    /// The user that `container` is declared to run as: its own, else the pod's.
    pub(super) fn user(&self, container: &Container<'a>) -> Option<u64> {
        let own = container.object.get("securityContext").and_then(|s| s.get("runAsUser").as_u64());
        own.or_else(|| self.security("runAsUser").and_then(Json::as_u64))
    }
}

impl<'a> Container<'a> {
    /// A list of the container; checked when the pod was read.
    pub(super) fn list(&self, field: &str) -> &'a [Json<'a>] {
        self.object.get(field).and_then(Json::as_array).unwrap_or_default()
    }

    /// `command` or `args`.
    pub(super) fn words(&self, field: &str) -> impl Iterator<Item = &'a str> {
        self.list(field).iter().filter_map(Json::as_str)
    }

    /// True if `envFrom` may bring a variable whose name begins so.
    pub(super) fn env_from(&self, name: &str) -> bool {
        let prefix = |from: &'a Json<'a>| from.get("prefix").as_str().unwrap_or_default();
        self.list("envFrom").iter().any(|from| name.starts_with(prefix(from)) || prefix(from).starts_with(name))
    }

    /// True if it goes on running beside the pod's containers.
    pub(super) fn runs_on(&self) -> bool {
        self.list == List::Main || self.object.get("restartPolicy").and_then(Json::as_str) == Some("Always")
    }

    /// True if it is one of ours by its name.
    pub(super) fn is_injected(&self) -> bool {
        self.name == names::INIT_CONTAINER || self.name == names::SIDECAR_CONTAINER
    }
}

/// The names of containers for people: of many, the first ones.
pub(super) fn listed(containers: &[Container<'_>]) -> String {
    const MOST: usize = 20;
    let names = containers.iter().take(MOST).map(|c| c.name).collect::<Vec<_>>().join(", ");
    let more = containers.len().saturating_sub(MOST);
    if more > 0 { format!("{names} and {more} more") } else { names }
}

fn empty() -> &'static Object<'static> {
    static EMPTY: LazyLock<Object<'static>> = LazyLock::new(Object::default);
    &EMPTY
}

fn check_container(container: &Object<'_>, name: &str, problems: &mut Vec<String>) {
    let path = format!("container {name}: ");
    for field in ["command", "args"] {
        if array(container, field, &path, problems).iter().any(|word| !word.is_string()) {
            problems.push(format!("{path}{field} holds what is no string"));
        }
    }
    for field in ["env", "volumeMounts", "ports"] {
        if array(container, field, &path, problems).iter().any(|entry| !entry.is_object()) {
            problems.push(format!("{path}{field} holds what is no object"));
        }
    }
    object(container, "securityContext", &path, problems);
}

fn object<'a>(parent: &'a Object<'a>, field: &str, path: &str, problems: &mut Vec<String>) -> Option<&'a Object<'a>> {
    match parent.get(field) {
        None | Some(Json::Null) => None,
        Some(Json::Object(object)) => Some(object),
        Some(_) => {
            problems.push(format!("{path}{field} is no object"));
            None
        }
    }
}

fn array<'a>(parent: &'a Object<'a>, field: &str, path: &str, problems: &mut Vec<String>) -> &'a [Json<'a>] {
    match parent.get(field) {
        None | Some(Json::Null) => &[],
        Some(Json::Array(array)) if array.len() <= MAX_LIST => array,
        Some(Json::Array(array)) => {
            problems.push(format!("{path}{field} has {} entries; at most {MAX_LIST} are looked at", array.len()));
            &[]
        }
        Some(_) => {
            problems.push(format!("{path}{field} is no list"));
            &[]
        }
    }
}

fn strings(
    metadata: &Object<'_>,
    field: &str,
    ours: impl Fn(&str) -> bool,
    problems: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let Some(map) = object(metadata, field, "metadata.", problems) else { return BTreeMap::new() };
    let mut read = BTreeMap::new();
    for (key, value) in map.iter().filter(|(key, _)| ours(key)) {
        match value.as_str() {
            Some(value) => {
                read.insert(key.to_owned(), value.to_owned());
            }
            None => problems.push(format!("metadata.{field}: {key} is no string")),
        }
    }
    read
}
