//! The stored requests: one writer, many readers, and nobody told of a change before it is durable.
//!
//! A change is a function from what is stored to what is to be stored; it runs in the one writer thread, so nothing can
//! come between its check and its write. Changes that wait at the same time are written as one batch. Readers see a
//! shared map, and watchers a ring of the latest events: whoever falls out of it is told to list again.

mod journal;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_sidecar::certificate::Chain;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};
use tokio::sync::{oneshot, watch};

pub use journal::OpenError;
use journal::{Entry, Journal};

use crate::standalone::status::ApiError;

/// Events kept for watchers that were away for a moment.
const RING: usize = 2_000;
/// Changes written together at most.
const BATCH: usize = 512;
/// Changes that may wait to be written; more callers wait to be heard.
const QUEUE: usize = 2_048;
/// How often expired requests are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How much is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in all.
    pub requests: usize,
    /// Requests of one user that nobody decided on yet.
    pub pending_per_user: usize,
    /// How long a request waits for somebody to decide on it.
    pub pending_life: Duration,
    /// How long a decided one stays.
    pub decided_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 10_000,
            pending_per_user: 1_000,
            pending_life: Duration::from_secs(24 * 3600),
            decided_life: Duration::from_secs(3600),
        }
    }
}

/// How long a decided request stays even where place is wanted: its requester is about to read it.
const SETTLED: Duration = Duration::from_secs(60);

/// One stored request.
#[derive(Debug)]
pub struct Stored {
    /// The object, its resource version included.
    pub csr: CertificateSigningRequest,
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    /// The subject's CN and the notAfter of the certificate, where one was issued.
    issued: Option<(String, SystemTime)>,
}

impl Stored {
    /// A request as it would be stored.
    pub fn unsaved(csr: CertificateSigningRequest) -> Self {
        stored(csr)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.csr.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.csr.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `spec.username`: whose it is.
    pub fn owner(&self) -> &str {
        self.csr.spec.username.as_deref().unwrap_or_default()
    }

    /// Whether it is approved, denied or failed.
    pub fn decided(&self) -> bool {
        self.csr.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|c| !c.is_empty())
    }

    /// When it was made, or last decided on.
    fn touched(&self) -> Timestamp {
        let created = self.csr.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let conditions = self.csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let changed = conditions.filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0);
        changed.chain(created).max().unwrap_or(Timestamp::MIN)
    }

    /// Whether the certificate is valid at `now`.
    fn valid(&self, now: SystemTime) -> bool {
        self.issued.as_ref().is_some_and(|(_, not_after)| now < *not_after)
    }
}

fn older(t: Timestamp, life: Duration, now: Timestamp) -> bool {
    i64::try_from(life.as_secs()).is_ok_and(|life| now.as_second().saturating_sub(t.as_second()) >= life)
}

/// What happened to a request.
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
    /// What happened.
    pub kind: Kind,
    /// The request after it, or the last of it.
    pub request: Arc<Stored>,
    /// The revision that the change was given.
    pub revision: u64,
}

/// What a change does.
#[derive(Debug)]
pub enum Mutation {
    /// Puts this object in the place of what is there under its name.
    Put(Box<CertificateSigningRequest>),
    /// Removes the object of this name.
    Delete(String),
}

/// The requests by name, and how many of each user wait.
#[derive(Clone, Debug, Default)]
pub struct Index {
    requests: BTreeMap<Arc<str>, Arc<Stored>>,
    pending: HashMap<String, usize>,
    /// The last issued request of each CN.
    holders: HashMap<String, Arc<Stored>>,
}

impl Index {
    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Stored>> {
        self.requests.get(name)
    }

    /// All requests after `name`, in the order of their names.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<Stored>> {
        use std::ops::Bound;
        self.requests.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, r)| r)
    }

    /// All requests.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.requests.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many of `user`'s wait for a decision.
    pub fn pending_of(&self, user: &str) -> usize {
        self.pending.get(user).copied().unwrap_or_default()
    }

    /// The user to whom the last certificate of this CN was issued, while that certificate is valid.
    pub fn holder(&self, common_name: &str, now: SystemTime) -> Option<&str> {
        self.holders.get(common_name).filter(|r| r.valid(now)).map(|r| r.owner())
    }

    /// Whether a request has been there for long enough. The last of each CN stays while its certificate is valid: it says
    /// whose that name is.
    fn expired(&self, request: &Stored, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now) && !(self.is_holder(request) && request.valid(SystemTime::from(now)))
    }

    fn is_holder(&self, request: &Stored) -> bool {
        let holder = request.issued.as_ref().and_then(|(cn, _)| self.holders.get(cn));
        holder.is_some_and(|h| h.uid() == request.uid())
    }

    /// Puts `new` under `name`, or removes what is there; gives back what was there.
    fn set(&mut self, name: &str, new: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        if let Some(new) = new.as_ref().filter(|r| !r.decided()) {
            *self.pending.entry(new.owner().to_owned()).or_default() += 1;
        }
        if let Some((new, (cn, _))) = new.as_ref().and_then(|r| Some((r, r.issued.as_ref()?)))
            && self.holders.get(cn).is_none_or(|holder| holder.revision <= new.revision)
        {
            self.holders.insert(cn.clone(), Arc::clone(new));
        }
        let removed = new.is_none();
        let old = match new {
            Some(new) => self.requests.insert(Arc::from(name), new),
            None => self.requests.remove(name),
        };
        if let Some(old) = old.as_ref().filter(|r| !r.decided())
            && let Some(count) = self.pending.get_mut(old.owner())
        {
            *count -= 1;
            if *count == 0 {
                self.pending.remove(old.owner());
            }
        }
        if let Some(old) = old.as_ref().filter(|old| removed && self.is_holder(old))
            && let Some((cn, _)) = &old.issued
        {
            self.holders.remove(cn);
        }
        old
    }
}

/// What readers see.
#[derive(Debug, Default)]
struct View {
    index: Index,
    ring: VecDeque<Event>,
    /// The last revision that the ring does not hold any more.
    floor: u64,
    revision: u64,
}

/// What lies between a watcher's revision and now.
#[derive(Debug)]
pub enum Since {
    /// These events, oldest first, up to this revision.
    Events(Vec<Event>, u64),
    /// Not known here any more.
    Gone,
}

type Change = Box<dyn FnOnce(&Index) -> Result<Mutation, ApiError> + Send>;
type Reply = oneshot::Sender<Result<Arc<Stored>, ApiError>>;

/// The store's handle; clones share one store.
#[derive(Clone, Debug)]
pub struct Store {
    view: Arc<RwLock<View>>,
    changes: mpsc::SyncSender<(Change, Reply)>,
    revision: watch::Receiver<u64>,
    writable: Arc<AtomicBool>,
    limits: Limits,
}

impl Store {
    /// Opens the directory and starts the writer.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        let (journal, entries) = Journal::open(dir)?;
        let mut index = Index::default();
        let mut revision = 0;
        for entry in entries {
            match entry {
                Entry::Put(csr) => {
                    let stored = stored(*csr);
                    revision = revision.max(stored.revision);
                    let name = stored.name().to_owned();
                    index.set(&name, Some(Arc::new(stored)));
                }
                Entry::Delete { name } => {
                    index.set(&name, None);
                    revision += 1;
                }
                Entry::Revision(r) => revision = revision.max(r),
            }
        }
        // A revision that nobody was told of may have been given out for the batch that was cut off.
        revision += BATCH as u64;
        let view = View { index: index.clone(), ring: VecDeque::new(), floor: revision, revision };
        let view = Arc::new(RwLock::new(view));
        let (changes, queue) = mpsc::sync_channel(QUEUE);
        let (sender, receiver) = watch::channel(revision);
        let writable = Arc::new(AtomicBool::new(journal.writable()));
        let writer = Writer {
            journal,
            index,
            revision,
            view: Arc::clone(&view),
            sender,
            writable: Arc::clone(&writable),
            limits,
        };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|error| OpenError::Io { path: dir.to_owned(), error })?;
        Ok(Self { view, changes, revision: receiver, writable, limits })
    }

    /// Runs `change` and makes its outcome durable; gives back the request as it is now, or the last of a deleted one.
    ///
    /// # Errors
    /// The change's own, or that it could not be stored.
    pub async fn change(
        &self,
        change: impl FnOnce(&Index) -> Result<Mutation, ApiError> + Send + 'static,
    ) -> Result<Arc<Stored>, ApiError> {
        let (reply, answer) = oneshot::channel();
        match self.changes.try_send((Box::new(change), reply)) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(_)) => {
                return Err(ApiError::TooManyRequests {
                    message: "too many requests are being written; try again later".to_owned(),
                    retry_after_seconds: 1,
                });
            }
            Err(mpsc::TrySendError::Disconnected(_)) => {
                return Err(ApiError::Internal("the store has stopped; restart the signer".to_owned()));
            }
        }
        answer.await.unwrap_or_else(|_| Err(ApiError::Internal("the store has stopped; restart the signer".to_owned())))
    }

    /// Stores a new request, if there is place for it and for its user.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn create(&self, csr: CertificateSigningRequest) -> Result<Arc<Stored>, ApiError> {
        let limits = self.limits;
        self.change(move |index| {
            let name = csr.metadata.name.clone().unwrap_or_default();
            if index.get(&name).is_some() {
                return Err(ApiError::AlreadyExists(name));
            }
            let user = csr.spec.username.as_deref().unwrap_or_default();
            let pending = csr.status.is_none();
            if pending && index.pending_of(user) >= limits.pending_per_user {
                return Err(ApiError::TooManyRequests {
                    message: format!(
                        "{user} has {} requests waiting for approval, which is the limit; have them approved or deleted",
                        limits.pending_per_user
                    ),
                    retry_after_seconds: 60,
                });
            }
            if index.len() >= limits.requests {
                return Err(ApiError::TooManyRequests {
                    message: format!(
                        "{} requests are stored, which is the limit; have them approved, denied or deleted",
                        limits.requests
                    ),
                    retry_after_seconds: 60,
                });
            }
            Ok(Mutation::Put(Box::new(csr)))
        })
        .await
    }

    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Stored>> {
        self.read().index.get(name).cloned()
    }

    /// Reads the index and the revision it is at.
    pub fn with<T>(&self, read: impl FnOnce(&Index, u64) -> T) -> T {
        let view = self.read();
        read(&view.index, view.revision)
    }

    /// The events after `revision`.
    pub fn since(&self, revision: u64) -> Since {
        let view = self.read();
        if revision < view.floor || revision > view.revision {
            return Since::Gone;
        }
        let from = view.ring.partition_point(|e| e.revision <= revision);
        Since::Events(view.ring.range(from..).cloned().collect(), view.revision)
    }

    /// Changes whenever the revision does.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// Whether the last write went well.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        // Nothing panics while it holds the lock for writing.
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stored(csr: CertificateSigningRequest) -> Stored {
    let revision = csr.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default();
    let certificate = csr.status.as_ref().and_then(|s| s.certificate.as_ref());
    let chain = certificate.and_then(|c| Chain::parse(&c.0).ok());
    let issued = chain.map(|chain| (chain.common_name, chain.not_after));
    Stored { csr, revision, issued }
}

/// The one that writes.
struct Writer {
    journal: Journal,
    /// What the view's index will be once the current batch is durable.
    index: Index,
    revision: u64,
    view: Arc<RwLock<View>>,
    sender: watch::Sender<u64>,
    writable: Arc<AtomicBool>,
    limits: Limits,
}

/// One change of the current batch: what was there before, and what it makes of it.
struct Step {
    name: String,
    before: Option<Arc<Stored>>,
    event: Event,
    reply: Option<Reply>,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<(Change, Reply)>) {
        let mut swept = Instant::now();
        loop {
            let mut batch = Vec::new();
            match queue.recv_timeout(SWEEP.saturating_sub(swept.elapsed())) {
                Ok(first) => {
                    batch.push(first);
                    batch.extend(queue.try_iter().take(BATCH - 1));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                let expired = self.expired(Timestamp::now());
                for names in expired.chunks(BATCH) {
                    let steps =
                        names.iter().filter_map(|n| self.apply(Mutation::Delete(n.clone()), None).ok()).collect();
                    self.commit(steps);
                }
            }
            let mut steps = self.make_place(batch.len());
            for (change, reply) in batch {
                let outcome = match change(&self.index) {
                    Ok(mutation) => self.apply(mutation, Some(reply)),
                    Err(error) => Err((error, Some(reply))),
                };
                match outcome {
                    Ok(step) => steps.push(step),
                    // A caller that hung up meanwhile needs no answer.
                    Err((error, reply)) => drop(reply.map(|r| r.send(Err(error)))),
                }
            }
            self.commit(steps);
        }
    }

    fn expired(&self, now: Timestamp) -> Vec<String> {
        self.index.iter().filter(|r| self.index.expired(r, &self.limits, now)).map(|r| r.name().to_owned()).collect()
    }

    /// Where `wanted` more would not find place: removes decided requests, oldest first. What waits is never removed.
    fn make_place(&mut self, wanted: usize) -> Vec<Step> {
        if self.index.len() + wanted <= self.limits.requests {
            return Vec::new();
        }
        let now = Timestamp::now();
        let mut settled: Vec<_> =
            self.index.iter().filter(|r| r.decided() && older(r.touched(), SETTLED, now)).cloned().collect();
        settled.sort_by_key(|r| r.touched());
        settled
            .iter()
            .take(wanted.max(BATCH))
            .filter_map(|r| self.apply(Mutation::Delete(r.name().to_owned()), None).ok())
            .collect()
    }

    /// Takes a change into the index; [`Self::commit`] makes it durable and known, or takes it back.
    fn apply(&mut self, mutation: Mutation, reply: Option<Reply>) -> Result<Step, (ApiError, Option<Reply>)> {
        let revision = self.revision + 1;
        let (name, new, before, event) = match mutation {
            Mutation::Put(mut csr) => {
                csr.metadata.resource_version = Some(revision.to_string());
                let request = Arc::new(stored(*csr));
                let name = request.name().to_owned();
                let before = self.index.get(&name).cloned();
                let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
                (name, Some(Arc::clone(&request)), before, Event { kind, request, revision })
            }
            Mutation::Delete(name) => match self.index.get(&name).cloned() {
                Some(request) => {
                    let mut last = request.csr.clone();
                    last.metadata.resource_version = Some(revision.to_string());
                    let event = Event { kind: Kind::Deleted, request: Arc::new(stored(last)), revision };
                    (name, None, Some(request), event)
                }
                None => return Err((ApiError::NotFound(name), reply)),
            },
        };
        self.revision = revision;
        self.index.set(&name, new);
        Ok(Step { name, before, event, reply })
    }

    fn commit(&mut self, steps: Vec<Step>) {
        if steps.is_empty() {
            return;
        }
        let entries: Vec<Entry> = steps
            .iter()
            .map(|step| match step.event.kind {
                Kind::Added | Kind::Modified => Entry::Put(Box::new(step.event.request.csr.clone())),
                Kind::Deleted => Entry::Delete { name: step.name.clone() },
            })
            .collect();
        let written = self.journal.append(&entries);
        let writable = written.is_ok();
        if self.writable.swap(writable, Ordering::Relaxed) != writable {
            match &written {
                Ok(()) => tracing::info!("requests can be written again"),
                Err(error) => tracing::error!(%error, "requests cannot be written; nothing was changed"),
            }
        }
        match written {
            Ok(()) => self.publish(steps),
            Err(error) => {
                for step in steps.into_iter().rev() {
                    self.index.set(&step.name, step.before);
                    if let Some(reply) = step.reply {
                        drop(reply.send(Err(ApiError::InsufficientStorage(error.to_string()))));
                    }
                }
            }
        }
        if self.journal.wants_compaction() {
            self.compact();
        }
    }

    fn publish(&mut self, steps: Vec<Step>) {
        let mut replies = Vec::with_capacity(steps.len());
        {
            let mut view: RwLockWriteGuard<'_, View> = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for step in steps {
                let new = (step.event.kind != Kind::Deleted).then(|| Arc::clone(&step.event.request));
                view.index.set(&step.name, new);
                replies.push((step.reply, Arc::clone(&step.event.request)));
                view.ring.push_back(step.event);
            }
            while view.ring.len() > RING {
                if let Some(event) = view.ring.pop_front() {
                    view.floor = event.revision;
                }
            }
            view.revision = self.revision;
        }
        self.sender.send_replace(self.revision);
        for (reply, request) in replies {
            if let Some(reply) = reply {
                drop(reply.send(Ok(request)));
            }
        }
    }

    fn compact(&mut self) {
        let puts = self.index.iter().map(|r| Entry::Put(Box::new(r.csr.clone())));
        let entries = std::iter::once(Entry::Revision(self.revision)).chain(puts);
        if let Err(error) = self.journal.compact(entries) {
            tracing::warn!(%error, "the journal could not be written anew; the old one stays in force");
        }
    }
}

/// `status`, made where it is missing.
pub fn status_mut(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::path::PathBuf;

    use k8s_openapi::{
        api::certificates::v1::CertificateSigningRequestCondition, apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("etcd-tls-store-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn csr(name: &str, user: &str) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some(name.to_owned());
        csr.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        csr.spec.username = Some(user.to_owned());
        csr
    }

    fn denied(name: &str, user: &str, age: Duration) -> CertificateSigningRequest {
        let mut csr = csr(name, user);
        let at = Time(Timestamp::now() - jiff::SignedDuration::try_from(age).unwrap());
        csr.metadata.creation_timestamp = Some(at.clone());
        status_mut(&mut csr).conditions = Some(vec![CertificateSigningRequestCondition {
            type_: "Denied".to_owned(),
            last_update_time: Some(at),
            ..Default::default()
        }]);
        csr
    }

    fn names(store: &Store) -> Vec<String> {
        store.with(|index, _| index.iter().map(|r| r.name().to_owned()).collect())
    }

    #[tokio::test]
    async fn one_of_two_requests_of_one_name_wins() {
        let dir = Dir::new("name");
        let store = Store::open(&dir.0, Limits::default()).unwrap();
        let (a, b) = tokio::join!(store.create(csr("x", "a")), store.create(csr("x", "b")));
        assert!(a.is_ok() != b.is_ok());
        assert!(a.and(b).is_err_and(|e| e == ApiError::AlreadyExists("x".to_owned())));
    }

    #[tokio::test]
    async fn a_restart_forgets_nothing_and_repeats_no_revision() {
        let dir = Dir::new("restart");
        let store = Store::open(&dir.0, Limits::default()).unwrap();
        let first = store.create(csr("a", "u")).await.unwrap().revision;
        store.create(csr("b", "u")).await.unwrap();
        store.change(|_| Ok(Mutation::Delete("a".to_owned()))).await.unwrap();
        let last = store.with(|_, revision| revision);
        drop(store);
        // The writer ends with its last handle, a moment later.
        let store = loop {
            match Store::open(&dir.0, Limits::default()) {
                Ok(store) => break store,
                Err(OpenError::InUse(_)) => thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!(names(&store), ["b"]);
        let new = store.create(csr("c", "u")).await.unwrap().revision;
        assert!(first < last && last < new, "{first} {last} {new}");
        assert!(matches!(store.since(last), Since::Gone), "a watch of the old process begins anew");
    }

    #[tokio::test]
    async fn limits_hold_and_what_waits_is_never_removed() {
        let dir = Dir::new("limits");
        let limits = Limits { requests: 4, pending_per_user: 2, ..Limits::default() };
        let store = Store::open(&dir.0, limits).unwrap();
        store.create(csr("a1", "a")).await.unwrap();
        store.create(csr("a2", "a")).await.unwrap();
        let third = store.create(csr("a3", "a")).await.unwrap_err();
        assert!(
            matches!(&third, ApiError::TooManyRequests { message, .. } if message.contains("2 requests")),
            "{third}"
        );
        store.create(csr("b1", "b")).await.unwrap();
        store.create(denied("old", "c", Duration::from_secs(600))).await.unwrap();
        store.create(csr("b2", "b")).await.unwrap();
        assert_eq!(names(&store), ["a1", "a2", "b1", "b2"], "the decided one made place");
        let full = store.create(csr("c1", "c")).await.unwrap_err();
        assert!(matches!(&full, ApiError::TooManyRequests { message, .. } if message.contains("4 requests")), "{full}");
        store.change(|_| Ok(Mutation::Delete("a1".to_owned()))).await.unwrap();
        store.create(csr("a3", "a")).await.unwrap();
    }

    #[tokio::test]
    async fn a_watcher_gets_every_change_or_is_told_to_list_again() {
        let dir = Dir::new("watch");
        let store = Store::open(&dir.0, Limits::default()).unwrap();
        let start = store.with(|_, revision| revision);
        for i in 0..5 {
            store.create(csr(&format!("r{i}"), "u")).await.unwrap();
        }
        store.change(|_| Ok(Mutation::Delete("r0".to_owned()))).await.unwrap();
        let Since::Events(events, end) = store.since(start) else { panic!("gone") };
        assert_eq!(events.len(), 6);
        assert_eq!((events[5].kind, events[5].request.name()), (Kind::Deleted, "r0"));
        assert!(matches!(store.since(end), Since::Events(none, _) if none.is_empty()));
        assert!(matches!(store.since(end + 1), Since::Gone), "a revision of the future");
        assert!(matches!(store.since(0), Since::Gone));
    }

    #[test]
    fn lives_are_counted_from_the_decision() {
        let limits = Limits::default();
        let now = Timestamp::now();
        let expired = |csr| Index::default().expired(&stored(csr), &limits, now);
        assert!(!expired(csr("a", "u")));
        assert!(!expired(denied("a", "u", Duration::from_secs(3500))));
        assert!(expired(denied("a", "u", Duration::from_secs(3601))));
    }
}
