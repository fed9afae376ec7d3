//! The shipped alerts: each fires when it should and not before, and the runbook has a section for it.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use tests::{process::which, repository, temp::TempDir, tier};

fn yaml(path: &str) -> Value {
    let text = fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn rules() -> Vec<Value> {
    let rule = yaml("manifests/components/monitoring/alerts.yaml");
    let groups = rule["spec"]["groups"].as_array().cloned().unwrap_or_default();
    groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    if which("promtool").is_none() {
        tier::skip_special("no promtool", "the package prometheus");
        return;
    }
    let tried = yaml("tests/fixtures/alerts.yaml");
    let tried: BTreeSet<&str> =
        tried["tests"].as_array().expect("tests").iter().filter_map(|t| t["name"].as_str()).collect();
    let shipped = rules();
    let shipped: BTreeSet<&str> = shipped.iter().filter_map(|rule| rule["alert"].as_str()).collect();
    assert_eq!(tried, shipped, "each alert is tried");
    let directory = TempDir::new("alerts");
    directory.write("rules.yaml", yaml("manifests/components/monitoring/alerts.yaml")["spec"].to_string());
    fs::copy(repository().join("tests/fixtures/alerts.yaml"), directory.join("alerts.yaml")).expect("copy the trials");
    let output = Command::new("promtool").args(["test", "rules", "alerts.yaml"]).current_dir(directory.path()).output();
    let output = output.expect("run promtool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

#[test]
fn each_alert_has_a_section_in_the_runbook_and_metrics_that_exist() {
    let rules = rules();
    assert!(rules.len() > 10, "{} alerts", rules.len());
    let page = fs::read_to_string(repository().join("docs/runbook.md")).expect("docs/runbook.md");
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let names: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["alert"].as_str()).collect();
    assert_eq!(sections, names);
    let known = super::metrics::names();
    for rule in &rules {
        let name = rule["alert"].as_str().expect("a name");
        let link = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], link.as_str());
        let expression = rule["expr"].as_str().expect("an expression");
        for word in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            assert!(!word.starts_with("etcd_tls_") || known.contains(word), "{name}: no process shows {word}");
        }
    }
}
