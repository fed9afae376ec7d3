//! Tells which pods are of a cluster, also by annotations that this version cannot read in full. Pure.

use std::collections::{BTreeMap, BTreeSet};

use etcd_tls_contract::{
    names::{ANNOTATION_PREFIX, ClusterName},
    role::Role,
    settings::Settings,
};
use k8s_openapi::api::core::v1::Pod;

/// Whether a pod is of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// It is.
    Of(Box<Settings>),
    /// It is of another one.
    Other,
    /// It is, or may be, and its annotations cannot be read: one has a mistake, or is of a later version.
    Unreadable {
        /// The roles that it has, or may have.
        roles: BTreeSet<Role>,
    },
}

impl Membership {
    /// Of `pod`, which is in the namespace of `cluster` where it names none.
    pub(crate) fn of(pod: &Pod, cluster: &ClusterName) -> Self {
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or(&cluster.namespace);
        if let Ok(settings) = Settings::parse(&annotations) {
            return if settings.home(namespace) == *cluster { Self::Of(Box::new(settings)) } else { Self::Other };
        }
        let only = |keys: &[&str]| {
            let is_one = |name: &str| name.strip_prefix(ANNOTATION_PREFIX).is_some_and(|key| keys.contains(&key));
            let some: BTreeMap<_, _> = annotations.clone().into_iter().filter(|(name, _)| is_one(name)).collect();
            Settings::parse(&some)
        };
        // These two tell the cluster.
        match only(&["issuer", "cluster"]).or_else(|_| only(&["issuer", "cluster", "roles"])) {
            Ok(settings) if settings.home(namespace) != *cluster => Self::Other,
            _ => Self::Unreadable {
                roles: only(&["roles"]).map_or_else(|_| BTreeSet::from(Role::ALL), |settings| settings.roles),
            },
        }
    }

    /// True if its etcd takes certificates of the cluster, or may.
    pub(crate) fn may_serve(roles: &BTreeSet<Role>) -> bool {
        roles.contains(&Role::Peer) || roles.contains(&Role::Server)
    }
}

/// The name of `pod`, with its namespace where that is not the one of `cluster`.
pub(crate) fn name(pod: &Pod, cluster: &ClusterName) -> String {
    let name = pod.metadata.name.clone().unwrap_or_default();
    match pod.metadata.namespace.as_deref() {
        Some(namespace) if namespace != cluster.namespace => format!("{namespace}/{name}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_that_cannot_be_read_is_another_clusters_only_where_it_says_so() {
        let cluster = ClusterName { namespace: "prod".to_owned(), name: "etcd".to_owned() };
        let of = |namespace: &str, annotations: Value| {
            let metadata = json!({"name": "etcd-0", "namespace": namespace, "annotations": annotations});
            Membership::of(&serde_json::from_value(json!({"metadata": metadata})).unwrap(), &cluster)
        };
        assert!(matches!(of("prod", json!({})), Membership::Of(_)));
        let home = "csr:client.etcd-tls.dev/prod.etcd";
        assert!(matches!(of("team-a", json!({"etcd-tls.dev/issuer": home})), Membership::Of(_)));
        assert_eq!(of("team-a", json!({})), Membership::Other);
        assert_eq!(of("prod", json!({"etcd-tls.dev/cluster": "other"})), Membership::Other);
        let unreadable = |roles: &[Role]| Membership::Unreadable { roles: roles.iter().copied().collect() };
        for (annotations, roles) in [
            (json!({"etcd-tls.dev/later": "x"}), &[Role::Peer, Role::Server][..]),
            (json!({"etcd-tls.dev/later": "x", "etcd-tls.dev/roles": "client"}), &[Role::Client]),
            (json!({"etcd-tls.dev/roles": "peeer"}), &Role::ALL),
            (json!({"etcd-tls.dev/issuer": "later:x"}), &[Role::Peer, Role::Server]),
        ] {
            assert_eq!(of("prod", annotations.clone()), unreadable(roles), "{annotations}");
        }
        let other = json!({"etcd-tls.dev/later": "x", "etcd-tls.dev/cluster": "other"});
        assert_eq!(of("prod", other), Membership::Other, "it says of which cluster it is");
        assert_eq!(of("team-a", json!({"etcd-tls.dev/later": "x"})), Membership::Other);
        let named = |namespace: &str| {
            name(&serde_json::from_value(json!({"metadata": {"name": "a", "namespace": namespace}})).unwrap(), &cluster)
        };
        assert_eq!((named("prod"), named("team-a")), ("a".to_owned(), "team-a/a".to_owned()));
        assert!(Membership::may_serve(&BTreeSet::from(Role::ALL)));
        assert!(!Membership::may_serve(&BTreeSet::from([Role::Client, Role::Metrics])));
    }
}
