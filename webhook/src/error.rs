//! The error of a subcommand.

/// Ends a subcommand; `main` prints it with all its causes.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
