//! Restarts etcd when its trust bundle has changed, which a running etcd does not notice: one member at a time, under a
//! lock, and only while every other member is healthy and quorum stands without this one.
//!
//! ```text
//! observe    what is on disk, what etcd's ports show, how every member is
//! decide     must etcd be restarted? may it be, now?                           (pure)
//! act        lock, check again, hand leadership over, end etcd, wait for it
//! cut        an operator's request to end all connections                      (pure)
//! gate       the liveness probe that kubelet acts on, for `reload: probe`
//! options    the arguments, and the restart method that follows from them     (pure)
//! locks      which locks a restart holds, etcd's, the Lease or both
//! memory     the state that survives a restart of the sidecar
//! ```
//!
//! After any failure the restarter waits and tries again. The pending restart is reported in [`Status`], in the log and by
//! the metrics `restart_due` and `restart_waits`.
//!
//! If a sidecar dies with the lock held, the lock expires within [`crate::restart::lock::TTL`] seconds, and the
//! next one then finds a member that is down and waits for it.

mod act;
mod cut;
mod decide;
pub mod gate;
pub mod lock;
mod locks;
mod memory;
mod metrics;
mod observe;
mod options;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use self::{
    act::Lock,
    cut::Cut,
    decide::{Permit, Trust, leaf_due, permit, trust},
    locks::Locks,
    memory::Memory,
    metrics::Metrics,
    observe::{Loads, ObservedCluster, Observer},
    options::Method,
};
pub use self::{
    decide::Ports,
    gate::Gate,
    options::{LeaseOptions, Options, lease_name},
};
use etcd_tls_contract::{certificate::Bundle, names, role::Domain, trusts::Unknown};

use crate::{
    etcd::EtcdError,
    issuance::others::{DistrustingMembers, Questions},
    os::process::uptime,
};

/// How soon what only an operator can change is looked at again.
const IDLE: Duration = Duration::from_secs(30);
/// How often etcd's ports are asked what they have loaded while nothing is known to have changed: each install is looked at
/// at once.
const REST: Duration = Duration::from_secs(300);
/// How soon a restart that has to wait is thought about again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long a port may show nothing before that is said: etcd starts meanwhile.
const SILENCE: Duration = Duration::from_secs(120);
/// How often the members are looked at while a certificate waits for their trust.
const QUESTIONS: Duration = Duration::from_secs(10);
/// How often the cluster's members are noted while nothing is due.
const LEARN: Duration = Duration::from_secs(600);

/// The known state of etcd's trust; sent on each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The digest of each domain's bundle, once etcd was seen to have loaded it; a domain that etcd verifies nothing
    /// with (a client's alone) counts as loaded when it is installed.
    pub loaded: BTreeMap<Domain, String>,
    /// Domains of which it cannot be seen whether etcd has loaded the bundle on disk. Never counted as loaded.
    pub unknown: BTreeMap<Domain, Unknown>,
    /// Domains in which another member trusts a CA that is not in the bundle on disk, with a digest of what it shows. Looked for
    /// where the bundle comes with the issuer's answers.
    pub ahead: BTreeMap<Domain, String>,
    /// Why etcd must be restarted, and why that waits; `None` when all is loaded.
    pub due: Option<String>,
}

/// Watches what etcd has loaded, and restarts it when it may.
pub struct Restarter {
    options: Options,
    method: Method,
    observer: Observer,
    memory: Memory,
    metrics: Metrics,
    gate: Arc<Gate>,
    status: watch::Sender<Status>,
    unserved: watch::Sender<Ports>,
    cut_asked: watch::Sender<Option<String>>,
    cut: Cut,
    locks: Locks,
    questions: Arc<Questions>,
    /// When the cluster's members were last noted.
    learned: Option<Instant>,
    announced: Option<Instant>,
    /// Since when it waits, as the leader, for followers to go first.
    leads_since: Option<Instant>,
    /// Since when a domain's port shows nothing.
    silent: BTreeMap<Domain, Instant>,
    /// The ports for which etcd was restarted, and that still do not serve the leaf.
    leaf_tried: Ports,
    /// When etcd was last seen to have started.
    last_start: Option<Duration>,
}

/// A restart that has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    /// One word of a fixed set, for the metric.
    word: &'static str,
    text: String,
    again: Duration,
}

/// The bundles to load, with reasons: those on disk that differ from the ones etcd runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    due: BTreeMap<Domain, String>,
    why: Vec<String>,
    /// Not every port could be asked.
    blind: bool,
}

impl Restarter {
    /// For one etcd. `registry` gets its metrics: `restart_due`, `restart_waits`, `restarts`, `restart_downtime_seconds`.
    pub fn new(options: Options, registry: &mut Registry) -> Self {
        let method = options.method();
        // A signal to reload may go to any program; a signal to end goes to etcd alone.
        let program = if matches!(method, Method::Tell(_)) { None } else { Some(names::ETCD_CONTAINER.to_owned()) };
        let observer = Observer::new(&options, program);
        Self {
            gate: Arc::new(Gate::new(options.liveness_url.clone(), observer.identity())),
            memory: Memory::open(&options.dir),
            metrics: Metrics::register(registry),
            status: watch::Sender::default(),
            unserved: watch::Sender::default(),
            cut_asked: watch::Sender::default(),
            cut: Cut::default(),
            locks: Locks::new(options.holder.clone(), options.lease.clone()),
            questions: Arc::default(),
            learned: None,
            announced: None,
            leads_since: None,
            silent: BTreeMap::new(),
            leaf_tried: Ports::new(),
            last_start: None,
            method,
            observer,
            options,
        }
    }

    /// The bundles that etcd has loaded. The driver states them in its next request and requests again after a change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The answer to etcd's liveness probe, to be served to it.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Where to say which ports of etcd serve an old leaf after its grace time, which a restart cures.
    pub fn leaf_unserved(&self) -> watch::Sender<Ports> {
        self.unserved.clone()
    }

    /// Where to ask which members trust a bundle.
    pub fn questions(&self) -> Arc<Questions> {
        Arc::clone(&self.questions)
    }

    /// Where to send the id of an operator's request to end all connections by a restart.
    pub fn cut(&self) -> watch::Sender<Option<String>> {
        self.cut_asked.clone()
    }

    /// Runs until the sender of `installed` is dropped. Each value sent means: a set was installed, look now. The files are
    /// read from the directory.
    pub async fn run(mut self, mut installed: watch::Receiver<u64>) {
        let (mut unserved, mut cut) = (self.unserved.subscribe(), self.cut_asked.subscribe());
        loop {
            let pause = self.tick().await;
            let pause = pause.min(self.look_ahead().await);
            let pause = if self.answer_questions().await { pause.min(QUESTIONS) } else { pause };
            tokio::select! {
                () = self.questions.asked() => {}
                () = sleep(pause) => {}
                changed = installed.changed() => if changed.is_err() { return },
                _ = unserved.changed() => {}
                _ = cut.changed() => {}
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
            return if look.blind { AGAIN } else { REST };
        }
        if matches!(self.method, Method::End(_) | Method::Probe) {
            self.locks.ask_for_the_right().await;
        }
        let (why, cut) = (look.why.join("; "), self.cut.asked());
        match self.attempt(&look, &why).await {
            Ok(()) => {
                self.cut.carried_out(cut);
                Duration::ZERO
            }
            Err(wait) => {
                self.show(Some((&why, &wait)));
                wait.again
            }
        }
    }

    /// Notes where other members trust more CAs than are on disk, unless that was just done; how soon it wants to look again.
    async fn look_ahead(&self) -> Duration {
        match self.questions.looks_ahead_in(std::time::Instant::now()) {
            None => REST,
            Some(wait) if !wait.is_zero() => wait,
            Some(_) => {
                let ahead = self.observer.ahead().await;
                self.status.send_if_modified(|status| std::mem::replace(&mut status.ahead, ahead.clone()) != ahead);
                REST
            }
        }
    }

    /// Tells who waits which members do not trust their bundle yet; whether anybody waits.
    async fn answer_questions(&self) -> bool {
        let open = self.questions.open();
        for (domain, bundle) in &open {
            let answer = match self.observer.distrusting(*domain, bundle, self.has_loaded(*domain, bundle)).await {
                Ok(members) => DistrustingMembers { members, unknown: None },
                Err(why) => DistrustingMembers::unseen(why.to_string()),
            };
            self.questions.answer(*domain, bundle, answer);
        }
        !open.is_empty()
    }

    /// True if this pod's etcd has loaded `bundle`, which may be a part of the one on disk.
    ///
    /// # Errors
    /// Why it cannot be seen.
    fn has_loaded(&self, domain: Domain, bundle: &Bundle) -> Result<bool, Unknown> {
        let status = self.status.borrow();
        if let Some(reason) = status.unknown.get(&domain) {
            return Err(reason.clone());
        }
        let Some((on_disk, _)) = self.observer.bundles().remove(&domain) else { return Ok(false) };
        Ok(status.loaded.get(&domain) == Some(&on_disk.digest()) && on_disk.contains(bundle))
    }

    /// Compares what is on disk with what etcd shows, and states what is loaded.
    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        let Ok(now) = uptime() else { return Look { blind: true, ..look } };
        // Of a server that reads its files again, the start tells nothing.
        let started = if matches!(self.method, Method::Tell(_)) { None } else { self.observer.started().await };
        self.last_start = started.or(self.last_start);
        let mut loaded = self.status.borrow().loaded.clone();
        let mut unknown = BTreeMap::new();
        for (domain, (bundle, loads)) in self.observer.bundles() {
            let port = match loads {
                Loads::Port(port) => port,
                Loads::Reader => {
                    loaded.insert(domain, bundle.digest());
                    continue;
                }
                Loads::Unknown(reason) => {
                    unknown.insert(domain, reason);
                    continue;
                }
            };
            let installed = match self.memory.installed(domain, &bundle, now) {
                Ok(installed) => installed,
                Err(error) => {
                    tracing::error!(%error, "cannot write the restarter's state");
                    look.blind = true;
                    unknown.insert(domain, Unknown::Files);
                    continue;
                }
            };
            let seen = match self.observer.seen(&port, started).await {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(%domain, %error, "etcd's port shows nothing");
                    look.blind = true;
                    let since = *self.silent.entry(domain).or_insert_with(Instant::now);
                    // One that has loaded it reads it again when it comes back.
                    if loaded.get(&domain) != Some(&installed.digest) && since.elapsed() >= SILENCE {
                        unknown.insert(domain, Unknown::Unreachable);
                    }
                    continue;
                }
            };
            self.silent.remove(&domain);
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
                // A restart would change nothing.
                Trust::Elsewhere => drop(unknown.insert(domain, Unknown::OtherFile)),
            }
        }
        if leaf_due(&self.unserved.borrow(), &mut self.leaf_tried) {
            look.why.push("etcd still serves an old certificate".to_owned());
        }
        // A server that reloads its files on a signal ends no connection.
        let asked = self.cut_asked.borrow().clone().filter(|_| !matches!(self.method, Method::Tell(_)));
        if let Some(id) = asked {
            self.cut.ask(&id, now);
        }
        if self.cut.is_due(started) {
            look.why.push("an operator asks for the end of all connections".to_owned());
        }
        self.metrics.cut(self.cut.done());
        self.metrics.states(&loaded, &look.due, &unknown);
        let before = self.status.borrow().unknown.clone();
        for (domain, reason) in unknown.iter().filter(|(domain, reason)| before.get(*domain) != Some(*reason)) {
            tracing::warn!(
                %domain, reason = reason.as_str(),
                "it is unknown whether etcd has loaded the trust bundle: {}", reason.advice()
            );
        }
        self.status.send_if_modified(|status| {
            let changed = status.loaded != loaded || status.unknown != unknown;
            (status.loaded, status.unknown) = (loaded, unknown);
            changed
        });
        look
    }

    async fn attempt(&mut self, look: &Look, why: &str) -> Result<(), Wait> {
        let ends = match &self.method {
            Method::Manual(how) => return Err(Wait::new("by_hand", how.clone(), IDLE)),
            Method::Tell(signal) => return self.tell(*signal, look),
            Method::End(_) | Method::Probe => look,
        };
        self.keep_pace()?;
        let seen = self.cluster().await?;
        let allowed = permit(seen.me, &seen.members).map_err(Wait::hindered)?;
        if allowed.outage {
            self.announce(why)?;
            let done = self.restart(ends, &allowed, Lock::new(None, &seen.client_urls)).await;
            self.note_tried(&done);
            return done;
        }
        let mut guard = self.locks.acquire(self.observer.identity().as_deref(), &seen.client_urls).await?;
        let done = self.restart(ends, &allowed, Lock::new(Some(&mut guard), &seen.client_urls)).await;
        if let Err(error) = guard.release(&seen.client_urls).await {
            tracing::warn!(%error, "the restart lock was not given back; it lapses by itself");
        }
        self.note_tried(&done);
        done
    }

    fn note_tried(&mut self, done: &Result<(), Wait>) {
        if done.is_ok() {
            self.leaf_tried.extend(self.unserved.borrow().iter());
        }
    }

    /// Looks at every member, by way of the others where etcd itself refuses us.
    async fn cluster(&mut self) -> Result<ObservedCluster, Wait> {
        let unknown = |error: EtcdError| Wait::new("cluster_unknown", error.to_string(), AGAIN);
        let error = match self.observer.cluster().await {
            Ok(seen) => return Ok(seen),
            Err(error @ EtcdError::Unreachable { .. }) => error,
            Err(error) => return Err(unknown(error)),
        };
        match self.memory.cluster() {
            Some(known) if !known.others.is_empty() => {
                tracing::debug!(%error, "etcd refuses us; the other members are asked");
                self.observer.cluster_by_others(known).await.map_err(unknown)
            }
            _ => Err(unknown(error)),
        }
    }

    /// Learns the members while etcd accepts our certificate: its own identity and the others' addresses.
    async fn learn_cluster(&mut self) {
        if self.learned.is_some_and(|at| at.elapsed() < LEARN) || !matches!(self.method, Method::End(_) | Method::Probe)
        {
            return;
        }
        match self.observer.known().await {
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

    fn hindered(hindrance: decide::Hindrance) -> Self {
        Self::new(hindrance.as_str(), hindrance.to_string(), AGAIN)
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
}
