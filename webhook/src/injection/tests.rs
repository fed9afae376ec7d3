#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use json_patch::{Patch, PatchOperation};
use serde_json::{Value, json};

use super::*;

mod asking;
mod contract;
mod marks;
mod reload;
mod resources;
mod revocation;
mod sidecars;
mod stops;

fn config() -> Config {
    Config { sidecar_image: "etcd-tls-sidecar:test".into(), ..Config::default() }
}

const ORIGIN: Origin<'static> =
    Origin { namespace: "prod", namespace_opted_in: false, label: false, subdomain: None, trace: None };

fn decide(pod: &Value, config: &Config, origin: Origin<'_>) -> PodDecision {
    super::decide(&json::borrowed(pod), config, origin)
}

fn run(pod: &Value) -> PodDecision {
    decide(pod, &config(), ORIGIN)
}

/// A member that nothing is wrong with.
fn member() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}},
        "spec": {
            "containers": [{
                "name": "etcd", "image": "etcd",
                "command": [
                    "etcd", "--listen-client-urls=https://0.0.0.0:2379", "--listen-peer-urls=https://0.0.0.0:2380",
                    "--advertise-client-urls=https://etcd-0.etcd.prod.svc:2379",
                    "--initial-advertise-peer-urls=https://etcd-0.etcd.prod.svc:2380",
                    "--initial-cluster=default=https://etcd-0.etcd.prod.svc:2380",
                ],
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
                "securityContext": {"runAsUser": 1001},
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "subdomain": "etcd",
            "futureField": {"kept": [1, 2, 3]},
        },
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = member();
    change(&mut pod);
    pod
}

fn annotated(key: &str, value: &str) -> Value {
    with(|pod| pod["metadata"]["annotations"] = json!({format!("etcd-tls.dev/{key}"): value}))
}

/// The injected pod and the warnings; injected again, it must stay as it is.
#[track_caller]
fn injected(pod: &Value) -> (Value, Vec<String>) {
    let PodDecision::Inject { patch, warnings } = run(pod) else { panic!("{:?}", run(pod)) };
    let mut after = pod.clone();
    patch.apply(&mut after).unwrap();
    let PodDecision::Inject { patch: again, .. } = run(&after) else { panic!("{:?}", run(&after)) };
    assert_eq!(again, PodPatch::default(), "injecting twice changed something");
    (after, warnings)
}

#[track_caller]
fn refused(pod: &Value) -> String {
    match run(pod) {
        PodDecision::Refuse(problems) => problems.join("; "),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn who_owns_a_hosts_directories_is_said_where_etcd_is_not_root() {
    let mut config = config();
    config.host = Some(HostPaths {
        kubeconfig: "/etc/kubernetes/etcd-tls/kubeconfig".to_owned(),
        bootstrap_kubeconfig: Some("/etc/kubernetes/etcd-tls/bootstrap.kubeconfig".to_owned()),
        directory: "/var/lib/etcd-tls".to_owned(),
    });
    let warnings = |pod: &Value| match decide(pod, &config, ORIGIN) {
        PodDecision::Inject { warnings, .. } => warnings.join("; "),
        other => panic!("{other:?}"),
    };
    let said = warnings(&member());
    let command = "install -d -o 1001 -g 52379 -m 750 /etc/kubernetes/etcd-tls /var/lib/etcd-tls && chown 1001 \
                   /etc/kubernetes/etcd-tls/bootstrap.kubeconfig";
    assert!(said.contains(command), "{said}");
    let mut shared = config.clone();
    shared.host = Some(HostPaths {
        kubeconfig: "/etc/kubernetes/etcd-tls.kubeconfig".to_owned(),
        bootstrap_kubeconfig: Some("/etc/kubernetes/boot strap".to_owned()),
        directory: "/var/lib/etcd tls".to_owned(),
    });
    let PodDecision::Inject { warnings: said, .. } = decide(&member(), &shared, ORIGIN) else { panic!("not injected") };
    let said = said.join("; ");
    assert!(
        said.contains("/etc/kubernetes may hold others' files, too: give the kubeconfig a directory of its own"),
        "{said}"
    );
    assert!(said.contains("-m 750 '/var/lib/etcd tls' && chown 1001 '/etc/kubernetes/boot strap'"), "{said}");
    for root in [json!({}), json!({"runAsUser": 0})] {
        let said = warnings(&with(|pod| pod["spec"]["containers"][0]["securityContext"] = root.clone()));
        assert!(!said.contains("install"), "{said}");
    }
}

fn env(pod: &Value, container: usize, name: &str) -> Option<String> {
    let env = pod["spec"]["containers"][container]["env"].as_array()?;
    env.iter().find(|e| e["name"] == name)?["value"].as_str().map(str::to_owned)
}

fn sidecar_args(pod: &Value) -> Vec<String> {
    let args = pod["spec"]["initContainers"][1]["args"].as_array().unwrap();
    args.iter().map(|a| a.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_member_gets_everything() {
    let (pod, warnings) = injected(&member());
    assert_eq!(warnings, [""; 0]);
    let spec = &pod["spec"];
    assert_eq!(spec["initContainers"][0]["name"], "etcd-tls-init");
    assert_eq!(spec["initContainers"][1]["name"], "etcd-tls-sidecar");
    assert_eq!(spec["initContainers"][1]["restartPolicy"], "Always");
    assert_eq!(spec["shareProcessNamespace"], true);
    assert_eq!(spec["securityContext"]["supplementalGroups"], json!([names::FILES_GID]));
    assert_eq!(spec["futureField"], json!({"kept": [1, 2, 3]}));
    assert_eq!(env(&pod, 0, "ETCD_CERT_FILE").unwrap(), "/etc/etcd/tls/server/tls.crt");
    assert_eq!(env(&pod, 0, "ETCD_PEER_TRUSTED_CA_FILE").unwrap(), "/etc/etcd/tls/peer/ca.crt");
    assert_eq!(env(&pod, 0, "ETCD_CLIENT_CERT_AUTH").unwrap(), "true");
    let args = sidecar_args(&pod);
    assert_eq!(args[0], "run");
    for arg in ["--can-signal", "--client-url=https://127.0.0.1:2379", "--peer-url=https://127.0.0.1:2380"] {
        assert!(args.iter().any(|a| a == arg), "{arg} is not in {args:?}");
    }
    assert_eq!(spec["initContainers"][1]["securityContext"]["runAsUser"], 1001);
}

#[test]
fn the_patch_adds_and_nothing_else() {
    let PodDecision::Inject { patch, .. } = run(&member()) else { panic!() };
    let mut written = Vec::new();
    patch.write(&mut written).unwrap();
    let Patch(operations) = serde_json::from_slice(&written).unwrap();
    for operation in &operations {
        assert!(matches!(operation, PatchOperation::Add(_)), "{operation:?}");
    }
    // The sent patch equals the applied one.
    let (mut sent, mut applied) = (member(), member());
    json_patch::patch(&mut sent, &Patch(operations)).unwrap();
    patch.apply(&mut applied).unwrap();
    assert_eq!(sent, applied);
}

#[test]
fn null_empty_and_missing_lists_are_the_same() {
    for (field, value) in [
        ("initContainers", json!(null)),
        ("initContainers", json!([])),
        ("volumes", json!(null)),
        ("volumes", json!([])),
        ("securityContext", json!(null)),
        ("securityContext", json!({})),
        ("securityContext", json!({"supplementalGroups": null})),
        ("securityContext", json!({"supplementalGroups": [7]})),
    ] {
        let (pod, _) = injected(&with(|p| p["spec"][field] = value.clone()));
        assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 2, "{field}: {value}");
        assert!(
            pod["spec"]["securityContext"]["supplementalGroups"].as_array().unwrap().contains(&json!(names::FILES_GID))
        );
    }
    for field in ["volumeMounts", "env"] {
        let (pod, _) = injected(&with(|p| p["spec"]["containers"][0][field] = json!(null)));
        assert!(pod["spec"]["containers"][0][field].is_array());
    }
}

#[test]
fn ours_come_before_the_users_init_containers() {
    let (pod, _) = injected(&with(|p| p["spec"]["initContainers"] = json!([{"name": "a"}, {"name": "b"}])));
    let init: Vec<_> = pod["spec"]["initContainers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(init, ["etcd-tls-init", "etcd-tls-sidecar", "a", "b"]);
}

#[test]
fn malformed_pods_are_refused_with_every_reason() {
    for (pod, word) in [
        (json!({"metadata": {"labels": {"etcd-tls": "dynamic"}}}), "spec is missing"),
        (json!([]), "no JSON object"),
        (with(|p| p["spec"] = json!(null)), "spec is missing"),
        (with(|p| p["spec"] = json!("x")), "spec is no object"),
        (with(|p| p["spec"]["containers"] = json!(null)), "spec.containers is empty"),
        (with(|p| p["spec"]["containers"] = json!([])), "spec.containers is empty"),
        (with(|p| p["spec"]["containers"] = json!({})), "spec.containers is no list"),
        (with(|p| p["spec"]["containers"][0] = json!("x")), "is no object"),
        (with(|p| p["spec"]["containers"][0]["name"] = json!(null)), "has no name"),
        (with(|p| p["spec"]["containers"][0]["env"] = json!({})), "env is no list"),
        (with(|p| p["spec"]["containers"][0]["command"] = json!([1])), "no string"),
        (with(|p| p["spec"]["volumes"] = json!("x")), "volumes is no list"),
        (with(|p| p["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": 1})), "is no string"),
        (with(|p| p["metadata"]["annotations"] = json!([])), "annotations is no object"),
        (with(|p| p["metadata"]["namespace"] = json!("other")), "other"),
        (with(|p| p["spec"]["os"] = json!({"name": "windows"})), "spec.os.name is windows"),
        (with(|p| p["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"})), "nodeSelector"),
    ] {
        let message = refused(&pod);
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    let both = refused(&with(|p| {
        p["metadata"]["annotations"] = json!({"etcd-tls.dev/duration": "24", "etcd-tls.dev/key": "x"});
    }));
    assert!(both.contains("duration") && both.contains("key"), "{both}");
}

#[test]
fn who_has_not_opted_in_is_left_alone() {
    let namespace = Origin { namespace_opted_in: true, ..ORIGIN };
    let bare = with(|p| p["metadata"] = json!({"name": "x"}));
    assert!(matches!(decide(&bare, &config(), namespace), PodDecision::Inject { .. }));
    assert_eq!(run(&bare), PodDecision::Leave(vec![]));
    let web = with(|p| {
        p["metadata"] = json!({"name": "x"});
        p["spec"]["containers"][0]["name"] = json!("web");
    });
    let PodDecision::Leave(warnings) = decide(&web, &config(), namespace) else { panic!() };
    assert_eq!(warnings.len(), 1);
    let out = with(|p| p["metadata"]["labels"]["etcd-tls"] = json!("disabled"));
    assert_eq!(decide(&out, &config(), namespace), PodDecision::Leave(vec![]));
    let mirror = with(|p| p["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"}));
    assert_eq!(run(&mirror), PodDecision::Leave(vec![]));
    for value in ["Dynamic", "dynamic ", "true", ""] {
        let pod = with(|p| p["metadata"]["labels"]["etcd-tls"] = json!(value));
        assert!(matches!(decide(&pod, &config(), namespace), PodDecision::Refuse(_)), "{value:?}");
    }
}

#[test]
fn a_flag_is_never_shadowed() {
    let (pod, warnings) = injected(&with(|p| {
        p["spec"]["containers"][0]["command"] =
            json!(["etcd", "--listen-client-urls=https://[::]:2379", "--cert-file=/mine", "-peer-client-cert-auth"]);
    }));
    assert_eq!(env(&pod, 0, "ETCD_CERT_FILE"), None);
    assert_eq!(env(&pod, 0, "ETCD_KEY_FILE"), None, "a certificate and another's key are no pair");
    assert!(env(&pod, 0, "ETCD_TRUSTED_CA_FILE").is_some());
    assert_eq!(env(&pod, 0, "ETCD_PEER_CLIENT_CERT_AUTH"), None);
    assert!(env(&pod, 0, "ETCD_PEER_CERT_FILE").is_some());
    assert!(warnings.iter().any(|w| w.contains("--cert-file=/mine")), "{warnings:?}");
}

#[test]
fn a_flag_that_names_our_file_is_welcome() {
    let (pod, warnings) = injected(&with(|p| {
        let command = p["spec"]["containers"][0]["command"].as_array_mut().unwrap();
        command.push(json!("--cert-file=/etc/etcd/tls/server/tls.crt"));
    }));
    assert_eq!(env(&pod, 0, "ETCD_CERT_FILE"), None);
    assert!(env(&pod, 0, "ETCD_KEY_FILE").is_some());
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn the_pods_own_variables_stay() {
    let (pod, warnings) = injected(&with(|p| {
        p["spec"]["containers"][0]["env"] = json!([{"name": "ETCD_CLIENT_CERT_AUTH", "value": "false"}]);
    }));
    assert_eq!(env(&pod, 0, "ETCD_CLIENT_CERT_AUTH").unwrap(), "false");
    assert!(warnings.iter().any(|w| w.contains("ETCD_CLIENT_CERT_AUTH=false")), "{warnings:?}");
}

#[test]
fn undetermined_command_lines_are_refused_with_a_way_out_that_works() {
    let unknown = with(|p| p["spec"]["containers"][0]["command"] = json!(["/scripts/start.sh"]));
    let message = refused(&unknown);
    assert!(message.contains("/scripts/start.sh") && message.contains("ETCD_PEER_KEY_FILE="), "{message}");
    let variables: Vec<Value> = message
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("ETCD_").and_then(|w| w.split_once('=')))
        .map(|(name, value)| json!({"name": format!("ETCD_{name}"), "value": value}))
        .collect();
    assert_eq!(variables.len(), 8);
    let (_, warnings) = injected(&with(|p| {
        p["spec"]["containers"][0]["command"] = json!(["/scripts/start.sh"]);
        p["spec"]["containers"][0]["env"] = json!(variables);
    }));
    assert!(
        warnings.iter().any(|w| w.contains("accepts revoked certificates unless it gets --peer-crl-file=")),
        "{warnings:?}"
    );
}

#[test]
fn a_configuration_file_gets_advice_and_no_environment() {
    for change in [
        json!({"command": ["etcd", "--config-file", "/etc/etcd.yaml"]}),
        json!({"env": [{"name": "ETCD_CONFIG_FILE", "value": "/etc/etcd.yaml"}]}),
    ] {
        let (pod, warnings) = injected(&with(|p| {
            for (key, value) in change.as_object().unwrap() {
                p["spec"]["containers"][0][key] = value.clone();
            }
        }));
        assert_eq!(env(&pod, 0, "ETCD_CERT_FILE"), None);
        assert!(warnings.iter().any(|w| w.contains("client-transport-security")), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.contains("peer-transport-security")), "{warnings:?}");
    }
}

#[test]
fn clients_get_the_clients_variables() {
    let (pod, _) = injected(&with(|p| {
        p["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "client"});
        p["spec"]["containers"][0]["name"] = json!("app");
        p["spec"]["containers"][0]["command"] = json!(["/app"]);
    }));
    assert_eq!(env(&pod, 0, "ETCDCTL_CACERT").unwrap(), "/etc/etcd/tls/client/ca.crt");
    assert_eq!(env(&pod, 0, "ETCD_CERT_FILE"), None);
    assert_eq!(pod["spec"].get("shareProcessNamespace"), None);
}

#[test]
fn several_containers_need_a_name_and_a_later_one_does_not_matter() {
    let two = with(|p| {
        p["spec"]["containers"] = json!([{"name": "a", "command": ["etcd"]}, {"name": "b"}]);
    });
    assert!(refused(&two).contains("etcd-tls.dev/containers"));
    let one = with(|p| p["spec"]["containers"][0]["name"] = json!("db"));
    let (mut pod, _) = injected(&one);
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "proxy", "securityContext": {"runAsUser": 1337}}));
    injected(&pod);
    let missing = annotated("containers", "nobody");
    assert!(refused(&missing).contains("nobody"));
}

#[test]
fn members_and_clients_in_one_pod_get_their_own() {
    let (pod, _) = injected(&with(|p| {
        p["metadata"]["annotations"] =
            json!({"etcd-tls.dev/roles": "peer,server,client", "etcd-tls.dev/containers": "etcd,backup"});
        p["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "backup", "command": ["/backup"]}));
    }));
    assert!(env(&pod, 0, "ETCD_CERT_FILE").is_some() && env(&pod, 0, "ETCDCTL_CERT").is_some());
    assert!(env(&pod, 1, "ETCD_CERT_FILE").is_none() && env(&pod, 1, "ETCDCTL_CERT").is_some());
}

#[test]
fn names_of_ours_hide_nothing_else() {
    for (pod, word) in [
        (
            with(|p| p["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "etcd-tls-sidecar"}))),
            "spec.containers",
        ),
        (
            with(|p| p["spec"]["initContainers"] = json!([{"name": "etcd-tls-init", "image": "evil"}])),
            "other arguments",
        ),
        (with(|p| p["spec"]["volumes"] = json!([{"name": "etcd-tls", "hostPath": {"path": "/"}}])), "volume etcd-tls"),
        (with(|p| p["spec"]["volumes"] = json!([{"name": "etcd-tls-token", "emptyDir": {}}])), "volume etcd-tls-token"),
    ] {
        let message = refused(&pod);
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    let (good, _) = injected(&member());
    for change in [
        json!({"command": ["/evil"]}),
        json!({"args": ["run", "--roles=client"]}),
        json!({"args": ["run", "--roles=peer,server", "--user=root"]}),
        json!({"securityContext": {"runAsUser": 0}}),
        json!({"volumeMounts": []}),
        json!({"env": []}),
        json!({"restartPolicy": null}),
        json!({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}),
        json!({"envFrom": [{"configMapRef": {"name": "x"}}]}),
    ] {
        let mut forged = good.clone();
        for (key, value) in change.as_object().unwrap() {
            forged["spec"]["initContainers"][1][key] = value.clone();
        }
        let said = refused(&forged);
        assert!(said.contains("etcd-tls-sidecar"), "{change}");
        // A container that others add is not the user's.
        let by_others = change.get("lifecycle").or_else(|| change.get("envFrom")).is_some();
        assert_eq!(said.contains("another admission webhook or a policy engine"), by_others, "{change}: {said}");
        assert_eq!(said.contains("another name"), !by_others, "{change}: {said}");
    }
}

#[test]
fn additions_of_the_api_server_and_other_webhooks_do_not_matter() {
    let (mut pod, _) = injected(&member());
    let spec = &mut pod["spec"];
    for volume in spec["volumes"].as_array_mut().unwrap() {
        for source in ["configMap", "projected"] {
            if volume.get(source).is_some() {
                volume[source]["defaultMode"] = json!(420);
            }
        }
    }
    for container in spec["initContainers"].as_array_mut().unwrap() {
        container["image"] = json!("mirror.example/etcd-tls-sidecar:test");
        container["imagePullPolicy"] = json!("Always");
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["resources"] = json!({"requests": {"cpu": "1"}});
        container["env"].as_array_mut().unwrap().push(json!({"name": "HTTP_PROXY", "value": "x"}));
        container["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "extra", "mountPath": "/extra"}));
    }
    spec["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "istio-init"}));
    spec["containers"].as_array_mut().unwrap().insert(0, json!({"name": "proxy"}));
    let PodDecision::Inject { patch, .. } = run(&pod) else { panic!("{:?}", run(&pod)) };
    assert_eq!(patch, PodPatch::default());
}

#[test]
fn mounts_that_collide_are_refused() {
    for (path, volume, refuse) in [
        ("/etc/etcd/tls", json!({"emptyDir": {}}), true),
        ("/etc/etcd/tls/", json!({"emptyDir": {}}), true),
        ("/etc/etcd/tls/more", json!({"emptyDir": {}}), true),
        ("/etc/etcd", json!({"configMap": {"name": "x"}}), true),
        ("/etc/etcd", json!({"emptyDir": {}}), false),
        ("/etc/etcd/tls-old", json!({"emptyDir": {}}), false),
    ] {
        let pod = with(|p| {
            p["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": path}]);
            let mut volume = volume.clone();
            volume["name"] = json!("v");
            p["spec"]["volumes"] = json!([volume]);
        });
        assert_eq!(matches!(run(&pod), PodDecision::Refuse(_)), refuse, "{path}");
    }
}

#[test]
fn plain_urls_and_probes_that_must_fail_are_warned_of() {
    let (pod, warnings) = injected(&with(|p| {
        p["spec"]["containers"][0]["command"] = json!([
            "etcd",
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls",
            "http://$(POD_IP):2379",
            "--initial-cluster=a=http://a:2380"
        ]);
        p["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/health", "port": 2379}});
    }));
    for word in ["--listen-client-urls", "--advertise-client-urls", "--initial-cluster", "readinessProbe"] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}: {warnings:?}");
    }
    assert!(sidecar_args(&pod).contains(&"--client-url=http://127.0.0.1:2379".to_owned()), "the sidecar says so, too");
}

#[test]
fn a_port_is_had_once() {
    let pod = with(|p| p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9179}]));
    assert!(refused(&pod).contains("admin-port"));
    let pod = annotated("admin-port", "2379");
    assert!(refused(&pod).contains("admin-port"));
}

#[test]
fn inject_labels() {
    let origin = Origin { namespace: "default", namespace_opted_in: true, label: true, subdomain: None, trace: None };
    for metadata in [json!(null), json!({}), json!({"labels": null}), json!({"labels": {"a": "b"}})] {
        let mut pod = with(|p| p["metadata"] = metadata.clone());
        let PodDecision::Inject { patch, .. } = decide(&pod, &config(), origin) else { panic!() };
        patch.apply(&mut pod).unwrap();
        assert_eq!(pod["metadata"]["labels"]["etcd-tls"], "dynamic", "{metadata}");
        let PodDecision::Inject { patch, .. } = decide(&pod, &config(), origin) else { panic!() };
        assert_eq!(patch, PodPatch::default());
    }
}

#[test]
fn three_hundred_containers() {
    let pod = with(|p| {
        let containers = p["spec"]["containers"].as_array_mut().unwrap();
        containers.extend((0..300).map(|i| json!({"name": format!("c{i}"), "image": "x".repeat(4000)})));
    });
    injected(&pod);
}
