//! The chart's values: each is described and documented, and one that makes no sense is refused.

use std::{collections::BTreeSet, env, fmt::Write as _, fs, process::Command};

use serde_json::{Value, json};
use tests::{
    process::{binary, run},
    repository,
};

use super::{chart, helm, rendered, template};

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).expect("the schema")).expect("JSON")
}

fn defaults() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(chart().join("values.yaml")).expect("the values")).expect("YAML")
}

/// Each value that stands in values.yaml: its path, its default, its part of the schema. Both hold the same.
fn leaves(path: &str, schema: &Value, default: &Value, found: &mut Vec<(String, Value, Value)>) {
    // An object that is empty by default is one value: nothing of it stands in values.yaml.
    let empty = default.as_object().is_some_and(serde_json::Map::is_empty);
    let inner = schema["properties"].as_object().filter(|_| !empty);
    let Some(properties) = inner else {
        found.push((path.to_owned(), default.clone(), schema.clone()));
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path} takes a value that nothing reads");
    let default = default.as_object().unwrap_or_else(|| panic!("{path} is missing in values.yaml"));
    let names = |of: &serde_json::Map<String, Value>| {
        of.keys().filter(|name| *name != "global").cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(names(default), names(properties), "values.yaml and its schema at {path:?}");
    for (name, value) in default {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(&path, &properties[name], value, found);
    }
}

#[test]
fn every_value_is_documented() {
    let mut found = Vec::new();
    leaves("", &schema(), &defaults(), &mut found);
    let mut table = "| value | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for (path, default, schema) in &found {
        let mut meaning =
            schema["description"].as_str().unwrap_or_else(|| panic!("{path} has no description")).to_owned();
        assert!(!meaning.contains(['|', '\n']), "{meaning}");
        if let Some(flags) = schema["properties"].as_object().filter(|_| path.ends_with(".flags")) {
            let names: Vec<_> = flags.keys().map(|name| format!("`{name}`")).collect();
            let _ = write!(meaning, " There are {}.", names.join(", "));
        }
        if let Some(names) = schema["enum"].as_array() {
            let names: Vec<_> = names
                .iter()
                .filter(|n| **n != "")
                .map(|name| format!("`{}`", name.as_str().unwrap_or_default()))
                .collect();
            let _ = write!(meaning, " One of {}.", names.join(", "));
        }
        let _ = writeln!(table, "| `{path}` | `{default}` | {meaning} |");
    }
    let path = repository().join("docs/chart.md");
    let page = fs::read_to_string(&path).expect("docs/chart.md");
    let (text, _) = page.split_once("## Values\n\n").expect("the section");
    let page = format!("{text}## Values\n\n{table}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("write docs/chart.md");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|there| there == page),
        "docs/chart.md is not current: UPDATE_DOCS=1 writes it"
    );
}

/// The keys of a policy that the schema and the template know are those of the example, which the processes read.
#[test]
fn keys_of_the_policy_are_those_of_the_example() {
    let text = fs::read_to_string(repository().join("manifests/policy.yaml")).expect("the policy");
    let map: Value = serde_saphyr::from_str(&text).expect("YAML");
    let example = map["data"]["policy.yaml.example"].as_str().expect("the example");
    etcd_tls_contract::policy::Policy::parse(example).expect("the example can be read");
    let example: Value = serde_saphyr::from_str(example).expect("YAML");
    let schema = schema();
    let keys = |of: &Value| -> Vec<String> { of.as_object().expect("keys").keys().cloned().collect() };
    let known = keys(&schema["properties"]["policy"]["properties"]);
    let sorted = |mut keys: Vec<String>| {
        keys.sort();
        keys
    };
    assert_eq!(sorted(known.clone()), sorted(keys(&example)));
    let template = fs::read_to_string(chart().join("templates/checks.yaml")).expect("a template");
    let listed: Vec<String> = known.iter().map(|key| format!("{key:?}")).collect();
    assert!(template.contains(&format!("list {} ", listed.join(" "))), "{listed:?}");
}

/// The flags that the schema knows are those that the program has, but for the chart's own.
#[test]
fn flags_are_those_of_the_programs() {
    let own = [
        "address",
        "admin-address",
        "approve-issuer",
        "approve-signer",
        "cert-manager",
        "external-serving-pair",
        "cluster-trust-bundles",
        "help",
        "identity",
        "log-format",
        "log-level",
        "namespace",
        "pod-certificates",
        "policy-file",
        "serving-dir",
        "sidecar-image",
    ];
    for process in ["admit", "approve", "sign"] {
        let help = run(Command::new(binary("etcd-tls-webhook")).args([process, "--help"]));
        let flags: BTreeSet<String> = help
            .lines()
            .filter_map(|line| line.trim_start().trim_start_matches("-h, ").strip_prefix("--"))
            .filter_map(|line| line.split([' ', '=']).next())
            .map(str::to_owned)
            .filter(|flag| !own.contains(&flag.as_str()))
            .collect();
        assert!(flags.len() > 2, "{help}");
        let schema = schema();
        let known = schema["properties"][process]["properties"]["flags"]["properties"].as_object().expect("flags");
        assert_eq!(known.keys().cloned().collect::<BTreeSet<_>>(), flags, "flags of {process} in values.schema.json");
    }
}

#[test]
fn values_reach_the_objects() {
    let Some(helm) = helm() else { return };
    let digest = format!("sha256:{}", "a".repeat(64));
    let objects = rendered(
        &helm,
        &json!({
            "images": {
                "webhook": {"repository": "example.com:5000/w", "tag": "v9"},
                "sidecar": {"repository": "example.com/s", "digest": digest},
                "pullPolicy": "Always",
                "pullSecrets": ["pull"],
            },
            "policy": {"clusterDomain": "example.test"},
            "log": {"level": "info,etcd_tls_webhook=debug", "format": "json"},
            "admit": {
                "replicas": 1,
                "resources": {"limits": {"memory": "256Mi"}},
                "flags": {"workers": 2, "leave-out": ["kube-system", "etcd-tls-system", "infra"], "sidecar-user": 1_000_680_000},
            },
            "approve": {"flags": {"live-reads": true, "no-trust-watch": true}},
            "sign": {"flags": {"live-reads": false, "max-lifetime": "1h30m"}},
            "nodeSelector": {"pool": "infra"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"example.com/a": "1"},
            "topologySpread": {"whenUnsatisfiable": "DoNotSchedule"},
            "networkPolicy": {"enabled": false},
            "certManager": {"servingPair": {"enabled": true, "issuer": {"name": "company"}}},
            "monitoring": {"enabled": true, "interval": "1m", "labels": {"release": "prometheus"}, "runbookUrl": "https://docs.example.com/runbook.html"},
        }),
    );
    let of = |kind: &str, name: &str| {
        let found = objects.iter().find(|((k, _, n), _)| k == kind && n == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}")).1
    };
    let sidecar = format!("example.com/s@{digest}");
    let arguments = |process: &str| {
        let deployment = of("Deployment", &format!("etcd-tls-{process}"));
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], "example.com:5000/w:v9");
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
        // Values of maps are merged with the defaults.
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "pool": "infra"}));
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(pod["affinity"], json!({"nodeAffinity": {}}));
        assert_eq!(pod["topologySpreadConstraints"][0]["whenUnsatisfiable"], "DoNotSchedule");
        assert_eq!(deployment["spec"]["template"]["metadata"]["annotations"]["example.com/a"], "1");
        let arguments = pod["containers"][0]["args"].as_array().expect("arguments").clone();
        let arguments: Vec<String> = arguments.iter().map(|a| a.as_str().expect("a text").to_owned()).collect();
        assert!(arguments.contains(&"--log-level=info,etcd_tls_webhook=debug".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"--log-format=json".to_owned()), "{arguments:?}");
        arguments
    };
    let admit = arguments("admit");
    for argument in ["--workers=2", "--leave-out=kube-system,etcd-tls-system,infra", "--sidecar-user=1000680000"] {
        assert!(admit.contains(&argument.to_owned()), "{argument}: {admit:?}");
    }
    for argument in ["--live-reads", "--no-trust-watch"] {
        assert!(arguments("approve").contains(&argument.to_owned()), "{argument}");
    }
    let sign = arguments("sign");
    assert!(sign.contains(&"--external-serving-pair".to_owned()), "{sign:?}");
    assert!(
        sign.contains(&"--max-lifetime=1h30m".to_owned()) && !sign.iter().any(|a| a.contains("live-reads")),
        "{sign:?}"
    );
    // The programs take them.
    for (process, arguments) in [("admit", admit), ("approve", arguments("approve")), ("sign", sign)] {
        assert_eq!(arguments[0], process);
        run(Command::new(binary("etcd-tls-webhook")).args(arguments).arg("--help"));
    }

    let certificate = of("Certificate", "etcd-tls-admit");
    assert_eq!(certificate["spec"]["secretName"], "etcd-tls-admit-serving");
    assert_eq!(
        certificate["spec"]["issuerRef"],
        json!({"kind": "ClusterIssuer", "name": "company", "group": "cert-manager.io"})
    );
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let injected = &of(kind, "etcd-tls")["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
        assert_eq!(*injected, "etcd-tls-system/etcd-tls-admit", "{kind}");
    }
    let admit = of("Deployment", "etcd-tls-admit");
    assert_eq!(admit["spec"]["replicas"], 1);
    let pod = &admit["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][0]["image"], sidecar);
    assert_eq!(pod["containers"][0]["env"], json!([{"name": "ETCD_TLS_SIDECAR_IMAGE", "value": sidecar}]));
    assert_eq!(
        pod["containers"][0]["resources"],
        json!({"requests": {"cpu": "20m", "memory": "24Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}})
    );
    assert_eq!(of("ConfigMap", "etcd-tls-policy")["data"]["policy.yaml"], "clusterDomain: example.test\n");
    let budgets: Vec<_> =
        objects.keys().filter(|(kind, _, _)| kind == "PodDisruptionBudget").map(|(_, _, n)| n.as_str()).collect();
    assert_eq!(budgets, ["etcd-tls-approve", "etcd-tls-sign"]);
    assert!(!objects.keys().any(|(kind, _, _)| kind == "NetworkPolicy"));
    let monitor = of("PodMonitor", "etcd-tls-sidecars");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["interval"], "1m");

    let text = "clusterDomain: example.test\nkeys: [ed25519]   # ours\n";
    let objects = rendered(&helm, &json!({"policy": text}));
    let policy = &objects[&("ConfigMap".into(), "etcd-tls-system".into(), "etcd-tls-policy".into())];
    assert_eq!(policy["data"]["policy.yaml"].as_str().map(str::trim_end), Some(text.trim_end()));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let Some(helm) = helm() else { return };
    let refused = [
        ("an unknown value", json!({"image": {"tag": "v9"}})),
        ("an unknown value of a process", json!({"sign": {"replica": 2}})),
        ("no replica", json!({"admit": {"replicas": 0}})),
        ("replicas as text", json!({"admit": {"replicas": "two"}})),
        ("a third of a replica", json!({"approve": {"replicas": 0.3}})),
        ("no repository", json!({"images": {"webhook": {"repository": ""}}})),
        ("a repository with a tag's space", json!({"images": {"sidecar": {"repository": "a b"}}})),
        ("a digest that is cut", json!({"images": {"sidecar": {"digest": "sha256:abc"}}})),
        ("a tag that is a number", json!({"images": {"webhook": {"tag": 0.1}}})),
        ("a pull policy", json!({"images": {"pullPolicy": "Sometimes"}})),
        ("a pull secret that is an object", json!({"images": {"pullSecrets": [{"name": "pull"}]}})),
        ("a log level", json!({"log": {"level": "loud"}})),
        ("a log format", json!({"log": {"format": "xml"}})),
        ("an unknown flag", json!({"sign": {"flags": {"max-life": "1h"}}})),
        ("a flag of another process", json!({"admit": {"flags": {"live-reads": true}}})),
        ("a flag that the chart sets", json!({"admit": {"flags": {"address": "[::]:1"}}})),
        ("a duration without a unit", json!({"sign": {"flags": {"max-lifetime": "90"}}})),
        ("a duration of nothing", json!({"sign": {"flags": {"max-lifetime": ""}}})),
        ("no worker", json!({"approve": {"flags": {"workers": 0}}})),
        ("root for the sidecar", json!({"admit": {"flags": {"sidecar-user": 0}}})),
        ("memory in words", json!({"sign": {"resources": {"limits": {"memory": "much"}}}})),
        ("an unknown resource", json!({"sign": {"resources": {"limits": {"disk": "1Gi"}}}})),
        ("a switch as text", json!({"monitoring": {"enabled": "no"}})),
        ("an interval", json!({"monitoring": {"interval": "often"}})),
        (
            "admission on the host's network without admission",
            json!({"withoutWebhook": {"enabled": true}, "admit": {"hostNetwork": true}}),
        ),
        (
            "a flag of admission without admission",
            json!({"withoutWebhook": {"enabled": true}, "admit": {"flags": {"sidecar-user": 7}}}),
        ),
        (
            "a serving pair of no admission",
            json!({
                "withoutWebhook": {"enabled": true},
                "certManager": {"servingPair": {"enabled": true, "issuer": {"name": "x"}}},
            }),
        ),
        ("a serving pair of no issuer", json!({"certManager": {"servingPair": {"enabled": true}}})),
        ("a policy that is a list", json!({"policy": ["keys"]})),
        ("a node label that is a number", json!({"nodeSelector": {"pool": 1}})),
        ("tolerations that are a map", json!({"tolerations": {"operator": "Exists"}})),
        ("a toleration of another shape", json!({"tolerations": [{"taint": "a"}]})),
        ("a toleration of no effect that there is", json!({"tolerations": [{"key": "a", "effect": "Never"}]})),
        ("an affinity to nothing", json!({"affinity": {"zone": "a"}})),
        ("an affinity of another shape", json!({"affinity": {"podAntiAffinity": {"required": []}}})),
        ("an unknown key of the policy", json!({"policy": {"clusterDomian": "a"}})),
        ("a policy's life in days", json!({"policy": {"lifetime": {"min": "7d"}}})),
        ("a policy's unknown algorithm", json!({"policy": {"keys": ["rsa-1024"]}})),
        ("a policy's users as a map", json!({"policy": {"users": {"namespace": "a"}}})),
        ("no authority for a namespace", json!({"policy": {"authoritiesPerNamespace": 0}})),
        ("a runbook that is no link", json!({"monitoring": {"runbookUrl": "runbook"}})),
        ("others' signers, which are not approved", json!({"approveOthers": {"signers": ["example.com/ca"]}})),
    ];
    for (what, values) in refused {
        let output = template(&helm, "etcd-tls-system", &values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("values don't meet the specifications"), "{what}: {said}");
    }
    // One value against another.
    for (values, words) in [
        (
            json!({"sign": {"resources": {"requests": {"memory": "1Gi"}}}}),
            "the request for memory, 1Gi, is above the limit, 128Mi",
        ),
        (
            json!({"admit": {"resources": {"requests": {"cpu": "1500m"}}}}),
            "the request for cpu, 1500m, is above the limit, 1",
        ),
        (
            json!({"sign": {"flags": {"serving-lifetime": "2h", "serving-ca-lifetime": "1h59m"}}}),
            "serving-lifetime, 2h, is above",
        ),
        (
            json!({"sign": {"flags": {"record-memory": 65}}}),
            "record-memory, 65 MiB, is above half of the memory limit, 128Mi",
        ),
        (
            json!({"sign": {"resources": {"limits": {"memory": "60Mi"}, "requests": {"memory": "48Mi"}}}}),
            "record-memory, 32 MiB",
        ),
        (json!({"policy": {"lifetime": {"min": "200h"}}}), "lifetime.min, 200h, is above lifetime.max, 168h"),
        (json!({"policy": "lifetime: {min: 2h, max: 1h30m}"}), "lifetime.min, 2h, is above lifetime.max, 1h30m"),
        (json!({"policy": "clusterDomian: a"}), "unknown key \"clusterDomian\""),
        (json!({"policy": "{"}), "policy: it is no YAML"),
    ] {
        let output = template(&helm, "etcd-tls-system", &values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{values}: {said}");
    }
    for sense in [
        json!({"sign": {"resources": {"requests": {"cpu": 1, "memory": "128Mi"}}, "flags": {"serving-lifetime": "17520h"}}}),
        json!({"sign": {"flags": {"record-memory": 64}, "resources": {"limits": {"memory": 134_217_728}}}}),
        json!({"policy": "lifetime: {min: 10m, max: 168h}"}),
        json!({"policy": {"lifetime": {"min": "1h", "max": "1h"}, "idleAuthorities": "never", "clusterDomain": "a"}}),
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
        json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]}),
    ] {
        let output = template(&helm, "etcd-tls-system", &sense);
        assert!(output.status.success(), "{sense}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What the API server does not have.
    for (values, version, words) in [
        (json!({"withoutWebhook": {"enabled": true}}), "1.35.9", "withoutWebhook.enabled needs Kubernetes 1.36"),
        (json!({"podCertificates": {"enabled": true}}), "1.34.9", "podCertificates.enabled needs Kubernetes 1.35"),
    ] {
        let file = tests::temp::TempDir::new("values");
        let values = file.write("values.yaml", values.to_string());
        let mut command = Command::new(&helm);
        command.args(["template", "etcd-tls"]).arg(chart());
        command.args(["--kube-version", version, "-n", "etcd-tls-system", "-f"]).arg(values);
        let output = command.env("HOME", file.path()).env_remove("KUBECONFIG").output().expect("run helm");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
    // Rights, admission policies and commands name the namespace.
    let output = template(&helm, "default", &json!({}));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("helm install -n etcd-tls-system"), "{said}");
}
