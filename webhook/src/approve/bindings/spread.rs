//! Which ClusterRoleBinding holds which of those who may request. Each has a bounded size, and a subject stays where it is,
//! so that one more namespace costs one write of bounded size, however many there are. Pure.

use std::{cmp::Ordering, collections::BTreeSet};

use k8s_openapi::api::rbac::v1::Subject;

use super::REQUESTERS_BINDING;

/// The bindings, by number; `approve` has the right to write these and no others.
pub(super) const BINDINGS: usize = 8;
/// Subjects of one binding; the admission policy lets no more through.
pub(super) const MOST: usize = 1500;
/// Bytes of one binding's subjects as JSON. An API server's etcd takes 1.5 MiB by default.
pub(super) const MOST_BYTES: usize = 256 << 10;

/// The name of a binding: the first has no number.
pub(super) fn name(number: usize) -> String {
    if number == 0 { REQUESTERS_BINDING.to_owned() } else { format!("{REQUESTERS_BINDING}-{number}") }
}

/// Bytes of a subject as JSON, at most: braces, quotes, keys and the group, which is longer than a namespace's key.
pub(super) fn bytes(subject: &Subject) -> usize {
    96 + subject.name.len() + subject.namespace.as_ref().map_or(0, String::len)
}

/// A subject by its order in a binding.
#[derive(PartialEq)]
struct Sorted<'a>(&'a Subject);

impl Eq for Sorted<'_> {}

impl Ord for Sorted<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0, other.0);
        let place = (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name));
        place.then_with(|| a.api_group.cmp(&b.api_group))
    }
}

impl PartialOrd for Sorted<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The wanted subjects of the bindings.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Spread {
    /// By number; each sorted, so that the same set is the same list.
    pub(super) bindings: Vec<Vec<Subject>>,
    /// Those for whom no binding has room.
    pub(super) left_out: usize,
}

/// Spreads the `wanted` subjects over the bindings. `present` is the current content of each: a subject stays in its binding, a
/// new one comes into the first with room.
pub(super) fn spread(wanted: &[Subject], present: &[&[Subject]]) -> Spread {
    let mut waiting: BTreeSet<Sorted<'_>> = wanted.iter().map(Sorted).collect();
    let mut bindings: Vec<(BTreeSet<Sorted<'_>>, usize)> = present.iter().map(|_| Default::default()).collect();
    let fits = |(held, size): &(BTreeSet<Sorted<'_>>, usize), subject: &Subject| {
        held.len() < MOST && size + bytes(subject) <= MOST_BYTES
    };
    for (binding, present) in bindings.iter_mut().zip(present) {
        for subject in *present {
            if fits(binding, subject)
                && let Some(subject) = waiting.take(&Sorted(subject))
            {
                binding.1 += bytes(subject.0);
                binding.0.insert(subject);
            }
        }
    }
    let mut left_out = 0;
    // In the order in which they are wanted.
    for subject in wanted {
        if !waiting.remove(&Sorted(subject)) {
            continue;
        }
        match bindings.iter_mut().find(|binding| fits(binding, subject)) {
            Some(binding) => {
                binding.1 += bytes(subject);
                binding.0.insert(Sorted(subject));
            }
            None => left_out += 1,
        }
    }
    let subjects = |(held, _): (BTreeSet<Sorted<'_>>, usize)| held.into_iter().map(|Sorted(s)| s.clone()).collect();
    Spread { bindings: bindings.into_iter().map(subjects).collect(), left_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: usize) -> Subject {
        Subject { kind: "Group".to_owned(), name: format!("system:serviceaccounts:tenant-{n}"), ..Subject::default() }
    }

    fn groups(range: std::ops::Range<usize>) -> Vec<Subject> {
        range.map(group).collect()
    }

    const NONE: [&[Subject]; BINDINGS] = [&[]; BINDINGS];

    fn now(wanted: &[Subject], before: &Spread) -> Spread {
        spread(wanted, &before.bindings.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn written(before: &Spread, after: &Spread) -> usize {
        let changed = before.bindings.iter().zip(&after.bindings).filter(|(before, after)| before != after);
        changed.map(|(_, after)| after.iter().map(bytes).sum::<usize>()).sum()
    }

    #[test]
    fn so_many_at_once_are_one_write_of_each_binding() {
        let before = spread(&[], &NONE);
        let all = now(&groups(0..5_000), &before);
        assert_eq!((all.left_out, all.bindings.iter().map(Vec::len).sum::<usize>()), (0, 5_000));
        assert!(all.bindings.iter().all(|held| held.len() <= MOST && held.is_sorted_by_key(|s| s.name.clone())));
        assert!(
            written(&before, &all) < 5_000 * 160,
            "bytes in proportion to the namespaces: {}",
            written(&before, &all)
        );
        assert_eq!(now(&groups(0..5_000), &all), all, "nothing to write");
    }

    #[test]
    fn one_more_costs_one_write_of_bounded_size_and_moves_nobody() {
        let mut present = now(&groups(0..4_000), &spread(&[], &NONE));
        for n in 4_000..4_100 {
            let after = now(&groups(0..n + 1), &present);
            let changed: Vec<_> = (0..BINDINGS).filter(|i| present.bindings[*i] != after.bindings[*i]).collect();
            assert_eq!(changed.len(), 1);
            assert!(written(&present, &after) <= MOST_BYTES);
            present = after;
        }
        // One that goes leaves its place to the next that comes.
        let after = now(&groups(1..4_100), &present);
        assert_eq!(after.bindings[0].len(), MOST - 1);
        assert_eq!(after.bindings[1..], present.bindings[1..]);
        assert_eq!(now(&groups(1..4_101), &after).bindings[0].len(), MOST);
    }

    #[test]
    fn duplicate_and_surplus_subjects_are_removed() {
        let (many, twice) = (groups(0..5_000), groups(0..10));
        let after = spread(&many, &[&many, &twice, &[], &[]]);
        assert_eq!(after.bindings.iter().map(Vec::len).sum::<usize>(), 5_000, "a binding of before");
        let strangers = [Subject { name: "system:authenticated".to_owned(), ..group(0) }];
        let spread_over_two = spread(&twice, &[&strangers, &twice]);
        assert_eq!((spread_over_two.bindings, spread_over_two.left_out), (vec![vec![], twice], 0));
        let one = spread(&many, &[&[]]);
        assert_eq!((one.bindings[0].len(), one.left_out), (MOST, 5_000 - MOST), "where there is a right to one alone");
    }

    #[test]
    fn the_bindings_hold_so_many_and_the_first_come_first() {
        let all = spread(&groups(0..2 * BINDINGS * MOST), &NONE);
        assert_eq!(all.left_out, BINDINGS * MOST);
        assert!(all.bindings[0].contains(&group(0)));
        let long = |n: usize| Subject { name: format!("{n:0253}"), namespace: Some("n".repeat(63)), ..group(n) };
        let large = spread(&(0..10_000).map(long).collect::<Vec<_>>(), &NONE);
        for held in &large.bindings {
            let bytes = serde_json::to_vec(held).map_or(0, |json| json.len());
            assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&bytes), "{bytes}");
        }
        assert!(large.left_out > 0 && large.bindings[0].contains(&long(0)));
    }
}
