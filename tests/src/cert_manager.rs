//! A stand-in for cert-manager on a real API server: the CustomResourceDefinition of CertificateRequests, and a controller
//! that does what cert-manager's default approver and CA issuer do. Conditions, reasons and fields are those of its
//! documentation. It answers CertificateSigningRequests of one foreign signer as well, by the same behaviour. Where the machine
//! has cert-manager, [`itself`] runs that behind the same interface.

pub mod itself;
pub mod programs;
pub mod step;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{csr::Request, san::Sans};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    apiserver::{ApiServer, from_json},
    eventually,
    pki::{Ca, LeafOptions},
};

/// How long the API server may take to serve the resource.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How the stand-in treats unanswered requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Approves and signs.
    Sign,
    /// Approves and signs for this lifetime, not the requested one.
    Life(Duration),
    /// Does nothing: it is away.
    Away,
    /// Approves, and says that the issuer is not ready yet.
    Pending,
    /// The approver denies.
    Deny(String),
    /// The issuer fails for good.
    Fail(String),
    /// The issuer says that the request is invalid; only CertificateRequests have that.
    Invalid(String),
    /// The issuer answers with this instead of a certificate; where it is empty, with none.
    Rubbish(String),
    /// The issuer answers with a certificate of another key.
    AnotherKey,
    /// The issuer leaves out the addresses.
    Forget,
    /// Approves and signs; `status.ca` is empty, as with issuers that know no CA.
    NoCa,
}

/// An issuer of one namespace; dropped, it ends.
pub struct CertManager(Back);

enum Back {
    StandIn(StandIn),
    Itself(Box<itself::Issuer>),
}

struct StandIn {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

struct State {
    behaviour: Behaviour,
    authority: Authority,
    signer: String,
    /// Whether it approves what it signs.
    approves: bool,
}

/// The CA of an issuer.
struct Authority {
    ca: Ca,
    /// The root that has signed it, where it is an intermediate; PEM.
    root: Option<String>,
}

impl Authority {
    fn new(name: &str) -> Self {
        Self { ca: Ca::new(name), root: None }
    }

    fn below(root: &str) -> Self {
        let root = Ca::new(root);
        Self { ca: root.below("intermediate CA"), root: Some(root.pem) }
    }

    /// What a bundle has to hold; PEM.
    fn anchor(&self) -> &str {
        self.root.as_deref().unwrap_or(&self.ca.pem)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The resource.
pub fn resource() -> ApiResource {
    ApiResource {
        group: "cert-manager.io".into(),
        version: "v1".into(),
        api_version: "cert-manager.io/v1".into(),
        kind: "CertificateRequest".into(),
        plural: "certificaterequests".into(),
    }
}

/// The definition, with the fields that a request of ours or an answer has, and `isCA` and the requester's identity, which
/// must not be believed.
fn definition() -> Value {
    let string = json!({"type": "string"});
    let bytes = json!({"type": "string", "format": "byte"});
    let strings = json!({"type": "array", "items": string});
    let condition = json!({
        "type": "object", "required": ["status", "type"],
        "properties": {
            "type": string, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": string, "message": string, "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    });
    let spec = json!({
        "type": "object", "required": ["issuerRef", "request"],
        "properties": {
            "request": bytes, "duration": string, "isCA": {"type": "boolean"}, "usages": strings,
            "issuerRef": {"type": "object", "required": ["name"], "properties": {"name": string, "kind": string, "group": string}},
            "username": string, "uid": string, "groups": strings,
            "extra": {"type": "object", "additionalProperties": strings},
        },
    });
    let status = json!({
        "type": "object",
        "properties": {
            "certificate": bytes, "ca": bytes, "failureTime": {"type": "string", "format": "date-time"},
            "conditions": {"type": "array", "items": condition, "x-kubernetes-list-map-keys": ["type"], "x-kubernetes-list-type": "map"},
        },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificaterequests.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io", "scope": "Namespaced",
            "names": {"kind": "CertificateRequest", "listKind": "CertificateRequestList", "plural": "certificaterequests", "singular": "certificaterequest", "shortNames": ["cr", "crs"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "apiVersion": string, "kind": string, "metadata": {"type": "object"}, "spec": spec, "status": status,
                }}},
            }],
        },
    })
}

impl CertManager {
    /// Installs the resource.
    pub async fn install(api: &ApiServer) {
        api.apply(&definition().to_string());
        let requests: Api<DynamicObject> = Api::all_with(api.client.clone(), &resource());
        let all = ListParams::default();
        eventually("CertificateRequests to be served", LIMIT, || requests.list(&all)).await;
    }

    /// Writes who asks into each new CertificateRequest, as cert-manager's webhook does. `false`: the API server has no
    /// MutatingAdmissionPolicy.
    pub async fn write_who_asks(api: &ApiServer) -> bool {
        let group = "admissionregistration.k8s.io";
        let served = api.client.list_api_group_resources(&format!("{group}/v1")).await.expect("the API's resources");
        if !served.resources.iter().any(|resource| resource.kind == "MutatingAdmissionPolicy") {
            return false;
        }
        let fields = ["username", "uid", "groups", "extra"];
        let add = |field: &str| {
            let none = if matches!(field, "groups" | "extra") { "dyn(null)" } else { "''" };
            format!(
                "JSONPatch{{op: 'add', path: '/spec/{field}', value: has(request.userInfo.{field}) ? dyn(request.userInfo.{field}) : {none}}}"
            )
        };
        let patch = format!("[{}]", fields.map(add).join(", "));
        let name = "cert-manager-webhook";
        let policy = json!({
            "apiVersion": format!("{group}/v1"), "kind": "MutatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["cert-manager.io"], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["certificaterequests"],
                }]},
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
            },
        });
        let binding = json!({
            "apiVersion": format!("{group}/v1"), "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": name},
        });
        api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]}).to_string());
        // It is in force a moment later.
        let requests: Api<DynamicObject> = Api::namespaced_with(api.client.clone(), "default", &resource());
        let request = json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "metadata": {"generateName": "probe-"},
            "spec": {"issuerRef": {"name": "none"}, "request": "eA=="},
        });
        let request: DynamicObject = from_json(request);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        eventually("who asks to be written", LIMIT, || async {
            let made = requests.create(&dry, &request).await.map_err(|e| e.to_string())?;
            if made.data["spec"]["username"].is_string() { Ok(()) } else { Err(made.data.to_string()) }
        })
        .await;
        true
    }

    /// Starts the stand-in for the CertificateRequests of `namespace` and the CertificateSigningRequests to `signer`.
    pub fn start(api: &ApiServer, namespace: &str, signer: &str) -> Self {
        let requests: Api<DynamicObject> = Api::namespaced_with(api.client.clone(), namespace, &resource());
        let state = State {
            behaviour: Behaviour::Sign,
            authority: Authority::new("company CA"),
            signer: signer.to_owned(),
            approves: true,
        };
        let state = Arc::new(Mutex::new(state));
        let signing: Api<CertificateSigningRequest> = Api::all(api.client.clone());
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                loop {
                    for object in requests.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
                        if let Some(status) = certificate_request(&state, &object) {
                            // Gone meanwhile, perhaps.
                            let _ = requests
                                .patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(status))
                                .await;
                        }
                    }
                    for object in signing.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
                        signing_request(&state, &signing, &object).await;
                    }
                    sleep(LOOK_EVERY).await;
                }
            }
        });
        Self(Back::StandIn(StandIn { state, task }))
    }

    /// The issuer of `namespace` that `controller`, cert-manager itself, keeps.
    pub fn itself(controller: &Arc<itself::Controller>, namespace: &str) -> Self {
        Self(Back::Itself(Box::new(itself::Issuer::new(controller, namespace))))
    }

    /// Whether it can behave so. cert-manager itself cannot be made to answer wrongly.
    pub const fn can(&self, behaviour: &Behaviour) -> bool {
        match self.0 {
            Back::StandIn(_) => true,
            Back::Itself(_) => matches!(
                behaviour,
                Behaviour::Sign | Behaviour::Away | Behaviour::Pending | Behaviour::Deny(_) | Behaviour::Fail(_)
            ),
        }
    }

    /// The reason that it gives for failure, whatever [`Behaviour::Fail`] says; `None` where it says just that.
    pub const fn reason_of_failure(&self) -> Option<&str> {
        match self.0 {
            Back::StandIn(_) => None,
            Back::Itself(_) => Some("Error signing certificate"),
        }
    }

    /// Sets its behaviour from now on.
    ///
    /// # Panics
    /// It [cannot](Self::can).
    pub fn behave(&self, behaviour: Behaviour) {
        match &self.0 {
            Back::StandIn(stand_in) => stand_in.state().behaviour = behaviour,
            Back::Itself(issuer) => issuer.behave(&behaviour),
        }
    }

    /// Turns its own approver off: it signs what others have approved.
    pub fn leave_approval_to_others(&self) {
        match &self.0 {
            Back::StandIn(stand_in) => stand_in.state().approves = false,
            Back::Itself(issuer) => issuer.leave_approval_to_others(),
        }
    }

    /// Replaces the CA; the new certificate, PEM.
    pub fn replace_ca(&self, name: &str) -> String {
        self.replace(Authority::new(name))
    }

    /// Replaces the CA with an intermediate one below a new root; the root, PEM.
    pub fn replace_ca_by_intermediate(&self, root: &str) -> String {
        self.replace(Authority::below(root))
    }

    fn replace(&self, authority: Authority) -> String {
        match &self.0 {
            Back::StandIn(stand_in) => stand_in.state().authority = authority,
            Back::Itself(issuer) => issuer.replace(authority),
        }
        self.ca()
    }

    /// The CA's certificate, or that of the root above it; PEM.
    pub fn ca(&self) -> String {
        match &self.0 {
            Back::StandIn(stand_in) => stand_in.state().authority.anchor().to_owned(),
            Back::Itself(issuer) => issuer.ca(),
        }
    }
}

impl StandIn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }
}

/// The status that a CertificateRequest gets, if it is not at its end.
fn certificate_request(state: &Mutex<State>, object: &DynamicObject) -> Option<Value> {
    let of = |kind: &str| {
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == kind).map(|c| c["reason"].as_str().unwrap_or_default().to_owned())
    };
    if of("Ready").is_some_and(|reason| reason != "Pending") || of("InvalidRequest").is_some() {
        return None;
    }
    let state = state.lock().expect("no panic under the lock");
    let now = "2026-01-01T00:00:00Z";
    let condition = |type_: &str, status: bool, reason: &str, message: &str| {
        json!({
            "type": type_, "status": if status { "True" } else { "False" }, "reason": reason, "message": message,
            "lastTransitionTime": now,
        })
    };
    let mut approved =
        condition("Approved", true, "cert-manager.io", "Certificate request has been approved by cert-manager.io");
    if !state.approves {
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let by_others = |type_: &str| conditions.iter().find(|c| c["type"] == type_ && c["status"] == "True").cloned();
        if let Some(denied) = by_others("Denied") {
            let message = "The CertificateRequest was denied by an approval controller";
            let ready = condition("Ready", false, "Denied", message);
            return Some(json!({"status": {"conditions": [denied, ready], "failureTime": now}}));
        }
        approved = by_others("Approved")?;
    }
    let failed = |first: Value, reason: &str, message: &str| json!({"conditions": [first, condition("Ready", false, reason, message)], "failureTime": now});
    let status = match state.behaviour.clone() {
        Behaviour::Away => return None,
        Behaviour::Pending if of("Ready").is_some() => return None,
        Behaviour::Pending => {
            let message = "Referenced issuer does not have a Ready status condition";
            json!({"conditions": [approved, condition("Ready", false, "Pending", message)]})
        }
        Behaviour::Deny(message) => failed(
            condition("Denied", true, "policy.example.com", &message),
            "Denied",
            "The CertificateRequest was denied by an approval controller",
        ),
        Behaviour::Fail(message) => failed(approved, "Failed", &message),
        // cert-manager then looks at the request no more: it says nothing of `Ready`, and no time.
        Behaviour::Invalid(message) => {
            json!({"conditions": [approved, condition("InvalidRequest", true, "InvalidRequest", &message)]})
        }
        behaviour => {
            let text = |name: &str| object.data["spec"][name].as_str().unwrap_or_default().to_owned();
            let request = STANDARD.decode(text("request")).expect("base64");
            let life = etcd_tls_contract::duration::parse_duration(&text("duration")).expect("a duration");
            let usages = object.data["spec"]["usages"].as_array().cloned().unwrap_or_default();
            let usages: Vec<&str> = usages.iter().filter_map(Value::as_str).collect();
            let certificate = state.answer(&behaviour, &request, life, &usages);
            let issued = condition("Ready", true, "Issued", "Certificate fetched from issuer successfully");
            let mut status = json!({"conditions": [approved, issued]});
            if behaviour != Behaviour::NoCa {
                status["ca"] = STANDARD.encode(state.authority.anchor()).into();
            }
            if !certificate.is_empty() {
                status["certificate"] = STANDARD.encode(certificate).into();
            }
            status
        }
    };
    Some(json!({"status": status}))
}

async fn signing_request(
    state: &Mutex<State>,
    api: &Api<CertificateSigningRequest>,
    object: &CertificateSigningRequest,
) {
    let status = object.status.as_ref();
    // One that is approved alone is left over from the time when it was pending.
    let conditions: Vec<&str> =
        status.and_then(|s| s.conditions.as_ref()).into_iter().flatten().map(|c| c.type_.as_str()).collect();
    let pending = conditions == ["Approved"] && status.is_some_and(|s| s.certificate.is_none());
    let (signer, approves) = {
        let state = state.lock().expect("no panic under the lock");
        (state.signer.clone(), state.approves)
    };
    if !(conditions.is_empty() && approves || pending) || object.spec.signer_name != signer {
        return;
    }
    let condition =
        |type_: &str, message: &str| json!({"type": type_, "status": "True", "reason": "Example", "message": message});
    let (approval, status) = {
        let state = state.lock().expect("no panic under the lock");
        match state.behaviour.clone() {
            Behaviour::Away => return,
            Behaviour::Pending if pending => return,
            Behaviour::Pending => (vec![condition("Approved", "")], None),
            Behaviour::Deny(message) => (vec![condition("Denied", &message)], None),
            Behaviour::Fail(message) | Behaviour::Invalid(message) => {
                let approved = condition("Approved", "");
                let conditions = json!([approved.clone(), condition("Failed", &message)]);
                (vec![approved], Some(json!({"conditions": conditions})))
            }
            behaviour => {
                let life = u64::try_from(object.spec.expiration_seconds.unwrap_or(3600)).expect("a life");
                let usages = object.spec.usages.clone().unwrap_or_default();
                let usages: Vec<&str> = usages.iter().map(String::as_str).collect();
                let pem = state.answer(&behaviour, &object.spec.request.0, Duration::from_secs(life), &usages);
                (vec![condition("Approved", "")], Some(json!({"certificate": STANDARD.encode(pem)})))
            }
        }
    };
    let (name, params) = (object.name_any(), PatchParams::default());
    // Gone meanwhile, perhaps; or no certificate, at which the API server refuses it. An approval of others stays as it is.
    if !pending {
        let approval = json!({"status": {"conditions": approval}});
        let _ = api.patch_approval(&name, &params, &Patch::Merge(approval)).await;
    }
    if let Some(status) = status {
        let _ = api.patch_status(&name, &params, &Patch::Merge(json!({"status": status}))).await;
    }
}

impl State {
    fn answer(&self, behaviour: &Behaviour, request: &[u8], life: Duration, usages: &[&str]) -> String {
        if let Behaviour::Rubbish(text) = behaviour {
            return text.clone();
        }
        let life = if let Behaviour::Life(life) = behaviour { *life } else { life };
        let request = Request::parse(request).expect("a request");
        let sans = if *behaviour == Behaviour::Forget { Sans::default() } else { request.sans.clone() };
        let now = std::time::SystemTime::now();
        let another = (*behaviour == Behaviour::AnotherKey).then(|| KeyPair::generate().expect("make a key"));
        let key = another.map_or_else(|| request.public_key.clone(), |key| key.subject_public_key_info());
        let Authority { ca, root } = &self.authority;
        let leaf = ca.sign(
            &key,
            &LeafOptions {
                organizations: vec![request.organization.clone()],
                common_name: request.common_name.clone(),
                dns: sans.dns.iter().cloned().collect(),
                ips: sans.ips.iter().copied().collect(),
                server: usages.contains(&"server auth"),
                client: usages.contains(&"client auth"),
                not_before: now,
                not_after: now + life,
            },
        );
        if root.is_some() { leaf + &ca.pem } else { leaf }
    }
}
