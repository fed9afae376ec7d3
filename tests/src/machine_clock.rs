//! The clock of everything at once: servers, sidecars, clients and this very process, which a test steps by a command that
//! somebody gave it for a machine to throw away.

use std::{
    process::Command,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use crate::process::run;

/// Steps the clock, and sets it right again when dropped.
#[derive(Debug)]
pub struct MachineClock {
    command: String,
    /// By how much it was stepped in all, in seconds.
    offset: AtomicI64,
}

impl MachineClock {
    /// `command` is given to a shell with the seconds, such as +3600, as its one more argument.
    pub const fn new(command: String) -> Self {
        Self { command, offset: AtomicI64::new(0) }
    }

    /// Steps it by so many seconds.
    ///
    /// # Panics
    /// When this process's clock is not stepped by it.
    pub fn step(&self, seconds: i64) {
        let (wall, began) = (SystemTime::now(), Instant::now());
        run(Command::new("sh").args(["-c", &format!("{} {seconds:+}", self.command)]));
        self.offset.fetch_add(seconds, Ordering::Relaxed);
        let step = Duration::from_secs(seconds.unsigned_abs());
        let now = wall + began.elapsed();
        let expected = if seconds < 0 { now - step } else { now + step };
        let off = SystemTime::now().duration_since(expected).unwrap_or_else(|early| early.duration());
        assert!(off < Duration::from_secs(60), "{:?} did not step the clock by {seconds} s", self.command);
    }
}

impl Drop for MachineClock {
    fn drop(&mut self) {
        let offset = self.offset.load(Ordering::Relaxed);
        if offset != 0 && !std::thread::panicking() {
            self.step(-offset);
        } else if offset != 0 {
            let _ = Command::new("sh").args(["-c", &format!("{} {:+}", self.command, -offset)]).status();
        }
    }
}
