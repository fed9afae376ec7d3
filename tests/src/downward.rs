//! kubelet's part of the downward API.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::local_pod::write_projected;

/// The files of the downward API in the token's volume, as kubelet keeps them.
///
/// # Panics
/// The pod was not injected.
pub fn downward(pod: &Pod, directory: PathBuf, api: Api<Pod>) -> JoinHandle<()> {
    let pod = serde_json::to_value(pod).expect("a pod is JSON");
    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|v| v["name"] == "etcd-tls-token").expect("the token's volume");
    let sources = volume["projected"]["sources"].as_array().expect("sources");
    let items: Vec<Value> =
        sources.iter().flat_map(|s| s["downwardAPI"]["items"].as_array()).flatten().cloned().collect();
    let fields: Vec<(String, String)> = items
        .iter()
        .filter_map(|item| {
            let path = item["fieldRef"]["fieldPath"].as_str()?.strip_prefix("metadata.annotations['")?;
            Some((item["path"].as_str()?.to_owned(), path.strip_suffix("']")?.to_owned()))
        })
        .collect();
    assert!(!fields.is_empty(), "{volume}");
    let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    let write = move |annotations: &BTreeMap<String, String>| {
        let files = fields.iter().map(|(file, key)| (file.as_str(), annotations.get(key).cloned().unwrap_or_default()));
        write_projected(&directory, files);
    };
    let mut written = BTreeMap::new();
    write(&written);
    tokio::spawn(async move {
        loop {
            if let Ok(pod) = api.get(&name).await {
                let now = pod.metadata.annotations.unwrap_or_default();
                if now != written {
                    write(&now);
                    written = now;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
}
