//! Why a pod does not run. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

/// Why it does not run, one line for each reason.
pub(super) fn of(status: &PodStatus) -> Vec<String> {
    let containers = [&status.init_container_statuses, &status.container_statuses];
    let of_containers = containers.into_iter().flatten().flatten().filter_map(of_container);
    unscheduled(status).into_iter().chain(of_containers).collect()
}

/// The phase of a pod that has ended.
pub(super) fn ended(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref().filter(|phase| matches!(*phase, "Succeeded" | "Failed"))
}

/// Why no node runs a pod, if none does.
fn unscheduled(status: &PodStatus) -> Option<String> {
    let mut conditions = status.conditions.iter().flatten();
    let condition = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let why = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("no reason is given");
    Some(format!("no node runs it: {}", why.trim()))
}

/// Why a container does not run, if it does not.
fn of_container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or("no reason is given");
    // Containers that wait for those before them.
    if matches!(reason, "PodInitializing") {
        return None;
    }
    let mut text = format!("container {} waits: {reason}", status.name);
    for more in [waiting.message.as_deref(), last_words(status)].into_iter().flatten() {
        text += ": ";
        text += more.trim();
    }
    Some(text)
}

fn last_words(status: &ContainerStatus) -> Option<&str> {
    status.last_state.as_ref()?.terminated.as_ref()?.message.as_deref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_no_node_runs_says_why() {
        let pod = |scheduled: &str| {
            let why = "0/3 nodes are available";
            let conditions =
                json!([{"type": "PodScheduled", "status": scheduled, "reason": "Unschedulable", "message": why}]);
            of(&serde_json::from_value(json!({"phase": "Pending", "conditions": conditions})).unwrap())
        };
        assert_eq!(pod("False"), ["no node runs it: 0/3 nodes are available"]);
        assert_eq!(pod("True"), [""; 0]);
    }

    #[test]
    fn a_container_that_waits_says_why() {
        let init = json!({
            "name": "etcd-tls-init", "image": "", "imageID": "", "ready": false, "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 77, "message": "denied: no\n"}},
        });
        let status: ContainerStatus = serde_json::from_value(init).unwrap();
        assert_eq!(of_container(&status).unwrap(), "container etcd-tls-init waits: CrashLoopBackOff: denied: no");
    }
}
