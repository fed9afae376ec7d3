//! step-issuer itself, with step-ca: the scenario of an external issuer, and what step-ca makes of requests.

use std::time::Duration;

use tests::{
    cert_manager::{itself::Programs, step::Step},
    pages,
};

use crate::{
    approving::{lab, pod},
    approving_rules::Sidecar,
    external::{ISSUER, NAMESPACE, scenario, without_its_approver},
    scene::{LIMIT, Lab},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_issuer_is_requested_from_by_step_issuer_itself() {
    let Some(programs) = Step::find() else { return };
    let itself = Programs::named().is_some();
    let Some(lab) = (if itself { Lab::of_cert_manager_itself().await } else { lab().await }) else { return };
    let _of_cert_manager = itself.then(|| without_its_approver(&lab));
    let [template] = &pages::blocks("issuers.md", "step-issuer")[..] else { panic!("one block") };
    let mut step = Step::start(&lab.api, &programs, NAMESPACE, Some(template)).await;
    let approve = scenario(&lab, step.root()).await;

    let argument = format!("--issuer={ISSUER}");
    let annotations = [("issuer", ISSUER), ("roles", "peer,client")];
    let member = pod(&lab, NAMESPACE, "etcd-2", &annotations).await;
    let mut sidecar = Sidecar::new(&lab, NAMESPACE, &member, "peer", step.root(), &argument).await;
    let client = Sidecar::new(&lab, NAMESPACE, &member, "client", step.root(), &argument).await;
    let said = |what: &str, log: String| panic!("{what}: {log}\n{}\n{}", step.log(), approve.log_end());
    sidecar.init().await.unwrap_or_else(|log| said("a member", log));
    let chain = sidecar.chain("peer");
    assert_eq!((chain.certificates.len(), &*chain.authority()), (2, "CN=step root CA"), "with its intermediate");
    assert_eq!(chain.common_name, "system:etcd-peer:etcd-2");
    assert!(sidecar.subject("peer").contains("system:etcd-peers"), "{}", sidecar.subject("peer"));
    assert!(chain.not_after.duration_since(chain.not_before).expect("a life") >= Duration::from_secs(24 * 3600));
    client.init().await.unwrap_or_else(|log| said("a client", log));

    // Away, step-issuer fails the request for good; the files stay, and the next request is another one.
    step.stop();
    sidecar.move_to(&lab, NAMESPACE, &member, "10.9.9.9").await;
    sidecar.says("failed", "Failed to sign certificate request").await;
    assert_eq!(sidecar.chain("peer").serial, chain.serial, "the files stay");
    step.run(Some(template)).await;
    sidecar.obtain().await;
    assert_ne!(sidecar.chain("peer").serial, chain.serial);

    // By its default template it keeps no organization, and adds server auth to whatever it signs.
    step.run(None).await;
    sidecar.move_to(&lab, NAMESPACE, &member, "10.9.9.10").await;
    sidecar.obtain().await;
    assert!(!sidecar.subject("peer").contains("system:etcd-peers"), "{}", sidecar.subject("peer"));
    let client = Sidecar::new(&lab, NAMESPACE, &member, "client", step.root(), &argument).await;
    let mut init = client.start();
    init.logged("the issuer added usages that were not asked for: server auth", LIMIT).await;
    init.kill();
}
