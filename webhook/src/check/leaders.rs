//! Checks that `approve` and `sign` have a leader, by their Leases and the API server's clock. Pure.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;

use super::finding::Finding;
use crate::{controller::lease, status::State};

const SEE: &str = "docs/check.md#leases";
const SEE_CLOCK: &str = "docs/check.md#clock";
/// How far clocks may be apart: two renewals of a Lease, with what an answer takes.
const APART: Duration = Duration::from_secs(20);

/// A Lease as it was read, and when, by the API server's clock.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// `None`: there is none.
    pub(super) lease: Option<Lease>,
    /// The time of the read, by the API server's clock.
    pub(super) at: SystemTime,
}

impl Seen {
    fn holder(&self) -> Option<&str> {
        let holder = self.lease.as_ref()?.spec.as_ref()?.holder_identity.as_deref()?;
        (!holder.is_empty()).then_some(holder)
    }

    fn renewed(&self) -> Option<SystemTime> {
        Some(SystemTime::from(self.lease.as_ref()?.spec.as_ref()?.renew_time.as_ref()?.0))
    }

    /// True if its holder has renewed it just now, as far as one look can say.
    pub(super) fn is_fresh(&self) -> bool {
        self.holder().is_some()
            && self
                .renewed()
                .is_some_and(|renewed| self.at.duration_since(renewed).is_ok_and(|age| age < lease::DURATION))
    }
}

/// The findings of two looks, some seconds apart, at the process `name`. The second look counts only if the first was not
/// fresh: a Lease that changes has a holder, even with a wrong clock.
pub(super) fn judge(name: &str, first: &Seen, second: &Seen, system: &str) -> Vec<Finding> {
    let subject = format!("lease etcd-tls-{name}");
    let next = format!("kubectl -n {system} get pods; kubectl -n {system} logs deploy/etcd-tls-{name}");
    let bad = |reason: String| vec![Finding::bad(State::Failing, &subject, reason, next.clone(), SEE)];
    if second.lease.is_none() {
        return bad(format!("there is none: {name} has never run here"));
    }
    let Some(holder) = second.holder() else {
        return bad(format!("no replica of {name} leads: the last one has stopped, and no other has taken over"));
    };
    let version = |seen: &Seen| seen.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
    let (Some(renewed), alive) = (second.renewed(), second.is_fresh() || version(first) != version(second)) else {
        return bad(format!("{holder} has never renewed it"));
    };
    let age = second.at.duration_since(renewed);
    if !alive {
        let age = age.map_or_else(|_| "some time".to_owned(), |age| format!("{} s", age.as_secs()));
        return bad(format!("its holder {holder} has not renewed it for {age}, and no other replica has taken over"));
    }
    let mut findings = vec![Finding::ok(&subject, format!("{holder} leads"), SEE)];
    let (apart, word) = match age {
        Ok(behind) => (behind, "behind"),
        Err(ahead) => (ahead.duration(), "ahead of"),
    };
    if apart > APART {
        findings.push(Finding::bad(
            State::Attention,
            format!("clock of {holder}"),
            format!("its node's clock is {} s {word} the API server's", apart.as_secs()),
            format!("kubectl -n {system} get pod {holder} -o wide; set the clock of its node by NTP"),
            SEE_CLOCK,
        ));
    }
    findings
}

/// The difference between this machine's clock and the API server's.
pub(super) fn clock(local: SystemTime, server: SystemTime) -> Finding {
    let apart = local.duration_since(server).unwrap_or_else(|error| error.duration());
    if apart > APART {
        let reason = format!("this machine's clock and the API server's are {} s apart", apart.as_secs());
        let next = "set both by NTP; ages in status and check are by this machine's clock";
        Finding::bad(State::Attention, "clock", reason, next, SEE_CLOCK)
    } else {
        Finding::ok("clock", "this machine's clock and the API server's agree", SEE_CLOCK)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn seen(at: u64, lease: Option<(&str, &str, u64)>) -> Seen {
        let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let lease = lease.map(|(version, holder, renewed)| {
            let renewed = jiff::Timestamp::try_from(time(renewed)).unwrap().to_string();
            serde_json::from_value(json!({
                "metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder, "renewTime": renewed},
            }))
            .unwrap()
        });
        Seen { lease, at: time(at) }
    }

    #[test]
    fn a_lease_that_changes_has_a_leader_with_any_clock() {
        let of = |first: Seen, second: Seen| {
            judge("sign", &first, &second, "etcd-tls-system")
                .iter()
                .map(|f| (f.state, f.reason.clone()))
                .collect::<Vec<_>>()
        };
        let states = |found: &[(State, String)]| found.iter().map(|(state, _)| *state).collect::<Vec<_>>();
        for (name, first, second, expected, words) in [
            ("fresh", seen(100, Some(("1", "a", 98))), seen(100, Some(("1", "a", 98))), &[State::Ok][..], "a leads"),
            ("none", seen(100, None), seen(100, None), &[State::Failing], "there is none"),
            (
                "released",
                seen(100, Some(("1", "", 98))),
                seen(107, Some(("1", "", 98))),
                &[State::Failing],
                "no replica",
            ),
            ("dead", seen(100, Some(("1", "a", 20))), seen(107, Some(("1", "a", 20))), &[State::Failing], "for 87 s"),
            (
                "behind",
                seen(1000, Some(("1", "a", 100))),
                seen(1007, Some(("2", "a", 106))),
                &[State::Ok, State::Attention],
                "901 s behind",
            ),
            (
                "ahead",
                seen(1000, Some(("1", "a", 5000))),
                seen(1007, Some(("2", "a", 5006))),
                &[State::Ok, State::Attention],
                "3999 s ahead of",
            ),
            (
                "ahead and dead",
                seen(1000, Some(("1", "a", 5000))),
                seen(1007, Some(("1", "a", 5000))),
                &[State::Failing],
                "has not renewed it",
            ),
        ] {
            let found = of(first, second);
            assert_eq!(states(&found), expected, "{name}: {found:?}");
            assert!(found.iter().any(|(_, reason)| reason.contains(words)), "{name}: {found:?}");
        }
        let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(clock(time(100), time(101)).state, State::Ok);
        assert_eq!(clock(time(100), time(200)).state, State::Attention);
        assert_eq!(clock(time(200), time(100)).state, State::Attention);
    }
}
