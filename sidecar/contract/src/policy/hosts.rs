//! The addresses, names and etcd users of the policy's hosts, which no pod gets. Each counts for certificates of the
//! authorities that sign the host's; those who trust another authority do not take a pod for the host.

use std::net::IpAddr;

use super::{HostRule, Policy, Role, SignerName};

impl Policy {
    /// The hosts that have certificates of the authority that signs for `signer`.
    fn hosts_beside<'a>(&'a self, signer: &SignerName) -> impl Iterator<Item = &'a HostRule> {
        let authority = self.authority(signer);
        let signs =
            move |role: &Role, host: &HostRule| self.authority(&host.cluster.signer(role.domain())) == authority;
        self.hosts.iter().filter(move |host| host.roles.iter().any(|role| signs(role, host)))
    }

    /// The host whose address `ip` is, unless it is the node `node`, as which its kubelet authenticates. A client's certificate has no
    /// address.
    pub fn host_with_ip(&self, signer: &SignerName, ip: IpAddr, node: &str) -> Option<&HostRule> {
        let is_node = |host: &HostRule| host.username.strip_prefix("system:node:") == Some(node);
        let serves = |host: &HostRule| host.roles.iter().any(|role| *role != Role::Client);
        self.hosts_beside(signer).find(|host| host.ips.contains(&ip) && serves(host) && !is_node(host))
    }

    /// The client on a host whose etcd user `user` is.
    pub fn host_with_user(&self, signer: &SignerName, user: &str) -> Option<&HostRule> {
        self.hosts_beside(signer).find(|host| host.roles.contains(&Role::Client) && host.common_name == user)
    }

    /// The hosts' names for which a certificate with `name` is good.
    pub(super) fn names_of_hosts<'a>(&'a self, signer: &SignerName, name: &str) -> Vec<&'a str> {
        let names = self.hosts_beside(signer).flat_map(|host| &host.dns_names).map(String::as_str);
        names.filter(|of_host| covers(name, of_host)).collect()
    }

    /// True if an address is one of a host's.
    pub(super) fn is_ip_of_host(&self, signer: &SignerName, ip: IpAddr) -> bool {
        self.hosts_beside(signer).any(|host| host.ips.contains(&ip))
    }
}

/// True if a certificate with the DNS name `held` is good for the host `name` (RFC 6125, section 6.4.3: a wildcard stands for one
/// label).
fn covers(held: &str, name: &str) -> bool {
    let under = |parent| name.split_once('.').is_some_and(|(_, rest)| rest == parent);
    held == name || held.strip_prefix("*.").is_some_and(under)
}
