//! The record of the valid certificates, and the revocations, of each domain: as the signer in a cluster keeps them in a CA's
//! Secret, here in the journal. Pure.
//!
//! A certificate enters the record with its request, by the same write. So neither is lost when the signer is killed.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    certificate::Chain,
    csr,
    names::SignerName,
    role::{Domain, Role},
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};

use crate::{
    rollover::rfc3339,
    sign::ledger::{Issued, Leaf, Revoked, host_holder},
    standalone::{error::ApiError, subject::host_of},
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: BTreeMap<Domain, Issued>,
    revoked: BTreeMap<Domain, Arc<Revoked>>,
}

/// Valid certificates that the record of a domain holds. Each takes some 500 bytes of memory, twice.
pub(super) const ROOM: usize = 16_384;

/// How many valid certificates of a domain that are not revoked a caller may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one host or client name.
    pub per_name: usize,
    /// In all.
    pub per_user: usize,
    /// All callers together: as many as the record holds.
    pub room: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        // A list holds 2,048: all that one caller has can be revoked, and others' beside it.
        Self { per_name: 256, per_user: 1_024, room: ROOM }
    }
}

/// A certificate for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    domain: Domain,
    serial: String,
    leaf: Leaf,
    until: SystemTime,
}

impl Recorded {
    /// The certificate of a request that was decided on at `at`.
    pub(super) fn of(csr: &CertificateSigningRequest, chain: &Chain, principal: String, at: Timestamp) -> Self {
        let signer = csr.spec.signer_name.parse::<SignerName>().ok();
        // The agents of before 1.19 name no signer.
        let by_name = || {
            if chain.common_name.starts_with(Role::Peer.common_name_prefix()) { Domain::Peer } else { Domain::Client }
        };
        let domain = listed(signer.as_ref().map_or_else(by_name, |signer| signer.domain));
        // A client whose CN is spelled like a host is none.
        let cn = &chain.common_name;
        let holder = host_of(cn).map_or_else(|| format!("client:{cn}"), host_holder);
        let cluster = signer.map(|signer| signer.cluster_name().to_string()).unwrap_or_default();
        let role = if domain == Domain::Peer { Role::Peer } else { Role::Client };
        let leaf = Leaf::new(&holder, String::new(), &chain.common_name, chain.not_after, at.into());
        Self {
            domain,
            serial: chain.serial.clone(),
            leaf: leaf.of_role(role).of_cluster(cluster).to(principal).for_key(&chain.public_key),
            until: chain.not_after,
        }
    }

    /// Its serial number.
    pub(super) fn serial(&self) -> &str {
        &self.serial
    }

    /// When it ends.
    pub(super) const fn until(&self) -> SystemTime {
        self.until
    }
}

/// The domain on whose list a certificate is: that of clients also for metrics, which have no list of their own.
fn listed(domain: Domain) -> Domain {
    if domain == Domain::Metrics { Domain::Client } else { domain }
}

impl Ledger {
    /// Adds a certificate to a record of `room`. One that has ended changes nothing. A full record forgets no other caller's: see
    /// [`Self::admit`].
    pub(super) fn note(&mut self, recorded: &Recorded, room: usize, now: SystemTime) {
        if now < recorded.until {
            let revoked = self.revoked.get(&recorded.domain).cloned().unwrap_or_default();
            let issued = self.issued.entry(recorded.domain).or_default();
            issued.note_within(room, &recorded.serial, recorded.leaf.clone(), |serial| revoked.lists(serial));
        }
    }

    /// Refuses a certificate that revocations would not reach: its key is revoked as compromised, its caller holds as many as
    /// it may, or the record is full and has none of this host or client, whose place the new one could take. No caller fills
    /// another's place, and revoked certificates fill none.
    ///
    /// # Errors
    /// Which of these it is, and the remedy.
    pub(super) fn admit(&self, name: &str, new: &Recorded, bounds: Bounds) -> Result<(), ApiError> {
        if self.revoked.values().any(|revoked| revoked.compromised(&new.leaf.key)) {
            let message = "an operator has revoked this key as compromised; make another one".to_owned();
            return Err(ApiError::Conflict { name: name.to_owned(), message });
        }
        let Some(issued) = self.issued.get(&new.domain) else { return Ok(()) };
        let revoked = self.revoked.get(&new.domain);
        let lists = |serial: &str| revoked.is_some_and(|revoked| revoked.lists(serial));
        let Leaf { user, principal, holder, at, .. } = &new.leaf;
        let counts = |serial: &str| serial != new.serial && !lists(serial);
        let of_caller = issued.count(*at, |serial, leaf| leaf.principal == *principal && counts(serial));
        let remedy = |who: &str| {
            format!(
                "Revoked certificates do not count: an operator revokes those that nobody needs with `etcd-tls-webhook revoke \
                 <namespace>/<cluster> --serial <number>` (the log has each `serial`), or all with `--user {who}`, those in use too"
            )
        };
        let message = if let Some(until) = issued.full_until(&new.serial, &new.leaf, bounds.per_name, lists) {
            format!(
                "{principal} has {} valid certificates of {user}, as many as one caller may hold of a name \
                 (--certificates-per-name); the first of them ends at {}. {}",
                bounds.per_name,
                rfc3339::text(until),
                remedy(user)
            )
        } else if of_caller >= bounds.per_user {
            format!(
                "{principal} has {of_caller} valid certificates, and {} are the limit of a caller (--certificates-per-user). {}",
                bounds.per_user,
                remedy("<CN>")
            )
        } else if issued.count(*at, |serial, _| counts(serial)) >= bounds.room
            && issued.count(*at, |_, leaf| leaf.holder == *holder) == 0
        {
            format!(
                "{} valid certificates are recorded, which is the limit, and none of {user}. {}",
                bounds.room,
                remedy("<CN>")
            )
        } else {
            return Ok(());
        };
        Err(ApiError::TooManyRequests { message, retry_after_seconds: 60 })
    }

    /// The valid certificates of a domain.
    pub(crate) fn issued(&self, domain: Domain) -> Option<&Issued> {
        self.issued.get(&domain)
    }

    /// The revocations of a domain.
    pub(crate) fn revoked(&self, domain: Domain) -> Option<&Arc<Revoked>> {
        self.revoked.get(&domain)
    }

    /// Whether a certificate is revoked.
    pub fn lists(&self, serial: &str) -> bool {
        self.revoked.values().any(|revoked| revoked.lists(serial))
    }

    /// Whether an operator has revoked a certificate of this public key because the key is compromised.
    pub fn compromised(&self, public_key: &[u8]) -> bool {
        let key = csr::key_digest(public_key);
        self.revoked.values().any(|revoked| revoked.compromised(&key))
    }

    /// Replaces the revocations of a domain.
    pub(super) fn revise(&mut self, domain: Domain, revoked: Arc<Revoked>) {
        self.revoked.insert(domain, revoked);
    }

    /// Takes an entry of the journal.
    pub(super) fn replay(&mut self, entry: LedgerEntry) -> Result<(), ApiError> {
        match entry {
            LedgerEntry::Issued(domain, record) => drop(self.issued.insert(domain, *record)),
            LedgerEntry::Revoked(domain, data) => {
                let revoked = Revoked::read(&data).map_err(|error| ApiError::Internal(error.to_string()))?;
                self.revoked.insert(domain, Arc::new(revoked));
            }
        }
        Ok(())
    }

    /// All of it, for a journal that is rewritten.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) fn entries(&self) -> Result<Vec<LedgerEntry>, ApiError> {
        let issued =
            self.issued.iter().map(|(domain, record)| Ok(LedgerEntry::Issued(*domain, Box::new(record.clone()))));
        issued.chain(self.revoked.iter().map(|(domain, revoked)| entry(*domain, revoked))).collect()
    }
}

/// An entry of the journal.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LedgerEntry {
    /// The record of a domain, in the place of what was read so far.
    Issued(Domain, Box<Issued>),
    /// The revocations of a domain. The list itself is signed again at a start.
    Revoked(Domain, BTreeMap<String, ByteString>),
}

/// The journal's entry of a domain's revocations.
///
/// # Errors
/// They cannot be encoded.
pub(super) fn entry(domain: Domain, revoked: &Revoked) -> Result<LedgerEntry, ApiError> {
    let data = revoked.record().map_err(|error| ApiError::Internal(error.to_string()))?;
    let data = data.map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).into_iter().collect();
    Ok(LedgerEntry::Revoked(domain, data))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::{Duration, UNIX_EPOCH};

    use etcd_tls_contract::{crl::Reason, key::KeyAlgorithm};

    use super::*;
    use crate::{
        ca::authority::Authority,
        revoke::{Action, Request, Selector},
        sign::ledger::Known,
    };

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn recorded(serial: &str, domain: Domain, user: &str, until: u64) -> Recorded {
        let leaf = Leaf::new(&host_holder(user), String::new(), user, at(until), at(1000));
        Recorded { domain, serial: serial.to_owned(), leaf: leaf.of_cluster("a/b".to_owned()), until: at(until) }
    }

    #[test]
    fn certificates_beyond_the_reach_of_revocations_are_refused() {
        let bounds = Bounds { per_name: 256, ..Bounds::default() };
        let mut ledger = Ledger::default();
        for serial in 0..256 {
            let new = recorded(&serial.to_string(), Domain::Client, "app", 5000 + serial);
            ledger.admit("x", &new, bounds).unwrap();
            ledger.note(&new, ROOM, at(1000));
        }
        let more = recorded("more", Domain::Client, "app", 6000);
        let full = ledger.admit("x", &more, bounds).unwrap_err();
        assert!(matches!(&full, ApiError::TooManyRequests { message, .. } if message.contains("256 valid")), "{full}");
        assert!(full.to_string().contains("revoke <namespace>/<cluster> --serial <number>`"), "{full}");
        ledger.admit("x", &recorded("1", Domain::Client, "app", 6000), bounds).unwrap();
        ledger.admit("x", &recorded("more", Domain::Client, "other", 6000), bounds).unwrap();
        ledger.admit("x", &recorded("more", Domain::Peer, "app", 6000), bounds).unwrap();
        let by_another = Recorded { leaf: more.leaf.clone().to("user/other".to_owned()), ..more };
        ledger.admit("x", &by_another, bounds).unwrap();

        // A revocation that came between the judgement of a request and its answer.
        let of_key = |serial: &str, key: &[u8]| {
            let new = recorded(serial, Domain::Client, "thief", 5000);
            Recorded { leaf: new.leaf.for_key(key), ..new }
        };
        ledger.note(&of_key("stolen", b"key"), ROOM, at(1000));
        let known = Known {
            issued: ledger.issued(Domain::Client).unwrap(),
            namespace: "a",
            signs_lists: true,
            live: &[],
            voters: &[],
            by_record: None,
            leaves_end: at(9000),
            authority_end: at(9000),
        };
        let selector = Selector::Serial("stolen".to_owned());
        let reason = Reason::KeyCompromise;
        let mut revoked = Revoked::default();
        revoked.take(
            &Request { action: Action::Add, id: "1".to_owned(), selector, reason, until: None },
            &known,
            at(1000),
        );
        ledger.revise(Domain::Client, Arc::new(revoked));
        let again = ledger.admit("x", &of_key("again", b"key"), bounds).unwrap_err();
        assert!(matches!(&again, ApiError::Conflict { message, .. } if message.contains("compromised")), "{again}");
        ledger.admit("x", &of_key("again", b"another"), bounds).unwrap();
    }

    fn of(principal: &str, user: &str, serial: &str, until: u64) -> Recorded {
        let new = recorded(serial, Domain::Client, user, until);
        Recorded { leaf: new.leaf.to(principal.to_owned()), ..new }
    }

    /// As one token may flood it, and each invented host by its own certificate.
    #[test]
    fn a_full_record_forgets_no_other_callers_certificate() {
        let bounds = Bounds { per_name: 256, per_user: 256, room: 512 };
        let mut ledger = Ledger::default();
        let take = |ledger: &mut Ledger, new: Recorded| {
            ledger.admit("x", &new, bounds)?;
            ledger.note(&new, bounds.room, at(1000));
            Ok::<_, ApiError>(())
        };
        let token = "user/bootstrap";
        for (serial, user) in [("app", "app"), ("first", "m1")] {
            take(&mut ledger, of(token, user, serial, 2000)).unwrap();
        }
        let mut taken = 2;
        let refused = loop {
            match take(&mut ledger, of(token, &format!("z{taken}"), &format!("t{taken}"), 9000)) {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
            assert!(taken <= bounds.room);
        };
        assert_eq!(taken, bounds.per_user);
        assert!(refused.to_string().contains("--certificates-per-user"), "{refused}");
        for n in 0..bounds.room - taken {
            take(&mut ledger, of(&format!("host/z{n}"), &format!("z{}", n + 2), &format!("h{n}"), 9000))
                .unwrap_or_else(|e| {
                    panic!("{n}: {e}");
                });
        }
        let has = |ledger: &Ledger, serial: &str| ledger.issued(Domain::Client).unwrap().has(serial);
        let full = take(&mut ledger, of("user/new", "new", "new", 9000)).unwrap_err();
        assert!(full.to_string().contains("which is the limit, and none of new"), "{full}");
        // A host's renewal by its own certificate takes the place of its own.
        take(&mut ledger, of("host/m1", "m1", "second", 2500)).unwrap();
        assert!(has(&ledger, "second") && !has(&ledger, "first") && has(&ledger, "app") && has(&ledger, "t2"));
        take(&mut ledger, of("host/m1", "m1", "third", 2600)).unwrap();
        assert!(has(&ledger, "third") && !has(&ledger, "second") && has(&ledger, "app") && has(&ledger, "t2"));
        let crowded = ledger.issued(Domain::Client).unwrap().count(0, |_, _| true);
        assert_eq!(crowded, bounds.room);
        let again: Issued =
            serde_json::from_slice(&serde_json::to_vec(ledger.issued(Domain::Client).unwrap()).unwrap()).unwrap();
        assert_eq!(again.count(0, |_, leaf| leaf.principal == "host/m1"), 1, "the journal holds it");
    }

    /// As commit ed104b6 wrote them, with no principal.
    #[test]
    fn certificates_of_an_earlier_record_are_revocable_and_fill_nobodys_place() {
        let line = r#"{"issued":["client",{"leaves":{"4f":{"at":1700000000,"until":1700005000,"holder":"host:app","pod":"",
            "user":"app","key":"k"}},"since":1700000000}]}"#;
        let mut ledger = Ledger::default();
        ledger.replay(serde_json::from_str(line).unwrap()).unwrap();
        assert!(ledger.issued(Domain::Client).unwrap().has("4f"));
        let bounds = Bounds { per_name: 1, ..Bounds::default() };
        ledger.admit("x", &of("user/a", "app", "50", 6000), bounds).unwrap();
    }

    #[test]
    fn a_journal_written_anew_holds_the_record_and_the_revocations() {
        let mut ledger = Ledger::default();
        ledger.note(&recorded("1", Domain::Client, "app", 5000), ROOM, at(1000));
        ledger.note(&recorded("2", Domain::Peer, "system:etcd-peer:m1", 5000), ROOM, at(1000));
        ledger.note(&recorded("3", Domain::Client, "old", 900), ROOM, at(1000));
        let authority = Authority::generate("a", KeyAlgorithm::EcdsaP256, Duration::from_secs(9000), at(1000)).unwrap();
        let known = Known {
            issued: ledger.issued(Domain::Client).unwrap(),
            namespace: "a",
            signs_lists: true,
            live: &[],
            voters: &[],
            by_record: None,
            leaves_end: at(9000),
            authority_end: at(9000),
        };
        let selector = Selector::User("app".to_owned());
        let request =
            Request { action: Action::Renewed, id: "1".to_owned(), selector, reason: Reason::Unspecified, until: None };
        let mut revoked = Revoked::default();
        revoked.take(&request, &known, at(1000));
        revoked.refresh(&authority, at(1000)).unwrap();
        let number = revoked.list().unwrap().number();
        ledger.revise(Domain::Client, Arc::new(revoked));
        let mut again = Ledger::default();
        for entry in ledger.entries().unwrap() {
            let line = serde_json::to_vec(&entry).unwrap();
            again.replay(serde_json::from_slice(&line).unwrap()).unwrap();
        }
        assert_eq!(again.issued(Domain::Peer).unwrap().peers(at(1000)).len(), 1);
        assert!(again.lists("1") && !again.lists("2") && !again.lists("3"));
        let mut revoked = Revoked::clone(again.revoked(Domain::Client).unwrap());
        assert_eq!(revoked.report().unwrap().count, 1);
        assert_eq!(revoked.refresh(&authority, at(1001)), Ok(true), "the list is signed anew");
        let list = revoked.list().unwrap();
        assert!(list.number() > number && list.entries().contains_key("1"));
        assert_eq!(revoked.refresh(&authority, at(5000)), Ok(true));
        assert!(revoked.list().unwrap().entries().is_empty(), "its certificate has ended");
    }
}
