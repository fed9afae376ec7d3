//! The HTTPS side of admission: everything that HTTP can do wrong, answered or ended.

use std::{
    net::{SocketAddr, TcpListener},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::Server,
    http::{StatusCode, header},
    web,
};
use bytes::BytesMut;
use futures::StreamExt;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::review::{Answer, BadReview, Verdict};

/// The largest body that is read. The API server takes no object of more than 3 MiB; the review around it is small.
const MAX_BODY: usize = 3 * 1024 * 1024 + 64 * 1024;
/// How long a body may take. The API server gives up after 30 s at the latest.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's head may take: long enough for a machine that is short of CPU.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an idle connection is kept. API servers keep theirs for 90 s.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// Connections at once and worker: a cluster has a handful of API servers.
const MAX_CONNECTIONS: usize = 512;
/// How long requests in flight have when the process is told to stop.
const DRAIN: u64 = 20;

/// What answers the body of a request.
pub type Answering = Arc<dyn Fn(&[u8]) -> Result<Answer, BadReview> + Send + Sync>;

/// Reviews by what came of them.
#[derive(Clone, Debug)]
pub struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
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
        Self { reviews }
    }

    fn count(&self, verdict: &'static str) {
        self.reviews.get_or_create(&ReviewLabels { verdict }).inc();
    }
}

struct State {
    answer: Answering,
    metrics: Metrics,
}

/// Serves `POST /mutate` on `listener`, each body answered by `answer`. To be polled until it ends, which its handle
/// makes it.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    workers: usize,
    answer: Answering,
    metrics: Metrics,
) -> std::io::Result<Server> {
    let state = web::Data::from(Arc::new(State { answer, metrics }));
    let server = HttpServer::new(move || {
        App::new().app_data(state.clone()).route("/mutate", web::post().to(mutate)).route(
            "/mutate",
            web::route().to(|| async { text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview") }),
        )
    })
    .workers(workers)
    .max_connections(MAX_CONNECTIONS)
    .client_request_timeout(HEAD_TIMEOUT)
    .client_disconnect_timeout(HEAD_TIMEOUT)
    .tls_handshake_timeout(HANDSHAKE_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(DRAIN)
    .disable_signals()
    .listen_rustls_0_23(listener, tls)?;
    Ok(server.run())
}

/// Listens on `address`; on IPv4 alone where the machine has no IPv6.
///
/// # Errors
/// The address is taken or not the machine's.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).or_else(|error| {
        if address.ip() == std::net::Ipv6Addr::UNSPECIFIED {
            return TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port()));
        }
        Err(error)
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn mutate(request: HttpRequest, payload: web::Payload, state: web::Data<State>) -> HttpResponse {
    let refused = |status, message: &str| {
        state.metrics.count("bad-request");
        tracing::warn!(status = status_number(status), message, "review not answered");
        text(status, message)
    };
    if let Err((status, message)) = check_head(&request) {
        return refused(status, message);
    }
    let body = match read(payload).await {
        Ok(body) => body,
        Err((status, message)) => return refused(status, message),
    };
    // A panic would be a mistake of ours; it must not take the worker and its other connections with it.
    let answer = catch_unwind(AssertUnwindSafe(|| (state.answer)(&body)));
    match answer {
        Ok(Ok(answer)) => {
            state.metrics.count(answer.verdict.as_str());
            tracing::debug!(verdict = answer.verdict.as_str(), "review");
            HttpResponse::Ok().content_type("application/json").body(answer.body)
        }
        Ok(Err(error @ BadReview::TooLarge)) => refused(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()),
        Ok(Err(error)) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(_) => {
            tracing::error!("a review made the webhook panic; the request is failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

fn check_head(request: &HttpRequest) -> Result<(), (StatusCode, &'static str)> {
    let field = |name| request.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    let media = field(header::CONTENT_TYPE).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"));
    }
    if field(header::CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "an encoded body is not read"));
    }
    let length = field(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE));
    }
    Ok(())
}

const TOO_LARGE: &str = "the body is larger than 3 MiB";

async fn read(mut payload: web::Payload) -> Result<BytesMut, (StatusCode, &'static str)> {
    let body = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| (StatusCode::BAD_REQUEST, "the body broke off"))?;
            if body.len() + chunk.len() > MAX_BODY {
                return Err((StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(read) => read,
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

fn text(status: StatusCode, message: &str) -> HttpResponse {
    HttpResponse::build(status).content_type("text/plain; charset=utf-8").body(format!("{message}\n"))
}

fn status_number(status: StatusCode) -> u16 {
    status.as_u16()
}
