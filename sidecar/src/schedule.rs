//! When to renew, when to ask again, when to try again. Pure: the time and the randomness are arguments.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};

/// The wall clock is looked at so often or oftener: a suspended machine and a stepped clock are noticed.
pub const TICK: Duration = Duration::from_secs(60);
/// How far back our signer sets notBefore: for clocks that lag behind its own by some minutes, and for a clock that is set
/// back by an hour, on which a certificate of just now would be one of the future and refused by every peer.
pub const BACKDATE: Duration = Duration::from_secs(65 * 60);

/// The part of the life before which no certificate is renewed, and the part over which renewals are spread.
const EARLIEST: f64 = 0.40;
const SPREAD: f64 = 0.20;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// A verdict takes a person to change: the first pause after one.
const VERDICT_BACKOFF: Duration = Duration::from_secs(30);

/// An approver and a signer that have nothing else to do take about so long.
const FIRST_POLL: Duration = Duration::from_millis(10);
const LONGEST_FIRST_POLL: Duration = Duration::from_secs(1);
/// An API server with little to do answers sooner.
const BUSY: Duration = Duration::from_millis(10);
const SHORTEST_POLL: Duration = Duration::from_millis(4);
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// After so long the signer is not slow but away.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
const AWAY_POLL: Duration = Duration::from_secs(30);

/// A certificate's life as we count it: from the issue, not from a backdated notBefore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it was issued.
    pub issued: SystemTime,
    /// Its notAfter.
    pub not_after: SystemTime,
}

impl Life {
    /// The life of a certificate that was received at `received`, if that is known and can be true; else the issue is
    /// taken to be [`BACKDATE`] after notBefore, or notBefore itself where the whole validity is not much longer. Then a
    /// certificate of ours is counted as older than it is, and renewed once too soon, after which the receipt is known;
    /// the other way one of a signer that backdates less would be counted as younger than it is, and renewed too late.
    pub fn of(not_before: SystemTime, not_after: SystemTime, received: Option<SystemTime>) -> Self {
        let known = received.filter(|at| (not_before..not_after).contains(at));
        let validity = not_after.duration_since(not_before).unwrap_or_default();
        let guess = if validity > 2 * BACKDATE { not_before + BACKDATE } else { not_before };
        Self { issued: known.unwrap_or(guess), not_after }
    }

    /// From the issue to the end.
    pub fn whole(&self) -> Duration {
        self.not_after.duration_since(self.issued).unwrap_or_default()
    }

    /// What is left at `now`; zero once expired.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// Whether less than a fifth is left: from then on nothing is left to chance.
    pub fn is_short(&self, now: SystemTime) -> bool {
        self.left(now) < self.whole() / 5
    }

    /// When the certificate is renewed: between 40 and 60 % of its life, at a point fixed by a hash of the pod's uid and
    /// the certificate's serial. So renewals are spread over the fleet, and the same after a restart.
    pub fn renew_at(&self, uid: &str, serial: &str) -> SystemTime {
        self.issued + self.whole().mul_f64(EARLIEST + SPREAD * unit(&format!("{uid}/{serial}")))
    }
}

/// A number in [0, 1) that is fixed by `text` and looks like chance.
fn unit(text: &str) -> f64 {
    let hash = digest(&SHA256, text.as_bytes());
    let bits = hash.as_ref().iter().take(4).fold(0_u32, |n, byte| (n << 8) | u32::from(*byte));
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

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
/// make it, the connection included: two reads and two more writes are between the request and its certificate, so that it
/// cannot be there much sooner than after twice that. An API server that is busy with others' requests has theirs before it:
/// five times.
pub fn first_poll(took: Duration) -> Duration {
    (took * 2 + took.saturating_sub(BUSY) * 3).clamp(FIRST_POLL, LONGEST_FIRST_POLL)
}

/// The pause before a request that is `elapsed` old is looked at again: a quarter of its age, from 4 ms to 5 s; 30 s when
/// it has waited for ten minutes. `took` is how long the last answer took: a busy API server is left in peace for three
/// times as long, since it has others' certificates to bring along.
pub fn poll(elapsed: Duration, took: Duration) -> Duration {
    if elapsed > PATIENCE {
        return AWAY_POLL;
    }
    let busy = took * 2 + took.saturating_sub(BUSY);
    (elapsed / 4).max(busy).clamp(SHORTEST_POLL, LONGEST_POLL)
}

/// Whether an answer that `took` so long is one of a busy API server.
pub fn is_busy(took: Duration) -> bool {
    took > BUSY
}

/// How long to sleep for something at `at`: never longer than [`TICK`], so that it is the wall clock that counts.
pub fn sleep(now: SystemTime, at: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default().min(TICK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn life(seconds: u64) -> Life {
        Life::of(at(0), at(seconds), Some(at(0)))
    }

    #[test]
    fn renewal_is_due_between_40_and_60_percent() {
        for seconds in [600, 3600, 86_400, 604_800] {
            for (percent, due) in [(0, false), (39, false), (61, true), (69, true), (81, true), (99, true), (101, true)]
            {
                for serial in 0..100 {
                    let renew = life(seconds).renew_at("uid", &format!("{serial:x}"));
                    let now = at(seconds * percent / 100);
                    assert_eq!(renew <= now, due, "life {seconds} s, age {percent} %, serial {serial:x}");
                }
            }
        }
    }

    #[test]
    fn the_point_is_the_same_after_a_restart_and_differs_by_pod_and_serial() {
        let life = life(86_400);
        assert_eq!(life.renew_at("a", "1"), life.renew_at("a", "1"));
        assert_ne!(life.renew_at("a", "1"), life.renew_at("a", "2"));
        assert_ne!(life.renew_at("a", "1"), life.renew_at("b", "1"));
    }

    #[test]
    fn renewals_are_spread_evenly_over_the_fleet() {
        const BINS: usize = 20;
        let mut bins = [0_u32; BINS];
        let life = life(1_000_000);
        for pod in 0..10_000_u32 {
            let uid = format!("{pod:08x}-1f2e-4d3c-8b4a-{:012x}", u64::from(pod) * 7919);
            let renew = life.renew_at(&uid, "3f").duration_since(at(400_000)).unwrap().as_secs();
            bins[(renew as usize * BINS / 200_000).min(BINS - 1)] += 1;
        }
        let expected = 10_000.0 / BINS as f64;
        let chi2: f64 = bins.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        // 19 degrees of freedom: 43.8 is exceeded once in a thousand draws, and these draws are always the same.
        assert!(chi2 < 43.8, "chi squared {chi2}, {bins:?}");
    }

    #[test]
    fn life_is_counted_from_the_issue() {
        let (issued, end) = (at(BACKDATE.as_secs()), at(BACKDATE.as_secs() + 86_400));
        let known = Life::of(at(0), end, Some(issued));
        assert_eq!((known.issued, known.whole()), (issued, Duration::from_secs(86_400)));
        assert_eq!(Life::of(at(0), end, None), known, "unknown: the backdate is taken off");
        for absurd in [end, at(1_000_000), NOW] {
            assert_eq!(Life::of(at(0), end, Some(absurd)), known, "the clock was wrong when it was received");
        }
        assert_eq!(Life::of(at(0), at(60), None).issued, at(0), "a short one is not backdated by its whole life");
        assert_eq!(Life::of(at(60), at(0), None).whole(), Duration::ZERO, "nonsense is expired");
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
            assert_eq!(poll(ms(elapsed), ms(1)), ms(pause), "after {elapsed} ms");
        }
        // A day of waiting is some three thousand requests at most.
        let (mut elapsed, mut polls) = (first_poll(Duration::ZERO), 1);
        while elapsed < Duration::from_secs(86_400) {
            elapsed += poll(elapsed, Duration::ZERO);
            polls += 1;
        }
        assert!(polls < 3_200, "{polls}");
    }

    #[test]
    fn a_busy_server_is_asked_less() {
        let ms = Duration::from_millis;
        for (took, first, next) in
            [(1, 10, 4), (3, 10, 6), (20, 70, 50), (100, 470, 290), (300, 1_000, 890), (30_000, 1_000, 5_000)]
        {
            assert_eq!((first_poll(ms(took)), poll(ms(10), ms(took))), (ms(first), ms(next)), "answers take {took} ms");
        }
        // Four hundred at once, each answer half a second: a handful of looks until the last one is through.
        let (took, mut elapsed, mut polls) = (ms(500), first_poll(ms(500)), 1);
        while elapsed < ms(4_000) {
            elapsed += took + poll(elapsed, took);
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
