//! The HTTPS side of admission: everything that HTTP can do wrong, answered or ended. HTTP/1.1 alone: API servers speak it
//! with every webhook that does not offer HTTP/2, and a request then holds one connection and no more.
//!
//! The memory of the process is bounded for all clients together: by the number of connections, by the bytes of all bodies, and
//! by one large review at a time.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use etcd_tls_telemetry::until_set::UntilSet;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;

use super::{
    bodies::{Bodies, Body, Budget, Evicted},
    connections::{Bounds, Connection, Connections, DRAIN, State as Doing},
    review::{Answer, BadReview, Verdict},
};

/// The largest body that is read. The API server takes no object of more than 3 MiB; the review around it is small.
const MAX_BODY: usize = 3 * 1024 * 1024 + 64 * 1024;
/// A review of more bytes than this is answered alone: read, it takes many times its size.
const LARGE: usize = 128 * 1024;
/// How long a body may take. The API server waits 5 s for the whole review.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take: long enough for a machine that is short of CPU.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head, and of what is read of a body at once.
const MAX_HEAD: usize = 16 * 1024;
/// The limits of bodies.
const BUDGET: Budget = Budget { bytes: 16 * 1024 * 1024, bodies: 1024 };
/// Connections. An API server closes its own after 90 s without a request; one that it has just used must not be closed
/// under it, so those that brought a review are kept for longer.
const BOUNDS: Bounds = Bounds {
    connections: 1024,
    keep_alive: Duration::from_secs(100),
    short_keep_alive: Duration::from_secs(10),
    crowded_keep_alive: Duration::from_secs(25),
};

/// The endpoint of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /mutate`: a pod's patch.
    Mutate,
    /// `POST /warn`: the warnings for a workload.
    Warn,
}

/// Answers the body of a request.
pub type Answering = Arc<dyn Fn(Endpoint, &[u8]) -> Result<Answer, BadReview> + Send + Sync>;

/// Reviews by what came of them, and what holds memory.
#[derive(Clone, Debug)]
pub struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
    connections: Gauge,
    bodies: Gauge,
    evicted: Counter,
    duration: Histogram,
    expiry: UntilSet,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReviewLabels {
    verdict: &'static str,
}

impl Metrics {
    /// Puts them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let reviews = Family::<ReviewLabels, Counter>::default();
        for verdict in Verdict::ALL.iter().map(|v| v.as_str()).chain(["bad-request"]) {
            let _ = reviews.get_or_create(&ReviewLabels { verdict });
        }
        registry.register("reviews", "Admission reviews by verdict", reviews.clone());
        let (connections, bodies, evicted) = (Gauge::default(), Gauge::default(), Counter::default());
        registry.register("connections", "Open connections", connections.clone());
        registry.register("body_bytes", "Memory held by request bodies, in bytes", bodies.clone());
        registry.register("bodies_evicted", "Bodies given up because their memory was needed", evicted.clone());
        let duration = Histogram::new([0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0]);
        registry.register(
            "review_duration_seconds",
            "Time from the head of a request until its answer is ready; the arrival of its body included",
            duration.clone(),
        );
        let expiry = UntilSet::default();
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "notAfter of the serving certificate in use, whoever keeps it",
            expiry.clone(),
        );
        Self { reviews, connections, bodies, evicted, duration, expiry }
    }

    /// Shows when the serving certificate ends.
    pub fn serving_until(&self, not_after: SystemTime) {
        let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    fn count(&self, verdict: &'static str) {
        self.reviews.get_or_create(&ReviewLabels { verdict }).inc();
    }
}

struct State {
    answer: Answering,
    metrics: Metrics,
    bodies: Arc<Bodies>,
    connections: Arc<Connections>,
    large: Arc<tokio::sync::Mutex<()>>,
}

/// A request that gets no review's answer.
struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<Evicted> for Refused {
    fn from(evicted: Evicted) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, evicted.to_string())
    }
}

/// Serves `POST /mutate` and `POST /warn` on `listener`, each body answered by `answer`, until `stop` resolves; then ends the requests in
/// flight and returns.
pub async fn serve(
    listener: TcpListener,
    mut tls: rustls::ServerConfig,
    answer: Answering,
    metrics: Metrics,
    stop: impl Future<Output = ()>,
) {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let (bodies, connections) = (Bodies::new(BUDGET), Connections::new(BOUNDS));
    let large = Arc::new(tokio::sync::Mutex::new(()));
    let state = Arc::new(State { answer, metrics, bodies, connections, large });
    let mut tick = time::interval(Duration::from_secs(1));
    let accept = async {
        loop {
            state.connections.room().await;
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let connection = state.connections.add(peer.ip(), Instant::now());
                    tokio::spawn(converse(stream, acceptor.clone(), Arc::clone(&state), connection));
                }
                Err(error) => {
                    // Out of descriptors, most likely: the next accept would fail at once as well.
                    tracing::warn!(%error, "accept failed");
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let sweep = async {
        loop {
            tick.tick().await;
            state.connections.close_overdue(Instant::now());
            state.metrics.connections.set(i64::try_from(state.connections.len()).unwrap_or(i64::MAX));
            state.metrics.bodies.set(i64::try_from(state.bodies.used()).unwrap_or(i64::MAX));
        }
    };
    tokio::select! {
        () = stop => {}
        () = accept => {}
        () = sweep => {}
    }
    drop(listener);
    if time::timeout(DRAIN, state.connections.drain()).await.is_err() {
        tracing::warn!(connections = state.connections.len(), "connections did not end in time");
    }
}

/// One connection, from its handshake to its end.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>, connection: Connection) {
    let _ = stream.set_nodelay(true);
    let handshake = time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
            Err(_) => return tracing::debug!("no handshake in time"),
        },
        _ = connection.closing() => return,
    };
    connection.set(Doing::Idle, Instant::now());
    let (state, connection) = (&state, &connection);
    let service = service_fn(move |request| async move {
        let response = respond(request, state, connection).await;
        connection.set(Doing::Idle, Instant::now());
        Ok::<_, Infallible>(response)
    });
    let mut served = std::pin::pin!(
        http1::Builder::new()
            // A head that does not come is an idle connection.
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        grace = connection.closing() => {
            served.as_mut().graceful_shutdown();
            time::timeout(grace, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection failed");
    }
}

async fn respond(request: Request<Incoming>, state: &Arc<State>, connection: &Connection) -> Response<Full<Bytes>> {
    let begun = Instant::now();
    match review(request, state, connection).await {
        Ok(answer) => {
            connection.reviewed();
            state.metrics.duration.observe(begun.elapsed().as_secs_f64());
            state.metrics.count(answer.verdict.as_str());
            response(StatusCode::OK, "application/json", answer.body)
        }
        Err(Refused { status, message }) => {
            if status == StatusCode::SERVICE_UNAVAILABLE {
                state.metrics.evicted.inc();
            } else {
                state.metrics.count("bad-request");
            }
            tracing::warn!(status = status.as_u16(), reason = message, "review not answered");
            let mut response = response(status, "text/plain; charset=utf-8", format!("{message}\n"));
            let headers = response.headers_mut();
            if status == StatusCode::SERVICE_UNAVAILABLE {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            if status == StatusCode::METHOD_NOT_ALLOWED {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            // The rest of the body is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

async fn review(request: Request<Incoming>, state: &Arc<State>, connection: &Connection) -> Result<Answer, Refused> {
    let endpoint = match request.uri().path() {
        "/mutate" => Endpoint::Mutate,
        "/warn" => Endpoint::Warn,
        _ => return Err(Refused::new(StatusCode::NOT_FOUND, "not found")),
    };
    if request.method() != Method::POST {
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview"));
    }
    check_head(request.headers())?;
    connection.set(Doing::Reading, Instant::now());
    let mut body = state.bodies.open(connection.peer());
    let evicted = body.evicted();
    let read = time::timeout(BODY_TIMEOUT, read(request.into_body(), &mut body));
    tokio::select! {
        read = read => read
            .unwrap_or_else(|_| Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")))?,
        () = evicted => return Err(Evicted.into()),
    }
    answer(endpoint, body, state, connection).await
}

fn check_head(headers: &HeaderMap) -> Result<(), Refused> {
    let field = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let media = field(header::CONTENT_TYPE).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"));
    }
    if field(header::CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an encoded body is not read"));
    }
    let length = field(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    Ok(())
}

fn too_large() -> Refused {
    Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 3 MiB")
}

async fn read(mut incoming: Incoming, body: &mut Body) -> Result<(), Refused> {
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| Refused::new(StatusCode::BAD_REQUEST, "the body broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        if body.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        body.push(data).await?;
    }
    Ok(())
}

/// Answers a body that is whole. A large one is read apart from the others, one at a time.
async fn answer(
    endpoint: Endpoint,
    body: Body,
    state: &Arc<State>,
    connection: &Connection,
) -> Result<Answer, Refused> {
    if body.len() <= LARGE {
        connection.set(Doing::Answering, Instant::now());
        return judge(&state.answer, endpoint, body.answering()?);
    }
    let evicted = body.evicted();
    let alone = tokio::select! {
        alone = Arc::clone(&state.large).lock_owned() => alone,
        () = evicted => return Err(Evicted.into()),
    };
    connection.set(Doing::Answering, Instant::now());
    let answering = Arc::clone(&state.answer);
    let judged = tokio::task::spawn_blocking(move || {
        let _alone = alone;
        judge(&answering, endpoint, body.answering()?)
    })
    .await;
    judged.unwrap_or_else(|_| Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")))
}

fn judge(answering: &Answering, endpoint: Endpoint, body: &[u8]) -> Result<Answer, Refused> {
    // A panic would be a mistake of ours; it must not take other connections with it.
    match catch_unwind(AssertUnwindSafe(|| answering(endpoint, body))) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error @ BadReview::TooLarge)) => Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())),
        Ok(Err(error)) => Err(Refused::new(StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => {
            tracing::error!("a review made the webhook panic; the request is failed");
            Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error"))
        }
    }
}

fn response(status: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
