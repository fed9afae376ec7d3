//! Objects of the API server, listed once and kept up to date by a watch, of which a few facts are kept.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

pub(crate) use answer::Object;
pub(crate) use events::{Event, Events, METADATA_ALONE, Metadata, Source, WatchError};

mod answer;
mod events;
mod reads;

/// Namespace and name of an object; the namespace is empty for one of the cluster. Indexes share it.
pub(crate) type Key = (Arc<str>, Arc<str>);

/// The kept values of the objects of one [`Source`]. A list changes it in place: objects that are not in the list are removed
/// when it is complete.
#[derive(Debug)]
pub(crate) struct Listed<V> {
    entries: BTreeMap<Key, (u64, V)>,
    list: u64,
    complete: bool,
}

impl<V> Default for Listed<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), list: 0, complete: false }
    }
}

impl<V: PartialEq> Listed<V> {
    /// Applies an event. `keep` returns the value to keep of an object, or `None`; `changed` is called for each difference with
    /// the key, the old value and the new one.
    pub(crate) fn take<T>(
        &mut self,
        event: Event<T>,
        keep: impl FnOnce(T) -> (Key, Option<V>),
        mut changed: impl FnMut(&Key, Option<&V>, Option<&V>),
    ) {
        match event {
            Event::Begins => self.list += 1,
            Event::Listed(object) | Event::Applied(object) => {
                let (key, value) = keep(object);
                let Some(value) = value else { return self.remove(&key, changed) };
                match self.entries.get_mut(&key) {
                    Some((list, before)) => {
                        *list = self.list;
                        if *before != value {
                            changed(&key, Some(before), Some(&value));
                            *before = value;
                        }
                    }
                    None => {
                        let key = self.shared(key);
                        changed(&key, None, Some(&value));
                        self.entries.insert(key, (self.list, value));
                    }
                }
            }
            Event::Deleted(object) => self.remove(&keep(object).0, changed),
            Event::Complete => {
                self.complete = true;
                let list = self.list;
                self.entries.retain(|key, (of_list, value)| {
                    let stays = *of_list == list;
                    if !stays {
                        changed(key, Some(value), None);
                    }
                    stays
                });
            }
            Event::Progress => {}
        }
    }

    /// A key in the allocations of those beside it, as far as they have the same namespace or name.
    fn shared(&self, mut key: Key) -> Key {
        let before = self.entries.range::<Key, _>((Bound::Unbounded, Bound::Excluded(&key))).next_back();
        let after = self.entries.range::<Key, _>((Bound::Excluded(&key), Bound::Unbounded)).next();
        let beside = [before, after].map(|entry| entry.map(|((namespace, name), _)| (namespace.clone(), name.clone())));
        for (namespace, name) in beside.into_iter().flatten() {
            if namespace == key.0 {
                key.0 = namespace;
            }
            if name == key.1 {
                key.1 = name;
            }
        }
        key
    }

    fn remove(&mut self, key: &Key, mut changed: impl FnMut(&Key, Option<&V>, Option<&V>)) {
        if let Some((_, before)) = self.entries.remove(key) {
            changed(key, Some(&before), None);
        }
    }
}

impl<V> Listed<V> {
    /// True if a list was complete once.
    pub(crate) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// One of them.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&V> {
        self.entries.get(&(namespace.into(), name.into())).map(|(_, value)| value)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// Those of a namespace.
    pub(crate) fn of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a V)> {
        let from: Key = (namespace.into(), "".into());
        let here = self.entries.range(from..).take_while(move |((of, _), _)| **of == *namespace);
        here.map(|((_, name), (_, value))| (&**name, value))
    }
}

/// The key of an object.
pub(crate) fn key(namespace: Option<&str>, name: Option<&str>) -> Key {
    (namespace.unwrap_or_default().into(), name.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = (String, Option<u32>, Option<u32>);

    fn take(listed: &mut Listed<u32>, event: Event<(&str, u32)>) -> Vec<Change> {
        let mut changes = Vec::new();
        let keep = |(name, value): (&str, u32)| (key(Some("ns"), Some(name)), (value > 0).then_some(value));
        listed.take(event, keep, |(_, name), before, after| {
            changes.push((name.to_string(), before.copied(), after.copied()));
        });
        changes
    }

    #[test]
    fn a_list_replaces_what_was_there_and_says_what_changed() {
        let mut listed = Listed::default();
        take(&mut listed, Event::Begins);
        assert_eq!(take(&mut listed, Event::Listed(("a", 1))), [("a".to_owned(), None, Some(1))]);
        take(&mut listed, Event::Listed(("b", 2)));
        assert!(!listed.is_complete());
        assert_eq!(take(&mut listed, Event::Complete), []);
        assert!(listed.is_complete());
        assert_eq!(take(&mut listed, Event::Applied(("a", 1))), [], "the same");
        assert_eq!(take(&mut listed, Event::Applied(("a", 3))), [("a".to_owned(), Some(1), Some(3))]);
        assert_eq!(
            take(&mut listed, Event::Applied(("b", 0))),
            [("b".to_owned(), Some(2), None)],
            "nothing to keep of it"
        );
        assert_eq!(take(&mut listed, Event::Deleted(("c", 1))), []);
        take(&mut listed, Event::Applied(("c", 4)));
        // A list that breaks off takes nothing away; a later one does.
        take(&mut listed, Event::Begins);
        take(&mut listed, Event::Listed(("c", 4)));
        take(&mut listed, Event::Begins);
        assert_eq!(listed.iter().count(), 2);
        take(&mut listed, Event::Listed(("c", 4)));
        assert_eq!(take(&mut listed, Event::Complete), [("a".to_owned(), Some(3), None)]);
        assert_eq!(listed.of_namespace("ns").collect::<Vec<_>>(), [("c", &4)]);
        assert_eq!(listed.of_namespace("n").count() + listed.of_namespace("nsx").count(), 0);
        assert_eq!(listed.get("ns", "c"), Some(&4));
    }
}
