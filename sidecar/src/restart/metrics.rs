//! What the restarter shows: whether etcd must be restarted, what that waits for, and what it cost.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use std::sync::atomic::AtomicU64;

use etcd_tls_contract::role::Domain;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DomainLabel {
    domain: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The restarter's metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    due: Family<DomainLabel, Gauge>,
    waits: Family<ReasonLabel, Gauge>,
    restarts: Family<OutcomeLabel, Counter>,
    downtime: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "restart_due",
            "1 while etcd runs with another trust bundle of this domain than the one on disk",
            metrics.due.clone(),
        );
        registry.register("restart_waits", "1 for what a due restart waits for", metrics.waits.clone());
        registry.register("restarts", "Restarts of etcd begun, by how they ended", metrics.restarts.clone());
        registry.register_with_unit(
            "restart_downtime",
            "From etcd's end to its being healthy again, at the last restart",
            Unit::Seconds,
            metrics.downtime.clone(),
        );
        metrics
    }

    pub(super) fn due(&self, domain: Domain, due: bool) {
        self.due.get_or_create(&DomainLabel { domain: domain.as_str() }).set(i64::from(due));
    }

    /// Shows `reason`, one word of a fixed set, as the only one waited for.
    pub(super) fn waits(&self, reason: Option<&'static str>) {
        self.waits.clear();
        if let Some(reason) = reason {
            self.waits.get_or_create(&ReasonLabel { reason }).set(1);
        }
    }

    pub(super) fn restarted(&self, outcome: &'static str) {
        self.restarts.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn downtime(&self, seconds: f64) {
        self.downtime.set(seconds);
    }
}
