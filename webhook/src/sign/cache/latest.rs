//! The last request that was issued to each requester and role: the next one supersedes it.

use std::collections::HashMap;

use crate::controller::facts::Csr;

/// Of each user, by the part of its requests' names that says pod and role: the last one's name and uid. The user belongs to
/// it because a name is the requester's own choice where no policy of ours holds it, as with listed hosts.
#[derive(Debug, Default)]
pub(in crate::sign) struct Latest(HashMap<(String, String), (String, String)>);

impl Latest {
    /// Notes a request that was issued; gives the name and uid of the one that it supersedes.
    pub(in crate::sign) fn put(&mut self, csr: &Csr) -> Option<(String, String)> {
        let this = (csr.name().to_owned(), csr.uid().to_owned());
        self.0.insert(key(csr)?, this.clone()).filter(|before| *before != this)
    }

    /// Forgets a request that is deleted.
    pub(in crate::sign) fn remove(&mut self, csr: &Csr) {
        if let Some(key) = key(csr)
            && self.0.get(&key).is_some_and(|(_, uid)| uid == csr.uid())
        {
            self.0.remove(&key);
        }
    }

    /// Forgets all: at the end of a term.
    pub(in crate::sign) fn clear(&mut self) {
        self.0.clear();
    }
}

fn key(csr: &Csr) -> Option<(String, String)> {
    let (pod_and_role, _) = csr.name().rsplit_once('-')?;
    Some((csr.spec.username.clone(), pod_and_role.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn csr(name: &str, uid: &str, username: &str) -> Csr {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": uid, "resourceVersion": "1"},
            "spec": {"request": "", "signerName": "peer.etcd-tls.dev/a.etcd", "username": username},
        }))
        .unwrap()
    }

    #[test]
    fn the_next_request_of_a_pod_and_role_supersedes_the_last() {
        let mut latest = Latest::default();
        assert_eq!(latest.put(&csr("etcd-tls-u-peer-1", "a", "p")), None);
        assert_eq!(latest.put(&csr("etcd-tls-u-peer-1", "a", "p")), None);
        assert_eq!(latest.put(&csr("etcd-tls-u-server-1", "b", "p")), None);
        let second = csr("etcd-tls-u-peer-2", "c", "p");
        assert_eq!(latest.put(&second), Some(("etcd-tls-u-peer-1".to_owned(), "a".to_owned())));
        // The first one's deletion is no news of the second.
        latest.remove(&csr("etcd-tls-u-peer-1", "a", "p"));
        assert_eq!(latest.put(&second), None);
        latest.remove(&second);
        assert_eq!(latest.put(&csr("etcd-tls-u-peer-3", "d", "p")), None);
    }

    #[test]
    fn nobody_supersedes_anothers_request() {
        let mut latest = Latest::default();
        assert_eq!(latest.put(&csr("etcd-tls-u-peer-1", "a", "system:serviceaccount:a:p")), None);
        assert_eq!(latest.put(&csr("etcd-tls-u-peer-2", "b", "host-b")), None);
    }
}
