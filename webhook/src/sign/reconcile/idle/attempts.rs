//! Which clusters a round retires: a few, each said to be due in a round before, and none that could not be retired a moment ago. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::names::ClusterName;
use tokio::time::Instant;

use crate::sign::reconcile::Pending;

/// Clusters that one round retires, at most: each is a few calls, and the round has other work.
pub(super) const AT_ONCE: usize = 8;
/// The wait after the first failure; it doubles with each one, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60 * 60));

/// The clusters that are due, since a round before this one.
#[derive(Debug, Default)]
pub(in crate::sign) struct Attempts(BTreeMap<ClusterName, Attempt>);

#[derive(Clone, Copy, Debug, Default)]
struct Attempt {
    failures: u32,
    /// Not before this.
    until: Option<Instant>,
}

/// The part of a round.
#[derive(Debug)]
pub(super) struct These {
    /// To be retired now.
    pub(super) now: BTreeSet<ClusterName>,
    /// The work left for the next round.
    pub(super) pending: Pending,
}

impl Attempts {
    /// Those of the clusters that are `due` to retire in this round. Others than these are forgotten.
    pub(super) fn these<'a>(&mut self, due: impl Iterator<Item = &'a ClusterName>, now: Instant) -> These {
        let (before, mut these, mut more) = (std::mem::take(&mut self.0), BTreeSet::new(), false);
        for cluster in due {
            let known = before.get(cluster);
            let waits = known.is_none_or(|attempt| attempt.until.is_some_and(|until| now < until));
            if !waits && these.len() < AT_ONCE {
                these.insert(cluster.clone());
            } else {
                // One that waits after a failure needs no round of its own.
                more |= known.is_none_or(|attempt| attempt.until.is_none());
            }
            self.0.insert(cluster.clone(), known.copied().unwrap_or_default());
        }
        These { now: these, pending: if more { Pending::Something } else { Pending::Nothing } }
    }

    /// A cluster could not be retired.
    pub(super) fn failed(&mut self, cluster: &ClusterName, now: Instant) {
        if let Some(attempt) = self.0.get_mut(cluster) {
            attempt.until = Some(now + AGAIN.0.saturating_mul(1 << attempt.failures.min(16)).min(AGAIN.1));
            attempt.failures += 1;
        }
    }

    /// A cluster is retired, or in use again.
    pub(super) fn succeeded(&mut self, cluster: &ClusterName) {
        self.0.remove(cluster);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn clusters(from: usize, to: usize) -> BTreeSet<ClusterName> {
        (from..to).map(|n| format!("ci/c{n:03}").parse().unwrap()).collect()
    }

    fn count(attempts: &mut Attempts, due: &BTreeSet<ClusterName>, now: Instant) -> (usize, Pending) {
        let these = attempts.these(due.iter(), now);
        (these.now.len(), these.pending)
    }

    #[test]
    fn no_cluster_is_retired_in_the_round_in_which_it_is_first_due() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let due = clusters(0, 2);
        assert_eq!(count(&mut attempts, &due, now), (0, Pending::Something));
        assert_eq!(attempts.these(due.iter(), now).now, due);
        // In use for a round, it begins anew.
        assert_eq!(count(&mut attempts, &clusters(0, 1), now), (1, Pending::Nothing));
        assert_eq!(count(&mut attempts, &due, now), (1, Pending::Something));
    }

    #[test]
    fn a_round_retires_a_few_and_goes_on_with_the_others() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let mut due = clusters(0, 3 * AT_ONCE);
        assert_eq!(count(&mut attempts, &due, now).0, 0);
        for left in [2, 1, 0] {
            let these = attempts.these(due.iter(), now);
            assert_eq!(these.now.len(), AT_ONCE);
            assert_eq!(these.pending, if left > 0 { Pending::Something } else { Pending::Nothing });
            for cluster in &these.now {
                attempts.succeeded(cluster);
                due.remove(cluster);
            }
        }
        assert!(due.is_empty());
        assert_eq!(count(&mut attempts, &due, now), (0, Pending::Nothing));
        assert!(attempts.0.is_empty());
    }

    /// Clusters of a namespace without the right to ConfigMaps were tried in every round, with a line of the log for each.
    #[test]
    fn one_that_cannot_be_retired_is_left_alone_for_longer_and_longer_and_holds_up_no_other() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let (refused, others) = (clusters(0, AT_ONCE), clusters(100, 101));
        let due: BTreeSet<ClusterName> = refused.union(&others).cloned().collect();
        attempts.these(due.iter(), now);
        let first = attempts.these(due.iter(), now);
        assert_eq!((first.now, first.pending), (refused.clone(), Pending::Something));
        refused.iter().for_each(|cluster| attempts.failed(cluster, now));
        let next = attempts.these(due.iter(), now);
        assert_eq!((next.now, next.pending), (others.clone(), Pending::Nothing));
        attempts.succeeded(others.first().unwrap());

        let mut tries = 0;
        for _ in 0..24 * 60 * 60 / 10 {
            now += Duration::from_secs(10);
            for cluster in attempts.these(refused.iter(), now).now {
                attempts.failed(&cluster, now);
                tries += 1;
            }
        }
        assert!((20..35).contains(&(tries / AT_ONCE)), "{tries} in a day");
    }
}
