//! The process's health and metrics on its admin port.

use std::sync::{Mutex, PoisonError};

use etcd_tls_telemetry::admin::{self, CheckError};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The state of the Secret, for the metrics and the probes.
pub(super) struct Status {
    trouble: Mutex<Option<String>>,
    current: Gauge,
    writes: Counter,
    registry: Registry,
}

impl Status {
    /// Nothing was read yet.
    pub(super) fn new(mut registry: Registry) -> Self {
        let (current, writes) = (Gauge::default(), Counter::default());
        let status = Self {
            trouble: Mutex::new(Some("the Secret was not read yet".to_owned())),
            current,
            writes,
            registry: Registry::default(),
        };
        registry.register(
            "secret_current",
            "1 while the Secret of run --secret holds the certificate and the trust bundle on disk",
            status.current.clone(),
        );
        registry.register("secret_writes", "Writes of the Secret of run --secret", status.writes.clone());
        Self { registry, ..status }
    }

    /// The Secret was written.
    pub(super) fn wrote(&self) {
        self.writes.inc();
    }

    /// The outcome of a look; whether it differs from the last one.
    pub(super) fn set(&self, trouble: Option<String>) -> bool {
        self.current.set(i64::from(trouble.is_none()));
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *last != trouble;
        *last = trouble;
        changed
    }
}

impl admin::Status for Status {
    fn live(&self) -> Result<(), CheckError> {
        Ok(())
    }

    fn ready(&self) -> Result<(), CheckError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().map_or(Ok(()), |trouble| Err(trouble.as_str().into()))
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
