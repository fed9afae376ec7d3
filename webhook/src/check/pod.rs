//! One pod: admission, its requests, its certificates, its etcd.

use std::{str::FromStr, time::SystemTime};

use etcd_tls_contract::{invalid_value::InvalidValue, names};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use super::{finding::Finding, member};
use crate::{
    controller::client::within,
    error::Error,
    operator::Right,
    status::{self, PodReport, State, duration},
};

const SEE_ADMISSION: &str = "docs/check.md#admission-of-a-pod";
const SEE_REQUESTS: &str = "docs/check.md#requests";
const SEE_REVOCATION: &str = "docs/revocation.md#limits";
const SEE_CERTIFICATES: &str = "docs/check.md#certificates";

/// A pod on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its namespace, where the name has one.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
}

impl FromStr for Named {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (namespace, name) = text.split_once('/').map_or((None, text), |(of, name)| (Some(of), name));
        if namespace.is_none_or(names::is_dns_label) && names::is_dns_subdomain(name) {
            Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
        } else {
            Err("is neither the name of a pod nor <namespace>/<name>".into())
        }
    }
}

/// Looks at the pod `name`.
///
/// # Errors
/// It cannot be read.
pub(super) async fn look(client: &Client, namespace: &str, name: &str) -> Result<Vec<Finding>, Error> {
    let subject = format!("pod {namespace}/{name}");
    let pods = || format!("kubectl -n {namespace} get pods");
    Ok(match status::pod(client, namespace, name).await? {
        status::OnePod::Missing => {
            vec![Finding::bad(State::Failing, subject, "there is no such pod", pods(), SEE_ADMISSION)]
        }
        status::OnePod::Ended { phase } => vec![ended(subject, &phase, &describe(namespace, name))],
        status::OnePod::Other { label } => {
            let labelled = label.is_some();
            let of_namespace = if labelled { Ok(None) } else { namespace_label(client, namespace).await };
            vec![not_opted_in(namespace, name, label.as_deref(), of_namespace)]
        }
        status::OnePod::OptedIn(report) => {
            let mut all = findings(namespace, name, &report, SystemTime::now());
            if report.injected {
                all.extend(member::look(client, namespace, name).await);
            }
            all
        }
    })
}

fn describe(namespace: &str, name: &str) -> String {
    format!("kubectl -n {namespace} describe pod {name}")
}

/// A pod that runs no container any more.
fn ended(subject: String, phase: &str, describe: &str) -> Finding {
    let reason = format!("it has ended ({phase}), and needs no certificate any more");
    match phase {
        "Succeeded" => Finding::ok(subject, reason, SEE_ADMISSION),
        _ => Finding::bad(State::Attention, subject, reason, describe, SEE_ADMISSION),
    }
}

/// The namespace's label; an error says which right is missing.
async fn namespace_label(client: &Client, namespace: &str) -> Result<Option<String>, (String, String)> {
    let api: Api<Namespace> = Api::all(client.clone());
    match within(api.get_metadata(namespace)).await {
        Ok(found) => Ok(found.metadata.labels.and_then(|mut labels| labels.remove(names::LABEL))),
        Err(error) => {
            let right = Right::new("get", "namespaces", None);
            let next = right.question();
            Err((right.refused(error).to_string(), next))
        }
    }
}

/// A pod that has no sidecar, and no label that asks for one.
fn not_opted_in(
    namespace: &str,
    name: &str,
    label: Option<&str>,
    of_namespace: Result<Option<String>, (String, String)>,
) -> Finding {
    let subject = format!("pod {namespace}/{name}");
    let bad = |state, reason: String, next: String| Finding::bad(state, &subject, reason, next, SEE_ADMISSION);
    let relabel =
        format!("kubectl label namespace {namespace} etcd-tls=dynamic, then kubectl -n {namespace} delete pod {name}");
    match (label, of_namespace) {
        (Some(label), _) => bad(
            State::Attention,
            format!("it has no sidecar: it is labelled etcd-tls={label}"),
            "remove the label from its template to opt it in".to_owned(),
        ),
        (None, Err((reason, next))) => {
            bad(State::Unknown, format!("it has no sidecar, and whether its namespace has opted in is not known: {reason}"), next)
        }
        (None, Ok(Some(label))) if label == names::DYNAMIC => bad(
            State::Failing,
            "it has no sidecar, though its namespace has opted in: it was created before that, or is no etcd pod (no container \
             etcd and no annotation etcd-tls.dev/roles)"
                .to_owned(),
            format!("kubectl -n {namespace} delete pod {name}, if a controller makes it again"),
        ),
        (None, Ok(_)) => bad(State::Attention, "neither it nor its namespace has opted in".to_owned(), relabel),
    }
}

fn findings(namespace: &str, name: &str, report: &PodReport, now: SystemTime) -> Vec<Finding> {
    let subject = format!("pod {namespace}/{name}");
    let mut all = Vec::new();
    if report.injected {
        let version = report.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
        all.push(Finding::ok(&subject, format!("it has the sidecar{version}"), SEE_ADMISSION));
    }
    if report.injected && !report.ports.is_empty() {
        let reason = status::sentence(&report.ports).map_or_else(
            || "its etcd refuses revoked certificates".to_owned(),
            |sentence| format!("its etcd {sentence}"),
        );
        // Where nobody chose that, it is among the findings below.
        if report.ports.iter().all(|port| !port.unmeant) {
            all.push(Finding::ok("revocation", reason, SEE_REVOCATION));
        }
    }
    let describe = describe(namespace, name);
    for warning in &report.warnings {
        let reason = format!("admission warned: {warning}");
        all.push(Finding::bad(State::Attention, &subject, reason, &describe, SEE_ADMISSION));
    }
    for finding in &report.findings {
        let see = if report.injected { SEE_CERTIFICATES } else { SEE_ADMISSION };
        all.push(Finding::bad(finding.state, &subject, &finding.reason, &finding.next, see));
    }
    for certificate in &report.certificates {
        let (Some(serial), Some(left)) =
            (&certificate.serial, certificate.left_seconds.and_then(|s| u64::try_from(s).ok()))
        else {
            continue;
        };
        let left = duration(std::time::Duration::from_secs(left));
        let reason = format!("serial {serial}, valid for {left}, served by etcd: {}", certificate.served);
        all.push(Finding::ok(format!("certificate {}", certificate.role), reason, SEE_CERTIFICATES));
    }
    for request in &report.requests {
        let age = request.created.and_then(|at| now.duration_since(at).ok()).map(duration);
        let age = age.map(|age| format!(", made {age} ago")).unwrap_or_default();
        let subject = format!("request {} ({})", request.name, request.role);
        let next = format!("kubectl describe csr {}", request.name);
        all.push(match (&request.refused, request.issued) {
            (Some(why), _) => Finding::bad(State::Attention, subject, format!("{why}{age}"), next, SEE_REQUESTS),
            (None, true) => Finding::ok(subject, format!("issued{age}"), SEE_REQUESTS),
            (None, false) if request.awaits_person => Finding::bad(
                State::Attention,
                subject,
                format!("waits for a person to decide{age}"),
                request.command(),
                "docs/approval.md#decide",
            ),
            (None, false) => Finding::bad(
                State::Attention,
                subject,
                format!("not decided or not signed yet{age}"),
                next,
                SEE_REQUESTS,
            ),
        });
    }
    if let Some((reason, next)) = &report.requests_unseen {
        all.push(Finding::bad(State::Unknown, "requests", reason, next, SEE_REQUESTS));
    } else if report.of_kubelet {
        let reason = format!(
            "kubelet makes them (issuer pod-certificate): kubectl -n {namespace} get podcertificaterequests, which stay a few minutes"
        );
        all.push(Finding::ok("requests", reason, SEE_REQUESTS));
    } else if report.requests.is_empty() {
        all.push(Finding::ok("requests", "none is kept: one is deleted five minutes after its issue", SEE_REQUESTS));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_or_without_its_namespace() {
        let of = |text: &str| text.parse::<Named>().map(|named| (named.namespace, named.name)).ok();
        assert_eq!(of("etcd-0"), Some((None, "etcd-0".to_owned())));
        assert_eq!(of("prod/etcd-0"), Some((Some("prod".to_owned()), "etcd-0".to_owned())));
        for other in ["", "etcd_0", "Etcd-0", "pod/prod/etcd-0", "/etcd-0", "prod/", "etcd-0?x=y", ".."] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_pod_that_has_ended_is_not_said_to_lack_a_sidecar() {
        let of = |phase: &str| ended("pod a/b".to_owned(), phase, "describe");
        assert_eq!((of("Succeeded").state, of("Failed").state), (State::Ok, State::Attention));
        assert!(of("Failed").reason.contains("has ended (Failed)"), "{:?}", of("Failed"));
    }

    #[test]
    fn a_pod_that_is_not_served_is_told_why() {
        let of = |label: Option<&str>, namespace: Result<Option<&str>, (String, String)>| {
            let finding = not_opted_in("web", "app-0", label, namespace.map(|label| label.map(str::to_owned)));
            (finding.state, finding.reason)
        };
        assert_eq!(of(Some("disabled"), Ok(None)).0, State::Attention);
        assert_eq!(of(None, Ok(None)).0, State::Attention);
        let (state, reason) = of(None, Ok(Some("dynamic")));
        assert!(state == State::Failing && reason.contains("created before"), "{reason}");
        assert_eq!(of(None, Err(("no right".to_owned(), "ask".to_owned()))).0, State::Unknown);
    }
}
