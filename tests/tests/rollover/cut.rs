//! `revoke --cut`: the connections of who is revoked end on every member, and the writes of others go on.

use std::{fs, process::Command, sync::atomic::Ordering, time::Instant};

use super::forced;
use etcd_tls_contract::{certificate::Chain, names, role::Role};
use tests::{
    etcd::EtcdBinary,
    etcd_client::{Answer, Connection, EtcdClient, answer},
    eventually,
    live::{LIMIT, Live, NAMESPACE, Place, files_of},
    pages,
    process::binary,
    say,
    temp::TempDir,
    tier,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_ends_the_connections_of_who_is_revoked_and_no_write_of_others_fails() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        let Some(live) = cuts(&etcd).await else { return };
        forced::both_steps(&live).await;
    }
}

async fn cuts(etcd: &EtcdBinary) -> Option<Live> {
    let mut live = Live::start(etcd, "5400s", None).await?;
    let client = live.client("revoked", 8).await;
    let files = files_of(&client);
    let chain = Chain::parse(&fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain");
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
    command.env("KUBECONFIG", &live.installation.api.kubeconfig);
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

    // The keys of a member have leaked: by the command of the page.
    let [_, of_member] = &pages::blocks("revocation.md", "A key has leaked")[..] else {
        panic!("a client's and a member's")
    };
    let of_member = of_member.replace("my-namespace", NAMESPACE);
    for (n, role) in [Role::Server, Role::Peer].into_iter().enumerate() {
        let url = |place: &Place| if role == Role::Peer { place.peer_url() } else { place.client_url() };
        let (stolen, files) = (TempDir::new("stolen"), live.certs[0].join(role.as_str()));
        for file in [names::CERT_FILE, names::KEY_FILE, names::CA_FILE] {
            fs::copy(files.join(file), stolen.join(file)).expect("copy");
        }
        for place in &live.places {
            let answered = answer(&url(place), stolen.path()).await;
            assert_eq!(answered, Answer::Taken, "{}: {role} before", place.name);
        }
        let (serial, work) = (live.leaf(0, role).serial, live.workload());
        let line = of_member.replace("4F0A...", &serial);
        let (kubeconfig, directory) = (live.installation.api.kubeconfig.clone(), TempDir::new("shell"));
        let run = move || pages::bash(directory.path(), &pages::path(&[]), Some(&kubeconfig), &line);
        let said = tokio::task::spawn_blocking(run).await.expect("it ran").expect("it succeeds");
        assert_ne!(live.leaf(0, role).serial, serial, "{role} renewed first: {said}");
        live.settled(3 * (n + 2)).await;
        for place in &live.places {
            eventually(&format!("{} to refuse {role}", place.name), LIMIT, || async {
                match answer(&url(place), stolen.path()).await {
                    Answer::Refused => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        let report = work.stop().await.expect("read etcd");
        let most_away = live.seen.most_away.load(Ordering::Relaxed);
        say(&format!("etcd {}: the {role} certificate of a member: {report}", etcd.version));
        assert_eq!((report.failed, report.lost.len(), report.unseen.len(), most_away), (0, 0, 0, 1), "{report}");
    }
    Some(live)
}
