//! A cluster of three under load: a revoked peer, and processes that are killed in the middle of a revocation.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_tls_contract::{
    certificate::Chain,
    crl::Crl,
    names,
    role::{Domain, Role},
};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use nix::sys::signal::Signal;
use tests::{
    etcd::{EtcdBinary, leader},
    etcd_client::{Answer, EtcdClient, answer},
    eventually,
    live::{LIMIT, Live, NAMESPACE, Place, files_of},
    revocation::{TRUST, on_disk, published, revoke, write},
    say, tier,
    workload::Workload,
};
use tokio::time::sleep;

pub(super) const CLUSTER: &str = "live/etcd";

pub(super) fn chain(files: &Path) -> Chain {
    Chain::parse(&std::fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain")
}

/// Waits until each of these URLs takes, or refuses, the certificate in `files`.
pub(super) async fn accepted(urls: &[String], files: &Path, accepted: bool) {
    let (what, wanted) = if accepted { ("accepted", Answer::Taken) } else { ("refused", Answer::Refused) };
    for url in urls {
        eventually(&format!("{} {what} at {url}", files.display()), LIMIT, || async {
            let said = answer(url, files).await;
            if said == wanted { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_peer_is_refused_by_the_other_members_and_comes_back_after_undo() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        refuses_a_peer(&etcd).await;
    }
}

async fn refuses_a_peer(etcd: &EtcdBinary) {
    let Some(live) = Live::start(etcd, "5400s", None).await else { return };
    let metrics: Vec<String> = live.places.iter().map(Place::metrics_url).collect();
    // etcd may lose a write when its leader ends.
    let revoked = (leader(&metrics).await + 1) % live.places.len();
    let others: Vec<usize> = (0..live.places.len()).filter(|n| *n != revoked).collect();
    let peer = |n: usize| live.certs[n].join(Role::Peer.as_str());
    let peer_urls = |of: &[usize]| of.iter().map(|n| live.places[*n].peer_url()).collect::<Vec<_>>();
    accepted(&peer_urls(&others), &peer(revoked), true).await;

    let mut options = live.work();
    options.urls = others.iter().map(|n| live.places[*n].client_url()).collect();
    let work = Workload::start(options);
    let admin = live.installation.api.kubeconfig.clone();
    let serial = live.leaf(revoked, Role::Peer).serial;
    let start = Instant::now();
    let said = revoke(&admin, &[CLUSTER, "--serial", &serial, "--at-once"]).await.expect("two of three stand");
    assert!(said.contains(&format!("peer: {serial} is revoked until")), "{said}");
    accepted(&peer_urls(&others), &peer(revoked), false).await;
    let took = start.elapsed();
    for other in &others {
        accepted(&peer_urls(&[0, 1, 2]), &peer(*other), true).await;
    }

    // Its etcd connects anew: the others refuse it, and have a quorum. Nobody else shows its certificate meanwhile.
    let mut before = Vec::new();
    for other in &others {
        before.push(refusals(&live, *other).await);
    }
    live.kill(revoked, "etcd").await;
    for (other, before) in others.iter().zip(before) {
        eventually("the other members log the refusal of its etcd", LIMIT, || async {
            let now = refusals(&live, *other).await;
            // More than what they had still to write of the handshakes above: it tries again ten times a second.
            if now >= before + 10 { Ok(()) } else { Err(format!("{now} refusals, {before} before it was killed")) }
        })
        .await;
    }
    for other in &others {
        EtcdClient::plain().healthy(&metrics[*other]).await.expect("it reaches quorum");
        let url = live.places[*other].client_url();
        write(&files_of_client(&live), &url).await.expect("a write at another member");
    }
    accepted(&peer_urls(&others), &peer(revoked), false).await;

    revoke(&admin, &[CLUSTER, "--serial", &serial, "--undo"]).await.expect("taken back");
    accepted(&peer_urls(&others), &peer(revoked), true).await;
    let url = live.places[revoked].client_url();
    eventually("it is a member again", LIMIT, || async {
        EtcdClient::plain().healthy(&metrics[revoked]).await.map_err(|e| e.to_string())?;
        write(&files_of_client(&live), &url).await
    })
    .await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: a revoked peer was refused after {took:.1?}: {report}", etcd.version));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
    assert_eq!(live.seen.ends(), 1, "no other etcd was restarted");
}

/// How many connections with a revoked certificate etcd of member `n` has logged as refused.
async fn refusals(live: &Live, n: usize) -> usize {
    let log = live.log(n, "etcd").await;
    log.lines().filter(|line| line.contains("rejected connection") && line.contains("revoked")).count()
}

fn files_of_client(live: &Live) -> PathBuf {
    live.work().files
}

/// The step of a revocation at which processes are killed.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The request is in the ConfigMap: `sign`, which is suspended before and so has done nothing.
    Asked,
    /// The record and the signed list are in the Secret: `sign`.
    Recorded,
    /// The list is in the ConfigMap: `sign`, and all sidecars before they have seen it.
    Published,
    /// Some time after they have, the sidecars alone: as they read, verify or write it.
    Seen(Duration),
    /// The first member has it on its disk: all of them.
    Installed,
    /// Some time after the command was started: all of them.
    After(Duration),
}

impl Step {
    const NAMED: [Self; 5] =
        [Self::Asked, Self::Recorded, Self::Published, Self::Seen(Duration::from_millis(5)), Self::Installed];

    /// One for each, for a client (0) and for a peer (1); then as many at other times.
    fn all(rounds: u64) -> impl Iterator<Item = (usize, Self)> {
        let later = (0..rounds).map(|n| match n % 3 {
            0 => Self::Seen(Duration::from_micros(n * 7919 % 60_000)),
            1 => Self::Recorded,
            _ => Self::After(Duration::from_millis(n * 131 % 700)),
        });
        let named = [0, 1].into_iter().flat_map(|target| Self::NAMED.map(|step| (target, step)));
        named.chain(later.enumerate().map(|(n, step)| (n % 2, step)))
    }

    const fn kills(self) -> (bool, bool) {
        match self {
            Self::Asked | Self::Recorded => (true, false),
            Self::Published | Self::Installed | Self::After(_) => (true, true),
            Self::Seen(_) => (false, true),
        }
    }
}

/// A certificate that rounds revoke and take back, and the ports that have to refuse it.
struct Target {
    domain: Domain,
    serial: String,
    files: PathBuf,
    urls: Vec<String>,
    refuse: bool,
}

impl Target {
    fn new(domain: Domain, files: PathBuf, urls: Vec<String>) -> Self {
        Self { domain, serial: chain(&files).serial, files, urls, refuse: false }
    }

    /// The other way round; and the words of the command for it.
    fn turn(&mut self, expected: &mut BTreeSet<String>) -> &'static str {
        self.refuse = !self.refuse;
        if self.refuse {
            expected.insert(self.serial.clone());
            "--at-once"
        } else {
            expected.remove(&self.serial);
            "--undo"
        }
    }

    fn lists(&self, list: &Crl) -> bool {
        list.entries().contains_key(&self.serial) == self.refuse
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signer_and_sidecars_killed_at_each_step_of_a_revocation() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        kills_at_each_step(&etcd).await;
    }
}

/// Each round revokes a client's or a peer's certificate or takes that back, and one number more, and kills in the middle of it. No
/// ConfigMap is mounted anew, so a sidecar that starts again finds the oldest list of all in its mount.
async fn kills_at_each_step(etcd: &EtcdBinary) {
    let Some(mut live) = Live::start(etcd, "5400s", None).await else { return };
    let app = live.client("revoked", 8).await;
    let peers: Vec<String> = live.places.iter().map(Place::peer_url).collect();
    let mut targets = [
        Target::new(Domain::Client, files_of(&app), live.places.iter().map(Place::client_url).collect()),
        Target::new(Domain::Peer, live.certs[2].join(Role::Peer.as_str()), peers.clone()),
    ];
    for target in &targets {
        accepted(&target.urls, &target.files, true).await;
    }
    live.installation.hold_mounts(true);
    let over = Arc::new(AtomicBool::new(false));
    let numbers = tokio::spawn(numbers(lists_on_disk(&live), maps(&live), Arc::clone(&over)));
    // An attempt of others that fails has failed: nobody else is refused.
    let mut options = live.work();
    options.deadline = Duration::ZERO;
    let work = Workload::start(options);

    let rounds = if tier::soaking() { 200 } else { 3 };
    let mut expected = BTreeSet::new();
    let (mut count, mut early, mut asked) = (0, (0, 0), 0);
    for (turn, step) in Step::all(rounds) {
        let target = &mut targets[turn];
        let flag = target.turn(&mut expected);
        count += 1;
        let (unpublished, not_installed) = round(&mut live, target, flag, step).await;
        early = (early.0 + usize::from(unpublished), early.1 + not_installed);
        if matches!(step, Step::Asked) {
            assert!(unpublished, "a suspended signer published a list");
            asked += 1;
        }
        accepted(&target.urls, &target.files, !target.refuse).await;
        on_every_disk(&live, &expected).await;
    }
    // At the end the client is revoked, and no peer.
    let admin = live.installation.api.kubeconfig.clone();
    for target in &mut targets {
        if target.refuse != (target.domain == Domain::Client) {
            let flag = target.turn(&mut expected);
            revoke(&admin, &[CLUSTER, "--serial", &target.serial, flag]).await.expect("revoked or taken back");
        }
        accepted(&target.urls, &target.files, !target.refuse).await;
    }
    on_every_disk(&live, &expected).await;
    let lists = published(&maps(&live)).await.expect("lists");
    assert!(lists.values().all(|list| list.entries().keys().eq(&expected)), "{lists:?}");
    for certs in &live.certs {
        accepted(&peers, &certs.join(Role::Peer.as_str()), true).await;
    }
    over.store(true, Ordering::Relaxed);
    let seen = numbers.await.expect("no number goes back");
    for (domain, first, now) in &seen {
        let last = lists[domain.as_str()].number();
        assert!(first < now && *now == last, "{seen:?}, published for {domain}: {last}");
    }
    let report = work.stop().await.expect("read etcd");
    let (unpublished, not_installed) = early;
    assert!(not_installed >= live.places.len(), "the suspended sidecars at least");
    assert!(asked > 1, "the signer was killed at no certain step");
    say(&format!(
        "etcd {}: {count} revocations and undos with processes killed in each, {unpublished} times the signer before the list was \
         published, {not_installed} times a sidecar before it was on the disk: {report}",
        etcd.version
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
    assert_eq!(live.seen.ends(), 0, "no etcd was restarted");
}

fn maps(live: &Live) -> Api<ConfigMap> {
    Api::namespaced(live.installation.api.client.clone(), NAMESPACE)
}

/// The directories with the lists of each member.
fn lists_on_disk(live: &Live) -> Vec<(Domain, PathBuf)> {
    let of = |role: Role| live.certs.iter().map(move |certs| (role.domain(), certs.join(role.as_str())));
    of(Role::Server).chain(of(Role::Peer)).collect()
}

pub(super) async fn on_every_disk(live: &Live, expected: &BTreeSet<String>) {
    for (_, directory) in lists_on_disk(live) {
        eventually("the list on every disk", LIMIT, || async {
            let list = on_disk(&directory);
            if list.entries().keys().eq(expected) { Ok(()) } else { Err(format!("{list:?}")) }
        })
        .await;
    }
}

/// Panics where the number of a list goes back: the published one, or one on a disk. The domain and the first and the last number
/// of each.
async fn numbers(
    directories: Vec<(Domain, PathBuf)>,
    maps: Api<ConfigMap>,
    over: Arc<AtomicBool>,
) -> Vec<(Domain, u64, u64)> {
    let mut seen: BTreeMap<(Domain, String), (u64, u64)> = BTreeMap::new();
    let mut note = |domain: Domain, place: String, now: u64| {
        let (_, before) = seen.entry((domain, place.clone())).or_insert((now, now));
        assert!(*before <= now, "{place}: {domain} list {now} after {before}");
        *before = now;
    };
    loop {
        // The files on the disks at the end are looked at, too.
        let last = over.load(Ordering::Relaxed);
        for (domain, directory) in &directories {
            note(*domain, directory.display().to_string(), on_disk(directory).number());
        }
        if let Ok(lists) = published(&maps).await {
            for domain in Domain::WITH_LISTS {
                note(domain, "published".to_owned(), lists[domain.as_str()].number());
            }
        }
        if last {
            return seen.into_iter().map(|((domain, _), (first, now))| (domain, first, now)).collect();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// One revocation, or one undo, with processes killed at `step`. Whether the signer was killed before the list was published, and
/// how many sidecars before it was on their disk.
async fn round(live: &mut Live, target: &Target, flag: &'static str, step: Step) -> (bool, usize) {
    let admin = live.installation.api.kubeconfig.clone();
    // A sidecar has a list some milliseconds after it is published. A suspended one sees it when the test lets it.
    let waits = matches!(step, Step::Published | Step::Seen(_));
    if waits {
        to_sidecars(live, Signal::SIGSTOP).await;
    }
    if matches!(step, Step::Asked) {
        live.installation.sign.signal(Signal::SIGSTOP);
    }
    let (domain, serial) = (target.domain.as_str(), target.serial.clone());
    let command = tokio::spawn(async move { revoke(&admin, &[CLUSTER, "--serial", &serial, flag]).await });
    reached(live, target, step).await;
    if let Step::Seen(after) = step {
        to_sidecars(live, Signal::SIGCONT).await;
        sleep(after).await;
    }
    let (sign, sidecars) = step.kills();
    if sign {
        live.installation.sign.kill();
    }
    if sidecars {
        to_sidecars(live, Signal::SIGKILL).await;
    }
    let unpublished = sign && !published(&maps(live)).await.is_ok_and(|lists| target.lists(&lists[domain]));
    let disks = disks_of(live, target);
    let not_installed = if sidecars { disks.iter().filter(|disk| !target.lists(&on_disk(disk))).count() } else { 0 };
    if sign {
        live.restart_sign().await;
    }
    let said = command.await.expect("run").unwrap_or_else(|error| panic!("{domain}, {step:?}: {error}"));
    let word = if target.refuse { "is revoked until" } else { "is not revoked any more" };
    assert!(said.contains(&format!("{domain}: {} {word}", target.serial)), "{domain}, {step:?}: {said}");
    (unpublished, not_installed)
}

/// The directories with each member's list of the target's domain.
fn disks_of(live: &Live, target: &Target) -> Vec<PathBuf> {
    let of = lists_on_disk(live).into_iter().filter(|(domain, _)| *domain == target.domain);
    of.map(|(_, disk)| disk).collect()
}

async fn to_sidecars(live: &Live, signal: Signal) {
    join_all((0..live.places.len()).map(|n| live.signal(n, names::SIDECAR_CONTAINER, signal))).await;
}

/// Waits until a revocation has come to `step`.
async fn reached(live: &Live, target: &Target, step: Step) {
    let (maps, start) = (maps(live), Instant::now());
    let secrets: Api<Secret> = Api::namespaced(live.installation.api.client.clone(), names::SYSTEM_NAMESPACE);
    let disks = disks_of(live, target);
    let (domain, serial) = (target.domain.as_str(), &target.serial);
    let name = authority(live, domain).await;
    loop {
        assert!(start.elapsed() < LIMIT, "{domain}, {step:?} is not reached");
        let there = match step {
            Step::Asked => {
                let annotations = maps.get(TRUST).await.expect("read").metadata.annotations.unwrap_or_default();
                let word = if target.refuse { "add " } else { "undo " };
                annotations
                    .get(&format!("etcd-tls.dev/revoke-{domain}-request"))
                    .is_some_and(|request| request.starts_with(word) && request.contains(serial))
            }
            Step::Recorded => {
                let data = secrets.get(&name).await.expect("read").data.unwrap_or_default();
                let record = String::from_utf8_lossy(&data["revoked.json"].0).into_owned();
                let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
                record["entries"].get(serial).is_some() == target.refuse
            }
            Step::Published | Step::Seen(_) => published(&maps).await.is_ok_and(|lists| target.lists(&lists[domain])),
            Step::After(time) => {
                sleep(time).await;
                true
            }
            Step::Installed => disks.iter().any(|disk| target.lists(&on_disk(disk))),
        };
        if there {
            return;
        }
    }
}

/// The Secret with an authority of the cluster.
pub(super) async fn authority(live: &Live, domain: &str) -> String {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(live.installation.api.client.clone());
    let uid = namespaces.get(NAMESPACE).await.expect("the namespace").metadata.uid.expect("a uid");
    format!("etcd-tls-ca-{uid}-{}-{domain}", names::DEFAULT_CLUSTER)
}
