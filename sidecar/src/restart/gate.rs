//! `reload: probe`: the sidecar answers the etcd container's liveness probe and so has kubelet restart etcd, where no signal
//! reaches it.
//!
//! To kubelet a sidecar that does not answer is a failed probe like any other (connection refused is a failure, not an
//! unknown). So the webhook writes a `failureThreshold` that outlasts a sidecar's absence: one that crashes is started again
//! at once, then after 10 s, 20 s and so on, 5 min at most, and its admin port answers this path before it does anything
//! else; one answer starts kubelet's count anew. The price is the same delay before kubelet acts on a restart that is
//! due, which nobody waits for, and on a failure of the user's own probe. A sidecar that never comes back (an image that
//! cannot be had any more) is beyond what an HTTP probe can tell from an etcd that is to be restarted.
//!
//! The startup and readiness probes are not touched. kubelet runs no liveness probe in a pod that is being deleted, where
//! the sidecar ends last.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use crate::etcd::{Client, Endpoint};

/// Path of the check on the admin port.
pub const PATH: &str = "/etcd";
/// How long the user's own check may take here; kubelet's `timeoutSeconds` mostly ends it before.
const LIMIT: Duration = Duration::from_secs(8);

/// Answers the liveness probe of `reload: probe`; kept by the admin server under [`PATH`].
pub struct Gate {
    liveness_url: Option<String>,
    /// The role directory whose certificate is presented to an https check.
    identity: Option<std::path::PathBuf>,
    armed: Mutex<Option<String>>,
}

impl Gate {
    pub(super) fn new(liveness_url: Option<String>, identity: Option<std::path::PathBuf>) -> Self {
        Self { liveness_url, identity, armed: Mutex::default() }
    }

    /// From now on the probe fails, for this reason.
    pub(super) fn arm(&self, reason: &str) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    /// From now on the probe says what the user's own says.
    pub(super) fn disarm(&self) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn armed(&self) -> Option<String> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether kubelet shall leave etcd alone: fails only when a restart is due, allowed and locked, and only until etcd has
    /// been restarted; else says what the user's own probe says, and yes where there is none.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), String> {
        if let Some(reason) = self.armed() {
            return Err(format!("etcd is to be restarted: {reason}"));
        }
        let Some(url) = &self.liveness_url else { return Ok(()) };
        match timeout(LIMIT, self.users(url)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{url}: no answer within {} s", LIMIT.as_secs())),
        }
    }

    async fn users(&self, url: &str) -> Result<(), String> {
        let endpoint = Endpoint::parse(url).map_err(|e| e.to_string())?;
        if url.starts_with("tcp:") {
            return endpoint.connect().await.map(drop).map_err(|e| format!("{url}: {e}"));
        }
        let client = match &self.identity {
            Some(dir) if endpoint.tls => Client::from_dir(dir).map_err(|e| e.to_string())?,
            _ => Client::plain(),
        };
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        let (status, body) = client.get(url, &format!("/{path}")).await.map_err(|e| e.to_string())?;
        // As kubelet counts.
        if (200..400).contains(&status) {
            return Ok(());
        }
        let text: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        Err(format!("{url}: {status} {text}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn answering(status: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let n = stream.read(&mut head).await.unwrap();
                let healthy = head[..n].starts_with(b"GET /health?exclude=NOSPACE ");
                let status = if healthy { status } else { "404 Not Found" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        address.to_string()
    }

    #[tokio::test]
    async fn behind_the_gate_the_users_probe_keeps_its_meaning() {
        for (status, well) in [("200 OK", true), ("302 Found", true), ("503 Service Unavailable", false)] {
            let url = format!("http://{}/health?exclude=NOSPACE", answering(status).await);
            assert_eq!(Gate::new(Some(url), None).check().await.is_ok(), well, "{status}");
        }
        let address = answering("200 OK").await;
        assert!(Gate::new(Some(format!("tcp://{address}")), None).check().await.is_ok());
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(Gate::new(Some(format!("tcp://{closed}")), None).check().await.is_err());
        assert!(Gate::new(None, None).check().await.is_ok());
    }

    #[tokio::test]
    async fn an_armed_gate_fails_whatever_the_user_asks() {
        let gate = Gate::new(None, None);
        gate.arm("its trust bundle has changed");
        assert!(gate.check().await.unwrap_err().contains("its trust bundle has changed"));
        gate.disarm();
        assert!(gate.check().await.is_ok());
    }
}
