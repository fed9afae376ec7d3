//! A node of its own on this machine: a real kubelet and a real containerd with directories of their own, which run static pods
//! on the host's network. There is no network of pods. It can lose its power.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    eventually, ports,
    process::{Process, run},
    say,
    temp::TempDir,
    tier::Runtime,
};

/// How long containerd may take to answer.
const LIMIT: Duration = Duration::from_secs(60);
/// A kubelet that has not ended by then has found its runtime.
const SETTLED: Duration = Duration::from_secs(2);
/// How much of a container's log is shown when a test fails.
const SHOWN_LINES: usize = 15;
/// containerd's namespace of kubelet's containers.
const NAMESPACE: &str = "k8s.io";

/// A node. Dropped, it has no power, and nothing of it is left.
pub struct Node {
    name: String,
    address: IpAddr,
    runtime: Runtime,
    /// kubelet's API server; without one kubelet knows its static pods alone.
    pub kubeconfig: Option<PathBuf>,
    kubelet: Option<Process>,
    containerd: Option<Process>,
    dir: TempDir,
}

impl Node {
    /// Prepares its files, without power. `address` is one of this machine's, and none of loopback, which kubelet refuses.
    pub fn new(runtime: Runtime, name: &str, address: IpAddr) -> Self {
        let dir = TempDir::new("node");
        dir.dir("manifests");
        dir.write("containerd.toml", containerd(dir.path()));
        let node =
            Self { name: name.to_owned(), address, runtime, kubeconfig: None, kubelet: None, containerd: None, dir };
        node.dir.write("kubelet.json", node.configuration().to_string());
        node
    }

    /// Has kubelet start with these feature gates on.
    pub fn turn_on(&self, gates: &[&str]) {
        let mut configuration = self.configuration();
        configuration["featureGates"] = gates.iter().map(|gate| ((*gate).to_owned(), Value::Bool(true))).collect();
        self.dir.write("kubelet.json", configuration.to_string());
    }

    /// The directory of a projected volume of the pod with this uid, where kubelet has it.
    pub fn projected(&self, pod_uid: &str, volume: &str) -> PathBuf {
        self.dir.join(format!("kubelet/pods/{pod_uid}/volumes/kubernetes.io~projected/{volume}"))
    }

    /// Starts containerd and kubelet, as an init system does. The first time containerd gets the images.
    pub async fn power_on(&mut self) {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.dir.join("containerd.toml"));
        self.containerd = Some(Process::spawn("containerd", &mut command, self.dir.path()));
        eventually("containerd answers", LIMIT, || async {
            let output = self.ctr(&self.socket()).arg("version").output().map_err(|e| e.to_string())?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        })
        .await;
        let images = self.dir.join("images.tar");
        if !images.exists() {
            let listed = run(self.ctr(&self.runtime.socket).args(["images", "ls", "-q"]));
            let wanted = listed.lines().filter(|name| !name.contains("sha256:"));
            run(self.ctr(&self.runtime.socket).args(["images", "export"]).arg(&images).args(wanted));
            run(self.ctr(&self.socket()).args(["images", "import"]).arg(&images));
        }
        // containerd answers before its part for kubelet does, at which kubelet ends; an init system starts it again.
        let began = Instant::now();
        loop {
            let mut kubelet = self.start_kubelet();
            tokio::time::sleep(SETTLED).await;
            if kubelet.running() {
                self.kubelet = Some(kubelet);
                break;
            }
            assert!(began.elapsed() < LIMIT, "kubelet does not stay: {}", kubelet.log_end());
        }
    }

    fn start_kubelet(&self) -> Process {
        let mut command = Command::new(self.runtime.assets.join("kubelet"));
        command.arg("--config").arg(self.dir.join("kubelet.json"));
        command.arg("--root-dir").arg(self.dir.join("kubelet")).arg("--cert-dir").arg(self.dir.join("kubelet-certs"));
        command.arg(format!("--hostname-override={}", self.name)).arg(format!("--node-ip={}", self.address));
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        Process::spawn("kubelet", &mut command, self.dir.path())
    }

    /// Everything ends at once, by SIGKILL: kubelet, containerd and all containers. As after a loss of power, mounts and what a
    /// host has in memory are gone, and what is on disk stays.
    pub fn power_off(&mut self) {
        // First those who would start something again.
        for process in [&mut self.kubelet, &mut self.containerd] {
            if let Some(mut process) = process.take() {
                process.kill();
            }
        }
        let until = Instant::now() + LIMIT;
        loop {
            let running = self.containers();
            if running.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "processes that outlive SIGKILL: {running:?}");
            for pid in running {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let own: Vec<&str> = paths.filter(|path| Path::new(path).starts_with(self.dir.path())).collect();
        for path in own.iter().rev() {
            run(Command::new("umount").arg("-l").arg(path));
        }
        let _ = fs::remove_dir_all(self.dir.join("run"));
    }

    /// Puts a static pod into kubelet's directory, at once as a whole.
    pub fn add(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().expect("a pod has a name");
        let file = self.dir.write(format!("{name}.json"), pod.to_string());
        fs::rename(file, self.dir.join("manifests").join(format!("{name}.json"))).expect("move a manifest");
    }

    /// Takes all static pods out of kubelet's directory.
    pub fn clear(&self) {
        for entry in fs::read_dir(self.dir.join("manifests")).expect("kubelet's directory").flatten() {
            fs::remove_file(entry.path()).expect("remove a manifest");
        }
    }

    /// The end of kubelet's log and of each container's, for a message.
    pub fn state(&self) -> String {
        let mut text = self.kubelet.as_ref().map(Process::log_end).unwrap_or_default();
        for log in files(&self.dir.join("log")) {
            let read = fs::read(&log).unwrap_or_default();
            let read = String::from_utf8_lossy(&read);
            let lines: Vec<&str> = read.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            text.push_str(&format!("\n--- {}\n{end}", log.strip_prefix(self.dir.path()).unwrap_or(&log).display()));
        }
        text
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/containerd.sock")
    }

    fn ctr(&self, socket: &Path) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(socket).args(["--namespace", NAMESPACE]);
        command
    }

    /// The processes of this node's containers: containerd's shims, and all below them.
    fn containers(&self) -> BTreeSet<i32> {
        let socket = self.socket().display().to_string();
        let mut parents = Vec::new();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let mut fields = rest.split(' ');
            // A zombie does not run.
            if matches!(fields.next(), None | Some("Z" | "X")) {
                continue;
            }
            parents.push((pid, fields.next().and_then(|parent| parent.parse::<i32>().ok()).unwrap_or_default()));
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            let shim = words.next().is_some_and(|program| String::from_utf8_lossy(program).contains("containerd-shim"));
            if shim && words.any(|word| word == socket.as_bytes()) {
                found.insert(pid);
            }
        }
        loop {
            let more: Vec<i32> = parents
                .iter()
                .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
                .map(|p| p.0)
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    fn configuration(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "staticPodPath": self.dir.join("manifests"),
            "podLogsDir": self.dir.join("log"),
            "fileCheckFrequency": "1s", "syncFrequency": "5s",
            "address": "127.0.0.1", "port": ports::loopback(), "healthzPort": 0, "readOnlyPort": 0,
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [], "failCgroupV1": false,
            "failSwapOn": false, "resolvConf": "", "evictionHard": {}, "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("--- node {}:\n{}", self.name, self.state()));
        }
        self.power_off();
    }
}

/// containerd's configuration in a directory: no network plugin, and runc's state beside containerd's own.
fn containerd(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{dir}/run"
[grpc]
address = "{dir}/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/no-cni"
conf_dir = "{dir}/no-cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{dir}/run/runc"
"#
    )
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

/// The static pod that does what a process of this machine does: its words, its directory and the variables that it has beyond
/// our own, from an image, on the host's network, with these directories of the host where they are.
///
/// # Panics
/// The process does not run.
pub fn static_pod_of(name: &str, image: &str, process: &Process, directories: &[&Path]) -> Value {
    let proc = PathBuf::from(format!("/proc/{}", process.id()));
    let list = |file: &str| {
        let read = fs::read(proc.join(file)).expect("a process that runs");
        let words = read.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        words.map(|word| String::from_utf8(word.to_vec()).expect("text")).collect::<Vec<_>>()
    };
    let own: BTreeSet<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    let variables = list("environ").into_iter().filter(|variable| !own.contains(variable));
    let variables = variables.filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        // kubelet expands $(NAME).
        Some(json!({"name": name, "value": value.replace("$(", "$$(")}))
    });
    let volumes = directories.iter().enumerate().map(|(i, path)| (format!("host-{i}"), path));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": list("cmdline"),
                "workingDir": fs::read_link(proc.join("cwd")).expect("a process that runs"),
                "env": variables.collect::<Vec<_>>(),
                "volumeMounts": volumes.clone().map(|(name, path)| json!({"name": name, "mountPath": path})).collect::<Vec<_>>(),
            }],
            "volumes": volumes
                .map(|(name, path)| json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}))
                .collect::<Vec<_>>(),
        },
    })
}
