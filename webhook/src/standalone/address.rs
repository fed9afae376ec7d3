//! `--address`: where requests are taken.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use etcd_tls_contract::invalid_value::InvalidValue;
use etcd_tls_telemetry::listen;
use tokio::net::{TcpListener, lookup_host};

use crate::error::Error;

/// A name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Without brackets.
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad = || format!("{text:?} is not an address such as [::]:6443, 192.0.2.1:6443 or localhost:6443");
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bracketed {
            Some(host) => host.parse::<Ipv6Addr>().is_ok(),
            None => {
                let none = |c: char| matches!(c, ':' | '/' | '[' | ']') || c.is_whitespace();
                host.parse::<Ipv6Addr>().is_ok() || !(host.is_empty() || host.contains(none))
            }
        };
        let port = port.parse().map_err(|_| bad())?;
        let host = bracketed.unwrap_or(host).to_owned();
        if is_host { Ok(Self { host, port }) } else { Err(bad().into()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Address {
    /// Listens on the first IP address of the name that can be listened on; for `[::]` on IPv4 where the host has no IPv6.
    ///
    /// # Errors
    /// The name has no address, or none can be listened on.
    pub(super) async fn listen(&self) -> Result<std::net::TcpListener, Error> {
        let found = lookup_host((self.host.as_str(), self.port)).await;
        let candidates = found.map_err(|error| format!("--address {self}: {error}"))?;
        let mut failed = format!("--address {self}: no address of this name");
        for candidate in candidates {
            match listen::at(candidate).await.and_then(TcpListener::into_std) {
                Ok(listener) => return Ok(listener),
                Err(error) => failed = format!("--address {self}: {candidate}: {error}"),
            }
        }
        Err(failed.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for text in ["[::]:6443", "[2001:db8::1]:0", "192.0.2.1:6443", "localhost:1", "signer.example.com:65535"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("::1:6443".parse::<Address>().unwrap().to_string(), "[::1]:6443");
        for port in ["", ":", ":http", ":65536"] {
            assert!(format!("localhost{port}").parse::<Address>().is_err(), "{port}");
        }
        for host in ["", "[::1", "::1]", "[a]", "[]", "https://a", "a b", "a:b"] {
            assert!(format!("{host}:6443").parse::<Address>().is_err(), "{host}");
        }
    }
}
