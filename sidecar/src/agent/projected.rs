//! The volume that kubelet keeps with the issuer `pod-certificate` (KEP-4317): for each role one file with key and chain, and the bundle.
//! etcd reads it directly. The sidecar proves what kubelet brings, as it proves what it requests itself with other issuers, and keeps a
//! copy of its own for handshakes and restarts.
//!
//! ```text
//! <dir>/..data            -> the generation in use; kubelet moves this one link
//! <dir>/<role>/tls.crt    the key, then the chain, leaf first: `credentialBundlePath`
//! <dir>/<role>/ca.crt     the bundle
//! ```

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr::PrivateKey,
    life::Life,
    life::POD_CERTIFICATE_BACKDATE,
    names,
    role::Role,
};
use zeroize::Zeroizing;

use crate::{
    issuance::renewal::Template,
    os::directory_watch::DirectoryWatch,
    store::{Entry, Record},
};

/// No file of the volume is larger.
const MAX_FILE: u64 = 1024 * 1024;
/// The part of a life, in percent, after which kubelet is late: it is told to renew at 60 % at the latest, and adds minutes to that.
const LATE: u32 = 75;

/// Why the files that kubelet has brought are of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectedError {
    /// The file cannot be read, or holds something else.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// Peers would refuse the certificate.
    #[error("the certificate with serial {serial} in {}: {message}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The certificate.
        serial: String,
        /// The reason.
        message: String,
    },
}

/// The mounted volume.
#[derive(Debug)]
pub struct Projected {
    dir: PathBuf,
    watch: Option<DirectoryWatch>,
}

/// The files of one role, of one generation of the volume.
struct Read {
    path: PathBuf,
    key: PrivateKey,
    chain_pem: String,
    chain: Chain,
    bundle: Bundle,
}

impl Projected {
    /// The volume at `dir`.
    pub fn new(dir: &Path) -> Self {
        let watch = DirectoryWatch::new(dir)
            .inspect_err(|error| tracing::warn!(%error, "kubelet's volume cannot be watched; it is read every minute"))
            .ok();
        Self { dir: dir.to_owned(), watch }
    }

    /// Notifies when kubelet moves the link.
    pub const fn watch(&self) -> Option<&DirectoryWatch> {
        self.watch.as_ref()
    }

    /// The certificate of `template`'s role, proven, where it is not that of `current`.
    ///
    /// # Errors
    /// The files cannot be read, or peers would refuse the certificate. etcd reads them all the same.
    pub fn take(
        &self,
        template: &Template,
        current: Option<&Entry>,
        now: SystemTime,
    ) -> Result<Option<Entry>, ProjectedError> {
        let Read { path, key, chain_pem, chain, bundle } = self.read(template.role)?;
        let same = |entry: &Entry| entry.chain().serial == chain.serial && entry.chain().public_key == key.public_key();
        if current.is_some_and(same) {
            return Ok(None);
        }
        let issued = chain.not_before + POD_CERTIFICATE_BACKDATE;
        let received = issued.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = Record { received, key_bundle: bundle.digest(), ..Record::default() };
        let refused = |message: String| ProjectedError::Refused { path, serial: chain.serial.clone(), message };
        Entry::prove(template.role, &chain_pem, &key, &bundle, &template.sans, record, now)
            .map(Some)
            .map_err(|error| refused(error.to_string()))
    }

    fn read(&self, role: Role) -> Result<Read, ProjectedError> {
        // The files of one generation, even if kubelet moves the link meanwhile.
        let data = self.dir.join("..data");
        let dir = fs::canonicalize(&data).unwrap_or_else(|_| self.dir.clone()).join(role.as_str());
        let shown = |name: &str| self.dir.join(role.as_str()).join(name);
        let wrong = |name: &str, message: String| ProjectedError::File { path: shown(name), message };
        let file = |name: &str| read_bounded(&dir.join(name)).map_err(|error| wrong(name, error.to_string()));
        let whole = file(names::CERT_FILE)?;
        let (key, chain_pem) = split(&whole)
            .ok_or_else(|| wrong(names::CERT_FILE, "is no private key with a certificate chain after it".to_owned()))?;
        let key = PrivateKey::from_pem(key)
            .map_err(|_| wrong(names::CERT_FILE, "does not begin with a private key in PKCS#8".to_owned()))?;
        let chain = Chain::parse(chain_pem.as_bytes()).map_err(|error| wrong(names::CERT_FILE, error.to_string()))?;
        let bundle = Bundle::parse(file(names::CA_FILE)?.as_bytes())
            .map_err(|error| wrong(names::CA_FILE, error.to_string()))?;
        Ok(Read { path: shown(names::CERT_FILE), key, chain_pem: chain_pem.to_owned(), chain, bundle })
    }
}

/// The key and the chain of a credential bundle.
fn split(whole: &str) -> Option<(&str, &str)> {
    let chain = whole.find("-----BEGIN CERTIFICATE-----")?;
    let (key, chain) = whole.split_at(chain);
    key.contains("-----BEGIN PRIVATE KEY-----").then_some((key, chain))
}

fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// True if kubelet should have renewed the certificate of this life by `now`.
pub fn is_late(life: Life, now: SystemTime) -> bool {
    let whole = life.not_after.duration_since(life.issued).unwrap_or_default();
    life.issued + whole * LATE / 100 <= now
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{os::unix::fs::symlink, time::Duration};

    use etcd_tls_contract::{
        key::{KeyAlgorithm, KeyRotation},
        san::Sans,
    };

    use super::*;
    use crate::testing::Authority;

    fn template(entry: &Entry) -> Template {
        Template {
            role: Role::Peer,
            uid: "m1".to_owned(),
            common_name: entry.chain().common_name.clone(),
            sans: Sans::default(),
            signer: "peer.etcd-tls.dev/kube-system.etcd".to_owned(),
            lifetime: Duration::from_secs(86_400),
            key: KeyAlgorithm::EcdsaP256,
            key_rotation: KeyRotation::Always,
        }
    }

    struct Dir(PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// As kubelet's atomic writer does it: a new directory, then one rename.
    fn write(dir: &Path, generation: &str, bundle: &str, ca: &str) {
        let role = dir.join(generation).join("peer");
        fs::create_dir_all(&role).unwrap();
        fs::write(role.join("tls.crt"), bundle).unwrap();
        fs::write(role.join("ca.crt"), ca).unwrap();
        symlink(generation, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    }

    #[tokio::test]
    async fn certificates_from_kubelet_are_taken_once_and_proven() {
        let (ours, other) = (Authority::named("ours"), Authority::named("other"));
        let (first, second, foreign) = (ours.entry(Role::Peer), ours.entry(Role::Peer), other.entry(Role::Peer));
        let bundle = |entry: &Entry| format!("{}{}", entry.key_pem(), entry.chain_pem());
        let ca = ours.bundle().to_pem();
        let dir = Dir(std::env::temp_dir().join(format!("etcd-tls-projected-{}", std::process::id())));
        fs::create_dir_all(&dir.0).unwrap();
        let projected = Projected::new(&dir.0);
        let now = SystemTime::now();
        let template = template(&first);
        assert!(
            matches!(projected.take(&template, None, now), Err(ProjectedError::File { .. })),
            "nothing is there yet"
        );

        write(&dir.0, "..1", &bundle(&first), &ca);
        let taken = projected.take(&template, None, now).unwrap().unwrap();
        assert_eq!((taken.chain_pem(), taken.key_pem()), (first.chain_pem(), first.key_pem()));
        assert!(projected.take(&template, Some(&taken), now).unwrap().is_none(), "it is in use");

        write(&dir.0, "..2", &bundle(&second), &ca);
        let renewed = projected.take(&template, Some(&taken), now).unwrap().unwrap();
        assert_eq!(renewed.chain().serial, second.chain().serial);

        write(&dir.0, "..3", &bundle(&foreign), &ca);
        let refused = projected.take(&template, Some(&renewed), now).unwrap_err();
        assert!(
            matches!(&refused, ProjectedError::Refused { serial, .. } if *serial == foreign.chain().serial),
            "{refused}"
        );
        let mixed = format!("{}{}", first.key_pem(), second.chain_pem());
        write(&dir.0, "..4", &mixed, &ca);
        assert!(projected.take(&template, Some(&renewed), now).is_err(), "the key of another certificate");
        for (n, broken) in ["", first.chain_pem(), first.key_pem(), "x"].into_iter().enumerate() {
            write(&dir.0, &format!("..5{n}"), broken, &ca);
            let error = projected.take(&template, Some(&renewed), now).unwrap_err().to_string();
            assert!(error.contains("peer/tls.crt") && !error.contains("PRIVATE"), "{error}");
        }
        let lacking = Template { sans: "etcd-0.etcd.prod.svc".parse().unwrap(), ..template };
        write(&dir.0, "..6", &bundle(&second), &ca);
        let lacks = projected.take(&lacking, None, now).unwrap_err().to_string();
        assert!(lacks.contains("etcd-0.etcd.prod.svc"), "{lacks}");
    }

    #[test]
    fn kubelet_is_late_at_three_quarters_of_the_life() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let life = Life { issued, not_after: issued + Duration::from_secs(4000) };
        assert!(!is_late(life, issued + Duration::from_secs(2999)));
        assert!(is_late(life, issued + Duration::from_secs(3000)));
    }
}
