//! What the account of `approve` cannot do with requests to the issuers of others, whoever has its token.

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{apiserver::from_json, cert_manager::resource, eventually};

use super::{
    approving::{Asked, SYSTEM, Way, approve, arguments, install, issuer_of, lab, let_approve_all, pod, ways},
    scene::{Kind, LIMIT, Lab},
};

/// What a stolen token of `approve` can write to requests to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_of_approve_decides_what_is_listed_and_nothing_else() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    let ways = ways(&lab);
    let approve = approve(&lab, &[]).await;
    let token = lab.api.token(SYSTEM, "etcd-tls-approve", None).await;
    let stolen = lab.api.client_with_token(&token).await;
    for way in &ways {
        let pod = pod(&lab, way.namespace, "etcd-0", &[("issuer", &issuer_of(way))]).await;
        let asked = Asked::of(way.namespace, "etcd-0");
        let name = way.ask(&pod, &asked).await;
        let theirs = way.create(lab.api.client.clone(), &pod, &asked, Some("of-others")).await;
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let approved = json!({"conditions": [condition("Approved", "True")]});
        // A policy that was just installed takes a moment.
        let refused = eventually("a refusal of what is not listed", LIMIT, || async {
            write(way, &stolen, &name, &approved).await.err().ok_or("written")
        })
        .await;
        assert!(refused.contains("approve") && refused.contains("etcd-tls"), "{refused}");
        let_approve_all(&lab, std::slice::from_ref(way));
        eventually("the right to approve", LIMIT, || write(way, &stolen, &name, &approved)).await;
        write(way, &stolen, &name, &json!({"conditions": [condition("Denied", "True")]})).await.expect("deny");
        write(way, &stolen, &theirs, &approved).await.expect_err("of others");
        // Nor does it fill the API server's storage.
        for field in ["reason", "message"] {
            let mut long = condition("Approved", "True");
            long[field] = "x".repeat(if field == "reason" { 129 } else { 8193 }).into();
            let refused =
                write(way, &stolen, &name, &json!({"conditions": [long.clone()]})).await.expect_err("too long");
            assert!(refused.contains("characters at most"), "{refused}");
            long[field] = "x".repeat(if field == "reason" { 128 } else { 8192 }).into();
            write(way, &stolen, &name, &json!({"conditions": [long]}))
                .await
                .expect("long enough for all that is written");
        }
        let number = (0..1000).map(|n| condition(&format!("Type{n}"), "True"));
        for conditions in [
            json!([condition(&"x".repeat(100_000), "True")]),
            json!([condition("Approved", "True"), condition("Reviewed", "True")]),
            Value::from_iter(number),
        ] {
            let refused = write(way, &stolen, &name, &json!({"conditions": conditions})).await.expect_err("filled up");
            assert!(refused.contains("etcd-tls: approve") && refused.contains("one condition"), "{refused}");
        }
        // As docs/security.md says: nobody of ours looks at the name again, and it reads the requests of all namespaces.
        let any =
            Asked { common_name: "system:kube-controller-manager".to_owned(), ..Asked::of(way.namespace, "etcd-0") };
        let any = way.ask(&pod, &any).await;
        write(way, &stolen, &any, &approved).await.expect("any name that a pod requests");
        let all: Api<DynamicObject> = Api::all_with(stolen.clone(), &resource());
        all.list(&ListParams::default()).await.expect("it reads every CertificateRequest");
        let (requests, signing) = way.client(stolen.clone());
        match way.kind {
            Kind::CertManager => {
                for status in [
                    json!({"conditions": [condition("Approved", "True"), condition("Ready", "True")]}),
                    json!({"conditions": [condition("Ready", "True")]}),
                    json!({"conditions": [condition("Approved", "False")]}),
                    json!({"certificate": "YWJj"}),
                    json!({"ca": "YWJj"}),
                    json!({"failureTime": "2026-01-01T00:00:00Z"}),
                ] {
                    let refused = write(way, &stolen, &name, &status).await.expect_err("refused");
                    assert!(refused.contains("etcd-tls: approve"), "{status}: {refused}");
                }
                let dry = PatchParams { dry_run: true, ..PatchParams::default() };
                let label = json!({"metadata": {"labels": {"a": "b"}}});
                requests.patch(&name, &dry, &Patch::Merge(label)).await.expect_err("no right to the request itself");
                requests.delete(&name, &Default::default()).await.expect_err("no right to delete");
                // A decision stays.
                let admin = way.client(lab.api.client.clone()).0;
                let denied = Patch::Merge(json!({"status": {"conditions": [condition("Denied", "True")]}}));
                admin.patch_status(&name, &PatchParams::default(), &denied).await.expect("denied by an administrator");
                for conditions in [
                    json!([condition("Approved", "True")]),
                    json!([condition("Denied", "True"), condition("Approved", "True")]),
                    json!([]),
                ] {
                    write(way, &stolen, &name, &json!({"conditions": conditions})).await.expect_err("it is denied");
                }
            }
            Kind::Signer => {
                let patch = Patch::Merge(json!({"status": {"certificate": "YWJj"}}));
                signing.patch_status(&name, &PatchParams::default(), &patch).await.expect_err("no right to sign");
                signing.delete(&name, &Default::default()).await.expect_err("no right to delete");
            }
        }
    }
    drop(approve);
    nobody_else_says_who_asks(&lab, &ways[0]).await;
}

/// Another approver may have written more than ours may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_of_another_approver_keeps_ours_from_no_decision() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    let ways = ways(&lab);
    let approve = approve(&lab, &arguments(&ways)).await;
    for way in &ways {
        let pod = pod(&lab, way.namespace, "etcd-0", &[("issuer", &issuer_of(way))]).await;
        let name = way.ask(&pod, &Asked::of(way.namespace, "etcd-0")).await;
        let long = json!({
            "type": "Reviewed", "status": "True", "reason": "x".repeat(200), "message": "x".repeat(10_000),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let (requests, signing) = way.client(lab.api.client.clone());
        let (params, patch) = (PatchParams::default(), Patch::Merge(json!({"status": {"conditions": [long]}})));
        match way.kind {
            Kind::CertManager => drop(requests.patch_status(&name, &params, &patch).await.expect("a condition")),
            Kind::Signer => drop(signing.patch_approval(&name, &params, &patch).await.expect("a condition")),
        }
        way.is_open(&name).await;
        let theirs = way.condition(&name, "Reviewed").await.expect("their condition");
        let_approve_all(&lab, std::slice::from_ref(way));
        eventually("an approval", LIMIT, || async {
            way.condition(&name, "Approved").await.ok_or_else(|| approve.log_end())
        })
        .await;
        assert_eq!(way.condition(&name, "Reviewed").await, Some(theirs), "it stays");
    }
}

/// A decision as a dry run.
async fn write(way: &Way<'_>, client: &Client, name: &str, status: &Value) -> Result<(), String> {
    let (requests, signing) = way.client(client.clone());
    let (dry, patch) =
        (PatchParams { dry_run: true, ..PatchParams::default() }, Patch::Merge(json!({"status": status})));
    let result = match way.kind {
        Kind::CertManager => requests.patch_status(name, &dry, &patch).await.map(drop),
        Kind::Signer => signing.patch_approval(name, &dry, &patch).await.map(drop),
    };
    result.map_err(|error| error.to_string())
}

/// Where cert-manager's webhook is away, an account that no policy of pods holds could write another's name.
async fn nobody_else_says_who_asks(lab: &Lab, way: &Way<'_>) {
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        lab.api.kubectl(&["delete", kind, "cert-manager-webhook"]);
    }
    let pod = pod(lab, way.namespace, "etcd-2", &[("issuer", &issuer_of(way))]).await;
    let (_, mut object) = way.object(&pod, &Asked::of(way.namespace, "etcd-2"), None);
    object["spec"]["username"] = format!("system:serviceaccount:{}:default", way.namespace).into();
    let requests = way.client(lab.api.client.clone()).0;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("who asks to be refused", LIMIT, || async {
        match requests.create(&dry, &from_json(object.clone())).await {
            Err(error) if error.to_string().contains("those of the account that asks") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let good = way.ask(&pod, &Asked::of(way.namespace, "etcd-2")).await;
    let forged = Patch::Merge(json!({"spec": {"username": "system:admin"}}));
    let refused = requests.patch(&good, &PatchParams::default(), &forged).await.expect_err("another name").to_string();
    assert!(refused.contains("does not change"), "{refused}");
}
