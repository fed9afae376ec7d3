//! How etcd is restarted: the signal and its conditions, and the liveness probe.

use super::*;

#[test]
fn the_process_namespace_is_shared_only_where_nobody_else_can_be_etcd() {
    let share = |pod: &Value| injected(pod).0["spec"].get("shareProcessNamespace").cloned();
    assert_eq!(share(&member()), Some(json!(true)));
    let other = |user: Value| {
        with(|p| {
            p["spec"]["containers"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "x", "securityContext": {"runAsUser": user}}));
        })
    };
    assert_eq!(share(&other(json!(7))), Some(json!(true)));
    let powerful = |context: Value| {
        with(|p| {
            let mut context = context;
            context["runAsUser"] = json!(7);
            p["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "x", "securityContext": context}));
        })
    };
    for harmless in [
        json!({"privileged": false, "capabilities": {"drop": ["ALL"]}}),
        json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}}),
    ] {
        assert_eq!(share(&powerful(harmless)), Some(json!(true)));
    }
    for unsafe_one in [
        other(json!(1001)),
        other(json!(null)),
        other(json!(0)),
        with(|p| p["spec"]["containers"][0]["securityContext"] = json!(null)),
        with(|p| p["spec"]["containers"][0]["securityContext"]["runAsUser"] = json!(0)),
        with(|p| p["spec"]["hostPID"] = json!(true)),
        with(|p| p["spec"]["restartPolicy"] = json!("Never")),
        with(|p| p["spec"]["containers"][0]["restartPolicy"] = json!("Never")),
        with(|p| p["spec"]["containers"][0]["restartPolicy"] = json!("OnFailure")),
        powerful(json!({"privileged": true})),
        powerful(json!({"capabilities": {"add": ["NET_RAW", "SETUID"]}})),
        powerful(json!({"capabilities": {"add": ["CAP_SYS_PTRACE"]}})),
    ] {
        let (pod, warnings) = injected(&unsafe_one);
        assert_eq!(pod["spec"].get("shareProcessNamespace"), None);
        assert!(warnings.iter().any(|w| w.contains("restart needed")), "{warnings:?}");
        let mut signal = unsafe_one.clone();
        signal["metadata"]["annotations"] = json!({"etcd-tls.dev/reload": "signal:SIGTERM"});
        assert!(refused(&signal).contains("cannot be delivered"));
    }
    let (pod, _) = injected(&with(|p| p["spec"]["shareProcessNamespace"] = json!(true)));
    assert!(sidecar_args(&pod).contains(&"--can-signal".to_owned()));
}

#[test]
fn the_liveness_probe_becomes_ours_only_when_asked() {
    let probed = |probe: Value| {
        with(|p| {
            p["metadata"]["annotations"] = json!({"etcd-tls.dev/reload": "probe"});
            p["spec"]["containers"][0]["livenessProbe"] = probe;
            p["spec"]["containers"][0]["ports"] = json!([{"name": "metrics", "containerPort": 2381}]);
        })
    };
    let exec =
        |timeout: &str| json!({"command": ["/etc/etcd/tls/probe/etcd-tls-probe", format!("--timeout={timeout}")]});
    let (pod, warnings) = injected(&probed(json!({
        "httpGet": {"path": "/health", "port": "metrics", "scheme": "HTTP"}, "periodSeconds": 5, "timeoutSeconds": 4,
        "failureThreshold": 8, "initialDelaySeconds": 7,
    })));
    let probe = &pod["spec"]["containers"][0]["livenessProbe"];
    assert_eq!(
        *probe,
        json!({
            "periodSeconds": 5, "timeoutSeconds": 25, "failureThreshold": 8, "initialDelaySeconds": 7, "exec": exec("4"),
        }),
        "the user's patience, and time for two questions"
    );
    assert!(sidecar_args(&pod).contains(&"--liveness-url=http://$(POD_IP):2381/health".to_owned()));
    assert!(warnings.iter().any(|w| w.contains("liveness")));
    let (pod, _) = injected(&probed(json!({"tcpSocket": {"port": 2379}})));
    assert!(sidecar_args(&pod).contains(&"--liveness-url=tcp://127.0.0.1:2379".to_owned()));
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"], json!({"exec": exec("1"), "timeoutSeconds": 19}));
    let (pod, warnings) = injected(&annotated("reload", "probe"));
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["exec"], exec("1"));
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["timeoutSeconds"], 60, "a slow node is no dead etcd");
    assert_eq!(warnings, Vec::<String>::new());
    assert!(refused(&probed(json!({"exec": {"command": ["x"]}}))).contains("httpGet"));
    assert!(refused(&probed(json!({"httpGet": {"port": "nobody"}}))).contains("port"));
    let long = json!({"httpGet": {"port": 2381, "path": "/x".repeat(1100)}});
    assert!(refused(&probed(long)).contains("it is too long"), "the sidecar reads no longer one");
    let with_headers = |headers: Value| probed(json!({"httpGet": {"port": 2381, "httpHeaders": headers}}));
    assert!(refused(&with_headers(json!([{"name": "Authorization", "value": "x"}]))).contains("httpHeaders"));
    injected(&with_headers(json!([])));
    // As an earlier version put it in.
    assert!(refused(&probed(json!({"httpGet": {"path": "/etcd", "port": 9179}}))).contains("etcd-tls-sidecar's port"));
    let mut once = annotated("reload", "probe");
    once["spec"]["restartPolicy"] = json!("Never");
    assert!(refused(&once).contains("restartPolicy is Never"));
    // An etcd that is process 1 ends with code 0.
    once["spec"]["restartPolicy"] = json!("OnFailure");
    assert!(refused(&once).contains("restartPolicy is OnFailure"));
    once["spec"]["shareProcessNamespace"] = json!(true);
    injected(&once);
    let mut alone = annotated("reload", "probe");
    alone["spec"]["containers"][0]["restartPolicy"] = json!("OnFailure");
    assert!(refused(&alone).contains("a restartPolicy of its own, OnFailure"));
    alone["spec"]["containers"][0]["restartPolicy"] = json!("Always");
    injected(&alone);
}

/// An earlier injection wrote what this version cannot read. The pod is admitted as it is, and its author hears that the probe is off.
#[test]
fn an_injected_url_that_cannot_be_read_is_warned_of_at_each_admission() {
    let mut pod = annotated("reload", "probe");
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/health", "port": 2381}});
    let (pod, _) = injected(&pod);
    let about =
        |warnings: &[String]| warnings.iter().filter(|w| w.contains("--liveness-url")).cloned().collect::<Vec<_>>();
    let (again, warnings) = injected(&pod);
    assert_eq!(again, pod);
    assert_eq!(about(&warnings), Vec::<String>::new(), "a good one");
    let unreadable = "--liveness-url=http://a b:2381/health";
    let text = serde_json::to_string(&pod).expect("JSON");
    assert_eq!(text.matches("--liveness-url=http://$(POD_IP):2381/health").count(), 2, "of both containers");
    let earlier: Value =
        serde_json::from_str(&text.replace("--liveness-url=http://$(POD_IP):2381/health", unreadable)).expect("JSON");
    let (admitted, warnings) = injected(&earlier);
    assert_eq!(admitted, earlier);
    let said = about(&warnings);
    assert!(
        said.len() == 1
            && said[0].contains("is not asked: \"http://a b:2381/health\" is not a URL")
            && said[0].ends_with("uninject the manifest, correct etcd's own livenessProbe, and inject again"),
        "{warnings:?}"
    );
}

#[test]
fn a_container_that_may_stay_without_etcd_is_warned_of_and_injected_as_any_other() {
    let pod = |script: &str, change: &dyn Fn(&mut Value)| {
        with(|p| {
            p["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
            change(p);
        })
    };
    let said = |pod: &Value| -> Vec<String> {
        let (injected, warnings) = injected(pod);
        assert!(sidecar_args(&injected).contains(&"--can-signal".to_owned()));
        assert_eq!(injected["spec"]["shareProcessNamespace"], json!(true));
        assert!(warnings.iter().all(|w| w.chars().count() <= 256), "{warnings:?}");
        let of_ours = |w: &String| ["when etcd ends", "ends with etcd"].iter().any(|part| w.contains(part));
        warnings.into_iter().filter(of_ours).collect()
    };
    let none = |_: &mut Value| {};
    assert_eq!(said(&pod("exec etcd --name a", &none)), [""; 0]);
    assert_eq!(said(&pod("while true; do etcd; done", &none)), [""; 0]);
    let goes_on = "etcd &\ntail -f /dev/null";
    assert_eq!(
        said(&pod(goes_on, &none)),
        [
            "container etcd: its script goes on when etcd ends (command[2] line 2: tail -f /dev/null), so a restart for a new CA leaves \
          it without etcd: write exec etcd or a livenessProbe of its port, or see etcd-tls.dev/reload"
        ]
    );
    let unknown = "etcd & if [ -e /x ]; then sleep 1d; fi; wait";
    assert_eq!(
        said(&pod(unknown, &none)),
        ["container etcd: unknown whether its script ends with etcd (command[2] line 1: sleep 1d); if not, a new \
          CA leaves it without etcd: write exec etcd or a livenessProbe of its port, or see etcd-tls.dev/reload"]
    );
    // A long name and a long command: a warning that fits into one of admission's.
    let x = "x".repeat(5000);
    let scripts = [
        (format!("etcd & tail -f /{x}"), "…), so a restart"),
        (format!("etcd & if [ -e /x ]; then sleep {x}; fi; wait"), "…); if not"),
    ];
    for (script, part) in scripts {
        let long = pod(&script, &|p| p["spec"]["containers"][0]["name"] = json!("e".repeat(63)));
        let warnings = said(&long);
        assert!(warnings[0].contains(part), "{warnings:?}");
        assert!(warnings[0].chars().count() + "etcd-tls: ".len() <= 256, "{warnings:?}");
    }
    // Its author says that the signal serves; but not where it cannot.
    let signal = |p: &mut Value| p["metadata"]["annotations"] = json!({"etcd-tls.dev/reload": "signal:SIGTERM"});
    assert_eq!(said(&pod(unknown, &signal)), [""; 0]);
    assert_eq!(said(&pod(goes_on, &signal)).len(), 1);
    // Kubelet starts it again when its liveness probe fails, if that asks etcd.
    for (probe, asks) in [
        (json!({"tcpSocket": {"port": 2379}}), true),
        (json!({"httpGet": {"path": "/health", "port": 2379}}), true),
        (json!({"grpc": {"port": 2379}}), true),
        (json!({"tcpSocket": {"port": 9000}}), false),
        (json!({"grpc": {"port": 9000}}), false),
        (json!({"tcpSocket": {"port": 2379, "host": "10.0.0.1"}}), false),
        (json!({"exec": {"command": ["true"]}}), false),
    ] {
        let probed = |p: &mut Value| p["spec"]["containers"][0]["livenessProbe"] = probe.clone();
        assert_eq!(said(&pod(goes_on, &probed)).is_empty(), asks, "{probe}");
    }
    // Code 0, after which OnFailure starts nothing.
    let on_failure = |p: &mut Value| p["spec"]["restartPolicy"] = json!("OnFailure");
    assert_eq!(said(&pod("etcd || true", &none)), [""; 0]);
    let text = said(&pod("etcd || true", &on_failure));
    assert!(text[0].contains("may end with code 0") && text[0].contains("OnFailure"), "{text:?}");
    assert_eq!(said(&pod("exec etcd", &on_failure)), [""; 0]);
    // Where the sidecar does not end etcd, there is nothing to warn of.
    for reload in ["none", "probe"] {
        let (_, warnings) =
            injected(&pod(goes_on, &|p| p["metadata"]["annotations"] = json!({"etcd-tls.dev/reload": reload})));
        assert!(!warnings.iter().any(|w| w.contains("when etcd ends")), "{reload}: {warnings:?}");
    }
}
