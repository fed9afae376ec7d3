//! Pending requests, judged again when the pods change.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time;
use tracing::Instrument as _;

use crate::standalone::{
    auth::User,
    requests::{approval, intake::check_again, judge, pods::Snapshot, server::Server},
    store::StoredRequest,
};

/// How often requests of pods that are not ready to be judged are judged again.
const JUDGE_AGAIN: Duration = Duration::from_millis(250);
/// How long after a decision that could not be stored the next request of the same caller for the same name is tried: at first,
/// and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// A caller and the name that it asks for: what the record refuses to one request, it refuses to all of these.
type Caller = (String, String);

/// A decision that could not be stored.
struct Refused {
    until: Instant,
    wait: Duration,
}

/// The requests whose decision could not be stored.
#[derive(Default)]
struct Backoff {
    callers: HashMap<Caller, Refused>,
    /// By the request's uid.
    requests: HashMap<String, Caller>,
}

impl Backoff {
    /// True if a request was refused; `Some(true)`: it may be tried again.
    fn is_due(&self, uid: &str, now: Instant) -> Option<bool> {
        self.requests.get(uid).map(|caller| !self.holds(caller, now))
    }

    fn holds(&self, caller: &Caller, now: Instant) -> bool {
        self.callers.get(caller).is_some_and(|refused| now < refused.until)
    }

    /// Lets a request wait with its caller's others.
    fn wait(&mut self, uid: &str, caller: Caller) {
        self.requests.insert(uid.to_owned(), caller);
    }

    /// Its decision could not be stored. Returns true if that is new of its caller.
    fn refused(&mut self, uid: &str, caller: Caller, now: Instant) -> bool {
        let before = self.callers.get(&caller).map(|refused| refused.wait);
        let wait = before.map_or(FIRST_WAIT, |wait| (wait * 2).min(LAST_WAIT));
        self.callers.insert(caller.clone(), Refused { until: now + wait, wait });
        self.wait(uid, caller);
        before.is_none()
    }

    /// It does not wait for its caller's bound any more.
    fn settled(&mut self, uid: &str) {
        self.requests.remove(uid);
    }

    /// Its decision is stored: its caller's others may be, too.
    fn stored(&mut self, uid: &str, caller: &Caller) {
        self.requests.remove(uid);
        self.callers.remove(caller);
    }

    /// Forgets requests that are `gone`, and callers without any.
    fn forget(&mut self, gone: impl Fn(&str) -> bool) {
        self.requests.retain(|uid, _| !gone(uid));
        let waiting: HashSet<&Caller> = self.requests.values().collect();
        self.callers.retain(|caller, _| waiting.contains(caller));
    }
}

/// Judges the requests of pods again that could not be judged before, and signs what is approved by now. As long as the
/// pods stay as they are, each request is judged once. Where a decision cannot be stored, one request of the caller tries again
/// after a while, and its others wait for that.
pub async fn judge_again(server: Arc<Server>) {
    let mut judged: HashSet<String> = HashSet::new();
    let mut backoff = Backoff::default();
    let mut generation = None;
    loop {
        time::sleep(JUDGE_AGAIN).await;
        let waiting: Vec<_> = server.store.with(|index, _| index.iter().filter(|r| !r.decided()).cloned().collect());
        if !backoff.requests.is_empty() {
            let uids: HashSet<&str> = waiting.iter().map(|stored| stored.uid()).collect();
            backoff.forget(|uid| !uids.contains(uid));
        }
        if waiting.is_empty() {
            continue;
        }
        let snapshot = server.entitlements.snapshot();
        // More judged than wait: some were decided on or deleted since.
        if snapshot.generation().is_none() || snapshot.generation() != generation || judged.len() > waiting.len() {
            judged.clear();
            generation = snapshot.generation();
        }
        for stored in waiting {
            match backoff.is_due(stored.uid(), Instant::now()) {
                Some(false) => continue,
                None if judged.contains(stored.uid()) => continue,
                Some(true) | None => {}
            }
            let csr = stored.csr();
            let user = User::of(&csr);
            if !server.entitlements.knows(&user) {
                continue;
            }
            judged.insert(stored.uid().to_owned());
            let again = decide(&server, &stored, &user, &snapshot, &mut backoff);
            again.instrument(judge::span(&csr)).await;
        }
    }
}

/// Decides on a pending request, as the pods are at `snapshot`. Nothing is signed for a caller that has to wait.
async fn decide(server: &Server, stored: &StoredRequest, user: &User, snapshot: &Snapshot, backoff: &mut Backoff) {
    let mut csr = stored.csr();
    let Ok(checked) = check_again(server, &csr) else { return backoff.settled(stored.uid()) };
    let caller = (user.principal(), checked.request.common_name.clone());
    if backoff.holds(&caller, Instant::now()) {
        backoff.wait(stored.uid(), caller);
        return;
    }
    let now = SystemTime::now();
    let Ok(outcome) = server.judge(user, &csr, &checked, now, Some(snapshot)) else {
        return backoff.settled(stored.uid());
    };
    // It waits for its pod, or for a person.
    let outcome = server.unless_left(user, outcome);
    if server.settle(&mut csr, &checked, outcome, now).is_some() {
        return backoff.settled(stored.uid());
    }
    let (name, uid, revision) = (stored.name().to_owned(), stored.uid().to_owned(), stored.revision);
    let change = server.store.change(move |index| approval::replace(index.get(&name), &uid, revision, csr));
    match change.await {
        Ok(decided) => {
            backoff.stored(stored.uid(), &caller);
            server.tell(&decided, &checked, user);
        }
        Err(error) => {
            if backoff.refused(stored.uid(), caller, Instant::now()) {
                tracing::warn!(%error, "could not be decided on; tried again, at most every {} s", LAST_WAIT.as_secs());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_of_a_caller_tries_again_and_less_and_less_often() {
        let mut backoff = Backoff::default();
        let (app, other) = (("user/a".to_owned(), "app".to_owned()), ("user/a".to_owned(), "other".to_owned()));
        let start = Instant::now();
        assert!(backoff.refused("1", app.clone(), start), "said");
        assert!(backoff.holds(&app, start) && !backoff.holds(&other, start));
        backoff.wait("2", app.clone());
        assert_eq!((backoff.is_due("1", start), backoff.is_due("2", start)), (Some(false), Some(false)));
        assert_eq!(backoff.is_due("3", start), None, "never refused");
        let mut now = start;
        let mut tried = 0;
        while now < start + Duration::from_secs(600) {
            now += JUDGE_AGAIN;
            if backoff.is_due("2", now) == Some(true) {
                tried += 1;
                assert!(!backoff.refused("2", app.clone(), now), "said once");
                assert_eq!(backoff.is_due("1", now), Some(false), "the other one waits for this one");
            }
        }
        assert!((20..=26).contains(&tried), "{tried}");
        backoff.stored("2", &app);
        assert_eq!((backoff.is_due("1", now), backoff.is_due("2", now)), (Some(true), None));
        backoff.forget(|_| true);
        assert!(backoff.requests.is_empty() && backoff.callers.is_empty());
    }
}
