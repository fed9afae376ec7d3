//! The Secrets of the authorities: their owners, those of deleted namespaces, and those that somebody else changed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::{
    names::{ClusterName, SignerName},
    policy::Policy,
};

use super::{Namespaces, Reconciler, idle::Retired};
use crate::{
    controller::{events::reasons::GIVEN_AUTHORITY_UNUSABLE, ids::Uid, namespaces},
    sign::{authorities::quota::Entry, cache::objects::Facts},
};

/// The authorities that have a Secret, of the namespaces that are there. Those that were `retired` have none, whatever the watch shows.
pub(super) fn kept(
    secrets: &[(Arc<str>, Arc<Facts>)],
    namespaces: &Namespaces,
    retired: &Retired,
) -> BTreeSet<Arc<SignerName>> {
    let of_a_namespace = |(name, uid): &&(Arc<SignerName>, Uid)| {
        namespaces.get(&*name.namespace).is_some_and(|facts| *uid == *facts.uid && !facts.deleting)
    };
    let there = secrets.iter().map(|(_, secret)| secret).filter(|secret| !retired.has(&secret.uid));
    let authorities = there.filter_map(|secret| secret.authority.as_ref());
    authorities.filter(of_a_namespace).map(|(name, _)| Arc::clone(name)).collect()
}

/// The clusters of which a Secret is marked to be kept.
pub(super) fn marked(secrets: &[(Arc<str>, Arc<Facts>)]) -> BTreeSet<ClusterName> {
    let marked = secrets.iter().map(|(_, secret)| secret).filter(|secret| secret.kept);
    marked.filter_map(|secret| Some(secret.authority.as_ref()?.0.cluster_name())).collect()
}

impl Reconciler {
    /// Has what changed outside read again. The Secret of a namespace that was made again is another one than that of before, which
    /// may be held by a finalizer.
    pub(super) async fn look_outside(&self, secrets: &[(Arc<str>, Arc<Facts>)], namespaces: &Namespaces) {
        let by_name: HashMap<&SignerName, &Facts> = secrets
            .iter()
            .filter_map(|(_, secret)| {
                let (name, uid) = secret.authority.as_ref()?;
                let before = namespaces.get(&*name.namespace).is_some_and(|facts| *uid != *facts.uid);
                (!before).then_some((&**name, &**secret))
            })
            .collect();
        for entry in self.authorities.entries() {
            let version = by_name.get(&*entry.name).map(|secret| &secret.resource_version);
            entry.changed_outside(version).await;
        }
    }

    /// Deletes the CAs of namespaces that are gone: of a name that came back, too, since its uid is another one.
    pub(super) async fn sweep(&mut self, secrets: &[(Arc<str>, Arc<Facts>)], namespaces: &Namespaces) {
        for (secret_name, secret) in secrets {
            let Some((name, uid)) = &secret.authority else { continue };
            if namespaces.get(&*name.namespace).is_some_and(|facts| *uid == *facts.uid) {
                continue;
            }
            // A watch alone is not enough to destroy a key.
            let live = match namespaces::live(&self.client, &name.namespace).await {
                Ok(live) if live.as_ref().is_none_or(|facts| *uid != *facts.uid) => live,
                _ => continue,
            };
            if let Err(error) = self.authorities.delete(secret_name, secret).await
                && !error.is_not_found()
                && !error.is_stale()
            {
                tracing::warn!(authority = %name, %error, "cannot delete the CA of a namespace that is gone");
            }
            // The namespace of now has an authority of the same name, which goes on.
            if live.is_none() {
                self.authorities.forget(name);
                self.metrics.forget(name);
            }
        }
    }

    /// Reads the user's CAs whose Secrets changed.
    pub(super) async fn refresh_given(&mut self, entries: &[Arc<Entry>], policy: &Policy) {
        let now = SystemTime::now();
        let named: BTreeSet<&str> = entries.iter().filter_map(|entry| policy.given_secret(&entry.name)).collect();
        self.given.retain(|secret, _| named.contains(secret.as_str()));
        for name in entries.iter().map(|entry| &*entry.name) {
            let Some(secret) = policy.given_secret(name) else { continue };
            let version = self.secrets.get(&self.system, secret).map(|facts| facts.resource_version.to_string());
            let version = version.unwrap_or_default();
            if self.given.get(secret).is_some_and(|(seen, _)| *seen == version) {
                continue;
            }
            match self.authorities.given(policy, name, now).await {
                Ok(Some(authority)) => {
                    self.said.forget(&name.to_string(), GIVEN_AUTHORITY_UNUSABLE.name());
                    self.given.insert(secret.to_owned(), (version, Arc::new(authority)));
                }
                Ok(None) => {}
                // The one in use stays in use.
                Err(error) => {
                    self.given.remove(secret);
                    let trouble = error.to_string();
                    self.complain(&name.to_string(), name, GIVEN_AUTHORITY_UNUSABLE, &trouble);
                }
            }
        }
    }
}
