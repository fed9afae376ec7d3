//! Shared parts of every process: TLS, file watches, the admin port, shutdown signals.

pub(crate) mod essential;
pub mod file_watch;
pub mod health;
pub mod shutdown;
pub mod tls;
