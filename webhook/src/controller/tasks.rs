//! Tasks that are started again when they panic: each panic is logged and counted.

use std::{collections::HashMap, future::pending, time::Duration};

use etcd_tls_telemetry::metric;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    task::{self, AbortHandle, JoinError, JoinSet},
    time::sleep,
};

/// The wait before a restart: the task may fail again at once.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    task: &'static str,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    restarts: Family<Named, Counter>,
}

impl Tasks {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self { restarts: metric(registry, "task_restarts", "Tasks that panicked and were started again, by task") }
    }

    /// Starts what `task` makes, again and again, until it is aborted.
    pub(crate) fn keep<F>(&self, name: &'static str, task: impl Fn() -> F + Send + 'static) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = self.clone();
        let keeping = tokio::spawn(async move {
            // Dropped, it aborts the task in it.
            let mut running = JoinSet::new();
            loop {
                running.spawn(task());
                if let Some(Err(error)) = running.join_next().await {
                    tasks.panicked(name, &error);
                }
                sleep(PAUSE).await;
            }
        });
        keeping.abort_handle()
    }

    /// Logs and counts a panic. A task that was aborted did not panic.
    fn panicked(&self, task: &'static str, error: &JoinError) {
        if error.is_panic() {
            tracing::error!(task, %error, "a task panicked; it is started again");
            self.restarts.get_or_create(&Named { task }).inc();
        }
    }
}

/// Tasks that end, or that are started again by their owner. Dropped, it aborts them.
pub(crate) struct Jobs<K, T> {
    tasks: Tasks,
    set: JoinSet<T>,
    running: HashMap<task::Id, (&'static str, K)>,
}

impl<K, T: Send + 'static> Jobs<K, T> {
    /// None yet.
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { tasks, set: JoinSet::new(), running: HashMap::new() }
    }

    /// Starts a task, counted as `name` if it panics.
    pub(crate) fn start(&mut self, name: &'static str, key: K, task: impl Future<Output = T> + Send + 'static) {
        let task = self.set.spawn(task);
        self.running.insert(task.id(), (name, key));
    }

    /// The number of tasks under way.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// The next task that ends, with its result; `None`: it panicked. Ends never while there is no task. It can be dropped at
    /// any time without loss.
    pub(crate) async fn next(&mut self) -> (K, Option<T>) {
        loop {
            let (id, result) = match self.set.join_next_with_id().await {
                Some(Ok((id, result))) => (id, Ok(result)),
                Some(Err(error)) => (error.id(), Err(error)),
                None => pending().await,
            };
            let Some((name, key)) = self.running.remove(&id) else { continue };
            return (key, result.inspect_err(|error| self.tasks.panicked(name, error)).ok());
        }
    }

    /// Waits until all have ended.
    pub(crate) async fn drain(&mut self) {
        while self.len() > 0 {
            self.next().await;
        }
    }

    /// Aborts all, and waits until they have ended.
    pub(crate) async fn abort(mut self) {
        self.set.abort_all();
        self.drain().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_and_counted() {
        let tasks = Tasks::register(&mut Registry::default());
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        tasks.keep("test", move || {
            let starts = Arc::clone(&counted);
            async move {
                assert!(starts.fetch_add(1, Ordering::SeqCst) > 2, "broken");
                std::future::pending::<()>().await;
            }
        });
        while starts.load(Ordering::SeqCst) < 4 {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(tasks.restarts.get_or_create(&Named { task: "test" }).get(), 3);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_counted_and_told_to_its_owner() {
        let tasks = Tasks::register(&mut Registry::default());
        let count = |name| tasks.restarts.get_or_create(&Named { task: name }).get();
        let mut jobs = Jobs::new(tasks.clone());
        jobs.start("one", 1, async { panic!("broken") });
        assert_eq!(jobs.next().await, (1, None::<&str>));
        // Its owner starts it again; others are not affected.
        jobs.start("one", 1, async { panic!("broken again") });
        jobs.start("one", 2, async { "done" });
        jobs.start("another", 3, std::future::pending());
        assert_eq!(jobs.len(), 3);
        let mut ended = [jobs.next().await, jobs.next().await];
        ended.sort();
        assert_eq!((ended, jobs.len()), ([(1, None), (2, Some("done"))], 1));
        assert_eq!((count("one"), count("another")), (2, 0));
        jobs.abort().await;
        assert_eq!((count("one"), count("another")), (2, 0), "to be aborted is no panic");
    }

    /// Says that it was dropped.
    struct Dropped(Arc<AtomicU32>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn an_aborted_task_ends() {
        let tasks = Tasks::register(&mut Registry::default());
        let (starts, ends) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let counted = (Arc::clone(&starts), Arc::clone(&ends));
        let handle = tasks.keep("test", move || {
            let (starts, ends) = counted.clone();
            async move {
                let _dropped = Dropped(ends);
                starts.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
        });
        while starts.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
        handle.abort();
        while ends.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(starts.load(Ordering::SeqCst), 1);
    }
}
