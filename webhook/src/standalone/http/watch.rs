//! A watch: the events of the requests that a caller may see, one JSON line each, for as long as the caller listens.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, stream};
use jiff::Timestamp;
use serde_json::json;
use tokio::{task::yield_now, time};

use crate::standalone::{
    error::ApiError,
    http::{
        route::Selector,
        table::{self, Form},
    },
    limits::Permit,
    store::{Event, Kind, Since, Store, StoredRequest},
    version::Version,
};

/// Bytes of events that are written together; one event may be larger.
const CHUNK: usize = 32 * 1024;
/// Events that are taken from the ring together.
const EVENTS: usize = 64;
/// How often a bookmark tells a watcher how far it is.
const BOOKMARK: Duration = Duration::from_secs(60);

/// The parameters of a watch.
pub struct Watch {
    /// Where the events come from.
    pub store: Store,
    /// Which requests.
    pub selector: Selector,
    /// In whose words.
    pub version: Version,
    /// In which form.
    pub form: Form,
    /// Events after this revision.
    pub revision: u64,
    /// First of all, what there is, as events.
    pub initial: VecDeque<Arc<StoredRequest>>,
    /// True if the end of what there is is marked by a bookmark of its own (`sendInitialEvents`).
    pub mark_initial_end: bool,
    /// True if bookmarks are wanted.
    pub bookmarks: bool,
    /// When the watch ends by itself.
    pub end: Instant,
    /// One of the watches that the caller may have.
    pub permit: Permit,
}

/// Where a watch is.
struct State {
    watch: Watch,
    revisions: tokio::sync::watch::Receiver<u64>,
    started: bool,
    columns: bool,
    over: bool,
    bookmark_at: Instant,
}

impl Watch {
    /// The response's body.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
        let state = State {
            revisions: self.store.revisions(),
            started: false,
            columns: true,
            over: false,
            bookmark_at: Instant::now() + BOOKMARK,
            watch: self,
        };
        stream::unfold(state, |mut state| async move {
            let bytes = state.next().await?;
            Some((Ok(bytes), state))
        })
    }
}

impl State {
    /// The next lines, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        // Let this thread serve other requests in between.
        yield_now().await;
        if !self.started {
            let lines = self.initial();
            if !lines.is_empty() {
                return Some(Bytes::from(lines));
            }
        }
        loop {
            // Seen before the events are read, so that a change in between wakes this watch again.
            self.revisions.borrow_and_update();
            match self.watch.store.since(self.watch.revision, EVENTS) {
                Since::Gone => {
                    self.over = true;
                    let error = ApiError::Expired("too old resource version; list again".to_owned());
                    return Some(Bytes::from(line("ERROR", error.status().to_string().as_bytes())));
                }
                Since::Events(events, revision) => {
                    self.watch.revision = revision;
                    let lines = self.lines(&events);
                    if !lines.is_empty() {
                        return Some(Bytes::from(lines));
                    }
                    if !events.is_empty() {
                        // None of these was for this watch; there may be more.
                        yield_now().await;
                        continue;
                    }
                }
            }
            let now = Instant::now();
            if now >= self.watch.end {
                return None;
            }
            if self.watch.bookmarks && now >= self.bookmark_at {
                self.bookmark_at = now + BOOKMARK;
                return Some(Bytes::from(self.bookmark(false)));
            }
            let until = if self.watch.bookmarks { self.watch.end.min(self.bookmark_at) } else { self.watch.end };
            let changed = time::timeout(until.saturating_duration_since(now), self.revisions.changed()).await;
            if let Ok(Err(_)) = changed {
                // The store has ended.
                return None;
            }
        }
    }

    /// The next chunk of what there is; its end is marked, where that is wanted.
    fn initial(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        while lines.len() < CHUNK {
            let Some(request) = self.watch.initial.pop_front() else {
                self.started = true;
                if self.watch.mark_initial_end {
                    lines.extend(self.bookmark(true));
                }
                break;
            };
            lines.extend(self.event("ADDED", &request));
        }
        lines
    }

    fn lines(&mut self, events: &[Event]) -> Vec<u8> {
        let mut lines = Vec::new();
        for event in events.iter().filter(|e| self.watch.selector.takes(&e.request)).cloned().collect::<Vec<_>>() {
            let kind = match event.kind {
                Kind::Added => "ADDED",
                Kind::Modified => "MODIFIED",
                Kind::Deleted => "DELETED",
            };
            lines.extend(self.event(kind, &event.request));
        }
        lines
    }

    fn event(&mut self, kind: &str, request: &StoredRequest) -> Vec<u8> {
        let object = table::event_object(request, self.watch.version, self.watch.form, Timestamp::now(), self.columns);
        self.columns = false;
        line(kind, &object)
    }

    fn bookmark(&self, initial_end: bool) -> Vec<u8> {
        let mut metadata = json!({ "resourceVersion": self.watch.revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.watch.form {
            Form::Table(_) => table::empty_table(metadata),
            Form::Object => json!({
                "kind": "CertificateSigningRequest",
                "apiVersion": self.watch.version.api_version(),
                "metadata": metadata,
                "spec": { "request": null, "signerName": "" },
                "status": {},
            }),
        };
        line("BOOKMARK", object.to_string().as_bytes())
    }
}

fn line(kind: &str, object: &[u8]) -> Vec<u8> {
    [format!(r#"{{"type":"{kind}","object":"#).as_bytes(), object, b"}\n"].concat()
}
