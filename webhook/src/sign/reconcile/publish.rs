//! Publishes trust: each namespace's ConfigMaps, made and mended until they say what the authorities are.

use std::collections::{BTreeSet, HashMap};

use etcd_tls_contract::{names::SignerName, policy::Policy, role::Domain};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};

use super::{AT_ONCE, ClusterName, Keeper, Namespaces};
use crate::{
    controller::client::{RequestError, within},
    rollover::Report,
    sign::trust::{Desired, config_map_name},
};

impl Keeper {
    /// Makes the ConfigMaps of the `wanted` clusters what they shall be.
    pub(super) async fn publish(
        &mut self,
        wanted: &BTreeSet<(String, ClusterName)>,
        reports: &HashMap<SignerName, Report>,
        namespaces: &Namespaces,
        policy: &Policy,
    ) {
        let mut due = Vec::new();
        for (namespace, cluster) in wanted {
            let Some(facts) = namespaces.get(namespace) else { continue };
            let desired = self.desired(namespace, cluster, &facts.uid, reports, policy).await;
            let name = config_map_name(namespace, cluster);
            let version = self.config_maps.get(namespace, &name).and_then(|m| m.resource_version);
            let key = (namespace.clone(), name);
            let settled = self
                .settled
                .get(&key)
                .is_some_and(|(seen, content)| version.as_ref() == Some(seen) && *content == desired);
            if !settled && !desired.data.is_empty() {
                due.push((key, desired));
            }
        }
        let this = &*self;
        let written: Vec<_> = stream::iter(due)
            .map(|(key, desired)| async move {
                let result = this.mend(&key.0, &key.1, &desired).await;
                (key, desired, result)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (key, desired, result) in written {
            match result {
                Ok(version) => {
                    self.settled.insert(key, (version, desired));
                }
                Err(error) if error.code() == Some(403) => {
                    tracing::debug!(namespace = key.0, "no right to publish trust yet: approve gives it");
                }
                // Changed since it was looked at, or the namespace is going.
                Err(error) if error.is_stale() || error.is_not_found() => self.changed.notify_one(),
                Err(error) => {
                    tracing::warn!(namespace = key.0, config_map = key.1, %error, "cannot publish trust; trying again");
                }
            }
        }
    }

    async fn desired(
        &self,
        namespace: &str,
        cluster: &ClusterName,
        uid: &str,
        reports: &HashMap<SignerName, Report>,
        policy: &Policy,
    ) -> Desired {
        let mut desired = Desired::new(uid);
        for domain in Domain::ALL {
            let signer = cluster.signer(domain);
            let authority = policy.authority(&signer);
            if let Some(bundle) = self.authorities.bundle(&authority).await {
                desired.publish(domain, bundle.to_pem());
            }
            if authority == signer
                && namespace == cluster.namespace
                && let Some(report) = reports.get(&signer)
            {
                desired.say(domain, report);
            }
        }
        desired
    }

    /// Makes a ConfigMap what it shall be; gives its resourceVersion.
    async fn mend(&self, namespace: &str, name: &str, desired: &Desired) -> Result<String, RequestError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let written = match within(api.get_opt(name)).await? {
            None => within(api.create(&PostParams::default(), &desired.object(name))).await?,
            Some(object) => match desired.patch(&object) {
                None => return Ok(object.metadata.resource_version.unwrap_or_default()),
                Some(patch) => within(api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?,
            },
        };
        self.metrics.trust_writes.inc();
        tracing::info!(namespace, config_map = name, "published trust");
        Ok(written.metadata.resource_version.unwrap_or_default())
    }
}
