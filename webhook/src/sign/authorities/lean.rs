//! A map of few entries in one allocation without room to spare: a tree has room for eleven from the first on, and there are
//! thousands of such maps.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// See the module. In the order of the keys.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Lean<V>(Vec<(Box<str>, V)>);

impl<V> Default for Lean<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Lean<V> {
    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(key))
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.place(key).ok().map(|place| &self.0[place].1)
    }

    pub(super) fn insert(&mut self, key: &str, value: V) {
        match self.place(key) {
            Ok(place) => self.0[place].1 = value,
            Err(place) => {
                self.0.reserve_exact(1);
                self.0.insert(place, (key.into(), value));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<V> {
        self.place(key).ok().map(|place| self.0.remove(place).1)
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&V) -> bool) {
        self.0.retain(|(_, value)| stays(value));
        self.0.shrink_to_fit();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<V: fmt::Debug> fmt::Debug for Lean<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V: Serialize> Serialize for Lean<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Lean<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<Box<str>, V>::deserialize(deserializer)?;
        let mut all = Vec::with_capacity(map.len());
        all.extend(map);
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_is_a_map_and_its_text_is_one() {
        let (mut lean, mut map) = (Lean::default(), BTreeMap::new());
        for n in [5, 3, 9, 3, 1, 7, 5] {
            lean.insert(&n.to_string(), n * 10);
            map.insert(n.to_string(), n * 10);
        }
        assert!(lean.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value))));
        assert_eq!(serde_json::to_string(&lean).unwrap(), serde_json::to_string(&map).unwrap());
        assert_eq!(serde_json::from_str::<Lean<i32>>(r#"{"b":2,"a":1,"b":3}"#).unwrap().iter().count(), 2);
        assert_eq!((lean.get("9"), lean.get("4"), lean.len()), (Some(&90), None, 5));
        assert_eq!((lean.remove("9"), lean.remove("9")), (Some(90), None));
        lean.retain(|value| *value > 30);
        assert_eq!(lean.values().copied().collect::<Vec<_>>(), [50, 70]);
        assert_eq!(lean.0.capacity(), 2);
    }
}
