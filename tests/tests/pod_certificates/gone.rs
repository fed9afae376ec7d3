//! Pods that go while their request waits.

use serde_json::Value;

use super::{Lab, NAMESPACE, signer};

/// A request that waits while its pod goes, and while another pod of that name comes.
pub async fn grants_nothing_to_a_pod_that_went(lab: &Lab) {
    let on_host = |pod: &mut Value| pod["spec"]["hostNetwork"] = true.into();
    for (name, again, reason) in [("gone-0", false, "PodGone"), ("again-1", true, "WrongPod")] {
        let pod = lab.pod(name, "peer", on_host).await;
        let request = lab.request(&pod, &signer("peer"), |_| {}).await;
        lab.ask(&request).await;
        assert_eq!(lab.status(&request).await.get("conditions"), None, "it waits");
        lab.api.delete_pod(NAMESPACE, name).await;
        if again {
            lab.pod(name, "peer", on_host).await;
            lab.api.set_pod_ips(NAMESPACE, name, &["192.0.2.11".parse().expect("an address")]).await;
        }
        let (kind, said, status) = lab.answer(&request).await;
        // `sign` may look while the API server deletes it, and before there is another one.
        let denied = kind == "Denied" && [reason, "PodDeleting", "PodGone"].contains(&said.as_str());
        assert!(denied, "{name}: {status}");
        assert!(status.get("certificateChain").is_none(), "{name}: {status}");
    }
}
