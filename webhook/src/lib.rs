//! Admission, approver, signer and standalone signer.
//!
//! One binary, one subcommand for each process, because each process has other rights. None of them holds what another
//! one needs: the process that answers admission has no credential for the API server at all.

pub mod admit;
pub mod approve;
pub mod ca;
pub mod check;
pub mod cli;
pub mod controller;
pub mod error;
pub mod exit;
pub mod inject;
pub mod injected;
pub mod injection;
pub mod operator;
pub mod pages;
pub mod platform;
pub mod renew;
pub mod revoke;
pub mod rollover;
mod screen;
pub mod sign;
pub mod standalone;
pub mod status;
pub mod traces;
