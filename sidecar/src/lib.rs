//! The contract of etcd-tls, and the client that keeps it.
//!
//! Three parties must agree on who may be called what: the *requester* in the pod, which builds a certificate signing
//! request, the *approver*, which judges it, and the *signer*, which issues from it. This library is what they agree on;
//! `etcd-tls-webhook` depends on it and writes none of it again.
//!
//! ```text
//! names, role          the words: labels, annotations, signer names, files
//! settings, policy     what a user may say: annotations on a pod, the operator's policy
//! identity             the law: pod -> entitlement, request -> verdict        (pure)
//! csr, certificate     PKCS#10 and X.509, read strictly, built from values    (pure)
//! schedule             when to renew, when to try again                      (pure)
//! store                the files: one verified set, swapped by one rename
//! probe                etcd's liveness probe, where no signal reaches it
//! ```
//!
//! **Invariant.** Everything marked pure takes time and randomness as arguments and does no I/O.

pub mod addresses;
pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod driver;
pub mod etcd;
pub mod fetched;
pub mod handshake;
pub mod host;
pub mod init;
pub mod lock;
pub mod lookout;
pub mod on_host;
pub mod order;
pub mod probe;
pub mod process;
pub mod renew;
mod replace;
pub mod request;
pub mod restart;
pub mod run;
pub mod schedule;
pub mod serving;
pub mod status;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod work;
