//! Recent messages, so that a message is not repeated in every round. Tenants name the subjects, so each write prunes.

use std::collections::HashMap;

use tokio::time::{Duration, Instant};

/// After so long, everything is said again.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Things that are remembered. With more, the oldest are forgotten, and said again.
const MOST: usize = 4096;

/// The last message and its time, by subject and reason.
#[derive(Debug, Default)]
pub(in crate::sign) struct Said(HashMap<(String, &'static str), (String, Instant)>);

impl Said {
    /// True if to say it now: it was not said of that subject within `every`. Then it counts as said.
    pub(in crate::sign) fn is_due(
        &mut self,
        subject: &str,
        reason: &'static str,
        text: &str,
        every: Duration,
        now: Instant,
    ) -> bool {
        let key = (subject.to_owned(), reason);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < every;
        if self.0.get(&key).is_some_and(|(last, at)| last == text && recent(at)) {
            return false;
        }
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.prune(now);
        }
        self.0.insert(key, (text.to_owned(), now));
        true
    }

    /// It is over: if it comes again, it is said at once.
    pub(super) fn forget(&mut self, subject: &str, reason: &'static str) {
        self.0.remove(&(subject.to_owned(), reason));
    }

    /// Makes room: drops entries older than any interval, then the older half, so that a flood does not sort at each message.
    fn prune(&mut self, now: Instant) {
        self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < LONGEST);
        if self.0.len() >= MOST {
            let mut times: Vec<Instant> = self.0.values().map(|(_, at)| *at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            self.0.retain(|_, (_, at)| *at > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_thing_is_said_once_in_its_time() {
        let now = Instant::now();
        let mut said = Said::default();
        assert!(said.is_due("a", "Lost", "gone", MINUTE, now));
        assert!(!said.is_due("a", "Lost", "gone", MINUTE, now + MINUTE / 2));
        assert!(said.is_due("a", "Waits", "gone", MINUTE, now), "another reason");
        assert!(said.is_due("b", "Lost", "gone", MINUTE, now), "another subject");
        assert!(said.is_due("a", "Lost", "gone again", MINUTE, now), "another text");
        assert!(said.is_due("a", "Lost", "gone again", MINUTE, now + MINUTE));
        said.forget("a", "Lost");
        assert!(said.is_due("a", "Lost", "gone again", MINUTE, now + MINUTE));
    }

    #[test]
    fn names_given_by_tenants_are_forgotten() {
        let mut now = Instant::now();
        let mut said = Said::default();
        for n in 0..10 * MOST {
            assert!(said.is_due(&format!("ns-{n}"), "Full", "too many", MINUTE, now));
            assert!(!said.is_due(&format!("ns-{n}"), "Full", "too many", MINUTE, now), "the newest is remembered");
            assert!(said.0.len() <= MOST, "{}", said.0.len());
            now += Duration::from_millis(1);
        }
        // All at one instant.
        for n in 0..10 * MOST {
            said.is_due(&format!("x-{n}"), "Full", "too many", MINUTE, now);
            assert!(said.0.len() <= MOST, "{}", said.0.len());
        }
    }
}
