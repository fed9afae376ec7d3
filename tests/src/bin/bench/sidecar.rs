//! The sidecar against a real API server with the shipped rights: how soon its files are there, and what it weighs at rest.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, Instant},
};

use etcd_tls_contract::names;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use tests::{
    etcd::EtcdBinary,
    installation::{Installation, LIMIT, Options, own_address},
    local_pod::LocalPod,
    ports,
    process::Process,
};

use crate::{
    asks::{self, ByHand},
    report::Report,
    stats::{median, memory, ms, percentile, sleeps},
    wire::Wire,
};

const NAMESPACE: &str = "bench";
const STARTS: usize = 25;
/// How long the sidecar is left alone before it is at rest, and how long it is watched then.
const SETTLE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(60);

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let Some(mut installation) = Installation::start(&Options::default()).await else {
        report.skip(
            "the sidecar's figures",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make bench",
        );
        return Ok(());
    };
    installation.api.namespace(NAMESPACE, &[(names::LABEL, names::DYNAMIC)]).await;
    starts(report, &mut installation).await?;
    rest(report, &mut installation).await
}

/// From the start of `etcd-tls-init` to its files, and the three bare writes, in turns.
async fn starts(report: &mut Report, installation: &mut Installation) -> Result<(), String> {
    let mut member = Starter::new(
        installation,
        json!({
            "metadata": {"name": "member"},
            "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"]}]},
        }),
        &["peer", "server"],
    )
    .await?;
    let mut client = Starter::new(
        installation,
        json!({
            "metadata": {"name": "client", "annotations": {"etcd-tls.dev/roles": "client"}},
            "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
        }),
        &["client"],
    )
    .await?;
    let mut wire = Wire::open(asks::address(&installation.api), asks::nobody(&installation.api)).await?;
    let by_hand = ByHand::new("idle", STARTS + 1, &asks::writers(&installation.api).await);
    let (mut members, mut clients, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..=STARTS {
        let values = (member.start().await?, by_hand.cycle(&mut wire, n).await?, client.start().await?);
        // The first turn warms up.
        if n > 0 {
            members.push(values.0);
            bare.push(values.1);
            clients.push(values.2);
        }
    }
    let writes = median(&bare);
    report.plain("create, approval, status by hand, p50", format!("{writes:.1} ms"));
    for (what, certificates, values) in [("one role", 1.0, &clients), ("peer and server", 2.0, &members)] {
        let (p50, p90) = (median(values), percentile(values, 0.9));
        report.judged(
            format!("start to files, {what}, p50 (p90)"),
            format!("{p50:.0} ms ({p90:.0} ms)"),
            "about 50 ms",
            p50 <= 60.0,
        );
        // By hand one certificate is made after the other.
        let ratio = p50 / (writes * certificates);
        report.judged(
            format!("start to files, {what}, against the writes by hand for as many"),
            format!("{ratio:.1}"),
            "<= 3",
            ratio <= 3.0,
        );
    }
    Ok(())
}

/// A pod whose init container is run again and again.
struct Starter {
    pod: LocalPod,
    init: Value,
    roles: &'static [&'static str],
}

impl Starter {
    async fn new(
        installation: &mut Installation,
        manifest: Value,
        roles: &'static [&'static str],
    ) -> Result<Self, String> {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let pod = installation
            .local_pod(NAMESPACE, manifest, &[IpAddr::from([10, 1, 0, 1])], &[])
            .await
            .map_err(|e| format!("{name}: {e}"))?;
        let pods = Api::<Pod>::namespaced(installation.api.client.clone(), NAMESPACE);
        let object = pods.get(&name).await.map_err(|e| e.to_string())?;
        let object = serde_json::to_value(object).map_err(|e| e.to_string())?;
        let containers = object["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let init = containers.into_iter().find(|c| c["name"] == names::INIT_CONTAINER);
        Ok(Self { pod, init: init.ok_or_else(|| format!("{name} was not injected"))?, roles })
    }

    /// One start; until the files are there, in milliseconds.
    async fn start(&mut self) -> Result<f64, String> {
        let volume = self.pod.volume(names::VOLUME);
        empty(&volume)?;
        let mut command = self.pod.command(&self.init);
        let began = Instant::now();
        let mut process = Process::spawn("init", &mut command, volume.parent().unwrap_or(&volume));
        let there = || self.roles.iter().all(|role| volume.join(role).join(names::CERT_FILE).exists());
        while !there() {
            if began.elapsed() > LIMIT || process.exited().is_some_and(|s| !s.success()) {
                return Err(format!("no files:\n{}", process.log()));
            }
            // A finer grain than the runtime's timers have.
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_micros(300)));
        }
        let took = ms(began.elapsed());
        process.wait(LIMIT).await;
        Ok(took)
    }
}

fn empty(directory: &Path) -> Result<(), String> {
    for entry in fs::read_dir(directory).map_err(|e| e.to_string())?.flatten() {
        let path = entry.path();
        let directory = entry.file_type().is_ok_and(|t| t.is_dir());
        if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// A member with a real etcd, left alone.
async fn rest(report: &mut Report, installation: &mut Installation) -> Result<(), String> {
    let Some(etcd) = EtcdBinary::find() else {
        report.skip("the sidecar at rest", "no etcd", "apt-get install etcd-server, or ETCD=<path>");
        return Ok(());
    };
    // Not loopback's, which no pod has.
    let address = own_address().ok_or("no address but loopback")?;
    let mut pod = installation
        .local_pod(NAMESPACE, member("etcd-0", address), &[address], &[("etcd", etcd.etcd)])
        .await
        .map_err(|e| e.to_string())?;
    pod.start(LIMIT).await?;
    tokio::time::sleep(SETTLE).await;
    let pid = pod.process(names::SIDECAR_CONTAINER).id();
    let before = sleeps(pid);
    tokio::time::sleep(REST).await;
    let woken = sleeps(pid) - before;
    let memory = memory(pid);
    if !pod.process(names::SIDECAR_CONTAINER).running() {
        return Err(format!("the sidecar ended:\n{}", pod.log(names::SIDECAR_CONTAINER)));
    }
    let (resident, anonymous) = (memory.resident, memory.anonymous);
    report.judged("sidecar at rest, resident", format!("{resident:.1} MiB"), "<= 7 MiB", resident <= 7.0);
    report.judged("sidecar at rest, anonymous", format!("{anonymous:.1} MiB"), "<= 1.5 MiB", anonymous <= 1.5);
    report.plain("sidecar at rest, wake-ups in a minute", woken.to_string());
    Ok(())
}

/// The only member of a cluster, of local processes.
pub(crate) fn member(name: &str, address: IpAddr) -> Value {
    let url = |port: u16| format!("https://{address}:{port}");
    let (client, peer) = (url(ports::free(address)), url(ports::free(address)));
    json!({
        "metadata": {
            "name": name,
            "annotations": {"etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string()},
        },
        "spec": {
            "containers": [{
                "name": "etcd", "image": "etcd", "command": ["etcd"],
                "args": [
                    format!("--name={name}"), "--data-dir=/var/lib/etcd/data",
                    format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster={name}={peer}"), "--unsafe-no-fsync",
                ],
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}
