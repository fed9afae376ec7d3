//! Repair of a trust ConfigMap that somebody else changed: the fault, its repair and the pace of repairs. Pure.
//!
//! A user who can write ConfigMaps in a namespace can damage one in many forms. Each form is repaired: an `immutable` one is
//! deleted and created again, and the finalizers of one that is being deleted are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::role::Domain;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{marks::MANAGED_LABEL, trust::Desired};
use crate::{controller::ids::Version, revoke, rollover::request_annotation};

/// Bytes of others' annotations, labels and CRLs that stay; with more, a bundle might not fit beside them.
const MOST_ANNOTATIONS: usize = 64 * 1024;
const MOST_LABELS: usize = 16 * 1024;
const MOST_CRLS: usize = 512 * 1024;
/// The longest annotation with an operator's request.
const LONGEST_REQUEST: usize = 256;

/// The pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause after the second of repairs that follow each other closely; it doubles.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// Repairs further apart than this do not follow each other closely.
const CLOSELY: Duration = Duration::from_secs(60);

/// A form of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Form {
    /// A finalizer holds it while it is being deleted.
    BeingDeleted,
    /// Keys in `binaryData`.
    BinaryData,
    /// A bundle that is missing or another.
    Data,
    /// It was deleted.
    Deleted,
    /// Keys that are not ours.
    ExtraKeys,
    /// Nothing in it can be changed.
    Immutable,
    /// Labels, annotations, ownerReferences or finalizers.
    Metadata,
}

impl Form {
    /// The form's word, for a metric.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::BeingDeleted => "being-deleted",
            Self::BinaryData => "binary-data",
            Self::Data => "data",
            Self::Deleted => "deleted",
            Self::ExtraKeys => "extra-keys",
            Self::Immutable => "immutable",
            Self::Metadata => "metadata",
        }
    }
}

/// The repair of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It is.
    Nothing,
    /// This merge patch. It carries the resourceVersion that was looked at.
    Patch(Value),
    /// Deleting it and creating it again.
    Replace,
    /// This merge patch, with which it goes; then it is created again.
    Release(Value),
}

/// The faults of `object` and their repair.
pub(super) fn remedy(desired: &Desired, object: &ConfigMap) -> (Remedy, BTreeSet<Form>) {
    let metadata = &object.metadata;
    let finalizers = metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    if metadata.deletion_timestamp.is_some() {
        let version = &metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": null}});
        let remedy = if finalizers { Remedy::Release(patch) } else { Remedy::Nothing };
        return (remedy, BTreeSet::from([Form::BeingDeleted]));
    }
    let mut forms = BTreeSet::new();
    let (data, binary) = (data(desired, object, &mut forms), binary_data(desired, object, &mut forms));
    let patch = metadata_patch(desired, object, finalizers, &mut forms);
    if object.immutable == Some(true) {
        forms.insert(Form::Immutable);
        return (Remedy::Replace, forms);
    }
    if forms.is_empty() {
        return (Remedy::Nothing, forms);
    }
    (Remedy::Patch(json!({"metadata": patch, "data": data, "binaryData": binary})), forms)
}

fn data(desired: &Desired, object: &ConfigMap, forms: &mut BTreeSet<Form>) -> Map<String, Value> {
    let empty = BTreeMap::new();
    let present = object.data.as_ref().unwrap_or(&empty);
    let mut patch = Map::new();
    for (key, value) in &desired.data {
        if present.get(*key) != Some(value) {
            patch.insert((*key).to_owned(), json!(value));
            forms.insert(Form::Data);
        }
    }
    // A bundle whose authority is not known just now stays: only a rollover removes a published bundle.
    for key in present.keys().filter(|key| !Domain::ALL.iter().any(|domain| domain.trust_key() == *key)) {
        patch.insert(key.clone(), Value::Null);
        forms.insert(Form::ExtraKeys);
    }
    patch
}

fn binary_data(desired: &Desired, object: &ConfigMap, forms: &mut BTreeSet<Form>) -> Map<String, Value> {
    let empty = BTreeMap::new();
    let present = object.binary_data.as_ref().unwrap_or(&empty);
    let known = |key: &str| Domain::ALL.iter().any(|domain| domain.crl_key() == Some(key));
    let bytes: usize = present.iter().filter(|(key, _)| known(key)).map(|(_, value)| value.0.len()).sum();
    // A list of an authority that is not known just now stays.
    let gone = present.keys().filter(|key| !known(key) || bytes > MOST_CRLS);
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    if !patch.is_empty() {
        forms.insert(Form::BinaryData);
    }
    for (key, list) in &desired.lists {
        if present.get(*key).is_none_or(|there| there.0 != *list) || patch.contains_key(*key) {
            patch.insert((*key).to_owned(), json!(ByteString(list.clone())));
            forms.insert(Form::Data);
        }
    }
    patch
}

fn metadata_patch(desired: &Desired, object: &ConfigMap, finalizers: bool, forms: &mut BTreeSet<Form>) -> Value {
    let (metadata, empty) = (&object.metadata, BTreeMap::new());
    let labels = metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = metadata.annotations.as_ref().unwrap_or(&empty);
    let size = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let mut patch = Map::new();
    let mut wrong_labels = Map::new();
    if labels.get(MANAGED_LABEL.0).is_none_or(|value| value != MANAGED_LABEL.1) {
        wrong_labels.insert(MANAGED_LABEL.0.to_owned(), json!(MANAGED_LABEL.1));
    }
    if size(labels) > MOST_LABELS {
        let others = labels.keys().filter(|key| *key != MANAGED_LABEL.0);
        wrong_labels.extend(others.map(|key| (key.clone(), Value::Null)));
    }
    let mut wrong_annotations: Map<String, Value> = desired
        .annotations
        .iter()
        .filter(|(key, value)| annotations.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let mut damaged = !wrong_labels.is_empty();
    let request = |key: &str, value: &str| {
        let of = |domain: &Domain| request_annotation(*domain) == key || revoke::request_annotation(*domain) == key;
        value.len() <= LONGEST_REQUEST && Domain::ALL.iter().any(of)
    };
    if size(annotations) > MOST_ANNOTATIONS {
        damaged = true;
        let others = annotations.iter().filter(|(k, v)| !desired.annotations.contains_key(*k) && !request(k, v));
        wrong_annotations.extend(others.map(|(key, _)| (key.clone(), Value::Null)));
    }
    if metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty()) {
        patch.insert("ownerReferences".to_owned(), Value::Null);
        damaged = true;
    }
    if finalizers {
        patch.insert("finalizers".to_owned(), Value::Null);
        damaged = true;
    }
    if damaged {
        forms.insert(Form::Metadata);
    } else if !wrong_annotations.is_empty() {
        forms.insert(Form::Data);
    }
    patch.insert("resourceVersion".to_owned(), json!(metadata.resource_version));
    patch.insert("labels".to_owned(), Value::Object(wrong_labels));
    patch.insert("annotations".to_owned(), Value::Object(wrong_annotations));
    Value::Object(patch)
}

/// A ConfigMap as it was seen or written last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// Its resourceVersion.
    pub(super) version: Version,
    /// [`Desired::digest`] of its content.
    pub(super) content: u64,
}

/// The known state of one ConfigMap and the time of its next write.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The last content seen or written.
    pub(super) settled: Option<Settled>,
    /// True if this round wants it.
    pub(super) wanted: bool,
    /// Failures in a row.
    failures: u32,
    /// Repairs that followed each other closely.
    repairs: u32,
    repaired: Option<Instant>,
    not_before: Option<Instant>,
}

impl Upkeep {
    /// How long to wait until it is written again.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// True if the last attempt failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// It is what it shall be.
    pub(super) fn done(&mut self, settled: Settled) {
        (self.settled, self.failures) = (Some(settled), 0);
    }

    /// It had to be repaired: the next repair waits, the longer the more closely they follow each other.
    pub(super) fn repaired(&mut self, now: Instant) {
        let closely = self.repaired.is_some_and(|at| now.duration_since(at) < CLOSELY);
        self.repairs = if closely { self.repairs.saturating_add(1) } else { 0 };
        self.repaired = Some(now);
        let rest = doubled(FIRST_REST, self.repairs, LONGEST_REST);
        self.not_before = (self.repairs > 0).then(|| now + rest);
    }

    /// An attempt failed: how long to wait until the next one.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let pause = doubled(FIRST_PAUSE, self.failures.saturating_add(1), LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        pause
    }
}

/// `first` at the first time, doubled each time.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1).min(16))).min(most)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
        jiff::Timestamp,
    };

    use super::*;

    fn desired() -> Desired {
        let mut desired = Desired::new("uid");
        desired.publish(Domain::Peer, "PEER".to_owned());
        desired.publish(Domain::Client, "CLIENT".to_owned());
        desired
    }

    fn damaged(change: impl FnOnce(&mut ConfigMap)) -> (Remedy, Vec<Form>) {
        let mut object = desired().object("x");
        change(&mut object);
        let (remedy, forms) = remedy(&desired(), &object);
        (remedy, forms.into_iter().collect())
    }

    fn patch(change: impl FnOnce(&mut ConfigMap)) -> (Value, Vec<Form>) {
        let (remedy, forms) = damaged(change);
        (if let Remedy::Patch(patch) = remedy { patch } else { Value::Null }, forms)
    }

    #[test]
    fn correct_objects_are_left_alone() {
        assert_eq!(damaged(|_| {}), (Remedy::Nothing, vec![]));
        // An operator's request, a CRL, and what kubectl and others note are no damage.
        let others = |object: &mut ConfigMap| {
            let annotations = object.metadata.annotations.as_mut().unwrap();
            annotations.insert(request_annotation(Domain::Peer), "start 1".to_owned());
            annotations.insert("example.com/note".to_owned(), "kept".to_owned());
            object.metadata.labels.as_mut().unwrap().insert("team".to_owned(), "a".to_owned());
            object.binary_data = Some(BTreeMap::from([("peer.crl".to_owned(), ByteString(vec![1]))]));
        };
        assert_eq!(damaged(others), (Remedy::Nothing, vec![]));
        // A bundle whose authority is not known just now stays.
        let mut less = Desired::new("uid");
        less.publish(Domain::Client, "CLIENT".to_owned());
        assert_eq!(remedy(&less, &desired().object("x")).0, Remedy::Nothing);
    }

    #[test]
    fn each_form_is_mended_and_nothing_else() {
        let altered = patch(|o| drop(o.data.as_mut().unwrap().insert("peer.crt".to_owned(), "OTHER".to_owned())));
        assert_eq!((&altered.0["data"], &altered.1[..]), (&json!({"peer.crt": "PEER"}), &[Form::Data][..]));
        let emptied = patch(|o| o.data = None);
        assert_eq!(emptied.0["data"], json!({"peer.crt": "PEER", "client.crt": "CLIENT"}));
        let extra = patch(|o| drop(o.data.as_mut().unwrap().insert("filler".to_owned(), "x".repeat(1 << 20))));
        assert_eq!((&extra.0["data"], &extra.1[..]), (&json!({"filler": null}), &[Form::ExtraKeys][..]));
        let moved = patch(|o| {
            let pem = o.data.as_mut().unwrap().remove("peer.crt").unwrap();
            o.binary_data = Some(BTreeMap::from([("peer.crt".to_owned(), ByteString(pem.into_bytes()))]));
        });
        assert_eq!(moved.0["binaryData"], json!({"peer.crt": null}));
        assert_eq!(moved.1, [Form::BinaryData, Form::Data]);
        let crl = patch(|o| {
            o.binary_data = Some(BTreeMap::from([("peer.crl".to_owned(), ByteString(vec![0; MOST_CRLS + 1]))]));
        });
        assert_eq!(crl.0["binaryData"], json!({"peer.crl": null}));
        let listed = |bytes: &[u8]| Some(BTreeMap::from([("peer.crl".to_owned(), ByteString(bytes.to_vec()))]));
        let mut with_list = desired();
        with_list.lists.insert("peer.crl", vec![1, 2, 3]);
        for other in [None, listed(&[9]), listed(&vec![0; MOST_CRLS + 1])] {
            let mut object = with_list.object("x");
            object.binary_data = other;
            let (remedy, forms) = remedy(&with_list, &object);
            let Remedy::Patch(patch) = remedy else { panic!("{remedy:?}") };
            assert_eq!(patch["binaryData"], json!({"peer.crl": "AQID"}));
            assert!(forms.contains(&Form::Data), "{forms:?}");
        }
        assert_eq!(remedy(&with_list, &with_list.object("x")).0, Remedy::Nothing);
        let unlabelled = patch(|o| o.metadata.labels = None);
        assert_eq!(unlabelled.1, [Form::Metadata]);
        let owned = patch(|o| o.metadata.owner_references = Some(vec![OwnerReference::default()]));
        assert_eq!((&owned.0["metadata"]["ownerReferences"], &owned.1[..]), (&Value::Null, &[Form::Metadata][..]));
        assert!(owned.0["metadata"].as_object().unwrap().contains_key("ownerReferences"));
        let held = patch(|o| o.metadata.finalizers = Some(vec!["a.b/c".to_owned()]));
        assert!(held.0["metadata"].as_object().unwrap().contains_key("finalizers"));
        let noted = patch(|o| {
            let annotations = o.metadata.annotations.as_mut().unwrap();
            annotations.insert("example.com/note".to_owned(), "x".repeat(MOST_ANNOTATIONS));
            annotations.insert(request_annotation(Domain::Peer), "start 1".to_owned());
        });
        assert_eq!(noted.0["metadata"]["annotations"], json!({"example.com/note": null}), "the request stays");
    }

    #[test]
    fn immutable_objects_are_replaced_and_held_ones_released() {
        assert_eq!(damaged(|o| o.immutable = Some(true)), (Remedy::Replace, vec![Form::Immutable]));
        let going = |finalizers: Option<Vec<String>>| {
            damaged(|o| {
                o.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
                o.metadata.finalizers = finalizers;
            })
        };
        assert!(matches!(going(Some(vec!["a.b/c".to_owned()])).0, Remedy::Release(_)));
        assert_eq!(going(None).0, Remedy::Nothing);
    }

    #[test]
    fn constant_damage_causes_few_writes() {
        let start = Instant::now();
        let (mut upkeep, mut writes) = (Upkeep::default(), 0);
        for tick in 0..36_000_u64 {
            let now = start + Duration::from_millis(100) * u32::try_from(tick).unwrap();
            if upkeep.wait(now).is_zero() {
                upkeep.repaired(now);
                writes += 1;
            }
            assert!(upkeep.wait(now) <= LONGEST_REST, "mended within seconds all the same");
        }
        assert!(writes < 3600 / 10 + 10, "{writes} in an hour");
        let mut failing = Upkeep::default();
        let pauses: Vec<_> = (0..12).map(|_| failing.failed(start)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[11]), (FIRST_PAUSE, FIRST_PAUSE * 2, LONGEST_PAUSE));
    }
}
