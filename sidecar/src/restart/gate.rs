//! `reload: probe`: the sidecar's answer to etcd's liveness probe, by which kubelet restarts etcd where no signal reaches it.
//!
//! It is given on a socket in the volume that is also in etcd's container, to the program of [`crate::probe`]. That program
//! decides what a missing answer means.
//!
//! **Invariant.** If the sidecar cannot run the user's own probe, that says nothing about etcd's health. kubelet neither
//! verifies a certificate nor presents one, so to kubelet an etcd with expired certificates is as healthy as before.
//!
//! The startup and readiness probes are not touched. kubelet runs no liveness probe in a pod that is being deleted, where
//! the sidecar ends last.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_tls_contract::{endpoint::Endpoint, names};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::{
    etcd::Client,
    http,
    probe::{self, Check, Failure},
};

/// Probes answered at once; kubelet asks one after the other, and what it gave up waits here.
const AT_ONCE: usize = 4;
/// How long a request may take to come.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of a request; it is one line.
const MAX_REQUEST: u64 = 64;
/// The longest that a request may let us ask.
const MAX_LIMIT: Duration = Duration::from_secs(600);

/// Answers etcd's liveness probe.
pub struct Gate {
    liveness_url: Option<Endpoint>,
    /// The role directory whose certificate is presented to an https check.
    identity: Option<PathBuf>,
    armed: Mutex<Option<Armed>>,
}

/// A restart that kubelet is to make.
struct Armed {
    reason: String,
    /// When the lock behind it may be another's.
    until: Instant,
}

/// Listens for probes in the certificates' directory `dir`.
///
/// # Errors
/// The system's. [`probe::install`] makes the directory.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let dir = dir.join(names::PROBE_DIR);
    let path = dir.join(probe::SOCKET);
    // An earlier process's, of which there is none any more: the store is ours.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The path of a socket must be short, which a directory's need not be.
    let short = File::open(&dir)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{}", short.as_raw_fd(), probe::SOCKET))?;
    // To connect is to write.
    fs::set_permissions(&path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

impl Gate {
    /// For an etcd whose user's own probe asks `liveness_url`, by the certificate in `identity` where it is https.
    pub const fn new(liveness_url: Option<Endpoint>, identity: Option<PathBuf>) -> Self {
        Self { liveness_url, identity, armed: Mutex::new(None) }
    }

    /// From now on the probe fails with this reason, until `until` at the latest, even if the caller stalls.
    pub(super) fn arm(&self, reason: &str, until: Instant) {
        let armed = Armed { reason: reason.to_owned(), until };
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(armed);
    }

    /// From now on the probe says what the user's own says.
    pub(super) fn disarm(&self) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn armed(&self, now: Instant) -> Option<String> {
        let armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.as_ref().filter(|armed| now < armed.until).map(|armed| armed.reason.clone())
    }

    /// Answers on `listener` until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let gate = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = gate.answer(stream).await {
                            tracing::debug!(%error, "a liveness probe went away");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "liveness probes: accept failed");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let (mut read, mut request) = (read.take(MAX_REQUEST), Vec::new());
        timeout(REQUEST_LIMIT, async {
            while !request.ends_with(b"\n") && read.read_buf(&mut request).await? > 0 {}
            io::Result::Ok(())
        })
        .await??;
        let Some(limit) = probe::requested(&request) else { return Ok(()) };
        let verdict = self.check(limit.min(MAX_LIMIT)).await;
        timeout(REQUEST_LIMIT, write.write_all(probe::answer(&verdict).as_bytes())).await?
    }

    /// The answer to etcd's liveness probe: fails when a restart is due, allowed and locked, and only until etcd has been
    /// restarted; else says what the user's own probe says where no other than the sidecar can ask it.
    ///
    /// # Errors
    /// Why not.
    async fn check(&self, limit: Duration) -> Result<(), Failure> {
        if let Some(reason) = self.armed(Instant::now()) {
            return Err(format!("etcd is to be restarted: {reason}").into());
        }
        match (&self.liveness_url, Check::of(self.liveness_url.as_ref().map(Endpoint::as_str))) {
            (Some(url), Check::BySidecar(_)) => match timeout(limit, self.users(url)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("{url}: no answer within {} s", limit.as_secs()).into()),
            },
            _ => Ok(()),
        }
    }

    /// The result of the user's own probe. It fails for a refused connection, a missing answer or a negative one. If our
    /// certificate is missing or refused, or etcd's is revoked, the result is whether the port accepts connections, as without
    /// the sidecar: a restart mends none of these.
    async fn users(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let url = endpoint.as_str();
        let wrong = |error: &io::Error| Err(format!("{url}: {}", http::with_causes(error)).into());
        if !url.starts_with("tcp:") {
            let path = url.splitn(4, '/').nth(3).unwrap_or_default();
            match self.client(endpoint) {
                Ok(client) => match client.ask(endpoint, &format!("/{path}")).await {
                    // As kubelet counts.
                    Ok((200..400, _)) => return Ok(()),
                    Ok((status, body)) => {
                        let text: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
                        return Err(format!("{url}: {status} {text}").into());
                    }
                    Err(error) if says_no(&error) || (!endpoint.tls && is_of_http(&error)) => return wrong(&error),
                    Err(error) => {
                        tracing::debug!(url, error = http::with_causes(&error), "etcd is asked for a connection alone");
                    }
                },
                Err(error) => tracing::debug!(url, error, "etcd is asked for a connection alone"),
            }
        }
        match http::dial(&endpoint.host, endpoint.port).await {
            Err(error) if says_no(&error) => wrong(&error),
            Err(error) => {
                tracing::warn!(url, %error, "the user's liveness probe cannot be asked");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Result<Client, String> {
        match &self.identity {
            _ if !endpoint.tls => Ok(Client::plain()),
            Some(dir) => Client::from_dir(dir).map_err(|e| e.to_string()),
            None => Err("no certificate to present (roles server or client)".to_owned()),
        }
    }
}

/// True if an error is the server's word, and not what kept us from asking.
fn says_no(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut)
}

/// True if what took the connection speaks no HTTP, or not to its end.
fn is_of_http(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<hyper::Error>()).is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn answering(status: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let n = stream.read(&mut head).await.unwrap();
                let healthy = head[..n].starts_with(b"GET /health?exclude=NOSPACE ");
                let status = if healthy { status } else { "404 Not Found" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn the_sidecar_runs_checks_that_the_program_cannot_run() {
        for (status, well) in [("200 OK", true), ("302 Found", true), ("503 Service Unavailable", false)] {
            let port = answering(status).await;
            // By a name, for which the program has no resolver.
            let url = format!("http://localhost:{port}/health?exclude=NOSPACE");
            assert_eq!(Gate::new(Some(url.parse().unwrap()), None).check(LIMIT).await.is_ok(), well, "{status}");
            let url = format!("http://127.0.0.1:{port}/health?exclude=NOSPACE");
            assert_eq!(
                Gate::new(Some(url.parse().unwrap()), None).check(LIMIT).await,
                Ok(()),
                "the program asks that itself"
            );
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = format!("https://{closed}/health");
        assert!(Gate::new(Some(url.parse().unwrap()), None).check(LIMIT).await.is_err());
        assert!(Gate::new(None, None).check(LIMIT).await.is_ok());
    }

    /// A server that refuses certificates, or hangs.
    async fn taking(hangs: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                if hangs {
                    open.push(stream);
                } else {
                    // The alert certificate_expired.
                    let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 45]).await;
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn an_obstacle_to_the_sidecars_check_takes_no_etcd_down() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-gate-leaf-{}", std::process::id()));
        let leaf = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in
            [("tls.crt", leaf.cert.pem()), ("ca.crt", leaf.cert.pem()), ("tls.key", leaf.signing_key.serialize_pem())]
        {
            fs::write(dir.join(name), text).unwrap();
        }
        let refusing = taking(false).await;
        let gate = |identity, port: u16| {
            Gate::new(Some(format!("https://127.0.0.1:{port}/health").parse().unwrap()), identity)
        };
        for (identity, why) in [
            (Some(dir.clone()), "a certificate that is not taken"),
            (Some(dir.join("none")), "no files"),
            (None, "a role that has no certificate for a client"),
        ] {
            assert_eq!(gate(identity, refusing).check(LIMIT).await, Ok(()), "{why}");
        }
        let hanging = gate(Some(dir.clone()), taking(true).await);
        assert!(hanging.check(Duration::from_millis(300)).await.unwrap_err().to_string().contains("no answer within"));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        for identity in [Some(dir.clone()), None] {
            let error = gate(identity, closed).check(LIMIT).await.unwrap_err();
            assert!(error.to_string().contains("refused"), "{error}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn it_answers_in_a_directory_of_any_length() {
        let parent = std::env::temp_dir().join(format!("etcd-tls-gate-{}", std::process::id()));
        let dir = parent.join("x".repeat(200));
        fs::create_dir_all(dir.join(names::PROBE_DIR)).unwrap();
        let gate = Arc::new(Gate::new(None, None));
        // A socket left by an earlier process is replaced.
        drop(listen(&dir).unwrap());
        let serving = tokio::spawn(Arc::clone(&gate).serve(listen(&dir).unwrap()));
        let ask = |request: String| {
            let short = File::open(dir.join(names::PROBE_DIR)).unwrap();
            async move {
                let path = format!("/proc/self/fd/{}/{}", short.as_raw_fd(), probe::SOCKET);
                let mut stream = UnixStream::connect(path).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                // A client whose request is not read to its end gets an error.
                let _ = stream.read_to_end(&mut answer).await;
                probe::Liveness::read(&answer)
            }
        };
        assert_eq!(ask(probe::request(LIMIT)).await, probe::Liveness::Alive);
        gate.arm("its trust bundle\nhas changed", Instant::now() + 10 * LIMIT);
        let why = "etcd is to be restarted: its trust bundle has changed".to_owned();
        assert_eq!(ask(probe::request(LIMIT)).await, probe::Liveness::Dead(why));
        assert!(matches!(ask("x".repeat(1000)).await, probe::Liveness::Unanswered(_)), "no request, no answer");
        gate.disarm();
        assert_eq!(ask(probe::request(LIMIT)).await, probe::Liveness::Alive);
        gate.arm("its lock may be another's", Instant::now());
        assert_eq!(ask(probe::request(LIMIT)).await, probe::Liveness::Alive);
        serving.abort();
        fs::remove_dir_all(parent).unwrap();
    }
}
