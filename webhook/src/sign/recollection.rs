//! The certificates that a killed leader issued and did not record: it writes the records seconds late. Their requests outlive it
//! by minutes, so a new leader lists them once, and records what the records lack. Its first round, which takes requests to revoke,
//! waits for this, but not for long: after that, answers say that the records may lack certificates. It issues meanwhile, and deletes no
//! issued request.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    future::pending,
    mem::take,
    sync::Arc,
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
use futures::{StreamExt, stream};
use k8s_openapi::{
    ByteString, api::certificates::v1::CertificateSigningRequestCondition as Condition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Client;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{
    authorities::{Authorities, Unavailable, issued::Leaf},
    cache::pods::host_holder,
    pod_certificates::served,
};
use crate::controller::{
    client::ApiServerError,
    facts::{CsrSpec, csrs},
    listed::{Event, Events, Object, Source, WatchError},
    policy,
};

/// How long one list may take: as long as the API server takes at most to send a large one.
const LIST_WITHIN: Duration = Duration::from_secs(240);
/// The pauses between attempts.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often to look whether the authorities' Secrets are listed.
const LOOK: Duration = Duration::from_millis(100);
/// Certificates that are held at a time.
const TOGETHER: usize = 256;
/// Authorities that are recorded at once.
const AT_ONCE: usize = 8;

/// See the module.
pub(super) struct Recollection {
    pub(super) client: Client,
    pub(super) authorities: Arc<Authorities>,
    pub(super) policy: policy::Current,
    pub(super) pod_certificates: bool,
}

/// Requests that have certificates. Each list is of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requests {
    /// CertificateSigningRequests.
    Csrs,
    /// PodCertificateRequests.
    OfKubelet,
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
    #[error("no policy could be read yet")]
    NoPolicy,
    #[error("the list was not complete in time")]
    Slow,
}

impl RecollectionError {
    /// True if there is no such list, or no right to it.
    fn is_absent(&self) -> bool {
        let (Self::Watch(WatchError::Request(error)) | Self::Request(error)) = self else { return false };
        error.is_not_found() || error.is_forbidden()
    }
}

impl Recollection {
    /// Lists what there is until it is recorded, which it tells [`Authorities`].
    pub(super) async fn keep(self) -> Infallible {
        while !self.authorities.are_listed() {
            sleep(LOOK).await;
        }
        let of_kubelet = async { if self.pod_certificates { self.record_all(Requests::OfKubelet).await } else { 0 } };
        let (of_csrs, of_kubelet) = tokio::join!(self.record_all(Requests::Csrs), of_kubelet);
        let certificates = of_csrs + of_kubelet;
        if certificates > 0 {
            tracing::info!(certificates, "recorded what the leader before had issued and not recorded");
        }
        self.authorities.all_recollected();
        pending().await
    }

    /// How many certificates of these requests were recorded.
    async fn record_all(&self, requests: Requests) -> usize {
        let (mut recorded, mut wait) = (0, AGAIN.0);
        loop {
            let result = timeout(LIST_WITHIN, self.list(requests, &mut recorded)).await;
            match result.unwrap_or(Err(RecollectionError::Slow)) {
                Ok(()) => return recorded,
                Err(error) if requests == Requests::OfKubelet && error.is_absent() => {
                    tracing::warn!(
                        %error,
                        "PodCertificateRequests cannot be listed, so certificates of theirs that a killed leader did not record are \
                         not looked for: apply the component pod-certificates, or remove --pod-certificates"
                    );
                    return recorded;
                }
                Err(error) => {
                    tracing::warn!(
                        ?requests,
                        %error,
                        "cannot record what was issued last; until then the records may lack certificates of a leader that was killed"
                    );
                    sleep(wait).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
            }
        }
    }

    async fn list(&self, requests: Requests, recorded: &mut usize) -> Result<(), RecollectionError> {
        let policy = self.policy.borrow().clone().ok_or(RecollectionError::NoPolicy)?;
        let mut records = Records {
            authorities: &self.authorities,
            policy: &policy,
            found: HashMap::new(),
            waiting: 0,
            recorded,
            unusable: BTreeSet::new(),
        };
        match requests {
            Requests::Csrs => records.take_all::<Answered>(&self.client, answered()).await,
            Requests::OfKubelet => match served(&self.client).await? {
                Some(version) => {
                    records.take_all::<AnsweredByKubelet>(&self.client, answered_by_kubelet(&version)).await
                }
                None => Ok(()),
            },
        }
    }
}

/// What was found, on its way to the records.
struct Records<'a> {
    authorities: &'a Arc<Authorities>,
    policy: &'a Policy,
    found: HashMap<SignerName, Vec<(Chain, Leaf)>>,
    waiting: usize,
    recorded: &'a mut usize,
    /// Authorities of which it is said that nothing can be recorded.
    unusable: BTreeSet<SignerName>,
}

impl Records<'_> {
    async fn take_all<T: Found>(&mut self, client: &Client, source: Source) -> Result<(), RecollectionError> {
        let mut events = Events::<T>::new(client.clone(), source);
        let mut cut = 0_usize;
        loop {
            match events.next().await? {
                Event::Listed(object) if object.is_cut() => cut += 1,
                Event::Listed(object) => {
                    if let Some((signer, chain, leaf)) = object.found() {
                        self.add(&signer, chain, leaf).await?;
                    }
                }
                Event::Complete => {
                    if cut > 0 {
                        tracing::warn!(
                            requests = cut,
                            "requests are too large to be read: if a killed leader had issued their certificates and not recorded \
                             them, only --serial revokes these"
                        );
                    }
                    return self.write().await;
                }
                Event::Begins | Event::Applied(_) | Event::Deleted(_) | Event::Progress => {}
            }
        }
    }

    async fn add(&mut self, signer: &SignerName, chain: Chain, leaf: Leaf) -> Result<(), RecollectionError> {
        let authority = self.policy.authority(signer);
        if self.authorities.has_secret(&authority) != Some(true) {
            return Ok(());
        }
        self.found.entry(authority).or_default().push((chain, leaf));
        self.waiting += 1;
        if self.waiting < TOGETHER { Ok(()) } else { self.write().await }
    }

    async fn write(&mut self) -> Result<(), RecollectionError> {
        self.waiting = 0;
        let record = |(authority, found): (SignerName, Vec<(Chain, Leaf)>)| {
            let authorities = Arc::clone(self.authorities);
            async move {
                let recorded = match authorities.entry(&authority) {
                    Ok(entry) => authorities.recollect(&entry, found, SystemTime::now()).await,
                    Err(error) => Err(error),
                };
                (authority, recorded)
            }
        };
        let found: Vec<_> = take(&mut self.found).into_iter().map(record).collect();
        let results: Vec<_> = stream::iter(found).buffer_unordered(AT_ONCE).collect().await;
        let mut result = Ok(());
        for (authority, recorded) in results {
            match recorded {
                Ok(count) => *self.recorded += count,
                Err(error @ (Unavailable::Api(_) | Unavailable::NotYet(_))) => result = Err(error.into()),
                Err(error) => {
                    if self.unusable.insert(authority.clone()) {
                        tracing::warn!(
                            %authority,
                            %error,
                            "certificates that the leader before issued are not recorded: once this is repaired, revoke such by \
                             --serial, by the log of sign"
                        );
                    }
                }
            }
        }
        result
    }
}

/// A request that may have a certificate of ours.
trait Found: Object {
    /// True if it was too large to be read.
    fn is_cut(&self) -> bool;
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
    fn is_cut(&self) -> bool {
        self.cut
    }

    fn found(self) -> Option<(SignerName, Chain, Leaf)> {
        let Self { spec, status, .. } = self;
        let signer: SignerName = spec.signer_name.parse().ok()?;
        let is = |wanted: &[&str]| status.conditions.iter().any(|condition| wanted.contains(&condition.type_.as_str()));
        if !is(&["Approved"]) || is(&["Denied", "Failed"]) {
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
    fn is_cut(&self) -> bool {
        self.cut
    }

    fn found(self) -> Option<(SignerName, Chain, Leaf)> {
        let Self { metadata, spec, status, .. } = self;
        let signer: SignerName = spec.signer_name.parse().ok()?;
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
    Leaf::new(holder, pod, &chain.common_name, chain.not_after, at)
        .named(&chain.sans)
        .of_role(role)
        .for_key(&chain.public_key)
}
