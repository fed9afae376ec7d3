//! Rotation that etcd and its clients never notice, on real clusters: leaves without a restart, CAs with one restart of a
//! member at a time. A client writes and watches all the while, and every acknowledged write is looked for at the end.
//!
//! The short form runs always. `ETCD_TLS_SOAK=1` runs the long one: 200 rotations a member, five rollovers, five members,
//! and every etcd of `ETCD_VERSIONS`.

use std::{
    fs,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Bundle, settings::Reload};
use etcd_tls_sidecar::{
    etcd::{Client, Created},
    kube::pod::PodCredentials,
    restart::{self, LeaseOptions, lock},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams};
use serde_json::json;
use tests::{
    apiserver::{ApiServer, from_json},
    etcd::EtcdBinary,
    eventually,
    in_process_members::{Members, bundle},
    pki::Ca,
    say,
    temp::TempDir,
    tier,
    workload::{self, Report, Workload},
};

/// One restart of a member, on a machine that is busy with other tests.
const RESTART: Duration = Duration::from_secs(60);
/// An operation of the workload may take as long as a leader election (1 to 2 s) and its client's next attempts.
const OPERATION: Duration = Duration::from_secs(10);

fn binaries() -> Vec<EtcdBinary> {
    let Some(first) = tier::etcd() else { return Vec::new() };
    if tier::soaking() {
        return EtcdBinary::all();
    }
    say("the short form of this test; the long one: ETCD_TLS_SOAK=1 cargo test -p tests --test rotation");
    vec![first]
}

/// Every etcd of the machine, for what differs between them: their gateways, and what they say of themselves.
fn all_binaries() -> Vec<EtcdBinary> {
    if tier::etcd().is_some() { EtcdBinary::all() } else { Vec::new() }
}

fn workload(pods: &Members) -> Workload {
    let mut options = workload::Options::new(pods.urls.clone(), &pods.client_dir);
    options.deadline = OPERATION;
    Workload::start(options)
}

/// The invariants of every test.
fn nothing_lost(report: &Report) {
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_rotate_and_nobody_notices() {
    for binary in binaries() {
        let (rotations, life, pause) = if tier::soaking() {
            (200, Duration::from_secs(10), Duration::from_millis(500))
        } else {
            (20, Duration::from_secs(10), Duration::from_millis(250))
        };
        let ca = Ca::new("etcd-ca");
        let mut pods = Members::start(&binary, 3, &ca).await;
        let work = workload(&pods);
        let trust = bundle(&[&ca]);
        for _ in 0..rotations {
            pods.issue(&ca, &trust, life);
            tokio::time::sleep(pause).await;
        }
        let report = work.stop().await.expect("read etcd");
        say(&format!("etcd {}: {rotations} leaf rotations a member: {report}", binary.version));
        nothing_lost(&report);
        assert_eq!((report.watch_breaks, pods.supervisor.ends().len()), (0, 0), "{report}");
    }
}

async fn rollovers(binary: &EtcdBinary, members: u8, times: usize) {
    let mut ca = Ca::new("etcd-ca-0");
    let mut pods = Members::start(binary, members, &ca).await;
    let work = workload(&pods);
    let start = Instant::now();
    for n in 1..=times {
        let next = Ca::new(&format!("etcd-ca-{n}"));
        pods.roll_over(&ca, &next, RESTART * u32::from(members)).await;
        ca = next;
    }
    let took = start.elapsed();
    let report = work.stop().await.expect("read etcd");
    let (ends, away) = (pods.supervisor.ends().len(), pods.supervisor.longest_away());
    say(&format!(
        "etcd {}, {members} members: {times} rollovers in {took:.0?}, {ends} restarts, longest {away:.1?} away: {report}",
        binary.version
    ));
    nothing_lost(&report);
    assert_eq!(pods.supervisor.most_away(), 1, "members away at the same time");
    assert_eq!(ends, 2 * times * usize::from(members), "one restart of each member for each change of the bundle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_rolled_over_one_member_at_a_time() {
    for binary in binaries() {
        rollovers(&binary, 3, if tier::soaking() { 5 } else { 1 }).await;
        if tier::soaking() {
            rollovers(&binary, 5, 5).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_member_is_down_nobody_restarts() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 3, &old).await;
        let work = workload(&pods);
        pods.supervisor.hold_down(2);
        let both = bundle(&[&old, &new]);
        pods.trust(&both);
        eventually("the others say what they wait for", RESTART, || async {
            let due: Vec<_> = pods.pods[..2].iter().map(|p| p.status().due.unwrap_or_default()).collect();
            if due.iter().all(|d| d.contains("not every other member is healthy") && d.contains("etcd-2")) {
                Ok(())
            } else {
                Err(format!("{due:?}"))
            }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(pods.supervisor.ends().len(), 1, "only the member that the test holds down");
        pods.supervisor.free(2);
        pods.loaded(&both, 3 * RESTART).await;
        // The one that was down loaded the bundle as it started.
        assert!(pods.supervisor.ends()[1..].iter().all(|(i, _)| *i != 2), "{:?}", pods.supervisor.ends());
        assert_eq!(pods.supervisor.most_away(), 1);
        let report = work.stop().await.expect("read etcd");
        say(&format!("etcd {}: a member down when the bundle came: {report}", binary.version));
        nothing_lost(&report);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_in_the_middle_is_waited_for() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 3, &old).await;
        let work = workload(&pods);
        let both = bundle(&[&old, &new]);
        pods.trust(&both);
        // The first one is back; another one dies that has not been restarted yet.
        let restarted = eventually("the first member is restarted", RESTART, || async {
            let loaded = pods.pods.iter().position(|p| p.has_loaded(&both));
            loaded.ok_or("none yet")
        })
        .await;
        let victim = (0..3).find(|i| *i != restarted && !pods.pods[*i].has_loaded(&both)).expect("one is left");
        let before = pods.supervisor.ends().len();
        pods.supervisor.hold_down(victim);
        let killed = Instant::now();
        tokio::time::sleep(Duration::from_secs(8)).await;
        // One whose signal was on its way when the victim died is not ours to call back.
        let late = pods.supervisor.ends()[before..]
            .iter()
            .filter(|(i, at)| *i != victim && at.duration_since(killed) > Duration::from_secs(3))
            .count();
        assert_eq!(late, 0, "restarted while {victim} was down: {:?}", pods.supervisor.ends());
        pods.supervisor.free(victim);
        pods.loaded(&both, 3 * RESTART).await;
        pods.issue(&new, &both, Duration::from_secs(3600));
        let only_new = bundle(&[&new]);
        pods.trust(&only_new);
        pods.loaded(&only_new, 3 * RESTART).await;
        let report = work.stop().await.expect("read etcd");
        say(&format!("etcd {}: a member killed in the middle of a rollover: {report}", binary.version));
        assert_eq!((report.lost.len(), report.unseen.len()), (0, 0), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_whose_holder_is_lost_lapses() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 3, &old).await;
        let etcd = Client::from_dir(&pods.client_dir).expect("a client");
        let lease = etcd.grant(&pods.endpoint(0), 6).await.expect("a lease");
        let created = etcd.create(&pods.endpoint(1), lock::KEY, "ghost", lease).await.expect("the lock");
        assert_eq!(created, Created::Yes);
        let both = bundle(&[&old, &new]);
        pods.trust(&both);
        eventually("the lock is waited for", RESTART, || async {
            let due = pods.pods[0].status().due.unwrap_or_default();
            if due.contains("ghost is being restarted") { Ok(()) } else { Err(due) }
        })
        .await;
        assert!(pods.supervisor.ends().is_empty());
        pods.loaded(&both, 3 * RESTART).await;
        assert_eq!(pods.supervisor.most_away(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_dies_with_the_lock_delays_the_others_and_no_more() {
    if !tier::soak("a sidecar that dies with the lock (half a minute)") {
        return;
    }
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 3, &old).await;
        let work = workload(&pods);
        let both = bundle(&[&old, &new]);
        pods.trust(&both);
        let first = eventually("a member ends", RESTART, || async {
            pods.supervisor.ends().first().map(|(i, _)| *i).ok_or("none yet")
        })
        .await;
        pods.pods[first].kill_restarter();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(pods.supervisor.ends().len(), 1, "the lock is still held");
        pods.pods[first].start_restarter(|_| {});
        pods.loaded(&both, 3 * RESTART).await;
        assert_eq!((pods.supervisor.most_away(), pods.supervisor.ends().len()), (1, 3));
        nothing_lost(&work.stop().await.expect("read etcd"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_goes_after_it_was_said() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 1, &old).await;
        let both = bundle(&[&old, &new]);
        pods.pods[0].start_restarter(|options| options.notice = Duration::from_secs(3));
        pods.trust(&both);
        eventually("the outage is announced", RESTART, || async {
            let due = pods.pods[0].status().due.unwrap_or_default();
            if due.contains("this cluster has one member") { Ok(()) } else { Err(due) }
        })
        .await;
        assert!(pods.supervisor.ends().is_empty(), "announced before, not after");
        pods.loaded(&both, RESTART).await;
        assert_eq!(pods.supervisor.ends().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_and_reload_none_are_shown_and_left_alone() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 2, &old).await;
        pods.pods[1].start_restarter(|options| options.reload = Reload::None);
        pods.trust(&bundle(&[&old, &new]));
        eventually("both say why", RESTART, || async {
            let due: Vec<_> = pods.pods.iter().map(|p| p.status().due.unwrap_or_default()).collect();
            if due[0].contains("the others are no quorum") && due[1].contains("reload is none") {
                Ok(())
            } else {
                Err(format!("{due:?}"))
            }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(pods.supervisor.ends().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_takes_over_its_predecessors_name_is_restarted_for() {
    for binary in binaries() {
        let (old, new) = (Ca::new("same"), Ca::new("same"));
        let mut pods = Members::start(&binary, 3, &old).await;
        // To tell the bundles apart, the restarter must have seen the first one.
        pods.loaded(&bundle(&[&old]), RESTART).await;
        pods.roll_over(&old, &new, 3 * RESTART).await;
        assert_eq!((pods.supervisor.most_away(), pods.supervisor.ends().len()), (1, 6));
    }
}

/// kubelet runs the program itself, which asks the sidecar and, behind it, what the user's own probe asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_signal_reaches_the_liveness_probe_does() {
    for binary in all_binaries() {
        let [first, second, third] = ["first", "second", "third"].map(Ca::new);
        let mut pods = Members::start(&binary, 3, &first).await;
        let health: Vec<_> =
            pods.supervisor.with(|c| c.members.iter().map(|m| format!("{}/health", m.metrics_url())).collect());
        for (pod, health) in pods.pods.iter_mut().zip(health) {
            pod.start_restarter(|options| {
                let health = health.parse().expect("the URL of the metrics port");
                (options.reload, options.can_signal, options.liveness_url) = (Reload::Probe, false, Some(health));
            });
        }
        pods.loaded(&bundle(&[&first]), RESTART).await;
        let work = workload(&pods);
        let both = bundle(&[&first, &second]);
        pods.trust(&both);
        pods.probed(pods.loaded(&both, 3 * RESTART)).await;
        assert_eq!((pods.supervisor.most_away(), pods.supervisor.ends().len()), (1, 3));
        for pod in &pods.pods {
            assert_eq!(pod.probe().await, Ok(()), "once is enough");
        }

        // A sidecar that goes away while nothing is due, and all of them while a restart is due that kubelet has heard of.
        pods.pods[0].kill_restarter();
        pods.probed(tokio::time::sleep(Duration::from_secs(3))).await;
        pods.pods[0].start_restarter(|_| {});
        let all = bundle(&[&first, &second, &third]);
        pods.trust(&all);
        let due = eventually("a member's probe fails", RESTART, || async {
            for (i, pod) in pods.pods.iter().enumerate() {
                if pod.probe().await.is_err_and(|why| why.contains("etcd is to be restarted: the ")) {
                    return Ok(i);
                }
            }
            Err("none")
        })
        .await;
        pods.pods.iter_mut().for_each(tests::in_process_members::Pod::kill_restarter);
        assert_eq!(pods.pods[due].probe().await, Ok(()), "nobody says so any more");
        pods.probed(tokio::time::sleep(Duration::from_secs(5))).await;
        assert_eq!(pods.supervisor.ends().len(), 3, "a sidecar that is away takes no etcd down");
        nothing_lost(&work.stop().await.expect("read etcd"));

        // Nor does it keep a dead one up: the user's own probe says what it said.
        pods.supervisor.suspend(due);
        let why = pods.pods[due].probe().await.expect_err("it does not answer");
        assert!(why.contains("/health") && why.contains("etcd-tls-sidecar is away"), "{why}");
        pods.supervisor.resume(due);
        eventually("it answers again", RESTART, || pods.pods[due].probe()).await;

        for pod in &mut pods.pods {
            pod.start_restarter(|_| {});
        }
        pods.probed(pods.loaded(&all, 3 * RESTART)).await;
        assert_eq!((pods.supervisor.most_away(), pods.supervisor.ends().len()), (1, 6));
        say(&format!("etcd {}: restarted by its probe, and by nothing else", binary.version));
    }
}

/// With etcd's auth on, its gateway serves nobody without a token: no lock there. A Kubernetes Lease stands in, where the
/// component of the manifests gives the right to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_auth_on_a_lease_is_the_lock() {
    let (binaries, api) = etcds_and_api().await;
    for binary in binaries {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let mut pods = Members::start(&binary, 3, &old).await;
        let etcd = Client::from_dir(&pods.client_dir).expect("a client");
        for (path, body) in [
            ("user/add", json!({"name": "root", "password": "secret"})),
            ("role/add", json!({"name": "root"})),
            ("user/grant", json!({"user": "root", "role": "root"})),
            ("enable", json!({})),
        ] {
            etcd.call(&pods.endpoint(0), &format!("/v3/auth/{path}"), &body).await.expect(path);
        }
        let both = bundle(&[&old, &new]);
        pods.trust(&both);
        all_say(&pods, "etcd gives no lock").await;

        let Some(api) = &api else { continue };
        let namespace = format!("auth-{}", binary.version.replace('.', "-"));
        leases(api, &namespace, &mut pods).await;
        all_say(&pods, "and Kubernetes no Lease").await;
        assert!(pods.supervisor.ends().is_empty(), "nothing is restarted without a lock");
        grant(api, &namespace);
        loaded_one_by_one(&pods, &both, &binary).await;
    }
}

/// The gateway serves at one member alone, which is away while it is restarted itself: so at one time one pod can use etcd's
/// lock and another cannot. If there is a Lease, every pod takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_gateways_differ_nobody_holds_another_lock() {
    let (binaries, api) = etcds_and_api().await;
    for binary in binaries {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let off = |i| if i < 2 { vec!["--enable-grpc-gateway=false".to_owned()] } else { Vec::new() };
        let mut pods = Members::start_with(&binary, 3, &old, off).await;
        let both = bundle(&[&old, &new]);
        let Some(api) = &api else {
            // Without a Lease: etcd's lock, at the member that serves it.
            pods.trust(&both);
            loaded_one_by_one(&pods, &both, &binary).await;
            continue;
        };
        let namespace = format!("gateways-{}", binary.version.replace('.', "-"));
        leases(api, &namespace, &mut pods).await;
        grant(api, &namespace);
        // Somebody whom etcd does not serve has the Lease. Etcd's own lock is free, and not enough.
        let held = json!({
            "metadata": {"name": restart::lease_name("etcd")},
            "spec": {"holderIdentity": "ghost", "leaseDurationSeconds": 8},
        });
        let api = Api::<Lease>::namespaced(api.client.clone(), &namespace);
        api.create(&PostParams::default(), &from_json(held)).await.expect("create a Lease");
        pods.trust(&both);
        all_say(&pods, "is being restarted").await;
        assert!(pods.supervisor.ends().is_empty());
        loaded_one_by_one(&pods, &both, &binary).await;
        eventually("both are given back", RESTART, || async {
            let lease = api.get(&restart::lease_name("etcd")).await.map_err(|e| e.to_string())?;
            let holder = lease.spec.and_then(|s| s.holder_identity).unwrap_or_default();
            let etcd = Client::from_dir(&pods.client_dir).map_err(|e| e.to_string())?;
            let body = json!({"key": STANDARD.encode(lock::KEY)});
            let key = etcd.call(&pods.endpoint(2), "/v3/kv/range", &body).await.map_err(|e| e.to_string())?;
            if holder.is_empty() && key["kvs"].is_null() { Ok(()) } else { Err(format!("{holder:?} {key}")) }
        })
        .await;
    }
}

/// Every etcd of the machine, and an API server for Leases where there is one.
async fn etcds_and_api() -> (Vec<EtcdBinary>, Option<ApiServer>) {
    let binaries = all_binaries();
    let api = if binaries.is_empty() { None } else { ApiServer::start().await };
    (binaries, api)
}

/// Waits until every member has loaded a bundle, by a restart of its own.
async fn loaded_one_by_one(pods: &Members, trust: &Bundle, binary: &EtcdBinary) {
    pods.loaded(trust, 3 * RESTART).await;
    assert_eq!((pods.supervisor.most_away(), pods.supervisor.ends().len()), (1, 3), "etcd {}", binary.version);
}

/// Waits until every restarter says these words of its due restart.
async fn all_say(pods: &Members, words: &'static str) {
    eventually(words, RESTART, || async {
        let due: Vec<_> = pods.pods.iter().map(|p| p.status().due.unwrap_or_default()).collect();
        if due.iter().all(|d| d.contains(words)) { Ok(()) } else { Err(format!("{due:?}")) }
    })
    .await;
}

/// Starts the restarters anew with a Lease of a namespace, to which they have no right yet.
async fn leases(api: &ApiServer, namespace: &str, pods: &mut Members) {
    api.namespace(namespace, &[]).await;
    let directory = api.token_directory(namespace, namespace, &api.token(namespace, "default", None).await);
    let port = api.url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let credentials = PodCredentials::new(&directory, "127.0.0.1", port);
    let lease = LeaseOptions { credentials, namespace: namespace.to_owned(), name: restart::lease_name("etcd") };
    for pod in &mut pods.pods {
        let lease = lease.clone();
        pod.start_restarter(|options| options.lease = Some(lease));
    }
}

/// Gives the right to it, as a user adds it to the namespace's kustomization.
fn grant(api: &ApiServer, namespace: &str) {
    let dir = TempDir::new("lease-lock");
    let component = tests::repository().join("manifests/components/lease-lock");
    dir.dir("lease-lock");
    for name in ["kustomization.yaml", "lease-lock.yaml"] {
        fs::copy(component.join(name), dir.join("lease-lock").join(name)).expect("copy");
    }
    dir.write("kustomization.yaml", format!("namespace: {namespace}\ncomponents: [lease-lock]\n"));
    api.kubectl(&["apply", "-k", &dir.path().display().to_string()]);
}
