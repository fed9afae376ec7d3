//! Addresses that more than one claims. A kubelet reports the addresses of its pods, and nobody checks it: it may report
//! another node's pod's.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use super::{Entitlement, PodFacts, ServiceFacts, Verdict};
use crate::role::Role;

/// Facts about a pod's addresses from other sources than the pod's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Other holders of these addresses.
    pub claims: Vec<Claim>,
    /// Those that a still valid certificate of this pod holds.
    pub held: BTreeSet<IpAddr>,
}

/// One address of the pod's, and who else has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub ip: IpAddr,
    /// The other holder.
    pub by: Claimant,
}

/// Another holder of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimant {
    /// A live pod on another node reports it.
    Pod {
        /// `metadata.namespace`.
        namespace: String,
        /// `metadata.name`.
        name: String,
        /// `metadata.uid`.
        uid: String,
        /// `spec.nodeName`.
        node: String,
    },
    /// Another node has it, as its pods report.
    Node(String),
    /// The policy lists it as that of a host with this username.
    Host(String),
    /// It is an external address of a Service of the pod's namespace.
    External {
        /// `metadata.namespace`.
        namespace: String,
        /// `metadata.name`.
        name: String,
    },
    /// It is a cluster IP.
    Service {
        /// `metadata.namespace`.
        namespace: String,
        /// `metadata.name`.
        name: String,
    },
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name, node, .. } => write!(f, "pod {namespace}/{name} on node {node}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Host(username) => write!(f, "the policy's host {username}"),
            Self::External { namespace, name } | Self::Service { namespace, name } => {
                write!(f, "Service {namespace}/{name}")
            }
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Claimant::Pod { .. } => write!(f, "{} is reported by {} too", self.ip, self.by),
            Claimant::Node(_) | Claimant::Host(_) | Claimant::External { .. } | Claimant::Service { .. } => {
                write!(f, "{} is an address of {}", self.ip, self.by)
            }
        }
    }
}

/// The claims that keep `entitlement` from being issued to `pod`.
///
/// An address of the pod's that a pod on another node, another node, a host or a load balancer has too belongs to one of the two, and
/// nothing shows to which. The holder of a valid certificate for it keeps renewing. A cluster IP is never a pod's; those of the Services that
/// select the pod are in a server's certificate anyhow.
pub fn contested<'a>(
    entitlement: &Entitlement,
    pod: &PodFacts,
    services: &[ServiceFacts],
    claims: &'a Claims,
) -> Vec<&'a Claim> {
    let selecting = |of: &str, name: &str| of == pod.namespace && services.iter().any(|service| service.name == name);
    let counts = |claim: &&Claim| {
        pod.ips.contains(&claim.ip)
            && entitlement.sans.ips.contains(&claim.ip)
            && match &claim.by {
                Claimant::Pod { .. } | Claimant::Node(_) | Claimant::Host(_) | Claimant::External { .. } => {
                    !claims.held.contains(&claim.ip)
                }
                Claimant::Service { namespace, name } => {
                    !(entitlement.role == Role::Server && selecting(namespace, name))
                }
            }
    };
    claims.claims.iter().filter(counts).collect()
}

/// The verdict, given who else has the pod's addresses: *not yet* instead of an approval while one of them is contested,
/// since a pod that is gone frees its address.
pub fn unless_contested(verdict: Verdict, pod: &PodFacts, services: &[ServiceFacts], claims: &Claims) -> Verdict {
    let Verdict::Approve(entitlement) = &verdict else { return verdict };
    let contested = contested(entitlement, pod, services, claims);
    if contested.is_empty() {
        return verdict;
    }
    let claims: Vec<String> = contested.iter().map(ToString::to_string).collect();
    Verdict::NotYet(format!("pod {}/{} reports an address of another: {}", pod.namespace, pod.name, claims.join(", ")))
}
