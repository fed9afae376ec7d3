//! The signer's figures. Labels are a fixed set of words, or the name of an authority, of which there are as many as etcd
//! clusters.

use std::time::{SystemTime, UNIX_EPOCH};

use etcd_tls_sidecar::{names::SignerName, role::Role};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;

use crate::rollover::Report;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRole {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAuthority {
    namespace: String,
    cluster: String,
    domain: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    namespace: String,
    cluster: String,
    domain: &'static str,
    phase: &'static str,
}

/// Every word of [`Report::phase`].
pub(super) const PHASES: [&str; 5] = ["stable", "published", "signing", "lost", "unusable"];

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    issued: Family<OfRole, Counter>,
    failed: Family<WithReason, Counter>,
    pub(super) cleaned: Counter,
    pub(super) waits: Counter,
    pub(super) conflicts: Counter,
    pub(super) errors: Counter,
    pub(super) trust_writes: Counter,
    pub(super) policy_readable: Gauge,
    pub(super) serving_until: Gauge,
    leader: Gauge,
    phase: Family<InPhase, Gauge>,
    waiting: Family<OfAuthority, Gauge>,
    not_after: Family<OfAuthority, Gauge>,
}

/// The registry whose prefix the signer's figures have.
pub(super) fn registry() -> Registry {
    Registry::with_prefix("etcd_tls_sign")
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("certificates_issued", "Certificates issued, by role", m.issued.clone());
        registry.register(
            "requests_failed",
            "Approved requests that the signer refused, by reason; one counts once a reason",
            m.failed.clone(),
        );
        registry.register("requests_deleted", "Finished requests deleted", m.cleaned.clone());
        registry.register("not_yet", "Looks at a request that has to wait for something", m.waits.clone());
        registry.register("conflicts", "Writes that met a request which had changed", m.conflicts.clone());
        registry.register("errors", "Looks at a request that the API server failed", m.errors.clone());
        registry.register("trust_writes", "Trust ConfigMaps written", m.trust_writes.clone());
        registry.register(
            "policy_readable",
            "1 while the policy's ConfigMap is what is in force",
            m.policy_readable.clone(),
        );
        registry.register(
            "webhook_certificate_not_after_timestamp_seconds",
            "When the webhook's serving certificate ends; 0 while it is not known",
            m.serving_until.clone(),
        );
        registry.register("leader", "1 while this replica leads", m.leader.clone());
        registry.register(
            "authority_phase",
            "1 for the phase that an authority is in; lost and unusable ones issue nothing",
            m.phase.clone(),
        );
        registry.register("rollover_waiting", "How much an authority's rollover waits for", m.waiting.clone());
        registry.register("authority_not_after_timestamp_seconds", "When the CA that signs ends", m.not_after.clone());
        m
    }

    pub(super) fn issued(&self, role: Role) {
        self.issued.get_or_create(&OfRole { role: role.as_str() }).inc();
    }

    pub(super) fn failed(&self, reason: &'static str) {
        self.failed.get_or_create(&WithReason { reason }).inc();
    }

    /// Shows how an authority stands.
    pub(super) fn report(&self, name: &SignerName, report: &Report, waiting: usize, not_after: Option<SystemTime>) {
        for phase in PHASES {
            let labels = InPhase {
                namespace: name.namespace.clone(),
                cluster: name.cluster.clone(),
                domain: name.domain.as_str(),
                phase,
            };
            self.phase.get_or_create(&labels).set(i64::from(phase == report.phase));
        }
        let labels = of(name);
        self.waiting.get_or_create(&labels).set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if let Some(until) = not_after.and_then(|t| t.duration_since(UNIX_EPOCH).ok()) {
            self.not_after.get_or_create(&labels).set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Shows an authority no more.
    pub(super) fn forget(&self, name: &SignerName) {
        for phase in PHASES {
            self.phase.remove(&InPhase {
                namespace: name.namespace.clone(),
                cluster: name.cluster.clone(),
                domain: name.domain.as_str(),
                phase,
            });
        }
        self.waiting.remove(&of(name));
        self.not_after.remove(&of(name));
    }

    /// Forgets all authorities: another replica shows them.
    pub(super) fn forget_all(&self) {
        self.phase.clear();
        self.waiting.clear();
        self.not_after.clear();
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

fn of(name: &SignerName) -> OfAuthority {
    OfAuthority { namespace: name.namespace.clone(), cluster: name.cluster.clone(), domain: name.domain.as_str() }
}
