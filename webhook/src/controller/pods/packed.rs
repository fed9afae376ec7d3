//! A pod's facts as text: as values, with a map for labels and one for annotations, they take four times as much memory. Those that
//! are kept beside it are not in it.

use std::collections::BTreeMap;

use etcd_tls_contract::identity::PodFacts;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packed(Box<[u8]>);

type Fields =
    ((String, String, Option<String>), (BTreeMap<String, String>, BTreeMap<String, String>, Vec<String>), bool);

impl Packed {
    /// The service account, hostname and subdomain, labels, annotations and containers. `None`: they have no text, so that the pod is
    /// read when it matters.
    pub(super) fn of(facts: PodFacts) -> Option<Self> {
        let PodFacts { service_account, hostname, subdomain, labels, annotations, containers, .. } = facts;
        let fields: Fields =
            ((service_account, hostname, subdomain), (labels, annotations, containers), facts.namespace_opted_in);
        serde_json::to_vec(&fields).ok().map(|text| Self(text.into()))
    }

    /// The facts of which it is made, and nothing of the others. `None`: the text is not what was written, so that the pod is read.
    pub(super) fn rest(&self) -> Option<PodFacts> {
        let ((service_account, hostname, subdomain), (labels, annotations, containers), namespace_opted_in) =
            serde_json::from_slice::<Fields>(&self.0).ok()?;
        Some(PodFacts {
            service_account,
            hostname,
            subdomain,
            labels,
            annotations,
            containers,
            namespace_opted_in,
            ..PodFacts::default()
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
    fn a_packed_pod_unpacks_to_the_same() {
        let map =
            |key: &str| BTreeMap::from([(key.to_owned(), "\"<\u{7}ä".to_owned()), ("b".to_owned(), String::new())]);
        let facts = PodFacts {
            service_account: "sa".to_owned(),
            hostname: "h".to_owned(),
            subdomain: Some("s".to_owned()),
            labels: map("a"),
            annotations: map("c"),
            containers: vec!["etcd".to_owned(), "x".to_owned()],
            namespace_opted_in: true,
            ..PodFacts::default()
        };
        assert_eq!(Packed::of(facts.clone()).and_then(|packed| packed.rest()), Some(facts));
        let nothing = PodFacts::default();
        assert_eq!(Packed::of(nothing.clone()).and_then(|packed| packed.rest()), Some(nothing));
    }
}
