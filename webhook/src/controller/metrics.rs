//! The metrics that every controller has, beside those of its queue.

use etcd_tls_telemetry::metric;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;

use super::guards::PolicyLabel;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) waits: Counter,
    pub(super) conflicts: Counter,
    pub(super) errors: Counter,
    pub(super) policy_readable: Gauge,
    /// By policy; see [`super::guards`].
    pub(super) enforced: Family<PolicyLabel, Gauge>,
    leader: Gauge,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            waits: metric(registry, "not_yet", "Looks at a request that has to wait for something"),
            conflicts: metric(registry, "conflicts", "Writes that met a request which had changed"),
            errors: metric(registry, "errors", "Looks at a request that the API server failed"),
            policy_readable: metric(registry, "policy_readable", "1 while the policy's ConfigMap is what is in force"),
            enforced: metric(
                registry,
                "admission_policy_enforced",
                "1 while a ValidatingAdmissionPolicy that this process depends on is proven to be enforced",
            ),
            leader: metric(registry, "leader", "1 while this replica leads"),
        }
    }

    /// Shows who leads, for as long as it is polled.
    pub(super) async fn show_leadership(&self, mut leader: watch::Receiver<bool>) {
        loop {
            self.leader.set(i64::from(*leader.borrow_and_update()));
            if leader.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
