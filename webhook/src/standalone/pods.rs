//! The law of the in-cluster approver, where this signer is to judge by it: the policy file's hosts, and pods that are
//! described by manifests in a directory.
//!
//! With no `--policy` and no `--pods`, the default, the law knows nobody and judges nothing. A pod is read from its file
//! at every request, as the in-cluster approver reads it live; whoever can write there says which pods there are.

use std::path::{Path, PathBuf};

use etcd_tls_sidecar::{
    identity::{Asked, PodFacts, ServiceFacts, Verdict, bound_pod, judge},
    policy::Policy,
};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use serde_json::Value;

use crate::{facts, standalone::auth::User};

/// The largest manifest that is read, and how many are.
const MAX_FILE: u64 = 2 << 20;
const MAX_FILES: usize = 1_000;

/// Policy, and pods.
#[derive(Debug, Default)]
pub struct Law {
    policy: Policy,
    pods: Option<PathBuf>,
}

impl Law {
    /// The law of `policy`, over the pods described in `pods`.
    pub const fn new(policy: Policy, pods: Option<PathBuf>) -> Self {
        Self { policy, pods }
    }

    /// The policy; the default one where none was given.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether the law judges this caller: a host that policy lists, or a service account where there are pods.
    pub fn knows(&self, user: &User) -> bool {
        if user.name.starts_with("system:serviceaccount:") {
            return self.pods.is_some();
        }
        self.policy.host(&user.name, &user.groups).is_some()
    }

    /// The verdict.
    pub fn judge(&self, asked: &Asked<'_>) -> Verdict {
        let Some(dir) = &self.pods else { return judge(asked, None, &[], &self.policy) };
        let Ok(bound) = bound_pod(asked.requester) else { return judge(asked, None, &[], &self.policy) };
        match Manifests::read(dir) {
            Ok(manifests) => {
                let (pod, services) = manifests.facts(&bound.namespace, &bound.pod);
                judge(asked, pod.as_ref(), &services, &self.policy)
            }
            Err(error) => {
                tracing::error!(%error, "the pods cannot be read; requests of pods wait");
                Verdict::NotYet("the pods cannot be read".to_owned())
            }
        }
    }
}

/// What is in the directory.
#[derive(Debug, Default)]
struct Manifests {
    pods: Vec<Pod>,
    services: Vec<Service>,
    namespaces: Vec<Namespace>,
}

impl Manifests {
    fn read(dir: &Path) -> Result<Self, String> {
        let mut all = Self::default();
        let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
        if paths.len() > MAX_FILES {
            return Err(format!("{}: over {MAX_FILES} manifests", dir.display()));
        }
        paths.sort();
        for path in paths {
            let error = |e: String| format!("{}: {e}", path.display());
            let size = std::fs::metadata(&path).map_err(|e| error(e.to_string()))?.len();
            if size > MAX_FILE {
                return Err(error(format!("over {MAX_FILE} bytes")));
            }
            let text = std::fs::read_to_string(&path).map_err(|e| error(e.to_string()))?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| error(e.to_string()))?;
            for document in documents {
                all.take(document).map_err(error)?;
            }
        }
        Ok(all)
    }

    fn take(&mut self, document: Value) -> Result<(), String> {
        let bad = |e: serde_json::Error| e.to_string();
        match document["kind"].as_str() {
            Some("Pod") => self.pods.push(serde_json::from_value(document).map_err(bad)?),
            Some("Service") => self.services.push(serde_json::from_value(document).map_err(bad)?),
            Some("Namespace") => self.namespaces.push(serde_json::from_value(document).map_err(bad)?),
            Some("List") => {
                for item in document["items"].as_array().cloned().unwrap_or_default() {
                    self.take(item)?;
                }
            }
            // Other kinds may lie there, too.
            _ => {}
        }
        Ok(())
    }

    fn facts(&self, namespace: &str, pod: &str) -> (Option<PodFacts>, Vec<ServiceFacts>) {
        let opted_in = self
            .namespaces
            .iter()
            .any(|n| n.metadata.name.as_deref() == Some(namespace) && facts::namespace_opted_in(n));
        let is = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            metadata.namespace.as_deref() == Some(namespace)
        };
        let found = self.pods.iter().find(|p| is(&p.metadata) && p.metadata.name.as_deref() == Some(pod));
        let services = self.services.iter().filter(|s| is(&s.metadata)).map(facts::service).collect();
        (found.map(|p| facts::pod(p, opted_in)), services)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn by_default_the_law_knows_nobody() {
        let law = Law::default();
        let pod = User { name: "system:serviceaccount:prod:etcd".to_owned(), ..User::default() };
        assert!(!law.knows(&pod));
        assert!(!law.knows(&User { name: "system:etcd-peer:m1".to_owned(), ..User::default() }));
        assert!(Law::new(Policy::default(), Some(PathBuf::from("/"))).knows(&pod));
    }

    #[test]
    fn manifests_of_every_form_are_read() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-pods-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let pod = "kind: Pod\napiVersion: v1\nmetadata: {name: etcd-0, namespace: prod, uid: u}\n\
                   spec: {containers: [{name: etcd}]}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";
        std::fs::write(
            dir.join("a.yaml"),
            format!(
                "{pod}---\nkind: Namespace\napiVersion: v1\nmetadata: {{name: prod, labels: {{etcd-tls: dynamic}}}}\n"
            ),
        )
        .unwrap();
        std::fs::write(
            dir.join("b.json"),
            r#"{"kind":"List","items":[{"kind":"Service","apiVersion":"v1","metadata":{"name":"s","namespace":"prod"}}]}"#,
        )
        .unwrap();
        std::fs::write(dir.join("notes.txt"), "not a manifest").unwrap();
        let manifests = Manifests::read(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        let (pod, services) = manifests.unwrap().facts("prod", "etcd-0");
        let pod = pod.unwrap();
        assert_eq!((pod.uid.as_str(), pod.ips.len(), pod.namespace_opted_in), ("u", 1, true));
        assert_eq!(services[0].name, "s");
    }
}
