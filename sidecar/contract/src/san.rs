//! Names and addresses: `…/extra-sans`, and what requests and certificates hold.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use crate::{
    invalid_value::InvalidValue,
    names,
    text::{list, quoted},
};

/// Subject alternative names of the two kinds that we issue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sans {
    /// DNS names, lower case.
    pub dns: BTreeSet<String>,
    /// IP addresses.
    pub ips: BTreeSet<IpAddr>,
}

impl Sans {
    /// True if there is neither a name nor an address.
    pub fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty()
    }

    /// True if every name and address is among `other`'s.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.dns.is_subset(&other.dns) && self.ips.is_subset(&other.ips)
    }

    /// The names and addresses that `other` lacks, as text.
    pub fn beyond(&self, other: &Self) -> Vec<String> {
        let names = self.dns.difference(&other.dns).cloned();
        names.chain(self.ips.difference(&other.ips).map(ToString::to_string)).collect()
    }

    /// Every name and address as text, names first.
    pub fn texts(&self) -> Vec<String> {
        self.beyond(&Self::default())
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.dns.extend(other.dns.iter().cloned());
        self.ips.extend(other.ips.iter().copied());
    }
}

/// Reads a comma-separated list of DNS names (lower case, a wildcard only as the whole first label) and IP addresses in
/// their canonical form; the grammar of `…/extra-sans`.
impl FromStr for Sans {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let mut sans = Self::default();
        for san in list(s, San::parse)? {
            match san {
                San::Dns(name) => sans.dns.insert(name),
                San::Ip(ip) => sans.ips.insert(ip),
            };
        }
        Ok(sans)
    }
}

#[derive(PartialEq)]
enum San {
    Dns(String),
    Ip(IpAddr),
}

impl San {
    fn parse(s: &str) -> Result<Self, InvalidValue> {
        if let Ok(ip) = s.parse::<IpAddr>() {
            return match ip.to_string() {
                text if text != s => Err(format!("{} is to be written {text}", quoted(s)).into()),
                _ if !names::is_san_ip(ip) => Err(format!("{s} is no address of one host").into()),
                _ => Ok(Self::Ip(ip)),
            };
        }
        let bare = s.strip_prefix("*.").unwrap_or(s);
        if !names::is_san_dns_name(bare) || (bare != s && !bare.contains('.')) {
            return Err(format!("{} is neither an IP address nor a DNS name of a-z, 0-9, - and dots", quoted(s)).into());
        }
        Ok(Self::Dns(s.to_owned()))
    }
}
