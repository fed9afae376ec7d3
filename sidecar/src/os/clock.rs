//! The clocks, as an argument: tests let days pass in milliseconds.

use std::{
    future::{Future, pending},
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use crate::os::timer::Timer;

/// The wall clock, a clock that only goes forward, and chance.
pub trait Clock {
    /// The wall clock, by which certificates are judged.
    fn now(&self) -> SystemTime;

    /// Time since the process began, which no step of the wall clock changes.
    fn elapsed(&self) -> Duration;

    /// A number in [0, 1), by chance.
    fn chance(&self) -> f64;

    /// Sleeps.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Waits until the wall clock is set, where the system tells it; else for ever.
    fn set(&self) -> impl Future<Output = ()> {
        pending()
    }
}

/// How often a [`nap`] looks at the wall clock, for systems that do not tell when it is set.
const GLANCE: Duration = Duration::from_secs(15);
/// By how much the wall clock differs from the other one where it was stepped. Between two glances it is slewed by less than
/// a tenth of that.
const STEP: Duration = Duration::from_secs(1);

/// The system's own timers are used for sleeps of this length and more.
const LONG: Duration = Duration::from_secs(1);

/// The two clocks are read one after the other: so much may pass between them, or they are read again, since the process
/// may have been stopped there, and that is no step.
const STALL: Duration = Duration::from_millis(100);
/// A machine that stops the process so often has other troubles.
const READINGS: usize = 10;

/// The readings of both clocks at one time. A later difference means that the wall clock was stepped or the machine was
/// suspended.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    wall: SystemTime,
    elapsed: Duration,
}

impl Mark {
    /// Now.
    pub fn new(clock: &impl Clock) -> Self {
        let read = || {
            let elapsed = clock.elapsed();
            let wall = clock.now();
            (Self { wall, elapsed }, clock.elapsed().saturating_sub(elapsed))
        };
        let (mut best, mut took) = read();
        for _ in 1..READINGS {
            if took <= STALL {
                break;
            }
            let (again, took_again) = read();
            if took_again < took {
                (best, took) = (again, took_again);
            }
        }
        best
    }

    /// By how many seconds the wall clock was stepped since, if it was. The mark is set again.
    pub fn stepped(&mut self, clock: &impl Clock) -> Option<i64> {
        let now = Self::new(clock);
        std::mem::replace(self, now).parted(now)
    }

    fn parted(self, later: Self) -> Option<i64> {
        let (now, expected) = (later.wall, self.wall + later.elapsed.saturating_sub(self.elapsed));
        match (now.duration_since(expected), expected.duration_since(now)) {
            (Ok(ahead), _) if ahead > STEP => Some(seconds(ahead)),
            (_, Ok(behind)) if behind > STEP => Some(-seconds(behind)),
            _ => None,
        }
    }
}

/// Sleeps, but not on after the wall clock was stepped since `mark`.
pub async fn nap(clock: &impl Clock, mark: &Mark, pause: Duration) {
    let began = clock.elapsed();
    let mut set = pin!(clock.set());
    loop {
        let left = pause.saturating_sub(clock.elapsed().saturating_sub(began));
        if left.is_zero() || mark.parted(Mark::new(clock)).is_some() {
            return;
        }
        tokio::select! {
            () = clock.sleep(left.min(GLANCE)) => {}
            () = &mut set => set.set(clock.set()),
        }
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from((duration + STEP / 2).as_secs()).unwrap_or(i64::MAX)
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
        // A long one wakes the process once.
        if duration >= LONG
            && let Ok(timer) = Timer::after(duration)
            && timer.wait().await.is_ok()
        {
            return;
        }
        tokio::time::sleep(duration).await;
    }

    async fn set(&self) {
        if let Ok(set) = Timer::clock_set()
            && set.wait().await.is_ok()
        {
            return;
        }
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::*;
    use crate::testing::Fake;

    /// Reads its wall clock through a function.
    struct Reading<F>(Fake, F);

    impl<F: Fn(&Fake) -> SystemTime> Clock for Reading<F> {
        fn now(&self) -> SystemTime {
            self.1(&self.0)
        }

        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }

        fn chance(&self) -> f64 {
            self.0.chance()
        }

        async fn sleep(&self, duration: Duration) {
            self.0.sleep(duration).await;
        }
    }

    /// Its wall clock is stepped when so much time has passed.
    fn stepped(after: Duration, seconds: i64) -> impl Clock {
        Reading(Fake::new(), move |fake: &Fake| {
            let (now, step) = (fake.now(), Duration::from_secs(seconds.unsigned_abs()));
            match (fake.elapsed() > after, seconds < 0) {
                (false, _) => now,
                (true, true) => now - step,
                (true, false) => now + step,
            }
        })
    }

    #[test]
    fn a_stall_between_the_readings_is_no_step() {
        for before in [false, true] {
            // The process is stopped beside a reading of the wall clock, as often as is said.
            let stalls = Cell::new(2_u32);
            let stall = |fake: &Fake, here: bool| {
                if let Some(left) = stalls.get().checked_sub(1).filter(|_| here) {
                    stalls.set(left);
                    fake.pass(Duration::from_secs(3));
                }
            };
            let clock = Reading(Fake::new(), |fake: &Fake| {
                stall(fake, before);
                let now = fake.now();
                stall(fake, !before);
                now
            });
            let mut mark = Mark::new(&clock);
            assert_eq!(mark.stepped(&clock), None, "stalled when the mark was set");
            stalls.set(1);
            assert_eq!(mark.stepped(&clock), None, "stalled since");
            let began = clock.0.began.get();
            clock.0.began.set(began + Duration::from_secs(60));
            stalls.set(1);
            assert_eq!(mark.stepped(&clock), Some(60), "a step beside a stall");
            assert_eq!(mark.stepped(&clock), None, "said once");
        }
    }

    /// Its system tells when it is set.
    struct Told<C>(C, Duration);

    impl<C: Clock> Clock for Told<C> {
        fn now(&self) -> SystemTime {
            self.0.now()
        }

        fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }

        fn chance(&self) -> f64 {
            self.0.chance()
        }

        async fn sleep(&self, duration: Duration) {
            let end = self.0.elapsed() + duration;
            while self.0.elapsed() < end {
                self.0.sleep(Duration::from_millis(100)).await;
                tokio::task::yield_now().await;
            }
        }

        async fn set(&self) {
            while self.0.elapsed() <= self.1 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn a_step_that_is_told_ends_a_nap_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (step, said, slept) in [(3600, Some(3600), 10), (-3600, Some(-3600), 10), (0, None, 60)] {
            let after = Duration::from_secs(10);
            let clock = Told(stepped(after, step), after);
            let mut mark = Mark::new(&clock);
            runtime.block_on(nap(&clock, &mark, Duration::from_secs(60)));
            assert_eq!(clock.elapsed().as_secs(), slept, "{step} s");
            assert_eq!(mark.stepped(&clock), said, "{step} s");
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_ends_a_nap() {
        let minute = Duration::from_secs(60);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (after, step, slept, said) in [
            (100, 3600, 60, None),
            (10, 3600, 15, Some(3600)),
            (10, -3600, 15, Some(-3600)),
            (10, 1, 60, None),
            (0, -86_400, 15, Some(-86_400)),
        ] {
            let clock = stepped(Duration::from_secs(after), step);
            let mut mark = Mark::new(&clock);
            runtime.block_on(nap(&clock, &mark, minute));
            assert_eq!(clock.elapsed(), Duration::from_secs(slept), "{step} s after {after} s");
            assert_eq!(mark.stepped(&clock), said, "{step} s after {after} s");
            assert_eq!(mark.stepped(&clock), None, "said once");
        }
        let clock = stepped(minute, 0);
        runtime.block_on(nap(&clock, &Mark::new(&clock), Duration::from_millis(10)));
        assert_eq!(clock.elapsed(), Duration::from_millis(10));
    }
}
