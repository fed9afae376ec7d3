//! A pod's containers as local processes: does kubelet's work for an injected manifest, as far as processes need it.
//!
//! Volumes are directories, and every mount path in a container's arguments and environment is written as its
//! directory's. Init containers run to their end in order, native sidecars go on, the containers follow; liveness probes
//! restart a container as kubelet would.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use etcd_tls_contract::names;
use serde_json::Value;

use crate::{etcd_client::EtcdClient, process::Process, temp::TempDir};

/// The values that a node gives a pod and that are not in its manifest.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// Where its processes are reached by probes; loopback unless they listen elsewhere.
    pub reached_at: Option<IpAddr>,
    /// `spec.nodeName`.
    pub node: String,
    /// `KUBERNETES_SERVICE_HOST` and so on.
    pub environment: Vec<(String, String)>,
    /// Where the service account's token, `ca.crt` and `namespace` are.
    pub token_directory: PathBuf,
    /// The ConfigMaps that its volumes name, each a directory with a file a key.
    pub config_maps: BTreeMap<String, PathBuf>,
    /// How much faster than a kubelet to probe: periods are divided by this; 0 is as a kubelet does.
    pub hurry: u32,
    /// The programs, by the container's `command[0]`, or by its image where it has no command.
    pub programs: BTreeMap<String, PathBuf>,
}

/// A pod that runs as local processes. Dropped, they are killed and its volumes are gone.
pub struct LocalPod {
    manifest: Value,
    surroundings: Surroundings,
    containers: BTreeMap<String, Running>,
    // After the processes that use them.
    directory: TempDir,
    /// The volumes of medium Memory.
    memory: TempDir,
}

struct Running {
    process: Process,
    restarts: u32,
    failed_probes: u64,
    probe_due: Instant,
}

/// A container that was started again, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Its name.
    pub container: String,
    /// `exit status: 1`, or that its liveness probe failed.
    pub reason: String,
}

impl LocalPod {
    /// Takes an injected pod; nothing runs yet.
    pub fn new(manifest: Value, surroundings: Surroundings) -> Self {
        let name = manifest["metadata"]["name"].as_str().unwrap_or("pod").to_owned();
        let (directory, memory) = (TempDir::new(&name), TempDir::in_memory(&name));
        let pod = Self { manifest, surroundings, containers: BTreeMap::new(), directory, memory };
        for volume in pod.list("volumes") {
            let name = format!("volumes/{}", text(&volume["name"]));
            if volume["emptyDir"]["medium"] == "Memory" || is_of_pod_certificates(&volume) {
                pod.memory.dir(&name);
            } else if !volume["emptyDir"].is_null() {
                pod.directory.dir(&name);
            }
        }
        pod
    }

    /// Gives a container one more argument.
    pub fn add_argument(&mut self, container: &str, argument: &str) {
        for of in ["initContainers", "containers"] {
            for object in self.manifest["spec"][of].as_array_mut().into_iter().flatten() {
                if object["name"] == container
                    && let Some(arguments) = object["args"].as_array_mut()
                {
                    arguments.push(argument.into());
                }
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        text(&self.manifest["metadata"]["name"])
    }

    /// Runs its init containers in order, leaves its native sidecars running, and starts its containers.
    ///
    /// # Errors
    /// An init container that failed: its name, its status and its log.
    pub async fn start(&mut self, limit: Duration) -> Result<(), String> {
        self.initialise(limit).await?;
        for container in self.list("containers") {
            self.start_container(text(&container["name"]));
        }
        Ok(())
    }

    /// The first half of [`Self::start`].
    ///
    /// # Errors
    /// As there.
    pub async fn initialise(&mut self, limit: Duration) -> Result<(), String> {
        for container in self.list("initContainers") {
            let name = text(&container["name"]).to_owned();
            self.start_container(&name);
            if container["restartPolicy"] == "Always" {
                self.started(&container, limit).await?;
            } else {
                let status = self.process(&name).wait(limit).await;
                if !status.success() {
                    let log = self.process(&name).log_end();
                    return Err(format!("{}/{name}: {status}:\n{log}", self.name()));
                }
            }
        }
        Ok(())
    }

    /// Runs one init container to its end.
    pub async fn run_to_end(&mut self, container: &str, limit: Duration) -> ExitStatus {
        self.start_container(container);
        self.process(container).wait(limit).await
    }

    /// Starts one container, or starts it again.
    pub fn start_container(&mut self, name: &str) {
        let container = self.container(name);
        let mut command = self.command(&container);
        let process = Process::spawn(name, &mut command, self.directory.path());
        let restarts = self.containers.remove(name).map_or(0, |old| old.restarts + 1);
        let delay = container["livenessProbe"]["initialDelaySeconds"].as_u64().unwrap_or(0);
        let probe_due = Instant::now() + Duration::from_secs(delay);
        self.containers.insert(name.to_owned(), Running { process, restarts, failed_probes: 0, probe_due });
    }

    /// A container's process.
    pub fn process(&mut self, name: &str) -> &mut Process {
        &mut self.containers.get_mut(name).unwrap_or_else(|| panic!("container {name} was not started")).process
    }

    /// All that a container has logged, of all its runs.
    pub fn log(&self, name: &str) -> String {
        self.containers.get(name).map(|c| c.process.log()).unwrap_or_default()
    }

    /// How often a container was started again.
    pub fn restarts(&self, name: &str) -> u32 {
        self.containers.get(name).map_or(0, |c| c.restarts)
    }

    /// The directory behind a path that a container sees.
    pub fn path(&self, container: &str, path: &str) -> PathBuf {
        PathBuf::from(self.mapped(&self.container(container), path))
    }

    /// The directory of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        let volume = self
            .list("volumes")
            .into_iter()
            .find(|v| v["name"] == name)
            .unwrap_or_else(|| panic!("{} has no volume {name}", self.name()));
        if let Some(config_map) = volume["configMap"]["name"].as_str() {
            let known = self.surroundings.config_maps.get(config_map);
            return known.unwrap_or_else(|| panic!("no ConfigMap {config_map}")).clone();
        }
        if is_of_pod_certificates(&volume) {
            return self.memory.join(format!("volumes/{name}"));
        }
        if !volume["projected"].is_null() {
            return self.surroundings.token_directory.clone();
        }
        let directory = if volume["emptyDir"]["medium"] == "Memory" { &self.memory } else { &self.directory };
        directory.join(format!("volumes/{name}"))
    }

    /// One look of kubelet's: starts again what ended or what its liveness probe gave up; says what it did.
    pub async fn supervise(&mut self) -> Vec<Restart> {
        let mut restarts = Vec::new();
        for name in self.containers.keys().cloned().collect::<Vec<_>>() {
            let container = self.container(&name);
            let init = self.list("initContainers").iter().any(|c| c["name"] == name.as_str());
            if init && container["restartPolicy"] != "Always" {
                continue;
            }
            let reason = match self.process(&name).exited() {
                Some(status) => Some(status.to_string()),
                None if self.liveness_failed(&name, &container).await => {
                    let grace = self.manifest["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
                    self.process(&name).terminate(Duration::from_secs(grace)).await;
                    Some("its liveness probe failed".to_owned())
                }
                None => None,
            };
            if let Some(reason) = reason {
                self.start_container(&name);
                restarts.push(Restart { container: name, reason });
            }
        }
        restarts
    }

    /// Whether a container's liveness probe has now failed as often as its threshold says.
    async fn liveness_failed(&mut self, name: &str, container: &Value) -> bool {
        let probe = &container["livenessProbe"];
        let due = self.containers.get(name).is_some_and(|c| c.probe_due <= Instant::now());
        if probe.is_null() || !due {
            return false;
        }
        let alive = self.probe(container, probe).await;
        let Some(running) = self.containers.get_mut(name) else { return false };
        let period = Duration::from_secs(probe["periodSeconds"].as_u64().unwrap_or(10));
        running.probe_due = Instant::now() + period / self.surroundings.hurry.max(1);
        running.failed_probes = if alive { 0 } else { running.failed_probes + 1 };
        running.failed_probes >= probe["failureThreshold"].as_u64().unwrap_or(3)
    }

    /// Waits for a native sidecar's startup probe, if it has one.
    async fn started(&mut self, container: &Value, limit: Duration) -> Result<(), String> {
        let (probe, start) = (&container["startupProbe"], Instant::now());
        let name = text(&container["name"]);
        while !probe["httpGet"].is_null() && !self.probe(container, probe).await {
            if let Some(status) = self.process(name).exited() {
                let log = self.process(name).log_end();
                return Err(format!("{}/{name}: {status}:\n{log}", self.name()));
            }
            if start.elapsed() > limit {
                let log = self.process(name).log_end();
                return Err(format!("{}/{name} did not start:\n{log}", self.name()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// One probe, exec or httpGet.
    async fn probe(&self, container: &Value, probe: &Value) -> bool {
        let limit = Duration::from_secs(probe["timeoutSeconds"].as_u64().unwrap_or(1));
        if let Some(words) = probe["exec"]["command"].as_array() {
            let words: Vec<String> = words.iter().map(|word| self.mapped(container, text(word))).collect();
            let mut command = tokio::process::Command::new(&words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).kill_on_drop(true);
            return match tokio::time::timeout(limit, command.output()).await {
                Ok(Ok(output)) => output.status.success(),
                // A kubelet takes no notice of a probe that could not be started.
                Ok(Err(error)) => panic!("start {}: {error}", words[0]),
                Err(_) => false,
            };
        }
        let get = &probe["httpGet"];
        let port = get["port"].as_u64().or_else(|| {
            let ports = container["ports"].as_array()?;
            ports.iter().find(|p| p["name"] == get["port"])?["containerPort"].as_u64()
        });
        let Some(port) = port else { return false };
        let ip = self.surroundings.reached_at.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let path = get["path"].as_str().unwrap_or("/");
        let ask = async { EtcdClient::plain().connect(&format!("http://{ip}:{port}")).await?.get(path).await };
        matches!(tokio::time::timeout(limit, ask).await, Ok(Ok(_)))
    }

    fn list(&self, of: &str) -> Vec<Value> {
        self.manifest["spec"][of].as_array().cloned().unwrap_or_default()
    }

    fn container(&self, name: &str) -> Value {
        let all = self.list("initContainers").into_iter().chain(self.list("containers"));
        all.into_iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{} has no container {name}", self.name()))
    }

    /// A container's program, arguments and environment.
    pub fn command(&self, container: &Value) -> Command {
        let environment = self.environment(container);
        let words = |of: &str| -> Vec<String> {
            let words = container[of].as_array().cloned().unwrap_or_default();
            words.iter().map(|w| self.mapped(container, &expanded(text(w), &environment))).collect()
        };
        let (mut command_words, arguments) = (words("command"), words("args"));
        let key = if command_words.is_empty() { text(&container["image"]).to_owned() } else { command_words.remove(0) };
        let program = self.surroundings.programs.get(&key).unwrap_or_else(|| panic!("no program is known for {key:?}"));
        let mut command = Command::new(program);
        command.args(command_words).args(arguments).args(self.directory_arguments(container));
        command.env_clear().envs(environment).current_dir(self.directory.path());
        command
    }

    /// Our own containers leave out of their arguments what is the default, the paths of their mounts above all.
    fn directory_arguments(&self, container: &Value) -> Vec<String> {
        let arguments = container["args"].as_array().cloned().unwrap_or_default();
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        let termination = [names::INIT_CONTAINER, names::SIDECAR_CONTAINER]
            .contains(&text(&container["name"]))
            .then(|| ["--termination-log".to_owned(), self.directory.join("termination").display().to_string()]);
        [
            ("--dir", names::CERTS_MOUNT_PATH),
            ("--trust-dir", names::TRUST_MOUNT_PATH),
            ("--projected-dir", names::PROJECTED_MOUNT_PATH),
            ("--token-dir", names::TOKEN_MOUNT_PATH),
        ]
        .into_iter()
        .filter(|_| [names::INIT_CONTAINER, names::SIDECAR_CONTAINER].contains(&text(&container["name"])))
        .filter(|(flag, _)| !arguments.iter().any(|a| text(a).split('=').next() == Some(flag)))
        .filter_map(|(flag, path)| {
            let mount = mounts.iter().find(|m| m["mountPath"] == path)?;
            Some([flag.to_owned(), self.volume(text(&mount["name"])).display().to_string()])
        })
        .chain(termination)
        .flatten()
        .collect()
    }

    fn environment(&self, container: &Value) -> Vec<(String, String)> {
        let mut all = vec![("PATH".to_owned(), std::env::var("PATH").unwrap_or_default())];
        all.extend(self.surroundings.environment.iter().cloned());
        for variable in container["env"].as_array().cloned().unwrap_or_default() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(path) => self.field(path),
                None => expanded(text(&variable["value"]), &all),
            };
            all.push((text(&variable["name"]).to_owned(), self.mapped(container, &value)));
        }
        all
    }

    /// The downward API.
    fn field(&self, path: &str) -> String {
        let Surroundings { uid, namespace, ips, node, .. } = &self.surroundings;
        let all_ips = || ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let in_map = |prefix: &str, of: &str| {
            let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
            Some(text(&self.manifest["metadata"][of][key]).to_owned())
        };
        match path {
            "metadata.name" => self.name().to_owned(),
            "metadata.namespace" => namespace.clone(),
            "metadata.uid" => uid.clone(),
            "spec.nodeName" => node.clone(),
            "spec.serviceAccountName" => {
                self.manifest["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned()
            }
            "status.podIP" | "status.hostIP" => ips.first().map(ToString::to_string).unwrap_or_default(),
            "status.podIPs" | "status.hostIPs" => all_ips(),
            _ => in_map("metadata.annotations['", "annotations")
                .or_else(|| in_map("metadata.labels['", "labels"))
                .unwrap_or_else(|| panic!("field path {path} is not known here")),
        }
    }

    /// `text` with every mount path of the container as its directory, the longest first.
    fn mapped(&self, container: &Value, text_with_paths: &str) -> String {
        let mut mounts: Vec<(String, PathBuf)> = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|m| (text(&m["mountPath"]).to_owned(), self.volume(text(&m["name"])).join(text(&m["subPath"]))))
            .collect();
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, directory) in &mounts {
            if text_with_paths.contains(path.as_str()) {
                return text_with_paths.replace(path.as_str(), &directory.display().to_string());
            }
        }
        text_with_paths.to_owned()
    }
}

/// Whether kubelet requests certificates for a volume: who stands for kubelet writes its files.
fn is_of_pod_certificates(volume: &Value) -> bool {
    let sources = volume["projected"]["sources"].as_array();
    sources.is_some_and(|sources| sources.iter().any(|source| !source["podCertificate"].is_null()))
}

/// Writes a ConfigMap's or a token's files as kubelet does: into a new directory that one rename of `..data` puts in place.
pub fn write_projected<'a, C: AsRef<[u8]>>(directory: &Path, files: impl IntoIterator<Item = (&'a str, C)>) {
    fs::create_dir_all(directory).unwrap_or_else(|e| panic!("create {}: {e}", directory.display()));
    let generation =
        (0..).map(|n| format!("..{n}")).find(|name| !directory.join(name).exists()).expect("some number is free");
    let target = directory.join(&generation);
    fs::create_dir(&target).unwrap_or_else(|e| panic!("create {}: {e}", target.display()));
    for (name, content) in files {
        fs::write(target.join(name), content).unwrap_or_else(|e| panic!("write {name}: {e}"));
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), &link).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    let (new, data) = (directory.join("..data_tmp"), directory.join("..data"));
    let old = fs::read_link(&data).ok();
    std::os::unix::fs::symlink(&generation, &new).unwrap_or_else(|e| panic!("link {}: {e}", new.display()));
    fs::rename(&new, &data).unwrap_or_else(|e| panic!("rename {}: {e}", data.display()));
    if let Some(old) = old {
        let _ = fs::remove_dir_all(directory.join(old));
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `$(NAME)` as Kubernetes expands it: names that are not known stay.
fn expanded(text: &str, environment: &[(String, String)]) -> String {
    let mut result = text.to_owned();
    for (name, value) in environment.iter().rev() {
        result = result.replace(&format!("$({name})"), value);
    }
    result
}
