//! Whether the wall clock was set, as the kernel tells it: a timer of the wall clock that is cancelled when that happens, and
//! when the machine wakes from suspension.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::read,
};
use tokio::io::{Interest, unix::AsyncFd};

/// The timer never expires by itself: this is in the year 4147, which a 64-bit clock in nanoseconds still holds.
const NEVER: i64 = 1 << 36;

/// A timer that tells once that the wall clock was set.
#[derive(Debug)]
pub struct ClockSet(AsyncFd<OwnedFd>);

impl ClockSet {
    /// From now on.
    ///
    /// # Errors
    /// The kernel has no such timer, as some sandboxes have not.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(
            Expiration::OneShot(TimeSpec::new(NEVER, 0)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        )?;
        super::readable(timer.into()).map(Self)
    }

    /// Waits until the clock is set.
    ///
    /// # Errors
    /// The system's.
    pub async fn wait(&self) -> io::Result<()> {
        let attempt = |timer: &OwnedFd| match read(timer.as_fd(), &mut [0; 8]) {
            Ok(_) | Err(Errno::ECANCELED) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        };
        self.0.async_io(Interest::READABLE, attempt).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use nix::time::{ClockId, clock_gettime, clock_settime};
    use tokio::time::timeout;

    use super::*;

    /// The clock is set to what it says already: nobody notices but who asks to be told. That takes the right to set it.
    #[tokio::test]
    async fn a_clock_that_is_set_is_told_at_once_and_no_other() {
        let (watched, other) = (ClockSet::new().unwrap(), ClockSet::new().unwrap());
        assert!(timeout(Duration::from_millis(50), watched.wait()).await.is_err(), "nobody has set it");
        let clock = ClockId::CLOCK_REALTIME;
        if clock_settime(clock, clock_gettime(clock).unwrap()).is_err() {
            return;
        }
        timeout(Duration::from_secs(1), watched.wait()).await.unwrap().unwrap();
        timeout(Duration::from_secs(1), other.wait()).await.unwrap().unwrap();
        let later = ClockSet::new().unwrap();
        assert!(timeout(Duration::from_millis(50), later.wait()).await.is_err(), "it was set before");
    }
}
