//! The API server's etcd stands still now and then, for as long as a write takes on a disk that is too slow: nothing is written or read
//! meanwhile. (A library that delays fsync would not reach it: etcd is a Go program and calls the kernel itself.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{task::JoinHandle, time::sleep};

/// How long it stands still, in turns, in milliseconds.
const STILL: [u64; 5] = [200, 500, 1000, 1500, 2500];
/// How long it goes well before.
const WELL: Duration = Duration::from_secs(3);

/// Makes the disk of a process slow until it is dropped.
pub struct SlowDisk {
    process: Pid,
    stalls: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl SlowDisk {
    /// Of the process with this id.
    pub fn of(id: u32) -> Self {
        let process = Pid::from_raw(id.try_into().expect("a process id"));
        let stalls = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&stalls);
        let task = tokio::spawn(async move {
            for still in STILL.into_iter().cycle() {
                sleep(WELL).await;
                kill(process, Signal::SIGSTOP).expect("stop etcd");
                sleep(Duration::from_millis(still)).await;
                kill(process, Signal::SIGCONT).expect("let etcd go on");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { process, stalls, task }
    }

    /// The disk is fast again; how often it was not.
    ///
    /// # Panics
    /// When it was never slow.
    pub fn end(self) -> u64 {
        let stalls = self.stalls.load(Ordering::Relaxed);
        assert!(stalls > 0 && !self.task.is_finished(), "{stalls} stalls");
        stalls
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.task.abort();
        let _ = kill(self.process, Signal::SIGCONT);
    }
}
