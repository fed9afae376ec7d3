//! Resources of our containers beyond what the pod has in all, as CEL.

use super::{
    settings::{RESOURCE, gives},
    text::literal,
};

/// Resources of our containers beyond the pod's own.
pub(super) fn room() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, request, limit) in [("cpu", "requestCpu", "limitCpu"), ("memory", "requestMemory", "limitMemory")] {
        let key = literal(name);
        let fine = format!("{} && variables.givenResources.all(r, r.matches({}))", gives(name), literal(RESOURCE));
        let (request, limit) = (format!("variables.{request}"), format!("variables.{limit}"));
        let own = |kind: &str| format!("object.spec.?resources.?{kind}[?{key}]");
        let number = |text: &str| format!("quantity(string({text})).asApproximateFloat()");
        let of_container = format!("c.?resources.?requests[?{key}].orValue(c.?resources.?limits[?{key}].orValue('0'))");
        let fix = format!("raise it in spec.resources, or write requests.{name}=none,limits.{name}=none");
        let ours = format!("({request} != 'none' ? {request} : {limit} != 'none' ? {limit} : '0')");
        all.push((
            format!(
                "{fine} && ({request} != 'none' || {limit} != 'none') && ({}.hasValue() || {}.hasValue())\n\
                 && (variables.main + variables.sidecars).map(c, {}).sum() + {} > {}",
                own("requests"),
                own("limits"),
                number(&of_container),
                number(&ours),
                number(&format!("{}.orValue({}.orValue('0'))", own("requests"), own("limits")))
            ),
            format!(
                "annotation etcd-tls.dev/resources: with {name} for etcd-tls's containers, those of the pod request more than the \
                 pod does; {fix}"
            ),
        ));
    }
    all
}
