//! Pods that admission has warned of and whose Event is not written yet.

use std::collections::{HashMap, VecDeque};

use tokio::time::{Duration, Instant};

/// Pods that wait at most. With more, the namespace with the most loses its oldest, so that no tenant takes the room of another.
const MOST: usize = 1024;
/// After so long, a pod is no longer told: the leader of then has told it.
const KEPT: Duration = Duration::from_secs(10 * 60);

/// A pod and the note of its Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sighted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) note: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(Instant, Sighted)>);

impl Waiting {
    /// Adds a pod.
    pub(super) fn push(&mut self, pod: Sighted, now: Instant) {
        self.0.retain(|(at, waits)| now.saturating_duration_since(*at) < KEPT && waits.uid != pod.uid);
        if self.0.len() >= MOST {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            self.0.iter().for_each(|(_, waits)| *counts.entry(&waits.namespace).or_default() += 1);
            let most = counts.values().max().copied().unwrap_or_default();
            let of_the_most = |(_, waits): &(Instant, Sighted)| counts.get(waits.namespace.as_str()) == Some(&most);
            let oldest = self.0.iter().position(of_the_most).unwrap_or_default();
            self.0.remove(oldest);
        }
        self.0.push_back((now, pod));
    }

    /// Takes the one that waits longest.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Sighted> {
        loop {
            let (at, pod) = self.0.pop_front()?;
            if now.saturating_duration_since(at) < KEPT {
                return Some(pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, uid: usize) -> Sighted {
        Sighted { namespace: namespace.to_owned(), name: "p".to_owned(), uid: uid.to_string(), note: String::new() }
    }

    #[test]
    fn a_flood_of_one_namespace_takes_the_room_of_no_other() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.push(pod("b", 1), now);
        for n in 2..3 * MOST {
            waiting.push(pod("a", n), now);
            assert!(waiting.0.len() <= MOST);
        }
        waiting.push(pod("c", 0), now);
        let all: Vec<String> = std::iter::from_fn(|| waiting.pop(now)).map(|pod| pod.namespace).collect();
        assert_eq!(all.len(), MOST);
        assert!(all.contains(&"b".to_owned()) && all.contains(&"c".to_owned()));
    }

    #[test]
    fn a_pod_waits_once_and_not_for_ever() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.push(pod("a", 1), now);
        waiting.push(pod("a", 1), now);
        waiting.push(pod("a", 2), now + KEPT / 2);
        assert_eq!(waiting.pop(now + KEPT), Some(pod("a", 2)), "the first has waited too long");
        assert_eq!(waiting.pop(now + KEPT), None);
    }
}
