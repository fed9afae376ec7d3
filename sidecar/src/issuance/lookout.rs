//! One of the requests that wait together looks; the others wait for its end.
//!
//! At its start a pod makes a request for each of its roles at one moment, and as a rule they are judged and signed together.
//! While the API server is busy, a look that comes too early costs it as much as one that does not: so only one of the
//! requests is looked at, and the others when that one has come to its end. None depends on it: each is looked at after twice
//! the time at the latest. With an API server that is not busy looks are cheap, and each request is looked at for itself.

use std::{cell::Cell, future::Future, time::Duration};

use tokio::sync::Notify;

use crate::issuance::schedule;

/// What the requests of one pod share.
#[derive(Debug, Default)]
pub struct Lookout {
    taken: Cell<bool>,
    ended: Notify,
}

/// One request's part in it. Dropped at the request's end, it has the others look.
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
    /// Waits until the next look, which would be due after `pause`; the last one's answer `took` so long, `None` if it was an
    /// error. `sleep` is the clock's. Where the API server is busy and another one looks, it is due when one of the others has
    /// come to its end, or after twice the pause. After an error the next one to wait looks in this one's place.
    pub async fn wait<S: Future<Output = ()>>(
        &mut self,
        pause: Duration,
        took: Option<Duration>,
        sleep: impl FnOnce(Duration) -> S,
    ) {
        if took.is_none() {
            self.step_back();
        } else if took.is_some_and(schedule::is_busy) && !self.looks {
            if self.lookout.taken.replace(true) {
                tokio::select! {
                    () = self.lookout.ended.notified() => {}
                    () = sleep(pause * 2) => {}
                }
                return;
            }
            self.looks = true;
        }
        sleep(pause).await;
    }

    fn step_back(&mut self) {
        if std::mem::take(&mut self.looks) {
            self.lookout.taken.set(false);
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.step_back();
        self.lookout.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        cell::RefCell,
        future::{Ready, pending, ready},
    };

    use futures::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(1);
    /// What answers take.
    const BUSY: Option<Duration> = Some(Duration::from_millis(50));
    const IDLE: Option<Duration> = Some(Duration::from_millis(2));

    /// A sleep that is over at once, and noted.
    fn noting(asked: &RefCell<Vec<Duration>>) -> impl Fn(Duration) -> Ready<()> + Copy {
        |time| {
            asked.borrow_mut().push(time);
            ready(())
        }
    }

    #[test]
    fn one_looks_and_the_others_look_when_it_has_seen() {
        let asked = RefCell::default();
        let over = noting(&asked);
        let lookout = Lookout::default();
        let (mut looker, mut other, mut third) = (lookout.join(), lookout.join(), lookout.join());
        looker.wait(LONG, BUSY, over).now_or_never().unwrap();
        let mut waits = Box::pin(other.wait(LONG, BUSY, |_| pending()));
        assert!(waits.as_mut().now_or_never().is_none());
        looker.wait(LONG / 2, BUSY, over).now_or_never().unwrap();
        assert!(waits.as_mut().now_or_never().is_none(), "it looks on");
        drop(looker);
        waits.as_mut().now_or_never().unwrap();
        drop(waits);
        // Not there yet after all: the turn is its own now, and the third's after it.
        other.wait(LONG, BUSY, over).now_or_never().unwrap();
        assert!(third.wait(LONG, BUSY, |_| pending()).now_or_never().is_none());
        assert_eq!(*asked.borrow(), [LONG, LONG / 2, LONG]);
    }

    #[test]
    fn none_depends_on_the_one_that_looks() {
        let asked = RefCell::default();
        let over = noting(&asked);
        let lookout = Lookout::default();
        let (mut looker, mut other, mut third) = (lookout.join(), lookout.join(), lookout.join());
        looker.wait(LONG, BUSY, over).now_or_never().unwrap();
        other.wait(LONG, BUSY, over).now_or_never().unwrap();
        // It has no answer any more: the other one looks in its place.
        let mut waits = Box::pin(third.wait(LONG, BUSY, |_| pending()));
        assert!(waits.as_mut().now_or_never().is_none());
        looker.wait(LONG, None, over).now_or_never().unwrap();
        assert!(waits.as_mut().now_or_never().is_none(), "an error is no reason to look");
        other.wait(LONG, BUSY, over).now_or_never().unwrap();
        looker.wait(LONG, BUSY, over).now_or_never().unwrap();
        assert_eq!(*asked.borrow(), [LONG, LONG * 2, LONG, LONG, LONG * 2]);
        // Whoever comes to its end, the others look.
        drop(looker);
        waits.as_mut().now_or_never().unwrap();
    }

    #[test]
    fn with_an_api_server_that_is_not_busy_each_looks_for_itself() {
        let lookout = Lookout::default();
        let (mut one, mut two) = (lookout.join(), lookout.join());
        for watcher in [&mut one, &mut two] {
            let asked = RefCell::default();
            watcher.wait(LONG, IDLE, noting(&asked)).now_or_never().unwrap();
            assert_eq!(*asked.borrow(), [LONG]);
        }
    }
}
