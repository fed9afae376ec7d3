//! Additions of an older version that this version does not make: beside an original, they look like their author's. The
//! arguments of the older sidecar tell them apart. Released versions differ in four: the shared process namespace that comes with
//! the right to signal, the options of revocation lists, the file of the key, and the arguments of the liveness probe.

use etcd_tls_contract::names;
use serde_json::Value;

/// The variables that name a private key.
const KEYS: [&str; 3] = ["ETCD_KEY_FILE", "ETCD_PEER_KEY_FILE", "ETCDCTL_KEY"];
/// The variables that name a revocation list, with the directory of their role.
const LISTS: [(&str, &str); 2] = [("ETCD_CLIENT_CRL_FILE", "server"), ("ETCD_PEER_CRL_FILE", "peer")];
const SHARED: &str = "shareProcessNamespace";

/// Takes out of `edited` the additions of an older version to `original`, which this version makes `injected`. Without our sidecar
/// in it a pod stays as it is.
pub(super) fn take_out(edited: &mut Value, injected: &Value, original: &Value) {
    if edited["initContainers"].is_array() && edited["containers"].is_array() {
        return pod(edited, injected, original);
    }
    match edited {
        Value::Object(map) => {
            for (key, value) in map {
                take_out(value, &injected[key.as_str()], &original[key.as_str()]);
            }
        }
        Value::Array(list) => {
            for item in list {
                let key = super::anew::key(item);
                let find = |list: &Value| find(list, |other| key.is_some() && super::anew::key(other) == key).clone();
                take_out(item, &find(injected), &find(original));
            }
        }
        _ => {}
    }
}

fn pod(edited: &mut Value, injected: &Value, original: &Value) {
    let sidecar = |pod: &Value| named(&pod["initContainers"], names::SIDECAR_CONTAINER).clone();
    let (theirs, ours) = (sidecar(edited), sidecar(injected));
    // Without one of both there is nothing to compare.
    if theirs.is_null() || ours.is_null() {
        return;
    }
    let older = |argument: &str| says(&theirs, argument) && !says(&ours, argument);
    let (signalled, listed) = (older("--can-signal"), older("--revocation-lists"));
    let other = ["command", "args", "env", "volumeMounts"].iter().any(|field| theirs[*field] != ours[*field]);
    if signalled && edited[SHARED] == true && original[SHARED].is_null() && injected[SHARED].is_null() {
        remove(edited, SHARED);
    }
    for list in ["containers", "initContainers"] {
        for container in edited[list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let of = |pod: &Value| named(&pod[list], &name).clone();
            let (ours, before) = (of(injected), of(original));
            // A container that came since has nothing of ours.
            if before.is_null() {
                continue;
            }
            let mount = find(&container["volumeMounts"], |mount| mount["name"] == names::VOLUME)["mountPath"].clone();
            if let Some(variables) = container.get_mut("env").and_then(Value::as_array_mut) {
                variables.retain(|variable| {
                    let name = variable["name"].as_str().unwrap_or_default();
                    let added = named(&before["env"], name).is_null();
                    let now = named(&ours["env"], name);
                    let is_list = listed && now.is_null() && is_list(variable, &mount);
                    !(added && (is_list || other && is_key(variable, now)))
                });
                if variables.is_empty() && before["env"].is_null() {
                    remove(container, "env");
                }
            }
        }
    }
}

/// Whether `variable` names the one file of a role's key and `now` the other one: a version may keep key and chain in one file.
fn is_key(variable: &Value, now: &Value) -> bool {
    let directory = |of: &Value| {
        let (directory, file) = of["value"].as_str()?.rsplit_once('/')?;
        [names::KEY_FILE, names::CERT_FILE].contains(&file).then(|| directory.to_owned())
    };
    KEYS.iter().any(|name| variable["name"] == *name)
        && directory(variable).is_some_and(|of| Some(of) == directory(now))
}

/// Whether `variable` gives etcd a revocation list below `mount`.
fn is_list(variable: &Value, mount: &Value) -> bool {
    let Some(mount) = mount.as_str() else { return false };
    LISTS.iter().any(|(name, role)| {
        variable["name"] == *name && variable["value"] == format!("{mount}/{role}/{}", names::CRL_FILE)
    })
}

fn says(container: &Value, argument: &str) -> bool {
    container["args"].as_array().is_some_and(|all| all.iter().any(|word| word == argument))
}

fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    find(list, |item| item["name"] == name)
}

fn find(list: &Value, is: impl Fn(&Value) -> bool) -> &Value {
    list.as_array().and_then(|all| all.iter().find(|item| is(item))).unwrap_or(&Value::Null)
}

fn remove(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.shift_remove(field);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    /// A pod with our sidecar of these arguments and these variables of etcd; `shared`: with a shared process namespace.
    fn pod(args: &[&str], variables: &[(&str, &str)], shared: bool) -> Value {
        let env: Vec<Value> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut spec = json!({
            "initContainers": [{"name": names::SIDECAR_CONTAINER, "args": args}],
            "containers": [{"name": "etcd", "env": env, "volumeMounts": [{"name": names::VOLUME, "mountPath": "/tls"}]}],
        });
        if shared {
            spec[SHARED] = true.into();
        }
        json!({"spec": {"template": {"spec": spec}}})
    }

    fn original(variables: &[(&str, &str)], shared: bool) -> Value {
        let mut original = pod(&[], variables, shared);
        let spec = original["spec"]["template"]["spec"].as_object_mut().unwrap();
        spec.shift_remove("initContainers");
        spec["containers"][0].as_object_mut().unwrap().shift_remove("volumeMounts");
        original
    }

    #[test]
    fn additions_of_an_older_version_go_and_the_authors_own_stay() {
        let (key, chain) = (("ETCD_KEY_FILE", "/tls/server/tls.key"), ("ETCD_KEY_FILE", "/tls/server/tls.crt"));
        let list = ("ETCD_PEER_CRL_FILE", "/tls/peer/ca.crl");
        let mine = ("MINE", "/tls/server/tls.key");
        let elsewhere = ("ETCD_KEY_FILE", "/mine/tls.key");
        let other_list = ("ETCD_PEER_CRL_FILE", "/mine/ca.crl");
        let cases = [
            // The right to signal that the older sidecar had, this one has it not.
            (
                pod(&["--can-signal"], &[], true),
                pod(&[], &[], false),
                original(&[], false),
                pod(&["--can-signal"], &[], false),
            ),
            // It had none: the author shares it.
            (pod(&[], &[], true), pod(&[], &[], false), original(&[], false), pod(&[], &[], true)),
            (
                pod(&["--can-signal"], &[], true),
                pod(&[], &[], true),
                original(&[], true),
                pod(&["--can-signal"], &[], true),
            ),
            // The file of the key.
            (
                pod(&["--x"], &[key, mine], false),
                pod(&[], &[chain], false),
                original(&[], false),
                pod(&["--x"], &[mine], false),
            ),
            (pod(&["--x"], &[chain], false), pod(&[], &[key], false), original(&[], false), pod(&["--x"], &[], false)),
            (pod(&[], &[key], false), pod(&[], &[chain], false), original(&[], false), pod(&[], &[key], false)),
            (
                pod(&["--x"], &[key], false),
                pod(&[], &[key], false),
                original(&[key], false),
                pod(&["--x"], &[key], false),
            ),
            (
                pod(&["--x"], &[elsewhere], false),
                pod(&[], &[key], false),
                original(&[], false),
                pod(&["--x"], &[elsewhere], false),
            ),
            // Lists that the older sidecar installed.
            (
                pod(&["--revocation-lists"], &[list, mine], false),
                pod(&[], &[], false),
                original(&[], false),
                pod(&["--revocation-lists"], &[mine], false),
            ),
            (
                pod(&["--revocation-lists"], &[other_list], false),
                pod(&[], &[], false),
                original(&[], false),
                pod(&["--revocation-lists"], &[other_list], false),
            ),
            (pod(&[], &[list], false), pod(&[], &[], false), original(&[], false), pod(&[], &[list], false)),
        ];
        for (index, (mut edited, injected, original, wanted)) in cases.into_iter().enumerate() {
            take_out(&mut edited, &injected, &original);
            assert_eq!(edited, wanted, "case {index}");
        }
    }
}
