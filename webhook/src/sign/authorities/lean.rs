//! A map of few entries in one allocation with little room to spare: a tree has room for eleven from the first on, of which half is
//! empty when it is large, and there are thousands of such maps.

use std::{collections::BTreeMap, fmt};

use super::memory::chunk;

/// Entries with which a map becomes a tree: to insert one among many thousands moves half of them. More than a record of `sign` has.
const FEW: usize = 2048;
/// The part of a map that may be empty. Few entries have none.
const SPARE: usize = 16;

/// See the module. In the order of the keys.
#[derive(Clone)]
pub(super) struct Lean<V> {
    few: Vec<(Box<str>, V)>,
    /// All entries, once there were more than [`FEW`].
    #[expect(clippy::box_collection, reason = "most of thousands have none, and a pointer is a third of a tree")]
    many: Option<Box<BTreeMap<Box<str>, V>>>,
}

impl<V> Default for Lean<V> {
    fn default() -> Self {
        Self::none()
    }
}

impl<V> Lean<V> {
    /// Without entries.
    pub(super) const fn none() -> Self {
        Self { few: Vec::new(), many: None }
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.few.binary_search_by(|(other, _)| (**other).cmp(key))
    }

    pub(super) fn len(&self) -> usize {
        self.many.as_ref().map_or(self.few.len(), |many| many.len())
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        match &self.many {
            Some(many) => many.get(key),
            None => self.place(key).ok().map(|place| &self.few[place].1),
        }
    }

    pub(super) fn insert(&mut self, key: &str, value: V) {
        if self.many.is_none() && self.few.len() >= FEW {
            self.many = Some(Box::new(std::mem::take(&mut self.few).into_iter().collect()));
        }
        let place = self.place(key);
        match (&mut self.many, place) {
            (Some(many), _) => drop(many.insert(key.into(), value)),
            (None, Ok(place)) => self.few[place].1 = value,
            (None, Err(place)) => {
                if self.few.len() == self.few.capacity() {
                    self.few.reserve_exact(1 + self.few.len() / SPARE);
                }
                self.few.insert(place, (key.into(), value));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<V> {
        match &mut self.many {
            Some(many) => many.remove(key),
            None => self.place(key).ok().map(|place| self.few.remove(place).1),
        }
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&V) -> bool) {
        if let Some(many) = &mut self.many {
            many.retain(|_, value| stays(value));
        }
        self.few.retain(|(_, value)| stays(value));
        if self.few.capacity() > self.few.len() + self.few.len() / SPARE * 2 {
            self.few.shrink_to_fit();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        let many = self.many.iter().flat_map(|many| many.iter());
        self.few.iter().map(|(key, value)| (&**key, value)).chain(many.map(|(key, value)| (&**key, value)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<V> Lean<V> {
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let many = self.many.iter_mut().flat_map(|many| many.values_mut());
        self.few.iter_mut().map(|(_, value)| value).chain(many)
    }

    /// Bytes of memory that it takes, without those of the values beside themselves.
    pub(super) fn bytes(&self) -> usize {
        let keys: usize = self.iter().map(|(key, _)| chunk(key.len())).sum();
        let row = size_of::<(Box<str>, V)>();
        // A tree is half empty at the worst.
        let many = self.many.as_ref().map_or(0, |many| 2 * many.len() * row);
        chunk(self.few.capacity() * row) + many + keys
    }
}

impl<V: PartialEq> PartialEq for Lean<V> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<V: Eq> Eq for Lean<V> {}

impl<V: fmt::Debug> fmt::Debug for Lean<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V> From<BTreeMap<Box<str>, V>> for Lean<V> {
    fn from(map: BTreeMap<Box<str>, V>) -> Self {
        if map.len() > FEW {
            return Self { few: Vec::new(), many: Some(Box::new(map)) };
        }
        let mut few = Vec::with_capacity(map.len());
        few.extend(map);
        Self { few, many: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<V: Copy>(map: &BTreeMap<String, V>) -> Lean<V> {
        Lean::from(map.iter().map(|(key, value)| (Box::from(key.as_str()), *value)).collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn it_is_a_map() {
        let (mut lean, mut map) = (Lean::default(), BTreeMap::new());
        for n in [5, 3, 9, 3, 1, 7, 5] {
            lean.insert(&n.to_string(), n * 10);
            map.insert(n.to_string(), n * 10);
        }
        assert!(lean.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value))));
        assert_eq!(of(&map), lean);
        assert_eq!((lean.get("9"), lean.get("4"), lean.len()), (Some(&90), None, 5));
        assert_eq!((lean.remove("9"), lean.remove("9")), (Some(90), None));
        lean.retain(|value| *value > 30);
        assert_eq!(lean.values().copied().collect::<Vec<_>>(), [50, 70]);
        assert_eq!(lean.few.capacity(), 2);
    }

    #[test]
    fn a_large_one_is_the_same_map() {
        let (mut lean, mut map) = (Lean::default(), BTreeMap::new());
        for n in 0..10 * FEW {
            let key = format!("{:x}", n.wrapping_mul(0x9e37_79b9) % 8009);
            lean.insert(&key, n);
            map.insert(key, n);
            if n % 3 == 0 {
                let key = format!("{:x}", n / 2);
                assert_eq!(lean.remove(&key), map.remove(&key));
            }
            assert_eq!(lean.len(), map.len());
        }
        assert!(lean.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value))));
        assert_eq!(of(&map), lean);
        lean.retain(|n| n % 50 == 0);
        map.retain(|_, n| *n % 50 == 0);
        assert!(lean.len() < FEW && lean.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value))));
        assert_eq!(lean, of(&map), "whatever holds it");
    }
}
