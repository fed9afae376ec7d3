//! Log, metrics, admin port and exit codes of every process of etcd-tls.

pub mod admin;
pub mod exit;
pub mod listen;
pub mod log;
pub mod panics;
pub mod process;
pub mod span;
pub mod until_set;

#[doc(hidden)]
pub use tracing;

use prometheus_client::registry::{Metric, Registry};

/// A new metric, shown by `registry` as `name` (under the registry's prefix) with `help`.
pub fn metric<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
