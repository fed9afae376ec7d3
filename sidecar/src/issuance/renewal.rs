//! The content of a role's request and the time of its renewal. Pure.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::{
    key::{KeyAlgorithm, KeyRotation},
    life::Life,
    role::Role,
    san::Sans,
};

use crate::store::Entry;

/// The content of a role's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The role.
    pub role: Role,
    /// The part of the CSR's name after `etcd-tls-`: the pod's uid. With the serial it also fixes the time of renewal.
    pub uid: String,
    /// The subject's CN.
    pub common_name: String,
    /// The names and addresses.
    pub sans: Sans,
    /// `spec.signerName`.
    pub signer: String,
    /// The requested lifetime.
    pub lifetime: Duration,
    /// The key's algorithm and size.
    pub key: KeyAlgorithm,
    /// When a new key is generated.
    pub key_rotation: KeyRotation,
}

/// Why a certificate is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no certificate.
    Missing,
    /// The renewal time has come.
    Due,
    /// It is not valid yet: the clock was set back by more than a certificate is backdated, and peers refuse it.
    Early,
    /// It lacks names or addresses that are the pod's now.
    Names(Vec<String>),
    /// etcd was seen to have loaded another bundle than the last request stated.
    Trusts,
    /// The bundle on offer lacks its CA: a rollover went by, and peers may refuse it.
    Outdated,
    /// A changed bundle is on offer; the answer states whether it is in force.
    Offered,
    /// The pod's annotation `renew` has a new value.
    Asked,
    /// Another member trusts a CA that is not in the bundle; the answer states the issuer's CA.
    Ahead,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none"),
            Self::Due => f.write_str("its time has come"),
            Self::Early => f.write_str("it is not valid yet: the clock was set back"),
            Self::Names(names) => write!(f, "it lacks {}", names.join(", ")),
            Self::Trusts => f.write_str("etcd has loaded another trust bundle"),
            Self::Outdated => f.write_str("the trust bundle on offer lacks its CA"),
            Self::Offered => f.write_str("a changed trust bundle is on offer; is it in force?"),
            Self::Ahead => f.write_str("another member trusts one more CA; has the issuer changed it?"),
            Self::Asked => f.write_str("the annotation renew has a new value"),
        }
    }
}

/// When a new certificate is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Now; why.
    Due(Reason),
    /// At this time, if nothing changes.
    At(SystemTime),
}

impl Renewal {
    /// Due now for `reason`, if it is not due for another one.
    #[must_use]
    pub fn or(self, reason: Reason) -> Self {
        match self {
            Self::Due(_) => self,
            Self::At(_) => Self::Due(reason),
        }
    }
}

/// When a new certificate is requested in the place of `entry`, as it is at `now`. `loaded` is the bundle that etcd was seen
/// to have loaded, where that is known.
pub fn renewal(template: &Template, entry: Option<&Entry>, loaded: Option<&str>, now: SystemTime) -> Renewal {
    let Some(entry) = entry else { return Renewal::Due(Reason::Missing) };
    let chain = entry.chain();
    let lacking = template.sans.beyond(&chain.sans);
    if !lacking.is_empty() {
        return Renewal::Due(Reason::Names(lacking));
    }
    if loaded.is_some() && loaded != entry.record().trusts.as_deref() {
        return Renewal::Due(Reason::Trusts);
    }
    if now < chain.not_before {
        return Renewal::Due(Reason::Early);
    }
    let renew_at = life(entry, now).renew_at(&template.uid, &chain.serial);
    if renew_at <= now { Renewal::Due(Reason::Due) } else { Renewal::At(renew_at) }
}

/// How far ahead a receipt may lie: a clock that is set back by less was not wrong.
const AHEAD: Duration = Duration::from_secs(300);

/// The life of the certificate in `entry`. A receipt that lies ahead of `now` is one of a wrong clock: with it, the certificate would be
/// renewed when little of its life is left.
pub fn life(entry: &Entry, now: SystemTime) -> Life {
    let received = Some(entry.record().received_at()).filter(|at| *at <= now + AHEAD);
    Life::of(entry.chain().not_before, entry.chain().not_after, received)
}
