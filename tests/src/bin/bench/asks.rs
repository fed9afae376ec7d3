//! Requests as pods make them, and as they are brought through a real API server: by our approver and signer, by
//! kube-controller-manager's, and by hand.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use etcd_tls_contract::{
    csr::{PrivateKey, Request, key_digest},
    identity,
    key::KeyAlgorithm,
    names,
    role::Role,
    san::Sans,
    settings::Settings,
};
use etcd_tls_sidecar::{
    issuance::flow::{Call, Circumstances, Expected, Flow, Outcome, Step},
    kube::{ApiError, Version},
};
use etcd_tls_webhook::controller::facts;
use futures::{StreamExt, future::join_all, stream};
use hyper::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use rustls::ClientConfig;
use serde_json::json;
use tests::{
    apiserver::ApiServer,
    pki::{Ca, LeafOptions, client_config},
};
use tokio::time::sleep;

use crate::wire::{self as http, Wire};

pub(crate) const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// A signer that nobody answers for.
const NOBODYS: &str = "bench.example.com/by-hand";
/// How long a request may take before the measurement is given up.
const LIMIT: Duration = Duration::from_secs(180);
/// The Retry-After of an API server that has no room in its queues.
const TURNED_AWAY: Duration = Duration::from_secs(1);
/// Pods that are made at once, ahead of a measurement.
const MAKERS: usize = 8;
/// Service accounts that share the pods: the API server queues the requests of one user in a few short queues, and turns
/// away what does not fit.
const ACCOUNTS: u32 = 10;

/// A pod that can ask.
pub(crate) struct Asker {
    pod: Pod,
    token: Arc<str>,
}

/// A request, ready to be sent.
pub(crate) struct Ask {
    pub(crate) name: String,
    create: http::Call,
    expected: Expected,
    token: Option<Arc<str>>,
}

/// How a burst went.
pub(crate) struct Burst {
    /// Certificates a second.
    pub(crate) rate: f64,
    /// From the creation to the certificate in the requester's hands, in milliseconds.
    pub(crate) latencies: Vec<f64>,
}

/// Writers by hand, who are nobody in particular: an API server lets administrators pass its queues.
const WRITERS: &str = "bench-by-hand";

/// Makes the service accounts of [`askers`].
pub(crate) async fn accounts(api: &ApiServer, namespace: &str) {
    for n in 0..ACCOUNTS {
        api.service_account(namespace, &format!("account-{n}")).await;
    }
}

/// Makes pods in a namespace that is opted in, through admission, each with addresses and a token of its own.
pub(crate) async fn askers(api: &ApiServer, namespace: &str, from: u32, count: u32) -> Vec<Asker> {
    stream::iter(from..from + count)
        .map(|n| async move {
            asker(api, namespace, &format!("etcd-{n}"), &format!("account-{}", n % ACCOUNTS), n).await
        })
        .buffer_unordered(MAKERS)
        .collect()
        .await
}

/// Makes a pod that can ask, of a service account, with an address of this number.
pub(crate) async fn asker(api: &ApiServer, namespace: &str, name: &str, account: &str, address: u32) -> Asker {
    let manifest = json!({
        "metadata": {"name": name},
        "spec": {"serviceAccountName": account, "containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
    });
    api.pod(namespace, manifest).await.unwrap_or_else(|e| panic!("create {namespace}/{name}: {e}"));
    let [_, a, b, c] = address.to_be_bytes();
    let pod = api.set_pod_ips(namespace, name, &[IpAddr::from([10, a, b, c])]).await;
    let token = api.token(namespace, account, Some(&pod)).await.into();
    Asker { pod, token }
}

impl Asker {
    /// The requests that its sidecar would make for `roles` at once, each with a new key.
    pub(crate) fn asks(&self, roles: &[Role]) -> Vec<Ask> {
        roles.iter().map(|role| self.ask(*role)).collect()
    }

    fn ask(&self, role: Role) -> Ask {
        let facts = facts::pod(&self.pod, true);
        let settings = Settings::parse(&facts.annotations).expect("a pod without annotations");
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
        let common_name = identity::subject_common_name(role, &facts, &settings);
        let sans = identity::requested_sans(role, &facts, &settings);
        let name = names::csr_name(&facts.uid, role, &key_digest(&key.public_key()));
        let signer = names::SignerName {
            domain: role.domain(),
            namespace: facts.namespace.clone(),
            cluster: settings.cluster.clone(),
        };
        let pem = key.request(role.organization(), &common_name, &sans).expect("make a request");
        Ask::new(name, &signer.to_string(), identity::usages(role), &pem, Some(Arc::clone(&self.token)))
    }
}

/// A request of a node's for kube-controller-manager.
pub(crate) fn node_ask(n: usize) -> Ask {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
    let pem = key.request("system:nodes", "system:node:bench", &Sans::default()).expect("make a request");
    let usages = ["digital signature", "client auth"];
    Ask::new(format!("node-{n}"), "kubernetes.io/kube-apiserver-client-kubelet", &usages, &pem, None)
}

/// The object of a CSR.
pub(crate) fn csr(name: &str, signer: &str, usages: &[&str], pem: &str) -> Bytes {
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": STANDARD.encode(pem), "signerName": signer, "usages": usages, "expirationSeconds": 86_400,
        },
    });
    Bytes::from(object.to_string())
}

/// Where the API server is.
pub(crate) fn address(api: &ApiServer) -> SocketAddr {
    api.url.trim_start_matches("https://").parse().expect("a URL with an address")
}

/// For bearers of tokens.
pub(crate) fn nobody(api: &ApiServer) -> Arc<ClientConfig> {
    client_config(&api.ca.pem, None)
}

/// cluster-admin.
pub(crate) fn admin(api: &ApiServer) -> Arc<ClientConfig> {
    let leaf = api.ca.leaf(&LeafOptions {
        organizations: vec!["system:masters".to_owned()],
        common_name: "bench".to_owned(),
        ..LeafOptions::default()
    });
    client_config(&api.ca.pem, Some((&leaf.cert, &leaf.key)))
}

/// All of `asks` at once, each on a wire of its own, until each has its certificate, looked for as the sidecar does.
pub(crate) async fn burst(wires: &mut [Wire], asks: &[Ask]) -> Result<Burst, String> {
    assert!(wires.len() >= asks.len(), "a wire for each request");
    let began = Instant::now();
    let latencies = join_all(wires.iter_mut().zip(asks).map(|(wire, ask)| get_certificate(wire, ask))).await;
    let took = began.elapsed().as_secs_f64();
    let latencies = latencies.into_iter().collect::<Result<Vec<f64>, String>>()?;
    Ok(Burst { rate: latencies.len() as f64 / took, latencies })
}

/// One request's way, each step as the sidecar takes it; how long it took, in milliseconds.
pub(crate) async fn get_certificate(wire: &mut Wire, ask: &Ask) -> Result<f64, String> {
    get_certificate_made(wire, ask, || {}).await
}

/// [`get_certificate`]; calls `made` when the request is there.
pub(crate) async fn get_certificate_made(wire: &mut Wire, ask: &Ask, made: impl FnOnce()) -> Result<f64, String> {
    let mut made = Some(made);
    let began = Instant::now();
    let mut flow = Flow::new(ask.expected.clone());
    let mut call = flow.begin();
    loop {
        let asked = Instant::now();
        let (status, body) = wire.call(&ask.call(call)).await?;
        let took = asked.elapsed();
        if status == StatusCode::CREATED
            && let Some(made) = made.take()
        {
            made();
        }
        let answer = if status.is_success() {
            Ok(serde_json::from_slice(&body).map_err(|e| format!("{}: {status}: {e}", ask.name))?)
        } else {
            let retry_after = (status == StatusCode::TOO_MANY_REQUESTS).then_some(TURNED_AWAY);
            let message = String::from_utf8_lossy(&body).chars().take(300).collect();
            Err(ApiError::Status { code: status.as_u16(), message, retry_after })
        };
        let (elapsed, now) = (began.elapsed(), SystemTime::now());
        if elapsed > LIMIT {
            let seen = String::from_utf8_lossy(&body).chars().take(4000).collect::<String>();
            return Err(format!("{}: no certificate within {LIMIT:?}: {status}: {seen}", ask.name));
        }
        match flow.step(answer, &Circumstances { elapsed, took, life: None, now, chance: 0.5 }) {
            Step::Over(Outcome::Signed { .. }) => return Ok(began.elapsed().as_secs_f64() * 1e3),
            Step::Over(outcome) => return Err(format!("{}: no certificate: {outcome:?}", ask.name)),
            Step::Next(next, pause) => {
                call = next;
                sleep(pause).await;
            }
        }
    }
}

impl Ask {
    fn new(name: String, signer: &str, usages: &[&str], pem: &str, token: Option<Arc<str>>) -> Self {
        let mut create = http::Call::post(CSRS, csr(&name, signer, usages, pem));
        create.token.clone_from(&token);
        let request = Request::parse(pem.as_bytes()).expect("a request of ours");
        let expected = Expected { request, signer: signer.to_owned() };
        Self { name, create, expected, token }
    }

    /// The call that makes it.
    pub(crate) const fn create(&self) -> &http::Call {
        &self.create
    }

    fn call(&self, call: Call) -> http::Call {
        let query = match call {
            Call::Create => return self.create.clone(),
            Call::Get(Version::MostRecent) => "",
            Call::Get(Version::Any) => "?resourceVersion=0",
        };
        let mut get = http::Call::get(format!("{CSRS}/{}{query}", self.name));
        get.token.clone_from(&self.token);
        get
    }
}

/// Service accounts that may make the three writes by hand, as tokens; an API server treats them as it treats requesters,
/// approver and signer.
pub(crate) async fn writers(api: &ApiServer) -> Vec<Arc<str>> {
    api.namespace(WRITERS, &[]).await;
    let metadata = json!({"name": WRITERS});
    let csrs = |resources: &[&str], verbs: &[&str]| json!({"apiGroups": ["certificates.k8s.io"], "resources": resources, "verbs": verbs});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata,
        "rules": [
            csrs(&["certificatesigningrequests"], &["create", "get"]),
            csrs(&["certificatesigningrequests/approval", "certificatesigningrequests/status"], &["patch"]),
            {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [NOBODYS], "verbs": ["approve", "sign"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WRITERS},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": format!("system:serviceaccounts:{WRITERS}")}],
    });
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string());
    accounts(api, WRITERS).await;
    let mut tokens = Vec::new();
    for n in 0..ACCOUNTS {
        tokens.push(api.token(WRITERS, &format!("account-{n}"), None).await.into());
    }
    tokens
}

/// The three writes of a certificate and nothing else; or with the reads that they cannot do without.
pub(crate) struct ByHand {
    creates: Vec<(String, http::Call)>,
    certificate: String,
    tokens: Vec<Arc<str>>,
    pods: Vec<String>,
}

impl ByHand {
    /// `count` cycles of names that begin with `prefix`, by the bearers of `tokens` in turns; without tokens, by the identity
    /// of the connection.
    pub(crate) fn new(prefix: &str, count: usize, tokens: &[Arc<str>]) -> Self {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
        let sans: Sans = "10.0.0.1,localhost".parse().expect("names");
        let pem = key.request("system:etcd-servers", "system:etcd-server:bench", &sans).expect("make a request");
        let usages = ["digital signature", "server auth", "client auth"];
        let creates = (0..count)
            .map(|n| {
                let name = format!("{prefix}-{n}");
                let body = csr(&name, NOBODYS, &usages, &pem);
                (name, http::Call::post(CSRS, body))
            })
            .collect();
        let leaf = Ca::new("by-hand").leaf(&LeafOptions::default());
        Self { creates, certificate: STANDARD.encode(leaf.cert), tokens: tokens.to_vec(), pods: Vec::new() }
    }

    /// Between the writes a live read of one of `pods` as well, and a look at the signed request at the end: approver and
    /// signer must each read the pod of two requests once, and the requester must look once. Nobody waits for anybody, looks
    /// too early, judges, verifies or signs.
    pub(crate) fn with_reads(mut self, pods: &[Asker]) -> Self {
        self.pods = pods
            .iter()
            .map(|asker| {
                let metadata = &asker.pod.metadata;
                let word = |s: &Option<String>| s.clone().unwrap_or_default();
                format!("/api/v1/namespaces/{}/pods/{}", word(&metadata.namespace), word(&metadata.name))
            })
            .collect();
        self
    }

    /// Cycle `n`, one write after the other; how long it took, in milliseconds.
    pub(crate) async fn cycle(&self, wire: &mut Wire, n: usize) -> Result<f64, String> {
        let began = Instant::now();
        let (name, create) = &self.creates[n];
        let by = |mut call: http::Call| {
            call.token = (!self.tokens.is_empty()).then(|| Arc::clone(&self.tokens[n % self.tokens.len()]));
            call
        };
        wire.succeed(&by(create.clone())).await?;
        if !self.pods.is_empty() {
            wire.succeed(&by(http::Call::get(&self.pods[n % self.pods.len()]))).await?;
        }
        let condition = json!({"type": "Approved", "status": "True", "reason": "ByHand", "message": "bench"});
        let approval = json!({"status": {"conditions": [condition]}}).to_string();
        wire.succeed(&by(http::Call::patch(format!("{CSRS}/{name}/approval"), approval))).await?;
        let status = json!({"status": {"certificate": self.certificate}}).to_string();
        wire.succeed(&by(http::Call::patch(format!("{CSRS}/{name}/status"), status))).await?;
        if !self.pods.is_empty() {
            let look = by(http::Call::get(format!("{CSRS}/{name}?resourceVersion=0")));
            // The API server's cache may be behind its own writes.
            while let Err(error) = wire.succeed(&look).await {
                if !error.contains(": 404 ") {
                    return Err(error);
                }
            }
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// All cycles at once, each on a wire of its own; cycles a second.
    pub(crate) async fn rate(&self, wires: &mut [Wire]) -> Result<f64, String> {
        let began = Instant::now();
        let count = self.creates.len();
        let all = wires.iter_mut().take(count).enumerate().map(|(n, wire)| self.cycle(wire, n));
        let cycles = join_all(all).await.into_iter().collect::<Result<Vec<f64>, String>>()?;
        Ok(cycles.len() as f64 / began.elapsed().as_secs_f64())
    }

    /// All cycles, as many at once as there are wires; cycles a second.
    pub(crate) async fn rate_shared(&self, wires: &mut [Wire]) -> Result<f64, String> {
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        let workers = wires.iter_mut().map(|wire| async {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= self.creates.len() {
                    return Ok::<_, String>(());
                }
                self.cycle(wire, n).await?;
            }
        });
        join_all(workers).await.into_iter().collect::<Result<Vec<()>, String>>()?;
        Ok(self.creates.len() as f64 / began.elapsed().as_secs_f64())
    }
}
