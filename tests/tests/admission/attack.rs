//! Attack 7: connections with unfinished bodies and idle connections, as many as any pod of a cluster can open, against
//! `admit` under the memory limit of its manifest. The bound here is `ulimit -d` (RLIMIT_DATA, all private writable memory,
//! thread stacks included), which is stricter than the manifest's cgroup: a process that reaches it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;

use super::{ALONE, Admit, answer, body, connect, head, is_patch};

/// `resources.limits.memory` of manifests/admit.yaml.
pub(super) const LIMIT_KIB: u64 = 128 * 1024;
const JSON: &str = "Content-Type: application/json\r\n";

/// An honest review on `stream`, or on a new connection where that one was closed; how long it took.
async fn review(admit: &Admit, stream: &mut Option<TlsStream<TcpStream>>) -> Duration {
    let body = body();
    let request = [head(JSON, body.len()).as_bytes(), &body].concat();
    let began = Instant::now();
    loop {
        let mut open = match stream.take() {
            Some(open) => open,
            None => admit.connect().await,
        };
        if open.write_all(&request).await.is_ok()
            && let Ok(answered) = answer(&mut open).await
        {
            // An API server repeats a call that is answered with Retry-After, but an honest one need not be.
            assert!(is_patch(&answered), "{} {}", answered.0, String::from_utf8_lossy(&answered.1));
            *stream = Some(open);
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "no answer");
    }
}

fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_are_answered_while_bodies_and_connections_are_held() {
    let _alone = ALONE.lock().await;
    let admit = Arc::new(Admit::start_limited("admit-attack", LIMIT_KIB).await);
    // Beside it one that nobody attacks, by which the machine is judged.
    let beside = Admit::start("admit-beside").await;
    review(&admit, &mut None).await;

    // 1,024 connections that were used once and are kept.
    let mut oldest = None;
    let mut idle = Vec::new();
    for _ in 0..1024 {
        let mut stream = None;
        review(&admit, &mut stream).await;
        match oldest {
            None => oldest = stream,
            Some(_) => idle.extend(stream),
        }
    }
    // 150 more, each with 3 MB of a body that never ends, again as soon as the server closes it.
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let chunk: Arc<[u8]> = vec![b' '; 3_000_000 / 10].into();
    let mut attackers = Vec::new();
    for _ in 0..150 {
        let (admit, stop, sent, chunk) = (Arc::clone(&admit), Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&chunk));
        attackers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut stream) = connect(admit.port, &admit.ca).await else { continue };
                let _ = stream.write_all(head(JSON, 3_000_001).as_bytes()).await;
                for _ in 0..10 {
                    if stream.write_all(&chunk).await.is_err() {
                        break;
                    }
                    sent.fetch_add(chunk.len(), Ordering::Relaxed);
                }
                // Until it is cut off.
                let _ = timeout(Duration::from_secs(20), answer(&mut stream)).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }));
    }
    // An API server's connection, and one that is created again for each review.
    let (mut kept, mut kept_beside, mut count) = (None, None, 0);
    let (mut worst, mut worst_beside) = (Duration::ZERO, Duration::ZERO);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        worst = worst.max(review(&admit, &mut kept).await).max(review(&admit, &mut None).await);
        worst_beside = worst_beside.max(review(&beside, &mut kept_beside).await).max(review(&beside, &mut None).await);
        count += 2;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sent = sent.load(Ordering::Relaxed) >> 20;
    let peak = peak_kib(admit.process.id()) >> 10;
    println!(
        "{count} reviews beside {sent} MiB of unfinished bodies: {worst:?} at most ({worst_beside:?} \
         where nobody attacks), peak {peak} MiB resident"
    );
    assert!(
        worst < 4 * worst_beside + Duration::from_secs(5),
        "an honest review took {worst:?}, {worst_beside:?} beside"
    );
    assert!(sent > 100, "only {sent} MiB of bodies were sent, so nothing was tried");
    assert!(peak << 10 < LIMIT_KIB, "{peak} MiB resident");
    // The oldest idle connection made room.
    let mut oldest = oldest.expect("a connection");
    assert!(timeout(Duration::from_secs(5), answer(&mut oldest)).await.expect("closed").is_err());
    stop.store(true, Ordering::Relaxed);
    drop(idle);
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
    let metrics = admit.metrics().await;
    let evicted = metrics.lines().find_map(|l| l.strip_prefix("etcd_tls_admit_bodies_evicted_total "));
    assert!(evicted.is_some_and(|n| n != "0"), "{metrics}");
    assert!(metrics.contains("\netcd_tls_panics_total 0\n"), "{metrics}");
}
