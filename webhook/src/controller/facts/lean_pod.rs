//! The few fields of a pod that the rules of identity use. The rest, nine tenths of an injected pod, is skipped, which saves
//! most of the work of parsing it.

use std::{borrow::Cow, collections::BTreeMap, ops::Deref};

use k8s_openapi::{
    api::core::v1::{Container, HostIP, Pod, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::controller::listed::Object;

/// A [`Pod`] with the fields that [`super::pod`] reads, and the names and restart policies of its init containers.
#[derive(Clone, Debug, Default)]
pub struct LeanPod(Pod, bool);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Whole {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    host_network: Option<bool>,
    service_account_name: Option<String>,
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    containers: Option<Vec<Name>>,
    init_containers: Option<Vec<Name>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Name {
    name: String,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIP>>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<HostIP>>,
}

/// The fields of a pod that are read, as the API server names them.
pub(crate) const WANTED: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "labels"],
    &["metadata", "annotations", "etcd-tls.dev/*"],
    &["metadata", "annotations", etcd_tls_contract::names::MIRROR_ANNOTATION],
    &["spec", "hostNetwork"],
    &["spec", "serviceAccountName"],
    &["spec", "nodeName"],
    &["spec", "hostname"],
    &["spec", "subdomain"],
    &["spec", "containers", "[]", "name"],
    &["spec", "initContainers", "[]", "name"],
    &["spec", "initContainers", "[]", "restartPolicy"],
    &["status", "phase"],
    &["status", "podIPs"],
    &["status", "hostIPs"],
];

impl LeanPod {
    /// True if its labels, annotations and names are more than was read.
    pub(crate) const fn is_cut(&self) -> bool {
        self.1
    }
}

impl Object for LeanPod {
    fn cut(&mut self) {
        self.1 = true;
    }
}

impl Deref for LeanPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.0
    }
}

impl<'de> Deserialize<'de> for LeanPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Whole { metadata, spec, status } = Whole::deserialize(deserializer)?;
        let containers = |names: Option<Vec<Name>>| {
            names
                .unwrap_or_default()
                .into_iter()
                .map(|Name { name, restart_policy }| Container { name, restart_policy, ..Container::default() })
                .collect::<Vec<_>>()
        };
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
            creation_timestamp,
            deletion_timestamp,
            labels,
            annotations,
        } = metadata;
        let pod = Pod {
            metadata: ObjectMeta {
                name,
                namespace,
                uid,
                resource_version,
                creation_timestamp,
                deletion_timestamp,
                labels,
                annotations,
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                host_network: spec.host_network,
                service_account_name: spec.service_account_name,
                node_name: spec.node_name,
                hostname: spec.hostname,
                subdomain: spec.subdomain,
                containers: containers(spec.containers),
                init_containers: Some(containers(spec.init_containers)),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: status.phase,
                pod_ips: status.pod_ips,
                host_ips: status.host_ips,
                ..PodStatus::default()
            }),
        };
        Ok(Self(pod, false))
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::controller::facts;

    #[test]
    fn a_pod_read_leanly_is_the_same_to_the_policy() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "etcd-0", "namespace": "ns", "uid": "u", "resourceVersion": "7", "generateName": "etcd-",
                "deletionTimestamp": "2026-01-02T03:04:05Z", "labels": {"a": "b"}, "annotations": {"c": "d"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "hostNetwork": true, "serviceAccountName": "sa", "nodeName": "n", "hostname": "h", "subdomain": "s",
                "initContainers": [{"name": "i", "image": "x"}, {"name": "s", "image": "x", "restartPolicy": "Always"}],
                "containers": [{"name": "etcd", "image": "x", "env": [{"name": "A", "value": "B"}]}, {"name": "c"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {
                "phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}], "containerStatuses": [],
            },
        });
        for network in [true, false] {
            let mut object = object.clone();
            object["spec"]["hostNetwork"] = network.into();
            let whole: Pod = serde_json::from_value(object.clone()).unwrap();
            let lean: LeanPod = serde_json::from_value(object).unwrap();
            assert_eq!(facts::pod(&lean, true), facts::pod(&whole, true));
            assert_eq!(facts::pod(&lean, true).containers, ["etcd", "c", "s"]);
            let init = |pod: &Pod| pod.spec.clone().unwrap().init_containers.unwrap()[0].name.clone();
            assert_eq!(init(&lean), init(&whole));
        }
    }

    #[test]
    fn a_pod_with_nothing_in_it_can_be_read() {
        let lean: LeanPod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        assert_eq!(
            facts::pod(&lean, false),
            facts::pod(&Pod { metadata: lean.metadata.clone(), ..Pod::default() }, false)
        );
    }
}
