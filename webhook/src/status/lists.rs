//! Members whose etcd does not look at the revocation list, as their pods show it. Pure.

use etcd_tls_contract::{
    names::{self, ClusterName},
    role::{Domain, Role},
    settings::Settings,
};
use k8s_openapi::api::core::v1::{Container, Pod};

/// A line for each member of `cluster` among `pods` (those of its namespace that have opted in) on which a port takes certificates
/// that `domains` have revoked, and why.
pub(crate) fn without_list(pods: &[Pod], cluster: &ClusterName, domains: &[Domain]) -> Vec<String> {
    let mut lines: Vec<String> = pods.iter().filter_map(|pod| line(pod, cluster, domains)).collect();
    lines.sort();
    lines
}

fn line(pod: &Pod, cluster: &ClusterName, domains: &[Domain]) -> Option<String> {
    if matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return None;
    }
    // Annotations that admission would have refused are no member's.
    let settings = Settings::parse(&pod.metadata.annotations.clone().unwrap_or_default()).ok()?;
    if settings.home(&cluster.namespace) != *cluster {
        return None;
    }
    let ports: Vec<(Role, &str)> = [(Domain::Peer, Role::Peer, "peer"), (Domain::Client, Role::Server, "client")]
        .into_iter()
        .filter(|(domain, role, _)| domains.contains(domain) && settings.roles.contains(role))
        .map(|(_, role, port)| (role, port))
        .filter(|(role, _)| !is_told(pod, *role, &settings))
        .collect();
    let (role, _) = ports.first()?;
    let why = if !containers(pod).any(|container| container.name == names::SIDECAR_CONTAINER) {
        "etcd-tls was not injected; recreate it".to_owned()
    } else if !settings.revocation {
        format!("annotation {}revocation is off", names::ANNOTATION_PREFIX)
    } else if !settings.is_ours() {
        "its certificates are another issuer's".to_owned()
    } else {
        format!(
            "an earlier version injected into it, or its own options leave the list out; recreate it, or give etcd --{}={}",
            option(*role),
            file(&settings, *role)
        )
    };
    let ports: Vec<&str> = ports.iter().map(|(_, port)| *port).collect();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some(format!("pod {name} takes revoked certificates on its {} port: {why}", ports.join(" and ")))
}

/// Whether a container of `pod` has the sidecar's list in its options, by variable or by flag.
fn is_told(pod: &Pod, role: Role, settings: &Settings) -> bool {
    let file = file(settings, role);
    let variable = format!("ETCD_{}", option(role).to_uppercase().replace('-', "_"));
    containers(pod).filter(|container| !is_ours(container)).any(|container| {
        let mut variables = container.env.iter().flatten();
        let mut words = container.command.iter().chain(&container.args).flatten().peekable();
        let mut by_flag = false;
        while let Some(word) = words.next() {
            by_flag |= says(word, option(role), &file)
                || (word.trim_start_matches('-') == option(role) && words.peek().is_some_and(|next| **next == file));
        }
        by_flag || variables.any(|v| v.name == variable && v.value.as_deref() == Some(&file))
    })
}

/// Whether a word, which may be a script, has the flag with this very value.
fn says(word: &str, option: &str, file: &str) -> bool {
    ["=", " "].into_iter().any(|between| {
        let flag = format!("-{option}{between}{file}");
        word.match_indices(&flag).any(|(at, flag)| {
            word[at + flag.len()..].chars().next().is_none_or(|c| c.is_whitespace() || c == '"' || c == '\'')
        })
    })
}

const fn option(role: Role) -> &'static str {
    if matches!(role, Role::Peer) { "peer-crl-file" } else { "client-crl-file" }
}

fn file(settings: &Settings, role: Role) -> String {
    format!("{}/{role}/{}", settings.mount_path, names::CRL_FILE)
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

fn is_ours(container: &Container) -> bool {
    [names::INIT_CONTAINER, names::SIDECAR_CONTAINER].contains(&container.name.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    const PEER: &str = "/etc/etcd/tls/peer/ca.crl";
    const CLIENT: &str = "/etc/etcd/tls/server/ca.crl";

    fn pod(name: &str, annotations: Value, etcd: Value) -> Pod {
        let mut etcd = etcd;
        etcd["name"] = "etcd".into();
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"initContainers": [{"name": "etcd-tls-init"}, {"name": "etcd-tls-sidecar"}], "containers": [etcd]},
        }))
        .unwrap()
    }

    fn found(pod: Pod) -> Option<String> {
        let cluster = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        without_list(&[pod], &cluster, &[Domain::Peer, Domain::Client]).pop()
    }

    #[test]
    fn a_member_that_is_told_by_variable_or_flag_looks_at_the_list() {
        let env =
            json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}, {"name": "ETCD_CLIENT_CRL_FILE", "value": CLIENT}]);
        let flags = [format!("--peer-crl-file={PEER}"), "--client-crl-file".to_owned(), CLIENT.to_owned()];
        let script = format!("exec etcd --peer-crl-file={PEER} --client-crl-file {CLIENT} \"$@\"");
        for etcd in [json!({"env": env}), json!({"args": flags}), json!({"command": ["sh", "-c", script]})] {
            assert_eq!(found(pod("etcd-0", json!({}), etcd.clone())), None, "{etcd}");
        }
        let env = json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}]);
        assert_eq!(found(pod("a", json!({"etcd-tls.dev/roles": "peer"}), json!({"env": env}))), None);
        assert_eq!(found(pod("a", json!({"etcd-tls.dev/roles": "client"}), json!({}))), None, "no member");
        assert_eq!(found(pod("a", json!({"etcd-tls.dev/cluster": "other"}), json!({}))), None);
        let mut over = pod("etcd-0", json!({}), json!({}));
        over.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
        assert_eq!(found(over), None);
    }

    #[test]
    fn one_that_is_not_is_named_with_its_reason() {
        let env = json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}, {"name": "ETCD_CLIENT_CRL_FILE", "value": "/own.crl"}]);
        let flag = json!([format!("--peer-crl-file={PEER}.old")]);
        let off = json!({"etcd-tls.dev/revocation": "off"});
        let foreign = json!({"etcd-tls.dev/issuer": "csr:example.com/etcd"});
        for (annotations, etcd, expected) in [
            (json!({}), json!({}), "peer and client port: an earlier version injected into it"),
            (json!({}), json!({"env": env}), "on its client port: an earlier version"),
            (
                json!({"etcd-tls.dev/roles": "peer"}),
                json!({"args": flag}),
                "give etcd --peer-crl-file=/etc/etcd/tls/peer/ca.crl",
            ),
            (off, json!({}), "annotation etcd-tls.dev/revocation is off"),
            (foreign, json!({}), "another issuer's"),
        ] {
            let said = found(pod("etcd-0", annotations, etcd)).unwrap();
            assert!(said.starts_with("pod etcd-0 takes revoked certificates") && said.contains(expected), "{said}");
        }
        let mut bare = pod("etcd-0", json!({}), json!({}));
        bare.spec.as_mut().unwrap().init_containers = None;
        assert!(found(bare).unwrap().contains("not injected"));
    }
}
