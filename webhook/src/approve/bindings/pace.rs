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

    /// Until when it waits, or waited, after a failure; `None`: the last try did not fail.
    pub(super) fn failed_until(&self, name: &str) -> Option<Instant> {
        self.0.get(name).filter(|pace| pace.wait.is_some()).map(|pace| pace.not_before)
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

    /// Forgets each that could be written at once and has not failed of late.
    pub(super) fn forget_quiet(&mut self, now: Instant) {
        self.0.retain(|_, pace| pace.quiet_at() > now);
        self.1 = (self.0.len() * 2).max(FEW);
    }

    /// When [`Self::forget_quiet`] forgets all that are there now; `None`: there is none.
    pub(super) fn all_quiet_at(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(Pace::quiet_at).max().filter(|at| *at > now)
    }

    fn of(&mut self, name: &str, now: Instant) -> &mut Pace {
        // Not at every call, since they may be many.
        if self.0.len() >= self.1 {
            self.forget_quiet(now);
        }
        let pace = self.0.entry(name.to_owned()).or_insert(Pace { whole_at: now, wait: None, not_before: now });
        pace.whole_at = pace.whole_at.max(now) + REFILL;
        pace
    }
}

impl Pace {
    /// From when on it is as one that was never written.
    fn quiet_at(&self) -> Instant {
        self.wait.map_or(self.whole_at, |wait| self.whole_at.max(self.not_before + wait * 2))
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
    fn those_of_a_burst_take_no_room_when_it_is_over() {
        let now = Instant::now();
        let mut paces = Paces::default();
        assert_eq!(paces.all_quiet_at(now), None);
        (0..1000).for_each(|n| paces.written(&format!("ns-{n}"), now));
        paces.failed("failing", now);
        let at = paces.all_quiet_at(now).unwrap_or(now);
        paces.forget_quiet(now + REFILL - Duration::from_millis(1));
        assert_eq!(paces.0.len(), 1001);
        paces.forget_quiet(at);
        assert!(now < at && at <= now + REFILL && paces.0.is_empty(), "{:?}", at - now);
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
