//! Timers of the kernel. One of the wall clock tells when that is set: it is cancelled then, and when the machine wakes from
//! suspension. One that just waits wakes the process once; the runtime's own timers do so several times on the way.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
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

/// When a timer expires that is not to expire: this is in the year 4147, which a 64-bit clock in nanoseconds still holds.
const NEVER: i64 = 1 << 36;

/// A timer that is over once.
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Over when this time has passed.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn after(duration: Duration) -> io::Result<Self> {
        Self::new(ClockId::CLOCK_MONOTONIC, duration.into(), TimerSetTimeFlags::empty())
    }

    /// Over when the wall clock is set.
    ///
    /// # Errors
    /// The kernel has no such timer, as some sandboxes have not.
    pub fn clock_set() -> io::Result<Self> {
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Self::new(ClockId::CLOCK_REALTIME, TimeSpec::new(NEVER, 0), flags)
    }

    fn new(clock: ClockId, at: TimeSpec, flags: TimerSetTimeFlags) -> io::Result<Self> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::OneShot(at), flags)?;
        super::readable(timer.into()).map(Self)
    }

    /// Waits until it is over.
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

    use nix::time::{ClockId, clock_gettime, clock_settime};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_timer_is_over_when_its_time_has_passed() {
        let (began, pause) = (std::time::Instant::now(), Duration::from_secs(1));
        let timer = Timer::after(pause).unwrap();
        // A second wait for one timer goes on with it.
        let early = timeout(Duration::from_millis(20), timer.wait()).await;
        assert!(early.is_err() || began.elapsed() >= pause, "not yet");
        timeout(Duration::from_secs(10), timer.wait()).await.unwrap().unwrap();
        assert!(began.elapsed() >= pause);
    }

    /// Sets the clock to its current value: only timers that cancel on a clock change notice. Needs the right to set the clock.
    #[tokio::test]
    async fn a_clock_that_is_set_is_told_at_once_and_no_other() {
        let (watched, other) = (Timer::clock_set().unwrap(), Timer::clock_set().unwrap());
        assert!(timeout(Duration::from_millis(50), watched.wait()).await.is_err(), "nobody has set it");
        let clock = ClockId::CLOCK_REALTIME;
        if clock_settime(clock, clock_gettime(clock).unwrap()).is_err() {
            return;
        }
        timeout(Duration::from_secs(1), watched.wait()).await.unwrap().unwrap();
        timeout(Duration::from_secs(1), other.wait()).await.unwrap().unwrap();
        let later = Timer::clock_set().unwrap();
        assert!(timeout(Duration::from_millis(50), later.wait()).await.is_err(), "it was set before");
    }
}
