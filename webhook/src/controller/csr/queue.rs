//! The queue of CSRs that need something: fair between requesters, bounded for each of them, light when long.
//!
//! All service accounts of a namespace are one requester, since a namespace can have any number of them. Among themselves they take
//! turns.

mod ready;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::identity::SERVICE_ACCOUNT_PREFIX;
use tokio::time::Instant;

use super::Handled;
use crate::controller::facts::Csr;
use ready::Ready;

/// CSRs of one requester in the queue; more are found again by a list when there is room.
const PER_REQUESTER: usize = 10_000;
/// CSRs whose content is kept; of the others the name is, and the content is read when their turn comes.
const MAX_CONTENTS: usize = 512;
/// Bytes of a request whose content is kept: all that admission policy lets through, and a bit.
const MAX_CONTENT: usize = 6 * 1024;
/// Requests of one pod that one turn of its requester takes: a pod has one for each role. They are judged by one read of it.
const TOGETHER: u8 = 4;
/// Jobs that one requester may have under way. More of them gain little, and the API server works on all of them at once: where it
/// has few processors, a call for somebody else takes as much longer.
const AT_ONCE: usize = 4;
/// A CSR that waits for longer is kept by its name.
const MAX_WAIT_WITH_CONTENT: Duration = Duration::from_secs(5);

/// A CSR that is kept. It counts against [`MAX_CONTENTS`] until its last holder drops it.
#[derive(Debug)]
pub(super) struct Kept {
    csr: Csr,
    _place: Arc<()>,
}

impl Deref for Kept {
    type Target = Csr;

    fn deref(&self) -> &Csr {
        &self.csr
    }
}

/// A CSR whose turn it is.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: Arc<str>,
    /// `None`: to be read first.
    pub(super) csr: Option<Arc<Kept>>,
}

/// See the module. A requester is in `turns` exactly once while its line has something ready, and else not.
#[derive(Debug)]
pub(super) struct Queue {
    workers: usize,
    in_flight: usize,
    entries: HashMap<Arc<str>, Entry>,
    lines: HashMap<Arc<str>, Line>,
    turns: VecDeque<Arc<str>>,
    due: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    serial: u64,
    places: Arc<()>,
    overflowed: bool,
}

#[derive(Debug)]
struct Entry {
    /// Its requester; see [`requester`].
    user: Arc<str>,
    /// The pod's uid.
    pod: Option<Box<str>>,
    csr: Option<Arc<Kept>>,
    state: State,
    attempts: u32,
    /// When it came into the queue.
    since: Instant,
}

#[derive(Debug)]
enum State {
    Ready,
    /// Until its serial comes up in `due`.
    Waiting(u64),
    /// With what passed by in the meantime.
    InFlight(Option<Next>),
}

/// A pending CSR, with its content if there is room for it.
#[derive(Debug)]
struct Next(Option<Arc<Kept>>);

/// One requester's.
#[derive(Debug, Default)]
struct Line {
    /// Names; one that is not [`State::Ready`] any more is passed over.
    ready: Ready,
    entries: usize,
    in_flight: usize,
    overflowed: bool,
    /// Others of the pod before, taken in this turn.
    together: u8,
}

impl Line {
    /// Puts the next one of the pod of `taken` in front, if the turn may go on with it.
    fn promote(&mut self, taken: &Entry, entries: &HashMap<Arc<str>, Entry>) -> bool {
        let of_pod = |name: &Arc<str>| entries.get(name).is_some_and(|e| e.pod == taken.pod && e.is_ready());
        if self.together + 1 < TOGETHER && taken.pod.is_some() && self.ready.promote(&taken.user, of_pod) {
            self.together += 1;
            return true;
        }
        self.together = 0;
        false
    }
}

impl Entry {
    const fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }
}

impl Queue {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            workers: workers.max(1),
            in_flight: 0,
            entries: HashMap::new(),
            lines: HashMap::new(),
            turns: VecDeque::new(),
            due: BinaryHeap::new(),
            serial: 0,
            places: Arc::new(()),
            overflowed: false,
        }
    }

    /// Entries that are not being worked on.
    pub(super) fn waiting(&self) -> usize {
        self.entries.len() - self.in_flight
    }

    /// Takes note of a CSR that passed by and needs work.
    pub(super) fn offer(&mut self, csr: &Csr) {
        let (next, key) = (Next(self.keep(csr)), csr.key());
        match self.entries.get_mut(&*key) {
            None => {
                if self.insert(csr) {
                    self.schedule(&key, next);
                }
            }
            Some(Entry { state: State::InFlight(slot), .. }) => *slot = Some(next),
            Some(Entry { state: State::Ready, csr, .. }) => *csr = next.0,
            Some(Entry { state: State::Waiting(_), .. }) => self.schedule(&key, next),
        }
    }

    /// Forgets a CSR that is gone or needs nothing any more.
    pub(super) fn remove(&mut self, name: &str) {
        match self.entries.get_mut(name).map(|e| &mut e.state) {
            Some(State::InFlight(slot)) => *slot = None,
            Some(State::Ready | State::Waiting(_)) => self.drop_entry(name),
            None => {}
        }
    }

    /// The next one to work on, if there is one and a worker is free.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Job> {
        while self.due.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            if let Some(Reverse((_, serial, name))) = self.due.pop()
                && self.entries.get(&name).is_some_and(|e| matches!(e.state, State::Waiting(s) if s == serial))
            {
                self.make_ready(&name);
            }
        }
        let share = self.share();
        let mut passed_over = 0;
        while self.in_flight < self.workers && passed_over < self.turns.len() {
            let requester = self.turns.pop_front()?;
            let line = self.lines.get_mut(&requester)?;
            if line.in_flight >= share {
                self.turns.push_back(requester);
                passed_over += 1;
                continue;
            }
            let name = line.ready.pop()?;
            if self.entries.get(&name).is_some_and(|taken| line.promote(taken, &self.entries)) {
                self.turns.push_front(Arc::clone(&requester));
            } else if !line.ready.is_empty() {
                self.turns.push_back(Arc::clone(&requester));
            }
            match self.entries.get_mut(&name) {
                Some(entry) if entry.is_ready() => {
                    line.in_flight += 1;
                    self.in_flight += 1;
                    entry.state = State::InFlight(None);
                    return Some(Job { csr: entry.csr.clone(), name });
                }
                _ => self.tidy(&requester),
            }
        }
        None
    }

    /// Takes note of how a job went. Returns the time since it came into the queue, if nothing is left to do for it.
    pub(super) fn finish(&mut self, name: &str, outcome: Handled, now: Instant) -> Option<Duration> {
        let entry = self.entries.get_mut(name)?;
        let State::InFlight(next) = &mut entry.state else { return None };
        let next = next.take();
        self.in_flight -= 1;
        if let Some(line) = self.lines.get_mut(requester(&entry.user)) {
            line.in_flight -= 1;
        }
        let attempts = entry.attempts;
        entry.attempts += 1;
        let (first, cap) = match (outcome, next) {
            // The pending version is newer than the one that was handled.
            (Handled::Done | Handled::Stale, Some(next)) => {
                self.schedule(name, next);
                return None;
            }
            (Handled::Done, None) => {
                let taken = now.saturating_duration_since(entry.since);
                self.drop_entry(name);
                return Some(taken);
            }
            (Handled::Stale, None) => {
                entry.csr = None;
                (Duration::from_millis(10), Duration::from_secs(30))
            }
            (Handled::NotYet | Handled::Failed, next) => {
                if let Some(Next(newer)) = next {
                    entry.csr = newer;
                }
                if outcome == Handled::NotYet {
                    (Duration::from_millis(25), Duration::from_secs(60))
                } else {
                    (Duration::from_millis(200), Duration::from_secs(30))
                }
            }
        };
        let wait = backoff(name, attempts, first, cap);
        if wait > MAX_WAIT_WITH_CONTENT {
            entry.csr = None;
        }
        self.wait(name, now + wait);
        None
    }

    /// When the next waiting one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // With every worker busy, the end of a job is what there is to wait for.
        if self.in_flight >= self.workers {
            return None;
        }
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    /// True if something did not fit, and fits now.
    pub(super) fn has_room_again(&self) -> bool {
        self.overflowed && self.lines.values().any(|line| line.overflowed && line.entries <= PER_REQUESTER / 2)
    }

    /// A list is about to bring again what did not fit.
    pub(super) fn forget_overflow(&mut self) {
        self.overflowed = false;
        self.lines.values_mut().for_each(|line| line.overflowed = false);
        self.lines.retain(|_, line| line.entries > 0 || !line.ready.is_empty());
    }

    /// Jobs that one requester may have under way: three quarters at most, so that there is always a worker for somebody else.
    fn share(&self) -> usize {
        (self.workers * 3 / 4).clamp(1, AT_ONCE)
    }

    /// Content, if there is room for it.
    fn keep(&self, csr: &Csr) -> Option<Arc<Kept>> {
        let fits = Arc::strong_count(&self.places) <= MAX_CONTENTS && csr.spec.request.0.len() <= MAX_CONTENT;
        fits.then(|| Arc::new(Kept { csr: csr.clone(), _place: Arc::clone(&self.places) }))
    }

    /// Makes an entry that is yet to be scheduled; not if its requester has too many.
    fn insert(&mut self, csr: &Csr) -> bool {
        let requester = known(&self.lines, &csr.spec.username);
        let line = self.lines.entry(requester).or_default();
        if line.entries >= PER_REQUESTER {
            line.overflowed = true;
            self.overflowed = true;
            return false;
        }
        line.entries += 1;
        let user = line.ready.shared(&csr.spec.username);
        let pod = csr.pod_uid().map(Box::from);
        self.entries.insert(
            Arc::from(&*csr.key()),
            Entry { user, pod, csr: None, state: State::InFlight(None), attempts: 0, since: Instant::now() },
        );
        true
    }

    fn schedule(&mut self, name: &str, Next(csr): Next) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.csr = csr;
        }
        self.make_ready(name);
    }

    fn make_ready(&mut self, name: &str) {
        let Some((name, _)) = self.entries.get_key_value(name) else { return };
        let name = Arc::clone(name);
        let Some(entry) = self.entries.get_mut(&name) else { return };
        entry.state = State::Ready;
        let requester = known(&self.lines, &entry.user);
        let line = self.lines.entry(Arc::clone(&requester)).or_default();
        if line.ready.is_empty() {
            self.turns.push_back(requester);
        }
        line.ready.push(&entry.user, name);
    }

    fn wait(&mut self, name: &str, until: Instant) {
        let Some((name, _)) = self.entries.get_key_value(name) else { return };
        let name = Arc::clone(name);
        self.serial += 1;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.state = State::Waiting(self.serial);
        }
        self.due.push(Reverse((until, self.serial, name)));
    }

    fn drop_entry(&mut self, name: &str) {
        let Some(entry) = self.entries.remove(name) else { return };
        let requester = requester(&entry.user);
        if let Some(line) = self.lines.get_mut(requester) {
            line.entries -= 1;
        }
        self.tidy(requester);
    }

    /// Forgets a requester of whom nothing is left.
    fn tidy(&mut self, requester: &str) {
        if self.lines.get(requester).is_some_and(|l| l.entries == 0 && l.ready.is_empty() && !l.overflowed) {
            self.lines.remove(requester);
        }
    }
}

/// Whose turn a user's request takes: a service account's namespace, or the user.
fn requester(username: &str) -> &str {
    let account = username.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    account.map_or(username, |(namespace, _)| &username[..SERVICE_ACCOUNT_PREFIX.len() + namespace.len()])
}

/// [`requester`], in the allocation of its line if it has one.
fn known(lines: &HashMap<Arc<str>, Line>, username: &str) -> Arc<str> {
    let requester = requester(username);
    lines.get_key_value(requester).map_or_else(|| Arc::from(requester), |(known, _)| Arc::clone(known))
}

/// The wait before the attempt after `attempts` others: doubling from `first` to `cap`, spread by up to a quarter less.
fn backoff(name: &str, attempts: u32, first: Duration, cap: Duration) -> Duration {
    let wait = first.saturating_mul(1 << attempts.min(20)).min(cap);
    let mut hasher = DefaultHasher::new();
    (name, attempts).hash(&mut hasher);
    let spread = u32::try_from(hasher.finish() % 256).unwrap_or_default();
    wait - wait / 4 * spread / 256
}

#[cfg(test)]
mod tests;
