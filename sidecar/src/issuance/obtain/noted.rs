//! Which failed calls are worth a line of the log: a cause once, not with each attempt.

use std::time::Duration;

use tracing::Level;

/// The right to request comes with opting in, a moment after the pod. A 403 that lasts longer needs somebody.
const RIGHT_COMES: Duration = Duration::from_secs(30);

/// The cause that was logged last, and how.
#[derive(Debug, Default)]
pub(super) struct Noted(Option<(String, Level)>);

impl Noted {
    /// The level at which `cause` is logged, the HTTP status `code` of a request that has been tried for `elapsed`; `None`: it was
    /// logged before.
    pub(super) fn next(&mut self, cause: &str, code: Option<u16>, elapsed: Duration) -> Option<Level> {
        let level = if code == Some(403) && elapsed < RIGHT_COMES { Level::INFO } else { Level::WARN };
        let known = self.0.as_ref().is_some_and(|(last, at)| last == cause && *at == level);
        if known {
            return None;
        }
        self.0 = Some((cause.to_owned(), level));
        Some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_403_is_a_warning_when_it_lasts() {
        let seconds = Duration::from_secs;
        let mut noted = Noted::default();
        assert_eq!(noted.next("forbidden", Some(403), seconds(0)), Some(Level::INFO));
        assert_eq!(noted.next("forbidden", Some(403), seconds(29)), None);
        assert_eq!(noted.next("forbidden", Some(403), seconds(30)), Some(Level::WARN));
        assert_eq!(noted.next("forbidden", Some(403), seconds(90)), None);
    }

    #[test]
    fn another_failure_is_a_warning_at_once_and_said_once() {
        let mut noted = Noted::default();
        assert_eq!(noted.next("timeout", None, Duration::ZERO), Some(Level::WARN));
        assert_eq!(noted.next("timeout", None, Duration::from_secs(5)), None);
        assert_eq!(noted.next("busy", Some(503), Duration::from_secs(6)), Some(Level::WARN));
    }
}
