//! Revocation as it looks from outside: the operator's command, the lists that the signer publishes and those on disk, and a
//! client.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use etcd_tls_contract::{certificate::Bundle, crl::Crl, names};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use crate::{etcd_client::EtcdClient, process::binary};

/// The trust ConfigMap of a cluster with the default name.
pub const TRUST: &str = "etcd-tls-trust-etcd";

/// Runs `etcd-tls-webhook revoke` with this kubeconfig: what it prints.
///
/// # Errors
/// Its standard error.
pub async fn revoke(kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
    ended(kubeconfig, arguments).await.map_err(|(_, text)| text)
}

/// [`revoke`], with the exit code of one that fails.
///
/// # Errors
/// Its exit code and its standard error.
pub async fn ended(kubeconfig: &Path, arguments: &[&str]) -> Result<String, (Option<i32>, String)> {
    let output = output(kubeconfig, arguments).await;
    if output.status.success() { Ok(text(&output.stdout)) } else { Err((output.status.code(), text(&output.stderr))) }
}

/// [`revoke`], and all that it prints, also where it fails.
pub async fn said(kubeconfig: &Path, arguments: &[&str]) -> String {
    let output = output(kubeconfig, arguments).await;
    text(&output.stdout) + &text(&output.stderr)
}

async fn output(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.arg("revoke").args(arguments).env("KUBECONFIG", kubeconfig);
    tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lists that are published in [`TRUST`], each verified by the bundle beside it.
///
/// # Errors
/// They are not there, or do not hold.
pub async fn published(maps: &Api<ConfigMap>) -> Result<BTreeMap<String, Crl>, String> {
    let object = maps.get(TRUST).await.map_err(|e| e.to_string())?;
    let (data, binary) = (object.data.unwrap_or_default(), object.binary_data.unwrap_or_default());
    let mut lists = BTreeMap::new();
    for domain in ["peer", "client"] {
        let pem = data.get(&format!("{domain}.crt")).ok_or("no bundle")?;
        let bundle = Bundle::parse(pem.as_bytes()).map_err(|e| e.to_string())?;
        let der = binary.get(&format!("{domain}.crl")).ok_or(format!("no {domain}.crl"))?;
        let list = Crl::parse(&der.0).map_err(|e| e.to_string())?;
        list.verify(bundle.certificates().iter().map(Vec::as_slice)).map_err(|e| e.to_string())?;
        lists.insert(domain.to_owned(), list);
    }
    Ok(lists)
}

/// Writes a key on a new connection with the certificate of a role directory.
///
/// # Errors
/// The failure.
pub async fn write(files: &Path, url: &str) -> Result<(), String> {
    EtcdClient::with_files(files).put(url, "k", "v").await.map_err(|e| e.to_string())
}

/// The list on disk in a role directory.
pub fn on_disk(role: &Path) -> Crl {
    // A set of files goes when the next one is there.
    let read = || fs::read(role.join(names::CRL_FILE)).ok();
    let der = (0..100).find_map(|_| read()).expect("a list beside the certificate");
    Crl::parse(&der).expect("a list")
}
