//! Tasks that the process needs and cannot restart: a panic in one ends the process, and its supervisor starts it again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use etcd_tls_telemetry::exit::Exit;
use futures::FutureExt as _;

/// Runs `work`. If it panics, the process ends with [`Exit::Failure`].
pub(crate) async fn essential<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(value) => value,
        Err(_) => end(name),
    }
}

/// The same for a thread.
pub(crate) fn essential_thread<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => value,
        Err(_) => end(name),
    }
}

/// The panic itself is on standard error already.
fn end(name: &'static str) -> ! {
    tracing::error!(task = name, "a task of the process panicked; the process ends");
    std::process::exit(i32::from(Exit::Failure.code()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::process::Command;

    use super::*;

    const BREAKS: &str = "ETCD_TLS_TEST_BREAKS";

    /// Runs this test alone, in a process of its own.
    fn ended(test: &str, breaks: &str) -> Option<i32> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("platform::essential::tests::{test}")]).env(BREAKS, breaks);
        command.output().unwrap().status.code()
    }

    #[tokio::test]
    async fn a_panic_ends_the_process() {
        match std::env::var(BREAKS).as_deref() {
            Ok("task") => tokio::spawn(essential("test", async { panic!("broken") })).await.unwrap(),
            Ok("thread") => std::thread::spawn(|| essential_thread("test", || panic!("broken"))).join().unwrap(),
            // A task that ends by itself ends nothing else.
            Ok(_) => {
                let value = tokio::spawn(essential("test", async { 7 })).await.unwrap();
                assert_eq!(value + essential_thread("test", || 1), 8);
            }
            Err(_) => {
                for (breaks, code) in [("task", 1), ("thread", 1), ("nothing", 0)] {
                    assert_eq!(ended("a_panic_ends_the_process", breaks), Some(code), "{breaks}");
                }
            }
        }
    }
}
