//! A program without the feature `traces`: it exports nothing, and says so where it is asked to.

use std::time::SystemTime;

use super::{Context, Reconciliation};

/// No export.
#[derive(Clone, Debug)]
pub struct Traces;

impl Traces {
    /// Warns where the environment names a collector.
    pub fn start(_process: &'static str) -> Self {
        if super::collector().is_some() {
            tracing::warn!(
                "the environment names an OpenTelemetry collector, and this program exports no traces: it is built without \
                 the feature traces (cargo build --features traces)"
            );
        }
        Self
    }

    /// True if spans are exported.
    pub const fn is_on(&self) -> bool {
        false
    }

    /// A review was answered.
    pub const fn admitted(&self, _context: Context, _pod: &str, _verdict: &'static str, _began: SystemTime) {}

    /// A controller has reconciled a request.
    pub const fn reconciled(&self, _reconciliation: &Reconciliation<'_>, _trouble: Option<&dyn std::error::Error>) {}
}
