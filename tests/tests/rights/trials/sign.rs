//! The rights of `sign`.

use super::*;

pub(super) fn sign(t: &mut Of<'_>, scene: &Scene) {
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
        ("add a name to make one of", json!({"generateName": "x".repeat(200_000)})),
    ] {
        let body = json!({"metadata": metadata, "status": failed["status"]});
        t.try_(r, "patch", what, Call::merge(format!("{approved}/status"), body), Refused("etcd-tls"));
    }
    let engine = &base64::engine::general_purpose::STANDARD;
    let fat = |text: usize| {
        let pem = format!("{}\n{}", "x".repeat(text), scene.api.ca.pem);
        Call::merge(
            format!("{approved}/status"),
            json!({"status": {"certificate": base64::Engine::encode(engine, pem)}}),
        )
    };
    t.try_(r, "patch", "a certificate behind a long text", fat(64 * 1024), Refused("etcd-tls: the certificate"));
    t.try_(r, "patch", "a certificate behind a text", fat(60 * 1024).dry(), Works);
    t.try_(
        r,
        "patch",
        "annotate another signer's",
        Call::merge(format!("{theirs}/status"), json!({"metadata": {"annotations": {"a": "b"}}})),
        Refused("etcd-tls"),
    );
    let r = "certificates.k8s.io/signers";
    let certificate = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &scene.api.ca.pem);
    t.try_(
        r,
        "sign",
        "another signer's",
        Call::merge(format!("{theirs}/status"), json!({"status": {"certificate": certificate}})),
        Refused("not permitted to sign"),
    );
    t.try_(
        r,
        "sign",
        "another signer's, failed",
        Call::merge(format!("{theirs}/status"), approval("Failed")),
        Refused("not permitted to sign"),
    );
    for resource in ["pods", "services", "namespaces"] {
        t.stated(resource, &["get", "list", "watch"], "`sign` reads every pod, Service and namespace of the cluster");
    }
    t.stated(
        "configmaps",
        &["list", "watch"],
        "`sign` reads every ConfigMap of the cluster, to watch the trust bundles by one watch",
    );
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

/// The writes that `sign` may make to the webhook configuration `r`; `policy` is another failurePolicy than it has.
pub(super) fn webhooks(t: &mut Of<'_>, scene: &Scene, r: &str, entry: &str, policy: &str) {
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

pub(super) fn secrets(t: &mut Of<'_>) {
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

pub(super) fn trust(t: &mut Of<'_>) {
    let all = "/api/v1/namespaces/prod/configmaps";
    let r = "configmaps";
    t.stated(r, &["get"], "`sign` reads every ConfigMap of an opted-in namespace");
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
