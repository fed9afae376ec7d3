//! Reads from a member's pod if its etcd reads the revocation lists. Pure.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
};

use etcd_tls_contract::{
    certificate::Bundle,
    crl::Crl,
    names::{self, ClusterName},
    role::{Domain, Role},
    settings::{OptionsMode, Settings},
};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod};
use serde::Serialize;

use super::membership::{self, Membership};
use crate::injection::{self, ToldList, list_option};

/// A port of etcd that takes client certificates, and whether it refuses those that are revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Port {
    /// `peer` or `client`.
    pub(crate) port: &'static str,
    /// The domain of the list.
    pub(crate) domain: Domain,
    /// True if etcd has the list in its options.
    pub(crate) enforced: bool,
    /// The reason where it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// True if nobody chose that: a new pod would have it.
    #[serde(skip)]
    pub(crate) unmeant: bool,
    /// True if there is no list for the port, whatever its etcd looks at: the CA may not sign one.
    #[serde(skip)]
    pub(crate) unlisted: bool,
}

/// The ports of a member's etcd; none of a pod that is no member.
pub(crate) fn ports(pod: &Pod, settings: &Settings) -> Vec<Port> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    ports_by(pod, settings, || injection::told_lists(&serde_json::to_value(pod).ok()?, settings, namespace).ok())
}

/// The same; `told` reads the scripts of the pod for what its etcd is told.
fn ports_by(pod: &Pod, settings: &Settings, told: impl FnOnce() -> Option<Vec<(Role, ToldList)>>) -> Vec<Port> {
    let told = LazyCell::new(told);
    let all = [(Domain::Peer, Role::Peer, "peer"), (Domain::Client, Role::Server, "client")];
    let serves = all.into_iter().filter(|(_, role, _)| settings.roles.contains(role));
    serves
        .map(|(domain, role, port)| {
            let (reason, unmeant) = match unreached(pod, settings) {
                Some((reason, unmeant)) => (Some(reason), unmeant),
                None => match not_told((*told).as_deref(), role, settings) {
                    None => (None, false),
                    Some(reason) => (Some(reason), settings.options != OptionsMode::None),
                },
            };
            Port { port, domain, enforced: reason.is_none(), reason, unmeant, unlisted: false }
        })
        .collect()
}

/// The domains of a trust ConfigMap for which there can be no list: no CA of the bundle may sign one.
pub(crate) fn unlisted(trust: &ConfigMap) -> BTreeSet<Domain> {
    let cannot = |domain: &Domain| {
        let bundle = trust.data.as_ref()?.get(domain.trust_key())?;
        let bundle = Bundle::parse(bundle.as_bytes()).ok()?;
        let published =
            trust.binary_data.as_ref().is_some_and(|all| all.contains_key(domain.crl_key().unwrap_or_default()));
        Some(!published && !bundle.may_sign_lists())
    };
    Domain::WITH_LISTS.into_iter().filter(|domain| cannot(domain) == Some(true)).collect()
}

/// The revoked serial numbers of a trust ConfigMap, by domain. A list that cannot be read has none: sidecars refuse it.
pub(super) fn revoked(trust: &ConfigMap) -> BTreeMap<Domain, BTreeSet<String>> {
    let serials = |domain: Domain| {
        let list = Crl::parse(&trust.binary_data.as_ref()?.get(domain.crl_key()?)?.0).ok()?;
        Some((domain, list.entries().keys().cloned().collect()))
    };
    Domain::WITH_LISTS.into_iter().filter_map(serials).collect()
}

/// Says of ports that look at a list that there is none, where `domains` have none.
pub(super) fn without_any(ports: &mut [Port], domains: &BTreeSet<Domain>) {
    for port in ports.iter_mut().filter(|port| port.enforced && domains.contains(&port.domain)) {
        let reason = format!(
            "there is no list of revoked {} certificates, as the CA may not sign one: its certificate has key usages without cRLSign",
            port.domain
        );
        (port.enforced, port.reason, port.unmeant, port.unlisted) = (false, Some(reason), true, true);
    }
}

/// Why no list reaches the pod, whatever the options of its etcd, and whether that is no choice of anybody.
fn unreached(pod: &Pod, settings: &Settings) -> Option<(String, bool)> {
    let annotations = pod.metadata.annotations.as_ref();
    let has = |name: &str| annotations.is_some_and(|annotations| annotations.contains_key(name));
    if !containers(pod).any(|container| container.name == names::SIDECAR_CONTAINER) {
        Some(("etcd-tls was not injected; recreate it".to_owned(), true))
    } else if !settings.revocation {
        Some((format!("annotation {}revocation is off", names::ANNOTATION_PREFIX), false))
    } else if !settings.is_ours() {
        Some(("its certificates are another issuer's".to_owned(), false))
    } else if settings.is_of_kubelet() {
        Some(("kubelet brings its certificates (issuer pod-certificate), and no list".to_owned(), false))
    } else if has(names::MIRROR_ANNOTATION) {
        Some(("lists do not reach static pods".to_owned(), false))
    } else {
        None
    }
}

/// Why etcd does not look at the list that is there, or may not, by what its containers are told; `None`: it does.
fn not_told(told: Option<&[(Role, ToldList)]>, role: Role, settings: &Settings) -> Option<String> {
    let Some(told) = told else { return Some(undetermined(role, settings)) };
    let of_role: Vec<&ToldList> = told.iter().filter(|(of, _)| *of == role).map(|(_, told)| told).collect();
    let unseen = of_role.iter().find_map(|told| match told {
        ToldList::Unseen(why) => Some(why),
        ToldList::Ours | ToldList::NotOurs | ToldList::ConfigFile => None,
    });
    if of_role.contains(&&ToldList::ConfigFile) {
        return Some(of_config_file());
    }
    if of_role.is_empty() || of_role.contains(&&ToldList::NotOurs) {
        return Some(undetermined(role, settings));
    }
    let give =
        |why| format!("it may have another list ({why}); give etcd --{}={}", list_option(role), file(settings, role));
    unseen.map(give)
}

/// Why etcd does not look at the list that is there.
fn undetermined(role: Role, settings: &Settings) -> String {
    format!(
        "an earlier version injected into it, or its own options leave the list out; recreate it, or give etcd --{}={}",
        list_option(role),
        file(settings, role)
    )
}

/// Why no flag and no variable tells etcd of a list.
fn of_config_file() -> String {
    "its etcd has a config file, which has no key for a list, and beside which etcd ignores flags and variables; use these in its \
     place"
        .to_owned()
}

/// A line for each member of `cluster` among `pods` (that have opted in) on which a port takes certificates
/// that `domains` have revoked, and why.
pub(crate) fn without_list(pods: &[Pod], cluster: &ClusterName, domains: &[Domain]) -> Vec<String> {
    let mut lines: Vec<String> = pods.iter().filter_map(|pod| line(pod, cluster, domains)).collect();
    lines.sort();
    lines
}

/// The names of pods among `pods` that may be members of `cluster`, and whose annotations cannot be read.
pub(crate) fn unreadable(pods: &[Pod], cluster: &ClusterName) -> Vec<String> {
    let may_be = |pod: &&Pod| match Membership::of(pod, cluster) {
        Membership::Unreadable { roles } => !is_over(pod) && Membership::may_serve(&roles),
        Membership::Of(_) | Membership::Other => false,
    };
    pods.iter().filter(may_be).map(|pod| membership::name(pod, cluster)).collect()
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn line(pod: &Pod, cluster: &ClusterName, domains: &[Domain]) -> Option<String> {
    if is_over(pod) {
        return None;
    }
    let Membership::Of(settings) = Membership::of(pod, cluster) else { return None };
    let mut ports = ports(pod, &settings);
    ports.retain(|port| domains.contains(&port.domain));
    let name = membership::name(pod, cluster);
    sentence(&ports).map(|sentence| format!("pod {name} {sentence}"))
}

/// A sentence on the ports that do not read the list; `None`: all do.
pub(crate) fn sentence(ports: &[Port]) -> Option<String> {
    let open: Vec<&Port> = ports.iter().filter(|port| !port.enforced).collect();
    let why = open.first()?.reason.as_deref().unwrap_or_default();
    let names: Vec<&str> = open.iter().map(|port| port.port).collect();
    Some(format!("takes revoked certificates on its {} port: {why}", names.join(" and ")))
}

fn file(settings: &Settings, role: Role) -> String {
    format!("{}/{role}/{}", settings.mount_path, names::CRL_FILE)
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
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
        let both =
            json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}, {"name": "ETCD_CLIENT_CRL_FILE", "value": CLIENT}]);
        let flag = json!([format!("--peer-crl-file={PEER}.old")]);
        let off = json!({"etcd-tls.dev/revocation": "off"});
        let foreign = json!({"etcd-tls.dev/issuer": "csr:example.com/etcd"});
        let of_kubelet = json!({"etcd-tls.dev/issuer": "pod-certificate"});
        for (annotations, etcd, expected) in [
            (json!({}), json!({}), "peer and client port: an earlier version injected into it"),
            (json!({}), json!({"env": env}), "on its client port: an earlier version"),
            (
                json!({"etcd-tls.dev/roles": "peer"}),
                json!({"args": flag}),
                "give etcd --peer-crl-file=/etc/etcd/tls/peer/ca.crl",
            ),
            (
                json!({}),
                json!({"env": both, "args": ["--config-file=/etc/etcd.yaml"]}),
                "its etcd has a config file, which has no key for a list",
            ),
            (
                json!({}),
                json!({"command": ["sh", "-c", "exec etcd --config-file /etc/etcd.yaml"], "env": both}),
                "peer and client port: its etcd has a config file",
            ),
            // What only looks like it, and what counts less.
            (
                json!({}),
                json!({"command": ["sh", "-c", format!("# was: --client-crl-file={CLIENT}\nexec etcd --peer-crl-file={PEER}")]}),
                "on its client port",
            ),
            (
                json!({}),
                json!({"command": ["etcd", format!("--client-crl-file={CLIENT}"), "--client-crl-file=/own.crl"], "env": both}),
                "on its client port: an earlier version",
            ),
            (off, json!({}), "annotation etcd-tls.dev/revocation is off"),
            (foreign, json!({}), "another issuer's"),
            (of_kubelet, json!({}), "kubelet brings its certificates"),
        ] {
            let said = found(pod("etcd-0", annotations, etcd)).unwrap();
            assert!(said.starts_with("pod etcd-0 takes revoked certificates") && said.contains(expected), "{said}");
        }
        let annotations = json!({"kubernetes.io/config.mirror": "x"});
        assert!(found(pod("etcd-0", annotations, json!({}))).unwrap().contains("lists do not reach static pods"));
        let mut bare = pod("etcd-0", json!({}), json!({}));
        bare.spec.as_mut().unwrap().init_containers = None;
        assert!(found(bare).unwrap().contains("not injected"));
    }

    #[test]
    fn a_member_that_cannot_be_read_is_named_for_itself() {
        let cluster = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        let of = |annotations: Value| pod("etcd-0", annotations, json!({}));
        let mut over = of(json!({"etcd-tls.dev/later": "x"}));
        over.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
        let client = of(json!({"etcd-tls.dev/later": "x", "etcd-tls.dev/roles": "client"}));
        assert_eq!(unreadable(&[of(json!({})), over, client], &cluster), Vec::<String>::new());
        let later = of(json!({"etcd-tls.dev/later": "x"}));
        assert_eq!(unreadable(std::slice::from_ref(&later), &cluster), ["etcd-0"]);
        assert_eq!(found(later), None, "nothing is known of its ports");
    }

    #[test]
    fn what_another_container_is_told_is_no_option_of_etcd() {
        let env =
            json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}, {"name": "ETCD_CLIENT_CRL_FILE", "value": CLIENT}]);
        let mut beside = pod("etcd-0", json!({}), json!({"command": ["etcd"]}));
        let backup = serde_json::from_value(json!({"name": "backup", "image": "backup", "env": env})).unwrap();
        beside.spec.as_mut().unwrap().containers.push(backup);
        assert!(found(beside).unwrap().contains("on its peer and client port"));
    }

    #[test]
    fn a_config_file_is_one_that_etcd_is_told_of() {
        let env =
            json!([{"name": "ETCD_PEER_CRL_FILE", "value": PEER}, {"name": "ETCD_CLIENT_CRL_FILE", "value": CLIENT}]);
        for etcd in [
            json!({"command": ["sh", "-c", "# no --config-file here\nexec etcd --name a"], "env": env}),
            json!({"command": ["etcd", "--config-file="], "env": env}),
        ] {
            assert_eq!(found(pod("etcd-0", json!({}), etcd.clone())), None, "{etcd}");
        }
        let mut beside = pod("etcd-0", json!({}), json!({"command": ["etcd"], "env": env}));
        let backup = json!({"name": "backup", "image": "backup", "args": ["--config-file=/backup.yaml"]});
        beside.spec.as_mut().unwrap().containers.push(serde_json::from_value(backup).unwrap());
        assert_eq!(found(beside), None);
        // A script that is not read to its end.
        let etcd = json!({"command": ["sh", "-c", ". /x; exec etcd --config-file=/etc/etcd.yaml"], "env": env});
        assert!(found(pod("etcd-0", json!({}), etcd)).unwrap().contains("its etcd has a config file"));
    }

    #[test]
    fn the_scripts_of_a_pod_are_read_where_they_matter_alone() {
        for annotations in [
            json!({"etcd-tls.dev/roles": "client"}),
            json!({"etcd-tls.dev/revocation": "off"}),
            json!({"etcd-tls.dev/issuer": "pod-certificate"}),
            json!({"kubernetes.io/config.mirror": "x"}),
        ] {
            let pod = pod("etcd-0", annotations.clone(), json!({"command": ["sh", "-c", "exec etcd"]}));
            let settings = Settings::parse(&pod.metadata.annotations.clone().unwrap()).unwrap();
            let ports = ports_by(&pod, &settings, || panic!("{annotations}"));
            assert!(ports.iter().all(|port| !port.enforced), "{annotations}");
        }
    }

    #[test]
    fn what_nobody_chose_is_told_from_what_somebody_did() {
        let unmeant = |annotations: Value| {
            let pod = pod("etcd-0", annotations, json!({}));
            let settings = Settings::parse(&pod.metadata.annotations.clone().unwrap()).unwrap();
            ports(&pod, &settings).iter().map(|port| (port.port, port.enforced, port.unmeant)).collect::<Vec<_>>()
        };
        assert_eq!(unmeant(json!({})), [("peer", false, true), ("client", false, true)]);
        for meant in [
            json!({"etcd-tls.dev/revocation": "off"}),
            json!({"etcd-tls.dev/options": "none"}),
            json!({"etcd-tls.dev/issuer": "csr:example.com/etcd"}),
            json!({"etcd-tls.dev/issuer": "pod-certificate"}),
            json!({"kubernetes.io/config.mirror": "x"}),
        ] {
            assert!(unmeant(meant.clone()).iter().all(|(_, enforced, unmeant)| !enforced && !unmeant), "{meant}");
        }
        assert_eq!(unmeant(json!({"etcd-tls.dev/roles": "client"})), []);
    }
}
