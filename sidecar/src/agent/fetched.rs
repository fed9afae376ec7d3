//! Trust bundles and revocation lists that a host reads from the ConfigMap in which the signer publishes them.

use std::{collections::BTreeSet, fs, io, path::PathBuf, time::Duration};

use etcd_tls_contract::{certificate::Bundle, crl::Crl, names, role::Domain};
use tokio::time::sleep;

use crate::{
    issuance::schedule,
    kube::{ApiError, http::Kube, kubeconfig::HostCredentials, objects::ConfigMap},
    os::replace::replace,
};

/// Bundles that are read from the ConfigMap in which the signer publishes them.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub(crate) namespace: String,
    pub(crate) config_map: String,
    pub(crate) domains: BTreeSet<Domain>,
    pub(crate) dir: PathBuf,
    /// True if bundles are wanted, too; else the operator gives them, and lists alone are read.
    pub(crate) bundles: bool,
}

impl Fetched {
    /// Writes bundles and lists to the directory. Invalid and unchanged ones are not written; one that is invalid holds none of the
    /// others back. A list that is missing changes nothing: the one before stays.
    ///
    /// # Errors
    /// The ConfigMap cannot be read or lacks a bundle, or the directory cannot be written.
    pub async fn fetch(&self, credentials: &HostCredentials) -> Result<(), ApiError> {
        let access = |message: String| self.error(&message);
        let asked = Kube::new(credentials.clone()).config_map(&self.namespace, &self.config_map).await;
        let object = asked.map_err(|error| match (error.code(), self.cure(error.code())) {
            (Some(_), Some(cure)) => access(format!("{error}; {cure}")),
            _ => error,
        })?;
        self.write(object)
    }

    fn error(&self, message: &str) -> ApiError {
        ApiError::Access(format!("ConfigMap {}/{}: {message}", self.namespace, self.config_map))
    }

    fn write(&self, object: ConfigMap) -> Result<(), ApiError> {
        let access = |message: String| self.error(&message);
        let (data, lists) = (object.data.unwrap_or_default(), object.binary_data.unwrap_or_default());
        let put = |key: &str, mut bytes: &[u8]| {
            let path = self.dir.join(key);
            if fs::read(&path).is_ok_and(|present| present == bytes) {
                return Ok(());
            }
            replace(&path, 0o644, &mut bytes).map_err(|e| access(format!("{}: {e}", path.display())))
        };
        let list = |key: &str| match lists.get(key) {
            Some(list) => {
                Crl::parse(&list.0).map_err(|e| access(format!("{key}: {e}")))?;
                put(key, &list.0)
            }
            None => Ok(()),
        };
        let bundle = |key: &str| {
            let pem = data.get(key).ok_or_else(|| access(format!("has no {key}")))?;
            Bundle::parse(pem.as_bytes()).map_err(|e| access(format!("{key}: {e}")))?;
            put(key, pem.as_bytes())
        };
        // Each valid part is written even if another is invalid; a list first, as it may name a thief.
        let mut written: Vec<Result<(), ApiError>> =
            self.domains.iter().filter_map(|domain| domain.crl_key()).map(list).collect();
        written.extend(self.domains.iter().filter(|_| self.bundles).map(|domain| bundle(domain.trust_key())));
        written.into_iter().collect()
    }

    /// The next step after an answer that waiting may never change.
    fn cure(&self, code: Option<u16>) -> Option<String> {
        match code {
            Some(403) => Some(format!(
                "let this host get and watch that ConfigMap (a Role of its namespace, with resourceNames: [{}]), or give --cacrt \
                 with the CA certificates",
                self.config_map
            )),
            Some(404) if self.namespace == names::SYSTEM_NAMESPACE => Some(format!(
                "nothing is published in {}, which is etcd-tls's own: give --namespace (and policy) another one for the \
                 cluster, or --cacrt with the CA certificates",
                names::SYSTEM_NAMESPACE
            )),
            Some(404) => Some(
                "it is published as soon as etcd-tls's policy lists a host of that cluster (hosts, cluster), or a pod of it \
                 opts in; if this signer is not etcd-tls, give --cacrt with the CA certificates"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The directory must be there before it is watched.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_dir(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)
    }

    /// Fetches for ever; says once what is wrong.
    pub async fn keep(&self, credentials: &HostCredentials) {
        let mut said = None;
        let mut failures = 0_u32;
        loop {
            let pause = match self.fetch(credentials).await {
                Ok(()) => {
                    (said, failures) = (None, 0);
                    schedule::TICK
                }
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(
                            error,
                            "trust bundles and revocation lists cannot be read from the signer; those at hand stay"
                        );
                        said = Some(error);
                    }
                    failures = failures.saturating_add(1);
                    Duration::from_secs(1 << failures.min(6)).min(schedule::TICK)
                }
            };
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::Authority;

    /// A thief's certificate is refused although a bundle beside its list is damaged.
    #[test]
    fn a_damaged_file_holds_no_other_back() {
        let authority = Authority::named("ours");
        let (pem, list) = (authority.bundle().to_pem(), authority.list(1, &["4f0a"]));
        let dir = std::env::temp_dir().join(format!("etcd-tls-fetched-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let fetched = Fetched {
            namespace: "a".to_owned(),
            config_map: "b".to_owned(),
            domains: [Domain::Peer, Domain::Client].into(),
            dir: dir.clone(),
            bundles: true,
        };
        let object =
            |data: Value, lists: Value| serde_json::from_value(json!({"data": data, "binaryData": lists})).unwrap();
        let good = STANDARD.encode(&list);
        let damaged = object(json!({"client.crt": pem}), json!({"peer.crl": "AAAA", "client.crl": good}));
        let error = fetched.write(damaged).unwrap_err().to_string();
        assert!(error.contains("ConfigMap a/b: peer.crl"), "{error}");
        assert_eq!(fs::read(dir.join("client.crl")).unwrap(), list);
        assert_eq!(fs::read_to_string(dir.join("client.crt")).unwrap(), pem);
        assert!(!dir.join("peer.crl").exists() && !dir.join("peer.crt").exists());
        // A missing key changes nothing.
        let without = object(json!({"client.crt": pem, "peer.crt": pem}), json!({}));
        fetched.write(without).unwrap();
        assert_eq!(fs::read(dir.join("client.crl")).unwrap(), list);
        fs::remove_dir_all(dir).unwrap();
    }
}
