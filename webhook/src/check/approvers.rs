//! Checks that cert-manager's own approver is off where `approve` decides CertificateRequests. That approver approves every request,
//! of any requester and for any names.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client, api::ListParams};

use super::finding::{Finding, unseen};
use crate::{
    controller::{
        case,
        client::within,
        facts::{CertificateRequest, Csr, Kind as _},
        listed::{Source, WatchError},
    },
    operator::Right,
    status::State,
};

const SEE: &str = "docs/check.md#the-approver-of-cert-manager";
const SUBJECT: &str = "approver of cert-manager";
/// The argument of `approve` that names an issuer.
const ARGUMENT: &str = "--approve-issuer";
/// The reason of its approvals.
const APPROVES_AS: &str = "cert-manager.io";
/// The controller of cert-manager that is it.
const CONTROLLER: &str = "certificaterequests-approver";
const LABELS: &str = "app.kubernetes.io/name=cert-manager,app.kubernetes.io/component=controller";
const OFF: &str = "turn it off: value disableAutoApproval=true of cert-manager's chart, or the argument \
                   --controllers=*,-certificaterequests-approver of its controller";
const WHERE: &str = "kubectl get deployments -A -l app.kubernetes.io/name=cert-manager -o yaml | grep controllers";

/// Looks, where `approve` has issuers to decide about; else there is nothing to say.
pub(super) async fn look(client: &Client, system: &str) -> Vec<Finding> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
    let decides = match within(deployments.get_opt("etcd-tls-approve")).await {
        Ok(found) => found.is_some_and(|found| arguments(&found).any(|word| word.starts_with(ARGUMENT))),
        Err(error) => return vec![unseen(SUBJECT, Right::new("get", "deployments.apps", Some(system)), error, SEE)],
    };
    if !decides {
        return Vec::new();
    }
    let mut seen = None;
    let source = Source { in_pages: true, ..CertificateRequest::all() };
    let looked = source.each(client, |object: CertificateRequest| {
        let csr = object.into_csr();
        if seen.is_none() && is_approved_by_it(&csr) {
            seen = Some(csr.key().into_owned());
        }
    });
    match looked.await {
        Ok(()) => {}
        Err(WatchError::Request(error)) if error.is_not_found() => {
            let reason = "the API server serves no CertificateRequests of cert-manager.io/v1";
            return vec![Finding::bad(State::Attention, SUBJECT, reason, "install cert-manager", SEE)];
        }
        Err(WatchError::Request(error)) => {
            return vec![unseen(SUBJECT, Right::new("list", "certificaterequests.cert-manager.io", None), error, SEE)];
        }
        Err(error) => return vec![Finding::bad(State::Unknown, SUBJECT, error.to_string(), WHERE, SEE)],
    }
    let all: Api<Deployment> = Api::all(client.clone());
    let controllers = within(all.list(&ListParams::default().labels(LABELS))).await;
    match controllers {
        Ok(list) => vec![judge(seen.as_deref(), &list.items)],
        Err(_) if seen.is_some() => vec![judge(seen.as_deref(), &[])],
        Err(error) => vec![unseen(SUBJECT, Right::new("list", "deployments.apps", None), error, SEE)],
    }
}

fn is_approved_by_it(csr: &Csr) -> bool {
    let by_it = |reason: &Option<String>| reason.as_deref() == Some(APPROVES_AS);
    case::is_a_pods_to_another(csr) && csr.status.conditions.iter().any(|c| c.type_ == "Approved" && by_it(&c.reason))
}

fn arguments(deployment: &Deployment) -> impl Iterator<Item = &str> {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    containers.flat_map(|container| container.command.iter().chain(&container.args).flatten()).map(String::as_str)
}

/// True if a controller of cert-manager runs its approver: all run by default.
fn runs(deployment: &Deployment) -> bool {
    let lists = arguments(deployment).filter_map(|word| word.strip_prefix("--controllers="));
    let Some(list) = lists.last() else { return true };
    let words: Vec<&str> = list.split(',').map(str::trim).collect();
    let off = words.iter().any(|word| word.strip_prefix('-') == Some(CONTROLLER));
    let only_removals = words.iter().all(|word| word.starts_with('-'));
    !off && (only_removals || words.contains(&"*") || words.contains(&CONTROLLER))
}

/// An approval that was seen counts before what the manifests of cert-manager say.
fn judge(seen: Option<&str>, controllers: &[Deployment]) -> Finding {
    if let Some(request) = seen {
        let reason = format!(
            "it has approved the CertificateRequest {request}, whatever it asks for; requests stay for five minutes after their issue"
        );
        return Finding::bad(State::Failing, SUBJECT, reason, OFF, SEE);
    }
    let name = |deployment: &Deployment| {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}/{}", of(&deployment.metadata.namespace), of(&deployment.metadata.name))
    };
    if let Some(running) = controllers.iter().find(|deployment| runs(deployment)) {
        let reason = format!("Deployment {} runs it: it approves each CertificateRequest", name(running));
        return Finding::bad(State::Failing, SUBJECT, reason, OFF, SEE);
    }
    match controllers.first() {
        Some(first) => Finding::ok(SUBJECT, format!("Deployment {} does not run it", name(first)), SEE),
        None => {
            let reason = "it cannot be told whether it runs: there is no Deployment with the labels of cert-manager's chart, and no \
                          approval of it among the requests that are there";
            Finding::bad(State::Unknown, SUBJECT, reason, WHERE, SEE)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn controller(arguments: &[&str]) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"namespace": "cert-manager", "name": "cert-manager"},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "args": arguments}]}}},
        }))
        .unwrap()
    }

    /// Without an answer, nobody knows whether `approve` decides about requests.
    #[tokio::test]
    async fn a_deployment_that_cannot_be_read_leaves_it_unknown() {
        let answer = |code: u16, reason: &str| {
            let status =
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason});
            let server = tower::service_fn(move |_: hyper::Request<kube::client::Body>| {
                let body = http_body_util::Full::new(hyper::body::Bytes::from(status.to_string()));
                std::future::ready(hyper::Response::builder().status(code).body(body))
            });
            Client::new(server, "default")
        };
        let findings = look(&answer(403, "Forbidden"), "etcd-tls-system").await;
        assert_eq!(findings.iter().map(|finding| finding.state).collect::<Vec<_>>(), [State::Unknown]);
        assert!(findings[0].reason.contains("cannot get deployments.apps in namespace etcd-tls-system"));
        assert!(look(&answer(404, "NotFound"), "etcd-tls-system").await.is_empty(), "there is no approve");
    }

    #[test]
    fn what_was_seen_counts_before_arguments() {
        for (list, runs) in [
            ("*", true),
            ("*,-certificaterequests-approver", false),
            ("-certificaterequests-approver", false),
            ("-issuers", true),
            ("issuers,certificaterequests-issuer-ca", false),
            ("issuers,certificaterequests-approver", true),
        ] {
            assert_eq!(super::runs(&controller(&["--v=2", &format!("--controllers={list}")])), runs, "{list}");
        }
        let state = |seen, controllers: &[Deployment]| judge(seen, controllers).state;
        let (on, off) = (controller(&["--v=2"]), controller(&["--controllers=-certificaterequests-approver"]));
        assert_eq!(state(None, &[]), State::Unknown);
        assert_eq!(state(None, std::slice::from_ref(&off)), State::Ok);
        assert_eq!(state(None, &[off.clone(), on]), State::Failing);
        assert_eq!(state(Some("prod/x"), &[off]), State::Failing);
    }
}
