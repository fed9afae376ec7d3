//! Tier 1: the real `admit` over TLS: reviews answered, everything that HTTP can do wrong, and a serving pair that changes
//! under load with no connection dropped.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tests::{
    eventually, pki,
    pki::{Ca, LeafOptions},
    ports,
    process::{Process, binary},
    temp::TempDir,
    tier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

#[path = "admission/attack.rs"]
mod attack;
#[path = "admission/cost.rs"]
mod cost;
#[path = "admission/large.rs"]
mod large;
#[path = "admission/stop.rs"]
mod stop;

/// One test at a time: each of them loads the machine, and the server's timeouts are of real time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Admit {
    process: Process,
    port: u16,
    admin: u16,
    ca: Ca,
    dir: TempDir,
}

fn leaf() -> LeafOptions {
    LeafOptions { dns: vec!["admit.test".to_owned()], ..LeafOptions::default() }
}

impl Admit {
    async fn start(name: &str) -> Self {
        Self::start_command(name, Command::new(binary("etcd-tls-webhook"))).await
    }

    /// Starts it with this much memory (RLIMIT_DATA).
    async fn start_limited(name: &str, kib: u64) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -d {kib} && exec \"$0\" \"$@\"")]).arg(binary("etcd-tls-webhook"));
        Self::start_command(name, shell).await
    }

    async fn start_command(name: &str, command: Command) -> Self {
        Self::start_in(TempDir::new(name), command).await
    }

    async fn start_in(dir: TempDir, mut command: Command) -> Self {
        let ca = Ca::new("admit");
        publish(&ca, &dir.dir("serving"));
        dir.dir("policy");
        let (port, admin) = (ports::loopback(), ports::loopback());
        let process = Process::spawn(
            "admit",
            command.args([
                "admit",
                "--sidecar-image=etcd-tls-sidecar:test",
                &format!("--address=127.0.0.1:{port}"),
                &format!("--admin-address=127.0.0.1:{admin}"),
                &format!("--serving-dir={}", dir.join("serving").display()),
                &format!("--policy-file={}", dir.join("policy/policy.yaml").display()),
            ]),
            dir.path(),
        );
        let this = Self { process, port, admin, ca, dir };
        eventually("admit is ready", Duration::from_secs(30), || this.ready()).await;
        this
    }

    async fn ready(&self) -> Result<(), String> {
        let answer = self.admin_page("/ready").await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    }

    async fn metrics(&self) -> String {
        self.admin_page("/metrics").await.expect("metrics")
    }

    async fn admin_page(&self, path: &str) -> Result<String, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await.map_err(|e| e.to_string())?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
        Ok(answer)
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        connect(self.port, &self.ca).await.expect("connect to admit")
    }

    /// Sends one request on a connection of its own; the status and the body.
    async fn request(&self, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = self.connect().await;
        // A refusal may come, and the connection close, before all of a body is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(body).await;
        timeout(Duration::from_secs(30), answer(&mut stream)).await.expect("an answer in time").expect("an answer")
    }

    async fn post(&self, body: &[u8]) -> (u16, Vec<u8>) {
        self.request(&head("Content-Type: application/json\r\n", body.len()), body).await
    }
}

fn head(headers: &str, length: usize) -> String {
    format!("POST /mutate HTTP/1.1\r\nHost: admit.test\r\n{headers}Content-Length: {length}\r\n\r\n")
}

async fn connect(port: u16, ca: &Ca) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(pki::client_config(&ca.pem, None));
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    connector.connect("admit.test".try_into().expect("a name"), stream).await
}

/// Reads one answer with a Content-Length.
async fn answer(stream: &mut TlsStream<TcpStream>) -> std::io::Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
            let length =
                head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = bytes.split_off(end + 4);
            let length: usize = length.unwrap_or(0);
            while body.len() < length {
                let mut chunk = vec![0; length - body.len()];
                let read = stream.read(&mut chunk).await?;
                assert_ne!(read, 0, "the answer broke off");
                body.extend_from_slice(&chunk[..read]);
            }
            return Ok((status, body));
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Writes a new pair as kubelet does: a directory, then one rename of `..data`.
fn publish(ca: &Ca, dir: &Path) {
    let generation = format!("..{}", (0..).find(|n| !dir.join(format!("..{n}")).exists()).expect("a number"));
    ca.write_role(&dir.join(&generation), &leaf());
    std::os::unix::fs::symlink(&generation, dir.join("..data_tmp")).expect("link");
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("rename");
    for file in ["tls.crt", "tls.key"] {
        if std::fs::symlink_metadata(dir.join(file)).is_err() {
            std::os::unix::fs::symlink(format!("..data/{file}"), dir.join(file)).expect("link");
        }
    }
}

fn review() -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "namespace": "prod", "operation": "CREATE",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}},
                "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
            },
        },
    })
}

fn body() -> Vec<u8> {
    serde_json::to_vec(&review()).expect("JSON")
}

fn is_patch(answer: &(u16, Vec<u8>)) -> bool {
    let read: Value = serde_json::from_slice(&answer.1).unwrap_or_default();
    let patch = read["response"]["patch"].as_str().and_then(|p| STANDARD.decode(p).ok()).unwrap_or_default();
    answer.0 == 200 && read["response"]["uid"] == "u-1" && serde_json::from_slice::<json_patch::Patch>(&patch).is_ok()
}

/// The rules for issuers come from a file, and a change of it comes into force while it serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_held_to_the_issuers_of_policy() {
    let admit = Admit::start("admit-issuers").await;
    let namespace = review()["request"]["namespace"].as_str().expect("a namespace").to_owned();
    let in_force = async |what: &str, wanted: &str| {
        eventually(what, Duration::from_secs(120), || async {
            let (_, answer) = admit.post(&body()).await;
            let read: Value = serde_json::from_slice(&answer).expect("an answer");
            let said = read["response"]["status"]["message"].as_str().unwrap_or("allowed").to_owned();
            if said.contains(wanted) { Ok(()) } else { Err(said) }
        })
        .await;
    };
    in_force("no policy", "allowed").await;
    let write = |text: &str| drop(admit.dir.write("policy/policy.yaml", text));
    write(&format!("issuers:\n- namespaces: [{namespace}]\n  allow: ['cert-manager:Issuer/ca']\n"));
    in_force("the rule", "policy's issuers[0] lets the pods of namespace").await;
    write("issuers: nonsense\n");
    admit.process.logged("the rules for issuers stay as they were", Duration::from_secs(120)).await;
    in_force("the last good rule", "policy's issuers[0]").await;
    std::fs::remove_file(admit.dir.join("policy/policy.yaml")).expect("remove the policy");
    admit.process.logged("No such file", Duration::from_secs(120)).await;
    in_force("the rule of a policy that is gone", "policy's issuers[0]").await;
    write("issuers:\n- namespaces: ['*']\n  allow: [csr]\n");
    in_force("the next rule", "allowed").await;

    // Its domain is that of the names in certificates.
    let mut review = review();
    let flag = "--advertise-client-urls=https://etcd.prod.svc.cluster.local:2379";
    review["request"]["object"]["spec"]["containers"][0]["command"] = json!(["etcd", flag]);
    let review = serde_json::to_vec(&review).expect("JSON");
    let warns = async |wanted: bool| {
        eventually("the domain", Duration::from_secs(120), || async {
            let answer = String::from_utf8(admit.post(&review).await.1).expect("text");
            let warns = answer
                .contains("names etcd.prod.svc.cluster.local, which no certificate will hold; write etcd.prod.svc");
            if warns == wanted { Ok(()) } else { Err(answer) }
        })
        .await;
    };
    warns(false).await;
    write("clusterDomain: example.test\n");
    warns(true).await;
}

/// With a policy that it could not read since its start, admission refuses other issuers than `csr`, until it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_policy_at_the_start_allows_no_other_issuer() {
    let dir = TempDir::new("admit-unreadable");
    dir.dir("policy");
    dir.write("policy/policy.yaml", "issuers: nonsense\n");
    let admit = Admit::start_in(dir, Command::new(binary("etcd-tls-webhook"))).await;
    let answered = async |issuer: &str| {
        let mut review = review();
        review["request"]["object"]["metadata"]["annotations"] = json!({"etcd-tls.dev/issuer": issuer});
        let (_, answer) = admit.post(&serde_json::to_vec(&review).expect("JSON")).await;
        let read: Value = serde_json::from_slice(&answer).expect("an answer");
        read["response"]["status"]["message"].as_str().unwrap_or("allowed").to_owned()
    };
    assert_eq!(answered("csr").await, "allowed");
    let other = "cert-manager:Issuer/ca";
    let refusal = answered(other).await;
    assert!(refusal.contains("policy"), "{refusal}");
    drop(admit.dir.write("policy/policy.yaml", "clusterDomain: cluster.local\n"));
    eventually("the policy", Duration::from_secs(120), || async {
        let answer = answered(other).await;
        if answer == "allowed" { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// Obstacles that are told of from another container or from the pod, and the containers that are injected into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_beside_etcd_is_in_the_answers_warnings() {
    let admit = Admit::start("admit-beside").await;
    let answer = async |change: &dyn Fn(&mut Value)| {
        let mut review = review();
        change(&mut review["request"]["object"]);
        let (status, answer) = admit.post(&serde_json::to_vec(&review).expect("JSON")).await;
        let mut read: Value = serde_json::from_slice(&answer).expect("an answer");
        assert_eq!(status, 200, "{read}");
        let patch = read["response"]["patch"].as_str().and_then(|p| STANDARD.decode(p).ok()).unwrap_or_default();
        (read["response"]["warnings"].take().to_string(), String::from_utf8(patch).expect("a patch"))
    };
    let backup = |pod: &mut Value| {
        let backup = json!({"name": "backup", "image": "etcd", "command": ["etcdctl", "snapshot", "save", "/x"],
            "env": [{"name": "ETCDCTL_ENDPOINTS", "value": "http://127.0.0.1:2379"}]});
        pod["spec"]["containers"].as_array_mut().expect("containers").push(backup);
    };
    let etcd = |pod: &mut Value, flag: &str| pod["spec"]["containers"][0]["command"] = json!(["etcd", flag]);
    for (change, said) in [
        (&backup as &dyn Fn(&mut Value), "container backup: command[0] runs etcdctl, which needs a client certificate"),
        (&backup, "container backup: command[0] gives etcdctl the endpoint http://127.0.0.1:2379"),
        (
            &|pod| {
                pod["spec"]["initContainers"] =
                    json!([{"name": "join", "image": "a", "command": ["etcdctl", "member", "list"]}])
            },
            "container join: command[0] runs etcdctl",
        ),
        (
            &|pod| pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": 2379}}),
            "container etcd: its readinessProbe asks a port that wants a client certificate",
        ),
        (&|pod| etcd(pod, "--discovery-srv=etcd.prod.svc"), "the hosts that --discovery-srv finds"),
        (
            &|pod| etcd(pod, "--listen-client-urls=unixs://localhost:2379"),
            "--listen-client-urls is unixs://localhost:2379",
        ),
        (
            &|pod| etcd(pod, "--initial-advertise-peer-urls=https://etcd-0.etcd.prod.svc:2380"),
            "etcd-0.etcd.prod.svc, which no certificate will hold; set spec.subdomain",
        ),
        (
            &|pod| etcd(pod, "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
            "--cipher-suites has none for ecdsa-p256 keys",
        ),
        (
            &|pod| pod["spec"]["resources"] = json!({"limits": {"memory": "50Mi"}}),
            "leave room for about 10m of cpu and 16Mi of memory",
        ),
    ] {
        let (warnings, _) = answer(change).await;
        assert!(warnings.contains(said), "{said}: {warnings}");
    }
    let (_, patch) = answer(&|pod| {
        let mut etcd = pod["spec"]["containers"][0].take();
        etcd["restartPolicy"] = json!("Always");
        pod["spec"]["initContainers"] = json!([etcd]);
        pod["spec"]["containers"] = json!([{"name": "app", "image": "app"}]);
    })
    .await;
    assert!(patch.contains("/spec/initContainers/0/volumeMounts") && !patch.contains("/spec/containers/"), "{patch}");
    let (_, patch) = answer(&|pod| pod["spec"]["resources"] = json!({"limits": {"memory": "50Mi"}})).await;
    assert!(
        patch.contains("etcd-tls-init") && !patch.contains("\"cpu\":") && !patch.contains("\"memory\":"),
        "{patch}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_gets_a_clear_answer() {
    let _alone = ALONE.lock().await;
    let admit = Admit::start("admit-bad").await;
    let good = body();
    assert!(is_patch(&admit.post(&good).await));

    let json = "Content-Type: application/json\r\n";
    let large = vec![b' '; 4 << 20];
    let chunked =
        |headers: &str| format!("POST /mutate HTTP/1.1\r\nHost: x\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
    let mut endless = Vec::new();
    for _ in 0..64 {
        endless.extend_from_slice(b"10000\r\n");
        endless.extend_from_slice(&[b' '; 0x10000]);
        endless.extend_from_slice(b"\r\n");
    }
    for (what, head, body, status) in [
        ("no body", head(json, 0), b"".as_slice(), 400),
        ("null", head(json, 4), b"null", 400),
        ("half", head(json, good.len() / 2), &good[..good.len() / 2], 400),
        ("no type", head("", good.len()), &good, 415),
        ("another type", head("Content-Type: text/plain\r\n", good.len()), &good, 415),
        ("gzip said", head(&format!("{json}Content-Encoding: gzip\r\n"), 3), b"\x1f\x8b\x08", 415),
        ("gzip unsaid", head(json, 3), b"\x1f\x8b\x08", 400),
        ("too large", head(json, large.len()), &large, 413),
        ("too large, chunked", chunked(json), &endless, 413),
        ("GET", "GET /mutate HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), b"", 405),
        ("elsewhere", "GET /else HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), b"", 404),
    ] {
        let (got, text) = admit.request(&head, body).await;
        assert_eq!(got, status, "{what}: {}", String::from_utf8_lossy(&text));
    }
    assert!(is_patch(&admit.post(&good).await), "it serves on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_dawdles_is_cut_off_and_holds_nobody_up() {
    let _alone = ALONE.lock().await;
    let admit = Admit::start("admit-slow").await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = admit.connect().await;
        stream.write_all(head("Content-Type: application/json\r\n", 1000).as_bytes()).await.expect("write");
        stream.write_all(b"{").await.expect("write");
        slow.push(stream);
    }
    let silent = TcpStream::connect(("127.0.0.1", admit.port)).await.expect("connect");
    assert!(is_patch(&admit.post(&body()).await));
    for mut stream in slow {
        let ended = timeout(Duration::from_secs(60), answer(&mut stream)).await.expect("cut off in time");
        if let Ok((status, _)) = ended {
            assert_eq!(status, 408);
        }
    }
    let mut silent = silent;
    let mut byte = [0; 1];
    let ended = timeout(Duration::from_secs(60), silent.read(&mut byte)).await.expect("cut off in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_serving_pair_drops_nobody() {
    let _alone = ALONE.lock().await;
    let admit = Arc::new(Admit::start("admit-reload").await);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for client in 0..8 {
        let (admit, stop, answered) = (Arc::clone(&admit), Arc::clone(&stop), Arc::clone(&answered));
        clients.push(tokio::spawn(async move {
            let body = body();
            let request = [head("Content-Type: application/json\r\n", body.len()).as_bytes(), &body].concat();
            let mut stream = admit.connect().await;
            while !stop.load(Ordering::Relaxed) {
                if client % 2 == 0 {
                    stream = admit.connect().await;
                }
                stream.write_all(&request).await.expect("write");
                assert!(is_patch(&answer(&mut stream).await.expect("an answer")));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let serial =
        |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec();
    let mut served = serial(&admit.connect().await);
    let began = Instant::now();
    let renewals = if tier::soaking() { 1000 } else { 50 };
    for _ in 0..renewals {
        publish(&admit.ca, &admit.dir.join("serving"));
        let old = served.clone();
        served = eventually("the new pair is served", Duration::from_secs(30), || async {
            let now = serial(&connect(admit.port, &admit.ca).await.map_err(|e| e.to_string())?);
            if now == old { Err("the old one".to_owned()) } else { Ok(now) }
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no client failed");
    }
    let answered = answered.load(Ordering::Relaxed);
    tests::say(&format!("{renewals} serving pairs in {:?}: {answered} reviews answered, none failed", began.elapsed()));
    assert!(answered > 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once() {
    let _alone = ALONE.lock().await;
    let admit = Arc::new(Admit::start("admit-thousand").await);
    let body = body();
    let request: Arc<[u8]> = [head("Content-Type: application/json\r\n", body.len()).as_bytes(), &body].concat().into();
    let mut streams = Vec::new();
    for _ in 0..1000 {
        let mut stream = admit.connect().await;
        // A connection that has been used is kept; a new one must say something soon.
        stream.write_all(&request).await.expect("write");
        assert!(is_patch(&answer(&mut stream).await.expect("an answer")));
        streams.push(stream);
    }
    let again = Arc::new(Semaphore::new(16));
    let all: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let (admit, request, again) = (Arc::clone(&admit), Arc::clone(&request), Arc::clone(&again));
            tokio::spawn(async move {
                let mut answered = None;
                if stream.write_all(&request).await.is_ok() {
                    answered = answer(&mut stream).await.ok();
                }
                drop(stream);
                if answered.is_none() {
                    // On a slow machine it was idle for too long among so many: as an API server's client, connect again.
                    // So may all, and a thousand handshakes at once take longer than one may take: a few at once.
                    let _few = again.acquire().await.expect("a semaphore");
                    let once_more = || async {
                        let mut stream = connect(admit.port, &admit.ca).await.map_err(|e| e.to_string())?;
                        stream.write_all(&request).await.map_err(|e| e.to_string())?;
                        answer(&mut stream).await.map_err(|e| e.to_string())
                    };
                    answered =
                        Some(eventually("a review on a new connection", Duration::from_secs(60), once_more).await);
                }
                answered.is_some_and(|answered| is_patch(&answered))
            })
        })
        .collect();
    for one in all {
        assert!(one.await.expect("a client"));
    }
}
