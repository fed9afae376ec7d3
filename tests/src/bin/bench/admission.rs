//! Admission: the CPU that a review takes in the process, and its throughput over TLS against the same server's fixed
//! answers.

use std::{net::SocketAddr, process::Command, time::Duration};

use etcd_tls_webhook::{
    admit::review::{Admission, Verdict, review},
    injection::Config,
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
/// The size of the pod that is reviewed.
const POD_BYTES: usize = 4096;
const BATCHES: usize = 40;
const BATCH: u32 = 100;

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let body = admission::review("705ab4f5-6393-11e8-b7cc-42010a800002", "prod", &pod()).to_string();
    in_process(report, body.as_bytes())?;
    over_tls(report, body).await
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

fn in_process(report: &mut Report, body: &[u8]) -> Result<(), String> {
    let injection = Config { sidecar_image: IMAGE.to_owned(), image_pull_policy: None, host: None };
    let admission = Admission { injection, leave_out: ["kube-system".to_owned()].into() };
    let once = || match review(body, &admission) {
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

async fn over_tls(report: &mut Report, body: String) -> Result<(), String> {
    let directory = TempDir::new("bench-admit");
    let ca = Ca::new("bench");
    ca.write_role(&directory.join("serving"), &LeafOptions::default());
    let address = SocketAddr::from(([127, 0, 0, 1], ports::loopback()));
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["admit", "--sidecar-image", IMAGE, "--address", &address.to_string()]);
    command.arg("--serving-dir").arg(directory.join("serving"));
    command.arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
    let server = Process::spawn("admit", &mut command, directory.path());
    let config = client_config(&ca.pem, None);
    Wire::open_when_up(address, &config).await?;
    let mut wires = Wire::open_many(CONNECTIONS, address, &config).await?;

    let ours = Call::post("/mutate", body);
    // The route's answer to any method but POST is a fixed text.
    let fixed = Call::get("/mutate");
    let (mut reviews, mut answers, mut ratios, mut costs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        let before = cpu(server.id());
        let a = throughput(&mut wires, &ours, StatusCode::OK, TURN).await?;
        let used = cpu(server.id()) - before;
        let b = throughput(&mut wires, &fixed, StatusCode::METHOD_NOT_ALLOWED, TURN).await?;
        // The first turn warms both up.
        if turn > 0 {
            reviews.push(a);
            answers.push(b);
            ratios.push(a / b);
            costs.push(used * 1e6 / (a * TURN.as_secs_f64()));
        }
    }
    report.plain("reviews over TLS, 64 connections", format!("{:.0}/s", median(&reviews)));
    report.plain("a fixed body by the same server", format!("{:.0}/s", median(&answers)));
    report.plain("CPU of the server for a review over TLS", format!("{:.0} µs", median(&costs)));
    let ratio = median(&ratios);
    report.judged("reviews against the fixed body", format!("{ratio:.2}"), ">= 0.5", ratio >= 0.5);
    Ok(())
}
