//! The approver's own metrics. Every label's values are a fixed set of words.

use etcd_tls_telemetry::{metric, until_set::UntilSet};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    verdict: &'static str,
    reason: &'static str,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    decisions: Family<Decision, Counter>,
    pub(super) binding_writes: Counter,
    foreign_bindings: UntilSet,
    requesters_left_out: UntilSet,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            decisions: metric(
                registry,
                "decisions",
                "Requests decided, by verdict and reason; a denial counts once a reason",
            ),
            binding_writes: metric(registry, "binding_writes", "Bindings written"),
            foreign_bindings: metric(
                registry,
                "foreign_bindings",
                "Opted-in namespaces whose RoleBinding etcd-tls-sign binds another role, so that no trust is published there",
            ),
            requesters_left_out: metric(
                registry,
                "requesters_left_out",
                "Subjects for which the ClusterRoleBindings etcd-tls-requesters have no room",
            ),
        }
    }

    pub(super) fn approved(&self) {
        self.decisions.get_or_create(&Decision { verdict: "approve", reason: "" }).inc();
    }

    /// A request that would be denied, of a requester that has enough denied ones.
    pub(super) fn unanswered(&self) {
        self.decisions.get_or_create(&Decision { verdict: "none", reason: "TooManyRefused" }).inc();
    }

    pub(super) fn foreign_bindings(&self, count: usize) {
        self.foreign_bindings.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn requesters_left_out(&self, count: usize) {
        self.requesters_left_out.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Forgets what only the replica that leads shows.
    pub(super) fn forget_all(&self) {
        self.foreign_bindings.clear();
        self.requesters_left_out.clear();
    }

    pub(super) fn denied(&self, reason: &'static str) {
        self.decisions.get_or_create(&Decision { verdict: "deny", reason }).inc();
    }
}
