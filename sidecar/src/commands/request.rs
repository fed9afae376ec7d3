//! `etcd-tls-sidecar request`: certificates for a host, once. Takes the arguments of the etcd-certificate-generator's
//! `kube-client-agent request` and leaves files under its names; renewing is for `run`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use etcd_tls_contract::{
    duration::parse_duration,
    invalid_value::InvalidValue,
    key::KeyAlgorithm,
    names,
    role::Role,
    settings::{Issuer, Settings},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{
        fetched::Fetched,
        first::{at_hand, fill, missing},
        host::{Host, HostArgs},
        subject::Agent,
        work::open,
    },
    commands::on_host::write_kubeconfig,
    error::Error,
    issuance::{renewal::Template, schedule},
    kube::{ApiError, http::Kube, kubeconfig::HostCredentials},
    os::clock::{Clock, System},
    store::{Store, StoreError, files::Disk},
};

/// How often the certificates of another process are checked.
const GLANCE: Duration = Duration::from_millis(500);

/// Arguments of `request`.
#[derive(Args, Clone, Debug)]
pub struct RequestArgs {
    #[command(flatten)]
    host: HostArgs,
    /// The directory of the certificates: <role>/tls.crt, tls.key and ca.crt; with --commonname also <commonname>.crt and <commonname>.key.
    #[arg(long, value_name = "DIR")]
    assetsdir: PathBuf,
    /// The roles to obtain certificates for, separated by commas [default: the role of --orgname, else peer,server].
    #[arg(long, alias = "role", value_delimiter = ',')]
    roles: Vec<Role>,
    /// The exact CN of the subject. Give one role.
    #[arg(long)]
    commonname: Option<String>,
    /// The subject's O, which determines the role: system:etcd-peers, -servers, -metrics or -clients.
    #[arg(long)]
    orgname: Option<String>,
    /// The etcd user, which is the CN of the client certificate.
    #[arg(long)]
    user: Option<String>,
    /// The etcd cluster's name.
    #[arg(long, default_value = names::DEFAULT_CLUSTER)]
    cluster: String,
    /// The issuer: csr, csr:<signerName> or cert-manager:<Kind>/<name>.
    #[arg(long, default_value = "csr")]
    issuer: Issuer,
    /// The requested lifetime.
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    duration: Duration,
    /// The key's algorithm and size.
    #[arg(long, default_value = "ecdsa-p256")]
    key: KeyAlgorithm,
    /// The directory of the trust bundles peer.crt, client.crt and metrics.crt, which verify the certificates.
    #[arg(long, value_name = "DIR")]
    trust_dir: Option<PathBuf>,
    /// How long to wait for the certificates. A person may have to approve them.
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    timeout: Duration,
    /// Request new certificates even if those on disk are valid.
    #[arg(long)]
    force: bool,
}

impl RequestArgs {
    /// Obtains the certificates.
    ///
    /// # Errors
    /// The reason.
    pub async fn run(self) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = self.once() => result,
            _ = terminate.recv() => Err(Error::Stopped),
        }
    }

    async fn once(&self) -> Result<(), Error> {
        let host = self.subject().map_err(Error::Arguments)?;
        let Some(kubeconfig) = &self.host.kubeconfig else {
            return Err(Error::Arguments("give --kubeconfig: where to ask, and as whom".into()));
        };
        let credentials = HostCredentials::new(kubeconfig, self.host.bootstrap_kubeconfig.as_deref());
        let source = host.trust(self.host.cacrt.as_deref(), self.trust_dir.as_deref(), &self.assetsdir);
        let source = source.map_err(Error::Arguments)?;
        let clock = System::new();
        let templates: Vec<Template> = host.roles().iter().map(|role| host.template(*role)).collect();
        let good = !self.force && at_hand(&self.assetsdir, &templates, clock.now());
        let opened = if good { Store::open(&self.assetsdir) } else { open(&self.assetsdir, &clock).await };
        let store = match opened {
            Ok(store) => store,
            Err(StoreError::Locked(_)) if good => {
                tracing::info!("the certificates on disk are good; none is requested");
                return self.hand_out(&host, &credentials);
            }
            Err(error) if good => {
                tracing::warn!(%error, "the certificates on disk are good and used, but cannot be renewed here");
                return self.hand_out(&host, &credentials);
            }
            Err(locked @ StoreError::Locked(_)) if !self.force => {
                self.await_another(&templates, &clock).await.ok_or(locked)?;
                return self.hand_out(&host, &credentials);
            }
            Err(error) => return Err(error.into()),
        };
        let agent = Agent::new(host.roles().clone(), clock, store, source.dir);
        if self.force {
            agent.forget();
        }
        self.obtain(&agent, &templates, source.fetched.as_ref().filter(|fetched| fetched.bundles), &credentials)
            .await?;
        self.hand_out(&host, &credentials)
    }

    /// Gets what `templates` lack. If a certificate is missing, the bundles are fetched first, and again where the new one was
    /// issued by a CA that none of them holds.
    async fn obtain(
        &self,
        agent: &Agent<System, Disk>,
        templates: &[Template],
        fetched: Option<&Fetched>,
        credentials: &HostCredentials,
    ) -> Result<(), Error> {
        let Some(fetched) = fetched else {
            return fill(agent, templates, || Kube::new(credentials.clone()), self.timeout).await;
        };
        let missing = missing(agent, templates);
        if missing.iter().any(|role| agent.bundle_digest(role.domain()).is_none()) {
            fetch(fetched, credentials, agent.clock(), self.timeout).await?;
        }
        let fetching = async {
            loop {
                agent.unknown_issuer().await;
                tracing::info!("a certificate was issued by a CA that the trust bundles at hand lack; fetching them");
                if let Err(error) = fetched.fetch(credentials).await {
                    tracing::warn!(%error, "the trust bundles cannot be read yet; trying again");
                }
            }
        };
        tokio::select! {
            result = fill(agent, templates, || Kube::new(credentials.clone()), self.timeout) => result,
            () = fetching => Ok(()),
        }
    }

    /// Links the files under the old agent's names, and writes the kubeconfig around them.
    fn hand_out(&self, host: &Host, credentials: &HostCredentials) -> Result<(), Error> {
        let Some(role) = host.identity() else { return Ok(()) };
        if let Some(name) = &self.commonname {
            link(&self.assetsdir, name, role)?;
        }
        write_kubeconfig(credentials, &self.assetsdir.join(role.as_str()));
        Ok(())
    }

    /// Waits for good certificates from the process that works on the directory, usually `run`: etcd may be started, by a
    /// unit that requires this one, long after that. `None` when the time is over.
    async fn await_another(&self, templates: &[Template], clock: &System) -> Option<()> {
        let mut said = false;
        while !at_hand(&self.assetsdir, templates, clock.now()) {
            if clock.elapsed() > self.timeout {
                return None;
            }
            if !said {
                tracing::info!(dir = %self.assetsdir.display(), "another etcd-tls-sidecar works on this directory; waiting for its certificates");
                said = true;
            }
            clock.sleep(GLANCE).await;
        }
        tracing::info!("the certificates on disk are good; none is requested");
        Some(())
    }

    fn subject(&self) -> Result<Host, InvalidValue> {
        let of_org = match &self.orgname {
            Some(org) => {
                let role = Role::ALL.into_iter().find(|role| role.organization() == org);
                let known: Vec<&str> = Role::ALL.iter().map(|role| role.organization()).collect();
                Some(role.ok_or_else(|| format!("--orgname {org:?} is none of {}", known.join(", ")))?)
            }
            None => None,
        };
        let roles = match (&self.roles[..], of_org) {
            ([], Some(role)) => vec![role],
            ([], None) => vec![Role::Peer, Role::Server],
            ([role], Some(of_org)) if *role == of_org => vec![of_org],
            (_, Some(of_org)) => {
                return Err(format!("--orgname is for the role {of_org} alone; --roles says otherwise").into());
            }
            (roles, None) => roles.to_vec(),
        };
        if let Some(name) = &self.commonname {
            if roles.len() > 1 {
                return Err("--commonname is for one role; give --orgname or one of --roles".into());
            }
            // It becomes the name of a file.
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                return Err(format!("--commonname {name:?} cannot name a file").into());
            }
        }
        let settings = Settings {
            roles: roles.into_iter().collect(),
            cluster: self.cluster.clone(),
            issuer: self.issuer.clone(),
            duration: self.duration,
            key: self.key,
            user: self.user.clone(),
            ..Settings::default()
        };
        Host::new(&self.host, settings, self.commonname.clone())
    }
}

/// Fetches the bundles within `limit`. Without them nothing can be verified.
async fn fetch(fetched: &Fetched, credentials: &HostCredentials, clock: &System, limit: Duration) -> Result<(), Error> {
    fetched.make_dir()?;
    let mut last = ApiError::Access(format!("the trust bundles could not be fetched within {limit:?}"));
    let mut failures = 0;
    loop {
        let attempt = tokio::select! {
            attempt = fetched.fetch(credentials) => attempt,
            () = clock.sleep(limit.saturating_sub(clock.elapsed())) => return Err(last.into()),
        };
        let Err(error) = attempt else { return Ok(()) };
        failures += 1;
        if failures == 1 {
            tracing::warn!(%error, "the trust bundles cannot be read yet; trying again");
        }
        last = error;
        let pause = schedule::backoff(failures, None, clock.now(), clock.chance());
        if clock.elapsed() + pause > limit {
            return Err(last.into());
        }
        clock.sleep(pause).await;
    }
}

/// `<name>.crt` and `<name>.key`, as links to the role's files: they change with them.
fn link(dir: &Path, name: &str, role: Role) -> Result<(), Error> {
    for (extension, file) in [("crt", names::CERT_FILE), ("key", names::KEY_FILE)] {
        let target = Path::new(role.as_str()).join(file);
        let path = dir.join(format!("{name}.{extension}"));
        if fs::read_link(&path).is_ok_and(|present| present == target) {
            continue;
        }
        let new = dir.join(format!(".{name}.{extension}.new"));
        let _ = fs::remove_file(&new);
        symlink(&target, &new)?;
        // Replaces what the old agent left there.
        fs::rename(&new, &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: RequestArgs,
    }

    fn subject(line: &str) -> Result<Host, InvalidValue> {
        let words = ["request", "--assetsdir=/a", "--kubeconfig=/k", "--name=m1"].into_iter().chain(line.split(' '));
        Cli::try_parse_from(words).map_err(|e| e.to_string())?.args.subject()
    }

    #[test]
    fn the_old_agents_arguments_mean_what_they_meant() {
        let host = subject(
            "--dnsnames=test --ipaddrs=10.8.89.9 --commonname=system:etcd-peer:etcd1 --orgname=system:etcd-peers",
        );
        let host = host.unwrap();
        let template = host.template(Role::Peer);
        assert_eq!(host.roles().len(), 1);
        assert_eq!(template.common_name, "system:etcd-peer:etcd1");
        assert_eq!((template.sans.dns.len(), template.sans.ips.len()), (1, 1));
        let server = "--dnsnames= --ipaddrs=10.8.89.9 --commonname=system:etcd-server:e --orgname=system:etcd-servers";
        assert_eq!(subject(server).unwrap().template(Role::Server).sans.ips.len(), 1, "exactly what was given");
    }

    #[test]
    fn roles_are_the_other_way_to_say_it() {
        let host = subject("--roles=peer,server,client --user=backup --ipaddrs=10.0.0.1,2001:db8::1").unwrap();
        assert_eq!(host.roles().len(), 3);
        assert_eq!(host.template(Role::Client).common_name, "backup");
        assert_eq!(host.template(Role::Peer).common_name, "system:etcd-peer:m1");
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--ipaddrs=10.0.0.1 --orgname=system:masters",
            "--ipaddrs=10.0.0.1 --orgname=system:etcd-peers --roles=server",
            "--ipaddrs=10.0.0.1 --commonname=x",
            "--ipaddrs=10.0.0.1 --commonname=../x --roles=peer",
            "--ipaddrs=10.0.0.1 --commonname=.x --roles=peer",
            "--roles=peer",
        ] {
            assert!(subject(line).is_err(), "{line}");
        }
    }
}
