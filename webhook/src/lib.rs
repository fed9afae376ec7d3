//! Admission, approver, signer and standalone signer.
//!
//! One binary, one subcommand for each process, because each process has other rights. None of them holds what another
//! one needs: the process that answers admission has no credential for the API server at all.

pub mod admit;
pub mod cli;
pub mod inject;
pub mod tls;

pub mod authority;
pub mod issue;
