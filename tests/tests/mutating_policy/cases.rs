//! The pods that are held against each other: golden shapes, members with each annotation, members that differ in more.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tests::repository;

/// A member whose etcd listens where the usual one does, with these annotations of ours.
pub fn member(annotations: &[(&str, &str)]) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"labels": {"etcd-tls": "dynamic"}, "annotations": {}},
        "spec": {"containers": [{
            "name": "etcd", "image": "etcd", "command": ["etcd", "--name=a"], "securityContext": {"runAsUser": 1000},
        }]},
    });
    for (key, value) in
        [("client-url", "https://127.0.0.1:2379"), ("peer-url", "https://127.0.0.1:2380")].iter().chain(annotations)
    {
        pod["metadata"]["annotations"][format!("etcd-tls.dev/{key}")] = json!(value);
    }
    pod
}

/// The pods of the golden shapes.
pub fn shapes() -> Vec<(String, Value)> {
    let directory = repository().join("webhook/tests/golden");
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("the golden files").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.contains(".injected.") || name.ends_with(".txt") {
            continue;
        }
        let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
        let text = fs::read_to_string(&file).expect("a golden file");
        let documents: Vec<Value> =
            serde_saphyr::from_multiple_with_options(&text, options).unwrap_or_else(|e| panic!("{name}: {e}"));
        for document in documents {
            let items = document["items"].as_array().cloned().unwrap_or_else(|| vec![document]);
            for (index, item) in items.into_iter().enumerate() {
                let template = match item["kind"].as_str().unwrap_or_default() {
                    "Pod" => &item,
                    "CronJob" => &item["spec"]["jobTemplate"]["spec"]["template"],
                    _ => &item["spec"]["template"],
                };
                if !template["spec"]["containers"].is_array() {
                    continue;
                }
                let mut pod = json!({
                    "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
                    "metadata": {"labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"]},
                });
                for field in ["labels", "annotations"] {
                    if !pod["metadata"][field].is_object() {
                        pod["metadata"][field] = json!({});
                    }
                }
                if pod["metadata"]["labels"]["etcd-tls"].is_null() {
                    pod["metadata"]["labels"]["etcd-tls"] = json!("dynamic");
                }
                pods.push((format!("{name} {index}"), pod));
            }
        }
    }
    pods
}

/// The shapes that the policies do not inject into, by what they say.
pub const STRICTER: [(&str, &str); 25] = [
    ("client-deployment.yaml 0 env", "etcd-tls.dev/issuer: without the webhook it is csr"),
    ("client-deployment.yaml 0 none", "etcd-tls.dev/issuer: without the webhook it is csr"),
    ("config-file.yaml 0 env", "a config file of etcd overrides the environment: write options: none"),
    ("cronjob-own-flags.yaml 0 env", "etcdctl stops at both"),
    ("foreign-issuer.yaml 0 env", "etcd-tls.dev/issuer: without the webhook it is csr"),
    ("foreign-issuer.yaml 0 none", "etcd-tls.dev/issuer: without the webhook it is csr"),
    ("foreign-trust-bundle.yaml 0 env", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-bundle.yaml 0 none", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-configmap.yaml 0 env", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-configmap.yaml 0 none", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-issuer.yaml 0 env", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-issuer.yaml 0 none", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-signer.yaml 0 env", "etcd-tls.dev/trust: is for the issuers of others"),
    ("foreign-trust-signer.yaml 0 none", "etcd-tls.dev/trust: is for the issuers of others"),
    ("grpc-proxy.yaml 0 env", "etcd stops at both"),
    ("hosted-control-plane.yaml 0 env", "etcd may listen for metrics with TLS"),
    ("hosted-control-plane.yaml 0 none", "etcd may listen for metrics with TLS"),
    ("ipv6.yaml 0 env", "etcd may listen for metrics with TLS"),
    ("ipv6.yaml 0 none", "etcd may listen for metrics with TLS"),
    ("kubeadm-static-pod.yaml 0 env", "etcd stops at both"),
    ("openshift-static-pod.yaml 0 env", "etcd may listen for metrics with TLS"),
    ("openshift-static-pod.yaml 0 none", "etcd may listen for metrics with TLS"),
    ("reload-probe.yaml 0 env", "the container has a liveness probe of its own"),
    ("reload-probe.yaml 0 none", "the container has a liveness probe of its own"),
    ("virtual-cluster.yaml 0 env", "etcd stops at both"),
];

/// Annotations of which both think the same.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    ("roles", "server"),
    ("roles", "client,peer"),
    ("roles", "peer,server,client,metrics"),
    ("roles", "metrics"),
    ("roles", ""),
    ("roles", "peer,"),
    ("roles", "peer,peer"),
    ("roles", "Peer"),
    ("roles", "peer, server"),
    ("cluster", "events"),
    ("cluster", "Events"),
    ("cluster", "-a"),
    ("cluster", ""),
    ("containers", "etcd"),
    ("containers", "other"),
    ("containers", "etcd,etcd"),
    ("containers", "etcd-tls-sidecar"),
    ("containers", ""),
    ("issuer", "csr"),
    ("issuer", "nonsense"),
    ("duration", "10m"),
    ("duration", "90m"),
    ("duration", "1h30m15s"),
    ("duration", "3600s"),
    ("duration", "0024h"),
    ("duration", "24h0m0s"),
    ("duration", "8784h"),
    ("duration", "8785h"),
    ("duration", "599s"),
    ("duration", "1m1h"),
    ("duration", "24"),
    ("duration", "1.5h"),
    ("duration", " 24h"),
    ("duration", "-24h"),
    ("duration", ""),
    ("key", "ed25519"),
    ("key", "rsa-2048"),
    ("key", "rsa-1024"),
    ("key-rotation", "on-ca-change"),
    ("key-rotation", "never"),
    ("extra-sans", "b.example.com,a.example.com,2001:db8::1,192.0.2.1,*.example.com"),
    ("extra-sans", "127.0.0.1"),
    ("extra-sans", "localhost"),
    ("extra-sans", "*"),
    ("extra-sans", "*.com"),
    ("extra-sans", "a.*.com"),
    ("extra-sans", "A.example.com"),
    ("extra-sans", "1.2.3"),
    ("extra-sans", "192.0.2.01"),
    ("extra-sans", "2001:DB8::1"),
    ("extra-sans", "0.0.0.0"),
    ("extra-sans", "224.0.0.1"),
    ("extra-sans", "255.255.255.255"),
    ("extra-sans", "::ffff:192.0.2.1"),
    ("extra-sans", "fe80::1"),
    ("extra-sans", "a,a"),
    ("extra-sans", ""),
    ("user", "backup"),
    ("mount-path", "/etc/etcd/certs"),
    ("mount-path", "/data/tls.d"),
    ("mount-path", "/etc"),
    ("mount-path", "/usr/bin"),
    ("mount-path", "/usr/bin/x"),
    ("mount-path", "/usr/share"),
    ("mount-path", "/usr/share/x"),
    ("mount-path", "/etc/hosts"),
    ("mount-path", "/run/etcd-tls/x"),
    ("mount-path", "/var/run"),
    ("mount-path", "/"),
    ("mount-path", "etc/x"),
    ("mount-path", "/a/../b"),
    ("mount-path", "/a//b"),
    ("mount-path", "/a/"),
    ("mount-path", "/a b"),
    ("mount-path", "/a'b"),
    ("admin-port", "9180"),
    ("admin-port", "1023"),
    ("admin-port", "65536"),
    ("admin-port", "09180"),
    ("admin-port", "x"),
    ("reload", "none"),
    ("reload", "signal:SIGTERM"),
    ("reload", "signal:SIGHUP"),
    ("reload", "signal:SIGKILL"),
    ("reload", "probe"),
    ("reload", "now"),
    ("resources", "requests.cpu=50m"),
    ("resources", "requests.cpu=1"),
    ("resources", "limits.memory=8Mi"),
    ("resources", "limits.cpu=none,requests.memory=20M"),
    ("resources", "requests.ephemeral-storage=1Gi,limits.ephemeral-storage=1.5Gi"),
    ("resources", "requests.cpu=2,limits.cpu=1"),
    ("resources", "requests.memory=64Mi,limits.memory=64M"),
    ("resources", "requests.cpu=10m,requests.cpu=20m"),
    ("resources", "cpu=1"),
    ("resources", "requests.gpu=1"),
    ("resources", "requests.cpu=1e3"),
    ("resources", ""),
    ("log-level", "debug"),
    ("log-level", "info,etcd_tls_sidecar::restart=debug"),
    ("log-level", "loud"),
    ("log-level", "a-b=debug"),
    ("log-level", "info,info"),
    ("client-url", "https://$(POD_IP):2379"),
    ("client-url", "https://[::1]:2379"),
    ("client-url", "https://etcd.example.com:2379/"),
    ("client-url", "http://127.0.0.1:2379"),
    ("client-url", "https://$(HOST):2379"),
    ("client-url", "https://127.0.0.1:65536"),
    ("client-url", "https://127.0.0.1:0"),
    ("client-url", "127.0.0.1:2379"),
    ("peer-url", "https://127.0.0.1:65535"),
    ("peer-url", "ftp://127.0.0.1"),
    ("revocation", "off"),
    ("revocation", "no"),
    ("trust", "configmap/a"),
    ("renew", "1"),
    ("trusts", "x"),
    ("role", "peer"),
    ("options", " none "),
    ("options", "flags"),
];

/// Annotations that `inject` takes and the policies do not.
pub const STRICTER_ANNOTATIONS: [(&str, &str); 8] = [
    ("issuer", "pod-certificate"),
    ("issuer", "cert-manager:Issuer/a"),
    ("issuer", "csr:client.etcd-tls.dev/prod.etcd"),
    ("extra-sans", "192.0.2.1,192.0.2.2"),
    ("resources", "requests.cpu=0.0001"),
    ("client-url", "https://127.0.0.1"),
    ("client-url", "https://127.0.0.1:2379/path"),
    ("duration", "000000024h"),
];

/// Members that differ in more than an annotation.
pub fn changed() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    let mut with = |what: &str, annotations: &[(&str, &str)], change: &dyn Fn(&mut Value)| {
        let mut pod = member(&[&[("options", "env")], annotations].concat());
        change(&mut pod);
        pods.push((what.to_owned(), pod));
    };
    let etcd = |pod: &mut Value, field: &str, value: Value| pod["spec"]["containers"][0][field] = value;
    let beside = |pod: &mut Value, container: Value| {
        pod["spec"]["containers"].as_array_mut().expect("containers").push(container)
    };
    let volume = |pod: &mut Value, volume: Value| pod["spec"]["volumes"] = json!([volume]);
    for reload in ["auto", "signal:SIGTERM"] {
        let reloads = [("reload", reload)];
        with("root", &reloads, &|p| etcd(p, "securityContext", json!({"runAsUser": 0})));
        with("no user", &reloads, &|p| etcd(p, "securityContext", json!({})));
        with("the pod's user", &reloads, &|p| {
            etcd(p, "securityContext", json!({}));
            p["spec"]["securityContext"] = json!({"runAsUser": 1001, "supplementalGroups": [7]});
        });
        with("the pod is root's", &reloads, &|p| {
            etcd(p, "securityContext", json!({}));
            p["spec"]["securityContext"] = json!({"runAsUser": 0});
        });
        with("hostPID", &reloads, &|p| p["spec"]["hostPID"] = json!(true));
        with("shared", &reloads, &|p| p["spec"]["shareProcessNamespace"] = json!(true));
        with("not shared", &reloads, &|p| p["spec"]["shareProcessNamespace"] = json!(false));
        with("never", &reloads, &|p| p["spec"]["restartPolicy"] = json!("Never"));
        for context in [
            json!({"runAsUser": 2000, "privileged": true}),
            json!({"runAsUser": 2000, "capabilities": {"add": ["NET_RAW", "SETUID"]}}),
            json!({"runAsUser": 2000, "capabilities": {"add": ["NET_RAW"], "drop": ["ALL"]}}),
        ] {
            let other = json!({"name": "other", "image": "other", "securityContext": context});
            with(&format!("beside {other}"), &reloads, &|p| beside(p, other.clone()));
        }
        for user in [json!({}), json!({"runAsUser": 0}), json!({"runAsUser": 1000}), json!({"runAsUser": 2000})] {
            let other = json!({"name": "other", "image": "other", "securityContext": user});
            with(&format!("beside {other}"), &reloads, &|p| beside(p, other.clone()));
            let mut native = other.clone();
            native["restartPolicy"] = json!("Always");
            with(&format!("sidecar {other}"), &reloads, &|p| p["spec"]["initContainers"] = json!([native]));
            with(&format!("init {other}"), &reloads, &|p| p["spec"]["initContainers"] = json!([other]));
        }
    }
    with("the group", &[], &|p| p["spec"]["securityContext"] = json!({"supplementalGroups": [52379]}));
    with("windows", &[], &|p| {
        etcd(p, "securityContext", json!({}));
        p["spec"]["os"] = json!({"name": "windows"});
    });
    with("a node of windows", &[], &|p| p["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"}));
    with("no annotations of others", &[], &|p| p["metadata"]["annotations"]["example.com/a"] = json!("b\nc"));
    with("its name", &[], &|p| beside(p, json!({"name": "etcd-tls-init", "image": "x"})));
    with("its volume", &[], &|p| volume(p, json!({"name": "etcd-tls", "configMap": {"name": "a"}})));
    with("no etcd", &[], &|p| {
        etcd(p, "name", json!("a"));
        beside(p, json!({"name": "b", "image": "b"}));
    });
    with("an only one", &[], &|p| etcd(p, "name", json!("a")));
    with("two members", &[("containers", "a,etcd")], &|p| {
        beside(
            p,
            json!({"name": "a", "image": "a", "command": ["/usr/bin/etcd"], "securityContext": {"runAsUser": 1000}}),
        );
    });
    with("a client beside", &[("containers", "etcd,a"), ("roles", "peer,server,client")], &|p| {
        beside(p, json!({"name": "a", "image": "a", "command": ["backup"], "securityContext": {"runAsUser": 1002}}));
    });
    with("an init container", &[("containers", "restore"), ("roles", "client")], &|p| {
        p["spec"]["initContainers"] = json!([{"name": "a", "image": "a"}, {"name": "restore", "image": "a", "env": [{"name": "A", "value": "b"}]}]);
    });
    let env = |name: &str, value: &str| json!([{"name": name, "value": value}]);
    for (name, value) in [
        ("ETCD_CERT_FILE", "/mine"),
        ("ETCD_CERT_FILE", "/etc/etcd/tls/server/tls.crt"),
        ("ETCD_KEY_FILE", "/mine"),
        ("ETCD_CLIENT_CERT_AUTH", "1"),
        ("ETCD_CLIENT_CERT_AUTH", "false"),
        ("ETCD_PEER_CRL_FILE", "/mine"),
        ("ETCDCTL_CERT", "/mine"),
        ("OTHER", "x"),
    ] {
        with(&format!("{name}={value}"), &[("roles", "peer,server,client")], &|p| etcd(p, "env", env(name, value)));
    }
    with("a variable of the downward API", &[], &|p| {
        etcd(p, "env", json!([{"name": "ETCD_CERT_FILE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]));
    });
    with("declared port", &[], &|p| etcd(p, "ports", json!([{"containerPort": 9179}])));
    with("declared port of UDP", &[], &|p| etcd(p, "ports", json!([{"containerPort": 9179, "protocol": "UDP"}])));
    with("listens there", &[], &|p| etcd(p, "command", json!(["etcd", "--listen-client-urls=https://0.0.0.0:9179"])));
    for (path, read_only) in [
        ("/etc/etcd/tls", false),
        ("/etc/etcd/tls/peer/", false),
        ("/etc/etcd", true),
        ("/etc/etcd/", false),
        ("/data", true),
    ] {
        with(&format!("mount {path} {read_only}"), &[], &|p| {
            volume(p, json!({"name": "a", "emptyDir": {}}));
            etcd(p, "volumeMounts", json!([{"name": "a", "mountPath": path, "readOnly": read_only}]));
        });
    }
    with("mount of a ConfigMap", &[], &|p| {
        volume(p, json!({"name": "a", "configMap": {"name": "a", "optional": true}}));
        etcd(p, "volumeMounts", json!([{"name": "a", "mountPath": "/etc/etcd"}]));
    });
    with("a probe and never", &[("reload", "probe")], &|p| p["spec"]["restartPolicy"] = json!("Never"));
    for shared in [false, true] {
        with(&format!("a probe on failure, {shared}"), &[("reload", "probe")], &|p| {
            p["spec"]["restartPolicy"] = json!("OnFailure");
            if shared {
                p["spec"]["shareProcessNamespace"] = json!(true);
            }
        });
    }
    for (name, command) in [("etcd", "sh"), ("store", "etcd"), ("store", "/usr/bin/etcd"), ("store", "etcdctl")] {
        for (reload, policy) in [("auto", "Always"), ("auto", "Never"), ("probe", "Never"), ("probe", "OnFailure")] {
            with(&format!("native {name} {command} {reload} {policy}"), &[("reload", reload)], &|p| {
                native(p, name);
                p["spec"]["initContainers"][0]["command"] = json!([command, "--name=a"]);
                p["spec"]["restartPolicy"] = json!(policy);
            });
        }
    }
    with("native by its image", &[], &|p| {
        native(p, "store");
        p["spec"]["initContainers"][0].as_object_mut().expect("a container").remove("command");
        p["spec"]["initContainers"][0]["image"] = json!("registry.example:5000/mirror/etcd:v3.6.13");
    });
    with("two native ones", &[], &|p| {
        native(p, "store");
        let mut second = p["spec"]["initContainers"][0].clone();
        second["name"] = json!("second");
        p["spec"]["initContainers"].as_array_mut().expect("init containers").push(second);
    });
    with("a native one and a main one", &[], &|p| {
        native(p, "store");
        etcd(p, "command", json!(["etcd"]));
    });
    with("one that ends", &[], &|p| {
        native(p, "etcd");
        p["spec"]["initContainers"][0].as_object_mut().expect("a container").remove("restartPolicy");
    });
    let full = json!({"requests": {"cpu": "500m", "memory": "512Mi"}});
    let all =
        ["", "requests.memory=none,limits.memory=none", "requests.memory=20Mi", "limits.memory=2Gi", "limits.cpu=2"];
    // Requests of the pod that are missing the API server makes of its containers' before a policy sees them.
    for (bounds, annotations) in [
        (full.clone(), &all[..]),
        (json!({"requests": {"cpu": "1", "memory": "600Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}), &all[..]),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), &all[..2]),
        (json!({"limits": {"memory": "1Gi"}}), &all[..2]),
    ] {
        for resources in annotations {
            let resources = *resources;
            let annotations = [("resources", resources)];
            let annotations = if resources.is_empty() { &[][..] } else { &annotations[..] };
            with(&format!("bounded by {bounds} {resources}"), annotations, &|p| {
                p["spec"]["resources"] = bounds.clone();
                etcd(p, "resources", full.clone());
            });
        }
    }
    pods
}

/// Makes the member a native sidecar of this name, beside a main container.
fn native(pod: &mut Value, name: &str) {
    let mut etcd = pod["spec"]["containers"][0].take();
    etcd["name"] = json!(name);
    etcd["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"] = json!([etcd]);
    pod["spec"]["containers"] =
        json!([{"name": "app", "image": "app", "command": ["/app"], "securityContext": {"runAsUser": 4000}}]);
}

/// Members whose command lines stand in the way, and the reason.
pub fn refused_lines() -> Vec<(Value, &'static str)> {
    let with = |command: Value, hook: Value, containers: &str| {
        let roles = ("roles", "peer,server,client");
        let mut pod = member(&[("options", "env"), roles, ("containers", containers)]);
        pod["spec"]["containers"][0]["command"] = command;
        pod["spec"]["containers"][0]["readinessProbe"] = hook;
        let backup = json!({"name": "backup", "image": "a", "command": ["sh", "-c", "sleep 1; etcd --version"]});
        pod["spec"]["containers"].as_array_mut().expect("containers").push(backup);
        pod
    };
    let etcdctl = json!({"exec": {"command": ["sh", "-c", "etcdctl --cacert=/a endpoint health"]}});
    let mut by_script = member(&[("options", "env")]);
    native(&mut by_script, "store");
    by_script["spec"]["initContainers"][0]["command"] = json!(["sh", "-c", "exec etcd"]);
    vec![
        (
            with(json!(["sh", "-c", "export ETCD_CONFIG_FILE=/a; etcd"]), json!(null), "etcd"),
            "a config file of etcd overrides the environment",
        ),
        (by_script, "which of the containers run etcd is not told"),
        (with(json!(["etcd", "--cert-file=/a"]), json!(null), "etcd"), "etcd stops at both"),
        (with(json!(["sh", "-c", "exec etcd -peer-key-file /a"]), json!(null), "etcd"), "etcd stops at both"),
        (with(json!(["sh", "-c", "export ETCD_KEY_FILE=/a; etcd"]), json!(null), "etcd"), "etcd stops at both"),
        (with(json!(["etcd"]), etcdctl, "etcd"), "etcdctl stops at both"),
        (with(json!(["env", "-i", "etcd"]), json!(null), "etcd"), "takes the environment away by env -i"),
        (with(json!(["etcd"]), json!(null), "etcd,backup"), "which of the containers run etcd is not told"),
    ]
}

/// Storage that a StatefulSet would add.
pub fn complete(pod: &mut Value) {
    let mounted: Vec<String> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().cloned().unwrap_or_default())
        .flat_map(|c| c["volumeMounts"].as_array().cloned().unwrap_or_default())
        .filter_map(|m| Some(m["name"].as_str()?.to_owned()))
        .collect();
    for name in mounted {
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        if volumes.iter().all(|v| v["name"] != json!(name)) {
            pod["spec"]["volumes"] = json!([volumes, vec![json!({"name": name, "emptyDir": {}})]].concat());
        }
    }
}
