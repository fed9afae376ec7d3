//! A real Prometheus, and what the component `monitoring` ships for it.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{ports, process::Process, repository, temp::TempDir};

/// A document of the component, as YAML.
///
/// # Panics
/// There is no such file.
pub fn document(file: &str) -> Value {
    let path = repository().join("manifests/components/monitoring").join(file);
    serde_saphyr::from_str(&fs::read_to_string(path).expect("a manifest")).expect("YAML")
}

/// The dashboard's panels: titles and queries.
///
/// # Panics
/// The dashboard has another form.
pub fn queries() -> Vec<(String, String)> {
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

/// A running Prometheus. Dropped, it is gone.
pub struct Prometheus {
    _process: Process,
    url: String,
}

impl Prometheus {
    /// Starts one that scrapes every `seconds`, itself and `scraped`, and evaluates `rules`.
    pub fn start(program: &Path, directory: &TempDir, seconds: u32, scraped: Vec<Value>, rules: &Value) -> Self {
        let address = format!("127.0.0.1:{}", ports::loopback());
        let mut all = vec![json!({"job_name": "prometheus", "static_configs": [{"targets": [address]}]})];
        all.extend(scraped);
        let every = format!("{seconds}s");
        let configuration = json!({
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yaml"],
            "scrape_configs": all,
        });
        directory.write("rules.yaml", rules.to_string());
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
    ///
    /// # Errors
    /// What it says instead.
    pub async fn ask(&self, query: &str) -> Result<Vec<Value>, String> {
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

    /// The result of a query that has a number.
    ///
    /// # Errors
    /// What it says instead.
    pub async fn number(&self, query: &str) -> Result<(), String> {
        let result = self.ask(query).await?;
        let is = |series: &Value| series["value"][1].as_str().is_some_and(|value| value != "NaN");
        if result.iter().any(is) { Ok(()) } else { Err(format!("{result:?}")) }
    }

    /// The alerts that fire, or have fired within `time`.
    ///
    /// # Errors
    /// What it says instead.
    pub async fn firing(&self, time: Duration) -> Result<Vec<String>, String> {
        let fire = "ALERTS{alertstate=\"firing\"}";
        let before = match time.as_secs() {
            0 => String::new(),
            seconds => format!(" or present_over_time({fire}[{seconds}s])"),
        };
        let all = self.ask(&format!("{fire}{before}")).await?;
        let mut names: Vec<String> =
            all.iter().filter_map(|a| a["metric"]["alertname"].as_str()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}
