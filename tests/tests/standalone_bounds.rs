//! The bounds of the certificates that a caller may hold at a standalone signer: nobody fills another's place, and each
//! certificate can be revoked. By real processes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, csr::Request, names, role::Role};
use serde_json::{Value, json};
use tests::{
    eventually,
    pki::LeafOptions,
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

/// A host asks by its certificate: the answer, and certificate and key where they were issued.
fn try_renew(
    signer: &Signer,
    leaf: &(String, String),
    name: &str,
    role: Role,
    host: &str,
    ip: &str,
) -> ((u16, Value), Option<(String, String)>) {
    let (object, key) = request(name, role, host, &sans(&[], &[ip]));
    let headers = [("Content-Type", "application/json")];
    let body = object.to_string();
    let (code, body) =
        signer.try_ask("POST", V1, &headers, body.as_bytes(), Some((&leaf.0, &leaf.1))).expect("an answer");
    let object: Value = serde_json::from_str(&body).expect("JSON");
    let issued = certificate(&object).map(|pem| (pem, key.to_pem().to_string()));
    ((code, object), issued)
}

/// A host renews by its certificate.
fn renew(signer: &Signer, leaf: &(String, String), name: &str, role: Role, host: &str, ip: &str) -> (String, String) {
    let ((code, object), issued) = try_renew(signer, leaf, name, role, host, ip);
    assert_eq!(code, 201, "{object}");
    issued.unwrap_or_else(|| panic!("{object}"))
}

/// A person approves a request: its certificate, or the answer.
fn approve(signer: &Signer, name: &str) -> Result<String, String> {
    let approval = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
    let authorization = format!("Bearer {ADMIN}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/merge-patch+json")];
    let path = format!("{V1}/{name}/approval");
    let (code, body) =
        signer.try_ask("PATCH", &path, &headers, approval.to_string().as_bytes(), None).expect("an answer");
    let object: Value = serde_json::from_str(&body).expect("JSON");
    certificate(&object).filter(|_| code == 200).ok_or(body)
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

/// A thief has the bootstrap token before the host renews for the first time, and later an old certificate of the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_renews_whatever_a_thief_took_by_its_token_or_an_old_certificate() {
    let bounds = ["--certificates-per-name=4", "--certificates-per-user=4", "--cluster=kube-system/etcd"];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds].concat()).await;
    let ip = "127.0.1.1";
    let own = issued(&signer, "m1", Role::Peer, "m1", ip);
    let stolen = issued(&signer, "m1-stolen", Role::Peer, "m1", ip);
    let fill = |signer: &Signer, leaf: &(String, String), prefix: &str| {
        let mut answers = (0..20).map(|n| try_renew(signer, leaf, &format!("{prefix}-{n}"), Role::Peer, "m1", ip).0);
        answers.find(|(code, _)| *code != 201).expect("no bound")
    };
    let full = fill(&signer, &stolen, "thief");
    assert_status(&full, 429, "valid certificates");
    let message = full.1["message"].as_str().expect("a message");
    let (serial, user) = (message.find("--serial").expect("a remedy"), message.find("--user ").expect("a remedy"));
    assert!(serial < user, "{message}");

    let second = renew(&signer, &own, "m1-second", Role::Peer, "m1", ip);
    renew(&signer, &own, "m1-server", Role::Server, "m1", ip);
    // The journal alone tells whose successor a certificate is.
    signer.process().kill();
    signer.start().await;
    let full = fill(&signer, &own, "old");
    assert_status(&full, 429, "valid certificates");
    let third = renew(&signer, &second, "m1-third", Role::Peer, "m1", ip);
    renew(&signer, &third, "m1-fourth", Role::Peer, "m1", ip);
}

/// The answer is lost, and its key with the process that made it, also where the signer was killed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_lost_an_answer_gets_another_while_its_token_is_full() {
    let bounds = ["--certificates-per-name=1", "--certificates-per-user=1", "--cluster=kube-system/etcd"];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds].concat()).await;
    let ip = "127.0.1.1";
    let own = issued(&signer, "m1", Role::Peer, "m1", ip);
    assert_status(&ask(&signer, "m2", Role::Peer, "m2", "127.0.1.2").0, 429, "--certificates-per-user");
    for role in [Role::Peer, Role::Server] {
        let lost = renew(&signer, &own, &format!("{role}-lost"), role, "m1", ip);
        signer.process().kill();
        signer.start().await;
        let again = renew(&signer, &own, &format!("{role}-again"), role, "m1", ip);
        let serial = |leaf: &(String, String)| Chain::parse(leaf.0.as_bytes()).expect("a chain").serial;
        assert_ne!(serial(&lost), serial(&again));
        let more = try_renew(&signer, &own, &format!("{role}-more"), role, "m1", ip).0;
        assert_status(&more, 429, "--certificates-per-");
        // Whichever of the two reached it: the host goes on by that one. It presents its peer certificate alone.
        if role == Role::Peer {
            for (name, leaf) in [("lost", &lost), ("again", &again)] {
                renew(&signer, leaf, &format!("{name}-peer"), Role::Peer, "m1", ip);
            }
        }
    }
    assert_status(&ask(&signer, "m3", Role::Peer, "m3", "127.0.1.3").0, 429, "--certificates-per-user");
}

/// Each invented host is a user of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_keep_no_host_from_its_renewal_and_one_tokens_leave_place_for_others() {
    let bounds = ["--max-requests=40", "--max-pending-per-user=6", "--max-requests-per-user=40", "--rate-limit=0"];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds, &["--cluster=kube-system/etcd"]].concat()).await;
    let ip = |n: usize| format!("127.0.2.{n}");
    let hosts: Vec<(String, String)> =
        (1..5).map(|n| issued(&signer, &format!("z{n}"), Role::Peer, &format!("z{n}"), &ip(n))).collect();
    // No rule gives this address: each waits for a person.
    let flood = |signer: &Signer, round: &str| {
        let mut waiting = 0;
        for (n, leaf) in hosts.iter().enumerate() {
            for k in 0..4 {
                let host = format!("z{}", n + 1);
                let name = format!("{host}-{round}-{k}");
                match try_renew(signer, leaf, &name, Role::Peer, &host, "192.0.2.1").0 {
                    (201, object) => {
                        assert!(certificate(&object).is_none(), "{object}");
                        waiting += 1;
                    }
                    refused => {
                        assert_status(&refused, 429, "user/bootstrap and the hosts that have their certificates")
                    }
                }
            }
        }
        waiting
    };
    assert_eq!(flood(&signer, "first"), 6, "as many as the token itself may have");
    signer.process().kill();
    signer.start().await;
    assert_eq!(flood(&signer, "again"), 0, "a restart forgets nothing");
    assert_status(&ask(&signer, "by-token", Role::Peer, "new", "192.0.2.2").0, 429, "user/bootstrap and the hosts");
    // One that is decided on waits no more.
    approve(&signer, "z1-first-0").expect("approved");
    assert_eq!(flood(&signer, "third"), 1);

    // Others have place, until all of it is taken.
    let mut full = None;
    'fill: for user in 0..40 {
        let leaf = signer.ca.leaf(&LeafOptions {
            organizations: vec!["system:etcd-peers".to_owned()],
            common_name: format!("system:etcd-peer:other{user}"),
            ..LeafOptions::default()
        });
        for k in 0..6 {
            let name = format!("other{user}-{k}");
            let leaf = (leaf.cert.clone(), leaf.key.clone());
            let (answer, _) = try_renew(&signer, &leaf, &name, Role::Peer, &format!("other{user}"), "192.0.2.3");
            if answer.0 != 201 {
                full = Some(answer);
                break 'fill;
            }
        }
    }
    assert_status(&full.expect("no bound"), 429, "40 requests are stored, which is the limit");
    renew(&signer, &hosts[1], "z2-renewal", Role::Peer, "z2", &ip(2));
    renew(&signer, &hosts[1], "z2-server", Role::Server, "z2", &ip(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_does_not_fill_the_record_by_hosts_that_it_invents() {
    let bounds = ["--certificates-per-name=4", "--certificates-per-user=4", "--max-certificates=60"];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds, &["--cluster=kube-system/etcd"]].concat()).await;
    let ip = |n: usize| format!("127.0.2.{n}");
    let hosts: Vec<(String, String)> =
        (1..5).map(|n| issued(&signer, &format!("z{n}"), Role::Peer, &format!("z{n}"), &ip(n))).collect();
    let mut taken = 0;
    for (n, first) in hosts.into_iter().enumerate() {
        let host = format!("z{}", n + 1);
        // By each certificate that it gets, as often as that helps.
        let (mut own, mut by) = (vec![first], 0);
        while by < own.len() {
            let name = format!("{host}-{}-{by}", own.len());
            let (answer, issued) = try_renew(&signer, &own[by], &name, Role::Peer, &host, &ip(n + 1));
            if let Some(issued) = issued {
                own.push(issued);
            } else {
                assert_status(&answer, 429, "--certificates-per-");
                by += 1;
            }
        }
        taken += own.len();
        if n == 1 {
            signer.process().kill();
            signer.start().await;
        }
    }
    assert_eq!(taken, 40, "each has ten, by renewals alone");
    assert_status(&ask(&signer, "z5", Role::Peer, "z5", "127.0.2.5").0, 429, "--certificates-per-user");
    // Another caller's place is free, and so is that of a host that a person approves.
    let (answer, waits) = ask(&signer, "new", Role::Peer, "new", "10.0.0.9");
    assert!(answer.0 == 201 && waits.is_none(), "{}", answer.1);
    approve(&signer, "new").expect("its token is full, and a person approves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_record_loses_no_certificate_and_has_place_for_renewals_and_approvals() {
    let clients = "--approve-group=system:bootstrappers:etcd=client:app,other";
    let bounds = ["--certificates-per-name=8", "--certificates-per-user=8", "--max-certificates=8"];
    let more = [clients, "--cluster=kube-system/etcd"];
    let mut signer = Signer::started(&[&HOSTS[..], &bounds, &more].concat()).await;
    let admin = signer.kubeconfig("admin.kubeconfig", ADMIN);
    issued(&signer, "app", Role::Client, "app", "");
    let hosts: Vec<(String, String)> = (1..6)
        .map(|n| {
            issued(&signer, &format!("s{n}"), Role::Server, &format!("s{n}"), &format!("127.0.3.{n}"));
            issued(&signer, &format!("p{n}"), Role::Peer, &format!("s{n}"), &format!("127.0.3.{n}"))
        })
        .collect();
    let full = ask(&signer, "s6", Role::Server, "s6", "127.0.3.6").0;
    assert_status(&full, 429, "6 are the limit for a new host or client that no person approves");
    assert_status(&ask(&signer, "other", Role::Client, "other", "").0, 429, "--max-certificates");
    // A recorded host gets another one, and keeps the first.
    issued(&signer, "app-again", Role::Client, "app", "");
    renew(&signer, &hosts[0], "s1-renewal", Role::Server, "s1", "127.0.3.1");
    let (object, _) = request("by-hand", Role::Server, "s7", &sans(&[], &["10.0.0.9"]));
    assert_eq!(signer.ask("POST", V1, ADMIN, &object).0, 201);
    let refused = approve(&signer, "by-hand").expect_err("8 of 8");
    assert!(refused.contains("8 are the limit for a new host or client (--max-certificates)"), "{refused}");
    signer.process().kill();
    signer.start().await;
    let said = revoke(&admin, &["--user", "app"]).expect("revoked");
    assert!(said.contains("2 certificates"), "{said}");
    approve(&signer, "by-hand").expect("revoked certificates fill no place");
}

#[test]
fn bounds_beyond_the_record_are_refused() {
    for (flags, message) in [
        (&["--certificates-per-name=9", "--max-certificates=8"][..], "--certificates-per-name=9 is more than"),
        (&["--certificates-per-name=1", "--certificates-per-user=9", "--max-certificates=8"], "-user=9 is more than"),
        (&["--certificates-per-user=20000"], "--max-certificates=16384"),
        (&["--max-certificates=1000001"], "from 1 to 1000000"),
        (&["--certificates-per-name=0"], "from 1 to 1000000"),
    ] {
        let signer = Signer::new(flags);
        let output = signer.command(&signer.dir.join("csrs"), signer.port).output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(message), "{flags:?}: {said}");
    }
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
