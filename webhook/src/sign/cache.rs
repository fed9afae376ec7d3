//! The state of the cluster in `sign`: pods, Services, and the objects it keeps.

pub(in crate::sign) mod objects;
pub(in crate::sign) mod pods;
pub(in crate::sign) mod watch;
