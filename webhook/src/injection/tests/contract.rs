//! Obstacles to a start with certificates, one change to a valid member at a time: each has its warning.

use super::*;

/// A good member with another container's field, and what is said of it.
#[track_caller]
pub(super) fn said(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let (_, warnings) = injected(&with(|pod| change(&mut pod["spec"]["containers"][0])));
    assert!(warnings.iter().all(|w| w.chars().count() <= 256), "{warnings:?}");
    warnings
}

/// A flag of the member, changed.
pub(super) fn flag(name: &str, value: &str) -> Vec<String> {
    said(|container| set(container, name, value))
}

pub(super) fn set(container: &mut Value, name: &str, value: &str) {
    let prefix = format!("--{name}=");
    let command = container["command"].as_array_mut().unwrap();
    command.retain(|word| !word.as_str().unwrap().starts_with(&prefix));
    command.push(json!(format!("{prefix}{value}")));
}

/// The member's own command line as a script, after some lines.
pub(super) fn script(container: &mut Value, before: &str, drop: &str, more: &str) {
    let words: Vec<String> =
        container["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect();
    let kept: Vec<&str> = words.iter().map(String::as_str).filter(|w| drop.is_empty() || !w.contains(drop)).collect();
    container["command"] = json!(["sh", "-c", format!("{before}\nexec {} {more}", kept.join(" "))]);
}

#[track_caller]
pub(super) fn has(warnings: &[String], words: &[&str]) {
    assert!(warnings.iter().any(|w| words.iter().all(|word| w.contains(word))), "{words:?}: {warnings:?}");
}

#[test]
fn nothing_is_said_of_a_good_member_however_it_is_written() {
    assert_eq!(said(|_| {}), [""; 0]);
    assert_eq!(said(|c| script(c, "set -eu", "", "")), [""; 0]);
    let by_variable = said(|c| {
        let urls = "NAME=etcd-0\nPEERS=\"default=https://$NAME.etcd.prod.svc:2380\"";
        script(c, urls, "--initial-cluster", "--initial-cluster=\"$PEERS\"");
    });
    assert_eq!(by_variable, [""; 0]);
    let expanded = said(|c| {
        c["env"] = json!([{"name": "PORT", "value": "12379"}, {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        set(c, "listen-client-urls", "https://0.0.0.0:$(PORT)");
        set(c, "advertise-client-urls", "https://$(ME).etcd.prod.svc.cluster.local:$(PORT)");
        c["readinessProbe"] = json!({"tcpSocket": {"port": 12379}});
    });
    assert_eq!(expanded, [""; 0]);
}

#[test]
fn a_port_on_which_revoked_certificates_are_taken_is_said() {
    let https = flag("listen-client-http-urls", "https://0.0.0.0:2378");
    has(&https, &["listen-client-http-urls", "3.5.32", "revoked"]);
    assert_eq!(https.len(), 1, "{https:?}");
    has(&flag("listen-client-http-urls", "http://0.0.0.0:2378"), &["http://0.0.0.0:2378", "write https://"]);
    let off = annotated("revocation", "off");
    let warnings = injected(&{
        let mut pod = off;
        set(&mut pod["spec"]["containers"][0], "listen-client-http-urls", "https://0.0.0.0:2378");
        pod
    });
    assert_eq!(warnings.1, [""; 0]);
}

#[test]
fn names_that_no_certificate_holds_are_said() {
    for option in ["advertise-client-urls", "initial-advertise-peer-urls"] {
        has(&flag(option, "https://etcd-0.etcd:2379"), &[option, "etcd-0.etcd,", "write etcd-0.etcd.prod.svc"]);
        has(&flag(option, "https://etcd:2379"), &[option, "write etcd.prod.svc"]);
        has(&flag(option, "https://etcd-0.etcd.other.svc:2379"), &[option, "write etcd-0.etcd.prod.svc"]);
        has(&flag(option, "https://etcd.example.com:2379"), &[option, "extra-sans"]);
        has(&flag(option, "https://0.0.0.0:2379"), &[option, "0.0.0.0"]);
    }
    let cluster = "a=https://etcd-0.etcd:2380,b=https://etcd-1.etcd:2380";
    has(&flag("initial-cluster", cluster), &["initial-cluster", "etcd-0.etcd (and 1 more)"]);
    has(&flag("initial-cluster", "a=https://localhost:2380,b=https://etcd-1.etcd.prod.svc:2380"), &["names localhost"]);

    // By kubelet's variable, by a plain shell variable, by a loop, and by etcd's own variable.
    let kubelet = said(|c| {
        c["env"] = json!([{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        set(c, "initial-advertise-peer-urls", "https://$(ME).etcd:2380");
    });
    has(&kubelet, &["initial-advertise-peer-urls", "write ${ME}.etcd.prod.svc"]);
    let shell = said(|c| script(c, "P=default=https://etcd-0.etcd:2380", "--initial-cluster", "--initial-cluster=$P"));
    has(&shell, &["initial-cluster", "etcd-0.etcd"]);
    let looped = "P=\nfor i in 0 1 2; do P=\"${P}${P:+,}etcd-$i=https://etcd-$i.etcd:2380\"; done";
    has(&said(|c| script(c, looped, "--initial-cluster", "--initial-cluster \"$P\"")), &["initial-cluster", ".etcd"]);
    let variable = said(|c| {
        c["command"].as_array_mut().unwrap().retain(|w| !w.as_str().unwrap().contains("initial-advertise"));
        c["env"] = json!([{"name": "ETCD_INITIAL_ADVERTISE_PEER_URLS", "value": "https://etcd-0.etcd:2380"}]);
    });
    has(&variable, &["initial-advertise-peer-urls", "etcd-0.etcd"]);
    let unknown = said(|c| {
        c["env"] = json!([{"name": "PEERS", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]);
        set(c, "initial-cluster", "$(PEERS)");
    });
    has(&unknown, &["initial-cluster", "cannot tell", "${PEERS}"]);
}

#[test]
fn urls_without_tls_are_said() {
    for option in ["listen-client-urls", "listen-peer-urls", "advertise-client-urls", "initial-advertise-peer-urls"] {
        has(&flag(option, "http://etcd.prod.svc:2379"), &[option, "still says http://"]);
    }
    let plain = "PEERS=\"default=http://etcd-0.etcd.prod.svc:2380\"";
    let shell = said(|c| script(c, plain, "--initial-cluster", "--initial-cluster=\"$PEERS\""));
    has(&shell, &["initial-cluster", "still says http://"]);
    for option in ["listen-client-urls", "listen-peer-urls", "advertise-client-urls"] {
        let unset = said(|c| c["command"].as_array_mut().unwrap().retain(|w| !w.as_str().unwrap().contains(option)));
        has(&unset, &[option, "not"]);
    }
    for (prefix, hides) in [("", true), ("ETCD_", true), ("E", true), ("ETCD_LISTEN_", true), ("APP_", false)] {
        let warnings = said(|c| c["envFrom"] = json!([{"configMapRef": {"name": "a"}, "prefix": prefix}]));
        assert_eq!(
            warnings.iter().any(|w| w.contains("envFrom") && w.contains("http://")),
            hides,
            "{prefix}: {warnings:?}"
        );
    }
    // No URL: etcd takes an address of IPv6 in brackets alone.
    has(
        &flag("advertise-client-urls", "https://fd00::5:2379"),
        &["advertise-client-urls", "https://fd00::5:2379", "at which etcd stops"],
    );
    let image = said(|c| {
        c.as_object_mut().unwrap().remove("command");
    });
    has(&image, &["the image's default command", "ETCD_LISTEN_CLIENT_URLS and ETCD_LISTEN_PEER_URLS"]);
}

#[test]
fn probes_and_scripts_without_a_client_certificate_are_reported() {
    let exec = |words: Value| json!({"exec": {"command": words}});
    let run = json!(["etcdctl", "endpoint", "health"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        has(&said(|c| c[probe] = exec(run.clone())), &[probe, "etcdctl", "add client"]);
        has(&said(|c| c[probe] = json!({"httpGet": {"path": "/health", "port": 2379}})), &[probe, "httpGet"]);
        has(&said(|c| c[probe] = json!({"grpc": {"port": 2379}})), &[probe, "grpc"]);
        let curl = exec(json!(["curl", "-f", "http://127.0.0.1:2379/health"]));
        has(&said(|c| c[probe] = curl), &[probe, "http://127.0.0.1:2379/health", "speaks TLS"]);
        let curl = exec(json!(["sh", "-c", "curl -k https://127.0.0.1:2379/health"]));
        has(&said(|c| c[probe] = curl), &[probe, "wants a client certificate"]);
    }
    for hook in ["postStart", "preStop"] {
        let script = exec(json!(["sh", "-c", "sleep 1; etcdctl member list"]));
        has(&said(|c| c["lifecycle"] = json!({hook: script})), &[hook, "etcdctl", "add client"]);
        let get = json!({"httpGet": {"path": "/", "port": 2379}});
        has(&said(|c| c["lifecycle"] = json!({hook: get})), &[hook, "httpGet"]);
    }
    has(&said(|c| script(c, "etcdctl member list", "", "")), &["line 1", "etcdctl", "add client"]);
    let plain = exec(json!(["etcdctl", "--endpoints=http://127.0.0.1:2379", "get", "a"]));
    has(&said(|c| c["livenessProbe"] = plain), &["endpoint", "http://127.0.0.1:2379"]);
    let old = exec(json!(["etcdctl", "--cert=/old/tls.crt", "--key=/old/tls.key", "--cacert=/old/ca.crt", "get", "a"]));
    has(&said(|c| c["livenessProbe"] = old), &["/old/tls.crt", "/etc/etcd/tls/client/tls.crt"]);
    // etcdctl's older half has options and variables of its own.
    let mut older = with(|p| {
        let word = "ETCDCTL_API=2 etcdctl cluster-health; ETCDCTL_API=3 etcdctl endpoint health";
        p["spec"]["containers"][0]["livenessProbe"] = exec(json!(["sh", "-c", word]));
    });
    has(&injected(&older).1, &["livenessProbe", "ETCDCTL_API=2", "--ca-file, --cert-file and --key-file"]);
    older["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server,client"});
    let warnings = injected(&older).1;
    has(&warnings, &["livenessProbe", "ETCDCTL_API=2", "/etc/etcd/tls/client"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let old = exec(json!(["env", "ETCDCTL_API=2", "etcdctl", "--cert-file=/old/tls.crt", "cluster-health"]));
    has(&said(|c| c["livenessProbe"] = old), &["/old/tls.crt", "/etc/etcd/tls/client/tls.crt"]);
    let metrics = said(|c| {
        set(c, "listen-metrics-urls", "https://0.0.0.0:2381");
        c["livenessProbe"] = json!({"httpGet": {"path": "/health", "port": 2381, "scheme": "HTTPS"}});
    });
    has(&metrics, &["livenessProbe", "httpGet"]);

    // Commands that need no certificate are accepted.
    for words in [json!(["etcdctl", "version"]), json!(["etcdctl", "snapshot", "status", "/x"]), json!(["true"])] {
        assert_eq!(said(|c| c["livenessProbe"] = exec(words.clone())), [""; 0], "{words}");
    }
    let plain_metrics = said(|c| {
        set(c, "listen-metrics-urls", "http://0.0.0.0:2381");
        c["livenessProbe"] = json!({"httpGet": {"path": "/health", "port": 2381}});
        c["readinessProbe"] = exec(json!(["curl", "-f", "http://127.0.0.1:2381/health"]));
    });
    assert_eq!(plain_metrics, [""; 0]);
    let mut client = with(|p| p["spec"]["containers"][0]["livenessProbe"] = exec(run));
    client["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server,client"});
    assert_eq!(injected(&client).1, [""; 0]);
}

#[test]
fn a_static_pods_old_certificates_are_said() {
    let mut config = config();
    config.host = Some(HostPaths {
        kubeconfig: "/etc/kubernetes/etcd-tls/kubeconfig".to_owned(),
        bootstrap_kubeconfig: None,
        directory: "/var/lib/etcd-tls".to_owned(),
    });
    let pod = with(|p| {
        p["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": [
            "/bin/sh", "-ec", "ETCDCTL_API=3 etcdctl --cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt \
             --key=/etc/kubernetes/pki/etcd/healthcheck-client.key --cacert=/etc/kubernetes/pki/etcd/ca.crt get foo"]}});
    });
    let PodDecision::Inject { warnings, .. } = decide(&pod, &config, ORIGIN) else { panic!("not injected") };
    has(&warnings, &["livenessProbe", "/etc/kubernetes/pki/etcd/healthcheck-client.crt", "will not trust"]);
}

#[test]
fn programs_that_drop_groups_are_said() {
    for by in ["gosu etcd", "su-exec etcd", "setpriv --reuid=1 --clear-groups", "runuser -u etcd --", "sudo -E -u etcd"]
    {
        let words: Vec<&str> = by.split(' ').collect();
        let warnings = said(|c| {
            let command = c["command"].as_array_mut().unwrap();
            command.splice(0..0, words.iter().map(|w| json!(w)));
        });
        has(&warnings, &[words[0], "takes the pod's groups", "runAsUser"]);
    }
    let kept = said(|c| {
        let command = c["command"].as_array_mut().unwrap();
        command.splice(0..0, ["setpriv", "--reuid=1", "--keep-groups"].map(|w| json!(w)));
    });
    assert_eq!(kept, [""; 0]);
}

#[test]
fn the_hosts_network_shares_the_port() {
    let mut pod = with(|p| p["spec"]["hostNetwork"] = json!(true));
    has(&injected(&pod).1, &["host's network", "9179", "admin-port"]);
    pod["metadata"]["annotations"] = json!({"etcd-tls.dev/admin-port": "9180"});
    assert!(!injected(&pod).1.iter().any(|w| w.contains("host's network")));
}

#[test]
fn a_listener_that_is_not_known_is_not_guessed() {
    let from_map = json!([{"name": "PORT", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]);
    for (what, pod) in [
        (
            "${PORT}",
            with(|p| {
                p["spec"]["containers"][0]["env"] = from_map.clone();
                set(&mut p["spec"]["containers"][0], "listen-client-urls", "https://0.0.0.0:$(PORT)");
            }),
        ),
        (
            "config file",
            with(|p| p["spec"]["containers"][0]["command"] = json!(["etcd", "--config-file=/etc/etcd.yaml"])),
        ),
        (
            "envFrom",
            with(|p| {
                p["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "a"}}]);
                let command = p["spec"]["containers"][0]["command"].as_array_mut().unwrap();
                command.retain(|w| !w.as_str().unwrap().contains("listen-client"));
            }),
        ),
        (
            "image",
            with(|p| {
                p["spec"]["containers"][0].as_object_mut().unwrap().remove("command");
            }),
        ),
    ] {
        let (after, warnings) = injected(&pod);
        has(&warnings, &["where etcd listens is not known", what, "etcd-tls.dev/client-url"]);
        assert!(!sidecar_args(&after).iter().any(|a| a.starts_with("--client-url")), "{what}");
        let mut annotated = pod.clone();
        annotated["metadata"]["annotations"] = json!({
            "etcd-tls.dev/client-url": "https://127.0.0.1:12379", "etcd-tls.dev/peer-url": "https://$(POD_IP):12380",
        });
        let (after, warnings) = injected(&annotated);
        assert!(!warnings.iter().any(|w| w.contains("where etcd listens")), "{warnings:?}");
        for arg in ["--client-url=https://127.0.0.1:12379", "--peer-url=https://$(POD_IP):12380"] {
            assert!(sidecar_args(&after).contains(&arg.to_owned()), "{what}: {arg}");
        }
    }
    // Variables that kubelet expands are known.
    let (after, _) = injected(&with(|p| {
        p["spec"]["containers"][0]["env"] = json!([
            {"name": "PORT", "value": "12379"}, {"name": "ETCD_LISTEN_CLIENT_URLS", "value": "https://0.0.0.0:$(PORT)"},
        ]);
        let command = p["spec"]["containers"][0]["command"].as_array_mut().unwrap();
        command.retain(|w| !w.as_str().unwrap().contains("listen-client"));
    }));
    assert!(sidecar_args(&after).contains(&"--client-url=https://127.0.0.1:12379".to_owned()));
}

#[test]
fn options_that_let_in_one_name_alone_are_said() {
    for option in crate::injection::contract::ALLOWED {
        has(&flag(option, "etcd"), &[option, "Leave it out"]);
        let variable = crate::injection::urls::variable("ETCD", option);
        has(&said(|c| c["env"] = json!([{"name": variable, "value": "etcd"}])), &[option, "Leave it out"]);
    }
}

#[test]
fn hosts_that_etcd_finds_by_itself_are_unknown() {
    for (option, value, see) in [
        ("discovery-srv", "etcd.prod.svc.cluster.local", "etcd-server-ssl"),
        ("discovery", "https://discovery.example.com/token", "registered with https://"),
        ("discovery-token", "token", "registered with https://"),
        ("discovery-endpoints", "http://discovery.example.com:2379", "registered with https://"),
    ] {
        let said = said(|c| {
            c["command"].as_array_mut().unwrap().retain(|w| !w.as_str().unwrap().contains("initial-cluster"));
            set(c, option, value);
        });
        assert_eq!(said.len(), 1, "{said:?}");
        has(&said, &["cannot tell whether a certificate holds the hosts", &format!("--{option} finds"), see]);
    }
    let mut pod =
        with(|pod| set(&mut pod["spec"]["containers"][0], "discovery", "https://discovery.example.com/token"));
    pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "server"});
    let without_peer = injected(&pod).1;
    assert_eq!(without_peer.len(), 1, "it has no certificate of a peer: {without_peer:?}");
    has(&without_peer, &["listen-peer-urls", "nothing gives etcd --peer-cert-file", "stops"]);
}

#[test]
fn a_socket_is_no_url_of_tls() {
    let (after, warnings) = injected(&with(|pod| {
        set(&mut pod["spec"]["containers"][0], "listen-client-urls", "unixs://localhost:2379");
    }));
    has(
        &warnings,
        &["where etcd listens is not known", "--listen-client-urls is unixs://localhost:2379", "client-url"],
    );
    assert!(!sidecar_args(&after).iter().any(|arg| arg.starts_with("--client-url")), "{:?}", sidecar_args(&after));
    has(
        &flag("advertise-client-urls", "unixs://localhost:2379"),
        &["cannot tell", "advertise-client-urls", "unixs://"],
    );
    // Beside another one, it is for whoever knows of it.
    assert_eq!(flag("listen-client-urls", "unixs://localhost:2379,https://0.0.0.0:2379"), [""; 0]);
}

#[test]
fn the_name_of_another_pod_or_subdomain_is_said() {
    let advertised = |host: &str, change: &dyn Fn(&mut Value)| {
        let pod = with(|pod| {
            let container = &mut pod["spec"]["containers"][0];
            set(container, "initial-advertise-peer-urls", &format!("https://{host}:2380"));
            set(container, "initial-cluster", &format!("default=https://{host}:2380"));
            change(pod);
        });
        injected(&pod).1
    };
    assert_eq!(advertised("etcd-0.etcd.prod.svc", &|_| {}), [""; 0]);
    for host in ["etcd-0.etcd-peers.prod.svc", "etcd-1.etcd.prod.svc", "etcd-1.etcd-peers.prod"] {
        has(&advertised(host, &|_| {}), &["initial-advertise-peer-urls", host, "write etcd-0.etcd.prod.svc"]);
    }
    let without = advertised("etcd-0.etcd.prod.svc", &|pod| {
        pod["spec"].as_object_mut().unwrap().remove("subdomain");
    });
    has(&without, &["initial-advertise-peer-urls", "etcd-0.etcd.prod.svc", "set spec.subdomain"]);
    has(&without, &["advertise-client-urls", "set spec.subdomain"]);
    let hostname = advertised("a.etcd.prod.svc", &|pod| pod["spec"]["hostname"] = json!("a"));
    has(&hostname, &["advertise-client-urls names etcd-0.etcd.prod.svc", "write a.etcd.prod.svc"]);
    assert!(!hostname.iter().any(|w| w.contains("initial-advertise")), "{hostname:?}");
    // A name that is yet to be made, and what a template's controller sets.
    for change in
        [&(|pod: &mut Value| pod["metadata"]["name"] = json!("")) as &dyn Fn(&mut Value), &|pod: &mut Value| {
            pod.as_object_mut().unwrap().remove("kind");
            pod["spec"].as_object_mut().unwrap().remove("subdomain");
        }]
    {
        assert_eq!(advertised("etcd-0.etcd.prod.svc", change), [""; 0]);
    }
}

#[test]
fn suites_for_keys_of_another_kind_are_said() {
    let rsa = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    let ecdsa = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let said = |suites: &str, version: Option<&str>, key: &str| {
        let pod = with(|pod| {
            let container = &mut pod["spec"]["containers"][0];
            set(container, "cipher-suites", suites);
            if let Some(version) = version {
                set(container, "tls-max-version", version);
            }
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/key": key});
        });
        injected(&pod).1
    };
    for (suites, key) in [(rsa, "ecdsa-p256"), (rsa, "ed25519"), (ecdsa, "rsa-3072")] {
        has(&said(suites, Some("TLS1.2"), key), &["--cipher-suites", "no connection succeeds", "etcd-tls.dev/key"]);
        has(&said(suites, None, key), &["--cipher-suites", "without TLS 1.3", "etcd-tls.dev/key"]);
    }
    for (suites, key) in [(ecdsa, "ecdsa-p256"), (ecdsa, "ed25519"), (rsa, "rsa-3072"), ("", "ecdsa-p256")] {
        assert_eq!(said(suites, Some("TLS1.2"), key), [""; 0], "{suites} {key}");
    }
    assert_eq!(said(&format!("{rsa},{ecdsa}"), Some("TLS1.2"), "ecdsa-p256"), [""; 0]);
    let variable = said_by_variable(rsa);
    has(&variable, &["--cipher-suites", "no connection succeeds"]);
    // Of a certificate of its own, nobody here knows the key.
    let own = said_own(rsa);
    assert!(!own.iter().any(|w| w.contains("cipher-suites")), "{own:?}");
}

fn said_by_variable(suites: &str) -> Vec<String> {
    said(|c| {
        c["env"] = json!([{"name": "ETCD_CIPHER_SUITES", "value": suites}, {"name": "ETCD_TLS_MAX_VERSION", "value": "TLS1.2"}]);
    })
}

fn said_own(suites: &str) -> Vec<String> {
    said(|c| {
        for (name, value) in [("cipher-suites", suites), ("cert-file", "/own/tls.crt"), ("key-file", "/own/tls.key")] {
            set(c, name, value);
        }
    })
}

/// An image whose scripts give etcdctl its certificates by flag; and a script of which nobody knows what it gives.
#[test]
fn etcdctls_environment_is_not_doubled_and_the_annotation_options_is_for_it_too() {
    let client = |options: &str, image: &str, command: Value| {
        with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "client", "etcd-tls.dev/options": options});
            pod["spec"]["containers"][0]["image"] = json!(image);
            pod["spec"]["containers"][0]["command"] = command;
        })
    };
    let set = |pod: &Value| ["ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"].map(|name| env(pod, 0, name).is_some());
    let own = |options: &str| {
        let mut pod = client(options, "bitnami/etcd:3.5", Value::Null);
        pod["metadata"]["annotations"]["etcd-tls.dev/roles"] = json!("peer,server,client");
        pod
    };
    assert_eq!(set(&injected(&own("auto")).0), [false; 3]);
    assert_eq!(set(&injected(&own("none")).0), [false; 3]);
    assert_eq!(set(&injected(&own("env")).0), [true; 3]);
    // A snapshot's script gives only what the pod itself sets for etcd.
    let snapshot = |file: Option<&str>| {
        let mut pod = client("auto", "bitnami/etcd:3.5", json!(["/opt/bitnami/scripts/etcd/snapshot.sh"]));
        pod["spec"]["containers"][0]["env"] =
            json!(file.map(|value| json!({"name": "ETCD_CERT_FILE", "value": value})).as_slice());
        injected(&pod)
    };
    let (pod, warnings) = snapshot(None);
    assert_eq!((set(&pod), warnings), ([true; 3], Vec::new()));
    let (pod, warnings) = snapshot(Some("/etc/etcd/tls/client/tls.crt"));
    assert_eq!((set(&pod), warnings), ([false; 3], Vec::new()));
    let (pod, warnings) = snapshot(Some("/own/tls.crt"));
    assert_eq!(set(&pod), [false; 3]);
    has(
        &warnings,
        &[
            "the image's scripts give etcdctl",
            "ETCD_CERT_FILE: /etc/etcd/tls/client/tls.crt",
            "ETCD_TRUSTED_CA_FILE: /etc/etcd/tls/client/ca.crt",
        ],
    );

    let unknown = |options: &str| client(options, "etcd", json!(["sh", "-c", "etcdctl $FLAGS get x"]));
    let said = refused(&unknown("auto"));
    assert!(said.contains("the flags of etcdctl are unknown") && said.contains("ETCDCTL_CERT=/etc/etcd/tls"), "{said}");
    assert_eq!(set(&injected(&unknown("env")).0), [true; 3]);
    assert_eq!(set(&injected(&unknown("none")).0), [false; 3]);
}

/// A value of the annotation `options` that does not fit the command line, and a second etcd without the options of the first.
#[test]
fn options_that_etcd_gets_twice_or_not_at_all_are_said() {
    let with_options = |options: &str, change: &dyn Fn(&mut Value)| {
        let pod = with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/options": options});
            change(&mut pod["spec"]["containers"][0]);
        });
        let PodDecision::Inject { warnings, .. } = run(&pod) else { panic!("{:?}", run(&pod)) };
        warnings
    };
    assert_eq!(with_options("env", &|_| {}), [""; 0]);
    let own = |c: &mut Value| set(c, "cert-file", "/etc/etcd/tls/server/tls.crt");
    has(&with_options("env", &own), &["options is env, but --cert-file is given as well, and etcd stops at both"]);
    let none = "options is none, but nothing gives etcd --cert-file=/etc/etcd/tls/server/tls.crt";
    has(&with_options("none", &|_| {}), &[none]);
    assert!(!with_options("none", &own).iter().any(|warning| warning.contains(none)));
    let twice = |c: &mut Value| {
        own(c);
        script(c, "etcd --force-new-cluster", "", "");
    };
    has(&with_options("none", &twice), &["etcd runs without --cert-file"]);
}

/// A program that takes the environment away: variables do not reach etcd, so the only way out is its flags.
#[test]
fn where_the_environment_is_cleared_the_annotation_env_is_no_way_out() {
    for program in ["sudo -u etcd", "env -i"] {
        let member = |options: &str| {
            with(|pod| {
                pod["metadata"]["annotations"] = json!({"etcd-tls.dev/options": options});
                pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", format!("{program} etcd")]);
            })
        };
        let said = refused(&member("auto"));
        assert!(said.contains("which clears the environment"), "{program}: {said}");
        assert!(said.contains("options: none and give it --") && !said.contains("options: env"), "{program}: {said}");
        let warned = |options: &str| {
            let (_, warnings) = injected(&member(options));
            warnings.iter().any(|warning| warning.contains("which clears the environment"))
        };
        assert!(warned("env") && !warned("none"), "{program}");
    }
}
