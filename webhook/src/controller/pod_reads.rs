//! Live reads of pods, one for the requests of a pod that wait together.
//!
//! A pod makes a request for each of its roles at one moment. A read that began after a request was received sees the pod as
//! late as a read of that request's own would have: so it serves all of them. Nothing is kept once a read is answered.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::identity::BoundPod;
use tokio::{sync::watch, time::Instant};

use crate::controller::{client::RequestError, facts::LeanPod};

/// A pod as it was read; `None`: there is none of that name.
type Found = Arc<Option<LeanPod>>;
type Key = (String, String);

/// The reads under way.
#[derive(Clone, Debug, Default)]
pub(super) struct PodReads(Arc<Mutex<HashMap<Key, UnderWay>>>);

#[derive(Debug)]
struct UnderWay {
    began: Instant,
    /// `None` until it is answered; closed without an answer if it failed or broke off.
    answer: watch::Receiver<Option<Found>>,
}

/// Takes the read off the list when it ends, however it does.
struct Listed<'a> {
    reads: &'a PodReads,
    key: Key,
    began: Instant,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut reads = self.reads.lock();
        if reads.get(&self.key).is_some_and(|read| read.began == self.began) {
            reads.remove(&self.key);
        }
    }
}

impl PodReads {
    /// The pod that `bound` names, by one under way that began after `received`, or else by `read`, which begins now.
    ///
    /// # Errors
    /// Those of `read`; one under way that fails is followed by it.
    pub(super) async fn join_or(
        &self,
        bound: &BoundPod,
        received: Instant,
        read: impl Future<Output = Result<Option<LeanPod>, RequestError>>,
    ) -> Result<Found, RequestError> {
        let key = (bound.namespace.clone(), bound.pod.clone());
        while let Some(mut answer) = self.under_way(&key, received) {
            if let Ok(found) = answer.wait_for(Option::is_some).await
                && let Some(found) = &*found
            {
                return Ok(Arc::clone(found));
            }
        }
        let (sender, answer) = watch::channel(None);
        let began = Instant::now();
        self.lock().insert(key.clone(), UnderWay { began, answer });
        let listed = Listed { reads: self, key, began };
        let found = Arc::new(read.await?);
        drop(listed);
        sender.send_replace(Some(Arc::clone(&found)));
        Ok(found)
    }

    fn under_way(&self, key: &Key, received: Instant) -> Option<watch::Receiver<Option<Found>>> {
        self.lock().get(key).filter(|read| read.began > received).map(|read| read.answer.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::Duration;

    use futures::{FutureExt, poll};
    use tokio::{sync::oneshot, time::sleep};

    use super::*;

    fn bound() -> BoundPod {
        let word = str::to_owned;
        BoundPod {
            namespace: word("prod"),
            service_account: word("etcd"),
            pod: word("etcd-0"),
            pod_uid: word("uid"),
            node: word("node"),
        }
    }

    async fn unread() -> Result<Option<LeanPod>, RequestError> {
        panic!("a read of its own")
    }

    #[tokio::test]
    async fn what_was_received_before_a_read_began_is_served_by_it() {
        let (reads, bound) = (PodReads::default(), bound());
        let received = Instant::now();
        sleep(Duration::from_millis(1)).await;
        let (answer, answered) = oneshot::channel::<()>();
        let mut first = Box::pin(reads.join_or(&bound, received, answered.map(|_| Ok(Some(LeanPod::default())))));
        assert!(poll!(&mut first).is_pending());
        let mut second = Box::pin(reads.join_or(&bound, received, unread()));
        assert!(poll!(&mut second).is_pending());
        // What came later asks for itself: the answer may be from before.
        let later = reads.join_or(&bound, Instant::now(), async { Ok(None) }).await.unwrap();
        assert!(later.is_none());
        answer.send(()).unwrap();
        assert!(first.await.unwrap().is_some() && second.await.unwrap().is_some());
        // And nothing is kept.
        assert!(reads.lock().is_empty());
        assert!(reads.join_or(&bound, received, async { Ok(None) }).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_read_that_fails_or_breaks_off_fails_nobody_else() {
        let (reads, bound) = (PodReads::default(), bound());
        let received = Instant::now();
        sleep(Duration::from_millis(1)).await;
        let (fail, failed) = oneshot::channel::<()>();
        let mut first = Box::pin(reads.join_or(&bound, received, failed.map(|_| Err(RequestError::Timeout))));
        assert!(poll!(&mut first).is_pending());
        let mut second = Box::pin(reads.join_or(&bound, received, async { Ok(None) }));
        assert!(poll!(&mut second).is_pending());
        fail.send(()).unwrap();
        assert!(matches!(first.await, Err(RequestError::Timeout)));
        assert!(second.await.unwrap().is_none());

        let mut first = Box::pin(reads.join_or(&bound, received, std::future::pending()));
        assert!(poll!(&mut first).is_pending());
        let mut second = Box::pin(reads.join_or(&bound, received, async { Ok(None) }));
        assert!(poll!(&mut second).is_pending());
        drop(first);
        assert!(second.await.unwrap().is_none());
        assert!(reads.lock().is_empty());
    }
}
