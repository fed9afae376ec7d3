//! The approver's figures. Every label's values are a fixed set of words.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    verdict: &'static str,
    reason: &'static str,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    decisions: Family<Decision, Counter>,
    waits: Counter,
    conflicts: Counter,
    errors: Counter,
    leader: Gauge,
    pub(super) policy_readable: Gauge,
    pub(super) binding_writes: Counter,
}

/// The registry whose prefix the approver's figures have.
pub(super) fn registry() -> Registry {
    Registry::with_prefix("etcd_tls_approve")
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "decisions",
            "Requests decided, by verdict and reason; a denial counts once a reason",
            metrics.decisions.clone(),
        );
        registry.register("not_yet", "Looks at a request that has to wait for something", metrics.waits.clone());
        registry.register("conflicts", "Decisions that met a request which had changed", metrics.conflicts.clone());
        registry.register("errors", "Looks at a request that the API server failed", metrics.errors.clone());
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register(
            "policy_readable",
            "1 while the policy's ConfigMap is what is in force",
            metrics.policy_readable.clone(),
        );
        registry.register("binding_writes", "Bindings written", metrics.binding_writes.clone());
        metrics
    }

    pub(super) fn approved(&self) {
        self.decisions.get_or_create(&Decision { verdict: "approve", reason: "" }).inc();
    }

    pub(super) fn denied(&self, reason: &'static str) {
        self.decisions.get_or_create(&Decision { verdict: "deny", reason }).inc();
    }

    pub(super) fn not_yet(&self) {
        self.waits.inc();
    }

    pub(super) fn stale(&self) {
        self.conflicts.inc();
    }

    pub(super) fn failed(&self) {
        self.errors.inc();
    }

    /// Shows who leads, for as long as it is polled.
    pub(super) fn show_leadership(&self, mut leader: watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
        let gauge = self.leader.clone();
        async move {
            loop {
                gauge.set(i64::from(*leader.borrow_and_update()));
                if leader.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
