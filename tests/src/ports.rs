//! Ports that are free, never fixed ones.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, TcpListener},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Below those that Linux gives to connections unless told otherwise (`net.ipv4.ip_local_port_range`): one of these is still
/// free when it is bound at last, however many connections are made until then.
const FIRST: u32 = 20_000;
const COUNT: u32 = 10_000;

/// A port of `address` that was free a moment ago, and that none of the last calls in this process was given.
pub fn free(address: impl Into<IpAddr>) -> u16 {
    // Test programs may run side by side.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(process::id().wrapping_mul(97) % COUNT));
    let address = address.into();
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| match TcpListener::bind((address, *port)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::AddrInUse => false,
            Err(error) => panic!("bind {address}: {error}"),
        })
        .unwrap_or_else(|| panic!("no free port on {address}"))
}

/// [`free`] on 127.0.0.1.
pub fn loopback() -> u16 {
    free(Ipv4Addr::LOCALHOST)
}
