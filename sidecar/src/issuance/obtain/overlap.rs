//! A certificate of a CA that has come with no overlap: it waits until everybody trusts the CA, as far as that can be seen.

use std::time::SystemTime;

use etcd_tls_contract::certificate::Chain;

use super::{Issuance, life_of};
use crate::{issuance::others::Others, kube::Api, store::Entry};

/// The part of a life at the end of which a certificate is used although members are seen that do not trust its CA: they then
/// refuse each other, so it is the last resort.
const LAST: u32 = 20;

impl<A: Api, C, F> Issuance<'_, A, C, F> {
    /// Whom the new certificate `entry` waits for; `None`: nobody. It waits while the one in use does for the pod: it has the
    /// pod's names, and a fifth of its life left; a twentieth, where members are seen that do not trust the new CA.
    pub(super) fn held_back(&self, entry: &Entry, now: SystemTime) -> Option<Others> {
        let (others, current) = (self.others?, self.current?);
        let (old, new) = (current.chain(), entry.chain());
        let life = life_of(Some(current))?;
        let serves = self.template.sans.beyond(&old.sans).is_empty() && old.not_before <= now;
        let last = life.left(now) < life.whole() / LAST;
        if !serves || last || entry.bundle().same_issuer(old, new) == Some(true) {
            return None;
        }
        // A member that was made anew trusts the new CA alone: it does not wait for the old one.
        let others = others(self.template.role.domain(), &entry.bundle().issuers_of(new)?);
        let waits = if life.is_short(now) { others.unknown.is_none() } else { true };
        Some(others).filter(|others| waits && !others.members.is_empty())
    }

    /// Whether `entry` is used because the one in use ends soon, and not because everybody trusts its CA.
    pub(super) fn is_pressed(&self, entry: &Entry, now: SystemTime) -> bool {
        let bundle = entry.bundle().issuers_of(entry.chain());
        let others = self.others.zip(bundle).map(|(others, bundle)| others(self.template.role.domain(), &bundle));
        life_of(self.current).is_some_and(|life| life.is_short(now)) && others.is_some_and(|o| !o.members.is_empty())
    }
}

/// Why a certificate waits.
pub(super) fn reason(chain: &Chain, others: &Others) -> String {
    let (whom, until) = match &others.unknown {
        Some(why) => (format!("it cannot be seen who trusts it yet ({why})"), "fifth"),
        None => (format!("not trusted yet by etcd of {}", others.members.join(", ")), "twentieth"),
    };
    format!(
        "the issuer's CA was changed with no overlap: the certificate is of {}, {whom}. It is used when they do, or when \
         the one in use has less than a {until} of its life",
        chain.authority()
    )
}
