//! Issuers of other projects on a real API server, with the rights and policies as shipped: the same scenarios for
//! CertificateRequests of cert-manager and for CertificateSigningRequests of a foreign signer. Their controllers are the
//! stand-in of `tests::cert_manager`, and cert-manager itself where the machine has it.

#[path = "issuers/account.rs"]
mod account;
#[path = "issuers/approver_policy.rs"]
mod approver_policy;
#[path = "issuers/approving.rs"]
mod approving;
#[path = "issuers/approving_check.rs"]
mod approving_check;
#[path = "issuers/approving_rules.rs"]
mod approving_rules;
#[path = "issuers/bundles.rs"]
mod bundles;
#[path = "issuers/cleaning.rs"]
mod cleaning;
#[path = "issuers/external.rs"]
mod external;
#[path = "issuers/kube_signer.rs"]
mod kube_signer;
#[path = "issuers/many.rs"]
mod many;
#[path = "issuers/page.rs"]
mod page;
#[path = "issuers/policy.rs"]
mod policy;
#[path = "issuers/projected.rs"]
mod projected;
#[path = "issuers/queue.rs"]
mod queue;
#[path = "issuers/scene.rs"]
mod scene;
#[path = "issuers/stand_in.rs"]
mod stand_in;
#[path = "issuers/step.rs"]
mod step;
#[path = "issuers/swap.rs"]
mod swap;
#[path = "issuers/trust.rs"]
mod trust;

use std::time::Duration;

use etcd_tls_contract::duration::parse_duration;
use scene::{Kind, LIMIT, Lab, Scene};
use tests::{cert_manager::Behaviour, etcd_client::EtcdClient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_life_under_each_issuer() {
    let Some(lab) = Lab::new().await else { return };
    let (by_cert_manager, by_signer) =
        (Scene::new(&lab, "cm", Kind::CertManager).await, Scene::new(&lab, "csr", Kind::Signer).await);
    tokio::join!(scenarios(by_cert_manager), scenarios(by_signer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_life_under_cert_manager_itself() {
    let Some(lab) = Lab::of_cert_manager_itself().await else { return };
    // One after the other: both issuers are of one controller, which is stopped now and then.
    let scene = Scene::new(&lab, "cm", Kind::CertManager).await;
    scene.init().await.expect("certificates");
    for request in scene.requests().await {
        // By its webhook.
        assert_eq!(request["spec"]["username"], "system:serviceaccount:cm:default", "{request}");
        scene.forget_request(&request).await;
    }
    scene.forget_files();
    scenarios(scene).await;

    let mut scene = Scene::new(&lab, "csr", Kind::Signer).await;
    let refused = scene.init().await.expect_err("without the right to reference the Issuer");
    assert!(refused.contains("Requester may not reference Namespaced Issuer csr/company"), "{refused}");
    lab.grant_reference("csr");
    for request in scene.requests().await {
        scene.forget_request(&request).await;
    }
    scene.forget_files();
    scene.move_to("10.0.0.1");
    scenarios(scene).await;
}

async fn scenarios(mut scene: Scene<'_>) {
    issues(&mut scene).await;
    is_found_again_and_waits_for_the_issuer(&mut scene).await;
    keeps_its_files_at_every_answer_of_the_issuer(&mut scene).await;
    follows_a_change_of_the_ca(&mut scene).await;
    keeps_a_chain_whole(&mut scene).await;
    renews(&mut scene).await;
    leaves_nothing_behind(&mut scene).await;
}

async fn issues(scene: &mut Scene<'_>) {
    scene.init().await.expect("certificates");
    assert_eq!(scene.issuers().len(), 1, "of one CA");
    let requests = scene.requests().await;
    assert_eq!(requests.len(), 2, "one for each role: {requests:?}");
    for request in requests {
        let uid = scene.uid();
        assert!(request["metadata"]["name"].as_str().expect("a name").starts_with(&format!("etcd-tls-{uid}-")));
        if scene.kind == Kind::CertManager {
            assert_eq!(request["metadata"]["annotations"]["etcd-tls.dev/pod"], "etcd-0");
            assert_eq!(request["metadata"]["ownerReferences"][0]["uid"], uid);
            assert_eq!(request["spec"]["issuerRef"]["name"], "company");
            // cert-manager's webhook writes `24h0m0s`.
            let life = parse_duration(request["spec"]["duration"].as_str().expect("a duration"));
            assert_eq!(life.ok(), Some(Duration::from_secs(24 * 3600)));
            assert!(request["spec"].get("isCA").is_none());
        }
    }
    // Valid files on disk are used, from any signer.
    scene.init().await.expect("certificates");
    assert_eq!(scene.requests().await.len(), 2);
}

async fn is_found_again_and_waits_for_the_issuer(scene: &mut Scene<'_>) {
    for (behaviour, address) in [(Behaviour::Away, "10.0.0.2"), (Behaviour::Pending, "10.0.0.12")] {
        scene.issuer.behave(behaviour.clone());
        scene.move_to(address);
        let before = scene.requests().await.len();
        let mut first = scene.start_until_requested(before + 2).await;
        if behaviour == Behaviour::Pending && scene.kind == Kind::CertManager {
            scene.pending(2).await;
        }
        first.kill();
        let mut second = scene.start("init", &[]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let slow = second.log().contains("the API server has not answered");
        assert!(second.running() || slow, "{}", second.log());
        scene.issuer.behave(Behaviour::Sign);
        assert!(second.wait(LIMIT).await.success(), "{}", second.log());
        scene.obtain().await;
        assert_eq!(scene.requests().await.len(), before + 2, "{behaviour:?}: the pending requests are found again");
    }
}

async fn keeps_its_files_at_every_answer_of_the_issuer(scene: &mut Scene<'_>) {
    scene.move_to("10.0.0.3");
    let files = scene.files();
    let said = |text: &str| text.to_owned();
    let failure = scene.issuer.reason_of_failure().unwrap_or("the HSM is on fire").to_owned();
    let mut cases = vec![
        (Behaviour::Deny(said("not this pod")), "not this pod", "was denied"),
        (Behaviour::Fail(failure.clone()), &*failure, "failed"),
        (Behaviour::Forget, "does not hold 10.0.0.3", "is not installed"),
        (Behaviour::AnotherKey, "for another key than ours", "is not installed"),
    ];
    if scene.kind == Kind::CertManager {
        cases.push((Behaviour::Invalid(said("no such profile")), "no such profile", "is invalid"));
        cases.push((Behaviour::Rubbish(said("<html>")), "", "is not installed"));
        cases.push((Behaviour::Rubbish(String::new()), "without a certificate", "failed"));
    }
    cases.retain(|(behaviour, ..)| scene.issuer.can(behaviour));
    for (behaviour, reason, verdict) in cases {
        scene.issuer.behave(behaviour.clone());
        scene.forget_log();
        tests::eventually("the issuer's answer to be said", LIMIT, || async {
            // The certificates there lack an address, and etcd can start with them.
            let mut init = scene.start("init", &[]);
            assert!(init.wait(LIMIT).await.success(), "{behaviour:?}: {}", init.log());
            assert_eq!(scene.files(), files, "{behaviour:?}: the files stay");
            let log = init.log();
            let said = log.lines().any(|line| {
                line.contains(verdict) && line.contains(reason) && line.contains("the certificate on disk stays in use")
            });
            // An API server that needs half a second for an answer is taken for none.
            if said { Ok(()) } else { Err(format!("{behaviour:?}: {log}")) }
        })
        .await;
    }
    scene.issuer.behave(Behaviour::Sign);
    scene.obtain().await;
    assert_ne!(scene.files(), files);
}

async fn follows_a_change_of_the_ca(scene: &mut Scene<'_>) {
    let old = scene.issuer.ca();
    let next = scene.issuer.replace_ca("next CA");
    scene.publish(&format!("{old}{next}"));
    scene.move_to("10.0.0.4");
    scene.obtain().await;
    assert_eq!(scene.issuers(), ["CN=next CA".to_owned()].into());

    // Without overlap: the leaf waits for the bundle, and the log names whom it waits for.
    let files = scene.files();
    let last = scene.issuer.replace_ca("last CA");
    scene.move_to("10.0.0.5");
    let mut init = scene.start("init", &[]);
    init.logged("the certificate is of CN=last CA", LIMIT).await;
    waits_are_shown(scene).await;
    assert_eq!(scene.files(), files, "the old files stay");
    scene.publish(&last);
    assert!(init.wait(LIMIT).await.success(), "{}", init.log());
    // On a slow machine that one has gone on with the old files, and so may the next one.
    tests::eventually("certificates of the last CA", LIMIT, || async {
        scene.init().await?;
        let issuers = scene.issuers();
        if issuers == ["CN=last CA".to_owned()].into() { Ok(()) } else { Err(format!("{issuers:?}")) }
    })
    .await;
}

/// Of an issuer whose CA is an intermediate: the bundle has the root alone, so a peer has to be sent what is between.
async fn keeps_a_chain_whole(scene: &mut Scene<'_>) {
    scene.publish(&scene.issuer.replace_ca_by_intermediate("root CA"));
    scene.move_to("10.0.0.6");
    scene.obtain().await;
    for chain in scene.chains() {
        assert_eq!((chain.certificates.len(), &*chain.authority()), (2, "CN=root CA"));
    }
    for role in ["peer", "server"] {
        scene.verified(role);
    }
}

/// The metric by which `status` says whom a certificate waits for.
async fn waits_are_shown(scene: &Scene<'_>) {
    let port = tests::ports::loopback();
    // The other process has the directory of the certificates.
    let mut run = scene.start_in("others", "run", &[&format!("--admin-port={port}")]);
    tests::eventually("the CA that is waited for", LIMIT, || async {
        let url = format!("http://127.0.0.1:{port}");
        let mut http = EtcdClient::plain().connect(&url).await.map_err(|e| e.to_string())?;
        let metrics = http.get("/metrics").await.map_err(|e| e.to_string())?;
        let waits =
            |role| metrics.contains(&format!("etcd_tls_certificate_waits{{role=\"{role}\",ca=\"CN=last CA\"}} 1"));
        if waits("peer") && waits("server") { Ok(()) } else { Err(metrics) }
    })
    .await;
    run.kill();
}

async fn renews(scene: &mut Scene<'_>) {
    scene.forget_files();
    let admin = format!("--admin-port={}", tests::ports::loopback());
    let short = Behaviour::Life(Duration::from_secs(20));
    if !scene.issuer.can(&short) {
        renews_by_annotation(scene, &admin).await;
        return;
    }
    scene.issuer.behave(short);
    let mut run = scene.start("run", &[&admin]);
    let mut seen = std::collections::BTreeSet::new();
    tests::eventually("two renewals", LIMIT, || {
        seen.extend(scene.serial());
        let seen = seen.len();
        async move { if seen >= 3 { Ok(()) } else { Err(format!("{seen} certificates")) } }
    })
    .await;
    run.logged("the issuer gave a life of", LIMIT).await;
    run.kill();
    scene.issuer.behave(Behaviour::Sign);
}

/// The shortest life that cert-manager and the policy take is ten minutes.
async fn renews_by_annotation(scene: &Scene<'_>, admin: &str) {
    let mut run = scene.start("run", &[admin]);
    let mut seen = std::collections::BTreeSet::new();
    for value in ["first", "second"] {
        tests::eventually("another certificate", LIMIT, || {
            let new = scene.serial().is_some_and(|serial| seen.insert(serial));
            async move { if new { Ok(()) } else { Err("none") } }
        })
        .await;
        scene.renew(value);
    }
    tests::eventually("the second renewal", LIMIT, || {
        let new = scene.serial().is_some_and(|serial| seen.insert(serial));
        let log = run.log_end();
        async move { if new { Ok(()) } else { Err(log) } }
    })
    .await;
    run.kill();
}

/// A pod that goes while its request is open: cert-manager's requests are the pod's, and Kubernetes collects them. Those
/// that the certificates API keeps go by their age.
async fn leaves_nothing_behind(scene: &mut Scene<'_>) {
    scene.forget_files();
    scene.issuer.behave(Behaviour::Away);
    let before = scene.requests().await.len();
    let mut init = scene.start("init", &[]);
    scene.requested(before + 2).await;
    scene.delete_pod().await;
    init.kill();
    if scene.kind == Kind::CertManager {
        scene.gone().await;
    }
}
