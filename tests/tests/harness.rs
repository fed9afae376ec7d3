//! The harness itself: what it starts works, and what it drops is gone.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Pod};
use kube::{Api, api::PostParams};
use serde_json::json;
use tests::{
    apiserver::ApiServer,
    etcd::{EtcdCluster, MemberTls},
    etcd_client::EtcdClient,
    pki::{Ca, LeafOptions},
    temp::TempDir,
    tier,
    workload::{self, Workload},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_serve_over_tls() {
    let Some(binary) = tier::etcd() else { return };
    let (ca, files) = (Ca::new("etcd"), TempDir::new("harness"));
    let mut cluster = EtcdCluster::new(&binary, 3).with_tls(|member| {
        let options = LeafOptions { ips: vec![member.address, Ipv4Addr::LOCALHOST.into()], ..Default::default() };
        let [server, peer] = ["server", "peer"].map(|role| files.join(format!("{}/{role}", member.name)));
        ca.write_role(&server, &options);
        ca.write_role(&peer, &options);
        MemberTls { server: Some(server), peer: Some(peer) }
    });
    cluster.start().await;
    let client_files = files.dir("client");
    ca.write_role(&client_files, &LeafOptions { server: false, ..Default::default() });
    let client = EtcdClient::with_files(&client_files);

    let urls: Vec<_> = cluster.members.iter().map(|m| m.client_url()).collect();
    let mut connection = client.connect(&urls[0]).await.expect("connect");
    assert!(!connection.serial.is_empty());
    let revision = connection.put("a", "1").await.expect("put");
    let mut watch = client.connect(&urls[1]).await.expect("connect").watch("a", revision).await.expect("watch");
    client.put(&urls[2], "ab", "2").await.expect("put");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.expect("the watch goes on").into_iter().map(|e| (e.key, e.value)));
    }
    assert_eq!(seen, [("a".into(), "1".into()), ("ab".into(), "2".into())]);
    assert_eq!(client.get(&urls[1], "a").await.expect("get").as_deref(), Some("1"));

    let plain = EtcdClient::with_files(&files.join("nobody")).connect(&urls[0]).await;
    assert!(plain.is_err(), "no files, no connection");
    let stranger = files.dir("stranger");
    Ca::new("another").write_role(&stranger, &LeafOptions::default());
    std::fs::write(stranger.join("ca.crt"), &ca.pem).expect("write");
    let refused = EtcdClient::with_files(&stranger).put(&urls[0], "b", "3").await;
    assert!(refused.is_err(), "a client of another authority wrote");

    let workload = Workload::start(workload::Options::new(urls.clone(), &client_files));
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.members[0].stop().await;
    assert!(!cluster.members[0].is_healthy().await);
    client.put(&urls[1], "a", "4").await.expect("two of three are a quorum");
    cluster.members[0].spawn();
    cluster.members[0].healthy(Duration::from_secs(60)).await;
    let report = workload.stop().await.expect("an account");
    assert!(report.writes > 0 && report.connections > 0, "{report}");
    assert!(report.failed == 0 && report.lost.is_empty() && report.unseen.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_knows_a_pod_by_its_bound_token() {
    let Some(api) = ApiServer::shared().await else { return };
    api.namespace("harness", &[]).await;
    let spec = json!({"containers": [{"name": "c", "image": "example/image"}]});
    let pod = api.pod("harness", json!({"metadata": {"name": "p"}, "spec": spec})).await.expect("create a pod");
    let pod_with_ip = api.set_pod_ips("harness", "p", &[Ipv4Addr::new(10, 0, 0, 7).into()]).await;
    assert_eq!(pod_with_ip.status.and_then(|s| s.pod_ip).as_deref(), Some("10.0.0.7"));
    let token = api.token("harness", "default", Some(&pod)).await;
    let client = api.client_with_token(&token).await;
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .expect("review");
    let user = review.status.and_then(|s| s.user_info).expect("a user");
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:harness:default"));
    let extra = user.extra.expect("a bound token's extra");
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.metadata.uid.expect("uid")]);
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node-1"]);
    let forbidden = Api::<Pod>::namespaced(client, "harness").get("p").await.expect_err("a pod may read no pods");
    assert!(matches!(forbidden, kube::Error::Api(status) if status.code == 403));
    assert!(api.kubectl(&["get", "pods", "-n", "harness"]).contains("Running"));
}
