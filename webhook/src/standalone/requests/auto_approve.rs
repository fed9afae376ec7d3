//! What is approved without a person: what a group may ask for, and no other's name.
//!
//! Three outcomes: a request is approved, or it waits for somebody to approve it, or it is refused at once, because its
//! caller is known and asks to be somebody else.

use std::{net::IpAddr, str::FromStr};

use etcd_tls_contract::{
    csr::Request,
    policy::{CidrBlock, DnsPattern},
    role::Role,
};

use crate::standalone::{auth::User, profiles::Recognised};

/// `GROUP=PROFILE:SAN[,SAN…]`: what a group's requests may hold to be approved without a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    group: String,
    role: Role,
    names: Vec<Name>,
    text: String,
}

/// A name, or many.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// One address.
    Address(IpAddr),
    /// Every address of a block.
    Block(CidrBlock),
    /// A DNS name, or every one under it.
    Dns(DnsPattern),
    /// A client's CN, which is its user in etcd.
    User(String),
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // A group's name may hold a colon, and an IPv6 address does; neither the profile nor a name holds an equals sign.
        let (group, rest) = s
            .rsplit_once('=')
            .filter(|(group, _)| !group.is_empty())
            .ok_or_else(|| format!("{s:?} is not GROUP=PROFILE:SAN[,SAN...]"))?;
        let (profile, names) = rest.split_once(':').unwrap_or((rest, ""));
        let role: Role = profile.parse().map_err(|e| format!("{s:?}: {e}"))?;
        let names = names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| Name::parse(role, name).map_err(|e| format!("{s:?}: {e}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { group: group.to_owned(), role, names, text: s.to_owned() })
    }
}

impl Name {
    fn parse(role: Role, s: &str) -> Result<Self, String> {
        if role == Role::Client && !s.starts_with("*.") {
            return Ok(Self::User(s.to_owned()));
        }
        if s.contains('/') {
            return s.parse().map(Self::Block);
        }
        match s.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => s.parse().map(Self::Dns),
        }
    }
}

impl Rule {
    /// Whether it approves what is asked: the profile's, and every name listed.
    fn takes(&self, request: &Request, recognised: &Recognised) -> bool {
        if self.role != recognised.role {
            return false;
        }
        let sans = &request.sans;
        match self.role {
            // A client is its CN; etcd looks at no name of its certificate.
            Role::Client => {
                let listed = |name: &Name| match name {
                    Name::User(user) => *user == recognised.name,
                    Name::Dns(pattern) => pattern.takes(&recognised.name),
                    Name::Address(_) | Name::Block(_) => false,
                };
                sans.dns.is_empty() && sans.ips.is_empty() && self.names.iter().any(listed)
            }
            // A scraper has none.
            Role::Metrics => self.takes_names(request),
            // A member without names would be let in from everywhere.
            Role::Peer | Role::Server => !(sans.dns.is_empty() && sans.ips.is_empty()) && self.takes_names(request),
        }
    }

    fn takes_names(&self, request: &Request) -> bool {
        let server = self.role == Role::Server;
        request.sans.dns.iter().all(|dns| (server && dns == "localhost") || self.takes_dns(dns))
            && request.sans.ips.iter().all(|ip| (server && is_localhost(*ip)) || self.takes_ip(*ip))
    }

    fn takes_dns(&self, dns: &str) -> bool {
        self.names.iter().any(|name| matches!(name, Name::Dns(pattern) if pattern.takes(dns)))
    }

    fn takes_ip(&self, ip: IpAddr) -> bool {
        self.names.iter().any(|name| match name {
            Name::Address(address) => *address == ip,
            Name::Block(block) => block.contains(ip),
            Name::Dns(_) | Name::User(_) => false,
        })
    }
}

/// The two addresses that every host has for itself; not the whole of 127.0.0.0/8.
fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from(1u128.to_be_bytes())
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Approved: by which rule, for the condition's message.
    Approve(String),
    /// Left for a person: why no rule approves it, for the log.
    Wait(String),
    /// Refused at once.
    Forbid(String),
}

/// Decides on a request whose subject fits a profile. `holder` is the user to whom the last certificate of this very
/// subject was issued, while that certificate is valid.
pub fn decide(
    user: &User,
    request: &Request,
    recognised: &Recognised,
    holder: Option<&str>,
    rules: &[Rule],
) -> Decision {
    if let Some(reason) = of_another(user, request, recognised) {
        return Decision::Forbid(reason);
    }
    if let Some(holder) = holder
        && holder != user.name
        && user.host() != Some(&recognised.name)
    {
        let cn = &request.common_name;
        return Decision::Wait(format!("{cn} holds a valid certificate, issued to {holder}"));
    }
    match rules.iter().find(|rule| user.is_in(&rule.group) && rule.takes(request, recognised)) {
        Some(rule) => Decision::Approve(rule.text.clone()),
        None => Decision::Wait("no --approve-group rule takes the caller, the profile and every name".to_owned()),
    }
}

/// Why a caller that has an identity of its own may not ask for this one. A bootstrap token or a person has none.
fn of_another(user: &User, request: &Request, recognised: &Recognised) -> Option<String> {
    let forbidden = |what: &str| {
        Some(format!("{} may ask for {what}, not for the CN {:?} of another", user.name, request.common_name))
    };
    match (user.host(), recognised.role) {
        (Some(host), Role::Peer | Role::Server | Role::Metrics) if host != recognised.name => {
            forbidden("certificates of its own host alone")
        }
        (Some(_), _) => None,
        (None, role) if user.is_client() && (role != Role::Client || user.name != recognised.name) => {
            forbidden("a client certificate of its own name alone")
        }
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::{key::KeyAlgorithm, san::Sans};

    use super::*;
    use crate::standalone::profiles::recognise;

    const HOSTS: &str = "system:bootstrappers:etcd";

    fn user(name: &str, group: &str) -> User {
        User { name: name.to_owned(), groups: vec![group.to_owned()], ..User::default() }
    }

    fn request(role: Role, name: &str, dns: &[&str], ips: &[&str]) -> Request {
        Request {
            organization: role.organization().to_owned(),
            common_name: format!("{}{name}", role.common_name_prefix()),
            sans: Sans {
                dns: dns.iter().map(|d| (*d).to_owned()).collect(),
                ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            },
            key: KeyAlgorithm::EcdsaP256,
            public_key: Vec::new(),
        }
    }

    fn decision(user: &User, request: &Request, holder: Option<&str>, rules: &[&str]) -> Decision {
        let rules: Vec<Rule> = rules.iter().map(|r| r.parse().unwrap()).collect();
        decide(user, request, &recognise(request).unwrap(), holder, &rules)
    }

    fn approved(user: &User, request: &Request, rules: &[&str]) -> bool {
        matches!(decision(user, request, None, rules), Decision::Approve(_))
    }

    #[test]
    fn every_name_must_be_listed() {
        let host = user("bootstrap", HOSTS);
        let rule =
            "system:bootstrappers:etcd=peer:m1.example.com,*.etcd.example.com,10.0.0.1,192.0.2.0/24,2001:db8::/64";
        for (dns, ips) in [
            (vec!["m1.example.com"], vec![]),
            (vec!["a.etcd.example.com"], vec!["10.0.0.1"]),
            (vec![], vec!["192.0.2.77", "2001:db8::9"]),
        ] {
            assert!(approved(&host, &request(Role::Peer, "m1", &dns, &ips), &[rule]), "{dns:?} {ips:?}");
        }
        for (dns, ips) in [
            (vec![], vec![]),
            (vec!["m2.example.com"], vec![]),
            (vec!["m1.example.com", "kubernetes.default.svc"], vec![]),
            (vec!["etcd.example.com"], vec![]),
            (vec!["xetcd.example.com"], vec![]),
            (vec!["localhost"], vec!["10.0.0.1"]),
            (vec![], vec!["10.0.0.1", "127.0.0.1"]),
            (vec![], vec!["10.0.0.2"]),
            (vec![], vec!["192.0.3.1"]),
            (vec![], vec!["2001:db8:0:1::9"]),
        ] {
            assert!(!approved(&host, &request(Role::Peer, "m1", &dns, &ips), &[rule]), "{dns:?} {ips:?}");
        }
    }

    #[test]
    fn rules_are_for_their_group_and_profile() {
        let rule = "system:bootstrappers:etcd=server:10.0.0.0/8";
        let server = request(Role::Server, "m1", &["localhost"], &["10.0.0.1", "127.0.0.1", "::1"]);
        assert!(approved(&user("b", HOSTS), &server, &[rule]));
        assert!(!approved(&user("b", "other"), &server, &[rule]));
        assert!(!approved(&user("b", HOSTS), &request(Role::Peer, "m1", &[], &["10.0.0.1"]), &[rule]));
        assert!(!approved(&user("b", HOSTS), &server, &[]));
    }

    #[test]
    fn no_names_mean_none() {
        let b = user("b", HOSTS);
        for rule in ["system:bootstrappers:etcd=peer", "system:bootstrappers:etcd=peer:"] {
            assert!(!approved(&b, &request(Role::Peer, "m1", &[], &["10.0.0.1"]), &[rule]));
            assert!(!approved(&b, &request(Role::Peer, "m1", &[], &[]), &[rule]));
        }
        assert!(!approved(&b, &request(Role::Client, "backup", &[], &[]), &["system:bootstrappers:etcd=client"]));
        assert!(approved(&b, &request(Role::Metrics, "m1", &[], &[]), &["system:bootstrappers:etcd=metrics"]));
        assert!(!approved(&b, &request(Role::Metrics, "m1", &["x.y"], &[]), &["system:bootstrappers:etcd=metrics"]));
    }

    #[test]
    fn a_client_is_its_name() {
        let b = user("b", HOSTS);
        let rule = "system:bootstrappers:etcd=client:backup,*.jobs.example.com";
        assert!(approved(&b, &request(Role::Client, "backup", &[], &[]), &[rule]));
        assert!(approved(&b, &request(Role::Client, "x.jobs.example.com", &[], &[]), &[rule]));
        for name in ["root", "backup2", "jobs.example.com"] {
            assert!(!approved(&b, &request(Role::Client, name, &[], &[]), &[rule]), "{name}");
        }
        assert!(!approved(&b, &request(Role::Client, "backup", &["backup"], &[]), &[rule]));
    }

    #[test]
    fn nobody_gets_the_name_of_another() {
        let rules = [
            "system:etcd-peers=peer:10.0.0.0/8",
            "system:etcd-peers=client:*.x.y,m2",
            "system:etcd-clients=client:c,d",
        ];
        let m1 = user("system:etcd-peer:m1", "system:etcd-peers");
        let peer = |name| request(Role::Peer, name, &[], &["10.0.0.1"]);
        assert!(matches!(decision(&m1, &peer("m1"), None, &rules), Decision::Approve(_)));
        assert!(matches!(decision(&m1, &peer("m2"), None, &rules), Decision::Forbid(_)));
        assert!(matches!(decision(&m1, &request(Role::Server, "m2", &[], &[]), None, &rules), Decision::Forbid(_)));
        let c = user("c", "system:etcd-clients");
        let client = |name| request(Role::Client, name, &[], &[]);
        assert!(matches!(decision(&c, &client("c"), None, &rules), Decision::Approve(_)));
        assert!(matches!(decision(&c, &client("d"), None, &rules), Decision::Forbid(_)));
        assert!(matches!(decision(&c, &peer("c"), None, &rules), Decision::Forbid(_)));
    }

    #[test]
    fn a_name_in_use_by_another_waits_for_a_person() {
        let rule = ["system:bootstrappers:etcd=peer:10.0.0.0/8", "system:etcd-peers=peer:10.0.0.0/8"];
        let bootstrap = user("bootstrap", HOSTS);
        let m1 = user("system:etcd-peer:m1", "system:etcd-peers");
        let peer = request(Role::Peer, "m1", &[], &["10.0.0.1"]);
        assert!(matches!(decision(&bootstrap, &peer, Some("bootstrap"), &rule), Decision::Approve(_)));
        assert!(matches!(decision(&m1, &peer, Some("bootstrap"), &rule), Decision::Approve(_)), "its own name");
        assert!(matches!(decision(&bootstrap, &peer, Some("system:etcd-peer:m1"), &rule), Decision::Wait(_)));
    }

    #[test]
    fn a_rule_that_cannot_be_read_says_why() {
        for bad in ["", "g", "=peer:a.b", "g=what:a.b", "g=peer:10.0.0.0/33", "g=peer:a b", "g=peer:*", "g=peer:*.com"]
        {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
