//! Real etcd: a single member or a cluster on 127.0.0.2 and on, or elsewhere, plain or with TLS from role directories.
//!
//! On loopback a connection to 127.0.0.2 comes *from* 127.0.0.1, and etcd checks a peer's certificate against the
//! source: every peer leaf needs IP 127.0.0.1 besides its own.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use etcd_tls_sidecar::etcd::Client;

use crate::{
    etcd_client::EtcdClient,
    eventually, ports,
    process::{Process, run, which},
    temp::TempDir,
};

/// How long a member may take to come up on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// An etcd and its etcdctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdBinary {
    /// The server.
    pub etcd: PathBuf,
    /// The client, where there is one.
    pub etcdctl: Option<PathBuf>,
    /// `3.5.16`.
    pub version: String,
}

impl EtcdBinary {
    /// The one that `ETCD` names, else the first in PATH.
    pub fn find() -> Option<Self> {
        Self::at(&env::var_os("ETCD").map(PathBuf::from).or_else(|| which("etcd"))?)
    }

    /// The etcd at `etcd`, with the etcdctl beside it or, if there is none, in PATH.
    pub fn at(etcd: &Path) -> Option<Self> {
        let output = Command::new(etcd).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|l| l.strip_prefix("etcd Version: "))?.trim().to_owned();
        let beside = etcd.with_file_name("etcdctl");
        let etcdctl = if beside.is_file() { Some(beside) } else { which("etcdctl") };
        Some(Self { etcd: etcd.to_owned(), etcdctl, version })
    }

    /// [`Self::find`]'s, then each etcd of the directories in `ETCD_VERSIONS` (separated by colons), one a version.
    ///
    /// # Panics
    /// One of these directories has no etcd.
    pub fn all() -> Vec<Self> {
        let more = env::var_os("ETCD_VERSIONS").unwrap_or_default();
        let mut all: Vec<Self> = Vec::new();
        let more = env::split_paths(&more).filter(|dir| !dir.as_os_str().is_empty()).map(|dir| {
            let found = Self::at(&dir.join("etcd"));
            found.unwrap_or_else(|| panic!("ETCD_VERSIONS: no etcd that tells its version in {}", dir.display()))
        });
        for found in Self::find().into_iter().chain(more) {
            if all.iter().all(|b| b.version != found.version) {
                all.push(found);
            }
        }
        all
    }
}

/// Where a member's TLS files are: directories with `tls.crt`, `tls.key` and `ca.crt`.
#[derive(Clone, Debug, Default)]
pub struct MemberTls {
    /// The client port's; plain http if there is none.
    pub server: Option<PathBuf>,
    /// The peer port's.
    pub peer: Option<PathBuf>,
}

/// One member. Dropped, it is killed.
#[derive(Debug)]
pub struct Member {
    binary: EtcdBinary,
    /// `etcd-0` and so on.
    pub name: String,
    /// Its address on loopback.
    pub address: IpAddr,
    /// Its client port.
    pub client_port: u16,
    /// Its peer port.
    pub peer_port: u16,
    /// Its metrics port, plain http.
    pub metrics_port: u16,
    /// Its TLS files.
    pub tls: MemberTls,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Environment, such as what the webhook injected.
    pub environment: Vec<(String, String)>,
    directory: PathBuf,
    initial_cluster: String,
    process: Option<Process>,
}

/// A cluster with its data in a temporary directory.
#[derive(Debug)]
pub struct EtcdCluster {
    /// The members.
    pub members: Vec<Member>,
    directory: TempDir,
}

/// Which of the members with these metrics URLs leads.
///
/// # Panics
/// None does within a minute.
pub async fn leader(urls: &[String]) -> usize {
    eventually("a leader", Duration::from_secs(60), || async {
        for (i, url) in urls.iter().enumerate() {
            let url = url.parse().expect("a URL");
            if Client::plain().metrics(&url).await.is_ok_and(|metrics| metrics.leader) {
                return Ok(i);
            }
        }
        Err("none")
    })
    .await
}

impl EtcdCluster {
    /// `size` members on 127.0.0.2 and on, with ports of their own; nothing is started yet.
    pub fn new(binary: &EtcdBinary, size: u8) -> Self {
        Self::at(binary, (0..size).map(|i| Ipv4Addr::new(127, 0, 0, 2 + i).into()))
    }

    /// A member on each of these addresses, with ports of its own; nothing is started yet.
    pub fn at(binary: &EtcdBinary, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let directory = TempDir::new("etcd");
        let members = addresses
            .into_iter()
            .enumerate()
            .map(|(i, address)| {
                let name = format!("etcd-{i}");
                Member {
                    binary: binary.clone(),
                    directory: directory.dir(&name),
                    name,
                    address,
                    client_port: ports::free(address),
                    peer_port: ports::free(address),
                    metrics_port: ports::free(address),
                    tls: MemberTls::default(),
                    arguments: Vec::new(),
                    environment: Vec::new(),
                    // Known at the start only: until then it is not said whether a peer speaks TLS.
                    initial_cluster: String::new(),
                    process: None,
                }
            })
            .collect();
        Self { members, directory }
    }

    /// Gives member `i` its TLS files.
    pub fn with_tls(mut self, tls: impl Fn(&Member) -> MemberTls) -> Self {
        for member in &mut self.members {
            member.tls = tls(member);
        }
        self
    }

    /// The cluster's temporary directory, for other files of a test.
    pub fn directory(&self) -> &TempDir {
        &self.directory
    }

    /// `--initial-cluster`.
    pub fn initial_cluster(&self) -> String {
        let all: Vec<_> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
        all.join(",")
    }

    /// Starts every member and waits until each is healthy.
    pub async fn start(&mut self) {
        self.spawn();
        for member in &self.members {
            member.healthy(START_LIMIT).await;
        }
    }

    /// Starts every member and waits for nothing.
    pub fn spawn(&mut self) {
        let initial_cluster = self.initial_cluster();
        for member in &mut self.members {
            member.initial_cluster.clone_from(&initial_cluster);
            member.spawn();
        }
    }

    /// Every member's client URL, joined for `--endpoints`.
    pub fn endpoints(&self) -> String {
        let all: Vec<_> = self.members.iter().map(Member::client_url).collect();
        all.join(",")
    }
}

impl Member {
    /// `https://127.0.0.2:port` or `https://[::1]:port`, or http.
    pub fn client_url(&self) -> String {
        format!("{}://{}", scheme(self.tls.server.as_ref()), SocketAddr::new(self.address, self.client_port))
    }

    /// The peer URL.
    pub fn peer_url(&self) -> String {
        format!("{}://{}", scheme(self.tls.peer.as_ref()), SocketAddr::new(self.address, self.peer_port))
    }

    /// The metrics URL, plain.
    pub fn metrics_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, self.metrics_port))
    }

    /// The arguments that it is started with.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary.etcd);
        let (client, peer) = (self.client_url(), self.peer_url());
        command
            .args([
                "--name",
                &self.name,
                "--initial-cluster-token",
                "test",
                "--log-outputs",
                "stderr",
                "--logger",
                "zap",
            ])
            .arg("--data-dir")
            .arg(self.directory.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &self.metrics_url()])
            .args(["--initial-cluster", &self.initial_cluster])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000", "--unsafe-no-fsync"]);
        if let Some(dir) = &self.tls.server {
            command.args(["--client-cert-auth", "--cert-file"]).arg(dir.join("tls.crt"));
            command.arg("--key-file").arg(dir.join("tls.key")).arg("--trusted-ca-file").arg(dir.join("ca.crt"));
        }
        if let Some(dir) = &self.tls.peer {
            command.args(["--peer-client-cert-auth", "--peer-cert-file"]).arg(dir.join("tls.crt"));
            command.arg("--peer-key-file").arg(dir.join("tls.key"));
            command.arg("--peer-trusted-ca-file").arg(dir.join("ca.crt"));
        }
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command
    }

    /// Starts it, after a stop too.
    pub fn spawn(&mut self) {
        let mut command = self.command();
        let process = Process::spawn(&self.name, &mut command, &self.directory);
        fs::write(self.pid_file(), format!("{}\n", process.id())).expect("write a pid file");
        self.process = Some(process);
    }

    /// Where its process id is noted, as an init system does it.
    pub fn pid_file(&self) -> PathBuf {
        self.directory.join("etcd.pid")
    }

    /// Its process, once started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the member was started")
    }

    /// Its log, of all its runs.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process().terminate(Duration::from_secs(30)).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Waits until it answers that it reaches quorum, on the plain metrics port.
    pub async fn healthy(&self, limit: Duration) {
        let client = EtcdClient::plain();
        let url = self.metrics_url();
        eventually(&format!("{} healthy", self.name), limit, || async { client.healthy(&url).await }).await;
    }

    /// Whether it answers that it reaches quorum, asked when this is awaited; it borrows nothing.
    pub fn healthy_now(&self) -> impl Future<Output = Result<(), String>> + use<> {
        let url = self.metrics_url();
        async move { EtcdClient::plain().healthy(&url).await.map_err(|e| e.to_string()) }
    }

    /// Whether it answers, now, that it reaches quorum.
    pub async fn is_healthy(&self) -> bool {
        EtcdClient::plain().healthy(&self.metrics_url()).await.is_ok()
    }

    /// Runs etcdctl against it with the certificate of `client` (a role directory).
    pub fn etcdctl(&self, client: Option<&Path>, arguments: &[&str]) -> String {
        run(&mut self.etcdctl_command(client, arguments))
    }

    /// The command of [`Self::etcdctl`].
    pub fn etcdctl_command(&self, client: Option<&Path>, arguments: &[&str]) -> Command {
        let etcdctl = self.binary.etcdctl.as_ref().expect("an etcdctl beside etcd or in PATH");
        let mut command = Command::new(etcdctl);
        command.env("ETCDCTL_API", "3");
        // etcdctl adds up repeated endpoints.
        if !arguments.contains(&"--endpoints") {
            command.args(["--endpoints", &self.client_url()]);
        }
        if let Some(dir) = client {
            command.arg("--cert").arg(dir.join("tls.crt")).arg("--key").arg(dir.join("tls.key"));
            command.arg("--cacert").arg(dir.join("ca.crt"));
        }
        command.args(arguments);
        command
    }
}

fn scheme(tls: Option<&PathBuf>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}
