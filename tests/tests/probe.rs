//! etcd's liveness probe under `reload: probe`, with the real programs: only an explicit answer of the sidecar takes etcd down,
//! no failure of the sidecar does, and the user's own probe keeps its meaning.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use etcd_tls_contract::names::{PROBE_DIR, PROBE_PROGRAM};
use etcd_tls_sidecar::probe::{SOCKET, install};
use nix::sys::signal::Signal;
use tests::{
    csr_server::CsrServer,
    eventually, ports,
    process::{Process, binary, probe},
    sidecar_cluster::{Setup, SidecarCluster},
    temp::TempDir,
    tier,
};
use tokio::net::{UnixSocket, UnixStream};

const LIMIT: Duration = Duration::from_secs(30);

/// A pod's sidecar.
struct Sidecar {
    dir: TempDir,
    server: CsrServer,
}

impl Sidecar {
    async fn new() -> Self {
        let server = CsrServer::start(Duration::from_secs(3600)).await;
        let dir = TempDir::new("probe");
        server.token_directory(&dir);
        server.trust_directory(&dir);
        Self { dir, server }
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    fn spawn(&self, program: &Path, subcommand: &str, more: &[String]) -> Process {
        let mut command = Command::new(program);
        command.arg(subcommand).args(["--roles=peer,server", "--reload=probe"]);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log")).args(more);
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &self.server.port.to_string()),
            ("POD_NAME", "etcd-0"),
            ("POD_NAMESPACE", "prod"),
            ("POD_UID", "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11"),
            ("POD_SERVICE_ACCOUNT", "default"),
            ("NODE_NAME", "node-1"),
            ("POD_IPS", "127.0.0.1"),
        ] {
            command.env(name, value);
        }
        Process::spawn(subcommand, &mut command, self.dir.path())
    }

    async fn init(&self) {
        let status = self.spawn(&binary("etcd-tls-sidecar"), "init", &[]).wait(LIMIT).await;
        assert!(status.success(), "{status}");
    }

    /// `run`, once it answers probes. Its etcd is not there.
    async fn run(&self, liveness_url: &str) -> Process {
        let _ = fs::remove_file(self.certs().join(PROBE_DIR).join(SOCKET));
        let more = [
            format!("--admin-port={}", ports::loopback()),
            format!("--client-url=https://127.0.0.1:{}", ports::loopback()),
            format!("--liveness-url={liveness_url}"),
        ];
        let sidecar = self.spawn(&binary("etcd-tls-sidecar"), "run", &more);
        let socket = self.certs().join(PROBE_DIR).join(SOCKET);
        eventually("the sidecar answers", LIMIT, || async {
            UnixStream::connect(&socket).await.map(drop).map_err(|e| format!("{e}: {}", sidecar.log_end()))
        })
        .await;
        sidecar
    }
}

/// Answers `/health` with a status that can be changed.
fn health() -> (String, Arc<AtomicU16>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    let status = Arc::new(AtomicU16::new(200));
    let shared = Arc::clone(&status);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.expect("a connection"), [0; 1024]);
            let read = stream.read(&mut head).unwrap_or_default();
            if head[..read].starts_with(b"GET /health ") {
                let _ = write!(stream, "HTTP/1.1 {} x\r\n\r\nits word", shared.load(Ordering::Relaxed));
            }
        }
    });
    (format!("http://{address}/health"), status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_own_probe_counts_in_every_failure_of_the_sidecar() {
    let sidecar = Sidecar::new().await;
    let (url, status) = health();
    let certs = sidecar.certs();
    let users_word = |away: bool| {
        let (certs, status) = (certs.clone(), Arc::clone(&status));
        async move {
            status.store(200, Ordering::Relaxed);
            assert_eq!(probe(&certs).await, Ok(()));
            status.store(503, Ordering::Relaxed);
            let why = probe(&certs).await.expect_err("the user's own probe fails");
            assert!(why.contains("/health: 503 its word"), "{why}");
            assert_eq!(why.contains("etcd-tls-sidecar is away"), away, "{why}");
            assert_eq!(why.trim_end().lines().count(), 1, "kubelet shows one line: {why}");
        }
    };
    sidecar.init().await;
    let mut run = sidecar.run(&url).await;
    users_word(false).await;
    run.signal(Signal::SIGSTOP);
    users_word(true).await;
    run.signal(Signal::SIGCONT);
    eventually("it answers again", LIMIT, || async {
        let why = probe(&certs).await.expect_err("still 503");
        if why.contains("is away") { Err(why) } else { Ok(()) }
    })
    .await;
    run.kill();
    users_word(true).await;
    let _again = sidecar.run(&url).await;
    users_word(false).await;
}

/// An earlier admission wrote what this version cannot read, and the image alone is raised: the pod starts, and its probe does not ask it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_of_an_earlier_injection_that_cannot_be_read_keeps_nothing_down() {
    let pod = Sidecar::new().await;
    let urls = ["http://a b:2381/health", "unix:///run/etcd.sock", "http://[::1:2381/health", ""];
    for (before, unreadable) in urls.into_iter().enumerate() {
        let argument = format!("--liveness-url={unreadable}");
        let status = pod.spawn(&binary("etcd-tls-sidecar"), "init", &[argument]).wait(LIMIT).await;
        assert!(status.success(), "{unreadable:?}: {status}");
        let mut sidecar = pod.run(unreadable).await;
        probe(&pod.certs()).await.expect("the sidecar has nothing against etcd");
        assert!(!pod.certs().join(PROBE_DIR).join("liveness").exists(), "{unreadable:?}");
        let warnings = sidecar.log().matches("--liveness-url is not asked").count();
        // One of each process: they write into one file.
        assert_eq!(warnings, before + 1, "{unreadable:?}: {}", sidecar.log_end());
        sidecar.kill();
        // etcd is no more kept down while the sidecar is away.
        probe(&pod.certs()).await.expect("a sidecar that is away is no reason");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_over_tls_is_the_sidecars_and_a_connection_where_that_is_away() {
    let sidecar = Sidecar::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("https://{}/health", listener.local_addr().expect("an address"));
    sidecar.init().await;
    let mut run = sidecar.run(&url).await;
    // It takes connections and speaks no TLS.
    let why = probe(&sidecar.certs()).await.expect_err("no TLS there");
    assert!(why.contains(&url), "{why}");
    run.kill();
    assert_eq!(probe(&sidecar.certs()).await, Ok(()), "more cannot be asked");
    drop(listener);
    let why = probe(&sidecar.certs()).await.expect_err("nobody listens");
    assert!(why.contains("refused") && why.contains("is away"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_sidecar_is_one_that_is_away() {
    let dir = TempDir::new("no-sidecar");
    install::install(&binary(PROBE_PROGRAM), dir.path(), None).expect("install");
    assert_eq!(probe(dir.path()).await, Ok(()), "there never was one");
    let socket = dir.join(PROBE_DIR).join(SOCKET);

    for answer in ["", "dead cut", "HTTP/1.1 503 Service Unavailable\r\n\r\n", "no\n", "\0\0\0", "dead a\nb\n"] {
        let listener = UnixListener::bind(&socket).expect("bind");
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer.as_bytes());
        });
        assert_eq!(probe(dir.path()).await, Ok(()), "{answer:?}");
        answering.join().expect("it answers");
        fs::remove_file(&socket).expect("remove");
    }

    let listener = UnixListener::bind(&socket).expect("bind");
    let endless = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        while stream.write_all(b"dead dead dead").is_ok() {}
    });
    assert_eq!(probe(dir.path()).await, Ok(()), "an answer without end");
    endless.join().expect("it ends with the program");
    fs::remove_file(&socket).expect("remove");

    // As with a process that was stopped long ago: the program cannot even connect, and is not to wait for it.
    let full = UnixSocket::new_stream().expect("a socket");
    full.bind(&socket).expect("bind");
    let _listener = full.listen(1).expect("listen");
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(500), UnixStream::connect(&socket)).await {
        waiting.push(stream);
        assert!(waiting.len() < 100, "its queue has no end");
    }
    assert_eq!(probe(dir.path()).await, Ok(()), "{} connections wait", waiting.len());
}

/// `--help` as the first argument ends it without a question; a probe that is called wrongly asks.
#[test]
fn the_help_of_the_probe_says_what_it_asks_and_its_codes() {
    let output = std::process::Command::new(binary("etcd-tls-probe")).arg("--help").output().expect("run it");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("Usage: etcd-tls-probe [--timeout=<SECONDS>]"), "{output:?}");
    let output =
        std::process::Command::new(binary("etcd-tls-probe")).args(["--verbose", "--help"]).output().expect("run it");
    assert!(output.status.success() && output.stdout.is_empty(), "there is no sidecar to say more: {output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_without_its_probe_says_so_before_etcd_starts() {
    let sidecar = Sidecar::new().await;
    sidecar.init().await;
    let alone = sidecar.dir.join("etcd-tls-sidecar");
    fs::copy(binary("etcd-tls-sidecar"), &alone).expect("copy");
    let mut run = sidecar.spawn(&alone, "run", &[format!("--admin-port={}", ports::loopback())]);
    let status = run.wait(LIMIT).await;
    assert_eq!(status.code(), Some(72), "{}", run.log());
    assert!(run.log().contains("reload: probe needs this program beside etcd-tls-sidecar"), "{}", run.log());
}

/// Each member twice, by its probe: for the bundle of both CAs, and for that of the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollover_restarts_each_member_by_its_probe() {
    let Some(etcd) = tier::etcd() else { return };
    let setup =
        Setup { size: 3, life: Duration::from_secs(20), hosts: false, probe: true, clock: None, foreign: false };
    let sidecars = SidecarCluster::start(&etcd, setup).await;
    let work = sidecars.workload();
    sidecars.probed(sidecars.roll_over(1)).await;
    let report = work.stop().await.expect("read etcd");
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!((sidecars.supervisor.most_away(), sidecars.supervisor.ends().len()), (1, 6));
    for pod in &sidecars.members {
        assert_eq!(probe(&pod.certs()).await, Ok(()));
    }
}
