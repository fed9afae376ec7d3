//! Decides if a revocation takes a quorum of peers away: how many members of each cluster keep a peer certificate that is not
//! revoked. Pure.
//!
//! The members are the pods that live and the hosts that policy lists; the record of what was issued tells their certificates.
//! A pod that has gone is no member, and neither is a client.

use std::collections::BTreeMap;

use etcd_tls_contract::names::ClusterName;

use super::issued::Issued;
use crate::sign::cache::pods::Voter;

/// Counts of one cluster's members, by their certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemberCounts {
    /// All of them.
    members: usize,
    /// Those whose newest certificate is not revoked.
    before: usize,
    /// Those of them whose newest certificate is not revoked now.
    after: usize,
    /// Those that run with a certificate that the record lacks, or may lack. It is taken for one that is not revoked.
    unrecorded: usize,
}

/// Certificates that the record lacks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unrecorded {
    /// How many of those that are about to be revoked.
    pub(super) named: usize,
    /// How many of those that are revoked already.
    pub(super) revoked: usize,
    /// Set where the record lacks valid ones: it is complete since this time, in seconds of the Unix epoch.
    pub(super) before: Option<u64>,
}

impl MemberCounts {
    /// Of each cluster, while `revoked` certificates are refused and `named` ones are about to be.
    pub(super) fn of<'a>(
        issued: &Issued,
        voters: &'a [Voter],
        revoked: impl Fn(&str) -> bool,
        named: impl Fn(&str) -> bool,
        lacking: Unrecorded,
    ) -> BTreeMap<&'a ClusterName, Self> {
        let newest = issued.newest_of_peers();
        let mut clusters: BTreeMap<&ClusterName, Self> = BTreeMap::new();
        for voter in voters {
            let member_counts = clusters.entry(&voter.cluster).or_default();
            member_counts.members += 1;
            let cluster = voter.cluster.to_string();
            let holder = voter.holder.as_str();
            let of = |cluster| newest.get(&(holder, cluster));
            let at = |serials: &Vec<&str>| serials.first().and_then(|serial| issued.at(serial));
            // One that names no cluster may be of any. It was replaced by a newer one of the only cluster that the holder is in.
            let alone = newest.keys().filter(|(of, cluster)| *of == holder && !cluster.is_empty()).count() == 1;
            let unnamed = of("").filter(|unnamed| !of(&cluster).is_some_and(|own| alone && at(unnamed) < at(own)));
            let own: Vec<&Vec<&str>> = of(&cluster).into_iter().chain(unnamed).collect();
            let stands = |serials: &Vec<&str>| serials.iter().any(|serial| !revoked(serial));
            let still = |serials: &Vec<&str>| serials.iter().any(|serial| !revoked(serial) && !named(serial));
            if !own.is_empty() {
                // Nothing tells by which it stands. So it stands by any until one that stands is named, and then by all alone.
                let before = own.iter().any(|serials| stands(serials));
                let touched = own.iter().any(|serials| stands(serials) && !still(serials));
                let after = if touched { own.iter().all(|serials| still(serials)) } else { before };
                member_counts.before += usize::from(before);
                member_counts.after += usize::from(after);
                // It may have got a newer one, which the record lacks.
                let newest = own.iter().filter_map(|serials| at(serials)).max();
                let may_have_newer = lacking.before.is_some_and(|since| newest.is_none_or(|at| at < since));
                member_counts.unrecorded += usize::from(after && voter.running && may_have_newer);
            } else if voter.running {
                member_counts.before += 1;
                member_counts.after += 1;
                member_counts.unrecorded += 1;
            }
        }
        // A certificate that nobody recorded may be of any member that has such a one. Those that are revoked already may all be of
        // others: each that is named now may be of a member that stands.
        for member_counts in clusters.values_mut() {
            let named = lacking.named.min(member_counts.unrecorded);
            member_counts.before -= lacking.revoked.min(member_counts.unrecorded - named);
            member_counts.after -= (lacking.revoked + lacking.named).min(member_counts.unrecorded);
        }
        clusters
    }

    /// True if a member falls.
    pub(super) const fn falls(self) -> bool {
        self.after < self.before
    }

    /// Why that is not done without force; `None`: it takes no member away, or a quorum stands.
    pub(super) fn objection(self, cluster: &ClusterName) -> Option<String> {
        let Self { members, before, after, unrecorded } = self;
        // A member alone has no peers.
        let falls = members > 1 && after < before && after * 2 <= members;
        let unrecorded = if unrecorded == 0 {
            String::new()
        } else {
            format!(" (the record lacks certificates of {unrecorded} of them, which may be the ones named)")
        };
        falls.then(|| {
            format!(
                "it would leave {after} of {members} members of {cluster} with a peer certificate that is accepted, and no \
                 quorum{unrecorded}. Renew first (etcd-tls-webhook renew --wait) and revoke the old serial number, or give --force"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use etcd_tls_contract::role::Role;

    use super::{super::issued::Leaf, *};

    fn issued(leaves: &[(&str, &str, u64)]) -> Issued {
        let mut issued = Issued::default();
        for (serial, pod, at) in leaves {
            let (user, at) = (format!("system:etcd-peer:{pod}"), UNIX_EPOCH + Duration::from_secs(*at));
            issued.note(serial, Leaf::new(pod, format!("prod/{pod}"), &user, at + Duration::from_secs(1000), at));
        }
        issued
    }

    fn voter(holder: &str, cluster: &str) -> Voter {
        let cluster = ClusterName { namespace: "prod".to_owned(), name: cluster.to_owned() };
        Voter { holder: holder.to_owned(), cluster, running: true }
    }

    fn objection(
        issued: &Issued,
        voters: &[Voter],
        revoked: &[&str],
        named: &[&str],
        unknown: usize,
    ) -> Option<String> {
        let lacking = Unrecorded { named: unknown, ..Unrecorded::default() };
        let counts = MemberCounts::of(issued, voters, |s| revoked.contains(&s), |s| named.contains(&s), lacking);
        counts.into_iter().find_map(|(cluster, member_counts)| member_counts.objection(cluster))
    }

    fn objects(issued: &Issued, live: &[&str], revoked: &[&str], named: &[&str]) -> bool {
        let voters: Vec<Voter> = live.iter().map(|holder| voter(holder, "etcd")).collect();
        objection(issued, &voters, revoked, named, 0).is_some()
    }

    #[test]
    fn a_revocation_that_leaves_no_quorum_is_objected_to() {
        let three = issued(&[("1", "a", 10), ("2", "b", 10), ("3", "c", 10)]);
        let all = &["a", "b", "c"];
        assert!(!objects(&three, all, &[], &["1"]), "two of three stand");
        assert!(objects(&three, all, &["1"], &["2"]));
        assert!(objects(&three, all, &[], &["1", "2"]), "both at once");
        assert!(!objects(&three, all, &["1", "2"], &["1"]), "it is revoked already");
        assert!(!objects(&three, all, &["1"], &["ff"]), "no member's");
        let two = issued(&[("1", "a", 10), ("2", "b", 10)]);
        assert!(objects(&two, &["a", "b"], &[], &["2"]));
        assert!(!objects(&issued(&[("1", "a", 10)]), &["a"], &[], &["1"]), "alone");
        let renewed = issued(&[("1", "a", 10), ("2", "b", 10), ("4", "a", 20), ("5", "b", 20)]);
        assert!(!objects(&renewed, &["a", "b"], &["1"], &["2"]), "each has a newer one");
        assert!(objects(&renewed, &["a", "b"], &[], &["5"]), "the older ones are in use nowhere");
        assert!(!objects(&Issued::default(), &[], &[], &["1"]));
    }

    /// By the record alone, five pods that have gone would stand, and one cluster would vote for another.
    #[test]
    fn members_that_are_gone_or_of_another_cluster_do_not_count() {
        let many = issued(&[("1", "a", 10), ("2", "b", 10), ("3", "c", 10), ("4", "gone", 10), ("5", "too", 10)]);
        assert!(objects(&many, &["a", "b", "c"], &["1"], &["2"]), "a member that is gone does not stand");
        assert!(!objects(&many, &["a", "b", "c"], &["4", "5"], &["1"]), "and does not fall");
        let voters = [
            voter("a", "etcd"),
            voter("b", "etcd"),
            voter("c", "other"),
            voter("gone", "other"),
            voter("too", "other"),
        ];
        let said = objection(&many, &voters, &[], &["1"], 0);
        assert!(said.as_deref().is_some_and(|said| said.contains("1 of 2 members of prod/etcd")), "{said:?}");
        assert_eq!(objection(&many, &voters, &[], &["3"], 0), None);
    }

    /// Several etcds on one host: each has a certificate of its own.
    #[test]
    fn a_host_stands_in_each_of_its_clusters_by_its_certificate_of_that_cluster() {
        let mut issued = Issued::default();
        let mut voters = Vec::new();
        let mut note = |serial: String, holder: &str, cluster: &str, at| {
            let at = UNIX_EPOCH + Duration::from_secs(at);
            let leaf = Leaf::new(holder, String::new(), holder, at + Duration::from_secs(1000), at).of_role(Role::Peer);
            issued.note(&serial, leaf.of_cluster(cluster.to_owned()));
        };
        for (n, host) in ["host:m1", "host:m2", "host:m3"].into_iter().enumerate() {
            // That of events is the newer one.
            for (cluster, at) in [("main", 10), ("events", 20)] {
                note(format!("{cluster}{n}"), host, &format!("prod/{cluster}"), at);
                voters.push(voter(host, cluster));
            }
        }
        note("unnamed".to_owned(), "host:m3", "", 30);
        assert_eq!(objection(&issued, &voters, &[], &["main0"], 0), None);
        let said = objection(&issued, &voters, &["main0"], &["main1"], 0);
        assert!(said.as_deref().is_some_and(|said| said.contains("1 of 3 members of prod/main")), "{said:?}");
        assert_eq!(objection(&issued, &voters, &["main0"], &["events1"], 0), None, "each cluster by itself");
        assert!(objection(&issued, &voters, &["main0"], &["main2"], 0).is_some(), "beside one that names no cluster");
        assert!(objection(&issued, &voters, &["main0"], &["unnamed"], 0).is_some(), "which may be that of main");
    }

    /// As agents of before 1.19 asked, and then sidecars, which name the cluster.
    #[test]
    fn certificates_of_no_cluster_that_were_replaced_do_not_count_and_switch_the_guard_off_in_no_case() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let of = |clusters: &[&str], old: u64| {
            let (mut issued, mut voters) = (Issued::default(), Vec::new());
            for (n, host) in ["host:m1", "host:m2", "host:m3"].into_iter().enumerate() {
                let mut note = |serial: String, cluster: String, seconds| {
                    let leaf =
                        Leaf::new(host, String::new(), host, at(seconds + 1000), at(seconds)).of_role(Role::Peer);
                    issued.note(&serial, leaf.of_cluster(cluster));
                };
                note(format!("old{n}"), String::new(), old);
                for cluster in clusters {
                    note(format!("{cluster}{n}"), format!("prod/{cluster}"), 20);
                    voters.push(voter(host, cluster));
                }
            }
            (issued, voters)
        };
        let old = ["old0", "old1", "old2"];
        let (issued, voters) = of(&["main"], 10);
        assert_eq!(objection(&issued, &voters, &[], &old, 0), None, "each has a newer one");
        assert_eq!(objection(&issued, &voters, &old, &["main0"], 0), None);
        let revoked = ["old0", "old1", "old2", "main0"];
        assert!(objection(&issued, &voters, &revoked, &["main1"], 0).is_some());
        // Where it may be in use, the guard holds before and after it was revoked.
        for (issued, voters) in [of(&["main", "events"], 10), of(&["main"], 30)] {
            assert!(objection(&issued, &voters, &[], &["old0", "old1"], 0).is_some());
            assert_eq!(objection(&issued, &voters, &old, &["ff"], 0), None, "nobody falls");
            assert!(objection(&issued, &voters, &revoked, &["main1"], 0).is_some(), "after a revocation with force");
        }
    }

    #[test]
    fn a_member_that_is_not_recorded_may_be_the_one_that_is_named() {
        let restored = issued(&[("1", "a", 10)]);
        let mut voters = [voter("a", "etcd"), voter("b", "etcd"), voter("c", "etcd")];
        assert_eq!(objection(&restored, &voters, &[], &["ff"], 1), None, "two of three stand in any case");
        let said = objection(&restored, &voters, &["1"], &["ff"], 1);
        assert!(said.as_deref().is_some_and(|said| said.contains("the record lacks")), "{said:?}");
        assert_eq!(objection(&restored, &voters, &["1"], &[], 0), None, "nothing falls");
        (voters[1].running, voters[2].running) = (false, false);
        assert!(
            objection(&restored, &voters, &[], &["1"], 0).is_some(),
            "a member that waits for a node votes and does not stand"
        );
    }

    /// One revocation after the other, each of a number that the record lacks.
    #[test]
    fn revoked_numbers_that_the_record_lacks_may_have_been_those_of_members() {
        let voters = [voter("a", "etcd"), voter("b", "etcd"), voter("c", "etcd")];
        let of = |issued: &Issued, lacking: Unrecorded| {
            let counts = MemberCounts::of(issued, &voters, |_| false, |_| false, lacking);
            counts.into_iter().find_map(|(cluster, member_counts)| member_counts.objection(cluster))
        };
        let next = |revoked, before| Unrecorded { named: 1, revoked, before };
        for lost in [Issued::default(), issued(&[("1", "a", 10)])] {
            assert_eq!(of(&lost, next(0, None)), None);
            assert!(of(&lost, next(1, None)).is_some_and(|said| said.contains("1 of 3 members")));
            for revoked in [2, 3, 9] {
                assert!(of(&lost, next(revoked, None)).is_some(), "{revoked}");
            }
        }
        // Each has one in the record, which lacks those of later: an older record was restored, say.
        let older = issued(&[("1", "a", 10), ("2", "b", 10), ("3", "c", 10)]);
        assert_eq!(of(&older, next(5, None)), None, "a whole record: nobody's");
        assert_eq!(of(&older, next(0, Some(20))), None);
        assert!(of(&older, next(1, Some(20))).is_some_and(|said| said.contains("may be the ones named")));
        assert_eq!(of(&older, Unrecorded { named: 0, revoked: 2, before: Some(20) }), None, "nobody falls");
        let renewed = issued(&[("1", "a", 10), ("2", "b", 20), ("3", "c", 20)]);
        assert_eq!(of(&renewed, next(1, Some(20))), None, "two have newer ones than it lacks");
    }

    #[test]
    fn a_host_is_a_member_by_its_role_and_not_by_its_name() {
        let mut issued = issued(&[("1", "a", 10)]);
        let at = UNIX_EPOCH + Duration::from_secs(10);
        let leaf = Leaf::new("host:cp", String::new(), "cp", at + Duration::from_secs(100), at).of_role(Role::Peer);
        issued.note("2", leaf.clone());
        let voters = [voter("a", "etcd"), voter("host:cp", "etcd")];
        assert!(objection(&issued, &voters, &[], &["2"], 0).is_some());
        let mut later = leaf.of_role(Role::Server);
        later.at = 20;
        issued.note("3", later);
        assert!(objection(&issued, &voters, &[], &["2"], 0).is_some(), "the newer one is for its server");
    }
}
