//! The pods that were told something: a bounded memory of digests of their uids.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
};

/// How many pods are remembered; the oldest are forgotten first.
const MAX_PODS: usize = 8192;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Told {
    uids: HashSet<u64>,
    order: VecDeque<u64>,
    /// Nobody can choose a uid with the digest of another one.
    seed: RandomState,
}

impl Told {
    /// True if `uid` is new, and remembers it.
    pub(crate) fn add(&mut self, uid: &str) -> bool {
        let uid = self.seed.hash_one(uid);
        if !self.uids.insert(uid) {
            return false;
        }
        self.order.push_back(uid);
        if self.order.len() > MAX_PODS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        true
    }

    /// Forgets `uid`, which was not told after all.
    pub(crate) fn forget(&mut self, uid: &str) {
        let uid = self.seed.hash_one(uid);
        if self.uids.remove(&uid) {
            self.order.retain(|other| *other != uid);
        }
    }

    /// True if it remembers `uid`.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.uids.contains(&self.seed.hash_one(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_once_and_the_memory_is_bounded() {
        let mut told = Told::default();
        assert!(told.add("a") && !told.add("a") && told.add("b"));
        assert!(told.has("a") && !told.has("c"));
        told.forget("a");
        assert!(!told.has("a") && told.has("b") && told.add("a"));
        for n in 0..2 * MAX_PODS {
            told.add(&n.to_string());
        }
        assert!(told.uids.len() <= MAX_PODS && told.order.len() <= MAX_PODS);
    }
}
