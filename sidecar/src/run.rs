//! `etcd-tls-sidecar run`: keeps the certificates of a pod fresh for as long as it lives.
//!
//! One loop on one thread. It wakes for its timers, for a swap of the trust directory, for what the restarter has seen,
//! and for the end of what it started; each time it looks at everything anew, so that no event needs to be remembered.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{ArgMatches, Args, FromArgMatches};
use futures::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

use crate::{
    admin,
    agent::{Agent, Subject},
    api::{Api, http::Kube, pod::PodCredentials},
    args::{DownwardArgs, PodArgs},
    clock::{Clock, System},
    host::{self, HostArgs},
    init::{Error, open, write_termination_message},
    renew::{Failure, Need, Wish, life, need},
    restart::{self, Restarter},
    role::{Domain, Role},
    schedule,
    serving::{Port, Seen, look, ports},
    settings::Reload,
    status::{Board, PREFIX},
    store::{Entry, files::Files},
    trust::{TrustDir, TrustError, outdated},
};

#[cfg(test)]
mod tests;

/// Arguments of `run`: in a pod, or with `--kubeconfig` on a host.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    downward: Downward,
    #[command(flatten)]
    host: HostArgs,
    /// Where the reason of a failure is written for kubelet.
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

impl RunArgs {
    /// Renews until told to stop.
    ///
    /// # Errors
    /// What keeps the process from its work for good; everything else is tried again.
    pub async fn run(self) -> Result<(), Error> {
        let Self { pod, downward, host, termination_log } = self;
        let result = match (host.kubeconfig.is_some(), downward.0) {
            (true, _) => host::run(&pod, &host).await,
            (false, Ok(downward)) => in_pod(&pod, &downward).await,
            (false, Err(error)) => Err(Error::Arguments(format!("on a host give --kubeconfig; in a pod: {error}"))),
        };
        if let Err(error) = &result {
            write_termination_message(&termination_log, &error.to_string());
        }
        result
    }
}

/// [`DownwardArgs`] where they are all there; a host has none, and then they are not asked for.
#[derive(Clone, Debug)]
struct Downward(Result<DownwardArgs, String>);

impl FromArgMatches for Downward {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(DownwardArgs::from_arg_matches(matches).map_err(|e| e.to_string())))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Downward {
    fn augment_args(command: clap::Command) -> clap::Command {
        // In an update nothing is required.
        DownwardArgs::augment_args_for_update(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        DownwardArgs::augment_args_for_update(command)
    }
}

async fn in_pod(pod: &PodArgs, downward: &DownwardArgs) -> Result<(), Error> {
    let subject = Subject::of(pod, downward).map_err(Error::Arguments)?;
    let credentials = PodCredentials::from_env(&pod.token_dir)?;
    let work = Work {
        args: pod,
        roles: subject.settings.roles.clone(),
        trust: TrustDir::new(&pod.trust_dir),
        restart: || restart::Options::of_pod(pod, downward, lease_client(pod)),
        api: || Kube::new(credentials.clone()),
        wish: |role| subject.wish(role, subject.addresses()),
    };
    keep(work, |_| pending()).await
}

/// What is kept fresh: where the files are, whom to ask, and for what.
pub struct Work<'a, O, M, W> {
    /// Directory, ports, admin port.
    pub args: &'a PodArgs,
    /// The roles to hold.
    pub roles: BTreeSet<Role>,
    /// Where the bundles on offer are.
    pub trust: TrustDir,
    /// How etcd is restarted, where there is one.
    pub restart: O,
    /// Makes a client of the API server.
    pub api: M,
    /// What a role asks for now.
    pub wish: W,
}

/// Keeps it fresh until SIGTERM or SIGINT; `beside` is told of each install and runs as long.
///
/// # Errors
/// What keeps the process from its work for good.
pub async fn keep<A, O, M, W, B>(
    work: Work<'_, O, M, W>,
    beside: impl FnOnce(watch::Receiver<u64>) -> B,
) -> Result<(), Error>
where
    A: Api + 'static,
    O: FnOnce() -> restart::Options,
    M: Fn() -> A,
    W: Fn(Role) -> Wish,
    B: Future<Output = ()>,
{
    let Work { args, roles, trust, restart, api, wish } = work;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let clock = System::new();
    let store = open(&args.dir, &clock).await?;
    let listener = listen(args.admin_port).await?;

    let mut registry = Registry::with_prefix(PREFIX);
    // Without a port of etcd's there is nothing to restart: what is installed is what its clients read.
    let restarter =
        (args.client_url.is_some() || args.peer_url.is_some()).then(|| Restarter::new(restart(), &mut registry));
    let gate = restarter.as_ref().map(Restarter::gate);
    let loaded = restarter.as_ref().map(Restarter::status);
    let board = Arc::new(Board::new(&args.roles, registry, gate));
    let (installed, installed_seen) = watch::channel(0);
    let beside = beside(installed_seen.clone());
    tokio::spawn(admin::serve(listener, Arc::clone(&board) as Arc<dyn admin::Status>));
    let unserved = restarter.as_ref().map(Restarter::leaf_unserved);
    let restarting = async {
        if let Some(restarter) = restarter {
            restarter.run(installed_seen).await;
        }
        pending::<()>().await;
    };

    let changed = Arc::new(Notify::new());
    let watcher = trust.watch(Arc::clone(&changed));
    if let Err(error) = &watcher {
        tracing::warn!(%error, "the trust directory cannot be watched; it is looked at every minute");
    }
    let driver = Driver {
        agent: Agent::new(roles, clock, store, trust),
        api,
        wish,
        ports: ports(args.client_url.as_deref(), args.peer_url.as_deref(), args.metrics_url.as_deref()),
        board,
        loaded,
        unserved,
        installed,
        changed,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = driver.drive(stop) => {}
        () = restarting => {}
        () = beside => {}
    }
    tracing::info!("told to stop; the files stay as they are");
    Ok(())
}

/// For the Lease that stands in for etcd's own lock where etcd gives none. Nothing is asked with it until then.
fn lease_client(pod: &PodArgs) -> Option<kube::Client> {
    if matches!(pod.reload, Reload::None) {
        return None;
    }
    let made = PodCredentials::from_env(&pod.token_dir).map_err(|e| e.to_string()).and_then(|c| c.client());
    made.inspect_err(|error| tracing::warn!(%error, "no Lease can stand in for etcd's own lock")).ok()
}

/// The admin port on every address of both families, or of IPv4 where there is no IPv6.
///
/// # Errors
/// It is taken.
pub async fn listen(port: u16) -> Result<TcpListener, Error> {
    let admin = |source| Error::Admin { port, source };
    match TcpListener::bind(("::", port)).await {
        Ok(listener) => Ok(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Err(admin(e)),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.map_err(admin),
    }
}

/// The loop and all that it works with. `api` gives a client for one request, `wish` what a role asks for now.
pub struct Driver<C, F, M, W> {
    /// The certificates.
    pub agent: Agent<C, F>,
    /// Makes a client of the API server.
    pub api: M,
    /// What a role asks for now.
    pub wish: W,
    /// etcd's ports.
    pub ports: Vec<Port>,
    /// What the admin port says.
    pub board: Arc<Board>,
    /// What etcd was seen to have loaded; none where there is no etcd.
    pub loaded: Option<watch::Receiver<restart::Status>>,
    /// Told when a port still serves an old certificate after its grace time; none where there is no etcd.
    pub unserved: Option<watch::Sender<bool>>,
    /// Counts installs, for the restarter.
    pub installed: watch::Sender<u64>,
    /// Wakes the loop when the trust directory has changed.
    pub changed: Arc<Notify>,
}

/// What a started piece of work ends with.
enum Done {
    Obtained(Role, Result<Entry, Failure>),
    Looked(Look, Seen),
}

/// A look at one port for one certificate.
struct Look {
    port: Port,
    entry: Arc<Entry>,
    received: Duration,
    /// How often it was looked for in vain.
    round: u32,
}

/// What the loop remembers of a role between two requests.
#[derive(Default)]
struct Desk {
    asking: bool,
    /// In terms of [`Clock::elapsed`].
    hold_until: Duration,
    refusals: u32,
    /// Ports that are still to be seen serving the last certificate.
    unseen: usize,
    /// Whether one of them was last seen serving another one.
    other: bool,
    received: Duration,
    /// Digest of the bundle on offer that lacks the CA of the certificate in use.
    outdated: Option<String>,
    /// What that was when the request under way was begun.
    asked_for: Option<String>,
    /// For which such bundle a certificate was had: one is asked for once for each, whoever signs it.
    renewed_for: Option<String>,
}

impl<C, F, A, M, W> Driver<C, F, M, W>
where
    C: Clock,
    F: Files,
    A: Api + 'static,
    M: Fn() -> A,
    W: Fn(Role) -> Wish,
{
    /// Runs until `stop`.
    pub async fn drive(&self, stop: impl Future<Output = ()>) {
        let mut work: FuturesUnordered<LocalBoxFuture<'_, Done>> = FuturesUnordered::new();
        let mut desks: BTreeMap<Role, Desk> = self.agent.roles().iter().map(|r| (*r, Desk::default())).collect();
        let mut refused = Vec::new();
        let mut loaded = self.loaded.clone();
        let write_again = Cell::new(Duration::ZERO);
        let failed_writes = Cell::new(0_u32);
        self.board.installed(&self.agent.held());
        self.installed.send_modify(|n| *n += 1);
        let stop = stop.fuse();
        futures::pin_mut!(stop);
        loop {
            self.board.beat();
            self.look_at_trust(&mut refused, &mut desks);
            if self.agent.clock().elapsed() >= write_again.get() {
                self.write(&mut desks, &work, &write_again, &failed_writes);
            }
            let pause = self.start_what_is_due(&mut desks, &work);
            let pause = if self.agent.is_dirty() { pause.min(self.until(write_again.get())) } else { pause };
            tokio::select! {
                () = &mut stop => return,
                Some(done) = work.next(), if !work.is_empty() => self.finish(done, &mut desks, &work),
                () = self.changed.notified() => {}
                () = changed(&mut loaded) => {}
                () = self.agent.clock().sleep(pause.max(Duration::from_millis(10))) => {}
            }
        }
    }

    fn until(&self, at: Duration) -> Duration {
        at.saturating_sub(self.agent.clock().elapsed())
    }

    /// Takes the bundles on offer, and tells once what is refused.
    fn look_at_trust(&self, refused_before: &mut Vec<(Domain, TrustError)>, desks: &mut BTreeMap<Role, Desk>) {
        let refused = self.agent.take_trust();
        let mut outdated = outdated(&refused);
        for (role, desk) in desks {
            desk.outdated = outdated.remove(role);
        }
        for domain in Domain::ALL {
            let now: Vec<_> = refused.iter().filter(|(d, _)| *d == domain).collect();
            let anew = now.iter().any(|refusal| !refused_before.contains(refusal));
            self.board.refused(domain, !now.is_empty(), anew);
            if anew {
                for (_, error) in now {
                    tracing::error!(%domain, %error, "trust bundle refused");
                }
            }
        }
        *refused_before = refused;
    }

    /// Brings to disk what is held, and has its ports looked at.
    fn write<'a>(
        &'a self,
        desks: &mut BTreeMap<Role, Desk>,
        work: &FuturesUnordered<LocalBoxFuture<'a, Done>>,
        write_again: &Cell<Duration>,
        failures: &Cell<u32>,
    ) {
        let fresh = match self.agent.install() {
            Ok(None) => return,
            Ok(Some(fresh)) => fresh,
            Err(error) => {
                failures.set(failures.get().saturating_add(1));
                let pause =
                    schedule::backoff(failures.get(), None, SystemTime::UNIX_EPOCH, self.agent.clock().chance());
                write_again.set(self.agent.clock().elapsed() + pause.max(Duration::from_secs(1)));
                tracing::error!(%error, "new files could not be written; those before are still in use, and it is tried again");
                self.board.trouble(error.to_string());
                return;
            }
        };
        failures.set(0);
        self.board.installed(&self.agent.held());
        self.installed.send_modify(|n| *n += 1);
        for role in fresh {
            self.look_at_ports(role, desks, work);
        }
    }

    fn look_at_ports<'a>(
        &'a self,
        role: Role,
        desks: &mut BTreeMap<Role, Desk>,
        work: &FuturesUnordered<LocalBoxFuture<'a, Done>>,
    ) {
        let (Some(entry), Some(desk)) = (self.agent.entry(role), desks.get_mut(&role)) else { return };
        let ports: Vec<&Port> = self.ports.iter().filter(|p| p.role == role).collect();
        desk.unseen = ports.len();
        desk.other = false;
        let received = desk.received;
        for port in ports {
            self.look_again(Look { port: port.clone(), entry: Arc::clone(&entry), received, round: 0 }, work);
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
    fn start_what_is_due<'a>(
        &'a self,
        desks: &mut BTreeMap<Role, Desk>,
        work: &FuturesUnordered<LocalBoxFuture<'a, Done>>,
    ) -> Duration {
        let clock = self.agent.clock();
        let mut pause = schedule::TICK;
        for (role, desk) in desks {
            if desk.asking {
                continue;
            }
            let held = self.until(desk.hold_until);
            let now = clock.now();
            let wish = (self.wish)(*role);
            let entry = self.agent.entry(*role);
            let trusts = self.trusts(role.domain());
            // What is installed is what a pod without etcd trusts, at once and always: stated with the next request.
            let loaded = self.loaded.as_ref().and(trusts.as_deref());
            let needed = need(&wish, entry.as_deref(), loaded, now);
            let outdated = desk.outdated.is_some() && desk.outdated != desk.renewed_for;
            match if outdated { needed.or(Ok(Need::Outdated)) } else { needed } {
                Err(at) => pause = pause.min(schedule::sleep(now, at)),
                Ok(_) if !held.is_zero() => pause = pause.min(held),
                Ok(why) => {
                    tracing::info!(%role, %why, "asking for a certificate");
                    desk.asking = true;
                    desk.asked_for.clone_from(&desk.outdated);
                    self.board.asking(*role);
                    let (role, api) = (*role, (self.api)());
                    work.push(
                        async move { Done::Obtained(role, self.agent.obtain(&wish, api, trusts, None).await) }
                            .boxed_local(),
                    );
                }
            }
        }
        pause
    }

    /// Digest of the bundle that etcd was seen to have loaded; without etcd, of the one in use.
    fn trusts(&self, domain: Domain) -> Option<String> {
        match &self.loaded {
            Some(loaded) => loaded.borrow().loaded.get(&domain).cloned(),
            None => self.agent.bundle_digest(domain),
        }
    }

    fn finish<'a>(
        &'a self,
        done: Done,
        desks: &mut BTreeMap<Role, Desk>,
        work: &FuturesUnordered<LocalBoxFuture<'a, Done>>,
    ) {
        let clock = self.agent.clock();
        match done {
            Done::Obtained(role, result) => {
                let Some(desk) = desks.get_mut(&role) else { return };
                desk.asking = false;
                match result {
                    Ok(entry) => {
                        self.board.asked(role, "issued");
                        desk.refusals = 0;
                        if desk.asked_for.is_some() {
                            desk.renewed_for = desk.asked_for.take();
                        }
                        desk.received = clock.elapsed();
                        self.agent.hold(role, entry);
                    }
                    Err(failure) => {
                        self.board.asked(role, failure.word());
                        desk.refusals = desk.refusals.saturating_add(1);
                        let current = self.agent.entry(role);
                        let pause = if failure.is_verdict() {
                            schedule::verdict_backoff(desk.refusals, clock.chance())
                        } else {
                            let life = current.as_deref().map(life);
                            schedule::backoff(desk.refusals, life, clock.now(), clock.chance())
                        };
                        desk.hold_until = clock.elapsed() + pause;
                        tracing::error!(%role, error = %failure, again_in = ?pause, "no new certificate; the one before stays in use");
                    }
                }
            }
            Done::Looked(this, seen) => {
                self.looked(this, &seen, desks, work);
                if let Some(unserved) = &self.unserved {
                    let any = desks.values().any(|desk| desk.other);
                    unserved.send_if_modified(|before| std::mem::replace(before, any) != any);
                }
            }
        }
    }

    fn looked<'a>(
        &'a self,
        this: Look,
        seen: &Seen,
        desks: &mut BTreeMap<Role, Desk>,
        work: &FuturesUnordered<LocalBoxFuture<'a, Done>>,
    ) {
        let (role, port, serial) = (this.port.role, this.port.name, this.entry.chain().serial.clone());
        let current = self.agent.entry(role).is_some_and(|e| e.chain().serial == serial);
        let Some(desk) = desks.get_mut(&role).filter(|_| current) else {
            tracing::debug!(%role, serial, port, "renewed again before it was seen");
            return;
        };
        self.board.handshake(port, seen.word());
        match seen {
            Seen::Served => {
                desk.unseen = desk.unseen.saturating_sub(1);
                if desk.unseen == 0 {
                    desk.other = false;
                    let delay = self.agent.clock().elapsed().saturating_sub(this.received);
                    self.board.rotated(role, delay);
                    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(%role, serial, delay_ms, "rotated: the new certificate is served");
                }
                return;
            }
            Seen::Other(other) => {
                desk.other = true;
                if this.round == 0 {
                    tracing::error!(
                        %role, serial, served = other, port,
                        "the new certificate is on disk, but etcd's port still serves another; does etcd read the files \
                         of this pod's mount? A restart of the container loads them"
                    );
                }
            }
            Seen::Unreachable(error) => {
                if this.round == 0 {
                    tracing::warn!(
                        %role, serial, port, error,
                        "the new certificate is on disk, but its port shows none; etcd reads it when it is up"
                    );
                }
            }
        }
        let round = this.round.saturating_add(1);
        self.look_again(Look { round, ..this }, work);
    }
}

async fn changed(loaded: &mut Option<watch::Receiver<restart::Status>>) {
    match loaded {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                // The restarter has ended; what it saw last stays.
                pending::<()>().await;
            }
        }
        None => pending().await,
    }
}
