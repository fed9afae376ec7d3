//! A cluster of three as installed, on a real API server: members that the webhook admitted, with their sidecars and real etcds,
//! a client, `approve` and `sign` with their shipped rights; and who plays kubelet for them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
    role::Role,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

use crate::{
    downward::downward,
    etcd::EtcdBinary,
    etcd_client::EtcdClient,
    eventually,
    installation::{Installation, Options, own_address},
    local_pod::LocalPod,
    policy, ports,
    process::{binary, which},
    say,
    sidecar_cluster::FakeClock,
    workload::{self, Workload},
};

/// The cluster's namespace; its name is the default one.
pub const NAMESPACE: &str = "live";
/// A step of a rollover, on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(400);
/// For how long a killed signer is away.
const AWAY: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(20);

/// A member's address and ports.
pub struct Place {
    /// Its pod's name, `etcd-0` and so on.
    pub name: String,
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

    /// Its client URL, `https://127.0.0.2:port`.
    pub fn client_url(&self) -> String {
        format!("https://{}:{}", self.address, self.client)
    }

    /// Its peer URL.
    pub fn peer_url(&self) -> String {
        format!("https://{}:{}", self.address, self.peer)
    }

    /// Where its sidecar has `/metrics`, plain.
    pub fn sidecar_url(&self) -> String {
        format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.admin)
    }

    /// Its metrics URL, plain.
    pub fn metrics_url(&self) -> String {
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

/// A pod of this name that runs nothing yet, its sidecar's admin port `admin`.
pub fn pod(name: &str, admin: u16) -> Value {
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
#[derive(Debug, Default)]
pub struct Seen {
    /// Which members ended, in order.
    ends: Mutex<Vec<usize>>,
    /// The most members that were away at the same time.
    pub most_away: AtomicUsize,
}

impl Seen {
    /// How often members ended.
    pub fn ends(&self) -> usize {
        self.ends.lock().expect("no panic while held").len()
    }
}

/// The cluster, its client, and who plays kubelet for them. Dropped, it is gone.
pub struct Live {
    /// The installed system.
    pub installation: Installation,
    sign: Vec<String>,
    /// The members.
    pub places: Vec<Place>,
    /// Each member's directory with the role directories.
    pub certs: Vec<PathBuf>,
    client_dir: PathBuf,
    /// The observations of the members.
    pub seen: Arc<Seen>,
    /// The members, then the client.
    pods: Vec<Shared>,
    tasks: Vec<JoinHandle<()>>,
    /// How often the signer was killed.
    pub kills: usize,
}

/// A pod whose containers are started again while a test kills them.
type Shared = Arc<tokio::sync::Mutex<LocalPod>>;

impl Drop for Live {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Live {
    /// Starts one, healthy, with certificates that live for `life`, such as `20s`; `clock` is the signer's. `None`, having said so, where
    /// the machine has no API server.
    pub async fn start(etcd: &EtcdBinary, life: &str, clock: Option<&FakeClock>) -> Option<Self> {
        let sign = vec!["--max-lifetime".to_owned(), life.to_owned()];
        let environment = clock.map(FakeClock::environment).unwrap_or_default();
        let options = Options { sign: sign.clone(), environment, ..Options::default() };
        let mut installation = Installation::start(&options).await?;
        let policy = format!("extraSans: [{{namespaces: [{NAMESPACE}], clusters: [etcd], ipBlocks: [127.0.0.0/8]}}]\n");
        policy::set(&installation.api.client, &policy).await;
        installation.api.namespace(NAMESPACE, &[("etcd-tls", "dynamic")]).await;

        let programs = [("etcd", etcd.etcd.clone())];
        let places: Vec<Place> = (0..3).map(Place::new).collect();
        let (mut pods, mut certs, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        let pods_api: Api<Pod> = Api::namespaced(installation.api.client.clone(), NAMESPACE);
        for place in &places {
            // The members are on this machine's network, where the API server's proxy reaches their sidecars.
            let ip = own_address().expect("the installation has one");
            let mut pod =
                installation.local_pod(NAMESPACE, place.pod(&places), &[ip], &programs).await.expect("create a member");
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
        let client = client(&mut installation, "client", 9).await;
        let client_dir = files_of(&client);
        pods.push(client);
        for place in &places {
            let (etcd, url) = (EtcdClient::plain(), place.metrics_url());
            eventually("healthy", LIMIT, || async { etcd.healthy(&url).await }).await;
        }
        let seen = Arc::<Seen>::default();
        let addresses = places.iter().map(|p| (p.address, p.client).into()).collect();
        let pods: Vec<Shared> = pods.into_iter().map(|pod| Arc::new(tokio::sync::Mutex::new(pod))).collect();
        tasks.push(tokio::spawn(supervise(pods.clone(), Arc::clone(&seen))));
        tasks.push(tokio::spawn(look_on(addresses, Arc::clone(&seen))));
        Some(Self { installation, sign, places, certs, client_dir, seen, pods, tasks, kills: 0 })
    }

    /// A client that writes and watches; an operation has ten seconds.
    pub fn workload(&self) -> Workload {
        Workload::start(self.work())
    }

    /// The settings of [`Self::workload`], to be changed.
    pub fn work(&self) -> workload::Options {
        let urls = self.places.iter().map(Place::client_url).collect();
        let mut options = workload::Options::new(urls, &self.client_dir);
        options.deadline = Duration::from_secs(10);
        options
    }

    /// One more client, its init container run and its sidecar running; the last number of its address is `host`.
    pub async fn client(&mut self, name: &str, host: u8) -> LocalPod {
        client(&mut self.installation, name, host).await
    }

    /// SIGKILL to a container of member `n`. Who plays kubelet starts it again.
    pub async fn kill(&self, n: usize, container: &str) {
        self.pods[n].lock().await.process(container).kill();
    }

    /// A signal to a container of member `n`, such as one that suspends it.
    pub async fn signal(&self, n: usize, container: &str, signal: Signal) {
        self.pods[n].lock().await.process(container).signal(signal);
    }

    /// The log of a container of member `n`, of all its runs.
    pub async fn log(&self, n: usize, container: &str) -> String {
        self.pods[n].lock().await.log(container)
    }

    /// Starts the signer again, at once.
    pub async fn restart_sign(&mut self) {
        self.installation.restart_sign(&self.sign).await;
    }

    /// Kills the signer, and starts it again after a while.
    pub async fn kill_sign(&mut self, when: &str) {
        self.installation.sign.kill();
        self.kills += 1;
        say(&format!("  signer killed: {when}"));
        sleep(AWAY).await;
        self.restart_sign().await;
    }

    /// Begins a rollover of a domain; its bundle of before.
    pub async fn begin(&self, domain: &str) -> Bundle {
        let old = self.bundle(domain).await;
        let said = self.rollover(domain, &[]).await.expect("begin a rollover");
        assert!(said.contains("published"), "{said}");
        old
    }

    /// `etcd-tls-webhook rollover` for a domain, as cluster-admin.
    ///
    /// # Errors
    /// Its standard error.
    pub async fn rollover(&self, domain: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["rollover", &format!("{NAMESPACE}/etcd"), "--domain", domain]).args(arguments);
        command.env("KUBECONFIG", &self.installation.api.kubeconfig);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Waits until `rollover --status` says that a domain is in this phase.
    pub async fn phase(&self, domain: &str, phase: &str) {
        let wanted = format!("{NAMESPACE}/etcd {domain}: {phase}");
        eventually(&format!("--status to say {wanted:?}"), LIMIT, || async {
            let said = self.rollover(domain, &["--status"]).await?;
            if said.contains(&wanted) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// The published bundle of a domain.
    pub async fn bundle(&self, domain: &str) -> Bundle {
        let pem = self.installation.bundle(NAMESPACE, domain).await.expect("a published bundle");
        Bundle::parse(pem.as_bytes()).expect("a bundle")
    }

    /// The certificate of a member on its disk.
    pub fn leaf(&self, member: usize, role: Role) -> Chain {
        let path = self.certs[member].join(role.as_str()).join(names::CERT_FILE);
        Chain::parse(&std::fs::read(path).expect("read")).expect("a chain")
    }

    /// Waits until members have ended `times` times in all.
    pub async fn ended(&self, times: usize) {
        eventually(&format!("{times} restarts"), LIMIT, || async {
            let ends = self.seen.ends();
            if ends >= times { Ok(()) } else { Err(ends) }
        })
        .await;
    }

    /// Waits until members have ended `times` times in all and every one is healthy.
    pub async fn settled(&self, times: usize) {
        self.ended(times).await;
        for place in &self.places {
            let (etcd, url) = (EtcdClient::plain(), place.metrics_url());
            eventually("healthy", LIMIT, || async { etcd.healthy(&url).await }).await;
        }
    }
}

/// A client with its init container run and its sidecar running.
async fn client(installation: &mut Installation, name: &str, host: u8) -> LocalPod {
    let mut client = pod(name, ports::loopback());
    client["metadata"]["annotations"]["etcd-tls.dev/roles"] = "client".into();
    client["spec"]["containers"] = json!([{"name": "app", "image": "app", "command": ["app"]}]);
    let (ip, programs) = (IpAddr::from([10, 7, 0, host]), [("app", which("true").expect("true"))]);
    let mut client = installation.local_pod(NAMESPACE, client, &[ip], &programs).await.expect("create a client");
    client.initialise(LIMIT).await.expect("the client's init and sidecar");
    client
}

/// The role directory of a client.
pub fn files_of(client: &LocalPod) -> PathBuf {
    client.path("app", names::DEFAULT_MOUNT_PATH).join(Role::Client.as_str())
}

/// kubelet's part: restarts ended processes.
async fn supervise(pods: Vec<Shared>, seen: Arc<Seen>) {
    loop {
        for (n, pod) in pods.iter().enumerate() {
            let mut pod = pod.lock().await;
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
