//! `check --pre`: before an upgrade, the pods that this version would refuse, and what an older version has left behind.

use std::collections::BTreeSet;

use etcd_tls_contract::names::SYSTEM_NAMESPACE;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use super::finding::{Finding, unseen};
use crate::{
    controller::client::{ApiServerError, within},
    error::Error,
    inject, injection,
    operator::{Cluster, Right},
    status::State,
};

const SEE_PODS: &str = "docs/upgrade.md#before-the-pods-that-the-new-version-would-refuse";
const SEE_LEFT: &str = "docs/upgrade.md#after-objects-that-have-been-replaced";
const PAGE: u32 = 100;
/// The version of every listed kind.
const VERSION: &str = "v1";
/// The label of every shipped object, and of no object that our processes create in the system namespace.
const OURS: &str = "app.kubernetes.io/name=etcd-tls";

/// The kinds that make pods, with their resources.
pub(super) const CONTROLLERS: [[&str; 2]; 6] = [
    ["StatefulSet", "statefulsets.apps"],
    ["Deployment", "deployments.apps"],
    ["DaemonSet", "daemonsets.apps"],
    ["ReplicaSet", "replicasets.apps"],
    ["Job", "jobs.batch"],
    ["CronJob", "cronjobs.batch"],
];
/// What `--pre` reads beside them: the Namespaces with the opt-in label, and pods.
const MORE: [[&str; 2]; 2] = [["Namespace", "namespaces"], ["Pod", "pods"]];

/// The shipped kinds: those of the cluster, then those of the system namespace.
const CLUSTER: [[&str; 2]; 8] = [
    ["ValidatingAdmissionPolicy", "validatingadmissionpolicies.admissionregistration.k8s.io"],
    ["ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings.admissionregistration.k8s.io"],
    ["MutatingWebhookConfiguration", "mutatingwebhookconfigurations.admissionregistration.k8s.io"],
    ["ValidatingWebhookConfiguration", "validatingwebhookconfigurations.admissionregistration.k8s.io"],
    ["ClusterRole", "clusterroles.rbac.authorization.k8s.io"],
    ["ClusterRoleBinding", "clusterrolebindings.rbac.authorization.k8s.io"],
    ["FlowSchema", "flowschemas.flowcontrol.apiserver.k8s.io"],
    ["PriorityLevelConfiguration", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io"],
];
const SYSTEM: [[&str; 2]; 8] = [
    ["Deployment", "deployments.apps"],
    ["Service", "services"],
    ["ServiceAccount", "serviceaccounts"],
    ["ResourceQuota", "resourcequotas"],
    ["Role", "roles.rbac.authorization.k8s.io"],
    ["RoleBinding", "rolebindings.rbac.authorization.k8s.io"],
    ["NetworkPolicy", "networkpolicies.networking.k8s.io"],
    ["PodDisruptionBudget", "poddisruptionbudgets.policy"],
];

/// The shipped objects of this version, of the checked kinds.
const SHIPPED: [&str; 23] = [
    include_str!("../../../manifests/service-accounts.yaml"),
    include_str!("../../../manifests/rbac-requesters.yaml"),
    include_str!("../../../manifests/rbac-approve.yaml"),
    include_str!("../../../manifests/rbac-sign.yaml"),
    include_str!("../../../manifests/rbac-authorities.yaml"),
    include_str!("../../../manifests/flow.yaml"),
    include_str!("../../../manifests/guards/requests.yaml"),
    include_str!("../../../manifests/guards/trust.yaml"),
    include_str!("../../../manifests/guards/bindings.yaml"),
    include_str!("../../../manifests/guards/secrets.yaml"),
    include_str!("../../../manifests/guards/webhooks.yaml"),
    include_str!("../../../manifests/guards/pods.yaml"),
    include_str!("../../../manifests/guards/housekeeping.yaml"),
    include_str!("../../../manifests/admit.yaml"),
    include_str!("../../../manifests/approve.yaml"),
    include_str!("../../../manifests/sign.yaml"),
    include_str!("../../../manifests/webhook.yaml"),
    include_str!("../../../manifests/network.yaml"),
    include_str!("../../../manifests/disruption.yaml"),
    include_str!("../../../manifests/components/cert-manager/requests.yaml"),
    include_str!("../../../manifests/components/cluster-trust-bundles/policy.yaml"),
    include_str!("../../../manifests/components/pod-certificates/policy.yaml"),
    include_str!("../../../manifests/components/without-webhook/policies.yaml"),
];

/// Looks at the live workloads and at the install.
///
/// # Errors
/// The API server cannot be reached.
pub(super) async fn look(cluster: &Cluster) -> Result<Vec<Finding>, Error> {
    let (client, _) = cluster.connect().await?;
    let (mut objects, mut findings) = (Vec::new(), Vec::new());
    for kind in CONTROLLERS.into_iter().chain(MORE) {
        match list(&client, kind, None, None).await {
            Ok(items) => objects.extend(items),
            Err(error) if error.is_unanswered() => return Err(Right::new("list", kind[1], None).refused(error).into()),
            Err(error) => findings.push(hidden("workloads", kind, None, error, SEE_PODS)),
        }
    }
    let all_seen = findings.is_empty();
    // Without them nobody knows who has opted in.
    if objects.iter().any(|object| object["kind"] == "Namespace") {
        let report = inject::would_refuse(&objects);
        findings.extend(report.refused.iter().map(|line| refused(line)));
        if report.refused.is_empty() && all_seen {
            let reason = format!("no pod would be refused; {} workloads have opted in", report.judged);
            findings.push(Finding::ok("workloads", reason, SEE_PODS));
        }
    }
    let (shipped, before) = (shipped()?, findings.len());
    let kinds = CLUSTER.into_iter().map(|kind| (kind, None));
    for (kind, namespace) in kinds.chain(SYSTEM.into_iter().map(|kind| (kind, Some(SYSTEM_NAMESPACE)))) {
        match list(&client, kind, namespace, Some(OURS)).await {
            Ok(items) => {
                for object in items.iter().filter(|object| !is_shipped(object, &shipped)) {
                    findings.push(leftover(object, namespace));
                }
            }
            Err(error) if error.is_unanswered() => {
                return Err(Right::new("list", kind[1], namespace).refused(error).into());
            }
            Err(error) => findings.push(hidden("replaced objects", kind, namespace, error, SEE_LEFT)),
        }
    }
    if findings.len() == before {
        findings.push(Finding::ok("replaced objects", "nothing was seen that this version does not ship", SEE_LEFT));
    }
    Ok(findings)
}

/// A kind that could not be listed.
fn hidden(
    subject: &str,
    [_, resource]: [&'static str; 2],
    namespace: Option<&str>,
    error: ApiServerError,
    see: &'static str,
) -> Finding {
    unseen(subject, Right::new("list", resource, namespace), error, see)
}

/// All objects of a kind, a page at a time, as they stand in a manifest.
pub(super) async fn list(
    client: &Client,
    [kind, resource]: [&str; 2],
    namespace: Option<&str>,
    labels: Option<&str>,
) -> Result<Vec<Value>, ApiServerError> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let api_version = if group.is_empty() { VERSION.to_owned() } else { format!("{group}/{VERSION}") };
    let resource = ApiResource {
        group: group.to_owned(),
        version: VERSION.to_owned(),
        api_version: api_version.clone(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let mut parameters = ListParams::default().limit(PAGE);
    if let Some(labels) = labels {
        parameters = parameters.labels(labels);
    }
    let mut objects = Vec::new();
    loop {
        let page = within(api.list(&parameters)).await?;
        for item in page.items {
            let mut object = serde_json::to_value(item).map_err(kube::Error::SerdeError)?;
            object["apiVersion"] = api_version.as_str().into();
            object["kind"] = kind.into();
            objects.push(object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

/// `<namespace>: <kind> <name>: <reason>`, as a finding.
fn refused(line: &str) -> Finding {
    let place = line.split_once(": ").and_then(|(namespace, rest)| {
        let (kind, rest) = rest.split_once(' ')?;
        let name = rest.split(':').next()?;
        // Nothing of these that matters can be changed.
        let again = matches!(kind, "Pod" | "Job");
        let verb = if again { "delete" } else { "edit" };
        let command = format!("kubectl -n {namespace} {verb} {} {name}", kind.to_lowercase());
        let place = format!("{}metadata.annotations", template(kind));
        Some(match options(line) {
            None if again => format!("{command}   # and create it again, corrected"),
            None => command,
            Some(options) if again => {
                format!("{command}   # and create it again, in {place} etcd-tls.dev/options: {options}")
            }
            Some(options) => format!("{command}   # in {place}, add etcd-tls.dev/options: {options}"),
        })
    });
    let next = place.unwrap_or_else(|| "correct the workload that the reason names".to_owned());
    Finding::bad(State::Attention, "workloads", format!("would be refused: {line}"), next, SEE_PODS)
}

/// The value of the annotation `options` by which the reason's pod is injected, where one does.
fn options(line: &str) -> Option<&'static str> {
    match line {
        line if line.contains(injection::STATE_ENV) => Some("env (or none, with the flags of the reason)"),
        line if line.contains(injection::STATE_NONE) => Some("none, and give the flags of the reason"),
        _ => None,
    }
}

/// The path of the pod template in objects of this kind, with a dot behind it.
fn template(kind: &str) -> &'static str {
    match kind {
        "Pod" => "",
        "CronJob" => "spec.jobTemplate.spec.template.",
        _ => "spec.template.",
    }
}

/// Kind and name of all that is shipped.
fn shipped() -> Result<BTreeSet<(String, String)>, Error> {
    let mut all = BTreeSet::new();
    for text in SHIPPED {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| format!("a manifest: {e}"))?;
        all.extend(documents.iter().map(identity));
    }
    // Of the component priority.
    all.insert(("ResourceQuota".to_owned(), "etcd-tls-critical".to_owned()));
    Ok(all)
}

fn identity(object: &Value) -> (String, String) {
    let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (of(&object["kind"]), of(&object["metadata"]["name"]))
}

fn is_shipped(object: &Value, shipped: &BTreeSet<(String, String)>) -> bool {
    let (kind, name) = identity(object);
    // `approve` makes further ones beside the shipped one.
    let numbered = kind == "ClusterRoleBinding"
        && name.strip_prefix("etcd-tls-requesters-").is_some_and(|n| n.len() == 1 && ("1"..="7").contains(&n));
    numbered || shipped.contains(&(kind, name))
}

fn leftover(object: &Value, namespace: Option<&str>) -> Finding {
    let (kind, name) = identity(object);
    let place = namespace.map_or_else(String::new, |namespace| format!("-n {namespace} "));
    Finding::bad(
        State::Attention,
        "replaced objects",
        format!(
            "{kind} {name} is labelled {OURS}, and this version does not ship it; an object of another version \
             stays in force"
        ),
        format!("kubectl {place}delete {} {name}", kind.to_lowercase()),
        SEE_LEFT,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn shipped_objects_are_distinguished_from_leftovers() {
        let shipped = shipped().unwrap();
        assert!(shipped.len() > 40, "{shipped:?}");
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name}});
        for (kind, name) in [
            ("Deployment", "etcd-tls-sign"),
            ("ClusterRoleBinding", "etcd-tls-requesters"),
            ("ClusterRoleBinding", "etcd-tls-requesters-7"),
            ("ValidatingAdmissionPolicy", "etcd-tls-pods"),
        ] {
            assert!(is_shipped(&object(kind, name), &shipped), "{kind} {name}");
        }
        for (kind, name) in [
            ("Deployment", "etcd-tls-signer"),
            ("ClusterRoleBinding", "etcd-tls-requesters-8"),
            ("ClusterRoleBinding", "etcd-tls-requesters-10"),
            ("ClusterRole", "etcd-tls-requesters-1"),
        ] {
            assert!(!is_shipped(&object(kind, name), &shipped), "{kind} {name}");
        }
        let finding = leftover(&object("Role", "etcd-tls-old"), Some("etcd-tls-system"));
        assert_eq!(finding.next.as_deref(), Some("kubectl -n etcd-tls-system delete role etcd-tls-old"));
        let finding = refused("prod: StatefulSet etcd: annotation duration: not a duration");
        assert_eq!(finding.next.as_deref(), Some("kubectl -n prod edit statefulset etcd"));
    }

    #[test]
    fn a_command_line_that_cannot_be_told_gets_its_annotation() {
        let container = json!({"name": "etcd", "image": "etcd", "command": ["sh", "-c", ". /env; etcd $FLAGS"]});
        let template = json!({"spec": {"containers": [container]}});
        for (kind, version, spec, place) in [
            ("StatefulSet", "apps/v1", json!({"template": template}), "spec.template.metadata.annotations"),
            (
                "CronJob",
                "batch/v1",
                json!({"jobTemplate": {"spec": {"template": template}}}),
                "spec.jobTemplate.spec.template.metadata.annotations",
            ),
            ("Pod", "v1", template["spec"].clone(), "delete pod etcd   # and create it again, in metadata.annotations"),
            (
                "Job",
                "batch/v1",
                json!({"template": template}),
                "delete job etcd   # and create it again, in spec.template.metadata.annotations",
            ),
        ] {
            let metadata = json!({"name": "etcd", "namespace": "prod"});
            let report = inject::would_refuse(&[
                json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}),
            ]);
            assert_eq!(report.refused.len(), 1, "{report:?}");
            let next = refused(&report.refused[0]).next.unwrap();
            assert!(next.contains(place) && next.contains("etcd-tls.dev/options: env (or none"), "{next}");
        }
    }
}
