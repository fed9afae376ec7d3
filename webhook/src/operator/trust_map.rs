//! A cluster's trust ConfigMap, by which an operator's command asks the signer.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Refused, Right};
use crate::{controller::client::within, error::Error};

/// Reads it.
///
/// # Errors
/// It cannot be read, or is not there.
pub(crate) async fn read(api: &Api<ConfigMap>, name: &str) -> Result<ConfigMap, Error> {
    let found = within(api.get_opt(name)).await.map_err(|error| right("get", api).refused(error))?;
    found.ok_or_else(|| {
        let namespace = api.namespace().unwrap_or_default();
        format!(
            "there is no ConfigMap {name} in namespace {namespace}: no pod of this cluster has opted in, or the signer is away; \
             etcd-tls-webhook status -n {namespace} shows the clusters"
        )
        .into()
    })
}

/// Writes requests into its annotations.
///
/// # Errors
/// It cannot be written.
pub(crate) async fn annotate(
    api: &Api<ConfigMap>,
    name: &str,
    annotations: BTreeMap<String, String>,
) -> Result<(), Refused> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    within(api.patch(name, &PatchParams::default(), &patch))
        .await
        .map_err(|error| right("patch", api).refused(error))?;
    Ok(())
}

fn right(verb: &'static str, api: &Api<ConfigMap>) -> Right {
    Right::new(verb, "configmaps", api.namespace())
}
