//! Trust ConfigMaps under attack, on a real API server with the shipped manifests: a writer of them can keep a bundle away but
//! not bring in another; and the signer repairs every form of damage.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_tls_contract::{certificate::Bundle, names, role::Role};
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    etcd_client::EtcdClient,
    eventually,
    installation::{Installation, Options},
    local_pod::LocalPod,
    pki::{Ca, LeafOptions},
    ports,
    process::binary,
    tier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    task::JoinHandle,
    time::{sleep, timeout},
};

const LIMIT: Duration = Duration::from_secs(200);
/// How soon damage is repaired, on a machine that is busy with other tests.
const SECONDS: Duration = Duration::from_secs(20);

/// A one-member cluster whose sidecar runs here, and whose etcd is started again when it ends.
struct Member {
    pod: Arc<Mutex<LocalPod>>,
    certs: PathBuf,
    url: String,
    admin: u16,
    restarts: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    async fn start(installation: &mut Installation, namespace: &str, etcd: &Path) -> Self {
        let policy = format!("extraSans: [{{namespaces: [{namespace}], clusters: [etcd], ipBlocks: [127.0.0.0/8]}}]\n");
        tests::policy::set(&installation.api.client, &policy).await;
        installation.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        let (address, admin) = (Ipv4Addr::new(127, 0, 0, 2), ports::loopback());
        let url = |port| format!("https://{address}:{port}");
        let (client, peer) = (url(ports::free(address)), url(ports::free(address)));
        let manifest = json!({
            "metadata": {"name": "etcd-0", "labels": {"app": "etcd-0"}, "annotations": {
                "etcd-tls.dev/roles": "peer,server,client",
                "etcd-tls.dev/admin-port": admin.to_string(),
                "etcd-tls.dev/extra-sans": format!("{address},{}", Ipv4Addr::LOCALHOST),
            }},
            "spec": {
                "containers": [{
                    "name": "etcd",
                    "image": "etcd",
                    "command": ["etcd"],
                    "args": [
                        "--name=etcd-0",
                        "--data-dir=/var/lib/etcd/data",
                        format!("--listen-client-urls={client}"),
                        format!("--advertise-client-urls={client}"),
                        format!("--listen-peer-urls={peer}"),
                        format!("--initial-advertise-peer-urls={peer}"),
                        format!("--initial-cluster=etcd-0={peer}"),
                        "--unsafe-no-fsync",
                        "--logger=zap",
                    ],
                    "securityContext": {"runAsUser": 2379},
                    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
                }],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        });
        let ip: IpAddr = [10, 7, 0, 10].into();
        let programs = [("etcd", etcd.to_owned())];
        let mut pod = installation.local_pod(namespace, manifest, &[ip], &programs).await.expect("create a member");
        pod.add_argument(names::SIDECAR_CONTAINER, "--restart-pace=1s");
        let certs = pod.path("etcd", names::DEFAULT_MOUNT_PATH);
        pod.start(LIMIT).await.expect("init and sidecar");
        let (pod, restarts) = (Arc::new(Mutex::new(pod)), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let (pod, restarts) = (Arc::clone(&pod), Arc::clone(&restarts));
            async move {
                loop {
                    let ended = pod.lock().await.supervise().await;
                    restarts.fetch_add(ended.iter().filter(|r| r.container == "etcd").count(), Ordering::Relaxed);
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
        let member = Self { pod, certs, url: client, admin, restarts, task };
        eventually("an honest client's first key", LIMIT, || async {
            member.write(&member.certs.join("client")).await
        })
        .await;
        member
    }

    /// Writes a key with the files of a directory.
    async fn write(&self, files: &Path) -> Result<(), String> {
        EtcdClient::with_files(files).put(&self.url, "k", "v").await.map_err(|e| e.to_string())
    }

    fn bundle(&self, role: Role) -> Bundle {
        let path = self.certs.join(role.as_str()).join(names::CA_FILE);
        Bundle::parse(&std::fs::read(path).expect("read")).expect("a bundle")
    }

    async fn metric(&self, line: &str) {
        eventually(&format!("the sidecar's metric {line:?}"), LIMIT, || async {
            let text = get(self.admin, "/metrics").await?;
            if text.lines().any(|l| l == line) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn sidecar_log(&self) -> String {
        self.pod.lock().await.log(names::SIDECAR_CONTAINER)
    }
}

async fn get(port: u16, path: &str) -> Result<String, String> {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    timeout(Duration::from_secs(10), ask).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// A client with every right on the ConfigMaps of a namespace, and no other.
async fn thief(installation: &Installation, namespace: &str) -> Client {
    installation.api.service_account(namespace, "thief").await;
    let metadata = json!({"name": "thief", "namespace": namespace});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
         "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "thief"},
         "subjects": [{"kind": "ServiceAccount", "name": "thief", "namespace": namespace}]},
    ]});
    installation.api.apply(&objects.to_string());
    let token = installation.api.token(namespace, "thief", None).await;
    installation.api.client_with_token(&token).await
}

async fn rollover(installation: &Installation, cluster: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["rollover", cluster]).args(arguments).env("KUBECONFIG", &installation.api.kubeconfig);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn trust_maps(client: &Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), namespace)
}

const TRUST: &str = "etcd-tls-trust-etcd";

/// Attack 4: a CA of one's own in the trust ConfigMap, by an actor with rights on ConfigMaps alone, with every admission
/// policy deleted, and the ConfigMap immutable. The signer is kept from repairing it, so that what is seen is the sidecar's
/// own doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_4_a_ca_in_the_trust_config_map_opens_nothing() {
    let Some(etcd) = tier::etcd() else { return };
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let member = Member::start(&mut installation, "stolen", &etcd.etcd).await;
    let honest = (member.bundle(Role::Peer), member.bundle(Role::Server));
    member.metric("etcd_tls_signer_states_bundles{} 1").await;

    let thief = thief(&installation, "stolen").await;
    let maps = trust_maps(&thief, "stolen");
    installation.api.kubectl(&["delete", "validatingadmissionpolicybindings,validatingadmissionpolicies", "--all"]);
    let unable = r#"[{"op": "replace", "path": "/rules/0/verbs", "value": ["get", "list", "watch"]}]"#;
    installation.api.kubectl(&["patch", "clusterrole", "etcd-tls-trust", "--type=json", "-p", unable]);
    let ca = Ca::new("thief");
    let poisoned = |bundle: &Bundle| format!("{}{}", bundle.to_pem(), ca.pem);
    let data = json!({"peer.crt": poisoned(&honest.0), "client.crt": poisoned(&honest.1)});
    eventually("the poison to stay", LIMIT, || async {
        let patch = Patch::Merge(json!({"data": data}));
        maps.patch(TRUST, &PatchParams::default(), &patch).await.map_err(|e| e.to_string())?;
        sleep(Duration::from_secs(2)).await;
        let now = maps.get(TRUST).await.map_err(|e| e.to_string())?;
        if json!(now.data.clone())["client.crt"] == data["client.crt"] { Ok(()) } else { Err("repaired".to_owned()) }
    })
    .await;
    maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(json!({"immutable": true})))
        .await
        .expect("make it immutable");

    // The sidecar asks the signer, which does not know that bundle.
    member.metric(r#"etcd_tls_bundle_refused{domain="client"} 1"#).await;
    member.metric(r#"etcd_tls_bundle_refused{domain="peer"} 1"#).await;
    let log = member.sidecar_log().await;
    assert!(log.contains("is not in force"), "{log}");
    // A new pod takes it no more than one that runs.
    let manifest = json!({
        "metadata": {"name": "client-0", "annotations": {
            "etcd-tls.dev/roles": "client", "etcd-tls.dev/admin-port": ports::loopback().to_string(),
        }},
        "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    });
    let programs = [("app", PathBuf::from("/bin/true"))];
    let mut client =
        installation.local_pod("stolen", manifest, &[[10, 7, 0, 11].into()], &programs).await.expect("a client");
    assert!(timeout(Duration::from_secs(10), client.initialise(LIMIT)).await.is_err(), "init waits");
    let files = client.path("app", names::DEFAULT_MOUNT_PATH).join("client");
    assert!(!files.join(names::CA_FILE).exists(), "no bundle of the thief's");
    let log = client.log(names::INIT_CONTAINER);
    assert!(log.contains("the signer states"), "{log}");

    // For a while, through every look of the sidecar's.
    sleep(Duration::from_secs(35)).await;
    assert_eq!((member.bundle(Role::Peer), member.bundle(Role::Server)), honest);
    assert_eq!(member.restarts.load(Ordering::Relaxed), 0, "etcd was not restarted");
    let stolen = tests::temp::TempDir::new("thief");
    ca.write_role(stolen.path(), &LeafOptions::default());
    std::fs::write(stolen.path().join(names::CA_FILE), honest.1.to_pem()).expect("write");
    // etcd ends the connection; an honest certificate goes through beside it.
    member.write(stolen.path()).await.expect_err("the thief's certificate opens nothing");
    member.write(&member.certs.join("client")).await.expect("an honest client beside it");
    let asked = member.sidecar_log().await.matches("is it in force?").count();
    assert!((2..=4).contains(&asked), "asked once for each domain's bundle, not {asked} times");

    // With its rights, the signer repairs it, and the pod that waited starts.
    installation.api.apply_kustomization("manifests");
    eventually("the repair", LIMIT, || async {
        let now = maps.get(TRUST).await.map_err(|e| e.to_string())?;
        let whole = now.immutable.is_none() && json!(now.data.clone())["client.crt"] == json!(honest.1.to_pem());
        if whole { Ok(()) } else { Err(format!("{:?}", now.immutable)) }
    })
    .await;
    member.metric(r#"etcd_tls_bundle_refused{domain="client"} 0"#).await;
    eventually("the waiting pod's certificate", LIMIT, || async {
        if files.join(names::CERT_FILE).exists() { Ok(()) } else { Err(client.log(names::INIT_CONTAINER)) }
    })
    .await;
    member.write(&files).await.expect("the new client");

    // An honest rollover goes on as ever: asked about, taken, loaded by a restart.
    rollover(&installation, "stolen/etcd", &["--domain", "peer"]).await.expect("begin a rollover");
    eventually("both CAs on disk and one restart", LIMIT, || async {
        let (now, restarts) = (member.bundle(Role::Peer), member.restarts.load(Ordering::Relaxed));
        if now.certificates().len() == 2 && now.contains(&honest.0) && restarts == 1 { Ok(()) } else { Err(restarts) }
    })
    .await;
    eventually("etcd to be back", LIMIT, || async { member.write(&member.certs.join("client")).await }).await;
}

/// One way to damage a trust ConfigMap, as a merge patch of it; `Value::Null`: by deleting it.
fn damages(good: &Value) -> Vec<(&'static str, Value)> {
    let ca = Ca::new("thief").pem;
    let pem = json!(format!("{}{ca}", good["client.crt"].as_str().expect("a bundle")));
    let many: serde_json::Map<String, Value> = (0..50).map(|n| (format!("key-{n}"), json!("x"))).collect();
    vec![
        ("data", json!({"data": {"client.crt": pem}})),
        ("data", json!({"data": {"peer.crt": "not PEM"}})),
        ("data", json!({"data": {"peer.crt": "", "client.crt": null}})),
        ("data", json!({"data": null})),
        ("data", json!({"binaryData": {"client.crl": null}})),
        ("data", json!({"binaryData": {"peer.crl": "AAEC"}})),
        ("binary-data", json!({"data": {"peer.crt": null}, "binaryData": {"peer.crt": "AAEC"}})),
        ("binary-data", json!({"data": null, "binaryData": {"peer.crt": "AAEC", "filler": "A".repeat(1_200_000)}})),
        ("extra-keys", json!({"data": {"filler": "x".repeat(1_000_000)}})),
        ("extra-keys", json!({"data": {"client.crt": null, "filler": "x".repeat(1_040_000)}})),
        ("extra-keys", json!({"data": many})),
        ("immutable", json!({"immutable": true})),
        ("immutable", json!({"immutable": true, "data": {"client.crt": pem}})),
        ("immutable", json!({"immutable": true, "metadata": {"finalizers": ["example.com/held"]}})),
        ("metadata", json!({"metadata": {"labels": null}})),
        ("metadata", json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}})),
        (
            "metadata",
            json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "0d5f2e0c-0000-0000-0000-000000000000"}]}}),
        ),
        ("metadata", json!({"metadata": {"finalizers": ["example.com/held"]}})),
        ("metadata", json!({"metadata": {"annotations": {"example.com/filler": "x".repeat(200_000)}}})),
        ("data", json!({"metadata": {"annotations": {"etcd-tls.dev/namespace-uid": "another"}}})),
        ("deleted", Value::Null),
        ("being-deleted", json!({"metadata": {"finalizers": ["example.com/held"]}, "then": "delete"})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_damage_is_repaired_within_seconds() {
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    let api = &installation.api;
    api.namespace("damaged", &[("etcd-tls", "dynamic")]).await;
    api.pod(
        "damaged",
        json!({
            "metadata": {"name": "client-0", "annotations": {"etcd-tls.dev/roles": "client"}},
            "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
        }),
    )
    .await
    .expect("a pod");
    let maps = trust_maps(&api.client, "damaged");
    let good = eventually("the bundles", LIMIT, || async {
        let now = maps.get(TRUST).await.map_err(|e| e.to_string())?;
        let (data, lists) = (json!(now.data), json!(now.binary_data));
        let whole = data["peer.crt"].is_string() && data["client.crt"].is_string();
        if whole && lists["peer.crl"].is_string() && lists["client.crl"].is_string() {
            Ok((data, lists))
        } else {
            Err(data.to_string())
        }
    })
    .await;
    let (good, lists) = good;
    let whole = async |what: &str| {
        let start = Instant::now();
        eventually(&format!("the repair of {what}"), SECONDS, || async {
            let now = maps.get(TRUST).await.map_err(|e| e.to_string())?;
            let (metadata, labels) = (&now.metadata, now.metadata.labels.clone().unwrap_or_default());
            let annotations = metadata.annotations.clone().unwrap_or_default();
            let none = |of: Option<usize>| of.unwrap_or_default() == 0;
            let right = json!(now.data) == good
                && now.immutable.is_none()
                && json!(now.binary_data) == lists
                && none(metadata.finalizers.as_ref().map(Vec::len))
                && none(metadata.owner_references.as_ref().map(Vec::len))
                && metadata.deletion_timestamp.is_none()
                && labels.get("app.kubernetes.io/managed-by").is_some_and(|v| v == "etcd-tls")
                && annotations.get("etcd-tls.dev/namespace-uid").is_some_and(|v| v != "another")
                && !annotations.contains_key("example.com/filler");
            if right { Ok(()) } else { Err(format!("{metadata:?}")) }
        })
        .await;
        start.elapsed()
    };
    let mut times = Vec::new();
    let written = || installation.sign.log().matches("published trust").count();
    let before = written();
    let mut forms = BTreeSet::new();
    let all = damages(&good);
    for (form, mut damage) in all.clone() {
        forms.insert(form);
        let delete = damage.as_object_mut().is_none_or(|d| d.remove("then").is_some());
        let what = damage.to_string().chars().take(100).collect::<String>();
        if !damage.is_null() {
            // Somebody who damages a Secret map again and again is repaired more slowly, but not refused.
            eventually(&what, SECONDS, || async {
                maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(damage.clone()))
                    .await
                    .map_err(|e| e.to_string())
            })
            .await;
        }
        if delete {
            maps.delete(TRUST, &DeleteParams::default()).await.expect("delete");
        }
        times.push((whole(&what).await, what));
    }
    let writes = written() - before;
    assert!(writes <= 2 * all.len(), "{writes} writes for {} damages", all.len());
    let slowest = times.iter().max().expect("some");
    eprintln!("slowest repair: {slowest:?}; {writes} writes for {} damages", all.len());

    // Said beside the object, each form by its word.
    let events: Api<Event> = Api::namespaced(api.client.clone(), "damaged");
    let events = events.list(&ListParams::default()).await.expect("events");
    let notes: Vec<String> = events
        .items
        .iter()
        .filter(|event| event.reason.as_deref() == Some("TrustRepaired"))
        .filter_map(|event| event.note.clone())
        .collect();
    assert!(!notes.is_empty(), "an Event");
    let log = installation.sign.log();
    let line = log.lines().find(|line| line.contains("admin port")).expect("the admin port in the log");
    let port = line.split("127.0.0.1:").nth(1).expect("its address");
    let port = port.split(|c: char| !c.is_ascii_digit()).next().and_then(|port| port.parse().ok()).expect("a port");
    let metrics = get(port, "/metrics").await.expect("the signer's metrics");
    for form in forms {
        assert!(log.contains(form), "{form} in the log");
        let line = format!("\netcd_tls_sign_trust_repairs_total{{form=\"{form}\"}} ");
        let value = metrics.split(&line).nth(1).and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
        assert!(value.is_some_and(|value| value > 0), "{form} in the metrics");
    }

    // Making it immutable as fast as possible causes no storm of writes.
    let (before, start) = (written(), Instant::now());
    let mut flips = 0_u32;
    while start.elapsed() < Duration::from_secs(15) {
        let patch = Patch::Merge(json!({"immutable": true, "data": {"client.crt": format!("x{flips}")}}));
        flips += u32::from(maps.patch(TRUST, &PatchParams::default(), &patch).await.is_ok());
        sleep(Duration::from_millis(20)).await;
    }
    let writes = written() - before;
    assert!(writes <= 12, "{writes} writes against {flips} in 15 s");
    whole("the last flip").await;

    // A right that is not used while the policy that guards it is not in force.
    api.kubectl(&["delete", "validatingadmissionpolicybinding", "etcd-tls-trust"]);
    eventually("the signer to notice", LIMIT, || async {
        let log = installation.sign.log();
        let said = log.lines().any(|line| line.contains("policy is not enforced") && line.contains("etcd-tls-trust"));
        if said { Ok(()) } else { Err(installation.sign.log_end()) }
    })
    .await;
    let patch = Patch::Merge(json!({"data": {"client.crt": "x"}}));
    maps.patch(TRUST, &PatchParams::default(), &patch).await.expect("damage");
    sleep(Duration::from_secs(5)).await;
    let now = maps.get(TRUST).await.expect("there").data.unwrap_or_default();
    assert_eq!(now.get("client.crt").map(String::as_str), Some("x"), "it was written without its policy");
    api.apply_kustomization("manifests");
    // Proven again within half a minute.
    eventually("the repair", LIMIT, || async {
        let now = maps.get(TRUST).await.map_err(|e| e.to_string())?;
        if json!(now.data) == good { Ok(()) } else { Err("still damaged".to_owned()) }
    })
    .await;

    // A right to publish that is not used to write anything else.
    let other = json!({"metadata": {"name": "other"}, "data": {"a": "b"}});
    let other: ConfigMap = serde_json::from_value(other).expect("a ConfigMap");
    maps.create(&PostParams::default(), &other).await.expect("create");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(maps.get("other").await.expect("there").data, other.data);
}
