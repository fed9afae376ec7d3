//! The requests by name, with what is asked of all of them at once: how many each user has, who holds which name, which have
//! been there for long enough.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::certificate::Chain;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};

use super::holders::{Holders, Holding};
use crate::standalone::{auth::User, error::ApiError};

/// How much is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in all.
    pub requests: usize,
    /// Requests of one user, decided on or not.
    pub per_user: usize,
    /// Requests of one user that nobody decided on yet.
    pub pending_per_user: usize,
    /// Names that a user's automatically approved certificates may hold.
    pub names_per_user: usize,
    /// How long a request waits for somebody to decide on it.
    pub pending_life: Duration,
    /// How long a decided one stays.
    pub decided_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 10_000,
            per_user: 2_000,
            pending_per_user: 1_000,
            names_per_user: 10_000,
            pending_life: Duration::from_secs(24 * 3600),
            decided_life: Duration::from_secs(3600),
        }
    }
}
/// One stored request.
#[derive(Debug)]
pub struct Stored {
    /// The object, its resource version included.
    pub csr: CertificateSigningRequest,
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    /// The names of the certificate, where one was issued.
    pub(super) issued: Option<Holding>,
}

/// The condition's reason where a rule of `--approve-group` approved.
pub const AUTO_APPROVED: &str = "AutoApproved";
/// The condition's reason where policy approved.
pub const ENTITLED: &str = "Entitled";

/// The reason of the approval, where there is one.
pub fn approved_by(csr: &CertificateSigningRequest) -> Option<&str> {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == "Approved").find_map(|c| c.reason.as_deref().or(Some("")))
}

impl Stored {
    /// A request as it would be stored.
    pub fn unsaved(csr: CertificateSigningRequest) -> Self {
        stored(csr)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.csr.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.csr.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `spec.username`: whose it is.
    pub fn owner(&self) -> &str {
        self.csr.spec.username.as_deref().unwrap_or_default()
    }

    /// Whether it is approved, denied or failed.
    pub fn decided(&self) -> bool {
        self.csr.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|c| !c.is_empty())
    }

    /// When it was made, or last decided on.
    pub(super) fn touched(&self) -> Timestamp {
        let created = self.csr.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let conditions = self.csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let changed = conditions.filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0);
        changed.chain(created).max().unwrap_or(Timestamp::MIN)
    }
}

pub(super) fn older(t: Timestamp, life: Duration, now: Timestamp) -> bool {
    i64::try_from(life.as_secs()).is_ok_and(|life| now.as_second().saturating_sub(t.as_second()) >= life)
}

/// A user's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    all: usize,
    pending: usize,
}

/// The requests by name, how many each user has, and the holders of names.
#[derive(Clone, Debug, Default)]
pub struct Index {
    requests: BTreeMap<Arc<str>, Arc<Stored>>,
    counts: HashMap<String, Count>,
    holders: Holders,
}

impl Index {
    /// The request of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Stored>> {
        self.requests.get(name)
    }

    /// All requests after `name`, in the order of their names.
    pub fn after(&self, name: &str) -> impl Iterator<Item = &Arc<Stored>> {
        self.requests.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, r)| r)
    }

    /// All requests.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.requests.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Who holds which name.
    pub const fn holders(&self) -> &Holders {
        &self.holders
    }

    pub(super) const fn holders_mut(&mut self) -> &mut Holders {
        &mut self.holders
    }

    /// Whether there is place for a new request, for its user and for all.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: which limit is reached.
    pub fn room_for(&self, request: &Stored, limits: &Limits) -> Result<(), ApiError> {
        let user = request.owner();
        let count = self.counts.get(user).copied().unwrap_or_default();
        let message = if !request.decided() && count.pending >= limits.pending_per_user {
            format!(
                "{user} has {} requests waiting for approval, which is the limit; have them approved or deleted",
                limits.pending_per_user
            )
        } else if count.all >= limits.per_user {
            format!(
                "{user} has {} requests stored, which is the limit; delete some or try again later",
                limits.per_user
            )
        } else if self.len() >= limits.requests {
            format!(
                "{} requests are stored, which is the limit; have them approved, denied or deleted",
                limits.requests
            )
        } else {
            return Ok(());
        };
        Err(ApiError::TooManyRequests { message, retry_after_seconds: 60 })
    }

    /// The users who have no place for `wanted` requests more.
    pub(super) fn full_users(&self, limits: &Limits, wanted: usize) -> Vec<String> {
        let full = self.counts.iter().filter(|(_, count)| count.all + wanted > limits.per_user);
        full.map(|(user, _)| user.clone()).collect()
    }

    /// How many requests `user` has.
    pub(super) fn count_of(&self, user: &str) -> usize {
        self.counts.get(user).map_or(0, |count| count.all)
    }

    /// Whether a request has been there for long enough.
    pub(super) fn expired(request: &Stored, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now)
    }

    /// Puts `new` under `name`, or removes what is there. The names of a certificate are held from now on, whatever becomes
    /// of its request.
    pub(super) fn set(&mut self, name: &str, new: Option<Arc<Stored>>, now: SystemTime) {
        if let Some(new) = &new {
            let count = self.counts.entry(new.owner().to_owned()).or_default();
            count.all += 1;
            count.pending += usize::from(!new.decided());
            if let Some(holding) = &new.issued {
                self.holders.take(holding, now);
            }
        }
        let old = match new {
            Some(new) => self.requests.insert(Arc::from(name), new),
            None => self.requests.remove(name),
        };
        if let Some(old) = old
            && let Some(count) = self.counts.get_mut(old.owner())
        {
            count.all -= 1;
            count.pending -= usize::from(!old.decided());
            if count.all == 0 {
                self.counts.remove(old.owner());
            }
        }
    }
}

pub(super) fn stored(csr: CertificateSigningRequest) -> Stored {
    let revision = csr.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default();
    let issued = holding(&csr);
    Stored { csr, revision, issued }
}

/// The names of the certificate in a request.
fn holding(csr: &CertificateSigningRequest) -> Option<Holding> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    let chain = Chain::parse(&certificate.0).ok()?;
    Some(Holding {
        common_name: chain.common_name,
        principal: User::of(csr).principal(),
        dns: chain.sans.dns.into_iter().collect(),
        ips: chain.sans.ips.into_iter().collect(),
        until: chain.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        given: approved_by(csr) != Some(AUTO_APPROVED),
        subject: true,
    })
}

/// `status`, made where it is missing.
pub fn status_mut(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}
