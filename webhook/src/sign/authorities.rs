//! The authorities. Each is stored in a Secret of the system namespace; only the leader holds them in memory.
//!
//! An authority is generated once, by a create that fails if the Secret exists, and only if its trust was never published.
//! **Invariant.** A lost CA is never silently replaced: if trust is published and the Secret is missing, nothing is issued
//! until the Secret is restored.
//!
//! A change of an authority's state by a leaf or a statement is persisted before the leaf is issued.

mod deletion;
mod epoch;
pub(crate) mod issued;
mod leaf;
mod lean;
pub(in crate::sign) mod making;
pub(in crate::sign) mod memory;
mod names;
mod newcomers;
mod quorum;
pub(in crate::sign) mod quota;
pub(in crate::sign) mod recollected;
pub(crate) mod revoked;
pub(in crate::sign) mod state;
mod term;
pub(in crate::sign) mod unwritten;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Bundle,
    crl::Crl,
    in_force::BundlesInForce,
    names::SignerName,
    policy::{MAX_AUTHORITIES, MAX_AUTHORITIES_IN_ALL, Policy},
    role::{Domain, Role},
};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, Resource as _, api::PostParams, core::Request};
use tokio::{
    sync::{MutexGuard, Notify, watch},
    time::{Instant, timeout},
};

use super::authorities::{
    issued::{Leaf, Place},
    memory::Records,
    quota::{Bounds, Entry, Held, Quota, QuotaError, Ready, SecretMetadata},
    recollected::Recollected,
    state::Stored,
};
use crate::{
    ca::authority::Authority,
    controller::{client::ApiServerError, namespaces, pods::Pods, policy, written::written},
    revoke,
    rollover::{PodProgress, Rollover, rfc3339},
    sign::cache::pods::is_host,
};

/// How long an answer waits for the state of the cluster's other authority.
const STATE_WITHIN: Duration = Duration::from_millis(500);

/// Pods whose progress in a rollover is kept though they may be gone. With more, those that are gone are forgotten before the
/// state is written: short-lived pods would fill the Secret.
const FEW: usize = 256;

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unavailable {
    /// The API server failed us.
    #[error(transparent)]
    Api(#[from] ApiServerError),
    /// It was there, and is not.
    #[error("{0}")]
    Lost(String),
    /// Something that comes by itself is not there yet.
    #[error("{0}")]
    NotYet(String),
    /// Its namespace has as many as it may have.
    #[error("{0}")]
    Full(String),
    /// The requester holds as many valid certificates as it may.
    #[error("{0}")]
    Enough(String),
    /// An operator has revoked the requester's certificates, and it gets no other.
    #[error("{0}")]
    Barred(String),
    /// The stored state cannot be used; an operator must repair it.
    #[error("{0}")]
    Unusable(String),
}

/// Every authority that was seen in this term.
pub(super) struct Authorities {
    client: Client,
    system: String,
    policy: policy::Current,
    namespaces: namespaces::Current,
    pods: Pods,
    quota: StdMutex<Quota>,
    /// Valid certificates that a pod or host may hold of one authority, while there is memory for them.
    most: u16,
    records: Arc<Records>,
    /// Rung whenever an authority's state changed by a leaf or a statement.
    changed: Arc<Notify>,
    /// True if the term is over, so that nothing more is recorded.
    over: AtomicBool,
    recollected: watch::Sender<Recollected>,
}

/// The input for issuing a leaf.
pub(super) struct Grant<'a> {
    /// The pod's uid, or [`super::cache::pods::host_holder`].
    pub(super) holder: &'a str,
    pub(super) role: Role,
    /// [`etcd_tls_contract::csr::key_digest`] of the public key.
    pub(super) key: &'a str,
    /// The bundle that etcd has loaded, as the request states it.
    pub(super) trusts: Option<&'a str>,
    pub(super) lifetime: Duration,
}

/// The authority that may issue a leaf now.
pub(super) struct Granted {
    pub(super) authority: Arc<Authority>,
    /// Digest of the bundle in force.
    pub(super) bundle: String,
}

/// The published state of an authority.
pub(super) struct Published {
    pub(super) bundle: Bundle,
    /// Its revocation list; none of a CA that may sign none.
    pub(super) list: Option<Arc<Crl>>,
    /// The answer to the last request to revoke.
    pub(super) answer: Option<revoke::Report>,
}

/// Notes in a rollover what a leaf and its request show of their holder. True if anything is new, and must be persisted. `live`
/// forgets the pods that are gone, but for those that stay.
fn note(
    rollover: &mut Rollover,
    grant: &Grant<'_>,
    live: impl FnOnce(&mut BTreeMap<String, PodProgress>, &dyn Fn(&str) -> bool),
) -> bool {
    let trusts = grant.trusts.is_some_and(|digest| rollover.note_trusts(grant.holder, grant.role.domain(), digest));
    let changed = rollover.note_renewed(grant.holder, grant.role) || trusts;
    if changed && rollover.pods.len() > FEW {
        live(&mut rollover.pods, &|uid| uid == grant.holder || is_host(uid));
    }
    changed
}

impl Authorities {
    pub(super) fn new(
        client: Client,
        system: &str,
        policy: policy::Current,
        namespaces: namespaces::Current,
        pods: Pods,
        (most, records): (u16, Arc<Records>),
        changed: Arc<Notify>,
    ) -> Self {
        let (system, quota) = (system.to_owned(), StdMutex::new(Quota::new(Arc::clone(&records))));
        let (over, recollected) = (AtomicBool::default(), watch::Sender::new(Recollected::begin()));
        Self { client, system, policy, namespaces, pods, quota, most, records, changed, over, recollected }
    }

    fn quota(&self) -> std::sync::MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops every key: at the end of a term.
    pub(super) fn clear(&self) {
        *self.quota() = Quota::new(Arc::clone(&self.records));
    }

    /// Notes which authorities have a Secret; before this, none has a place.
    pub(super) fn listed(&self, kept: &BTreeSet<Arc<SignerName>>) {
        self.over.store(false, Ordering::SeqCst);
        self.quota().listed(kept);
    }

    /// An authority's place.
    ///
    /// # Errors
    /// It has none, and its namespace has no room for another one.
    pub(super) fn entry(&self, name: &SignerName) -> Result<Arc<Entry>, Unavailable> {
        let policy = self.policy.borrow().clone();
        let policy = policy.as_deref();
        let bound = policy.map_or(MAX_AUTHORITIES, |policy| policy.authorities_per_namespace);
        let in_all = policy.map_or(MAX_AUTHORITIES_IN_ALL, |policy| policy.authorities_in_all);
        let bounds = Bounds { per_namespace: bound.into(), in_all: usize::try_from(in_all).unwrap_or(usize::MAX) };
        self.quota().reserve(name, bounds).map_err(|none| match none {
            QuotaError::NotListed => Unavailable::NotYet("the CAs' Secrets are not listed yet".to_owned()),
            QuotaError::Full => Unavailable::Full(format!(
                "namespace {} has {bound} certificate authorities, as many as it may have, so none is made for {name}. \
                 Raise authoritiesPerNamespace in the policy. Or set idleAuthorities there and delete the pods of unused clusters: \
                 their CAs are deleted a day after the last certificate has ended",
                name.namespace,
            )),
            QuotaError::FullShare(share) => Unavailable::Full(format!(
                "most of the {in_all} certificate authorities that all namespaces may have are taken, and what is left is for \
                 namespaces with fewer than {share}: none is made for {name}. Delete clusters without use, or have policy allow \
                 more by authoritiesInAll, with more memory for etcd-tls-sign"
            )),
            QuotaError::FullInAll => Unavailable::Full(format!(
                "all namespaces have {in_all} certificate authorities together, as many as they may have, so none is made for \
                 {name}. Delete clusters without use, or have policy allow more by authoritiesInAll, with more memory for \
                 etcd-tls-sign"
            )),
        })
    }

    /// Every place there is.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.quota().all()
    }

    /// True if an authority's certificates of late are in no Secret, though they should be.
    pub(super) fn spares_requests(&self, name: &SignerName, now: Instant) -> bool {
        self.quota().get(name).is_some_and(|entry| entry.unwritten().spares_requests(now))
    }

    /// True if some authority's are.
    pub(super) fn some_spare_requests(&self, now: Instant) -> bool {
        self.entries().iter().any(|entry| entry.unwritten().spares_requests(now))
    }

    /// True if it is known in this term which authorities have a Secret.
    pub(super) fn are_listed(&self) -> bool {
        self.quota().is_listed()
    }

    /// Whether an authority has a Secret; `None`: the Secrets are not listed yet in this term.
    pub(super) fn has_secret(&self, name: &SignerName) -> Option<bool> {
        self.quota().has_secret(name)
    }

    /// True if nothing is left of an authority.
    pub(super) fn is_gone(&self, name: &SignerName) -> bool {
        self.quota().is_gone(name)
    }

    /// Forgets an authority whose namespace is gone.
    pub(super) fn forget(&self, name: &SignerName) {
        self.quota().remove(name);
    }

    /// Forgets the authorities that hold no key and that nobody wants; gives their names.
    pub(super) fn forget_idle(&self, wanted: &BTreeSet<Arc<SignerName>>) -> Vec<Arc<SignerName>> {
        self.quota().remove_idle(wanted)
    }

    /// True if the watch of pods shows the pod of this uid, or shows nothing yet.
    pub(super) fn shows_pod(&self, uid: &str) -> bool {
        self.pods.shows(uid)
    }

    /// The authority that issues a leaf now, after what the leaf changes was persisted.
    ///
    /// # Errors
    /// None can issue now.
    pub(super) async fn grant(
        &self,
        entry: &Entry,
        grant: &Grant<'_>,
        now: SystemTime,
    ) -> Result<Granted, Unavailable> {
        let mut held = entry.held.lock().await;
        let ready = self.ready(entry, &mut held, now).await?;
        if ready.stored.revoked.bars(grant.holder) {
            return Err(barred(&entry.name));
        }
        if ready.stored.revoked.compromised(grant.key) {
            return Err(compromised(&entry.name));
        }
        if !is_host(grant.holder) && !self.pods.shows(grant.holder) {
            entry.newcomers().add(grant.holder, grant.role, Instant::now());
        }
        let mut after = ready.stored.clone();
        let end = after.active.not_after();
        let not_after = now.checked_add(grant.lifetime).map_or(end, |t| t.min(end));
        let mut changed = after.note_leaf(not_after, grant.lifetime) | after.state.idle_since.take().is_some();
        if let Some(rollover) = &mut after.state.rollover {
            changed |= note(rollover, grant, |pods, stays| self.pods.retain_live(pods, stays));
        }
        let granted = Granted { authority: Arc::clone(&after.active), bundle: after.bundle().digest() };
        if changed {
            self.persist(entry, &mut held, after).await?;
            self.changed.notify_one();
        } else {
            ready.stored = after;
        }
        Ok(granted)
    }

    /// Records a certificate of `issuer` before it is issued, so that present revocations cover it or it is not issued. The record is
    /// written soon, together with others. True: it is the first one of its holder that the record has.
    ///
    /// # Errors
    /// An operator has revoked the certificates of its holder or of its key meanwhile, or the holder got as many as it may hold. Or it
    /// is not known just now what is revoked.
    pub(super) async fn note_issued(
        &self,
        entry: &Entry,
        issuer: &Authority,
        serial: &str,
        leaf: Leaf,
    ) -> Result<bool, Unavailable> {
        let mut held = entry.held.lock().await;
        if self.over.load(Ordering::SeqCst) {
            return Err(Unavailable::NotYet("this replica does not lead any more".to_owned()));
        }
        // What is noted in a place that was given up, at the end of a term, say, is written by nobody.
        if !self.quota().get(&entry.name).is_some_and(|place| std::ptr::eq(&raw const *place, entry)) {
            return Err(Unavailable::NotYet(format!("authority {} is loaded again", entry.name)));
        }
        if matches!(&*held, Held::Ready(ready) if self.is_replaced(&entry.name, ready)) {
            return Err(Unavailable::NotYet(format!("namespace {} was made again meanwhile", entry.name.namespace)));
        }
        // A write that failed since the grant may have revoked the certificates of this holder: what is there is read first. It is
        // not left to another attempt: while the Secret cannot be written, one write after the other fails.
        let ready = self.ready(entry, &mut held, SystemTime::now()).await?;
        if ready.stored.active.generation() != issuer.generation() {
            return Err(Unavailable::NotYet(format!("another CA signs for {} since a moment ago", entry.name)));
        }
        if ready.stored.revoked.bars(leaf.holder()) {
            return Err(barred(&entry.name));
        }
        if ready.stored.revoked.compromised(&leaf.key()) {
            return Err(compromised(&entry.name));
        }
        // Recorded by an attempt to answer, and revoked since: the next one is another certificate.
        if ready.stored.revoked.lists(serial) {
            return Err(Unavailable::NotYet("this certificate was revoked before it was handed out".to_owned()));
        }
        self.room(&entry.name, ready, serial, &leaf)?;
        if let Some(wait) = entry.unwritten().add(serial, leaf.clone(), ready.stored.entries(), Instant::now()) {
            self.ring_after(wait);
        }
        let first = !ready.stored.issued.knows(leaf.holder(), serial);
        Arc::make_mut(&mut ready.stored.issued).note(serial, leaf);
        self.weigh(entry, &mut held);
        Ok(first)
    }

    /// The pods' certificates of which little of the life is left, by the record.
    pub(super) async fn ending(&self, entry: &Entry, now: SystemTime) -> Vec<(String, Leaf)> {
        match &*entry.held.lock().await {
            Held::Ready(ready) if !self.is_replaced(&entry.name, ready) => ready.stored.issued.ending(now),
            Held::Ready(_) | Held::Unknown | Held::Lost | Held::Unusable => Vec::new(),
        }
    }

    /// Leaves out those in whose place the record has a newer one.
    pub(super) async fn leave_out_renewed(&self, entry: &Entry, ending: &mut HashMap<Place, (String, Leaf)>) {
        if let Held::Ready(ready) = &*entry.held.lock().await {
            ready.stored.issued.leave_out_renewed(ending);
        }
    }

    /// Counts the memory of a record after a change. Where all is taken, the others that are too large by now forget, too.
    fn weigh(&self, entry: &Entry, held: &mut Held) {
        entry.weigh(held);
        if self.records.are_full() {
            let all = self.quota().all();
            all.iter().for_each(|other| other.make_room());
        }
    }

    /// A holder of too many certificates would push its own out of the record, and they could not be revoked by its name.
    fn room(&self, authority: &SignerName, ready: &Ready, serial: &str, leaf: &Leaf) -> Result<(), Unavailable> {
        let most = self.records.per_pod(self.most);
        let Some(until) = ready.stored.issued.full_until(serial, leaf, usize::from(most)) else {
            return Ok(());
        };
        let bound = if most < self.most {
            "as many as a pod may hold while little memory is left for the records of all pods (--record-memory of etcd-tls-sign)"
        } else {
            "as many as it may hold (--certificates-per-pod of etcd-tls-sign)"
        };
        Err(Unavailable::Enough(format!(
            "the pod or host has {most} valid certificates of {authority}, {bound}; the first of them ends at {}. Find out why it \
             asks so often. A pod that is made again gets one at once",
            rfc3339::text(until)
        )))
    }

    /// Locks a place with what is known of it, looked up or made where nothing is, once the published revocation list is compared.
    pub(super) async fn look<'a>(
        &self,
        entry: &'a Entry,
        now: SystemTime,
    ) -> (MutexGuard<'a, Held>, Option<Unavailable>) {
        let mut held = entry.held.lock().await;
        entry.forget_ended(&mut held, now);
        let error = match self.ready(entry, &mut held, now).await {
            Ok(_) => self.compare(entry, &mut held, now).await.err(),
            Err(error) => Some(error),
        };
        (held, error)
    }

    /// The published bundle of an authority, without a call to the API server.
    pub(super) async fn bundle(&self, name: &SignerName) -> Option<Bundle> {
        let entry = self.quota().get(name)?;
        match &*entry.held.lock().await {
            Held::Ready(ready) if !self.is_replaced(name, ready) => Some(ready.stored.bundle()),
            Held::Ready(_) | Held::Unknown | Held::Lost | Held::Unusable => None,
        }
    }

    /// All that is published of an authority; nothing before its published list was compared.
    pub(super) async fn published_of(&self, name: &SignerName) -> Option<Published> {
        let entry = self.quota().get(name)?;
        match &*entry.held.lock().await {
            Held::Ready(ready) if ready.compared && !self.is_replaced(name, ready) => Some(Published {
                bundle: ready.stored.bundle(),
                list: ready.stored.revoked.list().cloned(),
                answer: self.report(&ready.stored, SystemTime::now()),
            }),
            Held::Ready(_) | Held::Unknown | Held::Lost | Held::Unusable => None,
        }
    }

    /// The bundles in force of the cluster that `signer` names, for the answer to a request which the authority `issuer`
    /// issues, with the bundle `digest`. Without that one a first certificate could not be verified. Another that is not
    /// loaded, or is being written for long, is left out.
    pub(super) async fn in_force(
        &self,
        signer: &SignerName,
        policy: &Policy,
        issuer: &SignerName,
        digest: &str,
    ) -> BundlesInForce {
        let of = |domain| policy.authority(&SignerName { domain, ..signer.clone() });
        let mut digests = BTreeMap::new();
        for domain in Domain::ALL {
            let authority = of(domain);
            if domain == Domain::Metrics && authority == of(Domain::Client) {
                continue;
            }
            if authority == *issuer {
                digests.insert(domain, digest.to_owned());
            } else if let Ok(Some(bundle)) = timeout(STATE_WITHIN, self.bundle(&authority)).await {
                digests.insert(domain, bundle.digest());
            }
        }
        BundlesInForce::new(digests)
    }

    async fn ready<'h>(
        &self,
        entry: &Entry,
        held: &'h mut Held,
        now: SystemTime,
    ) -> Result<&'h mut Ready, Unavailable> {
        let name = &entry.name;
        if matches!(held, Held::Ready(ready) if self.is_replaced(name, ready)) {
            *held = Held::Unknown;
            entry.unwritten().clear();
        }
        if !matches!(held, Held::Ready(_)) {
            match self.load_or_make(name, now).await {
                Ok(mut ready) => {
                    self.recall(entry, &mut ready, now);
                    *held = Held::Ready(Box::new(ready));
                    self.weigh(entry, held);
                    match self.compare(entry, held, now).await {
                        // Certificates do not wait for a list that cannot be read yet.
                        Ok(()) | Err(Unavailable::NotYet(_) | Unavailable::Api(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => {
                    match &error {
                        Unavailable::Lost(_) => *held = Held::Lost,
                        Unavailable::Unusable(_) => *held = Held::Unusable,
                        Unavailable::Api(_)
                        | Unavailable::NotYet(_)
                        | Unavailable::Full(_)
                        | Unavailable::Enough(_)
                        | Unavailable::Barred(_) => {}
                    }
                    return Err(error);
                }
            }
        }
        match held {
            Held::Ready(ready) => Ok(ready),
            Held::Unknown | Held::Lost | Held::Unusable => {
                Err(Unavailable::NotYet(format!("authority {name} is not loaded yet")))
            }
        }
    }

    /// Writes a new state, and holds it only when it is written. One that somebody else wrote meanwhile is read again.
    pub(super) async fn persist(&self, entry: &Entry, held: &mut Held, stored: Stored) -> Result<(), Unavailable> {
        let name = &entry.name;
        let Held::Ready(ready) = &*held else {
            return Err(Unavailable::NotYet(format!("authority {name} is not loaded yet")));
        };
        let metadata = ready.secret.object(name).map_err(|e| Unavailable::Unusable(e.to_string()))?;
        let secret = metadata.name.clone().unwrap_or_default();
        let (type_, namespace, compared) = (ready.type_.clone(), ready.namespace.clone(), ready.compared);
        let data = stored.data().map_err(|e| Unavailable::Unusable(e.to_string()))?;
        let object =
            Secret { metadata, type_: type_.as_deref().map(str::to_owned), data: Some(data), ..Secret::default() };
        match self.replace(&secret, &object).await {
            Ok(metadata) => {
                *held = Held::Unknown;
                let secret = SecretMetadata::of(metadata, name).map_err(|e| Unavailable::Unusable(e.to_string()))?;
                *held = Held::Ready(Box::new(Ready { namespace, stored, secret, type_, compared }));
                // All records were made under the lock that is held here, so the written state contains them.
                entry.unwritten().clear();
                self.weigh(entry, held);
                Ok(())
            }
            Err(error) => {
                // Gone, changed, or a lost answer: the state in memory may be wrong.
                *held = Held::Unknown;
                self.changed.notify_one();
                Err(error.into())
            }
        }
    }

    async fn replace(&self, secret: &str, object: &Secret) -> Result<ObjectMeta, ApiServerError> {
        let bytes = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let request = Request::new(Secret::url_path(&(), Some(&self.system)))
            .replace(secret, &PostParams::default(), bytes)
            .map_err(kube::Error::BuildRequest)?;
        written(&self.client, request, "replace").await
    }

    /// True if an authority is of a namespace that is gone, though there may be another one of its name.
    fn is_replaced(&self, name: &SignerName, ready: &Ready) -> bool {
        let namespaces = self.namespaces.borrow();
        let uid = |all: &namespaces::Map| all.get(&*name.namespace).map(|facts| ready.namespace != *facts.uid);
        namespaces.as_ref().is_some_and(|all| uid(all).unwrap_or(true))
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.system)
    }
}

fn barred(authority: &SignerName) -> Unavailable {
    Unavailable::Barred(format!(
        "an operator has revoked the certificates of this pod; it gets no other from {authority} until it is made again, or \
         etcd-tls-webhook revoke --undo --pod takes that back"
    ))
}

fn compromised(authority: &SignerName) -> Unavailable {
    Unavailable::Barred(format!(
        "an operator has revoked this key as compromised, and {authority} issues nothing for it. A sidecar makes another key when \
         it has the revocation list; delete the pod if it does not"
    ))
}

#[cfg(test)]
mod tests;
