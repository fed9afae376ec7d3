//! `etcd-tls-sidecar run`: keeps the certificates of a pod fresh for as long as it lives.
//!
//! What it works with is put together here, in a pod or on a host; the work itself is [`driver`]'s.

use std::{
    collections::BTreeSet,
    future::{Future, pending},
    path::PathBuf,
    sync::Arc,
};

use clap::{ArgMatches, Args, FromArgMatches};
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
    clock::System,
    host::{self, HostArgs},
    init::{Error, open, write_termination_message},
    probe::install,
    renew::Wish,
    restart::{self, Gate, Restarter, gate},
    role::Role,
    serving::ports,
    settings::Reload,
    status::{Board, PREFIX},
    trust::TrustDir,
};
use driver::Driver;

pub mod driver;

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
        trust: subject.trust(&pod.trust_dir),
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
    if args.reload == Reload::Probe {
        // Before the admin port answers, for whose answer etcd's start waits.
        install::install(&install::beside()?, &args.dir, args.liveness_url.as_deref())?;
        let gate =
            restarter.as_ref().map_or_else(|| Arc::new(Gate::new(args.liveness_url.clone(), None)), Restarter::gate);
        tokio::spawn(gate.serve(gate::listen(&args.dir)?));
    }
    let loaded = restarter.as_ref().map(Restarter::status);
    let board = Arc::new(Board::new(&args.roles, registry));
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
