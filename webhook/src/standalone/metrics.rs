//! The metrics of the standalone signer. Every label's values are a fixed set of words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_tls_telemetry::{metric, until_set::UntilSet};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The classes of codes, 1xx to 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithOutcome {
    outcome: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<OfCode, Counter>,
    refused: Counter,
    call_duration: Histogram,
    requests: Family<WithOutcome, Counter>,
    last_issue: UntilSet,
    stored_requests: Family<InState, Gauge>,
    held_names: Gauge,
    authority_expiry: UntilSet,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("etcd_tls_standalone");
        let call_duration = Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]);
        registry.register(
            "call_duration_seconds",
            "Time from the head of a call until its answer is ready",
            call_duration.clone(),
        );
        let metrics = Self {
            calls: metric(&mut registry, "calls", "Calls answered, by class of the code"),
            refused: metric(
                &mut registry,
                "refused",
                "Calls refused: the caller is unknown, has no right, or calls too often",
            ),
            call_duration,
            requests: metric(&mut registry, "requests", "Requests decided, by outcome"),
            last_issue: metric(
                &mut registry,
                "last_issue_timestamp_seconds",
                "When a certificate was issued last, since the start",
            ),
            stored_requests: metric(&mut registry, "stored_requests", "Requests on disk, by state"),
            held_names: metric(&mut registry, "held_names", "Names and addresses that have a holder"),
            authority_expiry: metric(
                &mut registry,
                "authority_expiry_timestamp_seconds",
                "notAfter of the CA that ends first",
            ),
            registry,
        };
        for code in CLASSES {
            let _ = metrics.calls.get_or_create(&OfCode { code });
        }
        for outcome in ["issued", "denied", "failed"] {
            let _ = metrics.requests.get_or_create(&WithOutcome { outcome });
        }
        metrics
    }
}

impl Metrics {
    /// Counts a call.
    pub fn call(&self, code: u16, took: Duration) {
        let class = usize::from(code / 100).clamp(1, CLASSES.len()) - 1;
        self.calls.get_or_create(&OfCode { code: CLASSES[class] }).inc();
        if matches!(code, 401 | 403 | 429) {
            self.refused.inc();
        }
        self.call_duration.observe(took.as_secs_f64());
    }

    /// Counts what became of a request at `now`.
    pub fn outcome(&self, issued: bool, denied: bool, failed: bool, now: SystemTime) {
        for (is, outcome) in [(issued, "issued"), (denied, "denied"), (failed, "failed")] {
            self.requests.get_or_create(&WithOutcome { outcome }).inc_by(u64::from(is));
        }
        if issued {
            self.last_issue.set(seconds(now));
        }
    }

    /// The OpenMetrics text, without those of the process.
    pub fn render(&self, stored: usize, pending: usize, names: usize, not_after: Option<SystemTime>) -> String {
        for (state, count) in [("pending", pending), ("decided", stored - pending.min(stored))] {
            self.stored_requests.get_or_create(&InState { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.held_names.set(i64::try_from(names).unwrap_or(i64::MAX));
        match not_after {
            Some(end) => self.authority_expiry.set(seconds(end)),
            None => self.authority_expiry.clear(),
        }
        let mut text = String::new();
        if encode_registry(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text + "# EOF\n"
    }
}

fn seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
