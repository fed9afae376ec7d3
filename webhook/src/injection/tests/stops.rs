//! Command lines at which etcd stops, one change to a valid member at a time: each has its warning.

use super::{
    contract::{flag, has, said, script, set},
    *,
};

#[test]
fn an_initial_cluster_without_the_member_is_said() {
    let cluster = |member: Option<&str>, cluster: Option<&str>| {
        said(|c| {
            let command = c["command"].as_array_mut().unwrap();
            command.retain(|w| !["--name=", "--initial-cluster="].iter().any(|p| w.as_str().unwrap().starts_with(p)));
            if let Some(member) = member {
                set(c, "name", member);
            }
            if let Some(cluster) = cluster {
                set(c, "initial-cluster", cluster);
            }
            set(c, "initial-advertise-peer-urls", "https://etcd-0.etcd.prod.svc:2380");
            c["env"] = json!([{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        })
    };
    let url = "https://etcd-0.etcd.prod.svc:2380";
    has(&cluster(None, None), &["neither --name nor --initial-cluster", &format!("default={url}")]);
    has(&cluster(Some("default"), None), &["neither --name nor --initial-cluster"]);
    has(&cluster(None, Some(&format!("etcd-0={url}"))), &["lacks this member, default"]);
    let other = "https://etcd-1.etcd.prod.svc:2380";
    has(&cluster(Some("a"), Some(&format!("a={other}"))), &[other, url, "do not resolve to the same, etcd stops"]);
    // etcd takes the space for a part of the name.
    has(&cluster(Some("a"), Some(&format!("b={other}, a={url}"))), &["lacks this member, a"]);
    for (member, pairs) in [
        (Some("a"), None),
        (None, Some(format!("default={url}"))),
        (Some("a"), Some(format!("b={other},a={url}"))),
        (Some("$(POD_NAME)"), Some(format!("b={other}"))),
    ] {
        assert_eq!(cluster(member, pairs.as_deref()), [""; 0], "{member:?} {pairs:?}");
    }
}

/// etcd takes white space for a part of the name: the member that lacks it is another pod of the StatefulSet.
#[test]
fn white_space_in_an_initial_cluster_is_said() {
    let cluster = |separator: &str| {
        said(|c| {
            c["env"] = json!([{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
            set(c, "name", "$(ME)");
            set(c, "initial-advertise-peer-urls", "https://$(ME).etcd.prod.svc:2380");
            let members = ["a", "b"].map(|name| format!("{name}=https://{name}.etcd.prod.svc:2380"));
            set(c, "initial-cluster", &members.join(separator));
        })
    };
    for separator in [", ", ",\n", ",\t"] {
        has(&cluster(separator), &["has white space in front of b=https://b.etcd.prod.svc:2380", "that member stops"]);
    }
    assert_eq!((cluster(","), cluster(",,")), (Vec::new(), Vec::new()));
}

#[test]
fn what_goes_not_with_tls_1_3_alone_is_said() {
    let with = |other: &str, value: &str, least: &str| {
        said(|c| {
            set(c, "tls-min-version", least);
            set(c, other, value);
        })
    };
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    for (other, value) in [("cipher-suites", suite), ("tls-max-version", "TLS1.2")] {
        has(&with(other, value, "TLS1.3"), &["--tls-min-version is TLS1.3, and", other, "etcd stops"]);
        assert_eq!(with(other, value, "TLS1.2"), [""; 0]);
    }
    assert_eq!(with("tls-max-version", "TLS1.3", "TLS1.3"), [""; 0]);
}

#[test]
fn a_grpc_proxy_without_flags_of_its_own_is_said() {
    let proxy = |flags: &str| {
        let words = format!("etcd grpc-proxy start --listen-addr=0.0.0.0:23790 {flags}");
        injected(&with(|pod| {
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "server,client"});
            pod["spec"]["containers"][0]["command"] = words.split_whitespace().collect();
        }))
        .1
    };
    let words = ["which reads no ETCD_ variables", "--cacert, --cert and --key"];
    has(&proxy("--endpoints=https://etcd.prod.svc:2379"), &words);
    has(&proxy("--cert-file=/a --key-file=/b"), &words);
    let given = "--endpoints=https://etcd.prod.svc:2379 --cacert=/a --cert=/b --key /c";
    assert_eq!(proxy(given), [""; 0]);
    // Beside etcd.
    let beside = injected(&with(|pod| {
        let mut proxy = json!({"name": "metrics", "securityContext": {"runAsUser": 4000}});
        proxy["command"] = json!(["sh", "-c", "exec etcd grpc-proxy start --endpoints https://localhost:2379"]);
        pod["spec"]["containers"].as_array_mut().unwrap().push(proxy);
    }));
    has(&beside.1, &["container metrics: command[2] line 1", words[0]]);
}

/// etcd takes an empty variable for none.
#[test]
fn an_empty_setting_is_none() {
    for (name, option) in [("ETCD_CONFIG_FILE", "config-file"), ("ETCD_PEER_CERT_ALLOWED_CN", "peer-cert-allowed-cn")] {
        assert_eq!(said(|c| c["env"] = json!([{"name": name, "value": ""}])), [""; 0], "{name}");
        assert_eq!(flag(option, ""), [""; 0], "{option}");
        assert_ne!(flag(option, "/a"), [""; 0], "{option}");
    }
    has(&flag("listen-client-urls", ""), &["--listen-client-urls is not set"]);
}

/// What etcd advertises matters no more where it is not even listed.
#[test]
fn a_member_that_is_not_listed_is_said_whatever_it_advertises() {
    let warnings = said(|c| {
        c["env"] = json!([{"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        set(c, "name", "etcd");
        set(c, "initial-advertise-peer-urls", "https://$(ME).etcd.prod.svc:2380");
        set(c, "initial-cluster", "etcd-0=https://etcd-0.etcd.prod.svc:2380");
    });
    has(&warnings, &["lacks this member, etcd"]);
}

#[test]
fn a_variable_that_nobody_expands_is_said() {
    let literal = ["to the letter", "no shell reads it"];
    for url in
        ["https://${POD_NAME}.etcd.prod.svc:2379", "https://$(hostname).etcd.prod.svc:2379", "https://$HOSTNAME:2379"]
    {
        has(&flag("advertise-client-urls", url), &["--advertise-client-urls", literal[0], literal[1]]);
    }
    has(&flag("name", "${HOSTNAME}"), &["--name is ${HOSTNAME}", literal[0]]);
    // Kubelet expands what env has set before.
    let late = said(|c| {
        c["env"] = json!([{"name": "URL", "value": "https://$(ME):2379"}, {"name": "ME", "value": "a.etcd.prod.svc"}]);
        set(c, "advertise-client-urls", "$(URL)");
    });
    has(&late, &["https://$(ME):2379", literal[0]]);
    // A shell reads its script, and kubelet knows the Services.
    for warnings in [
        said(|c| script(c, "", "", "--name=\"${HOSTNAME}\"")),
        flag("advertise-client-urls", "https://$(ETCD_SERVICE_HOST):2379"),
    ] {
        assert!(!warnings.iter().any(|w| w.contains(literal[0])), "{warnings:?}");
    }
}

#[test]
fn urls_of_a_form_that_etcd_does_not_take_are_said() {
    for (option, url) in [
        ("listen-client-urls", "https://0.0.0.0:2379/"),
        ("listen-peer-urls", "https://0.0.0.0"),
        ("advertise-client-urls", "https://etcd-0.etcd.prod.svc:2379,https://etcd.prod.svc"),
        ("initial-cluster", "default=https://etcd-0.etcd.prod.svc:2380/a"),
        ("listen-client-urls", "https://fd00::1:2379"),
    ] {
        has(&flag(option, url), &[option, "at which etcd stops", "without a path"]);
    }
    for host in ["etcd-0.etcd.prod.svc", "etcd", ""] {
        let url = format!("https://{host}:2379");
        has(&flag("listen-client-urls", &url), &["listens at addresses alone", "https://0.0.0.0:2379"]);
    }
    for url in [
        "https://[::]:2379",
        "https://localhost:2379",
        "HTTPS://0.0.0.0:2379",
        "https://0.0.0.0:2379, https://127.0.0.1:2378",
    ] {
        assert_eq!(flag("listen-client-urls", url), [""; 0], "{url}");
    }
}

#[test]
fn words_and_options_at_which_etcd_stops_are_said() {
    let value = said(|c| c["command"].as_array_mut().unwrap().extend([json!("--pre-vote"), json!("false")]));
    has(&value, &["command[0] gives etcd the word false", "--option=value"]);
    has(&said(|c| c["command"] = json!(["sleep", "60"])), &["by which no etcd starts"]);
    has(&flag("peer-cert-allowed-cn", "a"), &["is set, and each member's certificate"]);
    let env = |name: &str| {
        said(|c| {
            set(c, "data-dir", "/d");
            c["env"] = json!([{"name": name, "value": ""}]);
        })
    };
    has(&env("ETCD_DATA_DIR"), &["gives etcd --data-dir, and ETCD_DATA_DIR is set as well"]);
    assert_eq!(env("ETCD_SNAPSHOT_COUNT"), [""; 0]);
    let exported = said(|c| script(c, "export ETCD_DATA_DIR=/d", "", "--data-dir=/e"));
    has(&exported, &["gives etcd --data-dir"]);
    assert_eq!(said(|c| script(c, "unset ETCD_DATA_DIR", "", "--data-dir=/e")), [""; 0]);
    let (_, asked) = injected(&with(|pod| {
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "client"});
        pod["spec"]["containers"][0]["command"] =
            json!(["etcdctl", "--endpoints=https://etcd.prod.svc:2379", "get", "a"]);
        pod["spec"]["containers"][0]["env"] =
            json!([{"name": "ETCDCTL_ENDPOINTS", "value": "https://etcd.prod.svc:2379"}]);
    }));
    has(&asked, &["gives etcdctl --endpoints, and ETCDCTL_ENDPOINTS is set as well"]);
}

#[test]
fn an_etcd_without_a_certificate_for_its_listener_is_said() {
    let roles =
        |roles: &str| injected(&with(|pod| pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": roles}))).1;
    has(&roles("server"), &["--listen-peer-urls says https://", "--peer-cert-file", "add peer to etcd-tls.dev/roles"]);
    has(&roles("peer"), &["--listen-client-urls says https://", "add server"]);
    has(&roles("client"), &["--listen-client-urls says https://", "add server"]);
    let second = |urls: &str, more: &[&str]| {
        injected(&with(|pod| {
            let flag = format!("--listen-client-urls={urls}");
            let command = [&["etcd", &flag][..], more].concat();
            let user = json!({"runAsUser": 1002});
            let events = json!({"name": "events", "image": "etcd", "command": command, "securityContext": user});
            pod["spec"]["containers"].as_array_mut().unwrap().push(events);
        }))
        .1
    };
    let said = ["container events: --listen-client-urls says https://", "in etcd-tls.dev/containers"];
    has(&second("https://0.0.0.0:4001", &[]), &said);
    for (urls, more) in
        [("http://127.0.0.1:4001", &[][..]), ("https://0.0.0.0:4001", &["--cert-file=/a", "--key-file=/b"])]
    {
        let warnings = second(urls, more);
        assert!(!warnings.iter().any(|w| w.contains("nothing gives etcd")), "{warnings:?}");
    }
}
