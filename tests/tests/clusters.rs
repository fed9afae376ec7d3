//! Tier 2: admission in clusters with rules of their own: OpenShift's restricted-v2, a LimitRange, a ResourceQuota.

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::{
    eventually,
    installation::{Installation, LIMIT, Options},
};

/// The rules of OpenShift's SecurityContextConstraints restricted-v2 for a namespace whose users are
/// 1000680000-1000689999, as a ValidatingAdmissionPolicy. (OpenShift's own admission assigns the users; a policy cannot.)
const RESTRICTED_V2: &str = include_str!("../fixtures/restricted-v2.yaml");

fn member(annotations: &Value, security: &Value) -> Value {
    json!({
        "metadata": {"generateName": "etcd-", "labels": {"etcd-tls": "dynamic"}, "annotations": annotations},
        "spec": {"containers": [{
            "name": "etcd", "image": "etcd", "command": ["etcd", "--listen-client-urls=https://0.0.0.0:2379"],
            "securityContext": security,
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        }]},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_injected_pod_meets_the_rules_of_its_cluster() {
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    openshift(&installation).await;
    limit_range(&installation).await;
    quota(&installation).await;
}

async fn openshift(installation: &Installation) {
    installation.api.apply(RESTRICTED_V2);
    installation.api.namespace("openshift", &[("scc", "restricted-v2")]).await;
    // Until it is enforced.
    let fixed = json!({"runAsUser": 65532});
    eventually("the policy", LIMIT, || async {
        match installation.api.pod("openshift", member(&json!({}), &fixed)).await {
            Err(error) if error.to_string().contains("runAsUser is not in the range") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for (security, user) in
        [(json!({}), Value::Null), (json!({"runAsUser": 1_000_680_000_u32}), json!(1_000_680_000_u32))]
    {
        let pod =
            installation.api.pod("openshift", member(&json!({}), &security)).await.expect("a pod that meets the rules");
        let pod = serde_json::to_value(pod).expect("JSON");
        let init = pod["spec"]["initContainers"].as_array().expect("injected").clone();
        assert_eq!(init.len(), 2);
        assert!(init.iter().all(|c| c["securityContext"]["runAsUser"] == user), "{init:?}");
        assert!(init.iter().all(|c| c["securityContext"]["runAsNonRoot"] == true));
    }
}

async fn limit_range(installation: &Installation) {
    installation.api.namespace("limited", &[]).await;
    installation.api.kubectl(&["create", "-n", "limited", "-f", &file(installation, &json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
        "spec": {"limits": [{"type": "Container", "min": {"cpu": "50m", "memory": "32Mi"}, "maxLimitRequestRatio": {"cpu": "4"}}]},
    }))]);
    let create =
        |annotations: Value| async move { installation.api.pod("limited", member(&annotations, &json!({}))).await };
    eventually("the LimitRange", LIMIT, || async {
        match create(json!({})).await {
            Err(error) if error.to_string().contains("minimum cpu usage per Container is 50m") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let resources = "requests.cpu=50m,requests.memory=32Mi,limits.cpu=200m";
    let pod = create(json!({"etcd-tls.dev/resources": resources})).await.expect("within the limits");
    let pod = serde_json::to_value(pod).expect("JSON");
    for container in pod["spec"]["initContainers"].as_array().expect("injected") {
        assert_eq!(
            container["resources"],
            json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}})
        );
    }
    installation.api.namespace("ratio", &[]).await;
    ratio(installation, "ratio");
    refused_for_the_ratio(installation, "ratio", &json!({})).await;
    let annotations = json!({"etcd-tls.dev/resources": "requests.cpu=125m"});
    installation.api.pod("ratio", member(&annotations, &json!({}))).await.expect("within the ratio");
}

/// A ratio that the built-in resources do not meet, as the one rule.
fn ratio(installation: &Installation, namespace: &str) {
    let limits = json!([{"type": "Container", "maxLimitRequestRatio": {"cpu": "4"}}]);
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": {"limits": limits},
    });
    installation.api.kubectl(&["create", "-n", namespace, "-f", &file(installation, &range)]);
}

/// Waits until a pod with these annotations is refused for the ratio.
async fn refused_for_the_ratio(installation: &Installation, namespace: &str, annotations: &Value) {
    eventually("the ratio", LIMIT, || async {
        match installation.api.pod(namespace, member(annotations, &json!({}))).await {
            Err(error) if error.to_string().contains("cpu max limit to request ratio per Container is 4") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_resources_meet_the_ratio_of_a_limit_range() {
    let options = Options { admit: vec!["--sidecar-resources=requests.cpu=125m".to_owned()], ..Options::default() };
    let Some(installation) = Installation::start(&options).await else { return };
    installation.api.namespace("ratio", &[]).await;
    ratio(&installation, "ratio");
    // What the pod says is preferred.
    refused_for_the_ratio(&installation, "ratio", &json!({"etcd-tls.dev/resources": "requests.cpu=10m"})).await;
    let pod = installation.api.pod("ratio", member(&json!({}), &json!({}))).await.expect("within the ratio");
    let pod = serde_json::to_value(pod).expect("JSON");
    for container in pod["spec"]["initContainers"].as_array().expect("injected") {
        let cpu = (&container["resources"]["requests"]["cpu"], &container["resources"]["limits"]["cpu"]);
        assert_eq!(cpu, (&json!("125m"), &json!("500m")));
    }
}

async fn quota(installation: &Installation) {
    installation.api.namespace("quota", &[]).await;
    let hard = json!({"limits.cpu": "10", "limits.memory": "10Gi", "requests.cpu": "10", "requests.memory": "10Gi"});
    installation.api.kubectl(&[
        "create",
        "-n",
        "quota",
        "-f",
        &file(
            installation,
            &json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"}, "spec": {"hard": hard},
            }),
        ),
    ]);
    // A controller's work.
    let used: Value = hard.as_object().expect("a map").keys().map(|key| (key.clone(), json!("0"))).collect();
    let status = json!({"status": {"hard": hard, "used": used}});
    let quotas = Api::<ResourceQuota>::namespaced(installation.api.client.clone(), "quota");
    quotas
        .patch_status("quota", &PatchParams::default(), &Patch::Merge(status))
        .await
        .expect("write the quota's status");
    let create =
        |annotations: Value| async move { installation.api.pod("quota", member(&annotations, &json!({}))).await };
    eventually("the quota", LIMIT, || async {
        match create(json!({"etcd-tls.dev/resources": "limits.cpu=none"})).await {
            Err(error) if error.to_string().contains("must specify limits.cpu") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    create(json!({})).await.expect("the injected containers have limits");
}

fn file(installation: &Installation, object: &Value) -> String {
    let name = format!("{}.json", object["kind"].as_str().expect("a kind"));
    installation.api.directory().write(name, object.to_string()).display().to_string()
}
