//! The signer's own metrics. Labels are a fixed set of words, or the name of an authority, of which there are as many as etcd
//! clusters.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::{names::SignerName, role::Role};
use etcd_tls_telemetry::{metric, until_set::UntilSet};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

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
struct InForm {
    form: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNamespace {
    namespace: String,
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
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    issued: Family<OfRole, Counter>,
    failed: Family<WithReason, Counter>,
    deleted: Family<WithReason, Counter>,
    pub(super) delete_failures: Counter,
    known: UntilSet,
    held: UntilSet,
    pub(super) trust_writes: Counter,
    trust_repairs: Family<InForm, Counter>,
    pub(super) trust_repair_failures: Counter,
    pub(super) trust_unrepaired: UntilSet,
    pub(super) cluster_trust_bundles: UntilSet,
    serving_until: UntilSet,
    refused: Family<OfNamespace, Gauge>,
    refused_in: Arc<Mutex<BTreeSet<String>>>,
    phase: Family<InPhase, Gauge>,
    waiting: Family<OfAuthority, Gauge>,
    waiting_since: Family<OfAuthority, Gauge>,
    not_after: Family<OfAuthority, Gauge>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            issued: metric(registry, "certificates_issued", "Certificates issued, by role"),
            failed: metric(
                registry,
                "requests_failed",
                "Approved requests and PodCertificateRequests that the signer refused, by reason; a request with several reasons counts once for each",
            ),
            deleted: metric(registry, "requests_deleted", "Requests deleted, by reason"),
            delete_failures: metric(
                registry,
                "request_delete_failures",
                "Deletes that the API server failed or refused",
            ),
            known: metric(registry, "requests_known", "Requests to our signers that exist"),
            held: metric(registry, "requests_held", "Deleted requests that finalizers hold"),
            trust_writes: metric(registry, "trust_writes", "Trust ConfigMaps written"),
            trust_repairs: metric(
                registry,
                "trust_repairs",
                "Trust ConfigMaps repaired after a change by another user, by form of the damage",
            ),
            trust_repair_failures: metric(registry, "trust_repair_failures", "Failed writes of trust ConfigMaps"),
            trust_unrepaired: metric(
                registry,
                "trust_unrepaired",
                "Trust ConfigMaps whose last write failed: their content may be wrong",
            ),
            cluster_trust_bundles: metric(
                registry,
                "cluster_trust_bundles",
                "ClusterTrustBundles that are published; 0 where they are not",
            ),
            serving_until: metric(
                registry,
                "webhook_certificate_expiry_timestamp_seconds",
                "notAfter of the webhook's serving certificate; shown by the replica that leads",
            ),
            refused: metric(
                registry,
                "authorities_refused",
                "Authorities that are not generated because their namespace has reached its limit",
            ),
            refused_in: Arc::default(),
            phase: metric(
                registry,
                "authority_phase",
                "1 for the phase that an authority is in; lost and unusable ones issue nothing",
            ),
            waiting: metric(
                registry,
                "rollover_waiting",
                "Pods and confirmations that an authority's rollover waits for",
            ),
            waiting_since: metric(
                registry,
                "rollover_waiting_since_timestamp_seconds",
                "Since when an authority's rollover waits for pods to load the new CA; absent while it waits for none",
            ),
            not_after: metric(registry, "authority_expiry_timestamp_seconds", "notAfter of the CA that signs"),
        }
    }

    /// Shows when the webhook's serving certificate ends.
    pub(super) fn serving_until(&self, not_after: SystemTime) {
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.serving_until.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(super) fn issued(&self, role: Role) {
        self.issued.get_or_create(&OfRole { role: role.as_str() }).inc();
    }

    pub(super) fn repaired(&self, form: &'static str) {
        self.trust_repairs.get_or_create(&InForm { form }).inc();
    }

    pub(super) fn failed(&self, reason: &'static str) {
        self.failed.get_or_create(&WithReason { reason }).inc();
    }

    pub(super) fn deleted(&self, reason: &'static str) {
        self.deleted.get_or_create(&WithReason { reason }).inc();
    }

    /// Shows how many requests there are, and how many of them finalizers hold.
    pub(super) fn requests(&self, known: usize, held: usize) {
        self.known.set(i64::try_from(known).unwrap_or(i64::MAX));
        self.held.set(i64::try_from(held).unwrap_or(i64::MAX));
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
            // Of the others there are no rows: they would be most of what `sign` shows, and holds, for an authority.
            if phase == report.phase {
                self.phase.get_or_create(&labels).set(1);
            } else {
                self.phase.remove(&labels);
            }
        }
        let labels = of(name);
        self.waiting.get_or_create(&labels).set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if let Some(until) = not_after.and_then(|t| t.duration_since(UNIX_EPOCH).ok()) {
            self.not_after.get_or_create(&labels).set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Shows since when an authority's rollover waits for pods.
    pub(super) fn waits_since(&self, name: &SignerName, since: Option<SystemTime>) {
        match since.and_then(|t| t.duration_since(UNIX_EPOCH).ok()) {
            Some(since) => {
                let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
                self.waiting_since.get_or_create(&of(name)).set(seconds);
            }
            None => drop(self.waiting_since.remove(&of(name))),
        }
    }

    /// Shows how many authorities each namespace wants and does not get.
    pub(super) fn refused<'a>(&self, counts: impl Iterator<Item = (&'a str, u32)>) {
        let mut before = self.refused_in.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (namespace, count) in counts {
            let labels = OfNamespace { namespace: namespace.to_owned() };
            self.refused.get_or_create(&labels).set(i64::from(count));
            now.insert(namespace.to_owned());
        }
        for namespace in before.difference(&now) {
            self.refused.remove(&OfNamespace { namespace: namespace.clone() });
        }
        *before = now;
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
        self.waiting_since.remove(&of(name));
        self.not_after.remove(&of(name));
    }

    /// Forgets what only the replica that leads shows.
    pub(super) fn forget_all(&self) {
        self.serving_until.clear();
        self.refused(std::iter::empty());
        for gauge in [&self.known, &self.held, &self.trust_unrepaired, &self.cluster_trust_bundles] {
            gauge.clear();
        }
        self.phase.clear();
        self.waiting.clear();
        self.waiting_since.clear();
        self.not_after.clear();
    }
}

fn of(name: &SignerName) -> OfAuthority {
    OfAuthority { namespace: name.namespace.clone(), cluster: name.cluster.clone(), domain: name.domain.as_str() }
}
