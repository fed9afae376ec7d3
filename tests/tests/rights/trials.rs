//! For each verb of each rule: calls that the account should not get through, and its own work, which it should.

mod approve;
mod components;
mod names;
mod readers;
mod sign;

use serde_json::{Value, json};

use super::{
    components::Requests,
    scene::{
        Account::{self, Approve, Host, NamespaceAdmin, Pod, Sign},
        CA, CSRS, Call, RBAC, Scene, event, lease, reader_binding, reader_role, request, requesters, role_binding,
        secret, sign_subject, trust_binding, trust_bundle,
    },
    shipped::{Rule, Rules},
};

/// The expected result of a call.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// 403 or 422, with this text, which says by what.
    Refused(&'static str),
    /// It works; tried by a dry run.
    Works,
    /// No API can refuse it: admission does not see reads. The threat model states it in these words.
    Stated(&'static str),
}
use Outcome::{Refused, Stated, Works};

/// See the module.
#[derive(Clone, Debug)]
pub struct Trial {
    pub rule: Rule,
    pub account: Account,
    pub what: &'static str,
    pub call: Option<Call>,
    pub outcome: Outcome,
}

/// The trials of one role.
struct Of<'a> {
    role: &'static str,
    account: Account,
    trials: &'a mut Vec<Trial>,
}

impl Of<'_> {
    fn one(&mut self, resource: &str, verb: &str, what: &'static str, call: Option<Call>, outcome: Outcome) {
        let rule = Rule::new(self.role, resource, verb);
        self.trials.push(Trial { rule, account: self.account, what, call, outcome });
    }

    fn try_(&mut self, resource: &str, verb: &str, what: &'static str, call: Call, outcome: Outcome) {
        self.one(resource, verb, what, Some(call), outcome);
    }

    fn stated(&mut self, resource: &str, verbs: &[&str], why: &'static str) {
        for verb in verbs {
            self.one(resource, verb, "read", None, Stated(why));
        }
    }

    /// A rule with names: another name is refused by RBAC, to list and watch means to name the one.
    fn other_name_refused(&mut self, resource: &str, verbs: &[&str], collection: &str, other: &str) {
        for verb in verbs {
            let (what, path) = match *verb {
                "get" => ("get another", format!("{collection}/{other}")),
                "list" => ("list all", collection.to_owned()),
                "watch" => ("watch all", format!("{collection}?watch=1&timeoutSeconds=1")),
                _ => panic!("not a read: {verb}"),
            };
            self.try_(resource, verb, what, Call::get(path), Refused("cannot"));
        }
    }
}

const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";
const CSR: &str = "certificates.k8s.io/certificatesigningrequests";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases";
const SECRETS: &str = "/api/v1/namespaces/etcd-tls-system/secrets";
const VAP: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const VAPB: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

/// All of them.
pub fn all(scene: &Scene) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut of = |role: &'static str, account: Account, fill: &dyn Fn(&mut Of<'_>)| {
        fill(&mut Of { role, account, trials: &mut trials });
    };
    of("ClusterRole/etcd-tls-approve", Approve, &|t| approve::approve(t, scene));
    of("Role/etcd-tls-approve", Approve, &|t| own_namespace(t, "approve", "etcd-tls-sign", &scene.leases[0]));
    of("ClusterRole/etcd-tls-sign", Sign, &|t| sign::sign(t, scene));
    of("Role/etcd-tls-sign", Sign, &|t| {
        own_namespace(t, "sign", "etcd-tls-approve", &scene.leases[1]);
        sign::secrets(t);
    });
    of("ClusterRole/etcd-tls-trust", Sign, &sign::trust);
    of("ClusterRole/etcd-tls-requester", Pod, &|t| requester(t, scene));
    of("ClusterRole/etcd-tls-authorities", NamespaceAdmin, &authorities);
    of("Role/etcd-tls-lease-lock", Pod, &|t| lease_lock(t, &scene.uid));
    of("Role/etcd-client-tls", Pod, &kept_secret);
    of("Role/etcd-tls-hosts", Host, &|t| {
        t.try_(
            "configmaps",
            "get",
            "another ConfigMap",
            Call::get("/api/v1/namespaces/kube-system/configmaps/coredns"),
            Refused("cannot get"),
        );
        t.try_(
            "configmaps",
            "watch",
            "another ConfigMap",
            Call::get(
                "/api/v1/namespaces/kube-system/configmaps?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dcoredns",
            ),
            Refused("cannot watch"),
        );
    });
    trials
}

/// Those of the rules that components add.
pub fn of_components(scene: &Scene, requests: &Requests) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut of = |role: &'static str, account: Account, fill: &dyn Fn(&mut Of<'_>)| {
        fill(&mut Of { role, account, trials: &mut trials });
    };
    of("ClusterRole/etcd-tls-requester", Pod, &|t| components::requester(t, scene));
    of("ClusterRole/etcd-tls-approve", Approve, &|t| components::approve(t, requests));
    of("ClusterRole/etcd-tls-sign", Sign, &|t| components::sign(t, scene, requests));
    trials
}

/// The `resourceNames` of the rules that have some; of those of the manifests, and of those that components add.
pub fn names() -> [Rules; 2] {
    [names::all(), names::of_components()]
}

fn approval(condition: &str) -> Value {
    let reason = if condition == "Approved" { "EtcdTlsApproved" } else { "Test" };
    json!({"status": {"conditions": [{"type": condition, "status": "True", "reason": reason, "message": "m"}]}})
}

fn fat_managed_fields(version: &str) -> Value {
    let fields: serde_json::Map<String, Value> =
        (0..200).map(|i| (format!("f:{}{i}", "x".repeat(100)), json!({}))).collect();
    json!([{"manager": "test", "operation": "Update", "apiVersion": version, "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:annotations": fields}}}])
}

/// Metadata of a binding or a role that the API server stores at any length.
fn large_metadata() -> [(&'static str, Value); 2] {
    [
        ("managedFields", json!({"managedFields": fat_managed_fields("rbac.authorization.k8s.io/v1")})),
        ("a name to make one of", json!({"generateName": "x".repeat(200_000)})),
    ]
}

fn events(t: &mut Of<'_>, process: &str) {
    let r = "events.k8s.io/events";
    let (own, other) = (format!("etcd-tls.dev/{process}"), "kubelet");
    t.try_(r, "create", "its own", Call::post(format!("{EVENTS}/prod/events"), event(&own, "prod")).dry(), Works);
    t.try_(
        r,
        "create",
        "as another",
        Call::post(format!("{EVENTS}/prod/events"), event(other, "prod")),
        Refused("etcd-tls"),
    );
    let mut held = event(&own, "prod");
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "create", "with a finalizer", Call::post(format!("{EVENTS}/prod/events"), held), Refused("etcd-tls"));
    let mut held = event(&own, "prod");
    held["metadata"]["annotations"] = json!({"a": "x".repeat(200_000)});
    t.try_(r, "create", "large", Call::post(format!("{EVENTS}/prod/events"), held), Refused("etcd-tls"));
    let mut large = event(&own, "prod");
    large["regarding"]["fieldPath"] = "x".repeat(200_000).into();
    t.try_(r, "create", "about a large field", Call::post(format!("{EVENTS}/prod/events"), large), Refused("etcd-tls"));
    let mut large = event(&own, "prod");
    large["metadata"]["managedFields"] = fat_managed_fields("events.k8s.io/v1");
    t.try_(r, "create", "managedFields", Call::post(format!("{EVENTS}/prod/events"), large), Refused("etcd-tls"));
}

fn own_namespace(t: &mut Of<'_>, process: &str, other: &str, version: &str) {
    let own = "/api/v1/namespaces/etcd-tls-system/configmaps";
    t.other_name_refused("configmaps", &["get"], own, "kube-root-ca.crt");
    if process == "sign" {
        t.stated("configmaps", &["list", "watch"], "`sign` reads every ConfigMap of the cluster by its ClusterRole");
    } else {
        t.other_name_refused("configmaps", &["list", "watch"], own, "kube-root-ca.crt");
    }
    let r = "coordination.k8s.io/leases";
    let own = format!("etcd-tls-{process}");
    for name in ["new", "kube-scheduler"] {
        t.try_(r, "create", "another", Call::post(LEASES, lease(name, 12)), Refused("etcd-tls"));
    }
    t.try_(r, "get", "another", Call::get(format!("{LEASES}/{other}")), Refused("cannot get"));
    t.try_(r, "update", "another", Call::put(format!("{LEASES}/{other}"), lease(other, 12)), Refused("cannot update"));
    t.try_(
        r,
        "update",
        "for ever",
        Call::put(format!("{LEASES}/{own}"), lease(&own, 2_147_483_647)),
        Refused("etcd-tls"),
    );
    let mut held = lease(&own, 12);
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "update", "with a finalizer", Call::put(format!("{LEASES}/{own}"), held), Refused("etcd-tls"));
    for (what, pointer, value) in [
        ("for a long name", "/spec/holderIdentity", json!("x".repeat(254))),
        ("with a large annotation", "/metadata/annotations", json!({"a": "x".repeat(1024)})),
        ("with managedFields", "/metadata/managedFields", fat_managed_fields("coordination.k8s.io/v1")),
    ] {
        let mut large = lease(&own, 12);
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        large.pointer_mut(parent).expect("a Lease")[key] = value;
        t.try_(r, "update", what, Call::put(format!("{LEASES}/{own}"), large), Refused("etcd-tls"));
    }
    let mut renewed = lease(&own, 12);
    renewed["metadata"]["resourceVersion"] = version.into();
    t.try_(r, "update", "its own", Call::put(format!("{LEASES}/{own}"), renewed).dry(), Works);
}

fn requester(t: &mut Of<'_>, scene: &Scene) {
    t.stated(CSR, &["get"], "a pod reads each request of the cluster whose name it knows");
    t.try_(CSR, "create", "ours", Call::post(CSRS, scene.request("dry")).dry(), Works);
    t.try_(
        CSR,
        "create",
        "under another pod's uid",
        Call::post(
            CSRS,
            request("etcd-tls-6cc1c6c0-0000-0000-0000-000000000000-peer-0", "peer.etcd-tls.dev/prod.etcd"),
        ),
        Refused("etcd-tls"),
    );
    // Attack 2: the whole object is admitted.
    let with = |change: &dyn Fn(&mut Value)| {
        let mut asked = scene.request("bad");
        change(&mut asked);
        Call::post(CSRS, asked)
    };
    let metadata = |key: &'static str, value: Value| with(&move |asked| asked["metadata"][key] = value.clone());
    let many: serde_json::Map<String, Value> =
        (0..16_000).map(|i| (format!("label-{i}"), "v".repeat(50).into())).collect();
    let keys: serde_json::Map<String, Value> =
        (0..40).map(|i| (format!("{i}-{}", "k".repeat(30)), "".into())).collect();
    for (what, call) in [
        ("an annotation of 250 KiB", metadata("annotations", json!({"a": "x".repeat(250 * 1024)}))),
        ("labels of 1 MB", metadata("labels", many.into())),
        ("labels of more than 1 KiB", metadata("labels", keys.clone().into())),
        ("annotation keys of more than 1 KiB", metadata("annotations", keys.into())),
        ("1 KiB and a byte", metadata("annotations", json!({"a": "x".repeat(1024)}))),
        ("1 KiB of other letters", metadata("annotations", json!({"a": "ü".repeat(600)}))),
        ("a finalizer", metadata("finalizers", json!(["example.com/f"]))),
        (
            "an owner",
            metadata("ownerReferences", json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": scene.uid}])),
        ),
        ("managedFields", metadata("managedFields", fat_managed_fields("certificates.k8s.io/v1"))),
        ("a name of 254 characters", with(&|asked| asked["metadata"]["name"] = long_name(asked, 254))),
        ("a name with a space", with(&|asked| asked["metadata"]["name"] = named(asked, " a"))),
        ("a name with a line break", with(&|asked| asked["metadata"]["name"] = named(asked, "\na"))),
        ("a name with a query", with(&|asked| asked["metadata"]["name"] = named(asked, "?dryRun=All"))),
        ("a long name to make one of", metadata("generateName", "x".repeat(254).into())),
        ("what is loaded, at length", metadata("annotations", json!({"etcd-tls.dev/trusts": "x".repeat(65)}))),
        ("another annotation of ours", metadata("annotations", json!({"etcd-tls.dev/roles": "peer"}))),
        ("a label of ours", metadata("labels", json!({"etcd-tls": "dynamic"}))),
        ("a request of more than 4 KiB", with(&|asked| asked["spec"]["request"] = padded(asked, 4097))),
        (
            "five usages",
            with(&|asked| {
                asked["spec"]["usages"] =
                    json!(["digital signature", "key encipherment", "client auth", "server auth", "server auth"])
            }),
        ),
        ("another usage", with(&|asked| asked["spec"]["usages"] = json!(["digital signature", "cert sign"]))),
        ("no usage", with(&|asked| asked["spec"]["usages"] = json!(["signing"]))),
        ("ten years", with(&|asked| asked["spec"]["expirationSeconds"] = 315_360_000.into())),
        ("a life without bound", with(&|asked| asked["spec"]["expirationSeconds"] = Value::Null)),
        ("a minute", with(&|asked| asked["spec"]["expirationSeconds"] = 599.into())),
    ] {
        t.try_(CSR, "create", what, call, Refused("etcd-tls"));
    }
    for (what, call) in [
        ("labels and annotations of 1 KiB", metadata("annotations", json!({"a": "x".repeat(1023)}))),
        ("what is loaded", metadata("annotations", json!({"etcd-tls.dev/trusts": "0".repeat(64)}))),
        ("a name with other characters", with(&|asked| asked["metadata"]["name"] = named(asked, ":A_b.c"))),
        ("a name of 253 characters", with(&|asked| asked["metadata"]["name"] = long_name(asked, 253))),
        ("a name to make one of", metadata("generateName", "x".repeat(253).into())),
        ("a request of 4 KiB", with(&|asked| asked["spec"]["request"] = padded(asked, 4096))),
    ] {
        t.try_(CSR, "create", what, call.dry(), Works);
    }
    let r = "etcd-tls.dev/signers";
    t.try_(
        r,
        "request",
        "of another signer",
        Call::post(CSRS, request(&scene.csr("x"), "kubernetes.io/kube-apiserver-client")),
        Refused("may not request from it"),
    );
}

/// The name of a request, with this at its end.
fn named(asked: &Value, end: &str) -> Value {
    format!("{}{end}", asked["metadata"]["name"].as_str().expect("a name")).into()
}

/// The name of a request, made so long.
fn long_name(asked: &Value, length: usize) -> Value {
    let name = asked["metadata"]["name"].as_str().expect("a name");
    named(asked, &"0".repeat(length - name.len()))
}

/// The request of `asked` behind text, so that it has as many bytes. The API server reads PEM after any text.
fn padded(asked: &Value, bytes: usize) -> Value {
    let engine = &base64::engine::general_purpose::STANDARD;
    let pem = base64::Engine::decode(engine, asked["spec"]["request"].as_str().expect("a request")).expect("base64");
    let mut padded = vec![b' '; bytes - pem.len() - 1];
    padded.push(b'\n');
    padded.extend(pem);
    assert_eq!(padded.len(), bytes);
    base64::Engine::encode(engine, padded).into()
}

fn authorities(t: &mut Of<'_>) {
    let r = "etcd-tls.dev/authorities";
    let one = "/api/v1/namespaces/prod/configmaps/etcd-tls-trust-etcd";
    for verb in ["rollover", "revoke", "adopt"] {
        let key = format!("etcd-tls.dev/{verb}-peer-request");
        let body = json!({"metadata": {"annotations": {key: "start 1"}}});
        t.try_(r, verb, "a command", Call::merge(one, body.clone()).dry(), Works);
        // Of a cluster in another namespace, whose bundle is published here, too.
        let foreign =
            json!({"metadata": {"name": "etcd-tls-trust-web.etcd", "annotations": body["metadata"]["annotations"]}});
        t.try_(
            r,
            verb,
            "of another namespace",
            Call::post("/api/v1/namespaces/prod/configmaps", foreign),
            Refused("etcd-tls"),
        );
    }
    t.try_(r, "rollover", "repair", Call::merge(one, json!({"data": {"peer.crt": "mended"}})).dry(), Works);
    t.try_(r, "rollover", "delete", Call::delete(one).dry(), Works);
    t.try_(
        r,
        "rollover",
        "create",
        Call::post("/api/v1/namespaces/prod/configmaps", trust_bundle("etcd-tls-trust-events")).dry(),
        Works,
    );
}

fn lease_lock(t: &mut Of<'_>, uid: &str) {
    let r = "coordination.k8s.io/leases";
    let all = "/apis/coordination.k8s.io/v1/namespaces/prod/leases";
    t.try_(
        r,
        "create",
        "for ever",
        Call::post(all, lease("etcd-tls-restart-etcd", 2_147_483_647)),
        Refused("etcd-tls"),
    );
    let held_by = |holder: String| {
        let mut body = lease("etcd-tls-restart-etcd", 30);
        body["spec"]["holderIdentity"] = holder.into();
        Call::post(all, body).dry()
    };
    t.try_(r, "create", "the lock", held_by(format!("etcd-0/{uid}")), Works);
    t.try_(r, "create", "the lock for nobody", held_by(String::new()), Works);
    t.try_(r, "create", "the lock for another", held_by(format!("etcd-1/{uid}")), Refused("its holder is that pod"));
    t.one(
        r,
        "create",
        "another Lease",
        None,
        Stated("with the lease-lock component a pod creates any Lease of its own namespace"),
    );
    t.try_(r, "get", "another", Call::get(format!("{all}/x")), Refused("cannot get"));
    t.try_(r, "update", "another", Call::put(format!("{all}/x"), lease("x", 30)), Refused("cannot update"));
}

/// The example of `run --secret`.
fn kept_secret(t: &mut Of<'_>) {
    let all = "/api/v1/namespaces/prod/secrets";
    let (own, kept) = (format!("{all}/etcd-client-tls"), secret("etcd-client-tls", "kubernetes.io/tls"));
    t.try_("secrets", "get", "its own", Call::get(&own), Works);
    t.try_("secrets", "get", "another", Call::get(format!("{all}/x")), Refused("cannot get"));
    t.try_("secrets", "update", "its own", Call::put(&own, kept).dry(), Works);
    let another = secret("x", "kubernetes.io/tls");
    t.try_("secrets", "update", "another", Call::put(format!("{all}/x"), another.clone()), Refused("cannot update"));
    // A token of another service account would be written into one.
    t.try_("secrets", "update", "a new one", Call::post(all, another), Refused("cannot create"));
    let token = secret("etcd-client-tls", "kubernetes.io/service-account-token");
    t.try_("secrets", "update", "its own, of another type", Call::put(&own, token), Refused("immutable"));
}
