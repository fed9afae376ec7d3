//! A certificate authority and what it issues, with no I/O but that of the command `issue`.

pub mod authority;
pub mod command;
pub mod crl;
pub mod der;
pub mod issue;
pub mod prove;
