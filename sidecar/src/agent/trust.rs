//! Trust bundles as kubelet mounts them and the API server sends them, and whether one is taken: bundle first, leaf later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    future::pending,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::{
    certificate::Bundle,
    crl::{Crl, CrlError},
    names,
    role::{Domain, Role},
};

use crate::{
    agent::pushed::Pushed,
    os::directory_watch::DirectoryWatch,
    store::{Entry, Set},
};

/// A ConfigMap holds 1 MiB at most.
const MAX_BUNDLE: u64 = 1024 * 1024;

/// Why a bundle on offer is not taken; the one in use stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error("{}: {message}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// It is none.
    #[error("{}: {message}; the bundle in use stays", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// It would cut us off from peers that hold what we hold.
    #[error(
        "the {domain} bundle on offer lacks the CA of the {role} certificate in use (serial {serial}); the bundle in use \
         stays: publish the new CA beside the old one"
    )]
    LacksIssuer {
        /// The bundle's domain.
        domain: Domain,
        /// The certificate's role.
        role: Role,
        /// The serial number of the certificate.
        serial: String,
        /// Digest of the bundle on offer.
        offered: String,
    },
    /// The signer has not stated that it is in force.
    #[error(
        "the {domain} bundle on offer (digest {offered}) is not in force: {}; the bundle in use stays. Check who \
         else writes the trust ConfigMap. The signer repairs it, and kubelet brings it to the pod within two minutes",
        stated(named.as_deref())
    )]
    NotInForce {
        /// The bundle's domain.
        domain: Domain,
        /// Digest of the bundle on offer.
        offered: String,
        /// The digest that the signer stated last.
        named: Option<String>,
        /// True if the signer was asked since it is on offer.
        asked: bool,
        /// Roles whose certificates it would refuse.
        lacks: Vec<Role>,
    },
}

fn stated(named: Option<&str>) -> String {
    named.map_or_else(|| "the signer has not stated it".to_owned(), |named| format!("the signer states {named}"))
}

impl TrustError {
    /// True if it is merely asked about: no refusal yet.
    pub const fn is_asked_about(&self) -> bool {
        matches!(self, Self::NotInForce { asked: false, .. })
    }
}

/// The names of the bundles' files.
#[derive(Clone, Debug)]
enum Layout {
    /// `<domain>.crt` in the directory.
    Domains,
    /// The path is one file for every domain.
    File,
    /// `<role>/ca.crt` in the directory; the roles that the pod has.
    Roles(BTreeSet<Role>),
    /// None: they come with the issuer's answers.
    Answers,
}

/// Where the bundles on offer are: a mounted directory with `peer.crt`, `client.crt` and `metrics.crt`, or one file for
/// all.
#[derive(Clone, Debug)]
pub struct TrustDir {
    path: PathBuf,
    layout: Layout,
    ours: bool,
    /// Where our signer's revocation lists are.
    lists: Option<PathBuf>,
    /// The same ConfigMap, watched through the API server.
    pushed: Option<Arc<Pushed>>,
}

impl TrustDir {
    /// The mounted directory `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), layout: Layout::Domains, ours: false, lists: None, pushed: None }
    }

    /// One file for every domain, where the CAs are shared.
    pub fn file(path: &Path) -> Self {
        Self { path: path.to_owned(), layout: Layout::File, ours: false, lists: None, pushed: None }
    }

    /// The volume that kubelet keeps for `roles`, with their bundles beside the certificates.
    pub fn projected(path: &Path, roles: &BTreeSet<Role>) -> Self {
        Self { path: path.to_owned(), layout: Layout::Roles(roles.clone()), ours: false, lists: None, pushed: None }
    }

    /// No directory: the bundle comes with the issuer's answers.
    pub fn of_answers() -> Self {
        Self { path: PathBuf::new(), layout: Layout::Answers, ours: false, lists: None, pushed: None }
    }

    /// True if the bundle comes with the issuer's answers.
    pub const fn is_of_answers(&self) -> bool {
        matches!(self.layout, Layout::Answers)
    }

    /// The file of `domain`.
    fn file_of(&self, domain: Domain) -> PathBuf {
        match &self.layout {
            Layout::File => self.path.clone(),
            Layout::Domains | Layout::Answers => self.path.join(domain.trust_key()),
            Layout::Roles(roles) => {
                let role = roles.iter().find(|role| role.domain() == domain);
                self.path.join(role.map_or(domain.as_str(), |role| role.as_str())).join(names::CA_FILE)
            }
        }
    }

    /// The same, where our signer publishes what is in it: a CA leaves its bundles when all who live trust the next one and
    /// hold its certificates. Of others no such order is known.
    pub fn of_our_signer(self, ours: bool) -> Self {
        let lists = (ours && matches!(self.layout, Layout::Domains)).then(|| self.path.clone());
        Self { ours, lists, ..self }
    }

    /// The same, with our signer's revocation lists in `dir`, where an operator gives the bundles.
    pub fn with_lists(self, dir: &Path) -> Self {
        Self { lists: Some(dir.to_owned()), ..self }
    }

    /// The same, with what the API server sends of the ConfigMap that is mounted.
    pub fn with_pushed(self, pushed: Arc<Pushed>) -> Self {
        Self { pushed: Some(pushed), ..self }
    }

    /// The watched content, if the ConfigMap is watched.
    pub const fn pushed(&self) -> Option<&Arc<Pushed>> {
        self.pushed.as_ref()
    }

    /// Ends when the API server has sent something new.
    pub async fn changed(&self) {
        match &self.pushed {
            Some(pushed) => pushed.changed().await,
            None => pending().await,
        }
    }

    /// The content on offer for `key`: the newer of the mounted and the `watched` one.
    fn content(&self, key: &str, path: &Path, watched: bool) -> io::Result<Vec<u8>> {
        let mounted = read_bounded(path);
        match &self.pushed {
            Some(pushed) if watched => pushed.newest(key, mounted),
            _ => mounted,
        }
    }

    /// True if our signer publishes what is in it, so that a bundle is believed only by the signer's statement.
    pub const fn is_ours(&self) -> bool {
        self.ours
    }

    /// The roles among the refused bundles whose certificate's CA has left the bundle, with the bundle's digest. A member that
    /// missed a rollover requests a certificate of the new CA at once instead of at its renewal. Without a known order of
    /// bundles there are none: a CA swapped by mistake would give all members certificates that no member accepts.
    pub fn outdated(&self, refused: &[(Domain, TrustError)]) -> BTreeMap<Role, String> {
        let of = |error: &TrustError| match error {
            TrustError::LacksIssuer { role, offered, .. } if self.ours => Some((*role, offered.clone())),
            TrustError::LacksIssuer { .. }
            | TrustError::NotInForce { .. }
            | TrustError::Unreadable { .. }
            | TrustError::Unusable { .. } => None,
        };
        refused.iter().filter_map(|(_, error)| of(error)).collect()
    }

    /// The bundle on offer for `domain`.
    ///
    /// # Errors
    /// There is none, or it is garbage, empty or huge.
    pub fn read(&self, domain: Domain) -> Result<Bundle, TrustError> {
        let path = self.file_of(domain);
        let pem = self
            .content(domain.trust_key(), &path, self.ours)
            .map_err(|e| TrustError::Unreadable { path: path.clone(), message: e.to_string() })?;
        Bundle::parse(&pem).map_err(|e| TrustError::Unusable { path, message: e.to_string() })
    }

    /// The revocation list on offer for `domain`, unless it is `held` already, byte for byte; `None`: there is none, because the
    /// signer is of an earlier version, its CA may sign none, or the bundles are not our signer's.
    ///
    /// # Errors
    /// It is garbage or huge.
    pub fn list(&self, domain: Domain, held: Option<&Crl>) -> Result<Option<Crl>, CrlError> {
        let (Some(key), Some(dir)) = (domain.crl_key(), &self.lists) else { return Ok(None) };
        let der = match self.content(key, &dir.join(key), true) {
            Ok(der) => der,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CrlError::Unreadable(error.to_string())),
        };
        if held.is_some_and(|held| held.der() == der) {
            return Ok(None);
        }
        let offered = Crl::parse(&der)?;
        // kubelet may bring a list after the API server has sent the next one: that is late and no attack.
        let late = |held: &Crl| {
            offered.number() < held.number() && self.pushed.as_ref().is_some_and(|pushed| pushed.is(key, held.der()))
        };
        Ok(Some(offered.clone()).filter(|_| !held.is_some_and(late)))
    }

    /// Notifies when kubelet swaps the directory's contents. It watches the directory instead of the files: they are links, and
    /// kubelet replaces their targets.
    ///
    /// # Errors
    /// The directory is not there, or the kernel has no watch left; the directory is then looked at with each tick alone.
    pub fn watch(&self) -> io::Result<DirectoryWatch> {
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        DirectoryWatch::new(if matches!(self.layout, Layout::File) { parent } else { &self.path })
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    File::open(path)?.take(MAX_BUNDLE + 1).read_to_end(&mut pem)?;
    Ok(pem)
}

/// The set with `offered` bundles in the place of those in use, for the domains where they differ and may be taken; `None`
/// where nothing changes. With it every refusal.
///
/// A bundle is refused if it lacks the CA that issued a certificate in use: peers hold certificates of the same CA. The
/// next certificate brings the bundle that it verifies under: see [`TrustDir::outdated`].
pub fn take(
    set: &Set,
    offered: &BTreeMap<Domain, Bundle>,
    now: SystemTime,
) -> (Option<Set>, Vec<(Domain, TrustError)>) {
    let mut next = set.clone();
    let (mut changed, mut refused) = (false, Vec::new());
    for (domain, bundle) in offered {
        let entries: Vec<(Role, &Arc<Entry>)> =
            set.roles.iter().filter(|(r, _)| r.domain() == *domain).map(|(r, e)| (*r, e)).collect();
        if entries.iter().all(|(_, entry)| entry.bundle() == bundle) {
            continue;
        }
        // All roles of a domain or none: peers of one domain must not trust differently.
        let mut moved = Vec::new();
        for (role, entry) in &entries {
            match entry.with_bundle(*role, bundle, now) {
                Ok(entry) => moved.push((*role, entry)),
                Err(_) => {
                    let serial = entry.chain().serial.clone();
                    let offered = bundle.digest();
                    refused.push((*domain, TrustError::LacksIssuer { domain: *domain, role: *role, serial, offered }));
                }
            }
        }
        if moved.len() == entries.len() {
            for (role, entry) in moved {
                next = next.with(role, entry);
            }
            changed = true;
        }
    }
    (changed.then_some(next), refused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::Authority;

    #[test]
    fn a_certificate_of_a_ca_that_has_gone_is_outdated_where_a_rollover_took_it_away() {
        let (old, new) = (Authority::named("old"), Authority::named("new"));
        let set = Set::default().with(Role::Peer, old.entry(Role::Peer)).with(Role::Server, new.entry(Role::Server));
        let offered = BTreeMap::from([(Domain::Peer, new.bundle()), (Domain::Client, new.bundle())]);
        let (next, refused) = take(&set, &offered, SystemTime::now());
        assert!(next.is_none() && refused.len() == 1, "{refused:?}");
        let dir = TrustDir::new(Path::new("/trust"));
        assert!(dir.outdated(&refused).is_empty(), "of somebody else's CAs nothing is known");
        let outdated = dir.of_our_signer(true).outdated(&refused);
        assert_eq!(outdated, BTreeMap::from([(Role::Peer, new.bundle().digest())]));
        let garbage = TrustError::Unusable { path: "/trust".into(), message: "no PEM".to_owned() };
        assert!(TrustDir::new(Path::new("/trust")).of_our_signer(true).outdated(&[(Domain::Peer, garbage)]).is_empty());
    }
}
