//! Containers beside etcd that ask it without TLS or without a certificate: each has its warning.

use super::*;

/// The warnings of a member with another container in `list`.
#[track_caller]
fn beside(list: &str, container: &Value, annotations: &[(&str, &str)]) -> Vec<String> {
    let pod = with(|pod| {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][format!("etcd-tls.dev/{key}")] = json!(value);
        }
        let mut container = container.clone();
        container["name"] = json!("backup");
        container["image"] = json!("backup");
        container["securityContext"] = json!({"runAsUser": 4000});
        match pod["spec"][list].as_array_mut() {
            Some(containers) => containers.push(container),
            None => pod["spec"][list] = json!([container]),
        }
    });
    let (_, warnings) = injected(&pod);
    assert!(warnings.iter().all(|w| w.chars().count() <= 256), "{warnings:?}");
    warnings
}

#[track_caller]
fn one(warnings: &[String], words: &[&str]) {
    let [warning] = warnings else { panic!("{words:?}: {warnings:?}") };
    assert!(warning.starts_with("container backup: "), "{warning}");
    assert!(words.iter().all(|word| warning.contains(word)), "{words:?}: {warning}");
}

const ADVICE: &str = "add client to etcd-tls.dev/roles and the container to etcd-tls.dev/containers";

#[test]
fn etcdctl_beside_etcd_needs_a_certificate() {
    let ways = [
        json!({"command": ["etcdctl", "--endpoints=https://127.0.0.1:2379", "defrag"]}),
        json!({"command": ["sh", "-ec", "while true; do etcdctl snapshot save /backup/x; sleep 3600; done"]}),
        json!({"command": ["sleep", "1000"], "lifecycle": {"postStart": {"exec": {"command": ["etcdctl", "member", "list"]}}}}),
        json!({"command": ["sh", "-c", "eval \"$WHAT\"; etcdctl member list"]}),
    ];
    for container in &ways {
        for list in ["containers", "initContainers"] {
            one(&beside(list, container, &[]), &["etcdctl", "needs a client certificate", ADVICE]);
        }
    }
    let join = json!({"command": ["sh", "-c", "etcdctl --endpoints=https://etcd.prod.svc:2379 member add $HOSTNAME"]});
    one(&beside("initContainers", &join, &[]), &["etcdctl", "needs a client certificate", ADVICE]);
    let client = [("roles", "peer,server,client")];
    let said = beside("containers", &ways[0], &client);
    one(&said, &["needs a client certificate", "add the container to etcd-tls.dev/containers"]);
    assert!(!said[0].contains("etcd-tls.dev/roles"), "{said:?}");
    // As advised, or with commands that ask nobody.
    let named = [("roles", "peer,server,client"), ("containers", "etcd,backup")];
    assert_eq!(beside("containers", &ways[0], &named), [""; 0]);
    assert_eq!(beside("initContainers", &join, &named), [""; 0]);
    let restore = "etcdctl snapshot restore /x --initial-cluster $PEERS";
    for words in [
        json!(["etcdctl", "version"]),
        json!(["etcdctl", "snapshot", "status", "/x"]),
        json!(["sh", "-c", restore]),
        json!(["true"]),
    ] {
        assert_eq!(beside("containers", &json!({"command": words}), &[]), [""; 0], "{words}");
    }
    // A member that serves nobody asks for no certificate of clients: its etcd stops at the URL of https.
    let said = beside("containers", &ways[0], &[("roles", "peer")]);
    assert!(said.len() == 1 && said[0].contains("and nothing gives etcd --cert-file, so it stops"), "{said:?}");
}

#[test]
fn certificates_that_the_container_lacks_or_etcd_does_not_trust_are_said() {
    let with_files = |directory: &str| {
        let flag = |name: &str, file: &str| format!("--{name}={directory}/{file}");
        json!({"command": ["etcdctl", flag("cert", "tls.crt"), flag("key", "tls.key"), flag("cacert", "ca.crt"), "get", "a"]})
    };
    one(&beside("containers", &with_files("/old"), &[]), &["/old/tls.crt", "will not trust", ADVICE]);
    let ours = with_files("/etc/etcd/tls/client");
    one(
        &beside("containers", &ours, &[]),
        &["/etc/etcd/tls/client/tls.crt", "which the container does not have", ADVICE],
    );
    assert_eq!(beside("containers", &ours, &[("roles", "peer,server,client"), ("containers", "etcd,backup")]), [""; 0]);
}

#[test]
fn requests_without_tls_beside_etcd_are_said() {
    for (list, container, words) in [
        (
            "containers",
            json!({"command": ["sh", "-c", "curl -s http://127.0.0.1:2379/metrics | gzip >/x"]}),
            vec!["command asks http://127.0.0.1:2379/metrics", "speaks TLS", "--listen-metrics-urls", ADVICE],
        ),
        (
            "containers",
            json!({"command": ["curl", "-k", "https://127.0.0.1:2379/metrics"]}),
            vec!["wants a client certificate", ADVICE],
        ),
        (
            "initContainers",
            json!({"command": ["wget", "-O-", "http://etcd.prod.svc:2379/health"]}),
            vec!["http://etcd.prod.svc:2379/health", "speaks TLS"],
        ),
        (
            "containers",
            json!({"command": ["x"], "livenessProbe": {"exec": {"command": ["grpc_health_probe", "-addr=127.0.0.1:2379"]}}}),
            vec!["livenessProbe.exec.command", "speaks TLS"],
        ),
        (
            "containers",
            json!({"command": ["x"], "readinessProbe": {"httpGet": {"path": "/health", "port": 2379}}}),
            vec!["readinessProbe", "wants a client certificate by httpGet"],
        ),
        (
            "containers",
            json!({"command": ["x"], "ports": [{"name": "etcd", "containerPort": 2379}], "livenessProbe": {"grpc": {"port": 2379}}}),
            vec!["livenessProbe", "by grpc"],
        ),
        // Of programs that nobody knows, the URL tells.
        (
            "containers",
            json!({"command": ["apiserver", "--etcd-servers=http://127.0.0.1:2379,http://127.0.0.1:2378"]}),
            vec!["its command line names http://127.0.0.1:2379", "speaks TLS there", "write https://", ADVICE],
        ),
        (
            "containers",
            json!({"command": ["x"], "env": [{"name": "PORT", "value": "2379"}, {"name": "ETCDCTL_ENDPOINTS", "value": "http://127.0.0.1:$(PORT)"}]}),
            vec!["ETCDCTL_ENDPOINTS names http://127.0.0.1:2379", "write https://", ADVICE],
        ),
    ] {
        one(&beside(list, &container, &[]), &words);
    }
    // Both are said of a backup as it is written in the field.
    let plain = json!({
        "command": ["etcdctl", "snapshot", "save", "/x"],
        "env": [{"name": "ETCDCTL_ENDPOINTS", "value": "http://127.0.0.1:2379"}],
    });
    let said = beside("containers", &plain, &[]);
    assert!(said.len() == 2 && said[0].contains("needs a client certificate"), "{said:?}");
    assert!(said[1].contains("gives etcdctl the endpoint http://127.0.0.1:2379, which will speak TLS"), "{said:?}");
    let named = beside("containers", &plain, &[("roles", "peer,server,client"), ("containers", "etcd,backup")]);
    one(&named, &["gives etcdctl the endpoint http://127.0.0.1:2379"]);

    for fine in [
        json!({"command": ["curl", "http://127.0.0.1:8080/metrics"]}),
        json!({"command": ["x", "--etcd-servers=https://127.0.0.1:2379"]}),
        json!({"command": ["x"], "readinessProbe": {"tcpSocket": {"port": 2379}}}),
        json!({"command": ["x"], "readinessProbe": {"httpGet": {"port": 8080}}}),
        json!({"command": ["curl", "--cert", "/a", "--key", "/b", "https://127.0.0.1:2379/health"]}),
    ] {
        assert_eq!(beside("containers", &fine, &[]), [""; 0], "{fine}");
    }
}

#[test]
fn the_ports_are_etcds_own() {
    let probe = |port: u16| json!({"command": ["x"], "readinessProbe": {"httpGet": {"path": "/health", "port": port}}});
    let said = |listen: &str, port: u16| {
        let pod = with(|pod| {
            let command = pod["spec"]["containers"][0]["command"].as_array_mut().unwrap();
            command.retain(|word| !word.as_str().unwrap().contains("listen-client"));
            command.extend(listen.split(' ').map(|word| json!(word)));
            let mut other = probe(port);
            other["name"] = json!("other");
            other["securityContext"] = json!({"runAsUser": 4000});
            pod["spec"]["containers"].as_array_mut().unwrap().push(other);
        });
        injected(&pod).1
    };
    let listen =
        "--listen-client-urls=https://0.0.0.0:12379 --listen-metrics-urls=https://0.0.0.0:2381,http://0.0.0.0:2382";
    for (port, asks) in [(12379, true), (2381, true), (2379, false), (2382, false)] {
        assert_eq!(
            said(listen, port).iter().any(|w| w.contains("container other: its readinessProbe")),
            asks,
            "{port}"
        );
    }
}

#[test]
fn a_client_of_another_pods_etcd_is_told_to_write_https() {
    let client = |container: Value| {
        let mut container = container;
        container["name"] = json!("client");
        container["securityContext"] = json!({"runAsUser": 4000});
        injected(&json!({
            "metadata": {"labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "client"}},
            "spec": {"containers": [container]},
        }))
        .1
    };
    let endpoint = client(json!({"command": ["etcdctl", "--endpoints=http://etcd.prod.svc:2379", "get", "a"]}));
    assert!(endpoint.len() == 1 && endpoint[0].contains("the endpoint http://etcd.prod.svc:2379"), "{endpoint:?}");
    let variable = client(json!({"command": ["app"], "env": [{"name": "ETCD", "value": "http://etcd.prod.svc:2379"}]}));
    assert!(variable.len() == 1 && variable[0].contains("ETCD names http://etcd.prod.svc:2379"), "{variable:?}");
    assert_eq!(client(json!({"command": ["app", "--etcd=https://etcd.prod.svc:2379"]})), [""; 0]);
}

#[test]
fn a_client_is_told_that_no_certificate_holds_a_name_without_its_namespace() {
    let client = |container: Value, extra: &str| {
        let mut container = container;
        container["name"] = json!("client");
        container["securityContext"] = json!({"runAsUser": 4000});
        let mut annotations = json!({"etcd-tls.dev/roles": "client"});
        if !extra.is_empty() {
            annotations["etcd-tls.dev/extra-sans"] = json!(extra);
        }
        injected(&json!({
            "metadata": {"labels": {"etcd-tls": "dynamic"}, "annotations": annotations},
            "spec": {"containers": [container]},
        }))
        .1
    };
    let etcdctl = |endpoints: &str| client(json!({"command": ["etcdctl", "--endpoints", endpoints, "get", "a"]}), "");
    for endpoints in ["https://etcd-client:2379", "etcd-client:2379", "https://etcd.prod.svc:2379, https://etcd-client"]
    {
        let said = etcdctl(endpoints);
        assert!(
            said.len() == 1 && said[0].contains("command[0] gives etcdctl an endpoint with the name etcd-client"),
            "{said:?}"
        );
        assert!(said[0].contains("write etcd-client.prod.svc") && said[0].chars().count() <= 256, "{said:?}");
    }
    let script = json!({"command": ["sh", "-c", "E=https://etcd:2379; etcdctl --endpoints=$E get a"]});
    let variable =
        json!({"command": ["app"], "env": [{"name": "ETCD", "value": "https://etcd:2379,https://10.0.0.7:2379"}]});
    let flag = json!({"command": ["kube-apiserver", "--etcd-servers=https://etcd:2379"]});
    for container in [&script, &variable, &flag] {
        let said = client(container.clone(), "");
        assert!(said.len() == 1 && said[0].contains("write etcd.prod.svc"), "{said:?}");
        assert_eq!(client(container.clone(), "etcd"), [""; 0], "{container}");
    }
    for endpoints in
        ["https://etcd.other:2379", "127.0.0.1:2379", "localhost:2379", "https://[::1]:2379", "$(HOST):2379"]
    {
        assert_eq!(etcdctl(endpoints), [""; 0], "{endpoints}");
    }
    assert_eq!(client(json!({"command": ["app", "--peers=https://app:8443"]}), ""), [""; 0]);
    // Of another's CA nothing is known.
    for flag in ["--cacert=/theirs/ca.crt", "--insecure-skip-tls-verify"] {
        let said = client(json!({"command": ["etcdctl", flag, "--endpoints=https://etcd:2379", "get", "a"]}), "");
        assert!(!said.iter().any(|w| w.contains("without its namespace")), "{flag}: {said:?}");
    }
}

/// Only so many command lines are read, and the others are not taken for fine.
#[test]
fn containers_that_are_not_read_are_said() {
    let many = |count: usize| {
        let pod = with(|pod| {
            let containers = pod["spec"]["containers"].as_array_mut().unwrap();
            containers.extend((0..count).map(|n| {
                json!({"name": format!("c{n}"), "command": ["etcdctl", "version"], "securityContext": {"runAsUser": 4000}})
            }));
        });
        injected(&pod).1
    };
    assert_eq!(many(64), [""; 0]);
    let said = many(65);
    assert!(said.len() == 1 && said[0].contains("65 containers") && said[0].contains("64 were looked at"), "{said:?}");
}

/// kubelet asks a loopback address of the host: that of a pod on the host's network.
#[test]
fn a_probe_of_the_hosts_loopback_asks_a_pod_on_its_network() {
    let said = |network: bool| {
        let (_, warnings) = injected(&with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/admin-port": "9180"});
            pod["spec"]["hostNetwork"] = json!(network);
            pod["spec"]["containers"][0]["livenessProbe"] =
                json!({"httpGet": {"host": "127.0.0.1", "port": 2379, "scheme": "HTTPS"}});
        }));
        warnings.iter().any(|w| w.contains("its livenessProbe asks a port that wants a client certificate"))
    };
    assert!(said(true) && !said(false));
}

/// kubelet asks the pod's address, unless the probe names a host.
#[test]
fn a_probe_of_a_port_at_loopback_alone_is_said() {
    let said = |urls: &str, probe: Value| {
        let (_, warnings) = injected(&with(|pod| {
            let etcd = &mut pod["spec"]["containers"][0];
            etcd["command"].as_array_mut().unwrap().push(json!(format!("--listen-metrics-urls={urls}")));
            etcd["livenessProbe"] = probe;
        }));
        warnings.iter().any(|w| w.contains("its livenessProbe asks port 2381 of the pod's address"))
    };
    let (http, tcp) = (json!({"httpGet": {"path": "/health", "port": 2381}}), json!({"tcpSocket": {"port": 2381}}));
    for probe in [&http, &tcp] {
        assert!(said("http://127.0.0.1:2381", probe.clone()) && said("http://localhost:2381", probe.clone()));
        assert!(
            !said("http://0.0.0.0:2381", probe.clone())
                && !said("http://127.0.0.1:2381,http://[::]:2381", probe.clone())
        );
    }
    assert!(!said("http://127.0.0.1:2381", json!({"httpGet": {"host": "127.0.0.1", "port": 2381}})));
}

/// What a probe asks at a port of etcd must be what etcd says there.
#[test]
fn a_probe_that_nobody_answers_is_said() {
    let said = |probe: Value, change: &dyn Fn(&mut Value)| {
        injected(&with(|pod| {
            let etcd = &mut pod["spec"]["containers"][0];
            etcd["command"].as_array_mut().unwrap().push(json!("--listen-metrics-urls=http://0.0.0.0:2381"));
            etcd["readinessProbe"] = probe;
            change(pod);
        }))
        .1
    };
    let nobody = |port: u16, change: &dyn Fn(&mut Value)| {
        let all = [json!({"tcpSocket": {"port": port}}), json!({"httpGet": {"path": "/readyz", "port": port}})];
        let are =
            all.map(|p| said(p, change).iter().any(|w| w.contains("where etcd does not listen, so it will fail")));
        assert_eq!(are[0], are[1]);
        are[0]
    };
    let same = |_: &mut Value| {};
    assert!(nobody(12379, &same) && nobody(8080, &same));
    assert!(!nobody(2381, &same) && !nobody(2379, &same) && !nobody(9179, &same));
    // Something else may listen there, or etcd's own listeners are not known.
    let beside = |pod: &mut Value| {
        let other = json!({"name": "proxy", "securityContext": {"runAsUser": 4000}});
        pod["spec"]["containers"].as_array_mut().unwrap().push(other);
    };
    let first = |words: Value| move |pod: &mut Value| pod["spec"]["containers"][0]["command"] = words.clone();
    let on_host = |pod: &mut Value| pod["spec"]["hostNetwork"] = json!(true);
    let by_file = |pod: &mut Value| {
        pod["spec"]["containers"][0]["command"].as_array_mut().unwrap().push(json!("--config-file=/a"));
    };
    assert!(!nobody(12379, &beside) && !nobody(12379, &on_host) && !nobody(12379, &by_file));
    assert!(!nobody(12379, &first(json!(["etcd"]))));
    let urls = |scheme: &str| {
        format!("--listen-client-urls={scheme}://0.0.0.0:2379 --listen-peer-urls={scheme}://0.0.0.0:2380")
    };
    let script = |more: &str| first(json!(["sh", "-c", format!("{more} exec etcd {}", urls("https"))]));
    assert!(nobody(12379, &script("sleep 1;")) && !nobody(12379, &script("socat TCP-LISTEN:12379,fork TCP:a:1 &")));

    let https = |port: u16| json!({"httpGet": {"path": "/health", "port": port, "scheme": "HTTPS"}});
    let plain = said(https(2381), &same);
    assert!(
        plain.len() == 1 && plain[0].contains("asks port 2381 by HTTPS") && plain[0].contains("has it without TLS")
    );
    let members = said(https(2380), &same);
    assert!(members.len() == 1 && members[0].contains("wants a client certificate by httpGet"), "{members:?}");
}

/// The names of a member that its own etcdctl asks.
#[test]
fn an_endpoint_by_a_name_that_no_certificate_holds_is_said() {
    let said = |endpoint: &str| {
        injected(&with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server,client"});
            let etcd = &mut pod["spec"]["containers"][0];
            etcd["env"] = json!([{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
            let script = format!("etcdctl --endpoints={endpoint} endpoint health");
            etcd["livenessProbe"] = json!({"exec": {"command": ["sh", "-c", script]}});
        }))
        .1
    };
    for (endpoint, instead) in [
        ("https://$HOSTNAME:2379", "write ${HOSTNAME}.<service>.prod.svc"),
        ("https://${ME}.etcd:2379", "write ${ME}.etcd.prod.svc"),
        ("https://localhost:2379,https://etcd-0.etcd:2379", "write etcd-0.etcd.prod.svc"),
    ] {
        let said = said(endpoint);
        assert!(said.len() == 1 && said[0].contains("gives etcdctl an endpoint with the name"), "{said:?}");
        assert!(said[0].contains("which no certificate will hold") && said[0].contains(instead), "{said:?}");
    }
    for fine in [
        "https://127.0.0.1:2379",
        "https://${ME}.etcd.prod.svc:2379",
        "https://etcd.prod:2379",
        "https://etcd.other.svc:2379",
        "https://etcd.example.org:2379",
        "\"https://$X:2379\"",
    ] {
        assert_eq!(said(fine), [""; 0], "{fine}");
    }
}

/// A script may start an etcd of its own for a while.
#[test]
fn another_server_at_the_pods_loopback_is_not_etcd() {
    let seed = |endpoint: &str| {
        let script = format!(
            "etcd --listen-client-urls=http://127.0.0.1:9999 & etcdctl --endpoints={endpoint} put a b; kill %1"
        );
        beside("initContainers", &json!({"command": ["sh", "-c", script]}), &[])
    };
    for fine in ["http://127.0.0.1:9999", "localhost:9999", "http://[::1]:9999,http://localhost:9998"] {
        assert_eq!(seed(fine), [""; 0], "{fine}");
    }
    for asks in ["http://127.0.0.1:2379", "http://127.0.0.1:9999,http://127.0.0.1:2379", "http://etcd.prod.svc:9999"] {
        assert!(seed(asks).iter().any(|w| w.contains("which will speak TLS")), "{asks}");
    }
}

/// etcd takes the URLs of its members from its data, once there is any.
#[test]
fn members_written_down_without_tls_are_said() {
    let flags = |url: &str| format!("--name a --initial-cluster a={url} --initial-advertise-peer-urls={url}");
    let restore = |tool: &str, url: &str| json!({"command": ["sh", "-c", format!("[ -d /d/member ] || {tool} snapshot restore /b {}", flags(url))]});
    for tool in ["etcdutl", "etcdctl"] {
        let said = beside("initContainers", &restore(tool, "http://a.etcd.prod.svc:2380"), &[]);
        one(
            &said,
            &[tool, "--initial-cluster, which etcd keeps in its data", "http://a.etcd.prod.svc:2380", "https://"],
        );
        let said = beside("initContainers", &restore(tool, "https://a.etcd:2380"), &[]);
        one(&said, &[tool, "which etcd keeps in its data", "the name a.etcd", "write a.etcd.prod.svc"]);
        for fine in ["https://a.etcd.prod.svc:2380", "https://10.0.0.7:2380", "http://localhost:2380"] {
            assert_eq!(beside("initContainers", &restore(tool, fine), &[]), [""; 0], "{fine}");
        }
    }
    let join = json!({"command": ["etcdctl", "member", "add", "a", "--peer-urls=http://a.etcd.prod.svc:2380"]});
    let named = [("roles", "peer,server,client"), ("containers", "etcd,backup")];
    one(&beside("initContainers", &join, &named), &["--peer-urls, which etcd keeps in its data", "write https://"]);
    // A program that needs no key may be run without the group that reads it.
    let dropped = json!({"command": ["gosu", "etcd", "etcdutl", "snapshot", "status", "/b"]});
    assert_eq!(beside("initContainers", &dropped, &named), [""; 0]);
}

/// A number that etcdctl prints holds no flags, so the flags of what it is given to are known.
#[test]
fn a_hook_by_the_number_of_the_member_is_understood() {
    for script in [
        "etcdctl member remove $(etcdctl member list | grep $HOSTNAME | cut -d, -f1)",
        "id=$(etcdctl member list | awk -F, \"/$HOSTNAME/{print \\$1}\"); etcdctl member remove $id",
        "rev=$(etcdctl endpoint status --write-out=json | egrep -o '\"revision\":[0-9]*' | egrep -o '[0-9].*'); etcdctl compact $rev",
    ] {
        let (_, warnings) = injected(&with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server,client"});
            pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", script]}}});
        }));
        assert_eq!(warnings, [""; 0], "{script}");
    }
    let refusal = refused(&with(|pod| {
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server,client"});
        let script = "etcdctl member remove $(etcdctl get member --print-value-only)";
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", script]}}});
    }));
    assert!(refusal.contains("which may hold any flags"), "{refusal}");
}
