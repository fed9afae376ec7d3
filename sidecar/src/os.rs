//! The operating system: processes, clocks, files.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

pub mod clock;
pub mod directory_watch;
pub mod process;
pub mod replace;
pub mod timer;

/// A descriptor that the runtime tells to be readable.
#[allow(
    deprecated,
    reason = "safe for an OwnedFd, whose descriptor is always its own; its replacement is an unsafe function"
)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
