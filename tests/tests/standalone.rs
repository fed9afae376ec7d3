//! The standalone signer and the sidecar on hosts, by their real binaries: a real etcd bootstrapped from a token, kubectl,
//! an old agent's wire, and everything that is refused.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_sidecar::{
    certificate::Chain,
    csr::PrivateKey,
    role::Role,
    settings::{KeyAlgorithm, Sans},
};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tests::{
    etcd::{EtcdCluster, MemberTls},
    etcd_client::served_serial,
    eventually,
    pki::{Ca, LeafOptions, client_config},
    ports,
    process::{Process, binary, run},
    stack::{Options as StackOptions, Stack},
    temp::TempDir,
    tier,
};

const LIMIT: Duration = Duration::from_secs(120);
const BOOTSTRAP: &str = "3f1c7be2a94d5068b7e1c2d3f4a5968700112233445566778899aabbccddeeff";
const ADMIN: &str = "9a8b7c6d5e4f30211203f4e5d6c7b8a900ffeeddccbbaa998877665544332211";
const V1: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const V1BETA1: &str = "/apis/certificates.k8s.io/v1beta1/certificatesigningrequests";

/// A standalone signer, its CA and all that it is started with.
struct Signer {
    dir: TempDir,
    serving: Ca,
    ca: Ca,
    port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Signer {
    fn new(arguments: &[&str]) -> Self {
        let dir = TempDir::new("standalone");
        let (serving, ca) = (Ca::new("serving CA"), Ca::new("etcd CA"));
        serving.write_role(&dir.join("serving"), &LeafOptions::default());
        dir.write("ca.crt", &ca.pem);
        dir.write("ca.key", &ca.key_pem);
        dir.write(
            "tokens",
            format!("{BOOTSTRAP},bootstrap,1,\"system:bootstrappers:etcd\"\n{ADMIN},admin,2,system:masters\n"),
        );
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self { dir, serving, ca, port: ports::loopback(), arguments, process: None }
    }

    fn command(&self, csrdir: &Path, port: u16) -> Command {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let path = |name: &str| self.dir.join(name);
        command.arg("standalone");
        for (flag, value) in [
            ("--cacrt", path("ca.crt")),
            ("--cakey", path("ca.key")),
            ("--servcrt", path("serving/tls.crt")),
            ("--servkey", path("serving/tls.key")),
            ("--token-auth-file", path("tokens")),
            ("--client-ca-file", path("ca.crt")),
            ("--csrdir", csrdir.to_owned()),
        ] {
            command.arg(flag).arg(value);
        }
        command.arg("--address").arg(format!("127.0.0.1:{port}")).args(&self.arguments);
        command
    }

    async fn start(&mut self) {
        let mut command = self.command(&self.dir.join("csrs"), self.port);
        self.process = Some(Process::spawn("signer", &mut command, self.dir.path()));
        eventually("the signer is ready", LIMIT, || async {
            match self.try_ask("GET", "/readyz", &[], b"", None) {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    async fn started(arguments: &[&str]) -> Self {
        let mut signer = Self::new(arguments);
        signer.start().await;
        signer
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("started")
    }

    /// One call on a connection of its own.
    fn try_ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        leaf: Option<(&str, &str)>,
    ) -> std::io::Result<(u16, String)> {
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let connection = rustls::ClientConnection::new(client_config(&self.serving.pem, leaf), name);
        let tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_read_timeout(Some(LIMIT))?;
        let mut stream = rustls::StreamOwned::new(connection.map_err(std::io::Error::other)?, tcp);
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (key, value) in headers {
            head += &format!("{key}: {value}\r\n");
        }
        if !headers.iter().any(|(key, _)| *key == "Content-Length" || *key == "Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        // A server that has refused already may no longer read.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        // Some servers close without a TLS goodbye.
        let read = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let code = answer.get(9..12).and_then(|c| c.parse().ok());
        let Some(code) = code else { return Err(read.err().unwrap_or_else(|| std::io::Error::other("no answer"))) };
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((code, body.to_owned()))
    }

    fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (code, text) = self.try_ask(method, path, &headers, &body, None).expect("an answer");
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.dir.write(
            name,
            json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{ "name": "c", "cluster": {
                    "server": format!("https://127.0.0.1:{}", self.port),
                    "certificate-authority-data": STANDARD.encode(&self.serving.pem),
                } }],
                "users": [{ "name": "u", "user": { "token": token } }],
                "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            })
            .to_string(),
        )
    }
}

fn sans(dns: &[&str], ips: &[&str]) -> Sans {
    Sans {
        dns: dns.iter().map(|d| (*d).to_owned()).collect(),
        ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
    }
}

/// A request object for `role` of `host`.
fn request(name: &str, role: Role, host: &str, sans: &Sans) -> (Value, PrivateKey) {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let cn = format!("{}{host}", role.common_name_prefix());
    let pem = key.request(role.organization(), &cn, sans).expect("a request");
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": { "name": name },
        "spec": {
            "request": STANDARD.encode(pem),
            "signerName": format!("{}.etcd-tls.dev/kube-system.etcd", role.domain()),
            "usages": etcd_tls_sidecar::identity::usages(role),
        },
    });
    (object, key)
}

fn assert_status(answer: &(u16, Value), code: u16, word: &str) {
    let (got, body) = answer;
    assert_eq!(
        (*got, body["kind"].as_str(), body["code"].as_u64()),
        (code, Some("Status"), Some(code.into())),
        "{body}"
    );
    assert!(body["message"].as_str().unwrap_or_default().contains(word), "{word}: {body}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

/// Starts the sidecar of one host.
fn sidecar(signer: &Signer, name: &str, bootstrap: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["run", "--roles=peer,server", "--name", name, "--admin-port"]).arg(ports::loopback().to_string());
    command.arg("--kubeconfig").arg(signer.dir.join(format!("{name}.kubeconfig")));
    command.arg("--bootstrap-kubeconfig").arg(bootstrap);
    command.arg("--dir").arg(signer.dir.join(name)).args(arguments);
    Process::spawn(&format!("sidecar-{name}"), &mut command, signer.dir.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_bootstrapped_from_a_token_and_renewed_while_the_signer_is_killed() {
    let Some(etcd) = tier::etcd() else { return };
    let mut signer = Signer::started(&[
        "--peercertdur=60s",
        "--servercertdur=60s",
        "--approve-group=system:bootstrappers:etcd=peer:127.0.0.0/8",
        "--approve-group=system:bootstrappers:etcd=server:127.0.0.0/8",
        "--approve-group=system:etcd-peers=peer:127.0.0.0/8",
        "--approve-group=system:etcd-peers=server:127.0.0.0/8",
    ])
    .await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let mut cluster = EtcdCluster::new(&etcd, 3).with_tls(|member| MemberTls {
        server: Some(signer.dir.join(&member.name).join("server")),
        peer: Some(signer.dir.join(&member.name).join("peer")),
    });
    let mut sidecars = Vec::new();
    for member in &cluster.members {
        sidecars.push(sidecar(
            &signer,
            &member.name,
            &bootstrap,
            &[
                format!("--ipaddrs={},127.0.0.1", member.address),
                format!("--client-url={}", member.client_url()),
                format!("--peer-url={}", member.peer_url()),
                "--reload=none".to_owned(),
            ],
        ));
    }
    for member in &cluster.members {
        let dir = signer.dir.join(&member.name);
        eventually("certificates and a kubeconfig around them", LIMIT, || async {
            let kubeconfig = signer.dir.join(format!("{}.kubeconfig", member.name));
            if dir.join("server/tls.crt").exists() && kubeconfig.exists() { Ok(()) } else { Err("not yet") }
        })
        .await;
        let kubeconfig = signer.dir.join(format!("{}.kubeconfig", member.name));
        assert_eq!(mode(&kubeconfig), 0o600);
        let text = fs::read_to_string(&kubeconfig).expect("read");
        assert!(text.contains("client-certificate") && !text.contains(BOOTSTRAP), "{text}");
    }
    cluster.start().await;
    let serials = || async {
        let mut all = Vec::new();
        for member in &cluster.members {
            for (url, role) in [(member.client_url(), "server"), (member.peer_url(), "peer")] {
                all.push(
                    served_serial(&url, &signer.dir.join(&member.name).join(role)).await.map_err(|e| e.to_string())?,
                );
            }
        }
        Ok::<_, String>(all)
    };
    let first = eventually("every port answers", LIMIT, &serials).await;

    // Without its token the bootstrap user can get nothing more: what renews are the certificates themselves.
    signer.dir.write("tokens", format!("{ADMIN},admin,2,system:masters\n"));
    signer.process.as_mut().expect("started").kill();
    let mut command = signer.command(&signer.dir.join("csrs"), signer.port);
    let restarted = Process::spawn("signer", &mut command, signer.dir.path());
    // The first time because etcd has loaded the bundle, which the next request states; then because the time has come.
    let mut before = first;
    for round in ["once", "twice"] {
        before = eventually(&format!("every certificate renewed and served {round}"), LIMIT, || async {
            let now = serials().await?;
            let old = now.iter().zip(&before).filter(|(now, before)| now == before).count();
            if old == 0 { Ok(now) } else { Err(format!("{old} are those of before")) }
        })
        .await;
    }
    drop(restarted);
    for member in &mut cluster.members {
        assert!(member.process().running(), "no member was restarted or died");
    }
    for member in &cluster.members {
        assert!(member.is_healthy().await);
    }
    for sidecar in &mut sidecars {
        assert!(sidecar.running());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_leaves_files_under_the_old_names_at_once() {
    let signer = Signer::started(&["--approve-group=system:bootstrappers:etcd=peer:10.8.89.9,test.example.com"]).await;
    let kubeconfig = signer.kubeconfig("kubeconfig", BOOTSTRAP);
    let assets = signer.dir.join("assets");
    let cn = "system:etcd-peer:etcd1";
    let ask = |dns: &str| {
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(["request", &format!("--dnsnames={dns}"), "--ipaddrs=10.8.89.9", "--orgname=system:etcd-peers"]);
        command.args([&format!("--commonname={cn}"), "--timeout=5s"]);
        command.arg("--assetsdir").arg(&assets).arg("--kubeconfig").arg(&kubeconfig);
        command
    };
    run(&mut ask("test.example.com"));
    let chain = Chain::parse(&fs::read(assets.join(format!("{cn}.crt"))).expect("the old name")).expect("a chain");
    assert_eq!((chain.common_name.as_str(), &chain.sans), (cn, &sans(&["test.example.com"], &["10.8.89.9"])));
    let key = fs::read_to_string(assets.join(format!("{cn}.key"))).expect("the old name");
    assert_eq!(PrivateKey::from_pem(&key).expect("a key").public_key(), chain.public_key);
    assert_eq!(mode(&assets.join(format!("{cn}.key"))) & 0o007, 0);
    // What needs a person waits, and says so in time.
    let output = ask("other.example.com").output().expect("run");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("neither approved and signed nor denied yet"), "{text}");
    let again = Chain::parse(&fs::read(assets.join(format!("{cn}.crt"))).expect("still there")).expect("a chain");
    assert_eq!(again.serial, chain.serial, "the good one stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_describes_approves_and_denies() {
    let Some(assets) = tier::kubernetes() else { return };
    let mut signer = Signer::started(&[]).await;
    let (admin, plain) = (signer.kubeconfig("admin", ADMIN), signer.kubeconfig("plain", BOOTSTRAP));
    let home = signer.dir.dir("home");
    let kubectl = |kubeconfig: &Path, arguments: &[&str]| {
        let mut command = Command::new(assets.join("kubectl"));
        command.env("HOME", &home).arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command
    };
    for name in ["a", "b"] {
        let (object, _) = request(name, Role::Peer, name, &sans(&["a.example.com"], &["2001:db8::1"]));
        let file = signer.dir.write(format!("{name}.json"), object.to_string());
        run(kubectl(&plain, &["create", "-f"]).arg(file));
    }
    let listed = run(&mut kubectl(&admin, &["get", "csr"]));
    assert!(listed.contains("REQUESTOR") && listed.matches("Pending").count() == 2, "{listed}");
    let refused = kubectl(&plain, &["certificate", "approve", "a"]).output().expect("run");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Forbidden"));
    run(&mut kubectl(&admin, &["certificate", "approve", "a"]));
    run(&mut kubectl(&admin, &["certificate", "deny", "b"]));
    // The signer is killed and comes back with all of it.
    signer.process().kill();
    signer.start().await;
    let described = run(&mut kubectl(&admin, &["describe", "csr", "a"]));
    assert!(described.contains("Approved") && described.contains("system:etcd-peer:a"), "{described}");
    let listed = run(&mut kubectl(&plain, &["get", "csr"]));
    assert!(listed.contains("Approved,Issued") && listed.contains("Denied"), "{listed}");
    let certificate = run(&mut kubectl(&plain, &["get", "csr", "a", "-o", "jsonpath={.status.certificate}"]));
    let chain = Chain::parse(&STANDARD.decode(certificate).expect("base64")).expect("a chain");
    assert_eq!(chain.sans, sans(&["a.example.com"], &["2001:db8::1"]));
    run(&mut kubectl(&admin, &["delete", "csr", "a", "b", "--timeout=20s"]));
    assert!(run(kubectl(&admin, &["get", "csr"]).arg("--no-headers")).is_empty());
}

/// What the etcd-certificate-generator's agent of 2018 sends: client-go's JSON, no credential, a CN for a name, no usages, no
/// signer name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_agents_wire_is_served_unchanged() {
    let signer = Signer::started(&[
        "--insecure-allow-anonymous",
        "--approve-group=system:unauthenticated=peer:10.8.89.9,etcd1.example.com",
    ])
    .await;
    let headers = [
        ("User-Agent", "kube-client-agent/v0.0.0 (linux/amd64) kubernetes/$Format"),
        ("Accept", "application/json, */*"),
        ("Content-Type", "application/json"),
        ("Accept-Encoding", "gzip"),
    ];
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let ask = |name: &str, sans: &Sans| {
        let pem = key.request("system:etcd-peers", name, sans).expect("a request");
        let body = format!(
            "{{\"kind\":\"CertificateSigningRequest\",\"apiVersion\":\"certificates.k8s.io/v1beta1\",\"metadata\":{{\"name\":\"{name}\",\
             \"creationTimestamp\":null}},\"spec\":{{\"request\":\"{}\"}},\"status\":{{}}}}\n",
            STANDARD.encode(pem)
        );
        signer.try_ask("POST", V1BETA1, &headers, body.as_bytes(), None).expect("an answer")
    };
    let name = "system:etcd-peer:etcd1";
    let (code, body) = ask(name, &sans(&["etcd1.example.com"], &["10.8.89.9"]));
    assert_eq!(code, 201, "{body}");
    let (code, body) =
        signer.try_ask("GET", &format!("{V1BETA1}/{name}"), &headers[..2], b"", None).expect("an answer");
    assert_eq!(code, 200, "{body}");
    let object: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&json!("certificates.k8s.io/v1beta1"), &json!("CertificateSigningRequest"))
    );
    assert_eq!(object["status"]["conditions"][0]["type"], "Approved");
    let certificate = STANDARD.decode(object["status"]["certificate"].as_str().expect("issued")).expect("base64");
    assert_eq!(Chain::parse(&certificate).expect("a chain").common_name, name);
    // What nobody lets it have waits: the agent polls on.
    let (code, body) = ask("system:etcd-peer:etcd2", &sans(&["etcd2.example.com"], &[]));
    assert!(code == 201 && !body.contains("Approved"), "{body}");
    // An agent that prefers protobuf takes JSON; one that takes nothing else is told so.
    for (accept, code) in
        [("application/vnd.kubernetes.protobuf, */*", 200), ("application/vnd.kubernetes.protobuf", 406)]
    {
        let answer = signer.try_ask("GET", &format!("{V1BETA1}/{name}"), &[("Accept", accept)], b"", None);
        assert_eq!(answer.expect("an answer").0, code, "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_refused_in_kubernetes_own_form() {
    let mut signer = Signer::started(&[
        "--max-requests=30",
        "--max-pending-per-user=20",
        "--rate-limit=0",
        "--cluster=kube-system/etcd",
        "--approve-group=system:etcd-peers=peer:10.0.0.0/8",
    ])
    .await;
    let one = sans(&[], &["10.0.0.1"]);
    let (good, _) = request("good", Role::Peer, "m1", &one);
    assert_status(&signer.ask("POST", V1, "unknown-token-unknown-token-unknown", &good), 401, "Unauthorized");
    let (code, body) = signer.try_ask("GET", V1, &[], b"", None).expect("an answer");
    assert!(code == 401 && body.contains("Unauthorized"), "nobody is anonymous: {body}");
    // A certificate of another CA ends the handshake.
    let stranger = Ca::new("etcd CA").leaf(&LeafOptions::default());
    assert!(signer.try_ask("GET", V1, &[], b"", Some((&stranger.cert, &stranger.key))).is_err());

    for (name, word) in [("../../etc/passwd", "metadata.name"), ("a/b", "metadata.name"), ("..", "metadata.name")] {
        let (object, _) = request(name, Role::Peer, "m1", &one);
        assert_status(&signer.ask("POST", V1, BOOTSTRAP, &object), 422, word);
    }
    assert_status(&signer.ask("GET", &format!("{V1}/..%2f..%2ftokens"), ADMIN, &Value::Null), 404, "not found");

    // A host by its certificate: its own name is approved, another's is forbidden.
    let m1 = signer.ca.leaf(&LeafOptions {
        organizations: vec!["system:etcd-peers".to_owned()],
        common_name: "system:etcd-peer:m1".to_owned(),
        ..LeafOptions::default()
    });
    let as_m1 = |object: &Value| {
        let headers = [("Content-Type", "application/json")];
        let leaf = Some((m1.cert.as_str(), m1.key.as_str()));
        let (code, body) =
            signer.try_ask("POST", V1, &headers, object.to_string().as_bytes(), leaf).expect("an answer");
        (code, serde_json::from_str(&body).expect("JSON"))
    };
    let (object, _) = request("m1", Role::Peer, "m1", &one);
    let (code, body): (u16, Value) = as_m1(&object);
    assert!(code == 201 && body["status"]["certificate"].is_string(), "{body}");
    assert_eq!(body["spec"]["username"], "system:etcd-peer:m1");
    let (object, _) = request("m2", Role::Peer, "m2", &one);
    assert_status(&as_m1(&object), 403, "of another");
    // Its name is taken now, whoever asks with the bootstrap token: that waits for a person.
    let (object, _) = request("m1-again", Role::Peer, "m1", &one);
    let (code, body) = signer.ask("POST", V1, BOOTSTRAP, &object);
    assert!(code == 201 && body["status"]["certificate"].is_null(), "{body}");

    // No profile has these subjects, and no certificate these extensions and usages.
    for (pointer, value, word) in [
        ("/spec/signerName", json!("kubernetes.io/kubelet-serving"), "spec.signerName"),
        ("/spec/signerName", json!("client.etcd-tls.dev/kube-system.etcd"), "signed by"),
        ("/spec/signerName", json!("peer.etcd-tls.dev/kube-system.other"), "another cluster"),
        ("/spec/usages", json!(["cert sign"]), "spec.usages"),
        ("/spec/usages", json!([]), "spec.usages"),
        ("/spec/expirationSeconds", json!(599), "600"),
        ("/spec/request", json!("eA=="), "spec.request"),
        ("/spec/request", json!(STANDARD.encode("x".repeat(5000))), "4096"),
    ] {
        let (mut object, _) = request("bad", Role::Peer, "m1", &one);
        object["spec"]["expirationSeconds"] = json!(3600);
        *object.pointer_mut(pointer).expect("there") = value;
        assert_status(&signer.ask("POST", V1, BOOTSTRAP, &object), 422, word);
    }
    let pem = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key").request("system:masters", "admin", &one);
    let (mut object, _) = request("bad", Role::Peer, "m1", &one);
    object["spec"]["request"] = json!(STANDARD.encode(pem.expect("a request")));
    assert_status(&signer.ask("POST", V1, BOOTSTRAP, &object), 422, "no profile");

    // 100 MiB, said or not, are not read.
    let token = format!("Bearer {BOOTSTRAP}");
    let huge =
        [("Authorization", token.as_str()), ("Content-Type", "application/json"), ("Content-Length", "104857600")];
    let (code, body) = signer.try_ask("POST", V1, &huge, &[b' '; 1000], None).expect("an answer");
    assert!(code == 413 && body.contains("RequestEntityTooLarge"), "{code} {body}");
    let chunked = [("Authorization", token.as_str()), ("Transfer-Encoding", "chunked")];
    let endless = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat().repeat(4);
    match signer.try_ask("POST", V1, &chunked, &endless, None) {
        Ok((code, body)) => assert!(code == 413 && body.contains("RequestEntityTooLarge"), "{code} {body}"),
        // Cut off while it was still sending.
        Err(e) => {
            assert!(matches!(e.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{e}")
        }
    }

    // A user's share, then everybody's.
    let mut last = (0, Value::Null);
    for i in 0..40 {
        let (object, _) = request(&format!("p{i}"), Role::Peer, &format!("p{i}"), &one);
        last = signer.ask("POST", V1, BOOTSTRAP, &object);
        if last.0 != 201 {
            break;
        }
    }
    assert_status(&last, 429, "20 requests");
    for i in 0..40 {
        let (object, _) = request(&format!("q{i}"), Role::Peer, &format!("q{i}"), &one);
        last = signer.ask("POST", V1, ADMIN, &object);
        if last.0 != 201 {
            break;
        }
    }
    assert_status(&last, 429, "30 requests");

    // Two processes on one directory: the second one says so and ends; nothing is lost.
    let mut second =
        Process::spawn("second", &mut signer.command(&signer.dir.join("csrs"), ports::loopback()), signer.dir.path());
    assert!(!second.wait(LIMIT).await.success());
    assert!(second.log().contains("in use by another process"), "{}", second.log());
    let count = |signer: &Signer| signer.ask("GET", V1, ADMIN, &Value::Null).1["items"].as_array().map(Vec::len);
    assert_eq!(count(&signer), Some(30));
    signer.process().kill();
    signer.start().await;
    assert_eq!(count(&signer), Some(30), "a restart forgets nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_reloaded_and_a_weak_one_starts_nothing() {
    let mut signer = Signer::started(&[]).await;
    let new = "0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdef";
    assert_status(&signer.ask("GET", V1, new, &Value::Null), 401, "Unauthorized");
    signer.dir.write("tokens", format!("{new},new,3,system:masters\n"));
    eventually("the new token", LIMIT, || async {
        let (code, body) = signer.ask("GET", V1, new, &Value::Null);
        if code == 200 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    assert_status(&signer.ask("GET", V1, ADMIN, &Value::Null), 401, "Unauthorized");
    // A file that cannot be taken leaves the last good one in force.
    signer.dir.write("tokens", "weak,weak,4,system:masters\n");
    signer.process().logged("the last good one stays in force", LIMIT).await;
    assert_eq!(signer.ask("GET", V1, new, &Value::Null).0, 200);
    assert!(!signer.process().log().contains(new), "no token is ever logged");
    signer.process().kill();
    let mut command = signer.command(&signer.dir.join("csrs"), signer.port);
    let mut refused = Process::spawn("weak", &mut command, signer.dir.path());
    assert!(!refused.wait(LIMIT).await.success());
    assert!(refused.log().contains("128 random bits"), "{}", refused.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_each_change_once() {
    let signer = Arc::new(Signer::started(&[]).await);
    let (_, list) = signer.ask("GET", V1, ADMIN, &Value::Null);
    let revision = list["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    let watcher = {
        let (signer, revision) = (Arc::clone(&signer), revision.clone());
        tokio::task::spawn_blocking(move || {
            let token = format!("Bearer {ADMIN}");
            let path =
                format!("{V1}?watch=true&resourceVersion={revision}&timeoutSeconds=6&fieldSelector=metadata.name%3Da");
            signer.try_ask("GET", &path, &[("Authorization", &token)], b"", None).expect("an answer")
        })
    };
    for name in ["a", "b"] {
        let (object, _) = request(name, Role::Peer, name, &sans(&[], &["10.0.0.1"]));
        assert_eq!(signer.ask("POST", V1, BOOTSTRAP, &object).0, 201);
    }
    let approval = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
    let token = format!("Bearer {ADMIN}");
    let headers = [("Authorization", token.as_str()), ("Content-Type", "application/merge-patch+json")];
    let path = format!("{V1}/a/approval");
    let patched = signer.try_ask("PATCH", &path, &headers, approval.to_string().as_bytes(), None).expect("an answer");
    assert_eq!(patched.0, 200, "{}", patched.1);
    assert_eq!(signer.ask("DELETE", &format!("{V1}/a"), ADMIN, &Value::Null).0, 200);
    let (code, body) = watcher.await.expect("no panic");
    assert_eq!(code, 200);
    let kinds: Vec<Value> = body
        .lines()
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"))
        .map(|e| e["type"].clone())
        .collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"], "{body}");
    // A revision that is not known any more is a 410, for the client to list again.
    let gone = signer.ask("GET", &format!("{V1}?watch=true&resourceVersion=1"), ADMIN, &Value::Null).1;
    assert!(gone.to_string().contains("410") && gone.to_string().contains("Expired"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_members_are_issued_for_without_a_signer() {
    let dir = TempDir::new("issue");
    let issue = |arguments: &[&str]| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.args(["issue", "--cluster=etcd", "--namespace=prod", "--ca-dir"]).arg(dir.join("ca")).args(arguments);
        command
    };
    let yaml = run(&mut issue(&["--member=etcd-0", "--client=backup"]));
    let secrets: Vec<Value> = serde_saphyr::from_multiple(&yaml).expect("YAML");
    let names: Vec<_> = secrets.iter().map(|s| s["metadata"]["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["etcd-0-peer-tls", "etcd-0-server-tls", "etcd-backup-client-tls"]);
    assert!(secrets.iter().all(|s| s["type"] == "kubernetes.io/tls" && s["data"]["ca.crt"].is_string()));
    assert_eq!((mode(&dir.join("ca/peer.key")), mode(&dir.join("ca/client.key"))), (0o600, 0o600));
    // The CA that was made is used from now on, and nothing is written over.
    let out = dir.join("out");
    run(issue(&["--member=etcd-1=10.0.0.1,2001:db8::1", "--out"]).arg(&out));
    let chain = Chain::parse(&fs::read(out.join("etcd-1/server/tls.crt")).expect("a file")).expect("a chain");
    let bundle = etcd_tls_sidecar::certificate::Bundle::parse(&fs::read(dir.join("ca/client.crt")).expect("a file"));
    let bundle = bundle.expect("a bundle");
    let now = std::time::SystemTime::now();
    chain.verify(Role::Server, &bundle, &chain.public_key, &chain.sans, now).expect("good");
    let began = Instant::now();
    let again = issue(&["--member=etcd-1", "--out"]).arg(&out).output().expect("run");
    assert!(!again.status.success() && began.elapsed() < LIMIT);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not written over"));
    // Half a CA is never made whole by a new one.
    fs::remove_file(dir.join("ca/peer.key")).expect("remove");
    assert!(!issue(&["--member=etcd-2"]).output().expect("run").status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_handed_over_to_the_signer_in_the_cluster_and_its_etcd_stays_up() {
    let Some(etcd) = tier::etcd() else { return };
    let Some(stack) = Stack::start(&StackOptions::default()).await else { return };
    let api = &stack.api;
    let mut signer = Signer::started(&[
        "--peercertdur=60s",
        "--servercertdur=60s",
        "--approve-group=system:bootstrappers:etcd=peer:127.0.0.0/8",
        "--approve-group=system:bootstrappers:etcd=server:127.0.0.0/8",
        "--approve-group=system:etcd-peers=peer:127.0.0.0/8",
        "--approve-group=system:etcd-peers=server:127.0.0.0/8",
    ])
    .await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let mut cluster = EtcdCluster::new(&etcd, 1).with_tls(|member| MemberTls {
        server: Some(signer.dir.join(&member.name).join("server")),
        peer: Some(signer.dir.join(&member.name).join("peer")),
    });
    let arguments = [
        "--ipaddrs=127.0.0.2,127.0.0.1".to_owned(),
        format!("--client-url={}", cluster.members[0].client_url()),
        "--reload=none".to_owned(),
    ];
    let mut running = sidecar(&signer, "etcd-0", &bootstrap, &arguments);
    let kubeconfig = signer.dir.join("etcd-0.kubeconfig");
    eventually("a kubeconfig around the certificate", LIMIT, || async {
        if kubeconfig.exists() { Ok(()) } else { Err("not yet") }
    })
    .await;
    cluster.start().await;

    // The cluster is told of the host, is given the CA, and takes its certificates for credentials.
    let pki = api.directory().join("pki/ca.crt");
    let both = format!("{}{}", fs::read_to_string(&pki).expect("the API server's client CAs"), signer.ca.pem);
    fs::write(&pki, both).expect("write");
    let path = |name: &str| signer.dir.join(name).display().to_string();
    for domain in ["peer", "client"] {
        let name = format!("kube-system-etcd-{domain}");
        let (cert, key) = (path("ca.crt"), path("ca.key"));
        api.kubectl(&["-n", "etcd-tls-system", "create", "secret", "tls", &name, "--cert", &cert, "--key", &key]);
    }
    let shipped =
        fs::read_to_string(tests::repository().join("manifests/examples/self-hosted/policy.yaml")).expect("read");
    let policy = shipped
        .replace("system:etcd-peer:cp-1", "system:etcd-peer:etcd-0")
        .replace("192.0.2.11", "127.0.0.2")
        .replace("commonName: cp-1", "commonName: etcd-0");
    api.apply(&policy);

    // The host is told where to ask from now on; the certificate it has is its credential there, too.
    let text = fs::read_to_string(&bootstrap).expect("read");
    let old = format!("https://127.0.0.1:{}", signer.port);
    let text =
        text.replace(&old, &api.url).replace(&STANDARD.encode(&signer.serving.pem), &STANDARD.encode(&api.ca.pem));
    fs::write(&bootstrap, text).expect("write");
    running.terminate(LIMIT).await;
    let running = sidecar(&signer, "etcd-0", &bootstrap, &arguments);
    signer.process().kill();

    let user = "system:etcd-peer:etcd-0";
    let requests = Api::<CertificateSigningRequest>::all(api.client.clone());
    eventually("certificates from the cluster", LIMIT, || async {
        let all = requests.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        let issued = all.items.iter().filter(|r| {
            r.spec.username.as_deref() == Some(user) && r.status.as_ref().is_some_and(|s| s.certificate.is_some())
        });
        let denied = all.items.iter().flat_map(|r| r.status.iter().flat_map(|s| s.conditions.iter().flatten()));
        let denied: Vec<_> = denied.filter(|c| c.type_ == "Denied").map(|c| c.message.clone()).collect();
        assert!(denied.is_empty(), "{denied:?}");
        if issued.count() >= 2 { Ok(()) } else { Err(running.log()) }
    })
    .await;
    let member = &mut cluster.members[0];
    let role = signer.dir.join("etcd-0/server");
    eventually("the cluster's certificate is served", LIMIT, || async {
        let serial = served_serial(&member.client_url(), &role).await.map_err(|e| e.to_string())?;
        let chain =
            Chain::parse(&fs::read(role.join("tls.crt")).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let hours =
            chain.not_after.duration_since(std::time::SystemTime::now()).map_or(0, |left| left.as_secs() / 3600);
        if serial == chain.serial && hours >= 1 { Ok(()) } else { Err(format!("{serial}, {hours} h left")) }
    })
    .await;
    assert!(fs::read_to_string(&kubeconfig).expect("read").contains(&api.url));
    assert!(member.process().running());
    assert!(member.is_healthy().await);
}
