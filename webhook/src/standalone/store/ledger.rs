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

/// Valid certificates of one host or user for one domain, at most.
const MOST_OF_ONE: u16 = 256;

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
    pub(super) fn of(csr: &CertificateSigningRequest, chain: &Chain, at: Timestamp) -> Self {
        let signer = csr.spec.signer_name.parse::<SignerName>().ok();
        // The agents of before 1.19 name no signer.
        let by_name = || {
            if chain.common_name.starts_with(Role::Peer.common_name_prefix()) { Domain::Peer } else { Domain::Client }
        };
        let domain = listed(signer.as_ref().map_or_else(by_name, |signer| signer.domain));
        let holder = host_holder(host_of(&chain.common_name).unwrap_or(&chain.common_name));
        let cluster = signer.map(|signer| signer.cluster_name().to_string()).unwrap_or_default();
        let role = if domain == Domain::Peer { Role::Peer } else { Role::Client };
        let leaf = Leaf::new(&holder, String::new(), &chain.common_name, chain.not_after, at.into());
        Self {
            domain,
            serial: chain.serial.clone(),
            leaf: leaf.of_role(role).of_cluster(cluster).for_key(&chain.public_key),
            until: chain.not_after,
        }
    }
}

/// The domain on whose list a certificate is: that of clients also for metrics, which have no list of their own.
fn listed(domain: Domain) -> Domain {
    if domain == Domain::Metrics { Domain::Client } else { domain }
}

impl Ledger {
    /// Adds a certificate. One that has ended changes nothing.
    pub(super) fn note(&mut self, recorded: &Recorded, now: SystemTime) {
        if now < recorded.until {
            self.issued.entry(recorded.domain).or_default().note(&recorded.serial, recorded.leaf.clone());
        }
    }

    /// Refuses a certificate that revocations would not reach.
    ///
    /// # Errors
    /// Its key is revoked as compromised, or its holder has [`MOST_OF_ONE`] valid ones: more would push the holder's own out of the
    /// record, and `--user` would not find them.
    pub(super) fn admit(&self, name: &str, new: &Recorded) -> Result<(), ApiError> {
        if self.revoked.values().any(|revoked| revoked.compromised(&new.leaf.key)) {
            let message = "an operator has revoked this key as compromised; make another one".to_owned();
            return Err(ApiError::Conflict { name: name.to_owned(), message });
        }
        let full = self.issued.get(&new.domain).and_then(|of| of.full_until(&new.serial, &new.leaf, MOST_OF_ONE));
        full.map_or(Ok(()), |until| {
            let message = format!(
                "{:?} has {MOST_OF_ONE} valid certificates, as many as a host or user may hold; the first of them ends at {}",
                new.leaf.user,
                rfc3339::text(until)
            );
            Err(ApiError::TooManyRequests { message, retry_after_seconds: 60 })
        })
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
        let mut ledger = Ledger::default();
        for serial in 0..MOST_OF_ONE {
            let new = recorded(&serial.to_string(), Domain::Client, "app", 5000 + u64::from(serial));
            ledger.admit("x", &new).unwrap();
            ledger.note(&new, at(1000));
        }
        let more = recorded("more", Domain::Client, "app", 6000);
        let full = ledger.admit("x", &more).unwrap_err();
        assert!(matches!(&full, ApiError::TooManyRequests { message, .. } if message.contains("256 valid")), "{full}");
        ledger.admit("x", &recorded("1", Domain::Client, "app", 6000)).unwrap();
        ledger.admit("x", &recorded("more", Domain::Client, "other", 6000)).unwrap();
        ledger.admit("x", &recorded("more", Domain::Peer, "app", 6000)).unwrap();

        // A revocation that came between the judgement of a request and its answer.
        let of_key = |serial: &str, key: &[u8]| {
            let new = recorded(serial, Domain::Client, "thief", 5000);
            Recorded { leaf: new.leaf.for_key(key), ..new }
        };
        ledger.note(&of_key("stolen", b"key"), at(1000));
        let known = Known {
            issued: ledger.issued(Domain::Client).unwrap(),
            namespace: "a",
            signs_lists: true,
            live: &[],
            voters: &[],
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
        let again = ledger.admit("x", &of_key("again", b"key")).unwrap_err();
        assert!(matches!(&again, ApiError::Conflict { message, .. } if message.contains("compromised")), "{again}");
        ledger.admit("x", &of_key("again", b"another")).unwrap();
    }

    #[test]
    fn a_journal_written_anew_holds_the_record_and_the_revocations() {
        let mut ledger = Ledger::default();
        ledger.note(&recorded("1", Domain::Client, "app", 5000), at(1000));
        ledger.note(&recorded("2", Domain::Peer, "system:etcd-peer:m1", 5000), at(1000));
        ledger.note(&recorded("3", Domain::Client, "old", 900), at(1000));
        let authority = Authority::generate("a", KeyAlgorithm::EcdsaP256, Duration::from_secs(9000), at(1000)).unwrap();
        let known = Known {
            issued: ledger.issued(Domain::Client).unwrap(),
            namespace: "a",
            signs_lists: true,
            live: &[],
            voters: &[],
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
