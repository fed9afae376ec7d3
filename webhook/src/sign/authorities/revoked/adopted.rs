//! A published list that is newer than all that the record knows: the authority's Secret is an older one, which somebody restored.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::crl::{Crl, Reason, Revocation};

use super::{Entry, MOST, Revoked};
use crate::{
    ca::authority::Authority,
    sign::authorities::{epoch::seconds, issued::Issued, leaf::Key},
};

/// The inputs for judging a published list and the ends of its entries.
pub(in crate::sign::authorities) struct Trust<'a> {
    /// The CA that signs.
    pub(in crate::sign::authorities) active: &'a Authority,
    /// The one that signs next, which may have signed since the Secret was saved. The one before is not asked: who stole its
    /// key could set the list back.
    pub(in crate::sign::authorities) next: Option<&'a Authority>,
    /// The certificates of the record.
    pub(in crate::sign::authorities) issued: &'a Issued,
    /// When an entry leaves of which neither the record nor the Secret knows the end.
    pub(in crate::sign::authorities) unknown_end: SystemTime,
}

impl Revoked {
    /// Takes the entries of `list` in the place of its own, if a CA of `trust` signed it and its number is higher than all that
    /// the record knows. Returns true if it did. What the list lacks was taken back, or has ended: it is not revoked any more. An
    /// entry's end is the one of the record, else the one that the Secret has of it, else [`Trust::unknown_end`].
    ///
    /// The list says neither which pods are barred nor which keys. The pods stay as they are; so do the keys, but for those of
    /// what was taken back and of listed certificates that the record has. A certificate of such a key that was issued since, while
    /// the list could not be read, is revoked, too.
    pub(in crate::sign::authorities) fn adopt(&mut self, list: Crl, trust: &Trust<'_>) -> bool {
        if list.number() <= self.record.number {
            return false;
        }
        let by_active = list.verify(trust.active.chain()).is_ok();
        if !by_active && trust.next.is_none_or(|next| list.verify(next.chain()).is_err()) {
            return false;
        }
        let end = |serial: &str| {
            let known = trust.issued.get(serial).map(|leaf| leaf.until);
            let known = known.or_else(|| self.record.entries.get(serial).map(|entry| entry.1));
            known.unwrap_or_else(|| seconds(trust.unknown_end))
        };
        let entry = |(serial, revocation): (&String, &Revocation)| {
            (serial.clone(), Entry(seconds(revocation.at), end(serial), revocation.reason.code()))
        };
        let entries: BTreeMap<String, Entry> = list.entries().iter().map(entry).collect();
        let gone = trust.issued.keys(self.record.entries.keys().filter(|serial| !entries.contains_key(*serial)));
        let compromised = || entries.iter().filter(|(_, entry)| Reason::of_code(entry.2) == Reason::KeyCompromise);
        let barred: BTreeSet<String> = trust.issued.keys(compromised().map(|(serial, _)| serial));
        let since = compromised().flat_map(|(serial, entry)| {
            let later = trust.issued.of_its_key_since(serial, entry.0);
            later.map(|(serial, until)| (serial.to_owned(), Entry(entry.0, until, entry.2)))
        });
        let since: Vec<(String, Entry)> = since.collect();
        self.record.keys.retain(|key, _| barred.contains(key) || !gone.contains(key));
        let room = MOST.saturating_sub(self.record.keys.len());
        let new: Vec<String> =
            barred.into_iter().filter(|key| !self.record.keys.contains_key(key)).take(room).collect();
        let until = seconds(trust.active.not_after());
        self.record.keys.extend(new.into_iter().map(|key| (key, until)));
        self.record.entries = entries;
        for (serial, entry) in since {
            self.record.entries.entry(serial).or_insert(entry);
        }
        self.record.number = list.number();
        // A list of the next CA is signed anew.
        self.record.signed_by = if by_active { Key::new(&trust.active.generation()) } else { Key::default() };
        self.list = Some(Arc::new(list));
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, UNIX_EPOCH};

    use etcd_tls_contract::{key::KeyAlgorithm, life::BACKDATE};

    use super::*;
    use crate::{
        ca::crl,
        sign::authorities::{epoch::time, issued::Leaf},
    };

    const DAY: Duration = Duration::from_secs(86400);

    fn now() -> SystemTime {
        UNIX_EPOCH + DAY * 20_000
    }

    fn ca(name: &str) -> Authority {
        Authority::generate(name, KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap()
    }

    fn list(of: &Authority, number: u64, serials: &[&str]) -> Crl {
        let revoked = |serial| crl::Revoked { serial, at: now(), reason: Reason::KeyCompromise };
        crl::sign(of, number, serials.iter().map(|serial| revoked(serial)), now()).unwrap()
    }

    fn knows(active: &Authority, number: u64, serials: &[&str]) -> Revoked {
        let mut revoked = Revoked::default();
        let trust = Trust { active, next: None, issued: &Issued::default(), unknown_end: now() + DAY };
        assert!(revoked.adopt(list(active, number, serials), &trust));
        revoked
    }

    #[test]
    fn a_newer_list_of_its_own_ca_is_the_state_and_nothing_else_is() {
        let (one, two, other) = (ca("one"), ca("two"), ca("other"));
        let before = knows(&one, 100, &["4f0a", "4f0b"]);
        let mut issued = Issued::default();
        let leaf =
            |until: SystemTime, key: &[u8]| Leaf::new("u", "prod/app".to_owned(), "app", until, now()).for_key(key);
        issued.note("4f0c", leaf(now() + DAY * 3, b"c"));
        issued.note("4f0b", leaf(now() + DAY * 2, b"b"));
        let trust = |next| Trust { active: &one, next, issued: &issued, unknown_end: now() + DAY * 300 };
        for (why, refused) in [
            ("older", list(&one, 99, &["4f0c"])),
            ("of the same number", list(&one, 100, &["4f0c"])),
            ("of another CA", list(&other, 101, &["4f0c"])),
        ] {
            let mut after = before.clone();
            assert!(!after.adopt(refused, &trust(None)), "{why}");
            assert_eq!(after, before, "{why}");
        }
        let mut after = before.clone();
        assert!(!after.adopt(list(&two, 101, &["4f0c"]), &trust(None)));
        assert!(after.adopt(list(&two, 101, &["4f0c"]), &trust(Some(&two))), "the CA that is published signs next");
        assert!(after.refresh(&one, now()).unwrap(), "signed anew, by the CA that signs");
        assert_eq!(after.list().unwrap().verify(one.chain()), Ok(()));

        let mut after = before;
        let newer = list(&one, 1 << 40, &["4f0a", "4f0c", "4f0d"]);
        assert!(after.adopt(newer.clone(), &trust(None)));
        let ends: Vec<_> = after.record.entries.iter().map(|(serial, e)| (serial.as_str(), time(e.1))).collect();
        let (known, before, unknown) = (now() + DAY * 3, now() + DAY, now() + DAY * 300);
        assert_eq!(ends, [("4f0a", before), ("4f0c", known), ("4f0d", unknown)], "4f0b was taken back");
        assert!(after.compromised(&etcd_tls_contract::csr::key_digest(b"c")));
        assert!(!after.compromised(&etcd_tls_contract::csr::key_digest(b"b")));
        // While the list could not be read, the key got another certificate.
        let mut later = issued.clone();
        let renewed = Leaf::new("u", "prod/app".to_owned(), "app", now() + DAY * 4, now() + DAY).for_key(b"c");
        later.note("4f0e", renewed);
        let mut both = knows(&one, 100, &["4f0a"]);
        assert!(both.adopt(newer.clone(), &Trust { issued: &later, ..trust(None) }));
        assert!(["4f0a", "4f0c", "4f0d", "4f0e"].iter().all(|serial| both.lists(serial)));
        assert!(both.refresh(&one, now() + DAY).unwrap(), "the list lacks one, so another is signed");
        assert!(both.list().unwrap().entries().contains_key("4f0e"));
        assert!(!after.refresh(&one, now()).unwrap(), "the same list stays");
        assert_eq!(**after.list().unwrap(), newer);
        assert!(after.refresh(&one, known + BACKDATE).unwrap(), "entries leave after their certificates");
        assert!(after.list().unwrap().entries().keys().eq(["4f0d"]));
        assert_eq!(after.list().unwrap().replaces(&newer), Ok(true), "the number does not go back");
    }
}
