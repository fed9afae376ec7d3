//! Pod certificates that a killed signer issued and did not record.

use etcd_tls_contract::certificate::Chain;
use k8s_openapi::api::core::v1::Pod;
use tests::eventually;

use super::{LIMIT, Lab, sign, signer};

/// The next leader finds in the requests what a killed one issued and did not record.
pub async fn by_the_next_leader(lab: &mut Lab, pod: &Pod) {
    for _ in 0..20 {
        let request = lab.request(pod, &signer("peer"), |_| {}).await;
        lab.ask(&request).await;
        let (kind, _, status) = lab.answer(&request).await;
        lab.sign.kill();
        assert_eq!(kind, "Issued", "{status}");
        let serial =
            Chain::parse(status["certificateChain"].as_str().expect("a chain").as_bytes()).expect("a chain").serial;
        let killed_in_time = lab.recorded(&serial).await.is_err();
        lab.sign = sign(&lab.api).await;
        if killed_in_time {
            lab.sign.logged("recorded what the leader before had issued and not recorded", LIMIT).await;
            return eventually("the record of what was issued", LIMIT, || lab.recorded(&serial)).await;
        }
    }
    panic!("a certificate is recorded some time after it was issued");
}
