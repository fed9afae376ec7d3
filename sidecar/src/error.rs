//! The error that ends a subcommand.

use etcd_tls_contract::{invalid_value::InvalidValue, role::Role};
use etcd_tls_telemetry::exit::Exit;

use crate::{issuance::obtain::Failure, kube::ApiError, probe::install::InstallError, store::StoreError};

/// Why the process ends, as its exit code says it too (sysexits).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Roles that got no certificate.
    #[error("{}", lines(.0))]
    Requests(Vec<(Role, Failure)>),
    /// The directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The API server cannot even be looked for.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The arguments do not make sense.
    #[error("{0}")]
    Arguments(InvalidValue),
    /// The admin port.
    #[error(
        "admin port {port}: {source}; pods on the host's network need a port of their own (etcd-tls.dev/admin-port)"
    )]
    Admin {
        /// The port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// etcd's liveness probe.
    #[error(transparent)]
    Probe(#[from] InstallError),
    /// The operating system.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// SIGTERM or SIGINT before the work was done.
    #[error("told to stop before the certificates were there")]
    Stopped,
}

fn lines(failures: &[(Role, Failure)]) -> String {
    failures.iter().map(|(role, failure)| format!("role {role}: {failure}")).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Requests(failures) => match failures.first() {
                Some((_, Failure::Denied { .. })) => Exit::Denied,
                Some((_, Failure::Timeout { .. } | Failure::Deleted { .. })) => Exit::TryAgain,
                Some((_, Failure::Store(_))) => Exit::InputOutput,
                _ => Exit::Unavailable,
            },
            Self::Store(StoreError::Locked(_)) => Exit::TryAgain,
            Self::Store(_) => Exit::InputOutput,
            Self::Api(ApiError::Access(_)) | Self::Arguments(_) => Exit::Configuration,
            Self::Api(_) => Exit::Unavailable,
            Self::Admin { .. } => Exit::Unavailable,
            Self::System(_) => Exit::System,
            Self::Probe(_) => Exit::MissingFile,
            Self::Stopped => Exit::Stopped,
        }
    }
}
