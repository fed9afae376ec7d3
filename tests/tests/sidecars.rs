//! The whole of a rotation with the real programs: a sidecar's binary for each member of a real cluster, a client with a
//! sidecar of its own, and a stand-in for API server and signer whose certificates live for seconds.
//!
//! The short form runs always; `ETCD_TLS_SOAK=1` runs the long one: 200 rotations a member and five rollovers, an API that
//! is away for a minute, a clock that is wrong for longer.

use std::time::{Duration, Instant, SystemTime};

use etcd_tls_contract::role::{Domain, Role};
use nix::sys::signal::Signal;
use tests::{
    etcd::EtcdBinary,
    eventually, say,
    sidecar_cluster::{FakeClock, LIMIT, RollOver, Setup, SidecarCluster},
    tier,
    workload::{Report, Workload},
};

/// Pods, three members. A certificate renewed at 60 % of its lifetime has eight seconds left, for a busy machine.
const PODS: Setup<'static> =
    Setup { size: 3, life: Duration::from_secs(20), hosts: false, probe: false, clock: None, foreign: false };

/// The invariants of every test.
fn nothing_lost(report: &Report) {
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_of_seconds_and_nobody_notices() {
    let Some(etcd) = tier::etcd() else { return };
    let (rotations, life) = if tier::soaking() { (200, Duration::from_secs(12)) } else { (3, PODS.life) };
    if !tier::soaking() {
        say("the short form of this test; the long one: ETCD_TLS_SOAK=1 cargo test -p tests --test sidecars");
    }
    let sidecars = SidecarCluster::start(&etcd, Setup { life, ..PODS }).await;
    let work = sidecars.workload();
    let start = Instant::now();
    eventually("each member's leaves have rotated", Duration::from_secs(30 * rotations as u64), || async {
        let asked =
            sidecars.members.iter().flat_map(|pod| [Role::Peer, Role::Server].map(|role| sidecars.asked(pod, role)));
        let least = asked.min().unwrap_or_default();
        if least > rotations { Ok(()) } else { Err(format!("{least} rotations")) }
    })
    .await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: {rotations} leaf rotations a member in {:.0?}: {report}", etcd.version, start.elapsed()));
    nothing_lost(&report);
    assert_eq!(report.watch_breaks, 0, "{report}");
    assert_eq!(sidecars.supervisor.ends().len(), 0, "a leaf needs no restart");
}

/// The client's own bundle is one that nobody loads; its leaf is renewed as the members' are.
async fn rollovers(setup: Setup<'_>) {
    let Some(etcd) = tier::etcd() else { return };
    let rollovers = if tier::soaking() { 5 } else { 1 };
    let sidecars = SidecarCluster::start(&etcd, setup).await;
    let work = sidecars.workload();
    let start = Instant::now();
    for n in 1..=rollovers {
        sidecars.roll_over(n).await;
    }
    let took = start.elapsed();
    let report = work.stop().await.expect("read etcd");
    let ends = sidecars.supervisor.ends().len();
    let what = if setup.hosts { "hosts" } else { "pods" };
    let (away, longest) = (sidecars.supervisor.most_away(), sidecars.supervisor.longest_away());
    say(&format!(
        "etcd {}, {} {what}: {rollovers} rollovers in {took:.0?}, {ends} restarts, at most {away} away, for {longest:.1?} at \
         most: {report}",
        etcd.version, setup.size
    ));
    nothing_lost(&report);
    assert_eq!(away, 1, "members away at the same time");
    assert_eq!(
        ends,
        2 * usize::from(setup.size) * rollovers,
        "one restart of each member for each change of the bundle"
    );
    for pod in &sidecars.members {
        assert!(pod.sidecar.as_ref().is_some_and(|s| s.log().contains("etcd is back, healthy")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_roll_over() {
    if tier::soak("rollovers without a fault, since the one with the API away is one too") {
        rollovers(PODS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_of_five_members_roll_over() {
    if tier::soak("rollovers of five members") {
        rollovers(Setup { size: 5, ..PODS }).await;
    }
}

/// In each rollover the leader is killed when the first member is back from its restart, and is away for a while. Meanwhile nobody else goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_roll_over_while_leaders_are_killed() {
    if !tier::soak("rollovers in which the leader is killed (five minutes)") {
        return;
    }
    let Some(etcd) = tier::etcd() else { return };
    let sidecars = SidecarCluster::start(&etcd, PODS).await;
    let (work, impatient) = (sidecars.workload(), sidecars.impatient_workload());
    let start = Instant::now();
    let (mut killed, mut planned) = (0, 0);
    for n in 1..=5 {
        let rollover = sidecars.rollover(n);
        let before = sidecars.supervisor.ends().len();
        sidecars.publish(&rollover.both);
        ended(&sidecars, before + 1).await;
        // Two at once would be the test's doing.
        for i in 0..3 {
            eventually("it is back", LIMIT, || healthy(&sidecars, i)).await;
        }
        let victim = sidecars.leader().await;
        let before = sidecars.supervisor.ends().len();
        sidecars.supervisor.hold_down(victim);
        let at = Instant::now();
        tokio::time::sleep(Duration::from_secs(8)).await;
        // One whose signal was on its way when the victim died is not ours to call back.
        let ends = sidecars.supervisor.ends();
        let late = ends[before..].iter().filter(|(i, end)| *i != victim && *end > at + Duration::from_secs(3)).count();
        assert_eq!(late, 0, "restarted while {victim} was down: {ends:?}");
        sidecars.supervisor.free(victim);
        killed += 1;
        sidecars.stated(&rollover.both).await;
        sidecars.change_over(rollover).await;
        planned = sidecars.supervisor.ends().len() - killed;
    }
    let took = start.elapsed();
    let (patient, impatient) = (work.stop().await.expect("read etcd"), impatient.stop().await.expect("read etcd"));
    say(&format!(
        "etcd {}: 5 rollovers with the leader killed in each in {took:.0?}, {planned} planned restarts, at most {} away: \
         {patient} and with attempts of 2 s: {impatient}",
        etcd.version,
        sidecars.supervisor.most_away()
    ));
    nothing_lost(&patient);
    nothing_lost(&impatient);
}

/// Where no process namespace is the pod's own, etcd is the process of its pid file, which changes with each restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_roll_over_on_hosts() {
    rollovers(Setup { hosts: true, ..PODS }).await;
}

/// Two clusters at the same time: both wait most of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollovers_go_on_when_the_api_was_away_or_clocks_were_an_hour_off() {
    tokio::join!(the_api_away_in_the_middle_of_a_rollover(), clocks_an_hour_off_in_the_middle_of_a_rollover());
}

/// A cluster at work, in the middle of its first rollover: the first member restarts.
async fn in_a_rollover(etcd: &EtcdBinary, setup: Setup<'_>) -> (SidecarCluster, Workload, RollOver) {
    let sidecars = SidecarCluster::start(etcd, setup).await;
    let work = sidecars.workload();
    let rollover = sidecars.rollover(1);
    sidecars.publish(&rollover.both);
    ended(&sidecars, 1).await;
    (sidecars, work, rollover)
}

/// Members restart without the API, by etcd's own lock; they state their loaded bundles when it is back.
async fn the_api_away_in_the_middle_of_a_rollover() {
    let Some(etcd) = tier::etcd() else { return };
    // A certificate renewed at 60 % of its lifetime at the latest outlives the outage.
    let (life, outage) = if tier::soaking() { (240, 60) } else { (56, 15) };
    let (life, outage) = (Duration::from_secs(life), Duration::from_secs(outage));
    let start = Instant::now();
    let (sidecars, work, rollover) = in_a_rollover(&etcd, Setup { life, ..PODS }).await;
    sidecars.server.state().away = true;
    let (calls, made) = (calls(&sidecars), sidecars.server.made());
    tokio::time::sleep(outage).await;
    let attempts = eventually("somebody asks", LIMIT, || async {
        let attempts = self::calls(&sidecars) - calls;
        if attempts == 0 { Err("nobody yet") } else { Ok(attempts) }
    })
    .await;
    assert_eq!(sidecars.server.made(), made, "the API was there after all");
    // Seven certificates; pauses of a second and more, jittered.
    assert!(attempts < 7 * 5 * outage.as_secs(), "a hot loop: {attempts} attempts in {outage:?}");
    sidecars.server.state().away = false;
    sidecars.stated(&rollover.both).await;
    sidecars.change_over(rollover).await;
    let took = start.elapsed();
    let report = work.stop().await.expect("read etcd");
    say(&format!(
        "etcd {}: the API away for {outage:?}, {attempts} attempts; {took:.0?} in all: {report}",
        etcd.version
    ));
    nothing_lost(&report);
    assert_eq!((sidecars.supervisor.most_away(), sidecars.supervisor.ends().len()), (1, 6));
    // The first, two for each bundle (is it in force, and etcd has loaded it), and one whenever 40 % of a life were over.
    let most = 5 + (took.as_secs_f64() / (0.4 * life.as_secs_f64())).ceil() as usize;
    assert!(sidecars.most_asked() <= most, "{} requests of one role", sidecars.most_asked());
}

fn calls(sidecars: &SidecarCluster) -> u64 {
    sidecars.server.calls.load(std::sync::atomic::Ordering::Relaxed) as u64
}

/// The sidecars' clocks are an hour slow, then an hour fast, then right. While they are slow, certificates are not valid yet
/// for them, and a rollover waits; while they are fast, every leaf has lived half of its life, and is renewed, once.
async fn clocks_an_hour_off_in_the_middle_of_a_rollover() {
    let (Some(etcd), Some(library)) = (tier::etcd(), tier::faketime()) else { return };
    let clock = FakeClock::new(library);
    let life = Duration::from_secs(90 * 60);
    let start = Instant::now();
    let (sidecars, work, rollover) = in_a_rollover(&etcd, Setup { life, clock: Some(&clock), ..PODS }).await;

    let wrong = Duration::from_secs(if tier::soaking() { 60 } else { 6 });
    step(&sidecars, &clock, -3600, wrong).await;
    clock.step(0);
    sidecars.stated(&rollover.both).await;

    sidecars.server.state().authorities = rollover.next;
    let before = sidecars.server.made();
    clock.step(3600);
    // Their clocks are looked at every minute, and whenever something is published.
    sidecars.publish(&rollover.both);
    sidecars.hold(&sidecars.members, &rollover.new).await;
    step(&sidecars, &clock, 3600, wrong).await;
    let renewed = sidecars.server.made() - before;
    assert_eq!(renewed, 7, "each of seven leaves is renewed, and once");
    sidecars.publish(&rollover.new);
    sidecars.stated(&rollover.new).await;

    let before = sidecars.server.made();
    step(&sidecars, &clock, 0, Duration::from_secs(3)).await;
    sidecars.publish(&rollover.new);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = sidecars.server.made() - before;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: clocks an hour off, {:.0?} in all: {report}", etcd.version, start.elapsed()));
    assert_eq!(late, 0, "a clock that is right again renews nothing");
    nothing_lost(&report);
    assert_eq!((sidecars.supervisor.most_away(), sidecars.supervisor.ends().len()), (1, 6));
    // The first, two for each bundle (is it in force, and etcd has loaded it), one by the clock; while clocks were slow, signed
    // certificates were not valid yet and were requested again after pauses of half a minute.
    let most = 6 + if tier::soaking() { 4 } else { 2 };
    assert!(sidecars.most_asked() <= most, "{} requests of one role", sidecars.most_asked());
}

/// Sets the clocks, and looks on for a while: nobody asks, or works, without a pause.
async fn step(sidecars: &SidecarCluster, clock: &FakeClock, seconds: i64, wrong: Duration) {
    let used = || sidecars.pods().map(tests::sidecar_cluster::Pod::processor_time).collect::<Vec<_>>();
    let (before, calls_before) = (used(), calls(sidecars));
    clock.step(seconds);
    tokio::time::sleep(wrong).await;
    let most = used().into_iter().zip(before).map(|(now, before)| now.saturating_sub(before)).max().unwrap_or_default();
    let asked = calls(sidecars) - calls_before;
    assert!(most < wrong / 2, "a sidecar works all the time: {most:?} in {wrong:?} at {seconds} s");
    assert!(asked < 7 * 10 * wrong.as_secs() / 3, "a hot loop: {asked} calls in {wrong:?} at {seconds} s");
}

/// The clock of everything, etcds and clients included, is set an hour back, or ahead, when the first member has restarted
/// to load the next CAs, an hour ahead when those sign, and back when the first member has restarted to forget the old ones.
/// Of leaves of 90 minutes none expires; those of ten minutes all do so at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cas_roll_over_while_the_machines_clock_is_stepped() {
    const HOUR: i64 = 3600;
    let (Some(etcd), Some(clock)) = (tier::etcd(), tier::machine_clock()) else { return };
    for minutes in [90, 10] {
        let sidecars = SidecarCluster::start(&etcd, Setup { life: Duration::from_secs(60 * minutes), ..PODS }).await;
        let work = sidecars.workload();
        let (start, times) = (Instant::now(), if tier::soaking() { 5 } else { 1 });
        for n in 1..=times {
            let rollover = sidecars.rollover(n);
            sidecars.publish(&rollover.both);
            ended(&sidecars, 6 * n - 5).await;
            clock.step(if n % 2 == 1 { -HOUR } else { HOUR });
            ended(&sidecars, 6 * n - 4).await;
            if n % 2 == 1 {
                clock.step(HOUR);
            }
            sidecars.stated(&rollover.both).await;
            sidecars.server.state().authorities = rollover.next;
            // Makes them due.
            clock.step(HOUR);
            sidecars.hold(&sidecars.members, &rollover.new).await;
            sidecars.publish(&rollover.new);
            ended(&sidecars, 6 * n - 2).await;
            clock.step(-HOUR);
            sidecars.stated(&rollover.new).await;
            if n % 2 == 0 {
                clock.step(-HOUR);
            }
        }
        let report = work.stop().await.expect("read etcd");
        say(&format!(
            "etcd {}: {times} rollovers with leaves of {minutes} minutes and the machine's clock stepped four times in each in \
             {:.0?}, {} restarts, at most {} away: {report}",
            etcd.version,
            start.elapsed(),
            sidecars.supervisor.ends().len(),
            sidecars.supervisor.most_away()
        ));
        nothing_lost(&report);
        assert_eq!((sidecars.supervisor.most_away(), sidecars.supervisor.ends().len()), (1, 6 * times));
    }
}

/// Waits until members have ended so many times in all.
async fn ended(sidecars: &SidecarCluster, times: usize) {
    eventually("a member restarts", LIMIT, || async {
        let ends = sidecars.supervisor.ends().len();
        if ends >= times { Ok(()) } else { Err(ends) }
    })
    .await;
}

/// A member is away with its sidecar until its certificates have long expired, once while a rollover begins, which waits for
/// it, and once for the whole of one, whose restarts somebody made by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_certificates_expired_while_it_was_away_comes_back() {
    let Some(etcd) = tier::etcd() else { return };
    let mut sidecars = SidecarCluster::start(&etcd, PODS).await;
    let work = sidecars.workload();

    sidecars.supervisor.hold_down(2);
    sidecars.members[2].sidecar = None;
    let rollover = sidecars.rollover(1);
    sidecars.publish(&rollover.both);
    sidecars.expired(2, Duration::from_secs(5)).await;
    assert_eq!(sidecars.supervisor.ends().len(), 1, "nobody restarts while one is away");
    sidecars.members[2].init().await;
    for role in [Role::Peer, Role::Server] {
        assert_eq!(sidecars.members[2].bundle(role), Some(rollover.both[&role.domain()].clone()), "{role}");
    }
    sidecars.members[2].run();
    sidecars.supervisor.free(2);
    sidecars.stated(&rollover.both).await;
    sidecars.change_over(rollover).await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: a member away until its certificates had expired: {report}", etcd.version));
    nothing_lost(&report);
    // The one that was away loaded the first bundle as it started.
    assert_eq!((sidecars.supervisor.most_away(), sidecars.supervisor.ends().len()), (1, 6));

    sidecars.supervisor.hold_down(2);
    sidecars.members[2].sidecar = None;
    let rollover = sidecars.rollover(2);
    sidecars.publish(&rollover.both);
    installed(&sidecars, |role| rollover.both[&role.domain()].digest()).await;
    by_hand(&sidecars).await;
    sidecars.stated_by(&sidecars.members[..2], &rollover.both).await;
    sidecars.server.state().authorities = rollover.next;
    sidecars.hold(&sidecars.members[..2], &rollover.new).await;
    sidecars.publish(&rollover.new);
    installed(&sidecars, |role| rollover.new[&role.domain()].digest()).await;
    by_hand(&sidecars).await;
    sidecars.stated_by(&sidecars.members[..2], &rollover.new).await;
    sidecars.expired(2, Duration::ZERO).await;

    sidecars.members[2].init().await;
    sidecars.members[2].run();
    sidecars.supervisor.free(2);
    let work = sidecars.workload();
    eventually("the member joins", LIMIT, || healthy(&sidecars, 2)).await;
    sidecars.stated(&rollover.new).await;
    nothing_lost(&work.stop().await.expect("read etcd"));
}

/// A port where somebody else answers: one restart is tried, and no other one when the certificate is renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_never_serves_the_certificate_costs_one_restart() {
    let Some(etcd) = tier::etcd() else { return };
    // Beyond the time after which a port is said to serve another certificate.
    let setup = Setup { size: 1, life: Duration::from_secs(100), foreign: true, ..PODS };
    let sidecars = SidecarCluster::start(&etcd, setup).await;
    let pod = &sidecars.members[0];
    let serial = || pod.leaf(Role::Server).expect("a leaf").serial;
    let (sidecar, first) = (pod.sidecar.as_ref().expect("it runs"), serial());
    let said = |serial: &str| format!("role=server serial={serial:?}");
    eventually("a restart is tried", LIMIT, || async {
        if sidecars.supervisor.ends().len() == 1 { Ok(()) } else { Err(sidecar.log_end()) }
    })
    .await;
    eventually("a renewed certificate is not served, either", LIMIT, || async {
        let lines = sidecar.log();
        let mut lines = lines.lines().filter(|line| line.contains("etcd's port still serves another"));
        if lines.any(|line| !line.contains(&said(&first))) { Ok(()) } else { Err(sidecar.log_end()) }
    })
    .await;
    // It would be tried at once.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(sidecars.supervisor.ends().len(), 1, "{}", sidecar.log());
}

/// Whether a member reaches quorum.
fn healthy(sidecars: &SidecarCluster, i: usize) -> impl Future<Output = Result<(), String>> + use<> {
    sidecars.supervisor.with(|c| c.members[i].healthy_now())
}

/// The time that kubelet gives a container to end. etcd may need longer while a peer accepts its connections and does not
/// answer.
const GRACE: Duration = Duration::from_secs(3);

/// Restarts the first two members, one after the other, as an operator does it while the third is away.
async fn by_hand(sidecars: &SidecarCluster) {
    for i in 0..2 {
        let ends = sidecars.supervisor.ends().len();
        sidecars.supervisor.terminate(i);
        let start = Instant::now();
        eventually("the member is back", LIMIT, || async {
            if sidecars.supervisor.ends().len() == ends {
                if start.elapsed() > GRACE {
                    sidecars.supervisor.with(|c| c.members[i].kill());
                }
                return Err("it has not ended".to_owned());
            }
            healthy(sidecars, i).await
        })
        .await;
    }
}

/// The state of a member during a whole rollover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// Its containers were not there; they begin with `init`.
    Down,
    /// Its machine slept: etcd and sidecar go on with what they had loaded.
    Suspended,
}

/// Its leaves are still valid, and of a CA that nobody trusts any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_a_whole_rollover_comes_back_able_to_join() {
    tokio::join!(misses_a_rollover(Away::Down, PODS), misses_a_rollover(Away::Suspended, PODS));
}

/// An etcd that refuses its own sidecar does not say when it started, by which kubelet's restart is seen elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_slept_through_a_rollover_is_restarted_by_its_probe() {
    misses_a_rollover(Away::Suspended, Setup { probe: true, ..PODS }).await;
}

async fn misses_a_rollover(away: Away, setup: Setup<'_>) {
    let Some(etcd) = tier::etcd() else { return };
    let mut sidecars = SidecarCluster::start(&etcd, Setup { life: Duration::from_secs(3600), ..setup }).await;
    let start = Instant::now();
    sidecars.noted(2).await;
    // A sidecar that has not seen this yet requests without a statement when it wakes up, and once more when it has.
    let sidecar = sidecars.members[2].sidecar.as_ref().expect("it runs");
    for domain in [Domain::Peer, Domain::Client] {
        sidecar.logged(&format!("etcd has loaded the trust bundle domain={domain}"), LIMIT).await;
    }
    if away == Away::Down {
        sidecars.supervisor.hold_down(2);
        sidecars.members[2].sidecar = None;
    } else {
        sidecars.supervisor.suspend(2);
        sidecars.members[2].sidecar.as_mut().expect("it runs").signal(Signal::SIGSTOP);
    }
    let rollover = sidecars.rollover(1);
    sidecars.publish(&rollover.both);
    installed(&sidecars, |role| rollover.both[&role.domain()].digest()).await;
    // Certificates of members that have loaded it live for seconds, so that those of the next CA soon follow.
    sidecars.server.state().lifetime = PODS.life;
    by_hand(&sidecars).await;
    sidecars.stated_by(&sidecars.members[..2], &rollover.both).await;
    sidecars.server.state().authorities = rollover.next;
    sidecars.members_hold(&sidecars.members[..2], &rollover.new).await;
    sidecars.server.state().lifetime = Duration::from_secs(3600);
    sidecars.publish(&rollover.new);
    installed(&sidecars, |role| rollover.new[&role.domain()].digest()).await;
    by_hand(&sidecars).await;
    sidecars.stated_by(&sidecars.members[..2], &rollover.new).await;
    // The client's leaf would have lived for an hour, too.
    sidecars.client_holds(&rollover.new).await;
    let left_behind = &sidecars.members[2];
    for role in [Role::Peer, Role::Server] {
        let leaf = left_behind.leaf(role).expect("a leaf");
        assert!(leaf.not_after > SystemTime::now() && !rollover.new[&role.domain()].contains_issuer_of(&leaf));
    }

    let work = sidecars.workload();
    let ends = sidecars.supervisor.ends().len();
    let mut inits = 1;
    if away == Away::Down {
        inits = sidecars.members[2].init().await;
        for role in [Role::Peer, Role::Server] {
            assert_eq!(sidecars.members[2].bundle(role), Some(rollover.new[&role.domain()].clone()), "{role}");
            assert!(sidecars.members[2].signed_by(&[role], &rollover.new), "leaf and bundle together: {role}");
        }
        sidecars.members[2].run();
        sidecars.supervisor.free(2);
    } else {
        sidecars.supervisor.resume(2);
        sidecars.members[2].sidecar.as_mut().expect("it runs").signal(Signal::SIGCONT);
    }
    if setup.probe {
        sidecars.probed(sidecars.stated(&rollover.new)).await;
    } else {
        sidecars.stated(&rollover.new).await;
    }
    eventually("the member joins", LIMIT, || healthy(&sidecars, 2)).await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: {away:?} for a whole rollover, {:.0?} in all: {report}", etcd.version, start.elapsed()));
    nothing_lost(&report);
    // A suspended member runs with its old bundles until it is restarted.
    let restarts = sidecars.supervisor.ends()[ends..].iter().map(|(i, _)| *i).collect::<Vec<_>>();
    assert_eq!(restarts, if away == Away::Down { vec![] } else { vec![2] });
    // The first, one for the new CA, and one to state that it was loaded. An init container whose answer came too late asked for the new CA, too.
    let asked = sidecars.requests_of(&sidecars.members[2], Role::Peer);
    assert!(asked.len() <= 2 + inits, "{away:?}: it asks no more than that: {asked:#?}");
}

/// Waits until the members that are not away have these bundles on disk.
async fn installed(sidecars: &SidecarCluster, digest: impl Fn(Role) -> String) {
    eventually("the bundles are installed", LIMIT, || async {
        let all = sidecars.members[..2].iter().all(|pod| {
            [Role::Peer, Role::Server].iter().all(|r| pod.bundle(*r).is_some_and(|b| b.digest() == digest(*r)))
        });
        if all { Ok(()) } else { Err("not yet") }
    })
    .await;
}
