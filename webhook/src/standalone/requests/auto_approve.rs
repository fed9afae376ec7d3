//! Automatic approval: the names that a group may request.
//!
//! Three outcomes: a request is approved, or it waits for a person, or it is refused at once because an authenticated host
//! requests another host's identity.
//!
//! A rule gives a caller only names that nobody else holds. A host that asks with its certificate gets no more than that
//! certificate says. Names that policy lists are for the host that policy lists them for.

#[cfg(test)]
mod tests;

use std::{net::IpAddr, str::FromStr, time::SystemTime};

use etcd_tls_contract::{
    csr::Request,
    identity::common_name,
    invalid_value::InvalidValue,
    policy::{CidrBlock, DnsPattern, Policy},
    role::Role,
};

use crate::standalone::{
    auth::User,
    store::holders::{Claim, Holders, is_everybodys, is_localhost},
    subject::{self, Recognised},
};

/// `GROUP=PROFILE:SAN[,SAN…]`: the content with which a group's requests are approved automatically.
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
    /// A DNS name, or every one under it; never a wildcard.
    Dns(DnsPattern),
    /// A wildcard itself, as `wildcard:*.example.com` spells it.
    Wildcard(String),
    /// A client's CN, which is its user in etcd.
    User(String),
}

impl FromStr for Rule {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
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
            .map(|name| Name::parse(role, name).map_err(|e| e.at(format_args!("{s:?}"))))
            .collect::<Result<_, InvalidValue>>()?;
        Ok(Self { group: group.to_owned(), role, names, text: s.to_owned() })
    }
}

impl Name {
    fn parse(role: Role, s: &str) -> Result<Self, InvalidValue> {
        if let Some(wildcard) = s.strip_prefix("wildcard:") {
            let spelled = wildcard.starts_with("*.") && role != Role::Client;
            return match wildcard.parse::<DnsPattern>() {
                Ok(_) if spelled => Ok(Self::Wildcard(wildcard.to_owned())),
                _ => Err(format!("{s:?} is not wildcard:*.<domain> of a peer, server or metrics rule").into()),
            };
        }
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
    /// True if it approves what is asked: the profile's, and every name listed.
    fn takes(&self, user: &User, request: &Request, recognised: &Recognised) -> bool {
        let own_name = user.host().is_none_or(|host| host == recognised.name);
        if self.role != recognised.role {
            return false;
        }
        let sans = &request.sans;
        match self.role {
            // A client is its CN; etcd looks at no name of its certificate.
            Role::Client => {
                let listed = |name: &Name| match name {
                    Name::User(user) => *user == recognised.name,
                    // A pattern is for hosts' own names, not for names of others that are like them.
                    Name::Dns(pattern) => pattern.takes(&recognised.name) && own_name,
                    Name::Address(_) | Name::Block(_) | Name::Wildcard(_) => false,
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
        request.sans.dns.iter().all(|dns| (server && is_everybodys(dns)) || self.takes_dns(dns))
            && request.sans.ips.iter().all(|ip| (server && is_localhost(*ip)) || self.takes_ip(*ip))
    }

    fn takes_dns(&self, dns: &str) -> bool {
        self.names.iter().any(|name| match name {
            Name::Dns(pattern) => !dns.starts_with('*') && pattern.takes(dns),
            Name::Wildcard(wildcard) => wildcard == dns,
            Name::Address(_) | Name::Block(_) | Name::User(_) => false,
        })
    }

    fn takes_ip(&self, ip: IpAddr) -> bool {
        self.names.iter().any(|name| match name {
            Name::Address(address) => *address == ip,
            Name::Block(block) => block.contains(ip),
            Name::Dns(_) | Name::User(_) | Name::Wildcard(_) => false,
        })
    }
}

/// The result for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AutoApproval {
    /// Approved: by which rule, for the condition's message.
    Approve(String),
    /// Left for a person: why no rule approves it, for the log.
    Wait(String),
    /// Refused at once.
    Forbid(String),
}

/// The further inputs of a decision beside the request and its caller.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// `--approve-group`.
    pub rules: &'a [Rule],
    /// The holders of names.
    pub holders: &'a Holders,
    /// The policy.
    pub policy: &'a Policy,
    /// True if a CN is also the name of a token's user.
    pub is_token_user: bool,
    /// Now.
    pub now: SystemTime,
}

/// Decides on a request whose subject fits a profile, of a caller that policy does not know.
pub fn decide(user: &User, request: &Request, recognised: &Recognised, context: &Context<'_>) -> AutoApproval {
    if let Some(reason) = of_another(user, request, recognised) {
        return AutoApproval::Forbid(reason);
    }
    let principal = user.principal();
    let claim = Claim {
        common_name: &request.common_name,
        sans: &request.sans,
        principal: &principal,
        caller_host: user.host(),
    };
    let waits = beyond_presented(user, request, recognised, context)
        .or_else(|| context.holders.conflict(&claim, context.now))
        .or_else(|| reserved_by_policy(request, recognised, context.policy));
    if let Some(reason) = waits {
        return AutoApproval::Wait(reason);
    }
    if recognised.role == Role::Client && recognised.name != user.name {
        if context.is_token_user {
            return AutoApproval::Wait(format!("{} is the name of a token's user", recognised.name));
        }
        // With the certificate, the caller would be that host, or might revoke.
        if context.policy.lists_user(&recognised.name) {
            return AutoApproval::Wait(format!("policy gives rights to the user {}", recognised.name));
        }
    }
    match context.rules.iter().find(|rule| user.is_in(&rule.group) && rule.takes(user, request, recognised)) {
        Some(rule) => AutoApproval::Approve(rule.text.clone()),
        None => AutoApproval::Wait("no --approve-group rule takes the caller, the profile and every name".to_owned()),
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

/// Requested content that the host's presented certificate lacks: another role, or a name that is neither in it nor in another
/// valid certificate of this host. A token presents no certificate, so this check does not apply to it.
fn beyond_presented(user: &User, request: &Request, recognised: &Recognised, context: &Context<'_>) -> Option<String> {
    let presented = user.presented.as_ref()?;
    let Some((role, host)) = user.member() else {
        let of_members = subject::MEMBERS.into_iter().find(|role| user.is_in(role.organization()))?;
        return Some(format!("{} is in {} but is no host of it", user.name, of_members.organization()));
    };
    let stands_for = match role {
        Role::Peer => true,
        Role::Server => recognised.role != Role::Peer,
        Role::Metrics | Role::Client => recognised.role == Role::Metrics,
    };
    if !stands_for {
        return Some(format!("a {role} certificate renews no {} certificate", recognised.role));
    }
    let held = |dns: &str| presented.dns.contains(dns) || context.holders.holds_dns(host, dns, context.now);
    let held_ip = |ip: IpAddr| presented.ips.contains(&ip) || context.holders.holds_ip(host, ip, context.now);
    let server = recognised.role == Role::Server;
    let dns = request.sans.dns.iter().find(|dns| !(held(dns) || server && is_everybodys(dns))).cloned();
    let beyond = dns.or_else(|| {
        let ip = request.sans.ips.iter().find(|ip| !(held_ip(**ip) || server && is_localhost(**ip)));
        ip.map(ToString::to_string)
    });
    beyond.map(|name| format!("{name} stands in no valid certificate of the host {host}, which asks with one"))
}

/// The policy's objection to the subject or the names: a listed host has the roles and names of its entry, and nobody else has
/// them.
fn reserved_by_policy(request: &Request, recognised: &Recognised, policy: &Policy) -> Option<String> {
    let server = recognised.role == Role::Server;
    policy.hosts.iter().find_map(|host| {
        let listed = host.sans();
        if recognised.role != Role::Client
            && host.username == request.common_name
            && host.common_name != recognised.name
        {
            return Some(format!("policy lists {} as the host {}", host.username, host.common_name));
        }
        let subject = |role: Role| common_name(role, &host.common_name);
        if recognised.role != Role::Client && subject(recognised.role) == request.common_name {
            if !host.roles.contains(&recognised.role) {
                return Some(format!("policy does not let the host {} be a {}", host.common_name, recognised.role));
            }
            let dns =
                request.sans.dns.iter().find(|d| !(listed.dns.contains(*d) || server && is_everybodys(d))).cloned();
            let ip = request.sans.ips.iter().find(|ip| !(listed.ips.contains(*ip) || server && is_localhost(**ip)));
            let beyond = dns.or_else(|| ip.map(ToString::to_string))?;
            return Some(format!("policy does not give {beyond} to the host {}", host.common_name));
        }
        if recognised.role == Role::Client {
            let lists = host.roles.contains(&Role::Client) && host.common_name == request.common_name;
            return lists.then(|| format!("policy gives the client name {} to {}", host.common_name, host.username));
        }
        let covers = |asked: &str, name: &str| {
            asked == name || asked.strip_prefix("*.").is_some_and(|p| name.split_once('.').is_some_and(|(_, r)| r == p))
        };
        let dns = request.sans.dns.iter().find(|asked| listed.dns.iter().any(|name| covers(asked, name))).cloned();
        let ip = request.sans.ips.iter().find(|ip| listed.ips.contains(*ip) && !is_localhost(**ip));
        let taken = dns.filter(|d| !is_everybodys(d)).or_else(|| ip.map(ToString::to_string))?;
        Some(format!("policy gives {taken} to the host {}", host.common_name))
    })
}
