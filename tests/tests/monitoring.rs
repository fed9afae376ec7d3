//! The shipped dashboard and alerts in a real Prometheus that scrapes the real processes.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tests::{
    eventually, ports,
    process::{Process, which},
    repository,
    stack::{LIMIT, Options, Stack, own_address},
    temp::TempDir,
    tier,
};

/// A document of the component, as YAML.
fn document(file: &str) -> Value {
    let path = repository().join("manifests/components/monitoring").join(file);
    serde_saphyr::from_str(&fs::read_to_string(path).expect("a manifest")).expect("YAML")
}

/// The panels' titles and queries.
fn queries() -> Vec<(String, String)> {
    let text = document("dashboard.yaml")["data"]["etcd-tls.json"].as_str().expect("a dashboard").to_owned();
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    assert!((5..=12).contains(&panels.len()), "few panels: {}", panels.len());
    let of = |panel: &Value| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        assert!(panel["description"].as_str().is_some_and(|d| d.len() > 20), "{title} says what it is");
        let targets = panel["targets"].as_array().expect("queries").clone();
        targets.into_iter().map(move |t| (title.clone(), t["expr"].as_str().expect("a query").to_owned()))
    };
    panels.iter().flat_map(of).collect()
}

/// The alerts, each to fire when its cause has lasted for 15 s: one slow answer on a busy machine is none.
fn impatient() -> Value {
    let mut rules = document("alerts.yaml")["spec"].clone();
    for rule in rules["groups"][0]["rules"].as_array_mut().expect("rules") {
        rule["for"] = json!("15s");
    }
    rules
}

struct Prometheus {
    _process: Process,
    url: String,
}

impl Prometheus {
    /// Scrapes `targets`, (pod, namespace, address), every second, with the labels that the shipped PodMonitors give.
    fn start(program: &Path, directory: &TempDir, targets: &[(&str, &str, String)]) -> Self {
        let scraped = |ours: bool, job: &str| {
            let of = targets.iter().filter(|(_, namespace, _)| (*namespace == "etcd-tls-system") == ours);
            let configs: Vec<Value> = of
                .map(|(pod, namespace, address)| {
                    json!({"targets": [address], "labels": {"pod": pod, "namespace": namespace}})
                })
                .collect();
            json!({"job_name": job, "honor_labels": ours, "static_configs": configs})
        };
        let address = format!("127.0.0.1:{}", ports::loopback());
        let configuration = json!({
            "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "3s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": "prometheus", "static_configs": [{"targets": [address]}]},
                scraped(true, "etcd-tls-system/etcd-tls"), scraped(false, "etcd-tls-system/etcd-tls-sidecars"),
            ],
        });
        directory.write("rules.yaml", impatient().to_string());
        let configuration = directory.write("prometheus.yaml", configuration.to_string());
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", configuration.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        Self {
            _process: Process::spawn("prometheus", &mut command, directory.path()),
            url: format!("http://{address}"),
        }
    }

    /// The result of a query.
    async fn ask(&self, query: &str) -> Result<Vec<Value>, String> {
        let mut command = tokio::process::Command::new("curl");
        command.args(["-sS", "--get", "--data-urlencode", &format!("query={query}")]);
        let output = command.arg(format!("{}/api/v1/query", self.url)).output().await.map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let answer: Value = serde_json::from_str(&text).map_err(|_| text.clone())?;
        match answer["data"]["result"].as_array() {
            Some(result) if answer["status"] == "success" => Ok(result.clone()),
            _ => Err(text),
        }
    }

    /// The alerts that fire.
    async fn firing(&self) -> Result<Vec<String>, String> {
        let all = self.ask("ALERTS{alertstate=\"firing\"}").await?;
        let mut names: Vec<String> =
            all.iter().filter_map(|a| a["metric"]["alertname"].as_str()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// Where a process listens, by its command line.
fn admin_address(process: &Process) -> String {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", process.id())).expect("a running process");
    let mut words = line.split('\0').skip_while(|word| *word != "--admin-address");
    words.nth(1).expect("an address").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_answers_and_an_alert_fires_when_its_cause_is_there_and_not_before() {
    let queries = queries();
    let (Some(prometheus), Some(_)) = (which("prometheus"), which("curl")) else {
        return tier::skip_special("no prometheus, or no curl", "apt-get install prometheus curl");
    };
    let Some(mut stack) = Stack::start(&Options::default()).await else { return };
    stack.api.namespace("web", &[]).await;
    let port = ports::free(Ipv4Addr::UNSPECIFIED);
    let pod = json!({
        "metadata": {
            "name": "app-0", "labels": {"etcd-tls": "dynamic"},
            "annotations": {
                "etcd-tls.dev/roles": "client,metrics", "etcd-tls.dev/containers": "app",
                "etcd-tls.dev/admin-port": port.to_string(),
            },
        },
        "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    });
    let ip = own_address().expect("the stack has one");
    let programs: [(&str, PathBuf); 1] = [("app", which("true").expect("true"))];
    let mut pod = stack.local_pod("web", pod, &[ip], &programs).await.expect("a pod");
    pod.start(LIMIT).await.expect("certificates");

    let directory = TempDir::new("prometheus");
    let system = "etcd-tls-system";
    let targets = [
        ("etcd-tls-admit-0", system, admin_address(&stack.admit)),
        ("etcd-tls-approve-0", system, admin_address(&stack.approve)),
        ("etcd-tls-sign-0", system, admin_address(&stack.sign)),
        ("app-0", "web", format!("127.0.0.1:{port}")),
    ];
    let prometheus = Prometheus::start(&prometheus, &directory, &targets);
    eventually("every process to be scraped", LIMIT, || async {
        let up = prometheus.ask("up == 1").await?;
        if up.len() == targets.len() + 1 { Ok(()) } else { Err(format!("{up:?}")) }
    })
    .await;
    for (title, query) in &queries {
        eventually(&format!("{title}: {query} to answer"), LIMIT, || async {
            let result = prometheus.ask(query).await?;
            if result.is_empty() { Err("no data".to_owned()) } else { Ok(()) }
        })
        .await;
    }
    // With every rule evaluated for longer than an alert waits.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let evaluated = prometheus.ask("time() - prometheus_rule_group_last_evaluation_timestamp_seconds").await;
    assert!(evaluated.is_ok_and(|of| !of.is_empty()), "the rules are evaluated");
    assert_eq!(prometheus.firing().await.expect("an answer"), Vec::<String>::new());

    stack.sign.terminate(LIMIT).await;
    for alert in ["EtcdTlsDown", "EtcdTlsNoLeader"] {
        eventually(&format!("{alert} to fire"), LIMIT, || async {
            let firing = prometheus.firing().await?;
            if firing.iter().any(|f| f == alert) { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await;
    }
    let leaders = &queries.iter().find(|(title, _)| title == "Leaders").expect("the panel").1;
    let shown = prometheus.ask(leaders).await.expect("an answer");
    assert_eq!(shown[0]["value"][1], "1", "the panel says so too: {shown:?}");
}
