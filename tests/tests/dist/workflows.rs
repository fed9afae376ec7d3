//! The workflows, as far as that can be checked without running them: they are YAML of the known shape, their scripts parse, what
//! they call exists, and the versions are those that the manifests support.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use tests::{
    process::{run, which},
    repository,
    temp::TempDir,
    tier,
};

/// The workflow's jobs, by name.
fn jobs(name: &str) -> serde_json::Map<String, Value> {
    let path = repository().join(".github/workflows").join(name);
    let text = fs::read_to_string(&path).expect("a workflow");
    // YAML 1.1 reads the key `on` as true; GitHub and this reader do not.
    let workflow: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let keys = BTreeSet::from(["name", "on", "permissions", "concurrency", "env", "jobs"]);
    for key in workflow.as_object().expect("a map").keys() {
        assert!(keys.contains(key.as_str()), "{name}: {key}");
    }
    // Nothing has a right that it is not given by name.
    assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}), "{name}");
    workflow["jobs"].as_object().expect("jobs").clone()
}

#[test]
fn workflows_have_steps_that_can_run() {
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("Makefile");
    let directory = TempDir::new("scripts");
    let mut scripts = 0;
    for workflow in ["ci.yml", "release.yml"] {
        let jobs = jobs(workflow);
        for (name, job) in &jobs {
            let what = format!("{workflow}: {name}");
            if let Some(other) = job["uses"].as_str() {
                assert_eq!(other, "./.github/workflows/ci.yml", "{what}");
                let text = fs::read_to_string(repository().join(other)).expect("a workflow");
                assert!(text.contains("\n  workflow_call:\n"), "{what}: {other} cannot be called");
                continue;
            }
            assert!(job["runs-on"].is_string(), "{what}");
            let needed = job["needs"].as_array().cloned().unwrap_or_else(|| vec![job["needs"].clone()]);
            for needed in needed.iter().filter_map(Value::as_str) {
                assert!(jobs.contains_key(needed), "{what} needs {needed}");
            }
            // Nothing is published that was not tested.
            let publishes = job["permissions"]["id-token"] == "write";
            assert!(!publishes || needed.iter().any(|needed| needed == "test"), "{what} waits for no test");
            let steps = job["steps"].as_array().expect("steps");
            let ids: BTreeSet<_> = steps.iter().filter_map(|step| step["id"].as_str()).collect();
            for used in job.to_string().split("steps.").skip(1).filter_map(|rest| rest.split('.').next()) {
                assert!(ids.contains(used), "{what}: no step {used}");
            }
            for step in steps {
                let keys = BTreeSet::from(["name", "id", "uses", "with", "run", "env"]);
                assert!(
                    step.as_object().expect("a map").keys().all(|key| keys.contains(key.as_str())),
                    "{what}: {step}"
                );
                if let Some(action) = step["uses"].as_str() {
                    let (_, version) =
                        action.split_once('@').unwrap_or_else(|| panic!("{what}: {action} has no version"));
                    // A tag can be moved to other code; a commit cannot.
                    let commit = version.len() == 40 && version.bytes().all(|b| b.is_ascii_hexdigit());
                    assert!(commit && step["run"].is_null(), "{what}: {action}");
                    continue;
                }
                let script = step["run"].as_str().unwrap_or_else(|| panic!("{what}: {step}"));
                // An expression in a script is somebody's text in a shell: it comes by `env`.
                assert!(!script.contains("${{"), "{what}: {script}");
                run(Command::new("bash").arg("-n").arg(directory.write("script", script)));
                for target in script.split("make ").skip(1).filter_map(|rest| rest.split_whitespace().next()) {
                    assert!(makefile.contains(&format!("\n{target}:")), "{what}: no make {target}");
                }
                scripts += 1;
            }
        }
    }
    assert!(scripts > 8, "{scripts} scripts");
}

/// The scripts, those in the steps of workflows, and the recipes of make.
#[test]
fn shellcheck_warns_of_no_script() {
    if which("shellcheck").is_none() {
        return tier::skip_special("no shellcheck", "apt-get install shellcheck");
    }
    let make = || {
        let mut command = Command::new("make");
        command.arg("-C").arg(repository());
        command
    };
    run(make().arg("scripts"));
    let directory = TempDir::new("scripts");
    let (mut all, mut steps) = (Vec::new(), 0);
    for workflow in ["ci.yml", "release.yml"] {
        let jobs = jobs(workflow);
        let of = |job: &Value| job["steps"].as_array().cloned().unwrap_or_default();
        for script in jobs.values().flat_map(of).filter_map(|step| step["run"].as_str().map(str::to_owned)) {
            steps += 1;
            // As GitHub runs them.
            all.push(directory.write(format!("{workflow}-{steps}"), format!("#!/bin/bash -e\n{script}\n")));
        }
    }
    assert!(steps > 8, "{steps} scripts of workflows");
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("Makefile");
    let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY: ")).expect("the targets");
    for target in targets.split(' ') {
        let recipe = run(make().args(["--silent", "--dry-run", target]));
        all.push(directory.write(format!("make-{target}"), format!("#!/bin/bash -eu\n{recipe}\n")));
    }
    run(Command::new("shellcheck").arg("--severity=warning").args(all));
}

/// The tests of a whole cluster find all of its images there.
#[test]
fn ci_loads_each_image_that_a_cluster_of_the_tests_needs() {
    let jobs = jobs("ci.yml");
    let steps = jobs["test"]["steps"].as_array().expect("steps");
    let scripts: Vec<&str> = steps.iter().filter_map(|step| step["run"].as_str()).collect();
    let with = |text: &str| scripts.iter().find(|script| script.contains(text)).unwrap_or_else(|| panic!("no {text}"));
    let cluster = with("KUBECONFIG=");
    let loaded = cluster.split("kind load docker-image ").nth(1).and_then(|rest| rest.lines().next()).expect("images");
    let named = cluster.split("ETCD_TLS_TEST_ETCD_IMAGE=").nth(1).and_then(|rest| rest.split('"').next());
    let etcd = named.expect("the image of etcd");
    assert!(cluster.contains(&format!("docker build -t {etcd} ")), "{etcd} is not built");
    for image in ["etcd-tls-webhook:0.1.0", "etcd-tls-sidecar:0.1.0", etcd] {
        assert!(loaded.split(' ').any(|name| name == image), "{image} is not loaded");
    }
}

/// From the oldest version that the chart installs on to the one that the tests of tier 2 run on here.
#[test]
fn ci_runs_on_every_version_of_kubernetes_that_is_supported() {
    let Some(assets) = tier::kubernetes() else { return };
    let minor = |text: &str| -> u32 {
        let rest = text.split("1.").nth(1).unwrap_or_else(|| panic!("no version in {text}"));
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a minor version")
    };
    let chart = fs::read_to_string(repository().join("manifests/chart/Chart.yaml")).expect("Chart.yaml");
    let oldest = minor(chart.split("kubeVersion:").nth(1).expect("kubeVersion"));
    let here = minor(&run(Command::new(assets.join("kube-apiserver")).arg("--version")));
    let versions: Vec<u32> = jobs("ci.yml")["test"]["strategy"]["matrix"]["kubernetes"]
        .as_array()
        .expect("versions")
        .iter()
        .map(|version| minor(version.as_str().expect("a text: 1.30 is not 1.3")))
        .collect();
    assert_eq!(versions, (oldest..=*versions.last().expect("a version")).collect::<Vec<_>>());
    assert!(versions.contains(&here), "{versions:?} has no 1.{here}");
}

/// A release has both architectures, and its scripts name files as `dist/dist.sh` does.
#[test]
fn a_release_has_both_architectures() {
    let release = jobs("release.yml");
    let include = release["build"]["strategy"]["matrix"]["include"].as_array().expect("architectures").clone();
    let architectures: Vec<_> = include.iter().filter_map(|entry| entry["architecture"].as_str()).collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    let publish = release["publish"].to_string();
    let dist = fs::read_to_string(repository().join("dist/dist.sh")).expect("dist.sh");
    assert!(dist.contains("-$version-$platform.oci.tar") && dist.contains("platform=linux-$architecture"));
    assert!(publish.contains("-$version-linux-$architecture.oci.tar"));
    assert_eq!(
        release["publish"]["permissions"]["id-token"], "write",
        "signing without a key needs the workflow's identity"
    );
}
