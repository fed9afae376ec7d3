//! An honest pod's requests beside an attack, in turns with the same writes by hand: create, approve, write the status, and nobody
//! watches, judges or signs.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_tls_contract::role::Role;
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest as Csr, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::from_json,
    eventually,
    pki::{Ca, LeafOptions},
};

use crate::{
    lab::{Asking, LIMIT, Lab},
    signer::issued,
};

/// How much longer than by hand a request may take, unless the writes by hand take longer than this themselves.
const MORE: Duration = Duration::from_secs(1);
/// The namespace and the account that write by hand. An API server lets administrators pass its queues, but no service account.
const WRITER: &str = "by-hand";
/// A signer that nobody answers for.
const NOBODYS: &str = "by-hand.example.com/test";

/// See the module.
pub struct Beside<'a> {
    lab: &'a Lab,
    pod: &'a Pod,
    requester: Client,
    writer: Client,
    certificate: String,
    /// For each turn, the pod's request and the writes by hand.
    turns: Vec<[Duration; 2]>,
}

impl<'a> Beside<'a> {
    /// `pod` may request already.
    pub async fn new(lab: &'a Lab, pod: &'a Pod) -> Self {
        let csrs = |resources: &[&str], verbs: &[&str]| json!({"apiGroups": ["certificates.k8s.io"], "resources": resources, "verbs": verbs});
        let rbac = "rbac.authorization.k8s.io";
        let role = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": WRITER},
            "rules": [
                csrs(&["certificatesigningrequests"], &["create"]),
                csrs(&["certificatesigningrequests/approval", "certificatesigningrequests/status"], &["patch"]),
                {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [NOBODYS], "verbs": ["approve", "sign"]},
            ],
        });
        let binding = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": WRITER},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": WRITER},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": WRITER}],
        });
        lab.api.namespace(WRITER, &[]).await;
        lab.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]}).to_string());
        let token = lab.api.token(WRITER, "default", None).await;
        let mut beside = Self {
            lab,
            pod,
            requester: lab.requester(pod).await,
            writer: lab.api.client_with_token(&token).await,
            certificate: STANDARD.encode(Ca::new(WRITER).leaf(&LeafOptions::default()).cert),
            turns: Vec::new(),
        };
        // The connections, and the writer's rights.
        beside.turn(Role::Server).await;
        beside.turns.clear();
        beside
    }

    /// One request for `role`, and the same writes by hand.
    pub async fn turn(&mut self, role: Role) {
        let asking = Asking::of(self.pod, role);
        let began = Instant::now();
        asking.create_when_allowed(&self.requester).await;
        issued(self.lab, &asking.name).await;
        let own = began.elapsed();
        let by_hand = self.by_hand().await;
        self.turns.push([own, by_hand]);
    }

    async fn by_hand(&self) -> Duration {
        let api: Api<Csr> = Api::all(self.writer.clone());
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
        let (name, params) = (WRITER, PatchParams::default());
        let object: Csr = from_json(json!({
            "metadata": {"name": name},
            "spec": {
                "request": STANDARD.encode(pem), "signerName": NOBODYS, "usages": ["digital signature", "server auth"],
                "expirationSeconds": 86_400,
            },
        }));
        let condition = json!({"type": "Approved", "status": "True", "reason": "ByHand", "message": "m"});
        let approval: Patch<Value> = Patch::Merge(json!({"status": {"conditions": [condition]}}));
        let status: Patch<Value> = Patch::Merge(json!({"status": {"certificate": self.certificate}}));
        let began = Instant::now();
        // Where the API server has no room, it says 429 to all.
        let made = PostParams::default();
        eventually("to create by hand", LIMIT, || api.create(&made, &object)).await;
        eventually("to approve by hand", LIMIT, || api.patch_approval(name, &params, &approval)).await;
        eventually("to sign by hand", LIMIT, || api.patch_status(name, &params, &status)).await;
        let took = began.elapsed();
        let all: Api<Csr> = Api::all(self.lab.api.client.clone());
        all.delete(name, &DeleteParams::default()).await.expect("delete what was made by hand");
        took
    }

    /// The longest of the pod's requests.
    pub fn longest(&self) -> Duration {
        self.turns.iter().map(|[own, _]| *own).max().expect("a turn")
    }

    /// The pod's requests were served within a second of the writes by hand. A machine that does other work holds up some, and so
    /// the best quarter of them counts. On one where the writes by hand take more than a second in the middle, a request may take as
    /// long again: what is promised there is that it takes no more than about twice as long, and not the second.
    pub fn within_a_second(&self) {
        let median = |of: usize| {
            let mut all: Vec<_> = self.turns.iter().map(|turn| turn[of]).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let mut more: Vec<_> = self.turns.iter().map(|[own, by_hand]| own.saturating_sub(*by_hand)).collect();
        more.sort_unstable();
        println!(
            "{} honest requests: {:?} in the middle, {:?} by hand; {:?} to {:?} more, {:?} in the middle",
            more.len(),
            median(0),
            median(1),
            more[0],
            more[more.len() - 1],
            more[more.len() / 2],
        );
        assert!(more[(more.len() - 1) / 4] <= MORE.max(median(1)), "{:?}", self.turns);
    }
}
