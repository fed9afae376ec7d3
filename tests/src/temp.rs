//! Temporary directories that are gone when dropped, unless `ETCD_TLS_TEST_KEEP` is set.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::statvfs::{FsFlags, statvfs};

/// A directory of its own under the system's temporary directory.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates one; `name` is part of its name, to identify leftovers.
    pub fn new(name: &str) -> Self {
        Self::under(&std::env::temp_dir(), name)
    }

    /// Makes one in memory, as an emptyDir of medium Memory is; where this machine has no such place, or one from which no
    /// program can be run, like [`Self::new`].
    pub fn in_memory(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let probe = memory.join(format!("etcd-tls-probe-{}", std::process::id()));
        let runs = statvfs(memory).is_ok_and(|stat| !stat.flags().contains(FsFlags::ST_NOEXEC));
        if !runs || fs::create_dir_all(&probe).is_err() {
            return Self::new(name);
        }
        let _ = fs::remove_dir(&probe);
        Self::under(memory, name)
    }

    fn under(parent: &Path, name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("etcd-tls-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(unique);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        path
    }

    /// Writes a file in it, with its parent directories.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap_or_else(|e| panic!("create {}: {e}", parent.display()));
        }
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("ETCD_TLS_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
