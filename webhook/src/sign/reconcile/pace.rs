//! When the next round is due. A round looks at everything, so that it takes the longer the more clusters there are: the
//! rest after it is in proportion, and the share of a processor is the same for one cluster and for thousands. Pure.

use std::time::Duration;

/// A round without anything having changed comes after this at the earliest: for the clock, and for rights that came.
const EVERY: Duration = Duration::from_secs(2);
/// … and after this at the latest where nothing is pending, and where something is.
const IDLE: Duration = Duration::from_secs(60);
const BUSY: Duration = Duration::from_secs(10);
/// Triggers within this time count once, however short or long a round is.
const SETTLE: Duration = Duration::from_millis(10);
const LONGEST_SETTLE: Duration = Duration::from_secs(1);

/// The work that a round left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// A rollover under way, a right that is not there yet, a trouble.
    Something,
    Nothing,
}

impl Pending {
    /// How long to wait for a change, after a round that took so long.
    pub(super) fn next_round(self, took: Duration) -> Duration {
        match self {
            Self::Something => (took * 4).clamp(EVERY, BUSY),
            Self::Nothing => (took * 100).clamp(EVERY, IDLE),
        }
    }
}

/// The duration of a round without waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost(pub(super) Duration);

impl Default for Cost {
    fn default() -> Self {
        Self(SETTLE)
    }
}

impl Cost {
    /// After one more round: a single one that waited for the API server counts little.
    pub(super) fn after(self, took: Duration) -> Self {
        Self(took.min(self.0 * 2).max(SETTLE / 10))
    }
}

/// How long to gather changes, after a round that took so long.
pub(super) fn settle(took: Duration) -> Duration {
    took.clamp(SETTLE, LONGEST_SETTLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clusters_are_looked_at_no_harder_than_few() {
        for (took, pending, idle) in
            [(1, 2_000, 2_000), (100, 2_000, 10_000), (600, 2_400, 60_000), (30_000, 10_000, 60_000)]
        {
            let took = Duration::from_millis(took);
            assert_eq!(Pending::Something.next_round(took), Duration::from_millis(pending), "{took:?}");
            assert_eq!(Pending::Nothing.next_round(took), Duration::from_millis(idle), "{took:?}");
            assert!((SETTLE..=LONGEST_SETTLE).contains(&settle(took)));
        }
    }

    #[test]
    fn one_slow_answer_makes_no_long_rest() {
        let fast = Duration::from_millis(1);
        let cost = Cost::default().after(fast).after(Duration::from_secs(15));
        assert_eq!(Pending::Nothing.next_round(cost.0), EVERY);
        let slow = (0..10).fold(cost, |cost, _| cost.after(Duration::from_millis(500)));
        assert_eq!(slow, Cost(Duration::from_millis(500)), "rounds that are slow again and again");
        assert_eq!(slow.after(fast), Cost(fast));
    }
}
