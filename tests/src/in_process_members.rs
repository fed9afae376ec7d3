//! etcd pods without a kubelet: for each member the sidecar's own store and restarter, in this process, against a real etcd;
//! the test is the signer, and says what is in the bundle and who signs the next leaf.

use std::{
    future::Future,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Bundle,
    csr::PrivateKey,
    endpoint::Endpoint,
    names,
    role::{Domain, Role},
    san::Sans,
    settings::Reload,
};
use etcd_tls_sidecar::{
    issuance::others::{DistrustingMembers, Questions},
    os::process::FoundBy,
    probe::install,
    restart::{Options, Restarter, Status, gate},
    store::{Entry, Record, Set, Store},
};
use etcd_tls_telemetry::log;
use prometheus_client::registry::Registry;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    etcd::{EtcdBinary, EtcdCluster, Member, MemberTls},
    etcd_supervisor::EtcdSupervisor,
    liveness_probe,
    pki::{Ca, LeafOptions},
    process::binary,
    temp::TempDir,
};

/// The roles of a member.
const ROLES: [Role; 2] = [Role::Peer, Role::Server];

/// One certificate directory, kept as the sidecar keeps it.
pub struct Files {
    store: Store,
    set: Set,
    options: LeafOptions,
}

/// A member's sidecar.
pub struct Pod {
    /// Its files.
    pub files: Files,
    installed: watch::Sender<u64>,
    status: watch::Receiver<Status>,
    questions: Arc<Questions>,
    /// The restarter, and what answers the probe.
    tasks: Vec<JoinHandle<()>>,
    dir: PathBuf,
    options: Options,
}

/// A cluster of them, with a client's files beside.
pub struct Members {
    /// One for each member.
    pub pods: Vec<Pod>,
    /// The members.
    pub supervisor: EtcdSupervisor,
    /// The workload's client.
    pub client: Files,
    /// Where the client's role directory is.
    pub client_dir: PathBuf,
    /// The members' client URLs.
    pub urls: Vec<String>,
    _files: TempDir,
}

/// A PEM bundle of these CAs.
pub fn bundle(cas: &[&Ca]) -> Bundle {
    let pem: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
    Bundle::parse(pem.as_bytes()).expect("a bundle of CAs")
}

impl Files {
    fn new(dir: &Path, options: LeafOptions) -> Self {
        Self { store: Store::open(dir).expect("open a store"), set: Set::default(), options }
    }

    /// Installs new leaves of `ca`, with a life of `life`, and `bundle`, for `roles`.
    pub fn issue(&mut self, roles: &[Role], ca: &Ca, bundle: &Bundle, life: Duration) {
        let now = SystemTime::now();
        for role in roles {
            let leaf = ca.leaf(&LeafOptions { not_after: now + life, ..self.options.clone() });
            let key = PrivateKey::from_pem(&leaf.key).expect("a key");
            let entry = Entry::prove(*role, &leaf.cert, &key, bundle, &Sans::default(), Record::default(), now);
            self.set = self.set.with(*role, entry.expect("a leaf that peers take"));
        }
        self.store.install(&self.set).expect("install");
    }

    /// Installs another bundle for all roles, the leaves kept.
    pub fn trust(&mut self, bundle: &Bundle) {
        for (role, entry) in self.set.roles.clone() {
            let entry = entry.with_bundle(role, bundle, SystemTime::now()).expect("a bundle with the leaf's CA");
            self.set = self.set.with(role, entry);
        }
        self.store.install(&self.set).expect("install");
    }
}

impl Pod {
    /// Tells the restarter that a set was installed.
    pub fn installed(&self) {
        self.installed.send_modify(|n| *n += 1);
    }

    /// The state of its restarter.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Whether both of its domains have loaded `bundle`.
    pub fn has_loaded(&self, bundle: &Bundle) -> bool {
        let loaded = self.status().loaded;
        [Domain::Peer, Domain::Client].iter().all(|d| loaded.get(d) == Some(&bundle.digest()))
    }

    /// The members that do not trust all of `bundle`, as this pod sees them.
    pub fn distrusting(&self, domain: Domain, bundle: &Bundle) -> DistrustingMembers {
        self.questions.ask(domain, bundle)
    }

    /// Ends its restarter, as a sidecar that is killed ends.
    pub fn kill_restarter(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }

    /// Starts its restarter, anew after [`Self::kill_restarter`].
    pub fn start_restarter(&mut self, change: impl FnOnce(&mut Options)) {
        self.kill_restarter();
        change(&mut self.options);
        let restarter = Restarter::new(self.options.clone(), &mut Registry::default());
        self.status = restarter.status();
        self.questions = restarter.questions();
        self.questions.look_ahead();
        if self.options.reload == Reload::Probe {
            let program = binary(names::PROBE_PROGRAM);
            install::install(&program, &self.dir, self.options.liveness_url.as_ref()).expect("install the probe");
            let listener = gate::listen(&self.dir).expect("listen for the probe");
            self.tasks.push(tokio::spawn(restarter.gate().serve(listener)));
        }
        self.tasks.push(tokio::spawn(restarter.run(self.installed.subscribe())));
    }

    /// Runs the program that is etcd's liveness probe, as kubelet does; why it fails.
    ///
    /// # Errors
    /// The probe's message.
    pub async fn probe(&self) -> Result<(), String> {
        crate::process::probe(&self.dir).await
    }

    /// The directory with the role directories.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill_restarter();
    }
}

impl Members {
    /// The client URL of a member.
    pub fn endpoint(&self, i: usize) -> Endpoint {
        self.urls[i].parse().expect("a URL")
    }

    /// Starts `size` members with certificates of `ca`, and their restarters.
    pub async fn start(binary: &EtcdBinary, size: u8, ca: &Ca) -> Self {
        Self::start_with(binary, size, ca, |_| Vec::new()).await
    }

    /// [`Self::start`], the members with more arguments.
    pub async fn start_with(binary: &EtcdBinary, size: u8, ca: &Ca, arguments: impl Fn(usize) -> Vec<String>) -> Self {
        crate::install_crypto();
        // To debug a failure: ETCD_TLS_TEST_LOG=debug.
        if let Ok(level) = std::env::var("ETCD_TLS_TEST_LOG") {
            let _ = log::init(log::Format::Text, level.parse().expect("ETCD_TLS_TEST_LOG"));
        }
        let dir = TempDir::new("pods");
        let trust = bundle(&[ca]);
        let mut cluster = EtcdCluster::new(binary, size).with_tls(|member| {
            let role = |role: Role| Some(dir.join(&member.name).join(role.as_str()));
            MemberTls { server: role(Role::Server), peer: role(Role::Peer) }
        });
        for (i, member) in cluster.members.iter_mut().enumerate() {
            member.arguments = arguments(i);
        }
        let hour = Duration::from_secs(3600);
        let mut pods: Vec<Pod> = cluster.members.iter().map(|m| pod(&dir, m)).collect();
        for pod in &mut pods {
            pod.files.issue(&ROLES, ca, &trust, hour);
        }
        let options = LeafOptions { server: false, common_name: "workload".into(), ..LeafOptions::default() };
        let mut client = Files::new(&dir.dir("client"), options);
        client.issue(&[Role::Client], ca, &trust, hour);
        cluster.start().await;
        let urls = cluster.members.iter().map(Member::client_url).collect();
        for pod in &mut pods {
            pod.start_restarter(|_| {});
        }
        let client_dir = dir.join("client").join(Role::Client.as_str());
        Self { pods, supervisor: EtcdSupervisor::new(cluster), client, client_dir, urls, _files: dir }
    }

    /// Installs `bundle` everywhere.
    pub fn trust(&mut self, bundle: &Bundle) {
        self.client.trust(bundle);
        for pod in &mut self.pods {
            pod.files.trust(bundle);
            pod.installed();
        }
    }

    /// Installs leaves of `ca` everywhere.
    pub fn issue(&mut self, ca: &Ca, bundle: &Bundle, life: Duration) {
        self.client.issue(&[Role::Client], ca, bundle, life);
        for pod in &mut self.pods {
            pod.files.issue(&ROLES, ca, bundle, life);
            pod.installed();
        }
    }

    /// Does `work` while kubelet probes the members, under `reload: probe`.
    pub async fn probed<T>(&self, work: impl Future<Output = T>) -> T {
        let dirs: Vec<PathBuf> = self.pods.iter().map(|pod| pod.dir.clone()).collect();
        liveness_probe::probed(&dirs, &self.supervisor, work).await
    }

    /// Waits until every member has loaded `bundle`.
    pub async fn loaded(&self, bundle: &Bundle, limit: Duration) {
        crate::eventually("every member has loaded the bundle", limit, || async {
            let waiting: Vec<_> = self.pods.iter().filter(|p| !p.has_loaded(bundle)).map(Pod::status).collect();
            if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }

    /// The whole of a rollover: trust both, sign with the new one, trust the new one alone.
    pub async fn roll_over(&mut self, from: &Ca, to: &Ca, limit: Duration) {
        let both = bundle(&[from, to]);
        self.trust(&both);
        self.loaded(&both, limit).await;
        self.issue(to, &both, Duration::from_secs(3600));
        let new = bundle(&[to]);
        self.trust(&new);
        self.loaded(&new, limit).await;
    }
}

fn pod(dir: &TempDir, member: &Member) -> Pod {
    let path = dir.dir(&member.name);
    let options = LeafOptions {
        ips: vec![member.address, Ipv4Addr::LOCALHOST.into()],
        common_name: member.name.clone(),
        ..LeafOptions::default()
    };
    let options_of_restarter = Options {
        dir: path.clone(),
        roles: ROLES.to_vec(),
        reload: Reload::Auto,
        can_signal: true,
        place: FoundBy::Anywhere,
        client_url: member.client_url().parse().ok(),
        peer_url: member.peer_url().parse().ok(),
        liveness_url: None,
        holder: member.name.clone(),
        // Nobody delays a restart here.
        pace: Duration::ZERO,
        notice: Duration::from_secs(1),
        lease: None,
    };
    let (installed, _) = watch::channel(0);
    let (_, status) = watch::channel(Status::default());
    Pod {
        files: Files::new(&path, options),
        installed,
        status,
        questions: Arc::default(),
        tasks: Vec::new(),
        dir: path,
        options: options_of_restarter,
    }
}
