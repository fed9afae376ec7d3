//! Admission: the CPU that a review takes in the process, and its throughput over TLS against the same server's fixed
//! answers.
//!
//! The reference is a process of its own: the webhook's very server, with the same serving pair and workers, which reads
//! the same request and gives the bytes of its real answer without looking at it. What is between the two is the review.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};

use etcd_tls_webhook::{
    admit::{
        review::{Admission, Answer, Verdict, review},
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

use crate::{
    report::Report,
    stats::{cpu, median},
    wire::{Call, Wire, throughput},
};

const IMAGE: &str = "etcd-tls-sidecar:bench";
const CONNECTIONS: usize = 64;
/// Turns of ours and the reference, and how long each takes.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_secs(1);
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
    let injection = Config { sidecar_image: IMAGE.to_owned(), image_pull_policy: None, host: None };
    Admission { injection, leave_out: ["kube-system".to_owned()].into() }
}

fn in_process(report: &mut Report, body: &[u8], admission: &Admission) -> Result<(), String> {
    let once = || match review(body, admission) {
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

async fn over_tls(report: &mut Report, body: String, admission: &Admission) -> Result<(), String> {
    let directory = TempDir::new("bench-admit");
    let ca = Ca::new("bench");
    ca.write_role(&directory.join("serving"), &LeafOptions::default());
    let addresses = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], ports::loopback())));
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["admit", "--sidecar-image", IMAGE, "--address", &addresses[0].to_string()]);
    command.arg("--serving-dir").arg(directory.join("serving"));
    command.arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
    let mut ours = Served::start("admit", command, addresses[0], &ca, directory.path()).await?;

    let answer = review(body.as_bytes(), admission).map_err(|e| e.to_string())?;
    let answer = directory.write("answer.json", answer.body);
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.arg(FIXED).arg(addresses[1].to_string()).arg(directory.join("serving")).arg(answer);
    let mut fixed = Served::start("fixed", command, addresses[1], &ca, directory.path()).await?;

    let call = Call::post("/mutate", body);
    let (mut reviews, mut answers, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut costs, mut bare_costs) = (Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        let (a, cost) = ours.turn(&call).await?;
        let (b, bare_cost) = fixed.turn(&call).await?;
        // The first turn warms both up.
        if turn > 0 {
            reviews.push(a);
            answers.push(b);
            ratios.push(a / b);
            costs.push(cost);
            bare_costs.push(bare_cost);
        }
    }
    report.plain("reviews over TLS, 64 connections", format!("{:.0}/s", median(&reviews)));
    report.plain("the same requests, a fixed body of the same bytes", format!("{:.0}/s", median(&answers)));
    report.plain(
        "CPU of the server for a review over TLS, for a fixed body",
        format!("{:.0} µs, {:.0} µs", median(&costs), median(&bare_costs)),
    );
    let ratio = median(&ratios);
    report.judged("reviews against the fixed body", format!("{ratio:.2}"), ">= 0.5", ratio >= 0.5);
    Ok(())
}

/// Serves the bytes of a file as the answer to every request, by the webhook's own server: address, directory of the
/// serving pair, file.
pub(crate) async fn serve_fixed(arguments: &[String]) -> ExitCode {
    let served = async {
        let [address, serving, answer] = arguments else { return Err("address, directory, file".to_owned()) };
        tests::install_crypto();
        let body = std::fs::read(answer).map_err(|e| e.to_string())?;
        let fixed = Answer { body, verdict: Verdict::Inject };
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
