//! A serving pair that is read from a directory, watched, and changed under a running server.
//!
//! The directory is watched, never the files: a Secret volume swaps a symbolic link, after which a watch on the file sees
//! nothing any more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::ServerConfig;

/// How often a directory is read again without an event: an event may be lost, and the watch itself may fail.
pub const RECHECK: Duration = Duration::from_secs(60);

/// Serving pairs, each from a file of chain and a file of key, chosen by the name that the client says (SNI). The first
/// pair serves everybody whose name no pair has.
#[derive(Debug)]
pub struct ServingPairs {
    _private: (),
}

/// One pair's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Why a serving pair is not taken.
#[derive(Debug, thiserror::Error)]
#[error("serving pair {files}: {message}", files = .files.certificate.display())]
pub struct PairError {
    /// Which.
    pub files: PairFiles,
    /// What is wrong with it.
    pub message: String,
}

impl ServingPairs {
    /// Reads every pair once and begins to watch their directories: changes are served from the next handshake on, and a
    /// pair that cannot be read keeps the last good one and is logged.
    ///
    /// # Errors
    /// A pair that cannot be read now. Use [`PairFiles::wait`] where it may be written later.
    pub fn watch(files: Vec<PairFiles>) -> Result<Arc<Self>, PairError> {
        let _ = files;
        todo!()
    }

    /// A server configuration over these pairs: TLS 1.2 and up, ALPN left to the server; `clients` verifies client
    /// certificates where the server asks for any.
    pub fn server_config(
        self: &Arc<Self>,
        clients: Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let _ = clients;
        todo!()
    }
}

impl PairFiles {
    /// `tls.crt` and `tls.key` of a directory, as a Secret volume has them.
    pub fn in_dir(dir: &std::path::Path) -> Self {
        Self { certificate: dir.join("tls.crt"), key: dir.join("tls.key") }
    }

    /// Waits until the pair is there and good, saying now and then that it is not.
    pub async fn wait(&self) {
        todo!()
    }
}
