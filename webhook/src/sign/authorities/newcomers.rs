//! Pods that got a certificate before the watch of pods showed them. A rollover waits for them like for those that it shows: a connection
//! on which the watch stands still is noticed after a while, and until then a new pod may have loaded the old bundle. Pure.

use std::{collections::BTreeSet, time::Duration};

use etcd_tls_contract::role::Role;
use tokio::time::Instant;

use crate::rollover::LivePod;

/// How long such a pod counts, from its last certificate on: a watch that stands still is opened again sooner, and shows it.
const UNSEEN_FOR: Duration = Duration::from_secs(2 * 60);
/// Pods that are kept of one authority.
const MOST: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::sign) struct Newcomers(Vec<(Instant, LivePod)>);

impl Newcomers {
    /// A pod that the watch does not show gets a certificate.
    pub(super) fn add(&mut self, uid: &str, role: Role, now: Instant) {
        if let Some((at, pod)) = self.0.iter_mut().find(|(_, pod)| pod.uid == uid) {
            *at = now;
            pod.roles.insert(role);
        } else if self.0.len() < MOST {
            let (uid, name) = (uid.to_owned(), format!("of uid {uid}"));
            self.0.push((now, LivePod { uid, name, roles: BTreeSet::from([role]), of_kubelet: false, own: false }));
        }
    }

    /// Those that the watch has not shown since.
    pub(in crate::sign) fn unseen(&mut self, shows: impl Fn(&str) -> bool, now: Instant) -> Vec<LivePod> {
        self.0.retain(|(at, pod)| now.saturating_duration_since(*at) < UNSEEN_FOR && !shows(&pod.uid));
        self.0.iter().map(|(_, pod)| pod.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_counts_until_the_watch_shows_it_or_should_have() {
        let now = Instant::now();
        let mut newcomers = Newcomers::default();
        newcomers.add("a", Role::Peer, now);
        newcomers.add("b", Role::Peer, now);
        newcomers.add("b", Role::Server, now + UNSEEN_FOR / 2);
        let unseen = newcomers.unseen(|_| false, now);
        assert_eq!(unseen.iter().map(|pod| (&*pod.uid, pod.roles.len())).collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
        let uids = |pods: Vec<LivePod>| pods.into_iter().map(|pod| pod.uid).collect::<Vec<_>>();
        assert_eq!(uids(newcomers.unseen(|_| false, now + UNSEEN_FOR)), ["b"]);
        assert_eq!(uids(newcomers.unseen(|uid| uid == "b", now + UNSEEN_FOR)), [""; 0]);
        // Shown once, it is the watch's to say that it is gone.
        assert_eq!(uids(newcomers.unseen(|_| false, now + UNSEEN_FOR)), [""; 0]);
        for n in 0..2 * MOST {
            newcomers.add(&n.to_string(), Role::Client, now);
        }
        assert_eq!(newcomers.unseen(|_| false, now).len(), MOST);
    }
}
