//! Values of one annotation: those that are read, and those that are refused.

use super::*;

#[test]
fn bad_durations_are_refused() {
    for value in [
        "",
        "24",
        "24h ",
        " 24h",
        "-1h",
        "+1h",
        "0",
        "0h",
        "0s",
        "9s",
        "599s",
        "9m59s",
        "1e9h",
        "1h30",
        "24H",
        "1.5h",
        "24h;rm",
        "24h\n",
        "24h\0",
        "1m1h",
        "1h1h",
        "1d",
        "1w",
        "h",
        "1hh",
        "8785h",
        "18446744073709551616s",
        "18446744073709551615h",
        "5124095576030431h",
        "٢٤h",
        "24ｈ",
        "24h30m15s1s",
        "0x10h",
        "1_000s",
        "infinite",
    ] {
        let problem = problem("duration", value);
        assert_eq!(problem.annotation, "etcd-tls.dev/duration", "{value:?}");
        assert!(problem.message.len() < 300, "{problem}");
    }
    for (value, seconds) in
        [("600s", 600), ("10m", 600), ("1h", 3600), ("24h", 86_400), ("1h30m15s", 5415), ("90m", 5400)]
    {
        assert_eq!(parse(&[("duration", value)]).unwrap().duration.as_secs(), seconds, "{value}");
    }
}

#[test]
fn durations_are_written_as_they_are_read() {
    for seconds in [1, 59, 60, 61, 600, 3599, 3600, 3601, 5415, 86_400, 604_800] {
        let duration = Duration::from_secs(seconds);
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
}

#[test]
fn bad_lists_are_refused() {
    let long = format!("{}.example.com", "a".repeat(64));
    let longer = "a.".repeat(140) + "b";
    let thousand = (0..1000).map(|n| format!("n{n}.example.com")).collect::<Vec<_>>().join(",");
    let huge = "x".repeat(300 * 1024);
    for value in [
        "",
        ",",
        "a.b,",
        ",a.b",
        "a.b,,c.d",
        "a.b, c.d",
        "a.b ,c.d",
        "a.b,a.b",
        "192.0.2.1,192.0.2.1",
        "*",
        "*.",
        "*.com",
        "*.*.svc",
        "a.*.b",
        "a*.b.c",
        "fe80::1%eth0",
        "192.0.2.1/24",
        "192.0.2.01",
        "192.0.2.1:2379",
        "[2001:db8::1]",
        "2001:DB8::1",
        "2001:db8:0:0:0:0:0:1",
        "::ffff:192.0.2.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "1.2.3",
        "1.2.3.4.5",
        "münchen.example",
        "A.example.com",
        "a_b.example.com",
        "a b.example.com",
        ".example.com",
        "example.com.",
        "a..b",
        "-a.b",
        "a-.b",
        "a.b\n",
        "a.b\0c",
        "a\r\nb",
        "https://a.b",
        &long,
        &longer,
        &thousand,
        &huge,
    ] {
        let problem = problem("extra-sans", value);
        assert!(problem.message.len() < 300 && !problem.message.contains(['\n', '\0']), "{problem:?}");
    }
    for value in
        ["", ",", "peer,", "peer,,server", "peer, server", "peer,peer", "Peer", "all", "peer;server", "peer\nserver"]
    {
        problem("roles", value);
    }
    for value in
        ["", "Etcd", "etcd,etcd", "etcd, b", "etcd-tls-init", "etcd-tls-sidecar", "a.b", "a_b", &"a".repeat(64)]
    {
        problem("containers", value);
    }
}

#[test]
fn as_many_entries_as_are_taken_are_taken() {
    let names = |n: usize| (0..n).map(|n| format!("n{n}.example.com")).collect::<Vec<_>>().join(",");
    assert_eq!(parse(&[("extra-sans", &names(MAX_ENTRIES))]).unwrap().extra_sans.dns.len(), MAX_ENTRIES);
    problem("extra-sans", &names(MAX_ENTRIES + 1));
}

#[test]
fn bad_paths_are_refused() {
    for value in [
        "",
        "/",
        "//",
        "etc/etcd",
        "./certs",
        "/etc/../proc",
        "/certs/",
        "/certs//a",
        "/certs/.",
        "/proc",
        "/proc/1/root",
        "/sys/fs",
        "/dev",
        "/dev/shm",
        "/etc",
        "/var",
        "/usr",
        "/tmp",
        "/etc/etcd",
        "/usr/bin",
        "/usr/bin/x",
        "/usr/local/bin",
        "/usr/local/sbin/etcd",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/local",
        "/usr/share",
        "/bin/etcd",
        "/sbin",
        "/lib/x",
        "/lib64/ld",
        "/boot/x",
        "/etc/ssl",
        "/etc/ssl/certs",
        "/etc/ssl/certs/etcd",
        "/etc/pki/tls",
        "/etc/pki/ca-trust/extracted",
        "/etc/ca-certificates",
        "/etc/passwd",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/ld.so.cache",
        "/var/lib",
        "/var/log",
        "/var/tmp",
        "/var/run/etcd-tls",
        "/var/run/etcd-tls/certs",
        "/var/run/etcd-tls/trust/x",
        "/var/run/secrets",
        "/run/secrets/kubernetes.io",
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "/var/run",
        "/certs:ro",
        "/certs,x",
        "/$(HOME)",
        "/ce rts",
        "/certs\n",
        "/certs\0",
        "/ćerts",
        "C:\\certs",
        &format!("/{}", "a".repeat(600)),
    ] {
        problem("mount-path", value);
    }
    for value in [
        "/certs",
        "/etc/etcd/tls",
        "/etc/kubernetes/pki/etcd",
        "/opt/bitnami/etcd/certs",
        "/usr/local/etc/etcd",
        "/usr/share/etcd/tls",
        "/etc/ssl-etcd",
        "/etc/hosts.d",
        "/var/lib/etcd/tls",
        "/var/lib/tls",
        "/processes",
        "/device/x",
    ] {
        assert_eq!(parse(&[("mount-path", value)]).unwrap().mount_path, value);
    }
}

#[test]
fn bad_words_are_refused() {
    for (key, values) in [
        ("cluster", &["", "Etcd", "a.b", "a/b", "etcd ", "-a", "a_b", "*", "é"][..]),
        ("key", &["", "rsa", "rsa-1024", "RSA-3072", "ecdsa-p521", "ecdsa-p224", "ecdsa-p256 ", "ed448", "p256"]),
        ("key-rotation", &["", "never", "Always", "always ", "on_ca_change"]),
        (
            "admin-port",
            &[
                "",
                "0",
                "80",
                "1023",
                "65536",
                "-1",
                "+9179",
                "09179",
                "9179 ",
                "http",
                "9179.0",
                "0x2000",
                "99999999999999999999",
            ],
        ),
        (
            "user",
            &[
                "",
                "a b",
                "a,O=system:masters",
                "a\nb",
                "a\0",
                "a=b",
                "a+b",
                "\"a\"",
                "ü",
                "system:etcd-peer:x",
                "system:masters",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ],
        ),
        (
            "resources",
            &["", ",", "cpu=1", "requests.cpu", "requests.cpu=-1", "requests.cpu=2,limits.cpu=1", "limits.gpu=1"],
        ),
        (
            "client-url",
            &["", "https://", "127.0.0.1:2379", "http://127.0.0.1:2379", "https://$(NODE):1", "https://a b:1"],
        ),
        ("revocation", &["", "true", "On", "on off", "none"]),
        ("peer-url", &["", "unix:///x", "https://127.0.0.1:0", "tcp://127.0.0.1:2380"]),
        ("log-level", &["", "loud", "INFO", "info,", "=debug", "a b=debug", "x=1", "info;rm"]),
        (
            "reload",
            &[
                "",
                "Auto",
                "true",
                "signal",
                "signal:",
                "signal:HUP",
                "signal:1",
                "signal:sighup",
                "signal:SIGKILL",
                "signal:SIGSTOP",
                "exec:/bin/x",
            ],
        ),
        (
            "issuer",
            &[
                "",
                "CSR",
                "csr:",
                "csr:x",
                "csr:/x",
                "csr:example/x",
                "csr:example.com/",
                "csr:example.com/a b",
                "csr:Example.com/a",
                "csr:kubernetes.io/kubelet-serving",
                "csr:kubernetes.io/kube-apiserver-client-kubelet",
                "csr:kubernetes.io/legacy-unknown",
                "csr:peer.etcd-tls.dev/a",
                "csr:peer.etcd-tls.dev/a.b.c",
                "csr:etcd-tls.dev/a.b",
                "csr:root.etcd-tls.dev/a.b",
                "cert-manager:",
                "cert-manager:Issuer",
                "cert-manager:Issuer/",
                "cert-manager:issuer/x",
                "cert-manager:Issuer/X",
                "cert-manager:Issuer/a/b",
                "cert-manager:Secret/x",
                "cert-manager:Secret/x.y",
                "cert-manager:a/x.example.com",
                "cert-manager:A B/x.example.com",
                "cert-manager:Issuer/x.example.com.",
                "cert-manager:Issuer/.example.com",
                "cert-manager:Issuer/x.Example.com",
                "vault:x",
                "pod-certificate:x",
                "pod-certificates",
            ],
        ),
        (
            "trust",
            &[
                "",
                "configmap",
                "configmap/",
                "ConfigMap/ca",
                "configmap/CA",
                "configmap/ca/",
                "configmap/ca/..",
                "configmap/ca/..data",
                "configmap/ca/a/b",
                "configmap/ca/a b",
                "configmap/ns/ca/x",
                "secret/ca",
                "issuer/",
                "Issuer",
                "clustertrustbundle/",
                "clustertrustbundle/A",
                "clustertrustbundle/a:",
                "clustertrustbundle/a/b",
                "clustertrustbundle-signer/",
                "clustertrustbundle-signer/x",
                "clustertrustbundle-signer/example/x",
                "clustertrustbundle-signer/example.com/",
                "clustertrustbundle-signer/example.com/x?",
                "clustertrustbundle-signer/example.com/x?=a",
                "clustertrustbundle-signer/example.com/x?a=b,",
                "clustertrustbundle-signer/example.com/x?a=b,a=b",
                "clustertrustbundle-signer/example.com/x?a in (b)",
                "clustertrustbundle-signer/example.com/x?a==b",
                "clustertrustbundle-signer/example.com/x?a=b ",
                "clustertrustbundle-signer/example.com/x?a=-b",
                "clustertrustbundle-signer/example.com/x?/a=b",
                "clustertrustbundle-signer/example.com/x?!",
                "configmap/ca\n",
                " configmap/ca",
            ],
        ),
    ] {
        for value in values {
            let problems = parse(&[(key, value), ("roles", "peer,client")]).expect_err(value);
            assert_eq!(problems.len(), 1, "{key} {value:?}: {problems:?}");
        }
    }
}
