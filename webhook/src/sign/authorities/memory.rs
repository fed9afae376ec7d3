//! The memory that the records of all authorities may take together, and how many certificates a pod may hold while little of it is
//! left. Pure.
//!
//! A record is bounded by itself, and so is the number of authorities; the product of both is more than a process has. With less than a
//! quarter left, the bound of each pod falls, evenly, to [`FLOOR`]: pods that ask without end then hold what they have, and others go on.
//! With none left, as many pods ask that much, a record that grows beyond an equal part forgets as a full one does, and so does a
//! larger one when a smaller one grows.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Valid certificates of one CA that a pod may hold however little memory is left. The CA of clients issues most to a pod: of the
/// roles server, client and metrics one each, two while one is renewed, two more while a CA is rolled over, and one that an operator
/// asked for; the same again where kubelet asks as well: thirty.
pub(in crate::sign) const FLOOR: u16 = 32;
/// The part of the memory before which the bound falls.
const LAST: usize = 4;
/// Bytes that a record may take however little memory is left: a cluster of five has room in it.
const LEAST: usize = 4 << 10;

/// The memory of all records, and its bound.
#[derive(Debug, Default)]
pub(in crate::sign) struct Records {
    taken: AtomicUsize,
    /// How many authorities there are.
    authorities: AtomicUsize,
    /// Bytes.
    bound: usize,
}

impl Records {
    /// None yet. `bound`: bytes.
    pub(in crate::sign) fn new(bound: usize) -> Self {
        Self { bound, ..Self::default() }
    }

    /// Bytes that all records take, about.
    pub(in crate::sign) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// True if more than the bound is taken.
    pub(super) fn are_full(&self) -> bool {
        self.taken() > self.bound
    }

    /// Valid certificates of one CA that a pod may hold now; `most`: with memory left.
    pub(in crate::sign) fn per_pod(&self, most: u16) -> u16 {
        per_pod(self.taken(), self.bound, most)
    }

    /// Bytes that an authority's records, which take `own`, may take now: what the others leave, and an equal part of all at least.
    fn per_authority(&self, own: usize) -> usize {
        let left = self.bound.saturating_sub(self.taken().saturating_sub(own));
        let equal = self.bound.checked_div(self.authorities.load(Ordering::Relaxed));
        equal.unwrap_or(usize::MAX).max(LEAST).max(left)
    }
}

/// See [`Records::per_pod`].
fn per_pod(taken: usize, bound: usize, most: u16) -> u16 {
    // A tebibyte is enough, and the product has room.
    let last = (bound / LAST).clamp(1, 1 << 40);
    let left = bound.saturating_sub(taken).min(last);
    let falls = usize::from(most.saturating_sub(FLOOR)) * left / last;
    u16::try_from(falls).unwrap_or(u16::MAX).saturating_add(FLOOR).min(most)
}

/// The memory of one authority's records, in the sum of all until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    all: Arc<Records>,
    own: AtomicUsize,
}

impl Share {
    pub(super) fn of(all: Arc<Records>) -> Self {
        all.authorities.fetch_add(1, Ordering::Relaxed);
        Self { all, own: AtomicUsize::default() }
    }

    /// It takes so many bytes now.
    pub(super) fn set(&self, bytes: usize) {
        let before = self.own.swap(bytes, Ordering::Relaxed);
        self.all.taken.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes that it may take, if that is less than what it takes.
    pub(super) fn too_much(&self) -> Option<usize> {
        let own = self.own.load(Ordering::Relaxed);
        let most = self.all.per_authority(own);
        (own > most).then_some(most)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.all.authorities.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that the allocator of glibc takes for so many: a word more, in steps of 16, and 32 at least.
pub(super) const fn chunk(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=24 => 32,
        _ => (bytes + 8).next_multiple_of(16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_a_pod_falls_with_the_last_quarter_to_what_ordinary_life_needs() {
        let of = |taken| per_pod(taken, 1000, 256);
        assert_eq!([0, 750, 875, 999, 1000, 5000, usize::MAX].map(of), [256, 256, 144, 32, 32, 32, 32]);
        assert!((0..1100).is_sorted_by(|one, other| of(*one) >= of(*other)), "it never rises");
        assert_eq!((per_pod(1000, 1000, 1024), per_pod(0, 1000, 1024)), (32, 1024));
        for taken in [0, 1000] {
            assert_eq!(per_pod(taken, 1000, 2), 2, "a bound below it stays as it is");
        }
        assert_eq!((per_pod(0, 0, 256), per_pod(9, 0, 256)), (32, 32));
        assert_eq!(per_pod(0, usize::MAX, u16::MAX), u16::MAX);
    }

    #[test]
    fn the_sum_is_that_of_the_authorities_that_are_there() {
        let all = Arc::new(Records::new(100));
        let (one, other) = (Share::of(Arc::clone(&all)), Share::of(Arc::clone(&all)));
        one.set(30);
        other.set(50);
        assert_eq!(all.taken(), 80);
        one.set(10);
        assert_eq!((all.taken(), all.per_pod(256)), (60, 256));
        other.set(90);
        assert_eq!((all.taken(), all.per_pod(256)), (100, FLOOR));
        drop(other);
        assert_eq!(all.taken(), 10);
        drop(one);
        assert_eq!(all.taken(), 0);
    }

    #[test]
    fn with_no_memory_left_a_record_of_more_than_an_equal_part_is_too_large() {
        let all = Arc::new(Records::new(16 * LEAST));
        let (one, other) = (Share::of(Arc::clone(&all)), Share::of(Arc::clone(&all)));
        one.set(15 * LEAST);
        other.set(LEAST);
        assert_eq!((one.too_much(), other.too_much()), (None, None), "both have room");
        other.set(3 * LEAST);
        assert_eq!((one.too_much(), other.too_much()), (Some(13 * LEAST), None), "what the other one leaves");
        other.set(10 * LEAST);
        assert_eq!((one.too_much(), other.too_much()), (Some(8 * LEAST), Some(8 * LEAST)), "equal parts");
        one.set(6 * LEAST);
        assert_eq!((one.too_much(), other.too_much()), (None, None), "there is memory again");
        one.set(8 * LEAST);
        assert_eq!((one.too_much(), other.too_much()), (None, Some(8 * LEAST)));
        other.set(0);
        // Of many, each may take what a small cluster needs.
        let many: Vec<_> = (0..100).map(|_| Share::of(Arc::clone(&all))).collect();
        many.iter().for_each(|share| share.set(LEAST));
        assert_eq!((one.too_much(), other.too_much(), many[0].too_much()), (Some(LEAST), None, None));
        drop(many);
        assert_eq!((one.too_much(), all.taken()), (None, 8 * LEAST));
    }
}
