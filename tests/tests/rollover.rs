//! Rollovers of a live cluster on a real API server, as installed: members that the webhook admitted, with their sidecars and
//! real etcds, `approve` and `sign` with their shipped rights; and the signer killed wherever it can be.

#[path = "rollover/cut.rs"]
mod cut;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
    role::Role,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use tests::{
    downward::downward,
    etcd::EtcdBinary,
    etcd_client::EtcdClient,
    eventually,
    fleet::FakeClock,
    pod::LocalPod,
    ports,
    process::{binary, which},
    say,
    stack::{Options, Stack, own_address},
    tier,
    workload::{self, Workload},
};
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

const NAMESPACE: &str = "roll";
/// A step of a rollover, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(400);
/// For how long a killed signer is away.
const AWAY: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(20);

/// A member's address and ports.
struct Place {
    name: String,
    address: Ipv4Addr,
    client: u16,
    peer: u16,
    metrics: u16,
    admin: u16,
}

impl Place {
    fn new(n: u8) -> Self {
        let address = Ipv4Addr::new(127, 0, 0, 2 + n);
        let port = || ports::free(address);
        let admin = ports::free(Ipv4Addr::UNSPECIFIED);
        Self { name: format!("etcd-{n}"), address, client: port(), peer: port(), metrics: port(), admin }
    }

    fn client_url(&self) -> String {
        format!("https://{}:{}", self.address, self.client)
    }

    fn peer_url(&self) -> String {
        format!("https://{}:{}", self.address, self.peer)
    }

    fn metrics_url(&self) -> String {
        format!("http://{}:{}", self.address, self.metrics)
    }

    /// The pod as a user writes it. Its user of its own is what lets admission share the process namespace.
    fn pod(&self, all: &[Self]) -> Value {
        let initial: Vec<_> = all.iter().map(|p| format!("{}={}", p.name, p.peer_url())).collect();
        let mut pod = pod(&self.name, self.admin);
        // On loopback every connection comes from 127.0.0.1, and etcd checks a peer's certificate against that.
        pod["metadata"]["annotations"]["etcd-tls.dev/extra-sans"] =
            format!("{},{}", self.address, Ipv4Addr::LOCALHOST).into();
        pod["spec"]["containers"] = json!([{
            "name": "etcd",
            "image": "etcd",
            "command": ["etcd"],
            "args": [
                format!("--name={}", self.name),
                "--data-dir=/var/lib/etcd/data",
                format!("--listen-client-urls={}", self.client_url()),
                format!("--advertise-client-urls={}", self.client_url()),
                format!("--listen-peer-urls={}", self.peer_url()),
                format!("--initial-advertise-peer-urls={}", self.peer_url()),
                format!("--listen-metrics-urls={}", self.metrics_url()),
                format!("--initial-cluster={}", initial.join(",")),
                "--unsafe-no-fsync",
                "--logger=zap",
            ],
            "securityContext": {"runAsUser": 2379},
            "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
        }]);
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        pod["spec"]["hostNetwork"] = true.into();
        pod
    }
}

fn pod(name: &str, admin: u16) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": name},
            // Of local processes each needs a port of its own.
            "annotations": {"etcd-tls.dev/admin-port": admin.to_string()},
        },
        "spec": {},
    })
}

/// The observations of the members.
#[derive(Default)]
struct Seen {
    /// Which members ended, in order.
    ends: Mutex<Vec<usize>>,
    most_away: AtomicUsize,
}

impl Seen {
    fn ends(&self) -> usize {
        self.ends.lock().expect("no panic while held").len()
    }
}

/// The cluster, its client, and who plays kubelet for them.
struct Live {
    stack: Stack,
    sign: Vec<String>,
    places: Vec<Place>,
    /// Each member's directory with the role directories.
    certs: Vec<PathBuf>,
    client_dir: PathBuf,
    seen: Arc<Seen>,
    tasks: Vec<JoinHandle<()>>,
    kills: usize,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Live {
    async fn start(etcd: &EtcdBinary, life: &str, clock: Option<&FakeClock>) -> Option<Self> {
        let sign = vec!["--max-lifetime".to_owned(), life.to_owned()];
        let environment = clock.map(FakeClock::environment).unwrap_or_default();
        let options = Options { sign: sign.clone(), environment, ..Options::default() };
        let mut stack = Stack::start(&options).await?;
        let policy = format!("extraSans: [{{namespaces: [{NAMESPACE}], clusters: [etcd], ipBlocks: [127.0.0.0/8]}}]\n");
        tests::policy::set(&stack.api.client, &policy).await;
        stack.api.namespace(NAMESPACE, &[("etcd-tls", "dynamic")]).await;

        let programs = [("etcd", etcd.etcd.clone()), ("app", which("true").expect("true"))];
        let places: Vec<Place> = (0..3).map(Place::new).collect();
        let (mut pods, mut certs, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        let pods_api: Api<Pod> = Api::namespaced(stack.api.client.clone(), NAMESPACE);
        for place in &places {
            // The members are on this machine's network, where the API server's proxy reaches their sidecars.
            let ip = own_address().expect("the stack has one");
            let mut pod =
                stack.local_pod(NAMESPACE, place.pod(&places), &[ip], &programs).await.expect("create a member");
            let created = pods_api.get(pod.name()).await.expect("the member");
            tasks.push(downward(&created, pod.volume(names::TOKEN_VOLUME), pods_api.clone()));
            // kubelet's part is played by somebody without a back-off.
            pod.add_argument(names::SIDECAR_CONTAINER, "--restart-pace=1s");
            certs.push(pod.path("etcd", names::DEFAULT_MOUNT_PATH));
            pods.push(pod);
        }
        for pod in &mut pods {
            pod.start(LIMIT).await.expect("init and sidecar");
        }
        let mut client = pod("client", ports::loopback());
        client["metadata"]["annotations"]["etcd-tls.dev/roles"] = "client".into();
        client["spec"]["containers"] = json!([{"name": "app", "image": "app", "command": ["app"]}]);
        let ip: IpAddr = [10, 7, 0, 9].into();
        let mut client = stack.local_pod(NAMESPACE, client, &[ip], &programs).await.expect("create a client");
        client.initialise(LIMIT).await.expect("the client's init and sidecar");
        let client_dir = client.path("app", names::DEFAULT_MOUNT_PATH).join(Role::Client.as_str());
        pods.push(client);
        for place in &places {
            let (etcd, url) = (EtcdClient::plain(), place.metrics_url());
            eventually("healthy", LIMIT, || async { etcd.healthy(&url).await }).await;
        }
        let seen = Arc::<Seen>::default();
        let addresses = places.iter().map(|p| (p.address, p.client).into()).collect();
        tasks.push(tokio::spawn(supervise(pods, Arc::clone(&seen))));
        tasks.push(tokio::spawn(look_on(addresses, Arc::clone(&seen))));
        Some(Self { stack, sign, places, certs, client_dir, seen, tasks, kills: 0 })
    }

    fn workload(&self) -> Workload {
        let urls = self.places.iter().map(Place::client_url).collect();
        let mut options = workload::Options::new(urls, &self.client_dir);
        options.deadline = Duration::from_secs(10);
        Workload::start(options)
    }

    /// Kills the signer, and starts it again after a while.
    async fn kill_sign(&mut self, when: &str) {
        self.stack.sign.kill();
        self.kills += 1;
        say(&format!("  signer killed: {when}"));
        sleep(AWAY).await;
        self.stack.restart_sign(&self.sign).await;
    }

    /// Begins a rollover of a domain; its bundle of before.
    async fn begin(&self, domain: &str) -> Bundle {
        let old = self.bundle(domain).await;
        let said = self.rollover(domain, &[]).await.expect("begin a rollover");
        assert!(said.contains("published"), "{said}");
        old
    }

    /// `etcd-tls-webhook rollover` for a domain, as cluster-admin.
    async fn rollover(&self, domain: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["rollover", &format!("{NAMESPACE}/etcd"), "--domain", domain]).args(arguments);
        command.env("KUBECONFIG", &self.stack.api.kubeconfig);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    async fn phase(&self, domain: &str, phase: &str) {
        let wanted = format!("{NAMESPACE}/etcd {domain}: {phase}");
        eventually(&format!("--status to say {wanted:?}"), LIMIT, || async {
            let said = self.rollover(domain, &["--status"]).await?;
            if said.contains(&wanted) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    async fn bundle(&self, domain: &str) -> Bundle {
        let pem = self.stack.bundle(NAMESPACE, domain).await.expect("a published bundle");
        Bundle::parse(pem.as_bytes()).expect("a bundle")
    }

    fn leaf(&self, member: usize, role: Role) -> Chain {
        let path = self.certs[member].join(role.as_str()).join(names::CERT_FILE);
        Chain::parse(&std::fs::read(path).expect("read")).expect("a chain")
    }

    async fn ended(&self, times: usize) {
        eventually(&format!("{times} restarts"), LIMIT, || async {
            let ends = self.seen.ends();
            if ends >= times { Ok(()) } else { Err(ends) }
        })
        .await;
    }

    /// Waits until every member has restarted `times` times in all, and is healthy.
    async fn settled(&self, times: usize) {
        self.ended(times).await;
        for place in &self.places {
            let (etcd, url) = (EtcdClient::plain(), place.metrics_url());
            eventually("healthy", LIMIT, || async { etcd.healthy(&url).await }).await;
        }
    }
}

/// kubelet's part: restarts ended processes.
async fn supervise(mut pods: Vec<LocalPod>, seen: Arc<Seen>) {
    loop {
        for (n, pod) in pods.iter_mut().enumerate() {
            for restart in pod.supervise().await {
                if restart.container == "etcd" {
                    seen.ends.lock().expect("no panic while held").push(n);
                } else {
                    say(&format!("  {}: {} was started again: {}", pod.name(), restart.container, restart.reason));
                }
            }
        }
        sleep(GLANCE).await;
    }
}

/// Looks on from outside, by connecting, how many members are away at the same time.
async fn look_on(addresses: Vec<SocketAddr>, seen: Arc<Seen>) {
    loop {
        let mut away = 0;
        for address in &addresses {
            away += usize::from(TcpStream::connect(address).await.is_err());
        }
        seen.most_away.fetch_max(away, Ordering::Relaxed);
        sleep(GLANCE).await;
    }
}

/// Each phase of the signer's rollover, and each part of it that others have, is one in which it dies. Then a rollover in
/// which it dies again and again, at no particular time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_killed_in_every_phase_of_a_live_clusters_rollover() {
    if !tier::soak("rollovers of a live cluster with the signer killed in every phase (four minutes)") {
        return;
    }
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        let Some(mut live) = Live::start(&etcd, "20s", None).await else { return };
        let start = Instant::now();
        let work = live.workload();
        in_every_phase(&mut live).await;
        let took = start.elapsed();
        let kills = live.kills;
        again_and_again(&mut live).await;
        let report = work.stop().await.expect("read etcd");
        let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
        say(&format!(
            "etcd {}: a rollover with the signer killed in {kills} places in {took:.0?}, and one with it killed {} times, \
             {:.0?} in all, {ends} restarts, at most {most_away} away: {report}",
            etcd.version,
            live.kills - kills,
            start.elapsed()
        ));
        assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
        assert!(report.writes > 20, "the client hardly worked: {report}");
        assert_eq!((most_away, ends), (1, 12), "one restart of each member for each change of a bundle");
    }
}

/// Its clock is an hour slow while the members load the new CA, then an hour fast and again slow while that signs. Certificates
/// that it signs while it is slow have expired for everybody else, and nobody installs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signers_clock_an_hour_off_in_the_middle_of_a_rollover() {
    if !tier::soak("a rollover with the signer's clock an hour off (five minutes)") {
        return;
    }
    let (Some(etcd), Some(library)) = (tier::etcd(), tier::faketime()) else { return };
    let clock = FakeClock::new(library);
    // A certificate is renewed at 60 % of its lifetime at the latest, so it outlives the time of wrong clocks and the pauses
    // after a refusal.
    let Some(live) = Live::start(&etcd, "180s", Some(&clock)).await else { return };
    let start = Instant::now();
    let work = live.workload();
    let old = live.begin("peer").await;
    live.ended(1).await;
    let wrong = async |seconds: i64| {
        clock.step(seconds);
        sleep(Duration::from_secs(20)).await;
        clock.step(0);
    };
    // Fast, the old CA would sign leaves of an hour from now, and be kept until their end.
    wrong(-3600).await;
    live.phase("peer", "signing").await;
    wrong(3600).await;
    wrong(-3600).await;
    live.phase("peer", "stable").await;
    live.settled(6).await;
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    let report = work.stop().await.expect("read etcd");
    let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
    say(&format!(
        "etcd {}: the signer's clock an hour off three times, {:.0?} in all, {ends} restarts, at most {most_away} away: {report}",
        etcd.version,
        start.elapsed()
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!((most_away, ends), (1, 6), "one restart of each member for each change of the bundle");
}

/// The clock of everything, API server, etcds and clients included, is an hour fast while the members load the new CA, and
/// right again before they are done. Then it goes on by hours until the old CA's leaves have ended, and back while the
/// members forget it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_clock_stepped_in_the_middle_of_a_rollover() {
    let (Some(etcd), Some(clock)) = (tier::etcd(), tier::machine_clock()) else { return };
    let Some(live) = Live::start(&etcd, "5400s", None).await else { return };
    let start = Instant::now();
    let work = live.workload();
    let old = live.begin("peer").await;
    live.ended(1).await;
    clock.step(3600);
    live.ended(2).await;
    clock.step(-3600);
    live.phase("peer", "signing").await;
    for _ in 0..3 {
        clock.step(3600);
        sleep(Duration::from_secs(10)).await;
    }
    live.phase("peer", "stable").await;
    live.ended(4).await;
    clock.step(-3600);
    live.settled(6).await;
    // Leaves of an hour ago are of the future now: they are renewed.
    clock.step(-3600);
    for member in 0..live.places.len() {
        eventually("a leaf of its time", LIMIT, || async {
            let leaf = live.leaf(member, Role::Peer);
            if leaf.not_before < SystemTime::now() { Ok(()) } else { Err(leaf.serial) }
        })
        .await;
    }
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    let report = work.stop().await.expect("read etcd");
    let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
    say(&format!(
        "etcd {}: the machine's clock stepped by an hour seven times, {:.0?} in all, {ends} restarts, at most {most_away} away: \
         {report}",
        etcd.version,
        start.elapsed()
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!((most_away, ends), (1, 6), "one restart of each member for each change of the bundle");
}

async fn in_every_phase(live: &mut Live) {
    let old = live.begin("peer").await;
    live.kill_sign("as it has begun").await;
    live.ended(1).await;
    live.kill_sign("when the first member has restarted").await;
    live.ended(3).await;
    live.kill_sign("when the last member has restarted").await;
    live.phase("peer", "signing").await;
    live.kill_sign("as the new CA signs").await;
    let new_leaf = |live: &Live| (0..3).any(|n| !old.contains_issuer_of(&live.leaf(n, Role::Peer)));
    eventually("a first leaf of the new CA", LIMIT, || async { if new_leaf(live) { Ok(()) } else { Err("none") } })
        .await;
    live.kill_sign("when the first leaf is of the new CA").await;
    live.phase("peer", "stable").await;
    live.kill_sign("as the old CA goes").await;
    live.ended(4).await;
    live.kill_sign("when the first member has restarted without the old CA").await;
    live.settled(6).await;
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    for n in 0..3 {
        assert!(new.contains_issuer_of(&live.leaf(n, Role::Peer)), "etcd-{n} has a leaf of the new CA");
    }
}

async fn again_and_again(live: &mut Live) {
    let old = live.begin("client").await;
    live.rollover("client", &["--confirm-clients"]).await.expect("confirm the clients");
    let start = Instant::now();
    let mut over = false;
    while !over {
        assert!(start.elapsed() < 2 * LIMIT, "it is not over: {:?}", live.rollover("client", &["--status"]).await);
        live.kill_sign("at any time").await;
        // It needs a second to start, and leads at once: its Lease is its own.
        sleep(Duration::from_secs(5)).await;
        let bundle = live.bundle("client").await;
        over = bundle.certificates().len() == 1 && bundle != old;
    }
    live.settled(12).await;
    let new = live.bundle("client").await;
    for n in 0..3 {
        assert!(new.contains_issuer_of(&live.leaf(n, Role::Server)), "etcd-{n} has a leaf of the new CA");
    }
}
