//! Tasks that run until they are aborted. One that panics is logged, counted and started again.

use std::time::Duration;

use etcd_tls_telemetry::metric;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    task::{AbortHandle, JoinSet},
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
        let restarts = self.restarts.clone();
        let keeping = tokio::spawn(async move {
            // Dropped, it aborts the task in it.
            let mut running = JoinSet::new();
            loop {
                running.spawn(task());
                if let Some(Err(error)) = running.join_next().await {
                    tracing::error!(task = name, %error, "a task panicked; starting it again");
                    restarts.get_or_create(&Named { task: name }).inc();
                }
                sleep(PAUSE).await;
            }
        });
        keeping.abort_handle()
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
