//! The trust bundle that comes with the issuer's answers (`trust: issuer`).
//!
//! An answer names the CA of now and no order of CAs. So a CA that is new is added beside those in use. A CA that the answers leave
//! out stays for the life of a certificate after the last answer that named it: until then, certificates of it may be in use.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use etcd_tls_contract::certificate::Bundle;
use tokio::sync::Notify;

use crate::issuance::obtain::NoAuthority;

/// The most CAs of a bundle. An issuer that names more within the life of a certificate is refused.
const MOST: usize = 16;

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
    /// When an answer last named each CA, by its DER, in terms of [`Clock::elapsed`](crate::os::clock::Clock::elapsed); of one in
    /// use that none has named, the first answer.
    named: BTreeMap<Vec<u8>, Duration>,
    /// True if the last answer had a CA; `None` before the first one.
    states: Option<bool>,
    /// Why it had none.
    missing: Option<NoAuthority>,
}

impl Answered {
    /// Takes the CA of an answer, or why it has none. `in_use` is the bundle in use, `life` the longest life of a certificate
    /// under it.
    pub(super) fn hear(
        &self,
        authority: &Result<Bundle, NoAuthority>,
        in_use: Option<&Bundle>,
        now: Duration,
        life: Duration,
    ) {
        let mut state = self.state.borrow_mut();
        state.states = Some(authority.is_ok());
        match authority {
            Ok(stated) => {
                let before = state.offered.take();
                let base = before.as_ref().or(in_use).unwrap_or(stated);
                let next = next(base, stated, &mut state.named, now, life);
                if next.certificates().len() > MOST {
                    tracing::warn!(
                        most = MOST,
                        "the issuer has named more CAs within the life of a certificate than a bundle may hold; the bundle in use stays"
                    );
                    state.offered = before;
                    return;
                }
                if before.as_ref() != Some(&next) {
                    self.heard.notify_one();
                }
                (state.offered, state.missing) = (Some(next), None);
            }
            Err(why) => {
                if state.missing.as_ref() != Some(why) {
                    tracing::warn!(
                        %why,
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
        let why = self
            .state
            .borrow()
            .missing
            .as_ref()
            .map_or_else(|| "there was no answer yet".to_owned(), ToString::to_string);
        format!(
            "the issuer's answer has no CA (status.ca) to verify it under: {why}; name the bundle by annotation trust"
        )
    }

    /// True if the last answer had a CA; `None` before the first one.
    pub(super) fn states(&self) -> Option<bool> {
        self.state.borrow().states
    }

    /// Ends when an answer has changed the bundle.
    pub(super) async fn changed(&self) {
        self.heard.notified().await;
    }
}

/// The bundle after an answer with `stated`, where `base` is the one before. `named`: see [`State`].
fn next(
    base: &Bundle,
    stated: &Bundle,
    named: &mut BTreeMap<Vec<u8>, Duration>,
    now: Duration,
    life: Duration,
) -> Bundle {
    for der in stated.certificates() {
        named.insert(der.clone(), now);
    }
    for der in base.certificates() {
        named.entry(der.clone()).or_insert(now);
    }
    named.retain(|_, at| now.saturating_sub(*at) <= life);
    let all = base.union(stated);
    all.only(|der| named.contains_key(der)).unwrap_or_else(|| stated.clone())
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
        assert_eq!(hear(&old, 10 + 3601), old);
        // Without.
        assert_eq!(hear(&new, 5000), old.union(&new));
        assert_eq!(hear(&new, 10 + 3601 + 3600), old.union(&new));
        assert_eq!(hear(&last, 7212), new.union(&last), "each has a time of its own");
        assert_eq!(hear(&last, 7211 + 3600), new.union(&last));
        assert_eq!(hear(&last, 7211 + 3601), last);
    }

    #[test]
    fn a_ca_that_comes_and_goes_stays_for_a_life_after_its_last_answer() {
        let [old, new] = ["old", "new"].map(|name| Authority::named(name).bundle());
        let answered = Answered::default();
        let hear = |bundle: &Bundle, at| {
            answered.hear(&Ok(bundle.clone()), Some(&old), Duration::from_secs(at), LIFE);
            answered.offered().unwrap()
        };
        // New for most of a life, then back, as of an issuer with two replicas.
        for at in [0, 1800, 3060] {
            assert_eq!(hear(&new, at), old.union(&new));
        }
        for at in [3240, 3601, 3060 + 3600] {
            assert_eq!(hear(&old, at), old.union(&new), "{at}: a certificate of `new` is younger than a life");
        }
        assert_eq!(hear(&old, 3060 + 3601), old);
    }

    #[test]
    fn an_issuer_of_ever_other_cas_fills_no_bundle() {
        let answered = Answered::default();
        for n in 0..20 {
            answered.hear(&Ok(Authority::named(&n.to_string()).bundle()), None, Duration::from_secs(n), LIFE);
        }
        assert_eq!(answered.offered().unwrap().certificates().len(), MOST);
    }

    #[test]
    fn an_answer_without_a_ca_changes_nothing_and_is_said() {
        let old = Authority::named("old").bundle();
        let answered = Answered::default();
        assert_eq!((answered.offered(), answered.states()), (None, None));
        answered.hear(&Err(NoAuthority::Empty), None, Duration::ZERO, LIFE);
        assert_eq!((answered.offered(), answered.states()), (None, Some(false)));
        assert!(answered.missing().contains("(status.ca)") && answered.missing().contains("it is empty"));
        answered.hear(&Ok(old.clone()), None, Duration::ZERO, LIFE);
        answered.hear(&Err(NoAuthority::Empty), Some(&old), Duration::ZERO, LIFE);
        assert_eq!((answered.offered(), answered.states()), (Some(old), Some(false)));
    }
}
