//! Tier 2: a client in one namespace with a certificate of a cluster in another, as docs/issuers.md describes it. Everything
//! is as installed: admission, the shipped rights, the sidecar's own program, a real etcd.

use std::net::{IpAddr, Ipv4Addr};

use etcd_tls_contract::names;
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tests::{
    etcd_client::EtcdClient,
    eventually,
    installation::{Installation, LIMIT, Options},
    local_pod::LocalPod,
    ports,
    process::which,
    revocation::ended,
    tier,
};

/// The server's address here is one that its certificate may hold.
const SANS: &str = "extraSans: [{namespaces: [prod], clusters: [etcd], ipBlocks: [127.0.0.0/8]}]\n";
const RULE: &str = "crossNamespace: [{from: web, to: prod/etcd, roles: [client]}]\n";

/// A pod that differs from others by its annotations and its container.
fn pod(name: &str, roles: &str, annotations: &[(&str, String)], container: &Value) -> Value {
    let mut all = json!({
        "etcd-tls.dev/roles": roles,
        "etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string(),
    });
    for (key, value) in annotations {
        all[format!("etcd-tls.dev/{key}")] = value.as_str().into();
    }
    json!({
        "metadata": {"name": name, "annotations": all},
        "spec": {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]},
    })
}

/// A running cluster of one member in namespace `prod`, and its client URL.
async fn cluster(installation: &mut Installation, etcd: &std::path::Path) -> (LocalPod, String) {
    let address = Ipv4Addr::new(127, 0, 0, 3);
    let url = |port| format!("https://{address}:{port}");
    let (client, peer) = (url(ports::free(address)), url(ports::free(address)));
    let container = json!({
        "name": "etcd", "image": "etcd", "command": ["etcd"],
        "args": [
            "--name=etcd-0", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync", "--logger=zap",
            format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=etcd-0={peer}"),
        ],
        "securityContext": {"runAsUser": 2379},
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
    });
    let manifest = pod("etcd-0", "peer,server", &[("extra-sans", format!("{address},127.0.0.1"))], &container);
    let programs = [("etcd", etcd.to_owned())];
    let mut member =
        installation.local_pod("prod", manifest, &[[10, 7, 0, 20].into()], &programs).await.expect("a member");
    member.start(LIMIT).await.expect("init, sidecar and etcd");
    (member, client)
}

/// Waits for an Event on a pod.
async fn event(installation: &Installation, namespace: &str, pod: &str, text: &str) {
    let events: Api<Event> = Api::namespaced(installation.api.client.clone(), namespace);
    eventually(&format!("an Event on {namespace}/{pod}: {text}"), LIMIT, || async {
        let all = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        let of = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(pod);
        let notes: Vec<_> = all.into_iter().filter(of).filter_map(|e| e.note).collect();
        if notes.iter().any(|note| note.contains(text)) { Ok(()) } else { Err(notes.join("\n")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_a_cluster_in_another_namespace_works_while_the_policy_allows_it() {
    let Some(etcd) = tier::etcd() else { return };
    // Short lives: the policy is asked again soon.
    let options = Options { sign: vec!["--max-lifetime".into(), "20s".into()], ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    tests::policy::set(&installation.api.client, &format!("{SANS}{RULE}")).await;
    for namespace in ["prod", "web", "other"] {
        installation.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
    }
    let issuer = |domain: &str| [("issuer", format!("csr:{domain}.etcd-tls.dev/prod.etcd"))];
    let container = json!({"name": "app", "image": "app"});
    // Of no rule, and there before the pods that a rule allows.
    installation.api.pod("other", pod("app", "client", &issuer("client"), &container)).await.expect("a pod");
    let (_member, url) = cluster(&mut installation, &etcd.etcd).await;

    let programs = [("app", which("true").expect("true"))];
    let ip = |last| -> IpAddr { [10, 7, 1, last].into() };
    let manifest = pod("app", "client", &issuer("client"), &container);
    let mut client = installation.local_pod("web", manifest, &[ip(1)], &programs).await.expect("a client");
    client.initialise(LIMIT).await.expect("its first certificate");
    let files = client.path("app", names::DEFAULT_MOUNT_PATH).join("client");
    eventually("the client's write", LIMIT, || async {
        EtcdClient::with_files(&files).put(&url, "k", "v").await.map_err(|e| e.to_string())
    })
    .await;

    // The rule is for one namespace and one role.
    let manifest = pod("peer", "peer", &issuer("peer"), &container);
    let mut peer = installation.local_pod("web", manifest, &[ip(2)], &programs).await.expect("a pod");
    peer.start_container(names::INIT_CONTAINER);
    event(&installation, "web", "peer", "policy's crossNamespace lets no pod of web be a peer of prod/etcd").await;
    let name = "etcd-tls-trust-prod.etcd";
    let maps = |namespace: &str| Api::<ConfigMap>::namespaced(installation.api.client.clone(), namespace);
    assert!(maps("web").get_opt(name).await.expect("look").is_some());
    assert!(maps("other").get_opt(name).await.expect("look").is_none(), "published where no rule allows it");

    // A member in another namespace: `revoke` looks at it, too.
    let rule = "crossNamespace: [{from: web, to: prod/etcd, roles: [client, peer]}]\n";
    tests::policy::set(&installation.api.client, &format!("{SANS}{rule}")).await;
    let [issuer_of_peers] = issuer("peer");
    let etcd = json!({"name": "etcd", "image": "etcd", "command": ["etcd"]});
    let manifest = pod("far", "peer", &[issuer_of_peers, ("revocation", "off".to_owned())], &etcd);
    let programs = [("etcd", which("true").expect("true"))];
    let mut far = installation.local_pod("web", manifest, &[ip(3)], &programs).await.expect("a member");
    far.initialise(LIMIT).await.expect("its first certificate");
    eventually("the member in another namespace is named", LIMIT, || async {
        let arguments = ["prod/etcd", "--serial", "4f0a", "--at-once", "--force"];
        let said = ended(&installation.api.kubeconfig, &arguments).await;
        let word = "pod web/far takes revoked certificates on its peer port: annotation etcd-tls.dev/revocation is off";
        if matches!(&said, Err((Some(1), text)) if text.contains(word)) { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;

    // Without the rule there is no renewal.
    tests::policy::set(&installation.api.client, SANS).await;
    event(&installation, "web", "app", "policy's crossNamespace lets no pod of web be a client of prod/etcd").await;
}
