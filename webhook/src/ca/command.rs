//! `etcd-tls-webhook issue`: issues certificates for members with known names, without a running signer. The keys are
//! generated here, so protect the output like keys.
//!
//! The output is manifests of `kubernetes.io/tls` Secrets, or files. Existing files are never overwritten.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    csr::PrivateKey,
    duration::parse_duration,
    identity,
    invalid_value::InvalidValue,
    key::KeyAlgorithm,
    names,
    role::{Domain, Role},
    san::Sans,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    ca::{
        authority::Authority,
        issue::{Leaf, issue},
    },
    error::{Error, OfFile},
};

/// The lifetime of a CA that is generated here.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The arguments of `issue`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The etcd cluster's name.
    #[arg(long)]
    cluster: String,
    /// The cluster's namespace.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// NAME[=SAN,...]: a member, and its names and addresses [default: its names behind --service]. Can be repeated.
    #[arg(long, value_name = "NAME[=SAN,...]")]
    member: Vec<Member>,
    /// An etcd user to issue a client certificate for; it becomes the CN. Can be repeated.
    #[arg(long, value_name = "USER")]
    client: Vec<String>,
    /// The roles of the members, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "peer,server")]
    roles: Vec<Role>,
    /// The headless Service of the members [default: the cluster's name].
    #[arg(long)]
    service: Option<String>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Issue one certificate per role with the names of all members, for a StatefulSet whose pods mount one Secret.
    #[arg(long)]
    shared: bool,
    /// CA certificate (PEM; intermediates may follow) of every role.
    #[arg(long, value_name = "FILE", requires = "cakey", conflicts_with = "ca_dir")]
    cacrt: Option<PathBuf>,
    /// The private key of --cacrt.
    #[arg(long, value_name = "FILE", requires = "cacrt")]
    cakey: Option<PathBuf>,
    /// Directory of a CA for peers (peer.crt, peer.key) and one for servers and clients (client.crt, client.key). A missing
    /// one is generated.
    #[arg(long, value_name = "DIR", required_unless_present = "cacrt")]
    ca_dir: Option<PathBuf>,
    /// The lifetime of the certificates. They end with the CA at the latest.
    #[arg(long, default_value = "8760h", value_parser = parse_duration)]
    duration: Duration,
    /// The keys' algorithm and size.
    #[arg(long, default_value = "ecdsa-p256")]
    key: KeyAlgorithm,
    /// Write files to <DIR>/<member>/<role>/ instead of manifests to stdout.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A member and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    sans: Option<Sans>,
}

impl FromStr for Member {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let (name, sans) = match s.split_once('=') {
            Some((name, sans)) => (name, Some(sans.parse::<Sans>()?)),
            None => (s, None),
        };
        if !names::is_dns_label(name) {
            return Err(format!("{name:?} is not a member's name (a DNS label)").into());
        }
        Ok(Self { name: name.to_owned(), sans })
    }
}

/// One certificate to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LeafTemplate {
    /// Its owner in paths and Secrets' names.
    owner: String,
    role: Role,
    common_name: String,
    sans: Sans,
}

impl LeafTemplate {
    /// The Secret's name.
    fn secret(&self) -> String {
        format!("{}-{}-tls", self.owner, self.role)
    }
}

/// The files made.
struct Issued {
    chain: String,
    key: Zeroizing<String>,
    bundle: String,
}

impl Args {
    /// Issues and writes.
    ///
    /// # Errors
    /// Invalid arguments, or files that cannot be read or written. Files written before stay.
    #[allow(clippy::unused_async, reason = "every subcommand runs alike")]
    pub async fn run(self) -> Result<(), Error> {
        let now = SystemTime::now();
        let templates = self.templates()?;
        let mut domains: BTreeSet<Domain> = templates.iter().map(|o| authority_domain(o.role)).collect();
        if self.ca_dir.is_some() {
            // A cluster needs both CAs, even if only a client's certificate is requested now.
            domains.extend([Domain::Peer, Domain::Client]);
        }
        let authorities = self.authorities(&domains, now)?;
        let mut manifests = Vec::new();
        for template in &templates {
            let authority = authorities.get(&authority_domain(template.role)).ok_or("no CA")?;
            let issued = self.issue(template, authority, now).map_err(|e| format!("{}: {e}", template.secret()))?;
            match &self.out {
                Some(out) => write_files(&out.join(&template.owner).join(template.role.as_str()), &issued)?,
                None => manifests.push(self.manifest(template, &issued)),
            }
        }
        let mut stdout = io::stdout().lock();
        for manifest in &manifests {
            // JSON is YAML, and one document a line is what kubectl reads.
            writeln!(stdout, "---\n{manifest}")?;
        }
        Ok(())
    }

    /// All that is to be made.
    fn templates(&self) -> Result<Vec<LeafTemplate>, Error> {
        if self.member.is_empty() && self.client.is_empty() {
            return Err("give at least one --member or --client".into());
        }
        let service = self.service.as_deref().unwrap_or(&self.cluster);
        for (flag, name) in
            [("--cluster", self.cluster.as_str()), ("--namespace", &self.namespace), ("--service", service)]
        {
            if !names::is_dns_label(name) {
                return Err(format!("{flag} {name:?} is not a DNS label").into());
            }
        }
        if let Some(role) = self.roles.iter().find(|r| **r == Role::Client) {
            return Err(format!("--roles are members'; a {role} is named with --client").into());
        }
        let members: Vec<(String, Sans)> = self
            .member
            .iter()
            .map(|m| (m.name.clone(), m.sans.clone().unwrap_or_else(|| self.names_behind(service, &m.name))))
            .collect();
        let members = if self.shared && !members.is_empty() {
            let mut all = Sans::default();
            for (_, sans) in members {
                all.dns.extend(sans.dns);
                all.ips.extend(sans.ips);
            }
            vec![(self.cluster.clone(), all)]
        } else {
            members
        };
        let mut templates = Vec::new();
        for (owner, names) in &members {
            for role in self.roles.iter().collect::<BTreeSet<_>>() {
                let mut sans = if *role == Role::Metrics { Sans::default() } else { names.clone() };
                if *role == Role::Server {
                    sans.dns.insert("localhost".to_owned());
                    sans.ips.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
                }
                let common_name = identity::common_name(*role, owner);
                templates.push(LeafTemplate { owner: owner.clone(), role: *role, common_name, sans });
            }
        }
        for user in &self.client {
            if !names::is_dns_subdomain(user) {
                return Err(format!("--client {user:?} cannot name a Secret; it is to be a DNS name").into());
            }
            let (owner, common_name) = (format!("{}-{user}", self.cluster), user.clone());
            templates.push(LeafTemplate { owner, role: Role::Client, common_name, sans: Sans::default() });
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = templates.iter().find(|o| !seen.insert(o.secret())) {
            return Err(format!("{} is asked for twice", twice.secret()).into());
        }
        Ok(templates)
    }

    /// A member's names behind its headless Service, and the Service's own.
    fn names_behind(&self, service: &str, member: &str) -> Sans {
        let mut sans = Sans::default();
        for of in [format!("{member}.{service}"), service.to_owned()] {
            let name = format!("{of}.{}", self.namespace);
            sans.dns.extend([format!("{name}.svc.{}", self.cluster_domain), format!("{name}.svc"), name]);
        }
        sans
    }

    /// The authorities, read or made.
    fn authorities(
        &self,
        domains: &BTreeSet<Domain>,
        now: SystemTime,
    ) -> Result<BTreeMap<Domain, std::sync::Arc<Authority>>, Error> {
        let mut authorities = BTreeMap::new();
        if let (Some(certificate), Some(key)) = (&self.cacrt, &self.cakey) {
            let shared = std::sync::Arc::new(load(certificate, key, now)?);
            authorities.extend(domains.iter().map(|d| (*d, std::sync::Arc::clone(&shared))));
            return Ok(authorities);
        }
        let dir = self.ca_dir.as_deref().ok_or("give --ca-dir, or --cacrt and --cakey")?;
        for domain in domains {
            let (certificate, key) = (dir.join(format!("{domain}.crt")), dir.join(format!("{domain}.key")));
            let authority = match (certificate.exists(), key.exists()) {
                (false, false) => self.make(*domain, &certificate, &key, now)?,
                // A CA that is half lost is never created again: its certificates are out there.
                _ => load(&certificate, &key, now)?,
            };
            authorities.insert(*domain, std::sync::Arc::new(authority));
        }
        Ok(authorities)
    }

    fn make(&self, domain: Domain, certificate: &Path, key: &Path, now: SystemTime) -> Result<Authority, Error> {
        let name = format!("etcd-tls {domain} CA of {}/{}", self.namespace, self.cluster);
        let name: String = name.chars().take(64).collect();
        let authority = Authority::generate(&name, KeyAlgorithm::EcdsaP256, CA_LIFE, now)?;
        if let Some(dir) = certificate.parent() {
            make_dir(dir)?;
        }
        write_new(key, 0o600, authority.key_pem().as_bytes())?;
        write_new(certificate, 0o644, authority.certificate_pem().as_bytes())?;
        Ok(authority)
    }

    fn issue(&self, template: &LeafTemplate, authority: &Authority, now: SystemTime) -> Result<Issued, Error> {
        let key = PrivateKey::generate(self.key)?;
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| "the system gives no random numbers")?;
        let leaf = Leaf {
            role: template.role,
            organizations: vec![template.role.organization()],
            common_name: &template.common_name,
            sans: &template.sans,
            public_key: &key.public_key(),
            lifetime: self.duration,
        };
        let chain = issue(authority, &leaf, now, serial)?;
        Ok(Issued { chain: chain.to_pem(), key: key.to_pem(), bundle: authority.bundle().to_pem() })
    }

    fn manifest(&self, template: &LeafTemplate, issued: &Issued) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": { "name": template.secret(), "namespace": self.namespace },
            "data": {
                names::CERT_FILE: STANDARD.encode(&issued.chain),
                names::KEY_FILE: STANDARD.encode(issued.key.as_bytes()),
                names::CA_FILE: STANDARD.encode(&issued.bundle),
            },
        })
    }
}

/// Metrics share the clients' authority: etcd's metrics port takes the client CA.
const fn authority_domain(role: Role) -> Domain {
    match role.domain() {
        Domain::Peer => Domain::Peer,
        Domain::Client | Domain::Metrics => Domain::Client,
    }
}

fn load(certificate: &Path, key: &Path, now: SystemTime) -> Result<Authority, Error> {
    let read = |path: &Path| fs::read(path).map_err(|e| OfFile::new(path, e));
    let key = Zeroizing::new(read(key)?);
    Ok(Authority::load(&read(certificate)?, &key, now).map_err(|e| format!("{}: {e}", certificate.display()))?)
}

fn write_files(dir: &Path, issued: &Issued) -> Result<(), Error> {
    make_dir(dir)?;
    write_new(&dir.join(names::KEY_FILE), 0o600, issued.key.as_bytes())?;
    write_new(&dir.join(names::CERT_FILE), 0o644, issued.chain.as_bytes())?;
    write_new(&dir.join(names::CA_FILE), 0o644, issued.bundle.as_bytes())
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(|e| OfFile::new(dir, e).into())
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            format!("{} is there already and is not written over; move it away", path.display()).into()
        }
        _ => Error::from(OfFile::new(path, e)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn templates(line: &str) -> Result<Vec<LeafTemplate>, String> {
        let words = ["issue", "--cluster=etcd", "--ca-dir=/ca"].into_iter().chain(line.split(' '));
        let args = Cli::try_parse_from(words).map_err(|e| e.to_string())?.args;
        args.templates().map_err(|e| e.to_string())
    }

    #[test]
    fn a_member_has_its_names_behind_the_service() {
        let templates = templates("--namespace=prod --member=etcd-0 --member=etcd-1=10.0.0.1,e1.example.com").unwrap();
        let secrets: Vec<_> = templates.iter().map(LeafTemplate::secret).collect();
        assert_eq!(secrets, ["etcd-0-peer-tls", "etcd-0-server-tls", "etcd-1-peer-tls", "etcd-1-server-tls"]);
        assert_eq!(templates[0].common_name, "system:etcd-peer:etcd-0");
        let dns: Vec<_> = templates[0].sans.dns.iter().map(String::as_str).collect();
        assert_eq!(
            dns,
            [
                "etcd-0.etcd.prod",
                "etcd-0.etcd.prod.svc",
                "etcd-0.etcd.prod.svc.cluster.local",
                "etcd.prod",
                "etcd.prod.svc",
                "etcd.prod.svc.cluster.local",
            ]
        );
        assert_eq!((templates[2].sans.dns.len(), templates[2].sans.ips.len()), (1, 1));
        assert_eq!((templates[3].sans.dns.len(), templates[3].sans.ips.len()), (2, 3), "and loopback");
    }

    #[test]
    fn shared_certificates_hold_all_members_names() {
        let templates = templates("--shared --member=a=10.0.0.1 --member=b=10.0.0.2 --client=backup").unwrap();
        let secrets: Vec<_> = templates.iter().map(LeafTemplate::secret).collect();
        assert_eq!(secrets, ["etcd-peer-tls", "etcd-server-tls", "etcd-backup-client-tls"]);
        assert_eq!(templates[0].sans.ips.len(), 2);
        assert_eq!((templates[2].common_name.as_str(), templates[2].sans == Sans::default()), ("backup", true));
    }

    #[test]
    fn invalid_and_contradictory_options_are_refused() {
        for line in [
            "--roles=peer",
            "--member=../x",
            "--member=A",
            "--member=a --member=a",
            "--member=a=0.0.0.0.1",
            "--member=a --roles=client",
            "--client=../x",
            "--member=a --namespace=A",
        ] {
            assert!(templates(line).is_err(), "{line}");
        }
    }
}
