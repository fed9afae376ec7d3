//! A stand-in for the API server and the signer behind it, where a test counts or breaks what a real one does: CSRs are
//! kept in memory, and signed by authorities of its own as soon as they are looked at.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use etcd_tls_contract::{
    csr::Request as Pkcs10,
    key::KeyAlgorithm,
    role::{Domain, Role},
};
use etcd_tls_webhook::ca::{
    authority::Authority,
    issue::{Leaf, issue},
};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    },
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    pki::{Ca, LeafOptions},
    temp::TempDir,
};

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A status, a body and headers.
pub type Outage = (u16, String, Vec<(String, String)>);

/// The stored objects and the settings of the answers.
pub struct State {
    /// Every CSR by name.
    pub requests: BTreeMap<String, CertificateSigningRequest>,
    /// The authorities that sign.
    pub authorities: BTreeMap<Domain, Authority>,
    /// The life of what is signed.
    pub lifetime: Duration,
    /// Answered instead of everything, if set: a status, a body, and headers.
    pub outage: Option<Outage>,
    /// Denied instead of signed, with this message.
    pub deny: Option<String>,
    /// Nothing is signed.
    pub idle: bool,
    /// No connection is taken, and those that are there break.
    pub away: bool,
}

/// The running server; stopped when dropped.
pub struct CsrServer {
    /// Its port on 127.0.0.1.
    pub port: u16,
    state: Arc<Mutex<State>>,
    /// How many CSRs were made.
    pub created: Arc<AtomicUsize>,
    /// How many calls were made, or attempts at one while it is away.
    pub calls: Arc<AtomicUsize>,
    ca: Ca,
    task: JoinHandle<()>,
}

impl CsrServer {
    /// Starts one whose certificates live for `lifetime`.
    pub async fn start(lifetime: Duration) -> Self {
        crate::install_crypto();
        let ca = Ca::new("csr-server");
        // Valid for any clock that a test gives a client.
        let day = Duration::from_secs(86_400);
        let (not_before, not_after) = (SystemTime::now() - day, SystemTime::now() + day);
        let leaf = ca.leaf(&LeafOptions { not_before, not_after, ..LeafOptions::default() });
        let chain = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect::<Result<Vec<_>, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("a key");
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a TLS configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let state = State {
            requests: BTreeMap::new(),
            authorities: Domain::ALL.into_iter().map(|d| (d, authority(d.as_str()))).collect(),
            lifetime,
            outage: None,
            deny: None,
            idle: false,
            away: false,
        };
        let state = Arc::new(Mutex::new(state));
        let (created, calls) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            Arc::clone(&state),
            Arc::clone(&created),
            Arc::clone(&calls),
        ));
        Self { port, state, created, calls, ca, task }
    }

    /// The stored objects and the settings of the answers. Not to be held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    /// Writes a token directory as kubelet mounts it.
    pub fn token_directory(&self, dir: &TempDir) -> PathBuf {
        let path = dir.dir("token");
        fs::write(path.join("token"), "a-token").expect("write");
        fs::write(path.join("ca.crt"), &self.ca.pem).expect("write");
        path
    }

    /// A kubeconfig with a token; [`Self::token_directory`] has the CA.
    pub fn kubeconfig(&self, dir: &TempDir) -> String {
        let ca = dir.join("token").join("ca.crt");
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    server: \
             https://127.0.0.1:{}\n    certificate-authority: {}\ncontexts:\n- name: test\n  context: {{cluster: test, user: \
             test}}\nusers:\n- name: test\n  user: {{token: a-token}}\n",
            self.port,
            ca.display()
        )
    }

    /// Writes the trust bundles as kubelet mounts them, by a `..data` link.
    pub fn trust_directory(&self, dir: &TempDir) -> PathBuf {
        let path = dir.dir("trust");
        self.publish_trust(&path, &BTreeMap::new());
        path
    }

    /// Publishes the trust bundles anew, those of `instead` in the place of the authorities' own, with one rename.
    pub fn publish_trust(&self, path: &Path, instead: &BTreeMap<Domain, String>) {
        let stamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
        let data = format!("..{stamp}");
        fs::create_dir(path.join(&data)).expect("mkdir");
        for domain in Domain::ALL {
            let own = || self.state().authorities[&domain].bundle().to_pem();
            let pem = instead.get(&domain).cloned().unwrap_or_else(own);
            fs::write(path.join(&data).join(domain.trust_key()), pem).expect("write");
            let link = path.join(domain.trust_key());
            if link.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(Path::new("..data").join(domain.trust_key()), link).expect("symlink");
            }
        }
        std::os::unix::fs::symlink(&data, path.join("..data_tmp")).expect("symlink");
        fs::rename(path.join("..data_tmp"), path.join("..data")).expect("rename");
    }

    /// Signs a CSR that is kept elsewhere: the patches of its approval and of its status.
    pub fn sign(&self, mut object: CertificateSigningRequest) -> (serde_json::Value, serde_json::Value) {
        judge(&self.state(), &mut object);
        let status = object.status.expect("signed");
        (
            serde_json::json!({"status": {"conditions": status.conditions}}),
            serde_json::json!({"status": {"certificate": status.certificate}}),
        )
    }

    /// How many CSRs were made so far.
    pub fn made(&self) -> usize {
        self.created.load(Ordering::Relaxed)
    }
}

impl Drop for CsrServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A certificate authority of ten years.
pub fn authority(name: &str) -> Authority {
    Authority::generate(name, KeyAlgorithm::EcdsaP256, Duration::from_secs(10 * 365 * 86_400), SystemTime::now())
        .expect("an authority")
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    state: Arc<Mutex<State>>,
    created: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        let (created, calls) = (Arc::clone(&created), Arc::clone(&calls));
        if state.lock().expect("no panic under the lock").away {
            calls.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (state, created, calls) = (Arc::clone(&state), Arc::clone(&created), Arc::clone(&calls));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                    calls.fetch_add(1, Ordering::Relaxed);
                    let mut state = state.lock().expect("no panic under the lock");
                    if state.away {
                        return Err(io::Error::other("away"));
                    }
                    Ok::<_, io::Error>(answer(&mut state, &created, &head.method, head.uri.path(), &body))
                }
            });
            // A client that is killed breaks its connection off.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(state: &mut State, created: &AtomicUsize, method: &Method, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
    if let Some((code, body, headers)) = &state.outage {
        let mut response = Response::builder().status(*code);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        return response.body(Full::new(body.clone().into())).expect("a response");
    }
    // No right to them, as without the component of the manifests.
    if path.starts_with("/apis/coordination.k8s.io/") {
        return status(403, "forbidden");
    }
    let name = path.strip_prefix(PATH).map(|rest| rest.trim_start_matches('/').to_owned());
    match (method.as_str(), name.as_deref()) {
        ("POST", Some("")) => {
            let mut object: CertificateSigningRequest = serde_json::from_slice(body).expect("a CSR");
            let name = object.metadata.name.clone().expect("a name");
            if state.requests.contains_key(&name) {
                return status(409, "already exists");
            }
            let number = created.fetch_add(1, Ordering::Relaxed);
            object.metadata.uid = Some(format!("uid-{number}"));
            state.requests.insert(name, object.clone());
            json(201, &object)
        }
        ("GET", Some(name)) => {
            let Some(mut object) = state.requests.get(name).cloned() else { return status(404, "not found") };
            if object.status.is_none() {
                judge(state, &mut object);
                state.requests.insert(name.to_owned(), object.clone());
            }
            json(200, &object)
        }
        _ => status(404, "not found"),
    }
}

fn judge(state: &State, object: &mut CertificateSigningRequest) {
    if state.idle {
        return;
    }
    let condition = |type_: &str, message: &str| CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some("Test".to_owned()),
        message: Some(message.to_owned()),
        ..CertificateSigningRequestCondition::default()
    };
    if let Some(message) = &state.deny {
        object.status = Some(CertificateSigningRequestStatus {
            certificate: None,
            conditions: Some(vec![condition("Denied", message)]),
        });
        return;
    }
    let request = Pkcs10::parse(&object.spec.request.0).expect("a request");
    let name = object.metadata.name.clone().unwrap_or_default();
    let role = Role::ALL.into_iter().find(|r| name.contains(&format!("-{r}-"))).expect("a role in the name");
    let leaf = Leaf {
        role,
        organizations: vec![role.organization()],
        common_name: &request.common_name,
        sans: &request.sans,
        public_key: &request.public_key,
        lifetime: state.lifetime,
    };
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).expect("randomness");
    let chain = issue(&state.authorities[&role.domain()], &leaf, SystemTime::now(), serial).expect("issue");
    object.status = Some(CertificateSigningRequestStatus {
        certificate: Some(ByteString(chain.to_pem().into_bytes())),
        conditions: Some(vec![condition("Approved", "")]),
    });
}

fn json(code: u16, object: &CertificateSigningRequest) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(object).expect("JSON");
    Response::builder().status(code).body(Full::new(body.into())).expect("a response")
}

fn status(code: u16, message: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code});
    Response::builder()
        .status(StatusCode::from_u16(code).expect("a status"))
        .body(Full::new(body.to_string().into()))
        .expect("a response")
}
