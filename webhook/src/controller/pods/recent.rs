//! One read of a pod for all its requests of a moment: a pod asks for several certificates at once.
//!
//! A read that begins after the process has seen the resourceVersion V shows a state no older than V: the API server answers it
//! from etcd. So it serves each request of that pod up to V, also one that comes while it is under way.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_tls_contract::identity::{BoundPod, PodFacts};
use tokio::sync::Mutex as AsyncMutex;

use super::Found;

/// How long a read serves others. The watch has the pod by then, or the pod has changed.
const SERVES: Duration = Duration::from_secs(1);
/// Pods whose last read is kept, at most some KiB each. Beyond it each request reads.
const KEPT: usize = 256;
/// Reads that stay, though they serve nobody any more, until there are more.
const FEW: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// The newest resourceVersion that was seen.
    newest: AtomicU64,
    reads: Mutex<HashMap<Box<str>, Place>>,
}

/// The last read of a pod; locked while one is under way.
type Place = Arc<AsyncMutex<Option<Read>>>;

#[derive(Debug)]
struct Read {
    /// The state that it shows is no older than this.
    version: u64,
    began: Instant,
    namespace: Box<str>,
    name: Box<str>,
    /// `None`: there is no pod of that name.
    facts: Option<Arc<PodFacts>>,
}

impl Read {
    fn serves(&self) -> bool {
        self.began.elapsed() < SERVES
    }

    fn is_of(&self, bound: &BoundPod) -> bool {
        *self.namespace == *bound.namespace && *self.name == *bound.pod
    }
}

impl Recent {
    /// An object of this resourceVersion was seen.
    pub(super) fn saw(&self, version: u64) {
        self.newest.fetch_max(version, Ordering::AcqRel);
    }

    /// What was seen counts no more.
    pub(super) fn saw_none(&self) {
        self.newest.store(0, Ordering::Release);
    }

    /// The pod in a state no older than `version`: as it was read a moment ago, or by `read`.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) async fn no_older_than<E>(
        &self,
        bound: &BoundPod,
        version: u64,
        read: impl Future<Output = Result<Found, E>>,
    ) -> Result<Found, E> {
        let Some(place) = self.place(&bound.pod_uid) else { return read.await };
        let mut last = place.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.version >= version && last.serves() && last.is_of(bound)) {
            return Ok(last.facts.as_ref().map_or(Found::Gone, |facts| Found::There(Arc::clone(facts))));
        }
        let (version, began) = (self.newest.load(Ordering::Acquire), Instant::now());
        *last = None;
        let found = read.await?;
        let facts = match &found {
            Found::There(facts) => Some(Arc::clone(facts)),
            Found::Gone => None,
            Found::TooLarge => return Ok(found),
        };
        let (namespace, name) = (bound.namespace.as_str().into(), bound.pod.as_str().into());
        *last = Some(Read { version, began, namespace, name, facts });
        Ok(found)
    }

    /// The place of that pod's read; `None` while there are too many.
    fn place(&self, uid: &str) -> Option<Place> {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = reads.get(uid) {
            return Some(Arc::clone(place));
        }
        if reads.len() >= FEW {
            // A place that is locked, or about to be, has another owner.
            reads.retain(|_, place| match Arc::get_mut(place) {
                Some(free) => free.get_mut().as_ref().is_some_and(Read::serves),
                None => true,
            });
        }
        if reads.len() >= KEPT {
            return None;
        }
        Some(Arc::clone(reads.entry(uid.into()).or_default()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use tokio::sync::oneshot;

    use super::*;

    fn pod(n: usize) -> (BoundPod, Arc<PodFacts>) {
        let (namespace, name, uid) = ("prod".to_owned(), format!("etcd-{n}"), format!("uid-{n}"));
        let bound = BoundPod {
            namespace: namespace.clone(),
            service_account: "default".to_owned(),
            pod: name.clone(),
            pod_uid: uid.clone(),
            node: String::new(),
        };
        (bound, Arc::new(PodFacts { namespace, name, uid, ..PodFacts::default() }))
    }

    /// Asks for the pod, counting the reads.
    async fn ask(recent: &Recent, bound: &BoundPod, version: u64, facts: &Arc<PodFacts>, reads: &Cell<u32>) {
        let read = async {
            reads.set(reads.get() + 1);
            Ok::<_, ()>(Found::There(Arc::clone(facts)))
        };
        assert_eq!(recent.no_older_than(bound, version, read).await, Ok(Found::There(Arc::clone(facts))));
    }

    #[tokio::test]
    async fn a_read_serves_requests_seen_before_it_began_and_no_later_one() {
        let (recent, reads) = (Recent::default(), Cell::new(0));
        let (bound, facts) = pod(0);
        recent.saw(10);
        recent.saw(7);
        for (version, read) in [(10, 1), (9, 1), (11, 2), (10, 2)] {
            ask(&recent, &bound, version, &facts, &reads).await;
            assert_eq!(reads.get(), read, "{version}");
        }
        // 11 was seen before the next read only.
        recent.saw(11);
        for (version, read) in [(11, 3), (11, 3)] {
            ask(&recent, &bound, version, &facts, &reads).await;
            assert_eq!(reads.get(), read, "{version}");
        }
        // Neither a pod made anew under the name nor one of the name elsewhere is served by it.
        let (_, other) = pod(0);
        for bound in [
            BoundPod { pod_uid: "uid-1".to_owned(), ..bound.clone() },
            BoundPod { namespace: "other".to_owned(), ..bound.clone() },
        ] {
            let before = reads.get();
            ask(&recent, &bound, 1, &other, &reads).await;
            assert_eq!(reads.get(), before + 1);
        }
    }

    #[tokio::test]
    async fn a_request_that_comes_while_the_pod_is_read_waits_for_that_and_a_failure_is_ones_own() {
        let recent = Recent::default();
        let (bound, facts) = pod(0);
        recent.saw(10);
        let (end, ended) = oneshot::channel::<Result<Found, &str>>();
        let first = recent.no_older_than(&bound, 10, async { ended.await.unwrap() });
        let second = recent.no_older_than(&bound, 9, async { Err("a second read") });
        let (first, second, ()) = tokio::join!(first, second, async {
            tokio::task::yield_now().await;
            end.send(Ok(Found::There(Arc::clone(&facts)))).unwrap();
        });
        assert_eq!((first, second), (Ok(Found::There(Arc::clone(&facts))), Ok(Found::There(facts))));
        // 12 was not seen: it reads, and fails.
        assert_eq!(recent.no_older_than(&bound, 12, async { Err("a failure") }).await, Err("a failure"));
        // And what was read before does not count any more.
        assert_eq!(recent.no_older_than(&bound, 9, async { Ok::<_, &str>(Found::Gone) }).await, Ok(Found::Gone));
    }

    /// A flood of requests of a pod that is gone costs no flood of reads.
    #[tokio::test]
    async fn a_pod_that_is_gone_is_read_once_in_a_moment_too() {
        let (recent, reads) = (Recent::default(), Cell::new(0));
        recent.saw(10);
        let (bound, _) = pod(0);
        let ask = async |version| {
            let read = async {
                reads.set(reads.get() + 1);
                Ok::<_, ()>(Found::Gone)
            };
            assert_eq!(recent.no_older_than(&bound, version, read).await, Ok(Found::Gone));
            reads.get()
        };
        assert_eq!((ask(9).await, ask(10).await, ask(11).await), (1, 1, 2));
        // Requests are listed anew, and their resourceVersions are smaller: what was seen before says nothing of them.
        recent.saw_none();
        assert_eq!((ask(11).await, ask(3).await), (3, 4));
        recent.saw(3);
        assert_eq!((ask(3).await, ask(3).await), (5, 5));
    }

    #[tokio::test]
    async fn it_serves_for_a_moment_and_is_bounded() {
        let (recent, reads) = (Recent::default(), Cell::new(0));
        recent.saw(10);
        let (bound, facts) = pod(0);
        ask(&recent, &bound, 1, &facts, &reads).await;
        let place = recent.place("uid-0").unwrap();
        place.lock().await.as_mut().unwrap().began = Instant::now().checked_sub(SERVES).unwrap();
        drop(place);
        ask(&recent, &bound, 1, &facts, &reads).await;
        assert_eq!(reads.get(), 2);
        let held = recent.place("uid-0");
        for n in 0..2 * KEPT {
            let (bound, facts) = pod(n);
            ask(&recent, &bound, 1, &facts, &reads).await;
        }
        assert!(recent.reads.lock().unwrap().len() <= KEPT && held.is_some());
        // As time goes by there is place again, but for those in use.
        for place in recent.reads.lock().unwrap().values() {
            if let Some(read) = place.try_lock().unwrap().as_mut() {
                read.began = Instant::now().checked_sub(SERVES).unwrap();
            }
        }
        assert!(recent.place("another").is_some());
        assert_eq!(recent.reads.lock().unwrap().len(), 2, "what serves nobody takes no memory");
    }
}
