//! A real cluster with the real sidecar's program for each member, a client with a sidecar of its own, and a stand-in for
//! API server and signer: pods, or the same on hosts. Clocks of the sidecars may be stepped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
    role::{Domain, Role},
};
use etcd_tls_webhook::ca::authority::Authority;

use crate::{
    csr_server::{CsrServer, authority},
    etcd::{EtcdBinary, EtcdCluster, Member, MemberTls},
    etcd_supervisor::EtcdSupervisor,
    eventually, liveness_probe,
    process::{Process, binary},
    temp::TempDir,
    workload::{self, Workload},
};

/// A step of a rollover, on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(180);

/// The size and the settings of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The members.
    pub size: u8,
    /// The life of every certificate.
    pub life: Duration,
    /// On hosts, by `run --kubeconfig`, with etcd's pid file; else pods, by `init` and `run`.
    pub hosts: bool,
    /// Restarted by `reload: probe` ([`SidecarCluster::probed`]), else by a signal.
    pub probe: bool,
    /// The sidecars' wall clock.
    pub clock: Option<&'a FakeClock>,
    /// Behind what the sidecars take for etcd's metrics port, the stand-in for the API server answers, with its own certificate.
    pub foreign: bool,
}

/// A wall clock that is stepped for the programs that are started with it; their other clocks go on.
#[derive(Debug)]
pub struct FakeClock {
    library: PathBuf,
    dir: TempDir,
}

impl FakeClock {
    /// By libfaketime, which is loaded before a program.
    pub fn new(library: PathBuf) -> Self {
        let clock = Self { library, dir: TempDir::new("clock") };
        clock.step(0);
        clock
    }

    /// Sets it to `seconds` after the machine's.
    pub fn step(&self, seconds: i64) {
        let (next, path) = (self.dir.join("next"), self.dir.join("offset"));
        fs::write(&next, format!("{seconds:+}\n")).expect("write");
        fs::rename(next, path).expect("rename");
    }

    /// The environment of a program.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.dir.join("offset"))),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .to_vec()
    }
}

/// A pod's (or a host's) directories, its sidecar and its settings.
pub struct Pod {
    /// `run`, while it runs. Dropped before the directory with its log is.
    pub sidecar: Option<Process>,
    dir: TempDir,
    uid: String,
    arguments: Vec<String>,
    /// Of `run` alone.
    of_run: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Pod {
    fn new(server: &CsrServer, setup: &Setup<'_>, n: usize, name: &str, roles: &str, ips: &str) -> Self {
        let dir = TempDir::new(name);
        server.token_directory(&dir);
        server.trust_directory(&dir);
        let mut uid = format!("0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c1{n}");
        let mut arguments = vec![format!("--roles={roles}"), "--log-level=info".to_owned()];
        let mut environment: Vec<(String, String)> = setup.clock.map(FakeClock::environment).unwrap_or_default();
        if setup.hosts {
            name.clone_into(&mut uid);
            dir.write("kubeconfig", server.kubeconfig(&dir));
            arguments.extend([format!("--name={name}"), format!("--ipaddrs={ips}"), "--user=client".to_owned()]);
            arguments.push(format!("--kubeconfig={}", dir.join("kubeconfig").display()));
        } else {
            let told = [
                ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
                ("KUBERNETES_SERVICE_PORT", &server.port.to_string()),
                ("POD_NAME", name),
                ("POD_NAMESPACE", "prod"),
                ("POD_UID", &uid),
                ("POD_SERVICE_ACCOUNT", "default"),
                ("NODE_NAME", "node-1"),
                ("POD_IPS", ips),
            ];
            environment.extend(told.map(|(k, v)| (k.to_owned(), v.to_owned())));
            // Asked for as extra names: loopback addresses are not taken for a pod's own.
            arguments.push(format!("--extra-sans={ips}"));
        }
        Self { dir, uid, arguments, of_run: Vec::new(), environment, sidecar: None }
    }

    fn start(&self, subcommand: &str, more: &[String]) -> Process {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.arg(subcommand).args(&self.arguments).args(more);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        Process::spawn(subcommand, &mut command, self.dir.path())
    }

    /// The init container, until it has new certificates. Returns how often it ran: each time it requests them anew.
    pub async fn init(&self) -> usize {
        let limit = Duration::from_secs(60);
        let began = Instant::now();
        for times in 1.. {
            let mut init = self.start("init", &[]);
            let status = init.wait(limit).await;
            assert!(status.success(), "{status}: {}", init.log());
            // With files that do it goes on after half a second, which the server of a busy machine may take.
            if !init.log().contains("no certificate within 500ms") {
                return times;
            }
            assert!(began.elapsed() < limit, "no answer in time: {}", init.log());
            // The next one writes to the same file, and is judged by its own words.
            std::fs::remove_file(self.dir.join("init.log")).expect("remove a log");
        }
        unreachable!("an endless loop ends by a return");
    }

    /// The sidecar container; again after its end too.
    pub fn run(&mut self) {
        let mut arguments = vec![format!("--admin-port={}", crate::ports::loopback())];
        arguments.extend_from_slice(&self.of_run);
        self.sidecar = Some(self.start("run", &arguments));
    }

    /// The certificates' directory.
    pub fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// A role's directory.
    pub fn role_dir(&self, role: Role) -> PathBuf {
        self.certs().join(role.as_str())
    }

    /// A role's certificate on disk.
    pub fn leaf(&self, role: Role) -> Option<Chain> {
        Chain::parse(&fs::read(self.role_dir(role).join("tls.crt")).ok()?).ok()
    }

    /// The bundle beside it.
    pub fn bundle(&self, role: Role) -> Option<Bundle> {
        Bundle::parse(&fs::read(self.role_dir(role).join("ca.crt")).ok()?).ok()
    }

    /// Whether every leaf on disk is of a CA in `bundles`.
    pub fn signed_by(&self, roles: &[Role], bundles: &BTreeMap<Domain, Bundle>) -> bool {
        roles
            .iter()
            .all(|role| self.leaf(*role).is_some_and(|chain| bundles[&role.domain()].contains_issuer_of(&chain)))
    }

    /// The processor time that its sidecar has used.
    pub fn processor_time(&self) -> Duration {
        let id = self.sidecar.as_ref().map(Process::id).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let fields: Vec<i64> = stat.rsplit(')').next().unwrap_or_default().split(' ').flat_map(str::parse).collect();
        // utime and stime, in hundredths of a second; the state, a letter, is not among the numbers.
        let ticks: i64 = fields.iter().skip(10).take(2).sum();
        Duration::from_millis(10 * u64::try_from(ticks).unwrap_or_default())
    }
}

/// The CAs of a rollover.
pub struct RollOver {
    /// The CAs to come.
    pub next: BTreeMap<Domain, Authority>,
    /// Their bundles.
    pub new: BTreeMap<Domain, Bundle>,
    /// Theirs and those in use.
    pub both: BTreeMap<Domain, Bundle>,
}

/// Members with their sidecars, and a client with its own.
pub struct SidecarCluster {
    /// API server and signer.
    pub server: CsrServer,
    /// The members.
    pub members: Vec<Pod>,
    /// The client.
    pub client: Pod,
    /// kubelet's part.
    pub supervisor: EtcdSupervisor,
    urls: Vec<String>,
}

impl SidecarCluster {
    /// Starts one, healthy.
    pub async fn start(etcd: &EtcdBinary, setup: Setup<'_>) -> Self {
        let server = CsrServer::start(setup.life).await;
        let address = |n: u8| format!("127.0.0.{},127.0.0.1", 2 + n);
        let mut members: Vec<Pod> = (0..setup.size)
            .map(|n| Pod::new(&server, &setup, n.into(), &format!("etcd-{n}"), "peer,server", &address(n)))
            .collect();
        let mut client = Pod::new(&server, &setup, 9, "client", "client", "127.0.0.1");
        let dirs: BTreeMap<String, &Pod> =
            members.iter().enumerate().map(|(n, pod)| (format!("etcd-{n}"), pod)).collect();
        let mut cluster = EtcdCluster::new(etcd, setup.size).with_tls(|member| {
            let pod = dirs[&member.name];
            MemberTls { server: Some(pod.role_dir(Role::Server)), peer: Some(pod.role_dir(Role::Peer)) }
        });
        for (pod, member) in members.iter_mut().zip(&cluster.members) {
            pod.of_run = vec![
                format!("--client-url={}", member.client_url()),
                format!("--peer-url={}", member.peer_url()),
                // kubelet's part is played by somebody without a back-off.
                "--restart-pace=1s".to_owned(),
                if setup.hosts {
                    format!("--etcd-pid-file={}", member.pid_file().display())
                } else if setup.probe {
                    "--reload=probe".to_owned()
                } else {
                    "--can-signal".to_owned()
                },
            ];
            if setup.foreign {
                pod.of_run.push(format!("--metrics-url=https://127.0.0.1:{}", server.port));
            }
        }
        let mut pods: Vec<&mut Pod> = members.iter_mut().chain([&mut client]).collect();
        for pod in &mut pods {
            if !setup.hosts {
                pod.init().await;
            }
            // Before etcd is up: its leaves live for seconds.
            pod.run();
        }
        for pod in &pods {
            let roles =
                if pod.arguments[0].contains("peer") { &[Role::Peer, Role::Server][..] } else { &[Role::Client] };
            eventually("the first certificates", LIMIT, || async {
                let there = roles.iter().all(|role| pod.leaf(*role).is_some());
                if there { Ok(()) } else { Err(pod.sidecar.as_ref().map(Process::log_end).unwrap_or_default()) }
            })
            .await;
        }
        cluster.spawn();
        for member in &cluster.members {
            member.healthy(Duration::from_secs(60)).await;
        }
        let urls = cluster.members.iter().map(Member::client_url).collect();
        Self { server, members, client, supervisor: EtcdSupervisor::new(cluster), urls }
    }

    /// A client that writes and watches; an operation has ten seconds.
    pub fn workload(&self) -> Workload {
        Workload::start(self.work())
    }

    /// A client that gives an attempt no more than a leader election may take (twice the election timeout, which is a
    /// second) and tries elsewhere then.
    pub fn impatient_workload(&self) -> Workload {
        let (name, attempt) = ("impatient".to_owned(), Duration::from_secs(2));
        Workload::start(workload::Options { name, attempt, ..self.work() })
    }

    fn work(&self) -> workload::Options {
        let mut options = workload::Options::new(self.urls.clone(), &self.client.role_dir(Role::Client));
        options.deadline = Duration::from_secs(10);
        options
    }

    /// Does `work` while kubelet probes the members.
    pub async fn probed<T>(&self, work: impl Future<Output = T>) -> T {
        let dirs: Vec<PathBuf> = self.members.iter().map(Pod::certs).collect();
        liveness_probe::probed(&dirs, &self.supervisor, work).await
    }

    /// Which member leads.
    pub async fn leader(&self) -> usize {
        let urls: Vec<_> = self.supervisor.with(|c| c.members.iter().map(Member::metrics_url).collect());
        crate::etcd::leader(&urls).await
    }

    /// Everybody who has a sidecar.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.members.iter().chain([&self.client])
    }

    /// How many requests were made by a pod for a role.
    pub fn asked(&self, pod: &Pod, role: Role) -> usize {
        let prefix = format!("etcd-tls-{}-{role}-", pod.uid);
        self.server.state().requests.keys().filter(|name| name.starts_with(&prefix)).count()
    }

    /// The requests of a pod for a role, each with when it was made, what was said of the loaded bundle, and its answer's length.
    pub fn requests_of(&self, pod: &Pod, role: Role) -> Vec<String> {
        let prefix = format!("etcd-tls-{}-{role}-", pod.uid);
        let state = self.server.state();
        let all = state.requests.iter().filter(|(name, _)| name.starts_with(&prefix));
        all.map(|(name, csr)| {
            let certificate =
                csr.status.as_ref().and_then(|status| status.certificate.as_ref()).map_or(0, |c| c.0.len());
            format!(
                "{name} at {:?}: {:?}, {certificate} bytes",
                csr.metadata.creation_timestamp, csr.metadata.annotations
            )
        })
        .collect()
    }

    /// The most requests of one pod for one role.
    pub fn most_asked(&self) -> usize {
        let all = self.pods().flat_map(|pod| Role::ALL.map(|role| self.asked(pod, role)));
        all.max().unwrap_or_default()
    }

    /// Publishes bundles to everybody.
    pub fn publish(&self, bundles: &BTreeMap<Domain, Bundle>) {
        let pems = bundles.iter().map(|(domain, bundle)| (*domain, bundle.to_pem())).collect();
        for pod in self.pods() {
            self.server.publish_trust(&pod.dir.join("trust"), &pems);
        }
    }

    /// Waits until every one of these members has stated, on the request of the leaf that it holds, that its etcd has
    /// loaded these bundles: all that a signer knows.
    pub async fn stated_by(&self, members: &[Pod], bundles: &BTreeMap<Domain, Bundle>) {
        eventually("every member states what its etcd has loaded", LIMIT, || async {
            let state = self.server.state();
            let mut missing = BTreeSet::new();
            for pod in members {
                for role in [Role::Peer, Role::Server] {
                    let prefix = format!("etcd-tls-{}-{role}-", pod.uid);
                    let digest = bundles[&role.domain()].digest();
                    // Renewed for a leaf, it is stated again.
                    let on_disk = fs::read(pod.role_dir(role).join("tls.crt")).unwrap_or_default();
                    let stated = state.requests.iter().filter(|(name, _)| name.starts_with(&prefix)).any(|(_, csr)| {
                        let annotations = csr.metadata.annotations.as_ref();
                        let signed = csr.status.as_ref().and_then(|status| status.certificate.as_ref());
                        signed.is_some_and(|signed| signed.0 == on_disk)
                            && annotations.and_then(|a| a.get(names::TRUSTS_ANNOTATION)) == Some(&digest)
                    });
                    if !stated {
                        missing.insert(prefix);
                    }
                }
            }
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })
        .await;
    }

    /// [`Self::stated_by`] all members.
    pub async fn stated(&self, bundles: &BTreeMap<Domain, Bundle>) {
        self.stated_by(&self.members, bundles).await;
    }

    /// Makes the CAs of the `n`th rollover.
    pub fn rollover(&self, n: usize) -> RollOver {
        let old: BTreeMap<Domain, Bundle> =
            self.server.state().authorities.iter().map(|(d, a)| (*d, a.bundle().clone())).collect();
        let next: BTreeMap<Domain, _> = Domain::ALL.map(|d| (d, authority(&format!("{d}-{n}")))).into();
        let new: BTreeMap<Domain, Bundle> = next.iter().map(|(d, a)| (*d, a.bundle().clone())).collect();
        let both = old.iter().map(|(d, bundle)| (*d, bundle.union(&new[d]))).collect();
        RollOver { next, new, both }
    }

    /// Waits until these members and the client hold leaves of `bundles` alone.
    pub async fn hold(&self, members: &[Pod], bundles: &BTreeMap<Domain, Bundle>) {
        self.members_hold(members, bundles).await;
        self.client_holds(bundles).await;
    }

    /// Waits until these members hold leaves of `bundles` alone.
    pub async fn members_hold(&self, members: &[Pod], bundles: &BTreeMap<Domain, Bundle>) {
        eventually("every leaf is of the new CA", LIMIT, || async {
            let all = members.iter().all(|pod| pod.signed_by(&[Role::Peer, Role::Server], bundles));
            if all { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// Waits until the client holds a leaf of `bundles`.
    pub async fn client_holds(&self, bundles: &BTreeMap<Domain, Bundle>) {
        eventually("the client's leaf is of the new CA", LIMIT, || async {
            if self.client.signed_by(&[Role::Client], bundles) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// Waits until a member's sidecar has noted who it is and where the others are.
    pub async fn noted(&self, i: usize) {
        let path = self.members[i].dir.join("certs").join("..restart.json");
        eventually("the cluster is noted", LIMIT, || async {
            let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            if text.contains("\"others\":[\"https") { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// The rest of a rollover after both were loaded by all: sign with the new, wait until all leaves are new, publish the
    /// new alone.
    pub async fn change_over(&self, RollOver { next, new, .. }: RollOver) {
        self.server.state().authorities = next;
        self.hold(&self.members, &new).await;
        self.publish(&new);
        self.stated(&new).await;
    }

    /// A rollover as the signer conducts it.
    pub async fn roll_over(&self, n: usize) {
        let rollover = self.rollover(n);
        self.publish(&rollover.both);
        self.stated(&rollover.both).await;
        self.change_over(rollover).await;
    }

    /// Waits until the wall clock is `beyond` the end of every leaf of member `i`.
    pub async fn expired(&self, i: usize, beyond: Duration) {
        eventually("the leaves have expired", LIMIT, || async {
            let ends = [Role::Peer, Role::Server].map(|role| self.members[i].leaf(role).expect("a leaf").not_after);
            if ends.iter().all(|end| *end + beyond < SystemTime::now()) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }
}
