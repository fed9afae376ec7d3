//! A static pod's flags that name certificates, made to name ours.
//!
//! kubeadm gives etcd every option by flag, which no environment variable may repeat. A manifest on disk is its owner's to
//! change, so a static pod's flags are changed, and each change is said.

use std::collections::BTreeMap;

use etcd_tls_contract::{names, role::Role, settings::Settings};
use serde_json::Value;

/// Changes the values of the TLS flags of every container that runs etcd by a command of its own. Returns the changes.
pub(super) fn point_at_ours(pod: &mut Value) -> Vec<String> {
    let annotations: BTreeMap<String, String> = pod
        .get("metadata")
        .and_then(|m| m.get("annotations"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with(names::ANNOTATION_PREFIX))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    // Bad annotations are refused with all their reasons a step later.
    let Ok(settings) = Settings::parse(&annotations) else { return Vec::new() };
    let mut said = Vec::new();
    let containers = pod.get_mut("spec").and_then(|s| s.get_mut("containers")).and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let program = ["command", "args"].iter().find_map(|f| container.get(*f)?.get(0)?.as_str());
        if program.is_none_or(|p| p.rsplit('/').next() != Some("etcd")) {
            continue;
        }
        for field in ["command", "args"] {
            let Some(words) = container.get_mut(field).and_then(Value::as_array_mut) else { continue };
            for index in 0..words.len() {
                let Some(word) = words[index].as_str() else { continue };
                let Some((flag, ours)) = ours(word, &settings) else { continue };
                // `--flag=value`, or the value is the next word.
                let (at, theirs) = match word.split_once('=') {
                    Some((_, value)) => (index, value.to_owned()),
                    None => match words.get(index + 1).and_then(Value::as_str) {
                        Some(value) => (index + 1, value.to_owned()),
                        None => continue,
                    },
                };
                if theirs != ours {
                    words[at] = if at == index { format!("--{flag}={ours}").into() } else { ours.clone().into() };
                    said.push(format!("container {name}: --{flag} was {theirs} and is now {ours}"));
                }
            }
        }
    }
    said
}

/// The flag in `word`, if it is one that names a certificate, key or CA of a role that is held, and what it must name.
fn ours(word: &str, settings: &Settings) -> Option<(&'static str, String)> {
    let flag = word.split('=').next()?.strip_prefix('-')?;
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    let known = [
        ("cert-file", Role::Server, names::CERT_FILE),
        ("key-file", Role::Server, names::KEY_FILE),
        ("trusted-ca-file", Role::Server, names::CA_FILE),
        ("peer-cert-file", Role::Peer, names::CERT_FILE),
        ("peer-key-file", Role::Peer, names::KEY_FILE),
        ("peer-trusted-ca-file", Role::Peer, names::CA_FILE),
    ];
    let (flag, role, file) =
        known.into_iter().find(|(name, role, _)| *name == flag && settings.roles.contains(role))?;
    Some((flag, format!("{}/{role}/{file}", settings.mount_path)))
}
