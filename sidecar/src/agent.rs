//! Renewal of certificates: the subject (a pod or a host), the loop that renews, and its metrics and health.

pub mod addresses;
mod answered;
pub(crate) mod belief;
pub mod driver;
pub mod fetched;
pub mod first;
pub mod health;
mod held;
pub mod host;
pub mod projected;
pub mod pushed;
pub mod renew;
mod revocation;
pub mod serving;
pub mod subject;
pub mod trust;
pub mod work;
