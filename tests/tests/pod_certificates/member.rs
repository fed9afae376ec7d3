//! A member with `issuer: pod-certificate`: admitted by the real webhook, its volume kept by a stand-in for kubelet, its containers run
//! as processes. It makes the requests as the node's user, and writes the volume as kubelet's atomic writer does.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names,
    role::Role,
    san::Sans,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node, ServiceAccount};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tests::{
    apiserver::{NODE, Options as ApiOptions, from_json},
    etcd_client::EtcdClient,
    eventually,
    installation::{Installation, Options},
    local_pod::LocalPod,
    pki::{Ca, LeafOptions},
    ports,
    process::which,
    revocation::ended,
};

use super::{LIMIT, NAMESPACE, apiserver_arguments, apply_component, resource, user};

/// The node's part for one pod.
struct Kubelet<'a> {
    installation: &'a Installation,
    client: &'a Client,
    /// The pod, as it was admitted.
    pod: Value,
    /// The next generation of the volume.
    files: BTreeMap<String, Vec<u8>>,
    generation: u32,
}

impl Kubelet<'_> {
    fn volume(&self) -> &Value {
        let volumes = self.pod["spec"]["volumes"].as_array().expect("volumes");
        &volumes.iter().find(|volume| volume["name"] == names::VOLUME).expect("the injected volume")["projected"]
    }

    /// Requests one certificate for each source, with a key of its own.
    async fn request_all(&mut self) {
        let sources = self.volume()["sources"].as_array().expect("sources").clone();
        for source in sources {
            let source = &source["podCertificate"];
            if source.is_null() {
                continue;
            }
            let key = KeyPair::generate().expect("make a key");
            let chain = self.request(source, &key).await;
            let path = source["credentialBundlePath"].as_str().expect("a path").to_owned();
            self.files.insert(path, format!("{}{chain}", key.serialize_pem()).into_bytes());
        }
    }

    async fn request(&self, source: &Value, key: &KeyPair) -> String {
        let stub = CertificateParams::default().serialize_request(key).expect("a request");
        let api = &self.installation.api.client;
        let node = Api::<Node>::all(api.clone()).get(NODE).await.expect("the node");
        let account =
            Api::<ServiceAccount>::namespaced(api.clone(), NAMESPACE).get("default").await.expect("an account");
        let request = json!({
            "apiVersion": resource().api_version, "kind": resource().kind,
            "metadata": {"generateName": "req-"},
            "spec": {
                "signerName": source["signerName"], "podName": self.pod["metadata"]["name"], "podUID": self.pod["metadata"]["uid"],
                "nodeName": NODE, "nodeUID": node.metadata.uid, "serviceAccountName": "default",
                "serviceAccountUID": account.metadata.uid, "maxExpirationSeconds": source["maxExpirationSeconds"],
                "unverifiedUserAnnotations": source["userAnnotations"],
                "stubPKCS10Request": k8s_openapi::ByteString(stub.der().to_vec()),
            },
        });
        let as_node: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &resource());
        let made = eventually("a request of kubelet", LIMIT, || async {
            as_node.create(&PostParams::default(), &from_json(request.clone())).await
        })
        .await;
        let name = made.metadata.name.expect("a name");
        eventually("a certificate", LIMIT, || async {
            let object = as_node.get(&name).await.map_err(|error| error.to_string())?;
            let chain = object.data["status"]["certificateChain"].as_str().map(str::to_owned);
            chain.ok_or_else(|| format!("{}\n{}", object.data["status"], self.installation.sign.log_end()))
        })
        .await
    }

    /// Reads the bundles of the ConfigMap's source.
    async fn read_trust(&mut self) {
        let sources = self.volume()["sources"].as_array().expect("sources").clone();
        let source = &sources.iter().find(|source| !source["configMap"].is_null()).expect("the trust")["configMap"];
        let maps: Api<ConfigMap> = Api::namespaced(self.installation.api.client.clone(), NAMESPACE);
        let name = source["name"].as_str().expect("a name");
        let data = eventually("the trust ConfigMap", LIMIT, || async {
            maps.get(name).await.map_err(|error| error.to_string())?.data.ok_or_else(|| "it is empty".to_owned())
        })
        .await;
        for item in source["items"].as_array().expect("items") {
            let text = |field: &str| item[field].as_str().expect("text").to_owned();
            self.files.insert(text("path"), data[&text("key")].clone().into_bytes());
        }
    }

    /// Writes a generation, and moves `..data` to it.
    fn write(&mut self, directory: &Path) {
        self.generation += 1;
        let generation = format!("..2026_{}", self.generation);
        for (path, content) in &self.files {
            let file = directory.join(&generation).join(path);
            fs::create_dir_all(file.parent().expect("a directory")).expect("make a directory");
            fs::write(&file, content).expect("write a file");
            let top = path.split('/').next().expect("a name");
            if fs::symlink_metadata(directory.join(top)).is_err() {
                symlink(Path::new("..data").join(top), directory.join(top)).expect("link a directory");
            }
        }
        let before = fs::read_link(directory.join("..data")).ok();
        symlink(&generation, directory.join("..data_tmp")).expect("link a generation");
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("move the link");
        if let Some(before) = before {
            fs::remove_dir_all(directory.join(before)).expect("remove the generation before");
        }
    }

    fn chain(&self, role: &str) -> Chain {
        let text = String::from_utf8_lossy(&self.files[&format!("{role}/tls.crt")]).into_owned();
        let at = text.find("-----BEGIN CERTIFICATE").expect("a certificate");
        Chain::parse(&text.as_bytes()[at..]).expect("a chain")
    }

    fn serial(&self, role: &str) -> String {
        self.chain(role).serial
    }
}

fn member(client_port: u16, peer_port: u16) -> Value {
    let (client, peer) = (format!("https://127.0.0.1:{client_port}"), format!("https://127.0.0.1:{peer_port}"));
    let metrics = ports::loopback();
    json!({
        "metadata": {
            "name": "etcd-0", "labels": {"app": "etcd"},
            "annotations": {
                "etcd-tls.dev/issuer": "pod-certificate", "etcd-tls.dev/revocation": "off",
                "etcd-tls.dev/roles": "peer,server,client",
                "etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string(),
            },
        },
        "spec": {
            "hostname": "etcd-0", "subdomain": "etcd",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 2379},
            "containers": [{
                "name": "etcd", "image": "etcd", "command": ["etcd"],
                "args": [
                    "--name=etcd-0", "--data-dir=data",
                    format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=etcd-0={peer}"),
                    format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"),
                ],
            }],
        },
    })
}

async fn metric(pod: &LocalPod, port: &str, line: &str) -> Result<(), String> {
    let ask = async { EtcdClient::plain().connect(&format!("http://127.0.0.1:{port}")).await?.get("/metrics").await };
    let text = ask.await.map_err(|error| error.to_string())?;
    if text.lines().any(|has| has.starts_with(line)) {
        return Ok(());
    }
    Err(format!("no line {line}:\n{}", pod.log(names::SIDECAR_CONTAINER)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_has_its_certificates_by_kubelet_and_renews_and_restarts() {
    let api = ApiOptions { apiserver_arguments: apiserver_arguments(), ..ApiOptions::default() };
    let Some(mut installation) = Installation::start(&Options { api, ..Options::default() }).await else { return };
    apply_component(&installation.api);
    installation.restart_sign(&["--pod-certificates".to_owned()]).await;
    let client = user(&installation.api, &format!("system:node:{NODE}"), "system:nodes").await;
    installation.api.namespace(NAMESPACE, &[("etcd-tls", "dynamic")]).await;

    let address = [Ipv4Addr::LOCALHOST.into()];
    let wrong = json!({"etcd-tls.dev/issuer": "pod-certificate", "etcd-tls.dev/extra-sans": "etcd.example.com"});
    let mut refused = member(2379, 2380);
    refused["metadata"]["annotations"] = wrong;
    let refused = installation.api.pod(NAMESPACE, refused).await.expect_err("it asks for a name").to_string();
    assert!(refused.contains("kubelet can ask for no names"), "{refused}");

    let (client_port, peer_port) = (ports::loopback(), ports::loopback());
    let manifest = member(client_port, peer_port);
    let admin = manifest["metadata"]["annotations"]["etcd-tls.dev/admin-port"].as_str().expect("a port").to_owned();
    let programs = [("etcd", which("etcd").expect("etcd"))];
    let mut pod = installation.local_pod(NAMESPACE, manifest, &address, &programs).await.expect("an admitted pod");
    // As short as it can be between two restarts.
    pod.add_argument(names::SIDECAR_CONTAINER, "--restart-pace=1s");
    let raw = installation.api.kubectl(&["get", "pod", "etcd-0", "-n", NAMESPACE, "-o", "json"]);
    let object: Value = serde_json::from_str(&raw).expect("a pod");
    let containers = object["spec"]["initContainers"].as_array().expect("the sidecar");
    assert_eq!(containers.iter().map(|c| &c["name"]).collect::<Vec<_>>(), [names::SIDECAR_CONTAINER]);
    let mut kubelet =
        Kubelet { installation: &installation, client: &client, pod: object, files: BTreeMap::new(), generation: 0 };
    let volume = pod.volume(names::VOLUME);

    kubelet.request_all().await;
    kubelet.read_trust().await;
    kubelet.write(&volume);
    pod.start(LIMIT).await.expect("sidecar and etcd");
    served(&pod, &admin, &kubelet).await;
    metric(&pod, &admin, "etcd_tls_certificates_by_kubelet 1").await.expect("it says by whom");

    // Renewed: the next generation of the volume.
    let before = kubelet.serial("server");
    kubelet.request_all().await;
    kubelet.write(&volume);
    assert_ne!(kubelet.serial("server"), before);
    let swapped = Instant::now();
    served(&pod, &admin, &kubelet).await;
    println!("served {:.1} s after the swap", swapped.elapsed().as_secs_f32());
    assert!(pod.process("etcd").running() && pod.restarts("etcd") == 0, "no restart for a new certificate");

    // A rollover: the bundle of both CAs is loaded by a restart.
    let begin = |arguments: &'static [&'static str]| rollover(&installation, arguments);
    begin(&[]);
    let one = kubelet.files["server/ca.crt"].clone();
    eventually("both CAs in the ConfigMap", LIMIT, || {
        let bundle = installation.bundle(NAMESPACE, "client");
        async move {
            let certificates = bundle.await.unwrap_or_default().matches("BEGIN CERTIFICATE").count();
            if certificates == 2 { Ok(()) } else { Err(certificates) }
        }
    })
    .await;
    kubelet.read_trust().await;
    assert_ne!(kubelet.files["server/ca.crt"], one);
    kubelet.write(&volume);
    let start = Instant::now();
    let restarts = loop {
        // As kubelet starts a container again that has ended.
        let restarts = pod.supervise().await;
        if restarts.iter().any(|restart| restart.container == "etcd") {
            break restarts;
        }
        assert!(start.elapsed() < LIMIT, "etcd is not restarted:\n{}", pod.log(names::SIDECAR_CONTAINER));
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(restarts.len(), 1, "{restarts:?}");
    let loaded = "etcd_tls_trust_state{domain=\"client\",state=\"loaded\"";
    eventually("the bundle loaded", LIMIT, || metric(&pod, &admin, loaded)).await;
    let status = begin(&["--status"]);
    assert!(status.contains("etcd-0") && status.contains("unknown (kubelet)"), "it waits for the pod: {status}");
    let mut checked = std::process::Command::new(tests::process::binary("etcd-tls-webhook"));
    checked.args(["check", "pod", "etcd-0", "-n", NAMESPACE]).env("KUBECONFIG", &installation.api.kubeconfig);
    let checked = String::from_utf8_lossy(&checked.output().expect("run check").stdout).into_owned();
    assert!(checked.contains("kubelet makes them (issuer pod-certificate)"), "{checked}");
    let port = "takes revoked certificates on its peer and client port: annotation etcd-tls.dev/revocation is off";
    assert!(checked.contains(port), "{checked}");
    // Nobody can have kubelet renew: its certificate is not revoked, and the command says what helps (docs/revocation.md, Limits).
    let serial = kubelet.serial("server");
    let (code, said) = ended(&installation.api.kubeconfig, &[&format!("{NAMESPACE}/etcd"), "--serial", &serial])
        .await
        .expect_err("it is in use");
    assert!(code == Some(1) && said.contains("kubelet has asked for its certificate"), "{code:?}: {said}");
    begin(&["--force", "--yes"]);

    // The new CA signs, live.
    let old = Bundle::parse(&one).expect("a bundle");
    let start = Instant::now();
    loop {
        kubelet.request_all().await;
        let chain = kubelet.chain("server");
        if chain.verify(Role::Server, &old, &chain.public_key, &Sans::default(), SystemTime::now()).is_err() {
            break;
        }
        assert!(start.elapsed() < LIMIT, "the old CA still signs:\n{}", installation.sign.log_end());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    kubelet.write(&volume);
    served(&pod, &admin, &kubelet).await;
    assert!(pod.process("etcd").running());
    says_what_is_wrong(&mut pod, &admin, &mut kubelet, &volume).await;
    let log = pod.log(names::SIDECAR_CONTAINER);
    assert!(!log.contains("PRIVATE KEY") && !log.contains("requesting a certificate"), "{log}");
    let requests = installation.api.kubectl(&["get", "csr", "-o", "name"]);
    assert!(!requests.contains("etcd-tls-"), "the pod has requested nothing: {requests}");
}

/// Rubbish in the volume: the sidecar says so and goes on, and takes the next good generation.
async fn says_what_is_wrong(pod: &mut LocalPod, admin: &str, kubelet: &mut Kubelet<'_>, volume: &Path) {
    let good = kubelet.files.clone();
    let nobodys = Ca::new("nobody's CA").leaf(&LeafOptions::default());
    let half = String::from_utf8_lossy(&good["peer/tls.crt"]).into_owned();
    let rubbish = [format!("{}{}", nobodys.key, nobodys.cert), "<html>".to_owned(), half[..half.len() / 2].to_owned()];
    for text in rubbish {
        let said = |pod: &LocalPod| pod.log(names::SIDECAR_CONTAINER).matches("kubelet's volume: ").count();
        let before = said(pod);
        kubelet.files.insert("peer/tls.crt".to_owned(), text.clone().into_bytes());
        kubelet.write(volume);
        eventually("the rubbish to be said", LIMIT, || async {
            if said(pod) > before { Ok(()) } else { Err(format!("{text:.20}: {}", pod.log(names::SIDECAR_CONTAINER))) }
        })
        .await;
    }
    metric(pod, admin, "etcd_tls_renewals_total{role=\"peer\",result=\"rejected\"} 1")
        .await
        .expect("one of another CA");
    assert!(pod.process(names::SIDECAR_CONTAINER).running(), "{}", pod.log(names::SIDECAR_CONTAINER));
    kubelet.files = good;
    kubelet.request_all().await;
    kubelet.write(volume);
    served(pod, admin, kubelet).await;
    assert!(pod.process("etcd").running() && pod.restarts("etcd") == 1, "no restart for rubbish");
}

/// Waits until etcd's ports are seen to serve what the volume holds.
async fn served(pod: &LocalPod, admin: &str, kubelet: &Kubelet<'_>) {
    for role in ["peer", "server"] {
        let serial = format!("etcd_tls_certificate_info{{role=\"{role}\",serial=\"{}\"", kubelet.serial(role));
        eventually("the certificate is taken", LIMIT, || metric(pod, admin, &serial)).await;
        let line = format!("etcd_tls_certificate_served{{role=\"{role}\"}} 1");
        eventually("the certificate is served", LIMIT, || metric(pod, admin, &line)).await;
    }
}

/// `etcd-tls-webhook rollover` of the client domain, as cluster-admin.
fn rollover(installation: &Installation, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(tests::process::binary("etcd-tls-webhook"));
    command.args(["rollover", &format!("{NAMESPACE}/etcd"), "--domain", "client"]).args(arguments);
    tests::process::run(command.env("KUBECONFIG", &installation.api.kubeconfig))
}
