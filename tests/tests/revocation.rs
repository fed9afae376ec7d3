//! Revocation on a real API server with the shipped manifests: the signer's lists, the operator's command and who may use it, and
//! a real etcd that refuses what was revoked.

#[path = "revocation/damaged.rs"]
mod damaged;
#[path = "revocation/dialled.rs"]
mod dialled;
#[path = "revocation/earlier.rs"]
mod earlier;
#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "revocation/lacking.rs"]
mod lacking;
#[path = "revocation/live.rs"]
mod live;
#[path = "revocation/many.rs"]
mod many;
#[path = "revocation/record.rs"]
mod record;
#[path = "revocation/renewed.rs"]
mod renewed;
#[path = "revocation/restored.rs"]
mod restored;
#[path = "revocation/rolled_over.rs"]
mod rolled_over;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;
#[path = "revocation/two_hundred.rs"]
mod two_hundred;
#[path = "revocation/watched.rs"]
mod watched;
#[path = "revocation/within.rs"]
mod within;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use etcd_tls_contract::{certificate::Chain, crl::Reason, names};
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tests::{
    etcd::EtcdBinary,
    etcd_client::{Answer, answer},
    eventually,
    installation::{Installation, LIMIT, Options},
    local_pod::LocalPod,
    ports,
    process::{binary, which},
    revocation::{TRUST, ended, on_disk, published, revoke, write},
    say,
    temp::TempDir,
    tier,
};

/// The tests below and those of rollovers run on each etcd that there is: on all series where `ETCD_VERSIONS` names them.
#[test]
fn every_series_of_etcd_is_tried() {
    tier::every_series_of_etcd();
}

/// A service account that may read and patch ConfigMaps of `namespace`, and `more`: its kubeconfig.
async fn operator(installation: &Installation, namespace: &str, name: &str, more: Vec<Value>) -> PathBuf {
    installation.api.service_account(namespace, name).await;
    let metadata = json!({"name": name, "namespace": namespace});
    let mut rules = vec![json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]})];
    rules.extend(more);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]},
    ]});
    installation.api.apply(&objects.to_string());
    let token = installation.api.token(namespace, name, None).await;
    installation.api.token_kubeconfig(name, &token)
}

fn marker(verb: &str) -> Value {
    json!({"apiGroups": ["etcd-tls.dev"], "resources": ["authorities"], "resourceNames": ["etcd"], "verbs": [verb]})
}

fn may(verb: &str, resource: &str) -> Value {
    json!({"apiGroups": [""], "resources": [resource], "verbs": [verb]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_lists_what_holders_of_the_right_revoke() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let pod = json!({
        "metadata": {"name": "client", "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    installation.api.pod("prod", pod).await.expect("a pod");
    let maps: Api<ConfigMap> = Api::namespaced(installation.api.client.clone(), "prod");
    let first = eventually("empty lists from the start", LIMIT, || published(&maps)).await;
    assert!(first.values().all(|list| list.entries().is_empty() && list.number() > 0), "{first:?}");

    // After changes by anybody, and with each signer as leader, the same lists stay.
    let admin = installation.api.kubeconfig.clone();
    for damage in [json!({"binaryData": null}), json!({"binaryData": {"peer.crl": "AAAA"}})] {
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(damage)).await.expect("damage");
        eventually("repaired", LIMIT, || async {
            let now = published(&maps).await?;
            if now == first { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    let arguments: [String; 0] = [];
    installation.restart_sign(&arguments).await;

    let anna = operator(&installation, "prod", "anna", vec![marker("revoke"), may("list", "pods")]).await;
    let emil = operator(&installation, "prod", "emil", vec![marker("rollover")]).await;
    let done = eventually("revoked", LIMIT, || {
        revoke(&anna, &["prod/etcd", "--serial", "4F:0A:11", "--reason", "keyCompromise"])
    })
    .await;
    assert!(done.contains("4f0a11 is revoked until"), "{done}");
    assert_eq!(done.matches("the record lacks the key, so this authority bars no key").count(), 2, "{done}");
    let second = published(&maps).await.expect("lists");
    for (domain, list) in &second {
        assert_eq!(list.replaces(&first[domain]), Ok(true), "{domain}");
        assert_eq!(list.entries().len(), 1);
        assert_eq!(list.entries()["4f0a11"].reason, Reason::KeyCompromise);
    }
    let listed = revoke(&anna, &["prod/etcd", "--list"]).await.expect("a list");
    assert_eq!(listed.lines().filter(|line| line.starts_with("4f0a11 20")).count(), 2, "{listed}");

    // To look, `get` is enough.
    installation.api.service_account("prod", "rita").await;
    let of = "--resource-name=etcd-tls-trust-etcd";
    installation.api.kubectl(&["-n", "prod", "create", "role", "rita", "--verb=get", "--resource=configmaps", of]);
    let to = ["--role=rita", "--serviceaccount=prod:rita"];
    installation.api.kubectl(&[&["-n", "prod", "create", "rolebinding", "rita"][..], &to].concat());
    let rita = installation.api.token_kubeconfig("rita", &installation.api.token("prod", "rita", None).await);
    assert_eq!(revoke(&rita, &["prod/etcd", "--list"]).await.as_ref(), Ok(&listed));
    let (code, refused) = ended(&rita, &["prod/etcd", "--serial", "4f0b"]).await.expect_err("without the right");
    assert!(code == Some(77) && refused.contains("patch"), "{code:?}: {refused}");

    let refused = revoke(&emil, &["prod/etcd", "--serial", "4f0b"]).await.expect_err("without the right");
    assert!(refused.contains("needs the right to revoke authorities.etcd-tls.dev/etcd in namespace prod"), "{refused}");
    for (arguments, expected) in [
        (&["prod/etcd", "--serial", "4f0b", "--undo"][..], "4f0b is not revoked"),
        (
            &["prod/etcd", "--user", "nobody"],
            "there is no certificate of user nobody (the record is empty: nothing was issued)",
        ),
        (&["prod/etcd", "--pod", "a b"], "neither the name of a pod"),
        (&["prod/other", "--serial", "4f0b"], "no ConfigMap etcd-tls-trust-other"),
        (&["prod/etcd", "--serial", "xyz"], "not a serial number"),
    ] {
        let refused = revoke(&admin, arguments).await.expect_err("refused");
        assert!(refused.contains(expected), "{arguments:?}: {refused}");
    }
    let now = published(&maps).await.expect("lists");
    assert!(now.values().all(|list| list.entries().len() == 1), "nothing else was revoked: {now:?}");

    revoke(&anna, &["prod/etcd", "--serial", "serial=4F0A11", "--undo"]).await.expect("taken back");
    let third = published(&maps).await.expect("lists");
    assert!(third.values().all(|list| list.entries().is_empty()), "{third:?}");

    // A member that does not use the list is named, and the command fails; a user who may not list pods gets that as the
    // reason.
    let pod = json!({
        "metadata": {"name": "etcd-0", "annotations": {"etcd-tls.dev/revocation": "off"}},
        "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
    });
    installation.api.pod("prod", pod).await.expect("a pod");
    let named = revoke(&admin, &["prod/etcd", "--serial", "4f0c"]).await.expect_err("a member without a list");
    assert!(named.contains("pod etcd-0 takes revoked certificates on its peer and client port"), "{named}");
    let now = published(&maps).await.expect("lists");
    assert!(now.values().all(|list| list.entries().contains_key("4f0c")), "it is revoked nevertheless: {now:?}");
    let otto = operator(&installation, "prod", "otto", vec![marker("revoke")]).await;
    let (code, untold) = ended(&otto, &["prod/etcd", "--serial", "4f0d"]).await.expect_err("not told");
    assert!(
        code == Some(4) && untold.contains("use the list: cannot list pods in namespace prod"),
        "{code:?}: {untold}"
    );
    assert!(untold.contains("kubectl auth can-i list pods -n prod"), "{untold}");
    let now = published(&maps).await.expect("lists");
    assert!(now.values().all(|list| list.entries().contains_key("4f0d")), "it is revoked nevertheless: {now:?}");
    // So are named one with a list of its own and one with a config file.
    for (name, args) in [("etcd-1", "--client-crl-file=/own.crl"), ("etcd-2", "--config-file=/etc/etcd.yaml")] {
        let pod = json!({
            "metadata": {"name": name, "annotations": {"etcd-tls.dev/roles": "peer,server"}},
            "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"], "args": [args]}]},
        });
        installation.api.pod("prod", pod).await.expect("a pod");
    }
    let named = revoke(&admin, &["prod/etcd", "--serial", "4f0c", "--force"]).await;
    let named = named.expect_err("members without a list");
    for (name, ports, why) in [
        ("etcd-0", "peer and client port", "annotation etcd-tls.dev/revocation is off"),
        ("etcd-1", "client port", "or its own options leave the list out"),
        ("etcd-2", "peer and client port", "its etcd has a config file"),
    ] {
        let takes = format!("pod {name} takes revoked certificates on its {ports}: ");
        assert!(named.lines().any(|line| line.contains(&takes) && line.contains(why)), "{name}: {named}");
    }
    installation.api.kubectl(&["-n", "prod", "delete", "pod", "etcd-1", "etcd-2", "--grace-period=0", "--force"]);
    revoke(&admin, &["prod/etcd", "--serial", "4f0c", "--undo"]).await.expect("taken back");
    rolled_over::the_new_ca_signs_what_is_revoked(&installation, "prod").await;
    earlier::members_that_an_earlier_version_injected_are_named(&installation).await;
}

/// A policy by which `two` has one authority, the clients of `three` are another cluster's, and the peers of `four` have a CA of
/// the user's own, which may sign no list: each request is answered, for each kind of certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_authority_of_a_cluster_answers() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let policy = "shared:\n\
        - {authority: peer.etcd-tls.dev/two.etcd, signers: [client.etcd-tls.dev/two.etcd, client.etcd-tls.dev/three.etcd]}\n\
        authorities: [{signer: peer.etcd-tls.dev/four.etcd, secretName: own-peer-ca}]\n\
        hosts:\n\
        - {username: h1, cluster: five/etcd, roles: [peer], commonName: h1, ips: [10.9.0.1]}\n\
        - {username: h2, cluster: five/etcd, roles: [peer], commonName: h2, ips: [10.9.0.2]}\n";
    let metadata = |name: &str| json!({"name": name, "namespace": names::SYSTEM_NAMESPACE});
    let (certificate, key) = ca_without_list();
    installation.api.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(names::POLICY_CONFIG_MAP), "data": {names::POLICY_KEY: policy}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata("own-peer-ca"), "type": "kubernetes.io/tls",
             "stringData": {"tls.crt": certificate, "tls.key": key}},
        ]})
        .to_string(),
    );
    let admin = &installation.api.kubeconfig.clone();
    for namespace in ["two", "three", "four", "five"] {
        installation.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        let pod = json!({
            "metadata": {"name": "etcd-0"},
            "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
        });
        // The members of the last one are two hosts.
        if namespace != "five" {
            installation.api.pod(namespace, pod).await.expect("a pod");
        }
    }
    let said = |cluster: &'static str, expected: &'static [&'static str]| async move {
        eventually(cluster, LIMIT, || async {
            let arguments = [cluster, "--serial", "4f0a"];
            let said = revoke(admin, &arguments).await.unwrap_or_else(|error| format!("exit 1: {error}"));
            if expected.iter().all(|part| said.contains(part)) { Ok(()) } else { Err(said) }
        })
        .await;
    };
    said("two/etcd", &["peer: 4f0a is revoked until", "client: 4f0a is revoked until"]).await;
    said("three/etcd", &["exit 1: ", "peer: 4f0a is revoked until", "client: refused: ", "revoke them at two/etcd"])
        .await;
    said("four/etcd", &["exit 1: ", "client: 4f0a is revoked until", "peer: refused: ", "without cRLSign"]).await;
    // Also told to those who do not revoke.
    let printed = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("etcd-tls-webhook"));
        let output = command.args(arguments).env("KUBECONFIG", admin).output().expect("run the command");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown: Value = serde_json::from_str(&printed(&["status", "-n", "four", "-o", "json"])).expect("JSON");
    let ports = shown["pods"][0]["revocation"].as_array().expect("ports");
    let enforced: Vec<_> = ports.iter().map(|port| (port["port"].as_str(), port["enforced"].as_bool())).collect();
    assert_eq!(enforced, [(Some("peer"), Some(false)), (Some("client"), Some(true))], "{shown}");
    let why = "takes revoked certificates on its peer port: there is no list of revoked peer certificates, as the CA may not sign \
               one: its certificate has key usages without cRLSign";
    assert!(shown["pods"][0]["findings"].to_string().contains(why), "{shown}");
    assert!(printed(&["check", "pod", "etcd-0", "-n", "four"]).contains(why), "{shown}");
    assert!(!printed(&["check", "pod", "etcd-0", "-n", "two"]).contains("there is no list"));
    let install = printed(&["check", "-n", "four"]);
    let named = install.lines().filter(|line| line.contains("cannot be revoked")).collect::<Vec<_>>();
    let expected =
        "attention revocation lists: peer certificates of four/etcd cannot be revoked: the CA may not sign a list";
    assert!(named.len() == 1 && named[0].starts_with(expected), "{install}");
    // Admission does not see the CA: with its certificate the member gets an Event.
    let member = half(&mut installation, "four", "etcd", 1).await;
    let events: Api<Event> = Api::namespaced(installation.api.client.clone(), "four");
    eventually("an Event on the member", LIMIT, || async {
        let events = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        let of_it = |event: &Event| {
            event.regarding.as_ref().and_then(|pod| pod.name.as_deref()) == Some(member.name())
                && event.reason.as_deref() == Some("NotRevocable")
        };
        let told = events.iter().find(|event| of_it(event)).and_then(|event| event.note.clone());
        let told = told.ok_or_else(|| format!("{} Events", events.len()))?;
        let expected = "peer certificates of this cluster cannot be revoked: the CA may not sign a list";
        if told.starts_with(expected) { Ok(()) } else { Err(told) }
    })
    .await;
    drop(member);
    // No pod uses the certificate of a host, which may be the one that the record lacks.
    said("five/etcd", &["exit 1: ", "peer: refused: ", "members of five/etcd", "--force"]).await;
    let forced = revoke(admin, &["five/etcd", "--serial", "4f0a", "--force"]).await.expect("forced");
    assert!(forced.contains("peer: 4f0a is revoked until"), "{forced}");
}

/// A CA with key usages and without cRLSign, as kubeadm makes it: certificate and key.
fn ca_without_list() -> (String, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "own");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

/// The manifest of a one-member cluster at these URLs, which is its own client, too.
fn member(address: Ipv4Addr, client: &str, peer: &str) -> Value {
    let args = [
        "--name=etcd-0".to_owned(),
        "--data-dir=/var/lib/etcd/data".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=etcd-0={peer}"),
        "--unsafe-no-fsync".to_owned(),
        "--logger=zap".to_owned(),
    ];
    json!({
        "metadata": {"name": "etcd-0", "labels": {"app": "etcd-0"}, "annotations": {
            "etcd-tls.dev/roles": "peer,server,client",
            "etcd-tls.dev/admin-port": ports::loopback().to_string(),
            "etcd-tls.dev/extra-sans": format!("{address},{}", Ipv4Addr::LOCALHOST),
        }},
        "spec": {
            "containers": [{
                "name": "etcd", "image": "etcd", "command": ["etcd"], "args": args,
                "securityContext": {"runAsUser": 2379},
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_refused_with_no_restart_and_others_go_on() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        refuses_who_is_revoked(&etcd).await;
        say(&format!("etcd {}: a revoked client was refused", etcd.version));
    }
}

async fn refuses_who_is_revoked(etcd: &EtcdBinary) {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let policy =
        "extraSans: [{namespaces: [prod], clusters: [etcd], ipBlocks: [127.0.0.0/8]}]\nmetricsAuthority: own\n";
    tests::policy::set(&installation.api.client, policy).await;
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;

    let address = Ipv4Addr::new(127, 0, 0, 2);
    let url = |port| format!("https://{address}:{port}");
    let (client, peer) = (url(ports::free(address)), url(ports::free(address)));
    let ip: IpAddr = [10, 7, 0, 10].into();
    let programs = [("etcd", etcd.etcd.clone())];
    let mut etcd =
        installation.local_pod("prod", member(address, &client, &peer), &[ip], &programs).await.expect("a member");
    etcd.start(LIMIT).await.expect("init and sidecar");
    let mount = etcd.path("etcd", names::DEFAULT_MOUNT_PATH);
    let other = mount.join("client");
    eventually("the member serves", LIMIT, || write(&other, &client)).await;

    let manifest = json!({
        "metadata": {"name": "app", "annotations": {
            "etcd-tls.dev/roles": "client,metrics", "etcd-tls.dev/admin-port": ports::loopback().to_string(),
        }},
        "spec": {"serviceAccountName": "app", "containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    });
    installation.api.service_account("prod", "app").await;
    let programs = [("app", which("true").expect("true"))];
    let mut app =
        installation.local_pod("prod", manifest.clone(), &[[10, 7, 0, 11].into()], &programs).await.expect("a client");
    app.initialise(LIMIT).await.expect("init and sidecar");
    let files = app.path("app", names::DEFAULT_MOUNT_PATH).join("client");
    write(&files, &client).await.expect("a good certificate");
    // No port of etcd takes those of an authority of their own, for which there is no list.
    let copies = TempDir::new("metrics");
    for (url, role) in [(&client, "client"), (&peer, "peer")] {
        let metrics = copies.path().join(role);
        renewed::copied(&files.with_file_name("metrics"), &metrics);
        // The CA of etcd's own certificate, which the scraper would trust.
        std::fs::copy(mount.join(role).join(names::CA_FILE), metrics.join(names::CA_FILE)).expect("copied");
        assert_eq!(answer(url, &metrics).await, Answer::Refused, "{url}");
    }

    let chain = Chain::parse(&std::fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain");
    let admin = installation.api.kubeconfig.clone();
    let before = on_disk(&mount.join("server"));
    assert!(before.entries().is_empty() && before.number() > 0, "the signer's list from the start: {before:?}");
    let said = revoke(&admin, &["prod/etcd", "--serial", &chain.serial, "--at-once"]).await;
    let said = said.expect("revoked at once");
    assert!(said.contains("in use by pod prod/app until its next renewal"), "{said}");
    eventually("the client is refused", LIMIT, || async {
        match write(&files, &client).await {
            Err(_) => Ok(()),
            Ok(()) => Err("still accepted"),
        }
    })
    .await;
    write(&other, &client).await.expect("others go on");
    assert!(etcd.process("etcd").running(), "etcd was not restarted");
    assert_eq!(on_disk(&mount.join("server")).entries().keys().collect::<Vec<_>>(), [&chain.serial]);

    revoke(&admin, &["prod/etcd", "--serial", &chain.serial, "--undo"]).await.expect("taken back");
    eventually("accepted again", LIMIT, || write(&files, &client)).await;
    assert!(etcd.process("etcd").running(), "etcd was not restarted");

    // By its user; and by its pod, which then gets no other.
    let users = Chain::parse(&std::fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain");
    let said = revoke(&admin, &["prod/etcd", "--user", &users.common_name, "--at-once"]).await;
    let said = said.expect("revoked at once");
    assert!(said.contains("client: user ") && said.contains("1 certificate"), "{said}");
    eventually("the user is refused", LIMIT, || async {
        match write(&files, &client).await {
            Err(_) => Ok(()),
            Ok(()) => Err("still accepted"),
        }
    })
    .await;
    write(&other, &client).await.expect("others go on");
    revoke(&admin, &["prod/etcd", "--user", &users.common_name, "--undo"]).await.expect("taken back");
    revoke(&admin, &["prod/etcd", "--pod", "app", "--reason", "keyCompromise"]).await.expect("revoked");
    app.process(names::SIDECAR_CONTAINER).kill();
    std::fs::remove_file(files.parent().expect("a mount").join("..data")).expect("the link to the set");
    let status = app.run_to_end(names::INIT_CONTAINER, LIMIT).await;
    let log = app.log(names::INIT_CONTAINER);
    assert!(!status.success() && log.contains("an operator has revoked the certificates of this pod"), "{log}");

    // Made again, it is another pod.
    installation.api.kubectl(&["-n", "prod", "delete", "pod", "app", "--grace-period=0", "--force"]);
    let mut app =
        installation.local_pod("prod", manifest, &[[10, 7, 0, 12].into()], &programs).await.expect("a client");
    app.initialise(LIMIT).await.expect("init and sidecar");
    let files = app.path("app", names::DEFAULT_MOUNT_PATH).join("client");
    write(&files, &client).await.expect("a good certificate");
}

/// A member of which init container and sidecar alone run.
async fn half(installation: &mut Installation, namespace: &str, cluster: &str, number: u8) -> LocalPod {
    let pod = json!({
        "metadata": {"name": format!("{cluster}-{number}"), "annotations": {
            "etcd-tls.dev/roles": "peer", "etcd-tls.dev/cluster": cluster,
            "etcd-tls.dev/admin-port": ports::loopback().to_string(),
        }},
        "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
    });
    let programs = [("etcd", which("true").expect("true"))];
    let ip = [10, 7, 0, 20 + number].into();
    let mut pod = installation.local_pod(namespace, pod, &[ip], &programs).await.expect("a member");
    pod.initialise(LIMIT).await.expect("init and sidecar");
    pod
}

/// Of two members, one whose peer certificate is refused leaves no quorum. A third, which has gone, is in the record alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_leaves_no_quorum_needs_force() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let admin = installation.api.kubeconfig.clone();
    let mut members = Vec::new();
    for number in 0..3 {
        members.push(half(&mut installation, "prod", "pair", number).await);
    }
    let files = members[1].path("etcd", names::DEFAULT_MOUNT_PATH).join("peer");
    let chain = Chain::parse(&std::fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain");
    installation.api.kubectl(&["-n", "prod", "delete", "pod", "pair-2", "--grace-period=0", "--force"]);
    eventually("the signer sees that it has gone", LIMIT, || async {
        let named = ["prod/pair", "--pod", "pair-1"];
        match revoke(&admin, &named).await {
            Err(refused) if refused.contains("1 of 2 members of prod/pair") => Ok(()),
            said => Err(format!("{said:?}; {:?}", revoke(&admin, &[&named[..], &["--undo"]].concat()).await)),
        }
    })
    .await;
    // If pods renew first, no member fails; a pod that does not renew is named.
    for selector in [["--serial", &chain.serial], ["--user", &chain.common_name]] {
        let arguments = [&["prod/pair", "--timeout=2s"], &selector[..]].concat();
        let (code, refused) = ended(&admin, &arguments).await.expect_err("in use");
        assert!(
            code == Some(75) && refused.contains("pod prod/pair-1 has no newer certificate"),
            "{code:?}: {refused}"
        );
    }
    let refused = revoke(&admin, &["prod/pair", "--pod", "pair-1"]).await.expect_err("refused");
    assert!(refused.contains("1 of 2 members") && refused.contains("--force"), "{refused}");
    let listed = revoke(&admin, &["prod/pair", "--list"]).await.expect("lists");
    assert!(listed.lines().any(|line| line.contains("pair peer: list") && line.ends_with(", 0 revoked")), "{listed}");
    let arguments = ["prod/pair", "--serial", &chain.serial, "--at-once"];
    let refused = revoke(&admin, &arguments).await.expect_err("refused");
    assert!(refused.contains("1 of 2 members"), "{refused}");
    let arguments = [&arguments[..], &["--force"]].concat();
    let done = revoke(&admin, &arguments).await.expect("revoked");
    assert!(done.contains("is revoked until"), "{done}");
}
