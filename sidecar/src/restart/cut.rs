//! An operator's request to end all connections, by a restart of etcd. Pure.

use std::time::Duration;

/// How exactly it is known when a process started.
const SLACK: Duration = Duration::from_secs(2);

/// The last request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// Its id, and when it came; since the system's start.
    asked: Option<(String, Duration)>,
    /// The last one that was carried out.
    done: Option<String>,
}

impl Cut {
    /// Takes note of the request `id`, at `now`. One that is known is none.
    pub(super) fn ask(&mut self, id: &str, now: Duration) {
        let known = self.asked.as_ref().is_some_and(|(asked, _)| asked == id) || self.done.as_deref() == Some(id);
        if !known {
            self.asked = Some((id.to_owned(), now));
        }
    }

    /// True if etcd, which `started` at a time where that is known, is to be restarted for it. One that started after the
    /// request has no connection of before.
    pub(super) fn is_due(&mut self, started: Option<Duration>) -> bool {
        let since = started.is_some_and(|started| self.asked.as_ref().is_some_and(|(_, at)| started > *at + SLACK));
        if since {
            self.carried_out(self.asked());
        }
        self.asked.is_some()
    }

    /// The id of the request that waits.
    pub(super) fn asked(&self) -> Option<String> {
        self.asked.as_ref().map(|(id, _)| id.clone())
    }

    /// etcd was restarted for what waited before: the request `before`. One that came meanwhile waits on: connections may be older.
    pub(super) fn carried_out(&mut self, before: Option<String>) {
        if before.is_some() && self.asked() == before {
            (self.asked, self.done) = (None, before);
        }
    }

    /// The last one that was carried out.
    pub(super) fn done(&self) -> Option<&str> {
        self.done.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_carried_out_once() {
        let at = Duration::from_secs;
        let mut cut = Cut::default();
        assert!(!cut.is_due(Some(at(5))));
        cut.ask("a", at(100));
        assert!(cut.is_due(Some(at(5))) && cut.is_due(None), "etcd is older, or its age is not known");
        cut.carried_out(cut.asked());
        assert!(!cut.is_due(Some(at(5))) && cut.done() == Some("a"));
        cut.ask("a", at(200));
        assert!(!cut.is_due(Some(at(5))), "the same request");
        cut.ask("b", at(200));
        assert!(!cut.is_due(Some(at(210))) && cut.done() == Some("b"), "etcd was restarted for another reason");
    }

    #[test]
    fn a_request_that_comes_during_a_restart_waits_for_another() {
        let at = Duration::from_secs;
        let mut cut = Cut::default();
        for first in [None, Some("a")] {
            first.inspect(|id| cut.ask(id, at(100)));
            let before = cut.asked();
            cut.ask("b", at(110));
            cut.carried_out(before);
            assert!(cut.is_due(Some(at(109))) && cut.done().is_none(), "{first:?}: etcd started before it");
            cut = Cut::default();
        }
    }
}
