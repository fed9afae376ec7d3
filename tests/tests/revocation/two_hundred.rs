//! Two hundred revocations under load: the lists grow on each member, and no operation of others fails.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tests::{
    etcd::EtcdBinary,
    live::{Live, Place, files_of},
    revocation::revoke,
    say, tier,
    workload::Workload,
};

use super::live::{CLUSTER, accepted, chain, on_every_disk};

const REVOCATIONS: usize = 200;
/// Each of so many is a client's own certificate, which is refused by all members and taken back. The others are numbers that
/// nobody has.
const OWN: usize = 25;

/// kubelet's next sync never comes: the mounted ConfigMaps stay as they were at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_revocations_fail_no_operation_of_others() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        two_hundred(&etcd).await;
    }
}

async fn two_hundred(etcd: &EtcdBinary) {
    let Some(mut live) = Live::start(etcd, "5400s", None).await else { return };
    let app = live.client("revoked", 8).await;
    let (files, urls) = (files_of(&app), live.places.iter().map(Place::client_url).collect::<Vec<_>>());
    let serial = chain(&files).serial;
    accepted(&urls, &files, true).await;
    live.installation.hold_mounts(true);
    // One attempt of others that fails has failed.
    let mut options = live.work();
    options.deadline = Duration::ZERO;
    let work = Workload::start(options);

    let admin = live.installation.api.kubeconfig.clone();
    let (mut expected, mut longest) = (BTreeSet::new(), Duration::ZERO);
    for n in 0..REVOCATIONS {
        if n % OWN == OWN - 1 {
            let start = Instant::now();
            revoke(&admin, &[CLUSTER, "--serial", &serial, "--at-once"]).await.expect("revoked");
            accepted(&urls, &files, false).await;
            longest = longest.max(start.elapsed());
            revoke(&admin, &[CLUSTER, "--serial", &serial, "--undo"]).await.expect("taken back");
            accepted(&urls, &files, true).await;
        } else {
            let nobodys = format!("4f{n:06x}");
            revoke(&admin, &[CLUSTER, "--serial", &nobodys, "--at-once"]).await.expect("revoked");
            expected.insert(nobodys);
        }
    }
    on_every_disk(&live, &expected).await;
    let report = work.stop().await.expect("read etcd");
    say(&format!(
        "etcd {}: {REVOCATIONS} revocations, all members refused within {longest:.1?} of the command at most: {report}",
        etcd.version
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 200, "the client hardly worked: {report}");
    assert_eq!(live.seen.ends(), 0, "no etcd was restarted");
}
