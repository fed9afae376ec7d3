//! Restarts etcd when its trust bundle has changed, which a running etcd does not notice: one member at a time, under a
//! lock, and only while every other member is healthy and quorum stands without this one.
//!
//! ```text
//! cluster    what is on disk, what etcd's ports show, how every member is      (eyes)
//! decision   must etcd be restarted? may it be, now?                           (pure)
//! act        lock, look again, hand leadership on, end etcd, wait for it       (hands)
//! gate       the liveness probe that kubelet acts on, for `reload: probe`
//! memory     what must survive the sidecar's own restart
//! ```
//!
//! Whatever goes wrong on the way ends in waiting: the need stays visible in [`Status`], in the log and in the metrics
//! `restart_due` and `restart_waits`, and all of it is looked at again a moment later.
//!
//! A sidecar that dies with the lock in its hand leaves a lock that lapses within [`crate::lock::TTL`] seconds, and the
//! next one then finds a member that is down and waits for it.

mod act;
mod cluster;
mod decision;
mod gate;
mod memory;
mod metrics;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use prometheus_client::registry::Registry;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

pub use self::gate::{Gate, PATH};
use self::{
    cluster::{ClusterSeen, Eyes},
    decision::{Permit, Trust, leaf_due, permit, trust},
    memory::Memory,
    metrics::Metrics,
};
use crate::{
    args::{DownwardArgs, PodArgs},
    etcd::EtcdError,
    lock::{Attempt, EtcdLock, Guard, LeaseLock, Observed},
    names,
    process::{Place, uptime},
    role::{Domain, Role},
    settings::Reload,
};

/// How often etcd's ports are asked what they have loaded while nothing is known to have changed.
const IDLE: Duration = Duration::from_secs(30);
/// How soon a restart that has to wait is thought about again.
const AGAIN: Duration = Duration::from_secs(3);
/// How often the cluster's members are noted while nothing is due.
const LEARN: Duration = Duration::from_secs(600);
/// kubelet forgets a container's restarts after ten minutes; a second one within them waits for a back-off.
pub const PACE: Duration = Duration::from_secs(600);
/// Between saying that a one-member cluster will be away and its being away.
const NOTICE: Duration = Duration::from_secs(30);

/// What a [`Restarter`] is told of its etcd.
#[derive(Clone)]
pub struct Options {
    /// The certificates' directory: `<dir>/<role>/{tls.crt,tls.key,ca.crt}`.
    pub dir: PathBuf,
    /// The roles held.
    pub roles: Vec<Role>,
    /// How etcd may be restarted.
    pub reload: Reload,
    /// Whether a signal reaches etcd.
    pub can_signal: bool,
    /// How etcd's process is told from others of its name.
    pub place: Place,
    /// etcd's client port.
    pub client_url: Option<String>,
    /// etcd's peer port.
    pub peer_url: Option<String>,
    /// The user's own liveness probe, asked by [`Gate::check`].
    pub liveness_url: Option<String>,
    /// Who holds the lock: the pod, by name and uid.
    pub holder: String,
    /// The least time between two restarts of ours: kubelet delays a second one within ten minutes.
    pub pace: Duration,
    /// How long before it a restart that is an outage is announced.
    pub notice: Duration,
    /// Where a Lease may be had, beside etcd's lock or in its place.
    pub lease: Option<LeaseOptions>,
}

/// The Kubernetes Lease that is taken after etcd's own lock, or stands in for it.
#[derive(Clone)]
pub struct LeaseOptions {
    /// A client with the pod's own token.
    pub client: kube::Client,
    /// The pod's namespace.
    pub namespace: String,
    /// [`lease_name`].
    pub name: String,
}

/// The name of the Lease that stands in for etcd's own lock.
pub fn lease_name(cluster: &str) -> String {
    format!("etcd-tls-restart-{cluster}")
}

/// What is known of etcd's trust; sent whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The digest of each domain's bundle, once etcd was seen to have loaded it; a domain that etcd verifies nothing
    /// with (a client's alone) counts as loaded when it is installed.
    pub loaded: BTreeMap<Domain, String>,
    /// Why etcd must be restarted, and why that waits; `None` when all is loaded.
    pub due: Option<String>,
}

/// Watches what etcd has loaded, and restarts it when it may.
pub struct Restarter {
    options: Options,
    means: Means,
    eyes: Eyes,
    memory: Memory,
    metrics: Metrics,
    gate: Arc<Gate>,
    status: watch::Sender<Status>,
    unserved: watch::Sender<bool>,
    observed: Option<Observed>,
    /// Whether the pod has the right to the Lease, once the API server has said so.
    lease_granted: Option<bool>,
    /// When the cluster's members were last noted.
    learned: Option<Instant>,
    announced: Option<Instant>,
    /// Since when it waits, as the leader, for followers to go first.
    leads_since: Option<Instant>,
    /// Whether etcd was restarted for a leaf that it does not serve, and still does not.
    leaf_tried: bool,
}

/// How etcd is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Means {
    /// This signal ends it, and whoever started it starts it again.
    End(Signal),
    /// This signal makes a server that is not etcd read its files again; it stays up.
    Tell(Signal),
    /// kubelet does, when its liveness probe fails.
    Probe,
    /// Not by us; why.
    ByHand(String),
}

/// A restart that has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    /// One word of a fixed set, for the metric.
    word: &'static str,
    text: String,
    again: Duration,
}

/// What is to be loaded, and why: the bundles on disk of which etcd runs with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    due: BTreeMap<Domain, String>,
    why: Vec<String>,
    /// Not every port could be asked.
    blind: bool,
}

impl Options {
    /// What the pod's arguments say.
    pub fn of_pod(args: &PodArgs, pod: &DownwardArgs, client: Option<kube::Client>) -> Self {
        Self {
            dir: args.dir.clone(),
            roles: args.roles.clone(),
            reload: args.reload.clone(),
            can_signal: args.can_signal,
            place: Place::Anywhere,
            client_url: args.client_url.clone(),
            peer_url: args.peer_url.clone(),
            liveness_url: args.liveness_url.clone(),
            holder: format!("{}/{}", pod.pod_name, pod.pod_uid),
            pace: args.restart_pace,
            notice: NOTICE,
            lease: client.map(|client| LeaseOptions {
                client,
                namespace: pod.pod_namespace.clone(),
                name: lease_name(&args.cluster),
            }),
        }
    }

    /// What the arguments say of a host's etcd, which is at `place`. Who names etcd's unit or pid file says that it may be
    /// signalled.
    pub fn of_host(args: &PodArgs, place: Place, holder: String) -> Self {
        Self {
            dir: args.dir.clone(),
            roles: args.roles.clone(),
            reload: args.reload.clone(),
            can_signal: args.can_signal || place != Place::Anywhere,
            place,
            client_url: args.client_url.clone(),
            peer_url: args.peer_url.clone(),
            liveness_url: args.liveness_url.clone(),
            holder,
            pace: args.restart_pace,
            notice: NOTICE,
            lease: None,
        }
    }

    fn means(&self) -> Means {
        let by_hand = |why: &str| Means::ByHand(why.to_owned());
        match &self.reload {
            Reload::None => by_hand("reload is none: restart etcd by hand, one member at a time"),
            Reload::Probe => Means::Probe,
            Reload::Auto if self.can_signal => Means::End(Signal::SIGTERM),
            Reload::Auto => by_hand(
                "the sidecar cannot signal etcd (no shared process namespace, or another user): restart the pods one at a \
                 time, or set etcd-tls.dev/reload: probe",
            ),
            Reload::Signal(name) => {
                let full = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
                match full.parse::<Signal>() {
                    Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) => Means::End(signal),
                    Ok(Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGQUIT) | Err(_) => {
                        by_hand(&format!("{full} is no signal to restart or tell a server with"))
                    }
                    Ok(signal) => Means::Tell(signal),
                }
            }
        }
    }
}

impl Restarter {
    /// For one etcd. `registry` gets its metrics: `restart_due`, `restart_waits`, `restarts`, `restart_downtime_seconds`.
    pub fn new(options: Options, registry: &mut Registry) -> Self {
        let means = options.means();
        // What is told to read its files again may be any program; what is ended is etcd and nothing else.
        let program = if matches!(means, Means::Tell(_)) { None } else { Some(names::ETCD_CONTAINER.to_owned()) };
        let eyes = Eyes::new(&options, program);
        Self {
            gate: Arc::new(Gate::new(options.liveness_url.clone(), eyes.identity())),
            memory: Memory::open(&options.dir),
            metrics: Metrics::register(registry),
            status: watch::Sender::default(),
            unserved: watch::Sender::default(),
            observed: None,
            lease_granted: None,
            learned: None,
            announced: None,
            leads_since: None,
            leaf_tried: false,
            means,
            eyes,
            options,
        }
    }

    /// What etcd has loaded. The driver states it on its next request, and requests anew when it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The answer to the liveness probe, for the admin server's [`PATH`].
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Where to say that etcd does (true) or no longer does (false) serve an old leaf after its grace time, which a restart
    /// cures.
    pub fn leaf_unserved(&self) -> watch::Sender<bool> {
        self.unserved.clone()
    }

    /// Runs until the sender of `installed` is dropped. Each value sent means: a set was installed, look now. The files are
    /// read from the directory.
    pub async fn run(mut self, mut installed: watch::Receiver<u64>) {
        let mut unserved = self.unserved.subscribe();
        loop {
            let pause = self.tick().await;
            tokio::select! {
                () = sleep(pause) => {}
                changed = installed.changed() => if changed.is_err() { return },
                _ = unserved.changed() => {}
            }
        }
    }

    /// Looks once, and acts if it must and may; how long until the next look.
    async fn tick(&mut self) -> Duration {
        let look = self.look().await;
        if look.due.is_empty() && look.why.is_empty() {
            (self.announced, self.leads_since) = (None, None);
            self.show(None);
            self.learn_cluster().await;
            return if look.blind { AGAIN } else { IDLE };
        }
        self.ask_for_the_right().await;
        let why = look.why.join("; ");
        match self.attempt(&look, &why).await {
            Ok(()) => Duration::ZERO,
            Err(wait) => {
                self.show(Some((&why, &wait)));
                wait.again
            }
        }
    }

    /// Compares what is on disk with what etcd shows, and states what is loaded.
    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        let Ok(now) = uptime() else { return Look { blind: true, ..look } };
        // Of a server that reads its files again, the start tells nothing.
        let started = if matches!(self.means, Means::Tell(_)) { None } else { self.eyes.started().await };
        let mut loaded = self.status.borrow().loaded.clone();
        for (domain, (bundle, port)) in self.eyes.bundles() {
            let Some(port) = port else {
                loaded.insert(domain, bundle.digest());
                continue;
            };
            let installed = match self.memory.installed(domain, &bundle, now) {
                Ok(installed) => installed,
                Err(error) => {
                    tracing::error!(%error, "what the restarter must remember cannot be written");
                    look.blind = true;
                    continue;
                }
            };
            let seen = match self.eyes.seen(&port, started).await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(%domain, error, "etcd's port shows nothing");
                    look.blind = true;
                    continue;
                }
            };
            let state = trust(&installed, &seen, self.memory.tried(domain, &installed.digest));
            self.metrics.due(domain, state == Trust::Due);
            match state {
                Trust::Loaded => {
                    let before = loaded.insert(domain, installed.digest.clone());
                    if before.as_ref() != Some(&installed.digest) {
                        tracing::info!(%domain, digest = %installed.digest, "etcd has loaded the trust bundle");
                    }
                }
                Trust::Due => {
                    look.why.push(format!("the {domain} trust bundle has changed since etcd loaded it"));
                    look.due.insert(domain, installed.digest);
                }
                Trust::Elsewhere => tracing::warn!(
                    %domain,
                    "etcd was started after its {domain} bundle was written and trusts other CAs: does it read another \
                     file than ca.crt? A restart would change nothing"
                ),
            }
        }
        if leaf_due(*self.unserved.borrow(), &mut self.leaf_tried) {
            look.why.push("etcd still serves an old certificate".to_owned());
        }
        self.status.send_if_modified(|status| {
            let changed = status.loaded != loaded;
            status.loaded = loaded;
            changed
        });
        look
    }

    async fn attempt(&mut self, look: &Look, why: &str) -> Result<(), Wait> {
        let ends = match &self.means {
            Means::ByHand(how) => return Err(Wait::new("by_hand", how.clone(), IDLE)),
            Means::Tell(signal) => return self.tell(*signal, look),
            Means::End(_) | Means::Probe => look,
        };
        self.keep_pace()?;
        let seen = self.cluster().await?;
        let allowed = permit(seen.me, &seen.members).map_err(Wait::hindered)?;
        if allowed.outage {
            self.announce(why)?;
            let done = self.restart(ends, &allowed, None, &seen.client_urls).await;
            self.leaf_tried |= done.is_ok() && *self.unserved.borrow();
            return done;
        }
        let mut guard = self.lock(&seen.client_urls).await?;
        let done = self.restart(ends, &allowed, Some(&mut guard), &seen.client_urls).await;
        if let Err(error) = guard.release(&seen.client_urls).await {
            tracing::warn!(%error, "the restart lock was not given back; it lapses by itself");
        }
        self.leaf_tried |= done.is_ok() && *self.unserved.borrow();
        done
    }

    /// Looks at every member, by way of the others where etcd itself refuses us.
    async fn cluster(&mut self) -> Result<ClusterSeen, Wait> {
        let unknown = |error: EtcdError| Wait::new("cluster_unknown", error.to_string(), AGAIN);
        let error = match self.eyes.cluster().await {
            Ok(seen) => return Ok(seen),
            Err(error @ EtcdError::Unreachable { .. }) => error,
            Err(error) => return Err(unknown(error)),
        };
        match self.memory.cluster() {
            Some(known) if !known.others.is_empty() => {
                tracing::debug!(%error, "etcd refuses us; the other members are asked");
                self.eyes.cluster_by_others(known).await.map_err(unknown)
            }
            _ => Err(unknown(error)),
        }
    }

    /// While etcd takes us: who it is, and where the others are.
    async fn learn_cluster(&mut self) {
        if self.learned.is_some_and(|at| at.elapsed() < LEARN) || !matches!(self.means, Means::End(_) | Means::Probe) {
            return;
        }
        match self.eyes.known().await {
            Ok((_, known, _)) => match self.memory.knows(known) {
                Ok(()) => self.learned = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "the cluster's members cannot be noted"),
            },
            Err(error) => tracing::debug!(%error, "etcd does not tell of its cluster yet"),
        }
    }

    fn keep_pace(&self) -> Result<(), Wait> {
        let since = uptime().ok().and_then(|now| self.memory.since_restart(now));
        match since.and_then(|since| self.options.pace.checked_sub(since)) {
            Some(rest) if !rest.is_zero() => Err(Wait::new(
                "pace",
                format!(
                    "etcd was restarted {} s ago; kubelet would delay another one, so it waits {} s more",
                    since.unwrap_or_default().as_secs(),
                    rest.as_secs()
                ),
                rest.min(IDLE),
            )),
            _ => Ok(()),
        }
    }

    /// Says in advance that the cluster will be away.
    fn announce(&mut self, why: &str) -> Result<(), Wait> {
        let first = self.announced.is_none();
        let rest = self.options.notice.saturating_sub(self.announced.get_or_insert_with(Instant::now).elapsed());
        if first {
            tracing::warn!(
                why,
                seconds = self.options.notice.as_secs(),
                "this cluster has one member: restarting it is an outage of some seconds, which begins soon"
            );
        }
        if rest.is_zero() {
            return Ok(());
        }
        let text = format!("this cluster has one member; its outage of some seconds begins in {} s", rest.as_secs());
        Err(Wait::new("announced", text, rest.min(AGAIN)))
    }

    /// etcd's lock, then the Lease, each where it is to be had.
    async fn lock(&mut self, client_urls: &[String]) -> Result<Guard, Wait> {
        let (etcd, refused) = match self.eyes.identity() {
            None => (None, "the pod has no certificate to present to etcd (roles server or client)".to_owned()),
            Some(dir) => match EtcdLock::acquire(&dir, client_urls, &self.options.holder).await {
                Ok(Attempt::Held(lock)) => (Some(lock), String::new()),
                Ok(Attempt::HeldBy(other)) => return Err(self.held_by(&other)),
                Ok(Attempt::Unavailable(why)) => (None, why),
                Err(error) => return Err(Wait::new("no_lock", error.to_string(), AGAIN)),
            },
        };
        let lease = self.lease(&refused, etcd.is_some()).await;
        match (lease, etcd) {
            (Ok(Some(lease)), etcd) => Ok(Guard::lease(lease, etcd)),
            (Ok(None), Some(etcd)) => Ok(Guard::etcd(etcd)),
            (Ok(None), None) => Err(Wait::new("no_lock", format!("etcd gives no lock: {refused}"), IDLE)),
            (Err(wait), None) => Err(wait),
            (Err(wait), Some(etcd)) => {
                if let Err(error) = etcd.release(client_urls).await {
                    tracing::warn!(%error, "etcd's restart lock was not given back; it lapses by itself");
                }
                Err(wait)
            }
        }
    }

    /// The Lease. Whom etcd does not serve has nothing else to hold, so whom it serves takes the Lease as well, and goes
    /// without it (`None`) only where nobody here can have it: the pods were not given the right to it.
    async fn lease(&mut self, refused: &str, with_etcd: bool) -> Result<Option<LeaseLock>, Wait> {
        let Some(LeaseOptions { client, namespace, name }) = self.options.lease.clone() else { return Ok(None) };
        match LeaseLock::acquire(client, &namespace, &name, &self.options.holder, &mut self.observed).await {
            Ok(Attempt::Held(lock)) => {
                self.lease_granted = Some(true);
                Ok(Some(lock))
            }
            Ok(Attempt::HeldBy(other)) => {
                self.lease_granted = Some(true);
                Err(self.held_by(&other))
            }
            Ok(Attempt::Unavailable(why)) => {
                self.lease_granted = Some(false);
                if with_etcd {
                    return Ok(None);
                }
                let text = format!("etcd gives no lock ({refused}), and Kubernetes no Lease ({why})");
                Err(Wait::new("no_lock", text, IDLE))
            }
            // The API server is away, and with it nobody's right to the Lease comes or goes.
            Err(_) if with_etcd && self.lease_granted == Some(false) => Ok(None),
            Err(error) => Err(Wait::new("no_lock", format!("Lease {name}: {error}"), AGAIN)),
        }
    }

    /// Learns, as soon as a restart is due, whether the pod has the right to the Lease: when it may be restarted, the API
    /// server may be away.
    async fn ask_for_the_right(&mut self) {
        let Some(LeaseOptions { client, namespace, name }) = self.options.lease.clone() else { return };
        if self.lease_granted.is_some() || !matches!(self.means, Means::End(_) | Means::Probe) {
            return;
        }
        match LeaseLock::granted(client, &namespace, &name).await {
            Ok(granted) => self.lease_granted = Some(granted),
            Err(error) => tracing::debug!(%error, name, "whether the Lease is to be had is not known"),
        }
    }

    /// Those who wait for the same lock ask at different times.
    fn held_by(&self, other: &str) -> Wait {
        let mut hasher = DefaultHasher::new();
        self.options.holder.hash(&mut hasher);
        let spread = Duration::from_millis(hasher.finish() % 1000);
        Wait::new("locked", format!("{other} is being restarted"), AGAIN / 2 + spread)
    }

    /// Shows what a due restart waits for; `None`: nothing is due.
    fn show(&self, waiting: Option<(&str, &Wait)>) {
        self.metrics.waits(waiting.map(|(_, wait)| wait.word));
        let due = waiting.map(|(why, wait)| format!("{why}; {}", wait.text));
        // The log gets each word once, the status each text.
        let word = |due: &Option<String>| {
            due.as_deref().map(|d| d.chars().filter(|c| !c.is_ascii_digit()).collect::<String>())
        };
        self.status.send_if_modified(|status| {
            if status.due == due {
                return false;
            }
            if word(&status.due) != word(&due) {
                match &due {
                    Some(text) => tracing::warn!("etcd is to be restarted: {text}"),
                    None => tracing::info!("etcd runs with the trust bundles on disk"),
                }
            }
            status.due = due;
            true
        });
    }
}

impl Wait {
    fn new(word: &'static str, text: String, again: Duration) -> Self {
        Self { word, text, again }
    }

    fn hindered(hindrance: decision::Hindrance) -> Self {
        Self::new(hindrance.word(), hindrance.to_string(), AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver spawns it.
    #[test]
    fn a_restarter_runs_on_any_thread() {
        fn sends<F: Future + Send>(_: fn(Restarter, watch::Receiver<u64>) -> F) {}
        sends(Restarter::run);
    }

    #[test]
    fn reload_says_how_etcd_is_restarted() {
        let means = |reload, can_signal| {
            let options = Options {
                dir: PathBuf::new(),
                roles: vec![Role::Peer],
                reload,
                can_signal,
                place: Place::Anywhere,
                client_url: None,
                peer_url: None,
                liveness_url: None,
                holder: String::new(),
                pace: PACE,
                notice: NOTICE,
                lease: None,
            };
            options.means()
        };
        let signal = |name: &str| means(Reload::Signal(name.to_owned()), true);
        assert_eq!(means(Reload::Auto, true), Means::End(Signal::SIGTERM));
        assert!(matches!(means(Reload::Auto, false), Means::ByHand(why) if why.contains("reload: probe")));
        assert_eq!(means(Reload::Probe, false), Means::Probe);
        assert!(matches!(means(Reload::None, true), Means::ByHand(_)));
        assert_eq!(signal("SIGTERM"), Means::End(Signal::SIGTERM));
        assert_eq!(signal("INT"), Means::End(Signal::SIGINT));
        assert_eq!(signal("HUP"), Means::Tell(Signal::SIGHUP));
        for none in ["SIGKILL", "STOP", "QUIT", "NOPE", ""] {
            assert!(matches!(signal(none), Means::ByHand(_)), "{none}");
        }
    }
}
