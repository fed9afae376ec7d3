//! The pods of the demo as a user would write them: https in every URL, and no certificate mentioned.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Their namespace.
pub const NAMESPACE: &str = "demo";
/// The user's etcd image; here, the name of a program.
pub const ETCD: &str = "etcd";
/// The image that admission injects.
pub const SIDECAR_IMAGE: &str = "etcd-tls-sidecar:demo";

/// The policy that permits loopback addresses in certificates.
pub const POLICY: &str = "extraSans: [{namespaces: [demo], clusters: [etcd], ipBlocks: [127.0.0.0/8]}]\n";

/// A member's address and ports.
#[derive(Clone, Debug)]
pub struct Place {
    /// `etcd-0`.
    pub name: String,
    /// 127.0.0.2 and on, where its process listens.
    pub address: Ipv4Addr,
    /// The client port.
    pub client: u16,
    /// The peer port.
    pub peer: u16,
    /// The plain metrics port.
    pub metrics: u16,
    /// The sidecar's.
    pub admin: u16,
}

impl Place {
    /// The client URL.
    pub fn client_url(&self) -> String {
        format!("https://{}:{}", self.address, self.client)
    }

    /// The peer URL.
    pub fn peer_url(&self) -> String {
        format!("https://{}:{}", self.address, self.peer)
    }

    /// The metrics URL.
    pub fn metrics_url(&self) -> String {
        format!("http://{}:{}", self.address, self.metrics)
    }
}

/// A member. Its liveness probe is the user's own; `reload: probe` makes it one that asks the sidecar, too, since local
/// processes share no process namespace of their own in which etcd could be sent a signal.
pub fn member(place: &Place, all: &[Place]) -> Value {
    let initial: Vec<_> = all.iter().map(|p| format!("{}={}", p.name, p.peer_url())).collect();
    // No pod has an address of loopback, and no certificate names one but by policy: this machine's stand in for the pod's.
    // On loopback every connection comes from 127.0.0.1, and etcd checks a peer's certificate against that.
    let addresses = format!("{},{}", place.address, Ipv4Addr::LOCALHOST);
    let annotations = [("etcd-tls.dev/reload", "probe"), ("etcd-tls.dev/extra-sans", addresses.as_str())];
    let mut pod = pod(&place.name, place.admin, &annotations);
    pod["spec"]["containers"] = json!([{
        "name": "etcd",
        "image": ETCD,
        "command": [ETCD],
        "args": [
            "--name=$(POD_NAME)",
            "--data-dir=/var/lib/etcd/data",
            format!("--listen-client-urls={}", place.client_url()),
            format!("--advertise-client-urls={}", place.client_url()),
            format!("--listen-peer-urls={}", place.peer_url()),
            format!("--initial-advertise-peer-urls={}", place.peer_url()),
            format!("--listen-metrics-urls={}", place.metrics_url()),
            format!("--initial-cluster={}", initial.join(",")),
            "--unsafe-no-fsync",
            "--logger=zap",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": place.metrics, "scheme": "HTTP"},
            "periodSeconds": 10, "timeoutSeconds": 2, "failureThreshold": 3, "initialDelaySeconds": 2,
        },
    }]);
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    pod
}

/// A client: one annotation says what it is.
pub fn client(admin: u16) -> Value {
    let mut pod = pod("client", admin, &[("etcd-tls.dev/roles", "client")]);
    pod["spec"]["containers"] = json!([{"name": "app", "image": "app", "command": ["app"]}]);
    pod
}

fn pod(name: &str, admin: u16, annotations: &[(&str, &str)]) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": {"app": name},
            // Of local processes each needs a port of its own.
            "annotations": {"etcd-tls.dev/admin-port": admin.to_string()},
        },
        "spec": {"serviceAccountName": "default", "nodeName": "localhost"},
    });
    for (key, value) in annotations {
        pod["metadata"]["annotations"][*key] = (*value).into();
    }
    pod
}
