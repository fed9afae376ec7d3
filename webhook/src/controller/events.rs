//! Events for people: problems with a pod's certificates, on the pod; the steps of a rollover, on its trust ConfigMap. Of issued
//! certificates a pod's first one gets an event. [`reasons`] lists them all.
//!
//! An event's name is a digest of what it says, so saying it again is an `AlreadyExists` and no second event: a pod that
//! asks wrongly once a second fills no event list. One that asks for something else each time is cut short after a few.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use etcd_tls_contract::encoding::hex;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::controller::client::{ApiServerError, within};
pub use reasons::Reason;

pub mod reasons;

/// Bytes of an event's note; the API server takes no more.
const MAX_NOTE: usize = 1024;

/// The content of an event and the object it regards.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The object; its namespace is the event's.
    pub regarding: ObjectReference,
    /// What it is about.
    pub reason: &'static Reason,
    /// The event and the next step. Every reader of the object sees it: nothing internal.
    pub note: String,
}

/// Events on one object that are written at once.
const BURST: u32 = 20;
/// After the burst, one event an object in this time.
const REFILL: Duration = Duration::from_secs(30);
/// Objects whose events are counted. With more, the namespace that has the most of them makes room, so that no tenant silences
/// what is said to others.
const MAX_OBJECTS: usize = 2048;
/// Objects that are kept without a look at which were quiet.
const FEW_OBJECTS: usize = 64;

/// The pauses before an event is written again, after a failure that may pass.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// Events that wait to be written again, beside the work of who said them.
const MAX_AGAIN: usize = 64;
/// Events that wait to be written for the first time, beside the work of who said them.
const MAX_BESIDE: usize = 1024;
/// Those of them that are being written: each is a request of the API server.
const AT_ONCE: usize = 8;

/// Writes events as one process of etcd-tls.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    controller: String,
    instance: String,
    allowances: Arc<Mutex<Allowances>>,
    again: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there, written now or before.
    There,
    /// The API server refuses it. It would do so again.
    Refused,
    /// It is not there, or nobody knows.
    Failed,
}

/// The namespace and the key in it by which events are counted; not every reference has a uid.
fn object(notice: &Notice) -> (String, String) {
    let of = |part: &Option<String>| part.clone().unwrap_or_default();
    let Notice { regarding, .. } = notice;
    (of(&regarding.namespace), format!("{}/{}", of(&regarding.name), of(&regarding.uid)))
}

/// How many events each object was given of late: by [`object`], the time at which its burst is whole again.
#[derive(Debug, Default)]
struct Allowances {
    namespaces: HashMap<String, HashMap<String, Instant>>,
    /// Objects of all namespaces.
    objects: usize,
    /// With so many, those that were quiet are forgotten.
    look_at: usize,
}

impl Allowances {
    /// True if another event on the object may be written, and counts it.
    fn take(&mut self, (namespace, object): (&str, &str), now: Instant) -> bool {
        let known = self.namespaces.get(namespace).is_some_and(|here| here.contains_key(object));
        if !known {
            if !self.has_room(namespace, now) {
                return false;
            }
            self.objects += 1;
        }
        let whole_at = self.namespaces.entry(namespace.to_owned()).or_default().entry(object.to_owned()).or_insert(now);
        let next = (*whole_at).max(now) + REFILL;
        let fits = next - now <= REFILL * BURST;
        if fits {
            *whole_at = next;
        }
        fits
    }

    /// Makes room for another object of a namespace: of those that were quiet, else of the namespace that has the most, if it has
    /// two more or this one has none. Returns true if there is room.
    fn has_room(&mut self, namespace: &str, now: Instant) -> bool {
        if self.objects >= self.look_at {
            self.namespaces.retain(|_, here| {
                here.retain(|_, whole_at| *whole_at > now);
                !here.is_empty()
            });
            self.objects = self.namespaces.values().map(HashMap::len).sum();
            self.look_at = (2 * self.objects).clamp(FEW_OBJECTS, MAX_OBJECTS);
        }
        if self.objects < MAX_OBJECTS {
            return true;
        }
        let here = self.namespaces.get(namespace).map_or(0, HashMap::len);
        let Some((largest, most)) = self.namespaces.iter_mut().max_by_key(|(_, all)| all.len()) else { return true };
        if here != 0 && most.len() <= here + 1 {
            return false;
        }
        // The one that comes nearest to having been quiet.
        if let Some(quietest) = most.iter().min_by_key(|(_, whole_at)| **whole_at).map(|(object, _)| object.clone()) {
            most.remove(&quietest);
            self.objects -= 1;
        }
        if most.is_empty() {
            let largest = largest.clone();
            self.namespaces.remove(&largest);
        }
        true
    }
}

impl Recorder {
    /// A recorder that reports as `etcd-tls.dev/<process>` (`approve`, `sign`), `instance` being the pod's name.
    pub fn new(client: Client, process: &str, instance: &str) -> Self {
        Self {
            client,
            controller: format!("etcd-tls.dev/{process}"),
            instance: cut(instance, 128).to_owned(),
            allowances: Arc::default(),
            again: Arc::new(Semaphore::new(MAX_AGAIN)),
            beside: Arc::new(Semaphore::new(MAX_BESIDE)),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Writes the event; one that says the same of the same object is there for an hour and not written again. Best
    /// effort: a failure is logged, and nothing waits for the next tries.
    pub async fn say(&self, notice: Notice) {
        let Some(event) = self.permitted(&notice) else { return };
        if self.write(&event).await == Outcome::Failed
            && let Ok(place) = Arc::clone(&self.again).try_acquire_owned()
        {
            let recorder = self.clone();
            tokio::spawn(async move {
                recorder.write_again(&event).await;
                drop(place);
            });
        }
    }

    /// [`Self::say`] that nothing waits for: Events may be slow to write, and the work of the caller is more important. One for which
    /// there is no place is left out.
    pub(crate) fn say_beside(&self, notice: Notice) {
        let Ok(place) = Arc::clone(&self.beside).try_acquire_owned() else {
            tracing::debug!(object = notice.regarding.name, "too many events wait to be written: left out");
            return;
        };
        let Some(event) = self.permitted(&notice) else { return };
        let recorder = self.clone();
        tokio::spawn(async move {
            let turn = recorder.turns.acquire().await;
            let outcome = recorder.write(&event).await;
            drop((turn, place));
            if outcome == Outcome::Failed
                && let Ok(_place) = recorder.again.try_acquire()
            {
                recorder.write_again(&event).await;
            }
        });
    }

    /// [`Self::say`] that waits for the next tries, too. One that is left out has failed.
    pub(crate) async fn say_and_wait(&self, notice: Notice) -> Outcome {
        let Some(event) = self.permitted(&notice) else { return Outcome::Failed };
        match self.write(&event).await {
            Outcome::Failed => self.write_again(&event).await,
            outcome => outcome,
        }
    }

    /// The event, if its object may have one more.
    fn permitted(&self, notice: &Notice) -> Option<Event> {
        let (of, object) = object(notice);
        if !self.allowances.lock().unwrap_or_else(PoisonError::into_inner).take((&of, &object), Instant::now()) {
            tracing::debug!(object = notice.regarding.name, "too many events on one object: left out");
            return None;
        }
        Some(self.event(notice, Timestamp::now()))
    }

    async fn write(&self, event: &Event) -> Outcome {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let Err(error) = within(api.create(&PostParams::default(), event)).await else { return Outcome::There };
        let outcome = outcome(&error);
        if outcome != Outcome::There {
            log_failure(event, &error);
        }
        outcome
    }

    /// Writes an event that failed.
    async fn write_again(&self, event: &Event) -> Outcome {
        for pause in PAUSES {
            sleep(pause).await;
            match self.write(event).await {
                Outcome::Failed => {}
                outcome => return outcome,
            }
        }
        Outcome::Failed
    }

    fn event(&self, notice: &Notice, now: Timestamp) -> Event {
        let Notice { regarding, reason, note } = notice;
        let note =
            if note.len() > MAX_NOTE { format!("{}…", cut(note, MAX_NOTE - "…".len())) } else { note.clone() };
        let object = regarding.name.as_deref().unwrap_or_default();
        let said = [&self.controller, regarding.uid.as_deref().unwrap_or_default(), reason.name(), &note].join("\0");
        let hash = hex(&digest(&SHA256, said.as_bytes()).as_ref()[..8]);
        let name = cut(object, 253 - 1 - hash.len()).trim_end_matches(['.', '-']);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{hash}")),
                namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            action: Some("Certify".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note),
            reason: Some(reason.name().to_owned()),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(reason.kind().to_owned()),
            ..Event::default()
        }
    }
}

/// A reference to a pod.
pub fn pod_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// A reference to a CertificateSigningRequest. It has no namespace; its events are in `default`.
pub fn request_reference(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("certificates.k8s.io/v1".to_owned()),
        kind: Some("CertificateSigningRequest".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn outcome(error: &ApiServerError) -> Outcome {
    match error {
        ApiServerError::Api(kube::Error::Api(status)) => match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Outcome::There,
            // Too many requests; a conflict that is none of a name.
            (409 | 429, _) => Outcome::Failed,
            (400..500, _) => Outcome::Refused,
            _ => Outcome::Failed,
        },
        _ => Outcome::Failed,
    }
}

fn log_failure(event: &Event, error: &ApiServerError) {
    tracing::warn!(
        namespace = event.metadata.namespace,
        object = event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()),
        reason = event.reason,
        %error,
        "could not write an event"
    );
}

/// The first `max` bytes of `s` at most, up to a character's end.
fn cut(s: &str, max: usize) -> &str {
    let mut end = max.min(s.len());
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    &s[..end]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        convert::Infallible,
        future,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll},
    };

    use super::*;

    fn recorder() -> Recorder {
        let service = tower_stub();
        Recorder::new(service, "approve", "etcd-tls-approve-0")
    }

    fn tower_stub() -> Client {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        Client::try_from(config).unwrap()
    }

    #[tokio::test]
    async fn the_same_said_twice_is_one_event_and_another_one_is_another() {
        let recorder = recorder();
        let notice = |uid, note: &str| Notice {
            regarding: pod_reference("ns", "etcd-0", uid),
            reason: reasons::CERTIFICATE_DENIED,
            note: note.to_owned(),
        };
        let name = |n: &Notice, at| recorder.event(n, Timestamp::from_second(at).unwrap()).metadata.name.unwrap();
        assert_eq!(name(&notice("u", "no"), 1), name(&notice("u", "no"), 2));
        assert_ne!(name(&notice("u", "no"), 1), name(&notice("u", "never"), 1));
        assert_ne!(name(&notice("u", "no"), 1), name(&notice("v", "no"), 1));
    }

    /// An API server that takes no Event: it does not answer. The requests that it has at once.
    #[derive(Clone, Default)]
    struct Hangs(Arc<std::sync::atomic::AtomicUsize>);

    impl tower::Service<hyper::Request<kube::client::Body>> for Hangs {
        type Response = hyper::Response<kube::client::Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: hyper::Request<kube::client::Body>) -> Self::Future {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn events_that_are_slow_to_write_delay_nobody_and_are_bounded() {
        let hangs = Hangs::default();
        let recorder = Recorder::new(Client::new(hangs.clone(), "default"), "sign", "etcd-tls-sign-0");
        for n in 0..2 * MAX_BESIDE {
            recorder.say_beside(Notice {
                regarding: pod_reference(&format!("ns-{n}"), "etcd-0", "u"),
                reason: reasons::CERTIFICATE_DENIED,
                note: "no".to_owned(),
            });
        }
        assert_eq!(recorder.beside.available_permits(), 0);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hangs.0.load(std::sync::atomic::Ordering::SeqCst), AT_ONCE);
    }

    #[test]
    fn an_object_gets_a_burst_of_events_and_then_one_at_a_time() {
        let now = Instant::now();
        let mut allowances = Allowances::default();
        for n in 0..BURST {
            assert!(allowances.take(("ns", "u"), now), "{n}");
        }
        assert!(!allowances.take(("ns", "u"), now));
        assert!(allowances.take(("ns", "v"), now), "another object's are its own");
        assert!(allowances.take(("other", "u"), now), "another namespace's, too");
        assert!(!allowances.take(("ns", "u"), now + REFILL / 2));
        assert!(allowances.take(("ns", "u"), now + REFILL));
        assert!(!allowances.take(("ns", "u"), now + REFILL));
        for n in 0..2 * MAX_OBJECTS {
            allowances.take(("ns", &n.to_string()), now);
        }
        assert!(allowances.objects <= MAX_OBJECTS);
        assert!(allowances.take(("ns", "w"), now + REFILL * (BURST + 1)), "the quiet ones make room");
    }

    #[test]
    fn objects_that_were_quiet_take_no_memory() {
        let (now, mut allowances) = (Instant::now(), Allowances::default());
        for n in 0..2000 {
            assert!(allowances.take((&n.to_string(), "u"), now + REFILL * n / 100));
            // A hundred of them are not quiet.
            assert!(allowances.objects <= 250, "{}", allowances.objects);
        }
        let counted: usize = allowances.namespaces.values().map(HashMap::len).sum();
        assert_eq!((counted, allowances.namespaces.len()), (allowances.objects, allowances.objects));
    }

    #[test]
    fn a_namespace_with_many_objects_silences_no_other() {
        let now = Instant::now();
        let mut allowances = Allowances::default();
        for n in 0..3000 {
            assert_eq!(allowances.take(("flood", &n.to_string()), now), n < MAX_OBJECTS, "{n}");
        }
        for namespace in 0..100 {
            let namespace = namespace.to_string();
            for n in 0..BURST {
                assert!(allowances.take((&namespace, "u"), now), "{namespace}: {n}");
            }
            assert!(!allowances.take((&namespace, "u"), now), "a burst is still a burst");
        }
        // A tenant of two namespaces gets no more room, and takes none of a third with less.
        for n in 0..3000 {
            allowances.take(("flood", &format!("more-{n}")), now);
            allowances.take(("flood-2", &n.to_string()), now);
        }
        assert!(allowances.take(("third", "u"), now));
        assert!(!allowances.take(("0", "u"), now), "those with one object keep their count");
        let counted: usize = allowances.namespaces.values().map(HashMap::len).sum();
        assert!(counted <= MAX_OBJECTS && counted == allowances.objects, "{counted}");
    }

    #[test]
    fn an_event_is_written_again_after_a_failure_that_may_pass() {
        let of = |code, reason: &str| {
            let status = kube::core::Status::failure("no", reason).with_code(code).boxed();
            outcome(&kube::Error::Api(status).into())
        };
        assert_eq!(of(409, "AlreadyExists"), Outcome::There);
        for (code, reason) in [(409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError"), (503, "")] {
            assert_eq!(of(code, reason), Outcome::Failed, "{code}");
        }
        for (code, reason) in [(403, "Forbidden"), (404, "NotFound"), (422, "Invalid")] {
            assert_eq!(of(code, reason), Outcome::Refused, "{code}");
        }
        assert_eq!(outcome(&ApiServerError::Timeout), Outcome::Failed);
    }

    /// An API server that is away for one call.
    #[derive(Clone, Default)]
    struct Away(Arc<AtomicUsize>);

    impl tower::Service<hyper::Request<kube::client::Body>> for Away {
        type Response = hyper::Response<String>;
        type Error = Infallible;
        type Future = future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: hyper::Request<kube::client::Body>) -> Self::Future {
            let (code, body) = match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => (503, serde_json::json!({"kind": "Status", "status": "Failure", "code": 503})),
                _ => (201, serde_json::to_value(Event::default()).unwrap()),
            };
            future::ready(Ok(hyper::Response::builder().status(code).body(body.to_string()).unwrap()))
        }
    }

    #[tokio::test]
    async fn an_event_that_failed_is_written_when_the_api_server_is_there_again() {
        let server = Away::default();
        let recorder = Recorder::new(Client::new(server.clone(), "default"), "approve", "etcd-tls-approve-0");
        let notice = Notice {
            regarding: pod_reference("ns", "etcd-0", "u"),
            reason: reasons::CERTIFICATE_DENIED,
            note: String::new(),
        };
        assert_eq!(recorder.say_and_wait(notice).await, Outcome::There);
        assert_eq!(server.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn objects_without_a_uid_are_counted_apart() {
        let notice = |namespace: &str| Notice {
            regarding: ObjectReference { uid: None, ..pod_reference(namespace, "etcd-tls-trust-etcd", "") },
            reason: reasons::AUTHORITY_LOST,
            note: String::new(),
        };
        assert_ne!(object(&notice("a")), object(&notice("b")));
    }

    #[tokio::test]
    async fn event_fields_are_cut_to_the_api_servers_limits() {
        let notice = Notice {
            regarding: pod_reference("ns", &"a".repeat(253), "u"),
            reason: reasons::CERTIFICATE_ISSUED,
            note: "ä".repeat(2000),
        };
        let event = recorder().event(&notice, Timestamp::UNIX_EPOCH);
        assert_eq!(event.type_.as_deref(), Some("Normal"));
        assert!(event.metadata.name.unwrap().len() <= 253);
        let note = event.note.unwrap();
        assert!(note.len() <= MAX_NOTE && note.ends_with("ä…"), "{}", note.len());
    }
}
