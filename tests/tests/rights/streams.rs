//! The subresources by which a user reaches into a pod through the API server, each as a user who has that right alone.
//! kubelet and the pod's ports are stand-ins that note what reaches them.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::client::Body;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tests::{
    apiserver::NODE,
    eventually,
    installation::own_address,
    pki::{Ca, LeafOptions},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::scene::{CSRS, Call, LIMIT, RBAC, Scene, impersonating, request, send};

/// How long a call for a stream may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A TLS server that notes the first line of each request and answers with 418. Dropped, it ends.
struct Noted {
    port: u16,
    lines: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Noted {
    /// At `address`; as etcd with a CA, it takes no connection without a certificate of `clients`.
    async fn start(address: IpAddr, clients: Option<&Ca>) -> Self {
        tests::install_crypto();
        let ca = Ca::new("a server");
        let leaf = ca.leaf(&LeafOptions::default());
        let builder = rustls::ServerConfig::builder();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(der(&clients.pem)).expect("a CA");
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(
            vec![der(&leaf.cert)],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("a key"),
        );
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a TLS configuration")));
        let listener = TcpListener::bind((address, 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&lines);
        let task = tokio::spawn(async move {
            // Each by itself: the API server opens connections that it does not use.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, noted) = (acceptor.clone(), Arc::clone(&noted));
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = vec![0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    let text = String::from_utf8_lossy(&head[..read]);
                    let line = text.lines().next().unwrap_or_default().to_owned();
                    noted.lock().expect("no panic under the lock").push(line);
                    let answer = "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { port, lines, task }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic under the lock").clone()
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// The threat model states their reach: the containers and the ports of the pod that is named, and nothing of another
/// one. The right makes no request of the pod, and changes nothing of it.
pub async fn reach_the_pod_that_they_name(scene: &Scene) {
    let Some(address) = own_address() else {
        tests::tier::skip_special(
            "no address but loopback, to which the API server's proxy does not connect",
            "add one",
        );
        return;
    };
    let pod = json!({
        "metadata": {"name": "injected", "labels": {"etcd-tls.dev/injected": "true"},
            "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    });
    let uid = scene.api.pod("prod", pod).await.expect("a pod").metadata.uid.expect("a uid");
    let kubelet = Noted::start(address, None).await;
    let etcd_ca = Ca::new("etcd");
    let (open, etcd) = (Noted::start(address, None).await, Noted::start(address, Some(&etcd_ca)).await);
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
    }});
    scene.admin(Call::merge(format!("/api/v1/nodes/{NODE}/status"), status)).await;
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    scene.admin(Call::merge("/api/v1/namespaces/prod/pods/injected/status", status)).await;
    let before = scene.admin(Call::get("/api/v1/namespaces/prod/pods/injected")).await["metadata"].clone();

    for (subresource, query, reached) in [
        ("exec", "?container=c&command=id&stdout=1", "POST /exec/prod/injected/c?"),
        ("attach", "?container=c&stdout=1", "POST /attach/prod/injected/c?"),
        ("portforward", "", "POST /portForward/prod/injected"),
    ] {
        let user = user(scene, subresource, &["injected".to_owned()]).await;
        let path = |name: &str| format!("/api/v1/namespaces/prod/pods/{name}/{subresource}{query}");
        eventually(subresource, LIMIT, || async {
            let status = upgrade(&user, &path("injected")).await;
            let there = kubelet.lines().iter().any(|line| line.starts_with(reached));
            if there { Ok(()) } else { Err(format!("{status}: {:?}", kubelet.lines())) }
        })
        .await;
        assert_eq!(upgrade(&user, &path("etcd-0")).await, 403, "{subresource} of another pod");
        reaches_no_more(&user, &uid, subresource).await;
    }
    let lines = kubelet.lines();
    assert!(lines.iter().all(|line| line.contains("/prod/injected")), "{lines:?}");

    // Its ports: one that asks for no certificate answers; etcd's does ask, and the API server has none of its CA.
    let ports = [&open, &etcd].map(|server| format!("https:injected:{}", server.port));
    let user = user(scene, "proxy", &ports).await;
    let get = |name: &str, port: u16| Call::get(format!("/api/v1/namespaces/prod/pods/https:{name}:{port}/proxy/keys"));
    eventually("a port by the proxy", LIMIT, || async {
        let answer = send(&user, get("injected", open.port)).await;
        if open.lines().iter().any(|line| line.starts_with("GET /keys ")) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    // The API server may find the connection closed before it reads the alert.
    eventually("the alert of a port that asks for a certificate", LIMIT, || async {
        let refused =
            send(&user, get("injected", etcd.port)).await.expect_err("a connection to etcd without a certificate");
        if refused.contains("tls: ") { Ok(()) } else { Err(refused) }
    })
    .await;
    assert!(etcd.lines().is_empty(), "{:?}", etcd.lines());
    let other = send(&user, get("etcd-0", open.port)).await.expect_err("the proxy of another pod");
    assert!(other.starts_with("403 "), "{other}");
    reaches_no_more(&user, &uid, "proxy").await;
    let after = scene.admin(Call::get("/api/v1/namespaces/prod/pods/injected")).await["metadata"].clone();
    for field in ["labels", "annotations"] {
        assert_eq!(after[field], before[field], "{field}");
    }
}

/// A user with the right to one subresource of what has these names.
async fn user(scene: &Scene, subresource: &str, names: &[String]) -> kube::Client {
    let name = format!("by-{subresource}");
    let rule = json!({
        "apiGroups": [""], "resources": [format!("pods/{subresource}")], "verbs": ["create", "get"],
        "resourceNames": names,
    });
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    scene.admin(Call::post(format!("{RBAC}/namespaces/prod/roles"), role)).await;
    let binding = json!({
        "metadata": {"name": name}, "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
    });
    scene.admin(Call::post(format!("{RBAC}/namespaces/prod/rolebindings"), binding)).await;
    impersonating(&scene.api, &name, &["system:authenticated"]).await
}

/// The status of a call that asks for a stream.
async fn upgrade(user: &kube::Client, path: &str) -> u16 {
    let request = hyper::Request::post(path).header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
    let request = request.header("x-stream-protocol-version", "v4.channel.k8s.io").body(Body::empty());
    let answer = timeout(ANSWER, user.send(request.expect("a request"))).await;
    answer.ok().and_then(Result::ok).map_or(0, |response| response.status().as_u16())
}

/// No request of the pod, no change of it, no token of its account.
async fn reaches_no_more(user: &kube::Client, uid: &str, right: &str) {
    let asked = request(&format!("etcd-tls-{uid}-client-0"), "client.etcd-tls.dev/prod.etcd");
    let label = json!({"metadata": {"labels": {"etcd-tls": "dynamic"}}});
    let token: Value = json!({"spec": {"audiences": [], "expirationSeconds": 600}});
    for call in [
        Call::post(CSRS, asked),
        Call::merge("/api/v1/namespaces/prod/pods/injected", label),
        Call::post("/api/v1/namespaces/prod/serviceaccounts/default/token", token),
        Call::get("/api/v1/namespaces/etcd-tls-system/secrets"),
    ] {
        let path = call.path.clone();
        let refused = send(user, call).await.expect_err("refused");
        assert!(refused.starts_with("403 "), "{right}: {path}: {refused}");
    }
}
