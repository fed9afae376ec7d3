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
    draft::Draft,
    index::{Index, Limits},
    journal::{Journal, Line, put_line},
    ledger,
    stored::{Issuance, StoredRequest, older},
};
use crate::standalone::error::ApiError;

/// Events kept for watchers that were away for a moment.
const RING: usize = 2_000;
/// Changes written together at most.
pub(super) const BATCH: usize = 512;
/// Entries of one batch when the journal is rewritten: more would take memory that is not given back.
const CHUNK: usize = 64;
/// How often expired requests are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// How long a decided request stays even where place is wanted: its requester is about to read it.
const SETTLED: Duration = Duration::from_secs(60);
/// The one that writes.
pub(super) struct Writer {
    pub(super) journal: Journal,
    /// The view's next index among it, valid once the current batch is durable.
    pub(super) draft: Draft,
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
    issuance: Option<Issuance>,
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
                self.draft.index_mut().holders_mut().sweep(SystemTime::now());
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
                let outcome = match change(&self.draft) {
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
        self.draft
            .index()
            .iter()
            .filter(|r| Index::expired(r, &self.limits, now))
            .map(|r| r.name().to_owned())
            .collect()
    }

    /// If there is no room for `wanted` more: removes decided requests, oldest first; those of a user whose own quota is full,
    /// and of all users if the store is full. Pending requests are never removed, and no name becomes free by it.
    fn make_place(&mut self, wanted: usize) -> Vec<Step> {
        let full_users = self.draft.full_users(&self.limits, wanted.min(self.limits.per_user / 10));
        let full = self.draft.index().len() + wanted > self.limits.requests;
        if !full && full_users.is_empty() {
            return Vec::new();
        }
        let now = Timestamp::now();
        let mut settled: Vec<_> =
            self.draft.index().iter().filter(|r| r.decided() && older(r.touched(), SETTLED, now)).cloned().collect();
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
            let count = self.draft.count_of(&user).saturating_sub(kept);
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
        let (name, new, before, issuance, event) = match mutation {
            Mutation::Put(mut new) => {
                new.csr.metadata.resource_version = Some(revision.to_string());
                let issuance = new.issuance.take();
                let request = Arc::new(StoredRequest::issued(&new.csr, issuance.as_ref()));
                let name = request.name().to_owned();
                let before = self.draft.index().get(&name).cloned();
                let recorded = issuance.as_ref().map(|issuance| &issuance.recorded);
                if let Some(new) =
                    recorded.filter(|_| before.as_ref().and_then(|b| b.certificate()) != request.certificate())
                    && let Err(error) = self.draft.ledger().admit(&name, new, self.limits.certificates)
                {
                    return Err((error, reply));
                }
                let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
                (name, Some(Arc::clone(&request)), before, issuance, Event { kind, request, revision })
            }
            Mutation::Delete(name) => match self.draft.index().get(&name).cloned() {
                Some(request) => {
                    let mut last = request.csr();
                    last.metadata.resource_version = Some(revision.to_string());
                    let event = Event { kind: Kind::Deleted, request: Arc::new(StoredRequest::new(&last)), revision };
                    (name, None, Some(request), None, event)
                }
                None => return Err((ApiError::NotFound(name), reply)),
            },
        };
        self.revision = revision;
        self.draft.set(&name, new, issuance.as_ref(), self.limits.certificates.room, SystemTime::now());
        Ok(Step { name, before, issuance, event, reply })
    }

    fn commit(&mut self, steps: Vec<Step>) {
        if steps.is_empty() {
            return;
        }
        let mut lines = Vec::with_capacity(steps.len() * 4096);
        for step in &steps {
            match step.event.kind {
                Kind::Added | Kind::Modified => {
                    put_line(&step.event.request.json(), &mut lines);
                    let recorded = step.issuance.as_ref().map(|issuance| &issuance.recorded);
                    if let Some(entry) = recorded.and_then(|recorded| self.draft.ledger().entry_of(recorded)) {
                        Line::Ledger(entry).add_to(&mut lines);
                    }
                }
                Kind::Deleted => Line::Delete { name: &step.name }.add_to(&mut lines),
            }
        }
        match self.write(&lines) {
            Ok(()) => {
                self.draft.ledger_mut().keep();
                self.publish(steps);
            }
            Err(error) => {
                // First the record: to whom a request that waits is charged is in it.
                self.draft.ledger_mut().take_back();
                for step in steps.into_iter().rev() {
                    self.draft.set(&step.name, step.before, None, self.limits.certificates.room, SystemTime::now());
                    if let Some(reply) = step.reply {
                        drop(reply.send(Err(ApiError::InsufficientStorage(error.to_string()))));
                    }
                }
                // Certificates that nobody got hold no name.
                let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
                *self.draft.index_mut().holders_mut() = view.index.holders().clone();
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
        let new = revise(self.draft.ledger())?;
        if new.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (domain, revoked) in &new {
            Line::Ledger(ledger::entry(*domain, revoked)?).add_to(&mut lines);
        }
        self.write(&lines).map_err(|error| ApiError::InsufficientStorage(error.to_string()))?;
        {
            let mut view: RwLockWriteGuard<'_, View> = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for (domain, revoked) in new {
                let revoked = Arc::new(revoked);
                view.index.revocations_mut().revise(domain, Arc::clone(&revoked));
                self.draft.index_mut().revocations_mut().revise(domain, Arc::clone(&revoked));
                self.draft.ledger_mut().revise(domain, revoked);
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
                let holding = step.issuance.as_ref().map(|issuance| &issuance.holding);
                view.index.set(&step.name, new, holding, SystemTime::now());
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
        Line::Revision(self.revision).add_to(&mut head);
        let requests: Vec<_> = self.draft.index().iter().cloned().collect();
        let puts = requests.chunks(CHUNK).map(|chunk| {
            let mut lines = Vec::new();
            chunk.iter().for_each(|request| put_line(&request.json(), &mut lines));
            lines
        });
        // After the requests: the record of holds decides.
        let holds = self.draft.index().holders().holdings().into_iter().map(Line::Hold);
        let certificates = match self.draft.ledger().entries() {
            Ok(entries) => entries.map(Line::Ledger),
            Err(error) => {
                tracing::error!(%error, "the journal could not be written anew; the old one stays in force");
                return;
            }
        };
        let mut records = std::iter::once(Line::Holders).chain(holds).chain(certificates);
        let records = std::iter::from_fn(|| {
            let mut lines = Vec::new();
            records.by_ref().take(CHUNK).for_each(|line| line.add_to(&mut lines));
            (!lines.is_empty()).then_some(lines)
        });
        let entries = std::iter::once(head).chain(puts).chain(records);
        if let Err(error) = self.journal.compact(entries) {
            tracing::warn!(%error, "the journal could not be written anew; it is tried again when it has grown");
        }
    }
}
