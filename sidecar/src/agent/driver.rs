//! The loop: requests the certificates that are due, writes those that were issued, and checks that etcd's ports serve them.
//!
//! It wakes up for its timers, for a change of the trust directory or ConfigMap, for news from the restarter, and when a request or a check
//! ends. Each time it evaluates the whole state again, so no event needs to be remembered.

mod kubelet;
mod lists;

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    crl::CrlError,
    role::{Domain, Role},
    trusts::TrustStatement,
};
use futures::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::sync::watch;

use crate::{
    agent::{
        health::Health,
        projected::Projected,
        renew::{PendingRenewal, RenewFile, SeenValues},
        serving::{Port, PortState, look},
        subject::Agent,
        trust::TrustError,
    },
    issuance::{
        obtain::Failure,
        renewal::{Reason, Renewal, Template, life, renewal},
        schedule,
    },
    kube::Api,
    os::{
        clock::{Clock, Mark, nap},
        directory_watch::{DirectoryWatch, changes},
    },
    restart,
    store::{Entry, files::Files},
};

/// The loop and its inputs. `api` makes a client for one request; `template` is what a role's certificate is requested with now.
pub struct Driver<C, F, M, W> {
    /// The certificates.
    pub agent: Agent<C, F>,
    /// Makes a client of the API server.
    pub api: M,
    /// The current request template of a role.
    pub template: W,
    /// etcd's ports.
    pub ports: Vec<Port>,
    /// The state shown on the admin port.
    pub health: Arc<Health>,
    /// The bundles that etcd has loaded; `None` without an etcd.
    pub loaded: Option<watch::Receiver<restart::Status>>,
    /// Told when a port still serves an old certificate after its grace time; none where there is no etcd.
    pub unserved: Option<watch::Sender<restart::Ports>>,
    /// Told the id of an operator's request to restart etcd; none where there is no etcd.
    pub cut: Option<watch::Sender<Option<String>>>,
    /// Counts installs, for the restarter.
    pub installed: watch::Sender<u64>,
    /// Wakes the loop when the trust directory has changed.
    pub changed: Option<DirectoryWatch>,
    /// The pod's annotation `renew`; none on a host.
    pub renew: Option<RenewFile>,
    /// The volume that kubelet keeps: then it requests the certificates, and the loop requests none.
    pub projected: Option<Projected>,
}

/// The result of a background task.
#[allow(clippy::large_enum_variant, reason = "one at a time is there, and moved once")]
enum Done {
    Obtained(Role, Box<Result<Entry, Failure>>),
    Looked(Look, PortState),
}

/// A look at one port for one certificate.
struct Look {
    port: Port,
    entry: Arc<Entry>,
    received: Duration,
    /// How often it was looked for in vain.
    round: u32,
}

/// The loop's state of a role between two requests.
#[derive(Default)]
struct RoleState {
    asking: bool,
    /// In terms of [`Clock::elapsed`].
    hold_until: Duration,
    refusals: u32,
    /// Ports that are still to be seen serving the last certificate.
    unseen: usize,
    /// The ports that were last seen serving another one than they should, this one or one before.
    other: restart::Ports,
    /// True if the certificate is one of a process before this one, which has counted it.
    counted: bool,
    received: Duration,
    /// Digest of the bundle on offer that lacks the CA of the certificate in use.
    outdated: Option<String>,
    /// Its value when the pending request began.
    asked_for: Option<String>,
    /// Digest of the bundle on offer that this role asks about.
    offered: Option<String>,
    /// The bundle for which a certificate was obtained: one request for each bundle, with any signer.
    renewed_for: Option<String>,
    /// The CAs that other members showed when a certificate was last requested because they trust more.
    ahead: Option<String>,
    /// The request of the annotation `renew`.
    asked: PendingRenewal,
    /// The last log message about the files that kubelet brings.
    said: Option<String>,
}

/// The state of the loop: the pending tasks and the values kept from one turn to the next. Times are in terms of
/// [`Clock::elapsed`].
#[derive(Default)]
struct Progress<'a> {
    work: FuturesUnordered<LocalBoxFuture<'a, Done>>,
    roles: BTreeMap<Role, RoleState>,
    /// The bundles on offer that were refused in the last turn.
    refused: Vec<(Domain, TrustError)>,
    /// The revocation lists on offer that were refused in the last turn.
    refused_lists: Vec<(Domain, CrlError)>,
    /// When files are written next, after a write that failed.
    write_at: Duration,
    /// Writes that failed in a row.
    failed_writes: u32,
    /// The values of the annotation `renew` that were seen.
    values: SeenValues,
}

impl<C, F, A, M, W> Driver<C, F, M, W>
where
    C: Clock,
    F: Files,
    A: Api + 'static,
    M: Fn() -> A,
    W: Fn(Role) -> Template,
{
    /// Runs until `stop`.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let mut progress = Progress {
            roles: self.agent.roles().iter().map(|r| (*r, RoleState::default())).collect(),
            ..Progress::default()
        };
        let mut loaded = self.loaded.clone();
        let mut mark = Mark::new(self.agent.clock());
        self.health.installed(&self.agent.held(), &self.uid(), self.agent.clock().now());
        self.installed.send_modify(|n| *n += 1);
        for role in self.agent.roles() {
            self.health.ports(*role, self.ports.iter().filter(|port| port.role == *role).count());
            self.look_at_ports(*role, true, &mut progress);
        }
        let stop = stop.fuse();
        futures::pin_mut!(stop);
        loop {
            self.health.beat();
            self.look_at_projected(&mut progress);
            self.look_at_trust(&mut progress);
            self.look_at_renew(&mut progress);
            self.look_at_lists(&mut progress.refused_lists);
            if self.agent.clock().elapsed() >= progress.write_at {
                self.write(&mut progress);
            }
            let pause = if self.projected.is_some() { schedule::TICK } else { self.start_what_is_due(&mut progress) };
            let pause = if self.agent.is_dirty() { pause.min(self.until(progress.write_at)) } else { pause };
            tokio::select! {
                () = &mut stop => return,
                Some(done) = progress.work.next(), if !progress.work.is_empty() => self.finish(done, &mut progress),
                () = changes(self.changed.as_ref()) => {}
                () = self.agent.pushed() => {}
                () = changes(self.renew.as_ref().and_then(RenewFile::watch)) => {}
                () = changes(self.projected.as_ref().and_then(Projected::watch)) => {}
                () = changed(&mut loaded) => {}
                () = nap(self.agent.clock(), &mark, pause.max(Duration::from_millis(10))) => {}
            }
            if let Some(seconds) = mark.stepped(self.agent.clock()) {
                tracing::warn!(seconds, "the clock was stepped");
                // A bundle refused under the previous clock may be valid now.
                for state in progress.roles.values_mut() {
                    (state.hold_until, state.refusals) = (Duration::ZERO, 0);
                }
            }
        }
    }

    fn until(&self, at: Duration) -> Duration {
        at.saturating_sub(self.agent.clock().elapsed())
    }

    /// Takes the bundles on offer, and tells once what is refused.
    fn look_at_trust(&self, progress: &mut Progress<'_>) {
        let refused = self.agent.take_trust();
        let mut outdated = self.agent.outdated(&refused);
        for (role, state) in &mut progress.roles {
            state.outdated = outdated.remove(role);
        }
        self.health.signer_states(self.agent.signer_states());
        self.health.issuer_states(self.agent.issuer_states());
        for domain in Domain::ALL {
            let now: Vec<_> = refused.iter().filter(|(d, e)| *d == domain && !e.is_asked_about()).collect();
            let anew = now.iter().any(|refusal| !progress.refused.contains(refusal));
            self.health.refused(domain, !now.is_empty(), anew);
            if anew {
                for (_, error) in now {
                    tracing::error!(%domain, %error, "trust bundle refused");
                }
            }
        }
        progress.refused = refused;
    }

    /// Requests the renewal that a new value of the annotation `renew` calls for, even after a refusal. Instead of a certificate
    /// that waits until members trust its CA, another one is requested: the issuer may have gone back.
    fn look_at_renew(&self, progress: &mut Progress<'_>) {
        let Some(file) = &self.renew else { return };
        let asks = progress.values.asks(file.value(), self.agent.roles());
        if let (Some(id), Some(cut)) = (asks.restart, &self.cut) {
            tracing::info!(id, "an operator asks for a restart of etcd, so that all connections end");
            cut.send_replace(Some(id));
        }
        for role in asks.roles {
            if let Some(state) = progress.roles.get_mut(&role) {
                if self.agent.awaited().ask_again(role) {
                    continue;
                }
                state.asked.ask();
                state.hold_until = Duration::ZERO;
            }
        }
    }

    /// Brings to disk what is held, and has its ports looked at.
    fn write<'a>(&'a self, progress: &mut Progress<'a>) {
        let fresh = match self.agent.install() {
            Ok(None) => return,
            Ok(Some(fresh)) => fresh,
            Err(error) => {
                progress.failed_writes = progress.failed_writes.saturating_add(1);
                let (failures, clock) = (progress.failed_writes, self.agent.clock());
                let pause = schedule::backoff(failures, None, SystemTime::UNIX_EPOCH, clock.chance());
                progress.write_at = clock.elapsed() + pause.max(Duration::from_secs(1));
                tracing::error!(%error, "new files could not be written; the current ones stay in use; trying again");
                self.health.trouble(error.to_string());
                return;
            }
        };
        progress.failed_writes = 0;
        self.health.installed(&self.agent.held(), &self.uid(), self.agent.clock().now());
        self.installed.send_modify(|n| *n += 1);
        for role in fresh {
            self.look_at_ports(role, false, progress);
        }
    }

    /// The pod that the certificates are for.
    fn uid(&self) -> String {
        self.agent.roles().first().map(|role| (self.template)(*role).uid).unwrap_or_default()
    }

    fn look_at_ports<'a>(&'a self, role: Role, counted: bool, progress: &mut Progress<'a>) {
        let (Some(entry), Some(state)) = (self.agent.entry(role), progress.roles.get_mut(&role)) else { return };
        let ports: Vec<&Port> = self.ports.iter().filter(|p| p.role == role).collect();
        // Which ports do not serve it is known until they are seen again.
        (state.unseen, state.counted) = (ports.len(), counted);
        self.health.served(role, None);
        let received = state.received;
        for port in ports {
            self.look_again(Look { port: port.clone(), entry: Arc::clone(&entry), received, round: 0 }, &progress.work);
        }
    }

    fn look_again<'a>(&'a self, this: Look, work: &FuturesUnordered<LocalBoxFuture<'a, Done>>) {
        work.push(
            async move {
                if this.round > 0 {
                    self.agent.clock().sleep(schedule::TICK).await;
                }
                let seen = look(&this.port, &this.entry, self.agent.clock()).await;
                Done::Looked(this, seen)
            }
            .boxed_local(),
        );
    }

    /// Starts the requests that are due; says how long nothing else is.
    fn start_what_is_due<'a>(&'a self, progress: &mut Progress<'a>) -> Duration {
        let Progress { roles, work, refused, .. } = progress;
        let offers = offers(refused);
        let clock = self.agent.clock();
        let mut pause = schedule::TICK;
        for (role, state) in roles {
            if state.asking {
                continue;
            }
            let held = self.until(state.hold_until);
            let now = clock.now();
            let template = (self.template)(*role);
            let entry = self.agent.entry(*role);
            let trusts = self.trusts(role.domain());
            // A pod without etcd trusts its installed bundles at once; the next request states them.
            let loaded = self.loaded.as_ref().and(trusts.as_deref());
            // A request that stated the bundle in use is not made again to say that it cannot be seen.
            let in_use = entry.as_ref().map(|entry| entry.bundle().digest());
            let stated = entry.as_ref().and_then(|entry| entry.record().trusts.clone());
            let loaded = loaded.filter(|_| !self.is_unknown(role.domain()) || stated != in_use);
            let renewal = renewal(&template, entry.as_deref(), loaded, now);
            let outdated = state.outdated.is_some() && state.outdated != state.renewed_for;
            let renewal = if outdated { renewal.or(Reason::Outdated) } else { renewal };
            let first = self.agent.roles().iter().find(|r| r.domain() == role.domain()) == Some(role);
            let offered = offers.get(&role.domain()).filter(|_| first);
            let renewal = match offered.map(|offered| self.agent.asks_about_in(role.domain(), offered)) {
                Some(wait) if wait.is_zero() => renewal.or(Reason::Offered),
                Some(wait) => {
                    pause = pause.min(wait);
                    renewal
                }
                None => renewal,
            };
            let renewal = if state.asked.is_due() { renewal.or(Reason::Asked) } else { renewal };
            let ahead = self.ahead(role.domain()).filter(|_| first);
            let renewal = if ahead.is_some() && ahead != state.ahead { renewal.or(Reason::Ahead) } else { renewal };
            match renewal {
                Renewal::At(at) => pause = pause.min(schedule::sleep(now, at)),
                Renewal::Due(_) if !held.is_zero() => pause = pause.min(held),
                Renewal::Due(why) => {
                    tracing::info!(%role, %why, "requesting a certificate");
                    state.asking = true;
                    state.ahead = ahead.or_else(|| state.ahead.take());
                    state.asked.begin();
                    state.asked_for.clone_from(&state.outdated);
                    state.offered = offers.get(&role.domain()).cloned();
                    self.health.asking(*role);
                    let (role, api) = (*role, (self.api)());
                    work.push(
                        async move { Done::Obtained(role, Box::new(self.agent.obtain(&template, api, trusts, None).await)) }
                            .boxed_local(),
                    );
                }
            }
        }
        pause
    }

    /// The CAs of `domain` that other members show, if they trust more.
    fn ahead(&self, domain: Domain) -> Option<String> {
        self.loaded.as_ref().and_then(|status| status.borrow().ahead.get(&domain).cloned())
    }

    fn is_unknown(&self, domain: Domain) -> bool {
        self.loaded.as_ref().is_some_and(|status| status.borrow().unknown.contains_key(&domain))
    }

    /// The statement of a request: the digest of the bundle that etcd has loaded, or that it is unknown; without etcd, the
    /// digest of the bundle in use.
    fn trusts(&self, domain: Domain) -> Option<String> {
        match &self.loaded {
            Some(status) => {
                let status = status.borrow();
                let unknown =
                    status.unknown.get(&domain).map(|reason| TrustStatement::Unknown(reason.clone()).to_string());
                unknown.or_else(|| status.loaded.get(&domain).cloned())
            }
            None => self.agent.bundle_digest(domain),
        }
    }

    fn finish<'a>(&'a self, done: Done, progress: &mut Progress<'a>) {
        let clock = self.agent.clock();
        match done {
            Done::Obtained(role, result) => {
                let Some(state) = progress.roles.get_mut(&role) else { return };
                state.asking = false;
                state.asked.end(result.is_ok());
                match *result {
                    Ok(entry) => {
                        self.health.asked(role, None);
                        state.refusals = 0;
                        if state.asked_for.is_some() {
                            state.renewed_for = state.asked_for.take();
                        }
                        state.received = clock.elapsed();
                        if let Some(offered) = state.offered.take() {
                            self.agent.was_answered(role.domain(), &offered);
                            state.renewed_for = Some(offered);
                        }
                        self.agent.hold(role, entry);
                    }
                    Err(failure) => {
                        self.health.asked(role, Some(failure.as_str()));
                        state.refusals = state.refusals.saturating_add(1);
                        let current = self.agent.entry(role);
                        let pause = if failure.is_verdict() {
                            schedule::verdict_backoff(state.refusals, clock.chance())
                        } else {
                            let life = current.as_deref().map(|entry| life(entry, clock.now()));
                            schedule::backoff(state.refusals, life, clock.now(), clock.chance())
                        };
                        state.hold_until = clock.elapsed() + pause;
                        tracing::error!(%role, error = %failure, again_in = ?pause, "no new certificate; the current one stays in use");
                    }
                }
            }
            Done::Looked(this, seen) => {
                self.looked(this, &seen, progress);
                if let Some(unserved) = &self.unserved {
                    let other: restart::Ports =
                        progress.roles.values().flat_map(|state| &state.other).copied().collect();
                    unserved.send_if_modified(|before| std::mem::replace(before, other.clone()) != other);
                }
            }
        }
    }

    fn looked<'a>(&'a self, this: Look, seen: &PortState, progress: &mut Progress<'a>) {
        let (role, port, serial) = (this.port.role, this.port.name, this.entry.chain().serial.clone());
        let current = self.agent.entry(role).is_some_and(|e| e.chain().serial == serial);
        let Some(state) = progress.roles.get_mut(&role).filter(|_| current) else {
            tracing::debug!(%role, serial, port, "renewed again before it was seen");
            return;
        };
        self.health.handshake(port, seen.as_str());
        match seen {
            PortState::Served => {
                state.unseen = state.unseen.saturating_sub(1);
                state.other.remove(port);
                if state.unseen == 0 {
                    self.health.served(role, Some(true));
                    if state.counted {
                        return;
                    }
                    let delay = self.agent.clock().elapsed().saturating_sub(this.received);
                    self.health.rotated(role, delay);
                    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(%role, serial, delay_ms, "rotated: the new certificate is served");
                }
                return;
            }
            PortState::Other(other) => {
                state.other.insert(port);
                self.health.served(role, Some(false));
                if this.round == 0 {
                    tracing::error!(
                        %role, serial, served = other, port,
                        "the new certificate is on disk, but etcd's port still serves another; does etcd read the files \
                         of this pod's mount? A restart of the container loads them"
                    );
                }
            }
            PortState::Unreachable(error) => {
                if this.round == 0 {
                    tracing::warn!(
                        %role, serial, port, error,
                        "the new certificate is on disk, but its port shows none; etcd reads it when it is up"
                    );
                }
            }
        }
        let round = this.round.saturating_add(1);
        self.look_again(Look { round, ..this }, &progress.work);
    }
}

/// The changed bundles on offer that are not known to be in force.
fn offers(refused: &[(Domain, TrustError)]) -> BTreeMap<Domain, String> {
    let offered = |(domain, error): &(Domain, TrustError)| match error {
        TrustError::NotInForce { offered, .. } => Some((*domain, offered.clone())),
        _ => None,
    };
    refused.iter().filter_map(offered).collect()
}

async fn changed(loaded: &mut Option<watch::Receiver<restart::Status>>) {
    match loaded {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                // The restarter has ended; its last observation stays.
                pending::<()>().await;
            }
        }
        None => pending().await,
    }
}
