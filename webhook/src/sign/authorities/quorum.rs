//! Whether a revocation takes a quorum of peers away: how many pods of those that have peer certificates keep one that is not
//! revoked. Pure.

use etcd_tls_contract::role::Role;

use super::issued::Issued;

/// The pods with a peer certificate by the record of what was issued. A pod that has gone counts until its certificate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// All of them.
    members: usize,
    /// Those whose newest certificate is not revoked.
    before: usize,
    /// Those of them whose newest certificate is not revoked now.
    after: usize,
}

impl Standing {
    /// While `revoked` certificates are refused, and `named` ones are about to be.
    pub(super) fn of(issued: &Issued, revoked: impl Fn(&str) -> bool, named: impl Fn(&str) -> bool) -> Self {
        let prefix = Role::Peer.common_name_prefix();
        let mut standing = Self { members: 0, before: 0, after: 0 };
        for newest in issued.newest_by_pod(prefix).values() {
            standing.members += 1;
            standing.before += usize::from(newest.iter().any(|serial| !revoked(serial)));
            standing.after += usize::from(newest.iter().any(|serial| !revoked(serial) && !named(serial)));
        }
        standing
    }

    /// Why that is not done without force; `None`: it takes no member away, or a quorum stands.
    pub(super) fn objection(self) -> Option<String> {
        let Self { members, before, after } = self;
        // A member alone has no peers.
        let falls = members > 1 && after < before && after * 2 <= members;
        falls.then(|| {
            format!(
                "it would leave {after} of {members} members with a peer certificate that is accepted, and no quorum. Renew first \
                 (etcd-tls-webhook renew --wait) and revoke the old serial number, or give --force"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{super::issued::Leaf, *};

    fn issued(leaves: &[(&str, &str, u64)]) -> Issued {
        let mut issued = Issued::default();
        for (serial, pod, at) in leaves {
            let (user, at) = (format!("system:etcd-peer:{pod}"), UNIX_EPOCH + Duration::from_secs(*at));
            issued.note(serial, Leaf::new(pod, format!("prod/{pod}"), &user, at + Duration::from_secs(1000), at));
        }
        issued
    }

    fn objects(issued: &Issued, revoked: &[&str], named: &[&str]) -> bool {
        Standing::of(issued, |s| revoked.contains(&s), |s| named.contains(&s)).objection().is_some()
    }

    #[test]
    fn a_revocation_that_leaves_no_quorum_is_objected_to() {
        let three = issued(&[("1", "a", 10), ("2", "b", 10), ("3", "c", 10)]);
        assert!(!objects(&three, &[], &["1"]), "two of three stand");
        assert!(objects(&three, &["1"], &["2"]));
        assert!(objects(&three, &[], &["1", "2"]), "both at once");
        assert!(!objects(&three, &["1", "2"], &["1"]), "it is revoked already");
        assert!(!objects(&three, &["1"], &["ff"]), "no member's");
        let two = issued(&[("1", "a", 10), ("2", "b", 10)]);
        assert!(objects(&two, &[], &["2"]));
        assert!(!objects(&issued(&[("1", "a", 10)]), &[], &["1"]), "alone");
        let renewed = issued(&[("1", "a", 10), ("2", "b", 10), ("4", "a", 20), ("5", "b", 20)]);
        assert!(!objects(&renewed, &["1"], &["2"]), "each has a newer one");
        assert!(objects(&renewed, &[], &["5"]), "the older ones are in use nowhere");
        assert!(!objects(&Issued::default(), &[], &["1"]));
    }
}
