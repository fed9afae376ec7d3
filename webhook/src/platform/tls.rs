//! A serving pair that is read from a directory, watched, and changed under a running server.
//!
//! A connection keeps the pair it was made with; the next handshake meets the new one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::time;
use x509_cert::der::Decode as _;

use crate::platform::{essential::essential, file_watch::FileWatch};

/// How often [`PairFiles::wait`] looks.
const WAIT: Duration = Duration::from_secs(1);
/// A serving chain or key of more bytes than this is none.
const MAX_BYTES: u64 = 1 << 20;

/// One pair's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Serving pairs, each from a file of chain and a file of key, chosen by the name that the client says (SNI). The first
/// pair serves everybody whose name no pair has.
#[derive(Debug)]
pub struct ServingPairs {
    files: Vec<PairFiles>,
    /// One for each of `files`, in their order.
    pairs: RwLock<Vec<Arc<Pair>>>,
}

/// A serving pair could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("serving pair {}: {message}", .files.certificate.display())]
pub struct PairError {
    /// The files of certificate and key.
    pub files: PairFiles,
    /// The fault.
    pub message: String,
}

#[derive(Debug)]
struct Pair {
    certified: Arc<CertifiedKey>,
    /// The leaf's DNS names, lower case; `*.` stands for one label.
    names: Vec<String>,
}

impl ServingPairs {
    /// Reads every pair once and begins to watch their directories: changes are served from the next handshake on, and a
    /// pair that cannot be read keeps the last good one and is logged. The watch ends with the last reference. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// A pair that cannot be read now. Use [`PairFiles::wait`] where it may be written later.
    pub fn watch(files: Vec<PairFiles>) -> Result<Arc<Self>, PairError> {
        let pairs = files.iter().map(|f| f.read().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let this = Arc::new(Self { files, pairs: RwLock::new(pairs) });
        let watch = FileWatch::new(this.files.iter().flat_map(|f| [f.certificate.as_path(), f.key.as_path()]));
        tokio::spawn(essential("serving pairs", keep_fresh(Arc::downgrade(&this), watch)));
        Ok(this)
    }

    /// A server configuration over these pairs: TLS 1.2 and up, ALPN left to the server; `clients` verifies client
    /// certificates where the server asks for any.
    ///
    /// # Errors
    /// The crypto provider supports neither version.
    pub fn server_config(
        self: &Arc<Self>,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        Ok(match clients {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        }
        .with_cert_resolver(resolver))
    }

    /// Reads the files again; each pair that is good and new is served from now on. Returns true if any was.
    ///
    /// # Errors
    /// The pairs that were not taken; their last good ones stay.
    pub fn reload(&self) -> Result<bool, Vec<PairError>> {
        let mut changed = false;
        let mut errors = Vec::new();
        for (index, files) in self.files.iter().enumerate() {
            match files.read() {
                Ok(pair) => {
                    let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
                    if pairs[index].certified.cert != pair.certified.cert {
                        pairs[index] = Arc::new(pair);
                        changed = true;
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(changed) } else { Err(errors) }
    }

    /// The leaf that a client without SNI is served, DER.
    pub fn default_leaf(&self) -> Option<CertificateDer<'static>> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        pairs.first()?.certified.cert.first().cloned()
    }

    /// When the leaf of [`Self::default_leaf`] ends; `None`: it cannot be read.
    pub fn not_after(&self) -> Option<SystemTime> {
        let leaf = x509_cert::Certificate::from_der(&self.default_leaf()?).ok()?;
        Some(leaf.tbs_certificate().validity().not_after.to_system_time())
    }

    fn pick(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let named = name.and_then(|name| pairs.iter().find(|pair| pair.serves(name)));
        named.or_else(|| pairs.first()).map(|pair| Arc::clone(&pair.certified))
    }
}

impl ResolvesServerCert for ServingPairs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pick(hello.server_name())
    }
}

impl PairFiles {
    /// `tls.crt` and `tls.key` of a directory, as a Secret volume has them.
    pub fn in_dir(dir: &Path) -> Self {
        Self { certificate: dir.join("tls.crt"), key: dir.join("tls.key") }
    }

    /// Waits until the pair is there and good, and says once for each reason that it is not.
    pub async fn wait(&self) {
        let mut said = None;
        while let Err(error) = self.read() {
            if said.as_ref() != Some(&error) {
                tracing::warn!(%error, "waiting for a serving pair");
                said = Some(error);
            }
            time::sleep(WAIT).await;
        }
    }

    fn read(&self) -> Result<Pair, PairError> {
        let error = |message: String| PairError { files: self.clone(), message };
        let bytes = |path: &Path| read_bounded(path).map_err(|e| error(format!("{}: {e}", path.display())));
        let chain = CertificateDer::pem_slice_iter(&bytes(&self.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| error(format!("certificates: {e}")))?;
        let Some(leaf) = chain.first().cloned() else {
            return Err(error("no certificate in the file".to_owned()));
        };
        let key_bytes = zeroize::Zeroizing::new(bytes(&self.key)?);
        // The parser's own words stay out: they could quote the key.
        let key = PrivateKeyDer::from_pem_slice(&key_bytes)
            .map_err(|_| error(format!("{}: no PEM private key", self.key.display())))?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| error(e.to_string()))?;
        let parsed = webpki::EndEntityCert::try_from(&leaf).map_err(|e| error(format!("certificate: {e}")))?;
        let names = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
        Ok(Pair { certified: Arc::new(certified), names })
    }
}

impl Pair {
    fn serves(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.names.iter().any(|own| {
            *own == name
                || own.strip_prefix("*.").is_some_and(|rest| name.split_once('.').is_some_and(|(_, tail)| tail == rest))
        })
    }
}

/// A verifier of client certificates against `roots`; `required` refuses clients without one.
///
/// # Errors
/// No root is usable.
pub fn client_verifier(
    roots: RootCertStore,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    let builder = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    if required { builder.build() } else { builder.allow_unauthenticated().build() }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads a file that is not larger than a PEM file of ours can be.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads again whenever it is time to look.
async fn keep_fresh(pairs: Weak<ServingPairs>, mut watch: FileWatch) {
    let mut said: Vec<PairError> = Vec::new();
    loop {
        watch.changed().await;
        let Some(pairs) = pairs.upgrade() else { return };
        match pairs.reload() {
            Ok(changed) => {
                if changed {
                    tracing::info!("serving a new certificate");
                }
                said.clear();
            }
            Err(errors) => {
                for error in errors.iter().filter(|error| !said.contains(error)) {
                    tracing::warn!(%error, "the new serving pair is not taken; serving the last good one");
                }
                said = errors;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::fs;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("etcd-tls-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pair(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// Writes a pair as kubelet does: a new directory, then one rename of `..data`.
    fn publish(dir: &Path, generation: &str, (certificate, key): &(String, String)) {
        let new = dir.join(format!("..{generation}"));
        fs::create_dir(&new).unwrap();
        fs::write(new.join("tls.crt"), certificate).unwrap();
        fs::write(new.join("tls.key"), key).unwrap();
        std::os::unix::fs::symlink(format!("..{generation}"), dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        for file in ["tls.crt", "tls.key"] {
            if fs::symlink_metadata(dir.join(file)).is_err() {
                std::os::unix::fs::symlink(format!("..data/{file}"), dir.join(file)).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_swapped_directory_is_served_and_a_bad_one_is_not() {
        let dir = Dir::new("swap");
        let first = pair(&["a.test"]);
        publish(&dir.0, "1", &first);
        let pairs = ServingPairs::watch(vec![PairFiles::in_dir(&dir.0)]).unwrap();
        let old = pairs.default_leaf().unwrap();
        time::sleep(Duration::from_millis(50)).await;

        publish(&dir.0, "2", &pair(&["a.test"]));
        let deadline = time::Instant::now() + Duration::from_secs(20);
        while pairs.default_leaf().unwrap() == old {
            assert!(time::Instant::now() < deadline, "the new pair was never served");
            time::sleep(Duration::from_millis(20)).await;
        }

        let good = pairs.default_leaf().unwrap();
        publish(&dir.0, "3", &(pair(&["a.test"]).0, first.1));
        let errors = pairs.reload().unwrap_err();
        assert_eq!(errors.len(), 1, "certificate and key of two pairs: {errors:?}");
        fs::remove_file(dir.0.join("tls.crt")).unwrap();
        assert!(pairs.reload().is_err());
        assert_eq!(pairs.default_leaf().unwrap(), good);
    }

    #[tokio::test]
    async fn the_name_chooses_the_pair() {
        let (a, b) = (Dir::new("sni-a"), Dir::new("sni-b"));
        publish(&a.0, "1", &pair(&["a.test"]));
        publish(&b.0, "1", &pair(&["b.test", "*.c.test"]));
        let pairs = ServingPairs::watch(vec![PairFiles::in_dir(&a.0), PairFiles::in_dir(&b.0)]).unwrap();
        let served = |name| pairs.pick(name).unwrap().cert[0].clone();
        let (first, second) = (served(None), served(Some("b.test")));
        assert_ne!(first, second);
        assert_eq!(served(Some("A.test")), first);
        assert_eq!(served(Some("x.c.test")), second);
        assert_eq!(served(Some("c.test")), first);
        assert_eq!(served(Some("x.y.c.test")), first);
    }

    #[tokio::test]
    async fn a_missing_pair_is_an_error_that_names_the_file() {
        let dir = Dir::new("missing");
        let error = ServingPairs::watch(vec![PairFiles::in_dir(&dir.0)]).unwrap_err();
        assert!(error.to_string().contains("tls.crt"), "{error}");
    }
}
