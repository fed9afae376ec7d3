//! The install: what stands in the API server, and whether it works, tried without leaving anything behind.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::names::{self, SYSTEM_NAMESPACE};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    client::Body,
};
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{
    accounts, approvers,
    finding::{APPLY, Finding, unseen},
    leaders::{self, Seen},
    lists, policy, webhook,
};
use crate::{
    controller::{
        client::{ApiServerError, within},
        guards::{self, Components, Guard, Proof},
        namespaces::{self, NamespaceFacts},
    },
    error::Error,
    operator::{Cluster, Right},
    status::State,
};

const SEE_WEBHOOK: &str = "docs/check.md#webhook";
const SEE_GUARDS: &str = "docs/check.md#admission-policies";
const SEE_LEASES: &str = "docs/check.md#leases";
const SEE_CLOCK: &str = "docs/check.md#clock";
/// Between two looks at a Lease: a leader renews it every 3 s.
const TWO_RENEWALS: Duration = Duration::from_secs(7);
/// Namespaces that are looked at for one that has opted in.
const PAGE: u32 = 200;

/// Looks at everything; `namespace` is where a pod is created as a dry run.
///
/// # Errors
/// The API server cannot be reached.
pub(super) async fn look(cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<Finding>, Error> {
    let (client, default) = cluster.connect().await?;
    let server = server_time(&client).await?;
    let mut findings = Vec::new();
    findings.push(match server {
        Some(server) => leaders::clock(SystemTime::now(), server),
        None => {
            let next = "kubectl get --raw /version -v=8";
            Finding::bad(State::Unknown, "clock", "the API server's answer has no Date", next, SEE_CLOCK)
        }
    });
    findings.extend(webhook::look(&client).await);
    findings.push(admission(&client, namespace.unwrap_or(&default)).await);
    findings.extend(all_leaders(&client).await);
    let namespaces = opted_in(&client).await.unwrap_or_else(|unseen| {
        findings.push(unseen);
        namespaces::Map::new()
    });
    findings.extend(policies(&client, cluster, namespaces).await);
    findings.extend(accounts::look(&client, SYSTEM_NAMESPACE).await);
    findings.extend(approvers::look(&client, SYSTEM_NAMESPACE).await);
    let (policy, authorities) = policy_in_force(&client).await;
    findings.push(policy);
    findings.extend(lists::look(&client, authorities).await);
    Ok(findings)
}

/// The API server's clock, by the header of an answer.
async fn server_time(client: &Client) -> Result<Option<SystemTime>, ApiServerError> {
    let request = hyper::Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
    let response = within(client.send(request)).await?;
    let date = response.headers().get(hyper::header::DATE).and_then(|value| value.to_str().ok());
    Ok(date.and_then(|text| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()).map(SystemTime::from))
}

/// Creates a pod as a dry run: the API server asks `admit`, or injects by its policies, and stores nothing. The pod states its
/// options, as policies need it.
async fn admission(client: &Client, namespace: &str) -> Finding {
    // The webhook leaves these alone.
    let namespace = if matches!(namespace, "kube-system" | SYSTEM_NAMESPACE) { "default" } else { namespace };
    let pod = json!({
        "metadata": {
            "generateName": "etcd-tls-check-", "labels": {names::LABEL: names::DYNAMIC},
            "annotations": {
                format!("{}roles", names::ANNOTATION_PREFIX): "client",
                format!("{}options", names::ANNOTATION_PREFIX): "env",
            },
        },
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65_534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "check", "image": "etcd-tls-check",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"},
                },
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let began = tokio::time::Instant::now();
    let answer = match serde_json::from_value(pod) {
        Ok(pod) => within(api.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod)).await,
        Err(error) => Err(kube::Error::SerdeError(error).into()),
    };
    judge_admission(namespace, answer, began.elapsed())
}

fn judge_admission(namespace: &str, answer: Result<Pod, ApiServerError>, took: Duration) -> Finding {
    let subject = "admission";
    let pods = format!("kubectl -n {SYSTEM_NAMESPACE} get pods -l app.kubernetes.io/component=admit -o wide");
    match answer {
        Ok(pod) => {
            let containers = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
            if containers.iter().any(|container| container.name == names::SIDECAR_CONTAINER) {
                let reason =
                    format!("a labelled pod in namespace {namespace} gets its sidecar, in {} ms", took.as_millis());
                return Finding::ok(subject, reason, SEE_WEBHOOK);
            }
            let reason = format!("a labelled pod in namespace {namespace} was taken without a sidecar");
            Finding::bad(State::Failing, subject, reason, APPLY, SEE_WEBHOOK)
        }
        Err(ApiServerError::Api(kube::Error::Api(status))) if status.message.contains("failed calling webhook") => {
            if status.message.contains("x509: ") {
                let reason = format!("the API server does not take the certificate of admit: {}", status.message);
                let next = format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/etcd-tls-sign");
                return Finding::bad(State::Failing, subject, reason, next, SEE_WEBHOOK);
            }
            let reason = format!("the API server does not reach admit: {}", status.message);
            Finding::bad(State::Failing, subject, reason, pods, SEE_WEBHOOK)
        }
        Err(error) if error.is_forbidden() && error.to_string().contains("cannot create resource") => {
            unseen(subject, Right::new("create", "pods", Some(namespace)), error, SEE_WEBHOOK)
        }
        Err(error) => Finding::bad(
            State::Unknown,
            subject,
            format!("a labelled pod in namespace {namespace} was refused, and not by etcd-tls: {error}"),
            "etcd-tls-webhook check -n NAMESPACE, with a namespace where you may create pods",
            SEE_WEBHOOK,
        ),
    }
}

async fn all_leaders(client: &Client) -> Vec<Finding> {
    let api: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let names = ["approve", "sign"];
    let mut first = Vec::new();
    for name in names {
        first.push(lease(&api, client, name).await);
    }
    if first.iter().any(|seen| matches!(seen, Ok(seen) if !seen.is_fresh())) {
        sleep(TWO_RENEWALS).await;
    }
    let mut findings = Vec::new();
    for (name, first) in names.into_iter().zip(first) {
        let second = match &first {
            Ok(seen) if !seen.is_fresh() => lease(&api, client, name).await,
            other => other.clone(),
        };
        match (first, second) {
            (Ok(first), Ok(second)) => findings.extend(leaders::judge(name, &first, &second, SYSTEM_NAMESPACE)),
            (Err(finding), _) | (_, Err(finding)) => findings.push(finding),
        }
    }
    findings
}

async fn lease(api: &Api<Lease>, client: &Client, name: &str) -> Result<Seen, Finding> {
    let right = || Right::new("get", "leases.coordination.k8s.io", Some(SYSTEM_NAMESPACE));
    let subject = format!("lease etcd-tls-{name}");
    let lease = within(api.get_opt(&format!("etcd-tls-{name}"))).await;
    let lease = lease.map_err(|error| unseen(&subject, right(), error, SEE_LEASES))?;
    let at = server_time(client).await.ok().flatten().unwrap_or_else(SystemTime::now);
    Ok(Seen { lease, at })
}

/// Each admission policy that holds our accounts: its live objects, and a write as `approve` or `sign` that it must refuse, in one
/// of `namespaces` where it is of a namespace.
pub(super) async fn policies(client: &Client, cluster: &Cluster, namespaces: namespaces::Map) -> Vec<Finding> {
    let (_, current) = watch::channel(Some(Arc::new(namespaces)));
    let mut found: BTreeMap<Guard, Vec<(&str, Proof)>> = BTreeMap::new();
    let (mut hidden, mut has) = (Vec::new(), Vec::new());
    for (guard, process, argument) in [
        (Guard::PodCertificates, "sign", "--pod-certificates"),
        (Guard::ClusterTrustBundles, "sign", "--cluster-trust-bundles"),
        (Guard::CertificateRequests, "sign", "--cert-manager"),
        (Guard::CertificateRequestApprovals, "approve", "--approve-issuer"),
    ] {
        has.push(has_component(client, guard, process, argument).await.unwrap_or_else(|finding| {
            hidden.push(finding);
            false
        }));
    }
    let components = Components {
        pod_certificates: has[0],
        cluster_trust_bundles: has[1],
        cert_manager: has[2],
        approvals_of_cert_manager: has[3],
    };
    let (of_approve, of_sign) = (guards::of_approve(components), guards::of_sign(components));
    for (process, all) in [("approve", of_approve.as_slice()), ("sign", of_sign.as_slice())] {
        let user = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:etcd-tls-{process}");
        let acting = cluster.connect_as(&user).await;
        for guard in all {
            let look = match &acting {
                Ok(acting) => guards::prove(*guard, process, client, acting, SYSTEM_NAMESPACE, &current).await,
                Err(error) => Proof::Unknown(error.to_string()),
            };
            found.entry(*guard).or_default().push((process, look));
        }
    }
    let mut findings = Vec::new();
    for (guard, looks) in found {
        let unreadable = match looks.iter().any(|(_, proof)| matches!(proof, Proof::Unknown(_))) {
            true => unreadable(client, guard).await,
            false => None,
        };
        findings.push(unreadable.unwrap_or_else(|| judge_policy(guard.name(), &looks)));
    }
    findings.extend(hidden);
    findings
}

/// The finding where the caller may not read a policy or its binding.
async fn unreadable(client: &Client, guard: Guard) -> Option<Finding> {
    let subject = format!("admission policy {}", guard.name());
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let policy = within(policies.get_metadata_opt(guard.name())).await.err();
    let binding = within(bindings.get_metadata_opt(guard.name())).await.err();
    let refused = [
        (policy, "validatingadmissionpolicies.admissionregistration.k8s.io"),
        (binding, "validatingadmissionpolicybindings.admissionregistration.k8s.io"),
    ];
    let (error, resource) = refused.into_iter().find_map(|(error, resource)| Some((error?, resource)))?;
    Some(unseen(&subject, Right::new("get", resource, None), error, SEE_GUARDS))
}

/// True if a process depends on the policy of a component: by its argument, or where the policy or its binding exists.
async fn has_component(client: &Client, guard: Guard, process: &str, argument: &str) -> Result<bool, Finding> {
    let name = guard.name();
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    // Where these cannot be read, each finding of a policy says so.
    let there = matches!(within(policies.get_metadata_opt(name)).await, Ok(Some(_)))
        || matches!(within(bindings.get_metadata_opt(name)).await, Ok(Some(_)));
    if there {
        return Ok(true);
    }
    runs_with(client, process, argument).await.map_err(|error| {
        let right = Right::new("get", "deployments.apps", Some(SYSTEM_NAMESPACE));
        unseen(&format!("admission policy {name}"), right, error, SEE_GUARDS)
    })
}

/// True if the Deployment of a process has this argument.
///
/// # Errors
/// It cannot be read.
pub(super) async fn runs_with(client: &Client, process: &str, argument: &str) -> Result<bool, ApiServerError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let deployment = within(deployments.get_opt(&format!("etcd-tls-{process}"))).await?;
    Ok(deployment.is_some_and(|deployment| has_argument(&deployment, argument)))
}

fn has_argument(deployment: &Deployment, argument: &str) -> bool {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.into_iter()
        .flat_map(|pod| &pod.containers)
        .flat_map(|container| container.command.iter().chain(&container.args).flatten())
        .any(|word| word.split('=').next() == Some(argument))
}

fn judge_policy(name: &str, looks: &[(&str, Proof)]) -> Finding {
    let subject = format!("admission policy {name}");
    let mut faults: Vec<&str> = Vec::new();
    for (_, look) in looks {
        if let Proof::Broken(broken) = look {
            faults
                .extend(broken.iter().map(String::as_str).filter(|fault| !faults.contains(fault)).collect::<Vec<_>>());
        }
    }
    if !faults.is_empty() {
        let reason = format!("it is not enforced: {}", faults.join("; "));
        return Finding::bad(State::Failing, subject, reason, APPLY, SEE_GUARDS);
    }
    for (process, look) in looks {
        if let Proof::Unknown(why) = look {
            let question =
                format!("kubectl auth can-i impersonate serviceaccounts/etcd-tls-{process} -n {SYSTEM_NAMESPACE}");
            let right = Right::new("impersonate", "serviceaccounts", Some(SYSTEM_NAMESPACE));
            let lacks = if why.contains("cannot impersonate") {
                format!("cannot {right}: your account lacks this right: ")
            } else {
                String::new()
            };
            let reason = format!("it cannot be tried as etcd-tls-{process}: {lacks}{why}");
            return Finding::bad(State::Unknown, subject, reason, question, SEE_GUARDS);
        }
    }
    Finding::ok(subject, "in place, and enforced where it can be tried", SEE_GUARDS)
}

/// The namespaces that have opted in.
///
/// # Errors
/// They cannot be listed, so that nothing is tried there.
async fn opted_in(client: &Client) -> Result<namespaces::Map, Finding> {
    let api: Api<Namespace> = Api::all(client.clone());
    let params = ListParams::default().labels(&format!("{}={}", names::LABEL, names::DYNAMIC)).limit(PAGE);
    let list = within(api.list_metadata(&params)).await.map_err(|error| {
        unseen("admission policies in namespaces", Right::new("list", "namespaces", None), error, SEE_GUARDS)
    })?;
    let facts = |meta: kube::core::ObjectMeta| {
        let deleting = meta.deletion_timestamp.is_some();
        let uid = meta.uid.unwrap_or_default();
        let facts = NamespaceFacts { uid, opted_in: true, deleting, hosts: false };
        Some((meta.name?.into(), Arc::new(facts)))
    };
    Ok(list.items.into_iter().filter_map(|item| facts(item.metadata)).collect())
}

/// The policy ConfigMap, and how many CAs it allows.
async fn policy_in_force(client: &Client) -> (Finding, Option<u32>) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    match within(api.get_opt(names::POLICY_CONFIG_MAP)).await {
        Ok(found) => policy::judge_config_map(found.as_ref()),
        Err(error) => {
            let right = Right::new("get", "configmaps", Some(SYSTEM_NAMESPACE));
            (unseen(policy::SUBJECT, right, error, policy::SEE), None)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kube::core::Status;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_dry_run_is_good_only_with_a_sidecar() {
        let pod = |init: Value| -> Result<Pod, ApiServerError> {
            Ok(serde_json::from_value(json!({"spec": {"containers": [], "initContainers": init}})).unwrap())
        };
        let refused = |code: u16, message: &str| -> Result<Pod, ApiServerError> {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            Err(ApiServerError::Api(kube::Error::Api(Box::new(status))))
        };
        let state = |answer| judge_admission("web", answer, Duration::ZERO).state;
        assert_eq!(state(pod(json!([{"name": "etcd-tls-sidecar"}]))), State::Ok);
        assert_eq!(state(pod(json!([]))), State::Failing);
        assert_eq!(state(refused(500, "failed calling webhook \"x\": connection refused")), State::Failing);
        let expired = refused(500, "failed calling webhook \"x\": x509: certificate has expired");
        let next = judge_admission("web", expired, Duration::ZERO).next.unwrap();
        assert!(next.ends_with("logs deploy/etcd-tls-sign"), "{next}");
        assert_eq!(
            state(refused(403, "pods is forbidden: User \"x\" cannot create resource \"pods\"")),
            State::Unknown
        );
        assert_eq!(state(refused(403, "exceeded quota")), State::Unknown);
    }

    #[test]
    fn a_fault_counts_before_what_is_unknown() {
        let broken = || Proof::Broken(vec!["its binding is missing".to_owned()]);
        let unknown = || Proof::Unknown("no impersonation".to_owned());
        let of = |looks: &[(&str, Proof)]| judge_policy("p", looks).state;
        assert_eq!(of(&[("approve", Proof::Enforced), ("sign", Proof::Enforced)]), State::Ok);
        assert_eq!(of(&[("approve", unknown()), ("sign", broken())]), State::Failing);
        assert_eq!(of(&[("approve", Proof::Enforced), ("sign", unknown())]), State::Unknown);
    }
}
