//! `run --secret`: keeps one Secret at the certificate of a role, for charts and operators that mount Secrets only.
//!
//! The pod's own sidecar requests, verifies and renews. This process reads what it installed, and writes it to the Secret as
//! `tls.crt`, `tls.key` and `ca.crt`: one PUT with the resourceVersion that was read.

pub mod decide;
pub mod keep;
mod status;
