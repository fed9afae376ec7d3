//! The certificates of an authority that are recorded and not written into its Secret yet. Pure.
//!
//! While the Secret can be read and not written, certificates are issued all the same: that outage would else become an outage of
//! etcd, one lifetime later. Nothing is issued unrecorded, as the record in memory has
//! them, and a revocation finds them there. Both are bounded alike ([`super::issued::MOST`]): beyond it, the pod with the most
//! certificates loses those that end first, and `revoke` says since when the record is complete.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::issued::{Issued, Leaf};

/// How soon the record of a new authority is written, counted from the first certificate that it lacks.
const RECORD_WITHIN: Duration = Duration::from_secs(2);
/// So many certificates and revocations in it, some 4 KiB of the Secret, make this a second more …
const A_SECOND_MORE: usize = 16;
/// … up to this. A request outlives its certificate's answer by a minute at least, so a successor finds what a killed signer did not
/// write ([`crate::sign::recollection`]).
const RECORD_WITHIN_AT_MOST: Duration = Duration::from_secs(20);

/// How soon a record of so many certificates and revocations is written: the larger, the less often.
fn within(entries: usize) -> Duration {
    let more = u64::try_from(entries / A_SECOND_MORE).unwrap_or(u64::MAX);
    RECORD_WITHIN.saturating_add(Duration::from_secs(more)).min(RECORD_WITHIN_AT_MOST)
}

/// A record that is not written so long after it was due cannot be written just now.
const OVERDUE: Duration = Duration::from_secs(10);
/// How long requests stay at most whose certificates are in such a record: they would fill the API server's store. Kubernetes itself
/// deletes issued ones after as long.
const SPARES_FOR: Duration = Duration::from_secs(60 * 60);

/// See the module. Of thousands, few have any.
#[derive(Debug, Default)]
pub(in crate::sign) struct Unwritten(Option<Box<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    issued: Issued,
    /// Since when, and how long later the record is to be written.
    since: Option<(Instant, Duration)>,
    lost: bool,
}

/// What is there of one that is written.
static NONE: Issued = Issued::none();

impl Unwritten {
    fn pending(&mut self) -> &mut Pending {
        self.0.get_or_insert_default()
    }

    /// Keeps a certificate until it is written, in a record that has so many `entries` now. Returns how much later that is, if nothing
    /// else was to be written.
    pub(super) fn add(&mut self, serial: &str, leaf: Leaf, entries: usize, now: Instant) -> Option<Duration> {
        let pending = self.pending();
        pending.issued.note(serial, leaf);
        pending.begin(entries, now)
    }

    /// The record is lost. The next one is to say that it lacks what was issued before `now`, which ends at `end` at the latest, and
    /// which is not here. Returns how much later it is written; `None` if that was noted before: it is the same loss.
    pub(super) fn lost(&mut self, now: SystemTime, end: SystemTime, entries: usize) -> Option<Duration> {
        let pending = self.pending();
        if pending.lost {
            return None;
        }
        pending.lost = true;
        pending.issued.lost(now, end);
        Some(pending.begin(entries, Instant::now()).unwrap_or_default())
    }

    /// The entries that a record takes in when it was read again.
    pub(super) fn issued(&self) -> &Issued {
        self.0.as_ref().map_or(&NONE, |pending| &pending.issued)
    }

    /// See [`Issued::shrink_to`].
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        if let Some(pending) = &mut self.0 {
            pending.issued.shrink_to(bytes);
        }
    }

    /// True if all is written.
    pub(super) fn is_empty(&self) -> bool {
        self.since().is_none()
    }

    /// All were written.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    fn since(&self) -> Option<(Instant, Duration)> {
        self.0.as_ref()?.since
    }

    /// True if certificates are recorded here alone, since the Secret cannot be written: if this process is killed, their requests are
    /// all that tells of them.
    pub(in crate::sign) fn spares_requests(&self, now: Instant) -> bool {
        self.since()
            .is_some_and(|(since, wait)| (wait + OVERDUE..SPARES_FOR).contains(&now.saturating_duration_since(since)))
    }

    /// True if the record is to be written now.
    pub(in crate::sign) fn is_due(&self, now: Instant) -> bool {
        self.since().is_some_and(|(since, wait)| now.saturating_duration_since(since) >= wait)
    }
}

impl Pending {
    /// The time to write is that of the record as it is when the first is added: who rings then finds it due.
    fn begin(&mut self, entries: usize, now: Instant) -> Option<Duration> {
        let first = self.since.is_none();
        let (_, wait) = *self.since.get_or_insert_with(|| (now, within(entries)));
        first.then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::issued::MOST, *};

    fn leaf(pod: &str, minutes: u64) -> Leaf {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 20_000);
        Leaf::new(pod, format!("prod/{pod}"), pod, now + Duration::from_secs(60 * minutes), now)
    }

    #[test]
    fn it_is_due_two_seconds_after_the_first_certificate() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut unwritten = Unwritten::default();
        assert!(!unwritten.is_due(start) && unwritten.is_empty());
        assert_eq!(unwritten.add("1", leaf("app-0", 1), 15, start), Some(second * 2));
        assert_eq!(unwritten.add("2", leaf("app-0", 1), 16, start + second), None);
        assert!(!unwritten.is_due(start + second));
        assert!(
            unwritten.is_due(start + second * 2),
            "counted from the first, by the record of then: nothing rings again"
        );
        assert_eq!(unwritten.issued().len(), 2);
        let spares = |after: Duration| unwritten.spares_requests(start + after);
        let overdue = RECORD_WITHIN + OVERDUE;
        assert!(!spares(overdue - second) && spares(overdue) && spares(SPARES_FOR - second) && !spares(SPARES_FOR));
        unwritten.clear();
        assert!(!unwritten.spares_requests(start + overdue));
        assert!(unwritten.issued().len() == 0 && unwritten.is_empty());
        assert!(unwritten.add("3", leaf("app-0", 1), 0, start + second * 2).is_some());
        assert!(!unwritten.is_due(start + second * 3));
    }

    #[test]
    fn the_larger_a_record_is_the_longer_it_waits() {
        for (entries, seconds) in [(0, 2), (15, 2), (16, 3), (160, 12), (288, 20), (5000, 20), (usize::MAX, 20)] {
            let (start, due) = (Instant::now(), Duration::from_secs(seconds));
            let mut unwritten = Unwritten::default();
            assert_eq!(unwritten.add("1", leaf("app-0", 1), entries, start), Some(due), "{entries}");
            let almost = due.saturating_sub(Duration::from_millis(1));
            assert!(!unwritten.is_due(start + almost) && unwritten.is_due(start + due), "{entries}");
        }
    }

    #[test]
    fn a_loss_is_noted_once_until_it_is_written() {
        let at = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 20_000 + n);
        let mut unwritten = Unwritten::default();
        assert!(unwritten.lost(at(0), at(100), 0).is_some() && !unwritten.is_empty());
        assert_eq!(unwritten.add("1", leaf("app-0", 1), 0, Instant::now()), None);
        assert_eq!(unwritten.lost(at(1), at(100), 0), None, "the Secret is read again, and the certificate is here");
        let mut read = Issued::default();
        read.take_in(unwritten.issued());
        assert_eq!(read.lacks_before(at(2)), Some(86_400 * 20_000), "from the first loss on");
        unwritten.clear();
        assert!(unwritten.lost(at(2), at(100), 0).is_some(), "another one");
    }

    #[test]
    fn while_the_secret_cannot_be_written_it_holds_as_many_as_a_record_and_says_what_it_lacks() {
        let (now, mut unwritten, mut record) = (Instant::now(), Unwritten::default(), Issued::default());
        for n in 0..2 * u64::from(MOST) {
            let leaf = leaf(if n % 100 == 0 { "quiet" } else { "loud" }, 60 + n);
            record.note(&format!("{n:x}"), leaf.clone());
            unwritten.add(&format!("{n:x}"), leaf, record.len(), now);
        }
        assert_eq!(unwritten.issued().len(), usize::from(MOST));
        for n in (0..2 * u64::from(MOST)).step_by(100) {
            assert!(unwritten.issued().has(&format!("{n:x}")), "the other pod loses none");
        }
        // A record that is read again, as it was before all of them, is the one in memory then.
        let mut read = Issued::default();
        read.take_in(unwritten.issued());
        assert_eq!(read, record);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 20_000);
        assert!(read.lacks_before(at).is_some());
        let ended = at + Duration::from_secs(60 * (60 + 2 * u64::from(MOST)));
        let clocks = Duration::from_secs(65 * 60);
        assert_eq!(read.lacks_before(ended + clocks), None, "they have ended");
    }
}
