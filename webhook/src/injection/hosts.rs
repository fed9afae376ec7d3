//! Whether a certificate can hold a host that etcd advertises or dials. Pure.
//!
//! Certificates hold the pod's addresses and the names `<service>.<namespace>`, `<pod>.<service>.<namespace>` and both with
//! `.svc` and the cluster's domain; a server's also `localhost`, loopback addresses and its Services' addresses.

use std::net::IpAddr;

use etcd_tls_contract::{role::Role, san::Sans};

use super::view::Container;

/// The names and addresses that certificates will hold.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a str,
    pub(super) container: Container<'a>,
    pub(super) host_network: bool,
    /// Names and addresses that the pod asks for beside its own.
    pub(super) extra: &'a Sans,
    /// The issuer is not ours: it is asked for no Service's name, nor for one with the cluster's domain.
    pub(super) foreign: bool,
    /// kubelet requests the certificate, before the pod has an address: it holds names, and addresses on the host's network alone.
    pub(super) by_name: bool,
    /// Of how many members the cluster is known to be.
    pub(super) members: usize,
    /// The domain of the cluster, where it is known.
    pub(super) domain: Option<&'a str>,
    /// The pod's hostname, empty where it is not known yet, and its subdomain, empty where it has none. `None`: neither is known, or hosts
    /// may be others'.
    pub(super) dns: Option<(&'a str, &'a str)>,
}

/// The judgement of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// One can.
    Possible,
    /// None will; the replacement, if it is evident.
    Never(Option<String>),
    /// None will, since the pod has no subdomain.
    NoSubdomain,
    /// Undetermined.
    Unknown,
}

/// Judges `host` as it is written, brackets included, with `${NAME}` and `$(…)` where only the node knows more.
pub(super) fn held(host: &str, role: Role, facts: &Facts<'_>) -> Held {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // A verifier ignores case and a dot at the end. Names of variables have a case.
    let plain = (!bare.contains('$')).then(|| bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase());
    let bare = plain.as_deref().unwrap_or(bare);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return address(ip, role, facts);
    }
    if bare == "localhost" {
        return loopback(role, facts);
    }
    let labels = labels(bare);
    if let [one] = labels.as_slice()
        && one.starts_with('$')
    {
        return variable(one, facts);
    }
    if extra(bare, facts.extra) {
        return Held::Possible;
    }
    name(&labels, facts)
}

fn address(ip: IpAddr, role: Role, facts: &Facts<'_>) -> Held {
    match ip {
        _ if ip.is_loopback() => loopback(role, facts),
        _ if ip.is_unspecified() => Held::Never(None),
        _ if facts.by_name && !facts.host_network => Held::Never(None),
        // A server's certificate holds its Services' addresses, and on the host's network the host's are the pod's.
        _ if role == Role::Server || facts.host_network || facts.extra.ips.contains(&ip) => Held::Possible,
        _ => Held::Never(None),
    }
}

/// A member alone dials nobody, not even itself.
const fn loopback(role: Role, facts: &Facts<'_>) -> Held {
    if matches!(role, Role::Server) || facts.members < 2 { Held::Possible } else { Held::Never(None) }
}

/// A host that is one variable or the output of one program.
fn variable(hole: &str, facts: &Facts<'_>) -> Held {
    let by_name = facts.by_name && !facts.host_network;
    match (hole, field(hole, &facts.container)) {
        (_, Some("status.podIP" | "status.podIPs")) if by_name => Held::Never(None),
        ("$(hostname -i)" | "$(hostname -I)", None) if by_name => Held::Never(None),
        (_, Some("status.podIP")) => Held::Possible,
        // With two of them it is no host.
        (_, Some("status.podIPs")) => Held::Unknown,
        (_, Some("status.hostIP" | "status.hostIPs")) if facts.host_network => Held::Possible,
        (_, Some("status.hostIP" | "status.hostIPs" | "spec.nodeName" | "metadata.namespace")) => Held::Never(None),
        (_, Some("metadata.name")) | ("${HOSTNAME}" | "$HOSTNAME" | "$(hostname)" | "$(hostname -s)", None) => {
            Held::Never(Some(format!("{hole}.<service>.{}.svc", facts.namespace)))
        }
        ("$(hostname -i)" | "$(hostname -f)" | "$(hostname -I)", None) => Held::Possible,
        _ => Held::Unknown,
    }
}

/// The pod's field that a variable brings.
fn field<'a>(hole: &str, container: &Container<'a>) -> Option<&'a str> {
    let name = hole.strip_prefix("${")?.strip_suffix('}')?;
    let entry = container.list("env").iter().find(|e| e.get("name").as_str() == Some(name))?;
    entry.get("valueFrom").get("fieldRef").get("fieldPath").as_str()
}

fn extra(name: &str, extra: &Sans) -> bool {
    let parent = || name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    !extra.dns.is_empty() && (extra.dns.contains(name) || parent().is_some_and(|parent| extra.dns.contains(&parent)))
}

fn name(labels: &[&str], facts: &Facts<'_>) -> Held {
    let svc = labels.iter().skip(1).rposition(|label| *label == "svc").map(|at| at + 1);
    // A namespace may be called svc: then the last one counts, unless a domain follows.
    let (before, domain) = svc.map_or((labels, false), |at| (&labels[..at], at + 1 < labels.len()));
    let Some((namespace, own)) = before.split_last() else { return Held::Unknown };
    let fits = (1..=2).contains(&own.len()) && !(facts.foreign && (own.len() == 1 || domain));
    let same = *namespace == facts.namespace || field(namespace, &facts.container) == Some("metadata.namespace");
    let whole = || own.join(".");
    let behind = svc.map_or_else(String::new, |at| labels[at + 1..].join("."));
    match (fits, same) {
        (true, true) if domain && behind != facts.domain.unwrap_or("cluster.local") => match facts.domain {
            Some(_) if !behind.contains('$') => Held::Never(Some(format!("{}.{}.svc", whole(), facts.namespace))),
            _ => Held::Unknown,
        },
        (true, true) => own_name(own, facts),
        (false, true) if facts.foreign && own.len() == 2 => {
            Held::Never(Some(format!("{}.{}.svc", whole(), facts.namespace)))
        }
        // The rest of the name, or the namespace, stands in a variable.
        _ if namespace.contains('$') => Held::Unknown,
        _ if svc.is_some() && fits => Held::Never(Some(format!("{}.{}.svc", whole(), facts.namespace))),
        _ if svc.is_none() && (before.len() == 2 || (before.len() == 1 && !facts.foreign)) => {
            Held::Never(Some(format!("{}.{}.svc", before.join("."), facts.namespace)))
        }
        _ => Held::Never(None),
    }
}

/// A Service's name, or `<hostname>.<subdomain>`, of which there is one.
fn own_name(labels: &[&str], facts: &Facts<'_>) -> Held {
    let (Some((hostname, subdomain)), [host, domain]) = (facts.dns, labels) else { return Held::Possible };
    if subdomain.is_empty() && !domain.contains('$') {
        return Held::NoSubdomain;
    }
    let is = |label: &str, own: &str| label == own || label.contains('$') || own.is_empty();
    if is(host, hostname) && is(domain, subdomain) {
        return Held::Possible;
    }
    let host = if is(host, hostname) { host } else { hostname };
    Held::Never(Some(format!("{host}.{subdomain}.{}.svc", facts.namespace)))
}

/// True if a host is a name, at which etcd does not listen.
pub(super) fn is_name(host: &str, container: &Container<'_>) -> bool {
    if host == "localhost" || host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return false;
    }
    match labels(host).as_slice() {
        [one] if one.starts_with('$') => {
            matches!(field(one, container), Some("metadata.name" | "metadata.namespace" | "spec.nodeName"))
                || (["${HOSTNAME}", "$(hostname)", "$(hostname -s)", "$(hostname -f)"].contains(one))
        }
        [.., last] => !last.contains('$') && !last.starts_with(|c: char| c.is_ascii_digit()),
        [] => true,
    }
}

/// The labels of a name; a variable and a program's output are parts of one label.
fn labels(name: &str) -> Vec<&str> {
    let (mut labels, mut start, mut depth) = (Vec::new(), 0_usize, 0_usize);
    for (at, c) in name.char_indices() {
        match c {
            '{' | '(' => depth += 1,
            '}' | ')' => depth = depth.saturating_sub(1),
            '.' if depth == 0 => {
                labels.push(&name[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = &name[start..];
    // A name may end with a dot.
    labels.extend((!last.is_empty() || labels.is_empty()).then_some(last));
    labels
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::injection::view::Pod;

    /// How a host is judged in namespace `prod`, for a member of three.
    fn judged(host: &str, role: Role, change: impl FnOnce(&mut Facts<'_>)) -> Held {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let pod = json!({"spec": {"containers": [{"name": "etcd", "env": [
            field("IP", "status.podIP"), field("HOST_IP", "status.hostIP"), field("POD", "metadata.name"),
            field("NS", "metadata.namespace"), field("IPS", "status.podIPs"),
        ]}]}});
        let pod = crate::injection::json::borrowed(&pod);
        let pod = Pod::read(&pod).unwrap();
        let extra = "etcd.example.com,*.wild.example.com,192.0.2.9".parse().unwrap();
        let container = pod.containers[0];
        let mut facts = Facts {
            namespace: "prod",
            container,
            host_network: false,
            extra: &extra,
            foreign: false,
            by_name: false,
            members: 3,
            domain: None,
            dns: Some(("etcd-0", "etcd")),
        };
        change(&mut facts);
        held(host, role, &facts)
    }

    #[test]
    fn names_that_certificates_hold() {
        for host in [
            "etcd-0.etcd.prod",
            "etcd-0.etcd.prod.svc",
            "etcd-0.etcd.prod.svc.cluster.local",
            "etcd-0.etcd.prod.svc.cluster.local.",
            "etcd.prod.svc",
            "${POD}.etcd.prod.svc",
            "${POD}.etcd.${NS}.svc.cluster.local",
            "${POD}.${SERVICE}.prod.svc",
            "$(hostname).etcd.prod.svc",
            "${IP}",
            "[${IP}]",
            "$(hostname -i)",
            "etcd.example.com",
            "ETCD.Example.com.",
            "Etcd-0.etcd.PROD.svc",
            "a.wild.example.com",
            "192.0.2.9",
        ] {
            assert_eq!(judged(host, Role::Peer, |_| {}), Held::Possible, "{host}");
        }
        for host in ["localhost", "127.0.0.1", "[::1]", "10.96.0.1"] {
            assert_eq!(judged(host, Role::Server, |_| {}), Held::Possible, "{host}");
        }
        assert_eq!(judged("localhost", Role::Peer, |f| f.members = 1), Held::Possible);
        assert_eq!(judged("192.0.2.1", Role::Peer, |f| f.host_network = true), Held::Possible);
        assert_eq!(judged("${HOST_IP}", Role::Peer, |f| f.host_network = true), Held::Possible);
    }

    #[test]
    fn names_that_no_certificate_holds() {
        for (host, instead) in [
            ("etcd-0.etcd", Some("etcd-0.etcd.prod.svc")),
            ("${POD}.etcd", Some("${POD}.etcd.prod.svc")),
            ("$(hostname).etcd", Some("$(hostname).etcd.prod.svc")),
            ("etcd", Some("etcd.prod.svc")),
            ("${POD}", Some("${POD}.<service>.prod.svc")),
            ("${HOSTNAME}", Some("${HOSTNAME}.<service>.prod.svc")),
            ("$(hostname)", Some("$(hostname).<service>.prod.svc")),
            ("etcd-0.etcd.other.svc", Some("etcd-0.etcd.prod.svc")),
            ("etcd-0.etcd.other.svc.cluster.local", Some("etcd-0.etcd.prod.svc")),
            ("a.b.etcd.prod.svc", None),
            ("etcd.example.org", None),
            ("${HOST_IP}", None),
            ("192.0.2.1", None),
            ("0.0.0.0", None),
            ("[::]", None),
            ("localhost", None),
            ("[::1]", None),
        ] {
            assert_eq!(judged(host, Role::Peer, |_| {}), Held::Never(instead.map(str::to_owned)), "{host}");
        }
        for host in ["etcd.prod.svc", "etcd-0.etcd.prod.svc.cluster.local", "etcd"] {
            assert!(matches!(judged(host, Role::Peer, |f| f.foreign = true), Held::Never(_)), "{host}");
        }
        assert_eq!(judged("etcd-0.etcd.prod.svc", Role::Peer, |f| f.foreign = true), Held::Possible);
    }

    #[test]
    fn a_certificate_of_kubelets_holds_names_alone() {
        for host in ["192.0.2.1", "[fd00::1]", "${IP}", "[${IP}]", "$(hostname -i)", "10.96.0.1"] {
            for role in [Role::Peer, Role::Server] {
                let (by_name, on_host) = (
                    |f: &mut Facts<'_>| f.by_name = true,
                    |f: &mut Facts<'_>| {
                        (f.by_name, f.host_network) = (true, true);
                    },
                );
                assert_eq!(judged(host, role, by_name), Held::Never(None), "{host}");
                assert_eq!(judged(host, role, on_host), Held::Possible, "{host}: the host's address is known");
            }
        }
        for host in ["etcd-0.etcd.prod.svc", "${POD}.etcd.prod.svc", "$(hostname -f)"] {
            assert_eq!(judged(host, Role::Peer, |f| f.by_name = true), Held::Possible, "{host}");
        }
        assert_eq!(judged("127.0.0.1", Role::Server, |f| f.by_name = true), Held::Possible);
    }

    #[test]
    fn a_pod_has_one_name_below_its_subdomain() {
        let judged = |host, dns| judged(host, Role::Peer, |f| f.dns = dns);
        let instead = Held::Never(Some("etcd-0.etcd.prod.svc".to_owned()));
        for host in ["etcd-0.etcd-peers.prod.svc", "etcd-1.etcd.prod", "etcd-1.other.prod.svc.cluster.local"] {
            assert_eq!(judged(host, Some(("etcd-0", "etcd"))), instead, "{host}");
            assert_eq!(judged(host, Some(("etcd-0", ""))), Held::NoSubdomain, "{host}");
            assert_eq!(judged(host, None), Held::Possible, "{host}: of a template");
        }
        // Of a pod whose name is not known yet, and of a Service.
        assert_eq!(judged("etcd-1.etcd.prod.svc", Some(("", "etcd"))), Held::Possible);
        assert_eq!(
            judged("${POD}.other.prod.svc", Some(("etcd-0", "etcd"))),
            Held::Never(Some("${POD}.etcd.prod.svc".to_owned()))
        );
        assert_eq!(judged("etcd-peers.prod.svc", Some(("etcd-0", ""))), Held::Possible);
        assert_eq!(judged("a.wild.example.com", Some(("etcd-0", ""))), Held::Possible);
    }

    #[test]
    fn hosts_that_only_the_node_knows_are_unknown() {
        for host in ["${X}", "${POD}.${SERVICE}", "${POD}.etcd.${X}.svc", "$(cat /name)", "${IPS}"] {
            assert_eq!(judged(host, Role::Peer, |_| {}), Held::Unknown, "{host}");
        }
    }

    #[test]
    fn a_name_has_the_clusters_domain() {
        let judged = |host, domain| judged(host, Role::Peer, |f| f.domain = domain);
        let (own, usual) = ("${POD}.etcd.${NS}.svc.example.org", "etcd-0.etcd.prod.svc.cluster.local");
        let instead = |name: &str| Held::Never(Some(format!("{name}.etcd.prod.svc")));
        assert_eq!((judged(own, None), judged(usual, None)), (Held::Unknown, Held::Possible));
        assert_eq!(
            (judged(own, Some("example.org")), judged(own, Some("cluster.local"))),
            (Held::Possible, instead("${POD}"))
        );
        assert_eq!(judged(usual, Some("example.org")), instead("etcd-0"));
        assert_eq!(judged("etcd-0.etcd.prod.svc.${X}", Some("example.org")), Held::Unknown);
        assert_eq!(judged("etcd-0.etcd.prod.svc", Some("example.org")), Held::Possible);
    }

    #[test]
    fn etcd_listens_at_addresses() {
        let pod = json!({"spec": {"containers": [{"name": "etcd", "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]}]}});
        let pod = crate::injection::json::borrowed(&pod);
        let container = Pod::read(&pod).unwrap().containers[0];
        for host in ["", "etcd-0", "${POD}", "${POD}.etcd.prod.svc", "$(hostname)", "${HOSTNAME}.etcd", "${X}.etcd"] {
            assert!(is_name(host, &container), "{host}");
        }
        for host in
            ["0.0.0.0", "[::]", "[fd00::${X}]", "localhost", "${X}", "10.0.0.${X}", "$(hostname -i)", "[${POD}]"]
        {
            assert!(!is_name(host, &container), "{host}");
        }
    }
}
