//! The marks of an injected pod, and the settings of the injected containers.

use super::*;

/// A member with something to warn of.
fn plain() -> Value {
    with(|pod| pod["spec"]["containers"][0]["command"][1] = json!("--listen-client-urls=http://0.0.0.0:2379"))
}

fn annotation(pod: &Value) -> Option<Vec<String>> {
    let text = pod["metadata"]["annotations"][names::WARNINGS_ANNOTATION].as_str()?;
    assert!(text.len() <= 4096);
    Some(serde_json::from_str(text).unwrap())
}

#[test]
fn an_injected_pod_is_marked() {
    let (pod, _) = injected(&member());
    assert_eq!(pod["metadata"]["labels"], json!({"etcd-tls": "dynamic", "etcd-tls.dev/injected": "true"}));
    // A forged mark hides nothing, and another value is put right.
    for forged in ["true", "false"] {
        let (pod, _) = injected(&with(|p| p["metadata"]["labels"]["etcd-tls.dev/injected"] = json!(forged)));
        assert_eq!(pod["metadata"]["labels"]["etcd-tls.dev/injected"], "true");
        assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn the_warnings_stand_on_the_pod() {
    let (pod, warnings) = injected(&plain());
    assert!(!warnings.is_empty());
    assert_eq!(annotation(&pod).unwrap(), warnings);
    let (pod, _) = injected(&member());
    assert_eq!(annotation(&pod), None, "nothing to say");
    // A user's own text is not ours.
    for (pod, said) in [(member(), false), (plain(), true)] {
        let mut pod = pod;
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/warnings": "[\"all is well\"]", "a": "b"});
        let (pod, warnings) = injected(&pod);
        assert_eq!(annotation(&pod).unwrap(), warnings);
        assert_eq!(!warnings.is_empty(), said);
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
    }
    // Nobody needs the annotation where a person injects.
    let PodDecision::Inject { patch, .. } = decide(&plain(), &config(), Origin { label: true, ..ORIGIN }) else {
        panic!()
    };
    let mut pod = plain();
    patch.apply(&mut pod).unwrap();
    assert_eq!(annotation(&pod), None);
    assert_eq!(pod["metadata"]["labels"]["etcd-tls.dev/injected"], "true");
}

#[test]
fn the_warnings_never_overflow_the_annotations() {
    let full = |size: usize| {
        let mut pod = plain();
        pod["metadata"]["annotations"] = json!({"a": "x".repeat(size)});
        annotation(&injected(&pod).0)
    };
    assert!(full(200 * 1024).is_some());
    assert_eq!(full(256 * 1024 - 100), None);
    // Many long ones are cut to 4 KiB, and how many are missing is said.
    let mut pod = plain();
    let name = |n: usize| format!("etcd-{n}-{}", "x".repeat(50));
    let containers: Vec<Value> = (0..60)
        .map(|n| {
            let mut container = pod["spec"]["containers"][0].clone();
            container["name"] = json!(name(n));
            container["securityContext"]["runAsUser"] = json!(1001);
            container
        })
        .collect();
    pod["metadata"]["annotations"] =
        json!({"etcd-tls.dev/containers": (0..60).map(name).collect::<Vec<_>>().join(",")});
    pod["spec"]["containers"] = json!(containers);
    let (pod, warnings) = injected(&pod);
    let said = annotation(&pod).unwrap();
    assert!(said.len() < warnings.len());
    let last = format!("and {} more", warnings.len() - (said.len() - 1));
    assert_eq!(said.last(), Some(&last));
}

fn init(pod: &Value) -> Vec<Value> {
    pod["spec"]["initContainers"].as_array().unwrap().clone()
}

#[test]
fn the_user_is_left_to_the_cluster_unless_etcds_is_declared() {
    let users = |pod: &Value| init(pod).iter().map(|c| c["securityContext"]["runAsUser"].clone()).collect::<Vec<_>>();
    let with_user = |context: Value| with(|pod| pod["spec"]["containers"][0]["securityContext"] = context.clone());
    assert_eq!(users(&injected(&member()).0), [json!(1001), json!(1001)]);
    let (pod, _) = injected(&with_user(json!({})));
    assert_eq!(users(&pod), [Value::Null, Value::Null]);
    assert!(init(&pod).iter().all(|c| c["securityContext"]["runAsNonRoot"] == true));
    // A cluster assigns one; the next look leaves it.
    let mut assigned = pod;
    for container in assigned["spec"]["initContainers"].as_array_mut().unwrap() {
        container["securityContext"]["runAsUser"] = json!(1_000_680_000_u32);
    }
    assert_eq!(injected(&assigned).0, assigned);
    // The pod's own securityContext would be root.
    let (pod, _) = injected(&with(|pod| {
        pod["spec"]["containers"][0]["securityContext"] = json!({});
        pod["spec"]["securityContext"] = json!({"runAsUser": 0});
    }));
    assert_eq!(users(&pod), [json!(65532), json!(65532)]);
    // The webhook's flag.
    let flagged = Config { user: Some(2000), ..config() };
    let PodDecision::Inject { patch, .. } = decide(&with_user(json!({})), &flagged, ORIGIN) else { panic!() };
    let mut pod = with_user(json!({}));
    patch.apply(&mut pod).unwrap();
    assert_eq!(users(&pod), [json!(2000), json!(2000)]);
}

#[test]
fn resources_and_log_level_are_the_pods_else_the_flags_else_built_in() {
    let builtin = json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}});
    let (pod, _) = injected(&member());
    assert!(init(&pod).iter().all(|c| c["resources"] == builtin));
    let (pod, _) = injected(&annotated("resources", "requests.cpu=1,limits.memory=128Mi"));
    let wanted = json!({"requests": {"cpu": "1", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}});
    assert!(init(&pod).iter().all(|c| c["resources"] == wanted), "{}", init(&pod)[0]["resources"]);

    let flagged = Config { resources: "requests.cpu=50m,limits.cpu=none".parse().unwrap(), ..config() };
    let apply = |mut pod: Value| {
        let PodDecision::Inject { patch, .. } = decide(&pod, &flagged, ORIGIN) else { panic!() };
        patch.apply(&mut pod).unwrap();
        init(&pod)[1]["resources"].clone()
    };
    assert_eq!(apply(member()), json!({"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}));
    assert_eq!(
        apply(annotated("resources", "limits.cpu=200m")),
        json!({"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}})
    );

    let level = |pod: &Value| {
        let env = init(pod)[0]["env"].as_array().unwrap().clone();
        env.iter().find(|e| e["name"] == "ETCD_TLS_LOG_LEVEL").map(|e| e["value"].clone())
    };
    assert_eq!(level(&injected(&annotated("log-level", "debug")).0), Some(json!("debug")));
    assert_eq!(level(&injected(&member()).0), None);
}

#[test]
fn pull_secrets_are_added_once() {
    let flagged = Config { pull_secrets: vec!["ours".to_owned(), "both".to_owned()], ..config() };
    for (theirs, wanted) in [
        (json!(null), json!([{"name": "ours"}, {"name": "both"}])),
        (json!([]), json!([{"name": "ours"}, {"name": "both"}])),
        (
            json!([{"name": "theirs"}, {"name": "both"}]),
            json!([{"name": "theirs"}, {"name": "both"}, {"name": "ours"}]),
        ),
    ] {
        let mut pod = with(|pod| pod["spec"]["imagePullSecrets"] = theirs.clone());
        for _ in 0..2 {
            let PodDecision::Inject { patch, .. } = decide(&pod, &flagged, ORIGIN) else { panic!() };
            patch.apply(&mut pod).unwrap();
            assert_eq!(pod["spec"]["imagePullSecrets"], wanted);
        }
    }
}

#[test]
fn a_mesh_is_warned_of() {
    let (_, warnings) = injected(&with(|pod| pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true")));
    let said = warnings.join("; ");
    assert!(said.contains("Istio's redirect keeps etcd-tls-init"), "{said}");
    assert!(said.contains("traffic.sidecar.istio.io/excludeOutboundPorts: \"443,2379,2380\""), "{said}");
}

#[test]
fn a_mesh_lets_the_init_container_through_where_it_runs_as_its_proxys_user() {
    let as_user = |user: Option<u64>| {
        let config = Config { user, ..config() };
        let mut pod = with(|pod| {
            pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true");
            // Where etcd's user is declared, it is ours as well.
            pod["spec"]["containers"][0].as_object_mut().unwrap().remove("securityContext");
        });
        let PodDecision::Inject { patch, warnings } = decide(&pod, &config, ORIGIN) else { panic!() };
        patch.apply(&mut pod).unwrap();
        (init(&pod)[0]["securityContext"]["runAsUser"].clone(), warnings.join("; "))
    };
    let (_, said) = as_user(None);
    let flag = said.split("--sidecar-user=").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
    // As it says.
    let (user, said) = as_user(Some(flag.parse().unwrap()));
    assert_eq!(user, json!(1337));
    assert!(said.contains("excludeOutboundPorts: \"2379,2380\"") && !said.contains("443"), "{said}");
}
