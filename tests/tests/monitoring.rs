//! The shipped dashboard and alerts in a real Prometheus that scrapes the real processes.

#[path = "monitoring/causes.rs"]
mod causes;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{self, Installation, LIMIT, Options, own_address},
    policy, ports,
    process::{Process, binary, run, which},
    prometheus::{Prometheus, document, queries},
    promtool,
    temp::TempDir,
    tier,
};

/// How long an alert may take that waits for a certificate to end, or a query that waits for the next renewal.
const LONG: Duration = Duration::from_secs(300);

/// The alerts, each to fire when its cause has lasted for 15 s: one slow answer on a busy machine is none. Two have their patience
/// in the expression.
fn impatient() -> Value {
    let mut rules = document("alerts.yaml")["spec"].clone();
    let mut sooner = vec![
        ("EtcdTlsCertificateWaits", "[20m:1m]) >= 10", "[30s:3s]) >= 5"),
        ("EtcdTlsRolloverWaits", "> 86400", "> 15"),
    ];
    for rule in rules["groups"][0]["rules"].as_array_mut().expect("rules") {
        rule["for"] = json!("15s");
        if let Some(at) = sooner.iter().position(|(alert, ..)| rule["alert"] == *alert) {
            let (_, long, short) = sooner.remove(at);
            let of = rule["expr"].as_str().expect("an expression");
            assert_eq!(of.matches(long).count(), 1, "{of}");
            rule["expr"] = of.replace(long, short).into();
        }
    }
    assert!(sooner.is_empty(), "{sooner:?}");
    rules
}

/// A Prometheus that scrapes `targets`, (pod, namespace, address), with the labels that the shipped PodMonitors give.
fn prometheus(program: &Path, directory: &TempDir, targets: &[(&str, &str, String)]) -> Prometheus {
    let scraped = |ours: bool, job: &str| {
        let of = targets.iter().filter(|(_, namespace, _)| (*namespace == "etcd-tls-system") == ours);
        let configs: Vec<Value> = of
            .map(|(pod, namespace, address)| {
                json!({"targets": [address], "labels": {"pod": pod, "namespace": namespace}})
            })
            .collect();
        json!({"job_name": job, "honor_labels": ours, "static_configs": configs})
    };
    let jobs = vec![scraped(true, "etcd-tls-system/etcd-tls"), scraped(false, "etcd-tls-system/etcd-tls-sidecars")];
    Prometheus::start(program, directory, 3, jobs, &impatient())
}

/// Where a process listens, by its command line.
fn admin_address(process: &Process) -> String {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", process.id())).expect("a running process");
    let mut words = line.split('\0').skip_while(|word| *word != "--admin-address");
    words.nth(1).expect("an address").to_owned()
}

/// The metrics of a process.
fn scrape(address: &str) -> String {
    run(Command::new("curl").args(["-sS", &format!("http://{address}/metrics")]))
}

/// Waits until every one of `alerts` fires, or has fired meanwhile.
async fn fires(prometheus: &Prometheus, alerts: &[&str]) {
    let began = Instant::now();
    for alert in alerts {
        eventually(&format!("{alert} to fire"), LONG, || async {
            let firing = prometheus.firing(began.elapsed()).await?;
            if firing.iter().any(|f| f == alert) { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_answers_and_alerts_fire_when_their_cause_is_there_and_not_before() {
    let queries = queries();
    let (Some(program), Some(_)) = (which("prometheus"), which("curl")) else {
        return tier::skip_special("no prometheus, or no curl", "apt-get install prometheus curl");
    };
    let Some(etcd) = tier::etcd() else { return };
    // A certificate is renewed after 72 s at the latest, and overdue after 84 s.
    let options = Options { sign: vec!["--max-lifetime=120s".to_owned()], ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    installation.api.namespace("web", &[("etcd-tls", "dynamic")]).await;
    let ip = own_address().expect("the installation has one");
    let manifest = installation::member_pod("etcd-0", ip, ports::free(ip), ports::free(ip));
    let port = manifest["metadata"]["annotations"]["etcd-tls.dev/admin-port"].as_str().expect("a port").to_owned();
    let (mut causes, more) = causes::Causes::start(&mut installation).await;
    let directory = TempDir::new("prometheus");
    let entry_point = causes::EntryPoint::new(&directory, &etcd.etcd);
    let programs = [("etcd", entry_point.program().to_owned())];
    let mut pod = installation.local_pod("web", manifest, &[ip], &programs).await.expect("a member");
    causes::may_be_asked(&pod);
    pod.start(LIMIT).await.expect("certificates");

    let system = "etcd-tls-system";
    let targets = [
        ("etcd-tls-admit-0", system, admin_address(&installation.admit)),
        ("etcd-tls-approve-0", system, admin_address(&installation.approve)),
        ("etcd-tls-sign-0", system, admin_address(&installation.sign)),
        ("etcd-0", "web", format!("127.0.0.1:{port}")),
        ("app-0", "held", more[0].clone()),
        ("agent", "secrets", more[1].clone()),
    ];
    let prometheus = prometheus(&program, &directory, &targets);
    eventually("every process to be scraped", LIMIT, || async {
        let up = prometheus.ask("up == 1").await?;
        if up.len() == targets.len() + 1 { Ok(()) } else { Err(format!("{up:?}")) }
    })
    .await;
    for (title, query) in &queries {
        eventually(&format!("{title}: {query} to answer"), LONG, || prometheus.number(query)).await;
    }
    for (pod, _, address) in &targets {
        promtool::check_metrics(pod, &scrape(address));
    }
    for (address, names) in [
        (&targets[0].2, &["etcd_tls_admit_certificate_expiry_timestamp_seconds "][..]),
        (&targets[1].2, &["etcd_tls_approve_last_decision_timestamp_seconds "]),
        (
            &targets[2].2,
            &[
                "etcd_tls_sign_last_issue_timestamp_seconds ",
                "etcd_tls_sign_webhook_certificate_expiry_timestamp_seconds ",
            ],
        ),
    ] {
        let text = scrape(address);
        assert!(names.iter().all(|name| text.contains(&format!("\n{name}"))), "{names:?}: {text}");
    }
    // With every rule evaluated for longer than an alert waits.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let evaluated = prometheus.ask("time() - prometheus_rule_group_last_evaluation_timestamp_seconds").await;
    assert!(evaluated.is_ok_and(|of| !of.is_empty()), "the rules are evaluated");
    assert_eq!(prometheus.firing(Duration::ZERO).await.expect("an answer"), Vec::<String>::new());

    // A policy that nobody can read, and an admission policy that denies no more.
    let deny = |action: &str| {
        let patch = json!({"spec": {"validationActions": [action]}}).to_string();
        let name = "etcd-tls-webhooks";
        installation.api.kubectl(&["patch", "validatingadmissionpolicybinding", name, "--type=merge", "-p", &patch]);
    };
    policy::set(&installation.api.client, "nonsense: 1").await;
    deny("Audit");
    // Meanwhile an etcd that serves copies of its files and has to be restarted for the next CA, a certificate of a CA that the node
    // does not mount, and a Secret that is gone.
    entry_point.copy(&mut pod, true).await;
    causes::ask(&pod, 1);
    let mut rollover = Command::new(binary("etcd-tls-webhook"));
    run(rollover.args(["rollover", "web/etcd", "--domain=peer"]).env("KUBECONFIG", &installation.api.kubeconfig));
    causes.begin(&installation).await;
    let of_pods = ["EtcdTlsCertificateNotServed", "EtcdTlsCertificateWaits", "EtcdTlsSecretNotCurrent"];
    let of_policy = ["EtcdTlsPolicyUnreadable", "EtcdTlsAdmissionPolicyNotEnforced"];
    let of_rollover = ["EtcdTlsRestartDue", "EtcdTlsRolloverWaits"];
    fires(&prometheus, &[&of_policy[..], &of_pods[..], &of_rollover[..]].concat()).await;
    deny("Deny");
    causes.end(&installation);
    entry_point.copy(&mut pod, false).await;

    // A CA that ends in a day.
    let in_force = || installation.sign.log().matches("policy in force").count();
    let before = in_force();
    policy::set(&installation.api.client, "rollover: {caLifetime: 24h}").await;
    eventually("sign to read the policy", LIMIT, || async { if in_force() > before { Ok(()) } else { Err(before) } })
        .await;
    installation.api.namespace("short", &[]).await;
    eventually("a pod of a new cluster", LIMIT, || {
        installation.api.pod("short", installation::client_pod("app-0", "client"))
    })
    .await;
    fires(&prometheus, &["EtcdTlsAuthorityEnds"]).await;

    // That CA is lost; and requests are refused, until certificates are overdue and expire.
    let secrets: Value =
        serde_json::from_str(&installation.api.kubectl(&["-n", system, "get", "secrets", "-o", "json"])).expect("JSON");
    let of_short =
        secrets["items"].as_array().expect("Secrets").iter().find(|secret| {
            secret["metadata"]["annotations"]["etcd-tls.dev/signer"] == "client.etcd-tls.dev/short.etcd"
        });
    let name = of_short.expect("its CA")["metadata"]["name"].as_str().expect("a name").to_owned();
    installation.api.kubectl(&["-n", system, "delete", "secret", &name]);
    policy::set(&installation.api.client, "keys: [rsa-4096]").await;
    let overdue = ["EtcdTlsRequestFailing", "EtcdTlsCertificateNotRenewed", "EtcdTlsCertificateExpired"];
    fires(&prometheus, &[&["EtcdTlsAuthorityLost"], &overdue[..]].concat()).await;

    // While sign stands still, somebody writes the trust by hand, and the serving pair comes near its end.
    installation.sign.signal(nix::sys::signal::Signal::SIGSTOP);
    let damage = json!({"data": {"peer.crt": "nonsense"}, "binaryData": {"peer.crl": "bm9uc2Vuc2U="}}).to_string();
    installation.api.kubectl(&[
        "-n",
        "web",
        "patch",
        "configmap",
        "etcd-tls-trust-etcd",
        "--type=merge",
        "-p",
        &damage,
    ]);
    installation.api.kubectl(&[
        "-n",
        system,
        "patch",
        "secret",
        "etcd-tls-admit-serving",
        "-p",
        &causes::ending_pair(),
    ]);
    let refused = ["EtcdTlsBundleRefused", "EtcdTlsRevocationListRefused"];
    fires(&prometheus, &[&refused[..], &["EtcdTlsServingCertificateEnds"]].concat()).await;

    installation.sign.kill();
    fires(&prometheus, &["EtcdTlsDown", "EtcdTlsNoLeader"]).await;
    let leaders = &queries.iter().find(|(title, _)| title == "Leaders").expect("the panel").1;
    let shown = prometheus.ask(leaders).await.expect("an answer");
    assert_eq!(shown[0]["value"][1], "1", "the panel says so too: {shown:?}");
}
