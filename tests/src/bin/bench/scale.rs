//! Thousands of namespaces under one API server, a cluster of three in each: the cost of a certificate when all members request
//! at once, and the memory of `approve` and `sign`, at several numbers of namespaces in one run.
//!
//! `ETCD_TLS_SCALE=1000,5000,10000` says the numbers; by default it is 300 and 1,000.

use std::time::{Duration, Instant};

use etcd_tls_contract::{names, role::Role};
use futures::{StreamExt, future::join_all, stream};
use tests::{
    installation::{Installation, Options},
    process::Process,
};
use tokio::time::sleep;

use crate::{
    asks::{self, Ask, ByHand},
    load::{Load, Spent},
    report::Report,
    stats::{cpu, median, memory, peak, percentile},
    wire::{Call, Wire},
};

/// The numbers of namespaces, and the variable that says others.
const NAMESPACES: [u32; 2] = [300, 1000];
const VARIABLE: &str = "ETCD_TLS_SCALE";
const MEMBERS: u32 = 3;
/// Calls at once that make namespaces and pods.
const MAKERS: usize = 16;
/// Connections of the requesters.
const WIRES: usize = 300;
/// Cycles by hand, before and after.
const BY_HAND: usize = 1000;
/// How long nothing happens while what that costs is measured, and what has happened is over before.
const IDLE: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_secs(15);
/// When the requests of the burst are deleted.
const DELETED: Duration = Duration::from_secs(60);
/// How long a process may take to serve.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let sign = ["--delete-issued-after", "20s"].map(ToOwned::to_owned).to_vec();
    let Some(mut installation) = Installation::start(&Options { sign: sign.clone(), ..Options::default() }).await
    else {
        report.skip(
            "thousands of namespaces",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make bench SECTIONS=scale",
        );
        return Ok(());
    };
    let mut numbers = numbers()?;
    numbers.sort_unstable();
    // Two CAs for each cluster: 6,000 clusters have as many as the policy allows by default.
    let most = numbers.last().map_or(0, |most| most * 2 + MEMBERS);
    tests::policy::set(&installation.api.client, &format!("authoritiesInAll: {}", most.max(8000) * 2)).await;
    let address = asks::address(&installation.api);
    let mut admin = Wire::open(address, asks::admin(&installation.api)).await?;
    let mut wires = Wire::open_many(WIRES, address, &asks::nobody(&installation.api)).await?;
    let writers = asks::writers(&installation.api).await;
    let (mut from, mut sizes) = (0, Vec::new());
    for number in numbers {
        let began = Instant::now();
        let all = members(&installation, from..number).await;
        let asked = format!("{number} namespaces: {} members", all.len());
        println!("  {asked} made in {:.0} s", began.elapsed().as_secs_f64());
        sleep(SETTLED).await;

        let load = Load::new(&installation);
        let hand = async |wires: &mut [Wire], turn: &str| {
            ByHand::new(&format!("{turn}-{number}"), BY_HAND, &writers).rate_shared(wires).await
        };
        let before = hand(&mut wires, "before").await?;
        let (mut spent, stored) = (Spent::default(), etcd_bytes(&installation, &mut admin).await?);
        let burst = load.of(&mut spent, &mut admin, at_once(&mut wires, &all)).await.map_err(|e| {
            let [approve, sign] = [&installation.approve, &installation.sign].map(Process::log_end);
            format!("{e}\napprove: {approve}\nsign: {sign}")
        })?;
        let written = etcd_bytes(&installation, &mut admin).await? - stored;
        let bare = median(&[before, hand(&mut wires, "after").await?]);
        let count = all.len() as f64;
        report.plain(format!("{asked} ask at once, rate"), format!("{:.0}/s", count / burst.0));
        let ratio = count / burst.0 / bare;
        let name = format!("{number} namespaces: rate against create, approval, status by hand ({bare:.0}/s)");
        report.judged(name, format!("{ratio:.2}"), ">= 0.55", ratio >= 0.55);
        report.plain(
            format!("{number} namespaces: p50 and p99"),
            format!("{:.0} ms, {:.0} ms", median(&burst.1), percentile(&burst.1, 0.99)),
        );
        report.plain(format!("{number} namespaces: calls for a certificate"), spent.calls(count));
        report.plain(format!("{number} namespaces: CPU for a certificate"), spent.cpu(count));
        report.plain(
            format!("{number} namespaces: etcd's file for a certificate, history included"),
            format!("{:.1} KiB", written / 1024.0 / count),
        );
        sizes.push((number, held(report, &installation, number)));
        idle(report, &installation, &mut admin, number).await?;
        start(report, &mut installation, &mut admin, number, &sign).await?;
        from = number;
    }
    if let [(few, [a1, s1]), .., (many, [a2, s2])] = sizes.as_slice() {
        let each = |few_mib: &f64, many_mib: &f64| (many_mib - few_mib) * 1024.0 / f64::from(many - few);
        for (name, each) in [("approver", each(a1, a2)), ("signer", each(s1, s2))] {
            let figure = format!("{name}, memory of one namespace more, from {few} to {many}");
            report.judged(figure, format!("{each:.1} KiB"), "<= 8 KiB", each <= 8.0);
        }
    }
    Ok(())
}

fn numbers() -> Result<Vec<u32>, String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(NAMESPACES.to_vec()) };
    text.split(',').map(|n| n.trim().parse().map_err(|e| format!("{VARIABLE}={text}: {n}: {e}"))).collect()
}

/// Makes namespaces with a cluster in each, and what each member asks.
async fn members(installation: &Installation, numbers: std::ops::Range<u32>) -> Vec<Ask> {
    let made = stream::iter(numbers).map(|n| async move {
        let namespace = format!("tenant-{n}");
        installation.api.namespace(&namespace, &[(names::LABEL, names::DYNAMIC)]).await;
        let mut asks = Vec::new();
        for m in 0..MEMBERS {
            let (name, address) = (format!("etcd-{m}"), n * MEMBERS + m);
            let asker = asks::asker(&installation.api, &namespace, &name, "default", address).await;
            asks.extend(asker.asks(&[Role::Peer]));
        }
        asks
    });
    made.buffer_unordered(MAKERS).concat().await
}

/// All of them ask, as many at once as there are wires; how long it took, in seconds, and each of them, in milliseconds.
async fn at_once(wires: &mut [Wire], asks: &[Ask]) -> Result<(f64, Vec<f64>), String> {
    let began = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let workers = wires.iter_mut().map(|wire| async {
        let mut latencies = Vec::new();
        while let Some(ask) = asks.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            latencies.push(asks::get_certificate(wire, ask).await?);
        }
        Ok::<_, String>(latencies)
    });
    let latencies = join_all(workers).await.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    Ok((began.elapsed().as_secs_f64(), latencies))
}

/// The size of the file of the API server's etcd.
async fn etcd_bytes(installation: &Installation, wire: &mut Wire) -> Result<f64, String> {
    let metrics = wire.succeed(&Call::get("/metrics")).await?;
    let text = String::from_utf8_lossy(&metrics).into_owned();
    let line = text.lines().find(|line| line.starts_with("apiserver_storage_size_bytes{"));
    let size = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    size.ok_or_else(|| format!("no size of {} in the API server's metrics", installation.api.etcd_url()))
}

/// The memory of the processes, in MiB: `approve` and `sign`.
fn held(report: &mut Report, installation: &Installation, number: u32) -> [f64; 2] {
    [("approver", installation.approve.id()), ("signer", installation.sign.id())].map(|(name, pid)| {
        let (now, most) = (memory(pid), peak(pid));
        let figure = format!("{number} namespaces: {name}, resident (anonymous; the most)");
        let measured = format!("{:.1} MiB ({:.1} MiB; {most:.1} MiB)", now.resident, now.anonymous);
        report.judged(figure, measured, "<= 64 MiB", most <= 64.0);
        now.anonymous
    })
}

/// Writes to the API server but those of Leases, and its refusals.
async fn writes(wire: &mut Wire) -> Result<(f64, f64), String> {
    let metrics = wire.succeed(&Call::get("/metrics")).await?;
    let (mut writes, mut refusals) = (0.0, 0.0);
    for line in String::from_utf8_lossy(&metrics).lines() {
        let Some(line) = line.strip_prefix("apiserver_request_total{") else { continue };
        let count: f64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        let is =
            |label: &str, values: &[&str]| values.iter().any(|value| line.contains(&format!("{label}=\"{value}\"")));
        if is("verb", &["POST", "PUT", "PATCH", "APPLY", "DELETE"])
            && !is("resource", &["leases"])
            && is("dry_run", &[""])
        {
            writes += count;
        }
        if is("code", &["429"]) {
            refusals += count;
        }
    }
    Ok((writes, refusals))
}

/// The usage of the processes at rest.
async fn idle(report: &mut Report, installation: &Installation, wire: &mut Wire, number: u32) -> Result<(), String> {
    // Requests are deleted twenty seconds after their certificates here.
    sleep(DELETED).await;
    let processes = [("approver", installation.approve.id()), ("signer", installation.sign.id())];
    let before = processes.map(|(_, pid)| cpu(pid));
    let (writes_before, _) = writes(wire).await?;
    sleep(IDLE).await;
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let share = (cpu(pid) - before) / IDLE.as_secs_f64() * 100.0;
        report.judged(
            format!("{number} namespaces: {name}, idle"),
            format!("{share:.2} % of a core"),
            "< 1 %",
            share < 1.0,
        );
    }
    let written = writes(wire).await?.0 - writes_before;
    report.judged(format!("{number} namespaces: writes in {IDLE:?} idle"), format!("{written:.0}"), "0", written < 1.0);
    Ok(())
}

/// A signer that starts beside all of them.
async fn start(
    report: &mut Report,
    installation: &mut Installation,
    wire: &mut Wire,
    number: u32,
    arguments: &[String],
) -> Result<(), String> {
    let (_, before) = writes(wire).await?;
    let began = Instant::now();
    installation.restart_sign(arguments).await;
    let asker =
        asks::asker(&installation.api, "tenant-0", &format!("late-{number}"), "default", 0x00f0_0000 + number).await;
    let mut one = Wire::open(asks::address(&installation.api), asks::nobody(&installation.api)).await?;
    asks::get_certificate(&mut one, &asker.asks(&[Role::Peer])[0]).await?;
    let took = began.elapsed();
    report.judged(
        format!("{number} namespaces: first certificate of a signer that starts"),
        format!("{:.1} s", took.as_secs_f64()),
        "<= 60 s",
        took <= LIMIT / 5,
    );
    let refused = writes(wire).await?.1 - before;
    report.judged(format!("{number} namespaces: 429s at its start"), format!("{refused:.0}"), "0", refused < 1.0);
    sleep(SETTLED).await;
    let most = peak(installation.sign.id());
    report.judged(
        format!("{number} namespaces: the most that it held"),
        format!("{most:.1} MiB"),
        "<= 64 MiB",
        most <= 64.0,
    );
    Ok(())
}
