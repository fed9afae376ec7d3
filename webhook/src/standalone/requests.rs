//! Requests: read, judged, signed and stored.

pub mod approval;
pub mod auto_approve;
pub mod create;
pub mod intake;
pub mod judge;
pub mod pods;
pub mod rejudge;
pub mod server;
