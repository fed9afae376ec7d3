//! The lock in etcd: key [`KEY`], whose value is the holder and whose lease ends with it.

use std::path::{Path, PathBuf};

use super::{Attempt, LockLost};
use crate::etcd::{Client, Created, EtcdError};

/// The key, in the cluster's own key space. Applications that keep to a prefix of theirs never see it.
pub const KEY: &str = "etcd-tls.dev/restart";
/// Seconds after which a holder that is gone no longer holds the lock.
pub const TTL: u32 = 30;

/// The lock in hand.
#[derive(Debug)]
pub struct EtcdLock {
    dir: PathBuf,
    lease: i64,
}

impl EtcdLock {
    /// Tries once to take the lock for `holder`, as the client of the role directory `dir`, through the first of
    /// `client_urls` that serves us: one member's gateway may be off while another's is on. A lock that an earlier process of
    /// the same holder left behind is taken up again.
    ///
    /// # Errors
    /// No member answers, or the cluster has no quorum.
    pub async fn acquire(dir: &Path, client_urls: &[String], holder: &str) -> Result<Attempt<Self>, EtcdError> {
        let mut last = EtcdError::Unreachable { url: client_urls.join(","), reason: "no member to ask".to_owned() };
        let mut forbidden = None;
        for url in client_urls {
            match Self::acquire_at(dir, url, holder).await {
                Ok(attempt) => return Ok(attempt),
                Err(error @ EtcdError::Forbidden { .. }) => forbidden = Some(error.to_string()),
                Err(error) => last = error,
            }
        }
        forbidden.map_or(Err(last), |why| Ok(Attempt::Unavailable(why)))
    }

    async fn acquire_at(dir: &Path, url: &str, holder: &str) -> Result<Attempt<Self>, EtcdError> {
        let client = client(dir, url)?;
        let lease = client.grant(url, TTL).await?;
        let created = client.create(url, KEY, holder, lease).await;
        if let Ok(Created::Yes) = created {
            return Ok(Attempt::Held(Self { dir: dir.to_owned(), lease }));
        }
        // A lease without a key is nothing to keep. If the transaction's answer was lost, its key goes with it.
        if let Err(error) = client.revoke(url, lease).await {
            tracing::debug!(%error, "a lease lapses by itself");
        }
        match created? {
            Created::Already { value, lease } if value == holder && lease != 0 => {
                if client.keep_alive(url, lease).await? {
                    return Ok(Attempt::Held(Self { dir: dir.to_owned(), lease }));
                }
                Ok(Attempt::HeldBy(value))
            }
            Created::Already { value, .. } => Ok(Attempt::HeldBy(value)),
            Created::Yes => Ok(Attempt::HeldBy(holder.to_owned())),
        }
    }

    /// See [`super::Guard::confirm`].
    ///
    /// # Errors
    /// It is lost, or no member answers.
    pub async fn confirm(&mut self, client_urls: &[String]) -> Result<(), LockLost> {
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
    pub async fn release(self, client_urls: &[String]) -> Result<(), LockLost> {
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

fn client(dir: &Path, url: &str) -> Result<Client, EtcdError> {
    if url.starts_with("http://") { Ok(Client::plain()) } else { Client::from_dir(dir) }
}
