//! The lock as a Kubernetes Lease. A holder is taken for gone when its Lease has not changed for the Lease's own
//! duration *as watched from here*: no two clocks are compared, so that it does not matter what its times say.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{Attempt, LONGEST, LockLost, Observed, TTL};
use crate::kube::{
    ApiError,
    http::{Answer, Kube},
    pod::PodCredentials,
};

/// How long the API server may take for all that one step asks of it; the lock is confirmed every third of [`TTL`].
const LIMIT: Duration = Duration::from_secs(8);

/// One Lease of a namespace.
pub struct LeaseLock {
    api: Kube<PodCredentials>,
    /// The path of the namespace's Leases.
    leases: String,
    name: String,
    holder: String,
}

/// Why it is not known who has the Lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The API server's error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The API server is too slow. The write may have succeeded: it carries our name, so it is found again or lapses.
    #[error("the API server has not answered within {} s", LIMIT.as_secs())]
    Late,
}

impl LeaseLock {
    /// Tries once to take Lease `name` in `namespace` for `holder`. `observed` is kept by the caller from one attempt to the
    /// next.
    ///
    /// # Errors
    /// The API server's, but for a 403, and a 404 to our own Lease's creation (a server that has no Leases, as
    /// standalone's), which are [`Attempt::Unavailable`].
    pub async fn acquire(
        credentials: PodCredentials,
        namespace: &str,
        name: &str,
        holder: &str,
        observed: &mut Option<Observed>,
    ) -> Result<Attempt<Self>, LeaseError> {
        let mut lock = Self::of(credentials, namespace, name, holder);
        Ok(match within(lock.attempt(observed)).await? {
            Attempt::Held(()) => Attempt::Held(lock),
            Attempt::HeldBy(other) => Attempt::HeldBy(other),
            Attempt::Unavailable(why) => Attempt::Unavailable(why),
        })
    }

    /// True if there are Leases and the pod has the right to the one of this `name`, as a read of it shows.
    ///
    /// # Errors
    /// The API server's, but for a 403 and a 404, which are answers.
    pub async fn granted(credentials: PodCredentials, namespace: &str, name: &str) -> Result<bool, LeaseError> {
        let mut lock = Self::of(credentials, namespace, name, "");
        let answer = within(async { Ok(lock.get().await?) }).await?;
        match answer.code() {
            403 => Ok(false),
            404 => Ok(is_of_a_lease(&answer)),
            _ => Ok(answer.object::<Value>().map(|_| true)?),
        }
    }

    fn of(credentials: PodCredentials, namespace: &str, name: &str, holder: &str) -> Self {
        Self {
            api: Kube::new(credentials),
            leases: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            name: name.to_owned(),
            holder: holder.to_owned(),
        }
    }

    async fn get(&mut self) -> Result<Answer, ApiError> {
        self.api.exchange(Method::GET, &format!("{}/{}", self.leases, self.name), None).await
    }

    /// Writes a Lease that was read before. It carries the resourceVersion read: of two that write, one gets a conflict.
    async fn replace(&mut self, lease: &Value) -> Result<Answer, ApiError> {
        self.api.exchange(Method::PUT, &format!("{}/{}", self.leases, self.name), Some(lease)).await
    }

    async fn attempt(&mut self, observed: &mut Option<Observed>) -> Result<Attempt<()>, LeaseError> {
        let answer = self.get().await?;
        let written = if answer.code() == 404 {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": self.name}, "spec": self.spec(),
            });
            self.api.exchange(Method::POST, &self.leases, Some(&lease)).await?
        } else if answer.code() == 403 {
            answer
        } else {
            let mut lease: Value = answer.object()?;
            if let Some(other) = holder(&lease).filter(|other| *other != self.holder) {
                let unchanged = Observed::unchanged(observed, lease["spec"].to_string(), Instant::now());
                if unchanged < lasts(&lease) {
                    return Ok(Attempt::HeldBy(other.to_owned()));
                }
                tracing::warn!(lease = self.name, holder = other, "taking over a Lease that its holder does not renew");
            }
            lease["spec"] = self.spec();
            self.replace(&lease).await?
        };
        match written.code() {
            403 => Ok(Attempt::Unavailable(format!(
                "{}; manifests/components/lease-lock grants it to one namespace, by cluster names",
                written.message()
            ))),
            404 => Ok(Attempt::Unavailable(format!("it has none: {}", written.message()))),
            // Somebody was faster.
            409 => Ok(Attempt::HeldBy("another member, by a moment".to_owned())),
            _ => {
                written.object::<Value>()?;
                *observed = None;
                Ok(Attempt::Held(()))
            }
        }
    }

    fn spec(&self) -> Value {
        let now = micro_time(Timestamp::now());
        json!({"holderIdentity": self.holder, "leaseDurationSeconds": TTL, "acquireTime": now, "renewTime": now})
    }

    /// See [`super::Guard::confirm`].
    ///
    /// # Errors
    /// It is another's, or the API server does not answer.
    pub async fn confirm(&mut self) -> Result<(), LockLost> {
        let holder = json!(self.holder);
        self.write(holder).await
    }

    /// See [`super::Guard::release`].
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn release(mut self) -> Result<(), LockLost> {
        self.write(Value::Null).await
    }

    async fn write(&mut self, next: Value) -> Result<(), LockLost> {
        let name = self.name.clone();
        let lost = |e: LeaseError| LockLost(format!("Lease {name}: {e}"));
        // A third of the time that the lock lasts is for read and write together.
        let read_and_write = within(async {
            let mut lease: Value = self.get().await?.object()?;
            let other = match holder(&lease) {
                Some(holder) if holder == self.holder => None,
                other => Some(other.unwrap_or("nobody").to_owned()),
            };
            if let Some(other) = other {
                return Ok(Err(LockLost(format!("{other} has Lease {} now", self.name))));
            }
            lease["spec"]["holderIdentity"] = next;
            lease["spec"]["renewTime"] = micro_time(Timestamp::now()).into();
            self.replace(&lease).await?.object::<Value>()?;
            Ok(Ok(()))
        });
        read_and_write.await.map_err(lost)?
    }
}

/// The holder of a Lease; none if the name is missing or empty.
fn holder(lease: &Value) -> Option<&str> {
    lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty())
}

/// How long a Lease is its holder's after its last change: the duration in it, at most [`LONGEST`]; [`TTL`] if it is missing or
/// invalid.
fn lasts(lease: &Value) -> Duration {
    let seconds = match lease["spec"]["leaseDurationSeconds"].as_f64() {
        Some(seconds) if seconds > 0.0 => seconds,
        _ => f64::from(TTL),
    };
    Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64()))
}

/// A MicroTime: six digits after the seconds.
fn micro_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// True if a 404 speaks of a Lease that is not there, and not of Leases: the former names it in its details (a Status's
/// `details.kind` is the resource).
fn is_of_a_lease(answer: &Answer) -> bool {
    answer.resource().is_some_and(|resource| resource == "leases")
}

/// Bounded by [`LIMIT`].
async fn within<T>(step: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    timeout(LIMIT, step).await.unwrap_or(Err(LeaseError::Late))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lease_lasts_no_longer_than_the_longest() {
        for (duration, seconds) in [
            (json!(1), 1.0),
            (json!(30), 30.0),
            (json!(60), 60.0),
            (json!(61), 60.0),
            (json!(i32::MAX), 60.0),
            (json!(2_147_483_648_u64), 60.0),
            (json!(u64::MAX), 60.0),
            (json!(1e300), 60.0),
            (json!(0), 30.0),
            (json!(-1), 30.0),
            (json!("90"), 30.0),
            (Value::Null, 30.0),
        ] {
            let lease = json!({"spec": {"leaseDurationSeconds": duration}});
            assert_eq!(lasts(&lease), Duration::from_secs_f64(seconds), "{duration}");
        }
        assert_eq!(lasts(&json!({})), Duration::from_secs(TTL.into()));
    }

    #[test]
    fn a_lease_without_a_holder_is_free() {
        for free in [json!({}), json!({"spec": {}}), json!({"spec": {"holderIdentity": ""}}), json!({"spec": null})] {
            assert_eq!(holder(&free), None, "{free}");
        }
        assert_eq!(holder(&json!({"spec": {"holderIdentity": "a"}})), Some("a"));
    }

    #[test]
    fn times_have_six_digits_after_the_seconds() {
        let time: Timestamp = "2026-01-02T03:04:05.1Z".parse().unwrap();
        assert_eq!(micro_time(time), "2026-01-02T03:04:05.100000Z");
    }
}
