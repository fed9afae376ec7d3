//! The whole chain on a real API server, as installed: a labelled pod goes through the real webhook configuration, and what
//! was injected runs as local processes with the pod's own token, against `approve` and `sign` with their shipped rights.

use std::net::{IpAddr, Ipv4Addr};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    eventually,
    installation::{Installation, LIMIT, Options},
    local_pod::LocalPod,
    ports,
    process::which,
    signer::sans,
};

fn etcd_pod(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"app": "etcd"},
            // Pods that run at once here share an address.
            "annotations": {"etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string()},
        },
        "spec": {
            "hostname": name,
            "subdomain": "etcd",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 2379, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "etcd",
                "image": "etcd",
                "command": ["etcd"],
                "args": [
                    "--listen-client-urls=https://0.0.0.0:2379", "--listen-peer-urls=https://0.0.0.0:2380",
                    "--listen-metrics-urls=http://0.0.0.0:2381",
                ],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

fn programs() -> Vec<(&'static str, std::path::PathBuf)> {
    vec![("etcd", which("true").expect("true"))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_labelled_pod_gets_its_certificates_and_has_them_renewed() {
    let options = Options { sign: vec!["--max-lifetime".into(), "20s".into()], ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    let restricted = [("etcd-tls", "dynamic"), ("pod-security.kubernetes.io/enforce", "restricted")];
    installation.api.namespace("prod", &restricted).await;
    installation.api.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: etcd, namespace: prod}, \
          spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: etcd}, ports: [{port: 2379}]}}",
    );
    let ip: IpAddr = "10.1.2.3".parse().expect("an address");
    let mut pod = eventually_admitted(&mut installation, "prod", etcd_pod("etcd-0"), &[ip]).await;
    pod.initialise(LIMIT).await.expect("init and sidecar");

    let mount = pod.path("etcd", names::DEFAULT_MOUNT_PATH);
    let read = |role: &str, file: &str| std::fs::read(mount.join(role).join(file)).expect("a file of the role");
    for role in ["peer", "server"] {
        let chain = Chain::parse(&read(role, "tls.crt")).expect("a chain");
        assert!(chain.sans.ips.contains(&ip), "{role}: {:?}", chain.sans);
        for name in ["etcd-0.etcd.prod", "etcd-0.etcd.prod.svc", "etcd-0.etcd.prod.svc.cluster.local", "etcd.prod.svc"]
        {
            assert!(chain.sans.dns.contains(name), "{role} lacks {name}: {:?}", chain.sans);
        }
        assert_eq!(chain.common_name, format!("system:etcd-{role}:etcd-0"));
        let domain = if role == "peer" { "peer" } else { "client" };
        let published = installation.bundle("prod", domain).await.expect("a published bundle");
        let (published, ours) = (Bundle::parse(published.as_bytes()), Bundle::parse(&read(role, "ca.crt")));
        assert_eq!(published.expect("a bundle"), ours.expect("a bundle"));
    }
    assert_ne!(read("peer", "ca.crt"), read("server", "ca.crt"), "peers are apart from clients");

    let serial = |role: &str| Chain::parse(&read(role, "tls.crt")).expect("a chain").serial;
    let first = (serial("peer"), serial("server"));
    eventually("both renewed", LIMIT, || async {
        if serial("peer") != first.0 && serial("server") != first.1 { Ok(()) } else { Err("not yet") }
    })
    .await;
    // A signer that is killed and started again goes on with the same authority.
    installation.restart_sign(&options.sign).await;
    let (before, bundle) = (serial("peer"), installation.bundle("prod", "peer").await);
    eventually("renewed by the new signer", LIMIT, || async {
        if serial("peer") == before { Err("not yet") } else { Ok(()) }
    })
    .await;
    assert_eq!(installation.bundle("prod", "peer").await, bundle);
    assert!(pod.process(names::SIDECAR_CONTAINER).running());
}

/// The webhook's configuration and the namespace's label reach the API server's caches a moment later.
async fn eventually_admitted(
    installation: &mut Installation,
    namespace: &str,
    manifest: Value,
    ips: &[IpAddr],
) -> LocalPod {
    let made = installation.local_pod(namespace, manifest, ips, &programs()).await.expect("create a pod");
    let live =
        Api::<Pod>::namespaced(installation.api.client.clone(), namespace).get(made.name()).await.expect("the pod");
    let init = live.spec.and_then(|s| s.init_containers).unwrap_or_default();
    assert!(init.iter().any(|c| c.name == names::SIDECAR_CONTAINER), "the pod was not injected");
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_on_the_hosts_network_has_each_address_of_its_node() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    for (name, addresses) in [("both", &["192.0.2.13", "fd00:192:0:2::13"][..]), ("six", &["fd00:192:0:2::14"])] {
        let ips: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        let mut manifest = etcd_pod(name);
        manifest["spec"]["hostNetwork"] = true.into();
        let mut pod = eventually_admitted(&mut installation, "prod", manifest, &ips).await;
        pod.initialise(LIMIT).await.expect("init and sidecar");
        let mount = pod.path("etcd", names::DEFAULT_MOUNT_PATH);
        for (role, loopback) in [("peer", &[][..]), ("server", &["127.0.0.1", "::1"])] {
            let file = std::fs::read(mount.join(role).join("tls.crt")).expect("a certificate");
            let expected = sans(&[], &[addresses, loopback].concat()).ips;
            assert_eq!(Chain::parse(&file).expect("a chain").sans.ips, expected, "{name}, {role}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_opt_in_is_left_alone() {
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("plain", &[]).await;
    installation.api.namespace("labelled", &[("etcd-tls", "dynamic")]).await;
    let injected = |pod: Pod| {
        let init = pod.spec.and_then(|s| s.init_containers).unwrap_or_default();
        init.iter().any(|c| c.name == names::INIT_CONTAINER)
    };
    let create = |namespace: &'static str, manifest: Value| {
        let pods = Api::<Pod>::namespaced(installation.api.client.clone(), namespace);
        async move { pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &from_json(manifest)).await }
    };
    let labelled = |value: &str| {
        let mut pod = etcd_pod("p");
        pod["metadata"]["labels"]["etcd-tls"] = value.into();
        pod
    };
    // Its own label takes a pod in, anywhere; a namespace's label only what is etcd's; the pod's own says no.
    eventually("the namespace's label", LIMIT, || async {
        let pod = create("labelled", etcd_pod("p")).await.map_err(|e| e.to_string())?;
        if injected(pod) { Ok(()) } else { Err("not injected".to_owned()) }
    })
    .await;
    assert!(injected(create("plain", labelled("dynamic")).await.expect("create")));
    assert!(!injected(create("plain", etcd_pod("p")).await.expect("create")));
    assert!(!injected(create("labelled", labelled("disabled")).await.expect("create")));
    let mut other = etcd_pod("p");
    other["spec"]["containers"][0]["name"] = "web".into();
    assert!(!injected(create("labelled", other).await.expect("create")), "no etcd, no annotation, no label");
    let mut wrong = labelled("dynamic");
    wrong["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "pear", "etcd-tls.dev/duration": "a day"});
    let refused = create("plain", wrong).await.expect_err("two wrong annotations").to_string();
    assert!(refused.contains("roles") && refused.contains("duration"), "every reason at once: {refused}");
    // Nothing of it was more than a dry run: no request was made.
    let requests = Api::<CertificateSigningRequest>::all(installation.api.client.clone());
    assert!(requests.list(&ListParams::default()).await.expect("list").items.is_empty());
}
