//! The writer thread: applies changes in order, makes a batch of them durable, then publishes it.

use std::{
    io,
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Event, Kind, Mutation, Reply, Revise, View, Work,
    index::{Index, Limits},
    journal::{Entry, Journal, put_line},
    ledger,
    stored::{StoredRequest, older},
};
use crate::standalone::error::ApiError;

/// Events kept for watchers that were away for a moment.
const RING: usize = 2_000;
/// Changes written together at most.
pub(super) const BATCH: usize = 512;
/// Requests of one batch when the journal is rewritten.
const CHUNK: usize = 256;
/// How often expired requests are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// How long a decided request stays even where place is wanted: its requester is about to read it.
const SETTLED: Duration = Duration::from_secs(60);
/// The one that writes.
pub(super) struct Writer {
    pub(super) journal: Journal,
    /// The view's next index, valid once the current batch is durable.
    pub(super) index: Index,
    pub(super) revision: u64,
    pub(super) view: Arc<RwLock<View>>,
    pub(super) sender: watch::Sender<u64>,
    /// Counts the changes of the revocations.
    pub(super) revised: watch::Sender<u64>,
    pub(super) writable: Arc<AtomicBool>,
    pub(super) limits: Limits,
}

/// One change of the current batch: the old value and the new one.
struct Step {
    name: String,
    before: Option<Arc<StoredRequest>>,
    event: Event,
    reply: Option<Reply>,
}

impl Writer {
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Work>) {
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
                self.index.holders_mut().sweep(SystemTime::now());
                self.view.write().unwrap_or_else(PoisonError::into_inner).index.holders_mut().sweep(SystemTime::now());
                let expired = self.expired(Timestamp::now());
                for names in expired.chunks(BATCH) {
                    let steps =
                        names.iter().filter_map(|n| self.apply(Mutation::Delete(n.clone()), None).ok()).collect();
                    self.commit(steps);
                }
            }
            let mut steps = self.make_place(batch.len());
            for work in batch {
                let (change, reply) = match work {
                    Work::Request(change, reply) => (change, reply),
                    Work::Revocations(revise, reply) => {
                        // Of what was issued before.
                        self.commit(std::mem::take(&mut steps));
                        drop(reply.send(self.revise(revise)));
                        continue;
                    }
                };
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
        self.index.iter().filter(|r| Index::expired(r, &self.limits, now)).map(|r| r.name().to_owned()).collect()
    }

    /// If there is no room for `wanted` more: removes decided requests, oldest first; those of a user whose own quota is full,
    /// and of all users if the store is full. Pending requests are never removed, and no name becomes free by it.
    fn make_place(&mut self, wanted: usize) -> Vec<Step> {
        let full_users = self.index.full_users(&self.limits, wanted.min(self.limits.per_user / 10));
        let full = self.index.len() + wanted > self.limits.requests;
        if !full && full_users.is_empty() {
            return Vec::new();
        }
        let now = Timestamp::now();
        let mut settled: Vec<_> =
            self.index.iter().filter(|r| r.decided() && older(r.touched(), SETTLED, now)).cloned().collect();
        settled.sort_by_key(|r| r.touched());
        let mut steps = Vec::new();
        let mut remove = |this: &mut Self, request: &StoredRequest| {
            if let Ok(step) = this.apply(Mutation::Delete(request.name().to_owned()), None) {
                steps.push(step);
            }
        };
        for user in full_users {
            // Some more than are wanted now, so that not each change looks at all requests.
            let kept = self.limits.per_user - self.limits.per_user / 5;
            let count = self.index.count_of(&user).saturating_sub(kept);
            for request in settled.iter().filter(|r| r.owner() == user).take(count) {
                remove(self, request);
            }
        }
        if full {
            for request in settled.iter().take(wanted.max(BATCH)) {
                remove(self, request);
            }
        }
        steps
    }

    /// Takes a change into the index; [`Self::commit`] makes it durable and known, or takes it back.
    fn apply(&mut self, mutation: Mutation, reply: Option<Reply>) -> Result<Step, (ApiError, Option<Reply>)> {
        let revision = self.revision + 1;
        let (name, new, before, event) = match mutation {
            Mutation::Put(mut csr) => {
                csr.metadata.resource_version = Some(revision.to_string());
                let request = Arc::new(StoredRequest::new(&csr));
                let name = request.name().to_owned();
                let before = self.index.get(&name).cloned();
                if let Some(new) =
                    request.recorded().filter(|new| before.as_ref().and_then(|b| b.recorded()) != Some(*new))
                    && let Err(error) = self.index.ledger().admit(&name, new, self.limits.certificates)
                {
                    return Err((error, reply));
                }
                let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
                (name, Some(Arc::clone(&request)), before, Event { kind, request, revision })
            }
            Mutation::Delete(name) => match self.index.get(&name).cloned() {
                Some(request) => {
                    let mut last = request.csr();
                    last.metadata.resource_version = Some(revision.to_string());
                    let event = Event { kind: Kind::Deleted, request: Arc::new(StoredRequest::new(&last)), revision };
                    (name, None, Some(request), event)
                }
                None => return Err((ApiError::NotFound(name), reply)),
            },
        };
        self.revision = revision;
        self.index.set(&name, new, self.limits.certificates.room, SystemTime::now());
        Ok(Step { name, before, event, reply })
    }

    fn commit(&mut self, steps: Vec<Step>) {
        if steps.is_empty() {
            return;
        }
        let mut lines = Vec::with_capacity(steps.len() * 4096);
        for step in &steps {
            match step.event.kind {
                Kind::Added | Kind::Modified => {
                    put_line(step.event.request.json(), &mut lines);
                    let recorded = step.event.request.recorded();
                    if let Some(entry) = recorded.and_then(|recorded| self.index.ledger().entry_of(recorded)) {
                        Entry::Ledger(entry).line(&mut lines);
                    }
                }
                Kind::Deleted => Entry::Delete { name: step.name.clone() }.line(&mut lines),
            }
        }
        match self.write(&lines) {
            Ok(()) => self.publish(steps),
            Err(error) => {
                for step in steps.into_iter().rev() {
                    self.index.set(&step.name, step.before, self.limits.certificates.room, SystemTime::now());
                    if let Some(reply) = step.reply {
                        drop(reply.send(Err(ApiError::InsufficientStorage(error.to_string()))));
                    }
                }
                // Certificates that nobody got hold no name.
                let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
                *self.index.holders_mut() = view.index.holders().clone();
                *self.index.ledger_mut() = view.index.ledger().clone();
            }
        }
        if self.journal.wants_compaction() {
            self.compact();
        }
    }

    /// Makes lines durable, and says where that ends or begins to fail.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.journal.append(lines);
        let writable = written.is_ok();
        if self.writable.swap(writable, Ordering::Relaxed) != writable {
            match &written {
                Ok(()) => tracing::info!("requests can be written again"),
                Err(error) => tracing::error!(%error, "requests cannot be written; nothing was changed"),
            }
        }
        written
    }

    /// Makes new revocations durable, then known. Nobody sees a list whose record could be lost.
    fn revise(&mut self, revise: Revise) -> Result<(), ApiError> {
        let new = revise(self.index.ledger())?;
        if new.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (domain, revoked) in &new {
            Entry::Ledger(ledger::entry(*domain, revoked)?).line(&mut lines);
        }
        self.write(&lines).map_err(|error| ApiError::InsufficientStorage(error.to_string()))?;
        {
            let mut view: RwLockWriteGuard<'_, View> = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for (domain, revoked) in new {
                let revoked = Arc::new(revoked);
                view.index.ledger_mut().revise(domain, Arc::clone(&revoked));
                self.index.ledger_mut().revise(domain, revoked);
            }
        }
        self.revised.send_modify(|count| *count += 1);
        if self.journal.wants_compaction() {
            self.compact();
        }
        Ok(())
    }

    fn publish(&mut self, steps: Vec<Step>) {
        let mut replies = Vec::with_capacity(steps.len());
        {
            let mut view: RwLockWriteGuard<'_, View> = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for step in steps {
                let new = (step.event.kind != Kind::Deleted).then(|| Arc::clone(&step.event.request));
                view.index.set(&step.name, new, self.limits.certificates.room, SystemTime::now());
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
        let mut head = Vec::new();
        Entry::Revision(self.revision).line(&mut head);
        let requests: Vec<_> = self.index.iter().cloned().collect();
        let puts = requests.chunks(CHUNK).map(|chunk| {
            let mut lines = Vec::new();
            chunk.iter().for_each(|request| put_line(request.json(), &mut lines));
            lines
        });
        // After the requests: the record of holds decides.
        let mut holds = Vec::new();
        Entry::Holders.line(&mut holds);
        self.index.holders().holdings().into_iter().for_each(|holding| Entry::Hold(holding).line(&mut holds));
        match self.index.ledger().entries() {
            Ok(entries) => entries.into_iter().for_each(|entry| Entry::Ledger(entry).line(&mut holds)),
            Err(error) => {
                tracing::error!(%error, "the journal could not be written anew; the old one stays in force");
                return;
            }
        }
        let entries = std::iter::once(head).chain(puts).chain(std::iter::once(holds));
        if let Err(error) = self.journal.compact(entries) {
            tracing::warn!(%error, "the journal could not be written anew; the old one stays in force");
        }
    }
}
