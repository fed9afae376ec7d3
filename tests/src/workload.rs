//! A client that writes and watches all the time, and an account of it: every acknowledged write is looked for in etcd and
//! in the watch at the end.
//!
//! It does what etcd's own client does: a connection that cannot be made is made again, at another member too, and the
//! operation fails only when its time is up. How often that was needed is part of the account.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::etcd_client::{ClientError, Connection, EtcdClient};

/// Errors that are kept word for word.
const KEPT_ERRORS: usize = 20;
/// How long the watch may take to show the last write.
const WATCH_LIMIT: Duration = Duration::from_secs(30);

/// How the work is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// The members' client URLs.
    pub urls: Vec<String>,
    /// The role directory that the client presents.
    pub files: PathBuf,
    /// Writers over kept connections, one after the other member each.
    pub kept: usize,
    /// Writers that make a new connection for every write: each is a handshake.
    pub fresh: usize,
    /// Its keys begin with `w/<name>/`.
    pub name: String,
    /// The pause between a writer's writes.
    pub pause: Duration,
    /// How long an operation may try before it has failed. Zero: one attempt.
    pub deadline: Duration,
    /// How long one attempt may take. etcd itself answers no sooner than after 7 s where the leader died with the write, or
    /// where the write was on its way to it.
    pub attempt: Duration,
}

impl Options {
    /// One writer of each kind, 20 ms between writes, 5 s an operation, no limit for an attempt. More than one workload of a
    /// cluster needs names of their own: see [`Self::name`].
    pub fn new(urls: Vec<String>, files: &Path) -> Self {
        Self {
            urls,
            files: files.to_owned(),
            name: "client".to_owned(),
            kept: 1,
            fresh: 1,
            pause: Duration::from_millis(20),
            deadline: Duration::from_secs(5),
            attempt: Duration::from_secs(60),
        }
    }
}

/// Figures that change while the work goes on.
#[derive(Debug, Default)]
pub struct Figures {
    /// Acknowledged writes.
    pub writes: AtomicU64,
    /// Operations that failed within their time.
    pub failed: AtomicU64,
    /// Attempts that failed and were followed by another.
    pub retried: AtomicU64,
    /// Handshakes that were completed.
    pub connections: AtomicU64,
    /// Watched events.
    pub watched: AtomicU64,
    /// Times that the watch stream broke and was taken up where it ended.
    pub watch_breaks: AtomicU64,
    /// The longest operation, in milliseconds.
    pub longest_ms: AtomicU64,
    lately_ms: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Figures {
    /// The longest operation since this was last asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_millis(self.lately_ms.swap(0, Ordering::Relaxed))
    }

    fn note(&self, counter: &AtomicU64, what: &str, error: &ClientError) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().expect("no panic while held");
        // Those of operations that failed are kept before those that were tried again.
        if std::ptr::eq(counter, &self.failed) {
            errors.insert(0, format!("{what}: {error}"));
            errors.truncate(KEPT_ERRORS);
        } else if errors.len() < KEPT_ERRORS {
            errors.push(format!("{what}: {error}"));
        }
    }
}

/// Work under way. Dropped, it ends at once, without an account.
pub struct Workload {
    options: Options,
    figures: Arc<Figures>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<BTreeMap<String, String>>>,
    watcher: JoinHandle<()>,
    watched: Arc<Mutex<BTreeMap<String, String>>>,
}

/// The account of a [`Workload`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Acknowledged writes.
    pub writes: u64,
    /// Operations that failed.
    pub failed: u64,
    /// Attempts that failed and were followed by another.
    pub retried: u64,
    /// Handshakes that were completed.
    pub connections: u64,
    /// Acknowledged writes that etcd does not have.
    pub lost: Vec<String>,
    /// Acknowledged writes that the watch did not show.
    pub unseen: Vec<String>,
    /// Times that the watch broke.
    pub watch_breaks: u64,
    /// The longest operation.
    pub longest: Duration,
    /// The first errors, retried ones included; those of failed operations before all others.
    pub errors: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, failed, retried, connections, lost, unseen, watch_breaks, longest, errors } = self;
        writeln!(
            f,
            "{writes} writes, {failed} failed, {retried} tried again, {connections} connections, {} lost, {} unseen, \
             {watch_breaks} breaks of the watch, longest {longest:?}",
            lost.len(),
            unseen.len()
        )?;
        errors.iter().try_for_each(|e| writeln!(f, "  {e}"))
    }
}

impl Workload {
    /// Starts writing and watching.
    pub fn start(options: Options) -> Self {
        let (figures, stop): (Arc<Figures>, Arc<AtomicBool>) = Default::default();
        let watched = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let writers = (0..options.kept + options.fresh)
            .map(|n| {
                let writer = Writer {
                    prefix: format!("w/{}/{n}/", options.name),
                    fresh: n >= options.kept,
                    client: EtcdClient::with_files(&options.files),
                    options: options.clone(),
                    figures: Arc::clone(&figures),
                    connection: None,
                    next_url: n,
                };
                tokio::spawn(writer.run(Arc::clone(&stop)))
            })
            .collect();
        let watcher = tokio::spawn(watch(options.clone(), Arc::clone(&figures), Arc::clone(&watched)));
        Self { options, figures, stop, writers, watcher, watched }
    }

    /// The figures so far.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Ends the writing, and compares what was acknowledged with what is there and with what was watched.
    ///
    /// # Errors
    /// etcd cannot be read.
    pub async fn stop(mut self) -> Result<Report, ClientError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeMap::new();
        for writer in std::mem::take(&mut self.writers) {
            acknowledged.append(&mut writer.await.map_err(|e| ClientError(format!("a writer: {e}")))?);
        }
        let stored = self.stored().await?;
        let lost = acknowledged.iter().filter(|(k, v)| stored.get(*k) != Some(v)).map(|(k, _)| k.clone()).collect();
        let start = Instant::now();
        let unseen = loop {
            let unseen: Vec<String> = {
                let watched = self.watched.lock().expect("no panic while held");
                acknowledged.iter().filter(|(k, v)| watched.get(*k) != Some(v)).map(|(k, _)| k.clone()).collect()
            };
            if unseen.is_empty() || start.elapsed() > WATCH_LIMIT {
                break unseen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let figures = &self.figures;
        Ok(Report {
            writes: get(&figures.writes),
            failed: get(&figures.failed),
            retried: get(&figures.retried),
            connections: get(&figures.connections),
            lost,
            unseen,
            watch_breaks: get(&figures.watch_breaks),
            longest: Duration::from_millis(get(&figures.longest_ms)),
            errors: figures.errors.lock().expect("no panic while held").clone(),
        })
    }

    /// Every key of the writers, from whichever member answers.
    async fn stored(&self) -> Result<BTreeMap<String, String>, ClientError> {
        let client = EtcdClient::with_files(&self.options.files);
        let mut last = ClientError("no member".into());
        for attempt in 0..20 {
            let url = &self.options.urls[attempt % self.options.urls.len()];
            let read = async { client.connect(url).await?.list(&format!("w/{}/", self.options.name)).await };
            match read.await {
                Ok(all) => return Ok(all),
                Err(e) => last = e,
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(last)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.watcher.abort();
        self.writers.iter().for_each(JoinHandle::abort);
    }
}

struct Writer {
    prefix: String,
    fresh: bool,
    client: EtcdClient,
    options: Options,
    figures: Arc<Figures>,
    connection: Option<Connection>,
    next_url: usize,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> BTreeMap<String, String> {
        let mut acknowledged = BTreeMap::new();
        for n in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (key, value) = (format!("{}{n:08}", self.prefix), n.to_string());
            if self.write(&key, &value).await {
                acknowledged.insert(key, value);
            }
            tokio::time::sleep(self.options.pause).await;
        }
        acknowledged
    }

    /// One operation: attempts until its time is up. The same key and value again change nothing, so that an attempt whose
    /// answer was lost may be made again.
    async fn write(&mut self, key: &str, value: &str) -> bool {
        let figures = Arc::clone(&self.figures);
        let start = Instant::now();
        loop {
            let attempt = tokio::time::timeout(self.options.attempt, self.attempt(key, value)).await;
            let result = attempt.unwrap_or_else(|_| Err(ClientError("no answer in the time of an attempt".into())));
            let taken = start.elapsed();
            let millis = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
            figures.longest_ms.fetch_max(millis, Ordering::Relaxed);
            figures.lately_ms.fetch_max(millis, Ordering::Relaxed);
            match result {
                Ok(()) => {
                    figures.writes.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Err(e) if taken >= self.options.deadline => {
                    figures.note(&figures.failed, &format!("failed {key}"), &e);
                    return false;
                }
                Err(e) => figures.note(&figures.retried, "tried again", &e),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn attempt(&mut self, key: &str, value: &str) -> Result<(), ClientError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let url = &self.options.urls[self.next_url % self.options.urls.len()];
                self.next_url += 1;
                let connection = self.client.connect(url).await?;
                self.figures.connections.fetch_add(1, Ordering::Relaxed);
                connection
            }
        };
        connection.put(key, value).await?;
        if !self.fresh {
            self.connection = Some(connection);
        }
        Ok(())
    }
}

/// Watches for ever; a stream that breaks is taken up at the next member, from the revision after the last one seen.
async fn watch(options: Options, figures: Arc<Figures>, watched: Arc<Mutex<BTreeMap<String, String>>>) {
    let client = EtcdClient::with_files(&options.files);
    let mut next_revision = 1;
    for attempt in 0.. {
        let url = &options.urls[attempt % options.urls.len()];
        let result: Result<(), ClientError> = async {
            let mut stream = client.connect(url).await?.watch(&format!("w/{}/", options.name), next_revision).await?;
            loop {
                for event in stream.next().await? {
                    next_revision = next_revision.max(event.revision + 1);
                    figures.watched.fetch_add(1, Ordering::Relaxed);
                    watched.lock().expect("no panic while held").insert(event.key, event.value);
                }
            }
        }
        .await;
        if let Err(e) = result {
            figures.note(&figures.watch_breaks, "the watch", &e);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
