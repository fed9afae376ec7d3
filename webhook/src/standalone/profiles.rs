//! The profiles: the kinds of certificates, their subjects, and the authority and maximum lifetime of each.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Bundle,
    role::{Domain, Role},
    san::Sans,
};

use crate::{
    ca::{
        authority::{Authority, AuthorityError},
        issue::{self, IssueError, Leaf, issue},
    },
    platform::file_watch::FileWatch,
};

/// The files of one authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// PEM: the issuing certificate first, then what is above it.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Why the profiles could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// The files hold no authority.
    #[error("{path}: {error}")]
    Authority {
        /// The certificate's file.
        path: String,
        /// The fault.
        error: AuthorityError,
    },
    /// Changed files hold another CA.
    #[error(
        "{path}: this is another CA: its {role} certificates would be refused by all who know the present one. Give every \
         host both CA certificates first (--cacrt of etcd-tls-sidecar), wait until each has restarted its etcd, and start \
         this signer again"
    )]
    Another {
        /// The certificate's file.
        path: String,
        /// The role of the certificates.
        role: Role,
    },
}

/// One profile's authority and the longest life it gives.
#[derive(Debug)]
struct Profile {
    authority: Arc<Authority>,
    lifetime: Duration,
}

/// Every profile that has an authority, by files that may change under the running server.
#[derive(Debug)]
pub struct Profiles {
    files: BTreeMap<Role, (AuthorityFiles, Duration)>,
    profiles: RwLock<Arc<BTreeMap<Role, Profile>>>,
}

impl Profiles {
    /// Reads the authorities; several profiles of the same files share one.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn load(files: BTreeMap<Role, (AuthorityFiles, Duration)>, now: SystemTime) -> Result<Self, ProfileError> {
        let profiles = RwLock::new(Arc::new(read(&files, now)?));
        Ok(Self { files, profiles })
    }

    /// The files of all authorities.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.values().flat_map(|(files, _)| [files.certificate.as_path(), files.key.as_path()])
    }

    /// Reads the files again; whether anything was new. All of it is taken, or nothing.
    ///
    /// Holders of only the present bundles must accept certificates signed from then on: the CA's own renewed certificate or
    /// another intermediate of the same root is taken, another CA is not.
    ///
    /// # Errors
    /// The files were refused; the present authorities stay in force.
    pub fn reload(&self, now: SystemTime) -> Result<bool, ProfileError> {
        let new = read(&self.files, now)?;
        let old = self.current();
        let same = |role: &Role, profile: &Profile| {
            old.get(role).is_some_and(|old| old.authority.certificate_pem() == profile.authority.certificate_pem())
        };
        if new.iter().all(|(role, profile)| same(role, profile)) {
            return Ok(false);
        }
        for (role, profile) in &new {
            // Nothing of an expired CA is accepted any more.
            if let Some(old) = old.get(role)
                && now < old.authority.not_after()
                && !issue::accepted_by(&profile.authority, old.authority.bundle(), now)
            {
                let path = self.files.get(role).map_or_else(String::new, |(f, _)| f.certificate.display().to_string());
                return Err(ProfileError::Another { path, role: *role });
            }
        }
        *self.profiles.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }

    /// Keeps the authorities as their files are, for ever; says loudly what is not taken.
    pub async fn keep_fresh(&self, mut watch: FileWatch) {
        let mut said = None;
        loop {
            watch.changed().await;
            match self.reload(SystemTime::now()) {
                Ok(changed) => {
                    if changed || said.is_some() {
                        tracing::info!(changed, "the CA's files are in force as they are now");
                    }
                    said = None;
                }
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "the CA's files were changed and cannot be taken; the last good ones stay in force"
                        );
                        said = Some(error);
                    }
                }
            }
        }
    }

    fn current(&self) -> Arc<BTreeMap<Role, Profile>> {
        Arc::clone(&self.profiles.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The longest life that `role` gives; `None` where it has no authority.
    pub fn lifetime(&self, role: Role) -> Option<Duration> {
        self.files.get(&role).map(|(_, lifetime)| *lifetime)
    }

    /// The authority of a domain: the one whose anchors [`Self::bundle`] gives.
    pub(crate) fn authority(&self, domain: Domain) -> Option<Arc<Authority>> {
        let profiles = self.current();
        let role = Role::ALL.into_iter().find(|r| r.domain() == domain && profiles.contains_key(r))?;
        profiles.get(&role).map(|profile| Arc::clone(&profile.authority))
    }

    /// The anchors of a domain, for those who verify its certificates.
    pub fn bundle(&self, domain: Domain) -> Option<Bundle> {
        self.authority(domain).map(|authority| authority.bundle().clone())
    }

    /// When the first authority to expire does so.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current().values().map(|p| p.authority.not_after()).min()
    }

    /// Issues a certificate. `lifetime` is what was asked for; the profile's own is the limit.
    ///
    /// # Errors
    /// No authority for this profile, or the authority's own.
    pub fn issue(
        &self,
        role: Role,
        common_name: &str,
        sans: &Sans,
        public_key: &[u8],
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<String, SignError> {
        let profiles = self.current();
        let profile = profiles.get(&role).ok_or(SignError::NoAuthority(role))?;
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| SignError::Randomness)?;
        // A metrics certificate with names is a server's, as the etcd-certificate-generator's are; ours have none and are a
        // scraper's.
        let usages = if role == Role::Metrics && *sans != Sans::default() { Role::Server } else { role };
        let leaf = Leaf {
            role: usages,
            organizations: vec![role.organization()],
            common_name,
            sans,
            public_key,
            lifetime: lifetime.map_or(profile.lifetime, |l| l.min(profile.lifetime)),
        };
        // No statement of the bundles in force: standalone publishes none, its operator gives them to the hosts.
        Ok(issue(&profile.authority, &leaf, now, serial)?.to_pem())
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The authority's.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// This signer was given no CA for the profile.
    #[error("this signer has no CA for {0} certificates")]
    NoAuthority(Role),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Randomness,
}

fn read(
    files: &BTreeMap<Role, (AuthorityFiles, Duration)>,
    now: SystemTime,
) -> Result<BTreeMap<Role, Profile>, ProfileError> {
    let mut read: Vec<(&AuthorityFiles, Arc<Authority>)> = Vec::new();
    let mut profiles = BTreeMap::new();
    for (role, (files, lifetime)) in files {
        let authority = match read.iter().find(|(known, _)| *known == files) {
            Some((_, authority)) => Arc::clone(authority),
            None => {
                let authority = Arc::new(load(files, now)?);
                read.push((files, Arc::clone(&authority)));
                authority
            }
        };
        profiles.insert(*role, Profile { authority, lifetime: *lifetime });
    }
    Ok(profiles)
}

fn load(files: &AuthorityFiles, now: SystemTime) -> Result<Authority, ProfileError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| ProfileError::File { path: path.display().to_string(), error })
    };
    let certificate = read(&files.certificate)?;
    let key = zeroize::Zeroizing::new(read(&files.key)?);
    // Of a few authorities, each signs many certificates.
    Authority::load(&certificate, &key, now)
        .and_then(Authority::keeping_key)
        .map_err(|error| ProfileError::Authority { path: files.certificate.display().to_string(), error })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;

    /// A CA certificate that says `serial`.
    fn ca(name: &str, pair: &KeyPair, serial: u64) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(serial.into());
        params.self_signed(pair).unwrap().pem()
    }

    #[test]
    fn changed_files_are_taken_where_those_who_know_the_old_ones_accept_it() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-profiles-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let files = AuthorityFiles { certificate: dir.join("ca.crt"), key: dir.join("ca.key") };
        let (pair, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let put = |pem: &str, key: &KeyPair| {
            fs::write(&files.certificate, pem).unwrap();
            fs::write(&files.key, key.serialize_pem()).unwrap();
        };
        let now = SystemTime::now();
        let (first, renewed) = (ca("etcd", &pair, 1), ca("etcd", &pair, 2));
        put(&first, &pair);
        let life = Duration::from_secs(3600);
        let both = [Role::Peer, Role::Server].map(|role| (role, (files.clone(), life)));
        let profiles = Profiles::load(both.into(), now).unwrap();
        assert!(!profiles.reload(now).unwrap(), "nothing changed");
        put(&renewed, &pair);
        assert!(profiles.reload(now).unwrap(), "the same key under a new certificate");
        let in_force = || profiles.bundle(Domain::Peer).unwrap().to_pem();
        assert_eq!(in_force(), Bundle::parse(renewed.as_bytes()).unwrap().to_pem());

        for (what, pem, key) in [
            ("a CA of the same name", ca("etcd", &other, 3), &other),
            ("half of a pair", ca("etcd", &other, 3), &pair),
            ("no certificate", "garbage".to_owned(), &pair),
        ] {
            put(&pem, key);
            assert!(profiles.reload(now).is_err(), "{what}");
            assert_eq!(in_force(), Bundle::parse(renewed.as_bytes()).unwrap().to_pem(), "{what}");
        }
        put(&ca("new", &other, 4), &other);
        assert!(matches!(profiles.reload(now), Err(ProfileError::Another { role: Role::Peer, .. })));
        fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(profiles.reload(now), Err(ProfileError::File { .. })));
    }
}
