//! Tasks that run for as long as the process does. One that ends by a panic is started again, said and counted.

use std::time::Duration;

use etcd_tls_telemetry::metric;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::sleep;

/// What broke off may break off again at once.
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
        Self { restarts: metric(registry, "task_restarts", "Tasks that broke off and were started again, by task") }
    }

    /// Starts what `task` makes, again and again.
    pub(crate) fn keep<F>(&self, name: &'static str, task: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let restarts = self.restarts.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = tokio::spawn(task()).await {
                    tracing::error!(task = name, %error, "a task broke off; starting it again");
                    restarts.get_or_create(&Named { task: name }).inc();
                }
                sleep(PAUSE).await;
            }
        });
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
    async fn what_panics_is_started_again_and_counted() {
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
}
