//! The lock in etcd: key [`KEY`], whose value is the holder and whose lease ends with it.

use std::path::{Path, PathBuf};

use etcd_tls_contract::endpoint::Endpoint;
use tokio::time::Instant;

use super::{Attempt, LONGEST, LockLost, Observed, TTL};
use crate::etcd::{Client, Created, EtcdError, HeldKey, joined};

/// The key, in the cluster's own key space. Applications that keep to a prefix of theirs never see it.
pub const KEY: &str = "etcd-tls.dev/restart";

/// The lock in hand.
#[derive(Debug)]
pub struct EtcdLock {
    dir: PathBuf,
    lease: i64,
}

impl EtcdLock {
    /// Tries once to take the lock for `holder`, as the client of the role directory `dir`, through the first of
    /// `client_urls` that serves us: one member's gateway may be off while another's is on. A lock that an earlier process of
    /// the same holder left behind is taken up again. `observed` is kept by the caller from one attempt to the next.
    ///
    /// # Errors
    /// No member answers, or the cluster has no quorum.
    pub async fn acquire(
        dir: &Path,
        client_urls: &[Endpoint],
        holder: &str,
        observed: &mut Option<Observed>,
    ) -> Result<Attempt<Self>, EtcdError> {
        let mut last = EtcdError::Unreachable { url: joined(client_urls), reason: "no member to ask".to_owned() };
        let mut forbidden = None;
        for url in client_urls {
            match Self::acquire_at(dir, url, holder, observed).await {
                Ok(attempt) => return Ok(attempt),
                Err(error @ EtcdError::Forbidden { .. }) => forbidden = Some(error.to_string()),
                Err(error) => last = error,
            }
        }
        forbidden.map_or(Err(last), |why| Ok(Attempt::Unavailable(why)))
    }

    async fn acquire_at(
        dir: &Path,
        url: &Endpoint,
        holder: &str,
        observed: &mut Option<Observed>,
    ) -> Result<Attempt<Self>, EtcdError> {
        let client = client(dir, url)?;
        let lease = client.grant(url, TTL).await?;
        let taken = Self::take(&client, url, holder, lease, observed).await;
        if let Ok(Attempt::Held(held)) = taken
            && held == lease
        {
            *observed = None;
            return Ok(Attempt::Held(Self { dir: dir.to_owned(), lease }));
        }
        // A lease without a key is nothing to keep. If a transaction's answer was lost, its key goes with it.
        if let Err(error) = client.revoke(url, lease).await {
            tracing::debug!(%error, "a lease lapses by itself");
        }
        Ok(match taken? {
            Attempt::Held(lease) => Attempt::Held(Self { dir: dir.to_owned(), lease }),
            Attempt::HeldBy(other) => Attempt::HeldBy(other),
            Attempt::Unavailable(why) => Attempt::Unavailable(why),
        })
    }

    /// The lease on which the lock is ours: `lease`, or an earlier one of the same holder.
    async fn take(
        client: &Client,
        url: &Endpoint,
        holder: &str,
        lease: i64,
        observed: &mut Option<Observed>,
    ) -> Result<Attempt<i64>, EtcdError> {
        let found = match client.create(url, KEY, holder, lease).await? {
            Created::Yes => return Ok(Attempt::Held(lease)),
            Created::Already(found) => found,
        };
        let lapses = lapses(client, url, &found).await?;
        if lapses && found.value == holder && client.keep_alive(url, found.lease).await? {
            return Ok(Attempt::Held(found.lease));
        }
        // A lock that lapses by itself is waited for without a limit.
        if lapses || Observed::unchanged(observed, found.revision.to_string(), Instant::now()) < LONGEST {
            return Ok(Attempt::HeldBy(found.value));
        }
        tracing::warn!(key = KEY, holder = found.value, "taking over a restart lock that would never lapse");
        Ok(match client.replace(url, KEY, &found, holder, lease).await? {
            true => Attempt::Held(lease),
            false => Attempt::HeldBy("another member, by a moment".to_owned()),
        })
    }

    /// See [`super::Guard::confirm`].
    ///
    /// # Errors
    /// It is lost, or no member answers.
    pub async fn confirm(&mut self, client_urls: &[Endpoint]) -> Result<(), LockLost> {
        let mut last = "no member to ask".to_owned();
        for url in client_urls {
            let asked = async { client(&self.dir, url)?.keep_alive(url, self.lease).await };
            match asked.await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(LockLost("its lease in etcd has ended".to_owned())),
                Err(error) => last = error.to_string(),
            }
        }
        Err(LockLost(last))
    }

    /// See [`super::Guard::release`].
    ///
    /// # Errors
    /// No member answers.
    pub async fn release(self, client_urls: &[Endpoint]) -> Result<(), LockLost> {
        let mut last = "no member to ask".to_owned();
        for url in client_urls {
            let asked = async { client(&self.dir, url)?.revoke(url, self.lease).await };
            match asked.await {
                Ok(()) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(LockLost(last))
    }
}

/// True if a lock ends by itself within [`LONGEST`] when its holder is gone: whether it hangs on a lease, and on a short one.
async fn lapses(client: &Client, url: &Endpoint, found: &HeldKey) -> Result<bool, EtcdError> {
    if found.lease == 0 {
        return Ok(false);
    }
    // A lease that has ended since takes the key with it.
    let granted = client.granted(url, found.lease).await?;
    Ok(granted.is_none_or(|seconds| seconds <= LONGEST.as_secs()))
}

fn client(dir: &Path, url: &Endpoint) -> Result<Client, EtcdError> {
    if !url.tls { Ok(Client::plain()) } else { Client::from_dir(dir) }
}
