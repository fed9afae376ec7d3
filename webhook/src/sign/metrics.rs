//! The signer's own metrics. Labels are a fixed set of words, or the name of an authority, of which there are as many as etcd
//! clusters.

use std::{
    collections::BTreeSet,
    num::NonZeroI64,
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

use super::authorities::memory::Records;
use crate::rollover::Report;
use authorities::{Authorities, PHASES};

mod authorities;
mod records;

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

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    issued: Family<OfRole, Counter>,
    last_issue: UntilSet,
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
    authorities: Authorities,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry, records: &Arc<Records>, per_pod: u16) -> Self {
        let authorities = Authorities::default();
        registry.register_collector(Box::new(authorities.clone()));
        registry.register_collector(Box::new(records::Shown { records: Arc::clone(records), most: per_pod }));
        Self {
            issued: metric(registry, "certificates_issued", "Certificates issued, by role"),
            last_issue: metric(
                registry,
                "last_issue_timestamp_seconds",
                "When this replica issued a certificate last, since its start",
            ),
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
                "Authorities that are not generated because their namespace, or all namespaces together, have reached the limit",
            ),
            refused_in: Arc::default(),
            authorities,
        }
    }

    /// Shows when the webhook's serving certificate ends.
    pub(super) fn serving_until(&self, not_after: SystemTime) {
        self.serving_until.set(seconds(not_after).unwrap_or_default());
    }

    pub(super) fn issued(&self, role: Role) {
        self.issued.get_or_create(&OfRole { role: role.as_str() }).inc();
        self.last_issue.set(seconds(SystemTime::now()).unwrap_or_default());
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
    pub(super) fn report(
        &self,
        name: &Arc<SignerName>,
        report: &Report,
        waiting: usize,
        not_after: Option<SystemTime>,
    ) {
        self.authorities.show(name, |shown| {
            shown.phase = PHASES.into_iter().find(|phase| *phase == report.phase);
            shown.waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
            shown.not_after = not_after.and_then(point).or(shown.not_after);
        });
    }

    /// Shows since when an authority's rollover waits for pods.
    pub(super) fn waits_since(&self, name: &Arc<SignerName>, since: Option<SystemTime>) {
        self.authorities.show(name, |shown| shown.waiting_since = since.and_then(point));
    }

    /// Shows when an authority that nobody uses is deleted.
    pub(super) fn retires(&self, name: &Arc<SignerName>, at: Option<SystemTime>) {
        self.authorities.show(name, |shown| shown.retires = at.and_then(point));
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
        self.authorities.forget(name);
    }

    /// Forgets what only the replica that leads shows.
    pub(super) fn forget_all(&self) {
        self.serving_until.clear();
        self.refused(std::iter::empty());
        for gauge in [&self.known, &self.held, &self.trust_unrepaired, &self.cluster_trust_bundles] {
            gauge.clear();
        }
        self.authorities.clear();
    }
}

/// Seconds of the Unix epoch, but for its first one.
fn point(time: SystemTime) -> Option<NonZeroI64> {
    seconds(time).and_then(NonZeroI64::new)
}

/// Seconds of the Unix epoch.
fn seconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
