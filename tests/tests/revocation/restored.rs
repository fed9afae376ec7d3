//! A restored Secret of an authority lacks the revocations that were made since. The last request stands in the trust ConfigMap.

use std::time::Duration;

use etcd_tls_contract::names;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::{
    revocation::{published, revoke},
    stack::{Options, Stack},
};

use tokio::time::sleep;

use super::watched::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restored_secret_the_last_revocation_stands_and_those_before_it_are_to_be_repeated() {
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
    for serial in ["4f0b", "4f0c"] {
        revoke(&admin, &["prod/etcd", "--serial", serial]).await.expect("revoked");
    }
    client.has("all", &["4f0a", "4f0b", "4f0c"]).await;

    stack.sign.kill();
    // Nobody restores within the second of the last revocation, by which its list is numbered.
    sleep(Duration::from_secs(2)).await;
    let patch = Patch::Merge(json!({"data": older}));
    secrets.patch(&name, &PatchParams::default(), &patch).await.expect("restored");
    let arguments: [String; 0] = [];
    stack.restart_sign(&arguments).await;
    // Its list is newer than the one before, and sidecars take it.
    client.has("the first, and the last one again", &["4f0a", "4f0c"]).await;
    revoke(&admin, &["prod/etcd", "--serial", "4f0b"]).await.expect("revoked again");
    client.has("all again", &["4f0a", "4f0b", "4f0c"]).await;
    let maps: Api<ConfigMap> = Api::namespaced(stack.api.client.clone(), "prod");
    let lists = published(&maps).await.expect("lists");
    assert!(lists["client"].entries().keys().eq(["4f0a", "4f0b", "4f0c"]), "{lists:?}");
}
