//! How an authority comes to be: read from its Secret, given by the user, or generated. **Invariant.** One whose trust is
//! published and whose Secret is missing is lost, and no other is generated in its place.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    certificate::Bundle,
    crl::Crl,
    key::KeyAlgorithm,
    names::{self, SignerName},
    policy::Policy,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api,
    api::{ListParams, PostParams},
};

use super::{
    Authorities, Unavailable,
    quota::{Ready, SecretMetadata},
    state::{self, StateError, Stored, common_name, secret_name},
};
use crate::{
    ca::authority::Authority,
    controller::client::{ApiServerError, within},
    sign::marks::UID_ANNOTATION,
};

impl Authorities {
    /// Reads the authority from its Secret, or generates it.
    ///
    /// # Errors
    /// It is lost, unusable or undetermined yet.
    pub(super) async fn load_or_make(&self, name: &SignerName, now: SystemTime) -> Result<Ready, Unavailable> {
        let policy = self.policy_now()?;
        let (uid, opted_in) = self.namespace(name)?;
        let secret = secret_name(&uid, name);
        if let Some(found) = self.read_again(name, &uid, now).await? {
            return Ok(found);
        }
        let published = self.published(name, &uid, opted_in || policy.has_hosts_in(&name.namespace)).await?;
        let given = self.given(&policy, name, now).await?;
        let stored = match (given, published) {
            (Some(given), None) => Stored::new(given),
            // The user's own CA is still the one that is trusted, and the only one: nothing is lost but our copy of it, and the
            // revocations, which the published list has.
            (Some(given), Some((published, list))) if published == *given.bundle() => {
                let mut stored = Stored::used(given);
                if let Some(list) = list {
                    let (number, entries) = (list.number(), list.entries().len());
                    let adopted = stored.adopt(list, now);
                    tracing::warn!(
                        authority = %name,
                        number,
                        entries,
                        adopted,
                        "the Secret of a CA that policy gives is made again, with the published revocation list where its CA has \
                         signed that. Bars of pods and keys are lost: repeat revocations by --pod, and with --reason keyCompromise"
                    );
                }
                stored
            }
            (None, None) => Stored::new(generate(name, &policy, now)?),
            (_, Some(_)) => {
                return Err(Unavailable::Lost(format!(
                    "the CA of {name} is lost: Secret {secret} in {} is missing, while pods trust it. Nothing is issued \
                     for it. Restore that Secret; to begin anew with another CA, at the price of an outage, delete \
                     ConfigMap {} in {}, then restart every pod of the cluster",
                    self.system,
                    names::trust_config_map(&name.cluster),
                    name.namespace
                )));
            }
        };
        self.create(name, &uid, &secret, stored, now).await
    }

    /// Reads the authority from its Secret, if that is there; `uid` is its namespace's.
    ///
    /// # Errors
    /// It cannot be read, or is unusable.
    pub(super) async fn read_again(
        &self,
        name: &SignerName,
        uid: &str,
        now: SystemTime,
    ) -> Result<Option<Ready>, Unavailable> {
        let secret = secret_name(uid, name);
        let Some(found) = within(self.secrets().get_opt(&secret)).await? else { return Ok(None) };
        read(&found, name, uid, now)
            .map(Some)
            .map_err(|e| Unavailable::Unusable(format!("Secret {secret} of authority {name} is unusable: {e}")))
    }

    /// The revocation list that is published of `name` in its own namespace; `None`: none that can be read. Nothing is verified.
    ///
    /// # Errors
    /// It cannot be known now.
    pub(super) async fn published_list(&self, name: &SignerName) -> Result<Option<Crl>, Unavailable> {
        if name.domain.crl_key().is_none() {
            return Ok(None);
        }
        let (_, opted_in) = self.namespace(name)?;
        let may_be = opted_in || self.policy_now()?.has_hosts_in(&name.namespace);
        Ok(self.trust(name, may_be).await?.and_then(|object| list_of(name, &object)))
    }

    fn policy_now(&self) -> Result<Arc<Policy>, Unavailable> {
        let policy = self.policy.borrow().clone();
        policy.ok_or_else(|| Unavailable::NotYet("no policy could be read yet".to_owned()))
    }

    /// Makes the Secret. Where another signer was faster, its CA is the one.
    async fn create(
        &self,
        name: &SignerName,
        uid: &str,
        secret: &str,
        stored: Stored,
        now: SystemTime,
    ) -> Result<Ready, Unavailable> {
        let mut stored = stored;
        stored.revoke(None, &name.namespace, (&[], &[]), now);
        let data = stored.data().map_err(|e| Unavailable::Unusable(e.to_string()))?;
        let object = state::secret(uid, name, data);
        match within(self.secrets().create(&PostParams::default(), &object)).await {
            Ok(made) => {
                tracing::info!(authority = %name, secret, generation = stored.active.generation(), "made a CA");
                self.changed.notify_one();
                let secret =
                    SecretMetadata::of(made.metadata, name).map_err(|e| Unavailable::Unusable(e.to_string()))?;
                let type_ = made.type_.map(Into::into);
                Ok(Ready { namespace: uid.into(), stored, secret, type_, compared: true })
            }
            Err(error) if error.code() == Some(409) => {
                let found = within(self.secrets().get(secret)).await?;
                read(&found, name, uid, now)
                    .map_err(|e| Unavailable::Unusable(format!("Secret {secret} is unusable: {e}")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The namespace's uid, and whether it is opted in.
    pub(super) fn namespace(&self, name: &SignerName) -> Result<(String, bool), Unavailable> {
        let namespaces = self.namespaces.borrow().clone();
        let namespace = namespaces.as_ref().and_then(|n| n.get(&*name.namespace));
        match namespace {
            Some(facts) if facts.deleting => {
                Err(Unavailable::NotYet(format!("namespace {} is being deleted", name.namespace)))
            }
            Some(facts) => Ok((facts.uid.clone(), facts.opted_in)),
            None => Err(Unavailable::NotYet(format!("there is no namespace {}", name.namespace))),
        }
    }

    /// The bundle that is published of `name`, and its revocation list, in the namespace of this uid; `may_be`: in which trust is
    /// published.
    async fn published(
        &self,
        name: &SignerName,
        uid: &str,
        may_be: bool,
    ) -> Result<Option<(Bundle, Option<Crl>)>, Unavailable> {
        let Some(object) = self.trust(name, may_be).await? else { return Ok(None) };
        let of = object.metadata.annotations.as_ref().and_then(|a| a.get(UID_ANNOTATION));
        if of.is_some_and(|of| of != uid) {
            return Ok(None);
        }
        let text = object.data.as_ref().and_then(|data| data.get(name.domain.trust_key()));
        // Unreadable content was not written by us.
        let bundle = text.and_then(|text| Bundle::parse(text.as_bytes()).ok());
        Ok(bundle.map(|bundle| (bundle, list_of(name, &object))))
    }

    /// The trust ConfigMap of `name` in its own namespace; `may_be`: in which trust is published.
    async fn trust(&self, name: &SignerName, may_be: bool) -> Result<Option<ConfigMap>, Unavailable> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &name.namespace);
        match within(api.get_opt(&names::trust_config_map(&name.cluster))).await {
            Ok(object) => Ok(object),
            Err(error) if error.code() == Some(403) => {
                // Where nothing may be published, nothing is. Where it may be, or will be in a moment, there may be trust
                // that is only not to be seen just now.
                if may_be || self.has_labelled_pods(&name.namespace).await? {
                    return Err(Unavailable::NotYet(format!(
                        "no right to ConfigMaps in namespace {} yet; approve gives it to opted-in namespaces and those of the policy's hosts",
                        name.namespace
                    )));
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// True if a pod of the namespace has opted in by its own label, which opens the namespace as its own label would.
    async fn has_labelled_pods(&self, namespace: &str) -> Result<bool, ApiServerError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let one = ListParams::default().labels(&format!("{}={}", names::LABEL, names::DYNAMIC)).limit(1);
        Ok(!within(pods.list_metadata(&one)).await?.items.is_empty())
    }

    /// The user's CA, where policy names its Secret.
    pub(in crate::sign) async fn given(
        &self,
        policy: &Policy,
        name: &SignerName,
        now: SystemTime,
    ) -> Result<Option<Authority>, Unavailable> {
        let Some(secret) = policy.given_secret(name) else { return Ok(None) };
        let Some(object) = within(self.secrets().get_opt(secret)).await? else {
            return Err(Unavailable::Unusable(format!(
                "policy gives Secret {secret} as the CA of {name}, and there is none in {}",
                self.system
            )));
        };
        let data = object.data.unwrap_or_default();
        let bytes = |key: &str| data.get(key).map(|b| b.0.as_slice()).unwrap_or_default();
        // Where the root stands apart (cert-manager's way), it is the anchor.
        let chain = [bytes("tls.crt"), b"\n", bytes("ca.crt")].concat();
        Authority::load(&chain, bytes("tls.key"), now)
            .map(Some)
            .map_err(|e| Unavailable::Unusable(format!("Secret {secret}, the CA that policy gives {name}: {e}")))
    }
}

/// The revocation list of an authority in its trust ConfigMap.
fn list_of(name: &SignerName, object: &ConfigMap) -> Option<Crl> {
    let der = object.binary_data.as_ref()?.get(name.domain.crl_key()?)?;
    Crl::parse(&der.0).ok()
}

/// `uid` is the namespace's, of which the Secret's name is made.
fn read(secret: &Secret, name: &SignerName, uid: &str, now: SystemTime) -> Result<Ready, StateError> {
    let stored = Stored::read(secret.data.as_ref().unwrap_or(&BTreeMap::new()), now)?;
    let metadata = SecretMetadata::of(secret.metadata.clone(), name).map_err(|e| StateError::State(e.to_string()))?;
    let type_ = secret.type_.as_deref().map(Into::into);
    Ok(Ready { namespace: uid.into(), stored, secret: metadata, type_, compared: false })
}

/// A CA of our own making.
pub(in crate::sign) fn generate(name: &SignerName, policy: &Policy, now: SystemTime) -> Result<Authority, Unavailable> {
    let mut random = [0; 6];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Unavailable::Unusable("no random numbers".to_owned()))?;
    Authority::generate(&common_name(name, random), KeyAlgorithm::EcdsaP256, policy.rollover.ca_lifetime, now)
        .map_err(|e| Unavailable::Unusable(e.to_string()))
}
