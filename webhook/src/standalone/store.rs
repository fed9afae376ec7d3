//! The stored requests: one writer, many readers. A change becomes visible only when it is durable.
//!
//! A change is a function from the stored state to the new one. It runs in the one writer thread, so check and write are
//! atomic. Changes that wait at the same time are written as one batch. Readers see a shared map, and watchers a ring of the
//! latest events; a watcher that falls behind must list again.

mod draft;
pub mod holders;
mod index;
mod journal;
pub mod ledger;
mod packed;
mod revocations;
mod stored;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::SystemTime,
};

use etcd_tls_contract::{names::ClusterName, role::Domain, san::Sans};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use tokio::sync::{oneshot, watch};

use self::{
    draft::Draft,
    holders::{Claim, Holders},
    journal::{Entry, Journal},
    stored::{Issuance, Waiter},
    writer::{BATCH, Writer},
};
pub use self::{
    index::{Index, Limits},
    journal::OpenError,
    ledger::{Bounds, Ledger},
    revocations::Revocations,
    stored::{AUTO_APPROVED, ENTITLED, Proposal, StoredRequest, approved_by, status_mut},
};
use crate::{platform::essential::essential_thread, sign::ledger::Revoked, standalone::error::ApiError};

/// Changes that may wait to be written; more callers wait to be heard.
const QUEUE: usize = 2_048;

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is new.
    Added,
    /// It was decided on.
    Modified,
    /// It is gone.
    Deleted,
}

/// One event of the ring.
#[derive(Clone, Debug)]
pub struct Event {
    /// The kind of the change.
    pub kind: Kind,
    /// The request after it, or the last of it.
    pub request: Arc<StoredRequest>,
    /// The revision that the change was given.
    pub revision: u64,
}
/// The effect of a change.
#[derive(Debug)]
pub enum Mutation {
    /// Puts this object in the place of what is there under its name.
    Put(Box<Proposal>),
    /// Removes the object of this name.
    Delete(String),
}
/// The view of readers.
#[derive(Debug, Default)]
struct View {
    index: Index,
    ring: VecDeque<Event>,
    /// The last revision that the ring does not hold any more.
    floor: u64,
    revision: u64,
}

/// The changes between a watcher's revision and now.
#[derive(Debug)]
pub enum Since {
    /// These events, oldest first, up to this revision.
    Events(Vec<Event>, u64),
    /// Not known here any more.
    Gone,
}

type Change = Box<dyn FnOnce(&Draft) -> Result<Mutation, ApiError> + Send>;
/// A change of the revocations: the domains' new ones.
type Revise = Box<dyn FnOnce(&Ledger) -> Result<Vec<(Domain, Revoked)>, ApiError> + Send>;
type Reply = oneshot::Sender<Result<Arc<StoredRequest>, ApiError>>;

/// The work of the writer.
enum Work {
    Request(Change, Reply),
    Revocations(Revise, oneshot::Sender<Result<(), ApiError>>),
}

/// The store's handle; clones share one store.
#[derive(Clone, Debug)]
pub struct Store {
    view: Arc<RwLock<View>>,
    changes: mpsc::SyncSender<Work>,
    revision: watch::Receiver<u64>,
    revised: watch::Receiver<u64>,
    writable: Arc<AtomicBool>,
    limits: Limits,
}

impl Store {
    /// Opens the directory and starts the writer.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        Self::of_cluster(dir, limits, None)
    }

    /// [`Self::open`], for a signer of this cluster alone.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn of_cluster(dir: &Path, limits: Limits, cluster: Option<&ClusterName>) -> Result<Self, OpenError> {
        let mut draft = Draft::of(Ledger::of_cluster(cluster));
        let mut revision = 0;
        let now = SystemTime::now();
        let journal = Journal::open(dir, |entry| {
            match entry {
                Entry::Put(csr) => {
                    let issuance = Issuance::of(&csr);
                    let stored = StoredRequest::issued(&csr, issuance.as_ref());
                    revision = revision.max(stored.revision);
                    let name = stored.name().to_owned();
                    draft.set(&name, Some(Arc::new(stored)), issuance.as_ref(), limits.certificates.room, now);
                }
                Entry::Delete { name } => {
                    draft.set(&name, None, None, limits.certificates.room, now);
                    revision += 1;
                }
                Entry::Holders => *draft.index_mut().holders_mut() = Holders::default(),
                Entry::Hold(holding) => draft.index_mut().holders_mut().take(&holding, now),
                Entry::Ledger(entry) => draft.ledger_mut().replay(entry)?,
                Entry::Revision(r) => revision = revision.max(r),
            }
            draft.ledger_mut().keep();
            Ok::<_, ApiError>(())
        })?;
        draft.charge_all();
        *draft.index_mut().revocations_mut() = draft.ledger().revocations().clone();
        // The truncated batch may have used revisions that nobody has seen.
        revision += BATCH as u64;
        let view = View { index: draft.index().clone(), ring: VecDeque::new(), floor: revision, revision };
        let view = Arc::new(RwLock::new(view));
        let (changes, queue) = mpsc::sync_channel(QUEUE);
        let (sender, receiver) = watch::channel(revision);
        let (revised, of_revisions) = watch::channel(0);
        let writable = Arc::new(AtomicBool::new(journal.writable()));
        let writer = Writer {
            journal,
            draft,
            revision,
            view: Arc::clone(&view),
            sender,
            revised,
            writable: Arc::clone(&writable),
            limits,
        };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || essential_thread("store", || writer.run(&queue)))
            .map_err(|error| OpenError::Io { path: dir.to_owned(), error })?;
        Ok(Self { view, changes, revision: receiver, revised: of_revisions, writable, limits })
    }

    /// Runs `change` and makes its outcome durable; gives back the request as it is now, or the last of a deleted one.
    ///
    /// # Errors
    /// The change's own, or that it could not be stored.
    pub async fn change(
        &self,
        change: impl FnOnce(&Index) -> Result<Mutation, ApiError> + Send + 'static,
    ) -> Result<Arc<StoredRequest>, ApiError> {
        self.change_draft(|draft| change(draft.index())).await
    }

    async fn change_draft(
        &self,
        change: impl FnOnce(&Draft) -> Result<Mutation, ApiError> + Send + 'static,
    ) -> Result<Arc<StoredRequest>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Request(Box::new(change), reply))?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Runs `revise` and makes the revocations that it gives durable; then all readers see them.
    ///
    /// # Errors
    /// The change's own, or that it could not be stored.
    pub(crate) async fn revise(
        &self,
        revise: impl FnOnce(&Ledger) -> Result<Vec<(Domain, Revoked)>, ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Revocations(Box::new(revise), reply))?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn send(&self, work: Work) -> Result<(), ApiError> {
        self.changes.try_send(work).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => ApiError::TooManyRequests {
                message: "too many requests are being written; try again later".to_owned(),
                retry_after_seconds: 1,
            },
            mpsc::TrySendError::Disconnected(_) => stopped(),
        })
    }

    /// Stores a new request, if there is place for it and for its user.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn create(&self, csr: CertificateSigningRequest) -> Result<Arc<StoredRequest>, ApiError> {
        let (limits, proposal) = (self.limits, Proposal::from(csr));
        self.change_draft(move |draft| put_new(draft, &limits, proposal)).await
    }

    /// Stores a new request with its certificate, if each name of it is still free for its user, for the host
    /// `caller_host` or as a user's share; else stores it without its status, and says why.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn create_if_free(
        &self,
        csr: CertificateSigningRequest,
        caller_host: Option<String>,
    ) -> Result<(Arc<StoredRequest>, Option<String>), ApiError> {
        let (limits, proposal) = (self.limits, Proposal::from(csr));
        let (tell, told) = mpsc::channel();
        let change = move |draft: &Draft| {
            let issuance = proposal.issuance.as_ref();
            match issuance.and_then(|issuance| not_free(draft.index(), &limits, issuance, caller_host.as_deref())) {
                Some(reason) => {
                    // The receiver lives until the change has an answer.
                    let _ = tell.send(reason);
                    let pending = CertificateSigningRequest { status: None, ..proposal.csr };
                    put_new(draft, &limits, pending.into())
                }
                None => put_new(draft, &limits, proposal),
            }
        };
        let stored = self.change_draft(change).await?;
        Ok((stored, told.try_recv().ok()))
    }

    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<Arc<StoredRequest>> {
        self.read().index.get(name).cloned()
    }

    /// Reads the index and the revision it is at.
    pub fn with<T>(&self, read: impl FnOnce(&Index, u64) -> T) -> T {
        let view = self.read();
        read(&view.index, view.revision)
    }

    /// The first events after `revision`, at most so many.
    pub fn since(&self, revision: u64, limit: usize) -> Since {
        let view = self.read();
        if revision < view.floor || revision > view.revision {
            return Since::Gone;
        }
        let from = view.ring.partition_point(|e| e.revision <= revision);
        let events: Vec<Event> = view.ring.range(from..).take(limit).cloned().collect();
        let whole = view.ring.len() - from <= limit;
        let reached = if whole { view.revision } else { events.last().map_or(revision, |event| event.revision) };
        Since::Events(events, reached)
    }

    /// Changes whenever the revision does.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// Changes whenever the revocations do.
    pub fn revisions_of_lists(&self) -> watch::Receiver<u64> {
        self.revised.clone()
    }

    /// True if the last write went well.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        // Nothing panics while it holds the lock for writing.
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped() -> ApiError {
    ApiError::Internal("the store has stopped; restart the signer".to_owned())
}

fn put_new(draft: &Draft, limits: &Limits, new: Proposal) -> Result<Mutation, ApiError> {
    let csr = &new.csr;
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    if draft.index().get(name).is_some() {
        return Err(ApiError::AlreadyExists(name.to_owned()));
    }
    let waiter = csr.status.is_none().then(|| Waiter::of(csr));
    draft.room_for(csr.spec.username.as_deref().unwrap_or_default(), waiter.as_ref(), limits)?;
    Ok(Mutation::Put(Box::new(new)))
}

/// Why a certificate that a rule approved cannot be given out: another holds a name of it by now, or its user holds as many
/// as it may.
fn not_free(index: &Index, limits: &Limits, issuance: &Issuance, caller_host: Option<&str>) -> Option<String> {
    let holding = &issuance.holding;
    let sans = Sans { dns: holding.dns.iter().cloned().collect(), ips: holding.ips.iter().copied().collect() };
    let claim = Claim { common_name: &holding.common_name, sans: &sans, principal: &holding.principal, caller_host };
    let (new, held) = index.holders().growth(holding);
    index.holders().conflict(&claim, SystemTime::now()).or_else(|| {
        let full = new > 0 && held + new > limits.names_per_user;
        full.then(|| {
            let limit = limits.names_per_user;
            format!("the valid certificates of {} hold {held} names, and {limit} are the limit", holding.principal)
        })
    })
}
