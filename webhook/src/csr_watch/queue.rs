//! The queue of CSRs that need something: fair between requesters, bounded for each of them, light when long.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Interest, Outcome};
use crate::facts::Csr;

/// CSRs of one requester in the queue; more are found again by a list when there is room.
const PER_REQUESTER: usize = 10_000;
/// CSRs whose content is kept; of the others the name is, and the content is read when their turn comes.
const MAX_CONTENTS: usize = 512;
/// Bytes of a request whose content is kept: all that admission policy lets through, and a bit.
const MAX_CONTENT: usize = 6 * 1024;
/// Requests of one pod that one turn of its requester takes: a pod has one for each role. They are judged by one read of it.
const TOGETHER: u8 = 4;
/// How far into a requester's line others of a pod are looked for.
const LOOK_AHEAD: usize = 64;
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
    requester: Arc<str>,
    /// The pod's uid.
    pod: Option<Box<str>>,
    csr: Option<Arc<Kept>>,
    state: State,
    attempts: u32,
}

#[derive(Debug)]
enum State {
    Ready,
    /// Until its serial comes up in `due`.
    Waiting(u64),
    /// With what passed by in the meantime.
    InFlight(Option<Next>),
}

#[derive(Debug)]
enum Next {
    Now(Option<Arc<Kept>>),
    At(Instant),
}

/// One requester's.
#[derive(Debug, Default)]
struct Line {
    /// Names; one that is not [`State::Ready`] any more is passed over.
    ready: VecDeque<Arc<str>>,
    entries: usize,
    in_flight: usize,
    overflowed: bool,
    /// Others of the pod before, taken in this turn.
    together: u8,
}

impl Line {
    /// Puts the next one of `pod` in front, if the turn may go on with it.
    fn bring_forward(&mut self, pod: Option<&str>, entries: &HashMap<Arc<str>, Entry>) -> bool {
        let of_pod = |name: &Arc<str>| entries.get(name).is_some_and(|e| e.pod.as_deref() == pod && e.is_ready());
        if self.together + 1 < TOGETHER
            && pod.is_some()
            && let Some(at) = self.ready.iter().take(LOOK_AHEAD).position(of_pod)
            && let Some(name) = self.ready.remove(at)
        {
            self.ready.push_front(name);
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

    /// Takes note of a CSR that passed by.
    pub(super) fn offer(&mut self, csr: Csr, interest: Interest, now: Instant) {
        let name = csr.name().to_owned();
        let next = match interest {
            Interest::Ignore => return self.remove(&name),
            Interest::Now => Next::Now(self.keep(&csr)),
            Interest::After(wait) => Next::At(now + wait),
        };
        match self.entries.get_mut(name.as_str()) {
            None => {
                if self.insert(&csr) {
                    self.schedule(&name, next);
                }
            }
            Some(Entry { state: State::InFlight(slot), .. }) => *slot = Some(next),
            Some(Entry { state: State::Ready, csr, .. }) => {
                // Its turn comes anyhow; without content it is looked at again then.
                *csr = if let Next::Now(csr) = next { csr } else { None };
            }
            Some(Entry { state: State::Waiting(_), .. }) => self.schedule(&name, next),
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
            let name = line.ready.pop_front()?;
            let pod = self.entries.get(&name).and_then(|entry| entry.pod.as_deref());
            if line.bring_forward(pod, &self.entries) {
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

    /// Takes note of how a job went.
    pub(super) fn finish(&mut self, name: &str, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let State::InFlight(next) = &mut entry.state else { return };
        let next = next.take();
        self.in_flight -= 1;
        if let Some(line) = self.lines.get_mut(&entry.requester) {
            line.in_flight -= 1;
        }
        let attempts = entry.attempts;
        entry.attempts += 1;
        let (first, cap) = match (outcome, next) {
            // What passed by meanwhile is newer than what was worked on.
            (Outcome::Done | Outcome::Stale, Some(next)) | (Outcome::After(_), Some(next @ Next::Now(_))) => {
                return self.schedule(name, next);
            }
            (Outcome::Done, None) => return self.drop_entry(name),
            (Outcome::After(wait), _) => return self.schedule(name, Next::At(now + wait)),
            (Outcome::Stale, None) => {
                entry.csr = None;
                (Duration::from_millis(10), Duration::from_secs(30))
            }
            (Outcome::NotYet | Outcome::Failed, next) => {
                if let Some(Next::Now(newer)) = next {
                    entry.csr = newer;
                }
                if outcome == Outcome::NotYet {
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
    }

    /// When the next waiting one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // With every worker busy, the end of a job is what there is to wait for.
        if self.in_flight >= self.workers {
            return None;
        }
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    /// Whether something did not fit, and fits now.
    pub(super) fn has_room_again(&self) -> bool {
        self.overflowed && self.lines.values().any(|line| line.overflowed && line.entries <= PER_REQUESTER / 2)
    }

    /// A list is about to bring again what did not fit.
    pub(super) fn forget_overflow(&mut self) {
        self.overflowed = false;
        self.lines.values_mut().for_each(|line| line.overflowed = false);
        self.lines.retain(|_, line| line.entries > 0 || !line.ready.is_empty());
    }

    /// Jobs that one requester may have under way: three quarters, so that there is always a worker for somebody else.
    fn share(&self) -> usize {
        (self.workers * 3 / 4).max(1)
    }

    /// Content, if there is room for it.
    fn keep(&self, csr: &Csr) -> Option<Arc<Kept>> {
        let fits = Arc::strong_count(&self.places) <= MAX_CONTENTS && csr.spec.request.0.len() <= MAX_CONTENT;
        fits.then(|| Arc::new(Kept { csr: csr.clone(), _place: Arc::clone(&self.places) }))
    }

    /// Makes an entry that is yet to be scheduled; not if its requester has too many.
    fn insert(&mut self, csr: &Csr) -> bool {
        let requester = match self.lines.get_key_value(csr.spec.username.as_str()) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(csr.spec.username.as_str()),
        };
        let line = self.lines.entry(Arc::clone(&requester)).or_default();
        if line.entries >= PER_REQUESTER {
            line.overflowed = true;
            self.overflowed = true;
            return false;
        }
        line.entries += 1;
        let pod = csr.pod_uid().map(Box::from);
        self.entries.insert(
            Arc::from(csr.name()),
            Entry { requester, pod, csr: None, state: State::InFlight(None), attempts: 0 },
        );
        true
    }

    fn schedule(&mut self, name: &str, next: Next) {
        let (csr, at) = match next {
            Next::Now(csr) => (csr, None),
            Next::At(at) => (None, Some(at)),
        };
        if let Some(entry) = self.entries.get_mut(name) {
            entry.csr = csr;
        }
        match at {
            None => self.make_ready(name),
            Some(at) => self.wait(name, at),
        }
    }

    fn make_ready(&mut self, name: &str) {
        let Some((name, _)) = self.entries.get_key_value(name) else { return };
        let name = Arc::clone(name);
        let Some(entry) = self.entries.get_mut(&name) else { return };
        entry.state = State::Ready;
        let line = self.lines.entry(Arc::clone(&entry.requester)).or_default();
        if line.ready.is_empty() {
            self.turns.push_back(Arc::clone(&entry.requester));
        }
        line.ready.push_back(name);
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
        if let Some(line) = self.lines.get_mut(&entry.requester) {
            line.entries -= 1;
        }
        self.tidy(&entry.requester);
    }

    /// Forgets a requester of whom nothing is left.
    fn tidy(&mut self, requester: &str) {
        if self.lines.get(requester).is_some_and(|l| l.entries == 0 && l.ready.is_empty() && !l.overflowed) {
            self.lines.remove(requester);
        }
    }
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn csr(name: &str, requester: &str) -> Csr {
        let mut csr = Csr::default();
        csr.metadata.name = Some(name.to_owned());
        csr.spec.username = requester.to_owned();
        csr
    }

    fn popped(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|job| job.name.to_string()).collect()
    }

    #[test]
    fn a_flood_of_one_requester_starves_nobody() {
        let now = Instant::now();
        let mut queue = Queue::new(4);
        for n in 0..1000 {
            queue.offer(csr(&format!("flood-{n}"), "flood"), Interest::Now, now);
        }
        queue.offer(csr("a", "quiet"), Interest::Now, now);
        queue.offer(csr("b", "other"), Interest::Now, now);
        // Everybody's first before anybody's second; and within one requester in the order of arrival.
        assert_eq!(popped(&mut queue, now), ["flood-0", "a", "b", "flood-1"]);
        // One requester never has all workers.
        for name in ["flood-0", "a", "b", "flood-1"] {
            queue.finish(name, Outcome::Done, now);
        }
        assert_eq!(popped(&mut queue, now), ["flood-2", "flood-3", "flood-4"]);
        queue.offer(csr("c", "quiet"), Interest::Now, now);
        assert_eq!(popped(&mut queue, now), ["c"]);
    }

    #[test]
    fn the_requests_of_a_pod_take_one_turn_but_no_more_than_a_pod_has_roles() {
        let now = Instant::now();
        let mut queue = Queue::new(100);
        let of = |name: &str, requester: &str, pod: &str| {
            let mut csr = csr(name, requester);
            csr.spec.extra.insert(etcd_tls_sidecar::identity::POD_UID.to_owned(), vec![pod.to_owned()]);
            csr
        };
        for csr in [of("a1", "x", "a"), of("b1", "x", "b"), of("c1", "x", "c"), of("d1", "y", "a"), of("b2", "x", "b")]
        {
            queue.offer(csr, Interest::Now, now);
        }
        queue.offer(of("a2", "x", "a"), Interest::Now, now);
        assert_eq!(popped(&mut queue, now), ["a1", "a2", "d1", "b1", "b2", "c1"]);

        for name in (0..6).map(|n| format!("f{n}")) {
            queue.offer(of(&name, "flood", "f"), Interest::Now, now);
        }
        queue.offer(of("q", "quiet", "q"), Interest::Now, now);
        assert_eq!(popped(&mut queue, now), ["f0", "f1", "f2", "f3", "q", "f4", "f5"]);

        // One that needs nothing any more is passed over.
        for name in ["g0", "g1", "g2"] {
            queue.offer(of(name, "x", "g"), Interest::Now, now);
        }
        queue.offer(of("g1", "x", "g"), Interest::Ignore, now);
        assert_eq!(popped(&mut queue, now), ["g0", "g2"]);
    }

    #[test]
    fn what_has_to_wait_waits_longer_each_time_and_never_over_a_minute() {
        let mut now = Instant::now();
        let mut queue = Queue::new(1);
        queue.offer(csr("a", "x"), Interest::Now, now);
        let mut waits = Vec::new();
        for _ in 0..40 {
            assert_eq!(popped(&mut queue, now), ["a"]);
            queue.finish("a", Outcome::NotYet, now);
            let due = queue.next_due().unwrap();
            waits.push(due - now);
            assert!(queue.pop(now).is_none());
            now = due;
        }
        assert!(waits[0] <= Duration::from_millis(25) && waits[0] >= Duration::from_millis(18), "{:?}", waits[0]);
        assert!(waits[1] > waits[0] && waits[4] > waits[3]);
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(60)));
        assert!(*waits.last().unwrap() >= Duration::from_secs(45));
    }

    #[test]
    fn what_passes_by_during_the_work_is_not_lost() {
        let now = Instant::now();
        let mut queue = Queue::new(2);
        queue.offer(csr("a", "x"), Interest::Now, now);
        assert!(queue.pop(now).is_some());
        queue.offer(csr("a", "x"), Interest::Now, now);
        assert!(queue.pop(now).is_none(), "never two workers on one CSR");
        queue.finish("a", Outcome::Done, now);
        assert_eq!(popped(&mut queue, now), ["a"]);

        // The echo of our own write, with a clean-up to come.
        queue.offer(csr("a", "x"), Interest::After(Duration::from_secs(300)), now);
        queue.finish("a", Outcome::Done, now);
        assert!(queue.pop(now).is_none());
        assert_eq!(popped(&mut queue, now + Duration::from_secs(300)), ["a"]);
        queue.finish("a", Outcome::Done, now);
        assert_eq!(queue.waiting(), 0);
        assert!(queue.lines.is_empty() && queue.entries.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn what_is_decided_or_gone_leaves_the_queue() {
        let now = Instant::now();
        let mut queue = Queue::new(2);
        queue.offer(csr("a", "x"), Interest::Now, now);
        queue.offer(csr("b", "x"), Interest::Now, now);
        queue.offer(csr("a", "x"), Interest::Ignore, now);
        queue.remove("b");
        assert!(queue.pop(now).is_none());
        assert!(queue.lines.is_empty() && queue.turns.is_empty());
        // And may come again under its name.
        queue.offer(csr("a", "x"), Interest::Now, now);
        assert_eq!(popped(&mut queue, now), ["a"]);
    }

    #[test]
    fn a_long_queue_keeps_names_and_no_contents() {
        let now = Instant::now();
        let mut queue = Queue::new(1000);
        for n in 0..600 {
            queue.offer(csr(&format!("c{n}"), "x"), Interest::Now, now);
        }
        let jobs: Vec<Job> = std::iter::from_fn(|| queue.pop(now)).collect();
        assert_eq!(jobs.iter().filter(|j| j.csr.is_some()).count(), MAX_CONTENTS);
        assert_eq!(jobs.len(), 600);
        let mut big = csr("big", "y");
        big.spec.request.0 = vec![0; MAX_CONTENT + 1];
        for job in jobs {
            queue.finish(&job.name, Outcome::Done, now);
        }
        assert_eq!(Arc::strong_count(&queue.places), 1, "each place is given back");
        queue.offer(big, Interest::Now, now);
        assert!(queue.pop(now).unwrap().csr.is_none());
    }

    #[test]
    fn what_does_not_fit_is_listed_again_when_there_is_room() {
        let now = Instant::now();
        let mut queue = Queue::new(1);
        for n in 0..=PER_REQUESTER {
            queue.offer(csr(&format!("c{n}"), "x"), Interest::Now, now);
        }
        assert_eq!(queue.waiting(), PER_REQUESTER);
        assert!(!queue.has_room_again());
        for n in 0..=PER_REQUESTER / 2 {
            queue.remove(&format!("c{n}"));
        }
        assert!(queue.has_room_again());
        queue.forget_overflow();
        assert!(!queue.has_room_again());
    }

    #[test]
    fn a_stale_one_is_read_anew_soon() {
        let now = Instant::now();
        let mut queue = Queue::new(1);
        queue.offer(csr("a", "x"), Interest::Now, now);
        assert!(queue.pop(now).unwrap().csr.is_some());
        queue.finish("a", Outcome::Stale, now);
        let due = queue.next_due().unwrap();
        assert!(due - now <= Duration::from_millis(10));
        assert!(queue.pop(due).unwrap().csr.is_none());
    }
}
