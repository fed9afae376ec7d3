//! The record of the valid certificates, and the revocations, of each domain: as the signer in a cluster keeps them in a CA's
//! Secret, here in the journal. Pure.
//!
//! A certificate enters the record with its request, by the same write. So neither is lost when the signer is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::{
    certificate::Chain,
    names::{ClusterName, SignerName},
    role::{Domain, Role},
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};

use super::revocations::Revocations;
use crate::{
    rollover::rfc3339,
    sign::ledger::{Issued, Leaf, Line, Revoked, host_holder},
    standalone::{auth::PRESENTED, error::ApiError, subject::host_of},
};

mod record;

use record::{Fact, Record};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: BTreeMap<Domain, Record>,
    revoked: Revocations,
    /// The changes that are not durable yet, in their order.
    changes: Vec<Changed>,
    /// The only cluster of this signer; empty: it has several.
    cluster: String,
}

/// A change of the record, and what undoes it.
#[derive(Clone, Debug)]
enum Changed {
    /// The certificate of this serial number is new.
    Added(Domain, String),
    /// This one left.
    Removed(Domain, String, Leaf),
}

/// Valid certificates of a branch that count against no bound of a caller: a host that renews is never refused for what others
/// took, also where these have its name. Of the domain, so for clients' servers and metrics together.
const BRANCH: usize = 5;

/// Branches with valid certificates that are charged as one: the first, and one of a host that asked again by the same
/// certificate, as after a lost answer. Each has a [`BRANCH`] of its own, so the holder of an old certificate leaves the host's
/// branch as it is. With more, one token could fill the part of the record that rules give ([`Bounds::by_rules`]).
const BRANCHES: usize = 2;

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
    /// The records that new hosts and clients get by rules alone.
    const fn by_rules(self) -> usize {
        self.room - self.room / 4
    }

    /// The largest number of records.
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
    /// True if a person or the policy approved it.
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
        if leaf.cluster().is_empty() { leaf.of_cluster(self.cluster.clone()) } else { leaf }
    }

    /// Adds a certificate to a record of `room`. One that has ended, or is recorded, changes nothing. A full record forgets
    /// revoked certificates alone: see [`Self::admit`].
    pub(super) fn note(&mut self, recorded: &Recorded, room: usize, now: SystemTime) {
        let known = self.issued.get(&recorded.domain).is_some_and(|record| record.get(&recorded.serial).is_some());
        if now < recorded.until && !known {
            let leaf = self.of_the_only_cluster(recorded.leaf.clone().by(self.line(recorded)));
            let revoked = self.revoked.get(recorded.domain).cloned().unwrap_or_default();
            let domain = recorded.domain;
            let record = self.issued.entry(domain).or_default();
            let gone = record.make_room(room, leaf.at, &revoked);
            self.changes.extend(gone.into_iter().map(|(serial, leaf)| Changed::Removed(domain, serial, leaf)));
            record.put(&recorded.serial, leaf);
            self.changes.push(Changed::Added(domain, recorded.serial.clone()));
        }
    }

    /// All changes so far are durable.
    pub(super) fn keep(&mut self) {
        self.changes = Vec::new();
    }

    /// Takes back the changes of the record that are not durable.
    pub(super) fn take_back(&mut self) {
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            match change {
                Changed::Added(domain, serial) => {
                    let record = self.issued.entry(domain).or_default();
                    drop(record.remove(&serial));
                }
                Changed::Removed(domain, serial, leaf) => self.issued.entry(domain).or_default().put(&serial, leaf),
            }
        }
    }

    /// How the caller came to a new certificate. It continues the branch of the one that was presented if that is of the same
    /// host or client and has no successor of this name, and the branch is short. If it has a successor, whose answer may have
    /// been lost, it begins a branch for which the first one is charged, as long as these are few; else a branch of its own. It
    /// is charged to the caller of the presented one, as far back as the record has them; one that a person or the policy
    /// approved, to its host.
    fn line(&self, new: &Recorded) -> Line {
        let (at, holder) = (&new.leaf.at, new.leaf.holder());
        let (user, principal) = (new.leaf.user(), new.leaf.principal());
        let valid = |serial: &str, leaf: &Leaf| *at < leaf.until && serial != new.serial && !self.lists(serial);
        let found = self.issued.iter().find_map(|(domain, record)| Some((*domain, record.get(&new.presented)?)));
        let found = found.filter(|(_, leaf)| valid(&new.presented, leaf));
        let presented = found.map(|(_, leaf)| leaf);
        // There are two records: of peers and of clients.
        let elsewhere = found.is_some_and(|(domain, leaf)| leaf.began_elsewhere() != (domain != new.domain));
        let origin = if new.granted { holder } else { presented.map_or(principal, Leaf::origin) };
        let before = presented.filter(|leaf| leaf.holder() == holder);
        let mut successors = self.issued.values().flat_map(|record| record.with(Fact::Presented, &new.presented, *at));
        let first = !successors.any(|(serial, leaf)| leaf.user() == user && valid(serial, leaf));
        // The valid certificates of the branch that is charged, each with its branch.
        let root = before.map(|leaf| leaf.root(&new.presented));
        let of_root = root.zip(self.issued.get(&new.domain)).into_iter().flat_map(|(root, record)| {
            let all = record.with(Fact::Root, root, *at).filter(|(serial, leaf)| valid(serial, leaf));
            all.map(|(serial, leaf)| leaf.branch(serial))
        });
        let branches: Vec<&str> = of_root.collect();
        let branch = before.map(|leaf| leaf.branch(&new.presented)).filter(|branch| {
            let of_branch = branches.iter().filter(|other| *other == branch);
            first && of_branch.count() < BRANCH
        });
        let few = branches.into_iter().collect::<BTreeSet<_>>().len() < BRANCHES;
        let root = root.filter(|_| branch.is_some() || (!first && few));
        let branch = branch.unwrap_or(&new.serial);
        Line {
            elsewhere: elsewhere && root.is_some(),
            presented: new.presented.clone(),
            root: root.filter(|root| *root != branch).unwrap_or_default().to_owned(),
            branch: branch.to_owned(),
            origin: origin.to_owned(),
        }
    }

    /// Refuses a certificate that revocations would not reach: its key is revoked as compromised, its caller holds as many as
    /// it may, or the record is full. No caller fills another's place, and revoked certificates fill none. A renewal by the
    /// last certificate of a short branch, and one that is asked for again, is refused only where the record is full twice over.
    ///
    /// # Errors
    /// Which of these it is, and the remedy.
    pub(super) fn admit(&self, name: &str, new: &Recorded, bounds: Bounds) -> Result<(), ApiError> {
        if self.revoked.compromised_digest(&new.leaf.key()) {
            let message = "an operator has revoked this key as compromised; make another one".to_owned();
            return Err(ApiError::Conflict { name: name.to_owned(), message });
        }
        let Some(record) = self.issued.get(&new.domain) else { return Ok(()) };
        let revoked = self.revoked.get(new.domain);
        let lists = |serial: &str| revoked.is_some_and(|revoked| revoked.lists(serial));
        let (at, holder) = (&new.leaf.at, new.leaf.holder());
        let (user, principal) = (new.leaf.user(), new.leaf.principal());
        let counts = |serial: &str| serial != new.serial && !lists(serial);
        // No bound is below that of the rules.
        let recorded = match record.issued().len() {
            few if few < bounds.by_rules() => few,
            _ => record.valid(*at, revoked.map(|revoked| &**revoked), &new.serial),
        };
        let Line { branch, root, origin, .. } = self.line(new);
        let charged = branch == new.serial && root.is_empty();
        if !charged && recorded < bounds.hard() {
            return Ok(());
        }
        // Those of the caller and of the name are read only where there are many.
        let of_caller = || {
            let all = record.with(Fact::Origin, &origin, *at);
            let charged = all.filter(|(serial, leaf)| !leaf.began_elsewhere() && counts(serial));
            charged.map(|(serial, leaf)| leaf.root(serial)).collect::<BTreeSet<_>>().len()
        };
        let few = record.count(Fact::Origin, &origin) < bounds.per_user;
        let of_caller = if few { 0 } else { of_caller() };
        let of_name = || {
            let all = record.with(Fact::Holder, holder, *at);
            all.filter(|(serial, leaf)| leaf.principal() == principal && counts(serial)).map(|(_, leaf)| leaf.until)
        };
        let known = of_name().next().is_some();
        let few = record.count(Fact::Holder, holder) < bounds.per_name;
        let ends: Vec<u64> = if few { Vec::new() } else { of_name().collect() };
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
        let first_end = ends.iter().min().filter(|_| ends.len() >= bounds.per_name);
        let message = if let Some(until) = first_end {
            format!(
                "{principal} has {} valid certificates of {user}, as many as one caller may hold of a name \
                 (--certificates-per-name); the first of them ends at {}. {}",
                bounds.per_name,
                rfc3339::text(UNIX_EPOCH + Duration::from_secs(*until)),
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
        self.issued.get(&domain).map(Record::issued)
    }

    /// The revocations of a domain.
    pub(crate) fn revoked(&self, domain: Domain) -> Option<&Arc<Revoked>> {
        self.revoked.get(domain)
    }

    /// To whom the certificate of this serial number is charged, where it is recorded.
    pub(super) fn origin_of(&self, serial: &str) -> Option<&str> {
        self.issued.values().find_map(|record| record.get(serial)).map(Leaf::origin)
    }

    /// True if a certificate is revoked.
    pub fn lists(&self, serial: &str) -> bool {
        self.revoked.lists(serial)
    }

    /// The revocations of all domains.
    pub(super) const fn revocations(&self) -> &Revocations {
        &self.revoked
    }

    /// Replaces the revocations of a domain.
    pub(super) fn revise(&mut self, domain: Domain, revoked: Arc<Revoked>) {
        self.revoked.revise(domain, revoked);
    }

    /// Takes an entry of the journal.
    pub(super) fn replay(&mut self, entry: LedgerEntry) -> Result<(), ApiError> {
        match entry {
            LedgerEntry::Issued(domain, issued) => {
                let mut record = Record::from(*issued);
                // Those of an earlier version.
                let unnamed: Vec<_> = record.issued().iter().filter(|(_, leaf)| leaf.cluster().is_empty()).collect();
                let unnamed: Vec<_> =
                    unnamed.into_iter().map(|(serial, leaf)| (serial.to_owned(), leaf.clone())).collect();
                unnamed.into_iter().for_each(|(serial, leaf)| record.put(&serial, self.of_the_only_cluster(leaf)));
                drop(self.issued.insert(domain, record));
            }
            LedgerEntry::Leaf(domain, serial, leaf) => {
                let leaf = self.of_the_only_cluster(*leaf);
                self.issued.entry(domain).or_default().put(&serial, leaf);
            }
            LedgerEntry::Revoked(domain, data) => {
                let revoked = Revoked::read(&data).map_err(|error| ApiError::Internal(error.to_string()))?;
                self.revoked.revise(domain, Arc::new(revoked));
            }
        }
        Ok(())
    }

    /// The entry of a certificate, for the journal: its request alone does not tell to whom it is charged. `None`: it is not
    /// recorded.
    pub(super) fn entry_of<'a>(&'a self, recorded: &'a Recorded) -> Option<LedgerLine<'a>> {
        let leaf = self.issued.get(&recorded.domain)?.get(&recorded.serial)?;
        Some(LedgerLine::Leaf(recorded.domain, &recorded.serial, leaf))
    }

    /// All of it, for a journal that is rewritten: a record is emptied, and then filled by one entry for each certificate.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = LedgerLine<'_>>, ApiError> {
        let issued = self.issued.iter().flat_map(|(domain, record)| {
            let leaves = record.issued().iter().map(|(serial, leaf)| LedgerLine::Leaf(*domain, serial, leaf));
            std::iter::once(LedgerLine::Issued(*domain, record.issued().emptied())).chain(leaves)
        });
        let revoked = self.revoked.iter().map(|(domain, revoked)| entry(domain, revoked));
        Ok(issued.chain(revoked.collect::<Result<Vec<_>, _>>()?))
    }
}

/// A [`LedgerEntry`], as it is written.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LedgerLine<'a> {
    /// See [`LedgerEntry::Issued`].
    Issued(Domain, Issued),
    /// See [`LedgerEntry::Leaf`].
    Leaf(Domain, &'a str, &'a Leaf),
    /// See [`LedgerEntry::Revoked`].
    Revoked(Domain, BTreeMap<String, ByteString>),
}

/// An entry of the journal.
#[derive(Clone, Debug, serde::Deserialize)]
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
pub(super) fn entry(domain: Domain, revoked: &Revoked) -> Result<LedgerLine<'static>, ApiError> {
    let data = revoked.record().map_err(|error| ApiError::Internal(error.to_string()))?;
    let data = data.map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).into_iter().collect();
    Ok(LedgerLine::Revoked(domain, data))
}

#[cfg(test)]
mod tests;
