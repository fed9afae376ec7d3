//! The state of the server.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use etcd_tls_contract::names::ClusterName;
use etcd_tls_telemetry::{
    admin::{self, CheckError, Status},
    listen,
};

use crate::standalone::{
    auth::Authenticator,
    error::ApiError,
    limits::{Quota, RateLimit},
    metrics::Metrics,
    profiles::Profiles,
    requests::{auto_approve::Rule, pods::Entitlements},
    store::Store,
};
use crate::{error::Error, platform::essential::essential};

/// All that a call is answered from.
pub struct Server {
    /// Recognises callers.
    pub auth: Authenticator,
    /// The requests.
    pub store: Store,
    /// The signing profiles.
    pub profiles: Profiles,
    /// The rules of automatic approval.
    pub rules: Vec<Rule>,
    /// The groups that approve by hand.
    pub admin_groups: Vec<String>,
    /// The one cluster whose signer names are served; `None` for any.
    pub cluster: Option<ClusterName>,
    /// Policy, and the pods where there are any: judged as the in-cluster approver does.
    pub entitlements: Entitlements,
    /// Calls a second.
    pub limit: RateLimit,
    /// Lists of many requests at once.
    pub lists: Arc<Quota>,
    /// Watches at once.
    pub watches: Arc<Quota>,
    /// Bodies that are awaited at once.
    pub bodies: Arc<Quota>,
    /// The metrics for the operator.
    pub metrics: Metrics,
}

impl Server {
    /// Checks that requests can be served.
    ///
    /// # Errors
    /// The reason why they cannot.
    pub fn ready(&self) -> Result<(), ApiError> {
        if !self.store.writable() {
            return Err(ApiError::InsufficientStorage("see the log".to_owned()));
        }
        if self.profiles.not_after().is_none_or(|end| end <= SystemTime::now()) {
            return Err(ApiError::Internal("a CA has expired".to_owned()));
        }
        Ok(())
    }

    /// The OpenMetrics text, without those of the process.
    pub fn metrics(&self) -> String {
        let (stored, pending, names) = self
            .store
            .with(|index, _| (index.len(), index.iter().filter(|r| !r.decided()).count(), index.holders().len()));
        self.metrics.render(stored, pending, names, self.profiles.not_after())
    }
}

/// The state of the server on an admin port of its own.
pub struct Probes(pub Arc<Server>);

impl Probes {
    /// Serves `/live`, `/ready` and `/metrics` on `address` for as long as the process lives.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve(self, address: SocketAddr) -> Result<(), Error> {
        let listener = listen::at(address).await.map_err(|e| format!("--admin-address {address}: {e}"))?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin port");
        }
        tokio::spawn(essential("admin port", admin::serve(listener, Arc::new(self))));
        Ok(())
    }
}

impl Status for Probes {
    fn live(&self) -> Result<(), CheckError> {
        Ok(())
    }

    fn ready(&self) -> Result<(), CheckError> {
        self.0.ready().map_err(|error| error.to_string().into())
    }

    fn metrics(&self) -> String {
        self.0.metrics()
    }
}
