//! The rights that a pod's label gives, their holders and duration, and the effect of somebody else's binding with our name.

use std::time::Duration;

use etcd_tls_contract::{names, role::Role};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    rbac::v1::{ClusterRoleBinding, RoleBinding},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{apiserver::from_json, eventually};

use super::lab::{Approver, Asking, LIMIT, Lab};

/// Longer than what a pod flaps here; short enough to wait for.
const GRACE: &str = "15s";
pub const RBAC: &str = "rbac.authorization.k8s.io";

pub async fn pod_of(lab: &Lab, namespace: &str, name: &str, account: &str, labels: Value) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"serviceAccountName": account, "containers": [{"name": "etcd", "image": "etcd"}]},
    });
    eventually("a pod", LIMIT, || lab.api.pod(namespace, pod.clone())).await
}

pub async fn token_of(lab: &Lab, namespace: &str, account: &str, pod: &Pod) -> Client {
    lab.api.client_with_token(&lab.api.token(namespace, account, Some(pod)).await).await
}

pub async fn value(lab: &Lab, approver: &Approver, name: &str) -> u64 {
    let metrics = lab.metrics(approver).await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("etcd_tls_approve_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().expect("a number")
}

/// How many writes there were, once there are no more.
pub async fn at_rest(lab: &Lab, approver: &Approver) -> u64 {
    eventually("no more writes", LIMIT, || async {
        let before = value(lab, approver, "binding_writes_total").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = value(lab, approver, "binding_writes_total").await;
        if before == after { Ok(after) } else { Err(after - before) }
    })
    .await
}

/// Attack 3 and similar ones: a pod's label gives rights to its own service account only, for as long as it has such a pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_3_a_pods_label_gives_the_right_to_its_service_account_alone() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &["--withdraw-after", GRACE]);
    lab.ready(&approver).await;
    let dynamic = json!({"etcd-tls": "dynamic"});
    lab.api.namespace("mixed", &[]).await;
    for account in ["etcd", "other"] {
        lab.api.service_account("mixed", account).await;
    }
    let labelled = pod_of(&lab, "mixed", "etcd-0", "etcd", dynamic.clone()).await;
    let plain = pod_of(&lab, "mixed", "web", "other", json!({})).await;
    let (etcd, other) =
        (token_of(&lab, "mixed", "etcd", &labelled).await, token_of(&lab, "mixed", "other", &plain).await);
    Asking::of(&labelled, Role::Peer).create_when_allowed(&etcd).await;
    lab.subjects(|s| s == ["ServiceAccount mixed/etcd"]).await;
    assert!(!Asking::of(&plain, Role::Peer).allowed(&other).await, "another account of that namespace");
    assert!(!Asking::of(&labelled, Role::Peer).allowed(&other).await);
    let default = token_of(&lab, "mixed", "default", &pod_of(&lab, "mixed", "d", "default", json!({})).await).await;
    assert!(!Asking::of(&labelled, Role::Peer).allowed(&default).await, "nor the default one");

    // A namespace with more accounts than it may have says so and is before nobody.
    lab.api.namespace("crowd", &[]).await;
    for n in 0..55 {
        lab.api.service_account("crowd", &format!("s{n}")).await;
        pod_of(&lab, "crowd", &format!("p{n}"), &format!("s{n}"), dynamic.clone()).await;
    }
    let of_crowd = |s: &[String]| s.iter().filter(|s| s.starts_with("ServiceAccount crowd/")).count();
    lab.subjects(|s| of_crowd(s) == 50).await;
    lab.event_of("crowd", "s50", "5 service accounts of this namespace").await;
    lab.api.namespace("quiet", &[]).await;
    let quiet = pod_of(&lab, "quiet", "etcd-0", "default", dynamic.clone()).await;
    let asking = Asking::of(&quiet, Role::Peer);
    asking.create_when_allowed(&token_of(&lab, "quiet", "default", &quiet).await).await;
    lab.subjects(|s| of_crowd(s) == 50 && s.contains(&"ServiceAccount quiet/default".to_owned())).await;

    // Pods that come and go, as a CronJob's, write nothing.
    let before = at_rest(&lab, &approver).await;
    for n in 0..30 {
        let name = format!("job-{n}");
        pod_of(&lab, "mixed", &name, "etcd", dynamic.clone()).await;
        if n == 0 {
            lab.api.delete_pod("mixed", "etcd-0").await;
        }
        lab.api.delete_pod("mixed", &name).await;
    }
    assert!(Asking::of(&labelled, Role::Peer).allowed(&token_of_again(&lab).await).await, "within the grace");
    assert_eq!(value(&lab, &approver, "binding_writes_total").await, before);

    // After the last one's grace, the right is gone, and the place where `sign` may publish as well.
    lab.sign_binding("mixed", true).await;
    lab.subjects(|s| !s.iter().any(|s| s.contains("mixed"))).await;
    lab.sign_binding("mixed", false).await;
    assert!(!Asking::of(&plain, Role::Peer).allowed(&token_of_again(&lab).await).await);
    lab.sign_binding("quiet", true).await;
}

/// A pod without a label, whose account can get a token.
async fn token_of_again(lab: &Lab) -> Client {
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), "mixed");
    let pod = match pods.get_opt("unlabelled").await.expect("look") {
        Some(pod) => pod,
        None => pod_of(lab, "mixed", "unlabelled", "etcd", json!({})).await,
    };
    token_of(lab, "mixed", "etcd", &pod).await
}

/// A successor knows nothing of pods that ended before, and leaves their accounts the grace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_withdraws_what_has_no_pod_any_more() {
    let Some(lab) = Lab::new().await else { return };
    let arguments = ["--withdraw-after", "5s"];
    let mut first = lab.approver("approve-a", &arguments);
    lab.ready(&first).await;
    lab.api.namespace("by-pod", &[]).await;
    pod_of(&lab, "by-pod", "etcd-0", "default", json!({"etcd-tls": "dynamic"})).await;
    lab.subjects(|s| s == ["ServiceAccount by-pod/default"]).await;
    first.process.terminate(Duration::from_secs(30)).await;
    lab.api.delete_pod("by-pod", "etcd-0").await;
    let second = lab.approver("approve-b", &arguments);
    lab.ready(&second).await;
    lab.subjects(<[String]>::is_empty).await;
    lab.sign_binding("by-pod", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_binding_of_our_name_is_said_and_blocks_no_other_namespace() {
    let Some(lab) = Lab::new().await else { return };
    let bindings = |namespace: &str| Api::<RoleBinding>::namespaced(lab.api.client.clone(), namespace);
    lab.api.namespace("squat", &[]).await;
    let stranger = json!({
        "metadata": {"name": "etcd-tls-sign"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "squat"}],
    });
    bindings("squat").create(&PostParams::default(), &from_json(stranger)).await.expect("a binding");
    let approver = lab.approver("approve-a", &[]);
    lab.ready(&approver).await;
    for namespace in ["squat", "then"] {
        if namespace == "squat" {
            lab.label_namespace(namespace, json!("dynamic")).await;
        } else {
            lab.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        }
    }
    lab.sign_binding("then", true).await;
    lab.event_of("squat", "etcd-tls-sign", "binds ClusterRole view").await;
    assert_eq!(value(&lab, &approver, "foreign_bindings").await, 1);
    let there = bindings("squat").get("etcd-tls-sign").await.expect("there");
    assert_eq!(there.role_ref.name, "view", "not ours to take away");

    // Our role with other subjects is mended, in each namespace by itself.
    let subjects = json!({"subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "then"}]});
    bindings("then").patch("etcd-tls-sign", &PatchParams::default(), &Patch::Merge(subjects)).await.expect("patch");
    eventually("the subject to be ours", LIMIT, || async {
        let subjects = bindings("then").get("etcd-tls-sign").await.map_err(|e| e.to_string())?.subjects;
        let subjects = subjects.unwrap_or_default();
        if subjects.len() == 1 && subjects[0].name == "etcd-tls-sign" { Ok(()) } else { Err(format!("{subjects:?}")) }
    })
    .await;

    // If somebody with the right deletes our binding, it is back at once.
    let before = at_rest(&lab, &approver).await;
    bindings("squat").delete("etcd-tls-sign", &DeleteParams::default()).await.expect("delete");
    eventually("a binding of ours", LIMIT, || async {
        let binding = bindings("squat").get_opt("etcd-tls-sign").await.map_err(|e| e.to_string())?;
        let role = binding.map(|binding| binding.role_ref.name);
        if role.as_deref() == Some("etcd-tls-trust") { Ok(()) } else { Err(format!("{role:?}")) }
    })
    .await;
    eventually("none to be foreign", LIMIT, || async {
        match value(&lab, &approver, "foreign_bindings").await {
            0 => Ok(()),
            n => Err(n),
        }
    })
    .await;
    assert!(value(&lab, &approver, "binding_writes_total").await <= before + 2);
}

/// The largest list that the approver writes is one that the API server and the admission policy take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binding_takes_as_many_requesters_as_are_written() {
    let Some(lab) = Lab::new().await else { return };
    let bindings: Api<ClusterRoleBinding> = Api::all(lab.approve_client().await);
    let write = async |subjects: Vec<Value>| {
        let binding = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "etcd-tls-requesters"},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "etcd-tls-requester"}, "subjects": subjects,
        });
        let params = PatchParams::apply("etcd-tls-approve").force();
        bindings.patch("etcd-tls-requesters", &params, &Patch::Apply(&binding)).await
    };
    let account =
        |n: usize, width: usize| json!({"kind": "ServiceAccount", "name": format!("{n:0width$}"), "namespace": "ns"});
    let group =
        |n: usize| json!({"apiGroup": RBAC, "kind": "Group", "name": format!("system:serviceaccounts:{n:063}")});
    eventually("the approver's rights", LIMIT, || write(Vec::new())).await;
    for (what, subjects) in [
        ("many accounts", (0..1500).map(|n| account(n, 5)).collect::<Vec<_>>()),
        ("long names", (0..750).map(|n| account(n, 253)).collect()),
        ("many namespaces", (0..1500).map(group).collect()),
    ] {
        let count = subjects.len();
        let written = write(subjects).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(written.subjects.map(|subjects| subjects.len()), Some(count), "{what}: {:?}", written.metadata.name);
    }
    // The API server takes a moment until a new policy is in force.
    eventually("the policy's bound", LIMIT, || async {
        match write((0..1501).map(|n| account(n, 5)).collect()).await {
            Err(kube::Error::Api(status)) if status.code == 422 || status.code == 403 => Ok(()),
            other => Err(format!("{:?}", other.map(|binding| binding.metadata.name))),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_follow_who_opted_in() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &["--withdraw-after", "3s"]);
    lab.ready(&approver).await;
    let client = || lab.api.client.clone();
    let group = |ns: &str| format!("Group system:serviceaccounts:{ns}");
    let account = "ServiceAccount by-pod/default".to_owned();
    lab.api.namespace("by-label", &[("etcd-tls", "dynamic")]).await;
    lab.api.namespace("by-pod", &[]).await;
    lab.subjects(|s| s == [group("by-label")]).await;
    lab.pod("by-pod", "etcd-0", json!({"etcd-tls": "dynamic"}), None).await;
    lab.subjects(|s| s == [group("by-label"), account.clone()]).await;
    lab.sign_binding("by-label", true).await;
    lab.sign_binding("by-pod", true).await;

    // `sign` has its rights there alone.
    for (ns, may) in [("by-label", "yes"), ("by-pod", "yes"), ("default", "no"), ("kube-system", "no")] {
        assert_eq!(lab.can_i("etcd-tls-sign", "create", "configmaps", ns), may, "{ns}");
    }
    // The rights that the approver itself lacks, though it makes bindings.
    for (verb, what, ns) in [
        ("create", "rolebindings", "default"),
        ("create", "clusterrolebindings", ""),
        ("get", "secrets", names::SYSTEM_NAMESPACE),
        ("create", "certificatesigningrequests", ""),
        ("patch", "certificatesigningrequests/status", ""),
        ("patch", "configmaps/etcd-tls-policy", names::SYSTEM_NAMESPACE),
        ("list", "secrets", "default"),
    ] {
        assert_eq!(lab.can_i("etcd-tls-approve", verb, what, ns), "no", "{verb} {what} {ns}");
    }

    // Drift is mended: subjects, a binding that is gone, one that binds another role, the manifests applied again.
    let requesters: Api<ClusterRoleBinding> = Api::all(client());
    let stranger = json!({"subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}]});
    requesters.patch("etcd-tls-requesters", &PatchParams::default(), &Patch::Merge(stranger)).await.expect("patch");
    lab.subjects(|s| s == [group("by-label"), account.clone()]).await;
    let sign: Api<RoleBinding> = Api::namespaced(client(), "by-label");
    sign.delete("etcd-tls-sign", &DeleteParams::default()).await.expect("delete");
    lab.sign_binding("by-label", true).await;
    lab.install();
    let before = requesters.get("etcd-tls-requesters").await.expect("there").resource_version();
    lab.subjects(|s| s == [group("by-label"), account.clone()]).await;
    requesters.delete("etcd-tls-requesters", &DeleteParams::default()).await.expect("delete");
    lab.subjects(|s| s == [group("by-label"), account.clone()]).await;

    // Nothing is written when nothing changes.
    let quiet = requesters.get("etcd-tls-requesters").await.expect("there").resource_version();
    assert_ne!(quiet, before);
    let unrelated = json!({"metadata": {"labels": {"team": "a"}}});
    let namespaces: Api<Namespace> = Api::all(client());
    namespaces.patch("by-label", &PatchParams::default(), &Patch::Merge(unrelated)).await.expect("patch");
    lab.pod("by-pod", "etcd-1", json!({"etcd-tls": "dynamic"}), None).await;
    lab.api.delete_pod("by-pod", "etcd-1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(requesters.get("etcd-tls-requesters").await.expect("there").resource_version(), quiet);

    // Out again.
    lab.label_namespace("by-label", json!(null)).await;
    lab.subjects(|s| s == [account.clone()]).await;
    lab.sign_binding("by-label", false).await;
    lab.api.delete_pod("by-pod", "etcd-0").await;
    lab.subjects(<[String]>::is_empty).await;
    lab.sign_binding("by-pod", false).await;
}
