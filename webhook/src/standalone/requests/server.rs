//! The state of the server: everything that a call is answered from.

use std::sync::Arc;

use etcd_tls_contract::cluster::ClusterName;
use tokio::sync::Semaphore;

use crate::standalone::{
    auth::Authenticator,
    limits::RateLimit,
    metrics::Metrics,
    profiles::Profiles,
    requests::{auto_approve::Rule, pods::Law},
    store::Store,
};

/// Watches at once; each holds a connection.
pub const MAX_WATCHES: usize = 1_000;

/// All that a call is answered from.
pub struct Server {
    /// Recognises callers.
    pub auth: Authenticator,
    /// The requests.
    pub store: Store,
    /// What is signed, and by whom.
    pub profiles: Profiles,
    /// What is approved without a person.
    pub rules: Vec<Rule>,
    /// Who approves by hand.
    pub admin_groups: Vec<String>,
    /// The one cluster whose signer names are served; `None` for any.
    pub cluster: Option<ClusterName>,
    /// Policy, and the pods where there are any: judged as the in-cluster approver does.
    pub law: Law,
    /// Calls a second.
    pub limit: RateLimit,
    /// Watches at once.
    pub watches: Arc<Semaphore>,
    /// What the operator is told.
    pub metrics: Metrics,
}
