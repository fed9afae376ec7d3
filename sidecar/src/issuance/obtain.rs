//! The request for one role's certificate, from the key to a verified [`Entry`]. The caller writes the files.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, CertificateError, Chain},
    csr::{PrivateKey, Request},
    identity,
    in_force::{BundlesInForce, InvalidBundlesInForce},
    key::KeyRotation,
    life::Life,
    names,
    role::Domain,
};
use etcd_tls_telemetry::renewal_span;
use tracing::{Instrument as _, Level, Span};

use crate::{
    issuance::{
        awaited::Awaited,
        changes,
        flow::{Call, Circumstances, Expected, Flow, Outcome, Step},
        others::Distrusting,
        renewal::{Template, life},
    },
    kube::{
        Api,
        objects::{ByteString, CertificateSigningRequest, CertificateSigningRequestSpec, ObjectMeta},
    },
    os::clock::Clock,
    store::{Entry, Record, Store, files::Files},
};

pub use failure::Failure;
use noted::Noted;

mod failure;
mod noted;
mod overlap;
#[cfg(test)]
mod tests;

/// The API server refuses a request for less than ten minutes. The signer may shorten the lifetime.
const LEAST_EXPIRATION: Duration = Duration::from_secs(600);
/// How long a certificate may be ahead of us: of our clock, or of the trust bundle that kubelet brings us.
const AHEAD: Duration = Duration::from_secs(10 * 60);
const AHEAD_POLL: Duration = Duration::from_secs(2);
/// How often it is looked whether the members trust a CA that has come with no overlap.
const OVERLAP_POLL: Duration = Duration::from_secs(10);
/// How long a certificate waits for the bundle on offer to be believed before another is requested: first, where its answer
/// leaves the bundle out; first, where its answer states another bundle, which kubelet may bring yet; and at most.
const UNSTATED_WAIT: Duration = Duration::from_secs(2);
const OTHER_STATED_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// How often a request is looked at again that has ended with the certificate already in use.
const STALE_POLL: Duration = Duration::from_secs(20);

/// The answer that a certificate came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The signer's statement of the bundles in force.
    pub in_force: Option<BundlesInForce>,
    /// The issuer's CA. `None`: it was told before. A certificate that waits is looked at again and again,
    /// but its issuer has named the CA once.
    pub authority: Option<Result<Bundle, NoAuthority>>,
}

/// The CA beside a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAuthority {
    /// The answer has none.
    #[error("it is empty")]
    Empty,
    /// It cannot be read.
    #[error(transparent)]
    Invalid(#[from] CertificateError),
    /// It is another one than the certificate's.
    #[error("it is not the CA of the certificate, {0}")]
    OfAnother(String),
}

impl Answer {
    /// `pem` is the text with the certificate, `ca` the CA beside it.
    fn read(pem: &str, ca: Option<&[u8]>) -> Result<Self, InvalidBundlesInForce> {
        let authority = match ca {
            None => Err(NoAuthority::Empty),
            Some(ca) => Bundle::parse(ca).map_err(NoAuthority::from),
        };
        Ok(Self { in_force: BundlesInForce::parse(pem)?, authority: Some(authority) })
    }

    /// Without a CA that is not the one of the certificate beside it: nobody has said that such a CA is to be trusted.
    fn beside(mut self, chain: &Chain) -> Self {
        if let Some(Ok(authority)) = &self.authority
            && !authority.contains_issuer_of(chain)
        {
            self.authority = Some(Err(NoAuthority::OfAnother(chain.authority())));
        }
        self
    }
}

/// The bundles that a new certificate may verify under.
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    /// The preferred first: the one in use, the one on offer.
    pub bundles: Vec<Bundle>,
    /// Why the one on offer is not among them.
    pub doubt: Option<String>,
    /// The one on offer, where it is not among them because the signer has not stated that it is in force.
    pub unconfirmed: Option<Bundle>,
    /// The digest of the bundle in force, as the signer last stated it.
    pub in_force: Option<String>,
}

/// The dependencies of [`obtain`].
pub struct Issuance<'a, A, C, F> {
    /// The template of the request.
    pub template: &'a Template,
    /// The API server.
    pub api: A,
    /// The clocks.
    pub clock: &'a C,
    /// Where the pending key is kept. Never borrowed across a wait.
    pub store: &'a RefCell<Store<F>>,
    /// The certificate in use.
    pub current: Option<&'a Entry>,
    /// Bundles that a new certificate may verify under; told of the answer, once there is one.
    pub bundles: &'a dyn Fn(Domain, Option<&Answer>) -> Bundles,
    /// The members that do not trust a bundle yet, where the bundle comes with the answer: a certificate of a CA that has
    /// come with no overlap waits for them.
    pub others: Option<Distrusting<'a>>,
    /// Told when none of them holds the CA of a certificate that was just issued.
    pub awaited: &'a Awaited,
    /// The value of the request's `trusts` annotation.
    pub trusts: Option<String>,
    /// How long to try; for ever, if none.
    pub limit: Option<Duration>,
}

/// Gets a certificate for one role: finds the pending request or makes one, waits, proves what was signed. The pending key
/// stays until the caller has installed the entry, or is forgotten here when its request came to nothing.
///
/// # Errors
/// See [`Failure`].
pub async fn obtain<A: Api, C: Clock, F: Files>(issuance: Issuance<'_, A, C, F>) -> Result<Entry, Failure> {
    let Template { role, uid, signer, .. } = issuance.template;
    let span = renewal_span!(role.as_str(), uid.as_str(), signer.as_str());
    request(issuance).instrument(span).await
}

async fn request<A: Api, C: Clock, F: Files>(mut issuance: Issuance<'_, A, C, F>) -> Result<Entry, Failure> {
    let (mut key, mut resumed) = issuance.key(true)?;
    let mut patience = Patience::default();
    loop {
        let (request, expected) = issuance.request(&key)?;
        let name = request.metadata.name.clone().unwrap_or_default();
        Span::current().record("csr", name.as_str());
        let flow = if resumed { Flow::resumed(expected) } else { Flow::new(expected) };
        let result = match issuance.wait(flow, &request, &name).await? {
            Outcome::Signed { chain, ca } => {
                let text = String::from_utf8_lossy(&chain);
                if issuance.is_stale(&text) {
                    // The key was kept, so the request has the name of the one before, which is still there.
                    if issuance.life().is_some_and(|l| l.is_short(issuance.clock.now())) {
                        tracing::warn!("the last request is still there; a new key is made after all");
                        (key, resumed) = issuance.key(false)?;
                    } else {
                        issuance.api.rest();
                        issuance.pause(STALE_POLL, &name, "waiting for the last request to be deleted").await?;
                        resumed = true;
                    }
                    continue;
                }
                let proven = issuance.prove(&text, ca.as_deref(), &key, &name, &mut patience).await;
                issuance.awaited.end(issuance.template.role);
                return match proven {
                    Err(failure @ Failure::Rejected { .. }) => Err(issuance.forget(failure)),
                    Err(failure) => Err(failure),
                    Ok(Proof::Again(reason)) => {
                        tracing::warn!(%reason, "the certificate is not used; another is requested");
                        (key, resumed) = issuance.key(false)?;
                        continue;
                    }
                    Ok(Proof::Good(entry)) => {
                        tracing::info!(serial = entry.chain().serial, "certificate received and verified");
                        Ok(*entry)
                    }
                };
            }
            Outcome::Denied(reason) => Failure::Denied { name, reason },
            Outcome::Failed(reason) => Failure::Failed { name, reason },
            Outcome::Invalid(reason) => Failure::Invalid { name, reason },
            Outcome::Deleted => return Err(Failure::Deleted { name }),
            // Made before a restart, when the pod had other addresses: it would not do any more.
            Outcome::Replaced(reason) if resumed => {
                tracing::info!(%reason, "the pending request is given up for a new one");
                (key, resumed) = issuance.key(false)?;
                continue;
            }
            Outcome::Replaced(reason) => Failure::Replaced { name, reason },
        };
        return Err(issuance.forget(result));
    }
}

/// The result of checking a signed certificate.
enum Proof {
    /// It is what was asked for.
    Good(Box<Entry>),
    /// Its answer does not confirm the bundle on offer, or it has expired: only another answer helps; or another is asked for. Says
    /// why.
    Again(String),
}

/// How long certificates of one call of [`obtain`] have waited for their bundle.
#[derive(Default)]
struct Patience {
    /// When the first one began to wait.
    began: Option<Duration>,
    /// How many were given up.
    given_up: u32,
    /// True if the issuer was asked once more after a certificate had waited for members in vain.
    asked_again: bool,
}

impl Patience {
    /// How long this one waits before another is requested; `stated`: its answer states another bundle.
    fn wait(&self, stated: bool) -> Duration {
        let first = if stated { OTHER_STATED_WAIT } else { UNSTATED_WAIT };
        first.saturating_mul(1 << self.given_up.min(16)).min(LONGEST_WAIT)
    }
}

/// Why a request that is neither signed nor refused waits, as far as it says so.
fn waits_for(object: &CertificateSigningRequest) -> String {
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let reviewed = conditions.into_iter().find(|condition| condition.type_ == names::REVIEWED_CONDITION);
    let message = reviewed.and_then(|condition| condition.message.clone());
    message.unwrap_or_else(|| "neither approved and signed nor denied yet; is the signer running?".to_owned())
}

impl<A: Api, C: Clock, F: Files> Issuance<'_, A, C, F> {
    /// The life of the certificate in use.
    fn life(&self) -> Option<Life> {
        self.current.map(|entry| life(entry, self.clock.now()))
    }

    /// The key to ask with, and whether a request with it may exist: the pending one, the one in use where it is to be
    /// kept, a new one. It is on disk before it is used, so that a restart finds its request.
    fn key(&self, may_keep: bool) -> Result<(PrivateKey, bool), Failure> {
        let Template { role, key: algorithm, key_rotation, .. } = self.template;
        let store = self.store.borrow();
        // A revoked key may be known to others.
        let revoked = self.current.filter(|entry| {
            let lists = store.lists().by_domain;
            lists.get(&role.domain()).is_some_and(|list| list.entries().contains_key(&entry.chain().serial))
        });
        let gives_up = |key: &PrivateKey| revoked.is_some_and(|entry| key.public_key() == entry.chain().public_key);
        if may_keep {
            if let Some(key) =
                store.pending(*role).filter(|key| !gives_up(key)).filter(|k| k.algorithm() == Some(*algorithm))
            {
                return Ok((key, true));
            }
            if *key_rotation == KeyRotation::OnCaChange
                && let Some(entry) = self.current
                // One on offer that is not in use yet is a change as well: it lacks the CA in use, and waits for a certificate.
                && (self.bundles)(role.domain(), None).bundles.iter().chain([entry.bundle()]).all(|b| b.digest() == entry.record().key_bundle)
                && let Ok(key) = PrivateKey::from_pem(entry.key_pem())
                && key.algorithm() == Some(*algorithm)
                && revoked.is_none()
            {
                store.keep_pending(*role, &key)?;
                return Ok((key, true));
            }
        }
        let key = PrivateKey::generate(*algorithm).map_err(|e| Failure::Key(e.to_string()))?;
        store.keep_pending(*role, &key)?;
        Ok((key, false))
    }

    fn request(&self, key: &PrivateKey) -> Result<(CertificateSigningRequest, Expected), Failure> {
        let template = self.template;
        let pem = key
            .request(template.role.organization(), &template.common_name, &template.sans)
            .map_err(|e| Failure::Key(e.to_string()))?;
        let request = Request::parse(pem.as_bytes()).map_err(|e| Failure::Key(e.to_string()))?;
        let name = names::csr_name(&template.uid, template.role, &request.key_digest());
        let seconds = template.lifetime.max(LEAST_EXPIRATION).as_secs();
        let annotations = self.trusts.iter().map(|d| (names::TRUSTS_ANNOTATION.to_owned(), d.clone())).collect();
        let object = CertificateSigningRequest {
            metadata: ObjectMeta { name: Some(name), annotations: Some(annotations), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                expiration_seconds: i32::try_from(seconds).ok(),
                request: ByteString(pem.into_bytes()),
                signer_name: template.signer.clone(),
                usages: Some(identity::usages(template.role).iter().map(|u| (*u).to_owned()).collect()),
            },
            status: None,
        };
        Ok((object, Expected { request, signer: template.signer.clone() }))
    }

    /// Makes the calls that `flow` says, until it is over.
    async fn wait(
        &mut self,
        mut flow: Flow,
        request: &CertificateSigningRequest,
        name: &str,
    ) -> Result<Outcome, Failure> {
        let began = self.clock.elapsed();
        let mut call = flow.begin();
        let mut last = String::new();
        let mut noted = Noted::default();
        loop {
            let connected = self.api.connect().await;
            let asked = self.clock.elapsed();
            let answer = match (connected, call) {
                (Err(error), _) => Err(error),
                (Ok(()), Call::Create) => self.api.create(request).await,
                (Ok(()), Call::Get(version)) => self.api.get(name, version).await,
            };
            let answered = self.clock.elapsed();
            match &answer {
                Err(error) if error.code() != Some(404) && error.code() != Some(409) => {
                    last = error.to_string();
                    match noted.next(&last, error.code(), answered.saturating_sub(began)) {
                        Some(Level::INFO) => tracing::info!(error = %last, "no right to request yet; asking again"),
                        Some(_) => tracing::warn!(error = %last, "no answer yet; asking again"),
                        None => {}
                    }
                }
                Ok(object) => last = waits_for(object),
                Err(_) => {}
            }
            let circumstances = Circumstances {
                elapsed: answered.saturating_sub(began),
                took: answered.saturating_sub(asked),
                life: self.life(),
                now: self.clock.now(),
                chance: self.clock.chance(),
            };
            match flow.step(answer, &circumstances) {
                Step::Over(outcome) => return Ok(outcome),
                Step::Next(next, pause) => {
                    call = next;
                    if pause > Duration::from_secs(2) {
                        self.api.rest();
                    }
                    self.pause(pause, name, &last).await?;
                }
            }
        }
    }

    /// Sleeps, but not beyond the limit.
    async fn pause(&self, pause: Duration, name: &str, last: &str) -> Result<(), Failure> {
        if let Some(limit) = self.limit {
            let left = limit.saturating_sub(self.clock.elapsed());
            if left < pause {
                self.clock.sleep(left).await;
                return Err(Failure::Timeout { name: name.to_owned(), after: limit, last: last.to_owned() });
            }
        }
        if !pause.is_zero() {
            self.clock.sleep(pause).await;
        }
        Ok(())
    }

    fn is_stale(&self, pem: &str) -> bool {
        let serial = Chain::parse(pem.as_bytes()).map(|c| c.serial);
        self.current.is_some_and(|entry| serial.is_ok_and(|s| s == entry.chain().serial))
    }

    /// Proves the chain under the first bundle that it verifies under. One that is ahead of our clock, or of the bundle
    /// that kubelet has brought us so far, is waited for. The statement of its answer is of the time of its issuance: where
    /// the bundle on offer has its CA and is not the stated one, waiting longer may not help, and another answer may.
    async fn prove(
        &self,
        pem: &str,
        ca: Option<&[u8]>,
        key: &PrivateKey,
        name: &str,
        patience: &mut Patience,
    ) -> Result<Proof, Failure> {
        let Template { role, sans, .. } = self.template;
        let rejected = |reason: String| Failure::Rejected { name: name.to_owned(), reason };
        let chain = Chain::parse(pem.as_bytes()).map_err(|e| rejected(e.to_string()))?;
        let mut answer = Answer::read(pem, ca).map_err(|e| rejected(e.to_string()))?.beside(&chain);
        let in_use = self.current.map(|entry| entry.chain().not_after);
        let changed = changes::judge(self.template, &chain, in_use, self.clock.now());
        if let Some(changed) = changed.map_err(|e| rejected(e.to_string()))? {
            tracing::warn!(changed, "the certificate differs from the request");
        }
        let began = self.clock.elapsed();
        let (mut told, mut said) = (false, String::new());
        loop {
            let now = self.clock.now();
            let Bundles { bundles, doubt, unconfirmed, in_force } = (self.bundles)(role.domain(), Some(&answer));
            answer.authority = None;
            let stated = in_force.is_some();
            let (mut reason, mut proven) = ("there is no trust bundle to verify it under".to_owned(), None);
            for bundle in &bundles {
                let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let kept = self.current.filter(|e| e.chain().public_key == chain.public_key);
                let record = Record {
                    received: seconds,
                    key_bundle: kept.map_or_else(|| bundle.digest(), |e| e.record().key_bundle.clone()),
                    trusts: self.trusts.clone(),
                    in_force: in_force.clone(),
                };
                match Entry::prove(*role, pem, key, bundle, sans, record, now) {
                    Ok(entry) => {
                        proven = Some(entry);
                        break;
                    }
                    Err(e) => reason = e.to_string(),
                }
            }
            if let Some(entry) = proven {
                let Some(others) = self.held_back(&entry, now) else {
                    // The members did not load the CA in time. The issuer may have gone back to its CA meanwhile: it is asked
                    // once more.
                    if !said.is_empty() && !patience.asked_again && self.is_pressed(&entry, now) {
                        patience.asked_again = true;
                        return Ok(Proof::Again(said));
                    }
                    return Ok(Proof::Good(Box::new(entry)));
                };
                let reason = overlap::reason(&chain, &others);
                if said != reason {
                    tracing::warn!(%reason, "a signed certificate waits; the one in use stays");
                    said.clone_from(&reason);
                }
                let asked = self.awaited.begin(*role, &chain.authority(), others.members);
                tokio::select! {
                    biased;
                    () = asked.notified() => return Ok(Proof::Again(format!("{reason}; the annotation renew asks for another one"))),
                    paused = self.pause(OVERLAP_POLL, name, &reason) => paused?,
                }
                continue;
            }
            let early = chain.not_before > now && chain.not_before.duration_since(now).unwrap_or_default() <= AHEAD;
            if let Some(doubt) = doubt {
                reason = if bundles.is_empty() { doubt } else { format!("{reason}; {doubt}") };
            }
            let unknown = !bundles.iter().any(|b| b.contains_issuer_of(&chain));
            if unknown {
                reason = format!("{reason}; the certificate is of {}", chain.authority());
            }
            let elapsed = self.clock.elapsed();
            // A bundle that comes with the answer is there already.
            let waits = early || unknown && self.others.is_none();
            if !waits || elapsed.saturating_sub(*patience.began.get_or_insert(began)) > AHEAD {
                return Err(rejected(reason));
            }
            let expired = chain.not_after <= now;
            let on_offer = unconfirmed.is_some_and(|bundle| bundle.contains_issuer_of(&chain));
            if unknown && (expired || on_offer) && elapsed.saturating_sub(began) >= patience.wait(stated && !expired) {
                patience.given_up += 1;
                return Ok(Proof::Again(reason));
            }
            if !told {
                tracing::warn!(%reason, "a signed certificate cannot be installed yet; waiting for the clock or for the trust bundle");
                told = true;
            }
            if unknown {
                self.awaited.begin(*role, &chain.authority(), Vec::new());
            }
            self.pause(AHEAD_POLL, name, &reason).await?;
        }
    }

    fn forget(&self, failure: Failure) -> Failure {
        if let Err(error) = self.store.borrow().forget_pending(self.template.role) {
            tracing::warn!(%error, "a pending key could not be removed");
        }
        failure
    }
}
