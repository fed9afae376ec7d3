//! The operating system: processes, clocks, files.

pub mod clock;
pub mod process;
pub mod replace;
