//! A restored Secret of an authority lacks the revocations that were made since.

use etcd_tls_contract::names;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::{
    eventually,
    revocation::{published, revoke},
    stack::{LIMIT, Options, Stack},
};

use super::watched::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_keeps_the_newer_list_where_an_older_secret_is_restored() {
    let Some(mut stack) = Stack::start(&Options::default()).await else { return };
    stack.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    stack.api.service_account("prod", "app").await;
    let admin = stack.api.kubeconfig.clone();
    let client = Client::start(&mut stack, "etcd").await;
    revoke(&admin, &["prod/etcd", "--serial", "4f0a"]).await.expect("revoked");
    client.has("the first", &["4f0a"]).await;
    let namespaces: Api<Namespace> = Api::all(stack.api.client.clone());
    let uid = namespaces.get("prod").await.expect("a namespace").metadata.uid.expect("a uid");
    let secrets: Api<Secret> = Api::namespaced(stack.api.client.clone(), names::SYSTEM_NAMESPACE);
    let name = format!("etcd-tls-ca-{uid}-etcd-client");
    let older = secrets.get(&name).await.expect("the authority").data.expect("its content");
    revoke(&admin, &["prod/etcd", "--serial", "4f0b"]).await.expect("revoked");
    client.has("both", &["4f0a", "4f0b"]).await;

    stack.sign.kill();
    let patch = Patch::Merge(json!({"data": older}));
    secrets.patch(&name, &PatchParams::default(), &patch).await.expect("restored");
    let arguments: [String; 0] = [];
    stack.restart_sign(&arguments).await;
    let maps: Api<ConfigMap> = Api::namespaced(stack.api.client.clone(), "prod");
    eventually("the older list is published", LIMIT, || async {
        let lists = published(&maps).await?;
        if lists["client"].entries().keys().eq(["4f0a"]) { Ok(()) } else { Err(format!("{lists:?}")) }
    })
    .await;
    client.shows("etcd_tls_revocation_list_refused{domain=\"client\"} 1").await;
    client.has("both still", &["4f0a", "4f0b"]).await;

    // Repeated, it is on the next list, which is newer than all before.
    revoke(&admin, &["prod/etcd", "--serial", "4f0b"]).await.expect("revoked again");
    client.shows("etcd_tls_revocation_list_refused{domain=\"client\"} 0").await;
    client.has("both", &["4f0a", "4f0b"]).await;
    let lists = published(&maps).await.expect("lists");
    assert!(lists["client"].entries().keys().eq(["4f0a", "4f0b"]), "{lists:?}");
}
