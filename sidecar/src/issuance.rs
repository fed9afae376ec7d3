//! One certificate: when it is due, the request that is made for it, and what comes of that.

pub mod awaited;
pub mod changes;
pub mod flow;
pub mod obtain;
pub mod others;
pub mod renewal;
pub mod schedule;
