//! The restarter's state across its own restarts: since when each bundle is on disk, the earlier bundles, the last restart of
//! etcd, and the cluster it is a member of. Times count from the system's start, so a clock step does not move them; after a
//! reboot they are invalid and not needed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use super::decide::Installed;
use etcd_tls_contract::{certificate::Bundle, endpoint::Endpoint, role::Domain};

use crate::os::replace::replace;

/// Beside the generations, hidden as they are.
const FILE: &str = "..restart.json";
/// Bundles remembered for each domain.
const REMEMBERED: usize = 16;

/// The memory, on disk.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    kept: Kept,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kept {
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
    bundles: BTreeMap<Domain, Vec<Known>>,
    /// Milliseconds; the last restart that was ours.
    restarted: Option<u64>,
    /// The bundles it was for.
    restarted_for: BTreeMap<Domain, String>,
    /// The cluster as its own member last told of it.
    cluster: Option<KnownCluster>,
}

/// This member's id and the client URLs of the others, to ask them if this etcd refuses us, as one that missed a rollover does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct KnownCluster {
    /// The member's id.
    pub(super) me: u64,
    /// The other members' client URLs.
    #[serde(with = "urls")]
    pub(super) others: Vec<Endpoint>,
}

/// URLs as text. One that is not a URL is left out.
mod urls {
    use etcd_tls_contract::endpoint::Endpoint;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(urls: &[Endpoint], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(urls.iter().map(Endpoint::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        Ok(texts.iter().flat_map(|text| text.parse()).collect())
    }
}

/// A bundle that is (the last of a domain's) or was on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    digest: String,
    /// Digest of its subjects.
    names: String,
    /// Milliseconds.
    since: u64,
}

impl Memory {
    /// Reads the state in `dir`. Unreadable state is dropped, which at worst means one more restart.
    pub(super) fn open(dir: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let path = dir.join(FILE);
        let kept: Kept = fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Self { path, kept: kept.for_boot(boot) }
    }

    /// Notes that `bundle` is on disk, and says what is known of it.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(super) fn installed(&mut self, domain: Domain, bundle: &Bundle, now: Duration) -> io::Result<Installed> {
        let installed = self.kept.installed(domain, bundle);
        if let Some(installed) = installed {
            return Ok(installed);
        }
        self.kept.add(domain, bundle, now);
        self.write()?;
        self.kept.installed(domain, bundle).ok_or_else(|| io::Error::other("a bundle just noted is not remembered"))
    }

    /// How long ago etcd was last restarted by us.
    pub(super) fn since_restart(&self, now: Duration) -> Option<Duration> {
        self.kept.restarted.map(|at| now.saturating_sub(Duration::from_millis(at)))
    }

    /// True if etcd was restarted by us for this bundle.
    pub(super) fn tried(&self, domain: Domain, digest: &str) -> bool {
        self.kept.restarted_for.get(&domain).is_some_and(|d| d == digest)
    }

    /// Notes that etcd is about to be restarted for these bundles.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(super) fn restarting(&mut self, bundles: BTreeMap<Domain, String>, now: Duration) -> io::Result<()> {
        self.kept.restarted = Some(millis(now));
        self.kept.restarted_for = bundles;
        self.write()
    }

    /// The cluster as it was last seen.
    pub(super) fn cluster(&self) -> Option<&KnownCluster> {
        self.kept.cluster.as_ref()
    }

    /// Notes the cluster, if it is not the one noted.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(super) fn knows(&mut self, cluster: KnownCluster) -> io::Result<()> {
        if self.kept.cluster.as_ref() == Some(&cluster) {
            return Ok(());
        }
        self.kept.cluster = Some(cluster);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        replace(&self.path, 0o644, &mut serde_json::to_vec(&self.kept)?.as_slice())
    }
}

impl Kept {
    fn for_boot(mut self, boot: String) -> Self {
        if self.boot != boot {
            self.boot = boot;
            self.restarted = None;
            self.restarted_for.clear();
            // Every running process started after it.
            self.bundles.values_mut().flatten().for_each(|known| known.since = 0);
        }
        self
    }

    fn installed(&self, domain: Domain, bundle: &Bundle) -> Option<Installed> {
        let known = self.bundles.get(&domain)?;
        let digest = bundle.digest();
        let last = known.last().filter(|k| k.digest == digest)?;
        let ambiguous = known.iter().any(|k| k.digest != digest && k.names == last.names);
        let since = Duration::from_millis(last.since);
        Some(Installed { digest, subjects: subjects(bundle), since, ambiguous })
    }

    fn add(&mut self, domain: Domain, bundle: &Bundle, now: Duration) {
        let known = self.bundles.entry(domain).or_default();
        let digest = bundle.digest();
        known.retain(|k| k.digest != digest);
        known.push(Known { digest, names: names_digest(bundle), since: millis(now) });
        let excess = known.len().saturating_sub(REMEMBERED);
        known.drain(..excess);
    }
}

fn subjects(bundle: &Bundle) -> Vec<Vec<u8>> {
    let mut subjects = bundle.subjects();
    subjects.sort();
    subjects
}

fn names_digest(bundle: &Bundle) -> String {
    let mut text = Vec::new();
    for subject in subjects(bundle) {
        text.extend_from_slice(&(subject.len() as u64).to_be_bytes());
        text.extend_from_slice(&subject);
    }
    STANDARD_NO_PAD.encode(digest(&SHA256, &text))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ca(name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn bundle(certificates: &[&Vec<u8>]) -> Bundle {
        Bundle::from_der(certificates.iter().map(|c| (*c).clone()).collect()).unwrap()
    }

    #[test]
    fn a_bundle_is_known_since_it_was_first_seen_and_doubtful_when_its_names_were_there_before() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-memory-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (a, b, a_again) = (bundle(&[&ca("a")]), bundle(&[&ca("b")]), bundle(&[&ca("a")]));
        let at = Duration::from_secs;
        let mut memory = Memory::open(&dir);
        let mut seen = |bundle: &Bundle, now| {
            let i = memory.installed(Domain::Peer, bundle, at(now)).unwrap();
            (i.since, i.ambiguous)
        };
        assert_eq!(seen(&a, 10), (at(10), false));
        assert_eq!(seen(&a, 20), (at(10), false));
        assert_eq!(seen(&b, 30), (at(30), false));
        assert_eq!(seen(&a_again, 40), (at(40), true));
        // Another process of the same boot remembers.
        let mut memory = Memory::open(&dir);
        let installed = memory.installed(Domain::Peer, &a_again, at(50)).unwrap();
        assert_eq!((installed.since, installed.ambiguous), (at(40), true));
        memory.restarting([(Domain::Peer, a_again.digest())].into(), at(60)).unwrap();
        let cluster = KnownCluster { me: u64::MAX, others: vec!["https://10.0.0.2:2379".parse().unwrap()] };
        memory.knows(cluster.clone()).unwrap();
        let memory = Memory::open(&dir);
        assert_eq!(memory.since_restart(at(70)), Some(at(10)));
        assert_eq!(memory.cluster(), Some(&cluster));
        assert!(memory.tried(Domain::Peer, &a_again.digest()) && !memory.tried(Domain::Peer, &a.digest()));
        // After a reboot everything that runs is younger than the bundle.
        let kept = memory.kept.for_boot("another".into());
        assert_eq!(kept.restarted, None);
        assert_eq!(kept.installed(Domain::Peer, &a_again).unwrap().since, at(0));
        fs::remove_dir_all(dir).unwrap();
    }
}
