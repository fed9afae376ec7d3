//! An API server with the shipped rights, approvers that have no others, and requests in every variation.

use std::{process::Command, time::Duration};

use base64::Engine;
use etcd_tls_contract::{
    csr::PrivateKey,
    identity,
    key::KeyAlgorithm,
    names::{self, SignerName},
    role::Role,
    san::Sans,
    settings::Settings,
};
use etcd_tls_webhook::controller::facts;
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{Namespace, Pod},
    events::v1::Event,
    rbac::v1::{ClusterRoleBinding, RoleBinding, Subject},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, NODE},
    eventually, ports,
    process::{Process, binary},
};

/// How long anything may take here, on a slow day.
pub const LIMIT: Duration = Duration::from_secs(120);

/// See the module.
pub struct Lab {
    pub api: ApiServer,
}

/// A running `etcd-tls-webhook approve`.
pub struct Approver {
    pub process: Process,
    admin: String,
}

impl Lab {
    /// `None`, having said so, where the machine has no API server.
    pub async fn new() -> Option<Self> {
        let lab = Self { api: ApiServer::start().await? };
        lab.install();
        Some(lab)
    }

    /// Applies what `approve` and `sign` need of the manifests. Service accounts are let through the policy on requests, which
    /// would keep most of what is refused here from getting as far; the policy itself is as shipped.
    pub fn install(&self) {
        let manifests = tests::repository().join("manifests");
        for file in
            ["namespace", "service-accounts", "rbac-requesters", "rbac-approve", "rbac-sign", "policy", "guards"]
        {
            let file = if file == "guards" { file.to_owned() } else { format!("{file}.yaml") };
            self.api.kubectl(&["apply", "-f", &manifests.join(file).display().to_string()]);
        }
        let rbac = "rbac.authorization.k8s.io";
        let role = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "request-anything"},
            "rules": [{"apiGroups": ["etcd-tls.dev"], "resources": ["signers"], "verbs": ["request-anything"]}],
        });
        let binding = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "request-anything"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "request-anything"},
            "subjects": [{"apiGroup": rbac, "kind": "Group", "name": "system:serviceaccounts"}],
        });
        self.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string());
    }

    pub fn approver(&self, identity: &str, arguments: &[&str]) -> Approver {
        self.approver_at(identity, &self.api.url, arguments)
    }

    /// An approver whose API server is at `url`; its service account's token is its only right.
    pub fn approver_at(&self, identity: &str, url: &str, arguments: &[&str]) -> Approver {
        self.approver_in(identity, url, arguments, &[])
    }

    /// [`Self::approver_at`], with more environment, such as another clock.
    pub fn approver_in(
        &self,
        identity: &str,
        url: &str,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Approver {
        let namespace = names::SYSTEM_NAMESPACE;
        let token = self.api.kubectl(&["create", "token", "etcd-tls-approve", "-n", namespace]);
        let kubeconfig = self.api.token_kubeconfig(identity, token.trim());
        let text = std::fs::read_to_string(&kubeconfig).expect("read a kubeconfig").replace(&self.api.url, url);
        std::fs::write(&kubeconfig, text).expect("write a kubeconfig");
        let admin = format!("127.0.0.1:{}", ports::loopback());
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.arg("approve").args(["--identity", identity, "--admin-address", &admin]).args(arguments);
        command.env_clear().env("KUBECONFIG", kubeconfig).env("ETCD_TLS_LOG_LEVEL", "info,etcd_tls_webhook=debug");
        command.envs(environment.iter().cloned());
        Approver { process: Process::spawn(identity, &mut command, self.api.directory().path()), admin }
    }

    /// A client with the approver's rights.
    pub async fn approve_client(&self) -> Client {
        let token = self.api.kubectl(&["create", "token", "etcd-tls-approve", "-n", names::SYSTEM_NAMESPACE]);
        self.api.client_with_token(token.trim()).await
    }

    pub async fn ready(&self, approver: &Approver) {
        eventually("the approver to be ready", LIMIT, || async {
            let answer = get(&approver.admin, "/ready").await?;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        })
        .await;
    }

    /// Waits until `/ready` says `text`.
    pub async fn unready(&self, approver: &Approver, text: &str) {
        eventually(&format!("the approver to say {text}"), LIMIT, || async {
            let answer = get(&approver.admin, "/ready").await?;
            if answer.starts_with("HTTP/1.1 5") && answer.contains(text) { Ok(()) } else { Err(answer) }
        })
        .await;
    }

    pub async fn metrics(&self, approver: &Approver) -> String {
        get(&approver.admin, "/metrics").await.expect("metrics")
    }

    pub async fn pod(&self, namespace: &str, name: &str, labels: Value, ip: Option<&str>) -> Pod {
        self.pod_with(namespace, name, labels, json!({}), ip).await
    }

    pub async fn pod_with(
        &self,
        namespace: &str,
        name: &str,
        labels: Value,
        annotations: Value,
        ip: Option<&str>,
    ) -> Pod {
        let pod = json!({
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "spec": {"containers": [{"name": "etcd", "image": "etcd"}]},
        });
        let pod = eventually("a pod", LIMIT, || self.api.pod(namespace, pod.clone())).await;
        match ip {
            Some(ip) => self.api.set_pod_ips(namespace, name, &[ip.parse().expect("an address")]).await,
            None => pod,
        }
    }

    /// A client with the token that kubelet would mount into this pod.
    pub async fn requester(&self, pod: &Pod) -> Client {
        let namespace = pod.namespace().expect("a namespace");
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        self.api.client_with_token(&self.api.token(&namespace, account, Some(pod)).await).await
    }

    pub async fn label_namespace(&self, name: &str, value: Value) {
        let api: Api<Namespace> = Api::all(self.api.client.clone());
        let patch = json!({"metadata": {"labels": {"etcd-tls": value}}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("label a namespace");
    }

    pub async fn set_policy(&self, text: &str) {
        tests::policy::set(&self.api.client, text).await;
    }

    pub async fn csr(&self, name: &str) -> CertificateSigningRequest {
        Api::all(self.api.client.clone()).get(name).await.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub async fn approve_by_hand(&self, name: &str) {
        let api: Api<CertificateSigningRequest> = Api::all(self.api.client.clone());
        let patch = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "ByHand"}]}});
        api.patch_approval(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("approve by hand");
    }

    /// Whether it was approved, and the message; `None` while it is pending.
    pub async fn verdict(&self, name: &str) -> Option<(bool, String)> {
        // One that is made again under its name is not there for a moment.
        let csr: CertificateSigningRequest = Api::all(self.api.client.clone()).get_opt(name).await.expect("look")?;
        let conditions = csr.status.and_then(|s| s.conditions).unwrap_or_default();
        let [condition] = conditions.as_slice() else {
            assert!(conditions.is_empty(), "{name}: {conditions:?}");
            return None;
        };
        Some((condition.type_ == "Approved", condition.message.clone().unwrap_or_default()))
    }

    pub async fn decision(&self, name: &str) -> (bool, String) {
        eventually(&format!("a decision about {name}"), LIMIT, || async { self.verdict(name).await.ok_or("pending") })
            .await
    }

    pub async fn approved(&self, name: &str) {
        let (approved, message) = self.decision(name).await;
        assert!(approved, "{name}: {message}");
    }

    pub async fn denied(&self, name: &str) -> String {
        let (approved, message) = self.decision(name).await;
        assert!(!approved, "{name} was approved: {message}");
        message
    }

    /// Waits for an event on a pod that says the same as a CSR's condition.
    pub async fn event(&self, namespace: &str, pod: &str, message: &str) {
        let start: String = message.chars().take(200).collect();
        self.event_of(namespace, pod, &start).await;
    }

    pub async fn event_of(&self, namespace: &str, object: &str, text: &str) {
        let api: Api<Event> = Api::namespaced(self.api.client.clone(), namespace);
        eventually(&format!("an event on {object}: {text}"), LIMIT, || async {
            let events = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
            let of = |e: &&Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(object);
            let notes: Vec<_> = events.iter().filter(of).filter_map(|e| e.note.clone()).collect();
            if notes.iter().any(|note| note.contains(text)) { Ok(()) } else { Err(notes.join("\n")) }
        })
        .await;
    }

    /// Waits until the subjects of `etcd-tls-requesters`, each as "kind name" or "kind namespace/name", are as they should be.
    pub async fn subjects(&self, as_wanted: impl Fn(&[String]) -> bool) {
        let api: Api<ClusterRoleBinding> = Api::all(self.api.client.clone());
        eventually("the subjects of etcd-tls-requesters", LIMIT, || async {
            let binding = api.get("etcd-tls-requesters").await.map_err(|e| e.to_string())?;
            let subjects = binding.subjects.unwrap_or_default();
            let name = |s: &Subject| match &s.namespace {
                Some(namespace) => format!("{} {namespace}/{}", s.kind, s.name),
                None => format!("{} {}", s.kind, s.name),
            };
            let subjects: Vec<_> = subjects.iter().map(name).collect();
            if as_wanted(&subjects) { Ok(()) } else { Err(format!("{subjects:?}")) }
        })
        .await;
    }

    pub async fn sign_binding(&self, namespace: &str, there: bool) {
        let api: Api<RoleBinding> = Api::namespaced(self.api.client.clone(), namespace);
        eventually(&format!("etcd-tls-sign in {namespace}: {there}"), LIMIT, || async {
            let binding = api.get_opt("etcd-tls-sign").await.map_err(|e| e.to_string())?;
            if binding.is_some() == there { Ok(()) } else { Err(format!("{binding:?}")) }
        })
        .await;
    }

    /// Whether a service account of ours has a right, as the API server answers.
    pub fn can_i(&self, account: &str, verb: &str, what: &str, namespace: &str) -> String {
        let system = names::SYSTEM_NAMESPACE;
        let user = format!("--as=system:serviceaccount:{system}:{account}");
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let output = self
            .api
            .kubectl_command(&["auth", "can-i", verb, what, "-n", namespace, &user])
            .output()
            .expect("run kubectl");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// A request, at first one that its pod may make.
#[derive(Clone)]
pub struct Asking {
    pub name: String,
    uid: String,
    role: Role,
    key: std::sync::Arc<PrivateKey>,
    organization: String,
    common_name: String,
    sans: Sans,
    signer: String,
    usages: Vec<String>,
    copies: usize,
    named: bool,
    trusts: Option<String>,
}

impl Asking {
    pub fn of(pod: &Pod, role: Role) -> Self {
        let facts = facts::pod(pod, true);
        let settings = Settings::parse(&facts.annotations).expect("good annotations");
        let signer =
            SignerName { domain: role.domain(), namespace: facts.namespace.clone(), cluster: settings.cluster.clone() };
        let mut sans = identity::requested_sans(role, &facts, &settings);
        sans.dns.retain(|name| !settings.extra_sans.dns.contains(name));
        let asking = Self {
            name: String::new(),
            uid: facts.uid.clone(),
            role,
            key: std::sync::Arc::new(PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key")),
            organization: role.organization().to_owned(),
            common_name: identity::subject_common_name(role, &facts, &settings),
            sans,
            signer: signer.to_string(),
            usages: identity::usages(role).iter().map(|&u| u.to_owned()).collect(),
            copies: 1,
            named: false,
            trusts: None,
        };
        asking.renamed()
    }

    /// The same, for a change.
    pub fn again(&self) -> Self {
        self.clone()
    }

    fn renamed(mut self) -> Self {
        if !self.named {
            let digest = etcd_tls_contract::csr::key_digest(&self.key.public_key());
            self.name = names::csr_name(&self.uid, self.role, &digest);
        }
        self
    }

    pub fn named(mut self, name: &str) -> Self {
        (self.name, self.named) = (name.to_owned(), true);
        self
    }

    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self.renamed()
    }

    pub fn signer(mut self, signer: &str) -> Self {
        signer.clone_into(&mut self.signer);
        self
    }

    pub fn sans(mut self, change: impl FnOnce(&mut Sans)) -> Self {
        change(&mut self.sans);
        self
    }

    pub fn common_name(mut self, common_name: &str) -> Self {
        common_name.clone_into(&mut self.common_name);
        self
    }

    pub fn organization(mut self, organization: &str) -> Self {
        organization.clone_into(&mut self.organization);
        self
    }

    pub fn usages(mut self, usages: &[&str]) -> Self {
        self.usages = usages.iter().map(|&u| u.to_owned()).collect();
        self
    }

    /// States that etcd has loaded the bundle of this digest.
    #[allow(dead_code, reason = "the signer's tests use it")]
    pub fn trusts(mut self, digest: &str) -> Self {
        self.trusts = Some(digest.to_owned());
        self
    }

    /// Two PEM blocks, which the API server takes.
    pub fn twice(mut self) -> Self {
        self.copies = 2;
        self
    }

    fn body(&self) -> Value {
        let pem = self.key.request(&self.organization, &self.common_name, &self.sans).expect("a request");
        json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": self.name, "annotations": self.trusts.as_ref().map(|t| json!({names::TRUSTS_ANNOTATION: t}))},
            "spec": {
                "request": base64::engine::general_purpose::STANDARD.encode(pem.repeat(self.copies)),
                "signerName": self.signer,
                "usages": self.usages,
                "expirationSeconds": 86_400,
            },
        })
    }

    pub async fn create(&self, client: &Client) {
        self.try_create(client, &[]).await.unwrap_or_else(|e| panic!("create {}: {e}", self.name));
    }

    pub async fn create_as(&self, client: &Client, headers: &[(String, String)]) {
        self.try_create(client, headers).await.unwrap_or_else(|e| panic!("create {}: {e}", self.name));
    }

    /// As a requester in a pod does: a 403 is "not yet".
    pub async fn create_when_allowed(&self, client: &Client) {
        eventually("the right to request", LIMIT, || self.try_create(client, &[])).await;
    }

    /// Whether a client has the right to make it, as the API server says it.
    #[allow(dead_code, reason = "the approver's tests use it")]
    pub async fn allowed(&self, client: &Client) -> bool {
        match self.try_create(client, &[]).await {
            Ok(()) => true,
            Err(kube::Error::Api(error)) if error.code == 403 => false,
            Err(error) => panic!("create {}: {error}", self.name),
        }
    }

    pub async fn try_create(&self, client: &Client, headers: &[(String, String)]) -> kube::Result<()> {
        let mut request = hyper::Request::post("/apis/certificates.k8s.io/v1/certificatesigningrequests")
            .header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(self.body().to_string().into_bytes()).expect("a request");
        client.request::<CertificateSigningRequest>(request).await.map(|_| ())
    }
}

/// The headers by which an administrator is `pod`: all that the API server would say of its token.
pub fn impersonated(pod: &Pod) -> Vec<(String, String)> {
    let namespace = pod.namespace().expect("a namespace");
    let extra =
        |key: &str, value: &str| (format!("Impersonate-Extra-authentication.kubernetes.io%2F{key}"), value.to_owned());
    vec![
        ("Impersonate-User".to_owned(), format!("system:serviceaccount:{namespace}:default")),
        ("Impersonate-Uid".to_owned(), "5d1c4a52-0000-4000-8000-000000000000".to_owned()),
        ("Impersonate-Group".to_owned(), "system:serviceaccounts".to_owned()),
        ("Impersonate-Group".to_owned(), format!("system:serviceaccounts:{namespace}")),
        ("Impersonate-Group".to_owned(), "system:authenticated".to_owned()),
        // Only to be allowed to create; the approver does not look at it.
        ("Impersonate-Group".to_owned(), "system:masters".to_owned()),
        extra("pod-name", &pod.name_any()),
        extra("pod-uid", &pod.uid().expect("a uid")),
        extra("node-name", NODE),
        extra("credential-id", "JTI=5d1c4a52-0000-4000-8000-000000000001"),
    ]
}

pub async fn get(address: &str, path: &str) -> Result<String, String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let fail = |e: std::io::Error| e.to_string();
    let mut stream = tokio::net::TcpStream::connect(address).await.map_err(fail)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(fail)?;
    Ok(answer)
}
