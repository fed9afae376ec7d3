//! Renews certificates until SIGTERM or SIGINT: files, renewals, restarts and the admin port, for a pod or a host.

use std::{
    collections::BTreeSet,
    future::{Future, pending},
    path::Path,
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::{args::PodArgs, liveness::LivenessUrl, role::Role, settings::Reload};
use etcd_tls_telemetry::{admin, listen::every_address};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    agent::{
        driver::Driver,
        health::{Health, PREFIX},
        projected::Projected,
        renew::RenewFile,
        serving::ports,
        subject::Agent,
        trust::TrustDir,
    },
    error::Error,
    issuance::renewal::Template,
    kube::Api,
    os::clock::{Clock, System},
    probe::install,
    restart::{self, Gate, Restarter, gate},
    store::{Store, StoreError},
};

/// How long a process before us may take to let go of the directory.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The work of an agent: the files, the API server to ask, and the request templates.
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
    /// The current request template of a role.
    pub template: W,
    /// The pod's annotation `renew`; none on a host.
    pub renew: Option<RenewFile>,
    /// The volume that kubelet keeps, where it requests the certificates.
    pub projected: Option<Projected>,
}

/// Keeps the certificates fresh until SIGTERM or SIGINT. `beside` runs as long and is notified of each install.
///
/// # Errors
/// A permanent failure.
pub async fn keep<A, O, M, W, B>(
    work: Work<'_, O, M, W>,
    beside: impl FnOnce(watch::Receiver<u64>) -> B,
) -> Result<(), Error>
where
    A: Api + 'static,
    O: FnOnce() -> restart::Options,
    M: Fn() -> A,
    W: Fn(Role) -> Template,
    B: Future<Output = ()>,
{
    let Work { args, roles, trust, restart, api, template, renew, projected } = work;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let clock = System::new();
    let store = open(&args.dir, &clock).await?;
    let listener = listen(args.admin_port).await?;

    let mut registry = Registry::with_prefix(PREFIX);
    if let Some(pushed) = trust.pushed() {
        pushed.register(&mut registry);
    }
    // Without an etcd there is nothing to restart: its clients read the installed files.
    let serves = roles.contains(&Role::Peer) || roles.contains(&Role::Server);
    let restarter = (serves || args.client_url.is_some() || args.peer_url.is_some())
        .then(|| Restarter::new(restart(), &mut registry));
    if args.reload == Reload::Probe {
        // Before the admin port answers, for whose answer etcd's start waits.
        if let Some(Err(error)) = args.liveness_url.as_ref().map(LivenessUrl::endpoint) {
            tracing::warn!(%error, "--liveness-url is not asked: etcd's liveness probe fails for a restart alone, until the pod is recreated");
        }
        let users = args.liveness_endpoint();
        install::install(&install::beside()?, &args.dir, users)?;
        let gate = restarter.as_ref().map_or_else(|| Arc::new(Gate::new(users.cloned(), None)), Restarter::gate);
        tokio::spawn(gate.serve(gate::listen(&args.dir)?));
    }
    let loaded = restarter.as_ref().map(Restarter::status);
    let by_kubelet: Gauge = Gauge::default();
    registry.register(
        "certificates_by_kubelet",
        "1 where kubelet requests and renews the certificates (issuer pod-certificate) and the sidecar checks them, else 0",
        by_kubelet.clone(),
    );
    by_kubelet.set(i64::from(projected.is_some()));
    let health = Arc::new(Health::new(&args.roles, registry));
    let (installed, installed_seen) = watch::channel(0);
    let beside = beside(installed_seen.clone());
    tokio::spawn(admin::serve(listener, Arc::clone(&health) as Arc<dyn admin::Status>));
    let unserved = restarter.as_ref().map(Restarter::leaf_unserved);
    let cut = restarter.as_ref().map(Restarter::cut);
    let questions = restarter.as_ref().map(Restarter::questions);
    let restarting = async {
        if let Some(restarter) = restarter {
            restarter.run(installed_seen).await;
        }
        pending::<()>().await;
    };

    let watch = || {
        let watched = trust.watch();
        watched.inspect_err(
            |error| tracing::warn!(%error, "the trust directory cannot be watched; it is read every minute"),
        )
    };
    let changed = if trust.is_of_answers() { None } else { watch().ok() };
    let agent = Agent::new(roles, clock, store, trust).with_questions(questions);
    health.awaits(Arc::clone(agent.awaited()));
    let driver = Driver {
        agent,
        api,
        template,
        ports: ports(args),
        health,
        loaded,
        unserved,
        cut,
        installed,
        changed,
        renew,
        projected,
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = driver.run(stop) => {}
        () = restarting => {}
        () = beside => {}
    }
    tracing::info!("told to stop; the files stay as they are");
    Ok(())
}

/// The admin port, on every address.
///
/// # Errors
/// It is in use.
pub async fn listen(port: u16) -> Result<TcpListener, Error> {
    every_address(port).await.map_err(|source| Error::Admin { port, source })
}

/// Opens the store; a process before us may still be ending.
///
/// # Errors
/// As [`Store::open`].
pub async fn open<C: Clock>(dir: &Path, clock: &C) -> Result<Store, StoreError> {
    let began = clock.elapsed();
    loop {
        match Store::open(dir) {
            Err(StoreError::Locked(_)) if clock.elapsed().saturating_sub(began) < LOCK_WAIT => {
                clock.sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}
