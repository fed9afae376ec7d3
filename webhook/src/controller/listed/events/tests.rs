use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request as HttpRequest, Response};
use kube::client::Body;
use tokio::time::sleep;

use super::*;

/// An API server without streaming lists. A page takes its time; a watch brings nothing.
#[derive(Clone, Default)]
struct Slow(Arc<AtomicUsize>);

const PAGE_TAKES: Duration = Duration::from_millis(200);

impl tower::Service<HttpRequest<Body>> for Slow {
    type Response = Response<BoxedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let lists = Arc::clone(&self.0);
        Box::pin(async move {
            let query = request.uri().query().unwrap_or_default();
            if query.contains("watch=true") {
                return Ok(Response::new(BoxedBody::new(Silent)));
            }
            lists.fetch_add(1, Ordering::Relaxed);
            sleep(PAGE_TAKES).await;
            let page =
                r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a","resourceVersion":"3"}}]}"#;
            let page = Full::new(Bytes::from_static(page.as_bytes()));
            Ok(Response::new(BoxedBody::new(page.map_err(|never| match never {}))))
        })
    }
}

type BoxedBody = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// A connection on which nothing comes.
struct Silent;

impl hyper::body::Body for Silent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

fn events(slow: &Slow) -> Events<Metadata> {
    let source = Source {
        path: "/api/v1/pods".to_owned(),
        in_pages: true,
        wanted: &[&["metadata", "name"]],
        limit: 1024,
        ..Source::default()
    };
    Events::new(Client::new(slow.clone(), "default"), source)
}

/// The next event, by a caller that has other things to do every few milliseconds, as one that waits for several sources.
async fn next(events: &mut Events<Metadata>) -> Result<Event<Metadata>, WatchError> {
    loop {
        if let Ok(event) = timeout(Duration::from_millis(5), events.next()).await {
            return event;
        }
    }
}

#[tokio::test]
async fn a_caller_with_other_things_to_do_starts_no_request_anew() {
    let slow = Slow::default();
    let mut events = events(&slow);
    assert!(matches!(next(&mut events).await, Ok(Event::Begins)));
    assert!(matches!(next(&mut events).await, Ok(Event::Listed(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Complete)));
    assert_eq!(slow.0.load(Ordering::Relaxed), 1, "lists");
}

#[tokio::test]
async fn a_caller_with_other_things_to_do_notices_silence() {
    let mut events = events(&Slow::default());
    while !matches!(next(&mut events).await, Ok(Event::Complete)) {}
    for _ in 0..20 {
        assert!(timeout(Duration::from_millis(5), events.next()).await.is_err());
    }
    assert!(matches!(events.state, State::Open { mode: Mode::Watch, .. }));
    events.heard -= SILENCE;
    assert!(matches!(next(&mut events).await, Err(WatchError::Silence)));
}

/// What an API server answers, one after the other, and what it was asked for.
#[derive(Default)]
struct Script {
    answers: VecDeque<(u16, String)>,
    asked: Vec<&'static str>,
}

/// An API server with a script; nothing comes on a watch that it does not refuse.
#[derive(Clone)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new<'a>(answers: impl IntoIterator<Item = (u16, &'a str)>) -> Self {
        let answers = answers.into_iter().map(|(status, body)| (status, body.to_owned())).collect();
        Self(Arc::new(Mutex::new(Script { answers, ..Script::default() })))
    }

    fn asked(&self) -> Vec<&'static str> {
        self.0.lock().map(|script| script.asked.clone()).unwrap_or_default()
    }

    fn events(&self, in_pages: bool) -> Events<Metadata> {
        let server = self.clone();
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let what = if query.contains("sendInitialEvents=true") {
                "streaming"
            } else if query.contains("watch=true") {
                "watch"
            } else if query.split('&').any(|part| part == "limit=1") {
                "probe"
            } else {
                "page"
            };
            let answer = server.0.lock().ok().and_then(|mut script| {
                script.asked.push(what);
                script.answers.pop_front()
            });
            let (status, body) = answer.unwrap_or((500, String::new()));
            let body = if what == "watch" && status == 200 {
                BoxedBody::new(Silent)
            } else {
                BoxedBody::new(Full::new(Bytes::from(body)).map_err(|never| match never {}))
            };
            let mut answer = Response::new(body);
            *answer.status_mut() = status.try_into().unwrap_or_default();
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let source = Source { path: "/api/v1/pods".to_owned(), in_pages, limit: 1024, ..Source::default() };
        Events::new(Client::new(service, "default"), source)
    }
}

async fn complete(events: &mut Events<Metadata>) {
    while !matches!(next(events).await, Ok(Event::Complete)) {
        events.wait_until = None;
    }
}

/// The watch that is open brings nothing for so long that it is given up.
async fn falls_silent(events: &mut Events<Metadata>) {
    while !matches!(events.state, State::Open { mode: Mode::Watch, .. }) {
        assert!(timeout(Duration::from_millis(5), events.next()).await.is_err());
    }
    events.heard -= SILENCE;
    events.quiet_since -= QUIET;
    assert!(matches!(next(events).await, Err(WatchError::Silence)));
    events.wait_until = None;
}

/// The API server takes a watch of a version that it has not reached, and sends nothing on it.
#[tokio::test]
async fn what_a_restored_datastore_has_is_listed_again() {
    let of = |version: &str| format!(r#"{{"metadata":{{"resourceVersion":"{version}"}},"items":[]}}"#);
    let (then, later, restored) = (of("1000"), of("1001"), of("7"));
    let watch = (200, "");
    let server = Scripted::new([
        (200, &*then),
        watch,
        (200, &*later),
        watch,
        (403, ""),
        watch,
        (200, &*restored),
        (200, &*restored),
    ]);
    let mut events = server.events(true);
    complete(&mut events).await;
    // Nothing happens, it may not be asked, and then it is another one.
    for _ in 0..3 {
        falls_silent(&mut events).await;
    }
    assert!(matches!(next(&mut events).await, Ok(Event::Begins)));
    complete(&mut events).await;
    assert_eq!(events.version(), 7);
    assert_eq!(server.asked(), ["page", "watch", "probe", "watch", "probe", "watch", "probe", "page"]);
}

#[tokio::test]
async fn a_failure_that_passes_takes_no_streaming_list_away() {
    let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    let page = r#"{"metadata":{"resourceVersion":"8"},"items":[]}"#;
    let answers = [(503, ""), (502, ""), (200, end), (410, ""), (500, ""), (200, page), (410, ""), (200, end)];
    let server = Scripted::new(answers);
    let mut events = server.events(false);
    for _ in 0..3 {
        complete(&mut events).await;
    }
    assert_eq!(
        server.asked(),
        ["streaming", "streaming", "streaming", "watch", "streaming", "page", "watch", "streaming"],
        "an API server may have none for a while"
    );
}
