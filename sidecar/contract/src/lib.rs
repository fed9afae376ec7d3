//! The contract of etcd-tls: the policy of who may be called what, and the words in which requester, approver and signer
//! speak of it.
//!
//! Three parties must agree: the *requester* in the pod, which builds a certificate signing request; the *approver*, which
//! judges it; and the *signer*, which judges it again and issues from it. All three use this crate.
//!
//! ```text
//! names, role, cluster, san, key, duration    the words: labels, annotations, signer names, files
//! settings, renew, policy, args               what a user may say: annotations, the operator's policy, arguments
//! identity                                    the rules: pod -> entitlement, request -> verdict
//! csr, certificate, crl                       PKCS#10 and X.509, read strictly, built from values
//! life, liveness                              times that both sides count by
//! in_force, trusts                            which bundles are in force, and which one etcd has loaded
//! ```
//!
//! **Invariant.** No I/O, no clock and no network: the time and randomness are arguments. The one exception: a private
//! key is generated from the operating system's randomness.

pub mod args;
pub mod certificate;
pub mod crl;
pub mod csr;
pub mod duration;
pub mod encoding;
pub mod endpoint;
pub mod identity;
pub mod in_force;
pub mod invalid_value;
pub mod key;
pub mod life;
pub mod liveness;
pub mod names;
pub mod policy;
pub mod renew;
pub mod role;
pub mod san;
pub mod settings;
mod text;
pub mod trusts;
