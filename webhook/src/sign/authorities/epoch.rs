//! Times as the records in a Secret hold them: seconds of the Unix epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Before the epoch, 0.
pub(super) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Beyond the year 9999, which no certificate can name, its end.
pub(super) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
}
