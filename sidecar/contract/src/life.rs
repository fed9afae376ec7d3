//! The lifetime of a leaf, and when it is renewed. Pure: the time is an argument.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};

/// How far back our signer sets notBefore, so that peers whose clock is behind, or is set back by an hour, do not refuse a
/// new certificate.
pub const BACKDATE: Duration = Duration::from_secs(65 * 60);

/// How far back notBefore is set for kubelet. With none, a peer whose clock is a second behind would refuse a new member. kube-apiserver takes
/// a difference of less than five minutes to its own clock (`ValidatePodCertificateRequestStatusUpdate` of Kubernetes), from which the signer's may
/// differ, too. Two minutes, as Kubernetes' own signer for tests has it (`test/utils/hermeticpodcertificatesigner`).
pub const POD_CERTIFICATE_BACKDATE: Duration = Duration::from_secs(2 * 60);

/// The part of the life before which no certificate is renewed, and the part over which renewals are spread.
const EARLIEST: f64 = 0.40;
const SPREAD: f64 = 0.20;

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

    /// The remaining lifetime at `now`; zero once expired.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// True if less than a fifth is left. From then on retries are not jittered.
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
}
