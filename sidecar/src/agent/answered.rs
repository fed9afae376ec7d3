//! The trust bundle that comes with the issuer's answers (`trust: issuer`).
//!
//! An answer names the CA of now and no order of CAs. So a CA that is new is added beside those in use, and a CA that the answers
//! leave out stays for as long as a certificate of it may be in use: for the life of a certificate.

use std::{cell::RefCell, time::Duration};

use etcd_tls_contract::certificate::Bundle;
use tokio::sync::Notify;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answered {
    state: RefCell<State>,
    heard: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The bundle to have in use.
    offered: Option<Bundle>,
    /// Since when the answers leave out a CA in use, in terms of [`Clock::elapsed`](crate::os::clock::Clock::elapsed).
    left_out: Option<Duration>,
    /// Whether the last answer had a CA; `None` before the first one.
    states: Option<bool>,
    /// Why it had none.
    missing: Option<String>,
}

impl Answered {
    /// Takes the CA of an answer, or why it has none. `in_use` is the bundle in use, `life` the longest life of a certificate
    /// under it.
    pub(super) fn hear(
        &self,
        authority: &Result<Bundle, String>,
        in_use: Option<&Bundle>,
        now: Duration,
        life: Duration,
    ) {
        let mut state = self.state.borrow_mut();
        state.states = Some(authority.is_ok());
        match authority {
            Ok(stated) => {
                let before = state.offered.take();
                let base = before.as_ref().or(in_use);
                let next =
                    base.map_or_else(|| stated.clone(), |base| next(base, stated, &mut state.left_out, now, life));
                if before.as_ref() != Some(&next) {
                    self.heard.notify_one();
                }
                (state.offered, state.missing) = (Some(next), None);
            }
            Err(why) => {
                if state.missing.as_ref() != Some(why) {
                    tracing::warn!(
                        why,
                        "the issuer's answer has no CA (status.ca), from which trust: issuer takes the bundle; the bundle in \
                         use stays. Where the issuer gives none, name the bundle: trust: configmap/<name>"
                    );
                }
                state.missing = Some(why.clone());
            }
        }
    }

    /// The bundle to have in use; `None` before the first answer with a CA.
    pub(super) fn offered(&self) -> Option<Bundle> {
        self.state.borrow().offered.clone()
    }

    /// Why there is none.
    pub(super) fn missing(&self) -> String {
        let why = self.state.borrow().missing.clone().unwrap_or_else(|| "there was no answer yet".to_owned());
        format!(
            "the issuer's answer has no CA (status.ca) to verify it under: {why}; name the bundle by annotation trust"
        )
    }

    /// Whether the last answer had a CA; `None` before the first one.
    pub(super) fn states(&self) -> Option<bool> {
        self.state.borrow().states
    }

    /// Ends when an answer has changed the bundle.
    pub(super) async fn changed(&self) {
        self.heard.notified().await;
    }
}

/// The bundle after an answer with `stated`, where `base` is the one before. `left_out`: see [`State`].
fn next(base: &Bundle, stated: &Bundle, left_out: &mut Option<Duration>, now: Duration, life: Duration) -> Bundle {
    if stated.contains(base) {
        *left_out = None;
        return stated.clone();
    }
    // With another CA the time begins anew: certificates of the last one are in use yet.
    if !base.contains(stated) {
        *left_out = None;
    }
    let since = *left_out.get_or_insert(now);
    if now.saturating_sub(since) > life {
        *left_out = None;
        return stated.clone();
    }
    base.union(stated)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::Authority;

    const LIFE: Duration = Duration::from_secs(3600);

    #[test]
    fn a_ca_is_added_at_once_and_leaves_after_a_certificates_life() {
        let [old, new, last] = ["old", "new", "last"].map(|name| Authority::named(name).bundle());
        let seconds = Duration::from_secs;
        let answered = Answered::default();
        let hear = |bundle: &Bundle, at| {
            answered.hear(&Ok(bundle.clone()), Some(&old), seconds(at), LIFE);
            answered.offered().unwrap()
        };
        assert_eq!(hear(&old, 0), old);
        // With overlap, and back again.
        assert_eq!(hear(&old.union(&new), 10), old.union(&new));
        assert_eq!(hear(&old, 20), old.union(&new), "certificates of the new one may be in use");
        assert_eq!(hear(&old, 20 + 3601), old);
        // Without.
        assert_eq!(hear(&new, 5000), old.union(&new));
        assert_eq!(hear(&new, 5000 + 3600), old.union(&new));
        assert_eq!(hear(&last, 8700), old.union(&new).union(&last), "the next one begins the time anew");
        assert_eq!(hear(&last, 12_200), old.union(&new).union(&last));
        assert_eq!(hear(&last, 8700 + 3601), last);
    }

    #[test]
    fn an_answer_without_a_ca_changes_nothing_and_is_said() {
        let old = Authority::named("old").bundle();
        let answered = Answered::default();
        assert_eq!((answered.offered(), answered.states()), (None, None));
        answered.hear(&Err("it is empty".to_owned()), None, Duration::ZERO, LIFE);
        assert_eq!((answered.offered(), answered.states()), (None, Some(false)));
        assert!(answered.missing().contains("(status.ca)") && answered.missing().contains("it is empty"));
        answered.hear(&Ok(old.clone()), None, Duration::ZERO, LIFE);
        answered.hear(&Err("it is empty".to_owned()), Some(&old), Duration::ZERO, LIFE);
        assert_eq!((answered.offered(), answered.states()), (Some(old), Some(false)));
    }
}
