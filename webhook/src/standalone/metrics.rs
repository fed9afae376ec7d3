//! Metrics: calls by code, requests by outcome, stored requests.

use std::sync::atomic::{AtomicU64, Ordering};

use etcd_tls_telemetry::admin::with_process;

/// Counters since the start; the labels are of fixed sets.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By class of code, 1xx to 5xx.
    calls: [AtomicU64; 5],
    refused: AtomicU64,
    issued: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
}

impl Metrics {
    /// Counts a call.
    pub fn call(&self, code: u16) {
        let class = usize::from(code / 100).clamp(1, 5) - 1;
        self.calls[class].fetch_add(1, Ordering::Relaxed);
        if matches!(code, 401 | 403 | 429) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts what became of a request.
    pub fn outcome(&self, issued: bool, denied: bool, failed: bool) {
        for (is, counter) in [(issued, &self.issued), (denied, &self.denied), (failed, &self.failed)] {
            counter.fetch_add(u64::from(is), Ordering::Relaxed);
        }
    }

    /// The OpenMetrics text.
    pub fn render(&self, stored: usize, pending: usize, names: usize) -> String {
        use std::fmt::Write as _;
        let mut text = String::from("# TYPE etcd_tls_standalone_calls counter\n");
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a String does not fail.
        for (class, counter) in (1..).zip(&self.calls) {
            let _ = writeln!(text, "etcd_tls_standalone_calls_total{{code=\"{class}xx\"}} {}", read(counter));
        }
        let _ = writeln!(
            text,
            "# TYPE etcd_tls_standalone_refused counter\netcd_tls_standalone_refused_total {}",
            read(&self.refused)
        );
        text.push_str("# TYPE etcd_tls_standalone_requests counter\n");
        for (outcome, counter) in [("issued", &self.issued), ("denied", &self.denied), ("failed", &self.failed)] {
            let _ = writeln!(text, "etcd_tls_standalone_requests_total{{outcome=\"{outcome}\"}} {}", read(counter));
        }
        text.push_str("# TYPE etcd_tls_standalone_stored_requests gauge\n");
        let _ = writeln!(text, "etcd_tls_standalone_stored_requests{{state=\"pending\"}} {pending}");
        let _ =
            writeln!(text, "etcd_tls_standalone_stored_requests{{state=\"decided\"}} {}", stored - pending.min(stored));
        text.push_str("# TYPE etcd_tls_standalone_held_names gauge\n");
        let _ = writeln!(text, "etcd_tls_standalone_held_names {names}");
        with_process(&text)
    }
}
