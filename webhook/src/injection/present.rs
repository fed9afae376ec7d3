//! Decides if the objects in the pod with our names are ours.
//!
//! Judged by containment: the API server adds defaults, other webhooks rewrite images, resources and probes, and a pod may have
//! been injected offline by another version. A container or volume of our name must not hide another program.

use clap::Parser;
use etcd_tls_contract::{args::PodArgs, names};
use serde_json::Value;

use super::{
    json::{Json, contains},
    view::{Container, List},
};

/// The command line of an injected container.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    subcommand: String,
    #[command(flatten)]
    args: PodArgs,
}

/// The fields of our containers that other webhooks may change without making them foreign.
const OTHERS_MAY_CHANGE: [&str; 5] = ["image", "imagePullPolicy", "resources", "startupProbe", "ports"];

/// The arguments of an injected container, where it has arguments of ours.
pub(super) fn arguments(container: &Container<'_>, subcommand: &str) -> Option<PodArgs> {
    let line = Line::try_parse_from(container.words("args")).ok()?;
    (line.subcommand == subcommand).then_some(line.args)
}

/// The fields that policy engines add to containers and that ours do not take.
pub(super) const ADDED: [&str; 2] = ["has lifecycle", "has envFrom"];

/// Fields that a container of ours has not.
fn added(theirs: &Container<'_>) -> impl Iterator<Item = String> {
    let has = move |field: &&str| theirs.object.get(field).is_some_and(|v| !is_empty(v));
    ["command", "lifecycle", "envFrom"].into_iter().filter(has).map(|field| format!("has {field}"))
}

/// The parts of `ours` that `theirs`, which has a name of ours, lacks; empty means that it is ours. Its arguments may tell of
/// etcd's ports and of signals what an earlier look at the pod told.
pub(super) fn differences(theirs: &Container<'_>, ours: &Value, args: &PodArgs, subcommand: &str) -> Vec<String> {
    let mut differences = Vec::new();
    if theirs.list != List::Init {
        differences.push("is in spec.containers".to_owned());
    }
    differences.extend(added(theirs));
    match arguments(theirs, subcommand) {
        Some(theirs) if same_settings(&theirs, args) => {}
        Some(_) => differences.push("has arguments of other settings".to_owned()),
        None => differences.push("has other arguments".to_owned()),
    }
    field_differences(theirs, ours, &mut differences);
    differences
}

/// [`differences`] of a static pod's containers, whose arguments must be the same word by word.
pub(super) fn plain_differences(theirs: &Container<'_>, ours: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    differences.extend(added(theirs));
    if theirs.list != List::Init || !same(theirs.object.get("args"), ours.get("args")) {
        differences.push("has other arguments".to_owned());
    }
    field_differences(theirs, ours, &mut differences);
    differences
}

fn field_differences(theirs: &Container<'_>, ours: &Value, differences: &mut Vec<String>) {
    for (field, ours) in ours.as_object().into_iter().flatten() {
        if field == "args" || OTHERS_MAY_CHANGE.contains(&field.as_str()) {
            continue;
        }
        let theirs = theirs.object.get(field).unwrap_or(&Json::Null);
        let held = match field.as_str() {
            "env" => all_contained(theirs, ours, "name"),
            "volumeMounts" => all_contained(theirs, ours, "mountPath"),
            "securityContext" => is_confined(theirs, ours),
            _ => contains(theirs, ours),
        };
        if !held {
            differences.push(format!("differs in {field}"));
        }
    }
}

/// True if a volume of our name is ours: it contains all that we would add and no other source.
pub(super) fn is_volume(theirs: &Json<'_>, ours: &Value) -> bool {
    let fields = theirs.as_object().map_or(0, |o| o.values().filter(|v| !v.is_null()).count());
    contains(theirs, ours) && fields == ours.as_object().map_or(0, |o| o.values().filter(|v| !v.is_null()).count())
}

fn all_contained(theirs: &Json<'_>, ours: &Value, key: &str) -> bool {
    let theirs = theirs.as_array().unwrap_or_default();
    ours.as_array().into_iter().flatten().all(|ours| {
        let of = |theirs: &Json<'_>| same(theirs.as_object().and_then(|theirs| theirs.get(key)), ours.get(key));
        let mut same = theirs.iter().filter(|theirs| of(theirs));
        same.next().is_some_and(|theirs| contains(theirs, ours)) && same.next().is_none()
    })
}

/// A security context as strict as ours. The user may be none or another one that is not root: etcd's may have been declared
/// since, and a cluster may assign users of its own.
fn is_confined(theirs: &Json<'_>, ours: &Value) -> bool {
    let mut ours = ours.clone();
    if let Value::Object(ours) = &mut ours {
        ours.shift_remove("runAsUser");
    }
    let as_root = ours.get("runAsNonRoot") == Some(&Value::Bool(false));
    contains(theirs, &ours) && theirs.get("runAsUser").as_u64().is_none_or(|user| user != 0 || as_root)
}

fn same_settings(theirs: &PodArgs, ours: &PodArgs) -> bool {
    let mut theirs = theirs.clone();
    theirs.can_signal = ours.can_signal;
    theirs.revocation_lists = ours.revocation_lists;
    theirs.client_url.clone_from(&ours.client_url);
    theirs.peer_url.clone_from(&ours.peer_url);
    theirs.metrics_url.clone_from(&ours.metrics_url);
    theirs.liveness_url.clone_from(&ours.liveness_url);
    theirs == *ours
}

/// True if both are missing, or each holds all of the other.
fn same(theirs: Option<&Json<'_>>, ours: Option<&Value>) -> bool {
    match (theirs, ours) {
        (Some(theirs), Some(ours)) => contains(theirs, ours),
        (theirs, ours) => theirs.is_none() && ours.is_none(),
    }
}

fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::Null => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// The subcommand of the injected container `name`.
pub(super) fn subcommand(name: &str) -> &'static str {
    if name == names::INIT_CONTAINER { "init" } else { "run" }
}
