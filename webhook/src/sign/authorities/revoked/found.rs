//! Certificates of which the record knew nothing when an operator revoked those of their pod or key. Pure.

use std::time::SystemTime;

use etcd_tls_contract::crl::Reason;

use super::{Entry, Revoked};
use crate::sign::authorities::{
    epoch::seconds,
    issued::{Issued, Leaf},
};

impl Revoked {
    /// True if nothing would be issued to this holder or for this key.
    pub(in crate::sign::authorities) fn refuses_leaf(&self, leaf: &Leaf) -> bool {
        self.bars(leaf.holder()) || self.compromised(&leaf.key())
    }

    /// Revokes a certificate that was found, if its holder is barred or its key compromised: with the reason for which that was done, as
    /// far as `issued` tells. `None`: neither is so, or it is revoked already. `until`: the end of the CA.
    pub(in crate::sign::authorities) fn take_found(
        &mut self,
        serial: &str,
        leaf: &Leaf,
        issued: &Issued,
        (until, now): (SystemTime, SystemTime),
    ) -> Option<Reason> {
        if self.lists(serial) || !self.refuses_leaf(leaf) {
            return None;
        }
        let of_holder = |serial: &str| issued.get(serial).is_some_and(|other| other.holder() == leaf.holder());
        let of_holder = self.record.entries.iter().filter(|(serial, _)| of_holder(serial));
        let of_bar = of_holder.max_by_key(|(_, entry)| entry.0).map(|(_, entry)| Reason::of_code(entry.2));
        let reason = if self.compromised(&leaf.key()) { Some(Reason::KeyCompromise) } else { of_bar };
        let reason = reason.unwrap_or(Reason::Unspecified);
        if reason == Reason::KeyCompromise && !leaf.key().is_empty() {
            self.record.keys.entry(leaf.key().into_owned()).or_insert_with(|| seconds(until));
        }
        self.record.entries.insert(serial.to_owned(), Entry(seconds(now), leaf.until, reason.code()));
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{super::Bar, *};

    const DAY: Duration = Duration::from_secs(86400);

    #[test]
    fn one_of_a_barred_pod_or_a_compromised_key_is_revoked_for_the_same_reason_and_no_other_is() {
        let now = UNIX_EPOCH + DAY * 20_000;
        let times = (now + DAY * 300, now);
        let leaf = |holder: &str, key: &[u8]| {
            Leaf::new(holder, format!("prod/{holder}"), "app", now + DAY, now - DAY).for_key(key)
        };
        let (mut revoked, mut issued) = (Revoked::default(), Issued::default());
        let bar = |pod: &str| Bar(seconds(now + DAY), format!("prod/{pod}"));
        revoked.record.barred.extend(["left", "stolen", "unknown"].map(|pod| (pod.to_owned(), bar(pod))));
        for (serial, holder, reason) in
            [("1", "left", Reason::CessationOfOperation), ("2", "stolen", Reason::KeyCompromise)]
        {
            issued.note(serial, leaf(holder, serial.as_bytes()));
            revoked.record.entries.insert(serial.to_owned(), Entry(seconds(now), seconds(now + DAY), reason.code()));
        }
        revoked.record.keys.insert(leaf("", b"key").key().into_owned(), seconds(now + DAY));
        let mut take = |serial: &str, leaf: &Leaf| revoked.take_found(serial, leaf, &issued, times);
        assert_eq!(take("1", &leaf("left", b"1")), None, "it is revoked");
        assert_eq!(take("3", &leaf("other", b"other")), None);
        assert_eq!(take("4", &leaf("left", b"4")), Some(Reason::CessationOfOperation));
        assert_eq!(take("5", &leaf("stolen", b"5")), Some(Reason::KeyCompromise));
        assert_eq!(take("6", &leaf("unknown", b"6")), Some(Reason::Unspecified));
        assert_eq!(take("7", &leaf("other", b"key")), Some(Reason::KeyCompromise));
        assert_eq!(take("8", &leaf("other", b"5")), Some(Reason::KeyCompromise), "the key of the fifth");
        assert!(revoked.serials().eq(["1", "2", "4", "5", "6", "7", "8"]));
        assert_eq!(revoked.record.entries["4"].1, seconds(now + DAY), "until its end");
    }
}
