#![allow(clippy::unwrap_used)]

use std::time::UNIX_EPOCH;

use super::*;
use crate::rollover::Abort;

const DAY: Duration = Duration::from_secs(86400);
const LIFETIMES: Lifetimes = Lifetimes { leaf: Duration::from_secs(86400 * 30), ca: Duration::from_secs(86400 * 700) };

fn now() -> SystemTime {
    UNIX_EPOCH + DAY * 20_000
}

fn ca(name: &str, at: SystemTime) -> Authority {
    Authority::generate(name, KeyAlgorithm::EcdsaP256, LIFETIMES.ca, at).unwrap()
}

fn leaf(stored: &mut Stored, at: SystemTime) -> Chain {
    leaf_of(stored, at, LIFETIMES.leaf)
}

fn leaf_of(stored: &mut Stored, at: SystemTime, lifetime: Duration) -> Chain {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let (public_key, sans) = (key.public_key(), Sans::default());
    let leaf = Leaf {
        role: Role::Server,
        organizations: vec![],
        common_name: SERVICE,
        sans: &sans,
        public_key: &public_key,
        lifetime,
    };
    let chain = issue(&stored.active, &leaf, at, [1; 16]).unwrap();
    stored.note_leaf(chain.not_after, lifetime);
    chain
}

#[test]
fn a_new_ca_is_published_before_it_signs_and_the_old_one_outlives_its_leaves() {
    let mut stored = Stored::new(ca("one", now()));
    let old = leaf(&mut stored, now());
    assert_eq!(due(&stored, Some(&old), now(), LIFETIMES), None);
    let half = now() + DAY * 351;
    let old = leaf(&mut stored, half);
    assert_eq!(due(&stored, Some(&old), half, LIFETIMES), Some(Step::Publish(Trigger::Schedule)));
    stored = stored.after(&Step::Publish(Trigger::Schedule), Some(ca("two", half)), half);
    assert!(stored.bundle().contains_issuer_of(&old) && stored.bundle().certificates().len() == 2);
    assert_eq!(due(&stored, Some(&old), half + OVERLAP - Duration::from_secs(1), LIFETIMES), None);
    let step = due(&stored, Some(&old), half + OVERLAP, LIFETIMES).unwrap();
    stored = stored.after(&step, None, half + OVERLAP);
    assert!(!stored.active.bundle().contains_issuer_of(&old), "so a new pair is due");
    // The old pair is still served, however late: nothing is removed.
    assert_eq!(due(&stored, Some(&old), half + DAY * 60, LIFETIMES), None);
    let new = leaf(&mut stored, half + OVERLAP);
    assert_eq!(due(&stored, Some(&new), half + OVERLAP, LIFETIMES), None, "another replica may serve the old one");
    assert_eq!(due(&stored, Some(&new), half + DAY * 60, LIFETIMES), Some(Step::Retire));
}

/// A signer whose clock was ahead for a minute made it.
#[test]
fn a_next_ca_that_is_not_valid_yet_is_taken_back() {
    let mut stored = Stored::new(ca("one", now()));
    let served = leaf(&mut stored, now());
    let ahead = now() + DAY * 360;
    stored = stored.after(&Step::Publish(Trigger::Schedule), Some(ca("two", ahead)), ahead);
    assert_eq!(due(&stored, Some(&served), now(), LIFETIMES), Some(Step::Abort(Abort::NotValidYet)));
    stored = stored.after(&Step::Abort(Abort::NotValidYet), None, now());
    assert_eq!(due(&stored, Some(&served), now(), LIFETIMES), None);
    // One that has ended is not taken either.
    stored = stored.after(&Step::Publish(Trigger::Schedule), Some(ca("three", now())), now());
    assert_eq!(due(&stored, Some(&served), now() + LIFETIMES.ca, LIFETIMES), Some(Step::Abort(Abort::Expired)));
}

#[test]
fn half_of_a_leafs_life_is_counted_from_its_issue() {
    let mut stored = Stored::new(ca("one", now()));
    for seconds in [60, 3600, 86_400] {
        let chain = leaf_of(&mut stored, now(), Duration::from_secs(seconds));
        assert_eq!(half_of_leaf(&chain), now() + Duration::from_secs(seconds / 2), "{seconds} s");
    }
}

#[test]
fn ca_bundles_are_written_where_they_differ_and_keep_what_is_served() {
    let entries = |bundles: &[Option<&Bundle>]| -> Vec<(String, Option<ByteString>)> {
        let entry = |(i, bundle): (usize, &Option<&Bundle>)| {
            (format!("w{i}.etcd-tls.dev"), bundle.map(|b| ByteString(b.to_pem().into_bytes())))
        };
        bundles.iter().enumerate().map(entry).collect()
    };
    let patch = |entries: &[(String, Option<ByteString>)], bundle: &Bundle, served: Option<&Chain>, now| {
        ca_bundle_patch(entries.iter().map(|(n, b)| (n.as_str(), b.as_ref())), bundle, served, now)
    };
    let mut lost = Stored::new(ca("lost", now()));
    let served = leaf(&mut lost, now());
    let stored = Stored::new(ca("one", now()));
    let (bundle, old) = (stored.bundle(), lost.bundle());

    let written = patch(&entries(&[None, Some(&bundle)]), &bundle, None, now()).unwrap();
    assert_eq!(written["webhooks"].as_array().unwrap().len(), 1);
    assert_eq!(written["webhooks"][0]["name"], "w0.etcd-tls.dev");
    let both = bundle.union(&old);
    let done = entries(&[Some(&both), Some(&both)]);
    assert_eq!(patch(&done, &bundle, Some(&served), now()), None, "the served pair can be checked");
    let written = patch(&entries(&[Some(&old)]), &bundle, Some(&served), now()).unwrap();
    let bytes: ByteString = serde_json::from_value(written["webhooks"][0]["clientConfig"]["caBundle"].clone()).unwrap();
    assert_eq!(Bundle::parse(&bytes.0).unwrap(), both);
    // Once it has ended, its CA goes.
    let written = patch(&done, &bundle, Some(&served), now() + DAY * 31).unwrap();
    assert_eq!(written["webhooks"].as_array().unwrap().len(), 2);
}
