//! Metrics of the restarter: whether etcd must be restarted, the reason it waits, and the duration of restarts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use etcd_tls_contract::{role::Domain, trusts::Unknown};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DomainLabel {
    domain: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    domain: &'static str,
    state: &'static str,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdLabel {
    id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The restarter's metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    due: Family<DomainLabel, Gauge>,
    states: Family<StateLabels, Gauge>,
    waits: Family<ReasonLabel, Gauge>,
    cut: Family<IdLabel, Gauge>,
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
        registry.register(
            "trust_state",
            "1 for what is known of the trust bundle that etcd runs with: loaded, due (a restart loads it), or unknown with a \
             reason",
            metrics.states.clone(),
        );
        registry.register("restart_waits", "1 for what a due restart waits for", metrics.waits.clone());
        registry.register(
            "cut_info",
            "1 for the last request to end all connections that was carried out by a restart of etcd",
            metrics.cut.clone(),
        );
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

    /// Shows what is known of each domain's bundle.
    pub(super) fn states(
        &self,
        loaded: &BTreeMap<Domain, String>,
        due: &BTreeMap<Domain, String>,
        unknown: &BTreeMap<Domain, Unknown>,
    ) {
        let mut now = Vec::new();
        for domain in Domain::ALL {
            let (state, reason) = match (unknown.get(&domain), due.contains_key(&domain), loaded.contains_key(&domain))
            {
                (Some(reason), ..) => ("unknown", reason.as_str().to_owned()),
                (None, true, _) => ("due", String::new()),
                (None, false, true) => ("loaded", String::new()),
                (None, false, false) => continue,
            };
            now.push(StateLabels { domain: domain.as_str(), state, reason });
        }
        if now.iter().any(|labels| self.states.get(labels).is_none()) {
            self.states.clear();
        }
        for labels in now {
            self.states.get_or_create(&labels).set(1);
        }
    }

    /// Shows `reason`, one word of a fixed set, as the only one waited for.
    pub(super) fn waits(&self, reason: Option<&'static str>) {
        self.waits.clear();
        if let Some(reason) = reason {
            self.waits.get_or_create(&ReasonLabel { reason }).set(1);
        }
    }

    /// Shows the request that was carried out last.
    pub(super) fn cut(&self, done: Option<&str>) {
        if let Some(id) = done {
            let label = IdLabel { id: id.to_owned() };
            if self.cut.get(&label).is_none() {
                self.cut.clear();
                self.cut.get_or_create(&label).set(1);
            }
        }
    }

    pub(super) fn restarted(&self, outcome: &'static str) {
        self.restarts.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn downtime(&self, seconds: f64) {
        self.downtime.set(seconds);
    }
}
