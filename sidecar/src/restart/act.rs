//! Restarts etcd: with the lock held, checks the cluster again, hands leadership over, ends etcd, and waits until etcd is
//! back, healthy and has loaded the bundle on disk.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{AGAIN, IDLE, Look, Permit, Restarter, Wait, decide::permit, options::Method};
use etcd_tls_contract::{endpoint::Endpoint, names};

use crate::{
    etcd::EtcdError,
    os::process::{Process, uptime},
    restart::lock::{Guard, TTL},
};

/// How long a leader may take to hand on; etcd itself tries again when it is ended.
const HAND_ON_LIMIT: Duration = Duration::from_secs(3);
/// How long the leader waits for followers that are to be restarted for the same bundle: kubelet may bring it to them a
/// minute or two later.
const LEADER_PATIENCE: Duration = Duration::from_secs(180);
/// How long etcd may take to end (its own limit is 8 s and grows with what it serves), start, load its data and be healthy,
/// with a back-off of kubelet's in between.
const BACK_LIMIT: Duration = Duration::from_secs(180);
/// How long kubelet may take to act on a failing probe: half a minute by default, and a user may write a longer patience.
const PROBE_LIMIT: Duration = Duration::from_secs(1800);
/// An etcd that has been silent for so long while its probe failed is on its way down or up.
const SILENCE: Duration = Duration::from_secs(5);
/// How often the lock is confirmed.
const CONFIRM: Duration = Duration::from_secs(TTL as u64 / 3);
/// How long after the last renewal of the lock the probe may fail: kubelet must act before the lock lapses.
const ARMED: Duration = Duration::from_secs(TTL as u64 * 2 / 3);
/// How often a restart's progress is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How often etcd itself is looked at while its probe fails: before kubelet asks the next one as often as makes it fail.
const GLANCE_AT_PROBED: Duration = Duration::from_millis(500);
/// How often everything is looked at again while the probe fails and kubelet has not acted yet.
const GLANCE_AT_CLUSTER: Duration = Duration::from_secs(5);

/// The state of an etcd whose probe fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probed {
    /// Nothing.
    Same,
    /// It does not answer.
    Silent,
    /// There is another one in its place.
    Another,
}

/// The lock that a restart holds where there are other members.
pub(super) struct Lock<'a> {
    guard: Option<&'a mut Guard>,
    client_urls: &'a [Endpoint],
    /// When it was last acquired or confirmed.
    confirmed: Instant,
}

impl<'a> Lock<'a> {
    /// `guard` was just acquired; `None` where there is no other member. `client_urls` are the members to ask for it.
    pub(super) fn new(guard: Option<&'a mut Guard>, client_urls: &'a [Endpoint]) -> Self {
        Self { guard, client_urls, confirmed: Instant::now() }
    }

    fn is_held(&self) -> bool {
        self.guard.is_some()
    }

    /// Confirms that the lock is still held, and extends it.
    async fn confirm(&mut self) -> Result<(), Wait> {
        let asked = Instant::now();
        if let Some(guard) = &mut self.guard {
            guard.confirm(self.client_urls).await.map_err(|e| Wait::new("lock_lost", e.to_string(), AGAIN))?;
        }
        self.confirmed = asked;
        Ok(())
    }

    /// Extends the lock, when it is time, while etcd is down. To lose it now changes nothing: the other members see one
    /// that is down.
    async fn keep(&mut self) {
        if self.confirmed.elapsed() < CONFIRM {
            return;
        }
        if let Err(wait) = self.confirm().await {
            self.confirmed = Instant::now();
            tracing::warn!("{}; the other members wait all the same, until this one is healthy", wait.text);
        }
    }
}

impl Restarter {
    /// Tells a server that is not etcd to read its files again. It stays up, so there is nothing to lock.
    pub(super) fn tell(&mut self, signal: Signal, look: &Look) -> Result<(), Wait> {
        // A changed bundle is signalled once; a leaf that is not served, repeatedly.
        let since = uptime().ok().and_then(|now| self.memory.since_restart(now));
        if look.due.is_empty() && since.is_some_and(|since| since < IDLE) {
            return Err(Wait::new("told", format!("{signal} was sent"), AGAIN));
        }
        let process = self.process()?;
        if self.observer.is_etcd(process) {
            let text = format!("the server is etcd, which {signal} kills or leaves as it is: set reload to auto");
            return Err(Wait::new("by_hand", text, IDLE));
        }
        self.note_restart(look)?;
        process.signal(signal).map_err(|e| Wait::new("no_process", e.to_string(), AGAIN))?;
        tracing::info!(pid = process.pid, %signal, "told the server to read its files again");
        self.metrics.restarted("told");
        // Time to do so, before it is asked again.
        Err(Wait::new("told", format!("{signal} was sent"), AGAIN))
    }

    /// Restarts etcd, with the lock in hand where there are other members.
    pub(super) async fn restart(&mut self, look: &Look, first: &Permit, mut lock: Lock<'_>) -> Result<(), Wait> {
        if matches!(self.method, Method::End(_)) {
            // Leadership is not handed on for a restart that cannot be.
            self.process()?;
        }
        if lock.is_held() {
            // An observation from before the lock may show another member's restart.
            let seen = self.cluster().await?;
            let allowed = permit(seen.me, &seen.members).map_err(Wait::hindered)?;
            if let (true, Some(to)) = (seen.leader, allowed.successor) {
                self.let_followers_go_first(seen.me).await?;
                self.hand_on(to).await?;
            }
        } else if !first.outage {
            return Err(Wait::new("no_lock", "no lock is held".to_owned(), AGAIN));
        }
        match self.method.clone() {
            Method::End(signal) => self.end(signal, look, &mut lock).await,
            Method::Probe => self.have_kubelet_end(look, &mut lock).await,
            Method::Tell(_) | Method::Manual(_) => Ok(()),
        }
    }

    /// Each time that leadership passes on, writes on their way may be lost, and be answered with a timeout of seconds. If the
    /// leader restarts last, leadership moves once. The wait for a follower is limited.
    async fn let_followers_go_first(&mut self, me: u64) -> Result<(), Wait> {
        let since = self.leads_since.get_or_insert_with(Instant::now);
        if since.elapsed() > LEADER_PATIENCE {
            return Ok(());
        }
        match self.observer.behind(me).await {
            Some(name) => {
                Err(Wait::new("leader_last", format!("it leads the cluster and goes last; {name} goes before"), AGAIN))
            }
            None => Ok(()),
        }
    }

    /// So that no write waits for an election. Where it fails, etcd does it itself on its way down.
    ///
    /// A member that does not know the new leader yet would go on sending writes here, where they end with this one: so each
    /// is to answer by the new leader first.
    async fn hand_on(&self, to: u64) -> Result<(), Wait> {
        let outcome = self.observer.move_leader(to).await;
        match &outcome {
            Ok(()) => {}
            Err(error @ EtcdError::Forbidden { .. }) => tracing::debug!(%error, "etcd hands leadership on by itself"),
            Err(error) => tracing::warn!(%error, "leadership was not handed on; etcd does so itself when it ends"),
        }
        let start = Instant::now();
        while outcome.is_ok() {
            let waits = match self.observer.cluster().await {
                Ok(seen) => match permit(seen.me, &seen.members) {
                    Ok(_) if !seen.leader => {
                        tracing::info!(to = format!("{to:x}"), "handed leadership on");
                        return Ok(());
                    }
                    Ok(_) => None,
                    Err(hindrance) => Some(Wait::hindered(hindrance)),
                },
                // It may be that no other member stands any more.
                Err(error) => Some(Wait::new("cluster_unknown", error.to_string(), AGAIN)),
            };
            if start.elapsed() > HAND_ON_LIMIT {
                return waits.map_or(Ok(()), Err);
            }
            sleep(GLANCE).await;
        }
        Ok(())
    }

    fn process(&self) -> Result<Process, Wait> {
        self.observer.process().map_err(|e| Wait::new("no_process", e.to_string(), AGAIN))
    }

    async fn end(&mut self, signal: Signal, look: &Look, lock: &mut Lock<'_>) -> Result<(), Wait> {
        let process = self.process()?;
        // The last to be asked before the signal: a lock that may have passed on ends nothing.
        lock.confirm().await?;
        self.note_restart(look)?;
        process.signal(signal).map_err(|e| Wait::new("no_process", e.to_string(), IDLE))?;
        tracing::info!(pid = process.pid, %signal, why = look.why.join("; "), "restarting etcd");
        let started = process.started();
        let start = Instant::now();
        while process.runs() {
            if start.elapsed() > BACK_LIMIT {
                self.metrics.restarted("not_ended");
                return Err(Wait::new("not_ended", format!("etcd still runs after {signal}"), IDLE));
            }
            lock.keep().await;
            sleep(GLANCE).await;
        }
        self.await_back(Some(started), lock).await
    }

    async fn have_kubelet_end(&mut self, look: &Look, lock: &mut Lock<'_>) -> Result<(), Wait> {
        // It does not say where it refuses us; that it takes us again is then what tells of its restart. One that takes us and
        // did not answer just now would look like one that was restarted.
        let started = self.observer.started().await;
        if started.is_none() && self.observer.known().await.is_ok() {
            return Err(Wait::new("cluster_unknown", "etcd does not say when it started".to_owned(), AGAIN));
        }
        lock.confirm().await?;
        let why = look.why.join("; ");
        self.gate.arm(&why, lock.confirmed + ARMED);
        tracing::info!(why, "failing etcd's liveness probe, so that kubelet restarts it");
        let ended = self.await_kubelet(&why, started, lock).await;
        self.gate.disarm();
        if let Err(wait) = ended {
            self.metrics.restarted("not_ended");
            return Err(wait);
        }
        self.note_restart(look)?;
        self.await_back(started, lock).await
    }

    /// Fails the probe for as long as a restart is allowed, and no longer.
    async fn await_kubelet(&mut self, why: &str, started: Option<Duration>, lock: &mut Lock<'_>) -> Result<(), Wait> {
        let start = Instant::now();
        // When the cluster was last seen; `None`: the last look was none.
        let mut looked = Some(start);
        let mut silent = None;
        loop {
            sleep(GLANCE_AT_PROBED).await;
            match self.probed(started).await {
                Probed::Another => return Ok(()),
                Probed::Silent => {
                    // The next one is not to be met by what was meant for this one.
                    self.gate.disarm();
                    if silent.get_or_insert_with(Instant::now).elapsed() > SILENCE {
                        return Ok(());
                    }
                    lock.keep().await;
                    continue;
                }
                Probed::Same => {}
            }
            let was_silent = silent.take().is_some();
            if start.elapsed() > PROBE_LIMIT {
                let text = format!(
                    "kubelet has not restarted etcd in {} s of failed probes: is {} its liveness probe?",
                    PROBE_LIMIT.as_secs(),
                    names::PROBE_PROGRAM
                );
                return Err(Wait::new("not_ended", text, IDLE));
            }
            // While etcd was silent the lock may have been lost, and another member be on its way down.
            if was_silent || lock.confirmed.elapsed() > CONFIRM {
                lock.confirm().await?;
                if looked.is_some() {
                    self.gate.arm(why, lock.confirmed + ARMED);
                }
            }
            if lock.is_held() && looked.is_none_or(|at| at.elapsed() > GLANCE_AT_CLUSTER) {
                let Ok(seen) = self.cluster().await else {
                    // Whether the others stand without this one is not known; it may be on its way down already.
                    self.gate.disarm();
                    looked = None;
                    continue;
                };
                let allowed = permit(seen.me, &seen.members).map_err(Wait::hindered)?;
                if let (true, Some(to)) = (seen.leader, allowed.successor) {
                    self.hand_on(to).await?;
                }
                if looked.replace(Instant::now()).is_none() {
                    self.gate.arm(why, lock.confirmed + ARMED);
                }
            }
        }
    }

    /// The state of the etcd that started at `before`; `None`: one that refuses us, or did not answer. Such a one may answer again, and is
    /// no other if it says the start that was last seen.
    async fn probed(&self, before: Option<Duration>) -> Probed {
        match (self.observer.started().await, before) {
            (Some(now), before) if !before.or(self.last_start).is_none_or(|at| self.observer.is_another(now, at)) => {
                Probed::Same
            }
            (Some(_), _) => Probed::Another,
            (None, Some(_)) => Probed::Silent,
            (None, None) if self.observer.listens().await => Probed::Same,
            (None, None) => Probed::Silent,
        }
    }

    async fn await_back(&mut self, before: Option<Duration>, lock: &mut Lock<'_>) -> Result<(), Wait> {
        let (down, before) = (Instant::now(), before.or(self.last_start));
        let mut healthy = None;
        loop {
            if down.elapsed() > BACK_LIMIT {
                self.metrics.restarted("not_back");
                let text = format!(
                    "etcd is not back and healthy {} s after its restart; the other members wait for it. See its log",
                    BACK_LIMIT.as_secs()
                );
                tracing::error!("{text}");
                return Err(Wait::new("not_back", text, IDLE));
            }
            lock.keep().await;
            sleep(GLANCE).await;
            if healthy.is_none() {
                let another = |now| before.is_none_or(|before| self.observer.is_another(now, before));
                let another = self.observer.started().await.is_some_and(another);
                if !another || self.observer.healthy().await.is_err() {
                    continue;
                }
                let downtime = down.elapsed().as_secs_f64();
                healthy = Some(downtime);
                self.metrics.downtime(downtime);
            }
            let look = self.look().await;
            if look.blind {
                continue;
            }
            if look.due.is_empty() {
                self.metrics.restarted("done");
                tracing::info!(seconds = healthy.unwrap_or_default(), "etcd is back, healthy and with the new trust");
            } else {
                // The bundle changed again meanwhile.
                self.metrics.restarted("due_again");
            }
            return Ok(());
        }
    }

    fn note_restart(&mut self, look: &Look) -> Result<(), Wait> {
        let failed = |e: std::io::Error| Wait::new("no_memory", format!("cannot note a restart: {e}"), AGAIN);
        let now = uptime().map_err(failed)?;
        self.memory.restarting(look.due.clone(), now).map_err(failed)
    }
}
