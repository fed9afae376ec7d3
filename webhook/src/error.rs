//! The error of a subcommand.

use std::{path::Path, time::Duration};

/// Ends a subcommand; `main` prints it with all its causes.
///
/// It is boxed because no caller handles it: a function returns it only to the `run` of a subcommand. Errors that are handled are
/// types of their modules. They stay in the chain of causes, where [`crate::exit::exit`] finds the exit code.
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

/// An error of a file or folder that it does not name itself.
#[derive(Debug, thiserror::Error)]
#[error("{name}")]
pub struct OfFile {
    name: String,
    #[source]
    cause: Error,
}

impl OfFile {
    /// Names the file at `path`.
    pub fn new(path: &Path, cause: impl Into<Error>) -> Self {
        Self { name: path.display().to_string(), cause: cause.into() }
    }
}

/// An error with its causes. A cause whose words end those before it is not repeated.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
