//! The memory of the records, as it is when the metrics are read.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::sign::authorities::memory::Records;

/// See the module.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) records: Arc<Records>,
    /// `--certificates-per-pod`.
    pub(super) most: u16,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: usize| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
        };
        gauge(
            "record_bytes",
            "Memory of the records of valid certificates, about; --record-memory is its bound.",
            self.records.taken(),
        )?;
        gauge(
            "certificates_per_pod_now",
            "Valid certificates of one CA that a pod or host may hold now: fewer than --certificates-per-pod while little memory is left for the records.",
            usize::from(self.records.per_pod(self.most)),
        )
    }
}
