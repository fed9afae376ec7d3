//! Restarts etcd when its trust bundle has changed, which a running etcd does not notice: one member at a time, under a
//! lock, and only while every other member is healthy and quorum stands without this one.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{
    args::{DownwardArgs, PodArgs},
    role::{Domain, Role},
    settings::Reload,
};

/// What a [`Restarter`] is told of its etcd.
#[derive(Clone)]
pub struct Options {
    /// The certificates' directory: `<dir>/<role>/{tls.crt,tls.key,ca.crt}`.
    pub dir: PathBuf,
    /// The roles held.
    pub roles: Vec<Role>,
    /// How etcd may be restarted.
    pub reload: Reload,
    /// Whether a signal reaches etcd.
    pub can_signal: bool,
    /// etcd's client port.
    pub client_url: Option<String>,
    /// etcd's peer port.
    pub peer_url: Option<String>,
    /// The user's own liveness probe, asked by [`Gate::check`].
    pub liveness_url: Option<String>,
    /// Who holds the lock: the pod, by name and uid.
    pub holder: String,
    /// The least time between two restarts of ours: kubelet delays a second one within ten minutes.
    pub pace: Duration,
    /// Where a Lease may be had, when etcd itself gives no lock.
    pub lease: Option<LeaseOptions>,
}

/// The Kubernetes Lease that stands in for etcd's own lock.
#[derive(Clone)]
pub struct LeaseOptions {
    /// A client with the pod's own token.
    pub client: kube::Client,
    /// The pod's namespace.
    pub namespace: String,
    /// `etcd-tls-restart-<cluster>`.
    pub name: String,
}

/// What is known of etcd's trust; sent whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The digest of each domain's bundle, once etcd was seen to have loaded it; a domain that etcd verifies nothing
    /// with (a client's alone) counts as loaded when it is installed.
    pub loaded: BTreeMap<Domain, String>,
    /// Why etcd must be restarted, and why that waits; `None` when all is loaded.
    pub due: Option<String>,
}

/// Answers the liveness probe of `reload: probe`; kept by the admin server under `/etcd`.
pub struct Gate {
    liveness_url: Option<String>,
}

/// Watches what etcd has loaded, and restarts it when it may.
pub struct Restarter {
    options: Options,
}

impl Options {
    /// What the pod's arguments say.
    pub fn of_pod(args: &PodArgs, pod: &DownwardArgs, client: Option<kube::Client>) -> Self {
        let _ = (args, pod, client);
        todo!()
    }
}

impl Restarter {
    /// For one etcd. `registry` gets its metrics.
    pub fn new(options: Options, registry: &mut Registry) -> Self {
        let _ = registry;
        Self { options }
    }

    /// What etcd has loaded. The driver states it on its next request, and requests anew when it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        let _ = &self.options;
        todo!()
    }

    /// The answer to the liveness probe, for the admin server's `/etcd`.
    pub fn gate(&self) -> Arc<Gate> {
        todo!()
    }

    /// Runs until the sender of `installed` is dropped. Each value sent means: a set was installed, look now. The files are
    /// read from the directory.
    pub async fn run(self, installed: watch::Receiver<u64>) {
        let _ = installed;
        todo!()
    }
}

impl Gate {
    /// Whether kubelet shall leave etcd alone: fails only when a restart is due, allowed and locked, and only until etcd has
    /// been restarted; else says what the user's own probe says, and yes where there is none.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), String> {
        let _ = &self.liveness_url;
        todo!()
    }
}
