//! docs/approval.md: policy leaves requests to a person, who decides with kubectl and the rights of the page.

use etcd_tls_contract::{
    names::{LABEL, REVIEWED_CONDITION, SIDECAR_CONTAINER},
    role::Role,
};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest as Csr, core::v1::Pod, events::v1::Event};
use kube::{Api, Client, api::ListParams};
use serde_json::json;
use tests::{eventually, pages, process::binary, repository};

use crate::{
    lab::{Asking, LIMIT, Lab},
    signer::{certificate, has, issued, refused},
};

const NAMESPACE: &str = "my-namespace";

/// Makes a request that waits for a person.
async fn waiting(lab: &Lab, pod: &Pod, requester: &Client, role: Role) -> Asking {
    eventually("a request that waits for a person", LIMIT, || async {
        // While the watch of the policy lags behind, one is approved.
        let asking = Asking::of(pod, role);
        asking.create_when_allowed(requester).await;
        eventually("a word of approve", LIMIT, || async {
            let csr = lab.csr(&asking.name).await;
            if has(&csr, REVIEWED_CONDITION) || has(&csr, "Approved") { Ok(()) } else { Err("none") }
        })
        .await;
        if has(&lab.csr(&asking.name).await, "Approved") { Err("approved") } else { Ok(asking) }
    })
    .await
}

/// Approves with this reason, as `user` where one is named.
async fn approve_as(client: &Client, user: Option<&str>, name: &str, reason: &str) -> kube::Result<Csr> {
    let old = Api::<Csr>::all(client.clone()).get(name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
    let mut conditions = serde_json::to_value(old).expect("JSON");
    let condition = json!({"type": "Approved", "status": "True", "reason": reason, "message": "m"});
    conditions.as_array_mut().expect("a list").push(condition);
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/approval");
    let mut request = hyper::Request::patch(path).header("Content-Type", "application/merge-patch+json");
    if let Some(user) = user {
        request = request.header("Impersonate-User", user);
    }
    let body = json!({"status": {"conditions": conditions}}).to_string().into_bytes();
    client.request(request.body(body).expect("a request")).await
}

/// Runs one of our commands as cluster-admin; all that it prints.
fn ours(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(binary("etcd-tls-webhook"));
    let output = command.args(arguments).env("KUBECONFIG", &lab.api.kubeconfig).output().expect("run a command");
    String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
}

pub async fn a_person_decides(lab: &Lab) {
    lab.set_policy(&pages::blocks("approval.md", "Policy").remove(0)).await;
    lab.api.namespace(NAMESPACE, &[(LABEL, "dynamic")]).await;
    let pod = json!({
        "metadata": {
            "name": "etcd-0", "labels": {"etcd-tls.dev/injected": "true"},
            "annotations": {"etcd-tls.dev/roles": "peer,server,metrics"},
        },
        "spec": {
            "containers": [{"name": "etcd", "image": "etcd"}],
            "initContainers": [{"name": SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
        },
    });
    lab.api.pod(NAMESPACE, pod).await.expect("create a pod");
    let pod = lab.api.set_pod_ips(NAMESPACE, "etcd-0", &["10.9.0.1".parse().expect("an address")]).await;
    let requester = lab.requester(&pod).await;
    let first = waiting(lab, &pod, &requester, Role::Peer).await;

    // Who looks learns the command: on the pod, on the request, and from our own commands.
    let command = format!("kubectl certificate approve {}", first.name);
    lab.event_of(NAMESPACE, "etcd-0", &command).await;
    let reviewed = lab.csr(&first.name).await.status.and_then(|status| status.conditions).unwrap_or_default();
    assert!(reviewed.iter().any(|c| c.message.as_deref().is_some_and(|m| m.contains(&command))), "{reviewed:?}");
    let events: Api<Event> = Api::namespaced(lab.api.client.clone(), NAMESPACE);
    let events = events.list(&ListParams::default()).await.expect("list events").items;
    assert!(events.iter().any(|e| e.reason.as_deref() == Some("CertificateAwaitsApproval")), "{events:?}");
    for look in [&["status", "-n", NAMESPACE, "-o", "yaml"][..], &["check", "pod", "etcd-0", "-n", NAMESPACE]] {
        let said = ours(lab, look);
        assert!(said.contains("waits for a person to decide") && said.contains(&command), "{look:?}: {said}");
    }

    // The rights of the page, and not less.
    let kubectl = lab.api.kubectl_path();
    let path = pages::path(&[kubectl.parent().expect("a directory")]);
    let type_ = |line: &str| pages::bash(&repository(), &path, Some(&lab.api.kubeconfig), line);
    let decides = |user: &str, verb: &str, name: &str| type_(&format!("kubectl certificate {verb} {name} --as={user}"));
    type_(&pages::blocks("approval.md", "Who may decide").remove(0)).expect("give the right");
    type_(
        "kubectl create clusterrole bob --verb=get,list,update --resource=certificatesigningrequests,certificatesigningrequests/approval \
         && kubectl create clusterrolebinding bob --clusterrole=bob --user=bob",
    )
    .expect("a right to approve requests to no signer");
    let said = eventually("the rights of bob", LIMIT, || async {
        let said = decides("bob", "approve", &first.name).expect_err("bob may not approve for this signer");
        if said.contains("not permitted to approve") { Ok(said) } else { Err(said) }
    })
    .await;
    assert!(said.contains("peer.etcd-tls.dev/my-namespace.etcd"), "{said}");
    assert_eq!(certificate(lab, &first.name).await, None, "nobody has approved it");

    // Typed as the page has it.
    let [describe, approve, deny] = {
        let block = pages::blocks("approval.md", "Decide").remove(0);
        let lines: Vec<String> = block.lines().map(str::to_owned).collect();
        <[String; 3]>::try_from(lines).expect("three commands")
    };
    let as_anna = |line: &str, name: &str| type_(&format!("{} --as=anna", line.replace("NAME", name)));
    // `kubectl describe` looks for events, too, which this right does not show.
    let said = eventually("the rights of anna", LIMIT, || async { as_anna(&describe, &first.name) }).await;
    assert!(said.contains("peer.etcd-tls.dev/my-namespace.etcd"), "{said}");
    as_anna(&approve, &first.name).expect("approve");
    let chain = issued(lab, &first.name).await;
    assert!(chain.sans.ips.contains(&"10.9.0.1".parse().expect("an address")), "{:?}", chain.sans);

    // The other roles wait, also `metrics`, which the entry does not name. The rights of the page are enough for each.
    for role in [Role::Server, Role::Metrics] {
        let other = waiting(lab, &pod, &requester, role).await;
        as_anna(&approve, &other.name).unwrap_or_else(|said| panic!("{role:?}: {said}"));
        issued(lab, &other.name).await;
    }

    // A renewal waits, too; this one is denied.
    let second = waiting(lab, &pod, &requester, Role::Peer).await;
    as_anna(&deny, &second.name).expect("deny");
    refused(lab, &second.name).await;

    // What is wrong reaches nobody: it is denied.
    let wrong = Asking::of(&pod, Role::Peer).sans(|sans| sans.ips = [[10, 9, 9, 9].into()].into());
    wrong.create(&requester).await;
    let (condition, message) = refused(lab, &wrong.name).await;
    assert!(condition == "Denied" && message.contains("NameNotAllowed"), "{condition}: {message}");
    as_anna(&approve, &wrong.name).expect_err("a denial is final");

    // Nor does the word of `approve` stand for a person's: not its own, and it has no other. And nobody else has its word.
    let third = waiting(lab, &pod, &requester, Role::Peer).await;
    let stolen = lab.approve_client().await;
    let said = approve_as(&stolen, None, &third.name, "KubectlApprove").await.expect_err("a person's word").to_string();
    assert!(said.contains("that of approve"), "{said}");
    type_(
        "kubectl create clusterrole patch --verb=patch --resource=certificatesigningrequests/approval
         kubectl create clusterrolebinding patch --clusterrole=patch --user=carl
         kubectl create clusterrolebinding carl --clusterrole=etcd-approvers --user=carl",
    )
    .expect("a right");
    eventually("a refusal of another's word", LIMIT, || async {
        let said = approve_as(&lab.api.client, Some("carl"), &third.name, "EtcdTlsApproved").await;
        let said = said.expect_err("the word of approve").to_string();
        if said.contains("that of approve") { Ok(()) } else { Err(said) }
    })
    .await;
    approve_as(&stolen, None, &third.name, "EtcdTlsApproved").await.expect("its own word");
    let (condition, message) = refused(lab, &third.name).await;
    assert!(condition == "Failed" && message.contains("NoPersonApproved"), "{condition}: {message}");
    lab.set_policy("").await;
}
