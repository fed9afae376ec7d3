//! docs/plain-text-to-tls.md on a real etcd: three members with data go from http to https with client certificates, member by
//! member, under load, and back. `etcd-tls-webhook check` tells each step.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use etcd_tls_contract::crl;
use tests::{
    etcd::{EtcdCluster, Member, MemberTls},
    eventually, ports,
    process::{binary, run},
    temp::TempDir,
    tier,
    workload::{Options, Report, Workload},
};

#[path = "plain_text/on_kubernetes.rs"]
mod on_kubernetes;

const LIMIT: Duration = Duration::from_secs(60);

/// The steps of the runbook for one member.
struct Walk {
    cluster: EtcdCluster,
    dir: TempDir,
    /// The second client port of each member.
    ports: Vec<u16>,
}

impl Walk {
    fn files(&self, i: usize, role: &str) -> PathBuf {
        self.dir.join(format!("issued/etcd-{i}/{role}"))
    }

    fn client(&self) -> PathBuf {
        self.dir.join("issued/etcd-app/client")
    }

    fn http(&self, i: usize) -> String {
        let member = &self.cluster.members[i];
        format!("http://{}:{}", member.address, member.client_port)
    }

    fn https(&self, i: usize) -> String {
        format!("https://{}:{}", self.cluster.members[i].address, self.ports[i])
    }

    fn urls(&self, url: impl Fn(&Self, usize) -> String) -> Vec<String> {
        (0..self.cluster.members.len()).map(|i| url(self, i)).collect()
    }

    /// The options of the certificates, and the client URLs.
    fn arguments(&self, i: usize, urls: &[String]) -> Vec<String> {
        let mut arguments = Vec::new();
        for (prefix, role) in [("", "server"), ("peer-", "peer")] {
            let files = self.files(i, role);
            let list = files.join("ca.crl");
            fs::write(&list, crl::stand_in()).expect("a list, as the sidecar writes it at first");
            let trust = if prefix.is_empty() { "trusted-ca-file" } else { "peer-trusted-ca-file" };
            arguments.extend([
                format!("--{prefix}cert-file={}", files.join("tls.crt").display()),
                format!("--{prefix}key-file={}", files.join("tls.key").display()),
                format!("--{trust}={}", files.join("ca.crt").display()),
                format!("--{prefix}client-cert-auth"),
                format!("--{}-crl-file={}", if prefix.is_empty() { "client" } else { "peer" }, list.display()),
            ]);
        }
        arguments.extend([
            format!("--listen-client-urls={}", urls.join(",")),
            format!("--advertise-client-urls={}", urls.join(",")),
        ]);
        arguments
    }

    /// Restarts a member, and waits until it is healthy and reaches the others, as `check` sees it.
    async fn restart(&mut self, i: usize, change: impl Fn(&mut Member)) {
        let member = &mut self.cluster.members[i];
        member.stop().await;
        change(member);
        member.spawn();
        member.healthy(LIMIT).await;
    }

    /// The output of `check`, once it names `expected` as the next step.
    async fn check(&self, to: &str, expected: &str) -> String {
        self.check_ends(to, expected, 0).await
    }

    /// The same, with the exit code.
    async fn check_ends(&self, to: &str, expected: &str, code: i32) -> String {
        eventually(expected, LIMIT, || async {
            let mut command = Command::new(binary("etcd-tls-webhook"));
            let endpoints =
                self.urls(Self::http).into_iter().chain(self.urls(Self::https)).collect::<Vec<_>>().join(",");
            command.args(["check", "--to", to, "--endpoints", &endpoints]);
            let client = self.client();
            command.arg("--cacert").arg(client.join("ca.crt"));
            command.arg("--cert").arg(client.join("tls.crt")).arg("--key").arg(client.join("tls.key"));
            let output = command.output().expect("run");
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if output.status.code() == Some(code) && text.contains(expected) { Ok(text) } else { Err(text) }
        })
        .await
    }

    fn id(&self, i: usize, client: &Path, url: &str) -> String {
        let text = self.etcdctl(i, client, url, &["member", "list"]);
        let name = format!(", etcd-{i},");
        let line = text.lines().find(|l| l.contains(&name)).unwrap_or_else(|| panic!("{text}"));
        line.split(',').next().expect("an id").to_owned()
    }

    fn etcdctl(&self, i: usize, client: &Path, url: &str, arguments: &[&str]) -> String {
        run(self.cluster.members[i].etcdctl_command(Some(client), &["--endpoints", url]).args(arguments))
    }

    /// One load for each of the client ports.
    fn load(&self, name: &str, urls: Vec<String>) -> Workload {
        Workload::start(Options {
            name: name.to_owned(),
            deadline: Duration::from_secs(20),
            ..Options::new(urls, &self.client())
        })
    }
}

fn nothing_lost(step: &str, report: &Report) {
    eprintln!("{step}: {report}");
    assert!(report.writes > 20, "{step}: {report}");
    assert_eq!((report.failed, &report.lost, &report.unseen), (0, &vec![], &vec![]), "{step}: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_from_http_to_https_and_back_under_load() {
    let Some(etcd) = tier::etcd() else { return };
    if etcd.etcdctl.is_none() {
        tier::skip(1, "no etcdctl", "apt-get install etcd-client");
        return;
    }
    let dir = TempDir::new("plain-text");
    let cluster = EtcdCluster::new(&etcd, 3);
    let mut issue = Command::new(binary("etcd-tls-webhook"));
    issue.args(["issue", "--cluster=etcd", "--client=app", "--ca-dir"]).arg(dir.join("ca"));
    for member in &cluster.members {
        issue.arg(format!("--member={}={},127.0.0.1", member.name, member.address));
    }
    run(issue.arg("--out").arg(dir.join("issued")));
    let ports = cluster.members.iter().map(|m| ports::free(m.address)).collect();
    let mut walk = Walk { cluster, dir, ports };
    walk.cluster.start().await;
    let client = walk.client();

    // The members' data, which must be there at the end.
    walk.cluster.members[0].etcdctl(None, &["put", "before", "the move"]);
    let plain = walk.load("plain", walk.urls(Walk::http));

    // Step 1: certificates, and a second client port.
    for i in 0..3 {
        let text = walk.check("https", &format!("Next: etcd-{i}: restart it with its client port in both")).await;
        assert!(text.contains("speaks http"), "{text}");
        let arguments = walk.arguments(i, &[walk.http(i), walk.https(i)]);
        walk.restart(i, |member| member.arguments = arguments.clone()).await;
    }
    // Step 2: clients move.
    let tls = walk.load("tls", walk.urls(Walk::https));
    tokio::time::sleep(Duration::from_secs(2)).await;
    nothing_lost("plain clients, while members get certificates", &plain.stop().await.expect("etcd answers"));
    // Step 3: peers, one after the other.
    for i in 0..3 {
        let url = walk.https((i + 1) % 3);
        walk.check("https", &format!("Then etcd-{i}: register its peer URL")).await;
        let (id, member) = (walk.id(i, &client, &url), &walk.cluster.members[i]);
        let peer = format!("https://{}:{}", member.address, member.peer_port);
        walk.etcdctl(i, &client, &url, &["member", "update", &id, &format!("--peer-urls={peer}")]);
        walk.check("https", &format!("Next: etcd-{i}: restart it with")).await;
        let files = walk.files(i, "peer");
        walk.restart(i, |member| member.tls = MemberTls { peer: Some(files.clone()), ..MemberTls::default() }).await;
    }
    // Step 4: the plain client port goes.
    for i in 0..3 {
        walk.check("https", &format!("Next: etcd-{i}: when no client uses http any more")).await;
        let arguments = walk.arguments(i, &[walk.https(i)]);
        walk.restart(i, |member| member.arguments = arguments.clone()).await;
    }
    walk.check("https", "Done: every URL is https").await;
    walk.cluster.members[2].stop().await;
    walk.check_ends("https", "Stop. etcd-2", 3).await;
    walk.restart(2, |_| {}).await;
    let url = walk.https(0);
    assert!(walk.etcdctl(0, &client, &url, &["get", "before"]).contains("the move"));
    let nobody = walk.cluster.members[0]
        .etcdctl_command(None, &["--endpoints", &url, "--command-timeout=2s", "get", "before"])
        .arg("--cacert")
        .arg(client.join("ca.crt"))
        .output();
    assert!(!nobody.expect("run").status.success(), "without a client certificate nothing is read");

    // And back.
    for i in 0..3 {
        walk.check("http", &format!("Next: etcd-{i}: restart it with its client port in both")).await;
        let arguments = walk.arguments(i, &[walk.http(i), walk.https(i)]);
        walk.restart(i, |member| member.arguments = arguments.clone()).await;
    }
    let plain = walk.load("plain-again", walk.urls(Walk::http));
    tokio::time::sleep(Duration::from_secs(2)).await;
    nothing_lost("clients with certificates, there and back", &tls.stop().await.expect("etcd answers"));
    for i in 0..3 {
        let url = walk.http((i + 1) % 3);
        walk.check("http", &format!("Then etcd-{i}: register its peer URL")).await;
        let (id, member) = (walk.id(i, &client, &url), &walk.cluster.members[i]);
        let peer = format!("http://{}:{}", member.address, member.peer_port);
        walk.etcdctl(i, &client, &url, &["member", "update", &id, &format!("--peer-urls={peer}")]);
        walk.check("http", &format!("Next: etcd-{i}: restart it with")).await;
        walk.restart(i, |member| member.tls = MemberTls::default()).await;
    }
    for i in 0..3 {
        walk.check("http", &format!("Next: etcd-{i}: when no client uses https any more")).await;
        walk.restart(i, |member| member.arguments.clear()).await;
    }
    walk.check("http", "Done: every URL is http").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    nothing_lost("plain clients, while certificates go", &plain.stop().await.expect("etcd answers"));
    let text = walk.cluster.members[2].etcdctl(None, &["get", "before"]);
    assert!(text.contains("the move"), "{text}");
}
