//! One of the requests that wait together looks; the others wait for what it sees.
//!
//! A pod makes a request for each of its roles at one moment, and they are judged and signed together. While the API server
//! is busy, a look that comes too early costs it what a write costs: so only one of them looks, and the others look when it
//! has come to its end. None depends on it: each looks for itself after twice the time that it would have waited.

use std::{cell::Cell, future::Future, time::Duration};

use tokio::sync::Notify;

/// Pauses from which on the others wait. With an API server that is not busy, looks are cheap, and a wait for another one's
/// would be longer than its own.
const WORTH_IT: Duration = Duration::from_millis(40);

/// What the requests of one pod share.
#[derive(Debug, Default)]
pub struct Lookout {
    taken: Cell<bool>,
    free: Notify,
}

/// One request's part in it. Dropped, it is another one's turn to look.
#[derive(Debug)]
pub struct Watcher<'a> {
    lookout: &'a Lookout,
    looks: bool,
}

impl Lookout {
    /// For one request that waits.
    pub const fn join(&self) -> Watcher<'_> {
        Watcher { lookout: self, looks: false }
    }
}

impl Watcher<'_> {
    /// Waits until the next look, which would be due after `pause`; `sleep` is the clock's. Others wait for this one's end
    /// from now on, unless one of them looks already.
    pub async fn wait<S: Future<Output = ()>>(&mut self, pause: Duration, sleep: impl FnOnce(Duration) -> S) {
        if pause < WORTH_IT {
            return sleep(pause).await;
        }
        if !self.looks && self.lookout.taken.replace(true) {
            tokio::select! {
                () = self.lookout.free.notified() => {}
                () = sleep(pause * 2) => {}
            }
            return;
        }
        self.looks = true;
        sleep(pause).await;
    }

    /// Lets another one look.
    pub fn step_back(&mut self) {
        if std::mem::take(&mut self.looks) {
            self.lookout.taken.set(false);
            self.lookout.free.notify_waiters();
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.step_back();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        cell::RefCell,
        future::{pending, ready},
    };

    use futures::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    #[test]
    fn one_looks_and_the_others_look_when_it_has_seen() {
        let asked = RefCell::new(Vec::new());
        let over = |time| {
            asked.borrow_mut().push(time);
            ready(())
        };
        let lookout = Lookout::default();
        let (mut looker, mut other, mut third) = (lookout.join(), lookout.join(), lookout.join());
        looker.wait(LONG, over).now_or_never().unwrap();
        let mut waits = Box::pin(other.wait(LONG, |_| pending()));
        assert!(waits.as_mut().now_or_never().is_none());
        looker.wait(LONG / 2, over).now_or_never().unwrap();
        assert!(waits.as_mut().now_or_never().is_none(), "it looks on");
        drop(looker);
        waits.as_mut().now_or_never().unwrap();
        drop(waits);
        // Not there yet after all: the turn is its own now, and the third's after it.
        other.wait(LONG, over).now_or_never().unwrap();
        assert!(third.wait(LONG, |_| pending()).now_or_never().is_none());
        assert_eq!(*asked.borrow(), [LONG, LONG / 2, LONG]);
    }

    #[test]
    fn none_depends_on_the_one_that_looks() {
        let asked = RefCell::new(Vec::new());
        let over = |time| {
            asked.borrow_mut().push(time);
            ready(())
        };
        let lookout = Lookout::default();
        let (mut looker, mut other) = (lookout.join(), lookout.join());
        looker.wait(LONG, over).now_or_never().unwrap();
        other.wait(LONG, over).now_or_never().unwrap();
        // It has no answer any more: the other one looks in its place.
        looker.step_back();
        other.wait(LONG, over).now_or_never().unwrap();
        looker.wait(LONG, over).now_or_never().unwrap();
        assert_eq!(*asked.borrow(), [LONG, LONG * 2, LONG, LONG * 2]);
    }

    #[test]
    fn short_pauses_are_everybodys_own() {
        let lookout = Lookout::default();
        let (mut one, mut two) = (lookout.join(), lookout.join());
        let short = Duration::from_millis(10);
        for watcher in [&mut one, &mut two] {
            let asked = Cell::default();
            let over = |time| {
                asked.set(time);
                ready(())
            };
            watcher.wait(short, over).now_or_never().unwrap();
            assert_eq!(asked.get(), short);
        }
    }
}
