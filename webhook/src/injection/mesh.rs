//! Service meshes: a mesh that redirects a pod's traffic to its own proxy keeps `etcd-tls-init` from the API server until
//! that proxy runs, hides from etcd whom a peer's connection comes from, and meets kubelet's probes with its own TLS. Each
//! mesh documents annotations that exclude ports, and that it does not redirect what its proxy's user sends. Which ports this
//! pod needs is said; an exclusion by user counts for the connections of that user.

use std::collections::BTreeSet;

use super::{urls::Url, view::Pod};

/// The port of the API server's Service.
const API_SERVER_PORT: u16 = 443;

/// The users of containers; `None` where the pod does not say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Users {
    /// Our own.
    pub(super) own: Option<u64>,
    /// etcd's.
    pub(super) etcd: Option<u64>,
}

/// A mesh, by what it leaves in a pod and by its annotations for excluded ports.
struct Mesh {
    name: &'static str,
    /// A label or an annotation, and the values of it that put a pod into the mesh.
    opt_in: (&'static str, &'static [&'static str]),
    /// A value of the same that keeps the pod out of it.
    opt_out: &'static str,
    /// A label that puts a pod into the mesh with any value.
    revision: Option<&'static str>,
    /// The container of its proxy, the annotation for its user, and its user unless told otherwise.
    proxy: (&'static str, Option<&'static str>, u64),
    /// Annotations that the mesh writes, and containers that it adds.
    annotation: &'static str,
    containers: &'static [&'static str],
    inbound: &'static str,
    outbound: &'static str,
    /// The annotation with the only ports that are redirected.
    redirected: Option<&'static str>,
}

const MESHES: [Mesh; 4] = [
    // https://istio.io/latest/docs/reference/config/annotations/ and, for init containers,
    // https://istio.io/latest/docs/setup/additional-setup/cni/#compatibility-with-application-init-containers
    Mesh {
        name: "Istio",
        opt_in: ("sidecar.istio.io/inject", &["true"]),
        opt_out: "false",
        revision: Some("istio.io/rev"),
        proxy: ("istio-proxy", None, 1337),
        annotation: "sidecar.istio.io/status",
        containers: &["istio-proxy", "istio-init", "istio-validation"],
        inbound: "traffic.sidecar.istio.io/excludeInboundPorts",
        outbound: "traffic.sidecar.istio.io/excludeOutboundPorts",
        redirected: Some("traffic.sidecar.istio.io/includeInboundPorts"),
    },
    // https://linkerd.io/2/reference/proxy-configuration/ and, for init containers,
    // https://linkerd.io/2/features/cni/#allowing-initcontainer-networking
    Mesh {
        name: "Linkerd",
        opt_in: ("linkerd.io/inject", &["enabled", "ingress"]),
        opt_out: "disabled",
        revision: None,
        proxy: ("linkerd-proxy", Some("config.linkerd.io/proxy-uid"), 2102),
        annotation: "linkerd.io/proxy-version",
        containers: &["linkerd-proxy", "linkerd-init", "linkerd-network-validator"],
        inbound: "config.linkerd.io/skip-inbound-ports",
        outbound: "config.linkerd.io/skip-outbound-ports",
        redirected: None,
    },
    // https://kuma.io/docs/latest/reference/kubernetes-annotations/
    Mesh {
        name: "Kuma",
        opt_in: ("kuma.io/sidecar-injection", &["enabled", "true"]),
        opt_out: "disabled",
        revision: None,
        proxy: ("kuma-sidecar", None, 5678),
        annotation: "kuma.io/sidecar-injected",
        containers: &["kuma-sidecar", "kuma-init", "kuma-validation"],
        inbound: "traffic.kuma.io/exclude-inbound-ports",
        outbound: "traffic.kuma.io/exclude-outbound-ports",
        redirected: None,
    },
    // https://developer.hashicorp.com/consul/docs/k8s/annotations-and-labels
    Mesh {
        name: "Consul",
        opt_in: ("consul.hashicorp.com/connect-inject", &["true"]),
        opt_out: "false",
        revision: None,
        proxy: ("consul-dataplane", None, 5995),
        annotation: "consul.hashicorp.com/connect-inject-status",
        containers: &["consul-dataplane", "consul-connect-inject-init"],
        inbound: "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports",
        outbound: "consul.hashicorp.com/transparent-proxy-exclude-outbound-ports",
        redirected: None,
    },
];

/// etcd's ports: those that it listens at, else the usual ones.
pub(super) fn ports(listeners: &[Url]) -> BTreeSet<u16> {
    let ports: BTreeSet<u16> = listeners.iter().map(|url| url.port).collect();
    if ports.is_empty() { BTreeSet::from([2379, 2380]) } else { ports }
}

/// The warnings about the service meshes that `pod` is in. `admin`: the sidecar's port; `members`: etcd's own ports, none of a
/// client.
pub(super) fn warnings(pod: &Pod<'_>, admin: u16, members: &BTreeSet<u16>, users: Users) -> Vec<String> {
    MESHES.iter().filter(|mesh| mesh.has(pod)).filter_map(|mesh| mesh.warning(pod, admin, members, users)).collect()
}

impl Mesh {
    fn has(&self, pod: &Pod<'_>) -> bool {
        let (key, values) = self.opt_in;
        let marked = |field| text(pod, field, key);
        let opted = |field| marked(field).is_some_and(|value| values.contains(&value));
        let out = |field| marked(field) == Some(self.opt_out);
        let revision = self.revision.is_some_and(|label| text(pod, "labels", label).is_some());
        opted("labels")
            || opted("annotations")
            || (revision && !out("labels") && !out("annotations"))
            || text(pod, "annotations", self.annotation).is_some()
            || self.containers.iter().any(|name| pod.container(name).is_some())
    }

    /// The user of its proxy, from which nothing is redirected.
    fn user(&self, pod: &Pod<'_>) -> u64 {
        let (container, annotation, default) = self.proxy;
        let declared = pod.container(container).and_then(|container| pod.user(&container));
        let annotated = annotation.and_then(|key| text(pod, "annotations", key)?.parse().ok());
        declared.or(annotated).unwrap_or(default)
    }

    fn warning(&self, pod: &Pod<'_>, admin: u16, members: &BTreeSet<u16>, users: Users) -> Option<String> {
        let proxy = self.user(pod);
        let (own_is_free, etcd_is_free) = (users.own == Some(proxy), users.etcd == Some(proxy));
        let inbound = members.iter().copied().chain([admin]);
        let api_server = (!own_is_free).then_some(API_SERVER_PORT);
        let outbound = api_server.into_iter().chain(members.iter().copied().filter(|_| !etcd_is_free));
        let redirected = self.redirected.and_then(|key| text(pod, "annotations", key));
        let missing = |annotation: &'static str, ports: Vec<u16>| {
            let excluded = text(pod, "annotations", annotation).unwrap_or_default();
            let apart = |port: u16| annotation == self.inbound && redirected.is_some_and(|only| !excludes(only, port));
            let lacks = ports.iter().any(|port| !excludes(excluded, *port) && !apart(*port));
            let listed: Vec<String> = ports.iter().map(ToString::to_string).collect();
            lacks.then(|| (format!("{annotation}: \"{}\"", listed.join(",")), excluded))
        };
        let outbound = missing(self.outbound, outbound.collect());
        // Where our user is ours to choose, and port 443 is not excluded yet.
        let by_user = outbound
            .as_ref()
            .filter(|(_, excluded)| !own_is_free && users.etcd.is_none() && !excludes(excluded, API_SERVER_PORT));
        let by_user = by_user.map(|_| {
            format!("; port {API_SERVER_PORT} may stay out of it where etcd-tls runs as the proxy's user (--sidecar-user={proxy})")
        });
        let missing: Vec<String> =
            [missing(self.inbound, inbound.collect()), outbound].into_iter().flatten().map(|(said, _)| said).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "{}'s redirect keeps etcd-tls-init from the API server where its proxy does not run yet, and peers from \
                 each other; add the annotations {}{}",
                self.name,
                missing.join(" and "),
                by_user.unwrap_or_default()
            )
        })
    }
}

/// A label or an annotation of the pod, whatever its prefix.
fn text<'a>(pod: &Pod<'a>, field: &str, key: &str) -> Option<&'a str> {
    pod.metadata.get(field)?.as_object()?.get(key)?.as_str()
}

/// True if a list of ports and ranges holds `port`; `*` is every port.
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
        said_of(metadata, containers, Users::default())
    }

    fn said_of(metadata: Value, containers: Vec<Value>, users: Users) -> String {
        let pod = json!({"metadata": metadata, "spec": {"containers": containers}});
        let pod = crate::injection::json::borrowed(&pod);
        let pod = Pod::read(&pod).unwrap();
        warnings(&pod, 9179, &BTreeSet::from([2379, 2380]), users).join("; ")
    }

    #[test]
    fn a_mesh_is_told_by_label_annotation_or_container() {
        for (metadata, containers, name) in [
            (json!({"labels": {"sidecar.istio.io/inject": "true"}}), &["etcd"][..], "Istio"),
            (json!({"labels": {"istio.io/rev": "canary"}}), &["etcd"], "Istio"),
            (json!({"annotations": {"sidecar.istio.io/status": "{}"}}), &["etcd"], "Istio"),
            (json!({}), &["etcd", "istio-proxy"], "Istio"),
            (json!({"annotations": {"linkerd.io/inject": "enabled"}}), &["etcd"], "Linkerd"),
            (json!({}), &["etcd", "linkerd-proxy"], "Linkerd"),
            (json!({"labels": {"kuma.io/sidecar-injection": "enabled"}}), &["etcd"], "Kuma"),
            (json!({}), &["etcd", "kuma-sidecar"], "Kuma"),
            (json!({"annotations": {"consul.hashicorp.com/connect-inject": "true"}}), &["etcd"], "Consul"),
            (json!({"annotations": {"consul.hashicorp.com/connect-inject-status": "injected"}}), &["etcd"], "Consul"),
        ] {
            let said = said(metadata, containers);
            assert!(said.starts_with(name), "{said}");
            assert!(said.contains("\"2379,2380,9179\"") && said.contains("\"443,2379,2380\""), "{said}");
        }
        for metadata in [
            json!({}),
            json!({"labels": {"sidecar.istio.io/inject": "false"}}),
            json!({"labels": {"sidecar.istio.io/inject": "false", "istio.io/rev": "canary"}}),
            json!({"labels": {"istio.io/rev": "canary"}, "annotations": {"sidecar.istio.io/inject": "false"}}),
            json!({"annotations": {"linkerd.io/inject": "disabled"}}),
            json!({"labels": {"kuma.io/sidecar-injection": "disabled"}}),
            json!({"annotations": {"consul.hashicorp.com/connect-inject": "false"}}),
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

    #[test]
    fn the_only_redirected_ports_are_not_others() {
        let only = |ports: &str| {
            let annotations = json!({
                "sidecar.istio.io/status": "{}",
                "traffic.sidecar.istio.io/includeInboundPorts": ports,
                "traffic.sidecar.istio.io/excludeOutboundPorts": "*",
            });
            said(json!({"annotations": annotations}), &["etcd"])
        };
        assert_eq!((only("").as_str(), only("8080").as_str()), ("", ""));
        assert!(only("*").contains("excludeInboundPorts") && only("2380").contains("excludeInboundPorts"));
    }

    #[test]
    fn the_proxys_user_needs_no_excluded_ports() {
        let users = |own, etcd| Users { own, etcd };
        let of = |metadata: &Value, proxy: Value, users| {
            said_of(metadata.clone(), vec![json!({"name": "etcd"}), proxy], users)
        };
        let istio = json!({"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "*"}});
        let proxy = |user: Value| json!({"name": "istio-proxy", "securityContext": {"runAsUser": user}});
        let both = "traffic.sidecar.istio.io/excludeOutboundPorts: \"443,2379,2380\"";
        // Another user, of which nothing is excluded: and how it could be, unless etcd's user decides.
        let said = of(&istio, proxy(json!(1337)), users(Some(65532), None));
        assert!(said.contains(both) && said.ends_with("(--sidecar-user=1337)"), "{said}");
        let said = of(&istio, proxy(json!(1337)), users(Some(1000), Some(1000)));
        assert!(said.ends_with(both), "{said}");
        // Ours is the proxy's: the API server is reached, the members' peers are not.
        let said = of(&istio, proxy(json!(1337)), users(Some(1337), None));
        assert!(said.ends_with("traffic.sidecar.istio.io/excludeOutboundPorts: \"2379,2380\""), "{said}");
        // etcd's, too.
        assert_eq!(of(&istio, proxy(json!(1337)), users(Some(1337), Some(1337))), "");
        // The proxy's user is the declared one; without one, the mesh's own.
        let said = of(&istio, proxy(json!(1000650001)), users(Some(1337), None));
        assert!(said.contains(both) && said.ends_with("(--sidecar-user=1000650001)"), "{said}");
        assert_eq!(of(&istio, proxy(Value::Null), users(Some(1337), Some(1337))), "");

        let linkerd = |user: Value| {
            json!({"annotations": {
                "linkerd.io/inject": "enabled", "config.linkerd.io/skip-inbound-ports": "2379,2380,9179",
                "config.linkerd.io/proxy-uid": user,
            }})
        };
        let app = json!({"name": "app"});
        assert_eq!(of(&linkerd(Value::Null), app.clone(), users(Some(2102), Some(2102))), "");
        assert_eq!(of(&linkerd(json!("7777")), app.clone(), users(Some(7777), Some(7777))), "");
        let said = of(&linkerd(json!("7777")), app, users(Some(2102), None));
        assert!(
            said.contains("skip-outbound-ports: \"443,2379,2380\"") && said.ends_with("(--sidecar-user=7777)"),
            "{said}"
        );
    }
}
