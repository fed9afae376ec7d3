//! The standalone signer by its real binary: kubectl, an old agent's wire, watches, and files that change under it.

use std::{fs, path::Path, process::Command, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    role::Role,
};
use serde_json::{Value, json};
use tests::{
    eventually,
    pki::Ca,
    process::{Process, run},
    signer::{ADMIN, BOOTSTRAP, LIMIT, Signer, V1, V1BETA1, assert_status, recorded, request, sans},
    tier,
};

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

/// The recorded wire of the etcd-certificate-generator's agent: client-go's of 2018, no credential, an RSA key, a CN for a
/// name, no usages, no signer name. It is served byte for byte as it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_agents_wire_is_served_unchanged() {
    let signer = Signer::started(&[
        "--insecure-allow-anonymous",
        "--approve-group=system:unauthenticated=peer:10.8.89.9,etcd1.example.com",
        "--approve-group=system:unauthenticated=server:10.8.89.9,etcd1.example.com,localhost",
        "--approve-group=system:unauthenticated=metrics:10.8.89.9,etcd1.example.com",
    ])
    .await;
    let wire = |name: &str| {
        let file = tests::repository().join("tests/fixtures/kube-client-agent").join(format!("{name}.http"));
        recorded(&fs::read(file).expect("a recorded connection"))
    };
    let object = |(code, body): (u16, String)| -> (u16, Value) { (code, serde_json::from_str(&body).expect(&body)) };
    for (recording, name, dns) in [
        ("peer", "system:etcd-peer:etcd1", &["etcd1.example.com"][..]),
        ("server", "system:etcd-server:etcd1", &["etcd1.example.com", "localhost"]),
        ("metrics", "system:etcd-metric:etcd1", &["etcd1.example.com"]),
    ] {
        let [post, get] = wire(recording).try_into().expect("two requests");
        let mut session = signer.session();
        let (code, created) = object(session.send(&post));
        assert_eq!(code, 201, "{created}");
        let (code, got) = object(session.send(&get));
        assert_eq!(code, 200, "{got}");
        for object in [&created, &got] {
            assert_eq!(object["apiVersion"], "certificates.k8s.io/v1beta1");
            assert_eq!(object["kind"], "CertificateSigningRequest");
            assert_eq!(object["metadata"]["name"], name);
            assert_eq!(object["spec"]["username"], "system:anonymous");
        }
        assert_eq!(got["status"]["conditions"][0]["type"], "Approved");
        let certificate = STANDARD.decode(got["status"]["certificate"].as_str().expect("issued")).expect("base64");
        let chain = Chain::parse(&certificate).expect("a chain");
        assert_eq!((chain.common_name.as_str(), &chain.sans), (name, &sans(dns, &["10.8.89.9"])));
    }
    // A request beyond the rules waits for a person, and the agent keeps polling.
    let pending = wire("pending");
    let [post, polls @ ..] = pending.as_slice() else { panic!("no request") };
    assert_eq!(polls.len(), 3);
    let mut session = signer.session();
    let (code, created) = object(session.send(post));
    assert!(code == 201 && created["status"].get("conditions").is_none(), "{created}");
    for (number, poll) in polls.iter().enumerate() {
        if number == 2 {
            let approved =
                json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
            let token = format!("Bearer {ADMIN}");
            let headers = [("Authorization", token.as_str()), ("Content-Type", "application/merge-patch+json")];
            let path = format!("{V1}/system:etcd-peer:etcd2/approval");
            let answer = signer.try_ask("PATCH", &path, &headers, approved.to_string().as_bytes(), None);
            assert_eq!(answer.expect("an answer").0, 200);
        }
        let (code, got) = object(session.send(poll));
        assert!(code == 200 && got["status"]["certificate"].is_string() == (number == 2), "{number}: {got}");
    }
    // It asks for the name "" where it is given none; its log then says what to do about it.
    let (code, refused) = object(signer.session().send(&wire("no-names")[0]));
    assert_status(&(code, refused), 422, "no DNS name");
    // Only the old agents, who make no other, have RSA keys of 2048 bits signed.
    let body = post.split(|b| *b == b'\n').find(|line| line.starts_with(b"{")).expect("a body");
    let mut of_today: Value = serde_json::from_slice(body).expect("JSON");
    of_today["apiVersion"] = json!("certificates.k8s.io/v1");
    of_today["spec"]["signerName"] = json!("peer.etcd-tls.dev/kube-system.etcd");
    of_today["spec"]["usages"] = json!(["server auth", "client auth"]);
    of_today["metadata"]["name"] = json!("of-today");
    assert_status(&signer.ask("POST", V1, ADMIN, &of_today), 422, "rsa-2048");

    // An agent that prefers protobuf accepts JSON; one that accepts nothing else gets an error.
    for (accept, code) in
        [("application/vnd.kubernetes.protobuf, */*", 200), ("application/vnd.kubernetes.protobuf", 406)]
    {
        let path = format!("{V1BETA1}/system:etcd-peer:etcd1");
        let answer = signer.try_ask("GET", &path, &[("Accept", accept)], b"", None);
        assert_eq!(answer.expect("an answer").0, code, "{accept}");
    }
}

/// Files that change under the running signer: its CA's, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_ca_is_taken_where_its_certificates_are_accepted() {
    let mut signer = Signer::started(&["--approve-group=system:bootstrappers:etcd=peer:10.0.0.0/8"]).await;
    let issued = |signer: &Signer, name: &str| {
        let (object, _) = request(name, Role::Peer, name, &sans(&[], &["10.0.0.1"]));
        let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
        let pem = object["status"]["certificate"].as_str().unwrap_or_else(|| panic!("{code} {object}"));
        Chain::parse(&STANDARD.decode(pem).expect("base64")).expect("a chain")
    };
    let first = issued(&signer, "a");
    // Another CA, its key a moment later: refused and logged; the present one stays in use.
    let other = Ca::new("etcd CA");
    signer.dir.write("ca.crt", &other.pem);
    signer.dir.write("ca.key", &other.key_pem);
    signer.process().logged("this is another CA", LIMIT).await;
    let bundle = Bundle::parse(signer.ca.pem.as_bytes()).expect("a bundle");
    let second = issued(&signer, "b");
    for chain in [&first, &second] {
        assert!(bundle.contains_issuer_of(chain), "signed by the CA that everybody knows");
    }
    // The same key under a certificate of its own, as a renewal has it: taken.
    let renewed = signer.ca.renewed();
    signer.dir.write("ca.key", &signer.ca.key_pem);
    signer.dir.write("ca.crt", &renewed);
    eventually("the renewed certificate is published", LIMIT, || async {
        let (code, object) =
            signer.ask("GET", "/api/v1/namespaces/kube-system/configmaps/etcd-tls-trust-etcd", BOOTSTRAP, &Value::Null);
        if object["data"]["peer.crt"] == json!(renewed) { Ok(()) } else { Err(format!("{code} {object}")) }
    })
    .await;
    assert!(bundle.contains_issuer_of(&issued(&signer, "c")));
    assert!(!signer.process().log().contains("PRIVATE KEY"));
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

/// The fields of a protobuf message that are bytes, in their order.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let varint = |bytes: &mut &[u8]| {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().expect("a byte more");
            *bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    };
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        assert_eq!(tag & 7, 2, "only bytes are written");
        let length = usize::try_from(varint(&mut message)).expect("a length");
        let (bytes, rest) = message.split_at(length);
        fields.push((tag >> 3, bytes));
        message = rest;
    }
    fields
}

fn field(message: &[u8], number: u64) -> &[u8] {
    fields(message).into_iter().find(|(n, _)| *n == number).unwrap_or_else(|| panic!("no field {number}")).1
}

/// How kubectl finds out that `create` may ask for field validation. Built with Go 1.27, it cannot use what `/openapi/v3`
/// answers and asks `/openapi/v2` in protobuf, as `gnostic`'s `openapi.v2.Document`; 406 there ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_of_each_go_finds_that_fields_are_validated() {
    let signer = Signer::started(&[]).await;
    let authorization = format!("Bearer {BOOTSTRAP}");
    let ask = |path: &str, accept: &str| {
        let headers = [("Authorization", authorization.as_str()), ("Accept", accept)];
        signer.try_ask_bytes("GET", path, &headers, b"", None).expect("an answer")
    };
    let json = |(code, body): (u16, Vec<u8>)| -> Value {
        assert_eq!(code, 200);
        serde_json::from_slice(&body).expect("JSON")
    };
    for accept in [
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    ] {
        let (code, document) = ask("/openapi/v2", accept);
        assert_eq!((code, field(&document, 1)), (200, b"2.0".as_slice()));
        for version in ["v1", "v1beta1"] {
            let kind = format!("group: certificates.k8s.io\nkind: CertificateSigningRequest\nversion: {version}\n");
            let supported = fields(field(&document, 8)).into_iter().filter(|(n, _)| *n == 2).any(|(_, path)| {
                let patch = field(field(path, 2), 7);
                let of_kind = fields(patch).into_iter().any(|(n, extension)| {
                    n == 13
                        && field(extension, 1) == b"x-kubernetes-group-version-kind"
                        && field(field(extension, 2), 2) == kind.as_bytes()
                });
                let validated = fields(patch)
                    .into_iter()
                    .filter(|(n, _)| *n == 8)
                    .any(|(_, parameter)| field(field(field(field(parameter, 1), 2), 3), 4) == b"fieldValidation");
                of_kind && validated
            });
            assert!(supported, "{version}");
        }
    }
    let pointer = "/paths/~1apis~1certificates.k8s.io~1v1~1certificatesigningrequests~1{name}~1approval/patch";
    let index = json(ask("/openapi/v3", "application/json, */*"));
    let v3 = index["paths"]["apis/certificates.k8s.io/v1"]["serverRelativeURL"].as_str().expect("a URL");
    for (path, accept) in [(v3, "application/json"), ("/openapi/v2", "application/json"), ("/openapi/v2", "*/*")] {
        let document = json(ask(path, accept));
        let patch = document.pointer(pointer).unwrap_or_else(|| panic!("{document}"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "CertificateSigningRequest");
        let parameters = patch["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"), "{patch}");
    }
    assert_eq!(ask("/openapi/v2", "text/html").0, 406);
    assert_eq!(ask("/openapi/v9", "application/vnd.kubernetes.protobuf").0, 404, "a path that is not there");
}

/// `[::]` is every address of the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_is_listened_on() {
    let every = std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED);
    let port = tests::ports::free(every);
    let mut signer = Signer::at(every, &[&format!("--admin-address=[::]:{port}")]);
    signer.start().await;
    if tests::process::which("curl").is_some() {
        let mut curl = std::process::Command::new("curl");
        let metrics = tests::process::run(curl.args(["-sS", &format!("http://127.0.0.1:{port}/metrics")]));
        tests::promtool::check_metrics("standalone", &metrics);
        for name in ["calls_total", "call_duration_seconds_bucket", "authority_expiry_timestamp_seconds", "held_names"]
        {
            assert!(metrics.contains(&format!("\netcd_tls_standalone_{name}")), "{name}: {metrics}");
        }
        assert_eq!(metrics.matches("# TYPE process_start_time_seconds").count(), 1, "{metrics}");
    }
    for port in [signer.port, port] {
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("IPv4");
        match std::net::TcpListener::bind(("::1", 0)) {
            Ok(_) => drop(std::net::TcpStream::connect(("::1", port)).expect("IPv6")),
            Err(error) => tier::skip(1, &format!("no ::1: {error}"), "sysctl -w net.ipv6.conf.lo.disable_ipv6=0"),
        }
    }
}
