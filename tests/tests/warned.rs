//! Tier 2: admission's warnings become an Event on the pod, written once by the approver with the rights as shipped, and shown
//! by kubectl. Whoever issues its certificates.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "shared with the approver's other tests")]
mod lab;

use etcd_tls_contract::role::Role;
use lab::{Asking, Lab, impersonated};
use serde_json::json;
use tests::eventually;

/// The Events of a pod, as kubectl shows them: a line each.
fn shown(lab: &Lab, pod: &str) -> Vec<String> {
    let selector = format!("--field-selector=involvedObject.name={pod},reason=InjectedWithWarnings");
    let columns = "-o=custom-columns=:type,:reason,:message";
    let listed = lab.api.kubectl(&["get", "events", "-n", "prod", &selector, "--no-headers", columns]);
    listed.lines().filter(|line| line.contains("InjectedWithWarnings")).map(str::to_owned).collect()
}

async fn told(lab: &Lab, pod: &str) {
    eventually(&format!("the event of {pod}"), lab::LIMIT, || async {
        if shown(lab, pod).is_empty() { Err("none yet") } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_shows_once_what_admission_warned_of() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let injected = || json!({"etcd-tls.dev/injected": "true"});
    let mut annotations = json!({"etcd-tls.dev/warnings": "[\"container etcd: says http://\", \"and another\"]"});
    let warned = lab.pod_with("prod", "etcd-0", injected(), annotations.clone(), Some("10.1.0.1")).await;
    let fine = lab.pod("prod", "etcd-1", json!({}), Some("10.1.0.2")).await;
    let approver = lab.approver("approve-a", &[]);
    lab.ready(&approver).await;

    for (pod, role) in [(&warned, Role::Peer), (&warned, Role::Server), (&fine, Role::Peer)] {
        let asking = Asking::of(pod, role);
        asking.create_as(&lab.api.client, &impersonated(pod)).await;
        lab.approved(&asking.name).await;
    }
    told(&lab, "etcd-0").await;
    // It asks nobody of ours, and is made while the approver watches.
    annotations["etcd-tls.dev/issuer"] = json!("cert-manager:ClusterIssuer/company-ca");
    lab.pod_with("prod", "etcd-2", injected(), annotations, None).await;
    told(&lab, "etcd-2").await;

    // Another approver remembers nothing, and still writes no second one.
    drop(approver);
    let approver = lab.approver("approve-b", &[]);
    lab.ready(&approver).await;
    let again = Asking::of(&warned, Role::Peer).again();
    again.create_as(&lab.api.client, &impersonated(&warned)).await;
    lab.approved(&again.name).await;
    let lines = shown(&lab, "etcd-0");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for text in ["Warning", "container etcd: says http://; and another"] {
        assert!(lines[0].contains(text), "{lines:?}");
    }
    assert_eq!(shown(&lab, "etcd-1"), [""; 0], "nothing was said of that one");
    assert_eq!(shown(&lab, "etcd-2").len(), 1);
}
