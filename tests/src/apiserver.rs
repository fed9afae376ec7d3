//! A throw-away kube-apiserver with an etcd of its own: RBAC, service-account tokens, the default admission plugins; no
//! node, no controllers unless asked for. Pods are made by tests and their status is written by them.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    eventually,
    pki::{Ca, LeafOptions},
    ports,
    process::{Process, run},
    temp::TempDir,
    tier,
};

/// How long the API server may take to come up on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

/// The life of certificates and tokens, in seconds: valid for any clock that a test gives a process.
const DAY: u32 = 86_400;

/// The node that test pods are bound to, so that their tokens carry a node's name.
pub const NODE: &str = "node-1";

/// A running API server. Dropped, it is killed with its etcd and gone from disk.
pub struct ApiServer {
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    /// The CA of its serving certificate and of its client certificates.
    pub ca: Ca,
    /// cluster-admin.
    pub client: Client,
    /// cluster-admin's kubeconfig.
    pub kubeconfig: PathBuf,
    assets: PathBuf,
    // Dropped in this order: users of a process before the process.
    controller_manager: Option<Process>,
    apiserver: Process,
    etcd: Option<Process>,
    etcd_url: String,
    port: u16,
    options: Options,
    directory: TempDir,
}

/// The options of an API server besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More flags of kube-apiserver.
    pub apiserver_arguments: Vec<String>,
    /// The endpoints of an etcd that is there already; none is started then.
    pub etcd: Option<String>,
    /// Start kube-controller-manager too, with its own CSR approver and signer.
    pub controller_manager: bool,
    /// More flags of kube-controller-manager.
    pub controller_manager_arguments: Vec<String>,
}

impl ApiServer {
    /// Starts one with the defaults; `None`, having said so, where the machine has none.
    pub async fn start() -> Option<Self> {
        Self::start_with(&Options::default()).await
    }

    /// The one that the tests of this program which run at the same time share; it is dropped with the last of them.
    /// Anything that is not in a namespace of the test's own is shared with it.
    pub async fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<ApiServer>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Starts one; `None`, having said so, where the machine has none.
    pub async fn start_with(options: &Options) -> Option<Self> {
        let assets = tier::kubernetes()?;
        crate::install_crypto();
        let directory = TempDir::new("apiserver");
        let etcd_url = options.etcd.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", ports::loopback()));
        let etcd = options.etcd.is_none().then(|| start_etcd(&assets, &etcd_url, &directory));
        let ca = Ca::new("kubernetes");
        write_pki(&ca, &directory);
        let port = ports::loopback();
        let url = format!("https://127.0.0.1:{port}");
        let apiserver = start_apiserver(&assets, port, &etcd_url, &directory, options);
        let kubeconfig = certificate_kubeconfig(&directory, &url, "admin");
        let client = client_of(&kubeconfig).await;
        let ready = hyper::Request::get("/readyz").body(Vec::new()).expect("a request");
        eventually("kube-apiserver ready", START_LIMIT, || client.request_text(ready.clone())).await;
        let controller_manager = options
            .controller_manager
            .then(|| start_controller_manager(&assets, &url, &directory, &options.controller_manager_arguments));
        let options = options.clone();
        let server = Self {
            url,
            ca,
            client,
            kubeconfig,
            assets,
            controller_manager,
            apiserver,
            etcd,
            etcd_url,
            port,
            options,
            directory,
        };
        server.settle().await;
        Some(server)
    }

    /// Kills kube-apiserver, leaves it away for a while, and starts it again with what it had.
    pub async fn restart(&mut self, away: Duration) {
        self.apiserver.kill();
        tokio::time::sleep(away).await;
        self.keep_up();
        eventually("kube-apiserver ready again", START_LIMIT, || self.ready()).await;
    }

    /// Starts kube-apiserver where it does not run, as kubelet does; waits for nothing.
    pub fn keep_up(&mut self) {
        if !self.apiserver.running() {
            self.apiserver = start_apiserver(&self.assets, self.port, &self.etcd_url, &self.directory, &self.options);
        }
    }

    /// Whether it says that it is ready.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> kube::Result<String> {
        self.client.request_text(hyper::Request::get("/readyz").body(Vec::new()).expect("a request")).await
    }

    /// Waits for what the server makes after it is ready, and makes the node.
    async fn settle(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        eventually("namespace default", START_LIMIT, || namespaces.get("default")).await;
        let node: Node = from_json(json!({"metadata": {"name": NODE}}));
        Api::<Node>::all(self.client.clone()).create(&PostParams::default(), &node).await.expect("create the node");
    }

    /// Where its etcd serves clients, without TLS.
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// Its directory, for other files of a test.
    pub fn directory(&self) -> &TempDir {
        &self.directory
    }

    /// kube-apiserver itself, to be stopped or read.
    pub fn process(&mut self) -> &mut Process {
        &mut self.apiserver
    }

    /// The process ids of kube-apiserver and of its own etcd; 0 where it was given one.
    pub fn pids(&self) -> [u32; 2] {
        [self.apiserver.id(), self.etcd.as_ref().map_or(0, Process::id)]
    }

    /// The log of kube-apiserver.
    pub fn log(&self) -> String {
        self.apiserver.log()
    }

    /// Whether all of its processes still run.
    pub fn running(&mut self) -> bool {
        self.etcd.as_mut().is_none_or(Process::running)
            && self.apiserver.running()
            && self.controller_manager.as_mut().is_none_or(Process::running)
    }

    /// Starts kube-controller-manager with more flags, besides the one there may be; `None` where there is none.
    pub fn start_controller_manager(&self, arguments: &[String]) -> Option<Process> {
        let there = self.assets.join("kube-controller-manager").is_file();
        there.then(|| start_controller_manager(&self.assets, &self.url, &self.directory, arguments))
    }

    /// Where kubectl is.
    pub fn kubectl_path(&self) -> PathBuf {
        self.assets.join("kubectl")
    }

    /// kubectl as cluster-admin.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.kubectl_path());
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command
    }

    /// Runs kubectl as cluster-admin; its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(&mut self.kubectl_command(arguments))
    }

    /// `kubectl apply -f -` of the given text.
    pub fn apply(&self, manifests: &str) -> String {
        let file = TempDir::new("apply");
        let path = file.write("manifests.yaml", manifests);
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// `kubectl apply -k` of a directory of the repository.
    pub fn apply_kustomization(&self, directory: &str) -> String {
        let path = crate::repository().join(directory);
        self.kubectl(&["apply", "-k", &path.display().to_string()])
    }

    /// The same of the manifests with `components` of theirs.
    pub fn apply_components(&self, components: &[&str]) -> String {
        let overlay = TempDir::new("components");
        let up = "../".repeat(overlay.path().components().count());
        let of = |path: &str| format!("{up}{}", &crate::repository().join(path).display().to_string()[1..]);
        let components: Vec<_> = components.iter().map(|name| of(&format!("manifests/components/{name}"))).collect();
        let kustomization = json!({"resources": [of("manifests")], "components": components});
        overlay.write("kustomization.yaml", kustomization.to_string());
        self.kubectl(&["apply", "-k", &overlay.path().display().to_string()])
    }

    /// Makes a namespace, with its `default` service account, since no controller makes that here.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Namespace {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let namespace: Namespace = from_json(json!({"metadata": {"name": name, "labels": labels}}));
        let api = Api::<Namespace>::all(self.client.clone());
        let made = api.create(&PostParams::default(), &namespace).await.expect("create a namespace");
        if self.controller_manager.is_none() {
            self.service_account(name, "default").await;
        }
        made
    }

    /// Makes a service account.
    pub async fn service_account(&self, namespace: &str, name: &str) -> ServiceAccount {
        let account: ServiceAccount = from_json(json!({"metadata": {"name": name}}));
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &account).await.expect("create a service account")
    }

    /// The kubeconfig of a new service account with exactly these rules in the namespace.
    pub async fn account(&self, namespace: &str, name: &str, rules: serde_json::Value) -> PathBuf {
        self.service_account(namespace, name).await;
        let rbac = "rbac.authorization.k8s.io";
        let role = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": {"name": name, "namespace": namespace},
            "rules": rules,
        });
        let binding = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        });
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string());
        let token = self.token(namespace, name, None).await;
        self.token_kubeconfig(name, &token)
    }

    /// Makes a pod on [`NODE`] through admission, as cluster-admin.
    ///
    /// # Errors
    /// The API server's, a webhook's refusal included.
    pub async fn pod(&self, namespace: &str, mut pod: serde_json::Value) -> kube::Result<Pod> {
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["spec"]["nodeName"] = NODE.into();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.create(&PostParams::default(), &from_json(pod)).await
    }

    /// Writes a pod's status as a kubelet would once its sandbox runs: phase, and addresses, on the host's network those of
    /// its node.
    pub async fn set_pod_ips(&self, namespace: &str, pod: &str, ips: &[IpAddr]) -> Pod {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let spec = pods.get(pod).await.expect("the pod").spec.unwrap_or_default();
        let hosts = if spec.host_network == Some(true) { ips } else { &[IpAddr::V4(Ipv4Addr::LOCALHOST)] };
        let all = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let status = json!({"status": {
            "phase": "Running", "podIP": ips.first(), "podIPs": all(ips), "hostIP": hosts.first(), "hostIPs": all(hosts),
        }});
        pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await.expect("write a pod's status")
    }

    /// Deletes a pod at once; there is no kubelet to end it.
    pub async fn delete_pod(&self, namespace: &str, pod: &str) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.expect("delete a pod");
    }

    /// A token of a service account, bound to `pod` if there is one, as kubelet mounts it.
    pub async fn token(&self, namespace: &str, service_account: &str, pod: Option<&Pod>) -> String {
        let bound_object_ref = pod.map(|p| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: p.metadata.name.clone(),
            uid: p.metadata.uid.clone(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec { audiences: Vec::new(), bound_object_ref, expiration_seconds: Some(DAY.into()) },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let answer = accounts.create_token_request(service_account, &PostParams::default(), &request).await;
        answer.expect("request a token").status.expect("a token request is answered").token
    }

    /// A client that is nobody but the bearer of `token`.
    pub async fn client_with_token(&self, token: &str) -> Client {
        let directory = TempDir::new("kubeconfig");
        client_of(&self.write_token_kubeconfig(&directory.join("kubeconfig"), token)).await
    }

    /// Writes a kubeconfig of the bearer of `token`.
    pub fn token_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.write_token_kubeconfig(&self.directory.join(format!("{name}.kubeconfig")), token)
    }

    fn write_token_kubeconfig(&self, path: &Path, token: &str) -> PathBuf {
        write_kubeconfig(path, &self.url, &self.directory.join("pki/ca.crt"), &json!({"token": token}));
        path.to_owned()
    }

    /// A token directory as kubelet mounts it: `token`, `ca.crt`, `namespace`.
    pub fn token_directory(&self, name: &str, namespace: &str, token: &str) -> PathBuf {
        let dir = self.directory.dir(name);
        for (file, content) in [("token", token), ("ca.crt", &self.ca.pem), ("namespace", namespace)] {
            fs::write(dir.join(file), content).expect("write a token directory");
        }
        dir
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a URL with a port")
    }

    /// The variables that tell a pod where the API server is.
    pub fn pod_environment(&self) -> Vec<(String, String)> {
        Self::pod_environment_of(self.port())
    }

    /// The same of one that is reached by this port.
    pub fn pod_environment_of(port: u16) -> Vec<(String, String)> {
        let port = port.to_string();
        vec![
            ("KUBERNETES_SERVICE_HOST".into(), "127.0.0.1".into()),
            ("KUBERNETES_SERVICE_PORT".into(), port.clone()),
            ("KUBERNETES_SERVICE_PORT_HTTPS".into(), port),
        ]
    }
}

/// A typed object of a JSON text.
///
/// # Panics
/// When it is not of that type.
pub fn from_json<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("JSON of the type")
}

/// A client of a kubeconfig file.
pub async fn client_of(kubeconfig: &Path) -> Client {
    crate::install_crypto();
    let read = Kubeconfig::read_from(kubeconfig).expect("read a kubeconfig");
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.expect("a kubeconfig");
    Client::try_from(config).expect("a client")
}

fn start_etcd(assets: &Path, url: &str, directory: &TempDir) -> Process {
    let own = assets.join("etcd");
    let etcd = if own.is_file() { own } else { "etcd".into() };
    let mut command = Command::new(etcd);
    command
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync"]);
    Process::spawn("kubernetes-etcd", &mut command, directory.path())
}

fn write_pki(ca: &Ca, directory: &TempDir) {
    let (now, day) = (SystemTime::now(), Duration::from_secs(DAY.into()));
    let of = |organizations: &[&str], common_name: &str| LeafOptions {
        not_before: now - day,
        not_after: now + day,
        organizations: organizations.iter().map(|&o| o.to_owned()).collect(),
        common_name: common_name.to_owned(),
        ..LeafOptions::default()
    };
    let mut serving = of(&[], "kube-apiserver");
    serving.dns.extend(["kubernetes.default.svc".to_owned(), "kubernetes.default".to_owned()]);
    serving.ips.extend(["10.96.0.1".parse::<IpAddr>().expect("an address"), "::1".parse().expect("an address")]);
    for (name, options) in [
        ("apiserver", serving),
        ("admin", of(&["system:masters"], "admin")),
        ("controller-manager", of(&[], "system:kube-controller-manager")),
    ] {
        let leaf = ca.leaf(&options);
        directory.write(format!("pki/{name}.crt"), leaf.cert);
        directory.write(format!("pki/{name}.key"), leaf.key);
    }
    directory.write("pki/ca.crt", &ca.pem);
    directory.write("pki/ca.key", &ca.key_pem);
    let key = rcgen::KeyPair::generate().expect("make a key");
    directory.write("pki/service-account.key", key.serialize_pem());
    directory.write("pki/service-account.pub", key.public_key_pem());
}

fn start_apiserver(assets: &Path, port: u16, etcd_url: &str, directory: &TempDir, options: &Options) -> Process {
    let pki = |name: &str| directory.join("pki").join(name).display().to_string();
    let mut command = Command::new(assets.join("kube-apiserver"));
    // Memory for processor time: it lives for a minute.
    command.current_dir(directory.path()).env("GOGC", "400");
    for (flag, value) in [
        ("etcd-servers", etcd_url.to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
        // Where the API server says it is, and no more than that: nothing dials it.
        ("advertise-address", "192.0.2.1".to_owned()),
        ("secure-port", port.to_string()),
        ("cert-dir", directory.join("apiserver").display().to_string()),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("client-ca-file", pki("ca.crt")),
        ("service-account-key-file", pki("service-account.pub")),
        ("service-account-signing-key-file", pki("service-account.key")),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
        ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
        ("authorization-mode", "RBAC".to_owned()),
        ("endpoint-reconciler-type", "none".to_owned()),
        // A webhook's Service is dialled by its endpoints: there are no cluster IPs here.
        ("enable-aggregator-routing", "true".to_owned()),
        ("allow-privileged", "true".to_owned()),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    command.args(&options.apiserver_arguments);
    Process::spawn("kube-apiserver", &mut command, directory.path())
}

fn start_controller_manager(assets: &Path, url: &str, directory: &TempDir, arguments: &[String]) -> Process {
    let pki = |name: &str| directory.join("pki").join(name).display().to_string();
    let kubeconfig = certificate_kubeconfig(directory, url, "controller-manager").display().to_string();
    let mut command = Command::new(assets.join("kube-controller-manager"));
    for (flag, value) in [
        ("kubeconfig", kubeconfig.as_str()),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("service-account-private-key-file", &pki("service-account.key")),
        ("root-ca-file", &pki("ca.crt")),
        ("cluster-signing-cert-file", &pki("ca.crt")),
        ("cluster-signing-key-file", &pki("ca.key")),
        ("use-service-account-credentials", "true"),
        ("leader-elect", "false"),
        ("bind-address", "127.0.0.1"),
        ("secure-port", &ports::loopback().to_string()),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    command.args(arguments);
    Process::spawn("kube-controller-manager", &mut command, directory.path())
}

fn certificate_kubeconfig(directory: &TempDir, url: &str, name: &str) -> PathBuf {
    let path = directory.join(format!("{name}.kubeconfig"));
    let pki = |file: String| directory.join("pki").join(file);
    let user = json!({"client-certificate": pki(format!("{name}.crt")), "client-key": pki(format!("{name}.key"))});
    write_kubeconfig(&path, url, &pki("ca.crt".into()), &user);
    path
}

fn write_kubeconfig(path: &Path, url: &str, ca: &Path, user: &serde_json::Value) {
    // JSON is YAML.
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    fs::write(path, text.to_string()).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}
