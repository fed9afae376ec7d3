//! The bounds of the certificates that a caller may hold at a standalone signer: nobody fills another's place, and each
//! certificate can be revoked. By real processes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, csr::Request, names, role::Role};
use serde_json::{Value, json};
use tests::{
    eventually,
    signer::{ADMIN, BOOTSTRAP, HOSTS, LIMIT, Signer, V1, assert_status, request, revoke, sans},
};

const POD: &str = "6bb1c1f8af3d2f7e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a697887960fab";

/// The certificate of an answer, PEM.
fn certificate(object: &Value) -> Option<String> {
    let pem = STANDARD.decode(object["status"]["certificate"].as_str()?).expect("base64");
    Some(String::from_utf8(pem).expect("PEM"))
}

/// Asks with the bootstrap token: the answer, and certificate and key where they were issued.
fn ask(signer: &Signer, name: &str, role: Role, host: &str, ip: &str) -> ((u16, Value), Option<(String, String)>) {
    let ips: Vec<&str> = if ip.is_empty() { Vec::new() } else { vec![ip] };
    let (object, key) = request(name, role, host, &sans(&[], &ips));
    let answer = signer.ask("POST", V1, BOOTSTRAP, &object);
    let issued = certificate(&answer.1).map(|pem| (pem, key.to_pem().to_string()));
    (answer, issued)
}

fn issued(signer: &Signer, name: &str, role: Role, host: &str, ip: &str) -> (String, String) {
    let (answer, issued) = ask(signer, name, role, host, ip);
    assert_eq!(answer.0, 201, "{}", answer.1);
    issued.unwrap_or_else(|| panic!("{}", answer.1))
}

/// A host renews by its certificate.
fn renew(signer: &Signer, leaf: &(String, String), name: &str, role: Role, host: &str, ip: &str) {
    let (object, _) = request(name, role, host, &sans(&[], &[ip]));
    let headers = [("Content-Type", "application/json")];
    let body = object.to_string();
    let (code, body) =
        signer.try_ask("POST", V1, &headers, body.as_bytes(), Some((&leaf.0, &leaf.1))).expect("an answer");
    let object: Value = serde_json::from_str(&body).expect("JSON");
    assert!(code == 201 && certificate(&object).is_some(), "{code} {body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fills_the_place_of_a_host_or_of_another_name() {
    let clients = "--approve-group=system:bootstrappers:etcd=client:app,m1.example.com";
    let bounds = ["--certificates-per-name=4", "--cluster=kube-system/etcd", clients];
    let signer = Signer::started(&[&HOSTS[..], &bounds].concat()).await;
    let admin = signer.kubeconfig("admin.kubeconfig", ADMIN);

    // The token that m1 had its first certificate by takes its fill of m1's name.
    let m1 = issued(&signer, "m1", Role::Peer, "m1", "127.0.1.1");
    for n in 1..4 {
        issued(&signer, &format!("m1-{n}"), Role::Peer, "m1", "127.0.1.1");
    }
    let (full, _) = ask(&signer, "m1-more", Role::Peer, "m1", "127.0.1.1");
    assert_status(&full, 429, "user/bootstrap has 4 valid certificates of system:etcd-peer:m1");
    assert_status(&full, 429, "`--user system:etcd-peer:m1`, those in use too");
    // That is the token's bound and not the host's.
    for n in 0..4 {
        renew(&signer, &m1, &format!("m1-renewal-{n}"), Role::Peer, "m1", "127.0.1.1");
    }

    // A client that is spelled like a host takes nothing from the host's server.
    for n in 0..4 {
        issued(&signer, &format!("client-{n}"), Role::Client, "m1.example.com", "");
    }
    assert_status(&ask(&signer, "client-more", Role::Client, "m1.example.com", "").0, 429, "--certificates-per-name");
    issued(&signer, "server", Role::Server, "m1.example.com", "127.0.1.2");

    // A revoked certificate fills no place.
    for n in 0..4 {
        issued(&signer, &format!("app-{n}"), Role::Client, "app", "");
    }
    assert_status(&ask(&signer, "app-more", Role::Client, "app", "").0, 429, "revoke");
    let said = revoke(&admin, &["--user", "app"]).expect("revoked");
    assert!(said.contains("4 certificates"), "{said}");
    issued(&signer, "app-again", Role::Client, "app", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_revocable_after_its_token_took_its_fill() {
    let clients = "--approve-group=system:bootstrappers:etcd=client:app";
    let bounds = ["--certificates-per-user=12", "--cluster=kube-system/etcd", clients];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds].concat()).await;
    let admin = signer.kubeconfig("admin.kubeconfig", ADMIN);
    let m1 = issued(&signer, "m1", Role::Peer, "m1", "127.0.1.1");
    let app = issued(&signer, "app", Role::Client, "app", "");
    let mut taken = 1;
    let full = loop {
        let host = format!("z{taken}");
        let (answer, issued) = ask(&signer, &host, Role::Server, &host, &format!("127.0.2.{taken}"));
        if issued.is_none() {
            break answer;
        }
        taken += 1;
        assert!(taken < 50, "no bound");
    };
    assert_eq!(taken, 12);
    assert_status(&full, 429, "user/bootstrap has 12 valid certificates");
    assert_status(&full, 429, "--certificates-per-user");
    renew(&signer, &m1, "m1-renewal", Role::Server, "m1", "127.0.1.1");

    // By its serial number, which the log tells, and by its user.
    let chain = Chain::parse(app.0.as_bytes()).expect("a chain");
    let log = signer.process().log();
    let line = log.lines().find(|line| line.contains(&chain.serial)).unwrap_or_else(|| panic!("{}", chain.serial));
    assert!(line.contains("serial") && line.contains("not_after") && line.contains("app"), "{line}");
    let said = revoke(&admin, &["--user", "app"]).expect("revoked");
    assert!(said.contains("client: user app is revoked until") && said.contains("1 certificate"), "{said}");
    let listed = revoke(&admin, &["--list"]).expect("lists");
    assert!(listed.lines().any(|line| line.starts_with(&chain.serial)), "{listed}");
    issued(&signer, "app-again", Role::Client, "app", "");
}

/// Each would be signed and refused again four times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_pod_beyond_its_bound_wait_quietly() {
    let mut signer = Signer::new(&["--cluster=kube-system/etcd", "--certificates-per-name=2"]);
    let pods = signer.dir.dir("pods");
    signer.arguments.push(format!("--pods={}", pods.display()));
    let uid = "11111111-2222-3333-4444-555555555555";
    let extra = [("pod-name", "etcd-0"), ("pod-uid", uid), ("node-name", "n1"), ("credential-id", "JTI=1")];
    let extra = extra.map(|(key, value)| format!("authentication.kubernetes.io/{key}={value}")).join(",");
    let groups = "system:serviceaccounts,system:serviceaccounts:kube-system,system:authenticated";
    let tokens = std::fs::read_to_string(signer.dir.join("tokens")).expect("tokens");
    let row = format!("{POD},system:serviceaccount:kube-system:etcd,5,\"{groups}\",\"{extra}\"\n");
    signer.dir.write("tokens", tokens + &row);
    let dir = signer.dir.path().to_owned();
    let describe = |ips: Value| {
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace",
              "metadata": { "name": "kube-system", "labels": { names::LABEL: names::DYNAMIC } } },
            { "apiVersion": "v1", "kind": "Pod",
              "metadata": { "name": "etcd-0", "namespace": "kube-system", "uid": uid,
                            "annotations": { "etcd-tls.dev/roles": "server" } },
              "spec": { "nodeName": "n1", "serviceAccountName": "etcd", "containers": [{ "name": "etcd" }] },
              "status": { "phase": "Running", "podIPs": ips } },
        ] });
        std::fs::write(dir.join("new"), objects.to_string()).expect("written");
        std::fs::rename(dir.join("new"), dir.join("pods/all.json")).expect("renamed");
    };
    describe(json!([]));
    signer.start().await;
    let names: Vec<String> = (0..30)
        .map(|_| {
            let (mut object, _) = request("x", Role::Server, "etcd-0", &sans(&["localhost"], &[]));
            let pem = STANDARD.decode(object["spec"]["request"].as_str().expect("a request")).expect("base64");
            let digest = Request::parse(&pem).expect("a request").key_digest();
            let name = names::csr_name(uid, Role::Server, &digest);
            object["metadata"]["name"] = json!(name);
            let (code, object) = signer.ask("POST", V1, POD, &object);
            assert!(code == 201 && object["status"]["conditions"].is_null(), "{object}");
            name
        })
        .collect();
    let issued = || {
        let all = names.iter().map(|name| signer.ask("GET", &format!("{V1}/{name}"), ADMIN, &Value::Null).1);
        all.filter(|object| certificate(object).is_some()).count()
    };
    let warnings = || {
        let log = signer.process.as_ref().expect("started").log();
        log.lines().filter(|line| line.contains("could not be decided on")).count()
    };
    describe(json!([{ "ip": "10.0.0.7" }]));
    eventually("two are issued and the third is refused", LIMIT, || async {
        let now = (issued(), warnings());
        if now == (2, 1) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!((issued(), warnings()), (2, 1), "said once");
    // The others wait for a place, and take it.
    let admin = signer.kubeconfig("admin.kubeconfig", ADMIN);
    revoke(&admin, &["--user", "system:etcd-server:etcd-0"]).expect("revoked");
    eventually("two more are issued", LIMIT, || async {
        let now = issued();
        if now == 4 { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}
