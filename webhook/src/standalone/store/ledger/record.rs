//! The certificates of one domain, and an index of them: to judge a request reads those of its caller, never the whole record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::sign::ledger::{Issued, Leaf, Revoked};

/// A fact by which certificates are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    /// The certificate that was presented for it; not the empty one.
    Presented,
    /// [`Leaf::root`].
    Root,
    /// [`Leaf::origin`].
    Origin,
    /// [`Leaf::holder`].
    Holder,
}

type Text = Arc<str>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    issued: Issued,
    /// Each fact, its value, and the serial number.
    facts: BTreeSet<(Fact, Text, Text)>,
    /// How many certificates have a fact of this value; its text is shared.
    counts: BTreeMap<(Fact, Text), usize>,
    /// The end of each certificate, in seconds of the Unix epoch, and its serial number.
    ends: BTreeSet<(u64, Text)>,
}

impl From<Issued> for Record {
    fn from(issued: Issued) -> Self {
        let mut record = Self::default();
        for (serial, leaf) in issued.iter() {
            record.index(serial, leaf);
        }
        Self { issued, ..record }
    }
}

fn facts_of<'a>(serial: &'a str, leaf: &'a Leaf) -> impl Iterator<Item = (Fact, &'a str)> {
    let presented = leaf.line().map(|line| line.presented.as_str()).filter(|presented| !presented.is_empty());
    let always = [(Fact::Root, leaf.root(serial)), (Fact::Origin, leaf.origin()), (Fact::Holder, leaf.holder())];
    presented.map(|presented| (Fact::Presented, presented)).into_iter().chain(always)
}

impl Record {
    /// Without the index.
    pub(super) const fn issued(&self) -> &Issued {
        &self.issued
    }

    /// The certificate of this serial number.
    pub(super) fn get(&self, serial: &str) -> Option<&Leaf> {
        self.issued.get(serial)
    }

    /// The certificates with this fact that are valid at `at` (seconds of the Unix epoch), in the order of their serial numbers.
    pub(super) fn with<'a>(
        &'a self,
        fact: Fact,
        value: &'a str,
        at: u64,
    ) -> impl Iterator<Item = (&'a str, &'a Leaf)> + Clone {
        let first = (fact, Text::from(value), Text::from(""));
        let found = self.facts.range(first..).take_while(move |(of, is, _)| *of == fact && **is == *value);
        found
            .filter_map(|(_, _, serial)| Some((&**serial, self.issued.get(serial)?)))
            .filter(move |(_, leaf)| at < leaf.until)
    }

    /// How many certificates have this fact, valid or not.
    pub(super) fn count(&self, fact: Fact, value: &str) -> usize {
        self.counts.get(&(fact, value.into())).copied().unwrap_or_default()
    }

    /// How many certificates are valid at `at` (seconds of the Unix epoch) and not revoked; that of `serial` does not count.
    pub(super) fn valid(&self, at: u64, revoked: Option<&Revoked>, serial: &str) -> usize {
        let valid = |serial: &str| self.issued.get(serial).is_some_and(|leaf| at < leaf.until);
        let ended = self.ends.iter().take_while(|(end, _)| *end <= at).count();
        let revoked_ones = revoked.into_iter().flat_map(Revoked::serials).filter(|other| valid(other)).count();
        let own = valid(serial) && !revoked.is_some_and(|revoked| revoked.lists(serial));
        self.issued.len() - ended - revoked_ones - usize::from(own)
    }

    /// Puts a certificate in the place of the one of this serial number.
    pub(super) fn put(&mut self, serial: &str, leaf: Leaf) {
        self.remove(serial);
        self.index(serial, &leaf);
        self.issued.put(serial, leaf);
    }

    fn index(&mut self, serial: &str, leaf: &Leaf) {
        let text: Text = serial.into();
        for (fact, value) in facts_of(serial, leaf) {
            // Most begin a branch of their own.
            let shared = if value == serial { Arc::clone(&text) } else { value.into() };
            let entry = self.counts.entry((fact, shared));
            let value = Arc::clone(&entry.key().1);
            *entry.or_default() += 1;
            self.facts.insert((fact, value, Arc::clone(&text)));
        }
        self.ends.insert((leaf.until, text));
    }

    /// Removes what has ended at `at`, and beyond `room` revoked certificates, first those that end first. A valid one that is
    /// not revoked never leaves.
    /// Gives what left.
    pub(super) fn make_room(&mut self, room: usize, at: u64, revoked: &Revoked) -> Vec<(String, Leaf)> {
        let mut left = Vec::new();
        let mut leave = |record: &mut Self, serial: &str| {
            left.extend(record.remove(serial).map(|leaf| (serial.to_owned(), leaf)));
        };
        while let Some((_, serial)) = self.ends.first().filter(|(end, _)| *end <= at).cloned() {
            leave(self, &serial);
        }
        if self.issued.len() < room {
            return left;
        }
        let mut gone: Vec<(u64, String)> =
            revoked.serials().filter_map(|serial| Some((self.get(serial)?.until, serial.to_owned()))).collect();
        gone.sort_unstable();
        gone.truncate((self.issued.len() + 1).saturating_sub(room));
        gone.iter().for_each(|(_, serial)| leave(self, serial));
        left
    }

    /// Removes the certificate of this serial number.
    pub(super) fn remove(&mut self, serial: &str) -> Option<Leaf> {
        let leaf = self.issued.remove(serial)?;
        let text: Text = serial.into();
        for (fact, value) in facts_of(serial, &leaf) {
            let of = (fact, Text::from(value));
            self.facts.remove(&(fact, Arc::clone(&of.1), Arc::clone(&text)));
            match self.counts.get_mut(&of) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.counts.remove(&of)),
            }
        }
        self.ends.remove(&(leaf.until, text));
        Some(leaf)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        collections::BTreeMap,
        time::{Duration, UNIX_EPOCH},
    };

    use etcd_tls_contract::crl::Reason;

    use super::*;
    use crate::{
        revoke::{Action, Request, Selector},
        sign::ledger::{Known, Line},
    };

    const FACTS: [Fact; 4] = [Fact::Presented, Fact::Root, Fact::Origin, Fact::Holder];

    fn value(fact: Fact, serial: &str, leaf: &Leaf) -> String {
        let value = match fact {
            Fact::Presented => leaf.line().map_or("", |line| line.presented.as_str()),
            Fact::Root => leaf.root(serial),
            Fact::Origin => leaf.origin(),
            Fact::Holder => leaf.holder(),
        };
        value.to_owned()
    }

    /// Compares each answer with that of a reader of all certificates.
    fn agrees(record: &Record, revoked: &Revoked, at: u64) {
        for fact in FACTS {
            let mut all: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            let valid = record.issued().iter().filter(|(_, leaf)| at < leaf.until);
            valid.for_each(|(serial, leaf)| all.entry(value(fact, serial, leaf)).or_default().push(serial));
            all.remove("");
            for (value, serials) in &all {
                let found: Vec<&str> = record.with(fact, value, at).map(|(serial, _)| serial).collect();
                assert_eq!(found, *serials, "{fact:?} {value}");
                let alike = record.issued().iter().filter(|(serial, leaf)| self::value(fact, serial, leaf) == *value);
                assert_eq!(record.count(fact, value), alike.count(), "{fact:?} {value}");
            }
            let of_none = record.with(fact, "none", at).count() + record.with(fact, "", at).count();
            assert_eq!(of_none, 0);
        }
        for own in ["7", "none"] {
            let counts = |serial: &str, leaf: &Leaf| at < leaf.until && serial != own && !revoked.lists(serial);
            let all = record.issued().iter().filter(|(serial, leaf)| counts(serial, leaf)).count();
            assert_eq!(record.valid(at, Some(revoked), own), all);
        }
    }

    #[test]
    fn the_index_answers_as_a_reader_of_all_certificates_does() {
        let leaf = |n: u64| {
            let end = UNIX_EPOCH + Duration::from_secs(1000 + n * 7 % 90);
            let leaf = Leaf::new(&format!("host:{}", n % 5), String::new(), "m", end, UNIX_EPOCH);
            let line = Line {
                presented: if n.is_multiple_of(3) { String::new() } else { format!("{:x}", n / 2) },
                branch: format!("{:x}", n % 11),
                root: if n.is_multiple_of(2) { String::new() } else { format!("{:x}", n % 4) },
                origin: format!("user/{}", n % 6),
                elsewhere: false,
            };
            let leaf = leaf.to(format!("user/{}", n % 3));
            if n.is_multiple_of(10) { leaf } else { leaf.by(line) }
        };
        let mut record = Record::default();
        let mut revoked = Revoked::default();
        for n in 0..300 {
            record.put(&format!("{:x}", n % 200), leaf(n));
            if n % 20 == 7 {
                let known = Known {
                    issued: record.issued(),
                    namespace: "a",
                    signs_lists: true,
                    live: &[],
                    voters: &[],
                    by_record: None,
                    leaves_end: UNIX_EPOCH + Duration::from_secs(2000),
                    authority_end: UNIX_EPOCH + Duration::from_secs(2000),
                };
                let selector = Selector::Serial(format!("{:x}", n % 200));
                let (id, reason) = (n.to_string(), Reason::Unspecified);
                let request = Request { action: Action::Add, id, selector, reason, until: None };
                revoked.take(&request, &known, UNIX_EPOCH + Duration::from_secs(1));
            }
        }
        assert!(revoked.serials().count() >= 10);
        agrees(&record, &revoked, 0);
        agrees(&record, &revoked, 1040);
        let again = Record::from(record.issued().clone());
        assert_eq!((&again.facts, &again.ends, &again.counts), (&record.facts, &record.ends, &record.counts));
        assert_eq!(record.issued().len(), 200);

        // The ended ones go, and then revoked ones, those that end first.
        record.make_room(1000, 1040, &revoked);
        assert_eq!(record.issued().len(), again.with_end_after(1040));
        agrees(&record, &revoked, 1040);
        let before = record.issued().len();
        let valid = record.valid(1040, Some(&revoked), "none");
        record.make_room(before - 2, 1040, &revoked);
        assert_eq!((record.issued().len(), record.valid(1040, Some(&revoked), "none")), (before - 3, valid));
        record.make_room(1, 1040, &revoked);
        assert_eq!(record.issued().len(), valid, "a valid one that is not revoked never leaves");
        agrees(&record, &revoked, 1040);
    }

    impl Record {
        fn with_end_after(&self, at: u64) -> usize {
            self.issued.iter().filter(|(_, leaf)| at < leaf.until).count()
        }
    }
}
