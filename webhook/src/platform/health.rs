//! The admin port of a controller process: ready when all its conditions are met, and its metrics.

use std::sync::{Arc, Mutex, PoisonError};

use crate::platform::essential::essential;
use etcd_tls_telemetry::{
    admin::{self, CheckError, Status},
    listen,
};
use prometheus_client::{encoding::text::encode_registry, registry::Registry};

type Check = Box<dyn Fn() -> Result<(), CheckError> + Send + Sync>;

/// See the module.
#[derive(Default)]
pub struct Health {
    registry: Mutex<Registry>,
    checks: Mutex<Vec<Check>>,
}

impl Health {
    /// With the metrics of `registry`, ready at once.
    pub fn new(registry: Registry) -> Self {
        Self { registry: Mutex::new(registry), checks: Mutex::default() }
    }

    /// Is ready only while `check` passes; its error says what is missing.
    pub fn require<E: Into<CheckError>>(&self, check: impl Fn() -> Result<(), E> + Send + Sync + 'static) {
        let check = move || check().map_err(Into::into);
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(check));
    }

    /// Serves `/live`, `/ready` and `/metrics` on `address` for as long as the process lives.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve(self: Arc<Self>, address: std::net::SocketAddr) -> Result<(), HealthError> {
        let listener = listen::at(address).await.map_err(|source| HealthError { address, source })?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin port");
        }
        tokio::spawn(essential("admin port", admin::serve(listener, self)));
        Ok(())
    }
}

/// The admin port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the admin address {address}: {source}; choose another one with --admin-address")]
pub struct HealthError {
    address: std::net::SocketAddr,
    source: std::io::Error,
}

impl Status for Health {
    /// A process whose work ends, ends; one that hangs is not told apart from one that waits for the API server, which a
    /// restart would not bring back.
    fn live(&self) -> Result<(), CheckError> {
        Ok(())
    }

    fn ready(&self) -> Result<(), CheckError> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<String> = checks.iter().filter_map(|check| check().err()).map(|e| e.to_string()).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ").into()) }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode_registry(&mut text, &registry).is_err() {
            text.clear();
        }
        text + "# EOF\n"
    }
}
