//! The time limits of etcd's liveness probe under `reload: probe`. Admission and the probe program must agree on them.

use std::time::Duration;

/// How long the sidecar may take to answer when it does not have to check etcd.
pub const SIDECAR_LIMIT: Duration = Duration::from_secs(2);
/// How long kubelet and the runtime may take to start the program, in seconds. kubelet counts a late probe as failed.
const START_SECONDS: u64 = 15;

/// The `timeoutSeconds` of a probe that runs the program with `--timeout=<timeout>`: the sidecar asks for that long, or is
/// away for a moment, and then the program asks for that long itself.
pub const fn timeout_seconds(timeout: u64) -> u64 {
    let most = SIDECAR_LIMIT.as_secs().saturating_add(timeout.saturating_mul(2)).saturating_add(START_SECONDS);
    // Kubernetes' integers have 32 bits.
    if most > i32::MAX as u64 { i32::MAX as u64 } else { most }
}
