//! Damaged lists beside real etcds, of peers and of clients: the list in force stays, who is revoked stays refused, and nobody else is.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::{
    crl::{Crl, Reason},
    names,
    role::Role,
};
use etcd_tls_webhook::ca::{authority::Authority, crl};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    etcd::EtcdBinary,
    etcd_client::{Answer, EtcdClient, answer},
    eventually,
    live::{LIMIT, Live, NAMESPACE, Place, files_of},
    revocation::{TRUST, on_disk, published, revoke},
    say,
    temp::TempDir,
    tier,
};

use super::{
    live::{CLUSTER, accepted, authority, chain},
    renewed::copied,
};

/// Entries of a long list.
const MANY: usize = 10_000;

/// A metric of a member's sidecar; 0 where it is not there.
async fn metric(place: &Place, name: &str) -> Result<u64, String> {
    let text = async { EtcdClient::plain().connect(&place.sidecar_url()).await?.get("/metrics").await };
    let text = text.await.map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(Ok(0), |value| value.parse().map_err(|_| value.to_owned()))
}

async fn shows(live: &Live, name: &str, value: u64) {
    for place in &live.places {
        eventually(&format!("{}: {name} {value}", place.name), LIMIT, || async {
            let now = metric(place, name).await?;
            if now == value { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }
}

/// One domain: its role on the members' disks, its ports, and a certificate that is revoked.
struct Domain {
    name: &'static str,
    lists: Vec<PathBuf>,
    urls: Vec<String>,
    revoked: PathBuf,
    honest: Vec<PathBuf>,
}

impl Domain {
    fn on_disks(&self) -> Vec<Crl> {
        self.lists.iter().map(|directory| on_disk(directory)).collect()
    }

    /// The list that was in force still is.
    async fn stands(&self, what: &str, kept: &[Crl]) {
        assert_eq!(self.on_disks(), kept, "{}: {what}", self.name);
        accepted(&self.urls, &self.revoked, false).await;
        for honest in &self.honest {
            accepted(&self.urls, honest, true).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_list_of_peers_or_clients_refuses_nobody_and_the_one_in_force_stays() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        damages(&etcd).await;
    }
}

async fn damages(etcd: &EtcdBinary) {
    let Some(mut live) = Live::start(etcd, "5400s", None).await else { return };
    let admin = live.installation.api.kubeconfig.clone();
    let maps: Api<ConfigMap> = Api::namespaced(live.installation.api.client.clone(), NAMESPACE);
    let first = published(&maps).await.expect("lists");
    let (app, other) = (live.client("revoked", 8).await, live.client("honest", 10).await);
    let copies = TempDir::new("damaged");
    // The third member gets another peer certificate, and its old one is revoked.
    let old_peer = copies.path().join("peer");
    copied(&live.certs[2].join(Role::Peer.as_str()), &old_peer);
    let serial = chain(&old_peer).serial;
    revoke(&admin, &[CLUSTER, "--serial", &serial]).await.expect("renewed and revoked");
    let serial = chain(&files_of(&app)).serial;
    revoke(&admin, &[CLUSTER, "--serial", &serial, "--at-once"]).await.expect("revoked");

    let of = |role: Role| live.certs.iter().map(|certs| certs.join(role.as_str())).collect::<Vec<_>>();
    let domains = [
        Domain {
            name: "peer",
            lists: of(Role::Peer),
            urls: live.places.iter().map(Place::peer_url).collect(),
            revoked: old_peer,
            honest: of(Role::Peer),
        },
        Domain {
            name: "client",
            lists: of(Role::Server),
            urls: live.places.iter().map(Place::client_url).collect(),
            revoked: files_of(&app),
            honest: vec![files_of(&other)],
        },
    ];
    for domain in &domains {
        accepted(&domain.urls, &domain.revoked, false).await;
    }
    // Nobody repairs the ConfigMap now. One attempt of others that fails has failed.
    live.installation.sign.kill();
    let mut options = live.work();
    options.deadline = Duration::ZERO;
    let work = tests::workload::Workload::start(options);
    let good = maps.get(TRUST).await.expect("there").binary_data.expect("lists");
    let put = async |key: &str, list: Value| {
        let patch = json!({"binaryData": {key: list}});
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
    };
    let bytes = |der: &[u8]| json!(ByteString(der.to_vec()));

    for (domain, another) in [(&domains[0], "client.crl"), (&domains[1], "peer.crl")] {
        let (key, kept) = (format!("{}.crl", domain.name), domain.on_disks());
        let refused = format!("etcd_tls_revocation_list_refused{{domain=\"{}\"}}", domain.name);
        let refusals = format!("etcd_tls_revocation_list_refusals_total{{domain=\"{}\"}}", domain.name);
        let whole = &good[&key].0;
        for (what, der) in [
            ("garbage", bytes(b"garbage")),
            ("nothing", bytes(b"")),
            ("cut short", bytes(&whole[..whole.len() - 1])),
            ("a huge one", bytes(&vec![0x30; 700 * 1024])),
            ("an older one", bytes(first[domain.name].der())),
            ("another CA's", bytes(&good[another].0)),
        ] {
            let mut before = Vec::new();
            for place in &live.places {
                before.push(metric(place, &refusals).await.expect("metrics"));
            }
            put(&key, der).await;
            shows(&live, &refused, 1).await;
            for (place, before) in live.places.iter().zip(before) {
                assert!(metric(place, &refusals).await.expect("metrics") > before, "{}: {what}", place.name);
            }
            domain.stands(what, &kept).await;
            put(&key, bytes(whole)).await;
            shows(&live, &refused, 0).await;
        }
        // One that is not there replaces nothing, also for sidecars that start anew.
        put(&key, Value::Null).await;
        for member in 0..live.places.len() {
            live.signal(member, names::SIDECAR_CONTAINER, Signal::SIGKILL).await;
        }
        shows(&live, "etcd_tls_trust_watched", 1).await;
        let entries = format!("etcd_tls_revocation_list_entries{{domain=\"{}\"}}", domain.name);
        shows(&live, &entries, kept[0].entries().len() as u64).await;
        domain.stands("none", &kept).await;
        put(&key, bytes(whole)).await;
    }
    ten_thousand(&live, &domains, &maps).await;
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: damaged lists of peers and clients: {report}", etcd.version));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
    assert_eq!(live.seen.ends(), 0, "no etcd was restarted");
}

/// Lists with more entries than an authority of ours signs, signed by the cluster's own CAs: every sidecar installs them, and every
/// etcd refuses who is on them and nobody else.
async fn ten_thousand(live: &Live, domains: &[Domain], maps: &Api<ConfigMap>) {
    let secrets: Api<Secret> = Api::namespaced(live.installation.api.client.clone(), names::SYSTEM_NAMESPACE);
    for domain in domains {
        let before = handshakes(domain).await;
        let secret = secrets.get(&authority(live, domain.name).await).await.expect("the CA").data.expect("data");
        let [certificate, key] = ["tls.crt", "tls.key"].map(|file| secret[file].0.clone());
        let mut serials: Vec<String> = (1..MANY).map(|n| format!("4f{n:030x}")).collect();
        serials.push(chain(&domain.revoked).serial);
        let now = SystemTime::now();
        let ca = Authority::load(&certificate, &key, now).expect("a CA");
        let revoked = serials.iter().map(|serial| crl::Revoked { serial, at: now, reason: Reason::Superseded });
        let number = domain.on_disks().iter().map(Crl::number).max().expect("lists") + 1;
        let list = crl::sign(&ca, number, revoked, now).expect("a list");
        let patch = json!({"binaryData": {format!("{}.crl", domain.name): ByteString(list.der().to_vec())}});
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
        shows(live, &format!("etcd_tls_revocation_list_entries{{domain=\"{}\"}}", domain.name), MANY as u64).await;
        domain.stands("ten thousand", &vec![list; live.places.len()]).await;
        let after = handshakes(domain).await;
        say(&format!(
            "{}: a handshake and one answer: {before:.1?} with a short list, {after:.1?} with {MANY} entries",
            domain.name
        ));
    }
}

/// The median of some whole handshakes with the first member, each with one answer.
async fn handshakes(domain: &Domain) -> Duration {
    let mut times = Vec::new();
    for _ in 0..31 {
        let start = Instant::now();
        assert_eq!(answer(&domain.urls[0], &domain.honest[0]).await, Answer::Taken);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}
