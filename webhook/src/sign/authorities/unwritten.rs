//! The certificates of an authority that are recorded and not written into its Secret yet. Pure.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::issued::Leaf;

/// How soon the record is written, counted from the first certificate that it lacks. A full record is 350 KiB, so it is written no
/// more often than this.
pub(in crate::sign) const RECORD_WITHIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(in crate::sign) struct Unwritten {
    leaves: BTreeMap<String, Leaf>,
    since: Option<Instant>,
}

impl Unwritten {
    /// Keeps a certificate until it is written. Whether it is the only one.
    pub(super) fn add(&mut self, serial: &str, leaf: Leaf, now: Instant) -> bool {
        self.leaves.insert(serial.to_owned(), leaf);
        let first = self.since.is_none();
        self.since.get_or_insert(now);
        first
    }

    /// The certificates by serial number, for a record that was read again.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Leaf)> {
        self.leaves.iter()
    }

    /// All were written.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the record is to be written now.
    pub(in crate::sign) fn is_due(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= RECORD_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_two_seconds_after_the_first_certificate() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let end = std::time::SystemTime::now() + second;
        let leaf = || Leaf::new("uid", "prod/app-0".to_owned(), "app", end, std::time::SystemTime::now());
        let mut unwritten = Unwritten::default();
        assert!(!unwritten.is_due(start));
        assert!(unwritten.add("1", leaf(), start));
        assert!(!unwritten.add("2", leaf(), start + second));
        assert!(!unwritten.is_due(start + second));
        assert!(unwritten.is_due(start + second * 2), "counted from the first");
        assert_eq!(unwritten.iter().count(), 2);
        unwritten.clear();
        assert_eq!(unwritten.iter().count(), 0);
        assert!(unwritten.add("3", leaf(), start + second * 2));
        assert!(!unwritten.is_due(start + second * 3));
    }
}
