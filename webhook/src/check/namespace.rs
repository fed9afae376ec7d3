//! `check namespace`: one namespace and all that its pods need, each tried with the caller's rights.
//!
//! ```text
//! readers     who may watch the trust ConfigMaps
//! workloads   pods of its workloads, created as a dry run
//! trust       the trust ConfigMaps and the authorities of its clusters
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    names::{self, SYSTEM_NAMESPACE},
    settings::{Issuer, Settings},
};
use k8s_openapi::api::{
    authorization::v1::ResourceAttributes,
    certificates::v1::CertificateSigningRequest,
    core::v1::{Namespace, Pod},
    rbac::v1::RoleBinding,
};
use kube::{Api, Client, api::ListParams};

use super::{
    accounts,
    finding::{Finding, unseen},
    install,
};
use crate::{
    controller::{
        client::{ApiServerError, within},
        namespaces::{self, NamespaceFacts},
    },
    error::Error,
    operator::{Cluster, Right},
    status::{self, State, duration},
};

mod readers;
mod trust;
mod workloads;

const SEE: &str = "docs/check.md#namespace";
const SEE_REQUESTS: &str = "docs/check.md#requests";
const SEE_PODS: &str = "docs/check.md#certificates";
/// The namespace of Kubernetes' own components.
const KUBE_SYSTEM: &str = "kube-system";
/// Findings of one kind that are named.
const NAMED: usize = 10;
/// Requests in one answer.
const PAGE: u32 = 200;
/// A request without a decision is nothing to speak of for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at everything that concerns the namespace `name`.
///
/// # Errors
/// The namespace or its pods cannot be read.
pub(super) async fn look(cluster: &Cluster, name: &str) -> Result<Vec<Finding>, Error> {
    let (client, _) = cluster.connect().await?;
    let api: Api<Namespace> = Api::all(client.clone());
    let found = within(api.get_metadata_opt(name)).await;
    let Some(found) = found.map_err(|error| Right::new("get", "namespaces", None).refused(error))? else {
        let reason = "there is no such namespace";
        return Ok(vec![Finding::bad(State::Failing, subject(name), reason, "kubectl get namespaces", SEE)]);
    };
    let pods = status::opted_in(&client, Some(name)).await?;
    let label = found.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL)).cloned();
    let deleting = found.metadata.deletion_timestamp.is_some();
    let (opted_in, finding) = judge_label(name, label.as_deref(), deleting, pods.len());
    let mut findings = vec![finding];
    if deleting || (!opted_in && pods.is_empty()) {
        return Ok(findings);
    }
    let settings: Vec<(Settings, String)> = pods.iter().filter_map(facts).collect();
    findings.extend(requesters(&client, name, opted_in, &settings).await);
    findings.push(binding(&client, name).await);
    findings.extend(readers::look(&client, name, opted_in, &settings).await);
    findings.extend(trust::look(&client, name, settings.iter().map(|(settings, _)| settings)).await);
    let facts = NamespaceFacts { uid: found.metadata.uid.unwrap_or_default(), opted_in: true, deleting, hosts: false };
    findings.extend(install::policies(&client, cluster, namespaces::Map::from([(name.into(), Arc::new(facts))])).await);
    findings.extend(workloads::look(&client, name, opted_in).await);
    findings.extend(requests(&client, name).await);
    findings.extend(of_pods(&client, name).await?);
    Ok(findings)
}

fn subject(name: &str) -> String {
    format!("namespace {name}")
}

/// The settings of a pod, and its service account. Of annotations that cannot be read, the pod's own finding tells.
fn facts(pod: &Pod) -> Option<(Settings, String)> {
    let settings = Settings::parse(&pod.metadata.annotations.clone().unwrap_or_default()).ok()?;
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    Some((settings, account.unwrap_or_else(|| "default".to_owned())))
}

/// Whether the namespace has opted in; `pods`: how many of it have.
fn judge_label(name: &str, label: Option<&str>, deleting: bool, pods: usize) -> (bool, Finding) {
    let subject = subject(name);
    let next = format!("kubectl label namespace {name} --overwrite {}={}", names::LABEL, names::DYNAMIC);
    let bad = |state, reason: String, next: &str| (false, Finding::bad(state, &subject, reason, next, SEE));
    match label {
        _ if deleting => {
            let next = format!("kubectl get namespace {name} -o yaml   # its conditions say what it waits for");
            bad(State::Attention, "it is being deleted".to_owned(), &next)
        }
        _ if name == SYSTEM_NAMESPACE || name == KUBE_SYSTEM => {
            let reason = "admission never injects into pods of this namespace".to_owned();
            bad(State::Attention, reason, "use a namespace of its own for etcd")
        }
        Some(names::DYNAMIC) => {
            let reason = format!("it has opted in: label {}={}", names::LABEL, names::DYNAMIC);
            (true, Finding::ok(subject, reason, SEE))
        }
        Some(names::DISABLED) | None if pods > 0 => {
            let reason = format!("it has not opted in; {pods} of its pods have");
            (false, Finding::ok(subject, reason, SEE))
        }
        Some(names::DISABLED) | None => {
            bad(State::Attention, "neither it nor any pod of it has opted in".to_owned(), &next)
        }
        Some(other) => {
            let reason = format!("label {}={other} means nothing: it has not opted in", names::LABEL);
            bad(State::Failing, reason, &next)
        }
    }
}

/// The rights of the service accounts that request certificates.
async fn requesters(client: &Client, name: &str, opted_in: bool, pods: &[(Settings, String)]) -> Vec<Finding> {
    let mut wanted: BTreeSet<(&str, (&str, &str))> = BTreeSet::new();
    let ours = ("certificates.k8s.io", "certificatesigningrequests");
    if opted_in {
        wanted.insert(("default", ours));
    }
    for (settings, account) in pods.iter().filter(|(settings, _)| !settings.is_of_kubelet()) {
        let resource = match settings.issuer {
            Issuer::CertManager(_) => ("cert-manager.io", "certificaterequests"),
            _ => ours,
        };
        wanted.insert((account, resource));
    }
    let mut findings = Vec::new();
    let mut lacking: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let count = wanted.len();
    for (account, (group, resource)) in wanted {
        let attributes = ResourceAttributes {
            namespace: (group == "cert-manager.io").then(|| name.to_owned()),
            verb: Some("create".to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            ..ResourceAttributes::default()
        };
        match accounts::allowed(client, name, account, attributes).await {
            Ok(true) => {}
            Ok(false) => lacking.entry(format!("create {resource}.{group}")).or_default().push(account),
            Err(error) => {
                let right = Right::new("create", "subjectaccessreviews.authorization.k8s.io", None);
                return vec![unseen("requesters", right, error, SEE)];
            }
        }
    }
    for (right, accounts) in lacking {
        let reason = format!(
            "service accounts {} may not {right}: approve has not bound them yet, or cannot",
            accounts.join(", ")
        );
        findings.push(Finding::bad(State::Failing, "requesters", reason, log_of("approve"), SEE));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("requesters", format!("{count} service accounts may request certificates"), SEE));
    }
    findings
}

fn log_of(process: &str) -> String {
    format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/etcd-tls-{process}")
}

/// The binding by which `sign` publishes trust here.
async fn binding(client: &Client, name: &str) -> Finding {
    let subject = "rolebinding etcd-tls-sign";
    let api: Api<RoleBinding> = Api::namespaced(client.clone(), name);
    match within(api.get_opt("etcd-tls-sign")).await {
        Ok(found) => judge_binding(subject, name, found.as_ref()),
        Err(error) => {
            unseen(subject, Right::new("get", "rolebindings.rbac.authorization.k8s.io", Some(name)), error, SEE)
        }
    }
}

fn judge_binding(subject: &str, name: &str, found: Option<&RoleBinding>) -> Finding {
    let bad = |reason: &str, next: String| Finding::bad(State::Failing, subject, reason, next, SEE);
    let Some(found) = found else {
        return bad(
            "there is none, so sign cannot publish trust here, and pods wait for it: approve makes it",
            log_of("approve"),
        );
    };
    let for_sign = found.subjects.iter().flatten().any(|subject| {
        subject.kind == "ServiceAccount"
            && subject.name == "etcd-tls-sign"
            && subject.namespace.as_deref() == Some(SYSTEM_NAMESPACE)
    });
    if for_sign && found.role_ref.kind == "ClusterRole" && found.role_ref.name == "etcd-tls-trust" {
        Finding::ok(subject, "sign may publish trust here", SEE)
    } else {
        let delete = format!("kubectl -n {name} delete rolebinding etcd-tls-sign   # approve makes it again");
        bad("it gives another role, or gives it to another account", delete)
    }
}

/// The requests of the namespace's service accounts that are refused or wait.
async fn requests(client: &Client, name: &str) -> Vec<Finding> {
    match listed(client, name).await {
        Ok(requests) => judge_requests(&requests, SystemTime::now()),
        Err(error) => {
            let right = Right::new("list", "certificatesigningrequests.certificates.k8s.io", None);
            vec![unseen("requests", right, error, SEE_REQUESTS)]
        }
    }
}

async fn listed(client: &Client, name: &str) -> Result<Vec<CertificateSigningRequest>, ApiServerError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let by = format!("system:serviceaccount:{name}:");
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = within(api.list(&params)).await?;
        found.extend(page.items.into_iter().filter(|csr| {
            let ours = csr.metadata.name.as_deref().is_some_and(|name| name.starts_with("etcd-tls-"));
            ours && csr.spec.username.as_deref().is_some_and(|user| user.starts_with(&by))
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn judge_requests(all: &[CertificateSigningRequest], now: SystemTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut more = 0;
    for csr in all {
        let name = csr.metadata.name.as_deref().unwrap_or_default();
        let conditions = || csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let issued =
            csr.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
        let refused = conditions().find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        let created = csr.metadata.creation_timestamp.as_ref().map(|time| SystemTime::from(time.0));
        let age = created.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        let has = |kind: &str| conditions().any(|condition| condition.type_ == kind);
        let reviewed = || has(names::REVIEWED_CONDITION);
        let waits_for_person = refused.is_none() && !has("Approved") && reviewed();
        let reason = match refused {
            Some(condition) => {
                let why = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("no reason is given");
                format!("{}: {why}", condition.type_.to_lowercase())
            }
            None if issued || age < PATIENCE => continue,
            None if has("Approved") => "it waits for sign".to_owned(),
            None if reviewed() => "it waits for a person to decide".to_owned(),
            None => "it waits for approve".to_owned(),
        };
        if findings.len() == NAMED {
            more += 1;
            continue;
        }
        let reason = format!("{reason}, made {} ago", duration(age));
        let next = if waits_for_person {
            format!("kubectl certificate approve {name}")
        } else {
            format!("kubectl describe csr {name}")
        };
        findings.push(Finding::bad(State::Attention, format!("request {name}"), reason, next, SEE_REQUESTS));
    }
    if more > 0 {
        let next = "kubectl get csr --sort-by=.metadata.creationTimestamp";
        findings.push(Finding::bad(State::Attention, "requests", format!("and {more} more"), next, SEE_REQUESTS));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("requests", format!("none of {} is refused or waits", all.len()), SEE_REQUESTS));
    }
    findings
}

/// Each pod as `status` shows it.
async fn of_pods(client: &Client, name: &str) -> Result<Vec<Finding>, Error> {
    let lines = status::namespace(client, name).await?;
    let well = lines.iter().filter(|line| line.state == State::Ok).count();
    let mut findings = Vec::new();
    for line in lines.iter().filter(|line| line.state != State::Ok) {
        for finding in &line.findings {
            let subject = format!("pod {name}/{}", line.pod);
            findings.push(Finding::bad(finding.state, subject, &finding.reason, &finding.next, SEE_PODS));
        }
    }
    if well > 0 || lines.is_empty() {
        findings.push(Finding::ok("pods", format!("{well} of {} are well", lines.len()), SEE_PODS));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_is_judged_by_its_label_and_its_pods() {
        for (name, label, deleting, pods, opted_in, state, words) in [
            ("web", Some("dynamic"), false, 0, true, State::Ok, "it has opted in"),
            ("web", None, false, 2, false, State::Ok, "2 of its pods have"),
            ("web", None, false, 0, false, State::Attention, "neither it nor any pod"),
            ("web", Some("disabled"), false, 0, false, State::Attention, "neither it nor any pod"),
            ("web", Some("Dynamic"), false, 2, false, State::Failing, "means nothing"),
            ("web", Some("dynamic"), true, 2, false, State::Attention, "being deleted"),
            ("etcd-tls-system", Some("dynamic"), false, 0, false, State::Attention, "never injects"),
            ("kube-system", None, false, 0, false, State::Attention, "never injects"),
        ] {
            let (is, finding) = judge_label(name, label, deleting, pods);
            assert!((is, finding.state) == (opted_in, state) && finding.reason.contains(words), "{name}: {finding:?}");
        }
    }

    #[test]
    fn a_binding_of_another_role_is_no_binding() {
        let of = |role: &str, account: &str| {
            let binding = json!({
                "metadata": {"name": "etcd-tls-sign"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "etcd-tls-system"}],
            });
            judge_binding("b", "web", Some(&serde_json::from_value(binding).unwrap())).state
        };
        assert_eq!(of("etcd-tls-trust", "etcd-tls-sign"), State::Ok);
        assert_eq!(of("view", "etcd-tls-sign"), State::Failing);
        assert_eq!(of("etcd-tls-trust", "default"), State::Failing);
        assert_eq!(judge_binding("b", "web", None).state, State::Failing);
    }

    #[test]
    fn requests_that_are_refused_or_wait_are_named_up_to_some() {
        let now = SystemTime::now();
        let csr = |name: String, status: serde_json::Value| -> CertificateSigningRequest {
            let text = json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "s"}, "status": status,
            });
            serde_json::from_value(text).unwrap()
        };
        let of = |type_: &str| json!({"conditions": [{"type": type_, "status": "True", "message": "why"}]});
        let all = [
            csr("a".into(), of("Denied")),
            csr("b".into(), of("Approved")),
            csr("c".into(), json!({})),
            csr("d".into(), json!({"certificate": "eA=="})),
        ];
        let said: Vec<String> =
            judge_requests(&all, now).into_iter().map(|f| format!("{}: {}", f.subject, f.reason)).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        for (line, words) in said.iter().zip([
            "request a: denied: why",
            "request b: it waits for sign",
            "request c: it waits for approve",
        ]) {
            assert!(line.starts_with(words), "{line}");
        }
        let many: Vec<_> = (0..13).map(|n| csr(n.to_string(), of("Failed"))).collect();
        let findings = judge_requests(&many, now);
        assert!(findings.len() == NAMED + 1 && findings[NAMED].reason == "and 3 more", "{findings:?}");
        assert_eq!(judge_requests(&all[3..], now)[0].state, State::Ok);
    }
}
