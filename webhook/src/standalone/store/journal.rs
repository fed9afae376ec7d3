//! The file that stores requests: a journal of batches. Each batch is written and made durable as a whole.
//!
//! A batch is a head line, `#<bytes> <digest>`, and one JSON line for each change. It is acknowledged after fdatasync. A
//! crash leaves at most one incomplete batch, at the end, which was never acknowledged; the next start removes it. An invalid
//! batch before a valid one is damage, and is never removed. Superseded entries are dropped by writing the live requests to a
//! new file, which replaces the old one by a rename.
//!
//! **Invariant.** No name of a request is ever a path: there are three files, whose names are constants.

use std::{
    fmt,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use etcd_tls_contract::encoding::hex;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    holders::Holding,
    ledger::{LedgerEntry, LedgerLine},
};

const JOURNAL: &str = "requests.journal";
const NEW_JOURNAL: &str = "requests.journal.new";
const LOCK: &str = "lock";
/// Below this size a journal is left as it is.
const COMPACT_FROM: u64 = 4 << 20;

/// One change, as it is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Entry {
    /// The request as it is from now on.
    Put(Box<CertificateSigningRequest>),
    /// No request of this name any more.
    Delete {
        /// The name.
        name: String,
    },
    /// From here on, only the names that follow are held.
    Holders,
    /// Names that are held independently of the request.
    Hold(Holding),
    /// The record of the certificates, or revocations.
    Ledger(LedgerEntry),
    /// The last revision given out when the journal was rewritten.
    Revision(u64),
}

/// An [`Entry`], as it is written; a request is written by [`put_line`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line<'a> {
    /// See [`Entry::Delete`].
    Delete {
        /// The name.
        name: &'a str,
    },
    /// See [`Entry::Holders`].
    Holders,
    /// See [`Entry::Hold`].
    Hold(Holding),
    /// See [`Entry::Ledger`].
    Ledger(LedgerLine<'a>),
    /// See [`Entry::Revision`].
    Revision(u64),
}

/// Why the directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it.
    #[error("{} is in use by another process; give each signer a directory of its own", .0.display())]
    InUse(PathBuf),
    /// Damage that a crash does not explain.
    #[error(
        "{} is damaged at byte {offset}: {message}; restore it from a copy, or move it away to start with no requests",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The fault found.
        message: String,
    },
    /// The system's.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// The open journal of one directory.
pub(super) struct Journal {
    dir: PathBuf,
    /// Held until the journal is dropped, also while it cannot be written; `None`: the directory could never be written.
    lock: Option<Flock<File>>,
    /// `None` while the directory cannot be written.
    open: Option<File>,
    /// The file that was read or written last.
    last: Option<Seen>,
    /// Bytes that are known to be durable.
    length: u64,
    /// Bytes of the journal after it was last rewritten.
    base: u64,
    /// Makes the names of a directory durable.
    sync_dir: fn(&Path) -> io::Result<()>,
}

/// A file, and its bytes when nobody held the lock: another process may have written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
}

impl Journal {
    /// Opens `dir`, making it where it is missing, and gives `take` each entry that is in it. A directory that can be read and not written
    /// is opened all the same: each [`Self::append`] tries again.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) fn open<E: fmt::Display>(
        dir: &Path,
        take: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(io(dir))?,
        }
        let path = dir.join(JOURNAL);
        let (lock, open) = match lock_of(dir).and_then(|lock| Ok((lock, open_file(dir, JOURNAL)?))) {
            Ok((lock, open)) => (Some(lock), Some(open)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(OpenError::InUse(dir.to_owned())),
            Err(e) if cannot_write(&e) => {
                tracing::error!(dir = %dir.display(), error = %e, "requests cannot be written; only reading is served");
                (None, None)
            }
            Err(e) => return Err(io(dir)(e)),
        };
        let mut bytes = Vec::new();
        let mut last = None;
        match File::open(&path) {
            Ok(mut file) => {
                file.read_to_end(&mut bytes).map_err(io(&path))?;
                last = Some(Seen { inode: file.metadata().map_err(io(&path))?.ino(), bytes: bytes.len() as u64 });
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io(&path)(e)),
        }
        let length = replay(&bytes, take).map_err(|(offset, message)| OpenError::Damaged {
            path: path.clone(),
            offset,
            message,
        })?;
        if length < bytes.len() as u64 {
            tracing::warn!(
                file = %path.display(),
                bytes = bytes.len() as u64 - length,
                "removing a batch that was being written when the process ended; it was never acknowledged"
            );
        }
        if let Some(open) = &open {
            open.set_len(length).and_then(|()| open.sync_all()).map_err(io(&path))?;
            sync_dir(dir).map_err(io(dir))?;
        }
        Ok(Self { dir: dir.to_owned(), lock, open, last, length, base: length, sync_dir })
    }

    /// True if the last write went well.
    pub(super) const fn writable(&self) -> bool {
        self.open.is_some()
    }

    /// Writes one batch of lines; when this returns `Ok` it is durable, and otherwise it is not there.
    ///
    /// # Errors
    /// The system's; the next call begins where this one began.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let batch = batch(lines);
        if self.open.is_none() {
            self.open = Some(self.open_again()?);
        }
        let written = match &mut self.open {
            Some(open) => write_at(open, self.length, &batch),
            None => Err(ErrorKind::NotFound.into()),
        };
        match written {
            Ok(()) => {
                self.length += batch.len() as u64;
                Ok(())
            }
            Err(e) => {
                // A file whose fsync failed is not written again: it is opened again and cut back to what is durable.
                if let Some(open) = self.open.take() {
                    open.set_len(self.length).unwrap_or_default();
                }
                Err(e)
            }
        }
    }

    /// Opens the file after a failure, and removes the remains of a failed write after the last good batch. The lock was held
    /// meanwhile; where it could not be taken before, the file must be as it was read.
    fn open_again(&mut self) -> io::Result<File> {
        let taken = if self.lock.is_none() { Some(lock_of(&self.dir)?) } else { None };
        let file = open_file(&self.dir, JOURNAL)?;
        let metadata = file.metadata()?;
        let now = Seen { inode: metadata.ino(), bytes: metadata.len() };
        let same = match self.last {
            Some(last) if taken.is_none() => now.inode == last.inode && now.bytes >= self.length,
            Some(last) => now == last,
            None => now.bytes == 0,
        };
        if !same {
            // The file is somebody else's: it is not cut.
            return Err(io::Error::other("the journal was changed by somebody else; restart the signer"));
        }
        file.set_len(self.length)?;
        // Its name may be that of a journal written anew.
        (self.sync_dir)(&self.dir)?;
        self.lock = taken.or_else(|| self.lock.take());
        self.last = Some(Seen { inode: now.inode, bytes: self.length });
        Ok(file)
    }

    /// True if most of the journal is superseded.
    pub(super) fn wants_compaction(&self) -> bool {
        self.open.is_some() && self.length > COMPACT_FROM.max(self.base.saturating_mul(2))
    }

    /// Writes the journal anew with just these batches. The old one stays in force until the new one is durable.
    ///
    /// # Errors
    /// The system's. The old journal is still in force, or the new one has its name and that is not durable yet: then nothing is appended
    /// before it is.
    pub(super) fn compact(&mut self, batches: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let new = self.dir.join(NEW_JOURNAL);
        let result = self.write_anew(&new, batches);
        if result.is_err() {
            std::fs::remove_file(&new).unwrap_or_default();
        }
        result
    }

    fn write_anew(&mut self, new: &Path, batches: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Err(ErrorKind::ReadOnlyFilesystem.into()) };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(new)?;
        let mut length = 0;
        for lines in batches.filter(|lines| !lines.is_empty()) {
            let bytes = batch(&lines);
            file.write_all(&bytes)?;
            length += bytes.len() as u64;
        }
        file.sync_all()?;
        std::fs::rename(new, self.dir.join(JOURNAL))?;
        // From here on the new file is the journal, even if a later step fails.
        let inode = file.metadata().map(|metadata| metadata.ino());
        *open = file;
        self.last = inode.ok().map(|inode| Seen { inode, bytes: length });
        self.length = length;
        self.base = length;
        (self.sync_dir)(&self.dir).inspect_err(|_| self.open = None)
    }
}

/// True if an error says that this directory takes no writes now, though it may later.
fn cannot_write(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

fn lock_of(dir: &Path) -> io::Result<Flock<File>> {
    Flock::lock(open_file(dir, LOCK)?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| io::Error::from(e))
}

fn open_file(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(name))
}

fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)?;
    file.sync_data()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Line<'_> {
    /// Adds it to `lines`.
    pub(super) fn add_to(&self, lines: &mut Vec<u8>) {
        // Nothing in the type can fail to be JSON, and writing to memory does not fail.
        serde_json::to_writer(&mut *lines, self).unwrap_or_default();
        lines.push(b'\n');
    }
}

/// Adds the line of [`Entry::Put`], from the request's JSON.
pub(super) fn put_line(json: &[u8], lines: &mut Vec<u8>) {
    lines.extend_from_slice(b"{\"put\":");
    lines.extend_from_slice(json);
    lines.extend_from_slice(b"}\n");
}

fn batch(lines: &[u8]) -> Vec<u8> {
    let mut batch = head(lines).into_bytes();
    batch.extend_from_slice(lines);
    batch
}

fn head(lines: &[u8]) -> String {
    format!("#{} {}\n", lines.len(), hex(&digest(&SHA256, lines).as_ref()[..16]))
}

/// Gives `take` the entries of all whole batches, one after the other; where the last of them ends. The requests in a journal
/// are of several times the memory of those that are kept of it.
fn replay<E: fmt::Display>(bytes: &[u8], mut take: impl FnMut(Entry) -> Result<(), E>) -> Result<u64, (u64, String)> {
    let mut offset = 0;
    while offset < bytes.len() {
        match next_batch(&bytes[offset..]) {
            Ok((lines, end)) => {
                for line in lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    let entry = serde_json::from_slice(line).map_err(|error| (offset as u64, error.to_string()))?;
                    take(entry).map_err(|error| (offset as u64, error.to_string()))?;
                }
                offset += end;
            }
            Err(message) => {
                // Only the last batch may be broken. A whole one further on was acknowledged, so this one was, too.
                let rest = &bytes[offset..];
                let later = (1..rest.len()).any(|i| rest[i] == b'#' && next_batch(&rest[i..]).is_ok());
                if later {
                    return Err((offset as u64, message));
                }
                break;
            }
        }
    }
    Ok(offset as u64)
}

/// The lines of the batch at the beginning of `bytes`, and its length.
fn next_batch(bytes: &[u8]) -> Result<(&[u8], usize), String> {
    let newline = bytes.iter().take(64).position(|b| *b == b'\n').ok_or("no head line")?;
    let text = std::str::from_utf8(&bytes[..=newline]).map_err(|_| "the head line is no text")?;
    let length: usize = text
        .strip_prefix('#')
        .and_then(|t| t.split_once(' '))
        .and_then(|(length, _)| length.parse().ok())
        .ok_or("the head line has no length")?;
    let end = newline.checked_add(1).and_then(|n| n.checked_add(length)).ok_or("the length is no length")?;
    let lines = bytes.get(newline + 1..end).ok_or("the batch is cut off")?;
    if head(lines) != text {
        return Err("the digest does not match".to_owned());
    }
    Ok((lines, end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::convert::Infallible;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("etcd-tls-journal-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn open(dir: &Path) -> Result<(Journal, Vec<Entry>), OpenError> {
        let mut entries = Vec::new();
        let journal = Journal::open(dir, |entry| {
            entries.push(entry);
            Ok::<_, Infallible>(())
        })?;
        Ok((journal, entries))
    }

    fn replayed(bytes: &[u8]) -> Result<(Vec<Entry>, u64), (u64, String)> {
        let mut entries = Vec::new();
        let length = replay(bytes, |entry| {
            entries.push(entry);
            Ok::<_, Infallible>(())
        })?;
        Ok((entries, length))
    }

    fn put(name: &str) -> Entry {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some(name.to_owned());
        Entry::Put(Box::new(csr))
    }

    fn lines(entries: &[Entry]) -> Vec<u8> {
        let mut lines = Vec::new();
        for entry in entries {
            match entry {
                Entry::Put(csr) => put_line(&serde_json::to_vec(csr).unwrap(), &mut lines),
                Entry::Delete { name } => Line::Delete { name }.add_to(&mut lines),
                Entry::Revision(number) => Line::Revision(*number).add_to(&mut lines),
                other => panic!("{other:?} is in no test"),
            }
        }
        lines
    }

    fn names(entries: &[Entry]) -> Vec<String> {
        entries
            .iter()
            .map(|e| match e {
                Entry::Put(csr) => csr.metadata.name.clone().unwrap(),
                Entry::Delete { name } => format!("-{name}"),
                Entry::Revision(n) => n.to_string(),
                Entry::Holders => "holders".to_owned(),
                Entry::Ledger(_) => "ledger".to_owned(),
                Entry::Hold(holding) => holding.common_name.clone(),
            })
            .collect()
    }

    #[test]
    fn acknowledged_records_are_read_back() {
        let dir = Dir::new("back");
        let (mut journal, entries) = open(&dir.0).unwrap();
        assert!(entries.is_empty());
        journal.append(&lines(&[put("a"), put("../b")])).unwrap();
        journal.append(&lines(&[Entry::Delete { name: "a".to_owned() }])).unwrap();
        drop(journal);
        let (mut journal, entries) = open(&dir.0).unwrap();
        assert_eq!(names(&entries), ["a", "../b", "-a"]);
        journal.compact([lines(&[Entry::Revision(7)]), lines(&[put("../b")])].into_iter()).unwrap();
        journal.append(&lines(&[put("c")])).unwrap();
        drop(journal);
        assert_eq!(names(&open(&dir.0).unwrap().1), ["7", "../b", "c"]);
    }

    /// The name of a journal that was written anew is durable before anything is acknowledged.
    #[test]
    fn nothing_is_appended_to_a_journal_whose_name_may_be_lost() {
        let dir = Dir::new("unnamed");
        let (mut journal, _) = open(&dir.0).unwrap();
        journal.append(&lines(&[put("a")])).unwrap();
        journal.sync_dir = |_| Err(ErrorKind::Other.into());
        journal.compact([lines(&[put("a")])].into_iter()).unwrap_err();
        journal.append(&lines(&[put("b")])).unwrap_err();
        assert!(!journal.writable());
        journal.sync_dir = sync_dir;
        journal.append(&lines(&[put("c")])).unwrap();
        drop(journal);
        assert_eq!(names(&open(&dir.0).unwrap().1), ["a", "c"]);
    }

    #[test]
    fn two_writers_are_told_apart() {
        let dir = Dir::new("two");
        let first = open(&dir.0).unwrap();
        assert!(matches!(open(&dir.0), Err(OpenError::InUse(_))));
        drop(first);
        open(&dir.0).unwrap();
    }

    #[test]
    fn a_crash_at_any_byte_loses_nothing_acknowledged() {
        let whole = [batch(&lines(&[put("a")])), batch(&lines(&[put("b"), put("c")]))];
        let bytes = whole.concat();
        for cut in whole[0].len()..bytes.len() {
            let (entries, length) = replayed(&bytes[..cut]).unwrap();
            assert_eq!((names(&entries), length), (vec!["a".to_owned()], whole[0].len() as u64), "{cut}");
        }
        assert_eq!(names(&replayed(&bytes).unwrap().0), ["a", "b", "c"]);
    }

    #[test]
    fn damage_before_the_last_batch_is_never_cut_off() {
        let whole = [batch(&lines(&[put("a")])), batch(&lines(&[put("b")]))];
        for i in 0..whole[0].len() {
            let mut bytes = whole.concat();
            bytes[i] ^= 1;
            assert!(replayed(&bytes).is_err(), "byte {i}");
        }
    }

    #[test]
    fn a_failed_write_is_as_if_it_had_not_been() {
        let dir = Dir::new("full");
        let (mut journal, _) = open(&dir.0).unwrap();
        journal.append(&lines(&[put("a")])).unwrap();
        // Every write to this device fails for want of space.
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(journal.open.as_mut().unwrap(), full);
        assert_eq!(journal.append(&lines(&[put("b")])).unwrap_err().kind(), ErrorKind::StorageFull);
        assert!(!journal.writable());
        drop(good);
        assert!(matches!(open(&dir.0), Err(OpenError::InUse(_))), "the lock is held all the time");
        journal.append(&lines(&[put("c")])).unwrap();
        drop(journal);
        assert_eq!(names(&open(&dir.0).unwrap().1), ["a", "c"]);
    }

    /// As where the directory was read-only at the start, and another process was started on it later.
    #[test]
    fn what_another_process_wrote_meanwhile_is_never_cut_off() {
        let dir = Dir::new("other");
        let (mut journal, _) = open(&dir.0).unwrap();
        journal.append(&lines(&[put("a")])).unwrap();
        drop(journal);
        let (mut reader, _) = open(&dir.0).unwrap();
        (reader.lock, reader.open) = (None, None);
        let (mut other, _) = open(&dir.0).unwrap();
        assert!(reader.append(&lines(&[put("x")])).is_err(), "the other one holds the lock");
        other.append(&lines(&[put("b")])).unwrap();
        drop(other);
        let refused = reader.append(&lines(&[put("x")])).unwrap_err().to_string();
        assert!(refused.contains("changed by somebody else"), "{refused}");
        assert_eq!(names(&open(&dir.0).unwrap().1), ["a", "b"]);

        // Where nobody wrote, it goes on.
        let (mut reader, _) = open(&dir.0).unwrap();
        (reader.lock, reader.open) = (None, None);
        reader.append(&lines(&[put("c")])).unwrap();
        drop(reader);
        assert_eq!(names(&open(&dir.0).unwrap().1), ["a", "b", "c"]);
    }
}
