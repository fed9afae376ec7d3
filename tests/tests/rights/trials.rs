//! For each verb of each rule: calls that the account should not get through, and its own work, which it should.

use serde_json::{Value, json};

use super::{
    scene::{
        Account::{self, Approve, Host, NamespaceAdmin, Pod, Sign},
        CA, CSRS, Call, RBAC, Scene, event, lease, request, requesters, role_binding, secret, sign_subject,
        trust_binding, trust_bundle,
    },
    shipped::Rule,
};

/// What should come of a call.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// 403 or 422, with this text.
    Refused(&'static str),
    /// It works; tried by a dry run.
    Works,
    /// No API can refuse it: what is read is not said to admission. The threat model has it, in these words.
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
    of("ClusterRole/etcd-tls-approve", Approve, &|t| approve(t, scene));
    of("Role/etcd-tls-approve", Approve, &|t| own_namespace(t, "approve", "etcd-tls-sign", &scene.leases[0]));
    of("ClusterRole/etcd-tls-sign", Sign, &|t| sign(t, scene));
    of("Role/etcd-tls-sign", Sign, &|t| {
        own_namespace(t, "sign", "etcd-tls-approve", &scene.leases[1]);
        secrets(t);
    });
    of("ClusterRole/etcd-tls-trust", Sign, &trust);
    of("ClusterRole/etcd-tls-requester", Pod, &|t| requester(t, scene));
    of("ClusterRole/etcd-tls-authorities", NamespaceAdmin, &authorities);
    of("Role/etcd-tls-lease-lock", Pod, &lease_lock);
    of("Role/etcd-tls-hosts", Host, &|t| {
        t.try_(
            "configmaps",
            "get",
            "another ConfigMap",
            Call::get("/api/v1/namespaces/kube-system/configmaps/coredns"),
            Refused("cannot get"),
        );
    });
    trials
}

fn approval(condition: &str) -> Value {
    json!({"status": {"conditions": [{"type": condition, "status": "True", "reason": "Test", "message": "m"}]}})
}

fn approve(t: &mut Of<'_>, scene: &Scene) {
    t.stated(CSR, &["get", "list", "watch"], "`approve` reads every request of the cluster, of other signers too");
    let ours = format!("{CSRS}/{}/approval", scene.csr("0"));
    let with = |metadata: Value| {
        let mut body = approval("Approved");
        body["metadata"] = metadata;
        body
    };
    let r = "certificates.k8s.io/certificatesigningrequests/approval";
    t.try_(r, "patch", "approve", Call::merge(&ours, approval("Approved")).dry(), Works);
    t.try_(r, "patch", "deny", Call::merge(&ours, approval("Denied")).dry(), Works);
    for (what, metadata) in [
        ("say what etcd has loaded", json!({"annotations": {"etcd-tls.dev/trusts": "0".repeat(32)}})),
        ("annotate", json!({"annotations": {"a": "x".repeat(200_000)}})),
        ("label", json!({"labels": {"a": "b"}})),
        ("add a finalizer", json!({"finalizers": ["example.com/f"]})),
        ("add an owner", json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]})),
    ] {
        t.try_(r, "patch", what, Call::merge(&ours, with(metadata)), Refused("etcd-tls"));
    }
    let theirs = format!("{CSRS}/theirs/approval");
    t.try_(
        r,
        "patch",
        "annotate another signer's",
        Call::merge(&theirs, json!({"metadata": {"annotations": {"a": "b"}}})),
        Refused(""),
    );
    let r = "certificates.k8s.io/signers";
    t.try_(
        r,
        "approve",
        "approve another signer's",
        Call::merge(&theirs, approval("Approved")),
        Refused("not permitted"),
    );
    t.try_(r, "approve", "deny another signer's", Call::merge(&theirs, approval("Denied")), Refused(""));
    t.stated(
        "pods",
        &["get", "list", "watch"],
        "`approve` reads every pod of the cluster, with what stands in its environment",
    );
    t.stated("namespaces", &["get", "list", "watch"], "`approve` reads every namespace");
    t.stated("services", &["list", "watch"], "`approve` reads every Service");
    events(t, "approve");
    let r = "rbac.authorization.k8s.io/clusterrolebindings";
    let collection = format!("{RBAC}/clusterrolebindings");
    t.other_name_refused(r, &["get", "list", "watch"], &collection, "cluster-admin");
    let mut other = requesters(json!([]));
    other["metadata"]["name"] = "another".into();
    t.try_(r, "create", "another name", Call::post(&collection, other.clone()), Refused("cannot create"));
    t.try_(
        r,
        "create",
        "another name, by apply",
        Call::apply(format!("{collection}/another"), other),
        Refused("cannot"),
    );
    let one = format!("{collection}/etcd-tls-requesters");
    let group = |name: &str| json!({"kind": "Group", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
    let user = |name: &str| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
    let account = |namespace: &str| json!({"kind": "ServiceAccount", "name": "a", "namespace": namespace});
    let good = json!([
        account("prod"),
        group("system:serviceaccounts:web"),
        user("system:node:cp-1"),
        user("cp-2.example.com")
    ]);
    t.try_(r, "patch", "who opted in", Call::apply(&one, requesters(good.clone())).dry(), Works);
    t.try_(r, "create", "who opted in", Call::apply(&one, requesters(good)).dry(), Works);
    for (what, subject) in [
        ("every service account", group("system:serviceaccounts")),
        ("everybody", group("system:authenticated")),
        ("nobody known", group("system:unauthenticated")),
        ("every node", group("system:nodes")),
        ("a group of people", group("developers")),
        ("kube-system", group("system:serviceaccounts:kube-system")),
        ("etcd-tls-system", group("system:serviceaccounts:etcd-tls-system")),
        ("an account of kube-system", account("kube-system")),
        ("itself", json!({"kind": "ServiceAccount", "name": "etcd-tls-approve", "namespace": "etcd-tls-system"})),
        ("itself, by its user's name", user("system:serviceaccount:etcd-tls-system:etcd-tls-approve")),
        ("anonymous", user("system:anonymous")),
        ("a component of Kubernetes", user("system:kube-scheduler")),
    ] {
        let call = Call::apply(&one, requesters(json!([account("prod"), subject.clone()])));
        t.try_(r, "patch", what, call, Refused("etcd-tls: who may request"));
        let call = Call::merge(&one, json!({"subjects": [subject]}));
        t.try_(r, "patch", what, call, Refused("etcd-tls: who may request"));
    }
    t.try_(
        r,
        "patch",
        "a finalizer",
        Call::merge(&one, json!({"metadata": {"finalizers": ["example.com/f"]}})),
        Refused("etcd-tls"),
    );
    t.try_(
        r,
        "patch",
        "an annotation",
        Call::merge(&one, json!({"metadata": {"annotations": {"a": "b"}}})),
        Refused("etcd-tls"),
    );
    t.try_(r, "patch", "another role", Call::merge(&one, json!({"roleRef": {"name": "cluster-admin"}})), Refused(""));
    role_bindings(t);
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicies", &["get"], VAP, "other");
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicybindings", &["get"], VAPB, "other");
}

/// Attack 1: what a right to bind reaches in two steps.
fn role_bindings(t: &mut Of<'_>) {
    let r = "rbac.authorization.k8s.io/rolebindings";
    let of = |namespace: &str| format!("{RBAC}/namespaces/{namespace}/rolebindings");
    let one = |namespace: &str| format!("{}/etcd-tls-sign", of(namespace));
    t.other_name_refused(r, &["get", "list", "watch"], &of("prod"), "anna");
    let itself = json!([{"kind": "ServiceAccount", "name": "etcd-tls-approve", "namespace": "etcd-tls-system"}]);
    let both = json!([sign_subject()[0], itself[0]]);
    let trust = json!({"kind": "ClusterRole", "name": "etcd-tls-trust"});
    t.try_(r, "create", "for sign", Call::apply(one("web"), trust_binding("web", sign_subject())).dry(), Works);
    for (verb, namespace) in [("create", "web"), ("patch", "prod")] {
        for (what, subjects) in
            [("for itself", itself.clone()), ("for itself as well", both.clone()), ("for nobody", json!([]))]
        {
            let call = Call::apply(one(namespace), trust_binding(namespace, subjects));
            t.try_(r, verb, what, call, Refused("etcd-tls: the one subject"));
        }
    }
    let requester = json!({"kind": "ClusterRole", "name": "etcd-tls-requester"});
    t.try_(
        r,
        "create",
        "the other role",
        Call::apply(one("web"), role_binding("web", requester, sign_subject())),
        Refused("etcd-tls: approve binds"),
    );
    for (what, subjects) in
        [("in kube-system, for itself", itself.clone()), ("in kube-system, unlabelled", sign_subject())]
    {
        t.try_(
            r,
            "create",
            what,
            Call::apply(one("kube-system"), trust_binding("kube-system", subjects)),
            Refused("etcd-tls"),
        );
    }
    let mut with = trust_binding("web", sign_subject());
    with["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "create", "with a finalizer", Call::apply(one("web"), with), Refused("etcd-tls"));
    let mut with = trust_binding("web", sign_subject());
    with["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]);
    t.try_(r, "create", "with an owner", Call::apply(one("web"), with), Refused("etcd-tls"));
    t.try_(r, "create", "another name", Call::post(of("web"), json!({"metadata": {"name": "x"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "etcd-tls-trust"}, "subjects": itself})), Refused("cannot create"));
    t.try_(r, "patch", "mend", Call::apply(one("prod"), trust_binding("prod", sign_subject())).dry(), Works);
    t.try_(
        r,
        "patch",
        "add a finalizer",
        Call::merge(one("prod"), json!({"metadata": {"finalizers": ["example.com/f"]}})),
        Refused("etcd-tls"),
    );
    let own = role_binding("etcd-tls-system", trust, itself.clone());
    t.try_(
        r,
        "patch",
        "sign's own, in the system namespace",
        Call::merge(one("etcd-tls-system"), json!({"subjects": own["subjects"]})),
        Refused(""),
    );
    t.try_(
        r,
        "patch",
        "sign's own, metadata alone",
        Call::merge(one("etcd-tls-system"), json!({"metadata": {"labels": {"a": "b"}}})),
        Refused(""),
    );
    t.try_(
        r,
        "delete",
        "sign's own, in the system namespace",
        Call::delete(one("etcd-tls-system")),
        Refused("etcd-tls"),
    );
    t.try_(r, "delete", "another name", Call::delete(format!("{}/anna", of("prod"))), Refused("cannot delete"));
    t.try_(r, "delete", "who opted out", Call::delete(one("prod")).dry(), Works);
    let admin = json!({"kind": "ClusterRole", "name": "cluster-admin"});
    t.try_(
        "rbac.authorization.k8s.io/clusterroles",
        "bind",
        "cluster-admin",
        Call::apply(one("web"), role_binding("web", admin, itself.clone())),
        Refused(""),
    );
    let edit = json!({"kind": "ClusterRole", "name": "edit"});
    t.try_(
        "rbac.authorization.k8s.io/clusterroles",
        "bind",
        "edit",
        Call::apply(one("web"), role_binding("web", edit, itself)),
        Refused(""),
    );
}

fn fat_managed_fields() -> Value {
    let fields: serde_json::Map<String, Value> =
        (0..200).map(|i| (format!("f:{}{i}", "x".repeat(100)), json!({}))).collect();
    json!([{"manager": "test", "operation": "Update", "apiVersion": "certificates.k8s.io/v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:annotations": fields}}}])
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
}

fn own_namespace(t: &mut Of<'_>, process: &str, other: &str, version: &str) {
    t.other_name_refused(
        "configmaps",
        &["get", "list", "watch"],
        "/api/v1/namespaces/etcd-tls-system/configmaps",
        "kube-root-ca.crt",
    );
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
    let mut renewed = lease(&own, 12);
    renewed["metadata"]["resourceVersion"] = version.into();
    t.try_(r, "update", "its own", Call::put(format!("{LEASES}/{own}"), renewed).dry(), Works);
}

fn sign(t: &mut Of<'_>, scene: &Scene) {
    t.stated(CSR, &["get", "list", "watch"], "`sign` reads every request of the cluster, of other signers too");
    let (ours, theirs) = (format!("{CSRS}/{}", scene.csr("0")), format!("{CSRS}/theirs"));
    t.try_(CSR, "delete", "another signer's", Call::delete(&theirs), Refused("etcd-tls"));
    t.try_(CSR, "delete", "ours", Call::delete(&ours).dry(), Works);
    let r = "certificates.k8s.io/certificatesigningrequests/status";
    let mut failed = approval("Approved");
    failed["status"]["conditions"]
        .as_array_mut()
        .expect("conditions")
        .push(approval("Failed")["status"]["conditions"][0].clone());
    let approved = format!("{CSRS}/{}", scene.csr("approved"));
    t.try_(r, "patch", "ours", Call::merge(format!("{approved}/status"), failed.clone()).dry(), Works);
    for (what, metadata) in [
        ("annotate", json!({"annotations": {"a": "x".repeat(200_000)}})),
        ("say what etcd has loaded", json!({"annotations": {"etcd-tls.dev/trusts": "0".repeat(32)}})),
        ("add a finalizer", json!({"finalizers": ["example.com/f"]})),
    ] {
        let body = json!({"metadata": metadata, "status": failed["status"]});
        t.try_(r, "patch", what, Call::merge(format!("{approved}/status"), body), Refused("etcd-tls"));
    }
    t.try_(
        r,
        "patch",
        "annotate another signer's",
        Call::merge(format!("{theirs}/status"), json!({"metadata": {"annotations": {"a": "b"}}})),
        Refused("etcd-tls"),
    );
    let r = "certificates.k8s.io/signers";
    t.try_(
        r,
        "sign",
        "another signer's",
        Call::merge(format!("{theirs}/status"), json!({"status": {"certificate": "LS0tLS1CRUdJTi"}})),
        Refused(""),
    );
    t.try_(
        r,
        "sign",
        "another signer's, failed",
        Call::merge(format!("{theirs}/status"), approval("Failed")),
        Refused(""),
    );
    for resource in ["pods", "services", "namespaces"] {
        t.stated(resource, &["get", "list", "watch"], "`sign` reads every pod, Service and namespace of the cluster");
    }
    events(t, "sign");
    webhooks(t, scene, MUTATING, "pod.etcd-tls.dev", "Ignore");
    webhooks(t, scene, VALIDATING, "pod-warnings.etcd-tls.dev", "Fail");
    let again = json!([{"op": "add", "path": "/webhooks/0/reinvocationPolicy", "value": "Never"}]);
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/etcd-tls".to_owned();
    let again = Call { method: "PATCH", path, content: "application/json-patch+json", body: again };
    t.try_(MUTATING, "patch", "never again", again, Refused("etcd-tls: sign changes nothing but caBundle"));
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicies", &["get"], VAP, "other");
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicybindings", &["get"], VAPB, "other");
}

/// What `sign` may do to one of the webhook configurations, `r`; `policy` is another failurePolicy than it has.
fn webhooks(t: &mut Of<'_>, scene: &Scene, r: &str, entry: &str, policy: &str) {
    let collection = r.replace("admissionregistration.k8s.io/", "/apis/admissionregistration.k8s.io/v1/");
    t.other_name_refused(r, &["get"], &collection, "another");
    let one = format!("{collection}/etcd-tls");
    let json_patch =
        |patch: Value| Call { method: "PATCH", path: one.clone(), content: "application/json-patch+json", body: patch };
    let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &scene.api.ca.pem);
    let set = |path: &str, value: Value| json_patch(json!([{"op": "add", "path": path, "value": value}]));
    t.try_(r, "patch", "caBundle", set("/webhooks/0/clientConfig/caBundle", bundle.clone().into()).dry(), Works);
    let strategic = json!({"webhooks": [{"name": entry, "clientConfig": {"caBundle": bundle}}]});
    let content = "application/strategic-merge-patch+json";
    t.try_(
        r,
        "patch",
        "caBundle of one",
        Call { method: "PATCH", path: one.clone(), content, body: strategic }.dry(),
        Works,
    );
    let rules =
        json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"], "scope": "*"}]);
    let elsewhere = json_patch(json!([
        {"op": "remove", "path": "/webhooks/0/clientConfig/service"},
        {"op": "add", "path": "/webhooks/0/clientConfig/url", "value": "https://192.0.2.1/x"},
    ]));
    for (what, call) in [
        ("every object of the cluster", set("/webhooks/0/rules", rules)),
        ("to an address of its own", elsewhere),
        ("to another Service", set("/webhooks/0/clientConfig/service/namespace", "web".into())),
        ("by another path", set("/webhooks/0/clientConfig/service/path", "/x".into())),
        ("at another port", set("/webhooks/1/clientConfig/service/port", 444.into())),
        ("in kube-system", set("/webhooks/0/namespaceSelector", json!({}))),
        ("other objects", set("/webhooks/1/objectSelector", json!({"matchLabels": {"a": "b"}}))),
        ("another failurePolicy", set("/webhooks/0/failurePolicy", policy.into())),
        ("other conditions", json_patch(json!([{"op": "remove", "path": "/webhooks/0/matchConditions"}]))),
        ("exact matches", set("/webhooks/0/matchPolicy", "Exact".into())),
        ("a longer timeout", set("/webhooks/0/timeoutSeconds", 30.into())),
        ("side effects", set("/webhooks/0/sideEffects", "NoneOnDryRun".into())),
        ("one webhook less", json_patch(json!([{"op": "remove", "path": "/webhooks/1"}]))),
        ("none", set("/webhooks", json!([]))),
        ("a finalizer", set("/metadata/finalizers", json!(["example.com/f"]))),
        (
            "an owner",
            set("/metadata/ownerReferences", json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}])),
        ),
        ("an annotation", set("/metadata/annotations/a", "b".into())),
    ] {
        t.try_(r, "patch", what, call, Refused("etcd-tls: sign changes nothing but caBundle"));
    }
    let more = json!({"name": "more.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://192.0.2.1/x"}, "rules": []});
    t.try_(
        r,
        "patch",
        "a webhook more",
        set("/webhooks/-", more),
        Refused("etcd-tls: sign changes nothing but caBundle"),
    );
}

fn secrets(t: &mut Of<'_>) {
    let r = "secrets";
    t.stated(r, &["get", "list", "watch"], "`sign` reads every Secret of etcd-tls-system: keep no others there");
    let new = "etcd-tls-ca-7d4c1f9e-0000-4000-8000-000000000001-etcd-client";
    t.try_(r, "create", "an authority", Call::post(SECRETS, secret(new, "kubernetes.io/tls")).dry(), Works);
    t.try_(
        r,
        "create",
        "the serving pair",
        Call::post(SECRETS, secret("etcd-tls-admit-serving", "kubernetes.io/tls")).dry(),
        Works,
    );
    for name in ["x", new] {
        let mut token = json!({"metadata": {"name": name}, "type": "kubernetes.io/service-account-token"});
        token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "etcd-tls-approve"});
        t.try_(r, "create", "another account's token", Call::post(SECRETS, token), Refused("etcd-tls"));
    }
    for (what, name, type_) in [
        ("a bootstrap token", "bootstrap-token-abcdef", "bootstrap.kubernetes.io/token"),
        ("another name", "prod-peer-ca", "kubernetes.io/tls"),
        ("another type", new, "Opaque"),
    ] {
        t.try_(r, "create", what, Call::post(SECRETS, secret(name, type_)), Refused("etcd-tls"));
    }
    let mut held = secret(new, "kubernetes.io/tls");
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "create", "with a finalizer", Call::post(SECRETS, held), Refused("etcd-tls"));
    t.try_(
        r,
        "update",
        "another",
        Call::put(format!("{SECRETS}/other"), secret("other", "Opaque")),
        Refused("etcd-tls"),
    );
    t.try_(
        r,
        "update",
        "an authority",
        Call::put(format!("{SECRETS}/{CA}"), secret(CA, "kubernetes.io/tls")).dry(),
        Works,
    );
    let mut held = secret(CA, "kubernetes.io/tls");
    held["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]);
    t.try_(r, "update", "with an owner", Call::put(format!("{SECRETS}/{CA}"), held), Refused("etcd-tls"));
    t.try_(r, "delete", "another", Call::delete(format!("{SECRETS}/other")), Refused("etcd-tls"));
    t.try_(r, "delete", "an authority", Call::delete(format!("{SECRETS}/{CA}")).dry(), Works);
}

fn trust(t: &mut Of<'_>) {
    let all = "/api/v1/namespaces/prod/configmaps";
    let r = "configmaps";
    t.stated(r, &["get", "list", "watch"], "`sign` reads every ConfigMap of an opted-in namespace");
    t.try_(r, "create", "another", Call::post(all, trust_bundle("settings")), Refused("etcd-tls"));
    let mut held = trust_bundle("etcd-tls-trust-other");
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "create", "with a finalizer", Call::post(all, held), Refused("etcd-tls"));
    t.try_(r, "create", "a bundle", Call::post(all, trust_bundle("etcd-tls-trust-other")).dry(), Works);
    t.try_(
        r,
        "create",
        "in a namespace without the binding",
        Call::post("/api/v1/namespaces/web/configmaps", trust_bundle("etcd-tls-trust-x")),
        Refused("cannot create"),
    );
    t.try_(r, "patch", "another", Call::merge(format!("{all}/app"), json!({"data": {"a": "2"}})), Refused("etcd-tls"));
    t.try_(
        r,
        "patch",
        "a bundle",
        Call::merge(format!("{all}/etcd-tls-trust-etcd"), json!({"data": {"peer.crt": "new"}})).dry(),
        Works,
    );
    t.try_(
        r,
        "patch",
        "a bundle's owner",
        Call::merge(
            format!("{all}/etcd-tls-trust-etcd"),
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
        ),
        Refused("etcd-tls"),
    );
    t.try_(r, "delete", "another", Call::delete(format!("{all}/app")), Refused("etcd-tls"));
    t.try_(r, "delete", "a bundle", Call::delete(format!("{all}/etcd-tls-trust-etcd")).dry(), Works);
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
        ("managedFields", metadata("managedFields", fat_managed_fields())),
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

fn lease_lock(t: &mut Of<'_>) {
    let r = "coordination.k8s.io/leases";
    let all = "/apis/coordination.k8s.io/v1/namespaces/prod/leases";
    t.try_(
        r,
        "create",
        "for ever",
        Call::post(all, lease("etcd-tls-restart-etcd", 2_147_483_647)),
        Refused("etcd-tls"),
    );
    t.try_(r, "create", "the lock", Call::post(all, lease("etcd-tls-restart-etcd", 30)).dry(), Works);
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
