//! The lock as a Kubernetes Lease. A holder is taken for gone when its Lease has not changed for the Lease's own
//! duration *as watched from here*: no two clocks are compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    core::Status,
};
use tokio::time::{Instant, timeout};

use super::{Attempt, LockLost, TTL};

/// How long the API server may take for all that one step asks of it; the lock is confirmed every third of [`TTL`].
const LIMIT: Duration = Duration::from_secs(8);

/// A Lease's name, and what was last seen of it.
#[derive(Debug)]
pub struct LeaseLock {
    api: Api<Lease>,
    name: String,
    holder: String,
}

/// What an observer remembers of another holder's Lease.
#[derive(Clone, Debug)]
pub struct Observed {
    version: String,
    at: Instant,
}

impl LeaseLock {
    /// Tries once to take Lease `name` in `namespace` for `holder`. `observed` is kept by the caller from one attempt to the
    /// next.
    ///
    /// # Errors
    /// The API server's, but for a 403, and a 404 to our own Lease's creation (a server that has no Leases, as
    /// standalone's), which are [`Attempt::Unavailable`].
    pub async fn acquire(
        client: Client,
        namespace: &str,
        name: &str,
        holder: &str,
        observed: &mut Option<Observed>,
    ) -> Result<Attempt<Self>, kube::Error> {
        let lock = Self { api: Api::namespaced(client, namespace), name: name.to_owned(), holder: holder.to_owned() };
        match within(lock.attempt(observed, Instant::now())).await {
            Ok(None) => Ok(Attempt::Held(lock)),
            Ok(Some(other)) => Ok(Attempt::HeldBy(other)),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Attempt::Unavailable(format!(
                "{}; manifests/components/lease-lock grants it to one namespace, by cluster names",
                status.message
            ))),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                Ok(Attempt::Unavailable(format!("it has none: {}", status.message)))
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(Attempt::HeldBy("another member, by a moment".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there are Leases and the pod has the right to the one of this `name`, as a read of it shows.
    ///
    /// # Errors
    /// The API server's, but for a 403 and a 404, which are answers.
    pub async fn granted(client: Client, namespace: &str, name: &str) -> Result<bool, kube::Error> {
        match within(Api::<Lease>::namespaced(client, namespace).get(name)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(is_of_a_lease(&status)),
            Err(error) => Err(error),
        }
    }

    /// `None` when it is ours now, else who has it.
    async fn attempt(&self, observed: &mut Option<Observed>, now: Instant) -> Result<Option<String>, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec()) };
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(None);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let spec = lease.spec.take().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or_else(|| TTL.into());
        let other = spec.holder_identity.filter(|h| !h.is_empty() && *h != self.holder);
        if let Some(other) = other {
            let since = observed.as_ref().filter(|o| o.version == version).map_or(now, |o| o.at);
            *observed = Some(Observed { version, at: since });
            if now.duration_since(since) < Duration::from_secs(seconds) {
                return Ok(Some(other));
            }
        }
        lease.spec = Some(self.spec());
        // Carries the resourceVersion read: of two that write, one gets a conflict.
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        *observed = None;
        Ok(None)
    }

    fn spec(&self) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(TTL).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// See [`super::Guard::confirm`].
    ///
    /// # Errors
    /// It is another's, or the API server does not answer.
    pub async fn confirm(&mut self) -> Result<(), LockLost> {
        self.write(Some(self.holder.clone())).await
    }

    /// See [`super::Guard::release`].
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn release(self) -> Result<(), LockLost> {
        self.write(None).await
    }

    async fn write(&self, holder: Option<String>) -> Result<(), LockLost> {
        let lost = |e: &dyn std::fmt::Display| LockLost(format!("Lease {}: {e}", self.name));
        let both = async {
            let mut lease = self.api.get(&self.name).await.map_err(|e| lost(&e))?;
            let mut spec = lease.spec.take().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(self.holder.as_str()) {
                let other = spec.holder_identity.as_deref().unwrap_or("nobody");
                return Err(LockLost(format!("{other} has Lease {} now", self.name)));
            }
            spec.holder_identity = holder;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            lease.spec = Some(spec);
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map_err(|e| lost(&e)).map(|_| ())
        };
        // A third of the time that the lock lasts is for read and write together.
        timeout(LIMIT, both).await.unwrap_or_else(|late| Err(lost(&late)))
    }
}

/// Whether a 404 speaks of a Lease that is not there, and not of Leases: the former names it in its details (a Status's
/// `details.kind` is the resource).
fn is_of_a_lease(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == "leases")
}

/// Bounded by [`LIMIT`]. A write that is given up may have come to pass: it was in our name, and is taken up again or
/// lapses.
async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    timeout(LIMIT, call).await.unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lease_that_is_not_there_is_told_from_a_server_without_leases() {
        let status = |details| {
            serde_json::from_value::<Status>(serde_json::json!({
                "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "", "details": details,
            }))
        };
        let absent = serde_json::json!({"name": "x", "group": "coordination.k8s.io", "kind": "leases"});
        assert!(is_of_a_lease(&status(absent).unwrap()));
        for unknown in [serde_json::json!({}), serde_json::json!({"name": "", "group": "", "kind": ""})] {
            assert!(!is_of_a_lease(&status(unknown).unwrap()), "the server could not find the requested resource");
        }
    }
}
