//! Time to certificate by each issuer, on one API server in one run, in turns: with the sidecar's `init` or `request` from its
//! start to its file, and with the requests alone on a kept connection.

use std::{
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_tls_contract::{key::KeyAlgorithm, names, role::Role};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{Api, ResourceExt as _};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, NODE, Options as ApiOptions},
    cert_manager::{
        CertManager,
        itself::{self, Controller, Programs},
    },
    eventually,
    installation::{Installation, Options},
    pki::{LeafOptions, client_config},
    process::{Process, binary},
};

use crate::{
    asks::{self, Asker, burst, node_ask},
    report::Report,
    standalone::Signer,
    stats::{median, ms, percentile},
    wire::{Call, Wire},
};

const NAMESPACE: &str = "bench";
/// One turn of each, the first of which is not counted.
const TURNS: usize = 16;
const LIMIT: Duration = Duration::from_secs(120);
/// Between looks, of both requesters by wire and of files.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const NATIVE: &str = "etcd-tls's signer";

/// The times of one back end, in milliseconds, one of each turn.
struct Times {
    name: String,
    values: Vec<f64>,
}

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let apiserver_arguments = [
        "--feature-gates=PodCertificateRequest=true",
        "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true",
        "--authorization-mode=Node",
        "--enable-admission-plugins=NodeRestriction",
    ];
    let api =
        ApiOptions { apiserver_arguments: apiserver_arguments.map(str::to_owned).to_vec(), ..ApiOptions::default() };
    let Some(mut installation) = Installation::start(&Options { api, ..Options::default() }).await else {
        report.skip(
            "time to certificate by issuer",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl, etcd and kube-controller-manager> make bench SECTIONS=backends",
        );
        return Ok(());
    };
    let cert_manager = match Programs::named() {
        Some(programs) => Some(Controller::start(&installation.api, &programs).await),
        None => {
            CertManager::install(&installation.api).await;
            report.skip(
                "cert-manager itself: a stand-in answers, which looks ten times a second",
                "no cert-manager",
                "CERT_MANAGER_BIN=<directory with cert-manager's controller and webhook, and its CRDs in crds>",
            );
            None
        }
    };
    installation.api.apply_components(&["cert-manager", "pod-certificates"]);
    installation.restart_sign(&["--pod-certificates".to_owned(), "--cert-manager".to_owned()]).await;
    installation.api.namespace(NAMESPACE, &[(names::LABEL, names::DYNAMIC)]).await;
    asks::accounts(&installation.api, NAMESPACE).await;
    grant(&installation.api, cert_manager.is_some());

    by_init(report, &installation, cert_manager.as_ref()).await?;
    by_wire(report, &installation).await
}

/// Lets the pods request of the foreign issuers.
fn grant(api: &ApiServer, itself: bool) {
    let rbac = "rbac.authorization.k8s.io";
    let signer = signer(itself);
    let rules = json!([
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [signer], "verbs": ["request"]},
        {"apiGroups": ["cert-manager.io"], "resources": ["signers"], "resourceNames": ["issuers.cert-manager.io/company"], "verbs": ["request"]},
        {"apiGroups": ["cert-manager.io"], "resources": ["signers"], "resourceNames": [itself::ISSUER], "verbs": ["reference"]},
    ]);
    let group = json!({"kind": "Group", "apiGroup": rbac, "name": format!("system:serviceaccounts:{NAMESPACE}")});
    let items = json!([
        {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "bench-issuers"}, "rules": rules},
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "bench-issuers"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "bench-issuers"}, "subjects": [group],
        },
    ]);
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

fn signer(itself: bool) -> String {
    if itself { itself::signer(NAMESPACE) } else { format!("example.com/{NAMESPACE}") }
}

/// A pod's directory, in which `init` can run again and again.
struct Place<'a> {
    installation: &'a Installation,
    pod: Pod,
    runs: usize,
}

impl Place<'_> {
    /// `init` for one role with a new key, from its start to its file; milliseconds.
    async fn init(&mut self, issuer: Option<&str>, bundle: &str) -> Result<f64, String> {
        let directory = self.installation.api.directory();
        self.runs += 1;
        let name = format!("bench-init-{}", self.runs);
        let trust = directory.dir(&format!("{name}/trust"));
        for domain in ["peer", "client", "metrics"] {
            fs::write(trust.join(format!("{domain}.crt")), bundle).map_err(|e| e.to_string())?;
        }
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command
            .args(["init", "--roles=peer", "--log-level=info"])
            .args(issuer.map(|issuer| format!("--issuer={issuer}")));
        let token = directory.join("bench-pod");
        for (flag, path) in
            [("--dir", directory.join(&name).join("certs")), ("--trust-dir", trust), ("--token-dir", token)]
        {
            command.arg(flag).arg(path);
        }
        command.arg("--termination-log").arg(directory.join(&name).join("termination-log"));
        command.envs(self.installation.api.pod_environment()).envs([
            ("POD_NAME", self.pod.name_any()),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
            ("POD_UID", self.pod.uid().unwrap_or_default()),
            ("POD_SERVICE_ACCOUNT", "account-0".to_owned()),
            ("NODE_NAME", NODE.to_owned()),
            ("POD_IPS", "10.0.0.1".to_owned()),
        ]);
        let file = directory.join(&name).join("certs/peer/tls.crt");
        let began = Instant::now();
        let mut process = Process::spawn(&name, &mut command, directory.path());
        while !file.exists() {
            if began.elapsed() > LIMIT || process.exited().is_some_and(|s| !s.success()) {
                return Err(format!("init left no file:\n{}", process.log()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let took = ms(began.elapsed());
        process.wait(LIMIT).await;
        Ok(took)
    }
}

/// The sidecar's program from its start to its files.
async fn by_init(
    report: &mut Report,
    installation: &Installation,
    itself: Option<&Arc<Controller>>,
) -> Result<(), String> {
    let api = &installation.api;
    let asker = asks::asker(api, NAMESPACE, "etcd-0", "account-0", 1).await;
    let pod = Api::<Pod>::namespaced(api.client.clone(), NAMESPACE).get("etcd-0").await.map_err(|e| e.to_string())?;
    let token = api.token(NAMESPACE, "account-0", Some(&pod)).await;
    api.token_directory("bench-pod", NAMESPACE, &token);
    warm(installation, &asker).await?;
    let native = eventually("the bundle", LIMIT, || async {
        installation.bundle(NAMESPACE, "peer").await.ok_or_else(|| "not published".to_owned())
    })
    .await;
    let issuer = itself.map_or_else(
        || CertManager::start(api, NAMESPACE, &signer(false)),
        |controller| CertManager::itself(controller, NAMESPACE),
    );
    let foreign = issuer.ca();
    let standalone = Signer::start(KeyAlgorithm::EcdsaP256).await?;
    let kubeconfig = standalone.kubeconfig();
    let by = if itself.is_some() { "cert-manager itself" } else { "a stand-in" };
    let csr = format!("csr:{}", signer(itself.is_some()));
    let certificate_request = format!("cert-manager:Issuer/{}", itself::ISSUER);
    let pods: [(String, Option<&str>, &str); 3] = [
        (NATIVE.to_owned(), None, &native),
        (format!("a CertificateSigningRequest to {by}"), Some(&csr), &foreign),
        (format!("a CertificateRequest to {by}"), Some(&certificate_request), &foreign),
    ];
    let mut all: Vec<Times> = pods.iter().map(|(name, ..)| Times { name: name.clone(), values: Vec::new() }).collect();
    all.push(Times { name: "standalone, by request on a host".to_owned(), values: Vec::new() });
    let mut place = Place { installation, pod, runs: 0 };
    for turn in 0..=TURNS {
        for n in in_turn(turn, all.len()) {
            let took = match pods.get(n) {
                Some((_, issuer, bundle)) => place.init(*issuer, bundle).await?,
                None => standalone.request_once(&kubeconfig, turn).await?,
            };
            if turn > 0 {
                all[n].values.push(took);
            }
        }
    }
    print(report, "start to files", &all);
    Ok(())
}

/// The requests alone, each looked for as soon as it is there.
async fn by_wire(report: &mut Report, installation: &Installation) -> Result<(), String> {
    let api = &installation.api;
    let address = asks::address(api);
    let asker = asks::asker(api, NAMESPACE, "etcd-1", "account-1", 2).await;
    let mut of_pod = Wire::open_many(1, address, &asks::nobody(api)).await?;
    let mut of_node = Wire::open(address, node(api)).await?;
    let mut of_admin = Wire::open_many(1, address, &asks::admin(api)).await?;
    let kubelet = Kubelet::new(api, "etcd-1").await?;
    kubelet.known(&mut of_node).await?;
    let manager = api.start_controller_manager(&["--controllers=csrapproving,csrsigning".to_owned()]);
    let mut all = vec![
        Times { name: NATIVE.to_owned(), values: Vec::new() },
        Times { name: "a PodCertificateRequest to etcd-tls's signer".to_owned(), values: Vec::new() },
    ];
    if manager.is_some() {
        all.push(Times {
            name: "kube-controller-manager's approver and signer of nodes (it has none for other names)".to_owned(),
            values: Vec::new(),
        });
    } else {
        report.skip(
            "kube-controller-manager",
            "no kube-controller-manager beside kube-apiserver",
            "put it into the directory that KUBEBUILDER_ASSETS names",
        );
    }
    for turn in 0..=TURNS {
        for n in in_turn(turn, all.len()) {
            let took = match n {
                0 => burst(&mut of_pod, &asker.asks(&[Role::Peer])).await?.latencies[0],
                1 => kubelet.certificate(&mut of_node, turn).await?,
                _ => burst(&mut of_admin, &[node_ask(turn)]).await?.latencies[0],
            };
            if turn > 0 {
                all[n].values.push(took);
            }
        }
    }
    print(report, "request to certificate", &all);
    Ok(())
}

/// The back ends in the order of this turn: none always comes first.
fn in_turn(turn: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| (n + turn) % count)
}

/// The right to ask comes with the first pod, and the CA.
async fn warm(installation: &Installation, asker: &Asker) -> Result<(), String> {
    let mut wires = Wire::open_many(1, asks::address(&installation.api), &asks::nobody(&installation.api)).await?;
    burst(&mut wires, &asker.asks(&[Role::Peer])).await.map(drop)
}

/// Each back end's times, and their ratio to those of [`NATIVE`], the first one, in the same turn.
fn print(report: &mut Report, what: &str, all: &[Times]) {
    let native = &all[0];
    for (n, times) in all.iter().enumerate() {
        let (p50, p90) = (median(&times.values), percentile(&times.values, 0.9));
        report.plain(format!("{what}, {}: p50 (p90)", times.name), format!("{p50:.0} ms ({p90:.0} ms)"));
        if n > 0 {
            let ratios: Vec<f64> =
                times.values.iter().zip(&native.values).map(|(time, native)| time / native).collect();
            report.plain(format!("… against {NATIVE}"), format!("{:.2}", median(&ratios)));
        }
    }
}

/// The certificate of the node's user.
fn node(api: &ApiServer) -> Arc<rustls::ClientConfig> {
    let leaf = api.ca.leaf(&LeafOptions {
        organizations: vec!["system:nodes".to_owned()],
        common_name: format!("system:node:{NODE}"),
        ..LeafOptions::default()
    });
    client_config(&api.ca.pem, Some((&leaf.cert, &leaf.key)))
}

/// kubelet's part for one pod.
struct Kubelet {
    path: String,
    spec: Value,
}

impl Kubelet {
    async fn new(api: &ApiServer, pod: &str) -> Result<Self, String> {
        let of = |e: kube::Error| e.to_string();
        let client = || api.client.clone();
        let object = Api::<Pod>::namespaced(client(), NAMESPACE).get(pod).await.map_err(of)?;
        let account = object.spec.clone().and_then(|spec| spec.service_account_name).unwrap_or_default();
        let node = Api::<Node>::all(client()).get(NODE).await.map_err(of)?;
        let uid = Api::<ServiceAccount>::namespaced(client(), NAMESPACE).get(&account).await.map_err(of)?.metadata.uid;
        let spec = json!({
            "signerName": format!("peer.etcd-tls.dev/{NAMESPACE}.etcd"), "podName": pod, "podUID": object.metadata.uid,
            "nodeName": NODE, "nodeUID": node.metadata.uid, "serviceAccountName": account, "serviceAccountUID": uid,
            "maxExpirationSeconds": 86_400,
        });
        Ok(Self {
            path: format!("/apis/certificates.k8s.io/v1beta1/namespaces/{NAMESPACE}/podcertificaterequests"),
            spec,
        })
    }

    /// Waits until the API server knows that the pod is on the node.
    async fn known(&self, wire: &mut Wire) -> Result<(), String> {
        let began = Instant::now();
        let call = Call::post(format!("{}?dryRun=All", self.path), self.request("bench")?);
        loop {
            match wire.succeed(&call).await {
                Ok(_) => return Ok(()),
                Err(e) if began.elapsed() > LIMIT => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// With a new key.
    fn request(&self, name: &str) -> Result<String, String> {
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let stub = CertificateParams::default().serialize_request(&key).map_err(|e| e.to_string())?;
        let mut request = json!({
            "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest", "metadata": {"name": name},
            "spec": self.spec,
        });
        request["spec"]["stubPKCS10Request"] = json!(k8s_openapi::ByteString(stub.der().to_vec()));
        Ok(request.to_string())
    }

    /// From the creation to the chain; milliseconds.
    async fn certificate(&self, wire: &mut Wire, turn: usize) -> Result<f64, String> {
        let name = format!("bench-{turn}");
        let request = self.request(&name)?;
        let began = Instant::now();
        wire.succeed(&Call::post(self.path.as_str(), request)).await?;
        let get = Call::get(format!("{}/{name}", self.path));
        loop {
            // The API server learns a moment after the creation that the request is of this node.
            let (code, body) = wire.call(&get).await?;
            let object: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
            if object["status"]["certificateChain"].is_string() {
                return Ok(ms(began.elapsed()));
            }
            if object["status"]["conditions"].is_array() || began.elapsed() > LIMIT {
                return Err(format!("{name}: no certificate: {code}: {object}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
