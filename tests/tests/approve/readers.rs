//! The right to watch the trust ConfigMaps of a namespace: whose it is, for how long, and what it is not, as the accounts themselves.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{apiserver::from_json, eventually};

use super::{
    bindings::{RBAC, at_rest, pod_of, token_of, value},
    lab::{LIMIT, Lab},
};

const READER: &str = "etcd-tls-trust-reader";
const GRACE: &str = "5s";

/// Whether a client may watch and get a ConfigMap; that it is there is not asked.
async fn may(client: &Client, namespace: &str, name: &str) -> Result<(), String> {
    let all = format!("/api/v1/namespaces/{namespace}/configmaps");
    for path in
        [format!("{all}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3D{name}"), format!("{all}/{name}")]
    {
        let request = hyper::Request::get(&path).body(Vec::new()).expect("a request");
        match client.request_text(request).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(kube::Error::Api(status)) if status.code == 403 => return Err(status.message),
            Err(error) => panic!("{path}: {error}"),
        }
    }
    Ok(())
}

async fn gets(client: &Client, namespace: &str, name: &str) {
    eventually(&format!("the right to {namespace}/{name}"), LIMIT, || may(client, namespace, name)).await;
}

async fn loses(client: &Client, namespace: &str, name: &str) {
    eventually(&format!("no right to {namespace}/{name}"), LIMIT, || async {
        match may(client, namespace, name).await {
            Ok(()) => Err("it has the right"),
            Err(_) => Ok(()),
        }
    })
    .await;
}

/// Waits until both objects are there, or neither.
async fn both(lab: &Lab, namespace: &str, there: bool) {
    let roles: Api<Role> = Api::namespaced(lab.api.client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(lab.api.client.clone(), namespace);
    eventually(&format!("{READER} in {namespace}: {there}"), LIMIT, || async {
        let role = roles.get_opt(READER).await.map_err(|e| e.to_string())?;
        let binding = bindings.get_opt(READER).await.map_err(|e| e.to_string())?;
        if (role.is_some(), binding.is_some()) == (there, there) {
            Ok(())
        } else {
            Err(format!("{role:?} {binding:?}"))
        }
    })
    .await;
}

async fn names(lab: &Lab, namespace: &str) -> Vec<String> {
    let roles: Api<Role> = Api::namespaced(lab.api.client.clone(), namespace);
    let role = roles.get(READER).await.expect("the Role");
    let rules = role.rules.expect("rules");
    assert_eq!(rules.len(), 1, "{rules:?}");
    rules.into_iter().next().and_then(|rule| rule.resource_names).unwrap_or_default()
}

/// A pod as admission leaves one that names its cluster.
async fn injected(lab: &Lab, namespace: &str, name: &str, cluster: &str) -> Pod {
    let labels = json!({"etcd-tls.dev/injected": "true"});
    lab.pod_with(
        namespace,
        name,
        labels,
        json!({"etcd-tls.dev/cluster": cluster, "etcd-tls.dev/roles": "client"}),
        None,
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accounts_of_a_namespace_watch_its_own_trust_and_nothing_else() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &["--withdraw-after", GRACE]);
    lab.ready(&approver).await;
    let dynamic = json!({"etcd-tls": "dynamic"});
    for namespace in ["a", "b"] {
        lab.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
    }
    lab.api.namespace("by-pod", &[]).await;
    for account in ["etcd", "other"] {
        lab.api.service_account("by-pod", account).await;
    }
    // A ConfigMap that nobody may read.
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "a");
    maps.create(&PostParams::default(), &from_json(json!({"metadata": {"name": "app"}}))).await.expect("a ConfigMap");

    // By the namespace's label: all its accounts, and no other namespace's.
    let of_a = lab.requester(&injected(&lab, "a", "etcd-0", "etcd").await).await;
    let of_b = lab.requester(&injected(&lab, "b", "etcd-0", "etcd").await).await;
    gets(&of_a, "a", "etcd-tls-trust-etcd").await;
    gets(&of_b, "b", "etcd-tls-trust-etcd").await;
    for (namespace, name) in [
        ("b", "etcd-tls-trust-etcd"),
        ("a", "app"),
        ("a", "etcd-tls-trust-events"),
        ("kube-system", "etcd-tls-trust-etcd"),
        ("etcd-tls-system", "etcd-tls-policy"),
    ] {
        assert!(may(&of_a, namespace, name).await.is_err(), "{namespace}/{name}");
    }

    // A cluster of another name, and one of another namespace, by the pods that name them, until a while after the last of them.
    for name in ["events-0", "events-1"] {
        injected(&lab, "a", name, "events").await;
    }
    gets(&of_a, "a", "etcd-tls-trust-events").await;
    let foreign = json!({"etcd-tls.dev/issuer": "csr:client.etcd-tls.dev/b.etcd", "etcd-tls.dev/roles": "client"});
    lab.pod_with("a", "of-b", json!({"etcd-tls.dev/injected": "true"}), foreign, None).await;
    gets(&of_a, "a", "etcd-tls-trust-b.etcd").await;
    lab.api.delete_pod("a", "events-0").await;
    assert!(may(&of_a, "b", "etcd-tls-trust-etcd").await.is_err(), "the bundle comes to its own namespace");
    assert!(may(&of_b, "b", "etcd-tls-trust-events").await.is_err(), "another namespace's pods");
    lab.api.delete_pod("a", "events-1").await;
    loses(&of_a, "a", "etcd-tls-trust-events").await;
    assert_eq!(names(&lab, "a").await, ["etcd-tls-trust-b.etcd", "etcd-tls-trust-etcd"]);

    // So many names of a namespace at once, and others go on.
    for n in 0..55 {
        injected(&lab, "b", &format!("c{n}"), &format!("c{n}")).await;
    }
    eventually("51 names", LIMIT, || async {
        match names(&lab, "b").await.len() {
            51 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    gets(&of_b, "b", "etcd-tls-trust-c0").await;

    // By a pod's label: its account alone.
    let labelled = pod_of(&lab, "by-pod", "etcd-0", "etcd", dynamic.clone()).await;
    let plain = pod_of(&lab, "by-pod", "web", "other", json!({})).await;
    let (etcd, other) =
        (token_of(&lab, "by-pod", "etcd", &labelled).await, token_of(&lab, "by-pod", "other", &plain).await);
    gets(&etcd, "by-pod", "etcd-tls-trust-etcd").await;
    assert!(may(&other, "by-pod", "etcd-tls-trust-etcd").await.is_err(), "another account of that namespace");

    // Nothing is written when nothing changes.
    let before = at_rest(&lab, &approver).await;
    pod_of(&lab, "by-pod", "etcd-1", "etcd", dynamic).await;
    injected(&lab, "b", "etcd-1", "etcd").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(value(&lab, &approver, "binding_writes_total").await, before);

    // Drift is mended: another rule, other subjects, an object that is gone.
    let bindings: Api<RoleBinding> = Api::namespaced(lab.api.client.clone(), "a");
    let roles: Api<Role> = Api::namespaced(lab.api.client.clone(), "a");
    let rules = json!({"rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "watch"]}]});
    roles.patch(READER, &PatchParams::default(), &Patch::Merge(rules)).await.expect("patch");
    eventually("the names", LIMIT, || async {
        let names = names(&lab, "a").await;
        if names.len() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    loses(&of_a, "a", "app").await;
    let everybody = json!({"subjects": [{"kind": "Group", "apiGroup": RBAC, "name": "system:authenticated"}]});
    bindings.patch(READER, &PatchParams::default(), &Patch::Merge(everybody)).await.expect("patch");
    eventually("the subject", LIMIT, || async {
        let subjects = bindings.get(READER).await.map_err(|e| e.to_string())?.subjects.unwrap_or_default();
        if subjects[0].name == "system:serviceaccounts:a" { Ok(()) } else { Err(format!("{subjects:?}")) }
    })
    .await;
    loses(&of_b, "a", "etcd-tls-trust-etcd").await;
    roles.delete(READER, &DeleteParams::default()).await.expect("delete");
    both(&lab, "a", true).await;
    gets(&of_a, "a", "etcd-tls-trust-etcd").await;

    // Out again.
    lab.label_namespace("a", Value::Null).await;
    loses(&of_a, "a", "etcd-tls-trust-etcd").await;
    both(&lab, "a", false).await;
    for pod in ["etcd-0", "etcd-1"] {
        lab.api.delete_pod("by-pod", pod).await;
    }
    both(&lab, "by-pod", false).await;
    both(&lab, "b", true).await;
}

/// Objects of the name that a person made, as the documentation said before; somebody else's binding; and the flag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_made_by_hand_are_taken_over_where_a_namespace_opts_in_and_left_alone_elsewhere() {
    let Some(lab) = Lab::new().await else { return };
    let by_hand = |namespace: &str| {
        let of = "--resource-name=etcd-tls-trust-events";
        lab.api.kubectl(&["-n", namespace, "create", "role", READER, "--verb=watch", "--resource=configmaps", of]);
        let (role, group) = (format!("--role={READER}"), format!("--group=system:serviceaccounts:{namespace}"));
        lab.api.kubectl(&["-n", namespace, "create", "rolebinding", READER, &role, &group]);
    };
    for namespace in ["hand", "never", "squat"] {
        lab.api.namespace(namespace, &[]).await;
    }
    by_hand("hand");
    by_hand("never");
    lab.api.kubectl(&["-n", "squat", "create", "rolebinding", READER, "--clusterrole=view", "--user=emil"]);
    let mut approver = lab.approver("approve-a", &[]);
    lab.ready(&approver).await;
    for namespace in ["hand", "squat"] {
        lab.label_namespace(namespace, json!("dynamic")).await;
    }
    lab.api.namespace("then", &[("etcd-tls", "dynamic")]).await;
    let of_hand = lab.requester(&injected(&lab, "hand", "etcd-0", "events").await).await;
    gets(&of_hand, "hand", "etcd-tls-trust-etcd").await;
    gets(&of_hand, "hand", "etcd-tls-trust-events").await;
    both(&lab, "then", true).await;
    lab.event_of("squat", READER, "Delete it: kubectl -n squat delete rolebinding").await;
    lab.sign_binding("squat", true).await;
    let bindings = |namespace: &str| Api::<RoleBinding>::namespaced(lab.api.client.clone(), namespace);
    let theirs = bindings("squat").get(READER).await.expect("there");
    assert_eq!(theirs.role_ref.name, "view", "not ours to take away");
    bindings("squat").delete(READER, &DeleteParams::default()).await.expect("delete");
    let of_squat = lab.requester(&injected(&lab, "squat", "etcd-0", "etcd").await).await;
    gets(&of_squat, "squat", "etcd-tls-trust-etcd").await;

    // With the flag all of ours go, and nobody else's.
    approver.process.terminate(LIMIT).await;
    let without = lab.approver("approve-b", &["--no-trust-watch"]);
    lab.ready(&without).await;
    for namespace in ["hand", "squat", "then"] {
        both(&lab, namespace, false).await;
        lab.sign_binding(namespace, true).await;
    }
    both(&lab, "never", true).await;
    let never = bindings("never").get(READER).await.expect("there");
    assert!(never.labels().is_empty(), "{never:?}");
}
