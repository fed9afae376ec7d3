//! The policy that approver and signer read.

use etcd_tls_contract::names;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// Writes it whole, as `client`'s user.
pub async fn set(client: &Client, text: &str) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
    let patch = Patch::Merge(json!({"data": {names::POLICY_KEY: text}}));
    api.patch(names::POLICY_CONFIG_MAP, &PatchParams::default(), &patch).await.expect("write the policy");
}
