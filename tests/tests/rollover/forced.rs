//! `rollover --force`, as after a leak of a CA's key: each step at once, and the outage that it can mean is said before.

use std::{fs, process::Command, time::Instant};

use etcd_tls_contract::{names, role::Role};
use tests::{
    etcd_client::{Answer, EtcdClient, answer},
    eventually,
    live::{LIMIT, Live, NAMESPACE},
    process::{binary, which},
    say,
    temp::TempDir,
    tier,
};

/// Forces the clients' CA of a live cluster, both steps. Its certificates are those of the new CA, and it takes writes again.
pub async fn both_steps(live: &Live) {
    if which("script").is_none() {
        return tier::skip_special("no script", "apt-get install bsdutils");
    }
    let old = live.bundle("client").await;
    // Nothing is forced by a program that has not confirmed it, nor at a terminal without "yes".
    let said = live.rollover("client", &["--force"]).await.expect_err("not confirmed");
    assert!(said.contains("give --yes as well"), "{said}");
    for (answer, ends) in [("no", "nothing was forced"), ("", "nothing was forced")] {
        let said = at_a_terminal(live, answer).await;
        let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("no {text:?} in {said}"));
        let order = [at("before any pod or client has loaded it"), at("Type yes to go on: "), at(ends)];
        assert!(order.is_sorted(), "{said}");
    }
    assert_eq!(live.bundle("client").await, old, "nothing was forced");

    // Of a client: its key has leaked, too.
    let leaked = TempDir::new("leaked");
    for file in [names::CERT_FILE, names::KEY_FILE, names::CA_FILE] {
        fs::copy(live.work().files.join(file), leaked.join(file)).expect("copy");
    }
    let (start, before) = (Instant::now(), live.seen.ends());
    let said = live.rollover("client", &["--force", "--yes"]).await.expect("forced");
    assert!(said.contains("before any pod or client has loaded it"), "{said}");
    live.phase("client", "signing").await;
    let both = live.bundle("client").await;
    assert!(both.certificates().len() == 2 && both != old, "both CAs");
    let said = at_a_terminal(live, "yes").await;
    assert!(said.contains("the old CA leaves the bundle at once"), "{said}");
    live.phase("client", "stable").await;
    let new = live.bundle("client").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    // Whoever has the key knows the members' CA, too.
    fs::write(leaked.join(names::CA_FILE), new.to_pem()).expect("write");
    for n in 0..live.places.len() {
        eventually(&format!("a certificate of the new CA for etcd-{n}"), LIMIT, || async {
            let leaf = live.leaf(n, Role::Server);
            if new.contains_issuer_of(&leaf) { Ok(()) } else { Err(live.log(n, "etcd-tls-sidecar").await) }
        })
        .await;
    }
    // The members' sidecars cannot ask the other members, which refuse their new certificates, whether a restart is safe. The
    // operator restarts each member, as docs/authorities.md says.
    for (n, place) in live.places.iter().enumerate() {
        live.kill(n, "etcd").await;
        let (etcd, url) = (EtcdClient::plain(), place.metrics_url());
        eventually("healthy again", LIMIT, || async {
            let ends = live.seen.ends();
            if ends > before + n { etcd.healthy(&url).await.map_err(|e| e.to_string()) } else { Err(format!("{ends}")) }
        })
        .await;
    }
    // Clients go on once they have the new CA, and what the old one has signed opens nothing.
    let client = live.work().files;
    for place in &live.places {
        let url = place.client_url();
        eventually(&format!("a write at {}", place.name), LIMIT, || async {
            EtcdClient::with_files(&client).put(&url, "k", "v").await
        })
        .await;
        eventually(&format!("{} to refuse the old CA", place.name), LIMIT, || async {
            match answer(&url, leaked.path()).await {
                Answer::Refused => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    say(&format!("forced in {:.0?}", start.elapsed()));
}

/// The command at a terminal, where somebody types `answer`.
async fn at_a_terminal(live: &Live, answer: &str) -> String {
    let webhook = binary("etcd-tls-webhook");
    let line = format!("{} rollover {NAMESPACE}/etcd --domain client --force", webhook.display());
    let mut command = Command::new("bash");
    command.args(["-c", r#"printf '%s\n' "$1" | script -qec "$2" /dev/null"#, "script", answer, &line]);
    command.env("KUBECONFIG", &live.installation.api.kubeconfig);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("run").expect("run the command");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
