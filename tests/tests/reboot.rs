//! Tier 2: a control plane whose etcd has its certificates from a signer that needs this control plane comes back by itself.
//!
//! Three members run from injected static-pod manifests on disk: a supervisor plays kubelet and starts the manifest's
//! containers in their order. A real kube-apiserver keeps its objects in them, and `approve` and `sign` work against it. All of
//! it is killed at once and started in two orders, or with `ETCD_TLS_SOAK` in each of the six.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::certificate::Bundle;
use serde_json::{Value, json};
use tests::{
    apiserver,
    etcd::EtcdBinary,
    eventually,
    pki::LeafOptions,
    ports,
    process::{Process, binary, run},
    signer::{BOOTSTRAP, LIMIT, Signer},
    stack::{Options, Stack, controller_again},
    tier,
};
use tokio::task::JoinHandle;

/// How often a process that ended is started again.
const RESTARTS: Duration = Duration::from_millis(500);
/// How long a part is up before the next one is started, where it has to wait for one that is not up yet.
const ALONE: Duration = Duration::from_secs(3);

/// The parts of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Etcds,
    Api,
    Signer,
}

/// Each order; the first two are the extremes.
const ORDERS: [[Part; 3]; 6] = [
    [Part::Etcds, Part::Signer, Part::Api],
    [Part::Signer, Part::Api, Part::Etcds],
    [Part::Etcds, Part::Api, Part::Signer],
    [Part::Api, Part::Etcds, Part::Signer],
    [Part::Api, Part::Signer, Part::Etcds],
    [Part::Signer, Part::Etcds, Part::Api],
];

/// A host with etcd as a static pod.
struct Host {
    name: String,
    dir: PathBuf,
    url: String,
    address: IpAddr,
    kubelet: Option<JoinHandle<()>>,
}

/// A manifest as kubeadm writes it, with the member's own addresses.
fn manifest(name: &str, urls: &[(String, String, String)], at: usize, dir: &Path) -> Value {
    let (_, client, peer) = &urls[at];
    let cluster: Vec<String> = urls.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
    let pki = "/etc/kubernetes/pki/etcd";
    let volume =
        |name: &str, path: &Path| json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let admin = ports::free(Ipv4Addr::LOCALHOST).to_string();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "etcd", "namespace": "kube-system", "annotations": {"etcd-tls.dev/admin-port": admin}},
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "etcd", "image": "registry.example/etcd:3.4.0",
                "command": [
                    "etcd", format!("--name={name}"), "--data-dir=/var/lib/etcd", "--client-cert-auth=true", "--peer-client-cert-auth=true",
                    format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster={}", cluster.join(",")),
                    format!("--cert-file={pki}/server.crt"), format!("--key-file={pki}/server.key"),
                    format!("--trusted-ca-file={pki}/ca.crt"), format!("--peer-cert-file={pki}/peer.crt"),
                    format!("--peer-key-file={pki}/peer.key"), format!("--peer-trusted-ca-file={pki}/ca.crt"),
                ],
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}, {"name": "pki", "mountPath": pki}],
            }],
            "volumes": [volume("data", &dir.join("data")), volume("pki", &dir.join("pki"))],
        },
    })
}

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

/// kubelet's part: runs the manifest on disk until it is aborted, and restarts ended processes.
async fn kubelet(dir: PathBuf, name: String, address: IpAddr, etcd: PathBuf) {
    let text = fs::read_to_string(dir.join("etcd.json")).expect("the static pod's manifest");
    let pod: Value = serde_json::from_str(&text).expect("JSON");
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
    hosts: Vec<Host>,
    etcd: PathBuf,
    etcdctl: PathBuf,
    client: PathBuf,
}

impl Plane {
    /// Three hosts, whose manifests are injected offline.
    fn new(signer: &Signer, etcd: &EtcdBinary, bootstrap: &str) -> Self {
        let addresses = [2, 3, 4].map(|last| IpAddr::from([127, 0, 0, last]));
        let urls: Vec<(String, String, String)> = addresses
            .iter()
            .enumerate()
            .map(|(i, address)| {
                let url = || format!("https://{address}:{}", ports::free(*address));
                (format!("cp-{}", i + 1), url(), url())
            })
            .collect();
        let mut hosts = Vec::new();
        for (i, (name, url, _)) in urls.iter().enumerate() {
            let dir = signer.dir.dir(name);
            fs::create_dir_all(dir.join("kube")).expect("a directory");
            fs::write(dir.join("kube/bootstrap.kubeconfig"), bootstrap).expect("write");
            let original = dir.join("original.json");
            fs::write(&original, manifest(name, &urls, i, &dir).to_string()).expect("write");
            let mut command = Command::new(binary("etcd-tls-webhook"));
            command.args(["inject", "--static", "--filename"]).arg(&original);
            command.arg("--kubeconfig").arg(dir.join("kube/kubeconfig"));
            command.arg("--bootstrap-kubeconfig").arg(dir.join("kube/bootstrap.kubeconfig"));
            let injected = run(command.arg("--host-dir").arg(dir.join("certs")));
            fs::write(dir.join("etcd.json"), injected).expect("write");
            hosts.push(Host { name: name.clone(), dir, url: url.clone(), address: addresses[i], kubelet: None });
        }
        let client = signer.dir.join("kube-apiserver");
        let organizations = vec!["system:etcd-clients".to_owned()];
        let options = LeafOptions { organizations, common_name: "kube-apiserver".to_owned(), ..LeafOptions::default() };
        signer.ca.write_role(&client, &options);
        let etcdctl = etcd.etcdctl.clone().expect("etcdctl beside etcd or in PATH");
        Self { hosts, etcd: etcd.etcd.clone(), etcdctl, client }
    }

    fn start(&mut self) {
        for host in &mut self.hosts {
            let (dir, name) = (host.dir.clone(), host.name.clone());
            host.kubelet = Some(tokio::spawn(kubelet(dir, name, host.address, self.etcd.clone())));
        }
    }

    /// SIGKILL to init containers, sidecars and etcds.
    async fn kill(&mut self) {
        let all: Vec<JoinHandle<()>> = self.hosts.iter_mut().filter_map(|host| host.kubelet.take()).collect();
        all.iter().for_each(JoinHandle::abort);
        for kubelet in all {
            let _ = kubelet.await;
        }
    }

    fn endpoints(&self) -> String {
        self.hosts.iter().map(|host| host.url.as_str()).collect::<Vec<_>>().join(",")
    }

    fn etcdctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.etcdctl);
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoints()));
        for (flag, file) in [("cacert", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key")] {
            command.arg(format!("--{flag}={}", self.client.join(file).display()));
        }
        let output =
            command.args(["--command-timeout=3s", "--dial-timeout=2s"]).args(arguments).output().expect("etcdctl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Waits until each member answers by consensus.
    async fn up(&self, what: &str) {
        eventually(what, LIMIT, || async { tokio::task::block_in_place(|| self.etcdctl(&["endpoint", "health"])) })
            .await;
    }
}

/// Kills all at once, starts the parts in an order, and waits until a host gets new certificates from the cluster.
async fn reboot(plane: &mut Plane, stack: &mut Stack, order: [Part; 3]) {
    let case = format!("{order:?}");
    let value = format!("before {case}");
    plane.etcdctl(&["put", "/test", &value]).expect("a write");
    stack.api.process().kill();
    stack.sign.kill();
    stack.approve.kill();
    plane.kill().await;
    let mut started: Vec<Part> = Vec::new();
    for part in order {
        started.push(part);
        let began = Instant::now();
        if part == Part::Etcds {
            plane.start();
            // From valid files on disk, with or without the others.
            plane.up(&format!("{case}: etcd with nothing but {started:?}")).await;
            println!("{case}: etcd is back after {:?}", began.elapsed());
            assert!(plane.etcdctl(&["get", "/test"]).expect("a read").contains(&value), "{case}");
        }
        while began.elapsed() < ALONE && started.len() < 3 {
            keep_up(stack, &started);
            tokio::time::sleep(RESTARTS).await;
        }
    }
    let began = Instant::now();
    loop {
        keep_up(stack, &started);
        match stack.api.ready().await {
            Ok(_) => break,
            Err(error) => assert!(began.elapsed() < LIMIT, "{case}: {error}\n{}", stack.api.log()),
        }
        tokio::time::sleep(RESTARTS).await;
    }
    // Asked for by a host that has nothing but its credential, so the approver and the signer work.
    let host = &plane.hosts[0];
    let anew = host.dir.join(format!("anew-{}", case.replace(|c: char| !c.is_ascii_alphabetic(), "")));
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--roles=peer,server", "--timeout=120s"]).arg(format!("--name={}", host.name));
    command.arg(format!("--ipaddrs={},127.0.0.1", host.address)).arg("--assetsdir").arg(&anew);
    command.arg("--kubeconfig").arg(host.dir.join("kube/kubeconfig"));
    let mut request = Process::spawn("anew", &mut command, &host.dir);
    let until = Instant::now() + LIMIT;
    while request.running() {
        keep_up(stack, &started);
        assert!(Instant::now() < until, "{case}: {}\n{}", request.log_end(), stack.sign.log_end());
        tokio::time::sleep(RESTARTS).await;
    }
    assert!(request.exited().is_some_and(|status| status.success()), "{case}: {}", request.log_end());
    assert!(anew.join("server/tls.crt").exists());
    println!("{case}: all is back {:?} after the last was started", began.elapsed());
}

/// kubelet's part for the others: restarts ended processes.
fn keep_up(stack: &mut Stack, started: &[Part]) {
    if started.contains(&Part::Api) {
        stack.api.keep_up();
    }
    if started.contains(&Part::Signer) {
        for (name, process) in [("sign", &mut stack.sign), ("approve", &mut stack.approve)] {
            if !process.running() {
                *process = controller_again(&stack.api, name);
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
    let mut plane = Plane::new(&signer, &etcd, &bootstrap);
    let began = Instant::now();
    plane.start();
    plane.up("etcd with its first certificates, of a signer on a host").await;
    println!("etcd is up after {:?}", began.elapsed());

    // The control plane on it, with a signer of its own, which takes over the CA.
    let file = |name: &str| plane.client.join(name).display().to_string();
    let api = apiserver::Options {
        etcd: Some(plane.endpoints()),
        apiserver_arguments: vec![
            format!("--etcd-cafile={}", file("ca.crt")),
            format!("--etcd-certfile={}", file("tls.crt")),
            format!("--etcd-keyfile={}", file("tls.key")),
        ],
        ..apiserver::Options::default()
    };
    let Some(mut stack) = Stack::start(&Options { api, ..Options::default() }).await else { return };
    println!("the stack is up after {:?}", began.elapsed());
    let pki = stack.api.directory().join("pki/ca.crt");
    fs::write(&pki, format!("{}{}", stack.api.ca.pem, signer.ca.pem)).expect("write");
    let path = |name: &str| signer.dir.join(name).display().to_string();
    for domain in ["peer", "client"] {
        let (name, cert, key) = (format!("kube-system-etcd-{domain}"), path("ca.crt"), path("ca.key"));
        stack.api.kubectl(&["-n", "etcd-tls-system", "create", "secret", "tls", &name, "--cert", &cert, "--key", &key]);
    }
    let shipped = |name: &str| {
        let file = tests::repository().join("manifests/examples/self-hosted").join(name);
        fs::read_to_string(file).expect("a shipped example")
    };
    let mut policy = shipped("policy.yaml");
    for (i, host) in plane.hosts.iter().enumerate() {
        policy = policy.replace(&format!("192.0.2.1{}", i + 1), &host.address.to_string());
    }
    stack.api.apply(&policy);
    stack.api.apply(&shipped("rbac.yaml"));
    eventually("trust of the hosts' cluster", LIMIT, || async {
        let found = stack.bundle("kube-system", "peer").await.ok_or("none")?;
        if Bundle::parse(found.as_bytes()) == Bundle::parse(signer.ca.pem.as_bytes()) { Ok(()) } else { Err("another") }
    })
    .await;
    let text = bootstrap
        .replace(&format!("https://127.0.0.1:{}", signer.port), &stack.api.url)
        .replace(&STANDARD.encode(&signer.serving.pem), &STANDARD.encode(&stack.api.ca.pem));
    for host in &plane.hosts {
        fs::write(host.dir.join("kube/bootstrap.kubeconfig"), &text).expect("write");
    }
    println!("the CA is the cluster's after {:?}", began.elapsed());
    signer.process().kill();
    plane.kill().await;
    plane.start();
    plane.up("etcd with its certificates, and the first signer gone").await;
    for host in &plane.hosts {
        eventually("a kubeconfig for the cluster", LIMIT, || async {
            let kubeconfig = fs::read_to_string(host.dir.join("kube/kubeconfig")).unwrap_or_default();
            if kubeconfig.contains(&stack.api.url) { Ok(()) } else { Err(kubeconfig) }
        })
        .await;
    }
    println!("the hosts are the cluster's after {:?}", began.elapsed());
    let orders = if tier::soaking() { &ORDERS[..] } else { &ORDERS[..2] };
    for order in orders.iter().copied() {
        reboot(&mut plane, &mut stack, order).await;
    }
}
