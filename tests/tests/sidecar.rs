//! The sidecar's binary: first certificates, crashes at any instant, renewals, outages; against a stand-in for the API
//! server that counts, and against a real one.

#[path = "sidecar/pod.rs"]
mod pod;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use etcd_tls_contract::{
    certificate::Bundle,
    role::{Domain, Role},
};
use k8s_openapi::{
    api::{
        certificates::v1::CertificateSigningRequest,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tests::{
    apiserver::{ApiServer, from_json},
    csr_server::{CsrServer, authority},
    etcd::{EtcdCluster, MemberTls},
    eventually,
};

use pod::{Pod, get, set_of};

const LIMIT: Duration = Duration::from_secs(30);

/// kill -9 at instants all over a rotation, `ETCD_TLS_TEST_KILLS` times (200); after each the directory is one whole verified set, and at
/// the end one more run puts everything right and leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_one_whole_set() {
    let kills: u32 = std::env::var("ETCD_TLS_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let mut pod = Pod::new(&server);
    let certs = pod.dir.join("certs");
    pod.init().await;
    // How long a rotation takes here and now, steered so that three of four kills fall into one: the rest show that it ends.
    let began = Instant::now();
    pod.move_to("10.0.0.1");
    pod.init().await;
    let mut whole = began.elapsed();
    let (mut killed, mut finished) = (0, 0);
    let mut seen = set_of(&certs).expect("a whole set");
    let mut changes = 0;
    for round in 0..kills {
        // Another address each time: the certificates on disk lack it, so that each run rotates.
        pod.move_to(&format!("10.0.{}.{}", round / 250 + 1, round % 250 + 1));
        let mut init = pod.start("init", &[]);
        tokio::time::sleep(whole.mul_f64(f64::from(round * 37 % 97) / 97.0 * 1.2)).await;
        if let Some(status) = init.exited() {
            assert!(status.success(), "round {round}: {status}: {}", init.log());
            finished += 1;
            whole -= whole / 20;
        } else {
            init.kill();
            killed += 1;
            whole += whole / 60;
        }
        let now = set_of(&certs).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert!(!now.is_empty(), "round {round}: the set is gone");
        changes += u32::from(now != seen);
        seen = now;
        // At most one CSR for each role and address: a killed sidecar finds its request again, or makes it for the first time.
        let most = 2 * (usize::try_from(round).expect("small") + 3);
        assert!(server.made() <= most, "round {round}: {} requests, {most} are explained", server.made());
    }
    eprintln!("{killed} killed, {finished} came to their end, {changes} sets in {:?}", began.elapsed());
    assert!(killed > kills / 2 && changes > kills / 20, "the kills did not fall into rotations");

    pod.init().await;
    set_of(&certs).expect("a whole set");
    let mut left: Vec<String> = fs::read_dir(&certs)
        .expect("list")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !["..data", "..lock", "..pending", "peer", "server"].contains(&name.as_str()))
        .collect();
    assert_eq!(left.len(), 1, "one generation: {left:?}");
    left.retain(|name| Path::new(name) != fs::read_link(certs.join("..data")).expect("a link"));
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(fs::read_dir(certs.join("..pending")).expect("list").count(), 0, "no pending key is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_files_are_not_asked_for_again() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod::new(&server);
    for _ in 0..20 {
        pod.init().await;
    }
    for _ in 0..5 {
        let (mut run, port) = pod.run(&[]);
        eventually("ready", LIMIT, || get(port, "/ready")).await;
        eventually("live", LIMIT, || get(port, "/live")).await;
        assert!(run.terminate(LIMIT).await.success());
    }
    assert_eq!(server.made(), 2, "one request a role, ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_its_pending_request() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    server.state().idle = true;
    let pod = Pod::new(&server);
    for _ in 0..10 {
        let mut init = pod.start("init", &[]);
        eventually("two requests", LIMIT, || async { if server.made() == 2 { Ok(()) } else { Err(server.made()) } })
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        init.kill();
    }
    server.state().idle = false;
    pod.init().await;
    assert_eq!(server.made(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_told_to_kubelet() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    server.state().deny = Some("127.0.0.1 is not an address of pod etcd-0".to_owned());
    let pod = Pod::new(&server);
    fs::write(pod.dir.join("termination-log"), "").expect("write");
    let mut init = pod.start("init", &[]);
    assert_eq!(init.wait(LIMIT).await.code(), Some(77), "{}", init.log());
    let message = fs::read_to_string(pod.dir.join("termination-log")).expect("read");
    assert!(message.contains("role peer: request etcd-tls-0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11-peer-"), "{message}");
    assert!(message.contains("was denied: Test: 127.0.0.1 is not an address of pod etcd-0"), "{message}");

    // The policy is mended: the next start asks anew.
    server.state().deny = None;
    pod.init().await;
    assert_eq!(server.made(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_is_away_is_a_timeout() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    server.state().idle = true;
    let pod = Pod::new(&server);
    fs::write(pod.dir.join("termination-log"), "").expect("write");
    let mut init = pod.start("init", &["--timeout=1s"]);
    assert_eq!(init.wait(LIMIT).await.code(), Some(75), "{}", init.log());
    let message = fs::read_to_string(pod.dir.join("termination-log")).expect("read");
    assert!(message.contains("no certificate within 1s"), "{message}");
    assert!(message.contains("is the signer running?"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_and_recovered_by_themselves() {
    let server = CsrServer::start(Duration::from_secs(8)).await;
    let pod = Pod::new(&server);
    pod.init().await;
    let (mut run, port) = pod.run(&[]);
    let first = (pod.serial(Role::Peer), pod.serial(Role::Server));
    eventually("both roles renewed", LIMIT, || async {
        let now = (pod.serial(Role::Peer), pod.serial(Role::Server));
        if now.0 != first.0 && now.1 != first.1 { Ok(()) } else { Err("not yet") }
    })
    .await;

    // An API server that is away until everything has expired.
    server.state().outage = Some((502, "<html>Bad Gateway</html>".to_owned(), Vec::new()));
    eventually("expired", LIMIT, || async {
        match get(port, "/ready").await {
            Err(e) if e.contains("has expired") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(get(port, "/live").await.is_ok(), "an outage is no reason to be restarted");
    let made = server.made();
    server.state().outage = None;
    eventually("ready again", LIMIT, || get(port, "/ready")).await;
    set_of(&pod.dir.join("certs")).expect("a whole set");
    assert!(server.made() <= made + 4, "no pile of requests");
    let metrics = get(port, "/metrics").await.expect("metrics");
    assert!(metrics.contains("etcd_tls_renewals_total{role=\"peer\",result=\"issued\"}"), "{metrics}");
    assert!(metrics.contains("\netcd_tls_panics_total 0\n"), "{metrics}");
    assert!(run.terminate(LIMIT).await.success(), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_taken_or_refused() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod::new(&server);
    pod.init().await;
    let (mut run, port) = pod.run(&[]);
    eventually("ready", LIMIT, || get(port, "/ready")).await;
    let trust = pod.dir.join("trust");
    let ca = pod.dir.join("certs/peer/ca.crt");
    let before = fs::read_to_string(&ca).expect("read");
    let next = authority("next peer").bundle().to_pem();
    // Nobody told it where etcd listens: that is unknown, with the reason and what to do, and not fine.
    for domain in ["peer", "client"] {
        let line = format!("etcd_tls_trust_state{{domain=\"{domain}\",state=\"unknown\",reason=\"listeners\"}} 1");
        eventually("the unknown state in the metrics", LIMIT, || async {
            let metrics = get(port, "/metrics").await?;
            if metrics.contains(&line) { Ok(()) } else { Err(metrics) }
        })
        .await;
    }
    run.logged("does not know where etcd listens; set the annotations etcd-tls.dev/client-url", LIMIT).await;
    let refused = || async {
        let metrics = get(port, "/metrics").await?;
        if metrics.contains("etcd_tls_bundle_refused{domain=\"peer\"} 1") { Ok(()) } else { Err(metrics) }
    };
    let bad = [
        ("garbage", "no PEM at all".to_owned()),
        ("empty", String::new()),
        ("huge", "x".repeat(2 * 1024 * 1024)),
        ("lacks the CA in use", next.clone()),
    ];
    for (name, bundle) in bad {
        server.publish_trust(&trust, &BTreeMap::from([(Domain::Peer, bundle)]));
        eventually(name, LIMIT, refused).await;
        assert_eq!(fs::read_to_string(&ca).expect("read"), before, "{name}");
        server.publish_trust(&trust, &BTreeMap::new());
        eventually("the own one again", LIMIT, || async {
            if refused().await.is_err() { Ok(()) } else { Err("still refused") }
        })
        .await;
    }
    // For the one that lacks the CA in use a certificate was asked for, once; the old CA signed it, so nothing changed.
    eventually("one more certificate", LIMIT, || async {
        if server.made() == 3 { Ok(()) } else { Err(server.made()) }
    })
    .await;
    server.publish_trust(&trust, &BTreeMap::from([(Domain::Peer, next.clone())]));
    eventually("refused again", LIMIT, refused).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.made(), 3, "once for each bundle");

    let serials = (pod.serial(Role::Peer), pod.serial(Role::Server));
    let both = format!("{before}{next}");
    server.publish_trust(&trust, &BTreeMap::from([(Domain::Peer, both.clone())]));
    eventually("both CAs on disk", LIMIT, || async {
        let now = Bundle::parse(&fs::read(&ca).expect("read")).expect("a bundle");
        if now == Bundle::parse(both.as_bytes()).expect("a bundle") { Ok(()) } else { Err("not yet") }
    })
    .await;
    // A signer of an earlier version states nothing: each changed bundle is asked about once, with a new certificate.
    eventually("the answer's certificate", LIMIT, || async {
        if pod.serial(Role::Peer) == serials.0 { Err("the one before") } else { Ok(()) }
    })
    .await;
    assert_eq!(pod.serial(Role::Server), serials.1, "the other domain is not concerned");
    assert_eq!(server.made(), 4);
    let log = run.log();
    assert!(log.contains("the signer does not state which trust bundles are in force"), "{log}");
    assert!(run.terminate(LIMIT).await.success(), "{}", run.log());
}

/// A pod that starts again after a rollover has leaves that are valid and that nobody trusts: `init` gets new ones with the
/// bundle. Where it cannot, it waits a little, and lets etcd start with what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_after_a_missed_rollover_asks_anew() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod::new(&server);
    pod.init().await;
    let serials = (pod.serial(Role::Peer), pod.serial(Role::Server));
    let next = authority("next peer");
    let bundle = next.bundle().clone();
    server.state().authorities.insert(Domain::Peer, next);
    server.publish_trust(&pod.dir.join("trust"), &BTreeMap::new());

    server.state().outage = Some((503, "{}".to_owned(), Vec::new()));
    let before = fs::read_to_string(pod.dir.join("certs/peer/ca.crt")).expect("read");
    pod.init().await;
    assert_eq!((pod.serial(Role::Peer), pod.serial(Role::Server)), serials, "the files stay");
    assert_eq!(fs::read_to_string(pod.dir.join("certs/peer/ca.crt")).expect("read"), before);

    server.state().outage = None;
    pod.init().await;
    let on_disk = Bundle::parse(&fs::read(pod.dir.join("certs/peer/ca.crt")).expect("read")).expect("a bundle");
    assert_eq!(on_disk, bundle);
    assert_ne!(pod.serial(Role::Peer), serials.0, "leaf and bundle together");
    assert_eq!(pod.serial(Role::Server), serials.1, "the other domain is not concerned");
    set_of(&pod.dir.join("certs")).expect("a whole set");
    let made = server.made();
    pod.init().await;
    assert_eq!(server.made(), made, "nothing is left to ask for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sidecars_do_not_share_a_directory() {
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    let pod = Pod::new(&server);
    let (_run, port) = pod.run(&[]);
    eventually("ready", LIMIT, || get(port, "/ready")).await;
    let mut second = pod.start("init", &[]);
    assert_eq!(second.wait(LIMIT).await.code(), Some(75));
    assert!(second.log().contains("another etcd-tls-sidecar works on this directory"), "{}", second.log());
}

/// etcd itself: after each renewal its ports are seen to serve the new serial, with no restart and no signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_seen_to_serve_each_renewal() {
    let Some(etcd) = tests::tier::etcd() else { return };
    let server = CsrServer::start(Duration::from_secs(10)).await;
    let mut pod = Pod::new(&server);
    pod.move_to("127.0.0.2");
    // On loopback peers connect from 127.0.0.1, whichever address they listen on.
    let names = "--extra-sans=127.0.0.1,127.0.0.2,localhost";
    let mut init = pod.start("init", &[names]);
    assert!(init.wait(LIMIT).await.success(), "{}", init.log());
    let certs = pod.dir.join("certs");
    let mut cluster = EtcdCluster::new(&etcd, 1)
        .with_tls(|_| MemberTls { server: Some(certs.join("server")), peer: Some(certs.join("peer")) });
    let member = &cluster.members[0];
    let urls = [format!("--client-url={}", member.client_url()), format!("--peer-url={}", member.peer_url())];
    cluster.spawn();
    let (mut run, port) = pod.run(&[names, &urls[0], &urls[1], "--reload=none"]);
    let rotated = |role: &str, times: u32| {
        let line = format!("etcd_tls_rotated_total{{role=\"{role}\"}} ");
        async move {
            let metrics = get(port, "/metrics").await?;
            let seen = metrics.lines().find_map(|l| l.strip_prefix(&line)).and_then(|n| n.parse::<u32>().ok());
            if seen.is_some_and(|n| n >= times) { Ok(()) } else { Err(metrics) }
        }
    };
    for times in 1..=3 {
        for role in ["peer", "server"] {
            eventually("rotated", LIMIT, || rotated(role, times)).await;
        }
    }
    let metrics = get(port, "/metrics").await.expect("metrics");
    assert!(!metrics.contains("result=\"not_served\""), "{metrics}");
    assert!(run.terminate(LIMIT).await.success(), "{}", run.log());
}

/// A real API server: the pod's token, a right that comes late, approval and signature by others; and how long it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_gives_certificates() {
    let Some(api) = ApiServer::start().await else { return };
    let server = CsrServer::start(Duration::from_secs(3600)).await;
    api.namespace("prod", &[]).await;
    let object =
        json!({"metadata": {"name": "etcd-0"}, "spec": {"containers": [{"name": "etcd", "image": "example/etcd"}]}});
    let object = eventually("a pod", LIMIT, || api.pod("prod", object.clone())).await;
    let token = api.token("prod", "default", Some(&object)).await;
    let mut pod = Pod::new(&server);
    let directory = api.token_directory("token", "prod", &token);
    for name in ["token", "ca.crt"] {
        fs::copy(directory.join(name), pod.dir.join("token").join(name)).expect("copy");
    }
    let uid = object.metadata.uid.clone().expect("a uid");
    pod.environment.retain(|(name, _)| name != "POD_UID");
    pod.environment.push(("POD_UID".to_owned(), uid));
    // The last one counts.
    pod.environment.extend(api.pod_environment());

    let mut init = pod.start("init", &[]);
    init.logged("403", LIMIT).await;
    let warned = |log: &str| log.lines().any(|line| line.contains(" WARN ") && line.contains("403"));
    assert!(!warned(&init.log()), "not yet is no warning: {}", init.log());
    let requests = Api::<CertificateSigningRequest>::all(api.client.clone());
    let grant = async {
        let role: ClusterRole = from_json(json!({
            "metadata": {"name": "requester"},
            "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create", "get"]}],
        }));
        Api::all(api.client.clone()).create(&PostParams::default(), &role).await.expect("a role");
        let binding = ClusterRoleBinding {
            metadata: ObjectMeta { name: Some("requester".into()), ..ObjectMeta::default() },
            ..from_json(json!({
                "metadata": {"name": "requester"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "requester"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:serviceaccounts:prod"}],
            }))
        };
        Api::all(api.client.clone()).create(&PostParams::default(), &binding).await.expect("a binding");
    };
    grant.await;
    let signer = async {
        loop {
            for object in requests.list(&ListParams::default()).await.expect("list").items {
                if object.status.as_ref().is_some_and(|s| s.certificate.is_some()) {
                    continue;
                }
                let name = object.metadata.name.clone().expect("a name");
                let (approval, status) = server.sign(object);
                requests
                    .patch_approval(&name, &PatchParams::default(), &Patch::Merge(approval))
                    .await
                    .expect("approve");
                requests.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.expect("sign");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let work = async {
        let status = init.wait(LIMIT).await;
        assert!(status.success(), "{status}: {}", init.log());
        let mut times = Vec::new();
        for round in 1..=15 {
            pod.move_to(&format!("10.0.1.{round}"));
            let began = Instant::now();
            pod.init().await;
            times.push(began.elapsed());
        }
        times.sort();
        eprintln!("start to files on disk: median {:?}, all {times:?}", times[times.len() / 2]);
    };
    tokio::select! {
        () = signer => unreachable!("it signs for ever"),
        () = work => {}
    }
    set_of(&pod.dir.join("certs")).expect("a whole set");
}
