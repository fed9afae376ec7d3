//! An etcd that is a native sidecar: an init container that keeps running.

use super::*;

/// A pod whose main container is `app`, with etcd as the init container `name`.
fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = member();
    let mut etcd = pod["spec"]["containers"][0].take();
    etcd["name"] = json!(name);
    etcd["restartPolicy"] = json!("Always");
    pod["spec"]["initContainers"] = json!([etcd]);
    pod["spec"]["containers"] =
        json!([{"name": "app", "image": "app", "command": ["/app"], "securityContext": {"runAsUser": 4000}}]);
    change(&mut pod);
    pod
}

/// The names of the containers that got our mount.
fn mounted(pod: &Value) -> Vec<&str> {
    let lists = ["initContainers", "containers"].into_iter().flat_map(|list| pod["spec"][list].as_array().unwrap());
    let ours = |c: &&Value| !c["name"].as_str().unwrap().starts_with("etcd-tls-");
    let has =
        |c: &&Value| c["volumeMounts"].as_array().into_iter().flatten().any(|m| m["mountPath"] == "/etc/etcd/tls");
    lists.filter(ours).filter(has).map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn a_native_sidecar_is_injected_into_as_a_main_container_is() {
    // By its name, and by what it runs.
    for name in ["etcd", "store"] {
        let (after, warnings) = injected(&pod(name, |_| {}));
        assert_eq!(warnings, [""; 0], "{name}");
        assert_eq!(mounted(&after), [name]);
        let init = after["spec"]["initContainers"].as_array().unwrap();
        let names: Vec<&str> = init.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["etcd-tls-init", "etcd-tls-sidecar", name], "etcd starts after its certificates are there");
        let env: Vec<&str> = init[2]["env"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
        assert!(env.contains(&"ETCD_CERT_FILE") && env.contains(&"ETCD_PEER_CERT_FILE"), "{env:?}");
        assert!(after["spec"]["containers"][0].get("env").is_none());
        assert!(sidecar_args(&after).contains(&"--can-signal".to_owned()), "{:?}", sidecar_args(&after));
    }
    let by_image = pod("store", |pod| {
        let etcd = pod["spec"]["initContainers"][0].as_object_mut().unwrap();
        let command = etcd.remove("command").unwrap();
        etcd.insert("args".to_owned(), json!(command.as_array().unwrap()[1..]));
        etcd.insert("image".to_owned(), json!("registry.example:5000/mirror/etcd:v3.6.13"));
    });
    assert_eq!(mounted(&injected(&by_image).0), ["store"]);
}

#[test]
fn another_webhooks_container_changes_nothing_afterwards() {
    for name in ["etcd", "store"] {
        let (mut after, _) = injected(&pod(name, |_| {}));
        let added = json!({"name": "proxy", "image": "proxy", "securityContext": {"runAsUser": 4001}});
        after["spec"]["containers"].as_array_mut().unwrap().push(added);
        let (again, _) = injected(&after);
        assert_eq!(mounted(&again), [name]);
    }
}

#[test]
fn a_native_sidecar_that_runs_something_else_is_not_taken_for_etcd() {
    let beside = |change: fn(&mut Value)| {
        mounted(
            &injected(&pod("proxy", |pod| {
                pod["metadata"]["annotations"] = json!({"etcd-tls.dev/options": "env"});
                change(&mut pod["spec"]["initContainers"][0]);
            }))
            .0,
        )
        .iter()
        .map(|name| (*name).to_owned())
        .collect::<Vec<_>>()
    };
    // An image's own command with flags may be anybody's.
    let other = |c: &mut Value| {
        c.as_object_mut().unwrap().remove("command");
        c["args"] = json!(["--config=/etc/etcd-proxy.yaml"]);
        c["image"] = json!("envoy");
    };
    assert_eq!(beside(other), ["app"]);
    assert_eq!(beside(|c| c["command"] = json!(["sh", "-c", "exec backup --of etcd"])), ["app"]);
    assert_eq!(beside(|c| c["command"] = json!(["etcdctl", "version"])), ["app"]);
    // The main one that runs etcd itself is meant.
    let both = pod("store", |pod| pod["spec"]["containers"][0]["command"] = json!(["etcd"]));
    assert_eq!(mounted(&injected(&both).0), ["app"]);
    // One that ends is no member.
    let ends = pod("restore", |pod| {
        pod["spec"]["initContainers"][0].as_object_mut().unwrap().remove("restartPolicy");
        pod["spec"]["initContainers"][0]["command"] = json!(["etcd", "--version"]);
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/options": "env"});
    });
    assert_eq!(mounted(&injected(&ends).0), ["app"]);
    let two = pod("store", |pod| {
        let mut second = pod["spec"]["initContainers"][0].clone();
        second["name"] = json!("second");
        pod["spec"]["initContainers"].as_array_mut().unwrap().push(second);
    });
    let many = pod("store", |pod| {
        let sidecars = (0..65)
            .map(|n| json!({"name": format!("s{n}"), "restartPolicy": "Always", "command": ["etcdctl", "version"]}));
        pod["spec"]["initContainers"] = sidecars.collect();
    });
    assert!(refused(&many).contains("which container is etcd's?"));
    let said = refused(&two);
    assert!(said.contains("which container is etcd's? None of store, second, app is named etcd"), "{said}");
}

#[test]
fn a_labelled_namespace_means_it_too() {
    let origin = Origin { namespace: "prod", namespace_opted_in: true, label: false, subdomain: None, trace: None };
    let in_namespace = |pod: Value| decide(&pod, &config(), origin);
    let unlabelled = |name: &str| pod(name, |pod| pod["metadata"]["labels"] = json!({}));
    assert!(matches!(in_namespace(unlabelled("etcd")), PodDecision::Inject { .. }));
    let PodDecision::Leave(said) = in_namespace(unlabelled("store")) else { panic!("not left") };
    assert!(said[0].contains("no container that keeps running is named etcd"), "{said:?}");
    let mut restore = unlabelled("etcd");
    restore["spec"]["initContainers"][0].as_object_mut().unwrap().remove("restartPolicy");
    assert!(matches!(in_namespace(restore), PodDecision::Leave(_)));
}

#[test]
fn it_is_started_again_whatever_the_pods_policy_is() {
    for policy in ["Never", "OnFailure"] {
        let never = pod("etcd", |pod| pod["spec"]["restartPolicy"] = json!(policy));
        let (after, warnings) = injected(&never);
        assert!(sidecar_args(&after).contains(&"--can-signal".to_owned()), "{policy}: {warnings:?}");
        let mut probe = never;
        probe["metadata"]["annotations"] = json!({"etcd-tls.dev/reload": "probe"});
        let (after, _) = injected(&probe);
        let etcd = &after["spec"]["initContainers"][2];
        assert_eq!(etcd["livenessProbe"]["exec"]["command"][0], "/etc/etcd/tls/probe/etcd-tls-probe", "{etcd}");
    }
}
