//! The pods that were told something: a bounded memory of uids.

use std::collections::{HashSet, VecDeque};

/// How many pods are remembered; the oldest are forgotten first.
const MAX_PODS: usize = 8192;
/// Bytes of a pod's uid that are remembered; the API server's have 36.
const MAX_UID: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Told {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Told {
    /// True if `uid` is new, and remembers it.
    pub(crate) fn add(&mut self, uid: &str) -> bool {
        if uid.len() > MAX_UID || !self.uids.insert(uid.to_owned()) {
            return false;
        }
        self.order.push_back(uid.to_owned());
        if self.order.len() > MAX_PODS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        true
    }

    /// Forgets `uid`, which was not told after all.
    pub(crate) fn forget(&mut self, uid: &str) {
        if self.uids.remove(uid) {
            self.order.retain(|other| other != uid);
        }
    }

    /// True if it remembers `uid`.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.uids.contains(uid)
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
        assert!(!told.add(&"x".repeat(MAX_UID + 1)));
        for n in 0..2 * MAX_PODS {
            told.add(&n.to_string());
        }
        assert!(told.uids.len() <= MAX_PODS && told.order.len() <= MAX_PODS);
    }
}
