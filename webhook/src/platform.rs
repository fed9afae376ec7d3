//! What every process stands on: TLS, files that change, the admin port, the signals to end.

pub(crate) mod essential;
pub mod file_watch;
pub mod health;
pub mod shutdown;
pub mod tls;
