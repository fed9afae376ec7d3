//! The requests in the cluster that are addressed to us, and when each of them goes. Pure.
//!
//! Of a request a few words are kept, from when a list or a watch brings it until it is gone. A request goes
//!
//! * some minutes after it was issued, and soon when a later one of its pod and role is issued: the successor of a killed leader
//!   finds in it what that did not record;
//! * an hour after it was refused, and at once when its requester has left as many refused ones as are kept;
//! * at once when its pod leaves too many open ones, and soon after its pod is gone;
//! * an hour after it was made, if it would be refused and nobody did.
//!
//! A request held by finalizers is deleted once and counted until it is gone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::controller::{
    case::is_ours,
    facts::Csr,
    ids::{Uid, Version},
    refusals::{self, Refusals},
};
use linked::{Age, Link, Linked, role};

mod linked;

/// Open requests of one pod and role that stay; the sidecar has one at a time.
const OPEN_PER_ROLE: usize = 4;
/// Open requests of one pod that stay.
const OPEN_PER_POD: usize = 16;
/// The minimum time to fetch a certificate, however old its request is.
const TO_FETCH: Duration = Duration::from_secs(60);
/// How long an issued request of ours stays that a later one supersedes: until its certificate is recorded, also where the leader is
/// killed.
const SUPERSEDED_STAYS: Duration = TO_FETCH;
/// When to look again at a request that is spared ([`Ledger::spare`]).
const SPARED: Duration = Duration::from_secs(2);
/// When to look again at one whose certificate is in a record that cannot be written.
const UNRECORDED: Duration = Duration::from_secs(10);
/// A delete that met another version is tried again after this, if the watch brings nothing.
const CHANGED: Duration = Duration::from_secs(5);
/// The waits between attempts when the API server fails.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// When requests go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// After they were issued.
    pub(crate) issued: Duration,
    /// After they were refused.
    pub(crate) refused: Duration,
    /// Open ones: how often to look whether their pod is still there.
    pub(crate) open: Duration,
}

/// Why a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sign) enum Why {
    /// Its certificate was fetched long ago.
    Issued,
    /// It was refused long ago.
    Refused,
    /// A later one of its pod and role takes its place.
    Superseded,
    /// Its requester has as many refused ones as are kept.
    Unanswered,
    /// Its pod is gone.
    Orphaned,
}

/// The action on a request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sign) enum Step {
    /// Delete it.
    Delete(Why),
    /// Look whether it is still worth an answer.
    Look,
}

/// A step that is due, for exactly this request as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sign) struct Order {
    pub(in crate::sign) name: Arc<str>,
    pub(in crate::sign) uid: Uid,
    pub(in crate::sign) version: Version,
    pub(in crate::sign) step: Step,
    /// True if it has a certificate of ours.
    pub(in crate::sign) recorded: bool,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sign) enum Ended {
    /// The request is gone, or another one has its name.
    Gone,
    /// The API server took the delete, and the request is still there: finalizers hold it.
    Held,
    /// It stays for now.
    Stays,
    /// It stays until its certificate is recorded.
    Unrecorded,
    /// It is to be deleted.
    Delete(Why),
    /// It is not what was looked at any more.
    Changed,
    /// The API server failed us.
    Failed,
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    Issued,
    Refused,
}

#[derive(Debug)]
struct Entry {
    uid: Uid,
    version: Version,
    pod: Arc<str>,
    age: Age,
    standing: Standing,
    /// True if it is to a signer of ours, whose certificates are recorded.
    ours: bool,
    goes: Option<Why>,
    held: bool,
    busy: bool,
    failures: u32,
    /// The entry in `due` that counts.
    ticket: u64,
    list: u64,
}

impl Entry {
    /// True if it has a certificate of ours.
    fn is_recorded(&self) -> bool {
        self.ours && self.standing == Standing::Issued
    }
}

/// See the module.
#[derive(Debug)]
pub(in crate::sign) struct Ledger {
    times: Times,
    /// In boxes: a tree that grows at its end is half empty.
    entries: BTreeMap<Arc<str>, Box<Entry>>,
    pods: HashMap<Arc<str>, Linked>,
    refusals: Refusals,
    due: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    serial: u64,
    listing: bool,
    list: u64,
    spares: bool,
}

impl Ledger {
    pub(in crate::sign) fn new(times: Times) -> Self {
        Self {
            times,
            entries: BTreeMap::new(),
            pods: HashMap::new(),
            refusals: Refusals::default(),
            due: BinaryHeap::new(),
            serial: 0,
            listing: false,
            list: 0,
            spares: false,
        }
    }

    /// Whether issued requests of ours stay: while the certificates of the leader before are looked for, which did not record all.
    pub(in crate::sign) const fn spare(&mut self, spares: bool) {
        self.spares = spares;
    }

    /// Requests that finalizers hold.
    pub(in crate::sign) fn held(&self) -> usize {
        self.entries.values().filter(|entry| entry.held).count()
    }

    /// Requests that are known.
    pub(in crate::sign) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A list begins.
    pub(in crate::sign) fn list_begins(&mut self) {
        self.listing = true;
        self.list += 1;
    }

    /// A list is complete: requests that it did not contain are gone.
    pub(in crate::sign) fn list_ends(&mut self) {
        self.listing = false;
        let gone: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.list != self.list)
            .map(|(name, _)| Arc::clone(name))
            .collect();
        gone.iter().for_each(|name| self.forget(name));
    }

    /// The pending deletion was aborted.
    pub(in crate::sign) fn release(&mut self, now: Instant) {
        let busy: Vec<_> = self.entries.iter().filter(|(_, e)| e.busy).map(|(name, _)| Arc::clone(name)).collect();
        for name in busy {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.busy = false;
            }
            self.wait(&name, now);
        }
    }

    /// Takes note of a request of ours that passed by.
    pub(in crate::sign) fn observe(&mut self, csr: &Csr, wall: SystemTime, now: Instant) {
        if self.entries.get(csr.name()).is_some_and(|entry| entry.uid != *csr.uid()) {
            self.forget(csr.name());
        }
        let known = self.entries.get(csr.name());
        if let Some(entry) = known
            && entry.version == *csr.resource_version()
        {
            let list = self.list;
            if let Some(entry) = self.entries.get_mut(csr.name()) {
                entry.list = list;
            }
            return;
        }
        let (before, age, goes) = match known {
            Some(entry) => (Some(entry.standing), entry.age, entry.goes),
            None => (None, (csr.created().unwrap_or(wall), self.next_serial()), None),
        };
        self.unlink(csr.name());
        let name = self.entries.get_key_value(csr.name()).map_or_else(|| Arc::from(csr.name()), |(n, _)| Arc::clone(n));
        let standing = standing(csr);
        let pod: Arc<str> = self
            .pods
            .get_key_value(&*refusals::pod(csr))
            .map_or_else(|| Arc::from(refusals::pod(csr)), |(pod, _)| Arc::clone(pod));
        let (busy, held_before) = self.entries.get(csr.name()).map_or((false, false), |e| (e.busy, e.held));
        let held = csr.metadata.deletion_timestamp.is_some();
        let entry = Entry {
            uid: csr.uid().into(),
            version: csr.resource_version().into(),
            pod: Arc::clone(&pod),
            age,
            standing,
            ours: is_ours(&csr.spec.signer_name),
            goes,
            held,
            busy,
            failures: 0,
            ticket: 0,
            list: self.list,
        };
        if held && !held_before {
            tracing::warn!(
                csr = csr.name(),
                finalizers = ?csr.metadata.finalizers,
                "a deleted request is held by finalizers: remove them, or have their owner do so"
            );
        }
        self.entries.insert(Arc::clone(&name), Box::new(entry));
        if held {
            return;
        }
        if let Some(why) = goes {
            return self.wait(&name, now + self.stays(&name, why));
        }
        let since = decided(csr).unwrap_or(age.0);
        let past = wall.duration_since(since).unwrap_or_default();
        match standing {
            Standing::Issued => {
                let left = if before.is_some_and(|before| before != Standing::Issued) {
                    self.times.issued
                } else {
                    self.times.issued.saturating_sub(past).max(TO_FETCH.min(self.times.issued))
                };
                self.wait(&name, now + left);
                self.link_issued(&pod, &name, now);
            }
            Standing::Refused => {
                if self.refusals.insert(csr) {
                    self.wait(&name, now + self.times.refused.saturating_sub(past));
                } else {
                    self.goes(&name, Why::Unanswered, now);
                }
                if self.refusals.full(csr) {
                    self.look_at_open_ones(&pod, now);
                }
            }
            Standing::Open => {
                let first = if self.refusals.full(csr) { now } else { now + self.times.open };
                self.wait(&name, first);
                self.link_open(&pod, &name, now);
            }
        }
    }

    /// A request is gone.
    pub(in crate::sign) fn gone(&mut self, csr: &Csr) {
        self.refusals.remove(csr);
        if self.entries.get(csr.name()).is_some_and(|entry| entry.uid == *csr.uid()) {
            self.forget(csr.name());
        }
    }

    /// True if an open request that would be refused goes without an answer: the requester has as many refused ones as are
    /// kept, or a refusal at its creation would have gone by `now`. `approve` does not answer what it once left to us.
    pub(in crate::sign) fn goes_unanswered(&self, csr: &Csr, now: SystemTime) -> bool {
        let overdue = |created: SystemTime| now.duration_since(created).is_ok_and(|age| age >= self.times.refused);
        self.refusals.full(csr) || csr.created().is_some_and(overdue)
    }

    /// When the next step is due.
    pub(in crate::sign) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next step that is due.
    pub(in crate::sign) fn take(&mut self, now: Instant) -> Option<Order> {
        while self.due.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Reverse((_, ticket, name)) = self.due.pop()?;
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            if entry.ticket != ticket || entry.busy || entry.held {
                continue;
            }
            if self.spares && entry.is_recorded() {
                self.wait(&name, now + SPARED);
                continue;
            }
            entry.busy = true;
            let step = match (entry.goes, entry.standing) {
                (Some(why), _) => Step::Delete(why),
                (None, Standing::Issued) => Step::Delete(Why::Issued),
                (None, Standing::Refused) => Step::Delete(Why::Refused),
                (None, Standing::Open) => Step::Look,
            };
            let recorded = entry.is_recorded();
            return Some(Order { uid: entry.uid.clone(), version: entry.version.clone(), name, step, recorded });
        }
        None
    }

    /// Takes note of how a step went.
    pub(in crate::sign) fn finish(&mut self, order: &Order, ended: Ended, now: Instant) {
        let Some(entry) = self.entries.get_mut(&order.name) else { return };
        if entry.uid != order.uid {
            return;
        }
        entry.busy = false;
        let newer = entry.version != order.version;
        let at = match ended {
            Ended::Gone => return self.forget(&order.name),
            // The watch says so, too, and by what.
            Ended::Held => return,
            Ended::Delete(why) => return self.goes(&order.name, why, now),
            Ended::Changed if newer => now,
            Ended::Changed => now + CHANGED,
            Ended::Stays => now + self.times.open,
            Ended::Unrecorded => now + UNRECORDED,
            Ended::Failed => {
                let wait = RETRY.0.saturating_mul(1 << entry.failures.min(10)).min(RETRY.1);
                entry.failures += 1;
                now + wait
            }
        };
        self.wait(&order.name, at);
    }

    fn next_serial(&mut self) -> u64 {
        if self.listing {
            return 0;
        }
        self.serial += 1;
        self.serial
    }

    fn wait(&mut self, name: &str, at: Instant) {
        let Some((name, _)) = self.entries.get_key_value(name) else { return };
        let name = Arc::clone(name);
        self.serial += 1;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.ticket = self.serial;
        }
        self.due.push(Reverse((at, self.serial, name)));
        // Tickets that count no more are dropped when they are most of them.
        if self.due.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.due.retain(|Reverse((_, ticket, name))| entries.get(name).is_some_and(|e| e.ticket == *ticket));
        }
    }

    fn goes(&mut self, name: &str, why: Why, now: Instant) {
        self.unlink(name);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.goes = Some(why);
            self.wait(name, now + self.stays(name, why));
        }
    }

    /// How long a request stays that goes.
    fn stays(&self, name: &str, why: Why) -> Duration {
        let recorded = self.entries.get(name).is_some_and(|entry| entry.is_recorded());
        if why == Why::Superseded && recorded { SUPERSEDED_STAYS.min(self.times.issued) } else { Duration::ZERO }
    }

    fn link_issued(&mut self, pod: &Arc<str>, name: &Arc<str>, now: Instant) {
        let Some(entry) = self.entries.get(name) else { return };
        let of_pod = self.pods.entry(Arc::clone(pod)).or_default();
        of_pod.add(Link { age: entry.age, name: Arc::clone(name), issued: true });
        let Some(latest) = of_pod.issued(role(name)).map(|link| link.age).next_back() else { return };
        let all = of_pod.issued(role(name)).chain(of_pod.open(Some(role(name))));
        let before: Vec<_> = all.filter(|link| link.age < latest).map(|link| Arc::clone(&link.name)).collect();
        for name in before {
            self.goes(&name, Why::Superseded, now);
        }
    }

    fn link_open(&mut self, pod: &Arc<str>, name: &Arc<str>, now: Instant) {
        let Some(entry) = self.entries.get(name) else { return };
        let age = entry.age;
        let of_pod = self.pods.entry(Arc::clone(pod)).or_default();
        if of_pod.issued(role(name)).any(|link| link.age > age) {
            return self.goes(name, Why::Superseded, now);
        }
        of_pod.add(Link { age, name: Arc::clone(name), issued: false });
        let too_many = if of_pod.open(Some(role(name))).count() > OPEN_PER_ROLE {
            of_pod.open(Some(role(name))).next()
        } else if of_pod.open(None).count() > OPEN_PER_POD {
            of_pod.open(None).next()
        } else {
            None
        };
        if let Some(oldest) = too_many.map(|link| Arc::clone(&link.name)) {
            self.goes(&oldest, Why::Superseded, now);
        }
    }

    fn look_at_open_ones(&mut self, pod: &Arc<str>, now: Instant) {
        let open: Vec<_> =
            self.pods.get(pod).into_iter().flat_map(|pod| pod.open(None)).map(|link| Arc::clone(&link.name)).collect();
        for name in open {
            self.wait(&name, now);
        }
    }

    /// Takes a request out of its pod's.
    fn unlink(&mut self, name: &str) {
        let Some(entry) = self.entries.get(name) else { return };
        let Some(pod) = self.pods.get_mut(&entry.pod) else { return };
        if pod.remove(name) {
            self.pods.remove(&entry.pod);
        }
    }

    fn forget(&mut self, name: &str) {
        self.unlink(name);
        if let Some(entry) = self.entries.remove(name)
            && entry.standing == Standing::Refused
        {
            self.refusals.forget(&entry.pod, name);
        }
    }
}

fn standing(csr: &Csr) -> Standing {
    // The API server takes a certificate on a request that was denied. A refused request stays refused.
    if csr.denied() || csr.failed() {
        Standing::Refused
    } else if csr.status.has_certificate {
        Standing::Issued
    } else {
        Standing::Open
    }
}

/// When it was decided last, as far as the API server says so.
fn decided(csr: &Csr) -> Option<SystemTime> {
    csr.status.conditions.iter().filter_map(|condition| condition.last_update_time.as_ref()).map(|t| t.0.into()).max()
}

#[cfg(test)]
mod tests;
