//! The webhook's own serving pair, and the caBundle by which the API server verifies it. An install needs no other issuer.
//!
//! A CA of its own (Secret `etcd-tls-admit-ca`) signs the pair (Secret `etcd-tls-admit-serving`, which `admit` mounts: it
//! never sees the CA's key). **Invariant.** A CA is in caBundle before one of its certificates is served, and is removed only
//! after the last of them has expired, so an API server can verify every certificate.
//!
//! Only API servers trust this CA, and only for this webhook, so a lost one is generated again.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr::PrivateKey,
    encoding::hex,
    key::KeyAlgorithm,
    life::BACKDATE,
    role::Role,
    san::Sans,
};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    authorities::state::{Stored, life},
    marks::MANAGED_LABEL,
    metrics::Metrics,
};
use crate::{
    ca::{
        authority::Authority,
        issue::{Leaf, issue},
    },
    controller::client::{ApiServerError, within},
    rollover::{ChangeOver, Phase, Step, Trigger},
};

/// The Service that the API server dials.
const SERVICE: &str = "etcd-tls-admit";
/// The webhook configurations: the mutating one that injects, and the validating one that warns.
const CONFIGURATION: &str = "etcd-tls";
const CA_SECRET: &str = "etcd-tls-admit-ca";
const SERVING_SECRET: &str = "etcd-tls-admit-serving";
/// How often everything is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// How long a next CA stands in caBundle before it signs: every API server has heard of it by then.
const OVERLAP: Duration = Duration::from_secs(10 * 60);

/// Keeps pair and caBundle.
pub(super) struct Serving {
    pub(super) client: Client,
    pub(super) system: String,
    pub(super) cluster_domain: String,
    pub(super) lifetimes: Lifetimes,
    pub(super) metrics: Metrics,
}

/// How long the webhook's own certificates live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// The serving certificate's; renewed at half of it.
    pub(super) leaf: Duration,
    /// The CA's; the next one is published at half of it.
    pub(super) ca: Duration,
}

#[derive(Debug, thiserror::Error)]
enum ServingError {
    #[error(transparent)]
    Api(#[from] ApiServerError),
    #[error("there is no MutatingWebhookConfiguration {CONFIGURATION}: apply the manifests again")]
    NoConfiguration,
    #[error("{0}")]
    Local(String),
}

impl Serving {
    /// Works until it is dropped.
    pub(super) async fn run(self) -> std::convert::Infallible {
        let every = EVERY.min(self.lifetimes.leaf / 10).max(Duration::from_millis(200));
        // The same failure is logged once.
        let mut told = None;
        loop {
            let result = self.round().await;
            let missing = matches!(result, Err(ServingError::NoConfiguration));
            let pause = if result.is_ok() || missing { every } else { Duration::from_secs(1) };
            let trouble = result.err().map(|error| error.to_string());
            if let Some(error) = &trouble
                && trouble != told
            {
                tracing::warn!(%error, "the webhook's serving pair is not as it shall be; trying again");
            }
            told = trouble;
            tokio::time::sleep(pause).await;
        }
    }

    async fn round(&self) -> Result<(), ServingError> {
        let now = SystemTime::now();
        let (mut stored, secret) = self.authority(now).await?;
        let serving = within(self.secrets().get_opt(SERVING_SECRET)).await?;
        let chain = serving.as_ref().and_then(pair_of);
        if let Some(step) = due(&stored, chain.as_ref(), now, self.lifetimes) {
            let next = match step {
                Step::Publish(_) => Some(self.generate(now)?),
                _ => None,
            };
            tracing::info!(?step, "the webhook's CA");
            stored = stored.after(&step, next, now);
            self.write_authority(&stored, &secret).await?;
        }
        // From here on every CA that may have signed what is served stands in caBundle.
        let published = self.publish(&stored.bundle(), chain.as_ref(), now).await;
        if !matches!(published, Ok(()) | Err(ServingError::NoConfiguration)) {
            return published;
        }
        if self.needs_leaf(&stored, chain.as_ref(), now) {
            let chain = self.renew(&mut stored, &secret, serving, now).await?;
            self.metrics.serving_until(chain.not_after);
        } else if let Some(chain) = chain {
            self.metrics.serving_until(chain.not_after);
        }
        published
    }

    /// The CA, read or made. One that cannot be read is created again in its place.
    async fn authority(&self, now: SystemTime) -> Result<(Stored, ObjectMeta), ServingError> {
        let api = self.secrets();
        if let Some(found) = within(api.get_opt(CA_SECRET)).await? {
            match Stored::read(found.data.as_ref().unwrap_or(&BTreeMap::new()), now) {
                Ok(stored) => match life(&stored.active).unfit(now) {
                    None => return Ok((stored, found.metadata)),
                    Some(why) => tracing::error!(?why, "the webhook's CA cannot sign; making another one"),
                },
                Err(error) => tracing::error!(%error, "the webhook's CA is unusable; making another one"),
            }
            let stored = Stored::new(self.generate(now)?);
            let written = self.write_authority(&stored, &found.metadata).await?;
            return Ok((stored, written));
        }
        let stored = Stored::new(self.generate(now)?);
        let object = secret(CA_SECRET, data(&stored)?, None);
        let made = within(api.create(&PostParams::default(), &object)).await?;
        tracing::info!("made the webhook's CA");
        Ok((stored, made.metadata))
    }

    async fn write_authority(&self, stored: &Stored, read: &ObjectMeta) -> Result<ObjectMeta, ServingError> {
        let object = secret(CA_SECRET, data(stored)?, read.resource_version.clone());
        Ok(within(self.secrets().replace(CA_SECRET, &PostParams::default(), &object)).await?.metadata)
    }

    fn generate(&self, now: SystemTime) -> Result<Authority, ServingError> {
        let mut random = [0; 6];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| ServingError::Local("no random numbers".to_owned()))?;
        let random = hex(&random);
        Authority::generate(&format!("etcd-tls webhook {random}"), KeyAlgorithm::EcdsaP256, self.lifetimes.ca, now)
            .map_err(|e| ServingError::Local(e.to_string()))
    }

    /// Has caBundle hold `bundle`, and what is served just now can be checked by.
    async fn publish(&self, bundle: &Bundle, served: Option<&Chain>, now: SystemTime) -> Result<(), ServingError> {
        self.publish_warnings(bundle, served, now).await;
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let Some(configuration) = within(api.get_opt(CONFIGURATION)).await? else {
            return Err(ServingError::NoConfiguration);
        };
        let entries =
            configuration.webhooks.iter().flatten().map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref()));
        let Some(patch) = ca_bundle_patch(entries, bundle, served, now) else { return Ok(()) };
        within(api.patch(CONFIGURATION, &PatchParams::default(), &Patch::Strategic(patch))).await?;
        tracing::info!("wrote caBundle of the MutatingWebhookConfiguration");
        Ok(())
    }

    /// [`Self::publish`] for the configuration that warns. An administrator who wants no warnings deletes it. If it cannot be
    /// written, only warnings are missing.
    async fn publish_warnings(&self, bundle: &Bundle, served: Option<&Chain>, now: SystemTime) {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let published = async {
            let Some(configuration) = within(api.get_opt(CONFIGURATION)).await? else { return Ok(()) };
            let webhooks = configuration.webhooks.iter().flatten();
            let entries = webhooks.map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref()));
            let Some(patch) = ca_bundle_patch(entries, bundle, served, now) else { return Ok(()) };
            within(api.patch(CONFIGURATION, &PatchParams::default(), &Patch::Strategic(patch))).await?;
            tracing::info!("wrote caBundle of the ValidatingWebhookConfiguration");
            Ok::<_, ApiServerError>(())
        };
        if let Err(error) = published.await {
            tracing::warn!(%error, "cannot write caBundle of the ValidatingWebhookConfiguration: workloads get no warnings");
        }
    }

    /// True if the pair is missing, past half of its life, for other names, or not of the CA that signs.
    fn needs_leaf(&self, stored: &Stored, chain: Option<&Chain>, now: SystemTime) -> bool {
        let Some(chain) = chain else { return true };
        let half = half_of_leaf(chain);
        let public_key = &chain.public_key;
        now >= half
            || chain.sans != self.sans()
            || chain.verify(Role::Server, stored.active.bundle(), public_key, &self.sans(), now).is_err()
    }

    async fn renew(
        &self,
        stored: &mut Stored,
        ca: &ObjectMeta,
        serving: Option<Secret>,
        now: SystemTime,
    ) -> Result<Chain, ServingError> {
        let local = |e: &dyn std::fmt::Display| ServingError::Local(e.to_string());
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| local(&e))?;
        let (public_key, sans) = (key.public_key(), self.sans());
        let leaf = Leaf {
            role: Role::Server,
            organizations: Vec::new(),
            common_name: SERVICE,
            sans: &sans,
            public_key: &public_key,
            lifetime: self.lifetimes.leaf,
        };
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| ServingError::Local("no random numbers".to_owned()))?;
        let chain = issue(&stored.active, &leaf, now, serial).map_err(|e| local(&e))?;
        if stored.note_leaf(chain.not_after, self.lifetimes.leaf) {
            // Written since it was read, by a step of this round: the next one has the version to write with.
            let read = within(self.secrets().get_metadata(CA_SECRET)).await?.metadata;
            if read.uid != ca.uid {
                return Err(ServingError::Local("the webhook's CA was replaced meanwhile".to_owned()));
            }
            self.write_authority(stored, &read).await?;
        }
        let pair = BTreeMap::from([
            ("tls.crt".to_owned(), ByteString(chain.to_pem().into_bytes())),
            ("tls.key".to_owned(), ByteString(key.to_pem().as_bytes().to_vec())),
        ]);
        let api = self.secrets();
        match serving {
            Some(read) => {
                let mut object = secret(SERVING_SECRET, pair, read.metadata.resource_version);
                object.type_ = read.type_;
                within(api.replace(SERVING_SECRET, &PostParams::default(), &object)).await?;
            }
            None => {
                within(api.create(&PostParams::default(), &secret(SERVING_SECRET, pair, None))).await?;
            }
        }
        tracing::info!(serial = chain.serial, "renewed the webhook's serving pair");
        Ok(chain)
    }

    fn sans(&self) -> Sans {
        let service = format!("{SERVICE}.{}.svc", self.system);
        let full = format!("{service}.{}", self.cluster_domain);
        Sans { dns: [service, full].into(), ips: [].into_iter().collect::<std::collections::BTreeSet<IpAddr>>() }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.system)
    }
}

/// When half of the life of a leaf of ours is over, counted from its issue. A leaf that is valid for no longer than
/// [`BACKDATE`] was not backdated by so much: its CA was too young.
fn half_of_leaf(chain: &Chain) -> SystemTime {
    let validity = chain.not_after.duration_since(chain.not_before).unwrap_or_default();
    let backdate = if validity > BACKDATE { BACKDATE } else { Duration::ZERO };
    chain.not_before + backdate + (validity - backdate) / 2
}

/// The step of the webhook's CA that is due. Pure.
fn due(stored: &Stored, served: Option<&Chain>, now: SystemTime, lifetimes: Lifetimes) -> Option<Step> {
    let Some(rollover) = &stored.state.rollover else {
        let life = life(&stored.active);
        let half = life.not_before + life.not_after.duration_since(life.not_before).unwrap_or_default() / 2;
        return (now >= half).then_some(Step::Publish(Trigger::Schedule));
    };
    match rollover.phase {
        Phase::Published => {
            if let Some(why) = stored.next.as_deref().and_then(|next| life(next).unfit(now)) {
                return Some(Step::Abort(why));
            }
            let overlap = OVERLAP.min(lifetimes.ca / 10);
            (now >= rollover.since + overlap).then_some(Step::ChangeOver(ChangeOver::Trusted))
        }
        Phase::Signing => {
            let is_new = served.is_some_and(|chain| stored.active.bundle().contains_issuer_of(chain));
            let ended = rollover.old_leaves_until.is_none_or(|until| until <= now);
            (is_new && ended).then_some(Step::Retire)
        }
    }
}

/// The strategic merge patch (entries are merged by name) that makes the caBundle of every one of `webhooks`, by name,
/// `bundle`; `None`: it is already. CAs that stand there and that what is served just now needs stay. Pure.
fn ca_bundle_patch<'a>(
    webhooks: impl Iterator<Item = (&'a str, Option<&'a ByteString>)>,
    bundle: &Bundle,
    served: Option<&Chain>,
    now: SystemTime,
) -> Option<Value> {
    let mut entries = Vec::new();
    for (name, present) in webhooks {
        let published = present.and_then(|b| Bundle::parse(&b.0).ok());
        let mut wanted = bundle.clone();
        if let (Some(published), Some(served)) = (published, served)
            && served.not_after > now
            && !bundle.contains_issuer_of(served)
            && published.contains_issuer_of(served)
        {
            wanted = wanted.union(&published);
        }
        let wanted = ByteString(wanted.to_pem().into_bytes());
        if present == Some(&wanted) {
            continue;
        }
        entries.push(json!({"name": name, "clientConfig": {"caBundle": wanted}}));
    }
    (!entries.is_empty()).then(|| json!({"webhooks": entries}))
}

/// The chain of a Secret whose key belongs to it.
fn pair_of(secret: &Secret) -> Option<Chain> {
    let data = secret.data.as_ref()?;
    let chain = Chain::parse(&data.get("tls.crt")?.0).ok()?;
    let key = PrivateKey::from_pem(std::str::from_utf8(&data.get("tls.key")?.0).ok()?).ok()?;
    (key.public_key() == chain.public_key).then_some(chain)
}

fn data(stored: &Stored) -> Result<BTreeMap<String, ByteString>, ServingError> {
    stored.data().map_err(|e| ServingError::Local(e.to_string()))
}

fn secret(name: &str, data: BTreeMap<String, ByteString>, resource_version: Option<String>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_LABEL.0.to_owned(), MANAGED_LABEL.1.to_owned())])),
            resource_version,
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests;
