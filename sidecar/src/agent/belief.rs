//! Decides if a changed trust bundle is believed. Pure.
//!
//! The signer states the digests of the bundles in force with each certificate ([`BundlesInForce`]). A changed bundle is taken
//! only if its digest stands in the last answer to a request of our own; a change on offer therefore makes a request. A
//! signer of an earlier version states nothing: its bundles are taken as before, each after a request, until a statement
//! was seen once.

use std::{collections::BTreeMap, time::Duration};

use etcd_tls_contract::{in_force::BundlesInForce, role::Domain};

/// The first pause after a request that did not confirm the bundle on offer.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// When the same bundle is asked about again.
const ASK_AGAIN: Duration = Duration::from_secs(60 * 60);

/// The signer's statements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statements {
    /// The last digest stated of each domain; it outlives answers without a statement.
    named: BTreeMap<Domain, String>,
    /// Bundles on offer when an answer without a statement came, where none ever had one.
    silent: BTreeMap<Domain, String>,
    /// True if the last answer had a statement; `None` before the first one.
    last: Option<bool>,
}

/// The reason to refuse a bundle on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// No answer has stated anything yet.
    Unheard,
    /// The last statement names another bundle.
    Another(String),
}

impl Statements {
    /// Restores the last statement about `domain` from disk.
    pub(crate) fn remember(&mut self, domain: Domain, digest: &str) {
        self.named.insert(domain, digest.to_owned());
        self.last = Some(true);
    }

    /// Takes the statement of an answer; `offered` is the bundle of `domain` on offer.
    pub(crate) fn hear(&mut self, answer: Option<&BundlesInForce>, domain: Domain, offered: Option<&str>) {
        self.last = Some(answer.is_some());
        match (answer, offered) {
            (Some(in_force), _) => {
                for domain in Domain::ALL {
                    if let Some(digest) = in_force.digest(domain) {
                        self.named.insert(domain, digest.to_owned());
                        self.silent.remove(&domain);
                    }
                }
            }
            (None, Some(offered)) if !self.named.contains_key(&domain) => {
                self.silent.insert(domain, offered.to_owned());
            }
            (None, _) => {}
        }
    }

    /// The digest last stated of `domain`.
    pub(crate) fn named(&self, domain: Domain) -> Option<&String> {
        self.named.get(&domain)
    }

    /// True if the last answer had a statement; `None` before the first one.
    pub(crate) const fn last(&self) -> Option<bool> {
        self.last
    }

    /// Checks that the bundle `offered` may be taken.
    pub(crate) fn believe(&self, domain: Domain, offered: &str) -> Result<(), Doubt> {
        match (self.named.get(&domain), self.silent.get(&domain)) {
            (Some(named), _) if named == offered => Ok(()),
            (Some(named), _) => Err(Doubt::Another(named.clone())),
            (None, Some(silent)) if silent == offered => Ok(()),
            (None, _) => Err(Doubt::Unheard),
        }
    }
}

/// When to ask the signer about bundles on offer. Limits the requests if somebody keeps writing new bundles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    by_domain: BTreeMap<Domain, Asked>,
}

#[derive(Clone, Debug)]
struct Asked {
    offered: String,
    at: Duration,
    pause: Duration,
}

impl Pace {
    /// How long to wait until the signer is asked about `offered`; `now` is in terms of
    /// [`Clock::elapsed`](crate::os::clock::Clock::elapsed).
    pub(crate) fn wait(&self, domain: Domain, offered: &str, now: Duration) -> Duration {
        self.by_domain.get(&domain).map_or(Duration::ZERO, |asked| {
            let pause = if asked.offered == offered { ASK_AGAIN } else { asked.pause };
            (asked.at + pause).saturating_sub(now)
        })
    }

    /// True if an answer left `offered` unconfirmed.
    pub(crate) fn was_asked(&self, domain: Domain, offered: &str) -> bool {
        self.by_domain.get(&domain).is_some_and(|asked| asked.offered == offered)
    }

    /// An answer did not confirm `offered`.
    pub(crate) fn unconfirmed(&mut self, domain: Domain, offered: &str, now: Duration) {
        let pause = self.by_domain.get(&domain).map_or(FIRST_PAUSE, |asked| (asked.pause * 2).min(LONGEST_PAUSE));
        self.by_domain.insert(domain, Asked { offered: offered.to_owned(), at: now, pause });
    }

    /// A changed bundle was taken.
    pub(crate) fn confirmed(&mut self, domain: Domain) {
        self.by_domain.remove(&domain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(digest: &str) -> BundlesInForce {
        BundlesInForce::new(BTreeMap::from([(Domain::Peer, digest.to_owned())]))
    }

    #[test]
    fn a_bundle_is_believed_only_by_the_last_statement() {
        let mut said = Statements::default();
        assert_eq!(said.believe(Domain::Peer, "a"), Err(Doubt::Unheard));
        said.hear(Some(&stated("a")), Domain::Peer, Some("thief"));
        assert_eq!(said.believe(Domain::Peer, "a"), Ok(()));
        assert_eq!(said.believe(Domain::Peer, "thief"), Err(Doubt::Another("a".to_owned())));
        assert_eq!(said.believe(Domain::Client, "a"), Err(Doubt::Unheard), "nothing was stated of it");
        said.hear(Some(&stated("b")), Domain::Peer, None);
        assert_eq!(said.believe(Domain::Peer, "a"), Err(Doubt::Another("b".to_owned())), "a bundle of before");
        assert_eq!(said.believe(Domain::Peer, "b"), Ok(()));
    }

    #[test]
    fn an_earlier_signer_is_believed_until_a_statement_was_seen() {
        let mut said = Statements::default();
        said.hear(None, Domain::Peer, Some("a"));
        assert_eq!((said.believe(Domain::Peer, "a"), said.last()), (Ok(()), Some(false)));
        assert_eq!(said.believe(Domain::Peer, "b"), Err(Doubt::Unheard), "each change is asked about");
        said.hear(Some(&stated("c")), Domain::Peer, Some("b"));
        assert_eq!(said.believe(Domain::Peer, "a"), Err(Doubt::Another("c".to_owned())));
        said.hear(None, Domain::Peer, Some("thief"));
        assert_eq!(said.believe(Domain::Peer, "thief"), Err(Doubt::Another("c".to_owned())));
        assert_eq!((said.believe(Domain::Peer, "c"), said.last()), (Ok(()), Some(false)));
        // Across a restart of the sidecar, by what is on disk.
        let mut again = Statements::default();
        again.remember(Domain::Peer, "c");
        again.hear(None, Domain::Peer, Some("thief"));
        assert_eq!(again.believe(Domain::Peer, "thief"), Err(Doubt::Another("c".to_owned())));
    }

    /// Somebody writes another bundle every second for a day; and one bundle that stays for a day.
    #[test]
    fn flipping_bundles_makes_no_storm() {
        for (flips, most) in [(true, 300), (false, 25)] {
            let (mut pace, mut asked) = (Pace::default(), 0);
            for second in 0..86_400_u64 {
                let (offered, now) =
                    (if flips { second.to_string() } else { "x".to_owned() }, Duration::from_secs(second));
                if pace.wait(Domain::Peer, &offered, now).is_zero() {
                    asked += 1;
                    pace.unconfirmed(Domain::Peer, &offered, now);
                }
            }
            assert!((1..=most).contains(&asked), "{asked}");
            let day = Duration::from_secs(86_400);
            assert!(pace.wait(Domain::Peer, "honest", day) <= LONGEST_PAUSE);
            assert!(pace.wait(Domain::Client, "honest", day).is_zero());
            pace.confirmed(Domain::Peer);
            assert!(pace.wait(Domain::Peer, "honest", day).is_zero());
        }
    }
}
