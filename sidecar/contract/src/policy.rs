//! The operator's policy: ConfigMap `etcd-tls-policy`, key `policy.yaml`, strictly parsed.
//!
//! Every field has a default. The default allows nothing beyond the grammar: no further names, no user but the pod's own, no
//! cluster of another namespace, no host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::Deserialize;

pub use self::rules::{
    AllowedKeys, AuthoritySecret, CidrBlock, CrossNamespace, DnsPattern, ExtraSans, HostRule, IssuerRule, Lifetime,
    ManualApproval, MetricsAuthority, NameList, Revoker, Rollover, SharedAuthority, UserRule,
};
use crate::{
    invalid_value::InvalidValue,
    key::KeyAlgorithm,
    names::{self, SignerName},
    role::{Domain, Role},
    san::Sans,
    settings::{self, Issuer},
};

mod hosts;
mod namespaces;
mod rules;
#[cfg(test)]
mod tests;

/// The longest policy file that is read, in bytes.
pub const MAX_POLICY: usize = 256 * 1024;
/// The default limit of authorities per namespace: the creator of pods there can name any number of clusters, and each of them
/// gets a key that is kept.
pub const MAX_AUTHORITIES: u16 = 64;
/// The default limit of authorities of all namespaces: about what the shipped memory limit of `sign` holds.
pub const MAX_AUTHORITIES_IN_ALL: u32 = 12_000;

/// Permissions beyond the grammar, with their bounds. [`Default`] is the policy of an empty file.
///
/// ```yaml
/// clusterDomain: cluster.local
/// keys: [ecdsa-p256, ecdsa-p384, ed25519, rsa-3072, rsa-4096]
/// lifetime: { min: 10m, max: 168h }
/// extraSans:                     # etcd-tls.dev/extra-sans is honoured for these
/// - namespaces: [prod]           # "*": every one
///   clusters: ["*"]
///   dnsNames: [etcd.example.com, "*.etcd.example.com"]
///   ipBlocks: [192.0.2.0/24]
/// users:                         # etcd-tls.dev/user is honoured for these; root only if it is listed
/// - namespace: prod
///   serviceAccounts: [backup]    # "*": every one
///   users: [backup]
/// crossNamespace:                # pods of one namespace, members or clients of a cluster in another
/// - from: web
///   to: prod/etcd
///   roles: [client]
/// hosts:                         # static pods and hosts, which authenticate by certificate or token
/// - username: system:node:cp-1
///   groups: [system:nodes]       # all of them must be the caller's
///   cluster: kube-system/etcd
///   roles: [peer, server]
///   dnsNames: [cp-1.example.com]
///   ips: [192.0.2.11]
///   commonName: cp-1             # behind the role's prefix; a client's whole CN
/// issuers:                       # etcd-tls.dev/issuer is held to these; a namespace of no rule may use any
/// - namespaces: [prod]           # "*": every one that no other rule names
///   allow: ["cert-manager:ClusterIssuer/company-ca"]
/// manualApproval:                # a person decides about these requests: kubectl certificate approve
/// - namespaces: [prod]           # of the pod, or of the cluster; "*": every one
///   clusters: ["*"]
///   roles: [peer, server]        # by default all
/// namespaceUids:                 # the namespaces that the names in these rules mean
///   prod: 8a1b6f0e-5a4e-4a2f-9d5e-0c1f2a3b4c5d
/// metricsAuthority: client       # or own
/// shared:                        # several signer names, one authority
/// - authority: peer.etcd-tls.dev/prod.etcd
///   signers: [client.etcd-tls.dev/prod.etcd]
/// authorities:                   # a CA of one's own: a kubernetes.io/tls Secret in the system namespace
/// - signer: peer.etcd-tls.dev/prod.etcd
///   secretName: prod-peer-ca
/// authoritiesPerNamespace: 64    # CAs that are made for the clusters of one namespace
/// authoritiesInAll: 12000        # … of all namespaces
/// idleAuthorities: never         # or 720h: a CA without pods and valid certificates is deleted after that
/// revokers:                      # standalone signer: who may revoke, beside --admin-group; in a cluster RBAC says it
/// - username: anna               # or groups, or both
///   groups: [etcd-operators]     # all of them must be the caller's
/// rollover:
///   caLifetime: 8760h            # the next CA is published at half of it
///   clientOverlap: 720h          # without it an operator confirms the clients outside
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// The cluster's DNS domain, `cluster.local` by default.
    pub cluster_domain: String,
    /// The key algorithms that are signed; by default all but `rsa-2048`.
    pub keys: AllowedKeys,
    /// The bounds of a leaf's life; by default 10 minutes to a week.
    pub lifetime: Lifetime,
    /// Whose `extra-sans` are honoured; by default nobody's.
    pub extra_sans: Vec<ExtraSans>,
    /// Whose `user` is honoured; by default nobody's.
    pub users: Vec<UserRule>,
    /// Which namespaces' pods may join a cluster of another; by default none.
    pub cross_namespace: Vec<CrossNamespace>,
    /// Static pods and hosts, by the name they authenticate with; by default none.
    pub hosts: Vec<HostRule>,
    /// Which issuers the pods of a namespace may name; by default any.
    pub issuers: Vec<IssuerRule>,
    /// Which requests a person decides about; by default none. What is denied is denied all the same.
    pub manual_approval: Vec<ManualApproval>,
    /// The uids of namespaces that rules name, by name. A rule that names one of these counts only while the namespace has this uid:
    /// one that was made again under the name has none of its rights. A name without a uid means every namespace of that name.
    pub namespace_uids: BTreeMap<String, String>,
    /// The authority of metrics certificates: the client authority (the default: etcd's metrics port takes the client CA)
    /// or one of their own (for a proxy in front).
    pub metrics_authority: MetricsAuthority,
    /// Several signer names mapped to one authority; by default each has its own.
    pub shared: Vec<SharedAuthority>,
    /// Authorities whose key and certificate the operator gives; by default all are made.
    pub authorities: Vec<AuthoritySecret>,
    /// How many authorities are made for the clusters of one namespace, 1 to 10,000; by default [`MAX_AUTHORITIES`]. A
    /// cluster has two or three. Those that are there already stay.
    pub authorities_per_namespace: u16,
    /// How many authorities are made in all, 1 to 1,000,000; by default [`MAX_AUTHORITIES_IN_ALL`]. Those that are there already stay.
    pub authorities_in_all: u32,
    /// After how long an authority is retired that has no pod, no host and no valid certificate. `None` (`never`), the default: each
    /// stays for as long as its namespace.
    #[serde(deserialize_with = "rules::duration_or_never")]
    pub idle_authorities: Option<Duration>,
    /// The callers that may revoke certificates of a standalone signer, beside its administrators; by default none. In a
    /// cluster RBAC says it: verb `revoke` on `authorities.etcd-tls.dev`.
    pub revokers: Vec<Revoker>,
    /// How an authority's key is replaced.
    pub rollover: Rollover,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            keys: AllowedKeys::default(),
            lifetime: Lifetime::default(),
            extra_sans: Vec::new(),
            users: Vec::new(),
            cross_namespace: Vec::new(),
            hosts: Vec::new(),
            issuers: Vec::new(),
            manual_approval: Vec::new(),
            namespace_uids: BTreeMap::new(),
            metrics_authority: MetricsAuthority::Client,
            shared: Vec::new(),
            authorities: Vec::new(),
            authorities_per_namespace: MAX_AUTHORITIES,
            authorities_in_all: MAX_AUTHORITIES_IN_ALL,
            idle_authorities: None,
            revokers: Vec::new(),
            rollover: Rollover::default(),
        }
    }
}

/// A policy that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy.yaml: {0}")]
pub struct PolicyError(pub String);

/// The policy does not let a namespace's pods use an issuer; with the rules that say so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RefusedIssuer(String);

impl Policy {
    /// Parses the policy file; an empty one is the default policy.
    ///
    /// # Errors
    /// Unknown fields, wrong types, values out of bounds, with the place, for the operator.
    pub fn parse(yaml: &str) -> Result<Self, PolicyError> {
        if yaml.len() > MAX_POLICY {
            return Err(PolicyError(format!("is {} bytes long; at most {MAX_POLICY} are read", yaml.len())));
        }
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---";
        if yaml.lines().all(blank) {
            return Ok(Self::default());
        }
        let policy: Self = serde_saphyr::from_str(yaml).map_err(|e| PolicyError(e.to_string()))?;
        policy.check().map_err(|e| PolicyError(e.to_string()))?;
        Ok(policy)
    }

    /// Checks the values, and their combinations.
    fn check(&self) -> Result<(), InvalidValue> {
        if !names::is_dns_subdomain(&self.cluster_domain) || self.cluster_domain == "svc" {
            return Err(format!("clusterDomain: {:?} is not a DNS domain", self.cluster_domain).into());
        }
        self.lifetime.check()?;
        self.rollover.check()?;
        if !(1..=10_000).contains(&self.authorities_per_namespace) {
            return Err("authoritiesPerNamespace: from 1 to 10000".into());
        }
        if !(1..=1_000_000).contains(&self.authorities_in_all) {
            return Err("authoritiesInAll: from 1 to 1000000".into());
        }
        if self.idle_authorities.is_some_and(|after| after < Duration::from_secs(24 * 3600)) {
            return Err("idleAuthorities: at least 24h, or never".into());
        }
        if !KeyAlgorithm::ALL.into_iter().any(|key| self.keys.allow(key)) {
            return Err("keys: name at least one".into());
        }
        let each = |what: &str, checks: Vec<Result<(), InvalidValue>>| {
            checks
                .into_iter()
                .enumerate()
                .try_for_each(|(index, check)| check.map_err(|e| e.at(format_args!("{what}[{index}]"))))
        };
        each("extraSans", self.extra_sans.iter().map(ExtraSans::check).collect())?;
        each("users", self.users.iter().map(UserRule::check).collect())?;
        each("crossNamespace", self.cross_namespace.iter().map(CrossNamespace::check).collect())?;
        each("crossNamespace", self.cross_namespace.iter().map(|rule| self.check_metrics(rule)).collect())?;
        each("issuers", self.issuers.iter().map(IssuerRule::check).collect())?;
        each("manualApproval", self.manual_approval.iter().map(ManualApproval::check).collect())?;
        each("revokers", self.revokers.iter().map(Revoker::check).collect())?;
        each("hosts", self.hosts.iter().map(HostRule::check).collect())?;
        let mut usernames = BTreeSet::new();
        if let Some(index) = self.hosts.iter().position(|host| !usernames.insert(&host.username)) {
            let username = &self.hosts[index].username;
            return Err(format!(
                "hosts[{index}]: {username:?} is listed twice; give each host one entry, and a member of two \
                 clusters a username of its own for each"
            )
            .into());
        }
        each("authorities", self.authorities.iter().map(AuthoritySecret::check).collect())?;
        let mut signers = BTreeSet::new();
        for (index, shared) in self.shared.iter().enumerate() {
            for signer in &shared.signers {
                if !signers.insert(signer) {
                    return Err(format!("shared[{index}]: {signer} is mapped twice").into());
                }
            }
        }
        for (index, shared) in self.shared.iter().enumerate() {
            if signers.contains(&shared.authority) && !shared.signers.contains(&shared.authority) {
                return Err(
                    format!("shared[{index}]: the authority {} is itself mapped to another", shared.authority).into()
                );
            }
        }
        self.check_namespace_uids()?;
        let mut given = BTreeSet::new();
        for (index, authority) in self.authorities.iter().enumerate() {
            if !given.insert(&authority.signer) {
                return Err(format!("authorities[{index}]: {} has two Secrets", authority.signer).into());
            }
            if self.authority(&authority.signer) != authority.signer {
                let effective = self.authority(&authority.signer);
                return Err(format!(
                    "authorities[{index}]: {} is signed by {effective}; give that one's Secret",
                    authority.signer
                )
                .into());
            }
        }
        Ok(())
    }

    /// A metrics certificate of the client authority opens the client port where etcd's auth is off. A pod of the cluster's
    /// own namespace may have one; a pod of another namespace only if it may be a client.
    fn check_metrics(&self, rule: &CrossNamespace) -> Result<(), InvalidValue> {
        let shared =
            self.authority(&rule.to.signer(Domain::Metrics)) == self.authority(&rule.to.signer(Domain::Client));
        if rule.roles.contains(&Role::Metrics) && !rule.roles.contains(&Role::Client) && shared {
            return Err(
                "roles: metrics certificates come from the client authority, so they open etcd's client port, too; \
                        set metricsAuthority: own, or allow the role client as well"
                    .into(),
            );
        }
        Ok(())
    }

    /// The signer name whose authority signs for `signer`: itself, unless metrics share the client authority or `shared`
    /// maps it.
    pub fn authority(&self, signer: &SignerName) -> SignerName {
        let mapped = |signer: &SignerName| {
            self.shared.iter().find(|shared| shared.signers.contains(signer)).map(|shared| shared.authority.clone())
        };
        if let Some(authority) = mapped(signer) {
            return authority;
        }
        if signer.domain == Domain::Metrics && self.metrics_authority == MetricsAuthority::Client {
            let client = SignerName { domain: Domain::Client, ..signer.clone() };
            return mapped(&client).unwrap_or(client);
        }
        signer.clone()
    }

    /// The Secret that the operator gives for `authority` (see [`Self::authority`]).
    pub fn given_secret(&self, authority: &SignerName) -> Option<&str> {
        self.authorities.iter().find(|given| given.signer == *authority).map(|given| given.secret_name.as_str())
    }

    /// The part of `asked` that a pod in `namespace` may have in a certificate of `signer` (of a cluster of the same namespace, or of
    /// one elsewhere that it may join). What is a host's takes a rule that lists it itself: no wildcard and no block of several. A
    /// wildcard that covers names of hosts takes rules that list it and each of them.
    pub fn allowed_extra_sans(&self, namespace: &str, signer: &SignerName, asked: &Sans) -> Sans {
        let rules: Vec<&ExtraSans> = self
            .extra_sans
            .iter()
            .filter(|rule| rule.namespaces.takes(namespace) && rule.clusters.takes(&signer.cluster))
            .collect();
        Sans {
            dns: asked
                .dns
                .iter()
                .filter(|name| {
                    let lists = |name: &str| rules.iter().any(|rule| rule.lists_name(name));
                    match self.names_of_hosts(signer, name).as_slice() {
                        [] => rules.iter().any(|rule| rule.takes_name(name)),
                        of_hosts => lists(name) && of_hosts.iter().all(|name| lists(name)),
                    }
                })
                .cloned()
                .collect(),
            ips: asked
                .ips
                .iter()
                .copied()
                .filter(|ip| {
                    let listed_itself = self.is_ip_of_host(signer, *ip);
                    rules.iter().any(|rule| if listed_itself { rule.lists_ip(*ip) } else { rule.takes_ip(*ip) })
                })
                .collect(),
        }
    }

    /// True if a pod of `service_account` in `namespace` may be the etcd user `user`.
    pub fn allows_user(&self, namespace: &str, service_account: &str, user: &str) -> bool {
        self.users.iter().any(|rule| {
            rule.namespace == namespace
                && rule.service_accounts.takes(service_account)
                && rule.users.iter().any(|u| u == user)
        })
    }

    /// True if a pod in `namespace` may hold `role` in the cluster of `signer`: its own namespace's always.
    pub fn allows_cluster(&self, namespace: &str, signer: &SignerName, role: Role) -> bool {
        signer.namespace == namespace
            || self
                .cross_namespace
                .iter()
                .any(|rule| rule.from == namespace && rule.to == signer.cluster_name() && rule.roles.contains(&role))
    }

    /// Checks that pods of `namespace` may have `issuer`.
    ///
    /// # Errors
    /// They may not; with the rules named.
    pub fn check_issuer(&self, namespace: &str, issuer: &Issuer) -> Result<(), RefusedIssuer> {
        let indexed = || self.issuers.iter().enumerate();
        let mut rules: Vec<_> = indexed().filter(|(_, rule)| rule.namespaces.names(namespace)).collect();
        if rules.is_empty() {
            rules = indexed().filter(|(_, rule)| rule.namespaces.takes(namespace)).collect();
        }
        if rules.is_empty() || rules.iter().any(|(_, rule)| rule.allow.contains(issuer)) {
            return Ok(());
        }
        let names: Vec<String> = rules.iter().map(|(index, _)| format!("issuers[{index}]")).collect();
        let allowed: Vec<String> = rules.iter().flat_map(|(_, rule)| &rule.allow).map(ToString::to_string).collect();
        Err(RefusedIssuer(format!(
            "policy's {} lets the pods of namespace {namespace} use {}, not {issuer}",
            names.join(" and "),
            allowed.join(" or ")
        )))
    }

    /// The index of the rule by which a person decides about a request to `signer`, if there is one. `namespace`: the pod's; a host
    /// has none. A rule guards CAs: those of the roles that it names, whatever else the same CA signs.
    pub fn manual_approval(&self, namespace: Option<&str>, signer: &SignerName) -> Option<usize> {
        let authority = self.authority(signer);
        let guards = |rule: &ManualApproval, named: &SignerName| {
            let takes = |name: &str| rule.namespaces.takes(name);
            let of = |role: &Role| self.authority(&SignerName { domain: role.domain(), ..named.clone() }) == authority;
            (takes(&named.namespace) || namespace.is_some_and(takes))
                && rule.clusters.takes(&named.cluster)
                && rule.roles.iter().any(of)
        };
        // Whatever has a certificate of the CA is trusted where another of its signer names is.
        let siblings =
            self.shared.iter().filter(|shared| shared.authority == authority).flat_map(|shared| &shared.signers);
        let named: Vec<&SignerName> = [signer, &authority].into_iter().chain(siblings).collect();
        self.manual_approval.iter().position(|rule| named.iter().any(|named| guards(rule, named)))
    }

    /// True if `username` with `groups` may revoke certificates of a standalone signer.
    pub fn may_revoke(&self, username: &str, groups: &[String]) -> bool {
        self.revokers.iter().any(|revoker| revoker.is(username, groups))
    }

    /// True if the policy gives rights to a caller of this name: a host, or somebody who may revoke.
    pub fn lists_user(&self, username: &str) -> bool {
        let revokers = self.revokers.iter().filter_map(|revoker| revoker.username.as_ref());
        self.hosts.iter().map(|host| &host.username).chain(revokers).any(|listed| listed == username)
    }

    /// True if a host is listed of a cluster in `namespace`.
    pub fn has_hosts_in(&self, namespace: &str) -> bool {
        self.hosts.iter().any(|host| host.cluster.namespace == namespace)
    }

    /// The host that authenticates as `username` with `groups`.
    pub fn host(&self, username: &str, groups: &[String]) -> Option<&HostRule> {
        self.hosts
            .iter()
            .find(|host| host.username == username && host.groups.iter().all(|group| groups.contains(group)))
    }
}
