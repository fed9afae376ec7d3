//! The authorities in memory, one entry for each, and how many a namespace may have.
//!
//! A user who can create pods or ConfigMaps in a namespace can name any number of clusters there, so the number of
//! authorities is bounded. An authority that has a Secret always has an entry; a new one gets one below the bound.
//!
//! Some namespaces do not take the places of all others: with few places left, the bound of a namespace falls to those of a first
//! cluster ([`Bounds::of_namespace`]).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use etcd_tls_contract::{names::SignerName, role::Domain};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::Mutex;

use super::{
    memory::{Records, Share},
    newcomers::Newcomers,
    state::{Stored, secret_metadata},
    unwritten::Unwritten,
};
use crate::{
    controller::ids::{Uid, Version},
    sign::marks::UID_ANNOTATION,
};

/// The known state of an authority.
#[derive(Debug, Default)]
pub(in crate::sign) enum Held {
    /// Not looked at yet, or to be looked at again.
    #[default]
    Unknown,
    /// Its Secret is missing while trust in it is published.
    Lost,
    /// In use.
    Ready(Box<Ready>),
    /// Its Secret, or the user's, cannot be used.
    Unusable,
}

impl Held {
    /// Bytes of memory that its record takes, about.
    fn record_bytes(&self) -> usize {
        match self {
            Self::Ready(ready) => ready.stored.issued.bytes(),
            Self::Unknown | Self::Lost | Self::Unusable => 0,
        }
    }
}

/// An authority in use, and its Secret as it was read or written last.
#[derive(Debug)]
pub(in crate::sign) struct Ready {
    /// The uid of its namespace: one that is made again under the name has authorities of its own.
    pub(in crate::sign) namespace: Uid,
    pub(in crate::sign) stored: Stored,
    pub(in crate::sign) secret: SecretMetadata,
    /// The API server lets nobody change a Secret's type, and one restored by hand may have another.
    pub(in crate::sign) type_: Option<Box<str>>,
    /// Whether the published revocation list was compared with it. Until then no other list is signed or published.
    pub(in crate::sign) compared: bool,
}

/// A Secret's metadata, without what the API server keeps when it is not sent: who wrote which field, and when it was made.
#[derive(Debug)]
pub(in crate::sign) struct SecretMetadata {
    uid: Option<Uid>,
    version: Option<Version>,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    /// As it is made for a namespace of this uid.
    Made(Uid),
    /// JSON of all of it: it has others' labels, or was restored by hand.
    Other(Box<str>),
}

impl SecretMetadata {
    /// The metadata of the Secret of `authority`.
    ///
    /// # Errors
    /// It has no text.
    pub(in crate::sign) fn of(metadata: ObjectMeta, authority: &SignerName) -> Result<Self, serde_json::Error> {
        let (uid, version) =
            (metadata.uid.as_deref().map(Uid::from), metadata.resource_version.as_deref().map(Version::from));
        let annotations = metadata.annotations.as_ref();
        let of = annotations.and_then(|annotations| annotations.get(UID_ANNOTATION)).cloned().unwrap_or_default();
        let metadata = ObjectMeta { managed_fields: None, creation_timestamp: None, ..metadata };
        let bare = ObjectMeta { uid: None, resource_version: None, namespace: None, ..metadata.clone() };
        let rest = if bare == secret_metadata(&of, authority) {
            Rest::Made(of.as_str().into())
        } else {
            Rest::Other(serde_json::to_string(&metadata)?.into())
        };
        Ok(Self { uid, version, rest })
    }

    /// To write the Secret of `authority` with.
    ///
    /// # Errors
    /// The text is not what was written.
    pub(in crate::sign) fn object(&self, authority: &SignerName) -> Result<ObjectMeta, serde_json::Error> {
        Ok(ObjectMeta {
            uid: self.uid.as_ref().map(ToString::to_string),
            resource_version: self.version.as_ref().map(ToString::to_string),
            ..match &self.rest {
                Rest::Made(of) => secret_metadata(&of.to_string(), authority),
                Rest::Other(json) => serde_json::from_str(json)?,
            }
        })
    }
}

/// One authority.
pub(in crate::sign) struct Entry {
    pub(in crate::sign) name: Arc<SignerName>,
    pub(in crate::sign) held: Mutex<Held>,
    /// Certificates that were recorded, but not written into the Secret: the state may be dropped and read again meanwhile.
    unwritten: StdMutex<Unwritten>,
    /// Pods that got certificates before the watch of pods showed them.
    newcomers: StdMutex<Newcomers>,
    /// The memory of both records.
    share: Share,
}

/// Why an authority gets no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sign) enum QuotaError {
    /// Which authorities have a Secret is not known yet.
    NotListed,
    /// The namespace has as many as it may have.
    Full,
    /// Few are left for all namespaces, and the namespace has as many as it may have then: this many.
    FullShare(usize),
    /// All namespaces together have as many as they may have.
    FullInAll,
}

/// How many authorities there may be.
#[derive(Clone, Copy, Debug)]
pub(in crate::sign) struct Bounds {
    /// In a namespace.
    pub(in crate::sign) per_namespace: usize,
    /// In all.
    pub(in crate::sign) in_all: usize,
}

/// The part of all places that is for first clusters alone, and before which the bound of a namespace falls.
const LAST: usize = 8;
/// The authorities of a namespace's first cluster.
const FIRST: usize = Domain::ALL.len();

impl Bounds {
    /// How many a namespace may have while `taken` are taken in all. Once three quarters are taken the bound falls evenly; the last
    /// eighth is for namespaces that have less than a first cluster needs.
    fn of_namespace(self, taken: usize) -> usize {
        let last = self.in_all.div_ceil(LAST);
        let before = self.in_all.saturating_sub(taken).saturating_sub(last).min(last);
        let share = self.per_namespace.saturating_mul(before).checked_div(last).unwrap_or_default();
        share.max(FIRST).min(self.per_namespace)
    }
}

/// See the module.
#[derive(Default)]
pub(in crate::sign) struct Quota {
    /// By namespace.
    entries: HashMap<Box<str>, Vec<Arc<Entry>>>,
    /// Those that have a Secret, by namespace.
    kept: Option<HashMap<Box<str>, Vec<Arc<SignerName>>>>,
    records: Arc<Records>,
}

impl Quota {
    /// None yet; `records`: the memory of all records.
    pub(in crate::sign) fn new(records: Arc<Records>) -> Self {
        Self { records, ..Self::default() }
    }

    /// Notes which authorities have a Secret.
    pub(in crate::sign) fn listed(&mut self, kept: &BTreeSet<Arc<SignerName>>) {
        let mut by_namespace: HashMap<Box<str>, Vec<Arc<SignerName>>> = HashMap::new();
        for name in kept {
            add(&mut by_namespace, &name.namespace, Arc::clone(name));
        }
        self.kept = Some(by_namespace);
    }

    /// An authority's entry. A new one is made if its namespace and all together have fewer than `bounds` say.
    pub(in crate::sign) fn reserve(&mut self, name: &SignerName, bounds: Bounds) -> Result<Arc<Entry>, QuotaError> {
        if let Some(entry) = self.get(name) {
            return Ok(entry);
        }
        let kept = self.kept.as_ref().ok_or(QuotaError::NotListed)?.get(name.namespace.as_str());
        let here = self.entries.get(name.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        let known = kept.into_iter().flatten().find(|kept| ***kept == *name).cloned();
        if known.is_none() {
            let has_entry = |kept: &SignerName| here.iter().any(|entry| *entry.name == *kept);
            let without_entry = kept.into_iter().flatten().filter(|kept| !has_entry(kept)).count();
            let count = here.len() + without_entry;
            if count >= bounds.per_namespace {
                return Err(QuotaError::Full);
            }
            let taken = self.taken();
            if taken >= bounds.in_all {
                return Err(QuotaError::FullInAll);
            }
            let share = bounds.of_namespace(taken);
            if count >= share {
                return Err(QuotaError::FullShare(share));
            }
        }
        let share = Share::of(Arc::clone(&self.records));
        let entry_name = known.unwrap_or_else(|| Arc::new(name.clone()));
        let entry = Arc::new(Entry {
            name: entry_name,
            held: Mutex::default(),
            unwritten: StdMutex::default(),
            newcomers: StdMutex::default(),
            share,
        });
        add(&mut self.entries, &name.namespace, Arc::clone(&entry));
        Ok(entry)
    }

    /// How many authorities there are.
    fn taken(&self) -> usize {
        let entries: usize = self.entries.values().map(Vec::len).sum();
        // In a round each that has a Secret gets its entry.
        let kept: usize = self.kept.iter().flat_map(HashMap::values).map(Vec::len).sum();
        entries.max(kept)
    }

    /// An authority's entry, if it has one.
    pub(in crate::sign) fn get(&self, name: &SignerName) -> Option<Arc<Entry>> {
        self.entries.get(name.namespace.as_str())?.iter().find(|entry| *entry.name == *name).cloned()
    }

    /// True if it is known which authorities have a Secret.
    pub(in crate::sign) const fn is_listed(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether an authority has a Secret; `None`: the Secrets are not listed yet.
    pub(in crate::sign) fn has_secret(&self, name: &SignerName) -> Option<bool> {
        let kept = self.kept.as_ref()?;
        Some(kept.get(name.namespace.as_str()).is_some_and(|here| here.iter().any(|kept| **kept == *name)))
    }

    /// True if an authority has neither an entry nor a Secret. `false` while the Secrets are not listed.
    pub(in crate::sign) fn is_gone(&self, name: &SignerName) -> bool {
        self.has_secret(name) == Some(false) && self.get(name).is_none()
    }

    /// Every entry.
    pub(in crate::sign) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.values().flatten().cloned().collect()
    }

    /// Removes the entry of an authority whose namespace is gone.
    pub(in crate::sign) fn remove(&mut self, name: &SignerName) {
        if let Some(here) = self.entries.get_mut(name.namespace.as_str()) {
            here.retain(|entry| *entry.name != *name);
        }
    }

    /// Removes the entries that are not in use, hold no key and are not `wanted`, and returns their names. This frees quota
    /// after an operator deletes the trust ConfigMap and the Secrets of a deleted cluster.
    pub(in crate::sign) fn remove_idle(&mut self, wanted: &BTreeSet<Arc<SignerName>>) -> Vec<Arc<SignerName>> {
        let mut removed = Vec::new();
        self.entries.retain(|_, here| {
            here.retain(|entry| {
                let idle = !wanted.contains(&entry.name)
                    && Arc::strong_count(entry) == 1
                    && entry.held.try_lock().is_ok_and(|held| !matches!(*held, Held::Ready(_)));
                if idle {
                    removed.push(Arc::clone(&entry.name));
                }
                !idle
            });
            !here.is_empty()
        });
        removed
    }
}

/// Adds to what a namespace has. It has two, as a rule, and there are thousands of namespaces: no place stays empty.
fn add<T>(all: &mut HashMap<Box<str>, Vec<T>>, namespace: &str, one: T) {
    match all.get_mut(namespace) {
        Some(here) => {
            here.reserve_exact(1);
            here.push(one);
        }
        None => drop(all.insert(namespace.into(), vec![one])),
    }
}

impl Entry {
    pub(in crate::sign) fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::sign) fn newcomers(&self) -> MutexGuard<'_, Newcomers> {
        self.newcomers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the memory of the records, after a change of one. Beyond its part of a memory that is full, each forgets
    /// certificates, and says so ([`Issued`](super::issued::Issued)).
    pub(in crate::sign) fn weigh(&self, held: &mut Held) {
        let mut unwritten = self.unwritten();
        self.share.set(held.record_bytes() + unwritten.issued().bytes());
        if let Some(most) = self.share.too_much() {
            unwritten.shrink_to(most / 2);
            if let Held::Ready(ready) = held {
                Arc::make_mut(&mut ready.stored.issued).shrink_to(most - unwritten.issued().bytes().min(most));
            }
            self.share.set(held.record_bytes() + unwritten.issued().bytes());
        }
    }

    /// [`Self::weigh`], if it is too large and nobody works on it.
    pub(in crate::sign) fn make_room(&self) {
        if self.share.too_much().is_some()
            && let Ok(mut held) = self.held.try_lock()
        {
            self.weigh(&mut held);
        }
    }

    /// Drops what has ended from the record in memory. A certificate that is recorded does that, too; this is for those to which
    /// none is added.
    pub(in crate::sign) fn forget_ended(&self, held: &mut Held, now: SystemTime) {
        let Held::Ready(ready) = held else { return };
        let has_ended = ready.stored.issued.has_ended(now);
        if has_ended {
            Arc::make_mut(&mut ready.stored.issued).forget_ended(now);
        }
        if has_ended || self.share.too_much().is_some() {
            self.weigh(held);
        }
    }

    /// Has the Secret read again, if it is not as it was read or written last. `version`: its resourceVersion, `None` where
    /// there is none.
    pub(in crate::sign) async fn changed_outside(&self, version: Option<&Version>) {
        let mut held = self.held.lock().await;
        let known = match &*held {
            Held::Ready(ready) => ready.secret.version.as_ref(),
            Held::Unknown => return,
            Held::Lost | Held::Unusable => None,
        };
        if version != known {
            *held = Held::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn name(text: &str) -> SignerName {
        format!("peer.etcd-tls.dev/{text}").parse().unwrap()
    }

    fn names(texts: &[&str]) -> BTreeSet<Arc<SignerName>> {
        texts.iter().map(|text| Arc::new(name(text))).collect()
    }

    const fn bounds(per_namespace: usize, in_all: usize) -> Bounds {
        Bounds { per_namespace, in_all }
    }

    fn taken(quota: &mut Quota, text: &str) -> Result<(), QuotaError> {
        quota.reserve(&name(text), bounds(2, 100)).map(|_| ())
    }

    #[test]
    fn a_namespace_has_room_for_so_many_and_another_for_its_own() {
        let mut quota = Quota::default();
        assert_eq!(taken(&mut quota, "a.one"), Err(QuotaError::NotListed));
        quota.listed(&BTreeSet::new());
        assert_eq!(taken(&mut quota, "a.one"), Ok(()));
        assert_eq!(taken(&mut quota, "a.two"), Ok(()));
        assert_eq!(taken(&mut quota, "a.three"), Err(QuotaError::Full));
        assert_eq!(taken(&mut quota, "a.one"), Ok(()), "an authority that is in stays in");
        assert_eq!(taken(&mut quota, "b.one"), Ok(()));
    }

    #[test]
    fn an_authority_with_a_secret_has_a_place_and_counts_before_it_takes_it() {
        let mut quota = Quota::default();
        quota.listed(&names(&["a.old", "a.older", "a.oldest"]));
        assert_eq!(taken(&mut quota, "a.new"), Err(QuotaError::Full));
        for old in ["a.old", "a.older", "a.oldest"] {
            assert_eq!(taken(&mut quota, old), Ok(()));
        }
        assert_eq!(taken(&mut quota, "a.new"), Err(QuotaError::Full));
        // A Secret of a place counts once.
        quota.listed(&names(&["a.old"]));
        quota.remove(&name("a.older"));
        quota.remove(&name("a.oldest"));
        assert_eq!(taken(&mut quota, "a.new"), Ok(()));
        assert_eq!(taken(&mut quota, "a.newer"), Err(QuotaError::Full));
    }

    #[test]
    fn all_namespaces_together_have_room_for_so_many() {
        let mut quota = Quota::default();
        quota.listed(&names(&["a.old", "b.old"]));
        let mut taken = |text: &str| quota.reserve(&name(text), bounds(2, 4)).map(|_| ());
        assert_eq!((taken("a.old"), taken("b.old"), taken("c.new"), taken("d.new")), (Ok(()), Ok(()), Ok(()), Ok(())));
        assert_eq!(taken("e.new"), Err(QuotaError::FullInAll));
        assert_eq!(taken("c.new"), Ok(()), "an authority that is in stays in");
        // Those that have a Secret count before they have an entry, and get one all the same.
        let mut quota = Quota::default();
        quota.listed(&names(&["a.1", "a.2", "b.1"]));
        assert_eq!(quota.reserve(&name("c.new"), bounds(2, 3)).map(|_| ()), Err(QuotaError::FullInAll));
        assert_eq!(quota.reserve(&name("b.1"), bounds(2, 3)).map(|_| ()), Ok(()));
    }

    /// 125 namespaces of one tenant filled all 8,000 places, and nobody else got a new cluster.
    #[test]
    fn a_tenant_of_many_namespaces_leaves_room_for_the_clusters_of_others() {
        let mut quota = Quota::default();
        quota.listed(&BTreeSet::new());
        let mut take = |namespace: &str, count: usize| {
            (0..count)
                .filter(|n| quota.reserve(&name(&format!("{namespace}.c{n}")), bounds(64, 12_000)).is_ok())
                .count()
        };
        let taken: usize = (0..188).map(|n| take(&format!("tenant-{n}"), 64)).sum();
        assert!((10_250..10_350).contains(&taken), "{taken}");
        // Asked for again, the same are in, and no other.
        assert_eq!((0..188).map(|n| take(&format!("tenant-{n}"), 64)).sum::<usize>(), taken);
        // Another namespace gets no less than the last of these, and a first cluster has room when all of these are full.
        let other = take("other", 64);
        assert!((8..12).contains(&other), "{other}");
        for n in 0..560 {
            assert_eq!(take(&format!("other-{n}"), 3), 3, "{n}");
        }
        let last: usize = (0..100).map(|n| take(&format!("last-{n}"), 3)).sum();
        assert_eq!(taken + other + 560 * 3 + last, 12_000, "every place is used in the end");
    }

    #[test]
    fn the_bound_of_a_namespace_falls_to_a_first_cluster() {
        let of = |taken| bounds(64, 8_000).of_namespace(taken);
        assert_eq!([0, 6_000, 6_500, 6_900, 7_000, 8_000, 9_000].map(of), [64, 64, 32, 6, 3, 3, 3]);
        // One namespace may have most of few places; a bound below a first cluster's stays as it is.
        assert_eq!([0, 74, 75, 88].map(|taken| bounds(64, 100).of_namespace(taken)), [64, 64, 59, 3]);
        assert_eq!((bounds(1, 8).of_namespace(7), bounds(64, 1).of_namespace(0)), (1, 3));
    }

    #[test]
    fn a_namespace_with_its_share_is_told_its_share() {
        let mut quota = Quota::default();
        quota.listed(&BTreeSet::new());
        let mut take = |text: &str| quota.reserve(&name(text), bounds(8, 16)).map(|_| ());
        for n in 0..12 {
            assert_eq!(take(&format!("a{}.c{n}", n % 2)), Ok(()));
        }
        assert_eq!(take("b.1"), Ok(()));
        assert_eq!(take("a0.new"), Err(QuotaError::FullShare(4)));
        assert_eq!((take("b.2"), take("b.3")), (Ok(()), Ok(())));
        assert_eq!(take("b.4"), Err(QuotaError::FullShare(3)));
        assert_eq!(take("c.1"), Ok(()));
        assert_eq!(take("c.2"), Err(QuotaError::FullInAll));
    }

    #[test]
    fn room_comes_back_when_nobody_wants_or_uses_a_place() {
        let mut quota = Quota::default();
        quota.listed(&BTreeSet::new());
        let used = quota.reserve(&name("a.used"), bounds(2, 100)).unwrap();
        assert_eq!(taken(&mut quota, "a.wanted"), Ok(()));
        assert!(quota.remove_idle(&names(&["a.wanted"])).is_empty());
        drop(used);
        assert_eq!(quota.remove_idle(&names(&["a.wanted"])), [Arc::new(name("a.used"))]);
        assert_eq!(taken(&mut quota, "a.new"), Ok(()));
    }
}
