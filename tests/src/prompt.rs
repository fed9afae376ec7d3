//! A promise in seconds, judged on a machine that may stand still meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::say;

/// From the command that revokes to the first refused handshake of the last member.
pub const PROMISE: Duration = Duration::from_secs(5);
/// A machine on which nothing ran for so long measures itself. Such a round counts only if there is no other.
pub const STALL: Duration = Duration::from_millis(500);

/// The longest time for which this process did not run.
#[derive(Debug)]
pub struct Stalls {
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Stalls {
    /// In a thread of its own: the test's own work is no stall.
    #[must_use]
    pub fn watch() -> Self {
        let stalls = Self { longest: Arc::default(), over: Arc::default() };
        let (longest, over) = (Arc::clone(&stalls.longest), Arc::clone(&stalls.over));
        std::thread::spawn(move || {
            let tick = Duration::from_millis(10);
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(tick);
                let late = began.elapsed().saturating_sub(tick);
                longest.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        stalls
    }

    /// Begins a round.
    pub fn begin(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// The longest one since.
    pub fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Judges rounds by [`PROMISE`]: each is the time that it took, with the longest stall meanwhile. Machines that run tests do other
/// work, so the promise is measured by the lower middle of the rounds without a stall: the second of three. A slower one is printed.
///
/// # Panics
/// The promise is not kept.
pub fn judge(what: &str, rounds: &[(Duration, Duration)]) {
    say(&format!("{what}: time to the last member's first refusal, and longest stall: {rounds:.0?}"));
    let counts = |(_, stall): &&(Duration, Duration)| *stall < STALL;
    let mut counted: Vec<Duration> = rounds.iter().filter(counts).map(|(took, _)| *took).collect();
    counted.sort_unstable();
    let middle = counted.get(counted.len().saturating_sub(1) / 2).copied();
    let measured = middle.or_else(|| rounds.iter().map(|(took, _)| *took).min()).expect("rounds");
    assert!(measured <= PROMISE, "{what}: {rounds:?}");
}
