//! Where trust comes from: the bundles on offer, by volume or by the issuer's answers, and which of them may be taken.

use std::{collections::BTreeMap, time::Duration};

use etcd_tls_contract::{
    certificate::Bundle,
    role::{Domain, Role},
};

use super::Agent;
use crate::{
    agent::{
        answered::Answered,
        belief::Doubt,
        trust::{self, TrustError},
    },
    issuance::{
        obtain::{Answer, Bundles, NoAuthority},
        renewal::life,
    },
    os::clock::Clock,
    store::files::Files,
};

impl<C: Clock, F: Files> Agent<C, F> {
    /// Ends when the API server has sent a new bundle or list, or the issuer another CA.
    pub async fn pushed(&self) {
        match &self.answered {
            Some(answered) => answered.changed().await,
            None => self.trust.changed().await,
        }
    }

    /// True if the issuer's last answer had its CA; `None` before the first answer, and where the bundle comes from elsewhere.
    pub fn issuer_states(&self) -> Option<bool> {
        self.answered.as_ref().and_then(Answered::states)
    }

    /// The bundle on offer for `domain`; `None`: there has been no answer that brings one, and the bundle in use stays.
    fn on_offer(&self, domain: Domain) -> Option<Result<Bundle, TrustError>> {
        match &self.answered {
            Some(answered) => answered.offered().map(Ok),
            None => Some(self.trust.read(domain)),
        }
    }

    /// Takes the CA of an answer.
    fn hear_authority(&self, authority: &Result<Bundle, NoAuthority>) {
        let Some(answered) = &self.answered else { return };
        let held = self.held.borrow();
        let in_use = held.roles.values().map(|entry| entry.bundle().clone()).reduce(|all, one| all.union(&one));
        let longest = held.roles.values().map(|entry| life(entry, self.clock.now()).whole()).max();
        answered.hear(authority, in_use.as_ref(), self.clock.elapsed(), longest.unwrap_or_default());
    }

    /// Takes the bundles on offer where they may be taken; returns what was refused.
    pub fn take_trust(&self) -> Vec<(Domain, TrustError)> {
        let (mut offered, mut refused) = (BTreeMap::new(), Vec::new());
        for domain in self.domains() {
            match self.on_offer(domain) {
                None => {}
                Some(Ok(bundle)) => match self.doubt(domain, &bundle) {
                    Some(error) => refused.push((domain, error)),
                    None => drop(offered.insert(domain, bundle)),
                },
                Some(Err(error)) => refused.push((domain, error)),
            }
        }
        let (next, errors) = trust::take(&self.held.borrow(), &offered, self.clock.now());
        refused.extend(errors);
        if let Some(next) = next {
            for (role, entry) in &next.roles {
                tracing::info!(%role, bundle = entry.bundle().digest(), "trust bundle on offer taken");
                self.pace.borrow_mut().confirmed(role.domain());
            }
            *self.held.borrow_mut() = next;
            self.dirty.set(true);
        }
        refused
    }

    /// See [`TrustDir::outdated`].
    pub fn outdated(&self, refused: &[(Domain, TrustError)]) -> BTreeMap<Role, String> {
        self.trust.outdated(refused)
    }

    /// The reason to refuse a changed bundle; `None`: it is in use or confirmed by the signer.
    fn doubt(&self, domain: Domain, bundle: &Bundle) -> Option<TrustError> {
        let held = self.held.borrow();
        let entries = || held.roles.iter().filter(|(role, _)| role.domain() == domain);
        if !self.trust.is_ours() || entries().all(|(_, entry)| entry.bundle() == bundle) {
            return None;
        }
        let offered = bundle.digest();
        let named = match self.stated.borrow().believe(domain, &offered) {
            Ok(()) => return None,
            Err(Doubt::Another(named)) => Some(named),
            Err(Doubt::Unheard) => None,
        };
        let now = self.clock.now();
        let lacks = entries().filter(|(role, entry)| entry.with_bundle(**role, bundle, now).is_err());
        let lacks = lacks.map(|(role, _)| *role).collect();
        let asked = self.pace.borrow().was_asked(domain, &offered);
        Some(TrustError::NotInForce { domain, offered, named, asked, lacks })
    }

    /// How long to wait until the signer is asked whether the bundle `offered` is in force.
    pub fn asks_about_in(&self, domain: Domain, offered: &str) -> Duration {
        self.pace.borrow().wait(domain, offered, self.clock.elapsed())
    }

    /// The answer to a request that was begun while the bundle `offered` was on offer has come: if it is still not
    /// believed, the next question waits.
    pub fn was_answered(&self, domain: Domain, offered: &str) {
        if self.stated.borrow().believe(domain, offered).is_err() {
            self.pace.borrow_mut().unconfirmed(domain, offered, self.clock.elapsed());
        }
    }

    /// True if the signer's last answer stated the bundles in force; `None` before the first answer, and where the bundles
    /// are not our signer's.
    pub fn signer_states(&self) -> Option<bool> {
        self.stated.borrow().last().filter(|_| self.trust.is_ours())
    }

    /// The bundles that a new certificate of `domain` may verify under: those in use, then the one on offer, if it is
    /// believed by what was stated before or by `answer`.
    pub(super) fn bundles(&self, domain: Domain, answer: Option<&Answer>) -> Bundles {
        if let Some(authority) = answer.and_then(|answer| answer.authority.as_ref()) {
            self.hear_authority(authority);
        }
        let held = self.held.borrow();
        let mut found = Bundles::default();
        let in_use = held.roles.iter().filter(|(role, _)| role.domain() == domain).map(|(_, e)| e.bundle().clone());
        let offered = self.on_offer(domain);
        let digest = offered.as_ref().and_then(|offered| offered.as_ref().ok()).map(Bundle::digest);
        if let Some(Answer { in_force, .. }) = answer {
            self.stated.borrow_mut().hear(in_force.as_ref(), domain, digest.as_deref());
        }
        let offered = match (offered, &digest) {
            (None, _) => {
                found.doubt = self.answered.as_ref().map(Answered::missing);
                None
            }
            (Some(Ok(bundle)), Some(digest)) if self.trust.is_ours() => {
                match self.stated.borrow().believe(domain, digest) {
                    Ok(()) => Some(bundle),
                    Err(doubt) => {
                        found.doubt = Some(match doubt {
                            Doubt::Unheard => {
                                format!("the signer has not stated that the bundle on offer ({digest}) is in force")
                            }
                            Doubt::Another(named) => format!(
                                "the bundle on offer has digest {digest}, the signer states {named}; waiting for the one in force"
                            ),
                        });
                        found.unconfirmed = Some(bundle);
                        None
                    }
                }
            }
            (Some(Ok(bundle)), _) => Some(bundle),
            (Some(Err(error)), _) => {
                found.doubt = Some(error.to_string());
                None
            }
        };
        for bundle in in_use.chain(offered) {
            if !found.bundles.contains(&bundle) {
                found.bundles.push(bundle);
            }
        }
        found.in_force = self.stated.borrow().named(domain).cloned();
        found
    }

    /// Digest of the bundle that a role of `domain` has in use, or would have first.
    pub fn bundle_digest(&self, domain: Domain) -> Option<String> {
        let in_use = self.bundles(domain, None).bundles.first().map(Bundle::digest);
        in_use.or_else(|| self.on_offer(domain)?.ok().map(|bundle| bundle.digest()))
    }
}
