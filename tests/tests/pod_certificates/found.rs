//! Pod certificates that a killed signer issued and did not record.

use etcd_tls_contract::{certificate::Chain, names};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use serde_json::json;
use tests::eventually;

use super::{LIMIT, Lab, apply_component, sign, signer, without_webhooks};

/// The next leader finds in the requests what a killed one issued and did not record.
pub async fn by_the_next_leader(lab: &mut Lab, pod: &Pod) {
    for _ in 0..20 {
        let request = lab.request(pod, &signer("peer"), |_| {}).await;
        lab.ask(&request).await;
        let (kind, _, status) = lab.answer(&request).await;
        lab.sign.kill();
        assert_eq!(kind, "Issued", "{status}");
        let serial =
            Chain::parse(status["certificateChain"].as_str().expect("a chain").as_bytes()).expect("a chain").serial;
        let killed_in_time = lab.recorded(&serial).await.is_err();
        lab.sign = sign(&lab.api).await;
        if killed_in_time {
            lab.sign.logged("recorded what the leader before had issued and not recorded", LIMIT).await;
            return eventually("the record of what was issued", LIMIT, || lab.recorded(&serial)).await;
        }
    }
    panic!("a certificate is recorded some time after it was issued");
}

/// Where the component is missing, a new leader says once that it cannot look there, and does all else at once.
pub async fn but_not_without_the_component(lab: &mut Lab) {
    let manifests = tests::repository().join("manifests");
    lab.api.kubectl(&["apply", "-k", &manifests.display().to_string()]);
    without_webhooks(&lab.api);
    lab.sign.kill();
    lab.sign = sign(&lab.api).await;
    let said = "PodCertificateRequests cannot be listed, so certificates of theirs";
    lab.sign.logged(said, LIMIT).await;
    lab.api.namespace("later", &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = json!({
        "metadata": {"name": "etcd-0", "labels": {"app": "etcd"}, "annotations": {"etcd-tls.dev/roles": "peer"}},
        "spec": {"subdomain": "etcd", "hostname": "etcd-0", "containers": [{"name": "etcd", "image": "etcd"}]},
    });
    eventually("a pod", LIMIT, || lab.api.pod("later", pod.clone())).await;
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "later");
    eventually("trust", LIMIT, || maps.get("etcd-tls-trust-etcd")).await;
    let log = lab.sign.log();
    assert!(!log.contains("what the leader before issued is not recorded yet"), "no round waited: {log}");
    assert_eq!(log.matches(said).count(), 1, "{log}");
    apply_component(&lab.api);
    without_webhooks(&lab.api);
    lab.sign.kill();
    lab.sign = sign(&lab.api).await;
}
