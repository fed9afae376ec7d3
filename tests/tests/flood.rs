//! A pod that makes requests as fast as it can, the smallest and the largest that the admission policy permits: the objects
//! that remain, and the growth of the API server's etcd.
//!
//! The short form takes half a minute. With `ETCD_TLS_SOAK` it takes ten minutes, or 5,000 requests if those take longer.

#[path = "sign/beside.rs"]
mod beside;
#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use base64::Engine;
use beside::Beside;
use etcd_tls_contract::role::Role;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use lab::{LIMIT, Lab};
use serde_json::{Value, json};
use signer::{csrs, issue, member, sign};
use tests::eventually;

/// Requests of one pod that are under way at once.
const AT_ONCE: usize = 8;
/// KiB by which etcd's file may grow for one request before it is compacted: the object of at most 20 KiB as JSON, written
/// at most four times (made, approved, issued, deleted), its Event, and a third for etcd's pages.
const KIB_OF_HISTORY: u64 = 96;
/// Bytes that one request may leave in etcd when its history is compacted.
const BYTES_LEFT: u64 = 512;

/// Bytes of an etcd's file, and bytes of it that are in use.
struct Size {
    file: u64,
    in_use: u64,
}

fn etcdctl(lab: &Lab, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", lab.api.etcd_url()])
        .args(arguments)
        .output()
        .expect("run etcdctl");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn status(lab: &Lab) -> Value {
    let text = etcdctl(lab, &["endpoint", "status", "--write-out=json"]).expect("etcd's status");
    serde_json::from_str::<Value>(&text).expect("JSON")[0]["Status"].clone()
}

fn size(lab: &Lab) -> Size {
    let status = status(lab);
    let of = |key: &str| status[key].as_u64().unwrap_or_else(|| panic!("no {key} in {status}"));
    Size { file: of("dbSize"), in_use: of("dbSizeInUse") }
}

/// Forgets the history, as an API server's etcd does every five minutes.
fn compact(lab: &Lab) {
    let revision = status(lab)["header"]["revision"].as_u64().expect("a revision");
    let done = etcdctl(lab, &["compact", "--physical", &revision.to_string()]);
    // Nothing was written since the last time.
    assert!(done.as_ref().err().is_none_or(|e| e.contains("has been compacted")), "{done:?}");
}

/// The smallest request that the policy lets through, or the largest.
fn request(pod: &Pod, n: usize, large: bool) -> Value {
    let key = rcgen::KeyPair::generate().expect("a key");
    let pem = rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
    let uid = pod.uid().expect("a uid");
    let (name, pem, labels) = if large {
        // The API server reads PEM after any text.
        let name = format!("etcd-tls-{uid}-{n:0200}");
        let pem = format!("{}\n{pem}", "x".repeat(4096 - 1 - pem.len()));
        let labels: serde_json::Map<_, _> = (0..15).map(|n| (format!("k{n:03}"), json!("v".repeat(60)))).collect();
        (name, pem, Value::Object(labels))
    } else {
        (format!("etcd-tls-{uid}-{n}"), pem, json!({}))
    };
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "signerName": "peer.etcd-tls.dev/flood.etcd",
            "usages": ["digital signature"],
            "expirationSeconds": 600,
        },
    })
}

async fn create(client: &Client, body: &Value) -> kube::Result<()> {
    let request = hyper::Request::post("/apis/certificates.k8s.io/v1/certificatesigningrequests")
        .header("Content-Type", "application/json")
        .header("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        .body(body.to_string().into_bytes())
        .expect("a request");
    client.request::<Value>(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_2_a_flood_of_requests_leaves_nothing_and_grows_etcd_by_little() {
    let Some(lab) = Lab::new().await else { return };
    // The policy on requests counts here.
    lab.api.kubectl(&["delete", "clusterrolebinding", "request-anything"]);
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/flow.yaml").display().to_string()]);
    let soak = std::env::var_os("ETCD_TLS_SOAK").is_some();
    let (length, at_least) = if soak { (Duration::from_secs(600), 5000) } else { (Duration::from_secs(30), 100) };
    let approver = lab.approver("approve-a", &[]);
    // The honest pod asks each second.
    let of_signer = [
        "--delete-issued-after=5s",
        "--delete-refused-after=5s",
        "--check-pending-every=2s",
        "--certificates-per-pod=1024",
    ];
    let signer = sign(&lab, "sign-a", &of_signer).await;
    lab.ready(&approver).await;
    lab.api.namespace("flood", &[("etcd-tls", "dynamic")]).await;
    lab.api.namespace("honest", &[("etcd-tls", "dynamic")]).await;
    let pod = member(&lab, "flood", "etcd-0", Some("10.1.0.1")).await;
    let honest = member(&lab, "honest", "etcd-0", Some("10.1.0.2")).await;
    let client = lab.requester(&pod).await;
    // The policy is in force, and both may request.
    issue(&lab, &pod, Role::Peer, None).await;
    issue(&lab, &honest, Role::Peer, None).await;
    let mut too_large = request(&pod, 0, true);
    too_large["metadata"]["labels"]["one"] = "v".repeat(60).into();
    too_large["metadata"]["labels"]["two"] = "v".repeat(60).into();
    eventually("the policy on requests to be in force", LIMIT, || async {
        match create(&client, &too_large).await {
            Err(kube::Error::Api(status)) if status.message.contains("1 KiB") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let processes = [("approve", approver.process.id()), ("sign", signer.id())];
    let mut beside = Beside::new(&lab, &honest).await;
    // What a flood makes a process keep, such as buffers, is little, and does not grow by the second.
    let began = processes.map(|(_, id)| memory_kib(id));
    let mut held = Vec::new();
    for large in [false, true] {
        flood(&lab, &pod, &mut beside, &client, large, length / 2, at_least / 2).await;
        held.push(processes.map(|(_, id)| memory_kib(id)));
    }
    println!("the longest honest request took {:?}", beside.longest());
    beside.within_a_second();
    for (n, (name, _)) in processes.iter().enumerate() {
        let (first, second) = (held[0][n], held[1][n]);
        println!(
            "{name}: {} MiB of its own before, {} MiB after the smallest requests, {} MiB after the largest",
            began[n] / 1024,
            first / 1024,
            second / 1024
        );
        for (after, before) in [(first, began[n]), (second, began[n])] {
            assert!(after < before + 24 * 1024, "{name} holds {after} KiB, and held {before} KiB before");
        }
    }
}

/// Memory of a process that is its own.
fn memory_kib(id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).expect("a running process");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("its anonymous memory");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

async fn flood(
    lab: &Lab,
    pod: &Pod,
    beside: &mut Beside<'_>,
    client: &Client,
    large: bool,
    length: Duration,
    at_least: usize,
) {
    compact(lab);
    let before = size(lab);
    let start = Instant::now();
    let made = AtomicUsize::new(0);
    let attack = futures::future::join_all((0..AT_ONCE).map(|worker| {
        let made = &made;
        async move {
            let mut n = worker;
            while start.elapsed() < length || made.load(Ordering::Relaxed) < at_least {
                n += AT_ONCE;
                match create(client, &request(pod, n, large)).await {
                    Ok(()) => made.fetch_add(1, Ordering::Relaxed),
                    // Too many at once: made again, as any client does.
                    Err(kube::Error::Api(status)) if status.code == 429 => 0,
                    Err(error) => panic!("{error}"),
                };
            }
        }
    }));
    let honest = async {
        while start.elapsed() < length {
            beside.turn(Role::Peer).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::join!(async { drop(attack.await) }, honest);
    let made = made.into_inner();
    let after = size(lab);
    eventually("no request to be left", LIMIT, || async {
        match csrs(lab).await.len() {
            0 => Ok(()),
            n => Err(format!("{n} requests are left")),
        }
    })
    .await;
    compact(lab);
    // etcd frees the pages with its next commits, after the compaction has ended.
    let most = BYTES_LEFT * made as u64 + (4 << 20);
    let left = eventually("etcd to have no more in use than before", LIMIT, || async {
        let left = size(lab).in_use.saturating_sub(before.in_use);
        if left <= most { Ok(left) } else { Err(format!("{left} bytes more for {made} requests")) }
    })
    .await;
    let kind = if large { "largest" } else { "smallest" };
    let history = after.file.saturating_sub(before.file) / 1024;
    println!(
        "{made} of the {kind} requests in {:?}: etcd's file grew by {history} KiB, {:.1} KiB a request; compacted, {left} bytes more are in use",
        start.elapsed(),
        history as f64 / made as f64,
    );
    assert!(made >= at_least, "{made}");
    // etcd grows its file in steps of 16 MiB.
    assert!(history <= KIB_OF_HISTORY * made as u64 + 32 * 1024, "{history} KiB for {made}");
}
