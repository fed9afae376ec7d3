//! What an attacker may want where the components with rights of their own are installed.

use std::process::Command;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, Options},
    cert_manager::CertManager,
    cluster_trust_bundle::cluster_trust_bundle,
    eventually,
    process::run,
    tier,
};

use super::scene::{Account, Call, LIMIT, RBAC, Scene, impersonating, send};

/// The components that add rules to roles.
pub const COMPONENTS: [&str; 4] = ["cert-manager", "approve-others", "pod-certificates", "cluster-trust-bundles"];
pub const CERTIFICATE_REQUESTS: &str = "/apis/cert-manager.io/v1/namespaces/prod/certificaterequests";
pub const POD_REQUESTS: &str = "/apis/certificates.k8s.io/v1beta1/namespaces/prod/podcertificaterequests";
pub const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";

/// The minor version of Kubernetes whose API server has the stand-in for cert-manager's webhook, and the resources of the components.
const SINCE: u32 = 36;

/// The names of requests of the pod to issuers of cert-manager.
pub struct Requests {
    /// To the one on which `approve` has the verb.
    pub listed: String,
    /// To another one.
    pub unlisted: String,
}

impl Scene {
    /// [`Self::new`] with the components. `None`, having said so, where the API server does not have all of their resources.
    pub async fn with_components() -> Option<(Self, Requests)> {
        let version = run(Command::new(tier::kubernetes()?.join("kube-apiserver")).arg("--version"));
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        let minor = minor.unwrap_or_else(|| panic!("kube-apiserver says no version: {version}"));
        if minor < SINCE {
            tier::skip_special(
                &format!("{} has no policies that mutate", version.trim()),
                &format!("KUBEBUILDER_ASSETS=<Kubernetes 1.{SINCE} or later>"),
            );
            return None;
        }
        let arguments = [
            "--feature-gates=PodCertificateRequest=true,ClusterTrustBundle=true",
            "--runtime-config=certificates.k8s.io/v1beta1/podcertificaterequests=true,certificates.k8s.io/v1beta1/clustertrustbundles=true",
        ];
        let options = Options { apiserver_arguments: arguments.map(str::to_owned).to_vec(), ..Options::default() };
        let api = ApiServer::start_with(&options).await?;
        CertManager::install(&api).await;
        api.apply_components(&COMPONENTS);
        let scene = Self::of(api).await;
        let requests = furnish(&scene).await;
        Some((scene, requests))
    }
}

async fn furnish(scene: &Scene) -> Requests {
    assert!(
        CertManager::write_who_asks(&scene.api).await,
        "an API server with PodCertificateRequests has policies that mutate"
    );
    let signers = |resource: &str, names: &[&str], verb: &str| json!({"apiGroups": ["cert-manager.io"], "resources": [resource], "resourceNames": names, "verbs": [verb]});
    let grant = async |name: &str, rule: Value, namespace: &str, account: &str| {
        scene
            .admin(Call::post(format!("{RBAC}/clusterroles"), json!({"metadata": {"name": name}, "rules": [rule]})))
            .await;
        let binding = json!({
            "metadata": {"name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            "roleRef": {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
        });
        scene.admin(Call::post(format!("{RBAC}/clusterrolebindings"), binding)).await;
    };
    let issuers = ["issuers.cert-manager.io/company", "issuers.cert-manager.io/board"];
    grant("request-company", signers("signers", &issuers, "request"), "prod", "default").await;
    let listed = ["issuers.cert-manager.io/prod.company"];
    grant("approve-company", signers("signers", &listed, "approve"), "etcd-tls-system", "etcd-tls-approve").await;
    let mut names = Vec::new();
    for (digit, issuer) in [("0", "company"), ("1", "board")] {
        let mut request = certificate_request(&scene.uid, digit);
        request["spec"]["issuerRef"]["name"] = issuer.into();
        names.push(request["metadata"]["name"].as_str().expect("a name").to_owned());
        eventually("a request of the pod", LIMIT, || {
            scene.call(Account::Pod, Call::post(CERTIFICATE_REQUESTS, request.clone()))
        })
        .await;
    }
    let mut company = certificate_request(&scene.uid, "2");
    company["metadata"] = json!({"name": "company"});
    scene.admin(Call::post(CERTIFICATE_REQUESTS, company)).await;

    let kubelet = impersonating(&scene.api, "system:node:node-1", &["system:nodes", "system:masters"]).await;
    for (name, signer) in [("ours", "peer.etcd-tls.dev/prod.etcd"), ("theirs", "example.com/ca")] {
        let request = pod_request(scene, name, signer).await;
        send(&kubelet, Call::post(POD_REQUESTS, request)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let signer = "peer.etcd-tls.dev/prod.etcd";
    for (name, signer) in [("company", None), ("peer.etcd-tls.dev:prod.etcd:bundle", Some(signer))] {
        scene.admin(Call::post(BUNDLES, cluster_trust_bundle(name, signer, &scene.api.ca.pem))).await;
    }
    in_force(scene).await;
    let [listed, unlisted] = names.try_into().expect("two");
    Requests { listed, unlisted }
}

/// Waits for the policies of the components, each shown by what it refuses.
async fn in_force(scene: &Scene) {
    let condition = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let company = format!("{CERTIFICATE_REQUESTS}/company");
    let status = format!("{company}/status");
    let mut bad = certificate_request(&scene.uid, "3");
    bad["spec"]["isCA"] = true.into();
    for (policy, account, call) in [
        ("certificate-requests", Account::Pod, Call::post(CERTIFICATE_REQUESTS, bad)),
        ("certificate-request-deletes", Account::Sign, Call::delete(company)),
        ("certificate-request-approvals", Account::Approve, Call::merge(status, condition)),
        ("cluster-trust-bundles", Account::Sign, Call::delete(format!("{BUNDLES}/company"))),
    ] {
        let call = call.dry();
        eventually(&format!("policy etcd-tls-{policy}"), LIMIT, || async {
            match scene.call(account, call.clone()).await {
                Err(error) if error.contains(&format!("ValidatingAdmissionPolicy 'etcd-tls-{policy}'")) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

/// A request of the pod to the issuer `company`; the digest in its name has this digit.
pub fn certificate_request(uid: &str, digit: &str) -> Value {
    let key = rcgen::KeyPair::generate().expect("a key");
    let pem = rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
    json!({
        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
        "metadata": {
            "name": format!("etcd-tls-{uid}-peer-{}", digit.repeat(32)),
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "etcd-0", "uid": uid}],
        },
        "spec": {
            "request": STANDARD.encode(pem), "duration": "24h", "usages": ["digital signature", "server auth", "client auth"],
            "issuerRef": {"kind": "Issuer", "name": "company", "group": "cert-manager.io"},
        },
    })
}

async fn pod_request(scene: &Scene, name: &str, signer: &str) -> Value {
    let uid = async |path: &str| scene.admin(Call::get(path)).await["metadata"]["uid"].clone();
    let key = rcgen::KeyPair::generate().expect("a key");
    let stub = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest", "metadata": {"name": name},
        "spec": {
            "signerName": signer, "podName": "etcd-0", "podUID": scene.uid,
            "nodeName": "node-1", "nodeUID": uid("/api/v1/nodes/node-1").await,
            "serviceAccountName": "default", "serviceAccountUID": uid("/api/v1/namespaces/prod/serviceaccounts/default").await,
            "maxExpirationSeconds": 86_400, "stubPKCS10Request": STANDARD.encode(stub.der()),
        },
    })
}
