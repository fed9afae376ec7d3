//! Rotation on a real etcd: from the signature to the port, what a swap of the files costs handshakes, and how long a
//! member is away when its CA changes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    csr::PrivateKey,
    key::KeyAlgorithm,
    names,
    role::Role,
    san::Sans,
};
use etcd_tls_sidecar::store::{Entry, Record, Set, Store};
use etcd_tls_webhook::ca::{
    authority::Authority,
    issue::{Leaf, issue},
};
use futures::{StreamExt, future::join_all};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, runtime::watcher};
use rustls::pki_types::ServerName;
use tests::{
    etcd::{EtcdBinary, EtcdCluster, MemberTls},
    etcd_client::{EtcdClient, served_serial},
    in_process_members::Members,
    installation::{Installation, LIMIT, Options, own_address},
    pki::{Ca, client_config_of},
    workload::{self, Workload},
};
use tokio::{net::TcpStream, time::sleep};
use tokio_rustls::TlsConnector;

use crate::{
    report::Report,
    sidecar,
    stats::{median, ms, percentile},
};

const NAMESPACE: &str = "bench";
/// The life of the certificates while rotations are watched, and how long they are.
const LIFE: &str = "8s";
const WATCHED: Duration = Duration::from_secs(60);
/// Turns of no rotation and of rotations with and without new keys; how long each is; how often files are swapped.
const TURNS: usize = 3;
const TURN: Duration = Duration::from_secs(4);
const SWAP: Duration = Duration::from_millis(100);
const CLIENTS: usize = 4;

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let Some(etcd) = EtcdBinary::find() else {
        report.skip("rotation", "no etcd", "apt-get install etcd-server etcd-client, or ETCD=<path>");
        return Ok(());
    };
    signed_to_served(report, &etcd).await?;
    handshakes(report, &etcd).await?;
    rollover(report, &etcd).await
}

/// The installed system, one member with the real sidecar, lives of seconds.
async fn signed_to_served(report: &mut Report, etcd: &EtcdBinary) -> Result<(), String> {
    let options = Options { sign: vec![format!("--max-lifetime={LIFE}")], ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else {
        report.skip(
            "the time from signed to served",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make bench",
        );
        return Ok(());
    };
    installation.api.namespace(NAMESPACE, &[(names::LABEL, names::DYNAMIC)]).await;
    let address = own_address().ok_or("no address but loopback")?;
    let manifest = sidecar::member("etcd-0", address);
    let urls: Vec<(&str, String)> = ["client", "peer"]
        .iter()
        .zip(["server", "peer"])
        .map(|(port, role)| (role, argument(&manifest, &format!("--listen-{port}-urls="))))
        .collect();
    let mut pod = installation
        .local_pod(NAMESPACE, manifest, &[address], &[("etcd", etcd.etcd.clone())])
        .await
        .map_err(|e| e.to_string())?;
    pod.start(LIMIT).await?;

    let signed = Arc::<Mutex<BTreeMap<String, Instant>>>::default();
    let watch = tokio::spawn(note_signed(Api::all(installation.api.client.clone()), Arc::clone(&signed)));
    let mount = pod.volume(names::VOLUME);
    let mut served: BTreeMap<String, Instant> = BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        for (role, url) in &urls {
            if let Ok(serial) = served_serial(url, &mount.join(role)).await {
                served.entry(serial).or_insert_with(Instant::now);
            }
        }
        sleep(Duration::from_millis(3)).await;
    }
    watch.abort();
    let signed = signed.lock().map_err(|e| e.to_string())?.clone();
    let delays: Vec<f64> =
        served.iter().filter_map(|(serial, at)| Some(ms(at.saturating_duration_since(*signed.get(serial)?)))).collect();
    if delays.is_empty() {
        return Err(format!("no rotation was seen:\n{}", pod.log(names::SIDECAR_CONTAINER)));
    }
    report.plain(
        format!("signed to served, {} rotations: p50, p99", delays.len()),
        format!("{:.0} ms, {:.0} ms", median(&delays), percentile(&delays, 0.99)),
    );
    Ok(())
}

fn argument(pod: &serde_json::Value, prefix: &str) -> String {
    let arguments = pod["spec"]["containers"][0]["args"].as_array().into_iter().flatten();
    let found = arguments.filter_map(|a| a.as_str()?.strip_prefix(prefix)).next();
    found.unwrap_or_default().to_owned()
}

/// When each certificate was first seen in its request, by serial.
async fn note_signed(api: Api<CertificateSigningRequest>, signed: Arc<Mutex<BTreeMap<String, Instant>>>) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        // A certificate signed before the watch began has no time.
        let Ok(watcher::Event::Apply(csr)) = event else { continue };
        let Some(certificate) = csr.status.and_then(|s| s.certificate) else { continue };
        if let (Ok(chain), Ok(mut signed)) = (Chain::parse(&certificate.0), signed.lock()) {
            signed.entry(chain.serial).or_insert_with(Instant::now);
        }
    }
}

/// A member whose files are swapped by the sidecar's own store far oftener than ever in life, with and without new keys.
async fn handshakes(report: &mut Report, etcd: &EtcdBinary) -> Result<(), String> {
    let mut cluster = EtcdCluster::new(etcd, 1);
    let dir = cluster.directory().dir("tls");
    let mut files = Files::new(&dir)?;
    files.swap(false)?;
    cluster = cluster.with_tls(|_| MemberTls { server: Some(dir.join(Role::Server.as_str())), peer: None });
    cluster.start().await;
    let address = SocketAddr::from((cluster.members[0].address, cluster.members[0].client_port));

    let mut tallies: [Vec<Tally>; 3] = Default::default();
    for _ in 0..TURNS {
        for (tally, new_keys) in tallies.iter_mut().zip([None, Some(true), Some(false)]) {
            tally.push(turn(&mut files, &dir, address, new_keys).await?);
        }
    }
    let rate = |all: &[Tally]| median(&all.iter().map(|t| t.good as f64 / t.seconds).collect::<Vec<_>>());
    let still = rate(&tallies[0]);
    report.plain("handshakes, no rotation", format!("{still:.0}/s"));
    for (what, all) in [("always", &tallies[1]), ("on-ca-change", &tallies[2])] {
        let (good, failed, swaps) = all.iter().fold((0, 0, 0), |(g, f, s), t| (g + t.good, f + t.failed, s + t.swaps));
        report.plain(
            format!("handshakes, {swaps} rotations, key-rotation {what}"),
            format!("{:.0}/s ({:.2} of that); {failed} of {} failed", rate(all), rate(all) / still, good + failed),
        );
    }
    Ok(())
}

/// The certificate of one member, and the CA of it.
pub(crate) struct Files {
    store: Store,
    bundle: Bundle,
    ca: Authority,
    key: PrivateKey,
}

/// The result of one turn.
struct Tally {
    good: u64,
    failed: u64,
    swaps: u64,
    seconds: f64,
}

fn new_key() -> Result<PrivateKey, String> {
    PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|e| e.to_string())
}

impl Files {
    /// A CA of a year; nothing is in `dir` yet.
    pub(crate) fn new(dir: &Path) -> Result<Self, String> {
        let year = Duration::from_secs(365 * 24 * 3600);
        let ca = Authority::generate("bench CA", KeyAlgorithm::EcdsaP256, year, SystemTime::now())
            .map_err(|e| e.to_string())?;
        let store = Store::open(dir).map_err(|e| e.to_string())?;
        Ok(Self { store, bundle: ca.bundle().clone(), ca, key: new_key()? })
    }

    /// The CA.
    pub(crate) const fn authority(&self) -> &Authority {
        &self.ca
    }

    /// Installs a new certificate as the sidecar does.
    pub(crate) fn swap(&mut self, new_key_too: bool) -> Result<(), String> {
        if new_key_too {
            self.key = new_key()?;
        }
        let sans = "127.0.0.1,127.0.0.2,localhost".parse::<Sans>().map_err(|e| e.to_string())?;
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|e| e.to_string())?;
        let now = SystemTime::now();
        let leaf = Leaf {
            role: Role::Server,
            organizations: vec![Role::Server.organization()],
            common_name: "bench",
            sans: &sans,
            public_key: &self.key.public_key(),
            lifetime: Duration::from_secs(3600),
        };
        let chain = issue(&self.ca, &leaf, now, serial).map_err(|e| e.to_string())?.to_pem();
        let entry = Entry::prove(Role::Server, &chain, &self.key, &self.bundle, &sans, Record::default(), now)
            .map_err(|e| e.to_string())?;
        self.store.install(&Set::default().with(Role::Server, entry)).map_err(|e| e.to_string())
    }
}

/// Clients that do nothing but handshakes, while the files are swapped or left alone.
async fn turn(files: &mut Files, dir: &Path, address: SocketAddr, new_keys: Option<bool>) -> Result<Tally, String> {
    let config = client_config_of(&dir.join(Role::Server.as_str()))?;
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, connector) = (Arc::clone(&stop), TlsConnector::from(Arc::clone(&config)));
            tokio::spawn(async move {
                let (mut good, mut failed) = (0_u64, 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let name = ServerName::IpAddress(address.ip().into());
                    let shaken = async { connector.connect(name, TcpStream::connect(address).await?).await };
                    *(if shaken.await.is_ok() { &mut good } else { &mut failed }) += 1;
                }
                (good, failed)
            })
        })
        .collect();
    let mut swaps = 0;
    while began.elapsed() < TURN {
        sleep(SWAP).await;
        if let Some(new_keys) = new_keys {
            files.swap(new_keys)?;
            swaps += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut tally = Tally { good: 0, failed: 0, swaps, seconds: began.elapsed().as_secs_f64() };
    for client in join_all(clients).await {
        let (good, failed) = client.map_err(|e| e.to_string())?;
        tally.good += good;
        tally.failed += failed;
    }
    Ok(tally)
}

/// Three members under load, the CA changed: each restarts once for each change of the bundle.
async fn rollover(report: &mut Report, etcd: &EtcdBinary) -> Result<(), String> {
    let (old, new) = (Ca::new("bench-ca-1"), Ca::new("bench-ca-2"));
    let mut pods = Members::start(etcd, 3, &old).await;
    let metrics: Vec<String> = pods.supervisor.with(|c| c.members.iter().map(|m| m.metrics_url()).collect());
    let away = Arc::<Mutex<Vec<f64>>>::default();
    let looks: Vec<_> = metrics.into_iter().map(|url| tokio::spawn(look_on(url, Arc::clone(&away)))).collect();
    let mut options = workload::Options::new(pods.urls.clone(), &pods.client_dir);
    options.deadline = Duration::from_secs(10);
    let work = Workload::start(options);
    let began = Instant::now();
    pods.roll_over(&old, &new, 2 * LIMIT).await;
    let took = began.elapsed();
    let account = work.stop().await.map_err(|e| e.to_string())?;
    looks.iter().for_each(|look| look.abort());
    let away = away.lock().map_err(|e| e.to_string())?.clone();
    report.plain(
        format!("restart of a member for a CA, {} restarts: p50, longest", pods.supervisor.ends().len()),
        format!("{:.1} s, {:.1} s", median(&away) / 1e3, percentile(&away, 1.0) / 1e3),
    );
    report.plain("the whole rollover, three members", format!("{:.0} s", took.as_secs_f64()));
    report.plain(
        "operations of a client meanwhile",
        format!(
            "{} writes, {} failed, {} lost, longest {:.1} s",
            account.writes,
            account.failed,
            account.lost.len(),
            account.longest.as_secs_f64()
        ),
    );
    Ok(())
}

/// Notes how long each time a member is away: from its first refused connection until it is healthy again.
async fn look_on(url: String, away: Arc<Mutex<Vec<f64>>>) {
    let client = EtcdClient::plain();
    let mut since: Option<Instant> = None;
    loop {
        match (client.connect(&url).await, since) {
            (Err(_), None) => since = Some(Instant::now()),
            (Ok(_), Some(began)) if client.healthy(&url).await.is_ok() => {
                since = None;
                if let Ok(mut away) = away.lock() {
                    away.push(ms(began.elapsed()));
                }
            }
            _ => {}
        }
        sleep(Duration::from_millis(10)).await;
    }
}
