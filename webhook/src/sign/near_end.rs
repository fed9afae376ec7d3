//! Says beside a pod that a certificate of it is about to end: its renewal is long overdue. The sidecar has no right to write
//! Events, and the record of certificates has the ends.
//!
//! One Event for each certificate in an hour, and none for a pod that is gone.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::{
    authorities::{
        Authorities,
        issued::{Leaf, Place},
    },
    cache::pods::Pods,
};
use crate::{
    controller::events::{Notice, Recorder, pod_reference, reasons::CERTIFICATE_NEAR_EXPIRY},
    rollover::rfc3339,
};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(60);
/// How often it is said again. The API server keeps an Event for an hour.
const SAY_AGAIN: Duration = Duration::from_secs(65 * 60);

/// See the module.
pub(super) struct NearEnd {
    pub(super) authorities: Arc<Authorities>,
    pub(super) pods: Pods,
    pub(super) recorder: Recorder,
    /// The longest life of a certificate, where it is bounded.
    pub(super) max_lifetime: Option<Duration>,
}

impl NearEnd {
    pub(super) async fn keep(self) -> Infallible {
        let every = self.max_lifetime.map_or(EVERY, |life| (life / 8).clamp(Duration::from_secs(1), EVERY));
        let mut said = HashMap::new();
        loop {
            sleep(every).await;
            if self.pods.complete() {
                self.round(&mut said, SystemTime::now()).await;
            }
        }
    }

    /// `said`: the certificates of which it was said, and when.
    async fn round(&self, said: &mut HashMap<String, Instant>, now: SystemTime) {
        let mut ending = Vec::new();
        for entry in self.authorities.entries() {
            ending.extend(self.authorities.ending(&entry, now).await);
        }
        let serials: HashSet<&str> = ending.iter().map(|(serial, _)| serial.as_str()).collect();
        said.retain(|serial, at| serials.contains(serial.as_str()) && at.elapsed() < SAY_AGAIN);
        let mut due: HashMap<Place, (String, Leaf)> = HashMap::new();
        for (serial, leaf) in ending {
            let there = leaf.pod().split_once('/').is_some_and(|(n, name)| self.pods.is_there(n, name, leaf.holder()));
            let place = leaf.place();
            if there && !said.contains_key(&serial) && due.get(&place).is_none_or(|(_, other)| other.at < leaf.at) {
                due.insert(place, (serial, leaf));
            }
        }
        if due.is_empty() {
            return;
        }
        // Another authority may have issued a newer one: policy may say by now that it signs for these.
        for entry in self.authorities.entries() {
            self.authorities.leave_out_renewed(&entry, &mut due).await;
        }
        for (serial, leaf) in due.into_values() {
            self.say(&serial, &leaf).await;
            said.insert(serial, Instant::now());
        }
    }

    async fn say(&self, serial: &str, leaf: &Leaf) {
        let Some((namespace, name)) = leaf.pod().split_once('/') else { return };
        let note = format!(
            "certificate {serial} of {} ends at {}, and the pod has not renewed it: kubectl -n {namespace} logs {name} -c \
             etcd-tls-sidecar, or etcd-tls-webhook check pod {name} -n {namespace}",
            leaf.user(),
            rfc3339::text(leaf.end())
        );
        tracing::warn!(pod = leaf.pod(), serial, user = leaf.user(), "a certificate is near its end");
        let regarding = pod_reference(namespace, name, leaf.holder());
        self.recorder.say(Notice { regarding, reason: CERTIFICATE_NEAR_EXPIRY, note }).await;
    }
}
