//! The warnings of the third policy, as kubectl shows them.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{apiserver::ApiServer, eventually, temp::TempDir};

use super::{NAMESPACE, member, start};

/// The warnings at the creation of `pod`.
fn warnings(api: &ApiServer, pod: &Value) -> Vec<String> {
    let mut pod = pod.clone();
    pod["metadata"]["generateName"] = json!("x-");
    let directory = TempDir::new("warned");
    let file = directory.write("pod.json", pod.to_string()).display().to_string();
    let created = api.kubectl_command(&["-n", NAMESPACE, "create", "--dry-run=server", "-f", &file]).output();
    let created = created.expect("kubectl");
    let said = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(created.status.success(), "{said}");
    let of_ours = |line: &&str| line.contains("'etcd-tls-injection-warnings'");
    said.lines().filter(of_ours).filter_map(|line| Some(line.split_once("': ")?.1.to_owned())).collect()
}

/// A member of which nothing is to be said, changed.
fn good(annotations: &[(&str, &str)], change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = member(&[&[("options", "env")], annotations].concat());
    pod["spec"]["containers"][0]["command"] = json!([
        "etcd",
        "--listen-client-urls=https://0.0.0.0:2379",
        "--listen-peer-urls=https://0.0.0.0:2380",
        "--advertise-client-urls=https://etcd-0.etcd.pods.svc:2379",
        "--initial-advertise-peer-urls=https://etcd-0.etcd.pods.svc:2380",
        "--initial-cluster=a=https://etcd-0.etcd.pods.svc:2380",
        "--name=a",
    ]);
    change(&mut pod["spec"]);
    pod
}

fn variable(spec: &mut Value, name: &str, value: Value) {
    let entry = match value {
        Value::String(_) => json!({"name": name, "value": value}),
        from => json!({"name": name, "valueFrom": from}),
    };
    spec["containers"][0]["env"] = json!([entry]);
}

fn set(spec: &mut Value, flag: &str, value: &str) {
    let command = spec["containers"][0]["command"].as_array_mut().expect("a command");
    command.retain(|word| !word.as_str().is_some_and(|word| word.starts_with(&format!("--{flag}="))));
    command.extend((!value.is_empty()).then(|| json!(format!("--{flag}={value}"))));
}

fn beside(spec: &mut Value, list: &str, mut container: Value) {
    container["name"] = json!("other");
    container["image"] = json!("other");
    container["securityContext"] = json!({"runAsUser": 4000});
    match spec[list].as_array_mut() {
        Some(containers) => containers.push(container),
        None => spec[list] = json!([container]),
    }
}

type Change = Box<dyn Fn(&mut Value)>;

/// The cases with a warning: the container and the words.
fn warned() -> Vec<(Change, &'static str, &'static str)> {
    let flag = |flag: &'static str, value: &'static str| -> Change { Box::new(move |s| set(s, flag, value)) };
    let by_variable =
        |name: &'static str, value: Value| -> Change { Box::new(move |s| variable(s, name, value.clone())) };
    let beside_it = |list: &'static str, other: Value| -> Change { Box::new(move |s| beside(s, list, other.clone())) };
    let key = json!({"configMapKeyRef": {"name": "a", "key": "b"}});
    let from = |prefix: Value| -> Change {
        Box::new(move |s| s["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "a"}, "prefix": prefix}]))
    };
    let probe = |kind: &str, port: Value| json!({"command": ["x"], "livenessProbe": {kind: {"port": port}}});
    let rsa = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    let mut all: Vec<(Change, &str, &str)> = Vec::new();
    for option in ["listen-client-urls", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls"] {
        all.push((flag(option, "https://[::]:1,http://0.0.0.0:2379"), "etcd", "still says http://"));
        let name = Box::leak(format!("ETCD_{}", option.to_uppercase().replace('-', "_")).into_boxed_str());
        all.push((by_variable(name, json!("http://0.0.0.0:2379")), "etcd", "still says http://"));
        all.push((by_variable(name, key.clone()), "etcd", "envFrom or valueFrom may set"));
    }
    all.extend([
        (flag("initial-cluster", "a=https://a:1,b=http://b:2"), "etcd", "--initial-cluster still says http://"),
        (
            flag("listen-client-urls", ""),
            "etcd",
            "--listen-client-urls is not set, so etcd listens on http://localhost:2379",
        ),
        (flag("listen-peer-urls", ""), "etcd", "--listen-peer-urls is not set"),
        (from(json!(null)), "etcd", "envFrom or valueFrom may set"),
        (from(json!("ETC")), "etcd", "envFrom or valueFrom may set"),
        (from(json!("ETCD_LISTEN_")), "etcd", "envFrom or valueFrom may set"),
        (flag("discovery-srv", "etcd.pods.svc"), "etcd", "by discovery"),
        (by_variable("ETCD_DISCOVERY", json!("https://discovery.example.com/x")), "etcd", "by discovery"),
        (
            Box::new(move |s| {
                set(s, "cipher-suites", rsa);
                set(s, "tls-max-version", "TLS1.2");
            }),
            "etcd",
            "--cipher-suites has none for the key",
        ),
        (
            beside_it("containers", json!({"command": ["etcdctl", "--endpoints=https://127.0.0.1:2379", "defrag"]})),
            "other",
            "needs a client certificate",
        ),
        (
            beside_it("initContainers", json!({"command": ["sh", "-c", "etcdctl member add $HOSTNAME"]})),
            "other",
            "needs a client certificate",
        ),
        (beside_it("containers", json!({"command": ["curl", "http://127.0.0.1:2379/metrics"]})), "other", "by http://"),
        (
            beside_it(
                "containers",
                json!({"command": ["x"], "env": [{"name": "ETCD", "value": "http://127.0.0.1:2379"}]}),
            ),
            "other",
            "by http://",
        ),
        (
            beside_it("containers", json!({"command": ["curl", "-k", "https://127.0.0.1:2379/metrics"]})),
            "other",
            "without a client certificate",
        ),
        (beside_it("containers", probe("httpGet", json!(2379))), "other", "by httpGet or grpc"),
        (beside_it("containers", probe("grpc", json!(2379))), "other", "by httpGet or grpc"),
        (
            beside_it("containers", {
                let mut named = probe("httpGet", json!("client"));
                named["ports"] = json!([{"name": "client", "containerPort": 2379}]);
                named
            }),
            "other",
            "by httpGet or grpc",
        ),
    ]);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_would_fail_or_stay_in_plain_text_is_warned_of() {
    let Some(api) = start().await else { return };
    eventually("the policy that warns is in force", Duration::from_secs(60), || async {
        let said = warnings(&api, &good(&[], |spec| set(spec, "listen-client-urls", "http://0.0.0.0:2379")));
        if said.is_empty() { Err("no warning yet".to_owned()) } else { Ok(()) }
    })
    .await;
    let mut faults = Vec::new();
    for (change, container, words) in warned() {
        let pod = good(&[], &change);
        let said = warnings(&api, &pod);
        let wanted = |line: &&String| line.starts_with(&format!("container {container}: ")) && line.contains(words);
        if said.iter().filter(wanted).count() != 1 || said.len() != 1 {
            faults.push(format!("{words:?} of {}: {said:?}", pod["spec"]));
        }
    }
    type Fine<'a> = (&'a str, &'a [(&'a str, &'a str)], Change);
    let fine: Vec<Fine<'_>> = vec![
        ("good", &[], Box::new(|_| {})),
        (
            "a probe elsewhere",
            &[],
            Box::new(|s| beside(s, "containers", json!({"livenessProbe": {"httpGet": {"port": 8080}}}))),
        ),
        (
            "a port without a probe",
            &[],
            Box::new(|s| beside(s, "containers", json!({"ports": [{"containerPort": 2379}]}))),
        ),
        (
            "tcpSocket",
            &[],
            Box::new(|s| beside(s, "containers", json!({"livenessProbe": {"tcpSocket": {"port": 2379}}}))),
        ),
        (
            "another prefix",
            &[],
            Box::new(|s| s["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "a"}, "prefix": "APP_"}])),
        ),
        (
            "offline",
            &[],
            Box::new(|s| beside(s, "containers", json!({"command": ["etcdctl", "snapshot", "status", "/x"]}))),
        ),
        (
            "with a certificate",
            &[("roles", "peer,server,client"), ("containers", "etcd,other")],
            Box::new(|s| {
                beside(s, "containers", json!({"command": ["etcdctl", "--endpoints=https://127.0.0.1:2379", "defrag"]}))
            }),
        ),
        (
            "suites for both",
            &[],
            Box::new(|s| {
                set(
                    s,
                    "cipher-suites",
                    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                );
                set(s, "tls-max-version", "TLS1.2");
            }),
        ),
        (
            "suites for RSA",
            &[("key", "rsa-2048")],
            Box::new(|s| {
                set(s, "cipher-suites", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
                set(s, "tls-max-version", "TLS1.2");
            }),
        ),
    ];
    for (what, annotations, change) in fine {
        let said = warnings(&api, &good(annotations, &change));
        if !said.is_empty() {
            faults.push(format!("{what}: {said:?}"));
        }
    }
    // A client of another pod's etcd.
    for (scheme, told) in [("http", 1), ("https", 0)] {
        let mut client = member(&[("options", "env"), ("roles", "client")]);
        client["spec"]["containers"][0]["command"] = json!(["app", format!("--etcd={scheme}://etcd.pods.svc:2379")]);
        let said = warnings(&api, &client);
        if said.len() != told || !said.iter().all(|line| line.contains("by http://")) {
            faults.push(format!("a client by {scheme}: {said:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    // Long command lines of many containers do not exceed the cost that the API server takes.
    let large = good(&[], |spec| {
        let words: Vec<String> = (0..100).map(|n| format!("--flag{n}={}", "y".repeat(60))).collect();
        for n in 0..30 {
            let env: Vec<Value> =
                (0..200).map(|n| json!({"name": format!("V{n}"), "value": "x".repeat(100)})).collect();
            let other = json!({"name": format!("c{n}"), "image": "x", "args": words, "env": env});
            spec["containers"].as_array_mut().expect("containers").push(other);
        }
        beside(spec, "containers", json!({"command": ["curl", "http://127.0.0.1:2379/metrics"]}));
    });
    assert!(
        warnings(&api, &large).iter().any(|line| line.starts_with("container other: ")),
        "{:?}",
        warnings(&api, &large)
    );
}
