//! The arguments of `admit` and `inject` that shape the injected containers.

use etcd_tls_contract::settings::Resources;

use crate::injection::{Config, HostPaths, Issuers};

/// How the injected containers are made where the pod does not say.
#[derive(clap::Args, Debug)]
pub struct InjectedArgs {
    /// The imagePullPolicy of the injected containers [default: the API server's].
    #[arg(long, env = "SIDECAR_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    sidecar_pull_policy: Option<String>,
    /// Secrets to pull the image of the injected containers with, separated by commas. They must exist in each pod's namespace.
    #[arg(long, env = "SIDECAR_PULL_SECRETS", value_name = "NAME", value_delimiter = ',', value_parser = secret_name)]
    sidecar_pull_secrets: Vec<String>,
    /// The requests and limits of the injected containers if the pod's annotation sets none; the defaults are
    /// requests.cpu=10m,requests.memory=16Mi,limits.cpu=500m,limits.memory=64Mi.
    #[arg(long, env = "SIDECAR_RESOURCES", value_name = "requests.cpu=10m,...")]
    sidecar_resources: Option<Resources>,
    /// The user ID of the injected containers if the pod does not declare etcd's [default: the image's, or the one that the
    /// cluster assigns].
    #[arg(long, env = "SIDECAR_USER", value_name = "UID", value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    sidecar_user: Option<u32>,
}

impl InjectedArgs {
    /// The settings of injection with `sidecar_image`; `host` for static pods.
    pub fn config(self, sidecar_image: String, host: Option<HostPaths>) -> Config {
        let Self { sidecar_pull_policy, sidecar_pull_secrets, sidecar_resources, sidecar_user } = self;
        Config {
            sidecar_image,
            image_pull_policy: sidecar_pull_policy,
            resources: sidecar_resources.unwrap_or_default(),
            pull_secrets: sidecar_pull_secrets,
            user: sidecar_user.map(u64::from),
            host,
            issuers: Issuers::default(),
            cluster_domain: None,
        }
    }
}

/// The name of a Secret: a DNS subdomain.
fn secret_name(name: &str) -> Result<String, String> {
    let label = |label: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(fine) && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name.to_owned())
    } else {
        Err("not the name of a Secret".to_owned())
    }
}
