//! Publishes trust: each namespace's ConfigMaps, made and mended until they say what the authorities are.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::{
    names::{self, ClusterName, SignerName},
    policy::Policy,
    role::Domain,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use tokio::time::{Instant, sleep};

use super::{AT_ONCE, Namespaces, Reconciler, TOGETHER, config_map, pace::Pending};
use crate::{
    controller::{
        client::{ApiServerError, within},
        events::reasons::{TRUST_NOT_REPAIRED, TRUST_REPAIRED},
    },
    revoke,
    sign::{
        repair::{Form, Remedy, Settled, remedy},
        trust::Desired,
    },
};

/// Namespace and name of a ConfigMap.
type Place = (String, String);

/// With a pause of this length, a failure is said.
const LASTING: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Makes the ConfigMaps of the `wanted` clusters what they shall be. Returns the work that is left.
    pub(super) async fn publish(
        &mut self,
        wanted: &BTreeSet<(Arc<str>, Arc<ClusterName>)>,
        reports: &HashMap<Arc<SignerName>, Box<str>>,
        namespaces: &Namespaces,
        policy: &Policy,
    ) -> Pending {
        let now = Instant::now();
        let mut pending = Pending::Nothing;
        let mut wanted = wanted.iter().peekable();
        while wanted.peek().is_some() {
            let mut due = Vec::new();
            for (namespace, cluster) in wanted.by_ref().take(TOGETHER) {
                let Some(facts) = namespaces.get(&**namespace) else { continue };
                let desired = self.desired(namespace, cluster, &facts.uid, reports, policy).await;
                let key = (namespace.to_string(), cluster.trust_config_map(namespace));
                let seen = self.config_maps.get(namespace, &key.1);
                let upkeep = self.upkeep.entry(key.clone()).or_default();
                upkeep.wanted = true;
                let before = upkeep.settled.as_ref();
                let settled = before.zip(seen).is_some_and(|(before, seen)| {
                    seen.resource_version == before.version && before.content == desired.digest()
                });
                if !settled {
                    pending = Pending::Something;
                    if !desired.data.is_empty() && upkeep.wait(now).is_zero() {
                        due.push((key, before.cloned(), desired));
                    }
                }
            }
            self.mend_these(due).await;
        }
        self.upkeep.retain(|_, upkeep| std::mem::take(&mut upkeep.wanted));
        let failing = self.upkeep.values().filter(|upkeep| upkeep.is_failing()).count();
        self.metrics.trust_unrepaired.set(i64::try_from(failing).unwrap_or(i64::MAX));
        pending
    }

    /// Brings ConfigMaps to their wanted contents.
    async fn mend_these(&mut self, due: Vec<(Place, Option<Settled>, Desired)>) {
        let this = &*self;
        let written: Vec<_> = stream::iter(due)
            .map(|(key, before, desired)| async move {
                let result = this.mend(&key.0, &key.1, before.as_ref(), &desired).await;
                (key, desired, result)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (key, desired, result) in written {
            self.written(key, desired, result).await;
        }
    }

    /// Notes what came of a ConfigMap, and says what was repaired or cannot be written.
    async fn written(&mut self, key: Place, desired: Desired, result: Result<Mended, NotMended>) {
        let (now, reference) = (Instant::now(), config_map(&key.0, &key.1));
        let subject = format!("{}/{}", key.0, key.1);
        let upkeep = self.upkeep.entry(key.clone()).or_default();
        match result {
            Ok(mended) => {
                upkeep.done(Settled { version: mended.version.as_str().into(), content: desired.digest() });
                if !mended.repaired.is_empty() {
                    upkeep.repaired(now);
                    let forms: Vec<&str> = mended.repaired.iter().map(|form| form.as_str()).collect();
                    forms.iter().for_each(|form| self.metrics.repaired(form));
                    let note = format!(
                        "ConfigMap {subject} was changed by somebody else ({}) and has been repaired. Everybody \
                         with the right to write ConfigMaps in this namespace can delay a trust bundle; the audit \
                         log of the API server names the writer",
                        forms.join(", ")
                    );
                    self.complain_of(&subject, reference, TRUST_REPAIRED, &note);
                }
            }
            Err(NotMended { error, renewing: false }) if error.code() == Some(403) => {
                tracing::debug!(namespace = key.0, "no right to publish trust yet: approve gives it");
            }
            Err(NotMended { error, .. }) => {
                let pause = upkeep.failed(now);
                self.metrics.trust_repair_failures.inc();
                let changed = Arc::clone(&self.changed);
                tokio::spawn(async move {
                    sleep(pause).await;
                    changed.notify_one();
                });
                // Changed since it was looked at, or the namespace is going: no trouble, unless it lasts.
                if pause >= LASTING {
                    let note = format!("ConfigMap {subject} cannot be written: {error}; it is tried again");
                    self.complain_of(&subject, reference, TRUST_NOT_REPAIRED, &note);
                } else {
                    tracing::debug!(config_map = subject, %error, "not written; trying again");
                }
            }
        }
    }

    async fn desired(
        &self,
        namespace: &str,
        cluster: &ClusterName,
        uid: &str,
        reports: &HashMap<Arc<SignerName>, Box<str>>,
        policy: &Policy,
    ) -> Desired {
        let mut desired = Desired::new(uid);
        for domain in Domain::ALL {
            let signer = cluster.signer(domain);
            let authority = policy.authority(&signer);
            let own = authority == signer && namespace == cluster.namespace;
            if let Some(published) = self.authorities.published_of(&authority).await {
                desired.publish(domain, published.bundle.to_pem());
                if let Some(list) = &published.list {
                    desired.publish_list(domain, list);
                }
                if Domain::WITH_LISTS.contains(&domain) && namespace == cluster.namespace {
                    if authority.cluster == signer.cluster && authority.namespace == signer.namespace {
                        // Also where policy has the cluster's other authority sign: it takes the request, which has the same id.
                        published.answer.iter().for_each(|answer| desired.answer(domain, answer));
                    } else if let Some(report) = self.elsewhere(&signer, &authority) {
                        desired.answer(domain, &report);
                    }
                }
            }
            if own && let Some(report) = reports.get(&signer) {
                desired.say(domain, report);
            }
        }
        desired
    }

    /// The answer to a request about certificates that the authority of another cluster signs.
    fn elsewhere(&self, signer: &SignerName, authority: &SignerName) -> Option<revoke::Report> {
        let config_map = self.config_maps.get(&signer.namespace, &names::trust_config_map(&signer.cluster))?;
        let text = config_map.requests.get(&revoke::request_annotation(signer.domain))?;
        let request: revoke::Request = text.parse().ok()?;
        let answer = request.refused(&format!(
            "the policy has {authority} sign these certificates; revoke them at {}/{}",
            authority.namespace, authority.cluster
        ));
        Some(revoke::Report { answer: Some(answer), ..revoke::Report::default() })
    }

    /// Brings a ConfigMap to its wanted content. `before`: its content at the last look.
    async fn mend(
        &self,
        namespace: &str,
        name: &str,
        before: Option<&Settled>,
        desired: &Desired,
    ) -> Result<Mended, NotMended> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let ours = before.is_some_and(|before| before.content == desired.digest());
        let mut repaired = BTreeSet::new();
        let mut present = within(api.get_opt(name)).await.map_err(NotMended::writing)?;
        if let Some(object) = &present {
            let (remedy, forms) = remedy(desired, object);
            let certain = [Form::BeingDeleted, Form::BinaryData, Form::ExtraKeys, Form::Immutable];
            repaired.extend(forms.into_iter().filter(|form| ours || certain.contains(form)));
            match remedy {
                Remedy::Nothing if repaired.is_empty() => return Ok(Mended::of(object, repaired)),
                // It goes by itself in a moment.
                Remedy::Nothing => return Err(NotMended::going()),
                Remedy::Patch(patch) => {
                    let patched = within(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)))
                        .await
                        .map_err(NotMended::writing)?;
                    return Ok(self.published(namespace, name, &patched, repaired));
                }
                Remedy::Release(patch) => {
                    within(api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)))
                        .await
                        .map_err(NotMended::renewing)?;
                }
                Remedy::Replace => {
                    let preconditions = Preconditions {
                        uid: object.metadata.uid.clone(),
                        resource_version: object.metadata.resource_version.clone(),
                    };
                    let params = DeleteParams::default().preconditions(preconditions);
                    within(api.delete(name, &params)).await.map_err(NotMended::renewing)?;
                }
            }
            present = within(api.get_opt(name)).await.map_err(NotMended::renewing)?;
            if present.is_some() {
                // A finalizer holds it: the next attempt lets it go.
                return Err(NotMended::going());
            }
        } else if before.is_some() {
            repaired.insert(Form::Deleted);
        }
        let made =
            within(api.create(&PostParams::default(), &desired.object(name))).await.map_err(NotMended::writing)?;
        Ok(self.published(namespace, name, &made, repaired))
    }

    fn published(&self, namespace: &str, name: &str, object: &ConfigMap, repaired: BTreeSet<Form>) -> Mended {
        self.metrics.trust_writes.inc();
        tracing::info!(namespace, config_map = name, "published trust");
        Mended::of(object, repaired)
    }
}

/// A ConfigMap that is what it shall be.
struct Mended {
    version: String,
    /// The changes that somebody else had made.
    repaired: BTreeSet<Form>,
}

impl Mended {
    fn of(object: &ConfigMap, repaired: BTreeSet<Form>) -> Self {
        Self { version: object.metadata.resource_version.clone().unwrap_or_default(), repaired }
    }
}

/// A ConfigMap that could not be made what it shall be.
struct NotMended {
    error: MendError,
    /// It was to be deleted and created again.
    renewing: bool,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
enum MendError {
    #[error(transparent)]
    Request(#[from] ApiServerError),
    #[error("it is being deleted")]
    Going,
}

impl MendError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Request(error) => error.code(),
            Self::Going => None,
        }
    }
}

impl NotMended {
    fn writing(error: ApiServerError) -> Self {
        Self { error: error.into(), renewing: false }
    }

    fn renewing(error: ApiServerError) -> Self {
        Self { error: error.into(), renewing: true }
    }

    const fn going() -> Self {
        Self { error: MendError::Going, renewing: true }
    }
}
