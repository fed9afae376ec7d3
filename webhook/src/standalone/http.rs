//! The resource over HTTP, as kubectl and client-go expect it.

pub mod api;
pub mod discovery;
pub mod list;
pub mod openapi;
pub mod route;
pub mod table;
mod trust;
pub mod watch;
