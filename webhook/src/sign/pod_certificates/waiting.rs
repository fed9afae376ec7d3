//! The requests that wait for an answer. Their names are kept, within a bound; nodes take turns. Pure: the time is an argument.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::controller::listed::Key;

/// Requests that are kept, and those of one node.
const MOST: usize = 16 * 1024;
const MOST_OF_NODE: usize = 1024;
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Job {
    node: Box<str>,
    /// `None`: it is worked on.
    due: Option<Instant>,
    attempts: u32,
    list: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    jobs: BTreeMap<Key, Job>,
    /// When each node had its turn last, and how many of its requests wait.
    nodes: HashMap<Box<str>, (u64, usize)>,
    turn: u64,
    list: u64,
    /// Whether some were left out, so that a list is due.
    left_out: bool,
}

impl Waiting {
    pub(super) const fn list_begins(&mut self) {
        self.list += 1;
        self.left_out = false;
    }

    /// Those that the list did not bring are gone.
    pub(super) fn list_ends(&mut self) {
        let gone: Vec<Key> =
            self.jobs.iter().filter(|(_, job)| job.list != self.list).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// Whether there is room again for what was left out.
    pub(super) fn wants_list(&self) -> bool {
        self.left_out && self.jobs.len() < MOST / 2
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// One that waits.
    pub(super) fn offer(&mut self, key: Key, node: &str, now: Instant) {
        if let Some(job) = self.jobs.get_mut(&key) {
            job.list = self.list;
            return;
        }
        let of_node = self.nodes.get(node).map_or(0, |(_, count)| *count);
        if self.jobs.len() >= MOST || of_node >= MOST_OF_NODE {
            self.left_out = true;
            return;
        }
        let node: Box<str> = node.into();
        self.nodes.entry(node.clone()).or_default().1 += 1;
        self.jobs.insert(key, Job { node, due: Some(now), attempts: 0, list: self.list });
    }

    pub(super) fn remove(&mut self, key: &Key) {
        let Some(job) = self.jobs.remove(key) else { return };
        if let Some((_, count)) = self.nodes.get_mut(&job.node) {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&job.node);
            }
        }
    }

    /// The next one to work on: of the node whose turn was the longest ago, the one that is due the longest.
    pub(super) fn next(&mut self, now: Instant) -> Option<Key> {
        let turn_of = |job: &Job| self.nodes.get(&job.node).map_or(0, |(turn, _)| *turn);
        let due = self.jobs.iter().filter_map(|(key, job)| Some((key, job, job.due.filter(|due| *due <= now)?)));
        let (key, _, _) = due.min_by_key(|(_, job, due)| (turn_of(job), *due))?;
        let key = key.clone();
        let job = self.jobs.get_mut(&key)?;
        job.due = None;
        self.turn += 1;
        if let Some((turn, _)) = self.nodes.get_mut(&job.node) {
            *turn = self.turn;
        }
        Some(key)
    }

    /// It could not be answered.
    pub(super) fn again(&mut self, key: &Key, now: Instant) {
        if let Some(job) = self.jobs.get_mut(key) {
            let wait = SOONEST.saturating_mul(1 << job.attempts.min(10)).min(LATEST);
            job.attempts += 1;
            job.due = Some(now + wait);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.jobs.values().filter_map(|job| job.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::listed::key;

    fn of(name: &str) -> Key {
        key(Some("ns"), Some(name))
    }

    #[test]
    fn nodes_take_turns_and_none_fills_the_whole() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for n in 0..2 * MOST_OF_NODE {
            waiting.offer(of(&format!("a{n}")), "loud", now);
        }
        assert_eq!(waiting.len(), MOST_OF_NODE);
        assert!(waiting.wants_list());
        waiting.offer(of("z"), "quiet", now);
        let first: Vec<Key> = (0..2).filter_map(|_| waiting.next(now)).collect();
        assert!(first.contains(&of("z")), "{first:?}");
    }

    #[test]
    fn one_that_cannot_be_answered_comes_again_later_and_one_that_is_gone_does_not() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.list_begins();
        waiting.offer(of("a"), "n", now);
        waiting.offer(of("b"), "n", now);
        waiting.list_ends();
        assert_eq!((waiting.next(now), waiting.next(now), waiting.next(now)), (Some(of("a")), Some(of("b")), None));
        waiting.again(&of("a"), now);
        assert_eq!(waiting.next(now), None);
        assert_eq!(waiting.next_due(), Some(now + SOONEST));
        assert_eq!(waiting.next(now + SOONEST), Some(of("a")));
        for _ in 0..20 {
            waiting.again(&of("a"), now);
        }
        assert_eq!(waiting.next_due(), Some(now + LATEST));
        waiting.list_begins();
        waiting.offer(of("b"), "n", now);
        waiting.list_ends();
        assert_eq!((waiting.len(), waiting.next_due()), (1, None), "b is worked on");
        waiting.remove(&of("b"));
        assert!(waiting.nodes.is_empty());
    }
}
