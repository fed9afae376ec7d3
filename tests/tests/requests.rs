//! The ValidatingAdmissionPolicy, on a real API server with real tokens: its limits for each requester, and the requesters that
//! it leaves alone.

use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    eventually,
};

/// A request that the policy lets `uid`'s pod make.
fn request(uid: &str, key: &str) -> Value {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let pem = rcgen::CertificateParams::default().serialize_request(&pair).expect("a request").pem().expect("PEM");
    json!({
        "metadata": {"name": format!("etcd-tls-{uid}-peer-{key}")},
        "spec": {
            "signerName": "peer.etcd-tls.dev/prod.etcd",
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "usages": ["digital signature", "client auth", "server auth"],
            "expirationSeconds": 86400,
        },
    })
}

async fn create(client: &Client, request: Value) -> Result<(), String> {
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    match requests.create(&PostParams::default(), &from_json(request)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(format!("{} {}", status.code, status.message)),
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requesters_are_held_to_our_requests() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    api.service_account("prod", "free").await;
    // The webhook is not running here: this pod opted out, and its token is a bound one all the same.
    let pod = json!({
        "metadata": {"name": "p", "labels": {"etcd-tls": "disabled"}},
        "spec": {"containers": [{"name": "etcd", "image": "example/etcd"}]},
    });
    let pod = eventually("a pod", Duration::from_secs(30), || api.pod("prod", pod.clone())).await;
    let uid = pod.metadata.uid.clone().expect("a uid");
    let bound = api.client_with_token(&api.token("prod", "default", Some(&pod)).await).await;
    let unbound = api.client_with_token(&api.token("prod", "default", None).await).await;

    let refused =
        create(&bound, request(&uid, "0")).await.expect_err("nobody may request before the namespace is bound");
    assert!(refused.starts_with("403"), "{refused}");
    let subjects = json!({"subjects": [
        {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:prod"},
        {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "host-1"},
        {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:node:cp-1"},
    ]});
    Api::<ClusterRoleBinding>::all(api.client.clone())
        .patch("etcd-tls-requesters", &PatchParams::default(), &Patch::Merge(subjects))
        .await
        .expect("bind");
    let mut n = 0;
    eventually("the right to request", Duration::from_secs(30), || {
        n += 1;
        let asked = request(&uid, &format!("good{n}"));
        let bound = bound.clone();
        async move { create(&bound, asked).await }
    })
    .await;

    let with = |path: &str, value: Value| {
        let mut asked = request(&uid, "bad");
        *asked.pointer_mut(path).expect("a path of the request") = value;
        asked
    };
    // The API server reads PEM after any text.
    let engine = base64::engine::general_purpose::STANDARD;
    let mut long = vec![b' '; 4097];
    let valid =
        request(&uid, "bad")["spec"]["request"].as_str().map(|r| engine.decode(r)).expect("a text").expect("base64");
    long.push(b'\n');
    long.extend(valid);
    let long = engine.encode(long);
    let mut forever = request(&uid, "bad");
    forever["spec"].as_object_mut().expect("a spec").remove("expirationSeconds");
    let mut nameless = with("/metadata/name", Value::Null);
    nameless["metadata"] = json!({"generateName": "etcd-tls-"});
    let cases = [
        ("another's signer", with("/spec/signerName", "kubernetes.io/kube-apiserver-client".into()), "signer"),
        ("a near miss", with("/spec/signerName", "peer.xetcd-tls.dev/prod.etcd".into()), "signer"),
        ("another's subdomain", with("/spec/signerName", "peer.a.etcd-tls.dev/prod.etcd".into()), "signer"),
        ("no cluster", with("/spec/signerName", "peer.etcd-tls.dev/prod".into()), "signer"),
        (
            "another pod's name",
            with("/metadata/name", "etcd-tls-6cc1c6c0-0000-0000-0000-000000000000-peer-0".into()),
            "uid",
        ),
        ("a name of its own", with("/metadata/name", "mine".into()), "uid"),
        ("a generated name", nameless, "uid"),
        ("more than 4 KiB", with("/spec/request", long.into()), "4 KiB"),
        ("no lifetime", forever, "expirationSeconds"),
        ("ten years", with("/spec/expirationSeconds", 315_360_000.into()), "expirationSeconds"),
    ];
    // In force within a moment of being applied; the answer shows whether the policy permitted a request.
    eventually("the policy", Duration::from_secs(30), || async {
        match create(&bound, with("/spec/signerName", "another.example.com/signer".into())).await {
            Err(message) if message.contains("etcd-tls:") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for (what, asked, why) in cases {
        let refused = create(&bound, asked).await.expect_err(what);
        assert!(
            refused.starts_with("403") && refused.contains("etcd-tls:") && refused.contains(why),
            "{what}: {refused}"
        );
    }
    let refused = create(&unbound, request(&uid, "unbound")).await.expect_err("a token of no pod");
    assert!(refused.contains("not bound to a pod"), "{refused}");
    create(&bound, request(&uid, "last")).await.expect("a request within bounds, still");

    // Another signer, where somebody who may grant it has.
    let role: ClusterRole = from_json(json!({
        "metadata": {"name": "request-from-another"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["request"],
                   "resourceNames": ["another.example.com/signer"]}],
    }));
    Api::<ClusterRole>::all(api.client.clone()).create(&PostParams::default(), &role).await.expect("a role");
    let binding: ClusterRoleBinding = from_json(json!({
        "metadata": {"name": "request-from-another"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "request-from-another"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "prod", "name": "default"}],
    }));
    Api::<ClusterRoleBinding>::all(api.client.clone()).create(&PostParams::default(), &binding).await.expect("bind");
    let mut n = 0;
    eventually("a granted signer", Duration::from_secs(30), || {
        n += 1;
        let mut asked = with("/spec/signerName", "another.example.com/signer".into());
        asked["metadata"]["name"] = format!("etcd-tls-{uid}-peer-{n:032x}").into();
        let bound = bound.clone();
        async move { create(&bound, asked).await }
    })
    .await;
    // Under another name nobody would delete it.
    let mut asked = with("/spec/signerName", "another.example.com/signer".into());
    asked["metadata"]["name"] = format!("etcd-tls-{uid}-peer-another").into();
    let refused = create(&bound, asked).await.expect_err("a name that sign does not know");
    assert!(refused.contains("to another signer must be etcd-tls-"), "{refused}");

    another_program_requests_freely_where_it_may(&api, &bound, &unbound, &uid).await;

    // A host by its user name: no pod, so no name of a pod; the rest holds.
    let host = impersonating(&api, "host-1", &[]).await;
    let mut asked = request("", "0");
    asked["metadata"]["name"] = "host-1-peer".into();
    create(&host, asked.clone()).await.expect("a host's request");
    asked["metadata"]["name"] = "host-1-other".into();
    asked["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client".into();
    let refused = create(&host, asked).await.expect_err("a host asks another signer");
    assert!(refused.contains("etcd-tls:"), "{refused}");

    // A node that is listed as a host: its kubelet renews its own certificates all the same, without a lifetime asked for.
    let kubelet = impersonating(&api, "system:node:cp-1", &["system:nodes", "system:authenticated"]).await;
    for (n, own) in ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"].iter().enumerate()
    {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:cp-1");
        if own.ends_with("serving") {
            let name = "cp-1".try_into().expect("ASCII");
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        }
        let pem = params.serialize_request(&pair).expect("a request").pem().expect("PEM");
        let usage = if own.ends_with("serving") { "server auth" } else { "client auth" };
        let asked = json!({
            "metadata": {"name": format!("csr-{n}")},
            "spec": {
                "signerName": own,
                "request": engine.encode(pem),
                "usages": ["digital signature", usage],
            },
        });
        create(&kubelet, asked).await.expect(own);
    }
    let mut asked = request("", "0");
    asked["metadata"]["name"] = "csr-other".into();
    asked["spec"]["signerName"] = "kubernetes.io/kube-apiserver-client".into();
    let refused = create(&kubelet, asked).await.expect_err("a kubelet asks another signer");
    assert!(refused.contains("etcd-tls:"), "{refused}");

    // An account with all rights is not a requester.
    let mut asked = request("", "0");
    asked["metadata"]["name"] = "admins".into();
    asked["spec"]["signerName"] = "another.example.com/signer".into();
    asked["spec"]["expirationSeconds"] = 315_360_000.into();
    create(&api.client, asked).await.expect("an administrator's request");
}

/// An operator of the namespace, which has the right to request because its namespace has, makes requests as it always did: with a token
/// of no pod, under its own names, for any time and other usages. To that signer alone.
async fn another_program_requests_freely_where_it_may(api: &ApiServer, bound: &Client, unbound: &Client, uid: &str) {
    let of_operator = |n: u32, signer: &str| {
        let mut asked = request("", "0");
        asked["metadata"] = json!({"name": format!("operators-{n}"), "labels": {"etcd-tls.dev/x": "y"}});
        asked["spec"]["signerName"] = signer.into();
        asked["spec"]["expirationSeconds"] = 315_360_000.into();
        asked["spec"]["usages"] = json!(["digital signature", "content commitment"]);
        asked
    };
    const FREE: &str = "operator.example.com/serving";
    let refused = create(unbound, of_operator(0, FREE)).await.expect_err("without the right");
    assert!(refused.contains("etcd-tls:"), "{refused}");
    let rbac = "rbac.authorization.k8s.io";
    let role: ClusterRole = from_json(json!({
        "metadata": {"name": "request-freely"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["request-freely"],
                   "resourceNames": [FREE, "peer.etcd-tls.dev/prod.etcd"]}],
    }));
    Api::<ClusterRole>::all(api.client.clone()).create(&PostParams::default(), &role).await.expect("a role");
    let binding: ClusterRoleBinding = from_json(json!({
        "metadata": {"name": "request-freely"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "request-freely"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "prod", "name": "default"}],
    }));
    Api::<ClusterRoleBinding>::all(api.client.clone()).create(&PostParams::default(), &binding).await.expect("bind");
    let mut n = 0;
    eventually("the right to request freely", Duration::from_secs(30), || {
        n += 1;
        let asked = of_operator(n, FREE);
        async move { create(unbound, asked).await }
    })
    .await;
    create(bound, of_operator(100, FREE)).await.expect("with a pod's token, too");
    // Neither another signer nor ours, whatever is granted.
    for (n, signer) in [(101, "operator.example.com/other"), (102, "peer.etcd-tls.dev/prod.etcd")] {
        let refused = create(unbound, of_operator(n, signer)).await.expect_err(signer);
        assert!(refused.contains("etcd-tls:"), "{signer}: {refused}");
    }
    let mut ours = request(uid, "freely");
    ours["spec"]["expirationSeconds"] = 315_360_000.into();
    let refused = create(bound, ours).await.expect_err("ours");
    assert!(refused.contains("expirationSeconds"), "{refused}");
}

async fn impersonating(api: &ApiServer, user: &str, groups: &[&str]) -> Client {
    let read = kube::config::Kubeconfig::read_from(&api.kubeconfig).expect("a kubeconfig");
    let mut config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.expect("a kubeconfig");
    config.auth_info.impersonate = Some(user.to_owned());
    if !groups.is_empty() {
        config.auth_info.impersonate_groups = Some(groups.iter().map(|g| (*g).to_owned()).collect());
    }
    Client::try_from(config).expect("a client")
}
