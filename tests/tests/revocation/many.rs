//! More pods that use a certificate than the signer names: all of them are found, and nobody is told that they were.

use std::{collections::BTreeSet, net::Ipv4Addr};

use etcd_tls_contract::{names, role::Role};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;
use tests::revocation::{ended, published, revoke};

use crate::{
    lab::Lab,
    signer::{issue, sign},
};

/// With such names the signer's report on those of them that it names is long.
fn pod_of(n: u8) -> String {
    format!("app-{n}{}", format!(".{}", "x".repeat(60)).repeat(3))
}

/// Pods of one user: more than [`etcd_tls_webhook::revoke::MOST_IN_USE`].
const PODS: u8 = 104;
/// Calls of the test at once.
const AT_ONCE: usize = 8;

/// None of these pods has a sidecar that runs, so none renews.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_pods_in_use_than_the_signer_names_are_revoked_by_at_once_alone() {
    let Some(lab) = Lab::new().await else { return };
    assert!(usize::from(PODS) > etcd_tls_webhook::revoke::MOST_IN_USE);
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("prod", &[(names::LABEL, names::DYNAMIC)]).await;
    lab.api.service_account("prod", "app").await;
    let issued = stream::iter(0..PODS).map(|n| {
        let lab = &lab;
        async move {
            let renew = format!("metadata.annotations['{}']", names::RENEW_ANNOTATION);
            let pod = json!({
                "metadata": {"name": pod_of(n), "annotations": {"etcd-tls.dev/roles": "client"}},
                "spec": {
                    "serviceAccountName": "app",
                    "containers": [{"name": "app", "image": "app"}],
                    "initContainers": [{"name": names::SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
                    "volumes": [{"name": names::TOKEN_VOLUME, "projected": {"sources": [
                        {"downwardAPI": {"items": [{"path": names::RENEW_FILE, "fieldRef": {"fieldPath": renew}}]}},
                    ]}}],
                },
            });
            lab.api.pod("prod", pod).await.expect("a pod");
            let ip = Ipv4Addr::new(10, 9, 0, n + 1);
            let pod = lab.api.set_pod_ips("prod", &pod_of(n), &[ip.into()]).await;
            issue(lab, &pod, Role::Client, None).await.1
        }
    });
    let chains: Vec<_> = issued.buffer_unordered(AT_ONCE).collect().await;
    let users: BTreeSet<&str> = chains.iter().map(|chain| chain.common_name.as_str()).collect();
    let user = users.first().copied().expect("a user");
    assert_eq!(users.len(), 1, "{users:?}");

    let admin = &lab.api.kubeconfig;
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let listed = async || published(&maps).await.expect("lists")["client"].entries().len();
    let arguments = ["prod/etcd", "--user", user, "--timeout=3s"];
    let (code, refused) = ended(admin, &arguments).await.expect_err("nobody renews");
    assert!(code == Some(75) && refused.contains("has no newer certificate"), "{code:?}: {refused}");
    assert_eq!(listed().await, 0, "the pods that use them go on");
    // Those that the signer did not name may never have been asked.
    let (_, refused) = ended(admin, &[&arguments[..], &["--force"]].concat()).await.expect_err("nobody renews");
    assert!(refused.contains("others may not have been asked") && refused.contains("--at-once --force"), "{refused}");
    assert_eq!(listed().await, 0, "the pods that use them go on");
    let said = revoke(admin, &["prod/etcd", "--user", user, "--at-once", "--force"]).await.expect("revoked");
    assert!(said.contains(&format!("{PODS} certificates")), "{said}");
    let lists = published(&maps).await.expect("lists");
    assert!(chains.iter().all(|chain| lists["client"].entries().contains_key(&chain.serial)), "{lists:?}");
    assert_eq!(listed().await, usize::from(PODS));
}
