//! A pod's own resources, `spec.resources`.

use super::*;

/// A member with these resources of the pod and of etcd's container, and the annotation where it is not empty.
fn bounded(pod: Value, etcd: Value, annotation: &str) -> Value {
    with(|member| {
        member["spec"]["resources"] = pod;
        member["spec"]["containers"][0]["resources"] = etcd;
        if !annotation.is_empty() {
            member["metadata"]["annotations"] = json!({"etcd-tls.dev/resources": annotation});
        }
    })
}

fn of_ours(pod: &Value) -> [&Value; 2] {
    [&pod["spec"]["initContainers"][0]["resources"], &pod["spec"]["initContainers"][1]["resources"]]
}

#[test]
fn what_the_pod_bounds_is_left_out() {
    let full = json!({"requests": {"cpu": "500m", "memory": "512Mi"}});
    let (left, rest) = ("10m of cpu and 16Mi of memory", json!({"requests": {}, "limits": {}}));
    for pod in [
        full.clone(),
        // The API server completes what is not named, before admission.
        json!({"limits": {"memory": "50Mi"}}),
        json!({"requests": {"hugepages-2Mi": "2Mi"}}),
        // Numbers and exponents are quantities, too.
        json!({"requests": {"cpu": 1}, "limits": {"memory": "1e9"}}),
    ] {
        let (after, warnings) = injected(&bounded(pod.clone(), full.clone(), ""));
        assert_eq!(of_ours(&after), [&rest, &rest], "{pod}");
        assert!(
            warnings.len() == 1 && warnings[0].contains("spec.resources") && warnings[0].contains(left),
            "{warnings:?}"
        );
    }
    // A pod that bounds nothing of ours.
    for pod in [json!(null), json!({}), json!({"requests": {}, "limits": null})] {
        let (after, warnings) = injected(&bounded(pod.clone(), full.clone(), ""));
        assert_eq!(of_ours(&after)[0]["limits"]["memory"], "64Mi", "{pod}");
        assert_eq!(warnings, [""; 0], "{pod}");
    }
}

#[test]
fn what_the_annotation_asks_for_must_have_room() {
    let etcd = json!({"requests": {"memory": "40Mi"}, "limits": {"cpu": "400m"}});
    for (pod, annotation, said) in [
        (
            json!({"limits": {"memory": "50Mi"}}),
            "requests.memory=11Mi,limits.memory=12Mi",
            "with 11Mi of memory for etcd-tls's containers, those of the pod request more than its 50Mi",
        ),
        (
            json!({"requests": {"memory": "50Mi"}, "limits": {"memory": "1Gi"}}),
            "requests.memory=11Mi",
            "request more than its 50Mi",
        ),
        // A limit is the request where there is none.
        (json!({"requests": {"cpu": "450m"}}), "requests.cpu=none,limits.cpu=100m", "with 100m of cpu"),
    ] {
        let refused = refused(&bounded(pod, etcd.clone(), annotation));
        assert!(refused.starts_with("annotation etcd-tls.dev/resources: ") && refused.contains(said), "{refused}");
        assert!(refused.contains("=none"), "{refused}");
    }
    for (pod, annotation) in [
        (json!({"limits": {"memory": "50Mi"}}), "requests.memory=10Mi,limits.memory=10Mi"),
        // The API server takes a limit above the pod's.
        (json!({"limits": {"memory": "50Mi"}}), "requests.memory=10Mi"),
        (json!({"limits": {"memory": "50Mi"}}), "requests.memory=none,limits.memory=none"),
        (json!({"requests": {"cpu": "500m"}}), "requests.cpu=100m"),
    ] {
        let (_, warnings) = injected(&bounded(pod, etcd.clone(), annotation));
        // Of what the annotation does not give, that alone is said.
        assert!(warnings.len() == 1 && warnings[0].starts_with("spec.resources bounds"), "{annotation}: {warnings:?}");
    }
}
