//! Admission, approver, signer and standalone signer.
//!
//! One binary, one subcommand for each process, because each process has other rights. None of them holds what another
//! one needs: the process that answers admission has no credential for the API server at all.

pub mod admit;
pub mod approve;
pub mod authority;
pub mod cli;
pub mod client;
pub mod controller;
pub mod csr_watch;
pub mod der;
pub mod error;
pub mod events;
pub mod facts;
pub mod file_watch;
pub mod health;
pub mod inject;
pub mod injection;
pub mod issue;
pub mod issue_command;
pub mod lease;
pub mod namespace_watch;
pub mod policy_watch;
pub mod prove;
mod review;
pub mod rollover;
pub mod shutdown;
pub mod sign;
pub mod standalone;
pub mod tls;
