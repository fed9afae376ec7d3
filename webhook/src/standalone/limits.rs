//! Limits of each caller: the rate of calls (a token bucket), and the number of open lists and watches.

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

/// How many of something long are open at once: of one user's, and of all.
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

    /// Takes one for `user`.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: which limit is reached.
    pub fn take(self: &Arc<Self>, user: &str) -> Result<Permit, ApiError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(user).copied().unwrap_or_default();
        let limit = if own >= self.per_user {
            format!("{} {} of {user} are open", self.per_user, self.what)
        } else if open.values().sum::<usize>() >= self.all {
            format!("{} {} are open", self.all, self.what)
        } else {
            open.insert(user.to_owned(), own + 1);
            return Ok(Permit { quota: Arc::clone(self), user: user.to_owned() });
        };
        Err(too_many(&format!("{limit}, which is the limit; try again later")))
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
        let quota = Quota::new("lists", 2, 3);
        let first = quota.take("a").unwrap();
        let _second = quota.take("a").unwrap();
        let refused = quota.take("a").unwrap_err().to_string();
        assert!(refused.contains("2 lists of a are open"), "{refused}");
        let _third = quota.take("b").unwrap();
        assert!(quota.take("c").unwrap_err().to_string().contains("3 lists are open"));
        drop(first);
        let _fourth = quota.take("c").unwrap();
        assert_eq!(quota.open.lock().unwrap().len(), 3);
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
