//! What our own programs dial: a member whose certificate is revoked is nobody that they speak to, as etcd does not check that.

use std::{fs, process::Command};

use etcd_tls_contract::role::Role;
use etcd_tls_sidecar::etcd::Client;
use tests::{
    etcd::EtcdBinary,
    eventually,
    live::{LIMIT, Live, Place},
    process::binary,
    revocation::{ended, revoke},
    say, tier,
};

use super::live::CLUSTER;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_certificate_is_revoked_is_not_healthy_for_our_own_programs() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        not_healthy(&etcd).await;
        say(&format!("etcd {}: our dialler refused a revoked server", etcd.version));
    }
}

async fn not_healthy(etcd: &EtcdBinary) {
    let Some(live) = Live::start(etcd, "5400s", None).await else { return };
    let admin = live.installation.api.kubeconfig.clone();
    let (client_url, peer_url) = (live.places[2].client_url(), live.places[2].peer_url());
    let (server, peer) = (live.leaf(2, Role::Server).serial, live.leaf(2, Role::Peer).serial);
    // As the first member's sidecar dials the third member: with the files of now.
    let of = |role: Role| live.certs[0].join(role.as_str());
    let healthy = async || {
        let endpoint = client_url.parse().expect("a URL");
        Client::from_dir(&of(Role::Server))
            .map_err(|e| e.to_string())?
            .health(&endpoint)
            .await
            .map_err(|e| e.to_string())
    };
    let dials = async || {
        let endpoint = peer_url.parse().expect("a URL");
        Client::from_dir(&of(Role::Peer))
            .map_err(|e| e.to_string())?
            .dial_peer(&endpoint)
            .await
            .map_err(|e| e.to_string())
    };
    healthy().await.expect("healthy");
    dials().await.expect("it takes us for a peer");

    for serial in [&server, &peer] {
        let said = revoke(&admin, &[CLUSTER, "--serial", serial, "--at-once"]).await.expect("revoked");
        assert!(said.contains("is revoked until"), "{said}");
    }
    let says = |serial: &str, said: Result<(), String>| match said {
        Err(error) if error.contains(&format!("the server's certificate is revoked: serial number {serial} is on")) => {
            Ok(error)
        }
        said => Err(format!("{said:?}")),
    };
    let error =
        eventually("its server certificate is refused", LIMIT, || async { says(&server, healthy().await) }).await;
    say(&error);
    eventually("its peer certificate is refused", LIMIT, || async { says(&peer, dials().await) }).await;
    // Serial numbers of the other domain, and other members, are nothing to it.
    for url in live.places[..2].iter().map(Place::client_url) {
        let endpoint = url.parse().expect("a URL");
        Client::from_dir(&of(Role::Server)).expect("files").health(&endpoint).await.expect("another member is healthy");
    }

    // `check` on the way to TLS.
    let files = of(Role::Server);
    let mut check = Command::new(binary("etcd-tls-webhook"));
    let urls: Vec<String> = live.places.iter().map(Place::client_url).collect();
    check.args(["check", "--endpoints", &urls.join(",")]).arg("--cacert").arg(files.join("ca.crt"));
    check.arg("--cert").arg(files.join("tls.crt")).arg("--key").arg(files.join("tls.key"));
    let output = check.output().expect("run");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("serial number {server} is on")) && output.status.code() == Some(3), "{text}");

    // The sidecars restart nobody beside it, and say why. The number is nobody's.
    let arguments = [CLUSTER, "--serial", "4f0a", "--at-once", "--cut", "--timeout=15s"];
    let (code, said) = ended(&admin, &arguments).await.expect_err("no member may restart");
    assert_eq!(code, Some(75), "{said}");
    let log = live.log(0, "etcd-tls-sidecar").await;
    assert!(log.contains(&format!("serial number {server} is on")), "{said}\n{log}");
    assert_eq!(live.seen.ends(), 0, "{said}");

    // When it is taken back, they do what was asked.
    for serial in [&server, &peer] {
        revoke(&admin, &[CLUSTER, "--serial", serial, "--undo"]).await.expect("taken back");
    }
    live.settled(3).await;
    healthy().await.expect("healthy again");
    // A list that cannot be read: nobody is spoken to, as etcd takes nobody.
    let copy = live.installation.api.directory().dir("damaged-list");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        fs::copy(files.join(name), copy.join(name)).expect("copy");
    }
    assert!(Client::from_dir(&copy).is_ok(), "without a list, by the bundle alone");
    fs::write(copy.join("ca.crl"), "garbage").expect("write");
    let error = Client::from_dir(&copy).err().expect("refused").to_string();
    assert!(error.contains("ca.crl") && error.contains("cannot be read"), "{error}");
}
