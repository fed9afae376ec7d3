//! Days of faults in a while: `approve` and `sign`, two of each, and the sidecars of some clusters reach the API server only
//! through a proxy that delays, loses, truncates, repeats and spoils their calls; processes are killed, the API server
//! restarts, its etcd stands still now and then as with a slow disk, and clocks are stepped by an hour. The invariants are checked
//! at each look and at the end.
//!
//! `ETCD_TLS_FAULTS_SECONDS` is how long it goes on (default 90), `ETCD_TLS_FAULTS_SEED` the plan.

#[path = "faults/clocks.rs"]
mod clocks;
#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;
#[path = "faults/slow_disk.rs"]
mod slow_disk;

use std::{
    collections::BTreeMap,
    env, fs,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use clocks::{Clocks, Machine};
use etcd_tls_contract::{certificate::Chain, names, role::Role};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, api::ListParams};
use lab::{LIMIT, Lab};
use signer::{csrs, member, sign_in, trust};
use slow_disk::SlowDisk;
use tests::{
    eventually,
    faults::FaultProxy,
    local_pod::write_projected,
    ports,
    process::{Process, binary},
    say,
    temp::TempDir,
    tier,
    truths::Witness,
};
use tokio::time::sleep;

/// Namespaces with a cluster each, of three members.
const NAMESPACES: u8 = 4;
const MEMBERS: u8 = 3;
/// Each member asks anew this often.
const RENEW: Duration = Duration::from_secs(4);
/// One of the controllers is killed this often.
const KILL: Duration = Duration::from_secs(9);
/// The API server goes this long after the start, and this often.
const RESTART: Duration = Duration::from_secs(12);
const RESTART_EVERY: Duration = Duration::from_secs(180);
/// MiB of its own data that a controller may have more at the end than at its start, in a debug build.
const GROWTH: u64 = 24;
/// Lines of the log, at level WARN or ERROR, for each thing that was done to a call, and for each time that a process started.
const LINES_A_FAULT: u64 = 1;
const LINES_A_START: u64 = 20;

/// A member with the real sidecar.
struct Member {
    pod: Pod,
    dir: TempDir,
    sidecar: Option<Process>,
}

impl Member {
    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    async fn new(
        lab: &Lab,
        proxy: &FaultProxy,
        clocks: Option<&Clocks>,
        n: u8,
        m: u8,
    ) -> (Self, Vec<(String, String)>) {
        let namespace = namespace(n);
        let ip = Ipv4Addr::new(10, 77, n, 10 + m).to_string();
        let pod = member(lab, &namespace, &format!("etcd-{m}"), Some(&ip)).await;
        let token = lab.api.token(&namespace, "default", Some(&pod)).await;
        let dir = TempDir::new("member");
        for (name, content) in [("token", token.as_str()), ("ca.crt", &lab.api.ca.pem), ("namespace", &namespace)] {
            fs::write(dir.dir("token").join(name), content).expect("write a token directory");
        }
        let [peer, client, metrics] = trust(lab, &namespace, names::DEFAULT_CLUSTER).await;
        let bundles = [("peer.crt", &peer), ("client.crt", &client), ("metrics.crt", &metrics)];
        write_projected(&dir.dir("trust"), bundles.map(|(name, bundle)| (name, bundle.to_pem())));
        dir.dir("certs");
        let text = |s: &str| s.to_owned();
        let mut environment = vec![
            (text("POD_NAME"), format!("etcd-{m}")),
            (text("POD_NAMESPACE"), namespace),
            (text("POD_UID"), pod.metadata.uid.clone().expect("a uid")),
            (text("POD_SERVICE_ACCOUNT"), text("default")),
            (text("NODE_NAME"), text(tests::apiserver::NODE)),
            (text("POD_IPS"), ip),
            (text("KUBERNETES_SERVICE_HOST"), text("127.0.0.1")),
            (text("KUBERNETES_SERVICE_PORT"), proxy.port.to_string()),
        ];
        if n == 0 {
            environment.extend(clocks.map(|clocks| clocks.environment(Machine::Members)).unwrap_or_default());
        }
        let made = Self { pod, dir, sidecar: None };
        made.ask("at the start");
        (made, environment)
    }

    fn spawn(&self, command: &str, environment: &[(String, String)]) -> Process {
        let mut sidecar = Command::new(binary("etcd-tls-sidecar"));
        sidecar.args([command, "--roles=peer,server", "--reload=none"]).env_clear();
        for (flag, name) in [("--dir", "certs"), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            sidecar.arg(flag).arg(self.dir.join(name));
        }
        sidecar.arg(format!("--admin-port={}", ports::loopback()));
        sidecar.arg("--termination-log").arg(self.dir.join("termination"));
        sidecar.envs(environment.iter().cloned());
        Process::spawn(&format!("{}-{}-{command}", self.namespace(), self.name()), &mut sidecar, self.dir.path())
    }

    /// `init`, started again when it fails as kubelet would, then `run`.
    async fn start(&mut self, environment: &[(String, String)]) {
        let begun = Instant::now();
        while !self.spawn("init", environment).wait(LIMIT).await.success() {
            assert!(begun.elapsed() < LIMIT, "{}/{} has no first certificate", self.namespace(), self.name());
        }
        self.sidecar = Some(self.spawn("run", environment));
    }

    /// Writes the annotation `renew` as kubelet projects it.
    fn ask(&self, value: &str) {
        let token = self.dir.join("token");
        fs::write(token.join(".renew"), value).expect("write a value");
        fs::rename(token.join(".renew"), token.join(names::RENEW_FILE)).expect("write a value");
    }

    /// The serial numbers of its certificates, by role.
    ///
    /// # Panics
    /// Where one of them is missing, unreadable, expired or not of the published CA.
    fn serials(&self) -> BTreeMap<Role, String> {
        [Role::Peer, Role::Server].map(|role| (role, self.serial(role))).into()
    }

    fn serial(&self, role: Role) -> String {
        let at = format!("{}/{}: {role}", self.namespace(), self.name());
        let read = |name: &str| fs::read(self.dir.join("certs").join(role.as_str()).join(name));
        let chain = Chain::parse(&read(names::CERT_FILE).unwrap_or_else(|e| panic!("{at}: {e}")));
        let chain = chain.unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(chain.not_after > SystemTime::now(), "{at} expired, and it could have been renewed");
        chain.serial.clone()
    }

    /// Lines of its log about a request.
    fn of(&self, name: &str) -> Vec<String> {
        self.sidecar.as_ref().map(|sidecar| about(&sidecar.log(), name)).unwrap_or_default()
    }

    /// WARN and ERROR lines of its log, without their times.
    fn complaints(&self) -> Vec<String> {
        self.sidecar.as_ref().map(|sidecar| complaints(&sidecar.log())).unwrap_or_default()
    }
}

fn namespace(n: u8) -> String {
    format!("tenant-{n}")
}

fn complaints(log: &str) -> Vec<String> {
    let is = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    log.lines().filter(is).map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned()).collect()
}

fn about(log: &str, name: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// The controllers, each behind the proxy.
struct Controllers<'a> {
    proxy: &'a FaultProxy,
    clocks: Option<&'a Clocks>,
    processes: Vec<(&'static str, Process)>,
    starts: u64,
    began_with: u64,
}

const CONTROLLERS: [&str; 4] = ["approve-a", "sign-a", "approve-b", "sign-b"];

impl<'a> Controllers<'a> {
    async fn start(lab: &Lab, proxy: &'a FaultProxy, clocks: Option<&'a Clocks>) -> Self {
        let mut all = Self { proxy, clocks, processes: Vec::new(), starts: 0, began_with: 0 };
        for name in CONTROLLERS {
            let process = all.spawn(lab, name).await;
            all.processes.push((name, process));
        }
        all
    }

    async fn spawn(&mut self, lab: &Lab, name: &'static str) -> Process {
        self.starts += 1;
        let machine = if name.ends_with("-a") { Machine::A } else { Machine::B };
        let environment = self.clocks.map(|clocks| clocks.environment(machine)).unwrap_or_default();
        if name.starts_with("sign") {
            // Answered requests are deleted soon, so that the end shows whether anything is left.
            let arguments = ["--delete-issued-after=5s", "--certificates-per-pod=1024"];
            return sign_in(lab, name, &self.proxy.url, ports::loopback(), &arguments, &environment).await;
        }
        lab.approver_in(name, &self.proxy.url, &[], &environment).process
    }

    /// SIGKILL, and another one under its name.
    async fn kill(&mut self, lab: &Lab, n: usize) {
        let n = n % self.processes.len();
        self.processes[n].1.kill();
        let name = self.processes[n].0;
        self.processes[n].1 = self.spawn(lab, name).await;
    }

    /// MiB of own data of the one that has most.
    fn memory(&self) -> u64 {
        let of = |process: &Process| {
            let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.id())).expect("a running process");
            let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("its anonymous memory");
            line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
        };
        self.processes.iter().map(|(_, process)| of(process)).max().unwrap_or_default()
    }

    /// Lines of their logs about a request.
    fn of(&self, name: &str) -> Vec<String> {
        self.processes.iter().flat_map(|(_, process)| about(&process.log(), name)).collect()
    }

    fn all_run(&mut self) {
        for (name, process) in &mut self.processes {
            assert!(process.running(), "{name} ended by itself:\n{}", process.log_end());
        }
    }
}

fn seconds() -> Duration {
    let given = env::var("ETCD_TLS_FAULTS_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(90))
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    env::var("ETCD_TLS_FAULTS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(now)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_between_all_and_the_api_server_lose_nothing() {
    let Some(mut lab) = Lab::new().await else { return };
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/flow.yaml").display().to_string()]);
    let (seconds, seed) = (seconds(), seed());
    say(&format!("faults for {seconds:?}; ETCD_TLS_FAULTS_SEED={seed} plans the same"));
    let proxy = FaultProxy::start(&lab.api, seed).await;
    let witness = Witness::start(&lab.api.client, names::SYSTEM_NAMESPACE);
    let clocks = tier::faketime().map(Clocks::new);
    let mut controllers = Controllers::start(&lab, &proxy, clocks.as_ref()).await;
    let mut members = Vec::new();
    for n in 0..NAMESPACES {
        lab.api.namespace(&namespace(n), &[(names::LABEL, names::DYNAMIC)]).await;
        members.extend(join_all((0..MEMBERS).map(|m| Member::new(&lab, &proxy, clocks.as_ref(), n, m))).await);
    }
    controllers.began_with = controllers.memory();

    // From the first certificate on.
    proxy.set_faulty(true);
    join_all(members.iter_mut().map(|(member, environment)| member.start(environment))).await;
    let mut members: Vec<Member> = members.into_iter().map(|(member, _)| member).collect();
    let first: Vec<_> = members.iter().map(Member::serials).collect();

    let slow_disk = SlowDisk::of(lab.api.pids()[1]);
    let began = Instant::now();
    let (mut asked, mut kills, mut restarts) = (0, 0, 0);
    while began.elapsed() < seconds {
        sleep(Duration::from_millis(500)).await;
        let elapsed = began.elapsed();
        if elapsed > RENEW * asked {
            asked += 1;
            members.iter().for_each(|member| member.ask(&format!("round {asked}")));
        }
        if elapsed > KILL * (kills + 1) {
            controllers.kill(&lab, kills as usize).await;
            kills += 1;
        }
        if elapsed > RESTART + RESTART_EVERY * restarts {
            restarts += 1;
            lab.api.restart(Duration::from_secs(2)).await;
        }
        if let Some(clocks) = &clocks {
            clocks.step_at(elapsed);
            let all = controllers.processes.iter().map(|(_, process)| process);
            clocks.look(all.chain(members.iter().filter_map(|member| member.sidecar.as_ref())));
        }
        controllers.all_run();
        for member in &mut members {
            member.serials();
            let sidecar = member.sidecar.as_mut().expect("started");
            assert!(sidecar.running(), "a sidecar ended by itself:\n{}", sidecar.log_end());
        }
    }
    proxy.set_faulty(false);
    let stalls = slow_disk.end();
    if let Some(clocks) = &clocks {
        clocks.set_right();
        say(&format!("{} steps of clocks", clocks.steps()));
        clocks.assert_seen();
    }
    let counts = proxy.counts();
    let faults: u64 = counts.iter().filter(|(name, _)| **name != "calls").map(|(_, count)| count).sum();
    say(&format!(
        "{asked} rounds, {kills} kills, {restarts} restarts of the API server, {stalls} stalls of its etcd, {faults} faults: {counts:?}"
    ));
    assert!(faults > 50, "hardly anything happened: {counts:?}");

    // They recover from every wait.
    members.iter().for_each(|member| member.ask("at the end"));
    let before: Vec<_> = members.iter().map(Member::serials).collect();
    for (n, member) in members.iter().enumerate() {
        eventually(&format!("{}/{} renews again", member.namespace(), member.name()), LIMIT, || async {
            let now = member.serials();
            let changed = now.iter().all(|(role, serial)| before[n][role] != *serial);
            if changed { Ok(()) } else { Err(member.sidecar.as_ref().map(Process::log_end).unwrap_or_default()) }
        })
        .await;
        assert!(member.serials().iter().all(|(role, serial)| first[n][role] != *serial));
    }
    eventually("no request is left over", LIMIT, || async {
        let left = csrs(&lab).await;
        let Some(one) = left.first() else { return Ok(()) };
        let name = one.metadata.name.as_deref().unwrap_or_default();
        let said = controllers.of(name).into_iter().chain(members.iter().flat_map(|member| member.of(name)));
        Err(format!("{} are: {:?} {:?}\n{}", left.len(), one.metadata, one.status, said.collect::<Vec<_>>().join("\n")))
    })
    .await;

    let keys = keys(&lab).await;
    assert!(keys.len() > usize::from(NAMESPACES), "{} keys", keys.len());
    for (name, process) in &controllers.processes {
        let log = process.log();
        assert!(!keys.iter().any(|key| log.contains(key)), "{name} logged a CA's key");
    }
    let truths = witness.truths();
    truths.assert_one_each();
    assert!(truths.refused.is_empty(), "refused for a fault: {:#?}", truths.refused);
    let (grown, now) = (controllers.memory().saturating_sub(controllers.began_with), controllers.memory());
    let mut lines = 0;
    for (of, said) in
        controllers.processes.iter().map(|(name, process)| ((*name).to_owned(), complaints(&process.log()))).chain(
            members.iter().map(|member| (format!("{}/{}", member.namespace(), member.name()), member.complaints())),
        )
    {
        let most = most_repeated(&said);
        println!("{of}: {} complaints, most often {most:?}", said.len());
        lines += said.len() as u64;
    }
    say(&format!(
        "{} certificates; {now} MiB, {grown} more than at the start; {lines} complaints",
        truths.certificates.len()
    ));
    assert!(grown <= GROWTH, "{grown} MiB more than at the start");
    let starts = controllers.starts + members.len() as u64;
    assert!(
        lines <= LINES_A_FAULT * faults + LINES_A_START * starts,
        "{lines} lines for {faults} faults and {starts} starts"
    );
}

/// A part of each CA's key, as a Secret holds it on its way.
async fn keys(lab: &Lab) -> Vec<String> {
    let api: Api<Secret> = Api::namespaced(lab.api.client.clone(), names::SYSTEM_NAMESPACE);
    let all = api.list(&ListParams::default()).await.expect("list Secrets");
    let keys = all.items.into_iter().flat_map(|secret| secret.data.unwrap_or_default());
    let keys = keys.filter(|(name, _)| name.ends_with(".key"));
    keys.map(|(_, pem)| BASE64.encode(&pem.0)[60..120].to_owned()).collect()
}

/// The line that is there most often, digits aside, and how often.
fn most_repeated(lines: &[String]) -> Option<(String, usize)> {
    let mut counts = BTreeMap::<String, usize>::new();
    for line in lines {
        let shape: String = line.chars().filter(|c| !c.is_ascii_digit()).take(160).collect();
        *counts.entry(shape).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}
