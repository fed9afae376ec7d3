//! The authorities in a backup: Secrets in YAML or JSON. Pure.

use std::{collections::BTreeMap, time::SystemTime};

use etcd_tls_contract::{names::ClusterName, role::Domain};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::Value;

use super::AdoptError;
use crate::{
    rollover::rfc3339,
    sign::{
        authorities::state::Stored,
        marks::{SIGNER_ANNOTATION, UID_ANNOTATION},
    },
};

/// An authority of the backup. Its `Debug` shows no key.
pub(super) struct Found {
    pub(super) secret: String,
    pub(super) uid: String,
    pub(super) domain: Domain,
    pub(super) data: BTreeMap<String, ByteString>,
}

/// The authorities of `from` in a backup, each with its state as the signer would read it.
pub(super) fn choose(
    text: &str,
    file: &str,
    from: &ClusterName,
    from_uid: Option<&str>,
    now: SystemTime,
) -> Result<Vec<(Found, Stored)>, AdoptError> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    for secret in secrets(text, file)? {
        let annotations = secret.metadata.annotations.unwrap_or_default();
        let Some(signer) = annotations.get(SIGNER_ANNOTATION) else { continue };
        let domain = Domain::ALL.into_iter().find(|domain| from.signer(*domain).to_string() == *signer);
        let uid = annotations.get(UID_ANNOTATION).cloned().unwrap_or_default();
        match domain {
            Some(domain) if from_uid.is_none_or(|wanted| wanted == uid) => found.push(Found {
                secret: secret.metadata.name.unwrap_or_default(),
                uid,
                domain,
                data: secret.data.unwrap_or_default(),
            }),
            _ => others.push(signer.clone()),
        }
    }
    if found.is_empty() {
        others.sort();
        others.dedup();
        return Err(AdoptError::None { cluster: from.clone(), others });
    }
    let mut uids: Vec<String> = found.iter().map(|found| found.uid.clone()).collect();
    uids.sort();
    uids.dedup();
    if uids.len() > 1 {
        return Err(AdoptError::Ambiguous { namespace: from.namespace.clone(), uids });
    }
    for (at, one) in found.iter().enumerate() {
        if found[..at].iter().any(|other| other.domain == one.domain) {
            return Err(AdoptError::Twice { signer: from.signer(one.domain).to_string(), uid: one.uid.clone() });
        }
    }
    found
        .into_iter()
        .map(|found| match Stored::read(&found.data, now) {
            Ok(stored) if stored.active.not_after() <= now => {
                let reason = format!("its CA ended at {}", rfc3339::text(stored.active.not_after()));
                Err(AdoptError::Unusable { secret: found.secret, reason })
            }
            Ok(stored) => Ok((found, stored)),
            Err(error) => Err(AdoptError::Unusable { secret: found.secret, reason: error.to_string() }),
        })
        .collect()
}

/// The Secrets in YAML or JSON documents, those of Lists as well. Other objects are passed over.
fn secrets(text: &str, file: &str) -> Result<Vec<Secret>, AdoptError> {
    // A parser's message may quote what it stumbled over, which may be a key.
    let unreadable = |reason: &str| AdoptError::Unreadable { file: file.to_owned(), reason: reason.to_owned() };
    // The operator's own file, of any size.
    let options = serde_saphyr::options! { budget: None };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|_| unreadable("its syntax is neither that of YAML nor of JSON"))?;
    let objects = documents.into_iter().flat_map(|mut document| match document["items"].take() {
        Value::Array(items) => items,
        _ => vec![document],
    });
    objects
        .filter(|object| object["kind"] == "Secret")
        .map(|object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            serde_json::from_value(object).map_err(|_| unreadable(&format!("Secret {name} has fields of wrong types")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use etcd_tls_contract::key::KeyAlgorithm;
    use serde_json::json;

    use super::*;
    use crate::ca::authority::Authority;

    fn secret(uid: &str, signer: &str, now: SystemTime) -> Value {
        let ca = Authority::generate("ca", KeyAlgorithm::EcdsaP256, Duration::from_secs(86400), now).unwrap();
        let data = Stored::new(ca).data().unwrap();
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data,
            "metadata": {"name": format!("ca-{uid}"), "annotations": {UID_ANNOTATION: uid, SIGNER_ANNOTATION: signer}},
        })
    }

    fn cluster() -> ClusterName {
        "prod/etcd".parse().unwrap()
    }

    #[test]
    fn a_backup_gives_the_authorities_of_one_cluster_alone() {
        let now = SystemTime::now();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            secret("u1", "peer.etcd-tls.dev/prod.etcd", now),
            secret("u1", "client.etcd-tls.dev/prod.etcd", now),
            secret("u1", "peer.etcd-tls.dev/prod.other", now),
            secret("u2", "peer.etcd-tls.dev/test.etcd", now),
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "another"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "etcd-tls-policy"}},
        ]});
        let chosen = choose(&list.to_string(), "f", &cluster(), None, now).unwrap();
        let domains: Vec<Domain> = chosen.iter().map(|(found, _)| found.domain).collect();
        assert_eq!(domains, [Domain::Peer, Domain::Client]);

        let none = choose(&list.to_string(), "f", &"prod/none".parse().unwrap(), None, now).err().unwrap().to_string();
        assert!(none.contains("no authority of prod/none") && none.contains("peer.etcd-tls.dev/prod.other"), "{none}");
    }

    #[test]
    fn two_namespaces_of_one_name_are_told_apart() {
        let now = SystemTime::now();
        let signer = "peer.etcd-tls.dev/prod.etcd";
        let text = format!("{}\n---\n{}\n", secret("u1", signer, now), secret("u2", signer, now));
        let error = choose(&text, "f", &cluster(), None, now).err().unwrap().to_string();
        assert!(error.contains("--from-uid with one of u1, u2"), "{error}");
        assert_eq!(choose(&text, "f", &cluster(), Some("u2"), now).unwrap()[0].0.uid, "u2");
    }

    #[test]
    fn two_states_of_one_authority_are_refused() {
        let now = SystemTime::now();
        let signer = "peer.etcd-tls.dev/prod.etcd";
        let text = format!("{}\n---\n{}\n", secret("u1", signer, now), secret("u1", signer, now));
        let error = choose(&text, "f", &cluster(), None, now).err().unwrap().to_string();
        assert!(error.contains("holds peer.etcd-tls.dev/prod.etcd of namespace u1 more than once"), "{error}");
    }

    #[test]
    fn a_backup_may_hold_thousands_of_authorities() {
        let now = SystemTime::now();
        let wanted = secret("u1", "peer.etcd-tls.dev/prod.etcd", now);
        let mut other = wanted.clone();
        let items: Vec<Value> = (0..6_000)
            .map(|i| {
                other["metadata"]["annotations"][SIGNER_ANNOTATION] = json!(format!("peer.etcd-tls.dev/n{i}.etcd"));
                other.clone()
            })
            .chain(Some(wanted))
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        assert_eq!(choose(&list.to_string(), "f", &cluster(), None, now).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_no_backup_is_refused_and_not_quoted() {
        let now = SystemTime::now();
        let mut broken = secret("u1", "peer.etcd-tls.dev/prod.etcd", now);
        broken["data"]["tls.key"] = json!("c2VjcmV0");
        let error = choose(&broken.to_string(), "f", &cluster(), None, now).err().unwrap().to_string();
        assert!(error.contains("Secret ca-u1 of the backup is unusable"), "{error}");
        broken["data"] = json!({"tls.key": ["a secret value"]});
        for text in [broken.to_string(), "a: [secret value\n b: secret".to_owned()] {
            let error = choose(&text, "f", &cluster(), None, now).err().unwrap().to_string();
            assert!(error.starts_with("f is no YAML or JSON") && !error.contains("secret value"), "{error}");
        }
        // Expired since.
        let old = secret("u1", "peer.etcd-tls.dev/prod.etcd", now).to_string();
        let later = now + Duration::from_secs(3 * 86400);
        let error = choose(&old, "f", &cluster(), None, later).err().unwrap().to_string();
        assert!(error.contains("its CA ended at"), "{error}");
    }
}
