//! cert-manager itself on a test's API server, behind the interface of the stand-in. `CERT_MANAGER_BIN` names a directory with its
//! programs `controller` and `webhook`, `CERT_MANAGER_CRDS` one with its CustomResourceDefinitions (by default `crds` in the
//! former).

use std::{
    env,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

use super::{Authority, Behaviour, LIMIT, LOOK_EVERY, programs, resource};
use crate::{
    apiserver::ApiServer,
    eventually,
    pki::{Ca, LeafOptions},
    ports,
    process::{Process, run},
    temp::TempDir,
};

const VARIABLE: &str = "CERT_MANAGER_BIN";
/// The Issuer of each namespace.
pub const ISSUER: &str = "company";
/// The controllers that CA issuers need, for both kinds of request, and those of Certificates.
const CONTROLLERS: &str = "issuers,clusterissuers,certificaterequests-issuer-ca,certificatesigningrequests-issuer-ca,\
                           certificates-trigger,certificates-issuing,certificates-key-manager,certificates-request-manager,\
                           certificates-readiness,certificates-revision-manager";
/// The one that approves each CertificateRequest.
const APPROVER: &str = "certificaterequests-approver";
/// The type of condition that an Issuer has when it can sign.
const READY: &str = "Ready";

/// Where cert-manager is on this machine.
pub struct Programs {
    controller: PathBuf,
    webhook: PathBuf,
    definitions: PathBuf,
}

impl Programs {
    /// `None`, having said so, where the machine has none.
    pub fn find() -> Option<Self> {
        programs::directory(VARIABLE, "cert-manager", "cert-manager's controller and webhook, and its CRDs in crds")?;
        Self::named()
    }

    /// The same, without a word.
    pub fn named() -> Option<Self> {
        let directory = PathBuf::from(env::var_os(VARIABLE)?);
        let definitions = env::var_os("CERT_MANAGER_CRDS").map_or_else(|| directory.join("crds"), PathBuf::from);
        Some(Self { controller: directory.join("controller"), webhook: directory.join("webhook"), definitions })
    }
}

/// Its running controller and webhook.
pub struct Controller {
    running: Mutex<Running>,
    _webhook: Process,
    program: PathBuf,
    directory: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    client: Client,
}

struct Running {
    process: Process,
    /// Whether its own approver runs.
    approves: bool,
    stopped: bool,
}

impl Controller {
    /// Installs cert-manager on `api` as its chart would, and runs it as cluster-admin.
    pub async fn start(api: &ApiServer, programs: &Programs) -> Arc<Self> {
        programs::install_definitions(api, &programs.definitions).await;
        let requests: Api<DynamicObject> = Api::all_with(api.client.clone(), &resource());
        let all = ListParams::default();
        eventually("CertificateRequests to be served", LIMIT, || requests.list(&all)).await;
        let webhook = webhook(api, &programs.webhook).await;
        let directory = api.directory().path().to_owned();
        let (kubectl, kubeconfig) = (api.kubectl_path(), api.kubeconfig.clone());
        let process = controller(&programs.controller, &directory, &kubeconfig, true);
        Arc::new(Self {
            running: Mutex::new(Running { process, approves: true, stopped: false }),
            _webhook: webhook,
            program: programs.controller.clone(),
            directory,
            kubectl,
            kubeconfig,
            client: api.client.clone(),
        })
    }

    /// All that the controller has written.
    pub fn log(&self) -> String {
        self.running().process.log()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().expect("no panic under the lock")
    }

    /// Makes it run or stand still, with or without its approver.
    fn set(&self, runs: bool, approves: bool) {
        let mut running = self.running();
        if running.approves != approves {
            running.process.kill();
            let process = controller(&self.program, &self.directory, &self.kubeconfig, approves);
            *running = Running { process, approves, stopped: false };
        }
        if running.stopped == runs {
            running.process.signal(if runs { Signal::SIGCONT } else { Signal::SIGSTOP });
            running.stopped = !runs;
        }
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        run(Command::new(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig).args(arguments))
    }

    fn apply(&self, object: &Value) {
        let file = TempDir::new("apply");
        let path = file.write("object.json", object.to_string());
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }
}

fn controller(program: &Path, directory: &Path, kubeconfig: &Path, approves: bool) -> Process {
    let controllers = if approves { format!("{CONTROLLERS},{APPROVER}") } else { CONTROLLERS.to_owned() };
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(kubeconfig).arg(format!("--controllers={controllers}")).args([
        "--leader-elect=false",
        "--feature-gates=ExperimentalCertificateSigningRequestControllers=true",
        // By default it makes 20 calls a second.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]);
    for flag in ["metrics-listen-address", "internal-healthz-listen-address"] {
        command.arg(format!("--{flag}=127.0.0.1:{}", ports::loopback()));
    }
    Process::spawn("cert-manager", &mut command, directory)
}

/// Its webhook, which writes who asks into each request, and validates it.
async fn webhook(api: &ApiServer, program: &Path) -> Process {
    let (port, directory) = (ports::loopback(), api.directory());
    let leaf = api.ca.leaf(&LeafOptions::default());
    let files = [("crt", leaf.cert), ("key", leaf.key)]
        .map(|(end, text)| directory.write(format!("cert-manager-webhook.{end}"), text));
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(&api.kubeconfig).arg(format!("--secure-port={port}"));
    command.arg(format!("--healthz-port={}", ports::loopback()));
    command.arg("--tls-cert-file").arg(&files[0]).arg("--tls-private-key-file").arg(&files[1]);
    let process = Process::spawn("cert-manager-webhook", &mut command, directory.path());
    eventually("cert-manager's webhook to listen", LIMIT, || async {
        TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| format!("{e}: {}", process.log_end()))
    })
    .await;
    let kinds = [("Mutating", "mutate"), ("Validating", "validate")].map(|(kind, path)| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"),
            "metadata": {"name": "cert-manager-webhook"},
            "webhooks": [{
                "name": "webhook.cert-manager.io", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
                "rules": [{
                    "apiGroups": ["cert-manager.io", "acme.cert-manager.io"], "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"], "resources": ["*/*"],
                }],
                "clientConfig": {
                    "url": format!("https://127.0.0.1:{port}/{path}"), "caBundle": STANDARD.encode(&api.ca.pem),
                },
            }],
        })
    });
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": kinds}).to_string());
    process
}

/// An Issuer of one namespace with a CA of the test's. Its CertificateSigningRequests are approved here: cert-manager leaves that to
/// others.
pub struct Issuer {
    controller: Arc<Controller>,
    namespace: String,
    authority: Mutex<Authority>,
    secrets: AtomicUsize,
    /// The reason to deny, if one is to.
    denial: Arc<Mutex<Option<String>>>,
    /// Whether it, or the test, approves what it signs.
    approves: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
        // Another one begins with a controller that runs.
        self.controller.set(true, true);
    }
}

impl Issuer {
    pub(super) fn new(controller: &Arc<Controller>, namespace: &str) -> Self {
        let (denial, approves) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let decides =
            decide(controller.client.clone(), namespace.to_owned(), Arc::clone(&denial), Arc::clone(&approves));
        let task = tokio::spawn(decides);
        let authority = Mutex::new(Authority::new("company CA"));
        let namespace = namespace.to_owned();
        let issuer = Self {
            controller: Arc::clone(controller),
            namespace,
            authority,
            secrets: AtomicUsize::new(0),
            denial,
            approves,
            task,
        };
        issuer.behave(&Behaviour::Sign);
        issuer
    }

    pub(super) fn behave(&self, behaviour: &Behaviour) {
        let denial = if let Behaviour::Deny(reason) = behaviour { Some(reason.clone()) } else { None };
        let approves = denial.is_none() && self.approves.load(Ordering::Relaxed);
        self.controller.set(*behaviour != Behaviour::Away, approves);
        *self.denial.lock().expect("no panic under the lock") = denial;
        match behaviour {
            Behaviour::Away | Behaviour::Deny(_) => {}
            Behaviour::Sign => {
                let (certificate, key) =
                    self.with(|authority| (authority.ca.pem.clone(), authority.ca.key_pem.clone()));
                self.sign_with(&certificate, &key);
            }
            Behaviour::Pending => self.refer("none", false),
            // It does not see before it signs that the key is another one.
            Behaviour::Fail(_) => {
                self.sign_with(&self.with(|authority| authority.ca.pem.clone()), &Ca::new("another key").key_pem)
            }
            _ => panic!("cert-manager itself cannot be made to behave as {behaviour:?}"),
        }
    }

    pub(super) fn leave_approval_to_others(&self) {
        self.approves.store(false, Ordering::Relaxed);
        self.behave(&Behaviour::Sign);
    }

    pub(super) fn replace(&self, authority: Authority) {
        *self.authority.lock().expect("no panic under the lock") = authority;
        self.behave(&Behaviour::Sign);
    }

    pub(super) fn ca(&self) -> String {
        self.with(|authority| authority.anchor().to_owned())
    }

    fn with<T>(&self, read: impl FnOnce(&Authority) -> T) -> T {
        read(&self.authority.lock().expect("no panic under the lock"))
    }

    /// Has the Issuer sign with this pair.
    fn sign_with(&self, certificate: &str, key: &str) {
        let name = format!("company-{}", self.secrets.fetch_add(1, Ordering::Relaxed));
        self.controller.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.namespace},
            "type": "kubernetes.io/tls", "stringData": {"tls.crt": certificate, "tls.key": key, "ca.crt": self.ca()},
        }));
        self.refer(&name, true);
    }

    /// Has the Issuer take its CA from `secret`, and waits until cert-manager has seen that.
    fn refer(&self, secret: &str, ready: bool) {
        self.controller.apply(&json!({
            "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": ISSUER, "namespace": self.namespace},
            "spec": {"ca": {"secretName": secret}},
        }));
        let began = Instant::now();
        loop {
            let text = self.controller.kubectl(&["get", "issuer", ISSUER, "-n", &self.namespace, "-o", "json"]);
            let issuer: Value = serde_json::from_str(&text).expect("an Issuer is JSON");
            let conditions = issuer["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let seen = conditions.iter().any(|condition| {
                condition["type"] == READY
                    && condition["status"] == if ready { "True" } else { "False" }
                    && condition["observedGeneration"] == issuer["metadata"]["generation"]
            });
            if seen {
                return;
            }
            assert!(began.elapsed() < LIMIT, "cert-manager has not seen it: {issuer}\n{}", self.controller.log());
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Approves the CertificateSigningRequests to the namespace's Issuer; or denies all requests to it, where there is a reason.
async fn decide(client: Client, namespace: String, denial: Arc<Mutex<Option<String>>>, approves: Arc<AtomicBool>) {
    let signer = signer(&namespace);
    let signing: Api<CertificateSigningRequest> = Api::all(client.clone());
    let requests: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource());
    let (all, params) = (ListParams::default(), PatchParams::default());
    loop {
        let denial = denial.lock().expect("no panic under the lock").clone();
        let condition = |approved| {
            let (type_, message) =
                denial.as_deref().map_or((approved, "approved by the test"), |message| ("Denied", message));
            Patch::Merge(json!({"status": {"conditions": [{
                "type": type_, "status": "True", "reason": "policy.example.com", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]}}))
        };
        for object in signing.list(&all).await.map(|list| list.items).unwrap_or_default() {
            let status = object.status.as_ref();
            let open = status.and_then(|s| s.conditions.as_ref()).is_none_or(Vec::is_empty);
            if open && object.spec.signer_name == signer && approves.load(Ordering::Relaxed) {
                // Gone meanwhile, perhaps.
                let _ = signing.patch_approval(&object.name_any(), &params, &condition("Approved")).await;
            }
        }
        if denial.is_some() {
            for object in requests.list(&all).await.map(|list| list.items).unwrap_or_default() {
                if object.data["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
                    let _ = requests.patch_status(&object.name_any(), &params, &condition("Approved")).await;
                }
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The name of the Issuer as a signer of CertificateSigningRequests.
pub fn signer(namespace: &str) -> String {
    format!("issuers.cert-manager.io/{namespace}.{ISSUER}")
}
