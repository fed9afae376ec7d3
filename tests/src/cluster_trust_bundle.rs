//! A ClusterTrustBundle as `sign` writes it.

use serde_json::{Value, json};

/// Of this name; `signer`: the signer that it is linked to; `pem`: the CAs.
pub fn cluster_trust_bundle(name: &str, signer: Option<&str>, pem: &str) -> Value {
    let mut object = json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
        "metadata": {
            "name": name, "labels": {"app.kubernetes.io/managed-by": "etcd-tls"},
            "annotations": {"etcd-tls.dev/namespace-uid": "u"},
        },
        "spec": {"trustBundle": pem},
    });
    if let Some(signer) = signer {
        object["spec"]["signerName"] = signer.into();
    }
    object
}
