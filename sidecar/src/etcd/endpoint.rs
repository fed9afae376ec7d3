//! A URL of etcd, taken apart.

use std::{borrow::Cow, io, net::Ipv6Addr};

use hyper::Uri;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

/// Scheme, host and port of `http(s)://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// Takes `url` apart; a path is passed over, the port is 443 or 80 where none is written. An IPv6 address before a port
    /// may lack its brackets, as `$(POD_IP):2379` becomes where the pod's address is one.
    ///
    /// # Errors
    /// It is no such URL.
    pub fn parse(url: &str) -> io::Result<Self> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{url:?}: {why}"));
        let uri: Uri = bracketed(url).parse().map_err(|_| bad("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http" | "tcp") => false,
            _ => return Err(bad("neither http:// nor https://")),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| bad("no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }) })
    }

    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The name that the server's certificate must hold.
    ///
    /// # Errors
    /// The host is neither a DNS name nor an address.
    pub fn server_name(&self) -> io::Result<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// The system's.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// `url` with the brackets that an IPv6 address needs.
fn bracketed(url: &str) -> Cow<'_, str> {
    let with_brackets = || {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.rsplit_once(':')?;
        host.parse::<Ipv6Addr>().ok()?;
        Some(format!("{scheme}://[{host}]:{port}{path}"))
    };
    with_brackets().map_or(Cow::Borrowed(url), Cow::Owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, tls, host, port, authority) in [
            ("https://127.0.0.1:2379", true, "127.0.0.1", 2379, "127.0.0.1:2379"),
            ("https://[fd00::1]:2380/", true, "fd00::1", 2380, "[fd00::1]:2380"),
            ("https://fd00::1:2379/health", true, "fd00::1", 2379, "[fd00::1]:2379"),
            ("http://etcd-0.etcd.prod.svc/health", false, "etcd-0.etcd.prod.svc", 80, "etcd-0.etcd.prod.svc:80"),
            ("tcp://10.0.0.1:2379", false, "10.0.0.1", 2379, "10.0.0.1:2379"),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!((endpoint.tls, endpoint.host.as_str(), endpoint.port), (tls, host, port), "{url}");
            assert_eq!(endpoint.authority(), authority);
            assert!(endpoint.server_name().is_ok());
        }
    }

    #[test]
    fn other_text_is_refused() {
        for url in ["", "127.0.0.1:2379", "unix:///run/etcd.sock", "https://", "https:// x"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }
}
