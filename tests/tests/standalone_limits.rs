//! The refusals of the standalone signer: in Kubernetes' own form, with nothing lost.

use std::{fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{csr::PrivateKey, key::KeyAlgorithm, role::Role};
use serde_json::{Value, json};
use tests::{
    pki::{Ca, LeafOptions},
    ports,
    process::Process,
    signer::{ADMIN, BOOTSTRAP, LIMIT, Signer, V1, assert_status, request, sans},
};

#[path = "standalone_limits/connections.rs"]
mod connections;

/// Lets a signer that has just started have no more memory than its unit, as RLIMIT_DATA: all private memory that can be written.
/// That is stricter than the unit's cgroup, and a process that reaches it ends.
fn bound(pid: u32) {
    let path = tests::repository().join("manifests/host/etcd-tls-standalone.service");
    let unit = fs::read_to_string(path).expect("the unit");
    let mib = unit.lines().find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M')?.parse::<u64>().ok());
    let bytes = mib.expect("MemoryMax") << 20;
    tests::process::run(
        std::process::Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--data={bytes}")),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_kubernetes_own_form() {
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
        ips: vec!["10.0.0.1".parse().expect("an address")],
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
    // Its name is taken now: a request with the bootstrap token waits for a person.
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
        // What is stored of a request is bounded in every field.
        ("/spec/usages", json!(["digital signature", "digital signature"]), "has a usage twice"),
        ("/metadata/generateName", json!("g".repeat(254)), "metadata.generateName"),
        ("/spec/expirationSeconds", json!(599), "600"),
        ("/spec/request", json!("eA=="), "spec.request"),
        ("/spec/request", json!(STANDARD.encode("x".repeat(5000))), "4096"),
    ] {
        let (mut object, _) = request("bad", Role::Peer, "m1", &one);
        object["spec"]["expirationSeconds"] = json!(3600);
        object["metadata"]["generateName"] = json!("bad-");
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

/// The limits as they are shipped: ten users with a thousand pending requests each, and no place for one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pending_requests_are_kept_and_one_more_is_refused() {
    const USERS: usize = 10;
    const EACH: usize = 1_000;
    let token = |user: usize| format!("{user:02}1b7c6d5e4f30211203f4e5d6c7b8a9");
    let mut signer = Signer::new(&[]);
    let lines: Vec<String> = (0..=USERS).map(|user| format!("{},user{user},{user},g\n", token(user))).collect();
    signer.dir.write("tokens", format!("{ADMIN},admin,x,system:masters\n{}", lines.concat()));
    signer.start().await;
    bound(signer.process().id());

    let object = |user: usize, i: usize| format!("u{user}-{i:04}");
    let bodies: Vec<Value> = (0..=USERS)
        .map(|user| {
            let mut object =
                request("name", Role::Peer, &format!("u{user}"), &sans(&["u.example.com"], &["10.0.0.1"])).0;
            object["metadata"]["annotations"] = json!({"x": "x".repeat(8_000)});
            object
        })
        .collect();
    let post = |user: usize, name: &str| {
        let mut body = bodies[user].clone();
        body["metadata"]["name"] = json!(name);
        let body = body.to_string();
        let head = format!(
            "POST {V1} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n",
            token(user)
        );
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let fill = |user: usize| {
        let mut session = signer.session();
        for i in 0..EACH {
            loop {
                match session.send(&post(user, &object(user, i))) {
                    (201, _) => break,
                    // 200 calls a second are a user's share.
                    (429, body) if body.contains("sent too many") => std::thread::sleep(Duration::from_millis(50)),
                    (code, body) => panic!("{user} {i}: {code} {body}"),
                }
            }
        }
        // The user's own limit, before everybody's.
        session.send(&post(user, &format!("u{user}-more")))
    };
    let fill = &fill;
    let refused: Vec<(u16, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..USERS).map(|user| scope.spawn(move || fill(user))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let status = |(code, body): (u16, String)| (code, serde_json::from_str(&body).unwrap_or(Value::String(body)));
    for answer in refused {
        if !answer.1.contains("sent too many") {
            assert_status(&status(answer), 429, "1000 requests waiting for approval");
        }
    }
    // One more, of a user who has none yet.
    let more = || status(signer.session().send(&post(USERS, "one-more")));
    assert_status(&more(), 429, "10000 requests are stored, which is the limit");
    assert_eq!(more().1["details"]["retryAfterSeconds"], 60);

    let mut kept = None;
    for round in ["full", "started again"] {
        let (code, all) = signer.ask("GET", V1, ADMIN, &Value::Null);
        let items = all["items"].as_array().expect("items");
        assert_eq!((code, items.len()), (200, USERS * EACH), "{round}");
        let uids: Vec<String> = items.iter().map(|i| i["metadata"]["uid"].to_string()).collect();
        assert_eq!(*kept.get_or_insert(uids.clone()), uids, "{round}: the same objects");
        // In pages, as kubectl asks.
        let (_, page) = signer.ask("GET", &format!("{V1}?limit=500"), ADMIN, &Value::Null);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(500));
        assert_eq!(page["metadata"]["remainingItemCount"], 9_500, "{round}");
        let (code, one) = signer.ask("GET", &format!("{V1}/u7-0777"), ADMIN, &Value::Null);
        assert!(code == 200 && one["spec"]["username"] == "user7", "{round}: {one}");
        let authorization = format!("Bearer {ADMIN}");
        let table =
            [("Authorization", authorization.as_str()), ("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let (code, body) = signer.try_ask("GET", V1, &table, b"", None).expect("an answer");
        let table: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((code, table["kind"].as_str()), (200, Some("Table")));
        assert_eq!(table["rows"].as_array().map(Vec::len), Some(USERS * EACH), "{round}");
        let revision = all["metadata"]["resourceVersion"].as_str().expect("a revision");
        let watch = format!("{V1}?watch=true&resourceVersion={revision}&timeoutSeconds=1");
        let (code, events) =
            signer.try_ask("GET", &watch, &[("Authorization", &authorization)], b"", None).expect("an answer");
        assert!(code == 200 && !events.contains("\"ADDED\""), "{round}: nothing happened since: {events}");
        if round == "full" {
            let process = signer.process();
            let resident = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a process");
            let kib: u64 = resident
                .lines()
                .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
                .expect("its resident size");
            let page = fs::read_to_string(tests::repository().join("docs/standalone.md")).expect("the page");
            let promised =
                page.split("need less than ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            assert!(kib < promised.expect("MiB") << 10, "{kib} KiB");
            println!("resident with {} pending requests: {kib} KiB", USERS * EACH);
            signer.process().kill();
            signer.start().await;
            bound(signer.process().id());
        }
    }
    // A deleted request makes room.
    let (code, _) = signer.ask("DELETE", &format!("{V1}/u0-0000"), ADMIN, &Value::Null);
    assert_eq!(code, 200);
    let (code, body) = signer.session().send(&post(USERS, "one-more"));
    assert_eq!(code, 201, "{body}");
}

/// Attack 14: lists and watches of 10,000 requests, all at once, by one user. Others are served meanwhile, and the memory is
/// that of the requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_watches_of_ten_thousand_requests_hold_up_nobody() {
    const REQUESTS: usize = 10_000;
    let admin_port = ports::loopback();
    let mut signer = Signer::started(&[
        "--rate-limit=0",
        "--max-pending-per-user=10000",
        &format!("--admin-address=127.0.0.1:{admin_port}"),
    ])
    .await;
    let pid = signer.process().id();
    bound(pid);
    let (object, _) = request("name", Role::Peer, "m1", &sans(&["m1.example.com"], &["10.0.0.1"]));
    let fill = |thread: usize| {
        let mut session = signer.session();
        for i in (thread..REQUESTS).step_by(8) {
            let mut body = object.clone();
            body["metadata"]["name"] = json!(format!("r{i:05}"));
            let body = body.to_string();
            let head = format!("POST {V1} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {BOOTSTRAP}\r\n");
            let length = body.len();
            let call = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
            let (code, answer) = session.send(call.as_bytes());
            assert_eq!(code, 201, "{answer}");
        }
    };
    let fill = &fill;
    std::thread::scope(|scope| (0..8).for_each(|thread| drop(scope.spawn(move || fill(thread)))));
    let resident = |line: &str, pid: u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.trim().strip_suffix(" kB")?.trim().parse().ok());
        found.expect("its size")
    };
    let before = resident("VmRSS:", pid);

    let signer = &signer;
    let token = format!("Bearer {BOOTSTRAP}");
    let ask = |path: &str, accept: &str| {
        let headers = [("Authorization", token.as_str()), ("Accept", accept)];
        signer.try_ask("GET", path, &headers, b"", None).expect("an answer")
    };
    let ask = &ask;
    let over = std::sync::atomic::AtomicBool::new(false);
    let over = &over;
    let watch = format!("{V1}?watch=true&timeoutSeconds=5");
    let watch = &watch;
    let (lists, watches, slowest) = std::thread::scope(|scope| {
        let slowest = scope.spawn(move || {
            let mut slowest = [Duration::ZERO; 3];
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let timed = |call: &dyn Fn()| {
                    let began = std::time::Instant::now();
                    call();
                    began.elapsed()
                };
                let admin = timed(&|| {
                    use std::io::{Read as _, Write as _};
                    let mut stream = std::net::TcpStream::connect(("127.0.0.1", admin_port)).expect("the admin port");
                    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).expect("an answer");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                });
                let ready = timed(&|| {
                    assert_eq!(signer.try_ask("GET", "/readyz", &[], b"", None).expect("an answer").0, 200);
                });
                let of_others = timed(&|| {
                    assert_eq!(signer.ask("GET", &format!("{V1}/r00001"), ADMIN, &Value::Null).0, 200);
                });
                for (slowest, took) in slowest.iter_mut().zip([admin, ready, of_others]) {
                    *slowest = took.max(*slowest);
                }
            }
            slowest
        });
        let lists: Vec<_> = (0..8)
            .map(|i| {
                let accept =
                    if i % 2 == 0 { "application/json" } else { "application/json;as=Table;v=v1;g=meta.k8s.io" };
                scope.spawn(move || ask(V1, accept))
            })
            .collect();
        let watches: Vec<_> = (0..12).map(|_| scope.spawn(move || ask(watch, "application/json"))).collect();
        let lists: Vec<_> = lists.into_iter().map(|list| list.join().expect("no panic")).collect();
        let watches: Vec<_> = watches.into_iter().map(|watch| watch.join().expect("no panic")).collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        (lists, watches, slowest.join().expect("no panic"))
    });
    let mut listed = 0;
    for (code, body) in lists {
        let value: Value = serde_json::from_str(&body).expect("JSON");
        match code {
            200 => {
                let items = value["items"].as_array().or(value["rows"].as_array()).map(Vec::len);
                assert_eq!(items, Some(REQUESTS));
                listed += 1;
            }
            _ => assert_status(&(code, value), 429, "4 lists of bootstrap are open"),
        }
    }
    assert!(listed >= 4, "{listed}");
    for (code, body) in watches {
        assert_eq!((code, body.matches("{\"type\":\"ADDED\"").count()), (200, REQUESTS));
    }
    let peak = resident("VmHWM:", pid);
    println!(
        "resident with {REQUESTS} requests: {before} KiB, at most {peak} KiB under 8 lists and 12 watches; {slowest:?}"
    );
    assert!(peak < before + (64 << 10), "{before} KiB, then {peak} KiB");
    for took in slowest {
        assert!(took < Duration::from_secs(2), "{slowest:?}: admin port, /readyz, another's request");
    }
}
