//! Limits of each caller: the rate of calls (a token bucket), and the number of open lists, watches and bodies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::standalone::error::ApiError;

/// Callers remembered; full buckets are forgotten first.
const CALLERS: usize = 10_000;

/// Calls a second for each caller.
#[derive(Debug)]
pub struct RateLimit {
    /// Calls a second; 0 for no limit.
    rate: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    /// `rate` calls a second, and twice as many at once; 0 for no limit.
    pub fn new(rate: u32) -> Self {
        Self { rate: f64::from(rate), buckets: Mutex::default() }
    }

    /// Takes one call of `caller`'s.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`], with when to come again.
    pub fn take(&self, caller: &str, now: Instant) -> Result<(), ApiError> {
        if self.rate == 0.0 {
            return Ok(());
        }
        let burst = self.rate * 2.0;
        let full_after = Duration::from_secs(2);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS && !buckets.contains_key(caller) {
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < full_after);
            if buckets.len() >= CALLERS {
                return Err(too_many("too many callers at once; try again later"));
            }
        }
        let bucket = match buckets.get_mut(caller) {
            Some(bucket) => bucket,
            None => buckets.entry(caller.to_owned()).or_insert(Bucket { tokens: burst, at: now }),
        };
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = elapsed.mul_add(self.rate, bucket.tokens).min(burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(too_many("you have sent too many requests; try again later"));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

/// How many of something long any user may have. Where a host comes again, its last one may not have been seen to end yet.
const LEAST: usize = 2;

/// How many of something long are open at once: of one user's, and of all. The fewer places are left, the fewer has one user, since a
/// bootstrap token can make itself many hosts; the last eighth is for administrators.
#[derive(Debug)]
pub struct Quota {
    /// Of what, in messages.
    what: &'static str,
    per_user: usize,
    all: usize,
    open: Mutex<HashMap<String, usize>>,
}

/// One of what is open; it is open until this is dropped.
#[derive(Debug)]
pub struct Permit {
    quota: Arc<Quota>,
    user: String,
}

impl Quota {
    /// At most `per_user` of each user, and `all` in all.
    pub fn new(what: &'static str, per_user: usize, all: usize) -> Arc<Self> {
        Arc::new(Self { what, per_user, all, open: Mutex::default() })
    }

    /// Takes one for `user`, who is an administrator or not.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: which limit is reached.
    pub fn take(self: &Arc<Self>, user: &str, admin: bool) -> Result<Permit, ApiError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(user).copied().unwrap_or_default();
        let total = open.values().sum::<usize>();
        let share = if admin { self.per_user } else { self.share(total) };
        let all = if admin { self.all } else { self.all - self.all / 8 };
        let limit = if own >= share {
            format!("{own} {} of {user} are open, and {total} in all", self.what)
        } else if total >= all {
            format!("{total} {} are open", self.what)
        } else {
            open.insert(user.to_owned(), own + 1);
            return Ok(Permit { quota: Arc::clone(self), user: user.to_owned() });
        };
        Err(too_many(&format!("{limit}, which is the limit; try again later")))
    }

    /// How many one user may have while `total` are open.
    const fn share(&self, total: usize) -> usize {
        if total < self.all / 2 {
            self.per_user
        } else if total < self.all / 4 * 3 && self.per_user / 20 > LEAST {
            self.per_user / 20
        } else {
            LEAST
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.quota.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

fn too_many(message: &str) -> ApiError {
    ApiError::TooManyRequests { message: message.to_owned(), retry_after_seconds: 1 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_callers_burst_is_its_own_and_fills_again() {
        let limit = RateLimit::new(10);
        let start = Instant::now();
        for _ in 0..20 {
            limit.take("a", start).unwrap();
        }
        assert!(limit.take("a", start).is_err());
        limit.take("b", start).unwrap();
        let later = start + Duration::from_millis(150);
        limit.take("a", later).unwrap();
        assert!(limit.take("a", later).is_err());
        assert!((0..1000).all(|_| RateLimit::new(0).take("a", start).is_ok()));
    }

    #[test]
    fn open_requests_are_bounded_for_each_user_and_in_total() {
        let quota = Quota::new("lists", 4, 32);
        let mut open: Vec<Permit> = (0..4).map(|_| quota.take("a", false).unwrap()).collect();
        let refused = quota.take("a", false).unwrap_err().to_string();
        assert!(refused.contains("4 lists of a are open"), "{refused}");
        drop(open.pop());
        open.push(quota.take("a", false).unwrap());
        // However many users one makes itself, another has its first, and an administrator all of its own.
        for user in 0..100 {
            open.extend((0..4).map_while(|_| quota.take(&format!("made-{user}"), false).ok()));
            if open.len() == 20 {
                open.push(quota.take("b", false).unwrap());
            }
        }
        assert_eq!(open.len(), 28);
        assert!(quota.take("c", false).unwrap_err().to_string().contains("28 lists are open"));
        open.extend((0..4).map(|_| quota.take("admin", true).unwrap()));
        assert!(quota.take("another", true).is_err());
        open.clear();
        assert!(quota.open.lock().unwrap().is_empty());
    }

    #[test]
    fn many_users_have_one_each() {
        let quota = Quota::new("watches", 100, 1000);
        let take = |user: &str| quota.take(user, false);
        let mut open: Vec<Permit> = Vec::new();
        for user in 0..10 {
            open.extend((0..100).map_while(|_| take(&user.to_string()).ok()));
        }
        assert_eq!(open.len(), 5 * 100 + 5 * 5);
        open.extend((0..300).map(|user| take(&format!("host-{user}")).unwrap()));
        // One that comes again before its last one was seen to end.
        open.push(take("host-1").unwrap());
        assert!(take("host-1").is_err());
    }

    #[test]
    fn callers_are_remembered_within_bounds() {
        let limit = RateLimit::new(1);
        let start = Instant::now();
        for i in 0..CALLERS {
            limit.take(&i.to_string(), start).unwrap();
        }
        assert!(limit.take("new", start).is_err());
        limit.take("new", start + Duration::from_secs(3)).unwrap();
        assert!(limit.buckets.lock().unwrap().len() < CALLERS);
    }
}
