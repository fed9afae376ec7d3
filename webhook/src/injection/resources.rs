//! A pod's own resources (`spec.resources`, Kubernetes 1.34 and later), which bound all of its containers together.
//!
//! The API server takes no pod whose containers request more than the pod. A request that `spec.resources`
//! lacks it makes of those of the containers, before admission adds ours. So our containers have none of their own there.

use etcd_tls_contract::settings::Quantity;

use super::{
    Work,
    json::{Json, Object},
    parts,
    view::Container,
};

/// The resources that a pod can bound and that ours have.
pub(super) const BOUNDED: [&str; 2] = ["cpu", "memory"];

impl<'a> Work<'a> {
    /// Leaves out what the pod bounds, or refuses what the annotation asks for beyond it.
    pub(super) fn check_resources(&mut self) {
        let Some(pod) = self.pod.spec.get("resources").and_then(Json::as_object) else { return };
        let any = |kind: &str| pod.get(kind).and_then(Json::as_object).is_some_and(|of| of.iter().next().is_some());
        if !any("requests") && !any("limits") {
            return;
        }
        let usual = parts::default_resources(self.config);
        let mut left_out = Vec::new();
        for name in BOUNDED {
            let (request, limit) = (quantity(pod, "requests", name), quantity(pod, "limits", name));
            if self.settings.resources.gives(name) {
                self.check_room(name, request.or(limit).as_ref());
            } else {
                self.settings.resources.leave_out(name);
                let of = usual.requests().find(|(of, _)| *of == name).map_or("", |(_, text)| text);
                left_out.push(format!("{of} of {name}"));
            }
        }
        if !left_out.is_empty() {
            self.warnings.push(format!(
                "spec.resources bounds the whole pod, so etcd-tls's containers have no requests and limits of their own there; leave \
                 room for about {}",
                left_out.join(" and ")
            ));
        }
    }

    /// Checks that the pod's request, else its limit, has room for what the annotation gives our containers.
    fn check_room(&mut self, name: &str, request: Option<&Quantity>) {
        let ours = self.settings.resources.over(&parts::default_resources(self.config));
        let of = |map: &std::collections::BTreeMap<String, Option<Quantity>>| map.get(name).cloned().flatten();
        let (our_request, our_limit) = (of(&ours.requests), of(&ours.limits));
        let fix = format!("raise it in spec.resources, or write requests.{name}=none,limits.{name}=none");
        // A limit without a request is the request, too.
        let Some(added) = our_request.or(our_limit) else { return };
        let others = self.pod.containers.iter().filter(|c| c.runs_on() && !c.is_injected());
        let sum = others.map(|c| requested(c, name)).sum::<u128>() + added.milli();
        if let Some(request) = request.filter(|request| sum > request.milli()) {
            self.problems.push(format!(
                "annotation etcd-tls.dev/resources: with {added} of {name} for etcd-tls's containers, those of the pod request more \
                 than its {request}; {fix}"
            ));
        }
    }
}

/// The request of a container, which is its limit where it has none, in thousandths; 0 where it is not one that can be read.
fn requested(container: &Container<'_>, name: &str) -> u128 {
    let Some(resources) = container.object.get("resources").and_then(Json::as_object) else { return 0 };
    let found = ["requests", "limits"].into_iter().find_map(|kind| quantity(resources, kind, name));
    found.map_or(0, |quantity| quantity.milli())
}

fn quantity(resources: &Object<'_>, kind: &str, name: &str) -> Option<Quantity> {
    let value = resources.get(kind)?.get(name);
    let text = value.as_str().map(str::to_owned).or_else(|| Some(value.as_u64()?.to_string()))?;
    text.parse().ok()
}
