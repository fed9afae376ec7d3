//! A proxy before the API server that does to calls what a bad network and a bad day do: it delays and so reorders, loses
//! requests and answers, truncates, repeats, answers errors and garbage itself, and ends, breaks and spoils watches. It can
//! also show some of the API as another version of the API server would.
//!
//! Callers authenticate through it by their tokens. The fault of the n-th call follows from the seed and n alone.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, Config, client::Body};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    apiserver::ApiServer,
    pki::{Ca, LeafOptions},
};

/// Callers trust the API server's own CA on this proxy.
type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;
/// Of a hundred calls, those to which something happens.
const CALLS_PERCENT: u64 = 35;
/// Of a hundred watches, those to which something happens while they last.
const WATCHES_PERCENT: u64 = 70;
/// The longest delay of a call.
const DELAY: Duration = Duration::from_millis(2500);
/// How long a watch goes well: at least, and at most this much longer.
const WATCH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(8));

/// The proxy. Ends when dropped, with all connections through it.
pub struct FaultProxy {
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    /// Its port.
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    seed: u64,
    calls: AtomicU64,
    faulty: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    stand_in: Mutex<Option<StandIn>>,
    translation: Mutex<Option<Arc<dyn Translation>>>,
    refused: Mutex<Vec<&'static str>>,
}

/// Shows some of the API server's API as another version of it would. Nothing happens to these calls.
pub trait Translation: Send + Sync {
    /// The path and query that the API server is asked in place of `asked`; `None`: nothing is translated.
    fn path(&self, asked: &str) -> Option<String>;

    /// The answer to `asked`: an object, a list, or an event of a watch.
    fn answer(&self, asked: &str, value: Value) -> Value;
}

/// Answers a read of this path and query in place of the API server, with an object as JSON.
type StandIn = Arc<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;

/// The fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Delay,
    RequestLost,
    AnswerLost,
    Truncated,
    CutShort,
    Repeated,
    Refused(StatusCode, &'static str),
    Garbage(&'static [u8]),
}

/// How a watch ends, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchFault {
    Ends,
    Breaks,
    BreaksInALine,
    Stalls,
    Expires,
    Garbage,
}

const FAULTS: [(Fault, &str); 15] = [
    (Fault::Delay, "delayed"),
    (Fault::Delay, "delayed"),
    (Fault::RequestLost, "request lost"),
    (Fault::AnswerLost, "answer lost"),
    (Fault::AnswerLost, "answer lost"),
    (Fault::Truncated, "truncated"),
    (Fault::CutShort, "cut short"),
    (Fault::Repeated, "repeated"),
    (Fault::Repeated, "repeated"),
    (Fault::Refused(StatusCode::CONFLICT, "Conflict"), "409"),
    (Fault::Refused(StatusCode::GONE, "Expired"), "410"),
    (Fault::Refused(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"), "429"),
    (Fault::Refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"), "500"),
    (Fault::Garbage(b"<html><body>Sign in to the network</body></html>"), "garbage"),
    (Fault::Garbage(b"\x00\xff{\"kind\":"), "garbage"),
];

const WATCH_FAULTS: [(WatchFault, &str); 6] = [
    (WatchFault::Ends, "watch ended"),
    (WatchFault::Breaks, "watch broken"),
    (WatchFault::BreaksInALine, "watch broken in a line"),
    (WatchFault::Stalls, "watch stalled"),
    (WatchFault::Expires, "watch expired"),
    (WatchFault::Garbage, "garbage in a watch"),
];

impl FaultProxy {
    /// Starts one that does nothing to the calls yet.
    pub async fn start(api: &ApiServer, seed: u64) -> Self {
        let mut config = Config::new(api.url.parse().expect("a URL"));
        let ca = CertificateDer::from_pem_slice(api.ca.pem.as_bytes()).expect("a certificate");
        config.root_cert = Some(vec![ca.to_vec()]);
        let shared = Arc::new(Shared {
            upstream: Client::try_from(config).expect("a client"),
            seed,
            calls: AtomicU64::new(0),
            faulty: AtomicBool::new(false),
            counts: Mutex::default(),
            stand_in: Mutex::default(),
            translation: Mutex::default(),
            refused: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(accept(listener, acceptor(&api.ca), Arc::clone(&shared)));
        Self { url: format!("https://127.0.0.1:{port}"), port, shared, task }
    }

    /// Whether something happens to calls from now on. Watches that are open keep what was planned for them.
    pub fn set_faulty(&self, faulty: bool) {
        self.shared.faulty.store(faulty, Ordering::SeqCst);
    }

    /// Has reads answered by `answer` where it has one: for more objects than a test can create.
    pub fn answer_reads(&self, answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) {
        *self.shared.stand_in.lock().expect("no panic while held") = Some(Arc::new(answer));
    }

    /// Translates the calls that `translation` knows.
    pub fn translate(&self, translation: impl Translation + 'static) {
        *self.shared.translation.lock().expect("no panic while held") = Some(Arc::new(translation));
    }

    /// Has writes answered by 503 from now on whose body has one of `texts`. Each text is counted as a fault.
    pub fn refuse(&self, texts: &[&'static str]) {
        *self.shared.refused.lock().expect("no panic while held") = texts.to_vec();
    }

    /// The faults so far with their counts; `calls` is the number of all calls.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = self.shared.counts.lock().expect("no panic while held").clone();
        counts.insert("calls", self.shared.calls.load(Ordering::SeqCst));
        counts
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(ca: &Ca) -> TlsAcceptor {
    let leaf = ca.leaf(&LeafOptions {
        not_after: std::time::SystemTime::now() + Duration::from_secs(86_400),
        ..LeafOptions::default()
    });
    let chain = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("a key");
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move { shared.answer(request).await }
            });
            // An error is how a connection breaks.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Shared {
    /// An error closes the connection without an answer.
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Answer> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        let mut random = Random(self.seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let faulty = self.faulty.load(Ordering::SeqCst);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if head.method == Method::GET
            && let Some(answer) = self.stand_in(&head)
        {
            return Ok(answer_of(StatusCode::OK, answer.into()));
        }
        if let Some(text) = self.refused(&head, &body) {
            self.count(text);
            return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"));
        }
        let translation = self.translation.lock().expect("no panic while held").clone();
        if let Some(translation) = translation
            && let asked = path_of(&head).to_owned()
            && let Some(path) = translation.path(&asked)
        {
            let answer = self.send_to(&path, &head, &body).await?;
            return Ok(answer.map(|body| translated(body, move |value| translation.answer(&asked, value))));
        }
        if head.uri.query().is_some_and(|query| query.contains("watch=")) {
            let answer = self.send(&head, &body).await?;
            let fault = (faulty && random.below(100) < WATCHES_PERCENT).then(|| random.of(&WATCH_FAULTS));
            let Some((fault, name)) = fault else { return Ok(answer.map(whole)) };
            self.count(name);
            let until = WATCH.0 + WATCH.1.mul_f64(random.below(1000) as f64 / 1000.0);
            return Ok(answer.map(|body| spoiled(body, fault, until)));
        }
        let fault = (faulty && random.below(100) < CALLS_PERCENT).then(|| random.of(&FAULTS));
        let Some((fault, name)) = fault else { return Ok(self.send(&head, &body).await?.map(whole)) };
        self.count(name);
        match fault {
            Fault::Delay => {
                sleep(DELAY.mul_f64(random.below(1000) as f64 / 1000.0)).await;
                Ok(self.send(&head, &body).await?.map(whole))
            }
            Fault::RequestLost => Err(io::ErrorKind::ConnectionReset.into()),
            Fault::AnswerLost => {
                let _ = self.send(&head, &body).await?.into_body().collect().await;
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Fault::Truncated | Fault::CutShort => {
                let (parts, body) = self.send(&head, &body).await?.into_parts();
                let all = body.collect().await.map_err(io::Error::other)?.to_bytes();
                let half = Ok(Frame::data(all.slice(..all.len() / 2)));
                // Cut short, it looks complete to HTTP.
                let breaks = (fault == Fault::Truncated).then(|| Err(io::ErrorKind::ConnectionReset.into()));
                Ok(Response::from_parts(
                    parts,
                    StreamBody::new(stream::iter([Some(half), breaks]).filter_map(ready)).boxed_unsync(),
                ))
            }
            Fault::Repeated => {
                let first = self.send(&head, &body).await?;
                let second = self.send(&head, &body).await?;
                let answer = if random.below(2) == 0 && head.method != Method::GET { first } else { second };
                Ok(answer.map(whole))
            }
            Fault::Refused(status, reason) => Ok(refusal(status, reason)),
            Fault::Garbage(bytes) => Ok(answer_of(StatusCode::OK, Bytes::from_static(bytes))),
        }
    }

    fn stand_in(&self, head: &Parts) -> Option<Vec<u8>> {
        let stand_in = self.stand_in.lock().expect("no panic while held").clone()?;
        stand_in(head.uri.path_and_query()?.as_str())
    }

    /// The text for which a write is refused.
    fn refused(&self, head: &Parts, body: &Bytes) -> Option<&'static str> {
        let texts = self.refused.lock().expect("no panic while held");
        let has = |text: &&&str| body.windows(text.len()).any(|part| part == text.as_bytes());
        texts.iter().filter(|_| head.method != Method::GET).find(has).copied()
    }

    fn count(&self, name: &'static str) {
        *self.counts.lock().expect("no panic while held").entry(name).or_default() += 1;
    }

    async fn send(&self, head: &Parts, body: &Bytes) -> io::Result<Response<Body>> {
        self.send_to(path_of(head), head, body).await
    }

    async fn send_to(&self, path: &str, head: &Parts, body: &Bytes) -> io::Result<Response<Body>> {
        let mut on = Request::builder().method(head.method.clone()).uri(path);
        for name in ["accept", "content-type", "authorization", "user-agent"] {
            if let Some(value) = head.headers.get(name) {
                on = on.header(name, value);
            }
        }
        let request = on.body(Body::from(body.to_vec())).map_err(io::Error::other)?;
        let mut answer = self.upstream.send(request).await.map_err(io::Error::other)?;
        // Of this connection, not of the one to the API server.
        answer.headers_mut().remove("transfer-encoding");
        answer.headers_mut().remove("content-length");
        Ok(answer)
    }
}

async fn ready<T>(value: T) -> T {
    value
}

fn path_of(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |path| path.as_str())
}

/// A body whose lines, each a JSON value, are translated as they come.
fn translated(body: Body, translate: impl Fn(Value) -> Value + Send + 'static) -> UnsyncBoxBody<Bytes, io::Error> {
    let lines = stream::unfold((body.into_data_stream(), Vec::new()), |(mut chunks, mut rest)| async {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let after = rest.split_off(end + 1);
                return Some((Ok(rest), (chunks, after)));
            }
            match chunks.next().await {
                Some(Ok(chunk)) => rest.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(io::Error::other(error)), (chunks, rest))),
                None if rest.is_empty() => return None,
                None => return Some((Ok(rest), (chunks, Vec::new()))),
            }
        }
    });
    let frames = lines.map(move |line| {
        let line = line?;
        let value = serde_json::from_slice(&line).map(|value| format!("{}\n", translate(value)).into_bytes());
        Ok(Frame::data(value.unwrap_or(line).into()))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn whole(body: Body) -> UnsyncBoxBody<Bytes, io::Error> {
    body.map_err(io::Error::other).boxed_unsync()
}

fn answer_of(status: StatusCode, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

fn status_of(status: StatusCode, reason: &str) -> Value {
    let message = format!("made by the test: {reason}");
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": status.as_u16(), "reason": reason, "message": message,
    })
}

fn refusal(status: StatusCode, reason: &str) -> Answer {
    let mut answer = answer_of(status, status_of(status, reason).to_string().into());
    let headers = answer.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert("retry-after", hyper::header::HeaderValue::from_static("1"));
    }
    answer
}

/// A watch's body that goes well until then.
fn spoiled(body: Body, fault: WatchFault, after: Duration) -> UnsyncBoxBody<Bytes, io::Error> {
    StreamBody::new(spoil(body.into_data_stream().map(|chunk| chunk.map_err(io::Error::other)), fault, after))
        .boxed_unsync()
}

enum Phase {
    Well,
    /// The next part is sent in half.
    Half,
    Stalled,
    Broken,
    Over,
}

fn spoil(
    chunks: impl Stream<Item = io::Result<Bytes>> + Unpin + Send + 'static,
    fault: WatchFault,
    after: Duration,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let until = Instant::now() + after;
    stream::unfold((chunks, Phase::Well), move |(mut chunks, phase)| async move {
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        let data = |bytes: Bytes| Ok(Frame::data(bytes));
        match phase {
            Phase::Over => None,
            Phase::Broken => Some((Err(broken()), (chunks, Phase::Over))),
            Phase::Stalled => Some((chunks.next().await?.map(Frame::data), (chunks, Phase::Stalled))),
            Phase::Half => {
                let chunk = chunks.next().await?.ok()?;
                Some((data(chunk.slice(..chunk.len() / 2)), (chunks, Phase::Broken)))
            }
            Phase::Well => match timeout_at(until, chunks.next()).await {
                Ok(chunk) => Some((chunk?.map(Frame::data), (chunks, Phase::Well))),
                Err(_) => match fault {
                    WatchFault::Ends => None,
                    WatchFault::Breaks => Some((Err(broken()), (chunks, Phase::Over))),
                    // An empty chunk: nothing is sent.
                    WatchFault::BreaksInALine => Some((data(Bytes::new()), (chunks, Phase::Half))),
                    WatchFault::Stalls => {
                        sleep(DELAY).await;
                        Some((data(Bytes::new()), (chunks, Phase::Stalled)))
                    }
                    WatchFault::Expires => {
                        let event = json!({"type": "ERROR", "object": status_of(StatusCode::GONE, "Expired")});
                        Some((data(format!("{event}\n").into()), (chunks, Phase::Over)))
                    }
                    WatchFault::Garbage => Some((data(Bytes::from_static(b"<html>\n\xff\n")), (chunks, Phase::Over))),
                },
            },
        }
    })
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        let n = self.below(all.len() as u64);
        all[usize::try_from(n).expect("an index fits")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_follows_from_the_seed() {
        let plan = |seed: u64| {
            let of_call = |n: u64| Random(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).of(&FAULTS).1;
            (0..300).map(of_call).collect::<Vec<_>>()
        };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        for (_, name) in FAULTS {
            assert!(plan(1).contains(&name), "{name} never happens");
        }
    }
}
