//! The clocks, as an argument: tests let days pass in milliseconds.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

/// The wall clock, a clock that only goes forward, and chance.
pub trait Clock {
    /// The wall clock: what certificates are judged by.
    fn now(&self) -> SystemTime;

    /// Time since the process began, which no step of the wall clock changes.
    fn elapsed(&self) -> Duration;

    /// A number in [0, 1), by chance.
    fn chance(&self) -> f64;

    /// Sleeps.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;
}

/// The machine's.
#[derive(Clone, Copy, Debug)]
pub struct System {
    began: Instant,
}

impl System {
    /// Begins now.
    pub fn new() -> Self {
        Self { began: Instant::now() }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for System {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn chance(&self) -> f64 {
        let mut bytes = [0; 4];
        // Without randomness the pause is the longest: nothing is lost by it.
        match aws_lc_rs::rand::fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
            Err(_) => 0.999,
        }
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
