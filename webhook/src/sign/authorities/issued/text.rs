//! The JSON of a record. Each list of names stands once, beside the certificates, which have its place: a version that knows no names reads
//! the rest, and writes it without them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    super::{
        leaf::{Leaf, Text},
        lean::Lean,
        names::Names,
    },
    Issued,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    leaves: BTreeMap<&'a str, Text<'a>>,
    since: u64,
    #[serde(skip_serializing_if = "is_zero")]
    lacking_until: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Read<'a> {
    #[serde(borrow)]
    leaves: BTreeMap<Box<str>, Text<'a>>,
    since: u64,
    lacking_until: u64,
    #[serde(borrow)]
    names: Vec<Cow<'a, str>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

/// A record whose certificates are written without names and addresses.
pub(in super::super) struct WithoutNames<'a>(pub(in super::super) &'a Issued);

impl Serialize for WithoutNames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Issued { leaves, since, lacking_until } = self.0;
        let leaves = leaves.iter().map(|(serial, leaf)| (serial, leaf.to_text(None).without_addresses()));
        let leaves = leaves.collect();
        Written { leaves, since: *since, lacking_until: *lacking_until, names: Vec::new() }.serialize(serializer)
    }
}

impl Serialize for Issued {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut names, mut places, mut leaves) = (Vec::new(), HashMap::new(), BTreeMap::new());
        for (serial, leaf) in self.leaves.iter() {
            let list = leaf.names().map(|list| list.text());
            let place = list.map(|list| {
                *places.entry(list).or_insert_with(|| {
                    names.push(list);
                    names.len() - 1
                })
            });
            leaves.insert(serial, leaf.to_text(place));
        }
        Written { leaves, since: self.since, lacking_until: self.lacking_until, names }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Issued {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { leaves, since, lacking_until, names } = Read::deserialize(deserializer)?;
        let names: Vec<Arc<Names>> = names.iter().map(|text| Arc::new(Names::read(text))).collect();
        let mut known: HashMap<Arc<str>, Leaf> = HashMap::new();
        // Many have the same holder, pod and user.
        let mut read = |(serial, text): (Box<str>, Text<'_>)| {
            let list = text.names.and_then(|place| names.get(place));
            let mut leaf = Leaf::of_text(text, list);
            let of_text = known.entry(Arc::clone(leaf.shared())).or_insert_with(|| leaf.clone());
            leaf.share(of_text);
            (serial, leaf)
        };
        let leaves: BTreeMap<Box<str>, Leaf> = leaves.into_iter().map(&mut read).collect();
        Ok(Self { leaves: Lean::from(leaves), since, lacking_until })
    }
}
