//! A certificate of a CA that has come with no overlap: it waits until everybody trusts the CA, as far as that can be seen.

use std::time::SystemTime;

use etcd_tls_contract::certificate::Chain;

use super::{Issuance, life_of};
use crate::{issuance::others::Others, kube::Api, store::Entry};

impl<A: Api, C, F> Issuance<'_, A, C, F> {
    /// Whom the new certificate `entry` waits for; `None`: nobody. It waits while the one in use does for the pod: has its
    /// names, and a fifth of its life or more.
    pub(super) fn held_back(&self, entry: &Entry, now: SystemTime) -> Option<Others> {
        let (others, current) = (self.others?, self.current?);
        let (old, new) = (current.chain(), entry.chain());
        let serves = self.template.sans.beyond(&old.sans).is_empty()
            && old.not_before <= now
            && life_of(Some(current)).is_some_and(|life| !life.is_short(now));
        if !serves || entry.bundle().same_issuer(old, new) == Some(true) {
            return None;
        }
        let others = others(self.template.role.domain(), entry.bundle());
        Some(others).filter(|others| !others.members.is_empty())
    }
}

/// Why a certificate waits.
pub(super) fn reason(chain: &Chain, others: &Others) -> String {
    let whom = match &others.unknown {
        Some(why) => format!("it cannot be seen who trusts it yet ({why})"),
        None => format!("not trusted yet by etcd of {}", others.members.join(", ")),
    };
    format!(
        "the issuer's CA was changed with no overlap: the certificate is of {}, {whom}. It is used when they do, or when \
         the one in use has less than a fifth of its life",
        chain.authority()
    )
}
