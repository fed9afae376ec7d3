//! The rights of `approve`.

use super::*;

pub(super) fn approve(t: &mut Of<'_>, scene: &Scene) {
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
    t.try_(r, "patch", "say that a person decides", Call::merge(&ours, approval("EtcdTlsReviewed")).dry(), Works);
    let mut person = approval("Approved");
    person["status"]["conditions"][0]["reason"] = "KubectlApprove".into();
    t.try_(r, "patch", "approve as a person would", Call::merge(&ours, person.clone()), Refused("that of approve"));
    // In two writes: the API server lets an approver change the reason of what it has approved.
    let approved = format!("{CSRS}/{}/approval", scene.csr("approved"));
    t.try_(r, "patch", "make its approval a person's", Call::merge(approved, person), Refused("keep the decisions"));
    for (what, metadata) in [
        ("say what etcd has loaded", json!({"annotations": {"etcd-tls.dev/trusts": "0".repeat(32)}})),
        ("annotate", json!({"annotations": {"a": "x".repeat(200_000)}})),
        ("label", json!({"labels": {"a": "b"}})),
        ("add a finalizer", json!({"finalizers": ["example.com/f"]})),
        ("add an owner", json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]})),
        ("add a name to make one of", json!({"generateName": "x".repeat(200_000)})),
    ] {
        t.try_(r, "patch", what, Call::merge(&ours, with(metadata)), Refused("etcd-tls"));
    }
    let many: Vec<Value> = (0..1000).map(|n| approval(&format!("Type{n}"))["status"]["conditions"][0].take()).collect();
    for (what, body) in [
        ("write a condition of another type", approval(&"x".repeat(100_000))),
        ("write a thousand conditions", json!({"status": {"conditions": many}})),
    ] {
        t.try_(r, "patch", what, Call::merge(&ours, body), Refused("one condition"));
    }
    let theirs = format!("{CSRS}/theirs/approval");
    t.try_(
        r,
        "patch",
        "annotate another signer's",
        Call::merge(&theirs, json!({"metadata": {"annotations": {"a": "b"}}})),
        Refused("not permitted to approve"),
    );
    let r = "certificates.k8s.io/signers";
    t.try_(
        r,
        "approve",
        "approve another signer's",
        Call::merge(&theirs, approval("Approved")),
        Refused("not permitted"),
    );
    t.try_(
        r,
        "approve",
        "deny another signer's",
        Call::merge(&theirs, approval("Denied")),
        Refused("not permitted to approve"),
    );
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
        t.try_(r, "patch", what, call, Refused("etcd-tls: a requester is"));
        let call = Call::merge(&one, json!({"subjects": [subject]}));
        t.try_(r, "patch", what, call, Refused("etcd-tls: a requester is"));
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
    for (what, metadata) in large_metadata() {
        t.try_(r, "patch", what, Call::merge(&one, json!({"metadata": metadata})), Refused("etcd-tls"));
    }
    let mut of_long_namespace = user("host-1");
    of_long_namespace["namespace"] = "n".repeat(64).into();
    for (what, subject) in [
        ("a user of a long name", user(&"u".repeat(513))),
        ("an account of a long namespace", account(&"n".repeat(64))),
        ("a user of a long namespace", of_long_namespace),
    ] {
        let call = Call::apply(&one, requesters(json!([subject])));
        t.try_(r, "patch", what, call, Refused("etcd-tls: the name of a subject"));
    }
    t.try_(
        r,
        "patch",
        "another role",
        Call::merge(&one, json!({"roleRef": {"name": "cluster-admin"}})),
        Refused("not currently held"),
    );
    role_bindings(t);
    readers::roles(t);
    readers::bindings(t);
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicies", &["get"], VAP, "other");
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicybindings", &["get"], VAPB, "other");
}

/// Attack 1: the reach of a right to bind in two steps.
pub(super) fn role_bindings(t: &mut Of<'_>) {
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
    for (what, metadata) in large_metadata() {
        t.try_(r, "patch", what, Call::merge(one("prod"), json!({"metadata": metadata})), Refused("etcd-tls"));
    }
    let mut with = trust_binding("web", sign_subject());
    with["metadata"]["generateName"] = "x".repeat(200_000).into();
    t.try_(r, "create", "with a name to make one of", Call::apply(one("web"), with), Refused("etcd-tls"));
    let own = role_binding("etcd-tls-system", trust, itself.clone());
    t.try_(
        r,
        "patch",
        "sign's own, in the system namespace",
        Call::merge(one("etcd-tls-system"), json!({"subjects": own["subjects"]})),
        Refused("not currently held"),
    );
    t.try_(
        r,
        "patch",
        "sign's own, metadata alone",
        Call::merge(one("etcd-tls-system"), json!({"metadata": {"labels": {"a": "b"}}})),
        Refused("not currently held"),
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
        Refused("not currently held"),
    );
    let edit = json!({"kind": "ClusterRole", "name": "edit"});
    t.try_(
        "rbac.authorization.k8s.io/clusterroles",
        "bind",
        "edit",
        Call::apply(one("web"), role_binding("web", edit, itself)),
        Refused("etcd-tls: approve binds"),
    );
}
