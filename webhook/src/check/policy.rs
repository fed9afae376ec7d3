//! A policy, before it is applied and as it is in force. Pure but for the file.

use std::path::Path;

use etcd_tls_contract::{names, policy::Policy};
use k8s_openapi::api::core::v1::ConfigMap;

use super::finding::{APPLY, Finding};
use crate::{
    error::{Error, OfFile},
    status::State,
};

pub(super) const SUBJECT: &str = "policy";
pub(super) const SEE: &str = "docs/check.md#policy";

/// The ConfigMap in force.
pub(super) fn judge_config_map(found: Option<&ConfigMap>) -> Finding {
    let Some(found) = found else {
        let reason =
            format!("ConfigMap {} is missing: no request is decided after the next start", names::POLICY_CONFIG_MAP);
        return Finding::bad(State::Failing, SUBJECT, reason, APPLY, SEE);
    };
    let text = found.data.as_ref().and_then(|data| data.get(names::POLICY_KEY)).map_or("", String::as_str);
    let next = format!("kubectl -n {} edit configmap {}", names::SYSTEM_NAMESPACE, names::POLICY_CONFIG_MAP);
    match Policy::parse(text) {
        Ok(_) => Finding::ok(SUBJECT, "it can be read", SEE),
        Err(error) => {
            let reason = format!("it cannot be read, so the last readable one stays in force: {error}");
            Finding::bad(State::Failing, SUBJECT, reason, next, SEE)
        }
    }
}

/// The policy in a file: a ConfigMap with the key `policy.yaml`, or what such a key holds.
///
/// # Errors
/// The file cannot be read.
pub(super) fn of_file(path: &Path) -> Result<Finding, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| OfFile::new(path, error))?;
    Ok(judge_text(&path.display().to_string(), &text))
}

fn judge_text(file: &str, text: &str) -> Finding {
    let subject = format!("policy {file}");
    let bad = |reason: String| Finding::bad(State::Failing, &subject, reason, format!("correct {file}"), SEE);
    let kind =
        serde_saphyr::from_str::<serde_json::Value>(text).ok().and_then(|v| Some(v.get("kind")?.as_str()?.to_owned()));
    let inner = match kind.as_deref() {
        None => text.to_owned(),
        Some("ConfigMap") => match serde_saphyr::from_str::<ConfigMap>(text) {
            Err(error) => return bad(format!("is no ConfigMap: {error}")),
            Ok(found) if found.metadata.name.as_deref() != Some(names::POLICY_CONFIG_MAP) => {
                return bad(format!("is a ConfigMap of another name than {}", names::POLICY_CONFIG_MAP));
            }
            Ok(found) => match found.data.unwrap_or_default().remove(names::POLICY_KEY) {
                None => return bad(format!("has no key {}: it would set no policy", names::POLICY_KEY)),
                Some(inner) => inner,
            },
        },
        Some(kind) => return bad(format!("is a {kind}, not a ConfigMap")),
    };
    match Policy::parse(&inner) {
        Ok(_) => Finding::ok(&subject, "it can be read", SEE),
        Err(error) => bad(format!("would not be taken: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_the_cluster_would() {
        let map = |name: &str, key: &str, policy: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  {key}: |\n    {policy}\n")
        };
        for (text, state, words) in [
            ("clusterDomain: k8s.example\n".to_owned(), State::Ok, "can be read"),
            (String::new(), State::Ok, "can be read"),
            ("clusterDomian: x\n".to_owned(), State::Failing, "clusterDomian"),
            (map("etcd-tls-policy", "policy.yaml", "clusterDomain: k8s.example"), State::Ok, "can be read"),
            (map("etcd-tls-policy", "policy.yaml", "nonsense: 1"), State::Failing, "nonsense"),
            (map("etcd-tls-policy", "policy.yml", "clusterDomain: a"), State::Failing, "no key policy.yaml"),
            (map("other", "policy.yaml", "clusterDomain: a"), State::Failing, "another name"),
            ("kind: Secret\n".to_owned(), State::Failing, "is a Secret"),
            ("{".to_owned(), State::Failing, "would not be taken"),
        ] {
            let finding = judge_text("f", &text);
            assert!(finding.state == state && finding.reason.contains(words), "{text}: {finding:?}");
        }
    }
}
