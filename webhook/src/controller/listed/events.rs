//! A list of the API server's objects, kept up to date by a watch.
//!
//! [`Events`] brings a first list and then what changes, for ever, with backoff. The list comes one object at a time: as a
//! streaming list where the API server has them (1.32 and later), else in pages. Of each object the wanted fields alone are
//! kept ([`super::projection`]), however large it is. [`Listed`] folds the events into a collection.

use std::{collections::VecDeque, marker::PhantomData, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, Status},
};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::answer::{BodyStream, Head, HeadMetadata, Object, object, refusal};
use crate::{
    controller::{
        client::{ApiServerError, REQUEST_TIMEOUT, WATCH_SECONDS, WatchBackoff},
        projection::{Fields, Kept, NotJson, Piece, Projection},
    },
    error::with_causes,
};

/// Objects in one page of a list, where the API server has no streaming lists. Its answer is read piece by piece, so this
/// bounds what the API server holds, not we.
const PAGE: u32 = 20;
/// How long a streaming list may take to be complete.
const LIST_SECONDS: u32 = 240;
/// A connection on which nothing comes for so long is dead: bookmarks come once a minute.
const SILENCE: Duration = Duration::from_secs(75);
/// Where watches brought nothing for so long, the API server is asked for its newest resourceVersion. One that is older than the
/// watch's says that its datastore was restored from a backup: such a watch brings nothing, no error either, until as much has
/// happened again. A datastore that tells no progress leaves the watches of what never changes without bookmarks, so this alone
/// proves nothing.
const QUIET: Duration = Duration::from_secs(110);
/// A watch that ends sooner is opened again after a wait.
const SHORTEST: Duration = Duration::from_secs(1);
/// The annotation of the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// The fields read of every object, bookmark and error.
const OF_ALL: [&[&str]; 5] = [
    &["metadata", "resourceVersion"],
    &["metadata", "annotations", INITIAL_EVENTS_END],
    &["code"],
    &["reason"],
    &["message"],
];
/// Asks for objects without spec and status.
pub(crate) const METADATA_ALONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// The objects to list and the fields to read of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// The path of the collection, such as `/api/v1/pods`.
    pub(crate) path: String,
    /// A selector of labels.
    pub(crate) labels: Option<String>,
    /// A selector of fields.
    pub(crate) fields: Option<String>,
    /// Ask for the metadata alone.
    pub(crate) metadata_alone: bool,
    /// List in pages, without a watch: the right to watch is missing.
    pub(crate) in_pages: bool,
    /// Objects in one page of a list; 0: few, since they may be large.
    pub(crate) page: u32,
    /// The fields of an object that are wanted; its resourceVersion comes anyhow.
    pub(crate) wanted: &'static [&'static [&'static str]],
    /// Bytes of the wanted fields of one object.
    pub(crate) limit: usize,
}

impl Source {
    /// The tree of the wanted fields, with something in front of each object's.
    pub(super) fn tree(&self, prefix: &[&'static str], more: &[&'static [&'static str]]) -> Arc<Fields> {
        let of_objects = self.wanted.iter().chain(&OF_ALL);
        let paths: Vec<Vec<&str>> = of_objects
            .map(|path| prefix.iter().chain(*path).copied().collect())
            .chain(more.iter().map(|path| path.to_vec()))
            .collect();
        Arc::new(Fields::of(&paths.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }
}

/// An event of a list or its watch.
#[derive(Debug)]
pub(crate) enum Event<T> {
    /// A list begins. Objects that it does not contain are gone.
    Begins,
    /// An object of the list.
    Listed(T),
    /// The list is complete.
    Complete,
    /// An object was made or changed.
    Applied(T),
    /// An object is gone.
    Deleted(T),
    /// Nothing else happened up to this resourceVersion.
    Progress,
}

impl<T> Event<T> {
    /// The same of a reference to its object.
    pub(crate) const fn as_ref(&self) -> Event<&T> {
        match self {
            Self::Begins => Event::Begins,
            Self::Listed(object) => Event::Listed(object),
            Self::Complete => Event::Complete,
            Self::Applied(object) => Event::Applied(object),
            Self::Deleted(object) => Event::Deleted(object),
            Self::Progress => Event::Progress,
        }
    }
}

#[derive(Deserialize)]
struct Frame<T> {
    #[serde(rename = "type")]
    kind: String,
    object: T,
}

/// A list or a watch that failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error(transparent)]
    Request(#[from] ApiServerError),
    #[error("the connection broke off: {0}")]
    Connection(String),
    #[error(transparent)]
    NotJson(#[from] NotJson),
    #[error("an object cannot be read: {0}")]
    Object(#[from] serde_json::Error),
    #[error("nothing came for {} s", SILENCE.as_secs())]
    Silence,
}

/// See the module. [`Self::next`] can be dropped at any time without loss.
pub(crate) struct Events<T> {
    client: Client,
    source: Source,
    of_watch: Arc<Fields>,
    of_list: Arc<Fields>,
    state: State,
    /// The last resourceVersion that was seen; `None` before a list.
    version: Option<String>,
    /// The page that comes next, while pages come.
    page: Option<String>,
    streaming_lists: bool,
    /// With the resourceVersion up to which everything was brought, once it is.
    ready: VecDeque<(Event<T>, u64)>,
    delivered: u64,
    backoff: WatchBackoff,
    wait_until: Option<Instant>,
    opened: Instant,
    /// When the answer last brought something.
    heard: Instant,
    /// When the watch last brought something, or began.
    quiet_since: Instant,
    /// How long the watches before it brought nothing.
    quiet: Duration,
    objects: PhantomData<fn() -> T>,
}

enum State {
    Closed,
    /// The request is under way. It is kept here, so that a caller that drops [`Events::next`] does not start it anew.
    Asked {
        answer: BoxFuture<'static, Result<Answered, ApiServerError>>,
        mode: Mode,
    },
    Open {
        body: BodyStream,
        projection: Projection,
        mode: Mode,
    },
}

/// The API server's answer to a request for a list or a watch.
enum Answered {
    Begins(BodyStream),
    Refused(u16, ApiServerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    StreamingList,
    Page,
    Watch,
    /// One object of a list, for the list's resourceVersion.
    Probe,
}

impl<T: Object> Events<T> {
    /// Of a source, from its first list.
    pub(crate) fn new(client: Client, source: Source) -> Self {
        let of_watch = source.tree(&["object"], &[&["type"]]);
        let of_list = source.tree(&["items", "[]"], &[&["metadata", "resourceVersion"], &["metadata", "continue"]]);
        Self {
            client,
            streaming_lists: !source.in_pages,
            source,
            of_watch,
            of_list,
            state: State::Closed,
            version: None,
            page: None,
            ready: VecDeque::new(),
            delivered: 0,
            backoff: WatchBackoff::default(),
            wait_until: None,
            opened: Instant::now(),
            heard: Instant::now(),
            quiet_since: Instant::now(),
            quiet: Duration::ZERO,
            objects: PhantomData,
        }
    }

    /// The resourceVersion up to which everything was brought by the events so far; 0 while a list is not complete.
    pub(crate) const fn version(&self) -> u64 {
        self.delivered
    }

    fn bring(&mut self, event: Event<T>) {
        let complete = !matches!(event, Event::Begins | Event::Listed(_));
        let version = self.version.as_ref().filter(|_| complete).and_then(|version| version.parse().ok());
        self.ready.push_back((event, version.unwrap_or_default()));
    }

    /// The next event.
    ///
    /// # Errors
    /// The failure. The next call waits and tries again.
    pub(crate) async fn next(&mut self) -> Result<Event<T>, WatchError> {
        loop {
            if let Some((event, version)) = self.ready.pop_front() {
                self.delivered = version;
                return Ok(event);
            }
            if let Some(at) = self.wait_until {
                sleep_until(at).await;
                self.wait_until = None;
            }
            if let Err(error) = self.advance().await {
                // A list that broke off is taken from its beginning, a watch from where it was.
                let listing = matches!(self.state, State::Open { mode: Mode::StreamingList | Mode::Page, .. });
                if listing || self.page.is_some() {
                    // What took too long in pages may come at once.
                    self.streaming_lists |= self.page.is_some() && !self.source.in_pages;
                    (self.version, self.page) = (None, None);
                }
                self.count_quiet();
                self.state = State::Closed;
                self.wait();
                return Err(error);
            }
        }
    }

    /// A watch is over, or is about to be.
    fn count_quiet(&mut self) {
        if matches!(self.state, State::Open { mode: Mode::Watch, .. }) {
            self.quiet += self.quiet_since.elapsed();
        }
    }

    fn wait(&mut self) {
        self.wait_until = self.backoff.next().map(|wait| Instant::now() + wait);
    }

    async fn advance(&mut self) -> Result<(), WatchError> {
        match &mut self.state {
            State::Closed => self.ask(),
            State::Asked { answer, mode } => {
                let (answer, mode) = (answer.await, *mode);
                self.state = State::Closed;
                self.open(answer?, mode)
            }
            State::Open { body, projection, mode } => {
                let mode = *mode;
                let chunk = timeout_at(self.heard + SILENCE, body.next()).await.map_err(|_| WatchError::Silence)?;
                self.heard = Instant::now();
                let Some(chunk) = chunk else {
                    let broke_off = !projection.is_between_values();
                    return self.ended(mode, broke_off);
                };
                let chunk = chunk.map_err(|error| WatchError::Connection(with_causes(&error)))?;
                let mut pieces = Vec::new();
                projection.push(&chunk, |piece| pieces.push(piece))?;
                for piece in pieces {
                    match piece {
                        Piece::Item(_) if mode == Mode::Probe => {}
                        Piece::Whole(kept) if mode == Mode::Probe => self.probed(&kept)?,
                        Piece::Item(kept) => {
                            let object = object(&kept)?;
                            self.bring(Event::Listed(object));
                        }
                        Piece::Whole(kept) if mode == Mode::Page => self.page_ends(&kept)?,
                        Piece::Whole(kept) => self.frame(&kept, mode)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Begins the request for what comes next.
    fn ask(&mut self) -> Result<(), WatchError> {
        let Source { labels, fields, metadata_alone, .. } = &self.source;
        let watch = |seconds, send_initial_events, version: &str| {
            let params = WatchParams {
                label_selector: labels.clone(),
                field_selector: fields.clone(),
                timeout: Some(seconds),
                bookmarks: true,
                send_initial_events,
            };
            Request::new(&self.source.path).watch(&params, version)
        };
        let pages = |limit, continue_token| {
            let params = ListParams {
                label_selector: labels.clone(),
                field_selector: fields.clone(),
                limit: Some(limit),
                continue_token,
                ..ListParams::default()
            };
            Request::new(&self.source.path).list(&params)
        };
        let (mode, request) = match &self.version {
            Some(_) if self.page.is_none() && self.quiet >= QUIET => (Mode::Probe, pages(1, None)),
            Some(version) if self.page.is_none() => (Mode::Watch, watch(WATCH_SECONDS, false, version)),
            _ if self.streaming_lists => (Mode::StreamingList, watch(LIST_SECONDS, true, "")),
            _ => {
                let limit = if self.source.page == 0 { PAGE } else { self.source.page };
                (Mode::Page, pages(limit, self.page.clone()))
            }
        };
        let mut request = request.map_err(|error| ApiServerError::Api(kube::Error::BuildRequest(error)))?;
        if *metadata_alone {
            let accept = if matches!(mode, Mode::Page | Mode::Probe) { METADATA_LIST } else { METADATA_ALONE };
            if let Ok(accept) = accept.parse() {
                request.headers_mut().insert("accept", accept);
            }
        }
        let client = self.client.clone();
        let answer = async move {
            let answer = timeout(REQUEST_TIMEOUT, client.send(request.map(Into::into))).await;
            let answer = answer.map_err(|_| ApiServerError::Timeout)?.map_err(ApiServerError::Api)?;
            let status = answer.status().as_u16();
            let mut body: BodyStream = Box::pin(answer.into_body().into_data_stream());
            if status < 400 {
                return Ok(Answered::Begins(body));
            }
            Ok(Answered::Refused(status, refusal(status, &mut body).await))
        };
        self.state = State::Asked { answer: answer.boxed(), mode };
        Ok(())
    }

    /// Takes the beginning of an answer.
    fn open(&mut self, answer: Answered, mode: Mode) -> Result<(), WatchError> {
        let body = match answer {
            Answered::Begins(body) => body,
            Answered::Refused(status, _) if mode == Mode::StreamingList && has_no_streaming_lists(status) => {
                self.streaming_lists = false;
                return Ok(());
            }
            // Without the right to list, say.
            Answered::Refused(..) if mode == Mode::Probe => {
                self.quiet = Duration::ZERO;
                return Ok(());
            }
            Answered::Refused(410, _) if mode == Mode::Watch => {
                self.version = None;
                self.wait();
                return Ok(());
            }
            Answered::Refused(_, error) => return Err(error.into()),
        };
        let projection = match mode {
            Mode::Page | Mode::Probe => Projection::of_list(Arc::clone(&self.of_list), "items", self.source.limit),
            Mode::StreamingList | Mode::Watch => Projection::new(Arc::clone(&self.of_watch), self.source.limit),
        };
        if mode == Mode::StreamingList || (mode == Mode::Page && self.page.is_none()) {
            self.version = None;
            self.bring(Event::Begins);
        }
        self.state = State::Open { body, projection, mode };
        self.opened = Instant::now();
        (self.heard, self.quiet_since) = (self.opened, self.opened);
        Ok(())
    }

    /// The API server has ended an answer.
    fn ended(&mut self, mode: Mode, broke_off: bool) -> Result<(), WatchError> {
        if broke_off || mode == Mode::StreamingList {
            return Err(WatchError::Connection("the answer is not complete".to_owned()));
        }
        self.count_quiet();
        self.state = State::Closed;
        if self.opened.elapsed() < SHORTEST {
            self.wait();
        }
        Ok(())
    }

    /// The newest resourceVersion is here.
    fn probed(&mut self, kept: &Kept) -> Result<(), WatchError> {
        let newest = serde_json::from_slice::<Head>(&kept.json)?.metadata.resource_version;
        self.state = State::Closed;
        self.quiet = Duration::ZERO;
        let number = |version: &Option<String>| version.as_ref()?.parse::<u64>().ok();
        if let (Some(newest), Some(known)) = (number(&newest), number(&self.version))
            && newest < known
        {
            tracing::warn!(
                path = self.source.path,
                newest,
                known,
                "the API server's datastore was restored from a backup, it seems: what there is is listed again"
            );
            self.version = None;
        }
        Ok(())
    }

    fn page_ends(&mut self, kept: &Kept) -> Result<(), WatchError> {
        let Head { metadata: HeadMetadata { resource_version, next, .. }, .. } = serde_json::from_slice(&kept.json)?;
        self.state = State::Closed;
        self.version = resource_version;
        self.page = next.filter(|next| !next.is_empty());
        if self.page.is_none() {
            self.bring(Event::Complete);
            // The next list is tried as a streaming list again: what was before this one may have been a failure that has passed.
            self.streaming_lists = !self.source.in_pages;
        }
        Ok(())
    }

    fn frame(&mut self, kept: &Kept, mode: Mode) -> Result<(), WatchError> {
        (self.quiet_since, self.quiet) = (Instant::now(), Duration::ZERO);
        let Frame { kind, object: head } = serde_json::from_slice::<Frame<Head>>(&kept.json)?;
        let listing = mode == Mode::StreamingList && self.version.is_none();
        let event = match kind.as_str() {
            "ADDED" | "MODIFIED" if listing => {
                self.bring(Event::Listed(framed(kept)?));
                return Ok(());
            }
            "ADDED" | "MODIFIED" => Event::Applied(framed(kept)?),
            "DELETED" => Event::Deleted(framed(kept)?),
            "BOOKMARK" if listing => {
                let ends = head.metadata.annotations.is_some_and(|a| a.contains_key(INITIAL_EVENTS_END));
                if !ends {
                    return Ok(());
                }
                // The watch that follows is a connection of its own, which is opened again more often.
                self.state = State::Closed;
                Event::Complete
            }
            "BOOKMARK" => Event::Progress,
            _ => {
                // Of the history that the watch wants, too much is gone.
                if head.code == 410 || head.reason == "Expired" {
                    self.version = None;
                    self.state = State::Closed;
                    self.wait();
                    return Ok(());
                }
                // The API server has begun to answer before it noticed that its etcd cannot tell its progress.
                if listing {
                    self.streaming_lists = false;
                    self.state = State::Closed;
                    return Ok(());
                }
                let Head { code, reason, message, .. } = head;
                return Err(ApiServerError::Api(kube::Error::Api(
                    Status::failure(&message, &reason).with_code(code).boxed(),
                ))
                .into());
            }
        };
        if head.metadata.resource_version.is_some() {
            self.version = head.metadata.resource_version;
        }
        self.bring(event);
        Ok(())
    }
}

/// True if an API server that answers so has no streaming lists: one before 1.32 finds fault with the request, one whose etcd cannot
/// tell its progress fails (500). Other failures pass, as those of an API server that is being restarted, or of what is before it.
const fn has_no_streaming_lists(status: u16) -> bool {
    matches!(status, 400 | 404 | 405 | 406 | 415 | 422 | 500)
}

fn framed<T: Object>(kept: &Kept) -> Result<T, serde_json::Error> {
    let Frame { mut object, .. } = serde_json::from_slice::<Frame<T>>(&kept.json)?;
    if kept.cut {
        object.cut();
    }
    Ok(object)
}

/// An object of which the metadata alone is wanted.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Metadata {
    /// As far as it is wanted.
    #[serde(default)]
    pub(crate) metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

impl Object for Metadata {}

#[cfg(test)]
mod tests;
