//! Revocation on three members under load: from the command to the first refused handshake on each of them, the failures of others
//! meanwhile, and the cost of a long list for a handshake.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{certificate::Chain, crl::Reason, names, role::Role};
use etcd_tls_webhook::ca::crl;
use futures::future::join_all;
use rustls::client::Resumption;
use tests::{
    etcd::{EtcdBinary, EtcdCluster, MemberTls},
    etcd_client::{Answer, Connection, answer, takes},
    eventually,
    installation::LIMIT,
    live::{Live, NAMESPACE, Place, files_of},
    pki::client_config_of,
    revocation::revoke,
};
use tokio::time::sleep;

use crate::{
    report::Report,
    rotation::Files,
    stats::{median, ms, percentile},
};

/// Revocations of which the refusals are awaited, each taken back after it: of a client, and of a peer. And all revocations.
const TIMED: usize = 40;
const TIMED_PEERS: usize = 20;
const ALL: usize = 200;
/// The pause between two handshakes of who is revoked with a member.
const PAUSE: Duration = Duration::from_millis(5);
/// The goal for every member.
const GOAL: Duration = Duration::from_secs(5);

/// Entries of the lists that etcd reads at a handshake: none, the most of an authority, and more than any has.
const ENTRIES: [usize; 3] = [0, 2048, 10_000];
const TURNS: usize = 5;
const HANDSHAKES: usize = 100;

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let Some(etcd) = EtcdBinary::find() else {
        report.skip("revocation", "no etcd", "apt-get install etcd-server etcd-client, or ETCD=<path>");
        return Ok(());
    };
    revocations(report, &etcd).await?;
    handshakes(report, &etcd).await
}

/// The installed system and three members. No ConfigMap is mounted anew: kubelet's next sync never comes.
async fn revocations(report: &mut Report, etcd: &EtcdBinary) -> Result<(), String> {
    let Some(mut live) = Live::start(etcd, "5400s", None).await else {
        report.skip(
            "the time from the command to refusals",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make bench",
        );
        return Ok(());
    };
    let app = live.client("revoked", 8).await;
    let files = files_of(&app);
    let urls: Vec<String> = live.places.iter().map(Place::client_url).collect();
    let (admin, cluster) = (live.installation.api.kubeconfig.clone(), format!("{NAMESPACE}/etcd"));
    live.installation.hold_mounts(true);
    let work = live.workload();
    let of_client = timed(&admin, &cluster, &files, &urls, TIMED).await?;
    let urls: Vec<String> = live.places.iter().map(Place::peer_url).collect();
    let of_peer = timed(&admin, &cluster, &live.certs[2].join(Role::Peer.as_str()), &urls, TIMED_PEERS).await?;
    for n in TIMED + TIMED_PEERS..ALL {
        // A number that no certificate has: only the list grows.
        revoke(&admin, &[&cluster, "--serial", &format!("4f{n:06x}"), "--at-once"]).await?;
    }
    let account = work.stop().await.map_err(|e| e.to_string())?;
    let figure = |values: &[f64]| format!("{:.0} ms, {:.0} ms", percentile(values, 0.5), percentile(values, 0.99));
    for (whose, Timed { commands, each, last }) in [("a client", of_client), ("a peer", of_peer)] {
        report.plain(format!("the command itself, of {whose}, {} times: p50, p99", commands.len()), figure(&commands));
        report.plain("from its start to the first refused handshake, a member: p50, p99", figure(&each));
        report.judged(
            "the same on the last of three members: p50, p99",
            figure(&last),
            "p99 <= 5 s",
            percentile(&last, 0.99) <= ms(GOAL),
        );
    }
    let kept = account.failed == 0 && account.lost.is_empty() && account.unseen.is_empty();
    report.judged(
        format!("operations of others, {ALL} revocations and {} undone", TIMED + TIMED_PEERS),
        format!(
            "{} writes, {} failed, {} lost, {} tried again, longest {:.1} s",
            account.writes,
            account.failed,
            account.lost.len(),
            account.retried,
            account.longest.as_secs_f64()
        ),
        "0 failed",
        kept,
    );
    Ok(())
}

/// Milliseconds from the start of a command: to its end, to the first refusal of each member, and to that of the last member.
#[derive(Default)]
struct Timed {
    commands: Vec<f64>,
    each: Vec<f64>,
    last: Vec<f64>,
}

/// Revokes the certificate in `files` and takes that back, `rounds` times; `urls` have to refuse it.
async fn timed(admin: &Path, cluster: &str, files: &Path, urls: &[String], rounds: usize) -> Result<Timed, String> {
    let chain = fs::read(files.join(names::CERT_FILE)).map_err(|e| e.to_string())?;
    let serial = Chain::parse(&chain).map_err(|e| e.to_string())?.serial;
    let mut timed = Timed::default();
    taken(urls, files).await;
    for _ in 0..rounds {
        let start = Instant::now();
        let probe = |url: &String| tokio::spawn(refused(url.clone(), files.to_owned(), start));
        let probes: Vec<_> = urls.iter().map(probe).collect();
        revoke(admin, &[cluster, "--serial", &serial, "--at-once"]).await?;
        timed.commands.push(ms(start.elapsed()));
        let mut times = Vec::new();
        for probe in join_all(probes).await {
            times.push(ms(probe.map_err(|e| e.to_string())??));
        }
        timed.last.push(times.iter().copied().fold(0.0, f64::max));
        timed.each.append(&mut times);
        revoke(admin, &[cluster, "--serial", &serial, "--undo"]).await?;
        taken(urls, files).await;
    }
    Ok(timed)
}

/// Waits until every member takes the certificate.
async fn taken(urls: &[String], files: &Path) {
    for url in urls {
        let takes = || async { if takes(url, files).await { Ok(()) } else { Err("refused") } };
        eventually("the certificate is taken", LIMIT, takes).await;
    }
}

/// When a member first refuses the certificate by an alert of TLS, after `start`.
async fn refused(url: String, files: PathBuf, start: Instant) -> Result<Duration, String> {
    loop {
        let said = answer(&url, &files).await;
        if said == Answer::Refused {
            break;
        }
        if start.elapsed() > LIMIT {
            return Err(format!("{url} does not refuse a revoked certificate within {LIMIT:?}: {said:?}"));
        }
        sleep(PAUSE).await;
    }
    Ok(start.elapsed())
}

/// One member and lists of several lengths in turns, each signed as `sign` signs its own.
async fn handshakes(report: &mut Report, etcd: &EtcdBinary) -> Result<(), String> {
    let mut cluster = EtcdCluster::new(etcd, 1);
    let dir = cluster.directory().dir("tls");
    let mut files = Files::new(&dir)?;
    files.swap(false)?;
    let role = dir.join(Role::Server.as_str());
    let list = cluster.directory().join("list.crl");
    cluster = cluster.with_tls(|_| MemberTls { server: Some(role.clone()), peer: None });
    cluster.members[0].arguments = vec![format!("--client-crl-file={}", list.display())];
    let mut lists = Vec::new();
    for (number, entries) in (1_u64..).zip(ENTRIES) {
        lists.push(signed(&files, number, entries)?);
    }
    put(&list, &lists[0])?;
    cluster.start().await;
    let url = cluster.members[0].client_url();
    // Each handshake is a whole one.
    let mut config = client_config_of(&role)?.as_ref().clone();
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..TURNS {
        for (times, der) in times.iter_mut().zip(&lists) {
            put(&list, der)?;
            for _ in 0..HANDSHAKES {
                let start = Instant::now();
                // Under TLS 1.3 the client is done before the server has looked at its certificate: one answer is awaited.
                let mut connection =
                    Connection::open(&url, Some(Arc::clone(&config))).await.map_err(|e| e.to_string())?;
                connection.get("/version").await.map_err(|e| e.to_string())?;
                times.push(ms(start.elapsed()));
            }
        }
    }
    let empty = median(&times[0]);
    report.plain("a handshake and one answer of etcd, empty list: p50", format!("{empty:.2} ms"));
    for ((entries, times), der) in ENTRIES.iter().zip(&times).zip(&lists).skip(1) {
        report.plain(
            format!("the same, {entries} entries ({} KiB)", der.len() / 1024),
            format!("{:.2} ms ({:.2} of that)", median(times), median(times) / empty),
        );
    }
    Ok(())
}

/// A list with as many serial numbers as long as real ones.
fn signed(files: &Files, number: u64, entries: usize) -> Result<Vec<u8>, String> {
    let now = SystemTime::now();
    let serials: Vec<String> = (0..entries).map(|n| format!("4f{n:030x}")).collect();
    let revoked = serials.iter().map(|serial| crl::Revoked { serial, at: now, reason: Reason::Superseded });
    let list = crl::sign(files.authority(), number, revoked, now).map_err(|e| e.to_string())?;
    Ok(list.der().to_vec())
}

/// Puts a list in place by a rename, as the sidecar does.
fn put(path: &Path, der: &[u8]) -> Result<(), String> {
    let next = path.with_extension("next");
    fs::write(&next, der).and_then(|()| fs::rename(&next, path)).map_err(|e| e.to_string())
}
