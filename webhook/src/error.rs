//! The error of a subcommand, and how the program ends with it.

use std::time::Duration;

use etcd_tls_telemetry::exit::Exit;

use crate::controller::client::{ClientError, RequestError};

/// Ends a subcommand; `main` prints it with all its causes.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Not all is well: for scripts, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWell {
    /// Some are failing or need attention.
    #[error("{failing} of {all} {what} failing, {attention} to look at, {unknown} unknown")]
    Attention {
        /// The counted objects: `pods`, `checks`.
        what: &'static str,
        /// Those that are failing.
        failing: usize,
        /// Those that somebody should look at.
        attention: usize,
        /// The undetermined ones.
        unknown: usize,
        /// All.
        all: usize,
    },
    /// Nothing is known to be wrong, but not everything could be seen.
    #[error("{unknown} of {all} {what} unknown")]
    Unknown {
        /// The counted objects.
        what: &'static str,
        /// The undetermined ones.
        unknown: usize,
        /// All.
        all: usize,
    },
}

/// The work is done, and something about it could not be seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotSeen(pub String);

/// The awaited state has not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not done within {} s: {}", .after.as_secs(), .pending.join("; "))]
pub struct NotInTime {
    /// The time given.
    pub after: Duration,
    /// The open items, with their known facts.
    pub pending: Vec<String>,
}

/// The exit code for `error`, by the first of its causes that has one of its own.
pub fn exit(error: &(dyn std::error::Error + 'static)) -> Exit {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(request) = error.downcast_ref::<RequestError>() {
            return match request.code() {
                Some(401 | 403) => Exit::Denied,
                _ => Exit::Unavailable,
            };
        }
        if let Some(not_well) = error.downcast_ref::<NotWell>() {
            return match not_well {
                NotWell::Attention { .. } => Exit::Attention,
                NotWell::Unknown { .. } => Exit::Unknown,
            };
        }
        if error.is::<NotSeen>() {
            return Exit::Unknown;
        }
        if error.is::<NotInTime>() {
            return Exit::TryAgain;
        }
        if error.is::<ClientError>() {
            return Exit::Configuration;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::AddrInUse | std::io::ErrorKind::AddrNotAvailable => Exit::Unavailable,
                _ => Exit::InputOutput,
            };
        }
        cause = error.source();
    }
    Exit::Failure
}

/// An error with its causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error with a cause.
    #[derive(Debug, thiserror::Error)]
    #[error("above")]
    struct Above(#[source] Error);

    #[test]
    fn the_first_cause_with_a_code_of_its_own_decides() {
        let io = |kind: std::io::ErrorKind| Error::from(std::io::Error::from(kind));
        assert_eq!(exit(&Above("text".into())), Exit::Failure);
        assert_eq!(exit(&Above(io(std::io::ErrorKind::NotFound))), Exit::InputOutput);
        assert_eq!(exit(&Above(io(std::io::ErrorKind::AddrInUse))), Exit::Unavailable);
        assert_eq!(exit(&Above(Box::new(RequestError::Timeout))), Exit::Unavailable);
        assert_eq!(exit(&Above(Box::new(NotSeen("text".to_owned())))), Exit::Unknown);
        assert_eq!(exit(&NotInTime { after: Duration::ZERO, pending: Vec::new() }), Exit::TryAgain);
    }
}
