//! etcd-tls as installed: the manifests applied to a real API server, and its three processes run here with the rights of
//! their shipped service accounts. The webhook configuration is the shipped one: its Service has an endpoint of this
//! machine, and its caBundle comes from `sign`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_tls_contract::names::{self, SYSTEM_NAMESPACE};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::Api;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    apiserver::{ApiServer, NODE, Options as ApiOptions},
    eventually,
    local_pod::{LocalPod, Surroundings, write_projected},
    ports,
    process::{Process, binary},
    tier,
};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How often a mounted Secret or ConfigMap is read. (A kubelet's takes up to a minute or two.)
const SYNC: Duration = Duration::from_millis(200);
/// The Secret with the webhook's serving pair, as the manifests mount it.
const SERVING_SECRET: &str = "etcd-tls-admit-serving";

/// The running system. Dropped, it is gone.
pub struct Installation {
    /// The signer.
    pub sign: Process,
    /// The approver.
    pub approve: Process,
    /// Admission.
    pub admit: Process,
    mounts: Vec<Mount>,
    /// While it is set, mounted Secrets and ConfigMaps stay as they are: kubelet's next sync is far away.
    held: Arc<AtomicBool>,
    environment: Vec<(String, String)>,
    /// The port by which pods that are made reach the API server, if not its own.
    pub pods_reach_it_by: Option<u16>,
    /// The API server.
    pub api: ApiServer,
}

/// A Secret or ConfigMap kept in a directory, as kubelet does. Dropped, it stays as it is.
struct Mount {
    directory: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How the system is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments of `sign`, such as `--max-lifetime`.
    pub sign: Vec<String>,
    /// More arguments of `admit`, such as `--sidecar-resources`.
    pub admit: Vec<String>,
    /// More arguments of `admit`, `approve` and `sign`, such as `--log-format=json`.
    pub all: Vec<String>,
    /// The environment of `sign`, such as another clock.
    pub environment: Vec<(String, String)>,
    /// The environment of `admit`, `approve` and `sign`.
    pub of_all: Vec<(String, String)>,
    /// How the API server is started.
    pub api: ApiOptions,
    /// The kustomization of an older version, applied before.
    pub before: Option<PathBuf>,
}

impl Installation {
    /// Installs and starts everything; `None`, having said so, where the machine has no API server.
    pub async fn start(options: &Options) -> Option<Self> {
        if !can_start() {
            return None;
        }
        let api = ApiServer::start_with(&options.api).await?;
        if let Some(before) = &options.before {
            api.kubectl(&["apply", "-k", &before.display().to_string()]);
        }
        api.apply_kustomization("manifests");
        Some(Self::start_on(api, options).await)
    }

    /// Starts everything on an API server where it is installed, on a machine where it [can start](can_start).
    pub async fn start_on(api: ApiServer, options: &Options) -> Self {
        let address = own_address().expect("can_start was asked");
        let approve = controller(&api, "approve", &options.all, &options.of_all).await;
        let environment = [&options.of_all[..], &options.environment].concat();
        let sign = controller(&api, "sign", &[&options.sign[..], &options.all].concat(), &environment).await;
        let serving = api.directory().dir("serving");
        let secrets = Api::<Secret>::namespaced(api.client.clone(), SYSTEM_NAMESPACE);
        let held = Arc::new(AtomicBool::new(false));
        let mount = mount(serving.clone(), SERVING_SECRET, &held, move |name| {
            let secrets = secrets.clone();
            async move {
                let data = secrets.get_opt(&name).await.ok()??.data?;
                Some(data.into_iter().map(|(k, v)| (k, v.0)).collect())
            }
        });
        let port = ports::free(address);
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["admit", "--sidecar-image", SIDECAR_IMAGE]).arg("--serving-dir").arg(&serving);
        command
            .arg("--address")
            .arg(format!("{address}:{port}"))
            .args(&options.admit)
            .args(&options.all)
            .envs(options.of_all.iter().cloned());
        command.arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
        let admit = Process::spawn("admit", &mut command, api.directory().path());
        api.apply(&endpoint(address, port));
        let mut installation =
            Self { sign, approve, admit, mounts: vec![mount], held, environment, pods_reach_it_by: None, api };
        installation.ready().await;
        installation
    }

    /// Waits until a labelled pod can be created at all.
    async fn ready(&mut self) {
        let webhooks = Api::<MutatingWebhookConfiguration>::all(self.api.client.clone());
        eventually("caBundle of the webhook", LIMIT, || async {
            let entries = webhooks.get("etcd-tls").await.map_err(|e| e.to_string())?.webhooks.unwrap_or_default();
            if !entries.is_empty() && entries.iter().all(|w| w.client_config.ca_bundle.is_some()) {
                return Ok(());
            }
            Err("not written yet".to_owned())
        })
        .await;
        self.api.namespace("installation-probe", &[]).await;
        let pod = json!({
            "metadata": {"generateName": "probe-", "labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "client"}},
            "spec": {"containers": [{"name": "c", "image": "c"}]},
        });
        eventually("admission", LIMIT, || self.api.pod("installation-probe", pod.clone())).await;
    }

    /// Creates a pod, which the webhook looks at, and prepares to run its containers here. Its trust ConfigMap is mounted
    /// once it is there.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn local_pod(
        &mut self,
        namespace: &str,
        manifest: Value,
        ips: &[IpAddr],
        programs: &[(&str, PathBuf)],
    ) -> kube::Result<LocalPod> {
        let pod = self.api.pod(namespace, manifest).await?;
        let name = pod.metadata.name.clone().expect("a created pod has a name");
        self.api.set_pod_ips(namespace, &name, ips).await;
        let surroundings = self.surroundings(namespace, &pod, ips, programs).await;
        // The client's types are of a version before `podCertificate`.
        let raw = self.api.kubectl(&["get", "pod", &name, "-n", namespace, "-o", "json"]);
        Ok(LocalPod::new(serde_json::from_str(&raw).expect("a pod is JSON"), surroundings))
    }

    async fn surroundings(
        &mut self,
        namespace: &str,
        pod: &Pod,
        ips: &[IpAddr],
        programs: &[(&str, PathBuf)],
    ) -> Surroundings {
        let spec = pod.spec.clone().unwrap_or_default();
        let account = spec.service_account_name.unwrap_or_else(|| "default".into());
        let token = self.api.token(namespace, &account, Some(pod)).await;
        let uid = pod.metadata.uid.clone().expect("a created pod has a uid");
        let wanted = spec.volumes.unwrap_or_default().into_iter().filter_map(|v| v.config_map);
        let mut config_maps = BTreeMap::new();
        for config_map in wanted.map(|c| c.name) {
            let directory = self.config_map(namespace, &config_map).await;
            config_maps.insert(config_map, directory);
        }
        let mut programs: BTreeMap<_, _> = programs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        programs.entry(SIDECAR_IMAGE.to_owned()).or_insert_with(|| binary("etcd-tls-sidecar"));
        Surroundings {
            uid: uid.clone(),
            namespace: namespace.to_owned(),
            ips: ips.to_vec(),
            reached_at: None,
            hurry: 0,
            node: NODE.to_owned(),
            environment: ApiServer::pod_environment_of(self.pods_reach_it_by.unwrap_or_else(|| self.api.port())),
            token_directory: self.api.token_directory(&format!("token-{uid}"), namespace, &token),
            config_maps,
            programs,
        }
    }

    /// A mounted ConfigMap's directory; waits, as a pod does, until it is there.
    async fn config_map(&mut self, namespace: &str, name: &str) -> PathBuf {
        let directory = self.api.directory().dir(&format!("config-maps/{namespace}/{name}"));
        if !self.mounts.iter().any(|m| m.directory == directory) {
            let api = Api::<ConfigMap>::namespaced(self.api.client.clone(), namespace);
            self.mounts.push(mount(directory.clone(), name, &self.held, move |name| {
                let api = api.clone();
                async move {
                    let object = api.get_opt(&name).await.ok()??;
                    let texts = object.data?.into_iter().map(|(k, v)| (k, v.into_bytes()));
                    let binaries = object.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
                    Some(texts.chain(binaries).collect())
                }
            }));
        }
        eventually(&format!("ConfigMap {namespace}/{name}"), LIMIT, || async {
            if directory.join("..data").exists() { Ok(()) } else { Err("not there") }
        })
        .await;
        directory
    }

    /// The trust bundle that is published for a cluster's domain.
    pub async fn bundle(&self, namespace: &str, domain: &str) -> Option<String> {
        let api = Api::<ConfigMap>::namespaced(self.api.client.clone(), namespace);
        let name = names::trust_config_map(names::DEFAULT_CLUSTER);
        api.get_opt(&name).await.ok()??.data?.remove(&format!("{domain}.crt"))
    }

    /// Whether mounted Secrets and ConfigMaps stay as they are.
    pub fn hold_mounts(&self, hold: bool) {
        self.held.store(hold, Ordering::SeqCst);
    }

    /// Ends `sign` at once and starts it again.
    pub async fn restart_sign(&mut self, arguments: &[String]) {
        self.sign.kill();
        self.sign = controller(&self.api, "sign", arguments, &self.environment).await;
    }
}

impl Installation {
    /// Ends `approve` and `sign`, and starts those of the programs in a directory, such as an older version's.
    pub async fn replace_controllers(&mut self, programs: &Path, sign: &[String]) {
        self.approve.kill();
        self.sign.kill();
        let webhook = programs.join("etcd-tls-webhook");
        self.approve = controller_of(&webhook, &self.api, "approve", &[], &[]).await;
        self.sign = controller_of(&webhook, &self.api, "sign", sign, &self.environment).await;
    }
}

/// A pod with the image `app` and no etcd, whose sidecar holds the certificates of `roles`. Pods that run at once here share an
/// address, so it has an admin port of its own.
pub fn client_pod(name: &str, roles: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"etcd-tls": "dynamic"},
            "annotations": {
                "etcd-tls.dev/roles": roles, "etcd-tls.dev/containers": "app",
                "etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string(),
            },
        },
        "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    })
}

/// The one member of an etcd, with the image `etcd`, at these ports of `ip`. Its sidecar restarts it for nobody.
pub fn member_pod(name: &str, ip: IpAddr, client: u16, peer: u16) -> Value {
    let url = |port: u16| format!("https://{ip}:{port}");
    json!({
        "metadata": {
            "name": name,
            "annotations": {
                "etcd-tls.dev/reload": "none",
                "etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string(),
            },
        },
        "spec": {
            "containers": [{
                "name": "etcd", "image": "etcd", "command": ["etcd"],
                "args": [
                    format!("--name={name}"), "--data-dir=/var/lib/etcd/data",
                    format!("--listen-client-urls={}", url(client)), format!("--advertise-client-urls={}", url(client)),
                    format!("--listen-peer-urls={}", url(peer)), format!("--initial-advertise-peer-urls={}", url(peer)),
                    format!("--initial-cluster={name}={}", url(peer)), "--unsafe-no-fsync", "--logger=zap",
                ],
                "securityContext": {"runAsUser": 2379},
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

/// Starts `approve` or `sign` again as it was started before, with the token that it had.
pub fn controller_again(api: &ApiServer, name: &str) -> Process {
    let kubeconfig = api.directory().join(format!("{name}.kubeconfig"));
    Process::spawn(
        name,
        &mut controller_command(&binary("etcd-tls-webhook"), name, &kubeconfig),
        api.directory().path(),
    )
}

/// The image that admission injects here; for [`LocalPod`] the name of a program.
pub const SIDECAR_IMAGE: &str = "etcd-tls-sidecar:test";

/// Starts `approve` or `sign` with the rights of its service account and no others.
async fn controller(api: &ApiServer, name: &str, arguments: &[String], environment: &[(String, String)]) -> Process {
    controller_of(&binary("etcd-tls-webhook"), api, name, arguments, environment).await
}

async fn controller_of(
    program: &Path,
    api: &ApiServer,
    name: &str,
    arguments: &[String],
    environment: &[(String, String)],
) -> Process {
    let token = api.token(SYSTEM_NAMESPACE, &format!("etcd-tls-{name}"), None).await;
    let kubeconfig = api.token_kubeconfig(name, &token);
    let mut command = controller_command(program, name, &kubeconfig);
    command.args(arguments).envs(environment.iter().cloned());
    Process::spawn(name, &mut command, api.directory().path())
}

fn controller_command(program: &Path, name: &str, kubeconfig: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(name).arg("--admin-address").arg(format!("127.0.0.1:{}", ports::loopback()));
    command.envs(shipped_environment(name)).env("KUBECONFIG", kubeconfig).env("POD_NAME", format!("etcd-tls-{name}-0"));
    command
}

/// The environment in the shipped Deployment of a controller.
fn shipped_environment(name: &str) -> Vec<(String, String)> {
    let manifest = crate::repository().join(format!("manifests/{name}.yaml"));
    let text = std::fs::read_to_string(&manifest).expect("read a shipped manifest");
    let deployment: Value = serde_saphyr::from_str(&text).expect("a shipped manifest is one document of YAML");
    let environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned();
    let pair = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_str()?.to_owned()));
    environment.iter().flatten().filter_map(pair).collect()
}

/// Reads an object again and again, and writes its files when they have changed.
fn mount<F>(
    directory: PathBuf,
    name: &str,
    held: &Arc<AtomicBool>,
    read: impl Fn(String) -> F + Send + 'static,
) -> Mount
where
    F: Future<Output = Option<BTreeMap<String, Vec<u8>>>> + Send,
{
    let (name, target, held) = (name.to_owned(), directory.clone(), Arc::clone(held));
    let task = tokio::spawn(async move {
        let mut written = None;
        loop {
            let files = read(name.clone()).await;
            if files.is_some() && files != written && !held.load(Ordering::SeqCst) {
                project(&target, files.as_ref());
                written = files;
            }
            tokio::time::sleep(SYNC).await;
        }
    });
    Mount { directory, task }
}

fn project(directory: &Path, files: Option<&BTreeMap<String, Vec<u8>>>) {
    write_projected(directory, files.into_iter().flatten().map(|(name, content)| (name.as_str(), content.clone())));
}

/// Whether this machine has an address for the webhook; says so where not.
pub fn can_start() -> bool {
    let can = own_address().is_some();
    if !can {
        let enable = "a network interface with an address";
        tier::skip(2, "no address but loopback, which an endpoint cannot have", enable);
    }
    can
}

/// An address of this machine that is not loopback's; nothing is sent.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// The endpoints that the endpoint controllers would create for the webhook's Service, in the form of old and of new API
/// servers.
fn endpoint(address: IpAddr, port: u16) -> String {
    let (name, labels) = ("etcd-tls-admit", json!({"kubernetes.io/service-name": "etcd-tls-admit"}));
    let metadata = json!({"name": name, "namespace": SYSTEM_NAMESPACE});
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "webhook", "port": port, "protocol": "TCP"}],
    });
    slice["metadata"]["labels"] = labels;
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "webhook", "port": port}]}],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [slice, endpoints]}).to_string()
}
