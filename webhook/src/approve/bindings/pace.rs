//! How often a binding is written: a burst, then one write at a time; after a failure, a wait that doubles.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

/// Writes of one binding that follow each other at once.
const BURST: u32 = 10;
/// After the burst, one write in this time.
const REFILL: Duration = Duration::from_secs(5);
/// Paces that are kept without a look at which are needed.
const FEW: usize = 64;
/// The wait after a first failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait after failures.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The pace of each binding, by a name for it. One that is written rarely and without failure takes no room.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<String, Pace>, usize);

#[derive(Debug)]
struct Pace {
    /// When the whole burst is there again.
    whole_at: Instant,
    /// After how long a failure is followed by another try.
    wait: Option<Duration>,
    not_before: Instant,
}

impl Paces {
    /// When it may be written; `None`: now.
    pub(super) fn not_before(&self, name: &str, now: Instant) -> Option<Instant> {
        let pace = self.0.get(name)?;
        let room = REFILL * (BURST - 1);
        let next = pace.not_before.max(pace.whole_at.checked_sub(room).unwrap_or(now));
        (next > now).then_some(next)
    }

    /// It was written.
    pub(super) fn written(&mut self, name: &str, now: Instant) {
        let pace = self.of(name, now);
        (pace.wait, pace.not_before) = (None, now);
    }

    /// It could not be written, or has to be looked at again.
    pub(super) fn failed(&mut self, name: &str, now: Instant) {
        let pace = self.of(name, now);
        let wait = pace.wait.map_or(FIRST_WAIT, |wait| (wait * 2).min(MAX_WAIT));
        (pace.wait, pace.not_before) = (Some(wait), now + wait);
    }

    /// Forgets each that could be written at once and has not failed of late; not at every call, since they may be many.
    fn prune(&mut self, now: Instant) {
        if self.0.len() < self.1 {
            return;
        }
        self.0.retain(|_, pace| pace.whole_at > now || pace.wait.is_some_and(|wait| pace.not_before + wait * 2 > now));
        self.1 = (self.0.len() * 2).max(FEW);
    }

    fn of(&mut self, name: &str, now: Instant) -> &mut Pace {
        self.prune(now);
        let pace = self.0.entry(name.to_owned()).or_insert(Pace { whole_at: now, wait: None, not_before: now });
        pace.whole_at = pace.whole_at.max(now) + REFILL;
        pace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_written_at_once_and_then_one_at_a_time() {
        let now = Instant::now();
        let mut paces = Paces::default();
        for n in 0..BURST {
            assert_eq!(paces.not_before("a", now), None, "{n}");
            paces.written("a", now);
        }
        assert_eq!(paces.not_before("a", now), Some(now + REFILL));
        assert_eq!(paces.not_before("b", now), None, "each has its own");
        let mut writes = 0;
        for second in 0..600 {
            let now = now + Duration::from_secs(second);
            if paces.not_before("a", now).is_none() {
                paces.written("a", now);
                writes += 1;
            }
        }
        assert!((115..=121).contains(&writes), "{writes}");
    }

    #[test]
    fn a_failure_is_followed_by_longer_and_longer_waits() {
        let mut now = Instant::now();
        let start = now;
        let mut paces = Paces::default();
        for _ in 0..12 {
            paces.failed("a", now);
            now = paces.not_before("a", now).unwrap_or(now);
        }
        assert!(now - start > Duration::from_secs(120), "{:?}", now - start);
        assert!(paces.not_before("a", now + MAX_WAIT).is_none(), "never longer than that");
        assert_eq!(paces.not_before("b", now), None);
    }

    #[test]
    fn quiet_namespaces_are_forgotten() {
        let mut now = Instant::now();
        let mut paces = Paces::default();
        for n in 0..10_000 {
            paces.failed(&format!("ns-{n}"), now);
            now += Duration::from_millis(100);
        }
        assert!(paces.0.len() < 1_000, "{}", paces.0.len());
    }
}
