//! The profiles: what kinds of certificates there are, which subjects they have, and which authority signs each for how
//! long.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_sidecar::{
    certificate::Bundle,
    csr::Request,
    role::{Domain, Role},
    settings::Sans,
};

use crate::{
    authority::{Authority, AuthorityError},
    issue::{IssueError, Leaf, issue},
};

/// What a request turned out to be: its subject fits this profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The profile.
    pub role: Role,
    /// What stands behind the profile's prefix in the CN: the host's name, or a client's whole CN.
    pub name: String,
}

/// What the etcd-certificate-generator has before the host's name in a metrics CN.
const OLD_METRICS: &str = "system:etcd-metric:";

/// Recognises the profile by organization and CN prefix together.
///
/// # Errors
/// The subject is none that is ever signed here.
pub fn recognise(request: &Request) -> Result<Recognised, String> {
    let role = Role::ALL.into_iter().find(|role| role.organization() == request.organization).ok_or_else(|| {
        let known: Vec<&str> = Role::ALL.iter().map(|role| role.organization()).collect();
        format!("the organization {:?} is of no profile; known are {}", request.organization, known.join(", "))
    })?;
    let prefix = role.common_name_prefix();
    let name = request.common_name.strip_prefix(prefix);
    let name = name.or_else(|| (role == Role::Metrics).then(|| request.common_name.strip_prefix(OLD_METRICS))?);
    match name {
        Some(name) if !name.is_empty() => Ok(Recognised { role, name: name.to_owned() }),
        _ => Err(format!(
            "the organization {} needs a CN of {}<host>, not {:?}",
            request.organization, prefix, request.common_name
        )),
    }
}

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
        /// Which.
        path: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// What is in the files is no authority.
    #[error("{path}: {error}")]
    Authority {
        /// The certificate's file.
        path: String,
        /// What is wrong.
        error: AuthorityError,
    },
}

/// One profile's authority and the longest life it gives.
struct Profile {
    authority: Arc<Authority>,
    lifetime: Duration,
}

/// Every profile that has an authority.
pub struct Profiles {
    profiles: BTreeMap<Role, Profile>,
}

impl Profiles {
    /// Reads the authorities; several profiles of the same files share one.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn load(files: &BTreeMap<Role, (AuthorityFiles, Duration)>, now: SystemTime) -> Result<Self, ProfileError> {
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
        Ok(Self { profiles })
    }

    /// The longest life that `role` gives; `None` where it has no authority.
    pub fn lifetime(&self, role: Role) -> Option<Duration> {
        self.profiles.get(&role).map(|p| p.lifetime)
    }

    /// The anchors of a domain, for those who verify its certificates.
    pub fn bundle(&self, domain: Domain) -> Option<&Bundle> {
        let role = Role::ALL.into_iter().find(|r| r.domain() == domain && self.profiles.contains_key(r))?;
        self.profiles.get(&role).map(|p| p.authority.bundle())
    }

    /// When the first authority to expire does so.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.profiles.values().map(|p| p.authority.not_after()).min()
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
        let profile = self.profiles.get(&role).ok_or(SignError::NoAuthority(role))?;
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

fn load(files: &AuthorityFiles, now: SystemTime) -> Result<Authority, ProfileError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| ProfileError::File { path: path.display().to_string(), error })
    };
    let certificate = read(&files.certificate)?;
    let key = zeroize::Zeroizing::new(read(&files.key)?);
    Authority::load(&certificate, &key, now)
        .map_err(|error| ProfileError::Authority { path: files.certificate.display().to_string(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(organization: &str, common_name: &str) -> Request {
        Request {
            organization: organization.to_owned(),
            common_name: common_name.to_owned(),
            sans: Sans::default(),
            key: etcd_tls_sidecar::settings::KeyAlgorithm::EcdsaP256,
            public_key: Vec::new(),
        }
    }

    #[test]
    fn organization_and_prefix_go_together() {
        for (organization, common_name, role, name) in [
            ("system:etcd-peers", "system:etcd-peer:m1", Role::Peer, "m1"),
            ("system:etcd-servers", "system:etcd-server:m1.example.com", Role::Server, "m1.example.com"),
            ("system:etcd-metrics", "system:etcd-metrics:m1", Role::Metrics, "m1"),
            ("system:etcd-metrics", "system:etcd-metric:m1", Role::Metrics, "m1"),
            ("system:etcd-clients", "backup", Role::Client, "backup"),
        ] {
            let expected = Recognised { role, name: name.to_owned() };
            assert_eq!(recognise(&request(organization, common_name)), Ok(expected), "{common_name}");
        }
    }

    #[test]
    fn no_other_subject_is_ever_signed() {
        for (organization, common_name) in [
            ("system:masters", "admin"),
            ("", "system:etcd-peer:m1"),
            ("system:etcd-peers", "system:etcd-peer:"),
            ("system:etcd-peers", "system:etcd-server:m1"),
            ("system:etcd-servers", "system:etcd-peer:m1"),
            ("system:etcd-peers", "m1"),
            ("system:etcd-clients", ""),
        ] {
            assert!(recognise(&request(organization, common_name)).is_err(), "{organization} {common_name}");
        }
    }
}
