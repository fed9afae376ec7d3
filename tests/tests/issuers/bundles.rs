//! Trust bundles of our own authorities as ClusterTrustBundles: published, followed and deleted by `sign` with the component's
//! rights, which reach no other.

use etcd_tls_contract::certificate::Bundle;
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{Options as ApiOptions, from_json},
    cluster_trust_bundle::cluster_trust_bundle,
    eventually,
    installation::{Installation, Options},
    process::{binary, run},
};

use crate::scene::LIMIT;

const SYSTEM: &str = "etcd-tls-system";
pub const OURS: &str = "client.etcd-tls.dev:prod.etcd:bundle";
const OF_PEERS: &str = "peer.etcd-tls.dev:prod.etcd:bundle";
const MANAGED: &str = "app.kubernetes.io/managed-by";

fn resource() -> ApiResource {
    ApiResource {
        group: "certificates.k8s.io".into(),
        version: "v1beta1".into(),
        api_version: "certificates.k8s.io/v1beta1".into(),
        kind: "ClusterTrustBundle".into(),
        plural: "clustertrustbundles".into(),
    }
}

async fn create(api: &Api<DynamicObject>, object: &Value) -> kube::Result<DynamicObject> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry_run, &from_json(object.clone())).await
}

/// An API server that has ClusterTrustBundles and their projection, and `sign` that publishes them.
pub fn options() -> Options {
    let apiserver_arguments = vec![
        "--feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true".to_owned(),
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true".to_owned(),
    ];
    Options {
        sign: vec!["--cluster-trust-bundles".to_owned()],
        api: ApiOptions { apiserver_arguments, ..ApiOptions::default() },
        ..Options::default()
    }
}

/// Our ClusterTrustBundle of this name.
pub async fn published(installation: &Installation, name: &str) -> Result<Bundle, String> {
    let bundles: Api<DynamicObject> = Api::all_with(installation.api.client.clone(), &resource());
    let found = bundles.get(name).await.map_err(|e| e.to_string())?;
    Bundle::parse(found.data["spec"]["trustBundle"].as_str().unwrap_or_default().as_bytes()).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_bundles_are_published_as_cluster_trust_bundles() {
    let options = options();
    let Some(mut installation) = Installation::start(&options).await else { return };
    // The flag without the component: said, and everything else works.
    installation.sign.logged("ClusterTrustBundles are not published", LIMIT).await;
    assert!(installation.sign.log().contains("forbidden"), "{}", installation.sign.log());
    installation.api.apply_components(&["cluster-trust-bundles"]);
    installation.restart_sign(&options.sign).await;

    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let pod = json!({
        "metadata": {"name": "app", "labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    });
    installation.api.pod("prod", pod).await.expect("a pod");
    let bundles: Api<DynamicObject> = Api::all_with(installation.api.client.clone(), &resource());
    let read = async |name: &str| {
        let found = bundles.get(name).await.map_err(|e| e.to_string())?;
        let pem = found.data["spec"]["trustBundle"].as_str().expect("a bundle").to_owned();
        Ok::<_, String>((found, Bundle::parse(pem.as_bytes()).expect("CAs")))
    };
    let published =
        async || Bundle::parse(installation.bundle("prod", "client").await.expect("a ConfigMap").as_bytes());
    let (found, first) = eventually("a ClusterTrustBundle", LIMIT, || read(OURS)).await;
    assert_eq!(found.data["spec"]["signerName"], "client.etcd-tls.dev/prod.etcd");
    assert_eq!(Ok(first.clone()), published().await, "the bundle of the trust ConfigMap");

    // A rollover: both CAs. Foreign changes are repaired.
    let mut command = std::process::Command::new(binary("etcd-tls-webhook"));
    command.args(["rollover", "prod/etcd", "--domain", "client"]).env("KUBECONFIG", &installation.api.kubeconfig);
    tokio::task::spawn_blocking(move || run(&mut command)).await.expect("run");
    let both = async || {
        let (_, now) = read(OURS).await?;
        if now.contains(&first) && now != first && Ok(now) == published().await {
            Ok(())
        } else {
            Err("not both".to_owned())
        }
    };
    eventually("both CAs", LIMIT, &both).await;
    let (_, of_peers) = eventually("another ClusterTrustBundle", LIMIT, || read(OF_PEERS)).await;
    // The first one in our hands no more by its label: it is taken back, and holds up no other.
    let foreign = |labels: Value| {
        Patch::Merge(json!({"metadata": {"labels": labels}, "spec": {"trustBundle": installation.api.ca.pem}}))
    };
    for (name, labels) in [(OURS, json!({MANAGED: null})), (OF_PEERS, json!({}))] {
        bundles.patch(name, &PatchParams::default(), &foreign(labels)).await.expect("as cluster-admin");
    }
    eventually("mended", LIMIT, &both).await;
    eventually("the other one mended", LIMIT, || async {
        if read(OF_PEERS).await?.1 == of_peers { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(read(OURS).await.expect("ours").0.labels().get(MANAGED).map(String::as_str), Some("etcd-tls"));

    reaches_no_other(&installation, &bundles).await;

    installation.api.kubectl(&["delete", "namespace", "prod", "--wait=false"]);
    eventually("deleted with the namespace", LIMIT, || async {
        let labelled = ListParams::default().labels("app.kubernetes.io/managed-by=etcd-tls");
        let left = bundles.list(&labelled).await.map_err(|e| e.to_string())?.items;
        let left: Vec<_> = left.iter().map(|b| b.name_any()).filter(|name| name.contains(":prod.")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    bundles.get("company").await.expect("others' bundles stay");
}

/// The right to ClusterTrustBundles, with what it is not for; and ours in the hands of somebody else.
async fn reaches_no_other(installation: &Installation, bundles: &Api<DynamicObject>) {
    let pem = installation.api.ca.pem.as_str();
    let theirs = [("company", None), ("example.com:ca:x", Some("example.com/ca"))];
    for (name, signer) in theirs {
        let object = from_json(cluster_trust_bundle(name, signer, pem));
        bundles.create(&PostParams::default(), &object).await.expect("as cluster-admin");
    }
    let token = installation.api.token(SYSTEM, "etcd-tls-sign", None).await;
    let as_sign: Api<DynamicObject> = Api::all_with(installation.api.client_with_token(&token).await, &resource());
    let (name, signer) = ("peer.etcd-tls.dev:prod.other:bundle", Some("peer.etcd-tls.dev/prod.other"));
    let good = cluster_trust_bundle(name, signer, pem);
    // The policy comes into force a moment after it was created.
    eventually("the policy in force", LIMIT, || async {
        match create(&as_sign, &cluster_trust_bundle("x", None, pem)).await {
            Err(error) if error.to_string().contains("etcd-tls: sign writes") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    create(&as_sign, &good).await.expect("its own");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut object = good.clone();
        change(&mut object);
        object
    };
    let many = pem.repeat(1 + 65536 / pem.len());
    for (what, object) in [
        ("no signer", cluster_trust_bundle("company2", None, pem)),
        ("another signer's", cluster_trust_bundle("example.com:ca:y", Some("example.com/ca"), pem)),
        ("another name", cluster_trust_bundle("peer.etcd-tls.dev:prod.other:x", signer, pem)),
        (
            "no cluster of ours",
            cluster_trust_bundle("peer.etcd-tls.dev:prod:bundle", Some("peer.etcd-tls.dev/prod"), pem),
        ),
        ("a finalizer", with(&|o| o["metadata"]["finalizers"] = json!(["example.com/f"]))),
        (
            "an owner",
            with(&|o| {
                o["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}])
            }),
        ),
        ("a label", with(&|o| o["metadata"]["labels"]["a"] = "b".into())),
        ("an annotation", with(&|o| o["metadata"]["annotations"]["a"] = "b".into())),
        (
            "a long annotation",
            with(&|o| o["metadata"]["annotations"]["etcd-tls.dev/namespace-uid"] = "u".repeat(65).into()),
        ),
        ("a large bundle", with(&|o| o["spec"]["trustBundle"] = many.clone().into())),
    ] {
        let refused = create(&as_sign, &object).await.expect_err(what).to_string();
        assert!(
            ["etcd-tls", "permitted to attest", "duplicate"].iter().any(|word| refused.contains(word)),
            "{what}: {refused}"
        );
    }
    for (name, _) in theirs {
        let refused = as_sign.delete(name, &DeleteParams::default()).await.expect_err("deleted").to_string();
        assert!(refused.contains("etcd-tls: sign writes and deletes"), "{refused}");
        let change = Patch::Merge(json!({"spec": {"trustBundle": pem.repeat(2)}}));
        as_sign.patch(name, &PatchParams::default(), &change).await.expect_err("changed");
    }

    // An account that may write ClusterTrustBundles but not attest for our signers.
    let name = "bundle-writer";
    let rule = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": ["create", "patch"]});
    let rbac = "rbac.authorization.k8s.io";
    let items = [
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "prod"}],
        }),
    ];
    installation.api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    let token = installation.api.token("prod", "default", None).await;
    let writer: Api<DynamicObject> = Api::all_with(installation.api.client_with_token(&token).await, &resource());
    let plain = cluster_trust_bundle("y", None, pem);
    eventually("the right in force", LIMIT, || create(&writer, &plain)).await;
    let refused = create(&writer, &good).await.expect_err("attested").to_string();
    assert!(refused.contains("attest"), "{refused}");
}
