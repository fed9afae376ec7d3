//! The namespaces that the names in a policy mean. A name outlives its namespace: whoever makes a namespace of the same name again
//! would take over what the policy gives by it. A uid does not.

use super::{ExtraSans, InvalidValue, Policy, names};

/// Bytes of a uid; the API server's have 36.
const MAX_UID: usize = 64;

impl Policy {
    /// Checks [`Self::namespace_uids`]: each is the uid of a namespace that a rule names. One that names none would protect nothing.
    pub(super) fn check_namespace_uids(&self) -> Result<(), InvalidValue> {
        for (name, uid) in &self.namespace_uids {
            if !names::is_dns_label(uid) || uid.len() > MAX_UID {
                return Err(format!("namespaceUids: {name}: {uid:?} is no uid of a namespace").into());
            }
            if !self.names_namespace(name) {
                return Err(format!(
                    "namespaceUids: no rule that gives something names the namespace {name:?} (extraSans, users, crossNamespace, hosts, \
                     shared, authorities)"
                )
                .into());
            }
        }
        Ok(())
    }

    /// True if a rule names this namespace that gives its pods, hosts or clusters something.
    fn names_namespace(&self, name: &str) -> bool {
        let signers = self.shared.iter().flat_map(|shared| shared.signers.iter().chain([&shared.authority]));
        let mut signers = signers.chain(self.authorities.iter().map(|given| &given.signer));
        self.extra_sans.iter().any(|rule| rule.namespaces.names(name))
            || self.users.iter().any(|rule| rule.namespace == name)
            || self.cross_namespace.iter().any(|rule| rule.from == name || rule.to.namespace == name)
            || self.hosts.iter().any(|host| host.cluster.namespace == name)
            || signers.any(|signer| signer.namespace == name)
    }

    /// The policy without the rights of namespaces that are not those it means ([`Self::namespace_uids`]); `uid` gives the uid that a
    /// namespace has now, `None` where there is none. `issuers` and `manualApproval` stay: they take away, and admission knows no uid.
    #[must_use]
    pub fn for_namespaces<'a>(&self, uid: impl Fn(&str) -> Option<&'a str>) -> Self {
        let replaced =
            |name: &str| self.namespace_uids.get(name).is_some_and(|meant| uid(name) != Some(meant.as_str()));
        let stays = |name: &str| !replaced(name);
        let mut policy = self.clone();
        policy.extra_sans.retain_mut(|ExtraSans { namespaces, .. }| namespaces.retain(stays));
        policy.users.retain(|rule| stays(&rule.namespace));
        policy.cross_namespace.retain(|rule| stays(&rule.from) && stays(&rule.to.namespace));
        policy.hosts.retain(|host| stays(&host.cluster.namespace));
        policy.shared.retain_mut(|shared| {
            shared.signers.retain(|signer| stays(&signer.namespace));
            stays(&shared.authority.namespace) && !shared.signers.is_empty()
        });
        policy.authorities.retain(|given| stays(&given.signer.namespace));
        policy
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{role::Role, san::Sans};

    const POLICY: &str = "
extraSans: [{namespaces: [web, prod], dnsNames: [a.example.com]}, {namespaces: [web], dnsNames: [b.example.com]}]
users: [{namespace: web, serviceAccounts: [app], users: [root]}]
crossNamespace: [{from: web, to: prod/etcd, roles: [client]}, {from: ops, to: web/etcd, roles: [client]}]
hosts: [{username: cp-1, cluster: web/etcd, roles: [peer], commonName: cp-1}]
shared: [{authority: peer.etcd-tls.dev/prod.etcd, signers: [peer.etcd-tls.dev/web.a, peer.etcd-tls.dev/prod.b]}]
authorities: [{signer: client.etcd-tls.dev/web.etcd, secretName: company-ca}]
issuers: [{namespaces: [web], allow: [csr]}]
namespaceUids: {web: u1}
";

    #[test]
    fn a_namespace_that_was_made_again_has_none_of_the_rights_of_its_name() {
        let policy = Policy::parse(POLICY).unwrap();
        assert_eq!(policy.for_namespaces(|name| (name == "web").then_some("u1")), policy);
        // Made again, and away: both are not the one that is meant.
        for now in [Some("u2"), None] {
            let policy = policy.for_namespaces(|name| now.filter(|_| name == "web"));
            let asked =
                Sans { dns: ["a.example.com".to_owned(), "b.example.com".to_owned()].into(), ..Sans::default() };
            let signer = |text: &str| text.parse().unwrap();
            let etcd = signer("client.etcd-tls.dev/prod.etcd");
            assert!(policy.allowed_extra_sans("web", &etcd, &asked).dns.is_empty());
            assert_eq!(policy.allowed_extra_sans("prod", &etcd, &asked).dns.len(), 1);
            assert!(!policy.allows_user("web", "app", "root"));
            assert!(!policy.allows_cluster("web", &signer("client.etcd-tls.dev/prod.etcd"), Role::Client));
            assert!(!policy.allows_cluster("ops", &signer("client.etcd-tls.dev/web.etcd"), Role::Client));
            assert!(policy.host("cp-1", &[]).is_none());
            assert_eq!(policy.authority(&signer("peer.etcd-tls.dev/web.a")), signer("peer.etcd-tls.dev/web.a"));
            assert_eq!(policy.authority(&signer("peer.etcd-tls.dev/prod.b")), signer("peer.etcd-tls.dev/prod.etcd"));
            assert_eq!(policy.given_secret(&signer("client.etcd-tls.dev/web.etcd")), None);
            assert_eq!(policy.issuers.len(), 1, "a bound stays");
        }
    }

    #[test]
    fn a_uid_of_a_namespace_that_no_rule_names_is_refused() {
        for (bad, says) in [
            ("namespaceUids: {web: u1}", "no rule"),
            ("users: [{namespace: web, serviceAccounts: [app], users: [root]}]\nnamespaceUids: {web: \"\"}", "no uid"),
            ("issuers: [{namespaces: [web], allow: [csr]}]\nnamespaceUids: {web: u1}", "no rule"),
        ] {
            let error = Policy::parse(bad).unwrap_err().to_string();
            assert!(error.contains("namespaceUids") && error.contains(says), "{error}");
        }
    }
}
