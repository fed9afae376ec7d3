//! Service meshes: a mesh that redirects a pod's traffic to its own proxy keeps `etcd-tls-init` from the API server until
//! that proxy runs, hides from etcd whom a peer's connection comes from, and meets kubelet's probes with its own TLS. Each
//! mesh documents annotations that exclude ports; which ones this pod needs is said.

use std::collections::BTreeSet;

use super::{urls::Url, view::Pod};

/// The port of the API server's Service.
const API_SERVER_PORT: u16 = 443;

/// A mesh, by what it leaves in a pod and by its annotations for excluded ports.
struct Mesh {
    name: &'static str,
    /// A label or an annotation, and the values of it that put a pod into the mesh.
    opt_in: (&'static str, &'static [&'static str]),
    /// Annotations that the mesh writes, and containers that it adds.
    annotation: &'static str,
    containers: &'static [&'static str],
    inbound: &'static str,
    outbound: &'static str,
}

const MESHES: [Mesh; 2] = [
    // https://istio.io/latest/docs/reference/config/annotations/ and, for init containers,
    // https://istio.io/latest/docs/setup/additional-setup/cni/#compatibility-with-application-init-containers
    Mesh {
        name: "Istio",
        opt_in: ("sidecar.istio.io/inject", &["true"]),
        annotation: "sidecar.istio.io/status",
        containers: &["istio-proxy", "istio-init", "istio-validation"],
        inbound: "traffic.sidecar.istio.io/excludeInboundPorts",
        outbound: "traffic.sidecar.istio.io/excludeOutboundPorts",
    },
    // https://linkerd.io/2/reference/proxy-configuration/
    Mesh {
        name: "Linkerd",
        opt_in: ("linkerd.io/inject", &["enabled", "ingress"]),
        annotation: "linkerd.io/proxy-version",
        containers: &["linkerd-proxy", "linkerd-init", "linkerd-network-validator"],
        inbound: "config.linkerd.io/skip-inbound-ports",
        outbound: "config.linkerd.io/skip-outbound-ports",
    },
];

/// etcd's ports: those that it listens at, else the usual ones.
pub(super) fn ports(listeners: &[Url]) -> BTreeSet<u16> {
    let ports: BTreeSet<u16> = listeners.iter().map(|url| url.port).collect();
    if ports.is_empty() { BTreeSet::from([2379, 2380]) } else { ports }
}

/// The warnings about the service meshes that `pod` is in. `admin`: the sidecar's port; `members`: etcd's own ports, none of a
/// client.
pub(super) fn warnings(pod: &Pod<'_>, admin: u16, members: &BTreeSet<u16>) -> Vec<String> {
    MESHES.iter().filter(|mesh| mesh.has(pod)).filter_map(|mesh| mesh.warning(pod, admin, members)).collect()
}

impl Mesh {
    fn has(&self, pod: &Pod<'_>) -> bool {
        let (key, values) = self.opt_in;
        let opted = |field| text(pod, field, key).is_some_and(|value| values.contains(&value));
        opted("labels")
            || opted("annotations")
            || text(pod, "annotations", self.annotation).is_some()
            || self.containers.iter().any(|name| pod.container(name).is_some())
    }

    fn warning(&self, pod: &Pod<'_>, admin: u16, members: &BTreeSet<u16>) -> Option<String> {
        let inbound = members.iter().copied().chain([admin]);
        let outbound = [API_SERVER_PORT].into_iter().chain(members.iter().copied());
        let missing: Vec<String> = [(self.inbound, inbound.collect::<Vec<_>>()), (self.outbound, outbound.collect())]
            .into_iter()
            .filter_map(|(annotation, ports)| {
                let excluded = text(pod, "annotations", annotation).unwrap_or_default();
                let lacks = ports.iter().any(|port| !excludes(excluded, *port));
                lacks.then(|| {
                    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                    format!("{annotation}: \"{}\"", ports.join(","))
                })
            })
            .collect();
        (!missing.is_empty()).then(|| {
            format!(
                "{}'s redirect keeps etcd-tls-init from the API server where its proxy does not run yet, and peers from \
                 each other; add the annotations {}",
                self.name,
                missing.join(" and ")
            )
        })
    }
}

/// A label or an annotation of the pod, whatever its prefix.
fn text<'a>(pod: &Pod<'a>, field: &str, key: &str) -> Option<&'a str> {
    pod.metadata.get(field)?.as_object()?.get(key)?.as_str()
}

/// Whether a list of ports and ranges holds `port`; `*` is every port.
fn excludes(list: &str, port: u16) -> bool {
    list.split(',').map(str::trim).any(|entry| match entry.split_once('-') {
        _ if entry == "*" => true,
        Some((from, to)) => match (from.trim().parse::<u16>(), to.trim().parse::<u16>()) {
            (Ok(from), Ok(to)) => (from..=to).contains(&port),
            _ => false,
        },
        None => entry.parse() == Ok(port),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn said(metadata: Value, containers: &[&str]) -> String {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"metadata": metadata, "spec": {"containers": containers}});
        let pod = crate::injection::json::borrowed(&pod);
        let pod = Pod::read(&pod).unwrap();
        warnings(&pod, 9179, &BTreeSet::from([2379, 2380])).join("; ")
    }

    #[test]
    fn a_mesh_is_told_by_label_annotation_or_container() {
        for (metadata, containers, name) in [
            (json!({"labels": {"sidecar.istio.io/inject": "true"}}), &["etcd"][..], "Istio"),
            (json!({"annotations": {"sidecar.istio.io/status": "{}"}}), &["etcd"], "Istio"),
            (json!({}), &["etcd", "istio-proxy"], "Istio"),
            (json!({"annotations": {"linkerd.io/inject": "enabled"}}), &["etcd"], "Linkerd"),
            (json!({}), &["etcd", "linkerd-proxy"], "Linkerd"),
        ] {
            let said = said(metadata, containers);
            assert!(said.starts_with(name), "{said}");
            assert!(said.contains("\"2379,2380,9179\"") && said.contains("\"443,2379,2380\""), "{said}");
        }
        for metadata in [
            json!({}),
            json!({"labels": {"sidecar.istio.io/inject": "false"}}),
            json!({"annotations": {"linkerd.io/inject": "disabled"}}),
        ] {
            assert_eq!(said(metadata, &["etcd"]), "");
        }
    }

    #[test]
    fn excluded_ports_are_not_asked_for_again() {
        let istio = |inbound: &str, outbound: &str| {
            let annotations = json!({
                "sidecar.istio.io/status": "{}",
                "traffic.sidecar.istio.io/excludeInboundPorts": inbound,
                "traffic.sidecar.istio.io/excludeOutboundPorts": outbound,
            });
            said(json!({"annotations": annotations}), &["etcd"])
        };
        assert_eq!(istio("2379,2380, 9179", "443,2379,2380"), "");
        assert_eq!(istio("*", "*"), "");
        let said = istio("2379,2380,9179", "443");
        assert!(said.contains("excludeOutboundPorts") && !said.contains("excludeInboundPorts"), "{said}");
        assert!(excludes("2000-3000", 2379) && !excludes("2000-3000", 443) && !excludes("a-b,", 443));
    }
}
