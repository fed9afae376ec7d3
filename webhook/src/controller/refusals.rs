//! How many refused requests each requester has left in the cluster.
//!
//! A refused request stays for people to read. A requester that keeps asking wrongly must not fill etcd with answers, so only
//! the first few are answered; the signer deletes the others. The counts follow the watch of requests: a deleted request no
//! longer counts.

use std::collections::{HashMap, HashSet};

use super::facts::Csr;

/// Refused requests of one pod, or of one requester that is no pod, that are answered and kept.
const PER_POD: usize = 16;
/// Refused requests of all pods of one service account that are answered and kept.
const PER_ACCOUNT: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Names of refused requests, by requester.
    by_pod: HashMap<Box<str>, HashSet<Box<str>>>,
    by_account: HashMap<Box<str>, usize>,
}

impl Refusals {
    /// Counts a refused request; whether it is one of those that are kept.
    pub(crate) fn insert(&mut self, csr: &Csr) -> bool {
        let pod = pod(csr);
        let known = self.by_pod.get(&*pod).is_some_and(|names| names.contains(&*csr.key()));
        if known {
            return true;
        }
        if self.full(csr) {
            return false;
        }
        self.by_pod.entry(pod).or_default().insert((&*csr.key()).into());
        *self.by_account.entry(csr.spec.username.as_str().into()).or_default() += 1;
        true
    }

    /// True if the requester of `csr` has as many refused requests as are kept.
    pub(crate) fn full(&self, csr: &Csr) -> bool {
        self.by_pod.get(&*pod(csr)).is_some_and(|names| names.len() >= PER_POD)
            || self.by_account.get(csr.spec.username.as_str()).is_some_and(|count| *count >= PER_ACCOUNT)
    }

    /// Counts a request no more: it is gone.
    pub(crate) fn remove(&mut self, csr: &Csr) {
        self.forget(&pod(csr), &csr.key());
    }

    /// [`Self::remove`], by [`pod`] of the request and its name.
    pub(crate) fn forget(&mut self, pod: &str, name: &str) {
        let Some(names) = self.by_pod.get_mut(pod) else { return };
        if !names.remove(name) {
            return;
        }
        if names.is_empty() {
            self.by_pod.remove(pod);
        }
        let username = pod.split('\0').next().unwrap_or_default();
        if let Some(count) = self.by_account.get_mut(username) {
            *count -= 1;
            if *count == 0 {
                self.by_account.remove(username);
            }
        }
    }

    /// Forgets all: before a list.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The key by which requests are counted: the requester, and its pod if it is one.
pub(crate) fn pod(csr: &Csr) -> Box<str> {
    format!("{}\0{}", csr.spec.username, csr.pod_uid().unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use etcd_tls_contract::identity::POD_UID;

    use super::*;

    fn csr(name: &str, pod: &str) -> Csr {
        let mut csr = Csr::default();
        csr.metadata.name = Some(name.to_owned());
        csr.spec.username = "system:serviceaccount:a:b".to_owned();
        csr.spec.extra.insert(POD_UID.to_owned(), vec![pod.to_owned()]);
        csr
    }

    #[test]
    fn a_pod_leaves_a_few_and_an_account_some() {
        let mut refusals = Refusals::default();
        for n in 0..PER_POD {
            assert!(refusals.insert(&csr(&n.to_string(), "p")));
        }
        assert!(refusals.full(&csr("new", "p")) && !refusals.insert(&csr("new", "p")));
        assert!(refusals.insert(&csr("0", "p")), "a change of one that is kept");
        refusals.remove(&csr("new", "p"));
        refusals.remove(&csr("0", "p"));
        assert!(refusals.insert(&csr("new", "p")));
        for n in PER_POD..PER_ACCOUNT {
            assert!(refusals.insert(&csr(&n.to_string(), &format!("pod-{n}"))));
        }
        assert!(refusals.full(&csr("x", "another pod")), "many pods of one account");
        let mut other = csr("x", "q");
        other.spec.username = "another account".to_owned();
        assert!(!refusals.full(&other));
        for n in 1..PER_ACCOUNT {
            refusals
                .remove(&csr(&n.to_string(), if n < PER_POD { "p".to_owned() } else { format!("pod-{n}") }.as_str()));
        }
        refusals.remove(&csr("new", "p"));
        assert!(refusals.by_pod.is_empty() && refusals.by_account.is_empty(), "{refusals:?}");
    }
}
