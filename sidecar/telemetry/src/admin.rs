//! The admin port: `/live`, `/ready` and `/metrics` over plain HTTP/1.1, and nothing else.
//!
//! The answers come from a [`Status`], which the process keeps up to date, and from `/proc`; a request waits for nothing. The server bounds
//! connections, header bytes and time, since it listens on an address of the pod without authentication.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::AbortHandle, time};

/// Connections served at once. For a new one the oldest is closed, so that idle connections cannot block a probe.
const MAX_CONNECTIONS: usize = 32;
/// Connections of these that get metrics: those of a signer with thousands of authorities are megabytes, which a caller that does not read
/// has it hold. For one more the oldest of them is closed.
const MAX_METRICS: usize = 4;
/// The maximum size of a request's head, in bytes. Those of probes and scrapers are far smaller.
const MAX_HEAD: usize = 8 * 1024;
/// Metrics that take this long to make, as those of thousands of authorities do, are made again after so many times as long: callers get a
/// tenth of the processor at most.
const SLOW: Duration = Duration::from_millis(5);
const REST: u32 = 10;
/// Where the metrics are.
const METRICS: &str = "/metrics";
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live; scrapers and kubelet connect again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// A check of the admin port fails. The text names what stands still or is missing, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckError(String);

impl From<String> for CheckError {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for CheckError {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The state of a process, for its admin port.
pub trait Status: Send + Sync + 'static {
    /// Checks that the process makes progress. After an error kubelet restarts the container.
    ///
    /// # Errors
    /// The stalled part, for the operator.
    fn live(&self) -> Result<(), CheckError>;

    /// Checks that the process can serve others.
    ///
    /// # Errors
    /// The missing condition, for the operator.
    fn ready(&self) -> Result<(), CheckError>;

    /// The metrics in the OpenMetrics text format.
    fn metrics(&self) -> String;
}

/// Serves `status` on `listener` until the future is dropped. An error of one connection does not affect the others.
pub async fn serve(listener: TcpListener, status: Arc<dyn Status>) {
    // The tasks hold it weakly: it ends with this future.
    let connections = Arc::new(Mutex::new(Connections::default()));
    let made = Arc::new(Made::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the next accept would fail at once as well.
                tracing::warn!(%error, "admin port: accept failed");
                time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (status, made) = (Arc::clone(&status), Arc::clone(&made));
        let open = Arc::downgrade(&connections);
        connections.lock().unwrap_or_else(PoisonError::into_inner).add(move |id| {
            let connection = tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    if request.method() == Method::GET
                        && request.uri().path() == METRICS
                        && let Some(open) = open.upgrade()
                    {
                        open.lock().unwrap_or_else(PoisonError::into_inner).gets_metrics(id);
                    }
                    let answer = answer(request.method(), request.uri().path(), &*status, &made);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(MAX_HEAD)
                    .serve_connection(TokioIo::new(stream), service);
                if let Ok(Err(error)) = time::timeout(CONNECTION_TIMEOUT, connection).await {
                    tracing::debug!(%error, "admin port: connection failed");
                }
            });
            connection.abort_handle()
        });
    }
}

/// The connections that are served, the oldest first. Dropping it closes them.
#[derive(Default)]
struct Connections {
    open: VecDeque<(u64, AbortHandle)>,
    /// Those that got metrics last.
    metrics: VecDeque<u64>,
    next: u64,
}

impl Connections {
    /// Begins a connection, which is told its number.
    fn add(&mut self, begin: impl FnOnce(u64) -> AbortHandle) {
        self.open.retain(|(_, open)| !open.is_finished());
        if self.open.len() >= MAX_CONNECTIONS
            && let Some((_, oldest)) = self.open.pop_front()
        {
            oldest.abort();
        }
        self.open.push_back((self.next, begin(self.next)));
        self.next += 1;
    }

    /// A connection is going to get metrics.
    fn gets_metrics(&mut self, id: u64) {
        self.metrics.retain(|other| {
            *other != id && self.open.iter().any(|(open, handle)| open == other && !handle.is_finished())
        });
        self.metrics.push_back(id);
        if self.metrics.len() > MAX_METRICS
            && let Some(oldest) = self.metrics.pop_front()
            && let Some((_, oldest)) = self.open.iter().find(|(open, _)| *open == oldest)
        {
            oldest.abort();
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.open.iter().for_each(|(_, open)| open.abort());
    }
}

/// The metrics that were made last.
#[derive(Default)]
struct Made(Mutex<Option<Last>>);

struct Last {
    at: Instant,
    took: Duration,
    text: Bytes,
}

impl Made {
    fn metrics(&self, status: &dyn Status) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Last { at, took, text }) = &*last
            && *took >= SLOW
            && at.elapsed() < *took * REST
        {
            return text.clone();
        }
        let began = Instant::now();
        let text = Bytes::from(with_process(&status.metrics()));
        *last = Some(Last { at: Instant::now(), took: began.elapsed(), text: text.clone() });
        text
    }
}

fn answer(method: &Method, path: &str, status: &dyn Status, made: &Made) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match path {
        "/live" => verdict(status.live()),
        "/ready" => verdict(status.ready()),
        METRICS => {
            let mut response = text(StatusCode::OK, made.metrics(status));
            response.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
            );
            response
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n".to_owned()),
    }
}

/// `metrics` with those of the process, before the end.
pub fn with_process(metrics: &str) -> String {
    format!("{}{}# EOF\n", metrics.strip_suffix("# EOF\n").unwrap_or(metrics), crate::process::metrics())
}

fn verdict(result: Result<(), CheckError>) -> Response<Full<Bytes>> {
    match result {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    struct Half;

    impl Status for Half {
        fn live(&self) -> Result<(), CheckError> {
            Ok(())
        }

        fn ready(&self) -> Result<(), CheckError> {
            Err("role peer: no certificate yet".into())
        }

        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
    }

    async fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Half)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn each_path_is_answered_from_the_status() {
        for (path, code, word) in [
            ("/live", "200", "ok"),
            ("/ready", "503", "role peer: no certificate yet"),
            ("/metrics", "200", "\nprocess_resident_memory_bytes "),
            ("/metrics", "200", "} 1\n# EOF\n"),
            ("/etcd", "404", "not found"),
            ("/", "404", "not found"),
            ("/metrics/", "404", "not found"),
        ] {
            let answer = ask(&get(path)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.contains(word), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_cut_off() {
        let answer = ask(&format!("GET /live HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD))).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test]
    async fn for_one_connection_more_the_oldest_goes() {
        let mut open = Connections::default();
        let mut sitting = Vec::new();
        for _ in 0..=MAX_CONNECTIONS {
            open.add(|_| {
                let task = tokio::spawn(std::future::pending::<()>());
                let handle = task.abort_handle();
                sitting.push(task);
                handle
            });
        }
        let oldest = time::timeout(CONNECTION_TIMEOUT, sitting.remove(0)).await.unwrap();
        assert!(oldest.unwrap_err().is_cancelled());
        assert!(sitting.iter().all(|task| !task.is_finished()));
        drop(open);
        for task in sitting {
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }

    struct Large;

    impl Status for Large {
        fn live(&self) -> Result<(), CheckError> {
            Ok(())
        }

        fn ready(&self) -> Result<(), CheckError> {
            Ok(())
        }

        fn metrics(&self) -> String {
            "# x\n".repeat(4 << 20)
        }
    }

    /// Metrics that take long to make.
    struct Slow(std::sync::atomic::AtomicUsize);

    impl Status for Slow {
        fn live(&self) -> Result<(), CheckError> {
            Ok(())
        }

        fn ready(&self) -> Result<(), CheckError> {
            Ok(())
        }

        fn metrics(&self) -> String {
            std::thread::sleep(Duration::from_millis(50));
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            "# EOF\n".to_owned()
        }
    }

    #[test]
    fn metrics_take_a_part_of_the_time_however_often_they_are_asked_for() {
        let (slow, made, began) = (Slow(0.into()), Made::default(), Instant::now());
        let mut asked = 0_u32;
        while began.elapsed() < Duration::from_millis(600) {
            assert!(made.metrics(&slow).ends_with(b"# EOF\n"));
            asked += 1;
        }
        // Each took 50 ms at least, and ten times as long passed before the next.
        let times = slow.0.into_inner();
        assert!((1..=2).contains(&times) && asked > 2, "{times} times for {asked}");
    }

    /// Callers that ask for metrics and do not read them: for one more the oldest goes, and who reads gets all.
    #[tokio::test]
    async fn metrics_that_nobody_reads_are_held_for_a_few() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Large)));
        let begin = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(get("/metrics").as_bytes()).await.unwrap();
            // It is being answered.
            stream.readable().await.unwrap();
            stream
        };
        let whole = async |mut stream: TcpStream| {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.is_ok() && answer.ends_with(b"# EOF\n")
        };
        let mut unread = VecDeque::new();
        for _ in 0..MAX_METRICS {
            unread.push_back(begin().await);
        }
        assert!(whole(begin().await).await, "one that reads");
        assert!(!whole(unread.pop_front().unwrap()).await, "the oldest");
        assert!(whole(unread.pop_back().unwrap()).await, "the youngest");
        server.abort();
    }

    #[tokio::test]
    async fn nothing_is_written() {
        let answer = ask("POST /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }
}
