//! Rollovers of a live cluster on a real API server, as installed: members that the webhook admitted, with their sidecars and
//! real etcds, `approve` and `sign` with their shipped rights; and the signer killed wherever it can be.

#[path = "rollover/cut.rs"]
mod cut;
#[path = "rollover/forced.rs"]
mod forced;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::role::Role;
use tests::{
    etcd::EtcdBinary,
    eventually,
    live::{LIMIT, Live},
    say,
    sidecar_cluster::FakeClock,
    tier,
};
use tokio::time::sleep;

/// Each phase of the signer's rollover, and each part of it that others have, is one in which it dies. Then a rollover in
/// which it dies again and again, at no particular time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_killed_in_every_phase_of_a_live_clusters_rollover() {
    if !tier::soak("rollovers of a live cluster with the signer killed in every phase (four minutes)") {
        return;
    }
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        let Some(mut live) = Live::start(&etcd, "20s", None).await else { return };
        let start = Instant::now();
        let work = live.workload();
        in_every_phase(&mut live).await;
        let took = start.elapsed();
        let kills = live.kills;
        again_and_again(&mut live).await;
        let report = work.stop().await.expect("read etcd");
        let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
        say(&format!(
            "etcd {}: a rollover with the signer killed in {kills} places in {took:.0?}, and one with it killed {} times, \
             {:.0?} in all, {ends} restarts, at most {most_away} away: {report}",
            etcd.version,
            live.kills - kills,
            start.elapsed()
        ));
        assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
        assert!(report.writes > 20, "the client hardly worked: {report}");
        assert_eq!((most_away, ends), (1, 12), "one restart of each member for each change of a bundle");
    }
}

/// Its clock is an hour slow while the members load the new CA, then an hour fast and again slow while that signs. Certificates
/// that it signs while it is slow have expired for everybody else, and nobody installs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signers_clock_an_hour_off_in_the_middle_of_a_rollover() {
    if !tier::soak("a rollover with the signer's clock an hour off (five minutes)") {
        return;
    }
    let (Some(etcd), Some(library)) = (tier::etcd(), tier::faketime()) else { return };
    let clock = FakeClock::new(library);
    // A certificate is renewed at 60 % of its lifetime at the latest, so it outlives the time of wrong clocks and the pauses
    // after a refusal.
    let Some(live) = Live::start(&etcd, "180s", Some(&clock)).await else { return };
    let start = Instant::now();
    let work = live.workload();
    let old = live.begin("peer").await;
    live.ended(1).await;
    let wrong = async |seconds: i64| {
        clock.step(seconds);
        sleep(Duration::from_secs(20)).await;
        clock.step(0);
    };
    // Fast, the old CA would sign leaves of an hour from now, and be kept until their end.
    wrong(-3600).await;
    live.phase("peer", "signing").await;
    wrong(3600).await;
    wrong(-3600).await;
    live.phase("peer", "stable").await;
    live.settled(6).await;
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    let report = work.stop().await.expect("read etcd");
    let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
    say(&format!(
        "etcd {}: the signer's clock an hour off three times, {:.0?} in all, {ends} restarts, at most {most_away} away: {report}",
        etcd.version,
        start.elapsed()
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!((most_away, ends), (1, 6), "one restart of each member for each change of the bundle");
}

/// The clock of everything, API server, etcds and clients included, is an hour fast while the members load the new CA, and
/// right again before they are done. Then it goes on by hours until the old CA's leaves have ended, and back while the
/// members forget it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_clock_stepped_in_the_middle_of_a_rollover() {
    let (Some(etcd), Some(clock)) = (tier::etcd(), tier::machine_clock()) else { return };
    let Some(live) = Live::start(&etcd, "5400s", None).await else { return };
    let start = Instant::now();
    let work = live.workload();
    let old = live.begin("peer").await;
    live.ended(1).await;
    clock.step(3600);
    live.ended(2).await;
    clock.step(-3600);
    live.phase("peer", "signing").await;
    for _ in 0..3 {
        clock.step(3600);
        sleep(Duration::from_secs(10)).await;
    }
    live.phase("peer", "stable").await;
    live.ended(4).await;
    clock.step(-3600);
    live.settled(6).await;
    // Leaves of an hour ago are of the future now: they are renewed.
    clock.step(-3600);
    for member in 0..live.places.len() {
        eventually("a leaf of its time", LIMIT, || async {
            let leaf = live.leaf(member, Role::Peer);
            if leaf.not_before < SystemTime::now() { Ok(()) } else { Err(leaf.serial) }
        })
        .await;
    }
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    let report = work.stop().await.expect("read etcd");
    let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
    say(&format!(
        "etcd {}: the machine's clock stepped by an hour seven times, {:.0?} in all, {ends} restarts, at most {most_away} away: \
         {report}",
        etcd.version,
        start.elapsed()
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert_eq!((most_away, ends), (1, 6), "one restart of each member for each change of the bundle");
}

async fn in_every_phase(live: &mut Live) {
    let old = live.begin("peer").await;
    live.kill_sign("as it has begun").await;
    live.ended(1).await;
    live.kill_sign("when the first member has restarted").await;
    live.ended(3).await;
    live.kill_sign("when the last member has restarted").await;
    live.phase("peer", "signing").await;
    live.kill_sign("as the new CA signs").await;
    let new_leaf = |live: &Live| (0..3).any(|n| !old.contains_issuer_of(&live.leaf(n, Role::Peer)));
    eventually("a first leaf of the new CA", LIMIT, || async { if new_leaf(live) { Ok(()) } else { Err("none") } })
        .await;
    live.kill_sign("when the first leaf is of the new CA").await;
    live.phase("peer", "stable").await;
    live.kill_sign("as the old CA goes").await;
    live.ended(4).await;
    live.kill_sign("when the first member has restarted without the old CA").await;
    live.settled(6).await;
    let new = live.bundle("peer").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    for n in 0..3 {
        assert!(new.contains_issuer_of(&live.leaf(n, Role::Peer)), "etcd-{n} has a leaf of the new CA");
    }
}

async fn again_and_again(live: &mut Live) {
    let old = live.begin("client").await;
    live.rollover("client", &["--confirm-clients"]).await.expect("confirm the clients");
    let start = Instant::now();
    let mut over = false;
    while !over {
        assert!(start.elapsed() < 2 * LIMIT, "it is not over: {:?}", live.rollover("client", &["--status"]).await);
        live.kill_sign("at any time").await;
        // It needs a second to start, and leads at once: its Lease is its own.
        sleep(Duration::from_secs(5)).await;
        let bundle = live.bundle("client").await;
        over = bundle.certificates().len() == 1 && bundle != old;
    }
    live.settled(12).await;
    let new = live.bundle("client").await;
    for n in 0..3 {
        assert!(new.contains_issuer_of(&live.leaf(n, Role::Server)), "etcd-{n} has a leaf of the new CA");
    }
}
