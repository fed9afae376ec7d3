//! Files that are read again when they change: tells when to look again.
//!
//! Directories are watched, never files: a Secret volume swaps a symbolic link, after which a watch on the file sees nothing
//! any more. An event may be lost and a watch may fail, so every minute is a time to look, too.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::AccessKind};
use tokio::{sync::mpsc, time};

/// How often the files are looked at without an event.
pub const RECHECK: Duration = Duration::from_secs(60);
/// How long after an event they are read: a pair written by two writes is whole by then.
const SETTLE: Duration = Duration::from_millis(100);

/// A watch on the directories of some files.
#[derive(Debug)]
pub struct FileWatch {
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    unwatched: BTreeSet<PathBuf>,
}

impl FileWatch {
    /// Watches the directories of `files`. One that cannot be watched is logged and checked every [`RECHECK`].
    pub fn new<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let (tell, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if !is_a_look(&event) {
                // A full channel already says that there is something to read.
                let _ = tell.try_send(());
            }
        })
        .inspect_err(|error| tracing::warn!(%error, "cannot watch files; reading them every minute"))
        .ok();
        let mut this = Self { watcher, events, unwatched: files.into_iter().map(directory).collect() };
        this.watch();
        this
    }

    /// Waits until it is time to look: something happened in a directory, or [`RECHECK`] passed.
    pub async fn changed(&mut self) {
        if self.watcher.is_none() {
            time::sleep(RECHECK).await;
            return;
        }
        self.watch();
        match time::timeout(RECHECK, self.events.recv()).await {
            Ok(Some(())) => {
                time::sleep(SETTLE).await;
                while self.events.try_recv().is_ok() {}
            }
            // Its thread has ended.
            Ok(None) => {
                tracing::warn!("the watch of files has ended; reading them every minute");
                self.watcher = None;
            }
            Err(_) => {}
        }
    }

    /// Watches what is not watched yet: a directory may be made later.
    fn watch(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        self.unwatched.retain(|dir| {
            watcher
                .watch(dir, RecursiveMode::NonRecursive)
                .inspect_err(|error| {
                    tracing::warn!(%error, directory = %dir.display(), "cannot watch; reading it every minute");
                })
                .is_err()
        });
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// True if somebody only opened a file. We do, at each reading, which would ring for the next one for ever.
const fn is_a_look(event: &notify::Result<Event>) -> bool {
    matches!(event, Ok(Event { kind: EventKind::Access(AccessKind::Open(_)), .. }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_watch_that_has_ended_makes_no_busy_loop() {
        let mut watch = FileWatch::new([]);
        // As when the watcher's thread ends.
        (_, watch.events) = mpsc::channel(1);
        watch.changed().await;
        assert!(time::timeout(Duration::from_millis(100), watch.changed()).await.is_err());
    }

    #[tokio::test]
    async fn reading_a_file_is_no_news_of_it() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-look-{}", std::process::id()));
        let file = dir.join("file");
        fs::create_dir_all(&dir).unwrap();
        fs::write(&file, "old").unwrap();
        let mut watch = FileWatch::new([file.as_path()]);
        fs::read(&file).unwrap();
        let quiet = time::timeout(Duration::from_secs(1), watch.changed()).await.is_err();
        fs::write(&file, "new").unwrap();
        let told = time::timeout(RECHECK / 2, watch.changed()).await.is_ok();
        fs::remove_dir_all(&dir).unwrap();
        assert!(quiet && told, "{quiet} {told}");
    }
}
