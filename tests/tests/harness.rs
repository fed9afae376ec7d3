//! The harness itself: started processes work, and dropped ones are gone.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Pod};
use kube::{Api, api::PostParams};
use serde_json::json;
use tests::{
    apiserver::ApiServer,
    etcd::{self, EtcdCluster, MemberTls},
    etcd_client::EtcdClient,
    pki::{Ca, LeafOptions},
    process::binary,
    repository,
    temp::TempDir,
    tier,
    workload::{self, Workload},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_serve_over_tls() {
    let Some(binary) = tier::etcd() else { return };
    let (ca, files) = (Ca::new("etcd"), TempDir::new("harness"));
    let mut cluster = EtcdCluster::new(&binary, 3).with_tls(|member| {
        let options = LeafOptions { ips: vec![member.address, Ipv4Addr::LOCALHOST.into()], ..Default::default() };
        let [server, peer] = ["server", "peer"].map(|role| files.join(format!("{}/{role}", member.name)));
        ca.write_role(&server, &options);
        ca.write_role(&peer, &options);
        MemberTls { server: Some(server), peer: Some(peer) }
    });
    cluster.start().await;
    let client_files = files.dir("client");
    ca.write_role(&client_files, &LeafOptions { server: false, ..Default::default() });
    let client = EtcdClient::with_files(&client_files);

    let urls: Vec<_> = cluster.members.iter().map(|m| m.client_url()).collect();
    let mut connection = client.connect(&urls[0]).await.expect("connect");
    assert!(!connection.serial.is_empty());
    let revision = connection.put("a", "1").await.expect("put");
    let mut watch = client.connect(&urls[1]).await.expect("connect").watch("a", revision).await.expect("watch");
    client.put(&urls[2], "ab", "2").await.expect("put");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.expect("the watch goes on").into_iter().map(|e| (e.key, e.value)));
    }
    assert_eq!(seen, [("a".into(), "1".into()), ("ab".into(), "2".into())]);
    assert_eq!(client.get(&urls[1], "a").await.expect("get").as_deref(), Some("1"));

    let plain = EtcdClient::with_files(&files.join("nobody")).connect(&urls[0]).await;
    assert!(plain.is_err(), "no files, no connection");
    let stranger = files.dir("stranger");
    Ca::new("another").write_role(&stranger, &LeafOptions::default());
    std::fs::write(stranger.join("ca.crt"), &ca.pem).expect("write");
    let refused = EtcdClient::with_files(&stranger).put(&urls[0], "b", "3").await;
    assert!(refused.is_err(), "a client of another authority wrote");

    let workload = Workload::start(workload::Options::new(urls.clone(), &client_files));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // One that does not lead: writes may end with their leader.
    let metrics: Vec<_> = cluster.members.iter().map(|member| member.metrics_url()).collect();
    let leads = etcd::leader(&metrics).await;
    let stopped = (leads + 1) % urls.len();
    cluster.members[stopped].stop().await;
    assert!(!cluster.members[stopped].is_healthy().await);
    client.put(&urls[leads], "a", "4").await.expect("two of three are a quorum");
    cluster.members[stopped].spawn();
    cluster.members[stopped].healthy(Duration::from_secs(60)).await;
    let report = workload.stop().await.expect("an account");
    assert!(report.writes > 0 && report.connections > 0, "{report}");
    assert!(report.failed == 0 && report.lost.is_empty() && report.unseen.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_knows_a_pod_by_its_bound_token() {
    let Some(api) = ApiServer::shared().await else { return };
    api.namespace("harness", &[]).await;
    let spec = json!({"containers": [{"name": "c", "image": "example/image"}]});
    let pod = api.pod("harness", json!({"metadata": {"name": "p"}, "spec": spec})).await.expect("create a pod");
    let pod_with_ip = api.set_pod_ips("harness", "p", &[Ipv4Addr::new(10, 0, 0, 7).into()]).await;
    assert_eq!(pod_with_ip.status.and_then(|s| s.pod_ip).as_deref(), Some("10.0.0.7"));
    let token = api.token("harness", "default", Some(&pod)).await;
    let client = api.client_with_token(&token).await;
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .expect("review");
    let user = review.status.and_then(|s| s.user_info).expect("a user");
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:harness:default"));
    let extra = user.extra.expect("a bound token's extra");
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.metadata.uid.expect("uid")]);
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node-1"]);
    let forbidden = Api::<Pod>::namespaced(client, "harness").get("p").await.expect_err("a pod may read no pods");
    assert!(matches!(forbidden, kube::Error::Api(status) if status.code == 403));
    assert!(api.kubectl(&["get", "pods", "-n", "harness"]).contains("Running"));
}

/// The last line of `make test`: a test that said SKIPPED is not counted as passed, and one that never ended is a failure.
#[test]
fn the_summary_counts_skipped_tests_apart() {
    let summary = |log: &str| {
        let files = TempDir::new("summary");
        let log = files.write("test.log", log);
        let run = std::process::Command::new(repository().join("tests/summary.sh")).arg(log).output().expect("run");
        let lines = String::from_utf8_lossy(&run.stdout).into_owned();
        (run.status.success(), lines.lines().last().unwrap_or_default().to_owned())
    };
    let good = "     Running tests/a.rs (target/debug/deps/a-1)\n\
        SKIPPED tier 2: one: no kube-apiserver; enable with: it\n\
        SKIPPED tier 2: one: no kubectl; enable with: it\n\
        test a::SKIPPED special: b::two: long; enable with: ETCD_TLS_SOAK=1\n\
        test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
    assert_eq!(summary(good), (true, "3 passed, 0 failed, 2 skipped".to_owned()));
    let bad = "     Running tests/a.rs (target/debug/deps/a-1)\n\
        test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
    assert_eq!(summary(bad), (false, "5 passed, 1 failed, 0 skipped".to_owned()));
    let cut = "     Running tests/a.rs (target/debug/deps/a-1)\ntest one ... ok\n";
    assert_eq!(summary(cut), (false, "0 passed, 1 failed, 0 skipped".to_owned()));
    let unsteady = format!("{bad}UNSTEADY: one failed beside others and passed alone\n");
    assert_eq!(summary(&unsteady), (true, "5 passed, 0 failed, 0 skipped, 1 unsteady".to_owned()));
    let uncompiled = "error: could not compile `tests` (test \"a\") due to 1 previous error\n";
    assert_eq!(summary(uncompiled), (false, "0 passed, 1 failed, 0 skipped".to_owned()));
}

/// A failed test runs once more, alone, and never counts as passed; one that fails again, a fourth one, and a program that does not come
/// to its end fail the run. By `tests/run.sh` itself, with a `cargo` that lists a program of a few lines as the only test.
#[test]
fn a_failed_test_runs_once_more_alone() {
    let run = |first: &str, alone: &str| {
        let files = TempDir::new("unsteady");
        let program = files.write("program", format!("#!/bin/sh\nif [ $# = 0 ]; then\n{first}\nelse\n{alone}\nfi\n"));
        let message = format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"{}/Cargo.toml","target":{{"kind":["test"],"name":"a","src_path":"a.rs"}},"profile":{{"test":true}},"executable":"{}"}}"#,
            files.path().display(),
            program.display()
        );
        let cargo =
            files.write("cargo", format!("#!/bin/sh\ncase $* in *--doc*) exit 0;; esac\ncat <<'E'\n{message}\nE\n"));
        for path in [&program, &cargo] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        let log = files.path().join("log");
        let command = |script: &str| {
            let mut command = std::process::Command::new(repository().join("tests").join(script));
            let output = command.arg(&log).env("CARGO", &cargo).output().expect("run");
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (passed, _) = command("run.sh");
        let (counted, summary) = command("summary.sh");
        assert_eq!(passed, counted, "{summary}");
        (passed, summary)
    };
    let failing = |names: &[&str]| {
        let list: String = names.iter().map(|name| format!("    {name}\n")).collect();
        format!(
            "cat <<'E'\nfailures:\n\n---- {0} stdout ----\n    panicked\n\nfailures:\n{list}\n\
             test result: FAILED. 5 passed; {1} failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\nE\nexit 101",
            names[0],
            names.len()
        )
    };
    let ok = "[ \"$*\" = '--exact m::one' ] || exit 1\necho 'test result: ok. 1 passed; 0 failed; 0 ignored'";
    let (passed, summary) = run(&failing(&["m::one"]), ok);
    assert!(passed && summary.ends_with("5 passed, 0 failed, 0 skipped, 1 unsteady\n"), "{summary}");
    assert!(summary.contains("UNSTEADY: m::one failed beside others and passed alone\n"), "{summary}");
    let (passed, summary) = run(&failing(&["m::one"]), &failing(&["m::one"]));
    assert!(!passed && summary.ends_with("5 passed, 1 failed, 0 skipped\n"), "{summary}");
    let (passed, summary) = run(&failing(&["a", "b", "c", "d"]), "exit 0");
    assert!(!passed && summary.ends_with("5 passed, 4 failed, 0 skipped\n"), "{summary}");
    let (passed, summary) = run("kill -9 $$", "exit 0");
    assert!(!passed && summary.ends_with("0 passed, 1 failed, 0 skipped\n"), "{summary}");
}

/// `ETCD_TLS_REQUIRE` turns a tier that cannot run into a failure. Tried on a test binary of this very crate, in a process
/// of its own that finds neither etcd nor kube-apiserver.
#[test]
fn a_required_tier_that_cannot_run_fails() {
    let this = std::env::current_exe().expect("the test's own program");
    let run = |test: &str, require: &str| {
        let mut command = std::process::Command::new(&this);
        command.args(["--exact", test]).env("KUBEBUILDER_ASSETS", "/nonexistent").env("ETCD_TLS_REQUIRE", require);
        command.output().expect("run").status.success()
    };
    let test = "an_api_server_is_there_or_skipped";
    assert!(run(test, "") && run(test, "1"));
    assert!(!run(test, "2") && !run(test, "3"));
}

#[test]
fn an_api_server_is_there_or_skipped() {
    let Some(assets) = tier::kubernetes() else { return };
    assert!(assets.join("kube-apiserver").is_file());
}

/// A URL of etcd that cannot be read ends the program before it does anything: nothing is ever concluded from such a port.
#[test]
fn a_url_that_cannot_be_read_is_a_usage_error() {
    let mut tried = 0;
    for url in ["", "x", "127.0.0.1:2379", "unix:///run/etcd.sock", "https://", "https://a b:1", "https://127.0.0.1:0"]
    {
        for command in ["init", "run"] {
            for flag in ["--client-url", "--peer-url", "--metrics-url"] {
                refuses("etcd-tls-sidecar", &[command, "--roles=peer,server", &format!("{flag}={url}")], flag);
                tried += 1;
            }
        }
        refuses("etcd-tls-webhook", &["check", &format!("--endpoints={url}")], "--endpoints");
    }
    assert_eq!(tried, 42);
}

/// So does an address, a list of them, a duration or a level.
#[test]
fn an_argument_that_cannot_be_read_is_a_usage_error() {
    let sidecar = "etcd-tls-sidecar";
    for command in ["init", "run", "request"] {
        for argument in ["--duration=1", "--log-level=info,a=loud", "--key=rsa", "--issuer=x"] {
            refuses(sidecar, &[command, argument], argument.split('=').next().expect("a flag"));
        }
    }
    for command in ["run", "request"] {
        for argument in
            ["--dnsnames=a b", "--dnsnames=a,-b", "--ipaddrs=10.0.0.300", "--ipaddrs=0.0.0.0", "--ipaddrs=fe80::1%eth0"]
        {
            refuses(sidecar, &[command, argument], argument.split('=').next().expect("a flag"));
        }
    }
    for argument in
        ["--address=", "--address=127.0.0.1", "--address=https://127.0.0.1:1", "--admin-address=:1", "--rate-limit=x"]
    {
        refuses("etcd-tls-webhook", &["standalone", argument], argument.split('=').next().expect("a flag"));
    }
    for command in ["admit", "approve", "sign", "standalone", "status", "check"] {
        refuses("etcd-tls-webhook", &[command, "--log-level=info,a=loud"], "--log-level");
    }
}

fn refuses(program: &str, arguments: &[&str], flag: &str) {
    let output = std::process::Command::new(binary(program)).args(arguments).output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.contains(flag), "{arguments:?}: {text}");
}

/// docs/exit-codes.md lists the codes that the programs have, and no others.
#[test]
fn every_exit_code_is_documented() {
    let page = std::fs::read_to_string(repository().join("docs/exit-codes.md")).expect("docs/exit-codes.md");
    let row = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse::<u8>().ok();
    let documented: Vec<u8> = page.lines().filter_map(row).collect();
    assert_eq!(documented, etcd_tls_telemetry::exit::Exit::ALL.map(etcd_tls_telemetry::exit::Exit::code));
}

/// docs/architecture.md: in the released sidecar, every panic ends the process.
#[test]
fn the_released_sidecar_aborts_at_a_panic() {
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).expect(file);
    let manifest = read("Cargo.toml");
    let profile = manifest.split("[profile.sidecar]").nth(1).and_then(|text| text.split("[").next());
    assert!(profile.is_some_and(|profile| profile.contains("\npanic = \"abort\"\n")), "{profile:?}");
    for (file, build) in [
        ("Makefile", "--profile sidecar -p etcd-tls-sidecar --bin etcd-tls-sidecar"),
        ("dist/build.sh", "static \"${profile:-sidecar}\" etcd-tls-sidecar etcd-tls-sidecar"),
        ("Dockerfile.sidecar", "--profile sidecar "),
    ] {
        assert!(read(file).contains(build), "{file}: {build}");
    }
}
