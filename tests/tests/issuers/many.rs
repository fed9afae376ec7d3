//! A thousand requests at once to one issuer: each is answered, and `sign` leaves none. With `ETCD_TLS_SOAK`, 3,000.

use std::collections::BTreeSet;

use etcd_tls_contract::{
    csr::{PrivateKey, key_digest},
    identity,
    key::KeyAlgorithm,
    names,
    role::Role,
    san::Sans,
};
use futures::{StreamExt as _, stream};
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use tests::{apiserver::from_json, cert_manager::resource, eventually, say, tier};

use crate::{
    cleaning::sign,
    scene::{Kind, LIMIT, Lab},
};

const ROLES: [Role; 2] = [Role::Peer, Role::Server];
/// As many of one pod and role stay, in any state.
const EACH: usize = 4;
/// Pods and requests that are made at once.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_are_answered_and_none_is_left() {
    let Some(lab) = Lab::new().await else { return };
    of_each_kind(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_to_cert_manager_itself_are_answered_and_none_is_left() {
    let Some(lab) = Lab::of_cert_manager_itself().await else { return };
    lab.grant_reference("csr");
    of_each_kind(&lab).await;
}

async fn of_each_kind(lab: &Lab) {
    for (namespace, kind) in [("cm", Kind::CertManager), ("csr", Kind::Signer)] {
        let many = Many { lab, namespace, kind, pods: if tier::soaking() { 375 } else { 125 } };
        let all = many.pods * ROLES.len() * EACH;
        lab.grant(namespace, kind);
        let _issuer = lab.issuer(namespace);
        let made = many.make().await;
        assert_eq!(made.len(), all);
        eventually("each to be answered", LIMIT, || async {
            let answered = many.answered().await?;
            if answered == made { Ok(()) } else { Err(format!("{} of {all} are answered", answered.len())) }
        })
        .await;
        let mut sign = sign(lab).await;
        eventually("none to be left", LIMIT, || async {
            let left = many.list().await?.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} of {all}: {}", sign.log_end())) }
        })
        .await;
        assert!(sign.running(), "{}", sign.log());
        sign.kill();
        say(&format!("{kind:?}: {all} requests answered and deleted"));
    }
}

struct Many<'a> {
    lab: &'a Lab,
    namespace: &'a str,
    kind: Kind,
    pods: usize,
}

impl Many<'_> {
    /// The names of the requests of all pods, made with the token of each.
    async fn make(&self) -> BTreeSet<String> {
        let pods = stream::iter(0..self.pods).map(|n| self.requests_of_pod(n)).buffer_unordered(AT_ONCE);
        pods.collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    async fn requests_of_pod(&self, n: usize) -> Vec<String> {
        let pod = self.lab.pod(self.namespace, &format!("etcd-{n}")).await;
        let (pod_name, uid) = (pod.name_any(), pod.uid().expect("a uid"));
        let api = &self.lab.api;
        let client = api.client_with_token(&api.token(self.namespace, "default", Some(&pod)).await).await;
        let signing: Api<CertificateSigningRequest> = Api::all(client.clone());
        let requests: Api<DynamicObject> = Api::namespaced_with(client, self.namespace, &resource());
        let mut names = Vec::new();
        for role in ROLES.into_iter().cycle().take(ROLES.len() * EACH) {
            let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("make a key");
            let sans: Sans = "10.0.0.1,localhost".parse().expect("names");
            let common_name = format!("system:etcd-{}:{pod_name}", role.as_str());
            let pem = key.request(role.organization(), &common_name, &sans).expect("make a request");
            let name = names::csr_name(&uid, role, &key_digest(&key.public_key()));
            let (pem, usages) = (ByteString(pem.into_bytes()), identity::usages(role));
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": uid});
            let object = match self.kind {
                Kind::CertManager => json!({
                    "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
                    "metadata": {"name": name, "ownerReferences": [owner]},
                    "spec": {"request": pem, "duration": "24h", "usages": usages, "issuerRef": {"name": "company"}},
                }),
                Kind::Signer => json!({
                    "metadata": {"name": name},
                    "spec": {
                        "request": pem, "expirationSeconds": 86_400, "usages": usages,
                        "signerName": self.lab.signer(self.namespace),
                    },
                }),
            };
            // The first ones come before the right to request is in force, and some find the API server's queue full.
            eventually("a request", LIMIT, || async {
                let params = PostParams::default();
                match self.kind {
                    Kind::CertManager => requests.create(&params, &from_json(object.clone())).await.map(drop),
                    Kind::Signer => signing.create(&params, &from_json(object.clone())).await.map(drop),
                }
            })
            .await;
            names.push(name);
        }
        names
    }

    /// All requests of pods, as JSON.
    async fn list(&self) -> Result<Vec<Value>, String> {
        let (all, client) = (ListParams::default(), self.lab.api.client.clone());
        let of = |e: kube::Error| e.to_string();
        let items: Vec<Value> = match self.kind {
            Kind::CertManager => {
                let api: Api<DynamicObject> = Api::namespaced_with(client, self.namespace, &resource());
                let items = api.list(&all).await.map_err(of)?.items;
                items.iter().map(|item| serde_json::to_value(item).expect("JSON")).collect()
            }
            Kind::Signer => {
                let items = Api::<CertificateSigningRequest>::all(client).list(&all).await.map_err(of)?.items;
                items.iter().map(|item| serde_json::to_value(item).expect("JSON")).collect()
            }
        };
        Ok(items)
    }

    /// The names of those that have their certificate.
    async fn answered(&self) -> Result<BTreeSet<String>, String> {
        let items = self.list().await?;
        let answered = items.iter().filter(|item| item["status"]["certificate"].is_string());
        Ok(answered.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }
}
