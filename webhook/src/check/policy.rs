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

/// The ConfigMap in force, and how many CAs it allows.
pub(super) fn judge_config_map(found: Option<&ConfigMap>) -> (Finding, Option<u32>) {
    let Some(found) = found else {
        let reason =
            format!("ConfigMap {} is missing: no request is decided after the next start", names::POLICY_CONFIG_MAP);
        return (Finding::bad(State::Failing, SUBJECT, reason, APPLY, SEE), None);
    };
    let text = found.data.as_ref().and_then(|data| data.get(names::POLICY_KEY)).map_or("", String::as_str);
    let next = format!("kubectl -n {} edit configmap {}", names::SYSTEM_NAMESPACE, names::POLICY_CONFIG_MAP);
    match Policy::parse(text) {
        Ok(policy) => (Finding::ok(SUBJECT, "it can be read", SEE), Some(policy.authorities_in_all)),
        Err(error) => {
            let reason = format!("it cannot be read, so the last readable one stays in force: {error}");
            (Finding::bad(State::Failing, SUBJECT, reason, next, SEE), None)
        }
    }
}

/// The policy in a file: what the key `policy.yaml` of the ConfigMap is to hold. Whoever takes the ConfigMap itself for the policy would
/// write it into its own key.
///
/// # Errors
/// The file cannot be read.
pub(super) fn of_file(path: &Path) -> Result<Finding, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| OfFile::new(path, error))?;
    Ok(judge_text(&path.display().to_string(), &text))
}

fn judge_text(file: &str, text: &str) -> Finding {
    let subject = format!("policy {file}");
    let bad = |reason: String, next: String| Finding::bad(State::Failing, &subject, reason, next, SEE);
    let kind =
        serde_saphyr::from_str::<serde_json::Value>(text).ok().and_then(|v| Some(v.get("kind")?.as_str()?.to_owned()));
    if let Some(kind) = kind {
        let (key, name) = (names::POLICY_KEY, names::POLICY_CONFIG_MAP);
        let reason =
            format!("is a {kind}; a policy is the text of the key {key} of ConfigMap {name}, without the object");
        let next = format!("write that text alone into {file}: docs/policy.md has the commands");
        return bad(reason, next);
    }
    match Policy::parse(text) {
        Ok(_) => Finding::ok(&subject, "it can be read", SEE),
        Err(error) => bad(format!("would not be taken: {error}"), format!("correct {file}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_the_cluster_would() {
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: etcd-tls-policy}\ndata: {policy.yaml: 'clusterDomain: a'}\n";
        for (text, state, words) in [
            ("clusterDomain: k8s.example\n".to_owned(), State::Ok, "can be read"),
            (String::new(), State::Ok, "can be read"),
            ("clusterDomian: x\n".to_owned(), State::Failing, "clusterDomian"),
            (map.to_owned(), State::Failing, "is a ConfigMap; a policy is the text of the key policy.yaml"),
            ("kind: Secret\n".to_owned(), State::Failing, "is a Secret"),
            ("{".to_owned(), State::Failing, "would not be taken"),
        ] {
            let finding = judge_text("f", &text);
            assert!(finding.state == state && finding.reason.contains(words), "{text}: {finding:?}");
        }
    }
}
