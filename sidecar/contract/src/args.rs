//! The command line of `init` and `run` in a pod. The webhook renders the arguments from the struct that the sidecar parses.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    duration::format_duration,
    endpoint::Endpoint,
    identity::PodFacts,
    invalid_value::InvalidValue,
    key::{KeyAlgorithm, KeyRotation},
    liveness::LivenessUrl,
    names,
    role::Role,
    san::Sans,
    settings::{Issuer, Reload, Settings, Trust, user},
};

/// The minimum time between two restarts of etcd: kubelet delays a second restart of a container within ten minutes.
pub const RESTART_PACE: Duration = Duration::from_secs(600);

/// The arguments of `init` and `run` in a pod. They carry every setting of the user, already validated.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PodArgs {
    /// The roles to obtain certificates for, separated by commas: peer, server, client or metrics.
    #[arg(long, value_delimiter = ',', required = true)]
    pub roles: Vec<Role>,
    /// The etcd cluster's name within the namespace.
    #[arg(long, default_value = names::DEFAULT_CLUSTER)]
    pub cluster: String,
    /// The issuer: csr, csr:<signerName>, pod-certificate or cert-manager:<Kind>/<name>[.<group>].
    #[arg(long, default_value = "csr")]
    pub issuer: Issuer,
    /// The requested lifetime.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse_duration)]
    pub duration: Duration,
    /// The key's algorithm and size.
    #[arg(long, default_value = "ecdsa-p256")]
    pub key: KeyAlgorithm,
    /// When to generate a new key: always (with each certificate) or on-ca-change.
    #[arg(long, default_value = "always")]
    pub key_rotation: KeyRotation,
    /// More names and addresses to request, separated by commas. The policy decides about them.
    #[arg(long, value_delimiter = ',')]
    pub extra_sans: Vec<String>,
    /// The etcd user, which is the CN of the client certificate [default: <serviceaccount>.<namespace>].
    #[arg(long)]
    pub user: Option<String>,
    /// How to restart etcd after a change of the trust bundle: auto, signal:<SIG>, probe or none.
    #[arg(long, default_value = "auto")]
    pub reload: Reload,
    /// The pod shares its process namespace and etcd runs as the sidecar's user, so a signal from the sidecar reaches etcd.
    #[arg(long)]
    pub can_signal: bool,
    /// etcd is configured with revocation lists, and refuses every connection while these files are missing. A sidecar version
    /// that writes no lists refuses this argument, so that such a pod does not start.
    #[arg(long)]
    pub revocation_lists: bool,
    /// Take the trust bundle from the issuer's answers (status.ca of a CertificateRequest) instead of from --trust-dir.
    #[arg(long)]
    pub trust_of_issuer: bool,
    /// The directory of the certificates.
    #[arg(long, default_value = names::CERTS_MOUNT_PATH)]
    pub dir: PathBuf,
    /// With the issuer pod-certificate: the volume in which kubelet keeps <role>/tls.crt (key and chain) and <role>/ca.crt.
    #[arg(long, default_value = names::PROJECTED_MOUNT_PATH)]
    pub projected_dir: PathBuf,
    /// The directory of the trust bundles: peer.crt, client.crt, metrics.crt.
    #[arg(long, default_value = names::TRUST_MOUNT_PATH)]
    pub trust_dir: PathBuf,
    /// The directory of the service account: token, ca.crt and namespace.
    #[arg(long, default_value = names::TOKEN_MOUNT_PATH)]
    pub token_dir: PathBuf,
    /// The port of /live, /ready and /metrics, on every address of the pod.
    #[arg(long, default_value_t = names::DEFAULT_ADMIN_PORT)]
    pub admin_port: u16,
    /// The URL of etcd's client port, as the sidecar reaches it. Leave it out if the pod runs no etcd server.
    #[arg(long)]
    pub client_url: Option<Endpoint>,
    /// The URL of etcd's peer port, as the sidecar reaches it.
    #[arg(long)]
    pub peer_url: Option<Endpoint>,
    /// The URL of etcd's metrics port, as the sidecar reaches it, if that port is https.
    #[arg(long)]
    pub metrics_url: Option<Endpoint>,
    /// The URL (http, https or tcp) of your own liveness probe of etcd. With --reload=probe, etcd-tls-probe makes this check in
    /// its place. A URL that cannot be read is left out, with a warning.
    #[arg(long)]
    pub liveness_url: Option<LivenessUrl>,
    /// The minimum time between two restarts of etcd by the sidecar. kubelet delays a second restart within ten minutes.
    #[arg(long, default_value = "10m", value_parser = crate::duration::parse_duration)]
    pub restart_pace: Duration,
}

/// The pod, from the downward API.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DownwardArgs {
    /// The pod's metadata.name.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// The pod's metadata.namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// The pod's metadata.uid.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: String,
    /// The pod's spec.serviceAccountName.
    #[arg(long, env = "POD_SERVICE_ACCOUNT")]
    pub pod_service_account: String,
    /// The pod's spec.nodeName.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The pod's status.podIPs, separated by commas. On the host network these are the host's addresses.
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pub pod_ips: Vec<IpAddr>,
}

impl PodArgs {
    /// The arguments that carry `settings`; the others have their defaults.
    ///
    /// `containers` and `mount_path` are used by the injector only.
    pub fn of(settings: &Settings) -> Self {
        Self {
            roles: settings.roles.iter().copied().collect(),
            cluster: settings.cluster.clone(),
            issuer: settings.issuer.clone(),
            duration: settings.duration,
            key: settings.key,
            key_rotation: settings.key_rotation,
            extra_sans: settings.extra_sans.texts(),
            user: settings.user.clone(),
            reload: settings.reload.clone(),
            can_signal: false,
            revocation_lists: false,
            trust_of_issuer: settings.trust == Some(Trust::Issuer),
            dir: names::CERTS_MOUNT_PATH.into(),
            projected_dir: names::PROJECTED_MOUNT_PATH.into(),
            trust_dir: names::TRUST_MOUNT_PATH.into(),
            token_dir: names::TOKEN_MOUNT_PATH.into(),
            admin_port: settings.admin_port,
            client_url: None,
            peer_url: None,
            metrics_url: None,
            liveness_url: None,
            restart_pace: RESTART_PACE,
        }
    }

    /// The settings that these arguments carry, for [`crate::identity`].
    ///
    /// # Errors
    /// `--extra-sans` or `--user` were not written by [`Self::render`] and do not parse.
    pub fn settings(&self) -> Result<Settings, InvalidValue> {
        let extra_sans: Result<Sans, InvalidValue> = match &self.extra_sans[..] {
            [] => Ok(Sans::default()),
            sans => sans.join(",").parse(),
        };
        Ok(Settings {
            roles: self.roles.iter().copied().collect(),
            cluster: self.cluster.clone(),
            issuer: self.issuer.clone(),
            duration: self.duration,
            key: self.key,
            key_rotation: self.key_rotation,
            extra_sans: extra_sans.map_err(|e| e.at("--extra-sans"))?,
            user: self.user.as_deref().map(user).transpose().map_err(|e| e.at("--user"))?,
            admin_port: self.admin_port,
            reload: self.reload.clone(),
            trust: self.trust_of_issuer.then_some(Trust::Issuer),
            ..Settings::default()
        })
    }

    /// The arguments that parse to this value again, without those equal to their defaults.
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
            revocation_lists,
            trust_of_issuer,
            dir,
            projected_dir,
            trust_dir,
            token_dir,
            admin_port,
            client_url,
            peer_url,
            metrics_url,
            liveness_url,
            restart_pace,
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
        unless("projected-dir", projected_dir.display().to_string(), names::PROJECTED_MOUNT_PATH);
        unless("trust-dir", trust_dir.display().to_string(), names::TRUST_MOUNT_PATH);
        unless("token-dir", token_dir.display().to_string(), names::TOKEN_MOUNT_PATH);
        unless("admin-port", admin_port.to_string(), &names::DEFAULT_ADMIN_PORT.to_string());
        unless("restart-pace", format_duration(*restart_pace), "10m");
        if *can_signal {
            out.push("--can-signal".to_owned());
        }
        if *revocation_lists {
            out.push("--revocation-lists".to_owned());
        }
        if *trust_of_issuer {
            out.push("--trust-of-issuer".to_owned());
        }
        let text = |url: &Option<Endpoint>| url.as_ref().map(ToString::to_string);
        for (name, value) in [
            ("user", user.clone()),
            ("client-url", text(client_url)),
            ("peer-url", text(peer_url)),
            ("metrics-url", text(metrics_url)),
            ("liveness-url", liveness_url.as_ref().map(ToString::to_string)),
        ] {
            out.extend(value.iter().map(|value| format!("--{name}={value}")));
        }
        out
    }

    /// The user's own liveness probe, where its URL can be read.
    pub fn liveness_endpoint(&self) -> Option<&Endpoint> {
        self.liveness_url.as_ref().and_then(|url| url.endpoint().ok())
    }
}

impl DownwardArgs {
    /// The pod as the downward API describes it: without labels, Services and subdomain.
    pub fn facts(&self) -> PodFacts {
        PodFacts {
            namespace: self.pod_namespace.clone(),
            name: self.pod_name.clone(),
            uid: self.pod_uid.clone(),
            service_account: self.pod_service_account.clone(),
            node: self.node_name.clone(),
            ips: self.pod_ips.clone(),
            hostname: self.pod_name.clone(),
            ..PodFacts::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        pod: PodArgs,
    }

    fn parse(args: &[String]) -> PodArgs {
        Command::try_parse_from(std::iter::once("init".to_owned()).chain(args.iter().cloned())).unwrap().pod
    }

    /// Every value that a field can have, and for text what a shell or a parser might trip over.
    fn samples() -> Vec<PodArgs> {
        let plain = PodArgs::of(&Settings::default());
        let mut samples = vec![plain.clone()];
        let mut with = |change: &dyn Fn(&mut PodArgs)| {
            let mut args = plain.clone();
            change(&mut args);
            samples.push(args);
        };
        for roles in [&[Role::Metrics][..], &Role::ALL, &[Role::Server, Role::Peer]] {
            with(&|args| args.roles = roles.to_vec());
        }
        for issuer in [
            "csr:client.etcd-tls.dev/prod.etcd",
            "csr:example.com/a.b",
            "pod-certificate",
            "cert-manager:Issuer/a",
            "cert-manager:ClusterIssuer/a",
        ] {
            with(&|args| args.issuer = issuer.parse().unwrap());
        }
        for seconds in [1, 600, 3601, 5415, 604_800] {
            with(&|args| args.duration = Duration::from_secs(seconds));
        }
        for key in KeyAlgorithm::ALL {
            with(&|args| args.key = key);
        }
        for reload in ["probe", "none", "signal:SIGTERM"] {
            with(&|args| args.reload = reload.parse().unwrap());
        }
        for text in ["x", "-x", "--roles=peer", "a b", "a=b", "'\"$(id)", "*"] {
            with(&|args| args.cluster = text.to_owned());
            with(&|args| args.user = Some(text.to_owned()));
            with(&|args| args.dir = text.into());
            with(&|args| args.projected_dir = text.into());
            with(&|args| args.trust_dir = text.into());
            with(&|args| args.token_dir = text.into());
            with(&|args| args.extra_sans = vec![text.to_owned(), "192.0.2.1".to_owned()]);
        }
        for url in
            ["https://127.0.0.1:2379", "http://[fd00::1]:2380/", "https://$(POD_IP):2381", "https://a.b/x?y='z w'"]
        {
            with(&|args| args.client_url = Some(url.parse().unwrap()));
            with(&|args| args.peer_url = Some(url.parse().unwrap()));
            with(&|args| args.metrics_url = Some(url.parse().unwrap()));
            with(&|args| args.liveness_url = Some(url.parse().unwrap()));
        }
        with(&|args| args.key_rotation = KeyRotation::OnCaChange);
        with(&|args| args.can_signal = true);
        with(&|args| args.revocation_lists = true);
        with(&|args| args.trust_of_issuer = true);
        with(&|args| args.admin_port = 65535);
        samples
    }

    #[test]
    fn rendered_arguments_parse_to_the_same() {
        let samples = samples();
        for args in &samples {
            assert_eq!(parse(&args.render()), *args);
        }
        // And two changes at once do not get in each other's way.
        for pair in samples.windows(2) {
            let both = PodArgs { user: pair[0].user.clone(), cluster: pair[0].cluster.clone(), ..pair[1].clone() };
            assert_eq!(parse(&both.render()), both);
        }
    }

    /// An earlier image refuses the argument of a later feature.
    #[test]
    fn an_unknown_argument_is_refused() {
        let args = ["init", "--roles=peer", "--of-a-later-version"];
        let error = Command::try_parse_from(args).err().unwrap().to_string();
        assert!(error.contains("--of-a-later-version"), "{error}");
    }

    #[test]
    fn defaults_are_left_out() {
        assert_eq!(PodArgs::of(&Settings::default()).render(), ["--roles=peer,server"]);
    }

    #[test]
    fn settings_survive_the_command_line() {
        let annotations = [
            ("roles", "server,client"),
            ("cluster", "events"),
            ("issuer", "csr:client.etcd-tls.dev/prod.etcd"),
            ("duration", "1h30m"),
            ("key", "ed25519"),
            ("key-rotation", "on-ca-change"),
            ("extra-sans", "*.etcd.example.com,etcd.example.com,2001:db8::1,192.0.2.1"),
            ("user", "backup"),
            ("admin-port", "9180"),
            ("reload", "signal:SIGTERM"),
        ];
        let annotations = annotations.map(|(key, value)| (format!("etcd-tls.dev/{key}"), value.to_owned())).into();
        let settings = Settings::parse(&annotations).unwrap();
        assert_eq!(parse(&PodArgs::of(&settings).render()).settings().unwrap(), settings);
        assert_eq!(parse(&PodArgs::of(&Settings::default()).render()).settings().unwrap(), Settings::default());
        let of_issuer = [("issuer", "cert-manager:Issuer/ca"), ("trust", "issuer")];
        let of_issuer = of_issuer.map(|(key, value)| (format!("etcd-tls.dev/{key}"), value.to_owned())).into();
        let settings = Settings::parse(&of_issuer).unwrap();
        assert_eq!(parse(&PodArgs::of(&settings).render()).settings().unwrap(), settings);
    }

    #[test]
    fn arguments_that_were_not_rendered_here_are_judged_too() {
        let bad = |args: &[&str]| {
            parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).settings().unwrap_err().to_string()
        };
        assert!(bad(&["--roles=peer", "--extra-sans=a,a"]).starts_with("--extra-sans: "));
        assert!(bad(&["--roles=client", "--user=system:masters"]).starts_with("--user: "));
    }
}
