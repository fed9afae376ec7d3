//! Observes one etcd, and its cluster.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use aws_lc_rs::digest;
use futures::future::join_all;
use tokio::time::timeout;

use super::{
    Options,
    decide::{MemberError, ObservedMember, ObservedPort},
    memory::KnownCluster,
};
use etcd_tls_contract::{
    certificate::Bundle,
    encoding::hex,
    endpoint::Endpoint,
    invalid_value::InvalidValue,
    names,
    role::{Domain, Role},
    trusts::Unknown,
};

use crate::{
    etcd::{
        Client, EtcdError, Member, ServerMetrics,
        handshake::{self, HandshakeError},
        joined,
    },
    http,
    os::process::{self, Listener, Process, ProcessError, ProcessSelector},
};

/// How long a handshake with etcd's own ports may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How much later than it says a process may have started, when told in seconds of the wall clock: the system's start is
/// known to a second.
const CLOCK_SLACK: f64 = 2.0;

/// The cluster as it was just seen.
#[derive(Clone, Debug)]
pub(super) struct ObservedCluster {
    pub(super) me: u64,
    pub(super) leader: bool,
    pub(super) members: Vec<ObservedMember>,
    /// Every member's client URLs, our own first if it takes us: whom to ask for the lock.
    pub(super) client_urls: Vec<Endpoint>,
}

/// Observes etcd by its processes, its ports and the members of its cluster.
#[derive(Clone)]
pub(super) struct Observer {
    pub(super) dir: PathBuf,
    roles: Vec<Role>,
    client_url: Option<Endpoint>,
    peer_url: Option<Endpoint>,
    /// True if etcd's processes are visible.
    processes: bool,
    pub(super) wanted: ProcessSelector,
}

impl Observer {
    pub(super) fn new(options: &Options, program: Option<String>) -> Self {
        let urls = options.client_url.iter().chain(&options.peer_url);
        let listeners = urls.map(|url| Listener { address: url.ip(), port: url.port }).collect();
        Self {
            dir: options.dir.clone(),
            roles: options.roles.clone(),
            client_url: options.client_url.clone(),
            peer_url: options.peer_url.clone(),
            processes: options.can_signal,
            wanted: ProcessSelector { program, listeners, place: options.place.clone() },
        }
    }

    /// The bundle of each domain on disk, and what loads it.
    pub(super) fn bundles(&self) -> BTreeMap<Domain, (Bundle, Loads)> {
        let mut bundles = BTreeMap::new();
        for role in &self.roles {
            let loads = self.loads(*role);
            let domain = role.domain();
            // A domain with a port of its own is what that port says; a client's copy of the bundle says nothing more.
            if loads == Loads::Reader && bundles.contains_key(&domain) {
                continue;
            }
            let path = self.dir.join(role.as_str()).join("ca.crt");
            match fs::read(&path).map_err(|e| e.to_string()).and_then(|b| Bundle::parse(&b).map_err(|e| e.to_string()))
            {
                Ok(bundle) => drop(bundles.insert(domain, (bundle, loads))),
                Err(error) => tracing::debug!(path = %path.display(), error, "no bundle there yet"),
            }
        }
        bundles
    }

    /// The loader of `role`'s bundle. An unknown port, or one without TLS, never counts as having loaded it.
    fn loads(&self, role: Role) -> Loads {
        let url = match role {
            Role::Peer => &self.peer_url,
            Role::Server => &self.client_url,
            Role::Client | Role::Metrics => return Loads::Reader,
        };
        match url {
            None => Loads::Unknown(Unknown::Listeners),
            Some(endpoint) if endpoint.tls => Loads::Port(Port { role, endpoint: endpoint.clone() }),
            Some(_) => Loads::Unknown(Unknown::PlainText),
        }
    }

    /// The certificate and the CAs that `port` shows.
    pub(super) async fn seen(&self, port: &Port, started: Option<Duration>) -> Result<ObservedPort, HandshakeError> {
        let dir = self.dir.join(port.role.as_str());
        // The files of one generation, even if the link moves meanwhile.
        let dir = fs::canonicalize(&dir).unwrap_or(dir);
        let read = |name| {
            fs::read_to_string(dir.join(name)).map_err(|e| HandshakeError::Identity(format!("{}: {e}", dir.display())))
        };
        let (chain, key) = (read("tls.crt")?, zeroize::Zeroizing::new(read("tls.key")?));
        let served = handshake::probe(&port.endpoint, Some((&chain, &key)), HANDSHAKE_LIMIT).await?;
        let authorities = served.trusted.map(|mut names| {
            names.sort();
            names
        });
        Ok(ObservedPort { authorities, started })
    }

    /// etcd's process, where processes are visible.
    pub(super) fn process(&self) -> Result<Process, ProcessError> {
        process::find(&self.wanted)
    }

    /// True if a process that was found by its ports is etcd by its name as well.
    pub(super) fn is_etcd(&self, process: Process) -> bool {
        let etcd = ProcessSelector { program: Some(names::ETCD_CONTAINER.to_owned()), ..self.wanted.clone() };
        process::find(&etcd).is_ok_and(|found| found == process)
    }

    /// When etcd started: by its process, or else by what it says itself.
    pub(super) async fn started(&self) -> Option<Duration> {
        if self.processes {
            return self.process().ok().map(Process::started);
        }
        let metrics = self.metrics().await.ok()?;
        let since_boot = metrics.started? - process::boot_time().ok()? - CLOCK_SLACK;
        Some(Duration::try_from_secs_f64(since_boot).unwrap_or_default())
    }

    /// True if two answers of [`Self::started`] are of two processes. Where processes are not visible, it is known to a
    /// second only.
    pub(super) fn is_another(&self, now: Duration, before: Duration) -> bool {
        now.abs_diff(before) > if self.processes { Duration::ZERO } else { Duration::from_millis(1500) }
    }

    async fn metrics(&self) -> Result<ServerMetrics, EtcdError> {
        let url = self.own_url()?;
        self.client(url)?.metrics(url).await
    }

    /// True if anybody takes connections where etcd does.
    pub(super) async fn listens(&self) -> bool {
        let Some(Endpoint { host, port, .. }) = &self.client_url else { return true };
        timeout(HANDSHAKE_LIMIT, http::dial(host, *port)).await.is_ok_and(|connected| connected.is_ok())
    }

    /// Checks that etcd reaches quorum.
    pub(super) async fn healthy(&self) -> Result<(), EtcdError> {
        let url = self.own_url()?;
        self.client(url)?.health(url).await
    }

    /// Hands leadership on.
    pub(super) async fn move_leader(&self, to: u64) -> Result<(), EtcdError> {
        let url = self.own_url()?;
        self.client(url)?.move_leader(url, to).await
    }

    fn own_url(&self) -> Result<&Endpoint, EtcdError> {
        self.client_url.as_ref().ok_or_else(|| EtcdError::Unreachable {
            url: "etcd".to_owned(),
            reason: "its client port is not known to the sidecar".to_owned(),
        })
    }

    /// The role directory that serves as a client of etcd.
    pub(super) fn identity(&self) -> Option<PathBuf> {
        let role = [Role::Server, Role::Client].into_iter().find(|r| self.roles.contains(r))?;
        Some(self.dir.join(role.as_str()))
    }

    fn client(&self, url: &Endpoint) -> Result<Client, EtcdError> {
        if !url.tls {
            return Ok(Client::plain());
        }
        Client::from_dir(&self.identity().ok_or_else(|| EtcdError::Unreachable {
            url: url.to_string(),
            reason: "the pod has no certificate to present (roles server or client)".to_owned(),
        })?)
    }

    fn peer(&self, url: &Endpoint) -> Result<Client, EtcdError> {
        if !url.tls { Ok(Client::plain()) } else { Client::from_dir(&self.dir.join(Role::Peer.as_str())) }
    }

    /// Looks at every member.
    ///
    /// # Errors
    /// The own member does not say who it is or whom it knows.
    pub(super) async fn cluster(&self) -> Result<ObservedCluster, EtcdError> {
        let (metrics, known, members) = self.known().await?;
        let mut client_urls = vec![self.own_url()?.clone()];
        client_urls.extend(known.others);
        let members = join_all(members.into_iter().map(|m| self.member(m, known.me)).collect::<Vec<_>>()).await;
        Ok(ObservedCluster { me: known.me, leader: metrics.leader, members, client_urls })
    }

    /// The own member and the others.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub(super) async fn known(&self) -> Result<(ServerMetrics, KnownCluster, Vec<Member>), EtcdError> {
        let own = self.own_url()?;
        let metrics = self.metrics().await?;
        let me = metrics.id.ok_or_else(|| EtcdError::Answer {
            url: own.to_string(),
            reason: "no etcd_server_id among its metrics".to_owned(),
        })?;
        let members = self.members().await?;
        let others = client_urls(&members, me);
        Ok((metrics, KnownCluster { me, others }, members))
    }

    /// Looks at every member by way of the others, where etcd's own port refuses us: it runs with a CA of before a rollover
    /// that it slept through, and only a restart makes it take us again. Such a member leads nobody.
    ///
    /// # Errors
    /// None of the others says whom it knows.
    pub(super) async fn cluster_by_others(&self, known: &KnownCluster) -> Result<ObservedCluster, EtcdError> {
        let mut last =
            EtcdError::Unreachable { url: joined(&known.others), reason: "no other member to ask".to_owned() };
        for url in &known.others {
            let members = match self.client(url) {
                Ok(client) => client.members(url).await,
                Err(error) => Err(error),
            };
            match members {
                Ok(members) => {
                    let client_urls = client_urls(&members, known.me);
                    let members = join_all(members.into_iter().map(|m| self.member(m, known.me)).collect::<Vec<_>>());
                    return Ok(ObservedCluster { me: known.me, leader: false, members: members.await, client_urls });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// By the gateway, or by the peer port where auth shuts the gateway.
    async fn members(&self) -> Result<Vec<Member>, EtcdError> {
        let own = self.own_url()?;
        match (self.client(own)?.members(own).await, &self.peer_url) {
            (Ok(members), _) => Ok(members),
            (Err(first), Some(peer)) => match self.peer(peer)?.members_of_peer(peer).await {
                Ok(members) => Ok(members),
                Err(second) => {
                    tracing::debug!(error = %second, "no member list of the peer port either");
                    Err(first)
                }
            },
            (Err(error), None) => Err(error),
        }
    }

    async fn member(&self, member: Member, me: u64) -> ObservedMember {
        let (health, peer) = if member.id == me {
            (Ok(()), Ok(()))
        } else {
            tokio::join!(self.health_of(&member.client_urls), self.dialled(&member.peer_urls))
        };
        ObservedMember { id: member.id, name: member.name, learner: member.learner, health, peer }
    }

    /// Checks that a member is healthy, by the first of its URLs that says so.
    async fn health_of(&self, urls: &[String]) -> Result<(), MemberError> {
        let mut failed = MemberError::from("no client URL: it has never started");
        for endpoint in endpoints(urls) {
            match self.healthy_at(endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn healthy_at(&self, endpoint: Result<Endpoint, MemberError>) -> Result<(), MemberError> {
        let endpoint = endpoint?;
        Ok(self.client(&endpoint)?.health(&endpoint).await?)
    }

    /// The first other member whose peer port still shows other CAs than are on disk here: one that is yet to restart.
    pub(super) async fn behind(&self, me: u64) -> Option<String> {
        let bundles = self.bundles();
        let (bundle, Loads::Port(_)) = bundles.get(&Role::Peer.domain())? else { return None };
        let mut names = bundle.subjects();
        names.sort();
        for member in self.members().await.ok()?.into_iter().filter(|m| m.id != me) {
            for endpoint in member.peer_urls.iter().flat_map(|url| url.parse::<Endpoint>()).filter(|url| url.tls) {
                let seen = self.seen(&Port { role: Role::Peer, endpoint }, None).await;
                if seen.is_ok_and(|seen| seen.authorities.is_some_and(|shown| shown != names)) {
                    return Some(member.name);
                }
            }
        }
        None
    }

    /// The members whose port does not show all CAs of `bundle`, by name; this one among them unless its etcd has `loaded` it. A
    /// member that does not answer is among them.
    ///
    /// # Errors
    /// None does without the CAs, as far as that can be seen, and a member's trust cannot be seen; why.
    pub(super) async fn distrusting(
        &self,
        domain: Domain,
        bundle: &Bundle,
        loaded: Result<bool, Unknown>,
    ) -> Result<Vec<String>, TrustUnseen> {
        let role = [Role::Peer, Role::Server].into_iter().find(|role| role.domain() == domain);
        let Some(role) = role.filter(|role| self.roles.contains(role)) else {
            return Err(TrustUnseen::NoPort(domain));
        };
        let (_, known, members) = self.known().await?;
        let loaded = &loaded;
        let looks = members.into_iter().map(|member| async move {
            let trusts = if member.id == known.me {
                loaded.clone().map_err(TrustUnseen::Own)
            } else {
                self.trusts(role, &member, bundle).await
            };
            (if member.name.is_empty() { format!("{:x}", member.id) } else { member.name }, trusts)
        });
        let (mut against, mut unseen) = (Vec::new(), None);
        for (name, trusts) in join_all(looks).await {
            match trusts {
                Ok(true) => {}
                Ok(false) => against.push(name),
                Err(why) => drop(unseen.get_or_insert_with(|| TrustUnseen::Member { name, why: Box::new(why) })),
            }
        }
        unseen.filter(|_| against.is_empty()).map_or(Ok(against), Err)
    }

    /// The domains in which a port of another member shows a CA that is not in the bundle on disk, with a digest of what it
    /// shows.
    pub(super) async fn ahead(&self) -> BTreeMap<Domain, String> {
        let mut found = BTreeMap::new();
        let Ok((_, known, members)) = self.known().await else { return found };
        let bundles = self.bundles();
        for role in [Role::Peer, Role::Server].into_iter().filter(|role| self.roles.contains(role)) {
            let Some((bundle, _)) = bundles.get(&role.domain()) else { continue };
            for member in members.iter().filter(|member| member.id != known.me) {
                let shown = self.shown(role, member).await.unwrap_or_default();
                if !shows_all(&bundle.subjects(), &shown) {
                    found.insert(role.domain(), names_digest(&shown));
                    break;
                }
            }
        }
        found
    }

    /// The subjects that the member's first port for `role` shows that can be asked; `None`: none can, or it asks for no
    /// certificate.
    async fn shown(&self, role: Role, member: &Member) -> Option<Vec<Vec<u8>>> {
        let urls = if role == Role::Peer { &member.peer_urls } else { &member.client_urls };
        for endpoint in urls.iter().flat_map(|url| url.parse::<Endpoint>()).filter(|endpoint| endpoint.tls) {
            if let Ok(seen) = self.seen(&Port { role, endpoint }, None).await {
                return seen.authorities;
            }
        }
        None
    }

    /// True if the member's first port for `role` that answers shows all CAs of `bundle`.
    ///
    /// # Errors
    /// The port shows no CAs: it asks for no certificate, or has no TLS. The member may verify others all the same.
    async fn trusts(&self, role: Role, member: &Member, bundle: &Bundle) -> Result<bool, TrustUnseen> {
        let (urls, port) =
            if role == Role::Peer { (&member.peer_urls, "peer") } else { (&member.client_urls, "client") };
        let (tls, plain): (Vec<_>, Vec<_>) =
            urls.iter().flat_map(|url| url.parse::<Endpoint>()).partition(|endpoint| endpoint.tls);
        if tls.is_empty() && !plain.is_empty() {
            return Err(TrustUnseen::NoTls(port));
        }
        for endpoint in tls {
            if let Ok(seen) = self.seen(&Port { role, endpoint }, None).await {
                let shown = seen.authorities.ok_or(TrustUnseen::NoCertificateAsked(port))?;
                return Ok(shows_all(&shown, &bundle.subjects()));
            }
        }
        Ok(false)
    }

    /// Checks that a member accepts this one as a peer, by the first of its URLs that does.
    async fn dialled(&self, urls: &[String]) -> Result<(), MemberError> {
        let mut failed = MemberError::from("no peer URL");
        for endpoint in endpoints(urls) {
            match self.dialled_at(endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn dialled_at(&self, endpoint: Result<Endpoint, MemberError>) -> Result<(), MemberError> {
        let endpoint = endpoint?;
        // Without a peer certificate of ours the peers' TLS is not ours to rotate.
        if endpoint.tls && !self.roles.contains(&Role::Peer) {
            return Ok(());
        }
        Ok(self.peer(&endpoint)?.dial_peer(&endpoint).await?)
    }
}

/// True if `shown` names each of `subjects`, one that several CAs share as often as they do.
fn shows_all(shown: &[Vec<u8>], subjects: &[Vec<u8>]) -> bool {
    let count = |all: &[Vec<u8>], one: &Vec<u8>| all.iter().filter(|other| *other == one).count();
    subjects.iter().all(|subject| count(shown, subject) >= count(subjects, subject))
}

/// A digest of subjects, which a port shows in an order of its own.
fn names_digest(subjects: &[Vec<u8>]) -> String {
    let mut subjects: Vec<&Vec<u8>> = subjects.iter().collect();
    subjects.sort();
    let mut context = digest::Context::new(&digest::SHA256);
    for subject in subjects {
        context.update(digest::digest(&digest::SHA256, subject).as_ref());
    }
    hex(&context.finish().as_ref()[..16])
}

/// The URLs of a member, as it registered them.
fn endpoints(urls: &[String]) -> impl Iterator<Item = Result<Endpoint, MemberError>> {
    urls.iter().map(|url| url.parse().map_err(|error: InvalidValue| error.to_string().into()))
}

/// Where the members but `me` serve clients.
fn client_urls(members: &[Member], me: u64) -> Vec<Endpoint> {
    let urls = members.iter().filter(|m| m.id != me).flat_map(|m| &m.client_urls);
    urls.flat_map(|url| url.parse()).collect()
}

/// The CAs that a member trusts cannot be seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustUnseen {
    /// Those of this pod's etcd.
    #[error("{}", .0.as_str())]
    Own(Unknown),
    /// This pod's etcd has no port with certificates of this domain.
    #[error("no port of this pod's etcd takes certificates of {0}")]
    NoPort(Domain),
    /// The members are not known.
    #[error(transparent)]
    Members(#[from] EtcdError),
    /// The port (peer or client) has no TLS.
    #[error("its {0} port has no TLS, so it does not show which CAs it trusts")]
    NoTls(&'static str),
    /// The port (peer or client) asks its clients for no certificate.
    #[error("its {0} port asks for no certificate, so it does not show which CAs it trusts")]
    NoCertificateAsked(&'static str),
    /// Those of one member.
    #[error("{name}: {why}")]
    Member {
        /// Its name, or its id.
        name: String,
        /// The reason.
        why: Box<Self>,
    },
}

/// The loader of a domain's bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loads {
    /// This port of etcd's.
    Port(Port),
    /// A client, which reads it from the disk.
    Reader,
    /// etcd, but it cannot be seen.
    Unknown(Unknown),
}

/// A port of etcd that verifies clients with a domain's bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    role: Role,
    endpoint: Endpoint,
}
