//! What keeps certificates fresh: who asks (a pod or a host), the loop that renews, and what it shows of itself.

pub mod addresses;
pub(crate) mod belief;
pub mod driver;
pub mod fetched;
pub mod first;
pub mod health;
mod held;
pub mod host;
pub mod pushed;
pub mod renew;
mod revocation;
pub mod serving;
pub mod subject;
pub mod trust;
pub mod work;
