//! The command line of `init` and `run` in a pod. The webhook renders these arguments from the very struct that the
//! sidecar parses.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    names,
    role::Role,
    settings::{Issuer, KeyAlgorithm, KeyRotation, Reload, format_duration},
};

/// What `init` and `run` are told of their pod. Everything that a user can say reaches them here, already validated.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PodArgs {
    /// Roles to hold certificates for.
    #[arg(long, value_delimiter = ',', required = true)]
    pub roles: Vec<Role>,
    /// The etcd cluster's name within the namespace.
    #[arg(long, default_value = names::DEFAULT_CLUSTER)]
    pub cluster: String,
    /// Who signs: csr, csr:<signerName> or cert-manager:<Kind>/<name>.
    #[arg(long, default_value = "csr")]
    pub issuer: Issuer,
    /// The lifetime asked for.
    #[arg(long, default_value = "24h", value_parser = crate::settings::parse_duration)]
    pub duration: Duration,
    /// The key's algorithm and size.
    #[arg(long, default_value = "ecdsa-p256")]
    pub key: KeyAlgorithm,
    /// When a new key is made: always or on-ca-change.
    #[arg(long, default_value = "always")]
    pub key_rotation: KeyRotation,
    /// More names and addresses to ask for; policy decides.
    #[arg(long, value_delimiter = ',')]
    pub extra_sans: Vec<String>,
    /// The CN of a client certificate; default <serviceaccount>.<namespace>.
    #[arg(long)]
    pub user: Option<String>,
    /// How etcd is told of a changed trust bundle: auto, signal:<SIG>, probe or none.
    #[arg(long, default_value = "auto")]
    pub reload: Reload,
    /// Whether the pod shares its process namespace and etcd runs as this process's user, so that a signal reaches it.
    #[arg(long)]
    pub can_signal: bool,
    /// Where the files go.
    #[arg(long, default_value = names::CERTS_MOUNT_PATH)]
    pub dir: PathBuf,
    /// Where the trust bundles are: peer.crt, client.crt, metrics.crt.
    #[arg(long, default_value = names::TRUST_MOUNT_PATH)]
    pub trust_dir: PathBuf,
    /// Where the token (token), the API server's CA (ca.crt) and the namespace are.
    #[arg(long, default_value = names::TOKEN_MOUNT_PATH)]
    pub token_dir: PathBuf,
    /// Port of /live, /ready and /metrics, on every address of the pod.
    #[arg(long, default_value_t = names::DEFAULT_ADMIN_PORT)]
    pub admin_port: u16,
    /// etcd's client port as seen from the sidecar; empty where the pod runs no server.
    #[arg(long)]
    pub client_url: Option<String>,
    /// etcd's peer port as seen from the sidecar.
    #[arg(long)]
    pub peer_url: Option<String>,
    /// etcd's metrics port as seen from the sidecar, where it is https.
    #[arg(long)]
    pub metrics_url: Option<String>,
    /// The user's own liveness probe of etcd, which `reload: probe` stands in front of: an http, https or tcp URL.
    #[arg(long)]
    pub liveness_url: Option<String>,
}

/// What the downward API says of the pod.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DownwardArgs {
    /// metadata.name.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// metadata.namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// metadata.uid.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: String,
    /// spec.serviceAccountName.
    #[arg(long, env = "POD_SERVICE_ACCOUNT")]
    pub pod_service_account: String,
    /// spec.nodeName.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// status.podIPs, separated by commas; on the host's network these are the host's.
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pub pod_ips: Vec<IpAddr>,
}

impl PodArgs {
    /// The arguments that, parsed, give this value again; what equals its default is left out.
    pub fn render(&self) -> Vec<String> {
        // No `..`: a new field does not compile until it is rendered.
        let Self {
            roles,
            cluster,
            issuer,
            duration,
            key,
            key_rotation,
            extra_sans,
            user,
            reload,
            can_signal,
            dir,
            trust_dir,
            token_dir,
            admin_port,
            client_url,
            peer_url,
            metrics_url,
            liveness_url,
        } = self;
        let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let mut out = vec![format!("--roles={}", words.join(","))];
        let mut unless = |name: &str, value: String, default: &str| {
            if value != default {
                out.push(format!("--{name}={value}"));
            }
        };
        unless("cluster", cluster.clone(), names::DEFAULT_CLUSTER);
        unless("issuer", issuer.to_string(), "csr");
        unless("duration", format_duration(*duration), "24h");
        unless("key", key.to_string(), "ecdsa-p256");
        unless("key-rotation", key_rotation.to_string(), "always");
        unless("extra-sans", extra_sans.join(","), "");
        unless("reload", reload.to_string(), "auto");
        unless("dir", dir.display().to_string(), names::CERTS_MOUNT_PATH);
        unless("trust-dir", trust_dir.display().to_string(), names::TRUST_MOUNT_PATH);
        unless("token-dir", token_dir.display().to_string(), names::TOKEN_MOUNT_PATH);
        unless("admin-port", admin_port.to_string(), &names::DEFAULT_ADMIN_PORT.to_string());
        if *can_signal {
            out.push("--can-signal".to_owned());
        }
        for (name, value) in [
            ("user", user),
            ("client-url", client_url),
            ("peer-url", peer_url),
            ("metrics-url", metrics_url),
            ("liveness-url", liveness_url),
        ] {
            out.extend(value.iter().map(|value| format!("--{name}={value}")));
        }
        out
    }
}
