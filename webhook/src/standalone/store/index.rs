//! The requests by name, with what is asked of all of them at once: how many wait, who holds which name, which have been
//! there for long enough.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::certificate::Chain;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};

/// How much is stored, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in all.
    pub requests: usize,
    /// Requests of one user that nobody decided on yet.
    pub pending_per_user: usize,
    /// How long a request waits for somebody to decide on it.
    pub pending_life: Duration,
    /// How long a decided one stays.
    pub decided_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 10_000,
            pending_per_user: 1_000,
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
    /// The subject's CN and the notAfter of the certificate, where one was issued.
    issued: Option<(String, SystemTime)>,
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

    /// Whether the certificate is valid at `now`.
    fn valid(&self, now: SystemTime) -> bool {
        self.issued.as_ref().is_some_and(|(_, not_after)| now < *not_after)
    }
}

pub(super) fn older(t: Timestamp, life: Duration, now: Timestamp) -> bool {
    i64::try_from(life.as_secs()).is_ok_and(|life| now.as_second().saturating_sub(t.as_second()) >= life)
}

/// The requests by name, and how many of each user wait.
#[derive(Clone, Debug, Default)]
pub struct Index {
    requests: BTreeMap<Arc<str>, Arc<Stored>>,
    pending: HashMap<String, usize>,
    /// The last issued request of each CN.
    holders: HashMap<String, Arc<Stored>>,
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

    /// How many of `user`'s wait for a decision.
    pub fn pending_of(&self, user: &str) -> usize {
        self.pending.get(user).copied().unwrap_or_default()
    }

    /// The user to whom the last certificate of this CN was issued, while that certificate is valid.
    pub fn holder(&self, common_name: &str, now: SystemTime) -> Option<&str> {
        self.holders.get(common_name).filter(|r| r.valid(now)).map(|r| r.owner())
    }

    /// Whether a request has been there for long enough. The last of each CN stays while its certificate is valid: it says
    /// whose that name is.
    pub(super) fn expired(&self, request: &Stored, limits: &Limits, now: Timestamp) -> bool {
        let life = if request.decided() { limits.decided_life } else { limits.pending_life };
        older(request.touched(), life, now) && !(self.is_holder(request) && request.valid(SystemTime::from(now)))
    }

    fn is_holder(&self, request: &Stored) -> bool {
        let holder = request.issued.as_ref().and_then(|(cn, _)| self.holders.get(cn));
        holder.is_some_and(|h| h.uid() == request.uid())
    }

    /// Puts `new` under `name`, or removes what is there; gives back what was there.
    pub(super) fn set(&mut self, name: &str, new: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        if let Some(new) = new.as_ref().filter(|r| !r.decided()) {
            *self.pending.entry(new.owner().to_owned()).or_default() += 1;
        }
        if let Some((new, (cn, _))) = new.as_ref().and_then(|r| Some((r, r.issued.as_ref()?)))
            && self.holders.get(cn).is_none_or(|holder| holder.revision <= new.revision)
        {
            self.holders.insert(cn.clone(), Arc::clone(new));
        }
        let removed = new.is_none();
        let old = match new {
            Some(new) => self.requests.insert(Arc::from(name), new),
            None => self.requests.remove(name),
        };
        if let Some(old) = old.as_ref().filter(|r| !r.decided())
            && let Some(count) = self.pending.get_mut(old.owner())
        {
            *count -= 1;
            if *count == 0 {
                self.pending.remove(old.owner());
            }
        }
        if let Some(old) = old.as_ref().filter(|old| removed && self.is_holder(old))
            && let Some((cn, _)) = &old.issued
        {
            self.holders.remove(cn);
        }
        old
    }
}
pub(super) fn stored(csr: CertificateSigningRequest) -> Stored {
    let revision = csr.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or_default();
    let certificate = csr.status.as_ref().and_then(|s| s.certificate.as_ref());
    let chain = certificate.and_then(|c| Chain::parse(&c.0).ok());
    let issued = chain.map(|chain| (chain.common_name, chain.not_after));
    Stored { csr, revision, issued }
}
/// `status`, made where it is missing.
pub fn status_mut(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}
