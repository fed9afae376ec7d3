//! `revoke --cut`: the connections of who is revoked end on every member, and the writes of others go on.

use std::{process::Command, sync::atomic::Ordering, time::Instant};

use etcd_tls_contract::{certificate::Chain, names};
use tests::{
    etcd::EtcdBinary,
    etcd_client::{Connection, EtcdClient},
    live::{Live, NAMESPACE, files_of},
    process::binary,
    say, tier,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_ends_the_connections_of_who_is_revoked_and_no_write_of_others_fails() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        cuts(&etcd).await;
    }
}

async fn cuts(etcd: &EtcdBinary) {
    let Some(mut live) = Live::start(etcd, "5400s", None).await else { return };
    let client = live.client("revoked", 8).await;
    let files = files_of(&client);
    let chain = Chain::parse(&std::fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain");
    let revoked = EtcdClient::with_files(&files);
    let mut open: Vec<Connection> = Vec::new();
    for place in &live.places {
        let mut connection = revoked.connect(&place.client_url()).await.expect("connect");
        connection.put("k", "v").await.expect("a write");
        open.push(connection);
    }

    let start = Instant::now();
    let work = live.workload();
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["revoke", &format!("{NAMESPACE}/etcd"), "--serial", &chain.serial, "--at-once", "--cut"]);
    command.env("KUBECONFIG", &live.stack.api.kubeconfig);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for place in &live.places {
        let line = format!("pod {}: its connections have ended", place.name);
        assert!(said.lines().any(|said| said == line), "{said}");
    }
    let took = start.elapsed();
    for (connection, place) in open.iter_mut().zip(&live.places) {
        assert!(connection.put("k", "v").await.is_err(), "{}: a connection of before", place.name);
        assert!(revoked.put(&place.client_url(), "k", "v").await.is_err(), "{}: a new connection", place.name);
    }
    live.settled(3).await;
    let report = work.stop().await.expect("read etcd");
    let (ends, most_away) = (live.seen.ends(), live.seen.most_away.load(Ordering::Relaxed));
    say(&format!(
        "etcd {}: connections cut in {took:.0?}, {ends} restarts, at most {most_away} away: {report}",
        etcd.version
    ));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
    assert_eq!((most_away, ends), (1, 3), "one member at a time");
}
