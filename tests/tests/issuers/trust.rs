//! `trust: issuer`: the bundle comes with the issuer's answers, on a real API server.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::certificate::{Bundle, Chain};
use tests::{cert_manager::Behaviour, etcd_client::EtcdClient, eventually};

use crate::scene::{Kind, LIMIT, Lab, Scene};

fn bundle(pem: &str) -> Bundle {
    Bundle::parse(pem.as_bytes()).expect("CAs")
}

async fn metrics(port: u16) -> Result<String, String> {
    let url = format!("http://127.0.0.1:{port}");
    let mut http = EtcdClient::plain().connect(&url).await.map_err(|e| e.to_string())?;
    http.get("/metrics").await.map_err(|e| e.to_string())
}

/// Waits until the metrics have all of these lines.
async fn shown(port: u16, lines: &[&str]) {
    eventually(&format!("{lines:?}"), LIMIT, || async {
        let metrics = metrics(port).await?;
        if lines.iter().all(|line| metrics.lines().any(|l| l == *line)) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bundle_comes_with_the_issuers_answers() {
    let Some(lab) = Lab::new().await else { return };
    let mut scene = Scene::new(&lab, "cm", Kind::CertManager).await;
    scene.takes_the_bundle_of_the_issuer();
    let old = bundle(&scene.issuer.ca());

    // Without any bundle, an answer without a CA brings no certificate, and says why.
    scene.issuer.behave(Behaviour::NoCa);
    let failure = scene.init().await.expect_err("no certificate");
    assert!(failure.contains("the issuer's answer has no CA (status.ca)"), "{failure}");
    scene.issuer.behave(Behaviour::Sign);
    scene.init().await.expect("certificates");
    assert_eq!((scene.issuers(), scene.bundle()), (["CN=company CA".to_owned()].into(), old.clone()));

    // With one, the bundle in use stays, and the absence is said.
    scene.issuer.behave(Behaviour::NoCa);
    scene.move_to("10.0.0.2");
    let mut init = scene.start("init", &[]);
    assert!(init.wait(LIMIT).await.success(), "{}", init.log());
    assert!(init.log().contains("the issuer's answer has no CA (status.ca)"), "{}", init.log());
    assert_eq!(scene.bundle(), old);
    let long = Chain::parse(&scene.files()["peer/tls.crt"]).expect("a chain");

    // A CA that is swapped with no overlap: trusted at once beside the old one; the leaf waits, and it is shown for whom.
    scene.issuer.behave(Behaviour::Life(Duration::from_secs(90)));
    scene.forget_files();
    scene.init().await.expect("certificates");
    let before = scene.files();
    let both = old.union(&bundle(&scene.issuer.replace_ca("next CA")));
    let port = tests::ports::loopback();
    let mut run = scene.start("run", &[&format!("--admin-port={port}")]);
    shown(
        port,
        &[
            "etcd_tls_issuer_states_ca{} 1",
            "etcd_tls_certificate_waits{role=\"peer\",ca=\"CN=next CA\"} 1",
            "etcd_tls_certificate_waits_for_member{role=\"peer\",member=\"unknown\"} 1",
            "etcd_tls_certificate_waits_for_member{role=\"server\",member=\"unknown\"} 1",
        ],
    )
    .await;
    eventually("both CAs", LIMIT, || async { if scene.bundle() == both { Ok(()) } else { Err("not both") } }).await;
    assert!(run.log().contains("the issuer's CA was changed with no overlap"), "{}", run.log());
    let after = scene.files();
    for file in ["peer/tls.crt", "server/tls.crt", "peer/tls.key"] {
        assert_eq!(before[file], after[file], "{file}: the old one stays");
    }
    // Before the old one ends, the new one is used all the same.
    eventually("certificates of the next CA", LIMIT, || async {
        let issuers = scene.issuers();
        if issuers == ["CN=next CA".to_owned()].into() { Ok(()) } else { Err(format!("{issuers:?}")) }
    })
    .await;
    // The old CA leaves when no certificate of it can be in use.
    let next = bundle(&scene.issuer.ca());
    eventually("the old CA to leave", LIMIT, || async {
        let now = scene.bundle();
        if now == next { Ok(()) } else { Err(format!("{}: {}", now == both, run.log())) }
    })
    .await;
    run.kill();
    // The life that counts is the pod's own: one of the old CA that lives longer, as a client may have it, is refused by now.
    assert!(long.not_after > SystemTime::now() && !scene.bundle().contains_issuer_of(&long));

    // A certificate of a CA that no answer has named is refused at once: no bundle is to come.
    scene.issuer.behave(Behaviour::NoCa);
    scene.issuer.replace_ca("a CA that is not named");
    scene.move_to("10.0.0.3");
    let files = scene.files();
    let mut init = scene.start("init", &[]);
    init.logged("the certificate is of CN=a CA that is not named", LIMIT).await;
    init.kill();
    // All runs write one log.
    let log = init.log();
    let log = log.rsplit("etcd_tls_sidecar::cli: etcd-tls-sidecar version").next().expect("the last run");
    assert!(log.contains("is not installed"), "{log}");
    assert!(!log.contains("waiting for the clock or for the trust bundle"), "{log}");
    assert_eq!(scene.files(), files);
}
