//! What `sign` knows of the cluster: pods, Services, and the objects it keeps.

pub(in crate::sign) mod objects;
pub(in crate::sign) mod pods;
pub(in crate::sign) mod watch;
