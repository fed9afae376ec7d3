//! The files: one proven set for all roles of a pod, swapped by one rename.
//!
//! ```text
//! <dir>/peer   -> ..data/peer          the paths in etcd's options: peer/tls.crt, peer/tls.key, peer/ca.crt, peer/ca.crl
//! <dir>/..data -> ..7                  the one link that a renewal moves
//! <dir>/..7/{peer,server}/…            a generation: every role, whole, synced before it is linked
//! <dir>/..7/state.json                 facts that are not in the certificates: when they were received
//! <dir>/..pending/peer.key             the key of a pending request, so that a restart makes no second one
//! <dir>/..lock                         held for as long as a process works on the directory
//! ```
//!
//! **Invariant.** At every instant, a crash at any system call included, the links lead to one whole generation, and
//! every certificate in it was proven before it was written: an [`Entry`] is made by [`Entry::prove`], or, with
//! another bundle, by [`Entry::with_bundle`], which proves again.
//!
//! Old generations are removed as soon as the link has moved; leftovers of a crash, before the next write.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    crl::Crl,
    csr::PrivateKey,
    names,
    role::{Domain, Role},
};
use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::store::files::{Disk, Files};

pub use self::{
    entry::{Entry, Record, Set},
    lists::Lists,
};

mod entry;
pub mod files;
mod lists;
#[cfg(test)]
mod tests;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";
const PENDING: &str = "..pending";
const LOCK: &str = "..lock";
const STATE: &str = "state.json";

/// No file of a set is larger; more is not read (a chain of four RSA-4096 certificates is under 10 KiB).
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// Why the files cannot be read or written. In every case the set that was in use stays in use.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process works on the directory.
    #[error("{}: another etcd-tls-sidecar works on this directory; give each its own", .0.display())]
    Locked(PathBuf),
    /// Something that is not ours stands where a link of ours goes.
    #[error("{}: is not a link of etcd-tls; move it away, or name another directory", .0.display())]
    InTheWay(PathBuf),
    /// The files do not hold together.
    #[error("{}: {message}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// The operating system's.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The failed step.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The directory, locked.
pub struct Store<F = Disk> {
    dir: PathBuf,
    files: F,
    _lock: File,
}

impl Store<Disk> {
    /// Opens `dir`, made if missing, and takes its lock.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, Disk)
    }
}

impl<F: Files> Store<F> {
    /// [`Store::open`] over other system calls, for tests.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(dir: &Path, files: F) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|e| io_error("make the directory", dir, e))?;
        let path = dir.join(LOCK);
        let lock = open_lock(dir, &path).map_err(|e| io_error("open the lock", &path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), files, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
            Err(TryLockError::Error(e)) => Err(io_error("lock", &path, e)),
        }
    }

    /// The set in use; `None` where none was installed yet. Expired certificates are read all the same: they are what
    /// etcd has.
    ///
    /// # Errors
    /// The files cannot be read or do not hold together: to be requested again.
    pub fn load(&self) -> Result<Option<Set>, StoreError> {
        let Some(entries) = self.entries()? else { return Ok(None) };
        let entries = entries.into_iter().map(|(role, entry)| Ok((role, Arc::new(entry?))));
        Ok(Some(Set { roles: entries.collect::<Result<_, StoreError>>()?, lists: self.lists().by_domain }))
    }

    /// The same, each role by itself: damage to one role's files says nothing about another's.
    ///
    /// # Errors
    /// The link to the generation cannot be read, or is not ours.
    pub fn entries(&self) -> Result<Option<Entries>, StoreError> {
        entries(&self.dir)
    }

    /// The revocation lists in use.
    pub fn lists(&self) -> Lists {
        lists::read(&self.dir)
    }

    /// Writes `set` as a new generation and moves the link to it. When this returns an error, the set that was in use
    /// still is, untouched.
    ///
    /// # Errors
    /// The disk is full, read-only, or not ours; or something is in the way.
    pub fn install(&self, set: &Set) -> Result<(), StoreError> {
        let before = self.generations()?;
        let current = current(&self.dir)?;
        self.sweep(&before, current.as_deref())?;
        let number = before.iter().filter_map(|name| number_of(name)).max().unwrap_or(0) + 1;
        let name = format!("..{number}");
        let generation = self.dir.join(&name);
        if let Err(error) = self.write(&generation, &name, set) {
            // Best effort: the rest is removed before the next write.
            let _ = self.files.remove_dir_all(&generation);
            return Err(error);
        }
        // The link has moved: a failure from here on is no failure of the swap.
        if let Err(error) = self.files.sync_dir(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "the new files are in use, but not yet known to be on the medium");
        }
        if let Some(generation) = current {
            self.remove_or_warn(&generation);
        }
        Ok(())
    }

    fn remove_or_warn(&self, generation: &str) {
        if let Err(error) = self.remove(generation) {
            tracing::warn!(%error, generation, "old files could not be removed; tried again at the next renewal");
        }
    }

    /// Removes a generation. An entry with such a name that is no directory is not ours and stays.
    fn remove(&self, generation: &str) -> Result<(), StoreError> {
        let path = self.dir.join(generation);
        if !is_directory(&path) {
            return Ok(());
        }
        self.files.remove_dir_all(&path).map_err(|e| io_error("remove", &path, e))
    }

    fn write(&self, generation: &Path, name: &str, set: &Set) -> Result<(), StoreError> {
        self.make_dir(generation)?;
        let mut records = BTreeMap::new();
        for (role, entry) in &set.roles {
            let dir = generation.join(role.as_str());
            self.make_dir(&dir)?;
            self.write_file(&dir.join(names::CERT_FILE), 0o440, entry.chain_pem.as_bytes())?;
            self.write_file(&dir.join(names::KEY_FILE), 0o440, entry.key_pem.as_bytes())?;
            self.write_file(&dir.join(names::CA_FILE), 0o440, entry.bundle.to_pem().as_bytes())?;
            self.write_file(&dir.join(names::CRL_FILE), 0o440, lists::of(set, *role))?;
            self.sync_dir(&dir)?;
            records.insert(*role, entry.record.clone());
        }
        let state = generation.join(STATE);
        let text = serde_json::to_vec(&records).map_err(|e| io_error("write", &state, e.into()))?;
        self.write_file(&state, 0o440, &text)?;
        self.sync_dir(generation)?;
        for role in set.roles.keys() {
            self.link_role(*role)?;
        }
        let temporary = self.dir.join(DATA_TMP);
        let data = self.dir.join(DATA);
        self.files.symlink(Path::new(name), &temporary).map_err(|e| io_error("link", &temporary, e))?;
        self.files.rename(&temporary, &data).map_err(|e| io_error("move the link", &data, e))
    }

    /// `<dir>/<role> -> ..data/<role>`, made once. Until the first generation is linked it leads nowhere.
    fn link_role(&self, role: Role) -> Result<(), StoreError> {
        let link = self.dir.join(role.as_str());
        let target = Path::new(DATA).join(role.as_str());
        match fs::read_link(&link) {
            Ok(there) if there == target => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.files.symlink(&target, &link).map_err(|e| io_error("link", &link, e))
            }
            _ => Err(StoreError::InTheWay(link)),
        }
    }

    /// Removes what a crash left behind. A generation that cannot be removed is in nobody's way: the next one has a higher number.
    fn sweep(&self, generations: &[String], current: Option<&str>) -> Result<(), StoreError> {
        let temporary = self.dir.join(DATA_TMP);
        if temporary.symlink_metadata().is_ok() {
            self.files.remove_file(&temporary).map_err(|e| io_error("remove", &temporary, e))?;
        }
        for name in generations.iter().filter(|name| current != Some(name.as_str())) {
            self.remove_or_warn(name);
        }
        Ok(())
    }

    fn generations(&self) -> Result<Vec<String>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| io_error("list", &self.dir, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| io_error("list", &self.dir, e))?;
            if let Ok(name) = entry.file_name().into_string()
                && number_of(&name).is_some()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The key of `role`'s request under way, if there is one.
    pub fn pending(&self, role: Role) -> Option<PrivateKey> {
        let path = self.pending_path(role).ok()?;
        match read(&path) {
            Ok(pem) => PrivateKey::from_pem(&pem)
                .map_err(|_| tracing::warn!(path = %path.display(), "a pending key cannot be read; a new one is made"))
                .ok(),
            Err(_) => None,
        }
    }

    /// Keeps `key` while its request is under way, whole or not at all.
    ///
    /// # Errors
    /// The operating system's.
    pub fn keep_pending(&self, role: Role, key: &PrivateKey) -> Result<(), StoreError> {
        let path = self.pending_path(role)?;
        let dir = self.dir.join(PENDING);
        if !is_directory(&dir) {
            self.files.create_dir(&dir, 0o700).map_err(|e| io_error("make the directory", &dir, e))?;
        }
        let temporary = path.with_extension("tmp");
        if temporary.symlink_metadata().is_ok() {
            self.files.remove_file(&temporary).map_err(|e| io_error("remove", &temporary, e))?;
        }
        self.write_file(&temporary, 0o400, key.to_pem().as_bytes())?;
        self.files.rename(&temporary, &path).map_err(|e| io_error("rename", &path, e))
    }

    /// Forgets `role`'s pending key: its certificate is installed, or never will be.
    ///
    /// # Errors
    /// The operating system's.
    pub fn forget_pending(&self, role: Role) -> Result<(), StoreError> {
        let path = self.pending_path(role)?;
        match self.files.remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// In a directory of ours, or one that is not there yet; never by way of a link.
    fn pending_path(&self, role: Role) -> Result<PathBuf, StoreError> {
        let dir = self.dir.join(PENDING);
        if dir.is_symlink() {
            return Err(StoreError::InTheWay(dir));
        }
        Ok(dir.join(format!("{role}.key")))
    }

    fn make_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.files.create_dir(path, 0o750).map_err(|e| io_error("make the directory", path, e))
    }

    fn write_file(&self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = self.files.create(path, mode).map_err(|e| io_error("create", path, e))?;
        self.files.write(&mut file, bytes).map_err(|e| io_error("write", path, e))?;
        self.files.sync(&file).map_err(|e| io_error("sync", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.files.sync_dir(path).map_err(|e| io_error("sync", path, e))
    }
}

/// Each role's entry, or why its files do not hold together.
pub type Entries = BTreeMap<Role, Result<Entry, StoreError>>;

/// The revocation list of `domain` in use in `dir`; `None`: there is none, or a stand-in.
pub fn list(dir: &Path, domain: Domain) -> Option<Arc<Crl>> {
    lists::read(dir).by_domain.remove(&domain)
}

/// The set in use in the directory `dir`, read without its lock: during another process's install, a role may be read as
/// damaged. `None` if nothing was installed yet.
///
/// # Errors
/// The link to the generation cannot be read, or is not ours.
pub fn entries(dir: &Path) -> Result<Option<Entries>, StoreError> {
    let Some(name) = current(dir)? else { return Ok(None) };
    let generation = dir.join(name);
    if generation.is_symlink() {
        return Err(StoreError::InTheWay(generation));
    }
    // A generation without its record (or with one of another build) is still a good set.
    let records: BTreeMap<Role, Record> =
        read(&generation.join(STATE)).ok().and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default();
    let mut entries = BTreeMap::new();
    for role in Role::ALL {
        let dir = generation.join(role.as_str());
        if is_directory(&dir) {
            entries.insert(role, load_entry(&dir, records.get(&role).cloned().unwrap_or_default()));
        }
    }
    Ok(Some(entries))
}

/// The name of the generation in use, where there is one: the link leads to a generation beside it, or is not ours.
fn current(dir: &Path) -> Result<Option<String>, StoreError> {
    let link = dir.join(DATA);
    match fs::read_link(&link) {
        Ok(target) => match target.to_str().filter(|name| number_of(name).is_some()) {
            Some(name) => Ok(Some(name.to_owned())),
            None => Err(StoreError::InTheWay(link)),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(StoreError::InTheWay(link)),
        Err(e) => Err(io_error("read the link", &link, e)),
    }
}

/// Opens the lock's file, made if missing; never by way of a link. In a directory that cannot be written, what is there is
/// opened for reading, which is enough for a lock: a good set is used from such a directory, too.
fn open_lock(dir: &Path, path: &Path) -> io::Result<File> {
    let options = || {
        let mut options = File::options();
        options.custom_flags(OFlag::O_NOFOLLOW.bits());
        options
    };
    match options().create(true).truncate(false).write(true).open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            options().read(true).open(path).or_else(|_| File::open(dir)).map_err(|_| e)
        }
        opened => opened,
    }
}

fn load_entry(dir: &Path, record: Record) -> Result<Entry, StoreError> {
    let file = |name: &str| {
        let path = dir.join(name);
        read(&path).map_err(|e| io_error("read", &path, e))
    };
    let unusable = |name: &str, message: String| StoreError::Unusable { path: dir.join(name), message };
    let chain_pem = file(names::CERT_FILE)?.as_str().to_owned();
    let chain = Chain::parse(chain_pem.as_bytes()).map_err(|e| unusable(names::CERT_FILE, e.to_string()))?;
    let key_pem = file(names::KEY_FILE)?;
    let key = PrivateKey::from_pem(&key_pem).map_err(|_| unusable(names::KEY_FILE, "is no private key".to_owned()))?;
    if key.public_key() != chain.public_key {
        return Err(unusable(names::KEY_FILE, format!("is not the key of {}", names::CERT_FILE)));
    }
    let bundle =
        Bundle::parse(file(names::CA_FILE)?.as_bytes()).map_err(|e| unusable(names::CA_FILE, e.to_string()))?;
    Ok(Entry { chain, chain_pem, key_pem, bundle, record })
}

/// Reads a file of ours; wiped when dropped, since it may be a key.
fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file too large"));
    }
    fs::read_to_string(path).map(Zeroizing::new)
}

/// The number of a generation, if `name` is the name of one.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("..")?.parse().ok().filter(|n| *n < u64::MAX)?;
    (format!("..{number}") == name).then_some(number)
}

/// True if a directory is there, and no link to one.
fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source }
}
