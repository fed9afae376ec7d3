//! PodCertificateRequests, answered by `sign` on a real API server, with the rights of the component pod-certificates. A stand-in
//! for kubelet makes them as its node's user, under NodeRestriction.

#[path = "pod_certificates/found.rs"]
mod found;
#[path = "pod_certificates/gone.rs"]
mod gone;
#[path = "pod_certificates/many.rs"]
mod many;
#[path = "pod_certificates/member.rs"]
mod member;
#[path = "pod_certificates/refused.rs"]
mod refused;
#[path = "pod_certificates/v1.rs"]
mod v1;

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    certificate::Chain,
    names::{self, SYSTEM_NAMESPACE},
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, Pod, Secret, Service, ServiceAccount},
    events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, NODE, Options, client_of, from_json},
    eventually,
    pki::LeafOptions,
    ports,
    process::{Process, binary, run},
    temp::TempDir,
};

const LIMIT: Duration = Duration::from_secs(120);
const NAMESPACE: &str = "prod";

fn resource() -> ApiResource {
    ApiResource {
        group: "certificates.k8s.io".into(),
        version: "v1beta1".into(),
        api_version: "certificates.k8s.io/v1beta1".into(),
        kind: "PodCertificateRequest".into(),
        plural: "podcertificaterequests".into(),
    }
}

fn signer(domain: &str) -> String {
    format!("{domain}.etcd-tls.dev/{NAMESPACE}.etcd")
}

/// An API server that serves PodCertificateRequests, and etcd-tls's controllers with the shipped rights; no admission.
struct Lab {
    api: ApiServer,
    kubelet: Client,
    _approve: Process,
    sign: Process,
    count: std::cell::Cell<u32>,
}

fn controller(api: &ApiServer, name: &str, token: &str, arguments: &[&str]) -> Process {
    controller_at(api, &api.url, name, token, arguments)
}

/// The same through another URL of the API server.
fn controller_at(api: &ApiServer, url: &str, name: &str, token: &str, arguments: &[&str]) -> Process {
    let kubeconfig = api.token_kubeconfig(name, token);
    let text = fs::read_to_string(&kubeconfig).expect("read a kubeconfig").replace(&api.url, url);
    fs::write(&kubeconfig, text).expect("write a kubeconfig");
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args([name, "--identity", name, "--admin-address", &format!("127.0.0.1:{}", ports::loopback())]);
    command.args(arguments).env_clear().env("KUBECONFIG", kubeconfig);
    Process::spawn(name, &mut command, api.directory().path())
}

async fn sign(api: &ApiServer) -> Process {
    sign_with(api, &[]).await
}

async fn sign_with(api: &ApiServer, arguments: &[&str]) -> Process {
    let token = api.token(SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    controller(api, "sign", &token, &[&["--pod-certificates"], arguments].concat())
}

/// A client with the certificate of a user of the API server.
async fn user(api: &ApiServer, name: &str, group: &str) -> Client {
    let options = LeafOptions {
        common_name: name.to_owned(),
        organizations: vec![group.to_owned()],
        not_after: SystemTime::now() + Duration::from_secs(86_400),
        ..LeafOptions::default()
    };
    let leaf = api.ca.leaf(&options);
    let file = |end: &str| api.directory().join(format!("{}.{end}", name.replace(':', "-")));
    fs::write(file("crt"), leaf.cert).expect("write a certificate");
    fs::write(file("key"), leaf.key).expect("write a key");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "t",
        "clusters": [{"name": "t", "cluster": {
            "server": api.url, "certificate-authority": api.directory().join("pki/ca.crt"),
        }}],
        "users": [{"name": "t", "user": {"client-certificate": file("crt"), "client-key": file("key")}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
    });
    fs::write(file("kubeconfig"), kubeconfig.to_string()).expect("write a kubeconfig");
    client_of(&file("kubeconfig")).await
}

/// The flags of an API server that serves PodCertificateRequests and knows nodes.
fn apiserver_arguments() -> Vec<String> {
    let arguments = [
        "--feature-gates=PodCertificateRequest=true",
        "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true",
        // Beside RBAC.
        "--authorization-mode=Node",
        "--enable-admission-plugins=NodeRestriction",
    ];
    arguments.map(str::to_owned).to_vec()
}

/// Applies the manifests with the component.
fn apply_component(api: &ApiServer) {
    let overlay = TempDir::new("pod-certificates");
    let up = "../".repeat(overlay.path().components().count());
    let of = |path: &str| format!("{up}{}", &tests::repository().join(path).display().to_string()[1..]);
    let component = of("manifests/components/pod-certificates");
    let kustomization = json!({"resources": [of("manifests")], "components": [component]});
    overlay.write("kustomization.yaml", kustomization.to_string());
    api.kubectl(&["apply", "-k", &overlay.path().display().to_string()]);
}

/// No `admit` runs here.
fn without_webhooks(api: &ApiServer) {
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        api.kubectl(&["delete", kind, "etcd-tls", "--ignore-not-found"]);
    }
}

impl Lab {
    async fn new() -> Option<Self> {
        let options = Options { apiserver_arguments: apiserver_arguments(), ..Options::default() };
        let api = ApiServer::start_with(&options).await?;
        apply_component(&api);
        without_webhooks(&api);
        let kubelet = user(&api, &format!("system:node:{NODE}"), "system:nodes").await;
        let token = api.token(SYSTEM_NAMESPACE, "etcd-tls-approve", None).await;
        let approve = controller(&api, "approve", &token, &[]);
        let sign = sign(&api).await;
        api.namespace(NAMESPACE, &[("etcd-tls", "dynamic")]).await;
        Some(Self { api, kubelet, _approve: approve, sign, count: std::cell::Cell::new(0) })
    }

    async fn pod(&self, name: &str, roles: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {"app": "etcd"}, "annotations": {"etcd-tls.dev/roles": roles}},
            "spec": {"subdomain": "etcd", "hostname": name, "containers": [{"name": "etcd", "image": "etcd"}]},
        });
        change(&mut pod);
        eventually("a pod", LIMIT, || self.api.pod(NAMESPACE, pod.clone())).await
    }

    /// The request of kubelet for a pod, with a new key and with names that it may not get.
    async fn request(&self, pod: &Pod, signer: &str, change: impl FnOnce(&mut Value)) -> Value {
        let key = KeyPair::generate().expect("make a key");
        let params = CertificateParams::new(vec!["stub.example.com".to_owned()]).expect("a name");
        let stub = params.serialize_request(&key).expect("a request");
        let node = Api::<Node>::all(self.api.client.clone()).get(NODE).await.expect("the node");
        let account = Api::<ServiceAccount>::namespaced(self.api.client.clone(), NAMESPACE).get("default").await;
        self.count.set(self.count.get() + 1);
        let mut request = json!({
            "apiVersion": resource().api_version, "kind": resource().kind,
            "metadata": {"name": format!("request-{}", self.count.get())},
            "spec": {
                "signerName": signer, "podName": pod.name_any(), "podUID": pod.uid(), "nodeName": NODE, "nodeUID": node.uid(),
                "serviceAccountName": "default", "serviceAccountUID": account.expect("the account").uid(),
                "maxExpirationSeconds": 86400, "stubPKCS10Request": k8s_openapi::ByteString(stub.der().to_vec()),
            },
        });
        change(&mut request);
        request
    }

    fn requests(&self, client: &Client) -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), NAMESPACE, &resource())
    }

    async fn create(&self, client: &Client, request: &Value) -> kube::Result<DynamicObject> {
        self.requests(client).create(&PostParams::default(), &from_json(request.clone())).await
    }

    /// Makes a request as the node does, until its informers know the pod.
    async fn ask(&self, request: &Value) {
        eventually("a request of kubelet", LIMIT, || self.create(&self.kubelet, request)).await;
    }

    async fn status(&self, request: &Value) -> Value {
        let name = request["metadata"]["name"].as_str().expect("a name");
        let object = self.requests(&self.api.client).get(name).await.expect("the request");
        object.data["status"].clone()
    }

    /// Its one condition and its status, once there are.
    async fn answer(&self, request: &Value) -> (String, String, Value) {
        eventually("an answer", LIMIT, || async {
            let status = self.status(request).await;
            let condition = &status["conditions"][0];
            let text = |field: &str| condition[field].as_str().map(str::to_owned).ok_or_else(|| self.sign.log_end());
            Ok::<_, String>((text("type")?, text("reason")?, status.clone()))
        })
        .await
    }

    /// Whether a certificate is in the record of an authority.
    async fn recorded(&self, serial: &str) -> Result<(), String> {
        let secrets: Api<Secret> = Api::namespaced(self.api.client.clone(), SYSTEM_NAMESPACE);
        let all = secrets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        let mut texts = all.items.into_iter().flat_map(|secret| secret.data.unwrap_or_default().into_values());
        let found = texts.any(|text| String::from_utf8_lossy(&text.0).contains(serial));
        if found { Ok(()) } else { Err(format!("{serial} is in no Secret")) }
    }

    /// Asks, and gives the certificate, which OpenSSL accepts.
    async fn issued(&self, request: &Value) -> (Chain, Value) {
        self.ask(request).await;
        self.issued_to(request).await
    }

    async fn issued_to(&self, request: &Value) -> (Chain, Value) {
        let (kind, _, status) = self.answer(request).await;
        assert_eq!(kind, "Issued", "{status}");
        let pem = status["certificateChain"].as_str().expect("a chain");
        let domain = request["spec"]["signerName"].as_str().and_then(|s| s.split('.').next()).expect("a domain");
        let bundle = eventually("the bundle", LIMIT, || async {
            let api: Api<ConfigMap> = Api::namespaced(self.api.client.clone(), NAMESPACE);
            let object = api.get(&names::trust_config_map("etcd")).await.map_err(|e| e.to_string())?;
            object.data.unwrap_or_default().remove(&format!("{domain}.crt")).ok_or_else(|| "no such key".to_owned())
        })
        .await;
        let files = TempDir::new("chain");
        files.write("ca.crt", bundle);
        files.write("tls.crt", pem);
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-no-CApath", "-purpose", "sslclient", "-CAfile"]);
        run(openssl.arg(files.join("ca.crt")).arg("-untrusted").arg(files.join("tls.crt")).arg(files.join("tls.crt")));
        (Chain::parse(pem.as_bytes()).expect("a chain"), status)
    }

    /// Asks, and gives the reason and the message of the denial.
    async fn denied(&self, request: &Value) -> (String, String) {
        self.ask(request).await;
        let (kind, reason, status) = self.answer(request).await;
        assert_eq!(kind, "Denied", "{status}");
        assert!(status.get("certificateChain").is_none(), "{status}");
        (reason, status["conditions"][0]["message"].as_str().expect("a message").to_owned())
    }
}

fn time(status: &Value, field: &str) -> SystemTime {
    status[field].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()).expect(field).into()
}

#[tokio::test]
async fn a_pod_certificate_is_the_live_pods_and_only_its_kubelet_asks() {
    let Some(mut lab) = Lab::new().await else { return };
    lab.sign.logged("PodCertificateRequests are answered", LIMIT).await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"selector": {"app": "etcd"}, "ports": [{"port": 2379}]}});
    let services: Api<Service> = Api::namespaced(lab.api.client.clone(), NAMESPACE);
    services.create(&PostParams::default(), &from_json(service)).await.expect("create a Service");
    let pod = lab.pod("etcd-0", "peer,server", |_| {}).await;

    issues_names_alone(&lab, &pod).await;
    waits_for_the_hosts_address(&lab).await;
    gone::grants_nothing_to_a_pod_that_went(&lab).await;
    denies_with_a_reason(&lab, &pod).await;
    asks_for_no_other(&mut lab, &pod).await;
    refused::keeps_the_serial_number_of_a_request(&lab).await;

    // A leader that was away finds what waits, and a renewal is another certificate.
    lab.sign.kill();
    let request = lab.request(&pod, &signer("peer"), |_| {}).await;
    lab.ask(&request).await;
    lab.sign = sign(&lab.api).await;
    let (first, _) = lab.issued_to(&request).await;
    let (second, _) = lab.issued(&lab.request(&pod, &signer("peer"), |_| {}).await).await;
    assert_ne!(first.serial, second.serial);
    assert_eq!(first.sans, second.sans);
    eventually("the record of what was issued", LIMIT, || lab.recorded(&second.serial)).await;
    found::by_the_next_leader(&mut lab, &pod).await;
    found::but_not_without_the_component(&mut lab).await;
    assert!(!lab.sign.log().contains("PRIVATE KEY"));

    waits_where_there_are_too_many(&mut lab, &pod).await;
    v1::is_found_by_discovery(&mut lab, &pod).await;
}

/// A request waits, and an Event on the pod says what for, until the pod may hold more certificates.
async fn waits_where_there_are_too_many(lab: &mut Lab, pod: &Pod) {
    lab.sign.kill();
    lab.sign = sign_with(&lab.api, &["--certificates-per-pod=1"]).await;
    let request = lab.request(pod, &signer("peer"), |_| {}).await;
    lab.ask(&request).await;
    eventually("an Event on the pod", LIMIT, || async {
        let events: Api<Event> = Api::namespaced(lab.api.client.clone(), NAMESPACE);
        let all = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        let of = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some("etcd-0");
        let notes: Vec<_> = all.into_iter().filter(of).filter_map(|e| Some((e.reason?, e.note?))).collect();
        let says =
            |(reason, note): &(String, String)| reason == "CertificateWaits" && note.contains("TooManyCertificates");
        if notes.iter().any(says) { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
    assert_eq!(lab.status(&request).await.get("conditions"), None, "waiting may help");
    lab.sign.kill();
    lab.sign = sign(&lab.api).await;
    lab.issued_to(&request).await;
}

async fn issues_names_alone(lab: &Lab, pod: &Pod) {
    let hour = Duration::from_secs(3600);
    for (domain, seconds) in [("peer", 86_400), ("client", 3600)] {
        let change = |request: &mut Value| request["spec"]["maxExpirationSeconds"] = seconds.into();
        let (chain, status) = lab.issued(&lab.request(pod, &signer(domain), change).await).await;
        let role = if domain == "peer" { "peer" } else { "server" };
        assert_eq!(chain.common_name, format!("system:etcd-{role}:etcd-0"));
        for name in ["etcd-0.etcd.prod.svc.cluster.local", "db.prod.svc.cluster.local", "db.prod.svc", "db.prod"] {
            assert!(chain.sans.dns.contains(name), "{name}: {:?}", chain.sans);
        }
        assert!(!chain.sans.dns.contains("stub.example.com"), "{:?}", chain.sans);
        assert!(chain.sans.ips.iter().all(|ip| role == "server" && ip.is_loopback()), "{:?}", chain.sans);

        let [from, until, refresh] = ["notBefore", "notAfter", "beginRefreshAt"].map(|field| time(&status, field));
        assert_eq!((from, until), (chain.not_before, chain.not_after));
        let whole = until.duration_since(from).expect("a validity");
        assert!(whole >= hour && whole <= Duration::from_secs(seconds), "{whole:?}");
        let part = refresh.duration_since(from).expect("later").as_secs_f64() / whole.as_secs_f64();
        assert!((0.4..0.63).contains(&part), "{part}");
    }
    let key = KeyPair::generate().expect("make a key");
    let (chain, _) = lab.issued(&lab.request(pod, &signer("peer"), of_older_kubelet(pod, &key)).await).await;
    assert_eq!(chain.public_key, key.subject_public_key_info());
}

/// Before stubPKCS10Request: the key, and a signature of the pod's uid.
fn of_older_kubelet(pod: &Pod, key: &KeyPair) -> impl FnOnce(&mut Value) {
    let proof = key.sign(pod.uid().expect("a uid").as_bytes()).expect("sign");
    let key = key.subject_public_key_info();
    move |request| {
        request["spec"].as_object_mut().expect("a spec").remove("stubPKCS10Request");
        request["spec"]["pkixPublicKey"] = json!(k8s_openapi::ByteString(key));
        request["spec"]["proofOfPossession"] = json!(k8s_openapi::ByteString(proof));
    }
}

async fn waits_for_the_hosts_address(lab: &Lab) {
    let pod = lab.pod("host-0", "peer", |pod| pod["spec"]["hostNetwork"] = true.into()).await;
    let request = lab.request(&pod, &signer("peer"), |_| {}).await;
    lab.ask(&request).await;
    let other = lab.pod("etcd-1", "peer", |_| {}).await;
    lab.issued(&lab.request(&other, &signer("peer"), |_| {}).await).await;
    assert_eq!(lab.status(&request).await.get("conditions"), None, "it waits");
    let address = "192.0.2.10".parse().expect("an address");
    lab.api.set_pod_ips(NAMESPACE, "host-0", &[address]).await;
    let (chain, _) = lab.issued_to(&request).await;
    assert!(chain.sans.ips.contains(&address), "{:?}", chain.sans);
}

async fn denies_with_a_reason(lab: &Lab, pod: &Pod) {
    let annotate = |value: Value| move |request: &mut Value| request["spec"]["unverifiedUserAnnotations"] = value;
    let both = lab.pod("both-0", "server,client", |_| {}).await;
    let short =
        lab.pod("short-0", "peer", |pod| pod["metadata"]["annotations"]["etcd-tls.dev/duration"] = "30m".into()).await;
    let finished = lab.pod("finished-0", "peer", |_| {}).await;
    let phase = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), NAMESPACE);
    pods.patch_status("finished-0", &PatchParams::default(), &phase).await.expect("a phase");
    let apart = lab.pod("apart-0", "peer", |pod| pod["metadata"]["labels"]["etcd-tls"] = "disabled".into()).await;
    let peer = signer("peer");
    let unknown = annotate(json!({"example.com/x": "y"}));
    for (request, reason, what_to_do) in [
        (lab.request(pod, &peer, unknown).await, "InvalidUnverifiedUserAnnotations", "etcd-tls.dev/role"),
        (lab.request(&both, &signer("client"), |_| {}).await, "InvalidUnverifiedUserAnnotations", "name one"),
        (lab.request(pod, "peer.etcd-tls.dev/prod.other", |_| {}).await, "WrongSigner", &peer),
        (lab.request(&both, &peer, |_| {}).await, "WrongRole", "etcd-tls.dev/roles"),
        (lab.request(&short, &peer, |_| {}).await, "LifetimeTooShort", "etcd-tls.dev/duration"),
        (lab.request(&finished, &peer, |_| {}).await, "PodFinished", "has finished"),
        (lab.request(&apart, &peer, |_| {}).await, "NotOptedIn", "label it"),
    ] {
        let (said, message) = lab.denied(&request).await;
        assert_eq!(said, reason, "{message}");
        assert!(message.contains(what_to_do), "{message}");
    }
    let named = annotate(json!({"etcd-tls.dev/role": "client"}));
    let (chain, _) = lab.issued(&lab.request(&both, &signer("client"), named).await).await;
    assert_eq!(chain.common_name, "default.prod");

    // Where a person approves, nobody could.
    tests::policy::set(&lab.api.client, "manualApproval: [{namespaces: [prod], clusters: [held]}]").await;
    lab.sign.logged("manual_approval: [ManualApproval", LIMIT).await;
    let held =
        lab.pod("held-0", "peer", |pod| pod["metadata"]["annotations"]["etcd-tls.dev/cluster"] = "held".into()).await;
    let (said, message) = lab.denied(&lab.request(&held, "peer.etcd-tls.dev/prod.held", |_| {}).await).await;
    assert!(said == "ManualApproval" && message.contains("the issuer csr"), "{said}: {message}");
    tests::policy::set(&lab.api.client, "").await;
}

/// Requests of others, and requests for others.
async fn asks_for_no_other(lab: &mut Lab, pod: &Pod) {
    let foreign = lab.request(pod, "example.com/ca", |_| {}).await;
    lab.ask(&foreign).await;
    let good = lab.request(pod, &signer("peer"), |_| {}).await;
    // Another node's kubelet is refused by NodeRestriction, whoever else has the right by the component's policy.
    let node: Node = from_json(json!({"metadata": {"name": "node-2"}}));
    Api::<Node>::all(lab.api.client.clone()).create(&PostParams::default(), &node).await.expect("a node");
    let other = user(&lab.api, "system:node:node-2", "system:nodes").await;
    let refused = lab.create(&other, &good).await.expect_err("of another node").to_string();
    assert!(refused.contains("which is not the requesting node"), "{refused}");
    eventually("the policy in force", LIMIT, || async {
        match lab.create(&lab.api.client, &good).await {
            Err(error) if error.to_string().contains("is made by the kubelet of the pod's node") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // Without the policy, nothing is answered; and the live pod still has the last word.
    lab.sign.kill();
    lab.api.kubectl(&["delete", "validatingadmissionpolicybinding", "etcd-tls-pod-certificates"]);
    let mut requests = Vec::new();
    for (field, value) in
        [("podUID", "another"), ("nodeName", "node-2"), ("serviceAccountName", "another"), ("podName", "another")]
    {
        let request = lab.request(pod, &signer("peer"), |request| request["spec"][field] = value.into()).await;
        eventually("the policy away", LIMIT, || lab.create(&lab.api.client, &request)).await;
        requests.push((field, request));
    }
    lab.sign = sign(&lab.api).await;
    lab.sign.logged("not sent: ValidatingAdmissionPolicy etcd-tls-pod-certificates is not enforced", LIMIT).await;
    for (field, request) in &requests {
        assert_eq!(lab.status(request).await.get("conditions"), None, "{field}: answered without the policy");
    }
    lab.api.apply(include_str!("../../manifests/components/pod-certificates/policy.yaml"));
    for (field, request) in &requests {
        let expected = if *field == "podName" { "PodGone" } else { "WrongPod" };
        let (kind, reason, status) = lab.answer(request).await;
        assert_eq!((kind.as_str(), reason.as_str()), ("Denied", expected), "{field}: {status}");
    }

    assert_eq!(lab.status(&foreign).await.get("conditions"), None, "others answer it");
    let token = lab.api.token(SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    let as_sign = lab.requests(&lab.api.client_with_token(&token).await);
    let denial = json!({"status": {"conditions": [{
        "type": "Denied", "status": "True", "reason": "No", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let name = foreign["metadata"]["name"].as_str().expect("a name");
    let refused = as_sign.patch_status(name, &PatchParams::default(), &Patch::Merge(denial)).await;
    let refused = refused.expect_err("another signer's").to_string();
    assert!(refused.contains("is not permitted to"), "{refused}");
}
