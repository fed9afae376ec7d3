//! An API server with the shipped manifests and the component for cert-manager, and a pod of a namespace with an issuer of
//! its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    cert_manager::{
        CertManager,
        itself::{self, Controller, Programs},
        resource,
    },
    eventually,
    process::{Process, binary, run},
    temp::TempDir,
};

/// How long anything may take here, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(180);

/// The way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    CertManager,
    Signer,
}

/// See the module.
pub struct Lab {
    /// cert-manager itself, where it is not the stand-in that answers.
    cert_manager: Option<Arc<Controller>>,
    pub api: ApiServer,
    _controller_manager: Process,
}

/// One namespace, its issuer and its pod `etcd-0`.
pub struct Scene<'a> {
    lab: &'a Lab,
    pub namespace: String,
    pub kind: Kind,
    pub issuer: CertManager,
    signer: String,
    dir: TempDir,
    pod: Pod,
    environment: Vec<(String, String)>,
    address: String,
    /// Whether the bundle comes with the issuer's answers, and none is mounted.
    pub of_issuer: bool,
}

impl Lab {
    /// `None`, having said so, where the machine has no API server.
    pub async fn new() -> Option<Self> {
        Self::with(None, &[]).await
    }

    /// The same with a kube-controller-manager that signs nothing.
    pub async fn without_kube_signer() -> Option<Self> {
        Self::with(None, &["--controllers=*,-certificatesigningrequest-signing-controller".to_owned()]).await
    }

    /// With cert-manager itself. `None`, having said so, where the machine has none or no API server.
    pub async fn of_cert_manager_itself() -> Option<Self> {
        Self::with(Some(Programs::find()?), &[]).await
    }

    async fn with(programs: Option<Programs>, of_controller_manager: &[String]) -> Option<Self> {
        let api = ApiServer::start().await?;
        let cert_manager = match programs {
            Some(programs) => Some(Controller::start(&api, &programs).await),
            None => {
                CertManager::install(&api).await;
                None
            }
        };
        // Before the controller that makes service accounts.
        for namespace in NAMESPACES {
            api.namespace(namespace, &[]).await;
        }
        let Some(controller_manager) = api.start_controller_manager(of_controller_manager) else {
            tests::tier::skip_special("no kube-controller-manager beside kube-apiserver", "put one there");
            return None;
        };
        api.apply_components(&["cert-manager"]);
        let lab = Self { cert_manager, api, _controller_manager: controller_manager };
        lab.opt_in(&NAMESPACES);
        Some(lab)
    }

    /// The issuer of `namespace`.
    pub fn issuer(&self, namespace: &str) -> CertManager {
        self.cert_manager.as_ref().map_or_else(
            || CertManager::start(&self.api, namespace, &self.signer(namespace)),
            |controller| CertManager::itself(controller, namespace),
        )
    }

    /// The name of the issuer of `namespace` as a signer of CertificateSigningRequests.
    pub fn signer(&self, namespace: &str) -> String {
        if self.cert_manager.is_some() { itself::signer(namespace) } else { format!("example.com/{namespace}") }
    }

    /// Lets the service accounts of `namespaces` request, as `approve` would by their label.
    fn opt_in(&self, namespaces: &[&str]) {
        let group =
            |n: &&str| json!({"kind": "Group", "apiGroup": RBAC, "name": format!("system:serviceaccounts:{n}")});
        let subjects: Vec<Value> = namespaces.iter().map(group).collect();
        let patch = json!({"subjects": subjects}).to_string();
        self.api.kubectl(&["patch", "clusterrolebinding", "etcd-tls-requesters", "--type=merge", "--patch", &patch]);
    }

    /// A pod whose service account is `default`.
    pub async fn pod(&self, namespace: &str, name: &str) -> Pod {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
        eventually("a pod", LIMIT, || self.api.pod(namespace, pod.clone())).await
    }

    /// Lets the service accounts of `namespace` request of the issuer `company` there.
    pub fn grant(&self, namespace: &str, kind: Kind) {
        let signer = self.signer(namespace);
        let rule = match kind {
            Kind::CertManager => {
                json!({"apiGroups": ["cert-manager.io"], "resources": ["signers"], "resourceNames": ["issuers.cert-manager.io/company"], "verbs": ["request"]})
            }
            Kind::Signer => {
                json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [signer], "verbs": ["request"]})
            }
        };
        // CertificateSigningRequests are of no namespace, so neither is the right.
        let cluster = if kind == Kind::Signer { "Cluster" } else { "" };
        self.bind(namespace, cluster, &format!("request-{namespace}"), &rule);
    }

    /// Gives the service accounts of `namespace` the right of `rule` there.
    pub fn allow(&self, namespace: &str, name: &str, rule: &Value) {
        self.bind(namespace, "", name, rule);
    }

    fn bind(&self, namespace: &str, cluster: &str, name: &str, rule: &Value) {
        let group = json!({"kind": "Group", "apiGroup": RBAC, "name": format!("system:serviceaccounts:{namespace}")});
        let mut items = [
            json!({"apiVersion": format!("{RBAC}/v1"), "kind": format!("{cluster}Role"), "metadata": {"name": name}, "rules": [rule]}),
            json!({
                "apiVersion": format!("{RBAC}/v1"), "kind": format!("{cluster}RoleBinding"), "metadata": {"name": name},
                "roleRef": {"apiGroup": RBAC, "kind": format!("{cluster}Role"), "name": name}, "subjects": [group],
            }),
        ];
        if cluster.is_empty() {
            items.iter_mut().for_each(|item| item["metadata"]["namespace"] = namespace.into());
        }
        self.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    }

    /// Lets them name that issuer in a CertificateSigningRequest: cert-manager itself asks for this right, too.
    pub fn grant_reference(&self, namespace: &str) {
        let rule = json!({"apiGroups": ["cert-manager.io"], "resources": ["signers"], "resourceNames": [itself::ISSUER], "verbs": ["reference"]});
        self.allow(namespace, "reference-company", &rule);
    }

    /// The directory of `pod` with its token, and the environment of its containers.
    pub async fn mounted(&self, namespace: &str, pod: &Pod) -> (TempDir, Vec<(String, String)>) {
        let api = &self.api;
        let name = pod.name_any();
        let token = api.token(namespace, "default", Some(pod)).await;
        let directory = api.token_directory(&format!("token-{namespace}-{name}"), namespace, &token);
        let dir = TempDir::new("issuers-pod");
        dir.dir("token");
        for name in ["token", "ca.crt"] {
            fs::copy(directory.join(name), dir.join("token").join(name)).expect("copy");
        }
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut environment = api.pod_environment();
        environment.extend([
            variable("POD_NAME", &name),
            variable("POD_NAMESPACE", namespace),
            variable("POD_UID", &pod.uid().expect("a uid")),
            variable("POD_SERVICE_ACCOUNT", "default"),
            variable("NODE_NAME", "node-1"),
        ]);
        (dir, environment)
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";
/// The namespaces that there are.
const NAMESPACES: [&str; 3] = ["cm", "csr", "swap"];

impl<'a> Scene<'a> {
    pub async fn new(lab: &'a Lab, namespace: &str, kind: Kind) -> Self {
        lab.grant(namespace, kind);
        let (issuer, signer) = (lab.issuer(namespace), lab.signer(namespace));
        let pod = lab.pod(namespace, "etcd-0").await;
        let (dir, environment) = lab.mounted(namespace, &pod).await;
        let address = "10.0.0.1".to_owned();
        let namespace = namespace.to_owned();
        let scene = Self { lab, namespace, kind, issuer, signer, dir, pod, environment, address, of_issuer: false };
        scene.publish(&scene.issuer.ca());
        scene.renew("");
        scene
    }

    /// The pod's uid.
    pub fn uid(&self) -> String {
        self.pod.uid().expect("a uid")
    }

    /// Gives the pod another address, so that its certificates lack a name.
    pub fn move_to(&mut self, address: &str) {
        address.clone_into(&mut self.address);
    }

    /// Writes the bundle where admission's projection would bring it.
    pub fn publish(&self, pem: &str) {
        self.dir.dir("trust");
        for domain in ["peer", "client", "metrics"] {
            let (new, path) = (self.dir.join("trust/.new"), self.dir.join(format!("trust/{domain}.crt")));
            fs::write(&new, pem).expect("write");
            fs::rename(&new, &path).expect("rename");
        }
    }

    /// Writes a value of the annotation `renew` where kubelet brings it.
    pub fn renew(&self, value: &str) {
        self.dir.write("token/.renew", value);
        fs::rename(self.dir.join("token/.renew"), self.dir.join("token").join(names::RENEW_FILE)).expect("rename");
    }

    /// Starts the sidecar's binary.
    pub fn start(&self, subcommand: &str, more: &[&str]) -> Process {
        self.start_in("certs", subcommand, more)
    }

    /// The same, with its certificates in another directory.
    pub fn start_in(&self, directory: &str, subcommand: &str, more: &[&str]) -> Process {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.arg(subcommand).args(["--roles=peer,server", "--log-level=info"]).arg(match self.kind {
            Kind::CertManager => "--issuer=cert-manager:Issuer/company".to_owned(),
            Kind::Signer => format!("--issuer=csr:{}", self.signer),
        });
        for (flag, name) in [("--dir", directory), ("--trust-dir", "trust"), ("--token-dir", "token")] {
            command.arg(flag).arg(self.dir.join(name));
        }
        if self.of_issuer {
            command.arg("--trust-of-issuer");
        }
        command.arg("--termination-log").arg(self.dir.join("termination-log"));
        command.args(more).envs(self.environment.iter().map(|(k, v)| (k, v))).env("POD_IPS", &self.address);
        Process::spawn(subcommand, &mut command, self.dir.path())
    }

    /// Runs `init` to its end.
    ///
    /// # Errors
    /// It failed: its log.
    pub async fn init(&self) -> Result<(), String> {
        let mut init = self.start("init", &[]);
        if init.wait(LIMIT).await.success() { Ok(()) } else { Err(init.log()) }
    }

    /// Starts `init` until so many requests of the pod are there: see [`Self::obtain`].
    pub async fn start_until_requested(&self, count: usize) -> Process {
        let began = Instant::now();
        let mut init = self.start("init", &[]);
        while self.requests().await.len() != count {
            assert!(began.elapsed() < LIMIT, "not {count} requests: {}", init.log());
            if !init.running() {
                init = self.start("init", &[]);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        init
    }

    /// Runs `init` until the certificates hold the pod's address: beside good files, it takes an API server that needs half a second
    /// for an answer for none, and goes on.
    pub async fn obtain(&self) {
        eventually("certificates with the pod's address", LIMIT, || async {
            self.init().await?;
            if self.hold_the_address() { Ok(()) } else { Err("they lack it".to_owned()) }
        })
        .await;
    }

    /// Every file of the certificates, with its content.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = ["peer", "server"]
            .into_iter()
            .flat_map(|role| ["tls.crt", "tls.key", "ca.crt"].map(|f| format!("{role}/{f}")));
        files.map(|f| (f.clone(), fs::read(self.dir.join("certs").join(&f)).expect("a file"))).collect()
    }

    /// Starts without a mounted bundle.
    pub fn takes_the_bundle_of_the_issuer(&mut self) {
        fs::remove_dir_all(self.dir.join("trust")).expect("remove the bundle");
        self.of_issuer = true;
    }

    /// The CAs of the peer's bundle on disk.
    pub fn bundle(&self) -> Bundle {
        let pem = fs::read(self.dir.join("certs/peer/ca.crt")).expect("a bundle");
        Bundle::parse(&pem).expect("CAs")
    }

    pub fn forget_files(&self) {
        fs::remove_dir_all(self.dir.join("certs")).expect("remove the certificates");
    }

    /// Forgets what each `init` has logged.
    pub fn forget_log(&self) {
        fs::remove_file(self.dir.join("init.log")).expect("remove a log");
    }

    /// Has OpenSSL verify a role's chain against its bundle.
    pub fn verified(&self, role: &str) {
        let path = |name: &str| self.dir.join("certs").join(role).join(name);
        let mut command = Command::new("openssl");
        command.arg("verify").arg("-CAfile").arg(path("ca.crt")).arg("-untrusted").arg(path("tls.crt"));
        run(command.arg(path("tls.crt")));
    }

    /// The chains of the certificates on disk.
    pub fn chains(&self) -> Vec<Chain> {
        let read = |role: &str| fs::read(self.dir.join("certs").join(role).join("tls.crt")).ok();
        ["peer", "server"].into_iter().filter_map(read).map(|pem| Chain::parse(&pem).expect("a chain")).collect()
    }

    /// The CAs of the certificates on disk.
    pub fn issuers(&self) -> BTreeSet<String> {
        self.chains().iter().map(Chain::authority).collect()
    }

    /// Whether the certificates on disk are for the pod's address.
    fn hold_the_address(&self) -> bool {
        let address = self.address.parse().expect("an address");
        self.chains().iter().all(|chain| chain.sans.ips.contains(&address))
    }

    /// The serial number of the peer's certificate on disk, if there is one.
    pub fn serial(&self) -> Option<String> {
        self.chains().into_iter().next().map(|chain| chain.serial)
    }

    /// The requests of the pod.
    pub async fn requests(&self) -> Vec<Value> {
        let all = ListParams::default();
        let client = self.lab.api.client.clone();
        let items: Vec<Value> = match self.kind {
            Kind::CertManager => {
                let api: Api<DynamicObject> = Api::namespaced_with(client, &self.namespace, &resource());
                let items = api.list(&all).await.expect("a list").items;
                items.iter().map(|item| serde_json::to_value(item).expect("JSON")).collect()
            }
            Kind::Signer => {
                let items = Api::<CertificateSigningRequest>::all(client).list(&all).await.expect("a list").items;
                items.iter().map(|item| serde_json::to_value(item).expect("JSON")).collect()
            }
        };
        let uid = self.uid();
        items.into_iter().filter(|item| item["metadata"]["name"].as_str().unwrap_or_default().contains(&uid)).collect()
    }

    /// Deletes a request, as its cleaner does.
    pub async fn forget_request(&self, request: &Value) {
        let name = request["metadata"]["name"].as_str().expect("a name");
        let kind = if self.kind == Kind::CertManager { "certificaterequests.cert-manager.io" } else { "csr" };
        self.lab.api.kubectl(&["delete", kind, name, "-n", &self.namespace]);
    }

    /// Waits until the issuer says of so many CertificateRequests of the pod that they are pending.
    pub async fn pending(&self, count: usize) {
        eventually("pending requests", LIMIT, || async {
            let requests = self.requests().await;
            let is_pending = |request: &&Value| {
                let conditions = request["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["reason"] == "Pending")
            };
            let there = requests.iter().filter(is_pending).count();
            if there == count { Ok(()) } else { Err(format!("{requests:?}")) }
        })
        .await;
    }

    /// Waits for so many requests of the pod.
    pub async fn requested(&self, count: usize) {
        eventually("requests", LIMIT, || async {
            let there = self.requests().await.len();
            if there == count { Ok(()) } else { Err(format!("{there} of {count}")) }
        })
        .await;
    }

    pub async fn delete_pod(&self) {
        self.lab.api.delete_pod(&self.namespace, "etcd-0").await;
    }

    /// Waits until no request is left.
    pub async fn gone(&self) {
        self.requested(0).await;
    }
}
