//! `trust: issuer` with three members of etcd and a client at work: the issuer's CA is swapped with no overlap.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
    role::Role,
};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{
    cert_manager::CertManager,
    etcd::{EtcdBinary, EtcdCluster, Member, MemberTls},
    etcd_client::EtcdClient,
    etcd_supervisor::EtcdSupervisor,
    eventually,
    installation::own_address,
    ports,
    process::{Process, binary},
    say,
    temp::TempDir,
    tier,
    workload::{self, Report, Workload},
};

use crate::scene::{Kind, LIMIT, Lab};

const NAMESPACE: &str = "swap";
const MEMBER: [Role; 2] = [Role::Peer, Role::Server];

fn list(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
}

/// A pod with its sidecar.
struct Pod {
    /// `run`. Dropped before the directory with its log is.
    sidecar: Option<Process>,
    name: String,
    roles: &'static [Role],
    port: u16,
    address: String,
    of_run: Vec<String>,
    environment: Vec<(String, String)>,
    dir: TempDir,
}

impl Pod {
    /// An object on the API server, as admission would have left it, and the pod's directory here.
    async fn new(lab: &Lab, name: &str, roles: &'static [Role], address: &str) -> Self {
        // The proxy of the API server, by which `status` asks, dials no loopback address.
        let (port, ip) = (ports::loopback(), own_address().expect("an address but loopback's"));
        let manifest = json!({
            "metadata": {
                "name": name, "labels": {names::INJECTED_LABEL: "true"},
                "annotations": {
                    "etcd-tls.dev/admin-port": port.to_string(), "etcd-tls.dev/issuer": "cert-manager:Issuer/company",
                    "etcd-tls.dev/trust": "issuer", "etcd-tls.dev/roles": list(roles), "etcd-tls.dev/containers": "c",
                },
            },
            "spec": {
                "containers": [{"name": "c", "image": "c"}],
                "initContainers": [{"name": "etcd-tls-sidecar", "image": "s", "restartPolicy": "Always"}],
            },
        });
        let pod = eventually("a pod", LIMIT, || lab.api.pod(NAMESPACE, manifest.clone())).await;
        lab.api.set_pod_ips(NAMESPACE, name, &[ip]).await;
        let (dir, mut environment) = lab.mounted(NAMESPACE, &pod).await;
        environment.push(("POD_IPS".to_owned(), address.to_owned()));
        dir.write(format!("token/{}", names::RENEW_FILE), "");
        let (name, address) = (name.to_owned(), address.to_owned());
        Self { sidecar: None, name, roles, port, address, of_run: Vec::new(), environment, dir }
    }

    fn start(&self, subcommand: &str, more: &[String]) -> Process {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.arg(subcommand).arg(format!("--roles={}", list(self.roles))).args([
            "--issuer=cert-manager:Issuer/company",
            "--trust-of-issuer",
            "--log-level=info",
        ]);
        // Requested as extra names: loopback addresses are not taken for a pod's own.
        command.arg(format!("--extra-sans={}", self.address)).args(more);
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        Process::spawn(subcommand, &mut command, self.dir.path())
    }

    /// The init container and then the sidecar.
    async fn run(&mut self) {
        let mut init = self.start("init", &[]);
        assert!(init.wait(LIMIT).await.success(), "{}", init.log());
        let more = [vec![format!("--admin-port={}", self.port)], self.of_run.clone()].concat();
        self.sidecar = Some(self.start("run", &more));
    }

    fn sidecar(&mut self) -> &mut Process {
        self.sidecar.as_mut().expect("it was started")
    }

    fn log(&self) -> String {
        self.sidecar.as_ref().map(Process::log).unwrap_or_default()
    }

    /// A role's directory.
    fn files(&self, role: Role) -> std::path::PathBuf {
        self.dir.join("certs").join(role.as_str())
    }

    fn leaves(&self) -> Vec<Chain> {
        let read = |role: &Role| fs::read(self.files(*role).join("tls.crt")).expect("a certificate");
        self.roles.iter().map(|role| Chain::parse(&read(role)).expect("a chain")).collect()
    }

    /// The CAs of its certificates.
    fn issuers(&self) -> BTreeSet<String> {
        self.leaves().iter().map(Chain::authority).collect()
    }

    fn bundles(&self) -> Vec<Bundle> {
        let read = |role: &Role| fs::read(self.files(*role).join("ca.crt")).expect("a bundle");
        self.roles.iter().map(|role| Bundle::parse(&read(role)).expect("CAs")).collect()
    }

    /// Writes a value of the annotation `renew` where kubelet brings it.
    fn renew(&self, value: &str) {
        self.dir.write("token/.renew", value);
        fs::rename(self.dir.join("token/.renew"), self.dir.join("token").join(names::RENEW_FILE)).expect("rename");
    }

    async fn metrics(&self) -> Result<String, String> {
        let url = format!("http://127.0.0.1:{}", self.port);
        let mut http = EtcdClient::plain().connect(&url).await.map_err(|e| e.to_string())?;
        http.get("/metrics").await.map_err(|e| e.to_string())
    }

    /// Waits until its metrics have this line.
    async fn shows(&self, line: &str) {
        eventually(&format!("{}: {line}", self.name), LIMIT, || async {
            let metrics = self.metrics().await?;
            if metrics.lines().any(|l| l == line) { Ok(()) } else { Err(metrics) }
        })
        .await;
    }

    /// Waits until its metrics have these members, and no others, for whom a certificate waits, for each role.
    async fn waits_for(&self, members: &[&str]) {
        eventually(&format!("{} to wait for {members:?}", self.name), LIMIT, || async {
            let metrics = self.metrics().await?;
            let shown: BTreeSet<&str> =
                metrics.lines().filter(|line| line.starts_with("etcd_tls_certificate_waits_for_member{")).collect();
            let expected: BTreeSet<String> = members
                .iter()
                .flat_map(|member| self.roles.iter().map(move |role| (role, member)))
                .map(|(role, member)| {
                    format!("etcd_tls_certificate_waits_for_member{{role=\"{role}\",member=\"{member}\"}} 1")
                })
                .collect();
            if shown == expected.iter().map(String::as_str).collect() { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }
}

/// Three members, a client and their issuer.
struct Cluster<'a> {
    lab: &'a Lab,
    issuer: CertManager,
    members: Vec<Pod>,
    client: Pod,
    supervisor: EtcdSupervisor,
    urls: Vec<String>,
}

impl<'a> Cluster<'a> {
    async fn start(lab: &'a Lab, etcd: &EtcdBinary) -> Self {
        lab.grant(NAMESPACE, Kind::CertManager);
        let issuer = lab.issuer(NAMESPACE);
        let mut members = Vec::new();
        for n in 0..3 {
            let address = format!("127.0.0.{},127.0.0.1", 2 + n);
            members.push(Pod::new(lab, &format!("etcd-{n}"), &MEMBER, &address).await);
        }
        let mut client = Pod::new(lab, "client", &[Role::Client], "127.0.0.1").await;
        let mut cluster = EtcdCluster::new(etcd, 3).with_tls(|member| {
            let pod = members.iter().find(|pod| pod.name == member.name).expect("its pod");
            MemberTls { server: Some(pod.files(Role::Server)), peer: Some(pod.files(Role::Peer)) }
        });
        for (pod, member) in members.iter_mut().zip(&cluster.members) {
            pod.of_run = vec![
                format!("--client-url={}", member.client_url()),
                format!("--peer-url={}", member.peer_url()),
                // kubelet's part is played by somebody without a back-off.
                "--restart-pace=1s".to_owned(),
                "--can-signal".to_owned(),
            ];
        }
        for pod in members.iter_mut().chain([&mut client]) {
            pod.run().await;
        }
        cluster.start().await;
        let urls = cluster.members.iter().map(Member::client_url).collect();
        Self { lab, issuer, members, client, supervisor: EtcdSupervisor::new(cluster), urls }
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.members.iter().chain([&self.client])
    }

    /// As `kubectl etcd-tls renew` of all pods.
    fn renew(&self, value: &str) {
        self.pods().for_each(|pod| pod.renew(value));
    }

    /// A client at work, an operation of which may take this long.
    fn workload(&self, deadline: Duration) -> Workload {
        let options = workload::Options::new(self.urls.clone(), &self.client.files(Role::Client));
        Workload::start(workload::Options { deadline, ..options })
    }

    /// Waits until all certificates of the members are of the CA.
    async fn members_have(&self, authority: &str) {
        eventually(&format!("certificates of {authority}"), LIMIT, || async {
            let of = |pod: &Pod| pod.issuers() == [authority.to_owned()].into();
            let late: Vec<&str> = self.members.iter().filter(|pod| !of(pod)).map(|pod| &*pod.name).collect();
            if late.is_empty() { Ok(()) } else { Err(format!("{late:?}: {}", self.members[0].log())) }
        })
        .await;
    }

    async fn leader(&self) -> usize {
        let urls: Vec<String> = self.supervisor.with(|c| c.members.iter().map(Member::metrics_url).collect());
        tests::etcd::leader(&urls).await
    }

    fn status(&self) -> String {
        self.status_with(&[])
    }

    fn wide_status(&self) -> String {
        self.status_with(&["-o", "wide"])
    }

    fn status_with(&self, more: &[&str]) -> String {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["status", "-n", NAMESPACE]).args(more).env("KUBECONFIG", &self.lab.api.kubeconfig);
        String::from_utf8_lossy(&command.output().expect("run status").stdout).into_owned()
    }
}

fn nothing_lost(report: &Report) {
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
}

/// `None`, having said so, where the machine lacks something.
async fn lab(lab: impl Future<Output = Option<Lab>>) -> Option<(EtcdBinary, Lab)> {
    let etcd = tier::etcd()?;
    if own_address().is_none() {
        tier::skip(2, "no address but loopback, which a pod cannot have", "a network interface with an address");
        return None;
    }
    Some((etcd, lab.await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_is_swapped_with_no_overlap_fails_no_write() {
    let Some((etcd, lab)) = lab(Lab::new()).await else { return };
    swapped_with_no_overlap(&etcd, &lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_cert_manager_itself_swaps_with_no_overlap_fails_no_write() {
    let Some((etcd, lab)) = lab(Lab::of_cert_manager_itself()).await else { return };
    swapped_with_no_overlap(&etcd, &lab).await;
}

async fn swapped_with_no_overlap(etcd: &EtcdBinary, lab: &Lab) {
    let mut cluster = Cluster::start(lab, etcd).await;
    let work = cluster.workload(Duration::from_secs(10));
    let begin = Instant::now();

    // Renewed under the same CA: nobody waits, nobody restarts.
    let before: Vec<Vec<Chain>> = cluster.pods().map(Pod::leaves).collect();
    cluster.renew("first");
    eventually("new certificates", LIMIT, || async {
        let new = |(pod, before): (&Pod, &Vec<Chain>)| {
            pod.leaves().iter().zip(before).all(|(now, before)| now.serial != before.serial)
        };
        let old: Vec<&str> =
            cluster.pods().zip(&before).filter(|pair| !new(*pair)).map(|(pod, _)| &*pod.name).collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{old:?}")) }
    })
    .await;
    assert_eq!(cluster.supervisor.ends().len(), 0, "a certificate needs no restart");

    // Swapped, while a sidecar sleeps: its etcd trusts the old CA alone, and everybody waits for it. The leader's: a leader
    // lets the others restart first, in any case.
    let late = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|member| *member != late).collect();
    let late_name = format!("etcd-{late}");
    let old = Bundle::parse(cluster.issuer.ca().as_bytes()).expect("a CA");
    cluster.members[late].sidecar().signal(Signal::SIGSTOP);
    let next = Bundle::parse(cluster.issuer.replace_ca("next CA").as_bytes()).expect("a CA");
    let both = old.union(&next);
    cluster.renew("second");
    for member in others.iter().map(|member| &cluster.members[*member]) {
        member.waits_for(&[&late_name]).await;
        let reason = format!("not trusted yet by etcd of {late_name}.");
        assert!(member.log().contains(&reason), "{}", member.log());
        assert_eq!(member.issuers(), ["CN=company CA".to_owned()].into(), "the old ones stay in use");
        assert!(member.bundles().iter().all(|bundle| *bundle == both));
    }
    cluster.client.waits_for(&["unknown"]).await;
    assert!(cluster.client.bundles().iter().all(|bundle| *bundle == both));
    let status = cluster.status();
    assert!(status.contains("CN=next CA") && status.contains(&late_name), "{status}");
    say(&status);

    // A new value of the annotation requests other certificates in place of those that wait.
    let member = &cluster.members[others[0]];
    member.renew("third");
    for role in MEMBER {
        let again = format!("renewal{{role=\"{role}\"");
        eventually("another request", LIMIT, || async {
            let log = member.log();
            let asked =
                |line: &str| line.contains(&again) && line.contains("the annotation renew asks for another one");
            if log.lines().any(asked) { Ok(()) } else { Err(log) }
        })
        .await;
    }
    member.waits_for(&[&late_name]).await;

    // It wakes up.
    cluster.members[late].sidecar().signal(Signal::SIGCONT);
    cluster.members_have("CN=next CA").await;
    for member in &cluster.members {
        member.waits_for(&[]).await;
    }
    // The ports serve them.
    for member in &mut cluster.members {
        let log = member.sidecar();
        log.logged("rotated: the new certificate is served", LIMIT).await;
    }
    let took = begin.elapsed();
    let report = work.stop().await.expect("read etcd");
    let (ends, away) = (cluster.supervisor.ends(), cluster.supervisor.most_away());
    say(&format!("etcd {}: a CA swapped in {took:.0?}, {} restarts: {report}", etcd.version, ends.len()));
    nothing_lost(&report);
    assert_eq!(away, 1, "members away at the same time");
    let restarted: BTreeSet<usize> = ends.iter().map(|(i, _)| *i).collect();
    assert_eq!((ends.len(), restarted.len()), (3, 3), "one restart of each: {ends:?}");
}

/// The new CA has the subject of the old one, as a CA with a new key often has: it waits for all members all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_with_the_subject_of_the_old_one_waits_for_all_members_too() {
    let Some((etcd, lab)) = lab(Lab::new()).await else { return };
    let mut cluster = Cluster::start(&lab, &etcd).await;
    let work = cluster.workload(Duration::from_secs(10));
    let late = cluster.leader().await;
    let late_name = format!("etcd-{late}");
    let old = Bundle::parse(cluster.issuer.ca().as_bytes()).expect("a CA");
    cluster.members[late].sidecar().signal(Signal::SIGSTOP);
    let next = Bundle::parse(cluster.issuer.replace_ca("company CA").as_bytes()).expect("a CA");
    assert_ne!(old, next);
    cluster.renew("swapped");
    for member in (0..3).filter(|member| *member != late).map(|member| &cluster.members[member]) {
        member.waits_for(&[&late_name]).await;
        assert!(member.leaves().iter().all(|leaf| old.contains_issuer_of(leaf)), "the old ones stay in use");
    }
    cluster.members[late].sidecar().signal(Signal::SIGCONT);
    eventually("certificates of the next CA", LIMIT, || async {
        let of = |pod: &Pod| pod.leaves().iter().all(|leaf| next.contains_issuer_of(leaf));
        let waiting: Vec<&str> = cluster.members.iter().filter(|pod| !of(pod)).map(|pod| &*pod.name).collect();
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}: {}", cluster.members[late].log())) }
    })
    .await;
    eventually("all members show the CA as loaded", LIMIT, || async {
        let status = cluster.wide_status();
        // Of three members and two roles.
        if status.matches(" loaded ").count() == 6 { Ok(()) } else { Err(status) }
    })
    .await;
    let report = work.stop().await.expect("read etcd");
    let (ends, away) = (cluster.supervisor.ends(), cluster.supervisor.most_away());
    say(&format!("etcd {}: a CA of the same subject, {} restarts: {report}", etcd.version, ends.len()));
    nothing_lost(&report);
    let restarted: BTreeSet<usize> = ends.iter().map(|(i, _)| *i).collect();
    assert_eq!((away, ends.len(), restarted.len()), (1, 3, 3), "one restart of each: {ends:?}");
}

/// The limit that docs/issuers.md states: a member that is made anew in the middle of a swap trusts the new CA alone. The others
/// do not restart, since that would cost the quorum; restarted by hand, they all come together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_made_anew_in_a_swap_stops_the_restarts_of_the_others() {
    let Some((etcd, lab)) = lab(Lab::new()).await else { return };
    let mut cluster = Cluster::start(&lab, &etcd).await;
    // A restart by hand is an outage here.
    let work = cluster.workload(Duration::from_secs(60));
    let begin = Instant::now();
    let anew = (cluster.leader().await + 1) % 3;
    let others: Vec<usize> = (0..3).filter(|member| *member != anew).collect();

    cluster.supervisor.hold_down(anew);
    cluster.members[anew].sidecar = None;
    let old = Bundle::parse(cluster.issuer.ca().as_bytes()).expect("a CA");
    let next = Bundle::parse(cluster.issuer.replace_ca("next CA").as_bytes()).expect("a CA");
    let both = old.union(&next);
    for pod in others.iter().map(|member| &cluster.members[*member]).chain([&cluster.client]) {
        pod.renew("swapped");
    }
    for member in &others {
        cluster.members[*member].waits_for(&["etcd-0", "etcd-1", "etcd-2"]).await;
        cluster.members[*member].shows("etcd_tls_restart_waits{reason=\"unhealthy\"} 1").await;
    }
    // Its pod is created again, with the data of before.
    let member = &mut cluster.members[anew];
    fs::remove_dir_all(member.dir.join("certs")).expect("remove the certificates");
    member.run().await;
    assert!(member.bundles().iter().all(|bundle| *bundle == next), "it trusts the new CA alone");
    cluster.supervisor.free(anew);
    // As long as it stays cut off, nobody restarts, and the quorum of the others works.
    let (writes, ends) = (work.figures().writes.load(Ordering::Relaxed), cluster.supervisor.ends());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(work.figures().writes.load(Ordering::Relaxed) > writes, "the quorum works");
    assert_eq!(cluster.supervisor.ends(), ends, "nobody restarts");
    for member in &others {
        cluster.members[*member].shows("etcd_tls_restart_waits{reason=\"unhealthy\"} 1").await;
        assert_eq!(cluster.members[*member].issuers(), ["CN=company CA".to_owned()].into());
    }
    let status = cluster.status();
    assert!(status.contains("that waits: another member is not healthy"), "{status}");
    say(&status);

    for member in &others {
        cluster.supervisor.terminate(*member);
        let loaded = format!("etcd has loaded the trust bundle domain=peer digest={}", both.digest());
        cluster.members[*member].sidecar().logged(&loaded, LIMIT).await;
    }
    cluster.members_have("CN=next CA").await;
    eventually("all members to be healthy", LIMIT, || async {
        let checks: Vec<_> = cluster.supervisor.with(|c| c.members.iter().map(Member::healthy_now).collect());
        for check in checks {
            check.await?;
        }
        Ok::<(), String>(())
    })
    .await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: a member made anew in a swap, {:.0?}: {report}", etcd.version, begin.elapsed()));
    nothing_lost(&report);
}
