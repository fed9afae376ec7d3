//! The service accounts that may request because a pod of theirs is labelled, and no other account of that namespace. In the same way,
//! the trust ConfigMaps that injected pods watch ([`super::readers`]).
//!
//! A name stays for a grace after its last pod, so that a CronJob causes no writes. A namespace has [`MAX_OF_NAMESPACE`] of them at
//! once, those in their grace included: that also bounds how often one namespace changes what is written.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use crate::controller::listed::{Event, Key, Listed};

/// Service accounts of one namespace that may request by their pods' labels, and names of trust ConfigMaps beside that of cluster `etcd`.
pub(crate) const MAX_OF_NAMESPACE: usize = 50;

/// See the module.
#[derive(Debug)]
pub(super) struct Graced {
    grace: Duration,
    /// The name of each pod that has one.
    pods: Listed<Box<str>>,
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Held>>,
    next: u64,
}

/// A name that is held, or would be if there were room.
#[derive(Debug)]
struct Held {
    pods: usize,
    admitted: bool,
    /// Older names go first.
    place: (Since, u64),
    /// When its last pod ended.
    ended: Option<Instant>,
}

/// When a name was first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Since {
    /// It was held when this replica began to lead.
    Before,
    Now,
}

/// A namespace and a name in it.
pub(super) type Name<'a> = (&'a str, &'a str);

impl Graced {
    /// None yet; each will stay for `grace` after its last pod.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, pods: Listed::default(), namespaces: BTreeMap::new(), next: 0 }
    }

    /// True if every pod was seen once.
    pub(super) const fn is_complete(&self) -> bool {
        self.pods.is_complete()
    }

    /// Takes an event of the pods; `keep` says a pod's name, `None` where it has none. True if anything has changed by it.
    pub(super) fn take<T>(
        &mut self,
        event: Event<T>,
        now: Instant,
        keep: impl FnOnce(T) -> (Key, Option<Box<str>>),
    ) -> bool {
        let Self { pods, namespaces, next, .. } = self;
        let mut changed = matches!(event, Event::Complete);
        pods.take(event, keep, |(namespace, _), before, after| {
            changed = true;
            if let Some(name) = after {
                let held = entry(namespaces, namespace, name, Since::Now, next);
                held.pods += 1;
                held.ended = None;
            }
            let Some(name) = before else { return };
            let Some(names) = namespaces.get_mut(&**namespace) else { return };
            let Some(held) = names.get_mut(name) else { return };
            held.pods = held.pods.saturating_sub(1);
            if held.pods == 0 {
                held.ended = Some(now);
                // One that never had the right has none to keep.
                if !held.admitted {
                    names.remove(name);
                }
            }
        });
        changed
    }

    /// Names that were held when this replica began to lead: how long ago their last pods ended is not known, so
    /// that their grace begins now.
    pub(super) fn had_it<'a>(&mut self, names: impl IntoIterator<Item = Name<'a>>, now: Instant) {
        let Self { namespaces, next, .. } = self;
        for (namespace, name) in names {
            let held = entry(namespaces, namespace, name, Since::Before, next);
            held.place.0 = Since::Before;
            held.admitted = true;
            if held.pods == 0 {
                held.ended = Some(now);
            }
        }
    }

    /// Drops those whose grace has ended and takes in those there is room for. `exists`: whether a
    /// namespace is there.
    pub(super) fn settle(&mut self, now: Instant, exists: impl Fn(&str) -> bool) {
        let grace = self.grace;
        self.namespaces.retain(|namespace, names| {
            let exists = exists(namespace);
            names.retain(|_, held| {
                let in_grace = || held.ended.is_some_and(|ended| now < ended + grace);
                held.pods > 0 || (exists && in_grace())
            });
            let mut all: Vec<&mut Held> = names.values_mut().collect();
            all.sort_by_key(|held| (!held.admitted, held.place));
            for (n, held) in all.into_iter().enumerate() {
                held.admitted = n < MAX_OF_NAMESPACE;
            }
            !names.is_empty()
        });
    }

    /// When [`Self::settle`] will next drop one.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let all = self.namespaces.values().flat_map(BTreeMap::values);
        all.filter_map(|held| held.ended).min().map(|ended| ended + self.grace)
    }

    /// Those of a namespace.
    pub(super) fn of(&self, namespace: &str) -> impl Iterator<Item = &str> {
        let names = self.namespaces.get(namespace).into_iter().flatten();
        names.filter(|(_, held)| held.admitted).map(|(name, _)| &**name)
    }

    /// True if the namespace has one.
    pub(super) fn any_of(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|names| names.values().any(|held| held.admitted))
    }

    /// Those of the namespaces that are `wanted`: the first one of each namespace before the second one of any,
    /// so that a namespace with many takes no room from one with few.
    pub(super) fn in_turn(&self, wanted: impl Fn(&str) -> bool) -> Vec<Name<'_>> {
        let mut all = Vec::new();
        for (namespace, names) in self.namespaces.iter().filter(|(namespace, _)| wanted(namespace)) {
            let mut here: Vec<_> = names.iter().filter(|(_, held)| held.admitted).collect();
            here.sort_by_key(|(_, held)| held.place);
            all.extend(here.into_iter().enumerate().map(|(turn, (name, held))| {
                let name: Name<'_> = (namespace, name);
                ((turn, held.place), name)
            }));
        }
        all.sort_unstable();
        all.into_iter().map(|(_, name)| name).collect()
    }

    /// A name without room of each namespace that has more than there is room for, and how many have none.
    pub(super) fn crowded(&self) -> impl Iterator<Item = (Name<'_>, usize)> {
        self.namespaces.iter().filter_map(|(namespace, names)| {
            let mut without = names.iter().filter(|(_, held)| !held.admitted);
            let (name, _) = without.next()?;
            let name: Name<'_> = (namespace, name);
            Some((name, 1 + without.count()))
        })
    }
}

fn entry<'a>(
    namespaces: &'a mut BTreeMap<Box<str>, BTreeMap<Box<str>, Held>>,
    namespace: &str,
    name: &str,
    since: Since,
    next: &mut u64,
) -> &'a mut Held {
    namespaces.entry(namespace.into()).or_default().entry(name.into()).or_insert_with(|| {
        *next += 1;
        Held { pods: 0, admitted: false, place: (since, *next), ended: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::listed::key;

    const GRACE: Duration = Duration::from_secs(600);

    /// With a clock and without an API server.
    struct Lab {
        names: Graced,
        now: Instant,
    }

    impl Lab {
        fn new() -> Self {
            let mut lab = Self { names: Graced::new(GRACE), now: Instant::now() };
            lab.take(Event::Begins);
            lab.take(Event::Complete);
            lab
        }

        fn take(&mut self, event: Event<(String, String, Option<String>)>) {
            self.names.take(event, self.now, |(namespace, pod, held)| {
                (key(Some(&namespace), Some(&pod)), held.map(Into::into))
            });
            self.names.settle(self.now, |namespace| namespace != "gone");
        }

        fn runs(&mut self, namespace: &str, pod: &str, held: &str) {
            self.take(Event::Applied((namespace.to_owned(), pod.to_owned(), Some(held.to_owned()))));
        }

        fn ends(&mut self, namespace: &str, pod: &str) {
            self.take(Event::Deleted((namespace.to_owned(), pod.to_owned(), None)));
        }

        fn after(&mut self, wait: Duration) -> Vec<String> {
            self.now += wait;
            self.names.settle(self.now, |namespace| namespace != "gone");
            self.names()
        }

        fn names(&self) -> Vec<String> {
            self.names.in_turn(|_| true).into_iter().map(|(ns, name)| format!("{ns}/{name}")).collect()
        }

        fn tracked(&self) -> usize {
            self.names.namespaces.values().map(BTreeMap::len).sum()
        }
    }

    #[test]
    fn a_labelled_pods_account_has_the_right_until_ten_minutes_after_its_last_pod() {
        let mut lab = Lab::new();
        lab.runs("a", "one", "etcd");
        lab.runs("a", "two", "etcd");
        assert_eq!(lab.names(), ["a/etcd"]);
        lab.ends("a", "one");
        assert_eq!(lab.after(GRACE * 2), ["a/etcd"], "another pod of its still runs");
        // Finished is as good as deleted.
        lab.take(Event::Applied(("a".to_owned(), "two".to_owned(), None)));
        assert_eq!(lab.names.next_end(), Some(lab.now + GRACE));
        assert_eq!(lab.after(GRACE - Duration::from_millis(1)), ["a/etcd"]);
        assert!(lab.names.any_of("a"));
        assert_eq!(lab.after(Duration::from_millis(1)), [""; 0]);
        assert!(!lab.names.any_of("a") && lab.names.next_end().is_none());
        assert_eq!(lab.tracked(), 0);
        // A pod of that name for another account.
        lab.runs("a", "one", "x");
        lab.runs("a", "one", "y");
        assert_eq!(lab.names(), ["a/x", "a/y"]);
        assert_eq!(lab.after(GRACE), ["a/y"]);
    }

    #[test]
    fn a_cron_job_changes_nothing() {
        let mut lab = Lab::new();
        for n in 0..100 {
            lab.runs("a", &format!("job-{n}"), "backup");
            assert_eq!(lab.after(Duration::from_secs(60)), ["a/backup"]);
            lab.ends("a", &format!("job-{n}"));
            assert_eq!(lab.after(Duration::from_secs(240)), ["a/backup"]);
        }
    }

    #[test]
    fn a_namespace_has_so_many_and_changes_them_so_often() {
        let mut lab = Lab::new();
        let mut given = std::collections::BTreeSet::new();
        for n in 0..10 * MAX_OF_NAMESPACE {
            lab.runs("many", &format!("p{n}"), &format!("s{n}"));
            lab.ends("many", &format!("p{n}"));
            given.extend(lab.after(Duration::from_millis(1)));
            assert!(lab.tracked() <= MAX_OF_NAMESPACE, "{}", lab.tracked());
        }
        assert_eq!(given.len(), MAX_OF_NAMESPACE, "those in their grace hold its room");
        // Those without the right are said, and are let in as there is room.
        lab.runs("many", "late", "late");
        assert_eq!(lab.names.crowded().collect::<Vec<_>>(), [(("many", "late"), 1)]);
        lab.runs("few", "p", "etcd");
        assert_eq!(lab.names()[1], "few/etcd", "one namespace at its bound is before no other: {:?}", lab.names());
        assert_eq!(lab.after(GRACE), ["many/late", "few/etcd"].map(str::to_owned).to_vec());
        assert_eq!(lab.names.crowded().count(), 0);
    }

    #[test]
    fn accounts_missing_from_a_list_have_ended() {
        let mut lab = Lab::new();
        lab.runs("a", "p", "etcd");
        lab.runs("b", "p", "etcd");
        lab.take(Event::Begins);
        lab.take(Event::Listed(("b".to_owned(), "p".to_owned(), Some("etcd".to_owned()))));
        lab.take(Event::Complete);
        assert_eq!(lab.after(GRACE), ["b/etcd"]);
    }

    #[test]
    fn a_successor_takes_no_right_away_before_its_grace() {
        let mut lab = Lab::new();
        lab.runs("a", "p", "etcd");
        lab.runs("b", "p", "new");
        lab.names.had_it([("a", "etcd"), ("b", "old"), ("gone", "old")], lab.now);
        assert_eq!(lab.after(Duration::ZERO), ["a/etcd", "b/old", "b/new"]);
        assert_eq!(lab.after(GRACE), ["a/etcd", "b/new"]);
        assert_eq!(lab.tracked(), 2);
    }
}
