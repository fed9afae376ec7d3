//! Tier 2: a control plane whose etcd has its certificates from a signer that needs this control plane comes back by itself.
//!
//! Three members run from injected static-pod manifests on disk: a supervisor plays kubelet and starts the manifest's
//! containers in their order. A real kube-apiserver keeps its objects in them, and `approve` and `sign` work against it. All of
//! it is killed at once and started in two orders, chosen by the day of the year, or with `ETCD_TLS_SOAK` in each of the six.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    installation::{Installation, controller_again},
    process::{Process, binary},
    self_hosted::{Members, Part, orders},
    signer::{BOOTSTRAP, LIMIT, Signer},
    tier,
};
use tokio::task::JoinHandle;

/// How often a process that ended is started again.
const RESTARTS: Duration = Duration::from_millis(500);
/// How long a part is up before the next one is started, where it has to wait for one that is not up yet.
const ALONE: Duration = Duration::from_secs(3);

/// A container's command as it runs without a runtime: paths of its mounts are those of the host.
fn command(container: &Value, pod: &Value, program: &Path, name: &str, address: IpAddr) -> Command {
    let host = |volume: &str| {
        let all = pod["spec"]["volumes"].as_array().expect("volumes");
        let found = all.iter().find(|v| v["name"] == volume).expect("a volume of that name");
        found["hostPath"]["path"].as_str().expect("a directory of the host").to_owned()
    };
    let mounts: Vec<(String, String)> = container["volumeMounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .map(|m| (m["mountPath"].as_str().expect("a path").to_owned(), host(m["name"].as_str().expect("a name"))))
        .collect();
    let list = |field: &str| container[field].as_array().cloned().unwrap_or_default();
    let mut words = [list("command").get(1..).unwrap_or_default().to_vec(), list("args")].concat();
    if words.first().is_some_and(|word| word == "run") {
        // The image's default path of its files.
        words.push("--assetsdir=/var/run/etcd-tls/certs".into());
    }
    let mut command = Command::new(program);
    for word in &words {
        let word = word.as_str().expect("a word").replace("$(HOST_NAME)", name);
        let word = word.replace("$(HOST_IPS)", &format!("{address},127.0.0.1"));
        let (flag, value) = word.split_once('=').map_or(("", word.as_str()), |(flag, value)| (flag, value));
        let mount = mounts.iter().find(|(mount, _)| value.starts_with(mount.as_str()));
        let value = mount.map_or_else(|| value.to_owned(), |(mount, host)| value.replacen(mount, host, 1));
        command.arg(if flag.is_empty() { value } else { format!("{flag}={value}") });
    }
    command.env("HOST_NAME", name).env("POD_IP", address.to_string());
    command
}

/// kubelet's part: runs the pod until it is aborted, and restarts ended processes.
async fn kubelet(dir: PathBuf, pod: Value, name: String, address: IpAddr, etcd: PathBuf) {
    let sidecar = binary("etcd-tls-sidecar");
    let of = |container: &Value, program: &Path| command(container, &pod, program, &name, address);
    let init = pod["spec"]["initContainers"].as_array().expect("injected");
    loop {
        let mut process = Process::spawn("init", &mut of(&init[0], &sidecar), &dir);
        if process.wait(LIMIT).await.success() {
            break;
        }
        tokio::time::sleep(RESTARTS).await;
    }
    let start = [
        ("sidecar", init[1].clone(), sidecar.as_path()),
        ("etcd", pod["spec"]["containers"][0].clone(), etcd.as_path()),
    ];
    let mut running: [Option<Process>; 2] = [None, None];
    loop {
        for ((what, container, program), process) in start.iter().zip(&mut running) {
            if !process.as_mut().is_some_and(Process::running) {
                *process = Some(Process::spawn(what, &mut of(container, program), &dir));
            }
        }
        tokio::time::sleep(RESTARTS).await;
    }
}

struct Plane {
    members: Members,
    kubelets: Vec<JoinHandle<()>>,
    etcd: PathBuf,
}

impl Plane {
    fn start(&mut self) {
        for member in &self.members.all {
            let (dir, host, pod) = (member.dir.clone(), member.host.clone(), member.pod());
            self.kubelets.push(tokio::spawn(kubelet(dir, pod, host, member.address, self.etcd.clone())));
        }
    }

    /// SIGKILL to init containers, sidecars and etcds.
    async fn kill(&mut self) {
        self.kubelets.iter().for_each(JoinHandle::abort);
        for kubelet in self.kubelets.drain(..) {
            let _ = kubelet.await;
        }
    }
}

/// Kills all at once, starts the parts in an order, and waits until a host gets new certificates from the cluster.
async fn reboot(plane: &mut Plane, installation: &mut Installation, order: [Part; 3]) {
    let case = format!("{order:?}");
    let value = format!("before {case}");
    plane.members.etcdctl(&["put", "/test", &value]).expect("a write");
    installation.api.process().kill();
    installation.sign.kill();
    installation.approve.kill();
    plane.kill().await;
    let mut started: Vec<Part> = Vec::new();
    for part in order {
        started.push(part);
        let began = Instant::now();
        if part == Part::Etcds {
            plane.start();
            // From valid files on disk, with or without the others.
            plane.members.up(&format!("{case}: etcd with nothing but {started:?}")).await;
            println!("{case}: etcd is back after {:?}", began.elapsed());
            assert!(plane.members.etcdctl(&["get", "/test"]).expect("a read").contains(&value), "{case}");
        }
        while began.elapsed() < ALONE && started.len() < 3 {
            keep_up(installation, &started);
            tokio::time::sleep(RESTARTS).await;
        }
    }
    let began = Instant::now();
    loop {
        keep_up(installation, &started);
        match installation.api.ready().await {
            Ok(_) => break,
            Err(error) => assert!(began.elapsed() < LIMIT, "{case}: {error}\n{}", installation.api.log()),
        }
        tokio::time::sleep(RESTARTS).await;
    }
    // Asked for by a host that has nothing but its credential, so the approver and the signer work.
    let (mut request, anew) = plane.members.all[0].request_anew(&case);
    let until = Instant::now() + LIMIT;
    while request.running() {
        keep_up(installation, &started);
        assert!(Instant::now() < until, "{case}: {}\n{}", request.log_end(), installation.sign.log_end());
        tokio::time::sleep(RESTARTS).await;
    }
    assert!(request.exited().is_some_and(|status| status.success()), "{case}: {}", request.log_end());
    assert!(anew.join("server/tls.crt").exists());
    println!("{case}: all is back {:?} after the last was started", began.elapsed());
}

/// kubelet's part for the others: restarts ended processes.
fn keep_up(installation: &mut Installation, started: &[Part]) {
    if started.contains(&Part::Api) {
        installation.api.keep_up();
    }
    if started.contains(&Part::Signer) {
        for (name, process) in [("sign", &mut installation.sign), ("approve", &mut installation.approve)] {
            if !process.running() {
                *process = controller_again(&installation.api, name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_control_plane_comes_back_in_whatever_order_it_is_started() {
    let Some(etcd) = tier::etcd() else { return };
    if tier::kubernetes().is_none() {
        return;
    }
    let names = ["peer", "server"]
        .map(|role| format!("--approve-group=system:bootstrappers:etcd={role}:127.0.0.0/8,cp-1,cp-2,cp-3,localhost"));
    let mut signer = Signer::started(&[names[0].as_str(), names[1].as_str()]).await;
    let bootstrap = fs::read_to_string(signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP)).expect("read");
    let hosts = [("cp-1", 2), ("cp-2", 3), ("cp-3", 4)].map(|(name, last)| (name, IpAddr::from([127, 0, 0, last])));
    let etcdctl = etcd.etcdctl.clone().expect("etcdctl beside etcd or in PATH");
    let members = Members::new(&signer, etcdctl, "registry.example/etcd:3.4.0", &hosts, &bootstrap);
    let mut plane = Plane { members, kubelets: Vec::new(), etcd: etcd.etcd.clone() };
    let began = Instant::now();
    plane.start();
    plane.members.up("etcd with its first certificates, of a signer on a host").await;
    println!("etcd is up after {:?}", began.elapsed());

    // The control plane on it, with a signer of its own, which takes over the CA.
    let Some(mut installation) = plane.members.control_plane(&signer, &bootstrap).await else { return };
    println!("the CA is the cluster's after {:?}", began.elapsed());
    signer.process().kill();
    plane.kill().await;
    plane.start();
    plane.members.up("etcd with its certificates, and the first signer gone").await;
    plane.members.ask_at(&installation.api.url).await;
    println!("the hosts are the cluster's after {:?}", began.elapsed());
    for order in orders() {
        reboot(&mut plane, &mut installation, order).await;
    }
}
