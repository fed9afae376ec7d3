//! Decides if etcd needs a restart, and if the restart is allowed now. Pure.
//!
//! **Invariant.** [`permit`] is the only place that allows a restart: every other voter healthy, every other member taking
//! us for a peer with the leaf and the trust that etcd will start with, and quorum standing without this member. The one
//! exception is a single-member cluster, where every restart is an outage.

use std::{collections::BTreeSet, fmt, time::Duration};

use crate::etcd::EtcdError;

/// A domain's bundle on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installed {
    /// Its digest.
    pub(super) digest: String,
    /// Its DER subjects, sorted.
    pub(super) subjects: Vec<Vec<u8>>,
    /// When it was first seen there, since the system started.
    pub(super) since: Duration,
    /// True if another bundle with the very same subjects was there before: then names do not tell which one is loaded.
    pub(super) ambiguous: bool,
}

/// The observed state of a port of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedPort {
    /// The DER subjects it takes client certificates from, sorted; `None` where it asks for no client certificate.
    pub(super) authorities: Option<Vec<Vec<u8>>>,
    /// The earliest possible start of the process, as time since the system's start; `None` if undetermined.
    pub(super) started: Option<Duration>,
}

/// The known state of the bundle in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It is the one on disk.
    Loaded,
    /// It is another one, which a restart would change.
    Due,
    /// It is another one although the process started after the one on disk was there: it reads another file, and a
    /// restart would change nothing.
    Elsewhere,
}

/// Compares what is on disk with what is in use. `tried` says that etcd was restarted for this very bundle.
pub(super) fn trust(installed: &Installed, seen: &ObservedPort, tried: bool) -> Trust {
    let restarted = seen.started.map_or(tried, |at| at >= installed.since);
    match &seen.authorities {
        // Nobody is asked for a certificate: there is no trust to load.
        None => Trust::Loaded,
        Some(names) if *names == installed.subjects => {
            if installed.ambiguous && !restarted {
                Trust::Due
            } else {
                Trust::Loaded
            }
        }
        Some(_) if restarted => Trust::Elsewhere,
        Some(_) => Trust::Due,
    }
}

/// Ports of etcd, by name.
pub type Ports = BTreeSet<&'static str>;

/// True if etcd is to be restarted because ports, `unserved`, do not serve a leaf that is on disk. `tried` are those for which it was
/// restarted: if one restart did not help (etcd reads other files there), another one would not either.
pub(super) fn leaf_due(unserved: &Ports, tried: &mut Ports) -> bool {
    tried.retain(|port| unserved.contains(port));
    !unserved.is_subset(tried)
}

/// Why a member is not healthy, or does not accept this one as a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct MemberError(String);

impl From<String> for MemberError {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for MemberError {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<EtcdError> for MemberError {
    fn from(error: EtcdError) -> Self {
        Self(error.to_string())
    }
}

/// A member of the cluster as it was just observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedMember {
    /// Its id.
    pub(super) id: u64,
    /// Its name.
    pub(super) name: String,
    /// True if it has no vote.
    pub(super) learner: bool,
    /// `Ok` if it reports a quorum, else its error.
    pub(super) health: Result<(), MemberError>,
    /// `Ok` if it accepts us as a peer, else the error.
    pub(super) peer: Result<(), MemberError>,
}

/// A restart that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permit {
    /// The member that takes over leadership.
    pub(super) successor: Option<u64>,
    /// True if the cluster is away meanwhile: it has this one member.
    pub(super) outage: bool,
}

/// Why a restart must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// etcd is no member of its own member list.
    NotAMember,
    /// These are not healthy: name and what they say.
    Unhealthy(Vec<(String, String)>),
    /// These would not take this member back: name and what happened.
    PeerRefuses(Vec<(String, String)>),
    /// Of so many voters, the others are no quorum.
    NoQuorum(usize),
}

impl Hindrance {
    /// Its bounded word, for metrics.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::NotAMember => "not_a_member",
            Self::Unhealthy(_) => "unhealthy",
            Self::PeerRefuses(_) => "peer_refuses",
            Self::NoQuorum(_) => "no_quorum",
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |members: &[(String, String)]| {
            members.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ")
        };
        match self {
            Self::NotAMember => f.write_str("this etcd is not in its cluster's member list"),
            Self::Unhealthy(members) => write!(f, "not every other member is healthy: {}", list(members)),
            Self::PeerRefuses(members) => {
                write!(f, "with the new certificate and bundle not every other member is reached: {}", list(members))
            }
            Self::NoQuorum(voters) => write!(
                f,
                "of {voters} voting members the others are no quorum; add a member, or restart this one by hand at a quiet hour"
            ),
        }
    }
}

/// Checks that member `me` of `members` may be restarted.
///
/// # Errors
/// Why not.
pub(super) fn permit(me: u64, members: &[ObservedMember]) -> Result<Permit, Hindrance> {
    let own = members.iter().find(|m| m.id == me).ok_or(Hindrance::NotAMember)?;
    let others: Vec<&ObservedMember> = members.iter().filter(|m| m.id != me).collect();
    let voters = members.iter().filter(|m| !m.learner).count();
    if voters == 1 && !own.learner {
        // Learners follow when it is back; nothing could be done for them.
        return Ok(Permit { successor: None, outage: true });
    }
    let because = |of: &dyn Fn(&ObservedMember) -> Option<String>| -> Vec<(String, String)> {
        others.iter().filter_map(|m| Some((label(m), of(m)?))).collect()
    };
    // A learner serves no linearizable read, so its health says nothing.
    let unhealthy = because(&|m| m.health.as_ref().err().filter(|_| !m.learner).map(ToString::to_string));
    if !unhealthy.is_empty() {
        return Err(Hindrance::Unhealthy(unhealthy));
    }
    let refusing = because(&|m| m.peer.as_ref().err().map(ToString::to_string));
    if !refusing.is_empty() {
        return Err(Hindrance::PeerRefuses(refusing));
    }
    let standing = others.iter().filter(|m| !m.learner).count();
    if standing <= voters / 2 {
        return Err(Hindrance::NoQuorum(voters));
    }
    // The next one by id: when each hands on to the next, leadership goes around once.
    let successor = others.iter().filter(|m| !m.learner).min_by_key(|m| (m.id < me, m.id)).map(|m| m.id);
    Ok(Permit { successor, outage: false })
}

fn label(member: &ObservedMember) -> String {
    // A member that was added and never started has no name yet.
    if member.name.is_empty() { format!("{:x}", member.id) } else { member.name.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const OLD: &[u8] = b"old";
    const NEW: &[u8] = b"new";

    fn names(names: &[&[u8]]) -> Vec<Vec<u8>> {
        names.iter().map(|n| n.to_vec()).collect()
    }

    fn member(id: u64) -> ObservedMember {
        ObservedMember { id, name: format!("m{id}"), learner: false, health: Ok(()), peer: Ok(()) }
    }

    fn cluster(size: u64) -> Vec<ObservedMember> {
        (1..=size).map(member).collect()
    }

    #[test]
    fn loaded_bundles_are_told_by_name_and_for_equal_names_by_start() {
        let at = Duration::from_secs;
        let installed = |subjects, ambiguous| Installed { digest: "d".into(), subjects, since: at(100), ambiguous };
        let both = || names(&[NEW, OLD]);
        let seen = |authorities: Option<Vec<Vec<u8>>>, started: Option<u64>| ObservedPort {
            authorities,
            started: started.map(at),
        };
        for (on_disk, seen, tried, expected) in [
            (installed(both(), false), seen(Some(both()), Some(50)), false, Trust::Loaded),
            (installed(both(), false), seen(Some(names(&[OLD])), Some(50)), false, Trust::Due),
            (installed(both(), false), seen(Some(names(&[OLD])), None), false, Trust::Due),
            // The old CA is to go: more is loaded than is on disk.
            (installed(names(&[NEW]), false), seen(Some(both()), Some(50)), false, Trust::Due),
            // The same name twice, then once.
            (installed(names(&[OLD, OLD]), true), seen(Some(names(&[OLD])), Some(50)), false, Trust::Due),
            // A user's CA that re-uses the name.
            (installed(names(&[OLD]), true), seen(Some(names(&[OLD])), Some(50)), false, Trust::Due),
            (installed(names(&[OLD]), true), seen(Some(names(&[OLD])), Some(100)), false, Trust::Loaded),
            (installed(names(&[OLD]), true), seen(Some(names(&[OLD])), None), false, Trust::Due),
            (installed(names(&[OLD]), true), seen(Some(names(&[OLD])), None), true, Trust::Loaded),
            // Started since, and still another: restarting for ever would not help.
            (installed(both(), false), seen(Some(names(&[OLD])), Some(101)), false, Trust::Elsewhere),
            (installed(both(), false), seen(Some(names(&[OLD])), None), true, Trust::Elsewhere),
            (installed(both(), false), seen(None, Some(50)), false, Trust::Loaded),
        ] {
            assert_eq!(trust(&on_disk, &seen, tried), expected, "{on_disk:?} {seen:?} {tried}");
        }
    }

    #[test]
    fn a_port_costs_one_restart_until_it_has_served_the_leaf() {
        let mut tried = Ports::new();
        let mut due = |unserved: &[&'static str]| {
            let unserved = unserved.iter().copied().collect();
            let due = leaf_due(&unserved, &mut tried);
            if due {
                tried.extend(unserved);
            }
            due
        };
        assert!(!due(&[]) && due(&["metrics"]) && !due(&["metrics"]), "one restart");
        assert!(due(&["metrics", "peer"]), "another port is no longer served");
        assert!(!due(&["metrics", "peer"]) && !due(&["metrics"]));
        assert!(due(&["metrics", "peer"]), "it was served meanwhile");
    }

    #[test]
    fn a_restart_is_allowed_while_all_others_are_well_and_enough() {
        for size in [3, 4, 5] {
            assert_eq!(permit(1, &cluster(size)).unwrap(), Permit { successor: Some(2), outage: false });
            assert_eq!(permit(size, &cluster(size)).unwrap().successor, Some(1));
        }
    }

    #[test]
    fn one_member_goes_with_an_outage_and_two_never() {
        assert_eq!(permit(1, &cluster(1)).unwrap(), Permit { successor: None, outage: true });
        assert_eq!(permit(1, &cluster(2)).unwrap_err(), Hindrance::NoQuorum(2));
        let mut with_learner = cluster(2);
        with_learner[1].learner = true;
        with_learner[1].health = Err("rpc not supported for learner".into());
        assert!(permit(1, &with_learner).unwrap().outage);
    }

    #[test]
    fn every_single_deviation_of_another_member_is_a_hindrance() {
        type Deviation = (fn(&mut ObservedMember), &'static str);
        let deviations: [Deviation; 2] = [
            (|m| m.health = Err("RAFT NO LEADER".into()), "unhealthy"),
            (|m| m.peer = Err("unknown authority".into()), "peer_refuses"),
        ];
        for size in [3, 5] {
            for (deviate, word) in deviations {
                for other in 1..usize::try_from(size).unwrap() {
                    let mut members = cluster(size);
                    deviate(&mut members[other]);
                    let hindrance = permit(1, &members).unwrap_err();
                    assert_eq!(hindrance.as_str(), word);
                    assert!(hindrance.to_string().contains(&members[other].name), "{hindrance}");
                }
            }
        }
    }

    #[test]
    fn ones_own_health_is_no_hindrance_and_ones_absence_is() {
        let mut members = cluster(3);
        members[0].health = Err("isolated by the old bundle".into());
        assert!(permit(1, &members).is_ok());
        assert_eq!(permit(9, &members).unwrap_err(), Hindrance::NotAMember);
    }

    #[test]
    fn learners_have_no_vote_and_get_no_leadership() {
        let mut members = cluster(4);
        members[1].learner = true;
        members[1].health = Err("rpc not supported for learner".into());
        assert_eq!(permit(1, &members).unwrap().successor, Some(3));
        // Two voters and two learners: the one other voter is no quorum.
        members[2].learner = true;
        assert_eq!(permit(1, &members).unwrap_err(), Hindrance::NoQuorum(2));
        // A learner may go whenever the voters are well: they all stay.
        assert!(permit(2, &members).is_ok());
    }

    #[test]
    fn a_member_that_never_started_is_named_by_its_id() {
        let mut members = cluster(3);
        members[2] = ObservedMember { name: String::new(), health: Err("no client URL".into()), ..member(0xabc) };
        assert!(permit(1, &members).unwrap_err().to_string().contains("abc: no client URL"));
    }
}
