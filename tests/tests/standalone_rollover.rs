//! Another CA for members whose signer is standalone, by the real binaries: the bundle with both comes first and every etcd
//! is restarted to load it, then the signer changes over, then the old CA goes. That signer is an API server without
//! Leases, so etcd's own lock alone makes the members take turns.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use etcd_tls_contract::certificate::{Bundle, Chain};
use tests::{
    etcd::{EtcdCluster, Member},
    etcd_client,
    etcd_supervisor::EtcdSupervisor,
    eventually,
    pki::{Ca, LeafOptions},
    ports,
    process::{Process, binary},
    signer::{BOOTSTRAP, LIMIT, Signer, sidecar},
    tier,
    workload::{Options, Workload},
};

/// Renewals follow each other, and are not missed on a busy machine.
const LIFE: Duration = Duration::from_secs(30);
const ROLES: [&str; 2] = ["peer", "server"];

/// Starts the sidecar of one member.
type Start = fn(&Signer, &Member, &[String]) -> Process;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_of_hosts_is_rolled_over() {
    roll_over(|signer, member, arguments| {
        let bootstrap = signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP);
        let own = [
            format!("--ipaddrs={},127.0.0.1", member.address),
            format!("--etcd-pid-file={}", member.pid_file().display()),
            // As docs/standalone.md does it.
            format!("--cacrt={}", signer.dir.join("trust/bundle").display()),
        ];
        sidecar(signer, &member.name, &bootstrap, &[&own, arguments].concat())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_of_pods_is_rolled_over_where_there_are_no_leases() {
    roll_over(|signer, member, arguments| {
        let token = signer.dir.dir("token");
        for (name, content) in [("token", BOOTSTRAP), ("ca.crt", &signer.serving.pem), ("namespace", "kube-system")] {
            fs::write(token.join(name), content).expect("write");
        }
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(["run", "--roles=peer,server", "--can-signal"]).args(arguments);
        command.arg("--trust-dir").arg(signer.dir.join("trust"));
        command.arg(format!("--extra-sans={},127.0.0.1", member.address));
        command.arg("--admin-port").arg(ports::loopback().to_string());
        command.arg("--token-dir").arg(token).arg("--dir").arg(signer.dir.join(&member.name));
        command.arg("--termination-log").arg(signer.dir.join("termination-log"));
        let ips = member.address.to_string();
        command.envs([
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &signer.port.to_string()),
            ("POD_NAME", &member.name),
            ("POD_NAMESPACE", "kube-system"),
            ("POD_UID", &format!("0d5f2e0c-9c2f-4a68-9e53-{}", &member.name)),
            ("POD_SERVICE_ACCOUNT", "default"),
            ("NODE_NAME", "node-1"),
            ("POD_IPS", &ips),
        ]);
        Process::spawn(&format!("sidecar-{}", member.name), &mut command, signer.dir.path())
    })
    .await;
}

async fn roll_over(start: Start) {
    let Some(etcd) = tier::etcd() else { return };
    let mut signer = Signer::of_hosts(LIFE).await;
    let old = signer.ca.pem.clone();
    publish(&signer, &[&old]);
    let mut cluster = signer.etcd(EtcdCluster::new(&etcd, 3));
    let arguments = |member: &Member| {
        [
            format!("--client-url={}", member.client_url()),
            format!("--peer-url={}", member.peer_url()),
            // The supervisor of this test has no back-off.
            "--restart-pace=1s".to_owned(),
        ]
    };
    let mut sidecars: Vec<_> = cluster.members.iter().map(|m| start(&signer, m, &arguments(m))).collect();
    let names: Vec<_> = cluster.members.iter().map(|m| m.name.clone()).collect();
    leaves_of(&signer, &names, &old).await;
    cluster.start().await;
    let urls: Vec<_> = cluster.members.iter().map(|m| [m.peer_url(), m.client_url()]).collect();
    let supervisor = EtcdSupervisor::new(cluster);
    let mut options = Options::new(urls.iter().map(|[_, c]| c.clone()).collect(), &signer.dir.join("etcd-0/server"));
    options.deadline = Duration::from_secs(10);
    let work = Workload::start(options);

    let next = Ca::new("the next etcd CA");
    let both = [old.as_str(), next.pem.as_str()];
    // The certificates that members of the old and of the next CA show each other.
    let (of_old, of_next) = (signer.dir.join("of-old"), signer.dir.join("of-next"));
    for (ca, dir) in [(&signer.ca, &of_old), (&next, &of_next)] {
        ca.write_role(dir, &LeafOptions::default());
        fs::write(dir.join("ca.crt"), both.concat()).expect("write");
    }
    for urls in &urls {
        assert_eq!((takes(urls, &of_old).await, takes(urls, &of_next).await), ([true; 2], [false; 2]), "{urls:?}");
    }

    // The next CA's, and the old one's or not.
    let all_take = async |old: bool| {
        for urls in &urls {
            let taken = (takes(urls, &of_old).await, takes(urls, &of_next).await);
            if taken != ([old; 2], [true; 2]) {
                return Err(format!("{urls:?}: {taken:?}"));
            }
        }
        Ok(())
    };
    publish(&signer, &both);
    eventually("each etcd is restarted and takes certificates of both CAs", 2 * LIMIT, || all_take(true)).await;
    assert_eq!(restarts(&supervisor), BTreeMap::from([(0, 1), (1, 1), (2, 1)]));

    // It takes hosts that have renewed, and those that have not yet.
    for (name, content) in [("clients.crt", &both.concat()), ("ca.crt", &next.pem), ("ca.key", &next.key_pem)] {
        signer.dir.write(name, content);
    }
    signer.process().kill();
    signer.start().await;
    leaves_of(&signer, &names, &next.pem).await;
    assert_eq!(restarts(&supervisor).values().sum::<usize>(), 3, "no leaf needs a restart");

    publish(&signer, &[&next.pem]);
    eventually("each etcd is restarted and takes certificates of the old CA no more", 2 * LIMIT, || all_take(false))
        .await;
    assert_eq!(restarts(&supervisor), BTreeMap::from([(0, 2), (1, 2), (2, 2)]));
    assert_eq!(supervisor.most_away(), 1, "members away at the same time");
    let report = work.stop().await.expect("read etcd");
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
    assert!(report.writes > 20, "the client hardly worked: {report}");
    for sidecar in &mut sidecars {
        assert!(sidecar.running());
    }
}

/// Publishes one bundle for every role, with one rename.
fn publish(signer: &Signer, cas: &[&str]) {
    let dir = signer.dir.dir("trust");
    fs::write(dir.join("new"), cas.concat()).expect("write");
    fs::rename(dir.join("new"), dir.join("bundle")).expect("rename");
    for name in ["peer.crt", "client.crt"] {
        if !dir.join(name).exists() {
            std::os::unix::fs::symlink("bundle", dir.join(name)).expect("symlink");
        }
    }
}

/// Waits until every certificate on disk is of this CA.
async fn leaves_of(signer: &Signer, names: &[String], ca: &str) {
    let ca = Bundle::parse(ca.as_bytes()).expect("a CA");
    eventually("certificates of the CA", LIMIT, || async {
        for file in names.iter().flat_map(|name| ROLES.map(|role| signer.dir.join(name).join(role).join("tls.crt"))) {
            let chain = Chain::parse(&fs::read(&file).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            if !ca.contains_issuer_of(&chain) {
                return Err(format!("{} is of another one", file.display()));
            }
        }
        Ok(())
    })
    .await;
}

/// Whether the peer port, and the client port, takes the certificate in `dir`.
async fn takes([peer, client]: &[String; 2], dir: &Path) -> [bool; 2] {
    [etcd_client::takes(peer, dir).await, etcd_client::takes(client, dir).await]
}

/// How often each member was restarted.
fn restarts(supervisor: &EtcdSupervisor) -> BTreeMap<usize, usize> {
    let mut restarts = BTreeMap::new();
    for (member, _) in supervisor.ends() {
        *restarts.entry(member).or_default() += 1;
    }
    restarts
}
