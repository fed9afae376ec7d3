//! A signer without an API server: it serves the CertificateSigningRequest resource over TLS, for example for the etcd of
//! Kubernetes itself.
//!
//! ```text
//! address                 where it listens
//! error, version, codec   Kubernetes' errors, API versions and encodings
//! subject                 which subjects there are, and whose name a CN is
//! store                   the requests and the holders of names, in a journal
//! auth                    who calls: token or client certificate
//! profiles                which CA signs what, for how long
//! requests   intake        a request as it comes in: read strictly, given its caller's identity
//!            create        a new request: judged, signed, stored
//!            judge         the decision, and what it makes of the request
//!            auto_approve  what a group may ask for without a person
//!            pods          the in-cluster rules, for policy's hosts and for pods described in files
//!            rejudge       pending requests of pods, judged again
//!            approval      /approval: the decision of a person
//! revocation  who may revoke, and the lists
//! http       api, route    paths, methods, who may
//!            trust         the trust ConfigMap: bundles, lists, requests to revoke
//!            list, watch   answers written as they are sent
//!            discovery, openapi, table  as kubectl expects them
//! ```
//!
//! **Invariant.** A certificate is issued only from a strictly read request whose subject fits a profile, after an approval
//! that is stored in the same write; of the request, only its public key reaches the certificate.

pub mod address;
pub mod auth;
pub mod codec;
pub mod error;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod profiles;
pub mod requests;
pub mod revocation;
pub mod store;
pub mod subject;
pub mod version;

use std::{
    any::Any,
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    num::NonZero,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{App, HttpServer, dev::Extensions, rt::net::TcpStream, web};
use etcd_tls_contract::{duration::parse_duration, names::ClusterName, policy::Policy, role::Role};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::time;

use crate::{
    error::{Error, OfFile},
    platform::{
        essential::essential,
        file_watch::FileWatch,
        tls::{PairFiles, ServingPairs},
    },
    standalone::{
        address::Address,
        auth::{Authenticator, ConnectionIdentity, MASTERS, clients::ClientCas},
        limits::{Quota, RateLimit},
        metrics::Metrics,
        profiles::{AuthorityFiles, Profiles},
        requests::{
            auto_approve::Rule,
            pods::Entitlements,
            rejudge::judge_again,
            server::{Probes, Server},
        },
        store::{Bounds, Limits, Store},
    },
};

/// How often the token file and the client CA file are checked.
const LOOK: Duration = Duration::from_secs(1);
/// Lists of many requests that one user has open at once, and all users.
const LISTS_PER_USER: usize = 4;
const LISTS: usize = 32;
/// Watches that one user has open at once, and all users; each holds a connection. Hosts share a bootstrap token.
const WATCHES_PER_USER: usize = 100;
const WATCHES: usize = 1_000;
/// How long open calls may take after SIGTERM.
const DRAIN_SECONDS: u64 = 2;
/// TLS handshakes at once of all workers; each has actix's 256 at least. One that does not go on ends after 3 s (actix's), and takes
/// 64 KiB at most until then. With 256 alone, a hundred half-open connections a second would hold everybody up.
const HANDSHAKES: usize = 1024;
/// Connections at once of all workers, each of some 50 KiB. One that brings no call ends after 5 s, and so does one of a caller without
/// a credential after its call.
const CONNECTIONS: usize = 4_096;
const FIRST_CALL: Duration = Duration::from_secs(5);
/// How long an answer may wait for a caller that does not read it, in milliseconds.
const UNREAD_MILLISECONDS: u32 = 20_000;
/// Bodies that are awaited at once, of one user and of all users: 64 KiB each.
const BODIES_PER_USER: usize = 128;
const BODIES: usize = 1_024;

/// The arguments of `standalone`. The names of the etcd-certificate-generator are kept.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CA certificate (PEM; intermediates may follow) of every profile without one of its own. All CA files are reloaded when
    /// they change. A new CA that the peers of the current one would not accept is refused.
    #[arg(long, value_name = "FILE", requires = "cakey")]
    pub cacrt: Option<PathBuf>,
    /// The private key of --cacrt.
    #[arg(long, value_name = "FILE", requires = "cacrt")]
    pub cakey: Option<PathBuf>,
    /// CA certificate of peers.
    #[arg(long, value_name = "FILE", requires = "peer_cakey")]
    pub peer_cacrt: Option<PathBuf>,
    /// The private key of --peer-cacrt.
    #[arg(long, value_name = "FILE", requires = "peer_cacrt")]
    pub peer_cakey: Option<PathBuf>,
    /// CA certificate of servers [default: that of clients; etcd verifies both by one bundle].
    #[arg(long, value_name = "FILE", requires = "server_cakey")]
    pub server_cacrt: Option<PathBuf>,
    /// The private key of --server-cacrt.
    #[arg(long, value_name = "FILE", requires = "server_cacrt")]
    pub server_cakey: Option<PathBuf>,
    /// CA certificate of clients.
    #[arg(long, value_name = "FILE", requires = "client_cakey")]
    pub client_cacrt: Option<PathBuf>,
    /// The private key of --client-cacrt.
    #[arg(long, value_name = "FILE", requires = "client_cacrt")]
    pub client_cakey: Option<PathBuf>,
    /// CA certificate of metrics [default: that of clients].
    #[arg(long, value_name = "FILE", requires = "metric_cakey")]
    pub metric_cacrt: Option<PathBuf>,
    /// The private key of --metric-cacrt.
    #[arg(long, value_name = "FILE", requires = "metric_cacrt")]
    pub metric_cakey: Option<PathBuf>,
    /// Serving certificate. Repeat it with --servkey for more, chosen by SNI; the first one is the default.
    #[arg(long, value_name = "FILE", required = true)]
    pub servcrt: Vec<PathBuf>,
    /// The private key of --servcrt. Repeat it in the order of --servcrt.
    #[arg(long, value_name = "FILE", required = true)]
    pub servkey: Vec<PathBuf>,
    /// Address to listen on. [::] is every address of the host, IPv4 and IPv6.
    #[arg(long, default_value = "[::]:6443")]
    pub address: Address,
    /// Address of /live, /ready and /metrics over plain HTTP, served independently of requests.
    #[arg(long)]
    pub admin_address: Option<SocketAddr>,
    /// Directory of the stored requests. Each process needs its own.
    #[arg(long, value_name = "DIR")]
    pub csrdir: PathBuf,
    /// Maximum lifetime of peers' certificates.
    #[arg(long, default_value = "8760h", value_parser = parse_duration, value_name = "DURATION")]
    pub peercertdur: Duration,
    /// Maximum lifetime of servers' certificates.
    #[arg(long, default_value = "8760h", value_parser = parse_duration, value_name = "DURATION")]
    pub servercertdur: Duration,
    /// Maximum lifetime of metrics certificates.
    #[arg(long, default_value = "8760h", value_parser = parse_duration, value_name = "DURATION")]
    pub metriccertdur: Duration,
    /// Maximum lifetime of clients' certificates.
    #[arg(long, default_value = "8760h", value_parser = parse_duration, value_name = "DURATION")]
    pub clientcertdur: Duration,
    /// Tokens: lines of token,user,uid,"group1,group2"; reloaded when it changes.
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// CAs of client certificates, whose CN is the user and whose O are the groups; reloaded when it changes.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Accept callers without a credential as system:anonymous, as the etcd-certificate-generator did. Everybody who reaches
    /// the port can then create requests.
    #[arg(long)]
    pub insecure_allow_anonymous: bool,
    /// GROUP=PROFILE:SAN[,SAN...]: approve requests of a group automatically, if every name is listed and no other caller
    /// holds it. A name is listed exactly, by *.pattern (the names under it), by CIDR block, or as wildcard:*.example.com (the
    /// wildcard itself). Profiles are peer, server, metrics and client; a client's name is its CN. A host that authenticates
    /// by its certificate gets only names that are in that certificate. Can be repeated.
    #[arg(long, value_name = "GROUP=PROFILE:SANS")]
    pub approve_group: Vec<Rule>,
    /// Group that may approve, and read every request. Can be repeated.
    #[arg(long, value_name = "GROUP", default_value = MASTERS)]
    pub admin_group: Vec<String>,
    /// <namespace>/<cluster>: refuse signer names of other etcd clusters.
    #[arg(long)]
    pub cluster: Option<ClusterName>,
    /// Policy file, as in the ConfigMap etcd-tls-policy. The hosts in it are judged by it.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Directory of manifests of pods, Services and Namespaces with their status. Requests of service accounts are judged by
    /// them as in a cluster; the token file's fifth column then holds the tokens' extra fields.
    #[arg(long, value_name = "DIR", requires = "cluster")]
    pub pods: Option<PathBuf>,
    /// Calls per second and user, with bursts of twice as many; 0 for no limit.
    #[arg(long, default_value_t = 200)]
    pub rate_limit: u32,
    /// Maximum number of stored requests. Requests that a rule or the policy approves at once may exceed it by a quarter.
    #[arg(long, default_value_t = 10_000)]
    pub max_requests: usize,
    /// Maximum number of pending requests per user, including those of hosts that got their certificates with its token.
    #[arg(long, default_value_t = 1_000)]
    pub max_pending_per_user: usize,
    /// Maximum number of stored requests per user, pending or not [default: a fifth of --max-requests, at least
    /// --max-pending-per-user].
    #[arg(long)]
    pub max_requests_per_user: Option<usize>,
    /// Maximum number of names and addresses in one user's automatically approved certificates; further requests wait for a
    /// person [default: --max-requests].
    #[arg(long)]
    pub max_names_per_user: Option<usize>,
    /// Maximum number of valid certificates per caller and host or client, for peers and for clients each; at most
    /// --max-certificates. A further request gets status 429. Revoked certificates do not count.
    #[arg(long, default_value_t = Bounds::default().per_name, value_parser = certificates, value_name = "NUMBER")]
    pub certificates_per_name: usize,
    /// Maximum number of valid certificates per caller, including those of hosts that got their first certificate with its
    /// token. Renewals do not count.
    #[arg(long, default_value_t = Bounds::default().per_user, value_parser = certificates, value_name = "NUMBER")]
    pub certificates_per_user: usize,
    /// Maximum number of valid certificates of all callers, for peers and for clients each. The last quarter is for requests
    /// that a person or the policy approves. Hosts and clients that are recorded get as many again.
    #[arg(long, default_value_t = Bounds::default().room, value_parser = certificates, value_name = "NUMBER")]
    pub max_certificates: usize,
}

/// Valid certificates that any of the bounds may be: some 1 KB of memory each.
const MOST_CERTIFICATES: usize = 1_000_000;

fn certificates(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..=MOST_CERTIFICATES).contains(&number) { Ok(number) } else { Err(format!("from 1 to {MOST_CERTIFICATES}")) }
}

impl Args {
    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// The reason why it could not serve.
    pub async fn run(self) -> Result<(), Error> {
        let now = SystemTime::now();
        let files = self.authorities()?;
        let Self {
            servcrt,
            servkey,
            address,
            admin_address,
            csrdir,
            token_auth_file,
            client_ca_file,
            insecure_allow_anonymous,
            approve_group,
            admin_group,
            cluster,
            policy,
            pods,
            rate_limit,
            max_requests,
            max_pending_per_user,
            max_requests_per_user,
            max_names_per_user,
            certificates_per_name,
            certificates_per_user,
            max_certificates,
            ..
        } = self;
        if servcrt.len() != servkey.len() {
            return Err(format!("{} --servcrt do not match {} --servkey", servcrt.len(), servkey.len()).into());
        }
        if token_auth_file.is_none() && client_ca_file.is_none() && !insecure_allow_anonymous {
            return Err("nobody could call: give --token-auth-file, --client-ca-file or both".into());
        }
        for (flag, number) in
            [("--certificates-per-name", certificates_per_name), ("--certificates-per-user", certificates_per_user)]
        {
            if number > max_certificates {
                return Err(format!("{flag}={number} is more than --max-certificates={max_certificates}").into());
            }
        }
        if insecure_allow_anonymous {
            tracing::warn!(
                "--insecure-allow-anonymous: everybody who reaches this port may request certificates as \
                 system:anonymous, group system:unauthenticated; --approve-group for that group holds for everybody"
            );
        }
        let policy = match &policy {
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|e| OfFile::new(file, e))?;
                let policy = Policy::parse(&text)?;
                if !policy.namespace_uids.is_empty() {
                    return Err("--policy: namespaceUids: a standalone signer knows no namespaces".into());
                }
                policy
            }
            None => Policy::default(),
        };
        let profiles = Profiles::load(files, now)?;
        let limits = Limits {
            requests: max_requests,
            per_user: max_requests_per_user.unwrap_or_else(|| max_pending_per_user.max(max_requests / 5)),
            pending_per_user: max_pending_per_user,
            names_per_user: max_names_per_user.unwrap_or(max_requests),
            certificates: Bounds {
                per_name: certificates_per_name,
                per_user: certificates_per_user,
                room: max_certificates,
            },
            ..Limits::default()
        };
        let store = Store::of_cluster(&csrdir, limits, cluster.as_ref())?;
        let pairs: Vec<PairFiles> =
            servcrt.into_iter().zip(servkey).map(|(certificate, key)| PairFiles { certificate, key }).collect();
        let pairs = ServingPairs::watch(pairs)?;
        let clients = client_ca_file.map(ClientCas::read).transpose()?;
        let mut tls = pairs.server_config(clients.clone().map(|c| c as _))?;
        // Each handshake shows the certificate again: a resumed session would outlive the CA file's next version.
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        // HTTP/1.1 alone: a connection then holds one answer. Over HTTP/2 anybody could ask for any number on one connection,
        // take none of them, and have the memory of all.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let judges_pods = pods.is_some();
        let server = web::Data::new(Server {
            auth: Authenticator::new(token_auth_file.clone(), insecure_allow_anonymous)?,
            store,
            profiles,
            rules: approve_group,
            admin_groups: admin_group,
            cluster,
            entitlements: Entitlements::new(policy, pods),
            limit: RateLimit::new(rate_limit),
            lists: Quota::new("lists", LISTS_PER_USER, LISTS),
            watches: Quota::new("watches", WATCHES_PER_USER, WATCHES),
            bodies: Quota::new("bodies", BODIES_PER_USER, BODIES),
            metrics: Metrics::default(),
        });
        // The lists are there before anybody can ask for them.
        server
            .refresh_lists()
            .await
            .unwrap_or_else(|error| tracing::error!(%error, "the revocation lists cannot be renewed"));
        tokio::spawn({
            let server = server.clone();
            essential("revocation lists", async move { server.keep_lists().await })
        });
        let watch = FileWatch::new(server.profiles.files());
        tokio::spawn({
            let server = server.clone();
            essential("CAs", async move { server.profiles.keep_fresh(watch).await })
        });
        tokio::spawn(essential("token and CA files", look_at_files(server.clone(), token_auth_file, clients)));
        if judges_pods {
            tokio::spawn(essential("pending requests", judge_again(server.clone().into_inner())));
        }
        if let Some(address) = admin_address {
            Probes(server.clone().into_inner()).serve(address).await?;
        }
        let listener = address.listen().await?;
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let server =
            HttpServer::new(move || App::new().app_data(server.clone()).default_service(web::to(http::api::handle)))
                .on_connect(remember_client)
                .client_request_timeout(FIRST_CALL)
                .workers(workers)
                .max_connections(CONNECTIONS.div_ceil(workers))
                .max_connection_rate((HANDSHAKES / workers).max(256))
                .shutdown_timeout(DRAIN_SECONDS)
                .listen_rustls_0_23(listener, tls)?;
        for address in server.addrs() {
            tracing::info!(%address, "serving");
        }
        server.run().await?;
        Ok(())
    }

    /// The files and the longest life of each profile that has an authority.
    fn authorities(&self) -> Result<BTreeMap<Role, (AuthorityFiles, Duration)>, Error> {
        let pair = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            Some(AuthorityFiles { certificate: certificate.clone()?, key: key.clone()? })
        };
        let shared = pair(&self.cacrt, &self.cakey);
        let clients = pair(&self.client_cacrt, &self.client_cakey).or_else(|| shared.clone());
        let own = [
            (Role::Peer, pair(&self.peer_cacrt, &self.peer_cakey).or(shared), self.peercertdur),
            (
                Role::Server,
                pair(&self.server_cacrt, &self.server_cakey).or_else(|| clients.clone()),
                self.servercertdur,
            ),
            (
                Role::Metrics,
                pair(&self.metric_cacrt, &self.metric_cakey).or_else(|| clients.clone()),
                self.metriccertdur,
            ),
            (Role::Client, clients, self.clientcertdur),
        ];
        let files: BTreeMap<_, _> =
            own.into_iter().filter_map(|(role, files, life)| Some((role, (files?, life)))).collect();
        if files.is_empty() {
            return Err("no CA: give --cacrt and --cakey, or those of single profiles".into());
        }
        Ok(files)
    }
}

/// Keeps with a connection who made it, as its certificate says. Ends it where its caller does not read an answer.
fn remember_client(connection: &dyn Any, extensions: &mut Extensions) {
    let stream = connection.downcast_ref::<TlsStream<TcpStream>>();
    if let Some(stream) = stream
        && let Err(error) = setsockopt(stream.get_ref().0, TcpUserTimeout, &UNREAD_MILLISECONDS)
    {
        tracing::debug!(%error, "a connection may wait for ever for its reader");
    }
    let identity = stream.and_then(|stream| stream.get_ref().1.peer_certificates()?.first()).and_then(|leaf| {
        ConnectionIdentity::of(leaf)
            .inspect_err(|error| tracing::warn!(%error, "a client certificate identifies nobody"))
            .ok()
    });
    extensions.insert(identity);
}

/// Reads the token file and the client CA file again when they change.
async fn look_at_files(server: web::Data<Server>, tokens: Option<PathBuf>, clients: Option<Arc<ClientCas>>) {
    let version = |path: &Path| fs::metadata(path).map(|m| (m.mtime(), m.mtime_nsec(), m.size(), m.ino())).ok();
    let mut seen = (tokens.as_deref().and_then(version), clients.as_ref().and_then(|c| version(c.path())));
    loop {
        time::sleep(LOOK).await;
        let now = (tokens.as_deref().and_then(version), clients.as_ref().and_then(|c| version(c.path())));
        if now.0 != seen.0 {
            server.auth.reload();
        }
        if now.1 != seen.1
            && let Some(clients) = &clients
        {
            clients.reload();
        }
        seen = now;
    }
}
