//! The whole of a rotation with the real programs: a sidecar's binary for each member of a real cluster, a client with a
//! sidecar of its own, and a stand-in for API server and signer whose certificates live for seconds.
//!
//! The short form runs always; `ETCD_TLS_SOAK=1` runs the long one: 200 rotations a member and five rollovers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use etcd_tls_sidecar::{
    certificate::{Bundle, Chain},
    names,
    role::{Domain, Role},
};
use tests::{
    csr_server::{CsrServer, authority},
    etcd::{EtcdBinary, EtcdCluster, MemberTls},
    eventually,
    process::{Process, binary},
    supervisor::Supervisor,
    temp::TempDir,
    tier,
    workload::{self, Workload},
};

const LIMIT: Duration = Duration::from_secs(180);

fn soak() -> bool {
    std::env::var_os("ETCD_TLS_SOAK").is_some()
}

/// A line that the test runner does not capture.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A pod's directories, its sidecar, and what it is told.
struct Pod {
    dir: TempDir,
    uid: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    sidecar: Option<Process>,
}

impl Pod {
    fn new(server: &CsrServer, n: usize, name: &str, roles: &str, ips: &str) -> Self {
        let dir = TempDir::new(name);
        server.token_directory(&dir);
        server.trust_directory(&dir);
        let uid = format!("0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c1{n}");
        let environment = [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &server.port.to_string()),
            ("POD_NAME", name),
            ("POD_NAMESPACE", "prod"),
            ("POD_UID", &uid),
            ("POD_SERVICE_ACCOUNT", "default"),
            ("NODE_NAME", "node-1"),
            ("POD_IPS", ips),
        ];
        let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        // Asked for as extra names: loopback addresses are not taken for a pod's own.
        let arguments = vec![format!("--roles={roles}"), format!("--extra-sans={ips}"), "--log-level=info".to_owned()];
        Self { dir, uid, arguments, environment, sidecar: None }
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

    async fn init(&self) {
        let mut init = self.start("init", &[]);
        let status = init.wait(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}: {}", init.log());
    }

    fn run(&mut self, more: &[String]) {
        let mut arguments = vec![format!("--admin-port={}", tests::ports::loopback())];
        arguments.extend_from_slice(more);
        self.sidecar = Some(self.start("run", &arguments));
    }

    fn role_dir(&self, role: Role) -> PathBuf {
        self.dir.join("certs").join(role.as_str())
    }

    /// Whether every leaf on disk is of a CA in `bundles`.
    fn signed_by(&self, roles: &[Role], bundles: &BTreeMap<Domain, Bundle>) -> bool {
        roles.iter().all(|role| {
            let leaf = fs::read(self.role_dir(*role).join("tls.crt")).unwrap_or_default();
            Chain::parse(&leaf).is_ok_and(|chain| bundles[&role.domain()].contains_issuer_of(&chain))
        })
    }
}

/// Members with their sidecars, and a client with its own.
struct Fleet {
    server: CsrServer,
    members: Vec<Pod>,
    client: Pod,
    supervisor: Supervisor,
    urls: Vec<String>,
}

impl Fleet {
    async fn start(etcd: &EtcdBinary, size: u8, life: Duration) -> Self {
        let server = CsrServer::start(life).await;
        let address = |n: u8| format!("127.0.0.{},127.0.0.1", 2 + n);
        let mut members: Vec<Pod> =
            (0..size).map(|n| Pod::new(&server, n.into(), &format!("etcd-{n}"), "peer,server", &address(n))).collect();
        let mut client = Pod::new(&server, 9, "client", "client", "127.0.0.1");
        for pod in members.iter().chain([&client]) {
            pod.init().await;
        }
        let dirs: BTreeMap<String, &Pod> =
            members.iter().enumerate().map(|(n, pod)| (format!("etcd-{n}"), pod)).collect();
        let mut cluster = EtcdCluster::new(etcd, size).with_tls(|member| {
            let pod = dirs[&member.name];
            MemberTls { server: Some(pod.role_dir(Role::Server)), peer: Some(pod.role_dir(Role::Peer)) }
        });
        cluster.spawn();
        // Before etcd is up: its leaves live for seconds.
        for (pod, member) in members.iter_mut().zip(&cluster.members) {
            pod.run(&[
                format!("--client-url={}", member.client_url()),
                format!("--peer-url={}", member.peer_url()),
                "--can-signal".to_owned(),
                // kubelet's part is played by somebody without a back-off.
                "--restart-pace=1s".to_owned(),
            ]);
        }
        client.run(&[]);
        for member in &cluster.members {
            member.healthy(Duration::from_secs(60)).await;
        }
        let urls = cluster.members.iter().map(|m| m.client_url()).collect();
        Self { server, members, client, supervisor: Supervisor::new(cluster), urls }
    }

    fn workload(&self) -> Workload {
        let mut options = workload::Options::new(self.urls.clone(), &self.client.role_dir(Role::Client));
        options.deadline = Duration::from_secs(10);
        Workload::start(options)
    }

    /// The number of certificates issued to each member and role.
    fn issued(&self, pod: &Pod) -> usize {
        let prefix = format!("etcd-tls-{}-", pod.uid);
        self.server.state().requests.keys().filter(|name| name.starts_with(&prefix)).count()
    }

    fn publish(&self, bundles: &BTreeMap<Domain, Bundle>) {
        let pems = bundles.iter().map(|(domain, bundle)| (*domain, bundle.to_pem())).collect();
        for pod in self.members.iter().chain([&self.client]) {
            self.server.publish_trust(&pod.dir.join("trust"), &pems);
        }
    }

    /// Waits until every member has stated, on a request, that its etcd has loaded these bundles: all that a signer knows.
    async fn stated(&self, bundles: &BTreeMap<Domain, Bundle>) {
        eventually("every member states what its etcd has loaded", LIMIT, || async {
            let state = self.server.state();
            let mut missing = BTreeSet::new();
            for pod in &self.members {
                for role in [Role::Peer, Role::Server] {
                    let prefix = format!("etcd-tls-{}-{role}-", pod.uid);
                    let digest = bundles[&role.domain()].digest();
                    let stated = state.requests.iter().filter(|(name, _)| name.starts_with(&prefix)).any(|(_, csr)| {
                        let annotations = csr.metadata.annotations.as_ref();
                        annotations.and_then(|a| a.get(names::TRUSTS_ANNOTATION)) == Some(&digest)
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

    /// A rollover as the signer conducts it: publish both, wait until all have loaded both, sign with the new, wait until all
    /// leaves are new, publish the new alone.
    async fn roll_over(&self, n: usize) {
        let old: BTreeMap<Domain, Bundle> =
            self.server.state().authorities.iter().map(|(d, a)| (*d, a.bundle().clone())).collect();
        let next: BTreeMap<Domain, _> = Domain::ALL.map(|d| (d, authority(&format!("{d}-{n}")))).into();
        let new: BTreeMap<Domain, Bundle> = next.iter().map(|(d, a)| (*d, a.bundle().clone())).collect();
        let both: BTreeMap<Domain, Bundle> = old.iter().map(|(d, bundle)| (*d, bundle.union(&new[d]))).collect();
        self.publish(&both);
        self.stated(&both).await;
        self.server.state().authorities = next;
        eventually("every leaf is of the new CA", LIMIT, || async {
            let members = self.members.iter().all(|pod| pod.signed_by(&[Role::Peer, Role::Server], &new));
            if members && self.client.signed_by(&[Role::Client], &new) { Ok(()) } else { Err("not yet") }
        })
        .await;
        self.publish(&new);
        self.stated(&new).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_of_seconds_and_a_rollover_with_the_real_programs() {
    let Some(etcd) = tier::etcd() else { return };
    let (rotations, rollovers) = if soak() { (200, 5) } else { (4, 1) };
    if !soak() {
        say("the short form of this test; the long one: ETCD_TLS_SOAK=1 cargo test -p tests --test sidecars");
    }
    let fleet = Fleet::start(&etcd, 3, Duration::from_secs(8)).await;

    let work = fleet.workload();
    let start = Instant::now();
    eventually("each member's leaves have rotated", Duration::from_secs(30 * rotations as u64), || async {
        let least = fleet.members.iter().map(|pod| fleet.issued(pod) / 2).min().unwrap_or_default();
        if least > rotations { Ok(()) } else { Err(format!("{least} rotations")) }
    })
    .await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: {rotations} leaf rotations a member in {:.0?}: {report}", etcd.version, start.elapsed()));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len(), report.watch_breaks), (0, 0, 0, 0), "{report}");
    assert_eq!(fleet.supervisor.ends().len(), 0, "a leaf needs no restart");

    // The client's own bundle is one that nobody loads; its leaf is renewed as the members' are.
    let work = fleet.workload();
    let start = Instant::now();
    for n in 1..=rollovers {
        fleet.roll_over(n).await;
    }
    let took = start.elapsed();
    let report = work.stop().await.expect("read etcd");
    let ends = fleet.supervisor.ends().len();
    say(&format!("etcd {}: {rollovers} rollovers in {took:.0?}, {ends} restarts: {report}", etcd.version));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!(fleet.supervisor.most_away(), 1, "members away at the same time");
    assert_eq!(ends, 6 * rollovers, "one restart of each member for each change of the bundle");
    for pod in &fleet.members {
        assert!(pod.sidecar.as_ref().is_some_and(|s| s.log().contains("etcd is back, healthy")));
    }
}
