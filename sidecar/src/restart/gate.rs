//! `reload: probe`: the sidecar answers the etcd container's liveness probe and so has kubelet restart etcd, where no signal
//! reaches it.
//!
//! To kubelet a sidecar that does not answer is a failed probe like any other (connection refused is a failure, not an
//! unknown). So the probe that stands in front of the user's may not act on a few failures: a sidecar that crashes is
//! started again at once, then after 10 s, 20 s and so on, 5 min at most, and each time it answers this path before it does
//! anything else. [`cadence`] therefore gives kubelet a probe every [`PERIOD`] that acts only when it has failed for
//! longer than that longest pause. One answer in between starts the count anew. The price is the same delay before
//! kubelet acts on a restart that is due, which nobody waits for, and on a failure of the user's own probe.
//!
//! The probe's `initialDelaySeconds` and `terminationGracePeriodSeconds` stay the user's; so do the startup and readiness
//! probes, which are not touched. kubelet runs no liveness probe in a pod that is being deleted, where the sidecar ends last.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use crate::etcd::{Client, Endpoint};

/// Path of the check on the admin port.
pub const PATH: &str = "/etcd";
/// kubelet's `periodSeconds` for it.
pub const PERIOD: Duration = Duration::from_secs(10);
/// kubelet's longest pause before it starts a crashed container again.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);
/// To start and to answer once, with a probe's period to be asked in.
const MARGIN: Duration = Duration::from_secs(100);
/// How long the user's own check may take here; kubelet's `timeoutSeconds` must be longer.
const LIMIT: Duration = Duration::from_secs(8);

/// What kubelet is told of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    /// `periodSeconds`.
    pub period_seconds: i32,
    /// `timeoutSeconds`: longer than the user's own check may take.
    pub timeout_seconds: i32,
    /// `failureThreshold`.
    pub failure_threshold: i32,
}

/// The cadence of the probe that stands in front of one of `period` and `threshold` (kubelet's defaults, 10 s and 3, where
/// the user wrote none): as patient as the user's, and at least as patient as a crashed sidecar needs.
pub fn cadence(period: Duration, threshold: u32) -> Cadence {
    let patience = period.saturating_mul(threshold).max(LONGEST_BACK_OFF + MARGIN);
    let failures = patience.as_secs().div_ceil(PERIOD.as_secs());
    Cadence {
        period_seconds: i32::try_from(PERIOD.as_secs()).unwrap_or(10),
        timeout_seconds: i32::try_from(LIMIT.as_secs() + 1).unwrap_or(9),
        failure_threshold: i32::try_from(failures).unwrap_or(i32::MAX),
    }
}

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

    #[test]
    fn kubelet_outwaits_the_longest_back_off_of_a_sidecar() {
        for (period, threshold) in [(10, 3), (1, 1), (5, 8), (60, 20)] {
            let cadence = cadence(Duration::from_secs(period), threshold);
            let seconds = i64::from(cadence.period_seconds) * i64::from(cadence.failure_threshold);
            assert!(seconds > 300 && seconds >= i64::try_from(period).unwrap() * i64::from(threshold));
            assert!(cadence.timeout_seconds > 8);
        }
        assert_eq!(cadence(Duration::from_secs(10), 3).failure_threshold, 40);
        assert_eq!(cadence(Duration::MAX, u32::MAX).failure_threshold, i32::MAX);
    }

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
