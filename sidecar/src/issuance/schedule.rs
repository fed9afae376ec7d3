//! When to poll and when to retry. Pure: the time and the randomness are arguments.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::life::Life;

/// The longest sleep. The wall clock is read at least this often, so that a suspended machine and a stepped clock are noticed.
pub const TICK: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// The first pause after a verdict, which only a person can change.
const VERDICT_BACKOFF: Duration = Duration::from_secs(30);

/// About how long an idle approver and signer take.
const FIRST_POLL: Duration = Duration::from_millis(10);
const LONGEST_FIRST_POLL: Duration = Duration::from_secs(1);
/// An API server with little to do answers sooner.
const BUSY: Duration = Duration::from_millis(10);
const SHORTEST_POLL: Duration = Duration::from_millis(4);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// After this time the signer is assumed to be down.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
const AWAY_POLL: Duration = Duration::from_secs(30);

/// The pause after the `failures`th failure in a row (from 1): 1 s doubling to 5 min, but never more than a twentieth of
/// `life`'s whole; full jitter by `chance` (in [0, 1)), none when life is short.
pub fn backoff(failures: u32, life: Option<Life>, now: SystemTime, chance: f64) -> Duration {
    let cap = life.map_or(LONGEST_BACKOFF, |l| (l.whole() / 20).clamp(FIRST_BACKOFF, LONGEST_BACKOFF));
    let most = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(cap);
    if life.is_some_and(|l| l.is_short(now)) { most } else { most.mul_f64(chance) }
}

/// The pause after the `times`th request in a row (from 1) that was judged and refused: 30 s doubling to 5 min, the upper
/// half of it jittered by `chance`. A new request sooner would be judged the same.
pub fn verdict_backoff(times: u32, chance: f64) -> Duration {
    let most = VERDICT_BACKOFF.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1))).min(LONGEST_BACKOFF);
    most.mul_f64(0.5 + 0.5 * chance)
}

/// The pause before a request that was just made is looked at for the first time. `took` is how long the API server took to
/// make it, without the connection. Approver and signer read it and write it before its certificate is there, which takes
/// about twice as long. A busy API server has the requests of others to serve first: five times as long.
pub fn first_poll(took: Duration) -> Duration {
    (took * 2 + took.saturating_sub(BUSY) * 3).clamp(FIRST_POLL, LONGEST_FIRST_POLL)
}

/// The pause before a request that is `elapsed` old is looked at again: a quarter of its age, from 4 ms to 5 s, a quarter of
/// it more or less by `chance` (in [0, 1)); 30 s when it has waited for ten minutes. `took` is how long the last answer
/// took: between two looks a busy API server has up to three times as long for the requests of others.
pub fn poll(elapsed: Duration, took: Duration, chance: f64) -> Duration {
    if elapsed > PATIENCE {
        return AWAY_POLL;
    }
    let busy = took * 2 + took.saturating_sub(BUSY);
    (elapsed / 4).max(busy).mul_f64(0.75 + 0.5 * chance).clamp(SHORTEST_POLL, LONGEST_POLL)
}

/// How long to sleep for something at `at`: never longer than [`TICK`], so that it is the wall clock that counts.
pub fn sleep(now: SystemTime, at: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default().min(TICK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn life(seconds: u64) -> Life {
        Life { issued: at(0), not_after: at(seconds) }
    }

    #[test]
    fn backoff_doubles_with_full_jitter_up_to_five_minutes() {
        let fresh = Some(life(86_400));
        for (failures, most) in [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (50, 300), (u32::MAX, 300)] {
            let most = Duration::from_secs(most);
            assert_eq!(backoff(failures, fresh, at(0), 0.0), Duration::ZERO);
            assert_eq!(backoff(failures, fresh, at(0), 0.5), most / 2);
            assert_eq!(backoff(failures, None, at(0), 0.5), most / 2, "without any certificate");
            assert_eq!(backoff(failures, fresh, at(80_000), 0.0), most, "no jitter when life is short");
            assert_eq!(backoff(failures, fresh, at(90_000), 0.0), most, "nor once it is over");
        }
        assert_eq!(backoff(50, Some(life(600)), at(590), 0.0), Duration::from_secs(30), "a twentieth of a short life");
        assert_eq!(backoff(50, Some(life(5)), at(0), 1.0), Duration::from_secs(1));
    }

    #[test]
    fn a_refused_request_is_not_repeated_hotly() {
        assert_eq!(verdict_backoff(1, 0.0), Duration::from_secs(15));
        assert_eq!(verdict_backoff(9, 0.0), Duration::from_secs(150));
        assert_eq!(verdict_backoff(u32::MAX, 1.0), Duration::from_secs(300));
    }

    #[test]
    fn polls_begin_at_once_and_grow_with_age() {
        let ms = Duration::from_millis;
        for (elapsed, pause) in [(0, 4), (12, 4), (20, 5), (100, 25), (2_000, 500), (60_000, 5_000), (900_000, 30_000)]
        {
            assert_eq!(poll(ms(elapsed), ms(1), 0.5), ms(pause), "after {elapsed} ms");
        }
        // A day of waiting is some three thousand requests at most.
        let (mut elapsed, mut polls) = (first_poll(Duration::ZERO), 1);
        while elapsed < Duration::from_secs(86_400) {
            elapsed += poll(elapsed, Duration::ZERO, 0.5);
            polls += 1;
        }
        assert!(polls < 3_200, "{polls}");
    }

    #[test]
    fn requests_made_at_once_are_looked_at_at_different_times() {
        let (age, took) = (Duration::from_secs(2), Duration::ZERO);
        assert_eq!(poll(age, took, 0.0), Duration::from_millis(375));
        assert_eq!(poll(age, took, 1.0), Duration::from_millis(625));
        assert_eq!(poll(Duration::from_secs(60), took, 1.0), LONGEST_POLL);
    }

    #[test]
    fn a_busy_server_is_asked_less() {
        let ms = Duration::from_millis;
        for (took, first, next) in
            [(1, 10, 4), (3, 10, 6), (20, 70, 50), (100, 470, 290), (300, 1_000, 890), (30_000, 1_000, 5_000)]
        {
            assert_eq!(
                (first_poll(ms(took)), poll(ms(10), ms(took), 0.5)),
                (ms(first), ms(next)),
                "answers take {took} ms"
            );
        }
        // Four hundred at once, each answer half a second: a handful of looks until the last one is through.
        let (took, mut elapsed, mut polls) = (ms(500), first_poll(ms(500)), 1);
        while elapsed < ms(4_000) {
            elapsed += took + poll(elapsed, took, 0.5);
            polls += 1;
        }
        assert!(polls <= 4, "{polls}");
    }

    #[test]
    fn sleeps_end_at_the_next_look_at_the_clock() {
        assert_eq!(sleep(at(0), at(10)), Duration::from_secs(10));
        assert_eq!(sleep(at(0), at(100_000)), TICK, "suspended or stepped: seen within a minute");
        assert_eq!(sleep(at(100_000), at(0)), Duration::ZERO);
    }
}
