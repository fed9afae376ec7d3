//! Signers with the shipped rights, members of clusters, and a look at what is issued and published.

use std::process::Command;

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    names::{self, SYSTEM_NAMESPACE},
    role::Role,
};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::CertificateSigningRequest as Csr,
        core::v1::{ConfigMap, Namespace, Pod, Secret},
    },
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    eventually, ports,
    process::{Process, binary},
};

use crate::lab::{Asking, LIMIT, Lab};

/// Starts a signer with the rights of its service account and no others.
pub async fn sign(lab: &Lab, identity: &str, arguments: &[&str]) -> Process {
    sign_at(lab, identity, &lab.api.url, arguments).await
}

/// A signer whose API server is at `url`.
pub async fn sign_at(lab: &Lab, identity: &str, url: &str, arguments: &[&str]) -> Process {
    sign_with(lab, identity, url, ports::loopback(), arguments).await
}

/// [`sign_at`], with this port of loopback for metrics.
pub async fn sign_with(lab: &Lab, identity: &str, url: &str, admin: u16, arguments: &[&str]) -> Process {
    sign_in(lab, identity, url, admin, arguments, &[]).await
}

/// [`sign_with`], with more environment, such as another clock.
pub async fn sign_in(
    lab: &Lab,
    identity: &str,
    url: &str,
    admin: u16,
    arguments: &[&str],
    environment: &[(String, String)],
) -> Process {
    let token = lab.api.token(SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    let kubeconfig = lab.api.token_kubeconfig(identity, &token);
    let text = std::fs::read_to_string(&kubeconfig).expect("read a kubeconfig").replace(&lab.api.url, url);
    std::fs::write(&kubeconfig, text).expect("write a kubeconfig");
    let admin = format!("127.0.0.1:{admin}");
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.arg("sign").args(["--identity", identity, "--admin-address", &admin]).args(arguments);
    command.env_clear().env("KUBECONFIG", kubeconfig).env("ETCD_TLS_LOG_LEVEL", "info,etcd_tls_webhook=debug");
    command.envs(environment.iter().cloned());
    Process::spawn(identity, &mut command, lab.api.directory().path())
}

/// A pod as admission leaves it.
pub async fn member(lab: &Lab, namespace: &str, name: &str, ip: Option<&str>) -> Pod {
    member_of(lab, namespace, "default", name, ip).await
}

/// [`member`], of this service account.
pub async fn member_of(lab: &Lab, namespace: &str, account: &str, name: &str, ip: Option<&str>) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "etcd"}, "annotations": {}},
        "spec": {
            "serviceAccountName": account,
            "containers": [{"name": "etcd", "image": "etcd"}],
            "initContainers": [{"name": names::SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
        },
    });
    let pod = eventually("a pod", LIMIT, || lab.api.pod(namespace, pod.clone())).await;
    match ip {
        Some(ip) => lab.api.set_pod_ips(namespace, name, &[ip.parse().expect("an address")]).await,
        None => pod,
    }
}

/// The bundles of a cluster, peer, client and metrics, once they are published.
pub async fn trust(lab: &Lab, namespace: &str, cluster: &str) -> [Bundle; 3] {
    eventually("published trust", LIMIT, || async {
        let api: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), namespace);
        let object = api.get(&names::trust_config_map(cluster)).await.map_err(|e| e.to_string())?;
        let data = object.data.unwrap_or_default();
        let read = |key: &str| {
            Bundle::parse(data.get(key).ok_or("no such key")?.as_bytes()).map_err(|e| format!("{key}: {e}"))
        };
        Ok::<_, String>([read("peer.crt")?, read("client.crt")?, read("metrics.crt")?])
    })
    .await
}

/// Whether a key of the trust ConfigMap is `wanted`.
pub async fn bundle(lab: &Lab, namespace: &str, cluster: &str, key: &str, wanted: &Bundle) -> Result<(), String> {
    let api: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), namespace);
    let object = api.get(&names::trust_config_map(cluster)).await.map_err(|e| e.to_string())?;
    let text = object.data.unwrap_or_default().remove(key).ok_or("no such key")?;
    if text == wanted.to_pem() { Ok(()) } else { Err(text) }
}

/// Alters a trust ConfigMap, as its namespace's owner may.
pub async fn write_trust(lab: &Lab, namespace: &str, cluster: &str, patch: Value) {
    let api: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), namespace);
    let name = names::trust_config_map(cluster);
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("alter a ConfigMap");
}

/// The names of the Secrets with the CAs of a namespace's clusters.
pub async fn cas(lab: &Lab, namespace: &str) -> Vec<String> {
    let api: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let all = api.list(&ListParams::default().labels("app.kubernetes.io/component=certificate-authority")).await;
    let of = |secret: &Secret| {
        secret.annotations().get("etcd-tls.dev/signer").is_some_and(|s| s.contains(&format!("/{namespace}.")))
    };
    all.expect("list Secrets").into_iter().filter(of).map(|s| s.name_any()).collect()
}

/// The content of Secrets.
pub async fn secrets_text(lab: &Lab, names: &[String]) -> String {
    let api: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let mut text = String::new();
    for name in names {
        for value in api.get(name).await.expect("a Secret").data.unwrap_or_default().into_values() {
            text += &String::from_utf8_lossy(&value.0);
        }
    }
    text
}

pub async fn certificate(lab: &Lab, name: &str) -> Option<Vec<u8>> {
    let csr: Csr = Api::all(lab.api.client.clone()).get_opt(name).await.expect("look for a request")?;
    csr.status.and_then(|s| s.certificate).map(|c| c.0)
}

/// The certificate issued on a request.
pub async fn issued(lab: &Lab, name: &str) -> Chain {
    let pem = eventually(&format!("a certificate on {name}"), LIMIT, || async {
        let status = lab.csr(name).await.status;
        certificate(lab, name).await.ok_or_else(|| format!("{status:?}"))
    })
    .await;
    Chain::parse(&pem).expect("a chain")
}

/// Asks for a certificate and gets it. `trusts` is what etcd is said to have loaded.
pub async fn issue(lab: &Lab, pod: &Pod, role: Role, trusts: Option<&str>) -> (String, Chain) {
    let asking = Asking::of(pod, role);
    let asking = match trusts {
        Some(digest) => asking.trusts(digest),
        None => asking,
    };
    asking.create_when_allowed(&lab.requester(pod).await).await;
    let chain = issued(lab, &asking.name).await;
    (asking.name, chain)
}

pub async fn csrs(lab: &Lab) -> Vec<Csr> {
    Api::all(lab.api.client.clone()).list(&ListParams::default()).await.expect("list requests").items
}

pub fn has(csr: &Csr, type_: &str) -> bool {
    csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == type_)
}

/// Approves by hand what nobody has decided yet.
pub async fn approve_if_pending(lab: &Lab, name: &str) {
    let csr = lab.csr(name).await;
    if !has(&csr, "Denied") {
        let api: Api<Csr> = Api::all(lab.api.client.clone());
        let patch = json!({
            "metadata": {"resourceVersion": csr.resource_version()},
            "status": {"conditions": [{"type": "Approved", "status": "True", "reason": "ByHand"}]},
        });
        let _ = api.patch_approval(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    }
}

/// Waits until a request is refused, by whomever; gives the condition and its message.
pub async fn refused(lab: &Lab, name: &str) -> (String, String) {
    eventually(&format!("{name} to be refused"), LIMIT, || async {
        let csr = lab.csr(name).await;
        let status = csr.status.unwrap_or_default();
        assert!(status.certificate.is_none(), "{name} was signed");
        let conditions = status.conditions.unwrap_or_default();
        conditions
            .into_iter()
            .find(|c| c.type_ == "Failed" || c.type_ == "Denied")
            .map(|c| (c.type_, c.message.unwrap_or_default()))
            .ok_or("not yet")
    })
    .await
}

/// Deletes a namespace, as its controller would: nothing else empties it here.
pub async fn delete_namespace(lab: &Lab, name: &str) {
    let namespaces: Api<Namespace> = Api::all(lab.api.client.clone());
    namespaces.delete(name, &DeleteParams::default()).await.expect("delete a namespace");
    let config_maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), name);
    config_maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("empty a namespace");
    let finalize =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}});
    let request = hyper::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header("Content-Type", "application/json")
        .body(finalize.to_string().into_bytes())
        .expect("a request");
    lab.api.client.request::<Namespace>(request).await.expect("finalize a namespace");
    eventually("a namespace to be gone", LIMIT, || async {
        match namespaces.get_opt(name).await.map_err(|e| e.to_string())? {
            None => Ok(()),
            Some(_) => Err("still there".to_owned()),
        }
    })
    .await;
}

/// Makes a namespace again, in which its predecessor's service account is left: no controller empties it here.
pub async fn namespace_again(lab: &Lab, name: &str) {
    let namespace = json!({"metadata": {"name": name, "labels": {names::LABEL: names::DYNAMIC}}});
    let namespaces: Api<Namespace> = Api::all(lab.api.client.clone());
    namespaces.create(&PostParams::default(), &from_json(namespace)).await.expect("create a namespace");
}

/// `etcd-tls-webhook rollover roll/etcd --domain peer …` as cluster-admin: its output, or its error.
pub fn rollover(lab: &Lab, arguments: &[&str]) -> Result<String, String> {
    rollover_of_all(lab, &[&["--domain", "peer"], arguments].concat())
}

/// The same without `--domain`.
pub fn rollover_of_all(lab: &Lab, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["rollover", "roll/etcd"]).args(arguments).env("KUBECONFIG", &lab.api.kubeconfig);
    let output = command.output().expect("run the command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Follows that rollover with `--watch` until it is over.
pub fn watch_rollover(lab: &Lab) -> Process {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["rollover", "roll/etcd", "--domain", "peer", "--status", "--watch"]);
    Process::spawn("watch", command.env("KUBECONFIG", &lab.api.kubeconfig), lab.api.directory().path())
}

/// Waits until the command's status names `what` as waited for.
pub async fn waits_for(lab: &Lab, what: &str) {
    status(lab, &format!("waits for pod {what}")).await;
}

/// Waits until the command's status names this phase.
pub async fn phase(lab: &Lab, phase: &str) {
    status(lab, &format!("roll/etcd peer: {phase}")).await;
}

async fn status(lab: &Lab, text: &str) {
    eventually(&format!("--status to say {text:?}"), LIMIT, || async {
        let said = rollover(lab, &["--status"])?;
        if said.contains(text) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// A user's CA: an intermediate under a root.
pub struct Given {
    pub pem: String,
    pub key_pem: String,
    pub root: Bundle,
}

pub fn chain(name: &str) -> Given {
    let params = |name: String| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let root_params = params(format!("{name} root"));
    let root = root_params.self_signed(&root_key).expect("a root");
    let issuing = params(format!("{name} issuing"))
        .signed_by(&key, &Issuer::from_params(&root_params, &root_key))
        .expect("an intermediate");
    Given {
        pem: issuing.pem() + &root.pem(),
        key_pem: key.serialize_pem(),
        root: Bundle::parse(root.pem().as_bytes()).expect("a bundle"),
    }
}

/// Writes a user's CA.
pub async fn give(lab: &Lab, name: &str, certificate: &str, key: &str) {
    let api: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let data = json!({"tls.crt": ByteString(certificate.into()), "tls.key": ByteString(key.into())});
    let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/tls", "data": data});
    if api.get_opt(name).await.expect("look for a Secret").is_some() {
        api.patch(name, &PatchParams::default(), &Patch::Merge(secret)).await.expect("replace a Secret");
    } else {
        api.create(&PostParams::default(), &from_json(secret)).await.expect("create a Secret");
    }
}

/// The issuer's name of a leaf, as its bytes.
pub fn issuer(chain: &Chain) -> Vec<u8> {
    use x509_cert::der::{Decode as _, Encode as _};
    let leaf = x509_cert::Certificate::from_der(&chain.certificates[0]).expect("a certificate");
    leaf.tbs_certificate().issuer().to_der().expect("a name")
}
