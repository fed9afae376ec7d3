//! The record of the valid certificates, and the revocations, of each domain: as the signer in a cluster keeps them in a CA's
//! Secret, here in the journal. Pure.
//!
//! A certificate enters the record with its request, by the same write. So neither is lost when the signer is killed.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    certificate::Chain,
    csr,
    names::{ClusterName, SignerName},
    role::{Domain, Role},
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};

use crate::{
    rollover::rfc3339,
    sign::ledger::{Issued, Leaf, Line, Revoked, host_holder},
    standalone::{auth::PRESENTED, error::ApiError, subject::host_of},
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: BTreeMap<Domain, Issued>,
    revoked: BTreeMap<Domain, Arc<Revoked>>,
    /// The only cluster of this signer; empty: it has several.
    cluster: String,
}

/// Valid certificates of a branch that count against no bound of a caller: a host that renews is never refused for what others
/// took, also where these have its name. Of the domain, so for clients' servers and metrics together.
const BRANCH: usize = 5;

/// How many valid certificates of a domain that are not revoked a caller may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one host or client name.
    pub per_name: usize,
    /// In all; of a branch of renewals, one counts.
    pub per_user: usize,
    /// All callers together. A rule gives three quarters of it to new hosts and clients; the rest is for those that a person
    /// or the policy approves. As many again are for those that are recorded.
    pub room: usize,
}

impl Bounds {
    /// What new hosts and clients get by rules alone.
    const fn by_rules(self) -> usize {
        self.room - self.room / 4
    }

    /// What is recorded at most.
    const fn hard(self) -> usize {
        self.room * 2
    }
}

impl Default for Bounds {
    fn default() -> Self {
        // A list holds 2,048: all that one caller has can be revoked, and others' beside it.
        Self { per_name: 256, per_user: 1_024, room: 16_384 }
    }
}

/// A certificate for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    domain: Domain,
    serial: String,
    leaf: Leaf,
    until: SystemTime,
    /// The serial number of the certificate that its caller presented; empty: another credential.
    presented: String,
    /// Whether a person or the policy approved it.
    granted: bool,
}

impl Recorded {
    /// The certificate of a request that was decided on at `at`.
    pub(super) fn of(
        csr: &CertificateSigningRequest,
        chain: &Chain,
        principal: String,
        at: Timestamp,
        granted: bool,
    ) -> Self {
        let presented = csr.spec.extra.as_ref().and_then(|extra| extra.get(PRESENTED)?.first()).cloned();
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
            presented: presented.unwrap_or_default(),
            granted,
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
    /// The record of a signer of this cluster alone.
    pub(super) fn of_cluster(cluster: Option<&ClusterName>) -> Self {
        Self { cluster: cluster.map(ToString::to_string).unwrap_or_default(), ..Self::default() }
    }

    /// A certificate whose request named no cluster is of the only one.
    fn of_the_only_cluster(&self, leaf: Leaf) -> Leaf {
        if leaf.cluster.is_empty() { leaf.of_cluster(self.cluster.clone()) } else { leaf }
    }

    /// Adds a certificate to a record of `room`. One that has ended, or is recorded, changes nothing. A full record forgets
    /// revoked certificates alone: see [`Self::admit`].
    pub(super) fn note(&mut self, recorded: &Recorded, room: usize, now: SystemTime) {
        let known = self.issued.get(&recorded.domain).is_some_and(|issued| issued.has(&recorded.serial));
        if now < recorded.until && !known {
            let line = Some(Box::new(self.line(recorded)));
            let leaf = self.of_the_only_cluster(Leaf { line, ..recorded.leaf.clone() });
            let revoked = self.revoked.get(&recorded.domain).cloned().unwrap_or_default();
            let issued = self.issued.entry(recorded.domain).or_default();
            issued.note_within(room, &recorded.serial, leaf, |serial| revoked.lists(serial));
        }
    }

    /// How the caller came to a new certificate. It continues the branch of the one that was presented if that is of the same
    /// host or client and has no successor of this name, and the branch is short; else it begins a branch. It is charged to the
    /// caller of the presented one, as far back as the record has them; one that a person or the policy approved, to its host.
    fn line(&self, new: &Recorded) -> Line {
        let Leaf { user, principal, holder, at, .. } = &new.leaf;
        let valid = |serial: &str, leaf: &Leaf| *at < leaf.until && serial != new.serial && !self.lists(serial);
        let found = self.issued.iter().find_map(|(domain, issued)| Some((*domain, issued.get(&new.presented)?)));
        let found = found.filter(|(_, leaf)| valid(&new.presented, leaf));
        let presented = found.map(|(_, leaf)| leaf);
        // There are two records: of peers and of clients.
        let elsewhere = found.is_some_and(|(domain, leaf)| leaf.began_elsewhere() != (domain != new.domain));
        let origin = if new.granted { holder.as_str() } else { presented.map_or(principal.as_str(), Leaf::origin) };
        let succeeds = |serial: &str, leaf: &Leaf| {
            let by = leaf.line.as_ref().is_some_and(|line| line.presented == new.presented);
            by && leaf.user == *user && valid(serial, leaf)
        };
        let branch = presented.filter(|leaf| leaf.holder == *holder).map(|leaf| leaf.branch(&new.presented));
        let branch = branch.filter(|branch| {
            let within = |issued: &Issued| {
                issued.count(*at, |serial, leaf| leaf.branch(serial) == *branch && valid(serial, leaf)) < BRANCH
            };
            self.issued.values().all(|issued| issued.count(*at, succeeds) == 0)
                && self.issued.get(&new.domain).is_none_or(within)
        });
        Line {
            elsewhere: elsewhere && branch.is_some(),
            presented: new.presented.clone(),
            branch: branch.unwrap_or(&new.serial).to_owned(),
            origin: origin.to_owned(),
        }
    }

    /// Refuses a certificate that revocations would not reach: its key is revoked as compromised, its caller holds as many as
    /// it may, or the record is full. No caller fills another's place, and revoked certificates fill none. A renewal by the
    /// last certificate of a short branch is refused only where the record is full twice over.
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
        let recorded = issued.count(*at, |serial, _| counts(serial));
        let Line { branch, origin, .. } = self.line(new);
        if branch != new.serial && recorded < bounds.hard() {
            return Ok(());
        }
        let of_caller =
            issued.branches(*at, |serial, leaf| leaf.origin() == origin && !leaf.began_elsewhere() && counts(serial));
        let known = issued
            .count(*at, |serial, leaf| leaf.holder == *holder && leaf.principal == *principal && counts(serial))
            > 0;
        let room = match (known, new.granted) {
            (true, _) => bounds.hard(),
            (false, true) => bounds.room,
            (false, false) => bounds.by_rules(),
        };
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
                "{origin} has {of_caller} valid certificates (renewals do not count), and {} are the limit of a caller \
                 (--certificates-per-user). {}",
                bounds.per_user,
                remedy("<CN>")
            )
        } else if recorded >= room {
            let further = match (known, new.granted) {
                (true, _) => "",
                (false, true) => " for a new host or client",
                (false, false) => " for a new host or client that no person approves",
            };
            format!(
                "{recorded} valid certificates are recorded, and {room} are the limit{further} (--max-certificates). {}",
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
            LedgerEntry::Issued(domain, mut record) => {
                // Those of an earlier version.
                record.each(|leaf| *leaf = self.of_the_only_cluster(leaf.clone()));
                drop(self.issued.insert(domain, *record));
            }
            LedgerEntry::Leaf(domain, serial, leaf) => {
                let leaf = self.of_the_only_cluster(*leaf);
                self.issued.entry(domain).or_default().put(&serial, leaf);
            }
            LedgerEntry::Revoked(domain, data) => {
                let revoked = Revoked::read(&data).map_err(|error| ApiError::Internal(error.to_string()))?;
                self.revoked.insert(domain, Arc::new(revoked));
            }
        }
        Ok(())
    }

    /// The entry of a certificate, for the journal: its request alone does not tell to whom it is charged. `None`: it is not
    /// recorded.
    pub(super) fn entry_of(&self, recorded: &Recorded) -> Option<LedgerEntry> {
        let leaf = self.issued.get(&recorded.domain)?.get(&recorded.serial)?;
        Some(LedgerEntry::Leaf(recorded.domain, recorded.serial.clone(), Box::new(leaf.clone())))
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
    /// A certificate, after its request.
    Leaf(Domain, String, Box<Leaf>),
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
        let leaf = leaf.of_cluster("a/b".to_owned());
        let (serial, presented) = (serial.to_owned(), String::new());
        Recorded { domain, serial, leaf, until: at(until), presented, granted: false }
    }

    #[test]
    fn certificates_beyond_the_reach_of_revocations_are_refused() {
        let bounds = Bounds { per_name: 256, ..Bounds::default() };
        let mut ledger = Ledger::default();
        for serial in 0..256 {
            let new = recorded(&serial.to_string(), Domain::Client, "app", 5000 + serial);
            ledger.admit("x", &new, bounds).unwrap();
            ledger.note(&new, Bounds::default().room, at(1000));
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
        ledger.note(&of_key("stolen", b"key"), Bounds::default().room, at(1000));
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

    /// Of a host by its certificate `presented`.
    fn by(presented: &str, host: &str, serial: &str) -> Recorded {
        Recorded { presented: presented.to_owned(), ..of(&format!("host/{host}"), host, serial, 9000) }
    }

    fn take(ledger: &mut Ledger, new: &Recorded, bounds: Bounds) -> Result<(), ApiError> {
        ledger.admit("x", new, bounds)?;
        ledger.note(new, bounds.room, at(1000));
        Ok(())
    }

    const TOKEN: &str = "user/bootstrap";

    /// As one token may flood it, and each invented host by its own certificates.
    #[test]
    fn one_token_does_not_fill_the_record_by_hosts_that_it_invents() {
        let bounds = Bounds { per_name: 256, per_user: 64, room: 1024 };
        let mut ledger = Ledger::default();
        let first = |host: usize| (format!("z{host}"), format!("z{host}-first"));
        let invented = (0..100).take_while(|n| {
            let (host, first) = first(*n);
            take(&mut ledger, &of(TOKEN, &host, &first, 9000), bounds).is_ok()
        });
        let invented = invented.count();
        assert_eq!(invented, bounds.per_user);
        for (host, first) in (0..invented).map(first) {
            // Forks of the first one, and a line of renewals.
            let mut last = first.clone();
            for n in 0..100 {
                let (fork, next) = (format!("{host}-fork{n}"), format!("{host}-next{n}"));
                drop(take(&mut ledger, &by(&first, &host, &fork), bounds));
                if take(&mut ledger, &by(&last, &host, &next), bounds).is_ok() {
                    last = next;
                }
            }
        }
        let issued = ledger.issued(Domain::Client).unwrap();
        let taken = issued.count(0, |_, _| true);
        assert!(taken <= bounds.per_user * BRANCH, "{taken}");
        assert_eq!(issued.branches(0, |_, leaf| leaf.origin() == TOKEN), bounds.per_user);
        let refused = take(&mut ledger, &of(TOKEN, "new", "new", 9000), bounds).unwrap_err();
        assert!(refused.to_string().contains("--certificates-per-user"), "{refused}");
        take(&mut ledger, &of("user/new", "new", "new", 9000), bounds).unwrap();
        take(&mut ledger, &Recorded { granted: true, ..of(TOKEN, "approved", "approved", 9000) }, bounds).unwrap();
    }

    #[test]
    fn a_full_record_forgets_no_valid_certificate_and_keeps_place_for_renewals_and_approvals() {
        let bounds = Bounds { per_name: 256, per_user: 1024, room: 40 };
        let mut ledger = Ledger::default();
        take(&mut ledger, &of(TOKEN, "app", "app", 9000), bounds).unwrap();
        take(&mut ledger, &of(TOKEN, "m1", "first", 9000), bounds).unwrap();
        let new = |n: usize| of(&format!("user/{n}"), &format!("z{n}"), &format!("z{n}"), 9000);
        let rules = (0..bounds.room).take_while(|n| take(&mut ledger, &new(*n), bounds).is_ok()).count();
        assert_eq!(rules, 28, "three quarters, of which two are taken");
        let granted = |n| Recorded { granted: true, ..new(n) };
        let all = (rules..100).take_while(|n| take(&mut ledger, &granted(*n), bounds).is_ok()).count();
        assert_eq!(all, 10);
        // Who has one gets another, and keeps the first.
        take(&mut ledger, &of(TOKEN, "app", "app-again", 9000), bounds).unwrap();
        take(&mut ledger, &by("first", "m1", "second"), bounds).unwrap();
        let has = |serial: &str| ledger.issued(Domain::Client).unwrap().has(serial);
        assert!(["app", "app-again", "first", "second", "z0", "z27", "z30"].into_iter().all(has));
        let more =
            (0..100).take_while(|n| take(&mut ledger, &of(TOKEN, "app", &format!("m{n}"), 9000), bounds).is_ok());
        assert_eq!(more.count(), bounds.room - 2, "memory is bounded");
        let full = take(&mut ledger, &by("second", "m1", "third"), bounds).unwrap_err();
        assert!(full.to_string().contains("80 are the limit (--max-certificates)"), "{full}");
    }

    /// A thief has a certificate of the host by the host's bootstrap token, or an old one of its own.
    #[test]
    fn a_host_renews_whatever_others_took_of_its_name() {
        let bounds = Bounds { per_name: 16, per_user: 32, room: 1024 };
        let mut ledger = Ledger::default();
        take(&mut ledger, &of(TOKEN, "m1", "own", 9000), bounds).unwrap();
        take(&mut ledger, &of(TOKEN, "m1", "stolen", 9000), bounds).unwrap();
        take(&mut ledger, &by("own", "m1", "own-2"), bounds).unwrap();
        for presented in ["stolen", "own"] {
            for n in 0..100 {
                drop(take(&mut ledger, &by(presented, "m1", &format!("{presented}-{n}")), bounds));
            }
        }
        let full = take(&mut ledger, &by("stolen", "m1", "more"), bounds).unwrap_err();
        assert!(matches!(full, ApiError::TooManyRequests { .. }), "{full}");
        take(&mut ledger, &by("own-2", "m1", "own-3"), bounds).unwrap();
        // The journal holds it, each certificate by itself and the record as a whole.
        let mut again = Ledger::default();
        for serial in ["own", "stolen", "own-2", "own-3"] {
            let entry = ledger.entry_of(&of(TOKEN, "m1", serial, 9000)).unwrap();
            let line = serde_json::to_vec(&entry).unwrap();
            again.replay(serde_json::from_slice(&line).unwrap()).unwrap();
        }
        let whole: Issued =
            serde_json::from_slice(&serde_json::to_vec(ledger.issued(Domain::Client).unwrap()).unwrap()).unwrap();
        for issued in [again.issued(Domain::Client).unwrap(), &whole] {
            let leaf = issued.get("own-3").unwrap();
            assert_eq!((leaf.branch("own-3"), leaf.origin()), ("own", TOKEN));
        }
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
        ledger.note(&recorded("1", Domain::Client, "app", 5000), Bounds::default().room, at(1000));
        ledger.note(&recorded("2", Domain::Peer, "system:etcd-peer:m1", 5000), Bounds::default().room, at(1000));
        ledger.note(&recorded("3", Domain::Client, "old", 900), Bounds::default().room, at(1000));
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
