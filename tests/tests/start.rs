//! Valid files on disk are used before any request: etcd's certificates by the sidecar's real binary, with the signer away from
//! the start. On a host and for a static pod `request`, in a pod `init`.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use etcd_tls_contract::{
    certificate::Chain,
    role::{Domain, Role},
};
use tests::{
    csr_server::{CsrServer, authority},
    pki::Ca,
    process::{binary, run},
    signer::{BOOTSTRAP, HOSTS, LIMIT, Signer, sidecar},
    temp::TempDir,
    tier,
};

/// etcd is not kept waiting longer where nothing is needed.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A host and its signer.
struct Host {
    signer: Signer,
    bootstrap: PathBuf,
}

impl Host {
    /// With its first certificates, of a signer that may be started with more arguments.
    async fn new(arguments: &[&str]) -> Self {
        let signer = Signer::started(&HOSTS.iter().chain(arguments).copied().collect::<Vec<_>>()).await;
        let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
        let host = Self { signer, bootstrap };
        run(&mut host.request(&["--timeout=60s"]));
        host
    }

    fn dir(&self) -> PathBuf {
        self.signer.dir.join("m1")
    }

    fn arguments(&self, subcommand: &str, more: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> =
            [subcommand, "--name=m1", "--roles=peer,server", "--ipaddrs=127.0.0.2,127.0.0.1"].map(Into::into).into();
        let dir = if subcommand == "run" { "dir" } else { "assetsdir" };
        arguments.push(format!("--{dir}={}", self.dir().display()));
        arguments.push(format!("--kubeconfig={}", self.signer.dir.join("m1.kubeconfig").display()));
        arguments.push(format!("--bootstrap-kubeconfig={}", self.bootstrap.display()));
        arguments.extend(more.iter().map(|&a| a.to_owned()));
        arguments
    }

    fn request(&self, more: &[&str]) -> Command {
        self.sidecar("request", more)
    }

    fn sidecar(&self, subcommand: &str, more: &[&str]) -> Command {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(self.arguments(subcommand, more));
        command
    }

    /// `request` in a mount namespace of its own, after `setup`.
    fn request_after(&self, setup: &str, more: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-ec", &format!("{setup}\nexec \"$@\""), "sh"]);
        command.arg(binary("etcd-tls-sidecar")).args(self.arguments("request", more));
        command
    }

    fn serial(&self, role: Role) -> String {
        let file = self.dir().join(role.as_str()).join("tls.crt");
        Chain::parse(&fs::read(file).expect("a certificate")).expect("a chain").serial
    }

    fn serials(&self) -> (String, String) {
        (self.serial(Role::Peer), self.serial(Role::Server))
    }

    /// How many requests the signer has seen.
    fn requests(&self) -> usize {
        let (code, list) = self.signer.ask("GET", tests::signer::V1, tests::signer::ADMIN, &serde_json::Value::Null);
        list["items"].as_array().unwrap_or_else(|| panic!("{code}: {list}")).len()
    }
}

fn text(output: &Output) -> String {
    format!("{}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs it; of three attempts, for a machine that is busy with others' work, the fastest must be within a second.
fn succeeds_at_once(case: &str, command: &mut Command) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let output = command.output().expect("run");
        took.push(began.elapsed());
        assert!(output.status.success(), "{case}: {}", text(&output));
        if took.last().is_some_and(|t| *t < AT_ONCE) {
            return;
        }
    }
    panic!("{case}: took {took:?}");
}

/// Whether a mount namespace can be created; prints a line if not.
fn namespaces() -> bool {
    let can = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|o| o.status.success());
    if !can {
        tier::skip(1, "no mount namespaces", "root, and util-linux' unshare");
    }
    can
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_good_files_starts_with_everything_else_away() {
    let mut host = Host::new(&[]).await;
    let serials = host.serials();
    // Beside `run`, which has the directory's lock.
    let running = sidecar(&host.signer, "m1", &host.bootstrap, &["--ipaddrs=127.0.0.2,127.0.0.1".to_owned()]);
    running.logged("it is unknown whether etcd has loaded", LIMIT).await;
    host.signer.process().kill();
    let long = ["--timeout=8760h"];
    succeeds_at_once("the signer is away, and `run` works on the directory", &mut host.request(&long));
    drop(running);
    succeeds_at_once("the signer is away", &mut host.request(&long));
    // The signer may stand on this very etcd.
    let more = ["--timeout=8760h", "--dnsnames=etcd.example.com"];
    succeeds_at_once("the signer is away, and the certificates lack a name", &mut host.request(&more));
    fs::remove_dir_all(host.dir().join("trust")).expect("remove");
    succeeds_at_once("no bundle but those beside the certificates", &mut host.request(&long));

    let silent = TcpListener::bind(("127.0.0.1", host.signer.port)).expect("bind");
    succeeds_at_once("connections are accepted and nobody answers", &mut host.request(&long));
    succeeds_at_once("… and the certificates lack a name", &mut host.request(&more));
    drop(silent);

    for (case, content) in [("garbage", "}{"), ("empty", "")] {
        for name in ["bootstrap.kubeconfig", "m1.kubeconfig"] {
            fs::write(host.signer.dir.join(name), content).expect("write");
        }
        succeeds_at_once(&format!("kubeconfigs that cannot be read: {case}"), &mut host.request(&long));
    }
    for name in ["bootstrap.kubeconfig", "m1.kubeconfig"] {
        let _ = fs::remove_file(host.signer.dir.join(name));
    }
    succeeds_at_once("no kubeconfigs", &mut host.request(&long));

    if namespaces() {
        let dir = host.dir();
        let dir = dir.display();
        let setup = format!("mount --bind {dir} {dir}; mount -o remount,bind,ro {dir}");
        succeeds_at_once("a directory that cannot be written", &mut host.request_after(&setup, &long));
        let setup = format!("rm -f {dir}/..lock; {setup}");
        succeeds_at_once("nor has a lock", &mut host.request_after(&setup, &long));
    }
    if let Some(library) = tier::faketime() {
        for (case, clock) in [
            ("due, yet valid: `run` renews", "+17h"),
            ("a clock before notBefore", "-3d"),
            ("a clock without a battery", "@1970-01-01 00:01:00"),
        ] {
            let mut command = host.request(&long);
            command.env("LD_PRELOAD", &library).env("FAKETIME", clock).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            succeeds_at_once(case, &mut command);
        }
    }
    assert_eq!(host.serials(), serials, "nothing was requested");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_missing_is_requested() {
    let mut host = Host::new(&[]).await;
    let (peer, server) = host.serials();
    let before = host.requests();
    let requested = |case: &str, more: usize| {
        assert_eq!(host.serial(Role::Peer), peer, "{case}: the good one stays");
        assert_eq!(host.requests(), before + more, "{case}");
    };
    let data = host.dir().join("..data/server");
    fs::write(data.join("tls.crt"), "garbage").expect("write");
    run(&mut host.request(&["--timeout=60s"]));
    let second = host.serial(Role::Server);
    assert_ne!(second, server);
    requested("one role is damaged", 1);

    fs::remove_dir_all(host.dir().join("..data/server")).expect("remove");
    run(&mut host.request(&["--timeout=60s"]));
    let third = host.serial(Role::Server);
    assert_ne!(third, second);
    requested("one role is missing", 2);

    // A signer with another CA: its bundle is fetched because the certificate is of none of those at hand.
    host.signer.process().kill();
    let other = Ca::new("another CA");
    host.signer.dir.write("ca.crt", &other.pem);
    host.signer.dir.write("ca.key", &other.key_pem);
    host.signer.dir.write("clients.crt", format!("{}{}", host.signer.ca.pem, other.pem));
    host.signer.start().await;
    fs::remove_dir_all(host.dir().join("..data/server")).expect("remove");
    run(&mut host.request(&["--timeout=60s"]));
    let bundle = fs::read_to_string(host.dir().join("server/ca.crt")).expect("read");
    assert!(bundle.contains(other.pem.trim()), "{bundle}");
    assert_eq!(host.serial(Role::Peer), peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_role_that_has_expired_is_requested() {
    let host = Host::new(&["--servercertdur=8s"]).await;
    let (peer, server) = host.serials();
    let before = host.requests();
    tokio::time::sleep(Duration::from_secs(9)).await;
    run(&mut host.request(&["--timeout=60s"]));
    assert_eq!((host.serial(Role::Peer), host.requests()), (peer, before + 1));
    assert_ne!(host.serial(Role::Server), server);
}

/// Runs a program on a host of its own that has one family of addresses, until something listens on each of the ports.
fn listens(setup: &str, address: &str, ports: &[u16], program: &Command) -> Result<(), String> {
    let script = format!(
        "{{ {setup}; }} || exit 9\n\"$@\" & pid=$!\nfor i in $(seq 300); do\n  kill -0 $pid || exit 3\n  all=yes\n  \
         for port in {}; do ( : <> /dev/tcp/{address}/$port ) 2>/dev/null || all=; done\n  \
         [ -z \"$all\" ] || {{ kill -9 $pid; exit 0; }}\n  sleep 0.1\ndone\nkill -9 $pid; exit 4",
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--kill-child", "bash", "-c", &script, "bash"]);
    command.arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().expect("run");
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_listens_where_there_is_one_family_of_addresses_alone() {
    const FAMILIES: [(&str, &str); 2] = [
        ("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up", "127.0.0.1"),
        ("ip link set lo up && ip address delete 127.0.0.1/8 dev lo", "::1"),
    ];
    for (setup, _) in FAMILIES {
        let tried = Command::new("unshare").args(["--net", "sh", "-c", setup]).output();
        if !tried.is_ok_and(|output| output.status.success()) {
            tier::skip_special("no network namespaces", "root, util-linux' unshare, and iproute2");
            return;
        }
    }
    let host = Host::new(&[]).await;
    let path = |name: &str| host.signer.dir.join(name).display().to_string();
    let kubeconfig = host.signer.dir.join("m1.kubeconfig");
    let webhook = |arguments: &[String]| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command
            .args(arguments)
            .env("KUBECONFIG", &kubeconfig)
            .env("POD_NAME", "p")
            .env("POD_NAMESPACE", "etcd-tls-system");
        command
    };
    let standalone: Vec<String> = [
        ("cacrt", path("ca.crt")),
        ("cakey", path("ca.key")),
        ("servcrt", path("serving/tls.crt")),
        ("servkey", path("serving/tls.key")),
        ("token-auth-file", path("tokens")),
        ("csrdir", path("csrs-alone")),
    ]
    .map(|(flag, value)| format!("--{flag}={value}"))
    .into();
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod { dir: TempDir::new("pod"), port: server.port };
    server.token_directory(&pod.dir);
    server.trust_directory(&pod.dir);
    let on_host = host.sidecar("run", &["--admin-port=9279"]);
    let admit = ["admit".to_owned(), "--sidecar-image=x".to_owned(), format!("--serving-dir={}", path("serving"))];
    let mut problems = Vec::new();
    for (setup, address) in FAMILIES {
        for (what, ports, program) in [
            ("admit", &[8443, 9179][..], &webhook(&admit)),
            ("approve", &[9179], &webhook(&["approve".to_owned()])),
            ("sign", &[9179], &webhook(&["sign".to_owned()])),
            ("standalone", &[6443], &webhook(&[&["standalone".to_owned()], &standalone[..]].concat())),
            ("run on a host", &[9279], &on_host),
            ("run in a pod", &[9279], &pod.sidecar("run", &["--admin-port=9279"])),
        ] {
            problems.extend(listens(setup, address, ports, program).err().map(|e| format!("{what} on {address}: {e}")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A pod's directories and variables.
struct Pod {
    dir: TempDir,
    port: u16,
}

impl Pod {
    fn init(&self, more: &[&str]) -> Command {
        self.sidecar("init", more)
    }

    fn sidecar(&self, subcommand: &str, more: &[&str]) -> Command {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args([subcommand, "--roles=peer,server"]).args(more);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &self.port.to_string()),
            ("POD_NAME", "etcd-0"),
            ("POD_NAMESPACE", "prod"),
            ("POD_UID", "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11"),
            ("POD_SERVICE_ACCOUNT", "default"),
            ("NODE_NAME", "node-1"),
            ("POD_IPS", "127.0.0.1"),
        ] {
            command.env(name, value);
        }
        command
    }
}

fn calls(server: &CsrServer) -> usize {
    server.calls.load(std::sync::atomic::Ordering::Relaxed)
}

fn output_of(path: &Path) -> Vec<u8> {
    fs::read(path).expect("read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_good_files_starts_with_everything_else_away() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod { dir: TempDir::new("pod"), port: server.port };
    server.token_directory(&pod.dir);
    server.trust_directory(&pod.dir);
    run(&mut pod.init(&["--timeout=60s"]));
    let leaf = pod.dir.join("certs/peer/tls.crt");
    let before = output_of(&leaf);
    let asked = calls(&server);
    succeeds_at_once("all is there", &mut pod.init(&[]));
    assert_eq!(calls(&server), asked, "nobody was asked");
    server.state().away = true;
    succeeds_at_once("no API server", &mut pod.init(&[]));
    fs::remove_file(pod.dir.join("token/token")).expect("remove");
    succeeds_at_once("no token", &mut pod.init(&[]));
    fs::remove_file(pod.dir.join("token/ca.crt")).expect("remove");
    succeeds_at_once("no CA of the API server", &mut pod.init(&[]));
    let mut command = pod.init(&[]);
    command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBERNETES_SERVICE_PORT");
    succeeds_at_once("no address of the API server", &mut command);
    // Causes that are worth a request but no wait, with an API server that is away or silent.
    server.state().authorities.insert(Domain::Peer, authority("next peer"));
    server.publish_trust(&pod.dir.join("trust"), &std::collections::BTreeMap::new());
    server.token_directory(&pod.dir);
    succeeds_at_once("a rollover was missed, and no API server", &mut pod.init(&[]));
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut command = pod.init(&[]);
    command.env("KUBERNETES_SERVICE_PORT", silent.local_addr().expect("an address").port().to_string());
    succeeds_at_once("… and one that never answers", &mut command);
    command.env("POD_IPS", "127.0.0.1,10.0.0.9");
    succeeds_at_once("… and the certificates lack an address, too", &mut command);
    server.state().away = false;
    server.state().outage = Some((503, "{}".to_owned(), Vec::new()));
    succeeds_at_once("… and one whose own etcd is away", &mut pod.init(&[]));
    server.state().outage = None;
    if let Some(library) = tier::faketime() {
        server.state().away = true;
        let mut command = pod.init(&[]);
        command.env("LD_PRELOAD", &library).env("FAKETIME", "-3d").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        succeeds_at_once("a clock before notBefore", &mut command);
        server.state().away = false;
    }
    fs::remove_dir_all(pod.dir.join("trust")).expect("remove");
    succeeds_at_once("no bundles but those beside the certificates", &mut pod.init(&[]));
    assert_eq!(output_of(&leaf), before, "nothing was exchanged");
    let mode = fs::metadata(&leaf).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o440);
}
