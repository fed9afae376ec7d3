//! The client of etcd-tls: requests, verifies, stores and renews the certificates of an etcd pod or host, and restarts its
//! etcd for a new CA.
//!
//! ```text
//! commands     init, run, request
//! agent        who asks, the loop that renews, what it shows of itself
//! issuance     one certificate: due, requested, received
//! store        the files: one verified set, swapped by one rename
//! restart      observe, decide, act; under a lock, never without quorum
//! secret       run --secret: one Secret, kept at the certificate of a role
//! probe        etcd's liveness probe, where no signal reaches it
//! kube, etcd   the API server and etcd, over HTTP
//! os           processes, clocks, files
//! ```
//!
//! The contract ([`etcd_tls_contract`]) defines what may be requested.

pub mod agent;
pub mod cli;
pub mod commands;
pub mod error;
pub mod etcd;
mod http;
pub mod issuance;
pub mod kube;
pub mod os;
pub mod probe;
pub mod restart;
pub mod secret;
pub mod store;
#[cfg(test)]
mod testing;
