//! The disk, broken at every system call in turn.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    os::unix::fs::{PermissionsExt, symlink},
    rc::Rc,
    sync::atomic::{AtomicU32, Ordering},
};

use etcd_tls_contract::key::KeyAlgorithm;
use nix::errno::Errno;

use super::*;
use crate::testing::Authority;

/// A directory that is gone when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("etcd-tls-store-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Thousands of syncs: in memory, where there is such a directory, as the volume in a pod is.
        let memory = Path::new("/dev/shm");
        let path = if memory.is_dir() { memory.join(name) } else { std::env::temp_dir().join(name) };
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

/// [`Disk`] until `left` calls have been made; then every call fails as `how` says, or, after the first, works again.
#[derive(Clone)]
struct Broken {
    left: Rc<Cell<u32>>,
    how: Errno,
    for_good: bool,
    /// No call works after the failure, as in a crash.
    calls: Rc<Cell<u32>>,
}

impl Broken {
    fn new(after: u32, how: Errno, for_good: bool) -> Self {
        Self { left: Rc::new(Cell::new(after)), how, for_good, calls: Rc::default() }
    }

    fn call(&self) -> io::Result<()> {
        self.calls.set(self.calls.get() + 1);
        match self.left.get() {
            0 => {
                if !self.for_good {
                    self.left.set(u32::MAX);
                }
                Err(self.how.into())
            }
            n => {
                self.left.set(n - 1);
                Ok(())
            }
        }
    }
}

impl Files for Broken {
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.call()?;
        Disk.create_dir(path, mode)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        self.call()?;
        Disk.create(path, mode)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.call() {
            // A full disk takes the beginning.
            Disk.write(file, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        Disk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.call()?;
        Disk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        Disk.sync_dir(path)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.call()?;
        Disk.symlink(target, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        Disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        Disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        Disk.remove_dir_all(path)
    }
}

fn set_of(authority: &Authority) -> Set {
    let mut set = Set::default();
    for role in [Role::Peer, Role::Server] {
        set = set.with(role, authority.entry(role));
    }
    set
}

/// The serials that etcd would read, in one go through the links.
fn on_disk(dir: &Path) -> Vec<String> {
    let set = Store::open(dir).unwrap().load().expect("the set is whole").unwrap_or_default();
    for role in set.roles.keys() {
        let link = dir.join(role.as_str()).join(names::CERT_FILE);
        assert!(link.is_file(), "{} leads nowhere", link.display());
    }
    set.roles.values().map(|e| e.chain().serial.clone()).collect()
}

fn serials(set: &Set) -> Vec<String> {
    set.roles.values().map(|e| e.chain().serial.clone()).collect()
}

#[test]
fn an_installed_set_is_read_back() {
    let (dir, authority) = (Dir::new(), Authority::new());
    let set = set_of(&authority);
    let store = Store::open(&dir.0).unwrap();
    assert!(store.load().unwrap().is_none());
    store.install(&set).unwrap();
    let read = store.load().unwrap().unwrap();
    for (role, entry) in &set.roles {
        let back = &read.roles[role];
        assert_eq!((back.chain(), back.bundle(), back.record()), (entry.chain(), entry.bundle(), entry.record()));
        assert_eq!(back.key_pem(), entry.key_pem());
    }
    let mode = |path: &str| fs::metadata(dir.0.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("..data/peer"), 0o750);
    for file in [names::CERT_FILE, names::KEY_FILE, names::CA_FILE] {
        assert_eq!(mode(&format!("peer/{file}")), 0o440, "{file}");
    }
}

#[test]
fn a_disk_that_fails_at_any_call_leaves_the_old_set_or_the_new() {
    let authority = Authority::new();
    let (old, new) = (set_of(&authority), set_of(&authority));
    for how in [Errno::ENOSPC, Errno::EROFS, Errno::EACCES, Errno::EDQUOT] {
        for for_good in [true, false] {
            for after in 0.. {
                let dir = Dir::new();
                Store::open(&dir.0).unwrap().install(&old).unwrap();
                // Something for the sweep to do, so that it fails too.
                fs::create_dir(dir.0.join("..99")).unwrap();
                std::os::unix::fs::symlink("..99", dir.0.join(DATA_TMP)).unwrap();
                let disk = Broken::new(after, how, for_good);
                let result = Store::open_with(&dir.0, disk.clone()).unwrap().install(&new);
                let expected = if result.is_ok() { &new } else { &old };
                assert_eq!(on_disk(&dir.0), serials(expected), "call {after}, {how}: {result:?}");
                // The disk is mended: nothing is in the way of the next attempt, and nothing is left behind.
                let store = Store::open(&dir.0).unwrap();
                store.install(&new).unwrap();
                assert_eq!(store.generations().unwrap().len(), 1);
                drop(store);
                assert_eq!(on_disk(&dir.0), serials(&new));
                if disk.calls.get() <= after {
                    assert!(after > 20, "the whole installation was {after} calls");
                    break;
                }
            }
        }
    }
}

/// A disk from which no directory can be removed: on a network's file system, one with a file that somebody reads.
#[derive(Clone)]
struct Sticky;

impl Files for Sticky {
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        Disk.create_dir(path, mode)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        Disk.create(path, mode)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        Disk.write(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        Disk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Disk.sync_dir(path)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        Disk.symlink(target, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Disk.remove_file(path)
    }

    fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        Err(Errno::ENOTEMPTY.into())
    }
}

#[test]
fn an_old_set_that_cannot_be_removed_stops_no_renewal() {
    let authority = Authority::new();
    let dir = Dir::new();
    for _ in 0..3 {
        let set = set_of(&authority);
        Store::open_with(&dir.0, Sticky).unwrap().install(&set).unwrap();
        assert_eq!(on_disk(&dir.0), serials(&set));
    }
    let store = Store::open(&dir.0).unwrap();
    assert_eq!(store.generations().unwrap().len(), 3);
    store.install(&set_of(&authority)).unwrap();
    assert_eq!(store.generations().unwrap().len(), 1, "all old ones are removed once that is possible");
}

#[test]
fn a_first_installation_that_fails_leaves_nothing_to_start_with() {
    let authority = Authority::new();
    for after in 0.. {
        let dir = Dir::new();
        let disk = Broken::new(after, Errno::ENOSPC, true);
        let result = Store::open_with(&dir.0, disk.clone()).unwrap().install(&set_of(&authority));
        assert_eq!(on_disk(&dir.0).is_empty(), result.is_err(), "call {after}");
        if disk.calls.get() <= after {
            break;
        }
    }
}

#[test]
fn a_pending_key_is_kept_whole_or_not_at_all() {
    for after in 0.. {
        let dir = Dir::new();
        let disk = Broken::new(after, Errno::ENOSPC, true);
        let store = Store::open_with(&dir.0, disk.clone()).unwrap();
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let kept = store.keep_pending(Role::Peer, &key).is_ok();
        assert_eq!(store.pending(Role::Peer).map(|k| k.public_key()), kept.then(|| key.public_key()), "call {after}");
        drop(store);
        let store = Store::open(&dir.0).unwrap();
        store.keep_pending(Role::Peer, &key).unwrap();
        assert_eq!(store.pending(Role::Peer).unwrap().public_key(), key.public_key());
        store.forget_pending(Role::Peer).unwrap();
        store.forget_pending(Role::Peer).unwrap();
        assert!(store.pending(Role::Peer).is_none());
        if disk.calls.get() <= after {
            break;
        }
    }
}

#[test]
fn one_process_at_a_time() {
    let dir = Dir::new();
    let first = Store::open(&dir.0).unwrap();
    assert!(matches!(Store::open(&dir.0), Err(StoreError::Locked(_))));
    drop(first);
    Store::open(&dir.0).unwrap();
}

#[test]
fn foreign_files_are_not_replaced() {
    let (dir, authority) = (Dir::new(), Authority::new());
    fs::create_dir(dir.0.join("peer")).unwrap();
    fs::write(dir.0.join("peer/tls.crt"), "precious").unwrap();
    let result = Store::open(&dir.0).unwrap().install(&set_of(&authority));
    assert!(matches!(result, Err(StoreError::InTheWay(_))), "{result:?}");
    assert_eq!(fs::read_to_string(dir.0.join("peer/tls.crt")).unwrap(), "precious");
}

#[test]
fn a_link_that_leads_elsewhere_is_neither_read_nor_replaced_and_what_it_leads_to_stays() {
    let authority = Authority::new();
    let outside = Dir::new();
    let inside_name = outside.0.file_name().unwrap().to_str().unwrap().to_owned();
    let targets = [
        outside.0.display().to_string(),
        format!("../{inside_name}"),
        format!("..7/../../{inside_name}"),
        "..7/".to_owned(),
        "./..7".to_owned(),
        "..+7".to_owned(),
        "..07".to_owned(),
        format!("..{}", u64::MAX),
        "..".to_owned(),
        "peer".to_owned(),
        "..2026_01_02_03_04_05.123456789".to_owned(),
    ];
    for target in targets {
        let dir = Dir::new();
        for precious in [&outside.0, &dir.0.join("peer"), &dir.0.join("..7"), &dir.0] {
            fs::create_dir_all(precious).unwrap();
            fs::write(precious.join("precious"), "x").unwrap();
        }
        symlink(&target, dir.0.join(DATA)).unwrap();
        let store = Store::open(&dir.0).unwrap();
        let (loaded, installed) = (store.load(), store.install(&set_of(&authority)));
        assert!(matches!(loaded, Err(StoreError::InTheWay(_))), "{target}: {loaded:?}");
        assert!(matches!(installed, Err(StoreError::InTheWay(_))), "{target}: {installed:?}");
        assert_eq!(fs::read_link(dir.0.join(DATA)).unwrap(), Path::new(&target));
        for precious in [&outside.0, &dir.0.join("peer"), &dir.0.join("..7"), &dir.0] {
            assert!(precious.join("precious").exists(), "{target}: {}", precious.display());
        }
    }
}

#[test]
fn only_a_directory_is_a_generation() {
    let (dir, outside, authority) = (Dir::new(), Dir::new(), Authority::new());
    fs::write(outside.0.join("precious"), "x").unwrap();
    fs::write(dir.0.join("..5"), "x").unwrap();
    symlink(&outside.0, dir.0.join("..6")).unwrap();
    symlink(&outside.0, dir.0.join("..7")).unwrap();
    symlink("..7", dir.0.join(DATA)).unwrap();
    let store = Store::open(&dir.0).unwrap();
    assert!(matches!(store.load(), Err(StoreError::InTheWay(_))));
    for _ in 0..2 {
        store.install(&set_of(&authority)).unwrap();
        assert!(store.load().unwrap().is_some());
    }
    assert!(dir.0.join("..5").is_file() && dir.0.join("..6").is_symlink() && dir.0.join("..7").is_symlink());
    assert_eq!(fs::read_link(dir.0.join(DATA)).unwrap(), Path::new("..9"));
    assert!(outside.0.join("precious").exists());
    // A file of a set that is no file is not waited for.
    let key = dir.0.join("..9/peer").join(names::KEY_FILE);
    fs::remove_file(&key).unwrap();
    nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Io { .. })));
}

#[test]
fn a_pending_key_never_leaves_the_directory() {
    let (dir, outside) = (Dir::new(), Dir::new());
    let precious = outside.0.join("peer.key");
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    fs::write(&precious, key.to_pem().as_bytes()).unwrap();
    symlink(&outside.0, dir.0.join(PENDING)).unwrap();
    let store = Store::open(&dir.0).unwrap();
    assert!(matches!(store.keep_pending(Role::Peer, &key), Err(StoreError::InTheWay(_))));
    assert!(matches!(store.forget_pending(Role::Peer), Err(StoreError::InTheWay(_))));
    assert!(store.pending(Role::Peer).is_none());
    assert!(precious.exists() && fs::read_dir(&outside.0).unwrap().count() == 1);
    drop(store);
    fs::remove_file(dir.0.join(LOCK)).unwrap();
    symlink(outside.0.join("lock"), dir.0.join(LOCK)).unwrap();
    assert!(matches!(Store::open(&dir.0), Err(StoreError::Io { .. })));
    assert!(!outside.0.join("lock").exists());
}

#[test]
fn files_that_do_not_hold_together_are_told() {
    let authority = Authority::new();
    let other = authority.entry(Role::Peer);
    for (file, content, told) in [
        (names::KEY_FILE, other.key_pem(), "is not the key of tls.crt"),
        (names::KEY_FILE, "", "is no private key"),
        (names::CERT_FILE, "garbage", "tls.crt"),
        (names::CA_FILE, "", "ca.crt"),
    ] {
        let dir = Dir::new();
        let store = Store::open(&dir.0).unwrap();
        store.install(&set_of(&authority)).unwrap();
        let path = dir.0.join("peer").join(file);
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(told), "{file}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
}
