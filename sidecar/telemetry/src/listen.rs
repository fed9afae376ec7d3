//! Listening on a port of every address of the host.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

/// Listens on `port` of every address: IPv6 and IPv4 where the host has both, else IPv4 alone.
///
/// # Errors
/// The port is in use, or neither family can be listened on.
pub async fn every_address(port: u16) -> io::Result<TcpListener> {
    at(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))).await
}

/// Listens on `address`. For `[::]`, a host without IPv6 listens on `0.0.0.0` instead.
///
/// # Errors
/// The port is in use, or the address cannot be listened on.
pub async fn at(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}
