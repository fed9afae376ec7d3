//! An external issuer of cert-manager, such as step-issuer: a kind and a group of its own, and a controller of its own that signs.
//! The stand-in is that controller; in `step.rs` it is step-issuer itself.

use kube::{
    Api,
    api::{DynamicObject, ListParams},
};
use serde_json::{Value, json};
use tests::{
    cert_manager::{CertManager, resource},
    process::Process,
};

use crate::{
    approving::{Asked, Way, approve, install, lab, let_approve, pod},
    approving_rules::init,
    scene::{Kind, Lab},
};

pub const NAMESPACE: &str = "cm";
pub const ISSUER: &str = "cert-manager:StepIssuer/company.certmanager.step.sm";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_issuer_is_requested_from_by_its_own_kind_and_group() {
    let Some(lab) = lab().await else { return };
    of_the_stand_in(&lab).await;
}

/// cert-manager's CRD takes the reference, its webhook the request, and its CA issuer leaves it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_issuer_is_requested_from_beside_cert_manager_itself() {
    let Some(lab) = Lab::of_cert_manager_itself().await else { return };
    let _of_cert_manager = without_its_approver(&lab);
    // Its webhook takes the approval of a request to a kind that is served alone.
    lab.api.apply(&step_issuers().to_string());
    of_the_stand_in(&lab).await;
}

/// cert-manager's own approver is off while an issuer leaves the approval to others.
pub fn without_its_approver(lab: &Lab) -> CertManager {
    let issuer = lab.issuer("csr");
    issuer.leave_approval_to_others();
    issuer
}

async fn of_the_stand_in(lab: &Lab) {
    let issuer = CertManager::start(&lab.api, NAMESPACE, "example.com/nobody");
    issuer.leave_approval_to_others();
    scenario(lab, &issuer.ca()).await;
}

fn step_issuers() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "stepissuers.certmanager.step.sm"},
        "spec": {
            "group": "certmanager.step.sm", "scope": "Namespaced",
            "names": {"kind": "StepIssuer", "listKind": "StepIssuerList", "plural": "stepissuers", "singular": "stepissuer"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": schema}],
        },
    })
}

/// With an issuer that signs by this CA. Returns `approve`, which approves for it.
pub async fn scenario(lab: &Lab, ca: &str) -> Process {
    install(lab);
    lab.allow(
        NAMESPACE,
        "request-of-step",
        &json!({"apiGroups": ["cert-manager.io"], "resources": ["signers"], "verbs": ["request"],
            "resourceNames": ["stepissuers.certmanager.step.sm/company"]}),
    );
    let signer = format!("stepissuers.certmanager.step.sm/{NAMESPACE}.company");
    let_approve(lab, "cert-manager.io", &signer);
    let approve = approve(lab, &[format!("--approve-issuer={signer}")]).await;

    let issued = async |name: &str| {
        let pod = pod(lab, NAMESPACE, name, &[("issuer", ISSUER), ("roles", "peer,server")]).await;
        let result = init(lab, NAMESPACE, &pod, ca, &format!("--issuer={ISSUER}")).await;
        result.unwrap_or_else(|log| panic!("{log}\n{}", approve.log_end()));
        pod
    };
    let first = issued("etcd-0").await;
    let requests: Api<DynamicObject> = Api::namespaced_with(lab.api.client.clone(), NAMESPACE, &resource());
    let made = requests.list(&ListParams::default()).await.expect("a list").items;
    assert_eq!(made.len(), 2, "one for each role: {made:?}");
    for request in made {
        let reference = json!({"kind": "StepIssuer", "name": "company", "group": "certmanager.step.sm"});
        assert_eq!(request.data["spec"]["issuerRef"], reference);
        let conditions = request.data["status"]["conditions"].as_array().expect("conditions");
        let by_ours = conditions.iter().any(|c| c["type"] == "Approved" && c["reason"] == "EtcdTlsApproved");
        assert!(by_ours, "{conditions:?}");
    }

    // The same name in cert-manager's own group is another issuer: neither the right nor our approver is for it.
    let own = Way { lab, kind: Kind::CertManager, namespace: NAMESPACE, signer: String::new() };
    let asked = Asked::of(NAMESPACE, "etcd-0");
    let refused = own.try_ask(&first, &asked).await.expect_err("taken");
    assert!(refused.contains("may not request from issuers.cert-manager.io/company"), "{refused}");
    lab.grant(NAMESPACE, Kind::CertManager);
    let open = own.ask(&first, &asked).await;
    issued("etcd-1").await;
    own.is_open(&open).await;
    approve
}
