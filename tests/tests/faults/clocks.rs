//! The clocks of three machines, each stepped by an hour, forward and later back, and set right again while its programs run.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use tests::{process::Process, sidecar_cluster::FakeClock};

/// A clock is stepped, or set right, this often.
const EVERY: Duration = Duration::from_secs(7);
/// By this many seconds.
const STEP: i64 = 3600;

/// Whose clock.
#[derive(Clone, Copy, Debug)]
pub enum Machine {
    /// `approve-a` and `sign-a`.
    A,
    /// `approve-b` and `sign-b`.
    B,
    /// The sidecars of one namespace.
    Members,
}

/// See the module.
pub struct Clocks {
    clocks: [FakeClock; 3],
    steps: AtomicUsize,
    seen_ahead: AtomicBool,
    seen_behind: AtomicBool,
}

impl Clocks {
    /// By this library.
    pub fn new(library: PathBuf) -> Self {
        Self {
            clocks: [(); 3].map(|()| FakeClock::new(library.clone())),
            steps: AtomicUsize::new(0),
            seen_ahead: AtomicBool::new(false),
            seen_behind: AtomicBool::new(false),
        }
    }

    /// The environment of a program of a machine.
    pub fn environment(&self, machine: Machine) -> Vec<(String, String)> {
        self.clocks[machine as usize].environment()
    }

    /// Takes the steps that are due: of one machine after the other, an hour ahead and right again, then an hour behind and right again.
    pub fn step_at(&self, elapsed: Duration) {
        while elapsed > EVERY * u32::try_from(self.steps()).expect("few steps") {
            let n = self.steps.fetch_add(1, Ordering::Relaxed);
            let (turn, right) = (n / 2, n % 2 == 1);
            let ahead = (turn / self.clocks.len()).is_multiple_of(2);
            let seconds = match (right, ahead) {
                (true, _) => 0,
                (false, true) => STEP,
                (false, false) => -STEP,
            };
            self.clocks[turn % self.clocks.len()].step(seconds);
        }
    }

    /// How many there were.
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::Relaxed)
    }

    /// Sets all right.
    pub fn set_right(&self) {
        self.clocks.iter().for_each(|clock| clock.step(0));
    }

    /// Looks for lines of these programs' logs that are of a stepped clock.
    pub fn look<'a>(&self, programs: impl Iterator<Item = &'a Process>) {
        let seen = |of: &AtomicBool| of.load(Ordering::Relaxed);
        if seen(&self.seen_ahead) && seen(&self.seen_behind) {
            return;
        }
        let now = Timestamp::now().as_second();
        for program in programs {
            let end = program.log_end();
            let time = |line: &str| line.split_whitespace().next()?.parse::<Timestamp>().ok();
            let Some(last) = end.lines().rev().find_map(time) else { continue };
            let off = last.as_second() - now;
            self.seen_ahead.fetch_or(off > STEP / 2, Ordering::Relaxed);
            self.seen_behind.fetch_or(off < -STEP / 2, Ordering::Relaxed);
        }
    }

    /// Both steps were seen in logs: a program that does not load the library proves nothing.
    ///
    /// # Panics
    /// Where one was not, though there was the time for it.
    pub fn assert_seen(&self) {
        let (ahead, behind) = (self.seen_ahead.load(Ordering::Relaxed), self.seen_behind.load(Ordering::Relaxed));
        let all = self.steps() >= 4 * self.clocks.len();
        assert!(!all || (ahead && behind), "no program had the stepped clock: ahead {ahead}, behind {behind}");
    }
}
