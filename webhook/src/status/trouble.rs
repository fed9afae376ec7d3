//! Why a pod does not run. Pure.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::rows::duration;

/// How long after its grace a deleted pod may be there: kubelet's work, and clocks that differ.
const LATE: Duration = Duration::from_secs(30);

/// Why it does not run, one line for each reason.
pub(super) fn of(pod: &Pod, now: SystemTime) -> Vec<String> {
    let Some(status) = &pod.status else { return lingers(pod, now).into_iter().collect() };
    let containers = [&status.init_container_statuses, &status.container_statuses];
    let of_containers = containers.into_iter().flatten().flatten().filter_map(of_container);
    lingers(pod, now).into_iter().chain(unscheduled(status)).chain(of_the_whole(status)).chain(of_containers).collect()
}

/// What is said of the pod as a whole, as where its node is lost.
fn of_the_whole(status: &PodStatus) -> Option<String> {
    let reason = status.reason.as_deref().filter(|reason| !reason.is_empty())?;
    let message = status.message.as_deref().map(|message| format!(": {}", message.trim())).unwrap_or_default();
    Some(format!("it is {}: {reason}{message}", status.phase.as_deref().unwrap_or("in no phase")))
}

/// Why a deleted pod is still there, if its grace is over.
fn lingers(pod: &Pod, now: SystemTime) -> Option<String> {
    // The API server adds the pod's grace to the time of the call.
    let end = SystemTime::from(pod.metadata.deletion_timestamp.as_ref()?.0);
    let over = now.duration_since(end).ok().filter(|over| *over > LATE)?;
    let why = match pod.metadata.finalizers.as_deref() {
        None | Some([]) => "its node does not answer, or its containers do not end".to_owned(),
        Some(finalizers) => format!("it has finalizers ({})", finalizers.join(", ")),
    };
    Some(format!("it was deleted, and should have been gone {} ago: {why}", duration(over)))
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
            let pod = json!({"metadata": {}, "status": {"phase": "Pending", "conditions": conditions}});
            of(&serde_json::from_value(pod).unwrap(), SystemTime::UNIX_EPOCH)
        };
        assert_eq!(pod("False"), ["no node runs it: 0/3 nodes are available"]);
        assert_eq!(pod("True"), [""; 0]);
    }

    #[test]
    fn a_pod_on_a_lost_node_says_so() {
        let status = json!({"phase": "Unknown", "reason": "NodeLost", "message": "Node a is unresponsive"});
        let pod = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
        assert_eq!(of(&pod, SystemTime::UNIX_EPOCH), ["it is Unknown: NodeLost: Node a is unresponsive"]);
    }

    #[test]
    fn a_pod_that_outlives_its_deletion_says_why() {
        let at = |seconds: u64, finalizers: &[&str]| {
            let metadata = json!({"deletionTimestamp": "1970-01-01T00:01:00Z", "finalizers": finalizers});
            let pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            of(&pod, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(at(10, &[]), [""; 0], "its containers have time to end");
        assert_eq!(at(80, &[]), [""; 0]);
        let gone = "it was deleted, and should have been gone 1m0s ago: ";
        assert_eq!(at(120, &[]), [format!("{gone}its node does not answer, or its containers do not end")]);
        assert_eq!(at(120, &["a/b"]), [format!("{gone}it has finalizers (a/b)")]);
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
