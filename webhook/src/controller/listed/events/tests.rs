use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
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
