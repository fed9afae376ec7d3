//! Says beside a pod that a certificate of it is about to end: its renewal is long overdue. The sidecar has no right to write
//! Events, and the record of certificates has the ends.
//!
//! One Event for each certificate in an hour, and none for a pod that is gone.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::{
    authorities::{Authorities, issued::Leaf},
    cache::pods::Pods,
    reconcile::said::Said,
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
        let mut said = Said::default();
        loop {
            sleep(every).await;
            if self.pods.complete() {
                self.round(&mut said, SystemTime::now()).await;
            }
        }
    }

    async fn round(&self, said: &mut Said, now: SystemTime) {
        for entry in self.authorities.entries() {
            for (serial, leaf) in self.authorities.ending(&entry, now).await {
                let Some((namespace, name)) = leaf.pod().split_once('/') else { continue };
                if !self.pods.is_there(namespace, name, leaf.holder()) || self.is_renewed(&leaf).await {
                    continue;
                }
                let note = format!(
                    "certificate {serial} of {} ends at {}, and the pod has not renewed it: kubectl -n {namespace} logs {name} -c \
                     etcd-tls-sidecar, or etcd-tls-webhook check pod {name} -n {namespace}",
                    leaf.user(),
                    rfc3339::text(leaf.end())
                );
                if said.is_due(&serial, CERTIFICATE_NEAR_EXPIRY.name(), &note, SAY_AGAIN, Instant::now()) {
                    tracing::warn!(pod = leaf.pod(), serial, user = leaf.user(), "a certificate is near its end");
                    let regarding = pod_reference(namespace, name, leaf.holder());
                    self.recorder.say(Notice { regarding, reason: CERTIFICATE_NEAR_EXPIRY, note }).await;
                }
            }
        }
    }

    /// True if another authority has issued a newer one: policy may say by now that it signs for this one.
    async fn is_renewed(&self, leaf: &Leaf) -> bool {
        for entry in self.authorities.entries() {
            if self.authorities.has_newer(&entry, leaf).await {
                return true;
            }
        }
        false
    }
}
