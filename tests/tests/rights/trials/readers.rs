//! The rights by which `approve` lets the accounts of a namespace watch its trust ConfigMaps.

use super::*;

const NAME: &str = "etcd-tls-trust-reader";

fn one(kind: &str, namespace: &str) -> String {
    format!("{RBAC}/namespaces/{namespace}/{kind}/{NAME}")
}

fn rule(change: &dyn Fn(&mut Value)) -> Value {
    let mut role = reader_role("prod", &["etcd-tls-trust-etcd"]);
    change(&mut role["rules"]);
    role
}

/// The Role: that rule in any namespace that may opt in, and no other.
pub(super) fn roles(t: &mut Of<'_>) {
    let r = "rbac.authorization.k8s.io/roles";
    let of = |namespace: &str| format!("{RBAC}/namespaces/{namespace}/roles");
    t.other_name_refused(r, &["get", "list", "watch"], &of("prod"), "etcd-client-tls");
    let good = |namespace: &str| reader_role(namespace, &["etcd-tls-trust-etcd", "etcd-tls-trust-web.events"]);
    t.try_(r, "create", "the names of two", Call::apply(one("roles", "web"), good("web")).dry(), Works);
    t.try_(r, "patch", "the names of two", Call::apply(one("roles", "prod"), good("prod")).dry(), Works);
    t.try_(r, "escalate", "the names of two", Call::apply(one("roles", "prod"), good("prod")).dry(), Works);
    let mut other = good("web");
    other["metadata"]["name"] = "another".into();
    t.try_(r, "create", "another name", Call::post(of("web"), other.clone()), Refused("cannot create"));
    let another = format!("{}/another", of("web"));
    t.try_(r, "patch", "another name", Call::apply(&another, other.clone()), Refused("cannot patch"));
    t.try_(r, "escalate", "another name", Call::apply(another, other), Refused("cannot patch"));
    for namespace in ["kube-system", "etcd-tls-system"] {
        let call = Call::apply(one("roles", namespace), good(namespace));
        t.try_(r, "create", "in a namespace that cannot opt in", call, Refused("etcd-tls: approve writes no"));
    }
    let fifty_two: Vec<String> = (0..52).map(|n| format!("etcd-tls-trust-c{n}")).collect();
    let cases: [(&str, Value); 16] = [
        ("every ConfigMap", rule(&|r| drop(r[0].as_object_mut().expect("a rule").remove("resourceNames")))),
        ("another ConfigMap", rule(&|r| r[0]["resourceNames"] = json!(["kube-root-ca.crt"]))),
        ("another ConfigMap as well", rule(&|r| r[0]["resourceNames"] = json!(["etcd-tls-trust-etcd", "app"]))),
        ("the prefix alone", rule(&|r| r[0]["resourceNames"] = json!(["etcd-tls-trust-"]))),
        ("too many", rule(&|r| r[0]["resourceNames"] = json!(fifty_two))),
        ("a Secret of such a name", rule(&|r| r[0]["resources"] = json!(["secrets"]))),
        ("Secrets as well", rule(&|r| r[0]["resources"] = json!(["configmaps", "secrets"]))),
        ("everything of such a name", rule(&|r| r[0]["resources"] = json!(["*"]))),
        ("another group", rule(&|r| r[0]["apiGroups"] = json!(["", "apps"]))),
        ("a write", rule(&|r| r[0]["verbs"] = json!(["get", "watch", "patch"]))),
        ("every verb", rule(&|r| r[0]["verbs"] = json!(["*"]))),
        ("a list", rule(&|r| r[0]["verbs"] = json!(["get", "list", "watch"]))),
        ("no rule", rule(&|r| *r = json!([]))),
        (
            "a second rule",
            rule(&|r| {
                let more = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
                r.as_array_mut().expect("rules").push(more);
            }),
        ),
        ("a long name", rule(&|r| r[0]["resourceNames"] = json!([format!("etcd-tls-trust-{}", "a".repeat(239))]))),
        (
            "what approve has itself",
            rule(&|r| *r = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}])),
        ),
    ];
    let why = "etcd-tls: Role etcd-tls-trust-reader has one rule";
    for (what, body) in cases {
        t.try_(r, "escalate", what, Call::apply(one("roles", "prod"), body.clone()), Refused(why));
        t.try_(r, "patch", what, Call::merge(one("roles", "prod"), json!({"rules": body["rules"]})), Refused(why));
        let mut body = body;
        body["metadata"]["namespace"] = "web".into();
        t.try_(r, "create", what, Call::apply(one("roles", "web"), body), Refused(why));
    }
    for (what, metadata) in [
        ("a finalizer", json!({"finalizers": ["example.com/f"]})),
        ("an annotation", json!({"annotations": {"a": "b"}})),
        ("another label", json!({"labels": {"a": "b"}})),
        ("no label", json!({"labels": {"app.kubernetes.io/name": null}})),
        ("an owner", json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]})),
    ] {
        let call = Call::merge(one("roles", "prod"), json!({"metadata": metadata}));
        t.try_(r, "patch", what, call, Refused("etcd-tls: approve writes no metadata"));
    }
    for (what, metadata) in large_metadata() {
        let call = Call::merge(one("roles", "prod"), json!({"metadata": metadata}));
        t.try_(r, "patch", what, call, Refused("etcd-tls"));
    }
    t.try_(
        r,
        "delete",
        "another name",
        Call::delete(format!("{}/etcd-client-tls", of("prod"))),
        Refused("cannot delete"),
    );
    t.try_(r, "delete", "who opted out", Call::delete(one("roles", "prod")).dry(), Works);
    // Other roles.
    for (what, namespace, role, why) in [
        ("another Role", "prod", json!({"kind": "Role", "name": "etcd-client-tls"}), "not currently held"),
        ("cluster-admin", "web", json!({"kind": "ClusterRole", "name": "cluster-admin"}), "not currently held"),
        ("sign's", "web", json!({"kind": "ClusterRole", "name": "etcd-tls-trust"}), "etcd-tls: approve binds"),
    ] {
        let mut binding = reader_binding(namespace, own(namespace));
        binding["roleRef"] = role;
        binding["roleRef"]["apiGroup"] = "rbac.authorization.k8s.io".into();
        t.try_(r, "bind", what, Call::apply(one("rolebindings", namespace), binding), Refused(why));
    }
    let mut sign = trust_binding("web", sign_subject());
    sign["roleRef"] = json!({"kind": "Role", "name": NAME, "apiGroup": "rbac.authorization.k8s.io"});
    let call = Call::apply(format!("{RBAC}/namespaces/web/rolebindings/etcd-tls-sign"), sign);
    t.try_(r, "bind", "by the other name", call, Refused("etcd-tls: approve binds"));
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "name": name, "apiGroup": "rbac.authorization.k8s.io"})
}

/// All accounts of a namespace.
fn own(namespace: &str) -> Value {
    json!([group(&format!("system:serviceaccounts:{namespace}"))])
}

/// The RoleBinding: accounts of its namespace, and nobody else.
pub(super) fn bindings(t: &mut Of<'_>) {
    let r = "rbac.authorization.k8s.io/rolebindings";
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "name": name, "namespace": namespace});
    let apply = |namespace: &str, subjects: Value| {
        Call::apply(one("rolebindings", namespace), reader_binding(namespace, subjects))
    };
    let fifty: Vec<Value> = (0..50).map(|n| account("web", &format!("a{n}"))).collect();
    t.try_(r, "create", "its accounts", apply("web", own("web")).dry(), Works);
    t.try_(r, "create", "fifty accounts", apply("web", json!(fifty)).dry(), Works);
    t.try_(r, "patch", "an account", apply("prod", json!([account("prod", "default")])).dry(), Works);
    let mut fifty_one = fifty;
    fifty_one.push(account("web", "a50"));
    t.try_(r, "create", "too many", apply("web", json!(fifty_one)), Refused("etcd-tls: who watches trust"));
    for (what, subjects) in [
        ("nobody", json!([])),
        ("another namespace's accounts", own("web")),
        ("another namespace's accounts as well", json!([own("prod")[0], own("web")[0]])),
        ("an account of another namespace", json!([account("web", "default")])),
        ("every service account", json!([group("system:serviceaccounts")])),
        ("everybody", json!([group("system:authenticated")])),
        ("a user", json!([{"kind": "User", "name": "emil", "apiGroup": "rbac.authorization.k8s.io"}])),
        ("itself", json!([account("etcd-tls-system", "etcd-tls-approve")])),
    ] {
        t.try_(r, "patch", what, apply("prod", subjects), Refused("etcd-tls: who watches trust"));
    }
    for namespace in ["kube-system", "etcd-tls-system"] {
        let call = apply(namespace, own(namespace));
        t.try_(r, "create", "in a namespace that cannot opt in", call, Refused("etcd-tls: approve writes no"));
    }
    t.try_(r, "delete", "who opted out, of trust", Call::delete(one("rolebindings", "prod")).dry(), Works);
}
