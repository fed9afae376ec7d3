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

    /// True if a name is one of a host's.
    pub(super) fn is_name_of_host(&self, signer: &SignerName, name: &str) -> bool {
        self.hosts_beside(signer).any(|host| host.dns_names.iter().any(|of_host| of_host == name))
    }

    /// True if an address is one of a host's.
    pub(super) fn is_ip_of_host(&self, signer: &SignerName, ip: IpAddr) -> bool {
        self.hosts_beside(signer).any(|host| host.ips.contains(&ip))
    }
}
