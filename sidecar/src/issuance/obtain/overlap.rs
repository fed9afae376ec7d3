//! A certificate of a CA that has come with no overlap: it waits until everybody trusts the CA, as far as that can be seen.

use std::time::SystemTime;

use etcd_tls_contract::certificate::{Bundle, Chain};

use super::Issuance;
use crate::{
    issuance::{others::DistrustingMembers, renewal::life},
    kube::Api,
    store::Entry,
};

/// The part of a life at the end of which a certificate is used although members are seen that do not trust its CA: they then
/// refuse each other, so it is the last resort.
const LAST: u32 = 20;

impl<A: Api, C, F> Issuance<'_, A, C, F> {
    /// The members that the new certificate `entry` waits for; `None`: it can be used. It waits while the certificate in use is
    /// good enough for the pod: it has the pod's names and a fifth of its life left (a twentieth, if members are seen that do not
    /// trust the new CA).
    pub(super) fn held_back(&self, entry: &Entry, now: SystemTime) -> Option<DistrustingMembers> {
        let (others, current) = (self.others?, self.current?);
        let (old, new) = (current.chain(), entry.chain());
        let life = life(current, now);
        let serves = self.template.sans.beyond(&old.sans).is_empty() && old.not_before <= now;
        let last = life.left(now) < life.whole() / LAST;
        if !serves || last || entry.bundle().same_issuer(old, new) == Some(true) {
            return None;
        }
        let others = others(self.template.role.domain(), &asked_about(entry)?);
        let waits = if life.is_short(now) { others.unknown.is_none() } else { true };
        Some(others).filter(|others| waits && !others.members.is_empty())
    }

    /// True if `entry` is used because the one in use ends soon, and not because everybody trusts its CA.
    pub(super) fn is_pressed(&self, entry: &Entry, now: SystemTime) -> bool {
        let bundle = asked_about(entry);
        let others = self.others.zip(bundle).map(|(others, bundle)| others(self.template.role.domain(), &bundle));
        self.current.is_some_and(|current| life(current, now).is_short(now))
            && others.is_some_and(|o| !o.members.is_empty())
    }
}

/// The CAs that others must trust before `entry` is used: its own alone, since a member that was made anew trusts no other one. Where
/// the old CA has the same subject, that one, too: etcd shows subjects, so a member with the old CA is known by their number alone.
fn asked_about(entry: &Entry) -> Option<Bundle> {
    let issuers = entry.bundle().issuers_of(entry.chain())?;
    Some(entry.bundle().named_like(&issuers))
}

/// Why a certificate waits.
pub(super) fn reason(chain: &Chain, others: &DistrustingMembers) -> String {
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
