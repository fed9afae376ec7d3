//! The subcommands.

pub mod init;
pub mod on_host;
pub mod request;
pub mod run;
