//! An install with what an attacker may want: each account of ours as the bearer of its own token, requests of our and of
//! other signers, bundles, Secrets, Leases and bindings.

use std::time::Duration;

use base64::Engine;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, client_of},
    eventually,
};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The acting account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    Approve,
    Sign,
    /// Pod `etcd-0` in `prod`, by the token that kubelet mounts.
    Pod,
    /// May write ConfigMaps and pods in `prod`, and holds the marker right there.
    NamespaceAdmin,
    /// May write ConfigMaps and pods in `prod`.
    Editor,
    /// A host, of group `system:etcd-peers`.
    Host,
    /// `system:masters`.
    ClusterAdmin,
}

/// See the module.
pub struct Scene {
    pub api: ApiServer,
    approve: Client,
    sign: Client,
    pod: Client,
    namespace_admin: Client,
    editor: Client,
    host: Client,
    /// The pod's uid.
    pub uid: String,
    /// The resourceVersions of the Leases of approve and sign.
    pub leases: Vec<String>,
}

/// One call of the API.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: &'static str,
    pub path: String,
    pub content: &'static str,
    pub body: Value,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), content: "application/json", body: Value::Null }
    }

    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: "POST", path: path.into(), content: "application/json", body }
    }

    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self { method: "PUT", path: path.into(), content: "application/json", body }
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self { method: "DELETE", path: path.into(), content: "application/json", body: Value::Null }
    }

    pub fn merge(path: impl Into<String>, body: Value) -> Self {
        Self { method: "PATCH", path: path.into(), content: "application/merge-patch+json", body }
    }

    /// Server-side apply.
    pub fn apply(path: impl Into<String>, body: Value) -> Self {
        let path = format!("{}?fieldManager=test&force=true", path.into());
        Self { method: "PATCH", path, content: "application/apply-patch+yaml", body }
    }

    /// The same, and nothing is kept of it.
    pub fn dry(mut self) -> Self {
        self.path += if self.path.contains('?') { "&dryRun=All" } else { "?dryRun=All" };
        self
    }
}

pub const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
pub const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

impl Scene {
    /// `None`, having said so, where the machine has no API server.
    pub async fn new() -> Option<Self> {
        let api = ApiServer::start().await?;
        api.apply_kustomization("manifests");
        Some(Self::of(api).await)
    }

    /// On an API server that has the manifests.
    pub(super) async fn of(api: ApiServer) -> Self {
        api.namespace("prod", &[]).await;
        api.namespace("web", &[]).await;
        let pod = json!({
            "metadata": {"name": "etcd-0", "labels": {"etcd-tls.dev/injected": "true"},
                "annotations": {"etcd-tls.dev/roles": "client", "other": "x"}},
            "spec": {"containers": [{"name": "c", "image": "c"}]},
        });
        let pod: Pod = eventually("a pod", LIMIT, || api.pod("prod", pod.clone())).await;
        let uid = pod.metadata.uid.clone().expect("a uid");
        let system = "etcd-tls-system";
        let approve = api.client_with_token(&api.token(system, "etcd-tls-approve", None).await).await;
        let sign = api.client_with_token(&api.token(system, "etcd-tls-sign", None).await).await;
        let bound = api.client_with_token(&api.token("prod", "default", Some(&pod)).await).await;
        let namespace_admin = impersonating(&api, "anna", &["system:authenticated"]).await;
        let editor = impersonating(&api, "emil", &["system:authenticated"]).await;
        let host = impersonating(&api, "cp-1", &["system:etcd-peers", "system:authenticated"]).await;
        let mut scene = Self { api, approve, sign, pod: bound, namespace_admin, editor, host, uid, leases: Vec::new() };
        scene.furnish().await;
        scene
    }

    async fn furnish(&mut self) {
        let bind = |name: &str, role: &str, user: &str| {
            json!({
                "metadata": {"name": name}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
                "roleRef": {"kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io"},
            })
        };
        let bindings = format!("{RBAC}/namespaces/prod/rolebindings");
        let file = |path: &str| std::fs::read_to_string(tests::repository().join(path)).expect("a manifest");
        let lock = file("manifests/components/lease-lock/lease-lock.yaml");
        self.api.apply(
            &lock
                .replace(
                    "name: etcd-tls-lease-lock\n  labels",
                    "name: etcd-tls-lease-lock\n  namespace: prod\n  labels",
                )
                .replace("name: default}", "name: default, namespace: prod}"),
        );
        self.api.apply(&file("manifests/examples/self-hosted/rbac.yaml"));
        // The example's, for the pod's own service account.
        let agent = file("manifests/examples/secret/agent.yaml");
        let rbac = agent.split("\n---\n").filter(|document| document.contains("kind: Role"));
        let here = |document: &str| {
            document.replace("  name: etcd-client-tls\n", "  name: etcd-client-tls\n  namespace: prod\n")
        };
        for document in rbac.map(here) {
            self.api.apply(&document.replace(
                "{kind: ServiceAccount, name: etcd-client-tls}",
                "{kind: ServiceAccount, name: default, namespace: prod}",
            ));
        }
        let kept = secret("etcd-client-tls", "kubernetes.io/tls");
        self.admin(Call::post("/api/v1/namespaces/prod/secrets", kept)).await;
        // Without a controller manager, ClusterRole `admin` is not put together.
        let config_maps =
            json!({"apiGroups": [""], "resources": ["configmaps", "pods", "pods/status"], "verbs": ["*"]});
        let role = json!({"metadata": {"name": "config-maps"}, "rules": [config_maps]});
        self.admin(Call::post(format!("{RBAC}/clusterroles"), role)).await;
        for (name, role, user) in [
            ("anna", "config-maps", "anna"),
            ("anna-authorities", "etcd-tls-authorities", "anna"),
            ("emil", "config-maps", "emil"),
        ] {
            self.admin(Call::post(&bindings, bind(name, role, user))).await;
        }
        self.in_force().await;
        // As approve writes them.
        let as_approve = async |call: Call| {
            eventually("approve's rights", LIMIT, || self.call(Account::Approve, call.clone())).await;
        };
        as_approve(Call::apply(format!("{bindings}/etcd-tls-sign"), trust_binding("prod", sign_subject()))).await;
        let accounts =
            json!([{"kind": "Group", "name": "system:serviceaccounts:prod", "apiGroup": "rbac.authorization.k8s.io"}]);
        let roles = format!("{RBAC}/namespaces/prod/roles");
        as_approve(Call::apply(
            format!("{roles}/etcd-tls-trust-reader"),
            reader_role("prod", &["etcd-tls-trust-etcd"]),
        ))
        .await;
        as_approve(Call::apply(format!("{bindings}/etcd-tls-trust-reader"), reader_binding("prod", accounts))).await;
        as_approve(Call::apply(
            format!("{RBAC}/clusterrolebindings/etcd-tls-requesters"),
            requesters(json!([
                {"kind": "ServiceAccount", "name": "default", "namespace": "prod"},
            ])),
        ))
        .await;
        // As sign writes them, once its right is there.
        let as_sign = async |call: Call| {
            eventually("sign's rights", LIMIT, || self.call(Account::Sign, call.clone())).await;
        };
        as_sign(Call::post("/api/v1/namespaces/prod/configmaps", trust_bundle("etcd-tls-trust-etcd"))).await;
        as_sign(Call::post("/api/v1/namespaces/etcd-tls-system/secrets", secret(CA, "kubernetes.io/tls"))).await;
        let mut leases = Vec::new();
        for (account, name) in [(Account::Approve, "etcd-tls-approve"), (Account::Sign, "etcd-tls-sign")] {
            let call = Call::post("/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases", lease(name, 12));
            let made = eventually("a Lease", LIMIT, || self.call(account, call.clone())).await;
            leases.push(made["metadata"]["resourceVersion"].as_str().expect("a version").to_owned());
        }
        self.admin(Call::post("/api/v1/namespaces/etcd-tls-system/secrets", secret("other", "Opaque"))).await;
        self.admin(Call::post(
            "/api/v1/namespaces/prod/configmaps",
            json!({"metadata": {"name": "app"}, "data": {"a": "1"}}),
        ))
        .await;
        self.admin(Call::post("/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases", lease("other", 12)))
            .await;
        let theirs = request("theirs", "kubernetes.io/kube-apiserver-client");
        self.admin(Call::post(CSRS, theirs)).await;
        let asked = self.request("0");
        eventually("the right to request", LIMIT, || self.call(Account::Pod, Call::post(CSRS, asked.clone()))).await;
        self.call(Account::Pod, Call::post(CSRS, self.request("approved"))).await.expect("a request");
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "EtcdTlsApproved", "message": "m"}]}});
        let approval = format!("{CSRS}/{}/approval", self.csr("approved"));
        self.call(Account::Approve, Call::merge(approval, approved)).await.expect("an approval");
        self.leases = leases;
    }

    /// Waits for rights and policies to be in force, each shown by what it refuses.
    async fn in_force(&self) {
        let system = "/api/v1/namespaces/etcd-tls-system";
        let bad_event = event("x", "prod");
        let bad_request = json!({"metadata": {"labels": {"etcd-tls.dev/x": "x"}}});
        let bad_webhook = json!({"metadata": {"annotations": {"a": "b"}}});
        self.admin(Call::post(CSRS, request("etcd-tls-early", "peer.etcd-tls.dev/prod.etcd"))).await;
        let webhooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/etcd-tls";
        let bindings = format!("{RBAC}/namespaces/web/rolebindings/etcd-tls-sign");
        let leases = "/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases";
        for (policy, account, call) in [
            ("bindings", Account::Approve, Call::apply(bindings, trust_binding("web", json!([])))),
            ("events", Account::Approve, Call::post("/apis/events.k8s.io/v1/namespaces/prod/events", bad_event)),
            ("leases", Account::Sign, Call::post(leases, lease("x", 12))),
            (
                "pods",
                Account::Editor,
                Call::merge("/api/v1/namespaces/prod/pods/etcd-0", json!({"metadata": {"labels": {"etcd-tls": "x"}}})),
            ),
            ("requests", Account::Pod, Call::post(CSRS, request("x", "peer.etcd-tls.dev/prod.etcd"))),
            ("request-writes", Account::Approve, Call::merge(format!("{CSRS}/etcd-tls-early/approval"), bad_request)),
            ("secrets", Account::Sign, Call::post(format!("{system}/secrets"), secret("x", "kubernetes.io/tls"))),
            (
                "trust",
                Account::Editor,
                Call::post("/api/v1/namespaces/prod/configmaps", trust_bundle("etcd-tls-trust-x")),
            ),
            ("webhooks", Account::Sign, Call::merge(webhooks, bad_webhook)),
        ] {
            if policy == "requests" {
                let everyone =
                    json!({"subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "prod"}]});
                self.admin(Call::merge(format!("{RBAC}/clusterrolebindings/etcd-tls-requesters"), everyone)).await;
            }
            let call = call.dry();
            eventually(&format!("policy etcd-tls-{policy}"), LIMIT, || async {
                match self.call(account, call.clone()).await {
                    Err(error) if error.contains(&format!("ValidatingAdmissionPolicy 'etcd-tls-{policy}'")) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
    }

    /// A request that the pod may make.
    pub fn request(&self, key: &str) -> Value {
        request(&self.csr(key), "peer.etcd-tls.dev/prod.etcd")
    }

    /// The name of the pod's request.
    pub fn csr(&self, key: &str) -> String {
        format!("etcd-tls-{}-peer-{key}", self.uid)
    }

    /// A call that must succeed, as cluster-admin.
    pub async fn admin(&self, call: Call) -> Value {
        let path = call.path.clone();
        self.call(Account::ClusterAdmin, call).await.unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The client that is the account.
    pub fn client(&self, account: Account) -> &Client {
        match account {
            Account::Approve => &self.approve,
            Account::Sign => &self.sign,
            Account::Pod => &self.pod,
            Account::NamespaceAdmin => &self.namespace_admin,
            Account::Editor => &self.editor,
            Account::Host => &self.host,
            Account::ClusterAdmin => &self.api.client,
        }
    }

    /// The answer, or the status code with the message.
    pub async fn call(&self, account: Account, call: Call) -> Result<Value, String> {
        send(self.client(account), call).await.map(|(_, value)| value)
    }

    /// The API server's own metrics.
    pub async fn metrics(&self) -> String {
        let request = hyper::Request::get("/metrics").body(Vec::new()).expect("a request");
        self.api.client.request_text(request).await.expect("metrics")
    }
}

/// Sends a call; the headers and the body of the answer.
pub async fn send(client: &Client, call: Call) -> Result<(hyper::HeaderMap, Value), String> {
    let body = if call.body.is_null() { Vec::new() } else { call.body.to_string().into_bytes() };
    let request = hyper::Request::builder()
        .method(call.method)
        .uri(&call.path)
        .header("content-type", call.content)
        .header("user-agent", "test")
        .body(kube::client::Body::from(body))
        .expect("a request");
    let response = client.send(request).await.map_err(|e| e.to_string())?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if parts.status.is_success() {
        return Ok((parts.headers, value));
    }
    Err(format!("{} {}", parts.status.as_u16(), value["message"].as_str().unwrap_or_default()))
}

pub async fn impersonating(api: &ApiServer, user: &str, groups: &[&str]) -> Client {
    let text = std::fs::read_to_string(&api.kubeconfig).expect("a kubeconfig");
    let mut kubeconfig: Value = serde_json::from_str(&text).expect("JSON");
    kubeconfig["users"][0]["user"]["as"] = user.into();
    kubeconfig["users"][0]["user"]["as-groups"] = groups.into();
    let path = api.directory().join(format!("{user}.kubeconfig"));
    std::fs::write(&path, kubeconfig.to_string()).expect("write a kubeconfig");
    let client = client_of(&path).await;
    std::fs::remove_file(&path).expect("remove a kubeconfig");
    client
}

/// The Secret of an authority.
pub const CA: &str = "etcd-tls-ca-7d4c1f9e-0000-4000-8000-000000000000-etcd-peer";

pub fn secret(name: &str, type_: &str) -> Value {
    json!({"metadata": {"name": name}, "type": type_, "stringData": {"tls.crt": "c", "tls.key": "k"}})
}

pub fn lease(name: &str, seconds: i64) -> Value {
    json!({"metadata": {"name": name}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": seconds}})
}

pub fn trust_bundle(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"peer.crt": "bundle"}})
}

pub fn sign_subject() -> Value {
    json!([{"kind": "ServiceAccount", "name": "etcd-tls-sign", "namespace": "etcd-tls-system"}])
}

pub fn trust_binding(namespace: &str, subjects: Value) -> Value {
    role_binding(namespace, json!({"kind": "ClusterRole", "name": "etcd-tls-trust"}), subjects)
}

pub fn role_binding(namespace: &str, mut role: Value, subjects: Value) -> Value {
    role["apiGroup"] = "rbac.authorization.k8s.io".into();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "etcd-tls-sign", "namespace": namespace, "labels": {"app.kubernetes.io/name": "etcd-tls"}},
        "roleRef": role, "subjects": subjects,
    })
}

/// The Role of those who watch trust.
pub fn reader_role(namespace: &str, names: &[&str]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "etcd-tls-trust-reader", "namespace": namespace, "labels": {"app.kubernetes.io/name": "etcd-tls"}},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": names, "verbs": ["get", "watch"]}],
    })
}

/// The binding of that Role.
pub fn reader_binding(namespace: &str, subjects: Value) -> Value {
    let mut binding = role_binding(namespace, json!({"kind": "Role", "name": "etcd-tls-trust-reader"}), subjects);
    binding["metadata"]["name"] = "etcd-tls-trust-reader".into();
    binding
}

pub fn requesters(subjects: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "etcd-tls-requesters"}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "etcd-tls-requester"},
    })
}

pub fn request(name: &str, signer: &str) -> Value {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let pem = rcgen::CertificateParams::default().serialize_request(&pair).expect("a request").pem().expect("PEM");
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "signerName": signer,
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "usages": ["digital signature", "client auth", "server auth"],
            "expirationSeconds": 86400,
        },
    })
}

pub fn event(controller: &str, namespace: &str) -> Value {
    json!({
        "metadata": {"generateName": "e-", "namespace": namespace}, "action": "Certify", "reason": "Test", "type": "Warning",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": controller, "reportingInstance": "x",
        "note": "n", "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "etcd-0", "namespace": namespace},
    })
}
