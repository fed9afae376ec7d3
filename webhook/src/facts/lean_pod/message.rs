//! A pod's protobuf messages, with the fields that are read leanly; see [`etcd_tls_sidecar::api::protobuf`]. Numbers are
//! those of k8s.io/api/core/v1/generated.proto.

use std::collections::BTreeMap;

use bytes::Bytes;
use etcd_tls_sidecar::api::protobuf::{Entry, ObjectMeta, some_list, some_text, text};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{HostIP, PodIP},
    apimachinery::pkg::apis::meta::v1::Time,
};
use prost::Message;

/// k8s.io.api.core.v1.Pod.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Pod {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<Spec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<Status>,
}

/// k8s.io.api.core.v1.PodSpec.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Spec {
    #[prost(message, repeated, tag = "2")]
    pub(super) containers: Vec<Container>,
    #[prost(bytes = "bytes", tag = "8")]
    pub(super) service_account_name: Bytes,
    #[prost(bytes = "bytes", tag = "10")]
    pub(super) node_name: Bytes,
    #[prost(bool, tag = "11")]
    pub(super) host_network: bool,
    #[prost(bytes = "bytes", tag = "16")]
    pub(super) hostname: Bytes,
    #[prost(bytes = "bytes", tag = "17")]
    pub(super) subdomain: Bytes,
    #[prost(message, repeated, tag = "20")]
    pub(super) init_containers: Vec<Container>,
}

/// k8s.io.api.core.v1.Container.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Container {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) name: Bytes,
}

/// k8s.io.api.core.v1.PodStatus.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) phase: Bytes,
    #[prost(message, repeated, tag = "12")]
    pub(super) pod_ips: Vec<Ip>,
    #[prost(message, repeated, tag = "16")]
    pub(super) host_ips: Vec<Ip>,
}

/// k8s.io.api.core.v1.PodIP and HostIP.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ip {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) ip: Bytes,
}

/// What the pod's JSON would be read as.
impl From<Pod> for super::Object {
    fn from(message: Pod) -> Self {
        let metadata = message.metadata.unwrap_or_default();
        let spec = message.spec.unwrap_or_default();
        let status = message.status.unwrap_or_default();
        let names = |containers| some_list(containers, |Container { name }| super::Name { name: text(&name) });
        Self {
            metadata: super::Metadata {
                name: some_text(&metadata.name),
                namespace: some_text(&metadata.namespace),
                uid: some_text(&metadata.uid),
                resource_version: some_text(&metadata.resource_version),
                // A moment that is none is one all the same: the pod is being deleted.
                deletion_timestamp: metadata
                    .deletion_timestamp
                    .and_then(|time| time.seconds)
                    .map(|seconds| Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))),
                labels: map(&metadata.labels),
                annotations: map(&metadata.annotations),
            },
            spec: super::Spec {
                host_network: spec.host_network.then_some(true),
                service_account_name: some_text(&spec.service_account_name),
                node_name: some_text(&spec.node_name),
                hostname: some_text(&spec.hostname),
                subdomain: some_text(&spec.subdomain),
                containers: names(spec.containers),
                init_containers: names(spec.init_containers),
            },
            status: super::Status {
                phase: some_text(&status.phase),
                pod_ips: some_list(status.pod_ips, |Ip { ip }| PodIP { ip: text(&ip) }),
                host_ips: some_list(status.host_ips, |Ip { ip }| HostIP { ip: text(&ip) }),
            },
        }
    }
}

fn map(entries: &[Entry]) -> Option<BTreeMap<String, String>> {
    (!entries.is_empty()).then(|| entries.iter().map(|Entry { key, value }| (text(key), text(value))).collect())
}
