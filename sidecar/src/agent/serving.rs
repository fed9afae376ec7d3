//! After a renewal: whether etcd's own ports serve the new certificate.

use std::time::Duration;

use etcd_tls_contract::{args::PodArgs, endpoint::Endpoint, role::Role};

use crate::{
    etcd::handshake::{HandshakeError, probe},
    os::clock::Clock,
    store::Entry,
};

/// How long a port may take to serve a new certificate. etcd does at its next handshake.
pub const GRACE: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A port of etcd that serves a role's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `client`, `peer` or `metrics`.
    pub name: &'static str,
    /// The role whose certificate it serves.
    pub role: Role,
    /// Where it is.
    pub endpoint: Endpoint,
}

/// The state of a port within [`GRACE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It serves the certificate.
    Served,
    /// It serves another one: this serial.
    Other(String),
    /// It was never reached: etcd is not up. When it comes up it reads the new files.
    Unreachable(String),
}

impl PortState {
    /// One word, for a metric.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Other(_) => "not_served",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// The ports that the arguments name, as far as they speak TLS.
pub fn ports(args: &PodArgs) -> Vec<Port> {
    let named = [
        ("client", Role::Server, &args.client_url),
        ("peer", Role::Peer, &args.peer_url),
        // etcd's metrics listener serves the client port's certificate.
        ("metrics", Role::Server, &args.metrics_url),
    ];
    let mut ports = Vec::new();
    for (name, role, url) in named {
        match url {
            Some(endpoint) if endpoint.tls => ports.push(Port { name, role, endpoint: endpoint.clone() }),
            Some(endpoint) => {
                tracing::warn!(port = name, %endpoint, "a port without TLS is not checked after renewals");
            }
            None => {}
        }
    }
    ports
}

/// Looks at `port` until it serves the certificate of `entry`, for [`GRACE`] at the longest.
pub async fn look<C: Clock>(port: &Port, entry: &Entry, clock: &C) -> PortState {
    let began = clock.elapsed();
    let mut pause = FIRST_PAUSE;
    let mut seen = PortState::Unreachable("not asked".to_owned());
    loop {
        match probe(&port.endpoint, Some((entry.chain_pem(), entry.key_pem())), PROBE_TIMEOUT).await {
            Ok(served) if served.serial == entry.chain().serial => return PortState::Served,
            Ok(served) => seen = PortState::Other(served.serial),
            // One that served another certificate before, and now is away, is restarting.
            Err(error @ (HandshakeError::Connect { .. } | HandshakeError::Timeout { .. })) => {
                seen = PortState::Unreachable(error.to_string());
            }
            Err(error) => {
                if !matches!(seen, PortState::Other(_)) {
                    seen = PortState::Unreachable(error.to_string());
                }
            }
        }
        if clock.elapsed().saturating_sub(began) + pause > GRACE {
            return seen;
        }
        clock.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
