//! A pod read leanly: what the law looks at, and nothing of the rest, which is nine tenths of an injected pod and is most of
//! the work of reading it.

use std::{borrow::Cow, collections::BTreeMap, ops::Deref};

use bytes::Bytes;
use etcd_tls_sidecar::api::{
    answer::{Encoding, ReadError},
    protobuf::Envelope,
};
use k8s_openapi::{
    api::core::v1::{Container, HostIP, Pod, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

mod message;

/// A [`Pod`] with the fields that [`super::pod`] reads, and the names of its init containers.
#[derive(Clone, Debug, Default)]
pub struct LeanPod(Pod);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
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
#[serde(default)]
struct Name {
    name: String,
}

#[derive(Default, Deserialize)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIP>>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<HostIP>>,
}

impl Deref for LeanPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.0
    }
}

impl LeanPod {
    /// Reads an answer's body.
    ///
    /// # Errors
    /// It is no pod.
    pub fn read(encoding: Encoding, body: Bytes) -> Result<Self, ReadError> {
        Ok(match encoding {
            Encoding::Json => serde_json::from_slice(&body)?,
            Encoding::Protobuf => Self::new(Envelope::open(body)?.object::<message::Pod>("v1", "Pod")?.into()),
        })
    }

    fn new(Object { metadata, spec, status }: Object) -> Self {
        let containers = |names: Option<Vec<Name>>| {
            names
                .unwrap_or_default()
                .into_iter()
                .map(|Name { name }| Container { name, ..Container::default() })
                .collect::<Vec<_>>()
        };
        let Metadata { name, namespace, uid, resource_version, deletion_timestamp, labels, annotations } = metadata;
        Self(Pod {
            metadata: ObjectMeta {
                name,
                namespace,
                uid,
                resource_version,
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
        })
    }
}

impl<'de> Deserialize<'de> for LeanPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer).map(Self::new)
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
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use etcd_tls_sidecar::api::protobuf::{Entry, MAGIC, ObjectMeta, Time, TypeMeta, Unknown};
    use message::{Container, Ip};
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::facts;

    fn seal(kind: &'static str, content: Vec<u8>) -> Bytes {
        let type_meta = Some(TypeMeta { api_version: "v1".into(), kind: kind.into() });
        let envelope = Unknown { type_meta, raw: content.into(), content_encoding: Bytes::new() };
        [MAGIC, &envelope.encode_to_vec()].concat().into()
    }

    fn object() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "etcd-0", "namespace": "ns", "uid": "u", "resourceVersion": "7", "generateName": "etcd-",
                "deletionTimestamp": "2026-01-02T03:04:05Z", "labels": {"a": "b"}, "annotations": {"c": "d\u{fffd}"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "hostNetwork": true, "serviceAccountName": "sa", "nodeName": "n", "hostname": "h", "subdomain": "s",
                "initContainers": [{"name": "i", "image": "x"}],
                "containers": [{"name": "etcd", "image": "x", "env": [{"name": "A", "value": "B"}]}, {"name": "c"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {
                "phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}], "containerStatuses": [],
            },
        })
    }

    /// [`object`] as the API server writes it, which is in no other respect than its encoding another one.
    fn message() -> message::Pod {
        let entry =
            |key: &'static str, value: &'static [u8]| Entry { key: key.into(), value: Bytes::from_static(value) };
        let containers = |names: &[&'static str]| names.iter().map(|&name| Container { name: name.into() }).collect();
        let ips = |ips: &[&'static str]| ips.iter().map(|&ip| Ip { ip: ip.into() }).collect();
        message::Pod {
            metadata: Some(ObjectMeta {
                name: "etcd-0".into(),
                generate_name: "etcd-".into(),
                namespace: "ns".into(),
                uid: "u".into(),
                resource_version: "7".into(),
                deletion_timestamp: Some(Time { seconds: Some(1_767_323_045) }),
                labels: vec![entry("a", b"b")],
                annotations: vec![entry("c", b"d\xff")],
            }),
            spec: Some(message::Spec {
                containers: containers(&["etcd", "c"]),
                service_account_name: "sa".into(),
                node_name: "n".into(),
                host_network: true,
                hostname: "h".into(),
                subdomain: "s".into(),
                init_containers: containers(&["i"]),
            }),
            status: Some(message::Status {
                phase: "Failed".into(),
                pod_ips: ips(&["10.0.0.1"]),
                host_ips: ips(&["192.0.2.1", "fd00::1"]),
            }),
        }
    }

    #[test]
    fn a_pod_read_leanly_is_the_same_to_the_law() {
        for network in [true, false] {
            let (mut object, mut message) = (object(), message());
            object["spec"]["hostNetwork"] = network.into();
            message.spec.as_mut().unwrap().host_network = network;
            let whole: Pod = serde_json::from_value(object.clone()).unwrap();
            for lean in [
                LeanPod::read(Encoding::Json, object.to_string().into()).unwrap(),
                LeanPod::read(Encoding::Protobuf, seal("Pod", message.encode_to_vec())).unwrap(),
            ] {
                assert_eq!(facts::pod(&lean, true), facts::pod(&whole, true));
                assert_eq!(lean.metadata.deletion_timestamp, whole.metadata.deletion_timestamp);
                let init = |pod: &Pod| pod.spec.clone().unwrap().init_containers.unwrap()[0].name.clone();
                assert_eq!(init(&lean), init(&whole));
            }
        }
    }

    #[test]
    fn a_pod_is_read_alike_with_what_protobuf_says_and_json_leaves_out() {
        // Go writes every string of a message, the empty ones too; and here is a field that nobody declared.
        let spec = b"\x82\x01\x00\x8a\x01\x00\x52\x00\x58\x00\x1a\x06Always".to_vec();
        let metadata = b"\x0a\x01p\x12\x00\x1a\x00\x22\x00\x42\x00\x4a\x00".to_vec();
        let content = [&[0x0a, metadata.len() as u8][..], &metadata, &[0x12, spec.len() as u8], &spec, b"\x1a\x00"];
        let of_protobuf = LeanPod::read(Encoding::Protobuf, seal("Pod", content.concat())).unwrap();
        let object =
            json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Always", "containers": null}, "status": {}});
        assert_eq!(*of_protobuf, *LeanPod::read(Encoding::Json, object.to_string().into()).unwrap());
    }

    #[test]
    fn what_is_no_pod_is_an_error() {
        let content = message().encode_to_vec();
        assert!(LeanPod::read(Encoding::Protobuf, seal("Secret", content.clone())).is_err());
        assert!(LeanPod::read(Encoding::Protobuf, object().to_string().into()).is_err());
        assert!(LeanPod::read(Encoding::Json, seal("Pod", content.clone())).is_err());
        for cut in 1..content.len() {
            let _ = LeanPod::read(Encoding::Protobuf, seal("Pod", content[..cut].to_vec()));
        }
        assert!(LeanPod::read(Encoding::Protobuf, seal("Pod", content[..content.len() - 1].to_vec())).is_err());
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
