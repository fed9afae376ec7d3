//! The API server's part of admission: an AdmissionReview over TLS, and the patch applied to the pod.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::etcd_client::{ClientError, Connection};

/// A webhook's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The pod with the patch applied; `None` where it was refused.
    pub pod: Option<Value>,
    /// The operations of the patch.
    pub operations: Vec<Value>,
    /// The message of a refusal.
    pub message: String,
    /// The warnings that kubectl shows beside a success.
    pub warnings: Vec<String>,
}

/// A review of the creation of `pod`, as a kube-apiserver sends it.
pub fn review(uid: &str, namespace: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:statefulset-controller"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// Sends a review on `connection` and applies the answer.
///
/// # Errors
/// No answer, one for another request, or a patch that does not apply.
pub async fn admit(connection: &mut Connection, namespace: &str, pod: &Value) -> Result<Answer, ClientError> {
    let uid = "705ab4f5-6393-11e8-b7cc-42010a800002";
    let answer = connection.post("/mutate", &review(uid, namespace, pod)).await?;
    let response = &answer["response"];
    if response["uid"] != uid {
        return Err(ClientError(format!("an answer to another request: {answer}")));
    }
    let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
    let warnings = warnings.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    if response["allowed"] != true {
        let message = response["status"]["message"].as_str().unwrap_or_default().to_owned();
        return Ok(Answer { pod: None, operations: Vec::new(), message, warnings });
    }
    let (mut pod, mut operations) = (pod.clone(), Vec::new());
    if let Some(patch) = response["patch"].as_str() {
        let broken = |e: &dyn std::fmt::Display| ClientError(format!("the patch: {e}"));
        let bytes = STANDARD.decode(patch).map_err(|e| broken(&e))?;
        let patch: json_patch::Patch = serde_json::from_slice(&bytes).map_err(|e| broken(&e))?;
        operations = serde_json::from_slice(&bytes).map_err(|e| broken(&e))?;
        json_patch::patch(&mut pod, &patch).map_err(|e| broken(&e))?;
    }
    Ok(Answer { pod: Some(pod), operations, message: String::new(), warnings })
}
