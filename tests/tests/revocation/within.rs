//! How soon every member refuses what is revoked.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use etcd_tls_contract::role::Role;
use futures::future::join_all;
use tests::{
    etcd::EtcdBinary,
    etcd_client::{Answer, answer},
    live::{LIMIT, Live, Place, files_of},
    prompt::{STALL, Stalls, judge},
    revocation::revoke,
    say, tier,
    workload::Workload,
};
use tokio::time::sleep;

use super::live::{CLUSTER, accepted, chain};

const ROUNDS: usize = 3;
/// Opens connections to `url` until one is refused.
async fn refused(url: &str, files: &Path) {
    let start = Instant::now();
    while answer(url, files).await != Answer::Refused {
        assert!(start.elapsed() < LIMIT, "{url} does not refuse {}", files.display());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Revokes the certificate in `files` and takes that back, some times. Each time, with the longest stall meanwhile: the time from
/// the command to the first refused handshake of the last of `urls`.
async fn rounds(live: &Live, urls: &[String], files: &Path, stalls: &Stalls) -> Vec<(Duration, Duration)> {
    let admin = live.installation.api.kubeconfig.clone();
    let serial = chain(files).serial;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        accepted(urls, files, true).await;
        stalls.begin();
        let start = Instant::now();
        let arguments = [CLUSTER, "--serial", &serial, "--at-once"];
        let each = join_all(urls.iter().map(|url| async {
            refused(url, files).await;
            start.elapsed()
        }));
        let (said, each) = tokio::join!(revoke(&admin, &arguments), each);
        took.push((each.into_iter().max().expect("some"), stalls.longest()));
        said.expect("revoked");
        revoke(&admin, &[CLUSTER, "--serial", &serial, "--undo"]).await.expect("taken back");
    }
    accepted(urls, files, true).await;
    took
}

/// kubelet's next sync never comes: the mounted ConfigMaps stay as they were at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_refuses_a_revoked_client_and_a_revoked_peer_within_five_seconds() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        let Some(mut live) = Live::start(&etcd, "5400s", None).await else { return };
        let app = live.client("revoked", 8).await;
        live.installation.hold_mounts(true);
        let (stalls, whole_run) = (Stalls::watch(), Stalls::watch());
        // Others' attempts are not repeated: one that fails has failed.
        let mut options = live.work();
        options.deadline = Duration::ZERO;
        let work = Workload::start(options);
        let urls: Vec<String> = live.places.iter().map(Place::client_url).collect();
        judge(
            &format!("etcd {}: a client under load", etcd.version),
            &rounds(&live, &urls, &files_of(&app), &stalls).await,
        );
        let urls: Vec<String> = live.places.iter().map(Place::peer_url).collect();
        let peer = live.certs[2].join(Role::Peer.as_str());
        judge(&format!("etcd {}: a peer under load", etcd.version), &rounds(&live, &urls, &peer, &stalls).await);
        let report = work.stop().await.expect("read etcd");
        assert_eq!((report.lost.len(), report.unseen.len()), (0, 0), "{report}");
        // The members of a machine that stands still may elect another leader, and a write fails with the old one.
        if whole_run.longest() < STALL {
            assert_eq!(report.failed, 0, "{report}");
        } else if report.failed > 0 {
            say(&format!(
                "{} writes failed, and the machine stood still for {:.0?}",
                report.failed,
                whole_run.longest()
            ));
        }
        assert!(report.writes > 20, "the client hardly worked: {report}");
    }
}
