//! The processes of the demo: signer, admission, three members and a client.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_tls_contract::{certificate::Chain, encoding::hex, names};
use serde_json::{Value, json};
use tests::{
    admission,
    etcd::EtcdBinary,
    etcd_client::{Connection, EtcdClient, served_serial},
    local_pod::{LocalPod, Surroundings, write_projected},
    pki::{Ca, LeafOptions, client_config},
    ports,
    process::{Process, binary, which},
    temp::TempDir,
    workload::Workload,
};

use crate::{
    account::Account,
    manifests::{self, NAMESPACE, Place, SIDECAR_IMAGE},
    say,
};

/// How long anything may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often kubelet's part is played.
const TICK: Duration = Duration::from_millis(50);
/// Every so many ticks the ports are asked.
const LOOK_EVERY: u32 = 10;
/// With `reload: probe`, kubelet restarts a container whose probe fails as often in a row as the user's own may. Here it asks
/// this much oftener.
const HURRY: u32 = 10;
/// The domains of trust; metrics is the clients' here, as by default.
const DOMAINS: [&str; 2] = ["peer", "client"];

/// Everything that runs. Dropped, it is gone.
pub struct Cluster {
    start: Instant,
    life: Duration,
    places: Vec<Place>,
    members: Vec<LocalPod>,
    client: LocalPod,
    authorities: BTreeMap<&'static str, Ca>,
    signer: Option<Process>,
    signer_port: u16,
    most_down: Arc<AtomicUsize>,
    /// The port for its metrics.
    admit_admin: u16,
    client_admin: u16,
    _admit: Process,
    directory: TempDir,
}

impl Cluster {
    /// Starts everything.
    pub async fn start(etcd: &EtcdBinary, life: Duration, start: Instant) -> Result<Self, String> {
        tests::install_crypto();
        let directory = TempDir::new("demo");
        let serving = Ca::new("demo");
        serving.write_role(&directory.join("serving"), &LeafOptions::default());
        let authorities: BTreeMap<_, _> = DOMAINS.into_iter().map(|d| (d, Ca::new(&format!("demo {d} 1")))).collect();
        let admit_port = ports::loopback();
        let admit_admin = ports::loopback();
        let admit = start_admit(&directory, admit_port, admit_admin);
        let mut connection = connected(admit_port, &serving.pem).await?;
        say!(start, "admit answers on 127.0.0.1:{admit_port}");

        let places: Vec<Place> = (0..3).map(place).collect();
        let mut pods = Vec::new();
        for place in &places {
            pods.push(injected(&mut connection, manifests::member(place, &places), start).await?);
        }
        let client_admin = ports::free(Ipv4Addr::UNSPECIFIED);
        pods.push(injected(&mut connection, manifests::client(client_admin), start).await?);

        let signer_port = ports::loopback();
        let trust = directory.join("trust");
        write_trust(&trust, &[&authorities]);
        let mut tokens = String::new();
        let mut local = Vec::new();
        for (pod, n) in pods.into_iter().zip(2..) {
            // An address for documentation, which nothing dials.
            let ips = vec![IpAddr::from([192, 0, 2, n])];
            let uid = random_uid()?;
            let token = format!("{}{}", random_uid()?.replace('-', ""), random_uid()?.replace('-', ""));
            tokens += &token_line(&token, &pod, &uid);
            record(&directory, &pod, &uid, &ips);
            let token_directory = directory.dir(&format!("token-{}", pod["metadata"]["name"].as_str().unwrap_or("")));
            for (name, content) in [("token", token.as_str()), ("ca.crt", &serving.pem), ("namespace", NAMESPACE)] {
                fs::write(token_directory.join(name), content).map_err(|e| format!("{name}: {e}"))?;
            }
            local.push(LocalPod::new(pod, surroundings(etcd, &trust, uid, ips, token_directory, signer_port)));
        }
        directory.write("tokens.csv", tokens);
        directory.write("policy.yaml", manifests::POLICY);
        let client = local.pop().ok_or("no client")?;
        let mut cluster = Self {
            start,
            life,
            places,
            members: local,
            client,
            authorities,
            signer: None,
            signer_port,
            most_down: Arc::default(),
            admit_admin,
            client_admin,
            _admit: admit,
            directory,
        };
        cluster.start_signer();
        cluster.start_pods().await?;
        Ok(cluster)
    }

    /// Starts the signer with the authorities as they are.
    fn start_signer(&mut self) {
        for (domain, ca) in &self.authorities {
            self.directory.write(format!("ca/{domain}.crt"), &ca.pem);
            self.directory.write(format!("ca/{domain}.key"), &ca.key_pem);
        }
        let file = |name: &str| self.directory.join(name);
        let life = format!("{}s", self.life.as_secs());
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command.arg("standalone").arg("--address").arg(format!("127.0.0.1:{}", self.signer_port));
        for domain in DOMAINS {
            command.arg(format!("--{domain}-cacrt")).arg(file(&format!("ca/{domain}.crt")));
            command.arg(format!("--{domain}-cakey")).arg(file(&format!("ca/{domain}.key")));
        }
        command.arg("--servcrt").arg(file("serving/tls.crt")).arg("--servkey").arg(file("serving/tls.key"));
        command.arg("--csrdir").arg(self.directory.dir("requests"));
        command.arg("--token-auth-file").arg(file("tokens.csv")).arg("--pods").arg(file("pods"));
        command.arg("--policy").arg(file("policy.yaml"));
        command.arg("--cluster").arg(format!("{NAMESPACE}/{}", names::DEFAULT_CLUSTER));
        for role in ["peer", "server", "client"] {
            command.arg(format!("--{role}certdur")).arg(&life);
        }
        self.signer = None;
        self.signer = Some(Process::spawn("standalone", &mut command, self.directory.path()));
    }

    async fn start_pods(&mut self) -> Result<(), String> {
        // Members need each other to come up: all at once, as a StatefulSet's with podManagementPolicy Parallel.
        let starts = self.members.iter_mut().chain([&mut self.client]).map(|pod| pod.initialise(START_LIMIT));
        for result in futures::future::join_all(starts).await {
            result.map_err(|e| {
                format!("{e}\n--- signer:\n{}", self.signer.as_ref().map_or_else(String::new, Process::log))
            })?;
        }
        say!(self.start, "four pods have their keys and certificates; starting etcd");
        for member in &mut self.members {
            member.start_container("etcd");
        }
        let began = Instant::now();
        for place in &self.places {
            while let Err(e) = EtcdClient::plain().healthy(&place.metrics_url()).await {
                if began.elapsed() > START_LIMIT {
                    return Err(format!("{} is not healthy: {e}", place.name));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        say!(self.start, "three members are healthy, TLS throughout");
        tokio::spawn(sample_down(self.places.clone(), Arc::clone(&self.most_down)));
        Ok(())
    }

    /// Where Prometheus scrapes admission and the sidecars, with the labels of pods, as its `file_sd_configs` read it.
    pub fn targets(&self) -> Value {
        let of = |pod: &str, namespace: &str, port: u16| json!({"targets": [format!("127.0.0.1:{port}")], "labels": {"pod": pod, "namespace": namespace}});
        let members = self.places.iter().map(|place| of(&place.name, NAMESPACE, place.admin));
        let others = [
            of("client", NAMESPACE, self.client_admin),
            of("etcd-tls-admit-0", names::SYSTEM_NAMESPACE, self.admit_admin),
        ];
        members.chain(others).collect()
    }

    /// The members' client URLs.
    pub fn client_urls(&self) -> Vec<String> {
        self.places.iter().map(Place::client_url).collect()
    }

    /// The client pod's role directory, as its container would see it.
    pub fn client_files(&self) -> PathBuf {
        self.client.path("app", names::DEFAULT_MOUNT_PATH).join("client")
    }

    /// Looks at everything for `time`, and says what changes.
    pub async fn watch(&mut self, account: &mut Account, workload: &Workload, time: Duration) -> Result<(), String> {
        let (began, mut said) = (Instant::now(), Instant::now());
        for tick in 0_u32.. {
            if began.elapsed() >= time {
                break;
            }
            self.supervise(account).await?;
            if tick.is_multiple_of(LOOK_EVERY) {
                self.look(account).await;
                let figures = workload.figures();
                let (writes, failed) = (figures.writes.load(Ordering::Relaxed), figures.failed.load(Ordering::Relaxed));
                account.timeline.sample(writes, failed, figures.take_longest());
            }
            if said.elapsed() > Duration::from_secs(5) {
                said = Instant::now();
                self.say_figures(account, workload);
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    fn say_figures(&self, account: &Account, workload: &Workload) {
        let figures = workload.figures();
        let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        say!(
            self.start,
            "{} certificates so far; {} writes, {} failed; {} handshakes of the client",
            account.certificates(),
            get(&figures.writes),
            get(&figures.failed),
            get(&figures.connections)
        );
    }

    /// Plays kubelet: starts again what ended, and what its liveness probe gave up.
    async fn supervise(&mut self, account: &mut Account) -> Result<(), String> {
        account.most_down = self.most_down.load(Ordering::Relaxed);
        for pod in self.members.iter_mut().chain([&mut self.client]) {
            for restart in pod.supervise().await {
                say!(self.start, "{}: {} started again: {}", pod.name(), restart.container, restart.reason);
                if restart.container == "etcd" {
                    *account.restarts.entry(pod.name().to_owned()).or_default() += 1;
                    account.timeline.restarted(pod.name());
                } else {
                    return Err(format!(
                        "{}/{} ended:\n{}",
                        pod.name(),
                        restart.container,
                        pod.log(&restart.container)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Asks every port what it serves, by a handshake.
    async fn look(&self, account: &mut Account) {
        for (place, pod) in self.places.iter().zip(&self.members) {
            let mount = pod.path("etcd", names::DEFAULT_MOUNT_PATH);
            for (role, url) in [("peer", place.peer_url()), ("server", place.client_url())] {
                note_on_disk(account, &place.name, role, &mount);
                // With the certificates of that very port: a server's is a client's, too.
                let Ok(serial) = served_serial(&url, &mount.join(role)).await else { continue };
                if let Some(before) = account.shown(&place.name, role, &serial) {
                    let short = |s: &str| s[..s.len().min(8)].to_owned();
                    say!(self.start, "{} {role}: {} → {}", place.name, short(&before), short(&serial));
                }
            }
        }
        let mount = self.client.path("app", names::DEFAULT_MOUNT_PATH);
        note_on_disk(account, "client", "client", &mount);
    }

    /// Changes both authorities as a rollover does: the new one is published beside the old, every member restarts once to
    /// load it, one at a time; then the signer changes over, the leaves follow, and the old authority leaves the bundle.
    pub async fn change_authorities(&mut self, account: &mut Account, workload: &Workload) -> Result<(), String> {
        let next: BTreeMap<_, _> = DOMAINS.into_iter().map(|d| (d, Ca::new(&format!("demo {d} 2")))).collect();
        let trust = self.directory.join("trust");
        say!(
            self.start,
            "a new CA for peers and one for clients: published beside the old ones; each member restarts once"
        );
        account.timeline.mark("new CAs are published beside the old ones");
        write_trust(&trust, &[&self.authorities, &next]);
        self.loaded(account, workload).await?;
        say!(self.start, "every member has loaded both: the signer changes over");
        account.timeline.mark("every member trusts the new CAs, and the signer uses them");
        self.authorities = next;
        self.start_signer();
        // Each leaf of the old authorities is gone when its life is over.
        self.watch(account, workload, self.life + Duration::from_secs(3)).await?;
        say!(self.start, "the last certificate of the old CAs is gone: they leave the bundle");
        account.timeline.mark("the old CAs leave the bundles");
        write_trust(&trust, &[&self.authorities]);
        account.authorities += u32::try_from(DOMAINS.len()).unwrap_or_default();
        // The old CAs that etcd still trusts sign nothing any more; its next restart drops them.
        self.watch(account, workload, Duration::from_secs(5)).await
    }

    /// Waits until every member has restarted and is healthy.
    async fn loaded(&mut self, account: &mut Account, workload: &Workload) -> Result<(), String> {
        let began = Instant::now();
        loop {
            self.watch(account, workload, TICK * LOOK_EVERY).await?;
            let mut all = self.places.iter().all(|p| account.restarts.contains_key(&p.name));
            for place in &self.places {
                all = all && EtcdClient::plain().healthy(&place.metrics_url()).await.is_ok();
            }
            if all {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(180) {
                let logs: Vec<_> = self.members.iter().map(|m| m.log(names::SIDECAR_CONTAINER)).collect();
                return Err(format!("not every member has loaded the bundle:\n{}", logs.join("\n---\n")));
            }
        }
    }
}

/// Looks again and again how many members take no connection at the same moment.
async fn sample_down(places: Vec<Place>, most: Arc<AtomicUsize>) {
    loop {
        let asks = places.iter().map(|p| tokio::net::TcpStream::connect((p.address, p.client)));
        let down = futures::future::join_all(asks).await.into_iter().filter(Result::is_err).count();
        most.fetch_max(down, Ordering::Relaxed);
        tokio::time::sleep(TICK).await;
    }
}

fn place(n: u8) -> Place {
    let address = Ipv4Addr::new(127, 0, 0, 2 + n);
    let port = || ports::free(address);
    Place {
        name: format!("etcd-{n}"),
        address,
        client: port(),
        peer: port(),
        metrics: port(),
        // The sidecar listens on every address.
        admin: ports::free(Ipv4Addr::UNSPECIFIED),
    }
}

fn start_admit(directory: &TempDir, port: u16, admin: u16) -> Process {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.arg("admit").arg("--sidecar-image").arg(SIDECAR_IMAGE);
    command.arg("--serving-dir").arg(directory.join("serving"));
    command.arg("--address").arg(format!("127.0.0.1:{port}"));
    command.arg("--admin-address").arg(format!("127.0.0.1:{admin}"));
    Process::spawn("admit", &mut command, directory.path())
}

async fn connected(port: u16, ca: &str) -> Result<Connection, String> {
    let (url, began) = (format!("https://127.0.0.1:{port}"), Instant::now());
    loop {
        match Connection::open(&url, Some(client_config(ca, None))).await {
            Ok(connection) => return Ok(connection),
            Err(e) if began.elapsed() > START_LIMIT => return Err(format!("admit: {e}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Has admission look at a pod.
async fn injected(connection: &mut Connection, mut pod: Value, start: Instant) -> Result<Value, String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    pod["metadata"]["labels"][names::LABEL] = names::DYNAMIC.into();
    let answer = admission::admit(connection, NAMESPACE, &pod).await.map_err(|e| format!("admit: {e}"))?;
    let patched = answer.pod.ok_or_else(|| format!("{name} was refused: {}", answer.message))?;
    say!(start, "admission of {name}: {} operations", answer.operations.len());
    for warning in answer.warnings {
        say!(start, "  warning: {warning}");
    }
    Ok(patched)
}

/// The pod with its status, where the signer looks it up.
fn record(directory: &TempDir, pod: &Value, uid: &str, ips: &[IpAddr]) {
    let mut pod = pod.clone();
    pod["metadata"]["uid"] = uid.into();
    let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    pod["status"] = json!({"phase": "Running", "podIP": ips[0], "podIPs": all});
    directory.write(format!("pods/{}.json", pod["metadata"]["name"].as_str().unwrap_or_default()), pod.to_string());
}

/// A line of the token file: the identity that the API server would record.
fn token_line(token: &str, pod: &Value, uid: &str) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let extra = [
        ("pod-name", name.to_owned()),
        ("pod-uid", uid.to_owned()),
        ("node-name", "localhost".to_owned()),
        ("credential-id", format!("JTI={uid}")),
    ];
    let extra: Vec<_> =
        extra.iter().map(|(key, value)| format!("authentication.kubernetes.io/{key}={value}")).collect();
    format!(
        "{token},system:serviceaccount:{NAMESPACE}:default,{uid},\"system:serviceaccounts,system:serviceaccounts:{NAMESPACE},\
         system:authenticated\",\"{}\"\n",
        extra.join(",")
    )
}

fn surroundings(
    etcd: &EtcdBinary,
    trust: &Path,
    uid: String,
    ips: Vec<IpAddr>,
    token_directory: PathBuf,
    signer_port: u16,
) -> Surroundings {
    let programs = [
        (SIDECAR_IMAGE, binary("etcd-tls-sidecar")),
        (manifests::ETCD, etcd.etcd.clone()),
        ("app", which("true").unwrap_or_default()),
    ];
    Surroundings {
        uid,
        namespace: NAMESPACE.to_owned(),
        ips,
        reached_at: None,
        hurry: HURRY,
        node: "localhost".to_owned(),
        environment: vec![
            ("KUBERNETES_SERVICE_HOST".into(), "127.0.0.1".into()),
            ("KUBERNETES_SERVICE_PORT".into(), signer_port.to_string()),
        ],
        token_directory,
        config_maps: BTreeMap::from([(names::trust_config_map(names::DEFAULT_CLUSTER), trust.to_owned())]),
        programs: programs.into_iter().map(|(name, path)| (name.to_owned(), path)).collect(),
    }
}

/// The trust ConfigMap as kubelet mounts it, with the authorities of all the given generations.
fn write_trust(directory: &Path, generations: &[&BTreeMap<&'static str, Ca>]) {
    let bundle = |domain: &str| generations.iter().map(|g| g[domain].pem.as_str()).collect::<String>();
    let files = [("peer.crt", bundle("peer")), ("client.crt", bundle("client")), ("metrics.crt", bundle("client"))];
    write_projected(directory, files);
}

fn note_on_disk(account: &mut Account, pod: &str, role: &str, mount: &Path) {
    let Ok(pem) = fs::read(mount.join(role).join(names::CERT_FILE)) else { return };
    if let Ok(chain) = Chain::parse(&pem) {
        account.issued(pod, role, &chain.serial);
    }
}

/// A random uid in the form of a UUID.
fn random_uid() -> Result<String, String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| format!("randomness: {e}"))?;
    let hex = hex(&bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}
