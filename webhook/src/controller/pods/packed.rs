//! A pod's facts as text: as values, with a map for labels and one for annotations, they take four times as much memory.

use std::{collections::BTreeMap, net::IpAddr};

use etcd_tls_contract::identity::PodFacts;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packed(Box<[u8]>);

type Fields = (
    (String, String, String, String, String),
    (bool, Vec<IpAddr>, String, Option<String>),
    (BTreeMap<String, String>, BTreeMap<String, String>, Vec<String>),
    (bool, bool, bool),
);

impl Packed {
    /// `None`: they have no text, so that the pod is read when it matters.
    pub(super) fn of(facts: PodFacts) -> Option<Self> {
        let PodFacts { namespace, name, uid, service_account, node, .. } = facts;
        let fields: Fields = (
            (namespace, name, uid, service_account, node),
            (facts.host_network, facts.ips, facts.hostname, facts.subdomain),
            (facts.labels, facts.annotations, facts.containers),
            (facts.finished, facts.deleting, facts.namespace_opted_in),
        );
        serde_json::to_vec(&fields).ok().map(|text| Self(text.into()))
    }

    /// `None`: the text is not what was written, so that the pod is read.
    pub(super) fn facts(&self) -> Option<PodFacts> {
        let (who, where_, what, state): Fields = serde_json::from_slice(&self.0).ok()?;
        let (namespace, name, uid, service_account, node) = who;
        let (host_network, ips, hostname, subdomain) = where_;
        let (labels, annotations, containers) = what;
        let (finished, deleting, namespace_opted_in) = state;
        Some(PodFacts {
            namespace,
            name,
            uid,
            service_account,
            node,
            host_network,
            ips,
            hostname,
            subdomain,
            labels,
            annotations,
            containers,
            finished,
            deleting,
            namespace_opted_in,
        })
    }

    /// The memory that it takes, about.
    pub(super) const fn size(&self) -> usize {
        64 + self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_the_same_again() {
        let map =
            |key: &str| BTreeMap::from([(key.to_owned(), "\"<\u{7}ä".to_owned()), ("b".to_owned(), String::new())]);
        let facts = PodFacts {
            namespace: "ns".to_owned(),
            name: "etcd-0".to_owned(),
            uid: "u".to_owned(),
            service_account: "sa".to_owned(),
            node: "n".to_owned(),
            host_network: true,
            ips: vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])],
            hostname: "h".to_owned(),
            subdomain: Some("s".to_owned()),
            labels: map("a"),
            annotations: map("c"),
            containers: vec!["etcd".to_owned(), "x".to_owned()],
            finished: true,
            deleting: false,
            namespace_opted_in: true,
        };
        assert_eq!(Packed::of(facts.clone()).and_then(|packed| packed.facts()), Some(facts));
        let nothing = PodFacts::default();
        assert_eq!(Packed::of(nothing.clone()).and_then(|packed| packed.facts()), Some(nothing));
    }
}
