//! An authority as its Secret stores it, and how each step of a rollover changes it. Pure.
//!
//! ```text
//! tls.crt, tls.key     the CA that signs
//! next.crt, next.key   the CA that is published and signs nothing yet
//! old.crt              the anchor that is still published and signs nothing any more; its key is gone
//! state.json           the rollover under way, until when leaves hold, the last answer to an operator
//! revoked.json         what was revoked, and the last answer to that
//! crl.der              the signed list of it
//! issued.json          what was issued and has not ended; where the Secret has no room without the names, else left out, and then lost at
//!                      the next read
//! ```
//!
//! Each step is one write of the Secret, so a killed signer leaves no state in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, CertificateError},
    encoding::hex,
    names::SignerName,
};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use super::{
    issued::{Issued, WithoutNames},
    revoked::{Known, Revoked, RevokedError},
};
use crate::{
    ca::authority::{Authority, AuthorityError},
    revoke::Request,
    rollover::{Answer, Life, LivePod, Phase, Rollover, Step, Trigger, rfc3339},
    sign::{
        cache::pods::Voter,
        marks::{CA_LABEL, MANAGED_LABEL, SIGNER_ANNOTATION, UID_ANNOTATION},
    },
};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const OLD_CERTIFICATE: &str = "old.crt";
const STATE: &str = "state.json";
const ISSUED: &str = "issued.json";
/// Bytes of a Secret's data that are used; it holds 1 MiB.
const ROOM: usize = 1_000_000;

/// An authority with its keys. Only the leader holds one.
#[derive(Clone, Debug)]
pub(in crate::sign) struct Stored {
    /// Signs.
    pub(in crate::sign) active: Arc<Authority>,
    /// Published, signs nothing yet.
    pub(in crate::sign) next: Option<Arc<Authority>>,
    /// Published, signs nothing any more.
    pub(in crate::sign) old: Option<Bundle>,
    /// The state beside the certificates.
    pub(in crate::sign) state: State,
    /// The revocations.
    pub(in crate::sign) revoked: Arc<Revoked>,
    /// The issued certificates.
    pub(in crate::sign) issued: Arc<Issued>,
    /// True if there is no record of them, and that is not noted in one yet: the Secret had none that could be read, as it was left out,
    /// or somebody restored the Secret without it.
    pub(in crate::sign) unrecorded: bool,
}

/// See [`Stored::state`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(in crate::sign) struct State {
    /// The rollover under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::sign) rollover: Option<Box<Rollover>>,
    /// Every leaf of the active CA ends before this. It is set well beyond the leaf that moves it, so that most leaves
    /// move nothing and cost no write.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub(in crate::sign) leaves_until: Option<SystemTime>,
    /// The answer to the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::sign) answer: Option<Box<Answer>>,
    /// Since when nobody uses it, as far as the signer knows: see [`Stored::rests`].
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub(in crate::sign) idle_since: Option<SystemTime>,
}

/// Why a Secret is no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::sign) enum StateError {
    /// One of its CAs is unusable.
    #[error("key {0}: {1}")]
    Authority(&'static str, AuthorityError),
    /// A key is not there.
    #[error("key {0} is missing")]
    Missing(&'static str),
    /// The anchor that is on its way out cannot be read.
    #[error("key {OLD_CERTIFICATE}: {0}")]
    Old(CertificateError),
    /// The revocations cannot be read.
    #[error("key {0}")]
    Revoked(#[from] RevokedError),
    /// The state cannot be read, or does not fit the CAs.
    #[error("key {STATE}: {0}")]
    State(String),
}

impl Stored {
    /// A new authority.
    pub(in crate::sign) fn new(active: Authority) -> Self {
        Self {
            active: Arc::new(active),
            next: None,
            old: None,
            state: State::default(),
            revoked: Arc::default(),
            issued: Arc::default(),
            unrecorded: false,
        }
    }

    /// An authority whose leaves nobody has counted: any may live as long as the CA.
    pub(in crate::sign) fn used(active: Authority) -> Self {
        let state = State { leaves_until: Some(active.not_after()), ..State::default() };
        Self { state, unrecorded: true, ..Self::new(active) }
    }

    /// Reads a Secret's data.
    pub(in crate::sign) fn read(data: &BTreeMap<String, ByteString>, now: SystemTime) -> Result<Self, StateError> {
        let bytes = |key| data.get(key).map(|b| b.0.as_slice());
        let authority = |certificate: &'static str, key: &'static str| {
            let certificate_pem = bytes(certificate).ok_or(StateError::Missing(certificate))?;
            let key_pem = bytes(key).ok_or(StateError::Missing(key))?;
            Authority::reload(certificate_pem, key_pem, now)
                .map(Arc::new)
                .map_err(|e| StateError::Authority(certificate, e))
        };
        let active = authority(CERTIFICATE, KEY)?;
        let next = data.contains_key(NEXT_CERTIFICATE).then(|| authority(NEXT_CERTIFICATE, NEXT_KEY)).transpose()?;
        let old = bytes(OLD_CERTIFICATE).map(Bundle::parse).transpose().map_err(StateError::Old)?;
        let state: State = match bytes(STATE) {
            // A Secret restored by hand may hold nothing but the pair. Leaves of it may be out there all the same.
            None => State { leaves_until: Some(active.not_after()), ..State::default() },
            Some(text) => serde_json::from_slice(text).map_err(|e| StateError::State(e.to_string()))?,
        };
        let fits = match state.rollover.as_ref().map(|r| r.phase) {
            None => next.is_none() && old.is_none(),
            Some(Phase::Published) => next.is_some() && old.is_none(),
            Some(Phase::Signing) => next.is_none() && old.is_some(),
        };
        if !fits {
            return Err(StateError::State("it does not fit the CAs beside it; restore the whole Secret".to_owned()));
        }
        let revoked = Arc::new(Revoked::read(data)?);
        let issued = bytes(ISSUED).map(serde_json::from_slice).transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "the record of what was issued cannot be read; it begins anew");
            None
        });
        let unrecorded = issued.is_none();
        Ok(Self { active, next, old, state, revoked, issued: Arc::new(issued.unwrap_or_default()), unrecorded })
    }

    /// The Secret's data.
    pub(in crate::sign) fn data(&self) -> Result<BTreeMap<String, ByteString>, serde_json::Error> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, value: &[u8]| data.insert(key.to_owned(), ByteString(value.to_vec()));
        put(CERTIFICATE, self.active.certificate_pem().as_bytes());
        put(KEY, self.active.key_pem().as_bytes());
        if let Some(next) = &self.next {
            put(NEXT_CERTIFICATE, next.certificate_pem().as_bytes());
            put(NEXT_KEY, next.key_pem().as_bytes());
        }
        if let Some(old) = &self.old {
            put(OLD_CERTIFICATE, old.to_pem().as_bytes());
        }
        put(STATE, serde_json::to_string(&self.state)?.as_bytes());
        for (key, value) in self.revoked.data()? {
            put(key, &value);
        }
        // An empty one, too: where there is none, it is lost.
        let bytes: usize = data.values().map(|value| value.0.len()).sum();
        let fits = |issued: &Vec<u8>| bytes + issued.len() <= ROOM;
        let mut issued = serde_json::to_vec(&*self.issued)?;
        if !fits(&issued) {
            issued = serde_json::to_vec(&WithoutNames(&self.issued))?;
        }
        if !self.unrecorded && fits(&issued) {
            data.insert(ISSUED.to_owned(), ByteString(issued));
        }
        Ok(data)
    }

    /// The bundle to publish.
    pub(in crate::sign) fn bundle(&self) -> Bundle {
        let mut bundle = self.active.bundle().clone();
        for more in self.next.iter().map(|next| next.bundle()).chain(&self.old) {
            bundle = bundle.union(more);
        }
        bundle
    }

    /// When every certificate that exists now, of the CA that signs or of the one before, has ended.
    pub(in crate::sign) fn leaves_end(&self) -> SystemTime {
        let of_old = self.state.rollover.as_ref().and_then(|rollover| rollover.old_leaves_until);
        let of_active = self.state.leaves_until;
        of_old.max(of_active).unwrap_or_else(|| self.active.not_after())
    }

    /// True if every certificate of it has ended and no rollover is under way. Whether pods use it, the watch of pods tells.
    pub(in crate::sign) fn rests(&self, now: SystemTime) -> bool {
        let ended = |end: Option<SystemTime>| end.is_none_or(|end| end <= now);
        let moves = self.state.rollover.is_some() || self.next.is_some() || self.old.is_some();
        !moves && ended(self.state.leaves_until) && ended(self.issued.last_end())
    }

    /// Takes an operator's request, and brings the revocation list up to date. A list that cannot be signed now is signed
    /// later. `namespace` is the authority's, `live` are its pods, and `voters` the members whose peer certificates it signs.
    pub(in crate::sign) fn revoke(
        &mut self,
        request: Option<&Request>,
        namespace: &str,
        (live, voters): (&[LivePod], &[Voter]),
        now: SystemTime,
    ) {
        let mut revoked = Revoked::clone(&self.revoked);
        if let Some(request) = request {
            let known = Known {
                issued: &self.issued,
                namespace,
                signs_lists: self.active.signs_lists(),
                live,
                voters,
                by_record: None,
                leaves_end: self.leaves_end(),
                authority_end: self.active.not_after(),
            };
            revoked.take(request, &known, now);
        }
        match revoked.refresh(&self.active, now) {
            Ok(changed) if changed || request.is_some() => self.revoked = Arc::new(revoked),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a revocation list cannot be signed; the one before stays"),
        }
    }

    /// The state after `step`; `next` is the CA that [`Step::Publish`] publishes.
    pub(in crate::sign) fn after(&self, step: &Step, next: Option<Authority>, now: SystemTime) -> Self {
        let mut after = self.clone();
        match (step, next) {
            (Step::Publish(trigger), Some(next)) => after.publish(*trigger, next, now),
            (Step::Force, Some(next)) => {
                after.publish(Trigger::Command, next, now);
                if let Some(rollover) = &mut after.state.rollover {
                    rollover.forced = true;
                }
            }
            (Step::Publish(_) | Step::Force, None) => {}
            (Step::ConfirmClients, _) => {
                if let Some(rollover) = &mut after.state.rollover {
                    rollover.clients_confirmed = true;
                }
            }
            (Step::Abort(_), _) => {
                after.next = None;
                after.state.rollover = None;
            }
            (Step::ChangeOver(_), _) => {
                if let (Some(next), Some(rollover)) = (after.next.take(), after.state.rollover.take()) {
                    after.old = Some(self.active.bundle().clone());
                    after.active = next;
                    after.state.rollover = Some(Box::new(rollover.change_over(self.state.leaves_until, now)));
                    after.state.leaves_until = None;
                }
            }
            (Step::Retire | Step::ForceRetire, _) => {
                after.old = None;
                after.state.rollover = None;
            }
        }
        after
    }

    fn publish(&mut self, trigger: Trigger, next: Authority, now: SystemTime) {
        let (old, new) = (self.active.generation(), next.generation());
        self.next = Some(Arc::new(next));
        let accepted = BTreeSet::from([self.bundle().digest()]);
        self.state.rollover = Some(Box::new(Rollover::publish(trigger, &old, &new, accepted, now)));
    }

    /// Makes room for a leaf that ends at `not_after`. Returns true if the state changed, and must be persisted before the leaf
    /// is issued.
    pub(in crate::sign) fn note_leaf(&mut self, not_after: SystemTime, lifetime: Duration) -> bool {
        let moved = self.state.leaves_until.is_none_or(|until| until < not_after);
        if moved {
            let end = self.active.not_after();
            self.state.leaves_until =
                Some(not_after.checked_add(lifetime / 4).map_or(end, |t| t.min(end)).max(not_after));
        }
        moved
    }
}

/// An authority's generation and life.
pub(in crate::sign) fn life(authority: &Authority) -> Life {
    Life { generation: authority.generation(), not_before: authority.not_before(), not_after: authority.not_after() }
}

/// The name of an authority's Secret: of the namespace's uid, so that a namespace made again inherits nothing.
pub(in crate::sign) fn secret_name(namespace_uid: &str, authority: &SignerName) -> String {
    format!("etcd-tls-ca-{namespace_uid}-{}-{}", authority.cluster, authority.domain)
}

/// Its metadata: the labels and annotations by which the signer knows it.
pub(in crate::sign) fn secret_metadata(namespace_uid: &str, authority: &SignerName) -> ObjectMeta {
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    ObjectMeta {
        name: Some(secret_name(namespace_uid, authority)),
        labels: Some([MANAGED_LABEL, CA_LABEL].into_iter().map(label).collect()),
        annotations: Some(BTreeMap::from([
            (UID_ANNOTATION.to_owned(), namespace_uid.to_owned()),
            (SIGNER_ANNOTATION.to_owned(), authority.to_string()),
        ])),
        ..ObjectMeta::default()
    }
}

/// The Secret of an authority.
pub(in crate::sign) fn secret(
    namespace_uid: &str,
    authority: &SignerName,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    Secret {
        metadata: secret_metadata(namespace_uid, authority),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// The CN of a new generation; 64 characters at most. The unique part comes first, so that it is never cut.
pub(in crate::sign) fn common_name(authority: &SignerName, random: [u8; 6]) -> String {
    let random = hex(&random);
    let mut name = format!("etcd-tls {} {random} {}.{}", authority.domain, authority.namespace, authority.cluster);
    name.truncate(64);
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::UNIX_EPOCH;

    use etcd_tls_contract::key::KeyAlgorithm;

    use super::*;
    use crate::rollover::{Abort, ChangeOver};

    const DAY: Duration = Duration::from_secs(86400);

    fn now() -> SystemTime {
        UNIX_EPOCH + DAY * 20_000
    }

    fn ca(name: &str) -> Authority {
        Authority::generate(name, KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap()
    }

    fn killed_and_read_back(stored: &Stored) -> Stored {
        let data = stored.data().unwrap();
        let read = Stored::read(&data, now()).unwrap();
        assert_eq!(read.data().unwrap(), data);
        assert_eq!(read.bundle(), stored.bundle());
        read
    }

    #[test]
    fn a_signer_killed_at_any_step_is_followed_from_there() {
        let stored = killed_and_read_back(&Stored::new(ca("one")));
        let one = stored.active.generation();
        let published = killed_and_read_back(&stored.after(&Step::Publish(Trigger::Command), Some(ca("two")), now()));
        assert_eq!(published.active.generation(), one);
        assert_eq!(published.bundle().certificates().len(), 2);
        let rollover = published.state.rollover.clone().unwrap();
        assert!(rollover.accepted.contains(&published.bundle().digest()));
        assert!(!rollover.accepted.contains(&stored.bundle().digest()));

        let confirmed = killed_and_read_back(&published.after(&Step::ConfirmClients, None, now()));
        assert!(confirmed.state.rollover.as_ref().unwrap().clients_confirmed);

        let aborted = killed_and_read_back(&published.after(&Step::Abort(Abort::Command), None, now()));
        assert_eq!(aborted.bundle(), stored.bundle());
        assert!(aborted.next.is_none() && aborted.state.rollover.is_none());

        let signing = killed_and_read_back(&published.after(&Step::ChangeOver(ChangeOver::Trusted), None, now()));
        assert_eq!(signing.active.generation(), rollover.new);
        assert_eq!(signing.bundle(), published.bundle(), "a changeover changes no bundle");
        assert_eq!(signing.data().unwrap().keys().filter(|k| k.ends_with(".key")).count(), 1, "the old key is gone");

        let stable = killed_and_read_back(&signing.after(&Step::Retire, None, now()));
        assert_eq!(stable.bundle(), *stable.active.bundle());
        assert_eq!(stable.active.generation(), rollover.new);
    }

    #[test]
    fn the_old_cas_last_leaf_goes_into_the_changeover() {
        let mut stored = Stored::new(ca("one"));
        assert!(stored.note_leaf(now() + DAY, DAY));
        let until = stored.state.leaves_until.unwrap();
        assert_eq!(until, now() + DAY + DAY / 4);
        // The next ones cost no write until the margin is used up.
        assert!(!stored.note_leaf(now() + DAY + DAY / 4, DAY));
        assert!(stored.note_leaf(now() + DAY * 2, DAY));
        let published = stored.after(&Step::Publish(Trigger::Command), Some(ca("two")), now());
        let signing = published.after(&Step::ChangeOver(ChangeOver::Trusted), None, now());
        let rollover = signing.state.rollover.clone().unwrap();
        assert_eq!(rollover.old_leaves_until, Some(now() + DAY * 2 + DAY / 4));
        assert_eq!(signing.state.leaves_until, None, "the new CA has signed nothing yet");
        // Never beyond the CA's own end.
        assert!(stored.note_leaf(now() + DAY * 365, DAY * 300));
        assert_eq!(stored.state.leaves_until, Some(stored.active.not_after()));
    }

    #[test]
    fn an_authority_rests_when_its_last_certificate_has_ended_and_no_rollover_is_under_way() {
        let mut stored = Stored::new(ca("one"));
        assert!(stored.rests(now()), "it has signed nothing");
        stored.note_leaf(now() + DAY, DAY);
        let until = stored.state.leaves_until.unwrap();
        assert!(!stored.rests(until - Duration::from_secs(1)) && stored.rests(until));
        let end = until + DAY;
        Arc::make_mut(&mut stored.issued)
            .note("1", super::super::issued::Leaf::new("u", String::new(), "x", end, now()));
        assert!(!stored.rests(until) && stored.rests(end), "of the record, too");
        let published = stored.after(&Step::Publish(Trigger::Command), Some(ca("two")), end);
        let signing = published.after(&Step::ChangeOver(ChangeOver::Trusted), None, end);
        assert!(!published.rests(end) && !signing.rests(end + DAY * 1000));
        // Nobody has counted the leaves of one that was restored by hand, or given.
        assert!(!Stored::used(ca("one")).rests(now() + DAY * 364));
        let mut data = stored.data().unwrap();
        data.remove(STATE);
        assert!(!Stored::read(&data, now()).unwrap().rests(end));
    }

    #[test]
    fn a_record_that_is_not_there_is_lost_and_one_that_is_empty_is_not() {
        let mut stored = Stored::new(ca("one"));
        let mut data = stored.data().unwrap();
        data.remove(ISSUED);
        assert!(!Stored::read(&data, now()).unwrap().has_lost_its_record(), "nothing was issued");
        stored.note_leaf(now() + DAY, DAY);
        assert!(
            !killed_and_read_back(&stored).has_lost_its_record(),
            "killed before its first certificate was recorded"
        );
        let mut data = stored.data().unwrap();
        data.remove(ISSUED);
        let lost = Stored::read(&data, now()).unwrap();
        assert!(lost.has_lost_its_record());
        assert_eq!(lost.data().unwrap(), data, "the Secret says so until the loss is in a record");
        data.insert(ISSUED.to_owned(), ByteString(b"garbage".to_vec()));
        assert!(Stored::read(&data, now()).unwrap().has_lost_its_record());
        assert!(killed_and_read_back(&Stored::used(ca("two"))).has_lost_its_record());
    }

    #[test]
    fn a_secret_with_no_room_for_names_has_the_record_without_them() {
        let mut stored = Stored::new(ca("one"));
        let leaf = super::super::issued::Leaf::new("u", "prod/a".to_owned(), "a", now() + DAY, now());
        let names = format!("{}.example.org", "x".repeat(60)).parse().unwrap();
        Arc::make_mut(&mut stored.issued).note("1", leaf.clone().named(&names));
        let bytes = |stored: &Stored| stored.data().unwrap().values().map(|value| value.0.len()).sum::<usize>();
        assert!(killed_and_read_back(&stored).issued == stored.issued);
        let answer =
            |length| Some(Box::new(Answer { id: "1".to_owned(), accepted: true, message: "x".repeat(length) }));
        stored.state.answer = answer(0);
        stored.state.answer = answer(ROOM - bytes(&stored));
        assert!(bytes(&stored) == ROOM && killed_and_read_back(&stored).issued == stored.issued);
        stored.state.answer = answer(ROOM - bytes(&stored) + stored.state.answer.as_ref().unwrap().message.len() + 1);
        let mut without = Issued::default();
        without.note("1", leaf);
        assert!(*killed_and_read_back(&stored).issued == without);
    }

    #[test]
    fn inconsistent_parts_are_refused() {
        let stored = Stored::new(ca("one")).after(&Step::Publish(Trigger::Command), Some(ca("two")), now());
        let good = stored.data().unwrap();
        let without = |key: &str| {
            let mut data = good.clone();
            data.remove(key);
            Stored::read(&data, now()).map(|_| ()).unwrap_err()
        };
        assert_eq!(without(CERTIFICATE), StateError::Missing(CERTIFICATE));
        assert_eq!(without(KEY), StateError::Missing(KEY));
        assert_eq!(without(NEXT_KEY), StateError::Missing(NEXT_KEY));
        assert!(matches!(without(NEXT_CERTIFICATE), StateError::State(_)));
        assert!(matches!(without(STATE), StateError::State(_)));
        let mut garbage = good.clone();
        garbage.insert(CERTIFICATE.to_owned(), ByteString(b"x".to_vec()));
        assert!(matches!(Stored::read(&garbage, now()), Err(StateError::Authority(..))));
        let mut swapped = good;
        swapped.insert(KEY.to_owned(), swapped[NEXT_KEY].clone());
        assert!(matches!(Stored::read(&swapped, now()), Err(StateError::Authority(..))));
    }

    #[test]
    fn a_pair_restored_by_hand_is_enough() {
        let mut data = Stored::new(ca("one")).data().unwrap();
        data.remove(STATE);
        let restored = Stored::read(&data, now()).unwrap();
        assert_eq!(restored.state.leaves_until, Some(restored.active.not_after()), "nobody has counted its leaves");
    }

    #[test]
    fn names_stay_within_their_bounds_and_apart() {
        let long = SignerName {
            domain: etcd_tls_contract::role::Domain::Metrics,
            namespace: "n".repeat(63),
            cluster: "c".repeat(63),
        };
        assert_eq!(common_name(&long, [1; 6]).len(), 64);
        assert_ne!(common_name(&long, [1; 6]), common_name(&long, [2; 6]));
        assert!(secret_name(&"u".repeat(36), &long).len() <= 253);
    }
}
