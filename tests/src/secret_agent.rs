//! The agent that keeps a Secret, as its example ships it.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::{ports, repository};

/// The name of the Secret, of its Role and of the service account.
pub const NAME: &str = "etcd-client-tls";
const TOKENS: &str = "--token-dir=/var/run/secrets/kubernetes.io/serviceaccount";

/// The pod that the example's Deployment would make, for `account`.
///
/// # Panics
/// Where the example has another form.
pub fn agent_pod(name: &str, account: &str, admin_port: u16) -> Value {
    let text = std::fs::read_to_string(repository().join("manifests/examples/secret/agent.yaml")).expect("read");
    let deployment = text.split("\n---\n").find(|d| d.contains("kind: Deployment")).expect("a Deployment");
    let deployment: Value = serde_saphyr::from_str(deployment).expect("YAML");
    let mut pod = deployment["spec"]["template"].clone();
    pod["metadata"]["name"] = name.into();
    // Pods that run at once here share an address.
    let port = ports::free(Ipv4Addr::UNSPECIFIED);
    pod["metadata"]["annotations"]["etcd-tls.dev/admin-port"] = port.to_string().into();
    pod["spec"]["serviceAccountName"] = account.into();
    let arguments = pod["spec"]["containers"][0]["args"].as_array_mut().expect("arguments");
    let at = arguments.iter().position(|a| a == "--admin-port=9189").expect("the admin port");
    arguments[at] = format!("--admin-port={admin_port}").into();
    // It is the default, but a directory of this test is mounted there.
    arguments.push(TOKENS.into());
    pod
}
