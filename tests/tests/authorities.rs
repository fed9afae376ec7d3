//! Tier 2: what becomes of a cluster's authorities, and of the policy's rules, when the cluster or its namespace is gone. On a real API
//! server, with the rights as shipped.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::time::Duration;

use etcd_tls_contract::{
    names::{self, SYSTEM_NAMESPACE},
    role::Role,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use lab::{Asking, LIMIT, Lab};
use serde_json::{Value, json};
use signer::{cas, issue, issued, member, sign, sign_with, trust};
use tests::{eventually, ports};

/// Changes the state in the Secret of an authority, as if the signer had written it.
async fn edit_state(lab: &Lab, secret: &str, change: impl Fn(&mut Value)) {
    let api: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    eventually(&format!("a change of Secret {secret}"), LIMIT, || async {
        let mut object = api.get(secret).await.map_err(|e| e.to_string())?;
        let data = object.data.as_mut().ok_or("no data")?;
        let mut state: Value = serde_json::from_slice(&data["state.json"].0).map_err(|e| e.to_string())?;
        change(&mut state);
        data.insert("state.json".to_owned(), ByteString(state.to_string().into_bytes()));
        api.replace(secret, &PostParams::default(), &object).await.map(|_| ()).map_err(|e| e.to_string())
    })
    .await;
}

/// A time in the past, as the state has it.
fn ago(duration: Duration) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::try_from(duration).expect("a duration");
    jiff::Timestamp::from_second(at.as_second()).expect("a time").to_string()
}

/// A policy's grant by a namespace's name outlives the namespace, unless it states the uid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_made_again_has_no_right_of_a_policy_that_states_the_uid() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    member(&lab, "prod", "etcd-0", Some("10.6.0.1")).await;
    let web = lab.api.namespace("web", &[("etcd-tls", "dynamic")]).await.metadata.uid.expect("a uid");
    let rules = "crossNamespace: [{from: web, to: prod/etcd, roles: [client]}]\n\
                 users: [{namespace: web, serviceAccounts: [default], users: [backup]}]\n";
    let annotations = json!({
        "etcd-tls.dev/roles": "client", "etcd-tls.dev/issuer": "csr:client.etcd-tls.dev/prod.etcd",
        "etcd-tls.dev/user": "backup",
    });
    let client = |name: &'static str| lab.pod_with("web", name, json!({}), annotations.clone(), Some("10.6.0.2"));
    let ask = async |pod: &Pod| {
        let asking = Asking::of(pod, Role::Client).signer("client.etcd-tls.dev/prod.etcd");
        asking.create_when_allowed(&lab.requester(pod).await).await;
        asking.name
    };
    lab.set_policy(&format!("{rules}namespaceUids: {{web: {web}}}\n")).await;
    let pod = client("app-0").await;
    issued(&lab, &ask(&pod).await).await;

    lab.api.delete_pod("web", "app-0").await;
    signer::delete_namespace(&lab, "web").await;
    signer::namespace_again(&lab, "web").await;
    let pod = client("app-1").await;
    let message = lab.denied(&ask(&pod).await).await;
    assert!(message.contains("WrongNamespace") && message.contains("WrongUser"), "{message}");
    lab.event_of(SYSTEM_NAMESPACE, names::POLICY_CONFIG_MAP, "namespace web has the uid").await;

    // By its name alone it has them all, as docs/security.md says.
    lab.set_policy(rules).await;
    issued(&lab, &ask(&pod).await).await;
    lab.set_policy("").await;
}

/// By creating pods, one used up a namespace's authorities for good, cluster after cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_authority_is_said_and_makes_room_and_one_in_use_is_kept() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let admin = ports::loopback();
    let url = lab.api.url.clone();
    let signer = sign_with(&lab, "sign-a", &url, admin, &["--max-lifetime", "8s"]).await;
    lab.ready(&approver).await;
    lab.set_policy("authoritiesPerNamespace: 8\nidleAuthorities: 720h").await;
    lab.api.namespace("ci", &[("etcd-tls", "dynamic")]).await;
    let member_of = async |cluster: &str, ip: &str| {
        let (name, annotations) = (format!("{cluster}-0"), json!({"etcd-tls.dev/cluster": cluster}));
        let pod = lab.pod_with("ci", &name, json!({}), annotations, Some(ip)).await;
        trust(&lab, "ci", cluster).await;
        issue(&lab, &pod, Role::Peer, None).await;
        issue(&lab, &pod, Role::Server, None).await;
        pod
    };
    member_of("used", "10.8.0.1").await;
    member_of("gone", "10.8.0.2").await;
    member_of("marked", "10.8.0.3").await;
    member_of("longer", "10.8.0.4").await;
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let of = async |cluster: &str| -> Vec<String> {
        let all = cas(&lab, "ci").await;
        all.into_iter().filter(|name| name.contains(&format!("-{cluster}-"))).collect()
    };
    let mark = Patch::Merge(json!({"metadata": {"annotations": {"etcd-tls.dev/keep": "true"}}}));
    secrets.patch(&of("marked").await[0], &PatchParams::default(), &mark).await.expect("mark a Secret");
    for pod in ["gone-0", "marked-0", "longer-0"] {
        lab.api.delete_pod("ci", pod).await;
    }
    // A cluster of which one has no room: eight are there.
    let annotations = json!({"etcd-tls.dev/cluster": "new"});
    let pod = lab.pod_with("ci", "new-0", json!({}), annotations, Some("10.8.0.5")).await;
    lab.event_of("ci", &names::trust_config_map("new"), "authoritiesPerNamespace").await;
    let said =
        |cluster: &str| format!("the certificate authorities of ci/{cluster}, and no certificate of theirs is valid");
    for cluster in ["gone", "longer"] {
        lab.event_of("ci", &names::trust_config_map(cluster), &said(cluster)).await;
    }
    let metric = |cluster: &str| {
        format!(
            "etcd_tls_sign_authority_retires_timestamp_seconds{{namespace=\"ci\",cluster=\"{cluster}\",domain=\"peer\"}}"
        )
    };
    let metrics = lab::get(&format!("127.0.0.1:{admin}"), "/metrics").await.expect("metrics");
    assert!(metrics.contains(&metric("gone")) && metrics.contains(&metric("longer")), "{metrics}");
    assert!(!metrics.contains(&metric("used")) && !metrics.contains(&metric("marked")), "{metrics}");
    assert_eq!(cas(&lab, "ci").await.len(), 8, "nothing is deleted before its time");

    // As if all of them had been idle for 25 hours, but one. The signer goes by what its Secrets say.
    let before = trust(&lab, "ci", "used").await;
    for cluster in ["used", "gone", "marked"] {
        for name in of(cluster).await {
            edit_state(&lab, &name, |state| state["idleSince"] = json!(ago(Duration::from_secs(25 * 3600)))).await;
        }
    }
    eventually("the new cluster to get its place", LIMIT, || async {
        let left = of("gone").await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    trust(&lab, "ci", "new").await;
    issue(&lab, &pod, Role::Peer, None).await;
    lab.event_of("ci", &names::trust_config_map("gone"), "were deleted").await;
    for cluster in ["used", "marked", "longer"] {
        assert_eq!(of(cluster).await.len(), 2, "{cluster}: with a pod, marked, or not yet");
    }
    assert_eq!(trust(&lab, "ci", "used").await, before);
    let config_maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "ci");
    let gone = names::trust_config_map("gone");
    assert!(config_maps.get_opt(&gone).await.expect("look").is_none(), "no trust is left of a CA that is gone");
    // It comes back with other CAs, and is no lost one.
    lab.set_policy("").await;
    member_of("gone", "10.8.0.6").await;
    let log = signer.log();
    assert!(!log.contains("is lost") && !log.contains("PRIVATE KEY"), "{log}");
}

/// 125 namespaces of one tenant took all CAs that there may be, and nobody got a new cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_namespaces_of_a_tenant_leave_room_for_a_first_cluster() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.set_policy("authoritiesPerNamespace: 14\nauthoritiesInAll: 40").await;
    for (n, namespace) in ["tenant-a", "tenant-b", "tenant-c"].into_iter().enumerate() {
        lab.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        for cluster in 0..7 {
            let annotations = json!({"etcd-tls.dev/cluster": format!("c{cluster}")});
            let (name, ip) = (format!("c{cluster}-0"), format!("10.9.{n}.{}", cluster + 1));
            lab.pod_with(namespace, &name, json!({}), annotations, Some(&ip)).await;
        }
    }
    // Each alone would have room for all of its clusters.
    signer.logged("what is left is for namespaces with fewer than", LIMIT).await;
    let count = async || {
        let mut all = 0;
        for namespace in ["tenant-a", "tenant-b", "tenant-c"] {
            all += cas(&lab, namespace).await.len();
        }
        all
    };
    eventually("the tenant to have its CAs", LIMIT, || async {
        let all = count().await;
        if all >= 30 { Ok(()) } else { Err(all) }
    })
    .await;
    for (n, namespace) in ["other", "another"].into_iter().enumerate() {
        lab.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        let pod = member(&lab, namespace, "etcd-0", Some(&format!("10.9.9.{}", n + 1))).await;
        trust(&lab, namespace, names::DEFAULT_CLUSTER).await;
        issue(&lab, &pod, Role::Peer, None).await;
        issue(&lab, &pod, Role::Server, None).await;
        assert_eq!(cas(&lab, namespace).await.len(), 2);
    }
    let tenants = count().await;
    assert!(tenants <= 35, "{tenants} of 40");
    lab.set_policy("").await;
}
