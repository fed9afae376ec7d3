//! The certificates that a killed leader issued and did not record: it writes the records two seconds late. Their requests outlive it
//! by minutes, so a new leader lists them once, before its first round, and records what the records lack. Until then it takes
//! no request to revoke; it issues meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    mem::take,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Chain,
    identity::{Requester, bound_pod},
    life::Life,
    names::SignerName,
    policy::Policy,
    role::{Domain, Role},
};
use k8s_openapi::{
    ByteString, api::certificates::v1::CertificateSigningRequestCondition as Condition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Client;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{
    authorities::{Authorities, Unavailable, issued::Leaf},
    cache::pods::host_holder,
    pod_certificates::served,
};
use crate::controller::{
    client::ApiServerError,
    facts::{CsrSpec, csrs},
    listed::{Event, Events, Object, Source, WatchError},
};

/// How long one list may take.
const LIST_WITHIN: Duration = Duration::from_secs(30);
/// How long rounds wait for it. Certificates, trust and rollovers go on without it then.
const WAIT: Duration = Duration::from_secs(30);
/// The pause between attempts after that.
const AGAIN: Duration = Duration::from_secs(30);
/// Certificates that are held at a time.
const TOGETHER: usize = 256;

/// See the module.
pub(super) struct Recollection {
    client: Client,
    pod_certificates: bool,
    over: bool,
    began: Option<Instant>,
    next: Option<Instant>,
}

/// Why it is not known what was issued.
#[derive(Debug, thiserror::Error)]
enum RecollectionError {
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Request(#[from] ApiServerError),
    #[error(transparent)]
    Authority(#[from] Unavailable),
    #[error("the list was not complete in time")]
    Slow,
}

impl Recollection {
    /// Of a term that begins.
    pub(super) const fn new(client: Client, pod_certificates: bool) -> Self {
        Self { client, pod_certificates, over: false, began: None, next: None }
    }

    /// Whether rounds may begin: everything is recorded, or it is not to be had within half a minute. `kept`: the authorities that
    /// have a Secret.
    pub(super) async fn is_over(
        &mut self,
        authorities: &Authorities,
        kept: &BTreeSet<SignerName>,
        policy: &Policy,
    ) -> bool {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        if self.over || self.next.is_some_and(|next| now < next) {
            return true;
        }
        let result = timeout(LIST_WITHIN, self.list(authorities, kept, policy)).await;
        match result.unwrap_or(Err(RecollectionError::Slow)) {
            Ok(count) => {
                self.over = true;
                if count > 0 {
                    tracing::info!(certificates = count, "recorded what the leader before had issued and not recorded");
                }
            }
            Err(error) => {
                let waits = began.elapsed() < WAIT;
                tracing::warn!(
                    %error, waits,
                    "cannot list what was issued last; until then the records may lack certificates of a leader that was killed"
                );
                if waits {
                    return false;
                }
                self.next = Some(Instant::now() + AGAIN);
            }
        }
        true
    }

    /// How many certificates were recorded.
    async fn list(
        &self,
        authorities: &Authorities,
        kept: &BTreeSet<SignerName>,
        policy: &Policy,
    ) -> Result<usize, RecollectionError> {
        let mut records = Records { authorities, kept, policy, found: HashMap::new(), waiting: 0, recorded: 0 };
        records.take_all::<Answered>(&self.client, answered()).await?;
        if self.pod_certificates
            && let Some(version) = served(&self.client).await?
        {
            records.take_all::<AnsweredByKubelet>(&self.client, answered_by_kubelet(&version)).await?;
        }
        Ok(records.recorded)
    }
}

/// What was found, on its way to the records.
struct Records<'a> {
    authorities: &'a Authorities,
    kept: &'a BTreeSet<SignerName>,
    policy: &'a Policy,
    found: HashMap<SignerName, Vec<(Chain, Leaf)>>,
    waiting: usize,
    recorded: usize,
}

impl Records<'_> {
    async fn take_all<T: Found>(&mut self, client: &Client, source: Source) -> Result<(), RecollectionError> {
        let mut events = Events::<T>::new(client.clone(), source);
        loop {
            match events.next().await? {
                Event::Listed(object) => {
                    if let Some((signer, chain, leaf)) = object.found() {
                        self.add(&signer, chain, leaf).await?;
                    }
                }
                Event::Complete => return self.write().await,
                Event::Begins | Event::Applied(_) | Event::Deleted(_) | Event::Progress => {}
            }
        }
    }

    async fn add(&mut self, signer: &SignerName, chain: Chain, leaf: Leaf) -> Result<(), RecollectionError> {
        let authority = self.policy.authority(signer);
        if !self.kept.contains(&authority) {
            return Ok(());
        }
        self.found.entry(authority).or_default().push((chain, leaf));
        self.waiting += 1;
        if self.waiting < TOGETHER { Ok(()) } else { self.write().await }
    }

    async fn write(&mut self) -> Result<(), RecollectionError> {
        self.waiting = 0;
        for (authority, found) in take(&mut self.found) {
            let recorded = match self.authorities.entry(&authority) {
                Ok(entry) => self.authorities.recollect(&entry, found, SystemTime::now()).await,
                Err(error) => Err(error),
            };
            match recorded {
                Ok(count) => self.recorded += count,
                Err(error @ Unavailable::Api(_)) => return Err(error.into()),
                // Lost or unusable, which its round says: a Secret that is restored says what its record lacks.
                Err(error) => tracing::debug!(%authority, %error, "nothing is recorded"),
            }
        }
        Ok(())
    }
}

/// A request that may have a certificate of ours.
trait Found: Object {
    /// The signer that it names, the certificate, and the record of it.
    fn found(self) -> Option<(SignerName, Chain, Leaf)>;
}

/// A CertificateSigningRequest with its certificate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answered {
    spec: CsrSpec,
    status: Status,
    #[serde(skip)]
    cut: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    certificate: ByteString,
}

fn answered() -> Source {
    Source {
        wanted: &[
            &["spec", "signerName"],
            &["spec", "username"],
            &["spec", "uid"],
            &["spec", "groups"],
            &["spec", "extra"],
            &["status", "conditions"],
            &["status", "certificate"],
        ],
        ..csrs()
    }
}

impl Object for Answered {
    fn cut(&mut self) {
        self.cut = true;
    }
}

impl Found for Answered {
    fn found(self) -> Option<(SignerName, Chain, Leaf)> {
        let Self { spec, status, cut } = self;
        let signer: SignerName = spec.signer_name.parse().ok()?;
        let is = |wanted: &[&str]| status.conditions.iter().any(|condition| wanted.contains(&condition.type_.as_str()));
        if cut || !is(&["Approved"]) || is(&["Denied", "Failed"]) {
            return None;
        }
        let chain = Chain::parse(&status.certificate.0).ok()?;
        let decided = status.conditions.iter().filter_map(|condition| condition.last_update_time.as_ref());
        let decided: Option<SystemTime> = decided.map(|time| time.0.into()).max();
        let CsrSpec { username, uid, groups, extra, .. } = spec;
        let requester = Requester { username, uid, groups, extra };
        let (holder, pod) = bound_pod(&requester).map_or_else(
            |_| (host_holder(&requester.username), String::new()),
            |bound| (bound.pod_uid, format!("{}/{}", bound.namespace, bound.pod)),
        );
        let leaf = record(&signer, &chain, &holder, pod, decided);
        Some((signer, chain, leaf))
    }
}

/// A PodCertificateRequest with its certificate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnsweredByKubelet {
    metadata: ObjectMeta,
    spec: SpecOfKubelet,
    status: StatusOfKubelet,
    #[serde(skip)]
    cut: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecOfKubelet {
    signer_name: String,
    pod_name: String,
    #[serde(rename = "podUID")]
    pod_uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusOfKubelet {
    certificate_chain: String,
}

fn answered_by_kubelet(version: &str) -> Source {
    Source {
        path: format!("/apis/{version}/podcertificaterequests"),
        wanted: &[
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["spec", "signerName"],
            &["spec", "podName"],
            &["spec", "podUID"],
            &["status", "certificateChain"],
        ],
        limit: 32 * 1024,
        ..Source::default()
    }
}

impl Object for AnsweredByKubelet {
    fn cut(&mut self) {
        self.cut = true;
    }
}

impl Found for AnsweredByKubelet {
    fn found(self) -> Option<(SignerName, Chain, Leaf)> {
        let Self { metadata, spec, status, cut } = self;
        let signer: SignerName = spec.signer_name.parse().ok()?;
        if cut {
            return None;
        }
        let chain = Chain::parse(status.certificate_chain.as_bytes()).ok()?;
        let pod = format!("{}/{}", metadata.namespace.unwrap_or_default(), spec.pod_name);
        let created = metadata.creation_timestamp.map(|time| time.0.into());
        let leaf = record(&signer, &chain, &spec.pod_uid, pod, created).of_kubelet();
        Some((signer, chain, leaf))
    }
}

/// The record of a certificate that was issued at `at` at the earliest.
fn record(signer: &SignerName, chain: &Chain, holder: &str, pod: String, at: Option<SystemTime>) -> Leaf {
    let guess = Life::of(chain.not_before, chain.not_after, None).issued;
    let at = at.map_or(guess, |at| at.max(guess)).min(SystemTime::now());
    let role = if signer.domain == Domain::Peer { Role::Peer } else { Role::Client };
    Leaf::new(holder, pod, &chain.common_name, chain.not_after, at).of_role(role).for_key(&chain.public_key)
}
