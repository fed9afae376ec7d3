//! The exit code of the program.

use etcd_tls_telemetry::exit::Exit;

use crate::{
    controller::client::{ApiServerError, ClientError},
    error::{NotInTime, NotSeen, NotWell},
    renew::RenewError,
};

/// The exit code for `error`, by the first of its causes that has one of its own.
pub fn exit(error: &(dyn std::error::Error + 'static)) -> Exit {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(request) = error.downcast_ref::<ApiServerError>() {
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
        if let Some(RenewError::Unseen { denied: true, .. }) = error.downcast_ref::<RenewError>() {
            return Exit::Denied;
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

/// True if the reader of the output has gone, such as `head`: there is nothing to say to anybody.
pub fn nobody_reads(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // A connection can break, too.
        if error.is::<ApiServerError>() {
            return false;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::BrokenPipe;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

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
        assert_eq!(exit(&Above(Box::new(ApiServerError::Timeout))), Exit::Unavailable);
        assert_eq!(exit(&Above(Box::new(NotSeen("text".to_owned())))), Exit::Unknown);
        let of_file = crate::error::OfFile::new("f".as_ref(), std::io::Error::from(std::io::ErrorKind::NotFound));
        let unseen =
            |denied| RenewError::Unseen { pod: "p".to_owned(), reason: String::new(), next: String::new(), denied };
        assert_eq!((exit(&unseen(true)), exit(&unseen(false))), (Exit::Denied, Exit::Failure));
        assert_eq!(exit(&of_file), Exit::InputOutput);
        assert!(nobody_reads(&Above(io(std::io::ErrorKind::BrokenPipe))));
        assert!(!nobody_reads(&of_file) && !nobody_reads(&Above("text".into())));
        assert_eq!(exit(&NotInTime { after: Duration::ZERO, pending: Vec::new() }), Exit::TryAgain);
    }
}
