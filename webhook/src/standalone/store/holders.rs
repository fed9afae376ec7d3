//! The holder of each name: of each CN and SAN of a certificate that was issued here, until that certificate expires.
//!
//! **Invariant.** A name stays held when its request is deleted or evicted. It is freed only when the certificate expires, or
//! when a person approves it for another host.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::san::Sans;
use serde::{Deserialize, Serialize};

use crate::standalone::subject::{host_of, subjects_of};

/// The names of one certificate, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The subject's CN.
    pub common_name: String,
    /// To whom it was issued: [`crate::standalone::auth::User::principal`].
    pub principal: String,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// notAfter, in seconds since 1970.
    pub until: u64,
    /// True if a person gave these names to this host: others lose them.
    #[serde(default)]
    pub given: bool,
    /// True if the CN is held so, too; not where these are names of an older certificate alone.
    #[serde(default = "yes")]
    pub subject: bool,
}

const fn yes() -> bool {
    true
}

/// A claim to a CN and SANs.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The subject's CN.
    pub common_name: &'a str,
    /// The names and addresses.
    pub sans: &'a Sans,
    /// The caller: [`crate::standalone::auth::User::principal`].
    pub principal: &'a str,
    /// The host that the caller is, by its certificate.
    pub caller_host: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Subject(String),
    Dns(String),
    Ip(IpAddr),
}

#[derive(Clone, Debug)]
struct Hold {
    common_name: Arc<str>,
    principal: Arc<str>,
    until: SystemTime,
}

impl Hold {
    /// The host, or the client, whose name it is.
    fn subject(&self) -> &str {
        host_of(&self.common_name).unwrap_or(&self.common_name)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    names: BTreeMap<Name, Vec<Hold>>,
    of_principal: HashMap<Arc<str>, usize>,
}

/// True if every host has the name for itself, so that it can be nobody's: `localhost` and its two addresses.
pub fn is_everybodys(dns: &str) -> bool {
    dns == "localhost"
}

/// The two addresses that every host has for itself; not the whole of 127.0.0.0/8.
pub fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from(1_u128.to_be_bytes())
}

fn san_names<'a>(
    dns: impl Iterator<Item = &'a String> + 'a,
    ips: impl Iterator<Item = &'a IpAddr> + 'a,
) -> impl Iterator<Item = Name> + 'a {
    let dns =
        dns.map(|name| name.trim_end_matches('.').to_ascii_lowercase()).filter(|n| !is_everybodys(n)).map(Name::Dns);
    // An IPv4 address in IPv6's clothes is the IPv4 address.
    dns.chain(ips.map(IpAddr::to_canonical).filter(|ip| !is_localhost(*ip)).map(Name::Ip))
}

impl Holders {
    /// Why the claim cannot be granted without a person: which name somebody else holds. `None`: all of them are free, or
    /// the caller's.
    pub fn conflict(&self, claim: &Claim<'_>, now: SystemTime) -> Option<String> {
        let own = host_of(claim.common_name).unwrap_or(claim.common_name);
        let is_own_host = claim.caller_host.is_some_and(|host| host == own);
        let live = |name: &Name| self.names.get(name).into_iter().flatten().filter(move |hold| now < hold.until);

        // The exact CN: the holder of the last certificate.
        let exact = Name::Subject(claim.common_name.to_owned());
        if let Some(hold) = live(&exact).find(|hold| *hold.principal != *claim.principal)
            && !is_own_host
        {
            let (cn, holder) = (claim.common_name, &hold.principal);
            return Some(format!("{cn} holds a valid certificate, issued to {holder}"));
        }
        // The host's other roles, as one name.
        let host: Vec<&Hold> = match host_of(claim.common_name) {
            Some(host) => subjects_of(host).flat_map(|cn| live(&Name::Subject(cn)).collect::<Vec<_>>()).collect(),
            None => Vec::new(),
        };
        if let Some(hold) = refused(&host, own, is_own_host, claim.principal) {
            return Some(format!("the host {own} holds valid certificates, issued to {}", hold.principal));
        }
        san_names(claim.sans.dns.iter(), claim.sans.ips.iter()).find_map(|name| {
            let holds = self.overlapping(&name).filter(|hold| now < hold.until).collect::<Vec<_>>();
            let hold = refused(&holds, own, is_own_host, claim.principal)?;
            let what = match &name {
                Name::Dns(name) | Name::Subject(name) => name.clone(),
                Name::Ip(ip) => ip.to_string(),
            };
            Some(format!("{what} stands in a valid certificate of {}, issued to {}", hold.common_name, hold.principal))
        })
    }

    /// True if a valid certificate of `host` holds this DNS name.
    pub fn holds_dns(&self, host: &str, dns: &str, now: SystemTime) -> bool {
        self.holds(host, &Name::Dns(dns.to_owned()), now)
    }

    /// True if a valid certificate of `host` holds this address.
    pub fn holds_ip(&self, host: &str, ip: IpAddr, now: SystemTime) -> bool {
        self.holds(host, &Name::Ip(ip), now)
    }

    fn holds(&self, host: &str, name: &Name, now: SystemTime) -> bool {
        self.names.get(name).into_iter().flatten().any(|hold| now < hold.until && hold.subject() == host)
    }

    /// How many names more than now its principal would hold, and how many it holds.
    pub fn growth(&self, holding: &Holding) -> (usize, usize) {
        let new = holding
            .names()
            .filter(|name| {
                !self
                    .names
                    .get(name)
                    .into_iter()
                    .flatten()
                    .any(|hold| *hold.common_name == *holding.common_name && *hold.principal == *holding.principal)
            })
            .count();
        (new, self.of_principal.get(holding.principal.as_str()).copied().unwrap_or_default())
    }

    /// Records a certificate. One that has ended changes nothing.
    pub fn take(&mut self, holding: &Holding, now: SystemTime) {
        let until = UNIX_EPOCH + Duration::from_secs(holding.until);
        if until <= now {
            return;
        }
        let new = Hold {
            common_name: Arc::from(holding.common_name.as_str()),
            principal: Arc::from(holding.principal.as_str()),
            until,
        };
        for name in holding.names() {
            let holds = self.names.entry(name).or_default();
            if holding.given {
                drain(holds, &mut self.of_principal, |hold| hold.subject() != new.subject());
            }
            // An older certificate of this CN may live longer; its principal is the last one.
            let older = holds.iter().filter(|hold| hold.common_name == new.common_name).map(|hold| hold.until).max();
            drain(holds, &mut self.of_principal, |hold| hold.common_name == new.common_name);
            *self.of_principal.entry(Arc::clone(&new.principal)).or_default() += 1;
            if holds.is_empty() {
                // Most names have one holder, and there are thousands of names.
                holds.reserve_exact(1);
            }
            holds.push(Hold { until: older.map_or(until, |older| older.max(until)), ..new.clone() });
        }
    }

    /// Forgets what has ended.
    pub fn sweep(&mut self, now: SystemTime) {
        let of_principal = &mut self.of_principal;
        self.names.retain(|_, holds| {
            drain(holds, of_principal, |hold| hold.until <= now);
            !holds.is_empty()
        });
    }

    /// All that is held, to be stored.
    pub fn holdings(&self) -> Vec<Holding> {
        let mut all: BTreeMap<(&str, &str, SystemTime), Holding> = BTreeMap::new();
        for (name, holds) in &self.names {
            for hold in holds {
                let holding = all.entry((&hold.common_name, &hold.principal, hold.until)).or_insert_with(|| Holding {
                    common_name: hold.common_name.to_string(),
                    principal: hold.principal.to_string(),
                    dns: Vec::new(),
                    ips: Vec::new(),
                    until: hold.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
                    given: false,
                    subject: false,
                });
                match name {
                    Name::Subject(_) => holding.subject = true,
                    Name::Dns(dns) => holding.dns.push(dns.clone()),
                    Name::Ip(ip) => holding.ips.push(*ip),
                }
            }
        }
        all.into_values().collect()
    }

    /// How many names are held.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True if no name is held.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The holds of a name, of wildcards that stand for it, and of what it stands for as a wildcard.
    fn overlapping<'a>(&'a self, name: &'a Name) -> Box<dyn Iterator<Item = &'a Hold> + 'a> {
        let exact = self.names.get(name).into_iter().flatten();
        let Name::Dns(dns) = name else { return Box::new(exact) };
        match dns.strip_prefix("*.") {
            // Rare: a rule must spell it.
            Some(parent) => {
                let under = move |other: &Name| match other {
                    Name::Dns(other) => other.split_once('.').is_some_and(|(_, rest)| rest == parent),
                    _ => false,
                };
                Box::new(
                    exact.chain(self.names.iter().filter(move |(n, _)| *n != name && under(n)).flat_map(|(_, h)| h)),
                )
            }
            None => {
                let wildcard = dns.split_once('.').map(|(_, parent)| Name::Dns(format!("*.{parent}")));
                Box::new(exact.chain(wildcard.and_then(|w| self.names.get(&w)).into_iter().flatten()))
            }
        }
    }
}

impl Holding {
    fn names(&self) -> impl Iterator<Item = Name> {
        self.subject
            .then(|| Name::Subject(self.common_name.clone()))
            .into_iter()
            .chain(san_names(self.dns.iter(), self.ips.iter()))
    }
}

/// The hold that conflicts with the caller's: of another subject in which the caller has no part. A host's own names stay its
/// own, even if somebody else got them in the meantime.
fn refused<'a>(holds: &[&'a Hold], own: &str, is_own_host: bool, principal: &str) -> Option<&'a Hold> {
    if is_own_host && holds.iter().any(|hold| hold.subject() == own) {
        return None;
    }
    let has_part = |subject: &str| holds.iter().any(|h| h.subject() == subject && *h.principal == *principal);
    holds.iter().find(|hold| !has_part(hold.subject())).copied()
}

fn drain(holds: &mut Vec<Hold>, of_principal: &mut HashMap<Arc<str>, usize>, gone: impl Fn(&Hold) -> bool) {
    holds.retain(|hold| {
        let gone = gone(hold);
        if gone && let Some(count) = of_principal.get_mut(&hold.principal) {
            *count -= 1;
            if *count == 0 {
                of_principal.remove(&hold.principal);
            }
        }
        !gone
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: u64 = 1_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn sans(names: &[&str]) -> Sans {
        let mut sans = Sans::default();
        for name in names {
            match name.parse() {
                Ok(ip) => drop(sans.ips.insert(ip)),
                Err(_) => drop(sans.dns.insert((*name).to_owned())),
            }
        }
        sans
    }

    fn holding(cn: &str, principal: &str, names: &[&str], until: u64) -> Holding {
        let sans = sans(names);
        Holding {
            common_name: cn.to_owned(),
            principal: principal.to_owned(),
            dns: sans.dns.into_iter().collect(),
            ips: sans.ips.into_iter().collect(),
            until,
            given: false,
            subject: true,
        }
    }

    fn holders(all: &[(&str, &str, &[&str])]) -> Holders {
        let mut holders = Holders::default();
        for (cn, principal, names) in all {
            holders.take(&holding(cn, principal, names, NOW + 100), at(NOW));
        }
        holders
    }

    fn free(holders: &Holders, cn: &str, principal: &str, names: &[&str]) -> bool {
        let caller_host = principal.strip_prefix("host/");
        let claim = Claim { common_name: cn, sans: &sans(names), principal, caller_host };
        holders.conflict(&claim, at(NOW)).is_none()
    }

    const P1: &str = "system:etcd-peer:m1";
    const S1: &str = "system:etcd-server:m1";
    const P2: &str = "system:etcd-peer:m2";

    #[test]
    fn each_name_has_a_holder() {
        let held = holders(&[(P1, "host/m1", &["m1.example.com", "10.0.0.1", "2001:db8::1", "*.m1.example.com"])]);
        for names in [
            &["m1.example.com"][..],
            &["10.0.0.1"],
            &["2001:db8::1"],
            &["free.example.com", "10.0.0.1"],
            &["*.example.com"],
            &["a.m1.example.com"],
            &["*.m1.example.com"],
        ] {
            for principal in ["host/m2", "user/bootstrap", "user/x"] {
                assert!(!free(&held, P2, principal, names), "{principal} {names:?}");
            }
            assert!(free(&held, P1, "host/m1", names), "{names:?}");
            assert!(free(&held, S1, "host/m1", names), "{names:?}");
        }
        for names in
            [&["free.example.com"][..], &["10.0.0.2"], &["a.b.m1.example.com"], &["example.com"], &["*.com"], &[]]
        {
            assert!(free(&held, P2, "host/m2", names), "{names:?}");
        }
        // The CN itself, and the host's other roles.
        assert!(!free(&held, P1, "user/bootstrap", &["free.example.com"]));
        assert!(!free(&held, S1, "user/bootstrap", &["free.example.com"]));
        assert!(!free(&held, "system:etcd-metric:m1", "user/bootstrap", &[]));
    }

    /// Names that every host has for itself, and other writings of one address.
    #[test]
    fn a_name_is_one_however_it_is_written() {
        let held =
            holders(&[(P1, "host/m1", &["m1.example.com", "10.0.0.1", "localhost", "127.0.0.1", "::1", "127.0.0.2"])]);
        for taken in ["M1.example.COM", "m1.example.com.", "::ffff:10.0.0.1", "127.0.0.2"] {
            assert!(!free(&held, P2, "host/m2", &[taken]), "{taken}");
        }
        for everybodys in ["localhost", "127.0.0.1", "::1", "127.0.0.3"] {
            assert!(free(&held, P2, "host/m2", &[everybodys]), "{everybodys}");
        }
    }

    #[test]
    fn a_bootstrap_user_shares_a_name_until_the_host_asks_by_its_certificate() {
        let mut held = holders(&[(P1, "user/bootstrap", &["10.0.0.1"])]);
        assert!(free(&held, P1, "user/bootstrap", &["10.0.0.1"]));
        assert!(free(&held, S1, "user/bootstrap", &["10.0.0.1"]));
        assert!(free(&held, P1, "host/m1", &["10.0.0.1"]));
        assert!(!free(&held, P1, "user/other", &["10.0.0.1"]));
        held.take(&holding(S1, "host/m1", &["10.0.0.1"], NOW + 100), at(NOW));
        assert!(free(&held, P1, "user/bootstrap", &["10.0.0.1"]), "its own certificate");
        held.take(&holding(P1, "host/m1", &["10.0.0.1"], NOW + 100), at(NOW));
        assert!(!free(&held, P1, "user/bootstrap", &["10.0.0.1"]));
        assert!(!free(&held, S1, "user/bootstrap", &["10.0.0.1"]));
        assert!(!free(&held, P2, "user/bootstrap", &["10.0.0.1"]));
    }

    #[test]
    fn a_name_is_free_when_its_last_certificate_ends() {
        let mut held = Holders::default();
        held.take(&holding(P1, "host/m1", &["10.0.0.1", "10.0.0.2"], NOW + 100), at(NOW));
        // The next one ends earlier, and has a name less.
        held.take(&holding(P1, "host/m1", &["10.0.0.1"], NOW + 50), at(NOW));
        let free_at = |held: &Holders, name: &str, seconds| {
            let claim = Claim { common_name: P2, sans: &sans(&[name]), principal: "host/m2", caller_host: Some("m2") };
            held.conflict(&claim, at(NOW + seconds)).is_none()
        };
        for name in ["10.0.0.1", "10.0.0.2"] {
            assert!(!free_at(&held, name, 99), "{name}");
            assert!(free_at(&held, name, 100), "{name}");
        }
        held.sweep(at(NOW + 99));
        assert_eq!(held.len(), 3);
        held.sweep(at(NOW + 100));
        assert!(held.is_empty() && held.of_principal.is_empty());
        held.take(&holding(P1, "host/m1", &["10.0.0.1"], NOW), at(NOW));
        assert!(held.is_empty(), "it has ended before");
    }

    /// Ten times as many names as a user may hold at once, by default.
    #[test]
    fn names_of_certificates_that_have_ended_leave_nothing() {
        let (mut held, most) = (Holders::default(), 10_000);
        for n in 0..10 * most {
            let address = format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
            let now = NOW + n / 10;
            held.take(&holding(&format!("system:etcd-peer:m{n}"), "user/bootstrap", &[&address], now + 100), at(now));
            if n % 100 == 0 {
                held.sweep(at(now));
                assert!(held.len() <= 2_400, "{} names at {n}", held.len());
                assert_eq!(held.of_principal["user/bootstrap"], held.len());
            }
        }
        held.sweep(at(NOW + most + 100));
        assert!(held.is_empty() && held.of_principal.is_empty());
    }

    #[test]
    fn a_person_gives_a_name_to_another_host() {
        let mut held = holders(&[(P1, "host/m1", &["10.0.0.1", "10.0.0.2"])]);
        held.take(&Holding { given: true, ..holding(P2, "user/bootstrap", &["10.0.0.1"], NOW + 100) }, at(NOW));
        assert!(!free(&held, P1, "host/m1", &["10.0.0.1"]));
        assert!(free(&held, P1, "host/m1", &["10.0.0.2"]));
        assert!(free(&held, P2, "host/m2", &["10.0.0.1"]));
    }

    #[test]
    fn stored_holders_are_read_back_and_counted() {
        let mut held = holders(&[
            (P1, "user/bootstrap", &["10.0.0.1", "old.example.com"]),
            (P1, "host/m1", &["10.0.0.1"]),
            (P2, "user/bootstrap", &["10.0.0.1", "*.example.com"]),
        ]);
        held.take(&holding("backup", "user/bootstrap", &[], NOW + 200), at(NOW));
        let mut again = Holders::default();
        for holding in held.holdings() {
            let json = serde_json::to_string(&holding).unwrap();
            again.take(&serde_json::from_str(&json).unwrap(), at(NOW));
        }
        assert_eq!(again.holdings(), held.holdings());
        assert_eq!(again.of_principal, held.of_principal);
        // Of the bootstrap user: a name of m1's first certificate, three of m2's, and the client.
        assert_eq!(held.of_principal["user/bootstrap"], 5);
        assert_eq!(held.growth(&holding(P2, "user/bootstrap", &["10.0.0.1", "10.0.0.3"], NOW + 1)), (1, 5));
        assert!(!free(&again, P1, "user/bootstrap", &["10.0.0.9"]), "the last certificate's");
    }
}
