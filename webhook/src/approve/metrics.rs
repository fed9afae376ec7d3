//! The approver's own metrics. Every label's values are a fixed set of words.

use std::time::{SystemTime, UNIX_EPOCH};

use etcd_tls_telemetry::{metric, until_set::UntilSet};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    verdict: &'static str,
    reason: &'static str,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    decisions: Family<DecisionLabels, Counter>,
    last_decision: UntilSet,
    approved_by_others: Family<[(&'static str, String); 1], Gauge>,
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
            last_decision: metric(
                registry,
                "last_decision_timestamp_seconds",
                "When this replica approved or denied a request last, since its start",
            ),
            approved_by_others: metric(
                registry,
                "approved_by_others",
                "1 for each issuer of --approve-issuer of which another approver has approved a pod's CertificateRequest since the start",
            ),
            binding_writes: metric(registry, "binding_writes", "Bindings, and Roles of those who watch trust, written"),
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
        self.decisions.get_or_create(&DecisionLabels { verdict: "approve", reason: "" }).inc();
        self.last_decision.set(now());
    }

    /// A request that policy leaves to a person.
    pub(super) fn left(&self) {
        self.decisions.get_or_create(&DecisionLabels { verdict: "none", reason: "ManualApproval" }).inc();
    }

    /// A request that another approver has approved; whether it is the first one of its issuer.
    pub(super) fn approved_by_others(&self, issuer: &str) -> bool {
        self.approved_by_others.get_or_create(&[("issuer", issuer.to_owned())]).set(1) == 0
    }

    /// A request that would be denied, of a requester that has enough denied ones.
    pub(super) fn unanswered(&self) {
        self.decisions.get_or_create(&DecisionLabels { verdict: "none", reason: "TooManyRefused" }).inc();
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
        self.decisions.get_or_create(&DecisionLabels { verdict: "deny", reason }).inc();
        self.last_decision.set(now());
    }
}

/// Seconds of the Unix epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
