//! Changes of a directory, as inotify tells them.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use nix::{
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::read,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Tells when an entry of a directory is made, moved, deleted or written.
#[derive(Debug)]
pub struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    /// Of the directory `path`, which must be there.
    ///
    /// # Errors
    /// It is not there, or the kernel has no watch left.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB;
        inotify.add_watch(path, events | AddWatchFlags::IN_ONLYDIR)?;
        super::readable(inotify.into()).map(Self)
    }

    /// Waits for a change since the last call.
    ///
    /// # Errors
    /// The system's.
    pub async fn changed(&self) -> io::Result<()> {
        // Which entry it was does not matter.
        let attempt = |inotify: &OwnedFd| read(inotify.as_fd(), &mut [0; 4096]).map(|_| ()).map_err(io::Error::from);
        self.0.async_io(Interest::READABLE, attempt).await
    }
}

/// Waits for a change of a directory, where it is watched.
pub async fn changes(watch: Option<&DirectoryWatch>) {
    match watch {
        Some(watch) => {
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::unix::fs::symlink, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// As kubelet swaps a volume's contents.
    #[tokio::test]
    async fn a_swapped_link_is_told_and_reading_is_not() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-watch-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("..1")).unwrap();
        fs::write(dir.join("..1/peer.crt"), "a").unwrap();
        symlink("..1", dir.join("..data")).unwrap();
        let watch = DirectoryWatch::new(&dir).unwrap();
        let quiet = || timeout(Duration::from_millis(50), watch.changed());
        fs::read(dir.join("..data/peer.crt")).unwrap();
        fs::read_dir(&dir).unwrap().for_each(drop);
        assert!(quiet().await.is_err(), "reading is no change");
        fs::create_dir(dir.join("..2")).unwrap();
        symlink("..2", dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        timeout(Duration::from_secs(1), watch.changed()).await.unwrap().unwrap();
        assert!(quiet().await.is_err(), "told once");
        fs::write(dir.join("new"), "a").unwrap();
        timeout(Duration::from_secs(1), watch.changed()).await.unwrap().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(DirectoryWatch::new(&dir).is_err());
    }
}
