//! Revocation at a standalone signer, by real processes: a host's etcd, its sidecar, the signer and the operator's command.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, crl::Crl, csr::PrivateKey, names, role::Role};
use serde_json::Value;
use tests::{
    etcd::EtcdCluster,
    etcd_client::{Answer, EtcdClient, answer},
    eventually,
    prompt::{Stalls, judge},
    signer::{ADMIN, BOOTSTRAP, HOSTS, LIMIT, Signer, V1, assert_status, request, revoke, sans, sidecar},
    tier,
    workload::{self, Workload},
};
use tokio::time::sleep;

const ANNA: &str = "979559840d00b75ef7f5ab92b831bf7f56fab5b8e28b60cbfbb084625aa734ac";
const OTTO: &str = "c44a030e4320f4dc39ad7a5788c099b4d7220ba2735aa897ee884f4b7edb50cd";
const TRUST: &str = "/api/v1/namespaces/kube-system/configmaps/etcd-tls-trust-etcd";

/// A signer for hosts and clients, at which anna may revoke and otto may not.
fn new_signer(more: &[&str]) -> Signer {
    let clients = "--approve-group=system:bootstrappers:etcd=client:app,other,brief";
    let mut signer = Signer::new(&[&HOSTS[..], &[clients, "--cluster=kube-system/etcd"], more].concat());
    let policy = signer.dir.write("policy.yaml", "revokers: [{username: anna, groups: [ops]}]\n");
    signer.arguments.push(format!("--policy={}", policy.display()));
    let tokens = fs::read_to_string(signer.dir.join("tokens")).expect("tokens");
    signer.dir.write("tokens", format!("{tokens}{ANNA},anna,3,ops\n{OTTO},otto,4,ops\n"));
    signer
}

/// A certificate by the bootstrap token: certificate and key.
fn issued(signer: &Signer, role: Role, host: &str, ips: &[&str]) -> (String, String) {
    let (object, key) = request(&format!("{role}-{host}"), role, host, &sans(&[], ips));
    let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
    assert_eq!(code, 201, "{object}");
    let pem = STANDARD.decode(object["status"]["certificate"].as_str().expect("issued")).expect("base64");
    (String::from_utf8(pem).expect("PEM"), key.to_pem().to_string())
}

/// The files of a client of etcd.
fn client(signer: &Signer, user: &str) -> PathBuf {
    let (chain, key) = issued(signer, Role::Client, user, &[]);
    let dir = signer.dir.dir(&format!("client-{user}"));
    for (file, text) in [(names::CERT_FILE, chain.as_str()), (names::KEY_FILE, &key), (names::CA_FILE, &signer.ca.pem)]
    {
        fs::write(dir.join(file), text).expect("written");
    }
    dir
}

async fn refused(files: &Path, url: &str) -> Result<(), String> {
    match EtcdClient::with_files(files).put(url, "k", "v").await {
        Err(_) => Ok(()),
        Ok(()) => Err("still accepted".to_owned()),
    }
}

async fn accepted(files: &Path, url: &str) -> Result<(), String> {
    EtcdClient::with_files(files).put(url, "k", "v").await.map_err(|e| e.to_string())
}

/// Revokes the certificate of `app` and takes that back, some times, while `other` works.
async fn within_seconds(kubeconfig: &Path, app: &Path, other: &Path, url: &str) {
    let serial = Chain::parse(&fs::read(app.join(names::CERT_FILE)).expect("read")).expect("a chain").serial;
    let mut options = workload::Options::new(vec![url.to_owned()], other);
    options.deadline = Duration::ZERO;
    let work = Workload::start(options);
    let (stalls, mut rounds) = (Stalls::watch(), Vec::new());
    for _ in 0..3 {
        stalls.begin();
        let start = Instant::now();
        revoke(kubeconfig, &["--serial", &serial]).expect("revoked");
        while answer(url, app).await != Answer::Refused {
            assert!(start.elapsed() < LIMIT, "still accepted");
            sleep(Duration::from_millis(10)).await;
        }
        rounds.push((start.elapsed(), stalls.longest()));
        revoke(kubeconfig, &["--serial", &serial, "--undo"]).expect("taken back");
        eventually("accepted again", LIMIT, || accepted(app, url)).await;
    }
    let report = work.stop().await.expect("read etcd");
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 5, "the client hardly worked: {report}");
    judge("a client at a host's etcd under load", &rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosts_etcd_refuses_a_revoked_client_and_the_record_outlives_the_signer() {
    let Some(etcd) = tier::etcd() else { return };
    let mut signer = new_signer(&[]);
    signer.start().await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let [anna, otto] = [("anna", ANNA), ("otto", OTTO)].map(|(name, token)| signer.kubeconfig(name, token));
    let mut cluster = signer.etcd(EtcdCluster::new(&etcd, 1));
    let member = &mut cluster.members[0];
    let dir = signer.dir.join(&member.name);
    let arguments = [
        format!("--ipaddrs={},127.0.0.1", member.address),
        format!("--client-url={}", member.client_url()),
        format!("--peer-url={}", member.peer_url()),
        "--reload=none".to_owned(),
    ];
    let _sidecar = sidecar(&signer, &member.name, &bootstrap, &arguments);
    eventually("the host's certificates", LIMIT, || async {
        if dir.join("server/tls.crt").exists() && dir.join("peer/tls.crt").exists() { Ok(()) } else { Err("not yet") }
    })
    .await;
    for (flag, role) in [("client", "server"), ("peer", "peer")] {
        let list = dir.join(role).join(names::CRL_FILE);
        member.arguments.push(format!("--{flag}-crl-file={}", list.display()));
    }
    let url = member.client_url();
    cluster.start().await;
    let (app, other) = (client(&signer, "app"), client(&signer, "other"));
    eventually("both are accepted", LIMIT, || async { accepted(&app, &url).await.and(accepted(&other, &url).await) })
        .await;

    // A caller that is not listed revokes nothing, by the command or without it; every known caller sees the list.
    let no = revoke(&otto, &["--user", "app"]).expect_err("without the right");
    assert!(no.contains("cannot revoke") && no.contains("revokers"), "{no}");
    for token in [OTTO, BOOTSTRAP] {
        let headers =
            [("Authorization", format!("Bearer {token}")), ("Content-Type", "application/merge-patch+json".to_owned())];
        let headers = headers.each_ref().map(|(key, value)| (*key, value.as_str()));
        let patch =
            br#"{"metadata":{"annotations":{"etcd-tls.dev/revoke-client-request":"force 1 unspecified user:app"}}}"#;
        for path in [TRUST.to_owned(), format!("{TRUST}?dryRun=All")] {
            assert_eq!(signer.try_ask("PATCH", &path, &headers, patch, None).expect("an answer").0, 403, "{path}");
        }
    }
    let none = revoke(&otto, &["--list"]).expect("lists");
    assert_eq!(none.matches(", 0 revoked").count(), 2, "{none}");

    within_seconds(&anna, &app, &other, &url).await;
    let said = revoke(&anna, &["--user", "app", "--reason", "keyCompromise"]).expect("revoked");
    assert!(said.contains("client: user app is revoked until") && said.contains("1 certificate"), "{said}");
    eventually("the client is refused", LIMIT, || refused(&app, &url)).await;
    accepted(&other, &url).await.expect("others go on");
    // The compromised key gets no other certificate.
    let key = PrivateKey::from_pem(&fs::read_to_string(app.join(names::KEY_FILE)).expect("read")).expect("a key");
    let (mut again, _) = request("again", Role::Client, "app", &sans(&[], &[]));
    let pem = key.request(Role::Client.organization(), "app", &sans(&[], &[])).expect("a request");
    again["spec"]["request"] = Value::from(STANDARD.encode(pem));
    let (code, again) = signer.ask("POST", V1, BOOTSTRAP, &again);
    assert!(code == 201 && again["status"]["certificate"].is_null(), "{again}");
    assert!(again["status"]["conditions"].to_string().contains("compromised"), "{again}");
    // The signer itself takes it no more, and tells who may revoke what was answered; others not.
    let leaf = ["tls.crt", "tls.key"].map(|file| fs::read_to_string(app.join(file)).expect("read"));
    let (code, body) = signer.try_ask("GET", V1, &[], b"", Some((&leaf[0], &leaf[1]))).expect("an answer");
    assert_status(&(code, serde_json::from_str(&body).expect("JSON")), 401, "is revoked");
    let answers = |token| {
        let (_, object): (u16, Value) = signer.ask("GET", TRUST, token, &Value::Null);
        object["metadata"]["annotations"].as_object().expect("annotations").len()
    };
    assert_eq!((answers(ADMIN), answers(ANNA), answers(BOOTSTRAP)), (3, 3, 1));

    // Killed at once after another revocation: nothing of it is lost, and neither is the record of what is valid.
    let unknown = ["--serial", "4F:0A:11", "--reason", "superseded", "--force"];
    let said = revoke(&anna, &unknown).expect("revoked");
    assert!(said.contains("peer: 4f0a11 is revoked until"), "{said}");
    signer.process().kill();
    signer.arguments.push("--clientcertdur=20s".to_owned());
    signer.start().await;
    let listed = revoke(&otto, &["--list"]).expect("lists");
    assert!(listed.contains("client: list") && listed.contains(", 2 revoked"), "{listed}");
    assert_eq!(listed.lines().filter(|line| line.starts_with("4f0a11 ") && line.ends_with("superseded")).count(), 2);
    refused(&app, &url).await.expect("still refused");
    let nobody = revoke(&anna, &["--user", "nobody"]).expect_err("no certificate");
    assert!(nobody.contains("there is no certificate of user nobody"), "{nobody}");
    let cut = revoke(&anna, &["--user", "other", "--cut"]).expect_err("for pods");
    assert!(cut.contains("Restart their etcd"), "{cut}");
    let pod = revoke(&anna, &["--pod", "other"]).expect_err("for pods");
    assert!(pod.contains("--serial or --user"), "{pod}");

    // An entry leaves with its certificate's end.
    for attempt in 0.. {
        let (object, _) = request(&format!("brief-{attempt}"), Role::Client, "brief", &sans(&[], &[]));
        assert_eq!(signer.ask("POST", V1, BOOTSTRAP, &object).0, 201);
        match revoke(&anna, &["--user", "brief"]) {
            Ok(said) => {
                assert!(
                    said.contains("client: user brief is revoked until") && said.contains("1 certificate"),
                    "{said}"
                );
                break;
            }
            // On a day so slow that it has ended meanwhile.
            Err(ended) => assert!(attempt < 5 && ended.contains("there is no certificate of user brief"), "{ended}"),
        }
    }
    revoke(&anna, &["--user", "app", "--undo"]).expect("taken back");
    eventually("accepted again", LIMIT, || accepted(&app, &url)).await;
    accepted(&other, &url).await.expect("others go on");
    assert!(cluster.members[0].process().running(), "etcd was not restarted");
}

/// The members are the hosts that hold peer certificates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_leaves_no_quorum_of_hosts_needs_force() {
    let mut signer = new_signer(&[]);
    signer.start().await;
    let anna = signer.kubeconfig("anna", ANNA);
    for number in 1..4 {
        drop(issued(&signer, Role::Peer, &format!("m{number}"), &[&format!("127.0.0.2{number}")]));
    }
    revoke(&anna, &["--user", "system:etcd-peer:m1"]).expect("two of three stand");
    let refused = revoke(&anna, &["--user", "system:etcd-peer:m2"]).expect_err("one of three");
    assert!(refused.contains("1 of 3 members of kube-system/etcd") && refused.contains("--force"), "{refused}");
    let done = revoke(&anna, &["--user", "system:etcd-peer:m2", "--force"]).expect("forced");
    assert!(done.contains("peer: user system:etcd-peer:m2 is revoked until"), "{done}");
}

fn peer(signer: &Signer, name: &str, host: &str, ip: &str, cluster: &str) -> String {
    let (mut object, _) = request(name, Role::Peer, host, &sans(&[], &[ip]));
    object["spec"]["signerName"] = Value::from(format!("peer.etcd-tls.dev/kube-system.{cluster}"));
    let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
    assert_eq!(code, 201, "{object}");
    let pem = STANDARD.decode(object["status"]["certificate"].as_str().expect("issued")).expect("base64");
    Chain::parse(&pem).expect("a chain").serial
}

/// As with a `--csrdir` of before there was a record, or one that was moved away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serial_number_that_the_record_lacks_needs_force() {
    let mut signer = new_signer(&[]);
    signer.start().await;
    let anna = signer.kubeconfig("anna", ANNA);
    let lost: Vec<String> =
        (1..4).map(|n| peer(&signer, &format!("m{n}"), &format!("m{n}"), &format!("127.0.0.2{n}"), "etcd")).collect();
    signer.process().kill();
    fs::rename(signer.dir.join("csrs"), signer.dir.join("moved")).expect("moved");
    signer.start().await;
    let refused = revoke(&anna, &["--serial", &lost[0]]).expect_err("nothing tells whose it is");
    assert!(refused.contains("the record lacks this serial number") && refused.contains("--force"), "{refused}");
    assert!(refused.contains("no members are known"), "{refused}");
    assert!(refused.contains("client: refused: nothing is changed"), "{refused}");
    let listed = revoke(&anna, &["--list"]).expect("lists");
    assert_eq!(listed.matches(", 0 revoked").count(), 2, "{listed}");
    // A recorded peer is named beside it, and a client's serial number is no peer's.
    peer(&signer, "m4", "m4", "127.0.0.24", "etcd");
    let refused = revoke(&anna, &["--serial", &lost[1]]).expect_err("nothing tells whose it is");
    assert!(refused.contains("members counted: m4 (kube-system/etcd)"), "{refused}");
    let (chain, _) = issued(&signer, Role::Client, "app", &[]);
    let app = Chain::parse(chain.as_bytes()).expect("a chain").serial;
    revoke(&anna, &["--serial", &app]).expect("a client's");
    let done = revoke(&anna, &["--serial", &lost[1], "--force"]).expect("forced");
    assert!(done.contains("is revoked until") && done.contains("members counted: m4 (kube-system/etcd)"), "{done}");
    revoke(&anna, &["--serial", &lost[1]]).expect("it is revoked already");
    revoke(&anna, &["--serial", &lost[1], "--undo"]).expect("taken back");
}

/// Several etcds on each host, by one signer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_counts_in_each_of_its_clusters_by_its_certificate_of_that_cluster() {
    let mut signer = new_signer(&[]);
    signer.arguments.retain(|argument| !argument.starts_with("--cluster="));
    signer.start().await;
    let anna = signer.kubeconfig("anna", ANNA);
    let mut main = Vec::new();
    for n in 1..4 {
        let (host, ip) = (format!("m{n}"), format!("127.0.0.2{n}"));
        main.push(peer(&signer, &format!("{host}-main"), &host, &ip, "etcd"));
    }
    for n in 1..4 {
        let (host, ip) = (format!("m{n}"), format!("127.0.0.2{n}"));
        peer(&signer, &format!("{host}-events"), &host, &ip, "events");
    }
    let done = revoke(&anna, &["--serial", &main[0]]).expect("two of three stand");
    assert!(done.contains("members counted: m1, m2, m3 (kube-system/etcd)"), "{done}");
    let refused = revoke(&anna, &["--serial", &main[1]]).expect_err("one of three");
    assert!(refused.contains("1 of 3 members of kube-system/etcd") && refused.contains("--force"), "{refused}");
}

/// Both bring their own bundles. The lists come from the signer nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_with_bundles_of_their_own_have_the_lists() {
    let mut signer = new_signer(&[]);
    signer.start().await;
    let anna = signer.kubeconfig("anna", ANNA);
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let bundle = signer.dir.write("bundle.crt", &signer.ca.pem);
    let trust = signer.dir.dir("trust");
    for file in ["peer.crt", "client.crt"] {
        fs::write(trust.join(file), &signer.ca.pem).expect("written");
    }
    let of = [format!("--cacrt={}", bundle.display()), format!("--trust-dir={}", trust.display())];
    let mut sidecars = Vec::new();
    for (n, flag) in of.into_iter().enumerate() {
        let url = |port: u16| format!("https://127.0.0.{}:{port}", 31 + n);
        let arguments = [
            format!("--ipaddrs=127.0.0.{}", 31 + n),
            format!("--client-url={}", url(2379)),
            format!("--peer-url={}", url(2380)),
            "--reload=none".to_owned(),
            flag,
        ];
        sidecars.push(sidecar(&signer, &format!("h{n}"), &bootstrap, &arguments));
    }
    let has = |serials: &'static [&str]| {
        let dirs = ["h0/peer", "h0/server", "h1/peer", "h1/server"].map(|dir| signer.dir.join(dir));
        async move {
            for dir in dirs {
                eventually("the list on disk", LIMIT, || async {
                    let file = dir.join(names::CRL_FILE);
                    let der = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                    let list = Crl::parse(&der).map_err(|error| error.to_string())?;
                    // A stand-in, before there is a list, has no number.
                    let there = list.number() > 1 && list.entries().keys().eq(serials);
                    if there { Ok(()) } else { Err(format!("{}: {list:?}", file.display())) }
                })
                .await;
            }
        }
    };
    has(&[]).await;
    revoke(&anna, &["--serial", "4f0a", "--force"]).expect("revoked");
    has(&["4f0a"]).await;
    revoke(&anna, &["--serial", "4f0a", "--undo"]).expect("taken back");
    has(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_certificate_is_revoked_waits_for_a_person_by_its_token() {
    let mut signer = new_signer(&[]);
    signer.start().await;
    let anna = signer.kubeconfig("anna", ANNA);
    let first = issued(&signer, Role::Peer, "m1", &["127.0.0.21"]);
    let by_certificate = |name: &str, leaf: &(String, String)| {
        let (object, key) = request(name, Role::Peer, "m1", &sans(&[], &["127.0.0.21"]));
        let headers = [("Content-Type", "application/json")];
        let leaf = Some((leaf.0.as_str(), leaf.1.as_str()));
        let (code, body) =
            signer.try_ask("POST", V1, &headers, object.to_string().as_bytes(), leaf).expect("an answer");
        (code, serde_json::from_str::<Value>(&body).expect("JSON"), key)
    };
    // From its first renewal on, its names are its own.
    let (code, object, key) = by_certificate("renewal", &first);
    assert_eq!(code, 201, "{object}");
    let pem = STANDARD.decode(object["status"]["certificate"].as_str().expect("issued")).expect("base64");
    let second = (String::from_utf8(pem).expect("PEM"), key.to_pem().to_string());
    revoke(&anna, &["--user", "system:etcd-peer:m1", "--force"]).expect("revoked");
    for (name, leaf) in [("by-first", &first), ("by-second", &second)] {
        let (code, object, _) = by_certificate(name, leaf);
        assert_status(&(code, object), 401, "is revoked");
    }
    let (object, _) = request("by-token", Role::Peer, "m1", &sans(&[], &["127.0.0.21"]));
    let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
    assert!(code == 201 && object["status"]["certificate"].is_null(), "{object}");
    assert!(object["status"]["conditions"].is_null(), "nobody has decided: {object}");
    // Another host of the token goes on.
    issued(&signer, Role::Peer, "m2", &["127.0.0.22"]);
}
