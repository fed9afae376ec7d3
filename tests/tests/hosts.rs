//! The sidecar on hosts, by its real binary: a real etcd bootstrapped from a token, certificates asked for once, members
//! that are known beforehand, and a host that is handed over to the signer in the cluster.

#[path = "hosts/page.rs"]
mod page;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv6Addr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr::PrivateKey,
    role::Role,
};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::ConfigMap};
use kube::{Api, api::ListParams};
use serde_json::Value;
use tests::{
    etcd::{EtcdCluster, Member},
    etcd_client::{served_serial, takes},
    etcd_supervisor::EtcdSupervisor,
    eventually,
    installation::{Installation, Options as InstallationOptions},
    pki::LeafOptions,
    process::{Process, binary, run, which},
    signer::{ADMIN, BOOTSTRAP, LIMIT, Signer, mode, sans, sidecar},
    temp::TempDir,
    tier,
};

/// The life of a certificate.
const LIFE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_bootstrapped_from_a_token_and_renewed_while_the_signer_is_killed() {
    let Some(etcd) = tier::etcd() else { return };
    let mut signer = Signer::of_hosts(LIFE).await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let mut cluster = signer.etcd(EtcdCluster::new(&etcd, 3));
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
    // Beside a sidecar that works on the directory `request` asks for nothing, and leaves all else that it leaves.
    let (dir, kubeconfig) = (signer.dir.join("etcd-0"), signer.dir.join("beside.kubeconfig"));
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--roles=peer", "--commonname=system:etcd-peer:etcd-0", "--ipaddrs=127.0.0.2,127.0.0.1"]);
    command.arg("--assetsdir").arg(&dir).arg("--kubeconfig").arg(&kubeconfig);
    run(command.arg("--bootstrap-kubeconfig").arg(&bootstrap));
    assert!(dir.join("system:etcd-peer:etcd-0.crt").exists() && dir.join("system:etcd-peer:etcd-0.key").exists());
    assert_eq!(mode(&kubeconfig), 0o600);

    // Without its token the bootstrap user can get nothing more: the certificates themselves renew.
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

/// All on one address of IPv6, the signer too: etcd holds a peer's certificate against the address that it comes from, and
/// each sidecar finds its own etcd by the ports that it listens on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_on_ipv6_take_each_other_and_are_restarted_for_their_ca() {
    let Some(etcd) = tier::etcd() else { return };
    if let Err(error) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        tier::skip_special(&format!("no ::1: {error}"), "sysctl -w net.ipv6.conf.lo.disable_ipv6=0");
        return;
    }
    let signer = Signer::of_hosts_at(Ipv6Addr::LOCALHOST.into(), LIFE).await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let bundle = signer.dir.write("trust/ca.crt", &signer.ca.pem);
    let mut cluster = signer.etcd(EtcdCluster::at(&etcd, [Ipv6Addr::LOCALHOST.into(); 3]));
    let arguments = |address: &str, member: &Member| {
        [
            format!("--ipaddrs={address}"),
            format!("--client-url={}", member.client_url()),
            format!("--peer-url={}", member.peer_url()),
            format!("--cacrt={}", bundle.display()),
            "--can-signal".to_owned(),
            "--restart-pace=1s".to_owned(),
        ]
    };
    let sidecars: Vec<_> = ["::1", "[::1]", "0:0:0:0:0:0:0:1"]
        .iter()
        .zip(&cluster.members)
        .map(|(address, member)| sidecar(&signer, &member.name, &bootstrap, &arguments(address, member)))
        .collect();
    for (member, sidecar) in cluster.members.iter().zip(&sidecars) {
        for role in ["peer", "server"] {
            let file = signer.dir.join(&member.name).join(role).join("tls.crt");
            let chain = eventually("the first certificates", LIMIT, || async {
                Chain::parse(&fs::read(&file).map_err(|_| sidecar.log_end())?).map_err(|e| e.to_string())
            })
            .await;
            let expected =
                if role == "peer" { sans(&[], &["::1"]) } else { sans(&["localhost"], &["127.0.0.1", "::1"]) };
            assert_eq!(chain.sans, expected, "{}, {role}", member.name);
        }
    }
    cluster.start().await;
    // It is this address that a peer's certificate is held against.
    for (address, taken) in [("::1", true), ("127.0.0.1", false)] {
        let dir = signer.dir.join(format!("of-{}", address.replace(':', "-")));
        signer.ca.write_role(
            &dir,
            &LeafOptions { dns: vec![], ips: vec![address.parse().expect("an address")], ..LeafOptions::default() },
        );
        for member in &cluster.members {
            assert_eq!(takes(&member.peer_url(), &dir).await, taken, "{address} at {}", member.name);
        }
    }

    let assets = signer.dir.join("assets");
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--ipaddrs=::1", "--commonname=system:etcd-peer:etcd1", "--orgname=system:etcd-peers"]);
    command.arg("--assetsdir").arg(&assets).arg("--kubeconfig").arg(&bootstrap);
    run(&mut command);
    let chain = fs::read(assets.join("system:etcd-peer:etcd1.crt")).expect("a certificate");
    assert_eq!(Chain::parse(&chain).expect("a chain").sans, sans(&[], &["::1"]));

    let supervisor = EtcdSupervisor::new(cluster);
    let renewed = signer.dir.write("trust/new", signer.ca.renewed());
    fs::rename(renewed, &bundle).expect("rename");
    eventually("each etcd is restarted for the CA's new certificate", LIMIT, || async {
        let ends: BTreeSet<_> = supervisor.ends().into_iter().map(|(i, _)| i).collect();
        if ends.len() == 3 { Ok(()) } else { Err(format!("{ends:?}")) }
    })
    .await;
    for i in 0..3 {
        eventually("it is back", LIMIT, || supervisor.with(|c| c.members[i].healthy_now())).await;
    }
    assert_eq!((supervisor.ends().len(), supervisor.most_away()), (3, 1));
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
    // A request that needs a person waits, and says so in time. etcd starts with the certificate that lacks the name.
    let output = ask("other.example.com").output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("neither approved and signed nor denied yet"), "{text}");
    assert!(text.contains("the certificate on disk stays in use"), "{text}");
    let again = Chain::parse(&fs::read(assets.join(format!("{cn}.crt"))).expect("still there")).expect("a chain");
    assert_eq!(again.serial, chain.serial, "the good one stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_handed_over_to_the_signer_in_the_cluster_and_its_etcd_stays_up() {
    let Some(etcd) = tier::etcd() else { return };
    let Some(installation) = Installation::start(&InstallationOptions::default()).await else { return };
    let api = &installation.api;
    let mut signer = Signer::of_hosts(LIFE).await;
    let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
    let mut cluster = signer.etcd(EtcdCluster::new(&etcd, 1));
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

    // A mirror of the host's static pod makes nobody a CA for its cluster, which has one: seen before the pod whose trust is
    // published.
    let mirror = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd-cp-1", "namespace": "kube-system",
        "labels": {"etcd-tls": "dynamic"}, "annotations": {"kubernetes.io/config.mirror": "digest"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "etcd", "image": "etcd"}]}}"#;
    api.apply(mirror);
    api.namespace("later", &[]).await;
    api.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd", "namespace": "later",
        "labels": {"etcd-tls": "dynamic"}}, "spec": {"containers": [{"name": "etcd", "image": "etcd"}]}}"#,
    );
    let later = Api::<ConfigMap>::namespaced(api.client.clone(), "later");
    eventually("trust of the pod's cluster", LIMIT, || async {
        later.get("etcd-tls-trust-etcd").await.map(drop).map_err(|e| e.to_string())
    })
    .await;

    // The cluster gets the host's policy entry and its CA, and accepts its certificates as credentials.
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
    let publishes = Api::<ConfigMap>::namespaced(api.client.clone(), "kube-system");
    let published = eventually("trust of a cluster that no pod belongs to", LIMIT, || async {
        let found = publishes.get("etcd-tls-trust-etcd").await.map_err(|e| e.to_string())?;
        let data = found.data.unwrap_or_default();
        data.get("peer.crt").cloned().ok_or_else(|| format!("{data:?}"))
    })
    .await;
    assert!(Bundle::parse(published.as_bytes()) == Bundle::parse(signer.ca.pem.as_bytes()), "{published}");

    // The host gets the new server to ask; its present certificate is its credential there, too.
    let text = fs::read_to_string(&bootstrap).expect("read");
    let old = format!("https://127.0.0.1:{}", signer.port);
    let text =
        text.replace(&old, &api.url).replace(&STANDARD.encode(&signer.serving.pem), &STANDARD.encode(&api.ca.pem));
    fs::write(&bootstrap, text).expect("write");
    running.terminate(LIMIT).await;
    let running = sidecar(&signer, "etcd-0", &bootstrap, &arguments);
    signer.process().kill();
    // Without the right to read it, the host says what would help; the shipped example gives it.
    running.logged("resourceNames: [etcd-tls-trust-etcd]", LIMIT).await;
    let shipped = tests::repository().join("manifests/examples/self-hosted/rbac.yaml");
    api.apply(&fs::read_to_string(shipped).expect("read"));
    for verb in ["get", "watch"] {
        let host = ["--as=system:etcd-peer:etcd-0", "--as-group=system:etcd-peers", "-n", "kube-system"];
        let may = api.kubectl(&[&["auth", "can-i", verb, "configmaps/etcd-tls-trust-etcd"][..], &host].concat());
        assert_eq!(may.trim(), "yes", "{verb}");
    }

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
    // A directory without anything, and no --cacrt: the bundles come from the cluster.
    let anew = signer.dir.join("anew");
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--name=etcd-0", "--ipaddrs=127.0.0.2,127.0.0.1", "--roles=peer,server", "--timeout=60s"]);
    run(command.arg("--assetsdir").arg(&anew).arg("--kubeconfig").arg(&kubeconfig));
    assert_eq!(fs::read_to_string(anew.join("trust/peer.crt")).expect("fetched"), published);
    assert!(anew.join("server/tls.crt").exists());
    assert!(member.process().running());
    assert!(member.is_healthy().await);
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
    let bundle = etcd_tls_contract::certificate::Bundle::parse(&fs::read(dir.join("ca/client.crt")).expect("a file"));
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

#[test]
fn the_units_are_what_systemd_takes() {
    let Some(analyze) = which("systemd-analyze") else {
        tier::skip_special("no systemd-analyze", "apt-get install systemd");
        return;
    };
    let dir = TempDir::new("units");
    let shipped = tests::repository().join("manifests/host");
    let program = |text: String| {
        let webhook = binary("etcd-tls-webhook").display().to_string();
        let sidecar = binary("etcd-tls-sidecar").display().to_string();
        text.replace("/usr/local/bin/etcd-tls-webhook", &webhook).replace("/usr/local/bin/etcd-tls-sidecar", &sidecar)
    };
    let read = |name: &str| fs::read_to_string(shipped.join(name)).expect("a unit");
    let units = ["etcd-tls-request.service", "etcd-tls-sidecar.service", "etcd-tls-standalone.service"];
    let mut command = Command::new(analyze);
    command.args(["verify", "--man=no", "--recursive-errors=no"]);
    for unit in units {
        command.arg(dir.write(unit, program(read(unit))));
    }
    dir.dir("etcd.service.d");
    dir.write("etcd.service.d/etcd-tls.conf", read("etcd.service.d/etcd-tls.conf"));
    command.arg(dir.write("etcd.service", "[Service]\nExecStart=/bin/true\n"));
    let output = command.output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    // etcd requires the unit at each start; asked for again beside the running sidecar, it would keep etcd down.
    assert!(read("etcd-tls-request.service").contains("RemainAfterExit=yes\n"));
}
