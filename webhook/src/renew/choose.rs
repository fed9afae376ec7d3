//! Which pods and roles a command means. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use etcd_tls_contract::{
    invalid_value::InvalidValue,
    key::KeyRotation,
    names::{self, ClusterName},
    role::Role,
    settings::Settings,
};
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::RenewError;
use crate::status::{self, Membership};

/// `<namespace>/<name>` of a pod or of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The namespace; a DNS label.
    pub namespace: String,
    /// The name; a DNS subdomain.
    pub name: String,
}

impl FromStr for Target {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        match s.split_once('/') {
            Some((namespace, name)) if names::is_dns_label(namespace) && names::is_dns_subdomain(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("is not of the form <namespace>/<pod> or <namespace>/<cluster>".into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kind of a named object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A pod.
    Pod,
    /// All pods of a cluster in the namespace.
    Cluster,
}

/// A pod that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// `metadata.namespace`.
    pub(super) namespace: String,
    /// `metadata.name`.
    pub(super) name: String,
    /// The same for people, with the namespace where the cluster is in another one.
    pub(super) shown: String,
    /// `metadata.uid`.
    pub(super) uid: String,
    /// Where its sidecar shows its metrics.
    pub(super) admin_port: u16,
    /// The roles to renew; not empty.
    pub(super) roles: BTreeSet<Role>,
    /// True if a renewal keeps the private key.
    pub(super) keeps_key: bool,
    /// True if kubelet renews: its sidecar restarts etcd alone.
    pub(super) of_kubelet: bool,
    /// True if its sidecar keeps revocation lists.
    pub(super) keeps_lists: bool,
}

impl Chosen {
    /// # Errors
    /// A renewal keeps the private key.
    pub(super) fn gives_new_key(&self) -> Result<(), RenewError> {
        if self.keeps_key { Err(RenewError::KeepsKey(self.name.clone())) } else { Ok(()) }
    }
}

/// The pods among `pods`, which have opted in, that `target` names, with those of `roles` that they hold (all, if none is
/// named).
///
/// # Errors
/// There is none, the name is ambiguous, or a pod does not see the annotation.
pub(super) fn choose(
    pods: &[Pod],
    target: &Target,
    kind: Option<Kind>,
    roles: &BTreeSet<Role>,
) -> Result<Vec<Chosen>, RenewError> {
    let Split { chosen, blind, unreadable } = split(pods, target, kind, roles)?;
    if let Some(pod) = unreadable.first() {
        return Err(RenewError::Unreadable(format!("{}/{pod}", target.namespace)));
    }
    if !blind.is_empty() {
        return Err(RenewError::Blind(blind.join(", ")));
    }
    let of_kubelet: Vec<&str> = chosen.iter().filter(|c| c.of_kubelet).map(|c| c.name.as_str()).collect();
    if of_kubelet.is_empty() { Ok(chosen) } else { Err(RenewError::ByKubelet(of_kubelet.join(", "))) }
}

/// The pods of a name, by what can be asked of them.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Those that see the annotation.
    pub(super) chosen: Vec<Chosen>,
    /// The names of those that do not.
    pub(super) blind: Vec<String>,
    /// The names of those that may be of the cluster: their annotations cannot be read.
    pub(super) unreadable: Vec<String>,
}

/// The same, and the names of those that cannot be asked.
///
/// # Errors
/// There is none of any, or the name is ambiguous.
pub(super) fn split(
    pods: &[Pod],
    target: &Target,
    kind: Option<Kind>,
    roles: &BTreeSet<Role>,
) -> Result<Split, RenewError> {
    let running: Vec<&Pod> = pods.iter().filter(|pod| !is_over(pod)).collect();
    let named: Vec<&Pod> =
        running.iter().copied().filter(|pod| pod.metadata.name.as_deref() == Some(&target.name)).collect();
    let home = ClusterName { namespace: target.namespace.clone(), name: target.name.clone() };
    let (mut members, mut unreadable) = (Vec::new(), Vec::new());
    for pod in running {
        match Membership::of(pod, &home) {
            Membership::Of(_) => members.push(pod),
            Membership::Unreadable { roles: held } if roles.is_empty() || !held.is_disjoint(roles) => {
                unreadable.push(status::name(pod, &home));
            }
            Membership::Unreadable { .. } | Membership::Other => {}
        }
    }
    let (meant, by_name) = match kind {
        Some(Kind::Pod) => (named, true),
        Some(Kind::Cluster) => (members, false),
        None if named.is_empty() => (members, false),
        None if members.is_empty() || members == named => (named, true),
        None => return Err(RenewError::Ambiguous(target.clone())),
    };
    if by_name {
        unreadable.clear();
    }
    if meant.is_empty() && unreadable.is_empty() {
        return Err(RenewError::NoSuch(target.clone()));
    }
    let (mut chosen, mut blind) = (Vec::new(), Vec::new());
    for pod in meant {
        let name = pod.metadata.name.clone().unwrap_or_default();
        // Only the name of a pod means one whose cluster is not known.
        let settings = settings(pod).ok_or_else(|| RenewError::Unreadable(target.to_string()))?;
        let held: BTreeSet<Role> =
            settings.roles.iter().copied().filter(|role| roles.is_empty() || roles.contains(role)).collect();
        if held.is_empty() {
            continue;
        }
        if !sees_annotation(pod) {
            blind.push(status::name(pod, &home));
            continue;
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let keeps_key = settings.key_rotation == KeyRotation::OnCaChange;
        let of_kubelet = settings.is_of_kubelet();
        let (admin_port, keeps_lists) = (settings.admin_port, keeps_lists(pod));
        let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| target.namespace.clone());
        let shown = status::name(pod, &home);
        chosen.push(Chosen {
            namespace,
            name,
            shown,
            uid,
            admin_port,
            roles: held,
            keeps_key,
            of_kubelet,
            keeps_lists,
        });
    }
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    blind.sort();
    unreadable.sort();
    if chosen.is_empty() && blind.is_empty() && unreadable.is_empty() {
        Err(RenewError::NoRole { target: target.clone(), roles: roles.clone() })
    } else {
        Ok(Split { chosen, blind, unreadable })
    }
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// `None`: annotations that admission would have refused.
fn settings(pod: &Pod) -> Option<Settings> {
    Settings::parse(&pod.metadata.annotations.clone().unwrap_or_default()).ok()
}

/// True if kubelet projects the annotation into the sidecar's volume.
fn sees_annotation(pod: &Pod) -> bool {
    let path = format!("metadata.annotations['{}']", names::RENEW_ANNOTATION);
    let projects = |volume: &Volume| {
        let sources = volume.projected.as_ref().and_then(|p| p.sources.as_ref()).into_iter().flatten();
        let mut items = sources.filter_map(|s| s.downward_api.as_ref()?.items.as_ref()).flatten();
        volume.name == names::TOKEN_VOLUME
            && items.any(|item| {
                item.path == names::RENEW_FILE && item.field_ref.as_ref().is_some_and(|field| field.field_path == path)
            })
    };
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten().any(projects)
}

/// True if its sidecar is told to keep revocation lists.
fn keeps_lists(pod: &Pod) -> bool {
    let spec = pod.spec.iter();
    let mut containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    containers.any(|container| {
        container.name == names::SIDECAR_CONTAINER
            && container.args.iter().flatten().any(|word| word == "--revocation-lists")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn pod(name: &str, cluster: &str, roles: &str, sees: bool) -> Pod {
        let item = json!({"path": "renew", "fieldRef": {"fieldPath": "metadata.annotations['etcd-tls.dev/renew']"}});
        let items = if sees { vec![item] } else { vec![] };
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "annotations": {
                "etcd-tls.dev/cluster": cluster, "etcd-tls.dev/roles": roles,
            }},
            "spec": {"containers": [], "volumes": [
                {"name": "etcd-tls-token", "projected": {"sources": [{"downwardAPI": {"items": items}}]}},
            ]},
        }))
        .unwrap()
    }

    fn chosen(pods: &[Pod], target: &str, kind: Option<Kind>, roles: &[Role]) -> Result<Vec<String>, String> {
        let roles = roles.iter().copied().collect();
        let chosen = choose(pods, &target.parse().unwrap(), kind, &roles).map_err(|e| e.to_string())?;
        Ok(chosen.into_iter().map(|c| format!("{}={}", c.name, super::super::list(&c.roles))).collect())
    }

    #[test]
    fn one_that_does_not_see_it_stops_no_other() {
        let pods = [
            pod("etcd-0", "etcd", "peer", true),
            pod("etcd-1", "etcd", "peer", false),
            pod("etcd-2", "etcd", "peer", true),
        ];
        let roles = BTreeSet::from([Role::Peer]);
        let Split { chosen, blind, unreadable } =
            split(&pods, &"prod/etcd".parse().unwrap(), Some(Kind::Cluster), &roles).unwrap();
        assert!(unreadable.is_empty());
        assert_eq!(chosen.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["etcd-0", "etcd-2"]);
        assert_eq!(blind, ["etcd-1"]);
        assert!(chosen.iter().all(|c| c.gives_new_key().is_ok()));
        let mut keeps = pods[0].clone();
        keeps.metadata.annotations.as_mut().unwrap().insert("etcd-tls.dev/key-rotation".into(), "on-ca-change".into());
        let chosen = choose(&[keeps], &"prod/etcd-0".parse().unwrap(), None, &BTreeSet::new()).unwrap();
        assert!(chosen[0].gives_new_key().unwrap_err().to_string().contains("keeps its private key"));
    }

    #[test]
    fn a_pod_whose_annotations_cannot_be_read_says_so() {
        let mut odd = pod("etcd-0", "etcd", "peer", true);
        odd.metadata.annotations.as_mut().unwrap().insert("etcd-tls.dev/roles".into(), "peeer".into());
        let said = chosen(&[odd, pod("etcd-1", "etcd", "peer", true)], "prod/etcd-0", None, &[]).unwrap_err();
        assert!(said.contains("annotations of pod prod/etcd-0 cannot be read"), "{said}");
    }

    /// The command may be older than the cluster: two of three members have an annotation that it does not know.
    #[test]
    fn a_member_that_cannot_be_read_is_not_passed_over() {
        let later = |mut pod: Pod| {
            pod.metadata.annotations.as_mut().unwrap().insert("etcd-tls.dev/later".into(), "x".into());
            pod
        };
        let read = pod("etcd-2", "etcd", "peer", true);
        let pods =
            [later(pod("etcd-0", "etcd", "peer", true)), later(pod("etcd-1", "etcd", "peer", true)), read.clone()];
        let said = chosen(&pods, "prod/etcd", None, &[]).unwrap_err();
        assert!(said.contains("annotations of pod prod/etcd-0 cannot be read"), "{said}");
        assert!(chosen(&pods, "prod/etcd-2", None, &[]).is_ok(), "one pod by its name");
        let peers = BTreeSet::from([Role::Peer]);
        let split = |pods: &[Pod]| split(pods, &"prod/etcd".parse().unwrap(), Some(Kind::Cluster), &peers).unwrap();
        let some = split(&pods);
        assert_eq!((some.chosen.len(), some.unreadable), (1, vec!["etcd-0".to_owned(), "etcd-1".to_owned()]));
        assert_eq!(split(&pods[..2]).unreadable.len(), 2, "nobody can be read");
        let others = [later(pod("app", "etcd", "client", true)), later(pod("b", "other", "peer", true)), read];
        assert_eq!(split(&others).unreadable, Vec::<String>::new());
    }

    #[test]
    fn pods_whose_certificates_kubelet_renews_are_not_asked() {
        let mut by_kubelet = pod("etcd-1", "etcd", "peer", true);
        by_kubelet
            .metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert("etcd-tls.dev/issuer".into(), "pod-certificate".into());
        let pods = [pod("etcd-0", "etcd", "peer", true), by_kubelet];
        let said = chosen(&pods, "prod/etcd", None, &[]).unwrap_err();
        assert!(
            said.contains("kubelet requests the certificates of pod etcd-1") && said.contains("delete it"),
            "{said}"
        );
        assert!(chosen(&pods, "prod/etcd-0", Some(Kind::Pod), &[]).is_ok());
    }

    #[test]
    fn a_pod_a_cluster_or_neither() {
        let pods = [
            pod("etcd-0", "etcd", "peer,server", true),
            pod("etcd-1", "etcd", "peer,server", true),
            pod("job", "etcd", "client", true),
            pod("events", "main", "peer,server", true),
            pod("events-0", "events", "peer,server", true),
            pod("one", "one", "peer", true),
            pod("old", "old", "peer", false),
        ];
        let all = |kind, target: &str, roles: &[Role]| chosen(&pods, target, kind, roles);
        assert_eq!(all(None, "prod/etcd-1", &[]).unwrap(), ["etcd-1=peer, server"]);
        assert_eq!(all(None, "prod/etcd", &[]).unwrap(), ["etcd-0=peer, server", "etcd-1=peer, server", "job=client"]);
        assert_eq!(all(None, "prod/etcd", &[Role::Peer]).unwrap(), ["etcd-0=peer", "etcd-1=peer"]);
        assert_eq!(all(None, "prod/one", &[]).unwrap(), ["one=peer"], "the cluster's only pod");
        assert!(all(None, "prod/events", &[]).unwrap_err().contains("--kind pod or --kind cluster"));
        assert_eq!(all(Some(Kind::Pod), "prod/events", &[]).unwrap(), ["events=peer, server"]);
        assert_eq!(all(Some(Kind::Cluster), "prod/events", &[]).unwrap(), ["events-0=peer, server"]);
        assert!(all(None, "prod/none", &[]).unwrap_err().contains("status -n prod"));
        assert!(all(None, "other/etcd", &[]).is_ok(), "the caller lists the namespace");
        assert!(all(None, "prod/job", &[Role::Peer]).unwrap_err().contains("no certificate of role peer"));
        assert!(all(None, "prod/old", &[]).unwrap_err().contains("an earlier version injected"));
        for bad in ["etcd", "prod/", "/etcd", "prod/a/b", "Prod/etcd"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
