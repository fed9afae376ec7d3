//! What `sign` knows of the cluster: pods, Services, the objects it keeps, and what it issued last.

pub(in crate::sign) mod latest;
pub(in crate::sign) mod objects;
pub(in crate::sign) mod pods;
pub(in crate::sign) mod services;
pub(in crate::sign) mod watches;
