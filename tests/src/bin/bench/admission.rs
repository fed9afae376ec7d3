//! Admission: the CPU that a review takes in the process, and its throughput over TLS against the same server's fixed
//! answers.
//!
//! The reference is a process of its own: the webhook's very server, with the same serving pair and workers, which reads the
//! same request and returns the bytes of its real answer without parsing it. The difference between the two is the review.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use etcd_tls_webhook::{
    admit::{
        review::{Admission, Answer, Verdict, mutate},
        server,
    },
    injection::Config,
    platform::tls::{PairFiles, ServingPairs},
};
use hyper::StatusCode;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tests::{
    admission,
    pki::{Ca, LeafOptions, client_config},
    ports,
    process::{Process, binary},
    temp::TempDir,
};
use tokio::net::TcpListener;

use crate::{
    report::Report,
    stats::{cpu, median, peak},
    wire::{Call, Wire, throughput},
};

const IMAGE: &str = "etcd-tls-sidecar:bench";
const CONNECTIONS: usize = 64;
/// Turns of ours and the reference, and how long each takes.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_secs(1);
/// Names Kubernetes' test image's program, whose `webhook` is the reference.
const AGNHOST: &str = "ETCD_TLS_BENCH_AGNHOST";
/// The word by which the bench starts itself as the reference.
pub(crate) const FIXED: &str = "serve-fixed-answer";
/// The size of the pod that is reviewed.
const POD_BYTES: usize = 4096;
const BATCHES: usize = 40;
const BATCH: u32 = 100;

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let body = admission::review("705ab4f5-6393-11e8-b7cc-42010a800002", "prod", &pod()).to_string();
    let admission = admission();
    in_process(report, body.as_bytes(), &admission)?;
    over_tls(report, body, &admission).await
}

/// A member of a cluster as its author wrote it and the API server completed it, of just the size.
fn pod() -> Value {
    let manifest = tests::repository().join("manifests/examples/cluster/etcd.yaml");
    let text = std::fs::read_to_string(&manifest).unwrap_or_default();
    let first = text.split("\n---\n").next().unwrap_or_default();
    let set: Value = serde_saphyr::from_str(first).unwrap_or_default();
    let mut pod = set["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "etcd-0".into();
    pod["metadata"]["labels"]["etcd-tls"] = "dynamic".into();
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let left = POD_BYTES.saturating_sub(pod.to_string().len() + r#","annotations":{"note":""}"#.len());
    pod["metadata"]["annotations"] = json!({"note": "x".repeat(left)});
    pod
}

fn admission() -> Admission {
    let injection = Config { sidecar_image: IMAGE.to_owned(), ..Config::default() };
    Admission { injection, leave_out: ["kube-system".to_owned()].into() }
}

fn in_process(report: &mut Report, body: &[u8], admission: &Admission) -> Result<(), String> {
    let once = || match mutate(body, admission) {
        Ok(answer) if answer.verdict == Verdict::Inject => Ok(answer.body.len()),
        Ok(answer) => Err(format!("{:?}: {}", answer.verdict, String::from_utf8_lossy(&answer.body))),
        Err(e) => Err(e.to_string()),
    };
    for _ in 0..BATCH {
        once()?;
    }
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).map_err(|e| e.to_string());
    let mut each = Vec::new();
    for _ in 0..BATCHES {
        let began = now()?;
        for _ in 0..BATCH {
            std::hint::black_box(once()?);
        }
        each.push((now()? - began).as_secs_f64() * 1e6 / f64::from(BATCH));
    }
    let took = median(&each);
    report.judged("review and patch of a 4 KiB pod, CPU", format!("{took:.0} µs"), "< 100 µs", took < 100.0);
    Ok(())
}

/// A started server, and connections to it.
struct Served {
    process: Process,
    wires: Vec<Wire>,
}

impl Served {
    async fn start(name: &str, mut command: Command, address: SocketAddr, ca: &Ca, dir: &Path) -> Result<Self, String> {
        let process = Process::spawn(name, &mut command, dir);
        let config = client_config(&ca.pem, None);
        Wire::open_when_up(address, &config).await?;
        Ok(Self { process, wires: Wire::open_many(CONNECTIONS, address, &config).await? })
    }

    /// Answers a second, and the server's CPU for each in µs.
    async fn turn(&mut self, call: &Call) -> Result<(f64, f64), String> {
        let before = cpu(self.process.id());
        let rate = throughput(&mut self.wires, call, StatusCode::OK, TURN).await?;
        Ok((rate, (cpu(self.process.id()) - before) * 1e6 / (rate * TURN.as_secs_f64())))
    }
}

/// Reviews over TLS by ours, by ours with a fixed body, and by Kubernetes' own test webhook where there is one.
async fn over_tls(report: &mut Report, body: String, admission: &Admission) -> Result<(), String> {
    let directory = TempDir::new("bench-admit");
    let ca = Ca::new("bench");
    ca.write_role(&directory.join("serving"), &LeafOptions::default());
    let address = || SocketAddr::from(([127, 0, 0, 1], ports::loopback()));
    let at = address();
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["admit", "--sidecar-image", IMAGE, "--address", &at.to_string()]);
    command.arg("--serving-dir").arg(directory.join("serving"));
    command.arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
    let ours = Served::start("admit", command, at, &ca, directory.path()).await?;

    let answer = mutate(body.as_bytes(), admission).map_err(|e| e.to_string())?;
    let answer = directory.write("answer.json", answer.body);
    let at = address();
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.arg(FIXED).arg(at.to_string()).arg(directory.join("serving")).arg(answer);
    let fixed = Served::start("fixed", command, at, &ca, directory.path()).await?;

    let mut sides = vec![Side::new(ours, "/mutate", &body), Side::new(fixed, "/mutate", &body)];
    if let Some(agnhost) = std::env::var_os(AGNHOST) {
        let at = address();
        let mut command = Command::new(agnhost);
        command.arg("webhook").arg(format!("--port={}", at.port())).args(["--sidecar-image", IMAGE]);
        command.arg("--tls-cert-file").arg(directory.join("serving/tls.crt"));
        command.arg("--tls-private-key-file").arg(directory.join("serving/tls.key"));
        let served = Served::start("agnhost", command, at, &ca, directory.path()).await?;
        sides.push(Side::new(served, "/mutating-pods-sidecar", &body));
    }
    // The first turn warms all of them up.
    for turn in 0..=TURNS {
        for side in &mut sides {
            side.turn(turn > 0).await?;
        }
    }
    let [ours, fixed, go @ ..] = &sides[..] else { return Err("two sides".to_owned()) };
    report.plain("reviews over TLS, 64 connections", format!("{:.0}/s", median(&ours.rates)));
    report.plain("the same requests, a fixed body of the same bytes", format!("{:.0}/s", median(&fixed.rates)));
    report.plain(
        "CPU of the server for a review over TLS, for a fixed body",
        format!("{:.0} µs, {:.0} µs", median(&ours.costs), median(&fixed.costs)),
    );
    let ratio = ours.against(fixed);
    report.judged("reviews against the fixed body", format!("{ratio:.2}"), ">= 0.5", ratio >= 0.5);
    let Some(go) = go.first() else {
        report.skip(
            "reviews against agnhost webhook",
            &format!("{AGNHOST} names no program"),
            "go build ./test/images/agnhost in Kubernetes' source, and its path in that variable",
        );
        return Ok(());
    };
    report.plain("reviews by agnhost webhook", format!("{:.0}/s", median(&go.rates)));
    let ratio = ours.against(go);
    report.judged("reviews against agnhost webhook", format!("{ratio:.2}"), ">= 2.5", ratio >= 2.5);
    let (own, theirs) = (peak(ours.served.process.id()), peak(go.served.process.id()));
    let ratio = own / theirs;
    let measured = format!("{own:.0} MiB, {theirs:.0} MiB, {ratio:.2}");
    report.judged("peak memory, agnhost webhook's, ratio", measured, "<= 0.4", ratio <= 0.4);
    Ok(())
}

/// A server under load, and what it did in each turn.
struct Side {
    served: Served,
    call: Call,
    rates: Vec<f64>,
    costs: Vec<f64>,
}

impl Side {
    fn new(served: Served, path: &str, body: &str) -> Self {
        Self { served, call: Call::post(path, body.to_owned()), rates: Vec::new(), costs: Vec::new() }
    }

    async fn turn(&mut self, counts: bool) -> Result<(), String> {
        let (rate, cost) = self.served.turn(&self.call).await?;
        if counts {
            self.rates.push(rate);
            self.costs.push(cost);
        }
        Ok(())
    }

    /// The median of the ratios of turns that followed each other.
    fn against(&self, other: &Self) -> f64 {
        median(&self.rates.iter().zip(&other.rates).map(|(a, b)| a / b).collect::<Vec<_>>())
    }
}

/// Serves the bytes of a file as the answer to every request, by the webhook's own server: address, directory of the
/// serving pair, file.
pub(crate) async fn serve_fixed(arguments: &[String]) -> ExitCode {
    let served = async {
        let [address, serving, answer] = arguments else { return Err("address, directory, file".to_owned()) };
        tests::install_crypto();
        let body = std::fs::read(answer).map_err(|e| e.to_string())?;
        let fixed = Answer { body, verdict: Verdict::Inject, trace: None };
        let pairs = ServingPairs::watch(vec![PairFiles::in_dir(Path::new(serving))]).map_err(|e| e.to_string())?;
        let tls = pairs.server_config(None).map_err(|e| e.to_string())?;
        let address: SocketAddr = address.parse().map_err(|_| "no address")?;
        let listener = TcpListener::bind(address).await.map_err(|e| e.to_string())?;
        let metrics = server::Metrics::register(&mut prometheus_client::registry::Registry::default());
        let answer: server::Answering = Arc::new(move |_, _| Ok(fixed.clone()));
        server::serve(listener, tls, answer, metrics, std::future::pending()).await;
        Ok::<_, String>(())
    };
    match served.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{FIXED}: {error}");
            ExitCode::FAILURE
        }
    }
}
