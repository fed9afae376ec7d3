//! The harness of the integration tests: real processes, a real etcd and, where there is one, a real API server.
//!
//! The tests come in tiers, by what they need; one whose tier the machine cannot run says so in a line of its own:
//!
//! 1. real binaries, real sockets, a real etcd;
//! 2. a real kube-apiserver, started and thrown away by [`apiserver`];
//! 3. a cluster with a node, named by `KUBECONFIG`.
//!
//! Everything here panics with the failure, as a test wants it. A started process is killed when its value is dropped; in a
//! panic its log is shown.

pub mod admission;
pub mod apiserver;
pub mod cert_manager;
pub mod cluster_trust_bundle;
pub mod csr_server;
pub mod downward;
pub mod etcd;
pub mod etcd_client;
pub mod etcd_supervisor;
pub mod faults;
pub mod fuzz;
pub mod in_process_members;
pub mod installation;
pub mod live;
pub mod liveness_probe;
pub mod local_pod;
pub mod machine_clock;
pub mod node;
pub mod pages;
pub mod pki;
pub mod policy;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod prompt;
pub mod promtool;
pub mod relay;
pub mod revocation;
pub mod secret_agent;
pub mod self_hosted;
pub mod sidecar_cluster;
pub mod signer;
pub mod temp;
pub mod tier;
pub mod truths;
pub mod workload;

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Polls `attempt` until it gives a value: every 50 ms at first, every 200 ms after some seconds. Many attempts start a process.
///
/// # Panics
/// After `limit`, with `what` and the last error.
pub async fn eventually<T, E, F>(what: &str, limit: Duration, mut attempt: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(e) if start.elapsed() > limit => panic!("{what}: not within {limit:?}: {e}"),
            Err(_) => {
                let pause = (start.elapsed() / 40).clamp(Duration::from_millis(50), Duration::from_millis(200));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Prints a line that the test runner does not capture.
pub fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The repository's root, where `manifests/` is.
pub fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace member has a parent").to_owned()
}

/// Makes aws-lc-rs the process's TLS provider; may be called again.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
