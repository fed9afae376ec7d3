//! etcd's liveness probe under `reload: probe`: its time limits, on which admission and the probe program must agree, and the URL that
//! the user's own probe asks.

use std::{convert::Infallible, fmt, str::FromStr, time::Duration};

use crate::{endpoint::Endpoint, invalid_value::InvalidValue};

/// How long the sidecar may take to answer when it does not have to check etcd.
pub const SIDECAR_LIMIT: Duration = Duration::from_secs(2);
/// How long kubelet and the runtime may take to start the program, in seconds. kubelet counts a late probe as failed.
const START_SECONDS: u64 = 15;

/// The URL of the user's own probe, as an argument states it. Admission writes none that cannot be read. An earlier one did, and an
/// image that is raised alone must not keep etcd from its certificates: the probe then does not ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivenessUrl {
    text: String,
    read: Result<Endpoint, InvalidValue>,
}

impl LivenessUrl {
    /// The URL.
    ///
    /// # Errors
    /// It is none.
    pub const fn endpoint(&self) -> Result<&Endpoint, &InvalidValue> {
        self.read.as_ref()
    }
}

impl FromStr for LivenessUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self { text: text.to_owned(), read: text.parse() })
    }
}

impl From<Endpoint> for LivenessUrl {
    fn from(endpoint: Endpoint) -> Self {
        Self { text: endpoint.as_str().to_owned(), read: Ok(endpoint) }
    }
}

impl fmt::Display for LivenessUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The `timeoutSeconds` of a probe that runs the program with `--timeout=<timeout>`: the sidecar asks for that long, or is
/// away for a moment, and then the program asks for that long itself.
pub const fn timeout_seconds(timeout: u64) -> u64 {
    let most = SIDECAR_LIMIT.as_secs().saturating_add(timeout.saturating_mul(2)).saturating_add(START_SECONDS);
    // Kubernetes' integers have 32 bits.
    if most > i32::MAX as u64 { i32::MAX as u64 } else { most }
}
