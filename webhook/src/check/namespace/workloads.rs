//! Pods of a namespace's workloads, created as a dry run: the API server asks admission, quotas, Pod Security and every other
//! webhook, and stores nothing.

use etcd_tls_contract::{identity, names};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use super::super::{
    finding::{Finding, unseen},
    upgrade,
};
use crate::{
    controller::client::{ApiServerError, within},
    operator::Right,
    status::State,
};

const SEE: &str = "docs/check.md#workloads";
/// Workloads that are tried.
const MOST: usize = 50;
/// Dry runs at once.
const AT_ONCE: usize = 4;

/// Creates a pod of each workload of `namespace` that has opted in, as a dry run.
pub(super) async fn look(client: &Client, namespace: &str, namespace_opted_in: bool) -> Vec<Finding> {
    let (mut pods, mut findings) = (Vec::new(), Vec::new());
    for kind in upgrade::CONTROLLERS {
        match upgrade::list(client, kind, Some(namespace), None).await {
            Ok(items) => pods.extend(items.iter().filter_map(|object| planned(object, namespace_opted_in))),
            Err(error) => findings.push(unseen("workloads", Right::new("list", kind[1], Some(namespace)), error, SEE)),
        }
    }
    let all = pods.len();
    pods.truncate(MOST);
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let tried = pods.into_iter().map(|(workload, pod)| {
        let api = &api;
        async move {
            let answer = match serde_json::from_value(pod) {
                Ok(pod) => within(api.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod)).await,
                Err(error) => Err(kube::Error::SerdeError(error).into()),
            };
            (workload, answer)
        }
    });
    let answers: Vec<_> = stream::iter(tried).buffered(AT_ONCE).collect().await;
    let before = findings.len();
    findings.extend(answers.into_iter().filter_map(|(workload, answer)| judge(namespace, &workload, answer)));
    if all > MOST {
        let next = "etcd-tls-webhook check --pre   # all workloads, without the API server's other checks";
        findings.push(Finding::bad(
            State::Unknown,
            "workloads",
            format!("{} more were not tried", all - MOST),
            next,
            SEE,
        ));
    }
    if findings.len() == before && before == 0 {
        findings.push(Finding::ok("workloads", format!("no pod of {all} workloads would be refused"), SEE));
    }
    findings
}

/// The name of a workload that makes pods, as `<kind> <name>`, and such a pod; `None`: it has not opted in, has no etcd, is made by
/// another one, or is over.
fn planned(object: &Value, namespace_opted_in: bool) -> Option<(String, Value)> {
    let metadata = &object["metadata"];
    let controlled =
        metadata["ownerReferences"].as_array().is_some_and(|all| all.iter().any(|o| o["controller"] == true));
    if controlled || !object["status"]["completionTime"].is_null() {
        return None;
    }
    let (kind, name) = (object["kind"].as_str()?, metadata["name"].as_str()?);
    let spec = if kind == "CronJob" { &object["spec"]["jobTemplate"]["spec"] } else { &object["spec"] };
    let template = &spec["template"];
    let of = |field: &str| serde_json::from_value(template["metadata"][field].clone()).unwrap_or_default();
    let lists = [&template["spec"]["initContainers"], &template["spec"]["containers"]];
    let runs_on = |(at, container): (usize, &&Value)| at == 1 || container["restartPolicy"] == "Always";
    let containers: Vec<&str> = lists
        .iter()
        .enumerate()
        .flat_map(|(at, list)| list.as_array().into_iter().flatten().map(move |container| (at, container)))
        .filter(|(at, container)| runs_on((*at, container)))
        .filter_map(|(_, container)| container["name"].as_str())
        .collect();
    if !identity::opted_in(namespace_opted_in, &of("labels"), &of("annotations"), &containers) {
        return None;
    }
    let mut pod = json!({"metadata": {"generateName": format!("{name}-")}, "spec": template["spec"]});
    for field in ["labels", "annotations"] {
        pod["metadata"][field] = template["metadata"][field].clone();
    }
    // The controller of StatefulSets adds them.
    for claim in spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let claim = &claim["metadata"]["name"];
        let volume = json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        match pod["spec"]["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => pod["spec"]["volumes"] = json!([volume]),
        }
    }
    Some((format!("{kind} {name}"), pod))
}

fn judge(namespace: &str, workload: &str, answer: Result<Pod, ApiServerError>) -> Option<Finding> {
    let (kind, name) = workload.split_once(' ').unwrap_or((workload, ""));
    let edit = format!("kubectl -n {namespace} edit {} {name}", kind.to_lowercase());
    let bad = |state, reason: String, next: String| Some(Finding::bad(state, workload, reason, next, SEE));
    match answer {
        Ok(pod) => {
            let containers = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
            if containers.iter().any(|container| container.name == names::SIDECAR_CONTAINER) {
                return None;
            }
            let reason =
                "a new pod would get no sidecar: admission is not installed, or does not look at this namespace";
            bad(State::Failing, reason.to_owned(), "etcd-tls-webhook check".to_owned())
        }
        Err(error) if error.is_forbidden() && error.to_string().contains("cannot create resource") => {
            Some(unseen(workload, Right::new("create", "pods", Some(namespace)), error, SEE))
        }
        Err(error) => {
            let said = error.to_string();
            // Of one whose use nobody has counted yet: `status unknown for quota`.
            if said.contains("exceeded quota") || said.contains("unknown for quota") {
                let next = format!("kubectl -n {namespace} describe resourcequotas");
                return bad(State::Attention, format!("one more pod would be refused now: {said}"), next);
            }
            if said.contains("failed calling webhook") {
                return bad(
                    State::Failing,
                    format!("a new pod would be refused: {said}"),
                    "etcd-tls-webhook check".to_owned(),
                );
            }
            bad(State::Failing, format!("a new pod would be refused: {said}"), edit)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_pod_is_planned_as_its_controller_makes_it() {
        let set = json!({
            "kind": "StatefulSet", "metadata": {"name": "etcd"},
            "spec": {
                "template": {"metadata": {"labels": {"app": "etcd"}}, "spec": {"containers": [{"name": "etcd"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            },
        });
        let (name, pod) = planned(&set, true).unwrap();
        assert_eq!((name.as_str(), &pod["metadata"]["labels"]["app"]), ("StatefulSet etcd", &json!("etcd")));
        assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data");
        assert_eq!(planned(&set, false), None, "it has not opted in");
        let mut owned = set.clone();
        owned["metadata"]["ownerReferences"] = json!([{"controller": true}]);
        assert_eq!(planned(&owned, true), None);
        let mut other = set;
        other["spec"]["template"]["spec"]["containers"][0]["name"] = "app".into();
        assert_eq!(planned(&other, true), None, "no etcd");
        let job = json!({"spec": {"template": {"metadata": {"labels": {"etcd-tls": "dynamic"}}, "spec": {"containers": [{"name": "c"}]}}}});
        let cron = json!({"kind": "CronJob", "metadata": {"name": "backup"}, "spec": {"jobTemplate": job}});
        assert_eq!(planned(&cron, false).unwrap().0, "CronJob backup");
    }
}
