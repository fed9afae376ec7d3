//! Our approver for the issuers of others: its install, and requests by hand to both kinds of them.

use std::{collections::BTreeMap, net::IpAddr, process::Command};

use etcd_tls_contract::{
    csr::{PrivateKey, key_digest},
    identity,
    key::KeyAlgorithm,
    names,
    role::Role,
    san::Sans,
};
use k8s_openapi::{
    ByteString,
    api::{certificates::v1::CertificateSigningRequest, core::v1::Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    cert_manager::{CertManager, resource},
    eventually, ports,
    process::{Process, binary},
};

use crate::scene::{Kind, LIMIT, Lab};

/// The system namespace.
pub const SYSTEM: &str = "etcd-tls-system";

/// The address of a pod: no two have the same.
pub fn address(namespace: &str, pod: &str) -> String {
    let byte = |text: &str| text.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    format!("10.9.{}.{}", byte(namespace), byte(pod) | 1)
}

/// Installs the component, and has the namespaces opt in. There is no webhook: pods are made as they would be admitted.
pub fn install(lab: &Lab) {
    lab.api.apply_components(&["cert-manager", "approve-others"]);
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        lab.api.kubectl(&["delete", kind, "etcd-tls", "--ignore-not-found"]);
    }
    lab.api.kubectl(&["label", "namespace", "cm", "csr", "etcd-tls=dynamic", "--overwrite"]);
}

/// Gives `approve` the verb of the same name, as the page says.
pub fn let_approve(lab: &Lab, group: &str, signer: &str) {
    let rule = json!({"apiGroups": [group], "resources": ["signers"], "resourceNames": [signer], "verbs": ["approve"]});
    let patch = json!([{"op": "add", "path": "/rules/-", "value": rule}]).to_string();
    lab.api.kubectl(&["patch", "clusterrole", "etcd-tls-approve", "--type=json", "--patch", &patch]);
}

/// Starts `approve` with the rights of its account.
pub async fn approve(lab: &Lab, arguments: &[String]) -> Process {
    approve_at(lab, ports::loopback(), arguments).await
}

/// [`approve`], with this admin port.
pub async fn approve_at(lab: &Lab, admin: u16, arguments: &[String]) -> Process {
    let kubeconfig = lab.api.token_kubeconfig("approve", &lab.api.token(SYSTEM, "etcd-tls-approve", None).await);
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["approve", "--cert-manager"]).args(arguments);
    command.arg("--admin-address").arg(format!("127.0.0.1:{admin}"));
    command.env_clear().env("KUBECONFIG", kubeconfig);
    Process::spawn("approve", &mut command, lab.api.directory().path())
}

/// A running pod with these annotations.
pub async fn pod(lab: &Lab, namespace: &str, name: &str, annotations: &[(&str, &str)]) -> Pod {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(key, value)| (format!("etcd-tls.dev/{key}"), *value)).collect();
    let pod = json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "etcd", "image": "etcd"}]},
    });
    let pod = eventually("a pod", LIMIT, || lab.api.pod(namespace, pod.clone())).await;
    let ip: IpAddr = address(namespace, name).parse().expect("an address");
    lab.api.set_pod_ips(namespace, name, &[ip]).await;
    pod
}

/// A request by hand, with the pod's own token.
pub struct Asked {
    pub common_name: String,
    pub sans: Sans,
    pub usages: Vec<String>,
}

impl Asked {
    /// The request that a pod is entitled to.
    pub fn of(namespace: &str, pod: &str) -> Self {
        let usages = identity::usages(Role::Peer).iter().map(|usage| (*usage).to_owned()).collect();
        let sans = address(namespace, pod).parse().expect("an address");
        Self { common_name: format!("system:etcd-peer:{pod}"), sans, usages }
    }
}

/// One kind of request to an issuer, and its namespace.
pub struct Way<'a> {
    pub lab: &'a Lab,
    pub kind: Kind,
    pub namespace: &'static str,
    pub signer: String,
}

impl Way<'_> {
    /// The two kinds of requests through `client`.
    pub fn client(&self, client: Client) -> (Api<DynamicObject>, Api<CertificateSigningRequest>) {
        (Api::namespaced_with(client.clone(), self.namespace, &resource()), Api::all(client))
    }

    /// The name and the object of a request; `name` in place of the sidecar's own name.
    pub fn object(&self, pod: &Pod, asked: &Asked, name: Option<&str>) -> (String, Value) {
        let (pod_name, uid) = (pod.name_any(), pod.uid().expect("a uid"));
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
        let pem = key.request(Role::Peer.organization(), &asked.common_name, &asked.sans).expect("make a request");
        let own = || names::csr_name(&uid, Role::Peer, &key_digest(&key.public_key()));
        let name = name.map_or_else(own, str::to_owned);
        let request = ByteString(pem.into_bytes());
        let object = match self.kind {
            Kind::CertManager => json!({
                "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
                "metadata": {
                    "name": name,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": uid}],
                },
                "spec": {
                    "request": request, "duration": "24h", "usages": asked.usages, "issuerRef": {"name": "company"},
                },
            }),
            Kind::Signer => json!({
                "metadata": {"name": name},
                "spec": {
                    "request": request, "expirationSeconds": 86_400, "usages": asked.usages, "signerName": self.signer,
                },
            }),
        };
        (name, object)
    }

    /// Creates a request as the owner of `client`; its name.
    pub async fn create(&self, client: Client, pod: &Pod, asked: &Asked, name: Option<&str>) -> String {
        let (name, object) = self.object(pod, asked, name);
        eventually("a request", LIMIT, || self.post(client.clone(), &object)).await;
        name
    }

    async fn post(&self, client: Client, object: &Value) -> Result<(), String> {
        let (requests, signing) = self.client(client);
        let params = PostParams::default();
        let made = match self.kind {
            Kind::CertManager => requests.create(&params, &from_json(object.clone())).await.map(drop),
            Kind::Signer => signing.create(&params, &from_json(object.clone())).await.map(drop),
        };
        made.map_err(|error| error.to_string())
    }

    /// The same with the token of the pod.
    pub async fn ask(&self, pod: &Pod, asked: &Asked) -> String {
        self.create(self.client_of(pod).await, pod, asked, None).await
    }

    /// [`Self::ask`], once: the API server's refusal.
    pub async fn try_ask(&self, pod: &Pod, asked: &Asked) -> Result<String, String> {
        let (name, object) = self.object(pod, asked, None);
        self.post(self.client_of(pod).await, &object).await.map(|()| name)
    }

    async fn client_of(&self, pod: &Pod) -> Client {
        let token = self.lab.api.token(self.namespace, "default", Some(pod)).await;
        self.lab.api.client_with_token(&token).await
    }

    /// The status of a request.
    pub async fn status(&self, name: &str) -> Value {
        let (requests, signing) = self.client(self.lab.api.client.clone());
        match self.kind {
            Kind::CertManager => requests.get(name).await.expect("the request").data["status"].clone(),
            Kind::Signer => {
                let request = signing.get(name).await.expect("the request");
                serde_json::to_value(request.status).expect("JSON")
            }
        }
    }

    /// A request's condition.
    pub async fn condition(&self, name: &str, type_: &str) -> Option<Value> {
        let status = self.status(name).await;
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == type_).cloned()
    }

    /// Waits for the denial; its message.
    pub async fn denied(&self, name: &str, approve: &Process) -> String {
        let denied = eventually("a denial", LIMIT, || async {
            self.condition(name, "Denied").await.ok_or_else(|| approve.log_end())
        })
        .await;
        assert_eq!(denied["reason"], "EtcdTlsDenied");
        let status = self.status(name).await;
        assert!(status["certificate"].is_null(), "{status}");
        denied["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Asserts that a request is neither approved nor denied.
    pub async fn is_open(&self, name: &str) {
        for type_ in ["Approved", "Denied"] {
            assert_eq!(self.condition(name, type_).await, None, "{name}");
        }
    }
}

/// Both ways, of the issuer that leaves the approval to others.
pub fn ways(lab: &Lab) -> [Way<'_>; 2] {
    let way = |kind, namespace| {
        lab.grant(namespace, kind);
        Way { lab, kind, namespace, signer: lab.signer(namespace) }
    };
    [way(Kind::CertManager, "cm"), way(Kind::Signer, "csr")]
}

/// The arguments that name both issuers.
pub fn arguments(ways: &[Way<'_>]) -> Vec<String> {
    let of = |way: &Way<'_>| match way.kind {
        Kind::CertManager => format!("--approve-issuer=issuers.cert-manager.io/{}.company", way.namespace),
        Kind::Signer => format!("--approve-signer={}", way.signer),
    };
    ways.iter().map(of).collect()
}

/// Gives `approve` the verb of the same name on the issuer of each way.
pub fn let_approve_all(lab: &Lab, ways: &[Way<'_>]) {
    for way in ways {
        match way.kind {
            Kind::CertManager => {
                let_approve(lab, "cert-manager.io", &format!("issuers.cert-manager.io/{}.company", way.namespace));
            }
            Kind::Signer => let_approve(lab, "certificates.k8s.io", &way.signer),
        }
    }
}

/// An API server with a stand-in for cert-manager's webhook; `None`: it has none, and the test is skipped.
pub async fn lab() -> Option<Lab> {
    let lab = Lab::new().await?;
    if !CertManager::write_who_asks(&lab.api).await {
        tests::tier::skip_special(
            "the API server has no v1 MutatingAdmissionPolicy",
            "KUBEBUILDER_ASSETS=<Kubernetes 1.36 or later>",
        );
        return None;
    }
    Some(lab)
}

/// The annotation `issuer` of this way's pods.
pub fn issuer_of(way: &Way<'_>) -> String {
    match way.kind {
        Kind::CertManager => "cert-manager:Issuer/company".to_owned(),
        Kind::Signer => format!("csr:{}", way.signer),
    }
}
