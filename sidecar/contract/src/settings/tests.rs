//! The table of annotations: one good pod, and every single deviation from it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod values;

use std::collections::BTreeMap;

use super::*;
use crate::role::Domain;
use crate::{
    duration::{format_duration, parse_duration},
    text::MAX_ENTRIES,
};

fn parse(annotations: &[(&str, &str)]) -> Result<Settings, Vec<Problem>> {
    let annotations: BTreeMap<String, String> =
        annotations.iter().map(|(key, value)| (format!("etcd-tls.dev/{key}"), (*value).to_owned())).collect();
    Settings::parse(&annotations)
}

/// The one problem of one annotation.
fn problem(key: &str, value: &str) -> Problem {
    match parse(&[(key, value)]) {
        Ok(settings) => panic!("{key}: {value:?} was taken: {settings:?}"),
        Err(problems) => {
            assert_eq!(problems.len(), 1, "{problems:?}");
            problems.into_iter().next().unwrap()
        }
    }
}

#[test]
fn no_annotation_means_the_documented_defaults() {
    let settings = parse(&[]).unwrap();
    assert_eq!(settings.roles, [Role::Peer, Role::Server].into());
    assert_eq!(settings.cluster, "etcd");
    assert_eq!(settings.containers, Vec::<String>::new());
    assert_eq!(settings.issuer, Issuer::Csr);
    assert_eq!(settings.duration, Duration::from_secs(86_400));
    assert_eq!(settings.key, KeyAlgorithm::EcdsaP256);
    assert_eq!(settings.key_rotation, KeyRotation::Always);
    assert_eq!(settings.extra_sans, Sans::default());
    assert_eq!(settings.user, None);
    assert_eq!(settings.mount_path, "/etc/etcd/tls");
    assert_eq!(settings.admin_port, 9179);
    assert_eq!(settings.reload, Reload::Auto);
}

#[test]
fn every_annotation_is_read() {
    let settings = parse(&[
        ("roles", "client,metrics"),
        ("cluster", "events"),
        ("containers", "a,b-2"),
        ("issuer", "cert-manager:ClusterIssuer/etcd.ca"),
        ("duration", "1h30m"),
        ("key", "rsa-2048"),
        ("key-rotation", "on-ca-change"),
        ("extra-sans", "etcd.example.com,*.etcd.example.com,192.0.2.7,2001:db8::1"),
        ("user", "backup@prod"),
        ("mount-path", "/certs"),
        ("admin-port", "9180"),
        ("reload", "signal:SIGHUP"),
        ("resources", "requests.cpu=50m,limits.memory=128Mi"),
        ("log-level", "info,etcd_tls_sidecar::restart=debug"),
        ("trust", "configmap/company/ca.pem"),
        ("warnings", "[\"said by admission\"]"),
        ("traceparent", "of whatever form"),
        ("renew", "2026-11-28"),
        ("options", "none"),
        ("client-url", "https://127.0.0.1:12379"),
        ("peer-url", "https://[$(POD_IP)]:12380"),
        ("revocation", "off"),
    ])
    .unwrap();
    assert_eq!(
        settings,
        Settings {
            roles: [Role::Client, Role::Metrics].into(),
            cluster: "events".to_owned(),
            containers: vec!["a".to_owned(), "b-2".to_owned()],
            issuer: Issuer::CertManager(IssuerRef::new("ClusterIssuer", "etcd.ca", None)),
            duration: Duration::from_secs(5400),
            key: KeyAlgorithm::Rsa2048,
            key_rotation: KeyRotation::OnCaChange,
            extra_sans: Sans {
                dns: ["etcd.example.com".to_owned(), "*.etcd.example.com".to_owned()].into(),
                ips: ["192.0.2.7".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
            },
            user: Some("backup@prod".to_owned()),
            mount_path: "/certs".to_owned(),
            admin_port: 9180,
            trust: Some(Trust::ConfigMap { name: "company".to_owned(), key: "ca.pem".to_owned() }),
            reload: Reload::Signal("SIGHUP".to_owned()),
            resources: "requests.cpu=50m,limits.memory=128Mi".parse().unwrap(),
            log_level: Some("info,etcd_tls_sidecar::restart=debug".to_owned()),
            options: OptionsMode::None,
            client_url: Some("https://127.0.0.1:12379".parse().unwrap()),
            peer_url: Some("https://[$(POD_IP)]:12380".parse().unwrap()),
            revocation: false,
        }
    );
}

#[test]
fn others_annotations_are_not_looked_at() {
    let others = [
        ("etcd-tls.example.com/roles", "x"),
        ("roles", "x"),
        ("xetcd-tls.dev/roles", "x"),
        ("kubernetes.io/config.mirror", "x"),
    ];
    let annotations = others.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(Settings::parse(&annotations).unwrap(), Settings::default());
}

#[test]
fn every_problem_is_told_at_once() {
    let problems =
        parse(&[("roles", "pear"), ("duration", "soon"), ("colour", "red"), ("mount-path", "/")]).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.annotation.as_str()).collect();
    assert_eq!(keys, ["etcd-tls.dev/colour", "etcd-tls.dev/duration", "etcd-tls.dev/mount-path", "etcd-tls.dev/roles"]);
}

#[test]
fn other_names_are_no_annotations() {
    for key in [
        "",
        "image",
        "args",
        "env",
        "resources",
        "inject",
        "injected",
        "status",
        "renewBefore",
        "Roles",
        "roles ",
        "mode",
        "owner",
        "trusts",
        "trust",
        "duration/x",
        "policy",
    ] {
        for value in ["", "TRUE", "yes", "1", " true", "777", "0:0"] {
            let problem = problem(key, value);
            assert_eq!(problem.annotation, format!("etcd-tls.dev/{key}"));
        }
    }
}

#[test]
fn combinations_that_cannot_be_are_refused() {
    for signal in ["signal:SIGHUP", "signal:SIGQUIT"] {
        assert!(problem("reload", signal).message.contains("kills etcd"));
    }
    for signal in ["signal:SIGTERM", "signal:SIGINT", "signal:SIGUSR1"] {
        parse(&[("reload", signal)]).unwrap();
    }
    parse(&[("reload", "signal:SIGHUP"), ("roles", "metrics")]).unwrap();
    assert!(problem("user", "backup").message.contains("client"));
    let elsewhere = [("roles", "peer"), ("issuer", "csr:client.etcd-tls.dev/prod.etcd")];
    assert!(parse(&elsewhere).unwrap_err()[0].message.contains("none of the pod's roles"));
    parse(&[("roles", "client"), elsewhere[1]]).unwrap();
    assert!(problem("trust", "configmap/ca").message.contains("issuers of others"));
    assert!(parse(&[("trust", "configmap/ca"), ("issuer", "csr:peer.etcd-tls.dev/prod.etcd")]).is_err());
    parse(&[("trust", "configmap/ca"), ("issuer", "csr:example.com/ca")]).unwrap();
    // The answer to a CertificateSigningRequest has no CA.
    let refused = parse(&[("trust", "issuer"), ("issuer", "csr:example.com/ca")]).unwrap_err();
    assert!(refused.len() == 1 && refused[0].message.contains("answered without one"), "{refused:?}");
    assert!(refused[0].message.contains("clustertrustbundle-signer/example.com/ca"), "{refused:?}");
    assert!(problem("trust", "issuer").message.contains("issuers of others"));
    for issuer in ["cert-manager:ClusterIssuer/ca", "cert-manager:Kind/ca.issuers.example.com"] {
        assert_eq!(parse(&[("trust", "issuer"), ("issuer", issuer)]).unwrap().trust, Some(Trust::Issuer));
    }
}

#[test]
fn words_are_written_as_they_are_read() {
    for issuer in [
        "csr",
        "csr:client.etcd-tls.dev/prod.etcd",
        "csr:example.com/etcd",
        "cert-manager:Issuer/a",
        "cert-manager:ClusterIssuer/a.b",
        "cert-manager:StepIssuer/a.certmanager.step.sm",
        "cert-manager:ClusterIssuer/a.issuers.example.com",
    ] {
        assert_eq!(issuer.parse::<Issuer>().unwrap().to_string(), issuer);
    }
    for trust in [
        "configmap/a.b/ca.crt",
        "configmap/a/x_Y-1.pem",
        "issuer",
        "clustertrustbundle/a.b",
        "clustertrustbundle/example.com:ca:main",
        "clustertrustbundle-signer/example.com/ca",
        "clustertrustbundle-signer/example.com/ca?a=b,example.com/c!=,d,!e.f/g_h",
    ] {
        assert_eq!(trust.parse::<Trust>().unwrap().to_string(), trust);
    }
    let default = Trust::ConfigMap { name: "ca".to_owned(), key: "ca.crt".to_owned() };
    assert_eq!("configmap/ca".parse(), Ok(default));
    for key in KeyAlgorithm::ALL {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    for rotation in [KeyRotation::Always, KeyRotation::OnCaChange] {
        assert_eq!(rotation.to_string().parse(), Ok(rotation));
    }
    for reload in ["auto", "probe", "none", "signal:SIGTERM"] {
        assert_eq!(reload.parse::<Reload>().unwrap().to_string(), reload);
    }
}

#[test]
fn signer_and_trust_follow_from_the_issuer() {
    let with = |issuer: &str| {
        parse(&[("roles", "peer,server,client,metrics"), ("issuer", issuer), ("cluster", "main")]).unwrap()
    };
    let all = |issuer: &str| Role::ALL.map(|role| with(issuer).signer_name(role, "prod"));
    assert_eq!(
        all("csr"),
        [
            "peer.etcd-tls.dev/prod.main",
            "client.etcd-tls.dev/prod.main",
            "client.etcd-tls.dev/prod.main",
            "metrics.etcd-tls.dev/prod.main"
        ]
    );
    assert_eq!(
        all("csr:peer.etcd-tls.dev/core.etcd"),
        [
            "peer.etcd-tls.dev/core.etcd",
            "client.etcd-tls.dev/core.etcd",
            "client.etcd-tls.dev/core.etcd",
            "metrics.etcd-tls.dev/core.etcd"
        ]
    );
    assert_eq!(all("csr:example.com/ca"), ["example.com/ca"; 4]);
    assert_eq!(all("cert-manager:ClusterIssuer/ca"), ["clusterissuers.cert-manager.io/ca"; 4]);
    assert_eq!(all("cert-manager:Issuer/ca"), ["issuers.cert-manager.io/prod.ca"; 4]);
    assert_eq!(all("cert-manager:StepIssuer/ca.certmanager.step.sm"), ["stepissuers.certmanager.step.sm/prod.ca"; 4]);
    let of_cluster = "cert-manager:StepClusterIssuer/ca.certmanager.step.sm";
    assert_eq!(all(of_cluster), ["stepclusterissuers.certmanager.step.sm/ca"; 4]);

    assert_eq!(with("csr").trust_config_map("prod"), "etcd-tls-trust-main");
    assert_eq!(with("csr:peer.etcd-tls.dev/core.etcd").trust_config_map("prod"), "etcd-tls-trust-core.etcd");
    assert_eq!(with("csr:peer.etcd-tls.dev/core.etcd").trust_config_map("core"), "etcd-tls-trust-etcd");
    let ours = with("csr:peer.etcd-tls.dev/core.etcd").our_signer(Role::Metrics, "prod").unwrap();
    assert_eq!((ours.domain, ours.namespace.as_str()), (Domain::Metrics, "core"));
    assert_eq!(with("csr:example.com/ca").our_signer(Role::Peer, "prod"), None);
}

#[test]
fn the_signer_of_kubernetes_for_clients_signs_for_no_member() {
    let with = |roles: &str| parse(&[("roles", roles), ("issuer", "csr:kubernetes.io/kube-apiserver-client")]);
    assert!(with("client").is_ok() && with("client,metrics").is_ok());
    for roles in ["peer", "server", "peer,server,client"] {
        let problems = with(roles).unwrap_err();
        assert!(problems.len() == 1 && problems[0].message.contains("clients alone"), "{problems:?}");
    }
}

/// Words of the grammar and words that are none, put together at random (the same at each run).
#[test]
fn every_text_is_refused_or_survives_a_round_trip() {
    const PIECES: [&str; 32] = [
        "a",
        "b-1",
        ".",
        ",",
        "/",
        "*",
        "-",
        ":",
        " ",
        "\n",
        "\0",
        "é",
        "٣",
        "24",
        "h",
        "m",
        "s",
        "0",
        "99999999999999999999",
        "csr",
        "cert-manager",
        "Issuer",
        "peer",
        "client",
        ".etcd-tls.dev/",
        "example.com",
        "192.0.2.1",
        "2001:db8::",
        "signal",
        "SIGTERM",
        "auto",
        "..",
    ];
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut taken = 0;
    for _ in 0..50_000 {
        let key = KEYS[random(KEYS.len())];
        let value: String = (0..random(5)).map(|_| PIECES[random(PIECES.len())]).collect();
        let Ok(settings) = parse(&[(key, &value), ("roles", "client")]) else { continue };
        taken += 1;
        let again = crate::args::PodArgs::of(&settings).settings().unwrap();
        let carried = Settings {
            containers: Vec::new(),
            mount_path: again.mount_path.clone(),
            resources: Resources::default(),
            log_level: None,
            client_url: None,
            peer_url: None,
            trust: None,
            revocation: true,
            ..settings
        };
        assert_eq!(again, carried, "{key}: {value:?}");
    }
    assert!(taken > 1000, "only {taken} were taken: the test tells little");
}
