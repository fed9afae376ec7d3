//! The requests that wait for an answer. Their names are kept, within a bound; namespaces take turns, and none leaves out another.
//! Pure: the time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::controller::listed::Key;

/// Requests that are kept, and those of one namespace.
const MOST: usize = 16 * 1024;
const MOST_OF_NAMESPACE: usize = 1024;
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Job {
    uid: Arc<str>,
    /// `None`: it is worked on.
    due: Option<Instant>,
    attempts: u32,
    list: u64,
}

/// The requests of one namespace, of which there is at least one.
#[derive(Debug, Default)]
struct Space {
    count: usize,
    /// When it had its turn last.
    turn: u64,
    /// By the time at which they are due, those that are not worked on.
    due: BTreeSet<(Instant, Key)>,
    /// The first time of these by which the namespace is in [`Waiting::later`].
    head: Option<Instant>,
    /// True if some of it were left out.
    left_out: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    jobs: BTreeMap<Key, Job>,
    spaces: HashMap<Arc<str>, Space>,
    /// The namespaces by how many requests they have.
    sizes: BTreeSet<(usize, Arc<str>)>,
    /// Those with a request that is due later, by that time; and those with one that was due at the last look, by their turns.
    later: BTreeSet<(Instant, Arc<str>)>,
    ready: BTreeSet<(u64, Arc<str>)>,
    turn: u64,
    list: u64,
    /// True if a namespace was left out because the whole was full.
    left_out: bool,
    wants_list: bool,
    /// The uids of those that do not wait any more.
    gone: Vec<Arc<str>>,
}

impl Waiting {
    pub(super) fn list_begins(&mut self) {
        self.list += 1;
        (self.left_out, self.wants_list) = (false, false);
        self.spaces.values_mut().for_each(|space| space.left_out = false);
    }

    /// Those that the list did not bring are gone.
    pub(super) fn list_ends(&mut self) {
        let gone: Vec<Key> =
            self.jobs.iter().filter(|(_, job)| job.list != self.list).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// True if there is room again for what was left out.
    pub(super) fn wants_list(&self) -> bool {
        self.wants_list || self.left_out && self.jobs.len() <= MOST / 2
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The uids of those that do not wait any more, once.
    pub(super) fn gone(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.gone)
    }

    /// One that waits. Where the whole is full, it takes the place of one of the namespace with the most.
    pub(super) fn offer(&mut self, key: Key, uid: &str, now: Instant) {
        match self.jobs.get_mut(&key) {
            Some(job) if *job.uid == *uid => {
                job.list = self.list;
                return;
            }
            // Made again under its name.
            Some(_) => self.remove(&key),
            None => {}
        }
        let namespace = key.0.clone();
        let count = self.spaces.get(&namespace).map_or(0, |space| space.count);
        if count >= MOST_OF_NAMESPACE {
            if let Some(space) = self.spaces.get_mut(&namespace) {
                space.left_out = true;
            }
            return;
        }
        if self.jobs.len() >= MOST && !self.make_room(count) {
            self.left_out = true;
            return;
        }
        self.jobs.insert(key.clone(), Job { uid: uid.into(), due: Some(now), attempts: 0, list: self.list });
        let space = self.spaces.entry(namespace.clone()).or_default();
        space.due.insert((now, key));
        self.resize(&namespace, 1);
        self.place(&namespace);
    }

    /// Takes one away from the namespace with the most, if it has more than one of `count` would have with one more.
    fn make_room(&mut self, count: usize) -> bool {
        let Some((most, largest)) = self.sizes.last().cloned() else { return false };
        if most <= count + 1 {
            return false;
        }
        let last = self.spaces.get(&largest).and_then(|space| space.due.last()).map(|(_, key)| key.clone());
        let Some(key) = last else { return false };
        self.remove(&key);
        // It comes back when that namespace has room, or the whole has.
        if let Some(space) = self.spaces.get_mut(&largest) {
            space.left_out = true;
        }
        self.left_out = true;
        true
    }

    pub(super) fn remove(&mut self, key: &Key) {
        let Some(job) = self.jobs.remove(key) else { return };
        let namespace = &key.0;
        self.gone.push(job.uid);
        if let Some(space) = self.spaces.get_mut(namespace)
            && let Some(due) = job.due
        {
            space.due.remove(&(due, key.clone()));
        }
        self.resize(namespace, -1);
        self.place(namespace);
        let Some(space) = self.spaces.get(namespace) else { return };
        self.wants_list |= space.left_out && space.count <= MOST_OF_NAMESPACE / 2;
        if space.count == 0 {
            self.sizes.remove(&(0, namespace.clone()));
            self.spaces.remove(namespace);
        }
    }

    /// The next one to work on, with its uid: of the namespace whose turn was the longest ago, the one that is due the longest.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Key, Arc<str>)> {
        while self.later.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, namespace)) = self.later.pop_first()
        {
            if let Some(space) = self.spaces.get_mut(&namespace) {
                space.head = None;
                self.ready.insert((space.turn, namespace));
            }
        }
        let (_, namespace) = self.ready.pop_first()?;
        let space = self.spaces.get_mut(&namespace)?;
        let (_, key) = space.due.pop_first()?;
        self.turn += 1;
        space.turn = self.turn;
        self.place(&namespace);
        let job = self.jobs.get_mut(&key)?;
        job.due = None;
        let uid = job.uid.clone();
        Some((key, uid))
    }

    /// It needs no answer any more; one that was made again under its name does.
    pub(super) fn done(&mut self, key: &Key, uid: &str) {
        if self.jobs.get(key).is_some_and(|job| *job.uid == *uid) {
            self.remove(key);
        }
    }

    /// It could not be answered. Returns true if it still waits.
    pub(super) fn again(&mut self, key: &Key, uid: &str, now: Instant) -> bool {
        let Some(job) = self.jobs.get_mut(key).filter(|job| *job.uid == *uid) else { return false };
        let wait = SOONEST.saturating_mul(1 << job.attempts.min(10)).min(LATEST);
        job.attempts += 1;
        let before = job.due.replace(now + wait);
        if let Some(space) = self.spaces.get_mut(&key.0) {
            before.map(|due| space.due.remove(&(due, key.clone())));
            space.due.insert((now + wait, key.clone()));
        }
        self.place(&key.0);
        true
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let ready = self.ready.first().and_then(|(_, namespace)| self.spaces.get(namespace)?.due.first());
        ready.map(|(due, _)| *due).or_else(|| self.later.first().map(|(due, _)| *due))
    }

    /// A namespace has one more, or one less.
    fn resize(&mut self, namespace: &str, by: isize) {
        let Some(space) = self.spaces.get_mut(namespace) else { return };
        self.sizes.remove(&(space.count, namespace.into()));
        space.count = space.count.saturating_add_signed(by);
        self.sizes.insert((space.count, namespace.into()));
    }

    /// Puts a namespace where its first request belongs.
    fn place(&mut self, namespace: &str) {
        let Some(space) = self.spaces.get_mut(namespace) else { return };
        if let Some(head) = space.head.take() {
            self.later.remove(&(head, namespace.into()));
        }
        self.ready.remove(&(space.turn, namespace.into()));
        if let Some((due, _)) = space.due.first() {
            space.head = Some(*due);
            self.later.insert((*due, namespace.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::listed::key;

    fn of(name: &str) -> Key {
        key(Some("ns"), Some(name))
    }

    fn in_namespace(namespace: &str, name: usize) -> Key {
        key(Some(namespace), Some(&name.to_string()))
    }

    fn next(waiting: &mut Waiting, now: Instant) -> Option<Key> {
        waiting.next(now).map(|(key, _)| key)
    }

    /// True if nothing is kept of what is gone.
    fn is_empty(waiting: &Waiting) -> bool {
        let Waiting { jobs, spaces, sizes, later, ready, .. } = waiting;
        jobs.is_empty() && spaces.is_empty() && sizes.is_empty() && later.is_empty() && ready.is_empty()
    }

    #[test]
    fn namespaces_take_turns_and_none_fills_the_whole() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for n in 0..2 * MOST_OF_NAMESPACE {
            waiting.offer(in_namespace("loud", n), "u", now);
        }
        assert_eq!(waiting.len(), MOST_OF_NAMESPACE);
        waiting.offer(of("z"), "u", now);
        let first: Vec<Key> = (0..2).filter_map(|_| next(&mut waiting, now)).collect();
        assert!(first.contains(&of("z")), "{first:?}");
        // Another turn comes to each before the loud one has its third.
        waiting.offer(of("y"), "u", now);
        let second: Vec<Key> = (0..2).filter_map(|_| next(&mut waiting, now)).collect();
        assert!(second.contains(&of("y")), "{second:?}");
    }

    #[test]
    fn requests_left_out_are_listed_again_only_when_there_is_room() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.list_begins();
        for n in 0..=MOST_OF_NAMESPACE {
            waiting.offer(in_namespace("loud", n), "u", now);
        }
        waiting.list_ends();
        for n in 0..MOST_OF_NAMESPACE / 2 {
            assert!(!waiting.wants_list(), "{n}: a list would bring nothing");
            waiting.remove(&in_namespace("loud", n));
        }
        assert!(waiting.wants_list());
        waiting.list_begins();
        assert!(!waiting.wants_list());
    }

    #[test]
    fn many_loud_namespaces_make_room_for_a_quiet_one() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for n in 0..MOST {
            waiting.offer(in_namespace(&format!("loud-{}", n % 16), n), "u", now);
        }
        assert_eq!(waiting.len(), MOST);
        waiting.offer(of("z"), "u", now);
        assert_eq!(waiting.len(), MOST);
        assert_eq!(waiting.gone().len(), 1);
        let first: Vec<Key> = (0..17).filter_map(|_| next(&mut waiting, now)).collect();
        assert!(first.contains(&of("z")), "{first:?}");
        let all: Vec<Key> = waiting.jobs.keys().cloned().collect();
        all.iter().for_each(|key| waiting.remove(key));
        assert!(is_empty(&waiting));
        assert!(waiting.wants_list(), "for the one that made room");
    }

    #[test]
    fn what_made_room_comes_back_when_its_namespace_has_room() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.list_begins();
        for n in 0..MOST {
            waiting.offer(in_namespace(&format!("loud-{:02}", n % 16), n), "u", now);
        }
        waiting.offer(of("z"), "u", now);
        waiting.list_ends();
        // The others hold all they can.
        let largest: Vec<Key> = waiting.jobs.keys().filter(|key| *key.0 == *"loud-15").cloned().collect();
        assert_eq!(largest.len(), MOST_OF_NAMESPACE - 1);
        for (left, key) in (MOST_OF_NAMESPACE / 2..largest.len()).zip(&largest) {
            assert!(!waiting.wants_list(), "{left}");
            waiting.remove(key);
        }
        assert!(waiting.wants_list());
    }

    #[test]
    fn one_that_was_made_again_under_its_name_is_no_part_of_the_old_ones_end() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for done in [true, false] {
            waiting.offer(of("a"), "old", now);
            assert_eq!(next(&mut waiting, now), Some(of("a")));
            waiting.offer(of("a"), "new", now);
            let waits = !done && waiting.again(&of("a"), "old", now);
            assert!(!waits);
            waiting.done(&of("a"), "old");
            // It is due at once, and as it was never tried.
            assert_eq!(waiting.next(now).map(|(_, uid)| uid.to_string()), Some("new".to_owned()));
            waiting.done(&of("a"), "new");
            assert!(is_empty(&waiting));
        }
    }

    #[test]
    fn a_list_keeps_what_waits_with_its_pause() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.offer(of("a"), "u", now);
        assert_eq!(next(&mut waiting, now), Some(of("a")));
        assert!(waiting.again(&of("a"), "u", now));
        waiting.list_begins();
        waiting.offer(of("a"), "u", now);
        waiting.list_ends();
        assert_eq!((waiting.len(), waiting.next_due()), (1, Some(now + SOONEST)));
        waiting.offer(of("a"), "made again", now);
        assert_eq!((waiting.len(), waiting.next_due()), (1, Some(now)));
        assert_eq!(waiting.gone(), [Arc::from("u")]);
        assert_eq!(waiting.gone(), Vec::<Arc<str>>::new());
    }

    #[test]
    fn one_that_cannot_be_answered_comes_again_later_and_one_that_is_gone_does_not() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.list_begins();
        waiting.offer(of("a"), "u", now);
        waiting.offer(of("b"), "u", now);
        waiting.list_ends();
        assert_eq!(
            (next(&mut waiting, now), next(&mut waiting, now), next(&mut waiting, now)),
            (Some(of("a")), Some(of("b")), None)
        );
        assert!(waiting.again(&of("a"), "u", now));
        assert_eq!(next(&mut waiting, now), None);
        assert_eq!(waiting.next_due(), Some(now + SOONEST));
        assert_eq!(next(&mut waiting, now + SOONEST), Some(of("a")));
        for _ in 0..20 {
            waiting.again(&of("a"), "u", now);
        }
        assert_eq!(waiting.next_due(), Some(now + LATEST));
        waiting.list_begins();
        waiting.offer(of("b"), "u", now);
        waiting.list_ends();
        assert_eq!((waiting.len(), waiting.next_due()), (1, None), "b is worked on");
        waiting.remove(&of("b"));
        assert!(is_empty(&waiting));
        assert!(!waiting.again(&of("b"), "u", now));
    }
}
