//! A document that was injected into and edited since. The original that it keeps tells what the injection added: that is
//! taken out of the edited document, and what remains is the original with the edits in it. Without an original nobody knows
//! which variables are the author's own, and nothing is taken out.

use etcd_tls_contract::names;
use serde_json::{Map, Value};

/// The fields of our containers that a person may change by hand. They stay while nothing else is a reason to inject anew.
const TUNABLE: [&str; 4] = ["imagePullPolicy", "resources", "startupProbe", "ports"];
const PROBE: &str = "livenessProbe";
/// How many differences are named.
const MAX_NAMED: usize = 4;

/// True if both are the same object, by kind and name.
pub(super) fn same_object(one: &Value, other: &Value) -> bool {
    let of = |value: &Value| [value["kind"].clone(), value["metadata"]["name"].clone()];
    of(one) == of(other)
}

/// `edited` without what made `injected` of `original`; `None`: nothing remains. `field`: the field whose value it is, or whose
/// item.
pub(super) fn undo(
    edited: Option<&Value>,
    injected: Option<&Value>,
    original: Option<&Value>,
    field: &str,
) -> Option<Value> {
    if injected == original {
        return edited.cloned();
    }
    if edited == injected {
        return original.cloned();
    }
    let (Some(edited), Some(injected)) = (edited, injected) else { return edited.cloned() };
    let original = original.filter(|original| !original.is_null());
    let mut renewed = None;
    if field == PROBE {
        match program(edited) == program(injected) {
            // Whoever put in another check has a probe of their own.
            false => return Some(edited.clone()),
            true if original.is_none() => return None,
            // Of another version the arguments may differ.
            true if edited.get("exec") != injected.get("exec") => {
                let mut probe = edited.clone();
                probe["exec"] = injected["exec"].clone();
                renewed = Some(probe);
            }
            true => {}
        }
    }
    let edited = renewed.as_ref().unwrap_or(edited);
    let undone: Value = match (edited, injected, original) {
        (Value::Object(edited), Value::Object(injected), None | Some(Value::Object(_))) => {
            let before = original.and_then(Value::as_object);
            let removed = before.into_iter().flatten().map(|(key, _)| key).filter(|key| !edited.contains_key(*key));
            let keys = edited.keys().chain(removed);
            let of = |key: &String| {
                let original = before.and_then(|before| before.get(key));
                Some((key.clone(), undo(edited.get(key), injected.get(key), original, key)?))
            };
            keys.filter_map(of).collect::<Map<_, _>>().into()
        }
        (Value::Array(edited), Value::Array(injected), None | Some(Value::Array(_))) => {
            let before = original.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let of = |item: &Value| {
                let Some(name) = key(item) else {
                    let added = injected.len() > before.len() && injected.contains(item) && !before.contains(item);
                    return (!added).then(|| item.clone());
                };
                let find = |list: &[Value]| list.iter().find(|item| key(item) == Some(name.clone())).cloned();
                match (find(injected), find(before)) {
                    // A variable with another value is its author's. Our containers and volumes are made anew.
                    (Some(ours), None) => (field == "env" && ours != *item).then(|| item.clone()),
                    (ours, theirs) => undo(Some(item), ours.as_ref(), theirs.as_ref(), field),
                }
            };
            edited.iter().filter_map(of).collect::<Vec<_>>().into()
        }
        _ => return Some(edited.clone()),
    };
    (original.is_some() || !is_empty(&undone)).then_some(undone)
}

/// The program that a probe runs.
fn program(probe: &Value) -> Option<&Value> {
    probe.get("exec").and_then(|exec| exec.get("command")?.get(0))
}

/// The key by which an item of a list is told from the others.
pub(super) fn key(item: &Value) -> Option<String> {
    let object = || {
        let metadata = item.get("metadata")?;
        let parts = [&item["kind"], &metadata["namespace"], &metadata["name"]];
        Some(parts.map(|part| part.as_str().unwrap_or_default()).join("/"))
    };
    // A mount has the name of its volume.
    let name = item.get("mountPath").or_else(|| item.get("name"));
    name.and_then(Value::as_str).map(str::to_owned).or_else(object)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// In which fields `edited` differs from `anew`, which it would be now, as text; `None`: in none that an injection sets.
/// `injected`: what it was before the edit.
pub(super) fn difference(edited: &Value, anew: &Value, injected: &Value) -> Option<String> {
    listed(found(edited, anew, injected, false))
}

/// Which fields of our containers and of our probe were set by hand, and are in `anew` as the injection sets them, as text;
/// `None`: none.
pub(super) fn lost(edited: &Value, anew: &Value, injected: &Value) -> Option<String> {
    let others = found(edited, anew, injected, false);
    listed(found(edited, anew, injected, true).into_iter().filter(|place| !others.contains(place)).collect())
}

fn found(edited: &Value, anew: &Value, injected: &Value, tuned: bool) -> Vec<String> {
    let mut found = Vec::new();
    differences(edited, anew, injected, tuned, &mut Vec::new(), &mut found);
    found.dedup();
    found
}

fn listed(mut found: Vec<String>) -> Option<String> {
    let more = found.len().saturating_sub(MAX_NAMED);
    found.truncate(MAX_NAMED);
    (!found.is_empty()).then(|| match more {
        0 => found.join(", "),
        _ => format!("{}, and {more} more", found.join(", ")),
    })
}

/// `tuned`: those too that alone are no reason to inject anew.
fn differences(
    edited: &Value,
    anew: &Value,
    injected: &Value,
    tuned: bool,
    place: &mut Vec<String>,
    found: &mut Vec<String>,
) {
    let same = |one: &Value, other: &Value| one == other || is_empty(one) && is_empty(other);
    if same(edited, anew) {
        return;
    }
    let is_ours = [names::INIT_CONTAINER, names::SIDECAR_CONTAINER].map(Value::from).contains(&edited["name"]);
    let in_probe = place.last().is_some_and(|field| field == PROBE);
    match (edited, anew) {
        (Value::Object(_), Value::Object(_)) => {
            let keys =
                |of: &Value| of.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect::<Vec<_>>();
            let mut all = keys(edited);
            all.extend(keys(anew).into_iter().filter(|key| edited.get(key).is_none()));
            for key in all {
                let (theirs, ours, before) = (&edited[&key], &anew[&key], &injected[&key]);
                let tunable = is_ours && TUNABLE.contains(&key.as_str()) || in_probe && key != "exec";
                // The API server and others add fields that we do not set.
                if same(ours, before) && (tunable && !tuned || !tunable && is_empty(ours)) {
                    continue;
                }
                place.push(key);
                differences(theirs, ours, before, tuned, place, found);
                place.pop();
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.iter().chain(ours).all(|item| key(item).is_some()) => {
            let find = |list: &Value, name: &Option<String>| {
                list.as_array().into_iter().flatten().find(|item| key(item) == *name).cloned().unwrap_or_default()
            };
            let added = ours.iter().filter(|item| find(edited, &key(item)).is_null());
            for name in theirs.iter().chain(added).map(key) {
                place.push(name.clone().unwrap_or_default());
                match [edited, anew, injected].map(|list| find(list, &name)) {
                    [Value::Null, ..] | [_, Value::Null, _] => found.push(place.join(".")),
                    [theirs, ours, before] => differences(&theirs, &ours, &before, tuned, place, found),
                }
                place.pop();
            }
        }
        _ => found.push(place.join(".")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_injection_added_is_taken_out_and_what_a_person_wrote_stays() {
        let original = json!({
            "a": 1, "env": [{"name": "MINE", "value": "/tls/x"}],
            "livenessProbe": {"httpGet": {"host": "127.0.0.1", "port": 1}, "timeoutSeconds": 2},
        });
        let injected = json!({
            "a": 1, "env": [{"name": "MINE", "value": "/tls/x"}, {"name": "OURS", "value": "/tls/y"}], "groups": [5], "share": true,
            "livenessProbe": {"exec": {"command": ["p"]}, "timeoutSeconds": 9},
        });
        let undone = |edit: &dyn Fn(&mut Value)| {
            let mut edited = injected.clone();
            edit(&mut edited);
            undo(Some(&edited), Some(&injected), Some(&original), "").unwrap()
        };
        let with = |edit: &dyn Fn(&mut Value)| {
            let mut original = original.clone();
            edit(&mut original);
            original
        };
        assert_eq!(undone(&|_| {}), original);
        // An edit beside.
        assert_eq!(undone(&|v| v["a"] = json!(2)), with(&|v| v["a"] = json!(2)));
        assert_eq!(undone(&|v| v["env"][0]["value"] = json!("z")), with(&|v| v["env"][0]["value"] = json!("z")));
        // An edit of what was added: the person's word.
        assert_eq!(undone(&|v| v["share"] = json!(false)), with(&|v| v["share"] = json!(false)));
        assert_eq!(undone(&|v| v["groups"] = json!([5, 6])), with(&|v| v["groups"] = json!([6])));
        let other = json!({"name": "OURS", "value": "/mine"});
        assert_eq!(
            undone(&|v| v["env"][1] = other.clone()),
            with(&|v| v["env"].as_array_mut().unwrap().push(other.clone()))
        );
        let more = json!({"name": "MORE", "value": "/tls/y"});
        assert_eq!(
            undone(&|v| v["env"].as_array_mut().unwrap().push(more.clone())),
            with(&|v| v["env"].as_array_mut().unwrap().push(more.clone())),
            "below the mount, too"
        );
        // A probe is given back as it was, with what was tuned since.
        let tuned = |v: &mut Value| v["livenessProbe"]["periodSeconds"] = json!(7);
        assert_eq!(undone(&tuned), with(&tuned));
        let replaced = json!({"tcpSocket": {"port": 3}});
        let replace = |v: &mut Value| v["livenessProbe"] = replaced.clone();
        assert_eq!(undone(&replace), with(&replace));
    }

    #[test]
    fn what_was_tuned_by_hand_is_no_difference() {
        let injected = json!({"spec": {
            "initContainers": [{"name": "etcd-tls-sidecar", "args": ["run"], "resources": {"limits": {"cpu": "1"}}}],
            "containers": [{"name": "etcd", "livenessProbe": {"exec": {"command": ["p"]}, "periodSeconds": 10}}],
        }});
        let edited = |edit: &dyn Fn(&mut Value)| {
            let mut edited = injected.clone();
            edit(&mut edited);
            edited
        };
        let sidecar = |v: &mut Value, field: &str, to: Value| v["spec"]["initContainers"][0][field] = to;
        for same in [
            edited(&|v| sidecar(v, "resources", json!({"limits": {"cpu": "2"}}))),
            edited(&|v| sidecar(v, "terminationMessagePath", json!("/dev/termination-log"))),
            edited(&|v| v["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = json!(3)),
            edited(&|v| v["spec"]["tolerations"] = json!([])),
        ] {
            assert_eq!(difference(&same, &injected, &injected), None, "{same}");
        }
        let faster = |v: &mut Value| v["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = json!(3);
        let both = edited(&|v| {
            sidecar(v, "resources", json!({"limits": {"cpu": "2"}}));
            sidecar(v, "args", json!(["run", "--x"]));
            faster(v);
        });
        let tuned = lost(&both, &injected, &injected).unwrap();
        assert!(tuned.contains("etcd-tls-sidecar.resources.limits.cpu") && !tuned.contains("args"), "{tuned}");
        assert!(tuned.contains("etcd.livenessProbe.periodSeconds"), "{tuned}");
        assert_eq!(lost(&injected, &injected, &injected), None);
        let other = edited(&|v| sidecar(v, "args", json!(["run", "--x"])));
        assert_eq!(difference(&other, &injected, &injected).unwrap(), "spec.initContainers.etcd-tls-sidecar.args");
        // An annotation asks for others than before the edit.
        let now = edited(&|v| sidecar(v, "resources", json!({"limits": {"cpu": "3"}})));
        assert_eq!(
            difference(&injected, &now, &injected).unwrap(),
            "spec.initContainers.etcd-tls-sidecar.resources.limits.cpu"
        );
        let gone = edited(&|v| v["spec"]["initContainers"] = json!([]));
        assert_eq!(difference(&gone, &injected, &injected).unwrap(), "spec.initContainers.etcd-tls-sidecar");
    }
}
