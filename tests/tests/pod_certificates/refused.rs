//! An API server that takes no answer.

use etcd_tls_contract::names::SYSTEM_NAMESPACE;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::eventually;

use super::{LIMIT, Lab, signer};

/// It does not fill the record of what was issued.
pub async fn keeps_the_serial_number_of_a_request(lab: &Lab) {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "no-status"},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["certificates.k8s.io"], "apiVersions": ["*"], "operations": ["UPDATE"],
                "resources": ["podcertificaterequests/status"],
            }]},
            "validations": [{"expression": "false", "message": "no status now"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-status"}, "spec": {"policyName": "no-status", "validationActions": ["Deny"]},
    });
    let pod = lab.pod("again-0", "peer", |_| {}).await;
    let foreign = lab.request(&pod, "example.com/ca", |_| {}).await;
    lab.ask(&foreign).await;
    lab.api.apply(&format!("{policy}\n---\n{binding}"));
    let name = foreign["metadata"]["name"].as_str().expect("a name");
    let none = Patch::Merge(json!({"metadata": {"annotations": {"example.com/x": "y"}}}));
    eventually("no status to be written", LIMIT, || async {
        match lab.requests(&lab.api.client).patch_status(name, &PatchParams::default(), &none).await {
            Err(error) if error.to_string().contains("no status now") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let request = lab.request(&pod, &signer("peer"), |_| {}).await;
    lab.ask(&request).await;
    let name = request["metadata"]["name"].as_str().expect("a name");
    eventually("some attempts", LIMIT, || async {
        let log = lab.sign.log();
        let failed = log.lines().filter(|line| line.contains(name) && line.contains("cannot be answered now")).count();
        if failed >= 4 { Ok(()) } else { Err(lab.sign.log_end()) }
    })
    .await;
    lab.api.kubectl(&["delete", "validatingadmissionpolicybinding", "no-status"]);
    let (chain, _) = lab.issued_to(&request).await;
    let uid = pod.uid().expect("a uid");
    eventually("the record of what was issued", LIMIT, || async {
        let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
        let all = secrets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        let records = all.items.into_iter().filter_map(|secret| secret.data?.remove("issued.json"));
        let leaves = records.filter_map(|text| serde_json::from_slice::<Value>(&text.0).ok()?.get("leaves").cloned());
        let mut held = Vec::new();
        for leaves in leaves {
            for (serial, leaf) in leaves.as_object().into_iter().flatten() {
                if leaf["holder"] == uid.as_str() {
                    held.push(serial.clone());
                }
            }
        }
        assert!(held.len() <= 1, "each attempt is recorded as another certificate: {held:?}");
        if held == [chain.serial.clone()] { Ok(()) } else { Err(format!("{held:?}, not {}", chain.serial)) }
    })
    .await;
}
