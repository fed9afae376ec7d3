//! A URL of etcd.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use crate::{invalid_value::InvalidValue, text::quoted};

/// The longest URL that is read, in bytes.
const MAX_URL: usize = 2048;

/// Scheme, host and port of `http(s)://host:port`, parsed once. [`fmt::Display`] writes the URL as it was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    url: String,
    /// True if the port speaks TLS.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port; 443 or 80 where the URL has none.
    pub port: u16,
}

impl Endpoint {
    /// The URL as it was read.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The host, where it is an address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// Reads `https://`, `http://` or `tcp://`, a host, and optionally a port and a path; the path is not used. An IPv6 address
/// before a port may lack its brackets, as `$(POD_IP):2379` becomes where the pod's address is one.
impl FromStr for Endpoint {
    type Err = InvalidValue;

    fn from_str(url: &str) -> Result<Self, InvalidValue> {
        let bad = |why: &str| -> InvalidValue {
            format!("{} is not a URL such as https://127.0.0.1:2379: {why}", quoted(url)).into()
        };
        if url.len() > MAX_URL {
            return Err(bad("it is too long"));
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let tls = match scheme {
            "https" => true,
            "http" | "tcp" => false,
            _ => return Err(bad("its scheme is neither https nor http")),
        };
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let (host, port) = split(authority).ok_or_else(|| bad("its host is neither a name nor an address"))?;
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => number(port).ok_or_else(|| bad("its port is not a number from 1 to 65535"))?,
        };
        Ok(Self { url: url.to_owned(), tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Host and port of an authority; `None` where the host is none.
fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
        return (host.parse::<Ipv6Addr>().is_ok() || is_variable(host)).then_some((host, port));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if is_host(host) => Some((host, Some(port))),
        _ => is_host(authority).then_some((authority, None)),
    }
}

/// An address, a name, or a variable that kubelet puts the pod's address in for.
fn is_host(host: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    host.parse::<IpAddr>().is_ok() || is_variable(host) || (!host.is_empty() && host.chars().all(name))
}

/// `$(NAME)`, in the arguments of a container.
fn is_variable(host: &str) -> bool {
    let name = host.strip_prefix("$(").and_then(|rest| rest.strip_suffix(')'));
    name.is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

fn number(port: &str) -> Option<u16> {
    port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, tls, host, port, authority) in [
            ("https://127.0.0.1:2379", true, "127.0.0.1", 2379, "127.0.0.1:2379"),
            ("https://127.0.0.1", true, "127.0.0.1", 443, "127.0.0.1:443"),
            ("https://[fd00::1]:2380/", true, "fd00::1", 2380, "[fd00::1]:2380"),
            ("https://[fd00::1]", true, "fd00::1", 443, "[fd00::1]:443"),
            ("https://fd00::1:2379/health", true, "fd00::1", 2379, "[fd00::1]:2379"),
            ("http://etcd-0.etcd.prod.svc/health", false, "etcd-0.etcd.prod.svc", 80, "etcd-0.etcd.prod.svc:80"),
            ("tcp://10.0.0.1:2379", false, "10.0.0.1", 2379, "10.0.0.1:2379"),
            ("https://$(POD_IP):2379", true, "$(POD_IP)", 2379, "$(POD_IP):2379"),
            ("https://[$(POD_IP)]:2379", true, "$(POD_IP)", 2379, "$(POD_IP):2379"),
        ] {
            let endpoint: Endpoint = url.parse().unwrap();
            assert_eq!((endpoint.tls, endpoint.host.as_str(), endpoint.port), (tls, host, port), "{url}");
            assert_eq!(endpoint.authority(), authority);
            assert_eq!(endpoint.to_string(), url);
        }
    }

    #[test]
    fn other_text_is_refused() {
        for url in [
            "",
            "x",
            "127.0.0.1:2379",
            "unix:///run/etcd.sock",
            "unixs://localhost:2379",
            "HTTPS//127.0.0.1",
            "https://",
            "https:///health",
            "https:// x",
            "https://a b:2379",
            "https://127.0.0.1:",
            "https://127.0.0.1:0",
            "https://127.0.0.1:65536",
            "https://127.0.0.1:+1",
            "https://127.0.0.1:2379,https://127.0.0.1:2380",
            "https://user:secret@127.0.0.1:2379",
            "https://[fd00::1",
            "https://[127.0.0.1]:2379",
            "https://[fd00::1]2379",
            "https://$(POD_IP:2379",
            "https://%31:2379",
        ] {
            assert!(url.parse::<Endpoint>().is_err(), "{url}");
        }
        assert!(format!("https://{}:1", "a".repeat(MAX_URL)).parse::<Endpoint>().is_err());
    }
}
