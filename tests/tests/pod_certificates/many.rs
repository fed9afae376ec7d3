//! More requests at once than `sign` keeps of one namespace: each gets its own pod's certificate. With `ETCD_TLS_SOAK` they are 3,200.

use etcd_tls_contract::certificate::Chain;
use futures::{StreamExt as _, stream};
use kube::{ResourceExt as _, api::ListParams};
use tests::{eventually, tier};

use super::{LIMIT, Lab, sign, signer};

const EACH: usize = 4;
const DOMAINS: [&str; 2] = ["peer", "client"];
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_thousand_requests_at_once_get_their_own_pods_certificates() {
    let Some(mut lab) = Lab::new().await else { return };
    let count = if tier::soaking() { 400 } else { 150 };
    let expected = count * EACH * DOMAINS.len();
    // They wait for a signer that is away.
    lab.sign.kill();
    let pods = stream::iter(0..count).map(|n| {
        let lab = &lab;
        async move {
            let pod = lab.pod(&format!("etcd-{n}"), "peer,server", |_| {}).await;
            for domain in DOMAINS.into_iter().cycle().take(DOMAINS.len() * EACH) {
                lab.ask(&lab.request(&pod, &signer(domain), |_| {}).await).await;
            }
        }
    });
    pods.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    lab.sign = sign(&lab.api).await;
    let items = eventually("all to be answered", LIMIT, || async {
        let all = lab.requests(&lab.api.client).list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        let answered = all.iter().filter(|item| item.data["status"]["conditions"].is_array()).count();
        if answered == expected { Ok(all) } else { Err(format!("{answered} of {}: {}", all.len(), lab.sign.log_end())) }
    })
    .await;
    for item in items {
        let (name, status) = (item.name_any(), &item.data["status"]);
        assert_eq!(status["conditions"][0]["type"], "Issued", "{name}: {status}");
        let chain = Chain::parse(status["certificateChain"].as_str().expect("a chain").as_bytes()).expect("a chain");
        let pod = item.data["spec"]["podName"].as_str().expect("a pod");
        let domain = item.data["spec"]["signerName"].as_str().expect("a signer").split('.').next().expect("a domain");
        let role = if domain == "peer" { "peer" } else { "server" };
        assert_eq!(chain.common_name, format!("system:etcd-{role}:{pod}"), "{name}");
    }
    assert!(lab.sign.running(), "{}", lab.sign.log_end());
}
