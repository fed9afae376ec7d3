//! A host as a requester: names and addresses from the command line, a kubeconfig instead of a service account, and trust
//! bundles from a file or from the signer's ConfigMap.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use clap::Args;
use etcd_tls_contract::{
    identity,
    invalid_value::InvalidValue,
    names,
    role::Role,
    san::Sans,
    settings::{Issuer, Settings},
};

use crate::{
    agent::{fetched::Fetched, trust::TrustDir},
    issuance::renewal::Template,
};

/// The directory beside the certificates in which fetched bundles are kept.
const TRUST: &str = "trust";

/// The arguments of a host.
#[derive(Args, Clone, Debug, Default)]
pub struct HostArgs {
    /// Run on a host, with this kubeconfig. With --bootstrap-kubeconfig, the sidecar writes it together with the first
    /// certificate.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig (with a token) that is used while there is no valid certificate.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// The host's name in certificate subjects and in the names of requests [default: the host name].
    #[arg(long)]
    pub name: Option<String>,
    /// The namespace that the etcd cluster belongs to.
    #[arg(long, default_value = "kube-system")]
    pub namespace: String,
    /// DNS names to request, separated by commas. The server role also gets localhost.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true, value_parser = dns_names)]
    pub dnsnames: BTreeSet<String>,
    /// IPv4 and IPv6 addresses to request, separated by commas. The server role also gets 127.0.0.1 and ::1.
    #[arg(long, value_name = "ADDRESSES", default_value = "", hide_default_value = true, value_parser = addresses)]
    pub ipaddrs: BTreeSet<IpAddr>,
    /// One trust bundle for every role. Without it the bundles are read from --trust-dir if it exists, else from the ConfigMap
    /// in which the signer publishes them.
    #[arg(long, value_name = "FILE")]
    pub cacrt: Option<PathBuf>,
    /// The systemd unit whose main process is etcd.
    #[arg(long, value_name = "UNIT", conflicts_with = "etcd_pid_file")]
    pub etcd_unit: Option<String>,
    /// The file that holds etcd's process ID.
    #[arg(long, value_name = "FILE")]
    pub etcd_pid_file: Option<PathBuf>,
}

/// A host as a requester.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: String,
    sans: Sans,
    settings: Settings,
    /// A subject's CN as it was given, with exactly the names given; for one role.
    exact: Option<String>,
}

impl Host {
    /// From the command line.
    ///
    /// # Errors
    /// Which argument is invalid, and why.
    pub fn new(args: &HostArgs, settings: Settings, exact: Option<String>) -> Result<Self, InvalidValue> {
        let name = match &args.name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()
                .ok()
                .and_then(|h| h.into_string().ok())
                .ok_or("the system has no host name; give --name")?,
        };
        let name = name.to_ascii_lowercase();
        // It is a part of the requests' names, beside role and digest.
        if !names::is_dns_subdomain(&name) || name.len() > 180 {
            return Err(format!("--name {name:?} is not a DNS name of at most 180 characters").into());
        }
        if !names::is_dns_label(&args.namespace) || !names::is_dns_label(&settings.cluster) {
            return Err("--namespace and --cluster are DNS labels".into());
        }
        if settings.is_of_kubelet() {
            return Err("--issuer: pod-certificate is for pods, whose certificates kubelet requests; use csr".into());
        }
        if let Issuer::CertManager(issuer) = &settings.issuer {
            return Err(format!(
                "--issuer {}: a CertificateRequest belongs to a pod; on a host use cert-manager's signers for \
                 CertificateSigningRequests, csr:{}",
                settings.issuer,
                issuer.signer_name(&args.namespace)
            )
            .into());
        }
        let mut sans = Sans { dns: args.dnsnames.clone(), ips: args.ipaddrs.clone() };
        sans.dns.extend(settings.extra_sans.dns.iter().cloned());
        sans.ips.extend(&settings.extra_sans.ips);
        let serves = settings.roles.contains(&Role::Peer) || settings.roles.contains(&Role::Server);
        if serves && sans == Sans::default() {
            return Err("give --dnsnames, --ipaddrs or both: a member of etcd is known by them".into());
        }
        if settings.roles.contains(&Role::Client) && settings.user.is_none() && exact.is_none() {
            return Err("give --user, the CN of the client certificate: etcd takes it for the user".into());
        }
        Ok(Self { name, namespace: args.namespace.clone(), sans, settings, exact })
    }

    /// The host's name in subjects.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The roles to hold.
    pub const fn roles(&self) -> &BTreeSet<Role> {
        &self.settings.roles
    }

    /// The template of the certificate for `role`.
    pub fn template(&self, role: Role) -> Template {
        let settings = &self.settings;
        let common_name = match (&self.exact, role, &settings.user) {
            (Some(exact), ..) => exact.clone(),
            (None, Role::Client, Some(user)) => user.clone(),
            (None, ..) => identity::common_name(role, &self.name),
        };
        let mut sans = self.sans.clone();
        if self.exact.is_none() {
            match role {
                Role::Peer => {}
                Role::Server => {
                    sans.dns.insert("localhost".to_owned());
                    sans.ips.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
                }
                Role::Client | Role::Metrics => sans = Sans::default(),
            }
        }
        Template {
            role,
            uid: self.name.clone(),
            common_name,
            sans,
            signer: settings.signer_name(role, &self.namespace),
            lifetime: settings.duration,
            key: settings.key,
            key_rotation: settings.key_rotation,
        }
    }

    /// The role whose certificate identifies the host to the API server: a member's before a client's.
    pub fn identity(&self) -> Option<Role> {
        self.roles().first().copied()
    }

    /// Where the bundles are: `cacrt`, else `mounted` where that is a directory, else to be fetched into `dir`. Our signer's
    /// revocation lists are fetched in each case.
    pub fn trust(&self, cacrt: Option<&Path>, mounted: Option<&Path>, dir: &Path) -> Result<Source, InvalidValue> {
        let given = match (cacrt, mounted.filter(|mounted| mounted.is_dir())) {
            (Some(file), _) => Some(TrustDir::file(file)),
            (None, Some(mounted)) => Some(TrustDir::new(mounted)),
            (None, None) => None,
        };
        let role = self.identity().unwrap_or(Role::Peer);
        if self.settings.our_signer(role, &self.namespace).is_none() {
            return match given {
                Some(dir) => Ok(Source { dir, fetched: None }),
                None => Err("give --cacrt or --trust-dir: this issuer does not publish its trust bundles".into()),
            };
        }
        let cluster = self.settings.home(&self.namespace);
        let path = dir.join(TRUST);
        let fetched = Fetched {
            config_map: cluster.trust_config_map(&cluster.namespace),
            namespace: cluster.namespace,
            domains: self.roles().iter().map(|r| r.domain()).collect(),
            dir: path.clone(),
            bundles: given.is_none(),
        };
        let dir = given.map_or_else(|| TrustDir::new(&path).of_our_signer(true), |given| given.with_lists(&path));
        Ok(Source { dir, fetched: Some(fetched) })
    }
}

/// The words of a list on the command line, separated by commas.
fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// Reads `--dnsnames`.
fn dns_names(list: &str) -> Result<BTreeSet<String>, InvalidValue> {
    let name = |word: &str| {
        let name = word.to_ascii_lowercase();
        if names::is_san_dns_name(&name) { Ok(name) } else { Err(format!("{word:?} is not a DNS name").into()) }
    };
    words(list).map(name).collect()
}

/// Reads `--ipaddrs`: IPv6 with or without brackets.
fn addresses(list: &str) -> Result<BTreeSet<IpAddr>, InvalidValue> {
    let address = |word: &str| {
        let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
        let ip: IpAddr = bare.parse().map_err(|_| format!("{word:?} is no address"))?;
        if names::is_san_ip(ip) { Ok(ip) } else { Err(format!("{word} is no address of one host").into()) }
    };
    words(list).map(address).collect()
}

/// Where the trust bundles come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The bundles on offer.
    pub dir: TrustDir,
    /// How they are brought there, where they are not put there by somebody else.
    pub fetched: Option<Fetched>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: HostArgs,
    }

    fn host(roles: &[Role], dnsnames: &str, ipaddrs: &str) -> Result<Host, InvalidValue> {
        let line = [format!("--dnsnames={dnsnames}"), format!("--ipaddrs={ipaddrs}")];
        let words = ["run", "--name=M1.example.com"].into_iter().chain(line.iter().map(String::as_str));
        let args = <Cli as clap::Parser>::try_parse_from(words).map_err(|error| error.to_string())?.args;
        let settings = Settings { roles: roles.iter().copied().collect(), ..Settings::default() };
        Host::new(&args, settings, None)
    }

    #[test]
    fn a_host_asks_for_what_its_operator_says() {
        let host =
            host(&[Role::Peer, Role::Server, Role::Metrics], "m1.example.com", "10.0.0.1,[2001:db8::1]").unwrap();
        let peer = host.template(Role::Peer);
        assert_eq!(peer.common_name, "system:etcd-peer:m1.example.com");
        assert_eq!(peer.signer, "peer.etcd-tls.dev/kube-system.etcd");
        assert_eq!((peer.sans.dns.len(), peer.sans.ips.len()), (1, 2));
        let server = host.template(Role::Server);
        assert_eq!((server.sans.dns.len(), server.sans.ips.len()), (2, 4));
        assert_eq!(host.template(Role::Metrics).sans, Sans::default());
        assert_eq!(host.identity(), Some(Role::Peer));
    }

    #[test]
    fn arguments_that_make_no_sense_are_named() {
        for (roles, dns, ips, word) in [
            (&[Role::Peer][..], "", "", "--dnsnames"),
            (&[Role::Server], "a b", "", "--dnsnames"),
            (&[Role::Server], "", "10.0.0.300", "--ipaddrs"),
            (&[Role::Server], "", "0.0.0.0", "--ipaddrs"),
            (&[Role::Server], "", "fe80::1%eth0", "--ipaddrs"),
            (&[Role::Client], "", "", "--user"),
        ] {
            let error = host(roles, dns, ips).err().unwrap();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
