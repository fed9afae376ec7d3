//! The stream of requests of one [`Kind`], worked off by a bounded pool, for as long as this replica leads.
//!
//! No copy of the cluster's CSRs is kept: each one that passes by is shown to [`Handler::observe`] and forgotten unless
//! [`Handler::concerns`] says that it needs work. Work waits in a [`Queue`]: requesters take turns, so a flood of one of them
//! starves nobody. The queue keeps the content of some hundred CSRs, and the names of the others.
//!
//! A replica that does not lead watches nothing. A successor lists again and finds what its predecessor left.

mod queue;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_tls_contract::identity::bound_pod;
use etcd_tls_telemetry::{admin::CheckError, csr_span, metric};
use kube::Client;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{Instrument as _, Span};

use crate::{
    controller::{
        facts::{Csr, Kind},
        listed::{Event, Events, WatchError},
        tasks::{Jobs, Tasks},
    },
    platform::shutdown::until,
};
use queue::{Job, Kept, Queue};

/// How long work in progress may take after the shutdown signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a new leader holds its work until the first list is complete: a list is in the order of names, and who stands behind
/// the backlog of another would wait for it.
const LISTED_WITHIN: Duration = Duration::from_secs(15);
/// A list that did not fit the queue is taken again when there is room, but not sooner than this after the last one.
const RELIST_EVERY: Duration = Duration::from_secs(5);

/// The events of a watch of all CSRs.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A list of all CSRs begins.
    ListBegins,
    /// A CSR, from the list or since.
    There(&'a Csr),
    /// A CSR is gone.
    Gone(&'a Csr),
    /// The list is complete: CSRs that it did not bring are gone.
    ListEnds,
}

/// How handling a CSR went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// Nothing is left to do, as far as we know.
    Done,
    /// It has to wait for something else (a pod's IP): again after 25 ms, doubling up to a minute.
    NotYet,
    /// The API server failed us: again after 200 ms, doubling up to 30 s.
    Failed,
    /// The CSR is another one by now: read again, then [`Handler::concerns`] again.
    Stale,
}

/// A process's handling of CSRs.
pub trait Handler: Send + Sync + 'static {
    /// Takes note of what the watch brings while this replica leads.
    fn observe(&self, seen: Seen<'_>) {
        let _ = seen;
    }

    /// True if there is something to do for a CSR; cheap, since every one in the cluster passes by.
    fn concerns(&self, csr: &Csr) -> bool;

    /// Does what the CSR needs. Dropped at any await when leadership is lost, so each of its writes carries uid and
    /// resourceVersion and stands by itself.
    fn handle(&self, csr: &Csr) -> impl Future<Output = Handled> + Send;
}

/// Figures of the queue.
#[derive(Clone, Debug)]
pub struct Metrics {
    queued: Gauge,
    in_flight: Gauge,
    retries: Counter,
    lists: Counter,
    synced: Gauge,
    latency: Histogram,
    fault: Arc<Mutex<Option<Fault>>>,
}

/// Why there is no list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// The API server does not know the kind: there are no requests.
    Unknown,
    /// In the words of the last try.
    Failed(String),
}

impl Metrics {
    /// Registers the figures under `registry`'s prefix.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            queued: metric(registry, "queue_depth", "Requests that wait for their turn or for another try"),
            in_flight: metric(registry, "queue_in_flight", "Requests that are worked on"),
            retries: metric(registry, "queue_retries", "Requests that had to be looked at again"),
            lists: metric(registry, "queue_lists", "Lists of all requests of the kind"),
            synced: metric(registry, "queue_synced", "1 while leading with a complete list"),
            latency: latency(registry),
            fault: Arc::default(),
        }
    }

    /// The figures of CertificateRequests of cert-manager, in a process that has those of CertificateSigningRequests, too.
    pub(crate) fn register_certificate_requests(registry: &mut Registry) -> Self {
        Self::register(registry.sub_registry_with_prefix("certificate_requests"))
    }

    /// True if this replica leads and has seen every CSR once.
    pub fn is_synced(&self) -> bool {
        self.synced.get() == 1
    }

    /// Whether every request of the kind was seen once: also where the API server does not know the kind.
    ///
    /// # Errors
    /// The reason why not, for people.
    pub(crate) fn is_listed<K: Kind>(&self) -> Result<(), CheckError> {
        if self.is_synced() {
            return Ok(());
        }
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Fault::Unknown) => Ok(()),
            Some(Fault::Failed(error)) => Err(format!("{} not listed yet: {error}", K::WHAT).into()),
            None => Err(format!("{} not listed yet", K::WHAT).into()),
        }
    }

    /// Takes note of how a list went; true if it was the other way before.
    fn fault(&self, now: Option<Fault>) -> bool {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *fault != now;
        *fault = now;
        changed
    }

    /// Takes note of a watch or a list that failed, and says so.
    fn failed<K: Kind>(&self, error: &WatchError) {
        match K::UNKNOWN.filter(|_| matches!(error, WatchError::Request(error) if error.is_not_found())) {
            // Once: it may last, and everything else works.
            Some(advice) => {
                if self.fault(Some(Fault::Unknown)) {
                    tracing::warn!(kind = K::WHAT, "{advice}");
                }
            }
            None => {
                tracing::warn!(%error, kind = K::WHAT, "cannot watch requests; trying again");
                self.fault(Some(Fault::Failed(error.to_string())));
            }
        }
    }
}

/// Watches all of a kind and has `handler` handle them, `workers` at once, while `leader` says so and until `shutdown`; work in
/// progress then has a few seconds to end.
pub(crate) async fn run<K: Kind, H: Handler>(
    client: Client,
    handler: Arc<H>,
    workers: usize,
    mut leader: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
    metrics: Metrics,
    tasks: Tasks,
) {
    loop {
        tokio::select! {
            elected = leader.wait_for(|leads| *leads) => if elected.is_err() {
                tracing::error!("nobody stands for leader in this process any more");
                return;
            },
            () = until(&mut shutdown, true) => return,
        }
        let mut term = Term {
            client: client.clone(),
            handler: Arc::clone(&handler),
            jobs: Jobs::new(tasks.clone()),
            metrics: metrics.clone(),
            held_until: Some(Instant::now() + LISTED_WITHIN),
        };
        let mut queue = Queue::new(workers);
        let ended = tokio::select! {
            never = term.work::<K>(&mut queue) => match never {},
            () = until(&mut leader, false) => Ended::LeadershipLost,
            () = until(&mut shutdown, true) => Ended::Shutdown,
        };
        metrics.synced.set(0);
        metrics.fault(None);
        metrics.queued.set(0);
        match ended {
            // Dropping the jobs stops every write at once.
            Ended::LeadershipLost => tracing::info!("no longer leading: work stopped"),
            Ended::Shutdown => {
                let drained = timeout(DRAIN_TIMEOUT, term.jobs.drain()).await.is_ok();
                tracing::info!(drained, "work ended");
                return;
            }
        }
        metrics.in_flight.set(0);
    }
}

enum Ended {
    LeadershipLost,
    Shutdown,
}

/// One replica's time as leader.
struct Term<H> {
    client: Client,
    handler: Arc<H>,
    /// By the request's name.
    jobs: Jobs<Arc<str>, Handled>,
    metrics: Metrics,
    /// Until when work waits for the first list to be complete; `None`: it has begun.
    held_until: Option<Instant>,
}

impl<H: Handler> Term<H> {
    async fn work<K: Kind>(&mut self, queue: &mut Queue) -> std::convert::Infallible {
        loop {
            self.list_and_watch::<K>(queue).await;
        }
    }

    /// Returns when the CSRs have to be listed again because the queue could not take all of them.
    async fn list_and_watch<K: Kind>(&mut self, queue: &mut Queue) {
        let mut events = Events::<K>::new(self.client.clone(), K::all());
        let relist_from = Instant::now() + RELIST_EVERY;
        loop {
            let now = Instant::now();
            self.held_until = self.held_until.filter(|until| now < *until && !self.metrics.is_synced());
            while self.held_until.is_none()
                && let Some(job) = queue.pop(now)
            {
                self.start::<K>(job);
            }
            self.metrics.queued.set(gauge(queue.waiting()));
            self.metrics.in_flight.set(gauge(self.jobs.len()));
            if queue.has_room_again() && now >= relist_from {
                queue.forget_overflow();
                return;
            }
            let due = queue.next_due().filter(|_| self.held_until.is_none());
            let wake =
                [due, self.held_until, queue.has_room_again().then_some(relist_from)].into_iter().flatten().min();
            tokio::select! {
                (name, outcome) = self.jobs.next() => {
                    let outcome = outcome.unwrap_or(Handled::Failed);
                    if outcome != Handled::Done {
                        self.metrics.retries.inc();
                    }
                    if let Some(taken) = queue.finish(&name, outcome, Instant::now()) {
                        self.metrics.latency.observe(taken.as_secs_f64());
                    }
                }
                event = events.next() => match event {
                    Ok(event) => self.take(queue, event),
                    Err(error) => self.metrics.failed::<K>(&error),
                },
                () = async {
                    match wake {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn take<K: Kind>(&self, queue: &mut Queue, event: Event<K>) {
        match event {
            Event::Begins => self.handler.observe(Seen::ListBegins),
            Event::Complete => {
                self.handler.observe(Seen::ListEnds);
                self.metrics.lists.inc();
                self.metrics.synced.set(1);
                self.metrics.fault(None);
            }
            Event::Applied(object) | Event::Listed(object) => {
                let csr = object.into_csr();
                self.handler.observe(Seen::There(&csr));
                if self.handler.concerns(&csr) {
                    queue.offer(&csr);
                } else {
                    queue.remove(&csr.key());
                }
            }
            Event::Progress => {}
            Event::Deleted(object) => {
                let csr = object.into_csr();
                self.handler.observe(Seen::Gone(&csr));
                queue.remove(&csr.key());
            }
        }
    }

    fn start<K: Kind>(&mut self, job: Job) {
        let Job { name, csr } = job;
        let work = work_on::<K, H>(self.client.clone(), Arc::clone(&self.handler), Arc::clone(&name), csr);
        self.jobs.start("certificate signing request", name, work);
    }
}

async fn work_on<K: Kind, H: Handler>(
    client: Client,
    handler: Arc<H>,
    name: Arc<str>,
    csr: Option<Arc<Kept>>,
) -> Handled {
    if let Some(csr) = csr {
        return handler.handle(&csr).instrument(span(&csr)).await;
    }
    let (source, name) = K::one(&name);
    match source.get::<K>(&client, name).await.map(|found| found.map(K::into_csr)) {
        Ok(Some(csr)) if handler.concerns(&csr) => handler.handle(&csr).instrument(span(&csr)).await,
        Ok(_) => Handled::Done,
        Err(error) => {
            tracing::warn!(csr = name, %error, "cannot read a CSR; trying again");
            Handled::Failed
        }
    }
}

/// The fields of every log line about a request.
fn span(csr: &Csr) -> Span {
    let span = csr_span!(csr.name(), csr.uid(), csr.spec.signer_name.as_str(), csr.spec.username.as_str());
    if let Ok(bound) = bound_pod(&csr.requester()) {
        span.record("pod", format!("{}/{}", bound.namespace, bound.pod));
    }
    span
}

/// From some milliseconds to the minutes that a request waits for its pod's address.
fn latency(registry: &mut Registry) -> Histogram {
    let latency = Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]);
    registry.register(
        "request_duration_seconds",
        "Time from the first sight of a request by this replica until nothing is left to do for it; waits for its pod included",
        latency.clone(),
    );
    latency
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
