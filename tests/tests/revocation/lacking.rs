//! A record that lacks certificates: what is said, and what becomes of those that are found.

use std::{collections::BTreeSet, time::Duration};

use etcd_tls_contract::{
    crl::Reason,
    names::{self, SYSTEM_NAMESPACE},
    role::Role,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    rbac::v1::{ClusterRole, PolicyRule, Role as NamespacedRole},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::{
    eventually,
    revocation::{ended, published, revoke},
};
use tokio::time::sleep;

use crate::{
    lab::{LIMIT, Lab},
    record::Records,
    signer::{issue, sign, trust},
};

const LACKS: &str = "the record lacks certificates that were issued before 20";

/// A pod that is no member, as admission leaves it, and the records of its cluster.
async fn client(lab: &Lab) -> (Pod, Records) {
    lab.api.namespace("prod", &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = json!({
        "metadata": {"name": "app-0", "annotations": {"etcd-tls.dev/roles": "client"}},
        "spec": {
            "containers": [{"name": "app", "image": "app"}],
            "initContainers": [{"name": names::SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
        },
    });
    eventually("a pod", LIMIT, || lab.api.pod("prod", pod.clone())).await;
    let pod = lab.api.set_pod_ips("prod", "app-0", &[[10, 2, 0, 1].into()]).await;
    trust(lab, "prod", "etcd").await;
    (pod, Records::of(lab).await)
}

/// The rules without these verbs on `resource`.
fn without(rules: &[PolicyRule], verbs: &[&str], resource: &str) -> Patch<serde_json::Value> {
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        if rule.resources.iter().flatten().any(|of| of == resource) {
            rule.verbs.retain(|of| !verbs.contains(&of.as_str()));
        }
    }
    with(&rules)
}

fn with(rules: &[PolicyRule]) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"rules": rules}))
}

/// Waits until the signer has a right no more.
async fn may_not(lab: &Lab, verb: &str, what: &str) {
    eventually(&format!("the right to {verb} {what} is gone"), LIMIT, || async {
        let answer = lab.can_i("etcd-tls-sign", verb, what, SYSTEM_NAMESPACE);
        if answer == "no" { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// The leader was killed between a signature and its record, and the next one may not list the requests. What it answers meanwhile is
/// about the certificates that it knows. The other one is revoked when it is found, as its pod is barred by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_new_leader_has_not_found_yet_is_said_and_revoked_when_it_is_found() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    // An issued request stays while its certificate is in no Secret.
    let mut first = sign(&lab, "sign-a", &["--delete-issued-after=20s"]).await;
    lab.ready(&approver).await;
    let (pod, records) = client(&lab).await;
    let (_, recorded) = issue(&lab, &pod, Role::Client, None).await;
    records.have(&BTreeSet::from([recorded.serial.clone()])).await;
    let patch = PatchParams::default();
    // However slow the machine is, the next one is not recorded before the leader is killed.
    let own: Api<NamespacedRole> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let rules = own.get("etcd-tls-sign").await.expect("a role").rules.expect("rules");
    own.patch("etcd-tls-sign", &patch, &without(&rules, &["update"], "secrets")).await.expect("take the right away");
    may_not(&lab, "update", "secrets").await;
    let (_, killed) = issue(&lab, &pod, Role::Client, None).await;
    sleep(Duration::from_secs(25)).await;
    first.kill();
    assert!(!records.serials().await.contains(&killed.serial), "recorded without the right");
    own.patch("etcd-tls-sign", &patch, &with(&rules)).await.expect("give it back");
    let roles: Api<ClusterRole> = Api::all(lab.api.client.clone());
    let all = roles.get("etcd-tls-sign").await.expect("a role").rules.expect("rules");
    let requests = "certificatesigningrequests";
    let fewer = without(&all, &["list", "watch"], requests);
    roles.patch("etcd-tls-sign", &patch, &fewer).await.expect("take the right away");
    may_not(&lab, "list", requests).await;

    // It would delete the request at once.
    let second = sign(&lab, "sign-a", &["--delete-issued-after=1s"]).await;
    let admin = lab.api.kubeconfig.clone();
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let list_of_clients = async || published(&maps).await.expect("lists")["client"].clone();
    for selector in [["--user", &recorded.common_name], ["--pod", "app-0"]] {
        let arguments = [&["prod/etcd", "--at-once", "--reason=privilegeWithdrawn"], &selector[..]].concat();
        let (code, said) = ended(&admin, &arguments).await.expect_err("there may be others");
        let untold = format!("Cannot determine whether there are other certificates to revoke: {LACKS}");
        assert!(code == Some(4) && said.contains(&untold), "{code:?}: {said}");
        let revoked = list_of_clients().await;
        assert!(revoked.entries().contains_key(&recorded.serial), "{:?}", revoked.entries());
        assert!(!revoked.entries().contains_key(&killed.serial), "{:?}", revoked.entries());
    }
    // A number names all that it names.
    revoke(&admin, &["prod/etcd", "--serial", "4f0a"]).await.expect("revoked");
    let listed = revoke(&admin, &["prod/etcd", "--list"]).await.expect("lists");
    assert!(listed.contains(&format!("prod/etcd client: {LACKS}")), "{listed}");

    roles.patch("etcd-tls-sign", &patch, &with(&all)).await.expect("give it back");
    second.logged("a certificate was not recorded when its pod or key was revoked: it is revoked now", LIMIT).await;
    let reason = eventually("it is revoked", LIMIT, || async {
        let list = list_of_clients().await;
        list.entries().get(&killed.serial).map(|entry| entry.reason).ok_or_else(|| format!("{:?}", list.entries()))
    })
    .await;
    assert_eq!(reason, Reason::PrivilegeWithdrawn, "as the pod's others");
    eventually("nothing is lacking", LIMIT, || async {
        let listed = revoke(&admin, &["prod/etcd", "--list"]).await?;
        if listed.contains("the record lacks") { Err(listed) } else { Ok(()) }
    })
    .await;
    revoke(&admin, &["prod/etcd", "--pod", "app-0"]).await.expect("all of it is known");
    assert!(second.log().contains("what the leader before issued is not recorded yet"), "{}", second.log());
}

/// The record is gone, and the Secret cannot be written: certificates are issued, and all of them are in the next record. The loss is
/// said once, however often the Secret is read meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_lost_while_the_secret_cannot_be_written_is_said_once() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let mut first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let (pod, records) = client(&lab).await;
    let (_, old) = issue(&lab, &pod, Role::Client, None).await;
    records.have(&BTreeSet::from([old.serial.clone()])).await;
    let roles: Api<NamespacedRole> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    let all = roles.get("etcd-tls-sign").await.expect("a role").rules.expect("rules");
    let patch = PatchParams::default();
    let fewer = without(&all, &["update"], "secrets");
    roles.patch("etcd-tls-sign", &patch, &fewer).await.expect("take the right away");
    may_not(&lab, "update", "secrets").await;

    let lost = Patch::Merge(json!({"data": {"issued.json": null}}));
    records.secrets.patch(&records.names[1], &patch, &lost).await.expect("lose the record");
    let said = "the record of what was issued is lost";
    first.logged(said, LIMIT).await;
    let mut issued = BTreeSet::new();
    for _ in 0..4 {
        let (_, chain) = issue(&lab, &pod, Role::Client, None).await;
        issued.insert(chain.serial);
        // A write fails, so that the Secret is read for the next one.
        sleep(Duration::from_secs(3)).await;
    }
    roles.patch("etcd-tls-sign", &patch, &with(&all)).await.expect("give it back");
    records.have(&issued).await;
    assert_eq!(first.log().matches(said).count(), 1, "{}", first.log());

    // The record says so itself from now on.
    assert!(first.terminate(LIMIT).await.success(), "{}", first.log());
    let second = sign(&lab, "sign-b", &[]).await;
    let admin = lab.api.kubeconfig.clone();
    let (code, told) =
        ended(&admin, &["prod/etcd", "--user", &old.common_name, "--at-once"]).await.expect_err("lacking");
    let untold = format!("Cannot determine whether there are other certificates to revoke: {LACKS}");
    assert!(code == Some(4) && told.contains(&untold), "{code:?}: {told}");
    let maps: Api<ConfigMap> = Api::namespaced(lab.api.client.clone(), "prod");
    let list = published(&maps).await.expect("lists")["client"].clone();
    assert!(issued.iter().all(|serial| list.entries().contains_key(serial)), "{:?}", list.entries());
    // The old one's request may be there yet: then it is found in it, and revoked, too.
    assert!(!second.log().contains(said), "{}", second.log());
}
